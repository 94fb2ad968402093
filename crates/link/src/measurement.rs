//! Counts: the sample of one interval, the tally of a phase at one end, the facts of a host. Names end in the unit.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PeerText;

/// The length of a throughput interval.
pub const INTERVAL_MS: u64 = 100;

/// The receiver's count of one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the interval, in microseconds of the receiver's monotonic clock since the phase began there.
    pub at_us: u64,
    /// Payload bytes received during the interval, all streams together.
    pub bytes: u64,
}

/// The fate of one latency probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When it was sent, since the prober's start.
    pub sent_at: Duration,
    /// How long after its due time it was sent, in microseconds: the lateness of the prober, not of the network.
    pub late_us: u32,
    /// The round trip without the reflector's processing time, in microseconds; absent if no reply arrived in time.
    pub rtt_us: Option<u32>,
    /// Whether the reflector received it; absent if no reply shows it.
    pub arrived: Option<bool>,
    /// How long the reflector held it, in microseconds; 0 if no reply arrived.
    pub turnaround_us: u32,
    /// When the reflector received it, by the reflector's clock, minus when it was sent, by the appliance's, in
    /// microseconds: the delay of the upload direction plus the offset of the clocks, both of which are unknown. Absent
    /// if no reply arrived in time.
    pub upload_us: Option<i64>,
    /// How long it waited in the appliance's own host: from the sending time until the kernel passed it to the network
    /// interface, in microseconds. Part of the round trip. Absent if the kernel did not report it.
    pub own_wait_us: Option<u32>,
    /// Whether its reply came, but later than [`Probe::LATE_AFTER`], or the reflector held it for longer than a reply can
    /// express.
    pub late: bool,
}

impl Probe {
    /// A reply that takes longer than this is late: it counts neither as a round trip nor as a loss.
    pub const LATE_AFTER: Duration = Duration::from_secs(10);

    /// When the reply arrived, by the appliance's clock, minus when the reflector sent it, by the reflector's, in
    /// microseconds: the delay of the download direction minus the offset of the clocks.
    pub fn download_us(&self) -> Option<i64> {
        i64::from(self.rtt_us?).checked_sub(self.upload_us?)
    }
}

/// The payload bytes that one end counted over a whole phase, start-up and drain included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Payload bytes sent or received at the socket.
    pub bytes: u64,
    /// Time from the start of the phase at this end to the last byte, in microseconds of its monotonic clock.
    pub elapsed_us: u64,
}

/// The processor use of one end during a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuUse {
    /// User time of the threads that moved data, in seconds.
    pub user_s: f64,
    /// System time of the threads that moved data, in seconds.
    pub system_s: f64,
    /// The busiest of those threads: its share of one core, 0 to 1.
    pub busiest_thread: f64,
    /// The use of all cores of the host by all programs, 0 to 1 (from `/proc/stat`); absent if it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_busy: Option<f64>,
    /// The share of the time, 0 to 1, for which a control group throttled the program; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<f64>,
    /// The largest share of its time, 0 to 1, for which one of the threads that moved data was running or waited for a
    /// processor (`/proc/thread-self/schedstat`); absent if it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runnable: Option<f64>,
    /// The share of its time, 0 to 1, for which that thread waited for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_queue_wait: Option<f64>,
    /// The share of a core's time, 0 to 1, for which it handled soft interrupts, of the core with the largest one (from
    /// `/proc/stat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_softirq: Option<f64>,
}

/// One end's counts of one direction of a phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectionTally {
    /// Payload bytes and the time they took.
    pub count: Count,
    /// Processor time used at this end.
    pub cpu: CpuUse,
    /// The congestion control that the kernel used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<PeerText>,
    /// How this end moved the bytes: `plain`, `trunc`, `splice` or `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<PeerText>,
    /// Maximum segment size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// The size in bytes of the send and the receive buffer that the kernel granted, if that is less than
    /// `window_bytes` of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduced_window_bytes: Option<NonZeroU32>,
    /// Retransmitted segments, all streams together; the sender's count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// Number of streams that moved data.
    pub streams: u16,
    /// Counts of datagrams, if the engine sends datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<Box<DatagramTally>>,
    /// Source of the counts: `socket` (the kernel) or `iperf3`; absent: the program that sends this message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<PeerText>,
    /// What limited the streams, as the sender's kernel recorded it; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_times: Option<TcpTimes>,
}

/// What limited the streams of a direction at the sender (TCP_INFO). Times are sums over all streams, since the phase
/// began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTimes {
    /// How long the streams existed.
    pub total_us: u64,
    /// How long they had unacknowledged or unsent data.
    pub busy_us: u64,
    /// Of that, how long the receiver's window stopped them.
    pub receive_window_us: u64,
    /// Of that, how long the size of the send buffer stopped them.
    pub send_buffer_us: u64,
}

/// One end's counts of the datagrams of one direction, all streams together. The sender fills in what it sent, the
/// receiver what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramTally {
    /// Payload of each datagram, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    /// Sender: datagrams sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// Receiver: datagrams received, without duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Receiver: duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Receiver: reordered datagrams (RFC 4737).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// Receiver: jitter (RFC 3550), mean of the streams, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// After a rate search: how many of `sent` or `received` were sent after the search had found its rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<u64>,
    /// Receiver: when the first datagram of `settled` arrived, in microseconds since the phase began there. Of several
    /// streams, the latest such time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at_us: Option<u64>,
    /// Sender: for how long it paused because it received nothing from the receiver, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Sender: further datagrams that did not arrive because they were too large for the path, sent before the sender
    /// reduced their payload. Not part of `sent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
    /// Sender: whether the path dropped those without ICMP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_black_hole: bool,
}

/// One end's counts of one phase. Every phase ends with a tally, also when it fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTally {
    /// The download, if the phase had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DirectionTally>,
    /// The upload, if the phase had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<DirectionTally>,
    /// Why the phase ended early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<PeerText>,
    /// What the interface of the link carried meanwhile, of all programs; absent on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceTraffic>,
}

/// What an interface carried, link-layer headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceTraffic {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// The time between the two readings of the counters, in microseconds.
    pub elapsed_us: u64,
}

/// The duplex mode of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplex {
    /// It sends and receives at the same time.
    Full,
    /// It sends or receives at a time.
    Half,
}

impl PhaseTally {
    /// The tally of one direction.
    pub fn direction(&self, direction: crate::test_spec::Direction) -> Option<&DirectionTally> {
        match direction {
            crate::test_spec::Direction::Download => self.download.as_ref(),
            crate::test_spec::Direction::Upload => self.upload.as_ref(),
        }
    }

    /// Payload bytes of both directions. The sum saturates, because the counts may come from the other end.
    pub fn bytes(&self) -> u64 {
        [&self.download, &self.upload].into_iter().flatten().fold(0, |sum, d| sum.saturating_add(d.count.bytes))
    }
}

/// The datagrams of a session at the reflector, probes included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramsSeen {
    /// Datagrams that were answered.
    pub answered: u64,
    /// Datagrams whose source was not the address of the link, or whose source port changed: a NAT rewrites it.
    pub from_elsewhere: u64,
}

/// What stands behind a measurement at one end: how the host was when it was made. Absent is what could not be read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// The program's version.
    pub version: PeerText,
    /// Operating system and kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<PeerText>,
    /// Processors the program may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// The processor's model name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<PeerText>,
    /// Runnable tasks averaged over a minute (`/proc/loadavg`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_1m: Option<f64>,
    /// Memory of the host, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Memory available without swapping, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// The interface that carries the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<PeerText>,
    /// Its MTU, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The speed that its driver reports, in bits per second; absent if it reports none (loopback, most virtual ones).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_speed_bps: Option<u64>,
    /// The highest speed that its driver supports, in bits per second; absent if it reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_max_speed_bps: Option<u64>,
    /// Its duplex mode; absent if the driver reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_duplex: Option<Duplex>,
    /// Whether the kernel's clock is synchronised (`adjtimex`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_synchronised: Option<bool>,
    /// The kernel's bound of the clock error, in microseconds; absent if the clock is not synchronised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_peers_counts_saturates() {
        let all = DirectionTally { count: Count { bytes: u64::MAX, elapsed_us: 1 }, ..DirectionTally::default() };
        let tally = PhaseTally { download: Some(all.clone()), upload: Some(all), ..PhaseTally::default() };
        assert_eq!(tally.bytes(), u64::MAX);
    }
}
