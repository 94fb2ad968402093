//! What a run found, as it is written to `data.json`, from which every page and plot is made again. Nothing here is
//! computed that can be computed from it.

use paramedic_link::measurement::HostFacts;
use serde::{Deserialize, Serialize};

use crate::cells::Cell;
use crate::statistics::{self, Ratio, Spread};

/// The value of `schema`.
pub(crate) const SCHEMA: &str = "packetparamedic.bench/1";

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// When it began; RFC 3339, UTC.
    pub(crate) started_at: String,
    /// When it ended.
    pub(crate) finished_at: String,
    /// The commit that was built, and whether files were changed since.
    pub(crate) commit: Option<String>,
    /// The command that repeats it.
    pub(crate) command: String,
    /// Whether it was a quick run, with few cells and pairs.
    pub(crate) quick: bool,
    /// Pairs of runs per cell.
    pub(crate) pairs: u32,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Every cell, also those that failed or were skipped.
    pub(crate) cells: Vec<CellRecord>,
    /// Measurements of the reflector without iperf3 as the other side.
    pub(crate) alone: Alone,
}

/// The facts of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The facts that a reflector would report.
    pub(crate) facts: HostFacts,
    /// The frequency governor of the first core, if known.
    pub(crate) governor: Option<String>,
    /// The kind of virtual machine, if known.
    pub(crate) hypervisor: Option<String>,
    /// The default congestion control.
    pub(crate) congestion_default: Option<String>,
    /// The congestion controls that the kernel has.
    pub(crate) congestion_available: Option<String>,
    /// The first line of `iperf3 --version`.
    pub(crate) iperf3: Option<String>,
    /// The first line of `--version` of the other iperf3.
    pub(crate) other_iperf3: Option<String>,
}

/// The results of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellRecord {
    /// The cell.
    pub(crate) cell: Cell,
    /// The pairs of which both runs succeeded.
    pub(crate) pairs: Vec<Pair>,
    /// The failures, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
    /// Why the cell was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) passed_over: Option<String>,
}

/// One run of each side, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Whether ours ran first.
    pub(crate) ours_first: bool,
    /// iperf3.
    pub(crate) theirs: Reading,
    /// Ours.
    pub(crate) ours: Reading,
}

/// The run of one side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// The received payload, in bits per second.
    pub(crate) bps: f64,
    /// The received payload of the whole run, in bytes.
    pub(crate) bytes: u64,
    /// The time from the client's start to its exit.
    pub(crate) wall_s: f64,
    /// Processor time of the client's process, user and system.
    pub(crate) client_cpu_s: f64,
    /// Processor time of the server's process and its children, user and system.
    pub(crate) server_cpu_s: f64,
    /// The share of datagrams that were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
}

impl Reading {
    /// Processor time of both ends for each 10^9 bytes received.
    pub(crate) fn cpu_s_per_gb(&self) -> f64 {
        (self.client_cpu_s + self.server_cpu_s) / (self.bytes as f64 / 1e9)
    }
}

impl CellRecord {
    /// The ratio of what `of` returns for our side to what it returns for iperf3's.
    pub(crate) fn ratio(&self, of: impl Fn(&Reading) -> f64) -> Option<Ratio> {
        statistics::ratio(&self.pairs.iter().map(|pair| (of(&pair.theirs), of(&pair.ours))).collect::<Vec<_>>())
    }

    /// What `of` returns for iperf3's side.
    pub(crate) fn theirs(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.theirs)).collect::<Vec<_>>())
    }

    /// What `of` returns for our side.
    pub(crate) fn ours(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.ours)).collect::<Vec<_>>())
    }
}

/// Measurements without iperf3 as the other side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alone {
    /// An idle reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rest: Option<Rest>,
    /// Both programs' largest memory during a test, and iperf3's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<Memory>,
    /// The duration of a plain speed test without its phases, in seconds per run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) set_up_s: Vec<f64>,
    /// Mutual TLS handshakes per second, one value per window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) handshakes: Vec<f64>,
    /// The failures, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
}

/// The costs of an idle reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// The time from its start to `listening on` with an empty state folder, in which it creates key, database and log.
    pub(crate) first_ready_s: f64,
    /// The same time with an existing state folder, one value per start.
    pub(crate) ready_s: Vec<f64>,
    /// Resident memory after its start.
    pub(crate) rss_bytes: u64,
    /// Processor time while it was idle.
    pub(crate) cpu_s: f64,
    /// How long it was idle.
    pub(crate) watched_s: f64,
}

/// The largest resident memory of both ends during a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The name of the programs and the mode.
    pub(crate) what: String,
    /// Whether the programs are ours.
    pub(crate) is_ours: bool,
    /// Streams of the test.
    pub(crate) streams: u16,
    /// `VmHWM` of the client.
    pub(crate) client_bytes: u64,
    /// `VmHWM` of the server.
    pub(crate) server_bytes: u64,
}
