//! Judges the values of tests and of monitors by a rule. For each subject (a target or a monitor), a state machine
//! turns values into actions.
//!
//! An alert opens when at least `times` of the last `of` values are bad, and the last value is bad. It closes when
//! fewer than `times` of the last `of` values are bad and the last `times` values are good. So if `times` is 2 or more,
//! one good value between bad ones does not close an alert, and one bad value between good ones does not open one.
//! After an alert has closed, the rule counts from zero. Values that cannot be judged are left out and change nothing.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

use super::finding::{AlertAction, AlertFinding, RetestFinding};
use super::metric::{AlertMetric, MetricSource};
use super::rule::{AlertLimit, AlertRule};

/// A limit relative to the usual latency is at least this far above the usual latency, in milliseconds. So a gateway
/// that usually answers in 0.3 ms may take 2 ms.
const LEAST_RISE_MS: f64 = 10.0;

/// A value of a metric, or why a test or a window has none.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenValue {
    /// The target or the monitor that was measured.
    pub subject: String,
    /// When the test or the window began.
    pub began: Timestamp,
    /// When the test or the window ended.
    pub at: Timestamp,
    /// The value in the unit of the metric, or why it cannot be judged.
    pub value: Result<f64, NotJudged>,
    /// What failed, if a test failed.
    pub failure: Option<String>,
}

/// The references with which a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct References {
    /// What the plan promises, in bits per second.
    pub plan_bps: Option<u64>,
    /// What is usual at this hour of the week, in the unit of the metric.
    pub usual: Option<f64>,
}

/// Why a value is not judged: it does not describe the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotJudged {
    /// The test did not measure the metric.
    NotMeasured,
    /// The test did not run to its end.
    Incomplete,
    /// Something other than the line may have determined the numbers.
    Suspect,
    /// Other traffic used the line during the test.
    OtherTraffic,
    /// A device or the request was the limit, and not the line.
    OtherLimit,
    /// The test used another uplink than most tests.
    OtherUplink,
    /// The test sent UDP datagrams at a chosen rate, which says nothing about the rate of the line.
    Datagrams,
    /// The limit refers to the plan, but there is no plan.
    NoPlan,
    /// What is usual at this hour of the week is not known yet.
    NotEnoughHistory,
    /// The window has too few probes.
    TooFewProbes,
    /// The target was not reachable during the window: that is an outage, and not loss.
    DuringOutage,
}

impl NotJudged {
    /// The reason as a phrase that follows "not judged:".
    pub fn as_words(self) -> &'static str {
        match self {
            Self::NotMeasured => "not measured",
            Self::Incomplete => "the test did not run to its end",
            Self::Suspect => "the result is suspect",
            Self::OtherTraffic => "other traffic used the line",
            Self::OtherLimit => "a device or the request was the limit, not the line",
            Self::OtherUplink => "the test used another uplink than most tests",
            Self::Datagrams => "the test sent datagrams at a chosen rate",
            Self::NoPlan => "no plan is set",
            Self::NotEnoughHistory => "not enough history for this hour of the week",
            Self::TooFewProbes => "too few probes",
            Self::DuringOutage => "during an outage",
        }
    }
}

/// A rule, with the state that it has for each subject.
#[derive(Clone, Debug)]
pub struct RuleJudge {
    rule: AlertRule,
    subjects: BTreeMap<String, SubjectState>,
}

/// The state of a rule for one subject.
#[derive(Clone, Debug, Default)]
struct SubjectState {
    /// The newest values, at most [`AlertRule::of`] of them. The newest value is at the end.
    values: VecDeque<JudgedValue>,
    /// When the values began to violate the rule, if an alert is open.
    open_since: Option<Timestamp>,
    /// The end of the test that the rule wants repeated; `None` if the rule waits for no repetition.
    retest_since: Option<Timestamp>,
}

/// A value that was compared with the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct JudgedValue {
    began: Timestamp,
    at: Timestamp,
    value: f64,
    expected: f64,
    reference: Option<f64>,
    is_bad: bool,
}

impl RuleJudge {
    /// Creates the judge of a rule, without any values.
    pub fn new(rule: AlertRule) -> Self {
        Self { rule, subjects: BTreeMap::new() }
    }

    /// The rule by which this judge compares values.
    pub fn rule(&self) -> &AlertRule {
        &self.rule
    }

    /// Restores the state of a subject whose alert was open before a restart.
    pub fn restore_open(&mut self, subject: &str, since: Timestamp) {
        self.subjects.entry(subject.to_owned()).or_default().open_since = Some(since);
    }

    /// Adds a value that was judged before a restart to the state of its subject. Returns no action.
    pub fn learn(&mut self, seen: &SeenValue, references: References) {
        let Ok(judged) = compare(&self.rule, seen, references) else { return };
        let rule = &self.rule;
        let state = self.subjects.entry(seen.subject.clone()).or_default();
        state.push(judged, rule.of);
        state.retest_since = (rule.retest && state.is_broken(rule)).then_some(judged.at);
    }

    /// Judges a value, which must be later than all earlier values of its subject. Returns the reason if the value
    /// cannot be judged.
    pub fn judge(&mut self, seen: &SeenValue, references: References) -> Result<Option<AlertAction>, NotJudged> {
        let judged = compare(&self.rule, seen, references)?;
        let rule = &self.rule;
        let is_concerned = rule.concerns(&seen.subject);
        let state = self.subjects.entry(seen.subject.clone()).or_default();
        state.push(judged, rule.of);
        // Values of other subjects are kept only as a comparison for a retest.
        if !is_concerned {
            return Ok(None);
        }
        let subject = seen.subject.clone();
        if let Some(since) = state.open_since {
            let Some(good) = state.good_again(rule) else { return Ok(None) };
            let finding = AlertFinding { since, until: Some(judged.began), ..finding(rule, seen, judged, good) };
            *state = SubjectState::default();
            return Ok(Some(AlertAction::Close { subject, finding: Box::new(finding) }));
        }
        if !state.is_broken(rule) {
            state.retest_since = None;
            return Ok(None);
        }
        let asked = match (rule.retest, state.retest_since) {
            (true, None) => {
                state.retest_since = Some(judged.at);
                return Ok(Some(AlertAction::Retest { subject, at: judged.at }));
            }
            (_, asked) => asked,
        };
        state.retest_since = None;
        let since = state.values.iter().find(|value| value.is_bad).map_or(judged.began, |first| first.began);
        state.open_since = Some(since);
        let bad = state.bad();
        let retest = asked.map(|asked| self.retested(&subject, asked));
        let finding = AlertFinding { since, retest, ..finding(&self.rule, seen, judged, bad) };
        Ok(Some(AlertAction::Open { subject, finding: Box::new(finding) }))
    }

    /// The other targets that were tested after the retest was requested, grouped by whether their latest value was
    /// bad.
    fn retested(&self, subject: &str, asked: Timestamp) -> RetestFinding {
        let mut found = RetestFinding::default();
        for (other, state) in self.subjects.iter().filter(|(other, _)| *other != subject) {
            match state.values.back().filter(|latest| latest.at > asked) {
                Some(latest) if latest.is_bad => found.also_bad.insert(other.clone()),
                Some(_) => found.good.insert(other.clone()),
                None => continue,
            };
        }
        found
    }
}

impl SubjectState {
    fn push(&mut self, value: JudgedValue, of: u32) {
        self.values.push_back(value);
        while self.values.len() > of as usize {
            self.values.pop_front();
        }
    }

    fn bad(&self) -> u32 {
        self.values.iter().map(|value| u32::from(value.is_bad)).sum()
    }

    fn is_broken(&self, rule: &AlertRule) -> bool {
        self.bad() >= rule.times && self.values.back().is_some_and(|latest| latest.is_bad)
    }

    /// The number of good values in a row at the end; `None` if there are too few of them to close the alert.
    fn good_again(&self, rule: &AlertRule) -> Option<u32> {
        let good = self.values.iter().rev().take_while(|value| !value.is_bad).count();
        let good = u32::try_from(good).unwrap_or(u32::MAX);
        (good >= rule.times && self.bad() < rule.times).then_some(good)
    }
}

fn finding(rule: &AlertRule, seen: &SeenValue, judged: JudgedValue, count: u32) -> AlertFinding {
    let is_event = rule.metric == AlertMetric::TestFailed;
    AlertFinding {
        metric: rule.metric,
        limit: rule.limit,
        at: judged.at,
        since: judged.began,
        until: None,
        measured: Some(judged.value).filter(|_| !is_event),
        expected: Some(judged.expected).filter(|_| !is_event),
        reference: judged.reference,
        count,
        of: rule.of,
        window_minutes: (rule.metric.source() == MetricSource::Monitors).then_some(rule.window_minutes),
        retest: None,
        outage: None,
        failure: seen.failure.clone(),
        ended_by: None,
    }
}

/// Compares a value with the limit of the rule.
fn compare(rule: &AlertRule, seen: &SeenValue, references: References) -> Result<JudgedValue, NotJudged> {
    let value = seen.value?;
    let usual = || references.usual.ok_or(NotJudged::NotEnoughHistory);
    let (expected, reference) = match rule.limit {
        // A failed test has the value 1, any other test 0.
        None => (0.0, None),
        Some(AlertLimit::Below(limit) | AlertLimit::Above(limit)) => (limit, None),
        Some(AlertLimit::BelowPlan(share)) => {
            let promised = references.plan_bps.ok_or(NotJudged::NoPlan)? as f64;
            (promised * share, Some(promised))
        }
        Some(AlertLimit::BelowUsual(share)) => {
            let usual = usual()?;
            (usual * share, Some(usual))
        }
        Some(AlertLimit::AboveUsual(factor)) => {
            let usual = usual()?;
            ((usual * factor).max(usual + LEAST_RISE_MS), Some(usual))
        }
    };
    let is_bad = if rule.metric.is_rate() { value < expected } else { value > expected };
    Ok(JudgedValue { began: seen.began, at: seen.at, value, expected, reference, is_bad })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_769_860_800 + minute * 60).unwrap()
    }

    fn rule(times: u32, of: u32) -> AlertRule {
        let limit = Some(AlertLimit::Below(50.0));
        AlertRule::new("slow", AlertMetric::Download, limit, "UTC".parse().unwrap()).with_times(times, of)
    }

    fn seen(subject: &str, minute: i64, value: f64) -> SeenValue {
        let (began, at) = (at(minute - 1), at(minute));
        SeenValue { subject: subject.to_owned(), began, at, value: Ok(value), failure: None }
    }

    fn judged(judge: &mut RuleJudge, seen: &SeenValue) -> Option<AlertAction> {
        judge.judge(seen, References::default()).unwrap()
    }

    /// What happens at each value: `o` opens, `c` closes, `r` asks for a retest, `.` nothing.
    fn played(judge: &mut RuleJudge, values: &str) -> String {
        let play = |(minute, letter): (usize, char)| {
            let value = if letter == 'B' { 10.0 } else { 90.0 };
            match judged(judge, &seen("attic", minute as i64, value)) {
                None => '.',
                Some(AlertAction::Open { .. }) => 'o',
                Some(AlertAction::Close { .. }) => 'c',
                Some(AlertAction::Retest { .. }) => 'r',
            }
        };
        values.chars().enumerate().map(play).collect()
    }

    #[test]
    fn an_alert_opens_at_n_of_m_and_closes_when_the_rule_holds_again() {
        for (times, of, values, actions) in [
            (1, 1, "GBBGB", ".o.co"),
            (2, 3, "BGBGG", "..o.c"),
            (3, 4, "BBGBGBGGGB", "...o....c."),
            (3, 4, "BBGGBBG", "......."),
            (1, 3, "BGGG", "o..c"),
            (3, 3, "BBGBBGBBB", "........o"),
        ] {
            let mut judge = RuleJudge::new(rule(times, of));
            assert_eq!(played(&mut judge, values), actions, "{times} of {of}: {values}");
        }
    }

    #[test]
    fn a_retest_decides_whether_the_alert_opens() {
        for (values, actions) in [("GBB", ".ro"), ("BGB", "r.r"), ("BBBGB", "ro.cr")] {
            let mut judge = RuleJudge::new(AlertRule { retest: true, ..rule(1, 1) });
            assert_eq!(played(&mut judge, values), actions, "{values}");
        }
    }

    #[test]
    fn a_retest_says_which_end_looks_slow() {
        let mut judge = RuleJudge::new(AlertRule { retest: true, subject: Some("attic".to_owned()), ..rule(1, 1) });
        assert_eq!(judged(&mut judge, &seen("cellar", 0, 10.0)), None, "another target");
        let asked = judged(&mut judge, &seen("attic", 1, 10.0));
        assert_eq!(asked, Some(AlertAction::Retest { subject: "attic".to_owned(), at: at(1) }));
        judged(&mut judge, &seen("cellar", 2, 90.0));
        judged(&mut judge, &seen("office", 3, 20.0));
        let Some(AlertAction::Open { finding, .. }) = judged(&mut judge, &seen("attic", 4, 11.0)) else { panic!() };
        let retest = finding.retest.unwrap();
        assert_eq!((retest.also_bad.into_iter().collect(), finding.since), (vec!["office".to_owned()], at(3)));
        assert_eq!(retest.good.into_iter().collect::<Vec<_>>(), ["cellar"]);
    }

    #[test]
    fn a_value_that_says_nothing_about_the_line_changes_nothing() {
        let mut judge = RuleJudge::new(AlertRule { retest: true, ..rule(2, 3) });
        assert_eq!(played(&mut judge, "BB"), ".r");
        let skipped = SeenValue { value: Err(NotJudged::OtherTraffic), ..seen("attic", 5, 1.0) };
        assert_eq!(judge.judge(&skipped, References::default()), Err(NotJudged::OtherTraffic));
        assert_eq!(played(&mut judge, "B"), "o");
    }

    #[test]
    fn a_share_is_compared_with_the_plan_and_with_what_is_usual() {
        use AlertLimit::{AboveUsual, BelowPlan, BelowUsual};
        let compared = |metric, limit, value, references| {
            let rule = AlertRule::new("r", metric, Some(limit), "UTC".parse().unwrap());
            compare(&rule, &seen("attic", 0, value), references).map(|judged| (judged.expected, judged.is_bad))
        };
        let (download, latency) = (AlertMetric::Download, AlertMetric::MonitorLatencyP50);
        let references = References { plan_bps: Some(100), usual: Some(80.0) };
        assert_eq!(compared(download, BelowPlan(0.5), 49.0, references), Ok((50.0, true)));
        assert_eq!(compared(download, BelowUsual(0.5), 40.0, references), Ok((40.0, false)));
        assert_eq!(compared(latency, AboveUsual(2.0), 161.0, references), Ok((160.0, true)));
        let near = References { usual: Some(0.3), ..references };
        assert_eq!(compared(latency, AboveUsual(2.0), 9.0, near), Ok((10.3, false)), "less than 10 ms more");
        let none = References::default();
        assert_eq!(compared(download, BelowPlan(0.5), 1.0, none), Err(NotJudged::NoPlan));
        assert_eq!(compared(latency, AboveUsual(2.0), 1.0, none), Err(NotJudged::NotEnoughHistory));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Value(u8, bool),
        Skipped(u8),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..3_u8, any::<bool>()).prop_map(|(subject, is_bad)| Step::Value(subject, is_bad)),
            1 => (0..3_u8).prop_map(Step::Skipped),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..120)
    }

    /// The judge after a restart of the service: it learns the values that were judged since the last closing, and
    /// which alerts are open.
    fn restarted(
        rule: &AlertRule,
        past: &[SeenValue],
        open: &BTreeMap<String, Timestamp>,
        closed: &BTreeMap<String, Timestamp>,
    ) -> RuleJudge {
        let mut judge = RuleJudge::new(rule.clone());
        for seen in past.iter().filter(|seen| closed.get(&seen.subject).is_none_or(|closed| seen.at > *closed)) {
            judge.learn(seen, References::default());
        }
        for (subject, since) in open {
            judge.restore_open(subject, *since);
        }
        judge
    }

    proptest! {
        #[test]
        fn each_alert_opens_once_and_closes_once_also_over_restarts(
            (times, of) in (1..5_u32).prop_flat_map(|of| (1..=of, Just(of))),
            retest in any::<bool>(),
            is_for_one in any::<bool>(),
            steps in steps(),
        ) {
            let rule = AlertRule { retest, subject: is_for_one.then(|| "0".to_owned()), ..rule(times, of) };
            let mut judge = RuleJudge::new(rule.clone());
            let mut steady = judge.clone();
            let (mut past, mut open, mut closed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
            for (minute, step) in steps.into_iter().enumerate() {
                let (subject, value) = match step {
                    Step::Restart => {
                        judge = restarted(&rule, &past, &open, &closed);
                        continue;
                    }
                    Step::Value(subject, is_bad) => (subject, Ok(if is_bad { 10.0 } else { 90.0 })),
                    Step::Skipped(subject) => (subject, Err(NotJudged::Suspect)),
                };
                let value = SeenValue { value, ..seen(&subject.to_string(), minute as i64, 0.0) };
                let action = judge.judge(&value, References::default());
                prop_assert_eq!(&action, &steady.judge(&value, References::default()), "a restart changes nothing");
                past.push(value.clone());
                match action {
                    Ok(Some(AlertAction::Open { subject, finding })) => {
                        prop_assert!(value.value == Ok(10.0), "a good value opens nothing");
                        prop_assert!(!is_for_one || subject == "0");
                        prop_assert_eq!(finding.retest.is_some(), retest);
                        prop_assert!(finding.count >= times && finding.since < finding.at);
                        prop_assert!(open.insert(subject, finding.since).is_none(), "never two open");
                    }
                    Ok(Some(AlertAction::Close { subject, finding })) => {
                        prop_assert!(value.value == Ok(90.0), "a bad value closes nothing");
                        prop_assert_eq!(open.remove(&subject), Some(finding.since), "only what is open closes");
                        closed.insert(subject, finding.at);
                    }
                    Ok(Some(AlertAction::Retest { subject, .. })) => {
                        prop_assert!(retest && !open.contains_key(&subject));
                    }
                    Ok(None) | Err(_) => {}
                }
            }
        }
    }
}
