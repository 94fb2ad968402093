//! The provider `iperf3`: runs tests against any iperf3 server, with the iperf3 client that is installed on this host.
//! The identity of the server is not verified. A result contains only what iperf3 itself reports, so it has no latency
//! probes.

#![expect(clippy::disallowed_methods, reason = "the shell that runs a client in wall time")]

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use paramedic_engines::Engine;
use paramedic_engines::engine::{Unavailable, first_refusal};
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_iperf3::output::{ClientCount, ClientReading, ClientReport, FailureKind, PayloadProtocol, Totals};
use paramedic_iperf3::{
    Client, ClientExit as End, ClientOrder, Credentials, Iperf3, LoginPadding, Program, progress, tally,
};
use paramedic_link::PeerText;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, PhaseTally};
use paramedic_link::test_spec::{DataMode, Direction, EngineId, PhaseSpec, TestSpec};
use paramedic_report::document::{Event, IntervalReading, PhaseBegun, Queued, Started, UdpResult};
use paramedic_report::fold::{PhaseRecord, ResultBuilder, check_count, received_of_sent};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::options::{OptionSource, OptionValues, ProviderOption};
use super::run_record::{RunRecord, own_facts, reading as as_folded};
use super::{Observer, Outcome, Provider, TestJob};
use crate::error::{ApplianceError, Iperf3Failure};
use crate::payload_transport::PayloadTransport;
use crate::reflector_client::{HEAD_START, race, resolve};
use crate::targets::{HostPort, HostPorts};
use crate::test_lock::TestLock;

/// The default port of an iperf3 server.
const DEFAULT_PORT: u16 = 5201;
/// How long the server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than requested the iperf3 client may run.
const EXIT_GRACE: Duration = Duration::from_secs(10);
/// How often a busy server is tried again. A test at the server takes seconds at least, and each attempt costs the
/// server a connection.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a server may take to listen again after a connection that sent nothing.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(2);
const REOPEN_INTERVAL: Duration = Duration::from_millis(100);

/// The value of `counted_by` if the server reported no usable count. This host's kernel then made the count: the bytes
/// that the server's kernel acknowledged.
const COUNTED_BY_OWN_KERNEL: &str = "acknowledged";

/// How long the server may still be busy with the previous phase. A server accepts waiting connections before it
/// notices that the previous client has ended.
const BUSY_GRACE: Duration = Duration::from_secs(10);

/// The provider of tests against iperf3 servers.
pub(super) struct Servers;

impl Provider for Servers {
    fn id(&self) -> &'static str {
        "iperf3"
    }

    fn about(&self) -> &'static str {
        "any iperf3 server, 3.9 or newer (--peer HOST[:5201])"
    }

    fn options(&self) -> &'static [ProviderOption] {
        OPTIONS
    }

    fn default_engine(&self, _transport: PayloadTransport) -> &'static str {
        Iperf3.id()
    }

    fn probes(&self) -> bool {
        false
    }

    fn needs_identity(&self) -> bool {
        false
    }

    fn check_job(&self, job: &TestJob) -> Result<(), ApplianceError> {
        let request = &job.request;
        let unsupported = first_refusal([
            (request.spec.engine.as_str() != Iperf3.id(), "an iperf3 server works only with the engine iperf3"),
            (request.data_mode.is_some(), "an iperf3 server has no data modes"),
            (request.omit.is_some_and(|omit| omit.subsec_nanos() != 0), "with iperf3, --omit takes only whole seconds"),
            (request.omit.is_some_and(|omit| omit > MOST_OMITTED), "with iperf3, --omit takes at most 60 s"),
        ]);
        if let Some(reason) = unsupported.or_else(|| request.unsupported(&Iperf3)) {
            return Err(ApplianceError::Unsupported(reason.to_owned()));
        }
        Login::of(&job.options)?;
        Ok(())
    }

    fn check_host(&self, _engine: &EngineId) -> Result<Vec<PeerText>, Unavailable> {
        Iperf3.check_client()
    }

    /// Runs one test. Keeps the test lock of this device while it tries a busy server again, because each attempt may
    /// become the test.
    fn run<'a>(
        &'a self,
        job: &'a TestJob,
        _lock: &'a mut TestLock,
        observer: &'a mut Observer,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        Box::pin(async move {
            let mut record = RunRecord::begin(job, self.id());
            let end = measure(job, observer, &mut record.result).await;
            record.conclude(job, end)
        })
    }
}

/// The name of the option for the user of the login.
const USERNAME: &str = "username";
/// The name of the option for the file with the password of the user.
const PASSWORD_FILE: &str = "password-file";
/// The name of the option for the file with the public key that encrypts the login.
const PUBLIC_KEY: &str = "rsa-public-key";

const OPTIONS: &[ProviderOption] = &[
    ProviderOption {
        name: USERNAME,
        value_name: "USER",
        help: "The user name, for an iperf3 server that requires a login; the password comes from --password-file or from \
               PACKETPARAMEDIC_IPERF3_PASSWORD",
        source: OptionSource::Text,
        requires: Some(PUBLIC_KEY),
    },
    ProviderOption {
        name: PASSWORD_FILE,
        value_name: "FILE",
        help: "The file with the user's password in its first line; - reads the password from standard input",
        source: OptionSource::Secret { variable: "PACKETPARAMEDIC_IPERF3_PASSWORD", max_bytes: 1024 },
        requires: Some(USERNAME),
    },
    ProviderOption {
        name: PUBLIC_KEY,
        value_name: "FILE",
        help: "The file with the iperf3 server's public key (PEM)",
        // An encoded RSA key of 16,384 bits needs half of this size.
        source: OptionSource::File { max_bytes: 8192 },
        requires: Some(USERNAME),
    },
];

/// A login at an iperf3 server: the user, the password, and the server's public key.
struct Login {
    user: String,
    password: Zeroizing<String>,
    public_key_pem: String,
}

impl Login {
    /// Reads the login from the values of the options; `None` if they do not contain a user and a public key.
    fn of(options: &OptionValues) -> Result<Option<Self>, Iperf3Failure> {
        let (Some(user), Some(key)) = (options.text(USERNAME), options.text(PUBLIC_KEY)) else { return Ok(None) };
        if !key.contains("-----BEGIN PUBLIC KEY-----") {
            let file = options.file(PUBLIC_KEY).unwrap_or(Path::new(PUBLIC_KEY)).to_owned();
            return Err(Iperf3Failure::NotAPublicKey { file });
        }
        let user = user.to_string();
        let Some(password) = options.text(PASSWORD_FILE).cloned() else {
            return Err(Iperf3Failure::NoPassword { user });
        };
        Ok(Some(Self { user, password, public_key_pem: key.to_string() }))
    }

    fn credentials(&self, padding: LoginPadding) -> Credentials {
        let Self { user, password, public_key_pem } = self;
        let (user, password, public_key_pem) = (user.clone(), password.clone(), public_key_pem.clone());
        Credentials { user, password, public_key_pem, padding }
    }
}

/// The longest start-up that iperf3 can exclude with its option `-O`.
const MOST_OMITTED: Duration = Duration::from_secs(60);

async fn measure(job: &TestJob, observer: &mut Observer, result: &mut ResultBuilder) -> Result<(), ApplianceError> {
    let Some(peer) = &job.request.peer else { return Err(Iperf3Failure::NoServerNamed.into()) };
    let target = HostPorts::parse(peer, DEFAULT_PORT)?;
    let login = Login::of(&job.options)?;
    let program = tokio::task::spawn_blocking(Program::find)
        .await
        .map_err(|_| ApplianceError::Internal("a thread panicked".to_owned()))?;
    let program =
        program.map_err(|lacking| ApplianceError::EngineUnavailable { engine: "iperf3".to_owned(), lacking })?;
    result.set_program(Some(program.to_string()));
    // An iperf3 server knows no data modes, so none is requested.
    let spec = TestSpec { probe_interval_us: 0, ..job.request.spec(DataMode::Unknown) };
    let id = (result.run().id, result.run().started_at);
    let mut visit = Visit {
        job,
        login,
        program,
        target,
        port: 0,
        route: RouteToServer::Unresolved,
        spec,
        id,
        local: None,
        is_met: false,
    };
    let mut end = Ok(());
    for phase in visit.spec.phases.clone() {
        end = visit.phase(phase, observer, result).await;
        if end.is_err() {
            break;
        }
    }
    result.set_facts_after(own_facts(visit.local), None);
    end
}

/// One test against one iperf3 server.
struct Visit<'a> {
    job: &'a TestJob,
    login: Option<Login>,
    program: Program,
    target: HostPorts,
    /// The index of the port in use among the ports of `target`.
    port: usize,
    route: RouteToServer,
    spec: TestSpec,
    /// The id of the run, and the time at which the run began.
    id: (Uuid, Timestamp),
    local: Option<IpAddr>,
    is_met: bool,
}

/// What is known about the addresses of the server.
enum RouteToServer {
    /// The name of the server is not resolved yet.
    Unresolved,
    /// The server has these addresses. The first one is tried alone for a moment.
    FirstTried(Vec<SocketAddr>),
    /// This address accepted a connection at this time. The connection was only a check, so the server treats it as a
    /// client that failed.
    Probed(SocketAddr, Instant),
    /// This address answers, or it is the only address of the server.
    Known(SocketAddr),
}

/// How one run of the iperf3 client ended.
enum Attempt {
    Done(Arc<End>),
    /// The user interrupted the run.
    Interrupted(Arc<End>),
}

impl Visit<'_> {
    /// Runs one phase of the test. Tries again in three cases. If the server is busy, waits first. If no server
    /// answers, uses another address or port. If the server refuses the login, uses the login padding of older
    /// versions.
    async fn phase(
        &mut self,
        phase: PhaseSpec,
        observer: &mut Observer,
        result: &mut ResultBuilder,
    ) -> Result<(), ApplianceError> {
        let at_least = if self.is_met { BUSY_GRACE } else { Duration::ZERO };
        let give_up_at = Instant::now() + self.job.request.turn.limit().unwrap_or_default().max(at_least);
        let mut paddings = self.program.client_paddings().iter().copied();
        let mut padding = paddings.next().unwrap_or(LoginPadding::Pkcs1);
        // Whether any server was busy since the first port was tried.
        let mut is_busy = false;
        let mut is_told = false;
        loop {
            let (address, connect_timeout) = match self.locate(observer).await {
                Ok(located) => located,
                Err(ApplianceError::Iperf3(failure)) if failure.is_unreachable() => {
                    if self.goes_on(&mut is_busy, give_up_at, observer).await? {
                        continue;
                    }
                    return Err(if is_busy { self.all_busy() } else { failure }.into());
                }
                Err(error) => return Err(error),
            };
            if !std::mem::replace(&mut is_told, true) {
                self.report_begin(phase, observer);
            }
            let order = ClientOrder { connect_timeout, ..self.client_order(phase, address, padding) };
            let (end, readings) = self.attempt(phase, order, observer).await?;
            let (end, is_interrupted) = match end {
                Attempt::Done(end) => (end, false),
                Attempt::Interrupted(end) => (end, true),
            };
            let complaint = end.failure_kind();
            let nothing_yet = readings.is_empty() && !is_interrupted;
            if complaint != Some(FailureKind::Unreachable) && matches!(self.route, RouteToServer::FirstTried(_)) {
                self.route = RouteToServer::Known(address);
            }
            match (complaint, &self.route) {
                (Some(FailureKind::Unreachable), RouteToServer::FirstTried(_)) if nothing_yet => continue,
                // After a connection that sent nothing, a server needs a moment to listen again.
                (Some(FailureKind::Unreachable | FailureKind::ControlLost), RouteToServer::Probed(_, at))
                    if nothing_yet && at.elapsed() < REOPEN_TIMEOUT =>
                {
                    tokio::time::sleep(REOPEN_INTERVAL).await;
                    continue;
                }
                (Some(kind @ (FailureKind::Unreachable | FailureKind::Busy)), _) if nothing_yet => {
                    is_busy |= kind == FailureKind::Busy;
                    if self.goes_on(&mut is_busy, give_up_at, observer).await? {
                        continue;
                    }
                    if is_busy && self.target.count() > 1 {
                        return Err(self.all_busy().into());
                    }
                }
                // From version 3.17 on, client and server pad logins in a new way. From 3.22 on, a server refuses a
                // login by closing the connection.
                (Some(FailureKind::NotAuthorized | FailureKind::ControlLost), _)
                    if nothing_yet && self.login.is_some() =>
                {
                    if let Some(other) = paddings.next() {
                        padding = other;
                        continue;
                    }
                }
                _ => {}
            }
            self.route = RouteToServer::Known(address);
            if !self.is_met {
                self.is_met = true;
                self.local = local_towards(address, &self.job.request.route.origin);
                let omit = self.job.request.omit.unwrap_or_default();
                result.set_facts_before(own_facts(self.local), None);
                result.set_server(self.server().to_string(), address, self.spec.clone(), omit);
            }
            let is_possible = self.keep(phase, &end, &readings, result.begin_phase(phase));
            if is_interrupted {
                return Err(ApplianceError::Interrupted);
            }
            return match end.failure() {
                None if !is_possible => Err(Iperf3Failure::ImpossibleReport { target: self.server() }.into()),
                None => Ok(()),
                Some(reason) => {
                    let cause = complaint.unwrap_or(FailureKind::Other);
                    let has_login = self.login.is_some();
                    Err(Iperf3Failure::Client { target: self.server(), cause, reason, has_login }.into())
                }
            };
        }
    }

    /// The host of the server with the port in use.
    fn server(&self) -> HostPort {
        self.target.nth(self.port)
    }

    /// Decides whether to try again, and at which port. Before the first contact with a server, each further attempt
    /// uses the next port. After the last port, waits and starts again at the first one, but only if a server was busy
    /// and `give_up_at` allows it. After the first contact, keeps the port.
    async fn goes_on(
        &mut self,
        is_busy: &mut bool,
        give_up_at: Instant,
        observer: &mut Observer,
    ) -> Result<bool, ApplianceError> {
        if !self.is_met {
            self.port = (self.port + 1) % self.target.count();
            if !matches!(self.route, RouteToServer::Known(_)) {
                self.route = RouteToServer::Unresolved;
            }
            if self.port != 0 {
                return Ok(true);
            }
        }
        if !*is_busy || Instant::now() + RETRY_INTERVAL > give_up_at {
            return Ok(false);
        }
        *is_busy = false;
        self.wait(give_up_at, observer).await?;
        Ok(true)
    }

    /// The error for a request with several ports if the server at each of them is busy or does not answer.
    fn all_busy(&self) -> Iperf3Failure {
        let reason = format!("every server at {} is busy or does not answer", self.target);
        Iperf3Failure::Client { target: self.server(), cause: FailureKind::Busy, reason, has_login: false }
    }

    /// The address of the server with the port in use, and how long a connection to it may take. If the server's name
    /// has several addresses, the first is tried alone for a moment, then all of them in parallel.
    async fn locate(&mut self, observer: &mut Observer) -> Result<(SocketAddr, Duration), ApplianceError> {
        let server = self.server();
        let route = &self.job.request.route;
        let at_port = |mut address: SocketAddr| {
            address.set_port(server.port);
            address
        };
        let next = async {
            match &self.route {
                RouteToServer::Known(address) => Ok::<_, ApplianceError>(RouteToServer::Known(at_port(*address))),
                RouteToServer::Probed(address, at) => Ok(RouteToServer::Probed(at_port(*address), *at)),
                RouteToServer::Unresolved => {
                    let addresses = resolve(&server, route).await?;
                    Ok(match addresses[..] {
                        [only] => RouteToServer::Known(only),
                        _ => RouteToServer::FirstTried(addresses),
                    })
                }
                RouteToServer::FirstTried(addresses) => match race(addresses.clone(), &route.origin).await {
                    Ok((_, address)) => Ok(RouteToServer::Probed(address, Instant::now())),
                    Err(source) => Err(Iperf3Failure::unreachable(&server, &source).into()),
                },
            }
        };
        self.route = tokio::select! {
            next = next => next?,
            () = observer.interrupted() => return Err(ApplianceError::Interrupted),
        };
        match &self.route {
            RouteToServer::Known(address) | RouteToServer::Probed(address, _) => Some((*address, CONNECT_TIMEOUT)),
            RouteToServer::FirstTried(addresses) => addresses.first().map(|first| (*first, HEAD_START)),
            RouteToServer::Unresolved => None,
        }
        .ok_or_else(|| ApplianceError::NoAddressOfFamily(server.host))
    }

    async fn wait(&self, give_up_at: Instant, observer: &mut Observer) -> Result<(), ApplianceError> {
        let left = give_up_at.saturating_duration_since(Instant::now());
        (observer.events)(Event::Queued(Queued::new(1, left)));
        tokio::select! {
            // An iperf3 server does not report when it is free, so the phase is tried again after a while.
            () = tokio::time::sleep(RETRY_INTERVAL) => Ok(()),
            () = observer.interrupted() => Err(ApplianceError::Interrupted),
        }
    }

    /// Runs the iperf3 client once, to its end. Returns how the run ended, and its readings.
    async fn attempt(
        &self,
        phase: PhaseSpec,
        asked: ClientOrder,
        observer: &mut Observer,
    ) -> Result<(Attempt, Vec<ClientReading>), ApplianceError> {
        let control = SessionControl::unmetered();
        let (told, mut readings) = mpsc::unbounded_channel();
        let run = {
            let (program, control) = (self.program.clone(), Arc::clone(&control));
            let lasts = asked.seconds + asked.omit_seconds.unwrap_or(0);
            let grace =
                if asked.spec.direction_bytes.is_some() { Duration::ZERO } else { CONNECT_TIMEOUT + EXIT_GRACE };
            let deadline = std::time::Instant::now() + Duration::from_secs(lasts.into()) + grace;
            move || {
                let client = Client::start(&program, &asked, control)?;
                Ok::<_, std::io::Error>(client.follow(deadline, |reading| {
                    told.send(reading).ok();
                }))
            }
        };
        let mut run = tokio::task::spawn_blocking(run);
        let mut kept = Vec::new();
        let mut is_interrupted = false;
        let end = loop {
            tokio::select! {
                Some(reading) = readings.recv() => {
                    report_reading(phase, &reading, observer);
                    kept.push(reading);
                }
                end = &mut run => break end,
                () = observer.interrupted(), if !is_interrupted => {
                    is_interrupted = true;
                    control.cancel();
                }
            }
        };
        while let Ok(reading) = readings.try_recv() {
            kept.push(reading);
        }
        let end = end
            .map_err(|_| ApplianceError::Internal("a thread panicked".to_owned()))?
            .map_err(|error| ApplianceError::of_io(error, |error| Iperf3Failure::NotStarted(error).into()))?;
        Ok((if is_interrupted { Attempt::Interrupted(end) } else { Attempt::Done(end) }, kept))
    }

    fn report_begin(&self, phase: PhaseSpec, observer: &mut Observer) {
        let begun = |phase: &PhaseSpec| PhaseBegun { phase: phase.load, duration_ms: phase.duration_ms.into() };
        if !self.is_met {
            let (id, started_at) = self.id;
            (observer.events)(Event::Start(Started {
                id,
                started_at,
                provider: Servers.id().to_owned(),
                engine: self.spec.engine.clone(),
                data_mode: None,
                address: self.target.to_string(),
                phases: self.spec.phases.iter().map(begun).collect(),
            }));
        }
        (observer.events)(Event::Phase(begun(&phase)));
    }

    fn client_order(&self, phase: PhaseSpec, address: SocketAddr, padding: LoginPadding) -> ClientOrder {
        let job = self.job;
        ClientOrder {
            target: address,
            load: phase.load,
            seconds: phase.duration_ms.div_ceil(1000),
            omit_seconds: job.request.omit.map(|omit| omit.as_secs().try_into().unwrap_or(u32::MAX)),
            spec: job.request.spec.clone(),
            transport: match job.request.transport {
                PayloadTransport::Tcp => PayloadProtocol::Tcp,
                PayloadTransport::Udp => PayloadProtocol::Udp,
            },
            origin: job.request.route.origin.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            keeps_raw: job.request.raw,
            scratch: job.scratch.clone(),
            credentials: self.login.as_ref().map(|login| login.credentials(padding)),
        }
    }

    /// Records the counts of both ends, as the client reports them. Returns `false` and does not record the server's
    /// count if that count cannot be true.
    #[must_use]
    fn keep(&self, phase: PhaseSpec, end: &End, readings: &[ClientReading], record: &mut PhaseRecord) -> bool {
        for reading in readings.iter().filter(|reading| !reading.omitted) {
            if let Some((end, direction, sample)) = as_folded(progress(reading)) {
                record.note(end, direction, sample);
            }
        }
        if self.job.request.raw {
            record.raw.clone_from(&end.raw);
        }
        record.tells_total = true;
        let report = end.report.as_ref().ok();
        record.own = Some(tally(&phase, self.job.request.spec.streams, end, readings));
        let mut is_possible = true;
        let mut theirs = their_tally(phase, report);
        for direction in phase.load.directions() {
            let totals = report.and_then(|report| report.totals(*direction));
            record.udp[*direction as usize] = totals.and_then(|totals| udp(totals, report));
            let theirs = match direction {
                Direction::Download => &mut theirs.download,
                Direction::Upload => &mut theirs.upload,
            };
            let own = record.own.as_ref().and_then(|own| own.direction(*direction)).map(|own| own.count);
            let ours = own.map_or(0, |own| own.bytes);
            // A test with a byte limit has no requested duration, so its actual duration is compared.
            let bytes_take = own.filter(|_| self.spec.direction_bytes.is_some()).map(|own| own.elapsed_us);
            let asked = bytes_take.map_or_else(|| phase.duration(), Duration::from_micros);
            if theirs.as_ref().is_some_and(|theirs| !can_be(*direction, theirs.count, ours, asked)) {
                *theirs = None;
                is_possible = false;
            }
        }
        if theirs.upload.is_none() && phase.load.moves(Direction::Upload) {
            theirs.upload = end.acknowledged().map(|count| DirectionTally {
                count,
                streams: self.spec.streams,
                counted_by: Some(COUNTED_BY_OWN_KERNEL.into()),
                ..DirectionTally::default()
            });
        }
        record.set_theirs(theirs);
        is_possible
    }
}

/// What the server counted in a phase, as the iperf3 client reports it.
fn their_tally(phase: PhaseSpec, report: Option<&ClientReport>) -> PhaseTally {
    let of = |direction: Direction| {
        let totals = report?.totals(direction)?;
        let theirs = match direction {
            Direction::Download => totals.sent,
            // A server before version 3.10 reports only the number of datagrams, each with the length of a block.
            Direction::Upload => totals.received.or_else(|| arrived(totals, report)),
        };
        let ClientCount { bytes, duration_us } = theirs?;
        let remote = report?.cpu;
        let share = |of: Option<f64>| of.unwrap_or(0.0) * duration_us as f64 / 1e6;
        let is_sender = direction == Direction::Download;
        Some(DirectionTally {
            count: Count { bytes, elapsed_us: duration_us },
            cpu: CpuUse {
                user_s: share(remote.and_then(|cpu| cpu.remote_user)),
                system_s: share(remote.and_then(|cpu| cpu.remote_system)),
                busiest_thread: 0.0,
                ..CpuUse::default()
            },
            congestion_control: totals.congestion_control.as_deref().filter(|_| is_sender).map(Into::into),
            data_path: Some("plain".into()),
            mss: None,
            path_mtu: None,
            retransmits: totals.retransmits.filter(|_| is_sender),
            streams: totals.streams,
            datagrams: None,
            reduced_window_bytes: None,
            counted_by: Some("iperf3".into()),
            tcp_times: None,
        })
    };
    let moved = |direction| if phase.load.moves(direction) { of(direction) } else { None };
    PhaseTally { download: moved(Direction::Download), upload: moved(Direction::Upload), ..PhaseTally::default() }
}

/// Whether the server's count can be true. The test must have taken at least half of the requested time `asked`, and
/// [`check_count`] must accept the count. In an upload, the server must not have received more than the `ours` bytes
/// that were sent.
fn can_be(direction: Direction, theirs: Count, ours: u64, asked: Duration) -> bool {
    let is_long_enough = Duration::from_micros(theirs.elapsed_us) >= asked / 2;
    let arrived = match direction {
        Direction::Download => Ok(()),
        Direction::Upload => received_of_sent("bytes", theirs.bytes, ours),
    };
    is_long_enough && check_count(theirs, asked).and(arrived).is_ok()
}

/// The bytes that arrived at the server, computed from the number of datagrams, which all have the same payload length.
fn arrived(totals: &Totals, report: Option<&ClientReport>) -> Option<ClientCount> {
    let udp = totals.udp?;
    let arrived = udp.packets.checked_sub(udp.lost?)?;
    let bytes = arrived.checked_mul(report?.block_bytes?.into())?;
    Some(ClientCount { bytes, duration_us: totals.sent?.duration_us })
}

fn udp(totals: &Totals, report: Option<&ClientReport>) -> Option<UdpResult> {
    let udp = totals.udp?;
    let lost = udp.lost?.min(udp.packets);
    (udp.packets > 0).then(|| UdpResult {
        datagrams: udp.packets,
        lost,
        loss: lost as f64 / udp.packets as f64,
        duplicates: None,
        out_of_order: udp.out_of_order,
        jitter_us: udp.jitter_us,
        payload_bytes: report.and_then(|report| report.block_bytes),
        search: None,
        paused_ms: None,
        vanished: None,
    })
}

/// Reports a reading of the iperf3 client as progress, even a reading of the sender, because the server reports nothing
/// before the end.
fn report_reading(phase: PhaseSpec, reading: &ClientReading, observer: &mut Observer) {
    let length_us = reading.end_us.saturating_sub(reading.begin_us);
    let bps = (u128::from(reading.bytes) * 8_000_000).checked_div(u128::from(length_us));
    if let Some(bps) = bps {
        (observer.events)(Event::Interval(IntervalReading {
            phase: phase.load,
            direction: reading.direction,
            at_ms: reading.end_us / 1000,
            bps: u64::try_from(bps).unwrap_or(u64::MAX),
            by_sender: reading.is_sender(),
        }));
    }
}

/// The local address that packets from `origin` to `address` would have. Sends no packet.
fn local_towards(address: SocketAddr, origin: &Origin) -> Option<IpAddr> {
    Some(origin.datagrams(address).ok()?.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::options::OptionValue;

    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n";

    fn login(values: &[(&str, &str)]) -> Result<Option<Login>, Iperf3Failure> {
        let mut options = OptionValues::default();
        for (name, text) in values {
            let option = OPTIONS.iter().find(|option| option.name == *name).unwrap();
            options.set(option, OptionValue { text: Zeroizing::new((*text).to_owned()), file: None });
        }
        Login::of(&options)
    }

    #[test]
    fn a_login_needs_a_user_a_password_and_a_public_key() {
        assert!(login(&[]).unwrap().is_none());
        assert!(login(&[(PASSWORD_FILE, "rossi")]).unwrap().is_none(), "a password in the environment alone");
        let whole = login(&[(USERNAME, "mario"), (PASSWORD_FILE, "rossi"), (PUBLIC_KEY, PEM)]).unwrap().unwrap();
        let credentials = whole.credentials(LoginPadding::Oaep);
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("mario", "rossi"));
        assert_eq!(credentials.public_key_pem, PEM);
        let no_password = login(&[(USERNAME, "mario"), (PUBLIC_KEY, PEM)]).err().unwrap();
        assert!(matches!(no_password, Iperf3Failure::NoPassword { user } if user == "mario"));
        let no_key = login(&[(USERNAME, "mario"), (PASSWORD_FILE, "rossi"), (PUBLIC_KEY, "PRIVATE")]).err().unwrap();
        assert!(matches!(no_key, Iperf3Failure::NotAPublicKey { .. }));
    }

    #[test]
    fn the_local_address_is_that_of_the_chosen_origin() {
        let target = SocketAddr::from(([127, 0, 0, 1], 9));
        let from = |origin: Origin| local_towards(target, &origin);
        let second = IpAddr::from([127, 0, 0, 7]);
        assert_eq!(from(Origin { address: Some(second), interface: None }), Some(second));
        assert_eq!(from(Origin { address: Some(second), interface: Some("lo".to_owned()) }), Some(second));
        assert_eq!(from(Origin::default()), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(from(Origin { address: None, interface: Some("none9".to_owned()) }), None);
    }

    #[test]
    fn more_received_than_sent_or_in_no_time_is_impossible() {
        let second = |bytes| Count { bytes, elapsed_us: 1_000_000 };
        let asked = Duration::from_secs(1);
        assert!(can_be(Direction::Upload, second(99), 100, asked));
        assert!(!can_be(Direction::Upload, second(101), 100, asked));
        assert!(can_be(Direction::Download, second(101), 100, asked), "what was on its way was sent");
        assert!(!can_be(Direction::Download, second(1 << 62), 100, asked));
        for elapsed_us in [0, 1, 23_000_000, u64::MAX] {
            assert!(!can_be(Direction::Download, Count { bytes: 1, elapsed_us }, 1, asked), "{elapsed_us} µs");
        }
    }
}
