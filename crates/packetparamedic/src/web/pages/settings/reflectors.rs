//! The settings of the reflectors: list, pair by code, rename, remove.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::store::Reflector;
use paramedic_link::PeerText;

use super::super::super::ApiState;
use super::super::super::extract::{ApiPath, FormBody};
use super::super::super::problem::Problem;
use super::super::super::reflectors::{PairRequest, pair_as};
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::SettingsFrame;

/// The path of the settings of the reflectors, which are the first page of the settings.
pub(in super::super) const PATH: &str = "/settings";

/// The template of the settings of the reflectors.
#[derive(Template)]
#[template(path = "settings/reflectors.html")]
struct ReflectorsPage {
    layout: Layout,
    frame: SettingsFrame,
    reflectors: Vec<ReflectorView>,
    own_id: String,
    error: Option<Problem>,
    entered: FormBody,
}

/// A paired reflector as the page shows it.
struct ReflectorView {
    name: String,
    address: String,
    /// The Endpoint ID of the reflector. The paths to which the forms of the reflector are sent contain this ID.
    endpoint_id: String,
    paired_at: PageTime,
}

impl ReflectorView {
    fn of(reflector: &Reflector) -> Self {
        Self {
            name: shown(reflector.name.as_str()),
            address: shown(&reflector.address.to_string()),
            endpoint_id: reflector.endpoint_id.to_string(),
            paired_at: PageTime::day(reflector.paired_at),
        }
    }
}

/// Shows the settings of the reflectors.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    page(&state, &visitor, StatusCode::OK, None, FormBody::default()).await
}

/// Pairs with the reflector of the form.
pub(in super::super) async fn pair(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    match pair_from(&state, &form).await {
        Ok(()) => Ok(done(PATH, Notice::Paired)),
        Err(problem) => page(&state, &visitor, problem.status_code(), Some(problem), form).await,
    }
}

/// Pairs with the reflector of a form: `address`, `code` and optionally `name`.
pub(in super::super) async fn pair_from(state: &ApiState, form: &FormBody) -> Result<(), Problem> {
    let request = PairRequest {
        target: form.value("address").to_owned(),
        code: Some(form.value("code").to_owned()),
        endpoint_id: None,
        name: form.text("name").map(PeerText::new),
    };
    pair_as(state.service.appliance(), request, &state.own_name).await?;
    state.service.monitors_changed();
    Ok(())
}

/// Renames a reflector.
pub(in super::super) async fn rename(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    let name = PeerText::new(form.value("name"));
    match state.service.appliance().rename_reflector(&id, &name).await {
        Ok(_) => {
            state.service.monitors_changed();
            Ok(done(PATH, Notice::ReflectorRenamed))
        }
        Err(error) => {
            let problem = Problem::from(error);
            page(&state, &visitor, problem.status_code(), Some(problem), FormBody::default()).await
        }
    }
}

/// Removes a reflector.
pub(in super::super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
) -> Result<Response, Problem> {
    state.service.appliance().remove_reflector(&id).await?;
    state.service.monitors_changed();
    Ok(done(PATH, Notice::ReflectorRemoved))
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    status: StatusCode,
    error: Option<Problem>,
    entered: FormBody,
) -> Result<Response, Problem> {
    let appliance = state.service.appliance();
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let reflectors = appliance.reflectors().await?.iter().map(ReflectorView::of).collect();
    let own_id = appliance.endpoint_id()?.to_string();
    Ok(page_with(status, &ReflectorsPage { layout, frame, reflectors, own_id, error, entered }))
}
