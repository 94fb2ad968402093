//! Converts a time since boot to a time of the system clock. A device without a battery for its clock knows the time
//! only some time after boot.

use std::time::Duration;

use jiff::Timestamp;

/// A minute, in microseconds.
const MINUTE_US: i64 = 60_000_000;

/// The time since boot and the system clock at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Dating {
    /// The time since boot.
    pub since_boot: Duration,
    /// The time of the system clock at that moment.
    pub wall: Timestamp,
}

impl Dating {
    /// The time of the system clock at `since_boot`.
    pub fn wall_at(self, since_boot: Duration) -> Timestamp {
        Timestamp::from_microsecond(self.wall_us(micros(since_boot))).unwrap_or(self.wall)
    }

    /// Converts the begin of a minute from microseconds since boot to minutes since 1970. The minute began with a full
    /// minute of the system clock. The clock may have been set since then, so the result is the nearest full minute.
    pub fn minute(self, began_us: i64) -> i64 {
        self.wall_us(began_us).saturating_add(MINUTE_US / 2).div_euclid(MINUTE_US)
    }

    fn wall_us(self, since_boot_us: i64) -> i64 {
        self.wall.as_microsecond().saturating_sub(micros(self.since_boot)).saturating_add(since_boot_us)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
