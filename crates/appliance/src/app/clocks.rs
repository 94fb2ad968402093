//! Reads the clocks of this device, the id of its boot, and random numbers. Functions that decide by these values get
//! them as arguments.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clocks for the decisions")]

use std::time::Duration;

use jiff::Timestamp;
use paramedic_engines::host_facts;
use uuid::Uuid;

use crate::schedule::planner::ClockReading;

/// Reads the clocks of this device: the system clock and whether it is synchronised, and the time since boot.
pub(super) fn read_clocks() -> ClockReading {
    ClockReading {
        wall: Timestamp::now(),
        since_boot: since_boot(),
        is_synchronised: host_facts::is_clock_synchronised(),
    }
}

/// The time since boot, including the time spent asleep.
pub(super) fn since_boot() -> Duration {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(boot.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

/// A random number from 0 to 1.
pub(super) fn random() -> f64 {
    // The low bits of a UUIDv7 are random.
    let bits = Uuid::now_v7().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}

/// The kernel's id of this boot; `None` if it cannot be read.
pub(super) fn boot_id() -> Option<String> {
    let id = host_facts::text("/proc/sys/kernel/random/boot_id")?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
