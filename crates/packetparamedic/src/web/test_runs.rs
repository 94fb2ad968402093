//! The API routes of tests that a client runs. The answer grows while the test runs: one JSON document in each line. If
//! the client disconnects, the service cancels the test.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{RunLife, RunReport, RunningTest, Service, TestEnd, TestEvent};
use paramedic_appliance::providers::options::OptionValues;
use paramedic_appliance::request::TestRequest;
use paramedic_report::document::{Event, ResultDocument};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::ApiState;
use super::channel_body::ChannelBody;
use super::connections::RequestSource;
use super::extract::{ApiBody, ApiPath};
use super::guard::NothingChanged;
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The maximum number of lines that wait for a slow client.
const WAITING_LINES: usize = 64;

/// A line of the answer to a request to run a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TestLine {
    /// The first line: the service has accepted the test, and given it this id.
    Accepted(Uuid),
    /// Another test runs on this device; the accepted test waits for it.
    WaitingForDevice,
    /// An event of the test.
    Event(Box<Event>),
    /// The last line: how the test ended.
    End(Box<TestLineEnd>),
}

/// How a test ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TestLineEnd {
    /// What the test measured; absent if it measured nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) measured: Option<Box<ResultDocument>>,
    /// Why the test is not complete; absent if it is complete, or if it was cancelled before it began (`never_began`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Problem>,
    /// Why the result is not saved; absent if it is saved, or if there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsaved: Option<Problem>,
    /// Whether the test was cancelled before it began.
    #[serde(default)]
    pub(crate) never_began: bool,
}

/// The answer to a request to cancel a test.
#[derive(Serialize, JsonSchema)]
pub(super) struct CancelAnswer {
    /// Whether this request cancelled a test. `false` if there was no such running test, or if it was cancelled before.
    pub(super) cancelled: bool,
}

impl CancelAnswer {
    /// Converts this to an HTTP answer. If nothing was cancelled, the request is not logged as a change.
    pub(super) fn answer(self) -> impl IntoResponse {
        let unchanged = (!self.cancelled).then_some(Extension(NothingChanged));
        (unchanged, Json(self))
    }
}

/// The running tests that clients started. The key is the id of the test. The sender cancels the test.
type TestRegistry = Arc<Mutex<HashMap<Uuid, watch::Sender<bool>>>>;

/// Runs the requested test. Each line of the answer is a [`TestLine`].
pub(super) async fn run(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiBody(request): ApiBody<TestRequest>,
) -> Result<impl IntoResponse, Problem> {
    if request.discards_result {
        let reason = "the service saves every result: use --local with --no-save".to_owned();
        return Err(ApplianceError::Unsupported(reason).into());
    }
    let (test, receiver) = start(&state, source, request).await?;
    let body = ChannelBody::new(receiver, TestCanceller { test, tests: Arc::clone(&state.tests) });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::new(body)))
}

/// Starts a test, which goes on even if the receiver of its lines is dropped. Returns its id and that receiver.
pub(super) async fn start(
    state: &ApiState,
    source: RequestSource,
    request: TestRequest,
) -> Result<(Uuid, mpsc::Receiver<Bytes>), Problem> {
    count_start(state, source).map_err(too_many)?;
    let test = state.service.appliance().run(request, OptionValues::default()).await?;
    let id = Uuid::now_v7();
    let (cancel, cancelled) = watch::channel(false);
    lock(&state.tests).insert(id, cancel);
    let (lines, receiver) = mpsc::channel(WAITING_LINES);
    let (service, tests) = (state.service.clone(), Arc::clone(&state.tests));
    tokio::spawn(async move {
        forward(&service, test, id, lines, cancelled).await;
        lock(&tests).remove(&id);
    });
    Ok((id, receiver))
}

/// Counts a test that a client of the TCP listener begins. Fails with the time to wait if these clients began too many
/// tests in the last minute.
pub(super) fn count_start(state: &ApiState, source: RequestSource) -> Result<(), Duration> {
    let RequestSource::Address { .. } = source else { return Ok(()) };
    #[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the limit of tests")]
    let now = Instant::now();
    lock(&state.starts).begin(now)
}

/// Cancels a test of a client; `false` if no test has this id, or if the test was cancelled before.
pub(super) fn cancel_test(state: &ApiState, id: Uuid) -> bool {
    lock(&state.tests).get(&id).is_some_and(|cancel| !cancel.send_replace(true))
}

/// The problem of a test that is refused because clients began too many tests in the last minute. A test can begin
/// again after `wait`.
pub(super) fn too_many(wait: Duration) -> Problem {
    let because = "clients began too many tests in the last minute";
    let try_ = format!("wait {} s; to test at fixed times, add a schedule", wait.as_secs() + 1);
    let failure = CommandFailure::new(ExitStatus::Busy, "too_many_tests", "the test is not started", because, try_);
    Problem::refused(StatusCode::TOO_MANY_REQUESTS, failure)
}

/// Cancels a test. The answer to the request that started the test still reports the test until it has ended.
pub(super) async fn cancel(State(state): State<ApiState>, ApiPath(id): ApiPath<Uuid>) -> impl IntoResponse {
    CancelAnswer { cancelled: cancel_test(&state, id) }.answer()
}

async fn forward(
    service: &Service,
    mut test: RunningTest,
    id: Uuid,
    lines: mpsc::Sender<Bytes>,
    mut cancelled: watch::Receiver<bool>,
) {
    service.report(id, None, RunReport::Life(RunLife::Accepted));
    // An error of `send` means that the client has gone. Its test is then cancelled.
    lines.send(line(&TestLine::Accepted(id))).await.ok();
    let mut is_cancelled = false;
    // The line that the client has not taken yet: the next event waits for it, a cancellation does not.
    let mut waiting = None;
    loop {
        tokio::select! {
            sent = lines.reserve(), if waiting.is_some() => {
                let line = waiting.take().unwrap_or_default();
                if let Ok(place) = sent {
                    place.send(line);
                }
            }
            event = test.next_event(), if waiting.is_none() => {
                let Some(event) = event else { break };
                service.report(id, None, event.clone().into());
                waiting = Some(line(&match event {
                    TestEvent::WaitingForDevice => TestLine::WaitingForDevice,
                    TestEvent::Test(event) => TestLine::Event(Box::new(event)),
                }));
            }
            () = async { drop(cancelled.wait_for(|wanted| *wanted).await) }, if !is_cancelled => {
                is_cancelled = true;
                test.cancel();
            }
        }
    }
    let problem = |error: ApplianceError| Problem::from(CommandFailure::from(error));
    let ended = test.end().await;
    service.report(id, None, RunReport::Life(service.end_of(&ended)));
    let end = match ended {
        Ok(Some(TestEnd { measured, failure, unsaved, .. })) => TestLineEnd {
            measured: measured.map(Box::new),
            failure: failure.map(problem),
            unsaved: unsaved.map(problem),
            never_began: false,
        },
        Ok(None) => TestLineEnd { never_began: true, ..TestLineEnd::default() },
        Err(error) => TestLineEnd { failure: Some(problem(error)), ..TestLineEnd::default() },
    };
    lines.send(line(&TestLine::End(Box::new(end)))).await.ok();
}

fn line(line: &TestLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Cancels the test when this value is dropped. The server drops this value with the answer, after the client has
/// disconnected or has read the whole answer.
struct TestCanceller {
    test: Uuid,
    tests: TestRegistry,
}

impl Drop for TestCanceller {
    fn drop(&mut self) {
        if let Some(cancel) = lock(&self.tests).get(&self.test) {
            cancel.send_replace(true);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
