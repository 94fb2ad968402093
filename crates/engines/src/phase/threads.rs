//! Runs a phase with one thread per stream, while the calling thread watches the streams. The code is the same at both
//! ends and for every engine; the engine's [`PhaseStream`] moves the bytes. Uses threads and the clock.

#![expect(clippy::disallowed_methods, reason = "runs a phase in wall time")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally};
use paramedic_link::phase_detail::{PhaseDetail, TcpSample};
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::count::{Counter, ThreadUse};
use super::watch::{Look, Moving, watch};
use super::{DRAIN_TIMEOUT, PhaseContext, micros, tally};
use crate::engine::{PhaseObserver, PhaseProgress};
use crate::host_facts::CpuClock;
use crate::session_control::SessionControl;
use crate::thread_limit;

/// How long a sender may still wait for the receiver's confirmation after [`DRAIN_TIMEOUT`] has ended the receiver.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(1);

/// A connected stream of an engine. One thread sends or receives on the stream.
pub(crate) trait PhaseStream: Send {
    /// The part of a stream that the phase's watcher uses while the stream's thread runs.
    type Watched: Send + Sync;
    /// The engine's own part of a stream's report, for example its counts of datagrams.
    type Own: Default + Send;
    /// The names of the sending and of the receiving thread.
    const THREADS: [&'static str; 2];
    /// How long after the start of the phase a sender may begin. A sender that begins late ends late by the same time.
    const LATEST_BEGIN: Duration;

    /// Creates the part of this stream that the phase's watcher uses. `is_sent`: whether this end sends.
    fn watched(&self, is_sent: bool) -> io::Result<Self::Watched>;

    /// Sends until the stream's time is over and the other end has confirmed the bytes, or until the phase is over. The
    /// counter and `report` must include what was sent before a failure.
    fn send(&mut self, run: &StreamRun<'_, Self::Watched>, report: &mut StreamReport<Self::Own>) -> io::Result<()>;

    /// Receives until the sender has ended or the phase is over. The counter and `report` must include what was
    /// received before a failure.
    fn receive(&mut self, run: &StreamRun<'_, Self::Watched>, report: &mut StreamReport<Self::Own>) -> io::Result<()>;

    /// Called once per sample interval if this end sends. `total` is the number of bytes that the stream has sent.
    /// Returns whether anything arrived from the other end since the last call.
    fn attend(watched: &Self::Watched, total: u64) -> bool;

    /// The number of bytes that the other end has acknowledged, out of the `total` bytes sent so far. Called once per
    /// sample interval, for the sender's samples.
    fn acknowledged(_watched: &Self::Watched, total: u64) -> u64 {
        total
    }

    /// A sample of what the kernel has recorded about the stream. Called once per sample interval if the test requests
    /// such samples. The caller sets the sample's time and stream number.
    fn tcp_sample(_watched: &Self::Watched) -> Option<TcpSample> {
        None
    }

    /// Called once per sample interval if this end sends. `is_silent`: whether the other end has been silent for too
    /// long. If so, a stream that waits for acknowledgements pauses until the next call with `false`. After that call,
    /// the caller wakes the paused threads.
    fn pause(watched: &Self::Watched, is_silent: bool);

    /// Ends the stream at once, so that its thread returns.
    fn abort(watched: &Self::Watched);

    /// The text for a stream's failure. `after` is the time from the start of the phase to the failure.
    fn describe(failure: &io::Error, after: Duration) -> String;

    /// Adds what the engine has recorded about `streams` to the tally of their direction. `is_sent`: whether this end
    /// sends.
    fn tally(streams: &[Ended<'_, Self>], is_sent: bool, tally: &mut DirectionTally)
    where
        Self: Sized;
}

/// The parameters of a stream's thread.
pub(crate) struct StreamRun<'a, W> {
    pub(crate) context: &'a PhaseContext<'a>,
    pub(crate) direction: Direction,
    pub(crate) counter: &'a Counter,
    pub(crate) watched: &'a W,
    is_aborted: &'a AtomicBool,
    bytes_left: Option<&'a AtomicU64>,
}

impl<W> StreamRun<'_, W> {
    /// Whether the stream must stop: its phase is over, or the watcher aborted it.
    pub(crate) fn is_over(&self) -> bool {
        self.context.is_over() || self.is_aborted.load(Ordering::Relaxed)
    }

    /// How many bytes the stream may send now, at most `most`. Returns 0 once the streams of its direction have
    /// reserved all bytes that the direction may send. `taken` is the number of bytes that this stream has reserved and
    /// not sent yet; it must start at 0.
    pub(crate) fn take_bytes(&self, taken: &mut u64, most: usize) -> usize {
        let Some(left) = self.bytes_left else { return most };
        let wanted = u64::try_from(most).unwrap_or(u64::MAX);
        if *taken == 0 {
            let take = |left: u64| Some(left.saturating_sub(wanted));
            let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or_default();
            *taken = before.min(wanted);
        }
        usize::try_from(*taken).unwrap_or(most).min(most)
    }
}

/// The report of a stream's thread about what the stream moved.
pub(crate) struct StreamReport<O> {
    /// When the stream last moved a byte; `None` if it moved none.
    pub(crate) last: Option<Instant>,
    /// When the stream should end: at the end of the phase, or later if the stream began later. A failure after this
    /// time is ignored.
    pub(crate) until: Instant,
    pub(crate) own: O,
    used: ThreadUse,
}

/// A stream whose thread has ended.
pub(crate) struct Ended<'a, S: PhaseStream> {
    pub(crate) watched: &'a S::Watched,
    pub(crate) own: S::Own,
}

/// One direction of a running phase.
struct DirectionRun<W> {
    direction: Direction,
    is_sent: bool,
    counters: Vec<Counter>,
    watched: Vec<W>,
    ended: AtomicUsize,
    is_aborted: AtomicBool,
    /// The number of bytes that the direction's streams may still reserve for sending; `None` without a limit.
    bytes_left: Option<AtomicU64>,
}

impl<W> DirectionRun<W> {
    fn total(&self) -> u64 {
        self.counters.iter().map(Counter::read).sum()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) == self.counters.len()
    }
}

/// Runs `phase` on its `streams`, which must be complete and have the download's streams first. This end sends the
/// direction `sent`. Returns when all threads have ended and the sockets are closed.
pub(crate) fn run<S: PhaseStream>(
    ask: &TestSpec,
    phase: &PhaseSpec,
    sent: Direction,
    control: &SessionControl,
    mut streams: Vec<S>,
    report: PhaseObserver<'_>,
) -> PhaseTally {
    report(PhaseProgress::Started);
    let cpu = CpuClock::start();
    let context = PhaseContext::new(ask, phase, sent, control, Instant::now());
    let each = (streams.len() / phase.load.directions().len().max(1)).max(1);
    let mut runs = Vec::new();
    for (direction, streams) in phase.load.directions().iter().zip(streams.chunks_mut(each)) {
        let is_sent = *direction == sent;
        let watched = streams.iter().map(|stream| stream.watched(is_sent)).collect::<io::Result<Vec<_>>>();
        let watched = watched.unwrap_or_else(|error| {
            note::<S>(&context, &error, context.until());
            Vec::new()
        });
        let counters = streams.iter().map(|_| Counter::default()).collect();
        let (ended, is_aborted) = (AtomicUsize::new(0), AtomicBool::new(false));
        let bytes_left = ask.direction_bytes.map(AtomicU64::new);
        runs.push(DirectionRun { direction: *direction, is_sent, counters, watched, ended, is_aborted, bytes_left });
    }
    tracing::debug!(load = ?phase.load, streams = streams.len(), "streams started");
    let reports = if context.has_failed() {
        runs.iter().map(|_| Vec::new()).collect()
    } else if runs.is_empty() {
        // An idle phase has no streams: waits for its end.
        control.wait_until(context.until(), || false);
        Vec::new()
    } else {
        std::thread::scope(|scope| {
            let streams = runs.iter().zip(streams.chunks_mut(each));
            let handles = streams.map(|(run, streams)| spawn(scope, &context, run, streams)).collect::<Vec<_>>();
            let detail = ask.phase_detail.then(|| PhaseDetail::new(PhaseDetail::MAX_BYTES));
            let mut threads = Threads::<S> { runs: &runs, control, begin: context.begin, is_silent: false, detail };
            watch(&context, &mut threads, report);
            for (direction, sample) in threads.detail.into_iter().flat_map(PhaseDetail::samples) {
                report(PhaseProgress::Detail(direction, sample));
            }
            let join = |handle: Option<ScopedJoinHandle<'_, _>>| handle.and_then(|handle| handle.join().ok());
            handles.into_iter().map(|run| run.into_iter().map(join).collect()).collect::<Vec<Vec<_>>>()
        })
    };
    let host = cpu.host();
    let cut_short = context.why_cut_short(Instant::now());
    tracing::debug!(load = ?phase.load, cut_short, "streams ended");
    let mut tallies = runs.iter().zip(reports).map(|(run, reports)| tally_of::<S>(&context, run, reports, host));
    // `runs` is in the order of the load's directions.
    tally(phase.load, cut_short.as_deref(), |_| tallies.next().unwrap_or_default())
}

fn note<S: PhaseStream>(context: &PhaseContext<'_>, failure: &io::Error, until: Instant) {
    let now = Instant::now();
    context.note(S::describe(failure, now.saturating_duration_since(context.begin)), now, until);
}

fn spawn<'scope, S: PhaseStream>(
    scope: &'scope Scope<'scope, '_>,
    context: &'scope PhaseContext<'_>,
    run: &'scope DirectionRun<S::Watched>,
    streams: &'scope mut [S],
) -> Vec<Option<ScopedJoinHandle<'scope, StreamReport<S::Own>>>> {
    let [sender, receiver] = S::THREADS;
    let name = if run.is_sent { sender } else { receiver };
    let spawn_one = |(stream, (counter, watched)): (&'scope mut S, (&'scope Counter, &'scope S::Watched))| {
        let (is_aborted, bytes_left) = (&run.is_aborted, run.bytes_left.as_ref());
        let stream_run = StreamRun { context, direction: run.direction, counter, watched, is_aborted, bytes_left };
        let body = move || run_stream(stream, run, &stream_run);
        let spawned = thread_limit::spawn_scoped(scope, name, body);
        if let Err(error) = &spawned {
            context.control.note_thread_error(error);
            context.note(error.to_string(), Instant::now(), context.until());
            run.ended.fetch_add(1, Ordering::SeqCst);
        }
        spawned.ok()
    };
    streams.iter_mut().zip(run.counters.iter().zip(&run.watched)).map(spawn_one).collect()
}

/// The body of a stream's thread.
fn run_stream<S: PhaseStream>(
    stream: &mut S,
    run: &DirectionRun<S::Watched>,
    stream_run: &StreamRun<'_, S::Watched>,
) -> StreamReport<S::Own> {
    /// Counts the thread as ended, even if it panics, because the watcher waits for it.
    struct Done<'a>(&'a AtomicUsize, &'a PhaseContext<'a>);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                // Records the panic even after the end of the phase, because the counts of this stream are lost.
                let now = Instant::now();
                self.1.note("the thread of a stream panicked".to_owned(), now, now + Duration::from_secs(1));
            }
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.control.wake();
        }
    }
    let context = stream_run.context;
    let _done = Done(&run.ended, context);
    let began = Instant::now();
    let mut report =
        StreamReport { last: None, until: context.until(), own: S::Own::default(), used: ThreadUse::default() };
    let result =
        if run.is_sent { stream.send(stream_run, &mut report) } else { stream.receive(stream_run, &mut report) };
    if let Err(failure) = &result {
        tracing::debug!(direction = %run.direction, %failure, "a stream ended");
        note::<S>(context, failure, report.until);
    }
    report.used = ThreadUse::since(began);
    report
}

/// The threads of a phase, as the watcher sees them.
struct Threads<'a, S: PhaseStream> {
    runs: &'a [DirectionRun<S::Watched>],
    control: &'a SessionControl,
    begin: Instant,
    is_silent: bool,
    /// The samples of what the kernel recorded about the streams, if the test requests such samples.
    detail: Option<PhaseDetail>,
}

impl<S: PhaseStream> Threads<'_, S> {
    /// Adds a sample of what the kernel has recorded about each stream to `detail`.
    fn sample_streams(&mut self) {
        let Some(detail) = &mut self.detail else { return };
        let at_ms = u32::try_from(self.begin.elapsed().as_millis()).unwrap_or(u32::MAX);
        let samples = self.runs.iter().flat_map(|run| {
            let streams = (0..).zip(&run.watched);
            streams.filter_map(move |(stream, watched)| {
                Some((run.direction, TcpSample { at_ms, stream, ..S::tcp_sample(watched)? }))
            })
        });
        detail.add(samples.collect());
    }

    fn abort_where(&self, is_meant: impl Fn(&DirectionRun<S::Watched>) -> bool) {
        for run in self.runs.iter().filter(|run| is_meant(run)) {
            run.is_aborted.store(true, Ordering::Relaxed);
            run.watched.iter().for_each(S::abort);
        }
    }
}

impl<S: PhaseStream> Moving for Threads<'_, S> {
    fn is_done(&self) -> bool {
        self.runs.iter().all(DirectionRun::has_ended)
    }

    fn look(&mut self) -> [Option<Look>; 2] {
        let mut looks = [None; 2];
        for run in self.runs {
            let (mut total, mut is_heard) = (0, false);
            for (watched, counter) in run.watched.iter().zip(&run.counters) {
                let moved = counter.read();
                if run.is_sent {
                    is_heard |= S::attend(watched, moved);
                    total += S::acknowledged(watched, moved);
                } else {
                    total += moved;
                }
            }
            let is_whole = run.ended.load(Ordering::SeqCst) == 0;
            looks[run.direction as usize] = Some(Look { total, is_whole, is_heard });
        }
        self.sample_streams();
        looks
    }

    fn pause(&mut self, is_silent: bool) {
        if is_silent && !self.is_silent {
            tracing::debug!("sending pauses: the other end is silent");
        }
        let sent = self.runs.iter().filter(|run| run.is_sent);
        sent.flat_map(|run| &run.watched).for_each(|watched| S::pause(watched, is_silent));
        if self.is_silent && !is_silent {
            self.control.wake();
        }
        self.is_silent = is_silent;
    }

    fn end_overdue(&mut self, late: Duration) {
        let sender_timeout = DRAIN_TIMEOUT + CONFIRMATION_TIMEOUT + S::LATEST_BEGIN;
        self.abort_where(|run| !run.has_ended() && (!run.is_sent || late >= sender_timeout));
    }

    fn abort(&mut self) {
        // Ends both directions, because a phase always ends in both.
        if !self.is_done() {
            self.abort_where(|_| true);
        }
    }
}

fn tally_of<S: PhaseStream>(
    context: &PhaseContext<'_>,
    run: &DirectionRun<S::Watched>,
    reports: Vec<Option<StreamReport<S::Own>>>,
    host: CpuUse,
) -> DirectionTally {
    let last = reports.iter().flatten().filter_map(|report| report.last).max();
    let elapsed_us = last.map_or(0, |last| micros(last.saturating_duration_since(context.begin)));
    let cpu = ThreadUse::of_all(reports.iter().flatten().map(|report| report.used), host);
    let moved = run.counters.iter().filter(|counter| counter.read() > 0).count();
    let mut tally = DirectionTally {
        count: Count { bytes: run.total(), elapsed_us },
        cpu,
        streams: u16::try_from(moved).unwrap_or(u16::MAX),
        ..DirectionTally::default()
    };
    let streams = reports.into_iter().zip(&run.watched);
    let streams =
        streams.map(|(report, watched)| Ended { watched, own: report.map(|report| report.own).unwrap_or_default() });
    S::tally(&streams.collect::<Vec<_>>(), run.is_sent, &mut tally);
    tally
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    use paramedic_link::test_spec::{DataMode, EngineId, Load};

    use super::*;
    use crate::phase::SESSION_OVER;

    /// A stream that moves 7 bytes and then fails, blocks or panics.
    enum FakeStream {
        Fails,
        /// Fails after the end of the phase, but before the end of the stream's own time.
        FailsLate,
        /// Blocks until it is aborted.
        Blocks(Arc<AbortSignal>),
        Panics,
    }

    /// The signal with which the watcher aborts a [`FakeStream`] that blocks.
    struct AbortSignal(Mutex<Sender<()>>, Mutex<Receiver<()>>);

    impl FakeStream {
        fn blocks() -> Self {
            let (sender, receiver) = channel();
            Self::Blocks(Arc::new(AbortSignal(Mutex::new(sender), Mutex::new(receiver))))
        }

        fn act(
            &self,
            run: &StreamRun<'_, Option<Arc<AbortSignal>>>,
            report: &mut StreamReport<bool>,
        ) -> io::Result<()> {
            run.counter.set(7);
            report.last = Some(Instant::now());
            report.own = true;
            match self {
                Self::Fails => {}
                Self::FailsLate => report.until = run.context.until() + Duration::from_secs(3600),
                Self::Blocks(signal) => signal.1.lock().unwrap().recv().unwrap(),
                Self::Panics => panic!("a panic on purpose"),
            }
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    impl PhaseStream for FakeStream {
        type Watched = Option<Arc<AbortSignal>>;
        type Own = bool;
        const THREADS: [&'static str; 2] = ["fake-send", "fake-receive"];
        const LATEST_BEGIN: Duration = Duration::ZERO;

        fn watched(&self, _is_sent: bool) -> io::Result<Self::Watched> {
            Ok(if let Self::Blocks(signal) = self { Some(Arc::clone(signal)) } else { None })
        }

        fn send(&mut self, run: &StreamRun<'_, Self::Watched>, report: &mut StreamReport<bool>) -> io::Result<()> {
            self.act(run, report)
        }

        fn receive(&mut self, run: &StreamRun<'_, Self::Watched>, report: &mut StreamReport<bool>) -> io::Result<()> {
            self.act(run, report)
        }

        fn attend(_watched: &Self::Watched, _total: u64) -> bool {
            false
        }

        fn pause(_watched: &Self::Watched, _is_silent: bool) {}

        fn abort(watched: &Self::Watched) {
            if let Some(signal) = watched {
                signal.0.lock().unwrap().send(()).unwrap();
            }
        }

        fn describe(_failure: &io::Error, _after: Duration) -> String {
            "the fake stream failed".to_owned()
        }

        fn tally(streams: &[Ended<'_, Self>], _is_sent: bool, tally: &mut DirectionTally) {
            // Stores the number of streams that have a report.
            tally.mss = Some(streams.iter().filter(|stream| stream.own).count() as u32);
        }
    }

    fn play(load: Load, duration_ms: u32, streams: Vec<FakeStream>, control: &SessionControl) -> PhaseTally {
        let spec = TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, vec![], 1);
        let phase = PhaseSpec { load, duration_ms };
        run(&spec, &phase, Direction::Upload, control, streams, &|_| ())
    }

    const HOUR_MS: u32 = 3_600_000;

    #[test]
    fn a_stream_that_fails_ends_all_others_of_either_direction() {
        for streams in [[FakeStream::Fails, FakeStream::blocks()], [FakeStream::blocks(), FakeStream::Fails]] {
            let tally = play(Load::Bidir, HOUR_MS, streams.into(), &SessionControl::unmetered());
            assert_eq!(tally.cut_short.as_ref().unwrap().as_str(), "the fake stream failed");
            for counted in [tally.download.unwrap(), tally.upload.unwrap()] {
                assert_eq!(
                    (counted.count.bytes, counted.streams, counted.mss),
                    (7, 1, Some(1)),
                    "received bytes are kept"
                );
            }
        }
    }

    #[test]
    fn a_cancelled_session_ends_blocked_streams() {
        let control = SessionControl::unmetered();
        control.cancel();
        let tally = play(Load::Upload, HOUR_MS, vec![FakeStream::blocks(), FakeStream::blocks()], &control);
        assert_eq!(tally.cut_short.unwrap().as_str(), SESSION_OVER);
        assert_eq!(tally.upload.unwrap().streams, 2);
    }

    #[test]
    fn a_failure_after_the_streams_own_time_is_ignored() {
        let tally = |stream| play(Load::Download, 0, vec![stream], &SessionControl::unmetered()).cut_short;
        assert_eq!(tally(FakeStream::Fails), None);
        assert_eq!(tally(FakeStream::FailsLate).unwrap().as_str(), "the fake stream failed");
    }

    #[test]
    fn a_receiver_that_does_not_end_is_ended_when_it_has_drained() {
        let began = Instant::now();
        let tally = play(Load::Download, 0, vec![FakeStream::blocks()], &SessionControl::unmetered());
        assert!(began.elapsed() >= DRAIN_TIMEOUT);
        assert_eq!(tally.cut_short, None);
    }

    #[test]
    fn a_thread_that_panics_cuts_the_phase_short() {
        let tally =
            play(Load::Upload, HOUR_MS, vec![FakeStream::blocks(), FakeStream::Panics], &SessionControl::unmetered());
        assert!(tally.cut_short.unwrap().as_str().contains("panicked"));
        let counted = tally.upload.unwrap();
        assert_eq!((counted.count.bytes, counted.mss), (14, Some(1)));
    }
}
