//! Renders the records of the runs in all cells as the page docs/truth/README.md. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::cells::Cell;
use crate::checks::{self, CHECKS, Check};
use crate::reading::Reading;
use crate::record::{Circumstances, OurRecord, PeerRecord, commits};

/// The records of one cell of the test matrix.
pub(crate) struct CellRecords {
    pub(crate) cell: Cell,
    pub(crate) ours: Vec<OurRecord>,
    pub(crate) peers: Option<PeerRecord>,
}

/// A row of a table: one number in one cell of the test matrix, as our programs and the other programs reported it.
struct Row<'a> {
    cell: &'a str,
    what: String,
    /// The readings of our programs, one for each seed.
    ours: Vec<Reading>,
    peers: Vec<&'a Reading>,
}

impl Row<'_> {
    /// The reading of our programs that missed its tolerance by most; if none missed it, the one with the largest
    /// error. `None` without readings.
    fn worst(&self) -> Option<&Reading> {
        let key = |reading: &Reading| (reading.missed_by(), reading.error().abs());
        self.ours.iter().max_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal))
    }

    fn met(&self) -> usize {
        self.ours.iter().filter(|reading| reading.is_met()).count()
    }

    /// The other program with the smallest error in this row; `None` unless that error is smaller than the median error
    /// of our programs.
    fn closer_peer(&self, check: &Check) -> Option<Closer<'_>> {
        let mut own = self.ours.iter().map(|reading| share(check, reading).abs()).collect::<Vec<_>>();
        own.sort_unstable_by(f64::total_cmp);
        let (median, smallest) = (*own.get(own.len() / 2)?, *own.first()?);
        let error = |peer: &&&Reading| share(check, peer).abs();
        let best = self.peers.iter().min_by(|a, b| error(a).total_cmp(&error(b)))?;
        let closer = Closer { peer: best, by: median - error(&best), is_beyond_seeds: error(&best) < smallest };
        (closer.by > 0.0).then_some(closer)
    }
}

/// Another program whose error in a row is smaller than the median error of our programs.
struct Closer<'a> {
    peer: &'a Reading,
    /// The median error of our programs minus the error of the other program, in the unit in which the table shows
    /// errors.
    by: f64,
    /// Whether the other program's error is smaller than that of each of our runs (one run for each seed).
    is_beyond_seeds: bool,
}

impl Closer<'_> {
    /// The text of the column "closer".
    fn shown(&self, check: &Check) -> String {
        let by = shown(check, self.by);
        let seeds = if self.is_beyond_seeds { ", than each seed" } else { "" };
        format!("{} by {}{seeds}", self.peer.by, by.trim_start_matches('+'))
    }
}

/// Whether the check's table shows errors in percent of the true number, as it does for rates.
fn is_relative(check: &Check) -> bool {
    check.unit == "Mbit/s"
}

/// The error of a reading, in the unit in which the check's table shows it.
fn share(check: &Check, reading: &Reading) -> f64 {
    in_shown_unit(check, reading, reading.error())
}

fn in_shown_unit(check: &Check, reading: &Reading, amount: f64) -> f64 {
    if is_relative(check) { amount / reading.truth * 100.0 } else { amount }
}

fn shown(check: &Check, value: f64) -> String {
    match (is_relative(check), check.unit) {
        (true, _) => format!("{value:+.2} %"),
        (false, "%") => format!("{value:+.*} points", check.digits),
        (false, "datagrams") => format!("{value:+.0}"),
        (false, unit) => format!("{value:+.*} {unit}", check.digits),
    }
}

/// Renders docs/truth/README.md. `accuracy` describes the accuracy of the emulator on this machine; `None` if it is
/// unknown.
pub(crate) fn page(cells: &[CellRecords], accuracy: Option<&str>) -> String {
    let mut page = METHOD.to_owned();
    page.push_str(&runs(cells, accuracy));
    let tables = CHECKS.iter().map(|check| (check, rows(check, cells))).collect::<Vec<_>>();
    page.push_str(&summary(&tables));
    page.push_str(&closer(&tables));
    for (check, rows) in &tables {
        page.push_str(&table(check, rows));
    }
    page.push_str(&matrix(cells));
    page
}

const METHOD: &str = "# Truth

What our programs report, beside what the link did. Written by `script/lab`.

## Method

Each cell of the matrix is a path between an appliance and a reflector, described by a file in `crates/emulator/scenarios`. \
The hosts are network namespaces. One hop is an emulated link: a program that moves each packet between two TUN devices, with \
a set rate, queue, delay, jitter, loss, reordering and duplication in each direction. It records what it did to each packet: \
when a packet entered and left, how long it waited in the queue, and why it was dropped. The truth of a row is that record: \
the payload that the link delivered in the very window of the result, and the time that it took for the very probes of the \
result.

Ours is `speed-test -t 5` in direct mode, once for each seed of the link's random decisions; cells with datagrams add a run \
with `-u -O 0 -t 3`. iperf3 runs with four streams for 5 s in each direction, ping and irtt with 50 probes a second for 3 s, \
idle and during the load of iperf3; each is compared with its own probes and its own window. The window of an upload begins at the receiver, a round trip before \
the first payload arrives: the receiver counts from the message with which it lets the sender begin.

Rates count IP packets. The emulator measures its own accuracy first, and does not run cells that it cannot hold. A run is \
discarded and repeated, at most three times, if more than 1 % of the packets left the link more than 1 ms late, if one was \
more than 25 ms late, or if a packet was lost outside the link: in a device, or because a program did not read in time.

In the tables, each row has the seed with the largest miss or error. \"Closer\" names a program whose error is smaller than \
the median error of our seeds, and by how much. \"Than each seed\" says that the error is also smaller than the error of \
each of our seeds; in the other rows the difference is smaller than the one between our own runs.

Further pages have campaigns of their own: [how often the interval of a run contains the rate of many](coverage.md), [the \
direction of the queue on random paths](random-paths.md), [what limited the rate](limits.md), and [early ends](early-ends.md).

";

fn circumstances(cells: &[CellRecords]) -> impl Iterator<Item = &Circumstances> {
    cells.iter().flat_map(|cell| {
        let ours = cell.ours.iter().map(|record| &record.circumstances);
        ours.chain(cell.peers.iter().map(|record| &record.circumstances))
    })
}

fn runs(cells: &[CellRecords], accuracy: Option<&str>) -> String {
    let mut text = "## Runs\n\n".to_owned();
    let with = cells.iter().filter(|cell| cell.ours.iter().any(|record| record.tcp.is_some())).count();
    let seeds = cells.iter().map(|cell| cell.ours.iter().filter(|record| record.tcp.is_some()).count());
    let _ = writeln!(text, "- Cells with a result: {with} of {}; runs of ours: {}.", cells.len(), seeds.sum::<usize>());
    let _ = writeln!(text, "- Commit: {}.", commits(circumstances(cells)));
    let times = || circumstances(cells).map(|one| one.at);
    if let (Some(first), Some(last)) = (times().min(), times().max()) {
        let _ = writeln!(text, "- Begin of the first and the last run: {first:.0}, {last:.0}.");
    }
    if let Some(accuracy) = accuracy {
        let _ = writeln!(text, "- The emulator on this machine: {accuracy}.");
    }
    let programs = cells.iter().filter_map(|cell| cell.peers.as_ref()).flat_map(|peers| &peers.programs);
    let programs = programs.map(String::as_str).collect::<BTreeSet<_>>();
    let _ = writeln!(text, "- Beside: {}.", programs.into_iter().collect::<Vec<_>>().join("; "));
    let discarded = circumstances(cells).map(|one| one.discarded.len()).sum::<usize>();
    let _ = writeln!(text, "- Discarded and repeated runs: {discarded}.");
    for cell in cells {
        let of_ours = cell.ours.iter().map(|record| (format!("seed {}", record.seed), &record.circumstances));
        let of_peers = cell.peers.iter().map(|record| ("peers".to_owned(), &record.circumstances));
        for (whose, one) in of_ours.chain(of_peers) {
            if let Some(fault) = &one.fault {
                let _ = writeln!(text, "- No result: `{}`, {whose}: {}.", cell.cell.name, fault.replace('\n', " "));
            }
        }
    }
    text.push('\n');
    text
}

fn rows<'a>(check: &Check, cells: &'a [CellRecords]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for cell in cells {
        let ours = cell.ours.iter().flat_map(|record| (check.ours)(record, &cell.cell.scenario)).collect::<Vec<_>>();
        let peers = cell.peers.iter().flat_map(|record| &record.readings);
        let peers = peers.filter(|reading| reading.check == check.name).collect::<Vec<_>>();
        let mut names = Vec::new();
        for what in ours.iter().map(|reading| reading.what.clone()) {
            if !names.contains(&what) {
                names.push(what);
            }
        }
        for what in names {
            rows.push(Row {
                cell: &cell.cell.name,
                ours: ours.iter().filter(|reading| reading.what == what).cloned().collect(),
                peers: peers.iter().filter(|reading| reading.what == what).copied().collect(),
                what,
            });
        }
    }
    rows
}

fn summary(tables: &[(&Check, Vec<Row<'_>>)]) -> String {
    let mut text =
        "## Summary\n\n| | rows | readings inside the tolerance | rows in which another program is closer | of these, closer than \
         each of our seeds |\n"
            .to_owned();
    text.push_str("|---|---|---|---|---|\n");
    for (check, rows) in tables {
        let readings = rows.iter().map(|row| row.ours.len()).sum::<usize>();
        let met = rows.iter().map(Row::met).sum::<usize>();
        let closer = rows.iter().filter_map(|row| row.closer_peer(check)).collect::<Vec<_>>();
        let beyond = closer.iter().filter(|closer| closer.is_beyond_seeds).count();
        let (title, rows, closer) = (check.title, rows.len(), closer.len());
        let _ = writeln!(text, "| {title} | {rows} | {met} of {readings} | {closer} | {beyond} |");
    }
    text.push('\n');
    text
}

/// Why another program can be closer to the truth. Each entry has the name of the check, the program, and the reason.
const REASONS: &[(&str, &str, &str)] = &[
    (
        checks::THROUGHPUT,
        "iperf3",
        "Both programs count what the receiver read. iperf3 counts from before the first payload; we leave the start-up out, \
         so our window cuts the stream at both ends. A result and the record of the link have times in steps of 1 ms: that \
         is 0.02 % of 5 s, and more if one packet after a loss makes much readable in that millisecond.",
    ),
    (
        checks::IDLE,
        "ping",
        "The kernel of the far host answers ping; a program answers our probes. Both round trips contain the time in which \
         the emulator and the hosts wake up, which the record of the link does not contain. From 100 ms on, ping prints \
         whole milliseconds.",
    ),
    (checks::LOADED, "ping", "As for idle latency."),
    (
        checks::LOADED,
        "irtt",
        "Its probes ran beside the load of iperf3 and ours beside our own load, so they met other queues.",
    ),
];

/// Lists the programs that are closer to the truth than ours: in how many rows, by how much, and why.
fn closer(tables: &[(&Check, Vec<Row<'_>>)]) -> String {
    let mut text = "## Where another program is closer, and why\n\n".to_owned();
    let mut is_any = false;
    for (check, rows) in tables {
        let mut by_program = BTreeMap::<&str, Vec<f64>>::new();
        for closer in rows.iter().filter_map(|row| row.closer_peer(check)) {
            by_program.entry(closer.peer.by.as_str()).or_default().push(closer.by);
        }
        for (program, by) in by_program {
            is_any = true;
            let most = shown(check, by.iter().copied().fold(0.0, f64::max));
            let compared = rows.iter().filter(|row| row.peers.iter().any(|peer| peer.by == program)).count();
            let reason = REASONS.iter().find(|(name, by, _)| (*name, *by) == (check.name, program));
            let reason = reason.map_or("The reason is not known.", |(.., reason)| reason);
            let (title, most) = (check.title, most.trim_start_matches('+'));
            let _ =
                writeln!(text, "- {title}: {program} in {} of {compared} rows, by at most {most}. {reason}", by.len());
        }
    }
    if !is_any {
        text.push_str("In no row.\n");
    }
    text.push('\n');
    text
}

fn table(check: &Check, rows: &[Row<'_>]) -> String {
    let mut text = format!("## {}\n\n{}\n\n", check.title, check.text);
    if rows.is_empty() {
        text.push_str("No run yet.\n\n");
        return text;
    }
    let unit = check.unit;
    let _ = writeln!(text, "| cell | | truth, {unit} | ours | error | tolerance | others' error | closer |");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for row in rows {
        let Some(worst) = row.worst() else { continue };
        let verdict = if worst.is_met() {
            "met".to_owned()
        } else {
            let by = in_shown_unit(check, worst, worst.missed_by());
            format!(
                "**missed by {}** ({} of {} met)",
                shown(check, by).trim_start_matches('+'),
                row.met(),
                row.ours.len()
            )
        };
        let others = row.peers.iter().map(|peer| format!("{} {}", peer.by, shown(check, share(check, peer))));
        let others = others.collect::<Vec<_>>().join(", ");
        let closer = row.closer_peer(check).map(|closer| closer.shown(check)).unwrap_or_default();
        let digits = check.digits;
        let _ = writeln!(
            text,
            "| {} | {} | {:.digits$} | {:.digits$} | {} | {verdict} | {others} | {closer} |",
            row.cell,
            row.what,
            worst.truth,
            worst.said,
            shown(check, share(check, worst)),
        );
    }
    text.push('\n');
    text
}

fn matrix(cells: &[CellRecords]) -> String {
    let mut text = "## The matrix\n\n| cell | path | hops | IP | runs of ours |\n|---|---|---|---|---|\n".to_owned();
    for CellRecords { cell, ours, .. } in cells {
        let family = if cell.scenario.family == emulator::Family::Ipv4 { "v4" } else { "v6" };
        let runs = ours.iter().filter(|record| record.tcp.is_some()).count();
        let hops = cell.scenario.hops.len();
        let _ = writeln!(text, "| {} | {} | {hops} | {family} | {runs} |", cell.name, cell.scenario.title);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(readings: Vec<Reading>) -> PeerRecord {
        let circumstances = Circumstances {
            at: jiff::Timestamp::UNIX_EPOCH,
            commit: "abc".to_owned(),
            discarded: vec![],
            fault: Some("late".to_owned()),
            worst_lateness_ms: 0.0,
        };
        PeerRecord { cell: "05-slow".to_owned(), circumstances, programs: vec!["ping 1".to_owned()], readings }
    }

    #[test]
    fn a_page_without_runs_has_no_figures() {
        let cells = crate::cells::all().unwrap().into_iter();
        let cells = cells.map(|cell| CellRecords { cell, ours: vec![], peers: None }).collect::<Vec<_>>();
        let page = page(&cells, None);
        assert!(page.contains("Cells with a result: 0 of 24"), "{page}");
        assert_eq!(page.matches("No run yet.").count(), CHECKS.len());
        assert!(page.contains("| 05-slow | 1 Mbit/s, 20 ms | 3 | v4 | 0 |"), "{page}");
    }

    #[test]
    fn a_row_shows_the_worst_seed_and_a_peer_that_is_closer() {
        let peer = checks::idle("ping", 20.1, 20.0);
        let row = Row {
            cell: "05-slow",
            what: String::new(),
            ours: vec![checks::idle("x", 20.15, 20.0), checks::idle("x", 20.5, 20.0), checks::idle("x", 20.12, 20.0)],
            peers: vec![&peer],
        };
        let idle = CHECKS.iter().find(|check| check.name == checks::IDLE).unwrap();
        let text = table(idle, &[row]);
        let expected = "| 05-slow |  | 20.000 | 20.500 | +0.500 ms | **missed by 0.300 ms** (2 of 3 met) | ping +0.100 ms | ping by 0.050 ms, than each seed |";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_page_says_how_often_and_why_another_program_is_closer() {
        let idle = CHECKS.iter().find(|check| check.name == checks::IDLE).unwrap();
        let (near, far) = (checks::idle("ping", 20.1, 20.0), checks::idle("irtt", 21.0, 20.0));
        let row = || Row {
            cell: "05-slow",
            what: String::new(),
            ours: vec![checks::idle("x", 20.15, 20.0)],
            peers: vec![&near, &far],
        };
        let without = Row { peers: vec![&far], ..row() };
        let text = closer(&[(idle, vec![row(), row(), without])]);
        assert!(text.contains("- Idle latency: ping in 2 of 2 rows, by at most 0.050 ms. The kernel of"), "{text}");
        assert!(!text.contains("irtt"), "{text}");
        assert!(closer(&[]).contains("In no row."));
    }

    #[test]
    fn a_run_without_result_is_named() {
        let cell = crate::cells::named("05-slow").unwrap();
        let cells = [CellRecords { cell, ours: vec![], peers: Some(record(vec![])) }];
        let text = runs(&cells, Some("exact"));
        assert!(text.contains("- No result: `05-slow`, peers: late."), "{text}");
        assert!(text.contains("- Commit: abc.") && text.contains("- Beside: ping 1."), "{text}");
    }
}
