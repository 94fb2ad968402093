//! The seal of a channel that runs a command: a tag that only this device can make. Other users of a database server
//! may write its tables, and a row that they wrote must not run a program here.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use paramedic_link::SecretKey;
use uuid::Uuid;

use super::Appliance;
use crate::alerts::channel::Destination;
use crate::error::ApplianceError;
use crate::store::StoredChannel;

/// A text that each tag covers. Because of it, a tag that the same key made for another purpose is not a valid seal.
const PURPOSE: &str = "packetparamedic command channel 1";

/// Makes and checks the seals of channels that run a command.
pub(super) struct CommandSealer {
    key: Arc<SecretKey>,
    /// Whether a stored command needs a seal. This is so only if the database is on a server. A database file in the
    /// state folder can be written only by the user of this program, and earlier versions stored commands there without
    /// a seal.
    is_needed: bool,
}

impl Appliance {
    pub(super) fn command_sealer(&self) -> Result<CommandSealer, ApplianceError> {
        Ok(CommandSealer { key: self.key()?, is_needed: self.state.server.is_some() })
    }
}

impl CommandSealer {
    /// The seal of the channel with this id and destination; `None` if the channel runs no command.
    pub(super) fn seal(&self, id: Uuid, destination: &Destination) -> Option<String> {
        let parts = parts(&id, destination)?;
        Some(HEXLOWER.encode(&self.key.own_tag(PURPOSE, &parts)))
    }

    /// Whether the channel may be used: it runs no command, its command needs no seal, or its seal was made on this
    /// device.
    pub(super) fn permits(&self, stored: &StoredChannel) -> bool {
        let Some(parts) = parts(&stored.id, &stored.channel.destination) else { return true };
        let tag = stored.seal.as_ref().and_then(|seal| HEXLOWER.decode(seal.as_bytes()).ok());
        !self.is_needed || tag.is_some_and(|tag| self.key.is_own_tag(PURPOSE, &parts, &tag))
    }
}

/// The parts of a command channel that the seal covers; `None` if the channel runs no command.
fn parts<'a>(id: &'a Uuid, destination: &'a Destination) -> Option<Vec<&'a [u8]>> {
    let Destination::Command { program, args } = destination else { return None };
    let args = args.iter().map(String::as_bytes);
    Some([id.as_bytes().as_slice(), program.as_bytes()].into_iter().chain(args).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::channel::NewChannel;
    use crate::app::each_engine::devices;
    use crate::app::{ApplyMode, DeviceConfiguration};

    fn command(args: &[&str]) -> NewChannel {
        let json = serde_json::json!({ "name": "run", "kind": "command", "program": "/bin/true", "args": args });
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn on_a_server_only_a_command_that_was_confirmed_here_is_run() {
        for (_folder, device) in devices() {
            let is_on_server = device.state.server.is_some();
            let store = device.store().await.unwrap();
            let reason = async || {
                let tested = device.test_channel("run").await.unwrap();
                let sent = device.messages(None, 100).await.unwrap().into_iter();
                let mut sent = sent.filter(|sent| sent.message.id == tested.message);
                assert_eq!(sent.next().unwrap().deliveries[0].reason, tested.reason);
                tested.reason
            };
            let stored = device.add_channel(command(&["a"])).await.unwrap();
            assert_eq!(reason().await, None);
            // Rows that another client of the server could write: with other arguments, with another id, without a
            // seal.
            let (channel, secrets) = command(&["b"]).checked().unwrap();
            let (other, none) = (Uuid::now_v7(), StoredChannel { seal: None, ..stored.clone() });
            for forged in
                [StoredChannel { channel, ..stored.clone() }, StoredChannel { id: other, ..stored.clone() }, none]
            {
                for channel in store.channels().await.unwrap() {
                    store.remove_channel(channel).await.unwrap();
                }
                store.add_channel("PP", &forged, &secrets).await.unwrap();
                let reason = reason().await;
                assert_eq!(reason.is_some(), is_on_server, "{forged:?}: {reason:?}");
                assert!(reason.is_none_or(|reason| reason.contains("not confirmed on this device")), "{forged:?}");
            }
            // A configuration file that contains the stored command confirms it, but only if the file may change
            // commands.
            let channels = device.configuration().await.unwrap().channels;
            let file = DeviceConfiguration { channels, ..DeviceConfiguration::default() };
            for (may_change_commands, is_confirmed) in [(false, !is_on_server), (true, true)] {
                let mode = ApplyMode { is_rehearsal: false, may_change_commands };
                device.apply_configuration(file.clone(), mode).await.unwrap();
                assert_eq!(reason().await.is_none(), is_confirmed);
            }
            // With another identity, the seals of the former one are no longer valid.
            device.rotate_identity().unwrap();
            assert_eq!(reason().await.is_some(), is_on_server);
        }
    }
}
