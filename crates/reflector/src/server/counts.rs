//! The counters that the tasks and threads of the server increment, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paramedic_engines::echo::{DWELL_BOUNDS_US, DwellTimes, LoadFlag};
use paramedic_link::test_spec::Direction;
use paramedic_link::tls::Alpn;

use crate::duration_counts::{DurationBucket, DurationCounts};
use crate::status::{Handshakes, PayloadBytes};

/// The counters since the start of the server.
#[derive(Debug, Default)]
pub(super) struct ServerCounts {
    link_handshakes: AtomicU64,
    data_handshakes: AtomicU64,
    /// The payload bytes of all phases: download, upload.
    payload_bytes: [AtomicU64; 2],
    /// How long the probes of all sessions dwelt at the reflector.
    pub(super) dwell: Arc<DwellTimes>,
    /// Whether a phase loads this reflector.
    pub(super) load: Arc<LoadFlag>,
}

impl ServerCounts {
    /// Counts a completed TLS handshake.
    pub(super) fn note_handshake(&self, alpn: Alpn) {
        let counter = match alpn {
            Alpn::Link => &self.link_handshakes,
            Alpn::Data => &self.data_handshakes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn note_payload(&self, direction: Direction, bytes: u64) {
        self.payload_bytes[direction as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn handshakes(&self) -> Handshakes {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Handshakes { link: read(&self.link_handshakes), data: read(&self.data_handshakes) }
    }

    pub(super) fn payload_bytes(&self) -> PayloadBytes {
        let read = |direction: Direction| self.payload_bytes[direction as usize].load(Ordering::Relaxed);
        PayloadBytes { download: read(Direction::Download), upload: read(Direction::Upload) }
    }

    pub(super) fn probe_dwell(&self) -> DurationCounts {
        let (counts, sum_ns) = self.dwell.read();
        let buckets = DWELL_BOUNDS_US.iter().zip(counts);
        DurationCounts {
            buckets: buckets.map(|(up_to_us, count)| DurationBucket { up_to_us: *up_to_us, count }).collect(),
            longer: counts[DWELL_BOUNDS_US.len()],
            sum_us: sum_ns / 1_000,
        }
    }
}

/// Counts the payload of one phase: first the bytes of its samples, and once its tally (its final counts) is known, the
/// bytes that no sample included. So the sum is the total of the tally.
#[derive(Debug)]
pub(super) struct PhasePayload {
    counts: Arc<ServerCounts>,
    /// The bytes that are counted so far: download, upload.
    counted: [AtomicU64; 2],
}

impl PhasePayload {
    pub(super) fn new(counts: &Arc<ServerCounts>) -> Self {
        Self { counts: Arc::clone(counts), counted: Default::default() }
    }

    /// Counts the bytes of a sample.
    pub(super) fn note_sample(&self, direction: Direction, bytes: u64) {
        self.counted[direction as usize].fetch_add(bytes, Ordering::Relaxed);
        self.counts.note_payload(direction, bytes);
    }

    /// Counts the bytes of the phase in this direction that no sample included. `total` is the number of all its bytes
    /// in this direction.
    pub(super) fn note_total(&self, direction: Direction, total: u64) {
        let counted = self.counted[direction as usize].fetch_max(total, Ordering::Relaxed);
        self.counts.note_payload(direction, total.saturating_sub(counted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_of_a_phase_is_that_of_its_tally() {
        let counts = Arc::new(ServerCounts::default());
        let phase = PhasePayload::new(&counts);
        phase.note_sample(Direction::Download, 70);
        phase.note_sample(Direction::Download, 20);
        assert_eq!(counts.payload_bytes(), PayloadBytes { download: 90, upload: 0 });
        phase.note_total(Direction::Download, 100);
        phase.note_total(Direction::Upload, 7);
        assert_eq!(counts.payload_bytes(), PayloadBytes { download: 100, upload: 7 });
    }

    #[test]
    fn the_dwell_of_probes_has_a_bucket_for_each_bound() {
        let counts = ServerCounts::default().probe_dwell();
        assert_eq!(counts, DurationCounts::with_bounds(&DWELL_BOUNDS_US));
    }
}
