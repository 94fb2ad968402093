//! The settings of the access tokens of the API: list, add, remove.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::app::NewToken;
use paramedic_appliance::store::{AccessScope, StoredToken};

use super::super::super::ApiState;
use super::super::super::extract::{ApiPath, FormBody, encoded};
use super::super::super::problem::Problem;
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::SettingsFrame;

/// The path of the settings of the tokens.
pub(in super::super) const PATH: &str = "/settings/tokens";

/// The template of the settings of the tokens.
#[derive(Template)]
#[template(path = "settings/tokens.html")]
struct TokensPage {
    layout: Layout,
    frame: SettingsFrame,
    tokens: Vec<TokenView>,
    /// The scopes that a token can have, each with a description in words.
    scopes: Vec<(AccessScope, &'static str)>,
    /// The secret of a new token, which the page shows only once; `None` if no token was added.
    secret: Option<String>,
    error: Option<Problem>,
    entered: FormBody,
}

/// A token as the page shows it.
struct TokenView {
    name: String,
    /// The path to which the form of the token is sent.
    path: String,
    scope: AccessScope,
    added_at: PageTime,
}

impl TokenView {
    fn of(token: &StoredToken) -> Self {
        Self {
            name: shown(&token.name),
            path: format!("{PATH}/{}", encoded(&token.name)),
            scope: token.scope,
            added_at: PageTime::day(token.added_at),
        }
    }
}

/// The outcome of a submitted form, which the page shows beside the tokens.
#[derive(Default)]
struct TokenOutcome {
    secret: Option<String>,
    error: Option<Problem>,
    entered: FormBody,
}

/// Shows the settings of the tokens.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    page(&state, &visitor, StatusCode::OK, TokenOutcome::default()).await
}

/// Adds a token with the name and scope from the form. The answer shows the secret of the token.
pub(in super::super) async fn add(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    let wanted = form.value("scope");
    let scope = AccessScope::ALL.into_iter().find(|scope| scope.as_str() == wanted).unwrap_or(AccessScope::Read);
    match state.service.appliance().add_token(form.value("name"), scope).await {
        Ok(NewToken { token, .. }) => {
            let outcome = TokenOutcome { secret: Some(token), ..TokenOutcome::default() };
            page(&state, &visitor, StatusCode::CREATED, outcome).await
        }
        Err(error) => {
            let problem = Problem::from(error);
            let status = problem.status_code();
            page(&state, &visitor, status, TokenOutcome { secret: None, error: Some(problem), entered: form }).await
        }
    }
}

/// Removes a token.
pub(in super::super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    state.service.appliance().remove_token(&name).await?;
    state.access.credential_removed();
    Ok(done(PATH, Notice::TokenRemoved))
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    status: StatusCode,
    outcome: TokenOutcome,
) -> Result<Response, Problem> {
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let tokens = state.service.appliance().tokens().await?.iter().map(TokenView::of).collect();
    let TokenOutcome { secret, error, entered } = outcome;
    let scopes = AccessScope::ALL.map(|scope| (scope, words(scope))).to_vec();
    Ok(page_with(status, &TokensPage { layout, frame, tokens, scopes, secret, error, entered }))
}

fn words(scope: AccessScope) -> &'static str {
    match scope {
        AccessScope::Read => "read everything but the tokens and the configuration",
        AccessScope::Run => "also run and cancel tests",
        AccessScope::Admin => "change everything",
    }
}
