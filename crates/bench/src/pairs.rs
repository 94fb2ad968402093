//! Runs the cells (comparisons) of the benchmark. In each pair of runs, our programs and iperf3 run one after the
//! other. The failures of a cell are recorded, and the next cell begins.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::process::Pid;
use serde_json::Value;

use crate::bed::{Bed, Iperf3};
use crate::cells::{Cell, Link};
use crate::pin::{Held, Places};
use crate::process::{self, Interrupted, Stop};
use crate::readings::{self, Received};
use crate::record::{CellRecord, Pair, Reading};

/// After this many consecutive failed pairs, a cell is given up.
const MOST_FAILURES: usize = 2;

/// Runs cells (comparisons with iperf3). All cells of a link run on the same test bed.
pub(crate) struct Pairs<'a> {
    pub(crate) stop: &'a Stop,
    /// The path of the iperf3 in `PATH`.
    pub(crate) iperf3: PathBuf,
    /// The path of the second iperf3, which the option `--iperf3` names, if it was given.
    pub(crate) other: Option<PathBuf>,
    /// The rights of the user who runs this program.
    pub(crate) rights: Rights,
    /// The test beds, one for each link, created when first needed.
    beds: Vec<Bed>,
}

impl<'a> Pairs<'a> {
    pub(crate) fn new(stop: &'a Stop, iperf3: PathBuf, other: Option<PathBuf>, rights: Rights) -> Self {
        Self { stop, iperf3, other, rights, beds: vec![] }
    }

    /// The test bed of a link, which is created at the first call.
    pub(crate) fn bed(&mut self, link: Link) -> anyhow::Result<&mut Bed> {
        let at = match self.beds.iter().position(|bed| bed.link == link) {
            Some(at) => at,
            None => {
                self.beds.push(Bed::new(link)?);
                self.beds.len() - 1
            }
        };
        Ok(&mut self.beds[at])
    }

    /// Runs `pairs` pairs of runs of `cell`. Failures of runs are in the record. An error means that the user
    /// interrupted the program.
    pub(crate) fn run(&mut self, cell: &Cell, pairs: u32) -> Result<CellRecord, Interrupted> {
        let mut record = CellRecord { cell: cell.clone(), pairs: vec![], failures: vec![], passed_over: None };
        if let Err(lacking) = self.rights.allow(cell) {
            record.passed_over = Some(lacking);
            return Ok(record);
        }
        if let Err(error) = self.run_into(&mut record, pairs) {
            if error.is::<Interrupted>() {
                return Err(Interrupted);
            }
            record.failures.push(format!("{error:#}"));
        }
        Ok(record)
    }

    fn run_into(&mut self, record: &mut CellRecord, pairs: u32) -> anyhow::Result<()> {
        let cell = record.cell.clone();
        let program = if cell.theirs.other {
            self.other.clone().context("the cell needs a second iperf3: name it with --iperf3")?
        } else {
            self.iperf3.clone()
        };
        let stop = self.stop;
        let bed = self.bed(cell.link)?;
        let reflector = bed.reflector.process().pid();
        let bed = &*bed;
        let places = if cell.pinned { Some(Places::find()?) } else { None };
        let iperf3 = bed.iperf3(&program)?;
        let servers = [reflector, iperf3.server.pid()].into_iter();
        let _servers =
            places.map(|places| servers.map(|pid| Held::process(pid, places.server)).collect::<Result<Vec<_>, _>>());
        let _clients = places.map(|places| Held::this_thread(places.client)).transpose()?;
        let mut failed_in_a_row = 0;
        for n in 0..pairs {
            // Each side goes first in every other pair, so that the after-effects of a run burden both sides alike.
            let ours_first = n % 2 == 1;
            let theirs = || theirs(stop, bed, &iperf3, &program, &cell).map_err(|error| told(error, "iperf3"));
            let ours = || ours(stop, bed, reflector, &cell).map_err(|error| told(error, "ours"));
            let (theirs, ours) = if ours_first {
                let ours = ours();
                (theirs(), ours)
            } else {
                (theirs(), ours())
            };
            match (theirs, ours) {
                (Ok(theirs), Ok(ours)) => {
                    failed_in_a_row = 0;
                    record.pairs.push(Pair { ours_first, theirs, ours });
                }
                (Err(error), _) | (_, Err(error)) if error.is::<Interrupted>() => return Err(error),
                (theirs, ours) => {
                    failed_in_a_row += 1;
                    let errors = [theirs.err(), ours.err()].into_iter().flatten();
                    for error in errors.map(|error| format!("{error:#}")) {
                        if !record.failures.contains(&error) {
                            record.failures.push(error);
                        }
                    }
                    if failed_in_a_row == MOST_FAILURES {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts `whose`, the name of the side that failed, before its error. The error of an interrupt stays unchanged.
fn told(error: anyhow::Error, whose: &str) -> anyhow::Error {
    if error.is::<Interrupted>() { error } else { anyhow!("{whose}: {error:#}") }
}

fn ours(stop: &Stop, bed: &Bed, server: Pid, cell: &Cell) -> anyhow::Result<Reading> {
    let arguments = cell.our_arguments();
    let command = bed.appliance.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let before = process::cpu_so_far(server)?;
    let ended = process::run(command, stop)?;
    let server_cpu_s = process::cpu_so_far(server)? - before;
    let received = readings::ours(cell, &ended.stdout).map_err(|why| with_stderr(why, &ended.stderr))?;
    Ok(reading(received, ended.wall_s, ended.cpu_s, server_cpu_s))
}

fn theirs(stop: &Stop, bed: &Bed, iperf3: &Iperf3, program: &Path, cell: &Cell) -> anyhow::Result<Reading> {
    let command = bed.iperf3_client(program, &cell.their_arguments(&iperf3.address, iperf3.port()));
    let server = iperf3.server.pid();
    let before = process::cpu_so_far(server)?;
    let ended = process::run(command, stop)?;
    let server_cpu_s = process::cpu_so_far(server)? - before;
    let document = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
    let received = readings::theirs(cell, &document).map_err(|why| with_stderr(why, &ended.stderr))?;
    Ok(reading(received, ended.wall_s, ended.cpu_s, server_cpu_s))
}

fn reading(received: Received, wall_s: f64, client_cpu_s: f64, server_cpu_s: f64) -> Reading {
    let Received { bps, bytes, loss } = received;
    Reading { bps, bytes, wall_s, client_cpu_s, server_cpu_s, loss }
}

/// Describes why a run has no result, with the stderr of the program.
fn with_stderr(why: String, stderr: &str) -> anyhow::Error {
    match stderr.trim() {
        "" => anyhow!(why),
        said => anyhow!("{why}: {said}"),
    }
}

/// The rights that decide which cells can run.
#[derive(Clone, Debug)]
pub(crate) struct Rights {
    pub(crate) is_root: bool,
    /// The congestion controls that every user may choose.
    pub(crate) allowed: Vec<String>,
}

impl Rights {
    /// Reads the rights of this process.
    pub(crate) fn here() -> Self {
        let allowed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
        Self {
            is_root: rustix::process::geteuid().is_root(),
            allowed: allowed.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// Checks that these rights suffice for a cell. The error states why they do not.
    fn allow(&self, cell: &Cell) -> Result<(), String> {
        if self.is_root {
            return Ok(());
        }
        if cell.link.veth_mtu().is_some() {
            return Err("network namespaces need root".to_owned());
        }
        match &cell.congestion {
            Some(name) if !self.allowed.contains(name) => {
                Err(format!("{name} is not in net.ipv4.tcp_allowed_congestion_control: it needs root"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::plan;

    #[test]
    fn without_root_there_is_loopback_with_what_everybody_may_choose() {
        let nobody = Rights { is_root: false, allowed: vec!["reno".to_owned(), "bbr".to_owned()] };
        let root = Rights { is_root: true, allowed: vec![] };
        for cell in plan(false, 1, None) {
            assert_eq!(root.allow(&cell), Ok(()));
            let may = cell.link == Link::Loopback && cell.congestion.as_deref() != Some("cubic");
            assert_eq!(nobody.allow(&cell).is_ok(), may, "{}", cell.name);
        }
    }
}
