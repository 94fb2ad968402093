//! The random secrets of the API, which are stored as hashes. Each has 256 bits and cannot be guessed, so a fast hash
//! is enough.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use crate::error::ApplianceError;

/// The length of a secret, in bytes.
const SECRET_BYTES: usize = 32;

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A token of the API.
    Token,
    /// A login of the administrator.
    Login,
    /// A link by which the password is set.
    SetupLink,
}

impl SecretKind {
    /// The start of the text of such a secret, by which secret scanners find it.
    fn prefix(self) -> &'static str {
        match self {
            Self::Token => "ppt_",
            Self::Login => "ppl_",
            Self::SetupLink => "pps_",
        }
    }
}

/// The hash by which a secret is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretHash(String);

impl SecretHash {
    /// The hash of the text of a secret; `None` if the text is not a secret of this kind.
    pub fn of(kind: SecretKind, text: &str) -> Option<Self> {
        let secret = BASE64URL_NOPAD.decode(text.strip_prefix(kind.prefix())?.as_bytes()).ok()?;
        (secret.len() == SECRET_BYTES).then(|| Self::of_bytes(&secret))
    }

    fn of_bytes(secret: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, secret).as_ref()))
    }

    /// Its hexadecimal digits.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A new secret: its text and its hash.
pub(super) fn new_secret(kind: SecretKind) -> Result<(String, SecretHash), ApplianceError> {
    let secret = random_bytes::<SECRET_BYTES>()?;
    Ok((format!("{}{}", kind.prefix(), BASE64URL_NOPAD.encode(&secret)), SecretHash::of_bytes(&secret)))
}

/// Random bytes of the system.
pub(super) fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], ApplianceError> {
    let mut bytes = [0; COUNT];
    let refused = |_| ApplianceError::KeyDerivation("the system gives no random bytes".to_owned());
    aws_lc_rs::rand::fill(&mut bytes).map_err(refused)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_secret_counts_and_no_other_text_is_one() {
        let (text, hash) = new_secret(SecretKind::Token).unwrap();
        let (other, _) = new_secret(SecretKind::Token).unwrap();
        assert!(text.starts_with("ppt_") && text.len() == 47 && text != other);
        assert_eq!(SecretHash::of(SecretKind::Token, &text), Some(hash.clone()));
        assert_eq!(SecretHash::of(SecretKind::Login, &text), None);
        let mut changed = text.clone().into_bytes();
        changed[20] = if changed[20] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_ne!(SecretHash::of(SecretKind::Token, &changed), Some(hash));
        for wrong in ["", "ppt_", "ppt_AAAA", &text[4..], &text[..46], &format!("{text}A"), "ppt_\u{e9}"] {
            assert_eq!(SecretHash::of(SecretKind::Token, wrong), None, "{wrong}");
        }
    }
}
