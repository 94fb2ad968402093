//! The reflector's end of the engine: the session's listener, the confined iperf3 server behind it, and the kernel's
//! counts of its streams.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paramedic_engines::data_listener::DataListener;
use paramedic_engines::engine::{EngineServer, PhaseObserver, PhaseProgress, ServerSetup};
use paramedic_engines::host_facts::CpuClock;
use paramedic_engines::metered_stream::MeteredStream;
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
use super::process::folder_in;
use super::program::Program;
use super::supervisor::{ChildSetup, ChildSupervisor};
use super::{COUNTED_BY_SOCKET, RUN_GRACE};

/// How long an iperf3 server may take to begin to listen. During this time the appliance gets no answer; it gives up
/// after 10 s.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) struct Iperf3Server {
    spec: TestSpec,
    control: Arc<SessionControl>,
    handoff: Arc<LaneHandoff>,
    program: Program,
    login: LoginTerms,
    // Dropped in this order: the child exits before its port closes.
    _supervisor: ChildSupervisor,
    listener: DataListener,
}

impl Iperf3Server {
    pub(super) fn open(setup: ServerSetup) -> io::Result<Self> {
        let ServerSetup { spec, keys, claim, peer, control, scratch } = setup;
        let claim = claim.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the engine iperf3 needs a data port of the session (direct mode)",
            )
        })?;
        // iperf3 paces its own streams.
        let options = SocketOptions { pace_bps: None, ..SocketOptions::of(&spec) };
        if let Some(name) = &spec.congestion_control {
            socket::check_congestion_control(name)?;
        }
        let program = Program::find().map_err(io::Error::other)?;
        let handoff = Arc::new(LaneHandoff::new(Arc::clone(&control), streams_of_test(&spec, 0))?);
        let authenticator = CookieAuthenticator { handoff: Arc::clone(&handoff) };
        let sink = {
            let (handoff, control) = (Arc::clone(&handoff), Arc::clone(&control));
            move |kind, socket| {
                if let Err(error) = handoff.add(kind, socket) {
                    tracing::debug!(%error, "cannot hand a connection to iperf3");
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
            let why = format!(
                "the reflector's {program} and the appliance's iperf3 have no login padding in common: install iperf3 \
                 3.17 or newer at the reflector"
            );
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
            handoff
                .await_listening(LISTEN_TIMEOUT)
                .map_err(|why| io::Error::other(format!("iperf3 cannot serve: {why}")))?;
        }
        Ok(Self { spec, control, handoff, program, login: terms, _supervisor: supervisor, listener })
    }

    #[cfg(test)]
    pub(super) fn local_addr(&self) -> std::net::SocketAddr {
        self.listener.local_addr()
    }

    fn run_test(&self, test: usize, phase: &PhaseSpec, report: PhaseObserver<'_>) -> PhaseTally {
        if self.handoff.test() != test {
            let why = "the phases of an iperf3 session must run in order, and each only once";
            return nothing_moved(Some(phase), &self.control, why);
        }
        let is_decided = || {
            self.handoff.open_streams().0.is_some() || self.handoff.exit().is_some() || self.handoff.error().is_some()
        };
        self.control.wait_until(Instant::now() + CONNECT_TIMEOUT, is_decided);
        let Some(begin) = self.handoff.open_streams().0 else {
            return nothing_moved(Some(phase), &self.control, &self.why_not_started());
        };
        report(PhaseProgress::Started);
        let context = PhaseContext::new(&self.spec, phase, Direction::Download, &self.control, begin);
        let mut run =
            LaneRun { lane: self, clock: CpuClock::start(), counts: [DirectionBytes::default(); 2], is_late: false };
        phase::watch(&context, &mut run, report);
        run.count();
        self.sum_up(&context, &run)
    }

    /// Kills the child unless it has exited, and waits until it is reaped.
    fn end_child(&self) {
        if self.handoff.exit().is_none() {
            self.handoff.signal(Signal::KILL);
            self.handoff.await_reaped(RUN_GRACE);
        }
    }

    fn why_not_started(&self) -> String {
        let (_, open) = self.handoff.open_streams();
        let refused = self.listener.refused();
        tracing::debug!(open, refused, "not all streams of an iperf3 test were opened");
        if let Some(error) = self.handoff.error() {
            return format!("the reflector's iperf3 reports: {error}");
        }
        match self.handoff.exit() {
            Some(ChildExit { error: Some(error), .. }) => format!("the reflector's iperf3 reports: {error}"),
            Some(_) => "the reflector's iperf3 ended before the test began".to_owned(),
            None => format!("iperf3 opened only {open} streams within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }

    fn sum_up(&self, context: &PhaseContext<'_>, run: &LaneRun<'_>) -> PhaseTally {
        let exit = self.handoff.exit().unwrap_or_default();
        let (user_s, system_s) = exit.cpu_s.unwrap_or_default();
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
            // Only the sender's kernel knows the congestion control and the facts of the sent segments.
            let sender = || ours().filter(|_| sends);
            DirectionTally {
                count: Count {
                    bytes: counted.bytes,
                    elapsed_us: micros(counted.last.unwrap_or(context.begin) - context.begin),
                },
                cpu,
                congestion_control: sender().find_map(|stream| stream.congestion_control.as_deref()).map(Into::into),
                data_path: Some("plain".into()),
                mss: sender().find_map(|stream| stream.segments.mss),
                path_mtu: sender().filter_map(|stream| stream.segments.path_mtu).min(),
                retransmits: sender()
                    .filter_map(|stream| stream.segments.retransmits)
                    .map(u64::from)
                    .reduce(|a, b| a + b),
                streams: u16::try_from(ours().count()).unwrap_or(u16::MAX),
                datagrams: None,
                reduced_window_bytes: None,
                counted_by: Some(COUNTED_BY_SOCKET.into()),
                tcp_times: None,
            }
        };
        let of_child = || {
            if self.control.is_cancelled() {
                return None;
            }
            if run.is_late {
                return Some("the reflector's iperf3 did not exit in time".to_owned());
            }
            if let Some(error) = &exit.error {
                return Some(format!("the reflector's iperf3 reports: {error}"));
            }
            let ended = exit.at.and_then(|ended| context.ended_early(ended));
            ended.map(|_| "the appliance's iperf3 stopped early".to_owned())
        };
        let cut_short = context.why_cut_short(Instant::now()).or_else(of_child);
        phase::tally(context.load, cut_short.as_deref(), of)
    }
}

impl EngineServer for Iperf3Server {
    fn terms(&self) -> Option<EngineTerms> {
        Some(self.login.to_engine())
    }

    fn admit(&self, _preamble: Preamble, _stream: MeteredStream) {
        // This engine has no tunneled mode: dropping the connection refuses it.
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

/// The phases with load, each with its index in the session. Each of them is one iperf3 test.
fn loaded(spec: &TestSpec) -> impl Iterator<Item = (usize, &PhaseSpec)> {
    spec.phases.iter().enumerate().filter(|(_, phase)| phase.load != Load::Idle)
}

/// The number of streams of a test, both directions together; 0 if the session has no such test.
fn streams_of_test(spec: &TestSpec, test: usize) -> usize {
    loaded(spec).nth(test).map_or(0, |(_, phase)| usize::from(streams_of(spec, phase)))
}

/// The running test of a session, as [`phase::watch`] observes it.
struct LaneRun<'a> {
    lane: &'a Iperf3Server,
    clock: CpuClock,
    /// The counts of the download and of the upload.
    counts: [DirectionBytes; 2],
    /// Whether the child was still running when it should have exited.
    is_late: bool,
}

/// The kernel's count of one direction.
#[derive(Clone, Copy, Default)]
struct DirectionBytes {
    bytes: u64,
    /// When the count last grew.
    last: Option<Instant>,
    /// Whether the count grew at the last reading of the counters.
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
        self.is_late || self.lane.handoff.exit().is_some()
    }

    fn look(&mut self) -> [Option<Look>; 2] {
        self.count();
        // `is_heard` is false, because the hand-off itself records a sign of life when it charges moved bytes.
        self.counts.map(|counted| Some(Look { total: counted.bytes, is_whole: true, is_heard: false }))
    }

    /// Does nothing: iperf3 has no way to pause.
    fn pause(&mut self, _is_silent: bool) {}

    fn end_overdue(&mut self, late: Duration) {
        // The exchange of results may last until the grace period is over, but no payload may move any more.
        self.is_late |= late >= RUN_GRACE || self.counts.iter().any(|counted| counted.is_fresh);
    }

    fn abort(&mut self) {
        self.lane.end_child();
    }
}
