//! A monotonic clock that starts at zero, a timer that ticks on an absolute schedule, and an event that ends a wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

const NANOS: u64 = 1_000_000_000;

/// A clock that reads `CLOCK_MONOTONIC` relative to its own start, so that its times do not reveal the host's uptime.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    zero_ns: u64,
}

impl Clock {
    /// A clock that is at zero now.
    pub fn start() -> Self {
        Self { zero_ns: monotonic_ns() }
    }

    /// Nanoseconds since the clock was started.
    pub fn now_ns(&self) -> u64 {
        monotonic_ns() - self.zero_ns
    }

    /// Converts a time of `CLOCK_MONOTONIC` to nanoseconds since this clock was started; 0 for a time before the start.
    pub fn at(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_sub(self.zero_ns)
    }
}

/// The current time of `CLOCK_MONOTONIC` in nanoseconds. The time is never negative, so the casts are exact.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * NANOS + now.tv_nsec.cast_unsigned()
}

/// A timer that becomes readable at absolute times of a [`Clock`]. Unlike a sleep or a poll with a timeout, it has no
/// timer slack.
pub struct Timer {
    fd: OwnedFd,
    clock: Clock,
}

impl Timer {
    /// A timer that is not armed yet.
    pub fn new(clock: Clock) -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, clock })
    }

    /// Arms the timer: it ticks at `first_ns` of the clock, and then every `interval`.
    pub fn tick(&self, first_ns: u64, interval: Duration) -> io::Result<()> {
        let spec = Itimerspec {
            it_interval: timespec(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX)),
            // At least 1 ns, because an `it_value` of 0 disarms the timer (timerfd_settime(2)).
            it_value: timespec(self.clock.zero_ns.saturating_add(first_ns).max(1)),
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &spec)?;
        Ok(())
    }

    /// Clears the ticks that have expired since the last call, and returns whether there were any.
    pub fn clear(&self) -> bool {
        // A read fails if there was no tick.
        rustix::io::read(&self.fd, &mut [0; 8]).is_ok()
    }
}

fn timespec(nanos: u64) -> Timespec {
    // Both numbers fit in an `i64`: 2^64 ns are below 2^35 s.
    Timespec { tv_sec: (nanos / NANOS).cast_signed(), tv_nsec: (nanos % NANOS).cast_signed() }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An event with which one thread ends another thread's [`wait`].
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    pub(crate) fn wake(&self) {
        // Fails only if the counter is full; then the other thread wakes anyway.
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).ok();
    }

    /// Discards earlier wake-ups, so that they do not end the next [`wait`].
    pub(crate) fn clear(&self) {
        rustix::io::read(&self.0, &mut [0; 8]).ok();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is ready, and returns the events of each descriptor. Errors and hang-ups are events too.
pub fn wait<const N: usize>(fds: [(BorrowedFd<'_>, PollFlags); N]) -> io::Result<[PollFlags; N]> {
    let mut polled = fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    loop {
        match poll(&mut polled, None) {
            Ok(_) => return Ok(polled.map(|fd| fd.revents())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_never_ticks_before_its_time() {
        let clock = Clock::start();
        let timer = Timer::new(clock).unwrap();
        let first = clock.now_ns() + 2_000_000;
        timer.tick(first, Duration::from_millis(1)).unwrap();
        for tick in 0..3 {
            wait([(timer.as_fd(), PollFlags::IN)]).unwrap();
            assert!(timer.clear());
            assert!(clock.now_ns() >= first + tick * 1_000_000);
        }
    }

    #[test]
    fn a_time_in_the_past_ticks_at_once() {
        let timer = Timer::new(Clock::start()).unwrap();
        timer.tick(0, Duration::from_secs(3600)).unwrap();
        assert_eq!(wait([(timer.as_fd(), PollFlags::IN)]).unwrap(), [PollFlags::IN]);
    }

    #[test]
    fn a_wake_up_ends_a_later_wait() {
        let wake = Wake::new().unwrap();
        wake.wake();
        assert_eq!(wait([(wake.as_fd(), PollFlags::IN)]).unwrap(), [PollFlags::IN]);
        wake.clear();
        assert_eq!(rustix::io::read(&wake.0, &mut [0; 8]), Err(Errno::AGAIN));
    }
}
