//! The kind of loss that the lost probes of a phase show: a loss rate, a burst or an outage. Pure.

use crate::stats;

/// The share of lost packets from which a path is faulty: it audibly disturbs calls.
const FAULTY_LOSS: f64 = 0.01;
/// A loss period of this length is an outage, whatever the share.
const OUTAGE_MS: u64 = 1_000;
/// The fewest probes of a burst.
const MIN_BURST: u64 = 3;

/// The lost probes of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossSeen {
    /// The lost probes, in the worse direction if the directions are known.
    pub lost: u64,
    /// All probes of the same direction.
    pub of: u64,
    /// The loss periods (RFC 3357) in which they were lost.
    pub periods: u64,
    /// The probes of the longest loss period.
    pub longest_probes: u64,
    /// The length of that period in milliseconds.
    pub longest_ms: u64,
}

/// The kind of loss that lost probes show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossKind {
    /// The path always loses this share: the lower bound of the share's 95 % confidence interval is above 1 %.
    Rate(f64),
    /// Most of the lost probes were lost in one short period.
    Burst {
        /// The probes of the period.
        probes: u64,
        /// The length of the period.
        ms: u64,
    },
    /// Nothing arrived for a second or more.
    Outage {
        /// The length of the outage.
        ms: u64,
    },
}

impl LossSeen {
    /// The share of lost probes.
    pub fn share(&self) -> f64 {
        if self.of == 0 { 0.0 } else { self.lost as f64 / self.of as f64 }
    }

    /// The kind of loss; `None` if too few probes were lost to show one.
    pub fn kind(&self) -> Option<LossKind> {
        if self.longest_ms >= OUTAGE_MS {
            return Some(LossKind::Outage { ms: self.longest_ms });
        }
        let is_burst = self.longest_probes >= MIN_BURST && self.longest_probes.saturating_mul(2) >= self.lost;
        if self.share() >= FAULTY_LOSS && is_burst {
            return Some(LossKind::Burst { probes: self.longest_probes, ms: self.longest_ms });
        }
        stats::is_share_above(FAULTY_LOSS, self.lost, self.of, self.periods).then(|| LossKind::Rate(self.share()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: LossSeen = LossSeen { lost: 8, of: 200, periods: 8, longest_probes: 1, longest_ms: 10 };

    #[test]
    fn a_rate_needs_proof() {
        assert_eq!(LOSS.kind(), Some(LossKind::Rate(0.04)));
        assert_eq!(LossSeen { lost: 2, periods: 2, ..LOSS }.kind(), None);
        assert_eq!(LossSeen { lost: 20, of: 2_000, periods: 20, ..LOSS }.kind(), None, "1 % is the bound itself");
    }

    #[test]
    fn one_period_is_a_burst_or_an_outage() {
        let burst = LossSeen { lost: 9, periods: 2, longest_probes: 8, longest_ms: 80, ..LOSS };
        assert_eq!(burst.kind(), Some(LossKind::Burst { probes: 8, ms: 80 }));
        assert_eq!(LossSeen { of: 2_000, ..burst }.kind(), None, "a short burst in a long phase");
        let outage = LossSeen { lost: 110, of: 100_000, periods: 2, longest_probes: 108, longest_ms: 1_080 };
        assert_eq!(outage.kind(), Some(LossKind::Outage { ms: 1_080 }));
    }
}
