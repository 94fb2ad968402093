//! The rates of a direction in a report on a line. The report compares them with the contract, groups them by the hour
//! of the day, and compares the evening with the night.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use paramedic_link::test_spec::Direction;

use super::input::{ContractRate, ReportRun, RunRate};
use super::median::Median;
use super::selection::{LeftOut, left_out};
use crate::document::LimitCause;

/// The hours of the evening, by the local clock.
pub const EVENING: Range<i8> = 19..23;
/// The hours of the night, by the local clock.
pub const NIGHT: Range<i8> = 1..6;
/// Evening and night are compared only if there are at least this many runs in each of them.
pub const LEAST_COMPARED: usize = 10;
/// Evening and night are compared only if the runs in each of them are from at least this many days.
pub const LEAST_DAYS: usize = 3;

/// If the contract names no normal rate, the line should have at least this share of the promised rate.
pub const TARGET_SHARE: f64 = 0.9;

/// What a report states about the rates of one direction of the line.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionReport {
    /// The direction of the payload.
    pub direction: Direction,
    /// What the contract promises for the direction; absent without a promise.
    pub promise: Option<ContractRate>,
    /// The runs that count, in order of time.
    pub counted: Vec<CountedRate>,
    /// The number of days on which the counted runs were measured.
    pub days: usize,
    /// The median payload rate of the counted runs, in bits per second; absent with too few runs.
    pub payload: Option<Median>,
    /// The median rate of the counted runs, headers included, in bits per second; absent with too few runs. The headers
    /// are estimated. A run without this estimate counts with its payload rate.
    pub line: Option<Median>,
    /// How often the counted runs reached each rate of the contract.
    pub levels: Vec<LevelReached>,
    /// The counted runs by the hour of the day, 0 to 23.
    pub hours: Vec<HourRates>,
    /// The counted runs that began in the [`EVENING`] hours.
    pub evening: PartOfDay,
    /// The counted runs that began in the [`NIGHT`] hours.
    pub night: PartOfDay,
    /// How the rates of the evening compare with those of the night.
    pub comparison: Comparison,
    /// The number of runs that do not count, by reason.
    pub left_out: Vec<LeftOutCount>,
    /// The number of runs in `counted` for which it is unknown what limited the rate.
    pub unknown_limit: usize,
    /// The number of runs among `counted` whose rate was not steady.
    pub unsteady: usize,
}

/// The rate of a run that counts in the comparison with the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedRate {
    /// When the run began.
    pub at: Timestamp,
    /// The payload rate, in bits per second.
    pub payload_bps: u64,
    /// The estimated rate with headers, in bits per second; the payload rate if there is no higher estimate.
    pub line_bps: u64,
}

/// One of the rates that a contract may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanLevel {
    /// The rate that the contract promises.
    Promised,
    /// The rate that, by the contract, is usually available.
    Normal,
    /// The rate below which, by the contract, the line never falls.
    Minimum,
}

impl PlanLevel {
    /// The name of the contract rate in words.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Promised => "promised",
            Self::Normal => "normally available",
            Self::Minimum => "minimum",
        }
    }
}

/// How often runs reached one rate of the contract. Headers count towards the rate of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelReached {
    /// Whether `bps` is the promised, the normal or the minimum rate.
    pub level: PlanLevel,
    /// The rate that the contract names, in bits per second.
    pub bps: u64,
    /// The number of runs that reached the rate.
    pub reached: usize,
    /// The number of days on which at least one run did not reach the rate.
    pub days_below: usize,
}

/// The runs that began in one hour of the day, over all days of the period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HourRates {
    /// The hour of the day by the local clock, 0 to 23.
    pub hour: i8,
    /// The number of counted runs that began in the hour `hour`.
    pub count: usize,
    /// The median rate of the counted runs, headers included, in bits per second; absent with too few runs.
    pub line: Option<Median>,
}

/// The runs that began in a part of the day, such as the evening, over all days of the period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartOfDay {
    /// The number of counted runs that began in the part of the day.
    pub count: usize,
    /// The number of days on which the counted runs were measured.
    pub days: usize,
    /// The median rate of the counted runs, headers included, in bits per second; absent with too few runs.
    pub line: Option<Median>,
}

impl PartOfDay {
    fn is_enough(&self) -> bool {
        self.count >= LEAST_COMPARED && self.days >= LEAST_DAYS
    }
}

/// How the rates of the evening compare with those of the night.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    /// There are too few runs for a comparison.
    TooFew,
    /// The median of the evening is lower than the median of the night, by this share of the night's median.
    SlowerEvening(f64),
    /// The median of the evening is higher than the median of the night, by this share of the night's median.
    FasterEvening(f64),
    /// The confidence intervals of both medians overlap, or the median of the night is 0.
    NoDifference,
}

/// The number of runs that do not count for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOutCount {
    /// The reason why the runs do not count.
    pub why: LeftOut,
    /// The number of runs that do not count for the reason `why`.
    pub count: usize,
    /// The number of runs left out for the reason `why` that reached the promised rate; absent without a promise.
    pub reached: Option<usize>,
}

/// The estimated rate with headers, in bits per second; the payload rate if there is no higher estimate.
pub(super) fn line_bps(rate: &RunRate) -> u64 {
    rate.wire_bps.unwrap_or_default().max(rate.bps)
}

impl DirectionReport {
    pub(super) fn of(
        direction: Direction,
        promise: Option<ContractRate>,
        runs: &[ReportRun],
        main_uplink: Option<&str>,
        zone: &TimeZone,
    ) -> Self {
        let mut counted = Vec::new();
        let mut rejected = BTreeMap::<LeftOut, LeftOutCount>::new();
        let (mut unknown_limit, mut unsteady) = (0, 0);
        for run in runs {
            let Some(rate) = run.rate(direction) else { continue };
            let line_bps = line_bps(rate);
            if let Some(why) = left_out(run, direction, main_uplink) {
                let reached = promise.map(|_| 0);
                let entry = rejected.entry(why).or_insert(LeftOutCount { why, count: 0, reached });
                entry.count += 1;
                let is_reached = promise.is_some_and(|promise| line_bps >= promise.promised_bps);
                entry.reached = entry.reached.map(|reached| reached + usize::from(is_reached));
                continue;
            }
            unknown_limit += usize::from(rate.cause == Some(LimitCause::Unknown));
            unsteady += usize::from(!rate.is_steady);
            counted.push(CountedRate { at: run.started_at, payload_bps: rate.bps, line_bps });
        }
        let local = counted.iter().map(|rate| LocalRate::of(*rate, zone)).collect::<Vec<_>>();
        let part = |hours: &Range<i8>| part_of_day(&local, hours);
        let (evening, night) = (part(&EVENING), part(&NIGHT));
        Self {
            direction,
            promise,
            days: days(local.iter()),
            payload: Median::of(counted.iter().map(|rate| rate.payload_bps as f64)),
            line: Median::of(counted.iter().map(|rate| rate.line_bps as f64)),
            levels: promise.map(|promise| levels(promise, &local)).unwrap_or_default(),
            hours: (0..24).map(|hour| hour_rates(&local, hour)).collect(),
            comparison: compare(&evening, &night),
            evening,
            night,
            left_out: rejected.into_values().collect(),
            unknown_limit,
            unsteady,
            counted,
        }
    }

    /// The number of runs that measured the direction but do not count, for any reason.
    pub fn left_out_count(&self) -> usize {
        self.left_out.iter().map(|reason| reason.count).sum()
    }

    /// The rate that the line should have, in bits per second: the normal rate of the contract, or [`TARGET_SHARE`] of
    /// the promised rate if the contract names no normal rate. `None` without a promise.
    pub fn target_bps(&self) -> Option<f64> {
        let target = |promise: ContractRate| match promise.normal_bps {
            Some(normal_bps) => normal_bps as f64,
            None => promise.promised_bps as f64 * TARGET_SHARE,
        };
        self.promise.map(target)
    }
}

/// A run that counts, with its date and hour by the local clock.
struct LocalRate {
    rate: CountedRate,
    date: Date,
    hour: i8,
}

impl LocalRate {
    fn of(rate: CountedRate, zone: &TimeZone) -> Self {
        let local = zone.to_datetime(rate.at);
        Self { rate, date: local.date(), hour: local.hour() }
    }
}

fn days<'a>(rates: impl Iterator<Item = &'a LocalRate>) -> usize {
    rates.map(|rate| rate.date).collect::<BTreeSet<_>>().len()
}

fn levels(promise: ContractRate, rates: &[LocalRate]) -> Vec<LevelReached> {
    let all = [
        (PlanLevel::Promised, Some(promise.promised_bps)),
        (PlanLevel::Normal, promise.normal_bps),
        (PlanLevel::Minimum, promise.minimum_bps),
    ];
    let level = |(level, bps): (PlanLevel, Option<u64>)| {
        let bps = bps?;
        let below = || rates.iter().filter(move |local| local.rate.line_bps < bps);
        Some(LevelReached { level, bps, reached: rates.len() - below().count(), days_below: days(below()) })
    };
    all.into_iter().filter_map(level).collect()
}

fn hour_rates(rates: &[LocalRate], hour: i8) -> HourRates {
    let of_hour = || rates.iter().filter(move |local| local.hour == hour);
    let line = Median::of(of_hour().map(|local| local.rate.line_bps as f64));
    HourRates { hour, count: of_hour().count(), line }
}

fn part_of_day(rates: &[LocalRate], hours: &Range<i8>) -> PartOfDay {
    let of_part = || rates.iter().filter(move |local| hours.contains(&local.hour));
    let line = Median::of(of_part().map(|local| local.rate.line_bps as f64));
    PartOfDay { count: of_part().count(), days: days(of_part()), line }
}

fn compare(evening: &PartOfDay, night: &PartOfDay) -> Comparison {
    let (Some(late), Some(early)) = (evening.line, night.line) else { return Comparison::TooFew };
    if !evening.is_enough() || !night.is_enough() {
        return Comparison::TooFew;
    }
    let ([late_low, late_high], [early_low, early_high]) = (late.bounds(), early.bounds());
    let share = (late.value / early.value - 1.0).abs();
    if early.value <= 0.0 {
        Comparison::NoDifference
    } else if late_high < early_low {
        Comparison::SlowerEvening(share)
    } else if late_low > early_high {
        Comparison::FasterEvening(share)
    } else {
        Comparison::NoDifference
    }
}
