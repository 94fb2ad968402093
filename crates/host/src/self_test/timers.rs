//! Measures how late the timer of the latency probes expires on this host.

use std::io;
use std::time::Duration;

use paramedic_engines::clock::{Clock, Timer, wait};
use paramedic_report::self_test::Timers;
use paramedic_report::stats::percentile;
use rustix::event::PollFlags;
use std::os::fd::AsFd;

/// Measures `expirations` expirations of the timer, one per millisecond. The schedule is absolute, so a late expiration
/// does not delay the next ones.
pub(super) fn measure(expirations: u32) -> io::Result<Timers> {
    const APART: Duration = Duration::from_millis(1);
    let clock = Clock::start();
    let timer = Timer::new(clock)?;
    let mut late_us = Vec::new();
    let mut due_ns = clock.now_ns();
    for _ in 0..expirations {
        due_ns += u64::try_from(APART.as_nanos()).unwrap_or(u64::MAX);
        timer.tick(due_ns, Duration::ZERO)?;
        wait([(timer.as_fd(), PollFlags::IN)])?;
        late_us.push(clock.now_ns().saturating_sub(due_ns) / 1000);
        timer.clear();
    }
    late_us.sort_unstable();
    let at = |permille| percentile(&late_us, permille).unwrap_or(0);
    Ok(Timers {
        rings: expirations,
        late_p50_us: at(500),
        late_p99_us: at(990),
        late_max_us: late_us.last().copied().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_expires_the_requested_number_of_times() {
        let timers = measure(20).unwrap();
        assert_eq!(timers.rings, 20);
        assert!(timers.late_p50_us <= timers.late_p99_us && timers.late_p99_us <= timers.late_max_us);
        assert_eq!(measure(0).unwrap().late_max_us, 0);
    }
}
