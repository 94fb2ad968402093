//! Holds the connected streams of a session, by phase and index, until their phase begins.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::CONNECT_TIMEOUT;
use crate::session_control::SessionControl;

/// The number of streams of `phase` in the test `spec`, both directions together.
pub fn streams_of(spec: &TestSpec, phase: &PhaseSpec) -> u16 {
    phase.load.directions().iter().map(|_| spec.streams.min(TestSpec::MAX_STREAMS)).sum()
}

/// The direction of stream number `stream` of `phase`; `None` if the phase has no such stream. The download's streams
/// have the lower numbers.
pub(crate) fn direction_of(spec: &TestSpec, phase: &PhaseSpec, stream: u16) -> Option<Direction> {
    phase.load.directions().get(usize::from(stream / spec.streams.max(1))).copied()
}

/// Why a stream was not admitted to its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unplaced {
    /// The test has no such phase, or the phase has no such stream.
    NoSuchPlace,
    /// Another stream already has the index, or the phase has begun.
    Taken,
}

/// The connected streams of one session at one end, until their phases begin. `T` is an engine's type of a connected
/// stream.
pub(crate) struct StreamRegistry<T> {
    /// The number of streams of each phase.
    places: Vec<u16>,
    control: Arc<SessionControl>,
    state: Mutex<RegistryState<T>>,
}

struct RegistryState<T> {
    /// The index of the running phase, or of the next phase if none runs.
    next: u8,
    /// The phases that admit no further streams, because their streams were taken or did not connect in time.
    closed: HashSet<u8>,
    ready: HashMap<(u8, u16), T>,
}

impl<T> StreamRegistry<T> {
    pub(crate) fn new(spec: &TestSpec, control: Arc<SessionControl>) -> Self {
        let places = spec.phases.iter().map(|phase| streams_of(spec, phase)).collect();
        let state = RegistryState { next: 0, closed: HashSet::new(), ready: HashMap::new() };
        Self { places, control, state: Mutex::new(state) }
    }

    /// Checks that stream `index` of `phase` exists and that the phase has not begun. The index may already have a
    /// stream.
    pub(crate) fn check(&self, phase: u8, index: u16) -> Result<(), Unplaced> {
        self.check_open(&self.state(), phase, index)
    }

    /// Adds `stream` as stream `index` of `phase`, unless another stream already has this index. Wakes the thread that
    /// waits for the phase's streams.
    pub(crate) fn admit(&self, phase: u8, index: u16, stream: T) -> Result<(), Unplaced> {
        self.put(phase, index, stream, false)
    }

    /// Adds `stream` as stream `index` of `phase`, and replaces a stream that already has this index. Wakes the thread
    /// that waits for the phase's streams.
    pub(crate) fn replace(&self, phase: u8, index: u16, stream: T) -> Result<(), Unplaced> {
        self.put(phase, index, stream, true)
    }

    fn put(&self, phase: u8, index: u16, stream: T, replaces: bool) -> Result<(), Unplaced> {
        {
            let mut state = self.state();
            self.check_open(&state, phase, index)?;
            if !replaces && state.ready.contains_key(&(phase, index)) {
                return Err(Unplaced::Taken);
            }
            state.ready.insert((phase, index), stream);
        }
        // Wakes only after the registry's lock is released: a waiting thread acquires that lock while it holds the lock
        // of the session control.
        self.control.wake();
        Ok(())
    }

    /// Whether `phase` is the running phase, or the next phase if none runs.
    pub(crate) fn is_next(&self, phase: u8) -> bool {
        self.state().next == phase
    }

    /// Marks `phase` as over, so that the following phase is the next one.
    pub(crate) fn advance(&self, phase: u8) {
        let mut state = self.state();
        state.next = state.next.max(phase.saturating_add(1));
    }

    /// The number of streams of `phase` that are ready and for which `is_counted` holds.
    pub(crate) fn count(&self, phase: u8, is_counted: impl Fn(&T) -> bool) -> u16 {
        let state = self.state();
        let ready = state.ready.iter().filter(|((of, _), stream)| *of == phase && is_counted(stream));
        u16::try_from(ready.count()).unwrap_or(u16::MAX)
    }

    /// Whether all streams of `phase` are ready.
    pub(crate) fn is_complete(&self, phase: u8) -> bool {
        self.is_complete_in(&self.state(), phase)
    }

    /// Takes all streams of `phase`, ordered by index, and closes the phase to further streams. If some streams are
    /// missing, drops those that are ready and returns the number of dropped streams as the error.
    pub(crate) fn take(&self, phase: u8) -> Result<Vec<T>, usize> {
        let places = self.places.get(usize::from(phase)).copied().unwrap_or(0);
        let mut state = self.state();
        let is_complete = self.is_complete_in(&state, phase);
        state.closed.insert(phase);
        let streams = (0..places).filter_map(|index| state.ready.remove(&(phase, index))).collect::<Vec<_>>();
        if is_complete { Ok(streams) } else { Err(streams.len()) }
    }

    /// Waits for all streams of `phase` and takes them. Fails after [`CONNECT_TIMEOUT`] or when the session is
    /// cancelled. The error is the number of streams that were ready and are now dropped.
    #[expect(clippy::disallowed_methods, reason = "waits in wall time")]
    pub(crate) fn await_all(&self, phase: u8) -> Result<Vec<T>, usize> {
        self.control.wait_until(Instant::now() + CONNECT_TIMEOUT, || self.is_complete(phase));
        self.take(phase)
    }

    fn check_open(&self, state: &RegistryState<T>, phase: u8, index: u16) -> Result<(), Unplaced> {
        if self.places.get(usize::from(phase)).is_none_or(|places| index >= *places) {
            return Err(Unplaced::NoSuchPlace);
        }
        if state.closed.contains(&phase) { Err(Unplaced::Taken) } else { Ok(()) }
    }

    fn is_complete_in(&self, state: &RegistryState<T>, phase: u8) -> bool {
        let ready = state.ready.keys().filter(|(of, _)| *of == phase).count();
        self.places.get(usize::from(phase)).is_some_and(|places| ready == usize::from(*places))
    }

    fn state(&self) -> MutexGuard<'_, RegistryState<T>> {
        // Ignores poison: a panic cannot leave the guarded data inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{DataMode, EngineId, Load};

    use super::*;

    fn spec() -> TestSpec {
        let phases = [Load::Bidir, Load::Idle, Load::Upload].map(|load| PhaseSpec { load, duration_ms: 100 });
        TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, phases.to_vec(), 2)
    }

    fn registry() -> StreamRegistry<&'static str> {
        StreamRegistry::new(&spec(), SessionControl::unmetered())
    }

    #[test]
    fn in_a_phase_of_both_directions_the_downloads_streams_come_first() {
        let spec = spec();
        assert_eq!(spec.phases.iter().map(|phase| streams_of(&spec, phase)).collect::<Vec<_>>(), [4, 0, 2]);
        let of = |stream| direction_of(&spec, &spec.phases[0], stream);
        let (download, upload) = (Some(Direction::Download), Some(Direction::Upload));
        assert_eq!([0, 1, 2, 3, 4].map(of), [download, download, upload, upload, None]);
        assert_eq!(direction_of(&spec, &spec.phases[2], 1), upload);
    }

    #[test]
    fn a_phase_gets_its_streams_in_order_once_all_are_ready() {
        let registry = registry();
        for (index, name) in [(3, "d"), (0, "a"), (2, "c")] {
            registry.admit(0, index, name).unwrap();
        }
        assert!(!registry.is_complete(0));
        registry.admit(0, 1, "b").unwrap();
        assert_eq!(registry.await_all(0), Ok(vec!["a", "b", "c", "d"]));
        assert_eq!(registry.take(1), Ok(vec![]), "an idle phase has none");
        assert_eq!(registry.take(9), Err(0), "and a phase that does not exist is never complete");
    }

    #[test]
    fn each_index_is_taken_once_and_none_after_its_phase_has_begun() {
        let registry = registry();
        assert_eq!(registry.admit(2, 0, "first"), Ok(()));
        assert_eq!(registry.admit(2, 0, "second"), Err(Unplaced::Taken));
        assert_eq!(registry.replace(2, 0, "third"), Ok(()));
        assert_eq!(registry.admit(2, 2, "beyond"), Err(Unplaced::NoSuchPlace));
        assert_eq!(registry.check(3, 0), Err(Unplaced::NoSuchPlace));
        registry.admit(2, 1, "other").unwrap();
        assert_eq!(registry.take(2), Ok(vec!["third", "other"]));
        assert_eq!(
            (registry.check(2, 0), registry.replace(2, 0, "late")),
            (Err(Unplaced::Taken), Err(Unplaced::Taken))
        );
    }

    #[test]
    fn an_incomplete_phase_drops_its_streams_when_the_session_is_over() {
        let control = SessionControl::unmetered();
        let registry = StreamRegistry::new(&spec(), Arc::clone(&control));
        let stream = Arc::new(());
        registry.admit(2, 1, Arc::clone(&stream)).unwrap();
        control.cancel();
        assert_eq!(registry.await_all(2), Err(1));
        assert_eq!(Arc::strong_count(&stream), 1);
    }

    #[test]
    fn phases_are_admitted_in_order() {
        let registry = registry();
        assert!(registry.is_next(0) && !registry.is_next(1));
        registry.advance(0);
        registry.advance(0);
        assert!(registry.is_next(1));
    }
}
