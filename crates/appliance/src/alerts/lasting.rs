//! Judges conditions that last: outages, and the time without a result.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::finding::{AlertAction, AlertFinding, OutageFinding};
use super::metric::AlertMetric;
use super::rule::{AlertLimit, AlertRule};
use crate::monitor::outage::OutageScope;

/// The subject of a rule that concerns all targets together.
pub const WHOLE_LINE: &str = "line";
/// The longest grace period after the start of the service. During this period a missing result opens no alert, because
/// a device that was off has no results.
const START_GRACE: SignedDuration = SignedDuration::from_hours(1);
/// An alert closes when the line has answered for some time after an outage. This is the maximum of that time. Without
/// this wait, a line that fails again and again would cause a message for each outage.
const LONGEST_RECOVERY: SignedDuration = SignedDuration::from_secs(300);

/// An outage, as far as a rule needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenOutage {
    /// When the outage began.
    pub began: Timestamp,
    /// When the outage ended; `None` while it lasts.
    pub ended: Option<Timestamp>,
    /// What failed in the outage.
    pub scope: OutageScope,
    /// The names of the monitors whose target was not reachable.
    pub failed: BTreeSet<String>,
}

/// Judges outages by a rule for outages, at the time `now`. `open_since` is when the first outage of the open alert
/// began; `None` if no alert is open. `outages` are in order of time. They include each outage that lasted beyond
/// `judged_until` or began at `open_since` or later.
///
/// An alert opens when an outage has lasted as long as the limit of the rule. The alert closes when the targets have
/// answered again for as long as the limit, but after five minutes at the latest.
pub fn judge_outages(
    rule: &AlertRule,
    open_since: Option<Timestamp>,
    outages: &[SeenOutage],
    judged_until: Timestamp,
    now: Timestamp,
) -> Vec<AlertAction> {
    let limit = limit(rule);
    let recovery = limit.min(LONGEST_RECOVERY);
    let subject = rule.subject.clone().unwrap_or_else(|| WHOLE_LINE.to_owned());
    let is_concerned = |outage: &&SeenOutage| match &rule.subject {
        Some(_) => outage.failed.iter().any(|name| rule.concerns(name)),
        None => true,
    };
    let mut actions = Vec::new();
    // The open alert: its begin, and the end of its last outage.
    let mut open = open_since.map(|since| (since, Some(since)));
    let mut latest = None;
    let close = |(since, ended): (Timestamp, Option<Timestamp>), latest: Option<&SeenOutage>, at: Timestamp| {
        let lasted = ended.map_or(0.0, |ended| seconds(since, ended));
        let finding = finding(rule, latest, since, lasted, at);
        let finding = Box::new(AlertFinding { until: ended, ..finding });
        AlertAction::Close { subject: subject.clone(), finding }
    };
    for outage in outages.iter().filter(is_concerned).filter(|outage| outage.began <= now) {
        let over = |(_, ended): (Timestamp, Option<Timestamp>)| ended?.saturating_add(recovery).ok();
        if let Some(alert) = open
            && outage.began > alert.0
            && let Some(over) = over(alert).filter(|over| *over <= outage.began)
        {
            actions.push(close(alert, latest, over));
            open = None;
        }
        if let Some((since, ended)) = open {
            if outage.began >= since {
                open = Some((since, outage.ended.map(|own| own.max(ended.unwrap_or(own)))));
                latest = Some(outage);
            }
            continue;
        }
        let end = outage.ended.unwrap_or(now);
        let is_new = outage.ended.is_none_or(|ended| ended > judged_until);
        if is_new && end.duration_since(outage.began) >= limit {
            let at = outage.began.saturating_add(limit).unwrap_or(now).max(judged_until);
            let finding = Box::new(finding(rule, Some(outage), outage.began, seconds(outage.began, at), at));
            actions.push(AlertAction::Open { subject: subject.clone(), finding });
            open = Some((outage.began, outage.ended));
            latest = Some(outage);
        }
    }
    if let Some((_, Some(ended))) = open
        && let Ok(over) = ended.saturating_add(recovery)
        && over <= now
        && let Some(alert) = open
    {
        actions.push(close(alert, latest, over));
    }
    actions
}

/// Judges the time without a result, at the time `now`. `open_since` is when the last complete test before the open
/// alert began; `None` if no alert is open. `last` is when the last complete test of all began. `started_at` is when
/// the service started, or when the rule was added if that was later.
pub fn judge_silence(
    rule: &AlertRule,
    open_since: Option<Timestamp>,
    last: Timestamp,
    started_at: Timestamp,
    now: Timestamp,
) -> Option<AlertAction> {
    let (subject, limit) = (WHOLE_LINE.to_owned(), limit(rule));
    match open_since {
        Some(since) if last > since => {
            let finding = finding(rule, None, since, seconds(since, last), now);
            Some(AlertAction::Close { subject, finding: Box::new(AlertFinding { until: Some(last), ..finding }) })
        }
        None if now.duration_since(last) >= limit && now.duration_since(started_at) >= limit.min(START_GRACE) => {
            let finding = Box::new(finding(rule, None, last, seconds(last, now), now));
            Some(AlertAction::Open { subject, finding })
        }
        _ => None,
    }
}

fn limit(rule: &AlertRule) -> SignedDuration {
    let seconds = match rule.limit {
        Some(AlertLimit::Above(seconds)) => seconds,
        _ => 0.0,
    };
    SignedDuration::try_from_secs_f64(seconds).unwrap_or(SignedDuration::MAX)
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

fn finding(
    rule: &AlertRule,
    outage: Option<&SeenOutage>,
    since: Timestamp,
    lasted_s: f64,
    at: Timestamp,
) -> AlertFinding {
    debug_assert!(matches!(rule.metric, AlertMetric::Outage | AlertMetric::Silence));
    let outage = outage.map(|outage| OutageFinding { scope: outage.scope, failed: outage.failed.clone() });
    AlertFinding {
        metric: rule.metric,
        limit: rule.limit,
        at,
        since,
        until: None,
        measured: Some(lasted_s),
        expected: Some(limit(rule).as_secs_f64()),
        reference: None,
        count: 1,
        of: 1,
        window_minutes: None,
        retest: None,
        outage,
        failure: None,
        ended_by: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_769_860_800 + second).unwrap()
    }

    fn rule(metric: AlertMetric, limit_s: f64) -> AlertRule {
        AlertRule::new("r", metric, Some(AlertLimit::Above(limit_s)), "UTC".parse().unwrap())
    }

    fn outage(began: i64, ended: Option<i64>) -> SeenOutage {
        let failed = BTreeSet::from(["attic".to_owned()]);
        SeenOutage { began: at(began), ended: ended.map(at), scope: OutageScope::BeyondGateway, failed }
    }

    /// Returns three values for each action. First, whether it opens an alert (otherwise it closes one). Second, when
    /// the outage or the silence began, or for a closing, when it ended. Third, when the alert opens or closes. Times
    /// are in seconds.
    fn times(actions: &[AlertAction]) -> Vec<(bool, i64, i64)> {
        let second = |time: Timestamp| time.as_second() - 1_769_860_800;
        let time = |action: &AlertAction| match action {
            AlertAction::Open { finding, .. } => (true, second(finding.since), second(finding.at)),
            AlertAction::Close { finding, .. } => (false, second(finding.until.unwrap()), second(finding.at)),
            AlertAction::Retest { .. } => panic!("no test"),
        };
        actions.iter().map(time).collect()
    }

    #[test]
    fn an_outage_opens_when_it_lasts_and_closes_when_the_line_answers_as_long() {
        let rule = rule(AlertMetric::Outage, 60.0);
        let judged = |open: Option<i64>, outages: &[SeenOutage], until: i64, now: i64| {
            times(&judge_outages(&rule, open.map(at), outages, at(until), at(now)))
        };
        let lasting = [outage(100, None)];
        assert_eq!(judged(None, &lasting, 0, 159), []);
        assert_eq!(judged(None, &lasting, 0, 160), [(true, 100, 160)]);
        assert_eq!(judged(Some(100), &lasting, 160, 500), []);
        let over = [outage(100, Some(300))];
        assert_eq!(judged(Some(100), &over, 160, 359), []);
        assert_eq!(judged(Some(100), &over, 160, 360), [(false, 300, 360)]);
        assert_eq!(judged(None, &over, 360, 500), [], "it was judged");
        assert_eq!(judged(None, &[outage(100, Some(159))], 0, 500), [], "too short");
        // The service did not judge during the outages.
        assert_eq!(judged(None, &over, 0, 500), [(true, 100, 160), (false, 300, 360)]);
        // The line comes and goes: one alert.
        let flapping = [outage(100, Some(170)), outage(200, Some(210)), outage(260, Some(270))];
        assert_eq!(judged(None, &flapping, 0, 1000), [(true, 100, 160), (false, 270, 330)]);
        let two = [outage(100, Some(170)), outage(230, Some(300))];
        let expected = [(true, 100, 160), (false, 170, 230), (true, 230, 290), (false, 300, 360)];
        assert_eq!(judged(None, &two, 0, 1000), expected);
        // A rule that is added while the outage lasts.
        assert_eq!(judged(None, &lasting, 900, 900), [(true, 100, 900)]);
        assert_eq!(judged(Some(100), &[], 160, 300), [(false, 100, 160)], "its row is gone");
    }

    #[test]
    fn a_rule_for_one_monitor_ignores_the_others() {
        let of = |name: &str| AlertRule { subject: Some(name.to_owned()), ..rule(AlertMetric::Outage, 60.0) };
        let outages = [outage(0, None)];
        assert_eq!(judge_outages(&of("Attic"), None, &outages, at(0), at(100)).len(), 1);
        assert_eq!(judge_outages(&of("office"), None, &outages, at(0), at(100)), []);
    }

    #[test]
    fn silence_is_counted_from_the_last_result_and_not_from_a_time_without_power() {
        let rule = rule(AlertMetric::Silence, 7_200.0);
        let judged = |open: Option<i64>, last: i64, started: i64, now: i64| {
            let action = judge_silence(&rule, open.map(at), at(last), at(started), at(now));
            times(&action.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(judged(None, 0, 0, 7_199), []);
        assert_eq!(judged(None, 0, 0, 7_200), [(true, 0, 7_200)]);
        assert_eq!(judged(None, 0, 90_000, 93_599), [], "the service has just started");
        assert_eq!(judged(None, 0, 90_000, 93_600), [(true, 0, 93_600)]);
        assert_eq!(judged(Some(0), 0, 0, 90_000), []);
        assert_eq!(judged(Some(0), 8_000, 0, 8_001), [(false, 8_000, 8_001)]);
    }

    proptest! {
        #[test]
        fn the_alerts_do_not_depend_on_when_the_service_looks(
            gaps in prop::collection::vec((1..600_i64, 1..600_i64), 0..12),
            looks in prop::collection::vec(1..400_i64, 1..80),
        ) {
            let rule = rule(AlertMetric::Outage, 60.0);
            let (mut second, mut outages) = (0, Vec::new());
            for (gap, length) in gaps {
                outages.push(outage(second + gap, Some(second + gap + length)));
                second += gap + length;
            }
            let end = second + 10_000;
            let (mut open, mut until, mut now, mut found) = (None, at(0), 0, Vec::new());
            for look in looks.into_iter().chain([end]) {
                now = (now + look).min(end);
                // The outages as they are known at `now`.
                let seen = outages.iter().filter(|own| own.began <= at(now)).map(|own| SeenOutage {
                    ended: own.ended.filter(|ended| *ended <= at(now)),
                    ..own.clone()
                });
                let seen = seen.collect::<Vec<_>>();
                for action in judge_outages(&rule, open, &seen, until, at(now)) {
                    match &action {
                        AlertAction::Open { finding, .. } => {
                            prop_assert!(open.replace(finding.since).is_none(), "never two open");
                            until = finding.at;
                        }
                        AlertAction::Close { finding, .. } => {
                            prop_assert!(open.take() == Some(finding.since), "only what is open closes");
                            until = finding.at;
                        }
                        AlertAction::Retest { .. } => prop_assert!(false, "no test"),
                    }
                    found.push(action);
                }
            }
            prop_assert_eq!(times(&found), times(&judge_outages(&rule, None, &outages, at(0), at(end))));
            prop_assert!(open.is_none());
        }
    }
}
