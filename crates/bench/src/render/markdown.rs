//! Renders the page of a record: the machine, the promises, every cell, and how to repeat the run.

use std::fmt::Write;

use super::numbers::{gigabits, three_digits, with_unit};
use super::{bars, groups, plot_name};
use crate::cells::{Cell, Engine, Group};
use crate::promises::{Bound, Row, Verdict, judge};
use crate::record::{CellRecord, Memory, Reading, Record};
use crate::statistics::Spread;

/// Renders the whole page.
pub(super) fn page(record: &Record) -> String {
    let sections = [
        head(record),
        promises(record),
        losses(record),
        groups(record).iter().map(|(group, cells)| section(*group, cells)).collect::<String>(),
        alone(record),
        how(record),
    ];
    sections.iter().filter(|section| !section.is_empty()).cloned().collect::<Vec<_>>().join("\n")
}

fn head(record: &Record) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `script/bench`; nothing here is typed by hand. The raw data is in [data.json](data.json), from which `script/bench --render` makes this page and its plots again.\n\n",
    );
    if record.quick || record.pairs < 10 {
        let _ = writeln!(
            text,
            "**A short run: {} pairs a cell, so the intervals are wide. Take no figure from here.**\n",
            record.pairs
        );
    }
    text.push_str("| | |\n|---|---|\n");
    let machine = &record.machine;
    let facts = &machine.facts;
    let text_of = |of: &Option<paramedic_link::PeerText>| of.as_ref().map(|text| text.as_str().to_owned());
    let rows = [
        ("run", Some(format!("{} to {}", record.started_at, record.finished_at))),
        ("commit", record.commit.clone()),
        ("command", Some(format!("`{}`", record.command))),
        ("processor", text_of(&facts.cpu_model)),
        ("cores", facts.cpus.map(|cpus| cpus.to_string())),
        ("clock governed by", machine.governor.clone()),
        ("virtual machine of", machine.hypervisor.clone()),
        ("memory", facts.memory_total_bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))),
        ("system", text_of(&facts.system)),
        ("load before the run", facts.load_1m.map(|load| format!("{load:.2} runnable tasks over a minute"))),
        (
            "congestion control",
            machine.congestion_default.clone().map(|name| {
                let available = machine.congestion_available.as_deref().unwrap_or("unknown");
                format!("{name} by default; there are {available}")
            }),
        ),
        ("iperf3", machine.iperf3.clone()),
        ("another iperf3", machine.other_iperf3.clone()),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(text, "| {name} | {} |", cell_text(&value));
        }
    }
    text
}

fn promises(record: &Record) -> String {
    let mut text = String::from(
        "## What was promised\n\n| what | beside | promise | measured | spread | 95 % interval | |\n|---|---|---|---|---|---|---|\n",
    );
    let rows = judge(record);
    for row in &rows {
        let _ = writeln!(text, "{}", promise(row));
    }
    text.push_str("\nMeasured is the median; of a ratio each pair gives one, and the interval is that of their geometric mean. Where a promise is of several cells, it is judged by the one that keeps it least, unless it says best.\n");
    text
}

fn promise(row: &Row) -> String {
    let unit = |value| with_unit(value, row.unit);
    let sign = match row.bound {
        Bound::AtLeast(_) => "≥",
        Bound::AtMost(_) => "≤",
    };
    let (measured, spread, interval) = match row.measured {
        Some(found) => {
            let (low, high) = found.ends;
            let interval = found.ci95.map(|(low, high)| format!("{} to {}", unit(low), unit(high)));
            let spread = if low < high { format!("{} to {}", unit(low), unit(high)) } else { String::new() };
            (unit(found.median), spread, interval.unwrap_or_default())
        }
        None => Default::default(),
    };
    let verdict = match row.verdict() {
        Verdict::Met => "**met**",
        Verdict::MetWithDoubt => "**met**, but the interval reaches beyond",
        Verdict::Missed => "**missed**",
        Verdict::Unknown => "not measured",
    };
    let verdict =
        if row.note.is_empty() { verdict.to_owned() } else { format!("{verdict} ({})", cell_text(&row.note)) };
    let promised = unit(row.bound.value());
    format!("| {} | {} | {sign} {promised} | {measured} | {spread} | {interval} | {verdict} |", row.name, row.beside)
}

/// The section that lists the cells in which iperf3 is faster, so that the reader need not search for them.
fn losses(record: &Record) -> String {
    let lost = |found: &&CellRecord| found.ratio(|reading| reading.bps).is_some_and(|ratio| ratio.spread.median < 1.0);
    let lost = record.cells.iter().filter(lost).collect::<Vec<_>>();
    let measured = record.cells.iter().filter(|found| !found.pairs.is_empty()).count();
    if measured == 0 {
        return String::new();
    }
    let mut text = format!("## Where iperf3 is ahead\n\nIn {} of {measured} cells.\n", lost.len());
    if !lost.is_empty() {
        text.push('\n');
    }
    for found in lost {
        if let Some(ratio) = found.ratio(|reading| reading.bps) {
            let _ = writeln!(text, "- `{}`: {}× of iperf3", found.cell.name, three_digits(ratio.spread.median));
        }
    }
    text
}

fn section(group: Group, cells: &[&CellRecord]) -> String {
    let mut text = format!("## {}\n\n{}\n\n", group.title(), group.note());
    if !bars(cells).is_empty() {
        let _ = writeln!(text, "![{}]({})\n", group.title(), plot_name(group));
    }
    let is_udp = cells.iter().any(|found| found.cell.ours.engine == Engine::Udp);
    let (more, line) = if is_udp { (" iperf3 loses | ours loses |", "---|---|") } else { ("", "") };
    let _ = writeln!(
        text,
        "| | iperf3, Gbit/s | ours, Gbit/s | ours over iperf3 | lowest to highest | mean, 95 % interval | iperf3, CPU s a GB | ours, CPU s a GB |{more} pairs |"
    );
    let _ = writeln!(text, "|---|---|---|---|---|---|---|---|{line}---|");
    for found in cells {
        let _ = writeln!(text, "{}", row(found, is_udp));
    }
    for found in cells {
        for failure in found.failures.iter().chain(&found.passed_over) {
            let _ = write!(text, "\n`{}`: {}\n", found.cell.name, cell_text(failure));
        }
    }
    text.push('\n');
    text
}

fn row(found: &CellRecord, is_udp: bool) -> String {
    let label = found.cell.label();
    let bps = |reading: &Reading| reading.bps;
    let (Some(theirs), Some(ours), Some(ratio)) = (found.theirs(bps), found.ours(bps), found.ratio(bps)) else {
        let why = if found.passed_over.is_some() { "passed over" } else { "failed" };
        let empty = if is_udp { " | |" } else { "" };
        return format!("| {label} | {why} | | | | | | |{empty} 0 |");
    };
    let rate = |spread: Spread| {
        format!("{} ({} to {})", gigabits(spread.median), gigabits(spread.lowest), gigabits(spread.highest))
    };
    let cost = |spread: Option<Spread>| spread.map_or(String::new(), |spread| three_digits(spread.median));
    let mean = match ratio.ci95 {
        Some((low, high)) => {
            format!("{}, {} to {}", three_digits(ratio.mean), three_digits(low), three_digits(high))
        }
        None => three_digits(ratio.mean),
    };
    let share =
        |spread: Option<Spread>| spread.map_or(String::new(), |spread| format!("{:.2} %", spread.median * 100.0));
    let loss = |reading: &Reading| reading.loss.unwrap_or(f64::NAN);
    let losses =
        if is_udp { format!(" {} | {} |", share(found.theirs(loss)), share(found.ours(loss))) } else { String::new() };
    format!(
        "| {label} | {} | {} | **{}×** | {} to {} | {mean} | {} | {} |{losses} {} |",
        rate(theirs),
        rate(ours),
        three_digits(ratio.spread.median),
        three_digits(ratio.spread.lowest),
        three_digits(ratio.spread.highest),
        cost(found.theirs(Reading::cpu_s_per_gb)),
        cost(found.ours(Reading::cpu_s_per_gb)),
        found.pairs.len(),
    )
}

fn alone(record: &Record) -> String {
    let found = &record.alone;
    let mut text = String::new();
    if !found.memory.is_empty() {
        text.push_str("## Memory during a test\n\nThe largest resident memory (`VmHWM`) of each process, in MiB.\n\n| | streams | client | server |\n|---|---|---|---|\n");
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        for Memory { what, streams, client_bytes, server_bytes, .. } in &found.memory {
            let _ = writeln!(text, "| {what} | {streams} | {} | {} |", mib(*client_bytes), mib(*server_bytes));
        }
    }
    for failure in &found.failures {
        let _ = write!(text, "\nFailed: {}\n", cell_text(failure));
    }
    text
}

fn how(record: &Record) -> String {
    let mut text = format!(
        "## How it was done\n\nBoth sides ran in turn, {} pairs a cell, and each side went first in every other pair. Ours went through the real programs: `reflector serve` and `packetparamedic speed-test`; a rate of ours is `goodput_bps` of its document: the mean at the receiver once TCP has found its rate, and all of the phase where that can't be told from a run so short. iperf3's rate is its `sum_received`, of the whole run. Processor time is that of both whole processes, user and system, connecting and ending included: the kernel's count of the client once it has ended, and /proc of the server before and after. All that is done between both is on one host, so both ends share its cores.\n\n",
        record.pairs
    );
    text.push_str("The handshakes are those of a link (TLS 1.3, both ends prove Ed25519 keys, X25519MLKEM768), over loopback, one after another, each on a connection of its own. What a speed test takes beside its loading is its whole time, program start and saved result included, less its phases: 0.2 s idle, 1 s download, 1 s upload.\n\n");
    text.push_str("<details><summary>The commands of every cell</summary>\n\n```\n");
    for CellRecord { cell, .. } in &record.cells {
        let _ = writeln!(text, "# {}\n{}\n{}", cell.name, ours_in_words(cell), theirs_in_words(cell));
    }
    text.push_str("```\n\n</details>\n");
    text
}

fn ours_in_words(cell: &Cell) -> String {
    format!("packetparamedic {}", cell.our_arguments().join(" "))
}

fn theirs_in_words(cell: &Cell) -> String {
    let program = if cell.theirs.other { "another-iperf3" } else { "iperf3" };
    format!("{program} {}", cell.their_arguments("SERVER", 5201).join(" "))
}

/// Makes the text safe for a cell of a Markdown table: one line, with `|` escaped.
fn cell_text(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn every_cell_and_every_promise_has_a_row() {
        let record = example::record();
        let page = page(&record);
        for found in &record.cells {
            assert!(page.contains(&format!("| {} |", found.cell.label())), "{}", found.cell.name);
            assert!(page.contains(&format!("# {}\n", found.cell.name)), "{}", found.cell.name);
        }
        for row in judge(&record) {
            assert!(page.contains(&format!("| {} |", row.name)), "{}", row.name);
        }
    }

    #[test]
    fn every_row_of_a_table_has_as_many_cells_as_its_head() {
        let mut record = example::record();
        record.cells[0].pairs.clear();
        record.cells[0].failures = vec!["a | b\nc".to_owned()];
        let page = page(&record);
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut head = None;
        for line in page.lines() {
            if !line.starts_with('|') {
                head = None;
                continue;
            }
            let expected = *head.get_or_insert_with(|| columns(line));
            assert_eq!(columns(line), expected, "{line}");
        }
        assert!(page.contains("a \\| b c"), "a failure is told on one line");
    }

    #[test]
    fn losses_are_named_and_a_short_run_says_so() {
        let record = example::record();
        let page = page(&record);
        let lost = record.cells.iter().filter(|found| found.ratio(|reading| reading.bps).unwrap().spread.median < 1.0);
        for found in lost {
            assert!(page.contains(&format!("- `{}`: ", found.cell.name)));
        }
        assert!(page.contains("A short run: 3 pairs"));
        let full = Record { pairs: 10, ..record };
        assert!(!super::page(&full).contains("A short run"));
    }
}
