//! Simulates sixty days of a line with noise, slow evenings, outages, loss and a slow decline, and compares the false
//! and the missed alarms of the suggested rules with those of naive thresholds. docs/alerts.md contains the printed
//! table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::baseline::UsualValues;
use super::finding::AlertAction;
use super::judge::{References, RuleJudge, SeenValue};
use super::lasting::SeenOutage;
use super::metric::{AlertMetric, MetricSource};
use super::preview::{MeasuredPast, replay};
use super::rule::{AlertLimit, AlertRule};
use crate::monitor::outage::OutageScope;

/// The length of the simulation, in days.
const DAYS: i64 = 60;
/// The time between two tests, in minutes.
const TEST_EVERY: i64 = 120;
/// The length of a window of a monitor, in minutes.
const WINDOW: i64 = 5;
/// The download rate that the plan promises, in Mbit/s.
const PLAN_DOWN: f64 = 100.0;
/// The upload rate that the plan promises, in Mbit/s.
const PLAN_UP: f64 = 40.0;
/// An alert that opens within this time after the end of an event still counts as an alert about the event.
const GRACE: SignedDuration = SignedDuration::from_hours(12);
/// The share of tests that measure a far too low rate without any sign of a cause in the result.
const OUTLIERS: f64 = 0.03;
/// The share of windows with a short burst of loss or of slow answers, which the user does not notice.
const BURSTS: f64 = 0.01;

/// A simulated event about which the owner wants an alert.
struct WantedEvent {
    name: &'static str,
    metrics: &'static [AlertMetric],
    /// The begin of the event, in hours since the begin of the simulation.
    from: i64,
    to: i64,
}

const EVENTS: [WantedEvent; 8] = [
    WantedEvent { name: "outage of 10 min", metrics: &[AlertMetric::Outage], from: 7 * 24 + 3, to: 7 * 24 + 4 },
    WantedEvent {
        name: "loss of 5 % for 3 h",
        metrics: &[AlertMetric::MonitorLoss],
        from: 12 * 24 + 9,
        to: 12 * 24 + 12,
    },
    WantedEvent { name: "outage of 2 h", metrics: &[AlertMetric::Outage], from: 18 * 24 + 20, to: 18 * 24 + 22 },
    WantedEvent { name: "reflector off for a day", metrics: &[AlertMetric::TestFailed], from: 30 * 24, to: 31 * 24 },
    WantedEvent {
        name: "a third of the rate for a day",
        metrics: &[AlertMetric::Download],
        from: 40 * 24,
        to: 41 * 24,
    },
    WantedEvent {
        name: "round trips four times as long for 5 h",
        metrics: &[AlertMetric::MonitorLatencyP50],
        from: 45 * 24 + 9,
        to: 45 * 24 + 14,
    },
    WantedEvent { name: "no test for 2 days", metrics: &[AlertMetric::Silence], from: 48 * 24, to: 50 * 24 },
    // From the time at which a decline of 2.5 % a day has reached 70 % of the plan.
    WantedEvent { name: "slow decline", metrics: &[AlertMetric::Download], from: 56 * 24, to: 60 * 24 },
];

/// The begin of the decline, in days since the begin of the simulation.
const DECLINE_DAY: f64 = 44.0;
/// The outages: the begin in minutes since the begin of the simulation, and the length in seconds.
const OUTAGES: [(i64, i64); 6] = [
    (3 * 1_440 + 700, 40),
    (7 * 1_440 + 190, 600),
    (15 * 1_440 + 30, 15),
    (18 * 1_440 + 1_210, 7_200),
    (33 * 1_440, 70),
    (52 * 1_440 + 900, 25),
];

/// A generator of pseudo-random numbers (xorshift64*), which are the same in each run of the simulation.
struct Noise(u64);

impl Noise {
    /// A uniformly distributed number from 0 to 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A normally distributed number, approximated by the sum of twelve uniform numbers.
    fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        mean + deviation * ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0)
    }
}

fn zone() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn begin() -> Timestamp {
    date(2026, 3, 2).at(0, 0, 0, 0).to_zoned(zone()).unwrap().timestamp()
}

fn minute(minute: i64) -> Timestamp {
    begin() + SignedDuration::from_mins(minute)
}

fn is_evening(at: Timestamp) -> bool {
    (19..23).contains(&at.to_zoned(zone()).hour())
}

fn is_in(event: &str, minute: i64) -> bool {
    EVENTS.iter().any(|own| own.name == event && (own.from * 60..own.to * 60).contains(&minute))
}

/// The download rate that the line carries at this minute, as a share of the plan.
fn capacity(minute_: i64) -> f64 {
    let evening = if is_evening(minute(minute_)) { 0.8 } else { 1.0 };
    let decline = (minute_ as f64 / 1_440.0 - DECLINE_DAY).max(0.0) * 0.025;
    let bad = if is_in("a third of the rate for a day", minute_) { 0.33 } else { 1.0 };
    0.96 * evening * bad * (1.0 - decline)
}

/// A test at this minute: both rates in bits per second, or `None` if it fails.
fn test(minute_: i64, noise: &mut Noise) -> Option<(f64, f64)> {
    let is_out = OUTAGES.iter().any(|(from, length)| (*from..=from + length / 60).contains(&minute_));
    if is_out || is_in("reflector off for a day", minute_) {
        return None;
    }
    let mut rate = |plan: f64, share: f64| {
        let outlier = if noise.uniform() < OUTLIERS { 0.3 + 0.4 * noise.uniform() } else { 1.0 };
        plan * 1e6 * (share * outlier * noise.normal(1.0, 0.04)).clamp(0.01, 1.0)
    };
    let upload = if is_evening(minute(minute_)) { 0.9 } else { 0.96 };
    Some((rate(PLAN_DOWN, capacity(minute_)), rate(PLAN_UP, upload)))
}

/// A window of a monitor: loss in percent, and the median round trip in milliseconds.
fn window(minute_: i64, noise: &mut Noise) -> (f64, f64) {
    let bursts = noise.uniform() < BURSTS;
    let loss = match (is_in("loss of 5 % for 3 h", minute_), bursts) {
        (true, _) => noise.normal(5.0, 1.2),
        (_, true) => 3.0 + 5.0 * noise.uniform(),
        _ => 0.4 * noise.uniform(),
    };
    let base = if is_evening(minute(minute_)) { 45.0 } else { 20.0 };
    let slow = match (is_in("round trips four times as long for 5 h", minute_), bursts) {
        (true, _) => 4.0,
        (_, true) => 1.0 + 4.0 * noise.uniform(),
        _ => 1.0,
    };
    (loss.max(0.0), base * slow * noise.normal(1.0, 0.1).max(0.5))
}

/// The alerts of a rule: when each alert opened, and when it closed, if it did.
type Alerts = Vec<(Timestamp, Option<Timestamp>)>;

/// Everything that was measured, and what a repeated test would have measured.
struct MeasuredLine {
    /// The rates of each test, by the minute in which the test began; `None` if the test failed.
    tests: BTreeMap<i64, Option<(f64, f64)>>,
    repeated: BTreeMap<i64, Option<(f64, f64)>>,
    windows: BTreeMap<i64, (f64, f64)>,
}

impl MeasuredLine {
    fn new() -> Self {
        let mut noise = Noise(0x5eed_5eed_5eed_5eed);
        let times = (0..DAYS * 1_440 / TEST_EVERY).map(|number| number * TEST_EVERY);
        let times = times.filter(|minute| !is_in("no test for 2 days", *minute)).collect::<Vec<_>>();
        let tests = times.iter().map(|minute| (*minute, test(*minute, &mut noise))).collect();
        let repeated = times.iter().map(|minute| (*minute, test(minute + 3, &mut noise))).collect();
        let windows = (0..DAYS * 1_440 / WINDOW).map(|number| (number * WINDOW, window(number * WINDOW, &mut noise)));
        Self { tests, repeated, windows: windows.collect() }
    }

    fn value_of_test(metric: AlertMetric, rates: Option<(f64, f64)>) -> Option<f64> {
        match (metric, rates) {
            (AlertMetric::TestFailed, rates) => Some(f64::from(u8::from(rates.is_none()))),
            (AlertMetric::Download, Some((download, _))) => Some(download),
            (AlertMetric::Upload, Some((_, upload))) => Some(upload),
            _ => None,
        }
    }

    /// The values of a metric, each with the begin and the end of its test or window in minutes.
    fn values(&self, metric: AlertMetric) -> Vec<(i64, i64, f64)> {
        match metric.source() {
            MetricSource::Tests => {
                let value = |(at, rates): (&i64, &_)| Some((*at, at + 1, Self::value_of_test(metric, *rates)?));
                self.tests.iter().filter_map(value).collect()
            }
            _ => {
                let of = |(loss, latency): (f64, f64)| if metric == AlertMetric::MonitorLoss { loss } else { latency };
                self.windows.iter().map(|(at, both)| (*at, at + WINDOW, of(*both))).collect()
            }
        }
    }

    /// The usual values of a metric, computed from the measured values. Of the values of a monitor, only one in each
    /// hour counts.
    fn usual(&self, metric: AlertMetric) -> UsualValues {
        let is_counted = |at: i64| metric.source() == MetricSource::Tests || at % 60 == 0;
        let values = self.values(metric).into_iter().filter(|(at, ..)| is_counted(*at));
        UsualValues::new(values.map(|(at, _, value)| (minute(at), value)).collect())
    }

    fn judged(&self, rule: &AlertRule) -> Alerts {
        let (mut judge, mut alerts) = (RuleJudge::new(rule.clone()), Alerts::new());
        let usual = self.usual(rule.metric);
        let plan = if rule.metric == AlertMetric::Upload { PLAN_UP } else { PLAN_DOWN };
        let mut judged = |from: i64, to: i64, value: f64| {
            let hour = minute(to - to % 60);
            let usual = matches!(rule.limit, Some(AlertLimit::BelowUsual(_) | AlertLimit::AboveUsual(_)))
                .then(|| usual.at(hour, &zone()))
                .flatten();
            let references = References { plan_bps: Some((plan * 1e6) as u64), usual };
            let (began, at) = (minute(from), minute(to));
            let seen = SeenValue { subject: "attic".to_owned(), began, at, value: Ok(value), failure: None };
            let action = judge.judge(&seen, references).ok().flatten();
            match &action {
                Some(AlertAction::Open { finding, .. }) => alerts.push((finding.at, None)),
                Some(AlertAction::Close { finding, .. }) => alerts.last_mut().unwrap().1 = Some(finding.at),
                _ => {}
            }
            matches!(action, Some(AlertAction::Retest { .. }))
        };
        for (from, to, value) in self.values(rule.metric) {
            if judged(from, to, value)
                && let Some(again) = self.repeated.get(&from).and_then(|rates| Self::value_of_test(rule.metric, *rates))
            {
                judged(from + 3, to + 3, again);
            }
        }
        alerts
    }

    fn alerts(&self, rule: &AlertRule) -> Alerts {
        let past = match rule.metric.source() {
            MetricSource::Tests | MetricSource::Monitors => return self.judged(rule),
            MetricSource::Outages => {
                let outage = |(from, length): &(i64, i64)| SeenOutage {
                    began: minute(*from),
                    ended: Some(minute(*from) + SignedDuration::from_secs(*length)),
                    scope: OutageScope::BeyondGateway,
                    failed: Default::default(),
                };
                MeasuredPast { outages: OUTAGES.iter().map(outage).collect(), ..MeasuredPast::default() }
            }
            MetricSource::Clock => {
                let measured = self.tests.iter().filter(|(_, rates)| rates.is_some());
                MeasuredPast { results: measured.map(|(at, _)| minute(*at)).collect(), ..MeasuredPast::default() }
            }
        };
        let preview = replay(rule, &past, begin(), minute(DAYS * 1_440));
        preview.alerts.iter().map(|alert| (alert.opened_at, alert.closed_at)).collect()
    }
}

/// How often a rule was right and wrong: its alerts, and the events that it missed.
struct RuleScore {
    words: String,
    opened: usize,
    false_alarms: usize,
    events: usize,
    missed: Vec<&'static str>,
}

/// Whether an alert is about an event.
fn is_about(event: &WantedEvent, (opened, closed): &(Timestamp, Option<Timestamp>)) -> bool {
    let (from, to) = (minute(event.from * 60), minute(event.to * 60) + GRACE);
    *opened < to && closed.is_none_or(|closed| closed > from)
}

fn score(rule: &AlertRule, alerts: &Alerts) -> RuleScore {
    let own = || EVENTS.iter().filter(|event| event.metrics.contains(&rule.metric));
    let is_false = |alert: &&(Timestamp, Option<Timestamp>)| !own().any(|event| is_about(event, alert));
    // A decline becomes usual: a rule about what is usual need not see it.
    let is_wanted =
        |event: &&WantedEvent| event.name != "slow decline" || !matches!(rule.limit, Some(AlertLimit::BelowUsual(_)));
    let missed = own().filter(is_wanted).filter(|event| !alerts.iter().any(|alert| is_about(event, alert)));
    RuleScore {
        words: rule.words(),
        opened: alerts.len(),
        false_alarms: alerts.iter().filter(is_false).count(),
        events: own().filter(is_wanted).count(),
        missed: missed.map(|event| event.name).collect(),
    }
}

fn naive() -> Vec<AlertRule> {
    let rule = |name, metric, limit| AlertRule::new(name, metric, limit, "Europe/Berlin".parse().unwrap());
    vec![
        rule("a", AlertMetric::Download, Some(AlertLimit::BelowPlan(0.7))),
        rule("b", AlertMetric::Upload, Some(AlertLimit::BelowPlan(0.7))),
        rule("c", AlertMetric::Outage, Some(AlertLimit::Above(10.0))),
        rule("d", AlertMetric::MonitorLoss, Some(AlertLimit::Above(2.0))),
        rule("e", AlertMetric::MonitorLatencyP50, Some(AlertLimit::Above(50.0))),
        rule("f", AlertMetric::TestFailed, None),
    ]
}

fn table(scores: &[(&str, Vec<RuleScore>)]) -> String {
    let mut text = String::from("| | rule | opened | false | events | missed |\n|---|---|---|---|---|---|\n");
    for (kind, scores) in scores {
        for score in scores {
            let RuleScore { words, opened, false_alarms, events, missed } = score;
            let missed = missed.len();
            writeln!(text, "| {kind} | {words} | {opened} | {false_alarms} | {events} | {missed} |").unwrap();
        }
        let sum = |of: fn(&RuleScore) -> usize| scores.iter().map(of).sum::<usize>();
        let (opened, false_alarms) = (sum(|score| score.opened), sum(|score| score.false_alarms));
        let (events, missed) = (sum(|score| score.events), sum(|score| score.missed.len()));
        writeln!(text, "| **{kind}** | **all** | **{opened}** | **{false_alarms}** | {events} | **{missed}** |")
            .unwrap();
    }
    text
}

#[test]
fn the_suggested_rules_miss_nothing_and_cry_wolf_far_less_than_naive_thresholds() {
    let line = MeasuredLine::new();
    let scores = |rules: Vec<AlertRule>| rules.iter().map(|rule| score(rule, &line.alerts(rule))).collect::<Vec<_>>();
    let suggested = scores(AlertRule::suggested(true, &"Europe/Berlin".parse().unwrap()));
    let naive = scores(naive());
    let missed = suggested.iter().flat_map(|score| score.missed.clone()).collect::<Vec<_>>();
    let false_alarms = |scores: &[RuleScore]| scores.iter().map(|score| score.false_alarms).sum::<usize>();
    let (own, others) = (false_alarms(&suggested), false_alarms(&naive));
    let text = table(&[("naive", naive), ("suggested", suggested)]);
    println!("{text}");
    assert_eq!(missed, Vec::<&str>::new());
    assert!(own * 20 < others, "{own} false alarms beside {others}");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/alerts.md");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(&text), "docs/alerts.md has another table than this test prints");
}
