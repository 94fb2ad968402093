//! The random decisions about packets, derived from a seed. Each kind of decision has its own generator, so that a
//! change of one setting leaves the other decisions unchanged. Pure.

use std::time::Duration;

use fastrand::Rng;

use crate::settings::{BurstLoss, DirectionSettings, milliseconds};

/// The random generators of one direction, and the state of its burst loss.
#[derive(Debug)]
pub(crate) struct Impairments {
    loss: Rng,
    bursts: Rng,
    jitter: Rng,
    reorder: Rng,
    duplicate: Rng,
    is_in_burst: bool,
}

/// What happens to one packet behind the transmitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) is_lost: bool,
    pub(crate) is_lost_in_burst: bool,
    pub(crate) is_duplicated: bool,
    pub(crate) jitter: Duration,
    /// The additional delay of a packet that later packets shall overtake.
    pub(crate) held_back: Option<Duration>,
}

impl Impairments {
    pub(crate) fn new(seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed);
        let mut next = || Rng::with_seed(seeds.u64(..));
        Self { loss: next(), bursts: next(), jitter: next(), reorder: next(), duplicate: next(), is_in_burst: false }
    }

    /// Decides what happens to the next packet.
    pub(crate) fn decide(&mut self, settings: &DirectionSettings) -> Decision {
        let happens = |rng: &mut Rng, percent: f64| percent > 0.0 && rng.f64() * 100.0 < percent;
        let is_lost_in_burst = settings.burst_loss.is_some_and(|burst| self.burst(burst));
        let held_back = settings.reorder.filter(|reorder| happens(&mut self.reorder, reorder.percent));
        Decision {
            is_lost: happens(&mut self.loss, settings.loss_percent),
            is_lost_in_burst,
            is_duplicated: happens(&mut self.duplicate, settings.duplicate_percent),
            jitter: milliseconds(self.jitter.f64() * settings.jitter_ms),
            held_back: held_back.map(|reorder| milliseconds(reorder.by_ms)),
        }
    }

    fn burst(&mut self, burst: BurstLoss) -> bool {
        let changes = if self.is_in_burst { burst.leave_percent } else { burst.enter_percent };
        self.is_in_burst ^= self.bursts.f64() * 100.0 < changes;
        // Drawn in both states of the model, so that the random sequence does not depend on the state.
        let is_lost = self.bursts.f64() * 100.0 < burst.loss_percent;
        self.is_in_burst && is_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of 200,000 packets for which `is` holds.
    fn share(settings: &DirectionSettings, is: impl Fn(&Decision) -> bool) -> f64 {
        let mut impairments = Impairments::new(5);
        let count = 200_000;
        (0..count).filter(|_| is(&impairments.decide(settings))).count() as f64 / f64::from(count)
    }

    #[test]
    fn shares_are_as_set() {
        let settings = DirectionSettings { loss_percent: 3.0, duplicate_percent: 0.5, ..Default::default() };
        // Five standard deviations of 200,000 packets.
        assert!((share(&settings, |decision| decision.is_lost) - 0.03).abs() < 0.002);
        assert!((share(&settings, |decision| decision.is_duplicated) - 0.005).abs() < 0.001);
        assert_eq!(share(&settings, |decision| decision.held_back.is_some()), 0.0);
    }

    #[test]
    fn burst_loss_comes_in_runs() {
        let burst = BurstLoss { enter_percent: 0.25, leave_percent: 25.0, loss_percent: 100.0 };
        let settings = DirectionSettings { burst_loss: Some(burst), ..Default::default() };
        let mut impairments = Impairments::new(9);
        let lost = (0..400_000).map(|_| impairments.decide(&settings).is_lost_in_burst).collect::<Vec<_>>();
        let count = lost.iter().filter(|lost| **lost).count() as f64;
        let runs = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        // Of the stationary distribution: enter / (enter + leave), and runs of 1 / leave.
        assert!((count / 400_000.0 - 0.0099).abs() < 0.001, "{count}");
        assert!((count / runs - 4.0).abs() < 0.4, "{count} in {runs}");
    }

    #[test]
    fn the_same_seed_gives_the_same_decisions_and_loss_does_not_depend_on_jitter() {
        let plain = DirectionSettings { loss_percent: 10.0, ..Default::default() };
        let jittery = DirectionSettings { jitter_ms: 5.0, duplicate_percent: 10.0, ..plain.clone() };
        let lost = |seed, settings: &DirectionSettings| {
            let mut impairments = Impairments::new(seed);
            (0..1000).map(|_| impairments.decide(settings).is_lost).collect::<Vec<_>>()
        };
        assert_eq!(lost(1, &plain), lost(1, &jittery));
        assert_ne!(lost(1, &plain), lost(2, &plain));
    }
}
