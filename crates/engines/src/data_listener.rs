//! The listener of direct mode: accepts connections that prove that they belong to the session, and resets all others.
//! The engine defines the proof. Uses sockets and the clock.

#![expect(clippy::disallowed_methods, reason = "waits for deadlines in wall time")]

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paramedic_link::admission::{Preamble, SessionKeys};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::bind;
use crate::session_control::{Registration, SessionControl};
use crate::socket::{self, SocketOptions};
use crate::thread_limit;

/// The timeout for the authentication of a connection.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of unauthenticated connections that a session may have in addition to one per stream.
const SPARE_PENDING: usize = 16;
/// The listener's backlog: connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;
/// The maximum number of connections that the listener accepts before it reads from the pending connections again.
const MAX_ACCEPTS_IN_A_ROW: usize = 64;
/// How long the listener waits after the host ran out of file descriptors or memory, before it accepts connections
/// again.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Decides which connections belong to a session. Each engine defines the proof that a connection must send.
pub trait Authenticator: Send + 'static {
    /// The part of a connection's proof that was read from its socket so far.
    type Partial: Default + Send;
    /// The verified proof of an accepted connection.
    type Proof: 'static;

    /// Reads the proof from the connection `socket`. A read of this socket never blocks. Called when the connection is
    /// accepted and whenever it is readable. `is_from_peer`: whether the connection comes from the appliance's address.
    ///
    /// An authenticator that leaves bytes unread must ensure that only further bytes make the socket readable again.
    /// Otherwise the listener's thread would spin.
    fn authenticate(
        &mut self,
        socket: &TcpStream,
        is_from_peer: bool,
        partial: &mut Self::Partial,
    ) -> Authentication<Self::Proof>;
}

/// The state of a connection's authentication.
pub enum Authentication<Proof> {
    /// The connection has not sent its whole proof yet.
    Incomplete,
    /// The connection belongs to the session.
    Accepted(Proof),
    /// The connection does not belong to the session.
    Refused,
}

/// Accepts a connection whose first 48 bytes are a [`Preamble`] that is sealed with the session's keys and names a
/// stream that has not connected yet.
pub struct PreambleAuthenticator {
    keys: Arc<SessionKeys>,
    /// The phase and the stream index of each connection that was accepted.
    seen: HashSet<(u8, u16)>,
}

impl PreambleAuthenticator {
    /// An authenticator for the session with these keys.
    pub fn new(keys: Arc<SessionKeys>) -> Self {
        Self { keys, seen: HashSet::new() }
    }
}

/// The bytes of a connection's preamble that have arrived so far.
pub struct PartialPreamble {
    bytes: [u8; Preamble::LEN],
    len: usize,
}

impl Default for PartialPreamble {
    fn default() -> Self {
        Self { bytes: [0; Preamble::LEN], len: 0 }
    }
}

impl Authenticator for PreambleAuthenticator {
    type Partial = PartialPreamble;
    type Proof = Preamble;

    fn authenticate(
        &mut self,
        mut socket: &TcpStream,
        _is_from_peer: bool,
        partial: &mut PartialPreamble,
    ) -> Authentication<Preamble> {
        while partial.len < Preamble::LEN {
            match socket.read(&mut partial.bytes[partial.len..]) {
                Ok(0) => return Authentication::Refused,
                Ok(read) => partial.len += read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Authentication::Incomplete,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Authentication::Refused,
            }
        }
        match Preamble::open(&partial.bytes, &self.keys) {
            Some(preamble) if self.seen.insert((preamble.phase, preamble.stream)) => Authentication::Accepted(preamble),
            _ => Authentication::Refused,
        }
    }
}

/// A callback that receives each accepted connection with its proof. It is called from the listener's thread, and must
/// not block.
pub type Sink<Proof> = Box<dyn Fn(Proof, TcpStream) + Send + Sync>;

/// A listening port for the data connections of one session. Dropping it ends its thread and frees the port at once.
pub struct DataListener {
    local: SocketAddr,
    refused: Arc<AtomicU64>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The maximum number of connections that may be pending (not authenticated yet) in a session with `streams` streams
/// per direction.
pub fn max_pending(streams: u16) -> usize {
    usize::from(streams) + SPARE_PENDING
}

impl DataListener {
    /// Listens at `claim` (port 0: any free port), with `options` for every connection.
    ///
    /// A connection that `authenticator` accepts within 5 s goes to `sink`. All others are reset and counted. At most
    /// [`max_pending`] connections are pending at a time; if there are more, those that do not come from `peer` are
    /// reset first. Cancelling the session closes the listener and resets the pending connections without counting
    /// them. The error `AddrInUse` means that another process holds the port.
    pub fn open<A: Authenticator>(
        claim: SocketAddr,
        options: &SocketOptions,
        authenticator: A,
        peer: IpAddr,
        streams: u16,
        control: Arc<SessionControl>,
        sink: Sink<A::Proof>,
    ) -> io::Result<Self> {
        Self::open_with_timeout(claim, options, authenticator, peer, streams, control, sink, AUTHENTICATION_TIMEOUT)
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of `open`, and the timeout for tests")]
    fn open_with_timeout<A: Authenticator>(
        at: SocketAddr,
        options: &SocketOptions,
        authenticator: A,
        peer: IpAddr,
        streams: u16,
        control: Arc<SessionControl>,
        sink: Sink<A::Proof>,
        timeout: Duration,
    ) -> io::Result<Self> {
        let listener = bind::bind_after_pending_forks(|| listen(at, options))?;
        let local = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let refused = Arc::new(AtomicU64::new(0));
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let accept_loop = AcceptLoop {
            _registration: control.register(&listener)?,
            listener,
            wake: Arc::clone(&wake),
            authenticator,
            peer: peer.to_canonical(),
            max_pending: max_pending(streams),
            control,
            sink,
            timeout,
            refused: Arc::clone(&refused),
            pending: Vec::new(),
            paused_until: None,
        };
        let name = format!("data-{}", local.port());
        let thread = thread_limit::spawn(name, || accept_loop.run())?;
        Ok(Self { local, refused, wake, thread: Some(thread) })
    }

    /// The address and port at which the listener accepts connections.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The number of connections that were reset because they were not authenticated.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for DataListener {
    fn drop(&mut self) {
        // Fails only if the thread is already signalled.
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).ok();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has closed its sockets too.
            thread.join().ok();
        }
    }
}

/// Opens the listening socket. `SO_REUSEADDR` allows binding the port again while its old connections are in TIME_WAIT.
/// Linux still refuses a port at which another socket listens (socket(7)).
///
/// Sets `options` at the listener, because accepted connections inherit them. The size of a receive buffer, for
/// example, must be set before the connection exists.
fn listen(claim: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    // An IPv6-only socket cannot bind an IPv4-mapped address.
    let claim = match claim.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), claim.port()),
        IpAddr::V6(_) => claim,
    };
    let listener = Socket::new(Domain::for_address(claim), Type::STREAM.nonblocking(), None)?;
    listener.set_reuse_address(true)?;
    options.apply(&listener)?;
    if claim.is_ipv6() {
        listener.set_only_v6(true)?;
    }
    listener.bind(&claim.into())?;
    listener.listen(BACKLOG)?;
    Ok(listener)
}

/// A connection that has not authenticated yet.
struct PendingConnection<Partial> {
    socket: TcpStream,
    is_from_peer: bool,
    deadline: Instant,
    partial: Partial,
}

/// The state of the listener's thread, which accepts and authenticates connections.
struct AcceptLoop<A: Authenticator> {
    listener: Socket,
    /// Shuts the listener down when the session is cancelled, which wakes the poll.
    _registration: Registration,
    wake: Arc<OwnedFd>,
    authenticator: A,
    peer: IpAddr,
    control: Arc<SessionControl>,
    sink: Sink<A::Proof>,
    timeout: Duration,
    refused: Arc<AtomicU64>,
    max_pending: usize,
    /// The pending connections in the order in which they were accepted, which is also the order of their deadlines; at
    /// most `max_pending`.
    pending: Vec<PendingConnection<A::Partial>>,
    paused_until: Option<Instant>,
}

impl<A: Authenticator> AcceptLoop<A> {
    fn run(mut self) {
        while let Ok(is_readable) = self.wait() {
            self.authenticate_readable(&is_readable);
            self.refuse_overdue();
            if !self.accept() {
                break;
            }
        }
        self.pending.iter().for_each(|pending| socket::reset_on_close(&pending.socket));
    }

    /// Waits for an event, and returns for each pending connection whether it is readable.
    fn wait(&self) -> Result<Vec<bool>, Closing> {
        let now = Instant::now();
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        polled.extend(self.pending.iter().map(|pending| PollFd::new(&pending.socket, PollFlags::IN)));
        if self.paused_until.is_none_or(|until| until <= now) {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let next = self.pending.first().map(|pending| pending.deadline).into_iter();
        let next = next.chain(self.paused_until.filter(|until| *until > now)).min();
        let left = next.map(|next| next.saturating_duration_since(now));
        let limit =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        match rustix::event::poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "closing a data port: poll failed");
                return Err(Closing);
            }
        }
        if self.control.is_cancelled() || !polled[0].revents().is_empty() {
            return Err(Closing);
        }
        Ok(polled[1..=self.pending.len()].iter().map(|polled| !polled.revents().is_empty()).collect())
    }

    fn authenticate_readable(&mut self, is_readable: &[bool]) {
        let mut is_readable = is_readable.iter();
        for mut connection in std::mem::take(&mut self.pending) {
            let state = match is_readable.next() {
                Some(true) => self.authenticate(&mut connection),
                _ => Authentication::Incomplete,
            };
            self.apply(state, connection);
        }
    }

    fn authenticate(&mut self, connection: &mut PendingConnection<A::Partial>) -> Authentication<A::Proof> {
        self.authenticator.authenticate(&connection.socket, connection.is_from_peer, &mut connection.partial)
    }

    fn apply(&mut self, state: Authentication<A::Proof>, connection: PendingConnection<A::Partial>) {
        match state {
            Authentication::Incomplete => self.pending.push(connection),
            Authentication::Refused => self.refuse(&connection.socket),
            Authentication::Accepted(proof) => match connection.socket.set_nonblocking(false) {
                Ok(()) => {
                    self.control.heard();
                    (self.sink)(proof, connection.socket);
                }
                Err(_) => self.refuse(&connection.socket),
            },
        }
    }

    fn refuse(&self, socket: &TcpStream) {
        socket::reset_on_close(socket);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse_overdue(&mut self) {
        let now = Instant::now();
        let overdue = self.pending.iter().take_while(|pending| pending.deadline <= now).count();
        for connection in self.pending.drain(..overdue).collect::<Vec<_>>() {
            self.refuse(&connection.socket);
        }
    }

    /// Accepts the connections that the kernel has queued. Returns `false` once the listener is shut down.
    fn accept(&mut self) -> bool {
        if self.paused_until.is_some_and(|until| until > Instant::now()) {
            return true;
        }
        self.paused_until = None;
        for _ in 0..MAX_ACCEPTS_IN_A_ROW {
            match self.listener.accept() {
                Ok((socket, address)) => self.begin(socket, address.as_socket().map(|from| from.ip())),
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::AGAIN) => return true,
                    // These errors concern only one connection (accept(2)).
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => {}
                    _ if self.control.is_cancelled() => return false,
                    _ => {
                        // The host is out of descriptors or memory. Closing the connection of another client may let
                        // the appliance in after the pause.
                        if let Some(at) = self.oldest_not_from_peer() {
                            let evicted = self.pending.remove(at);
                            self.refuse(&evicted.socket);
                        }
                        self.paused_until = Some(Instant::now() + ACCEPT_BACKOFF);
                        return true;
                    }
                },
            }
        }
        true
    }

    fn begin(&mut self, socket: Socket, from: Option<IpAddr>) {
        let is_from_peer = from.is_some_and(|from| from.to_canonical() == self.peer);
        let socket = TcpStream::from(socket);
        if socket.set_nonblocking(true).is_err() {
            return self.refuse(&socket);
        }
        let deadline = Instant::now() + self.timeout;
        let mut connection = PendingConnection { socket, is_from_peer, deadline, partial: A::Partial::default() };
        // The preamble has usually arrived already. If so, the connection does not become pending.
        match self.authenticate(&mut connection) {
            Authentication::Incomplete if self.pending.len() >= self.max_pending => {
                let evicted = match self.oldest_not_from_peer() {
                    Some(at) => at,
                    None if is_from_peer => 0,
                    None => return self.refuse(&connection.socket),
                };
                let evicted = self.pending.remove(evicted);
                self.refuse(&evicted.socket);
                self.pending.push(connection);
            }
            state => self.apply(state, connection),
        }
    }

    fn oldest_not_from_peer(&self) -> Option<usize> {
        self.pending.iter().position(|pending| !pending.is_from_peer)
    }
}

/// An error that means that the listener must close: the session or the listener has ended, or poll failed.
struct Closing;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, channel};

    use paramedic_link::SessionId;
    use zeroize::Zeroizing;

    use super::*;

    fn keys(seed: u8) -> Arc<SessionKeys> {
        Arc::new(SessionKeys::derive(SessionId::from_bytes([3; 16]), Zeroizing::new([seed; 32])))
    }

    fn preamble(stream: u16) -> [u8; Preamble::LEN] {
        Preamble { session: keys(1).session(), phase: 0, stream, nonce: [0; 12] }.seal(&keys(1))
    }

    /// A listener for an appliance at 127.0.0.1, and the receiver of the connections that the listener accepts.
    fn listener(timeout: Duration) -> (DataListener, Receiver<(Preamble, TcpStream)>) {
        let (accept, accepted) = channel();
        let sink = Box::new(move |preamble, stream| accept.send((preamble, stream)).unwrap_or(()));
        let peer = [127, 0, 0, 1].into();
        let (at, options, authenticator) =
            (([127, 0, 0, 1], 0).into(), SocketOptions::default(), PreambleAuthenticator::new(keys(1)));
        let listener = DataListener::open_with_timeout(
            at,
            &options,
            authenticator,
            peer,
            STREAMS,
            SessionControl::unmetered(),
            sink,
            timeout,
        );
        (listener.unwrap(), accepted)
    }

    fn open_at(at: SocketAddr, control: &Arc<SessionControl>) -> io::Result<DataListener> {
        let (authenticator, peer) = (PreambleAuthenticator::new(keys(1)), [127, 0, 0, 1].into());
        DataListener::open(
            at,
            &SocketOptions::default(),
            authenticator,
            peer,
            STREAMS,
            Arc::clone(control),
            Box::new(|_, _| ()),
        )
    }

    const STREAMS: u16 = 64;
    const FOREVER: Duration = Duration::from_secs(3600);

    fn connect_from(source: [u8; 4], listener: &DataListener) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&listener.local_addr().into()).unwrap();
        socket.into()
    }

    fn connect(listener: &DataListener) -> TcpStream {
        connect_from([127, 0, 0, 1], listener)
    }

    /// Waits until the other end has reset the connection without sending anything.
    fn assert_reset(mut socket: &TcpStream) {
        assert_eq!(socket.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_preamble_in_pieces_is_accepted() {
        let (listener, accepted) = listener(FOREVER);
        let mut ours = connect(&listener);
        ours.set_nodelay(true).unwrap();
        for piece in preamble(5).chunks(7) {
            ours.write_all(piece).unwrap();
        }
        ours.write_all(b"payload").unwrap();
        let (proof, mut stream) = accepted.recv().unwrap();
        assert_eq!((proof.phase, proof.stream), (0, 5));
        let mut payload = [0; 7];
        stream.read_exact(&mut payload).unwrap();
        assert_eq!(&payload, b"payload");
        assert_eq!(listener.refused(), 0);
    }

    #[test]
    fn garbage_and_a_second_connection_of_an_index_are_reset_and_counted() {
        let (listener, accepted) = listener(FOREVER);
        let mut garbage = connect(&listener);
        garbage.write_all(&[0xff; 200]).unwrap();
        assert_reset(&garbage);
        let mut forged = connect(&listener);
        let other = Preamble { session: keys(2).session(), phase: 0, stream: 1, nonce: [0; 12] };
        forged.write_all(&other.seal(&keys(2))).unwrap();
        assert_reset(&forged);
        let mut first = connect(&listener);
        first.write_all(&preamble(1)).unwrap();
        let _first = accepted.recv().unwrap();
        let mut again = connect(&listener);
        again.write_all(&preamble(1)).unwrap();
        assert_reset(&again);
        assert_eq!(listener.refused(), 3);
        assert!(accepted.try_recv().is_err());
    }

    #[test]
    fn a_silent_connection_is_reset_at_its_deadline() {
        let (listener, _accepted) = listener(Duration::from_millis(10));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        match socket.connect(&listener.local_addr().into()) {
            Ok(()) => assert_reset(&socket.into()),
            // The deadline passed before connect returned.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert_eq!(listener.refused(), 1);
    }

    #[test]
    fn the_appliance_displaces_silent_connections_of_other_clients() {
        let (listener, accepted) = listener(FOREVER);
        let others = (0..max_pending(STREAMS)).map(|_| connect_from([127, 0, 0, 9], &listener)).collect::<Vec<_>>();
        let mut ours = (0..10).map(|_| connect(&listener)).collect::<Vec<_>>();
        // The appliance's connections, which have not sent anything yet, displaced the oldest ones.
        others[..10].iter().for_each(assert_reset);
        // A later connection replaces a connection of another client, never a connection of the appliance.
        let _late = connect_from([127, 0, 0, 9], &listener);
        assert_reset(&others[10]);
        for (index, socket) in (0..).zip(&mut ours) {
            socket.write_all(&preamble(index)).unwrap();
            assert_eq!(accepted.recv().unwrap().0.stream, index);
        }
        assert_eq!(listener.refused(), 11);
    }

    #[test]
    fn a_silent_connection_is_reset_at_the_end() {
        let (listener, accepted) = listener(FOREVER);
        let silent = connect_from([127, 0, 0, 9], &listener);
        let mut ours = connect(&listener);
        ours.write_all(&preamble(1)).unwrap();
        // Connections are accepted in order, so the silent one is pending.
        let _stream = accepted.recv().unwrap();
        drop(listener);
        assert_reset(&silent);
    }

    #[test]
    fn dropping_it_frees_the_port_at_once() {
        let (listener, accepted) = listener(FOREVER);
        let mut ours = connect(&listener);
        ours.write_all(&preamble(1)).unwrap();
        let (_, stream) = accepted.recv().unwrap();
        let waiting = connect(&listener);
        let at = listener.local_addr();
        let held = open_at(at, &SessionControl::unmetered());
        assert_eq!(held.err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(listener);
        // This end closes first: its connections in TIME_WAIT do not block the port.
        drop((stream, ours, waiting));
        let again = open_at(at, &SessionControl::unmetered()).unwrap();
        assert_eq!(again.local_addr(), at);
    }

    #[test]
    fn a_cancelled_session_closes_the_listener() {
        let control = SessionControl::unmetered();
        let at = ([127, 0, 0, 1], 0).into();
        let mut listener = open_at(at, &control).unwrap();
        control.cancel();
        listener.thread.take().unwrap().join().unwrap();
        assert!(TcpStream::connect(listener.local_addr()).is_err());
    }
}
