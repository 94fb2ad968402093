//! The routes of tests that a client runs: the answer has a JSON document a line, as the test goes on. A client that goes
//! away cancels its test.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use hyper::body::Frame;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{RunningTest, TestEnd, TestEvent};
use paramedic_appliance::providers::options::OptionValues;
use paramedic_appliance::request::TestRequest;
use paramedic_report::document::{Event, ResultDocument};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::ApiState;
use super::extract::{ApiBody, ApiPath};
use super::problem::Problem;
use crate::cli::failure::CommandFailure;

/// The lines that wait for a slow client.
const WAITING_LINES: usize = 64;

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TestLine {
    /// The test was accepted under this id: the first line.
    Accepted(Uuid),
    /// Another test runs on this device; this one waits for it.
    WaitingForDevice,
    /// An event of the test.
    Event(Box<Event>),
    /// The end: the last line.
    End(Box<TestLineEnd>),
}

/// How a test ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestLineEnd {
    /// The measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) measured: Option<Box<ResultDocument>>,
    /// Why it is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Problem>,
    /// Why it is not saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsaved: Option<Problem>,
    /// Whether it was cancelled before it began.
    #[serde(default)]
    pub(crate) never_began: bool,
}

/// The tests with their cancellation.
type TestRegistry = Arc<Mutex<HashMap<Uuid, watch::Sender<bool>>>>;

/// Runs a test.
pub(super) async fn run(
    State(state): State<ApiState>,
    ApiBody(request): ApiBody<TestRequest>,
) -> Result<impl IntoResponse, Problem> {
    if request.discards_result {
        let reason = "the service keeps its results: use --local with --no-save".to_owned();
        return Err(ApplianceError::Unsupported(reason).into());
    }
    let test = state.service.appliance().run(request, OptionValues::default()).await?;
    let id = Uuid::now_v7();
    let (cancel, cancelled) = watch::channel(false);
    lock(&state.tests).insert(id, cancel);
    let (lines, receiver) = mpsc::channel(WAITING_LINES);
    let tests = Arc::clone(&state.tests);
    tokio::spawn(async move {
        forward(test, id, lines, cancelled).await;
        lock(&tests).remove(&id);
    });
    let body = LineBody { lines: receiver, test: id, tests: Arc::clone(&state.tests) };
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::new(body)))
}

/// Cancels a test; its answer goes on to its end.
pub(super) async fn cancel(State(state): State<ApiState>, ApiPath(id): ApiPath<Uuid>) -> Json<Value> {
    let is_there = lock(&state.tests).get(&id).is_some_and(|cancel| !cancel.send_replace(true));
    Json(json!({ "cancelled": is_there }))
}

async fn forward(mut test: RunningTest, id: Uuid, lines: mpsc::Sender<TestLine>, mut cancelled: watch::Receiver<bool>) {
    // An error of `send` means that the client has gone; its test is cancelled then.
    lines.send(TestLine::Accepted(id)).await.ok();
    let mut is_cancelled = false;
    loop {
        tokio::select! {
            event = test.next_event() => {
                let line = match event {
                    Some(TestEvent::WaitingForDevice) => TestLine::WaitingForDevice,
                    Some(TestEvent::Test(event)) => TestLine::Event(Box::new(event)),
                    None => break,
                };
                lines.send(line).await.ok();
            }
            () = async { drop(cancelled.wait_for(|wanted| *wanted).await) }, if !is_cancelled => {
                is_cancelled = true;
                test.cancel();
            }
        }
    }
    let problem = |error: ApplianceError| Problem::from(CommandFailure::from(error));
    let end = match test.end().await {
        Ok(Some(TestEnd { measured, failure, unsaved, .. })) => TestLineEnd {
            measured: measured.map(Box::new),
            failure: failure.map(problem),
            unsaved: unsaved.map(problem),
            never_began: false,
        },
        Ok(None) => TestLineEnd { never_began: true, ..TestLineEnd::default() },
        Err(error) => TestLineEnd { failure: Some(problem(error)), ..TestLineEnd::default() },
    };
    lines.send(TestLine::End(Box::new(end))).await.ok();
}

/// The body of the answer. Dropping it cancels the test: the client has gone, or has read the end.
struct LineBody {
    lines: mpsc::Receiver<TestLine>,
    test: Uuid,
    tests: TestRegistry,
}

impl hyper::body::Body for LineBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.lines.poll_recv(context).map(|line| {
            let mut text = serde_json::to_vec(&line?).unwrap_or_default();
            text.push(b'\n');
            Some(Ok(Frame::data(text.into())))
        })
    }
}

impl Drop for LineBody {
    fn drop(&mut self) {
        if let Some(cancel) = lock(&self.tests).get(&self.test) {
            cancel.send_replace(true);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
