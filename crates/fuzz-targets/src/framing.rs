//! Fuzz targets for the bytes of a link: frames, the messages in them, and the preamble of a data connection.

use std::fmt::Debug;
use std::sync::LazyLock;

use paramedic_link::SessionId;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::engine_terms::EngineTerms;
use paramedic_link::frame::{Bounded, Decoder, FrameError, MAX_FRAME, encode};
use paramedic_link::message::{ToAppliance, ToReflector};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

/// The maximum length of a text in a message, in bytes.
const MAX_TEXT: usize = EngineTerms::MAX_TEXT;

/// Fuzz target: decodes the input as the byte stream of a link, once as the reflector and once as the appliance.
pub fn frame(input: &[u8]) {
    stream::<ToReflector>(input);
    stream::<ToAppliance>(input);
}

/// Asserts that decoding returns the same messages and the same error for every way to cut the stream into pieces, and
/// that each message can be encoded and decoded again.
fn stream<T: DeserializeOwned + Serialize + Bounded + PartialEq + Debug>(input: &[u8]) {
    let (messages, error) = read::<T>(input.chunks(4096));
    // Cut the input into pieces of 1 to 255 bytes, whose lengths are the input's own bytes.
    let mut rest = input;
    let pieces = input.iter().map_while(|length| {
        let (piece, later) = rest.split_at_checked(usize::from(*length).max(1)).unwrap_or((rest, &[]));
        rest = later;
        (!piece.is_empty()).then_some(piece)
    });
    let in_pieces = read::<T>(pieces);
    assert_eq!(in_pieces, (messages, error), "what is read depends on how the stream is cut");
    for message in &in_pieces.0 {
        survives_its_frame(message);
    }
}

/// Decodes a byte stream that arrives in pieces: takes all complete messages after each piece. Stops at the first
/// error; the error is `None` if every piece was decoded.
fn read<'a, T: DeserializeOwned + Bounded>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<T>, Option<FrameError>) {
    let (mut decoder, mut messages) = (Decoder::new(), Vec::new());
    for piece in pieces {
        if let Err(error) = decoder.push(piece) {
            assert_eq!(decoder.next::<T>().err().as_ref(), Some(&error), "an error is not forgotten");
            return (messages, Some(error));
        }
        loop {
            match decoder.next::<T>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.push(b"x").err().as_ref(), Some(&error), "an error is not forgotten");
                    return (messages, Some(error));
                }
            }
        }
    }
    (messages, None)
}

fn survives_its_frame<T: DeserializeOwned + Serialize + Bounded + PartialEq + Debug>(message: &T) {
    assert_eq!(message.check(), Ok(()), "a decoded message keeps its bounds");
    let frame = match encode(message) {
        Ok(frame) => frame,
        // Fields that were absent are written with their default values, so the longest body may become too long.
        Err(FrameError::TooLong(length)) => {
            assert!(length <= 2 * MAX_FRAME as u64, "{length} bytes of a message that fitted into a frame");
            return;
        }
        Err(other) => panic!("a message that was read cannot be written: {other}"),
    };
    let (messages, error) = read::<T>(frame.chunks(4096));
    assert_eq!((messages.as_slice(), error), (std::slice::from_ref(message), None));
}

/// Fuzz target: decodes the input as the body of a frame, once as the reflector and once as the appliance.
pub fn message(input: &[u8]) {
    if let Some(message) = body::<ToAppliance>(input) {
        texts_are_harmless(&message);
    }
    match body::<ToReflector>(input) {
        // Reading a test specification does not clean its texts, because the specification is checked as a whole.
        Some(ToReflector::Request { spec, .. }) if spec.check().is_err() => {}
        Some(message) => texts_are_harmless(&message),
        None => {}
    }
}

/// Decodes the input as a JSON message; `None` if it is not one. Asserts that the message can be encoded and decoded
/// again without a change.
fn body<T: DeserializeOwned + Serialize + PartialEq + Debug>(input: &[u8]) -> Option<T> {
    let message = serde_json::from_slice::<T>(input).ok()?;
    let written = serde_json::to_vec(&message).unwrap_or_else(|why| panic!("{message:?} cannot be written: {why}"));
    let again = serde_json::from_slice::<T>(&written);
    let again = again.unwrap_or_else(|why| panic!("{} cannot be read: {why}", String::from_utf8_lossy(&written)));
    assert_eq!(again, message);
    Some(message)
}

/// Asserts that each text in a message has at most `MAX_TEXT` bytes and no control character.
fn texts_are_harmless(message: &(impl Serialize + Debug)) {
    fn check(value: &Value) {
        match value {
            Value::String(text) => {
                assert!(!text.chars().any(char::is_control), "a control character in {text:?}");
                assert!(text.len() <= MAX_TEXT, "{} bytes of text", text.len());
            }
            Value::Array(values) => values.iter().for_each(check),
            Value::Object(fields) => fields.values().for_each(check),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    check(&serde_json::to_value(message).unwrap_or_else(|why| panic!("{message:?} is no JSON: {why}")));
}

/// The session keys of the examples in docs/protocol.md.
pub(crate) static DOCUMENTED: LazyLock<SessionKeys> = LazyLock::new(|| {
    let session = [0x01, 0x94, 0x3d, 0x3c, 0x5e, 0, 0x7a, 0x10, 0x80, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab];
    SessionKeys::derive(SessionId::from_bytes(session), Zeroizing::new(std::array::from_fn(|at| at as u8)))
});

/// Session keys of the same session ID as [`DOCUMENTED`], derived from a different secret.
pub(crate) static OTHERS: LazyLock<SessionKeys> =
    LazyLock::new(|| SessionKeys::derive(DOCUMENTED.session(), Zeroizing::new([0xff; 32])));

/// Fuzz target: opens the input as the preamble of a data connection. Then flips one bit of a valid preamble and
/// asserts that it no longer opens. Bytes 48 and 49 of the input select the bit.
pub fn preamble(input: &[u8]) {
    let (keys, others) = (&*DOCUMENTED, &*OTHERS);
    let bytes = padded::<{ Preamble::LEN }>(input);
    if let Some(opened) = Preamble::open(&bytes, keys) {
        assert_eq!(Preamble::claimed_session(&bytes), Some(keys.session()));
        assert_eq!(opened.seal(keys), bytes, "one preamble has one form");
    }
    assert_eq!(Preamble::open(&bytes, others), None, "no session has those keys");

    let preamble = Preamble {
        session: keys.session(),
        phase: bytes[1],
        stream: u16::from_be_bytes([bytes[2], bytes[3]]),
        nonce: std::array::from_fn(|at| bytes[20 + at]),
    };
    let sealed = preamble.seal(keys);
    assert_eq!(Preamble::open(&sealed, keys), Some(preamble));
    assert_eq!(Preamble::open(&sealed, others), None);
    assert_eq!(Preamble::open(&with_flipped_bit(sealed, &input[input.len().min(Preamble::LEN)..]), keys), None);
}

/// Returns the first `N` bytes of the input, padded with zeros if the input is shorter.
pub(crate) fn padded<const N: usize>(input: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| input.get(at).copied().unwrap_or(0))
}

/// Returns a copy of `bytes` with one bit flipped. The first two bytes of `choice` select the bit.
pub(crate) fn with_flipped_bit<const N: usize>(mut bytes: [u8; N], choice: &[u8]) -> [u8; N] {
    let bit = usize::from(u16::from_be_bytes(padded(choice))) % (8 * N);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}
