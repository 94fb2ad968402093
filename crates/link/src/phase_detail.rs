//! Samples of the kernel's state of each stream of a phase (Linux `TCP_INFO`). Each end samples its own streams during
//! a phase. The reflector sends its samples to the appliance after the phase. This module does no I/O.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::test_spec::Direction;

/// The maximum number of [`TcpSample`]s in one message [`ToAppliance::PhaseDetail`](crate::message::ToAppliance).
pub const MAX_DETAIL_SAMPLES: usize = 32;

/// The kernel's state of one stream at one time (`TCP_INFO`). A value that the kernel does not report is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpSample {
    /// When the sample was taken, in milliseconds after the device that took it began the phase (monotonic clock).
    pub at_ms: u32,
    /// The number of the stream in its direction, from 0.
    pub stream: u16,
    /// The smoothed round-trip time, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// The mean deviation of the round-trip time, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rttvar_us: Option<u32>,
    /// The smallest round-trip time of the last five minutes (default of `net.ipv4.tcp_min_rtt_wlen`), in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rtt_us: Option<u32>,
    /// The congestion window, in segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwnd: Option<u32>,
    /// The slow start threshold, in segments; absent until the first loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssthresh: Option<u32>,
    /// The latest rate at which data was delivered, in bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_bps: Option<u64>,
    /// The rate at which the kernel paces the stream, in bits per second; absent without pacing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pacing_bps: Option<u64>,
    /// Segments retransmitted since the connection was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    /// How often the kernel found segments reordered since the connection was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reordering_seen: Option<u32>,
    /// The total time in microseconds, since the connection was opened, in which data was unsent or unacknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_us: Option<u64>,
    /// The part of `busy_us` for which the receiver's window stopped the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_window_us: Option<u64>,
    /// The part of `busy_us` for which the size of the send buffer stopped the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_buffer_us: Option<u64>,
}

/// The samples of one phase at one end. A reading is one sample of each stream, all taken at the same time. If the
/// readings exceed a size limit, they are thinned out evenly over time.
#[derive(Clone, Debug)]
pub struct PhaseDetail {
    /// The stored readings (one sample of each stream, all taken at the same time), each with the size of its samples
    /// as JSON, in bytes.
    looks: Vec<(Vec<(Direction, TcpSample)>, usize)>,
    bytes: usize,
    /// Only one of every `stride` readings is stored, so that the messages stay below their size limit.
    stride: u64,
    seen: u64,
    most_bytes: usize,
}

impl PhaseDetail {
    /// The maximum total size, in bytes, of the messages that carry the samples of one phase.
    pub const MAX_BYTES: usize = 256 * 1024;

    /// One part in `MESSAGE` of the size limit is reserved for the other fields of the messages, which take less than
    /// that.
    const MESSAGE: usize = 20;

    /// An empty record. All its messages together will have at most `most_bytes` bytes, or [`Self::MAX_BYTES`] if that
    /// is less.
    pub fn new(most_bytes: usize) -> Self {
        let most_bytes = most_bytes.min(Self::MAX_BYTES);
        Self { looks: vec![], bytes: 0, stride: 1, seen: 0, most_bytes: most_bytes - most_bytes / Self::MESSAGE }
    }

    /// Adds one reading of all streams. If the record then exceeds its limit, drops every second stored reading. From
    /// then on, stores only half as many of the new readings as before.
    pub fn add(&mut self, look: Vec<(Direction, TcpSample)>) {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.stride) {
            return;
        }
        let size = look.iter().map(|(_, sample)| size_of(sample)).sum();
        self.looks.push((look, size));
        self.bytes += size;
        while self.bytes > self.most_bytes && !self.looks.is_empty() {
            let mut number = 0;
            self.looks.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            self.bytes = self.looks.iter().map(|(_, size)| size).sum();
            self.stride *= 2;
        }
    }

    /// Makes a record of `samples`, which must be ordered by time. Samples with the same time are one reading. The size
    /// limit `most_bytes` is that of [`Self::new`].
    pub fn of(samples: Vec<(Direction, TcpSample)>, most_bytes: usize) -> Self {
        let mut detail = Self::new(most_bytes);
        for look in samples.chunk_by(|one, other| one.1.at_ms == other.1.at_ms) {
            detail.add(look.to_vec());
        }
        detail
    }

    /// All stored samples with the direction of their streams, ordered by time.
    pub fn samples(self) -> impl Iterator<Item = (Direction, TcpSample)> {
        self.looks.into_iter().flat_map(|(look, _)| look)
    }

    /// Splits the samples into messages: each part has one direction and at most [`MAX_DETAIL_SAMPLES`] samples.
    pub fn parts(self) -> Vec<(Direction, Vec<TcpSample>)> {
        let samples = self.samples().collect::<Vec<_>>();
        let of = |direction| samples.iter().filter(move |(of, _)| *of == direction).map(|(_, sample)| *sample);
        let parts = Direction::BOTH.into_iter().flat_map(|direction| {
            let all = of(direction).collect::<Vec<_>>();
            all.chunks(MAX_DETAIL_SAMPLES).map(|part| (direction, part.to_vec())).collect::<Vec<_>>()
        });
        parts.collect()
    }
}

/// The size of a sample in bytes, as JSON in a message, including the comma after the sample.
fn size_of(sample: &TcpSample) -> usize {
    serde_json::to_vec(sample).map_or(0, |text| text.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Bounded, encode};
    use crate::message::ToAppliance;

    const LARGEST: TcpSample = TcpSample {
        at_ms: u32::MAX,
        stream: u16::MAX,
        rtt_us: Some(u32::MAX),
        rttvar_us: Some(u32::MAX),
        min_rtt_us: Some(u32::MAX),
        cwnd: Some(u32::MAX),
        ssthresh: Some(u32::MAX),
        delivery_bps: Some(u64::MAX),
        pacing_bps: Some(u64::MAX),
        retransmits: Some(u32::MAX),
        reordering_seen: Some(u32::MAX),
        busy_us: Some(u64::MAX),
        receive_window_us: Some(u64::MAX),
        send_buffer_us: Some(u64::MAX),
    };

    /// Records `looks` readings of `streams` streams in each direction. Returns the times of the readings that were
    /// kept, and the total size of the messages in bytes.
    fn sent(looks: u32, streams: u16, most_bytes: usize, like: TcpSample) -> (Vec<u32>, usize) {
        let mut detail = PhaseDetail::new(most_bytes);
        for look in 1..=looks {
            let of = |direction| (0..streams).map(move |stream| (direction, TcpSample { at_ms: look, stream, ..like }));
            detail.add(of(Direction::Download).chain(of(Direction::Upload)).collect());
        }
        let mut times = detail.clone().samples().map(|(_, sample)| sample.at_ms).collect::<Vec<_>>();
        times.dedup();
        let messages = detail.parts().into_iter().map(|(direction, samples)| {
            let message = ToAppliance::PhaseDetail { phase: 3, direction, samples };
            message.check().unwrap();
            encode(&message).unwrap().len()
        });
        (times, messages.sum())
    }

    #[test]
    fn a_short_phase_is_kept_whole() {
        let (times, bytes) =
            sent(100, 2, PhaseDetail::MAX_BYTES, TcpSample { rtt_us: Some(12_345), ..TcpSample::default() });
        assert!(times.into_iter().eq(1..=100));
        assert!(bytes > 0 && bytes < PhaseDetail::MAX_BYTES);
    }

    #[test]
    fn a_long_phase_of_many_streams_is_thinned_evenly_and_fits() {
        for (looks, streams) in [(3_000, 64), (1_000, 4), (100_000, 1)] {
            let (times, bytes) = sent(looks, streams, PhaseDetail::MAX_BYTES, LARGEST);
            assert!((PhaseDetail::MAX_BYTES / 8..=PhaseDetail::MAX_BYTES).contains(&bytes), "{streams}: {bytes}");
            let steps = times.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
            assert!(steps.iter().all(|step| *step == steps[0]), "{streams}: {times:?}");
        }
    }

    #[test]
    fn what_does_not_fit_at_all_is_left_out() {
        assert_eq!(sent(10, 64, 1_000, LARGEST), (vec![], 0));
        let (times, bytes) = sent(10, 1, 2_000, LARGEST);
        assert!(!times.is_empty() && bytes <= 2_000, "{times:?} {bytes}");
    }
}
