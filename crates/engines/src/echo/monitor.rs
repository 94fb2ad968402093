//! Both ends of the probes of a monitor session: the reflector's answers, which include a flag for load at the
//! reflector, and the appliance's socket.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use paramedic_link::admission::SessionKeys;
use paramedic_link::message::MAX_MONITOR_PROBES_PER_S;

use super::dwell::DwellTimes;
use super::ledger::{Entry, ProbeLedger};
use super::packet::{self, MonitorReply, ProbePacket};
use super::responder::reply_to;
use crate::clock::Clock;
use crate::origin::Origin;
use crate::session_control::SessionControl;
use crate::udp_port::datagram::Mailbox;
use crate::udp_port::{DATAGRAM_LEN, Datagram, DatagramHandler, Refusal};

/// How long probes still count as under load after the end of a load phase, because queues still drain.
const LOAD_LINGERS: Duration = Duration::from_secs(2);
/// The time between two probes of a session at the highest allowed rate.
const PROBE_INTERVAL_NS: u64 = 1_000_000_000 / MAX_MONITOR_PROBES_PER_S as u64;
/// The maximum number of probes of a session that are answered at once. It exceeds 1, because the path can delay some
/// probes, so that several arrive together.
const PROBE_BURST: u64 = MAX_MONITOR_PROBES_PER_S as u64;
/// The maximum number of datagrams that one call of [`MonitorSocket::answers`] reads.
const MAX_READS_IN_A_ROW: usize = 64;
/// The number of the latest probes whose sending times are kept. These are the probes of more than 10 s at the highest
/// rate.
const REMEMBERED_PROBES: usize = 64;

/// Whether a load phase of any test runs at this reflector, or ended less than 2 s ago.
#[derive(Debug)]
pub struct LoadFlag {
    running: AtomicUsize,
    /// When the last load phase ended, in nanoseconds of `clock`; [`NO_LOAD`] if none has ended yet.
    ended_ns: AtomicU64,
    clock: Clock,
}

/// The value of `ended_ns` while no load phase has ended yet.
const NO_LOAD: u64 = u64::MAX;

impl Default for LoadFlag {
    fn default() -> Self {
        Self { running: AtomicUsize::new(0), ended_ns: AtomicU64::new(NO_LOAD), clock: Clock::start() }
    }
}

impl LoadFlag {
    /// Records that a load phase begins. The phase ends when the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> LoadGuard {
        self.running.fetch_add(1, Ordering::SeqCst);
        LoadGuard(Arc::clone(self))
    }

    /// Whether the flag is set now: a load phase runs, or ended less than 2 s ago.
    pub fn is_set(&self) -> bool {
        self.is_set_at(self.clock.now_ns())
    }

    fn is_set_at(&self, now_ns: u64) -> bool {
        if self.running.load(Ordering::SeqCst) > 0 {
            return true;
        }
        let ended_ns = self.ended_ns.load(Ordering::SeqCst);
        ended_ns != NO_LOAD && now_ns.saturating_sub(ended_ns) < LOAD_LINGERS.as_nanos() as u64
    }
}

/// Stands for a running load phase, which ends when this value is dropped.
#[derive(Debug)]
pub struct LoadGuard(Arc<LoadFlag>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        // Updates the fields in this order, so that the flag is never unset in between.
        self.0.ended_ns.store(self.0.clock.now_ns(), Ordering::SeqCst);
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Limits the rate at which the probes of one session are answered, like a leaky bucket. Reads no clock: times are
/// arguments.
#[derive(Debug, Default)]
struct ProbeRate {
    /// When the next probe would be due if the admitted probes had arrived at exactly the highest rate.
    schedule_ns: u64,
}

impl ProbeRate {
    /// Whether a probe that arrives at `now_ns` is answered.
    fn admits(&mut self, now_ns: u64) -> bool {
        if self.schedule_ns > now_ns.saturating_add((PROBE_BURST - 1) * PROBE_INTERVAL_NS) {
            return false;
        }
        self.schedule_ns = self.schedule_ns.max(now_ns).saturating_add(PROBE_INTERVAL_NS);
        true
    }
}

/// Answers the probes of one monitor session at a UDP port. Each verified new probe also counts as a sign that the
/// appliance is alive.
pub struct MonitorResponder {
    keys: Arc<SessionKeys>,
    control: Arc<SessionControl>,
    received: Mutex<(ProbeLedger, ProbeRate)>,
    clock: Clock,
    dwell: Arc<DwellTimes>,
    load: Arc<LoadFlag>,
}

impl MonitorResponder {
    /// A responder for the session with the keys `keys`. It counts the dwell time of each reply in `dwell`, and copies
    /// the state of the flag `load` into each reply.
    pub fn new(
        keys: Arc<SessionKeys>,
        control: Arc<SessionControl>,
        dwell: Arc<DwellTimes>,
        load: Arc<LoadFlag>,
    ) -> Self {
        let received = Mutex::new((ProbeLedger::new(), ProbeRate::default()));
        Self { keys, control, received, clock: Clock::start(), dwell, load }
    }
}

impl DatagramHandler for MonitorResponder {
    fn takes(&self, kind: u8) -> bool {
        packet::is_monitor_probe(kind)
    }

    fn take(&self, datagram: &Datagram<'_>) -> Result<[u8; DATAGRAM_LEN], Refusal> {
        let received_ns = self.clock.at(datagram.arrived_ns);
        let probe = ProbePacket::open_for_monitor(datagram.bytes, &self.keys).ok_or(Refusal::Forged)?;
        // Ignores poison: a panic cannot leave the ledger inconsistent.
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let (ledger, rate) = &mut *received;
        if ledger.enter(probe.seq) == Entry::Replayed {
            return Err(Refusal::Replayed);
        }
        // Called after the replay check, because a replayed probe must not keep a session alive.
        self.control.heard();
        if !rate.admits(received_ns) {
            return Err(Refusal::TooFast);
        }
        let is_under_load = self.load.is_set();
        let reply = reply_to(&probe, ledger, received_ns, &self.clock);
        drop(received);
        self.dwell.note(reply.dwell_ns);
        Ok(MonitorReply { reply, is_under_load }.seal(&self.keys))
    }
}

/// The appliance's socket of a monitor session. Its calls never block. It is readable when an answer has arrived.
pub struct MonitorSocket {
    socket: UdpSocket,
    mailbox: Mailbox,
    keys: Arc<SessionKeys>,
    clock: Clock,
    /// The sequence number and the sending time of each of the latest probes.
    sent: VecDeque<(u32, u64)>,
}

/// The result of an answered probe of a monitor session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The sequence number of the answered probe.
    pub seq: u32,
    /// The time from sending the probe to the arrival of the answer, without the time for which the reflector held the
    /// probe.
    pub round_trip: Duration,
    /// Whether a test loaded the reflector when it answered, or up to 2 s before.
    pub is_under_load: bool,
}

impl MonitorSocket {
    /// Opens a socket for the probes of the session with the keys `keys`, bound to `origin` and connected to `target`.
    pub fn connect(target: SocketAddr, keys: Arc<SessionKeys>, origin: &Origin) -> io::Result<Self> {
        let socket = origin.datagrams(target)?;
        socket.set_nonblocking(true)?;
        let mailbox = Mailbox::of(&socket)?;
        Ok(Self { socket, mailbox, keys, clock: Clock::start(), sent: VecDeque::new() })
    }

    /// A second descriptor of the socket, with which the caller can wait until the socket is readable.
    pub fn readiness(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Sends a probe with the sequence number `seq`. A probe that this host fails to send counts as lost.
    pub fn send(&mut self, seq: u32) {
        let sent_ns = self.clock.now_ns();
        let probe = ProbePacket { seq, about: seq, sent_ns }.seal_for_monitor(&self.keys);
        // A send may report an ICMP error of an earlier datagram instead of sending.
        if self.socket.send(&probe).is_err() {
            self.socket.send(&probe).ok();
        }
        if self.sent.len() == REMEMBERED_PROBES {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, sent_ns));
    }

    /// Reads the answers that have arrived. Ignores datagrams that are not sealed with the session's keys.
    pub fn answers(&mut self) -> Vec<ProbeAnswer> {
        let mut answers = Vec::new();
        for _ in 0..MAX_READS_IN_A_ROW {
            let arrival = match self.mailbox.receive(&self.socket) {
                Ok(Some(arrival)) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The read returned an ICMP error, and thereby cleared it.
                Ok(None) | Err(_) => continue,
            };
            let bytes = self.mailbox.bytes.get(..arrival.len).unwrap_or_default();
            let Some(MonitorReply { reply, is_under_load }) = MonitorReply::open(bytes, &self.keys) else { continue };
            // The sending time in the reply is not trusted: it must equal the time that this end recorded.
            let Some((_, sent_ns)) = self.sent.iter().rev().find(|(seq, _)| *seq == reply.seq) else { continue };
            if *sent_ns != reply.sent_ns {
                continue;
            }
            let whole_ns = self.clock.at(arrival.arrived_ns).saturating_sub(*sent_ns);
            // Ignores a reported dwell time that is longer than the round trip.
            let round_trip_ns = whole_ns.checked_sub(reply.dwell_ns.into()).unwrap_or(whole_ns);
            let round_trip = Duration::from_nanos(round_trip_ns);
            answers.push(ProbeAnswer { seq: reply.seq, round_trip, is_under_load });
        }
        answers
    }
}

impl AsFd for MonitorSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use rustix::event::PollFlags;

    use super::super::packet::{ArrivalHistory, ReplyPacket};
    use super::super::tests::keys;
    use super::*;
    use crate::clock::wait;
    use crate::udp_port::{Enrolment, UdpPort};

    const HERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

    fn reflector(load: &Arc<LoadFlag>) -> (Arc<UdpPort>, Enrolment, Arc<SessionControl>) {
        let port = UdpPort::spawn(UdpSocket::bind(HERE).unwrap()).unwrap();
        let control = SessionControl::metered(|| ());
        control.allow(1_000_000);
        let responder =
            MonitorResponder::new(Arc::new(keys(1)), Arc::clone(&control), Arc::default(), Arc::clone(load));
        let handlers: Vec<Arc<dyn DatagramHandler>> = vec![Arc::new(responder)];
        let enrolment = port.enroll(keys(1).session(), Arc::clone(&control), Ipv4Addr::LOCALHOST.into(), handlers);
        (port, enrolment, control)
    }

    /// Waits for the next answers to arrive at `socket`.
    fn await_answers(socket: &mut MonitorSocket) -> Vec<ProbeAnswer> {
        loop {
            wait([(socket.as_fd(), PollFlags::IN)]).unwrap();
            let answers = socket.answers();
            if !answers.is_empty() {
                return answers;
            }
        }
    }

    #[test]
    fn probes_are_answered_charged_and_marked_under_load() {
        let load = Arc::<LoadFlag>::default();
        let (port, _enrolment, control) = reflector(&load);
        let target = port.local_addr();
        let mut socket = MonitorSocket::connect(target, Arc::new(keys(1)), &Origin::default()).unwrap();
        socket.send(0);
        let answer = await_answers(&mut socket)[0];
        assert_eq!((answer.seq, answer.is_under_load), (0, false));
        let phase = load.begin();
        socket.send(1);
        let answer = await_answers(&mut socket)[0];
        assert_eq!((answer.seq, answer.is_under_load), (1, true));
        drop(phase);
        assert_eq!(control.spent(), 2 * 2 * 96);
        // A probe with the keys of another session is not answered, and its socket takes no datagram for an answer.
        let mut other = MonitorSocket::connect(target, Arc::new(keys(2)), &Origin::default()).unwrap();
        other.send(0);
        socket.send(2);
        assert_eq!(await_answers(&mut socket)[0].seq, 2);
        assert_eq!((other.answers(), port.refused().unknown_session), (vec![], 1));
    }

    #[test]
    fn a_reply_that_lies_about_its_times_has_the_measured_round_trip_or_none() {
        let reflector = UdpSocket::bind(HERE).unwrap();
        let target = reflector.local_addr().unwrap();
        let mut socket = MonitorSocket::connect(target, Arc::new(keys(1)), &Origin::default()).unwrap();
        let mut bytes = [0; 2048];
        let mut reply = |seq: u32, change: fn(&mut ReplyPacket)| {
            socket.send(seq);
            let (_, from) = reflector.recv_from(&mut bytes).unwrap();
            let sent_ns = socket.sent.back().unwrap().1;
            // The wait is longer than the resolution of the clock.
            std::thread::sleep(Duration::from_millis(1));
            let history = ArrivalHistory { about: seq, arrived: Default::default() };
            for is_lie in [true, false] {
                let mut reply = ReplyPacket { seq, sent_ns, received_ns: 1, dwell_ns: 0, history, duplicates: 0 };
                if is_lie {
                    change(&mut reply);
                }
                reflector.send_to(&MonitorReply { reply, is_under_load: false }.seal(&keys(1)), from).unwrap();
            }
            let mut answers = Vec::new();
            while answers.last().is_none_or(|last: &ProbeAnswer| last.seq != seq) || answers.is_empty() {
                answers.extend(await_answers(&mut socket));
            }
            answers
        };
        let within = |answer: &ProbeAnswer| {
            assert!((Duration::from_millis(1)..Duration::from_secs(60)).contains(&answer.round_trip), "{answer:?}");
        };
        // These replies have the sending time of another probe, or a dwell time that is longer than the round trip.
        reply(0, |reply| reply.sent_ns = 0).iter().for_each(within);
        reply(1, |reply| reply.sent_ns += 1).iter().for_each(within);
        reply(2, |reply| reply.dwell_ns = u32::MAX).iter().for_each(within);
        // This reply has the sequence number of a probe that was never sent.
        assert!(reply(3, |reply| reply.seq = 77).iter().all(|answer| answer.seq == 3));
    }

    #[test]
    fn the_flag_outlives_the_last_load_phase_by_two_seconds() {
        let load = Arc::<LoadFlag>::default();
        let at = |ms: u64| load.ended_ns.load(Ordering::SeqCst).wrapping_add(ms * 1_000_000);
        assert!(!load.is_set_at(u64::MAX) && !load.is_set_at(0));
        let (first, second) = (load.begin(), load.begin());
        drop(first);
        assert!(load.is_set_at(at(60_000)), "another one runs");
        drop(second);
        assert!(load.is_set_at(at(0)) && load.is_set_at(at(1_999)) && !load.is_set_at(at(2_000)));
        drop(load.begin());
        assert!(load.is_set_at(at(1_999)));
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_the_rate_and_a_burst(gaps_ms in prop::collection::vec(0u64..400, 1..200)) {
            let mut rate = ProbeRate::default();
            let mut now_ms = 0;
            let mut admitted = Vec::new();
            for gap in gaps_ms {
                now_ms += gap;
                if rate.admits(now_ms * 1_000_000) {
                    admitted.push(now_ms);
                }
            }
            for (at, first) in admitted.iter().enumerate() {
                let within = admitted[at..].iter().take_while(|ms| **ms - first < 1_000).count();
                prop_assert!(within <= 10, "{within} within a second");
            }
        }
    }

    #[test]
    fn probes_at_the_highest_rate_are_all_answered_also_with_jitter() {
        let mut rate = ProbeRate::default();
        assert!((0..1_000u64).all(|n| rate.admits((n * 200 + n * 37 % 150) * 1_000_000)));
        let mut rate = ProbeRate::default();
        let answered = (0..1_000u64).filter(|n| rate.admits(n * 100 * 1_000_000)).count();
        assert!((500..=505).contains(&answered), "{answered} of twice the rate");
    }
}
