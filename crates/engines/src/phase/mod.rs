//! Runs the phases of every engine. All engines use the same threads, the same samples and the same watcher, and report
//! by the same rule why a phase was cut short.

mod count;
mod registry;
mod sampler;
mod threads;
mod watch;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use paramedic_link::PeerText;
use paramedic_link::measurement::{DirectionTally, PhaseTally};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};

use crate::engine::{PhaseObserver, PhaseProgress};
use crate::session_control::SessionControl;

pub use registry::streams_of;
pub use watch::{Look, Moving, watch};

pub(crate) use registry::{StreamRegistry, Unplaced, direction_of};
pub(crate) use sampler::SAMPLE_INTERVAL;
pub(crate) use threads::{Ended, PhaseStream, StreamReport, StreamRun, run};

/// How long after the end of a phase a receiver still accepts bytes that are in flight.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The timeout for connecting the streams of a phase.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// If a stream ends more than this margin before the end of its phase, the other end has failed. The two ends begin a
/// phase at different times, but the difference is less than this margin, even if the start message was retransmitted
/// or read late. In a phase shorter than this margin, the other end's missing tally shows the failure.
pub(crate) const EARLY_END: Duration = Duration::from_secs(2);

/// The reason in the tally of a phase that was cut short because its session ended.
pub const SESSION_OVER: &str = "the session ended before the phase did";

/// The error text for a phase number that the test does not have.
pub const NO_SUCH_PHASE: &str = "the test has no phase with this number";

/// The state that the threads and the watcher of a running phase share at one end.
pub struct PhaseContext<'a> {
    /// The requested test.
    pub(crate) ask: &'a TestSpec,
    /// The load of the phase: none, download, upload or both.
    pub load: Load,
    /// The direction that this end sends.
    pub sent: Direction,
    pub(crate) control: &'a SessionControl,
    /// When the phase began.
    pub begin: Instant,
    /// When senders stop, unless the appliance ends the phase earlier.
    planned_end: Instant,
    has_failed: AtomicBool,
    /// The first failure of a stream. Later failures are not recorded, because they are consequences of the first.
    failure: Mutex<Option<String>>,
}

impl<'a> PhaseContext<'a> {
    /// A context for `phase` of the test `ask`, at the end that sends the direction `sent`. The phase began at `begin`.
    /// Discards the request that stopped an earlier phase, if there was one.
    pub fn new(
        ask: &'a TestSpec,
        phase: &PhaseSpec,
        sent: Direction,
        control: &'a SessionControl,
        begin: Instant,
    ) -> Self {
        control.begin_phase();
        Self {
            ask,
            load: phase.load,
            sent,
            control,
            begin,
            planned_end: begin + phase.duration(),
            has_failed: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    /// When senders stop: at the planned end of the phase, or when the appliance ended the phase, whichever is earlier.
    pub(crate) fn until(&self) -> Instant {
        self.control.phase_stopped_at().map_or(self.planned_end, |stopped| stopped.min(self.planned_end))
    }

    /// Whether all streams have to stop: the session is cancelled, or a stream failed.
    pub(crate) fn is_over(&self) -> bool {
        self.control.is_cancelled() || self.has_failed()
    }

    /// Nanoseconds since the phase began.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Checks a stream that the other end closed in an orderly way at `now`. Returns an error if `now` is more than
    /// `EARLY_END` before the end of the phase.
    ///
    /// A direction that ends after a number of bytes has no planned end, so it never ends early. At the reflector, the
    /// same applies to an upload that the appliance may stop: its streams may end before the stop message arrives.
    pub fn ended_early(&self, now: Instant) -> Option<io::Error> {
        let may_be_stopped = self.ask.may_stop && self.sent == Direction::Download;
        (self.ask.direction_bytes.is_none() && !may_be_stopped && now + EARLY_END < self.until()).then(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the other end stopped sending before the phase was over")
        })
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// Records a stream's failure at `now`, and ends the phase. `stream_until` is when the stream should end. Ignores a
    /// failure after that time, after the appliance stopped the phase, or after a cancellation, because such a failure
    /// is a consequence of that event.
    fn note(&self, failure: String, now: Instant, stream_until: Instant) {
        let is_stopped = self.control.phase_stopped_at().is_some_and(|stopped| now >= stopped);
        if now >= stream_until || is_stopped || self.control.is_cancelled() {
            return;
        }
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        self.has_failed.store(true, Ordering::SeqCst);
        self.control.wake();
    }

    /// Why the phase that ends at `now` was cut short; `None` if it was not.
    pub fn why_cut_short(&self, now: Instant) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        why_cut_short(failure, self.control.is_cancelled(), now, self.until())
    }
}

/// Why a phase was cut short: the first recorded failure, or else a cancellation before the phase's end. Events after
/// the phase's end do not cut the phase short.
fn why_cut_short(failure: Option<String>, is_cancelled: bool, now: Instant, until: Instant) -> Option<String> {
    failure.or_else(|| (is_cancelled && now < until).then(|| SESSION_OVER.to_owned()))
}

/// The tally of a phase with the load `load`. Calls `of` for the entry of each direction of the load.
pub fn tally(load: Load, cut_short: Option<&str>, mut of: impl FnMut(Direction) -> DirectionTally) -> PhaseTally {
    let mut moved = |direction| load.moves(direction).then(|| of(direction));
    PhaseTally {
        download: moved(Direction::Download),
        upload: moved(Direction::Upload),
        cut_short: cut_short.map(PeerText::from),
        interface: None,
    }
}

/// The tally of a phase that moved no bytes. `why` is the reason in the tally, unless the session was cancelled.
pub fn nothing_moved(phase: Option<&PhaseSpec>, control: &SessionControl, why: &str) -> PhaseTally {
    let why = if control.is_cancelled() { SESSION_OVER } else { why };
    tally(phase.map_or(Load::Idle, |phase| phase.load), Some(why), |_| DirectionTally::default())
}

/// Runs a phase without load: waits for its duration. If `phase` is `None` because the test has no such phase, returns
/// at once with this reason.
#[expect(clippy::disallowed_methods, reason = "waits for wall time")]
pub fn run_idle(phase: Option<&PhaseSpec>, control: &SessionControl, report: PhaseObserver<'_>) -> PhaseTally {
    let Some(phase) = phase else { return nothing_moved(None, control, NO_SUCH_PHASE) };
    report(PhaseProgress::Started);
    let until = Instant::now() + phase.duration();
    control.wait_until(until, || false);
    tally(Load::Idle, why_cut_short(None, control.is_cancelled(), Instant::now(), until).as_deref(), |_| {
        DirectionTally::default()
    })
}

/// The duration `time` in whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests need some time to begin with")]
mod tests {
    use paramedic_link::test_spec::{DataMode, EngineId};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec() -> TestSpec {
        let phases = vec![PhaseSpec { load: Load::Upload, duration_ms: 10_000 }];
        TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, phases, 1)
    }

    #[test]
    fn a_phase_is_cut_short_by_a_failure_or_by_a_cancellation_before_its_time() {
        let now = Instant::now();
        let failure = || Some("broken".to_owned());
        let (early, late) = (now + SECOND, now);
        assert_eq!(why_cut_short(None, false, now, early), None);
        assert_eq!(why_cut_short(None, true, now, early).as_deref(), Some(SESSION_OVER));
        assert_eq!(why_cut_short(None, true, now, late), None, "its time was over");
        assert_eq!(why_cut_short(failure(), true, now, early), failure(), "the first event counts");
        assert_eq!(why_cut_short(failure(), false, now, late), failure(), "a stream that begins late may end late");
    }

    #[test]
    fn the_first_failure_within_a_streams_time_counts_and_ends_the_phase() {
        let (spec, control, begin) = (spec(), SessionControl::unmetered(), Instant::now());
        let context = || PhaseContext::new(&spec, &spec.phases[0], Direction::Upload, &control, begin);
        let (at, until) = (begin + SECOND, begin + 10 * SECOND);
        let failed = |context: &PhaseContext<'_>| (context.is_over(), context.why_cut_short(at));

        let both = context();
        both.note("first".to_owned(), at, until);
        both.note("second".to_owned(), at, until);
        assert_eq!(failed(&both), (true, Some("first".to_owned())));

        let late = context();
        late.note("late".to_owned(), until, until);
        assert_eq!(failed(&late), (false, None));
        late.note("of a stream that began late".to_owned(), until, until + SECOND);
        assert!(late.has_failed());

        control.cancel();
        let cancelled = context();
        cancelled.note("reset".to_owned(), at, until);
        assert_eq!(failed(&cancelled), (true, Some(SESSION_OVER.to_owned())));
    }

    #[test]
    fn an_orderly_end_long_before_its_time_is_a_failure() {
        let (spec, control, begin) = (spec(), SessionControl::unmetered(), Instant::now());
        let context = PhaseContext::new(&spec, &spec.phases[0], Direction::Upload, &control, begin);
        let until = context.until();
        assert!(context.ended_early(until - EARLY_END - Duration::from_millis(1)).is_some());
        assert!(context.ended_early(until - EARLY_END).is_none());
    }

    #[test]
    fn a_phase_that_the_appliance_stopped_ends_then_and_the_next_one_at_its_own_time() {
        let (spec, control, begin) = (spec(), SessionControl::unmetered(), Instant::now());
        let context = || PhaseContext::new(&spec, &spec.phases[0], Direction::Upload, &control, begin);
        let stopped = context();
        control.stop_phase();
        let at = stopped.until();
        assert!(at < begin + SECOND && stopped.ended_early(at).is_none());
        control.stop_phase();
        assert_eq!(stopped.until(), at, "the first stop counts");
        stopped.note("reset".to_owned(), at, begin + 10 * SECOND);
        assert_eq!((stopped.is_over(), stopped.why_cut_short(at)), (false, None), "what follows it is no failure");
        assert_eq!(context().until(), begin + 10 * SECOND);
    }

    #[test]
    fn a_reflector_does_not_fail_streams_that_end_before_the_message_that_stops_them() {
        let (control, begin) = (SessionControl::unmetered(), Instant::now());
        let spec = TestSpec { may_stop: true, ..spec() };
        let failure =
            |sent| PhaseContext::new(&spec, &spec.phases[0], sent, &control, begin).ended_early(begin + SECOND);
        assert!(failure(Direction::Download).is_none());
        assert!(failure(Direction::Upload).is_some(), "the appliance knows whether it stopped the phase");
    }
}
