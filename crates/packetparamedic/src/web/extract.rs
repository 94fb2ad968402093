//! The parts of a request, read such that every refusal is a problem document.

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Json, Path, RawQuery, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A JSON body.
pub(super) struct ApiBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read = Json::<T>::from_request(request, state).await;
        let refused = |error: JsonRejection| Problem::invalid(error.status(), &error.body_text());
        read.map(|Json(body)| Self(body)).map_err(refused)
    }
}

/// A part of the path.
pub(super) struct ApiPath<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for ApiPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        let refused = |error: PathRejection| Problem::invalid(error.status(), &error.body_text());
        read.map(|Path(value)| Self(value)).map_err(refused)
    }
}

/// The parameters of a list: `limit`, from 1 to 1000, and `schedule`, a name.
pub(super) struct ListQuery {
    pub(super) limit: u32,
    pub(super) schedule: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Self::read(query.as_deref().unwrap_or_default())
            .map_err(|because| Problem::invalid(axum::http::StatusCode::BAD_REQUEST, &because))
    }
}

impl ListQuery {
    fn read(query: &str) -> Result<Self, String> {
        let mut read = Self { limit: 20, schedule: None };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("limit", value)) => {
                    let limit = value.parse().ok().filter(|limit| (1..=1000).contains(limit));
                    read.limit = limit.ok_or("limit is a number from 1 to 1000")?;
                }
                Some(("schedule", value)) => {
                    read.schedule = Some(decoded(value).ok_or("schedule is a name, percent-encoded")?);
                }
                _ => return Err(format!("unknown parameter {part:?}; valid: limit, schedule")),
            }
        }
        Ok(read)
    }
}

/// A text whose bytes other than letters, digits and `-._~` are percent-encoded (RFC 3986).
pub(super) fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "\\PC*") {
            let hidden = encoded(&text);
            prop_assert!(hidden.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#&=".contains(&byte)), "{hidden}");
            prop_assert_eq!(decoded(&hidden), Some(text));
        }

        #[test]
        fn no_query_panics(query in "[a-z%0-9&=]{0,40}") {
            drop(ListQuery::read(&query));
        }
    }

    #[test]
    fn a_query_has_known_parameters_within_their_range() {
        let read = ListQuery::read("limit=7&schedule=caf%C3%A9").map_err(drop).map(|q| (q.limit, q.schedule));
        assert_eq!(read, Ok((7, Some("café".to_owned()))));
        for wrong in ["limit=0", "limit=1001", "limit", "offset=3", "schedule=%zz", "schedule=%F"] {
            assert!(ListQuery::read(wrong).is_err(), "{wrong}");
        }
    }
}
