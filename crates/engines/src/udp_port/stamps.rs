//! Converts the kernel's timestamps of datagrams from the wall clock to the monotonic clock. The wall clock can be set
//! at any time. Timestamps from before such a change cannot be converted. Only [`ClockPair::read`] reads a clock.

use rustix::time::{ClockId, clock_gettime};

/// If the offset between the clocks changes by more than this, in nanoseconds, the wall clock was set. Smaller changes
/// are reading errors.
const LEAST_SET_NS: i64 = 1_000_000;
/// Readings of the two clocks count as simultaneous if they are at most this far apart, in nanoseconds.
const CLOSE_NS: i64 = 10_000;
/// The maximum number of times that both clocks are read to get simultaneous readings.
const TRIES: usize = 4;

/// Readings of the monotonic clock and the wall clock at about the same moment, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockPair {
    /// The reading of the monotonic clock (`CLOCK_MONOTONIC`).
    pub(crate) monotonic_ns: i64,
    /// The reading of the wall clock (`CLOCK_REALTIME`).
    pub(crate) wall_ns: i64,
    /// The time that it took to read both clocks.
    pub(crate) apart_ns: i64,
}

impl ClockPair {
    /// Reads the monotonic clock and the wall clock at about the same moment.
    pub(crate) fn read() -> Self {
        let mut closest = Self::read_once();
        for _ in 1..TRIES {
            if closest.apart_ns <= CLOSE_NS {
                break;
            }
            // The readings are far apart: this thread was not running in between.
            let again = Self::read_once();
            if again.apart_ns < closest.apart_ns {
                closest = again;
            }
        }
        closest
    }

    fn read_once() -> Self {
        let now = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
        };
        let before = now(ClockId::Monotonic);
        let wall_ns = now(ClockId::Realtime);
        let apart_ns = now(ClockId::Monotonic) - before;
        Self { monotonic_ns: before + apart_ns / 2, wall_ns, apart_ns }
    }

    fn offset_ns(&self) -> i64 {
        self.wall_ns.saturating_sub(self.monotonic_ns)
    }
}

/// Converts the kernel's timestamps of one socket from the wall clock to the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StampConverter {
    /// The offset between the clocks: the wall clock minus the monotonic clock.
    offset_ns: i64,
    /// `offset_ns` is valid from this time of the monotonic clock on.
    since_ns: i64,
}

impl StampConverter {
    pub(crate) fn new(now: ClockPair) -> Self {
        Self { offset_ns: now.offset_ns(), since_ns: now.monotonic_ns }
    }

    /// Converts the timestamp `stamp_ns`, which the kernel made before `now`, to nanoseconds of the monotonic clock.
    /// Returns `None` if the wall clock may have been set since the timestamp was made.
    pub(crate) fn convert(&mut self, stamp_ns: i64, now: ClockPair) -> Option<u64> {
        let moved_ns = now.offset_ns().saturating_sub(self.offset_ns).saturating_abs();
        if moved_ns > LEAST_SET_NS.saturating_add(now.apart_ns) {
            *self = Self::new(now);
        } else if now.apart_ns <= CLOSE_NS {
            self.offset_ns = now.offset_ns();
        }
        let at_ns = stamp_ns.saturating_sub(self.offset_ns);
        let latest_ns = now.monotonic_ns.saturating_add(LEAST_SET_NS);
        // A reading error must not put an arrival into the future.
        let at_ns = (self.since_ns..=latest_ns).contains(&at_ns).then(|| at_ns.min(now.monotonic_ns));
        at_ns.and_then(|at_ns| u64::try_from(at_ns).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const MS: i64 = 1_000_000;

    /// Readings of both clocks at `monotonic_ns`, with the wall clock ahead by `offset_ns`.
    fn at(monotonic_ns: i64, offset_ns: i64) -> ClockPair {
        ClockPair { monotonic_ns, wall_ns: monotonic_ns + offset_ns, apart_ns: 100 }
    }

    #[test]
    fn a_stamp_is_converted_however_long_the_datagram_waited() {
        let offset = 1_700_000_000 * SECOND;
        let mut stamps = StampConverter::new(at(10 * SECOND, offset));
        for waited in [0, 1_000, 30 * MS, 2 * SECOND, 60 * SECOND] {
            let now = 100 * SECOND;
            let arrived = now - waited;
            assert_eq!(stamps.convert(arrived + offset, at(now, offset)), u64::try_from(arrived).ok(), "{waited}");
        }
        // Errors of reading the clocks are tolerated.
        assert_eq!(stamps.convert(200 * SECOND + offset + 300, at(200 * SECOND, offset)), Some(200_000_000_000));
        let apart = ClockPair { apart_ns: 40 * MS, wall_ns: 300 * SECOND + offset + 20 * MS, ..at(300 * SECOND, 0) };
        assert_eq!(stamps.convert(299 * SECOND + offset, apart), Some(299_000_000_000), "not taken for a set clock");
    }

    #[test]
    fn a_wall_clock_that_was_set_spoils_the_stamps_of_that_moment_only() {
        for step in [-3600 * SECOND, -3 * SECOND, -5 * MS, 5 * MS, 3 * SECOND, 3600 * SECOND] {
            let offset = 1_700_000_000 * SECOND;
            let mut stamps = StampConverter::new(at(10 * SECOND, offset));
            assert_eq!(stamps.convert(20 * SECOND + offset, at(20 * SECOND, offset)), Some(20_000_000_000));
            // The wall clock is set at 30 s. A datagram that arrived before has a timestamp of the old wall clock, but
            // is read after.
            let set = offset + step;
            for arrived in [29 * SECOND, 29 * SECOND + 990 * MS] {
                let read = stamps.convert(arrived + offset, at(30 * SECOND, set));
                assert_eq!(read, None, "{step}");
            }
            assert_eq!(stamps.convert(31 * SECOND + set, at(31 * SECOND + MS, set)), Some(31_000_000_000), "{step}");
        }
    }

    #[test]
    fn stamps_from_before_the_socket_or_from_the_future_are_none() {
        let mut stamps = StampConverter::new(at(10 * SECOND, 0));
        assert_eq!(stamps.convert(9 * SECOND, at(11 * SECOND, 0)), None);
        assert_eq!(stamps.convert(0, at(11 * SECOND, 0)), None, "no stamp at all");
        assert_eq!(stamps.convert(13 * SECOND, at(11 * SECOND, 0)), None);
        assert_eq!(stamps.convert(i64::MIN, at(11 * SECOND, 0)), None);
        assert_eq!(stamps.convert(i64::MAX, at(11 * SECOND, i64::MIN)), None);
    }

    #[test]
    fn the_clocks_are_read_together() {
        let (one, other) = (ClockPair::read(), ClockPair::read());
        assert!(other.monotonic_ns >= one.monotonic_ns && one.apart_ns >= 0, "{one:?} {other:?}");
    }
}
