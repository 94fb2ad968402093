//! The appliance's end of `echo`: sends probes on an absolute schedule, whatever comes back. Shell: sockets and
//! threads. What the probes say is worked out elsewhere.

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

use super::line::Line;
use super::packet::{self, ProbePacket, ReplyPacket};
use super::probes::{Book, FIRST_SEQ, Probes, Reading, Transport};
use crate::clock::{Clock, Timer, Wake, wait};
use crate::data_stream::DataStream;
use crate::origin::Origin;
use crate::session_control::{Cancelled, SessionControl};
use crate::udp_port::datagram::Mailbox;

/// How many probes find out whether UDP comes back, and how far apart they are: a second in all.
const TRIES: u32 = 20;
const TRY_EVERY: Duration = Duration::from_millis(50);
/// At the end, stragglers are waited for, and what became of them is asked for.
const SETTLE_FOR: Duration = Duration::from_secs(1);
const SETTLE_EVERY: Duration = Duration::from_millis(20);
/// Bytes of replies that may wait in the socket.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// So many datagrams are read before anything else is looked at.
const ROUND: usize = 64;

const _: () = assert!(TRIES <= FIRST_SEQ, "a try must not pass for a probe of the schedule");

/// What a [`Prober`] works with.
pub struct ProbeOrder {
    /// Where the probes go, over UDP; absent: the reflector answers none, and they fall back at once.
    pub target: Option<SocketAddr>,
    /// What they are proven with.
    pub keys: Arc<SessionKeys>,
    /// The distance between two of them; at least [`TestSpec::MIN_PROBE_INTERVAL_US`].
    pub interval: Duration,
    /// What ends it; each reply is heard on it.
    pub control: Arc<SessionControl>,
    /// Opens the data connection that probes take where UDP does not come back; its preamble is sent. Called at most
    /// once, from the prober's own thread; should end when the session is cancelled.
    pub fall_back: Box<dyn FnOnce() -> io::Result<DataStream> + Send>,
    /// Where to send from.
    pub origin: Origin,
}

/// Probes a path until it is finished or dropped, on threads of its own: one sends and never waits for replies, one
/// receives. Its first second at most finds out whether UDP comes back; what it takes then, it keeps.
pub struct Prober {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Clock,
    keys: Arc<SessionKeys>,
    interval: Duration,
    control: Arc<SessionControl>,
    book: Mutex<Book>,
    way: Mutex<Way>,
    way_known: Condvar,
    /// One of [`RUNNING`], [`SETTLING`], [`OVER`]; only ever grows.
    stage: AtomicU8,
    /// Whether any reply came.
    answered: AtomicBool,
    /// The latest round trip in nanoseconds; `u64::MAX` until there is one.
    recent_ns: AtomicU64,
    /// Ends the sender's wait.
    wake: Wake,
}

const RUNNING: u8 = 0;
const SETTLING: u8 = 1;
const OVER: u8 = 2;

/// What the probes take.
enum Way {
    Unknown,
    Found(Transport),
    Nowhere(io::Error),
}

impl Prober {
    /// Starts to probe.
    pub fn start(order: ProbeOrder) -> io::Result<Self> {
        let clock = Clock::start();
        let shared = Arc::new(Shared {
            clock,
            keys: order.keys,
            interval: order.interval.max(Duration::from_micros(TestSpec::MIN_PROBE_INTERVAL_US.into())),
            control: order.control,
            book: Mutex::new(Book::new(0, Duration::from_secs(1))),
            way: Mutex::new(Way::Unknown),
            way_known: Condvar::new(),
            stage: AtomicU8::new(RUNNING),
            answered: AtomicBool::new(false),
            recent_ns: AtomicU64::new(u64::MAX),
            wake: Wake::new()?,
        });
        let timer = Timer::new(clock)?;
        let sender = {
            let shared = Arc::clone(&shared);
            let (target, origin, fall_back) = (order.target, order.origin, order.fall_back);
            std::thread::Builder::new().name("echo-send".into()).spawn(move || {
                let end = shared.probe(target, &origin, fall_back, &timer);
                // Says so only where nothing was found before: a way, once found, stays.
                shared.decide(Way::Nowhere(end.err().unwrap_or_else(|| io::Error::other(Cancelled))));
            })?
        };
        Ok(Self { shared, sender: Some(sender) })
    }

    /// Waits until it is known what the probes take: a second at most, and the time that falling back takes. An error,
    /// the one that falling back met, means that nothing is probed.
    pub fn ready(&self) -> io::Result<Transport> {
        let mut way = lock(&self.shared.way);
        loop {
            match &*way {
                Way::Unknown => {}
                Way::Found(transport) => return Ok(*transport),
                Way::Nowhere(why) => return Err(io::Error::new(why.kind(), why.to_string())),
            }
            way = self.shared.way_known.wait(way).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The time since the start, to mark what happens when; [`Probe::sent_at`](Probe::sent_at) counts the same.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.shared.clock.now_ns())
    }

    /// The latest round trip.
    pub fn recent(&self) -> Option<Duration> {
        let recent = self.shared.recent_ns.load(Ordering::Relaxed);
        (recent != u64::MAX).then(|| Duration::from_nanos(recent))
    }

    /// The probes that were due from `from` on and before `to`, both since the start, as far as is known now: for who
    /// watches while it runs.
    pub fn between(&self, from: Duration, to: Duration) -> Vec<Probe> {
        let ns = |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.shared.book).due_between(ns(from), ns(to))
    }

    /// Sends nothing more, waits, for a second at most, for what is still under way, and says what was seen.
    pub fn finish(mut self) -> Probes {
        self.end(SETTLING);
        let transport = match &*lock(&self.shared.way) {
            Way::Found(transport) => Some(*transport),
            Way::Unknown | Way::Nowhere(_) => None,
        };
        let book = std::mem::replace(&mut *lock(&self.shared.book), Book::new(0, Duration::from_secs(1)));
        Probes { transport, duplicates: book.duplicates(), skipped: book.skipped(), book }
    }

    fn end(&mut self, stage: u8) {
        self.shared.enter(stage);
        if let Some(sender) = self.sender.take() {
            // A panic in it has been reported by itself; what was entered until then is what there is.
            let _ = sender.join();
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end(OVER);
    }
}

impl Shared {
    /// The sender's life.
    fn probe(
        &self,
        target: Option<SocketAddr>,
        origin: &Origin,
        fall_back: Box<dyn FnOnce() -> io::Result<DataStream> + Send>,
        timer: &Timer,
    ) -> io::Result<()> {
        // A socket that can't be had, or not connected, is as blocked as one from which nothing comes back.
        let over_udp = target.map_or(Ok(()), |target| {
            let socket = udp_socket(target, origin)?;
            self.over_udp(&socket, timer)
        });
        let is_decided = !matches!(*lock(&self.way), Way::Unknown);
        if is_decided || self.stage() != RUNNING || self.control.is_cancelled() {
            return over_udp;
        }
        let mut line = Line::new(fall_back()?)?;
        self.over_line(&mut line, timer)
    }

    fn over_udp(&self, socket: &UdpSocket, timer: &Timer) -> io::Result<()> {
        let _registration = self.control.register(socket)?;
        let mailbox = Mailbox::of(socket)?;
        let done = Wake::new()?;
        std::thread::scope(|scope| {
            // However this ends, the receiver must, or the scope would wait for ever.
            let _ends_receiver = WakeOnDrop(&done);
            let receive = || self.receive(socket, mailbox, &done);
            std::thread::Builder::new().name("echo-receive".into()).spawn_scoped(scope, receive)?;
            if self.try_udp(timer, socket)? {
                self.decide(Way::Found(Transport::Udp));
                self.keep_schedule(timer, &mut &*socket)?;
            }
            Ok(())
        })
    }

    /// Whether any of some probes comes back.
    fn try_udp(&self, timer: &Timer, mut socket: &UdpSocket) -> io::Result<bool> {
        timer.tick(self.clock.now_ns(), TRY_EVERY)?;
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
                if seq == TRIES {
                    return Ok(false);
                }
                let probe = ProbePacket { seq, about: seq, sent_ns: self.clock.now_ns() };
                socket.send(&probe.seal(&self.keys))?;
                seq += 1;
            }
        }
    }

    fn over_line(&self, line: &mut Line, timer: &Timer) -> io::Result<()> {
        let _registration = self.control.register(line.socket())?;
        self.decide(Way::Found(Transport::Tcp));
        let end = self.keep_schedule(timer, line);
        if end.is_err() {
            // The connection ended before the probing did: what would have been sent until then is left out.
            while self.stage() == RUNNING && !self.control.is_cancelled() {
                wait([(self.wake.as_fd(), PollFlags::IN)])?;
                self.wake.clear();
            }
            lock(&self.book).skip_until(self.clock.now_ns());
        }
        end
    }

    /// Sends what is due until told to stop, then settles.
    fn keep_schedule(&self, timer: &Timer, carrier: &mut dyn Carrier) -> io::Result<()> {
        let base_ns = self.clock.now_ns();
        *lock(&self.book) = Book::new(base_ns, self.interval);
        timer.tick(base_ns, self.interval)?;
        while self.stage() == RUNNING {
            while let Some(probe) = self.due() {
                carrier.send(&probe.seal(&self.keys))?;
            }
            carrier.wait(self, timer)?;
            self.wake.clear();
            timer.clear();
        }
        let until_ns = self.clock.now_ns() + SETTLE_FOR.as_nanos() as u64;
        timer.tick(self.clock.now_ns(), SETTLE_EVERY)?;
        let mut seq = lock(&self.book).seq_after();
        while self.stage() == SETTLING && self.clock.now_ns() < until_ns && !lock(&self.book).is_settled(SETTLE_FOR) {
            carrier.wait(self, timer)?;
            self.wake.clear();
            if timer.clear() {
                let probe = ProbePacket { seq, about: lock(&self.book).about(seq), sent_ns: self.clock.now_ns() };
                carrier.send(&probe.seal(&self.keys))?;
                seq = seq.saturating_add(1);
            }
        }
        Ok(())
    }

    /// The next probe of the schedule, if it is due.
    fn due(&self) -> Option<ProbePacket> {
        let mut book = lock(&self.book);
        let sent_ns = self.clock.now_ns();
        let seq = book.take_due(sent_ns)?;
        Some(ProbePacket { seq, about: book.about(seq), sent_ns })
    }

    /// The receiver's life.
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
            for _ in 0..ROUND {
                match mailbox.receive(socket) {
                    Ok(Some(arrival)) => {
                        let ago_ns = u64::try_from(arrival.ago.as_nanos()).unwrap_or(u64::MAX);
                        let received_ns = self.clock.now_ns().saturating_sub(ago_ns);
                        self.take(mailbox.bytes.get(..arrival.len).unwrap_or_default(), received_ns);
                    }
                    // Nothing more for now, or an error (a port unreachable) that is gone once read.
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    /// Enters what arrived, if it is a fresh reply.
    fn take(&self, bytes: &[u8], received_ns: u64) {
        let Some(reply) = ReplyPacket::open(bytes, &self.keys) else { return };
        let reading = lock(&self.book).enter(&reply, received_ns);
        if reading == Reading::Nothing {
            return;
        }
        self.control.heard();
        if let Reading::RoundTrip(round_trip) = reading {
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

    /// Says what the probes take, unless that was said before.
    fn decide(&self, decided: Way) {
        let mut way = lock(&self.way);
        if matches!(*way, Way::Unknown) {
            *way = decided;
            self.way_known.notify_all();
        }
    }
}

/// What carries the probes of a schedule.
trait Carrier {
    /// Waits until the timer ticked or the sender was woken, maybe earlier. Takes replies in where no other thread does.
    fn wait(&mut self, prober: &Shared, timer: &Timer) -> io::Result<()>;

    /// Sends a packet, or keeps it to be sent; never waits.
    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()>;
}

impl Carrier for &UdpSocket {
    fn wait(&mut self, prober: &Shared, timer: &Timer) -> io::Result<()> {
        wait([(timer.as_fd(), PollFlags::IN), (prober.wake.as_fd(), PollFlags::IN)]).map(drop)
    }

    /// A datagram that this host can't send is lost like any other: it was due, and did not arrive.
    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        // A port unreachable that an earlier datagram met is told in place of sending this one.
        if UdpSocket::send(self, packet).is_err_and(|failure| failure.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = UdpSocket::send(self, packet);
        }
        Ok(())
    }
}

impl Carrier for Line {
    fn wait(&mut self, prober: &Shared, timer: &Timer) -> io::Result<()> {
        Line::wait(self, timer, &prober.wake)?;
        self.receive(|bytes| prober.take(bytes, prober.clock.now_ns()))
    }

    fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        Line::send(self, packet)
    }
}

/// Ends a thread's wait however its owner's scope ends.
struct WakeOnDrop<'a>(&'a Wake);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// A socket of its own, that hears its target alone.
fn udp_socket(target: SocketAddr, origin: &Origin) -> io::Result<UdpSocket> {
    let socket = origin.datagrams(target)?;
    socket.set_nonblocking(true)?;
    // As large as the system allows: what does not fit while the receiver can't run would show as the network's loss.
    let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
    Ok(socket)
}

/// A lock that survives a panicking holder: nothing guarded here can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
