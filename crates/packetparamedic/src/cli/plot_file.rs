//! The file to which a plot is written.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use paramedic_report::document::ResultDocument;
use paramedic_report::plot;

use super::failure::{CommandFailure, ExitStatus};

/// The file for a plot, opened in advance to check that it can be written. Dropping this value deletes the file if this
/// value created it and the plot was not written.
pub(super) struct PlotFile {
    path: PathBuf,
    is_unwritten: bool,
}

impl PlotFile {
    /// Creates the file if it does not exist. An existing file keeps its contents until [`PlotFile::write`].
    pub(super) fn create(path: PathBuf) -> Result<Self, CommandFailure> {
        let is_new = !path.exists();
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        opened.map_err(|error| unwritten(&path, &error))?;
        Ok(Self { path, is_unwritten: is_new })
    }

    /// Writes the plot of `document` to the file.
    pub(super) fn write(mut self, document: &ResultDocument) -> Result<(), CommandFailure> {
        let svg = svg(document)?;
        fs::write(&self.path, svg).map_err(|error| unwritten(&self.path, &error))?;
        self.is_unwritten = false;
        Ok(())
    }
}

impl Drop for PlotFile {
    fn drop(&mut self) {
        if self.is_unwritten {
            // Best effort: if this fails, an empty file remains.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Draws the plot of `document` as SVG.
pub(super) fn svg(document: &ResultDocument) -> Result<String, CommandFailure> {
    plot::svg(document).map_err(|because| {
        let try_ = "measure with `packetparamedic speed-test --intervals` or `--plot FILE`";
        CommandFailure::new(ExitStatus::Failed, "no_intervals", "cannot plot this result", because, try_)
    })
}

fn unwritten(path: &Path, error: &io::Error) -> CommandFailure {
    let what = format!("cannot write the plot {}", path.display());
    CommandFailure::new(
        ExitStatus::Usage,
        "cannot_write_plot",
        what,
        error,
        "name a file in a folder that you can write to",
    )
}
