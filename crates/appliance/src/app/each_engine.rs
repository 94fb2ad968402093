//! Appliances for tests, one for each database engine.

use paramedic_report::document::ErrorBody;
use tempfile::TempDir;

use super::Appliance;
use crate::error::ApplianceError;
use crate::store::each_engine::new_database;

/// Describes an error by its text alone, for results in tests.
fn describe(error: &ApplianceError) -> ErrorBody {
    let text = error.to_string();
    ErrorBody { code: String::new(), what: text, because: String::new(), try_: String::new(), retry_after_ms: None }
}

/// A new appliance for each database engine, with its state folder. If the tests have no PostgreSQL server, only the
/// appliance with SQLite.
pub(crate) fn devices() -> Vec<(TempDir, Appliance)> {
    let device = |server| {
        let folder = tempfile::tempdir().unwrap();
        let device = Appliance::open(folder.path(), describe).unwrap().0.with_database(server);
        (folder, device)
    };
    [device(None)].into_iter().chain(new_database().map(|server| device(Some(server)))).collect()
}
