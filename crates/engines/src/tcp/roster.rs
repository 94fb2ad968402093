//! The streams of a session that stand and wait for their phase, each in its own place. Opens and moves nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use paramedic_link::test_spec::TestSpec;

use super::stream::Standing;
use super::streams_of;
use crate::data_stream::DataStream;
use crate::tether::Tether;

/// Who stands where.
pub(super) struct Roster {
    /// Streams of each phase.
    places: Vec<u16>,
    tether: Arc<Tether>,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    /// The phase that runs, else the next one.
    next: u8,
    /// Every place that was ever taken: none is given twice.
    taken: HashSet<(u8, u16)>,
    standing: HashMap<(u8, u16), Standing>,
}

impl Roster {
    pub(super) fn new(spec: &TestSpec, tether: Arc<Tether>) -> Self {
        let places = spec.phases.iter().map(|phase| streams_of(spec, phase)).collect();
        Self { places, tether, lists: Mutex::default() }
    }

    /// Gives stream `index` of `phase` its place, and wakes who waits for it. A place that does not exist, or was taken
    /// before, drops the stream.
    pub(super) fn admit(&self, phase: u8, index: u16, stream: DataStream) {
        let exists = self.places.get(usize::from(phase)).is_some_and(|places| index < *places);
        if !exists || !self.lists().taken.insert((phase, index)) {
            tracing::debug!(phase, index, "a data connection that has no place here was dropped");
            return;
        }
        // The tether is not asked under our lock: it has one of its own.
        match self.tether.hold(stream.socket()) {
            Ok(hold) => self.lists().standing.insert((phase, index), Standing { stream, _hold: hold }),
            Err(error) => {
                tracing::debug!(phase, index, %error, "a data connection can't be kept");
                return;
            }
        };
        self.tether.wake();
    }

    /// Whether `phase` runs, or is the next one.
    pub(super) fn is_next(&self, phase: u8) -> bool {
        self.lists().next == phase
    }

    /// `phase` is over: the one after it is next.
    pub(super) fn advance(&self, phase: u8) {
        let mut lists = self.lists();
        lists.next = lists.next.max(phase.saturating_add(1));
    }

    /// How many streams of `phase` stand.
    pub(super) fn standing(&self, phase: u8) -> usize {
        self.lists().standing.keys().filter(|(of, _)| *of == phase).count()
    }

    /// Whether all streams of `phase` stand.
    pub(super) fn is_complete(&self, phase: u8) -> bool {
        self.places.get(usize::from(phase)).is_some_and(|places| self.standing(phase) == usize::from(*places))
    }

    /// Hands over the streams of `phase` that stand, in their order.
    pub(super) fn take(&self, phase: u8) -> Vec<Standing> {
        let places = self.places.get(usize::from(phase)).copied().unwrap_or(0);
        let mut lists = self.lists();
        (0..places).filter_map(|index| lists.standing.remove(&(phase, index))).collect()
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Nothing guarded here can be left half done.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
