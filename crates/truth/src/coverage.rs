//! Counts how often the confidence interval of a single run contains the mean rate of many runs on the same link, and
//! renders the page about it. Pure.

use std::fmt::Write as _;

use paramedic_link::test_spec::Direction;

use crate::cells::Cell;
use crate::checks::word;
use crate::interval;
use crate::record::{OurRecord, Run, commits};

/// The cells whose runs are repeated: one with a steady rate, and one without a queue, whose rate depends on packet
/// loss.
pub(crate) const CELLS: [&str; 2] = ["03-cable", "09-no-queue-100"];
/// The share of 95 % confidence intervals that contain the mean rate if the intervals are right.
const RIGHT: f64 = 0.95;

/// The runs that have a confidence interval in one direction.
#[derive(Debug, Default, PartialEq)]
struct Runs {
    /// For each run, in bit/s: the rate at which the link delivered payload, and both ends of the confidence interval.
    runs: Vec<(f64, [f64; 2])>,
}

impl Runs {
    fn of(records: &[OurRecord], direction: Direction) -> Self {
        let in_run = |run: &Run| {
            let mut measured = run.document.all_measured().filter(|(_, of, _)| *of == direction);
            let ci95 = measured.next()?.2.ci95_bps?;
            let delivered = run.observed.directions.iter().find(|one| one.direction == direction)?.delivered_bps;
            Some((delivered, ci95.map(|end| end as f64)))
        };
        Self { runs: records.iter().filter_map(|record| in_run(record.tcp.as_ref()?)).collect() }
    }

    /// The mean of the rates that the link delivered in the runs, in bit/s.
    fn truth(&self) -> f64 {
        self.runs.iter().map(|(delivered, _)| delivered).sum::<f64>() / self.runs.len() as f64
    }

    /// The standard deviation of the rates that the link delivered in the runs, in bit/s.
    fn deviation(&self) -> f64 {
        let truth = self.truth();
        let squares = self.runs.iter().map(|(delivered, _)| (delivered - truth).powi(2)).sum::<f64>();
        (squares / self.runs.len().saturating_sub(1) as f64).sqrt()
    }

    /// Half the width of each run's confidence interval; the median over the runs, in bit/s.
    fn half_width(&self) -> f64 {
        let mut halves = self.runs.iter().map(|(_, [low, high])| (high - low) / 2.0).collect::<Vec<_>>();
        halves.sort_by(f64::total_cmp);
        halves[halves.len() / 2]
    }

    fn hits(&self) -> u64 {
        let truth = self.truth();
        self.runs.iter().filter(|(_, [low, high])| (*low..=*high).contains(&truth)).count() as u64
    }
}

/// Counts the runs with a confidence interval in each direction, and returns the lower count.
pub(crate) fn least_counted(records: &[OurRecord]) -> u64 {
    let counted = [Direction::Download, Direction::Upload].map(|direction| Runs::of(records, direction).runs.len());
    counted[0].min(counted[1]) as u64
}

/// Renders docs/truth/coverage.md, the page about the repeated runs of each cell.
pub(crate) fn page(cells: &[(Cell, Vec<OurRecord>)], accuracy: &str) -> String {
    let records = cells.iter().flat_map(|(_, records)| records);
    let mut page = format!(
        "# The confidence interval in repeated runs\n\n\
         Written by `script/lab --coverage N`. Each run is `speed-test -t 5` on the same emulated link, with another seed of \
         its random decisions. The truth is the mean of the payload that the link delivered in the steady parts of all runs; \
         the rate of one run differs from it by chance, and the 95 % interval of the run must contain it in 95 of 100 runs. \
         Runs without an interval (docs/results.md) are not counted. A row is right if the 99 % interval (Wilson) of its \
         share contains 95 %.\n\n\
         Commit: {}. The emulator on this machine: {accuracy}.\n\n\
         | cell | | runs | truth, Mbit/s | deviation of a run | half of the interval, median | contain the truth | 99 % \
         interval of the share | |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        commits(records.map(|record| &record.circumstances)),
    );
    for (cell, records) in cells {
        for direction in [Direction::Download, Direction::Upload] {
            let _ = writeln!(page, "{}", row(&cell.name, direction, &Runs::of(records, direction), records.len()));
        }
    }
    page
}

fn row(cell: &str, direction: Direction, runs: &Runs, all: usize) -> String {
    let counted = runs.runs.len();
    if counted < 2 {
        return format!("| {cell} | {} | {counted} of {all} | | | | | | not counted |", word(direction));
    }
    let (truth, hits) = (runs.truth(), runs.hits());
    let percent = |rate: f64| rate / truth * 100.0;
    let [low, high] = interval::of_share(hits, counted as u64);
    let verdict = if (low..=high).contains(&RIGHT) { "right" } else { "**wrong**" };
    format!(
        "| {cell} | {} | {counted} of {all} | {:.3} | {:.2} % | {:.2} % | {hits} | {:.1} to {:.1} % | {verdict} |",
        word(direction),
        truth / 1e6,
        percent(runs.deviation()),
        percent(runs.half_width()),
        low * 100.0,
        high * 100.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_right_if_the_share_of_hits_can_be_95_of_100() {
        // The mean rate is 100: half of the runs have 1 % more, half 1 % less.
        let of = |hits: usize| {
            let run = |number: usize| {
                let delivered = if number.is_multiple_of(2) { 101e6 } else { 99e6 };
                let reach = if number < hits { 2e6 } else { 0.5e6 };
                (delivered, [delivered - reach, delivered + reach])
            };
            let runs = Runs { runs: (0..40).map(run).collect() };
            (runs.hits(), row("cell", Direction::Upload, &runs, 41))
        };
        let (hits, text) = of(38);
        assert_eq!(hits, 38);
        assert!(
            text.contains("| 40 of 41 | 100.000 | 1.01 % | 2.00 % | 38 |") && text.ends_with("| right |"),
            "{text}"
        );
        assert!(of(40).1.ends_with("| right |") && of(30).1.ends_with("| **wrong** |"));
        assert!(row("cell", Direction::Upload, &Runs::default(), 3).ends_with("| not counted |"));
    }
}
