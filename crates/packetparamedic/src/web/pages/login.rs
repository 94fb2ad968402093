//! The pages of the administrator's login: log in, log out, set the password by a setup link.

use askama::Template;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{HeaderName, HeaderValue, SET_COOKIE};
use axum::response::{AppendHeaders, IntoResponse, Response};
use paramedic_appliance::ApplianceError;
use zeroize::Zeroizing;

use super::super::ApiState;
use super::super::extract::{ApiPath, FormBody};
use super::super::guard::{Caller, NothingChanged};
use super::super::login;
use super::super::problem::Problem;
use super::layout::{Layout, Section, done, own_path, page, page_with};
use super::notice::Notice;
use super::visitor::Visitor;

/// The template of the page on which the viewer enters the password.
#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    layout: Layout,
    /// Whether the administrator has set a password.
    has_password: bool,
    /// The path to which the browser returns after the login.
    next: String,
    error: Option<String>,
}

/// The template of the page of a setup link, on which the password is set.
#[derive(Template)]
#[template(path = "setup.html")]
struct SetupPage {
    layout: Layout,
    error: Option<String>,
}

/// Shows the page of the login.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let next = visitor.parameter("next").and_then(own_path).unwrap_or("/").to_owned();
    let has_password = state.service.appliance().has_password().await?;
    Ok(page(&LoginPage { layout: layout(&visitor, "Log in"), has_password, next, error: None }))
}

/// Tries the password of the form, and begins a login if the password is right.
pub(super) async fn log_in(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    let next = form.text("next").and_then(own_path).unwrap_or("/").to_owned();
    match login::attempt(&state, &caller, password(&form)).await {
        Ok(login) => Ok((login_cookie(&login, &caller), done(&next, Notice::LoggedIn)).into_response()),
        Err(problem) if problem.status() < 500 => {
            let has_password = state.service.appliance().has_password().await?;
            let error = Some(problem.shown().join(": ") + ".");
            Ok(page_with(
                problem.status_code(),
                &LoginPage { layout: layout(&visitor, "Log in"), has_password, next, error },
            ))
        }
        Err(problem) => Err(problem),
    }
}

/// Ends the login of the viewer.
pub(super) async fn log_out(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    let unchanged = caller.login.is_none().then_some(Extension(NothingChanged));
    let cookie = login::end(&state, &caller).await?;
    Ok((unchanged, AppendHeaders([(SET_COOKIE, cookie)]), done("/login", Notice::LoggedOut)).into_response())
}

/// Shows the page of a setup link.
pub(super) async fn setup(
    State(state): State<ApiState>,
    visitor: Visitor,
    ApiPath(secret): ApiPath<String>,
) -> Result<Response, Problem> {
    if !state.service.appliance().is_setup_link(&secret).await? {
        return Err(ApplianceError::NoSuchSetupLink.into());
    }
    Ok(page(&SetupPage { layout: setup_layout(&visitor), error: None }))
}

/// Sets the password of the form, and begins a login.
pub(super) async fn set_up(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    visitor: Visitor,
    ApiPath(secret): ApiPath<String>,
    form: FormBody,
) -> Result<Response, Problem> {
    let password = password(&form);
    match state.service.appliance().set_up(&secret, password.clone()).await {
        Ok(()) => {}
        Err(error @ ApplianceError::PasswordLength { .. }) => {
            let error = Some(error.to_string());
            return Ok(page_with(StatusCode::BAD_REQUEST, &SetupPage { layout: setup_layout(&visitor), error }));
        }
        Err(error) => return Err(error.into()),
    }
    state.access.credential_removed();
    let login = login::first_login(&state, &caller, password).await?;
    Ok((login_cookie(&login, &caller), done("/start", Notice::PasswordSet)).into_response())
}

fn layout(visitor: &Visitor, title: &str) -> Layout {
    visitor.layout(title, Section::Elsewhere)
}

/// The layout of the setup page. Its path is `/`, because nothing may lead back to the real path, which has a secret.
fn setup_layout(visitor: &Visitor) -> Layout {
    Layout { path: "/".to_owned(), ..layout(visitor, "Set the password") }
}

/// The password of a form, exactly as it was entered: with the spaces around it.
fn password(form: &FormBody) -> Zeroizing<String> {
    let entered = form.0.iter().find(|(name, _)| name == "password");
    Zeroizing::new(entered.map(|(_, value)| value.clone()).unwrap_or_default())
}

fn login_cookie(login: &str, caller: &Caller) -> AppendHeaders<[(HeaderName, HeaderValue); 1]> {
    AppendHeaders([(SET_COOKIE, login::cookie(login, caller))])
}
