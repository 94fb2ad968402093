//! The rows of the report that state what limited each direction. Pure: no I/O, no clock.

use super::Detail;
use crate::document::{LimitCause, LimitedBy};

/// The text about what limited a rate: the cause with its evidence. If the cause is unknown, the text names the reasons
/// why, and with [`Detail::Full`] also the evidence.
pub(super) fn limit(limited_by: &LimitedBy, detail: Detail) -> String {
    let has_numbers = limited_by.cause != LimitCause::Unknown || detail == Detail::Full;
    let numbers = limited_by.evidence.iter().filter(|_| has_numbers).map(|evidence| evidence.text.as_str());
    let reasons = limited_by.because.iter().map(String::as_str).chain(numbers).collect::<Vec<_>>();
    format!("{} ({})", limited_by.cause.as_words(), reasons.join(", "))
}
