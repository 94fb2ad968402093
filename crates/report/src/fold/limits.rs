//! Determines what limited each direction: gathers the observations of both ends for [`crate::limit`], and adds the
//! warnings that follow from its conclusion. Pure: no I/O, no clock.

use std::net::SocketAddr;

use paramedic_link::measurement::{DirectionTally, Duplex, HostFacts, InterfaceTraffic};
use paramedic_link::test_spec::{DataMode, Direction, Load, TestSpec};

use super::arrived::USUAL_SEGMENT;
use super::phase::PhaseRecord;
use super::rates::{TCP, UDP};
use super::warnings::has;
use crate::document::{LimitCause, LimitedBy, ObservedEnd, ResultDocument, ThroughputResult, Warning};
use crate::limit::{DatagramsLost, ENDS, InterfaceUse, LimitObservations, StreamShares, limited_by};
use crate::quantity;

/// The size of an Ethernet header, in bytes. The byte counters of a network interface include this header.
const ETHERNET_HEADER: u32 = 14;
/// In tunneled mode, the bytes on the network divided by the payload: TLS and the framing of the link add at most 2 %.
const FRAMING: f64 = 1.02;
/// The size of a latency probe at a network interface, in bytes, all headers included.
const PROBE_BYTES: f64 = 138.0;

/// Sets `limited_by` of every direction, and adds the warnings that follow from the limits.
pub(super) fn add(result: &mut ResultDocument, phases: &[PhaseRecord], spec: &TestSpec, address: SocketAddr) {
    let idle = phases.iter().find(|phase| phase.load == Load::Idle);
    for phase in phases {
        for direction in phase.load.directions() {
            let Some(measured) = result.measured(phase.load, *direction) else { continue };
            let of =
                LoadedDirection { result, phase, direction: *direction, measured, spec, is_ipv4: address.is_ipv4() };
            let limit = limited_by(&of.observations(idle));
            warn(result, phase.load, &limit, spec.window_bytes.is_some());
            if let Some(measured) = result.measured_mut(phase.load, *direction) {
                measured.limited_by = Some(limit);
            }
        }
    }
    slow_interfaces(result);
}

/// One direction of a phase, with the reports of both ends about this direction.
struct LoadedDirection<'a> {
    result: &'a ResultDocument,
    phase: &'a PhaseRecord,
    direction: Direction,
    measured: &'a ThroughputResult,
    spec: &'a TestSpec,
    is_ipv4: bool,
}

impl LoadedDirection<'_> {
    fn observations(&self, idle: Option<&PhaseRecord>) -> LimitObservations {
        let Self { result, phase, measured, .. } = self;
        let requested = result.requested.unwrap_or_default();
        let through = measured.total_bytes_sent.or(measured.total_bytes_received);
        let (sender, _) = phase.ends(self.direction);
        LimitObservations {
            goodput_bps: measured.goodput_bps,
            wire_bps: measured.line_rate_estimate.map(|line| line.rate_bps),
            requested_bps: requested.bitrate_bps(),
            requested_bytes: requested.direction_bytes.filter(|bytes| through >= Some(*bytes)),
            cpu: ENDS.map(|end| self.tally(end).map(|tally| tally.cpu)),
            interfaces: ENDS.map(|end| self.interface(end, idle)),
            streams: sender.and_then(|sender| sender.tcp_times).map(|times| {
                let share = |us: u64| (us as f64 / times.total_us as f64).min(1.0);
                StreamShares {
                    busy: share(times.busy_us),
                    receive_window: share(times.receive_window_us),
                    send_buffer: share(times.send_buffer_us),
                }
            }),
            retransmits: measured.retransmits,
            datagrams: measured.udp.map(|udp| {
                let search = udp.search.map_or((0, 0), |search| (search.lost, search.datagrams));
                DatagramsLost { lost: udp.lost.saturating_add(search.0), sent: udp.datagrams.saturating_add(search.1) }
            }),
            queue_ms: result.bufferbloat.of(phase.load).map(|bloat| bloat.increase_ms),
        }
    }

    /// The final counts of `end` for this direction; `None` if this end did not report them.
    fn tally(&self, end: ObservedEnd) -> Option<&DirectionTally> {
        let (sender, receiver) = self.phase.ends(self.direction);
        if self.is_received_at(end) { receiver } else { sender }
    }

    fn is_received_at(&self, end: ObservedEnd) -> bool {
        (end == ObservedEnd::Appliance) == (self.direction == Direction::Download)
    }

    fn interface(&self, end: ObservedEnd, idle: Option<&PhaseRecord>) -> InterfaceUse {
        let facts = match end {
            ObservedEnd::Appliance => self.result.appliance.facts_before.as_ref(),
            ObservedEnd::Reflector => self.result.reflector.as_ref().and_then(|end| end.facts_before.as_ref()),
        };
        InterfaceUse {
            speed_bps: facts.and_then(|facts| facts.interface_speed_bps),
            duplex: facts.and_then(|facts| facts.interface_duplex),
            other_bps: self.other_traffic(end),
            other_idle_bps: idle
                .and_then(|idle| idle.traffic(end))
                .map(|traffic| (self.carried_bps(traffic, end) - self.probes_bps(Load::Idle)).max(0.0)),
        }
    }

    /// The traffic at the network interface of `end` that did not belong to the test, in bits per second. `None` if the
    /// interface's traffic is unknown. Also `None` if the interface carried less than the payload of the test, because
    /// the test then used another interface.
    fn other_traffic(&self, end: ObservedEnd) -> Option<f64> {
        let (traffic, tally) = (self.phase.traffic(end)?, self.tally(end)?);
        let carried = self.carried_bps(traffic, end);
        let payload = tally.count.bytes as f64;
        if carried < bits_per_second(payload, traffic) {
            return None;
        }
        let segment = self.measured.mss.or_else(|| self.measured.udp?.payload_bytes).filter(|bytes| *bytes > 0);
        let segment = f64::from(segment.unwrap_or(USUAL_SEGMENT));
        let ip = if self.is_ipv4 { 20 } else { 40 };
        let transport = if self.measured.udp.is_some() { UDP } else { TCP };
        let headers = f64::from(ETHERNET_HEADER + ip + transport);
        let framing = if self.spec.data_mode == DataMode::Tunneled { FRAMING } else { 1.0 };
        let resent = self.measured.retransmits.unwrap_or_default() as f64 * segment;
        // In a bidirectional phase, this direction also carries the acknowledgements for the other direction: at most
        // one for each segment.
        let opposite = match self.direction {
            Direction::Download => Direction::Upload,
            Direction::Upload => Direction::Download,
        };
        let acknowledged = self.phase.ends(opposite).0.map_or(0.0, |tally| tally.count.bytes as f64);
        let own = (payload * framing + resent) * (segment + headers) / segment + acknowledged * headers / segment;
        Some((carried - bits_per_second(own, traffic) - self.probes_bps(self.phase.load)).max(0.0))
    }

    /// The traffic that the network interface of `end` carried in the direction of the payload, in bits per second.
    fn carried_bps(&self, traffic: InterfaceTraffic, end: ObservedEnd) -> f64 {
        let bytes = if self.is_received_at(end) { traffic.received_bytes } else { traffic.sent_bytes };
        bits_per_second(bytes as f64, traffic)
    }

    /// The rate of the latency probes at a network interface, in bits per second, in the phase with the given `load`.
    fn probes_bps(&self, load: Load) -> f64 {
        let interval_us = self.result.latency.of(load).and_then(|latency| latency.interval_us);
        interval_us.filter(|us| *us > 0).map_or(0.0, |us| PROBE_BYTES * 8.0 * 1e6 / us as f64)
    }
}

fn bits_per_second(bytes: f64, traffic: InterfaceTraffic) -> f64 {
    bytes * 8.0 / (traffic.elapsed_us.max(1) as f64 / 1e6)
}

/// Adds a warning if a processor, a socket buffer or other traffic limited the rate. A limit that the request itself
/// set is no reason for a warning.
fn warn(result: &mut ResultDocument, load: Load, limit: &LimitedBy, has_window: bool) {
    let shown = limit.evidence.first().map(|evidence| evidence.text.as_str()).unwrap_or_default();
    let (code, text) = match limit.cause {
        LimitCause::ApplianceCpu => {
            ("appliance_cpu", format!("this device's processor was full during the {load}: {shown}"))
        }
        LimitCause::ReflectorCpu => {
            ("reflector_cpu", format!("the reflector's processor was full during the {load}: {shown}"))
        }
        LimitCause::ReceiveWindow if !has_window => (
            "receive_window",
            format!(
                "during the {load} {shown}: raise net.ipv4.tcp_rmem of the receiving host, or use more streams (-P)"
            ),
        ),
        LimitCause::SendBuffer if !has_window => (
            "send_buffer",
            format!("during the {load} {shown}: raise net.ipv4.tcp_wmem of the sending host, or use more streams (-P)"),
        ),
        LimitCause::OtherTraffic => ("other_traffic", format!("during the {load} {shown}")),
        LimitCause::ReceiveWindow
        | LimitCause::SendBuffer
        | LimitCause::Network
        | LimitCause::LinkRate
        | LimitCause::Policy
        | LimitCause::Unknown => return,
    };
    if !has(result, code) {
        result.warnings.push(Warning::new(code, text + "; the path may carry more than was measured"));
    }
}

/// Adds a warning for each network interface that runs below its supported speed or in half duplex. The cause is often
/// a bad cable.
fn slow_interfaces(result: &mut ResultDocument) {
    let reflector = result.reflector.as_ref().and_then(|reflector| reflector.facts_before.as_ref());
    let ends = ENDS.into_iter().zip([result.appliance.facts_before.as_ref(), reflector]);
    let slow = ends.filter_map(|(end, facts)| slow_interface(end, facts?)).collect::<Vec<_>>();
    result.warnings.extend(slow);
}

fn slow_interface(end: ObservedEnd, facts: &HostFacts) -> Option<Warning> {
    let (code, whose) = match end {
        ObservedEnd::Appliance => ("appliance_interface", "this device's"),
        ObservedEnd::Reflector => ("reflector_interface", "the reflector's"),
    };
    let name = facts.interface.as_ref().map(ToString::to_string).unwrap_or_default();
    let speed = facts.interface_speed_bps?;
    let at = quantity::rate(speed);
    let most = facts.interface_max_speed_bps.filter(|most| *most > speed).map(quantity::rate);
    let is_half = facts.interface_duplex == Some(Duplex::Half);
    let fault = match (most, is_half) {
        (Some(most), true) => format!("{at} in half duplex, and supports {most}"),
        (Some(most), false) => format!("{at}, and supports {most}"),
        (None, true) => format!("{at} in half duplex"),
        (None, false) => return None,
    };
    let text = format!("{whose} interface {name} runs at {fault}: check the cable, and the port at its other end");
    Some(Warning::new(code, text))
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::{Count, CpuUse, PhaseTally, TcpTimes};
    use paramedic_link::test_spec::{EngineId, PhaseSpec};

    use super::*;
    use crate::document::{Bufferbloat, ByLoad, example};

    /// A download of 10 s at 20 Mbit/s that the path limits. The interfaces carried `other` bytes beyond the test's
    /// own.
    fn download(other: u64) -> (PhaseRecord, PhaseRecord, ResultDocument) {
        let bytes = 25_000_000;
        let cpu = CpuUse { runnable: Some(0.1), run_queue_wait: Some(0.0), ..CpuUse::default() };
        let times = TcpTimes { total_us: 40_000_000, busy_us: 39_000_000, ..TcpTimes::default() };
        let tally = |received_bytes, sent_bytes| PhaseTally {
            download: Some(DirectionTally {
                count: Count { bytes, elapsed_us: 10_000_000 },
                cpu,
                tcp_times: Some(times),
                ..DirectionTally::default()
            }),
            interface: Some(InterfaceTraffic { received_bytes, sent_bytes, elapsed_us: 10_000_000 }),
            ..PhaseTally::default()
        };
        // Each packet of 1,514 bytes has 1,448 bytes of payload.
        let carried = bytes * 1_514 / 1_448 + other;
        let mut phase = PhaseRecord::new(PhaseSpec { load: Load::Download, duration_ms: 10_000 });
        phase.own = Some(tally(carried, 500_000));
        phase.set_theirs(tally(500_000, carried));
        let mut idle = PhaseRecord::new(PhaseSpec { load: Load::Idle, duration_ms: 2_000 });
        let traffic = InterfaceTraffic { received_bytes: other / 5, sent_bytes: 27_600, elapsed_us: 2_000_000 };
        idle.own = Some(PhaseTally { interface: Some(traffic), ..PhaseTally::default() });
        let mut result = example::full();
        result.warnings.clear();
        result.download.as_mut().unwrap().limited_by = None;
        result.download.as_mut().unwrap().udp = None;
        result.download.as_mut().unwrap().goodput_bps = 20_000_000;
        result.download.as_mut().unwrap().line_rate_estimate = None;
        result.bufferbloat = ByLoad { download: Some(Bufferbloat::of_increase_ms(20.0)), ..ByLoad::default() };
        (idle, phase, result)
    }

    fn concluded(
        change: impl FnOnce(&mut PhaseRecord, &mut ResultDocument, &mut TestSpec),
        other: u64,
    ) -> ResultDocument {
        let (idle, mut phase, mut result) = download(other);
        let engine = EngineId::try_from("tcp").unwrap();
        let mut spec = TestSpec::new(engine, DataMode::DirectEphemeral, vec![], 4);
        change(&mut phase, &mut result, &mut spec);
        add(&mut result, &[idle, phase], &spec, "192.0.2.1:4000".parse().unwrap());
        result
    }

    fn cause(result: &ResultDocument) -> LimitCause {
        result.download.as_ref().unwrap().limited_by.as_ref().unwrap().cause
    }

    fn warned(result: &ResultDocument) -> Vec<&str> {
        result.warnings.iter().map(|warning| warning.code.as_str()).collect()
    }

    #[test]
    fn only_what_is_not_of_this_test_is_other_traffic() {
        let alone = concluded(|_, _, _| {}, 0);
        assert_eq!((cause(&alone), warned(&alone)), (LimitCause::Network, vec![]));
        // Other traffic of 20 Mbit/s beside the test.
        let beside = concluded(|_, _, _| {}, 25_000_000);
        assert_eq!((cause(&beside), warned(&beside)), (LimitCause::OtherTraffic, vec!["other_traffic"]));
        let limit = beside.download.unwrap().limited_by.unwrap();
        let text = &limit.evidence[0].text;
        assert!(text.starts_with("other traffic took 19.9 Mbit/s of "), "{text}");
        assert!(limit.evidence.iter().any(|evidence| evidence.name == "other_idle_bps"), "{limit:#?}");
        // The counters of an interface that did not carry the test show nothing about other traffic.
        let elsewhere = concluded(
            |phase, _, _| {
                phase.own.as_mut().unwrap().interface.as_mut().unwrap().received_bytes = 1_000_000;
            },
            0,
        );
        assert_eq!(cause(&elsewhere), LimitCause::Network);
    }

    #[test]
    fn a_window_is_warned_of_unless_it_was_requested() {
        let windowed = |is_requested: bool| {
            concluded(
                |phase, result, spec| {
                    let times = TcpTimes { total_us: 100, busy_us: 99, receive_window_us: 95, send_buffer_us: 0 };
                    let mut theirs = phase.own.clone().unwrap();
                    theirs.download.as_mut().unwrap().tcp_times = Some(times);
                    phase.set_theirs(theirs);
                    result.bufferbloat = ByLoad::default();
                    spec.window_bytes = is_requested.then_some(16_384);
                },
                0,
            )
        };
        let [unasked, asked] = [false, true].map(windowed);
        assert_eq!((cause(&unasked), warned(&unasked)), (LimitCause::ReceiveWindow, vec!["receive_window"]));
        assert_eq!((cause(&asked), warned(&asked)), (LimitCause::ReceiveWindow, vec![]));
    }

    #[test]
    fn bytes_that_were_through_are_a_policy_and_others_are_not() {
        let requested = |bytes| {
            concluded(
                |_, result, _| {
                    result.requested.as_mut().unwrap().direction_bytes = Some(bytes);
                    result.download.as_mut().unwrap().total_bytes_sent = Some(25_000_000);
                },
                0,
            )
        };
        assert_eq!(cause(&requested(25_000_000)), LimitCause::Policy);
        assert_eq!(cause(&requested(25_000_001)), LimitCause::Network);
    }

    #[test]
    fn an_interface_below_its_speed_is_named_with_its_cure() {
        let facts = |speed, most, interface_duplex| HostFacts {
            interface: Some("eth0".into()),
            interface_speed_bps: Some(speed),
            interface_max_speed_bps: most,
            interface_duplex,
            ..HostFacts::default()
        };
        let (slow, gigabit) = (100_000_000, Some(1_000_000_000));
        let text = |facts| slow_interface(ObservedEnd::Appliance, &facts).map(|warning| warning.text);
        assert_eq!(
            text(facts(slow, gigabit, Some(Duplex::Full))).unwrap(),
            "this device's interface eth0 runs at 100 Mbit/s, and supports 1.00 Gbit/s: check the cable, and the port at \
             its other end"
        );
        assert!(text(facts(slow, None, Some(Duplex::Half))).unwrap().contains("100 Mbit/s in half duplex: check"));
        assert!(text(facts(slow, gigabit, Some(Duplex::Half))).unwrap().contains("half duplex, and supports 1.00"));
        assert_eq!(text(facts(1_000_000_000, gigabit, Some(Duplex::Full))), None);
        assert_eq!(text(facts(slow, None, None)), None);
        assert_eq!(text(HostFacts { interface_max_speed_bps: gigabit, ..HostFacts::default() }), None);
    }

    #[test]
    fn a_full_processor_is_warned_of_once() {
        let full = concluded(
            |phase, _, _| {
                let cpu = &mut phase.own.as_mut().unwrap().download.as_mut().unwrap().cpu;
                cpu.held_back = Some(0.9);
            },
            25_000_000,
        );
        assert_eq!((cause(&full), warned(&full)), (LimitCause::ApplianceCpu, vec!["appliance_cpu"]));
        assert_eq!(
            full.warnings[0].text,
            "this device's processor was full during the download: a control group throttled the program for 90 % of \
             the time; the path may carry more than was measured"
        );
    }
}
