//! The command line: which cells to run, how often, and where the results are written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use lab::Programs;

use crate::alone;
use crate::cells::{self, Cell, Direction, Engine, Group, Link, Load, Mode, Ours};
use crate::machine;
use crate::pairs::{Pairs, Rights};
use crate::process::{Interrupted, Stop};
use crate::promises::{Verdict, judge};
use crate::record::{Alone, CellRecord, Record, SCHEMA};
use crate::render;

/// Compares the rates, processor time and memory of our engines with those of iperf3, and checks what was promised.
///
/// Runs the programs `reflector` and `packetparamedic` that lie in the same folder as this program. Needs root for
/// network namespaces and for restricted congestion controls; without root, those cells are skipped with a message.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Subcommands>,
    /// Run few cells and pairs, in less than three minutes; the confidence intervals are wide
    #[arg(long)]
    quick: bool,
    /// Pairs of runs per cell [default: 10; with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,
    /// Duration of each phase in whole seconds; UDP phases last at least 3, phases of pinned iperf3 cells at least 2
    #[arg(long, value_name = "SECS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Run only the cells (comparisons) whose name contains TEXT; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print the names of all cells, and run none
    #[arg(long)]
    list: bool,
    /// Path of a second iperf3; adds cells that compare our programs with this iperf3 at its fastest options
    #[arg(long, value_name = "PATH")]
    iperf3: Option<PathBuf>,
    /// Folder for the page, the plots and data.json [default: docs/benchmarks; with --quick or --only a temporary
    /// folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Render the page and the plots from the folder's data.json, without measuring
    #[arg(long, conflicts_with_all = ["quick", "pairs", "only", "list", "iperf3"])]
    render: bool,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run one comparison with these options, and print its results without saving them
    One(One),
}

/// The options of `bench one`, which runs one comparison.
#[derive(Debug, Args)]
struct One {
    /// Engine of `reflector` and `packetparamedic`
    #[arg(long, value_enum, default_value_t = Engine::Tcp)]
    engine: Engine,
    /// Data mode of `reflector` and `packetparamedic`
    #[arg(long, value_enum, default_value_t = Mode::Direct)]
    mode: Mode,
    /// The link between both ends
    #[arg(long, value_enum, default_value_t = Link::Loopback)]
    link: Link,
    /// Streams per direction
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: u16,
    /// Direction of the payload
    #[arg(long, value_enum, default_value_t = Direction::Download)]
    direction: Direction,
    /// The congestion control of both sides [default: the kernel's]
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Payload of each datagram in bytes; has no effect without --engine udp
    #[arg(long, value_name = "BYTES", default_value_t = 1400, value_parser = clap::value_parser!(u32).range(1..=65_507))]
    length: u32,
    /// Copy every byte in `reflector` and `packetparamedic`, instead of the fastest way such as zero copy
    #[arg(long)]
    plain: bool,
    /// Pin the servers of both sides to one processor and their clients to another
    #[arg(long)]
    pinned: bool,
    /// Number of pairs of runs; a pair is one run of our programs and one of iperf3
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Duration of each phase in whole seconds
    #[arg(long, value_name = "SECS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// The names of the measurements that are not made in pairs of runs with iperf3. `--only` searches these names, too.
const ALONE: [&str; 4] = ["alone/rest", "alone/memory", "alone/set-up", "alone/handshakes"];
/// The name of the file with the measured values. The page and the plots are rendered from it.
const DATA: &str = "data.json";

/// Runs the program.
pub fn run() -> ExitCode {
    match go(&Cli::parse()) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted: nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn go(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Some(Subcommands::One(one)) = &cli.command {
        return run_one(one);
    }
    let kept = Path::new("docs/benchmarks");
    if cli.render {
        let folder = cli.out.as_deref().unwrap_or(kept);
        write_pages(folder, &read_record(folder)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let other = cli.iperf3.as_deref().map(program_at).transpose()?;
    let options = other.as_deref().map(machine::best_options);
    let is_wanted = |name: &str| cli.only.is_empty() || cli.only.iter().any(|part| name.contains(part.as_str()));
    let plan = cells::plan(cli.quick, cli.seconds, options.as_deref());
    let plan = plan.into_iter().filter(|cell| is_wanted(&cell.name)).collect::<Vec<_>>();
    let alone = ALONE.into_iter().filter(|name| is_wanted(name)).collect::<Vec<_>>();
    if cli.list {
        plan.iter().map(|cell| cell.name.as_str()).chain(alone).for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!plan.is_empty() || !alone.is_empty(), "no name contains the text of --only: --list prints all names");
    let stop = Stop::listen()?;
    Programs::use_own_folder()?;
    let folder = match &cli.out {
        Some(folder) => folder.clone(),
        None if cli.quick || !cli.only.is_empty() => tempfile::Builder::new().prefix("bench-").tempdir()?.keep(),
        None => kept.to_owned(),
    };
    let pairs = cli.pairs.unwrap_or(if cli.quick { 3 } else { 10 });
    let record = measure(cli, &stop, &plan, &alone, pairs, other)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let data = folder.join(DATA);
    fs::write(&data, serde_json::to_string_pretty(&record)? + "\n")
        .with_context(|| format!("cannot write {}", data.display()))?;
    write_pages(&folder, &record)?;
    tell_promises(&record);
    if pairs < 10 {
        println!("only {pairs} pairs: the confidence intervals are wide");
    }
    println!("written to {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

fn measure(
    cli: &Cli,
    stop: &Stop,
    plan: &[Cell],
    alone: &[&str],
    pairs: u32,
    other: Option<PathBuf>,
) -> anyhow::Result<Record> {
    let rights = Rights::here();
    if !rights.is_root {
        eprintln!(
            "not root: cells over veth are skipped, and on loopback only these congestion controls are measured: {}",
            rights.allowed.join(", ")
        );
    }
    let iperf3 = program_in_path("iperf3")?;
    let machine = machine::read(&iperf3, other.as_deref());
    let commit = machine::commit();
    let expected =
        plan.iter().map(|cell| cell.expected(pairs)).sum::<Duration>() + expected_alone(alone, pairs, cli.quick);
    println!("{} cells of {pairs} pairs: about {} minutes", plan.len(), expected.as_secs().div_ceil(60));
    let started_at = now();
    let mut runner = Pairs::new(stop, iperf3, other, rights);
    // These measurements come first, while the machine is quiet.
    let found = measure_alone(cli.quick, stop, &mut runner, alone, pairs)?;
    let mut cells = Vec::new();
    for cell in plan {
        let found = runner.run(cell, pairs)?;
        tell(&found);
        cells.push(found);
    }
    drop(runner);
    let failed = cells.iter().filter(|found| !found.failures.is_empty()).count() + found.failures.len();
    if failed > 0 {
        println!("{failed} cells or measurements failed: see above");
    }
    Ok(Record {
        schema: SCHEMA.to_owned(),
        started_at,
        finished_at: now(),
        commit,
        command: command_line(cli, pairs),
        quick: cli.quick,
        pairs,
        machine,
        cells,
        alone: found,
    })
}

/// How long the reflector at rest is observed.
fn watched(quick: bool) -> Duration {
    Duration::from_secs(if quick { 5 } else { 10 })
}

fn expected_alone(alone: &[&str], pairs: u32, quick: bool) -> Duration {
    let of = |name: &&str| match *name {
        "alone/rest" => watched(quick) + Duration::from_secs(2),
        "alone/memory" => Duration::from_secs(8),
        "alone/set-up" => Duration::from_millis(2400) * pairs,
        _ => Duration::from_secs(1) * pairs,
    };
    alone.iter().map(of).sum()
}

fn measure_alone(
    quick: bool,
    stop: &Stop,
    runner: &mut Pairs<'_>,
    wanted: &[&str],
    pairs: u32,
) -> anyhow::Result<Alone> {
    /// The number of streams to which the promise about memory refers.
    const STREAMS: u16 = 8;
    let mut found = Alone::default();
    for name in wanted {
        let outcome = match *name {
            "alone/rest" => alone::rest(stop, pairs, watched(quick)).map(|rest| found.rest = Some(rest)),
            "alone/memory" => {
                let iperf3 = runner.iperf3.clone();
                let memory = runner.bed(Link::Loopback).and_then(|bed| alone::memory(stop, bed, &iperf3, STREAMS, 1));
                memory.map(|memory| found.memory = memory)
            }
            "alone/set-up" => {
                let set_up = runner.bed(Link::Loopback).and_then(|bed| alone::set_up(stop, bed, pairs));
                set_up.map(|set_up| found.set_up_s = set_up)
            }
            _ => alone::handshakes(stop, pairs, Duration::from_secs(1)).map(|rates| found.handshakes = rates),
        };
        match outcome {
            Ok(()) => println!("{name}"),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                println!("{name}: failed: {error:#}");
                found.failures.push(format!("{name}: {error:#}"));
            }
        }
    }
    Ok(found)
}

fn run_one(one: &One) -> anyhow::Result<ExitCode> {
    let ours = Ours { engine: one.engine, mode: one.mode, streams: one.streams, plain: one.plain };
    let load = match one.engine {
        Engine::Udp => Load::Udp(one.length),
        _ => Load::Tcp(one.congestion.clone()),
    };
    let cell = Cell::by_hand(one.link, ours, one.direction, load, one.seconds);
    let cell = if one.pinned { cell.pinned() } else { cell };
    let stop = Stop::listen()?;
    Programs::use_own_folder()?;
    let mut runner = Pairs::new(&stop, program_in_path("iperf3")?, None, Rights::here());
    let found = runner.run(&cell, one.pairs)?;
    println!("pair  iperf3 Gbit/s  ours Gbit/s  ratio");
    for (n, pair) in found.pairs.iter().enumerate() {
        let (theirs, ours) = (pair.theirs.bps, pair.ours.bps);
        println!("{:4}  {:13.2}  {:11.2}  {:5.3}", n + 1, theirs / 1e9, ours / 1e9, ours / theirs);
    }
    tell(&found);
    let is_measured = !found.pairs.is_empty() && found.failures.is_empty();
    Ok(if is_measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints one line for the cell, and one for each of its failures.
fn tell(found: &CellRecord) {
    let name = &found.cell.name;
    let bps = |reading: &crate::record::Reading| reading.bps;
    if let (Some(theirs), Some(ours), Some(ratio)) = (found.theirs(bps), found.ours(bps), found.ratio(bps)) {
        let interval =
            ratio.ci95.map(|(low, high)| format!(", 95 % interval {low:.3} to {high:.3}")).unwrap_or_default();
        println!(
            "{name}: iperf3 {:.2}, ours {:.2} Gbit/s; ratio {:.3}, lowest {:.3}, highest {:.3}; mean {:.3}{interval}",
            theirs.median / 1e9,
            ours.median / 1e9,
            ratio.spread.median,
            ratio.spread.lowest,
            ratio.spread.highest,
            ratio.mean,
        );
    }
    for failure in &found.failures {
        println!("{name}: failed: {failure}");
    }
    if let Some(why) = &found.passed_over {
        println!("{name}: skipped: {why}");
    }
}

fn tell_promises(record: &Record) {
    for row in judge(record) {
        let verdict = match row.verdict() {
            Verdict::Met => "met",
            Verdict::MetWithDoubt => "met, but the interval reaches beyond",
            Verdict::Missed => "MISSED",
            Verdict::Unknown => "not measured",
        };
        println!("{verdict}: {}", row.name);
    }
}

fn program_in_path(name: &str) -> anyhow::Result<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no {name} on this host: script/bench installs it"))
}

fn program_at(path: &Path) -> anyhow::Result<PathBuf> {
    let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    if !path.is_file() {
        bail!("{} is not a file", path.display());
    }
    Ok(path)
}

fn read_record(folder: &Path) -> anyhow::Result<Record> {
    let data = folder.join(DATA);
    let text = fs::read_to_string(&data).with_context(|| format!("cannot read {}", data.display()))?;
    let record: Record = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", data.display()))?;
    ensure!(record.schema == SCHEMA, "{} has the unknown schema {}: measure again", data.display(), record.schema);
    Ok(record)
}

/// Writes the page and the plots. Deletes plots of an earlier run that this run does not have.
fn write_pages(folder: &Path, record: &Record) -> anyhow::Result<()> {
    let files = render::files(record);
    let names = files.iter().map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>();
    for stale in Group::ALL.map(render::plot_name).iter().filter(|name| !names.contains(name.as_str())) {
        match fs::remove_file(folder.join(stale)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot delete {stale}"));
            }
            _ => {}
        }
    }
    for (name, text) in &files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The command that repeats the run. A placeholder replaces the path of another iperf3.
fn command_line(cli: &Cli, pairs: u32) -> String {
    let mut words = vec!["script/bench".to_owned()];
    if cli.quick {
        words.push("--quick".to_owned());
    }
    words.push(format!("--pairs {pairs} --seconds {}", cli.seconds));
    words.extend(cli.only.iter().map(|part| format!("--only {part}")));
    if cli.iperf3.is_some() {
        words.push("--iperf3 PATH".to_owned());
    }
    words.join(" ")
}

fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn plots_of_an_earlier_run_go_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one.svg", "mine.svg"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let record = render::example::record();
        fs::write(folder.path().join(DATA), serde_json::to_string(&record).unwrap()).unwrap();
        write_pages(folder.path(), &read_record(folder.path()).unwrap()).unwrap();
        assert!(!folder.path().join("one.svg").exists() && folder.path().join("mine.svg").exists());
        assert!(folder.path().join("README.md").exists() && folder.path().join("direct.svg").exists());
    }
}
