//! What was found when an alert opened or closed: the numbers behind its message.

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metric::AlertMetric;
use super::rule::AlertLimit;
use crate::monitor::outage::OutageScope;

/// What was found when an alert opened or closed. Values are in the unit of the metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertFinding {
    /// The metric of the rule whose alert opened or closed.
    pub metric: AlertMetric,
    /// The limit of the rule when the alert opened or closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<AlertLimit>,
    /// The time of the finding. If the rule judges tests or windows of monitors: the end of the test or window whose
    /// value opened or closed the alert.
    pub at: Timestamp,
    /// When the measured values began to violate the rule.
    pub since: Timestamp,
    /// When the measured values met the rule again; absent while they violate it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The value that opened or closed the alert; absent if nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
    /// The limit of the rule, as a value in the unit of the metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// The value to which the limit is relative: what the plan promises, or what is usual at this hour of the week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// How many of the last `of` values were bad. When an alert closes: how many values in a row were good.
    pub count: u32,
    /// The number of latest values that the rule looks at.
    pub of: u32,
    /// The length in minutes of the window that gave the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_minutes: Option<u32>,
    /// What was found by repeating the test, if the rule repeats tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retest: Option<RetestFinding>,
    /// What was not reachable, if the alert is about an outage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<OutageFinding>,
    /// What failed, if a test failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Why the alert closed without good values: the rule was removed, disabled or changed. Absent if good values
    /// closed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<RuleEnd>,
}

#[cfg(test)]
impl AlertFinding {
    /// A value at `at` that broke a rule of this metric.
    pub(crate) fn example(metric: AlertMetric, limit: Option<AlertLimit>, at: Timestamp) -> Self {
        Self {
            metric,
            limit,
            at,
            since: at,
            until: None,
            measured: Some(60.1),
            expected: None,
            reference: None,
            count: 1,
            of: 1,
            window_minutes: None,
            retest: None,
            outage: None,
            failure: None,
            ended_by: None,
        }
    }
}

/// What was found by repeating a test whose value was bad. The repeated test was bad, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetestFinding {
    /// The other targets that were tested after the first test, and were bad too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub also_bad: BTreeSet<String>,
    /// The other targets that were tested after the first test, and were good.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub good: BTreeSet<String>,
}

/// The outage that an alert is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutageFinding {
    /// What failed in the outage.
    pub scope: OutageScope,
    /// The names of the monitors whose target was not reachable.
    pub failed: BTreeSet<String>,
}

/// Why a rule stopped judging while its alert was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleEnd {
    /// The rule was removed.
    Removed,
    /// The rule was disabled.
    Disabled,
    /// The rule was changed. The changed rule judges only what is measured from then on.
    Changed,
}

/// An action that a rule demands after it judged a value.
#[derive(Clone, Debug, PartialEq)]
pub enum AlertAction {
    /// The alert of the subject opens.
    Open {
        /// The target or the monitor that the alert concerns.
        subject: String,
        /// Why the alert opens.
        finding: Box<AlertFinding>,
    },
    /// The alert of the subject closes.
    Close {
        /// The target or the monitor that the alert concerns.
        subject: String,
        /// Why the alert closes.
        finding: Box<AlertFinding>,
    },
    /// The test against the subject is to be repeated. The result of the repeated test decides whether the alert opens.
    Retest {
        /// The target of the test to repeat.
        subject: String,
        /// When the test to repeat ended.
        at: Timestamp,
    },
}
