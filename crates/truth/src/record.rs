//! The records of runs, from which the pages in docs/truth are rendered. Each record is a JSON file. Pure, except for
//! reading and writing the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use paramedic_report::document::ResultDocument;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::observed::Observed;
use crate::reading::Reading;

/// When runs were made, with which build, and what went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// When the first attempt began (RFC 3339, UTC).
    pub at: jiff::Timestamp,
    /// The commit from which the programs were built.
    pub commit: String,
    /// For each discarded attempt, in order, why it was discarded.
    pub discarded: Vec<String>,
    /// Why a run has no result: the emulator is too slow for the cell, or every attempt was discarded. `None` if no run
    /// lacks a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The longest time for which a link was late, in milliseconds: a packet left after it was due, or the link did not
    /// look for new packets.
    pub worst_lateness_ms: f64,
}

/// Lists the distinct commits of these runs, separated by `; `.
pub(crate) fn commits<'a>(runs: impl Iterator<Item = &'a Circumstances>) -> String {
    let commits = runs.map(|run| run.commit.as_str()).collect::<BTreeSet<_>>();
    // The text of a commit can contain a comma: "…, with changes".
    commits.into_iter().collect::<Vec<_>>().join("; ")
}

/// The runs of our programs in one cell of the test matrix, with one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OurRecord {
    /// The name of the cell.
    pub cell: String,
    /// The seed of the links' random decisions.
    pub seed: u64,
    /// When and how the runs were made.
    pub circumstances: Circumstances,
    /// The TCP run; `None` if it has no result.
    pub tcp: Option<Run>,
    /// The UDP run; `None` if the cell requires none or the run has no result.
    pub udp: Option<Run>,
}

/// The result of a run, and what the link did during the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The result document, as `speed-test --json` prints it.
    pub document: ResultDocument,
    /// What the link did to the packets of the run, according to its record.
    pub observed: Observed,
}

/// The runs of iperf3, ping and irtt in one cell of the test matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The name of the cell.
    pub cell: String,
    /// When and how the runs were made.
    pub circumstances: Circumstances,
    /// The names and versions of the programs.
    pub programs: Vec<String>,
    /// The numbers that the programs reported, each with the true number.
    pub readings: Vec<Reading>,
}

/// A folder that contains records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Creates a reader and writer of records in `folder`, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads the record of our programs for a cell and a seed; `None` if no such record exists.
    pub fn ours(&self, cell: &str, seed: u64) -> anyhow::Result<Option<OurRecord>> {
        read(&self.our_path(cell, seed))
    }

    /// Reads the record of iperf3, ping and irtt for a cell; `None` if no such record exists.
    pub fn peers(&self, cell: &str) -> anyhow::Result<Option<PeerRecord>> {
        read(&self.peer_path(cell))
    }

    /// Writes a record of our programs to its file.
    pub fn write_ours(&self, record: &OurRecord) -> anyhow::Result<()> {
        write(&self.our_path(&record.cell, record.seed), record)
    }

    /// Writes a record of iperf3, ping and irtt to its file.
    pub fn write_peers(&self, record: &PeerRecord) -> anyhow::Result<()> {
        write(&self.peer_path(&record.cell), record)
    }

    fn our_path(&self, cell: &str, seed: u64) -> PathBuf {
        self.folder.join(cell).join(format!("seed-{seed}.json"))
    }

    fn peer_path(&self, cell: &str) -> PathBuf {
        self.folder.join(cell).join("peers.json")
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("cannot parse {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write(path: &Path, record: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(record)?;
    let folder = path.parent().context("the path has no folder")?;
    fs::create_dir_all(folder)?;
    // Writing a temporary file first ensures that an interruption here leaves no half-written record.
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
