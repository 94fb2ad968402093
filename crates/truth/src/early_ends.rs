//! Compares runs that may end early (`--until-stable`) with a run of the full length on the same link, and renders the
//! page about them. Pure.

use std::fmt::Write as _;

use paramedic_link::test_spec::Direction;
use paramedic_report::document::EndedBy;

use crate::cells::Cell;
use crate::checks::word;
use crate::interval;
use crate::record::{OurRecord, commits};

/// The runs on the path of one cell, with and without `--until-stable`.
#[derive(Debug)]
pub(crate) struct CellRuns {
    pub(crate) cell: Cell,
    /// The run without `--until-stable`, which has the full length.
    pub(crate) full: OurRecord,
    /// The runs with `--until-stable`, which may end early.
    pub(crate) early: Vec<OurRecord>,
}

/// The result of one direction of a run, which may have ended early or not.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    is_early: bool,
    seconds: f64,
    bytes: u64,
    goodput_bps: f64,
    delivered_bps: f64,
    ci95_bps: Option<[f64; 2]>,
}

impl Measured {
    fn of(record: &OurRecord, direction: Direction) -> Option<Self> {
        let run = record.tcp.as_ref()?;
        let (.., measured) = run.document.all_measured().find(|(_, of, _)| *of == direction)?;
        let delivered = run.observed.directions.iter().find(|one| one.direction == direction)?;
        Some(Self {
            is_early: measured.ended == Some(EndedBy::Stable),
            seconds: (measured.startup_ms + measured.duration_ms) as f64 / 1e3,
            bytes: measured.total_bytes_received?,
            goodput_bps: measured.goodput_bps as f64,
            delivered_bps: delivered.delivered_bps,
            ci95_bps: measured.ci95_bps.map(|ci95| ci95.map(|end| end as f64)),
        })
    }
}

/// The results of one direction in all runs on a link.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    full: Option<Measured>,
    early: Vec<Measured>,
}

impl Row {
    fn of(runs: &CellRuns, direction: Direction) -> Self {
        let early = runs.early.iter().filter_map(|record| Measured::of(record, direction)).collect();
        Self { full: Measured::of(&runs.full, direction), early }
    }

    /// The mean of the rates that the link delivered in all runs, in bit/s.
    fn truth(&self) -> f64 {
        let rates = self.full.iter().chain(&self.early).map(|run| run.delivered_bps).collect::<Vec<_>>();
        rates.iter().sum::<f64>() / rates.len() as f64
    }

    fn ended_early(&self) -> impl Iterator<Item = &Measured> {
        self.early.iter().filter(|run| run.is_early)
    }

    /// The number of runs that ended early and whose confidence interval contains the truth.
    fn hits(&self) -> u64 {
        let truth = self.truth();
        let contains = |run: &&Measured| run.ci95_bps.is_some_and(|[low, high]| (low..=high).contains(&truth));
        self.ended_early().filter(contains).count() as u64
    }

    /// The median rate of the runs that ended early, divided by the rate of the full run; `None` if either is missing.
    fn rate_ratio(&self) -> Option<f64> {
        let mut rates = self.ended_early().map(|run| run.goodput_bps).collect::<Vec<_>>();
        rates.sort_by(f64::total_cmp);
        Some(rates.get(rates.len() / 2)? / self.full.as_ref()?.goodput_bps)
    }

    /// The total of `of` (the time or the bytes) over the runs with `--until-stable`, divided by the total of equally
    /// many full runs. `None` without a full run.
    fn share(&self, of: fn(&Measured) -> f64) -> Option<f64> {
        let full = self.full.as_ref().map(of)?;
        Some(self.early.iter().map(of).sum::<f64>() / (full * self.early.len() as f64))
    }
}

const SECONDS: fn(&Measured) -> f64 = |run| run.seconds;
const BYTES: fn(&Measured) -> f64 = |run| run.bytes as f64;

/// Describes in a line how each direction of a run ended.
pub(crate) fn in_short(record: &OurRecord) -> String {
    if let Some(fault) = &record.circumstances.fault {
        return fault.clone();
    }
    let ended = [Direction::Download, Direction::Upload].map(|direction| {
        let run = Measured::of(record, direction);
        let run = run.map(|run| format!("{:.1} s{}", run.seconds, if run.is_early { ", early" } else { "" }));
        format!("{} {}", word(direction), run.unwrap_or_else(|| "not measured".to_owned()))
    });
    ended.join("; ")
}

/// Renders docs/truth/early-ends.md, the page about early ends on steady and on unsteady links.
pub(crate) fn page(steady: &[CellRuns], unsteady: &[CellRuns], accuracy: &str) -> String {
    let records = steady.iter().chain(unsteady).flat_map(|runs| runs.early.iter().chain([&runs.full]));
    let commits = commits(records.map(|record| &record.circumstances));
    let [steady, unsteady] = [steady, unsteady].map(rows);
    let mut page = format!(
        "# Early ends\n\n\
         Written by `script/lab --early-ends N`. N runs of `speed-test --until-stable` on each link, with other seeds of its \
         random decisions, beside one run of the default length. The steady links are the cells of the \
         [matrix](README.md); the rate of the unsteady ones changes while a direction is measured \
         (`crates/emulator/scenarios/unsteady`), so none of their directions may end early. The truth is the mean of the \
         payload that the link delivered in the steady parts of all runs on it; at an early end the interval of the run must \
         contain it in at least 93 of 100 runs. The rate is the median of the runs that ended early, beside that of the full \
         run. Time and bytes are those of the runs with `--until-stable`, as a share of as \
         many full runs.\n\n\
         Commit: {commits}. The emulator on this machine: {accuracy}.\n\n",
    );
    let _ = writeln!(page, "{}\n", summary("steady links", &steady));
    let _ = writeln!(page, "{}\n", summary("unsteady links", &unsteady));
    page += "| link | | ended early | contain the truth | rate | time | bytes |\n|---|---|---|---|---|---|---|\n";
    for (name, direction, row) in steady.iter().chain(&unsteady) {
        let _ = writeln!(page, "| {name} | {} | {} |", word(*direction), in_words(row));
    }
    page
}

fn rows(runs: &[CellRuns]) -> Vec<(String, Direction, Row)> {
    let both = |runs: &CellRuns| {
        [Direction::Download, Direction::Upload]
            .map(|direction| (runs.cell.name.clone(), direction, Row::of(runs, direction)))
    };
    runs.iter().flat_map(both).collect()
}

fn in_words(row: &Row) -> String {
    let early = row.ended_early().count();
    let hits = if early > 0 { format!("{} of {early}", row.hits()) } else { String::new() };
    let percent = |of| row.share(of).map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    let rate = row.rate_ratio().map_or(String::new(), |ratio| format!("{:+.2} %", (ratio - 1.0) * 100.0));
    format!("{early} of {} | {hits} | {rate} | {} | {}", row.early.len(), percent(SECONDS), percent(BYTES))
}

fn summary(links: &str, rows: &[(String, Direction, Row)]) -> String {
    let rows = rows.iter().map(|(.., row)| row);
    let [mut early, mut all, mut hits] = [0, 0, 0];
    let [mut used, mut full] = [[0.0; 2]; 2];
    for row in rows {
        early += row.ended_early().count() as u64;
        all += row.early.len() as u64;
        hits += row.hits();
        for (at, of) in [SECONDS, BYTES].into_iter().enumerate() {
            let Some(one) = row.full.as_ref() else { continue };
            used[at] += row.early.iter().map(of).sum::<f64>();
            full[at] += of(one) * row.early.len() as f64;
        }
    }
    let [low, high] = interval::of_share(hits, early);
    let coverage = if early > 0 {
        format!(
            "; {hits} of them contain the truth (99 % interval of the share: {:.1} to {:.1} %)",
            low * 100.0,
            high * 100.0
        )
    } else {
        String::new()
    };
    let [time, bytes] = [0, 1].map(|at| if full[at] > 0.0 { used[at] / full[at] * 100.0 } else { 100.0 });
    format!(
        "- On {links}, {early} of {all} directions ended early{coverage}. They took {time:.0} % of the time and \
         {bytes:.0} % of the bytes of full runs."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(is_early: bool, seconds: f64, delivered_bps: f64, reach: f64) -> Measured {
        let bytes = (delivered_bps * seconds / 8.0) as u64;
        Measured {
            is_early,
            seconds,
            bytes,
            goodput_bps: delivered_bps,
            delivered_bps,
            ci95_bps: Some([delivered_bps - reach, delivered_bps + reach]),
        }
    }

    #[test]
    fn an_early_end_is_right_if_its_interval_contains_the_mean_of_all_runs() {
        let early = vec![run(true, 5.0, 101e6, 2e6), run(true, 5.0, 99e6, 0.5e6), run(false, 10.0, 100e6, 1e6)];
        let row = Row { full: Some(run(false, 10.0, 100e6, 1e6)), early };
        assert_eq!((row.truth(), row.ended_early().count(), row.hits()), (100e6, 2, 1));
        assert_eq!(in_words(&row), "2 of 3 | 1 of 2 | +1.00 % | 67 % | 67 %");
        let text = summary("steady links", &[("a".to_owned(), Direction::Upload, row)]);
        assert!(text.contains("2 of 3 directions ended early; 1 of them contain the truth"), "{text}");
        assert!(text.ends_with("They took 67 % of the time and 67 % of the bytes of full runs."), "{text}");
    }

    #[test]
    fn a_link_without_early_ends_has_no_share() {
        let row = Row { full: Some(run(false, 10.0, 100e6, 1e6)), early: vec![run(false, 10.0, 100e6, 1e6)] };
        assert_eq!(in_words(&row), "0 of 1 |  |  | 100 % | 100 %");
        assert_eq!(in_words(&Row::default()), "0 of 0 |  |  | - | -");
    }
}
