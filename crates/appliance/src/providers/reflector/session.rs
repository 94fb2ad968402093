//! The appliance's end of a granted session: runs its phases one after the other on threads, and serves the link
//! meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use paramedic_engines::data_stream::DataStream;
use paramedic_engines::dialer::{Dialer, SocketOptions};
use paramedic_engines::echo::pacing::{FIRST_INTERVAL, ProbePacing};
use paramedic_engines::echo::{Prober, ProberSetup, Probes};
use paramedic_engines::engine::{ClientSetup, EngineClient, PhaseProgress, Unavailable};
use paramedic_engines::interface::InterfaceClock;
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::thread_limit;
use paramedic_link::SessionId;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::message::{END_AFTER_SILENCE, Grant, HEARTBEAT, ToAppliance, ToReflector};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_report::document::{Event, FallbackReason, LatencyReading, ObservedEnd, PhaseBegun};
use paramedic_report::fold::{CountedReading, Impossible, PhaseRecord, ProbeSchedule, ResultBuilder};
use paramedic_report::stats::{self, Statement};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::early_end::StabilityLooks;
use super::fallback;
use crate::error::ApplianceError;
use crate::payload_transport::PayloadTransport;
use crate::providers::run_record::{RunRecord, own_facts, probe_bytes, reading as as_folded};
use crate::providers::{Observer, TestJob};
use crate::reflector_client::ReflectorClient;

/// How long the connections of a phase may take to open, in addition to [`CONNECT_TIMEOUT_PER_STREAM`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The time for each stream that is added to [`CONNECT_TIMEOUT`].
const CONNECT_TIMEOUT_PER_STREAM: Duration = Duration::from_millis(500);
/// How long both ends may take after the end of a phase to drain their queues and report their counts.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the engine may take to report its counts after a failure. An external program needs less time to exit.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(4);
/// How long to wait after a failure for a message of the reflector that explains it.
const LINK_ERROR_GRACE: Duration = Duration::from_secs(1);
/// How long the appliance may take to end a failed session.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the appliance may take to end a failed session if the counts of the reflector may show the cause.
const CLOSE_TIMEOUT_WITH_CAUSE: Duration = Duration::from_secs(3);
/// How long the link may be silent once the data connections of this end have failed. They use the same path as the
/// link.
const LINK_SILENCE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the latency is reported as progress. Each report covers the time since the report before it.
const LATENCY_INTERVAL: Duration = Duration::from_millis(500);

/// Why direct data connections to the reflector cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) reason: FallbackReason,
    /// The address and port that no stream could reach.
    pub(super) address: SocketAddr,
}

/// Why a session ended early.
pub(super) enum SessionFailure {
    /// Direct mode is blocked. The test may continue through the tunnel.
    Blocked(Blocked),
    /// The test failed.
    Failed(ApplianceError),
}

impl From<ApplianceError> for SessionFailure {
    fn from(error: ApplianceError) -> Self {
        Self::Failed(error)
    }
}

/// Cancels the session when this value is dropped, because no thread may continue to move bytes after that.
struct CancelOnDrop(Arc<SessionControl>);

impl std::ops::Deref for CancelOnDrop {
    type Target = Arc<SessionControl>;

    fn deref(&self) -> &Arc<SessionControl> {
        &self.0
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The appliance's end of a granted session.
pub(super) struct ReflectorSession {
    client: ReflectorClient,
    spec: TestSpec,
    control: CancelOnDrop,
    /// The address to which data connections go.
    data: SocketAddr,
    transport: PayloadTransport,
    /// Whether blocked data connections end the session with [`SessionFailure::Blocked`]. This is false once the
    /// streams of a phase with load have arrived.
    falls_back: bool,
    had_streams: bool,
    client_end: Arc<dyn EngineClient>,
    prober: Option<Prober>,
    /// The current interval between two latency probes.
    probe_interval: Duration,
    /// Chooses the probe interval of the running phase; `None` if the interval is fixed.
    pacing: Option<ProbePacing>,
    adapts_probes: bool,
    /// The start-up time that the request excludes from the measurement.
    omit: Option<Duration>,
    /// The checks for stability of the running phase; `None` if the phase runs for its full time.
    looks: Option<StabilityLooks>,
    beat: Interval,
    received_at: Instant,
    /// When the silence of the link was last checked.
    silence_checked_at: Instant,
    /// Whether the result includes the output of the engine's program.
    keeps_raw: bool,
}

impl ReflectorSession {
    /// Derives the keys of the session, opens the engine's end on this device, and starts the latency probes.
    pub(super) async fn open(
        job: &TestJob,
        client: ReflectorClient,
        spec: TestSpec,
        grant: &Grant,
        falls_back: bool,
        observer: &mut Observer,
    ) -> Result<Self, ApplianceError> {
        let keys = Arc::new(client.session_keys(grant.session)?);
        tracing::debug!(
            session = %grant.session, engine = %spec.engine, streams = spec.streams, data_port = grant.data_port,
            udp = grant.udp, "session granted"
        );
        let control = CancelOnDrop(SessionControl::unmetered());
        let reflector_address = client.address();
        let expect = Expect::ExactKey(client.reflector());
        let config = tls::appliance_config(job.key()?, expect, Alpn::Data).map_err(|error| internal(&error))?;
        let connect_timeout = CONNECT_TIMEOUT;
        let origin = &job.request.route.origin;
        let tunnel =
            Arc::new(Dialer { target: reflector_address, tls: Some(config), origin: origin.clone(), connect_timeout });
        // Only the port is replaced, because the scope of an IPv6 address must be kept.
        let mut data = reflector_address;
        data.set_port(grant.data_port.unwrap_or(reflector_address.port()));
        let dialer = if grant.data_port.is_some() {
            Arc::new(Dialer { target: data, tls: None, origin: origin.clone(), connect_timeout })
        } else {
            Arc::clone(&tunnel)
        };
        let engine =
            paramedic_host::engines::find(spec.engine.as_str()).ok_or_else(|| internal(&"this engine is unknown"))?;
        let client_end = engine
            .client(ClientSetup {
                spec: spec.clone(),
                keys: Arc::clone(&keys),
                dialer,
                control: Arc::clone(&control),
                terms: grant.engine_terms.clone(),
                scratch: job.scratch.clone(),
            })
            .map_err(|error| not_driven(&spec, error))?;
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let adapts_probes = job.request.adapts_probes;
        let asked_interval = Duration::from_micros(spec.probe_interval_us.into());
        let probe_interval = if adapts_probes { FIRST_INTERVAL } else { asked_interval };
        let client_end = client_end.into();
        let received_at = Instant::now();
        let (prober, silence_checked_at, keeps_raw) = (None, received_at, job.request.raw);
        let mut session = Self {
            client,
            spec,
            control,
            data,
            transport: job.request.transport,
            falls_back,
            had_streams: false,
            client_end,
            prober,
            probe_interval,
            pacing: None,
            adapts_probes,
            omit: job.request.omit,
            looks: None,
            beat,
            received_at,
            silence_checked_at,
            keeps_raw,
        };
        if !asked_interval.is_zero() {
            let dscp = session.spec.dscp;
            // `send_at_once`: small packets must not wait for more data.
            let mss_bytes = session.client.segment_limit();
            let options = SocketOptions { send_at_once: true, mss_bytes, dscp, ..SocketOptions::default() };
            let order = ProberSetup {
                target: grant.udp.then_some(data),
                fall_back: fall_back(grant.session, &keys, &session.control, tunnel, options),
                keys,
                interval: probe_interval,
                control: Arc::clone(&session.control),
                // The reflector answers to the local address of the link.
                origin: Origin { address: Some(session.client.local()), ..origin.clone() },
                dscp,
            };
            // The start of the probes may take some time if UDP is blocked. Meanwhile, the link must be served.
            let started = session.during(probe(order), observer).await?;
            session.prober = Some(session.with_reason_of_reflector(started).await?);
        }
        Ok(session)
    }

    /// Whether all streams of at least one phase with load arrived at the reflector.
    pub(super) fn had_streams(&self) -> bool {
        self.had_streams
    }

    /// The name and version of the external program that moves the payload; `None` if the engine itself moves it.
    pub(super) fn program(&self) -> Option<String> {
        self.client_end.program()
    }

    /// Runs all phases of the session in order.
    pub(super) async fn run(
        &mut self,
        observer: &mut Observer,
        result: &mut ResultBuilder,
    ) -> Result<(), SessionFailure> {
        for (number, phase) in self.spec.phases.clone().into_iter().enumerate() {
            let number = u8::try_from(number).map_err(|_| internal(&"too many phases"))?;
            let record = result.begin_phase(phase);
            // An external program may report what it received only when it exits.
            record.shows_sent = self.client_end.program().is_some();
            record.is_searched = self.spec.bitrate_bps == Some(0);
            let end = self.phase(number, phase, observer, record).await;
            end.map_err(|failure| self.or_thread_limit(failure))?;
        }
        Ok(())
    }

    async fn phase(
        &mut self,
        number: u8,
        phase: PhaseSpec,
        observer: &mut Observer,
        record: &mut PhaseRecord,
    ) -> Result<(), SessionFailure> {
        let has_load = !phase.load.directions().is_empty();
        self.connect(number, has_load, observer).await?;
        self.client.send(&ToReflector::Start { phase: number }).await?;
        self.await_started(number, has_load, observer).await?;
        self.had_streams |= has_load;
        self.falls_back &= !has_load;
        tracing::debug!(phase = number, load = ?phase.load, duration_ms = phase.duration_ms, "phase begun");
        (observer.events)(Event::Phase(PhaseBegun { phase: phase.load, duration_ms: phase.duration_ms.into() }));

        record.begun_at = self.prober.as_ref().map(Prober::now);
        self.begin_pacing(phase, record);
        self.looks = (has_load && self.spec.may_stop).then(|| StabilityLooks::new(self.omit));
        let (progress, mut readings) = mpsc::unbounded_channel();
        let (done, mut own) = oneshot::channel::<PhaseTally>();
        let client_end = Arc::clone(&self.client_end);
        let interface = InterfaceClock::start(self.client.local());
        let run = move || {
            // If the receiver is gone, the session is cancelled, and the phase ends by itself.
            let mut tally = client_end.run(number, &|reading| {
                progress.send(reading).ok();
            });
            tally.interface = interface.and_then(|interface| interface.traffic());
            done.send(tally).ok();
        };
        let failed = |error| internal(&error);
        thread_limit::spawn("phase", run).map_err(|error| ApplianceError::of_io(error, failed))?;

        let end = self.watch_phase(number, phase, observer, record, &mut readings, &mut own).await;
        record.ended_at = self.prober.as_ref().map(Prober::now);
        self.pacing = None;
        if end.is_err() && record.own.is_none() {
            // Takes the counts of this end. Cancelling the session ends its threads at once.
            self.control.cancel();
            if let Ok(Ok(tally)) = tokio::time::timeout(COUNTS_TIMEOUT, own).await {
                record.own = Some(tally);
            }
            while let Ok(reading) = readings.try_recv() {
                note(observer, record, reading);
            }
        }
        if self.keeps_raw {
            record.raw = self.client_end.raw(number);
        }
        // The counts of the reflector are checked however the phase ended, because the reflector can also cause the
        // end.
        let end = match (end, record.check_tallies()) {
            (Err(_), Err(claim)) => Err(self.impossible(claim)),
            (end, _) => end,
        };
        if matches!(end, Err(ApplianceError::ImpossibleReport { .. })) {
            record.forget_claims();
        }
        Ok(end?)
    }

    /// Opens the streams of a phase.
    async fn connect(&mut self, number: u8, has_load: bool, observer: &mut Observer) -> Result<(), SessionFailure> {
        let client_end = Arc::clone(&self.client_end);
        let connect = tokio::task::spawn_blocking(move || client_end.connect(number));
        let silence = self.silence_of_all_streams(number, has_load, |streams, phase| streams.opened(phase));
        let limit = self.connect_timeout();
        let connected = tokio::select! {
            connected = tokio::time::timeout(limit, self.during(connect, observer)) => connected,
            () = silence => return Err(self.blocked(FallbackReason::Silent)),
        };
        let connected = match connected {
            Ok(connected) => connected?.map_err(|_| internal(&"a thread panicked"))?,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        };
        let (address, mode, transport) = (self.data, self.spec.data_mode, self.transport);
        let failed = |source| ApplianceError::NoDataConnection { address, mode, transport, source, datagrams: None };
        let connected = connected.map_err(|source| ApplianceError::of_io(source, failed));
        let connected = self.with_reason_of_reflector(connected).await;
        if let Err(ApplianceError::NoDataConnection { source, .. }) = &connected
            && self.falls_back
            && let Some(reason) = fallback::blocked(source)
        {
            return Err(self.blocked(reason));
        }
        Ok(connected?)
    }

    /// Completes when direct mode counts as blocked: the number of streams that got an answer, which `count` returns,
    /// is still 0 after [`fallback::SILENCE`]. Otherwise never completes.
    fn silence_of_all_streams(
        &self,
        number: u8,
        has_load: bool,
        count: fn(&dyn EngineClient, u8) -> u16,
    ) -> impl Future<Output = ()> + use<> {
        let streams = (self.falls_back && has_load).then(|| Arc::clone(&self.client_end));
        async move {
            if let Some(streams) = streams {
                tokio::time::sleep(fallback::SILENCE).await;
                if count(&*streams, number) == 0 {
                    return;
                }
            }
            std::future::pending::<()>().await;
        }
    }

    fn blocked(&self, reason: FallbackReason) -> SessionFailure {
        SessionFailure::Blocked(Blocked { reason, address: self.data })
    }

    /// How long all connections of a phase may take to open. Handshakes run in parallel, and each takes at most
    /// [`CONNECT_TIMEOUT`]. The extra time for each stream is for a reflector that delays every handshake. The factor 2
    /// is for a phase with load in both directions: `spec.streams` is the number of streams for each direction.
    fn connect_timeout(&self) -> Duration {
        CONNECT_TIMEOUT + CONNECT_TIMEOUT_PER_STREAM * u32::from(self.spec.streams) * 2
    }

    async fn watch_phase(
        &mut self,
        number: u8,
        phase: PhaseSpec,
        observer: &mut Observer,
        record: &mut PhaseRecord,
        readings: &mut mpsc::UnboundedReceiver<PhaseProgress>,
        own: &mut oneshot::Receiver<PhaseTally>,
    ) -> Result<(), ApplianceError> {
        let deadline = Instant::now() + phase.duration() + DRAIN_TIMEOUT;
        let mut show_latency = tokio::time::interval(LATENCY_INTERVAL);
        show_latency.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let begun = Instant::now();
        let mut seen_until = record.begun_at.unwrap_or_default();
        while !record.is_counted() {
            self.end_if_stable(number, record).await?;
            let pacing_due = pacing_due(self.pacing_due_in());
            tokio::select! {
                Some(reading) = readings.recv() => self.note(observer, record, reading),
                tally = &mut *own, if record.own.is_none() => {
                    record.own = Some(tally.unwrap_or_default());
                }
                message = self.client.listen() => match self.handle_message(message?).await? {
                    Some(ToAppliance::Samples { phase, direction, samples }) if phase == number => {
                        for sample in samples {
                            let reading = match direction {
                                Direction::Upload => PhaseProgress::Received(direction, sample),
                                Direction::Download => PhaseProgress::Sent(direction, sample),
                            };
                            check(record, reading).map_err(|claim| self.impossible(claim))?;
                            self.note(observer, record, reading);
                        }
                    }
                    Some(ToAppliance::PhaseDetail { phase, direction, samples }) if phase == number => {
                        for sample in samples {
                            record.note_detail(ObservedEnd::Reflector, direction, sample);
                        }
                    }
                    Some(ToAppliance::PhaseDone { phase, tally }) if phase == number => record.set_theirs(*tally),
                    _ => {}
                },
                () = pacing_due => self.pace_probes(record),
                _ = show_latency.tick() => {
                    let prober = self.prober.as_ref();
                    if let Some(reading) = prober.and_then(|p| glance(p, &mut seen_until, phase.load, begun)) {
                        (observer.events)(Event::Latency(reading));
                    }
                }
                _ = self.beat.tick() => {
                    let has_failed = record.own.as_ref().is_some_and(|own| own.cut_short.is_some());
                    if has_failed && self.silent_for() > LINK_SILENCE_TIMEOUT {
                        return Err(self.client.silent(self.silent_for()));
                    }
                    self.keep_alive().await?;
                }
                () = observer.interrupted() => return Err(ApplianceError::Interrupted),
                () = tokio::time::sleep_until(deadline) => return Err(ApplianceError::PhaseOverdue(self.client.address())),
            }
        }
        // Takes the readings that arrived together with the tally.
        while let Ok(reading) = readings.try_recv() {
            note(observer, record, reading);
        }
        record.check_tallies().map_err(|claim| self.impossible(claim))?;
        match record.cut_short() {
            Some(reason) => Err(ApplianceError::DataLost { load: phase.load, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Ends the phase early if a check for stability ([`StabilityLooks`]) is due and finds the phase stable.
    async fn end_if_stable(&mut self, number: u8, record: &mut PhaseRecord) -> Result<(), ApplianceError> {
        let (Some(looks), Some(prober), Some(begun)) = (&mut self.looks, &self.prober, record.begun_at) else {
            return Ok(());
        };
        let median_rtt = |from, to| RecentProbes::of(prober, begun + from, begun + to).median_us;
        let Some(look) = looks.due(record, median_rtt) else { return Ok(()) };
        record.stop(look);
        // The reflector must receive the message before any stream ends.
        self.client.send(&ToReflector::StopPhase { phase: number }).await?;
        self.control.stop_phase();
        Ok(())
    }

    /// Starts to choose the probe interval of a phase that begins.
    fn begin_pacing(&mut self, phase: PhaseSpec, record: &mut PhaseRecord) {
        let (Some(prober), Some(begun)) = (&self.prober, record.begun_at) else { return };
        if !self.adapts_probes {
            record.probe_schedule = Some(ProbeSchedule { from: begun, interval: self.probe_interval });
            return;
        }
        let pacing = ProbePacing::new(phase.load, begun, phase.duration());
        if self.probe_interval != pacing.first() {
            self.probe_interval = pacing.first();
            prober.pace(self.probe_interval);
        }
        self.pacing = Some(pacing);
    }

    fn pacing_due_in(&self) -> Option<Duration> {
        Some(self.pacing.as_ref()?.due()?.saturating_sub(self.prober.as_ref()?.now()))
    }

    /// Changes the probe interval if a change is due.
    fn pace_probes(&mut self, record: &mut PhaseRecord) {
        let (Some(prober), Some(pacing)) = (&self.prober, &mut self.pacing) else { return };
        let now = prober.now();
        let Some(pace) = pacing.next(now, |from, to| prober.between(from, to)) else { return };
        let from = if pace.interval == self.probe_interval { now } else { prober.pace(pace.interval) };
        self.probe_interval = pace.interval;
        if pace.is_chosen {
            tracing::debug!(load = ?record.load, interval_ms = pace.interval.as_millis(), "probe interval chosen");
            record.probe_schedule = Some(ProbeSchedule { from, interval: pace.interval });
        }
    }

    /// Records a reading and reports it as progress. The reading may also change the probe interval.
    fn note(&mut self, observer: &mut Observer, record: &mut PhaseRecord, reading: PhaseProgress) {
        if let Some(counted) = note(observer, record, reading) {
            if let Some(pacing) = &mut self.pacing {
                pacing.sample(counted.direction, counted.sample);
            }
            self.pace_probes(record);
        }
    }

    async fn await_started(
        &mut self,
        number: u8,
        has_load: bool,
        observer: &mut Observer,
    ) -> Result<(), SessionFailure> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        // A firewall may let a handshake through and nothing after it.
        let silence = self.silence_of_all_streams(number, has_load, |streams, phase| streams.acknowledged(phase));
        let mut silence = std::pin::pin!(silence);
        loop {
            tokio::select! {
                message = self.client.listen() => match self.handle_message(message?).await? {
                    Some(ToAppliance::Started { phase }) if phase == number => return Ok(()),
                    Some(ToAppliance::PhaseDone { phase, tally }) if phase == number => {
                        if self.falls_back && has_load && self.client_end.acknowledged(number) == 0 {
                            return Err(self.blocked(FallbackReason::Silent));
                        }
                        let unknown = || "the reflector gave no reason".to_owned();
                        let reason = tally.cut_short.map_or_else(unknown, |text| text.to_string());
                        // If both ends know a reason, uses the one of this end, because the user can act on it.
                        let reason = self.client_end.explain_failure(number).unwrap_or(reason);
                        return Err(ApplianceError::PhaseNotStarted { reason }.into());
                    }
                    _ => {}
                },
                _ = self.beat.tick() => self.keep_alive().await?,
                () = &mut silence => return Err(self.blocked(FallbackReason::Silent)),
                () = observer.interrupted() => return Err(ApplianceError::Interrupted.into()),
                () = tokio::time::sleep_until(deadline) => {
                    return Err(ApplianceError::PhaseOverdue(self.client.address()).into());
                }
            }
        }
    }

    /// The failure to report for a phase. If this device could not start a thread, returns that failure, because it
    /// causes all others. Otherwise returns `failure`.
    fn or_thread_limit(&self, failure: SessionFailure) -> SessionFailure {
        match self.control.refused_thread() {
            Some(refused) => ApplianceError::ThreadLimit(refused.clone()).into(),
            None => failure,
        }
    }

    fn impossible(&self, claim: Impossible) -> ApplianceError {
        ApplianceError::ImpossibleReport { address: self.client.address(), claim }
    }

    /// Waits for `work`, and serves the link meanwhile.
    async fn during<T>(&mut self, work: impl Future<Output = T>, observer: &mut Observer) -> Result<T, ApplianceError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                message = self.client.listen() => {
                    self.handle_message(message?).await?;
                }
                _ = self.beat.tick() => self.keep_alive().await?,
                () = observer.interrupted() => return Err(ApplianceError::Interrupted),
            }
        }
    }

    /// If `done` is an error and the reflector ended the session, returns the reflector's reason as the error. The end
    /// of a session causes errors here, and the reflector's message about it may arrive later. So this waits up to
    /// [`LINK_ERROR_GRACE`] for that message.
    async fn with_reason_of_reflector<T>(&mut self, done: Result<T, ApplianceError>) -> Result<T, ApplianceError> {
        let Err(failure) = done else { return done };
        let deadline = Instant::now() + LINK_ERROR_GRACE;
        // The message that ends the session is returned as an error. A flood of messages does not extend the deadline.
        while Instant::now() < deadline
            && let Ok(news) = tokio::time::timeout_at(deadline, self.client.listen()).await
        {
            self.handle_message(news?).await?;
        }
        Err(failure)
    }

    /// Handles a message of the reflector: answers a ping, fails if the session has ended, and returns every other
    /// message.
    async fn handle_message(&mut self, message: ToAppliance) -> Result<Option<ToAppliance>, ApplianceError> {
        self.received_at = Instant::now();
        self.control.heard();
        match message {
            ToAppliance::Ping => {
                self.client.send(&ToReflector::Pong).await?;
                Ok(None)
            }
            ToAppliance::Ended { reason, detail, .. } => Err(self.client.ended(reason, &detail)),
            other => Ok(Some(other)),
        }
    }

    /// For how long nothing has been received on any connection of the session.
    fn silent_for(&self) -> Duration {
        self.received_at.max(self.control.last_heard().into()).elapsed()
    }

    /// Sends a heartbeat to the reflector. Fails if nothing has been received for too long on any connection.
    async fn keep_alive(&mut self) -> Result<(), ApplianceError> {
        let silent_for = self.silent_for();
        // If this task was held up for long, received messages may still be unread, so the silence does not count.
        let silence_checked_at = std::mem::replace(&mut self.silence_checked_at, Instant::now());
        if silent_for > END_AFTER_SILENCE && silence_checked_at.elapsed() < 3 * HEARTBEAT {
            return Err(self.client.lost_in_silence());
        }
        self.client.send(&ToReflector::Ping).await
    }

    /// Stops the latency probes and returns their results; `None` if there are none.
    async fn finish_probes(&mut self) -> Option<Probes> {
        let prober = self.prober.take()?;
        let mut finished = tokio::task::spawn_blocking(move || prober.finish());
        let mut probes = tokio::time::timeout(COUNTS_TIMEOUT, &mut finished).await;
        if probes.is_err() {
            // The prober may be blocked in a write whose bytes the reflector does not read.
            self.control.cancel();
            probes = tokio::time::timeout(COUNTS_TIMEOUT, finished).await;
        }
        probes.ok().and_then(Result::ok)
    }

    /// Ends the session without a result. Returns the link, which can be used for another session.
    pub(super) async fn give_back(
        mut self,
        run: &mut RunRecord,
        observer: &mut Observer,
    ) -> Result<ReflectorClient, ApplianceError> {
        self.control.cancel();
        let probe_bytes = self.finish_probes().await.map_or(0, |probes| probe_bytes(&probes));
        run.result.discard_phases(probe_bytes);
        tokio::select! {
            ended = self.client.end_session() => ended?,
            () = observer.interrupted() => return Err(ApplianceError::Interrupted),
        };
        Ok(self.client)
    }

    /// Ends the session: collects the probes, ends the session at the reflector, and asks for the facts of the
    /// reflector's host again. If `failure` has a field for the datagrams that the reflector counted, sets that field.
    pub(super) async fn close(mut self, run: &mut RunRecord, failure: Option<&mut ApplianceError>) {
        let close_timeout = match &failure {
            None => END_AFTER_SILENCE,
            Some(ApplianceError::NoDataConnection { .. }) => CLOSE_TIMEOUT_WITH_CAUSE,
            Some(_) => CLOSE_TIMEOUT,
        };
        if failure.is_some() {
            self.control.cancel();
        }
        run.probes = self.finish_probes().await;
        self.control.cancel();
        let mut seen = None;
        // Errors from here on are ignored: the measurements are complete without these messages.
        let goodbye = async {
            seen = self.client.end_session().await?;
            self.client.facts().await
        };
        if let Ok(Ok(facts)) = tokio::time::timeout(close_timeout, goodbye).await {
            run.result.set_facts_after(own_facts(Some(self.client.local())), Some(facts));
        }
        if let Some(seen) = seen {
            run.result.set_datagrams(seen);
        }
        if let Some(ApplianceError::NoDataConnection { datagrams, .. }) = failure {
            *datagrams = seen;
        }
        self.client.close("done").await;
    }
}

/// Returns a function that opens a data connection for the probes. The prober calls it only if probes over UDP get no
/// answers.
fn fall_back(
    session: SessionId,
    keys: &Arc<SessionKeys>,
    control: &Arc<SessionControl>,
    tunnel: Arc<Dialer>,
    options: SocketOptions,
) -> Box<dyn FnOnce() -> std::io::Result<DataStream> + Send> {
    let (keys, control) = (Arc::clone(keys), Arc::clone(control));
    Box::new(move || {
        let nonce = *uuid::Uuid::now_v7().as_bytes().last_chunk().unwrap_or(&[0; Preamble::NONCE_LEN]);
        let preamble = Preamble { session, phase: Preamble::ECHO, stream: 0, nonce };
        tunnel.dial(&control, &preamble.seal(&keys), &options)
    })
}

/// Starts the latency probes: over UDP if answers come back, otherwise over a data connection.
async fn probe(order: ProberSetup) -> Result<Prober, ApplianceError> {
    let started = tokio::task::spawn_blocking(move || {
        let prober = Prober::start(order)?;
        prober.ready()?;
        Ok::<_, std::io::Error>(prober)
    });
    let started = started.await.map_err(|_| internal(&"a thread panicked"))?;
    started.map_err(|error| ApplianceError::of_io(error, ApplianceError::NoProbes))
}

/// Records a reading of a phase. If the reading counts for the progress display, reports it and returns it.
fn note(observer: &mut Observer, record: &mut PhaseRecord, progress: PhaseProgress) -> Option<CountedReading> {
    if let PhaseProgress::Detail(direction, sample) = progress {
        record.note_detail(ObservedEnd::Appliance, direction, sample);
    }
    let (end, direction, sample) = as_folded(progress)?;
    let shown = record.note(end, direction, sample)?;
    (observer.events)(shown.event(record.load));
    Some(shown)
}

/// Waits for the time `left`. If it is `None`, waits for ever.
async fn pacing_due(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}

/// Fails if a reading of the reflector cannot be true.
fn check(record: &PhaseRecord, progress: PhaseProgress) -> Result<(), Impossible> {
    as_folded(progress).map_or(Ok(()), |(end, direction, sample)| record.check(end, direction, sample))
}

/// The latency since `seen_until`, the end of the last returned reading. Returns a reading once enough probes were
/// answered for a median, or once the number of sent probes is twice the number of answers that a median needs. Probes
/// whose answers may still arrive are left for the next reading.
fn glance(prober: &Prober, seen_until: &mut Duration, load: Load, begun: Instant) -> Option<LatencyReading> {
    let under_way = prober.recent().unwrap_or(LATENCY_INTERVAL) * 2;
    let until = prober.now().checked_sub(under_way)?.max(*seen_until);
    let RecentProbes { sent, received, median_us } = RecentProbes::of(prober, *seen_until, until);
    if median_us.is_none() && sent < 2 * Statement::Assessment.least_samples() {
        return None;
    }
    *seen_until = until;
    let rtt_us = median_us.map(u64::from);
    Some(LatencyReading { phase: load, at_ms: millis(begun.elapsed()), rtt_us, sent, received })
}

/// The number of probes in a period of a running phase, and their latency.
struct RecentProbes {
    sent: u64,
    received: u64,
    /// The median round trip in microseconds; `None` if too few probes were answered.
    median_us: Option<u32>,
}

impl RecentProbes {
    /// The probes that were sent between `from` and `to`, by the prober's clock.
    fn of(prober: &Prober, from: Duration, to: Duration) -> Self {
        let probes = prober.between(from, to);
        let mut round_trips = probes.iter().filter_map(|probe| probe.rtt_us).collect::<Vec<_>>();
        round_trips.sort_unstable();
        let (sent, received) = (probes.len() as u64, round_trips.len() as u64);
        let is_known = stats::is_enough(Statement::Assessment, received, sent);
        let median_us = stats::percentile(&round_trips, 500).filter(|_| is_known);
        Self { sent, received, median_us }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Converts the error of a device that cannot run its end of the test. If the kernel refuses the requested congestion
/// control, the result is [`ApplianceError::CongestionControl`].
fn not_driven(spec: &TestSpec, error: std::io::Error) -> ApplianceError {
    if let Some(lacking) = error.get_ref().and_then(|inner| inner.downcast_ref::<Unavailable>()) {
        return ApplianceError::EngineUnavailable { engine: spec.engine.to_string(), lacking: lacking.clone() };
    }
    let is_refused = matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied);
    if spec.congestion_control.is_none() || !is_refused {
        return ApplianceError::of_io(error, |error| internal(&error));
    }
    ApplianceError::CongestionControl(error)
}

fn internal(error: &dyn std::fmt::Display) -> ApplianceError {
    ApplianceError::Internal(error.to_string())
}
