//! The metrics of a reflector for Prometheus: one list, read from its [`Status`]. No label contains an Endpoint ID, a
//! name or an address. Pure: no I/O, no clock.

use paramedic_host::metrics::{HistogramValue, Metric, MetricValues, MetricsFormat};
use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::EngineId;
use serde::Serialize;

use crate::duration_counts::DurationCounts;
use crate::event::RefusalReason;
use crate::sessions::SessionStatus;
use crate::status::Status;

/// The format of the text of the metrics.
const FORMAT: MetricsFormat = MetricsFormat::Plain;

/// The reasons with which a session can end at this reflector.
const OUTCOMES: [EndReason; 9] = [
    EndReason::Finished,
    EndReason::Deadline,
    EndReason::Silence,
    EndReason::NotStarted,
    EndReason::LinkClosed,
    EndReason::BytesPerDay,
    EndReason::PeerRemoved,
    EndReason::Shutdown,
    EndReason::Failed,
];

/// The reasons with which this reflector can deny a request.
const DENIALS: [DenialReason; 14] = [
    DenialReason::BadRequest,
    DenialReason::EngineNotOffered,
    DenialReason::ModeNotOffered,
    DenialReason::TooLong,
    DenialReason::TooManyStreams,
    DenialReason::AlreadyAsked,
    DenialReason::Busy,
    DenialReason::QueueFull,
    DenialReason::TestsPerHour,
    DenialReason::BytesPerDay,
    DenialReason::NoPort,
    DenialReason::TooManyMonitors,
    DenialReason::Draining,
    DenialReason::Faulted,
];

/// Every metric, in the order in which they are written. docs/operate.md describes the metrics, and a test compares
/// that file with the output of a reflector.
const METRICS: &[Metric<Status>] = &[
    Metric {
        name: "reflector_build_info",
        help: "Version and commit of the program; the value is 1",
        labels: &["version", "commit"],
        read: |status| {
            let commit = status.commit.clone().unwrap_or_default();
            MetricValues::Gauge(vec![(vec![status.version.clone(), commit], 1.0)])
        },
    },
    Metric {
        name: "reflector_uptime_seconds",
        help: "Time since the reflector began to serve",
        labels: &[],
        read: |status| gauge(status.uptime_s as f64),
    },
    Metric {
        name: "reflector_state",
        help: "1 for the current state, 0 for the others: serving, draining, or faulted (no session is granted)",
        labels: &["state"],
        read: |status| {
            let states = ["serving", "draining", "faulted"];
            MetricValues::Gauge(states.map(|state| (vec![state.to_owned()], one_if(status.state == state))).to_vec())
        },
    },
    Metric {
        name: "reflector_audit_writable",
        help: "1 if the last write to the audit log succeeded, else 0",
        labels: &[],
        read: |status| gauge(one_if(status.can_write.audit)),
    },
    Metric {
        name: "reflector_database_writable",
        help: "1 if the last change of the database succeeded, else 0",
        labels: &[],
        read: |status| gauge(one_if(status.can_write.database)),
    },
    Metric { name: "reflector_peers", help: "Paired devices", labels: &[], read: |status| gauge(status.peers as f64) },
    Metric {
        name: "reflector_links",
        help: "Open links of paired devices",
        labels: &[],
        read: |status| gauge(status.links as f64),
    },
    Metric {
        name: "reflector_handshakes_total",
        help: "Completed TLS handshakes by protocol: link (of paired and unpaired clients) or data",
        labels: &["protocol"],
        read: |status| {
            let handshakes = [("link", status.handshakes.link), ("data", status.handshakes.data)];
            MetricValues::Counter(handshakes.map(|(protocol, count)| (vec![protocol.to_owned()], count)).to_vec())
        },
    },
    Metric {
        name: "reflector_refusals_total",
        help: "Refused connections and messages by reason; the reasons are those of the audit log",
        labels: &["reason"],
        read: |status| {
            let count = |reason| status.refused.get(reason).copied().unwrap_or(0);
            MetricValues::Counter(
                RefusalReason::ALL.iter().map(|reason| (vec![reason.to_string()], count(reason))).collect(),
            )
        },
    },
    Metric {
        name: "reflector_datagrams_from_elsewhere_total",
        help: "Datagrams for a session that came from another address than that of its device, or whose source port \
               changed",
        labels: &[],
        read: |status| counter(status.datagrams_from_elsewhere),
    },
    Metric {
        name: "reflector_session_slots",
        help: "Sessions that may run at once",
        labels: &[],
        read: |status| gauge(status.sessions.slots.into()),
    },
    Metric {
        name: "reflector_sessions_running",
        help: "Reserved and running sessions by engine",
        labels: &["engine"],
        read: |status| {
            let count = |engine: &EngineId| {
                let of_engine = |session: &&SessionStatus| session.engine == *engine;
                status.sessions.sessions.iter().filter(of_engine).count() as f64
            };
            MetricValues::Gauge(status.engines.iter().map(|engine| (vec![engine.to_string()], count(engine))).collect())
        },
    },
    Metric {
        name: "reflector_sessions_granted_total",
        help: "Granted sessions by engine",
        labels: &["engine"],
        read: |status| {
            let count = |engine| status.sessions.counts.granted.get(engine).copied().unwrap_or(0);
            MetricValues::Counter(
                status.engines.iter().map(|engine| (vec![engine.to_string()], count(engine))).collect(),
            )
        },
    },
    Metric {
        name: "reflector_sessions_ended_total",
        help: "Ended sessions by engine and outcome; the outcomes are the reasons of session_ended in the audit log",
        labels: &["engine", "outcome"],
        read: |status| {
            let count = |engine, outcome| {
                let of_engine = status.sessions.counts.ended.get(engine);
                of_engine.and_then(|of_engine| of_engine.get(outcome)).copied().unwrap_or(0)
            };
            let each = status.engines.iter().flat_map(|engine| OUTCOMES.iter().map(move |outcome| (engine, outcome)));
            let each = each.map(|(engine, outcome)| (vec![engine.to_string(), word(outcome)], count(engine, outcome)));
            MetricValues::Counter(each.collect())
        },
    },
    Metric {
        name: "reflector_monitors",
        help: "Reserved and running monitor sessions",
        labels: &[],
        read: |status| gauge(status.sessions.monitors.len() as f64),
    },
    Metric {
        name: "reflector_monitors_limit",
        help: "The setting max_monitors",
        labels: &[],
        read: |status| gauge(status.sessions.max_monitors as f64),
    },
    Metric {
        name: "reflector_monitors_granted_total",
        help: "Granted monitor sessions",
        labels: &[],
        read: |status| counter(status.sessions.counts.monitors_granted),
    },
    Metric {
        name: "reflector_monitors_ended_total",
        help: "Ended monitor sessions by outcome; the outcomes are the reasons of monitor_ended in the audit log",
        labels: &["outcome"],
        read: |status| {
            let count = |outcome| status.sessions.counts.monitors_ended.get(outcome).copied().unwrap_or(0);
            let outcomes = OUTCOMES.iter().filter(|outcome| can_end_monitor(**outcome));
            MetricValues::Counter(outcomes.map(|outcome| (vec![word(outcome)], count(outcome))).collect())
        },
    },
    Metric {
        name: "reflector_sessions_undone_total",
        help: "Reservations that were taken back before their device was answered",
        labels: &[],
        read: |status| counter(status.sessions.counts.undone),
    },
    Metric {
        name: "reflector_requests_denied_total",
        help: "Requests for a session that were denied, by the reason that the device was sent",
        labels: &["reason"],
        read: |status| {
            let count = |reason| status.sessions.counts.denied.get(reason).copied().unwrap_or(0);
            MetricValues::Counter(DENIALS.iter().map(|reason| (vec![word(reason)], count(reason))).collect())
        },
    },
    Metric {
        name: "reflector_queue_length",
        help: "Requests that wait for a slot",
        labels: &[],
        read: |status| gauge(status.sessions.queue.len() as f64),
    },
    Metric {
        name: "reflector_queue_longest_wait_seconds",
        help: "How long the oldest request in the queue has waited so far; 0 if the queue is empty",
        labels: &[],
        read: |status| {
            let longest = status.sessions.queue.iter().map(|waiting| waiting.waited_ms).max();
            gauge(longest.unwrap_or(0) as f64 / 1e3)
        },
    },
    Metric {
        name: "reflector_queue_wait_seconds",
        help: "How long requests waited until a session was reserved for them; 0 if they did not wait",
        labels: &[],
        read: |status| histogram(&status.sessions.counts.waits),
    },
    Metric {
        name: "reflector_payload_bytes_total",
        help: "Payload of tests at the reflector's sockets: download (sent to devices) and upload (received)",
        labels: &["direction"],
        read: |status| {
            let moved = [("download", status.payload_bytes.download), ("upload", status.payload_bytes.upload)];
            MetricValues::Counter(moved.map(|(direction, bytes)| (vec![direction.to_owned()], bytes)).to_vec())
        },
    },
    Metric {
        name: "reflector_charged_bytes_today",
        help: "Payload charged to all devices on this UTC day, open leases included",
        labels: &[],
        read: |status| gauge(status.sessions.bytes_today as f64),
    },
    Metric {
        name: "reflector_charged_bytes_limit",
        help: "The setting max_bytes_per_day_total",
        labels: &[],
        read: |status| gauge(status.max_bytes_per_day_total as f64),
    },
    Metric {
        name: "reflector_leased_bytes",
        help: "Payload that was leased to the running sessions so far, used or not",
        labels: &[],
        read: |status| {
            let tests = status.sessions.sessions.iter().map(|session| session.leased_bytes as f64);
            let monitors = status.sessions.monitors.iter().map(|monitor| monitor.leased_bytes as f64);
            gauge(tests.chain(monitors).sum())
        },
    },
    Metric {
        name: "reflector_leases_total",
        help: "Leases of bytes: granted (includes unwritten), unwritten (could not be written to disk), refused (the \
               byte quota of the day is used up)",
        labels: &["outcome"],
        read: |status| {
            let leases = &status.sessions.counts.leases;
            let leases = [("granted", leases.granted), ("unwritten", leases.unwritten), ("refused", leases.refused)];
            MetricValues::Counter(leases.map(|(outcome, count)| (vec![outcome.to_owned()], count)).to_vec())
        },
    },
    Metric {
        name: "reflector_probe_dwell_seconds",
        help: "How long latency probes dwelt at the reflector, from their arrival to their reply",
        labels: &[],
        read: |status| histogram(&status.probe_dwell),
    },
    Metric {
        name: "reflector_held_ports",
        help: "Ports of data_port_range that, within the last minute, another program was found to use",
        labels: &[],
        read: |status| gauge(status.sessions.held_ports.len() as f64),
    },
    Metric {
        name: "reflector_cpu_seconds_total",
        help: "Processor time of the reflector, without its iperf3 children",
        labels: &[],
        read: |status| MetricValues::Seconds(vec![(Vec::new(), status.process.cpu_us as f64 / 1e6)]),
    },
    Metric {
        name: "reflector_resident_memory_bytes",
        help: "Resident memory of the reflector",
        labels: &[],
        read: |status| gauge(status.process.resident_bytes as f64),
    },
    Metric {
        name: "reflector_open_descriptors",
        help: "Open file descriptors of the reflector",
        labels: &[],
        read: |status| gauge(status.process.descriptors as f64),
    },
    Metric {
        name: "reflector_threads",
        help: "Threads of the reflector",
        labels: &[],
        read: |status| gauge(status.process.threads as f64),
    },
];

/// Whether a monitor session can end with this reason. It has neither a deadline nor a first phase, so it never ends
/// because of either.
fn can_end_monitor(outcome: EndReason) -> bool {
    !matches!(outcome, EndReason::Deadline | EndReason::NotStarted)
}

fn gauge(value: f64) -> MetricValues {
    MetricValues::gauge(value)
}

fn counter(value: u64) -> MetricValues {
    MetricValues::counter(value)
}

fn histogram(counts: &DurationCounts) -> MetricValues {
    let buckets = counts.buckets.iter().map(|bucket| (bucket.up_to_us as f64 / 1e6, bucket.count)).collect();
    let value = HistogramValue { buckets, above: counts.longer, sum: counts.sum_us as f64 / 1e6 };
    MetricValues::Histogram(vec![(Vec::new(), value)])
}

fn one_if(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

/// The name of a reason, as in the audit log and in the protocol.
fn word(reason: &impl Serialize) -> String {
    let word = serde_json::to_value(reason).ok();
    word.as_ref().and_then(serde_json::Value::as_str).unwrap_or("unknown").to_owned()
}

/// All metrics as text in the format of Prometheus.
pub fn text(status: &Status) -> String {
    FORMAT.text(METRICS, status)
}

/// The `Content-Type` of the text of the metrics.
pub fn content_type() -> &'static str {
    FORMAT.content_type()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    /// A status with this version, as an older reflector sends it.
    fn status(version: &str) -> Status {
        let sessions = json!({
            "slots": 2, "draining": false, "faulted": false, "sessions": [], "peers": [], "bytes_today": 7,
            "queue": [], "held_ports": [],
        });
        let status = json!({
            "version": version, "endpoint_id": paramedic_link::EndpointId::from_bytes([1; 32]), "name": "attic",
            "uptime_s": 5, "state": "serving", "problems": [], "data_modes": ["tunneled"], "engines": ["tcp"],
            "links": 1, "peers": 3, "sessions": sessions, "refused": { "slow": 4 },
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn every_metric_has_a_name_a_help_and_a_value_for_each_label() {
        let mut names = BTreeSet::new();
        for metric in METRICS {
            assert!(names.insert(metric.name) && metric.name.starts_with("reflector_"), "{}", metric.name);
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{}", metric.help);
            let (values, is_counter): (Vec<Vec<String>>, bool) = match (metric.read)(&status("1")) {
                MetricValues::Counter(counts) => (counts.into_iter().map(|(values, _)| values).collect(), true),
                MetricValues::Gauge(gauges) => (gauges.into_iter().map(|(values, _)| values).collect(), false),
                MetricValues::Seconds(seconds) => (seconds.into_iter().map(|(values, _)| values).collect(), true),
                MetricValues::Histogram(counts) => (counts.into_iter().map(|(values, _)| values).collect(), false),
            };
            assert_eq!(metric.name.ends_with("_total"), is_counter, "{}", metric.name);
            assert!(values.iter().all(|values| values.len() == metric.labels.len()), "{}", metric.name);
            assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "{}", metric.name);
        }
    }

    #[test]
    fn the_text_is_in_the_format_of_prometheus() {
        let text = text(&status("a\"b\\c\nd"));
        assert!(text.contains("reflector_build_info{version=\"a\\\"b\\\\c\\nd\",commit=\"\"} 1"), "{text}");
        for line in [
            "# TYPE reflector_refusals_total counter",
            "reflector_refusals_total{reason=\"slow\"} 4",
            "reflector_refusals_total{reason=\"too_fast\"} 0",
            "# TYPE reflector_state gauge",
            "# TYPE reflector_queue_wait_seconds histogram",
            "reflector_queue_wait_seconds_bucket{le=\"+Inf\"} 0",
            "reflector_queue_wait_seconds_count 0",
            "reflector_sessions_ended_total{engine=\"tcp\",outcome=\"not_started\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("attic") && !text.contains("PP-"), "{text}");
    }
}
