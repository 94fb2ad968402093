//! The random secrets of the API, which are stored as hashes. Each secret has 256 random bits, which cannot be guessed,
//! so a fast hash is enough.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use crate::error::ApplianceError;

/// The length of a secret of the API, in bytes.
const SECRET_BYTES: usize = 32;

/// The purpose of a secret of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A token with which a program uses the API.
    Token,
    /// A login of the administrator in a browser.
    Login,
    /// A link with which the administrator's password is set.
    SetupLink,
}

impl SecretKind {
    /// The start of the text of every secret of this kind. Secret scanners find leaked secrets by it.
    fn prefix(self) -> &'static str {
        match self {
            Self::Token => "ppt_",
            Self::Login => "ppl_",
            Self::SetupLink => "pps_",
        }
    }
}

/// The hash of a secret of the API, which is stored instead of the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretHash(String);

impl SecretHash {
    /// The hash of the secret `text`; `None` if `text` is not a secret of this kind.
    pub fn of(kind: SecretKind, text: &str) -> Option<Self> {
        let secret = BASE64URL_NOPAD.decode(text.strip_prefix(kind.prefix())?.as_bytes()).ok()?;
        (secret.len() == SECRET_BYTES).then(|| Self::of_bytes(&secret))
    }

    fn of_bytes(secret: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, secret).as_ref()))
    }

    /// The hexadecimal digits of the hash.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A new secret: its text and its hash.
pub(super) fn new_secret(kind: SecretKind) -> Result<(String, SecretHash), ApplianceError> {
    let secret = random_bytes::<SECRET_BYTES>()?;
    Ok((format!("{}{}", kind.prefix(), BASE64URL_NOPAD.encode(&secret)), SecretHash::of_bytes(&secret)))
}

/// Random bytes from the random number generator of the system.
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
