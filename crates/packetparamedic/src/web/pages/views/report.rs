//! The page of the report on the line: the form for its period, a preview, and the files to download.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse, Response};
use jiff::tz::TimeZone;
use paramedic_appliance::plan::PromisedRate;
use paramedic_appliance::store::StoredPlan;
use paramedic_report::quantity;

use super::super::super::ApiState;
use super::super::super::problem::Problem;
use super::super::super::report::{ReportQuery, line_report, unmade};
use super::super::layout::{Layout, Section, page};
use super::super::outside_text::shown;
use super::super::visitor::Visitor;
use crate::report_file::{ReportFormat, report_policy, report_text};

/// The template of the page with the form for a report.
#[derive(Template)]
#[template(path = "report_page.html")]
struct ReportFormPage {
    layout: Layout,
    plan: Option<StoredPlan>,
    zone: String,
}

impl ReportFormPage {
    fn name(&self, text: &str) -> String {
        shown(text)
    }

    fn rates(&self, rate: &PromisedRate) -> String {
        let others = [("normally available", rate.normal_bps), ("at least", rate.minimum_bps)];
        let others = others.into_iter().filter_map(|(name, bps)| Some(format!(", {name} {}", quantity::rate(bps?))));
        quantity::rate(rate.promised_bps) + &others.collect::<String>()
    }
}

/// Shows the page with the form for a report.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let plan = state.service.appliance().plan().await?;
    let zone = TimeZone::system().iana_name().unwrap_or_default().to_owned();
    Ok(page(&ReportFormPage { layout: visitor.layout("Report", Section::Report), plan, zone }))
}

/// Shows the report as its file would contain it, with the Content-Security-Policy for its own styles.
pub(super) async fn preview(State(state): State<ApiState>, query: ReportQuery) -> Result<Response, Problem> {
    let report = line_report(state.service.appliance(), &query).await?;
    let text = report_text(&report, ReportFormat::Html).map_err(|error| unmade(&error))?;
    // The policy consists of constants and a hash, so this does not fail.
    let policy = HeaderValue::from_str(&report_policy()).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    Ok(([(CONTENT_SECURITY_POLICY, policy)], Html(text)).into_response())
}
