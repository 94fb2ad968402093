//! The appliance's end of `echo`: sends probes on an absolute schedule. Uses sockets and threads.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::Probe;
use paramedic_link::test_spec::TestSpec;
use rustix::event::PollFlags;
use socket2::SockRef;

use super::packet::{self, ProbePacket, ReplyPacket};
use super::probe_connection::ProbeConnection;
use super::probes::{EchoTransport, FIRST_SEQ, ProbeRecords, Probes, ReplyKind};
use crate::clock::{Clock, Timer, Wake, wait};
use crate::data_stream::DataStream;
use crate::origin::Origin;
use crate::session_control::{Cancelled, SessionControl};
use crate::socket::mark;
use crate::thread_limit::{self, ThreadLimitReached};
use crate::udp_port::datagram::Mailbox;

/// The number of probes that test whether UDP works. Sending all of them takes one second.
const UDP_TRIES: u32 = 20;
const UDP_TRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long the prober waits for late replies after the end of its schedule. During this wait it sends a probe every
/// [`SETTLE_INTERVAL`], only to request missing arrival histories.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);
/// The size in bytes of the receive buffer of the prober's UDP socket.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// The maximum number of datagrams that the receiving thread reads before it checks again whether it must end.
const MAX_READS_IN_A_ROW: usize = 64;

const _: () = assert!(UDP_TRIES <= FIRST_SEQ, "a test probe must not look like a probe of the schedule");

/// The parameters of [`Prober::start`].
pub struct ProberSetup {
    /// The reflector's UDP address. `None` if the reflector does not answer over UDP; the prober then uses `fall_back`
    /// at once.
    pub target: Option<SocketAddr>,
    /// The keys that authenticate the probes.
    pub keys: Arc<SessionKeys>,
    /// The probe interval until [`Prober::pace`] changes it; at least [`TestSpec::MIN_PROBE_INTERVAL_US`].
    pub interval: Duration,
    /// The session's control, which cancels the prober. Each valid reply also counts as a sign that the reflector is
    /// alive.
    pub control: Arc<SessionControl>,
    /// A callback that opens the data connection for the case that UDP does not work, and sends the connection's
    /// preamble. Called at most once, from the prober's thread. Should return when the session is cancelled.
    pub fall_back: Box<dyn FnOnce() -> io::Result<DataStream> + Send>,
    /// The local address or interface to send probes from, if the user chose one.
    pub origin: Origin,
    /// The DSCP of the probes, if the test sets one, so that the probes wait in the same queues as the payload.
    pub dscp: Option<u8>,
}

/// Sends probes until [`Prober::finish`] is called or the prober is dropped. One thread sends; over UDP, a second
/// thread receives. The prober first tests for at most one second whether UDP works. After this test the transport does
/// not change.
pub struct Prober {
    shared: Arc<ProberState>,
    sender: Option<JoinHandle<()>>,
}

struct ProberState {
    clock: Clock,
    keys: Arc<SessionKeys>,
    interval: Duration,
    control: Arc<SessionControl>,
    log: Mutex<ProbeRecords>,
    route: Mutex<TransportChoice>,
    route_known: Condvar,
    /// The stage of the prober: [`RUNNING`], [`SETTLING`] or [`OVER`]. The value never decreases.
    stage: AtomicU8,
    /// Whether any reply has arrived.
    answered: AtomicBool,
    /// The latest round trip in nanoseconds; `u64::MAX` before the first reply.
    recent_ns: AtomicU64,
    /// Ends the wait of the sending thread.
    wake: Wake,
}

const RUNNING: u8 = 0;
const SETTLING: u8 = 1;
const OVER: u8 = 2;

/// The transport that the prober uses, once the prober has chosen it.
enum TransportChoice {
    Unknown,
    Found(EchoTransport),
    Failed(io::Error),
}

impl Prober {
    /// Starts a prober, which sends probes from now on.
    pub fn start(setup: ProberSetup) -> io::Result<Self> {
        let clock = Clock::start();
        let shared = Arc::new(ProberState {
            clock,
            keys: setup.keys,
            interval: setup.interval.max(Duration::from_micros(TestSpec::MIN_PROBE_INTERVAL_US.into())),
            control: setup.control,
            log: Mutex::new(ProbeRecords::new(0, Duration::from_secs(1))),
            route: Mutex::new(TransportChoice::Unknown),
            route_known: Condvar::new(),
            stage: AtomicU8::new(RUNNING),
            answered: AtomicBool::new(false),
            recent_ns: AtomicU64::new(u64::MAX),
            wake: Wake::new()?,
        });
        let timer = Timer::new(clock)?;
        let sender = {
            let shared = Arc::clone(&shared);
            let (target, origin, fall_back, dscp) = (setup.target, setup.origin, setup.fall_back, setup.dscp);
            thread_limit::spawn("echo-send", move || {
                let target = target.map(|target| (target, dscp));
                let end = shared.probe(target, &origin, fall_back, &timer);
                // Has no effect if a transport was already chosen.
                shared.decide(TransportChoice::Failed(end.err().unwrap_or_else(|| io::Error::other(Cancelled))));
            })?
        };
        Ok(Self { shared, sender: Some(sender) })
    }

    /// Waits until the transport of the probes is known: at most one second plus the time of the fallback. An error
    /// means that no transport works and no probes are sent.
    pub fn ready(&self) -> io::Result<EchoTransport> {
        let mut route = lock(&self.shared.route);
        loop {
            match &*route {
                TransportChoice::Unknown => {}
                TransportChoice::Found(transport) => return Ok(*transport),
                TransportChoice::Failed(why) => return Err(thread_limit::copy_of(why)),
            }
            route = self.shared.route_known.wait(route).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The time since the prober's start, in the clock of [`Probe::sent_at`](Probe::sent_at).
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.shared.clock.now_ns())
    }

    /// The latest round trip of a probe; `None` before the first reply.
    pub fn recent(&self) -> Option<Duration> {
        let recent = self.shared.recent_ns.load(Ordering::Relaxed);
        (recent != u64::MAX).then(|| Duration::from_nanos(recent))
    }

    /// Changes the probe interval. Returns the time at which the first probe of the new interval is due, measured from
    /// the prober's start. All probes of the old interval are due before that time.
    pub fn pace(&self, interval: Duration) -> Duration {
        let interval = interval.max(Duration::from_micros(TestSpec::MIN_PROBE_INTERVAL_US.into()));
        let base_ns = lock(&self.shared.log).pace(self.shared.clock.now_ns(), interval);
        self.shared.wake.wake();
        Duration::from_nanos(base_ns)
    }

    /// The probes that were due from `from` up to `to`, with the results known now. Both times are measured from the
    /// prober's start. Replies may still be missing.
    pub fn between(&self, from: Duration, to: Duration) -> Vec<Probe> {
        let ns = |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.shared.log).due_between(ns(from), ns(to))
    }

    /// Stops sending, waits for late replies for at most one second, and returns the results of all probes.
    pub fn finish(mut self) -> Probes {
        self.end(SETTLING);
        let transport = match &*lock(&self.shared.route) {
            TransportChoice::Found(transport) => Some(*transport),
            TransportChoice::Unknown | TransportChoice::Failed(_) => None,
        };
        let log = std::mem::replace(&mut *lock(&self.shared.log), ProbeRecords::new(0, Duration::from_secs(1)));
        Probes { transport, duplicates: log.duplicates(), skipped: log.skipped(), log }
    }

    fn end(&mut self, stage: u8) {
        self.shared.enter(stage);
        if let Some(sender) = self.sender.take() {
            // A panicking thread reports its panic itself; the record remains.
            sender.join().ok();
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end(OVER);
    }
}

impl ProberState {
    /// The body of the sending thread. `target` is the reflector's UDP address and the DSCP of the probes.
    fn probe(
        &self,
        target: Option<(SocketAddr, Option<u8>)>,
        origin: &Origin,
        fall_back: Box<dyn FnOnce() -> io::Result<DataStream> + Send>,
        timer: &Timer,
    ) -> io::Result<()> {
        // If the socket cannot be opened, the probes use the fallback, too.
        let over_udp = target.map_or(Ok(()), |(target, dscp)| {
            let socket = udp_socket(target, origin, dscp)?;
            self.over_udp(&socket, timer)
        });
        let is_decided = !matches!(*lock(&self.route), TransportChoice::Unknown);
        // The fallback serves for a path that carries no UDP, not for a host that refuses to start a thread.
        let is_refused = over_udp.as_ref().is_err_and(|error| ThreadLimitReached::of(error).is_some());
        if is_decided || is_refused || self.stage() != RUNNING || self.control.is_cancelled() {
            return over_udp;
        }
        let mut connection = ProbeConnection::new(fall_back()?)?;
        self.over_tcp(&mut connection, timer)
    }

    fn over_udp(&self, socket: &UdpSocket, timer: &Timer) -> io::Result<()> {
        let _registration = self.control.register(socket)?;
        let mailbox = Mailbox::of(socket)?;
        Mailbox::stamp_departures(socket);
        let done = Wake::new()?;
        std::thread::scope(|scope| {
            // Ends the receiving thread in any case, because the scope waits for this thread.
            let _ends_receiver = WakeOnDrop(&done);
            let receive = || self.receive(socket, mailbox, &done);
            thread_limit::spawn_scoped(scope, "echo-receive", receive)?;
            if self.try_udp(timer, socket)? {
                self.begin_schedule(EchoTransport::Udp);
                self.keep_schedule(timer, &mut &*socket)?;
            }
            Ok(())
        })
    }

    /// Sends test probes over UDP. Returns `true` as soon as one is answered, or `false` if UDP does not work or the
    /// prober stops.
    fn try_udp(&self, timer: &Timer, mut socket: &UdpSocket) -> io::Result<bool> {
        timer.tick(self.clock.now_ns(), UDP_TRY_INTERVAL)?;
        let mut seq = 0;
        loop {
            socket.wait(self, timer)?;
            self.wake.clear();
            if self.stage() != RUNNING {
                return Ok(false);
            }
            if self.answered.load(Ordering::Acquire) {
                return Ok(true);
            }
            if timer.clear() {
                if seq == UDP_TRIES {
                    return Ok(false);
                }
                let probe = ProbePacket { seq, about: seq, sent_ns: self.clock.now_ns() };
                socket.send(&probe.seal(&self.keys))?;
                seq += 1;
            }
        }
    }

    fn over_tcp(&self, connection: &mut ProbeConnection, timer: &Timer) -> io::Result<()> {
        let _registration = self.control.register(connection.socket())?;
        self.begin_schedule(EchoTransport::Tcp);
        let end = self.keep_schedule(timer, connection);
        if end.is_err() {
            // The connection ended before the prober: the rest of the schedule is skipped.
            while self.stage() == RUNNING && !self.control.is_cancelled() {
                wait([(self.wake.as_fd(), PollFlags::IN)])?;
                self.wake.clear();
            }
            lock(&self.log).skip_until(self.clock.now_ns());
        }
        end
    }

    /// Begins the schedule of the probes, and publishes their transport.
    fn begin_schedule(&self, transport: EchoTransport) {
        // Sets the schedule before the transport is published, because the interval may change from then on.
        *lock(&self.log) = ProbeRecords::new(self.clock.now_ns(), self.interval);
        self.decide(TransportChoice::Found(transport));
    }

    /// Sends the probes of the schedule over `carrier` until the prober stops, and then waits for late replies.
    fn keep_schedule(&self, timer: &Timer, carrier: &mut dyn Carrier) -> io::Result<()> {
        let mut armed = None;
        while self.stage() == RUNNING {
            let schedule = lock(&self.log).schedule();
            if armed != Some(schedule) {
                timer.tick(schedule.0, schedule.1)?;
                armed = Some(schedule);
            }
            while let Some(probe) = self.due() {
                carrier.send(&probe.seal(&self.keys))?;
            }
            carrier.wait(self, timer)?;
            self.wake.clear();
            timer.clear();
        }
        let until_ns = self.clock.now_ns() + SETTLE_TIMEOUT.as_nanos() as u64;
        timer.tick(self.clock.now_ns(), SETTLE_INTERVAL)?;
        let mut seq = lock(&self.log).seq_after();
        while self.stage() == SETTLING && self.clock.now_ns() < until_ns && !lock(&self.log).is_settled(SETTLE_TIMEOUT)
        {
            carrier.wait(self, timer)?;
            self.wake.clear();
            if timer.clear() {
                let probe = ProbePacket { seq, about: lock(&self.log).about(seq), sent_ns: self.clock.now_ns() };
                carrier.send(&probe.seal(&self.keys))?;
                seq = seq.saturating_add(1);
            }
        }
        Ok(())
    }

    /// The next probe of the schedule, if it is due.
    fn due(&self) -> Option<ProbePacket> {
        let mut log = lock(&self.log);
        let sent_ns = self.clock.now_ns();
        let seq = log.take_due(sent_ns)?;
        Some(ProbePacket { seq, about: log.about(seq), sent_ns })
    }

    /// The body of the receiving thread.
    fn receive(&self, socket: &UdpSocket, mut mailbox: Mailbox, done: &Wake) {
        loop {
            let ready = wait([(socket.as_fd(), PollFlags::IN), (done.as_fd(), PollFlags::IN)]);
            if self.control.is_cancelled() {
                return self.enter(OVER);
            }
            match ready {
                Ok([_, done]) if done.is_empty() => {}
                _ => return,
            }
            for _ in 0..MAX_READS_IN_A_ROW {
                let Ok(departure) = mailbox.departure(socket) else { break };
                if let Some((bytes, left_ns)) = departure {
                    self.note_departure(&bytes, self.clock.at(left_ns));
                }
            }
            for _ in 0..MAX_READS_IN_A_ROW {
                match mailbox.receive(socket) {
                    Ok(Some(arrival)) => {
                        let received_ns = self.clock.at(arrival.arrived_ns);
                        self.take(mailbox.bytes.get(..arrival.len).unwrap_or_default(), received_ns);
                    }
                    // The queue is empty, or an error such as "port unreachable" was read, which clears it.
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    /// Records that the probe in `bytes` left this host at `left_ns`.
    fn note_departure(&self, bytes: &[u8], left_ns: u64) {
        if let Some(probe) = ProbePacket::open(bytes, &self.keys) {
            lock(&self.log).enter_departure(&probe, left_ns);
        }
    }

    /// Records the packet `bytes`, which arrived at `received_ns`, if it is a new reply.
    fn take(&self, bytes: &[u8], received_ns: u64) {
        let Some(reply) = ReplyPacket::open(bytes, &self.keys) else { return };
        let reading = lock(&self.log).enter(&reply, received_ns);
        if reading == ReplyKind::Nothing {
            return;
        }
        self.control.heard();
        if let ReplyKind::RoundTrip(round_trip) = reading {
            self.recent_ns.store(u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let first = !self.answered.swap(true, Ordering::AcqRel);
        if first || self.stage() == SETTLING {
            self.wake.wake();
        }
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Acquire)
    }

    fn enter(&self, stage: u8) {
        self.stage.fetch_max(stage, Ordering::AcqRel);
        self.wake.wake();
    }

    /// Sets the transport, unless it is already known, and wakes the threads that wait for it.
    fn decide(&self, decided: TransportChoice) {
        let mut route = lock(&self.route);
        if matches!(*route, TransportChoice::Unknown) {
            *route = decided;
            self.route_known.notify_all();
        }
    }
}

/// A socket or connection over which the sending thread sends probes.
trait Carrier {
    /// Waits until `timer` ticks or the sending thread is woken; may return earlier. Also receives replies if no other
    /// thread receives them.
    fn wait(&mut self, prober: &ProberState, timer: &Timer) -> io::Result<()>;

    /// Sends or queues a packet; never waits.
    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()>;
}

impl Carrier for &UdpSocket {
    fn wait(&mut self, prober: &ProberState, timer: &Timer) -> io::Result<()> {
        wait([(timer.as_fd(), PollFlags::IN), (prober.wake.as_fd(), PollFlags::IN)]).map(drop)
    }

    /// Sends a datagram. A datagram that this host fails to send counts as lost.
    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        // A send may report "port unreachable" for an earlier datagram instead of sending.
        if UdpSocket::send(self, packet).is_err_and(|failure| failure.kind() == io::ErrorKind::ConnectionRefused) {
            UdpSocket::send(self, packet).ok();
        }
        Ok(())
    }
}

impl Carrier for ProbeConnection {
    fn wait(&mut self, prober: &ProberState, timer: &Timer) -> io::Result<()> {
        ProbeConnection::wait(self, timer, &prober.wake)?;
        self.receive(|bytes| prober.take(bytes, prober.clock.now_ns()))
    }

    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        ProbeConnection::send(self, packet)
    }
}

/// A guard that ends another thread's wait when the guard is dropped.
struct WakeOnDrop<'a>(&'a Wake);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// A UDP socket for probes that is bound to `origin` and connected to `target`.
fn udp_socket(target: SocketAddr, origin: &Origin, dscp: Option<u8>) -> io::Result<UdpSocket> {
    let socket = origin.datagrams(target)?;
    socket.set_nonblocking(true)?;
    // Best effort: replies that exceed the buffer look like packet loss.
    SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER).ok();
    if let Some(code_point) = dscp {
        mark(&SockRef::from(&socket), code_point)?;
    }
    Ok(socket)
}

/// Locks `mutex`. Ignores poisoning, because a panic cannot leave the guarded data inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
