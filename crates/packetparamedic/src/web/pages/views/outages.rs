//! Outages in pages: the list of the outages of a period, and the page of all outages.

use askama::Template;
use askama::filters::HtmlSafe;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use paramedic_appliance::app::Appliance;
use paramedic_appliance::monitor::outage::OutageScope;
use paramedic_appliance::store::StoredOutage;
use paramedic_report::quantity;

use super::super::super::ApiState;
use super::super::super::extract::encoded;
use super::super::super::problem::Problem;
use super::super::layout::{Layout, Section, page};
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;

/// The maximum number of outages in a list.
const LIST: u32 = 200;

/// The template of a list of outages.
#[derive(Template)]
#[template(path = "outage_list.html")]
pub(super) struct OutageList {
    title: &'static str,
    outages: Vec<StoredOutage>,
    /// The text that the page shows if the list is empty.
    none: &'static str,
    /// Whether there are more outages than the list contains.
    has_more: bool,
}

impl HtmlSafe for OutageList {}

/// The template of the page of all outages.
#[derive(Template)]
#[template(path = "outages.html")]
struct OutagesPage {
    layout: Layout,
    list: OutageList,
    older: Option<String>,
}

impl OutageList {
    fn began(&self, outage: &StoredOutage) -> PageTime {
        PageTime::full(outage.began_at)
    }

    fn ended(&self, outage: &StoredOutage) -> Option<PageTime> {
        outage.ended_at.map(PageTime::full)
    }

    fn from(&self, outage: &StoredOutage) -> i64 {
        outage.began_at.as_second()
    }

    /// The end of an outage as a Unix time in seconds; empty while the outage lasts.
    fn to(&self, outage: &StoredOutage) -> String {
        outage.ended_at.map(|at| at.as_second().to_string()).unwrap_or_default()
    }

    fn scope(&self, outage: &StoredOutage) -> &'static str {
        scope_words(outage.scope)
    }

    fn length(&self, outage: &StoredOutage) -> String {
        let Some(ended_at) = outage.ended_at else { return "lasts".to_owned() };
        let seconds = u64::try_from(ended_at.as_second() - outage.began_at.as_second()).unwrap_or(0);
        quantity::millis(seconds.saturating_mul(1000))
    }

    fn names(&self, monitors: &std::collections::BTreeSet<String>) -> String {
        let names = monitors.iter().take(8).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        match monitors.len() {
            0 => "–".to_owned(),
            count if count > 8 => format!("{names} and {} more", count - 8),
            _ => names,
        }
    }
}

/// Describes in words which targets were reachable in an outage, and which were not.
fn scope_words(scope: OutageScope) -> &'static str {
    match scope {
        OutageScope::Everything => "Nothing was reachable, not even the gateway",
        OutageScope::BeyondGateway => "The gateway was reachable, nothing beyond it",
        OutageScope::Target => "Others beyond the gateway were reachable",
        OutageScope::Gateway => "The gateway did not answer, others beyond it did",
        OutageScope::Unknown => "Nothing else was probed",
    }
}

/// The outages that overlap a period, newest first, at most [`LIST`] of them.
pub(super) async fn outages_between(
    appliance: &Appliance,
    since: Timestamp,
    until: Timestamp,
) -> Result<OutageList, Problem> {
    let mut outages = appliance.outages(Some(until), LIST + 1).await?;
    outages.retain(|outage| outage.ended_at.is_none_or(|ended_at| ended_at > since));
    let has_more = outages.len() > LIST as usize;
    outages.truncate(LIST as usize);
    let none = "No outage was seen in this time.";
    Ok(OutageList { title: "Outages", outages, none, has_more })
}

/// Shows the page of all outages.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let wrong = |_| Problem::invalid(StatusCode::BAD_REQUEST, "before must be a time such as 2026-11-29T16:00:00Z");
    let before = visitor.parameter("before").map(str::parse::<Timestamp>).transpose().map_err(wrong)?;
    let mut outages = state.service.appliance().outages(before, LIST + 1).await?;
    let has_more = outages.len() > LIST as usize;
    outages.truncate(LIST as usize);
    let last = outages.last().filter(|_| has_more);
    let older = last.map(|outage| format!("/outages?before={}", encoded(&outage.began_at.to_string())));
    let list = OutageList { title: "All outages", outages, none: "No outage was seen yet.", has_more: false };
    Ok(page(&OutagesPage { layout: visitor.layout("Outages", Section::Monitors), list, older }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_outage_says_what_was_still_reachable() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let outage = StoredOutage {
            id: Uuid::now_v7(),
            began_at: "2026-06-01T10:00:00Z".parse().unwrap(),
            ended_at: "2026-06-01T10:02:30Z".parse().ok(),
            end_known: false,
            scope: OutageScope::BeyondGateway,
            failed: names(&["<script>alert(1)</script>"]),
            reachable: names(&["gateway"]),
        };
        let lasting = StoredOutage { ended_at: None, end_known: true, ..outage.clone() };
        let list = OutageList { title: "Outages", outages: vec![outage, lasting], none: "none", has_more: false };
        let html = list.to_string();
        for part in
            ["nothing beyond it", "2 min 30 s", "lasts", "gateway</", "the service ended", "data-outage-to=\"\""]
        {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(!html.contains("<script"));
        let empty = OutageList { title: "Outages", outages: vec![], none: "none", has_more: false };
        assert!(empty.to_string().contains("none"));
    }
}
