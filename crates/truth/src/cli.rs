//! The command line: which cells of the test matrix to run, how often, and where to write the records and the pages.
//! With side effects: prints and reads the clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use emulator::KeepAwake;
use emulator::accuracy::Accuracy;
use lab::Programs;

use crate::cells::{self, Cell};
use crate::checks::CHECKS;
use crate::page::{self, CellRecords};
use crate::record::{Circumstances, OurRecord, PeerRecord, Records, Run};
use crate::run::{Bed, worst_lateness_ms};
use crate::{coverage, cross_check, early_ends, peers, random_paths};

/// The number of attempts after which a run counts as failed.
const TRIES: usize = 3;

/// The path of the page about the test matrix, relative to the root of the repository.
const PAGE: &str = "docs/truth/README.md";
const RANDOM_PAGE: &str = "docs/truth/random-paths.md";
const COVERAGE_PAGE: &str = "docs/truth/coverage.md";
const EARLY_PAGE: &str = "docs/truth/early-ends.md";

/// The arguments of `speed-test` in a run of the test matrix.
const MATRIX_RUN: &[&str] = &["-t", "5"];

/// Compare the results of our programs, iperf3, ping and irtt with what emulated links did, and write docs/truth
///
/// Runs the programs `reflector` and `packetparamedic` that are in the same folder as this program. Needs root to
/// create network namespaces. A run that has a record with a result is not repeated. A cell is one emulated path of the
/// test matrix.
#[derive(Debug, Parser)]
#[command(name = "truth")]
struct Cli {
    /// Run only cells (emulated paths) whose name contains TEXT; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Run our programs N times (1 to 100) in each cell, each time with another random seed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Start no further run after N minutes
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Measure again even if a run has a record with a result
    #[arg(long)]
    fresh: bool,
    /// Do not run iperf3, ping and irtt
    #[arg(long)]
    no_peers: bool,
    /// Write docs/truth/README.md from existing records, without measuring
    #[arg(long)]
    pages: bool,
    /// Print the name and the title of each cell (emulated path), and exit
    #[arg(long)]
    list: bool,
    /// Instead of the cells, run random paths, and check the reported direction of the queue, until N (1 to 100) runs
    /// are counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    random_paths: Option<u64>,
    /// Instead of all cells, repeat two of them until N (2 to 200) runs of each direction have a confidence interval,
    /// and count how many of these contain the true rate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=200))]
    coverage: Option<u64>,
    /// Run each emulated path N times (1 to 100) with `--until-stable` and once in full length, and count the early
    /// ends
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    early_ends: Option<u64>,
    /// Compare the goodput over the emulator with that over the kernel's shapers (tc-tbf, tc-htb), and run no cell
    #[arg(long)]
    cross_check: bool,
    /// Read and write the records of runs in DIR [default: lab in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
}

/// Parses the command line and runs the program. Returns its exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(&self) -> anyhow::Result<()> {
        let cells = cells::all()?;
        if self.list {
            cells.iter().for_each(|cell| println!("{}: {}", cell.name, cell.scenario.title));
            return Ok(());
        }
        let records = Records::new(match &self.records {
            Some(folder) => folder.clone(),
            None => target_folder()?.join("lab"),
        });
        if !self.pages {
            let _awake = KeepAwake::start();
            if self.cross_check {
                return cross_check::print(|line| println!("{line}"));
            }
            Programs::use_own_folder()?;
            if let Some(count) = self.random_paths {
                return measure_random_paths(count, &records);
            }
            if let Some(count) = self.coverage {
                return measure_coverage(count, &records);
            }
            if let Some(count) = self.early_ends {
                return self.measure_early_ends(cells, count, &records);
            }
            self.measure(&cells, &records)?;
        }
        write_page(cells, &records)
    }

    fn measure(&self, cells: &[Cell], records: &Records) -> anyhow::Result<()> {
        for program in peers::missing() {
            eprintln!("SKIPPED: {program} is not installed; the tables will not contain it");
        }
        let accuracy = Accuracy::measure().context("cannot measure the accuracy of the emulator")?;
        let words = in_words(&accuracy);
        println!("the emulator on this machine: {words}");
        std::fs::create_dir_all(records.folder())?;
        std::fs::write(records.folder().join(ACCURACY), &words)?;
        let began = Instant::now();
        let is_time_over = || self.minutes.is_some_and(|minutes| began.elapsed() >= Duration::from_secs(minutes * 60));
        for cell in cells.iter().filter(|cell| self.is_meant(cell)) {
            println!("{}: {}", cell.name, cell.scenario.title);
            for seed in 1..=self.seeds {
                let known = records.ours(&cell.name, seed)?.filter(|record| record.circumstances.fault.is_none());
                if (known.is_none() || self.fresh) && !is_time_over() {
                    let record = ours(cell, seed, &accuracy, MATRIX_RUN);
                    println!("    seed {seed}: {}", in_short(&record, cell));
                    records.write_ours(&record)?;
                }
            }
            let known = records.peers(&cell.name)?.filter(|record| record.circumstances.fault.is_none());
            if !self.no_peers && (known.is_none() || self.fresh) && !is_time_over() {
                let record = others(cell, &accuracy);
                let fault = record.circumstances.fault.as_deref().unwrap_or("done");
                println!("    peers: {fault}, {} readings", record.readings.len());
                records.write_peers(&record)?;
            }
        }
        Ok(())
    }

    fn is_meant(&self, cell: &Cell) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| cell.name.contains(text))
    }

    /// Runs every cell and every link with a changing rate `count` times with `--until-stable` and once in full, and
    /// writes the page about early ends.
    fn measure_early_ends(&self, steady: Vec<Cell>, count: u64, records: &Records) -> anyhow::Result<()> {
        let accuracy = Accuracy::measure().context("cannot measure the accuracy of the emulator")?;
        let [full, early] =
            ["full", "until-stable"].map(|name| Records::new(records.folder().join("early-ends").join(name)));
        let mut done = [Vec::new(), Vec::new()];
        for (at, cells) in [steady, cells::unsteady()?].into_iter().enumerate() {
            for mut cell in cells.into_iter().filter(|cell| self.is_meant(cell)) {
                cell.scenario.udp_mbit = None;
                let full = known_or_measured(&cell, 1, &full, &accuracy, &[])?;
                let mut runs = Vec::new();
                for seed in 1..=count {
                    let record = known_or_measured(&cell, seed, &early, &accuracy, &["--until-stable"])?;
                    println!("{}, seed {seed}: {}", cell.name, early_ends::in_short(&record));
                    runs.push(record);
                }
                done[at].push(early_ends::CellRuns { cell, full, early: runs });
                std::fs::write(EARLY_PAGE, early_ends::page(&done[0], &done[1], &in_words(&accuracy)))?;
            }
        }
        println!("written: {EARLY_PAGE}");
        Ok(())
    }
}

/// Runs tests on random paths until the queue direction of `count` runs can be judged, and writes the page about them.
/// Makes at most twice as many runs.
fn measure_random_paths(count: u64, records: &Records) -> anyhow::Result<()> {
    let accuracy = Accuracy::measure().context("cannot measure the accuracy of the emulator")?;
    let (mut runs, mut counted) = (Vec::new(), 0);
    for seed in 1..=2 * count {
        if counted == count {
            break;
        }
        let cell = random_paths::random_path(seed);
        let record = known_or_measured(&cell, seed, records, &accuracy, MATRIX_RUN)?;
        let readings = random_paths::readings(&record, &cell);
        counted += u64::from(!readings.is_empty());
        let words =
            readings.iter().map(|one| format!("{}: {}", one.what, if one.is_met() { "right" } else { "WRONG" }));
        let fault = record.circumstances.fault.clone();
        println!("{}: {}", cell.name, fault.unwrap_or_else(|| words.collect::<Vec<_>>().join("; ")));
        runs.push((cell, record));
    }
    std::fs::write(RANDOM_PAGE, random_paths::page(&runs, &in_words(&accuracy)))?;
    println!("written: {RANDOM_PAGE}");
    Ok(())
}

/// Repeats the cells of [`coverage::CELLS`] until `count` runs of each have a confidence interval in each direction,
/// and writes the page about them. Makes at most twice as many runs of each cell.
fn measure_coverage(count: u64, records: &Records) -> anyhow::Result<()> {
    let accuracy = Accuracy::measure().context("cannot measure the accuracy of the emulator")?;
    // Separate from the records of the matrix, because the page of the matrix shows every seed that it finds.
    let records = Records::new(records.folder().join("coverage"));
    let mut cells = Vec::new();
    for name in coverage::CELLS {
        let mut cell = cells::named(name)?;
        cell.scenario.udp_mbit = None;
        let mut runs = Vec::new();
        for seed in 1..=2 * count {
            if coverage::least_counted(&runs) >= count {
                break;
            }
            let record = known_or_measured(&cell, seed, &records, &accuracy, MATRIX_RUN)?;
            println!("{name}, seed {seed}: {}", record.circumstances.fault.as_deref().unwrap_or("measured"));
            runs.push(record);
        }
        cells.push((cell, runs));
        std::fs::write(COVERAGE_PAGE, coverage::page(&cells, &in_words(&accuracy)))?;
    }
    println!("written: {COVERAGE_PAGE}");
    Ok(())
}

fn known_or_measured(
    cell: &Cell,
    seed: u64,
    records: &Records,
    accuracy: &Accuracy,
    args: &[&str],
) -> anyhow::Result<OurRecord> {
    let known = records.ours(&cell.name, seed)?.filter(|record| record.circumstances.fault.is_none());
    if let Some(record) = known {
        return Ok(record);
    }
    let record = ours(cell, seed, accuracy, args);
    records.write_ours(&record)?;
    Ok(record)
}

/// The file that holds the emulator's accuracy in words; it is in the folder of the records.
const ACCURACY: &str = "accuracy.txt";

fn in_words(accuracy: &Accuracy) -> String {
    let us = |error: Duration| error.as_micros();
    format!(
        "round trips of 40 ms, with the time of a program at each end, {} us too long in the median and {} us in the 99th \
         percentile; rates up to {} Mbit/s",
        us(accuracy.round_trip_error),
        us(accuracy.round_trip_error_p99),
        accuracy.rate_mbit
    )
}

/// The cargo target folder, found by the path of this program.
fn target_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).context("this program is not in cargo's target folder: set --records DIR")?.to_owned())
}

fn write_page(cells: Vec<Cell>, records: &Records) -> anyhow::Result<()> {
    let read = |cell: Cell| {
        let seeds = (1..=100).filter_map(|seed| records.ours(&cell.name, seed).transpose());
        let ours = seeds.collect::<anyhow::Result<Vec<_>>>()?;
        let peers = records.peers(&cell.name)?;
        anyhow::Ok(CellRecords { cell, ours, peers })
    };
    let cells = cells.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let accuracy = std::fs::read_to_string(records.folder().join(ACCURACY)).ok();
    let path = Path::new(PAGE);
    std::fs::create_dir_all(path.parent().context("the path has no folder")?)?;
    std::fs::write(path, page::page(&cells, accuracy.as_deref()))?;
    println!("written: {PAGE}");
    Ok(())
}

/// The commit that is checked out, and whether any file outside docs/truth was changed since; `unknown` without git.
fn commit() -> String {
    let first_line = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        String::from_utf8_lossy(&output.stdout).lines().next().map(|line| line.trim().to_owned())
    };
    let Some(id) = first_line(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_changed = first_line(&["status", "--porcelain", "--", ".", ":!docs/truth"]).is_some();
    if is_changed { format!("{id}, with changes") } else { id }
}

fn new_circumstances() -> Circumstances {
    Circumstances {
        at: jiff::Timestamp::now(),
        commit: commit(),
        discarded: vec![],
        fault: None,
        worst_lateness_ms: 0.0,
    }
}

/// Calls `attempt` until it returns a run without a fault, at most [`TRIES`] times; `None` if it returns none. Records
/// in `circumstances` why attempts were discarded.
fn retry<T>(circumstances: &mut Circumstances, mut attempt: impl FnMut() -> anyhow::Result<Attempt<T>>) -> Option<T> {
    for _ in 0..TRIES {
        // The crate `lab` panics if a program does not do what it must.
        let attempt = catch_unwind(AssertUnwindSafe(&mut attempt));
        let fault = match attempt {
            Ok(Ok(Attempt { fault: None, value, worst_lateness_ms })) => {
                circumstances.worst_lateness_ms = circumstances.worst_lateness_ms.max(worst_lateness_ms);
                return Some(value);
            }
            Ok(Ok(Attempt { fault: Some(fault), .. })) => fault,
            Ok(Err(error)) => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
            Err(_) => "a program failed, as printed above".to_owned(),
        };
        println!("    discarded: {fault}");
        circumstances.discarded.push(fault);
    }
    circumstances.fault =
        circumstances.discarded.last().map(|fault| format!("{TRIES} runs discarded, the last: {fault}"));
    None
}

/// A run with its fault: the reason to discard it, or `None` if it is valid.
struct Attempt<T> {
    value: T,
    fault: Option<String>,
    worst_lateness_ms: f64,
}

/// Makes a TCP run of our programs with these arguments. If it has a result and the cell has a rate for a UDP run, also
/// makes a UDP run.
fn ours(cell: &Cell, seed: u64, accuracy: &Accuracy, args: &[&str]) -> OurRecord {
    let mut circumstances = new_circumstances();
    let mut record =
        OurRecord { cell: cell.name.clone(), seed, circumstances: circumstances.clone(), tcp: None, udp: None };
    circumstances.fault = accuracy.refuses(&cell.scenario);
    if circumstances.fault.is_none() {
        let streams = cell.scenario.streams.map(|streams| streams.to_string());
        let streams = streams.iter().flat_map(|streams| ["-P", streams.as_str()]);
        let tcp = args.iter().copied().chain(streams).collect::<Vec<_>>();
        record.tcp = retry(&mut circumstances, || attempt(cell, seed, &tcp));
        let rate = cell.scenario.udp_mbit.map(|mbit| format!("{}k", mbit * 1000.0));
        if let Some(rate) = rate.filter(|_| record.tcp.is_some()) {
            let udp = ["-u", "-b", &rate, "-O", "0", "-t", "3", "--idle", "1"];
            record.udp = retry(&mut circumstances, || attempt(cell, seed, &udp));
        }
    }
    record.circumstances = circumstances;
    record
}

fn attempt(cell: &Cell, seed: u64, args: &[&str]) -> anyhow::Result<Attempt<Run>> {
    let finished = Bed::new(&cell.scenario, seed)?.speed_test(args)?;
    let worst_lateness_ms = worst_lateness_ms(&finished.links);
    Ok(Attempt { value: finished.run, fault: finished.fault, worst_lateness_ms })
}

fn others(cell: &Cell, accuracy: &Accuracy) -> PeerRecord {
    let mut circumstances = new_circumstances();
    circumstances.fault = accuracy.refuses(&cell.scenario);
    let attempt = || {
        let run = peers::run(&cell.scenario, 1)?;
        let (fault, worst_lateness_ms) = (run.fault.clone(), run.worst_lateness_ms);
        Ok(Attempt { value: run, fault, worst_lateness_ms })
    };
    let run = if circumstances.fault.is_none() { retry(&mut circumstances, attempt) } else { None };
    let (programs, readings) = run.map(|run| (run.programs, run.readings)).unwrap_or_default();
    PeerRecord { cell: cell.name.clone(), circumstances, programs, readings }
}

/// Describes on one line how many readings of a record are inside their tolerance, and which are not.
fn in_short(record: &OurRecord, cell: &Cell) -> String {
    if let Some(fault) = &record.circumstances.fault {
        return fault.clone();
    }
    let readings = CHECKS.iter().flat_map(|check| (check.ours)(record, &cell.scenario)).collect::<Vec<_>>();
    let missed = readings.iter().filter(|reading| !reading.is_met());
    let missed = missed.map(|one| format!("{} {} {:.3} for {:.3}", one.check, one.what, one.said, one.truth));
    let missed = missed.collect::<Vec<_>>();
    let late = record.circumstances.worst_lateness_ms;
    format!(
        "{} of {} met; at most {late:.1} ms late; {}",
        readings.len() - missed.len(),
        readings.len(),
        missed.join("; ")
    )
}
