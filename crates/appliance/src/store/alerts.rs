//! Stores the alerts of this appliance with their texts. When an alert opens or closes, one transaction saves the
//! alert, the message about it, and the deliveries of that message.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{StoreChange, in_change, on, rows};
use super::rules::StoredRule;
use super::{ApplianceStore, PageCursor, StorageError, strange};
use crate::alerts::AlertFinding;
use crate::alerts::message::AlertMessage;

/// The stored reason why the message about the opening of an alert was not sent.
const CLOSED_IN_TIME: &str = "the alert closed before the quiet hours ended";

/// An alert as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredAlert {
    /// The id of the alert, a UUIDv7.
    pub id: Uuid,
    /// The id of the alert's rule, which may have been removed.
    pub rule_id: Uuid,
    /// The name of the rule when the alert opened.
    pub rule: String,
    /// The target or the monitor that the alert concerns.
    pub subject: String,
    /// When the alert opened.
    pub opened_at: Timestamp,
    /// When the alert closed; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// What was found when the alert opened.
    pub opening: AlertRecord,
    /// What was found when the alert closed; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<AlertRecord>,
}

/// What was found when an alert opened or closed, with the text of the message about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertRecord {
    /// The title of the message, in one line.
    pub title: String,
    /// The text of the message, with one sentence in each line.
    pub text: String,
    /// The numbers behind the message.
    pub finding: AlertFinding,
}

/// A message to save, with its channels and the earliest time at which it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    /// The message itself.
    pub message: AlertMessage,
    /// The earliest time at which the message is sent.
    pub not_before: Timestamp,
    /// The names of the channels that carry the message.
    pub channels: Vec<String>,
}

/// A change of an alert, with the message about it.
#[derive(Clone, Debug, PartialEq)]
pub enum AlertWrite {
    /// An alert opens.
    Open(Box<StoredAlert>, Box<NewMessage>),
    /// An alert closes.
    Close {
        /// The id of the alert.
        id: Uuid,
        /// When the alert closes.
        at: Timestamp,
        /// What was found when the alert closed, with the text of the message.
        closing: Box<AlertRecord>,
        /// The message about the closing.
        say: Box<NewMessage>,
    },
}

/// The change of a rule that is saved in one transaction with changes of the rule's alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleWrite {
    /// All measurements up to this time have been judged.
    JudgedUntil(Timestamp),
    /// The rule is enabled, and judges measurements from this time on.
    Enable(Timestamp),
    /// The rule is disabled.
    Disable,
    /// The rule is removed.
    Remove,
}

/// The stored columns of an alert.
type AlertRow = (String, String, String, String, i64, Option<i64>, String, Option<String>);

/// The columns of an [`AlertRow`].
const COLUMNS: &str = "id, rule_id, rule_name, subject, opened_at_us, closed_at_us, opening, closing";

impl ApplianceStore {
    /// Changes a rule and its alerts, all or nothing. Returns `false` and changes nothing if the rule was removed, or
    /// is not in the state that the change needs: enabled for [`RuleWrite::JudgedUntil`], disabled for
    /// [`RuleWrite::Enable`]. `appliance` is the Endpoint ID of this device.
    pub async fn change_rule(
        &self,
        appliance: &str,
        rule: &StoredRule,
        change: RuleWrite,
        writes: &[AlertWrite],
        now: Timestamp,
    ) -> Result<bool, StorageError> {
        let fault = || self.fault("saving the alerts");
        let mut work = self.pool.begin().await.map_err(fault())?;
        if !write_rule(&mut work, rule.id, change).await.map_err(fault())? {
            work.rollback().await.map_err(fault())?;
            return Ok(false);
        }
        write_alerts(&mut work, appliance, writes, now).await.map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(true)
    }

    /// A page of the alerts, newest first: at most `limit` alerts after the position `after` in the list. If
    /// `only_open`, the list has only open alerts.
    pub async fn alerts(
        &self,
        only_open: bool,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<StoredAlert>, StorageError> {
        let (at, id) = PageCursor::bounds(after);
        let is_open = if only_open { "closed_at_us IS NULL AND" } else { "" };
        self.alert_rows(
            format!(
                "SELECT {COLUMNS} FROM alerts WHERE {is_open} opened_at_us <= $1 AND (opened_at_us < $1 OR id < $2) \
                 ORDER BY opened_at_us DESC, id DESC LIMIT $3"
            ),
            (at, id, i64::from(limit)),
        )
        .await
    }

    /// The alerts that were open at some time from `since` to `until`, newest first, at most `limit`.
    pub async fn alerts_between(
        &self,
        since: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<StoredAlert>, StorageError> {
        self.alert_rows(
            format!(
                "SELECT {COLUMNS} FROM alerts WHERE opened_at_us < $1 AND (closed_at_us IS NULL \
                 OR closed_at_us >= CAST($2 AS BIGINT)) ORDER BY opened_at_us DESC, id DESC LIMIT $3"
            ),
            (until.as_microsecond(), since.as_microsecond().to_string(), i64::from(limit)),
        )
        .await
    }

    /// For each subject of a rule, the time at which its last alert closed.
    pub async fn last_closings(&self, rule: Uuid) -> Result<BTreeMap<String, Timestamp>, StorageError> {
        let fault = || self.fault("reading the alerts");
        let rows = on!(self.pool, |db| sqlx::query_as::<_, (String, i64)>(
            "SELECT subject, MAX(closed_at_us) FROM alerts WHERE rule_id = $1 AND closed_at_us IS NOT NULL \
             GROUP BY subject",
        )
        .bind(rule.to_string())
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        rows.into_iter().map(|(subject, at)| Ok((subject, time(at).map_err(fault())?))).collect()
    }

    async fn alert_rows(
        &self,
        sql: String,
        (first, second, limit): (i64, String, i64),
    ) -> Result<Vec<StoredAlert>, StorageError> {
        let fault = || self.fault("reading the alerts");
        // The SQL text is built from constants alone.
        let rows = on!(self.pool, |db| sqlx::query_as::<_, AlertRow>(sqlx::AssertSqlSafe(sql))
            .bind(first)
            .bind(second)
            .bind(limit)
            .fetch_all(db)
            .await)
        .map_err(fault())?;
        rows.into_iter().map(|row| stored(row).map_err(fault())).collect()
    }
}

/// Changes a rule. Returns whether the rule exists in the state that the change needs.
async fn write_rule(work: &mut StoreChange, id: Uuid, change: RuleWrite) -> Result<bool, sqlx::Error> {
    let (sql, until) = match change {
        RuleWrite::JudgedUntil(until) => {
            ("UPDATE rules SET judged_until_us = $2 WHERE id = $1 AND enabled", Some(until))
        }
        RuleWrite::Enable(now) => {
            ("UPDATE rules SET enabled = TRUE, judged_until_us = $2 WHERE id = $1 AND NOT enabled", Some(now))
        }
        RuleWrite::Disable => ("UPDATE rules SET enabled = FALSE WHERE id = $1", None),
        RuleWrite::Remove => ("DELETE FROM rules WHERE id = $1", None),
    };
    let changed = match until {
        Some(until) => {
            in_change!(work, |db| sqlx::query(sql)
                .bind(id.to_string())
                .bind(until.as_microsecond())
                .execute(db)
                .await
                .map(rows))
        }
        None => in_change!(work, |db| sqlx::query(sql).bind(id.to_string()).execute(db).await.map(rows)),
    };
    Ok(changed? > 0)
}

/// Saves openings and closings of alerts, with their messages.
pub(super) async fn write_alerts(
    work: &mut StoreChange,
    appliance: &str,
    writes: &[AlertWrite],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let json = |record: &AlertRecord| serde_json::to_string(record).map_err(strange);
    for write in writes {
        match write {
            AlertWrite::Open(alert, say) => {
                if insert_alert(work, appliance, alert, json(&alert.opening)?).await? {
                    say_it(work, appliance, alert.id, say).await?;
                }
            }
            AlertWrite::Close { id, at, closing, say } => {
                if close_alert(work, *id, *at, json(closing)?).await? && !drop_held_back(work, *id, now).await? {
                    say_it(work, appliance, *id, say).await?;
                }
            }
        }
    }
    Ok(())
}

/// Saves an open alert. If the rule already has an open alert for the same subject, saves nothing and returns `false`.
async fn insert_alert(
    work: &mut StoreChange,
    appliance: &str,
    alert: &StoredAlert,
    opening: String,
) -> Result<bool, sqlx::Error> {
    let inserted = in_change!(work, |db| sqlx::query(
        "INSERT INTO alerts (id, appliance, rule_id, rule_name, subject, opened_at_us, opening) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(alert.id.to_string())
    .bind(appliance)
    .bind(alert.rule_id.to_string())
    .bind(&alert.rule)
    .bind(&alert.subject)
    .bind(alert.opened_at.as_microsecond())
    .bind(opening)
    .execute(db)
    .await
    .map(rows))?;
    Ok(inserted > 0)
}

/// Closes an alert. Returns whether the alert was open.
async fn close_alert(work: &mut StoreChange, id: Uuid, at: Timestamp, closing: String) -> Result<bool, sqlx::Error> {
    let closed = in_change!(work, |db| sqlx::query(
        "UPDATE alerts SET closed_at_us = $2, closing = $3 WHERE id = $1 AND closed_at_us IS NULL",
    )
    .bind(id.to_string())
    .bind(at.as_microsecond())
    .bind(closing)
    .execute(db)
    .await
    .map(rows))?;
    Ok(closed > 0)
}

/// Gives up the message about the opening of an alert if quiet hours still hold this message back. Returns whether it
/// gave up the message.
async fn drop_held_back(work: &mut StoreChange, alert: Uuid, now: Timestamp) -> Result<bool, sqlx::Error> {
    let dropped = in_change!(work, |db| sqlx::query(
        "UPDATE deliveries SET outcome = 'given_up', decided_at_us = $2, reason = $3 WHERE outcome = 'due' \
         AND attempts = 0 AND next_at_us > $2 AND message_id IN (SELECT id FROM messages WHERE alert_id = $1 \
         AND kind = 'opened')",
    )
    .bind(alert.to_string())
    .bind(now.as_microsecond())
    .bind(CLOSED_IN_TIME)
    .execute(db)
    .await
    .map(rows))?;
    Ok(dropped > 0)
}

/// Saves the message about an alert. Adds a delivery for each channel of the message that exists and is enabled.
async fn say_it(work: &mut StoreChange, appliance: &str, alert: Uuid, say: &NewMessage) -> Result<(), sqlx::Error> {
    let NewMessage { message, not_before, channels } = say;
    let content = serde_json::to_string(message).map_err(strange)?;
    in_change!(work, |db| sqlx::query(
        "INSERT INTO messages (id, appliance, alert_id, kind, content, created_at_us) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(message.id.to_string())
    .bind(appliance)
    .bind(alert.to_string())
    .bind(message.kind.as_str())
    .bind(content)
    .bind(message.at.as_microsecond())
    .execute(db)
    .await
    .map(rows))?;
    for channel in channels {
        let found = in_change!(work, |db| sqlx::query(
            "INSERT INTO deliveries (message_id, channel_id, channel_name, outcome, attempts, next_at_us) \
             SELECT $1, id, name, 'due', 0, $3 FROM channels WHERE lower(name) = $2 AND enabled",
        )
        .bind(message.id.to_string())
        .bind(channel.to_ascii_lowercase())
        .bind(not_before.as_microsecond())
        .execute(db)
        .await
        .map(rows))?;
        if found == 0 {
            tracing::warn!(channel, "a rule names a channel that does not exist or is disabled");
        }
    }
    Ok(())
}

fn stored(row: AlertRow) -> Result<StoredAlert, sqlx::Error> {
    let (id, rule_id, rule, subject, opened_at, closed_at, opening, closing) = row;
    Ok(StoredAlert {
        id: id.parse().map_err(strange)?,
        rule_id: rule_id.parse().map_err(strange)?,
        rule,
        subject,
        opened_at: time(opened_at)?,
        closed_at: closed_at.map(time).transpose()?,
        opening: serde_json::from_str(&opening).map_err(strange)?,
        closing: closing.map(|text| serde_json::from_str(&text)).transpose().map_err(strange)?,
    })
}

fn time(us: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(us).map_err(strange)
}

#[cfg(test)]
mod tests {
    use super::super::each_engine::on_each_engine;
    use super::*;
    use crate::alerts::message::{MessageKind, Urgency};
    use crate::alerts::{AlertLimit, AlertMetric, AlertRule};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_769_860_800 + minute * 60).unwrap()
    }

    fn record(title: &str) -> AlertRecord {
        let limit = Some(AlertLimit::Above(60.1));
        let finding = AlertFinding { since: at(0), ..AlertFinding::example(AlertMetric::Outage, limit, at(1)) };
        AlertRecord { title: title.to_owned(), text: "text".to_owned(), finding }
    }

    fn say(kind: MessageKind, minute: i64, not_before: i64) -> Box<NewMessage> {
        let (title, text) = (kind.as_str().to_owned(), String::new());
        let message =
            AlertMessage { id: Uuid::now_v7(), kind, at: at(minute), title, text, urgency: Urgency::Low, alert: None };
        let channels = vec!["PHONE".to_owned(), "gone".to_owned(), "off".to_owned()];
        Box::new(NewMessage { message, not_before: at(not_before), channels })
    }

    fn open(rule: &StoredRule, subject: &str, minute: i64, not_before: i64) -> (Uuid, AlertWrite) {
        let id = Uuid::now_v7();
        let (rule_id, rule) = (rule.id, rule.rule.name.clone());
        let (opened_at, opening) = (at(minute), record("opened"));
        let subject = subject.to_owned();
        let alert = StoredAlert { id, rule_id, rule, subject, opened_at, closed_at: None, opening, closing: None };
        (id, AlertWrite::Open(Box::new(alert), say(MessageKind::Opened, minute, not_before)))
    }

    fn close(id: Uuid, minute: i64) -> AlertWrite {
        let closing = Box::new(record("closed"));
        AlertWrite::Close { id, at: at(minute), closing, say: say(MessageKind::Closed, minute, minute) }
    }

    async fn prepared(store: &ApplianceStore) -> StoredRule {
        let rule = AlertRule::new("r", AlertMetric::Outage, Some(AlertLimit::Above(60.0)), "UTC".parse().unwrap());
        for (id, enabled) in [("phone", true), ("off", false)] {
            on!(store.pool, |db| sqlx::query(
                "INSERT INTO channels (id, appliance, name, definition, secrets, enabled, from_file, added_at_us) \
                 VALUES ($1, 'PP', $1, '{}', '{}', $2, FALSE, 0)",
            )
            .bind(id)
            .bind(enabled)
            .execute(db)
            .await
            .map(rows))
            .unwrap();
        }
        store.add_rule("PP", &rule, at(0)).await.unwrap()
    }

    /// The stored deliveries. Each has the kind of the message, the name of the channel, the outcome, and the minute of
    /// the next attempt.
    async fn deliveries(store: &ApplianceStore) -> Vec<(String, String, String, i64)> {
        let rows = on!(store.pool, |db| {
            sqlx::query_as::<_, (String, String, String, i64)>(
            "SELECT kind, channel_name, outcome, next_at_us FROM messages JOIN deliveries ON message_id = messages.id \
             ORDER BY messages.id",
        )
        .fetch_all(db)
        .await
        })
        .unwrap();
        let minutes = |us: i64| (us - at(0).as_microsecond()) / 60_000_000;
        rows.into_iter().map(|(kind, channel, outcome, next)| (kind, channel, outcome, minutes(next))).collect()
    }

    fn delivery(kind: &str, outcome: &str, minute: i64) -> (String, String, String, i64) {
        (kind.to_owned(), "phone".to_owned(), outcome.to_owned(), minute)
    }

    #[tokio::test]
    async fn an_alert_opens_once_and_closes_once_with_a_message_for_each_channel_that_is_there() {
        on_each_engine(async |store| {
            let rule = prepared(&store).await;
            let judged = |minute| RuleWrite::JudgedUntil(at(minute));
            let (id, opening) = open(&rule, "line", 1, 1);
            let (_, again) = open(&rule, "line", 2, 2);
            let (_, other) = open(&rule, "attic", 3, 3);
            assert!(store.change_rule("PP", &rule, judged(3), &[opening, again, other], at(3)).await.unwrap());
            assert_eq!(store.rules().await.unwrap()[0].judged_until, at(3));
            let all = store.alerts(true, None, 10).await.unwrap();
            let subjects = all.iter().map(|alert| alert.subject.as_str()).collect::<Vec<_>>();
            assert_eq!((subjects, &all[1].opening), (vec!["attic", "line"], &record("opened")));
            for minute in [9, 10] {
                let writes = [close(id, minute)];
                assert!(store.change_rule("PP", &rule, judged(minute), &writes, at(minute)).await.unwrap());
            }
            assert_eq!(
                deliveries(&store).await,
                [delivery("opened", "due", 1), delivery("opened", "due", 3), delivery("closed", "due", 9)]
            );
            assert_eq!(store.alerts(true, None, 10).await.unwrap().len(), 1);
            let all = store.alerts(false, None, 10).await.unwrap();
            assert_eq!((all[1].closed_at, &all[1].closing), (Some(at(9)), &Some(record("closed"))));
            let after = PageCursor { at: all[0].opened_at, id: all[0].id };
            assert_eq!(store.alerts(false, Some(after), 10).await.unwrap(), all[1..]);
            assert_eq!(store.last_closings(rule.id).await.unwrap(), BTreeMap::from([("line".to_owned(), at(9))]));
            let between = async |from, to| store.alerts_between(at(from), at(to), 10).await.unwrap().len();
            assert_eq!((between(0, 1).await, between(0, 2).await, between(10, 20).await), (0, 1, 1));
            // The same alert can open again.
            let (_, later) = open(&rule, "line", 20, 20);
            store.change_rule("PP", &rule, judged(20), &[later], at(20)).await.unwrap();
            assert_eq!(store.alerts(true, None, 10).await.unwrap().len(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn what_opens_and_closes_within_quiet_hours_is_not_said() {
        on_each_engine(async |store| {
            let rule = prepared(&store).await;
            let judged = |minute| RuleWrite::JudgedUntil(at(minute));
            // The message about the opening is held back until minute 60.
            let (id, opening) = open(&rule, "line", 1, 60);
            store.change_rule("PP", &rule, judged(1), &[opening], at(1)).await.unwrap();
            store.change_rule("PP", &rule, judged(30), &[close(id, 30)], at(30)).await.unwrap();
            assert_eq!(deliveries(&store).await, [delivery("opened", "given_up", 60)]);
            // The alert lasts longer than the quiet hours.
            let (id, opening) = open(&rule, "line", 40, 60);
            store.change_rule("PP", &rule, judged(40), &[opening], at(40)).await.unwrap();
            store.change_rule("PP", &rule, judged(70), &[close(id, 70)], at(70)).await.unwrap();
            assert_eq!(deliveries(&store).await[1..], [delivery("opened", "due", 60), delivery("closed", "due", 70)]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_rule_that_was_removed_or_disabled_meanwhile_opens_nothing() {
        on_each_engine(async |store| {
            let rule = prepared(&store).await;
            let opens = async || {
                let (_, opening) = open(&rule, "line", 1, 1);
                store.change_rule("PP", &rule, RuleWrite::JudgedUntil(at(1)), &[opening], at(1)).await.unwrap()
            };
            let change = async |change| store.change_rule("PP", &rule, change, &[], at(5)).await.unwrap();
            assert!(change(RuleWrite::Disable).await);
            assert!(!opens().await && store.alerts(false, None, 10).await.unwrap().is_empty());
            assert!(change(RuleWrite::Enable(at(5))).await && !change(RuleWrite::Enable(at(6))).await);
            let stored = store.rule("r").await.unwrap();
            assert_eq!((stored.enabled, stored.judged_until), (true, at(5)));
            assert!(change(RuleWrite::Remove).await && !change(RuleWrite::Remove).await);
            assert!(!opens().await && store.alerts(false, None, 10).await.unwrap().is_empty());
            assert_eq!(deliveries(&store).await, []);
        })
        .await;
    }
}
