//! What ties the threads of one session to its owner: when it was last heard of, what its bytes are charged to, and
//! how all of it is ended at once, also threads that stand in a system call.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

/// Shared by a session's owner and the threads that move its bytes.
pub struct Tether {
    began: Instant,
    /// Milliseconds since `began`.
    heard_ms: AtomicU64,
    cut: AtomicBool,
    allowance: Option<Allowance>,
    held: Mutex<Held>,
    /// Woken when the tether is cut or the allowance grows; guards nothing but the wait.
    changed: Condvar,
    waiting: Mutex<()>,
}

#[derive(Default)]
struct Held {
    next: u64,
    sockets: HashMap<u64, Socket>,
}

/// Bytes that may flow before more are leased.
struct Allowance {
    left: AtomicI64,
    spent: AtomicU64,
    /// Below this many bytes, more are asked for.
    low_water: AtomicI64,
    asked: AtomicBool,
    ask: Box<dyn Fn() + Send + Sync>,
}

impl Allowance {
    /// Takes `bytes` off, asks for more where little is left, and says what is left.
    fn charge(&self, bytes: u64) -> i64 {
        let charged = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.spent.fetch_add(bytes, Ordering::Relaxed);
        let left = self.left.fetch_sub(charged, Ordering::AcqRel).saturating_sub(charged);
        self.ask_below_low_water(left);
        left
    }

    fn ask_below_low_water(&self, left: i64) {
        if left < self.low_water.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            (self.ask)();
        }
    }
}

/// The tether was cut: the session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct Cut;

impl Tether {
    /// A tether whose bytes are not counted against anything: the appliance's.
    pub fn free() -> Arc<Self> {
        Arc::new(Self::with(None))
    }

    /// A tether whose bytes need an allowance. `ask` is called, from the byte path, each time less than the low-water
    /// mark is left; it must only send a wake-up. Answer with [`Tether::allow`].
    pub fn leased(ask: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self::with(Some(Allowance {
            left: AtomicI64::new(0),
            spent: AtomicU64::new(0),
            low_water: AtomicI64::new(0),
            asked: AtomicBool::new(false),
            ask: Box::new(ask),
        })))
    }

    fn with(allowance: Option<Allowance>) -> Self {
        Self {
            began: Instant::now(),
            heard_ms: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            allowance,
            held: Mutex::default(),
            changed: Condvar::new(),
            waiting: Mutex::new(()),
        }
    }

    /// Something of the other end arrived, on any connection of the session.
    pub fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// When something of the other end last arrived.
    pub fn last_heard(&self) -> Instant {
        self.began + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    /// Ends the session's work: every held socket is shut down, every waiting thread woken. Can't be undone.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for socket in lock(&self.held).sockets.values() {
            // A socket that is closed already has nothing left to end.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.wake();
    }

    /// Whether the session's work is to end.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Makes `socket` end when the tether is cut, for as long as the answer lives.
    pub fn hold<'a>(self: &Arc<Self>, socket: impl Into<SockRef<'a>>) -> io::Result<Hold> {
        let socket = socket.into().try_clone()?;
        let mut held = lock(&self.held);
        if self.cut.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Cut));
        }
        let id = held.next;
        held.next += 1;
        held.sockets.insert(id, socket);
        Ok(Hold { tether: Arc::clone(self), id })
    }

    /// Charges `bytes` that flowed. Waits, when more have flowed than were allowed, until the allowance covers them;
    /// so a thread is never ahead by more than what it passes here at once.
    pub fn spend(&self, bytes: u64) -> Result<(), Cut> {
        if let Some(allowance) = &self.allowance
            && allowance.charge(bytes) < 0
        {
            self.await_allowance(allowance)?;
        }
        if self.is_cut() { Err(Cut) } else { Ok(()) }
    }

    /// Charges `bytes` that flow now, for a thread that must not wait: it serves others too, and its lateness would pass
    /// for the path's. What is not covered is owed, and the next lease pays for it before the others go on. For what is
    /// small beside any lease.
    pub fn owe(&self, bytes: u64) -> Result<(), Cut> {
        if let Some(allowance) = &self.allowance {
            allowance.charge(bytes);
        }
        if self.is_cut() { Err(Cut) } else { Ok(()) }
    }

    fn await_allowance(&self, allowance: &Allowance) -> Result<(), Cut> {
        let mut waiting = lock(&self.waiting);
        while allowance.left.load(Ordering::Acquire) < 0 {
            if self.is_cut() {
                return Err(Cut);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Lets `bytes` more flow, and asks for more once less than half of them is left; with 0 once nothing is left.
    pub fn allow(&self, bytes: u64) {
        if let Some(allowance) = &self.allowance {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            allowance.low_water.store(bytes / 2, Ordering::Relaxed);
            allowance.asked.store(false, Ordering::Release);
            let left = allowance.left.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
            // Many threads at once may be further ahead than this slice reaches. All of them wait then, so that none
            // of them would ever ask again.
            allowance.ask_below_low_water(left);
            self.wake();
        }
    }

    /// Whether more flowed than was allowed: threads wait.
    pub fn is_dry(&self) -> bool {
        self.allowance.as_ref().is_some_and(|allowance| allowance.left.load(Ordering::Acquire) < 0)
    }

    /// Payload bytes that may flow before more have to be leased; absent where nothing is counted.
    pub fn left(&self) -> Option<u64> {
        let left = self.allowance.as_ref()?.left.load(Ordering::Acquire);
        Some(u64::try_from(left).unwrap_or(0))
    }

    /// Payload bytes charged so far; 0 where nothing is counted.
    pub fn spent(&self) -> u64 {
        self.allowance.as_ref().map_or(0, |allowance| allowance.spent.load(Ordering::Relaxed))
    }

    /// Waits until the tether is cut, `deadline` is reached, or `done` says so; looked at again after each
    /// [`Tether::wake`].
    pub fn wait_until(&self, deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
        let mut waiting = lock(&self.waiting);
        loop {
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_cut() || left.is_zero() {
                return false;
            }
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets everyone in [`Tether::wait_until`] look again.
    pub fn wake(&self) {
        // Taking the lock closes the gap between a waiter's look and its sleep.
        drop(lock(&self.waiting));
        self.changed.notify_all();
    }
}

/// While this lives, cutting the tether ends the socket.
pub struct Hold {
    tether: Arc<Tether>,
    id: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.tether.held).sockets.remove(&self.id);
    }
}

/// A lock that survives a panicking holder: nothing guarded here can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn cutting_wakes_a_thread_that_reads() {
        let tether = Tether::free();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        let _hold = tether.hold(&ours).unwrap();
        let reader = std::thread::spawn(move || io::Read::read(&mut &ours, &mut [0; 1]).unwrap());
        tether.cut();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(tether.hold(&listener).is_err());
    }

    #[test]
    fn bytes_beyond_the_allowance_wait_for_more() {
        let (asks, asked) = mpsc::channel();
        let tether = Tether::leased(move || asks.send(()).unwrap());
        tether.allow(1000);
        tether.spend(400).unwrap();
        assert!(asked.try_recv().is_err());
        tether.spend(200).unwrap();
        asked.recv().unwrap();
        let spender = {
            let tether = Arc::clone(&tether);
            std::thread::spawn(move || tether.spend(1400))
        };
        tether.allow(1000);
        spender.join().unwrap().unwrap();
        assert_eq!(tether.spent(), 2000);
        assert_eq!((tether.left(), Tether::free().left()), (Some(0), None));
        tether.owe(1).unwrap();
        assert_eq!(tether.spent(), 2001, "who must not wait is charged all the same");
        let waiting = {
            let tether = Arc::clone(&tether);
            std::thread::spawn(move || tether.spend(1))
        };
        tether.cut();
        assert_eq!(waiting.join().unwrap(), Err(Cut));
    }

    #[test]
    fn an_allowance_that_does_not_reach_is_asked_for_again() {
        let (asks, asked) = mpsc::channel();
        let tether = Tether::leased(move || asks.send(()).unwrap());
        tether.allow(1000);
        let spender = {
            let tether = Arc::clone(&tether);
            std::thread::spawn(move || tether.spend(10_000))
        };
        for _ in 0..9 {
            asked.recv_timeout(Duration::from_secs(10)).unwrap();
            tether.allow(1000);
        }
        spender.join().unwrap().unwrap();
    }

    #[test]
    fn where_nothing_more_is_to_come_all_that_is_left_may_flow_before_it_is_asked_for_again() {
        let (asks, asked) = mpsc::channel();
        let tether = Tether::leased(move || asks.send(()).unwrap());
        tether.allow(1000);
        tether.spend(600).unwrap();
        asked.recv().unwrap();
        tether.allow(0);
        tether.spend(400).unwrap();
        assert!(asked.try_recv().is_err());
        tether.owe(1).unwrap();
        asked.recv().unwrap();
    }
}
