//! Stores minutes and outages that have no date yet, because the clock is not trusted. They are stored with the id of
//! the boot and the time since that boot. Once the clock is trusted during the same boot, they get their dates.

use std::time::Duration;

use uuid::Uuid;

use super::monitors::{
    MINUTES_KEPT, MonitorMinute, StoredOutage, TallyRow, names_text, scope_of, write_minutes, write_outage,
};
use super::pool::{StoreChange, in_change, rows};
use super::{ApplianceStore, StorageError, strange, unsigned};
use crate::monitor::ProbeTally;
use crate::monitor::dating::Dating;
use crate::monitor::outage::Outage;

/// A minute, in microseconds.
const MINUTE_US: i64 = 60_000_000;
/// The maximum number of minutes to which one transaction gives dates, because other writers wait for the transaction.
const DATED_AT_ONCE: i64 = 500;

/// The probes of one monitor in one minute that has no date yet.
#[derive(Clone, Debug, PartialEq)]
pub struct UndatedMinute {
    /// The key of the monitor: [`StoredMonitor::number`](super::StoredMonitor::number).
    pub number: i64,
    /// The begin of the minute, in microseconds since boot; negative if the minute began before the boot.
    pub began_us: i64,
    /// The tally of the probes.
    pub tally: ProbeTally,
}

/// Counts of rows that were stored without a date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undated {
    /// The number of minutes, of all monitors together.
    pub minutes: u64,
    /// The number of outages.
    pub outages: u64,
}

/// The stored columns of an outage that has no date.
type UndatedOutageRow = (String, i64, Option<i64>, bool, String, String, String);

impl ApplianceStore {
    /// Saves minutes and outages of this boot. The tally of a minute that is already stored is added to the stored
    /// tally. An outage that is already stored gets its new state. Undated minutes are kept as long as dated ones.
    /// `now` is the time since boot.
    pub async fn save_undated(
        &self,
        boot_id: &str,
        minutes: &[UndatedMinute],
        outages: &[Outage],
        now: Duration,
    ) -> Result<(), StorageError> {
        let fault = || self.fault("saving what the monitors measured");
        let mut work = self.pool.begin().await.map_err(fault())?;
        for minute in minutes {
            write_minute(&mut work, boot_id, minute).await.map_err(fault())?;
        }
        for outage in outages {
            write_undated_outage(&mut work, boot_id, outage).await.map_err(fault())?;
        }
        let oldest = micros(now).saturating_sub(MINUTES_KEPT * MINUTE_US);
        in_change!(&mut work, |db| sqlx::query("DELETE FROM undated_minutes WHERE boot_id = $1 AND began_us < $2")
            .bind(boot_id)
            .bind(oldest)
            .execute(db)
            .await
            .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    /// Deletes the rows of every boot except this one. These rows can get no date any more, because the service found
    /// no trusted clock before their boot ended. Returns the numbers of deleted rows.
    pub async fn drop_undated_of_other_boots(&self, boot_id: &str) -> Result<Undated, StorageError> {
        let fault = || self.fault("deleting rows without a date");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let mut dropped = Undated::default();
        for (statement, count) in [
            ("DELETE FROM undated_minutes WHERE boot_id <> $1", &mut dropped.minutes),
            ("DELETE FROM undated_outages WHERE boot_id <> $1", &mut dropped.outages),
        ] {
            let deleted = in_change!(&mut work, |db| sqlx::query(statement).bind(boot_id).execute(db).await.map(rows));
            *count = deleted.map_err(fault())?;
        }
        work.commit().await.map_err(fault())?;
        Ok(dropped)
    }

    /// Ends the outages of this boot that had not ended when the service stopped. Their end is the end of the last
    /// saved minute. Returns the number of these outages.
    pub async fn end_open_undated_outages(&self, boot_id: &str) -> Result<u64, StorageError> {
        let fault = || self.fault("ending outages");
        let mut work = self.pool.begin().await.map_err(fault())?;
        let last: Option<i64> = in_change!(&mut work, |db| sqlx::query_scalar(
            "SELECT MAX(began_us) FROM undated_minutes WHERE boot_id = $1"
        )
        .bind(boot_id)
        .fetch_one(db)
        .await)
        .map_err(fault())?;
        let seen_us = last.map_or(i64::MIN, |began_us| began_us.saturating_add(MINUTE_US));
        let ended = in_change!(&mut work, |db| sqlx::query(
            "UPDATE undated_outages SET end_known = FALSE, ended_us = CASE WHEN began_us > $2 THEN began_us ELSE $2 END \
             WHERE boot_id = $1 AND ended_us IS NULL",
        )
        .bind(boot_id)
        .bind(seen_us)
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(ended)
    }

    /// Gives the minutes and outages of this boot their dates, which `dating` computes from the time since boot.
    /// Returns the dated outages, and the numbers of minutes and outages that got a date. `appliance` is the Endpoint
    /// ID of this device, `now` the current minute, counted since 1970.
    pub async fn date_undated(
        &self,
        appliance: &str,
        boot_id: &str,
        dating: Dating,
        now: i64,
    ) -> Result<(Vec<StoredOutage>, Undated), StorageError> {
        let fault = || self.fault("dating what the monitors measured");
        let mut dated = Undated::default();
        loop {
            let mut work = self.pool.begin().await.map_err(fault())?;
            let minutes = date_minutes(&mut work, boot_id, dating, now).await.map_err(fault())?;
            if minutes == 0 {
                let outages = date_outages(&mut work, appliance, boot_id, dating).await.map_err(fault())?;
                work.commit().await.map_err(fault())?;
                dated.outages = outages.len() as u64;
                return Ok((outages, dated));
            }
            work.commit().await.map_err(fault())?;
            dated.minutes = dated.minutes.saturating_add(minutes);
        }
    }
}

async fn write_minute(work: &mut StoreChange, boot_id: &str, minute: &UndatedMinute) -> Result<(), sqlx::Error> {
    let UndatedMinute { number, began_us, tally } = minute;
    let stored = in_change!(&mut *work, |db| sqlx::query_as::<_, TallyRow>(
        "SELECT began_us AS minute, monitor, count, lost, under_load, min_us, max_us, round_trips \
         FROM undated_minutes WHERE boot_id = $1 AND began_us = $2 AND monitor = $3",
    )
    .bind(boot_id)
    .bind(began_us)
    .bind(number)
    .fetch_optional(db)
    .await)?;
    let mut tally = tally.clone();
    if let Some(stored) = stored {
        tally.merge(&stored.tally()?);
    }
    in_change!(&mut *work, |db| sqlx::query(
        "INSERT INTO undated_minutes (boot_id, began_us, monitor, count, lost, under_load, min_us, max_us, round_trips) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (boot_id, began_us, monitor) DO UPDATE SET count = $4, \
         lost = $5, under_load = $6, min_us = $7, max_us = $8, round_trips = $9",
    )
    .bind(boot_id)
    .bind(began_us)
    .bind(number)
    .bind(unsigned(tally.count))
    .bind(unsigned(tally.lost))
    .bind(unsigned(tally.under_load))
    .bind(tally.min_max_us.map(|(min, _)| unsigned(min)))
    .bind(tally.min_max_us.map(|(_, max)| unsigned(max)))
    .bind(tally.round_trips.encode_minute())
    .execute(db)
    .await
    .map(rows))
    .map(drop)
}

async fn write_undated_outage(work: &mut StoreChange, boot_id: &str, outage: &Outage) -> Result<(), sqlx::Error> {
    let (failed, reachable) = (names_text(&outage.failed)?, names_text(&outage.reachable)?);
    in_change!(work, |db| sqlx::query(
        "INSERT INTO undated_outages (id, boot_id, began_us, ended_us, end_known, scope, failed, reachable) \
         VALUES ($1, $2, $3, $4, TRUE, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET began_us = $3, ended_us = $4, \
         end_known = TRUE, scope = $5, failed = $6, reachable = $7",
    )
    .bind(outage.id.to_string())
    .bind(boot_id)
    .bind(micros(outage.began))
    .bind(outage.ended.map(micros))
    .bind(outage.scope.as_str())
    .bind(failed)
    .bind(reachable)
    .execute(db)
    .await
    .map(rows))
    .map(drop)
}

/// Gives at most [`DATED_AT_ONCE`] minutes their dates. Returns the number of these minutes; 0 if none is left.
async fn date_minutes(work: &mut StoreChange, boot_id: &str, dating: Dating, now: i64) -> Result<u64, sqlx::Error> {
    let undated = in_change!(&mut *work, |db| sqlx::query_as::<_, TallyRow>(
        "SELECT began_us AS minute, monitor, count, lost, under_load, min_us, max_us, round_trips \
         FROM undated_minutes WHERE boot_id = $1 ORDER BY began_us, monitor LIMIT $2",
    )
    .bind(boot_id)
    .bind(DATED_AT_ONCE)
    .fetch_all(db)
    .await)?;
    let mut dated = Vec::new();
    for row in &undated {
        dated.push(MonitorMinute { number: row.monitor, minute: dating.minute(row.minute), tally: row.tally()? });
        in_change!(&mut *work, |db| sqlx::query(
            "DELETE FROM undated_minutes WHERE boot_id = $1 AND began_us = $2 AND monitor = $3"
        )
        .bind(boot_id)
        .bind(row.minute)
        .bind(row.monitor)
        .execute(db)
        .await
        .map(rows))?;
    }
    write_minutes(work, &dated, now).await?;
    Ok(dated.len() as u64)
}

async fn date_outages(
    work: &mut StoreChange,
    appliance: &str,
    boot_id: &str,
    dating: Dating,
) -> Result<Vec<StoredOutage>, sqlx::Error> {
    let undated = in_change!(&mut *work, |db| {
        sqlx::query_as::<_, UndatedOutageRow>(
        "SELECT id, began_us, ended_us, end_known, scope, failed, reachable FROM undated_outages WHERE boot_id = $1 \
         ORDER BY began_us",
    )
    .bind(boot_id)
    .fetch_all(db)
    .await
    })?;
    let mut dated = Vec::new();
    for (id, began_us, ended_us, end_known, scope, failed, reachable) in undated {
        let began_at = dating.wall_at(duration(began_us));
        let outage = StoredOutage {
            id: id.parse::<Uuid>().map_err(strange)?,
            began_at,
            ended_at: ended_us.map(|ended_us| dating.wall_at(duration(ended_us)).max(began_at)),
            end_known,
            scope: scope_of(&scope)?,
            failed: serde_json::from_str(&failed).map_err(strange)?,
            reachable: serde_json::from_str(&reachable).map_err(strange)?,
        };
        write_outage(work, appliance, &outage).await?;
        dated.push(outage);
    }
    in_change!(work, |db| sqlx::query("DELETE FROM undated_outages WHERE boot_id = $1")
        .bind(boot_id)
        .execute(db)
        .await
        .map(rows))?;
    Ok(dated)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::monitor::minute::ProbeOutcome;
    use crate::monitor::outage::OutageScope;
    use crate::monitor::series::Resolution;
    use crate::store::each_engine::on_each_engine;

    const BOOT: &str = "5a0c1a2e-0000-4000-8000-000000000001";
    const OTHER: &str = "5a0c1a2e-0000-4000-8000-000000000002";

    /// 10 min 0.3 s after boot it is 2026-06-30 22:00:00 UTC.
    fn dating() -> Dating {
        let wall = Timestamp::from_second(1_782_856_800).unwrap();
        Dating { since_boot: Duration::from_millis(600_300), wall }
    }

    fn minute(number: i64, began_us: i64, ms: u64) -> UndatedMinute {
        let mut tally = ProbeTally::default();
        tally.note(ProbeOutcome::Answered { round_trip: Duration::from_millis(ms), is_under_load: false });
        UndatedMinute { number, began_us, tally }
    }

    fn outage(began: u64, ended: Option<u64>) -> Outage {
        Outage {
            id: Uuid::now_v7(),
            began: Duration::from_secs(began),
            ended: ended.map(Duration::from_secs),
            failed: ["attic".to_owned()].into(),
            reachable: ["gateway".to_owned()].into(),
            scope: OutageScope::BeyondGateway,
        }
    }

    fn uptime(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn rows_get_their_dates_in_the_same_boot_and_are_dropped_in_another() {
        on_each_engine(async |store| {
            let now = dating().wall.as_second().div_euclid(60);
            // A minute that began before the boot, two processes in the same minute, more rows than are dated at once.
            let mut minutes = vec![minute(1, -20_000_000, 10), minute(1, 40_000_000, 20), minute(1, 40_000_000, 30)];
            minutes.extend((10..520).map(|number| minute(number, 40_000_000, 5)));
            let open = outage(90, None);
            store.save_undated(BOOT, &minutes, &[outage(30, Some(45)), open.clone()], uptime(120)).await.unwrap();
            store.save_undated(OTHER, &minutes[..2], &[outage(30, None)], uptime(120)).await.unwrap();
            assert_eq!(store.monitor_rows(1, Resolution::Minutes, i64::MIN, i64::MAX).await.unwrap(), []);
            assert_eq!(store.outages(None, 10).await.unwrap(), []);

            let dropped = store.drop_undated_of_other_boots(BOOT).await.unwrap();
            assert_eq!(dropped, Undated { minutes: 2, outages: 1 });
            assert_eq!(store.end_open_undated_outages(BOOT).await.unwrap(), 1);
            let (outages, dated) = store.date_undated("PP-0", BOOT, dating(), now).await.unwrap();
            assert_eq!(dated, Undated { minutes: 512, outages: 2 });
            let at = |second: i64| dating().wall_at(Duration::from_secs(0)).as_second() + second;
            let rows = store.monitor_rows(1, Resolution::Minutes, now - 60, now + 1).await.unwrap();
            let seen = rows.iter().map(|(minute, tally)| (*minute, tally.count, tally.min_max_us)).collect::<Vec<_>>();
            // 21:50:00 is 0.3 s after boot: minutes that began 20 s before it and 40 s after it are the nearest ones.
            let expected = [(now - 10, 1, Some((10_000, 10_000))), (now - 9, 2, Some((20_000, 30_000)))];
            assert_eq!(seen, expected);
            let times = outages.iter().map(|one| (one.began_at.as_second(), one.ended_at.map(Timestamp::as_second)));
            assert_eq!(times.collect::<Vec<_>>(), [(at(30), Some(at(45))), (at(90), Some(at(100)))]);
            assert_eq!((outages[0].end_known, outages[1].end_known, outages[1].id), (true, false, open.id));
            let mut stored = store.outages(None, 10).await.unwrap();
            stored.reverse();
            assert_eq!(stored, outages);
            let again = store.date_undated("PP-0", BOOT, dating(), now).await.unwrap();
            assert_eq!(again, (Vec::new(), Undated::default()));
        })
        .await;
    }

    #[tokio::test]
    async fn a_device_whose_clock_is_never_right_keeps_two_weeks() {
        on_each_engine(async |store| {
            let day = 86_400;
            store.save_undated(BOOT, &[minute(1, 0, 10)], &[], uptime(60)).await.unwrap();
            store.save_undated(BOOT, &[minute(1, MINUTE_US, 10)], &[], uptime(14 * day + 60)).await.unwrap();
            let (_, dated) = store.date_undated("PP-0", BOOT, dating(), 0).await.unwrap();
            assert_eq!(dated.minutes, 1, "the first one is too old");
        })
        .await;
    }
}
