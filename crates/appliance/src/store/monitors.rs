//! Stores the monitors of this appliance, the tallies of their probes for each minute, hour and day, and the outages.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use paramedic_link::EndpointId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{StoreChange, in_change, on, rows};
use super::reflectors::Reflector;
use super::{ApplianceStore, PageCursor, StorageError, TimeRange, natural, strange, unsigned};
use crate::monitor::outage::OutageScope;
use crate::monitor::series::{DAY, HOUR, Resolution};
use crate::monitor::{LatencyHistogram, Monitor, MonitorTarget, ProbeTally};

/// How long the row of a minute is kept, in minutes: 14 days.
pub(super) const MINUTES_KEPT: i64 = 14 * DAY;
/// How long the row of an hour is kept, in minutes: 400 days. The row of a day is kept for ever.
const HOURS_KEPT: i64 = 400 * DAY;
/// A missing row of an hour is computed later only if the hour is not older than this, in minutes. The row is computed
/// from rows of minutes, and older rows of minutes are no longer kept.
const ROLL_UP_WINDOW: i64 = MINUTES_KEPT;

/// A monitor as it is stored, with its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredMonitor {
    /// The id of the monitor, a UUIDv7.
    pub id: Uuid,
    /// The short key under which the probes of the monitor are stored.
    pub number: i64,
    /// Whether the monitor probes.
    pub enabled: bool,
    /// Whether a configuration file made the monitor (`packetparamedic apply`). If so, applying a configuration file
    /// again undoes changes that were made to the monitor in another way.
    #[serde(default)]
    pub from_file: bool,
    /// When the monitor was added.
    pub added_at: Timestamp,
    /// The Endpoint ID of the monitored reflector, if this is the monitor that the service adds for a reflector by
    /// itself. Absent for any other monitor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The definition of the monitor.
    #[serde(flatten)]
    pub monitor: Monitor,
}

/// The probes of one monitor in one minute.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorMinute {
    /// The key of the monitor: [`StoredMonitor::number`].
    pub number: i64,
    /// The minute, as the number of minutes since 1970.
    pub minute: i64,
    /// The tally of the probes.
    pub tally: ProbeTally,
}

/// An outage as stored, with its times on the system clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredOutage {
    /// The id of the outage, a UUIDv7.
    pub id: Uuid,
    /// When the first unanswered probe of the outage was sent.
    pub began_at: Timestamp,
    /// When the outage ended: the sending time of the first probe that was answered again, or the time of another
    /// event, such as a pause of the monitor. Absent while the outage lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Whether `ended_at` is the real end. If not, the service ended during the outage, and `ended_at` is when the
    /// outage was last seen.
    pub end_known: bool,
    /// What failed in the outage.
    pub scope: OutageScope,
    /// The names of the monitors whose target was not reachable.
    pub failed: BTreeSet<String>,
    /// The names of the monitors whose target was reachable during the whole outage.
    pub reachable: BTreeSet<String>,
}

/// The stored columns of a monitor.
#[derive(sqlx::FromRow)]
pub(super) struct MonitorRow {
    number: i64,
    id: String,
    name: String,
    target: String,
    peer: Option<String>,
    interval_ms: i64,
    enabled: bool,
    pub(super) removed: bool,
    /// Whether a configuration file made the monitor. An older database that is only read, and so not migrated, has no
    /// such column.
    #[sqlx(default)]
    from_file: bool,
    added_at_us: i64,
}

impl MonitorRow {
    pub(super) fn stored(self) -> Result<StoredMonitor, sqlx::Error> {
        let target = self.target.parse::<MonitorTarget>().map_err(strange)?;
        Ok(StoredMonitor {
            id: self.id.parse().map_err(strange)?,
            number: self.number,
            enabled: self.enabled,
            from_file: self.from_file,
            added_at: time(self.added_at_us)?,
            peer: self.peer,
            monitor: Monitor { name: self.name, target, interval_ms: natural(self.interval_ms) },
        })
    }
}

/// The stored columns of the tally of one monitor in a minute, an hour or a day.
#[derive(sqlx::FromRow)]
pub(super) struct TallyRow {
    pub(super) minute: i64,
    pub(super) monitor: i64,
    count: i64,
    lost: i64,
    under_load: i64,
    min_us: Option<i64>,
    max_us: Option<i64>,
    round_trips: Vec<u8>,
}

impl TallyRow {
    pub(super) fn tally(&self) -> Result<ProbeTally, sqlx::Error> {
        Ok(ProbeTally {
            count: natural(self.count),
            lost: natural(self.lost),
            under_load: natural(self.under_load),
            min_max_us: self.min_us.zip(self.max_us).map(|(min, max)| (natural(min), natural(max))),
            round_trips: LatencyHistogram::decode(&self.round_trips).map_err(strange)?,
        })
    }
}

/// The stored columns of an outage.
type OutageRow = (String, i64, Option<i64>, bool, String, String, String);

impl ApplianceStore {
    /// Adds and enables each monitor in `wanted` that was never added before. So a monitor that the user removed is not
    /// added again. The second value of each pair is the Endpoint ID of the reflector that the monitor probes; `None`
    /// if it probes the gateway. If the name of a monitor is taken, a number is added to the name.
    pub async fn ensure_monitors(
        &self,
        appliance: &str,
        wanted: &[(Monitor, Option<String>)],
        now: Timestamp,
    ) -> Result<Vec<StoredMonitor>, StorageError> {
        let fault = || self.fault("saving the monitors");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let known = all_monitors(&mut work).await.map_err(fault())?;
        let gateway = MonitorTarget::Gateway.to_string();
        let is_known = |peer: &Option<String>| {
            known.iter().any(|row| match peer {
                Some(peer) => row.peer.as_ref() == Some(peer),
                None => row.target == gateway,
            })
        };
        let mut names = known.iter().filter(|row| !row.removed).map(|row| row.name.to_lowercase()).collect();
        let mut number = known.iter().map(|row| row.number).max().unwrap_or(0);
        let mut added = Vec::new();
        for (monitor, peer) in wanted.iter().filter(|(_, peer)| !is_known(peer)) {
            number += 1;
            let monitor = Monitor { name: free_name(&monitor.name, &mut names), ..monitor.clone() };
            let stored = new_monitor(number, monitor, peer.clone(), now);
            insert(&mut work, appliance, &stored).await.map_err(fault())?;
            added.push(stored);
        }
        work.commit().await.map_err(fault())?;
        Ok(added)
    }

    /// Saves a new monitor, which is enabled. `appliance` is the Endpoint ID of this device.
    pub async fn add_monitor(
        &self,
        appliance: &str,
        monitor: &Monitor,
        now: Timestamp,
    ) -> Result<StoredMonitor, StorageError> {
        let fault = || self.fault("saving the monitor");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let number = next_number(&mut work).await.map_err(fault())?;
        let stored = new_monitor(number, monitor.clone(), None, now);
        match insert(&mut work, appliance, &stored).await {
            Ok(()) => {}
            Err(error) if is_unique_violation(&error) => {
                work.rollback().await.map_err(fault())?;
                return Err(StorageError::MonitorExists { name: monitor.name.clone() });
            }
            Err(error) => return Err(fault()(error)),
        }
        work.commit().await.map_err(fault())?;
        Ok(stored)
    }

    /// Every monitor that was not removed, sorted by name.
    pub async fn monitors(&self) -> Result<Vec<StoredMonitor>, StorageError> {
        let fault = || self.fault("reading the monitors");
        let rows = on!(self.pool, |db| sqlx::query_as::<_, MonitorRow>(
            "SELECT * FROM monitors WHERE NOT removed ORDER BY lower(name)",
        )
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        rows.into_iter().map(|row| row.stored().map_err(fault())).collect()
    }

    /// The monitor with this name, ignoring case.
    pub async fn monitor(&self, name: &str) -> Result<StoredMonitor, StorageError> {
        let wanted = name.trim().to_lowercase();
        let mut all = self.monitors().await?;
        all.retain(|stored| stored.monitor.name.to_lowercase() == wanted);
        all.pop().ok_or_else(|| StorageError::NoSuchMonitor { wanted: name.to_owned() })
    }

    /// The keys of the monitors that were removed, the highest key first, at most `limit`.
    pub async fn removed_monitors(&self, limit: u32) -> Result<Vec<i64>, StorageError> {
        on!(self.pool, |db| sqlx::query_scalar(
            "SELECT number FROM monitors WHERE removed ORDER BY number DESC LIMIT $1"
        )
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(self.fault("reading the monitors"))
    }

    /// Removes the monitor with this name, and returns it. The measurements of the monitor are kept as long as those of
    /// other monitors.
    pub async fn remove_monitor(&self, name: &str) -> Result<StoredMonitor, StorageError> {
        let stored = self.monitor(name).await?;
        on!(self.pool, |db| sqlx::query("UPDATE monitors SET removed = TRUE WHERE number = $1")
            .bind(stored.number)
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("removing the monitor"))?;
        Ok(stored)
    }

    /// Enables or disables the monitor with this name, and returns it.
    pub async fn enable_monitor(&self, name: &str, enabled: bool) -> Result<StoredMonitor, StorageError> {
        let stored = self.monitor(name).await?;
        on!(self.pool, |db| sqlx::query("UPDATE monitors SET enabled = $2 WHERE number = $1")
            .bind(stored.number)
            .bind(enabled)
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("saving the monitor"))?;
        Ok(StoredMonitor { enabled, ..stored })
    }

    /// Adds tallies to the stored rows of the same minutes, in one transaction. Then computes the rows of the hours and
    /// of the days that contain these minutes, as far as they have ended. `now` is the current minute, counted since
    /// 1970.
    pub async fn save_minutes(&self, minutes: &[MonitorMinute], now: i64) -> Result<(), StorageError> {
        let fault = || self.fault("saving what the monitors measured");
        let mut work = self.pool.begin().await.map_err(fault())?;
        write_minutes(&mut work, minutes, now).await.map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    /// Computes the rows of hours and days that were not computed in time, because the service did not run. Deletes
    /// rows that are no longer kept. `now` is the current minute, counted since 1970.
    pub async fn roll_up_missing(&self, now: i64) -> Result<(), StorageError> {
        let fault = || self.fault("computing the hours of the monitors");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let hours = in_change!(&mut work, |db| sqlx::query_scalar::<_, i64>(
            "SELECT DISTINCT minute / 60 * 60 AS hour FROM monitor_rows AS one WHERE span = 1 AND minute >= $1 \
             AND NOT EXISTS (SELECT 1 FROM monitor_rows AS whole WHERE whole.span = 60 \
             AND whole.minute = one.minute / 60 * 60 AND whole.monitor = one.monitor)",
        )
        .bind(now.saturating_sub(ROLL_UP_WINDOW))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        // The last row of a day can be missing although all of its hours were computed in time.
        let days = in_change!(&mut work, |db| sqlx::query_scalar::<_, i64>(
            "SELECT DISTINCT minute / 1440 * 1440 AS day FROM monitor_rows AS one WHERE span = 60 AND minute >= $1 \
             AND NOT EXISTS (SELECT 1 FROM monitor_rows AS whole WHERE whole.span = 1440 \
             AND whole.minute = one.minute / 1440 * 1440 AND whole.monitor = one.monitor)",
        )
        .bind(now.saturating_sub(HOURS_KEPT))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        roll_up(&mut work, hours.into_iter().collect(), days.into_iter().collect(), now).await.map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    /// The tallies of a monitor from the minute `from` (included) to `to` (excluded), in order of time, each with its
    /// first minute. They have the resolution `resolution`, as far as such rows exist. Rows of a finer resolution
    /// follow for the time after the last such row.
    pub async fn monitor_rows(
        &self,
        number: i64,
        resolution: Resolution,
        from: i64,
        to: i64,
    ) -> Result<Vec<(i64, ProbeTally)>, StorageError> {
        let fault = || self.fault("reading what a monitor measured");
        let mut rows = Vec::new();
        let mut from = from;
        for finer in [Resolution::Days, Resolution::Hours, Resolution::Minutes] {
            if finer > resolution {
                continue;
            }
            let part = on!(self.pool, |db| sqlx::query_as::<_, TallyRow>(
                "SELECT minute, monitor, count, lost, under_load, min_us, max_us, round_trips FROM monitor_rows \
                 WHERE span = $1 AND minute >= $2 AND minute < $3 AND monitor = $4 ORDER BY minute",
            )
            .bind(finer.minutes())
            .bind(from)
            .bind(to)
            .bind(number)
            .fetch_all(db)
            .await)
            .map_err(fault())?;
            if let Some(last) = part.last() {
                from = last.minute + finer.minutes();
            }
            for row in part {
                rows.push((row.minute, row.tally().map_err(fault())?));
            }
        }
        Ok(rows)
    }

    /// Saves a new outage, or the new state of a stored outage.
    pub async fn save_outage(&self, appliance: &str, outage: &StoredOutage) -> Result<(), StorageError> {
        let fault = || self.fault("saving an outage");
        let mut work = self.pool.begin().await.map_err(fault())?;
        write_outage(&mut work, appliance, outage).await.map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    /// Ends the outages that had not ended when the service stopped. Their end is the end of the last saved minute.
    /// Returns the number of these outages.
    pub async fn end_open_outages(&self) -> Result<u64, StorageError> {
        let fault = || self.fault("ending outages");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let seen: Option<i64> =
            in_change!(&mut work, |db| sqlx::query_scalar("SELECT MAX(minute) + 1 FROM monitor_rows WHERE span = 1")
                .fetch_one(db)
                .await)
            .map_err(fault())?;
        let seen_us = seen.unwrap_or_default().saturating_mul(60_000_000);
        let ended = in_change!(&mut work, |db| sqlx::query(
            "UPDATE outages SET end_known = FALSE, ended_at_us = CASE WHEN began_at_us > $1 THEN began_at_us \
                 ELSE $1 END WHERE ended_at_us IS NULL"
        )
        .bind(seen_us)
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(ended)
    }

    /// The outages that began before `before` (`None`: at any time), newest first, at most `limit`.
    pub async fn outages(&self, before: Option<Timestamp>, limit: u32) -> Result<Vec<StoredOutage>, StorageError> {
        let fault = || self.fault("reading the outages");
        let rows = on!(self.pool, |db| sqlx::query_as::<_, OutageRow>(
            "SELECT id, began_at_us, ended_at_us, end_known, scope, failed, reachable FROM outages \
             WHERE $1 IS NULL OR began_at_us < $1 ORDER BY began_at_us DESC, id DESC LIMIT $2",
        )
        .bind(before.map(Timestamp::as_microsecond))
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        rows.into_iter().map(|row| outage(row).map_err(fault())).collect()
    }
}

impl ApplianceStore {
    /// The outages that began within `range`, oldest first: at most `limit` outages after the position `after`. If
    /// `after` is `None`, the list begins with the oldest outage of the range.
    pub(super) async fn outages_between(
        &self,
        range: TimeRange,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<StoredOutage>, StorageError> {
        let fault = || self.fault("reading the outages");
        let ((since_us, until_us), (at_us, id)) = (range.bounds_us(), PageCursor::lower_bounds(after));
        let rows = on!(self.pool, |db| sqlx::query_as::<_, OutageRow>(
            "SELECT id, began_at_us, ended_at_us, end_known, scope, failed, reachable FROM outages \
             WHERE began_at_us >= $1 AND began_at_us < $2 AND (began_at_us, id) > ($3, $4) \
             ORDER BY began_at_us, id LIMIT $5",
        )
        .bind(since_us)
        .bind(until_us)
        .bind(at_us)
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        rows.into_iter().map(|row| outage(row).map_err(fault())).collect()
    }

    /// A monitor's tallies of exactly this resolution, from the minute `from` (included) to `to` (excluded), in order
    /// of time, at most `limit`. Each has its first minute.
    pub(super) async fn monitor_rows_of(
        &self,
        number: i64,
        resolution: Resolution,
        from: i64,
        to: i64,
        limit: u32,
    ) -> Result<Vec<(i64, ProbeTally)>, StorageError> {
        let fault = || self.fault("reading what a monitor measured");
        let rows = on!(self.pool, |db| sqlx::query_as::<_, TallyRow>(
            "SELECT minute, monitor, count, lost, under_load, min_us, max_us, round_trips FROM monitor_rows \
             WHERE span = $1 AND minute >= $2 AND minute < $3 AND monitor = $4 ORDER BY minute LIMIT $5",
        )
        .bind(resolution.minutes())
        .bind(from)
        .bind(to)
        .bind(number)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        rows.into_iter().map(|row| Ok((row.minute, row.tally().map_err(fault())?))).collect()
    }
}

/// Adds tallies to the stored rows of the same minutes. Then computes the rows of the hours and of the days that
/// contain these minutes, as far as they have ended. `now` is the current minute, counted since 1970.
pub(super) async fn write_minutes(
    work: &mut StoreChange,
    minutes: &[MonitorMinute],
    now: i64,
) -> Result<(), sqlx::Error> {
    for MonitorMinute { number, minute, tally } in minutes {
        let mut merged = tally.clone();
        let stored = in_change!(&mut *work, |db| sqlx::query_as::<_, TallyRow>(
            "SELECT minute, monitor, count, lost, under_load, min_us, max_us, round_trips FROM monitor_rows \
             WHERE span = 1 AND minute = $1 AND monitor = $2",
        )
        .bind(minute)
        .bind(number)
        .fetch_optional(db)
        .await)?;
        if let Some(stored) = stored {
            merged.merge(&stored.tally()?);
        }
        write_row(work, Resolution::Minutes, *minute, *number, &merged).await?;
    }
    let hours = minutes.iter().map(|saved| saved.minute.div_euclid(HOUR) * HOUR).collect();
    roll_up(work, hours, BTreeSet::new(), now).await
}

/// Inserts a new outage, or replaces the stored outage with the same id.
pub(super) async fn write_outage(
    work: &mut StoreChange,
    appliance: &str,
    outage: &StoredOutage,
) -> Result<(), sqlx::Error> {
    let (failed, reachable) = (names_text(&outage.failed)?, names_text(&outage.reachable)?);
    in_change!(work, |db| sqlx::query(
        "INSERT INTO outages (id, appliance, began_at_us, ended_at_us, end_known, scope, failed, reachable) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET began_at_us = $3, \
         ended_at_us = $4, end_known = $5, scope = $6, failed = $7, reachable = $8",
    )
    .bind(outage.id.to_string())
    .bind(appliance)
    .bind(outage.began_at.as_microsecond())
    .bind(outage.ended_at.map(Timestamp::as_microsecond))
    .bind(outage.end_known)
    .bind(outage.scope.as_str())
    .bind(failed)
    .bind(reachable)
    .execute(db)
    .await
    .map(rows))
    .map(drop)
}

/// Writes names in the form in which they are stored: a JSON list.
pub(super) fn names_text(names: &BTreeSet<String>) -> Result<String, sqlx::Error> {
    serde_json::to_string(names).map_err(strange)
}

/// The target of a monitor after reflectors were renamed. `before` are the paired reflectors with their old names,
/// `after` the same reflectors with their new names. A target that names a reflector by its old name gets the new name.
/// Any other target stays as it is.
pub fn target_after(stored: &StoredMonitor, before: &[Reflector], after: &[Reflector]) -> MonitorTarget {
    let unchanged = || stored.monitor.target.clone();
    let MonitorTarget::Reflector(wanted) = &stored.monitor.target else { return unchanged() };
    let is_name = |reflector: &&Reflector| reflector.name.as_str().to_lowercase() == wanted.to_lowercase();
    let id = match &stored.peer {
        Some(peer) => peer.parse::<EndpointId>().ok(),
        // A target that is given as an Endpoint ID or an address does not change.
        None => before.iter().find(is_name).map(|reflector| reflector.endpoint_id),
    };
    let now = id.and_then(|id| after.iter().find(|reflector| reflector.endpoint_id == id));
    now.map_or_else(unchanged, |reflector| MonitorTarget::Reflector(reflector.name.to_string()))
}

/// Creates a monitor that is enabled and not stored yet.
pub(super) fn new_monitor(number: i64, monitor: Monitor, peer: Option<String>, now: Timestamp) -> StoredMonitor {
    let added_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    StoredMonitor { id: Uuid::now_v7(), number, enabled: true, from_file: false, added_at, peer, monitor }
}

/// The number for the next monitor. No number is used twice.
pub(super) async fn next_number(work: &mut StoreChange) -> Result<i64, sqlx::Error> {
    in_change!(work, |db| sqlx::query_scalar::<_, i64>("SELECT COALESCE(MAX(number), 0) + 1 FROM monitors")
        .fetch_one(db)
        .await)
}

/// Every monitor, removed ones too.
pub(super) async fn all_monitors(work: &mut StoreChange) -> Result<Vec<MonitorRow>, sqlx::Error> {
    in_change!(work, |db| sqlx::query_as("SELECT * FROM monitors ORDER BY number",).fetch_all(db).await)
}

/// Saves a new monitor.
pub(super) async fn insert(work: &mut StoreChange, appliance: &str, new: &StoredMonitor) -> Result<(), sqlx::Error> {
    in_change!(work, |db| sqlx::query(
        "INSERT INTO monitors (number, id, appliance, name, target, peer, interval_ms, enabled, removed, from_file, \
         added_at_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, FALSE, $9, $10)",
    )
    .bind(new.number)
    .bind(new.id.to_string())
    .bind(appliance)
    .bind(&new.monitor.name)
    .bind(new.monitor.target.to_string())
    .bind(&new.peer)
    .bind(unsigned(new.monitor.interval_ms))
    .bind(new.enabled)
    .bind(new.from_file)
    .bind(new.added_at.as_microsecond())
    .execute(db)
    .await
    .map(rows))
    .map(drop)
}

/// Returns `wanted` if this name is free, or else `wanted` with the lowest number (from 2) that makes it a free name.
/// Adds the returned name to `taken`.
fn free_name(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{wanted}-{number}"));
    let name = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| taken.insert(name.to_lowercase()));
    name.unwrap_or_else(|| wanted.to_owned())
}

/// The rows with this resolution that begin between `from` and `to` (both included), of all monitors. Each row has its
/// first minute, the key of its monitor and its tally.
async fn rows_between(
    work: &mut StoreChange,
    resolution: Resolution,
    from: i64,
    to: i64,
) -> Result<Vec<(i64, i64, ProbeTally)>, sqlx::Error> {
    let rows = in_change!(work, |db| sqlx::query_as::<_, TallyRow>(
        "SELECT minute, monitor, count, lost, under_load, min_us, max_us, round_trips FROM monitor_rows \
         WHERE span = $1 AND minute >= $2 AND minute <= $3",
    )
    .bind(resolution.minutes())
    .bind(from)
    .bind(to)
    .fetch_all(db)
    .await)?;
    rows.into_iter().map(|row| Ok((row.minute, row.monitor, row.tally()?))).collect()
}

async fn write_row(
    work: &mut StoreChange,
    resolution: Resolution,
    minute: i64,
    number: i64,
    tally: &ProbeTally,
) -> Result<(), sqlx::Error> {
    let round_trips = match resolution {
        Resolution::Minutes => tally.round_trips.encode_minute(),
        Resolution::Hours | Resolution::Days => tally.round_trips.encode(),
    };
    in_change!(work, |db| sqlx::query(
        "INSERT INTO monitor_rows (span, minute, monitor, count, lost, under_load, min_us, max_us, round_trips) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (span, minute, monitor) DO UPDATE SET count = $4, \
         lost = $5, under_load = $6, min_us = $7, max_us = $8, round_trips = $9",
    )
    .bind(resolution.minutes())
    .bind(minute)
    .bind(number)
    .bind(unsigned(tally.count))
    .bind(unsigned(tally.lost))
    .bind(unsigned(tally.under_load))
    .bind(tally.min_max_us.map(|(min, _)| unsigned(min)))
    .bind(tally.min_max_us.map(|(_, max)| unsigned(max)))
    .bind(round_trips)
    .execute(db)
    .await
    .map(rows))
    .map(drop)
}

/// Computes the row of each hour in `hours` that has ended. Then computes the row of each day that has ended, for the
/// days in `days` and the days that contain the computed hours. Deletes rows that are no longer kept.
async fn roll_up(
    work: &mut StoreChange,
    hours: BTreeSet<i64>,
    days: BTreeSet<i64>,
    now: i64,
) -> Result<(), sqlx::Error> {
    let over = hours.into_iter().filter(|hour| hour + HOUR <= now).collect::<BTreeSet<_>>();
    if over.is_empty() && days.is_empty() {
        return Ok(());
    }
    for hour in &over {
        merge_rows(work, Resolution::Minutes, Resolution::Hours, *hour).await?;
    }
    let days = over.iter().map(|hour| hour.div_euclid(DAY) * DAY).chain(days).filter(|day| day + DAY <= now);
    for day in days.collect::<BTreeSet<_>>() {
        merge_rows(work, Resolution::Hours, Resolution::Days, day).await?;
    }
    for (resolution, kept) in [(Resolution::Minutes, MINUTES_KEPT), (Resolution::Hours, HOURS_KEPT)] {
        in_change!(work, |db| sqlx::query("DELETE FROM monitor_rows WHERE span = $1 AND minute < $2")
            .bind(resolution.minutes())
            .bind(now.saturating_sub(kept))
            .execute(db)
            .await
            .map(rows))?;
    }
    Ok(())
}

/// Computes, for each monitor, the row of resolution `to` that begins at the minute `begin`: merges the monitor's rows
/// of the finer resolution `from` in this time.
async fn merge_rows(work: &mut StoreChange, from: Resolution, to: Resolution, begin: i64) -> Result<(), sqlx::Error> {
    let mut merged = BTreeMap::<i64, ProbeTally>::new();
    for (_, monitor, tally) in rows_between(work, from, begin, begin + to.minutes() - 1).await? {
        merged.entry(monitor).or_default().merge(&tally);
    }
    for (monitor, tally) in &merged {
        write_row(work, to, begin, *monitor, tally).await?;
    }
    Ok(())
}

fn outage(row: OutageRow) -> Result<StoredOutage, sqlx::Error> {
    let (id, began_at_us, ended_at_us, end_known, scope, failed, reachable) = row;
    Ok(StoredOutage {
        id: id.parse().map_err(strange)?,
        began_at: time(began_at_us)?,
        ended_at: ended_at_us.map(time).transpose()?,
        end_known,
        scope: scope_of(&scope)?,
        failed: serde_json::from_str(&failed).map_err(strange)?,
        reachable: serde_json::from_str(&reachable).map_err(strange)?,
    })
}

/// Parses the stored name of a scope.
pub(super) fn scope_of(word: &str) -> Result<OutageScope, sqlx::Error> {
    OutageScope::from_word(word).map_err(strange)
}

fn time(us: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(us).map_err(strange)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::monitor::minute::ProbeOutcome;
    use crate::monitor::series;
    use crate::store::each_engine::on_each_engine;
    use crate::store::pool::StorePool;

    /// 2026-06-30 22:00 UTC, in minutes since 1970.
    const EVENING: i64 = 20_634 * DAY + 22 * HOUR;

    fn tally(ms: &[u64], lost: u64) -> ProbeTally {
        let mut tally = ProbeTally::default();
        for ms in ms {
            let round_trip = Duration::from_millis(*ms);
            tally.note(ProbeOutcome::Answered { round_trip, is_under_load: false });
        }
        (0..lost).for_each(|_| tally.note(ProbeOutcome::Lost));
        tally
    }

    fn minute(number: i64, minute: i64, tally: ProbeTally) -> MonitorMinute {
        MonitorMinute { number, minute, tally }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(EVENING * 60).unwrap()
    }

    fn monitor(name: &str, target: &str) -> Monitor {
        Monitor::new(name, target.parse().unwrap(), None)
    }

    #[tokio::test]
    async fn the_monitors_of_the_service_are_added_once_and_stay_removed() {
        on_each_engine(async |store| {
            let wanted = [
                (monitor("gateway", "gateway"), None),
                (monitor("attic", "reflector:attic"), Some("PP-1".to_owned())),
                (monitor("attic", "reflector:Attic"), Some("PP-2".to_owned())),
            ];
            let added = store.ensure_monitors("PP-0", &wanted, now()).await.unwrap();
            let names = added.iter().map(|stored| stored.monitor.name.as_str()).collect::<Vec<_>>();
            assert_eq!(names, ["gateway", "attic", "attic-2"]);
            assert_eq!(store.ensure_monitors("PP-0", &wanted, now()).await.unwrap(), []);
            store.remove_monitor("GATEWAY").await.unwrap();
            store.enable_monitor("attic", false).await.unwrap();
            assert_eq!(store.ensure_monitors("PP-0", &wanted, now()).await.unwrap(), [], "the user removed it");
            let again = store.add_monitor("PP-0", &monitor("gateway", "gateway"), now()).await.unwrap();
            assert_eq!(again.number, 4, "no number is used twice");
            let same = store.add_monitor("PP-0", &monitor("Attic", "host:192.0.2.1"), now()).await;
            assert!(matches!(same, Err(StorageError::MonitorExists { .. })), "{same:?}");
            let listed = store.monitors().await.unwrap();
            assert_eq!(listed.iter().map(|stored| stored.enabled).collect::<Vec<_>>(), [false, true, true]);
            assert!(matches!(store.monitor("cellar").await, Err(StorageError::NoSuchMonitor { .. })));
        })
        .await;
    }

    #[tokio::test]
    async fn minutes_become_hours_and_days_as_they_end() {
        on_each_engine(async |store| {
            for at in EVENING..EVENING + 2 * HOUR {
                let minutes = [minute(1, at, tally(&[10, 20], 1)), minute(2, at, tally(&[5], 0))];
                store.save_minutes(&minutes, at + 1).await.unwrap();
            }
            let hours = store.monitor_rows(1, Resolution::Hours, EVENING, EVENING + DAY).await.unwrap();
            assert_eq!(
                hours.iter().map(|(at, hour)| (*at, hour.count, hour.lost)).collect::<Vec<_>>(),
                [(EVENING, 180, 60), (EVENING + HOUR, 180, 60)]
            );
            let day = EVENING - 22 * HOUR;
            let days = store.monitor_rows(2, Resolution::Days, day, day + DAY).await.unwrap();
            assert_eq!(
                (days.len(), days[0].0, days[0].1.count, days[0].1.min_max_us),
                (1, day, 120, Some((5_000, 5_000)))
            );
            // A minute that is saved late is counted in its hour, too. A minute that is already stored is added to.
            store.save_minutes(&[minute(1, EVENING + 7, tally(&[30], 0))], EVENING + 3 * HOUR).await.unwrap();
            let hours = store.monitor_rows(1, Resolution::Hours, EVENING, EVENING + 1).await.unwrap();
            assert_eq!((hours[0].1.count, hours[0].1.min_max_us), (181, Some((10_000, 30_000))));
        })
        .await;
    }

    #[tokio::test]
    async fn an_hour_that_ended_while_the_service_did_not_run_is_computed_at_its_start() {
        on_each_engine(async |store| {
            store.save_minutes(&[minute(1, EVENING + 10, tally(&[10], 0))], EVENING + 11).await.unwrap();
            store.save_minutes(&[minute(1, EVENING + 70, tally(&[20], 0))], EVENING + 71).await.unwrap();
            // The first hour ended without a write.
            store.roll_up_missing(EVENING + 72).await.unwrap();
            let rows = store.monitor_rows(1, Resolution::Hours, EVENING, EVENING + DAY).await.unwrap();
            assert_eq!(
                rows.iter().map(|(at, row)| (*at, row.count)).collect::<Vec<_>>(),
                [(EVENING, 1), (EVENING + 70, 1)]
            );
        })
        .await;
    }

    #[tokio::test]
    async fn minutes_are_kept_for_two_weeks_and_a_row_is_small() {
        on_each_engine(async |store| {
            let old = EVENING - 15 * DAY;
            store.save_minutes(&[minute(1, old, tally(&[10], 0))], old + 1).await.unwrap();
            store.save_minutes(&[minute(1, EVENING, tally(&[10], 0))], EVENING + HOUR).await.unwrap();
            let minutes = store.monitor_rows(1, Resolution::Minutes, old - 1, EVENING + 1).await.unwrap();
            assert_eq!(minutes.len(), 1);
            let ms = (0..60).map(|n| 11 + n * 37 % 9).collect::<Vec<_>>();
            for at in 0..600 {
                let minutes =
                    (1..=5).map(|number| minute(number, EVENING + HOUR + at, tally(&ms, 0))).collect::<Vec<_>>();
                store.save_minutes(&minutes, EVENING + HOUR + at).await.unwrap();
            }
            let sql = match &store.pool {
                StorePool::Sqlite(..) => "SELECT SUM(pgsize) FROM dbstat WHERE name = 'monitor_rows'",
                StorePool::Postgres(_) => "SELECT pg_total_relation_size('monitor_rows')",
            };
            let bytes = on!(store.pool, |db| sqlx::query_scalar::<_, i64>(sql).fetch_one(db).await);
            // SQLite may be built without dbstat.
            if let Ok(bytes) = bytes {
                assert!(bytes / 3_000 < 400, "{} bytes a minute", bytes / 3_000);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_series_of_a_year_is_made_of_days_and_of_what_is_not_a_day_yet() {
        on_each_engine(async |store| {
            let day = EVENING - 22 * HOUR;
            for (at, now) in [(day - DAY + 5, day), (day + 5, day + HOUR), (EVENING + 3, EVENING + 4)] {
                store.save_minutes(&[minute(1, at, tally(&[10], 1))], now).await.unwrap();
            }
            let step = series::step_minutes(day - 365 * DAY, EVENING + 10, None);
            let resolution = Resolution::of_step(step);
            assert_eq!(resolution, Resolution::Days);
            let rows = store.monitor_rows(1, resolution, day - 365 * DAY, EVENING + 10).await.unwrap();
            let points = series::points(rows, step);
            assert_eq!(points.iter().map(|point| point.count).sum::<u64>(), 6, "{points:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn outages_are_saved_as_they_change_and_end_with_the_service() {
        on_each_engine(async |store| {
            let at = |second| Timestamp::from_second(EVENING * 60 + second).unwrap();
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
            let mut outage = StoredOutage {
                id: Uuid::now_v7(),
                began_at: at(10),
                ended_at: None,
                end_known: true,
                scope: OutageScope::Target,
                failed: names(&["attic"]),
                reachable: names(&["gateway", "office"]),
            };
            store.save_outage("PP-0", &outage).await.unwrap();
            outage.scope = OutageScope::BeyondGateway;
            outage.failed = names(&["attic", "office"]);
            outage.reachable = names(&["gateway"]);
            store.save_outage("PP-0", &outage).await.unwrap();
            assert_eq!(store.outages(None, 10).await.unwrap(), [outage.clone()]);
            assert_eq!(store.outages(Some(at(10)), 10).await.unwrap(), []);
            store.save_minutes(&[minute(1, EVENING + 4, tally(&[], 60))], EVENING + 5).await.unwrap();
            assert_eq!(store.end_open_outages().await.unwrap(), 1);
            let ended = store.outages(None, 10).await.unwrap().remove(0);
            assert_eq!((ended.ended_at, ended.end_known), (Some(at(300)), false));
            assert_eq!(store.end_open_outages().await.unwrap(), 0);
        })
        .await;
    }
}
