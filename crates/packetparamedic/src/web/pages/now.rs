//! The first page: how the line is.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use paramedic_appliance::store::RunQuery;
use paramedic_report::quantity;
use paramedic_report::summary::RunSummary;

use super::super::ApiState;
use super::super::problem::Problem;
use super::layout::{Layout, Section, page};
use super::page_time::PageTime;
use super::visitor::Visitor;

/// The page.
#[derive(Template)]
#[template(path = "now.html")]
struct NowPage {
    layout: Layout,
    last: Option<RunSummary>,
}

impl NowPage {
    fn rate(&self, bps: &u64) -> String {
        quantity::rate(*bps)
    }

    fn moment(&self, run: &RunSummary) -> PageTime {
        PageTime::full(run.started_at)
    }
}

/// The page.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let last = state.service.appliance().results(&RunQuery::default(), None, 1).await?.pop();
    Ok(page(&NowPage { layout: visitor.layout("Now", Section::Now), last }))
}
