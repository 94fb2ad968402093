//! Messages over any byte stream: the read and write loop around the frame decoder. The caller opens the stream and
//! sets the timeouts.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{self, Decoder, FrameError};

/// A byte stream that carries frames both ways.
pub struct Framed<S> {
    stream: S,
    decoder: Decoder,
    buffer: Box<[u8; 4096]>,
}

/// Why a message could not be received or sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The received bytes are not a valid frame or message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended in the middle of a frame.
    #[error("the other end closed the connection in the middle of a message")]
    Torn,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Wraps `stream`, to read and write frames over it.
    pub fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::new(), buffer: Box::new([0; 4096]) }
    }

    /// The underlying stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The underlying stream, for operations other than reading and writing frames.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The next message, or `None` at the end of the stream. Cancel safe: dropping the future loses no bytes.
    pub async fn receive<T: DeserializeOwned + frame::Bounded>(&mut self) -> Result<Option<T>, LinkError> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(Some(message));
            }
            let read = self.stream.read(&mut self.buffer[..]).await?;
            if read == 0 {
                return if self.decoder.is_empty() { Ok(None) } else { Err(LinkError::Torn) };
            }
            self.decoder.push(&self.buffer[..read])?;
        }
    }

    /// Sends one message. Not cancel safe: a dropped future may leave a partial frame on the stream. In that case,
    /// close the link.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let frame = frame::encode(message)?;
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Shuts down the sending half of the stream.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
