//! `GET /events`: what the running tests report, as server-sent events. The memory for a client is bounded: if a
//! client does not read, its stream ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use paramedic_appliance::app::{RunUpdate, RunUpdateListener};
use tokio::sync::{mpsc, watch};

use super::ApiState;
use super::channel_body::ChannelBody;
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The maximum number of event streams at once. This is below the maximum number of connections, so that other requests
/// still get a connection.
pub(super) const MAX_STREAMS: usize = 32;
/// The maximum number of events that wait for a slow client.
const WAITING_EVENTS: usize = 64;
/// How long a stream is silent before the service sends a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// The first lines of an event stream. They make the client reconnect 3 s after the stream ends.
const BEGIN: &[u8] = b"retry: 3000\n: connected\n\n";

pub(super) async fn stream(State(state): State<ApiState>) -> Result<impl IntoResponse, Problem> {
    let place = Arc::clone(&state.event_places).try_acquire_owned().map_err(|_| no_place())?;
    let (sender, parts) = mpsc::channel(WAITING_EVENTS);
    let listener = state.service.updates().subscribe();
    tokio::spawn(forward(listener, sender, state.stopping.clone()));
    // A proxy that buffers the answer would delay the events.
    let headers = [(CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((headers, Body::new(ChannelBody::new(parts, place))))
}

/// Passes the updates about running tests on to a client, until the client goes away or does not keep up, or the
/// service stops.
async fn forward(mut listener: RunUpdateListener, client: mpsc::Sender<Bytes>, mut stopping: watch::Receiver<bool>) {
    let mut part = Bytes::from_static(BEGIN);
    while client.try_send(part).is_ok() {
        part = tokio::select! {
            update = listener.next() => match update {
                Some(update) => server_sent(&update),
                None => return,
            },
            () = tokio::time::sleep(HEARTBEAT_INTERVAL) => Bytes::from_static(b": heartbeat\n\n"),
            () = client.closed() => return,
            _ = stopping.wait_for(|wanted| *wanted) => return,
        };
    }
}

/// Formats an update as in <https://html.spec.whatwg.org/multipage/server-sent-events.html>. The compact JSON of the
/// update is one line, because JSON escapes the line breaks in strings.
fn server_sent(update: &RunUpdate) -> Bytes {
    let value = serde_json::to_value(update).unwrap_or_default();
    let name = value["event"].as_str().unwrap_or("update");
    format!("event: {name}\ndata: {value}\n\n").into()
}

fn no_place() -> Problem {
    let because = format!("{MAX_STREAMS} event streams are open already");
    let try_ = "close a page that shows running tests, then retry";
    let failure =
        CommandFailure::new(ExitStatus::Busy, "too_many_streams", "cannot open an event stream", because, try_);
    Problem::refused(StatusCode::SERVICE_UNAVAILABLE, failure)
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::app::{RunLife, RunReport, RunUpdates};
    use uuid::Uuid;

    use super::*;

    fn accepted(schedule: &str) -> RunUpdate {
        let (run, at) = (Uuid::nil(), "2026-01-01T00:00:00Z".parse().unwrap());
        RunUpdate { run, schedule: Some(schedule.to_owned()), at, report: RunReport::Life(RunLife::Accepted) }
    }

    #[test]
    fn no_text_of_an_update_adds_a_line() {
        let bytes = server_sent(&accepted("a\nevent: ended\r\ndata: \u{2028}"));
        let text = std::str::from_utf8(&bytes).unwrap();
        let lines = text.split(['\n', '\r']).collect::<Vec<_>>();
        assert_eq!((lines[0], &lines[2..]), ("event: accepted", &["", ""][..]), "{text}");
        assert!(lines[1].starts_with("data: {"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off_and_others_are_not() {
        let updates = RunUpdates::default();
        let (_stop, stopping) = watch::channel(false);
        let client = || {
            let (sender, parts) = mpsc::channel(WAITING_EVENTS);
            (tokio::spawn(forward(updates.subscribe(), sender, stopping.clone())), parts)
        };
        let ((slow, mut unread), (fast, mut read)) = (client(), client());
        assert_eq!(read.recv().await.unwrap(), BEGIN);
        for number in 0..WAITING_EVENTS + 1 {
            updates.report(accepted(&number.to_string()));
            let part = read.recv().await.unwrap();
            assert_eq!(part, server_sent(&accepted(&number.to_string())));
        }
        slow.await.unwrap();
        assert!(!fast.is_finished());
        // The stream keeps the events that fit, and then ends.
        let mut kept = 0;
        while unread.recv().await.is_some() {
            kept += 1;
        }
        assert_eq!(kept, WAITING_EVENTS);
        drop(read);
        fast.await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_service() {
        let (stop, stopping) = watch::channel(false);
        let (sender, mut parts) = mpsc::channel(WAITING_EVENTS);
        let task = tokio::spawn(forward(RunUpdates::default().subscribe(), sender, stopping));
        assert_eq!(parts.recv().await.unwrap(), BEGIN);
        stop.send_replace(true);
        task.await.unwrap();
        assert_eq!(parts.recv().await, None);
    }
}
