//! Decides the size and the time of each write of a stream with a rate limit. Reads no clock: the time is an argument.

use paramedic_link::test_spec::TestSpec;

use crate::data_stream::CHUNK;

/// The number of writes per second of a stream with a rate limit. The kernel spreads the bytes of each write over time.
const STEPS_PER_S: u64 = 100;
/// The smallest write in bytes, about one segment. If the rate allows fewer bytes than this in [`MAX_STEP_NS`], a write
/// has only that many bytes.
const MIN_STEP: u64 = 1400;
/// The longest time between two writes, in nanoseconds: one sample interval.
const MAX_STEP_NS: u64 = 100_000_000;
/// The maximum time by which a stream may be ahead of its rate limit, in nanoseconds. A stream can make up for late
/// writes, because the kernel's pacing rate is a little higher than the rate limit.
const LEAD_NS: u64 = 100_000_000;

/// The number of bytes per write of a stream with the rate limit `bits_per_s`. A write has the bytes that the limit
/// allows in 10 ms, but at least one segment and at most 256 KiB. If the limit does not allow a segment in 100 ms, a
/// write has the bytes that it allows in 100 ms.
pub fn write_size(bits_per_s: u64) -> u64 {
    let bytes_per_s = (bits_per_s / 8).max(1);
    let least = MIN_STEP.min(bytes_per_s / (1_000_000_000 / MAX_STEP_NS)).max(1);
    (bytes_per_s / STEPS_PER_S).clamp(least, CHUNK as u64)
}

/// The rate limit of one stream, in payload bytes.
pub(super) struct RateLimit {
    bytes_per_s: u64,
    step: u64,
}

impl RateLimit {
    /// The rate limit of one stream that the test `ask` requests, if any.
    pub(super) fn of(ask: &TestSpec) -> Option<Self> {
        let bits_per_s = ask.bitrate_bps.filter(|bps| *bps > 0)?;
        Some(Self { bytes_per_s: (bits_per_s / 8).max(1), step: write_size(bits_per_s) })
    }

    /// The size of the next write of a stream that has sent `sent` bytes at `now_ns` since the start of its phase. If
    /// the write is not due yet, the error is the time at which the write is due.
    pub(super) fn next(&self, sent: u64, now_ns: u64) -> Result<usize, u64> {
        const NS: u128 = 1_000_000_000;
        let due_ns = u128::from(sent) * NS / u128::from(self.bytes_per_s);
        let due_ns = u64::try_from(due_ns).unwrap_or(u64::MAX).saturating_sub(LEAD_NS);
        // A step is at most [`CHUNK`], which fits in a `usize`.
        if now_ns >= due_ns { Ok(self.step as usize) } else { Err(due_ns) }
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{DataMode, EngineId};

    use super::*;

    fn limit(bps: u64) -> RateLimit {
        let spec = TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, vec![], 1);
        RateLimit::of(&TestSpec { bitrate_bps: Some(bps), ..spec }).unwrap()
    }

    /// The number of bytes that a stream with the rate limit `bps` passes in `seconds` to a kernel that accepts all
    /// bytes.
    fn written(bps: u64, seconds: u64) -> u64 {
        let limit = limit(bps);
        let (mut sent, mut now_ns) = (0, 0);
        while now_ns < seconds * 1_000_000_000 {
            match limit.next(sent, now_ns) {
                Ok(step) => sent += step as u64,
                Err(due_ns) => now_ns = due_ns,
            }
        }
        sent
    }

    #[test]
    fn any_rate_is_kept_within_its_lead_and_a_step() {
        for bps in [TestSpec::MIN_BITRATE_BPS, 8_000, 64_000, 1_000_000, 100_000_000, 40_000_000_000] {
            let (asked, step) = (bps / 8 * 5, limit(bps).step);
            let sent = written(bps, 5);
            let most = asked + bps / 8 / 10 + step;
            assert!((asked..=most).contains(&sent), "{bps} bit/s: {sent} bytes, {asked} to {most}");
            assert!(step * 8 <= (bps / 10).max(8), "{bps} bit/s in steps of {step} bytes");
        }
    }

    #[test]
    fn steps_are_a_hundred_a_second_where_they_are_segments() {
        assert_eq!([1_000, 64_000, 1_000_000, 100_000_000].map(|bps| limit(bps).step), [12, 800, 1400, 125_000]);
        assert_eq!(limit(u64::MAX).step, CHUNK as u64);
    }

    #[test]
    fn no_rate_and_no_count_overflows() {
        let _ = limit(u64::MAX).next(u64::MAX, u64::MAX);
        assert!(limit(1).next(u64::MAX, 0).is_err());
    }
}
