//! What a run of any provider has gathered so far, and the document it makes, also when it ended half way. Pure but for
//! the clock's time stamps.

mod arrived;
mod claims;
mod phase;
mod rates;
mod warnings;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use paramedic_engines::echo::{PACKET_LEN, Probes, Transport};
use paramedic_engines::host_facts;
use paramedic_link::EndpointId;
use paramedic_link::PeerText;
use paramedic_link::measurement::HostFacts;
use paramedic_link::message::Welcome;
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use paramedic_report::document::{
    ApplianceEnd, BidirResult, Bufferbloat, ByLoad, DataPath, ErrorBody, LatencyResult, Omitted, ProbeTransport,
    ProgramSaid, ReflectorEnd, ResultDocument, ResultSchema, RttSpread, ServerEnd, Warning,
};
use paramedic_report::stats;
use uuid::Uuid;

pub(super) use self::claims::{Impossible, count as check_count, received_of_sent};
pub(super) use self::phase::PhaseRecord;
use super::{Outcome, TestOrder};
use crate::failure::{Exit, Failure};
use crate::history::Reflector;
use crate::reflector_client::ReflectorClient;

/// A prober that was later than this at its p99 sampled the busy moments less often.
const LATE_PROBE_US: u32 = 5_000;

/// Everything that a run has gathered so far.
pub(super) struct Gathered {
    id: Uuid,
    provider: &'static str,
    started_at: Timestamp,
    own: EndpointId,
    met: Option<Met>,
    reflector_facts: [Option<HostFacts>; 2],
    own_facts: [Option<HostFacts>; 2],
    phases: Vec<PhaseRecord>,
    /// What the probes saw, all phases.
    pub(super) probes: Option<Probes>,
    /// The program that moved the data, where it was another one than ours.
    program: Option<String>,
}

/// Whom it was measured against, and what was agreed.
struct Met {
    other_end: OtherEnd,
    address: SocketAddr,
    spec: TestSpec,
    /// What the program that moved the data left out itself, before all that it told.
    left_out: Duration,
}

/// Whom it was measured against.
enum OtherEnd {
    Reflector { id: EndpointId, name: PeerText, version: PeerText },
    Server { name: String },
}

impl Gathered {
    /// Nothing yet.
    pub(super) fn new(order: &TestOrder, provider: &'static str) -> Self {
        Self {
            id: Uuid::now_v7(),
            provider,
            started_at: Timestamp::now(),
            own: order.key.id(),
            met: None,
            reflector_facts: [None, None],
            own_facts: [None, None],
            phases: vec![],
            probes: None,
            program: None,
        }
    }

    /// The run's id.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// When it began.
    pub(super) fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// A reflector answered.
    pub(super) fn met(&mut self, client: &ReflectorClient, known: &Reflector, welcome: &Welcome, spec: &TestSpec) {
        let version = welcome.software.clone();
        let other_end = OtherEnd::Reflector { id: client.reflector(), name: known.name.clone(), version };
        self.met = Some(Met { other_end, address: client.address(), spec: spec.clone(), left_out: Duration::ZERO });
    }

    /// A server that is no reflector is measured against. `name` is how it was called; `left_out` is the start-up that
    /// the program that moves the data does not tell of.
    pub(super) fn met_server(
        &mut self,
        name: String,
        address: SocketAddr,
        local: Option<IpAddr>,
        spec: &TestSpec,
        left_out: Duration,
    ) {
        self.own_facts[0] = Some(own_facts(local));
        self.met = Some(Met { other_end: OtherEnd::Server { name }, address, spec: spec.clone(), left_out });
    }

    /// A program that is none of ours moves the data.
    pub(super) fn moved_by(&mut self, program: Option<String>) {
        self.program = program;
    }

    /// How this host was after the last phase against a server that says nothing of itself.
    pub(super) fn own_facts_after(&mut self, local: Option<IpAddr>) {
        self.own_facts[1] = Some(own_facts(local));
    }

    /// How both hosts were before the first phase.
    pub(super) fn facts_before(&mut self, theirs: HostFacts, local: Option<IpAddr>) {
        self.reflector_facts[0] = Some(theirs);
        self.own_facts[0] = Some(own_facts(local));
    }

    /// How both hosts were after the last phase.
    pub(super) fn facts_after(&mut self, theirs: HostFacts, local: Option<IpAddr>) {
        self.reflector_facts[1] = Some(theirs);
        self.own_facts[1] = Some(own_facts(local));
    }

    /// A phase begins.
    pub(super) fn begin(&mut self, phase: PhaseSpec) -> &mut PhaseRecord {
        self.phases.push(PhaseRecord::new(phase));
        let last = self.phases.len() - 1;
        &mut self.phases[last]
    }

    /// How the run ended: what was measured, and why it is not complete. A direction that moved nothing is no result, and
    /// a run with one is not complete.
    pub(super) fn conclude(self, order: &TestOrder, end: Result<(), Failure>) -> Outcome {
        let failure = end.err().or_else(|| nothing_arrived(&self.directions_without_payload(), order));
        let measured = self.document(order, failure.as_ref());
        Outcome { measured, failure }
    }

    /// The directions of phases that came to their end, in which next to nothing arrived.
    fn directions_without_payload(&self) -> Vec<(Load, Direction)> {
        let Some(met) = &self.met else { return vec![] };
        let whole = self.phases.iter().filter(|phase| phase.is_counted());
        let all = whole.flat_map(|phase| phase.load.directions().iter().map(move |direction| (phase, *direction)));
        let empty = all.filter(|(phase, direction)| rates::has_moved_nothing(phase, *direction, &met.spec));
        empty.map(|(phase, direction)| (phase.load, direction)).collect()
    }

    /// The document, if anything was measured.
    fn document(mut self, order: &TestOrder, failure: Option<&Failure>) -> Option<ResultDocument> {
        let met = self.met.take()?;
        let (reflector, server) = match met.other_end {
            OtherEnd::Reflector { id, name, version } => {
                let [facts_before, facts_after] = std::mem::take(&mut self.reflector_facts);
                let address = met.address.to_string();
                (Some(ReflectorEnd { endpoint_id: id, name, address, version, facts_before, facts_after }), None)
            }
            OtherEnd::Server { name } => (None, Some(ServerEnd { address: name })),
        };
        let mut result = ResultDocument {
            schema: ResultSchema::V1,
            id: self.id,
            started_at: self.started_at,
            finished_at: Timestamp::now(),
            provider: self.provider.to_owned(),
            engine: met.spec.engine.clone(),
            data_mode: reflector.is_some().then_some(met.spec.data_mode),
            data_path: self.data_path(),
            appliance: ApplianceEnd {
                endpoint_id: self.own,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                facts_before: self.own_facts[0].take(),
                facts_after: self.own_facts[1].take(),
            },
            program: self.program.take().map(|version| ProgramSaid { version, raw: self.raw() }),
            reflector,
            server,
            download: None,
            upload: None,
            bidir: None,
            latency: Default::default(),
            bufferbloat: Default::default(),
            thresholds: vec![],
            data_used_bytes: self.data_used(),
            warnings: vec![],
            complete: failure.is_none(),
            interrupted: failure.is_some_and(|failure| failure.exit == Exit::Interrupted),
            error: failure.filter(|failure| failure.exit != Exit::Interrupted).map(Failure::body),
        };
        let overhead = rates::line_overhead(&result, met.address);
        for phase in &self.phases {
            let measured = |direction| rates::throughput(phase, direction, &met.spec, order, overhead, met.left_out);
            match phase.load {
                Load::Download => result.download = measured(Direction::Download),
                Load::Upload => result.upload = measured(Direction::Upload),
                Load::Bidir => {
                    let (download, upload) = (measured(Direction::Download), measured(Direction::Upload));
                    if download.is_some() || upload.is_some() {
                        result.bidir = Some(BidirResult { download, upload });
                    }
                }
                Load::Idle | Load::Unknown => {}
            }
        }
        if [&result.download, &result.upload].into_iter().flatten().any(|one| one.omitted == Omitted::Nothing) {
            let text = "the server tells only its total, so the upload's rate includes the start-up; -O leaves it out";
            result.warnings.push(Warning::new("startup_included", text));
        }
        self.add_latency(&mut result, &met.spec);
        warnings::add(&mut result, &self.phases);
        let anything = result.download.is_some()
            || result.upload.is_some()
            || result.bidir.is_some()
            || !result.latency.is_empty()
            // That nothing arrived is worth keeping, too.
            || failure.is_some_and(|failure| failure.code == ErrorBody::NOTHING_ARRIVED);
        anything.then_some(result)
    }

    /// What the program that moved the data said, where it was kept: JSON, or the text that should have been.
    fn raw(&mut self) -> ByLoad<serde_json::Value> {
        let mut raw = ByLoad::default();
        for phase in &mut self.phases {
            if let Some(text) = phase.raw.take() {
                raw.set(phase.load, serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)));
            }
        }
        raw
    }

    /// Payload at our own sockets, everything included.
    fn data_used(&self) -> u64 {
        let phases = self.phases.iter().map(|phase| match &phase.own {
            Some(own) => own.bytes(),
            // The phase broke before it could be counted to its end: the readings are what there is.
            None => rates::bytes_of(phase.received.iter().flatten()),
        });
        let probes = self.probes.as_ref().map_or(0, |probes| probes.iter().count() as u64 * PACKET_LEN as u64);
        phases.fold(probes, u64::saturating_add)
    }

    fn data_path(&self) -> Option<DataPath> {
        let directions = self.phases.iter().flat_map(|phase| phase.load.directions().iter().map(|d| phase.ends(*d)));
        directions.map(rates::data_paths).find_map(|paths| paths.in_short())
    }

    fn add_latency(&self, result: &mut ResultDocument, spec: &TestSpec) {
        let Some(probes) = &self.probes else { return };
        let transport = match probes.transport {
            Some(Transport::Udp) => ProbeTransport::Udp,
            Some(Transport::Tcp) => ProbeTransport::Tcp,
            None => return,
        };
        for (phase, asked) in self.phases.iter().zip(&spec.phases) {
            let Some(begun) = phase.begun_at else { continue };
            // The load's steady part: its start-up would read as an idle path.
            let startup = match phase.load {
                Load::Download => result.download.as_ref(),
                Load::Upload => result.upload.as_ref(),
                Load::Bidir => result.bidir.as_ref().and_then(|bidir| bidir.download.as_ref()),
                Load::Idle | Load::Unknown => None,
            };
            let from = begun + startup.map_or(Duration::ZERO, |measured| Duration::from_millis(measured.startup_ms));
            let until = (begun + asked.duration()).min(phase.ended_at.unwrap_or(Duration::MAX));
            let window = probes.within(from, until);
            let Some(summary) = stats::latency(window) else { continue };
            if u64::from(summary.probe_late_p99_us) > u64::from(LATE_PROBE_US) && !warnings::has(result, "probe_late") {
                result.warnings.push(Warning::new(
                    "probe_late",
                    format!(
                        "this device sent its latency probes up to {} ms late: short spikes may be missing",
                        summary.probe_late_p99_us / 1000
                    ),
                ));
            }
            result.latency.set(phase.load, latency(&summary, probes, transport));
        }
        if transport == ProbeTransport::Tcp {
            result.warnings.push(Warning::new(
                "udp_blocked",
                "UDP does not get through, so latency was measured over TCP: a lost packet shows as a late one",
            ));
        }
        warnings::lost_probes(result);
        let Some(idle) = result.latency.idle.as_ref().and_then(LatencyResult::median_us) else { return };
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            // A load that did not come about says nothing of the queue that it would have built.
            let Some(loaded) = result.latency.of(load).and_then(LatencyResult::median_us) else { continue };
            if result.has_load(load) {
                let increase_ms = (loaded as f64 - idle as f64) / 1000.0;
                result.bufferbloat.set(load, Bufferbloat::of_increase_ms(increase_ms));
            }
        }
    }
}

/// The failure of a run in which these directions moved nothing; `None` where all did.
fn nothing_arrived(directions: &[(Load, Direction)], order: &TestOrder) -> Option<Failure> {
    let name = |(load, direction): &(Load, Direction)| match load {
        Load::Bidir => format!("the {direction} of the phase both ways"),
        _ => format!("the {direction}"),
    };
    let (last, others) = directions.split_last()?;
    let others = others.iter().map(name).collect::<Vec<_>>().join(", ");
    let names = if others.is_empty() { name(last) } else { format!("{others} and {}", name(last)) };
    let smaller = match order.transport {
        super::Transport::Tcp => "-M 1200",
        super::Transport::Udp => "-l 1200",
    };
    let try_ = format!(
        "large packets may vanish on the way: repeat with {smaller}; if that works, correct the MTU or the firewall that \
         swallows ICMP"
    );
    let because = "the connections stand, but the receiver counted next to no payload";
    Some(Failure::new(Exit::Failed, ErrorBody::NOTHING_ARRIVED, format!("nothing arrived in {names}"), because, try_))
}

fn own_facts(local: Option<IpAddr>) -> HostFacts {
    HostFacts { version: env!("CARGO_PKG_VERSION").into(), ..host_facts::read(local) }
}

fn latency(summary: &stats::LatencySummary, probes: &Probes, transport: ProbeTransport) -> LatencyResult {
    // Over TCP nothing is lost, only late.
    let known = transport == ProbeTransport::Udp;
    LatencyResult {
        rtt_us: summary.rtt.map(|rtt| RttSpread {
            min: rtt.min_us.into(),
            mean: rtt.mean_us.round() as u64,
            p50: rtt.p50_us.into(),
            p90: rtt.p90_us.into(),
            p95: rtt.p95_us.into(),
            p99: rtt.p99_us.into(),
            p999: rtt.p999_us.map(u64::from),
            max: rtt.max_us.into(),
        }),
        jitter_us: summary.rtt.and_then(|rtt| rtt.jitter_us).map(|jitter| jitter.round() as u64),
        sent: summary.sent,
        received: summary.received,
        loss: known.then_some(summary.loss),
        loss_upload: summary.loss_upload.filter(|_| known),
        loss_download: summary.loss_download.filter(|_| known),
        duplicates: probes.duplicates,
        late: summary.late,
        transport,
        probe_late_us: Some(summary.probe_late_p99_us.into()),
    }
}
