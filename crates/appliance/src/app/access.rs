//! The tokens of this appliance's API: add, list, find, remove. Reads the clock to date new tokens.

#![expect(clippy::disallowed_methods, reason = "the shell that dates a token")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Appliance;
use super::secret::{self, SecretHash, SecretKind};
use crate::error::ApplianceError;
use crate::store::{AccessScope, StoredToken};

/// The maximum length of a token's name, in characters.
const MAX_NAME_CHARS: usize = 60;

/// A new token with its secret. The secret is not stored. The type does not implement `Debug`, because its output would
/// contain the secret.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// The token as it is stored, without the secret.
    #[serde(flatten)]
    pub stored: StoredToken,
    /// The secret of the token, as the client must send it.
    pub token: String,
}

impl Appliance {
    /// Adds a token for the API. Returns the token with its secret.
    pub async fn add_token(&self, name: &str, scope: AccessScope) -> Result<NewToken, ApplianceError> {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(is_valid) {
            return Err(ApplianceError::TokenName(name.chars().take(MAX_NAME_CHARS).collect()));
        }
        let (token, hash) = secret::new_secret(SecretKind::Token)?;
        let now = Timestamp::now();
        // Rounds to the precision of the database, so that the returned time equals the stored one.
        let added_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        let stored = StoredToken { name: name.to_owned(), scope, added_at };
        self.store().await?.add_token(&stored, hash.as_str()).await?;
        Ok(NewToken { stored, token })
    }

    /// All tokens of the API, sorted by name.
    pub async fn tokens(&self) -> Result<Vec<StoredToken>, ApplianceError> {
        Ok(self.reading_store().await?.tokens().await?)
    }

    /// The token whose secret has this hash; `None` if no such token exists, for example because it was removed.
    pub async fn token(&self, hash: &SecretHash) -> Result<Option<StoredToken>, ApplianceError> {
        Ok(self.reading_store().await?.token_of(hash.as_str()).await?)
    }

    /// Removes the token with this name, and returns it.
    pub async fn remove_token(&self, name: &str) -> Result<StoredToken, ApplianceError> {
        Ok(self.store().await?.remove_token(name).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::each_engine::devices;

    #[tokio::test]
    async fn a_token_is_stored_without_its_secret() {
        for (folder, appliance) in devices() {
            let new = appliance.add_token("grafana", AccessScope::Read).await.unwrap();
            let found = appliance.token(&SecretHash::of(SecretKind::Token, &new.token).unwrap()).await.unwrap();
            assert_eq!(found.as_ref(), Some(&new.stored));
            let secret = new.token.trim_start_matches("ppt_").as_bytes();
            appliance.clone().close().await;
            for entry in std::fs::read_dir(folder.path()).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                assert!(!bytes.windows(secret.len()).any(|part| part == secret));
            }
            for name in ["", "a b", "a\nb", "é", &"a".repeat(61)] {
                let refused = appliance.add_token(name, AccessScope::Read).await.err();
                assert!(matches!(refused, Some(ApplianceError::TokenName(_))), "{name:?}");
            }
        }
    }
}
