//! The errors of the API: problem details (RFC 9457), with the fields of an error document as further members.

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use paramedic_appliance::ApplianceError;
use paramedic_link::PeerText;
use paramedic_report::document::ErrorBody;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cli::failure::{CommandFailure, ExitStatus};

/// The media type of problem details.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The maximum length of a text of a problem on a page, in characters.
const LONGEST_SHOWN: usize = 1000;

/// The codes of failures at another host, or on the path to it. The API answers them with status 502.
const OTHER_END: [&str; 8] = [
    "unreachable",
    "name_not_resolved",
    "no_reflector",
    "silent",
    "reflector_gone",
    "version",
    "protocol",
    "bad_report",
];

/// The problem details of a failed request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Problem {
    /// A URI that names the kind of problem: `urn:packetparamedic:error:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// What failed.
    title: String,
    /// The HTTP status of the answer.
    status: u16,
    /// The cause, and what to do.
    detail: String,
    /// The exit code of a command that fails because of this problem.
    exit: u8,
    /// The error as in an error document: its code, what failed, why, and what to try.
    #[serde(flatten)]
    body: ErrorBody,
}

impl Problem {
    fn new(status: StatusCode, exit: ExitStatus, body: ErrorBody) -> Self {
        Self {
            kind: format!("urn:packetparamedic:error:{}", body.code),
            title: body.what.clone(),
            status: status.as_u16(),
            detail: format!("{}; try: {}", body.because, body.try_),
            exit: exit as u8,
            body,
        }
    }

    /// Creates the problem of a request that is refused with this status.
    pub(super) fn refused(status: StatusCode, failure: CommandFailure) -> Self {
        Self::new(status, failure.exit, failure.body())
    }

    /// The HTTP status of the answer.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// Creates the problem of a request that is not valid.
    pub(super) fn invalid(status: StatusCode, because: &str) -> Self {
        let body = ErrorBody {
            code: "bad_request".to_owned(),
            what: "the request is not valid".to_owned(),
            because: because.lines().map(str::trim).collect::<Vec<_>>().join("; "),
            try_: "see docs/service.md for the routes and their bodies".to_owned(),
            retry_after_ms: None,
        };
        Self::new(status, ExitStatus::Usage, body)
    }

    /// The HTTP status of the answer as a [`StatusCode`].
    pub(super) fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What failed, and why, as a page shows them. Both texts are sanitised, because they can contain text of the
    /// request.
    pub(super) fn shown(&self) -> [String; 2] {
        [&self.body.what, &self.body.because].map(|text| PeerText::harmless(text, LONGEST_SHOWN))
    }

    /// The error as in an error document: its code, what failed, why, and what to try.
    pub(super) fn body(&self) -> &ErrorBody {
        &self.body
    }

    /// Whether the request needs a login, or a login with a larger scope.
    pub(super) fn asks_for_login(&self) -> bool {
        ["login_required", "scope_too_small", "unknown_token"].contains(&self.body.code.as_str())
    }

    /// Converts the problem to the failure of the command that sent the request.
    pub(crate) fn into_failure(self) -> CommandFailure {
        use ExitStatus::{BelowThreshold, Busy, Denied, Done, Failed, Interrupted, Usage};
        let known = [Done, Usage, BelowThreshold, Denied, Busy, Interrupted];
        let exit = known.into_iter().find(|own| *own as u8 == self.exit).unwrap_or(Failed);
        let ErrorBody { code, what, because, try_, retry_after_ms } = self.body;
        // The command ends with this failure, so its code can live as long as the process.
        let mut failure = CommandFailure::new(exit, Box::leak(code.into_boxed_str()), what, because, try_);
        failure.retry_after_ms = retry_after_ms;
        failure
    }
}

impl From<CommandFailure> for Problem {
    fn from(failure: CommandFailure) -> Self {
        let status = match (failure.exit, failure.code) {
            (_, code) if code.starts_with("no_such_") => StatusCode::NOT_FOUND,
            (_, "disk_full") => StatusCode::INSUFFICIENT_STORAGE,
            (_, "database_unreachable") => StatusCode::SERVICE_UNAVAILABLE,
            (_, "database_refused" | "database_read_only" | "database_encoding") => StatusCode::INTERNAL_SERVER_ERROR,
            (ExitStatus::Usage, "bad_name") | (_, "schedule_disabled") => StatusCode::CONFLICT,
            (ExitStatus::Usage, _) => StatusCode::BAD_REQUEST,
            (ExitStatus::Denied, _) => StatusCode::FORBIDDEN,
            (ExitStatus::Busy, _) => StatusCode::CONFLICT,
            (ExitStatus::Failed, code) if OTHER_END.contains(&code) => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, failure.exit, failure.body())
    }
}

impl From<ApplianceError> for Problem {
    fn from(error: ApplianceError) -> Self {
        CommandFailure::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status_code();
        let mut response = (status, axum::Json(&self)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
        // For a browser, `pages::dress` makes a page of this problem.
        response.extensions_mut().insert(self);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Answers a request whose path belongs to no route.
pub(super) async fn no_route(request: Request) -> Problem {
    let because = format!("{:?} is neither a page nor a route of the API", request.uri().path());
    let try_ = "open the first page, /, or see docs/service.md for the routes of the API";
    let failure = CommandFailure::new(ExitStatus::Usage, "bad_request", "there is nothing at this path", because, try_);
    Problem::refused(StatusCode::NOT_FOUND, failure)
}

/// Answers a request with a method that the route does not have.
pub(super) async fn no_method(request: Request) -> Problem {
    Problem::invalid(StatusCode::METHOD_NOT_ALLOWED, &format!("this route has no method {}", request.method()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_problem() {
        for failure in [
            CommandFailure::new(ExitStatus::Busy, "busy_here", "what", "because", "try"),
            CommandFailure::new(ExitStatus::Failed, "no_such_schedule", "what", "because", "try"),
        ] {
            let problem = Problem::from(failure.clone());
            let text = serde_json::to_string(&problem).unwrap();
            let read = serde_json::from_str::<Problem>(&text).unwrap();
            assert_eq!(read, problem);
            assert_eq!(read.into_failure(), failure);
        }
        let gone = CommandFailure::new(ExitStatus::Failed, "unreachable", "what", "because", "try");
        assert_eq!(Problem::from(gone).status(), 502, "no fault of this service");
        let missing = CommandFailure::new(ExitStatus::Failed, "no_such_run", "no such run", "no run", "list them");
        let value = serde_json::to_value(Problem::from(missing)).unwrap();
        assert_eq!((&value["status"], &value["type"]), (&404.into(), &"urn:packetparamedic:error:no_such_run".into()));
        assert_eq!((&value["code"], &value["title"]), (&"no_such_run".into(), &"no such run".into()));
    }
}
