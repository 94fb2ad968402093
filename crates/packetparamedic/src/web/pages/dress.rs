//! Adapts answers for browsers. A problem becomes a page, or a redirection to the login. Pages get their security
//! headers, and are compressed. This is the outermost layer of the router.

use askama::Template;
use axum::body::{self, Body};
use axum::extract::Request;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use flate2::Compression;

use super::super::access::API;
use super::super::problem::Problem;
use super::assets::{compressed, mark_compressed, takes_gzip};
use super::layout::{Layout, Section, login_path, page_with, see_other};
use super::visitor::Visitor;

/// The Content-Security-Policy of the pages: they load only files of this service, and no page may frame them.
pub(super) const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'",
);
/// The maximum length of a page for a client that accepts gzip, in bytes. A longer page is answered with status 500.
const LONGEST_PAGE: usize = 16 * 1024 * 1024;
/// The minimum length of a page that is compressed, in bytes.
const SHORT_PAGE: usize = 512;
/// The header that marks a request of htmx.
const HTMX_REQUEST: &str = "hx-request";
/// The header by which an answer makes htmx load a whole page.
const HTMX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");

/// The template of a page about an error.
#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    layout: Layout,
    problem: &'a Problem,
}

/// Passes a request on, and adapts the answer for a browser.
pub(in super::super) async fn dress(request: Request, next: Next) -> Response {
    let is_of_api = request.uri().path().starts_with(API);
    let wants_page = !is_of_api && takes_html(request.headers());
    let gzip = takes_gzip(request.headers());
    let (parts, body) = request.into_parts();
    let visitor = Visitor::of(&parts);
    let is_reading = parts.method.is_safe();
    let is_htmx = parts.headers.contains_key(HTMX_REQUEST);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    if wants_page && let Some(problem) = response.extensions().get::<Problem>() {
        response = of_problem(problem, &visitor, is_reading);
        if is_htmx && response.status() == StatusCode::SEE_OTHER {
            response = lead_whole_page(response);
        }
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    if !is_html(response.headers()) {
        return response;
    }
    let headers = response.headers_mut();
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(POLICY);
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // With `no-referrer`, a browser would also hide the origin of forms, which the guard checks.
    headers.entry(REFERRER_POLICY).or_insert(HeaderValue::from_static("same-origin"));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding, cookie"));
    if gzip { smaller(response).await } else { response }
}

/// Returns the page of a problem, or a redirection to the login page if a login would help.
fn of_problem(problem: &Problem, visitor: &Visitor, is_reading: bool) -> Response {
    let layout = visitor.layout("This did not work", Section::Elsewhere);
    if problem.asks_for_login() {
        return see_other(&login_path(if is_reading { &layout.path } else { "/" }));
    }
    page_with(problem.status_code(), &ErrorPage { layout, problem })
}

/// Turns a redirection into an answer that makes htmx load the whole target page, not a part of it.
fn lead_whole_page(redirection: Response) -> Response {
    let (mut parts, _) = redirection.into_parts();
    if let Some(location) = parts.headers.remove(LOCATION) {
        parts.headers.insert(HTMX_REDIRECT, location);
    }
    parts.status = StatusCode::OK;
    Response::from_parts(parts, Body::empty())
}

async fn smaller(response: Response) -> Response {
    let (mut parts, content) = response.into_parts();
    match body::to_bytes(content, LONGEST_PAGE).await {
        Ok(bytes) if bytes.len() < SHORT_PAGE => Response::from_parts(parts, bytes.into()),
        Ok(bytes) => {
            mark_compressed(&mut parts.headers);
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, compressed(&bytes, Compression::new(5)).into())
        }
        Err(error) => {
            tracing::warn!(%error, "a page broke off");
            parts.status = StatusCode::INTERNAL_SERVER_ERROR;
            Response::from_parts(parts, Body::empty())
        }
    }
}

/// Whether the client accepts a page: it is a browser, or htmx in one.
fn takes_html(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(HTMX_REQUEST) || accepted.any(|value| value.contains("text/html"))
}

fn is_html(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}
