//! What a rule would have done in the past: passes past values to the same judge that judges new values.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::finding::AlertAction;
use super::judge::{References, RuleJudge, SeenValue};
use super::lasting::{SeenOutage, judge_outages, judge_silence};
use super::metric::MetricSource;
use super::rule::{AlertLimit, AlertRule};
use super::wording;

/// What was measured in a period, as far as a rule needs it.
#[derive(Clone, Debug, Default)]
pub struct MeasuredPast {
    /// The values of the rule's metric, oldest first. Each has the references (the plan and the usual value) with which
    /// it is compared.
    pub values: Vec<(SeenValue, References)>,
    /// The outages, oldest first.
    pub outages: Vec<SeenOutage>,
    /// When the complete tests began, oldest first.
    pub results: Vec<Timestamp>,
}

/// What a rule would have done in a past period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RulePreview {
    /// The begin of the period.
    pub since: Timestamp,
    /// The end of the period.
    pub until: Timestamp,
    /// The alerts that would have opened, oldest first.
    pub alerts: Vec<PreviewedAlert>,
    /// The number of values, outages or results that were judged.
    pub judged: u64,
    /// How many values were not judged, for each reason. The keys are the reasons in words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_judged: BTreeMap<String, u64>,
    /// Whether the rule repeats tests. If so, the preview assumes that each repeated test would have been bad, too.
    pub assumes_retest: bool,
}

/// An alert that would have opened in the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewedAlert {
    /// The target or the monitor that the alert concerns.
    pub subject: String,
    /// When the alert would have opened.
    pub opened_at: Timestamp,
    /// When the alert would have closed; absent if it would be open now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// The title of the alert's message.
    pub title: String,
}

/// Replays what was measured from `since` to `until`, and returns what the rule would have done.
pub fn replay(rule: &AlertRule, past: &MeasuredPast, since: Timestamp, until: Timestamp) -> RulePreview {
    let mut preview = RulePreview {
        since,
        until,
        alerts: Vec::new(),
        judged: 0,
        not_judged: BTreeMap::new(),
        assumes_retest: rule.retest,
    };
    // The past contains no repeated tests, so the replay assumes that each repeated test would have been bad, too.
    let rule = AlertRule { retest: false, ..rule.clone() };
    match rule.metric.source() {
        MetricSource::Tests | MetricSource::Monitors => {
            let mut judge = RuleJudge::new(rule.clone());
            for (seen, references) in past.values.iter().filter(|(seen, _)| rule.concerns(&seen.subject)) {
                match judge.judge(seen, *references) {
                    Ok(action) => {
                        preview.judged += 1;
                        action.into_iter().for_each(|action| preview.note(&rule, action));
                    }
                    Err(reason) => *preview.not_judged.entry(reason.as_words().to_owned()).or_default() += 1,
                }
            }
        }
        MetricSource::Outages => {
            preview.judged = past.outages.len() as u64;
            let actions = judge_outages(&rule, None, &past.outages, since, until);
            actions.into_iter().for_each(|action| preview.note(&rule, action));
        }
        MetricSource::Clock => preview.replay_silence(&rule, &past.results, until),
    }
    // The last result before `since` can begin a silence whose alert opened before `since`.
    preview.alerts.retain(|alert| alert.opened_at >= since);
    preview
}

impl RulePreview {
    fn replay_silence(&mut self, rule: &AlertRule, results: &[Timestamp], until: Timestamp) {
        self.judged = results.len() as u64;
        let limit = match rule.limit {
            Some(AlertLimit::Above(seconds)) => jiff::SignedDuration::try_from_secs_f64(seconds).unwrap_or_default(),
            _ => return,
        };
        let mut open = None;
        for (number, result) in results.iter().enumerate() {
            let next = results.get(number + 1).copied().unwrap_or(until);
            let due = result.saturating_add(limit).unwrap_or(until);
            for now in [*result, due.min(next)] {
                let action = judge_silence(rule, open, *result, Timestamp::MIN, now);
                match &action {
                    Some(AlertAction::Open { finding, .. }) => open = Some(finding.since),
                    Some(_) => open = None,
                    None => {}
                }
                action.into_iter().for_each(|action| self.note(rule, action));
            }
        }
    }

    fn note(&mut self, rule: &AlertRule, action: AlertAction) {
        match action {
            AlertAction::Open { subject, finding } => {
                let title = wording::opened(&subject, &finding, rule.zone.rules()).title;
                self.alerts.push(PreviewedAlert { subject, opened_at: finding.at, closed_at: None, title });
            }
            AlertAction::Close { subject, finding } => {
                let open = |alert: &&mut PreviewedAlert| alert.subject == subject && alert.closed_at.is_none();
                if let Some(alert) = self.alerts.iter_mut().find(open) {
                    alert.closed_at = Some(finding.at);
                }
            }
            AlertAction::Retest { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::NotJudged;
    use super::super::metric::AlertMetric;
    use super::*;
    use crate::monitor::outage::OutageScope;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_769_860_800 + minute * 60).unwrap()
    }

    fn rule(metric: AlertMetric, limit: AlertLimit) -> AlertRule {
        AlertRule::new("r", metric, Some(limit), "UTC".parse().unwrap())
    }

    fn times(preview: &RulePreview) -> Vec<(Timestamp, Option<Timestamp>)> {
        preview.alerts.iter().map(|alert| (alert.opened_at, alert.closed_at)).collect()
    }

    #[test]
    fn the_past_is_judged_by_the_same_rules() {
        let slow = AlertRule { retest: true, ..rule(AlertMetric::Download, AlertLimit::Below(50.0)).with_times(2, 2) };
        let value = |minute: i64, subject: &str, value| {
            let (began, at) = (at(minute - 1), at(minute));
            (SeenValue { subject: subject.to_owned(), began, at, value, failure: None }, References::default())
        };
        let values = vec![
            value(1, "attic", Ok(10.0)),
            value(2, "cellar", Ok(10.0)),
            value(3, "attic", Ok(10.0)),
            value(4, "attic", Err(NotJudged::OtherTraffic)),
            value(5, "attic", Ok(90.0)),
            value(6, "attic", Ok(90.0)),
            value(7, "cellar", Ok(10.0)),
        ];
        let past = MeasuredPast { values, ..MeasuredPast::default() };
        let preview = replay(&slow, &past, at(0), at(10));
        assert_eq!(times(&preview), [(at(3), Some(at(6))), (at(7), None)]);
        assert_eq!((preview.judged, preview.not_judged["other traffic used the line"]), (6, 1));
        assert!(preview.assumes_retest);
        let for_one = AlertRule { subject: Some("cellar".to_owned()), ..slow };
        assert_eq!(times(&replay(&for_one, &past, at(0), at(10))), [(at(7), None)]);
    }

    #[test]
    fn silence_and_outages_are_replayed_too() {
        let results = [0, 30, 100, 130].map(at).to_vec();
        let past = MeasuredPast { results, ..MeasuredPast::default() };
        let silence = rule(AlertMetric::Silence, AlertLimit::Above(3_600.0));
        assert_eq!(times(&replay(&silence, &past, at(0), at(150))), [(at(90), Some(at(100)))]);
        assert_eq!(times(&replay(&silence, &past, at(0), at(300))), [(at(90), Some(at(100))), (at(190), None)]);
        let outage = SeenOutage {
            began: at(5),
            ended: Some(at(15)),
            scope: OutageScope::Everything,
            failed: Default::default(),
        };
        let past = MeasuredPast { outages: vec![outage], ..MeasuredPast::default() };
        let down = rule(AlertMetric::Outage, AlertLimit::Above(120.0));
        assert_eq!(times(&replay(&down, &past, at(0), at(60))), [(at(7), Some(at(17)))]);
        assert_eq!(replay(&down, &MeasuredPast::default(), at(0), at(60)).judged, 0);
    }
}
