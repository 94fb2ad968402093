//! The metrics of the service for Prometheus: one list, computed from a [`LineSnapshot`]. Besides fixed words and the
//! version, the values of labels are names that the owner of this device chose, and addresses of test servers. Pure.

use jiff::Timestamp;
use paramedic_host::metrics::{HistogramValue, Metric, MetricValues, MetricsFormat};
use paramedic_link::test_spec::{Direction, Load};

use super::snapshot::{
    LatestResult, LineSnapshot, MONITOR_STATES, MonitorSnapshot, SERVICE_STATES, ScheduleSnapshot, StoredSnapshot,
};
use crate::monitor::outage::OutageScope;
use crate::monitor::totals::ROUND_TRIP_BOUNDS_US;
use crate::store::ScheduleRunOutcome;

/// The loads under which latency is measured, each with the value of its label.
const LOADS: [(Load, &str); 3] = [(Load::Idle, "idle"), (Load::Download, "download"), (Load::Upload, "upload")];

/// The samples of a metric. Each sample consists of the values of its labels and its own value.
type Labelled<V> = Vec<(Vec<String>, V)>;

/// Every metric, in the order of the output. docs/prometheus.md describes the metrics, and a test compares that page
/// with the output of the service.
const METRICS: &[Metric<LineSnapshot>] = &[
    Metric {
        name: "packetparamedic_build_info",
        help: "Version and commit of the program; the value is 1",
        labels: &["version", "commit"],
        read: |line| {
            let commit = line.commit.clone().unwrap_or_default();
            MetricValues::Gauge(vec![(vec![line.version.clone(), commit], 1.0)])
        },
    },
    Metric {
        name: "packetparamedic_start_time_seconds",
        help: "When the service started, in seconds since 1970",
        labels: &[],
        read: |line| MetricValues::gauge(seconds(line.started_at)),
    },
    Metric {
        name: "packetparamedic_state",
        help: "1 for the current state, 0 for the others: running, faulted (nothing can be stored), or stopping",
        labels: &["state"],
        read: |line| MetricValues::one_of(&SERVICE_STATES, &line.state),
    },
    Metric {
        name: "packetparamedic_clock_trusted",
        help: "1 if the system clock is trusted; 0 if not, and then no schedule is due",
        labels: &[],
        read: |line| MetricValues::gauge(one_if(line.clock_trusted)),
    },
    Metric {
        name: "packetparamedic_last_result_timestamp_seconds",
        help: "When the latest test that measured something began, in seconds since 1970, by target and engine",
        labels: &["target", "engine"],
        read: |line| of_results(line, |result| vec![(vec![], seconds(result.run.started_at))]),
    },
    Metric {
        name: "packetparamedic_last_result_bits_per_second",
        help: "The rate of the latest result by target, engine and direction (download, upload)",
        labels: &["target", "engine", "direction"],
        read: |line| {
            of_results(line, |result| {
                let rates = [("download", result.run.download_bps), ("upload", result.run.upload_bps)];
                let known = rates.into_iter().filter_map(|(direction, bps)| Some((direction, bps?)));
                known.map(|(direction, bps)| (vec![direction.to_owned()], bps as f64)).collect()
            })
        },
    },
    Metric {
        name: "packetparamedic_last_result_round_trip_seconds",
        help: "The median round trip of the latest result by target, engine and load (idle, download, upload)",
        labels: &["target", "engine", "load"],
        read: |line| of_results(line, |result| of_loads(|load| Some(result.round_trip_us(load)? as f64 / 1e6))),
    },
    Metric {
        name: "packetparamedic_last_result_loss_ratio",
        help: "The share of lost probes of the latest result, 0 to 1, by target, engine and load",
        labels: &["target", "engine", "load"],
        read: |line| of_results(line, |result| of_loads(|load| result.loss(load))),
    },
    Metric {
        name: "packetparamedic_plan_bits_per_second",
        help: "The rate that the contract promises, by direction and kind (promised, normal, minimum)",
        labels: &["direction", "kind"],
        read: |line| MetricValues::Gauge(plan(stored(line))),
    },
    Metric {
        name: "packetparamedic_data_used_month_bytes",
        help: "Payload bytes of all tests in this calendar month, in the time zone of this host",
        labels: &[],
        read: |line| {
            let month = line.stored.as_ref().map(|stored| (Vec::new(), stored.month_bytes as f64));
            MetricValues::Gauge(month.into_iter().collect())
        },
    },
    Metric {
        name: "packetparamedic_monitor_state",
        help: "1 for the current state of a monitor, 0 for the others: running, paused, or unreachable (no answer)",
        labels: &["monitor", "state"],
        read: |line| {
            let each = line.monitors.iter().flat_map(|monitor| {
                let one = |state: &str| (vec![monitor.name.clone(), state.to_owned()], one_if(monitor.state == state));
                MONITOR_STATES.map(one)
            });
            MetricValues::Gauge(each.collect())
        },
    },
    Metric {
        name: "packetparamedic_monitor_probes_total",
        help: "Probes of a monitor that were answered or lost since the service started",
        labels: &["monitor"],
        read: |line| MetricValues::Counter(of_monitors(line, |monitor| monitor.totals.count)),
    },
    Metric {
        name: "packetparamedic_monitor_probes_lost_total",
        help: "Probes of a monitor that were lost since the service started",
        labels: &["monitor"],
        read: |line| MetricValues::Counter(of_monitors(line, |monitor| monitor.totals.lost)),
    },
    Metric {
        name: "packetparamedic_monitor_round_trip_seconds",
        help: "Round trips of a monitor since the service started, except those during a test",
        labels: &["monitor"],
        read: |line| MetricValues::Histogram(of_monitors(line, round_trips)),
    },
    Metric {
        name: "packetparamedic_outage_open",
        help: "1 while an outage lasts, else 0",
        labels: &[],
        read: |line| MetricValues::gauge(one_if(line.has_outage)),
    },
    Metric {
        name: "packetparamedic_outages_total",
        help: "The number of recorded outages by scope, including an outage that still lasts",
        labels: &["scope"],
        read: |line| MetricValues::Counter(of_scopes(line, |count, _| count)),
    },
    Metric {
        name: "packetparamedic_outage_seconds_total",
        help: "The total duration of the recorded outages by scope, including an outage that still lasts",
        labels: &["scope"],
        read: |line| MetricValues::Seconds(of_scopes(line, |_, seconds| seconds)),
    },
    Metric {
        name: "packetparamedic_schedule_enabled",
        help: "1 if a schedule is enabled, 0 if it is disabled",
        labels: &["schedule"],
        read: |line| MetricValues::Gauge(of_schedules(line, |schedule| Some(one_if(schedule.enabled)))),
    },
    Metric {
        name: "packetparamedic_schedule_next_start_timestamp_seconds",
        help: "When the next run of a schedule starts, in seconds since 1970; absent if none is planned",
        labels: &["schedule"],
        read: |line| MetricValues::Gauge(of_schedules(line, |schedule| schedule.next_start.map(seconds))),
    },
    Metric {
        name: "packetparamedic_schedule_last_run_timestamp_seconds",
        help: "When the last run of a schedule ended or was skipped, or began if it still runs, in seconds since 1970",
        labels: &["schedule"],
        read: |line| MetricValues::Gauge(of_schedules(line, |schedule| schedule.last.map(|(at, _)| seconds(at)))),
    },
    Metric {
        name: "packetparamedic_schedule_last_outcome",
        help: "1 for the outcome of the last run of a schedule, 0 for the other outcomes",
        labels: &["schedule", "outcome"],
        read: |line| {
            let each = stored(line).flat_map(|stored| &stored.schedules).flat_map(|schedule| {
                let last = schedule.last.map(|(_, outcome)| outcome);
                ScheduleRunOutcome::ALL.iter().filter(move |_| last.is_some()).map(move |(outcome, word)| {
                    (vec![schedule.name.clone(), (*word).to_owned()], one_if(last == Some(*outcome)))
                })
            });
            MetricValues::Gauge(each.collect())
        },
    },
];

/// All metrics as text in the given format.
pub fn text(line: &LineSnapshot, format: MetricsFormat) -> String {
    format.text(METRICS, line)
}

fn stored(line: &LineSnapshot) -> impl Iterator<Item = &StoredSnapshot> {
    line.stored.iter()
}

/// The samples of a metric for every result. Each sample has the labels of the result, followed by the labels that
/// `values` returns.
fn of_results(line: &LineSnapshot, values: impl Fn(&LatestResult) -> Labelled<f64>) -> MetricValues {
    let each = stored(line).flat_map(|stored| &stored.results).flat_map(|result| {
        let own = [result.target.clone(), result.run.engine.clone()];
        let labelled = |(labels, value): (Vec<String>, f64)| (own.iter().cloned().chain(labels).collect(), value);
        values(result).into_iter().map(labelled).collect::<Vec<_>>()
    });
    MetricValues::Gauge(each.collect())
}

fn of_loads(value: impl Fn(Load) -> Option<f64>) -> Labelled<f64> {
    let known = LOADS.iter().filter_map(|(load, word)| Some((vec![(*word).to_owned()], value(*load)?)));
    known.collect()
}

fn of_monitors<V>(line: &LineSnapshot, value: impl Fn(&MonitorSnapshot) -> V) -> Labelled<V> {
    line.monitors.iter().map(|monitor| (vec![monitor.name.clone()], value(monitor))).collect()
}

fn of_schedules(line: &LineSnapshot, value: impl Fn(&ScheduleSnapshot) -> Option<f64>) -> Labelled<f64> {
    let all = stored(line).flat_map(|stored| &stored.schedules);
    all.filter_map(|schedule| Some((vec![schedule.name.clone()], value(schedule)?))).collect()
}

/// A sample for each scope of outages, including scopes without an outage; no sample while the store cannot be read.
fn of_scopes<V>(line: &LineSnapshot, value: impl Fn(u64, f64) -> V) -> Labelled<V> {
    let each = stored(line).flat_map(|stored| {
        OutageScope::ALL.iter().map(|(scope, word)| {
            let sum = stored.outages.iter().find(|sum| sum.scope == *scope);
            let (count, us) = sum.map_or((0, 0), |sum| (sum.count, sum.total_us));
            (vec![(*word).to_owned()], value(count, us as f64 / 1e6))
        })
    });
    each.collect()
}

fn plan<'a>(mut stored: impl Iterator<Item = &'a StoredSnapshot>) -> Labelled<f64> {
    let Some(plan) = stored.find_map(|stored| stored.plan.as_ref()) else { return Vec::new() };
    let each = Direction::BOTH.into_iter().flat_map(|direction| {
        let rate = plan.of(direction);
        let kinds = [("promised", Some(rate.promised_bps)), ("normal", rate.normal_bps), ("minimum", rate.minimum_bps)];
        kinds
            .into_iter()
            .filter_map(move |(kind, bps)| Some((vec![direction.to_string(), kind.to_owned()], bps? as f64)))
    });
    each.collect()
}

fn round_trips(monitor: &MonitorSnapshot) -> HistogramValue {
    let totals = &monitor.totals;
    let buckets = ROUND_TRIP_BOUNDS_US.iter().zip(totals.round_trips);
    HistogramValue {
        buckets: buckets.map(|(bound_us, count)| (*bound_us as f64 / 1e6, count)).collect(),
        above: totals.longer,
        sum: totals.sum_us as f64 / 1e6,
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

fn one_if(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::snapshot::example;
    use super::*;

    fn labels_of(values: MetricValues) -> Vec<Vec<String>> {
        match values {
            MetricValues::Counter(values) => values.into_iter().map(|(labels, _)| labels).collect(),
            MetricValues::Gauge(values) | MetricValues::Seconds(values) => {
                values.into_iter().map(|(labels, _)| labels).collect()
            }
            MetricValues::Histogram(values) => values.into_iter().map(|(labels, _)| labels).collect(),
        }
    }

    #[test]
    fn every_metric_has_a_name_a_help_and_a_value_for_each_label() {
        let mut names = BTreeSet::new();
        for metric in METRICS {
            assert!(names.insert(metric.name) && metric.name.starts_with("packetparamedic_"), "{}", metric.name);
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{}", metric.help);
            let values = (metric.read)(&example::full());
            let is_counter = matches!(values, MetricValues::Counter(_) | MetricValues::Seconds(_));
            assert_eq!(metric.name.ends_with("_total"), is_counter, "{}", metric.name);
            let labels = labels_of(values);
            assert!(!labels.is_empty(), "the example has no {}", metric.name);
            assert!(labels.iter().all(|labels| labels.len() == metric.labels.len()), "{}", metric.name);
            assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), labels.len(), "{}", metric.name);
        }
    }

    #[test]
    fn the_text_has_each_value_once_and_hostile_names_stay_labels() {
        let text = text(&example::full(), MetricsFormat::Plain);
        for line in [
            "packetparamedic_build_info{version=\"0.1.0\",commit=\"1a2b\"} 1",
            "packetparamedic_state{state=\"running\"} 1",
            "packetparamedic_last_result_timestamp_seconds{target=\"attic\",engine=\"tcp\"} 1769860800",
            "packetparamedic_last_result_bits_per_second{target=\"attic\",engine=\"tcp\",direction=\"download\"} 941000000",
            "packetparamedic_last_result_round_trip_seconds{target=\"attic\",engine=\"tcp\",load=\"idle\"} 0.0123",
            "packetparamedic_last_result_loss_ratio{target=\"attic\",engine=\"tcp\",load=\"upload\"} 0.25",
            "packetparamedic_plan_bits_per_second{direction=\"upload\",kind=\"promised\"} 40000000",
            "packetparamedic_monitor_state{monitor=\"a\\\"b\\\\c\\nd\",state=\"unreachable\"} 1",
            "packetparamedic_monitor_probes_lost_total{monitor=\"gateway\"} 1",
            "packetparamedic_monitor_round_trip_seconds_count{monitor=\"gateway\"} 2",
            "packetparamedic_outage_open 1",
            "packetparamedic_outages_total{scope=\"everything\"} 2",
            "packetparamedic_outages_total{scope=\"gateway\"} 0",
            "packetparamedic_outage_seconds_total{scope=\"everything\"} 90",
            "packetparamedic_schedule_last_outcome{schedule=\"nightly\",outcome=\"skipped\"} 1",
            "packetparamedic_data_used_month_bytes 5000000000",
        ] {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let found = text.lines().filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
            let found = found.map(|value| value.parse().unwrap()).collect::<Vec<f64>>();
            assert_eq!(found, [value.parse::<f64>().unwrap()], "{sample} in\n{text}");
        }
        assert!(!text.contains("PP-"), "no label has an Endpoint ID:\n{text}");
        let samples = text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect::<Vec<_>>();
        let different = samples.iter().filter(|sample| !sample.starts_with('#')).collect::<BTreeSet<_>>();
        assert_eq!(different.len(), samples.iter().filter(|sample| !sample.starts_with('#')).count());
    }

    #[test]
    fn a_store_that_cannot_be_read_leaves_out_what_it_has() {
        let line = LineSnapshot { stored: None, state: "faulted".to_owned(), ..example::full() };
        let text = text(&line, MetricsFormat::OpenMetrics);
        assert!(text.contains("\npacketparamedic_state{state=\"faulted\"} 1"), "{text}");
        assert!(!text.contains("packetparamedic_last_result_timestamp_seconds{"), "{text}");
        assert!(text.contains("packetparamedic_monitor_probes_total{monitor=\"gateway\"} 3"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
