//! Compares reported numbers with the true numbers. Each entry of [`CHECKS`] is a table of docs/truth/README.md. Pure.

use emulator::{Scenario, Way};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{LimitCause, QueueSide, ThroughputResult};

use crate::interval;
use crate::observed::{Observed, ObservedDatagrams, ObservedLatency, way};
use crate::reading::Reading;
use crate::record::{OurRecord, Run};

/// One kind of number that programs report, such as the idle latency, and how it is compared with the true number.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The name of the check, which each of its [`Reading`]s repeats.
    pub name: &'static str,
    /// The title of the check's table in docs/truth/README.md.
    pub title: &'static str,
    /// The unit of the numbers in the check's table.
    pub unit: &'static str,
    /// How many digits after the decimal point the check's table shows.
    pub digits: usize,
    /// The text above the check's table: what is compared, and with which tolerance.
    pub text: &'static str,
    /// Compares the numbers in a record of our programs with the true ones.
    pub ours: fn(&OurRecord, &Scenario) -> Vec<Reading>,
}

/// The name of our programs in [`Reading::by`].
pub const OURS: &str = "packetparamedic";

/// Compares the numbers in a record of our programs with the true ones, by the check with this name only.
pub fn readings_of(name: &str, record: &OurRecord, scenario: &Scenario) -> Vec<Reading> {
    CHECKS.iter().filter(|check| check.name == name).flat_map(|check| (check.ours)(record, scenario)).collect()
}

/// Every check, in the order of docs/truth/README.md. To add a check, add an entry here.
pub const CHECKS: &[Check] = &[
    Check {
        name: THROUGHPUT,
        title: "Throughput beside the delivered payload",
        unit: "Mbit/s",
        digits: 3,
        text: "The goodput of the steady part beside the payload that the link delivered in it in order, as a receiver reads \
               it. Tolerance: 1 %.",
        ours: |record, _| of_tcp(record, |run| directions(run, throughput_readings)),
    },
    Check {
        name: RATE,
        title: "Throughput beside the rate of the link",
        unit: "Mbit/s",
        digits: 3,
        text: "The same beside what the link's rate leaves for payload: the rate without the probes, the control connection \
               and IP and TCP headers, in cells without loss and with a queue of at least the bandwidth-delay product. \
               Tolerance: 1 %. Where the row of the table above is met and this one is not, TCP left a part of the rate unused.",
        ours: |record, scenario| of_tcp(record, |run| directions(run, |d, m, o| rate_reading(d, m, o, scenario))),
    },
    Check {
        name: INTERVAL,
        title: "The confidence interval",
        unit: "Mbit/s",
        digits: 3,
        text: "Whether the 95 % interval of the goodput contains the truth of the table above: the tolerance is the \
               interval's own width. How often it contains the mean of many runs is in [coverage](coverage.md).",
        ours: |record, scenario| of_tcp(record, |run| directions(run, |d, m, o| interval_reading(d, m, o, scenario))),
    },
    Check {
        name: LIMIT,
        title: "What limited the rate",
        unit: "right",
        digits: 0,
        text: "The cause that the result names. In each cell the link is slower than both hosts, so the network is right (1) \
               and every other cause is wrong (0).",
        ours: |record, _| of_tcp(record, |run| directions(run, |d, m, _| limit_reading(d, m))),
    },
    Check {
        name: IDLE,
        title: "Idle latency",
        unit: "ms",
        digits: 3,
        text: "The median round trip of the idle phase beside the median time that the link took for these very probes. \
               Tolerance: 0.2 ms or 1 %, whichever is larger.",
        ours: |record, _| of_tcp(record, |run| latency(run, &[Load::Idle], idle_reading)),
    },
    Check {
        name: LOADED,
        title: "Loaded latency",
        unit: "ms",
        digits: 1,
        text: "The median round trip under load beside the median time that the link took for these very probes. \
               Tolerance: 2 ms or 5 %, whichever is larger.",
        ours: |record, _| of_tcp(record, |run| latency(run, &[Load::Download, Load::Upload], loaded_reading)),
    },
    Check {
        name: SIDE,
        title: "The direction of the queue",
        unit: "right",
        digits: 0,
        text: "Whether the result names the direction in which the link's queue grew under load (1). Left out where the link's \
               record is close to the border between two answers: an increase of 1 to 4 ms, or a smaller part of an eighth \
               to a half of the larger one.",
        ours: |record, _| of_tcp(record, |run| latency(run, &[Load::Download, Load::Upload], side_reading)),
    },
    Check {
        name: LOSS,
        title: "Loss of probes",
        unit: "%",
        digits: 2,
        text: "The share of unanswered probes of the idle phase beside the share that the link dropped. Tolerance: the \
               99 % interval of the link's drops.",
        ours: |record, _| of_tcp(record, |run| latency(run, &[Load::Idle], loss_readings)),
    },
    Check {
        name: LOST,
        title: "Lost datagrams",
        unit: "datagrams",
        digits: 0,
        text: "Datagrams of a run at a fixed rate that the link dropped. Tolerance: none.",
        ours: |record, _| of_udp(record, LOST, |said| said.lost, |truth| truth.dropped),
    },
    Check {
        name: REORDERED,
        title: "Reordered datagrams",
        unit: "datagrams",
        digits: 0,
        text: "Datagrams of the same run that arrived after a later one (RFC 4737). Tolerance: none.",
        ours: |record, _| of_udp(record, REORDERED, |said| said.out_of_order, |truth| truth.reordered),
    },
    Check {
        name: DUPLICATED,
        title: "Duplicated datagrams",
        unit: "datagrams",
        digits: 0,
        text: "Datagrams of the same run that the link delivered twice. Tolerance: none.",
        ours: |record, _| of_udp(record, DUPLICATED, |said| said.duplicates, |truth| truth.copies),
    },
];

pub(crate) const THROUGHPUT: &str = "throughput";
const RATE: &str = "rate";
const INTERVAL: &str = "interval";
const LIMIT: &str = "limited_by";
pub(crate) const SIDE: &str = "queue_side";
pub(crate) const IDLE: &str = "idle_latency";
pub(crate) const LOADED: &str = "loaded_latency";
pub(crate) const LOSS: &str = "loss";
pub(crate) const LOST: &str = "lost_datagrams";
pub(crate) const REORDERED: &str = "reordered_datagrams";
const DUPLICATED: &str = "duplicated_datagrams";

/// Creates a reading whose tolerance is the truth plus or minus `tolerance`.
pub(crate) fn reading(check: &str, what: &str, by: &str, [said, truth]: [f64; 2], tolerance: f64) -> Reading {
    let allowed = [truth - tolerance, truth + tolerance];
    Reading { check: check.to_owned(), what: what.to_owned(), by: by.to_owned(), said, truth, allowed }
}

/// Creates a reading that compares a reported goodput with the rate that the link delivered, both in bit/s.
pub(crate) fn throughput(what: &str, by: &str, said_bps: f64, truth_bps: f64) -> Reading {
    reading(THROUGHPUT, what, by, [said_bps / 1e6, truth_bps / 1e6], truth_bps / 1e8)
}

/// Creates a reading of a round trip on the idle path, in milliseconds.
pub(crate) fn idle(by: &str, said: f64, truth: f64) -> Reading {
    reading(IDLE, "", by, [said, truth], (truth * 0.01).max(0.2))
}

/// Creates a reading of a round trip under load, in milliseconds.
pub(crate) fn loaded(what: &str, by: &str, said: f64, truth: f64) -> Reading {
    reading(LOADED, what, by, [said, truth], (truth * 0.05).max(2.0))
}

/// Creates a reading of packet loss, in percent. `said` is the reported share of lost probes, from 0 to 1. In truth,
/// `lost` of `sent` probes were lost.
pub(crate) fn loss(what: &str, by: &str, said: f64, lost: u64, sent: u64) -> Reading {
    let truth = lost as f64 / sent.max(1) as f64 * 100.0;
    let allowed = interval::of_share(lost, sent).map(|share| share * 100.0);
    Reading { allowed, ..reading(LOSS, what, by, [said * 100.0, truth], 0.0) }
}

fn of_tcp(record: &OurRecord, readings: impl Fn(&Run) -> Vec<Reading>) -> Vec<Reading> {
    record.tcp.as_ref().map(readings).unwrap_or_default()
}

/// Creates one reading of a datagram count for each direction of the UDP run. `said` selects the reported count,
/// `truth` the count of the link.
fn of_udp(
    record: &OurRecord,
    check: &str,
    said: impl Fn(&Said) -> Option<u64>,
    truth: impl Fn(&ObservedDatagrams) -> u64,
) -> Vec<Reading> {
    let Some(run) = &record.udp else { return vec![] };
    directions(run, |direction, measured, observed| {
        let counts = measured.udp.zip(observed.directions.iter().find(|one| one.direction == direction)?.datagrams);
        let (udp, datagrams) = counts?;
        let reported =
            said(&Said { lost: Some(udp.lost), out_of_order: udp.out_of_order, duplicates: udp.duplicates })?;
        Some(reading(check, word(direction), OURS, [reported as f64, truth(&datagrams) as f64], 0.0))
    })
}

/// The counts of datagrams that a result reports for one direction.
struct Said {
    lost: Option<u64>,
    out_of_order: Option<u64>,
    duplicates: Option<u64>,
}

/// The name of a direction, as readings and pages use it: `download` or `upload`.
pub(crate) fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "download",
        Direction::Upload => "upload",
    }
}

fn directions(run: &Run, reading: impl Fn(Direction, &ThroughputResult, &Observed) -> Option<Reading>) -> Vec<Reading> {
    let measured = run.document.all_measured();
    measured.filter_map(|(_, direction, measured)| reading(direction, measured, &run.observed)).collect()
}

fn throughput_readings(direction: Direction, measured: &ThroughputResult, observed: &Observed) -> Option<Reading> {
    let truth = observed.directions.iter().find(|one| one.direction == direction)?.delivered_bps;
    Some(throughput(word(direction), OURS, measured.goodput_bps as f64, truth))
}

fn rate_reading(
    direction: Direction,
    measured: &ThroughputResult,
    observed: &Observed,
    scenario: &Scenario,
) -> Option<Reading> {
    let rate = rate_for_payload(direction, measured, observed, scenario)?;
    Some(reading(RATE, word(direction), OURS, [measured.goodput_bps as f64 / 1e6, rate], rate * 0.01))
}

/// Creates a reading of the goodput beside the rate that the link leaves for payload. The tolerance is the width of the
/// result's confidence interval. `None` if there is no such interval or rate.
fn interval_reading(
    direction: Direction,
    measured: &ThroughputResult,
    observed: &Observed,
    scenario: &Scenario,
) -> Option<Reading> {
    let rate = rate_for_payload(direction, measured, observed, scenario)?;
    let [low, high] = measured.ci95_bps?.map(|bound| bound as f64 / 1e6);
    let said = measured.goodput_bps as f64 / 1e6;
    let allowed = [rate - (high - said), rate + (said - low)];
    Some(Reading { allowed, ..reading(INTERVAL, word(direction), OURS, [said, rate], 0.0) })
}

/// The rate that the link leaves for payload in this direction, in Mbit/s; `None` if it is unknown, or if TCP cannot be
/// expected to reach it.
fn rate_for_payload(
    direction: Direction,
    measured: &ThroughputResult,
    observed: &Observed,
    scenario: &Scenario,
) -> Option<f64> {
    let other_mbit = observed.directions.iter().find(|one| one.direction == direction)?.other_bps / 1e6;
    payload_rate_mbit(scenario, way(direction), measured.mss?.into(), other_mbit)
}

/// Creates a reading of the cause to which a result attributes the rate of a direction: 1 for the network, which is
/// right, and 0 for any other cause. `None` if the result names no cause.
fn limit_reading(direction: Direction, measured: &ThroughputResult) -> Option<Reading> {
    let cause = measured.limited_by.as_ref()?.cause;
    let what = format!("{}: {}", word(direction), name_of(cause));
    Some(reading(LIMIT, &what, OURS, [right(cause == LimitCause::Network), 1.0], 0.0))
}

/// The name of a cause, as the result document spells it.
fn name_of(cause: LimitCause) -> String {
    let name = serde_json::to_value(cause).ok();
    name.as_ref().and_then(|name| name.as_str()).unwrap_or_default().to_owned()
}

/// Converts a right answer to 1 and a wrong answer to 0.
fn right(is_right: bool) -> f64 {
    if is_right { 1.0 } else { 0.0 }
}

/// The rate that the link leaves for TCP payload, in Mbit/s: its rate without `other_mbit` of other packets and without
/// headers. Each segment has `mss` bytes of payload and TCP timestamps. `None` if TCP cannot be expected to reach this
/// rate, for example because of packet loss or a short queue.
fn payload_rate_mbit(scenario: &Scenario, way: Way, mss: f64, other_mbit: f64) -> Option<f64> {
    let rate = scenario.rate_mbit(way)?;
    let holds = |link: &emulator::DirectionSettings| {
        let is_clean = link.loss_percent == 0.0
            && link.duplicate_percent == 0.0
            && link.burst_loss.is_none()
            && link.policer.is_none()
            && link.reorder.is_none()
            && link.jitter_ms == 0.0;
        // The bandwidth-delay product in bytes: the rate in bytes per millisecond, times milliseconds.
        let product = rate * 125.0 * scenario.round_trip_ms();
        is_clean && link.queue_bytes().is_none_or(|queue| queue as f64 >= product.max(rate * 125.0 * 10.0))
    };
    // Lost or waiting acknowledgements slow a sender down, too.
    let is_clean = Way::BOTH.into_iter().all(|way| scenario.directions(way).all(|link| link.loss_percent == 0.0));
    let headers = if scenario.family == emulator::Family::Ipv4 { 52.0 } else { 72.0 };
    (is_clean && scenario.directions(way).all(holds)).then_some((rate - other_mbit) * mss / (mss + headers))
}

fn latency(run: &Run, loads: &[Load], readings: impl Fn(&Run, &ObservedLatency) -> Vec<Reading>) -> Vec<Reading> {
    let observed = loads.iter().filter_map(|load| run.observed.latency_of(*load));
    observed.flat_map(|observed| readings(run, observed)).collect()
}

/// The reported and the true median round trip of a phase, in milliseconds; `None` if either is unknown.
fn medians(run: &Run, observed: &ObservedLatency) -> Option<[f64; 2]> {
    let p50 = run.document.latency.of(observed.load)?.rtt_us?.p50?;
    Some([p50 as f64 / 1e3, observed.p50_ms?])
}

fn idle_reading(run: &Run, observed: &ObservedLatency) -> Vec<Reading> {
    medians(run, observed).map(|[said, truth]| idle(OURS, said, truth)).into_iter().collect()
}

fn loaded_reading(run: &Run, observed: &ObservedLatency) -> Vec<Reading> {
    let what = if observed.load == Load::Download { "download" } else { "upload" };
    medians(run, observed).map(|[said, truth]| loaded(what, OURS, said, truth)).into_iter().collect()
}

fn side_reading(run: &Run, observed: &ObservedLatency) -> Vec<Reading> {
    let said = run.document.latency.of(observed.load).and_then(|latency| latency.queue);
    let idle = run.observed.latency_of(Load::Idle).and_then(|idle| idle.queue_ways_ms);
    let Some(((said, idle), loaded)) = said.zip(idle).zip(observed.queue_ways_ms) else { return vec![] };
    let Some(side) = true_side([loaded[0] - idle[0], loaded[1] - idle[1]]) else { return vec![] };
    let load = if observed.load == Load::Download { "download" } else { "upload" };
    let what = format!("{load}: {}", said.stands.as_words());
    vec![reading(SIDE, &what, OURS, [right(said.stands == side), 1.0], 0.0)]
}

/// The direction in which a queue built up under load. `[up, down]` is the growth of the median queue wait in each
/// direction, in milliseconds. `None` if the growth is close to the border between two answers.
fn true_side([up, down]: [f64; 2]) -> Option<QueueSide> {
    let (smaller, larger) = (up.min(down).max(0.0), up.max(down));
    match larger {
        ..=1.0 => return Some(QueueSide::None),
        1.0..4.0 => return None,
        _ => {}
    }
    match smaller / larger {
        ..=0.125 => Some(if up > down { QueueSide::Upload } else { QueueSide::Download }),
        0.125..0.5 => None,
        _ => Some(QueueSide::Both),
    }
}

fn loss_readings(run: &Run, observed: &ObservedLatency) -> Vec<Reading> {
    let Some(measured) = run.document.latency.of(observed.load) else { return vec![] };
    let ways = [
        ("both ways", measured.loss, observed.lost_up + observed.lost_down, observed.sent),
        ("upload", measured.loss_upload, observed.lost_up, observed.sent),
        ("download", measured.loss_download, observed.lost_down, observed.sent - observed.lost_up),
    ];
    ways.into_iter().filter_map(|(what, said, lost, sent)| Some(loss(what, OURS, said?, lost, sent))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_outside_its_tolerance_is_missed_by_the_distance() {
        let inside = idle("ping", 20.19, 20.0);
        assert!(inside.is_met(), "{inside:?}");
        let outside = idle("ping", 20.5, 20.0);
        assert!((outside.missed_by() - 0.3).abs() < 1e-9 && (outside.error() - 0.5).abs() < 1e-9, "{outside:?}");
        let long = idle("ping", 203.0, 200.0);
        assert!((long.missed_by() - 1.0).abs() < 1e-9, "1 % of 200 ms");
    }

    #[test]
    fn loss_is_judged_by_the_interval_of_the_drops() {
        assert!(loss("upload", "x", 0.0, 0, 300).is_met());
        assert!(loss("upload", "x", 0.012, 3, 300).is_met());
        assert!(!loss("upload", "x", 0.1, 3, 300).is_met());
    }

    #[test]
    fn the_side_of_a_queue_is_judged_where_it_is_clear() {
        assert_eq!(true_side([0.4, -0.2]), Some(QueueSide::None));
        assert_eq!(true_side([50.0, 0.3]), Some(QueueSide::Upload));
        assert_eq!(true_side([-1.0, 5.0]), Some(QueueSide::Download));
        assert_eq!(true_side([30.0, 40.0]), Some(QueueSide::Both));
        assert_eq!([true_side([2.0, 0.0]), true_side([10.0, 40.0])], [None; 2]);
    }

    #[test]
    fn only_clean_cells_with_a_long_queue_promise_the_rate() {
        let cells = crate::cells::all().unwrap();
        let promised = |name: &str, way| {
            let cell = cells.iter().find(|cell| cell.name == name).unwrap();
            payload_rate_mbit(&cell.scenario, way, 1448.0, 0.0)
        };
        assert!((promised("03-cable", Way::Down).unwrap() - 96.533).abs() < 0.001);
        assert_eq!(promised("11-loss-0.1", Way::Down), None);
        assert_eq!(promised("12-loss-0.1-upload", Way::Down), None, "its acknowledgements are lost");
        assert_eq!(promised("08-long-shallow", Way::Down), None);
        assert_eq!(promised("23-policed-download", Way::Down), None);
    }

    #[test]
    fn the_names_of_checks_are_unique() {
        let mut names = CHECKS.iter().map(|check| check.name).collect::<Vec<_>>();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
