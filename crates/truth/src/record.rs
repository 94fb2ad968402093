//! The records of runs, one JSON file for each; the page is rendered from them. Pure, except for reading and writing
//! the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use paramedic_report::document::ResultDocument;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::observed::Observed;
use crate::reading::Reading;

/// When a run was made, with which build, and what went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// When the run began (RFC 3339, UTC).
    pub at: jiff::Timestamp,
    /// The commit from which the programs were built.
    pub commit: String,
    /// Why earlier attempts at this run were discarded, in order.
    pub discarded: Vec<String>,
    /// Why there is no result: the cell was refused, or every attempt was discarded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// How late the latest packet of the run left the link, in milliseconds.
    pub worst_lateness_ms: f64,
}

/// The commits of some runs, each once.
pub(crate) fn commits<'a>(runs: impl Iterator<Item = &'a Circumstances>) -> String {
    let commits = runs.map(|run| run.commit.as_str()).collect::<BTreeSet<_>>();
    // The text of a commit can contain a comma: "…, with changes".
    commits.into_iter().collect::<Vec<_>>().join("; ")
}

/// The runs of our programs in one cell with one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OurRecord {
    /// The name of the cell.
    pub cell: String,
    /// The seed from which the random decisions of the links follow.
    pub seed: u64,
    /// When and how the runs were made.
    pub circumstances: Circumstances,
    /// The run over TCP, if it has a result.
    pub tcp: Option<Run>,
    /// The run with datagrams, in cells that have one.
    pub udp: Option<Run>,
}

/// The result of a run, and what the link did during the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The result document, as `--json` prints it.
    pub document: ResultDocument,
    /// What the link did, from its record.
    pub observed: Observed,
}

/// The runs of the other programs in one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The name of the cell.
    pub cell: String,
    /// When and how the runs were made.
    pub circumstances: Circumstances,
    /// The names and versions of the programs.
    pub programs: Vec<String>,
    /// The numbers that the programs reported, each with the truth.
    pub readings: Vec<Reading>,
}

/// A folder that contains records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Uses this folder for records.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads the record of our programs for a cell and a seed; `None` if there is none.
    pub fn ours(&self, cell: &str, seed: u64) -> anyhow::Result<Option<OurRecord>> {
        read(&self.our_path(cell, seed))
    }

    /// Reads the record of the other programs for a cell; `None` if there is none.
    pub fn peers(&self, cell: &str) -> anyhow::Result<Option<PeerRecord>> {
        read(&self.peer_path(cell))
    }

    /// Writes a record of our programs to its file.
    pub fn write_ours(&self, record: &OurRecord) -> anyhow::Result<()> {
        write(&self.our_path(&record.cell, record.seed), record)
    }

    /// Writes a record of the other programs to its file.
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
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
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
        .with_context(|| path.display().to_string())
}
