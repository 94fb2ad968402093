//! The records of runs, one JSON file each, from which the page is written. Pure, except for reading and writing the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use paramedic_report::document::ResultDocument;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::observed::Observed;
use crate::reading::Reading;

/// When, with which build, and how well a run went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// The begin (RFC 3339, UTC).
    pub at: jiff::Timestamp,
    /// The commit of the programs.
    pub commit: String,
    /// Why runs before this one were discarded, in order.
    pub discarded: Vec<String>,
    /// Why there is no result: the cell was refused, or every run was discarded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The latest packet of the run, in milliseconds.
    pub worst_lateness_ms: f64,
}

/// The commits of runs, each once.
pub(crate) fn commits<'a>(runs: impl Iterator<Item = &'a Circumstances>) -> String {
    let commits = runs.map(|run| run.commit.as_str()).collect::<BTreeSet<_>>();
    // A commit can have a comma: "…, with changes".
    commits.into_iter().collect::<Vec<_>>().join("; ")
}

/// Our programs in one cell with one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OurRecord {
    /// The cell's name.
    pub cell: String,
    /// The seed of the link's decisions.
    pub seed: u64,
    /// When and how.
    pub circumstances: Circumstances,
    /// The run over TCP.
    pub tcp: Option<Run>,
    /// The run with datagrams, in cells that have one.
    pub udp: Option<Run>,
}

/// What a run reported, and what the link did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// As `--json` prints it.
    pub document: ResultDocument,
    /// From the link's record.
    pub observed: Observed,
}

/// The other programs in one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The cell's name.
    pub cell: String,
    /// When and how.
    pub circumstances: Circumstances,
    /// Their names and versions.
    pub programs: Vec<String>,
    /// What they reported, each with the truth.
    pub readings: Vec<Reading>,
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// The records in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The record of our programs, if there is one.
    pub fn ours(&self, cell: &str, seed: u64) -> anyhow::Result<Option<OurRecord>> {
        read(&self.our_path(cell, seed))
    }

    /// The record of the other programs, if there is one.
    pub fn peers(&self, cell: &str) -> anyhow::Result<Option<PeerRecord>> {
        read(&self.peer_path(cell))
    }

    /// Writes a record of our programs.
    pub fn write_ours(&self, record: &OurRecord) -> anyhow::Result<()> {
        write(&self.our_path(&record.cell, record.seed), record)
    }

    /// Writes a record of the other programs.
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
    let folder = path.parent().context("a folder")?;
    fs::create_dir_all(folder)?;
    // A run that is interrupted here leaves no half of a record.
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| path.display().to_string())
}
