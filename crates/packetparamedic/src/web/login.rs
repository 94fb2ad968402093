//! The routes of the administrator's login: log in, log out, make a setup link, set the password with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, SET_COOKIE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{LOGIN_LIFETIME, SetupLink};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ApiState;
use super::access::SETUP_PAGE;
use super::extract::{ApiBody, ApiPath, FormBody};
use super::guard::{Caller, LOGIN_COOKIE};
use super::login_attempts::LoginAttempts;
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The attempts of all clients.
pub(super) type SharedAttempts = Arc<Mutex<LoginAttempts>>;

/// A request to log in.
#[derive(Deserialize, JsonSchema)]
pub(super) struct LoginRequest {
    password: String,
}

/// A new setup link.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct SetupLinkAnswer {
    /// Its path on this service.
    pub(crate) path: String,
    /// Until when it is valid.
    pub(crate) expires_at: Timestamp,
}

impl From<SetupLink> for SetupLinkAnswer {
    fn from(link: SetupLink) -> Self {
        Self { path: SETUP_PAGE.replace("{secret}", &link.secret), expires_at: link.expires_at }
    }
}

/// Begins a login: the answer sets its cookie.
pub(super) async fn log_in(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    ApiBody(request): ApiBody<LoginRequest>,
) -> Result<Response, Problem> {
    let login = attempt(&state, &caller, Zeroizing::new(request.password)).await?;
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, cookie(&login, LOGIN_LIFETIME, &caller))]).into_response())
}

/// Ends the login of the request.
pub(super) async fn log_out(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    if let Some(login) = &caller.login {
        state.service.appliance().log_out(login).await?;
        state.access.credential_removed();
    }
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, cookie("", Duration::ZERO, &caller))]).into_response())
}

/// Makes a new setup link.
pub(super) async fn new_link(State(state): State<ApiState>) -> Result<(StatusCode, Json<SetupLinkAnswer>), Problem> {
    let link = state.service.appliance().new_setup_link().await?;
    Ok((StatusCode::CREATED, Json(link.into())))
}

/// The page of a setup link.
pub(super) async fn setup_page(
    State(state): State<ApiState>,
    ApiPath(secret): ApiPath<String>,
) -> Result<Response, Problem> {
    if !state.service.appliance().is_setup_link(&secret).await? {
        return Err(ApplianceError::NoSuchSetupLink.into());
    }
    let form = "<form method=\"post\"><p><label>New password of the administrator (at least 10 characters): \
                <input name=\"password\" type=\"password\" autocomplete=\"new-password\" minlength=\"10\" required \
                autofocus></label></p><p><button>Set the password</button></p></form>";
    Ok(page(form))
}

/// Sets the password of the form, and begins a login.
pub(super) async fn set_up(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    ApiPath(secret): ApiPath<String>,
    FormBody(fields): FormBody,
) -> Result<Response, Problem> {
    let password = fields.into_iter().find(|(name, _)| name == "password").map(|(_, value)| value).unwrap_or_default();
    let password = Zeroizing::new(password);
    state.service.appliance().set_up(&secret, password.clone()).await?;
    state.access.credential_removed();
    let login = attempt(&state, &caller, password).await?;
    let mut response = page("<p>The password is set.</p>");
    response.headers_mut().insert(SET_COOKIE, cookie(&login, LOGIN_LIFETIME, &caller));
    Ok(response)
}

/// Tries a password: the secret of the new login.
async fn attempt(state: &ApiState, caller: &Caller, password: Zeroizing<String>) -> Result<String, Problem> {
    #[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the limit of attempts")]
    let now = Instant::now();
    let attempts = || state.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    attempts().begin(caller.client, now).map_err(too_many)?;
    match state.service.appliance().log_in(password).await? {
        Some(login) => {
            attempts().succeeded(caller.client);
            Ok(login)
        }
        None => {
            tracing::warn!(client = %caller.client, "a login with a wrong password");
            let try_ = "`packetparamedic token setup` makes a link by which a new one is set";
            let because = "it is not the administrator's, or none is set";
            let failure =
                CommandFailure::new(ExitStatus::Denied, "wrong_password", "the password is wrong", because, try_);
            Err(Problem::refused(StatusCode::UNAUTHORIZED, failure))
        }
    }
}

fn too_many(wait: Duration) -> Problem {
    let because = format!("after several wrong passwords its address has to wait {} s", wait.as_secs() + 1);
    let failure = CommandFailure::new(ExitStatus::Busy, "too_many_logins", "no login is tried", because, "wait");
    Problem::refused(StatusCode::TOO_MANY_REQUESTS, failure)
}

/// The cookie of a login. Only with TLS it is kept from connections without.
fn cookie(login: &str, lifetime: Duration, caller: &Caller) -> HeaderValue {
    let secure = if caller.is_https { "; Secure" } else { "" };
    let seconds = lifetime.as_secs();
    let text = format!("{LOGIN_COOKIE}={login}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    // A secret has letters, digits, dashes and underscores.
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn page(content: &str) -> Response {
    let title = "PacketParamedic";
    let html = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title></head><body><h1>{title}</h1>{content}</body></html>"
    );
    let policy = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    // The path has a secret.
    ([(CONTENT_SECURITY_POLICY, policy), (REFERRER_POLICY, "same-origin")], Html(html)).into_response()
}
