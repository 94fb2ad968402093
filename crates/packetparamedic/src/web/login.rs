//! The API routes of the administrator's login: log in, log out, create a setup link. The pages of the login use
//! functions of this module.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use paramedic_appliance::app::{LOGIN_LIFETIME, SetupLink};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ApiState;
use super::access::SETUP_PAGE;
use super::extract::ApiBody;
use super::guard::{Caller, LOGIN_COOKIE, NothingChanged};
use super::login_attempts::LoginAttempts;
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The login attempts of all clients.
pub(super) type SharedAttempts = Arc<Mutex<LoginAttempts>>;

/// A request to log in.
#[derive(Deserialize, JsonSchema)]
pub(super) struct LoginRequest {
    password: String,
}

/// A new setup link: the address of the page on which the administrator sets the password.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct SetupLinkAnswer {
    /// The path of the setup link on this service.
    pub(crate) path: String,
    /// Until when the setup link is valid.
    pub(crate) expires_at: Timestamp,
}

impl From<SetupLink> for SetupLinkAnswer {
    fn from(link: SetupLink) -> Self {
        Self { path: SETUP_PAGE.replace("{secret}", &link.secret), expires_at: link.expires_at }
    }
}

/// Begins a login. The answer sets the cookie of the login.
pub(super) async fn log_in(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    ApiBody(request): ApiBody<LoginRequest>,
) -> Result<Response, Problem> {
    let login = attempt(&state, &caller, Zeroizing::new(request.password)).await?;
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, cookie(&login, &caller))]).into_response())
}

/// Ends the login to which the cookie of the request belongs.
pub(super) async fn log_out(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    let unchanged = caller.login.is_none().then_some(Extension(NothingChanged));
    Ok((StatusCode::NO_CONTENT, unchanged, [(SET_COOKIE, end(&state, &caller).await?)]).into_response())
}

/// Ends the login of a request. Returns the cookie that makes the browser remove its login cookie.
pub(super) async fn end(state: &ApiState, caller: &Caller) -> Result<HeaderValue, Problem> {
    if let Some(login) = &caller.login {
        state.service.appliance().log_out(login).await?;
        state.access.credential_removed();
    }
    Ok(cookie_for("", Duration::ZERO, caller))
}

/// Creates a setup link: the address of the page on which the administrator sets the password.
pub(super) async fn new_link(State(state): State<ApiState>) -> Result<(StatusCode, Json<SetupLinkAnswer>), Problem> {
    let link = state.service.appliance().new_setup_link().await?;
    Ok((StatusCode::CREATED, Json(link.into())))
}

/// Begins the login of a client that has just set the password. The client's earlier wrong passwords no longer count.
pub(super) async fn first_login(
    state: &ApiState,
    caller: &Caller,
    password: Zeroizing<String>,
) -> Result<String, Problem> {
    state.attempts.lock().unwrap_or_else(PoisonError::into_inner).succeeded(caller.client);
    attempt(state, caller, password).await
}

/// Tries a password. Returns the secret of the new login, if the password is right.
pub(super) async fn attempt(state: &ApiState, caller: &Caller, password: Zeroizing<String>) -> Result<String, Problem> {
    #[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the limit of attempts")]
    let now = Instant::now();
    let attempts = || state.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    attempts().begin(caller.client, now).map_err(too_many)?;
    // A task of its own records the verdict even if the client does not wait for it.
    let (state, client) = (state.clone(), caller.client);
    let judged = tokio::spawn(async move {
        let judged = state.service.appliance().log_in(password).await;
        let mut attempts = state.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        match &judged {
            Ok(Some(_)) => attempts.succeeded(client),
            Ok(None) => {}
            // The store did not answer, so the password was not judged.
            Err(_) => attempts.take_back(client),
        }
        judged
    });
    match judged.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))? {
        Some(login) => Ok(login),
        None => {
            if attempts().is_logged(now) {
                tracing::warn!(client = %caller.client, "a login with a wrong password");
            }
            let try_ = "run `packetparamedic token setup` for a link with which a new password can be set";
            let because = "this is not the administrator's password, or no password is set";
            let failure =
                CommandFailure::new(ExitStatus::Denied, "wrong_password", "the password is wrong", because, try_);
            Err(Problem::refused(StatusCode::UNAUTHORIZED, failure))
        }
    }
}

fn too_many(wait: Duration) -> Problem {
    let because = "this address sent several wrong passwords";
    let try_ = format!("wait {} s, then log in again", wait.as_secs() + 1);
    let failure = CommandFailure::new(ExitStatus::Busy, "too_many_logins", "no password was checked", because, try_);
    Problem::refused(StatusCode::TOO_MANY_REQUESTS, failure)
}

/// The cookie that stores `login`, the secret of a login, in the browser.
pub(super) fn cookie(login: &str, caller: &Caller) -> HeaderValue {
    cookie_for(login, LOGIN_LIFETIME, caller)
}

/// A login cookie with the value `login` and this lifetime. A browser that received the cookie over TLS never sends it
/// without TLS.
fn cookie_for(login: &str, lifetime: Duration, caller: &Caller) -> HeaderValue {
    let secure = if caller.is_https { "; Secure" } else { "" };
    let seconds = lifetime.as_secs();
    let text = format!("{LOGIN_COOKIE}={login}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    // A secret has only letters, digits, dashes and underscores, so this does not fail.
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
