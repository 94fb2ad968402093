//! The keys, and the tags (truncated HMACs), that prove to which session a data connection or datagram belongs. Both
//! ends derive the keys from the TLS exporter of their link and the session id, so no secret is sent.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::test_spec::Direction;

/// The id of one granted session: a UUIDv7, unique at its reflector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Length of a session id, in bytes.
    pub const LEN: usize = 16;

    /// Wraps the UUID that the reflector generated for a session.
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// Decodes the id from the 16 bytes of the wire format.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Encodes the id as the 16 bytes of the wire format.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        self.0.as_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The label of the TLS exporter value (RFC 8446, section 7.5) from which session keys are derived. The exporter
/// context is the session id.
pub const SESSION_EXPORTER_LABEL: &[u8] = b"EXPORTER-pp-link-session";

/// Length of a tag, in bytes. A tag consists of the first bytes of an HMAC-SHA256.
pub const TAG_LEN: usize = 16;

/// The keys that authenticate a session's data. Both ends derive the same keys.
pub struct SessionKeys {
    session: SessionId,
    preamble: hmac::Key,
    probe: [hmac::Key; 2],
    bulk: [[u8; TAG_LEN]; 2],
    engine_secret: Zeroizing<[u8; TAG_LEN]>,
}

impl SessionKeys {
    /// Length of the exporter value, in bytes.
    pub const SECRET_LEN: usize = 32;

    /// Derives the keys of `session`. `secret` is the link's exporter value with [`SESSION_EXPORTER_LABEL`] and the
    /// session id as context.
    pub fn derive(session: SessionId, secret: Zeroizing<[u8; Self::SECRET_LEN]>) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref());
        let derive = |label: &str| hmac::sign(&root, label.as_bytes());
        let key = |label: &str| hmac::Key::new(hmac::HMAC_SHA256, derive(label).as_ref());
        let tag = |label: &str| truncated(&derive(label));
        Self {
            session,
            preamble: key("pp preamble"),
            probe: [key("pp probe download"), key("pp probe upload")],
            bulk: [tag("pp bulk download"), tag("pp bulk upload")],
            engine_secret: Zeroizing::new(tag("pp login")),
        }
    }

    /// A secret of the session for an engine that authenticates its data connections itself, such as iperf3 with its
    /// login.
    pub fn engine_secret(&self) -> &[u8; TAG_LEN] {
        &self.engine_secret
    }

    /// The session that these keys belong to.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Computes the tag of a datagram that travels in `direction`. All datagrams carry such a tag, except bulk
    /// datagrams, which carry [`Self::bulk_tag`] instead.
    pub fn seal_datagram(&self, direction: Direction, datagram: &[u8]) -> [u8; TAG_LEN] {
        truncated(&hmac::sign(&self.probe[direction as usize], datagram))
    }

    /// Whether `tag` is the tag of `datagram` in `direction`. Compares in constant time, so that the response time
    /// reveals nothing about the correct tag.
    pub fn is_datagram(&self, direction: Direction, datagram: &[u8], tag: &[u8; TAG_LEN]) -> bool {
        equal(&self.seal_datagram(direction, datagram), tag)
    }

    /// The tag of all bulk datagrams of the session in `direction`. Bulk datagrams only load the path and are never
    /// answered, so they share one secret tag instead of an HMAC each.
    pub fn bulk_tag(&self, direction: Direction) -> &[u8; TAG_LEN] {
        &self.bulk[direction as usize]
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKeys(of {})", self.session)
    }
}

/// The first bytes of every data connection. They name the session, the phase and the stream, and prove that the
/// appliance holds the session's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The session of the connection.
    pub session: SessionId,
    /// The index of the phase in the session, from 0. [`Preamble::ECHO`] marks a connection for latency probes, which
    /// is used if UDP is blocked.
    pub phase: u8,
    /// The index of the stream in the phase, from 0. In a bidirectional phase the download streams come first.
    pub stream: u16,
    /// Random bytes, so that no two preambles are equal.
    pub nonce: [u8; Preamble::NONCE_LEN],
}

impl Preamble {
    /// Length of an encoded preamble, in bytes.
    pub const LEN: usize = 48;
    /// Length of [`Preamble::nonce`], in bytes.
    pub const NONCE_LEN: usize = 12;
    /// The phase number of a connection that carries latency probes.
    pub const ECHO: u8 = 255;
    /// Version of the preamble's layout.
    const VERSION: u8 = 1;
    /// Offset of the tag in the encoded preamble.
    const TAG_AT: usize = Self::LEN - TAG_LEN;

    /// Encodes the preamble: version, phase, stream (big-endian), session, nonce, truncated HMAC-SHA256.
    pub fn seal(&self, keys: &SessionKeys) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = Self::VERSION;
        bytes[1] = self.phase;
        bytes[2..4].copy_from_slice(&self.stream.to_be_bytes());
        bytes[4..20].copy_from_slice(self.session.as_bytes());
        bytes[20..32].copy_from_slice(&self.nonce);
        let tag = truncated(&hmac::sign(&keys.preamble, &bytes[..Self::TAG_AT]));
        bytes[Self::TAG_AT..].copy_from_slice(&tag);
        bytes
    }

    /// The session id in a preamble that is not verified yet. Use it only to find the keys for [`Preamble::open`].
    /// `None` if the preamble has an unknown version.
    pub fn claimed_session(bytes: &[u8; Self::LEN]) -> Option<SessionId> {
        let session = bytes[4..20].try_into().ok()?;
        (bytes[0] == Self::VERSION).then(|| SessionId::from_bytes(session))
    }

    /// Verifies and decodes the preamble. `None` if it was not sealed with these keys.
    pub fn open(bytes: &[u8; Self::LEN], keys: &SessionKeys) -> Option<Self> {
        let session = Self::claimed_session(bytes)?;
        let tag = truncated(&hmac::sign(&keys.preamble, &bytes[..Self::TAG_AT]));
        if session != keys.session || !equal(&tag, bytes[Self::TAG_AT..].try_into().ok()?) {
            return None;
        }
        Some(Self {
            session,
            phase: bytes[1],
            stream: u16::from_be_bytes([bytes[2], bytes[3]]),
            nonce: bytes[20..32].try_into().ok()?,
        })
    }
}

/// Truncates an HMAC to its first [`TAG_LEN`] bytes.
fn truncated(tag: &hmac::Tag) -> [u8; TAG_LEN] {
    let mut short = [0; TAG_LEN];
    short.copy_from_slice(&tag.as_ref()[..TAG_LEN]);
    short
}

/// Compares two tags in constant time.
fn equal(a: &[u8; TAG_LEN], b: &[u8; TAG_LEN]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

/// Encodes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// Decodes exactly `N * 2` hexadecimal digits. `None` for any other text.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    unhex_into(text, &mut bytes).then_some(bytes)
}

/// Decodes the hexadecimal digits of `text` into `bytes`. Returns `false` if their number does not fit or a character
/// is not a digit. Suits secrets, because no other buffer gets a copy of the bytes.
pub(crate) fn unhex_into(text: &str, bytes: &mut [u8]) -> bool {
    let fits = text.len() == 2 * bytes.len();
    fits && data_encoding::HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(seed: u8) -> SessionKeys {
        SessionKeys::derive(SessionId::from_bytes([7; 16]), Zeroizing::new([seed; 32]))
    }

    fn preamble() -> Preamble {
        Preamble { session: SessionId::from_bytes([7; 16]), phase: 2, stream: 63, nonce: [9; 12] }
    }

    #[test]
    fn a_preamble_opens_only_with_the_keys_that_sealed_it() {
        let bytes = preamble().seal(&keys(1));
        assert_eq!(Preamble::open(&bytes, &keys(1)), Some(preamble()));
        assert_eq!(Preamble::open(&bytes, &keys(2)), None);
    }

    proptest! {
        #[test]
        fn a_preamble_with_one_flipped_bit_is_refused(at in 0usize..Preamble::LEN * 8) {
            let mut bytes = preamble().seal(&keys(1));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Preamble::open(&bytes, &keys(1)), None);
        }
    }

    #[test]
    fn the_derivation_of_tags_is_stable() {
        let session = SessionId::new("01943d3c-5e00-7a10-8000-0123456789ab".parse().unwrap());
        let keys = SessionKeys::derive(session, Zeroizing::new(std::array::from_fn(|at| at as u8)));
        let preamble = Preamble { session, phase: 2, stream: 63, nonce: std::array::from_fn(|at| 100 + at as u8) };
        let sealed = "0102003f01943d3c5e007a1080000123456789ab6465666768696a6b6c6d6e6fe74497b3c89564329c6c2caf7122c473";
        assert_eq!(hex(&preamble.seal(&keys)), sealed);
        assert_eq!(hex(&keys.seal_datagram(Direction::Upload, b"probe")), "1cdfc0a3be19ef72e0816e6c4e3fe14d");
        assert_eq!(hex(keys.bulk_tag(Direction::Download)), "7e44752b0335b88ce73d65bfa0ad6a08");
        assert_eq!(hex(keys.engine_secret()), "43dec4446ccc27c4e93e56d5354f6b11");
    }

    #[test]
    fn unhex_accepts_only_the_exact_number_of_digits() {
        assert_eq!(unhex::<2>("00fF"), Some([0, 255]));
        for wrong in ["", "0", "00f", "00ff0", "00ff00", "00fg", "00é"] {
            assert_eq!(unhex::<2>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_tag_is_valid_for_one_direction_and_one_datagram() {
        let keys = keys(1);
        let tag = keys.seal_datagram(Direction::Upload, b"probe");
        assert!(keys.is_datagram(Direction::Upload, b"probe", &tag));
        assert!(!keys.is_datagram(Direction::Download, b"probe", &tag));
        assert!(!keys.is_datagram(Direction::Upload, b"probf", &tag));
        assert_ne!(keys.bulk_tag(Direction::Upload), keys.bulk_tag(Direction::Download));
    }
}
