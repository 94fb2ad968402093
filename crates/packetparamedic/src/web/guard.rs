//! Answers or refuses requests by the rules of `access`. Reads the headers of requests, and looks up their tokens and
//! logins.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, COOKIE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{Appliance, SecretHash, SecretKind};
use paramedic_appliance::store::AccessScope;
use tokio::sync::watch;

use super::access::{API, AccessRefusal, AccessRules, Admitted, RequestFacts, is_proxy_header, needed_scope};
use super::connections::RequestSource;
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The name of the cookie that contains the secret of a login.
pub(super) const LOGIN_COOKIE: &str = "packetparamedic_login";
/// How often a streamed answer checks that its token or login still exists, because another process can remove them.
const TOKEN_CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Checks requests by the access rules. All clones share one counter of removed tokens and logins.
#[derive(Clone)]
pub(super) struct AccessGuard {
    appliance: Appliance,
    rules: Arc<AccessRules>,
    /// Counts the tokens and logins that this service removed.
    removals: watch::Sender<u64>,
}

impl AccessGuard {
    pub(super) fn new(appliance: Appliance, rules: AccessRules) -> Self {
        Self { appliance, rules: Arc::new(rules), removals: watch::channel(0).0 }
    }

    /// Ends the answers that are streamed to the holders of removed tokens and logins.
    pub(super) fn credential_removed(&self) {
        self.removals.send_modify(|removals| *removals += 1);
    }

    /// Completes when the token or login of a request no longer exists.
    async fn removed(self, Credential { kind, hash, mut removals, .. }: Credential) {
        loop {
            tokio::time::timeout(TOKEN_CHECK_INTERVAL, removals.changed()).await.ok();
            // An error of the database is not a removal.
            if let Ok(None) = self.found(kind, &hash).await {
                return;
            }
        }
    }
}

/// The token or the login of a request.
struct Credential {
    kind: SecretKind,
    hash: SecretHash,
    found: FoundCredential,
    /// Changes with each removal of any token or login. The subscription began before this token or login was looked
    /// up, so that no removal is missed.
    removals: watch::Receiver<u64>,
}

/// What the store contains about a token or a login.
struct FoundCredential {
    /// The name of the token, or `login`, for the log.
    name: String,
    scope: AccessScope,
}

/// The client of a request, as the handler of the route sees it.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The address of the client.
    pub(super) client: IpAddr,
    /// Whether the client uses TLS, to this service or to a trusted proxy.
    pub(super) is_https: bool,
    /// The hash of the login's secret; `None` without a login.
    pub(super) login: Option<SecretHash>,
    /// What the client may do; `None` if the client needs a login and has none.
    pub(super) scope: Option<AccessScope>,
}

/// Marks the answer to a request that changed nothing. Such a request is not logged, so that clients without a login
/// cannot fill the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct NothingChanged;

/// Passes a request on if its client may send it, and logs each change. Forbids caching unless the answer allows it.
/// Forbids browsers to guess the media type of the answer.
pub(super) async fn check(State(guard): State<AccessGuard>, request: Request, next: Next) -> Response {
    let mut response = guard.answer(request, next).await;
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl AccessGuard {
    async fn answer(&self, mut request: Request, next: Next) -> Response {
        let method = request.method().clone();
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
        let source = request.extensions().get::<RequestSource>().copied();
        let (response, client) = match source {
            Some(RequestSource::User { uid }) => {
                let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
                request.extensions_mut().insert(Caller {
                    client,
                    is_https: false,
                    login: None,
                    scope: Some(AccessScope::Admin),
                });
                (next.run(request).await, format!("user {uid}"))
            }
            Some(RequestSource::Address { peer, local, is_tls }) => {
                let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
                let facts = RequestFacts {
                    peer: peer.ip(),
                    local,
                    host: only(request.headers(), HOST.as_str()),
                    target: authority.as_deref(),
                    proxy_header: request.headers().keys().map(HeaderName::as_str).find(|name| is_proxy_header(name)),
                    forwarded_for: None,
                    origin: None,
                    fetch_site: None,
                    is_change: !method.is_safe(),
                    is_visit: is_visit(request.headers()) && !path.starts_with(API),
                };
                match self.admit(facts, request.headers(), &path, &method).await {
                    Ok((admitted, credential)) => {
                        let client = admitted.client;
                        // A request with this header gets here only from a trusted proxy.
                        let is_https = is_tls || only(request.headers(), "x-forwarded-proto") == Some("https");
                        let scope = credential.as_ref().map(|credential| credential.found.scope);
                        let scope = scope.or(admitted.without_login.ok());
                        let login = credential.as_ref().filter(|credential| credential.kind == SecretKind::Login);
                        let login = login.map(|credential| credential.hash.clone());
                        request.extensions_mut().insert(Caller { client, is_https, login, scope });
                        let response = next.run(request).await;
                        match credential {
                            None => (response, client.to_string()),
                            Some(credential) => {
                                let name = format!("{}, {client}", credential.found.name);
                                (until(response, self.clone().removed(credential)), name)
                            }
                        }
                    }
                    Err(problem) => {
                        tracing::debug!(%method, path, peer = %peer.ip(), status = problem.status(), "a request is refused");
                        return problem.into_response();
                    }
                }
            }
            None => return refusal(&AccessRefusal::LoginRequired).into_response(),
        };
        let is_change = !method.is_safe() && response.extensions().get::<NothingChanged>().is_none();
        // The answer to the form of a page is a redirection.
        if is_change && (response.status().is_success() || response.status().is_redirection()) {
            tracing::info!(%method, path, client, "a client's request");
        }
        response
    }

    /// Returns the client of a request, and its token or login if it has one. Fails if the request is refused.
    async fn admit(
        &self,
        facts: RequestFacts<'_>,
        headers: &HeaderMap,
        path: &str,
        method: &axum::http::Method,
    ) -> Result<(Admitted, Option<Credential>), Problem> {
        let forwarded_for = joined(headers, "x-forwarded-for");
        let facts = RequestFacts {
            forwarded_for: forwarded_for.as_deref(),
            // More than one `Origin` is refused, as a wrong `Origin` is.
            origin: headers.contains_key(ORIGIN).then(|| only(headers, ORIGIN.as_str()).unwrap_or("null")),
            fetch_site: only(headers, "sec-fetch-site"),
            ..facts
        };
        let admitted = self.rules.admit(&facts).map_err(|refused| refusal(&refused))?;
        let credential = match headers.contains_key(AUTHORIZATION) {
            true => Some(self.token(only(headers, AUTHORIZATION.as_str())).await?),
            false => self.login(headers).await?,
        };
        let scope = credential.as_ref().map(|credential| credential.found.scope);
        admitted.authorise(scope, needed_scope(method, path)).map_err(|refused| refusal(&refused))?;
        Ok((admitted, credential))
    }

    /// Looks up the token in an `Authorization` header.
    async fn token(&self, header: Option<&str>) -> Result<Credential, Problem> {
        let unknown = || refusal(&AccessRefusal::UnknownToken);
        let (scheme, text) = header.and_then(|value| value.split_once(' ')).ok_or_else(unknown)?;
        let text = Some(text.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer")).ok_or_else(unknown)?;
        self.credential(SecretKind::Token, text).await?.ok_or_else(unknown)
    }

    /// Looks up the login in the cookies of a request. A login that has ended counts as none, so that the client can
    /// log in again.
    async fn login(&self, headers: &HeaderMap) -> Result<Option<Credential>, Problem> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        match pairs.find(|(name, _)| *name == LOGIN_COOKIE) {
            Some((_, text)) => Ok(self.credential(SecretKind::Login, text).await?),
            None => Ok(None),
        }
    }

    async fn credential(&self, kind: SecretKind, text: &str) -> Result<Option<Credential>, ApplianceError> {
        let Some(hash) = SecretHash::of(kind, text) else { return Ok(None) };
        let removals = self.removals.subscribe();
        let found = self.found(kind, &hash).await?;
        Ok(found.map(|found| Credential { kind, hash, found, removals }))
    }

    async fn found(&self, kind: SecretKind, hash: &SecretHash) -> Result<Option<FoundCredential>, ApplianceError> {
        match kind {
            SecretKind::Token => {
                let found = self.appliance.token(hash).await?;
                Ok(found.map(|token| FoundCredential { name: format!("token {}", token.name), scope: token.scope }))
            }
            SecretKind::Login => {
                let login = || FoundCredential { name: "login".to_owned(), scope: AccessScope::Admin };
                Ok(self.appliance.is_login(hash).await?.then(login))
            }
            SecretKind::SetupLink => Ok(None),
        }
    }
}

/// Whether a browser shows the answer as a page (<https://www.w3.org/TR/fetch-metadata/>).
fn is_visit(headers: &HeaderMap) -> bool {
    only(headers, "sec-fetch-mode") == Some("navigate") && only(headers, "sec-fetch-dest") == Some("document")
}

/// The value of the header `name`; `None` if the header is missing, occurs more than once, or is not ASCII text.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// The values of all headers `name`, joined with commas in their order; `None` if there are none.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect::<Vec<_>>();
    (!values.is_empty()).then(|| values.join(","))
}

/// Returns the problem document that answers a refused request.
fn refusal(refused: &AccessRefusal) -> Problem {
    let add_token = "send the header `Authorization: Bearer TOKEN`; `packetparamedic token add` makes a token";
    let (status, code, what, because, try_) = match refused {
        AccessRefusal::WrongHost { port } => (
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            "the request is for another host",
            "without a token or login, the service answers only requests for localhost, 127.0.0.1 or [::1]".to_owned(),
            format!("use localhost:{port}, 127.0.0.1:{port} or [::1]:{port}, or send a token"),
        ),
        AccessRefusal::UntrustedProxy { header, peer } => (
            StatusCode::FORBIDDEN,
            "untrusted_proxy",
            "a proxy that is not trusted forwarded the request",
            format!("the request has the header {header}, and trusted_proxies does not contain {peer}"),
            "add the address of the proxy to the setting trusted_proxies".to_owned(),
        ),
        AccessRefusal::CrossOrigin { origin } => (
            StatusCode::FORBIDDEN,
            "cross_origin",
            "a page of another site sent the request",
            format!("the origin of the request is {origin:?}"),
            "send the request from a page of this service, or from a program".to_owned(),
        ),
        AccessRefusal::LoginRequired => (
            StatusCode::UNAUTHORIZED,
            "login_required",
            "the request needs a token or a login",
            "the request does not come over loopback, or trusted_proxies is set".to_owned(),
            add_token.to_owned(),
        ),
        AccessRefusal::UnknownToken => (
            StatusCode::UNAUTHORIZED,
            "unknown_token",
            "the token is not valid",
            "the token was removed, or this service never issued it".to_owned(),
            add_token.to_owned(),
        ),
        AccessRefusal::ScopeTooSmall { needs, has } => (
            StatusCode::FORBIDDEN,
            "scope_too_small",
            "the request is not allowed",
            format!("the request needs the scope {needs}, and has only {has}"),
            format!("log in, use a token with the scope {needs}, or send the request through the unix socket"),
        ),
    };
    Problem::refused(status, CommandFailure::new(ExitStatus::Denied, code, what, because, try_))
}

/// Returns `response` with a body that is aborted when `end` completes.
fn until(response: Response, end: impl Future<Output = ()> + Send + 'static) -> Response {
    response.map(|body| Body::new(RevocableBody { body, end: Box::pin(end) }))
}

/// The body of an answer. The service aborts the body when the token or login of the request is removed.
struct RevocableBody {
    body: Body,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl hyper::body::Body for RevocableBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // A client that ends its own login reads the end of the answer, not a failure.
        if self.body.is_end_stream() {
            return Poll::Ready(None);
        }
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(axum::Error::new("the token or the login was removed")))),
            Poll::Pending => Pin::new(&mut self.body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
