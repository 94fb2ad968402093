//! The reflector's end of `iperf3`: the port and its listener, the confined server behind it, and what the kernel counts of
//! its streams.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paramedic_engines::data_listener::DataListener;
use paramedic_engines::data_stream::DataStream;
use paramedic_engines::engine::{EngineServer, PhaseObserver, PhaseProgress, ServerSetup};
use paramedic_engines::host_facts::CpuClock;
use paramedic_engines::phase::{
    self, CONNECT_TIMEOUT, Look, Moving, PhaseContext, micros, nothing_moved, run_idle, streams_of,
};
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::socket::{self, SocketOptions};
use paramedic_link::admission::Preamble;
use paramedic_link::engine_terms::EngineTerms;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use rustix::process::Signal;

use super::authenticator::CookieAuthenticator;
use super::handoff::{ChildExit, KernelCounts, LaneHandoff};
use super::login::{LoginPadding, LoginPair, LoginTerms, SessionLogin};
use super::program::Program;
use super::supervisor::{ChildSetup, ChildSupervisor};
use super::{COUNTED_BY_SOCKET, GRACE, folder_in};

/// How long a server may take until it listens; the appliance hears nothing meanwhile, and gives up after ten seconds.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) struct Iperf3Server {
    spec: TestSpec,
    control: Arc<SessionControl>,
    handoff: Arc<LaneHandoff>,
    program: Program,
    login: LoginTerms,
    // Dropped in this order: the child goes before its port does.
    _supervisor: ChildSupervisor,
    listener: DataListener,
}

impl Iperf3Server {
    pub(super) fn open(setup: ServerSetup) -> io::Result<Self> {
        let ServerSetup { spec, keys, claim, peer, control, scratch } = setup;
        let claim =
            claim.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "iperf3 needs a port of its own"))?;
        // iperf3 paces itself.
        let options = SocketOptions { pace_bps: None, ..SocketOptions::of(&spec) };
        if let Some(name) = &spec.congestion_control {
            socket::check_congestion_control(name)?;
        }
        let program = Program::find().map_err(io::Error::other)?;
        let handoff = Arc::new(LaneHandoff::new(Arc::clone(&control), streams_of_test(&spec, 0))?);
        let authenticator = CookieAuthenticator { handoff: Arc::clone(&handoff) };
        let sink = {
            let (handoff, control) = (Arc::clone(&handoff), Arc::clone(&control));
            move |place, socket| {
                if let Err(error) = handoff.seat(place, socket) {
                    tracing::debug!(%error, "a connection for iperf3 can't be seated");
                    control.wake();
                }
            }
        };
        // The port is claimed first: another process may hold it.
        let listener = DataListener::open(
            claim,
            &options,
            authenticator,
            peer,
            spec.streams,
            Arc::clone(&control),
            Box::new(sink),
        )?;
        let pair = LoginPair::of_process().map_err(io::Error::other)?;
        let padding =
            LoginPadding::supported(&spec.engine_support).find(|padding| program.server_paddings().contains(padding));
        let padding = padding.ok_or_else(|| {
            let why = format!("{program} here and the iperf3 there know no padding of logins in common");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
        let terms = LoginTerms { key: pair.public.clone(), padding };
        let folder = folder_in(&scratch)?;
        let tests = loaded(&spec).count();
        let streams = (0..tests).map(|test| streams_of_test(&spec, test)).max().unwrap_or(0);
        let port = listener.local_addr().port();
        let login = SessionLogin::of(&keys);
        let order = ChildSetup {
            program: program.clone(),
            port,
            local: claim.ip(),
            login,
            pair,
            padding,
            folder,
            streams,
            tests,
        };
        let supervisor = ChildSupervisor::start(order, Arc::clone(&handoff), &control)?;
        if tests > 0 {
            handoff.await_listening(LISTEN_TIMEOUT).map_err(|why| io::Error::other(format!("iperf3: {why}")))?;
        }
        Ok(Self { spec, control, handoff, program, login: terms, _supervisor: supervisor, listener })
    }

    /// Where the lane's listener listens.
    #[cfg(test)]
    pub(super) fn local_addr(&self) -> std::net::SocketAddr {
        self.listener.local_addr()
    }

    fn run_test(&self, test: usize, phase: &PhaseSpec, report: PhaseObserver<'_>) -> PhaseTally {
        if self.handoff.test() != test {
            return nothing_moved(Some(phase), &self.control, "iperf3's phases run in order, each once");
        }
        let is_decided = || {
            self.handoff.standing().0.is_some() || self.handoff.ending().is_some() || self.handoff.complaint().is_some()
        };
        self.control.wait_until(Instant::now() + CONNECT_TIMEOUT, is_decided);
        let Some(begin) = self.handoff.standing().0 else {
            return nothing_moved(Some(phase), &self.control, &self.why_not_standing());
        };
        report(PhaseProgress::Started);
        let context = PhaseContext::new(&self.spec, phase, Direction::Download, &self.control, begin);
        let mut run =
            LaneRun { lane: self, clock: CpuClock::start(), counts: [DirectionBytes::default(); 2], is_late: false };
        phase::watch(&context, &mut run, report);
        run.count();
        self.sum_up(&context, &run)
    }

    /// Ends a child that has not ended by itself, and waits until it is gone.
    fn end_child(&self) {
        if self.handoff.ending().is_none() {
            self.handoff.signal(Signal::KILL);
            // Killed, it is gone in a moment. A cut control ends the wait at once: then all of it is being dropped.
            self.control.wait_until(Instant::now() + GRACE, || self.handoff.ending().is_some());
        }
    }

    fn why_not_standing(&self) -> String {
        let (_, standing) = self.handoff.standing();
        let refused = self.listener.refused();
        tracing::debug!(standing, refused, "the streams of an iperf3 test did not all come");
        if let Some(complaint) = self.handoff.complaint() {
            return format!("the reflector's iperf3 says: {complaint}");
        }
        match self.handoff.ending() {
            Some(ChildExit { complaint: Some(complaint), .. }) => format!("the reflector's iperf3 says: {complaint}"),
            Some(_) => "the reflector's iperf3 ended before the test began".to_owned(),
            None => format!("only {standing} of iperf3's streams came within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }

    fn sum_up(&self, context: &PhaseContext<'_>, run: &LaneRun<'_>) -> PhaseTally {
        let ending = self.handoff.ending().unwrap_or_default();
        let (user_s, system_s) = ending.cpu_s.unwrap_or_default();
        let lived = context.begin.elapsed().as_secs_f64().max(f64::EPSILON);
        let cpu = CpuUse {
            user_s,
            system_s,
            busiest_thread: self.program.share_of_a_thread(user_s + system_s, lived, self.spec.streams),
            ..run.clock.host()
        };
        let seen = self.handoff.look();
        let of = |direction: Direction| {
            let counted = run.counts[direction as usize];
            let sends = direction == context.sent;
            let moved = |stream: &&KernelCounts| if sends { stream.sent > 0 } else { stream.received > 0 };
            let ours = || seen.iter().filter(moved);
            // What only the sender knows.
            let sender = || ours().filter(|_| sends);
            DirectionTally {
                count: Count {
                    bytes: counted.bytes,
                    elapsed_us: micros(counted.last.unwrap_or(context.begin) - context.begin),
                },
                cpu,
                congestion_control: sender().find_map(|stream| stream.congestion_control.as_deref()).map(Into::into),
                data_path: Some("plain".into()),
                mss: sender().find_map(|stream| stream.mss),
                retransmits: sender().filter_map(|stream| stream.retransmits).map(u64::from).reduce(|a, b| a + b),
                streams: u16::try_from(ours().count()).unwrap_or(u16::MAX),
                datagrams: None,
                counted_by: Some(COUNTED_BY_SOCKET.into()),
            }
        };
        let of_child = || {
            if self.control.is_cancelled() {
                return None;
            }
            if run.is_late {
                return Some("the reflector's iperf3 did not end in time".to_owned());
            }
            if let Some(complaint) = &ending.complaint {
                return Some(format!("the reflector's iperf3 says: {complaint}"));
            }
            let ended = ending.at.and_then(|ended| context.ended_early(ended));
            ended.map(|_| "the iperf3 of the other end stopped early".to_owned())
        };
        let cut_short = context.why_cut_short(Instant::now()).or_else(of_child);
        phase::tally(context.load, cut_short.as_deref(), of)
    }
}

impl EngineServer for Iperf3Server {
    fn terms(&self) -> Option<EngineTerms> {
        Some(self.login.to_engine())
    }

    fn admit(&self, _preamble: Preamble, _stream: DataStream) {
        // There is no tunnel to come through: dropping the connection refuses it.
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let spec = self.spec.phases.get(usize::from(phase));
        let Some(spec) = spec.filter(|spec| spec.load != Load::Idle) else {
            return run_idle(spec, &self.control, report);
        };
        let test = loaded(&self.spec).filter(|(number, _)| *number < usize::from(phase)).count();
        let tally = self.run_test(test, spec, report);
        if self.handoff.test() == test {
            self.end_child();
            self.handoff.next_test(streams_of_test(&self.spec, test + 1));
        }
        tally
    }
}

/// The phases that have a test, with their numbers.
fn loaded(spec: &TestSpec) -> impl Iterator<Item = (usize, &PhaseSpec)> {
    spec.phases.iter().enumerate().filter(|(_, phase)| phase.load != Load::Idle)
}

/// How many streams the test has, both directions together; 0 where there is no such test.
fn streams_of_test(spec: &TestSpec, test: usize) -> usize {
    loaded(spec).nth(test).map_or(0, |(_, phase)| usize::from(streams_of(spec, phase)))
}

/// A test's child, as the watcher of its phase sees it.
struct LaneRun<'a> {
    lane: &'a Iperf3Server,
    clock: CpuClock,
    /// Download, upload.
    counts: [DirectionBytes; 2],
    /// Whether it was still busy when it should have ended.
    is_late: bool,
}

/// What the kernel counted of one direction.
#[derive(Clone, Copy, Default)]
struct DirectionBytes {
    bytes: u64,
    /// When more was last seen.
    last: Option<Instant>,
    /// Whether that was at the last look.
    is_fresh: bool,
}

impl LaneRun<'_> {
    fn count(&mut self) {
        let seen = self.lane.handoff.look();
        let now = Instant::now();
        let sent = seen.iter().fold(0, |sum: u64, stream| sum.saturating_add(stream.sent));
        let received = seen.iter().fold(0, |sum: u64, stream| sum.saturating_add(stream.received));
        for (total, counted) in [sent, received].into_iter().zip(&mut self.counts) {
            counted.is_fresh = total > counted.bytes;
            if counted.is_fresh {
                (counted.bytes, counted.last) = (total, Some(now));
            }
        }
    }
}

impl Moving for LaneRun<'_> {
    fn is_done(&self) -> bool {
        self.is_late || self.lane.handoff.ending().is_some()
    }

    fn look(&mut self) -> [Option<Look>; 2] {
        self.count();
        // The handoff hears the other end when it charges what has moved.
        self.counts.map(|counted| Some(Look { total: counted.bytes, is_whole: true, is_heard: false }))
    }

    /// iperf3 sends as its TCP lets it.
    fn pause(&mut self, _is_silent: bool) {}

    fn end_overdue(&mut self, late: Duration) {
        // Results may take their time; payload was to end.
        self.is_late |= late >= GRACE || self.counts.iter().any(|counted| counted.is_fresh);
    }

    fn abort(&mut self) {
        self.lane.end_child();
    }
}
