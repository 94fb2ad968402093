//! The tests that run at present, with what they last reported, for a page that is opened during a test.
//! [`LiveRuns::follow`] receives the updates of the service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use paramedic_appliance::app::{RunLife, RunReport, RunUpdate, RunUpdates};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{Event, PhaseBegun};
use tokio::sync::watch;
use uuid::Uuid;

/// A test that runs at present.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LiveRun {
    /// The id of the test. The updates about the test contain the same id.
    pub(super) id: Uuid,
    /// The schedule that the test belongs to; `None` if a client started the test.
    pub(super) schedule: Option<String>,
    /// The time of the first update about the test.
    pub(super) since: Timestamp,
    /// What the test does at present.
    pub(super) stage: LiveStage,
    /// All phases of the test, in order; empty until the test reports them.
    pub(super) phases: Vec<PhaseBegun>,
    /// The latest download rate in the running phase, in bits per second; `None` if the phase has reported none.
    pub(super) download_bps: Option<u64>,
    /// The latest upload rate in the running phase, in bits per second; `None` if the phase has reported none.
    pub(super) upload_bps: Option<u64>,
    /// The latest median round-trip time, in microseconds; `None` if the test has reported none.
    pub(super) rtt_us: Option<u64>,
}

/// What a running test does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LiveStage {
    /// The test prepares, and does not measure yet.
    Prepares,
    /// The test waits for another test that runs on this device.
    WaitsForDevice,
    /// The test waits in the reflector's queue.
    Queued {
        /// The place of the test in the queue; 1 is next.
        place: u32,
        /// How long the reflector expects the wait to last, in milliseconds.
        expected_wait_ms: u64,
    },
    /// The test measures a phase.
    Measures {
        /// The load on the path in the running phase.
        load: Load,
        /// When the running phase began.
        since: Timestamp,
        /// The duration of the running phase, in milliseconds.
        duration_ms: u64,
    },
}

/// The running tests by id. All clones share the same tests.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveRuns {
    runs: Arc<Mutex<BTreeMap<Uuid, LiveRun>>>,
}

impl LiveRuns {
    /// All running tests, in the order in which they began.
    pub(super) fn all(&self) -> Vec<LiveRun> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, LiveRun>> {
        // A panic leaves no change of the map incomplete.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the running tests: `update` can add, change or remove one.
    fn note(&self, update: &RunUpdate) {
        let mut runs = self.lock();
        if matches!(update.report, RunReport::Life(RunLife::Ended { .. })) {
            runs.remove(&update.run);
            return;
        }
        runs.entry(update.run).or_insert_with(|| LiveRun::new(update)).note(update);
    }

    /// Follows the updates about tests until the service stops.
    pub(super) async fn follow(self, updates: RunUpdates, mut stopping: watch::Receiver<bool>) {
        loop {
            let mut listener = updates.subscribe();
            // A missed update may have reported the end of a test.
            self.lock().clear();
            loop {
                tokio::select! {
                    update = listener.next() => match update {
                        Some(update) => self.note(&update),
                        // The listener was too slow and has lost updates.
                        None => break,
                    },
                    _ = stopping.wait_for(|wanted| *wanted) => return,
                }
            }
        }
    }
}

impl LiveRun {
    fn new(update: &RunUpdate) -> Self {
        Self {
            id: update.run,
            schedule: update.schedule.clone(),
            since: update.at,
            stage: LiveStage::Prepares,
            phases: Vec::new(),
            download_bps: None,
            upload_bps: None,
            rtt_us: None,
        }
    }

    fn note(&mut self, update: &RunUpdate) {
        match &update.report {
            RunReport::Life(RunLife::WaitingForDevice) => self.stage = LiveStage::WaitsForDevice,
            RunReport::Life(RunLife::Accepted | RunLife::Ended { .. }) => {}
            RunReport::Test(Event::Queued(queued)) => {
                let (place, expected_wait_ms) = (queued.place, queued.expected_wait_ms);
                self.stage = LiveStage::Queued { place, expected_wait_ms };
            }
            RunReport::Test(Event::Start(started)) => {
                self.stage = LiveStage::Prepares;
                self.phases.clone_from(&started.phases);
            }
            RunReport::Test(Event::Phase(phase)) => {
                let (load, duration_ms) = (phase.phase, phase.duration_ms);
                self.stage = LiveStage::Measures { load, since: update.at, duration_ms };
                (self.download_bps, self.upload_bps) = (None, None);
            }
            RunReport::Test(Event::Interval(reading)) => match reading.direction {
                Direction::Download => self.download_bps = Some(reading.bps),
                Direction::Upload => self.upload_bps = Some(reading.bps),
            },
            RunReport::Test(Event::Latency(reading)) => self.rtt_us = reading.rtt_us.or(self.rtt_us),
            RunReport::Test(Event::Result(_) | Event::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::store::ScheduleRunOutcome;
    use paramedic_report::document::{IntervalReading, LatencyReading, Queued};

    use super::*;

    fn update(run: u128, report: RunReport) -> RunUpdate {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        RunUpdate { run: Uuid::from_u128(run), schedule: None, at, report }
    }

    #[test]
    fn a_page_that_begins_in_the_midst_of_a_test_knows_its_stage() {
        let live = LiveRuns::default();
        let stage = || live.all().first().map(|run| run.stage);
        live.note(&update(1, RunReport::Life(RunLife::Accepted)));
        assert_eq!(stage(), Some(LiveStage::Prepares));
        live.note(&update(1, RunReport::Life(RunLife::WaitingForDevice)));
        assert_eq!(stage(), Some(LiveStage::WaitsForDevice));
        live.note(&update(1, RunReport::Test(Event::Queued(Queued { place: 2, expected_wait_ms: 30_000 }))));
        assert_eq!(stage(), Some(LiveStage::Queued { place: 2, expected_wait_ms: 30_000 }));
        let phase = PhaseBegun { phase: Load::Upload, duration_ms: 10_000 };
        live.note(&update(1, RunReport::Test(Event::Phase(phase))));
        let since = update(1, RunReport::Life(RunLife::Accepted)).at;
        assert_eq!(stage(), Some(LiveStage::Measures { load: Load::Upload, since, duration_ms: 10_000 }));
        let (phase, direction) = (Load::Upload, Direction::Upload);
        let rate = IntervalReading { phase, direction, at_ms: 100, bps: 7, by_sender: false };
        live.note(&update(1, RunReport::Test(Event::Interval(rate))));
        let latency = LatencyReading { phase, at_ms: 100, rtt_us: Some(9), sent: 1, received: 1 };
        live.note(&update(1, RunReport::Test(Event::Latency(latency))));
        live.note(&update(1, RunReport::Test(Event::Latency(LatencyReading { rtt_us: None, ..latency }))));
        let run = live.all().remove(0);
        assert_eq!((run.download_bps, run.upload_bps, run.rtt_us), (None, Some(7), Some(9)));
        let ended = RunLife::Ended { outcome: ScheduleRunOutcome::Done, reason: None, result_id: None };
        live.note(&update(1, RunReport::Life(ended)));
        assert_eq!(live.all(), []);
    }

    #[tokio::test]
    async fn the_updates_are_followed_until_the_service_stops() {
        let (updates, live) = (RunUpdates::default(), LiveRuns::default());
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(live.clone().follow(updates.clone(), stopping));
        // `follow` receives no update that is reported before it listens.
        while live.all().is_empty() {
            updates.report(update(1, RunReport::Life(RunLife::Accepted)));
            tokio::task::yield_now().await;
        }
        stop.send_replace(true);
        task.await.unwrap();
    }
}
