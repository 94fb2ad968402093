//! What the phases of every engine have in common. Knows no engine, and no way to move a byte.

mod sampler;

use std::time::Duration;

pub(crate) use sampler::{SAMPLE_INTERVAL, Sampler};

/// How long after a phase's time a receiver still takes what is on the way.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the streams of a phase may take to connect.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An end of the stream that comes this much before its time is a failure of the other end, not the end of the phase.
/// Both ends begin a phase within less of each other, even if the message that starts it was retransmitted once or
/// twice, or a busy host was late to read it. In a phase that is not longer than this, the missing tally of the other
/// end shows the failure.
pub(crate) const EARLY_END: Duration = Duration::from_secs(2);

/// Whole microseconds of `time`.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
