//! Classifies the lost probes of a phase as a loss rate, a burst or an outage. Pure: no I/O, no clock.

use paramedic_link::test_spec::Direction;

use crate::stats;

/// A path that loses at least this share of its packets counts as faulty: such a loss audibly disturbs calls.
const FAULTY_LOSS: f64 = 0.01;
/// A loss period of at least this many milliseconds counts as an outage, whatever the share of lost probes.
const OUTAGE_MS: u64 = 1_000;
/// A loss period needs at least this many lost probes to count as a burst or an outage.
const MIN_BURST: u64 = 3;

/// The probes that a phase lost, and their distribution over loss periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossSeen {
    /// The number of probes lost in the direction that lost more. If the directions are unknown, in both together.
    pub lost: u64,
    /// The direction that lost more; `None` if the directions are unknown.
    pub direction: Option<Direction>,
    /// The number of probes lost in both directions together.
    pub all: u64,
    /// The number of probes that were sent.
    pub of: u64,
    /// The number of loss periods. A loss period is a run of consecutive lost probes (RFC 3357).
    pub periods: u64,
    /// The number of lost probes in the longest loss period.
    pub longest_probes: u64,
    /// The duration of the longest loss period, in milliseconds.
    pub longest_ms: u64,
}

/// What the lost probes of a phase show about the path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossKind {
    /// The path loses this share of its packets (0 to 1) throughout: the lower bound of its 95 % confidence interval is
    /// above 1 %.
    Rate(f64),
    /// At least half of the lost probes were lost in one loss period of less than a second.
    Burst {
        /// The number of probes lost in the loss period.
        probes: u64,
        /// The duration of the loss period, in milliseconds.
        ms: u64,
    },
    /// No probe was answered for one second or longer, and several probes were sent in this time.
    Outage {
        /// The duration of the outage, in milliseconds.
        ms: u64,
    },
}

impl LossSeen {
    /// The share of probes that were lost, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.of == 0 { 0.0 } else { self.lost as f64 / self.of as f64 }
    }

    /// The kind of loss; `None` if too few probes were lost to show a kind.
    pub fn kind(&self) -> Option<LossKind> {
        // With long pauses between probes, a single lost probe is a long loss period, and shows no outage.
        if self.longest_ms >= OUTAGE_MS && self.longest_probes >= MIN_BURST {
            return Some(LossKind::Outage { ms: self.longest_ms });
        }
        let is_burst = self.longest_probes >= MIN_BURST && self.longest_probes.saturating_mul(2) >= self.all;
        if self.share() >= FAULTY_LOSS && is_burst {
            return Some(LossKind::Burst { probes: self.longest_probes, ms: self.longest_ms });
        }
        stats::is_share_above(FAULTY_LOSS, self.lost, self.of, self.periods).then(|| LossKind::Rate(self.share()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: LossSeen =
        LossSeen { lost: 8, direction: None, all: 8, of: 200, periods: 8, longest_probes: 1, longest_ms: 10 };

    #[test]
    fn a_rate_needs_proof() {
        assert_eq!(LOSS.kind(), Some(LossKind::Rate(0.04)));
        assert_eq!(LossSeen { lost: 2, periods: 2, ..LOSS }.kind(), None);
        assert_eq!(LossSeen { lost: 20, of: 2_000, periods: 20, ..LOSS }.kind(), None, "1 % is the bound itself");
    }

    #[test]
    fn one_period_is_a_burst_or_an_outage() {
        let burst = LossSeen { lost: 9, all: 9, periods: 2, longest_probes: 8, longest_ms: 80, ..LOSS };
        assert!(LossSeen { all: 17, ..burst }.kind() != burst.kind(), "half of the losses of both directions");
        assert_eq!(burst.kind(), Some(LossKind::Burst { probes: 8, ms: 80 }));
        assert_eq!(LossSeen { of: 2_000, ..burst }.kind(), None, "a short burst in a long phase");
        let outage = LossSeen { lost: 110, of: 100_000, periods: 2, longest_probes: 108, longest_ms: 1_080, ..LOSS };
        assert_eq!(outage.kind(), Some(LossKind::Outage { ms: 1_080 }));
        let slow_probes = LossSeen { lost: 1, of: 30, periods: 1, longest_probes: 1, longest_ms: 1_000, ..LOSS };
        assert_eq!(slow_probes.kind(), None, "one probe, sent once a second");
    }
}
