//! The reflector's end of `echo`: answers the probes of one session.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use paramedic_link::admission::SessionKeys;
use socket2::SockRef;

use super::dwell::DwellTimes;
use super::ledger::{Entry, ProbeLedger};
use super::packet::{self, ProbePacket, ReplyPacket};
use crate::clock::Clock;
use crate::metered_stream::MeteredStream;
use crate::session_control::SessionControl;
use crate::socket::mark;
use crate::udp_port::{DATAGRAM_LEN, Datagram, DatagramHandler, Refusal};

/// Answers the probes of one session at a UDP port. Each verified new probe also counts as a sign that the appliance is
/// alive.
pub struct ProbeResponder {
    keys: Arc<SessionKeys>,
    control: Arc<SessionControl>,
    ledger: Mutex<ProbeLedger>,
    clock: Clock,
    dwell: Arc<DwellTimes>,
    dscp: Option<u8>,
}

impl ProbeResponder {
    /// A responder for the session with the keys `keys`. It counts the dwell time of each reply in `dwell` and sends
    /// replies with the DSCP `dscp`.
    pub fn new(keys: Arc<SessionKeys>, control: Arc<SessionControl>, dwell: Arc<DwellTimes>, dscp: Option<u8>) -> Self {
        Self { keys, control, ledger: Mutex::new(ProbeLedger::new()), clock: Clock::start(), dwell, dscp }
    }
}

impl DatagramHandler for ProbeResponder {
    fn takes(&self, kind: u8) -> bool {
        packet::is_probe(kind)
    }

    fn take(&self, datagram: &Datagram<'_>) -> Result<[u8; DATAGRAM_LEN], Refusal> {
        let received_ns = self.clock.at(datagram.arrived_ns);
        let probe = ProbePacket::open(datagram.bytes, &self.keys).ok_or(Refusal::Forged)?;
        // Ignores poison: a panic cannot leave the ledger inconsistent.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.enter(probe.seq) == Entry::Replayed {
            return Err(Refusal::Replayed);
        }
        // Called after the replay check, because a replayed probe must not keep a session alive.
        self.control.heard();
        let reply = reply_to(&probe, &ledger, received_ns, &self.clock);
        drop(ledger);
        self.dwell.note(reply.dwell_ns);
        Ok(reply.seal(&self.keys))
    }

    fn dscp(&self) -> Option<u8> {
        self.dscp
    }
}

/// The reply to `probe`, which was recorded in `ledger` and arrived at `received_ns`. The probe's dwell time ends now.
pub(super) fn reply_to(probe: &ProbePacket, ledger: &ProbeLedger, received_ns: u64, clock: &Clock) -> ReplyPacket {
    ReplyPacket {
        seq: probe.seq,
        sent_ns: probe.sent_ns,
        received_ns,
        history: ledger.history(probe.about),
        duplicates: ledger.duplicates(),
        dwell_ns: u32::try_from(clock.now_ns().saturating_sub(received_ns)).unwrap_or(u32::MAX),
    }
}

/// Answers the probes of one session on a data connection whose preamble has the phase [`Preamble::ECHO`]. Blocks until
/// the connection ends, the session is cancelled, or anything but a new probe arrives.
///
/// Charges the bytes to the session, counts each dwell time in `dwell`, and sends packets with the DSCP `dscp`.
///
/// [`Preamble::ECHO`]: paramedic_link::admission::Preamble::ECHO
pub fn answer_stream(
    mut stream: MeteredStream,
    keys: &SessionKeys,
    control: &Arc<SessionControl>,
    dwell: &DwellTimes,
    dscp: Option<u8>,
) {
    let clock = Clock::start();
    let mut ledger = ProbeLedger::new();
    let Ok(_registration) = control.register(stream.inner().socket()) else { return };
    // Makes the socket send small replies at once. Best effort.
    stream.inner().socket().set_nodelay(true).ok();
    if let Some(code_point) = dscp {
        // Best effort: an answer without the DSCP is better than no answer.
        mark(&SockRef::from(stream.inner().socket()), code_point).ok();
    }
    let mut bytes = [0; packet::LEN];
    let mut moved = 0;
    while stream.read_exact(&mut bytes).is_ok() {
        let received_ns = clock.now_ns();
        let Some(probe) = ProbePacket::open(&bytes, keys) else { return };
        if ledger.enter(probe.seq) == Entry::Replayed {
            return;
        }
        control.heard();
        let reply = reply_to(&probe, &ledger, received_ns, &clock);
        dwell.note(reply.dwell_ns);
        let sent = stream.write_all(&reply.seal(keys)).and_then(|()| stream.flush());
        moved += 2 * packet::LEN as u64;
        if sent.is_err() || stream.charge(moved).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use super::super::tests::{enroll_probes, keys};
    use super::*;
    use crate::bind;
    use crate::data_stream::DataStream;
    use crate::udp_port::{Enrolment, Refused, UdpPort};

    const HERE: &str = "127.0.0.1";

    fn responder(bind: &str) -> Arc<UdpPort> {
        UdpPort::spawn(UdpSocket::bind((bind, 0)).unwrap()).unwrap()
    }

    fn enroll(responder: &UdpPort, session: u8, control: &Arc<SessionControl>) -> Enrolment {
        enroll_probes(responder, keys(session), control, HERE.parse().unwrap())
    }

    /// A socket at `from` that is connected to the responder, with a timeout for reads.
    fn client_socket(from: &str, responder: &UdpPort) -> UdpSocket {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        let port = responder.local_addr().port();
        socket.connect((HERE, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn probe(seq: u32) -> ProbePacket {
        ProbePacket { seq, about: seq, sent_ns: 1_000_000 + u64::from(seq) }
    }

    /// Reads the next datagram from `socket`, which must be a reply of this session.
    fn reply(socket: &UdpSocket, session: u8) -> ReplyPacket {
        let mut bytes = [0; 2048];
        let len = socket.recv(&mut bytes).unwrap();
        ReplyPacket::open(&bytes[..len], &keys(session)).unwrap()
    }

    /// Asserts that no datagram has arrived at `socket`. The responder reads in order, so after its reply to a later
    /// probe it answers no earlier datagram.
    fn assert_empty(socket: &UdpSocket) {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 2048]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socket.set_nonblocking(false).unwrap();
    }

    #[test]
    fn a_probe_of_an_enrolled_session_is_answered() {
        let responder = responder(HERE);
        let control = SessionControl::metered(|| ());
        control.allow(1_000);
        let _enrolment = enroll(&responder, 1, &control);
        let asker = client_socket(HERE, &responder);
        for seq in [0, 1, 3] {
            asker.send(&probe(seq).seal(&keys(1))).unwrap();
            let reply = reply(&asker, 1);
            assert_eq!((reply.seq, reply.sent_ns, reply.duplicates), (seq, 1_000_000 + u64::from(seq), 0));
            assert!(reply.dwell_ns < u32::MAX);
            assert_eq!(reply.history.arrived(seq), Some(true));
            assert_eq!(reply.history.arrived(2), (seq == 3).then_some(false));
        }
        assert_eq!(control.spent(), 3 * 2 * 96, "probes and replies are charged as they flow");
        assert_eq!((responder.refused(), responder.unsent()), (Refused::default(), 0));
    }

    #[test]
    fn a_probe_never_waits_for_a_lease() {
        let responder = responder(HERE);
        let (asks, asked) = std::sync::mpsc::channel();
        let control = SessionControl::metered(move || asks.send(()).unwrap());
        let _enrolment = enroll(&responder, 1, &control);
        let asker = client_socket(HERE, &responder);
        asker.send(&probe(0).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 0);
        asked.recv().unwrap();
        assert_eq!(control.spent(), 2 * 96);
    }

    #[test]
    fn only_a_new_probe_of_an_enrolled_peer_is_answered() {
        let responder = responder(HERE);
        let control = SessionControl::unmetered();
        let _enrolment = enroll(&responder, 1, &control);
        let owner = client_socket(HERE, &responder);
        let other_address = client_socket("127.0.0.2", &responder);
        owner.send(&probe(7).seal(&keys(1))).unwrap();
        let answered = reply(&owner, 1);

        let good = probe(8).seal(&keys(1));
        let mut forged = good;
        forged[30] ^= 1;
        let mut another_version = good;
        another_version[0] = 2;
        let mut turned_reply = answered.seal(&keys(1));
        turned_reply[1] = 1;
        let long = [good.as_slice(), &[0]].concat();
        let refused: [&[u8]; 11] = [
            b"",
            b"\0",
            &good[..95],
            &long,
            &[0xff; 2000],
            &another_version,
            &answered.seal(&keys(1)),
            &turned_reply,
            &forged,
            &probe(8).seal(&keys(2)),
            &probe(7).seal(&keys(1)),
        ];
        for datagram in refused {
            owner.send(datagram).unwrap();
        }
        other_address.send(&good).unwrap();

        owner.send(&good).unwrap();
        assert_eq!(reply(&owner, 1).seq, 8);
        assert_empty(&owner);
        assert_empty(&other_address);
        let counted =
            Refused { malformed: 7, unknown_session: 1, wrong_source: 1, forged: 2, replayed: 1, ..Refused::default() };
        assert_eq!(responder.refused(), counted);
    }

    #[test]
    fn replies_report_duplicate_probes() {
        let responder = responder(HERE);
        let control = SessionControl::unmetered();
        let _enrolment = enroll(&responder, 1, &control);
        let asker = client_socket(HERE, &responder);
        for seq in [1, 1, 1, 2] {
            asker.send(&probe(seq).seal(&keys(1))).unwrap();
        }
        assert_eq!((reply(&asker, 1).seq, reply(&asker, 1).duplicates), (1, 2));
    }

    #[test]
    fn a_session_is_answered_while_it_is_enrolled_and_not_cancelled() {
        let responder = responder(HERE);
        let (left, cut, stays) =
            (SessionControl::unmetered(), SessionControl::unmetered(), SessionControl::unmetered());
        let leaving = enroll(&responder, 1, &left);
        let _cut = enroll(&responder, 2, &cut);
        let _stays = enroll(&responder, 3, &stays);
        let asker = client_socket(HERE, &responder);
        for session in [1, 2, 3] {
            asker.send(&probe(1).seal(&keys(session))).unwrap();
            reply(&asker, session);
        }
        drop(leaving);
        cut.cancel();
        for session in [1, 2, 3] {
            asker.send(&probe(2).seal(&keys(session))).unwrap();
        }
        assert_eq!(reply(&asker, 3).seq, 2);
        assert_empty(&asker);
        assert_eq!((responder.refused().unknown_session, responder.refused().over), (1, 1));
    }

    #[test]
    fn an_old_enrolment_does_not_end_the_new_one() {
        let responder = responder(HERE);
        let control = SessionControl::unmetered();
        let old = enroll(&responder, 1, &control);
        let _new = enroll(&responder, 1, &control);
        drop(old);
        let asker = client_socket(HERE, &responder);
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 1);
    }

    #[test]
    fn only_a_fresh_probe_keeps_a_session_alive() {
        let responder = responder(HERE);
        let control = SessionControl::unmetered();
        let _enrolment = enroll(&responder, 1, &control);
        let asker = client_socket(HERE, &responder);
        let before = control.last_heard();
        #[expect(clippy::disallowed_methods, reason = "waits for the next millisecond")]
        // Liveness has a resolution of milliseconds.
        let next_ms = std::time::Instant::now() + Duration::from_millis(2);
        control.wait_until(next_ms, || false);
        let mut forged = probe(1).seal(&keys(1));
        forged[95] ^= 1;
        asker.send(&forged).unwrap();
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        reply(&asker, 1);
        let heard = control.last_heard();
        assert!(heard > before);
        control.wait_until(heard + Duration::from_millis(2), || false);
        let _other = enroll(&responder, 2, &SessionControl::unmetered());
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        asker.send(&probe(1).seal(&keys(2))).unwrap();
        reply(&asker, 2);
        assert_eq!(control.last_heard(), heard);
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_the_probe_was_sent_to_on_a_wildcard_socket() {
        let responder = responder("0.0.0.0");
        let control = SessionControl::unmetered();
        let _enrolment = enroll(&responder, 1, &control);
        let asker = UdpSocket::bind((HERE, 0)).unwrap();
        // A connected socket receives only from its target.
        asker.connect(("127.0.0.5", responder.local_addr().port())).unwrap();
        asker.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 1);
    }

    #[test]
    fn a_dropped_responder_frees_its_port_at_once() {
        let responder = responder(HERE);
        let _enrolment = enroll(&responder, 1, &SessionControl::unmetered());
        let address = responder.local_addr();
        drop(responder);
        bind::bind_after_pending_forks(|| UdpSocket::bind(address)).unwrap();
    }

    /// A data connection whose far end answers probes, and the thread that answers.
    fn answered_stream(control: Arc<SessionControl>) -> (TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = MeteredStream::new(DataStream::Plain(listener.accept().unwrap().0), Arc::clone(&control));
        (ours, std::thread::spawn(move || answer_stream(theirs, &keys(1), &control, &DwellTimes::default(), None)))
    }

    #[test]
    fn a_data_connection_is_answered_until_the_session_is_cancelled() {
        let control = SessionControl::metered(|| {});
        control.allow(1 << 20);
        let (mut ours, answering) = answered_stream(Arc::clone(&control));
        for seq in 0..3 {
            ours.write_all(&probe(seq).seal(&keys(1))).unwrap();
            let mut bytes = [0; packet::LEN];
            ours.read_exact(&mut bytes).unwrap();
            assert_eq!(ReplyPacket::open(&bytes, &keys(1)).unwrap().seq, seq);
        }
        control.cancel();
        answering.join().unwrap();
        assert_eq!(control.spent(), 3 * 2 * 96);
    }

    #[test]
    fn anything_but_a_new_probe_ends_a_data_connection() {
        for wrong in [probe(1).seal(&keys(1)), probe(2).seal(&keys(2)), [0; packet::LEN]] {
            let (mut ours, answering) = answered_stream(SessionControl::unmetered());
            ours.write_all(&probe(1).seal(&keys(1))).unwrap();
            ours.write_all(&wrong).unwrap();
            let mut all = Vec::new();
            // Reads the reply to the first probe, and then the end of the stream, or a reset if the other end left
            // bytes unread.
            let _ = ours.read_to_end(&mut all);
            assert_eq!(all.len(), packet::LEN);
            answering.join().unwrap();
        }
    }
}
