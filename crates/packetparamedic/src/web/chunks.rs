//! The bodies of answers that are sent while they are produced.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;
use hyper::body::Frame;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::store::ExportLines;
use tokio::sync::mpsc;

use super::problem::Problem;

/// The maximum number of chunks that wait for a slow client.
const WAITING_CHUNKS: usize = 2;

/// Sends the chunks of an answer's body. An error in place of a chunk aborts the transfer, so that the client notices
/// that the answer is incomplete.
pub(super) type ChunkSender = mpsc::Sender<io::Result<Bytes>>;

/// Creates the body of an answer, and the sender of its chunks. Sending fails after the client has disconnected.
pub(super) fn body() -> (ChunkSender, Body) {
    let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
    (sender, Body::new(ChunkBody { chunks }))
}

/// An answer that consists of lines of text: the header with its media type, and its body.
pub(super) type LinesAnswer = ([(HeaderName, &'static str); 1], Body);

/// Answers with the lines of an export. `kind` is the media type. An error before the first line is answered with a
/// problem document.
pub(super) async fn of_lines<E: ExportLines>(mut export: E, kind: &'static str) -> Result<LinesAnswer, Problem> {
    let first = export.next_lines().await.map_err(ApplianceError::from)?;
    let (sender, body) = body();
    tokio::spawn(send_lines(export, first, sender));
    Ok(([(CONTENT_TYPE, kind)], body))
}

async fn send_lines<E: ExportLines>(mut export: E, first: Option<Vec<String>>, sender: ChunkSender) {
    let mut next = Ok(first);
    loop {
        let chunk = match next {
            Ok(Some(lines)) => Ok(Bytes::from(lines.join("\n") + "\n")),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "an export broke off");
                Err(io::Error::other(error))
            }
        };
        let is_over = chunk.is_err();
        if sender.send(chunk).await.is_err() || is_over {
            return;
        }
        next = export.next_lines().await;
    }
}

struct ChunkBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
}

impl hyper::body::Body for ChunkBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
