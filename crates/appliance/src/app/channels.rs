//! The channels of this appliance: add, list, remove, enable, disable, test; and the messages that are sent to them.
//! Reads the clock to date channels and messages.

#![expect(clippy::disallowed_methods, reason = "the shell that dates channels and tests")]

use std::path::Path;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Appliance;
use super::delivery::{self, AttemptLimits, checked_program};
use crate::alerts::channel::{Destination, NewChannel};
use crate::alerts::message::{AlertMessage, MessageKind, Urgency};
use crate::error::ApplianceError;
use crate::store::{AttemptRecord, StoredChannel, StoredMessage};

/// How the test of a channel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelTest {
    /// The name of the tested channel.
    pub channel: String,
    /// The id of the test message.
    pub message: Uuid,
    /// Whether the other end of the channel accepted the message.
    pub delivered: bool,
    /// Why the message was not delivered; absent if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Appliance {
    /// Saves a new channel with its secrets. The channel is enabled.
    pub async fn add_channel(&self, new: NewChannel) -> Result<StoredChannel, ApplianceError> {
        let (channel, secrets) = new.checked()?;
        if let Destination::Command { program, .. } = &channel.destination {
            checked_program(Path::new(program))?;
        }
        let own = self.endpoint_id()?.to_string();
        let mut stored = StoredChannel::new(channel, &secrets, Timestamp::now());
        stored.seal = self.command_sealer()?.seal(stored.id, &stored.channel.destination);
        self.store().await?.add_channel(&own, &stored, &secrets).await?;
        Ok(stored)
    }

    /// All channels without their secrets, sorted by name.
    pub async fn channels(&self) -> Result<Vec<StoredChannel>, ApplianceError> {
        Ok(self.reading_store().await?.channels().await?)
    }

    /// The channel with this name, without its secrets.
    pub async fn channel(&self, name: &str) -> Result<StoredChannel, ApplianceError> {
        Ok(self.reading_store().await?.channel(name).await?.0)
    }

    /// Removes this channel. Messages that still wait for delivery to the channel are given up.
    pub async fn remove_channel(&self, stored: StoredChannel) -> Result<StoredChannel, ApplianceError> {
        let store = self.store().await?;
        let removed = store.remove_channel(stored).await?;
        store.give_up_without_channel(Timestamp::now()).await?;
        Ok(removed)
    }

    /// Enables or disables this channel. Messages that still wait for delivery to a disabled channel are given up.
    pub async fn enable_channel(&self, stored: StoredChannel, enabled: bool) -> Result<StoredChannel, ApplianceError> {
        let store = self.store().await?;
        let stored = store.enable_channel(stored, enabled).await?;
        store.give_up_without_channel(Timestamp::now()).await?;
        Ok(stored)
    }

    /// Sends one test message to the channel with this name, even if the channel is disabled. A failed delivery is
    /// returned as a [`ChannelTest`]; only a failure of this device is an error.
    pub async fn test_channel(&self, name: &str) -> Result<ChannelTest, ApplianceError> {
        let store = self.store().await?;
        let own = self.endpoint_id()?.to_string();
        let (stored, secrets) = store.channel(name).await?;
        let name = stored.channel.name.clone();
        let message = test_message(&name, Timestamp::now());
        let sealer = self.command_sealer()?;
        let delivered = delivery::deliver((&stored, &secrets), &sealer, &message, AttemptLimits::default()).await;
        let reason = delivered.err().map(|fault| fault.to_string());
        let attempt = AttemptRecord { at: Timestamp::now(), next_at: None, reason: reason.clone() };
        store.save_test_message(&own, &message, (stored.id, &name), &attempt).await?;
        Ok(ChannelTest { channel: name, message: message.id, delivered: reason.is_none(), reason })
    }

    /// At most `limit` messages with the state of their deliveries, newest first. If `before` is set, only messages
    /// that were made before that time.
    pub async fn messages(&self, before: Option<Timestamp>, limit: u32) -> Result<Vec<StoredMessage>, ApplianceError> {
        Ok(self.reading_store().await?.messages(before, limit).await?)
    }
}

fn test_message(channel: &str, at: Timestamp) -> AlertMessage {
    AlertMessage {
        id: Uuid::now_v7(),
        kind: MessageKind::Test,
        // Rounds to the precision of the database.
        at: Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at),
        title: format!("PacketParamedic: test of {channel}"),
        text: "This is a test. The messages of alerts arrive here.".to_owned(),
        urgency: Urgency::Low,
        alert: None,
    }
}
