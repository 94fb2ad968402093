//! What happened since the start, counted by the decisions themselves, for `status` and the metrics. Pure.

use std::collections::BTreeMap;

use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::EngineId;
use serde::{Deserialize, Serialize};

use crate::duration_counts::DurationCounts;

/// The upper bounds of the counted waits, in microseconds: at once, then from 1 s to an hour.
const WAIT_BOUNDS_US: [u64; 9] =
    [0, 1_000_000, 5_000_000, 15_000_000, 30_000_000, 60_000_000, 300_000_000, 900_000_000, 3_600_000_000];

/// Counts since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Granted sessions by engine. Each has ended or runs.
    pub granted: BTreeMap<EngineId, u64>,
    /// Ended sessions by engine and reason.
    pub ended: BTreeMap<EngineId, BTreeMap<EndReason, u64>>,
    /// Reservations that were taken back before their appliance was answered.
    pub undone: u64,
    /// Requests that were not granted, by reason.
    pub denied: BTreeMap<DenialReason, u64>,
    /// How long reserved requests had waited in the queue; 0 where they did not have to.
    pub waits: DurationCounts,
    /// Leases.
    pub leases: LeaseCounts,
    /// Granted monitor sessions.
    #[serde(default)]
    pub monitors_granted: u64,
    /// Ended monitor sessions by reason.
    #[serde(default)]
    pub monitors_ended: BTreeMap<EndReason, u64>,
}

/// Counts of leases since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCounts {
    /// Leases that were given out.
    pub granted: u64,
    /// Those among them that could not be written to disk, so that no byte of them flowed.
    pub unwritten: u64,
    /// Leases that were refused because the bytes of the day are used up.
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
