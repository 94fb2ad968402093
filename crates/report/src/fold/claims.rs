//! Checks whether the counts that the other end reports can be true. Pure: no I/O, no clock.

use std::fmt;
use std::time::Duration;

use paramedic_link::measurement::{Count, Sample};

/// A rate that no interface reaches, in bits per microsecond: 100 Tbit/s.
const MOST_BITS_PER_US: u128 = 100_000_000;
/// A phase can last at most twice its requested duration plus this time.
const MOST_OVERTIME: Duration = Duration::from_secs(20);

/// Why a report of the other end cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impossible {
    /// The reported rate is higher than that of any interface.
    Rate {
        /// The number of bytes that the other end reported.
        bytes: u64,
        /// The time in which it claims to have moved them, in microseconds.
        length_us: u64,
    },
    /// The reported time, in microseconds, is longer than the phase can have lasted.
    Time(u64),
    /// The other end reported more received than the sender sent.
    MoreThanSent {
        /// The unit of both numbers: bytes or datagrams.
        unit: &'static str,
        /// How many were reported as received.
        received: u64,
        /// How many were sent.
        sent: u64,
    },
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate { bytes, length_us } => {
                write!(f, "it reports {bytes} bytes in {length_us} µs, more than any interface carries")
            }
            Self::Time(us) => write!(f, "it reports a time of {us} µs, longer than the phase can have lasted"),
            Self::MoreThanSent { unit, received, sent } => {
                write!(f, "it reports {received} received {unit}, but only {sent} were sent")
            }
        }
    }
}

/// Checks whether a sample that covers `length_us` can be true in a phase of the requested duration.
pub(super) fn reading(sample: Sample, length_us: u64, requested: Duration) -> Result<(), Impossible> {
    rate(sample.bytes, length_us)?;
    time(sample.at_us, requested)
}

/// Checks whether the total count of a phase can be true.
pub fn count(count: Count, requested: Duration) -> Result<(), Impossible> {
    rate(count.bytes, count.elapsed_us)?;
    time(count.elapsed_us, requested)
}

/// Checks that `received` is not more than `sent`. Both must count the same unit.
pub fn received_of_sent(unit: &'static str, received: u64, sent: u64) -> Result<(), Impossible> {
    if received > sent { Err(Impossible::MoreThanSent { unit, received, sent }) } else { Ok(()) }
}

fn rate(bytes: u64, length_us: u64) -> Result<(), Impossible> {
    let is_possible = u128::from(bytes) * 8 <= u128::from(length_us) * MOST_BITS_PER_US;
    if is_possible { Ok(()) } else { Err(Impossible::Rate { bytes, length_us }) }
}

fn time(us: u64, requested: Duration) -> Result<(), Impossible> {
    let longest = requested.saturating_mul(2).saturating_add(MOST_OVERTIME);
    if u128::from(us) <= longest.as_micros() { Ok(()) } else { Err(Impossible::Time(us)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Duration = Duration::from_secs(1);

    #[test]
    fn no_interface_carries_it_and_no_phase_lasts_so_long() {
        let of = |bytes, elapsed_us| count(Count { bytes, elapsed_us }, ASKED);
        assert_eq!(of(0, 0), Ok(()));
        assert_eq!(of(12_500_000_000_000, 1_000_000), Ok(()));
        assert_eq!(of(100, 22_000_000), Ok(()));
        for (bytes, elapsed_us) in [(1, 0), (u64::MAX, 1_000_000), (12_500_000_100_000, 1_000_000)] {
            assert_eq!(of(bytes, elapsed_us), Err(Impossible::Rate { bytes, length_us: elapsed_us }));
        }
        for elapsed_us in [22_000_001, u64::MAX] {
            assert_eq!(of(100, elapsed_us), Err(Impossible::Time(elapsed_us)));
        }
    }

    #[test]
    fn nothing_is_received_that_was_not_sent() {
        assert_eq!(received_of_sent("bytes", 5, 5), Ok(()));
        let error = received_of_sent("bytes", 6, 5).unwrap_err();
        assert_eq!(error.to_string(), "it reports 6 received bytes, but only 5 were sent");
    }
}
