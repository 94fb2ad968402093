//! Direct mode's listener: lets in who proves to belong to the session, and resets everybody else without a word. What
//! is done with those let in, and how an engine of other words has them prove it, stands elsewhere.

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

use crate::claim;
use crate::session_control::{Registration, SessionControl};
use crate::socket::{self, SocketOptions};

/// How long a newcomer may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Newcomers of others that may stand before the door at once, beside the session's own.
const OTHERS_WAITING: usize = 16;
/// Connections the kernel may hold for us.
const BACKLOG: i32 = 1024;
/// Newcomers taken in a row before those who wait are looked at again.
const ACCEPTED_AT_ONCE: usize = 64;
/// How long the listener is left alone when the host has no descriptor or memory for another connection.
const REST: Duration = Duration::from_millis(100);

/// How newcomers prove that they belong here.
pub trait Knock: Send + 'static {
    /// What a newcomer has said so far, as far as it was taken from its socket.
    type Said: Default + Send;
    /// What it proved.
    type Pass: 'static;

    /// Looks at what a newcomer says, whenever there is something new: first when it comes. `socket` never blocks. One
    /// that leaves unread what it has seen must see to it that only more of it wakes the door again.
    fn hear(&mut self, socket: &TcpStream, from_peer: bool, said: &mut Self::Said) -> Verdict<Self::Pass>;
}

/// What becomes of a newcomer that spoke.
pub enum Verdict<Pass> {
    /// It has not said enough yet.
    Waits,
    /// It belongs here.
    Enters(Pass),
    /// It does not.
    Refused,
}

/// Proof by [`Preamble`]: the first 48 bytes, sealed with the session's keys, of a stream that was not there before.
pub struct ByPreamble {
    keys: Arc<SessionKeys>,
    /// Streams that were let in: each has one place.
    seen: HashSet<(u8, u16)>,
}

impl ByPreamble {
    /// With nobody let in yet.
    pub fn new(keys: Arc<SessionKeys>) -> Self {
        Self { keys, seen: HashSet::new() }
    }
}

/// A preamble's bytes, as they come.
pub struct SaidPreamble {
    said: [u8; Preamble::LEN],
    len: usize,
}

impl Default for SaidPreamble {
    fn default() -> Self {
        Self { said: [0; Preamble::LEN], len: 0 }
    }
}

impl Knock for ByPreamble {
    type Said = SaidPreamble;
    type Pass = Preamble;

    fn hear(&mut self, mut socket: &TcpStream, _from_peer: bool, preamble: &mut SaidPreamble) -> Verdict<Preamble> {
        while preamble.len < Preamble::LEN {
            match socket.read(&mut preamble.said[preamble.len..]) {
                Ok(0) => return Verdict::Refused,
                Ok(read) => preamble.len += read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Verdict::Waits,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Verdict::Refused,
            }
        }
        match Preamble::open(&preamble.said, &self.keys) {
            Some(preamble) if self.seen.insert((preamble.phase, preamble.stream)) => Verdict::Enters(preamble),
            _ => Verdict::Refused,
        }
    }
}

/// Where those let in go. Called from the door's thread; must not block.
pub type Sink<Pass> = Box<dyn Fn(Pass, TcpStream) + Send + Sync>;

/// A listening port that belongs to one session. Dropping it stops its thread and frees the port at once.
pub struct Door {
    local: SocketAddr,
    refused: Arc<AtomicU64>,
    wake: Arc<OwnedFd>,
    porter: Option<JoinHandle<()>>,
}

/// Connections that may stand before the door of a session with so many streams in a direction: each of them, and some
/// of others.
pub fn most_waiting(streams: u16) -> usize {
    usize::from(streams) + OTHERS_WAITING
}

impl Door {
    /// Listens at `claim` (port 0: any), with `options` for every connection. One that proves within 5 s, in the way of
    /// `knock`, that it belongs here goes to `sink`; all others are reset and counted. Connections from `peer` are
    /// preferred when many wait, at most [`most_waiting`] of `streams`. Cutting `control` closes the door. `AddrInUse`: somebody else listens there.
    pub fn open<K: Knock>(
        claim: SocketAddr,
        options: &SocketOptions,
        knock: K,
        peer: IpAddr,
        streams: u16,
        control: Arc<SessionControl>,
        sink: Sink<K::Pass>,
    ) -> io::Result<Self> {
        Self::open_with_patience(claim, options, knock, peer, streams, control, sink, PATIENCE)
    }

    #[expect(clippy::too_many_arguments, reason = "what a door is made of, and how patient a test wants it")]
    fn open_with_patience<K: Knock>(
        at: SocketAddr,
        options: &SocketOptions,
        knock: K,
        peer: IpAddr,
        streams: u16,
        control: Arc<SessionControl>,
        sink: Sink<K::Pass>,
        patience: Duration,
    ) -> io::Result<Self> {
        let listener = claim::patiently(|| listen(at, options))?;
        let local = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let refused = Arc::new(AtomicU64::new(0));
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let porter = Porter {
            _registration: control.register(&listener)?,
            listener,
            wake: Arc::clone(&wake),
            knock,
            peer: peer.to_canonical(),
            most_waiting: most_waiting(streams),
            control,
            sink,
            patience,
            refused: Arc::clone(&refused),
            newcomers: Vec::new(),
            rests_until: None,
        };
        let porter = std::thread::Builder::new().name(format!("door-{}", local.port())).spawn(|| porter.run())?;
        Ok(Self { local, refused, wake, porter: Some(porter) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections that were turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Can fail only when it is signalled already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(porter) = self.porter.take() {
            // A porter that panicked has closed its sockets all the same.
            let _ = porter.join();
        }
    }
}

/// SO_REUSEADDR lets the port be had again while old connections of it stand in TIME_WAIT; Linux still refuses a port
/// at which anyone listens (socket(7)), so it can't be stolen, and one that a stranger holds is not shared.
///
/// Connections inherit the options of their listener, and a receive buffer has to be there before the connection is.
fn listen(claim: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    // An IPv4 address in IPv6 clothes can't be bound by a socket that speaks IPv6 alone.
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

/// A connection that has not yet said who it is.
struct Newcomer<Said> {
    socket: TcpStream,
    from_peer: bool,
    expires: Instant,
    said: Said,
}

/// The door's thread.
struct Porter<K: Knock> {
    listener: Socket,
    /// Ends the listener, and so wakes the poll, when the session is cancelled.
    _registration: Registration,
    wake: Arc<OwnedFd>,
    knock: K,
    peer: IpAddr,
    control: Arc<SessionControl>,
    sink: Sink<K::Pass>,
    patience: Duration,
    refused: Arc<AtomicU64>,
    most_waiting: usize,
    /// The oldest first; at most `most_waiting`.
    newcomers: Vec<Newcomer<K::Said>>,
    rests_until: Option<Instant>,
}

impl<K: Knock> Porter<K> {
    fn run(mut self) {
        loop {
            let Ok(spoke) = self.wait() else { return };
            self.hear(&spoke);
            self.show_out_late();
            if !self.let_come() {
                return;
            }
        }
    }

    /// Waits until something happens: says which newcomers spoke. An error means that the door closes.
    fn wait(&self) -> Result<Vec<bool>, Closing> {
        let now = Instant::now();
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        polled.extend(self.newcomers.iter().map(|newcomer| PollFd::new(&newcomer.socket, PollFlags::IN)));
        if self.rests_until.is_none_or(|until| until <= now) {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let next = self.newcomers.first().map(|newcomer| newcomer.expires).into_iter();
        let next = next.chain(self.rests_until.filter(|until| *until > now)).min();
        let left = next.map(|next| next.saturating_duration_since(now));
        let limit =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        match rustix::event::poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "a data port can't be watched any more");
                return Err(Closing);
            }
        }
        if self.control.is_cancelled() || !polled[0].revents().is_empty() {
            return Err(Closing);
        }
        Ok(polled[1..=self.newcomers.len()].iter().map(|polled| !polled.revents().is_empty()).collect())
    }

    fn hear(&mut self, spoke: &[bool]) {
        let mut spoke = spoke.iter();
        for mut newcomer in std::mem::take(&mut self.newcomers) {
            let verdict = if *spoke.next().unwrap_or(&false) { self.judge(&mut newcomer) } else { Verdict::Waits };
            self.carry_out(verdict, newcomer);
        }
    }

    fn judge(&mut self, newcomer: &mut Newcomer<K::Said>) -> Verdict<K::Pass> {
        self.knock.hear(&newcomer.socket, newcomer.from_peer, &mut newcomer.said)
    }

    fn carry_out(&mut self, verdict: Verdict<K::Pass>, newcomer: Newcomer<K::Said>) {
        match verdict {
            Verdict::Waits => self.newcomers.push(newcomer),
            Verdict::Refused => self.refuse(&newcomer.socket),
            Verdict::Enters(pass) => match newcomer.socket.set_nonblocking(false) {
                Ok(()) => {
                    self.control.heard();
                    (self.sink)(pass, newcomer.socket);
                }
                Err(_) => self.refuse(&newcomer.socket),
            },
        }
    }

    fn refuse(&self, socket: &TcpStream) {
        socket::reset_on_close(socket);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// All newcomers have the same patience to use up, so the late ones stand in front.
    fn show_out_late(&mut self) {
        let now = Instant::now();
        let late = self.newcomers.iter().take_while(|newcomer| newcomer.expires <= now).count();
        for newcomer in self.newcomers.drain(..late).collect::<Vec<_>>() {
            self.refuse(&newcomer.socket);
        }
    }

    /// Takes those who knock; `false` when the listener is at its end.
    fn let_come(&mut self) -> bool {
        if self.rests_until.is_some_and(|until| until > Instant::now()) {
            return true;
        }
        self.rests_until = None;
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.listener.accept() {
                Ok((socket, address)) => self.welcome(socket, address.as_socket().map(|from| from.ip())),
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::AGAIN) => return true,
                    // The newcomer's own failures (accept(2)): the next one may be sound.
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => {}
                    _ if self.control.is_cancelled() => return false,
                    _ => {
                        // No descriptor or no memory left. A stranger's may help the owner in, once others gave back.
                        if let Some(at) = self.dispensable() {
                            let stranger = self.newcomers.remove(at);
                            self.refuse(&stranger.socket);
                        }
                        self.rests_until = Some(Instant::now() + REST);
                        return true;
                    }
                },
            }
        }
        true
    }

    fn welcome(&mut self, socket: Socket, from: Option<IpAddr>) {
        let from_peer = from.is_some_and(|from| from.to_canonical() == self.peer);
        let socket = TcpStream::from(socket);
        if socket.set_nonblocking(true).is_err() {
            return self.refuse(&socket);
        }
        let expires = Instant::now() + self.patience;
        let mut newcomer = Newcomer { socket, from_peer, expires, said: K::Said::default() };
        // The proof mostly came along; who has said it never takes a place from anybody.
        match self.judge(&mut newcomer) {
            Verdict::Waits if self.newcomers.len() >= self.most_waiting => {
                let evicted = match self.dispensable() {
                    Some(at) => at,
                    None if from_peer => 0,
                    None => return self.refuse(&newcomer.socket),
                };
                let evicted = self.newcomers.remove(evicted);
                self.refuse(&evicted.socket);
                self.newcomers.push(newcomer);
            }
            verdict => self.carry_out(verdict, newcomer),
        }
    }

    /// The oldest newcomer that does not come from the owner's address.
    fn dispensable(&self) -> Option<usize> {
        self.newcomers.iter().position(|newcomer| !newcomer.from_peer)
    }
}

/// The door is to be closed.
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

    /// A door of the owner at 127.0.0.1, and what comes through it.
    fn door(patience: Duration) -> (Door, Receiver<(Preamble, TcpStream)>) {
        let (enter, entered) = channel();
        let sink = Box::new(move |preamble, stream| enter.send((preamble, stream)).unwrap_or(()));
        let owner = [127, 0, 0, 1].into();
        let (at, options, knock) = (([127, 0, 0, 1], 0).into(), SocketOptions::default(), ByPreamble::new(keys(1)));
        let door =
            Door::open_with_patience(at, &options, knock, owner, STREAMS, SessionControl::unmetered(), sink, patience);
        (door.unwrap(), entered)
    }

    fn open_at(at: SocketAddr, control: &Arc<SessionControl>) -> io::Result<Door> {
        let (knock, owner) = (ByPreamble::new(keys(1)), [127, 0, 0, 1].into());
        Door::open(at, &SocketOptions::default(), knock, owner, STREAMS, Arc::clone(control), Box::new(|_, _| ()))
    }

    const STREAMS: u16 = 64;
    const FOREVER: Duration = Duration::from_secs(3600);

    fn knock_from(source: [u8; 4], door: &Door) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&door.local_addr().into()).unwrap();
        socket.into()
    }

    fn knock(door: &Door) -> TcpStream {
        knock_from([127, 0, 0, 1], door)
    }

    /// Waits until the other end has reset the connection, without having said a word.
    fn assert_reset(mut socket: &TcpStream) {
        assert_eq!(socket.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_owner_gets_in_also_when_the_preamble_comes_in_pieces() {
        let (door, entered) = door(FOREVER);
        let mut ours = knock(&door);
        ours.set_nodelay(true).unwrap();
        for piece in preamble(5).chunks(7) {
            ours.write_all(piece).unwrap();
        }
        ours.write_all(b"payload").unwrap();
        let (said, mut stream) = entered.recv().unwrap();
        assert_eq!((said.phase, said.stream), (0, 5));
        let mut payload = [0; 7];
        stream.read_exact(&mut payload).unwrap();
        assert_eq!(&payload, b"payload");
        assert_eq!(door.refused(), 0);
    }

    #[test]
    fn garbage_and_a_second_of_the_same_index_are_reset_and_counted() {
        let (door, entered) = door(FOREVER);
        let mut garbage = knock(&door);
        garbage.write_all(&[0xff; 200]).unwrap();
        assert_reset(&garbage);
        let mut forged = knock(&door);
        let other = Preamble { session: keys(2).session(), phase: 0, stream: 1, nonce: [0; 12] };
        forged.write_all(&other.seal(&keys(2))).unwrap();
        assert_reset(&forged);
        let mut first = knock(&door);
        first.write_all(&preamble(1)).unwrap();
        let _first = entered.recv().unwrap();
        let mut again = knock(&door);
        again.write_all(&preamble(1)).unwrap();
        assert_reset(&again);
        assert_eq!(door.refused(), 3);
        assert!(entered.try_recv().is_err());
    }

    #[test]
    fn the_silent_are_shown_out_in_time() {
        let (door, _entered) = door(Duration::from_millis(10));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        match socket.connect(&door.local_addr().into()) {
            Ok(()) => assert_reset(&socket.into()),
            // Time was up before it was known here that the connection stands.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert_eq!(door.refused(), 1);
    }

    #[test]
    fn silent_strangers_do_not_keep_the_owner_out() {
        let (door, entered) = door(FOREVER);
        let strangers = (0..most_waiting(STREAMS)).map(|_| knock_from([127, 0, 0, 9], &door)).collect::<Vec<_>>();
        let mut owners = (0..10).map(|_| knock(&door)).collect::<Vec<_>>();
        // The oldest strangers made way for the owner's connections that have not spoken yet.
        strangers[..10].iter().for_each(assert_reset);
        // A late stranger takes the place of another stranger, never one of the owner's.
        let _late = knock_from([127, 0, 0, 9], &door);
        assert_reset(&strangers[10]);
        for (index, owner) in (0..).zip(&mut owners) {
            owner.write_all(&preamble(index)).unwrap();
            assert_eq!(entered.recv().unwrap().0.stream, index);
        }
        assert_eq!(door.refused(), 11);
    }

    #[test]
    fn a_dropped_door_frees_its_port_at_once() {
        let (door, entered) = door(FOREVER);
        let mut ours = knock(&door);
        ours.write_all(&preamble(1)).unwrap();
        let (_, stream) = entered.recv().unwrap();
        let waiting = knock(&door);
        let at = door.local_addr();
        let held = open_at(at, &SessionControl::unmetered());
        assert_eq!(held.err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(door);
        // Our end closes first: what stays behind in TIME_WAIT does not hold the port.
        drop((stream, ours, waiting));
        let again = open_at(at, &SessionControl::unmetered()).unwrap();
        assert_eq!(again.local_addr(), at);
    }

    #[test]
    fn a_cancelled_session_closes_the_door() {
        let control = SessionControl::unmetered();
        let at = ([127, 0, 0, 1], 0).into();
        let mut door = open_at(at, &control).unwrap();
        control.cancel();
        door.porter.take().unwrap().join().unwrap();
        assert!(TcpStream::connect(door.local_addr()).is_err());
    }
}
