//! The body of an answer whose parts come from a task.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

/// The body, with a guard `G`. Both are dropped when the client has gone or has read the end; the sender of the parts
/// can wait for that.
pub(super) struct ChannelBody<G> {
    parts: mpsc::Receiver<Bytes>,
    _guard: G,
}

impl<G> ChannelBody<G> {
    /// The body of these parts.
    pub(super) fn new(parts: mpsc::Receiver<Bytes>, guard: G) -> Self {
        Self { parts, _guard: guard }
    }
}

impl<G: Unpin> hyper::body::Body for ChannelBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.parts.poll_recv(context).map(|part| part.map(|bytes| Ok(Frame::data(bytes))))
    }
}
