//! Makes the store writes for an alert that opens or closes: the row of the alert, and the message with the time before
//! which it must not be sent. Pure except for the new ids.

use jiff::Timestamp;
use uuid::Uuid;

use crate::alerts::message::{AlertFacts, AlertMessage, MessageKind, Urgency};
use crate::alerts::{AlertAction, AlertFinding, AlertWords, wording};
use crate::store::{AlertRecord, AlertWrite, NewMessage, StoredAlert, StoredRule};

/// The store write for an action; `None` if the action opens or closes no alert. `open` is the id of the subject's open
/// alert.
pub(super) fn write_of(
    stored: &StoredRule,
    action: AlertAction,
    open: Option<Uuid>,
    now: Timestamp,
) -> Option<AlertWrite> {
    let zone = stored.rule.zone.rules();
    match action {
        AlertAction::Open { subject, finding } => {
            let id = Uuid::now_v7();
            let words = wording::opened(&subject, &finding, zone);
            let urgency = wording::urgency(&finding);
            let say = message(stored, id, &subject, &finding, (MessageKind::Opened, urgency, &words), now);
            let opened_at = finding.at;
            let opening = record(words, *finding);
            let (rule_id, rule) = (stored.id, stored.rule.name.clone());
            let alert = StoredAlert { id, rule_id, rule, subject, opened_at, closed_at: None, opening, closing: None };
            Some(AlertWrite::Open(Box::new(alert), Box::new(say)))
        }
        AlertAction::Close { subject, finding } => {
            let id = open?;
            let words = wording::closed(&stored.rule.name, &subject, &finding, zone);
            let say = message(stored, id, &subject, &finding, (MessageKind::Closed, Urgency::Low, &words), now);
            let at = finding.at;
            Some(AlertWrite::Close { id, at, closing: Box::new(record(words, *finding)), say: Box::new(say) })
        }
        AlertAction::Retest { .. } => None,
    }
}

fn record(words: AlertWords, finding: AlertFinding) -> AlertRecord {
    AlertRecord { title: words.title, text: words.text, finding }
}

fn message(
    stored: &StoredRule,
    alert: Uuid,
    subject: &str,
    finding: &AlertFinding,
    (kind, urgency, words): (MessageKind, Urgency, &AlertWords),
    now: Timestamp,
) -> NewMessage {
    let rule = &stored.rule;
    let facts = AlertFacts {
        id: alert,
        rule: rule.name.clone(),
        subject: subject.to_owned(),
        metric: finding.metric.as_str().to_owned(),
        measured: finding.measured,
        expected: finding.expected,
        unit: finding.metric.unit().as_str().to_owned(),
        since: finding.since,
        until: finding.until,
    };
    let message = AlertMessage {
        id: Uuid::now_v7(),
        kind,
        at: now,
        title: words.title.clone(),
        text: words.text.clone(),
        urgency,
        alert: Some(facts),
    };
    let quiet = rule.quiet_hours.and_then(|hours| hours.end_after(now, rule.zone.rules()));
    NewMessage { message, not_before: quiet.unwrap_or(now), channels: rule.channels.clone() }
}
