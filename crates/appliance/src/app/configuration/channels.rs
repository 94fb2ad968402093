//! Compares the channels of a configuration with the stored channels. If the configuration does not contain a secret,
//! the stored secret is kept, as long as the channel keeps its server.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::compare::{
    Compared, ConfigurationChange, ObjectComparison, StoredObject, ValueChange, differences, in_configuration,
};
use crate::alerts::channel::{Channel, ChannelError, ChannelSecrets, Destination, NewChannel};
use crate::app::command_seal::CommandSealer;
use crate::app::delivery::checked_program;
use crate::error::ApplianceError;
use crate::store::{ChannelWrite, FileChanges, StorageError, StoredChannel};

/// A channel of a configuration, and whether it receives messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredChannel {
    /// Whether messages are sent to the channel.
    pub enabled: bool,
    /// The definition of the channel.
    #[serde(flatten)]
    pub channel: Channel,
    /// The new secrets of the channel. An absent secret keeps its stored value if the channel keeps its server. A
    /// configuration that the appliance returns never contains secrets.
    #[serde(default, skip_serializing_if = "has_none")]
    pub secrets: ChannelSecrets,
}

fn has_none(secrets: &ChannelSecrets) -> bool {
    *secrets == ChannelSecrets::default()
}

impl From<StoredChannel> for ConfiguredChannel {
    fn from(stored: StoredChannel) -> Self {
        Self { enabled: stored.enabled, channel: stored.channel, secrets: ChannelSecrets::default() }
    }
}

/// A stored channel with its secrets.
pub(super) struct KnownChannel {
    pub(super) stored: StoredChannel,
    pub(super) secrets: ChannelSecrets,
}

impl StoredObject for KnownChannel {
    const KIND: &'static str = "channel";

    fn id(&self) -> Uuid {
        self.stored.id
    }

    fn name(&self) -> &str {
        &self.stored.channel.name
    }

    fn is_from_file(&self) -> bool {
        self.stored.from_file
    }
}

/// Compares the channels of a configuration with the stored channels. Returns the changes to store, and the differences
/// to show to the user. If `may_change_commands` is false, a change of a channel that runs a program on this host is an
/// error.
pub(super) fn compare_channels(
    known: &[KnownChannel],
    wanted: Vec<ConfiguredChannel>,
    may_change_commands: bool,
    sealer: &CommandSealer,
) -> Result<(FileChanges<ChannelWrite>, Vec<ConfigurationChange>), ApplianceError> {
    let mut comparison = ObjectComparison::new(known);
    let (mut written, mut replaced) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let name = wanted.channel.name.clone();
        let refused = |error: ApplianceError| in_configuration(KnownChannel::KIND, &name, error);
        if !comparison.is_new_name(&name) {
            return Err(refused(StorageError::ChannelExists { name: name.clone() }.into()));
        }
        let stored = comparison.find(&name);
        let ConfiguredChannel { enabled, channel, secrets } = wanted;
        let kept = stored.filter(|known| known.stored.channel.destination.has_server_of(&channel.destination));
        let secrets = secrets.or(kept.map(|known| known.secrets.clone()).unwrap_or_default());
        let checked = channel.with_secrets(secrets).and_then(NewChannel::checked);
        let (channel, secrets) = checked.map_err(|error| refused(error.into()))?;
        // A channel that starts or stops being a command gets a new id, so that each id always keeps the kind of
        // channel that was checked.
        let is_command = channel.destination.is_command();
        let replaces = stored.filter(|known| known.stored.channel.destination.is_command() == is_command);
        let id = replaces.map_or_else(Uuid::now_v7, KnownChannel::id);
        let seal = sealer.seal(id, &channel.destination);
        let write = ChannelWrite { id, channel, enabled, secrets, seal };
        let is_written = match stored {
            Some(known) => {
                let mut values = changed_values(known, &write);
                if is_command && may_change_commands && !sealer.permits(&known.stored) {
                    let (from, to) = (Some(false.into()), Some(true.into()));
                    values.push(ValueChange { value: "confirmed".to_owned(), from, to });
                }
                if is_command && !may_change_commands {
                    comparison.differs(known, values)
                } else {
                    comparison.is_changed(known, values)
                }
            }
            None => {
                comparison.added(&name);
                true
            }
        };
        if !is_written {
            continue;
        }
        let was_command = stored.is_some_and(|known| known.stored.channel.destination.is_command());
        if (was_command || write.channel.destination.is_command()) && !may_change_commands {
            return Err(refused(ChannelError::CommandRefused.into()));
        }
        if let Destination::Command { program, .. } = &write.channel.destination {
            checked_program(Path::new(program)).map_err(|error| refused(error.into()))?;
        }
        replaced.extend(stored.filter(|_| replaces.is_none()).map(KnownChannel::id));
        written.push(write);
    }
    let Compared { changes, unchanged, mut removed } = comparison.end();
    let is_gone =
        |known: &&KnownChannel| known.stored.channel.destination.is_command() && removed.contains(&known.id());
    if let Some(gone) = known.iter().find(is_gone).filter(|_| !may_change_commands) {
        return Err(in_configuration(KnownChannel::KIND, gone.name(), ChannelError::CommandRefused.into()));
    }
    removed.extend(replaced);
    Ok((FileChanges { written, unchanged, removed }, changes))
}

/// The values of a channel that change. A changed secret is only named, without its value.
fn changed_values(known: &KnownChannel, write: &ChannelWrite) -> Vec<ValueChange> {
    let (enabled, channel, secrets) = (write.enabled, write.channel.clone(), ChannelSecrets::default());
    let mut values =
        differences(&ConfiguredChannel::from(known.stored.clone()), &ConfiguredChannel { enabled, channel, secrets });
    let (from, to) = (&known.secrets, &write.secrets);
    let pairs =
        [("url", &from.url, &to.url), ("token", &from.token, &to.token), ("password", &from.password, &to.password)];
    for (secret, from, to) in pairs.into_iter().filter(|(_, from, to)| from != to) {
        let hidden = |is_set: bool, word: &str| is_set.then(|| Value::from(word));
        let (from, to) = (hidden(from.is_some(), "(the stored secret)"), hidden(to.is_some(), "(another secret)"));
        values.push(ValueChange { value: format!("secrets.{secret}"), from, to });
    }
    values
}
