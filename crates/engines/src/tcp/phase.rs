//! One phase at one end: a thread for each stream, and the caller's own that watches them, samples what comes, and ends
//! what doesn't end by itself. The same at both ends of a session.

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally};
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::receiver::{self, Received};
use super::roster::Standing;
use super::sender::{self, Lead};
use crate::counting::{Counter, SESSION_OVER, ThreadUse};
use crate::data_stream::DataStream;
use crate::engine::{Progress, Report};
use crate::host_facts::CpuClock;
use crate::phase::{DRAIN_TIMEOUT, EARLY_END, SAMPLE_INTERVAL, Sampler, micros};
use crate::socket;
use crate::tether::Tether;

/// How much longer a sender waits to hear that all was taken.
const FAREWELL: Duration = Duration::from_secs(1);

/// The streams of a phase by what this end does with them.
pub(super) struct Traffic {
    sends: Option<(Direction, Vec<Standing>)>,
    receives: Option<(Direction, Vec<Standing>)>,
}

impl Traffic {
    /// Sorts the streams of `phase`, of which this end sends the `sent` direction. Where there are two, the download's
    /// come first.
    pub(super) fn split(phase: &PhaseSpec, mut streams: Vec<Standing>, sent: Direction) -> Self {
        let each = streams.len() / phase.load.directions().len().max(1);
        let mut traffic = Self { sends: None, receives: None };
        for direction in phase.load.directions() {
            let rest = streams.split_off(each.min(streams.len()));
            let lane = Some((*direction, std::mem::replace(&mut streams, rest)));
            if *direction == sent { traffic.sends = lane } else { traffic.receives = lane }
        }
        traffic
    }
}

/// What the threads of a phase share.
pub(super) struct Course<'a> {
    /// What was asked of the streams.
    pub(super) ask: &'a TestSpec,
    pub(super) tether: &'a Tether,
    begin: Instant,
    /// When senders stop.
    pub(super) until: Instant,
    /// Set before streams are ended by force: what they then say is no news.
    over: AtomicBool,
    /// Why the phase can't go on: the first reason, the others follow from it.
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
}

impl Course<'_> {
    /// The failure that a clean end is at `now`, if it came long before its time.
    pub(super) fn ended_early(&self, now: Instant) -> Option<io::Error> {
        (now + EARLY_END < self.until)
            .then(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the other end stopped sending"))
    }

    fn note(&self, failure: &io::Error) {
        let now = Instant::now();
        // What happens to a stream after the time is over shortens nothing.
        if now >= self.until || self.over.load(Ordering::SeqCst) || self.tether.is_cut() {
            return;
        }
        let after = (now - self.begin).as_secs_f64();
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("a data connection failed after {after:.1} s: {failure}"));
        self.failed.store(true, Ordering::SeqCst);
    }
}

/// One direction, as the watching thread sees it.
struct Lane {
    direction: Direction,
    /// Where this end sends: how far each stream may run ahead.
    leads: Option<Vec<Lead>>,
    counters: Vec<Counter>,
    /// Each stream's socket a second time, to ask and to end it.
    sockets: Vec<TcpStream>,
    ended: AtomicUsize,
    give_up: Instant,
}

impl Lane {
    fn total(&self) -> u64 {
        self.counters.iter().map(Counter::read).sum()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) == self.sockets.len()
    }

    fn abort(&self) {
        self.sockets.iter().for_each(socket::abort);
    }
}

/// What a stream's thread leaves behind.
#[derive(Default)]
struct Outcome {
    last: Option<Instant>,
    data_path: Option<&'static str>,
    used: ThreadUse,
}

/// Runs a phase of `duration` to its end. Returns when all its threads are gone and its sockets closed.
pub(super) fn run(
    ask: &TestSpec,
    duration: Duration,
    tether: &Tether,
    traffic: Traffic,
    report: Report<'_>,
) -> PhaseTally {
    report(Progress::Started);
    let cpu = CpuClock::start();
    let begin = Instant::now();
    let course = Course {
        ask,
        tether,
        begin,
        until: begin + duration,
        over: AtomicBool::new(false),
        failure: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    let Traffic { sends, receives } = traffic;
    let mut streams = Vec::new();
    let mut lanes = Vec::new();
    for (sends, lane) in [(true, sends), (false, receives)] {
        let Some((direction, standing)) = lane else { continue };
        let sockets = standing.iter().map(|standing| standing.stream.socket().try_clone());
        let sockets = sockets.collect::<io::Result<Vec<_>>>().inspect_err(|error| course.note(error));
        let give_up = course.until + DRAIN_TIMEOUT + if sends { FAREWELL } else { Duration::ZERO };
        let counters = standing.iter().map(|_| Counter::default()).collect();
        let sockets = sockets.unwrap_or_default();
        let leads = sends.then(|| sockets.iter().map(Lead::new).collect());
        lanes.push(Lane { direction, leads, counters, sockets, ended: AtomicUsize::new(0), give_up });
        streams.push(standing);
    }
    let outcomes = if course.failed.load(Ordering::SeqCst) {
        lanes.iter().map(|_| Vec::new()).collect()
    } else {
        std::thread::scope(|scope| {
            let handles = spawn(scope, &course, &lanes, &mut streams);
            watch(&course, &lanes, report);
            let join = |handle: ScopedJoinHandle<'_, Outcome>| handle.join().unwrap_or_default();
            handles.into_iter().map(|lane| lane.into_iter().map(join).collect()).collect::<Vec<Vec<_>>>()
        })
    };
    let host = cpu.host();
    let mut tally = PhaseTally { cut_short: why_short(&course).map(Into::into), ..PhaseTally::default() };
    for (lane, outcomes) in lanes.iter().zip(outcomes) {
        let counted = Some(tally_of(lane, &outcomes, begin, host));
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
    lanes: &'scope [Lane],
    streams: &'scope mut [Vec<Standing>],
) -> Vec<Vec<ScopedJoinHandle<'scope, Outcome>>> {
    let spawn_lane = |(lane, streams): (&'scope Lane, &'scope mut Vec<Standing>)| {
        let name = if lane.leads.is_some() { "tcp-send" } else { "tcp-receive" };
        let spawn_one = |(index, standing): (usize, &'scope mut Standing)| {
            let thread = Builder::new().name(name.into());
            let spawned = thread.spawn_scoped(scope, move || move_bytes(&mut standing.stream, course, lane, index));
            if let Err(error) = &spawned {
                course.note(error);
                lane.ended.fetch_add(1, Ordering::SeqCst);
            }
            spawned.ok()
        };
        streams.iter_mut().enumerate().filter_map(spawn_one).collect()
    };
    lanes.iter().zip(streams).map(spawn_lane).collect()
}

/// The life of a stream's thread.
fn move_bytes(stream: &mut DataStream, course: &Course<'_>, lane: &Lane, index: usize) -> Outcome {
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
    let mut received = Received::default();
    let counter = &lane.counters[index];
    let result = if let Some(leads) = &lane.leads {
        let result = sender::send(stream, course, &leads[index], counter, &mut received.data_path);
        received.last = Some(Instant::now().min(course.until));
        result
    } else {
        receiver::receive(stream, course, counter, &mut received)
    };
    if let Err(failure) = &result {
        tracing::debug!(direction = %lane.direction, %failure, "a stream ended");
        course.note(failure);
    }
    Outcome { last: received.last, data_path: received.data_path, used: ThreadUse::since(began) }
}

/// Watches the streams until all have ended: samples what comes on an absolute schedule, notices that the other end
/// lives, and ends what must end.
fn watch(course: &Course<'_>, lanes: &[Lane], report: Report<'_>) {
    if lanes.is_empty() {
        // An idle phase: time passes.
        course.tether.wait_until(course.until, || false);
        return;
    }
    let all_ended = || lanes.iter().all(Lane::has_ended);
    let mut before = [0; 2];
    let mut sampler = Sampler::new(course.begin, course.until);
    loop {
        let done = || all_ended() || course.failed.load(Ordering::SeqCst);
        if course.tether.wait_until(sampler.due(), done) || course.tether.is_cut() {
            break;
        }
        let now = Instant::now();
        let mut totals = [None; 2];
        for lane in lanes {
            let (total, at) = (lane.total(), lane.direction as usize);
            if let Some(leads) = &lane.leads {
                listen_for_acknowledgements(course.tether, lane);
                let streams = leads.iter().zip(&lane.sockets).zip(&lane.counters);
                streams.for_each(|((lead, socket), counter)| lead.adapt(socket, counter.read()));
            } else if total > before[at] {
                course.tether.heard();
            }
            before[at] = total;
            totals[at] = (lane.ended.load(Ordering::SeqCst) == 0).then_some(total);
            if now >= lane.give_up && !lane.has_ended() {
                lane.abort();
            }
        }
        let samples = sampler.look(now, totals);
        for (lane, sample) in lanes.iter().filter_map(|lane| Some((lane, samples[lane.direction as usize]?))) {
            let of = if lane.leads.is_some() { Progress::Sent } else { Progress::Received };
            report(of(lane.direction, sample));
        }
    }
    course.over.store(true, Ordering::SeqCst);
    if !all_ended() {
        lanes.iter().for_each(Lane::abort);
    }
}

/// A sender hears the other end by its acknowledgements alone.
fn listen_for_acknowledgements(tether: &Tether, lane: &Lane) {
    let lately = |socket: &TcpStream| socket::since_last_ack(socket).is_some_and(|ago| ago <= SAMPLE_INTERVAL);
    if lane.sockets.iter().any(lately) {
        tether.heard();
    }
}

fn why_short(course: &Course<'_>) -> Option<String> {
    let failure = course.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    let was_over = || course.tether.is_cut() && Instant::now() < course.until;
    failure.or_else(|| was_over().then(|| SESSION_OVER.to_owned()))
}

fn tally_of(lane: &Lane, outcomes: &[Outcome], begin: Instant, host: CpuUse) -> DirectionTally {
    let last = outcomes.iter().filter_map(|outcome| outcome.last).max();
    let elapsed_us = last.map_or(0, |last| micros(last.saturating_duration_since(begin)));
    let cpu = ThreadUse::of_all(outcomes.iter().map(|outcome| outcome.used), host);
    let mut tally = DirectionTally {
        count: Count { bytes: lane.total(), elapsed_us },
        cpu,
        data_path: outcomes.iter().find_map(|outcome| outcome.data_path).map(Into::into),
        streams: u16::try_from(lane.counters.iter().filter(|counter| counter.read() > 0).count()).unwrap_or(u16::MAX),
        ..DirectionTally::default()
    };
    if lane.leads.is_some() {
        let infos = lane.sockets.iter().zip(&lane.counters);
        let infos = infos.map(|(socket, counter)| socket::stream_info(socket, counter.read())).collect::<Vec<_>>();
        tally.congestion_control = lane.sockets.first().and_then(socket::congestion_control).map(Into::into);
        tally.mss = infos.iter().find_map(|(_, mss)| *mss);
        tally.retransmits = infos.iter().filter_map(|(info, _)| info.retransmits).map(u64::from).reduce(|a, b| a + b);
    }
    tally
}
