//! One UDP port for many sessions and several kinds of datagrams: finds the session that a datagram claims, and passes
//! the datagram to the session's handler for its kind. Other datagrams get no answer. Uses a socket, and a thread that
//! reads the socket.

pub(crate) mod datagram;
mod stamps;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use paramedic_link::SessionId;
use paramedic_link::measurement::DatagramsSeen;
use rustix::event::PollFlags;
use socket2::{Domain, SockRef, Socket, Type};

use crate::clock::{Wake, wait};
use crate::session_control::SessionControl;
use crate::thread_limit;
use datagram::{Arrival, Mailbox, answer};

/// The length in bytes of every answered datagram and of its answer. Because the lengths are equal, the port never
/// amplifies traffic.
pub const DATAGRAM_LEN: usize = 96;

/// The version of the datagrams' layout. The first byte of each datagram is the version.
pub(crate) const VERSION: u8 = 1;

/// The size in bytes of the socket's receive buffer, which all sessions share. The buffer holds the datagrams that
/// arrive while the reading thread is not scheduled.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// The maximum number of datagrams that a port's thread reads before it checks whether it must end.
const MAX_READS_IN_A_ROW: usize = 64;
/// The maximum number of datagrams that [`PortHandle::connect`] reads from its new socket. It looks for datagrams of
/// other senders, which may have arrived before the socket was connected.
const MAX_STRAYS: usize = 4096;

/// Answers datagrams of certain kinds for one session.
pub trait DatagramHandler: Send + Sync {
    /// Whether this handler accepts datagrams of the kind `kind`. The second byte of a datagram is its kind.
    fn takes(&self, kind: u8) -> bool;

    /// Verifies a datagram and returns the answer. The caller has checked only that the datagram claims the session and
    /// came from the peer's address. Must not block: the calling thread reads the port for all sessions.
    fn take(&self, datagram: &Datagram<'_>) -> Result<[u8; DATAGRAM_LEN], Refusal>;

    /// The DSCP of this handler's answers, if the test sets one.
    fn dscp(&self) -> Option<u8> {
        None
    }
}

/// A datagram that arrived at a UDP port and claims an enrolled session.
pub struct Datagram<'a> {
    /// The UDP payload of the datagram.
    pub bytes: &'a [u8; DATAGRAM_LEN],
    /// The source address and port of the datagram.
    pub from: SocketAddr,
    /// The local address that the datagram was sent to.
    pub to: Option<IpAddr>,
    /// When the datagram arrived, in nanoseconds of `CLOCK_MONOTONIC`, by the kernel's receive timestamp.
    pub arrived_ns: u64,
    /// The UDP port that the datagram arrived at.
    pub port: &'a PortHandle,
    /// The counts of the datagrams of the session that the datagram claims.
    pub counts: &'a DatagramCounts,
}

/// Counts of the datagrams that claim one session.
#[derive(Debug, Default)]
pub struct DatagramCounts {
    answered: AtomicU64,
    from_elsewhere: AtomicU64,
}

impl DatagramCounts {
    /// Counts a datagram that came from another source than expected, for example because a NAT rewrote the source.
    pub(crate) fn came_from_elsewhere(&self) {
        self.from_elsewhere.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts of the session's datagrams so far.
    pub fn seen(&self) -> DatagramsSeen {
        DatagramsSeen {
            answered: self.answered.load(Ordering::Relaxed),
            from_elsewhere: self.from_elsewhere.load(Ordering::Relaxed),
        }
    }
}

/// Why a datagram was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The datagram is not of a length, version or kind that this port answers.
    Malformed,
    /// The datagram's session is not enrolled.
    UnknownSession,
    /// The datagram did not come from the address of its session's peer, or its source port changed.
    WrongSource,
    /// The datagram's session is over.
    Over,
    /// The datagram is not sealed with its session's key.
    Forged,
    /// The datagram arrived before, or is too old to be remembered.
    Replayed,
    /// The datagram's session sends more datagrams than it is allowed to send.
    TooFast,
}

/// The number of datagrams that were not answered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Datagrams that are not of a length, version or kind that this port answers.
    pub malformed: u64,
    /// Datagrams of sessions that are not enrolled.
    pub unknown_session: u64,
    /// Datagrams that did not come from the address of their session's peer, or whose source port changed.
    pub wrong_source: u64,
    /// Datagrams of sessions that are over.
    pub over: u64,
    /// Datagrams that are not sealed with their session's key.
    pub forged: u64,
    /// Datagrams that arrived before, or are too old to be remembered.
    pub replayed: u64,
    /// Datagrams of sessions that send more datagrams than they are allowed to send.
    pub too_fast: u64,
}

/// Reads the datagrams of one UDP socket on a thread of its own, and answers them. Dropping the port ends the thread
/// and closes the socket.
pub struct UdpPort {
    shared: Arc<PortState>,
    local: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct PortState {
    sessions: Mutex<HashMap<SessionId, Arc<Enrolled>>>,
    refused: [AtomicU64; 7],
    unsent: AtomicU64,
    over: AtomicBool,
    wake: Wake,
}

/// A session whose datagrams a port answers.
struct Enrolled {
    session: SessionId,
    control: Arc<SessionControl>,
    peer: IpAddr,
    handlers: Vec<Arc<dyn DatagramHandler>>,
    counts: Arc<DatagramCounts>,
}

impl UdpPort {
    /// Starts a thread that reads `socket`. The port answers no datagram until a session is enrolled.
    pub fn spawn(socket: UdpSocket) -> io::Result<Arc<Self>> {
        // Best effort: a burst that exceeds the buffer looks like packet loss.
        SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER).ok();
        // The option is set only after the bind, so that the bind is exclusive. From now on, sockets of this process
        // may share the port (see `PortHandle`).
        SockRef::from(&socket).set_reuse_port(true)?;
        let local = socket.local_addr()?;
        let mut mailbox = Mailbox::of(&socket)?;
        let shared = Arc::new(PortState {
            sessions: Mutex::default(),
            refused: Default::default(),
            unsent: AtomicU64::new(0),
            over: AtomicBool::new(false),
            wake: Wake::new()?,
        });
        let thread = {
            let (shared, socket) = (Arc::clone(&shared), Arc::new(socket));
            let serve = move || shared.serve(&socket, &mut mailbox);
            thread_limit::spawn("udp-port", serve)?
        };
        Ok(Arc::new(Self { shared, local, thread: Some(thread) }))
    }

    /// The local address and port of the socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Passes datagrams of `session` from `peer` to the first of `handlers` that accepts their kind. The port stops
    /// answering when the returned value is dropped or the session is cancelled. An answered datagram and its answer
    /// are charged to the session.
    pub fn enroll(
        &self,
        session: SessionId,
        control: Arc<SessionControl>,
        peer: IpAddr,
        handlers: Vec<Arc<dyn DatagramHandler>>,
    ) -> Enrolment {
        let (peer, counts) = (peer.to_canonical(), Arc::default());
        let enrolled = Arc::new(Enrolled { session, control, peer, handlers, counts });
        lock(&self.shared.sessions).insert(session, Arc::clone(&enrolled));
        Enrolment { shared: Arc::clone(&self.shared), enrolled }
    }

    /// The numbers of datagrams that were not answered so far, by reason.
    pub fn refused(&self) -> Refused {
        let of = |reason: Refusal| self.shared.refused[reason as usize].load(Ordering::Relaxed);
        Refused {
            malformed: of(Refusal::Malformed),
            unknown_session: of(Refusal::UnknownSession),
            wrong_source: of(Refusal::WrongSource),
            over: of(Refusal::Over),
            forged: of(Refusal::Forged),
            replayed: of(Refusal::Replayed),
            too_fast: of(Refusal::TooFast),
        }
    }

    /// The number of answers that this host failed to send. To the other end, these look like packet loss.
    pub fn unsent(&self) -> u64 {
        self.shared.unsent.load(Ordering::Relaxed)
    }
}

impl Drop for UdpPort {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panicking thread reports its panic itself.
            thread.join().ok();
        }
    }
}

/// Keeps one session enrolled at a port. Dropping this value ends the answers to the session's datagrams.
#[must_use = "dropping it ends the session's answers"]
pub struct Enrolment {
    shared: Arc<PortState>,
    enrolled: Arc<Enrolled>,
}

impl Enrolment {
    /// The counts of the session's datagrams, which the port continues to update.
    pub fn counts(&self) -> Arc<DatagramCounts> {
        Arc::clone(&self.enrolled.counts)
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        let mut sessions = lock(&self.shared.sessions);
        // The session may have been enrolled again in the meantime.
        let session = self.enrolled.session;
        if sessions.get(&session).is_some_and(|enrolled| Arc::ptr_eq(enrolled, &self.enrolled)) {
            sessions.remove(&session);
        }
    }
}

impl PortState {
    fn serve(self: &Arc<Self>, socket: &Arc<UdpSocket>, mailbox: &mut Mailbox) {
        while !self.over.load(Ordering::SeqCst) {
            if let Err(failure) = wait([(socket.as_fd(), PollFlags::IN), (self.wake.as_fd(), PollFlags::IN)]) {
                tracing::error!(%failure, "datagrams are not answered any more: poll failed");
                return;
            }
            for _ in 0..MAX_READS_IN_A_ROW {
                match mailbox.receive(socket) {
                    Ok(Some(arrival)) => {
                        self.take(socket, mailbox.bytes.get(..arrival.len).unwrap_or_default(), &arrival);
                    }
                    // The queue is empty, or the error of an earlier send was read, which clears it.
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    /// Answers the datagram `bytes`, which arrived at `socket`, or counts the refusal.
    fn take(self: &Arc<Self>, socket: &Arc<UdpSocket>, bytes: &[u8], arrival: &Arrival) {
        if let Err(reason) = self.answer(socket, bytes, arrival) {
            self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answer(self: &Arc<Self>, socket: &Arc<UdpSocket>, bytes: &[u8], arrival: &Arrival) -> Result<(), Refusal> {
        let bytes = bytes.try_into().map_err(|_| Refusal::Malformed)?;
        let (session, kind) = claimed(bytes).ok_or(Refusal::Malformed)?;
        let enrolled = lock(&self.sessions).get(&session).cloned().ok_or(Refusal::UnknownSession)?;
        if arrival.from.ip().to_canonical() != enrolled.peer {
            enrolled.counts.came_from_elsewhere();
            return Err(Refusal::WrongSource);
        }
        if enrolled.control.is_cancelled() {
            return Err(Refusal::Over);
        }
        let handler = enrolled.handlers.iter().find(|handler| handler.takes(kind)).ok_or(Refusal::Malformed)?;
        let port = PortHandle { shared: Arc::clone(self), socket: Arc::downgrade(socket) };
        let Arrival { from, to, arrived_ns, .. } = *arrival;
        let counts = &*enrolled.counts;
        let reply = handler.take(&Datagram { bytes, from, to, arrived_ns, port: &port, counts })?;
        // Does not wait for a lease: a delayed answer would look like delay of the path.
        enrolled.control.charge((bytes.len() + reply.len()) as u64).map_err(|_| Refusal::Over)?;
        counts.answered.fetch_add(1, Ordering::Relaxed);
        if answer(socket, &reply, from, to, handler.dscp()).is_err() {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The session and the kind that an unverified datagram claims; `None` if the datagram has another version.
fn claimed(bytes: &[u8; DATAGRAM_LEN]) -> Option<(SessionId, u8)> {
    let session = SessionId::from_bytes(std::array::from_fn(|at| bytes[4 + at]));
    (bytes[0] == VERSION).then_some((session, bytes[1]))
}

/// The session that an unverified datagram of any length claims. Public only for its fuzz target.
#[doc(hidden)]
pub fn claimed_session(bytes: &[u8]) -> Option<SessionId> {
    claimed(bytes.try_into().ok()?).map(|(session, _)| session)
}

/// A handle of a UDP port, for the port's datagram handlers. The handle does not keep the port open.
#[derive(Clone)]
pub struct PortHandle {
    shared: Arc<PortState>,
    /// The port's socket; no longer available once the port is dropped.
    socket: Weak<UdpSocket>,
}

impl PortHandle {
    /// Opens a socket with this port's number and the local address `to`, connected to `peer`. While the socket is
    /// open, the kernel delivers the datagrams of `peer` to this socket, and all others to the [`UdpPort`].
    pub fn connect(&self, to: Option<IpAddr>, peer: SocketAddr) -> io::Result<UdpSocket> {
        let port = self.socket.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let mut local = port.local_addr()?;
        if let Some(to) = to {
            // A link-local address needs its scope.
            let scope = |peer: SocketAddr| if let SocketAddr::V6(v6) = peer { v6.scope_id() } else { 0 };
            local.set_ip(to);
            if let (SocketAddr::V6(local), IpAddr::V6(to)) = (&mut local, to)
                && to.is_unicast_link_local()
            {
                local.set_scope_id(scope(peer));
            }
        }
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        if let SocketAddr::V6(v6) = peer {
            socket.set_only_v6(v6.ip().to_ipv4_mapped().is_none())?;
        }
        let socket = UdpSocket::from(socket);
        let mut mailbox = Mailbox::unbound(&socket, peer.is_ipv6())?;
        SockRef::from(&socket).bind(&local.into())?;
        socket.connect(peer)?;
        // Until the socket was connected, the kernel may have delivered datagrams of other senders to it.
        for _ in 0..MAX_STRAYS {
            match mailbox.receive(&socket) {
                Ok(Some(arrival)) if arrival.from != peer => {
                    let bytes = mailbox.bytes.get(..arrival.len).unwrap_or_default();
                    self.shared.take(&port, bytes, &arrival);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // This was a datagram of the peer, which will repeat it, or an earlier error, which the read has
                // cleared.
                Ok(_) | Err(_) => {}
            }
        }
        Mailbox::close(&socket);
        Ok(socket)
    }
}

/// Locks `mutex`. Ignores poisoning, because a panic cannot leave the guarded data inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    const ECHOED: u8 = 1;
    const KEPT: u8 = 5;

    /// A handler that answers each datagram with the same bytes.
    struct Echoing;

    impl DatagramHandler for Echoing {
        fn takes(&self, kind: u8) -> bool {
            kind == ECHOED
        }

        fn take(&self, datagram: &Datagram<'_>) -> Result<[u8; DATAGRAM_LEN], Refusal> {
            Ok(*datagram.bytes)
        }
    }

    /// A handler that passes the port, the local address and the source of each accepted datagram to the test, and
    /// answers none.
    struct Keeping(Mutex<Sender<(PortHandle, Option<IpAddr>, SocketAddr)>>);

    impl DatagramHandler for Keeping {
        fn takes(&self, kind: u8) -> bool {
            kind == KEPT
        }

        fn take(&self, datagram: &Datagram<'_>) -> Result<[u8; DATAGRAM_LEN], Refusal> {
            self.0.lock().unwrap().send((datagram.port.clone(), datagram.to, datagram.from)).unwrap();
            Err(Refusal::Forged)
        }
    }

    fn session() -> SessionId {
        SessionId::from_bytes([7; 16])
    }

    fn datagram(kind: u8) -> [u8; DATAGRAM_LEN] {
        let mut bytes = [0; DATAGRAM_LEN];
        bytes[..2].copy_from_slice(&[VERSION, kind]);
        bytes[4..20].copy_from_slice(session().as_bytes());
        bytes
    }

    type Kept = std::sync::mpsc::Receiver<(PortHandle, Option<IpAddr>, SocketAddr)>;

    /// A port with a session of the peer `peer`, the session's enrolment, and the receiver of what [`Keeping`] passes
    /// on.
    fn open(bind: &str, peer: Option<IpAddr>) -> (Arc<UdpPort>, Enrolment, Kept) {
        let port = UdpPort::spawn(UdpSocket::bind(bind).unwrap()).unwrap();
        let (keep, kept) = channel();
        let handlers: Vec<Arc<dyn DatagramHandler>> = vec![Arc::new(Echoing), Arc::new(Keeping(Mutex::new(keep)))];
        let peer = peer.unwrap_or(port.local_addr().ip());
        let enrolment = port.enroll(session(), SessionControl::unmetered(), peer, handlers);
        (port, enrolment, kept)
    }

    fn a_peer_gets_a_socket_of_its_own(bind: &str, at: &str) {
        let (port, _enrolment, kept) = open(bind, Some(at.parse().unwrap()));
        let at = SocketAddr::new(at.parse().unwrap(), port.local_addr().port());
        let asker = |to: SocketAddr| {
            let socket = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (peer, other) = (asker(at), asker(at));
        peer.send(&datagram(KEPT)).unwrap();
        let (handle, to, from) = kept.recv().unwrap();
        assert_eq!(from, peer.local_addr().unwrap());
        let ours = handle.connect(to, from).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The socket receives the peer's datagrams and no others.
        peer.send(b"bulk").unwrap();
        assert_eq!(ours.recv(&mut [0; 8]).unwrap(), 4);
        ours.send(b"back").unwrap();
        assert_eq!(peer.recv(&mut [0; 8]).unwrap(), 4);
        for number in 0..20 {
            let mut sent = datagram(ECHOED);
            sent[20] = number;
            other.send(&sent).unwrap();
            let mut bytes = [0; DATAGRAM_LEN];
            assert_eq!(other.recv(&mut bytes).unwrap(), DATAGRAM_LEN);
            assert_eq!(bytes, sent);
        }
        // Another port of the same host is a different peer.
        other.send(&datagram(KEPT)).unwrap();
        assert_eq!(kept.recv().unwrap().2, other.local_addr().unwrap());
        drop(ours);
        peer.send(&datagram(KEPT)).unwrap();
        assert_eq!(kept.recv().unwrap().2, from, "without the socket, the port gets the peer's datagrams again");
    }

    #[test]
    fn a_socket_gets_the_datagrams_of_its_peer_and_the_port_all_others() {
        a_peer_gets_a_socket_of_its_own("127.0.0.1:0", "127.0.0.1");
        a_peer_gets_a_socket_of_its_own("0.0.0.0:0", "127.0.0.3");
        if UdpSocket::bind("[::1]:0").is_ok() {
            a_peer_gets_a_socket_of_its_own("[::1]:0", "::1");
        }
    }

    #[test]
    fn datagrams_of_other_senders_go_to_the_port() {
        // While sockets open and close at the port, datagrams are still answered. A datagram that reaches a socket in
        // the moment in which the socket closes is lost, as in a network.
        let (port, _enrolment, kept) = open("127.0.0.1:0", None);
        let at = port.local_addr();
        let prober = UdpSocket::bind("127.0.0.1:0").unwrap();
        prober.connect(at).unwrap();
        prober.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(&datagram(KEPT), at).unwrap();
        let (handle, to, from) = kept.recv().unwrap();
        std::thread::scope(|scope| {
            let (stop, stopped) = channel::<()>();
            scope.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    drop(handle.connect(to, from).unwrap());
                }
            });
            let is_answered = || {
                prober.send(&datagram(ECHOED)).unwrap();
                prober.recv(&mut [0; 200]).is_ok()
            };
            let lost = (0..2_000).filter(|_| !is_answered()).take(5).count();
            stop.send(()).unwrap();
            assert!(lost < 5, "a datagram in a thousand is lost");
        });
    }

    #[test]
    fn each_kind_goes_to_its_handler_and_no_other_kind_is_answered() {
        let (port, _enrolment, kept) = open("127.0.0.1:0", None);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.connect(port.local_addr()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut another_version = datagram(ECHOED);
        another_version[0] = 2;
        let mut another_session = datagram(ECHOED);
        another_session[4] = 0;
        let refused: [&[u8]; 5] =
            [&datagram(9), &another_version, &another_session, &datagram(ECHOED)[1..], &datagram(KEPT)];
        for bytes in refused {
            peer.send(bytes).unwrap();
        }
        kept.recv().unwrap();
        // The thread reads in order: after this answer, no earlier datagram is answered.
        let mut last = datagram(ECHOED);
        last[95] = 1;
        peer.send(&last).unwrap();
        let mut answer = [0; 200];
        assert_eq!(peer.recv(&mut answer).unwrap(), DATAGRAM_LEN);
        assert_eq!(answer[..DATAGRAM_LEN], last);
        let counted = Refused { malformed: 3, unknown_session: 1, forged: 1, ..Refused::default() };
        assert_eq!((port.refused(), port.unsent()), (counted, 0));
    }
}
