//! What a rule can watch: the metrics. Each has a name, a description and a unit. For rates, low values are bad; for
//! all other metrics, high values.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use paramedic_report::quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The metric that a rule watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertMetric {
    /// The download rate of a test.
    Download,
    /// The upload rate of a test.
    Upload,
    /// The median round trip without load that a test measured.
    IdleLatency,
    /// A test has a 95th percentile of its round trips for each load (download, upload, both). This is the highest of
    /// them.
    LoadedLatency,
    /// The share of a test's probes that were lost without load, in the direction with the higher loss.
    Loss,
    /// The share of lost probes of a monitor, in a window of some minutes.
    MonitorLoss,
    /// The median round trip of a monitor, in a window of some minutes.
    MonitorLatencyP50,
    /// The 95th percentile of the round trips of a monitor, in a window of some minutes.
    MonitorLatencyP95,
    /// For how long targets of monitors have not been reachable.
    Outage,
    /// Whether a test failed.
    TestFailed,
    /// How long ago the last result was measured.
    Silence,
}

/// What the values of a metric come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricSource {
    /// Each test gives one value.
    Tests,
    /// Each window of a monitor gives one value.
    Monitors,
    /// The outages that the monitors found.
    Outages,
    /// The time since the last result.
    Clock,
}

/// The unit of the values of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricUnit {
    /// Bits per second.
    BitsPerSecond,
    /// Milliseconds.
    Milliseconds,
    /// Percent.
    Percent,
    /// Seconds.
    Seconds,
    /// Whether an event happened: 1 or 0.
    Count,
}

/// The error for a word that is not the name of a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a metric; valid: {valid}", valid = AlertMetric::words())]
pub struct NoSuchMetric(pub String);

impl AlertMetric {
    /// All metrics, each with its name and its description.
    pub const ALL: [(Self, &'static str, &'static str); 11] = [
        (Self::Download, "download", "download"),
        (Self::Upload, "upload", "upload"),
        (Self::IdleLatency, "idle_latency", "round trip without load"),
        (Self::LoadedLatency, "loaded_latency", "round trip under load (95th percentile)"),
        (Self::Loss, "loss", "loss without load"),
        (Self::MonitorLoss, "monitor_loss", "loss of a monitor"),
        (Self::MonitorLatencyP50, "monitor_latency_p50", "median round trip of a monitor"),
        (Self::MonitorLatencyP95, "monitor_latency_p95", "95th percentile of the round trip of a monitor"),
        (Self::Outage, "outage", "outage"),
        (Self::TestFailed, "test_failed", "failed test"),
        (Self::Silence, "silence", "time without a result"),
    ];

    /// The name of the metric in documents and options.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, ..)| *own == self).map_or("", |(_, word, _)| word)
    }

    /// The description of the metric, in words.
    pub fn as_words(self) -> &'static str {
        Self::ALL.iter().find(|(own, ..)| *own == self).map_or("", |(.., words)| words)
    }

    /// The names of all metrics, for an error message.
    pub fn words() -> String {
        Self::ALL.map(|(_, word, _)| word).join(", ")
    }

    /// What the values of the metric come from.
    pub fn source(self) -> MetricSource {
        match self {
            Self::Download | Self::Upload | Self::IdleLatency | Self::LoadedLatency | Self::Loss | Self::TestFailed => {
                MetricSource::Tests
            }
            Self::MonitorLoss | Self::MonitorLatencyP50 | Self::MonitorLatencyP95 => MetricSource::Monitors,
            Self::Outage => MetricSource::Outages,
            Self::Silence => MetricSource::Clock,
        }
    }

    /// The unit of the metric's values.
    pub fn unit(self) -> MetricUnit {
        match self {
            Self::Download | Self::Upload => MetricUnit::BitsPerSecond,
            Self::IdleLatency | Self::LoadedLatency | Self::MonitorLatencyP50 | Self::MonitorLatencyP95 => {
                MetricUnit::Milliseconds
            }
            Self::Loss | Self::MonitorLoss => MetricUnit::Percent,
            Self::Outage | Self::Silence => MetricUnit::Seconds,
            Self::TestFailed => MetricUnit::Count,
        }
    }

    /// Whether the metric is a rate. Low rates are bad; for all other metrics, high values are bad.
    pub fn is_rate(self) -> bool {
        self.unit() == MetricUnit::BitsPerSecond
    }
}

impl MetricUnit {
    /// The name of the unit in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BitsPerSecond => "bit/s",
            Self::Milliseconds => "ms",
            Self::Percent => "%",
            Self::Seconds => "s",
            Self::Count => "",
        }
    }

    /// Formats a value in this unit for a reader.
    pub fn print(self, value: f64) -> String {
        let whole = |value: f64| value.max(0.0).round() as u64;
        match self {
            Self::BitsPerSecond => quantity::rate(whole(value)),
            Self::Milliseconds => quantity::micros(whole(value * 1e3)),
            Self::Percent => quantity::share(value / 100.0),
            Self::Seconds => duration(value),
            Self::Count => format!("{value:.0}"),
        }
    }

    /// Parses a value, such as `50M`, `80ms`, `2%` or `10m`; `None` if the text is not in this unit.
    pub fn parse(self, text: &str) -> Option<f64> {
        match self {
            Self::BitsPerSecond => quantity::parse_rate(text).ok().map(|bps| bps as f64),
            Self::Milliseconds => quantity::parse_milliseconds(text).ok().map(|time| time.as_secs_f64() * 1e3),
            Self::Percent => quantity::parse_share(text).ok().map(|share| share * 100.0),
            Self::Seconds => quantity::parse_duration(text).ok().map(|time| time.as_secs_f64()),
            Self::Count => None,
        }
    }
}

/// Formats a duration in its two largest units, such as `2 h 30 min`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600, seconds / 60);
    let pair = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {part}"),
    };
    match seconds {
        86_400.. => pair(days, if days == 1 { "day" } else { "days" }, hours % 24, "h"),
        3_600.. => pair(hours, "h", minutes % 60, "min"),
        60.. => pair(minutes, "min", seconds % 60, "s"),
        _ => quantity::exact_duration(Duration::from_secs(seconds)).replace('s', " s"),
    }
}

impl fmt::Display for AlertMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AlertMetric {
    type Err = NoSuchMetric;

    fn from_str(text: &str) -> Result<Self, NoSuchMetric> {
        let wanted = text.trim().replace('-', "_");
        let found = Self::ALL.iter().find(|(_, word, _)| *word == wanted).map(|(metric, ..)| *metric);
        found.ok_or_else(|| NoSuchMetric(text.chars().take(60).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_word_of_its_own_and_is_serialised_as_it() {
        for (metric, word, _) in AlertMetric::ALL {
            assert_eq!(word.parse(), Ok(metric));
            assert_eq!(serde_json::to_value(metric).unwrap(), word);
        }
        assert_eq!("monitor-loss".parse(), Ok(AlertMetric::MonitorLoss));
        assert!("speed".parse::<AlertMetric>().unwrap_err().to_string().contains("download, upload"));
    }

    #[test]
    fn values_are_read_and_printed_in_the_unit_of_the_metric() {
        for (metric, text, value, printed) in [
            (AlertMetric::Download, "50M", 50e6, "50.0 Mbit/s"),
            (AlertMetric::IdleLatency, "80ms", 80.0, "80.0 ms"),
            (AlertMetric::MonitorLoss, "2%", 2.0, "2.0 %"),
            (AlertMetric::Outage, "10m", 600.0, "10 min"),
            (AlertMetric::Silence, "26h", 93_600.0, "1 day 2 h"),
        ] {
            assert_eq!(metric.unit().parse(text), Some(value), "{metric}");
            assert_eq!(metric.unit().print(value), printed, "{metric}");
        }
        for (metric, wrong) in [(AlertMetric::Download, "80ms"), (AlertMetric::Loss, "2"), (AlertMetric::Outage, "9")] {
            assert_eq!(metric.unit().parse(wrong), None, "{metric}");
        }
        let all = [0.0, 59.0, 61.0, 3_600.0, 5_430.0, 90_061.0, 172_800.0].map(duration);
        assert_eq!(all, ["0 s", "59 s", "1 min 1 s", "1 h", "1 h 30 min", "1 day 1 h", "2 days"]);
    }
}
