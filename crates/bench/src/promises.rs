//! Compares what was promised with what was measured. Pure: takes a record and returns one verdict for each promise.

use crate::record::{CellRecord, Reading, Record};
use crate::statistics::spread;

/// One promise, with the measured value and the verdict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// The text of the promise.
    pub(crate) name: String,
    /// What our value is compared with, such as iperf3; empty if it is compared with nothing.
    pub(crate) beside: &'static str,
    /// The promised bound of the measured value.
    pub(crate) bound: Bound,
    /// The unit in which the value is written.
    pub(crate) unit: Unit,
    /// The measured value; absent if it was not measured.
    pub(crate) measured: Option<Measured>,
    /// A note for the reader, such as how many cells failed.
    pub(crate) note: String,
    /// Whether a condition of the promise was broken, so that the promise counts as missed whatever the value is.
    pub(crate) is_forfeit: bool,
}

/// The bound of a promise, which the measured value must reach or not exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// The promise is kept if the measured value is this or more.
    AtLeast(f64),
    /// The promise is kept if the measured value is this or less.
    AtMost(f64),
}

/// The unit in which a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A multiple of iperf3's value.
    Times,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share from 0 to 1, written in percent.
    Share,
    /// A number per second.
    PerSecond,
}

/// A measured value with its range and confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// The median of the measured values.
    pub(crate) median: f64,
    /// The lowest and the highest measured value.
    pub(crate) ends: (f64, f64),
    /// The 95 % confidence interval of the geometric mean, if the values are ratios.
    pub(crate) ci95: Option<(f64, f64)>,
}

/// Whether a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The median keeps the promise.
    Met,
    /// The median keeps the promise, but the confidence interval of the mean reaches beyond the bound.
    MetWithDoubt,
    /// The median breaks the promise, or a condition of it was broken.
    Missed,
    /// The value was not measured, or the measurement failed.
    Unknown,
}

impl Bound {
    fn is_kept_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    /// The number that the measured value must reach, or must not exceed.
    pub(crate) fn value(self) -> f64 {
        match self {
            Self::AtLeast(bound) | Self::AtMost(bound) => bound,
        }
    }
}

impl Row {
    /// Whether the promise was kept.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(measured) = self.measured else { return Verdict::Unknown };
        let interval_keeps =
            measured.ci95.is_none_or(|(low, high)| self.bound.is_kept_by(low) && self.bound.is_kept_by(high));
        match (self.bound.is_kept_by(measured.median) && !self.is_forfeit, interval_keeps) {
            (true, true) => Verdict::Met,
            (true, false) => Verdict::MetWithDoubt,
            (false, _) => Verdict::Missed,
        }
    }
}

/// Selects, of several cells, the one by which a promise is judged.
#[derive(Clone, Copy)]
enum By {
    /// The cell with the least favourable ratio, because the promise is made for every cell.
    Worst,
    /// The cell with the most favourable ratio, because the promise is made for the best cell only.
    Best,
}

/// The cells to which a promise refers: `found` are those in the record, and `of` is how many a full run has.
struct Promised<'a> {
    found: Vec<&'a CellRecord>,
    of: usize,
}

const TWO_WAYS: [&str; 2] = ["download", "upload"];

/// Judges every promise, in the order in which the page shows them.
pub(crate) fn judge(record: &Record) -> Vec<Row> {
    let cells = |names: Vec<String>| {
        let found = record.cells.iter().filter(|found| names.contains(&found.cell.name));
        Promised { found: found.collect(), of: names.len() }
    };
    let ways = |start: &str, end: &str| cells(TWO_WAYS.map(|way| format!("loopback/{start}/{way}/{end}")).to_vec());
    let rates = |name: &str, beside, bound, by, cells: Promised<'_>| {
        ratio_row(name, beside, Bound::AtLeast(bound), by, &cells, |reading| reading.bps)
    };
    let same = "iperf3, same streams and congestion control";
    let other = [2, 3, 4].map(|streams| format!("loopback/tcp/direct/{streams}/download/cubic/other"));
    let mut rows = vec![
        rates("tcp, direct, 1 stream, cubic", same, 1.6, By::Worst, ways("tcp/direct/1", "cubic")),
        rates("tcp, direct, 1 stream, bbr", same, 1.6, By::Worst, ways("tcp/direct/1", "bbr")),
        rates("tcp, direct, 4 streams, cubic", same, 4.0, By::Worst, ways("tcp/direct/4", "cubic")),
        rates("tcp, direct, 4 streams, bbr", same, 4.0, By::Worst, ways("tcp/direct/4", "bbr")),
        rates(
            "tcp, direct, best of 2 to 4 streams",
            "another iperf3 at its best",
            1.5,
            By::Best,
            cells(other.to_vec()),
        ),
        rates(
            "tcp, direct, 4 streams, the receiver copying every byte",
            same,
            2.0,
            By::Worst,
            ways("tcp/direct/4", "cubic/plain"),
        ),
        rates(
            "tcp, tunneled, 4 streams",
            "iperf3 in clear text, 4 streams, bbr",
            1.2,
            By::Worst,
            ways("tcp/tunneled/4", "bbr"),
        ),
        udp_row(&ways("udp/direct/1", "1400")),
    ];
    for streams in [1, 4] {
        let name = format!(
            "CPU seconds a GB, both ends, tcp, direct, {streams} stream{}",
            if streams == 1 { "" } else { "s" }
        );
        let found = ways(&format!("tcp/direct/{streams}"), "cubic");
        rows.push(ratio_row(&name, same, Bound::AtMost(1.0 / 3.0), By::Worst, &found, Reading::cpu_s_per_gb));
    }
    for way in TWO_WAYS {
        let of = |congestion| format!("loopback/iperf3/direct/4/{way}/{congestion}/pinned");
        let found = cells(["bbr", "cubic"].map(of).to_vec());
        let beside = "plain iperf3, no reflector, both pinned alike";
        rows.push(rates(&format!("the iperf3 lane, {way}"), beside, 0.97, By::Worst, found));
    }
    rows.extend(alone(record));
    rows
}

/// Judges a promise about the ratio of our value to iperf3's, by the results of several cells. The function `of`
/// selects the value from the measurements of a run.
fn ratio_row(
    name: &str,
    beside: &'static str,
    bound: Bound,
    by: By,
    Promised { found: cells, of: wanted }: &Promised<'_>,
    of: impl Fn(&Reading) -> f64,
) -> Row {
    let mut found = cells.iter().filter_map(|cell| Some((*cell, cell.ratio(&of)?))).collect::<Vec<_>>();
    let failed = cells.len() - found.len();
    // The cell that keeps the promise least comes first.
    found.sort_by(|(_, a), (_, b)| match bound {
        Bound::AtLeast(_) => a.spread.median.total_cmp(&b.spread.median),
        Bound::AtMost(_) => b.spread.median.total_cmp(&a.spread.median),
    });
    let judged = match by {
        By::Worst => found.first(),
        By::Best => found.last(),
    };
    // A promise for each cell cannot be judged if one of them has no result.
    let judged = judged.filter(|_| failed == 0 || matches!(by, By::Best));
    let mut notes = Vec::new();
    if let Some((cell, _)) = judged.filter(|_| found.len() > 1) {
        let which = if matches!(by, By::Worst) { "the least of" } else { "the best of" };
        notes.push(format!("{}, {which} {}", cell.cell.label(), found.len()));
    }
    if !cells.is_empty() && cells.len() < *wanted {
        notes.push(format!("{} of {wanted} cells ran", cells.len()));
    }
    if failed > 0 {
        notes.push(format!("{failed} of {} cells failed", cells.len()));
    }
    Row {
        name: name.to_owned(),
        beside,
        bound,
        unit: Unit::Times,
        measured: judged.map(|(_, ratio)| Measured {
            median: ratio.spread.median,
            ends: (ratio.spread.lowest, ratio.spread.highest),
            ci95: ratio.ci95,
        }),
        note: notes.join("; "),
        is_forfeit: false,
    }
}

/// Judges the promise about datagrams: a rate counts only if the loss was small.
fn udp_row(cells: &Promised<'_>) -> Row {
    const MOST_LOSS: f64 = 0.01;
    let mut row = ratio_row(
        "udp, 1400 bytes, loss at most 1 %",
        "what iperf3 -u -b 0 receives",
        Bound::AtLeast(10.0),
        By::Worst,
        cells,
        |reading| reading.bps,
    );
    let losses = cells.found.iter().flat_map(|cell| &cell.pairs).filter_map(|pair| pair.ours.loss).collect::<Vec<_>>();
    if let Some(loss) = spread(&losses) {
        let said = format!("our loss {:.2} %, at most {:.2} %", loss.median * 100.0, loss.highest * 100.0);
        row.note =
            [row.note.as_str(), &said].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        // A rate with more loss than this is not what was promised.
        row.is_forfeit = loss.median > MOST_LOSS;
    }
    row
}

/// Judges the promises about our programs alone, which are not compared with iperf3.
fn alone(record: &Record) -> Vec<Row> {
    let row = |name: &str, bound: f64, unit, readings: &[f64], note: String| Row {
        name: name.to_owned(),
        beside: "",
        bound: if unit == Unit::PerSecond { Bound::AtLeast(bound) } else { Bound::AtMost(bound) },
        unit,
        measured: spread(readings).map(|found| Measured {
            median: found.median,
            ends: (found.lowest, found.highest),
            ci95: None,
        }),
        note,
        is_forfeit: false,
    };
    const MIB: f64 = 1024.0 * 1024.0;
    let found = &record.alone;
    let rest = found.rest.as_ref();
    let ready = rest.map(|rest| rest.ready_s.clone()).unwrap_or_default();
    let first =
        rest.map_or(String::new(), |rest| format!("{:.0} ms with an empty state folder", rest.first_ready_s * 1e3));
    let watched = rest.map_or(String::new(), |rest| format!("over {:.0} s", rest.watched_s));
    let of_rest = |of: fn(&crate::record::Rest) -> f64| rest.map(of).into_iter().collect::<Vec<_>>();
    let largest = found.memory.iter().filter(|memory| memory.is_ours);
    let largest = largest.map(|memory| memory.client_bytes.max(memory.server_bytes) as f64).reduce(f64::max);
    vec![
        row("all of speed-test but the loading itself", 0.3, Unit::Seconds, &found.set_up_s, String::new()),
        row(
            "reflector at rest: memory",
            12.0 * MIB,
            Unit::Bytes,
            &of_rest(|rest| rest.rss_bytes as f64),
            String::new(),
        ),
        row("reflector at rest: processor", 0.001, Unit::Share, &of_rest(|rest| rest.cpu_s / rest.watched_s), watched),
        row("reflector ready after its start", 0.05, Unit::Seconds, &ready, first),
        row(
            "memory of either program, 8 streams",
            32.0 * MIB,
            Unit::Bytes,
            &largest.into_iter().collect::<Vec<_>>(),
            "the largest of all tests".to_owned(),
        ),
        row(
            "mutual TLS handshakes, both ends here",
            400.0,
            Unit::PerSecond,
            &found.handshakes,
            "one after another".to_owned(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Pair;
    use crate::render::example;

    fn rows_of(record: &Record, name: &str) -> Row {
        judge(record).into_iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row {name}"))
    }

    fn set(record: &mut Record, name: &str, pairs: &[(f64, f64)]) {
        let cell = record.cells.iter_mut().find(|found| found.cell.name == name).unwrap();
        let like = example::reading(1.0);
        cell.pairs = pairs
            .iter()
            .map(|(theirs, ours)| Pair {
                ours_first: false,
                theirs: Reading { bps: *theirs, ..like },
                ours: Reading { bps: *ours, ..like },
            })
            .collect();
    }

    #[test]
    fn a_promise_of_each_is_judged_by_the_least() {
        let mut record = example::record();
        set(&mut record, "loopback/tcp/direct/1/download/cubic", &[(1.0, 9.0), (1.0, 9.0)]);
        set(&mut record, "loopback/tcp/direct/1/upload/cubic", &[(1.0, 1.5), (1.0, 1.5)]);
        let row = rows_of(&record, "tcp, direct, 1 stream, cubic");
        assert_eq!((row.measured.unwrap().median, row.verdict()), (1.5, Verdict::Missed));
        assert!(row.note.contains("upload"), "{}", row.note);
    }

    #[test]
    fn a_promise_of_the_best_is_judged_by_the_best() {
        let mut record = example::record();
        for (streams, ours) in [(2, 3.0), (3, 1.0), (4, 2.0)] {
            let name = format!("loopback/tcp/direct/{streams}/download/cubic/other");
            set(&mut record, &name, &[(1.0, ours), (1.0, ours)]);
        }
        let row = rows_of(&record, "tcp, direct, best of 2 to 4 streams");
        assert_eq!((row.measured.unwrap().median, row.verdict()), (3.0, Verdict::Met));
    }

    #[test]
    fn an_interval_beyond_the_bound_leaves_a_doubt() {
        let mut record = example::record();
        for way in TWO_WAYS {
            set(&mut record, &format!("loopback/tcp/direct/1/{way}/cubic"), &[(1.0, 1.0), (1.0, 1.7), (1.0, 1.8)]);
        }
        assert_eq!(rows_of(&record, "tcp, direct, 1 stream, cubic").verdict(), Verdict::MetWithDoubt);
    }

    #[test]
    fn what_failed_or_was_not_measured_is_not_met() {
        let mut record = example::record();
        set(&mut record, "loopback/tcp/direct/4/upload/cubic", &[]);
        let row = rows_of(&record, "tcp, direct, 4 streams, cubic");
        assert_eq!((row.measured, row.verdict()), (None, Verdict::Unknown));
        record.cells.clear();
        record.alone = crate::record::Alone::default();
        assert!(judge(&record).iter().all(|row| row.verdict() == Verdict::Unknown));
    }

    #[test]
    fn a_promise_of_cells_that_did_not_all_run_says_so() {
        let mut record = example::record();
        record.cells.retain(|found| found.cell.name != "loopback/tcp/direct/4/upload/cubic");
        let row = rows_of(&record, "tcp, direct, 4 streams, cubic");
        assert!(row.measured.is_some() && row.note.contains("1 of 2 cells ran"), "{}", row.note);
    }

    #[test]
    fn a_rate_with_too_much_loss_misses_whatever_it_is() {
        let mut record = example::record();
        let name = "udp, 1400 bytes, loss at most 1 %";
        for way in TWO_WAYS {
            set(&mut record, &format!("loopback/udp/direct/1/{way}/1400"), &[(1.0, 20.0), (1.0, 20.0)]);
        }
        assert_eq!(rows_of(&record, name).verdict(), Verdict::Met);
        for cell in &mut record.cells {
            for pair in &mut cell.pairs {
                pair.ours.loss = Some(0.02);
            }
        }
        assert_eq!(rows_of(&record, name).verdict(), Verdict::Missed);
    }

    #[test]
    fn less_is_better_of_what_costs() {
        let record = example::record();
        let row = rows_of(&record, "reflector at rest: memory");
        assert_eq!(row.bound, Bound::AtMost(12.0 * 1024.0 * 1024.0));
        assert_eq!(row.verdict(), Verdict::Met);
    }
}
