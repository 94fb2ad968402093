//! Writes the clause of the conclusion that states the rates. The clause claims that the line carries a rate only if
//! the network is the only known limit. Pure: no I/O, no clock.

use paramedic_link::test_spec::Direction;

use super::{Fullness, Speed, Unsteady};
use crate::document::LimitCause;
use crate::limit::is_as_requested;
use crate::quantity;

/// The clause about the rates with its verb, such as `carries 941 Mbit/s down and 94.2 Mbit/s up`; `None` without a
/// speed. If `may_claim`, nothing in the run as a whole prevents a claim about the line.
pub(super) fn clause(speeds: &[Speed], may_claim: bool) -> Option<String> {
    if let [down, up] = speeds
        && down.is_shown_as_requested()
        && up.is_shown_as_requested()
        && down.requested_bps == up.requested_bps
        && [down, up].iter().all(|speed| speed.unsteady.is_none())
    {
        let both = format!("{} and {}", word(down.direction), word(up.direction));
        return Some(format!("carried {} {both}", requested(down.requested_bps?)));
    }
    let parts = speeds.iter().map(|speed| (speed.claim(may_claim).verb(), speed.phrase())).collect::<Vec<_>>();
    let mut clause = String::new();
    let mut before = "";
    for (verb, phrase) in parts {
        if !clause.is_empty() {
            clause.push_str(" and ");
        }
        if verb != before {
            clause.push_str(verb);
            clause.push(' ');
        }
        clause.push_str(&phrase);
        before = verb;
    }
    (!clause.is_empty()).then_some(clause)
}

/// What the clause about the rates claims about the line in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RateClaim {
    /// Nothing: the rate is only what the test measured.
    Measured,
    /// The line carries this rate, and perhaps more.
    AtLeast,
    /// The line carries this rate.
    Carries,
}

impl RateClaim {
    fn verb(self) -> &'static str {
        match self {
            Self::Measured => "carried",
            Self::AtLeast => "carries at least",
            Self::Carries => "carries",
        }
    }
}

impl Speed {
    /// Whether this direction reached the requested rate. In this case the request limited the rate, not the line.
    pub(super) fn is_as_requested(&self) -> bool {
        self.requested_bps.is_some_and(|requested| is_as_requested(self.bps, requested))
    }

    /// Whether the measured rate and the requested rate are the same to the digits that the clause shows.
    fn is_shown_as_requested(&self) -> bool {
        self.requested_bps.is_some_and(|requested| quantity::rate(self.bps) == quantity::rate(requested))
    }

    /// Whether the line may have been full: the test showed it, or other traffic passed a network interface. With other
    /// traffic, both together may have filled the line.
    pub(super) fn may_fill_line(&self) -> bool {
        match self.limit {
            None | Some(LimitCause::Network) => !self.lacks_full_line(),
            Some(limit) => limit == LimitCause::OtherTraffic,
        }
    }

    /// Whether the network limited the rate, or the document names no limit, but nothing showed that the line was full
    /// in this direction.
    pub(super) fn lacks_full_line(&self) -> bool {
        matches!(self.limit, None | Some(LimitCause::Network)) && self.fullness != Fullness::Shown
    }

    /// What the clause claims about the line.
    pub(super) fn claim(&self, may_claim: bool) -> RateClaim {
        let is_requested = self.requested_bps.is_some() || self.window_bytes.is_some();
        let is_requested = is_requested || self.limit == Some(LimitCause::Policy);
        if !may_claim || is_requested || self.unsteady.is_some() || self.is_brief {
            RateClaim::Measured
        } else if self.lacks_full_line() || self.limit.is_some_and(|limit| limit != LimitCause::Network) {
            RateClaim::AtLeast
        } else {
            RateClaim::Carries
        }
    }

    fn phrase(&self) -> String {
        let word = word(self.direction);
        let mut text = match self.requested_bps {
            Some(bps) if self.is_shown_as_requested() => format!("{} {word}", requested(bps)),
            Some(bps) if self.bps > bps => {
                format!("{} {word} ({} requested)", quantity::rate(self.bps), quantity::rate(bps))
            }
            Some(bps) => {
                format!("{} {word} of the requested {}", quantity::rate(self.bps), quantity::rate(bps))
            }
            None => format!("{} {word}", quantity::rate(self.bps)),
        };
        if let Some(bytes) = self.window_bytes.filter(|_| !self.is_as_requested()) {
            text += &format!(" with the requested socket buffers of {}", binary(bytes));
        }
        if let Some(unsteady) = self.unsteady {
            text += &match unsteady {
                Unsteady::Thirds([first, last]) => format!(
                    " (not steady: {} in the first third, {} in the last)",
                    quantity::rate(first),
                    quantity::rate(last)
                ),
                Unsteady::Spread([low, high]) => {
                    format!(" (not steady: most intervals from {} to {})", quantity::rate(low), quantity::rate(high))
                }
                Unsteady::Unknown => " (not steady)".to_owned(),
            };
        }
        text
    }
}

fn requested(bps: u64) -> String {
    format!("the requested {}", quantity::rate(bps))
}

/// Formats a size in the binary units that the flag `-w` uses.
fn binary(bytes: u32) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "down",
        Direction::Upload => "up",
    }
}
