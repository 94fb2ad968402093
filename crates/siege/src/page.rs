//! Renders the results of a siege as a Markdown page. Pure, except that it reads facts about the host and runs git.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use paramedic_engines::host_facts;

use crate::measured::{Measured, Verdict};
use crate::rows::Row;

/// A row of the siege that has run, with its measured values.
pub(crate) struct Played {
    pub(crate) row: &'static Row,
    pub(crate) measured: Measured,
    pub(crate) took: Duration,
}

/// Renders the results of a siege as a Markdown page. `took` is the duration of the whole siege.
pub(crate) fn page(played: &[Played], took: Duration) -> String {
    let count = |verdict| played.iter().filter(|one| one.measured.verdict() == verdict).count();
    let mut page = String::new();
    page.push_str("# The siege\n\n");
    page.push_str("Each promise of safety with the measured value. Written by `script/siege`.\n\n");
    let _ = writeln!(
        page,
        "{} met, {} missed, {} skipped; {} minutes.\n",
        count(Verdict::Met),
        count(Verdict::Missed),
        count(Verdict::Skipped),
        took.as_secs().div_ceil(60)
    );
    page.push_str("| row | promise | measured | verdict | duration |\n|---|---|---|---|---|\n");
    for one in played {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} s |",
            one.row.name,
            cell(one.row.promise),
            cell(&one.measured.text()),
            one.measured.verdict().word(),
            one.took.as_secs()
        );
    }
    page.push_str("\n## Host and date\n\n| | |\n|---|---|\n");
    for (what, value) in facts() {
        let _ = writeln!(page, "| {what} | {} |", cell(&value));
    }
    page.push_str("\n## How to repeat it\n\n    script/siege\n    script/siege --only ROW     # one row\n");
    page.push_str("    script/siege --short        # as in script/test\n");
    page
}

/// Escapes text for use in a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn facts() -> Vec<(&'static str, String)> {
    let facts = host_facts::read(None);
    let unknown = || "unknown".to_owned();
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default();
    vec![
        ("date", now.to_string()),
        ("commit", commit().unwrap_or_else(unknown)),
        ("processor", facts.cpu_model.map_or_else(unknown, |model| model.to_string())),
        ("cores", facts.cpus.map_or_else(unknown, |cpus| cpus.to_string())),
        ("memory", facts.memory_total_bytes.map_or_else(unknown, gib)),
        ("system", facts.system.map_or_else(unknown, |system| system.to_string())),
        ("user", if rustix::process::geteuid().is_root() { "root" } else { "not root" }.to_owned()),
    ]
}

/// The checked-out commit, followed by `with changes` if any file except this page was changed since. `None` if git
/// fails.
fn commit() -> Option<String> {
    let first_line = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        String::from_utf8_lossy(&output.stdout).lines().next().map(|line| line.trim().to_owned())
    };
    let id = first_line(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = first_line(&["status", "--porcelain", "--", ".", ":!docs/siege.md"]).is_some();
    Some(if is_changed { format!("{id}, with changes") } else { id })
}
