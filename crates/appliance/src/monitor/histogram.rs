//! A histogram of round trips that can be merged with others. The encoded histogram of a minute has at most 350 bytes.
//! Values below 128 µs are exact. Above, each power of two has 64 buckets, so that a value is off by at most 0.8 %. An
//! encoding that would be too long merges buckets, which doubles this error each time.

use std::collections::BTreeMap;

/// The longest encoded histogram of a minute, in bytes.
const MAX_MINUTE_BYTES: usize = 350;
/// The longest encoded histogram of more than a minute, in bytes.
const MAX_BYTES: usize = 4096;
/// Each value below this limit has its own bucket.
const LINEAR: u64 = 1 << LINEAR_BITS;
const LINEAR_BITS: u32 = 7;
/// The number of bits that select one of the buckets of a power of two.
const SUB_BITS: u32 = LINEAR_BITS - 1;
/// The longest round trip that the histogram distinguishes, in microseconds. A longer round trip counts as this one.
const MAX_US: u64 = 60_000_000;
/// The maximum number of times that an encoding merges neighbouring buckets.
const MAX_COARSENING: u8 = 7;

/// Counts of round trips in microseconds, by bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyHistogram {
    buckets: BTreeMap<u32, u64>,
}

/// The error for bytes that are not an encoded histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored histogram is damaged")]
pub struct DamagedHistogram;

impl LatencyHistogram {
    /// Counts one round trip, in microseconds.
    pub fn note(&mut self, us: u64) {
        *self.buckets.entry(bucket(us.min(MAX_US))).or_default() += 1;
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            let own = self.buckets.entry(*bucket).or_default();
            *own = own.saturating_add(*count);
        }
    }

    /// The number of round trips.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The round trip, in microseconds, that the fraction `share` (0 to 1) of all round trips does not exceed. `None`
    /// if there are no round trips.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let rank = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0);
        let mut below = 0_u64;
        for (bucket, count) in &self.buckets {
            below = below.saturating_add(*count);
            if below as f64 >= rank {
                return Some(middle(*bucket));
            }
        }
        None
    }

    /// Encodes the counts of a minute. The result has fewer bytes than [`encode`](Self::encode) may use for an hour or
    /// a day.
    pub fn encode_minute(&self) -> Vec<u8> {
        self.encode_within(MAX_MINUTE_BYTES)
    }

    /// Encodes the counts of an hour or a day.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_within(MAX_BYTES)
    }

    /// Encodes the counts in at most `longest` bytes if possible: merges neighbouring buckets as often as needed. Each
    /// merge doubles the error and halves the length.
    fn encode_within(&self, longest: usize) -> Vec<u8> {
        let encode = |coarsening| self.coarsened(coarsening).encode_as(coarsening);
        let fitting = (0..MAX_COARSENING).map(encode).find(|bytes| bytes.len() <= longest);
        fitting.unwrap_or_else(|| encode(MAX_COARSENING))
    }

    fn coarsened(&self, coarsening: u8) -> Self {
        let mut buckets = BTreeMap::new();
        for (bucket, count) in &self.buckets {
            // The middle bucket represents all merged buckets.
            let merged = bucket >> coarsening << coarsening | (1 << coarsening >> 1);
            *buckets.entry(merged).or_default() += count;
        }
        Self { buckets }
    }

    /// Encodes the counts: first the coarsening, then one or two numbers for each bucket. The first number is twice the
    /// distance from the previous bucket, in merged buckets. If the count is not 1, the first number is one more, and
    /// the count follows as the second number.
    fn encode_as(&self, coarsening: u8) -> Vec<u8> {
        let mut bytes = vec![coarsening];
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            let bucket = u64::from(bucket >> coarsening);
            push_varint(&mut bytes, (bucket - before) << 1 | u64::from(*count != 1));
            if *count != 1 {
                push_varint(&mut bytes, *count);
            }
            before = bucket;
        }
        bytes
    }

    /// Decodes counts that [`encode`](Self::encode) or [`encode_minute`](Self::encode_minute) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DamagedHistogram> {
        let Some((coarsening, mut rest)) = bytes.split_first() else { return Ok(Self::default()) };
        if *coarsening > MAX_COARSENING {
            return Err(DamagedHistogram);
        }
        let mut buckets = BTreeMap::new();
        let mut at = 0_u64;
        while !rest.is_empty() {
            let step = take_varint(&mut rest)?;
            at = at.checked_add(step >> 1).ok_or(DamagedHistogram)?;
            let count = if step & 1 == 0 { 1 } else { take_varint(&mut rest)? };
            let bucket = at.checked_mul(1 << coarsening).ok_or(DamagedHistogram)? | (1 << coarsening >> 1);
            let bucket =
                u32::try_from(bucket).ok().filter(|bucket| *bucket <= largest_bucket() + (1 << MAX_COARSENING));
            let own: &mut u64 = buckets.entry(bucket.ok_or(DamagedHistogram)?).or_default();
            *own = own.saturating_add(count);
        }
        Ok(Self { buckets })
    }
}

fn bucket(us: u64) -> u32 {
    if us < LINEAR {
        return us as u32;
    }
    let power = us.ilog2();
    let within = (us >> (power - SUB_BITS)) as u32 & ((1 << SUB_BITS) - 1);
    (1 << LINEAR_BITS) + ((power - LINEAR_BITS) << SUB_BITS) + within
}

fn largest_bucket() -> u32 {
    bucket(MAX_US)
}

/// The middle of a bucket, in µs.
fn middle(bucket: u32) -> u64 {
    if bucket < 1 << LINEAR_BITS {
        return bucket.into();
    }
    let above = bucket - (1 << LINEAR_BITS);
    let (power, within) = ((above >> SUB_BITS) + LINEAR_BITS, above & ((1 << SUB_BITS) - 1));
    let width = 1_u64 << (power - SUB_BITS);
    (1 << power) + u64::from(within) * width + width / 2
}

/// Appends a number as LEB128: seven bits in each byte, the lowest bits first.
fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, DamagedHistogram> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(DamagedHistogram)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DamagedHistogram)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        values.iter().for_each(|us| histogram.note(*us));
        histogram
    }

    proptest! {
        #[test]
        fn a_value_is_off_by_less_than_a_hundredth(us in 0u64..MAX_US) {
            let read = of(&[us]).percentile(0.5).unwrap();
            prop_assert!(read.abs_diff(us) as f64 <= us as f64 * 0.008 + 0.5, "{us}: {read}");
        }

        #[test]
        fn percentiles_are_those_of_the_values(mut values in prop::collection::vec(1u64..5_000_000, 1..400)) {
            let histogram = LatencyHistogram::decode(&of(&values).encode()).unwrap();
            values.sort_unstable();
            for share in [0.0, 0.5, 0.9, 0.99, 1.0] {
                let exact = values[((share * values.len() as f64).ceil() as usize).max(1) - 1];
                let read = histogram.percentile(share).unwrap();
                prop_assert!(read.abs_diff(exact) as f64 <= exact as f64 * 0.02 + 1.0, "{share}: {exact} {read}");
            }
        }

        #[test]
        fn merged_counts_are_the_counts_of_all(
            parts in prop::collection::vec(prop::collection::vec(0u64..90_000_000, 0..60), 0..8),
        ) {
            let mut merged = LatencyHistogram::default();
            for part in &parts {
                merged.merge(&LatencyHistogram::decode(&of(part).encode()).unwrap());
            }
            prop_assert_eq!(merged, of(&parts.concat()));
        }

        #[test]
        fn a_minute_has_at_most_350_bytes_and_keeps_its_count(
            values in prop::collection::vec(prop_oneof![0u64..2_000_000, 0u64..50_000], 0..320),
        ) {
            let bytes = of(&values).encode_minute();
            prop_assert!(bytes.len() <= MAX_MINUTE_BYTES, "{}", bytes.len());
            let read = LatencyHistogram::decode(&bytes).unwrap();
            prop_assert_eq!(read.count(), values.len() as u64);
            prop_assert!(bytes[0] <= 1, "at most twice the error");
            // Reading and writing again changes nothing.
            prop_assert_eq!(read.encode_minute(), bytes);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(histogram) = LatencyHistogram::decode(&bytes) {
                histogram.percentile(0.5);
                histogram.encode_minute();
            }
        }
    }

    #[test]
    fn sixty_probes_at_one_hertz_take_little() {
        let dsl = of(&(0..60).map(|n| 11_500 + n * 37 % 1_000).collect::<Vec<_>>());
        assert!(dsl.encode_minute().len() < 40, "{}", dsl.encode_minute().len());
        let spread = of(&(0..60).map(|n| 1_000 + n * 33_000).collect::<Vec<_>>());
        assert!(spread.encode_minute().len() <= 80, "{}", spread.encode_minute().len());
        assert_eq!(spread.encode_minute()[0], 0, "nothing is merged");
    }

    #[test]
    fn nothing_has_no_percentile_and_one_byte() {
        assert_eq!(LatencyHistogram::default().percentile(0.5), None);
        assert_eq!(LatencyHistogram::default().encode(), [0]);
        assert_eq!(LatencyHistogram::decode(&[]), Ok(LatencyHistogram::default()));
        assert_eq!(LatencyHistogram::decode(&[9, 1, 1]), Err(DamagedHistogram));
        assert_eq!(LatencyHistogram::decode(&[0, 3]), Err(DamagedHistogram));
        assert_eq!(of(&[u64::MAX]).percentile(1.0).map(|us| us > 59_000_000), Some(true));
    }
}
