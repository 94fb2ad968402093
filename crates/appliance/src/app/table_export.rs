//! Exports the stored data other than results: outages, runs of schedules, measurements of a monitor.

use super::Appliance;
use crate::error::ApplianceError;
use crate::monitor::series::Resolution;
use crate::store::{ExportedTable, TableExport, TableFormat, TimeRange};

impl Appliance {
    /// Exports the outages that began within `range`.
    pub async fn export_outages(&self, range: TimeRange, format: TableFormat) -> Result<TableExport, ApplianceError> {
        Ok(self.reading_store().await?.export_table(ExportedTable::Outages, range, format))
    }

    /// Exports the runs within `range` of the schedule `name`; `None` for the runs of all schedules. Includes runs that
    /// did not start.
    pub async fn export_schedule_runs(
        &self,
        name: Option<&str>,
        range: TimeRange,
        format: TableFormat,
    ) -> Result<TableExport, ApplianceError> {
        let store = self.reading_store().await?;
        let schedule = match name {
            Some(name) => Some(store.schedule(name).await?.id),
            None => None,
        };
        Ok(store.export_table(ExportedTable::ScheduleRuns { schedule }, range, format))
    }

    /// Exports what the monitor with this name measured within `range`.
    pub async fn export_monitor(
        &self,
        name: &str,
        resolution: Resolution,
        range: TimeRange,
        format: TableFormat,
    ) -> Result<TableExport, ApplianceError> {
        let store = self.reading_store().await?;
        let stored = store.monitor(name).await?;
        let table = ExportedTable::Monitor { number: stored.number, name: stored.monitor.name, resolution };
        Ok(store.export_table(table, range, format))
    }
}
