//! What a run found, as it is written to `data.json`, from which every page and plot is made again. Nothing here is
//! computed that can be computed from it.

use paramedic_link::measurement::HostFacts;
use serde::{Deserialize, Serialize};

use crate::cells::Cell;
use crate::statistics::{self, Ratio, Spread};

/// The words of `schema`.
pub(crate) const SCHEMA: &str = "packetparamedic.bench/1";

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// When it began; RFC 3339, UTC.
    pub(crate) started_at: String,
    /// When it was over.
    pub(crate) finished_at: String,
    /// What was built: the commit, and whether more was changed since.
    pub(crate) commit: Option<String>,
    /// The command that repeats it.
    pub(crate) command: String,
    /// Whether few cells and pairs were wanted soon.
    pub(crate) quick: bool,
    /// Pairs a cell.
    pub(crate) pairs: u32,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Every cell, also those that failed or were passed over.
    pub(crate) cells: Vec<CellRecord>,
    /// What was measured without a second side.
    pub(crate) alone: Alone,
}

/// The host, as it said itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// What a reflector would tell of it.
    pub(crate) facts: HostFacts,
    /// How the first core's clock is governed, where that can be told.
    pub(crate) governor: Option<String>,
    /// What virtual machine it is, where it says so.
    pub(crate) hypervisor: Option<String>,
    /// The congestion control of connections that ask for none.
    pub(crate) congestion_default: Option<String>,
    /// Those that the kernel has.
    pub(crate) congestion_available: Option<String>,
    /// The first line of `iperf3 --version`.
    pub(crate) iperf3: Option<String>,
    /// The same of the other iperf3.
    pub(crate) other_iperf3: Option<String>,
}

/// One cell and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellRecord {
    /// What was measured.
    pub(crate) cell: Cell,
    /// The pairs that both sides ended well.
    pub(crate) pairs: Vec<Pair>,
    /// What went wrong, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
    /// Why it was not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) passed_over: Option<String>,
}

/// Both sides, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// Whether ours ran first.
    pub(crate) ours_first: bool,
    /// iperf3.
    pub(crate) theirs: Reading,
    /// Ours.
    pub(crate) ours: Reading,
}

/// One side's run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// Payload that was received, bits a second.
    pub(crate) bps: f64,
    /// Payload that was received in the whole run, all phases.
    pub(crate) bytes: u64,
    /// From the client's start to its end.
    pub(crate) wall_s: f64,
    /// Processor time of the client's process, user and system.
    pub(crate) client_cpu_s: f64,
    /// The same of the server's, its children included.
    pub(crate) server_cpu_s: f64,
    /// The share of datagrams that was lost.
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
    /// What `of` reads, ours over theirs.
    pub(crate) fn ratio(&self, of: impl Fn(&Reading) -> f64) -> Option<Ratio> {
        statistics::ratio(&self.pairs.iter().map(|pair| (of(&pair.theirs), of(&pair.ours))).collect::<Vec<_>>())
    }

    /// What `of` reads at iperf3's side.
    pub(crate) fn theirs(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.theirs)).collect::<Vec<_>>())
    }

    /// What `of` reads at ours.
    pub(crate) fn ours(&self, of: impl Fn(&Reading) -> f64) -> Option<Spread> {
        statistics::spread(&self.pairs.iter().map(|pair| of(&pair.ours)).collect::<Vec<_>>())
    }
}

/// What needs no second side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alone {
    /// An idle reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rest: Option<Rest>,
    /// Both programs' largest memory during a test, and iperf3's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<Memory>,
    /// All of a plain speed test but its phases, seconds a run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) set_up_s: Vec<f64>,
    /// Mutual TLS handshakes a second, a window each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) handshakes: Vec<f64>,
    /// What went wrong, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
}

/// A reflector at rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// From its start to `listening on`, with an empty state folder: key, databases and log are made.
    pub(crate) first_ready_s: f64,
    /// The same with a state folder that is there, a start each.
    pub(crate) ready_s: Vec<f64>,
    /// Resident memory after that.
    pub(crate) rss_bytes: u64,
    /// Processor time while nothing happened.
    pub(crate) cpu_s: f64,
    /// How long nothing happened.
    pub(crate) watched_s: f64,
}

/// The largest resident memory of both ends during a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Whose, and how.
    pub(crate) what: String,
    /// Whether it is ours.
    pub(crate) is_ours: bool,
    /// Streams of the test.
    pub(crate) streams: u16,
    /// `VmHWM` of the client.
    pub(crate) client_bytes: u64,
    /// `VmHWM` of the server.
    pub(crate) server_bytes: u64,
}
