//! Decides whether enough payload arrived in a direction to report a rate. Pure: no I/O, no clock.

use std::time::Duration;

use paramedic_link::measurement::Sample;

use super::rates::bytes_of;

/// If a direction received fewer bytes than this many segments hold, it counts as having received nothing. A handshake
/// with a few retransmissions can move as much.
const LEAST_SEGMENTS: u64 = 10;
/// The longest segment that [`moved_nothing`] assumes, in bytes of payload: over Ethernet and IPv4, with TCP
/// timestamps. Loopback has longer segments: ten of those would be 640 KiB.
pub(super) const USUAL_SEGMENT: u32 = 1448;
/// The maximum number of bytes that a rate-limited stream writes at once: the block size of iperf3 and of the engine
/// `tcp`. On loopback this is about two segments.
pub(super) const USUAL_STEP: u32 = 128 * 1024;
/// If a rate-limited stream writes fewer than this many times in half of a phase, half of a phase may contain no write
/// at all. In this case [`moved_nothing`] counts the whole phase.
const STEPS_IN_HALF: u64 = 4;

/// A direction is judged over at least this time, because a busy host may not schedule a receiver for some tenths of a
/// second.
const LEAST_SPAN: Duration = Duration::from_millis(500);

/// The properties of one direction of a phase that determine how much payload should arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectionRequest {
    /// How long the phase lasted.
    pub(super) span: Duration,
    /// The payload of one segment or datagram, in bytes.
    pub(super) segment: u32,
    /// The rate limit of each stream, in bits per second; `None` if the sender was not limited.
    pub(super) rate_bps: Option<u64>,
    /// The number of bytes that a rate-limited stream writes at once.
    pub(super) step: u32,
    /// The number of streams in the direction.
    pub(super) streams: u16,
}

/// What the receiver reported about a direction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrived<'a> {
    /// The samples that the receiver took.
    Readings(&'a [Sample]),
    /// The total number of bytes, from a receiver that takes no samples.
    Total(u64),
}

/// Whether too little payload arrived in a direction to report a rate. Counts the payload of the last half of the
/// phase, or of its last 500 ms if that is longer, because payload that stopped before does not show the rate of the
/// path. If the receiver reports only a total, or if the sender writes seldom, counts the whole phase. The payload must
/// reach ten segments, or a quarter of what the requested rate brings in that time if this is less.
pub(super) fn moved_nothing(arrived: Arrived<'_>, request: &DirectionRequest) -> bool {
    // The bytes that all rate-limited streams send in the time `span`.
    let paced = |span: Duration| {
        let each = request.rate_bps.map(|bps| u128::from(bps).saturating_mul(span.as_millis()) / 8000);
        each.map(|each| each.saturating_mul(u128::from(request.streams)))
    };
    let half = (request.span / 2).max(LEAST_SPAN).min(request.span);
    let from = request.span - half;
    let in_steps = u128::from(u64::from(request.step) * STEPS_IN_HALF * u64::from(request.streams));
    let (bytes, span) = match arrived {
        Arrived::Readings(samples) if paced(half).is_some_and(|paced| paced < in_steps) => {
            (bytes_of(samples.iter()), request.span)
        }
        Arrived::Readings(samples) => {
            (bytes_of(samples.iter().filter(|sample| u128::from(sample.at_us) > from.as_micros())), half)
        }
        Arrived::Total(bytes) => (bytes, request.span),
    };
    // A quarter of a low requested rate is enough: it shows that the path carries payload, though badly.
    let slow = paced(span).map_or(u128::MAX, |paced| paced / 4);
    let least = u128::from(LEAST_SEGMENTS * u64::from(request.segment.clamp(1, USUAL_SEGMENT)));
    u128::from(bytes) < least.min(slow).max(1)
}

/// The time at which payload stopped arriving, for a direction with almost no payload in its last half: the end of the
/// first sample after which fewer than ten segments arrived. `None` if fewer than ten segments arrived in total.
pub(super) fn stopped_after(samples: &[Sample], segment: u32) -> Option<Duration> {
    let least = u128::from(LEAST_SEGMENTS * u64::from(segment.clamp(1, USUAL_SEGMENT)));
    let mut later = 0;
    let last = samples.iter().rev().find(|sample| {
        later += u128::from(sample.bytes);
        later >= least
    });
    last.map(|sample| Duration::from_micros(sample.at_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: DirectionRequest =
        DirectionRequest { span: Duration::from_secs(4), segment: 1000, rate_bps: None, step: 250, streams: 2 };

    /// A sample every 100 ms until `until_ms`. `bytes` takes the end of a sample in milliseconds and returns its bytes.
    fn readings(bytes: impl Fn(u64) -> u64, until_ms: u64) -> Vec<Sample> {
        (1..=until_ms / 100).map(|at| Sample { at_us: at * 100_000, bytes: bytes(at * 100) }).collect()
    }

    #[test]
    fn a_burst_and_then_nothing_is_nothing() {
        let burst = readings(|ms| if ms <= 2000 { 1_000_000 } else { 0 }, 4000);
        assert!(moved_nothing(Arrived::Readings(&burst), &REQUEST));
        let late = readings(|ms| if ms <= 2000 { 0 } else { 1_000_000 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&late), &REQUEST));
        assert!(moved_nothing(Arrived::Readings(&[]), &REQUEST));
    }

    #[test]
    fn what_stopped_is_not_what_never_arrived() {
        let burst = readings(|ms| if ms <= 1500 { 1_000_000 } else { 0 }, 4000);
        assert_eq!(stopped_after(&burst, 1000), Some(Duration::from_millis(1500)));
        let trickle = readings(|ms| if ms <= 1500 { 1_000_000 } else { 300 }, 4000);
        assert!(moved_nothing(Arrived::Readings(&trickle), &REQUEST));
        assert_eq!(stopped_after(&trickle, 1000), Some(Duration::from_millis(1500)));
        assert_eq!(stopped_after(&readings(|ms| if ms <= 900 { 1000 } else { 0 }, 4000), 1000), None);
        assert_eq!(stopped_after(&[], 1000), None);
        assert!(stopped_after(&[Sample { at_us: 7, bytes: u64::MAX }; 3], u32::MAX).is_some());
    }

    #[test]
    fn a_short_phase_is_judged_by_half_a_second() {
        let of = |millis| DirectionRequest { span: Duration::from_millis(millis), ..REQUEST };
        let first = readings(|ms| if ms <= 100 { 1_000_000 } else { 0 }, 300);
        assert!(!moved_nothing(Arrived::Readings(&first), &of(300)));
        let third = readings(|ms| if ms == 300 { 1_000_000 } else { 0 }, 700);
        assert!(!moved_nothing(Arrived::Readings(&third), &of(700)));
        let second = readings(|ms| if ms == 200 { 1_000_000 } else { 0 }, 700);
        assert!(moved_nothing(Arrived::Readings(&second), &of(700)));
    }

    #[test]
    fn ten_segments_in_the_last_half_are_the_least() {
        let last = |bytes| readings(move |ms| if ms == 3000 { bytes } else { 0 }, 4000);
        assert!(moved_nothing(Arrived::Readings(&last(9_999)), &REQUEST));
        assert!(!moved_nothing(Arrived::Readings(&last(10_000)), &REQUEST));
        assert!(moved_nothing(Arrived::Total(9_999), &REQUEST));
        assert!(!moved_nothing(Arrived::Total(10_000), &REQUEST));
    }

    #[test]
    fn a_sender_with_a_low_rate_limit_has_no_more_to_send() {
        // The sender sends 2,000 bytes in the last half of the phase; a quarter of them is enough.
        let slow = DirectionRequest { rate_bps: Some(4_000), ..REQUEST };
        let last = |bytes| readings(move |ms| if ms == 3000 { bytes } else { 0 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&last(500)), &slow));
        assert!(moved_nothing(Arrived::Readings(&last(499)), &slow));
        assert!(moved_nothing(Arrived::Readings(&last(0)), &DirectionRequest { rate_bps: Some(1), ..REQUEST }));
    }

    #[test]
    fn a_rate_in_few_large_steps_is_judged_by_the_whole_phase() {
        let coarse = DirectionRequest { rate_bps: Some(4_000), step: 1000, ..REQUEST };
        let early = readings(|ms| if ms == 1000 { 1000 } else { 0 }, 4000);
        assert!(!moved_nothing(Arrived::Readings(&early), &coarse));
        assert!(moved_nothing(Arrived::Readings(&early), &DirectionRequest { rate_bps: None, ..coarse }));
        assert!(moved_nothing(Arrived::Readings(&readings(|_| 0, 4000)), &coarse));
    }

    #[test]
    fn no_reported_count_overflows() {
        let most = [Sample { at_us: u64::MAX, bytes: u64::MAX }; 3];
        let all = u32::MAX;
        let request = DirectionRequest {
            span: Duration::MAX,
            segment: all,
            rate_bps: Some(u64::MAX),
            step: all,
            streams: u16::MAX,
        };
        let _ = moved_nothing(Arrived::Readings(&most), &request);
        assert!(!moved_nothing(Arrived::Total(u64::MAX), &DirectionRequest { span: Duration::ZERO, ..request }));
    }
}
