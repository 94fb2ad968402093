//! Writes the measurements of the running monitors, minute by minute, and their outages to the store. A row gets its
//! date if the clock is trusted. Until then, it gets the id of the boot and the time since boot. The caller passes the
//! readings of the clocks.

use std::sync::{Arc, MutexGuard};

use super::context::{LiveMonitors, SharedMonitors};
use super::{RECENT, minute_of};
use crate::app::Appliance;
use crate::error::ApplianceError;
use crate::monitor::ProbeTally;
use crate::monitor::dating::Dating;
use crate::monitor::minute::ClosedMinute;
use crate::schedule::planner::ClockReading;
use crate::store::{MonitorMinute, StoredOutage, Undated, UndatedMinute};

/// Writes the measurements of the monitors to the store.
pub(super) struct MonitorRecords {
    shared: Arc<SharedMonitors>,
    /// The id of this boot; `None` if it is not known. In that case, minutes and outages stay in memory until they can
    /// get a date.
    boot_id: Option<String>,
}

impl MonitorRecords {
    pub(super) fn new(shared: Arc<SharedMonitors>, boot_id: Option<String>) -> Self {
        Self { shared, boot_id }
    }

    fn appliance(&self) -> &Appliance {
        self.shared.appliance()
    }

    fn live(&self) -> MutexGuard<'_, LiveMonitors> {
        self.shared.live()
    }

    /// Ends the outages that the previous run of the service left open. Drops the rows without a date that an earlier
    /// boot left, because they can no longer get a date.
    pub(super) async fn prepare(&self) -> Result<(), ApplianceError> {
        let store = self.appliance().store().await?;
        let boot_id = self.boot_id.as_deref().unwrap_or_default();
        let Undated { minutes, outages } = store.drop_undated_of_other_boots(boot_id).await?;
        if minutes > 0 || outages > 0 {
            tracing::warn!(
                minutes,
                outages,
                "what the monitors measured in an earlier boot is dropped: its time is not known, because the clock was \
                 not synchronised before the service ended"
            );
        }
        let interrupted = store.end_open_outages().await? + store.end_open_undated_outages(boot_id).await?;
        if interrupted > 0 {
            tracing::warn!(interrupted, "the service ended during an outage, whose end is not known");
        }
        Ok(())
    }

    /// Writes complete minutes and changed outages: with dates if the clock is trusted, and otherwise without.
    pub(super) async fn write(&self, clocks: ClockReading) -> Result<(), ApplianceError> {
        if !clocks.is_trusted() {
            return self.write_undated(clocks).await;
        }
        let dating = Dating { since_boot: clocks.since_boot, wall: clocks.wall };
        let now = minute_of(clocks.wall);
        if !self.live().is_store_dated {
            self.date_stored(dating, now).await?;
        }
        self.write_outages(dating).await?;
        self.write_minutes(dating, now).await
    }

    /// Adds dates to the stored rows that have none. Also summarises the hours that ended while the service did not
    /// run.
    async fn date_stored(&self, dating: Dating, now: i64) -> Result<(), ApplianceError> {
        let store = self.appliance().store().await?;
        if let Some(boot_id) = &self.boot_id {
            let own = self.appliance().endpoint_id()?.to_string();
            let (outages, Undated { minutes, .. }) = store.date_undated(&own, boot_id, dating, now).await?;
            if minutes > 0 || !outages.is_empty() {
                let outages = outages.len();
                tracing::info!(minutes, outages, "the clock is right: what was measured before has its dates now");
            }
            for outage in &outages {
                log_outage(outage);
                if outage.ended_at.is_none() {
                    // The outage still lasts. A later step of the clock must not change its start.
                    self.live().dated_begins.insert(outage.id, outage.began_at);
                }
            }
        }
        store.roll_up_missing(now).await?;
        let live = &mut *self.live();
        live.undated.clear();
        live.is_store_dated = true;
        Ok(())
    }

    /// Takes the complete minutes that are not written yet, and returns them with the rows to write. `row` makes a row
    /// from [`ClosedMinute::began_us`] and the probes of one monitor in that minute.
    fn take_minutes<R>(&self, row: impl Fn(i64, MonitorTally) -> R) -> (Vec<ClosedMinute>, Vec<R>) {
        let live = &mut *self.live();
        let minutes = std::mem::take(&mut live.minutes);
        let mut rows = Vec::new();
        for minute in &minutes {
            rows.extend(live.tallies(minute).into_iter().map(|tally| row(minute.began_us, tally)));
        }
        (minutes, rows)
    }

    /// Puts unsaved minutes back into the list, before the minutes that were added meanwhile.
    fn put_back(&self, minutes: Vec<ClosedMinute>) {
        let live = &mut *self.live();
        let later = std::mem::replace(&mut live.minutes, minutes);
        live.minutes.extend(later);
    }

    async fn write_minutes(&self, dating: Dating, now: i64) -> Result<(), ApplianceError> {
        let (minutes, rows) = self.take_minutes(|began_us, (number, tally)| MonitorMinute {
            number,
            minute: dating.minute(began_us),
            tally,
        });
        if rows.is_empty() {
            return Ok(());
        }
        let saved = async { Ok::<(), ApplianceError>(self.appliance().store().await?.save_minutes(&rows, now).await?) };
        match saved.await {
            Ok(()) => {
                tracing::debug!(rows = rows.len(), "minutes of the monitors are stored");
                self.shared.written.notify_one();
                Ok(())
            }
            Err(error) => {
                self.put_back(minutes);
                Err(error)
            }
        }
    }

    /// Writes minutes and outages without a date: with the id of the boot and the time since boot.
    async fn write_undated(&self, clocks: ClockReading) -> Result<(), ApplianceError> {
        let Some(boot_id) = &self.boot_id else { return Ok(()) };
        let (minutes, rows) = self.take_minutes(|began_us, (number, tally)| UndatedMinute { number, began_us, tally });
        let outages = std::mem::take(&mut self.live().changed_outages);
        if rows.is_empty() && outages.is_empty() {
            return Ok(());
        }
        self.live().is_store_dated = false;
        let states = outages.values().cloned().collect::<Vec<_>>();
        let saved = async {
            let store = self.appliance().store().await?;
            Ok::<(), ApplianceError>(store.save_undated(boot_id, &rows, &states, clocks.since_boot).await?)
        };
        match saved.await {
            Ok(()) => {
                tracing::debug!(rows = rows.len(), "minutes of the monitors are stored, without a date yet");
                let live = &mut *self.live();
                live.undated.extend(minutes);
                let excess = live.undated.len().saturating_sub(usize::try_from(RECENT).unwrap_or_default());
                live.undated.drain(..excess);
                Ok(())
            }
            Err(error) => {
                self.put_back(minutes);
                let live = &mut *self.live();
                for (id, outage) in outages {
                    // A later state of the outage may have been added meanwhile.
                    live.changed_outages.entry(id).or_insert(outage);
                }
                Err(error)
            }
        }
    }

    async fn write_outages(&self, dating: Dating) -> Result<(), ApplianceError> {
        let changed = std::mem::take(&mut self.live().changed_outages);
        let mut unwritten = changed.into_iter();
        while let Some((id, outage)) = unwritten.next() {
            let stored = self.live().dated(&outage, dating);
            let saved = async {
                let (own, store) = (self.appliance().endpoint_id()?.to_string(), self.appliance().store().await?);
                Ok::<(), ApplianceError>(store.save_outage(&own, &stored).await?)
            };
            if let Err(error) = saved.await {
                let live = &mut *self.live();
                for (id, outage) in std::iter::once((id, outage)).chain(unwritten) {
                    // A later state of the outage may have been added meanwhile.
                    live.changed_outages.entry(id).or_insert(outage);
                }
                return Err(error);
            }
            if stored.ended_at.is_some() {
                self.live().dated_begins.remove(&id);
            }
            log_outage(&stored);
            self.shared.written.notify_one();
        }
        Ok(())
    }
}

/// The key of a monitor in the store, and its probes in a minute.
type MonitorTally = (i64, ProbeTally);

fn log_outage(outage: &StoredOutage) {
    let failed = outage.failed.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let reachable = outage.reachable.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (scope, began) = (outage.scope.as_str(), outage.began_at);
    match outage.ended_at {
        None => tracing::warn!(failed, reachable, scope, %began, "an outage"),
        Some(ended) => tracing::info!(failed, reachable, scope, %began, %ended, "an outage ended"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::app::each_engine::devices;
    use crate::monitor::Monitor;
    use crate::monitor::minute::ProbeOutcome;
    use crate::monitor::outage::{Outage, OutageScope};
    use crate::monitor::series::Resolution;
    use crate::store::StoredMonitor;

    const BOOT: &str = "5a0c1a2e-0000-4000-8000-000000000001";

    /// The time since boot at which it is 2026-06-30 22:00:00 UTC, in seconds.
    const UPTIME_S: u64 = 400;

    fn clocks(since_boot_s: u64, is_right: bool) -> ClockReading {
        let since_1970 = i64::try_from(since_boot_s).unwrap();
        let right = 1_782_856_800 + since_1970 - i64::try_from(UPTIME_S).unwrap();
        // The clock of a board without a battery begins at 1970.
        let wall = Timestamp::from_second(if is_right { right } else { since_1970 }).unwrap();
        ClockReading { wall, since_boot: Duration::from_secs(since_boot_s), is_synchronised: is_right }
    }

    async fn monitored(device: &Appliance) -> StoredMonitor {
        device.add_monitor(Monitor::new("router", "gateway".parse().unwrap(), None)).await.unwrap()
    }

    /// The records of a new process of the service in this boot.
    async fn process(device: &Appliance, monitor: &StoredMonitor, boot_id: Option<&str>) -> MonitorRecords {
        let shared = Arc::new(SharedMonitors::new(device.clone()));
        shared.live().numbers.insert(monitor.id, monitor.number);
        let records = MonitorRecords::new(shared, boot_id.map(str::to_owned));
        records.prepare().await.unwrap();
        records
    }

    /// Adds a complete minute with one probe of the monitor. The minute began `began_s` seconds after boot.
    fn measured(records: &MonitorRecords, monitor: &StoredMonitor, began_s: i64) {
        let mut tally = ProbeTally::default();
        let round_trip = Duration::from_millis(10);
        tally.note(ProbeOutcome::Answered { round_trip, is_under_load: false });
        let minute = ClosedMinute { began_us: began_s * 1_000_000, tallies: [(monitor.id, tally)].into() };
        records.live().minutes.push(minute);
    }

    fn outage(id: Uuid, began_s: u64, ended_s: Option<u64>) -> Outage {
        let names = |name: &str| [name.to_owned()].into();
        let scope = OutageScope::Gateway;
        let (began, ended) = (Duration::from_secs(began_s), ended_s.map(Duration::from_secs));
        Outage { id, began, ended, failed: names("router"), reachable: names("attic"), scope }
    }

    fn changed(records: &MonitorRecords, outage: Outage) {
        records.shared.note_outage(Some(outage));
    }

    /// The stored minutes that have a date, as the number of minutes before 22:00.
    async fn dated(device: &Appliance, monitor: &StoredMonitor) -> Vec<i64> {
        let store = device.store().await.unwrap();
        let rows = store.monitor_rows(monitor.number, Resolution::Minutes, i64::MIN, i64::MAX).await.unwrap();
        rows.into_iter().map(|(minute, _)| minute_of(clocks(UPTIME_S, true).wall) - minute).collect()
    }

    #[tokio::test]
    async fn what_was_measured_before_the_clock_was_right_gets_its_dates_also_after_a_crash() {
        for (_folder, device) in devices() {
            let monitor = monitored(&device).await;
            let first = process(&device, &monitor, Some(BOOT)).await;
            let ended = Uuid::now_v7();
            let open = Uuid::now_v7();
            measured(&first, &monitor, 40);
            changed(&first, outage(ended, 45, None));
            first.write(clocks(105, false)).await.unwrap();
            changed(&first, outage(ended, 45, Some(60)));
            changed(&first, outage(open, 70, None));
            first.write(clocks(110, false)).await.unwrap();
            assert_eq!(first.live().undated.len(), 1, "the last minutes can still be read");
            // Dropped without a last write, as if the process were killed.
            drop(first);
            assert_eq!(dated(&device, &monitor).await, [0; 0]);

            let second = process(&device, &monitor, Some(BOOT)).await;
            measured(&second, &monitor, 100);
            second.write(clocks(165, false)).await.unwrap();
            let lasting = Uuid::now_v7();
            changed(&second, outage(lasting, 150, None));
            second.write(clocks(166, false)).await.unwrap();
            measured(&second, &monitor, 160);
            second.write(clocks(UPTIME_S, true)).await.unwrap();
            // Boot was at 21:53:20.
            assert_eq!(dated(&device, &monitor).await, [6, 5, 4]);
            let second_of = |seconds: u64| clocks(seconds, true).wall;
            let times = async || {
                let all = device.outages(None, 10).await.unwrap().into_iter().rev();
                all.map(|one| (one.id, one.began_at, one.ended_at, one.end_known)).collect::<Vec<_>>()
            };
            let ended_row = (ended, second_of(45), Some(second_of(60)), true);
            // The first process was killed while this outage lasted; the last minute of that process ended 100 s after
            // boot.
            let killed_row = (open, second_of(70), Some(second_of(100)), false);
            assert_eq!(times().await, [ended_row, killed_row, (lasting, second_of(150), None, true)]);

            // The outage ends after the clock was set by a minute. Its start stays the same.
            changed(&second, outage(lasting, 150, Some(500)));
            let later = ClockReading { wall: clocks(560, true).wall, ..clocks(500, true) };
            second.write(later).await.unwrap();
            assert_eq!(times().await[2], (lasting, second_of(150), Some(second_of(560)), true));
            second.write(clocks(600, true)).await.unwrap();
            assert_eq!(dated(&device, &monitor).await, [6, 5, 4], "nothing counts twice");
        }
    }

    #[tokio::test]
    async fn nothing_of_a_boot_without_a_clock_is_stored_as_1970() {
        for (_folder, device) in devices() {
            let monitor = monitored(&device).await;
            let lost = process(&device, &monitor, Some(BOOT)).await;
            measured(&lost, &monitor, 40);
            changed(&lost, outage(Uuid::now_v7(), 45, Some(60)));
            lost.write(clocks(105, false)).await.unwrap();
            drop(lost);
            let next = process(&device, &monitor, Some("another boot")).await;
            next.write(clocks(UPTIME_S, true)).await.unwrap();
            assert_eq!(dated(&device, &monitor).await, [0; 0]);
            assert_eq!(device.outages(None, 10).await.unwrap(), []);
            // Without the id of the boot, minutes without a date stay in memory.
            let unnamed = process(&device, &monitor, None).await;
            measured(&unnamed, &monitor, 40);
            unnamed.write(clocks(105, false)).await.unwrap();
            unnamed.write(clocks(UPTIME_S, true)).await.unwrap();
            assert_eq!(dated(&device, &monitor).await, [6]);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_and_keeps_its_order() {
        let (folder, device) = devices().remove(0);
        let monitor = monitored(&device).await;
        let records = process(&device, &monitor, Some(BOOT)).await;
        let store = device.store().await.unwrap();
        store.clone().close().await;
        measured(&records, &monitor, 40);
        let id = Uuid::now_v7();
        changed(&records, outage(id, 45, None));
        assert!(records.write(clocks(105, false)).await.is_err());
        measured(&records, &monitor, 100);
        let begins = records.live().minutes.iter().map(|minute| minute.began_us / 1_000_000).collect::<Vec<_>>();
        assert_eq!((begins, records.live().changed_outages.len()), (vec![40, 100], 1));
        drop(folder);
    }
}
