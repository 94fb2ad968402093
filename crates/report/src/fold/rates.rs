//! Computes the result of one direction of a phase from the counts of both ends: rates, datagram counts, processor
//! cost. Pure: no I/O, no clock.

use std::net::SocketAddr;
use std::time::Duration;

use paramedic_link::measurement::{Count, DirectionTally, INTERVAL_MS, Sample};
use paramedic_link::test_spec::{Direction, TestSpec};

use super::FoldOptions;
use super::arrived::{self, Arrived, DirectionRequest, USUAL_SEGMENT, USUAL_STEP, moved_nothing};
use super::phase::PhaseRecord;
use crate::document::{
    CpuCost, CpuOfEnds, DataPath, DataPathOfEnds, EndedBy, Interval, IntervalSpread, LineRateEstimate, Omitted,
    ResultDocument, Thirds, ThroughputResult, UdpResult, UdpSearch,
};
use crate::stats::{self, Confidence};

/// The bytes that Ethernet adds to each packet on the wire: preamble 8, header 14, checksum 4, gap 12.
const ETHERNET: u32 = 38;
/// The bytes of a TCP header with timestamps, which Linux uses by default.
pub(super) const TCP: u32 = 32;
/// If a direction ends after a requested number of bytes, it needs at least this many samples to have a steady part.
const INTERVALS_OF_A_RATE: usize = 10;
/// The bytes of a UDP header.
pub(super) const UDP: u32 = 8;

/// The bytes that headers and framing add to each segment on the wire. `None` on loopback, which has no wire, and
/// without facts about the appliance's host.
pub(super) fn line_overhead(result: &ResultDocument, address: SocketAddr) -> Option<u32> {
    let ip = if address.is_ipv4() { 20 } else { 40 };
    let is_wire = !address.ip().is_loopback() && result.appliance.facts_before.is_some();
    is_wire.then_some(ip + TCP + ETHERNET)
}

/// The result of one direction of a phase; `None` if too little payload was measured. `overhead` is the number of
/// header bytes for each segment; `left_out` is the length of the start-up that an external program (iperf3) left out
/// of the figures that it reports.
pub(super) fn throughput(
    phase: &PhaseRecord,
    direction: Direction,
    spec: &TestSpec,
    options: &FoldOptions,
    overhead: Option<u32>,
    left_out: Duration,
) -> Option<ThroughputResult> {
    if has_moved_nothing(phase, direction, spec) {
        return None;
    }
    let samples = &phase.received[direction as usize];
    let span = phase.planned_span();
    let is_early = phase.stopped_at.is_some();
    let confidence = if is_early { Confidence::OneOfThreeLooks } else { Confidence::Single };
    let (sender, receiver) = phase.ends(direction);
    let omit = options.omit.map(|omit| omit.saturating_sub(left_out));
    // The rate search reports when it settled, which ends the start-up. If it settled after the last samples, the
    // start-up counts as not found.
    let found = found_at(sender, receiver).filter(|_| omit.is_none());
    let found = found.and_then(|found| stats::throughput(samples, Some(found), span));
    let is_found = found.is_some();
    // If the requested bytes were moved in only a few intervals, there is no steady part.
    let is_short = spec.direction_bytes.is_some() && samples.len() < INTERVALS_OF_A_RATE;
    let in_intervals =
        if is_short { None } else { found.or_else(|| stats::throughput_with(samples, omit, span, confidence)) };
    let is_whole = in_intervals.is_none() && (samples.is_empty() || is_short);
    let measured = in_intervals.or_else(|| if is_whole { whole(receiver?) } else { None })?;
    let either = sender.or(receiver);
    let mss = sender.and_then(|sender| sender.mss);
    let udp = phase.udp[direction as usize].or_else(|| datagrams(sender?, receiver?));
    let overhead = match udp {
        Some(_) if spec.fragments => None,
        Some(_) => overhead.map(|overhead| overhead - TCP + UDP),
        None => overhead,
    };
    let line_rate = |overhead: u32| {
        let segment = mss.or_else(|| udp?.payload_bytes);
        let mss = segment.filter(|segment| *segment > 0)?;
        let rate = u128::from(measured.goodput_bps) * (u128::from(mss) + u128::from(overhead)) / u128::from(mss);
        Some(LineRateEstimate { rate_bps: u64::try_from(rate).ok()?, overhead_bytes: overhead })
    };
    // A start-up that the user or a rate search determined is not a property of the line.
    let thirds_from = if omit.is_some() || is_found {
        measured.startup
    } else {
        stats::begin_of_thirds(samples, measured.startup, measured.steady, measured.startup_found)
    };
    let thirds = stats::thirds(samples, thirds_from, measured.startup + measured.steady);
    Some(ThroughputResult {
        goodput_bps: measured.goodput_bps,
        ci95_bps: measured.ci95_bps,
        thirds_bps: thirds.map(|[first, last]| Thirds { first, last }),
        interval_bps: (!is_whole).then_some(IntervalSpread { p10: measured.p10, p50: measured.p50, p90: measured.p90 }),
        bytes_received: measured.bytes,
        bytes_sent: steady_part(&phase.sent[direction as usize], measured.startup, measured.steady),
        total_bytes_received: receiver.map(|receiver| receiver.count.bytes),
        total_bytes_sent: sender.map(|sender| sender.count.bytes),
        duration_ms: millis(measured.steady),
        startup_ms: millis(measured.startup + left_out),
        omitted: match (options.omit, measured.startup_found) {
            (Some(_), _) => Omitted::Asked,
            (None, _) if is_whole => Omitted::Nothing,
            (None, true) => Omitted::Found,
            (None, false) if is_found => Omitted::Found,
            (None, false) => Omitted::NotFound,
        },
        ended: ended(phase, sender.or(receiver), spec, options),
        streams: either.map_or(spec.streams, |tally| tally.streams),
        congestion_control: sender.and_then(|sender| sender.congestion_control.clone()),
        retransmits: sender.and_then(|sender| sender.retransmits),
        mss,
        path_mtu_bytes: sender.and_then(|sender| sender.path_mtu),
        line_rate_estimate: overhead.and_then(line_rate),
        intervals: options.intervals.then(|| intervals(samples)),
        udp,
        data_path: data_paths((sender, receiver)),
        cpu: CpuOfEnds { sender: sender.map(cost), receiver: receiver.map(cost) },
        limited_by: None,
        tcp: phase.detail(direction),
    })
}

/// Why the measurement of a direction ended; `None` if the phase was cut short. `counted` is the tally of the sender,
/// or of the receiver if the sender reports none.
fn ended(
    phase: &PhaseRecord,
    counted: Option<&DirectionTally>,
    spec: &TestSpec,
    options: &FoldOptions,
) -> Option<EndedBy> {
    if !phase.is_counted() || phase.cut_short().is_some() {
        return None;
    }
    if phase.stopped_at.is_some() {
        return Some(EndedBy::Stable);
    }
    let is_through = spec.direction_bytes.is_some_and(|bytes| counted.is_some_and(|tally| tally.count.bytes >= bytes));
    Some(match (is_through, options.budget_bytes) {
        (true, Some(_)) => EndedBy::Budget,
        (true, None) => EndedBy::Asked,
        (false, _) => EndedBy::Time,
    })
}

/// The rate limit of each stream of a direction, in bits per second: the requested rate, or the default rate for
/// datagrams. `None` if the sender was not limited.
pub(super) fn requested_bitrate(phase: &PhaseRecord, direction: Direction, spec: &TestSpec) -> Option<u64> {
    let sends_datagrams = phase.udp[direction as usize].is_some()
        || phase.ends(direction).0.is_some_and(|sender| sender.datagrams.is_some());
    let default = sends_datagrams.then_some(TestSpec::DEFAULT_DATAGRAM_BPS);
    spec.bitrate_bps.or(default).filter(|bps| *bps > 0)
}

/// Whether too little payload arrived in a direction of a phase to report a rate.
pub(super) fn has_moved_nothing(phase: &PhaseRecord, direction: Direction, spec: &TestSpec) -> bool {
    let samples = &phase.received[direction as usize];
    let (sender, receiver) = phase.ends(direction);
    // A sender that has sent all requested bytes stops early, and a receiver such as iperf3 may not count the last
    // bytes.
    let is_through = sender.zip(spec.direction_bytes).is_some_and(|(sender, bytes)| sender.count.bytes >= bytes);
    let arriving = match receiver {
        Some(receiver) if is_through || (samples.is_empty() && phase.tells_total) => {
            Arrived::Total(receiver.count.bytes)
        }
        _ => Arrived::Readings(samples),
    };
    // If the requested bytes arrived, the direction has moved enough, even if few bytes were requested.
    if let (Some(receiver), Some(bytes)) = (receiver, spec.direction_bytes)
        && receiver.count.bytes >= bytes
    {
        return false;
    }
    let (datagram, mss) = (datagram_payload(sender), sender.and_then(|sender| sender.mss));
    let request = DirectionRequest {
        span: phase.span(),
        segment: mss.or(datagram).unwrap_or(USUAL_SEGMENT),
        rate_bps: requested_bitrate(phase, direction, spec),
        step: datagram.unwrap_or(mss.unwrap_or(0).max(USUAL_STEP)),
        streams: spec.streams,
    };
    moved_nothing(arriving, &request)
}

/// The time at which payload stopped arriving, for a direction without payload in the last half of the phase. `None` if
/// almost no payload ever arrived.
pub(super) fn stopped_after(phase: &PhaseRecord, direction: Direction) -> Option<Duration> {
    let (sender, _) = phase.ends(direction);
    let segment = sender.and_then(|sender| sender.mss).or_else(|| datagram_payload(sender)).unwrap_or(USUAL_SEGMENT);
    arrived::stopped_after(&phase.received[direction as usize], segment)
}

fn datagram_payload(sender: Option<&DirectionTally>) -> Option<u32> {
    sender?.datagrams.as_ref()?.payload_bytes
}

/// The time at which the rate search settled, by the receiver's clock; `None` if an end does not report that the search
/// settled.
pub(super) fn found_at(sender: Option<&DirectionTally>, receiver: Option<&DirectionTally>) -> Option<Duration> {
    sender?.datagrams.as_ref()?.settled.filter(|settled| *settled > 0)?;
    receiver?.datagrams.as_ref()?.settled_at_us.map(Duration::from_micros)
}

/// The datagram counts of a direction, from the tallies of both ends; `None` if an end reported no counts. Sums
/// saturate, because the other end's tally is unverified.
fn datagrams(sender: &DirectionTally, receiver: &DirectionTally) -> Option<UdpResult> {
    let (ours, theirs) = (sender.datagrams.as_ref()?, receiver.datagrams.as_ref()?);
    let (sent, received) = (ours.sent?, theirs.received?);
    let settled = found_at(Some(sender), Some(receiver)).and_then(|_| Some((ours.settled?, theirs.settled?)));
    // The datagrams sent at the settled rate cannot exceed all datagrams.
    let settled = settled.map(|(sent_then, came_then)| (sent_then.min(sent), came_then.min(received)));
    let (datagrams, arrived) = settled.unwrap_or((sent, received));
    let lost = datagrams.saturating_sub(arrived);
    (datagrams > 0).then(|| UdpResult {
        datagrams,
        lost,
        loss: lost as f64 / datagrams as f64,
        duplicates: theirs.duplicates,
        out_of_order: theirs.out_of_order,
        jitter_us: theirs.jitter_us,
        payload_bytes: ours.payload_bytes,
        search: settled.map(|(sent_then, came_then)| UdpSearch {
            datagrams: sent - sent_then,
            lost: (sent - sent_then).saturating_sub(received - came_then),
        }),
        paused_ms: ours.paused_ms,
        vanished: ours.vanished,
    })
}

fn cost(tally: &DirectionTally) -> CpuCost {
    CpuCost::of(tally.cpu, tally.count.bytes)
}

/// The methods by which sender and receiver moved the payload. A method whose reported name is unknown to this version
/// is absent.
pub(super) fn data_paths((sender, receiver): (Option<&DirectionTally>, Option<&DirectionTally>)) -> DataPathOfEnds {
    let path = |tally: Option<&DirectionTally>| DataPath::from_word(tally?.data_path.as_ref()?.as_str());
    DataPathOfEnds { sender: path(sender), receiver: path(receiver) }
}

/// The throughput over the whole phase, for a direction with no or few samples: the total bytes of the receiver divided
/// by its time.
fn whole(receiver: &DirectionTally) -> Option<stats::Throughput> {
    let Count { bytes, elapsed_us } = receiver.count;
    let goodput = (u128::from(bytes) * 8_000_000).checked_div(u128::from(elapsed_us)).filter(|bps| *bps > 0)?;
    let goodput_bps = u64::try_from(goodput).unwrap_or(u64::MAX);
    Some(stats::Throughput {
        goodput_bps,
        ci95_bps: None,
        p10: goodput_bps,
        p50: goodput_bps,
        p90: goodput_bps,
        bytes,
        steady: Duration::from_micros(elapsed_us),
        startup: Duration::ZERO,
        startup_found: false,
    })
}

/// The bytes that the sender counted in the steady part, by its own clock; `None` if the sender reported no samples.
pub(super) fn steady_part(sent: &[Sample], startup: Duration, steady: Duration) -> Option<u64> {
    let (from, until) = (startup.as_micros(), (startup + steady).as_micros());
    // A sample belongs to the steady part if most of its interval is within the steady part.
    let half = u128::from(INTERVAL_MS) * 500;
    let inside = |sample: &&Sample| (from + half..=until + half).contains(&u128::from(sample.at_us));
    (!sent.is_empty()).then(|| bytes_of(sent.iter().filter(inside)))
}

/// The bytes of all samples together. The sum saturates, because the other end's samples are unverified.
pub(super) fn bytes_of<'a>(samples: impl Iterator<Item = &'a Sample>) -> u64 {
    samples.fold(0, |sum, sample| sum.saturating_add(sample.bytes))
}

fn intervals(samples: &[Sample]) -> Vec<Interval> {
    let begins = std::iter::once(0).chain(samples.iter().map(|sample| sample.at_us));
    let reading = |(begin, sample): (u64, &Sample)| {
        let length_us = sample.at_us.saturating_sub(begin).max(1);
        let bps = u128::from(sample.bytes) * 8_000_000 / u128::from(length_us);
        Interval { at_ms: sample.at_us / 1000, bps: u64::try_from(bps).unwrap_or(u64::MAX) }
    };
    begins.zip(samples).map(reading).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::{DatagramTally, PhaseTally};
    use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec};

    use super::*;

    fn of_datagrams(datagrams: DatagramTally) -> DirectionTally {
        DirectionTally { datagrams: Some(Box::new(datagrams)), ..DirectionTally::default() }
    }

    #[test]
    fn the_loss_of_a_search_is_separate_from_that_of_the_path() {
        let sent = DatagramTally { sent: Some(1000), settled: Some(800), ..DatagramTally::default() };
        let came = DatagramTally {
            received: Some(900),
            settled: Some(796),
            settled_at_us: Some(1_200_000),
            duplicates: Some(1),
            ..DatagramTally::default()
        };
        let udp = datagrams(&of_datagrams(sent), &of_datagrams(came)).unwrap();
        assert_eq!((udp.datagrams, udp.lost, udp.duplicates), (800, 4, Some(1)));
        assert_eq!(udp.search, Some(UdpSearch { datagrams: 200, lost: 96 }));
        // Without a search, and with a search that found no rate, all datagrams count.
        for settled in [None, Some(0)] {
            let udp = datagrams(&of_datagrams(DatagramTally { settled, ..sent }), &of_datagrams(came)).unwrap();
            assert_eq!((udp.datagrams, udp.lost, udp.search), (1000, 100, None));
        }
    }

    #[test]
    fn a_direction_whose_sender_is_through_moved_something_also_if_its_receiver_left_bytes_uncounted() {
        let requested = PhaseSpec { load: Load::Upload, duration_ms: 60_000 };
        let engine = EngineId::try_from("iperf3").unwrap();
        let spec = TestSpec {
            direction_bytes: Some(3_000_000),
            ..TestSpec::new(engine, DataMode::DirectEphemeral, vec![requested], 2)
        };
        let moved = |bytes, elapsed_us| {
            let upload = Some(DirectionTally { count: Count { bytes, elapsed_us }, ..DirectionTally::default() });
            PhaseTally { upload, ..PhaseTally::default() }
        };
        for (sent, received, is_nothing) in
            [(3_000_000, 2_900_000, false), (2_900_000, 2_900_000, true), (3_000_000, 10_000, true)]
        {
            let mut phase = PhaseRecord::new(requested);
            phase.own = Some(moved(sent, 2000));
            phase.set_theirs(moved(received, 2000));
            assert_eq!(has_moved_nothing(&phase, Direction::Upload, &spec), is_nothing, "{sent} {received}");
        }
    }

    #[test]
    fn no_reported_datagram_count_overflows() {
        let all = DatagramTally {
            payload_bytes: Some(u32::MAX),
            sent: Some(u64::MAX),
            received: Some(u64::MAX),
            settled: Some(u64::MAX),
            settled_at_us: Some(u64::MAX),
            ..DatagramTally::default()
        };
        let some = DatagramTally {
            sent: Some(5),
            received: Some(3),
            settled: Some(1),
            settled_at_us: Some(1),
            ..DatagramTally::default()
        };
        for (sender, receiver) in [(all, some), (some, all), (all, all)] {
            let udp = datagrams(&of_datagrams(sender), &of_datagrams(receiver)).unwrap();
            assert!(udp.lost <= udp.datagrams && (0.0..=1.0).contains(&udp.loss), "{udp:?}");
        }
        assert_eq!(datagrams(&of_datagrams(DatagramTally::default()), &of_datagrams(all)), None);
    }
}
