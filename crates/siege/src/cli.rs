//! The command line: which rows to run, in which form, and where to write the page.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use lab::Programs;

use crate::measured::{Measured, Verdict};
use crate::page::{Played, page};
use crate::rows::{ROWS, Row};
use crate::scale::Scale;

/// Attacks the real programs `reflector` and `packetparamedic`, and injects faults. Each row of the output is one
/// check: a safety promise, the measured values, and whether the promise was met.
///
/// Uses the two programs in the folder of this program. Rows that need root or a missing program are skipped with a
/// message. The exit code is 1 if a promise was missed.
#[derive(Debug, Parser)]
#[command(name = "siege")]
struct Cli {
    /// Run about a twentieth of the work, in under three minutes; times and rates are printed but not checked
    #[arg(long)]
    short: bool,
    /// Run only the row with this name (see --list); may be repeated
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Print the name and the promise of each row, and run none
    #[arg(long)]
    list: bool,
    /// Write the results page (Markdown) to FILE [default: docs/siege.md; with --short or --only no page]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The default path of the results page. Only a complete siege in the long form writes to it.
const PAGE: &str = "docs/siege.md";

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    match go(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn go(cli: &Cli) -> anyhow::Result<ExitCode> {
    if cli.list {
        ROWS.iter().for_each(|row| println!("{:16} {}", row.name, row.promise));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &cli.only {
        ensure!(ROWS.iter().any(|row| row.name == *name), "there is no row {name}: --list prints all names");
    }
    let rows = ROWS.iter().filter(|row| cli.only.is_empty() || cli.only.iter().any(|name| name == row.name));
    Programs::use_own_folder()?;
    raise_descriptors();
    let scale = if cli.short { Scale::Short } else { Scale::Long };
    let began = Instant::now();
    let played = rows.map(|row| play(row, scale)).collect::<Vec<_>>();
    let default = (!cli.short && cli.only.is_empty()).then(|| Path::new(PAGE));
    if let Some(path) = cli.out.as_deref().or(default) {
        std::fs::write(path, page(&played, began.elapsed()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
    }
    let missed = played.iter().filter(|one| one.measured.verdict() == Verdict::Missed).count();
    println!("{} rows, {missed} missed, {} s", played.len(), began.elapsed().as_secs());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one row of the siege and prints its line of the table.
fn play(row: &'static Row, scale: Scale) -> Played {
    let began = Instant::now();
    // `lab` panics if a program does what it must never do.
    let measured = std::panic::catch_unwind(AssertUnwindSafe(|| (row.play)(scale)));
    let measured = match measured {
        Ok(Ok(measured)) => measured,
        Ok(Err(error)) => Measured::failed(format!("the row failed: {error:#}")),
        Err(panic) => Measured::failed(format!("the row panicked: {}", words_of(&*panic))),
    };
    let took = began.elapsed();
    let verdict = measured.verdict().word();
    println!("{verdict:7} {:16} {:4} s  {}: {}", row.name, took.as_secs(), row.promise, measured.text());
    for part in measured.missed() {
        println!("          missed: {part}");
    }
    Played { row, measured, took }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Raises the limit of open files, to at most 65,536, because some rows open thousands of connections.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(65_536).min(65_536);
    // This is best effort: a row that runs out of descriptors reports that.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
