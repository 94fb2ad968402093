//! Chooses the data mode of a test: direct, or tunneled if direct data connections are blocked. Pure: no I/O, and the
//! time is an argument.

use std::io;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use paramedic_engines::engine::{StreamsMissing, is_refusal};
use paramedic_link::test_spec::DataMode;
use paramedic_report::document::FallbackReason;

/// If no stream of a phase gets an answer for this long, direct mode counts as blocked.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// For how long the appliance remembers that direct mode was blocked.
const REMEMBERED_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The data mode of a test, and what to do if that mode is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModePlan {
    /// The data mode to request first.
    pub(super) mode: DataMode,
    /// Whether to request the tunnel if direct mode is blocked.
    pub(super) falls_back: bool,
    /// If this mode is chosen because an earlier test found direct mode blocked, the time of that finding; otherwise
    /// `None`.
    pub(super) found_at: Option<Timestamp>,
}

/// Chooses the data mode of a test; `None` if no mode is usable. `requested` is the mode that the user requested.
/// `usable` are the modes that the request allows, that this device supports and that the reflector offers, best first.
/// `blocked_at` is when a test last found direct mode blocked at this reflector.
pub(super) fn plan(
    requested: Option<DataMode>,
    usable: &[DataMode],
    blocked_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<ModePlan> {
    let first = *usable.first()?;
    let has_choice = requested.is_none() && first == DataMode::DirectEphemeral && usable.contains(&DataMode::Tunneled);
    let found_at = blocked_at.filter(|at| has_choice && is_remembered(*at, now));
    let mode = if found_at.is_some() { DataMode::Tunneled } else { first };
    Some(ModePlan { mode, falls_back: has_choice && found_at.is_none(), found_at })
}

/// Whether direct mode still counts as blocked after a test found it blocked at the time `at`. A time in the future
/// does not count, because the clock was wrong at the time of that test.
fn is_remembered(at: Timestamp, now: Timestamp) -> bool {
    (SignedDuration::ZERO..REMEMBERED_FOR).contains(&now.duration_since(at))
}

/// The reason why direct mode counts as blocked, if `error` is that streams could not be opened. `None` if direct mode
/// does not count as blocked, because at least one stream was opened, or because the cause is on this device.
pub(super) fn blocked(error: &io::Error) -> Option<FallbackReason> {
    let missing = StreamsMissing::of(error).filter(|missing| missing.opened == 0)?;
    match missing.cause.kind() {
        io::ErrorKind::TimedOut => Some(FallbackReason::Silent),
        _ => is_refusal(&missing.cause).then_some(FallbackReason::Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: DataMode = DataMode::DirectEphemeral;
    const TUNNELED: DataMode = DataMode::Tunneled;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_blocked_direct_mode_is_remembered_for_a_day() {
        let now = at("2026-01-31T12:00:00Z");
        let both = [DIRECT, TUNNELED];
        let planned = |blocked_at: Option<&str>| plan(None, &both, blocked_at.map(at), now).unwrap();
        let direct = ModePlan { mode: DIRECT, falls_back: true, found_at: None };
        assert_eq!(planned(None), direct);
        for known in ["2026-01-31T12:00:00Z", "2026-01-31T11:00:00Z", "2026-01-30T12:00:01Z"] {
            let found_at = Some(at(known));
            assert_eq!(planned(Some(known)), ModePlan { mode: TUNNELED, falls_back: false, found_at });
        }
        for too_old_or_impossible in ["2026-01-30T12:00:00Z", "2020-01-01T00:00:00Z", "2026-01-31T12:00:01Z"] {
            assert_eq!(planned(Some(too_old_or_impossible)), direct, "{too_old_or_impossible}");
        }
    }

    #[test]
    fn a_chosen_mode_and_an_engine_without_the_tunnel_never_fall_back() {
        let now = at("2026-01-31T12:00:00Z");
        let blocked_at = Some(at("2026-01-31T11:00:00Z"));
        let only = |mode| Some(ModePlan { mode, falls_back: false, found_at: None });
        assert_eq!(plan(Some(DIRECT), &[DIRECT], blocked_at, now), only(DIRECT));
        assert_eq!(plan(Some(TUNNELED), &[TUNNELED], blocked_at, now), only(TUNNELED));
        assert_eq!(plan(None, &[DIRECT], blocked_at, now), only(DIRECT), "iperf3 has no tunnel");
        assert_eq!(plan(None, &[TUNNELED], blocked_at, now), only(TUNNELED), "a reflector without direct mode");
        assert_eq!(plan(None, &[], None, now), None);
    }

    #[test]
    fn direct_mode_is_blocked_only_if_no_stream_was_opened() {
        let reason =
            |opened, kind: io::ErrorKind| blocked(&StreamsMissing { opened, streams: 4, cause: kind.into() }.into());
        assert_eq!(reason(0, io::ErrorKind::ConnectionRefused), Some(FallbackReason::Refused));
        assert_eq!(reason(0, io::ErrorKind::HostUnreachable), Some(FallbackReason::Refused));
        assert_eq!(reason(0, io::ErrorKind::TimedOut), Some(FallbackReason::Silent));
        assert_eq!(reason(1, io::ErrorKind::ConnectionRefused), None);
        assert_eq!(reason(3, io::ErrorKind::TimedOut), None);
        assert_eq!(reason(0, io::ErrorKind::InvalidInput), None, "the request, not the path");
        assert_eq!(blocked(&io::ErrorKind::ConnectionRefused.into()), None, "no stream was tried");
    }
}
