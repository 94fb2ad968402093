//! Estimates how much data a test will use. Pure: no I/O, no clock.

use paramedic_link::test_spec::{Direction, TestSpec};

use super::line_load::LineCapacity;

/// The rate that is assumed for a direction without a measured rate and without a rate limit, in bits per second.
pub const ASSUMED_BPS: u64 = 100_000_000;

/// The data that one run of a test is expected to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeEstimate {
    /// The number of payload bytes of all phases.
    pub bytes: u64,
    /// Whether the estimate uses [`ASSUMED_BPS`] for at least one direction.
    pub is_assumed: bool,
}

/// Estimates the data of a test on a line with this capacity.
pub fn estimate(spec: &TestSpec, capacity: LineCapacity) -> VolumeEstimate {
    let limit = spec.bitrate_bps.filter(|bps| *bps > 0).map(|bps| bps.saturating_mul(spec.streams.into()));
    let mut total = VolumeEstimate { bytes: 0, is_assumed: false };
    for phase in &spec.phases {
        for direction in phase.load.directions() {
            let known = match direction {
                Direction::Download => capacity.download_bps,
                Direction::Upload => capacity.upload_bps,
            };
            let rate = match (known, limit) {
                (Some(known), Some(limit)) => known.min(limit),
                (Some(rate), None) | (None, Some(rate)) => rate,
                (None, None) => {
                    total.is_assumed = true;
                    ASSUMED_BPS
                }
            };
            let bytes = u128::from(rate) * u128::from(phase.duration_ms) / 8000;
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            total.bytes = total.bytes.saturating_add(bytes.min(spec.direction_bytes.unwrap_or(u64::MAX)));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::super::definition::tests::request;
    use super::*;

    #[test]
    fn known_rates_limits_and_byte_counts_bound_the_estimate() {
        let spec = request().spec;
        let of = |spec: &TestSpec, down, up| {
            let estimate = estimate(spec, LineCapacity { download_bps: down, upload_bps: up });
            (estimate.bytes, estimate.is_assumed)
        };
        // The test loads each direction for ten seconds.
        assert_eq!(of(&spec, Some(80_000_000), Some(8_000_000)), (110_000_000, false));
        assert_eq!(of(&spec, Some(80_000_000), None), (225_000_000, true));
        let limited = TestSpec { bitrate_bps: Some(1_000_000), ..spec.clone() };
        assert_eq!(of(&limited, None, Some(2_000_000)), (5_000_000 + 2_500_000, false));
        let counted = TestSpec { direction_bytes: Some(1_000_000), ..spec.clone() };
        assert_eq!(of(&counted, Some(80_000_000), Some(8_000_000)), (2_000_000, false));
        let searching = TestSpec { bitrate_bps: Some(0), ..spec };
        assert_eq!(of(&searching, Some(8_000_000), Some(8_000_000)), (20_000_000, false));
        assert_eq!(of(&limited, Some(u64::MAX), Some(u64::MAX)).0, 10_000_000);
    }
}
