//! The reflector's record of the sequence numbers of received probes. It detects replays, and shows in which direction
//! a probe was lost.

use super::packet::{ArrivalHistory, HISTORY};

/// The reflector refuses a probe whose sequence number is at least this far below the highest received number.
const WINDOW: u32 = 1024;
/// The number of remembered sequence numbers: those of 16 s at the shortest probe interval of 1 ms. A silent session
/// ends earlier, after 10 s.
const REMEMBERED: u32 = 16 * 1024;
const WORDS: usize = REMEMBERED as usize / 64;

/// The sequence numbers of the probes that arrived over one transport in a session.
pub(super) struct ProbeLedger {
    /// The highest sequence number that arrived.
    newest: Option<u32>,
    /// One bit per sequence number: whether it arrived. The position of the bit is the number modulo [`REMEMBERED`].
    /// Valid for the last [`REMEMBERED`] numbers up to `newest`.
    arrived: Box<[u64; WORDS]>,
    duplicates: u16,
}

/// Whether the sequence number of a probe is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The sequence number has not arrived before.
    New,
    /// The sequence number arrived before, or is too old to be remembered.
    Replayed,
}

impl ProbeLedger {
    pub(super) fn new() -> Self {
        Self { newest: None, arrived: Box::new([0; WORDS]), duplicates: 0 }
    }

    /// Records the sequence number of a verified probe. Returns whether the number is new.
    pub(super) fn enter(&mut self, seq: u32) -> Entry {
        match self.newest {
            Some(newest) if seq <= newest => {
                if newest - seq >= WINDOW {
                    return Entry::Replayed;
                }
                if self.has(seq) {
                    self.duplicates = self.duplicates.wrapping_add(1);
                    return Entry::Replayed;
                }
            }
            newest => {
                // Clears the bits of the skipped numbers: each still holds the state of a much older number.
                let first = newest.map_or(0, |newest| newest + 1).max(seq.saturating_sub(REMEMBERED - 1));
                (first..seq).for_each(|skipped| self.set(skipped, false));
                self.newest = Some(seq);
            }
        }
        self.set(seq, true);
        Entry::New
    }

    /// Reports which of the [`HISTORY`] sequence numbers up to `about` have arrived. `about` is clamped to the
    /// remembered range.
    pub(super) fn history(&self, about: u32) -> ArrivalHistory {
        let newest = self.newest.unwrap_or(0);
        let oldest = newest.saturating_sub(REMEMBERED - HISTORY);
        let about = about.clamp(oldest, newest);
        let mut arrived = [0; HISTORY as usize / 8];
        if self.newest.is_some() {
            for back in (0..HISTORY).filter(|back| about.checked_sub(*back).is_some_and(|seq| self.has(seq))) {
                arrived[back as usize / 8] |= 1 << (back % 8);
            }
        }
        ArrivalHistory { about, arrived }
    }

    /// How often a sequence number within [`WINDOW`] has arrived again, modulo 2^16.
    pub(super) fn duplicates(&self) -> u16 {
        self.duplicates
    }

    fn has(&self, seq: u32) -> bool {
        self.arrived[Self::word(seq)] >> (seq % 64) & 1 == 1
    }

    fn set(&mut self, seq: u32, arrived: bool) {
        let bit = 1 << (seq % 64);
        let word = &mut self.arrived[Self::word(seq)];
        *word = if arrived { *word | bit } else { *word & !bit };
    }

    fn word(seq: u32) -> usize {
        (seq % REMEMBERED) as usize / 64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_number_enters_twice_and_the_history_is_correct(steps in prop::collection::vec(0u32..3000, 1..100), start: u32) {
            let mut ledger = ProbeLedger::new();
            let mut model = HashSet::new();
            let mut at = start.min(u32::MAX - 3_000_000);
            let mut newest = None::<u32>;
            for step in steps {
                // The numbers mostly increase, and sometimes decrease.
                let seq = if step % 3 == 0 { at.saturating_sub(step) } else { at + step };
                at = at.max(seq);
                let fresh = !model.contains(&seq) && newest.is_none_or(|newest| seq > newest || newest - seq < WINDOW);
                prop_assert_eq!(ledger.enter(seq) == Entry::New, fresh);
                if fresh {
                    model.insert(seq);
                    newest = newest.max(Some(seq));
                }
                let newest = newest.unwrap();
                for about in [seq, newest, newest.saturating_sub(5000), seq.saturating_add(77)] {
                    let history = ledger.history(about);
                    prop_assert!(history.about <= newest);
                    for seq in history.about.saturating_sub(HISTORY - 1)..=history.about {
                        prop_assert_eq!(history.arrived(seq), Some(model.contains(&seq)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_second_arrival_is_counted() {
        let mut ledger = ProbeLedger::new();
        assert_eq!(
            [5, 3, 5, 3].map(|seq| ledger.enter(seq)),
            [Entry::New, Entry::New, Entry::Replayed, Entry::Replayed]
        );
        assert_eq!(ledger.duplicates(), 2);
    }

    #[test]
    fn a_number_below_the_window_is_refused() {
        let mut ledger = ProbeLedger::new();
        ledger.enter(2000);
        assert_eq!(ledger.enter(2000 - WINDOW), Entry::Replayed);
        assert_eq!(ledger.enter(2000 - WINDOW + 1), Entry::New);
    }

    #[test]
    fn the_highest_number_works() {
        let mut ledger = ProbeLedger::new();
        assert_eq!(ledger.enter(u32::MAX), Entry::New);
        assert_eq!(ledger.enter(u32::MAX), Entry::Replayed);
        assert_eq!(ledger.history(u32::MAX).arrived(u32::MAX - 1), Some(false));
    }

    #[test]
    fn the_history_does_not_cover_forgotten_numbers() {
        let mut ledger = ProbeLedger::new();
        ledger.enter(3);
        ledger.enter(100_000);
        assert_eq!(ledger.history(3).about, 100_000 - (REMEMBERED - HISTORY));
    }
}
