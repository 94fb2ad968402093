//! The state that the owner and the threads of one session share: cancellation, liveness and the byte budget.
//! Cancelling also wakes threads that wait in a system call.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

use crate::byte_budget::ByteBudget;
use crate::thread_limit::ThreadLimitReached;

/// The state that a session's owner shares with the threads that move the session's bytes.
pub struct SessionControl {
    began: Instant,
    /// When the other end last sent something, in milliseconds since `began`.
    heard_ms: AtomicU64,
    is_cancelled: AtomicBool,
    /// When the appliance ended the running phase early, in nanoseconds since `began`; [`NOT_STOPPED`] if it did not.
    stopped_ns: AtomicU64,
    budget: Option<ByteBudget>,
    registered: Mutex<Registered>,
    /// Wakes waiting threads: notified on a cancellation, on a new lease, and by every other call of
    /// [`SessionControl::wake`].
    changed: Condvar,
    waiting: Mutex<()>,
    /// The error with which this host refused to start a thread of the session, if it refused one.
    refused_thread: OnceLock<ThreadLimitReached>,
}

/// The value of `stopped_ns` while the appliance has not ended the phase early.
const NOT_STOPPED: u64 = u64::MAX;

/// The sockets that are shut down when the session is cancelled.
#[derive(Default)]
struct Registered {
    next: u64,
    sockets: HashMap<u64, Socket>,
}

/// The error of a call that fails because the session was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct Cancelled;

impl SessionControl {
    /// A control for a session without a byte budget, for example at the appliance.
    pub fn unmetered() -> Arc<Self> {
        Arc::new(Self::with(None))
    }

    /// A control for a session whose byte budget starts at 0 bytes. [`SessionControl::allow`] extends it. When the
    /// budget falls below its low-water mark, a thread that moves bytes calls `request`, which must only wake the
    /// thread that extends the budget.
    pub fn metered(request: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self::with(Some(ByteBudget::new(request))))
    }

    #[expect(clippy::disallowed_methods, reason = "liveness is measured in wall time")]
    fn with(budget: Option<ByteBudget>) -> Self {
        Self {
            began: Instant::now(),
            heard_ms: AtomicU64::new(0),
            is_cancelled: AtomicBool::new(false),
            stopped_ns: AtomicU64::new(NOT_STOPPED),
            budget,
            registered: Mutex::default(),
            changed: Condvar::new(),
            waiting: Mutex::new(()),
            refused_thread: OnceLock::new(),
        }
    }

    /// Records `error` if it means that this host refused to start a thread or a process. Keeps only the first such
    /// error.
    pub fn note_thread_error(&self, error: &io::Error) {
        if let Some(refused) = ThreadLimitReached::of(error) {
            self.refused_thread.get_or_init(|| refused.clone());
        }
    }

    /// The error with which this host refused to start a thread of the session, if it refused one.
    pub fn refused_thread(&self) -> Option<&ThreadLimitReached> {
        self.refused_thread.get()
    }

    /// Records that the other end has just sent something, on any connection of the session.
    pub fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// When the other end last sent something.
    pub fn last_heard(&self) -> Instant {
        self.began + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    /// Cancels the session for good: shuts down every registered socket and wakes every waiting thread.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        for socket in lock(&self.registered).sockets.values() {
            // Fails only on a socket that is already closed.
            socket.shutdown(Shutdown::Both).ok();
        }
        self.wake();
    }

    /// Ends the running phase before its planned end: the senders end their streams. Has no effect on a later phase.
    pub fn stop_phase(&self) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(NOT_STOPPED);
        self.stopped_ns.fetch_min(now, Ordering::SeqCst);
        self.wake();
    }

    /// Begins a phase: discards the request that stopped an earlier phase, if there was one.
    pub(crate) fn begin_phase(&self) {
        self.stopped_ns.store(NOT_STOPPED, Ordering::SeqCst);
    }

    /// When the appliance ended the running phase early; `None` if it did not.
    pub(crate) fn phase_stopped_at(&self) -> Option<Instant> {
        let stopped_ns = self.stopped_ns.load(Ordering::Relaxed);
        (stopped_ns != NOT_STOPPED).then(|| self.began + Duration::from_nanos(stopped_ns))
    }

    /// Whether the session was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Registers `socket`. If the session is cancelled while the returned value exists, the socket is shut down. Fails
    /// with `ConnectionAborted` if the session is already cancelled.
    pub fn register<'a>(self: &Arc<Self>, socket: impl Into<SockRef<'a>>) -> io::Result<Registration> {
        let socket = socket.into().try_clone()?;
        let mut registered = lock(&self.registered);
        if self.is_cancelled.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled));
        }
        let id = registered.next;
        registered.next += 1;
        registered.sockets.insert(id, socket);
        Ok(Registration { control: Arc::clone(self), id })
    }

    /// Charges `bytes` that were moved, and waits while the budget is exhausted. So a thread exceeds the budget by at
    /// most the `bytes` of one call.
    pub fn charge_and_wait(&self, bytes: u64) -> Result<(), Cancelled> {
        if let Some(budget) = &self.budget
            && budget.charge(bytes) < 0
        {
            self.await_budget(budget)?;
        }
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Charges `bytes` without waiting, for a thread that also serves other sessions or whose delay would look like
    /// delay of the path. Bytes beyond the budget become a debt, which the next [`SessionControl::allow`] pays first.
    /// Use this function only for amounts that are small compared with the bytes that one `allow` adds.
    pub fn charge(&self, bytes: u64) -> Result<(), Cancelled> {
        if let Some(budget) = &self.budget {
            budget.charge(bytes);
        }
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    fn await_budget(&self, budget: &ByteBudget) -> Result<(), Cancelled> {
        let mut waiting = lock(&self.waiting);
        while budget.is_exhausted() {
            if self.is_cancelled() {
                return Err(Cancelled);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Extends the budget by `bytes`. Half of `bytes` becomes the low-water mark: once fewer bytes are left, the budget
    /// requests more. With a mark of 0, it requests more once it is overdrawn.
    pub fn allow(&self, bytes: u64) {
        if let Some(budget) = &self.budget {
            budget.extend(bytes);
            self.wake();
        }
    }

    /// Whether more bytes were charged than the budget covers. If so, threads in [`SessionControl::charge_and_wait`]
    /// are blocked.
    pub fn is_exhausted(&self) -> bool {
        self.budget.as_ref().is_some_and(ByteBudget::is_exhausted)
    }

    /// The bytes that are left of the session's budget; `None` without a budget.
    pub fn left(&self) -> Option<u64> {
        self.budget.as_ref().map(ByteBudget::left)
    }

    /// The number of bytes charged to the session so far; 0 without a budget.
    pub fn spent(&self) -> u64 {
        self.budget.as_ref().map_or(0, ByteBudget::spent)
    }

    /// Waits until `is_done` returns true, and then returns true. Returns false at `deadline`, or when the session is
    /// cancelled. Evaluates `is_done` again after each [`SessionControl::wake`].
    #[expect(clippy::disallowed_methods, reason = "waits for wall time")]
    pub fn wait_until(&self, deadline: Instant, mut is_done: impl FnMut() -> bool) -> bool {
        let mut waiting = lock(&self.waiting);
        loop {
            if is_done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_cancelled() || left.is_zero() {
                return false;
            }
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes every thread in [`SessionControl::wait_until`] evaluate its condition again.
    pub fn wake(&self) {
        // The lock closes the gap between a waiter's check and its sleep.
        drop(lock(&self.waiting));
        self.changed.notify_all();
    }
}

/// A registered socket. Dropping this value removes the socket from its session; the socket stays open.
pub struct Registration {
    control: Arc<SessionControl>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.control.registered).sockets.remove(&self.id);
    }
}

/// Locks `mutex`. Ignores poisoning, because a panic cannot leave the guarded data inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn cancelling_wakes_a_thread_that_reads() {
        let control = SessionControl::unmetered();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        let _registration = control.register(&ours).unwrap();
        let reader = std::thread::spawn(move || io::Read::read(&mut &ours, &mut [0; 1]).unwrap());
        control.cancel();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(control.register(&listener).is_err());
    }

    #[test]
    fn bytes_beyond_the_budget_wait_for_a_lease() {
        let (requests, requested) = mpsc::channel();
        let control = SessionControl::metered(move || requests.send(()).unwrap());
        control.allow(1000);
        control.charge_and_wait(400).unwrap();
        assert!(requested.try_recv().is_err());
        control.charge_and_wait(200).unwrap();
        requested.recv().unwrap();
        let spender = {
            let control = Arc::clone(&control);
            std::thread::spawn(move || control.charge_and_wait(1400))
        };
        control.allow(1000);
        spender.join().unwrap().unwrap();
        assert_eq!(control.spent(), 2000);
        assert_eq!((control.left(), SessionControl::unmetered().left()), (Some(0), None));
        control.charge(1).unwrap();
        assert_eq!(control.spent(), 2001, "a charge that does not wait counts too");
        let waiting = {
            let control = Arc::clone(&control);
            std::thread::spawn(move || control.charge_and_wait(1))
        };
        control.cancel();
        assert_eq!(waiting.join().unwrap(), Err(Cancelled));
    }

    #[test]
    fn a_budget_that_stays_exhausted_is_requested_again() {
        let (requests, requested) = mpsc::channel();
        let control = SessionControl::metered(move || requests.send(()).unwrap());
        control.allow(1000);
        let spender = {
            let control = Arc::clone(&control);
            std::thread::spawn(move || control.charge_and_wait(10_000))
        };
        for _ in 0..9 {
            requested.recv_timeout(Duration::from_secs(10)).unwrap();
            control.allow(1000);
        }
        spender.join().unwrap().unwrap();
    }

    #[test]
    fn after_an_extension_of_0_the_rest_is_used_up_before_the_next_request() {
        let (requests, requested) = mpsc::channel();
        let control = SessionControl::metered(move || requests.send(()).unwrap());
        control.allow(1000);
        control.charge_and_wait(600).unwrap();
        requested.recv().unwrap();
        control.allow(0);
        control.charge_and_wait(400).unwrap();
        assert!(requested.try_recv().is_err());
        control.charge(1).unwrap();
        requested.recv().unwrap();
    }
}
