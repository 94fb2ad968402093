//! A receiver's record of one stream's datagrams: loss, duplicates, reordering, jitter. Reads no clock: times are
//! arguments.

use super::packet::Bulk;

/// How many sequence numbers the ledger remembers: the highest one and those just below it. At 6 million datagrams per
/// second, this is the last 20 ms.
const WINDOW: u64 = 1 << 17;
const WORDS: usize = (WINDOW / 64) as usize;
/// How long the fastest transit of a datagram serves as the base for queueing delays, in nanoseconds. Without this
/// limit, clock drift would look like a queue.
const BASE_HOLDS_NS: u64 = 5_000_000_000;

/// The counts of the datagrams that arrived on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Datagrams that arrived, without duplicates.
    pub(super) received: u64,
    /// Datagrams that arrived, without duplicates, and were sent after the sender's rate search had settled for the
    /// last time.
    pub(super) settled: u64,
    /// One more than the highest received sequence number; 0 before the first datagram.
    pub(super) through: u64,
    /// Datagrams that arrived again, or so late that the ledger no longer knows whether they are new.
    pub(super) duplicates: u64,
    /// Datagrams that arrived after a datagram with a higher sequence number (RFC 4737, section 3.3).
    pub(super) out_of_order: u64,
    /// When the first of the datagrams in `settled` arrived, in nanoseconds of the clock of [`DatagramLedger::enter`].
    pub(super) settled_at_ns: Option<u64>,
}

/// The record of one stream's datagrams.
pub(super) struct DatagramLedger {
    counts: Counts,
    /// One bit per sequence number: whether it arrived. The position of the bit is the number modulo [`WINDOW`]. Only
    /// the bits of numbers below `through` are valid.
    arrived: Box<[u64; WORDS]>,
    /// The transit of the previous datagram: arrival time minus sending time. The times are from two clocks, so only
    /// differences are meaningful.
    transit_ns: Option<i64>,
    /// 16 times the jitter estimate of RFC 3550 in nanoseconds.
    jitter_ns_16: u64,
    base: Base,
    /// The fastest transit since the last call of [`DatagramLedger::queue_us`].
    fastest_ns: Option<i64>,
}

/// The fastest recent transit, in nanoseconds: the fastest of the last one to two periods of [`BASE_HOLDS_NS`].
#[derive(Default)]
struct Base {
    since_ns: u64,
    before: Option<i64>,
    now: Option<i64>,
}

impl Base {
    fn note(&mut self, transit_ns: i64, at_ns: u64) -> i64 {
        if at_ns.saturating_sub(self.since_ns) > BASE_HOLDS_NS {
            *self = Self { since_ns: at_ns, before: self.now.take(), now: None };
        }
        let now = self.now.map_or(transit_ns, |now| now.min(transit_ns));
        self.now = Some(now);
        self.before.map_or(now, |before| before.min(now))
    }
}

impl DatagramLedger {
    pub(super) fn new() -> Self {
        Self {
            counts: Counts::default(),
            // Allocated on the heap directly, because the array is large.
            arrived: vec![0; WORDS].try_into().unwrap_or_else(|_| unreachable!("as many words as it has")),
            transit_ns: None,
            jitter_ns_16: 0,
            base: Base::default(),
            fastest_ns: None,
        }
    }

    /// Records a verified datagram that arrived at `at_ns` of this end's clock. Returns whether the datagram is new.
    pub(super) fn enter(&mut self, bulk: &Bulk, at_ns: u64) -> bool {
        let seq = bulk.seq;
        if seq >= self.counts.through {
            self.skip_to(seq);
            self.counts.through = seq.saturating_add(1);
            if !bulk.is_settled {
                // The sender's rate search has resumed.
                (self.counts.settled, self.counts.settled_at_ns) = (0, None);
            }
        } else if self.counts.through - seq > WINDOW || self.has(seq) {
            // A datagram below the window may be a duplicate and counts as one. If it is new, it stays counted as lost.
            self.counts.duplicates += 1;
            return false;
        } else {
            self.counts.out_of_order += 1;
        }
        self.arrived[word(seq)] |= 1 << (seq % 64);
        self.counts.received += 1;
        if bulk.is_settled {
            self.counts.settled += 1;
            self.counts.settled_at_ns.get_or_insert(at_ns);
        }
        self.time(bulk.sent_ns, at_ns);
        true
    }

    /// The counts of the stream's datagrams so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The interarrival jitter (RFC 3550, section 6.4.1), in nanoseconds.
    pub(super) fn jitter_ns(&self) -> u64 {
        self.jitter_ns_16 / 16
    }

    /// The queueing delay in microseconds: the fastest transit since the last call of this function, minus the fastest
    /// recent transit ([`BASE_HOLDS_NS`]).
    pub(super) fn queue_us(&mut self) -> u32 {
        let base = [self.base.before, self.base.now].into_iter().flatten().min();
        let (Some(fastest), Some(base)) = (self.fastest_ns.take(), base) else { return 0 };
        u32::try_from(fastest.saturating_sub(base) / 1000).unwrap_or(u32::MAX)
    }

    /// Clears the bits of the sequence numbers from `through` to `seq`, because these bits still hold the state of much
    /// older numbers.
    fn skip_to(&mut self, seq: u64) {
        let from = self.counts.through;
        if seq - from >= WINDOW {
            self.arrived.fill(0);
            return;
        }
        for skipped in from..=seq {
            self.arrived[word(skipped)] &= !(1 << (skipped % 64));
        }
    }

    fn time(&mut self, sent_ns: u64, at_ns: u64) {
        // The zeros of the clocks differ arbitrarily, and the sender may lie, so the subtraction wraps instead of
        // overflowing.
        let transit = at_ns.wrapping_sub(sent_ns).cast_signed();
        if let Some(before) = self.transit_ns.replace(transit) {
            let difference = transit.wrapping_sub(before).unsigned_abs();
            // J += (|D| - J) / 16, in sixteenths.
            self.jitter_ns_16 = (self.jitter_ns_16 - self.jitter_ns_16 / 16).saturating_add(difference);
        }
        self.fastest_ns = Some(self.fastest_ns.map_or(transit, |fastest| fastest.min(transit)));
        self.base.note(transit, at_ns);
    }

    fn has(&self, seq: u64) -> bool {
        self.arrived[word(seq)] >> (seq % 64) & 1 == 1
    }
}

fn word(seq: u64) -> usize {
    (seq % WINDOW) as usize / 64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn enter(ledger: &mut DatagramLedger, seq: u64) -> bool {
        ledger.enter(&Bulk { seq, sent_ns: seq * 1000, is_settled: seq >= 4 }, seq * 1000 + 500)
    }

    #[test]
    fn late_and_duplicate_datagrams_are_distinguished() {
        let mut ledger = DatagramLedger::new();
        for seq in [0, 1, 3, 2, 2, 3, 6, 4, 5] {
            enter(&mut ledger, seq);
        }
        let counts = ledger.counts();
        assert_eq!((counts.received, counts.through, counts.duplicates, counts.out_of_order), (7, 7, 2, 3));
        assert_eq!((counts.settled, counts.settled_at_ns), (3, Some(6500)));
    }

    #[test]
    fn jitter_is_that_of_rfc_3550() {
        let mut ledger = DatagramLedger::new();
        let mut expected = 0.0_f64;
        let mut before = None;
        for (seq, transit) in [5_000_000_i64, 9_000_000, 2_000_000, 2_000_000, 8_000_000].into_iter().enumerate() {
            let sent_ns = seq as u64 * 20_000_000;
            ledger.enter(&Bulk { seq: seq as u64, sent_ns, is_settled: true }, sent_ns.wrapping_add_signed(transit));
            if let Some(before) = before.replace(transit) {
                expected += ((transit - before).abs() as f64 - expected) / 16.0;
            }
        }
        assert!((ledger.jitter_ns() as f64 - expected).abs() < 10.0, "{} {expected}", ledger.jitter_ns());
    }

    #[test]
    fn the_queue_is_the_delay_of_the_fastest_datagram() {
        let mut ledger = DatagramLedger::new();
        let mut at = |seq: u64, transit_us: u64| {
            let sent_ns = seq * 1_000_000;
            ledger.enter(&Bulk { seq, sent_ns, is_settled: true }, sent_ns + transit_us * 1000);
            ledger.queue_us()
        };
        assert_eq!((at(0, 100), at(1, 5100), at(2, 100)), (0, 5000, 0));
        // Clock drift looks like a queue only for a limited time.
        assert_eq!(at(6_000, 400), 300);
        assert_eq!((at(12_000, 700), at(18_000, 1000)), (300, 300));
    }

    proptest! {
        #[test]
        fn each_number_counts_once(seqs in prop::collection::vec(0u64..300, 0..500)) {
            let mut ledger = DatagramLedger::new();
            let fresh = seqs.iter().filter(|seq| enter(&mut ledger, **seq)).count();
            let distinct = seqs.iter().collect::<HashSet<_>>().len();
            prop_assert_eq!(fresh, distinct);
            let counts = ledger.counts();
            prop_assert_eq!(counts.received + counts.duplicates, seqs.len() as u64);
            prop_assert_eq!(counts.received, distinct as u64);
        }

        #[test]
        fn arbitrary_datagrams_are_counted_without_a_panic(
            bulk in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>(), any::<u64>()), 0..50),
        ) {
            let mut ledger = DatagramLedger::new();
            for (seq, sent_ns, is_settled, at_ns) in &bulk {
                ledger.enter(&Bulk { seq: *seq, sent_ns: *sent_ns, is_settled: *is_settled }, *at_ns);
            }
            ledger.queue_us();
            let counts = ledger.counts();
            prop_assert_eq!(counts.received + counts.duplicates, bulk.len() as u64);
        }

        #[test]
        fn numbers_a_window_apart_do_not_meet(first in 0u64..1000, rounds in 1u64..4) {
            let mut ledger = DatagramLedger::new();
            enter(&mut ledger, first);
            prop_assert!(enter(&mut ledger, first + rounds * WINDOW));
            prop_assert!(!enter(&mut ledger, first));
        }
    }
}
