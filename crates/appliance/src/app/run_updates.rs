//! Passes the reports of the running tests of the service to any number of listeners. The memory is bounded: a listener
//! that does not keep up misses updates, and its next call of [`RunUpdateListener::next`] returns `None`.

use std::sync::Arc;

use jiff::Timestamp;
use paramedic_report::document::Event;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::test_run::TestEvent;
use crate::store::ScheduleRunOutcome;

/// The number of updates that are kept for a listener that falls behind. A running test sends fewer updates than this
/// in a second.
const KEPT_UPDATES: usize = 256;

/// An update about a run: what happened in it, and when.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunUpdate {
    /// The id of the run in `schedule-runs`. For a test that a client started, the id of that test.
    pub run: Uuid,
    /// The name of the schedule whose run it is; absent for a test that a client started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// When the reported event happened.
    pub at: Timestamp,
    /// What happened in the run.
    #[serde(flatten)]
    pub report: RunReport,
}

/// What happened in a run of a test.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RunReport {
    /// An event of the test that the run carries out.
    Test(Event),
    /// The run begins, waits or ends.
    Life(RunLife),
}

impl From<TestEvent> for RunReport {
    fn from(event: TestEvent) -> Self {
        match event {
            TestEvent::WaitingForDevice => Self::Life(RunLife::WaitingForDevice),
            TestEvent::Test(event) => Self::Test(event),
        }
    }
}

/// The beginning, a wait or the end of a run.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunLife {
    /// The run was accepted.
    Accepted,
    /// Another test runs on this device, and the run waits for its end.
    WaitingForDevice,
    /// The run ended.
    Ended {
        /// How the run ended.
        outcome: ScheduleRunOutcome,
        /// The code of the error; absent if the run is complete.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The id of the saved result; absent if there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        result_id: Option<Uuid>,
    },
}

/// Distributes the updates of all runs to the listeners. Clones share the listeners.
#[derive(Clone)]
pub struct RunUpdates {
    sender: broadcast::Sender<Arc<RunUpdate>>,
}

impl Default for RunUpdates {
    fn default() -> Self {
        Self { sender: broadcast::channel(KEPT_UPDATES).0 }
    }
}

impl RunUpdates {
    /// Subscribes to all updates from now on.
    pub fn subscribe(&self) -> RunUpdateListener {
        RunUpdateListener { receiver: self.sender.subscribe() }
    }

    /// Passes an update to every listener.
    pub fn report(&self, update: RunUpdate) {
        // An error means that there is no listener.
        self.sender.send(Arc::new(update)).ok();
    }
}

/// A listener for the updates of all runs.
pub struct RunUpdateListener {
    receiver: broadcast::Receiver<Arc<RunUpdate>>,
}

impl RunUpdateListener {
    /// Waits for the next update; `None` if this listener missed updates, or if the service has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<RunUpdate>> {
        self.receiver.recv().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(report: RunReport) -> RunUpdate {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        RunUpdate { run: Uuid::nil(), schedule: Some("nightly".to_owned()), at, report }
    }

    #[tokio::test]
    async fn a_listener_gets_what_is_reported_after_it_began_until_it_is_too_slow() {
        let updates = RunUpdates::default();
        let accepted = update(RunReport::Life(RunLife::Accepted));
        updates.report(accepted.clone());
        let (mut fast, mut slow) = (updates.subscribe(), updates.subscribe());
        for _ in 0..=KEPT_UPDATES {
            updates.report(accepted.clone());
            assert_eq!(fast.next().await.as_deref(), Some(&accepted));
        }
        assert_eq!(slow.next().await, None);
    }

    #[test]
    fn an_update_is_one_object_with_the_members_of_its_event() {
        let queued = Event::Queued(paramedic_report::document::Queued { place: 2, expected_wait_ms: 1500 });
        let ended = RunLife::Ended { outcome: ScheduleRunOutcome::Done, reason: None, result_id: Some(Uuid::nil()) };
        let nil = "00000000-0000-0000-0000-000000000000";
        for (report, members) in [
            (RunReport::Test(queued), serde_json::json!({ "event": "queued", "place": 2, "expected_wait_ms": 1500 })),
            (RunReport::Life(ended), serde_json::json!({ "event": "ended", "outcome": "done", "result_id": nil })),
        ] {
            let mut expected = members;
            expected["run"] = nil.into();
            expected["schedule"] = "nightly".into();
            expected["at"] = "2026-01-01T00:00:00Z".into();
            assert_eq!(serde_json::to_value(update(report)).unwrap(), expected);
        }
    }
}
