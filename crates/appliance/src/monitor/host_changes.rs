//! Changes of the host itself: it sleeps, its clock is set, its network changes. None of these is an outage of a target
//! that a monitor probes.

use std::time::Duration;

/// If two readings are further apart than this, the host or this process was stopped, and not only busy.
const STOPPED: Duration = Duration::from_secs(10);
/// The smallest step of the system clock that is noticed, in microseconds.
const CLOCK_STEP_US: u64 = 1_000_000;

/// The state of the host at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReading {
    /// The time since boot, including the time that the host was asleep.
    pub since_boot: Duration,
    /// The system clock, in microseconds since 1970.
    pub wall_us: i64,
    /// The default routes, each as interface and gateway.
    pub routes: Vec<(String, String)>,
}

/// A change of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// The host slept, or did not run this process, for this long.
    Stopped(Duration),
    /// The system clock was set forward by this many microseconds; backward if negative.
    ClockSet(i64),
    /// The default route of the host changed.
    NetworkChanged,
}

/// Compares readings of the host that are taken at least once a second.
#[derive(Debug, Default)]
pub struct HostWatch {
    last: Option<HostReading>,
}

impl HostWatch {
    /// The changes since the last reading.
    pub fn look(&mut self, now: HostReading) -> Vec<HostChange> {
        let mut changes = Vec::new();
        if let Some(last) = &self.last {
            let elapsed = now.since_boot.saturating_sub(last.since_boot);
            if elapsed > STOPPED {
                changes.push(HostChange::Stopped(elapsed));
            }
            let elapsed_us = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
            let step_us = now.wall_us.saturating_sub(last.wall_us).saturating_sub(elapsed_us);
            if step_us.unsigned_abs() >= CLOCK_STEP_US {
                changes.push(HostChange::ClockSet(step_us));
            }
            // Without any route nothing is reachable, which is an outage. A different route leads to different targets.
            let is_other = now.routes != last.routes && !now.routes.is_empty() && !last.routes.is_empty();
            if is_other {
                changes.push(HostChange::NetworkChanged);
            }
        }
        let routes = match (&self.last, now.routes.is_empty()) {
            // Keeps the routes from before the loss, because the same routes may come back.
            (Some(last), true) => last.routes.clone(),
            _ => now.routes.clone(),
        };
        self.last = Some(HostReading { routes, ..now });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(since_boot_s: u64, wall_s: i64, gateway: &str) -> HostReading {
        let routes = if gateway.is_empty() { vec![] } else { vec![("eth0".to_owned(), gateway.to_owned())] };
        let since_boot = Duration::from_secs(since_boot_s);
        HostReading { since_boot, wall_us: wall_s * 1_000_000, routes }
    }

    #[test]
    fn sleep_clock_steps_and_other_routes_are_noticed() {
        let mut watch = HostWatch::default();
        assert_eq!(watch.look(at(10, 100, "192.0.2.1")), []);
        assert_eq!(watch.look(at(11, 101, "192.0.2.1")), []);
        assert_eq!(watch.look(at(131, 221, "192.0.2.1")), [HostChange::Stopped(Duration::from_secs(120))]);
        assert_eq!(watch.look(at(132, 222 + 31_536_000, "192.0.2.1")), [HostChange::ClockSet(31_536_000_000_000)]);
        assert_eq!(watch.look(at(133, 223, "192.0.2.1")), [HostChange::ClockSet(-31_536_000_000_000)]);
        assert_eq!(watch.look(at(134, 224, "198.51.100.1")), [HostChange::NetworkChanged]);
    }

    #[test]
    fn a_lost_route_that_comes_back_is_no_change_of_the_network() {
        let mut watch = HostWatch::default();
        assert_eq!(watch.look(at(10, 100, "192.0.2.1")), []);
        assert_eq!(watch.look(at(11, 101, "")), []);
        assert_eq!(watch.look(at(12, 102, "192.0.2.1")), []);
        assert_eq!(watch.look(at(13, 103, "")), []);
        assert_eq!(watch.look(at(14, 104, "198.51.100.1")), [HostChange::NetworkChanged]);
        assert_eq!(watch.look(at(15, 104, "198.51.100.1")), [HostChange::ClockSet(-1_000_000)]);
    }
}
