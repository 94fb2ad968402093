//! Metrics as text for Prometheus: a program has a list of metrics, and reads each of them from its own state. Pure: no
//! I/O, no clock.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The media type of OpenMetrics, without parameters.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// A metric whose values are read from a state of type `S`.
#[derive(Debug)]
pub struct Metric<S: 'static> {
    /// The name of the metric, as Prometheus shows it.
    pub name: &'static str,
    /// What the metric counts or measures.
    pub help: &'static str,
    /// The names of the metric's labels, in the order of the label values in [`MetricValues`].
    pub labels: &'static [&'static str],
    /// Reads the values of the metric.
    pub read: fn(&S) -> MetricValues,
}

/// The values of a metric, each with the values of its labels.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValues {
    /// A counter, which never falls.
    Counter(Vec<(Vec<String>, u64)>),
    /// A counter of seconds, which never falls.
    Seconds(Vec<(Vec<String>, f64)>),
    /// A value that can rise and fall.
    Gauge(Vec<(Vec<String>, f64)>),
    /// A histogram: how many measured values are in each bucket.
    Histogram(Vec<(Vec<String>, HistogramValue)>),
}

/// A histogram: how many values are in each bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramValue {
    /// The upper bound of each bucket and the number of values in that bucket alone, in ascending order of the bounds.
    pub buckets: Vec<(f64, u64)>,
    /// The number of values above the bound of the last bucket.
    pub above: u64,
    /// The sum of all values.
    pub sum: f64,
}

/// A text format for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsFormat {
    /// The text format of Prometheus, version 0.0.4.
    #[default]
    Plain,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl MetricValues {
    /// A gauge without labels.
    pub fn gauge(value: f64) -> Self {
        Self::Gauge(vec![(Vec::new(), value)])
    }

    /// A counter without labels.
    pub fn counter(value: u64) -> Self {
        Self::Counter(vec![(Vec::new(), value)])
    }

    /// A gauge with one value for each word of `words`, with the word as its label: 1 for `current`, 0 for the others.
    pub fn one_of(words: &[&str], current: &str) -> Self {
        let value = |word: &&str| (vec![(*word).to_owned()], f64::from(u8::from(*word == current)));
        Self::Gauge(words.iter().map(value).collect())
    }

    fn kind(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::Seconds(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }
}

impl MetricsFormat {
    /// The format that the header `Accept` of a request prefers; the plain format if the header has no preference.
    pub fn of_accept(accept: &str) -> Self {
        let weight = |wanted: &str| {
            let ranges = accept.split(',').map(|range| range.split(';').map(str::trim).collect::<Vec<_>>());
            let named = ranges.filter(|parts| parts.first().is_some_and(|kind| kind.eq_ignore_ascii_case(wanted)));
            let weight = |parts: Vec<&str>| {
                let given = parts.iter().find_map(|part| part.strip_prefix("q="));
                given.map_or(1.0, |q| q.parse::<f64>().unwrap_or(0.0))
            };
            named.map(weight).fold(0.0, f64::max)
        };
        if weight(OPEN_METRICS) > weight("text/plain") { Self::OpenMetrics } else { Self::Plain }
    }

    /// The `Content-Type` of metrics in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The metrics of `state` as text in this format.
    pub fn text<S>(self, metrics: &'static [Metric<S>], state: &S) -> String {
        let read = |metric: &Metric<S>| ReadMetric {
            name: metric.name,
            help: metric.help,
            labels: metric.labels,
            values: (metric.read)(state),
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected(metrics.iter().map(read).collect())));
        let mut written = String::new();
        // Writing to a String does not fail.
        match self {
            Self::Plain => prometheus_text::encode(&mut written, &registry).ok(),
            Self::OpenMetrics => text::encode(&mut written, &registry).ok(),
        };
        written
    }
}

/// A metric with its values.
#[derive(Debug)]
struct ReadMetric {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    values: MetricValues,
}

#[derive(Debug)]
struct Collected(Vec<ReadMetric>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in &self.0 {
            // The encoder appends the suffix of a counter.
            let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            let mut family = encoder.encode_descriptor(name, metric.help, None, metric.values.kind())?;
            match &metric.values {
                MetricValues::Counter(counts) => metric.each(&mut family, counts, |encoder, count| {
                    encoder.encode_counter::<NoLabelSet, _, f64>(count, None)
                })?,
                MetricValues::Seconds(seconds) => metric.each(&mut family, seconds, |encoder, seconds| {
                    encoder.encode_counter::<NoLabelSet, _, f64>(seconds, None)
                })?,
                MetricValues::Gauge(values) => {
                    metric.each(&mut family, values, encode_gauge)?;
                }
                MetricValues::Histogram(values) => metric.each(&mut family, values, |encoder, value| {
                    let count = value.buckets.iter().fold(value.above, |sum, (_, count)| sum.saturating_add(*count));
                    // OpenMetrics requires a last bucket with the bound +Inf.
                    let buckets = value.buckets.iter().copied().chain([(f64::INFINITY, value.above)]);
                    let buckets = buckets.collect::<Vec<_>>();
                    encoder.encode_histogram::<NoLabelSet>(value.sum, count, &buckets, None)
                })?,
            }
        }
        Ok(())
    }
}

impl ReadMetric {
    fn each<V>(
        &self,
        family: &mut MetricEncoder<'_>,
        values: &[(Vec<String>, V)],
        mut encode: impl FnMut(&mut MetricEncoder<'_>, &V) -> fmt::Result,
    ) -> fmt::Result {
        for (labels, value) in values {
            let labels = self.labels.iter().copied().zip(labels.iter().map(String::as_str)).collect::<Vec<_>>();
            if labels.is_empty() {
                encode(family, value)?;
            } else {
                encode(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }
}

fn encode_gauge(encoder: &mut MetricEncoder<'_>, value: &f64) -> fmt::Result {
    encoder.encode_gauge(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &[Metric<u64>] = &[
        Metric { name: "a_total", help: "A", labels: &[], read: |state| MetricValues::counter(*state) },
        Metric {
            name: "b_seconds",
            help: "B",
            labels: &["name"],
            read: |state| {
                let value = HistogramValue { buckets: vec![(0.5, 2), (1.0, *state)], above: 1, sum: 4.5 };
                MetricValues::Histogram(vec![(vec!["x\"\\\ny".to_owned()], value)])
            },
        },
        Metric { name: "c", help: "C", labels: &["state"], read: |_| MetricValues::one_of(&["on", "off"], "off") },
    ];

    #[test]
    fn both_formats_have_the_same_values() {
        let plain = MetricsFormat::Plain.text(METRICS, &7);
        let open = MetricsFormat::OpenMetrics.text(METRICS, &7);
        for text in [&plain, &open] {
            for line in [
                "a_total 7",
                "b_seconds_bucket{name=\"x\\\"\\\\\\ny\",le=\"+Inf\"} 10",
                "b_seconds_count{name=\"x\\\"\\\\\\ny\"} 10",
                "b_seconds_sum{name=\"x\\\"\\\\\\ny\"} 4.5",
            ] {
                let reordered =
                    line.replace("{name=\"x\\\"\\\\\\ny\",le=\"+Inf\"}", "{le=\"+Inf\",name=\"x\\\"\\\\\\ny\"}");
                assert!(text.lines().any(|found| found == line || found == reordered), "no {line} in\n{text}");
            }
        }
        assert!(plain.contains("c{state=\"off\"} 1") && open.ends_with("# EOF\n"), "{plain}\n{open}");
    }

    #[test]
    fn the_format_is_the_one_that_the_client_prefers() {
        use MetricsFormat::{OpenMetrics, Plain};
        for (accept, format) in [
            ("", Plain),
            ("*/*", Plain),
            ("text/html", Plain),
            ("application/openmetrics-text", OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            ("application/openmetrics-text; q=0.4, text/plain; q=0.5", Plain),
            ("application/openmetrics-text;q=x", Plain),
            ("application/openmetrics-text;q=0", Plain),
            (";;,,q=", Plain),
        ] {
            assert_eq!(MetricsFormat::of_accept(accept), format, "{accept}");
        }
        assert!(OpenMetrics.content_type().starts_with(OPEN_METRICS));
    }
}
