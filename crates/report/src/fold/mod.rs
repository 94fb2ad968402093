//! Builds the result document from the samples and tallies (final counts) of both ends, also for a run that ended
//! early. Times, ids and host facts are arguments. Pure: no I/O, no clock.

mod arrived;
mod claims;
mod early_end;
mod limits;
mod one_way;
mod phase;
mod rates;
mod series;
mod warnings;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::measurement::{DatagramsSeen, HostFacts, Probe};
use paramedic_link::test_spec::{Direction, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::{EndpointId, PeerText};
use uuid::Uuid;

use crate::document::{
    ApplianceEnd, BidirResult, Bufferbloat, ByLoad, DataModeFallback, DataPath, ErrorBody, LatencyResult, LossPattern,
    Omitted, ProbeTransport, ProgramSaid, ReflectorEnd, RequestedLimits, ResultDocument, ResultSchema, RttSpread,
    ServerEnd, UplinkLabel, Validity, Warning,
};
use crate::stats;

use one_way::PhaseWindow;

pub use claims::{Impossible, count as check_count, received_of_sent};
pub use phase::{CountedReading, DataEnd, PhaseRecord, ProbeSchedule};

/// If the 99th percentile of the prober's lateness is above this many microseconds, the result has a warning: a late
/// prober samples busy moments less often.
const LATE_PROBE_US: u32 = 5_000;

/// The options of the request that affect how a result is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldOptions {
    /// The length of the start-up to exclude from the result; `None` to detect the start-up.
    pub omit: Option<Duration>,
    /// Whether the result includes the measurements of every interval.
    pub intervals: bool,
    /// The byte budget of the run, of which each direction may use a share; `None` without a budget.
    pub budget_bytes: Option<u64>,
    /// Whether a direction may end early once its rate is stable.
    pub until_stable: bool,
}

/// What is known about a run before the appliance reaches the other end.
#[derive(Clone, Debug)]
pub struct RunIdentity {
    /// The id of the run, a UUIDv7.
    pub id: Uuid,
    /// The id of the provider (kind of test server) that runs the test, such as `reflector` or `iperf3`.
    pub provider: String,
    /// The engine that the request names.
    pub engine: EngineId,
    /// The other end, as the request names it.
    pub peer: Option<String>,
    /// When the run began, by the appliance's clock.
    pub started_at: Timestamp,
    /// The appliance's Endpoint ID; `None` for an anonymous run.
    pub appliance: Option<EndpointId>,
    /// The version of the appliance's program.
    pub version: String,
}

/// A direction of a completed phase that has no result, because too little payload arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptyDirection {
    /// The load of the phase.
    pub load: Load,
    /// The direction of the payload.
    pub direction: Direction,
    /// The time since the start of the phase at which the payload stopped; `None` if almost no payload ever arrived.
    pub stopped_after: Option<Duration>,
}

/// Whether a run completed, and if not, why.
#[derive(Clone, Debug, PartialEq)]
pub enum RunEnd {
    /// The run completed every phase.
    Complete,
    /// A signal at the appliance ended the run.
    Interrupted,
    /// An error ended the run.
    Failed(ErrorBody),
}

/// The latency probes of all phases of a run.
pub struct ProbeLog<'a> {
    /// The transport protocol of the probes; absent if neither UDP nor TCP worked.
    pub transport: Option<ProbeTransport>,
    /// The number of probes and replies that arrived more than once.
    pub duplicates: u64,
    /// The payload bytes of all probes that the appliance sent.
    pub bytes: u64,
    /// The size of one probe's IP packet, in bits.
    pub packet_bits: u64,
    /// Returns the probes that were sent from one time of the prober's clock up to another (exclusive), in the order
    /// sent.
    pub within: Box<dyn Fn(Duration, Duration) -> ProbeWindow<'a> + 'a>,
    /// Returns how late the prober was, in microseconds, for each skipped probe that was due between two times.
    pub skipped_within: Box<dyn Fn(Duration, Duration) -> Vec<u32> + 'a>,
}

/// The probes of one part of a run, in the order sent.
pub type ProbeWindow<'a> = Box<dyn Iterator<Item = Probe> + 'a>;

/// Collects what both ends report during a run, and builds its result document.
pub struct ResultBuilder {
    run: RunIdentity,
    options: FoldOptions,
    agreed: Option<AgreedTest>,
    reflector_facts: [Option<HostFacts>; 2],
    own_facts: [Option<HostFacts>; 2],
    phases: Vec<PhaseRecord>,
    /// The name and version of the external program that moved the payload.
    program: Option<String>,
    /// The data mode that the test tried first and could not use.
    fallback: Option<DataModeFallback>,
    /// The payload bytes of phases that were discarded because the test began again.
    discarded_bytes: u64,
    /// The numbers of UDP datagrams that reached the reflector during the session; `None` if not reported.
    datagrams: Option<DatagramsSeen>,
    /// The segment size in bytes to which the link (the connection to the reflector) had to be limited, because the
    /// path drops larger packets; `None` if there was no need.
    segment_limit: Option<u16>,
    /// The network interface and the public prefix through which the appliance reaches the Internet.
    uplink: UplinkLabel,
    /// How far the wall clock moved against the monotonic clock during the run, in milliseconds.
    wall_clock_moved_ms: i64,
}

/// The other end of a run, and the test on which both ends agreed.
struct AgreedTest {
    other_end: OtherEnd,
    address: SocketAddr,
    spec: TestSpec,
    /// The length of the start-up that an external program (iperf3) left out of all figures that it reports; zero with
    /// a reflector.
    left_out: Duration,
}

enum OtherEnd {
    Reflector { id: EndpointId, name: PeerText, version: PeerText },
    Server { name: String },
}

impl ResultBuilder {
    /// A builder for a run that has not measured anything yet.
    pub fn new(run: RunIdentity, options: FoldOptions) -> Self {
        Self {
            run,
            options,
            agreed: None,
            reflector_facts: [None, None],
            own_facts: [None, None],
            phases: vec![],
            program: None,
            fallback: None,
            discarded_bytes: 0,
            datagrams: None,
            segment_limit: None,
            uplink: UplinkLabel::default(),
            wall_clock_moved_ms: 0,
        }
    }

    /// The identity of the run.
    pub fn run(&self) -> &RunIdentity {
        &self.run
    }

    /// Sets the name of the other end, for a request that does not name the other end.
    pub fn set_peer(&mut self, name: String) {
        self.run.peer = Some(name);
    }

    /// Sets the reflector of the run (its Endpoint ID, saved name, version and address), and the test that the
    /// reflector granted.
    pub fn set_reflector(
        &mut self,
        id: EndpointId,
        name: PeerText,
        version: PeerText,
        address: SocketAddr,
        spec: TestSpec,
    ) {
        let other_end = OtherEnd::Reflector { id, name, version };
        self.agreed = Some(AgreedTest { other_end, address, spec, left_out: Duration::ZERO });
    }

    /// Sets the server of the run, which is not a reflector. `name` is the server's host as the user named it, with the
    /// port. `left_out` is the length of the start-up that the external program leaves out of the figures that it
    /// reports.
    pub fn set_server(&mut self, name: String, address: SocketAddr, spec: TestSpec, left_out: Duration) {
        self.agreed = Some(AgreedTest { other_end: OtherEnd::Server { name }, address, spec, left_out });
    }

    /// Sets the segment size in bytes to which the link (the connection to the reflector) had to be limited, because
    /// the path drops larger packets; `None` if there was no need.
    pub fn set_segment_limit(&mut self, bytes: Option<u16>) {
        self.segment_limit = bytes;
    }

    /// Sets the name of the network interface that has the IPv4 default route; `None` without such a route.
    pub fn set_default_interface(&mut self, interface: Option<String>) {
        self.uplink.interface = interface;
    }

    /// Sets the address of the appliance as the reflector sees it, after every NAT.
    pub fn set_observed_address(&mut self, address: IpAddr) {
        self.uplink.set_observed(address);
    }

    /// Sets how far the wall clock of the appliance's host moved against its monotonic clock during the run, in
    /// milliseconds.
    pub fn set_wall_clock_moved(&mut self, ms: i64) {
        self.wall_clock_moved_ms = ms;
    }

    /// Sets the name and version of the external program that moves the payload; `None` for a built-in engine.
    pub fn set_program(&mut self, program: Option<String>) {
        self.program = program;
    }

    /// Sets the state of both hosts before the first phase. A server that is not a reflector does not report its state.
    pub fn set_facts_before(&mut self, own: HostFacts, reflector: Option<HostFacts>) {
        (self.own_facts[0], self.reflector_facts[0]) = (Some(own), reflector);
    }

    /// Sets the state of both hosts after the last phase. A server that is not a reflector does not report its state.
    pub fn set_facts_after(&mut self, own: HostFacts, reflector: Option<HostFacts>) {
        (self.own_facts[1], self.reflector_facts[1]) = (Some(own), reflector);
    }

    /// Sets the data mode that the test tried first, and why it could not be used.
    pub fn set_data_mode_fallback(&mut self, fallback: DataModeFallback) {
        self.fallback = Some(fallback);
    }

    /// Sets the numbers of UDP datagrams that reached the reflector during the session.
    pub fn set_datagrams(&mut self, seen: DatagramsSeen) {
        self.datagrams = Some(seen);
    }

    /// Discards all phases, because the test begins again in another data mode. `data_used_bytes` still includes the
    /// bytes of the discarded phases and of their probes (`probe_bytes`).
    pub fn discard_phases(&mut self, probe_bytes: u64) {
        self.discarded_bytes = self.phase_bytes().saturating_add(probe_bytes);
        self.phases.clear();
    }

    /// Adds the record of a phase that begins, and returns this record.
    pub fn begin_phase(&mut self, phase: PhaseSpec) -> &mut PhaseRecord {
        self.phases.push(PhaseRecord::new(phase));
        let last = self.phases.len() - 1;
        &mut self.phases[last]
    }

    /// The directions of completed phases in which too little payload arrived, or in which the payload stopped. Such
    /// directions have no result and make the run incomplete.
    pub fn directions_without_payload(&self) -> Vec<EmptyDirection> {
        let Some(agreed) = &self.agreed else { return vec![] };
        let whole = self.phases.iter().filter(|phase| phase.is_counted());
        let all = whole.flat_map(|phase| phase.load.directions().iter().map(move |direction| (phase, *direction)));
        let empty = all.filter(|(phase, direction)| rates::has_moved_nothing(phase, *direction, &agreed.spec));
        let described = |(phase, direction): (&PhaseRecord, Direction)| EmptyDirection {
            load: phase.load,
            direction,
            stopped_after: rates::stopped_after(phase, direction),
        };
        empty.map(described).collect()
    }

    /// Builds the result document, also for a run that measured nothing.
    pub fn finish(mut self, finished_at: Timestamp, end: RunEnd, probes: Option<&ProbeLog<'_>>) -> ResultDocument {
        let agreed = self.agreed.take();
        let (reflector, server) = match agreed.as_ref().map(|agreed| (&agreed.other_end, agreed.address)) {
            None => (None, None),
            Some((OtherEnd::Reflector { id, name, version }, address)) => {
                let [facts_before, facts_after] = std::mem::take(&mut self.reflector_facts);
                let (endpoint_id, address) = (*id, address.to_string());
                let (name, version) = (name.clone(), version.clone());
                (Some(ReflectorEnd { endpoint_id, name, address, version, facts_before, facts_after }), None)
            }
            Some((OtherEnd::Server { name }, _)) => (None, Some(ServerEnd { address: name.clone() })),
        };
        let mut result = ResultDocument {
            schema: ResultSchema::V1,
            id: self.run.id,
            started_at: self.run.started_at,
            finished_at,
            provider: self.run.provider.clone(),
            engine: agreed.as_ref().map_or_else(|| self.run.engine.clone(), |agreed| agreed.spec.engine.clone()),
            data_mode: agreed.as_ref().filter(|_| reflector.is_some()).map(|agreed| agreed.spec.data_mode),
            data_mode_fallback: self.fallback.take(),
            data_path: self.data_path(),
            requested: agreed.as_ref().map(|agreed| self.requested(&agreed.spec)),
            appliance: ApplianceEnd {
                endpoint_id: self.run.appliance.unwrap_or(EndpointId::NONE),
                anonymous: self.run.appliance.is_none(),
                version: self.run.version.clone(),
                facts_before: self.own_facts[0].take(),
                facts_after: self.own_facts[1].take(),
            },
            uplink: self.uplink.clone(),
            program: self.program.take().map(|version| ProgramSaid { version, raw: self.raw() }),
            peer: self.run.peer.clone(),
            reflector,
            server,
            download: None,
            upload: None,
            bidir: None,
            latency: Default::default(),
            bufferbloat: Default::default(),
            clocks: None,
            thresholds: vec![],
            data_used_bytes: self.data_used(probes),
            warnings: vec![],
            validity: None,
            complete: end == RunEnd::Complete,
            interrupted: end == RunEnd::Interrupted,
            error: match end {
                RunEnd::Failed(error) => Some(error),
                RunEnd::Complete | RunEnd::Interrupted => None,
            },
        };
        warnings::tunnel(&mut result);
        warnings::wall_clock(&mut result, self.wall_clock_moved_ms);
        let Some(agreed) = agreed else { return result };
        let overhead = rates::line_overhead(&result, agreed.address);
        for phase in &self.phases {
            let measured =
                |direction| rates::throughput(phase, direction, &agreed.spec, &self.options, overhead, agreed.left_out);
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
            let text = if agreed.spec.direction_bytes.is_some() {
                "the bytes of -n or --budget had arrived before the start-up could be detected, so the rate \
                 includes the start-up"
            } else {
                "the server reports only its total, so the upload's rate includes the start-up; -O excludes it"
            };
            result.warnings.push(Warning::new("startup_included", text));
        }
        if let Some(probes) = probes {
            self.add_latency(&mut result, probes);
        }
        warnings::small_segments(&mut result, self.segment_limit);
        limits::add(&mut result, &self.phases, &agreed.spec, agreed.address);
        warnings::add(&mut result, &self.phases);
        let is_counted_by_program = result.program.is_some() || result.server.is_some();
        warnings::steady_counts(&mut result, is_counted_by_program);
        // A budget only limits the bytes: a run that moves fewer bytes gets no warning.
        warnings::bytes_left(&mut result, agreed.spec.direction_bytes.filter(|_| self.options.budget_bytes.is_none()));
        if self.options.until_stable && !agreed.spec.may_stop {
            warnings::full_time(&mut result);
        }
        warnings::unsteady(&mut result);
        result.validity = Some(Validity::of(&result.warnings, result.complete));
        result
    }

    /// The external program's output for each phase whose output was kept. Output that is valid JSON becomes a JSON
    /// value, other output a string.
    fn raw(&mut self) -> ByLoad<serde_json::Value> {
        let mut raw = ByLoad::default();
        for phase in &mut self.phases {
            if let Some(text) = phase.raw.take() {
                raw.set(phase.load, serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)));
            }
        }
        raw
    }

    /// All payload bytes that passed the appliance's sockets: the bytes of the phases, of the probes, and of discarded
    /// phases.
    fn data_used(&self, probes: Option<&ProbeLog<'_>>) -> u64 {
        let probe_bytes = probes.map_or(0, |probes| probes.bytes);
        self.phase_bytes().saturating_add(probe_bytes).saturating_add(self.discarded_bytes)
    }

    fn phase_bytes(&self) -> u64 {
        let phases = self.phases.iter().map(|phase| match &phase.own {
            Some(own) => own.bytes(),
            // The phase failed before the tally was made, so the samples are counted.
            None => rates::bytes_of(phase.received.iter().flatten()),
        });
        phases.fold(0, u64::saturating_add)
    }

    /// The limits that the request set. If the request set no rate for datagrams, the default rate counts as the limit.
    fn requested(&self, spec: &TestSpec) -> RequestedLimits {
        let rates = self.phases.iter().flat_map(|phase| {
            phase.load.directions().iter().filter_map(|direction| rates::requested_bitrate(phase, *direction, spec))
        });
        RequestedLimits {
            streams: spec.streams,
            stream_bitrate_bps: rates.max(),
            window_bytes: spec.window_bytes,
            direction_bytes: spec.direction_bytes,
            budget_bytes: self.options.budget_bytes,
            until_stable: self.options.until_stable,
        }
    }

    fn data_path(&self) -> Option<DataPath> {
        let directions = self.phases.iter().flat_map(|phase| phase.load.directions().iter().map(|d| phase.ends(*d)));
        directions.map(rates::data_paths).find_map(|paths| paths.in_short())
    }

    fn add_latency(&self, result: &mut ResultDocument, probes: &ProbeLog<'_>) {
        let Some(transport) = probes.transport else { return };
        let mut windows = Vec::new();
        for phase in &self.phases {
            let Some(begun) = phase.begun_at else { continue };
            // Uses only the steady part of the load, because the path is almost idle during the start-up.
            let startup = match phase.load {
                Load::Download => result.download.as_ref(),
                Load::Upload => result.upload.as_ref(),
                Load::Bidir => result.bidir.as_ref().and_then(|bidir| bidir.download.as_ref()),
                Load::Idle | Load::Unknown => None,
            };
            let from = begun + startup.map_or(Duration::ZERO, |measured| Duration::from_millis(measured.startup_ms));
            let from = phase.probe_schedule.map_or(from, |schedule| schedule.from.max(from));
            let until = (begun + phase.planned_span()).min(phase.ended_at.unwrap_or(Duration::MAX));
            let window = (probes.within)(from, until);
            let Some(summary) = stats::latency(window, (probes.skipped_within)(from, until)) else { continue };
            if u64::from(summary.probe_late_p99_us) > u64::from(LATE_PROBE_US) && !warnings::has(result, "probe_late") {
                result.warnings.push(Warning::new(
                    "probe_late",
                    format!(
                        "this device sent 1 in 100 latency probes {} ms late or more: short spikes may be missing",
                        summary.probe_late_p99_us / 1000
                    ),
                ));
            }
            let mut measured = latency(&summary, probes.duplicates, transport);
            if result.has_load(phase.load) {
                measured.responsiveness_rpm = measured.median_us().map(stats::round_trips_per_minute);
            }
            if let Some(schedule) = phase.probe_schedule {
                measured.interval_us = u64::try_from(schedule.interval.as_micros()).ok();
                measured.rate_share = probe_share(result, phase.load, probes.packet_bits, schedule.interval);
            }
            result.latency.set(phase.load, measured);
            windows.push(PhaseWindow { load: phase.load, begun, from, until });
        }
        if transport == ProbeTransport::Tcp {
            warnings::udp_blocked(result, self.datagrams);
        }
        let clocks = one_way::add(result, &windows, probes);
        if self.options.intervals {
            series::add(result, &self.phases, probes, clocks.as_ref());
        }
        warnings::lost_probes(result);
        warnings::skipped_probes(result);
        warnings::probe_load(result);
        let Some(idle) = result.latency.idle.as_ref().and_then(LatencyResult::median_us) else { return };
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            // Without payload in every direction of the load, the latency does not show the queue of that load.
            let Some(loaded) = result.latency.of(load).and_then(LatencyResult::median_us) else { continue };
            let is_same_path = |window: &PhaseWindow| clocks.is_none_or(|clocks| clocks.has_same_path(window));
            let window = windows.iter().find(|window| window.load == load);
            if result.has_load(load) && window.is_none_or(is_same_path) {
                let increase_ms = (loaded as f64 - idle as f64) / 1000.0;
                result.bufferbloat.set(load, Bufferbloat::of_increase_ms(increase_ms));
            }
        }
    }
}

/// The rate of the probes divided by the goodput of the slowest direction that the phase loads; `None` if a direction
/// was not measured. The IP packet of each probe has `bits` bits, and `interval` is the time between two probes.
fn probe_share(result: &ResultDocument, load: Load, bits: u64, interval: Duration) -> Option<f64> {
    let rates = load.directions().iter().map(|direction| Some(result.measured(load, *direction)?.goodput_bps));
    let slowest = rates.collect::<Option<Vec<_>>>()?.into_iter().min()?;
    let share = bits as f64 / interval.as_secs_f64() / slowest as f64;
    share.is_finite().then_some(share)
}

fn latency(summary: &stats::LatencySummary, duplicates: u64, transport: ProbeTransport) -> LatencyResult {
    // Over TCP, a lost probe is retransmitted: it arrives late instead of counting as lost.
    let known = transport == ProbeTransport::Udp;
    LatencyResult {
        rtt_us: summary.rtt.map(|rtt| RttSpread {
            min: rtt.min_us.into(),
            mean: rtt.mean_us.round() as u64,
            p50: rtt.p50_us.map(u64::from),
            p90: rtt.p90_us.map(u64::from),
            p95: rtt.p95_us.map(u64::from),
            p99: rtt.p99_us.map(u64::from),
            p999: rtt.p999_us.map(u64::from),
            max: rtt.max_us.into(),
        }),
        jitter_us: summary.rtt.and_then(|rtt| rtt.jitter_us).map(|jitter| jitter.round() as u64),
        sent: summary.sent,
        received: summary.received,
        skipped: summary.skipped,
        loss: known.then_some(summary.loss),
        loss_upload: summary.loss_upload.filter(|_| known),
        loss_download: summary.loss_download.filter(|_| known),
        loss_pattern: summary.loss_pattern.filter(|_| known).map(|pattern| LossPattern {
            periods: pattern.periods,
            longest_probes: pattern.longest_probes,
            longest_ms: u64::try_from(pattern.longest.as_millis()).unwrap_or(u64::MAX),
        }),
        duplicates,
        late: summary.late,
        transport,
        probe_late_us: Some(summary.probe_late_p99_us.into()),
        interval_us: None,
        rate_share: None,
        responsiveness_rpm: None,
        one_way: None,
        own_wait: None,
        queue: None,
        intervals: None,
    }
}
