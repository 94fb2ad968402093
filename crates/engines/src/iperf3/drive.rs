//! The appliance's end of `iperf3`: a client for each phase, whose readings become ours.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use paramedic_link::admission::{Login, LoginKey};
use paramedic_link::measurement::{Count, DirectionTally, PhaseTally, Sample};
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};

use super::client::{Client, ClientOrder, Credentials, End, Transport, in_direction};
use super::login::public_pem;
use super::output::Reading;
use super::program::Program;
use super::{COUNTED_BY_IPERF3, GRACE, NO_SUCH_PHASE, SESSION_OVER};
use crate::echo::quiet_phase;
use crate::engine::{Drive, DriveOrder, Progress, Report};
use crate::tether::Tether;

pub(super) struct Iperf3Drive {
    spec: TestSpec,
    program: Program,
    target: SocketAddr,
    connect_timeout: Duration,
    login: Login,
    key: LoginKey,
    tether: Arc<Tether>,
    runs: Mutex<Vec<Run>>,
}

/// One phase's client, and what it left behind.
struct Run {
    phase: u8,
    client: Option<Client>,
    end: Option<End>,
}

impl Iperf3Drive {
    pub(super) fn new(order: DriveOrder) -> io::Result<Self> {
        let DriveOrder { spec, keys, dialer, tether, login_key } = order;
        let program = Program::find().map_err(|lacking| io::Error::new(io::ErrorKind::NotFound, lacking))?;
        let without_key = || io::Error::new(io::ErrorKind::InvalidData, "the grant has no key for iperf3's login");
        Ok(Self {
            spec,
            program,
            target: dialer.target,
            connect_timeout: dialer.connect_timeout,
            login: keys.login().clone(),
            key: login_key.ok_or_else(without_key)?,
            tether,
            runs: Mutex::default(),
        })
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, Vec<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, phase: &PhaseSpec) -> ClientOrder {
        // A scope has to stay with an address, which the address alone does not print.
        let host = match self.target {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => self.target.ip().to_canonical().to_string(),
        };
        ClientOrder {
            host,
            port: self.target.port(),
            load: phase.load,
            seconds: phase.duration_ms.div_ceil(1000),
            streams: self.spec.streams,
            transport: Transport::Tcp,
            rate_bps: None,
            congestion_control: self.spec.congestion_control.clone(),
            window_bytes: self.spec.window_bytes,
            block_bytes: self.spec.block_bytes,
            connect_timeout: self.connect_timeout,
            credentials: Some(Credentials {
                user: self.login.user.clone(),
                password: self.login.password.clone(),
                public_key_pem: public_pem(&self.key),
                old_padding: true,
            }),
        }
    }

    fn phase(&self, number: u8) -> Option<&PhaseSpec> {
        self.spec.phases.get(usize::from(number))
    }
}

impl Drive for Iperf3Drive {
    /// Starts the client: it opens its streams, and begins as soon as they stand at the other end.
    fn connect(&self, phase: u8) -> io::Result<()> {
        let spec = self.phase(phase).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NO_SUCH_PHASE))?;
        if spec.load == Load::Idle {
            return Ok(());
        }
        let client = Client::start(&self.program, &self.order(spec), Arc::clone(&self.tether))?;
        self.runs().push(Run { phase, client: Some(client), end: None });
        Ok(())
    }

    fn run(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let spec = self.phase(phase);
        let Some(spec) = spec.filter(|spec| spec.load != Load::Idle) else {
            return quiet_phase(spec, &self.tether, report);
        };
        let client = self.runs().iter_mut().find(|run| run.phase == phase).and_then(|run| run.client.take());
        let Some(client) = client else {
            return PhaseTally { cut_short: Some(NO_SUCH_PHASE.into()), ..PhaseTally::default() };
        };
        report(Progress::Started);
        let mut readings = Vec::new();
        let end = follow(&client, spec.duration(), &self.tether, |reading| {
            report(progress(&reading));
            readings.push(reading);
        });
        let tally = tally(spec, &end, &readings, self.tether.is_cut());
        if let Some(run) = self.runs().iter_mut().find(|run| run.phase == phase) {
            run.end = Some(end);
        }
        tally
    }

    fn complaint(&self, phase: u8) -> Option<String> {
        let runs = self.runs();
        let run = runs.iter().find(|run| run.phase == phase)?;
        let end = run.end.clone().or_else(|| run.client.as_ref()?.end())?;
        end.failure().map(|failure| format!("iperf3 says: {failure}"))
    }

    fn raw(&self, phase: u8) -> Option<String> {
        self.runs().iter().find(|run| run.phase == phase)?.end.as_ref()?.raw.clone()
    }
}

/// Hears the client out: its readings go to `tell` as they come. It is ended when the tether is cut, or when it takes much
/// longer than it was told to.
pub(super) fn follow(client: &Client, lasts: Duration, tether: &Tether, mut tell: impl FnMut(Reading)) -> End {
    let deadline = Instant::now() + lasts + GRACE;
    let end = loop {
        let in_time = tether.wait_until(deadline, || client.has_news());
        client.news().into_iter().for_each(&mut tell);
        if let Some(end) = client.end() {
            break end;
        }
        if !in_time {
            break client.interrupt();
        }
    };
    client.news().into_iter().for_each(tell);
    end
}

/// What a client receives counts; what it sends is held beside.
fn progress(reading: &Reading) -> Progress {
    let sample = Sample { at_us: reading.end_us, bytes: reading.bytes };
    match reading.direction {
        Direction::Download => Progress::Received(reading.direction, sample),
        Direction::Upload => Progress::Sent(reading.direction, sample),
    }
}

/// What the client counted. Both directions of one run are one process: what it cost stands with both.
fn tally(phase: &PhaseSpec, end: &End, readings: &[Reading], is_cut: bool) -> PhaseTally {
    let report = end.report.as_ref().ok();
    let of = |direction: Direction| {
        phase.load.moves(direction).then(|| {
            let totals = report.and_then(|report| report.totals(direction));
            let whole = totals.and_then(|totals| match direction {
                Direction::Download => totals.received,
                Direction::Upload => totals.sent,
            });
            let read = || Count {
                bytes: in_direction(readings, direction).fold(0, |sum, reading| sum.saturating_add(reading.bytes)),
                elapsed_us: in_direction(readings, direction).last().map_or(0, |reading| reading.end_us),
            };
            DirectionTally {
                count: whole.map_or_else(read, |whole| Count { bytes: whole.bytes, elapsed_us: whole.duration_us }),
                cpu: end.cpu,
                congestion_control: totals
                    .filter(|_| direction == Direction::Upload)
                    .and_then(|totals| totals.congestion_control.as_deref())
                    .map(Into::into),
                data_path: Some("plain".into()),
                mss: report.filter(|_| direction == Direction::Upload).and_then(|report| report.mss),
                retransmits: totals.filter(|_| direction == Direction::Upload).and_then(|totals| totals.retransmits),
                streams: totals.map_or(0, |totals| totals.streams),
                counted_by: Some(COUNTED_BY_IPERF3.into()),
            }
        })
    };
    let why =
        if is_cut { Some(SESSION_OVER.to_owned()) } else { end.failure().map(|why| format!("iperf3 says: {why}")) };
    PhaseTally {
        download: of(Direction::Download),
        upload: of(Direction::Upload),
        cut_short: why.map(|why| why.as_str().into()),
    }
}
