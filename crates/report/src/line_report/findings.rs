//! The statements of a report on a line, in sentences. They contain only what the runs, monitors and outages of the
//! period show.

use paramedic_link::test_spec::{Direction, Load};

use super::median::Median;
use super::observed::{LatencyReport, MonitorReport, OutageReport};
use super::rates::{Comparison, DirectionReport, LEAST_COMPARED, LEAST_DAYS, PartOfDay};
use super::{LineReport, OutageExtent, PlanLevel};
use crate::document::QueueSide;
use crate::lines::Tone;
use crate::quantity;

/// If at least this share of the period's hours had probes, the period is well observed. Only then is the absence of
/// outages good news.
pub(super) const WELL_OBSERVED: f64 = 0.9;
/// If the latency rises under load by at least this many milliseconds, calls suffer. Bufferbloat grade C starts here.
const NOTICEABLE_MS: f64 = 60.0;
/// If a monitor lost at least this share of its probes, the report states the loss.
const NOTICEABLE_LOSS: f64 = 0.01;

/// One statement of a report on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the statement is good or bad news about the line.
    pub tone: Tone,
    /// The statement as a sentence.
    pub text: String,
}

impl Finding {
    fn new(tone: Tone, text: String) -> Self {
        Self { tone, text }
    }
}

/// All statements of a report, in the order in which the report shows them.
pub(super) fn all(report: &LineReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    for direction in &report.directions {
        findings.push(rates(direction));
        findings.extend(minimum(direction));
        findings.push(evening(direction));
    }
    findings.extend(outages(&report.outages));
    findings.extend(report.latencies.iter().filter_map(loaded));
    findings.extend(report.monitors.iter().filter_map(loss));
    findings
}

/// The word for `direction` at the start of a sentence.
fn subject(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "Download",
        Direction::Upload => "Upload",
    }
}

/// The text of a median rate with its confidence interval, if there is one.
fn with_interval(median: Median) -> String {
    let value = quantity::rate(median.value as u64);
    match median.interval {
        Some([low, high]) => {
            format!("{value} (95 % interval {} to {})", quantity::rate(low as u64), quantity::rate(high as u64))
        }
        None => value,
    }
}

fn rates(report: &DirectionReport) -> Finding {
    let (name, count) = (subject(report.direction), report.counted.len());
    let Some(line) = report.line else {
        let left_out = match report.left_out_count() {
            0 => String::new(),
            left_out => format!("; {left_out} more do not count"),
        };
        let text = format!(
            "{name}: {} in this period, too few for a statement (at least {}){left_out}.",
            counted(count, "run counts", "runs count"),
            Median::LEAST
        );
        return Finding::new(Tone::Fair, text);
    };
    let measured = format!("{name}: {count} runs on {} count", counted(report.days, "day", "days"));
    let Some(promise) = report.promise else {
        let text =
            format!("{measured}; the median is {}. No contract was given to compare it with.", with_interval(line));
        return Finding::new(Tone::Plain, text);
    };
    let share = quantity::share(line.value / promise.promised_bps as f64);
    let reached = report.levels.iter().filter(|level| level.level != PlanLevel::Minimum).map(|level| {
        let share = quantity::share(level.reached as f64 / count as f64);
        let (words, rate) = (level.level.as_words(), quantity::rate(level.bps));
        format!("{} of {count} ({share}) reached the {words} {rate}", level.reached)
    });
    let text = format!(
        "{measured}; the median, headers included, is {}, {share} of the promised {}. {}.",
        with_interval(line),
        quantity::rate(promise.promised_bps),
        reached.collect::<Vec<_>>().join("; ")
    );
    let target = report.target_bps().unwrap_or(f64::INFINITY);
    let tone = match line {
        line if line.value >= target => Tone::Good,
        line if line.bounds()[1] < target => Tone::Bad,
        _ => Tone::Fair,
    };
    Finding::new(tone, text)
}

fn minimum(report: &DirectionReport) -> Option<Finding> {
    let level = report.levels.iter().find(|level| level.level == PlanLevel::Minimum)?;
    let count = report.counted.len();
    let below = count.checked_sub(level.reached).filter(|_| count > 0)?;
    let (name, rate) = (subject(report.direction), quantity::rate(level.bps));
    Some(if below == 0 {
        Finding::new(Tone::Good, format!("{name}: none of {count} runs was below the contract's minimum of {rate}."))
    } else {
        let days = counted(level.days_below, "day", "days");
        let text = format!("{name}: {below} of {count} runs, on {days}, were below the contract's minimum of {rate}.");
        Finding::new(Tone::Bad, text)
    })
}

fn evening(report: &DirectionReport) -> Finding {
    let name = subject(report.direction);
    let medians = || {
        let of = |part: &PartOfDay| part.line.map_or_else(String::new, |line| quantity::rate(line.value as u64));
        format!("median {} in the evening, {} at night", of(&report.evening), of(&report.night))
    };
    match report.comparison {
        Comparison::TooFew => {
            let runs = |part: &PartOfDay| format!("{} on {}", part.count, counted(part.days, "day", "days"));
            let text = format!(
                "{name}, evening against night: too few runs for a statement: {} in the evening, {} at night; at least \
                 {LEAST_COMPARED} on {LEAST_DAYS} days each.",
                runs(&report.evening),
                runs(&report.night)
            );
            Finding::new(Tone::Plain, text)
        }
        Comparison::SlowerEvening(share) => {
            let text = format!("{name}: slower in the evening by {} ({}).", quantity::share(share), medians());
            Finding::new(Tone::Bad, text)
        }
        Comparison::FasterEvening(share) => {
            let text = format!("{name}: faster in the evening by {} ({}).", quantity::share(share), medians());
            Finding::new(Tone::Plain, text)
        }
        Comparison::NoDifference => {
            let text = format!("{name}: no difference between evening and night is shown ({}).", medians());
            Finding::new(Tone::Plain, text)
        }
    }
}

fn outages(report: &OutageReport) -> Vec<Finding> {
    let observed = format!(
        "the monitors probed beyond the router in {} of the period's {} hours",
        report.observed_hours, report.period_hours
    );
    if report.observed_hours == 0 && report.rows.is_empty() {
        return vec![Finding::new(
            Tone::Fair,
            "Outages: not known; nothing beyond the router was monitored.".to_owned(),
        )];
    }
    let mut findings = Vec::new();
    for sum in &report.sums {
        let times = match sum.count {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let together = quantity::millis(sum.seconds.saturating_mul(1000));
        let longest = quantity::millis(sum.longest_s.saturating_mul(1000));
        let length = if sum.count == 1 { together } else { format!("{together} together, the longest {longest}") };
        let (tone, what) = match sum.extent {
            OutageExtent::BeyondGateway => {
                (Tone::Bad, "the router was reachable and nothing beyond it that was probed")
            }
            OutageExtent::Everything => {
                (Tone::Fair, "not even the router was reachable, which points to the network at home")
            }
            OutageExtent::Target => (
                Tone::Plain,
                "one target was not reachable while others beyond the router were, which is no outage of the line",
            ),
            OutageExtent::Gateway => {
                (Tone::Plain, "the router did not answer while others beyond it did, which is no outage of the line")
            }
            OutageExtent::Unknown => {
                (Tone::Fair, "a target was not reachable, and nothing else was probed that shows where the fault was")
            }
        };
        findings.push(Finding::new(tone, format!("Outages: {times} ({length}) {what}.")));
    }
    if report.sum(OutageExtent::BeyondGateway).is_none() {
        let is_well = report.observed_hours as f64 >= WELL_OBSERVED * report.period_hours as f64;
        let tone = if is_well && report.has_gateway { Tone::Good } else { Tone::Plain };
        findings.push(Finding::new(tone, format!("Outages: none of the line itself was seen; {observed}.")));
    } else if let Some(last) = findings.last_mut() {
        last.text = format!("{}; {observed}.", last.text.trim_end_matches('.'));
    }
    findings
}

fn loaded(report: &LatencyReport) -> Option<Finding> {
    let load = match report.load {
        Load::Download => "download",
        Load::Upload => "upload",
        Load::Idle | Load::Bidir | Load::Unknown => return None,
    };
    let Some(increase) = report.increase_ms else {
        let text = format!(
            "Latency under {load}: {} in this period, too few for a statement.",
            counted(report.count, "run measured it", "runs measured it")
        );
        return Some(Finding::new(Tone::Plain, text));
    };
    let p50 = report.p50_us.map(|p50| format!(" to {}", quantity::micros(p50.value as u64))).unwrap_or_default();
    let rise = quantity::micros((increase.value.max(0.0) * 1000.0) as u64);
    let known = || report.queues.iter().filter(|(side, _)| *side != QueueSide::Unknown);
    let all = known().map(|(_, count)| count).sum::<usize>();
    let most = known().next().filter(|(_, count)| all >= Median::LEAST && count * 2 > all);
    let queue = match most {
        Some((QueueSide::None, count)) => format!(" In {count} of {all} runs no queue was found."),
        Some((QueueSide::Both, count)) => format!(" In {count} of {all} runs the queue stood in both directions."),
        Some((side, count)) => {
            let own = match report.own_queues {
                0 => String::new(),
                own => format!(", in {own} of them in this device itself"),
            };
            format!(" In {count} of {all} runs the queue stood in the {} direction{own}.", side.as_words())
        }
        None => String::new(),
    };
    let text = format!("Latency under {load}: it rises by {rise}{p50} (medians of {} runs).{queue}", increase.count);
    let tone = if increase.value >= NOTICEABLE_MS { Tone::Bad } else { Tone::Good };
    Some(Finding::new(tone, text))
}

fn loss(report: &MonitorReport) -> Option<Finding> {
    let share = report.all.loss().filter(|share| *share >= NOTICEABLE_LOSS)?;
    let text = format!(
        "Loss: the monitor {} lost {} of {} probes, outages included.",
        report.name,
        quantity::share(share),
        report.all.probes
    );
    Some(Finding::new(if report.is_gateway { Tone::Fair } else { Tone::Bad }, text))
}

/// `count` followed by the noun `one` or `many`, such as `1 run` or `2 runs`.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}
