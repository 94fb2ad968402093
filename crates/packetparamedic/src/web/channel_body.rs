//! The body of an HTTP answer whose parts a task sends through a channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

/// The body of an HTTP answer. The server drops the body when the client has disconnected or has read the whole answer.
/// This also drops the guard `G`, and closes the channel for the sender of the parts.
pub(super) struct ChannelBody<G> {
    parts: mpsc::Receiver<Bytes>,
    _guard: G,
}

impl<G> ChannelBody<G> {
    /// Creates a body that consists of `parts`. `guard` is dropped together with the body.
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
