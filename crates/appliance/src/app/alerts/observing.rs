//! Reads from the store what alert rules judge: the values of tests and of monitors, outages, and the usual values.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use paramedic_link::test_spec::Direction;
use paramedic_report::document::ResultDocument;
use uuid::Uuid;

use crate::alerts::baseline::{self, UsualValues};
use crate::alerts::judge::{References, SeenValue};
use crate::alerts::lasting::SeenOutage;
use crate::alerts::preview::{self, MeasuredPast, RulePreview};
use crate::alerts::reading::{self, MainUplink};
use crate::alerts::{AlertLimit, AlertMetric, AlertRule, MetricSource};
use crate::app::monitors::minute_of;
use crate::error::ApplianceError;
use crate::monitor::ProbeTally;
use crate::monitor::series::Resolution;
use crate::plan::Plan;
use crate::store::{
    ApplianceStore, Reflector, RunOrder, RunPosition, RunQuery, StoredMonitor, StoredOutage, find_reflector,
};

/// The number of result documents that are read at once: a few megabytes.
const PAGE: u32 = 64;
/// The maximum number of outages that are read from the store.
const MOST_OUTAGES: u32 = 1000;
/// How long the store keeps the measurements of a monitor minute by minute.
const MINUTES_KEPT: SignedDuration = SignedDuration::from_hours(14 * 24);
/// How long usual values are used before they are read from the store again.
const USUAL_KEPT: SignedDuration = SignedDuration::from_hours(6);
/// A window without a probe in its last minute counts as complete this long after the end of the window.
const WINDOW_DELAY: SignedDuration = SignedDuration::from_secs(90);

/// The values of one test that rules can judge, by metric. They are kept in memory because they are small, unlike the
/// result document.
#[derive(Clone, Debug)]
pub(super) struct TestReadings {
    pub(super) id: Uuid,
    pub(super) finished_at: Timestamp,
    values: Vec<(AlertMetric, SeenValue)>,
}

impl TestReadings {
    /// Takes the values from a result document. `known` are the paired reflectors.
    pub(super) fn of(document: &ResultDocument, uplinks: &MainUplink, known: &[Reflector]) -> Self {
        let value =
            |(metric, ..): (AlertMetric, &str, &str)| Some((metric, value_of(metric, document, uplinks, known)?));
        let values = AlertMetric::ALL.into_iter().filter_map(value).collect();
        Self { id: document.id, finished_at: document.finished_at, values }
    }

    /// The value of the test for this metric; `None` if it has none.
    pub(super) fn value(&self, metric: AlertMetric) -> Option<&SeenValue> {
        self.values.iter().find(|(own, _)| *own == metric).map(|(_, value)| value)
    }
}

/// The value of a test for a metric. If a test did not reach its reflector, the subject of the value is still the name
/// of that reflector, even if the request contains its address or Endpoint ID instead.
fn value_of(
    metric: AlertMetric,
    document: &ResultDocument,
    uplinks: &MainUplink,
    known: &[Reflector],
) -> Option<SeenValue> {
    let mut seen = reading::of_test(metric, document, uplinks)?;
    if document.reflector.is_none()
        && let Some(peer) = &document.peer
        && let Ok(reflector) = find_reflector(known.to_vec(), peer)
    {
        seen.subject = reflector.name.to_string();
    }
    Some(seen)
}

/// The usual values of each metric that a rule compares with its usual values. They are read again after
/// [`USUAL_KEPT`].
#[derive(Default)]
pub(super) struct UsualCache {
    read: HashMap<AlertMetric, (Timestamp, BTreeMap<String, UsualValues>)>,
}

impl UsualCache {
    /// The values with which `rule` compares the value `seen`.
    pub(super) async fn references(
        &mut self,
        store: &ApplianceStore,
        rule: &AlertRule,
        seen: &SeenValue,
        plan: Option<&Plan>,
        now: Timestamp,
    ) -> Result<References, ApplianceError> {
        let metric = rule.metric;
        if !matches!(rule.limit, Some(AlertLimit::BelowUsual(_) | AlertLimit::AboveUsual(_))) {
            return Ok(References { plan_bps: promised(plan, metric), usual: None });
        }
        let is_fresh = |at: Timestamp| now >= at && now.duration_since(at) < USUAL_KEPT;
        if !self.read.get(&metric).is_some_and(|(at, _)| is_fresh(*at)) {
            self.read.insert(metric, (now, usual_values(store, metric, now).await?));
        }
        let values = self.read.get(&metric).and_then(|(_, values)| values.get(&seen.subject));
        let usual = values.and_then(|values| values.at(seen.at, rule.zone.rules()));
        Ok(References { plan_bps: None, usual })
    }
}

fn promised(plan: Option<&Plan>, metric: AlertMetric) -> Option<u64> {
    let direction = match metric {
        AlertMetric::Download => Direction::Download,
        AlertMetric::Upload => Direction::Upload,
        _ => return None,
    };
    plan.map(|plan| plan.of(direction).promised_bps)
}

/// For each subject, the past values of a metric, from which its usual values are computed. They come from the
/// [`baseline::HISTORY`] before `now`.
async fn usual_values(
    store: &ApplianceStore,
    metric: AlertMetric,
    now: Timestamp,
) -> Result<BTreeMap<String, UsualValues>, ApplianceError> {
    let since = now.checked_sub(baseline::HISTORY).unwrap_or(now);
    usual_since(store, metric, since, now).await
}

async fn usual_since(
    store: &ApplianceStore,
    metric: AlertMetric,
    since: Timestamp,
    now: Timestamp,
) -> Result<BTreeMap<String, UsualValues>, ApplianceError> {
    let mut values = BTreeMap::<String, Vec<(Timestamp, f64)>>::new();
    if metric.source() == MetricSource::Tests {
        for (subject, at, value) in store.test_values(metric, since).await? {
            values.entry(subject).or_default().push((at, value));
        }
    } else {
        for stored in store.monitors().await? {
            let rows = store.monitor_rows(stored.number, Resolution::Hours, minute_of(since), minute_of(now)).await?;
            let name = &stored.monitor.name;
            let hour = |(minute, tally): (i64, ProbeTally)| {
                let at = Timestamp::from_second(minute * 60).ok()?;
                Some((at, reading::of_window(metric, name, (at, at), &tally, false).value.ok()?))
            };
            values.insert(name.clone(), rows.into_iter().filter_map(hour).collect());
            // Lets tests and monitors run between reading two monitors.
            tokio::task::yield_now().await;
        }
    }
    Ok(values.into_iter().map(|(subject, values)| (subject, UsualValues::new(values))).collect())
}

/// The outages that ended at or after `since` or have not ended yet, oldest first.
pub(super) async fn outages(store: &ApplianceStore, since: Timestamp) -> Result<Vec<SeenOutage>, ApplianceError> {
    let mut all = store.outages(None, MOST_OUTAGES).await?;
    all.retain(|outage| outage.ended_at.is_none_or(|ended| ended >= since));
    all.reverse();
    Ok(all.into_iter().map(seen_outage).collect())
}

fn seen_outage(stored: StoredOutage) -> SeenOutage {
    let StoredOutage { began_at, ended_at, scope, failed, .. } = stored;
    SeenOutage { began: began_at, ended: ended_at, scope, failed }
}

/// The values of the rule's monitors: one for each complete window that ended after `since`, in the order in which the
/// windows ended.
pub(super) async fn windows(
    store: &ApplianceStore,
    rule: &AlertRule,
    outages: &[SeenOutage],
    since: Timestamp,
    now: Timestamp,
) -> Result<Vec<SeenValue>, ApplianceError> {
    let length = i64::from(rule.window_minutes.max(1));
    let mut values = Vec::new();
    for stored in store.monitors().await?.into_iter().filter(|stored| rule.concerns(&stored.monitor.name)) {
        // The start of the first window that ends after `since`.
        let first = minute_of(since).div_euclid(length) * length;
        let rows = store.monitor_rows(stored.number, Resolution::Minutes, first, minute_of(now) + 1).await?;
        let mut tallies = BTreeMap::<i64, (ProbeTally, i64)>::new();
        for (minute, tally) in rows {
            let (whole, last) = tallies.entry(minute.div_euclid(length)).or_default();
            whole.merge(&tally);
            *last = minute;
        }
        let window = |(window, (tally, last)): (i64, (ProbeTally, i64))| {
            let (began, at) = (time(window * length)?, time((window + 1) * length)?);
            let is_complete = last + 1 == (window + 1) * length || now.duration_since(at) >= WINDOW_DELAY;
            (is_complete && at > since && at <= now)
                .then(|| of_window(rule.metric, &stored, (began, at), &tally, outages))
        };
        values.extend(tallies.into_iter().filter_map(window));
    }
    values.sort_by_key(|value| value.at);
    Ok(values)
}

fn of_window(
    metric: AlertMetric,
    stored: &StoredMonitor,
    (began, at): (Timestamp, Timestamp),
    tally: &ProbeTally,
    outages: &[SeenOutage],
) -> SeenValue {
    let name = &stored.monitor.name;
    let is_within = |outage: &SeenOutage| {
        outage.began < at && outage.ended.is_none_or(|ended| ended > began) && outage.failed.contains(name)
    };
    reading::of_window(metric, name, (began, at), tally, outages.iter().any(is_within))
}

fn time(minute: i64) -> Option<Timestamp> {
    Timestamp::from_second(minute.checked_mul(60)?).ok()
}

/// Replays what a rule would have done from `since` to `now`.
pub(super) async fn preview(
    store: &ApplianceStore,
    rule: &AlertRule,
    since: Timestamp,
    now: Timestamp,
) -> Result<RulePreview, ApplianceError> {
    let metric = rule.metric;
    let mut since = since;
    let mut past = MeasuredPast::default();
    let values = match metric.source() {
        MetricSource::Tests => tests(store, metric, since, now).await?,
        MetricSource::Monitors => {
            since = since.max(now.checked_sub(MINUTES_KEPT).unwrap_or(since));
            let outages = outages(store, since).await?;
            windows(store, rule, &outages, since, now).await?
        }
        MetricSource::Outages => {
            past.outages = outages(store, since).await?;
            Vec::new()
        }
        MetricSource::Clock => {
            past.results = results(store, since).await?;
            Vec::new()
        }
    };
    let plan = store.plan().await?.map(|stored| stored.plan);
    let usual = match rule.limit {
        Some(AlertLimit::BelowUsual(_) | AlertLimit::AboveUsual(_)) => {
            usual_since(store, metric, since.checked_sub(baseline::HISTORY).unwrap_or(since), now).await?
        }
        _ => BTreeMap::new(),
    };
    let compared = |seen: SeenValue| {
        let usual = usual.get(&seen.subject).and_then(|values| values.at(seen.at, rule.zone.rules()));
        (seen, References { plan_bps: promised(plan.as_ref(), metric), usual })
    };
    past.values = values.into_iter().map(compared).collect();
    Ok(preview::replay(rule, &past, since, now))
}

/// The values of a metric in the tests from `since` to `until`, in the order in which the tests ended.
async fn tests(
    store: &ApplianceStore,
    metric: AlertMetric,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<SeenValue>, ApplianceError> {
    let order = RunOrder::OldestFirst;
    let query = RunQuery { since: Some(since), until: Some(until), order, ..RunQuery::default() };
    let (mut values, mut uplinks, mut last) = (Vec::new(), MainUplink::default(), None::<RunPosition>);
    let known = store.reflectors().await?;
    loop {
        let page = store.documents(&query, last.as_ref(), PAGE).await?;
        let Some((position, _)) = page.last() else { break };
        last = Some(position.clone());
        for (_, saved) in &page {
            match saved.document() {
                Ok(document) => {
                    uplinks.note(&document);
                    values.extend(value_of(metric, &document, &uplinks, &known));
                }
                Err(error) => tracing::warn!(run = %saved.id, %error, "a saved result cannot be read"),
            }
        }
        tokio::task::yield_now().await;
    }
    values.sort_by_key(|value| value.at);
    Ok(values)
}

/// The start times of complete tests, oldest first: of the last such test before `since`, and of every such test since
/// then.
async fn results(store: &ApplianceStore, since: Timestamp) -> Result<Vec<Timestamp>, ApplianceError> {
    let mut all = store.last_complete_run(since).await?.into_iter().collect::<Vec<_>>();
    all.extend(store.test_values(AlertMetric::Silence, since).await?.into_iter().map(|(_, at, _)| at));
    Ok(all)
}
