//! Which bytes of a TCP stream a segment delivers for the first time. Pure.

/// The bytes of one direction of a TCP connection that were delivered.
#[derive(Clone, Debug, Default)]
pub struct NewBytes {
    /// The end of the highest delivered byte, counted without wrapping; absent before the first segment.
    end: Option<u64>,
    /// Missing parts below `end`, in order, without touching each other.
    gaps: Vec<(u64, u64)>,
}

impl NewBytes {
    /// A segment is delivered. Returns how many of its bytes were not delivered before.
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
        // The position nearest to the highest byte with this sequence number.
        let distance = i64::from(sequence.wrapping_sub(end as u32) as i32);
        let begin = end.saturating_add_signed(distance);
        let until = begin + length;
        if begin > end {
            self.gaps.push((end, begin));
        }
        let mut new = until.saturating_sub(begin.max(end));
        if begin < end && !self.gaps.is_empty() {
            new += self.fill(begin, until);
        }
        self.end = Some(end.max(until));
        new
    }

    /// Removes the part from `begin` to `until` from the gaps, and returns how much of it was missing.
    fn fill(&mut self, begin: u64, until: u64) -> u64 {
        let mut filled = 0;
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for (from, to) in self.gaps.drain(..) {
            let (low, high) = (from.max(begin), to.min(until));
            if low >= high {
                left.push((from, to));
                continue;
            }
            filled += high - low;
            left.extend([(from, low), (high, to)].into_iter().filter(|(from, to)| from < to));
        }
        self.gaps = left;
        filled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retransmission_of_delivered_bytes_is_not_new() {
        let mut bytes = NewBytes::default();
        assert_eq!(bytes.deliver(100, 50), 50);
        assert_eq!(bytes.deliver(100, 50), 0);
        assert_eq!(bytes.deliver(200, 50), 50, "a gap from 150 to 200");
        assert_eq!(bytes.deliver(140, 40), 30);
        assert_eq!(bytes.deliver(140, 200), 20 + 90);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut bytes = NewBytes::default();
        assert_eq!(bytes.deliver(u32::MAX - 9, 20), 20);
        assert_eq!(bytes.deliver(10, 5), 5);
        assert_eq!(bytes.deliver(u32::MAX - 9, 25), 0);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_a_set(
            first: u32, segments in prop::collection::vec((0_u32..3000, 0_usize..400), 1..60),
        ) {
            let mut bytes = NewBytes::default();
            let mut set = BTreeSet::new();
            // What comes before the first segment is not known to be missing.
            bytes.deliver(first, 1);
            set.insert(0_u32);
            for (offset, length) in segments {
                let before = set.len();
                set.extend(offset..offset + length as u32);
                let new = bytes.deliver(first.wrapping_add(offset), length);
                prop_assert_eq!(new, (set.len() - before) as u64);
            }
        }
    }
}
