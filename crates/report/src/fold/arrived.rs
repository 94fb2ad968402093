//! Whether enough arrived in a direction to report a rate. Pure.

use std::time::Duration;

use paramedic_link::measurement::Sample;

use super::rates::bytes_of;

/// Fewer segments than these are no rate: a handshake and some retransmissions.
const LEAST_SEGMENTS: u64 = 10;
/// The longest segment that is counted with (Ethernet, IPv4, TCP's time stamps): ten of loopback's would be 640 KiB.
pub(super) const USUAL_SEGMENT: u32 = 1448;
/// What a stream that is held to a rate may send at once: the block of iperf3 and of ours, and about a segment of
/// loopback's.
pub(super) const USUAL_STEP: u32 = 128 * 1024;
/// With fewer steps than these in half a phase, a stream's last one may lie before it.
const STEPS_IN_HALF: u64 = 4;

/// What a direction of a phase was to move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// How long the phase lasted.
    pub(super) span: Duration,
    /// The payload of a segment or a datagram, in bytes.
    pub(super) segment: u32,
    /// The rate that each stream was held to, in bits per second; absent: the sender always had more to send.
    pub(super) rate_bps: Option<u64>,
    /// What a stream sends at once when it is held to a rate, in bytes.
    pub(super) step: u32,
    /// How many streams there were.
    pub(super) streams: u16,
}

/// What is known of what arrived.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrived<'a> {
    /// The receiver's readings.
    Readings(&'a [Sample]),
    /// The receiver reports its total only.
    Total(u64),
}

/// Whether the direction moved nothing: the receiver counted no payload in the last half of the phase, or less than ten
/// segments while the sender had more to send. What was counted before is no rate of the path either.
pub(super) fn moved_nothing(arrived: Arrived<'_>, asked: &Asked) -> bool {
    // What all streams send in this time where they are held to a rate, in bytes.
    let paced = |span: Duration| {
        let each = asked.rate_bps.map(|bps| u128::from(bps).saturating_mul(span.as_millis()) / 8000);
        each.map(|each| each.saturating_mul(u128::from(asked.streams)))
    };
    let half = asked.span / 2;
    let in_steps = u128::from(u64::from(asked.step) * STEPS_IN_HALF * u64::from(asked.streams));
    let (bytes, span) = match arrived {
        Arrived::Readings(samples) if paced(half).is_some_and(|paced| paced < in_steps) => {
            (bytes_of(samples.iter()), asked.span)
        }
        Arrived::Readings(samples) => {
            (bytes_of(samples.iter().filter(|sample| u128::from(sample.at_us) > half.as_micros())), half)
        }
        Arrived::Total(bytes) => (bytes, asked.span),
    };
    // Of a slow rate a quarter is enough: the path carries it, however badly.
    let slow = paced(span).map_or(u128::MAX, |paced| paced / 4);
    let least = u128::from(LEAST_SEGMENTS * u64::from(asked.segment.clamp(1, USUAL_SEGMENT)));
    u128::from(bytes) < least.min(slow).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { span: Duration::from_secs(4), segment: 1000, rate_bps: None, step: 250, streams: 2 };

    /// A reading each 100 ms.
    fn readings(bytes: impl Fn(u64) -> u64, until_ms: u64) -> Vec<Sample> {
        (1..=until_ms / 100).map(|at| Sample { at_us: at * 100_000, bytes: bytes(at * 100) }).collect()
    }

    #[test]
    fn a_burst_and_then_nothing_is_nothing() {
        let burst = readings(|ms| if ms <= 2000 { 1_000_000 } else { 0 }, 4000);
        assert!(moved_nothing(Arrived::Readings(&burst), &ASKED));
        let late = readings(|ms| if ms <= 2000 { 0 } else { 1_000_000 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&late), &ASKED));
        assert!(moved_nothing(Arrived::Readings(&[]), &ASKED));
    }

    #[test]
    fn ten_segments_in_the_last_half_are_the_least() {
        let last = |bytes| readings(move |ms| if ms == 3000 { bytes } else { 0 }, 4000);
        assert!(moved_nothing(Arrived::Readings(&last(9_999)), &ASKED));
        assert!(!moved_nothing(Arrived::Readings(&last(10_000)), &ASKED));
        assert!(moved_nothing(Arrived::Total(9_999), &ASKED));
        assert!(!moved_nothing(Arrived::Total(10_000), &ASKED));
    }

    #[test]
    fn a_sender_that_is_held_to_a_slow_rate_has_no_more_to_send() {
        // 2,000 bytes in the last half, of which a quarter is enough.
        let slow = Asked { rate_bps: Some(4_000), ..ASKED };
        let last = |bytes| readings(move |ms| if ms == 3000 { bytes } else { 0 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&last(500)), &slow));
        assert!(moved_nothing(Arrived::Readings(&last(499)), &slow));
        assert!(moved_nothing(Arrived::Readings(&last(0)), &Asked { rate_bps: Some(1), ..ASKED }));
    }

    #[test]
    fn a_rate_in_few_large_steps_is_judged_by_the_whole_phase() {
        let coarse = Asked { rate_bps: Some(4_000), step: 1000, ..ASKED };
        let early = readings(|ms| if ms == 1000 { 1000 } else { 0 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&early), &coarse));
        assert!(moved_nothing(Arrived::Readings(&early), &Asked { rate_bps: None, ..coarse }));
        assert!(moved_nothing(Arrived::Readings(&readings(|_| 0, 4000)), &coarse));
    }

    #[test]
    fn no_claim_overflows() {
        let most = [Sample { at_us: u64::MAX, bytes: u64::MAX }; 3];
        let all = u32::MAX;
        let asked = Asked { span: Duration::MAX, segment: all, rate_bps: Some(u64::MAX), step: all, streams: u16::MAX };
        let _ = moved_nothing(Arrived::Readings(&most), &asked);
        assert!(!moved_nothing(Arrived::Total(u64::MAX), &Asked { span: Duration::ZERO, ..asked }));
    }
}
