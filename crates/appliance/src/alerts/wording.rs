//! The words of an alert: a title for a phone, and a text. The text says what was measured, what was expected, since
//! when, and how certain this is.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_report::quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::finding::{AlertFinding, OutageFinding, RuleEnd};
use super::message::Urgency;
use super::metric::{self, AlertMetric, MetricSource};
use super::rule::AlertLimit;
use crate::monitor::outage::OutageScope;

/// The words of the message about the opening or the closing of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertWords {
    /// The title, in one line.
    pub title: String,
    /// The text, with one sentence in each line.
    pub text: String,
}

/// The words for an alert that opens.
pub fn opened(subject: &str, found: &AlertFinding, zone: &TimeZone) -> AlertWords {
    let mut lines = vec![measured(subject, found, zone)];
    lines.extend(expected(found));
    if found.metric != AlertMetric::Silence {
        lines.push(format!("Since {}.", shown(found.since, zone)));
    }
    lines.extend(certainty(found));
    lines.extend(other_ends(subject, found));
    AlertWords { title: opening_title(subject, found), text: lines.join("\n") }
}

/// The words for an alert that closes.
pub fn closed(rule: &str, subject: &str, found: &AlertFinding, zone: &TimeZone) -> AlertWords {
    if let Some(end) = found.ended_by {
        let (word, next) = match end {
            RuleEnd::Removed => ("removed", "Whether it still holds is not judged any more."),
            RuleEnd::Disabled => ("disabled", "Whether it still holds is not judged any more."),
            RuleEnd::Changed => ("changed", "What is measured from now on is judged by the changed rule."),
        };
        let title = format!("Closed: the rule {rule} was {word}");
        let (about, since) = (about(subject, found), shown(found.since, zone));
        let text = format!(
            "The rule {rule} was {word}, so its alert about {about} is closed.\nIt was open since {since}. {next}"
        );
        return AlertWords { title, text };
    }
    let mut lines = vec![held_again(subject, found)];
    lines.extend(expected(found).filter(|_| found.metric.source() != MetricSource::Outages));
    if let Some(until) = found.until {
        let lasted = metric::duration(until.duration_since(found.since).as_secs_f64());
        lines.push(format!("It lasted from {} to {}: {lasted}.", shown(found.since, zone), shown(until, zone)));
    }
    let count = found.count;
    match found.metric.source() {
        MetricSource::Tests if count == 1 => lines.push("How sure: the last test was as expected.".to_owned()),
        MetricSource::Tests => lines.push(format!("How sure: the last {count} tests were as expected.")),
        MetricSource::Monitors => {
            let minutes = count * found.window_minutes.unwrap_or(1);
            lines.push(format!("How sure: as expected in the last {minutes} min that were judged."));
        }
        MetricSource::Outages | MetricSource::Clock => {}
    }
    AlertWords { title: closing_title(subject, found), text: lines.join("\n") }
}

/// How urgent an alert that opens is.
pub fn urgency(found: &AlertFinding) -> Urgency {
    match found.outage.as_ref().map(|outage| outage.scope) {
        Some(OutageScope::Everything | OutageScope::BeyondGateway) => Urgency::High,
        _ => Urgency::Normal,
    }
}

fn opening_title(subject: &str, found: &AlertFinding) -> String {
    let value = value(found);
    match found.metric {
        AlertMetric::Download => format!("Slow download: {value} from {subject}"),
        AlertMetric::Upload => format!("Slow upload: {value} to {subject}"),
        AlertMetric::IdleLatency => format!("Slow answers: {value} to {subject} and back"),
        AlertMetric::LoadedLatency => format!("Slow answers under load: {value} to {subject} and back"),
        AlertMetric::Loss | AlertMetric::MonitorLoss => format!("Loss: {value} of the probes to {subject}"),
        AlertMetric::MonitorLatencyP50 | AlertMetric::MonitorLatencyP95 => {
            format!("Slow answers: {value} to {subject} and back")
        }
        AlertMetric::Outage => format!("Outage: {}", found.outage.as_ref().map_or("no answers".to_owned(), failing)),
        AlertMetric::TestFailed => format!("Tests against {subject} fail"),
        AlertMetric::Silence => format!("No result for {value}"),
    }
}

fn closing_title(subject: &str, found: &AlertFinding) -> String {
    let value = value(found);
    match found.metric {
        AlertMetric::Download => format!("Download as expected again: {value} from {subject}"),
        AlertMetric::Upload => format!("Upload as expected again: {value} to {subject}"),
        AlertMetric::Loss | AlertMetric::MonitorLoss => format!("Loss is over: {value} of the probes to {subject}"),
        AlertMetric::Outage => format!("Outage is over after {value}"),
        AlertMetric::TestFailed => format!("Tests against {subject} work again"),
        AlertMetric::Silence => "Results are measured again".to_owned(),
        _ => format!("Answers as fast as expected again: {value} to {subject} and back"),
    }
}

/// What was measured, as a sentence.
fn measured(subject: &str, found: &AlertFinding, zone: &TimeZone) -> String {
    let value = value(found);
    let window = found.window_minutes.unwrap_or(1);
    match found.metric {
        AlertMetric::Download => format!("The download from {subject} was {value}."),
        AlertMetric::Upload => format!("The upload to {subject} was {value}."),
        AlertMetric::IdleLatency => format!("The median round trip to {subject} was {value} without load."),
        AlertMetric::LoadedLatency => {
            format!("The 95th percentile of the round trips to {subject} was {value} under load.")
        }
        AlertMetric::Loss => format!("{value} of the probes of a test against {subject} were lost without load."),
        AlertMetric::MonitorLoss => format!("{value} of the probes to {subject} were lost in {window} min."),
        AlertMetric::MonitorLatencyP50 => format!("The median round trip to {subject} was {value} in {window} min."),
        AlertMetric::MonitorLatencyP95 => {
            format!("The 95th percentile of the round trips to {subject} was {value} in {window} min.")
        }
        AlertMetric::Outage => match &found.outage {
            Some(outage) => format!("For {value}: {}. Not reachable: {}.", failing(outage), listed(&outage.failed)),
            None => format!("Targets were not reachable for {value}."),
        },
        AlertMetric::TestFailed => match &found.failure {
            Some(what) => format!("The last test against {subject} failed: {}.", what.trim_end_matches('.')),
            None => format!("The last test against {subject} failed."),
        },
        AlertMetric::Silence => format!("The last result is of {}: {value} ago.", shown(found.since, zone)),
    }
}

/// A sentence that says which measurement is as expected again.
fn held_again(subject: &str, found: &AlertFinding) -> String {
    let value = value(found);
    match found.metric {
        AlertMetric::Outage => match &found.outage {
            Some(outage) => format!("Reachable again: {}.", listed(&outage.failed)),
            None => "All targets are reachable again.".to_owned(),
        },
        AlertMetric::TestFailed => format!("A test against {subject} ran to its end."),
        AlertMetric::Silence => "There is a new result.".to_owned(),
        AlertMetric::Download => format!("The download from {subject} is {value}."),
        AlertMetric::Upload => format!("The upload to {subject} is {value}."),
        AlertMetric::Loss | AlertMetric::MonitorLoss => format!("{value} of the probes to {subject} were lost."),
        AlertMetric::LoadedLatency | AlertMetric::MonitorLatencyP95 => {
            format!("The 95th percentile of the round trips to {subject} is {value}.")
        }
        AlertMetric::IdleLatency | AlertMetric::MonitorLatencyP50 => {
            format!("The median round trip to {subject} is {value}.")
        }
    }
}

/// What was expected, as a sentence.
fn expected(found: &AlertFinding) -> Option<String> {
    let unit = found.metric.unit();
    let reference = found.reference.map(|value| unit.print(value)).unwrap_or_default();
    let value = unit.print(found.expected?);
    let usual = |share: f64| {
        format!("{value}: {} of the {reference} that are usual at this hour of the week", quantity::share(share))
    };
    Some(match found.limit? {
        AlertLimit::Below(_) => format!("Expected: at least {value}."),
        AlertLimit::Above(_) if found.metric == AlertMetric::Outage => {
            format!("Expected: no outage longer than {value}.")
        }
        AlertLimit::Above(_) if found.metric == AlertMetric::Silence => {
            format!("Expected: a result within {value}.")
        }
        AlertLimit::Above(_) => format!("Expected: at most {value}."),
        AlertLimit::BelowPlan(share) => {
            format!("Expected: at least {value}, {} of the {reference} of the plan.", quantity::share(share))
        }
        AlertLimit::BelowUsual(share) => format!("Expected: at least {}.", usual(share)),
        AlertLimit::AboveUsual(_) => {
            format!("Expected: at most {value}; {reference} are usual at this hour of the week.")
        }
    })
}

/// How sure it is that an opening is justified, as a sentence.
fn certainty(found: &AlertFinding) -> Option<String> {
    let (count, of) = (found.count, found.of);
    let again = if found.retest.is_some() { "; the test that was repeated at once agrees" } else { "" };
    let side = match (found.metric, found.metric.is_rate()) {
        (AlertMetric::TestFailed, _) => "failed",
        (_, true) => "below that",
        (_, false) => "above that",
    };
    match found.metric.source() {
        MetricSource::Tests if of == 1 => Some(format!("How sure: one test{again}.")),
        MetricSource::Tests if found.metric == AlertMetric::TestFailed => {
            Some(format!("How sure: {count} of the last {of} tests failed{again}."))
        }
        MetricSource::Tests => Some(format!("How sure: {count} of the last {of} tests were {side}{again}.")),
        MetricSource::Monitors => {
            let window = found.window_minutes.unwrap_or(1);
            Some(format!("How sure: {count} of the last {of} windows of {window} min were {side}."))
        }
        // The monitors find an outage by this definition, which docs/service.md describes.
        MetricSource::Outages => Some(
            "How sure: three probes in a row were lost, and to a reflector a TCP connection failed too.".to_owned(),
        ),
        MetricSource::Clock => None,
    }
}

/// A sentence that says where the fault is, judged by the tests against other targets; `None` if no other target was
/// tested.
fn other_ends(subject: &str, found: &AlertFinding) -> Option<String> {
    let retest = found.retest.as_ref()?;
    let was = |names: &BTreeSet<String>| if names.len() == 1 { "was" } else { "were" };
    if !retest.also_bad.is_empty() {
        let (names, was) = (listed(&retest.also_bad), was(&retest.also_bad));
        return Some(format!(
            "{names}, tested at the same time, {was} not as expected either: it is the line, not one end."
        ));
    }
    let (names, was) = (listed(&retest.good), was(&retest.good));
    (!retest.good.is_empty()).then(|| {
        format!("{names}, tested at the same time, {was} as expected: it is {subject} or the way to it, not the line.")
    })
}

fn about(subject: &str, found: &AlertFinding) -> String {
    match found.metric {
        AlertMetric::Outage | AlertMetric::Silence => found.metric.as_words().to_owned(),
        metric => format!("{} ({subject})", metric.as_words()),
    }
}

fn value(found: &AlertFinding) -> String {
    found.measured.map_or_else(|| "nothing".to_owned(), |value| found.metric.unit().print(value))
}

/// What failed in an outage, in words.
fn failing(outage: &OutageFinding) -> String {
    match outage.scope {
        OutageScope::Everything => "nothing answers, not even the gateway".to_owned(),
        OutageScope::BeyondGateway => "the gateway answers, nothing beyond it does".to_owned(),
        OutageScope::Target => {
            let verb = if outage.failed.len() == 1 { "does" } else { "do" };
            format!("{} {verb} not answer, other targets do", listed(&outage.failed))
        }
        OutageScope::Gateway => "the gateway does not answer, targets beyond it do".to_owned(),
        OutageScope::Unknown => format!("no answer from {}; nothing else is probed", listed(&outage.failed)),
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    match names.iter().collect::<Vec<_>>()[..] {
        [] => "a target".to_owned(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, two, ref others @ ..] => format!("{one}, {two} and {} more", others.len()),
    }
}

/// Prints a time in the time zone of the rule.
fn shown(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

#[cfg(test)]
mod cases;
