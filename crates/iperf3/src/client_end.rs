//! The appliance's end of the engine: one iperf3 client for each phase with load.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use paramedic_engines::engine::{ClientSetup, EngineClient, PhaseObserver, PhaseProgress};
use paramedic_engines::origin::Origin;
use paramedic_engines::phase::{NO_SUCH_PHASE, SESSION_OVER, run_idle};
use paramedic_engines::session_control::SessionControl;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Load, PhaseSpec, TestSpec};

use super::RUN_GRACE;
use super::client::{Client, ClientExit, ClientOrder, Credentials, progress, tally};
use super::login::{LoginTerms, SessionLogin};
use super::output::PayloadProtocol;
use super::program::Program;

pub(super) struct Iperf3Client {
    spec: TestSpec,
    program: Program,
    target: SocketAddr,
    origin: Origin,
    connect_timeout: Duration,
    login: SessionLogin,
    terms: LoginTerms,
    control: Arc<SessionControl>,
    scratch: PathBuf,
    runs: Mutex<Vec<PhaseClient>>,
}

/// The iperf3 client of one phase. `client` is taken when the phase runs. `end` is set when the client has exited.
struct PhaseClient {
    phase: u8,
    client: Option<Client>,
    end: Option<Arc<ClientExit>>,
}

impl Iperf3Client {
    pub(super) fn new(setup: ClientSetup) -> io::Result<Self> {
        let ClientSetup { spec, keys, dialer, control, terms, scratch } = setup;
        let program = Program::find().map_err(|lacking| io::Error::new(io::ErrorKind::NotFound, lacking))?;
        let terms = terms.as_ref().and_then(LoginTerms::from_engine);
        let without_key = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the reflector sent no valid key and padding for the iperf3 login",
            )
        };
        Ok(Self {
            spec,
            program,
            target: dialer.target,
            origin: dialer.origin.clone(),
            connect_timeout: dialer.connect_timeout,
            login: SessionLogin::of(&keys),
            terms: terms.ok_or_else(without_key)?,
            control,
            scratch,
            runs: Mutex::default(),
        })
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, Vec<PhaseClient>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, phase: &PhaseSpec) -> ClientOrder {
        ClientOrder {
            target: self.target,
            load: phase.load,
            seconds: phase.duration_ms.div_ceil(1000),
            // The module `fold` of the report detects the start-up in the readings, as with the other engines.
            omit_seconds: None,
            // The reflector's listener sets the segment size of both ends. With the option, iperf3 would also make its
            // server set the size at its listener, which is not a TCP socket.
            spec: TestSpec { mss_bytes: None, ..self.spec.clone() },
            transport: PayloadProtocol::Tcp,
            origin: self.origin.clone(),
            connect_timeout: self.connect_timeout,
            credentials: Some(Credentials {
                user: self.login.user.clone(),
                password: self.login.password.clone(),
                public_key_pem: self.terms.key.pem(),
                padding: self.terms.padding,
            }),
            // Whether the user wants the raw output is only known later.
            keeps_raw: true,
            scratch: self.scratch.clone(),
        }
    }

    fn phase(&self, number: u8) -> Option<&PhaseSpec> {
        self.spec.phases.get(usize::from(number))
    }
}

impl EngineClient for Iperf3Client {
    /// Starts the client. The client opens its streams, and starts the test once the server has accepted all of them.
    fn connect(&self, phase: u8) -> io::Result<()> {
        let spec = self.phase(phase).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NO_SUCH_PHASE))?;
        if spec.load == Load::Idle {
            return Ok(());
        }
        let client = Client::start(&self.program, &self.order(spec), Arc::clone(&self.control))?;
        self.runs().push(PhaseClient { phase, client: Some(client), end: None });
        Ok(())
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let spec = self.phase(phase);
        let Some(spec) = spec.filter(|spec| spec.load != Load::Idle) else {
            return run_idle(spec, &self.control, report);
        };
        let client = self.runs().iter_mut().find(|run| run.phase == phase).and_then(|run| run.client.take());
        let Some(client) = client else {
            return PhaseTally { cut_short: Some(NO_SUCH_PHASE.into()), ..PhaseTally::default() };
        };
        report(PhaseProgress::Started);
        let mut readings = Vec::new();
        // A client that sends a number of bytes has no time limit of its own, so it could outlast the session.
        let grace = if self.spec.direction_bytes.is_some() { Duration::ZERO } else { RUN_GRACE };
        let end = client.follow(Instant::now() + spec.duration() + grace, |reading| {
            report(progress(&reading));
            readings.push(reading);
        });
        let mut tally = tally(spec, self.spec.streams, &end, &readings);
        // The end of the session does not cut short a client that had finished before.
        if self.control.is_cancelled() && tally.cut_short.is_some() {
            tally.cut_short = Some(SESSION_OVER.into());
        }
        if let Some(run) = self.runs().iter_mut().find(|run| run.phase == phase) {
            run.end = Some(end);
        }
        tally
    }

    fn explain_failure(&self, phase: u8) -> Option<String> {
        let runs = self.runs();
        let run = runs.iter().find(|run| run.phase == phase)?;
        let end = run.end.clone().or_else(|| run.client.as_ref()?.end())?;
        end.failure()
    }

    fn program(&self) -> Option<String> {
        Some(self.program.to_string())
    }

    fn raw(&self, phase: u8) -> Option<String> {
        self.runs().iter().find(|run| run.phase == phase)?.end.as_ref()?.raw.clone()
    }
}
