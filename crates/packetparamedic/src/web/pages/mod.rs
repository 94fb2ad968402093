//! The web pages of the running service: rendered by the server, readable without JavaScript. A thin client of the appliance's
//! `app`, as the API is.

mod assets;
mod dress;
mod layout;
mod login;

mod notice;
mod now;
mod page_time;
mod theme;
mod visitor;

use axum::Router;
use axum::routing::{get, post};

pub(super) use dress::dress;

use super::ApiState;
use super::access::SETUP_PAGE;

/// The routes of the pages. A page that is not listed in `access` can be read by all who may read; a change needs an
/// administrator.
pub(super) fn pages() -> Router<ApiState> {
    Router::new()
        .route("/", get(now::show))
        .route("/login", get(login::show).post(login::log_in))
        .route("/logout", post(login::log_out))
        .route(SETUP_PAGE, get(login::setup).post(login::set_up))
        .route("/theme", post(theme::choose))
        .route("/assets/{name}", get(assets::file))
}
