//! The saved results: list, show, export.

use paramedic_report::summary::RunSummary;

use super::Appliance;
use crate::error::ApplianceError;
use crate::store::{ExportFormat, PageCursor, SavedRun, StorageError};

impl Appliance {
    /// The latest results, newest first, at most `limit`.
    pub async fn results(&self, limit: u32) -> Result<Vec<RunSummary>, ApplianceError> {
        Ok(self.reading_store().await?.runs(limit).await?)
    }

    /// The results after this place in that list, newest first, at most `limit`.
    pub async fn results_page(&self, after: Option<PageCursor>, limit: u32) -> Result<Vec<RunSummary>, ApplianceError> {
        Ok(self.reading_store().await?.runs_page(after, limit).await?)
    }

    /// The result whose id is, begins or ends with `wanted`.
    pub async fn result(&self, wanted: &str) -> Result<SavedRun, ApplianceError> {
        Ok(self.reading_store().await?.run(wanted).await?)
    }

    /// Passes all results to `line`, oldest first, one line at a time without its newline. An error of `line` ends it.
    pub async fn export<E: From<ApplianceError> + From<StorageError>>(
        &self,
        format: ExportFormat,
        line: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reading_store().await?.export(format, line).await
    }
}
