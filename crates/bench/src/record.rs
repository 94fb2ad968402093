//! The results of a run as they are written to `data.json`, from which every page and plot is rendered. A value that
//! can be computed from other values is not stored.

use paramedic_link::measurement::HostFacts;
use serde::{Deserialize, Serialize};

use crate::cells::Cell;
use crate::statistics::{self, Ratio, Spread};

/// The value of the field `schema` of a record.
pub(crate) const SCHEMA: &str = "packetparamedic.bench/1";

/// The record of one run of the benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The name of the record's schema: [`SCHEMA`].
    pub(crate) schema: String,
    /// When the run began (RFC 3339, UTC).
    pub(crate) started_at: String,
    /// When the run ended (RFC 3339, UTC).
    pub(crate) finished_at: String,
    /// The commit from which the programs were built, and whether files were changed since; absent if unknown.
    pub(crate) commit: Option<String>,
    /// The command that repeats the run.
    pub(crate) command: String,
    /// Whether this was a quick run, with few cells and pairs.
    pub(crate) quick: bool,
    /// The number of pairs of runs of each cell.
    pub(crate) pairs: u32,
    /// The host on which the run was made.
    pub(crate) machine: Machine,
    /// The results of every cell, including cells that failed or were skipped.
    pub(crate) cells: Vec<CellRecord>,
    /// Measurements that are not made in pairs of runs with iperf3.
    pub(crate) alone: Alone,
}

/// Facts about the host and the programs of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The facts about the host that a reflector would report.
    pub(crate) facts: HostFacts,
    /// The frequency governor of the first core, if known.
    pub(crate) governor: Option<String>,
    /// The vendor of the virtual machine; absent on a physical host.
    pub(crate) hypervisor: Option<String>,
    /// The kernel's default TCP congestion control.
    pub(crate) congestion_default: Option<String>,
    /// The TCP congestion controls that the kernel has, separated by spaces.
    pub(crate) congestion_available: Option<String>,
    /// The first line of `iperf3 --version`.
    pub(crate) iperf3: Option<String>,
    /// The first line that the iperf3 of the option `--iperf3` prints with `--version`.
    pub(crate) other_iperf3: Option<String>,
}

/// The results of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellRecord {
    /// The cell (comparison) that ran.
    pub(crate) cell: Cell,
    /// The pairs in which the runs of both sides succeeded.
    pub(crate) pairs: Vec<Pair>,
    /// The failures of runs, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
    /// Why the cell was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) passed_over: Option<String>,
}

/// A pair of runs: one run of our side and one of iperf3's side, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Whether the run of our side came first.
    pub(crate) ours_first: bool,
    /// The run of iperf3's side.
    pub(crate) theirs: Reading,
    /// The run of our side.
    pub(crate) ours: Reading,
}

/// The measurements of one run of one side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// The received payload, in bits per second.
    pub(crate) bps: f64,
    /// The received payload of the whole run, in bytes.
    pub(crate) bytes: u64,
    /// The time from the client's start to its exit, in seconds.
    pub(crate) wall_s: f64,
    /// Processor time of the client's process, user and system, in seconds.
    pub(crate) client_cpu_s: f64,
    /// Processor time of the server's process and its children, user and system, in seconds.
    pub(crate) server_cpu_s: f64,
    /// The share of the datagrams that were lost, from 0 to 1; `None` with TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
}

impl Reading {
    /// The processor time of both ends, in seconds for each 10^9 bytes received.
    pub(crate) fn cpu_s_per_gb(&self) -> f64 {
        (self.client_cpu_s + self.server_cpu_s) / (self.bytes as f64 / 1e9)
    }
}

impl CellRecord {
    /// Each pair gives a ratio: our value divided by iperf3's. `of` selects the value. Returns the statistics of all
    /// ratios; `None` if there are no pairs, or if a value is not above zero.
    pub(crate) fn ratio(&self, of: impl Fn(&Reading) -> f64) -> Option<Ratio> {
        statistics::ratio(&self.pairs.iter().map(|pair| (of(&pair.theirs), of(&pair.ours))).collect::<Vec<_>>())
    }

    /// The median and the range of one value of iperf3's runs, over all pairs; `of` selects the value.
    pub(crate) fn theirs(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.theirs)).collect::<Vec<_>>())
    }

    /// The median and the range of one value of our runs, over all pairs; `of` selects the value.
    pub(crate) fn ours(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.ours)).collect::<Vec<_>>())
    }
}

/// Measurements that are not made in pairs of runs with iperf3.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alone {
    /// The costs of an idle reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rest: Option<Rest>,
    /// The largest memory of our programs during a test, and that of iperf3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<Memory>,
    /// The duration of a plain speed test minus the duration of its phases, in seconds, one value for each run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) set_up_s: Vec<f64>,
    /// Mutual TLS handshakes per second, one value for each window of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) handshakes: Vec<f64>,
    /// The failures of these measurements, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
}

/// The costs of an idle reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// The time in seconds from the start until the reflector prints `listening on`, with an empty state folder, in
    /// which it creates key, database and log.
    pub(crate) first_ready_s: f64,
    /// The time in seconds from the start until the reflector prints `listening on`, with an existing state folder; one
    /// value for each start.
    pub(crate) ready_s: Vec<f64>,
    /// The resident memory of the reflector after its start, in bytes.
    pub(crate) rss_bytes: u64,
    /// The processor time that the reflector used while it was idle, in seconds.
    pub(crate) cpu_s: f64,
    /// How long the reflector was idle and observed, in seconds.
    pub(crate) watched_s: f64,
}

/// The largest resident memory of both ends during a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The name of the programs and, if they are ours, the data mode.
    pub(crate) what: String,
    /// Whether the programs are ours and not iperf3.
    pub(crate) is_ours: bool,
    /// The number of streams of the test.
    pub(crate) streams: u16,
    /// The largest resident memory (`VmHWM`) of the client, in bytes.
    pub(crate) client_bytes: u64,
    /// The largest resident memory (`VmHWM`) of the server, in bytes.
    pub(crate) server_bytes: u64,
}
