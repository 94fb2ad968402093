//! The one-time code that pairs two devices, and the proofs that an end knows the code's secret. A code consists of a
//! pin (a hash of the reflector's key), the secret, and check digits. The reflector decides how long a code is valid
//! and which clients may try it.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::admission::{hex, unhex};
use crate::{EndpointId, crockford};

/// The label of the TLS exporter value that pairing proofs cover: the `tls-exporter` channel binding (RFC 9266), 32
/// bytes with an empty context. Both ends of a connection derive the same value. The value differs between connections,
/// so a proof is useless on another connection.
pub const PAIRING_EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// A truncated hash of the reflector's key: the first 90 bits of the SHA-256 of the key's 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; Pin::LEN]);

impl Pin {
    /// Length of a pin in bytes. The last 6 bits are always 0.
    const LEN: usize = 12;
    /// Number of significant bits of a pin.
    const BITS: usize = 90;
    /// Number of digits that a pin takes in a pairing code.
    const DIGITS: usize = 18;

    /// The pin of `reflector`.
    pub fn of(reflector: &EndpointId) -> Self {
        let hash = digest::digest(&digest::SHA256, reflector.as_bytes());
        let mut bits = [0; Self::LEN];
        bits.copy_from_slice(&hash.as_ref()[..Self::LEN]);
        bits[Self::LEN - 1] &= 0b1100_0000;
        Self(bits)
    }

    /// Whether this is the pin of the key `id`.
    pub fn matches(&self, id: &EndpointId) -> bool {
        *self == Self::of(id)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({})", hex(&self.0))
    }
}

/// A pairing code: 32 digits in 8 groups, such as `ABCD-EFGH-…`. A device that has the code may pair, once. Therefore
/// the code's secret is wiped from memory when dropped, and only [`fmt::Display`] shows it.
#[derive(Clone)]
pub struct PairingCode {
    pin: Pin,
    secret: Zeroizing<[u8; PairingCode::SECRET_LEN]>,
}

/// The system's random source failed.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source failed")]
pub struct NoRandomness;

/// Why text is not a pairing code. The errors never quote the text, because even a mistyped code is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePairingCodeError {
    /// The text contains an invalid character. The value is its position, from 1, counted without dashes and spaces.
    #[error("the character at position {0} is not valid in a pairing code (valid: 0-9 and A-Z without U)")]
    Digit(usize),
    /// The text is too short or too long. The value is its number of digits.
    #[error("a pairing code has 32 characters, not counting dashes and spaces; this has {0}")]
    Length(usize),
    /// The check digits do not match the other digits of the code.
    #[error("the check digits of the pairing code do not match: find and correct the mistyped characters")]
    Check,
}

impl PairingCode {
    /// Length of the secret in bytes; the last 6 bits are always 0.
    const SECRET_LEN: usize = 7;
    /// Bits of the secret. Users type the secret, so it is short. 50 bits are enough because an attacker can test a
    /// guess only against the reflector, which allows few attempts and accepts a code for an hour at most.
    const SECRET_BITS: usize = 50;
    /// Number of digits before the check digits: the pin and the secret.
    const PAYLOAD_DIGITS: usize = Pin::DIGITS + Self::SECRET_BITS / 5;
    /// Number of digits of a pairing code, check digits included.
    const DIGITS: usize = Self::PAYLOAD_DIGITS + crockford::CHECK_DIGITS;

    /// A new code for pairing with `reflector`. The secret comes from the system's random source.
    pub fn generate(reflector: &EndpointId) -> Result<Self, NoRandomness> {
        let mut code = Self { pin: Pin::of(reflector), secret: Zeroizing::new([0; Self::SECRET_LEN]) };
        aws_lc_rs::rand::fill(code.secret.as_mut_slice()).map_err(|_| NoRandomness)?;
        code.secret[Self::SECRET_LEN - 1] &= 0b1100_0000;
        Ok(code)
    }

    /// The pin of the reflector that made the code.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// The appliance's proof that it knows the secret, for one connection between `ends`. `exporter` is the
    /// connection's exporter value with [`PAIRING_EXPORTER_LABEL`] and an empty context.
    pub fn appliance_proof(&self, exporter: &[u8; 32], ends: &Ends) -> Proof {
        self.proof(b"pp pairing proof of the appliance", exporter, ends)
    }

    /// The reflector's proof that it knows the secret. The parameters are those of [`Self::appliance_proof`].
    pub fn reflector_proof(&self, exporter: &[u8; 32], ends: &Ends) -> Proof {
        self.proof(b"pp pairing proof of the reflector", exporter, ends)
    }

    /// Computes a proof: an HMAC over all parameters. Each parameter has a fixed length, so different parameters never
    /// give the same concatenation.
    fn proof(&self, label: &[u8; 33], exporter: &[u8; 32], ends: &Ends) -> Proof {
        let mut hmac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_slice()));
        hmac.update(label);
        hmac.update(exporter);
        hmac.update(ends.reflector.as_bytes());
        hmac.update(ends.appliance.as_bytes());
        let mut proof = [0; Proof::LEN];
        proof.copy_from_slice(hmac.sign().as_ref());
        Proof(proof)
    }
}

impl FromStr for PairingCode {
    type Err = ParsePairingCodeError;

    fn from_str(text: &str) -> Result<Self, ParsePairingCodeError> {
        let mut values = Zeroizing::new(Vec::with_capacity(4 * Self::DIGITS));
        for c in text.chars().filter(|c| !crockford::is_separator(*c)) {
            // Stay within the capacity: a vector that reallocates leaves a copy of the secret in freed memory.
            if values.len() == 4 * Self::DIGITS {
                return Err(ParsePairingCodeError::Length(values.len() + 1));
            }
            let value = crockford::value(c).ok_or(ParsePairingCodeError::Digit(values.len() + 1))?;
            values.push(value);
        }
        if values.len() != Self::DIGITS {
            return Err(ParsePairingCodeError::Length(values.len()));
        }
        let (payload, check) = values.split_at(Self::PAYLOAD_DIGITS);
        if !crockford::is_checked(payload, check) {
            return Err(ParsePairingCodeError::Check);
        }
        let (pin, secret) = payload.split_at(Pin::DIGITS);
        let mut code = Self { pin: Pin([0; Pin::LEN]), secret: Zeroizing::new([0; Self::SECRET_LEN]) };
        pack(pin, &mut code.pin.0);
        pack(secret, code.secret.as_mut_slice());
        Ok(code)
    }
}

/// Writes 5-bit values one after the other into `into`, most significant bit first.
fn pack(values: &[u8], into: &mut [u8]) {
    for (at, value) in values.iter().enumerate() {
        for bit in (0..5).filter(|bit| value >> (4 - bit) & 1 == 1) {
            let place = at * 5 + bit;
            into[place / 8] |= 0x80 >> (place % 8);
        }
    }
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = Zeroizing::new(Vec::with_capacity(Self::DIGITS));
        values.extend(crockford::values_of(&self.pin.0, Pin::BITS));
        values.extend_from_slice(&Zeroizing::new(crockford::values_of(self.secret.as_slice(), Self::SECRET_BITS)));
        let check = crockford::check_of(&values);
        values.extend(check);
        for (at, value) in values.iter().enumerate() {
            if at > 0 && at % 4 == 0 {
                f.write_str("-")?;
            }
            fmt::Write::write_char(f, crockford::digit(*value))?;
        }
        Ok(())
    }
}

impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairingCode(for {:?})", self.pin)
    }
}

/// The keys of both ends of a link, which a pairing proof covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The reflector's key.
    pub reflector: EndpointId,
    /// The appliance's key.
    pub appliance: EndpointId,
}

/// Proof that an end knows a pairing code's secret: an HMAC-SHA256, compared in constant time. [`fmt::Debug`] hides it,
/// because an attacker who has a proof and its exporter value can guess the secret's 50 bits offline.
#[derive(Clone, Copy)]
pub struct Proof([u8; Proof::LEN]);

impl Proof {
    /// Length of a proof, in bytes.
    const LEN: usize = 32;
}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Proof {}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(…)")
    }
}

impl Serialize for Proof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Proof {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text).map(Proof).ok_or_else(|| de::Error::custom("a proof must have 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(byte: u8) -> EndpointId {
        EndpointId::from_bytes([byte; 32])
    }

    fn code_of(reflector: [u8; 32], secret: [u8; 7]) -> PairingCode {
        let mut code = PairingCode { pin: Pin::of(&EndpointId::from_bytes(reflector)), secret: Zeroizing::new(secret) };
        code.secret[6] &= 0b1100_0000;
        code
    }

    proptest! {
        #[test]
        fn every_code_is_parsed_from_its_text(reflector: [u8; 32], secret: [u8; 7]) {
            let code = code_of(reflector, secret);
            let text = code.to_string();
            prop_assert_eq!(text.len(), 8 * 4 + 7);
            let sloppy = format!("  {}\n", text.to_lowercase().replace('0', "o").replace('1', "i").replace('-', "  "));
            for text in [text, sloppy] {
                let read = text.parse::<PairingCode>().unwrap();
                prop_assert_eq!(read.pin, code.pin);
                prop_assert_eq!(&read.secret, &code.secret);
            }
        }

        #[test]
        fn one_or_two_mistyped_digits_are_detected(secret: [u8; 7], a in 0usize..32, b in 0usize..32, x in 1u8..32, y in 1u8..32) {
            let mut values = digits(&code_of([3; 32], secret));
            values[a] = (values[a] + x) % 32;
            if a != b {
                values[b] = (values[b] + y) % 32;
            }
            prop_assert_eq!(text_of(&values).parse::<PairingCode>().unwrap_err(), ParsePairingCodeError::Check);
        }

        #[test]
        fn two_swapped_digits_are_detected(secret: [u8; 7], a in 0usize..32, b in 0usize..32) {
            let code = code_of([3; 32], secret);
            let mut values = digits(&code);
            values.swap(a, b);
            prop_assert_eq!(text_of(&values).parse::<PairingCode>().is_ok(), values == digits(&code));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<PairingCode>();
        }
    }

    fn digits(code: &PairingCode) -> Vec<u8> {
        code.to_string().chars().filter_map(crockford::value).collect()
    }

    fn text_of(values: &[u8]) -> String {
        values.iter().map(|v| crockford::digit(*v)).collect()
    }

    #[test]
    fn the_text_format_is_stable() {
        let text = code_of([7; 32], [0xff, 0, 0xaa, 0x55, 1, 2, 0xc0]).to_string();
        assert_eq!(text, "9ER6-Z3JE-79VH-BMG1-TNZW-0AMN-810B-M7TG");
    }

    #[test]
    fn errors_name_the_fault_and_never_quote_the_code() {
        let why = |text: &str| text.parse::<PairingCode>().unwrap_err();
        assert_eq!(why("ABCD-U"), ParsePairingCodeError::Digit(5));
        assert_eq!(why(""), ParsePairingCodeError::Length(0));
        assert_eq!(why(&"A".repeat(33)), ParsePairingCodeError::Length(33));
        assert_eq!(why(&"A".repeat(100_000)), ParsePairingCodeError::Length(129));
        assert_eq!(why(&id(1).to_string()), ParsePairingCodeError::Length(58));
    }

    #[test]
    fn a_code_is_valid_for_one_reflector() {
        let code = PairingCode::generate(&id(1)).unwrap();
        assert!(code.pin().matches(&id(1)));
        assert!(!code.pin().matches(&id(2)));
    }

    #[test]
    fn every_code_has_a_different_secret() {
        let (a, b) = (PairingCode::generate(&id(1)).unwrap(), PairingCode::generate(&id(1)).unwrap());
        assert_eq!(a.pin, b.pin);
        assert_ne!(a.secret, b.secret);
    }

    #[test]
    fn debug_shows_neither_secret_nor_proof() {
        let code = code_of([7; 32], [0xff; 7]);
        let hidden =
            format!("{code:?} {:?}", code.appliance_proof(&[1; 32], &Ends { reflector: id(7), appliance: id(8) }));
        assert_eq!(hidden, format!("PairingCode(for {:?}) Proof(…)", code.pin()));
    }

    #[test]
    fn a_proof_is_valid_for_one_code_direction_connection_and_pair_of_keys() {
        let (code, other) = (code_of([7; 32], [1; 7]), code_of([7; 32], [2; 7]));
        let ends = Ends { reflector: id(7), appliance: id(8) };
        let proofs = [
            code.appliance_proof(&[1; 32], &ends),
            code.reflector_proof(&[1; 32], &ends),
            code.appliance_proof(&[2; 32], &ends),
            code.reflector_proof(&[2; 32], &ends),
            code.appliance_proof(&[1; 32], &Ends { appliance: id(9), ..ends }),
            code.appliance_proof(&[1; 32], &Ends { reflector: id(9), ..ends }),
            code.appliance_proof(&[1; 32], &Ends { reflector: id(8), appliance: id(7) }),
            other.appliance_proof(&[1; 32], &ends),
        ];
        for (at, proof) in proofs.iter().enumerate() {
            assert!(proofs.iter().enumerate().all(|(beside, other)| (proof == other) == (at == beside)), "{at}");
        }
        assert_eq!(proofs[0], code.to_string().parse::<PairingCode>().unwrap().appliance_proof(&[1; 32], &ends));
    }

    #[test]
    fn a_proof_is_a_json_string_of_exactly_64_digits() {
        let proof = code_of([7; 32], [1; 7]).appliance_proof(&[1; 32], &Ends { reflector: id(7), appliance: id(8) });
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(json.len(), 66);
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), proof);
        for wrong in [json.replace('"', "\"0"), "\"\"".to_owned(), format!("\"{}\"", "g".repeat(64)), "7".to_owned()] {
            assert!(serde_json::from_str::<Proof>(&wrong).is_err(), "{wrong}");
        }
    }
}
