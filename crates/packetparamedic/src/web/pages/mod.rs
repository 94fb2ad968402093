//! The web pages of the running service: rendered by the server, readable without JavaScript. Like the API, they
//! translate between HTTP and the module `app` of `paramedic_appliance`.

mod alerts;
mod assets;
mod dress;
mod layout;
mod login;

mod notice;
mod now;
mod outside_text;
mod page_time;
mod settings;
mod start;
#[cfg(test)]
mod tests;
mod theme;
mod views;
mod visitor;

use axum::Router;
use axum::routing::{get, post};

pub(super) use dress::dress;

use super::ApiState;
use super::access::SETUP_PAGE;

/// The routes of the pages. At a route that `access` does not list, a read needs the scope `read`, and a change needs
/// the scope `admin`.
pub(super) fn pages() -> Router<ApiState> {
    use settings::{about, channels, monitors, plan, reflectors, schedules, tokens};
    Router::new()
        .route(now::PATH, get(now::show))
        .route("/tests", post(now::measure))
        .route("/tests/{id}/cancel", post(now::cancel))
        .route(start::PATH, get(start::show))
        .route("/start/pair", post(start::pair))
        .route("/start/plan", post(start::set_plan))
        .route("/start/schedule", post(start::add_schedule))
        .route(reflectors::PATH, get(reflectors::show))
        .route("/settings/reflectors", post(reflectors::pair))
        .route("/settings/reflectors/{id}/rename", post(reflectors::rename))
        .route("/settings/reflectors/{id}/remove", post(reflectors::remove))
        .route(schedules::PATH, get(schedules::show).post(schedules::add))
        .route("/settings/schedules/{name}/switch", post(schedules::switch))
        .route("/settings/schedules/{name}/run", post(schedules::run))
        .route("/settings/schedules/{name}/remove", post(schedules::remove))
        .route(alerts::PATH, get(alerts::show).post(alerts::add))
        .route("/alerts/suggested", post(alerts::add_suggested))
        .route("/alerts/rules/{name}/switch", post(alerts::switch))
        .route("/alerts/rules/{name}/remove", post(alerts::remove))
        .route(monitors::PATH, get(monitors::show).post(monitors::add))
        .route("/settings/monitors/{name}/switch", post(monitors::switch))
        .route("/settings/monitors/{name}/remove", post(monitors::remove))
        .route(plan::PATH, get(plan::show).post(plan::set))
        .route("/settings/plan/clear", post(plan::clear))
        .route(channels::PATH, get(channels::show).post(channels::add))
        .route("/settings/channels/{name}/switch", post(channels::switch))
        .route("/settings/channels/{name}/test", post(channels::test))
        .route("/settings/channels/{name}/remove", post(channels::remove))
        .route(tokens::PATH, get(tokens::show).post(tokens::add))
        .route("/settings/tokens/{name}/remove", post(tokens::remove))
        .route(about::PATH, get(about::show))
        .route("/login", get(login::show).post(login::log_in))
        .route("/logout", post(login::log_out))
        .route(SETUP_PAGE, get(login::setup).post(login::set_up))
        .route("/theme", post(theme::choose))
        .route("/assets/{name}", get(assets::file))
        .merge(views::routes())
}
