//! Computes how many bytes of a TCP stream a segment makes readable, given that a receiver reads them in order. Pure.

/// The bytes that a link has delivered of one direction of a TCP connection.
#[derive(Clone, Debug, Default)]
pub struct InOrderBytes {
    /// The position behind the highest delivered byte, counted without wrapping; `None` before the first segment.
    end: Option<u64>,
    /// The ranges below `end` that are missing, in order; none of them touches another.
    gaps: Vec<(u64, u64)>,
}

impl InOrderBytes {
    /// Notes that the stream's first byte has the sequence number `first`. Without this call, the stream would begin
    /// with the first delivered segment, and a first segment that is lost and sent again would never count.
    pub fn open(&mut self, first: u32) {
        self.end.get_or_insert((1 << 32) + u64::from(first));
    }

    /// Notes that the link delivered a segment. Returns by how many bytes the part of the stream before the first gap
    /// has grown.
    pub fn deliver(&mut self, sequence: u32, length: usize) -> u64 {
        let length = length as u64;
        if length == 0 {
            return 0;
        }
        let Some(end) = self.end else {
            // Offset by 2^32, so that an earlier segment has a positive position.
            let begin = (1 << 32) + u64::from(sequence);
            self.end = Some(begin + length);
            return length;
        };
        let readable = self.readable(end);
        // The position nearest to the highest byte with this sequence number.
        let distance = i64::from(sequence.wrapping_sub(end as u32) as i32);
        let begin = end.saturating_add_signed(distance);
        let until = begin + length;
        if begin > end {
            self.gaps.push((end, begin));
        }
        if begin < end && !self.gaps.is_empty() {
            self.fill(begin, until);
        }
        let end = end.max(until);
        self.end = Some(end);
        self.readable(end) - readable
    }

    /// The position where the readable part of the stream ends: at the first gap, or at `end` if there is no gap.
    fn readable(&self, end: u64) -> u64 {
        self.gaps.first().map_or(end, |(from, _)| *from)
    }

    /// Removes the part from `begin` to `until` from the gaps.
    fn fill(&mut self, begin: u64, until: u64) {
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for (from, to) in self.gaps.drain(..) {
            let (low, high) = (from.max(begin), to.min(until));
            if low >= high {
                left.push((from, to));
                continue;
            }
            left.extend([(from, low), (high, to)].into_iter().filter(|(from, to)| from < to));
        }
        self.gaps = left;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retransmission_of_delivered_bytes_is_not_new() {
        let mut bytes = InOrderBytes::default();
        assert_eq!(bytes.deliver(100, 50), 50);
        assert_eq!(bytes.deliver(100, 50), 0);
        assert_eq!(bytes.deliver(140, 40), 30);
        assert_eq!(bytes.deliver(140, 200), 160);
    }

    #[test]
    fn a_segment_behind_a_gap_counts_when_the_gap_is_filled() {
        let mut bytes = InOrderBytes::default();
        assert_eq!(bytes.deliver(100, 50), 50);
        assert_eq!(bytes.deliver(200, 50), 0, "a gap from 150 to 200");
        assert_eq!(bytes.deliver(300, 50), 0, "a gap from 250 to 300");
        assert_eq!(bytes.deliver(140, 40), 30);
        assert_eq!(bytes.deliver(180, 20), 70);
        assert_eq!(bytes.deliver(240, 70), 100);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut bytes = InOrderBytes::default();
        assert_eq!(bytes.deliver(u32::MAX - 9, 20), 20);
        assert_eq!(bytes.deliver(10, 5), 5);
        assert_eq!(bytes.deliver(u32::MAX - 9, 25), 0);
    }

    proptest! {
        #[test]
        fn the_sum_is_the_part_of_a_set_without_a_gap(
            first: u32, segments in prop::collection::vec((0_u32..3000, 0_usize..400), 1..60),
        ) {
            let mut bytes = InOrderBytes::default();
            let mut set = BTreeSet::new();
            // What comes before the first segment is not known to be missing.
            bytes.deliver(first, 1);
            set.insert(0_u32);
            for (offset, length) in segments {
                let readable = |set: &BTreeSet<u32>| (0_u32..).find(|byte| !set.contains(byte)).unwrap_or(0);
                let before = readable(&set);
                set.extend(offset..offset + length as u32);
                let new = bytes.deliver(first.wrapping_add(offset), length);
                prop_assert_eq!(new, u64::from(readable(&set) - before));
            }
        }
    }
}
