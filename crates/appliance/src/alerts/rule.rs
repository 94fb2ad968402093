//! A rule as its owner defines it, the checks before it is accepted, and the rules that are suggested.

use paramedic_report::quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{MAX_CHANNELS, MAX_NAME_CHARS, MAX_SUBJECT_CHARS, MAX_VALUES, MAX_WINDOW_MINUTES, RuleError};
use super::metric::{AlertMetric, MetricSource, MetricUnit};
use crate::object_name::is_name_char;
use crate::schedule::{QuietHours, Zone};

/// The default window of a monitor, in minutes.
const DEFAULT_WINDOW_MINUTES: u32 = 5;
/// The shortest limit of a rule about outages, in seconds.
const SHORTEST_OUTAGE_S: f64 = 10.0;
/// The shortest limit of a rule about the time without a result, in seconds.
const SHORTEST_SILENCE_S: f64 = 600.0;
/// The longest limit of a rule about outages or about the time without a result, in seconds.
const LONGEST_S: f64 = 366.0 * 86_400.0;
/// The largest factor by which a limit multiplies the usual value.
const MAX_FACTOR: f64 = 100.0;

/// A rule as its owner defines it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRule {
    /// The name of the rule.
    pub name: String,
    /// The metric that the rule watches.
    pub metric: AlertMetric,
    /// The other end of the tests, or the name of the monitor, that the rule watches. If absent, the rule watches all
    /// other ends or monitors, each separately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The limit beyond which a value is bad; absent for `test_failed`, for which each failure is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<AlertLimit>,
    /// How many of the last `of` values must be bad before an alert opens.
    #[serde(default = "one")]
    pub times: u32,
    /// The number of latest values that the rule looks at.
    #[serde(default = "one")]
    pub of: u32,
    /// The length in minutes of the window that gives one value. Only for metrics of monitors.
    #[serde(default = "usual_window")]
    pub window_minutes: u32,
    /// Whether a test that would open an alert is repeated at once. If so, the alert opens only if the repeated test is
    /// bad too. Only for metrics of tests.
    #[serde(default)]
    pub retest: bool,
    /// The names of the channels that carry the messages of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// The hours of the day in which messages are held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub quiet_hours: Option<QuietHours>,
    /// The time zone of the quiet hours and of the hours of the week.
    #[serde(default = "Zone::of_host")]
    #[schemars(with = "String")]
    pub zone: Zone,
}

/// The limit of a rule, beyond which a value is bad.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertLimit {
    /// Values below this one, in the unit of the metric, are bad. For rates.
    Below(f64),
    /// Values above this one, in the unit of the metric, are bad. For all metrics except rates.
    Above(f64),
    /// Values below this share (0 to 1) of what the plan promises are bad. For rates.
    BelowPlan(f64),
    /// Values below this share (0 to 1) of the usual value at this hour of the week are bad. For rates.
    BelowUsual(f64),
    /// Values above this multiple of the usual value at this hour of the week are bad. For latencies.
    AboveUsual(f64),
}

fn one() -> u32 {
    1
}

fn usual_window() -> u32 {
    DEFAULT_WINDOW_MINUTES
}

impl AlertRule {
    /// Creates a rule without a retest, channels or quiet hours. One bad value is enough to open an alert.
    pub fn new(name: &str, metric: AlertMetric, limit: Option<AlertLimit>, zone: Zone) -> Self {
        Self {
            name: name.to_owned(),
            metric,
            subject: None,
            limit,
            times: 1,
            of: 1,
            window_minutes: DEFAULT_WINDOW_MINUTES,
            retest: false,
            channels: Vec::new(),
            quiet_hours: None,
            zone,
        }
    }

    /// The same rule, but `times` of the last `of` values must be bad.
    #[must_use]
    pub fn with_times(self, times: u32, of: u32) -> Self {
        Self { times, of, ..self }
    }

    /// Whether the rule concerns this target or monitor.
    pub fn concerns(&self, subject: &str) -> bool {
        self.subject.as_ref().is_none_or(|own| own.to_lowercase() == subject.to_lowercase())
    }

    /// Checks that the rule can be accepted.
    pub fn check(&self) -> Result<(), RuleError> {
        let length = self.name.chars().count();
        if !(1..=MAX_NAME_CHARS).contains(&length) || !self.name.chars().all(is_name_char) {
            return Err(RuleError::Name(self.name.chars().take(MAX_NAME_CHARS).collect()));
        }
        if self.name == "preview" {
            return Err(RuleError::Reserved);
        }
        let metric = self.metric;
        if let Some(subject) = &self.subject {
            let length = subject.trim().chars().count();
            if !(1..=MAX_SUBJECT_CHARS).contains(&length) || subject.chars().any(char::is_control) {
                return Err(RuleError::Subject);
            }
            if metric == AlertMetric::Silence {
                return Err(RuleError::NoSubject { metric });
            }
        }
        self.check_limit()?;
        let source = metric.source();
        if self.times == 0 || self.times > self.of || self.of > MAX_VALUES {
            return Err(RuleError::Count);
        }
        if matches!(source, MetricSource::Outages | MetricSource::Clock) && self.of != 1 {
            return Err(RuleError::OneEvent { metric });
        }
        if !(1..=MAX_WINDOW_MINUTES).contains(&self.window_minutes) {
            return Err(RuleError::Window);
        }
        if self.retest && source != MetricSource::Tests {
            return Err(RuleError::Retest { metric });
        }
        let mut names = self.channels.iter().map(|name| name.to_lowercase()).collect::<Vec<_>>();
        names.sort();
        names.dedup();
        if names.len() != self.channels.len() || names.len() > MAX_CHANNELS {
            return Err(RuleError::Channels);
        }
        Ok(())
    }

    fn check_limit(&self) -> Result<(), RuleError> {
        use AlertLimit::{Above, AboveUsual, Below, BelowPlan, BelowUsual};
        let metric = self.metric;
        let unit = metric.unit();
        let valid_kinds = match unit {
            MetricUnit::BitsPerSecond => "below a value, below a share of the plan, or below a share of what is usual",
            MetricUnit::Milliseconds => "above a value, or above a multiple of what is usual",
            MetricUnit::Percent | MetricUnit::Seconds => "above a value",
            MetricUnit::Count => "no limit",
        };
        let Some(limit) = self.limit else {
            return if unit == MetricUnit::Count { Ok(()) } else { Err(RuleError::NoLimit { metric }) };
        };
        let (is_valid, valid) = match (unit, limit) {
            (MetricUnit::BitsPerSecond, Below(value)) => {
                (value > 0.0 && value <= quantity::MAX_RATE as f64, "a rate above 0 bit/s")
            }
            (MetricUnit::BitsPerSecond, BelowPlan(share)) => {
                (share > 0.0 && share <= 1.0, "above 0 % and at most 100 %")
            }
            (MetricUnit::BitsPerSecond, BelowUsual(share)) => (share > 0.0 && share < 1.0, "between 0 % and 100 %"),
            (MetricUnit::Milliseconds, Above(value)) => {
                (value > 0.0 && value <= 60_000.0, "above 0 ms and at most 60 s")
            }
            (MetricUnit::Milliseconds, AboveUsual(factor)) => {
                (factor > 1.0 && factor <= MAX_FACTOR, "more than 100 % and at most 10000 % of what is usual")
            }
            (MetricUnit::Percent, Above(value)) => ((0.0..100.0).contains(&value), "from 0 % to below 100 %"),
            (MetricUnit::Seconds, Above(value)) => {
                let shortest = if metric == AlertMetric::Outage { SHORTEST_OUTAGE_S } else { SHORTEST_SILENCE_S };
                let valid = if metric == AlertMetric::Outage { "from 10s to 366d" } else { "from 10m to 366d" };
                ((shortest..=LONGEST_S).contains(&value), valid)
            }
            _ => return Err(RuleError::LimitKind { metric, valid: valid_kinds }),
        };
        if is_valid { Ok(()) } else { Err(RuleError::LimitValue { metric, valid }) }
    }

    /// The limit in words, such as `below 80 % of the plan`. These words can follow the description of the metric.
    pub fn limit_words(&self) -> String {
        let unit = self.metric.unit();
        match self.limit {
            None => String::new(),
            Some(AlertLimit::Below(value)) => format!("below {}", unit.print(value)),
            Some(AlertLimit::Above(value)) if unit == MetricUnit::Seconds => {
                format!("longer than {}", unit.print(value))
            }
            Some(AlertLimit::Above(value)) => format!("above {}", unit.print(value)),
            Some(AlertLimit::BelowPlan(share)) => format!("below {} of the plan", quantity::share(share)),
            Some(AlertLimit::BelowUsual(share)) => {
                format!("below {} of what is usual at this hour of the week", quantity::share(share))
            }
            Some(AlertLimit::AboveUsual(factor)) => {
                format!("above {} of what is usual at this hour of the week", quantity::share(factor))
            }
        }
    }

    /// The whole rule in words, such as `download below 80 % of the plan, 3 of the last 4 tests, repeated at once`.
    pub fn words(&self) -> String {
        let mut words = self.metric.as_words().to_owned();
        if let Some(subject) = &self.subject {
            words += &format!(" of {subject}");
        }
        if self.limit.is_some() {
            words += &format!(" {}", self.limit_words());
        }
        let (times, of, window) = (self.times, self.of, self.window_minutes);
        match (self.metric.source(), of) {
            (MetricSource::Tests, 2..) => words += &format!(", {times} of the last {of} tests"),
            (MetricSource::Monitors, 1) => words += &format!(", in {window} min"),
            (MetricSource::Monitors, _) => words += &format!(", {times} of the last {of} windows of {window} min"),
            _ => {}
        }
        if self.retest {
            words += ", repeated at once";
        }
        words
    }

    /// The suggested rules. A suggested rule is active only after the owner adds it. If there is no plan, the rules
    /// that compare with the plan are left out.
    pub fn suggested(has_plan: bool, zone: &Zone) -> Vec<Self> {
        use AlertLimit::{Above, AboveUsual, BelowPlan, BelowUsual};
        let rule = |name, metric, limit| Self::new(name, metric, Some(limit), zone.clone());
        let tested = |rule: Self| Self { retest: true, ..rule };
        let of_plan = [
            tested(rule("download-below-plan", AlertMetric::Download, BelowPlan(0.7)).with_times(3, 4)),
            tested(rule("upload-below-plan", AlertMetric::Upload, BelowPlan(0.7)).with_times(3, 4)),
        ];
        let others = [
            rule("outage", AlertMetric::Outage, Above(120.0)),
            rule("loss", AlertMetric::MonitorLoss, Above(2.0)).with_times(4, 6),
            rule("slow-answers", AlertMetric::MonitorLatencyP50, AboveUsual(2.5)).with_times(4, 6),
            tested(rule("download-below-usual", AlertMetric::Download, BelowUsual(0.6)).with_times(3, 4)),
            Self::new("tests-fail", AlertMetric::TestFailed, None, zone.clone()).with_times(3, 3),
            rule("silence", AlertMetric::Silence, Above(26.0 * 3_600.0)),
        ];
        of_plan.into_iter().filter(|_| has_plan).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(metric: AlertMetric, limit: Option<AlertLimit>) -> AlertRule {
        AlertRule::new("slow", metric, limit, "Europe/Berlin".parse().unwrap())
    }

    fn download() -> AlertRule {
        rule(AlertMetric::Download, Some(AlertLimit::BelowPlan(0.8)))
    }

    #[test]
    fn what_could_never_hold_or_break_is_refused_by_cause() {
        use AlertLimit::{Above, AboveUsual, Below, BelowPlan, BelowUsual};
        assert_eq!(download().check(), Ok(()));
        for name in ["", "a b", "a/b", "\u{3164}", &"x".repeat(61)] {
            let named = AlertRule { name: name.to_owned(), ..download() };
            assert!(matches!(named.check(), Err(RuleError::Name(_))), "{name}");
        }
        assert_eq!(AlertRule { name: "preview".to_owned(), ..download() }.check(), Err(RuleError::Reserved));
        for (metric, limit) in [
            (AlertMetric::Download, Above(1e6)),
            (AlertMetric::IdleLatency, Below(1.0)),
            (AlertMetric::IdleLatency, BelowPlan(0.5)),
            (AlertMetric::MonitorLoss, AboveUsual(2.0)),
            (AlertMetric::Outage, AboveUsual(2.0)),
            (AlertMetric::TestFailed, Above(1.0)),
        ] {
            let refused = rule(metric, Some(limit)).check();
            assert!(matches!(refused, Err(RuleError::LimitKind { .. })), "{metric} {limit:?}: {refused:?}");
        }
        for (metric, limit) in [
            (AlertMetric::Download, Below(0.0)),
            (AlertMetric::Download, Below(f64::NAN)),
            (AlertMetric::Download, BelowPlan(1.01)),
            (AlertMetric::Upload, BelowUsual(1.0)),
            (AlertMetric::MonitorLatencyP95, AboveUsual(1.0)),
            (AlertMetric::Loss, Above(100.0)),
            (AlertMetric::Loss, Above(-1.0)),
            (AlertMetric::Outage, Above(9.0)),
            (AlertMetric::Silence, Above(f64::INFINITY)),
        ] {
            let refused = rule(metric, Some(limit)).check();
            assert!(matches!(refused, Err(RuleError::LimitValue { .. })), "{metric} {limit:?}: {refused:?}");
        }
        assert!(matches!(rule(AlertMetric::Loss, None).check(), Err(RuleError::NoLimit { .. })));
        for (times, of) in [(0, 1), (2, 1), (1, 21)] {
            assert_eq!(download().with_times(times, of).check(), Err(RuleError::Count), "{times} of {of}");
        }
        let outage = rule(AlertMetric::Outage, Some(Above(60.0)));
        assert!(matches!(outage.clone().with_times(1, 2).check(), Err(RuleError::OneEvent { .. })));
        assert!(matches!(AlertRule { retest: true, ..outage }.check(), Err(RuleError::Retest { .. })));
        assert_eq!(AlertRule { window_minutes: 0, ..download() }.check(), Err(RuleError::Window));
        assert_eq!(AlertRule { subject: Some("\n".to_owned()), ..download() }.check(), Err(RuleError::Subject));
        let twice = vec!["phone".to_owned(), "Phone".to_owned()];
        assert_eq!(AlertRule { channels: twice, ..download() }.check(), Err(RuleError::Channels));
    }

    #[test]
    fn a_rule_is_read_as_it_was_written_and_its_defaults_are_few() {
        let full = AlertRule {
            subject: Some("attic".to_owned()),
            channels: vec!["phone".to_owned()],
            quiet_hours: "22:00-07:00".parse().ok(),
            retest: true,
            ..download().with_times(3, 4)
        };
        let text = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<AlertRule>(&text).unwrap(), full, "{text}");
        assert!(text.contains(r#""limit":{"below_plan":0.8}"#), "{text}");
        let short = r#"{"name":"slow","metric":"download","limit":{"below_plan":0.8},"zone":"Europe/Berlin"}"#;
        assert_eq!(serde_json::from_str::<AlertRule>(short).unwrap(), download());
        assert!(serde_json::from_str::<AlertRule>(r#"{"name":"slow","metric":"download","limt":1}"#).is_err());
    }

    #[test]
    fn the_suggested_rules_are_valid_and_say_what_they_do() {
        let zone = "Europe/Berlin".parse().unwrap();
        let suggested = AlertRule::suggested(true, &zone);
        assert!(suggested.iter().all(|rule| rule.check().is_ok()));
        assert_eq!(suggested.len() - AlertRule::suggested(false, &zone).len(), 2);
        let words = suggested.iter().map(AlertRule::words).collect::<Vec<_>>();
        assert_eq!(
            words,
            [
                "download below 70 % of the plan, 3 of the last 4 tests, repeated at once",
                "upload below 70 % of the plan, 3 of the last 4 tests, repeated at once",
                "outage longer than 2 min",
                "loss of a monitor above 2.0 %, 4 of the last 6 windows of 5 min",
                "median round trip of a monitor above 250 % of what is usual at this hour of the week, 4 of the last 6 windows of 5 min",
                "download below 60 % of what is usual at this hour of the week, 3 of the last 4 tests, repeated at once",
                "failed test, 3 of the last 3 tests",
                "time without a result longer than 1 day 2 h",
            ]
        );
    }
}
