//! The channels that carry messages, and their secrets, such as tokens. [`StoredChannel`] does not contain the secrets.

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{on, rows, without_nul};
use super::{ApplianceStore, StorageError, strange};
use crate::alerts::channel::{Channel, ChannelSecrets};
use crate::alerts::secret_text::SecretText;

/// A channel as stored, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredChannel {
    /// The id of the channel, a UUIDv7.
    pub id: Uuid,
    /// Whether the channel gets messages.
    pub enabled: bool,
    /// When the channel was added.
    pub added_at: Timestamp,
    /// Whether a configuration file made the channel (`packetparamedic apply`).
    pub from_file: bool,
    /// The names of those secrets that are set for the channel, such as `token`.
    pub secrets: Vec<String>,
    /// A tag that proves that this device stored the channel. Only for a channel that runs a command.
    #[serde(skip)]
    pub seal: Option<String>,
    /// The definition of the channel.
    #[serde(flatten)]
    pub channel: Channel,
}

impl StoredChannel {
    /// Creates a channel with a new id. The channel is enabled and has no seal.
    pub fn new(channel: Channel, secrets: &ChannelSecrets, now: Timestamp) -> Self {
        Self {
            id: Uuid::now_v7(),
            enabled: true,
            added_at: Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now),
            from_file: false,
            secrets: secrets.names(),
            seal: None,
            channel,
        }
    }
}

/// The stored document with the secrets of a channel and its seal. Without a seal, the document has no field `seal`, so
/// that an earlier version of this program, which knows no seals, can still read the document.
#[derive(Serialize, Deserialize)]
struct HiddenColumn {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

/// The text of the column that contains the secrets of a channel and its seal.
pub(super) fn hidden_column(secrets: &ChannelSecrets, seal: Option<&str>) -> Result<String, serde_json::Error> {
    let ChannelSecrets { url, token, password } = secrets.clone();
    serde_json::to_string(&HiddenColumn { url, token, password, seal: seal.map(str::to_owned) })
}

/// The stored columns of a channel.
#[derive(sqlx::FromRow)]
struct ChannelRow {
    id: String,
    definition: String,
    secrets: String,
    enabled: bool,
    from_file: bool,
    added_at_us: i64,
}

impl ChannelRow {
    fn read(&self) -> Result<(StoredChannel, ChannelSecrets), sqlx::Error> {
        let hidden = serde_json::from_str::<HiddenColumn>(&self.secrets);
        // The text of the error could quote a secret.
        let hidden = hidden.map_err(|_| sqlx::Error::Decode("the secrets of a channel cannot be read".into()))?;
        let HiddenColumn { url, token, password, seal } = hidden;
        let secrets = ChannelSecrets { url, token, password };
        let stored = StoredChannel {
            id: self.id.parse().map_err(strange)?,
            enabled: self.enabled,
            added_at: Timestamp::from_microsecond(self.added_at_us).map_err(strange)?,
            from_file: self.from_file,
            secrets: secrets.names(),
            seal,
            channel: serde_json::from_str(&self.definition).map_err(strange)?,
        };
        Ok((stored, secrets))
    }
}

impl ApplianceStore {
    /// Saves a new channel with its secrets. `appliance` is the Endpoint ID of this device.
    pub async fn add_channel(
        &self,
        appliance: &str,
        stored: &StoredChannel,
        secrets: &ChannelSecrets,
    ) -> Result<(), StorageError> {
        let document = |source| StorageError::Document { source };
        let StoredChannel { id, channel, added_at, .. } = stored;
        let definition = serde_json::to_string(channel).map_err(document)?;
        let hidden = hidden_column(secrets, stored.seal.as_deref()).map_err(document)?;
        let added = on!(self.pool, |db| sqlx::query(
            "INSERT INTO channels (id, appliance, name, definition, secrets, enabled, from_file, added_at_us) \
             VALUES ($1, $2, $3, $4, $5, TRUE, FALSE, $6)"
        )
        .bind(id.to_string())
        .bind(appliance)
        .bind(&channel.name)
        .bind(&definition)
        .bind(&hidden)
        .bind(added_at.as_microsecond())
        .execute(db)
        .await
        .map(rows));
        match added {
            Ok(_) => Ok(()),
            Err(error) if is_unique_violation(&error) => {
                Err(StorageError::ChannelExists { name: channel.name.clone() })
            }
            Err(error) => Err(self.fault("saving the channel")(error)),
        }
    }

    /// Every channel, sorted by name.
    pub async fn channels(&self) -> Result<Vec<StoredChannel>, StorageError> {
        Ok(self.channels_with_secrets().await?.into_iter().map(|(stored, _)| stored).collect())
    }

    /// Every channel with its secrets, sorted by name.
    pub async fn channels_with_secrets(&self) -> Result<Vec<(StoredChannel, ChannelSecrets)>, StorageError> {
        let fault = || self.fault("reading the channels");
        let found = on!(self.pool, |db| sqlx::query_as::<_, ChannelRow>(
            "SELECT id, definition, secrets, enabled, from_file, added_at_us FROM channels ORDER BY lower(name)"
        )
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        found.iter().map(|row| row.read().map_err(fault())).collect()
    }

    /// The channel with this name, and its secrets.
    pub async fn channel(&self, name: &str) -> Result<(StoredChannel, ChannelSecrets), StorageError> {
        let fault = || self.fault("reading the channels");
        let wanted = without_nul(&name.to_ascii_lowercase());
        let found = on!(self.pool, |db| sqlx::query_as::<_, ChannelRow>(
            "SELECT id, definition, secrets, enabled, from_file, added_at_us FROM channels WHERE lower(name) = $1"
        )
        .bind(&wanted)
        .fetch_optional(db)
        .await)
        .map_err(fault())?;
        match found {
            Some(row) => row.read().map_err(fault()),
            None => Err(StorageError::NoSuchChannel { wanted: name.to_owned() }),
        }
    }

    /// The channel with this id, and its secrets, if the channel is enabled.
    pub async fn enabled_channel(&self, id: Uuid) -> Result<Option<(StoredChannel, ChannelSecrets)>, StorageError> {
        let fault = || self.fault("reading the channels");
        let found = on!(self.pool, |db| {
            sqlx::query_as::<_, ChannelRow>(
            "SELECT id, definition, secrets, enabled, from_file, added_at_us FROM channels WHERE id = $1 AND enabled"
        )
        .bind(id.to_string())
        .fetch_optional(db)
        .await
        })
        .map_err(fault())?;
        found.map(|row| row.read()).transpose().map_err(fault())
    }

    /// Removes this channel and its secrets, but not another channel that has the same name now.
    pub async fn remove_channel(&self, stored: StoredChannel) -> Result<StoredChannel, StorageError> {
        let removed = on!(self.pool, |db| sqlx::query("DELETE FROM channels WHERE id = $1")
            .bind(stored.id.to_string())
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("removing the channel"))?;
        if removed == 0 { Err(StorageError::NoSuchChannel { wanted: stored.channel.name }) } else { Ok(stored) }
    }

    /// Enables or disables this channel, but not another channel that has the same name now.
    pub async fn enable_channel(&self, stored: StoredChannel, enabled: bool) -> Result<StoredChannel, StorageError> {
        let changed = on!(self.pool, |db| sqlx::query("UPDATE channels SET enabled = $2 WHERE id = $1")
            .bind(stored.id.to_string())
            .bind(enabled)
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("changing the channel"))?;
        if changed == 0 {
            return Err(StorageError::NoSuchChannel { wanted: stored.channel.name });
        }
        Ok(StoredChannel { enabled, ..stored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::channel::NewChannel;
    use crate::store::each_engine::on_each_engine;

    fn checked(json: &str) -> (Channel, ChannelSecrets) {
        serde_json::from_str::<NewChannel>(json).unwrap().checked().unwrap()
    }

    async fn added(
        store: &ApplianceStore,
        (channel, secrets): (&Channel, &ChannelSecrets),
        now: Timestamp,
    ) -> Result<StoredChannel, StorageError> {
        let mut stored = StoredChannel::new(channel.clone(), secrets, now);
        stored.seal = Some("5ea1".to_owned());
        store.add_channel("PP", &stored, secrets).await.map(|()| stored)
    }

    #[tokio::test]
    async fn a_channel_is_found_by_its_name_until_it_is_removed() {
        on_each_engine(async |store| {
            let now = "2026-01-01T00:00:00.000001Z".parse().unwrap();
            let (phone, token) = checked(r#"{"name": "Phone", "kind": "ntfy", "topic": "pp", "token": "tk_geheim"}"#);
            let (hook, url) = checked(r#"{"name": "hook", "kind": "webhook", "url": "http://192.0.2.1/geheim"}"#);
            let phone_stored = added(&store, (&phone, &token), now).await.unwrap();
            let hook_stored = added(&store, (&hook, &url), now).await.unwrap();
            let taken = added(&store, (&Channel { name: "PHONE".to_owned(), ..hook }, &url), now).await;
            assert!(matches!(taken, Err(StorageError::ChannelExists { .. })), "{taken:?}");
            assert_eq!(store.channels().await.unwrap(), [hook_stored.clone(), phone_stored.clone()]);
            assert_eq!(store.channel("phone").await.unwrap(), (phone_stored.clone(), token));
            let shown = serde_json::to_string(&store.channels().await.unwrap()).unwrap();
            assert!(
                !shown.contains("geheim") && !shown.contains("5ea1") && shown.contains("\"secrets\":[\"token\"]"),
                "{shown}"
            );
            let found = async |name| store.channel(name).await.map(|(stored, _)| stored);
            assert!(!store.enable_channel(found("HOOK").await.unwrap(), false).await.unwrap().enabled);
            assert!(!store.channel("hook").await.unwrap().0.enabled);
            assert_eq!(store.enabled_channel(hook_stored.id).await.unwrap(), None);
            assert_eq!(store.enabled_channel(phone_stored.id).await.unwrap().unwrap().0, phone_stored);
            assert_eq!(store.remove_channel(hook_stored.clone()).await.unwrap().id, hook_stored.id);
            for gone in ["hook", "", "a\0b"] {
                let absent = found(gone).await;
                assert!(matches!(absent, Err(StorageError::NoSuchChannel { .. })), "{absent:?}");
            }
            // Another channel has taken the name since then.
            let (hook, url) = checked(r#"{"name": "hook", "kind": "webhook", "url": "http://192.0.2.2/"}"#);
            let other = added(&store, (&hook, &url), now).await.unwrap();
            for refused in
                [store.remove_channel(hook_stored.clone()).await, store.enable_channel(hook_stored, false).await]
            {
                assert!(matches!(refused, Err(StorageError::NoSuchChannel { .. })), "{refused:?}");
            }
            assert_eq!(store.channels().await.unwrap(), [other, phone_stored]);
        })
        .await;
    }
}
