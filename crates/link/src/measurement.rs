//! The measured values that both ends exchange: samples (the bytes of one interval), tallies (the totals of one phase
//! at one end), and the facts of a host. The name of a field ends in its unit.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PeerText;

/// The length of the intervals in which an end counts payload, in milliseconds.
pub const INTERVAL_MS: u64 = 100;

/// The payload that one end counted in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When the interval ended, in microseconds after the counting end began the phase (monotonic clock).
    pub at_us: u64,
    /// Payload bytes of all streams during the interval: received at the receiver, sent at the sender.
    pub bytes: u64,
}

/// What became of one latency probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When the appliance sent the probe, measured from the prober's start.
    pub sent_at: Duration,
    /// The time from the probe's due time until the prober sent it, in microseconds. This delay arises in the
    /// appliance, not in the network.
    pub late_us: u32,
    /// The round trip without the reflector's processing time, in microseconds. `None` if no reply arrived in time.
    pub rtt_us: Option<u32>,
    /// Whether the reflector received the probe. `None` if no reply, to this or a later probe, reports it.
    pub arrived: Option<bool>,
    /// How long the reflector held the probe before it replied, in microseconds. 0 if no reply arrived.
    pub turnaround_us: u32,
    /// The reflector's receive time minus the appliance's send time, in microseconds. It is the delay of the upload
    /// direction plus the unknown offset between the two clocks. `None` if no reply arrived in time.
    pub upload_us: Option<i64>,
    /// How long the probe waited in the appliance's kernel, from sending until it reached the network interface, in
    /// microseconds. This wait is part of the round trip. `None` if the kernel did not report it.
    pub own_wait_us: Option<u32>,
    /// Whether the reply is too late to count: the reply took longer than [`Probe::LATE_AFTER`], or the reflector held
    /// the probe for longer than a reply can express.
    pub late: bool,
}

impl Probe {
    /// A reply that takes longer than this is late: it counts neither as a round trip nor as a loss.
    pub const LATE_AFTER: Duration = Duration::from_secs(10);

    /// The appliance's receive time minus the reflector's send time, in microseconds. It is the delay of the download
    /// direction minus the unknown offset between the two clocks. `None` if no reply arrived in time.
    pub fn download_us(&self) -> Option<i64> {
        i64::from(self.rtt_us?).checked_sub(self.upload_us?)
    }
}

/// The payload bytes that one end counted over a whole phase. They include the bytes of the start-up, and the bytes
/// that arrive after the sender has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Payload bytes sent or received at the socket.
    pub bytes: u64,
    /// Time from the start of the phase at this end to the last byte, in microseconds (monotonic clock).
    pub elapsed_us: u64,
}

/// The processor use of one end during a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuUse {
    /// User time of the threads that moved data, in seconds.
    pub user_s: f64,
    /// System time of the threads that moved data, in seconds.
    pub system_s: f64,
    /// The share of one core, 0 to 1, that the busiest of the threads that moved data used.
    pub busiest_thread: f64,
    /// The use of all cores of the host by all programs, 0 to 1 (from `/proc/stat`); absent if it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_busy: Option<f64>,
    /// The share of the time, 0 to 1, for which a control group's CPU quota throttled the program; absent if no quota
    /// throttled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<f64>,
    /// Each thread that moved data ran or waited for a processor for a share of the time. This is the largest of these
    /// shares, 0 to 1 (from `/proc/thread-self/schedstat`); absent if they can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runnable: Option<f64>,
    /// The share of time, 0 to 1, for which the thread that `runnable` describes waited for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_queue_wait: Option<f64>,
    /// Each core of the host spent a share of the time on soft interrupts. This is the largest of these shares, 0 to 1
    /// (from `/proc/stat`); absent if they can't be read.
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
    /// How this end moved the bytes: `plain`, `trunc` or `splice` (see
    /// [`DataPathWish`](crate::test_spec::DataPathWish)), or `tls` inside TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<PeerText>,
    /// Maximum segment size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// The path MTU that the sender's kernel found or assumes, in bytes; the smallest value of all streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// The smaller of the send and the receive buffer size that this end's kernel granted, in bytes. Absent if the
    /// request has no `window_bytes`, or if the kernel granted them in full.
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
    /// What counted the bytes: `socket` (the kernel) or `iperf3`; absent: the program that sends this message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<PeerText>,
    /// What limited the streams, as the sender's kernel recorded it; absent if the kernel does not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_times: Option<TcpTimes>,
}

/// What limited the streams of a direction at the sender (Linux `TCP_INFO`). Times are sums over all streams since the
/// phase began, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTimes {
    /// How long the streams existed.
    pub total_us: u64,
    /// How long the streams had unacknowledged or unsent data (`tcpi_busy_time`).
    pub busy_us: u64,
    /// The part of `busy_us` for which the receiver's window stopped the streams (`tcpi_rwnd_limited`).
    pub receive_window_us: u64,
    /// The part of `busy_us` for which the size of the send buffer stopped the streams (`tcpi_sndbuf_limited`).
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
    /// Receiver: datagrams that had already arrived (duplicates).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Receiver: reordered datagrams (RFC 4737).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// Receiver: the jitter (RFC 3550) in microseconds; with several streams, the mean of their jitters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// After a search for the highest rate: how many of `sent` (sender) or `received` (receiver) were sent after the
    /// search had found its rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<u64>,
    /// Receiver: when the first datagram of `settled` arrived, in microseconds since the receiver began the phase. With
    /// several streams, the latest of these times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at_us: Option<u64>,
    /// Sender: how long the sender paused because the receiver was silent, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Sender: datagrams that were too large for the path and did not arrive, sent before the sender reduced the
    /// payload size. They are not part of `sent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
    /// Sender: whether the path dropped the `vanished` datagrams without an ICMP error (a path MTU black hole, RFC
    /// 2923).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_black_hole: bool,
}

/// One end's counts of one phase. Every phase ends with a tally, even if it failed.
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
    /// What the network interface of the link carried during the phase, including other programs' traffic; absent on
    /// loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceTraffic>,
}

/// The bytes that a network interface carried between two readings of its counters, link-layer headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceTraffic {
    /// Bytes that the interface received.
    pub received_bytes: u64,
    /// Bytes that the interface sent.
    pub sent_bytes: u64,
    /// The time between the two readings of the counters, in microseconds.
    pub elapsed_us: u64,
}

/// The duplex mode of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplex {
    /// The interface sends and receives at the same time.
    Full,
    /// The interface cannot send and receive at the same time.
    Half,
}

impl PhaseTally {
    /// The tally of `direction`, if the phase had this direction.
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

/// The reflector's counts of the datagrams of one session, probes included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramsSeen {
    /// Datagrams that the reflector answered.
    pub answered: u64,
    /// Datagrams that came from another address than the link, or whose source port changed during the session. Some
    /// NATs cause this.
    pub from_elsewhere: u64,
}

/// The state of one end's host during a measurement. A value that could not be read is absent.
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
    /// The MTU of the interface that carries the link, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The speed that the interface's driver reports, in bits per second; absent if it reports none (loopback, most
    /// virtual interfaces).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_speed_bps: Option<u64>,
    /// The highest speed that the interface's driver supports, in bits per second; absent if it reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_max_speed_bps: Option<u64>,
    /// The duplex mode of the interface that carries the link; absent if its driver reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_duplex: Option<Duplex>,
    /// Whether the kernel's clock is synchronised (`adjtimex`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_synchronised: Option<bool>,
    /// The kernel's bound for the clock error, in microseconds; absent if the clock is not synchronised.
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
