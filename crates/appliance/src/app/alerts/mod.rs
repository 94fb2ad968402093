//! The alert rules of this appliance: add, list, remove, enable, disable, preview; and the alerts. Reads the clock for
//! them.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for rules and alerts")]

mod judging;
mod observing;
mod writing;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use judging::{AlertBoard, RetestWish};

use super::Appliance;
use crate::alerts::{AlertAction, AlertFinding, AlertLimit, AlertRule, MetricSource, RuleEnd, RuleError, RulePreview};
use crate::error::ApplianceError;
use crate::schedule::Zone;
use crate::store::{AlertWrite, ApplianceStore, PageCursor, RuleWrite, StorageError, StoredAlert, StoredRule};

/// The length of the past period that a preview replays.
const PREVIEW: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The maximum number of open alerts that are read at once, of all rules together.
pub(super) const MOST_OPEN: u32 = 200;

/// A rule with its description, its open alerts, and why it may have no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleOverview {
    /// The rule as it is stored.
    #[serde(flatten)]
    pub stored: StoredRule,
    /// The description of the rule in words.
    pub words: String,
    /// The targets and monitors for which an alert of this rule is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// Why the rule cannot open an alert at present: nothing measures its metric, or there is no plan to compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<String>,
    /// Channels that the rule names but that no longer exist, so they get no messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_channels: Vec<String>,
}

/// For tests: the store write that opens an example alert of this rule.
#[cfg(test)]
pub(super) fn example_opening(stored: &StoredRule, now: Timestamp) -> AlertWrite {
    let AlertRule { metric, limit, .. } = stored.rule;
    let finding = AlertFinding::example(metric, limit, now);
    let action = AlertAction::Open { subject: "attic".to_owned(), finding: Box::new(finding) };
    writing::write_of(stored, action, None, now).unwrap()
}

/// The writes that close the open alerts of a rule which is removed, disabled or changed.
pub(super) fn closings(stored: &StoredRule, end: RuleEnd, open: &[StoredAlert], now: Timestamp) -> Vec<AlertWrite> {
    let of_rule = open.iter().filter(|alert| alert.rule_id == stored.id && alert.closed_at.is_none());
    let close = |alert: &StoredAlert| {
        let finding = AlertFinding { at: now, until: None, ended_by: Some(end), ..alert.opening.finding.clone() };
        let action = AlertAction::Close { subject: alert.subject.clone(), finding: Box::new(finding) };
        writing::write_of(stored, action, Some(alert.id), now)
    };
    of_rule.filter_map(close).collect()
}

impl Appliance {
    /// Saves a new rule, which is enabled.
    pub async fn add_rule(&self, rule: &AlertRule) -> Result<StoredRule, ApplianceError> {
        rule.check()?;
        let own = self.endpoint_id()?.to_string();
        let store = self.store().await?;
        let channels = store.channel_names().await?;
        if let Some(unknown) = rule.channels.iter().find(|name| !channels.contains(&name.to_ascii_lowercase())) {
            return Err(RuleError::NoSuchChannel(unknown.clone()).into());
        }
        Ok(store.add_rule(&own, rule, Timestamp::now()).await?)
    }

    /// The suggested rules that this appliance does not have yet. None of them is active.
    pub async fn suggested_rules(&self) -> Result<Vec<AlertRule>, ApplianceError> {
        let store = self.reading_store().await?;
        let has_plan = store.plan().await?.is_some();
        let known = store.rules().await?.into_iter().map(|stored| stored.rule.name.to_lowercase()).collect::<Vec<_>>();
        let mut suggested = AlertRule::suggested(has_plan, &Zone::of_host());
        suggested.retain(|rule| !known.contains(&rule.name));
        Ok(suggested)
    }

    /// The names of the channels that a rule can use, in lower case.
    pub async fn channel_names(&self) -> Result<Vec<String>, ApplianceError> {
        Ok(self.reading_store().await?.channel_names().await?)
    }

    /// All rules, sorted by name.
    pub async fn rules(&self) -> Result<Vec<RuleOverview>, ApplianceError> {
        let store = self.reading_store().await?;
        let open = store.alerts(true, None, MOST_OPEN).await?;
        let mut all = Vec::new();
        for stored in store.rules().await? {
            all.push(overview(store, stored, &open).await?);
        }
        Ok(all)
    }

    /// The rule with this name.
    pub async fn rule(&self, name: &str) -> Result<RuleOverview, ApplianceError> {
        let store = self.reading_store().await?;
        let open = store.alerts(true, None, MOST_OPEN).await?;
        overview(store, store.rule(name).await?, &open).await
    }

    /// Removes the rule with this name, closes its alerts, and returns it.
    pub async fn remove_rule(&self, name: &str) -> Result<StoredRule, ApplianceError> {
        self.end_rule(name, RuleEnd::Removed).await
    }

    /// Enables or disables the rule with this name, and returns it. Disabling closes its alerts.
    pub async fn enable_rule(&self, name: &str, enabled: bool) -> Result<StoredRule, ApplianceError> {
        if !enabled {
            return Ok(StoredRule { enabled, ..self.end_rule(name, RuleEnd::Disabled).await? });
        }
        let store = self.store().await?;
        let now = Timestamp::now();
        let stored = store.rule(name).await?;
        store.change_rule(&self.endpoint_id()?.to_string(), &stored, RuleWrite::Enable(now), &[], now).await?;
        Ok(store.rule(name).await?)
    }

    async fn end_rule(&self, name: &str, end: RuleEnd) -> Result<StoredRule, ApplianceError> {
        let store = self.store().await?;
        let now = Timestamp::now();
        let stored = store.rule(name).await?;
        let open = store.alerts(true, None, MOST_OPEN).await?;
        let writes = closings(&stored, end, &open, now);
        let change = if end == RuleEnd::Removed { RuleWrite::Remove } else { RuleWrite::Disable };
        if !store.change_rule(&self.endpoint_id()?.to_string(), &stored, change, &writes, now).await? {
            return Err(StorageError::NoSuchRule { wanted: name.to_owned() }.into());
        }
        Ok(stored)
    }

    /// What `rule` would have done in the last 30 days. The rule need not be saved.
    pub async fn preview_rule(&self, rule: &AlertRule) -> Result<RulePreview, ApplianceError> {
        rule.check()?;
        let now = Timestamp::now();
        let since = now.checked_sub(PREVIEW).unwrap_or(now);
        observing::preview(self.reading_store().await?, rule, since, now).await
    }

    /// Why `rule` cannot open an alert at present; `None` if it can. The rule need not be saved.
    pub async fn unmeasured(&self, rule: &AlertRule) -> Result<Option<String>, ApplianceError> {
        unmeasured(self.reading_store().await?, rule).await
    }

    /// A page of the alerts, newest first: at most `limit` alerts after the position `after`. If `after` is `None`, the
    /// first page.
    pub async fn alerts(
        &self,
        only_open: bool,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<StoredAlert>, ApplianceError> {
        Ok(self.reading_store().await?.alerts(only_open, after, limit).await?)
    }

    /// The alerts that were open at some time from `since` to `until`, newest first, at most `limit`.
    pub async fn alerts_between(
        &self,
        since: Timestamp,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<StoredAlert>, ApplianceError> {
        Ok(self.reading_store().await?.alerts_between(since, until, limit).await?)
    }
}

async fn overview(
    store: &ApplianceStore,
    stored: StoredRule,
    open: &[StoredAlert],
) -> Result<RuleOverview, ApplianceError> {
    let own = open.iter().filter(|alert| alert.rule_id == stored.id).map(|alert| alert.subject.clone()).collect();
    let unmeasured = unmeasured(store, &stored.rule).await?;
    let mut missing_channels = stored.rule.channels.clone();
    if !missing_channels.is_empty() {
        let known = store.channel_names().await?;
        missing_channels.retain(|name| !known.contains(&name.to_ascii_lowercase()));
    }
    Ok(RuleOverview { words: stored.rule.words(), open: own, unmeasured, missing_channels, stored })
}

async fn unmeasured(store: &ApplianceStore, rule: &AlertRule) -> Result<Option<String>, ApplianceError> {
    let (metric, subject) = (rule.metric, rule.subject.as_deref());
    if matches!(rule.limit, Some(AlertLimit::BelowPlan(_))) && store.plan().await?.is_none() {
        return Ok(Some("no plan is set; run `packetparamedic plan set`".to_owned()));
    }
    let of = subject.map(|subject| format!(" of {subject}")).unwrap_or_default();
    match metric.source() {
        MetricSource::Tests | MetricSource::Clock => {
            let now = Timestamp::now();
            let since = now.checked_sub(PREVIEW).unwrap_or(now);
            let is_measured = store.is_measured_by_tests(metric, subject, since).await?;
            Ok((!is_measured).then(|| format!("no test{of} measured this metric in the last 30 days")))
        }
        MetricSource::Monitors | MetricSource::Outages => {
            let monitors = store.monitors().await?;
            let is_own = |name: &str| rule.concerns(name);
            let is_measured = monitors.iter().any(|stored| stored.enabled && is_own(&stored.monitor.name));
            let what = subject.map_or_else(|| "no monitor".to_owned(), |name| format!("no monitor {name:?}"));
            Ok((!is_measured).then(|| format!("{what} is enabled")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::AlertMetric;
    use crate::app::each_engine::devices;
    use crate::monitor::{Monitor, MonitorTarget};
    use crate::schedule::{Schedule, example_schedule};
    use crate::store::{Reflector, StoredSchedule};

    fn rule(metric: AlertMetric, limit: AlertLimit) -> AlertRule {
        AlertRule::new("r", metric, Some(limit), "UTC".parse().unwrap())
    }

    #[tokio::test]
    async fn a_rule_that_cannot_fire_says_why_and_fires_never() {
        for (_folder, device) in devices() {
            let why = async |rule: &AlertRule| device.unmeasured(rule).await.unwrap().unwrap_or_default();
            let slow = rule(AlertMetric::Download, AlertLimit::Below(1e6));
            let of_plan = rule(AlertMetric::Download, AlertLimit::BelowPlan(0.7));
            let loss = rule(AlertMetric::MonitorLoss, AlertLimit::Above(2.0));
            assert_eq!(why(&slow).await, "no test measured this metric in the last 30 days");
            assert_eq!(why(&of_plan).await, "no plan is set; run `packetparamedic plan set`");
            let of_attic = AlertRule { subject: Some("attic".to_owned()), ..loss.clone() };
            assert_eq!(why(&of_attic).await, "no monitor \"attic\" is enabled");
            assert_eq!(why(&loss).await, "no monitor is enabled");
            let preview = device.preview_rule(&loss).await.unwrap();
            assert_eq!((preview.judged, preview.alerts.len()), (0, 0));
            device.add_monitor(Monitor::new("attic", MonitorTarget::Gateway, None)).await.unwrap();
            assert_eq!((why(&loss).await.as_str(), why(&of_attic).await.as_str()), ("", ""));
            device.add_rule(&loss).await.unwrap();
            let overview = device.rule("R").await.unwrap();
            assert_eq!((overview.words, overview.unmeasured), (loss.words(), None));
        }
    }

    #[tokio::test]
    async fn a_test_is_repeated_by_its_schedule_and_before_against_another_reflector() {
        for (_folder, device) in devices() {
            let store = device.store().await.unwrap();
            let now = Timestamp::now();
            let tests = async |subject: &str| {
                let tests = device.retests(subject).await.unwrap();
                let peer = |(_, schedule): (StoredSchedule, Schedule)| schedule.request.peer.unwrap_or_default();
                tests.into_iter().map(peer).collect::<Vec<_>>()
            };
            let pair = async |key: u8, name: &str| {
                let endpoint_id = paramedic_link::EndpointId::from_bytes([key; 32]);
                let (name, address) = (name.into(), "203.0.113.7".parse().unwrap());
                store.add_reflector(&Reflector { endpoint_id, name, address, paired_at: now }).await.unwrap();
            };
            pair(1, "attic").await;
            assert_eq!(tests("attic").await, Vec::<String>::new(), "no schedule");
            store.add_schedule("PP", &example_schedule("nightly"), now).await.unwrap();
            assert_eq!(tests("attic").await, [""], "the only reflector");
            assert_eq!(tests("cellar").await, Vec::<String>::new());
            pair(2, "cellar").await;
            assert_eq!(tests("attic").await, Vec::<String>::new(), "the schedule names none");
            let mut named = example_schedule("named");
            named.request.peer = Some("attic".to_owned());
            store.add_schedule("PP", &named, now).await.unwrap();
            assert_eq!(tests("attic").await, ["cellar", "attic"]);
            store.enable_schedule("named", false, now).await.unwrap();
            assert_eq!(tests("attic").await, Vec::<String>::new());
        }
    }

    #[tokio::test]
    async fn a_rule_names_channels_that_exist_and_suggestions_are_not_active() {
        for (_folder, device) in devices() {
            let loss = rule(AlertMetric::MonitorLoss, AlertLimit::Above(2.0));
            let unknown = AlertRule { channels: vec!["phone".to_owned()], ..loss };
            let refused = device.add_rule(&unknown).await;
            let is_refused = matches!(refused, Err(ApplianceError::Rule(RuleError::NoSuchChannel(_))));
            assert!(is_refused, "{refused:?}");
            let suggested = device.suggested_rules().await.unwrap();
            assert!(!suggested.is_empty() && device.rules().await.unwrap().is_empty());
            device.add_rule(&suggested[0]).await.unwrap();
            assert_eq!(device.suggested_rules().await.unwrap(), suggested[1..]);
        }
    }
}
