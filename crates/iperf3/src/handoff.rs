//! Hands connections over between the parts of a lane: the listener that authenticates them, the supervisor of the
//! child (the iperf3 server) that serves them, and the phase that counts them. The state is shared under one lock. This
//! file starts no thread and no process.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paramedic_engines::session_control::SessionControl;
use paramedic_engines::socket::{self, SegmentFacts};
use paramedic_engines::sys;
use rustix::net::{RecvFlags, connect_unspec, sockopt};
use rustix::process::{Pid, Signal};

use super::cookie::Cookie;
use super::process::signal_group;

/// The longest interval between two counts of the moved bytes, which are then charged to the session;
/// [`MIN_LOOK_INTERVAL`] is the shortest. Each count briefly locks the sockets, so [`look_interval`] chooses an
/// interval that is only as short as necessary.
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(100);
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The interval between two counts of the moved bytes while the child is stopped.
const STOPPED_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The state that the threads of a lane share. A lane is the port of one session and the iperf3 server (child) behind
/// it.
pub(super) struct LaneHandoff {
    state: Mutex<HandoffState>,
    changed: Condvar,
    control: Arc<SessionControl>,
    /// The reflector's end of a socket pair. The reflector writes one byte to it for each connection that the child has
    /// not accepted yet.
    pub(super) notifier: UnixStream,
    /// The other end of the socket pair. The child gets it in place of its listener: it is readable while connections
    /// wait.
    pub(super) listener: OwnedFd,
}

/// The state of a lane's child, the iperf3 server.
#[derive(Clone, Debug)]
pub(super) enum ChildState {
    /// The child does not listen yet.
    Starting,
    /// The child listens for connections.
    Listens,
    /// The child has exited and was reaped.
    Ended(ChildExit),
}

/// What is known about a child that has exited.
#[derive(Clone, Debug, Default)]
pub(super) struct ChildExit {
    /// Processor time in seconds: user time and system time.
    pub(super) cpu_s: Option<(f64, f64)>,
    /// When the child exited.
    pub(super) at: Option<Instant>,
    /// Why the child failed; `None` if it exited by itself with success.
    pub(super) error: Option<String>,
}

/// What a connection of an iperf3 test is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// The test's control connection, which is the first.
    Control,
    /// A payload stream.
    Stream,
}

/// The kernel's counts of a payload stream since the listener authenticated it.
#[derive(Clone, Debug, Default)]
pub(super) struct KernelCounts {
    /// Payload bytes that the appliance has acknowledged.
    pub(super) sent: u64,
    /// Payload bytes received.
    pub(super) received: u64,
    /// What the kernel recorded about the sent segments.
    pub(super) segments: SegmentFacts,
    /// The congestion control in use.
    pub(super) congestion_control: Option<String>,
}

/// A connection of the running test.
struct LaneConnection {
    kind: ConnectionKind,
    /// The reflector's copy of the connection's socket. While bytes are left to be sent, the reflector keeps its copy
    /// even after the child has closed its own. So the reflector can charge what the kernel still sends, and discard
    /// what is left at the end.
    socket: Option<TcpStream>,
    /// The child's descriptor of the connection, once the child has accepted it.
    of_child: Option<i32>,
    /// Bytes that were acknowledged before the listener handed the connection over.
    acked_before: u64,
    /// The counts that go into the result of the test.
    seen: KernelCounts,
    /// Whether the measurement of the connection has ended, because the child closed the connection or the reflector
    /// gave the connection up. Then `seen` stays as it is.
    is_measured: bool,
    /// Payload bytes sent and received, which are charged to the session. They include the bytes that the kernel moves
    /// after the child has closed the connection and, at the last count, the bytes that were sent but not acknowledged.
    sent: u64,
    received: u64,
    /// The bytes of the connection that were charged so far.
    charged: u64,
}

impl LaneConnection {
    fn look(&mut self) {
        let Some((acked, received)) = self.socket.as_ref().and_then(socket::counts) else { return };
        self.sent = self.sent.max(acked.saturating_sub(self.acked_before));
        // The cookie is not payload.
        self.received = self.received.max(received.saturating_sub(Cookie::LEN as u64));
        if !self.is_measured {
            (self.seen.sent, self.seen.received) = (self.sent, self.received);
        }
    }

    fn end_measurement(&mut self) {
        self.look();
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.is_measured) {
            self.seen.segments = socket::segment_facts(socket);
            self.seen.congestion_control = socket::congestion_control(socket);
        }
        self.is_measured = true;
    }

    /// Ends the connection in both directions, as the child's close does. The connection is not reset, because the
    /// client may still read what is queued. The reflector's copy stays open while bytes are queued, because nothing
    /// charges or limits them after the last copy is closed.
    fn close_with_child(&mut self) {
        self.end_measurement();
        let Some(socket) = &self.socket else { return };
        // Clients wait for the connection's end. Also, the child can't use the connection if a signal interrupts its
        // close. Fails only if the connection has ended already.
        socket.shutdown(Shutdown::Both).unwrap_or(());
        if let Some(progress) = sys::send_progress(socket).filter(|progress| progress.unsent == 0) {
            self.sent = self.sent.max(progress.sent);
            self.socket = None;
        }
    }

    /// Gives the connection up: counts its bytes a last time and closes the reflector's copy. If bytes are left to be
    /// sent, discards them and resets the connection at once, because without a copy nothing charges or limits them. If
    /// all bytes were sent, the connection closes normally, so that the client reads all of them, including the last
    /// message of its server. `is_last` is false if the child may still have a copy. Then the connection is reset in
    /// any case, because the child may still write.
    fn give_up(&mut self, is_last: bool) {
        self.end_measurement();
        let Some(socket) = self.socket.take() else { return };
        let progress = sys::send_progress(&socket);
        // Sent bytes are charged even if the acknowledgement is still on its way.
        self.sent = self.sent.max(progress.map_or(0, |progress| progress.sent));
        let is_reset = !is_last || progress.is_none_or(|progress| progress.unsent > 0);
        if is_reset {
            // Resets the connection at once (connect(2), `AF_UNSPEC`). A close alone would wait for the last copy, and
            // a process that another thread is starting can have one until its exec. Fails only if the connection has
            // ended already; then the linger time discards what is left.
            sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap_or(());
            connect_unspec(&socket).unwrap_or(());
        }
    }

    /// Returns the number of bytes that the connection moved since the last call.
    fn charge(&mut self) -> u64 {
        self.look();
        let moved = self.sent.saturating_add(self.received);
        let uncharged = moved.saturating_sub(self.charged);
        self.charged = self.charged.max(moved);
        uncharged
    }
}

/// A connection that the child has not accepted yet.
pub(super) struct UnacceptedConnection {
    pub(super) socket: TcpStream,
    /// The connection's index in `HandoffState::connections`.
    number: usize,
    /// The number of the connection's test.
    test: usize,
}

struct HandoffState {
    /// The number of the current or next test. Phases without load have no test.
    test: usize,
    /// The number of streams of this test, both directions together.
    expected: usize,
    cookie: Option<Cookie>,
    /// The number of connections authenticated for this test, including the control connection.
    authenticated: usize,
    /// Connections that the child has not accepted yet, the oldest first.
    waiting: VecDeque<UnacceptedConnection>,
    connections: Vec<LaneConnection>,
    /// Whether the child is stopped (SIGSTOP), because the session may move no more bytes until it gets a new lease.
    is_stopped: bool,
    /// When bytes were last counted. `max_bytes_per_s` is the highest rate between two counts, in bytes per second.
    counted_at: Instant,
    max_bytes_per_s: u64,
    /// The error that the child printed in this test, or the reason why the reflector killed the child.
    error: Option<String>,
    /// When the listener handed over the last stream of this test; `None` while streams are missing.
    started_at: Option<Instant>,
    child: ChildState,
    /// The process id of the child, which leads a process group. Set while the child may be signalled.
    pid: Option<Pid>,
    /// Whether a child was started and not reaped yet. Such a child may have copies of connections.
    has_child: bool,
    is_over: bool,
}

impl HandoffState {
    fn streams(&self) -> impl Iterator<Item = &LaneConnection> {
        self.connections.iter().filter(|connection| connection.kind == ConnectionKind::Stream)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            signal_group(pid, signal);
        }
    }

    /// Counts the bytes of all connections of the test, and gives the connections up.
    fn close_all(&mut self, control: &SessionControl) {
        self.waiting.clear();
        let is_last = !self.has_child;
        self.connections.iter_mut().for_each(|connection| connection.give_up(is_last));
        self.account(control);
    }

    /// Charges the session for the bytes moved since the last call, also between phases. If the session has used up its
    /// leased bytes, stops the child until more bytes are leased.
    fn account(&mut self, control: &SessionControl) {
        let uncharged = self.connections.iter_mut().map(LaneConnection::charge).fold(0, u64::saturating_add);
        let passed = self.counted_at.elapsed();
        // Too short an interval gives no useful rate.
        if passed >= MIN_LOOK_INTERVAL / 2 {
            let bytes_per_s = u128::from(uncharged) * 1_000_000 / passed.as_micros().max(1);
            self.max_bytes_per_s = self.max_bytes_per_s.max(u64::try_from(bytes_per_s).unwrap_or(u64::MAX));
            self.counted_at += passed;
        }
        if uncharged > 0 {
            control.heard();
            // An error means that the session is over, which every caller checks by itself.
            control.charge(uncharged).unwrap_or(());
        }
        let is_too_long = |connection: &&LaneConnection| {
            connection.kind == ConnectionKind::Control && connection.seen.received > MAX_CONTROL_BYTES
        };
        if self.connections.iter().any(|connection| is_too_long(&connection)) {
            self.error.get_or_insert_with(|| "the appliance sent more than 1 MiB on the control connection".to_owned());
            self.signal(Signal::KILL);
        }
        // Read only once, because another thread grants leases. A lease that comes after this line takes effect at the
        // next call.
        let must_stop = self.pid.is_some() && control.is_exhausted();
        match (must_stop, self.is_stopped) {
            (true, false) => {
                tracing::debug!("an iperf3 is stopped until more bytes are leased");
                self.signal(Signal::STOP);
            }
            (false, true) => self.signal(Signal::CONT),
            _ => {}
        }
        self.is_stopped = must_stop;
    }
}

/// The time until the next count: half of the time in which the `left` leased bytes would be used up at the highest
/// rate so far. While that rate is unknown, returns the shortest interval. Returns the longest interval if `left` is
/// `None`, because the session then needs no leases.
fn look_interval(max_bytes_per_s: u64, left: Option<u64>) -> Duration {
    let Some(left) = left else { return MAX_LOOK_INTERVAL };
    let used_up = (u128::from(left) * 500_000).checked_div(u128::from(max_bytes_per_s)).unwrap_or_default();
    Duration::from_micros(u64::try_from(used_up).unwrap_or(u64::MAX)).clamp(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL)
}

/// The maximum number of bytes that the appliance may send on a control connection. The results of 128 streams take
/// some tens of kilobytes.
const MAX_CONTROL_BYTES: u64 = 1 << 20;

impl LaneHandoff {
    pub(super) fn new(control: Arc<SessionControl>, expected: usize) -> io::Result<Self> {
        let (notifier, listener) = UnixStream::pair()?;
        notifier.set_nonblocking(true)?;
        Ok(Self {
            state: Mutex::new(HandoffState {
                test: 0,
                expected,
                cookie: None,
                authenticated: 0,
                waiting: VecDeque::new(),
                connections: Vec::new(),
                is_stopped: false,
                counted_at: Instant::now(),
                max_bytes_per_s: 0,
                error: None,
                started_at: None,
                child: ChildState::Starting,
                pid: None,
                has_child: false,
                is_over: false,
            }),
            changed: Condvar::new(),
            control,
            notifier,
            listener: listener.into(),
        })
    }

    fn state(&self) -> MutexGuard<'_, HandoffState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.control.wake();
    }

    // Called by the listener.

    /// Decides what a connection with this cookie is for. `None` if the current test expects no such connection.
    pub(super) fn authenticate(&self, cookie: Cookie) -> Option<ConnectionKind> {
        let mut state = self.state();
        if matches!(state.child, ChildState::Ended(_)) || state.is_over {
            return None;
        }
        let kind = match state.cookie {
            None => ConnectionKind::Control,
            Some(of_test) if of_test == cookie && state.authenticated <= state.expected => ConnectionKind::Stream,
            Some(_) => return None,
        };
        state.cookie = Some(cookie);
        state.authenticated += 1;
        Some(kind)
    }

    /// Adds an authenticated connection: the child may accept it, and its bytes are counted from now on.
    pub(super) fn add(&self, kind: ConnectionKind, socket: TcpStream) -> io::Result<()> {
        let copy = socket.try_clone()?;
        let mut state = self.state();
        let acked_before = socket::counts(&copy).unwrap_or_default().0;
        state.connections.push(LaneConnection {
            kind,
            socket: Some(copy),
            of_child: None,
            acked_before,
            seen: KernelCounts::default(),
            is_measured: false,
            sent: 0,
            received: 0,
            charged: 0,
        });
        let (number, test) = (state.connections.len() - 1, state.test);
        state.waiting.push_back(UnacceptedConnection { socket, number, test });
        if state.streams().count() == state.expected && state.started_at.is_none() {
            state.started_at = Some(Instant::now());
        }
        // The buffer is full only after thousands of connections that the child has not accepted.
        (&self.notifier).write_all(b".")?;
        drop(state);
        self.notify();
        Ok(())
    }

    // Called by the supervisor.

    /// Takes the connection that the child gets next, if one waits.
    pub(super) fn take(&self) -> Option<UnacceptedConnection> {
        let mut state = self.state();
        let taken = state.waiting.pop_front()?;
        // Removes the byte of the connection. If the child has already read that byte, only the child is harmed.
        if let Err(errno) = rustix::net::recv(&self.listener, &mut [0; 1], RecvFlags::DONTWAIT) {
            tracing::debug!(%errno, "iperf3 has read from its listener");
        }
        Some(taken)
    }

    /// Puts back a connection that the child did not accept. The connection waits again, unless its test is over.
    pub(super) fn put_back(&self, waiting: UnacceptedConnection) {
        let mut state = self.state();
        if waiting.test != state.test {
            return;
        }
        state.waiting.push_front(waiting);
        // The buffer is not full, because `take` has just removed a byte. The write fails if the lane is over.
        (&self.notifier).write_all(b".").unwrap_or(());
    }

    /// Records that the child accepted this connection as its descriptor `of_child`.
    pub(super) fn set_accepted(&self, taken: &UnacceptedConnection, of_child: i32) {
        let mut state = self.state();
        let is_of_test = taken.test == state.test;
        if let Some(connection) = state.connections.get_mut(taken.number).filter(|_| is_of_test) {
            connection.of_child = Some(of_child);
        }
    }

    /// Called when the child is about to close this descriptor. If the descriptor is a connection, counts its bytes and
    /// ends the connection.
    pub(super) fn close_descriptor(&self, of_child: i32) {
        let mut state = self.state();
        if let Some(connection) = state.connections.iter_mut().find(|one| one.of_child == Some(of_child)) {
            connection.of_child = None;
            connection.close_with_child();
            state.account(&self.control);
        }
    }

    /// Counts and charges moved bytes. Returns when to call again; `None` while no bytes can move.
    pub(super) fn account(&self) -> Option<Duration> {
        let mut state = self.state();
        state.account(&self.control);
        let is_open = state.connections.iter().any(|connection| connection.socket.is_some());
        if state.is_stopped {
            return Some(STOPPED_LOOK_INTERVAL);
        }
        is_open.then(|| look_interval(state.max_bytes_per_s, self.control.left()))
    }

    /// Records that a child was started. Returns `false` if the lane is over; then the caller must kill the child at
    /// once.
    #[must_use]
    pub(super) fn set_child(&self, pid: Pid) -> bool {
        let mut state = self.state();
        state.pid = Some(pid);
        state.has_child = true;
        // The previous child may have been stopped when it exited.
        state.is_stopped = false;
        !state.is_over
    }

    /// Records `error` if it means that this host refused to start a thread or a process.
    pub(super) fn note_thread_error(&self, error: &io::Error) {
        self.control.note_thread_error(error);
    }

    /// Records that the child listens.
    pub(super) fn set_listening(&self) {
        self.state().child = ChildState::Listens;
        self.notify();
    }

    /// Records an error that the child printed.
    pub(super) fn set_error(&self, error: String) {
        self.state().error.get_or_insert(error);
        self.notify();
    }

    /// Called when the child is about to be reaped. After this call the child is not signalled, because another process
    /// may get its process id.
    pub(super) fn stop_signalling(&self) {
        self.state().pid = None;
    }

    /// Records that the child of `test` was reaped.
    pub(super) fn set_exit(&self, test: usize, exit: ChildExit) {
        self.discard_passed();
        let mut state = self.state();
        state.pid = None;
        state.has_child = false;
        // A child that exits late must not end the next test.
        if state.test == test {
            state.close_all(&self.control);
            state.child = ChildState::Ended(exit);
        }
        drop(state);
        self.notify();
    }

    /// Waits until a test after `test` needs a child. Returns `false` if no later test will need one.
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

    // Called by the phase.

    /// Waits until the child listens. The error is the reason why the child does not.
    pub(super) fn await_listening(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            match &state.child {
                ChildState::Listens => return Ok(()),
                ChildState::Ended(exit) => {
                    return Err(exit
                        .error
                        .clone()
                        .unwrap_or_else(|| "it exited before it listened for connections".to_owned()));
                }
                ChildState::Starting => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("it did not listen within {} s", timeout.as_secs()));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The number of the current or next test.
    pub(super) fn test(&self) -> usize {
        self.state().test
    }

    /// When the listener handed over the last stream of the test (`None` while streams are missing), and the number of
    /// streams handed over so far.
    pub(super) fn open_streams(&self) -> (Option<Instant>, usize) {
        let state = self.state();
        (state.started_at, state.streams().count())
    }

    /// The error that the child printed in this test, or the reason why the reflector killed the child. A child that
    /// printed an error may still run and wait for another client.
    pub(super) fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    /// Waits until the child is reaped, so that the last count of its connections is final. Waits also in a cancelled
    /// session: the kernel goes on sending until the child has ended.
    pub(super) fn await_reaped(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        while state.has_child {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How the child exited, if it has.
    pub(super) fn exit(&self) -> Option<ChildExit> {
        match &self.state().child {
            ChildState::Ended(exit) => Some(exit.clone()),
            ChildState::Starting | ChildState::Listens => None,
        }
    }

    /// Counts and charges moved bytes. Returns the counts of each stream of the test.
    pub(super) fn look(&self) -> Vec<KernelCounts> {
        let mut state = self.state();
        state.account(&self.control);
        state.streams().map(|stream| stream.seen.clone()).collect()
    }

    /// Signals the child's process group, if there is a child.
    pub(super) fn signal(&self, signal: Signal) {
        self.state().signal(signal);
    }

    /// Ends the current test: counts and closes its connections. The next test has `expected` streams.
    pub(super) fn next_test(&self, expected: usize) {
        let mut state = self.state();
        state.close_all(&self.control);
        state.test += 1;
        state.expected = expected;
        state.cookie = None;
        state.authenticated = 0;
        state.connections.clear();
        state.error = None;
        state.started_at = None;
        state.child = ChildState::Starting;
        // Removes the bytes of connections that the child has not accepted.
        while rustix::net::recv(&self.listener, &mut [0; 64], RecvFlags::DONTWAIT).is_ok_and(|(read, _)| read > 0) {}
        drop(state);
        self.notify();
    }

    /// Ends the lane: kills the child. Its connections are counted and given up once it is reaped, because until then
    /// the kernel goes on sending.
    pub(super) fn close(&self) {
        {
            let mut state = self.state();
            state.is_over = true;
            state.signal(Signal::KILL);
            state.account(&self.control);
        }
        self.notify();
        // Wakes the supervisor's poll. Fails only if it is shut down already.
        self.notifier.shutdown(Shutdown::Both).unwrap_or(());
    }

    /// Discards the unread bytes that the child wrote to its listener. The child may have passed a copy of a connection
    /// with these bytes, and the kernel would continue to send on that connection after its last count.
    fn discard_passed(&self) {
        while matches!((&self.notifier).read(&mut [0; 4096]), Ok(1..)) {}
    }

    /// Called when there is no child any more and none will be started: counts and gives up all connections.
    pub(super) fn close_connections(&self) {
        self.discard_passed();
        let mut state = self.state();
        state.has_child = false;
        state.close_all(&self.control);
        state.connections.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::Stdio;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
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

    /// Both ends of a connection: the reflector's and the appliance's.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, theirs)
    }

    /// The descriptor number of the connection in the child.
    const OF_CHILD: i32 = 7;

    /// Both ends of a connection that a child has accepted: the child's and the appliance's.
    fn accepted(handoff: &LaneHandoff) -> (TcpStream, TcpStream) {
        let (ours, theirs) = pair();
        handoff.add(ConnectionKind::Stream, ours).unwrap();
        let taken = handoff.take().unwrap();
        handoff.set_accepted(&taken, OF_CHILD);
        (taken.socket, theirs)
    }

    /// Writes until the buffers of both ends are full, because the other end does not read. Returns the bytes written.
    fn fill(mut socket: &TcpStream) -> u64 {
        socket.set_nonblocking(true).unwrap();
        let block = [0; 1 << 16];
        let mut written = 0;
        loop {
            match socket.write(&block) {
                Ok(count) => written += count as u64,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    let progress = sys::send_progress(socket).unwrap();
                    let (acked, _) = socket::counts(socket).unwrap();
                    // Otherwise bytes are still under way, or all have left since.
                    if progress.unsent > 0 && acked >= progress.sent {
                        return written;
                    }
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Reads until the connection ends. Returns the number of bytes read, and how the connection ended.
    fn read_all(mut socket: &TcpStream) -> (u64, io::Result<usize>) {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut block = [0; 1 << 16];
        let mut got = 0;
        loop {
            match socket.read(&mut block) {
                Ok(count @ 1..) => got += count as u64,
                end => return (got, end),
            }
        }
    }

    fn metered() -> (Arc<SessionControl>, LaneHandoff) {
        let control = SessionControl::metered(|| ());
        control.allow(1 << 50);
        let handoff = LaneHandoff::new(Arc::clone(&control), 1).unwrap();
        (control, handoff)
    }

    /// The maximum number of bytes that a TCP window probe may carry between the last count and the reset.
    const PROBE: u64 = 64 << 10;

    /// A way in which a connection is given up: its description in words, and the code that does it.
    type End = (&'static str, fn(&LaneHandoff));

    #[test]
    fn what_is_queued_when_a_connection_is_given_up_is_never_sent() {
        let ends: [End; 3] = [
            ("the child was killed", |handoff| handoff.set_exit(0, ChildExit::default())),
            ("the next test begins", |handoff| handoff.next_test(1)),
            ("the lane ends", |handoff| {
                handoff.close();
                handoff.close_connections();
            }),
        ];
        for (why, end) in ends {
            for closes_first in [false, true] {
                let (control, handoff) = metered();
                let (of_child, appliance) = accepted(&handoff);
                let written = fill(&of_child);
                if closes_first {
                    handoff.close_descriptor(OF_CHILD);
                }
                drop(of_child);
                end(&handoff);
                let (got, ended) = read_all(&appliance);
                let context = format!("{why}, closes first: {closes_first}: {got} of {written} bytes, {ended:?}");
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{context}");
                assert!(got < written, "{context}");
                assert!(got <= control.spent() + PROBE, "{context}, {} charged", control.spent());
            }
        }
    }

    #[test]
    fn a_copy_in_a_process_that_is_being_started_does_not_delay_the_reset() {
        for end in [|handoff: &LaneHandoff| handoff.set_exit(0, ChildExit::default()), LaneHandoff::close_connections] {
            let (control, handoff) = metered();
            let (of_child, appliance) = accepted(&handoff);
            let written = fill(&of_child);
            end(&handoff);
            let (got, ended) = read_all(&appliance);
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(got < written && got <= control.spent() + PROBE, "{got} of {written}, {} charged", control.spent());
            drop(of_child);
        }
    }

    #[test]
    fn a_connection_that_a_child_passed_to_its_listener_is_reset_too() {
        let (control, handoff) = metered();
        let (of_child, appliance) = accepted(&handoff);
        let written = fill(&of_child);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = SendAncillaryBuffer::new(&mut space);
        let copies = [of_child.as_fd()];
        assert!(passed.push(SendAncillaryMessage::ScmRights(&copies)));
        sendmsg(&handoff.listener, &[io::IoSlice::new(b"x")], &mut passed, SendFlags::empty()).unwrap();
        drop(of_child);
        handoff.set_exit(0, ChildExit::default());
        let (got, ended) = read_all(&appliance);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(got < written && got <= control.spent() + PROBE, "{got} of {written}, {} charged", control.spent());
    }

    #[test]
    fn a_connection_that_outlives_its_test_in_a_late_child_is_reset_when_that_child_ends() {
        let (control, handoff) = metered();
        let (of_child, appliance) = accepted(&handoff);
        let sleeper = Echo::start();
        assert!(handoff.set_child(sleeper.pid()));
        let written = fill(&of_child);
        handoff.next_test(1);
        drop(of_child);
        let (got, ended) = read_all(&appliance);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(got < written && got <= control.spent() + PROBE, "{got} of {written}, {} charged", control.spent());
    }

    #[test]
    fn a_client_reads_all_that_a_child_queued_before_it_closed_and_all_of_it_is_charged() {
        let (control, handoff) = metered();
        let (of_child, appliance) = accepted(&handoff);
        let written = fill(&of_child);
        handoff.close_descriptor(OF_CHILD);
        let measured = handoff.look()[0].sent;
        assert!(measured < written, "{measured} of {written}");
        drop(of_child);
        let (got, ended) = read_all(&appliance);
        assert_eq!((got, ended.unwrap()), (written, 0));
        assert!(handoff.account().is_some(), "it is counted until the test ends");
        handoff.set_exit(0, ChildExit::default());
        // The kernel counts the end as one acknowledged byte.
        assert!((written..=written + 1).contains(&control.spent()), "{} of {written}", control.spent());
        assert_eq!(handoff.look()[0].sent, measured, "the measurement ended when the child closed it");
    }

    #[test]
    fn a_connection_that_was_sent_completely_is_not_reset() {
        let (control, handoff) = metered();
        let (of_child, appliance) = accepted(&handoff);
        (&of_child).write_all(b"results").unwrap();
        drop(of_child);
        handoff.set_exit(0, ChildExit::default());
        let (got, ended) = read_all(&appliance);
        assert_eq!((got, ended.unwrap(), control.spent()), (7, 0, 7));
    }

    #[test]
    fn a_child_whose_close_is_interrupted_cannot_use_its_connection() {
        let (_, handoff) = metered();
        let (of_child, appliance) = accepted(&handoff);
        handoff.close_descriptor(OF_CHILD);
        assert_eq!((&of_child).write(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(matches!(read_all(&appliance), (0, Ok(0))));
    }

    #[test]
    fn a_test_has_one_control_connection_and_its_streams_all_with_one_cookie() {
        let handoff = handoff(2);
        let (own, foreign) = (cookie(b'a'), cookie(b'b'));
        assert_eq!(handoff.authenticate(own), Some(ConnectionKind::Control));
        assert_eq!(handoff.authenticate(foreign), None);
        assert_eq!(handoff.authenticate(own), Some(ConnectionKind::Stream));
        assert_eq!(handoff.authenticate(own), Some(ConnectionKind::Stream));
        assert_eq!(handoff.authenticate(own), None, "no more streams than granted");
        handoff.next_test(1);
        assert_eq!(
            handoff.authenticate(foreign),
            Some(ConnectionKind::Control),
            "the next test has a cookie of its own"
        );
    }

    #[test]
    fn the_child_is_notified_once_of_each_connection() {
        let handoff = handoff(1);
        let notified = || rustix::net::recv(&handoff.listener, &mut [0; 8], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        assert!(notified().is_err());
        handoff.add(ConnectionKind::Control, connection()).unwrap();
        handoff.add(ConnectionKind::Stream, connection()).unwrap();
        assert_eq!(notified().unwrap().0, 2);
        assert_eq!(handoff.open_streams().1, 1);
        assert!(handoff.take().is_some() && handoff.take().is_some() && handoff.take().is_none());
        assert!(notified().is_err());
    }

    #[test]
    fn the_fewer_bytes_are_leased_the_shorter_is_the_interval() {
        assert_eq!(look_interval(1_000_000, None), MAX_LOOK_INTERVAL);
        assert_eq!(look_interval(0, Some(u64::MAX)), MIN_LOOK_INTERVAL);
        assert_eq!(look_interval(1_000_000, Some(1_000_000)), MAX_LOOK_INTERVAL);
        assert_eq!(look_interval(1_000_000, Some(50_000)), Duration::from_millis(25));
        assert_eq!(look_interval(u64::MAX, Some(0)), MIN_LOOK_INTERVAL);
    }

    /// A `cat` that echoes its input unless it is stopped.
    struct Echo(std::process::Child);

    impl Echo {
        fn start() -> Self {
            let mut cat = std::process::Command::new("cat");
            cat.stdin(Stdio::piped()).stdout(Stdio::piped());
            Self(child::spawn(cat).unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }

        fn answers(&mut self) -> bool {
            let (Some(input), Some(output)) = (&mut self.0.stdin, &mut self.0.stdout) else { return false };
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            input.write_all(b"?").is_ok()
                && poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&limit)) == Ok(1)
                && matches!(output.read(&mut [0; 1]), Ok(1))
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_child_started_without_leased_bytes_is_stopped_until_the_next_lease() {
        let (mut echo, control) = (Echo::start(), SessionControl::metered(|| ()));
        let handoff = LaneHandoff::new(Arc::clone(&control), 1).unwrap();
        control.charge(1).unwrap();
        assert_eq!(handoff.account(), None, "there is no child yet");
        assert!(handoff.set_child(echo.pid()));
        // A next count is due even without a connection: nothing else would continue the stopped child.
        assert_eq!(handoff.account(), Some(STOPPED_LOOK_INTERVAL));
        let stopped = waitid(WaitId::Pid(echo.pid()), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
        assert!(stopped.unwrap().stopped());
        // The same is true of a child that follows a stopped one.
        assert!(handoff.set_child(echo.pid()));
        assert_eq!(handoff.account(), Some(STOPPED_LOOK_INTERVAL));
        control.allow(1);
        assert_eq!(handoff.account(), None);
        assert!(echo.answers());
    }

    #[test]
    fn a_lease_granted_while_the_child_is_being_stopped_continues_it() {
        const ROUNDS: usize = 200;
        let (mut echo, control) = (Echo::start(), SessionControl::metered(|| ()));
        let handoff = LaneHandoff::new(Arc::clone(&control), 1).unwrap();
        assert!(handoff.set_child(echo.pid()));
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
                echo.answers()
            });
            let answered = answered.count();
            control.cancel();
            lessor.join().unwrap();
            assert_eq!(answered, ROUNDS, "the child stays stopped although bytes are leased");
        });
    }

    #[test]
    fn no_connection_is_authenticated_after_the_child_has_exited() {
        let handoff = handoff(1);
        handoff.set_exit(0, ChildExit::default());
        assert_eq!(handoff.authenticate(cookie(b'a')), None);
        handoff.next_test(1);
        assert!(handoff.authenticate(cookie(b'a')).is_some());
        handoff.close();
        assert!(handoff.is_over() && !handoff.await_next(0));
    }
}
