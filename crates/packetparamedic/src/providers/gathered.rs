//! What a run of any provider has gathered so far, and the document it makes, also when it ended half way. Pure but for the clock's
//! time stamps.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use paramedic_engines::echo::{PACKET_LEN, Probes, Transport};
use paramedic_engines::engine::Progress;
use paramedic_engines::{host_facts, stats};
use paramedic_link::EndpointId;
use paramedic_link::PeerText;
use paramedic_link::measurement::{Count, CpuUse, DirectionTally, HostFacts, INTERVAL_MS, PhaseTally, Sample};
use paramedic_link::message::Welcome;
use paramedic_link::test_spec::{Direction, Load, PhaseSpec, TestSpec};
use uuid::Uuid;

use super::TestOrder;
use crate::document::{
    ApplianceEnd, BidirResult, Bufferbloat, ByLoad, CpuCost, CpuOfEnds, DataPath, DataPathOfEnds, Event, Interval,
    IntervalReading, IntervalSpread, LatencyResult, LineRateEstimate, Omitted, ProbeTransport, ProgramSaid,
    ReflectorEnd, ResultDocument, ResultSchema, RttSpread, ServerEnd, ThroughputResult, UdpResult, UdpSearch, Warning,
};
use crate::failure::{Exit, Failure};
use crate::history::Reflector;
use crate::reflector_client::ReflectorClient;

/// From this share of all cores, or of one core by one thread, the end and not the path may have been the limit.
const BUSY: f64 = 0.95;
/// From this share of the time on, being held back by a control group shows in a rate.
const HELD_BACK: f64 = 0.05;
/// A prober that was later than this at its p99 sampled the busy moments less often.
const LATE_PROBE_US: u32 = 5_000;
/// Ethernet's share of each packet on the wire: preamble 8, header 14, checksum 4, gap 12.
const ETHERNET: u32 = 38;
/// TCP's header with the time stamps that Linux uses.
const TCP: u32 = 32;
/// UDP's header.
const UDP: u32 = 8;

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

/// One phase. What the reflector says of it is its word: it may be wrong, but it fills no memory and breaks no sum.
pub(super) struct PhaseRecord {
    /// What was put on the path.
    pub(super) load: Load,
    /// The most readings of one kind that are kept.
    most: usize,
    /// When it began and ended, by the prober's clock.
    pub(super) begun_at: Option<Duration>,
    /// See `begun_at`.
    pub(super) ended_at: Option<Duration>,
    /// What this end counted.
    pub(super) own: Option<PhaseTally>,
    /// What the reflector counted.
    theirs: Option<PhaseTally>,
    /// The receivers' and the senders' readings: download, upload.
    received: [Vec<Sample>; 2],
    sent: [Vec<Sample>; 2],
    /// Whether the sender's readings are shown as long as the receiver tells none.
    pub(super) shows_sent: bool,
    /// What became of datagrams, where a program says it in its own words: download, upload.
    pub(super) udp: [Option<UdpResult>; 2],
    /// Whether the highest rate is searched for.
    pub(super) is_searched: bool,
    /// What the program that moved the data said, as it said it.
    pub(super) raw: Option<String>,
}

/// A reading that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Which way the bytes flowed.
    pub(super) direction: Direction,
    /// How long the interval was, in microseconds; never 0.
    pub(super) length_us: u64,
    /// The reading itself.
    pub(super) sample: Sample,
    /// Whether it is the sender's.
    pub(super) by_sender: bool,
}

impl Reading {
    /// The same for whoever watches a phase under `load`.
    pub(super) fn event(&self, load: Load) -> Event {
        let bps = u128::from(self.sample.bytes) * 8_000_000 / u128::from(self.length_us);
        Event::Interval(IntervalReading {
            phase: load,
            direction: self.direction,
            at_ms: self.sample.at_us / 1000,
            bps: u64::try_from(bps).unwrap_or(u64::MAX),
            by_sender: self.by_sender,
        })
    }
}

impl PhaseRecord {
    fn new(phase: PhaseSpec) -> Self {
        // Twice as many as a phase has intervals: an end that was held up may come late, but not for ever.
        let intervals = u64::from(phase.duration_ms) / INTERVAL_MS;
        let most = usize::try_from(2 * intervals + 64).unwrap_or(usize::MAX);
        Self {
            load: phase.load,
            most,
            begun_at: None,
            ended_at: None,
            own: None,
            theirs: None,
            received: Default::default(),
            sent: Default::default(),
            shows_sent: false,
            udp: [None; 2],
            is_searched: false,
            raw: None,
        }
    }

    /// Keeps a reading, and gives it to whoever watches: the receiver's, and the sender's where it is all there is for
    /// now. What belongs to no direction of this phase, does
    /// not advance in time, or is too much, is left out.
    pub(super) fn note(&mut self, progress: &Progress) -> Option<Reading> {
        let (list, direction, sample) = match *progress {
            Progress::Started => return None,
            Progress::Sent(direction, sample) => (&mut self.sent[direction as usize], direction, sample),
            Progress::Received(direction, sample) => (&mut self.received[direction as usize], direction, sample),
        };
        let before = list.last().map_or(0, |last| last.at_us);
        let length_us = sample.at_us.checked_sub(before).filter(|length| *length > 0)?;
        if !self.load.moves(direction) || list.len() >= self.most {
            return None;
        }
        list.push(sample);
        let by_sender = matches!(progress, Progress::Sent(..));
        let is_shown = !by_sender || self.shows_sent && self.received[direction as usize].is_empty();
        is_shown.then_some(Reading { direction, length_us, sample, by_sender })
    }

    /// Keeps what the reflector counted.
    pub(super) fn theirs(&mut self, mut tally: PhaseTally) {
        for direction in [&mut tally.download, &mut tally.upload].into_iter().flatten() {
            let cpu = &mut direction.cpu;
            cpu.user_s = cpu.user_s.max(0.0);
            cpu.system_s = cpu.system_s.max(0.0);
            cpu.busiest_thread = cpu.busiest_thread.clamp(0.0, 1.0);
            cpu.host_busy = cpu.host_busy.map(|busy| busy.clamp(0.0, 1.0));
            cpu.held_back = cpu.held_back.map(|held_back| held_back.clamp(0.0, 1.0));
        }
        self.theirs = Some(tally);
    }

    /// Whether both ends have counted to the end.
    pub(super) fn is_counted(&self) -> bool {
        self.own.is_some() && self.theirs.is_some()
    }

    /// Why an end stopped before its time, if one did.
    pub(super) fn cut_short(&self) -> Option<&PeerText> {
        [&self.own, &self.theirs].into_iter().flatten().find_map(|tally| tally.cut_short.as_ref())
    }

    /// What both ends counted of one direction: sender, receiver.
    fn ends(&self, direction: Direction) -> (Option<&DirectionTally>, Option<&DirectionTally>) {
        let own = self.own.as_ref().and_then(|tally| tally.direction(direction));
        let theirs = self.theirs.as_ref().and_then(|tally| tally.direction(direction));
        match direction {
            Direction::Download => (theirs, own),
            Direction::Upload => (own, theirs),
        }
    }
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

    /// The document, if anything was measured.
    pub(super) fn document(mut self, order: &TestOrder, failure: Option<&Failure>) -> Option<ResultDocument> {
        let met = self.met.take()?;
        let (reflector, server) = match met.other_end {
            OtherEnd::Reflector { id, name, version } => {
                let [facts_before, facts_after] = std::mem::take(&mut self.reflector_facts);
                let address = met.address.to_string();
                (Some(ReflectorEnd { endpoint_id: id, name, address, version, facts_before, facts_after }), None)
            }
            OtherEnd::Server { name } => (None, Some(ServerEnd { address: name, software: None })),
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
        let overhead = line_overhead(&result, met.address);
        for phase in &self.phases {
            let measured = |direction| throughput(phase, direction, &met.spec, order, overhead, met.left_out);
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
        self.add_warnings(&mut result);
        let anything = result.download.is_some()
            || result.upload.is_some()
            || result.bidir.is_some()
            || !result.latency.is_empty();
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
            None => bytes_of(phase.received.iter().flatten()),
        });
        let probes = self.probes.as_ref().map_or(0, |probes| probes.iter().count() as u64 * PACKET_LEN as u64);
        phases.fold(probes, u64::saturating_add)
    }

    fn data_path(&self) -> Option<DataPath> {
        let directions = self.phases.iter().flat_map(|phase| phase.load.directions().iter().map(|d| phase.ends(*d)));
        directions.map(data_paths).find_map(|paths| paths.in_short())
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
            if u64::from(summary.probe_late_p99_us) > u64::from(LATE_PROBE_US) && !has(result, "probe_late") {
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
        let Some(idle) = result.latency.idle.as_ref().and_then(|idle| idle.rtt_us) else { return };
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            if let Some(loaded) = result.latency.of(load).and_then(|latency| latency.rtt_us) {
                let increase_ms = (loaded.p50 as f64 - idle.p50 as f64) / 1000.0;
                result.bufferbloat.set(load, Bufferbloat::of_increase_ms(increase_ms));
            }
        }
    }

    /// Where an end was full, the path may have carried more.
    fn add_warnings(&self, result: &mut ResultDocument) {
        for phase in &self.phases {
            for direction in phase.load.directions() {
                let (sender, receiver) = phase.ends(*direction);
                let (own, theirs) = match direction {
                    Direction::Download => (receiver, sender),
                    Direction::Upload => (sender, receiver),
                };
                for (code, who, tally) in
                    [("appliance_cpu", "this device's", own), ("reflector_cpu", "the reflector's", theirs)]
                {
                    if let Some(text) = tally.and_then(|tally| full(&tally.cpu))
                        && !has(result, code)
                    {
                        let text = format!("{who} processor was full during the {}: {text}", phase.load);
                        result.warnings.push(Warning::new(code, text + "; the path may carry more than was measured"));
                    }
                }
                let (Some(sender), Some(receiver)) = (sender, receiver) else { continue };
                if let Some(datagrams) = &sender.datagrams {
                    // What is lost differs by nature.
                    let searched = phase.is_searched && result.complete;
                    if searched && found_at(Some(sender), Some(receiver)).is_none() && !has(result, "rate_not_found") {
                        let text = format!(
                            "the search for the highest rate did not come to its end in the {}: measure longer with -t",
                            phase.load
                        );
                        result.warnings.push(Warning::new("rate_not_found", text));
                    }
                    if let Some(paused_ms) = datagrams.paused_ms
                        && !has(result, "sending_paused")
                    {
                        let text = format!(
                            "in the {} the sender held still for {paused_ms} ms, because nothing came back from the receiver",
                            phase.load
                        );
                        result.warnings.push(Warning::new("sending_paused", text));
                    }
                    continue;
                }
                // Two who count differently need not count the same: what one holds in a buffer the other has sent.
                if sender.counted_by.is_some() || receiver.counted_by.is_some() {
                    continue;
                }
                if sender.count.bytes != receiver.count.bytes && result.complete && !has(result, "counts_differ") {
                    let text = format!(
                        "in the {} the sender counted {} bytes and the receiver {}: the rest was still on its way",
                        phase.load, sender.count.bytes, receiver.count.bytes
                    );
                    result.warnings.push(Warning::new("counts_differ", text));
                }
            }
        }
    }
}

fn has(result: &ResultDocument, code: &str) -> bool {
    result.warnings.iter().any(|warning| warning.code == code)
}

fn own_facts(local: Option<IpAddr>) -> HostFacts {
    HostFacts { version: env!("CARGO_PKG_VERSION").into(), ..host_facts::read(local) }
}

/// How a full processor shows, if it was full.
fn full(cpu: &CpuUse) -> Option<String> {
    let percent = |share: f64| (share * 100.0).round();
    if let Some(held_back) = cpu.held_back.filter(|held_back| *held_back >= HELD_BACK) {
        return Some(format!("a control group held it back for {} % of the time", percent(held_back)));
    }
    match cpu.host_busy {
        Some(busy) if busy >= BUSY => Some(format!("{} % of all cores", percent(busy))),
        _ if cpu.busiest_thread >= BUSY => Some(format!("one thread used {} % of a core", percent(cpu.busiest_thread))),
        _ => None,
    }
}

/// What each segment costs on the wire beside its payload; absent on loopback, which has no wire.
fn line_overhead(result: &ResultDocument, address: SocketAddr) -> Option<u32> {
    let ip = if address.is_ipv4() { 20 } else { 40 };
    let is_wire = !address.ip().is_loopback() && result.appliance.facts_before.is_some();
    is_wire.then_some(ip + TCP + ETHERNET)
}

fn throughput(
    phase: &PhaseRecord,
    direction: Direction,
    spec: &TestSpec,
    order: &TestOrder,
    overhead: Option<u32>,
    left_out: Duration,
) -> Option<ThroughputResult> {
    let samples = &phase.received[direction as usize];
    let span = spec.phases.iter().find(|asked| asked.load == phase.load)?.duration();
    let (sender, receiver) = phase.ends(direction);
    let omit = order.omit.map(|omit| omit.saturating_sub(left_out));
    // A search knows when its start-up was over; one that ended too late for the samples is as good as none.
    let found = found_at(sender, receiver).filter(|_| omit.is_none());
    let found = found.and_then(|found| stats::throughput(samples, Some(found), span));
    let is_found = found.is_some();
    let in_intervals = found.or_else(|| stats::throughput(samples, omit, span));
    let is_whole = in_intervals.is_none() && samples.is_empty();
    let measured = in_intervals.or_else(|| if is_whole { whole(receiver?) } else { None })?;
    let either = sender.or(receiver);
    let mss = sender.and_then(|sender| sender.mss);
    let udp = phase.udp[direction as usize].or_else(|| datagrams(sender?, receiver?));
    let overhead = match udp {
        Some(_) if spec.fragments => None,
        Some(_) => overhead.map(|overhead| overhead - TCP + UDP),
        None => overhead,
    };
    let line_rate = |overhead: u32| {
        let segment = mss.or_else(|| udp?.payload_bytes);
        let mss = segment.filter(|segment| *segment > 0)?;
        let rate = u128::from(measured.goodput_bps) * (u128::from(mss) + u128::from(overhead)) / u128::from(mss);
        Some(LineRateEstimate { rate_bps: u64::try_from(rate).ok()?, overhead_bytes: overhead })
    };
    Some(ThroughputResult {
        goodput_bps: measured.goodput_bps,
        ci95_bps: measured.ci95_bps,
        interval_bps: (!is_whole).then_some(IntervalSpread { p10: measured.p10, p50: measured.p50, p90: measured.p90 }),
        bytes_received: measured.bytes,
        bytes_sent: steady_part(&phase.sent[direction as usize], measured.startup, measured.steady),
        total_bytes_received: receiver.map(|receiver| receiver.count.bytes),
        total_bytes_sent: sender.map(|sender| sender.count.bytes),
        duration_ms: millis(measured.steady),
        startup_ms: millis(measured.startup + left_out),
        omitted: match (order.omit, measured.startup_found) {
            (Some(_), _) => Omitted::Asked,
            (None, _) if is_whole => Omitted::Nothing,
            (None, true) => Omitted::Found,
            (None, false) if is_found => Omitted::Found,
            (None, false) => Omitted::NotFound,
        },
        streams: either.map_or(spec.streams, |tally| tally.streams),
        congestion_control: sender.and_then(|sender| sender.congestion_control.clone()),
        retransmits: sender.and_then(|sender| sender.retransmits),
        mss,
        line_rate_estimate: overhead.and_then(line_rate),
        intervals: order.intervals.then(|| intervals(samples)),
        udp,
        data_path: data_paths((sender, receiver)),
        cpu: CpuOfEnds { sender: sender.map(cost), receiver: receiver.map(cost) },
    })
}

/// When a search had found its rate at the receiver, as far as both ends say so.
fn found_at(sender: Option<&DirectionTally>, receiver: Option<&DirectionTally>) -> Option<Duration> {
    sender?.datagrams.as_ref()?.settled.filter(|settled| *settled > 0)?;
    receiver?.datagrams.as_ref()?.settled_at_us.map(Duration::from_micros)
}

/// What became of datagrams, of what both ends counted. One of them is the other side's word: no sum of it breaks.
fn datagrams(sender: &DirectionTally, receiver: &DirectionTally) -> Option<UdpResult> {
    let (ours, theirs) = (sender.datagrams.as_ref()?, receiver.datagrams.as_ref()?);
    let (sent, received) = (ours.sent?, theirs.received?);
    let settled = found_at(Some(sender), Some(receiver)).and_then(|_| Some((ours.settled?, theirs.settled?)));
    // What settled is part of all.
    let settled = settled.map(|(sent_then, came_then)| (sent_then.min(sent), came_then.min(received)));
    let (datagrams, arrived) = settled.unwrap_or((sent, received));
    let lost = datagrams.saturating_sub(arrived);
    (datagrams > 0).then(|| UdpResult {
        datagrams,
        lost,
        loss: lost as f64 / datagrams as f64,
        duplicates: theirs.duplicates,
        out_of_order: theirs.out_of_order,
        jitter_us: theirs.jitter_us,
        payload_bytes: ours.payload_bytes,
        search: settled.map(|(sent_then, came_then)| UdpSearch {
            datagrams: sent - sent_then,
            lost: (sent - sent_then).saturating_sub(received - came_then),
        }),
        paused_ms: ours.paused_ms,
    })
}

fn cost(tally: &DirectionTally) -> CpuCost {
    CpuCost::of(tally.cpu, tally.count.bytes)
}

/// How sender and receiver moved the bytes, as far as they say it in words that we know.
fn data_paths((sender, receiver): (Option<&DirectionTally>, Option<&DirectionTally>)) -> DataPathOfEnds {
    let path = |tally: Option<&DirectionTally>| DataPath::from_word(tally?.data_path.as_ref()?.as_str());
    DataPathOfEnds { sender: path(sender), receiver: path(receiver) }
}

/// A direction of which the receiver tells its total alone.
fn whole(receiver: &DirectionTally) -> Option<stats::Throughput> {
    let Count { bytes, elapsed_us } = receiver.count;
    let goodput = (u128::from(bytes) * 8_000_000).checked_div(u128::from(elapsed_us)).filter(|bps| *bps > 0)?;
    let goodput_bps = u64::try_from(goodput).unwrap_or(u64::MAX);
    Some(stats::Throughput {
        goodput_bps,
        ci95_bps: None,
        p10: goodput_bps,
        p50: goodput_bps,
        p90: goodput_bps,
        bytes,
        steady: Duration::from_micros(elapsed_us),
        startup: Duration::ZERO,
        startup_found: false,
    })
}

/// What the sender counted between the same times by its own clock; absent where it told of none.
fn steady_part(sent: &[Sample], startup: Duration, steady: Duration) -> Option<u64> {
    let (from, until) = (startup.as_micros(), (startup + steady).as_micros());
    // A reading belongs to the steady part if most of its interval does.
    let half = u128::from(INTERVAL_MS) * 500;
    let inside = |sample: &&Sample| (from + half..=until + half).contains(&u128::from(sample.at_us));
    (!sent.is_empty()).then(|| bytes_of(sent.iter().filter(inside)))
}

/// Saturates: readings may be the other side's word.
fn bytes_of<'a>(samples: impl Iterator<Item = &'a Sample>) -> u64 {
    samples.fold(0, |sum, sample| sum.saturating_add(sample.bytes))
}

fn intervals(samples: &[Sample]) -> Vec<Interval> {
    let begins = std::iter::once(0).chain(samples.iter().map(|sample| sample.at_us));
    let reading = |(begin, sample): (u64, &Sample)| {
        let length_us = sample.at_us.saturating_sub(begin).max(1);
        let bps = u128::from(sample.bytes) * 8_000_000 / u128::from(length_us);
        Interval { at_ms: sample.at_us / 1000, bps: u64::try_from(bps).unwrap_or(u64::MAX) }
    };
    begins.zip(samples).map(reading).collect()
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
        loss_upload: known.then_some(summary.loss_upload),
        loss_download: known.then_some(summary.loss_download),
        duplicates: probes.duplicates,
        late: summary.late,
        transport,
        probe_late_us: Some(summary.probe_late_p99_us.into()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::DatagramTally;

    use super::*;

    fn record(load: Load) -> PhaseRecord {
        PhaseRecord::new(PhaseSpec { load, duration_ms: 1000 })
    }

    fn received(at_us: u64, bytes: u64) -> Progress {
        Progress::Received(Direction::Upload, Sample { at_us, bytes })
    }

    #[test]
    fn a_reading_counts_once_and_in_its_direction() {
        let mut upload = record(Load::Upload);
        let first = upload.note(&received(100_000, 5)).unwrap();
        assert_eq!((first.direction, first.length_us), (Direction::Upload, 100_000));
        assert_eq!(upload.note(&received(250_000, 5)).unwrap().length_us, 150_000);
        assert_eq!(upload.note(&received(250_000, 5)), None, "no time passed");
        assert_eq!(upload.note(&received(1, 5)), None, "time went back");
        let sample = Sample { at_us: 300_000, bytes: 5 };
        assert_eq!(upload.note(&Progress::Received(Direction::Download, sample)), None);
        assert_eq!(upload.note(&Progress::Sent(Direction::Upload, sample)), None, "what was sent is not what counts");
        assert_eq!((upload.received[1].len(), upload.received[0].len(), upload.sent[1].len()), (2, 0, 1));
        assert_eq!(record(Load::Idle).note(&received(1, 1)), None);
    }

    #[test]
    fn a_reading_of_the_sender_is_shown_until_the_receiver_tells_its_own() {
        let mut upload = PhaseRecord { shows_sent: true, ..record(Load::Upload) };
        let sent = |at_us| Progress::Sent(Direction::Upload, Sample { at_us, bytes: 5 });
        assert!(upload.note(&sent(100_000)).unwrap().by_sender);
        assert!(!upload.note(&received(100_000, 5)).unwrap().by_sender);
        assert_eq!(upload.note(&sent(200_000)), None);
    }

    #[test]
    fn readings_without_end_fill_no_memory_and_break_no_sum() {
        let mut upload = record(Load::Upload);
        let kept = (1..100_000).filter_map(|at| upload.note(&received(at, u64::MAX))).count();
        assert_eq!(kept, 2 * 10 + 64);
        assert_eq!(bytes_of(upload.received.iter().flatten()), u64::MAX);
        assert_eq!(steady_part(&upload.received[1], Duration::ZERO, Duration::MAX), Some(0));
    }

    fn of_datagrams(datagrams: DatagramTally) -> DirectionTally {
        DirectionTally { datagrams: Some(Box::new(datagrams)), ..DirectionTally::default() }
    }

    #[test]
    fn the_loss_of_a_search_is_told_apart_from_the_paths() {
        let sent = DatagramTally { sent: Some(1000), settled: Some(800), ..DatagramTally::default() };
        let came = DatagramTally {
            received: Some(900),
            settled: Some(796),
            settled_at_us: Some(1_200_000),
            duplicates: Some(1),
            ..DatagramTally::default()
        };
        let udp = datagrams(&of_datagrams(sent), &of_datagrams(came)).unwrap();
        assert_eq!((udp.datagrams, udp.lost, udp.duplicates), (800, 4, Some(1)));
        assert_eq!(udp.search, Some(UdpSearch { datagrams: 200, lost: 96 }));
        // A search that found nothing, and no search: all that was sent.
        for settled in [None, Some(0)] {
            let udp = datagrams(&of_datagrams(DatagramTally { settled, ..sent }), &of_datagrams(came)).unwrap();
            assert_eq!((udp.datagrams, udp.lost, udp.search), (1000, 100, None));
        }
    }

    #[test]
    fn what_an_end_claims_of_its_datagrams_breaks_no_sum() {
        let all = DatagramTally {
            payload_bytes: Some(u32::MAX),
            sent: Some(u64::MAX),
            received: Some(u64::MAX),
            settled: Some(u64::MAX),
            settled_at_us: Some(u64::MAX),
            ..DatagramTally::default()
        };
        let some = DatagramTally {
            sent: Some(5),
            received: Some(3),
            settled: Some(1),
            settled_at_us: Some(1),
            ..DatagramTally::default()
        };
        for (sender, receiver) in [(all, some), (some, all), (all, all)] {
            let udp = datagrams(&of_datagrams(sender), &of_datagrams(receiver)).unwrap();
            assert!(udp.lost <= udp.datagrams && (0.0..=1.0).contains(&udp.loss), "{udp:?}");
        }
        assert_eq!(datagrams(&of_datagrams(DatagramTally::default()), &of_datagrams(all)), None);
    }

    #[test]
    fn a_processor_is_never_more_than_full_whatever_the_reflector_says() {
        let cpu = CpuUse {
            user_s: -1.0,
            system_s: f64::MAX,
            busiest_thread: 1e300,
            host_busy: Some(-5.0),
            held_back: Some(7.0),
        };
        let mut upload = record(Load::Upload);
        upload.theirs(PhaseTally {
            upload: Some(DirectionTally { cpu, ..DirectionTally::default() }),
            ..PhaseTally::default()
        });
        let (_, receiver) = upload.ends(Direction::Upload);
        let cpu = receiver.unwrap().cpu;
        assert_eq!((cpu.user_s, cpu.busiest_thread, cpu.host_busy), (0.0, 1.0, Some(0.0)));
        assert_eq!(full(&cpu).unwrap(), "a control group held it back for 100 % of the time");
        let free = CpuUse { held_back: Some(0.01), ..cpu };
        assert_eq!(full(&free).unwrap(), "one thread used 100 % of a core");
    }
}
