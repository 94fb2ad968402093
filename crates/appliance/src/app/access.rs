//! Who may use the API of this appliance: its tokens. The shell that draws their secrets and reads the clock for them.

#![expect(clippy::disallowed_methods, reason = "the shell that dates a token")]

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Appliance;
use crate::error::ApplianceError;
use crate::store::{AccessScope, StoredToken};

/// The beginning of every token, by which secret scanners find it.
const TOKEN_PREFIX: &str = "ppt_";
/// The random bytes of a token. With 256 bits a fast hash is enough: no list of guesses contains it.
const TOKEN_BYTES: usize = 32;
/// The longest name, in characters.
const MAX_NAME_CHARS: usize = 60;

/// A new token with its secret, which is not stored. No `Debug`, which would print it.
#[derive(Serialize, Deserialize)]
pub struct NewToken {
    /// What is stored.
    #[serde(flatten)]
    pub stored: StoredToken,
    /// The secret.
    pub token: String,
}

/// The hash by which a token is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHash(String);

impl TokenHash {
    /// The hash of a token's text; `None` for a text that is none.
    pub fn of(text: &str) -> Option<Self> {
        let secret = BASE64URL_NOPAD.decode(text.strip_prefix(TOKEN_PREFIX)?.as_bytes()).ok()?;
        (secret.len() == TOKEN_BYTES).then(|| Self::of_secret(&secret))
    }

    fn of_secret(secret: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, secret).as_ref()))
    }
}

impl Appliance {
    /// Adds a token for the API.
    pub async fn add_token(&self, name: &str, scope: AccessScope) -> Result<NewToken, ApplianceError> {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(is_valid) {
            return Err(ApplianceError::TokenName(name.chars().take(MAX_NAME_CHARS).collect()));
        }
        let mut secret = [0; TOKEN_BYTES];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| no_randomness())?;
        let token = format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&secret));
        let now = Timestamp::now();
        // As it is stored.
        let added_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        let stored = StoredToken { name: name.to_owned(), scope, added_at };
        self.store().await?.add_token(&stored, &TokenHash::of_secret(&secret).0).await?;
        Ok(NewToken { stored, token })
    }

    /// Every token, by name.
    pub async fn tokens(&self) -> Result<Vec<StoredToken>, ApplianceError> {
        Ok(self.reading_store().await?.tokens().await?)
    }

    /// The token with this hash; `None` if there is none, or it was removed.
    pub async fn token(&self, hash: &TokenHash) -> Result<Option<StoredToken>, ApplianceError> {
        Ok(self.reading_store().await?.token_of(&hash.0).await?)
    }

    /// Removes the token with this name.
    pub async fn remove_token(&self, name: &str) -> Result<StoredToken, ApplianceError> {
        Ok(self.store().await?.remove_token(name).await?)
    }
}

fn no_randomness() -> ApplianceError {
    ApplianceError::KeyDerivation("the system gives no random bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::ErrorBody;

    use super::*;

    fn describe(error: &ApplianceError) -> ErrorBody {
        let text = error.to_string();
        ErrorBody { code: String::new(), what: text, because: String::new(), try_: String::new(), retry_after_ms: None }
    }

    #[tokio::test]
    async fn a_token_is_stored_without_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let appliance = Appliance::open(folder.path(), describe).unwrap().0;
        let new = appliance.add_token("grafana", AccessScope::Read).await.unwrap();
        let other = appliance.add_token("script", AccessScope::Run).await.unwrap();
        assert!(new.token.starts_with("ppt_") && new.token.len() == 47 && new.token != other.token);
        let found = appliance.token(&TokenHash::of(&new.token).unwrap()).await.unwrap();
        assert_eq!(found.as_ref(), Some(&new.stored));
        let secret = new.token.trim_start_matches(TOKEN_PREFIX).as_bytes();
        appliance.clone().close().await;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret));
        }
        // Every bit counts, and no other text is a token.
        let mut changed = new.token.clone().into_bytes();
        changed[20] = if changed[20] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_ne!(TokenHash::of(&changed), TokenHash::of(&new.token));
        for text in
            ["", "ppt_", "ppt_AAAA", &new.token[4..], &new.token[..46], &format!("{}A", new.token), "ppt_\u{e9}"]
        {
            assert_eq!(TokenHash::of(text), None, "{text}");
        }
        for name in ["", "a b", "a\nb", "é", &"a".repeat(61)] {
            let refused = appliance.add_token(name, AccessScope::Read).await.err();
            assert!(matches!(refused, Some(ApplianceError::TokenName(_))), "{name:?}");
        }
    }
}
