//! The page about the service: its state, and how long it keeps results.

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use paramedic_appliance::app::ServiceStatus;
use paramedic_host::version;

use super::super::super::ApiState;
use super::super::super::problem::Problem;
use super::super::layout::{Layout, page};
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::SettingsFrame;

/// The path of the page about the service.
pub(in super::super) const PATH: &str = "/settings/about";

/// The template of the page about the service.
#[derive(Template)]
#[template(path = "settings/about.html")]
struct AboutPage {
    layout: Layout,
    frame: SettingsFrame,
    status: ServiceStatus,
    started_at: PageTime,
    state_dir: String,
    results_kept: String,
    series_kept: String,
}

/// Shows the page about the service.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let (frame, layout) = SettingsFrame::of(PATH, &visitor);
    let status = state.service.status(version::VERSION);
    let retention = state.service.retention();
    Ok(page(&AboutPage {
        layout,
        frame,
        started_at: PageTime::full(status.started_at),
        state_dir: shown(&status.state_dir),
        status,
        results_kept: kept(retention.results, "for ever"),
        series_kept: kept(retention.series, "as long as the result"),
    }))
}

fn kept(time: Option<Duration>, without_limit: &str) -> String {
    match time {
        None => without_limit.to_owned(),
        Some(time) => format!("{} days", time.as_secs() / 86_400),
    }
}
