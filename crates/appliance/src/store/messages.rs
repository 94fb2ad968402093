//! Stores the messages about alerts, and the state of their delivery to each channel.

use std::collections::HashMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{StoreChange, in_change, on, rows, without_nul};
use super::{ApplianceStore, StorageError, natural, strange};
use crate::alerts::backoff::LONGEST_WAIT;
use crate::alerts::message::AlertMessage;

/// A delivery that is due, with its message.
#[derive(Clone, Debug, PartialEq)]
pub struct DueDelivery {
    /// The id of the message.
    pub message_id: Uuid,
    /// The message, or why it cannot be read.
    pub message: Result<AlertMessage, String>,
    /// When the message was made.
    pub created_at: Timestamp,
    /// The number of attempts so far.
    pub attempts: u32,
}

/// The outcome of one attempt to deliver a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// When the attempt ended.
    pub at: Timestamp,
    /// When the next attempt is due; absent if there is none.
    pub next_at: Option<Timestamp>,
    /// Why the attempt failed, without secrets; absent if it succeeded.
    pub reason: Option<String>,
}

/// The state of the delivery of a message to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryOutcome {
    /// The message is not delivered yet. An attempt is due, now or later.
    Due,
    /// The message was delivered.
    Delivered,
    /// The message was not delivered, and no further attempt is made.
    GivenUp,
}

/// The delivery of a message to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageDelivery {
    /// The name of the channel when the message was made.
    pub channel: String,
    /// The state of the delivery.
    pub outcome: DeliveryOutcome,
    /// The number of attempts so far.
    pub attempts: u32,
    /// When the next attempt is due; absent once the message was delivered or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
    /// When the message was delivered or its delivery was given up; absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
    /// Why the last attempt to deliver the message failed, or why the delivery was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message with its deliveries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredMessage {
    /// The message itself.
    #[serde(flatten)]
    pub message: AlertMessage,
    /// The deliveries of the message, one for each channel.
    pub deliveries: Vec<MessageDelivery>,
}

impl DeliveryOutcome {
    /// All outcomes of a delivery.
    pub const ALL: [Self; 3] = [Self::Due, Self::Delivered, Self::GivenUp];

    /// The name of the outcome in the store and in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }
}

impl AttemptRecord {
    /// The outcome of the delivery after this attempt.
    pub fn outcome(&self) -> DeliveryOutcome {
        match (&self.reason, self.next_at) {
            (None, _) => DeliveryOutcome::Delivered,
            (Some(_), Some(_)) => DeliveryOutcome::Due,
            (Some(_), None) => DeliveryOutcome::GivenUp,
        }
    }
}

/// The stored columns of a due delivery.
#[derive(sqlx::FromRow)]
struct DueRow {
    message_id: String,
    content: String,
    created_at_us: i64,
    attempts: i64,
}

/// The stored columns of a delivery.
#[derive(sqlx::FromRow)]
struct DeliveryRow {
    message_id: String,
    channel_name: String,
    outcome: String,
    attempts: i64,
    next_at_us: i64,
    decided_at_us: Option<i64>,
    reason: Option<String>,
}

impl DeliveryRow {
    fn read(self) -> Result<MessageDelivery, sqlx::Error> {
        let known = DeliveryOutcome::ALL.into_iter().find(|known| known.as_str() == self.outcome);
        let outcome = known.ok_or_else(|| sqlx::Error::Decode("the stored outcome of a delivery is unknown".into()))?;
        Ok(MessageDelivery {
            channel: self.channel_name,
            outcome,
            attempts: count(self.attempts),
            next_at: if outcome == DeliveryOutcome::Due { Some(time(self.next_at_us)?) } else { None },
            decided_at: self.decided_at_us.map(time).transpose()?,
            reason: self.reason,
        })
    }
}

impl ApplianceStore {
    /// Saves a message, and for each of these channels (id and name) a delivery that is due at once.
    pub async fn queue_message(
        &self,
        appliance: &str,
        message: &AlertMessage,
        channels: &[(Uuid, &str)],
    ) -> Result<(), StorageError> {
        self.save_message(appliance, message, channels, None).await
    }

    /// Saves the test message of a channel together with the outcome of its only attempt.
    pub async fn save_test_message(
        &self,
        appliance: &str,
        message: &AlertMessage,
        channel: (Uuid, &str),
        attempt: &AttemptRecord,
    ) -> Result<(), StorageError> {
        self.save_message(appliance, message, &[channel], Some(attempt)).await
    }

    async fn save_message(
        &self,
        appliance: &str,
        message: &AlertMessage,
        channels: &[(Uuid, &str)],
        attempt: Option<&AttemptRecord>,
    ) -> Result<(), StorageError> {
        let fault = || self.fault("saving a message");
        let content = serde_json::to_string(message).map_err(|source| StorageError::Document { source })?;
        let mut work = self.pool.begin().await.map_err(fault())?;
        in_change!(&mut work, |db| sqlx::query(
            "INSERT INTO messages (id, appliance, alert_id, kind, content, created_at_us) \
             VALUES ($1, $2, $3, $4, $5, $6)"
        )
        .bind(message.id.to_string())
        .bind(appliance)
        .bind(message.alert.as_ref().map(|alert| alert.id.to_string()))
        .bind(message.kind.as_str())
        .bind(without_nul(&content))
        .bind(message.at.as_microsecond())
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        for channel in channels {
            add_delivery(&mut work, message, *channel, attempt).await.map_err(fault())?;
        }
        work.commit().await.map_err(fault())
    }

    /// The delivery of the oldest message among the deliveries to `channel` that are due at `now`; `None` if none is
    /// due.
    pub async fn first_due(&self, channel: Uuid, now: Timestamp) -> Result<Option<DueDelivery>, StorageError> {
        let fault = || self.fault("reading the messages that are due");
        // A time further away than the longest wait was computed while the clock was wrong.
        let far = now.checked_add(LONGEST_WAIT).unwrap_or(Timestamp::MAX);
        let found = on!(self.pool, |db| sqlx::query_as::<_, DueRow>(
            "SELECT d.message_id, m.content, m.created_at_us, d.attempts \
             FROM deliveries d JOIN messages m ON m.id = d.message_id \
             WHERE d.outcome = 'due' AND d.channel_id = $1 AND (d.next_at_us <= $2 OR d.next_at_us > $3) \
             ORDER BY m.created_at_us, d.message_id LIMIT 1"
        )
        .bind(channel.to_string())
        .bind(now.as_microsecond())
        .bind(far.as_microsecond())
        .fetch_optional(db)
        .await)
        .map_err(fault())?;
        let read = |row: DueRow| -> Result<DueDelivery, sqlx::Error> {
            Ok(DueDelivery {
                message_id: row.message_id.parse().map_err(strange)?,
                message: serde_json::from_str(&row.content).map_err(|error| error.to_string()),
                created_at: time(row.created_at_us)?,
                attempts: count(row.attempts),
            })
        };
        found.map(read).transpose().map_err(fault())
    }

    /// The ids of the channels to which a message is still to be delivered. Each has the earliest time at which an
    /// attempt is due, which may be in the past.
    pub async fn due_channels(&self) -> Result<Vec<(Uuid, Timestamp)>, StorageError> {
        let fault = || self.fault("reading the messages that are due");
        let found: Vec<(String, i64)> = on!(self.pool, |db| {
            sqlx::query_as(
            "SELECT channel_id, MIN(next_at_us) FROM deliveries WHERE outcome = 'due' GROUP BY channel_id ORDER BY 2"
        )
        .fetch_all(db)
        .await
        })
        .map_err(fault())?;
        let read =
            |(id, at): (String, i64)| -> Result<_, sqlx::Error> { Ok((id.parse().map_err(strange)?, time(at)?)) };
        found.into_iter().map(read).collect::<Result<_, _>>().map_err(fault())
    }

    /// Records an attempt. A delivery that was made or given up meanwhile is not changed.
    pub async fn record_attempt(
        &self,
        message: Uuid,
        channel: Uuid,
        attempt: &AttemptRecord,
    ) -> Result<(), StorageError> {
        let outcome = attempt.outcome();
        let decided_at = (outcome != DeliveryOutcome::Due).then_some(attempt.at);
        on!(self.pool, |db| sqlx::query(
            "UPDATE deliveries SET outcome = $3, attempts = attempts + 1, next_at_us = $4, decided_at_us = $5, \
             reason = $6 WHERE message_id = $1 AND channel_id = $2 AND outcome = 'due'"
        )
        .bind(message.to_string())
        .bind(channel.to_string())
        .bind(outcome.as_str())
        .bind(attempt.next_at.unwrap_or(attempt.at).as_microsecond())
        .bind(decided_at.map(Timestamp::as_microsecond))
        .bind(attempt.reason.as_deref().map(without_nul))
        .execute(db)
        .await
        .map(rows))
        .map_err(self.fault("saving the outcome of a delivery"))?;
        Ok(())
    }

    /// Gives up the deliveries to channels that were removed or are disabled. Returns the number of these deliveries.
    pub async fn give_up_without_channel(&self, now: Timestamp) -> Result<u64, StorageError> {
        on!(self.pool, |db| sqlx::query(
            "UPDATE deliveries SET outcome = 'given_up', decided_at_us = $1, \
             reason = 'the channel was removed or is disabled' \
             WHERE outcome = 'due' AND channel_id NOT IN (SELECT id FROM channels WHERE enabled)"
        )
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows))
        .map_err(self.fault("saving the outcome of a delivery"))
    }

    /// The messages that were made before `before` (`None`: at any time), newest first, at most `limit`.
    pub async fn messages(&self, before: Option<Timestamp>, limit: u32) -> Result<Vec<StoredMessage>, StorageError> {
        let fault = || self.fault("reading the messages");
        let before = before.map_or(i64::MAX, Timestamp::as_microsecond);
        let found: Vec<(String, String, i64)> = on!(self.pool, |db| sqlx::query_as(
            "SELECT id, content, created_at_us FROM messages WHERE created_at_us < $1 \
             ORDER BY created_at_us DESC, id DESC LIMIT $2"
        )
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        let (Some((.., newest)), Some((.., oldest))) = (found.first(), found.last()) else { return Ok(Vec::new()) };
        let deliveries = on!(self.pool, |db| sqlx::query_as::<_, DeliveryRow>(
            "SELECT d.message_id, d.channel_name, d.outcome, d.attempts, d.next_at_us, d.decided_at_us, d.reason \
             FROM deliveries d JOIN messages m ON m.id = d.message_id \
             WHERE m.created_at_us BETWEEN $1 AND $2 ORDER BY lower(d.channel_name)"
        )
        .bind(oldest)
        .bind(newest)
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        let mut of_message = HashMap::<String, Vec<MessageDelivery>>::new();
        for row in deliveries {
            let id = row.message_id.clone();
            of_message.entry(id).or_default().push(row.read().map_err(fault())?);
        }
        let read = |(id, content, _): (String, String, i64)| -> Result<_, sqlx::Error> {
            let message = serde_json::from_str(&content).map_err(strange)?;
            Ok(StoredMessage { message, deliveries: of_message.remove(&id).unwrap_or_default() })
        };
        found.into_iter().map(read).collect::<Result<_, _>>().map_err(fault())
    }

    /// Deletes the messages that were made before `before` and have no delivery that is due.
    pub(super) async fn prune_messages(&self, before: Timestamp) -> Result<(), StorageError> {
        let fault = || self.fault("deleting old messages");
        let mut work = self.pool.begin().await.map_err(fault())?;
        for statement in [
            "DELETE FROM deliveries WHERE outcome <> 'due' \
             AND message_id IN (SELECT id FROM messages WHERE created_at_us < $1)",
            "DELETE FROM messages WHERE created_at_us < $1 \
             AND NOT EXISTS (SELECT message_id FROM deliveries WHERE message_id = messages.id)",
        ] {
            in_change!(&mut work, |db| sqlx::query(statement)
                .bind(before.as_microsecond())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        work.commit().await.map_err(fault())
    }
}

async fn add_delivery(
    work: &mut StoreChange,
    message: &AlertMessage,
    (channel, name): (Uuid, &str),
    attempt: Option<&AttemptRecord>,
) -> Result<(), sqlx::Error> {
    let outcome = attempt.map_or(DeliveryOutcome::Due, AttemptRecord::outcome);
    in_change!(work, |db| sqlx::query(
        "INSERT INTO deliveries (message_id, channel_id, channel_name, outcome, attempts, next_at_us, decided_at_us, \
         reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    )
    .bind(message.id.to_string())
    .bind(channel.to_string())
    .bind(name)
    .bind(outcome.as_str())
    .bind(i64::from(attempt.is_some()))
    .bind(message.at.as_microsecond())
    .bind(attempt.map(|attempt| attempt.at.as_microsecond()))
    .bind(attempt.and_then(|attempt| attempt.reason.as_deref().map(without_nul)))
    .execute(db)
    .await
    .map(rows))?;
    Ok(())
}

fn time(us: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(us).map_err(strange)
}

fn count(number: i64) -> u32 {
    u32::try_from(natural(number)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::alerts::channel::{Channel, ChannelSecrets, Destination};
    use crate::alerts::message::{MessageKind, Urgency};
    use crate::store::StoredChannel;
    use crate::store::each_engine::on_each_engine;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn message(second: i64) -> AlertMessage {
        AlertMessage {
            id: Uuid::now_v7(),
            kind: MessageKind::Test,
            at: at(second),
            title: "A test".to_owned(),
            text: "It is \"one\".\nAnd a second line.".to_owned(),
            urgency: Urgency::Low,
            alert: None,
        }
    }

    async fn channel(store: &ApplianceStore, name: &str) -> StoredChannel {
        let destination = Destination::Command { program: "/bin/true".to_owned(), args: Vec::new() };
        let channel = Channel { name: name.to_owned(), destination };
        let secrets = ChannelSecrets::default();
        let stored = StoredChannel::new(channel, &secrets, at(0));
        store.add_channel("PP", &stored, &secrets).await.unwrap();
        stored
    }

    #[tokio::test]
    async fn a_delivery_is_due_until_it_is_decided() {
        on_each_engine(async |store| {
            let (a, b) = (channel(&store, "a").await, channel(&store, "b").await);
            assert_eq!(store.due_channels().await.unwrap(), []);
            assert_eq!(store.first_due(a.id, at(9)).await.unwrap(), None);
            let (first, second) = (message(1), message(2));
            store.queue_message("PP", &second, &[(a.id, "a")]).await.unwrap();
            store.queue_message("PP", &first, &[(a.id, "a"), (b.id, "b")]).await.unwrap();
            let due = store.due_channels().await.unwrap();
            assert!(due.len() == 2 && due.contains(&(a.id, at(1))) && due.contains(&(b.id, at(1))), "{due:?}");
            assert_eq!(store.first_due(a.id, at(0)).await.unwrap(), None, "not yet");
            let due = store.first_due(a.id, at(9)).await.unwrap().unwrap();
            assert_eq!((due.message.as_ref(), due.attempts, due.created_at), (Ok(&first), 0, at(1)), "the oldest one");
            // This delivery failed and is repeated later, so the other message goes first.
            let failed = AttemptRecord { at: at(9), next_at: Some(at(20)), reason: Some("no\0pe".to_owned()) };
            store.record_attempt(first.id, a.id, &failed).await.unwrap();
            assert_eq!(store.first_due(a.id, at(9)).await.unwrap().unwrap().message_id, second.id);
            let delivered = AttemptRecord { at: at(10), next_at: None, reason: None };
            store.record_attempt(second.id, a.id, &delivered).await.unwrap();
            assert_eq!(store.first_due(a.id, at(19)).await.unwrap(), None);
            assert_eq!(store.first_due(a.id, at(20)).await.unwrap().unwrap().attempts, 1);
            let gone = AttemptRecord { at: at(21), next_at: None, reason: Some("404".to_owned()) };
            store.record_attempt(first.id, a.id, &gone).await.unwrap();
            store.record_attempt(first.id, a.id, &delivered).await.unwrap();
            let listed = store.messages(None, 10).await.unwrap();
            assert_eq!(listed.iter().map(|sent| sent.message.id).collect::<Vec<_>>(), [second.id, first.id]);
            let outcomes = listed[1].deliveries.iter().map(|delivery| {
                (delivery.channel.as_str(), delivery.outcome, delivery.attempts, delivery.reason.as_deref())
            });
            let expected = [("a", DeliveryOutcome::GivenUp, 2, Some("404")), ("b", DeliveryOutcome::Due, 0, None)];
            assert_eq!(outcomes.collect::<Vec<_>>(), expected);
            assert_eq!(listed[0].deliveries[0].decided_at, Some(at(10)));
            assert_eq!(store.messages(Some(at(2)), 10).await.unwrap().len(), 1);
            assert_eq!(store.messages(None, 1).await.unwrap().len(), 1);
        })
        .await;
    }

    #[tokio::test]
    async fn a_time_that_a_wrong_clock_computed_does_not_delay_a_message() {
        on_each_engine(async |store| {
            let a = channel(&store, "a").await;
            let message = message(100 * 86_400);
            store.queue_message("PP", &message, &[(a.id, "a")]).await.unwrap();
            assert!(store.first_due(a.id, at(0)).await.unwrap().is_some());
            let soon = AttemptRecord { at: at(0), next_at: Some(at(3600)), reason: Some("busy".to_owned()) };
            store.record_attempt(message.id, a.id, &soon).await.unwrap();
            assert_eq!(store.first_due(a.id, at(0)).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn without_its_channel_a_delivery_is_given_up() {
        on_each_engine(async |store| {
            let (a, b) = (channel(&store, "a").await, channel(&store, "b").await);
            let message = message(1);
            store.queue_message("PP", &message, &[(a.id, "a"), (b.id, "b")]).await.unwrap();
            assert_eq!(store.give_up_without_channel(at(2)).await.unwrap(), 0);
            store.remove_channel(a).await.unwrap();
            store.enable_channel(b, false).await.unwrap();
            assert_eq!(store.give_up_without_channel(at(2)).await.unwrap(), 2);
            assert_eq!(store.due_channels().await.unwrap(), []);
            let listed = store.messages(None, 10).await.unwrap();
            assert!(listed[0].deliveries.iter().all(|delivery| delivery.outcome == DeliveryOutcome::GivenUp));
        })
        .await;
    }

    #[tokio::test]
    async fn a_test_is_stored_with_its_outcome_and_old_messages_are_deleted_unless_they_are_due() {
        on_each_engine(async |store| {
            let a = channel(&store, "a").await;
            let failed = AttemptRecord { at: at(5), next_at: None, reason: Some("refused".to_owned()) };
            store.save_test_message("PP", &message(4), (a.id, "a"), &failed).await.unwrap();
            let listed = store.messages(None, 10).await.unwrap();
            let delivery = &listed[0].deliveries[0];
            assert_eq!((delivery.outcome, delivery.attempts), (DeliveryOutcome::GivenUp, 1));
            assert_eq!(store.first_due(a.id, at(9)).await.unwrap(), None, "a test is not repeated");
            let due = message(1);
            store.queue_message("PP", &due, &[(a.id, "a")]).await.unwrap();
            store.prune_messages(at(3)).await.unwrap();
            assert_eq!(store.messages(None, 10).await.unwrap().len(), 2);
            store.prune_messages(at(4).checked_add(Duration::from_secs(1)).unwrap()).await.unwrap();
            let left = store.messages(None, 10).await.unwrap();
            assert_eq!(left.iter().map(|sent| sent.message.id).collect::<Vec<_>>(), [due.id]);
        })
        .await;
    }
}
