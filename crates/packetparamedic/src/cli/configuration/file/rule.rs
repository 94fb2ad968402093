//! `[[rule]]`: its keys are the options of `packetparamedic rule add`. A rule that the options cannot express is
//! written as its stored definition, in JSON.

use clap::{CommandFactory, Parser};
use paramedic_appliance::alerts::{AlertLimit, AlertMetric, AlertRule, MetricUnit};
use paramedic_appliance::app::ConfiguredRule;
use toml::de::{DeTable, DeValue};

use super::super::super::rule::RuleOptions;
use super::super::options::{DEFINITION, FileOption, OptionFault, fault_of_word, option_keys, words};
use super::text::{ENABLED, FileFault, FileText, disabled, in_order, switch_of, texts_of, value_of};

/// The key of a rule's channels. Its value is a list of names, or a single name.
const CHANNEL: &str = "channel";

#[derive(Parser)]
#[command(no_binary_name = true)]
struct FileRule {
    #[command(flatten)]
    rule: Box<RuleOptions>,
}

pub(super) fn parse(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ConfiguredRule, FileFault> {
    let command = FileRule::command();
    let mut keys = option_keys(&command);
    keys.extend([DEFINITION.to_owned(), ENABLED.to_owned()]);
    let (mut enabled, mut given) = (true, Vec::new());
    let entries = in_order(table);
    for (key, value) in &entries {
        let name = &**key.get_ref();
        let wrong = |problem: String| file.fault_of(key, &problem);
        if !keys.iter().any(|known| known == name) {
            return Err(file.unknown(key, &keys.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let option = match value.get_ref() {
            _ if name == ENABLED => {
                enabled = switch_of(value.get_ref()).map_err(wrong)?;
                continue;
            }
            DeValue::Boolean(value) => FileOption::Flag(*value),
            list if name == CHANNEL => FileOption::List(texts_of(list).map_err(wrong)?),
            other => FileOption::Value(value_of(other).map_err(wrong)?),
        };
        given.push((name.to_owned(), option));
    }
    let rule = rule_of(&given).map_err(|OptionFault { key, problem }| {
        let named = key.and_then(|wanted| entries.iter().find(|(key, _)| *key.get_ref() == wanted));
        match named {
            Some((key, _)) => file.fault_of(key, &problem),
            None => file.fault(at, format!("rule: {problem}")),
        }
    })?;
    Ok(ConfiguredRule { enabled, rule })
}

/// Builds the rule that the options in `given` describe.
fn rule_of(given: &[(String, FileOption)]) -> Result<AlertRule, OptionFault> {
    let fault = |key: Option<&str>, problem: String| OptionFault { key: key.map(str::to_owned), problem };
    if let Some((_, FileOption::Value(json))) = given.iter().find(|(key, _)| key == DEFINITION) {
        if let Some((other, _)) = given.iter().find(|(key, _)| key != DEFINITION && key != "name") {
            return Err(fault(Some(DEFINITION), format!("it describes the whole rule; remove {other}")));
        }
        let rule = serde_json::from_str::<AlertRule>(json);
        let rule = rule.map_err(|error| fault(Some(DEFINITION), error.to_string()))?;
        rule.check().map_err(|error| fault(Some(DEFINITION), error.to_string()))?;
        return Ok(rule);
    }
    let words = words(&FileRule::command(), given)?;
    let options = *FileRule::try_parse_from(words).map_err(|error| fault_of_word(&error))?.rule;
    match options.rule() {
        Ok(Some(rule)) => Ok(rule),
        Ok(None) => Err(fault(None, "metric is missing".to_owned())),
        Err(failure) => Err(fault(None, failure.because.clone())),
    }
}

pub(super) fn rows(configured: &ConfiguredRule) -> Vec<(String, FileOption)> {
    let rule = &configured.rule;
    let mut rows = expressed(rule);
    if rule_of(&rows).as_ref() != Ok(rule) {
        // A rule that was added by the API can have a limit that no option expresses.
        let definition = serde_json::to_string(rule).unwrap_or_default();
        rows = [("name", rule.name.clone()), (DEFINITION, definition)]
            .map(|(key, value)| (key.to_owned(), FileOption::Value(value)))
            .into();
    }
    rows.into_iter().chain(disabled(configured.enabled)).collect()
}

fn expressed(rule: &AlertRule) -> Vec<(String, FileOption)> {
    let value = |key: &str, value: String| (key.to_owned(), FileOption::Value(value));
    let AlertRule { name, metric, subject, limit, times, of, window_minutes, retest, channels, quiet_hours, zone } =
        rule;
    let plain = AlertRule::new(name, *metric, *limit, zone.clone());
    let mut rows = vec![value("name", name.clone()), value("metric", metric.as_str().to_owned())];
    rows.extend(subject.iter().map(|subject| value("target", subject.clone())));
    rows.extend(limit.map(|limit| match limit {
        AlertLimit::Below(bound) => value("below", bound_text(*metric, bound)),
        AlertLimit::Above(bound) => value("above", bound_text(*metric, bound)),
        AlertLimit::BelowPlan(share) => value("below_plan", percent_text(share)),
        AlertLimit::BelowUsual(share) => value("below_usual", percent_text(share)),
        AlertLimit::AboveUsual(factor) => value("above_usual", percent_text(factor)),
    }));
    if (*times, *of) != (plain.times, plain.of) {
        rows.push(value("times", format!("{times}/{of}")));
    }
    if *window_minutes != plain.window_minutes {
        rows.push(value("window", window_minutes.to_string()));
    }
    if *retest {
        rows.push(("retest".to_owned(), FileOption::Flag(true)));
    }
    if !channels.is_empty() {
        rows.push((CHANNEL.to_owned(), FileOption::List(channels.clone())));
    }
    rows.extend(quiet_hours.map(|hours| value("quiet_hours", hours.to_string())));
    rows.push(value("zone", zone.name().to_owned()));
    rows
}

/// Formats the bound of an alert limit in the unit of its metric, as the command-line option accepts it.
fn bound_text(metric: AlertMetric, bound: f64) -> String {
    let unit = metric.unit();
    let suffix = match unit {
        MetricUnit::Milliseconds => "ms",
        MetricUnit::Percent => "%",
        MetricUnit::Seconds => "s",
        MetricUnit::BitsPerSecond | MetricUnit::Count => "",
    };
    shortest(bound, suffix, |text| unit.parse(text) == Some(bound))
}

fn percent_text(share: f64) -> String {
    let is_exact = |text: &str| text.trim_end_matches('%').parse::<f64>().is_ok_and(|percent| percent / 100.0 == share);
    shortest(share * 100.0, "%", is_exact)
}

/// Formats `number` with as few decimals as possible, followed by `suffix`. `is_exact` returns whether a text is parsed
/// as exactly this number.
fn shortest(number: f64, suffix: &str, is_exact: impl Fn(&str) -> bool) -> String {
    let texts = (0..=9_usize).map(|decimals| format!("{number:.decimals$}{suffix}"));
    texts.into_iter().find(|text| is_exact(text)).unwrap_or_else(|| format!("{number}{suffix}"))
}
