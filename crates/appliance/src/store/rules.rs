//! Stores the alert rules of this appliance, each with the time up to which it has judged the measurements.

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{on, rows, without_nul};
use super::{ApplianceStore, StorageError, strange};
use crate::alerts::{AlertMetric, AlertRule};

/// A rule as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredRule {
    /// The id of the rule, a UUIDv7.
    pub id: Uuid,
    /// Whether the rule judges measurements.
    pub enabled: bool,
    /// Whether a configuration file made the rule (`packetparamedic apply`).
    pub from_file: bool,
    /// When the rule was added.
    pub added_at: Timestamp,
    /// The time up to which the rule has judged the measurements.
    pub judged_until: Timestamp,
    /// The definition of the rule.
    #[serde(flatten)]
    pub rule: AlertRule,
}

/// The stored columns of a rule.
type RuleRow = (String, bool, bool, i64, i64, String);

/// The columns of a [`RuleRow`].
const COLUMNS: &str = "id, enabled, from_file, added_at_us, judged_until_us, definition";

impl ApplianceStore {
    /// Saves a new rule, which is enabled. The rule judges only what is measured from `now` on. `appliance` is the
    /// Endpoint ID of this device.
    pub async fn add_rule(
        &self,
        appliance: &str,
        rule: &AlertRule,
        now: Timestamp,
    ) -> Result<StoredRule, StorageError> {
        let definition = serde_json::to_string(rule).map_err(|source| StorageError::Document { source })?;
        let id = Uuid::now_v7();
        let added = on!(self.pool, |db| sqlx::query(
            "INSERT INTO rules (id, appliance, name, definition, enabled, from_file, added_at_us, judged_until_us) \
             VALUES ($1, $2, $3, $4, TRUE, FALSE, $5, $5)",
        )
        .bind(id.to_string())
        .bind(appliance)
        .bind(&rule.name)
        .bind(definition)
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows));
        let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        let (added_at, judged_until, rule) = (now, now, rule.clone());
        match added {
            Ok(_) => Ok(StoredRule { id, enabled: true, from_file: false, added_at, judged_until, rule }),
            Err(error) if is_unique_violation(&error) => Err(StorageError::RuleExists { name: rule.name }),
            Err(error) => Err(self.fault("saving the rule")(error)),
        }
    }

    /// Every rule, sorted by name.
    pub async fn rules(&self) -> Result<Vec<StoredRule>, StorageError> {
        let fault = || self.fault("reading the rules");
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM rules ORDER BY lower(name)"));
        on!(self.pool, |db| sqlx::query_as::<_, RuleRow>(sql).fetch_all(db).await)
            .map_err(fault())?
            .into_iter()
            .map(|row| stored(row).map_err(fault()))
            .collect()
    }

    /// The rule with this name, ignoring case.
    pub async fn rule(&self, name: &str) -> Result<StoredRule, StorageError> {
        let wanted = name.trim().to_lowercase();
        let mut all = self.rules().await?;
        all.retain(|stored| stored.rule.name.to_lowercase() == wanted);
        all.pop().ok_or_else(|| StorageError::NoSuchRule { wanted: name.to_owned() })
    }

    /// The names of all channels, in lower case.
    pub async fn channel_names(&self) -> Result<Vec<String>, StorageError> {
        on!(self.pool, |db| {
            sqlx::query_scalar::<_, String>("SELECT lower(name) FROM channels ORDER BY 1").fetch_all(db).await
        })
        .map_err(self.fault("reading the channels"))
    }

    /// Whether a test that began at `since` or later measured this metric. If `subject` is given, only tests against
    /// this other end count.
    pub async fn is_measured_by_tests(
        &self,
        metric: AlertMetric,
        subject: Option<&str>,
        since: Timestamp,
    ) -> Result<bool, StorageError> {
        let Some(value) = value_column(metric) else { return Ok(false) };
        // The SQL text is built from constants alone.
        let sql = format!(
            "SELECT 1 FROM runs WHERE started_at_us >= $1 AND ($2 IS NULL OR lower(peer) = $2) AND ({value}) IS NOT NULL \
             LIMIT 1"
        );
        let found = on!(self.pool, |db| sqlx::query_scalar::<_, i32>(sqlx::AssertSqlSafe(sql))
            .bind(since.as_microsecond())
            .bind(subject.map(|subject| without_nul(subject).to_ascii_lowercase()))
            .fetch_optional(db)
            .await);
        Ok(found.map_err(self.fault("reading the runs"))?.is_some())
    }

    /// The begin of the last complete test that began before `before`; `None` if there is none.
    pub async fn last_complete_run(&self, before: Timestamp) -> Result<Option<Timestamp>, StorageError> {
        let fault = || self.fault("reading the runs");
        let last = on!(self.pool, |db| {
            sqlx::query_scalar::<_, i64>(
            "SELECT started_at_us FROM runs WHERE started_at_us < $1 AND complete ORDER BY started_at_us DESC LIMIT 1",
        )
        .bind(before.as_microsecond())
        .fetch_optional(db)
        .await
        });
        last.map_err(fault())?.map(|at| time(at).map_err(fault())).transpose()
    }

    /// The values of `metric` in the complete tests that began at `since` or later, in order of time. Each has the
    /// other end of the test, the begin of the test, and the value in the unit of the metric.
    pub async fn test_values(
        &self,
        metric: AlertMetric,
        since: Timestamp,
    ) -> Result<Vec<(String, Timestamp, f64)>, StorageError> {
        let fault = || self.fault("reading the runs");
        let Some(value) = value_column(metric) else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT COALESCE(peer, address, ''), started_at_us, CAST({value} AS DOUBLE PRECISION) FROM runs \
             WHERE started_at_us >= $1 AND complete AND ({value}) IS NOT NULL ORDER BY started_at_us"
        );
        let rows = on!(self.pool, |db| sqlx::query_as::<_, (String, i64, f64)>(sqlx::AssertSqlSafe(sql))
            .bind(since.as_microsecond())
            .fetch_all(db)
            .await)
        .map_err(fault())?;
        let value = |(peer, at, value): (String, i64, f64)| Ok((peer, time(at)?, value));
        rows.into_iter().map(|row| value(row).map_err(fault())).collect()
    }
}

/// The SQL expression for the value of this metric in a run; `None` if only monitors measure the metric.
fn value_column(metric: AlertMetric) -> Option<&'static str> {
    match metric {
        AlertMetric::Download => Some("download_bps"),
        AlertMetric::Upload => Some("upload_bps"),
        AlertMetric::IdleLatency => Some("rtt_idle_us / 1000.0"),
        AlertMetric::LoadedLatency => Some(
            "CASE WHEN COALESCE(rtt_download_p95_us, 0) > COALESCE(rtt_upload_p95_us, 0) THEN rtt_download_p95_us \
             ELSE rtt_upload_p95_us END / 1000.0",
        ),
        AlertMetric::Loss => Some("loss_idle * 100.0"),
        AlertMetric::TestFailed | AlertMetric::Silence => Some("1"),
        AlertMetric::MonitorLoss
        | AlertMetric::MonitorLatencyP50
        | AlertMetric::MonitorLatencyP95
        | AlertMetric::Outage => None,
    }
}

fn stored((id, enabled, from_file, added_at, judged_until, definition): RuleRow) -> Result<StoredRule, sqlx::Error> {
    Ok(StoredRule {
        id: id.parse().map_err(strange)?,
        enabled,
        from_file,
        added_at: time(added_at)?,
        judged_until: time(judged_until)?,
        rule: serde_json::from_str(&definition).map_err(strange)?,
    })
}

fn time(us: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(us).map_err(strange)
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};

    use super::super::each_engine::on_each_engine;
    use super::*;
    use crate::alerts::AlertLimit;

    fn rule(name: &str) -> AlertRule {
        let limit = Some(AlertLimit::BelowPlan(0.7));
        AlertRule::new(name, AlertMetric::Download, limit, "Europe/Berlin".parse().unwrap())
    }

    #[tokio::test]
    async fn a_rule_is_found_by_its_name_and_its_name_is_unique() {
        on_each_engine(async |store| {
            let now = "2026-01-01T00:00:00.000001Z".parse().unwrap();
            let second = store.add_rule("PP", &rule("Slow"), now).await.unwrap();
            let first = store.add_rule("PP", &rule("loss"), now).await.unwrap();
            let taken = store.add_rule("PP", &rule("SLOW"), now).await;
            assert!(matches!(taken, Err(StorageError::RuleExists { .. })), "{taken:?}");
            assert_eq!(store.rules().await.unwrap(), [first, second.clone()]);
            assert_eq!(store.rule(" slow ").await.unwrap(), second);
            let missing = store.rule("fast").await;
            assert!(matches!(missing, Err(StorageError::NoSuchRule { .. })), "{missing:?}");
            assert_eq!((second.added_at, second.judged_until), (now, now));
        })
        .await;
    }

    #[tokio::test]
    async fn each_metric_of_tests_has_its_values() {
        on_each_engine(async |store| {
            let document = example::full();
            let partial = ResultDocument { id: Uuid::now_v7(), complete: false, ..document.clone() };
            for document in [&document, &partial] {
                store.save_run(document).await.unwrap();
            }
            let since = document.started_at;
            let later = since.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
            let peer = document.other_end().unwrap();
            for (metric, ..) in AlertMetric::ALL {
                let values = store.test_values(metric, since).await.unwrap();
                let is_of_tests = value_column(metric).is_some();
                assert_eq!(values.len(), usize::from(is_of_tests), "{metric}: the partial one does not count");
                let measured = async |subject: Option<&str>, since| {
                    store.is_measured_by_tests(metric, subject, since).await.unwrap()
                };
                assert_eq!(measured(None, since).await, is_of_tests, "{metric}");
                assert_eq!(measured(Some(&*peer.to_ascii_uppercase()), since).await, is_of_tests, "{metric}");
                assert!(!measured(Some("nobody"), since).await && !measured(None, later).await, "{metric}");
            }
            assert_eq!(store.last_complete_run(later).await.unwrap(), Some(since));
            assert_eq!(store.last_complete_run(since).await.unwrap(), None);
            let value = store.test_values(AlertMetric::Download, since).await.unwrap().remove(0);
            assert_eq!(value, (peer.to_owned(), since, document.download.unwrap().goodput_bps as f64));
        })
        .await;
    }
}
