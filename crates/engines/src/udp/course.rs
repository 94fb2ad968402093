//! One phase at one end: a thread for each stream, and the caller's own that watches them and samples what they count.
//! The same at both ends of a session.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally};
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::packet::Place;
use super::receiver::{self, Received};
use super::sender::{self, Sent};
use super::{direction_of, socket};
use crate::counting::{Counter, SESSION_OVER, ThreadUse};
use crate::engine::{Progress, Report};
use crate::host_facts::CpuClock;
use crate::phase::Sampler;
use crate::tether::{Hold, Tether};

/// A stream that stands: its socket hears and reaches its other end alone. Cutting the session's tether ends it.
pub(super) struct Standing {
    pub(super) place: Place,
    pub(super) socket: UdpSocket,
    _hold: Hold,
}

impl Standing {
    /// Asks of a connected `socket` what the test asks for.
    pub(super) fn new(place: Place, socket: UdpSocket, ask: &TestSpec, tether: &Arc<Tether>) -> io::Result<Self> {
        socket::prepare(&socket, ask)?;
        let hold = tether.hold(&socket)?;
        Ok(Self { place, socket, _hold: hold })
    }
}

/// What the threads of a phase share.
pub(super) struct Course<'a> {
    /// What was asked of the streams.
    pub(super) ask: &'a TestSpec,
    pub(super) keys: &'a SessionKeys,
    pub(super) tether: &'a Tether,
    /// When the phase began at this end: its clock's zero.
    pub(super) begin: Instant,
    pub(super) duration: Duration,
    /// Why the phase can't go on: the first reason, the others follow from it.
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
}

impl Course<'_> {
    /// Whether nothing more is to be done.
    pub(super) fn is_over(&self) -> bool {
        self.tether.is_cut() || self.failed.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the begin.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(&self, failure: &io::Error) {
        if self.tether.is_cut() {
            return;
        }
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| failure.to_string());
        self.failed.store(true, Ordering::SeqCst);
    }
}

/// One direction, as the watching thread sees it.
struct Lane {
    direction: Direction,
    is_sent: bool,
    streams: Vec<Standing>,
    counters: Vec<Counter>,
    ended: AtomicUsize,
}

impl Lane {
    fn total(&self) -> u64 {
        self.counters.iter().map(Counter::read).sum()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) == self.streams.len()
    }
}

/// What a stream's thread leaves behind.
#[derive(Default)]
struct Outcome {
    sent: Sent,
    received: Received,
    used: ThreadUse,
}

/// Runs `phase` over `streams`, of which this end sends the `sent` direction. Returns when all its threads are gone and
/// its sockets closed.
pub(super) fn run(
    ask: &TestSpec,
    phase: &PhaseSpec,
    keys: &SessionKeys,
    tether: &Tether,
    streams: Vec<Standing>,
    sent: Direction,
    report: Report<'_>,
) -> PhaseTally {
    report(Progress::Started);
    let cpu = CpuClock::start();
    let course = Course {
        ask,
        keys,
        tether,
        begin: Instant::now(),
        duration: phase.duration(),
        failure: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    let mut lanes = Vec::new();
    for direction in phase.load.directions() {
        lanes.push(Lane {
            direction: *direction,
            is_sent: *direction == sent,
            streams: Vec::new(),
            counters: Vec::new(),
            ended: AtomicUsize::new(0),
        });
    }
    for stream in streams {
        let direction = direction_of(ask, phase, stream.place.stream);
        if let Some(lane) = lanes.iter_mut().find(|lane| Some(lane.direction) == direction) {
            lane.streams.push(stream);
            lane.counters.push(Counter::default());
        }
    }
    let outcomes = std::thread::scope(|scope| {
        let handles = lanes.iter().map(|lane| spawn(scope, &course, lane)).collect::<Vec<_>>();
        watch(&course, &lanes, report);
        let join = |handle: ScopedJoinHandle<'_, Outcome>| handle.join().unwrap_or_default();
        handles.into_iter().map(|lane| lane.into_iter().map(join).collect()).collect::<Vec<Vec<_>>>()
    });
    let host = cpu.host();
    let failure = course.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    let was_over = || course.tether.is_cut() && course.begin.elapsed() < course.duration;
    let cut_short = failure.or_else(|| was_over().then(|| SESSION_OVER.to_owned()));
    let mut tally = PhaseTally { cut_short: cut_short.map(Into::into), ..PhaseTally::default() };
    for (lane, outcomes) in lanes.iter().zip(outcomes) {
        let counted = Some(tally_of(lane, &outcomes, host));
        match lane.direction {
            Direction::Download => tally.download = counted,
            Direction::Upload => tally.upload = counted,
        }
    }
    tally
}

fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    course: &'scope Course<'_>,
    lane: &'scope Lane,
) -> Vec<ScopedJoinHandle<'scope, Outcome>> {
    let name = if lane.is_sent { "udp-send" } else { "udp-receive" };
    let spawn_one = |(stream, counter): (&'scope Standing, &'scope Counter)| {
        let thread = Builder::new().name(name.into());
        let spawned = thread.spawn_scoped(scope, move || move_datagrams(course, lane, stream, counter));
        if let Err(error) = &spawned {
            course.note(error);
            lane.ended.fetch_add(1, Ordering::SeqCst);
        }
        spawned.ok()
    };
    lane.streams.iter().zip(&lane.counters).filter_map(spawn_one).collect()
}

/// The life of a stream's thread.
fn move_datagrams(course: &Course<'_>, lane: &Lane, stream: &Standing, counter: &Counter) -> Outcome {
    /// Says that the thread is done, also when it panics: somebody waits for it.
    struct Done<'a>(&'a Course<'a>, &'a Lane);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.1.ended.fetch_add(1, Ordering::SeqCst);
            self.0.tether.wake();
        }
    }
    let _done = Done(course, lane);
    let began = Instant::now();
    let mut outcome = Outcome::default();
    let result = if lane.is_sent {
        sender::send(stream, lane.direction, course, counter, &mut outcome.sent)
    } else {
        receiver::receive(stream, lane.direction, course, counter, &mut outcome.received)
    };
    if let Err(failure) = &result {
        tracing::debug!(direction = %lane.direction, %failure, "a stream ended");
        course.note(failure);
    }
    outcome.used = ThreadUse::since(began);
    outcome
}

/// Watches the streams until all have ended, and samples what they count on an absolute schedule.
fn watch(course: &Course<'_>, lanes: &[Lane], report: Report<'_>) {
    let until = course.begin + course.duration;
    if lanes.is_empty() {
        // An idle phase: time passes.
        course.tether.wait_until(until, || false);
        return;
    }
    let all_ended = || lanes.iter().all(Lane::has_ended);
    let mut sampler = Sampler::new(course.begin, until);
    loop {
        if course.tether.wait_until(sampler.due(), all_ended) || course.tether.is_cut() {
            return;
        }
        let mut totals = [None; 2];
        for lane in lanes.iter().filter(|lane| lane.ended.load(Ordering::SeqCst) == 0) {
            totals[lane.direction as usize] = Some(lane.total());
        }
        let samples = sampler.look(Instant::now(), totals);
        for (lane, sample) in lanes.iter().filter_map(|lane| Some((lane, samples[lane.direction as usize]?))) {
            let of = if lane.is_sent { Progress::Sent } else { Progress::Received };
            report(of(lane.direction, sample));
        }
    }
}

fn tally_of(lane: &Lane, outcomes: &[Outcome], host: CpuUse) -> DirectionTally {
    let last_ns = outcomes.iter().map(|outcome| outcome.sent.last_ns.max(outcome.received.last_ns)).max();
    let cpu = ThreadUse::of_all(outcomes.iter().map(|outcome| outcome.used), host);
    let datagrams = if lane.is_sent {
        sender::tally(outcomes.iter().map(|outcome| &outcome.sent))
    } else {
        receiver::tally(outcomes.iter().map(|outcome| &outcome.received))
    };
    let moved = lane.counters.iter().filter(|counter| counter.read() > 0).count();
    DirectionTally {
        count: Count { bytes: lane.total(), elapsed_us: last_ns.unwrap_or(0) / 1000 },
        cpu,
        data_path: Some("plain".into()),
        datagrams: Some(Box::new(datagrams)),
        streams: u16::try_from(moved).unwrap_or(u16::MAX),
        ..DirectionTally::default()
    }
}
