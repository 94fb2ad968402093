//! A device's identity: an Ed25519 key pair. The public key *is* the identity; the Endpoint ID is its text form.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crockford;

/// A device's Ed25519 public key, compared as 32 bytes. Its text form is `PP-` and 14 groups of 4 digits: the key as a
/// big-endian number in 52 digits, and 4 check digits. The check digits detect any one or two replaced digits and any
/// two swapped digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointId([u8; EndpointId::LEN]);

impl EndpointId {
    /// Length of an Ed25519 public key, in bytes.
    pub const LEN: usize = 32;

    /// A placeholder for "no identity": 32 zero bytes. No device has this public key.
    pub const NONE: Self = Self([0; Self::LEN]);

    /// The identity whose public key is `key`.
    pub const fn from_bytes(key: [u8; Self::LEN]) -> Self {
        Self(key)
    }

    /// The 32 bytes of the public key.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// Number of base-32 digits for the key in an Endpoint ID, without check digits.
const KEY_DIGITS: usize = 52;

/// Why text is not an Endpoint ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointIdError {
    /// The text does not begin with `PP`.
    #[error("an Endpoint ID must begin with PP-")]
    Prefix,
    /// The text contains this invalid character.
    #[error("{0:?} is not a valid character in an Endpoint ID (valid: 0-9 and A-Z without U)")]
    Digit(char),
    /// The text is too short or too long. The value is its number of digits after `PP`.
    #[error("an Endpoint ID has 56 characters after PP-, not counting dashes and spaces; this has {0}")]
    Length(usize),
    /// The check digits do not match the key.
    #[error("the check digits of the Endpoint ID do not match: find and correct the mistyped characters")]
    Check,
}

impl FromStr for EndpointId {
    type Err = ParseEndpointIdError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointIdError> {
        let text = text.trim();
        let prefix = text.get(..2).filter(|p| p.eq_ignore_ascii_case("PP")).ok_or(ParseEndpointIdError::Prefix)?;
        let mut values = Vec::with_capacity(KEY_DIGITS + crockford::CHECK_DIGITS);
        for c in text[prefix.len()..].chars().filter(|c| !crockford::is_separator(*c)) {
            if values.len() > 4 * KEY_DIGITS {
                return Err(ParseEndpointIdError::Length(values.len()));
            }
            values.push(crockford::value(c).ok_or(ParseEndpointIdError::Digit(c))?);
        }
        if values.len() != KEY_DIGITS + crockford::CHECK_DIGITS {
            return Err(ParseEndpointIdError::Length(values.len()));
        }
        let (key, check) = values.split_at(KEY_DIGITS);
        // 52 digits are 260 bits: the first digit holds only the key's top bit.
        if key[0] > 1 || !crockford::is_checked(key, check) {
            return Err(ParseEndpointIdError::Check);
        }
        let mut bytes = [0u8; Self::LEN];
        for (at, value) in key.iter().rev().enumerate() {
            for bit in (0..5).filter(|bit| value >> bit & 1 == 1) {
                let low = at * 5 + bit;
                bytes[Self::LEN - 1 - low / 8] |= 1 << (low % 8);
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = crockford::values_of(&self.0, 256);
        values.extend(crockford::check_of(&values));
        let mut text = String::with_capacity(72);
        text.push_str("PP");
        for (at, value) in values.iter().enumerate() {
            if at % 4 == 0 {
                text.push('-');
            }
            text.push(crockford::digit(*value));
        }
        f.pad(&text)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for EndpointId {
    type Error = ParseEndpointIdError;

    fn try_from(text: String) -> Result<Self, ParseEndpointIdError> {
        text.parse()
    }
}

impl JsonSchema for EndpointId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EndpointId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^PP(-[0-9A-HJKMNP-TV-Z]{4}){14}$" })
    }
}

/// A device's secret key. It is never printed, and it is wiped from memory when dropped.
pub struct SecretKey {
    /// Boxed, so that moving the key copies only a pointer. Without the box, each move would leave a copy of the seed
    /// that is never wiped.
    seed: Box<Zeroizing<[u8; SecretKey::LEN]>>,
    id: EndpointId,
}

/// The system's random source failed, or the given bytes are not an Ed25519 seed.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate an Ed25519 key")]
pub struct KeyGenerationError;

impl SecretKey {
    /// Length of an Ed25519 seed, in bytes.
    pub const LEN: usize = 32;

    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, KeyGenerationError> {
        // Not `Ed25519KeyPair::generate`: the seed that it returns is not wiped.
        let mut seed = Zeroizing::new([0; Self::LEN]);
        aws_lc_rs::rand::fill(&mut *seed).map_err(|_| KeyGenerationError)?;
        Self::of_seed(&seed)
    }

    /// Derives the key pair from an Ed25519 seed (the private key of RFC 8032, section 5.1.5).
    pub fn from_seed(seed: Zeroizing<[u8; Self::LEN]>) -> Result<Self, KeyGenerationError> {
        Self::of_seed(&seed)
    }

    /// Derives the key pair from `seed`. The caller must wipe `seed` from memory.
    pub(crate) fn of_seed(seed: &[u8; Self::LEN]) -> Result<Self, KeyGenerationError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyGenerationError)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyGenerationError)?;
        let mut kept = Box::new(Zeroizing::new([0; Self::LEN]));
        kept.copy_from_slice(seed);
        Ok(Self { seed: kept, id: EndpointId(public) })
    }

    /// The public key.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// An HMAC over `parts` by which this device recognises its own data in a place where others can write, such as a
    /// database. A tag for one `purpose` is not valid for another.
    pub fn own_tag(&self, purpose: &str, parts: &[&[u8]]) -> [u8; Self::LEN] {
        let tag = hmac::sign(&self.tag_key(purpose), &joined(parts));
        // An HMAC-SHA256 has this length.
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Whether `tag` is the [`SecretKey::own_tag`] of this key for `purpose` and `parts`.
    pub fn is_own_tag(&self, purpose: &str, parts: &[&[u8]], tag: &[u8]) -> bool {
        hmac::verify(&self.tag_key(purpose), &joined(parts), tag).is_ok()
    }

    fn tag_key(&self, purpose: &str) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.seed());
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, purpose.as_bytes()).as_ref())
    }

    /// The seed. Used only to write the key file and to derive keys.
    pub(crate) fn seed(&self) -> &[u8; Self::LEN] {
        &self.seed
    }

    /// The key as PKCS#8. Used only for rustls.
    pub(crate) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyGenerationError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(self.seed()).map_err(|_| KeyGenerationError)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyGenerationError)?;
        Ok(Zeroizing::new(der.as_ref().to_vec()))
    }
}

/// Concatenates the parts, each preceded by its length, so that different parts never give the same bytes.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let part = |part: &&[u8]| [&(part.len() as u64).to_be_bytes(), *part].concat();
    parts.iter().flat_map(part).collect()
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_own_tag_is_one_of_this_key_this_purpose_and_these_parts() {
        let key = |seed| SecretKey::from_seed(Zeroizing::new([seed; SecretKey::LEN])).unwrap();
        let tag = key(1).own_tag("test", &[b"ab", b"c"]);
        assert!(key(1).is_own_tag("test", &[b"ab", b"c"], &tag));
        assert!(!key(2).is_own_tag("test", &[b"ab", b"c"], &tag));
        assert!(!key(1).is_own_tag("other", &[b"ab", b"c"], &tag));
        for parts in [&[&b"a"[..], b"bc"][..], &[b"ab", b"c", b""], &[b"abc"], &[]] {
            assert!(!key(1).is_own_tag("test", parts, &tag), "{parts:?}");
        }
        assert!(!key(1).is_own_tag("test", &[b"ab", b"c"], &tag[..8]) && !key(1).is_own_tag("test", &[], b""));
    }

    proptest! {
        #[test]
        fn every_key_is_parsed_from_its_text(key: [u8; 32]) {
            let id = EndpointId(key);
            let text = id.to_string();
            prop_assert_eq!(text.len(), 2 + 14 * 5);
            prop_assert_eq!(text.parse::<EndpointId>().unwrap(), id);
            let sloppy = text.to_lowercase().replace('0', "o").replace('1', "l").replace('-', " ");
            prop_assert_eq!(sloppy.parse::<EndpointId>().unwrap(), id);
        }

        #[test]
        fn one_or_two_replaced_digits_are_detected(key: [u8; 32], a in 0usize..56, b in 0usize..56, x in 1u8..32, y in 1u8..32) {
            let mut values = digits(EndpointId(key));
            values[a] = (values[a] + x) % 32;
            if a != b {
                values[b] = (values[b] + y) % 32;
            }
            prop_assert!(text_of(&values).parse::<EndpointId>().is_err());
        }

        #[test]
        fn two_swapped_digits_are_detected(key: [u8; 32], a in 0usize..56, b in 0usize..56) {
            let mut values = digits(EndpointId(key));
            values.swap(a, b);
            let parsed = text_of(&values).parse::<EndpointId>();
            prop_assert_eq!(parsed.is_ok(), values == digits(EndpointId(key)));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<EndpointId>();
        }
    }

    fn digits(id: EndpointId) -> Vec<u8> {
        id.to_string()[2..].chars().filter_map(crockford::value).collect()
    }

    fn text_of(values: &[u8]) -> String {
        format!("PP-{}", values.iter().map(|v| crockford::digit(*v)).collect::<String>())
    }

    #[test]
    fn no_change_of_one_or_two_digits_is_a_multiple_of_the_modulus() {
        // Replacing a digit changes the number by d * 32^i, |d| < 32; replacing two by d * 32^i + e * 32^j. The change is
        // undetected only if it is a multiple of the modulus. 32 is invertible, so it suffices to check d * 32^(i-j) + e.
        let modulus = i64::from(crockford::MODULUS);
        let mut power = 1i64;
        for _ in 0..56 {
            for d in 1..32 {
                let rest = d * power % modulus;
                assert!(rest != 0 && rest >= 32 && rest <= modulus - 32 || power == 1, "{d} * {power}");
            }
            power = power * 32 % modulus;
        }
    }

    #[test]
    fn a_check_part_at_or_above_the_modulus_is_refused() {
        // Adding the modulus to the check part gives another multiple of the modulus, but not the canonical one.
        let id = (0u8..=255)
            .map(|b| EndpointId([b; 32]))
            .find(|id| check_number(*id) < 59)
            .expect("some key has a small check");
        let mut values = digits(id);
        let forged = check_number(id) + crockford::MODULUS;
        for (at, shift) in [15, 10, 5, 0].into_iter().enumerate() {
            values[52 + at] = (forged >> shift & 31) as u8;
        }
        assert_eq!(text_of(&values).parse::<EndpointId>(), Err(ParseEndpointIdError::Check));
    }

    fn check_number(id: EndpointId) -> u32 {
        digits(id)[52..].iter().fold(0, |acc, v| acc * 32 + u32::from(*v))
    }

    #[test]
    fn a_generated_key_has_the_id_of_its_seed() {
        let key = SecretKey::generate().unwrap();
        assert_eq!(SecretKey::from_seed(Zeroizing::new(*key.seed())).unwrap().id(), key.id());
        assert!(!format!("{key:?}").contains("seed"));
    }
}
