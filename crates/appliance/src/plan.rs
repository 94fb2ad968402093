//! The plan: the rates that the contract with the Internet provider promises, and whether a measured rate reaches them.
//! Pure.

use paramedic_link::test_spec::Direction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of a plan, in characters.
const MAX_NAME_CHARS: usize = 100;
/// If the contract names no normal rate, a test must measure this share of the promised rate for the plan to count as
/// kept. The contract promises the rate of the line; a test measures the payload, which is 3 to 6 % less because of the
/// headers of Ethernet, IP and TCP.
pub const KEPT_SHARE: f64 = 0.9;

/// The plan: what the contract with the Internet provider promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The Internet provider's name for the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The promised rates towards this device.
    pub download: PromisedRate,
    /// The promised rates away from this device.
    pub upload: PromisedRate,
}

/// The rates that a contract names for a direction, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromisedRate {
    /// The highest rate that the contract names: the advertised rate.
    pub promised_bps: u64,
    /// The rate that is usually available, according to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal_bps: Option<u64>,
    /// The rate that is always available, according to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_bps: Option<u64>,
}

/// Why a plan is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The name of the plan is not valid.
    #[error("the name of a plan must have 1 to {} printable characters", MAX_NAME_CHARS)]
    Name,
    /// A rate of the plan is zero.
    #[error("each {direction} rate of a plan must be more than 0 bit/s")]
    Zero {
        /// The direction whose rate is zero.
        direction: Direction,
    },
    /// The rates of a direction contradict each other.
    #[error("{direction}: the minimum must not exceed the normal rate, which must not exceed the promised rate")]
    Order {
        /// The direction whose rates contradict each other.
        direction: Direction,
    },
}

/// How a measured rate compares with the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanStanding {
    /// The measured rate is below the minimum rate of the contract.
    BelowMinimum {
        /// The minimum rate of the contract.
        minimum_bps: u64,
    },
    /// The measured rate is below the normal rate of the contract.
    BelowNormal {
        /// The normal rate of the contract.
        normal_bps: u64,
    },
    /// The contract names no normal rate, and the measured rate is below [`KEPT_SHARE`] of the promised rate.
    BelowPromise,
    /// The measured rate keeps what the contract promises.
    Kept,
}

impl Plan {
    /// Checks that the name and the rates of the plan are valid.
    pub fn check(&self) -> Result<(), PlanError> {
        let is_printable = |name: &str| !name.trim().is_empty() && !name.chars().any(char::is_control);
        if let Some(name) = &self.name
            && !(is_printable(name) && name.chars().count() <= MAX_NAME_CHARS)
        {
            return Err(PlanError::Name);
        }
        for direction in Direction::BOTH {
            let rate = self.of(direction);
            let minimum = rate.minimum_bps.unwrap_or(1);
            let normal = rate.normal_bps.unwrap_or(rate.promised_bps);
            if rate.promised_bps == 0 || minimum == 0 || normal == 0 {
                return Err(PlanError::Zero { direction });
            }
            if minimum > normal || normal > rate.promised_bps {
                return Err(PlanError::Order { direction });
            }
        }
        Ok(())
    }

    /// The promised rates of a direction.
    pub fn of(&self, direction: Direction) -> PromisedRate {
        match direction {
            Direction::Download => self.download,
            Direction::Upload => self.upload,
        }
    }
}

impl PromisedRate {
    /// The measured rate as a share of the promised rate: 1.0 is the whole promised rate.
    pub fn share(self, measured_bps: u64) -> f64 {
        measured_bps as f64 / self.promised_bps.max(1) as f64
    }

    /// How the measured rate compares with the promised rates.
    pub fn standing(self, measured_bps: u64) -> PlanStanding {
        match (self.minimum_bps, self.normal_bps) {
            (Some(minimum_bps), _) if measured_bps < minimum_bps => PlanStanding::BelowMinimum { minimum_bps },
            (_, Some(normal_bps)) if measured_bps < normal_bps => PlanStanding::BelowNormal { normal_bps },
            (_, None) if self.share(measured_bps) < KEPT_SHARE => PlanStanding::BelowPromise,
            _ => PlanStanding::Kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(promised: u64, normal: Option<u64>, minimum: Option<u64>) -> PromisedRate {
        PromisedRate { promised_bps: promised, normal_bps: normal, minimum_bps: minimum }
    }

    #[test]
    fn a_rate_is_compared_with_what_the_contract_names() {
        use PlanStanding::{BelowMinimum, BelowNormal, BelowPromise, Kept};
        let full = rate(100, Some(80), Some(50));
        for (promise, measured, standing) in [
            (full, 49, BelowMinimum { minimum_bps: 50 }),
            (full, 50, BelowNormal { normal_bps: 80 }),
            (full, 80, Kept),
            (rate(100, None, Some(50)), 49, BelowMinimum { minimum_bps: 50 }),
            (rate(100, None, Some(50)), 89, BelowPromise),
            (rate(100, None, None), 90, Kept),
            (rate(100, None, None), 0, BelowPromise),
            (rate(100, Some(80), None), 79, BelowNormal { normal_bps: 80 }),
            (rate(100, None, None), u64::MAX, Kept),
        ] {
            assert_eq!(promise.standing(measured), standing, "{promise:?} {measured}");
        }
        assert!((full.share(61) - 0.61).abs() < 1e-9);
    }

    #[test]
    fn a_plan_that_contradicts_itself_is_refused() {
        let plan = |download, name: Option<&str>| {
            Plan { name: name.map(str::to_owned), download, upload: rate(40, None, None) }.check()
        };
        assert_eq!(plan(rate(250, Some(200), Some(100)), Some("Fibre 250 🚀")), Ok(()));
        assert_eq!(plan(rate(250, None, None), None), Ok(()));
        let download = Direction::Download;
        for wrong in [rate(0, None, None), rate(9, Some(0), None), rate(9, None, Some(0))] {
            assert_eq!(plan(wrong, None), Err(PlanError::Zero { direction: download }), "{wrong:?}");
        }
        for wrong in [rate(9, Some(10), None), rate(9, None, Some(10)), rate(9, Some(5), Some(6))] {
            assert_eq!(plan(wrong, None), Err(PlanError::Order { direction: download }), "{wrong:?}");
        }
        for name in ["", " ", "a\nb", &"x".repeat(101)] {
            assert_eq!(plan(rate(9, None, None), Some(name)), Err(PlanError::Name), "{name:?}");
        }
    }
}
