//! The pages that show what was measured: history, a run, monitors, outages, the report.

mod alerts;
mod chart;
mod heat;
mod history;
mod monitors;
mod outages;
mod period;
mod report;
mod run;

use axum::Router;
use axum::routing::{get, post};

use super::super::{ApiState, report as report_route};

/// The routes of the pages that show what was measured.
pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/history", get(history::show))
        .route("/runs/{id}", get(run::show))
        .route("/runs/{id}/delete", post(run::delete))
        .route("/monitors", get(monitors::list))
        .route("/monitors/{name}", get(monitors::show))
        .route("/outages", get(outages::show))
        .route("/report", get(report::show))
        .route("/report/preview", get(report::preview))
        .route("/report/file", get(report_route::show))
}
