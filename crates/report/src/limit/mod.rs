//! Determines what limited the rate of a direction: takes named observations, and returns a cause with its evidence.
//! The network is never the cause without evidence. Pure: no I/O, no clock.

#[cfg(test)]
mod cases;
mod evidence;

use paramedic_link::measurement::{CpuUse, Duplex};

use crate::document::{LimitCause, LimitEvidence, LimitedBy, ObservedEnd};
use crate::stats;

/// A rate of at least this share of the requested rate counts as the requested rate.
const AS_REQUESTED: f64 = 0.98;
/// If the TCP streams waited for the path, or for socket buffers, for at least this share of the time, the path or the
/// buffers limited the rate.
const MOST: f64 = 0.5;
/// If no segment was lost, socket buffers are the limit from this share of the time on, instead of from [`MOST`] on.
/// The share is lower because the kernel does not count all the time in which a stream waits for a buffer: the kernel
/// counts only while it has data to send, or knows that the program waits.
const CONSIDERABLE: f64 = 0.2;
/// If the receiver's window stopped the TCP streams for at least this share of the time, a larger send buffer alone
/// would have no effect.
const REACHED: f64 = 0.1;
/// A thread or core that is busy for at least this share of the time may have been the limit.
const NEARLY_FULL: f64 = 0.85;
/// An increase of the latency by at least this many milliseconds shows a queue in the path.
const QUEUE_MS: f64 = 1.0;
/// An increase of the latency counts as a queue only if it is at least the time in which this many packets are sent at
/// the measured rate. Even on a free line, a probe may wait for one or two packets.
const QUEUE_PACKETS: f64 = 3.0;
/// The size of a full-sized Ethernet packet, in bits (1,500 bytes).
const PACKET_BITS: f64 = 12_000.0;
/// Other traffic counts as the cause if it is at least this share of an interface's traffic.
const OTHER_SHARE: f64 = 0.1;
/// Other traffic below this rate, in bits per second, is ignored, because every host sends that much.
const OTHER_BPS: f64 = 100_000.0;
/// A network interface that carries at least this share of its speed is full. [`FULL_IN_HALF_DUPLEX`] is lower, because
/// acknowledgements use the same medium.
const FULL: f64 = 0.95;
const FULL_IN_HALF_DUPLEX: f64 = 0.7;
/// If a network interface carries more than this share of its reported speed, it is faster than its driver reports.
const UNREAL: f64 = 1.1;

/// The two ends of a test, in the order in which the arrays of [`LimitObservations`] have them.
pub const ENDS: [ObservedEnd; 2] = [ObservedEnd::Appliance, ObservedEnd::Reflector];

/// The observations of both ends while one direction was measured. They may show what limited the rate. An unknown
/// value is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitObservations {
    /// The payload rate at the receiver, in bits per second.
    pub goodput_bps: u64,
    /// The rate on the wire in bits per second: the payload with all headers.
    pub wire_bps: Option<u64>,
    /// The requested rate of all streams together, in bits per second.
    pub requested_bps: Option<u64>,
    /// The requested number of bytes, if the direction ended because it had moved these bytes.
    pub requested_bytes: Option<u64>,
    /// The processor use of the appliance and of the other end, while the direction was measured.
    pub cpu: [Option<CpuUse>; 2],
    /// The use of the appliance's network interface, and of the other end's network interface.
    pub interfaces: [InterfaceUse; 2],
    /// What the sender's TCP streams waited for; absent for datagrams.
    pub streams: Option<StreamShares>,
    /// The number of retransmitted TCP segments.
    pub retransmits: Option<u64>,
    /// The number of lost datagrams; absent with TCP.
    pub datagrams: Option<DatagramsLost>,
    /// The increase of the median round trip under the load over the idle median, in milliseconds.
    pub queue_ms: Option<f64>,
}

/// What the TCP streams of a sender waited for, as shares of their time (0 to 1).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamShares {
    /// The share of the time in which data was unsent or not acknowledged.
    pub busy: f64,
    /// The part of `busy` in which the receiver's window stopped the stream.
    pub receive_window: f64,
    /// The part of `busy` in which the size of the send buffer stopped the stream.
    pub send_buffer: f64,
}

/// How many datagrams of a direction were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramsLost {
    /// The number of lost datagrams, including those of a search for the highest rate.
    pub lost: u64,
    /// The number of sent datagrams, including those of a search for the highest rate.
    pub sent: u64,
}

/// The use of an end's network interface while one direction was measured. Rates count the traffic in the direction of
/// the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InterfaceUse {
    /// The speed that the interface's driver reports, in bits per second.
    pub speed_bps: Option<u64>,
    /// The duplex mode that the interface's driver reports.
    pub duplex: Option<Duplex>,
    /// The rate of traffic that does not belong to the test, in bits per second; absent if the interface's counters do
    /// not include the test.
    pub other_bps: Option<f64>,
    /// The rate of traffic that does not belong to the test during the idle phase, in bits per second.
    pub other_idle_bps: Option<f64>,
}

/// Whether `bps` reaches the requested rate. In this case the request limited the rate.
pub fn is_as_requested(bps: u64, requested_bps: u64) -> bool {
    bps as f64 >= AS_REQUESTED * requested_bps as f64
}

/// Determines what limited the rate of a direction. Checks the request, the processors and the socket buffers first: if
/// one of them was the limit, the rate shows nothing about the path.
pub fn limited_by(seen: &LimitObservations) -> LimitedBy {
    let of_tool = policy(seen).or_else(|| processor(seen)).or_else(|| buffers(seen));
    if let Some((cause, evidence)) = of_tool {
        return LimitedBy { cause, evidence, because: vec![] };
    }
    let (path, full) = (path(seen), full_interface(seen));
    let other = other_traffic(seen).filter(|other| {
        // Other traffic from before the load hides the queue, because the idle latency already includes that queue.
        let hides_queue = other.is_before_load && matches!(&path, Err(doubt) if doubt.lacks_only_queue);
        path.is_ok() || full.is_some() || hides_queue
    });
    let (cause, evidence, because) = match (other, full, path.map_err(|doubt| doubt.because)) {
        (Some(other), full, path) => {
            let rest = full.unwrap_or_default().into_iter().chain(path.unwrap_or_else(|_| known(seen)));
            (LimitCause::OtherTraffic, other.evidence.into_iter().chain(rest).collect(), vec![])
        }
        (None, Some(full), _) => (LimitCause::LinkRate, full, vec![]),
        (None, None, Ok(path)) => (LimitCause::Network, path, vec![]),
        (None, None, Err(because)) => (LimitCause::Unknown, known(seen), because),
    };
    LimitedBy { cause, evidence, because }
}

/// A cause with its evidence. The observation that decided is the first.
type Decided = (LimitCause, Vec<LimitEvidence>);

fn policy(seen: &LimitObservations) -> Option<Decided> {
    let rate = seen.requested_bps.filter(|requested| is_as_requested(seen.goodput_bps, *requested));
    let evidence = match (rate, seen.requested_bytes) {
        (Some(rate), _) => evidence::requested_rate(rate),
        (None, Some(bytes)) => evidence::requested_bytes(bytes),
        (None, None) => return None,
    };
    Some((LimitCause::Policy, vec![evidence]))
}

/// Names the processor that was the limit, with its evidence. If the processors of both ends were the limit, names the
/// busier one.
fn processor(seen: &LimitObservations) -> Option<Decided> {
    let limits = ENDS.into_iter().zip(&seen.cpu).filter_map(|(end, cpu)| {
        let limit = stats::processor_limit(cpu.as_ref()?)?;
        Some((end, limit))
    });
    // If both shares are equal, keeps the appliance.
    let (end, limit) = limits.reduce(|one, other| if other.1.share() > one.1.share() { other } else { one })?;
    let cause = match end {
        ObservedEnd::Appliance => LimitCause::ApplianceCpu,
        ObservedEnd::Reflector => LimitCause::ReflectorCpu,
    };
    Some((cause, vec![evidence::processor(end, limit)]))
}

/// Names the kind of socket buffer that was the limit: such buffers stopped the streams for most of the time, or for a
/// considerable part of the time if nothing was lost. `None` if there is a queue in the path: then the buffers were
/// large enough to fill the path.
fn buffers(seen: &LimitObservations) -> Option<Decided> {
    let streams = seen.streams?;
    let least = if has_loss(seen) { MOST } else { CONSIDERABLE };
    let are_stopped = streams.stopped() >= least;
    if !are_stopped || has_queue(seen) {
        return None;
    }
    let [window, buffer] = [evidence::receive_window(streams), evidence::send_buffer(streams)];
    Some(if streams.receive_window >= REACHED.min(streams.send_buffer) {
        (LimitCause::ReceiveWindow, vec![window])
    } else {
        (LimitCause::SendBuffer, vec![buffer])
    })
}

impl StreamShares {
    /// The share of the time in which a socket buffer of either end stopped the streams.
    fn stopped(self) -> f64 {
        self.receive_window + self.send_buffer
    }
}

/// Whether the sender retransmitted segments.
fn has_loss(seen: &LimitObservations) -> bool {
    seen.retransmits.is_some_and(|segments| segments > 0)
}

/// Whether the increase of the latency shows a queue in the path.
fn has_queue(seen: &LimitObservations) -> bool {
    seen.queue_ms.is_some_and(|queue_ms| shows_queue(queue_ms, seen.goodput_bps))
}

/// Whether an increase of the latency by `queue_ms` shows a queue in the path, if the payload rate is `goodput_bps`.
pub(crate) fn shows_queue(queue_ms: f64, goodput_bps: u64) -> bool {
    let packets_ms = QUEUE_PACKETS * PACKET_BITS / (goodput_bps.max(1) as f64) * 1000.0;
    queue_ms >= QUEUE_MS.max(packets_ms)
}

/// The reasons why there is no evidence that the path was the limit.
struct Doubt {
    because: Vec<String>,
    /// Whether only a queue or a loss is missing as evidence.
    lacks_only_queue: bool,
}

/// The evidence that the path limited the direction, or the reasons why there is no such evidence.
fn path(seen: &LimitObservations) -> Result<Vec<LimitEvidence>, Doubt> {
    let mut because = nearly_full_processors(seen);
    let mut lacks_queue = false;
    let mut evidence = Vec::new();
    if let Some(datagrams) = seen.datagrams {
        if datagrams.lost == 0 {
            because.push("no datagram was lost".to_owned());
        }
        evidence.push(evidence::lost_datagrams(datagrams));
        evidence.extend(seen.queue_ms.map(evidence::queue));
    } else {
        match seen.streams {
            None => because.push("the sender's kernel did not report what its streams waited for".to_owned()),
            Some(streams) => {
                let stopped = if has_queue(seen) { 0.0 } else { streams.stopped() };
                let is_limited = streams.busy - stopped >= MOST;
                if !is_limited {
                    because.push("the streams did not wait for the path for most of the time".to_owned());
                }
                evidence.push(evidence::waited_for_path(streams));
            }
        }
        if !has_loss(seen) && !has_queue(seen) {
            lacks_queue = true;
            because.push(match seen.queue_ms {
                Some(_) => "no segment was lost, and the latency shows no queue".to_owned(),
                None => "no segment was lost, and the latency under load is not known".to_owned(),
            });
        }
        evidence.extend(seen.queue_ms.map(evidence::queue));
        evidence.extend(seen.retransmits.map(evidence::retransmits));
    }
    let lacks_only_queue = lacks_queue && because.len() == 1;
    if because.is_empty() { Ok(evidence) } else { Err(Doubt { because, lacks_only_queue }) }
}

/// The reasons why an end's processor cannot be ruled out as the limit.
fn nearly_full_processors(seen: &LimitObservations) -> Vec<String> {
    let doubts = ENDS.into_iter().zip(&seen.cpu).filter_map(|(end, cpu)| {
        let whose = evidence::whose(end);
        let Some(runnable) = cpu.and_then(|cpu| cpu.runnable) else {
            return Some(format!("the run-queue wait of {whose} threads is not known"));
        };
        let core = cpu.and_then(|cpu| cpu.core_softirq).unwrap_or_default();
        if runnable >= NEARLY_FULL {
            return Some(format!(
                "one of {whose} threads ran or waited for a processor for {}",
                evidence::percent(runnable)
            ));
        }
        (core >= NEARLY_FULL)
            .then(|| format!("one of {whose} cores handled soft interrupts for {}", evidence::percent(core)))
    });
    doubts.collect()
}

/// The evidence that the network interface of an end was full, with the test and all other traffic together. If the
/// interfaces of both ends were full, the evidence about the slower interface.
fn full_interface(seen: &LimitObservations) -> Option<Vec<LimitEvidence>> {
    let own = seen.wire_bps.unwrap_or(seen.goodput_bps) as f64;
    let full = ENDS.into_iter().zip(seen.interfaces).filter_map(|(end, interface)| {
        let speed = interface.speed_bps?;
        let share = (own + interface.other_bps.unwrap_or_default()) / speed as f64;
        let full = if interface.duplex == Some(Duplex::Half) { FULL_IN_HALF_DUPLEX } else { FULL };
        (full..=UNREAL).contains(&share).then_some((speed, end, interface.duplex))
    });
    let (speed, end, duplex) = full.min_by_key(|(speed, ..)| *speed)?;
    Some(vec![evidence::interface_speed(end, speed, duplex), evidence::wire_rate(own)])
}

/// Traffic of other programs or hosts that took a considerable share of an end's network interface.
struct OtherTraffic {
    evidence: Vec<LimitEvidence>,
    /// Whether the other traffic already took a considerable share in the idle phase.
    is_before_load: bool,
}

/// Finds other traffic that took a considerable share of an end's interface. If both ends had such traffic, returns the
/// traffic with the higher rate.
fn other_traffic(seen: &LimitObservations) -> Option<OtherTraffic> {
    let own = seen.wire_bps.unwrap_or(seen.goodput_bps) as f64;
    let others = ENDS.into_iter().zip(seen.interfaces).filter_map(|(end, interface)| {
        let other = interface.other_bps.filter(|other| *other >= OTHER_BPS)?;
        (other / (other + own) >= OTHER_SHARE).then_some((other, end, interface.other_idle_bps))
    });
    // If both rates are equal, keeps the one at the appliance.
    let (other, end, idle) = others.reduce(|one, another| if another.0 > one.0 { another } else { one })?;
    let is_before_load = idle.is_some_and(|idle| idle >= OTHER_BPS && idle / (idle + own) >= OTHER_SHARE);
    let before = idle.map(|idle| evidence::other_idle(end, idle));
    let evidence = [evidence::other(end, other, other / (other + own))].into_iter().chain(before).collect();
    Some(OtherTraffic { evidence, is_before_load })
}

/// All observations that are known, as evidence that accompanies the cause [`LimitCause::Unknown`].
fn known(seen: &LimitObservations) -> Vec<LimitEvidence> {
    let threads = ENDS.into_iter().zip(&seen.cpu);
    let threads = threads.filter_map(|(end, cpu)| Some(evidence::runnable(end, cpu.as_ref()?.runnable?)));
    let streams = seen.streams.into_iter().flat_map(|streams| {
        [evidence::waited_for_path(streams), evidence::receive_window(streams), evidence::send_buffer(streams)]
    });
    let rest = [
        seen.queue_ms.map(evidence::queue),
        seen.retransmits.map(evidence::retransmits),
        seen.datagrams.map(evidence::lost_datagrams),
    ];
    threads.chain(streams).chain(rest.into_iter().flatten()).collect()
}
