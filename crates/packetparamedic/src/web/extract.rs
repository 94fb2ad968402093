//! Extractors for the parts of a request. If a part cannot be read, the answer is a problem document.

use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, StringRejection};
use axum::extract::{FromRequest, FromRequestParts, Json, Path, RawQuery, Request};
use axum::http::header::LINK;
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode};
pub(super) use paramedic_appliance::percent::{decoded, encoded};
use paramedic_appliance::store::PageCursor;
use serde::de::DeserializeOwned;

use super::access::API;
use super::problem::Problem;

/// The timeout for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The JSON body of a request.
pub(super) struct ApiBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let refused = |error: JsonRejection| Problem::invalid(error.status(), &unquoted(error.body_text()));
        let Json(body) = in_time(Json::<T>::from_request(request, state)).await?.map_err(refused)?;
        Ok(Self(body))
    }
}

/// Removes the quoted value from a serde error, because a value of a wrong type may be a secret. The type of the value
/// stays in the error.
fn unquoted(error: String) -> String {
    let begin = ["invalid type: ", "invalid value: "].iter().find_map(|said| Some(error.find(said)? + said.len()));
    let parts = begin.zip(error.rfind(", expected")).and_then(|(begin, end)| {
        let kind = error.get(begin..end)?.split(' ').next()?;
        Some((error.get(..begin)?, kind, error.get(end..)?))
    });
    match parts {
        Some((before, kind, after)) => format!("{before}{kind}{after}"),
        None => error,
    }
}

/// The fields of an HTML form: names and values.
#[derive(Clone, Debug, Default)]
pub(super) struct FormBody(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for FormBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let refused = |error: StringRejection| Problem::invalid(error.status(), &error.body_text());
        let text = in_time(String::from_request(request, state)).await?.map_err(refused)?;
        let fields = text.split('&').map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            Some((decoded(&name.replace('+', " "))?, decoded(&value.replace('+', " "))?))
        });
        let unreadable =
            || Problem::invalid(StatusCode::BAD_REQUEST, "the fields of the form are not valid percent-encoded UTF-8");
        fields.collect::<Option<Vec<_>>>().map(Self).ok_or_else(unreadable)
    }
}

impl FormBody {
    /// The value of the field `wanted`, without surrounding spaces; `None` if the field is missing or empty.
    pub(super) fn text(&self, wanted: &str) -> Option<&str> {
        let field = self.0.iter().find(|(name, _)| name == wanted);
        field.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value of the field `wanted`, to be shown in the form again; empty if the field is missing.
    pub(super) fn value(&self, wanted: &str) -> &str {
        self.text(wanted).unwrap_or_default()
    }

    /// Whether the checkbox `wanted` of the form is ticked.
    pub(super) fn is_ticked(&self, wanted: &str) -> bool {
        self.text(wanted).is_some()
    }
}

/// The body of a request as text.
pub(super) struct ApiText(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for ApiText {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let refused = |error: StringRejection| Problem::invalid(error.status(), &error.body_text());
        in_time(String::from_request(request, state)).await?.map(Self).map_err(refused)
    }
}

/// Awaits `read`, which reads the body of a request. Fails if the body does not arrive in time.
async fn in_time<T>(read: impl Future<Output = T>) -> Result<T, Problem> {
    let late = |_| Problem::invalid(StatusCode::REQUEST_TIMEOUT, "the body of the request did not arrive in time");
    tokio::time::timeout(BODY_TIMEOUT, read).await.map_err(late)
}

/// The value of a parameter in the path of a request.
pub(super) struct ApiPath<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for ApiPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        let refused = |error: PathRejection| Problem::invalid(error.status(), &error.body_text());
        read.map(|Path(value)| Self(value)).map_err(refused)
    }
}

/// The query parameters of a list: `limit` (from 1 to 1000), `after` (a cursor) and `schedule` (a name).
pub(super) struct ListQuery {
    pub(super) limit: u32,
    pub(super) after: Option<PageCursor>,
    pub(super) schedule: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Self::read(query.as_deref().unwrap_or_default())
            .map_err(|because| Problem::invalid(StatusCode::BAD_REQUEST, &because))
    }
}

impl ListQuery {
    fn read(query: &str) -> Result<Self, String> {
        let mut read = Self { limit: 20, after: None, schedule: None };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("limit", value)) => {
                    let limit = value.parse().ok().filter(|limit| (1..=1000).contains(limit));
                    read.limit = limit.ok_or("limit must be a number from 1 to 1000")?;
                }
                Some(("after", value)) => read.after = Some(value.parse()?),
                Some(("schedule", value)) => {
                    read.schedule = Some(decoded(value).ok_or("schedule must be a percent-encoded name")?);
                }
                _ => return Err(format!("unknown parameter {part:?}; valid: limit, after, schedule")),
            }
        }
        Ok(read)
    }
}

impl ListQuery {
    /// Returns the header `Link` with the address of the next page of the list; `None` after a page that is not full.
    pub(super) fn next(&self, route: &str, count: usize, last: Option<PageCursor>) -> Option<NextPage> {
        let schedule = self.schedule.as_deref().map(|name| format!("&schedule={}", encoded(name)));
        next_page(route, &schedule.unwrap_or_default(), self.limit, count, last)
    }
}

/// The header `Link`, with the address of the next page of a list.
pub(super) type NextPage = [(HeaderName, String); 1];

/// Returns the header with the address of the next page of `route` (RFC 8288); `None` after a page that is not full.
/// `last` is the cursor of the last row of this page. The next page has the same `parameters`.
pub(super) fn next_page(
    route: &str,
    parameters: &str,
    limit: u32,
    count: usize,
    last: Option<PageCursor>,
) -> Option<NextPage> {
    let last = last.filter(|_| u32::try_from(count).is_ok_and(|count| count >= limit))?;
    Some([(LINK, format!("<{API}{route}?limit={limit}&after={last}{parameters}>; rel=\"next\""))])
}

/// The query parameter `points` of a time series: the maximum number of points, from 1 to 10000.
pub(super) struct PointsQuery(pub(super) usize);

impl<S: Send + Sync> FromRequestParts<S> for PointsQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let because = "the only valid parameter is points, a number from 1 to 10000";
        let wrong = || Problem::invalid(StatusCode::BAD_REQUEST, because);
        match parts.uri.query() {
            None => Ok(Self(500)),
            Some(query) => {
                let points = query.strip_prefix("points=").and_then(|points| points.parse().ok());
                points.filter(|points| (1..=10_000).contains(points)).map(Self).ok_or_else(wrong)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::app::ConfiguredChannel;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z%0-9&=]{0,40}") {
            drop(ListQuery::read(&query));
        }
    }

    #[test]
    fn an_error_of_a_body_quotes_no_value() {
        let error = |body: &str| unquoted(serde_json::from_str::<Vec<u8>>(body).unwrap_err().to_string());
        assert_eq!(error(r#""T0KEN""#), "invalid type: string, expected a sequence at line 1 column 7");
        assert_eq!(error(r#"["a\", expected b"]"#), "invalid type: string, expected u8 at line 1 column 18");
        assert_eq!(error("[-4711]"), "invalid value: integer, expected u8 at line 1 column 6");
        for secrets in [r#""geheim""#, "4711", r#"{"token": 4711}"#, r#"{"token": ["geheim"]}"#] {
            let channel = format!(
                r#"{{"name": "p", "kind": "ntfy", "enabled": true, "server": "https://a.example/", "topic": "t",
                "secrets": {secrets}}}"#
            );
            let refused = serde_json::from_str::<ConfiguredChannel>(&channel).unwrap_err().to_string();
            let refused = unquoted(refused);
            assert!(!refused.contains("geheim") && !refused.contains("4711"), "{refused}");
        }
    }

    #[test]
    fn a_query_has_known_parameters_within_their_range() {
        let read = ListQuery::read("limit=7&schedule=caf%C3%A9").map_err(drop).map(|q| (q.limit, q.schedule));
        assert_eq!(read, Ok((7, Some("café".to_owned()))));
        for wrong in ["limit=0", "limit=1001", "limit", "offset=3", "after=", "after=1", "schedule=%zz", "schedule=%F"]
        {
            assert!(ListQuery::read(wrong).is_err(), "{wrong}");
        }
    }
}
