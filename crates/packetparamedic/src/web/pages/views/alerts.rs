//! The list of the alerts of a period, in the page of the history. The charts mark the alerts of this list.

use askama::Template;
use askama::filters::HtmlSafe;
use jiff::Timestamp;
use paramedic_appliance::app::Appliance;
use paramedic_appliance::store::StoredAlert;

use super::super::super::problem::Problem;
use super::super::outside_text::sentence;
use super::super::page_time::PageTime;

/// The maximum number of alerts in the list.
const LIST: u32 = 200;

/// The template of a list of alerts.
#[derive(Template)]
#[template(path = "alert_list.html")]
pub(super) struct AlertList {
    alerts: Vec<StoredAlert>,
}

impl HtmlSafe for AlertList {}

impl AlertList {
    fn title(&self, alert: &StoredAlert) -> String {
        sentence(&alert.opening.title)
    }

    fn opened(&self, alert: &StoredAlert) -> PageTime {
        PageTime::full(alert.opened_at)
    }

    fn closed(&self, alert: &StoredAlert) -> Option<PageTime> {
        alert.closed_at.map(PageTime::full)
    }

    fn from(&self, alert: &StoredAlert) -> i64 {
        alert.opened_at.as_second()
    }

    /// The end of an alert as a Unix time in seconds; empty while the alert is open.
    fn to(&self, alert: &StoredAlert) -> String {
        alert.closed_at.map(|at| at.as_second().to_string()).unwrap_or_default()
    }
}

/// The alerts that were open within a period, newest first, at most [`LIST`] of them.
pub(super) async fn alerts_between(
    appliance: &Appliance,
    since: Timestamp,
    until: Timestamp,
) -> Result<AlertList, Problem> {
    Ok(AlertList { alerts: appliance.alerts_between(since, until, LIST).await? })
}
