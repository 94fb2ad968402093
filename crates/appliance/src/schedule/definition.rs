//! The definition of a schedule, and the checks before it is accepted. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::budget::DataBudget;
use super::error::ScheduleError;
use super::quiet_hours::QuietHours;
use super::recurrence::{Recurrence, TimeFrame};
use crate::object_name::is_name_char;
use crate::request::TestRequest;

/// The maximum length of a schedule's name, in characters.
const MAX_NAME_CHARS: usize = 60;
/// The maximum length of an interface's name, in bytes.
const MAX_INTERFACE_NAME: usize = 15;
/// The maximum of the default for [`Schedule::spread`].
const LONGEST_DEFAULT_SPREAD: Duration = Duration::from_secs(10 * 60);
/// The default for [`Schedule::max_line_share`].
const USUAL_LINE_SHARE: f64 = 0.2;
/// The number of next occurrences that are checked against the quiet hours.
const CHECKED_OCCURRENCES: usize = 400;

/// A schedule: a test, when its runs are due, and the conditions under which they start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Schedule {
    /// The name of the schedule.
    pub name: String,
    /// When the runs of the schedule are due.
    #[schemars(with = "String")]
    pub when: Recurrence,
    /// The time zone of `when`, of the quiet hours and of the budget.
    #[schemars(with = "String")]
    pub zone: Zone,
    /// The maximum random delay before each run. It exists so that many devices do not start at once.
    pub spread: Duration,
    /// What happens after runs were missed.
    pub missed: MissedRunPolicy,
    /// The hours of the day in which the schedule does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub quiet_hours: Option<QuietHours>,
    /// How much data the schedule may use.
    #[serde(default)]
    pub budget: DataBudget,
    /// A run starts only if other traffic uses at most this share of the line (0 to 1). If absent, other traffic is
    /// ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_line_share: Option<f64>,
    /// The network interfaces over which the schedule may run: a run starts only if the default route uses one of them.
    /// If the list is empty, the default route may use any interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<String>,
    /// The test that each run carries out.
    pub request: TestRequest,
    /// The number of bytes that a run was expected to use when the schedule was added.
    pub expected_bytes: u64,
}

/// What happens after runs were missed, because the device was off or the service was not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedRunPolicy {
    /// No missed run starts. The next run starts when it is due.
    #[default]
    Skip,
    /// One run starts, however many were missed.
    Once,
}

/// A time zone of the IANA database, given by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Zone {
    name: String,
    rules: TimeZone,
}

impl Schedule {
    /// A schedule with this name that runs `request`, with default values for everything else: the spread of
    /// [`default_spread`], no budget, and no run while other traffic uses more than 20 % of the line.
    pub fn usual(name: &str, when: Recurrence, zone: Zone, request: TestRequest, now: Timestamp) -> Self {
        let mut schedule = Self {
            name: name.to_owned(),
            when,
            zone,
            spread: Duration::ZERO,
            missed: MissedRunPolicy::default(),
            quiet_hours: None,
            budget: DataBudget::default(),
            max_line_share: Some(USUAL_LINE_SHARE),
            uplinks: Vec::new(),
            request,
            expected_bytes: 0,
        };
        let gap = schedule.when.shortest_gap(&schedule.frame(now), now).unwrap_or_default();
        schedule.spread = default_spread(gap);
        schedule
    }

    /// The time zone and the start time by which the recurrence of the schedule is read. Intervals count from
    /// `added_at`.
    pub fn frame(&self, added_at: Timestamp) -> TimeFrame {
        TimeFrame { zone: self.zone.rules.clone(), anchor: added_at }
    }

    /// Checks that the schedule can be accepted at `now`.
    pub fn check(&self, now: Timestamp) -> Result<(), ScheduleError> {
        if self.name.is_empty() || self.name.chars().count() > MAX_NAME_CHARS || !self.name.chars().all(is_name_char) {
            return Err(ScheduleError::Name(self.name.chars().take(MAX_NAME_CHARS).collect()));
        }
        let frame = self.frame(now);
        self.when.check(&frame, now)?;
        let gap = self.when.shortest_gap(&frame, now).unwrap_or_default();
        if self.spread > gap / 2 {
            return Err(ScheduleError::Spread { spread: self.spread, gap });
        }
        if [self.budget.day_bytes, self.budget.month_bytes].contains(&Some(0)) {
            return Err(ScheduleError::NoBudget);
        }
        if let Some(share) = self.max_line_share
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(ScheduleError::LineShare(share));
        }
        if let Some(name) = self.uplinks.iter().find(|name| !is_interface_name(name)) {
            return Err(ScheduleError::Uplink(name.clone()));
        }
        if self.request.discards_result {
            return Err(ScheduleError::DiscardsResult);
        }
        match self.quiet_hours {
            Some(hours) if self.is_always_quiet(hours, &frame, now) => {
                Err(ScheduleError::AlwaysQuiet { when: self.when.to_string(), hours })
            }
            _ => Ok(()),
        }
    }

    /// Whether every one of the next occurrences is within `hours`, both without a random delay and with the longest
    /// one.
    fn is_always_quiet(&self, hours: QuietHours, frame: &TimeFrame, now: Timestamp) -> bool {
        let mut at = now;
        for _ in 0..CHECKED_OCCURRENCES {
            let Some(next) = self.when.next_after(at, frame) else { break };
            let latest = next.checked_add(self.spread).unwrap_or(next);
            if [next, latest].iter().any(|start| !hours.contain(*start, &frame.zone)) {
                return false;
            }
            at = next;
        }
        true
    }

    /// The number of runs that are due within `span` from `now`.
    pub fn runs_within(&self, span: Duration, now: Timestamp) -> u64 {
        let frame = self.frame(now);
        let Ok(end) = now.checked_add(span) else { return 0 };
        let mut count = 0;
        let mut at = now;
        while let Some(next) = self.when.next_after(at, &frame).filter(|next| *next <= end) {
            count += 1;
            at = next;
        }
        count
    }
}

/// Whether Linux accepts `name` as the name of an interface (`dev_valid_name` in the kernel).
fn is_interface_name(name: &str) -> bool {
    let is_valid = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
    (1..=MAX_INTERFACE_NAME).contains(&name.len()) && ![".", ".."].contains(&name) && name.chars().all(is_valid)
}

/// The default for [`Schedule::spread`] if the shortest time between two runs is `gap`: a tenth of it, but at most 10
/// minutes.
pub fn default_spread(gap: Duration) -> Duration {
    Duration::from_secs((gap / 10).min(LONGEST_DEFAULT_SPREAD).as_secs())
}

impl MissedRunPolicy {
    /// The name of the policy, for scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
        }
    }
}

impl Zone {
    /// The time zone of this host; UTC if the host's zone has no name.
    pub fn of_host() -> Self {
        let rules = TimeZone::try_system().unwrap_or(TimeZone::UTC);
        match rules.iana_name() {
            Some(name) => Self { name: name.to_owned(), rules },
            None => Self { name: "UTC".to_owned(), rules: TimeZone::UTC },
        }
    }

    /// The name of the time zone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules of the time zone.
    pub fn rules(&self) -> &TimeZone {
        &self.rules
    }
}

impl FromStr for Zone {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let rules = TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?;
        Ok(Self { name: rules.iana_name().unwrap_or(name).to_owned(), rules })
    }
}

impl TryFrom<String> for Zone {
    type Error = ScheduleError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::recurrence::RecurrenceError;
    use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};

    use super::*;
    use crate::payload_transport::PayloadTransport;
    use crate::reflector_client::Route;
    use crate::request::TurnWait;

    pub(in crate::schedule) fn request() -> TestRequest {
        let phase = |load, duration_ms| PhaseSpec { load, duration_ms };
        let phases = vec![phase(Load::Idle, 3000), phase(Load::Download, 10_000), phase(Load::Upload, 10_000)];
        TestRequest {
            provider: "reflector".to_owned(),
            peer: None,
            spec: TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, phases, 4),
            adapts_probes: true,
            data_mode: None,
            omit: None,
            budget_bytes: None,
            transport: PayloadTransport::Tcp,
            turn: TurnWait::ProviderLimit,
            route: Route::default(),
            intervals: false,
            raw: false,
            thresholds: paramedic_report::thresholds::Thresholds::default(),
            discards_result: false,
        }
    }

    pub(in crate::schedule) fn schedule(name: &str, when: &str) -> Schedule {
        Schedule {
            name: name.to_owned(),
            when: Recurrence::parse(when).unwrap(),
            zone: "Europe/Berlin".parse().unwrap(),
            spread: Duration::ZERO,
            missed: MissedRunPolicy::Skip,
            quiet_hours: None,
            budget: DataBudget::default(),
            max_line_share: None,
            uplinks: Vec::new(),
            request: request(),
            expected_bytes: 250_000_000,
        }
    }

    fn check(change: impl FnOnce(&mut Schedule)) -> Result<(), ScheduleError> {
        let mut schedule = schedule("nightly", "30 3 * * *");
        change(&mut schedule);
        schedule.check("2026-01-01T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn what_could_never_run_is_refused() {
        assert_eq!(check(|_| {}), Ok(()));
        for name in ["", "a b", "a/b", "\u{3164}", "a\u{7}", &"x".repeat(61)] {
            assert!(matches!(check(|schedule| schedule.name = name.to_owned()), Err(ScheduleError::Name(_))), "{name}");
        }
        let never = check(|schedule| schedule.when = Recurrence::parse("0 0 31 2 *").unwrap());
        assert!(matches!(never, Err(ScheduleError::Recurrence(RecurrenceError::Never { .. }))), "{never:?}");
        let budget = |day_bytes, month_bytes| check(|schedule| schedule.budget = DataBudget { day_bytes, month_bytes });
        assert_eq!(budget(Some(0), None), Err(ScheduleError::NoBudget));
        assert_eq!(budget(Some(1), Some(0)), Err(ScheduleError::NoBudget));
        assert_eq!(budget(Some(1), Some(1)), Ok(()));
        for share in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(matches!(check(|s| s.max_line_share = Some(share)), Err(ScheduleError::LineShare(_))), "{share}");
        }
        let uplink = |name: &str| check(|schedule| schedule.uplinks = vec!["eth0".to_owned(), name.to_owned()]);
        for name in ["", "a b", "a/b", "eth0:1", "..", "sixteen-bytes-xx"] {
            assert_eq!(uplink(name), Err(ScheduleError::Uplink(name.to_owned())));
        }
        assert_eq!(uplink("wwan0"), Ok(()));
        let quiet = |hours: &str| check(|schedule| schedule.quiet_hours = Some(hours.parse().unwrap()));
        assert!(matches!(quiet("22:00-07:00"), Err(ScheduleError::AlwaysQuiet { .. })));
        assert_eq!(quiet("08:00-20:00"), Ok(()));
        let late = |schedule: &mut Schedule| {
            schedule.quiet_hours = "22:00-04:00".parse().ok();
            schedule.spread = Duration::from_secs(3600);
        };
        assert_eq!(check(late), Ok(()), "with the delay some runs are after the quiet hours");
        let spread = check(|schedule| schedule.spread = Duration::from_secs(12 * 3600 + 1));
        assert!(matches!(spread, Err(ScheduleError::Spread { .. })), "{spread:?}");
        assert_eq!(check(|schedule| schedule.request.discards_result = true), Err(ScheduleError::DiscardsResult));
    }

    #[test]
    fn a_schedule_survives_serialisation_and_a_zone_is_known_or_refused() {
        let mut full = schedule("nightly", "30 3 * * *");
        full.quiet_hours = "08:00-20:00".parse().ok();
        full.budget = DataBudget { day_bytes: Some(1), month_bytes: Some(2) };
        full.max_line_share = Some(0.2);
        full.uplinks = vec!["eth0".to_owned(), "wan".to_owned()];
        for schedule in [schedule("plain", "every 6h"), full] {
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule, "{text}");
        }
        for name in ["Mars/Olympus", "", "../etc/passwd", "Europe/Berlin\u{0}"] {
            assert!(name.parse::<Zone>().is_err(), "{name:?}");
        }
        assert_eq!("europe/berlin".parse::<Zone>().unwrap().name(), "Europe/Berlin");
    }

    #[test]
    fn the_runs_of_a_month_are_counted_and_the_default_spread_fits() {
        let month = Duration::from_secs(30 * 86_400);
        let now = "2026-03-15T12:00:00Z".parse().unwrap();
        let runs = |when: &str| schedule("a", when).runs_within(month, now);
        assert_eq!((runs("every 6h"), runs("30 3 * * *"), runs("@hourly"), runs("@yearly")), (120, 30, 720, 0));
        for (gap, spread) in [(300, 30), (3600, 360), (86_400, 600)] {
            assert_eq!(default_spread(Duration::from_secs(gap)), Duration::from_secs(spread));
        }
    }
}
