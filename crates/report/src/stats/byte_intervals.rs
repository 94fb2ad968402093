//! Turns the samples of a direction into intervals that are long enough for a rate, and merges intervals where bytes
//! arrive in clumps. No other module merges intervals. Pure: no I/O, no clock.

use std::time::Duration;

use paramedic_link::measurement::{INTERVAL_MS, Sample};

use super::latency::percentile;

/// An interval shorter than this, in microseconds, is merged with its neighbour: its rate would be mostly rounding
/// error.
const SHORTEST_US: u64 = INTERVAL_MS * 1000 / 2;
/// A merged interval should hold this many clumps of bytes.
const CLUMPS: usize = 4;
/// Merging leaves at least this many intervals, unless the usual distance between clumps requires longer intervals.
const FEWEST_MERGED: usize = 10;
/// Bytes count as arriving in clumps only if there are at least this many silences between clumps. One or two silences
/// are outages.
const FEWEST_SILENCES: usize = 3;
/// If less than 1/20 of the intervals are without bytes, intervals are not merged: no reported percentile would change.
const SILENT_PART: usize = 20;
/// A silence counts as a mere delay if the two intervals after it hold at least this share of the bytes that the mean
/// rate would have brought during the silence. Otherwise the line carried nothing during the silence.
const CLUMP_SHARE: f64 = 0.8;

/// The bytes that arrived between two times of the receiver's clock. The two times differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteInterval {
    pub(super) from_us: u64,
    pub(super) to_us: u64,
    pub(super) bytes: u128,
}

impl ByteInterval {
    pub(super) fn length_us(&self) -> u64 {
        self.to_us - self.from_us
    }

    pub(super) fn rate(&self) -> f64 {
        self.bytes as f64 * 8e6 / self.length_us() as f64
    }

    /// The mean rate in the interval, in bits per second, rounded to a whole number.
    pub(super) fn bps(&self) -> u64 {
        let length = u128::from(self.length_us());
        u64::try_from((self.bytes.saturating_mul(8_000_000) + length / 2) / length).unwrap_or(u64::MAX)
    }

    /// Merges neighbouring intervals into one. `parts` must not be empty.
    pub(super) fn whole(parts: &[ByteInterval]) -> ByteInterval {
        ByteInterval {
            from_us: parts[0].from_us,
            to_us: parts[parts.len() - 1].to_us,
            bytes: parts.iter().map(|part| part.bytes).sum(),
        }
    }
}

/// Turns samples into intervals with their real lengths. A sample whose time did not advance adds its bytes to the
/// interval before it. Intervals that are too short for a rate are merged. Ignores samples that are later than one
/// interval after the end of `span`.
pub(super) fn intervals(samples: &[Sample], span: Duration) -> Vec<ByteInterval> {
    let last_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).saturating_add(INTERVAL_MS * 1000);
    let mut found: Vec<ByteInterval> = Vec::with_capacity(samples.len());
    let mut open = ByteInterval { from_us: 0, to_us: 0, bytes: 0 };
    for sample in samples.iter().filter(|sample| sample.at_us <= last_us) {
        let bytes = u128::from(sample.bytes);
        match found.last_mut() {
            Some(before) if sample.at_us <= open.to_us && open.length_us() == 0 => before.bytes += bytes,
            _ => {
                open.bytes += bytes;
                open.to_us = open.to_us.max(sample.at_us);
            }
        }
        if open.length_us() >= SHORTEST_US {
            found.push(open);
            open = ByteInterval { from_us: open.to_us, to_us: open.to_us, bytes: 0 };
        }
    }
    if open.length_us() > 0 {
        match found.last_mut() {
            Some(before) => *before = ByteInterval::whole(&[*before, open]),
            None => found.push(open),
        }
    }
    found
}

/// The intervals from the first byte on. If bytes arrive in clumps, the intervals after the last byte are left out,
/// because the next clump may have been in flight at the end.
pub(super) fn between_first_and_last_byte(intervals: &[ByteInterval]) -> &[ByteInterval] {
    let Some(lead) = intervals.iter().position(|interval| interval.bytes > 0) else { return intervals };
    let gap = usual_gap(intervals);
    // If the first byte did not arrive at the start of its interval, that interval has no valid rate.
    let first = if gap == 1 && lead == 0 { 0 } else { lead + 1 };
    let rest = intervals.get(first..).unwrap_or_default();
    let Some(last) = rest.iter().rposition(|interval| interval.bytes > 0) else { return &intervals[lead..] };
    // A longer silence at the end is part of the result.
    if gap > 1 && rest.len() - last <= 2 * gap { &rest[..=last] } else { rest }
}

/// Merges the intervals if bytes arrive in clumps that are further apart than samples. Each merged interval holds
/// several clumps and ends with a part that has bytes. `usual_gap` is the usual distance between clumps in the whole
/// direction, as the function of the same name returns it.
pub(super) fn merged(intervals: &[ByteInterval], usual_gap: usize) -> Vec<ByteInterval> {
    if usual_gap == 1 || intervals.iter().all(|interval| interval.bytes == 0) {
        return intervals.to_vec();
    }
    let most = (intervals.len() / FEWEST_MERGED).max(usual_gap);
    let least = (CLUMPS * usual_gap).min(most);
    let (mut merged, mut from) = (Vec::new(), 0);
    for (at, interval) in intervals.iter().enumerate() {
        if at + 1 - from >= least && interval.bytes > 0 {
            merged.push(ByteInterval::whole(&intervals[from..=at]));
            from = at + 1;
        }
    }
    if let Some(left) = intervals.get(from..).filter(|left| !left.is_empty()) {
        let left = ByteInterval::whole(left);
        match merged.last_mut() {
            Some(before) => *before = ByteInterval::whole(&[*before, left]),
            None => merged.push(left),
        }
    }
    merged
}

/// The usual distance between clumps, counted in intervals from one interval with bytes to the next; 1 if bytes do not
/// arrive in clumps. Nine of ten clumps are at most this far apart.
///
/// Bytes arrive in clumps if there are repeated silences that only delay bytes: what the line carried during a silence
/// arrives at its end. TLS records of 16 KiB arrive like that on a slow line, and so do all bytes behind a lost packet.
/// Three kinds of silence do not count. If a line stops and starts again, no more bytes arrive after the silence than
/// at other times. A single outage is not a repeated silence. After the silences of TCP slow start, few bytes arrive.
pub(super) fn usual_gap(intervals: &[ByteInterval]) -> usize {
    let with_bytes = intervals.iter().enumerate().filter(|(_, interval)| interval.bytes > 0).map(|(at, _)| at);
    let with_bytes = with_bytes.collect::<Vec<_>>();
    if (intervals.len() - with_bytes.len()) * SILENT_PART < intervals.len() {
        return 1;
    }
    let mean = intervals.iter().map(|interval| interval.bytes).sum::<u128>() as f64 / intervals.len() as f64;
    let distance = |pair: &[usize]| pair[1] - pair[0];
    let is_clump = |pair: &&[usize]| {
        let after = intervals[pair[1]..].iter().take(2).map(|interval| interval.bytes).sum::<u128>();
        after as f64 >= CLUMP_SHARE * mean * distance(pair) as f64
    };
    let silences = with_bytes.windows(2).filter(|pair| distance(pair) > 1);
    let mut clumps = silences.filter(is_clump).map(distance).collect::<Vec<_>>();
    if clumps.len() < FEWEST_SILENCES {
        return 1;
    }
    clumps.sort_unstable();
    percentile(&clumps, 900).unwrap_or(1)
}
