//! What happened to sessions since the start, for `status` and the metrics. The code that makes a decision also counts
//! it. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::EngineId;
use serde::{Deserialize, Serialize};

use crate::duration_counts::DurationCounts;

/// The upper bounds of the histogram of waits, in microseconds: 0 (no wait), then from 1 s to an hour.
const WAIT_BOUNDS_US: [u64; 9] =
    [0, 1_000_000, 5_000_000, 15_000_000, 30_000_000, 60_000_000, 300_000_000, 900_000_000, 3_600_000_000];

/// The counts of what happened to sessions since the start of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// The number of granted sessions of each engine. Includes the running ones.
    pub granted: BTreeMap<EngineId, u64>,
    /// The number of ended sessions of each engine, by reason.
    pub ended: BTreeMap<EngineId, BTreeMap<EndReason, u64>>,
    /// The number of reservations that were taken back before their appliance was answered.
    pub undone: u64,
    /// The number of denied requests, by reason.
    pub denied: BTreeMap<DenialReason, u64>,
    /// How long requests waited in the queue until a session was reserved for them; 0 if they did not wait.
    pub waits: DurationCounts,
    /// The counts of leases.
    pub leases: LeaseCounts,
    /// The number of granted monitor sessions.
    #[serde(default)]
    pub monitors_granted: u64,
    /// The number of ended monitor sessions, by reason.
    #[serde(default)]
    pub monitors_ended: BTreeMap<EndReason, u64>,
}

/// What happened to leases since the start of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCounts {
    /// The number of leases that were given out.
    pub granted: u64,
    /// The number of leases that were given out but could not be written to disk. None of their bytes was moved.
    pub unwritten: u64,
    /// The number of leases that were refused, because the byte quota of the day is used up.
    pub refused: u64,
}

impl Default for SessionCounts {
    fn default() -> Self {
        Self {
            granted: BTreeMap::new(),
            ended: BTreeMap::new(),
            undone: 0,
            denied: BTreeMap::new(),
            waits: DurationCounts::with_bounds(&WAIT_BOUNDS_US),
            leases: LeaseCounts::default(),
            monitors_granted: 0,
            monitors_ended: BTreeMap::new(),
        }
    }
}

impl SessionCounts {
    pub(super) fn note_granted(&mut self, engine: &EngineId) {
        *self.granted.entry(engine.clone()).or_default() += 1;
    }

    pub(super) fn note_ended(&mut self, engine: &EngineId, reason: EndReason) {
        *self.ended.entry(engine.clone()).or_default().entry(reason).or_default() += 1;
    }

    pub(super) fn note_monitor_ended(&mut self, reason: EndReason) {
        *self.monitors_ended.entry(reason).or_default() += 1;
    }

    pub(super) fn note_denied(&mut self, reason: DenialReason) {
        *self.denied.entry(reason).or_default() += 1;
    }
}
