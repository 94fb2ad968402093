//! Where a lane's parts meet: the listener that lets connections in, the keeper of the child that serves them, and the phase
//! that counts them. HandoffState under one lock, and who waits for it; no thread, no process, no poll.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paramedic_engines::session_control::SessionControl;
use paramedic_engines::socket;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal};

use super::cookie::Cookie;

/// How often connections are looked at, at least and at most: what flows in between is charged afterwards. Each look holds
/// the sockets up for a moment, so it comes no sooner than what is leased asks for.
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(100);
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How often while the child stands still.
const STOPPED_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Shared by the threads of a lane.
pub(super) struct LaneHandoff {
    state: Mutex<HandoffState>,
    changed: Condvar,
    control: Arc<SessionControl>,
    /// Where the child finds one byte for each connection that waits for it: what it takes for its listener. The bell is
    /// our end of the pair.
    pub(super) bell: UnixStream,
    pub(super) listener: OwnedFd,
}

/// How it stands with the child.
#[derive(Clone, Debug)]
pub(super) enum ChildState {
    /// There is none yet that listens.
    Starting,
    /// It takes connections.
    Listens,
    /// It is gone, and all that came of it.
    Ended(ChildExit),
}

/// What a child leaves behind.
#[derive(Clone, Debug, Default)]
pub(super) struct ChildExit {
    /// Seconds of processor time: user, system.
    pub(super) cpu_s: Option<(f64, f64)>,
    /// When it was gone.
    pub(super) at: Option<Instant>,
    /// Why it ended, where it did not end by itself and well.
    pub(super) complaint: Option<String>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// The test's control connection: the first one.
    Control,
    /// A stream of payload.
    Stream,
}

/// What the kernel told of a stream of payload, from the moment it came on.
#[derive(Clone, Debug, Default)]
pub(super) struct KernelCounts {
    /// Payload that the other end has acknowledged.
    pub(super) sent: u64,
    /// Payload that arrived.
    pub(super) received: u64,
    /// Segments sent again.
    pub(super) retransmits: Option<u32>,
    /// The largest segment that is sent, in bytes.
    pub(super) mss: Option<u32>,
    /// The congestion control in use.
    pub(super) congestion_control: Option<String>,
}

/// One connection of a test.
struct LaneConnection {
    place: ConnectionKind,
    /// A copy of its socket; let go of before the child closes its own, for clients wait for that.
    socket: Option<TcpStream>,
    /// The child's descriptor of it, once it has one.
    of_child: Option<i32>,
    /// What was acknowledged before it was the child's.
    acked_before: u64,
    seen: KernelCounts,
    /// What of it was charged.
    charged: u64,
}

impl LaneConnection {
    fn look(&mut self) {
        let Some((acked, received)) = self.socket.as_ref().and_then(socket::counts) else { return };
        self.seen.sent = acked.saturating_sub(self.acked_before);
        // Its cookie is no payload.
        self.seen.received = received.saturating_sub(Cookie::LEN as u64);
    }

    fn let_go(&mut self) {
        self.look();
        if let Some(socket) = self.socket.take() {
            (self.seen.retransmits, self.seen.mss) = socket::retransmits_and_mss(&socket);
            self.seen.congestion_control = socket::congestion_control(&socket);
        }
    }

    /// What has flowed since the last call.
    fn charge(&mut self) -> u64 {
        self.look();
        let flowed = self.seen.sent.saturating_add(self.seen.received);
        let fresh = flowed.saturating_sub(self.charged);
        self.charged = self.charged.max(flowed);
        fresh
    }
}

/// A connection that the child has not taken yet.
pub(super) struct UnacceptedConnection {
    pub(super) socket: TcpStream,
    /// Which of the test's connections it is.
    number: usize,
    /// Of which test.
    test: usize,
}

struct HandoffState {
    /// The phase whose test is next or runs; counts those alone that load the path.
    test: usize,
    /// Streams that this test has, both directions together.
    expected: usize,
    cookie: Option<Cookie>,
    /// Places given away, that of the control connection included.
    given: usize,
    /// Let in, and not yet taken by the child.
    waiting: VecDeque<UnacceptedConnection>,
    connections: Vec<LaneConnection>,
    /// Whether the child stands still until more bytes are leased.
    is_stopped: bool,
    /// When it was looked last, and the most bytes a second that flowed between two looks.
    looked: Instant,
    fastest_bps: u64,
    /// What the child names as an error of the test.
    complaint: Option<String>,
    stands_since: Option<Instant>,
    child: ChildState,
    /// While it can be signalled: the child leads a group of its own.
    pid: Option<Pid>,
    is_over: bool,
}

impl HandoffState {
    fn streams(&self) -> impl Iterator<Item = &LaneConnection> {
        self.connections.iter().filter(|connection| connection.place == ConnectionKind::Stream)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // It may have ended just now; its number is still its own.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Every connection is counted for the last time and closed here: who is at its other end is told by that.
    fn let_all_go(&mut self, control: &SessionControl) {
        self.waiting.clear();
        self.connections.iter_mut().for_each(LaneConnection::let_go);
        self.account(control);
    }

    /// Charges what has flowed since the last call, whichever phase runs or none: what the child moves is the session's.
    /// One that is ahead of what was leased stands still until that is written.
    fn account(&mut self, control: &SessionControl) {
        let fresh = self.connections.iter_mut().map(LaneConnection::charge).fold(0, u64::saturating_add);
        let passed = self.looked.elapsed();
        // Two looks in a row say nothing of the pace.
        if passed >= MIN_LOOK_INTERVAL / 2 {
            let pace_bps = u128::from(fresh) * 1_000_000 / passed.as_micros().max(1);
            self.fastest_bps = self.fastest_bps.max(u64::try_from(pace_bps).unwrap_or(u64::MAX));
            self.looked += passed;
        }
        if fresh > 0 {
            control.heard();
            // Ends with the session: whoever waits for it sees that.
            let _ = control.charge(fresh);
        }
        let said = |connection: &&LaneConnection| {
            connection.place == ConnectionKind::Control && connection.seen.received > MAX_CONTROL_BYTES
        };
        if self.connections.iter().any(|connection| said(&connection)) {
            self.complaint.get_or_insert_with(|| "its control connection says more than any test needs".to_owned());
            self.signal(Signal::KILL);
        }
        // Asked once: leases are written by another thread, and one that comes right now is found by the next look.
        let has_to_stand = self.pid.is_some() && control.is_exhausted();
        match (has_to_stand, self.is_stopped) {
            (true, false) => {
                tracing::debug!("an iperf3 stands still until more bytes are leased");
                self.signal(Signal::STOP);
            }
            (false, true) => self.signal(Signal::CONT),
            _ => {}
        }
        self.is_stopped = has_to_stand;
    }
}

/// Half of the time in which what is leased would be used up as fast as it ever was, in bytes a second. As long as nothing
/// has flowed it is not known how fast that is.
fn until_next_look(fastest_bps: u64, left: Option<u64>) -> Duration {
    let Some(left) = left else { return MAX_LOOK_INTERVAL };
    let used_up = (u128::from(left) * 500_000).checked_div(u128::from(fastest_bps)).unwrap_or_default();
    Duration::from_micros(u64::try_from(used_up).unwrap_or(u64::MAX)).clamp(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL)
}

/// What a test's control connection may say to the child: the results of 128 streams are some tens of kilobytes.
const MAX_CONTROL_BYTES: u64 = 1 << 20;

impl LaneHandoff {
    pub(super) fn new(control: Arc<SessionControl>, expected: usize) -> io::Result<Self> {
        let (bell, listener) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        Ok(Self {
            state: Mutex::new(HandoffState {
                test: 0,
                expected,
                cookie: None,
                given: 0,
                waiting: VecDeque::new(),
                connections: Vec::new(),
                is_stopped: false,
                looked: Instant::now(),
                fastest_bps: 0,
                complaint: None,
                stands_since: None,
                child: ChildState::Starting,
                pid: None,
                is_over: false,
            }),
            changed: Condvar::new(),
            control,
            bell,
            listener: listener.into(),
        })
    }

    fn state(&self) -> MutexGuard<'_, HandoffState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.notify_all();
        self.control.wake();
    }

    // The listener's side.

    /// A place in the running test for a connection with this cookie, if there is one.
    pub(super) fn place_for(&self, cookie: Cookie) -> Option<ConnectionKind> {
        let mut state = self.state();
        if matches!(state.child, ChildState::Ended(_)) || state.is_over {
            return None;
        }
        let place = match state.cookie {
            None => ConnectionKind::Control,
            Some(of_test) if of_test == cookie && state.given <= state.expected => ConnectionKind::Stream,
            Some(_) => return None,
        };
        state.cookie = Some(cookie);
        state.given += 1;
        Some(place)
    }

    /// Seats a connection that was let in: the child hears of it, and its bytes are counted from now on.
    pub(super) fn seat(&self, place: ConnectionKind, socket: TcpStream) -> io::Result<()> {
        let copy = socket.try_clone()?;
        let mut state = self.state();
        let acked_before = socket::counts(&copy).unwrap_or_default().0;
        let (socket_of_ours, seen) = (Some(copy), KernelCounts::default());
        let connection =
            LaneConnection { place, socket: socket_of_ours, of_child: None, acked_before, seen, charged: 0 };
        state.connections.push(connection);
        let (number, test) = (state.connections.len() - 1, state.test);
        state.waiting.push_back(UnacceptedConnection { socket, number, test });
        if state.streams().count() == state.expected && state.stands_since.is_none() {
            state.stands_since = Some(Instant::now());
        }
        // Full only if the child has not taken any of thousands.
        (&self.bell).write_all(b".")?;
        drop(state);
        self.tell();
        Ok(())
    }

    // The keeper's side.

    /// The connection that the child takes now, if one waits.
    pub(super) fn take(&self) -> Option<UnacceptedConnection> {
        let mut state = self.state();
        let taken = state.waiting.pop_front()?;
        // The byte that stood for it; a child that took it itself only fooled itself.
        let _ = rustix::net::recv(&self.listener, &mut [0; 1], RecvFlags::DONTWAIT);
        Some(taken)
    }

    /// The child did not take it after all: it waits on, as long as its test does.
    pub(super) fn put_back(&self, waiting: UnacceptedConnection) {
        let mut state = self.state();
        if waiting.test != state.test {
            return;
        }
        state.waiting.push_front(waiting);
        // As when it came.
        let _ = (&self.bell).write_all(b".");
    }

    /// The child has taken this connection, and knows it by that number.
    pub(super) fn taken(&self, taken: &UnacceptedConnection, of_child: i32) {
        let mut state = self.state();
        let is_of_test = taken.test == state.test;
        if let Some(connection) = state.connections.get_mut(taken.number).filter(|_| is_of_test) {
            connection.of_child = Some(of_child);
        }
    }

    /// The child closes this descriptor now: if it is a connection, it is counted for the last time, and our copy closed.
    pub(super) fn closes(&self, of_child: i32) {
        let mut state = self.state();
        if let Some(connection) = state.connections.iter_mut().find(|one| one.of_child == Some(of_child)) {
            connection.of_child = None;
            connection.let_go();
            state.account(&self.control);
        }
    }

    /// Charges what has flowed. How soon to come again; none: nothing can flow, and nobody waits for a lease.
    pub(super) fn account(&self) -> Option<Duration> {
        let mut state = self.state();
        state.account(&self.control);
        let is_open = state.connections.iter().any(|connection| connection.socket.is_some());
        if state.is_stopped {
            return Some(STOPPED_LOOK_INTERVAL);
        }
        is_open.then(|| until_next_look(state.fastest_bps, self.control.left()))
    }

    /// A child was started. `false`: the lane is over, and it has to go at once.
    #[must_use]
    pub(super) fn started(&self, pid: Pid) -> bool {
        let mut state = self.state();
        state.pid = Some(pid);
        // Whatever became of the one before.
        state.is_stopped = false;
        !state.is_over
    }

    pub(super) fn listens(&self) {
        self.state().child = ChildState::Listens;
        self.tell();
    }

    /// The child named an error.
    pub(super) fn complained(&self, complaint: String) {
        self.state().complaint.get_or_insert(complaint);
        self.tell();
    }

    /// From here on nobody may signal the child: its number may soon be another's.
    pub(super) fn is_being_reaped(&self) {
        self.state().pid = None;
    }

    /// The child of this test is gone.
    pub(super) fn ended(&self, test: usize, ending: ChildExit) {
        let mut state = self.state();
        state.pid = None;
        // One that was long in going must not be taken for the next one.
        if state.test == test {
            state.let_all_go(&self.control);
            state.child = ChildState::Ended(ending);
        }
        drop(state);
        self.tell();
    }

    /// Waits until a child is wanted for a test after `test`. `false`: none will be.
    pub(super) fn await_next(&self, test: usize) -> bool {
        let mut state = self.state();
        while state.test <= test && !state.is_over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_over
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().is_over || self.control.is_cancelled()
    }

    // The phase's side.

    /// Waits until a child listens; an error says why none does.
    pub(super) fn await_listening(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            match &state.child {
                ChildState::Listens => return Ok(()),
                ChildState::Ended(ending) => {
                    return Err(ending.complaint.clone().unwrap_or_else(|| "it ended at once".to_owned()));
                }
                ChildState::Starting => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("it did not listen within {} s", patience.as_secs()));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Which test is next or runs.
    pub(super) fn test(&self) -> usize {
        self.state().test
    }

    /// Since when all streams of the test stand; how many do.
    pub(super) fn standing(&self) -> (Option<Instant>, usize) {
        let state = self.state();
        (state.stands_since, state.streams().count())
    }

    /// What the child named as an error of this test, if it did: it may well wait for another client then.
    pub(super) fn complaint(&self) -> Option<String> {
        self.state().complaint.clone()
    }

    /// How the child ended, if it did.
    pub(super) fn ending(&self) -> Option<ChildExit> {
        match &self.state().child {
            ChildState::Ended(ending) => Some(ending.clone()),
            ChildState::Starting | ChildState::Listens => None,
        }
    }

    /// What was seen of each stream of the test until now.
    pub(super) fn look(&self) -> Vec<KernelCounts> {
        let mut state = self.state();
        state.account(&self.control);
        state.streams().map(|stream| stream.seen.clone()).collect()
    }

    /// Sends a signal to the child and all that came of it, if it is there.
    pub(super) fn signal(&self, signal: Signal) {
        self.state().signal(signal);
    }

    /// The test is over and counted: its connections are let go, and the next one, of `expected` streams, may come.
    pub(super) fn next_test(&self, expected: usize) {
        let mut state = self.state();
        state.let_all_go(&self.control);
        state.test += 1;
        state.expected = expected;
        state.cookie = None;
        state.given = 0;
        state.connections.clear();
        state.complaint = None;
        state.stands_since = None;
        state.child = ChildState::Starting;
        // What still stands in the listener is of connections that nobody took.
        while rustix::net::recv(&self.listener, &mut [0; 64], RecvFlags::DONTWAIT).is_ok_and(|(read, _)| read > 0) {}
        drop(state);
        self.tell();
    }

    /// Nothing more is to come: the child goes, and so do all connections.
    pub(super) fn close(&self) {
        {
            let mut state = self.state();
            state.is_over = true;
            state.signal(Signal::KILL);
            state.let_all_go(&self.control);
            state.connections.clear();
        }
        self.tell();
        // Wakes the keeper wherever it waits; it holds the other end itself.
        let _ = self.bell.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::Stdio;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;
    use paramedic_engines::sys::child;

    fn handoff(expected: usize) -> LaneHandoff {
        LaneHandoff::new(SessionControl::unmetered(), expected).unwrap()
    }

    fn cookie(character: u8) -> Cookie {
        let mut bytes = [character; Cookie::LEN];
        bytes[Cookie::LEN - 1] = 0;
        Cookie::parse(&bytes).unwrap()
    }

    fn connection() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn a_test_has_one_control_connection_and_its_streams_all_with_one_cookie() {
        let handoff = handoff(2);
        let (own, foreign) = (cookie(b'a'), cookie(b'b'));
        assert_eq!(handoff.place_for(own), Some(ConnectionKind::Control));
        assert_eq!(handoff.place_for(foreign), None);
        assert_eq!(handoff.place_for(own), Some(ConnectionKind::Stream));
        assert_eq!(handoff.place_for(own), Some(ConnectionKind::Stream));
        assert_eq!(handoff.place_for(own), None, "no more than were granted");
        handoff.next_test(1);
        assert_eq!(handoff.place_for(foreign), Some(ConnectionKind::Control), "the next test begins anew");
    }

    #[test]
    fn the_child_hears_of_each_connection_once() {
        let handoff = handoff(1);
        let heard = || rustix::net::recv(&handoff.listener, &mut [0; 8], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        assert!(heard().is_err());
        handoff.seat(ConnectionKind::Control, connection()).unwrap();
        handoff.seat(ConnectionKind::Stream, connection()).unwrap();
        assert_eq!(heard().unwrap().0, 2);
        assert_eq!(handoff.standing().1, 1);
        assert!(handoff.take().is_some() && handoff.take().is_some() && handoff.take().is_none());
        assert!(heard().is_err());
    }

    #[test]
    fn the_less_is_leased_the_sooner_comes_the_next_look() {
        assert_eq!(until_next_look(1_000_000, None), MAX_LOOK_INTERVAL);
        assert_eq!(until_next_look(0, Some(u64::MAX)), MIN_LOOK_INTERVAL);
        assert_eq!(until_next_look(1_000_000, Some(1_000_000)), MAX_LOOK_INTERVAL);
        assert_eq!(until_next_look(1_000_000, Some(50_000)), Duration::from_millis(25));
        assert_eq!(until_next_look(u64::MAX, Some(0)), MIN_LOOK_INTERVAL);
    }

    /// Echoes what it is told, unless it stands still.
    struct Parrot(std::process::Child);

    impl Parrot {
        fn hatch() -> Self {
            let mut cat = std::process::Command::new("cat");
            cat.stdin(Stdio::piped()).stdout(Stdio::piped());
            Self(child::spawn(cat).unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }

        fn answers(&mut self) -> bool {
            let (Some(ear), Some(beak)) = (&mut self.0.stdin, &mut self.0.stdout) else { return false };
            let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
            ear.write_all(b"?").is_ok()
                && poll(&mut [PollFd::new(beak, PollFlags::IN)], Some(&patience)) == Ok(1)
                && matches!(beak.read(&mut [0; 1]), Ok(1))
        }
    }

    impl Drop for Parrot {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_child_that_comes_when_nothing_is_left_waits_for_the_lease() {
        let (mut parrot, control) = (Parrot::hatch(), SessionControl::metered(|| ()));
        let handoff = LaneHandoff::new(Arc::clone(&control), 1).unwrap();
        control.charge(1).unwrap();
        assert_eq!(handoff.account(), None, "there is no child yet");
        assert!(handoff.started(parrot.pid()));
        // Without a connection, too: nobody else would let it go on.
        assert_eq!(handoff.account(), Some(STOPPED_LOOK_INTERVAL));
        let stopped = waitid(WaitId::Pid(parrot.pid()), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
        assert!(stopped.unwrap().stopped());
        // Also for one that comes after one that stood still, and was gone for longer than anybody waited.
        assert!(handoff.started(parrot.pid()));
        assert_eq!(handoff.account(), Some(STOPPED_LOOK_INTERVAL));
        control.allow(1);
        assert_eq!(handoff.account(), None);
        assert!(parrot.answers());
    }

    #[test]
    fn a_lease_that_comes_while_the_child_is_being_stopped_lets_it_go_on() {
        const ROUNDS: usize = 200;
        let (mut parrot, control) = (Parrot::hatch(), SessionControl::metered(|| ()));
        let handoff = LaneHandoff::new(Arc::clone(&control), 1).unwrap();
        assert!(handoff.started(parrot.pid()));
        std::thread::scope(|scope| {
            let lessor = scope.spawn(|| {
                for pause in (0..64).cycle() {
                    while !control.is_exhausted() {
                        if control.is_cancelled() {
                            return;
                        }
                        std::thread::yield_now();
                    }
                    (0..pause * 16).for_each(|_| std::hint::spin_loop());
                    control.allow(1);
                }
            });
            let answered = (0..ROUNDS).take_while(|_| {
                control.charge(1).unwrap();
                handoff.account();
                while control.is_exhausted() {
                    std::thread::yield_now();
                }
                handoff.account();
                parrot.answers()
            });
            let answered = answered.count();
            control.cancel();
            lessor.join().unwrap();
            assert_eq!(answered, ROUNDS, "it stands still, and nothing is owed");
        });
    }

    #[test]
    fn nobody_gets_a_place_when_the_child_is_gone() {
        let handoff = handoff(1);
        handoff.ended(0, ChildExit::default());
        assert_eq!(handoff.place_for(cookie(b'a')), None);
        handoff.next_test(1);
        assert!(handoff.place_for(cookie(b'a')).is_some());
        handoff.close();
        assert!(handoff.is_over() && !handoff.await_next(0));
    }
}
