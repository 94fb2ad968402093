//! The settings of the monitors: list, add, enable, disable, remove.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::MonitorOverview;
use paramedic_appliance::monitor::{Monitor, MonitorTarget};
use paramedic_report::quantity;

use super::super::super::ApiState;
use super::super::super::extract::{ApiPath, FormBody, encoded};
use super::super::super::problem::Problem;
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::visitor::Visitor;
use super::SettingsFrame;

/// The path of the settings of the monitors.
pub(in super::super) const PATH: &str = "/settings/monitors";

/// The template of the settings of the monitors.
#[derive(Template)]
#[template(path = "settings/monitors.html")]
struct MonitorsPage {
    layout: Layout,
    frame: SettingsFrame,
    monitors: Vec<MonitorView>,
    /// The targets that the page proposes for a new monitor.
    proposals: Vec<String>,
    error: Option<Problem>,
    entered: FormBody,
}

/// A monitor as the page shows it.
struct MonitorView {
    name: String,
    /// The path to which the forms of the monitor are sent.
    path: String,
    target: String,
    interval: String,
    data: String,
    is_enabled: bool,
    from_file: bool,
}

impl MonitorView {
    fn of(overview: &MonitorOverview) -> Self {
        let monitor = &overview.stored.monitor;
        Self {
            name: shown(&monitor.name),
            path: format!("{PATH}/{}", encoded(&monitor.name)),
            target: shown(&monitor.target.to_string()),
            interval: quantity::exact_duration(monitor.interval()),
            data: quantity::bytes(overview.bytes_a_month),
            is_enabled: overview.stored.enabled,
            from_file: overview.stored.from_file,
        }
    }
}

/// Shows the settings of the monitors.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    page(&state, &visitor, StatusCode::OK, None, FormBody::default()).await
}

/// Adds the monitor of the form.
pub(in super::super) async fn add(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    match add_from(&state, &form).await {
        Ok(()) => Ok(done(PATH, Notice::MonitorAdded)),
        Err(problem) => page(&state, &visitor, problem.status_code(), Some(problem), form).await,
    }
}

async fn add_from(state: &ApiState, form: &FormBody) -> Result<(), Problem> {
    let target = form.value("target").parse::<MonitorTarget>().map_err(ApplianceError::from)?;
    let name = form.text("name").map_or_else(|| target.default_name(), str::to_owned);
    let interval = form.text("interval").map(quantity::parse_seconds).transpose();
    let interval = interval.map_err(|error| Problem::invalid(StatusCode::BAD_REQUEST, &error.to_string()))?;
    state.service.appliance().add_monitor(Monitor::new(&name, target, interval)).await?;
    state.service.monitors_changed();
    Ok(())
}

/// Enables a monitor if the form has the field `enabled`; otherwise disables the monitor.
pub(in super::super) async fn switch(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
    form: FormBody,
) -> Result<Response, Problem> {
    state.service.appliance().enable_monitor(&name, form.is_ticked("enabled")).await?;
    state.service.monitors_changed();
    Ok(done(PATH, Notice::MonitorChanged))
}

/// Removes a monitor.
pub(in super::super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    state.service.appliance().remove_monitor(&name).await?;
    state.service.monitors_changed();
    Ok(done(PATH, Notice::MonitorRemoved))
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    status: StatusCode,
    error: Option<Problem>,
    entered: FormBody,
) -> Result<Response, Problem> {
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let monitors = state.service.monitors().await?.iter().map(MonitorView::of).collect();
    let reflectors = state.service.appliance().reflectors().await?;
    let of_reflectors = reflectors.iter().map(|reflector| format!("reflector:{}", reflector.name));
    let proposals = ["gateway".to_owned()].into_iter().chain(of_reflectors).collect();
    Ok(page_with(status, &MonitorsPage { layout, frame, monitors, proposals, error, entered }))
}
