//! The provider `reflector`: runs tests against a paired reflector, each in one session with all its phases and probes,
//! or in two sessions if direct mode is blocked.

#![expect(clippy::disallowed_methods, reason = "the shell that asks a reflector in wall time")]

mod early_end;
mod fallback;
mod session;

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use paramedic_engines::Engine;
use paramedic_engines::engine::Unavailable;
use paramedic_host::engines;
use paramedic_link::feature::Feature;
use paramedic_link::measurement::HostFacts;
use paramedic_link::message::{Grant, HEARTBEAT, ToAppliance, ToReflector, Welcome};
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use paramedic_link::tls::Expect;
use paramedic_link::{EndpointId, PeerText};
use paramedic_report::document::{DataModeFallback, Event, FallbackReason, PhaseBegun, Queued, Started};

use super::run_record::{RunRecord, own_facts};
use super::{Observer, Outcome, Provider, TestJob};
use crate::error::{ApplianceError, LinkFailure};
use crate::payload_transport::PayloadTransport;
use crate::reflector_client::ReflectorClient;
use crate::request::TurnWait;
use crate::store::{DirectModeFinding, Reflector};
use crate::targets::HostPort;
use crate::test_lock::TestLock;
use crate::waiting::QueueWait;
use fallback::ModePlan;
use session::{Blocked, ReflectorSession, SessionFailure};

/// How long the appliance waits for the test lock of this device after the reflector has granted a test. A reflector
/// ends a session that does not begin within 30 s.
const RETAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// The provider of tests against paired reflectors.
pub(super) struct Reflectors;

impl Provider for Reflectors {
    fn id(&self) -> &'static str {
        "reflector"
    }

    fn about(&self) -> &'static str {
        "a reflector that this device is paired with"
    }

    fn default_engine(&self, transport: PayloadTransport) -> &'static str {
        match transport {
            PayloadTransport::Tcp => "tcp",
            PayloadTransport::Udp => "udp",
        }
    }

    fn loads(&self, engine: &str) -> bool {
        engines::find(engine).is_none_or(Engine::loads)
    }

    fn probes(&self) -> bool {
        true
    }

    fn needs_identity(&self) -> bool {
        true
    }

    fn check_job(&self, job: &TestJob) -> Result<(), ApplianceError> {
        let id = &job.request.spec.engine;
        let engine = engines::find(id.as_str()).ok_or_else(|| ApplianceError::NoSuchEngine(id.to_string()))?;
        match job.request.unsupported(engine) {
            Some(reason) => Err(ApplianceError::Unsupported(reason.to_owned())),
            None => Ok(()),
        }
    }

    fn check_host(&self, engine: &EngineId) -> Result<Vec<PeerText>, Unavailable> {
        engines::find(engine.as_str()).map_or_else(|| Ok(Vec::new()), Engine::check_client)
    }

    fn run<'a>(
        &'a self,
        job: &'a TestJob,
        lock: &'a mut TestLock,
        observer: &'a mut Observer,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        Box::pin(async move {
            let mut record = RunRecord::begin(job, self.id());
            let end = measure(job, lock, observer, &mut record).await;
            record.conclude(job, end)
        })
    }
}

async fn measure(
    job: &TestJob,
    lock: &mut TestLock,
    observer: &mut Observer,
    record: &mut RunRecord,
) -> Result<(), ApplianceError> {
    if let (None, [only]) = (&job.request.peer, job.known.as_slice()) {
        record.result.set_peer(only.name.to_string());
    }
    let (mut client, known) = tokio::select! {
        link = reach(job) => link?,
        () = observer.interrupted() => return Err(ApplianceError::Interrupted),
    };
    let introduced = async {
        let welcome = client.hello().await?;
        let facts = client.facts().await?;
        Ok::<_, ApplianceError>((welcome, facts))
    };
    let (welcome, facts) = tokio::select! {
        introduced = introduced => introduced?,
        () = observer.interrupted() => return Err(ApplianceError::Interrupted),
    };
    if Feature::is_in(Feature::PATH_FACTS, &welcome.features) {
        let path = tokio::select! {
            path = client.path_facts() => path?,
            () = observer.interrupted() => return Err(ApplianceError::Interrupted),
        };
        record.result.set_observed_address(path.observed_address.ip());
    }
    if job.request.spec.direction_bytes.is_some() && !Feature::is_in(Feature::DIRECTION_BYTES, &welcome.features) {
        return Err(ApplianceError::Unsupported("this reflector is too old for -n and --budget; use -t".to_owned()));
    }
    let plan = mode_plan(job, &welcome, client.reflector());
    if let Some(found_at) = plan.found_at {
        let (tried, reason) = (DataMode::DirectEphemeral, FallbackReason::Remembered);
        record.result.set_data_mode_fallback(DataModeFallback {
            tried,
            reason,
            address: None,
            found_at: Some(found_at),
        });
    }
    let sends_detail = Feature::is_in(Feature::PHASE_DETAIL, &welcome.features);
    let peer = Introduction { name: known.name, version: welcome.software, facts, sends_detail };
    let longest_test = Duration::from_millis(welcome.max_duration_ms);
    let reflector = client.reflector();
    let turn = job.request.turn;
    let can_stop = Feature::is_in(Feature::STOP_PHASE, &welcome.features);
    let mut run = ReflectorRun { job, peer, can_stop, longest_test, turn, had_streams: false, lock, observer, record };
    let finding = |is_blocked| DirectModeFinding { reflector, engine: job.request.spec.engine.clone(), is_blocked };
    let end = run.session(client, plan.mode, plan.falls_back).await;
    let is_remembered = job.blocked_direct.contains_key(&reflector);
    if run.had_streams && is_remembered && plan.mode == DataMode::DirectEphemeral {
        run.record.finding = Some(finding(false));
    }
    let (client, blocked) = match end? {
        SessionEnd::Complete => return Ok(()),
        SessionEnd::Blocked(client, blocked) => (*client, blocked),
    };
    tracing::info!(address = %blocked.address, reason = ?blocked.reason, "direct mode is blocked; using the tunnel");
    run.record.result.set_data_mode_fallback(DataModeFallback {
        tried: plan.mode,
        reason: blocked.reason,
        address: Some(blocked.address.to_string()),
        found_at: None,
    });
    // This session cannot end as blocked, because it does not fall back.
    let end = run.session(client, DataMode::Tunneled, false).await;
    if run.had_streams {
        // The test ran through the tunnel, so the reflector can be reached and only its data ports are blocked.
        run.record.finding = Some(finding(true));
    }
    end.map(drop)
}

/// What the reflector reported about itself when the link was opened.
struct Introduction {
    name: PeerText,
    version: PeerText,
    facts: HostFacts,
    /// Whether the reflector can send [`ToAppliance::PhaseDetail`]: what its kernel recorded about the streams.
    sends_detail: bool,
}

/// How a session that did not fail ended.
enum SessionEnd {
    /// All phases of the session ran.
    Complete,
    /// Direct mode is blocked. The session has ended, and the link can be used for another request.
    Blocked(Box<ReflectorClient>, Blocked),
}

/// One test against a reflector. The test has one session, or two if direct mode is blocked.
struct ReflectorRun<'a> {
    job: &'a TestJob,
    peer: Introduction,
    /// Whether the reflector supports an early end of a phase.
    can_stop: bool,
    /// The longest test that this reflector allows.
    longest_test: Duration,
    /// How long the test may still wait in the reflector's queue.
    turn: TurnWait,
    /// Whether all streams of at least one phase with load arrived at the reflector.
    had_streams: bool,
    lock: &'a mut TestLock,
    observer: &'a mut Observer,
    record: &'a mut RunRecord,
}

impl ReflectorRun<'_> {
    /// Requests a session in the data mode `mode` and runs it. With `falls_back`, a blocked direct mode is not an
    /// error: the session then ends with [`SessionEnd::Blocked`].
    async fn session(
        &mut self,
        mut client: ReflectorClient,
        mode: DataMode,
        falls_back: bool,
    ) -> Result<SessionEnd, ApplianceError> {
        let Self { job, peer, can_stop, longest_test, turn, had_streams, lock, observer, record } = self;
        let segment_limit = client.segment_limit();
        let phase_detail = job.request.intervals && peer.sends_detail;
        let mut spec = TestSpec { phase_detail, ..fit_path(job.request.spec(mode), segment_limit) };
        spec.may_stop &= *can_stop;
        let result = &mut record.result;
        result.set_segment_limit(segment_limit);
        let (name, version) = (peer.name.clone(), peer.version.clone());
        result.set_reflector(client.reflector(), name, version, client.address(), spec.clone());
        result.set_facts_before(own_facts(Some(client.local())), Some(peer.facts.clone()));
        let events = &mut observer.events;
        let interrupt = &mut observer.interrupt;
        let queued = |place, wait| {
            // While this test waits in the reflector's queue, another test of this device may run.
            lock.release();
            events(Event::Queued(Queued::new(place, wait)));
        };
        let cancelled = async {
            interrupt.wait_for(|wanted| *wanted).await.ok();
        };
        let asked = Instant::now();
        let limits = QueueWait::new(*longest_test, turn.limit(), asked);
        let granted = client.request(&spec, turn.may_wait(), limits, queued, cancelled).await?;
        let grant = granted.ok_or(ApplianceError::Interrupted)?;
        *turn = turn.after(asked.elapsed());
        if let Err(error) = retake(lock, &mut client, &grant, observer).await {
            client.finish().await;
            return Err(error);
        }
        observer.events.as_mut()(Event::Start(Started {
            id: record.result.run().id,
            started_at: record.result.run().started_at,
            provider: "reflector".to_owned(),
            engine: spec.engine.clone(),
            data_mode: Some(spec.data_mode),
            address: client.address().to_string(),
            phases: spec
                .phases
                .iter()
                .map(|phase| PhaseBegun { phase: phase.load, duration_ms: phase.duration_ms.into() })
                .collect(),
        }));
        let mut session = ReflectorSession::open(job, client, spec, &grant, falls_back, observer).await?;
        record.result.set_program(session.program());
        let end = session.run(observer, &mut record.result).await;
        *had_streams = session.had_streams();
        match end {
            Err(SessionFailure::Blocked(blocked)) => {
                let client = session.give_back(record, observer).await?;
                Ok(SessionEnd::Blocked(Box::new(client), blocked))
            }
            Err(SessionFailure::Failed(mut error)) => {
                session.close(record, Some(&mut error)).await;
                Err(error)
            }
            Ok(()) => {
                session.close(record, None).await;
                Ok(SessionEnd::Complete)
            }
        }
    }
}

/// Takes the test lock of this device again if it was released while the test waited in the reflector's queue. Answers
/// the reflector meanwhile. Fails if the lock is not free within [`RETAKE_TIMEOUT`], or within half of the time until
/// the grant expires, if that is shorter.
async fn retake(
    lock: &mut TestLock,
    client: &mut ReflectorClient,
    grant: &Grant,
    observer: &mut Observer,
) -> Result<(), ApplianceError> {
    let longest = RETAKE_TIMEOUT.min(Duration::from_millis(grant.expires_in_ms) / 2);
    let deadline = tokio::time::Instant::now() + longest;
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut retaken = std::pin::pin!(lock.retake());
    loop {
        tokio::select! {
            biased;
            retaken = &mut retaken => return retaken,
            () = tokio::time::sleep_until(deadline) => return Err(ApplianceError::GrantExpired),
            () = observer.interrupted() => return Err(ApplianceError::Interrupted),
            message = client.listen() => match message? {
                ToAppliance::Ping => client.send(&ToReflector::Pong).await?,
                ToAppliance::Ended { reason, detail, .. } => return Err(client.ended(reason, &detail)),
                _ => {}
            },
            _ = beat.tick() => client.send(&ToReflector::Ping).await?,
        }
    }
}

/// Chooses the data mode to request. If the reflector offers no usable mode, chooses another one nevertheless, because
/// the reflector's denial then names the modes that it offers.
fn mode_plan(job: &TestJob, welcome: &Welcome, reflector: EndpointId) -> ModePlan {
    let engine = engines::find(job.request.spec.engine.as_str());
    let ways = engine.into_iter().flat_map(|engine| {
        job.request.data_modes(engine).filter(move |way| engine.unsupported(&job.request.spec(*way)).is_none())
    });
    let ways = ways.collect::<Vec<_>>();
    let usable = ways.iter().copied().filter(|way| welcome.data_modes.contains(way)).collect::<Vec<_>>();
    let blocked_at = job.blocked_direct.get(&reflector).copied();
    let plan = fallback::plan(job.request.data_mode, &usable, blocked_at, Timestamp::now());
    plan.unwrap_or_else(|| {
        let mode = job.request.data_mode.or(ways.last().copied()).unwrap_or(DataMode::Tunneled);
        ModePlan { mode, falls_back: false, found_at: None }
    })
}

/// Limits the size of segments or datagrams to what the path can carry, unless the request sets the size. A datagram
/// may have 12 bytes more payload than a segment, because a UDP header has 8 bytes and a TCP header 20.
fn fit_path(spec: TestSpec, segment_limit: Option<u16>) -> TestSpec {
    let Some(bytes) = segment_limit else { return spec };
    let Some(engine) = engines::find(spec.engine.as_str()) else { return spec };
    let segments = TestSpec { mss_bytes: spec.mss_bytes.or(Some(bytes)), ..spec.clone() };
    let datagrams = TestSpec { block_bytes: spec.block_bytes.or(Some(u32::from(bytes) + 12)), ..spec.clone() };
    if engine.unsupported(&segments).is_none() {
        segments
    } else if !spec.fragments && engine.unsupported(&datagrams).is_none() {
        datagrams
    } else {
        spec
    }
}

/// Opens a link to the reflector that the request names. Returns the link with the saved data of the reflector.
async fn reach(job: &TestJob) -> Result<(ReflectorClient, Reflector), ApplianceError> {
    let Some(first) = job.known.first() else { return Err(ApplianceError::NoReflectorPaired) };
    let Some(asked) = &job.request.peer else {
        return match job.known.as_slice() {
            [only] => connect_saved(job, only).await,
            several => {
                let names = several.iter().map(|known| known.name.to_string()).collect();
                Err(ApplianceError::SeveralReflectorsPaired { names })
            }
        };
    };
    if let Some(saved) = job.known.iter().find(|known| known.name.as_str() == asked) {
        return connect_saved(job, saved).await;
    }
    let target = asked.parse::<HostPort>()?;
    if let Some(saved) = job.known.iter().find(|known| known.address == target) {
        return connect_saved(job, saved).await;
    }
    // The address may belong to any paired reflector. If the first guess is wrong, the error contains the key that the
    // reflector presented.
    match connect(job, &target, first.endpoint_id).await {
        Ok(client) => Ok((client, first.clone())),
        Err(ApplianceError::Link { cause: LinkFailure::KeyChanged(presented), .. }) => {
            let Some(known) = job.known.iter().find(|known| known.endpoint_id == presented) else {
                return Err(ApplianceError::NotPairedThere { target, presented });
            };
            Ok((connect(job, &target, presented).await?, known.clone()))
        }
        Err(error) => Err(error),
    }
}

async fn connect_saved(job: &TestJob, saved: &Reflector) -> Result<(ReflectorClient, Reflector), ApplianceError> {
    Ok((connect(job, &saved.address, saved.endpoint_id).await?, saved.clone()))
}

async fn connect(job: &TestJob, target: &HostPort, expected: EndpointId) -> Result<ReflectorClient, ApplianceError> {
    ReflectorClient::connect(job.key()?, target, Expect::ExactKey(expected), &job.request.route).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(engine: &str) -> TestSpec {
        TestSpec::new(EngineId::try_from(engine).unwrap(), DataMode::DirectEphemeral, vec![], 1)
    }

    #[test]
    fn a_test_keeps_to_what_the_path_has_carried_unless_it_sets_a_size() {
        let fit = |spec: TestSpec| {
            let spec = fit_path(spec, Some(1220));
            (spec.mss_bytes, spec.block_bytes)
        };
        for engine in ["tcp", "iperf3"] {
            assert_eq!(fit(spec(engine)), (Some(1220), None));
            assert_eq!(fit(TestSpec { mss_bytes: Some(1400), ..spec(engine) }), (Some(1400), None));
        }
        assert_eq!(fit(spec("udp")), (None, Some(1232)));
        assert_eq!(fit(TestSpec { block_bytes: Some(1400), ..spec("udp") }), (None, Some(1400)));
        assert_eq!(fit(TestSpec { fragments: true, ..spec("udp") }), (None, None));
        assert_eq!(fit_path(spec("tcp"), None), spec("tcp"));
    }
}
