//! The body of an answer that is sent while it is made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// The chunks that wait for a slow client.
const WAITING_CHUNKS: usize = 2;

/// Sends the chunks of a body. An error breaks the transfer off, so that the client does not take a part for the whole.
pub(super) type ChunkSender = mpsc::Sender<io::Result<Bytes>>;

/// A body and the sender of its chunks. If the sender fails, the client has gone.
pub(super) fn body() -> (ChunkSender, Body) {
    let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
    (sender, Body::new(ChunkBody { chunks }))
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
