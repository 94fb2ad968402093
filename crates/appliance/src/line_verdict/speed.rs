//! The part of the sentence about the line that concerns the measured rates: whether they reach the rates of the plan,
//! and if not, whether the line was the limit.

use paramedic_link::test_spec::Direction;
use paramedic_report::document::LimitCause;
use paramedic_report::lines::Tone;
use paramedic_report::quantity;

use super::{LineVerdict, ResultSeen, Sentence};
use crate::plan::{PlanStanding, PromisedRate};

/// A measured rate, with the promised rate and with the cause that limited the measured rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredSpeed {
    /// The direction of the payload.
    pub direction: Direction,
    /// The mean goodput, in bits per second.
    pub bps: u64,
    /// What the plan promises for this direction; `None` without a plan.
    pub promised: Option<PromisedRate>,
    /// What limited the measured rate; `None` if that is not known.
    pub limit: Option<LimitCause>,
}

impl MeasuredSpeed {
    fn standing(&self) -> Option<PlanStanding> {
        Some(self.promised?.standing(self.bps))
    }

    /// How far the rate is below the plan, from 0 (not below it) to 3 (below the minimum rate).
    fn badness(&self) -> u8 {
        match self.standing() {
            Some(PlanStanding::BelowMinimum { .. }) => 3,
            Some(PlanStanding::BelowNormal { .. }) => 2,
            Some(PlanStanding::BelowPromise) => 1,
            Some(PlanStanding::Kept) | None => 0,
        }
    }
}

/// The sentence about the direction that is furthest below the plan; `None` if no direction is below the plan.
pub(super) fn fault(result: &ResultSeen) -> Option<LineVerdict> {
    let worst = result.speeds.iter().filter(|speed| speed.badness() > 0).max_by_key(|speed| speed.badness())?;
    let (promised, name) = (worst.promised?, worst.direction);
    let (tone, below) = match worst.standing()? {
        PlanStanding::BelowMinimum { minimum_bps } => {
            (Tone::Bad, format!("below the minimum of the plan, {}", quantity::rate(minimum_bps)))
        }
        PlanStanding::BelowNormal { normal_bps } => {
            (Tone::Fair, format!("below what is normal for the plan, {}", quantity::rate(normal_bps)))
        }
        _ => {
            let share = quantity::share(promised.share(worst.bps));
            (Tone::Fair, format!("{share} of the {} of the plan", quantity::rate(promised.promised_bps)))
        }
    };
    let sentence = Sentence::default().text(format!("The {name} was {} at ", quantity::rate(worst.bps)));
    let sentence = sentence.time(result.at).text(format!(", {below}"));
    Some(match excuse(worst.limit) {
        // The line was not the limit, so a low rate is not a fault of the line.
        Some(excuse) => sentence.text(format!("; but {excuse}.")).with(Tone::Fair),
        None => sentence.text(".").with(tone),
    })
}

/// What the sentence says after "the test at …" about a result that is not below the plan; `None` if the result has no
/// rate.
pub(super) fn praise(result: &ResultSeen) -> Option<String> {
    let rates = result.speeds.iter().map(|speed| format!("{} {}", quantity::rate(speed.bps), speed.direction));
    let rates = rates.collect::<Vec<_>>().join(" and ");
    match &result.speeds[..] {
        [] => None,
        speeds if speeds.iter().all(|speed| speed.standing() == Some(PlanStanding::Kept)) => {
            Some(format!("kept the plan with {rates}"))
        }
        _ => Some(format!("measured {rates}")),
    }
}

/// Why a low rate is not a fault of the line; `None` if the line may be at fault.
fn excuse(limit: Option<LimitCause>) -> Option<&'static str> {
    match limit? {
        LimitCause::Network | LimitCause::Unknown => None,
        LimitCause::ApplianceCpu => Some("the processor of this device was the limit, not the line"),
        LimitCause::ReflectorCpu => Some("the processor of the other end was the limit, not the line"),
        LimitCause::ReceiveWindow | LimitCause::SendBuffer => Some("a socket buffer was the limit, not the line"),
        LimitCause::LinkRate => Some("the network interface of one end was the limit"),
        LimitCause::Policy => Some("the test reached the rate or the number of bytes that was requested"),
        LimitCause::OtherTraffic => Some("other traffic used the line at the same time"),
    }
}
