//! The framing of messages on the link's byte stream: a `u32` length, big-endian, then that many bytes of JSON. The
//! caller reads and writes the bytes.

use serde::{Serialize, de::DeserializeOwned};

use crate::PeerText;

/// The maximum length of a frame's body, in bytes.
pub const MAX_FRAME: usize = 16 * 1024;

/// The maximum number of bytes that a [`Decoder`] buffers. Only a caller that pushes without calling [`Decoder::next`]
/// reaches this limit: once `next` has returned `None`, less than one frame remains in the buffer.
pub const MAX_BUFFERED: usize = 4 * MAX_FRAME;

/// Length of a frame's length field, in bytes.
const HEAD: usize = 4;

/// Why a frame or the message in it is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame without a body.
    #[error("a frame has 0 bytes (valid: 1 to {MAX_FRAME})")]
    Empty,
    /// The length of a frame, in bytes, is above [`MAX_FRAME`].
    #[error("a frame has {0} bytes (valid: 1 to {MAX_FRAME})")]
    TooLong(u64),
    /// The caller pushed more than [`MAX_BUFFERED`] bytes without calling [`Decoder::next`].
    #[error("more than {MAX_BUFFERED} received bytes are waiting to be decoded")]
    BufferFull,
    /// The body is not the JSON of a message. The text comes from the JSON parser and may quote what the other end
    /// sent.
    #[error("a frame is not a valid message: {0}")]
    NotAMessage(PeerText),
    /// A list in a message is longer than the protocol allows.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The message cannot be written as JSON.
    #[error("cannot encode the message as JSON: {0}")]
    Unwritable(PeerText),
}

/// A list in a message is longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message has more than {most} {list}")]
pub struct TooMany {
    /// The name of the field that holds the list.
    pub list: &'static str,
    /// The maximum number of entries that the list may have.
    pub most: usize,
}

/// A message whose lists have a maximum length.
pub trait Bounded {
    /// Checks the length of every list in the message.
    fn check(&self) -> Result<(), TooMany>;
}

/// Encodes `message` as a frame: length and body.
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

/// Decodes messages from bytes as they arrive.
///
/// The caller pushes the bytes that it read, calls [`Decoder::next`] until it returns `None`, and then reads again.
/// After `None` less than one frame is buffered, so a push of up to 47 KiB (about [`MAX_BUFFERED`] minus one frame)
/// always fits. A caller that exceeds [`MAX_BUFFERED`] gets [`FrameError::BufferFull`].
///
/// Memory use grows with the bytes received, never with the length that a frame claims. After an error every further
/// call returns the same error.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The received bytes. Those before `taken` are already decoded.
    buffer: Vec<u8>,
    /// Offset of the next frame in `buffer`; at most the buffer's length.
    taken: usize,
    /// The first error. Every later call returns it again.
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that were read from the stream. Fails on an invalid frame length as soon as the length field is
    /// complete, without waiting for the body.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.check_not_failed()?;
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.len() + bytes.len() > MAX_BUFFERED {
            return Err(self.fail(FrameError::BufferFull));
        }
        self.buffer.extend_from_slice(bytes);
        self.body_length().map(|_| ())
    }

    /// The next complete message, or `None` if more bytes are needed.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: the caller chooses the type of each message")]
    pub fn next<T: DeserializeOwned + Bounded>(&mut self) -> Result<Option<T>, FrameError> {
        self.check_not_failed()?;
        let Some(length) = self.body_length()? else { return Ok(None) };
        let begin = self.taken + HEAD;
        let Some(body) = self.buffer.get(begin..begin + length) else { return Ok(None) };
        let parsed = serde_json::from_slice::<T>(body);
        let message = parsed.map_err(|why| self.fail(FrameError::NotAMessage(PeerText::new(&why.to_string()))))?;
        message.check().map_err(|why| self.fail(why.into()))?;
        self.taken = begin + length;
        Ok(Some(message))
    }

    /// Whether the stream may end here: only complete messages were received, and all were decoded.
    pub fn is_empty(&self) -> bool {
        self.failed.is_none() && self.taken == self.buffer.len()
    }

    /// The body length of the frame at `taken`, if its length field is complete.
    fn body_length(&mut self) -> Result<Option<usize>, FrameError> {
        let Some(head) = self.buffer[self.taken..].first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head);
        match usize::try_from(length) {
            Ok(0) => Err(self.fail(FrameError::Empty)),
            Ok(fits) if fits <= MAX_FRAME => Ok(Some(fits)),
            _ => Err(self.fail(FrameError::TooLong(length.into()))),
        }
    }

    fn check_not_failed(&self) -> Result<(), FrameError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Stores the error and frees the buffer.
    fn fail(&mut self, error: FrameError) -> FrameError {
        *self = Self { buffer: Vec::new(), taken: 0, failed: Some(error.clone()) };
        error
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measurement::Sample;
    use crate::message::{MAX_SAMPLES, ToAppliance, ToReflector};
    use crate::test_spec::Direction;

    fn some_message() -> impl Strategy<Value = ToReflector> {
        prop_oneof![
            Just(ToReflector::Ping),
            any::<u8>().prop_map(|phase| ToReflector::Start { phase }),
            any::<u8>().prop_map(|phase| ToReflector::StopPhase { phase }),
            "\\PC{0,200}".prop_map(|reason| ToReflector::Close { reason: reason.into() }),
            (proptest::collection::vec(any::<u16>(), 0..16), "\\PC{0,20}").prop_map(|(versions, software)| {
                ToReflector::Hello { versions, software: software.into(), features: vec![] }
            }),
        ]
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_messages(
            messages in proptest::collection::vec(some_message(), 0..20),
            cuts in proptest::collection::vec(1usize..300, 1..20),
        ) {
            let stream = messages.iter().flat_map(|m| encode(m).unwrap()).collect::<Vec<_>>();
            let (mut decoder, mut read, mut rest) = (Decoder::new(), Vec::new(), stream.as_slice());
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                decoder.push(now).unwrap();
                while let Some(message) = decoder.next::<ToReflector>().unwrap() {
                    read.push(message);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn garbage_never_panics(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut decoder = Decoder::new();
            for chunk in chunks {
                let _ = decoder.push(&chunk);
                while let Ok(Some(_)) = decoder.next::<ToReflector>() {}
            }
        }

        #[test]
        fn a_garbage_body_never_panics(body in "[\\[\\]{}\",:0-9a-z]{1,200}") {
            let mut decoder = Decoder::new();
            decoder.push(&raw(body.as_bytes())).unwrap();
            let _ = decoder.next::<ToReflector>();
        }
    }

    fn raw(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    fn fails_with(body: &str) -> FrameError {
        let mut decoder = Decoder::new();
        decoder.push(&raw(body.as_bytes())).unwrap();
        decoder.next::<ToReflector>().unwrap_err()
    }

    #[test]
    fn an_invalid_length_is_refused_before_the_body_arrives() {
        assert_eq!(Decoder::new().push(&[0, 0, 0, 0]), Err(FrameError::Empty));
        assert_eq!(Decoder::new().push(&[0, 0, 0x40, 1]), Err(FrameError::TooLong(16_385)));
        assert_eq!(Decoder::new().push(&[255; 4]), Err(FrameError::TooLong(u32::MAX.into())));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut decoder = Decoder::new();
        decoder.push(&[0, 0, 0x40, 0, b'{']).unwrap();
        assert_eq!(decoder.next::<ToReflector>(), Ok(None));
        assert!(decoder.buffer.capacity() < 64);
        assert!(!decoder.is_empty());
    }

    #[test]
    fn pushing_without_decoding_fails_at_the_limit() {
        let mut decoder = Decoder::new();
        let ping = encode(&ToReflector::Ping).unwrap();
        let error = (0..).find_map(|_| decoder.push(&ping).err());
        assert_eq!(error, Some(FrameError::BufferFull));
        assert_eq!(decoder.buffer.capacity(), 0);
    }

    #[test]
    fn decoded_messages_free_the_buffer() {
        let mut decoder = Decoder::new();
        let close = encode(&ToReflector::Close { reason: "x".repeat(120).into() }).unwrap();
        for _ in 0..10_000 {
            decoder.push(&close).unwrap();
            assert!(decoder.next::<ToReflector>().unwrap().is_some());
        }
        assert!(decoder.is_empty() && decoder.buffer.capacity() < MAX_BUFFERED);
    }

    #[test]
    fn after_an_error_every_call_returns_the_same_error() {
        let mut decoder = Decoder::new();
        decoder.push(&raw(b"{}")).unwrap();
        let error = decoder.next::<ToReflector>().unwrap_err();
        assert!(matches!(error, FrameError::NotAMessage(_)));
        assert_eq!(decoder.push(&encode(&ToReflector::Ping).unwrap()), Err(error.clone()));
        assert_eq!(decoder.next::<ToReflector>(), Err(error));
        assert!(!decoder.is_empty());
    }

    #[test]
    fn a_message_before_an_invalid_length_is_still_decoded() {
        let mut decoder = Decoder::new();
        decoder.push(&[encode(&ToReflector::Ping).unwrap(), vec![0; 4]].concat()).unwrap();
        assert_eq!(decoder.next(), Ok(Some(ToReflector::Ping)));
        assert_eq!(decoder.next::<ToReflector>(), Err(FrameError::Empty));
    }

    #[test]
    fn a_deeply_nested_body_is_an_error_and_not_a_stack_overflow() {
        let deep = format!("{{\"type\":\"ping\",\"x\":{}", "[".repeat(MAX_FRAME - 100));
        assert!(matches!(fails_with(&deep), FrameError::NotAMessage(_)));
        assert!(matches!(fails_with(&"[".repeat(MAX_FRAME)), FrameError::NotAMessage(_)));
    }

    #[test]
    fn one_frame_holds_one_message() {
        assert!(matches!(fails_with(r#"{"type":"ping"}{"type":"ping"}"#), FrameError::NotAMessage(_)));
        assert!(matches!(fails_with(r#"{"type":"ping"} x"#), FrameError::NotAMessage(_)));
    }

    #[test]
    fn an_error_that_quotes_the_other_end_is_sanitised() {
        let FrameError::NotAMessage(why) = ({
            let mut decoder = Decoder::new();
            let body = "{\"type\":\"samples\",\"phase\":0,\"samples\":[],\"direction\":\"\\u001b[2J\"}";
            decoder.push(&raw(body.as_bytes())).unwrap();
            decoder.next::<ToAppliance>().unwrap_err()
        }) else {
            panic!("not refused as a message")
        };
        assert!(why.as_str().contains("[2J") && !why.as_str().contains('\u{1b}'));
    }

    #[test]
    fn lists_are_bounded() {
        let versions = vec![1; 17];
        let hello = encode(&ToReflector::Hello { versions, software: PeerText::default(), features: vec![] }).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&hello).unwrap();
        assert_eq!(decoder.next::<ToReflector>(), Err(FrameError::TooMany(TooMany { list: "versions", most: 16 })));
    }

    #[test]
    fn the_longest_samples_fit_into_a_frame() {
        let longest = Sample { at_us: u64::MAX, bytes: u64::MAX };
        let samples =
            ToAppliance::Samples { phase: 255, direction: Direction::Download, samples: vec![longest; MAX_SAMPLES] };
        assert!(encode(&samples).is_ok());
    }

    #[test]
    fn a_message_above_the_limit_is_not_encoded() {
        let long = vec!["x".repeat(1000); 17];
        assert!(matches!(encode(&long), Err(FrameError::TooLong(_))));
    }
}
