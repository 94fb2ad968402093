//! Keys and tags by which data proves which session it belongs to. They derive from the control link's TLS exporter
//! and the session id, so nothing secret is ever sent.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::test_spec::Direction;

/// The id of one granted session: a UUIDv7, unique at its reflector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// The session with this id.
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// The id from the wire.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id for the wire.
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

/// The label of the TLS exporter (RFC 8446, section 7.5) that session keys grow from; its context is the session id.
pub const SESSION_EXPORTER_LABEL: &[u8] = b"EXPORTER-pp-link-session";

/// Bytes of a truncated tag on the wire.
pub const TAG_LEN: usize = 16;

/// Everything a session's data is proven with. Both ends derive the same.
pub struct SessionKeys {
    session: SessionId,
    preamble: hmac::Key,
    probe: [hmac::Key; 2],
    bulk: [[u8; TAG_LEN]; 2],
    login: Login,
}

/// A name and a password that are good for one session alone, for engines whose data plane asks for such. Derived, and
/// never sent by us; how the data plane sends them is its business.
#[derive(Clone)]
pub struct Login {
    /// The name: lower-case letters and digits.
    pub user: String,
    /// 128 bits, in hexadecimal digits.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login(of {})", self.user)
    }
}

/// The public half of the key that a session's [`Login`] is encrypted with: an X.509 `SubjectPublicKeyInfo` in DER,
/// which whoever uses it has to judge. As text: base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LoginKey(Vec<u8>);

/// Why text is no login key.
#[derive(Debug, thiserror::Error)]
#[error("a login key is base64 of 1 to 768 bytes")]
pub struct NotALoginKey;

impl LoginKey {
    /// The most bytes: room for RSA with 4,096 bits.
    pub const MAX_LEN: usize = 768;

    /// The key with this DER.
    pub fn from_der(der: &[u8]) -> Result<Self, NotALoginKey> {
        if der.is_empty() || der.len() > Self::MAX_LEN { Err(NotALoginKey) } else { Ok(Self(der.to_owned())) }
    }

    /// Its DER.
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

/// How a login is padded before it is encrypted. Versions of the programs that do it know one, or the other, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginPadding {
    /// PKCS #1 v1.5 (RFC 8017, section 7.2).
    Pkcs1,
    /// OAEP (RFC 8017, section 7.1).
    Oaep,
    /// One that a newer peer knows and we don't.
    #[serde(other)]
    Unknown,
}

/// How a session's login has to be encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginTerms {
    /// With which key.
    pub key: LoginKey,
    /// Padded how.
    pub padding: LoginPadding,
}

impl TryFrom<String> for LoginKey {
    type Error = NotALoginKey;

    fn try_from(text: String) -> Result<Self, NotALoginKey> {
        if text.len() > BASE64.encode_len(Self::MAX_LEN) {
            return Err(NotALoginKey);
        }
        Self::from_der(&BASE64.decode(text.as_bytes()).map_err(|_| NotALoginKey)?)
    }
}

impl From<LoginKey> for String {
    fn from(key: LoginKey) -> String {
        BASE64.encode(&key.0)
    }
}

impl fmt::Debug for LoginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoginKey({} bytes)", self.0.len())
    }
}

impl SessionKeys {
    /// Bytes taken from the exporter.
    pub const SECRET_LEN: usize = 32;

    /// The keys of `session`; `secret` is the link's exporter value with [`SESSION_EXPORTER_LABEL`] and the session id
    /// as context.
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
            login: Login {
                user: format!("s{}", HEXLOWER.encode(&session.as_bytes()[8..])),
                password: Zeroizing::new(HEXLOWER.encode(&tag("pp login"))),
            },
        }
    }

    /// The session's login.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// The session that these keys prove.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The tag of a datagram that is answered or changes state, flowing in `direction`.
    pub fn seal_datagram(&self, direction: Direction, datagram: &[u8]) -> [u8; TAG_LEN] {
        truncated(&hmac::sign(&self.probe[direction as usize], datagram))
    }

    /// Whether `tag` is that datagram's; compared in constant time.
    pub fn is_datagram(&self, direction: Direction, datagram: &[u8], tag: &[u8; TAG_LEN]) -> bool {
        equal(&self.seal_datagram(direction, datagram), tag)
    }

    /// The secret that bulk datagrams flowing in `direction` carry.
    pub fn bulk_tag(&self, direction: Direction) -> &[u8; TAG_LEN] {
        &self.bulk[direction as usize]
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKeys(of {})", self.session)
    }
}

/// The first bytes of every data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The session it belongs to.
    pub session: SessionId,
    /// The phase it belongs to, from 0; [`Preamble::ECHO`] for latency probes where UDP is blocked.
    pub phase: u8,
    /// Its place among the phase's streams, from 0; in a phase of both directions the download's come first.
    pub stream: u16,
    /// Random, so that no two preambles are alike.
    pub nonce: [u8; Preamble::NONCE_LEN],
}

impl Preamble {
    /// Bytes on the wire.
    pub const LEN: usize = 48;
    /// Bytes of the nonce.
    pub const NONCE_LEN: usize = 12;
    /// The phase number of a connection that carries latency probes.
    pub const ECHO: u8 = 255;
    /// The layout's version.
    const VERSION: u8 = 1;
    /// Where the tag stands.
    const TAG_AT: usize = Self::LEN - TAG_LEN;

    /// The bytes for the wire: version, phase, stream (big-endian), session, nonce, truncated HMAC-SHA256.
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

    /// The session that these bytes claim, to find the keys that decide; `None` for another version.
    pub fn claimed_session(bytes: &[u8; Self::LEN]) -> Option<SessionId> {
        let session = bytes[4..20].try_into().ok()?;
        (bytes[0] == Self::VERSION).then(|| SessionId::from_bytes(session))
    }

    /// The preamble, if these keys sealed it.
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

/// The first bytes of a tag.
fn truncated(tag: &hmac::Tag) -> [u8; TAG_LEN] {
    let mut short = [0; TAG_LEN];
    short.copy_from_slice(&tag.as_ref()[..TAG_LEN]);
    short
}

/// Equality in constant time.
fn equal(a: &[u8; TAG_LEN], b: &[u8; TAG_LEN]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

/// A secret or tag as lower-case hexadecimal digits, for JSON.
pub(crate) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// The bytes of exactly `N * 2` hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // Straight into place: what is decoded may be a secret, and a buffer in between would keep a copy of it.
    let fits = text.len() == 2 * N;
    (fits && data_encoding::HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), &mut bytes).is_ok()).then_some(bytes)
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
    fn a_sealed_preamble_opens_with_its_own_keys_alone() {
        let bytes = preamble().seal(&keys(1));
        assert_eq!(Preamble::open(&bytes, &keys(1)), Some(preamble()));
        assert_eq!(Preamble::open(&bytes, &keys(2)), None);
    }

    proptest! {
        #[test]
        fn one_flipped_bit_closes_the_door(at in 0usize..Preamble::LEN * 8) {
            let mut bytes = preamble().seal(&keys(1));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Preamble::open(&bytes, &keys(1)), None);
        }
    }

    #[test]
    fn tags_stay_the_same_for_ever() {
        let session = SessionId::new("01943d3c-5e00-7a10-8000-0123456789ab".parse().unwrap());
        let keys = SessionKeys::derive(session, Zeroizing::new(std::array::from_fn(|at| at as u8)));
        let preamble = Preamble { session, phase: 2, stream: 63, nonce: std::array::from_fn(|at| 100 + at as u8) };
        let sealed = "0102003f01943d3c5e007a1080000123456789ab6465666768696a6b6c6d6e6fe74497b3c89564329c6c2caf7122c473";
        assert_eq!(hex(&preamble.seal(&keys)), sealed);
        assert_eq!(hex(&keys.seal_datagram(Direction::Upload, b"probe")), "1cdfc0a3be19ef72e0816e6c4e3fe14d");
        assert_eq!(hex(keys.bulk_tag(Direction::Download)), "7e44752b0335b88ce73d65bfa0ad6a08");
        assert_eq!(keys.login().user, "s80000123456789ab");
        assert_eq!(*keys.login().password, "43dec4446ccc27c4e93e56d5354f6b11");
        assert!(!format!("{:?}", keys.login()).contains(&*keys.login().password));
    }

    #[test]
    fn a_login_key_is_bounded_base64() {
        let key = LoginKey::from_der(&[1, 2, 3]).unwrap();
        assert_eq!(serde_json::from_str::<LoginKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
        let long = BASE64.encode(&[0; LoginKey::MAX_LEN + 1]);
        for wrong in ["", "AQID!", "AQI", &long] {
            assert!(LoginKey::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert!(LoginKey::try_from(BASE64.encode(&[0; LoginKey::MAX_LEN])).is_ok());
    }

    #[test]
    fn hexadecimal_digits_are_as_many_as_they_must_be() {
        assert_eq!(unhex::<2>("00fF"), Some([0, 255]));
        for wrong in ["", "0", "00f", "00ff0", "00ff00", "00fg", "00é"] {
            assert_eq!(unhex::<2>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_datagram_reflected_back_is_no_datagram() {
        let keys = keys(1);
        let tag = keys.seal_datagram(Direction::Upload, b"probe");
        assert!(keys.is_datagram(Direction::Upload, b"probe", &tag));
        assert!(!keys.is_datagram(Direction::Download, b"probe", &tag));
        assert!(!keys.is_datagram(Direction::Upload, b"probf", &tag));
        assert_ne!(keys.bulk_tag(Direction::Upload), keys.bulk_tag(Direction::Download));
    }
}
