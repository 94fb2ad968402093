//! Messages over any byte stream: the one loop around the frame decoder. It opens nothing and times nothing; the
//! shells bring the stream and the time limits.

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

/// Why no further message comes, or none could be sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is no frame, or holds no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended in the middle of a frame.
    #[error("the other side hung up in the middle of a message")]
    Torn,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Frames over `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::new(), buffer: Box::new([0; 4096]) }
    }

    /// The stream below.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The next message; `None` when the other side is done. May be dropped at any await and called again without
    /// losing a byte.
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

    /// Sends one message. Must run to its end: a dropped send leaves half a frame behind, and the link is then only
    /// good for closing.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let frame = frame::encode(message)?;
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
