//! Frames: how messages follow each other on the link's byte stream. A `u32` length, big-endian, then that many bytes
//! of JSON. Bytes come in and go out by hand; no socket is read here.

use serde::{Serialize, de::DeserializeOwned};

use crate::PeerText;

/// The longest body of a frame, in bytes.
pub const MAX_FRAME: usize = 16 * 1024;

/// The most bytes a [`Decoder`] holds. After [`Decoder::next`] was called until it gave nothing, less than one frame
/// is left, so that this much is only reached by pushing without taking.
pub const MAX_BUFFERED: usize = 4 * MAX_FRAME;

/// Bytes of the length before a body.
const HEAD: usize = 4;

/// Why there is no frame, or no message in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame without a body.
    #[error("a frame of 0 bytes")]
    Empty,
    /// A frame longer than [`MAX_FRAME`], or so it claims; in bytes.
    #[error("a frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    TooLong(u64),
    /// More than [`MAX_BUFFERED`] bytes were pushed and no message taken.
    #[error("more than {MAX_BUFFERED} bytes of frames came in and were not taken")]
    NotTaken,
    /// The body is not the JSON of a message; the parser's words, which may quote the other side.
    #[error("a frame that holds no message: {0}")]
    NotAMessage(PeerText),
    /// A list in a message is longer than the protocol allows.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The message can't be written as JSON.
    #[error("a message that can't be written: {0}")]
    Unwritable(PeerText),
}

/// A list in a message is longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message with more than {most} {list}")]
pub struct TooMany {
    /// The field's name.
    pub list: &'static str,
    /// The most entries it may have.
    pub most: usize,
}

/// What a frame may hold: a message that knows how long its lists may be.
pub trait Bounded {
    /// Checks every list's length.
    fn check(&self) -> Result<(), TooMany>;
}

/// The frame of `message`, head and body.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message).map_err(|e| FrameError::Unwritable(PeerText::new(&e.to_string())))?;
    let body = frame.len() - HEAD;
    match u32::try_from(body) {
        Ok(length) if body <= MAX_FRAME => frame[..HEAD].copy_from_slice(&length.to_be_bytes()),
        _ => return Err(FrameError::TooLong(body as u64)),
    }
    Ok(frame)
}

/// Takes bytes as they arrive and gives messages.
///
/// Push what was read, then call [`Decoder::next`] until it gives `None`, then read on. Memory follows the bytes that
/// really came, never the length that a frame claims, and stays below [`MAX_BUFFERED`] whatever the other side sends:
/// who pushes on without taking gets [`FrameError::NotTaken`]. What is left when `None` came is less than one frame, so
/// a push of up to 47 KiB always fits then. After an error nothing more is decoded: every further call gives that
/// error again.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What came in; the bytes before `taken` are done with.
    buffer: Vec<u8>,
    /// Always at the beginning of a frame, at most the buffer's length.
    taken: usize,
    /// What ended it.
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what was read from the stream. A length that is not allowed is an error as soon as it is seen.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.still_right()?;
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.len() + bytes.len() > MAX_BUFFERED {
            return Err(self.fail(FrameError::NotTaken));
        }
        self.buffer.extend_from_slice(bytes);
        self.body_length().map(|_| ())
    }

    /// The next whole message, or `None` where more bytes are needed.
    #[allow(clippy::should_implement_trait, reason = "no iterator: what is next depends on the type asked for")]
    pub fn next<T: DeserializeOwned + Bounded>(&mut self) -> Result<Option<T>, FrameError> {
        self.still_right()?;
        let Some(length) = self.body_length()? else { return Ok(None) };
        let begin = self.taken + HEAD;
        let Some(body) = self.buffer.get(begin..begin + length) else { return Ok(None) };
        let parsed = serde_json::from_slice::<T>(body);
        let message = parsed.map_err(|why| self.fail(FrameError::NotAMessage(PeerText::new(&why.to_string()))))?;
        message.check().map_err(|why| self.fail(why.into()))?;
        self.taken = begin + length;
        Ok(Some(message))
    }

    /// Whether the stream may end here: everything that came was whole messages, and all were taken.
    pub fn is_empty(&self) -> bool {
        self.failed.is_none() && self.taken == self.buffer.len()
    }

    /// The length of the frame that begins at `taken`, if its head is there.
    fn body_length(&mut self) -> Result<Option<usize>, FrameError> {
        let Some(head) = self.buffer[self.taken..].first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head);
        match usize::try_from(length) {
            Ok(0) => Err(self.fail(FrameError::Empty)),
            Ok(fits) if fits <= MAX_FRAME => Ok(Some(fits)),
            _ => Err(self.fail(FrameError::TooLong(length.into()))),
        }
    }

    fn still_right(&self) -> Result<(), FrameError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Remembers the error and gives the memory back.
    fn fail(&mut self, error: FrameError) -> FrameError {
        *self = Self { buffer: Vec::new(), taken: 0, failed: Some(error.clone()) };
        error
    }
}
