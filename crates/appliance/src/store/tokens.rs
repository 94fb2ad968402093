//! The tokens of the API: their names, scopes and hashes.

use std::fmt;

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pool::{on, rows, without_nul};
use super::{ApplianceStore, StorageError, strange};

/// What a client of the API may do. Each scope includes the scopes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessScope {
    /// Only read.
    Read,
    /// Also start and cancel tests.
    Run,
    /// Also change everything.
    Admin,
}

impl AccessScope {
    /// All scopes, the smallest first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Run, Self::Admin];

    /// The name of the scope in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for AccessScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token as stored, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredToken {
    /// The name of the token.
    pub name: String,
    /// What the token allows.
    pub scope: AccessScope,
    /// When the token was added.
    pub added_at: Timestamp,
}

/// The stored columns of a token.
type TokenRow = (String, String, i64);

impl ApplianceStore {
    /// Saves a new token. `hash` is the hash of its secret, in hexadecimal digits.
    pub async fn add_token(&self, token: &StoredToken, hash: &str) -> Result<(), StorageError> {
        let added = on!(self.pool, |db| sqlx::query(
            "INSERT INTO tokens (hash, name, scope, added_at_us) VALUES ($1, $2, $3, $4)"
        )
        .bind(hash)
        .bind(&token.name)
        .bind(token.scope.as_str())
        .bind(token.added_at.as_microsecond())
        .execute(db)
        .await
        .map(rows));
        match added {
            Ok(_) => Ok(()),
            Err(error) if is_unique_violation(&error) => Err(StorageError::TokenExists { name: token.name.clone() }),
            Err(error) => Err(self.fault("saving the token")(error)),
        }
    }

    /// Every token, sorted by name.
    pub async fn tokens(&self) -> Result<Vec<StoredToken>, StorageError> {
        let fault = || self.fault("reading the tokens");
        on!(self.pool, |db| sqlx::query_as::<_, TokenRow>(
            "SELECT name, scope, added_at_us FROM tokens ORDER BY lower(name)"
        )
        .fetch_all(db)
        .await)
        .map_err(fault())?
        .into_iter()
        .map(|row| token(row).map_err(fault()))
        .collect()
    }

    /// The token with this hash; `None` if no token has it.
    pub async fn token_of(&self, hash: &str) -> Result<Option<StoredToken>, StorageError> {
        let fault = || self.fault("reading the tokens");
        let found = on!(self.pool, |db| sqlx::query_as::<_, TokenRow>(
            "SELECT name, scope, added_at_us FROM tokens WHERE hash = $1"
        )
        .bind(hash)
        .fetch_optional(db)
        .await)
        .map_err(fault())?;
        found.map(token).transpose().map_err(fault())
    }

    /// Removes the token with this name, ignoring case, and returns it.
    pub async fn remove_token(&self, name: &str) -> Result<StoredToken, StorageError> {
        let fault = || self.fault("removing the token");
        let wanted = without_nul(&name.to_ascii_lowercase());
        let removed = on!(self.pool, |db| sqlx::query_as::<_, TokenRow>(
            "DELETE FROM tokens WHERE lower(name) = $1 RETURNING name, scope, added_at_us",
        )
        .bind(wanted)
        .fetch_optional(db)
        .await)
        .map_err(fault())?;
        match removed {
            Some(row) => token(row).map_err(fault()),
            None => Err(StorageError::NoSuchToken { wanted: name.to_owned() }),
        }
    }
}

fn token((name, scope, added_at_us): TokenRow) -> Result<StoredToken, sqlx::Error> {
    let known = AccessScope::ALL.into_iter().find(|known| known.as_str() == scope);
    Ok(StoredToken {
        name,
        scope: known.ok_or_else(|| sqlx::Error::Decode("the stored scope of a token is unknown".into()))?,
        added_at: Timestamp::from_microsecond(added_at_us).map_err(strange)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::each_engine::on_each_engine;

    #[tokio::test]
    async fn a_token_is_found_by_its_hash_until_it_is_removed() {
        on_each_engine(async |store| {
            let added_at = "2026-01-01T00:00:00.000001Z".parse().unwrap();
            let new = |name: &str, scope| StoredToken { name: name.to_owned(), scope, added_at };
            let (grafana, script) = (new("Grafana", AccessScope::Read), new("Script", AccessScope::Admin));
            store.add_token(&script, "02").await.unwrap();
            store.add_token(&grafana, "01").await.unwrap();
            assert_eq!(store.tokens().await.unwrap(), [grafana.clone(), script]);
            assert_eq!(store.token_of("01").await.unwrap(), Some(grafana.clone()));
            assert_eq!(store.token_of("").await.unwrap(), None);
            let taken = store.add_token(&new("grafana", AccessScope::Run), "03").await;
            assert!(matches!(taken, Err(StorageError::TokenExists { .. })), "{taken:?}");
            assert_eq!(store.remove_token("GRAFANA").await.unwrap(), grafana);
            assert_eq!(store.token_of("01").await.unwrap(), None);
            let gone = store.remove_token("grafana").await;
            assert!(matches!(gone, Err(StorageError::NoSuchToken { .. })), "{gone:?}");
        })
        .await;
    }
}
