//! The facts about a run, as names with values and as tables.

use paramedic_link::measurement::HostFacts;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{
    CpuCost, DelayVariation, LatencyResult, ObservedEnd, Quantity, ResultDocument, ThroughputResult,
};
use paramedic_report::quantity as text_of;
use serde::Serialize;

use super::super::super::outside_text::shown;

/// A fact about a run: its name and its value.
pub(super) type NamedFact = (&'static str, String);

/// A table of facts about a run. A row without any value is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FactTable {
    /// The heads of the columns after the first column, which has the names of the rows.
    pub(super) columns: Vec<String>,
    /// The rows: a name, and a cell for each column.
    pub(super) rows: Vec<(String, Vec<String>)>,
}

/// The text in place of a value that was not measured.
const NONE: &str = "–";

impl FactTable {
    fn of(columns: Vec<String>, rows: Vec<(&'static str, Vec<Option<String>>)>) -> Self {
        let measured = rows.into_iter().filter(|(_, cells)| cells.iter().any(Option::is_some));
        let rows = measured.map(|(name, cells)| {
            (name.to_owned(), cells.into_iter().map(|cell| cell.unwrap_or_else(|| NONE.to_owned())).collect())
        });
        Self { columns, rows: rows.collect() }
    }
}

/// Returns the word by which result documents represent a value.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(shown)).unwrap_or_default()
}

/// Formats a number of a result document.
pub(super) fn quantity(value: Quantity) -> String {
    match value {
        Quantity::Whole(number) => number.to_string(),
        Quantity::Fraction(number) => number.to_string(),
    }
}

fn millis(ms: f64) -> String {
    text_of::micros((ms.max(0.0) * 1000.0) as u64)
}

/// The facts about a run: what was measured, against what, and how.
pub(super) fn facts(document: &ResultDocument) -> Vec<NamedFact> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            facts.push((name, value));
        }
    };
    add("Against", document.other_end().map(shown));
    if let Some(reflector) = &document.reflector {
        add("Address", Some(shown(&reflector.address)));
        add("Its Endpoint ID", Some(reflector.endpoint_id.to_string()));
        add("Its version", Some(shown(reflector.version.as_str())));
    }
    if let Some(server) = &document.server {
        add("Server, not verified", Some(shown(&server.address)));
    }
    add("As requested", document.peer.as_deref().map(shown));
    add("Provider", Some(shown(&document.provider)));
    add("Engine", Some(document.engine.to_string()));
    add("Program", document.program.as_ref().map(|program| shown(&program.version)));
    add("Data mode", document.data_mode.map(word));
    add(
        "Instead of",
        document.data_mode_fallback.as_ref().map(|fallback| {
            let address = fallback.address.as_deref().map(|address| format!(" at {}", shown(address)));
            format!("{}: {}{}", word(fallback.tried), word(fallback.reason), address.unwrap_or_default())
        }),
    );
    add("Data path", document.data_path.map(|path| path.to_string()));
    if let Some(requested) = document.requested {
        add("Requested streams", Some(requested.streams.to_string()));
        add("Requested rate of a stream", requested.stream_bitrate_bps.map(text_of::rate));
        add("Requested window", requested.window_bytes.map(|bytes| text_of::bytes(bytes.into())));
        add("Requested bytes of a direction", requested.direction_bytes.map(text_of::bytes));
        add("Byte budget", requested.budget_bytes.map(text_of::bytes));
        add("Until stable", requested.until_stable.then(|| "yes".to_owned()));
    }
    add("Uplink", document.uplink.interface.as_deref().map(shown));
    add("Public prefix", document.uplink.public_prefix.as_deref().map(shown));
    let anonymous = if document.appliance.anonymous { " (without its identity)" } else { "" };
    add("This device", Some(format!("{}{anonymous}", document.appliance.endpoint_id)));
    add("Its version", Some(shown(&document.appliance.version)));
    add("Data used", Some(text_of::bytes(document.data_used_bytes)));
    let is_complete = match (document.complete, document.interrupted) {
        (true, _) => "yes",
        (false, true) => "no, it was interrupted",
        (false, false) => "no",
    };
    add("Complete", Some(is_complete.to_owned()));
    if let Some(clocks) = document.clocks {
        add(
            "Clocks",
            Some(format!(
                "the reflector's runs {:+.1} ppm (±{:.1}) against this one{}",
                clocks.skew_ppm,
                clocks.skew_uncertainty_ppm,
                if clocks.jump.is_some() { ", and one of them jumped" } else { "" }
            )),
        );
    }
    facts
}

/// The measured numbers of a direction, with their names.
pub(super) fn direction(result: &ThroughputResult) -> Vec<NamedFact> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| {
        if let Some(value) = value {
            facts.push((name, value));
        }
    };
    let rates = |[low, high]: [u64; 2]| format!("{} to {}", text_of::rate(low), text_of::rate(high));
    add("95 % interval", result.ci95_bps.map(rates));
    add(
        "First and last third",
        result.thirds_bps.map(|thirds| format!("{} and {}", text_of::rate(thirds.first), text_of::rate(thirds.last))),
    );
    add(
        "Intervals: 10th, 50th, 90th percentile",
        result.interval_bps.map(|spread| [spread.p10, spread.p50, spread.p90].map(text_of::rate).join(", ")),
    );
    add("Steady", Some(if result.is_steady() { "yes".to_owned() } else { "no".to_owned() }));
    add("On the wire, estimated", result.line_rate_estimate.map(|line| text_of::rate(line.rate_bps)));
    add("Counted time", Some(text_of::millis(result.duration_ms)));
    add(
        "Start-up, left out",
        Some(format!("{} ({})", text_of::millis(result.startup_ms), word(result.omitted).replace('_', " "))),
    );
    add("Ended by", result.ended.map(word));
    add("Received", Some(text_of::bytes(result.bytes_received)));
    add("Sent in the same time", result.bytes_sent.map(text_of::bytes));
    add("Received in the whole phase", result.total_bytes_received.map(text_of::bytes));
    add("Sent in the whole phase", result.total_bytes_sent.map(text_of::bytes));
    add("Streams", Some(result.streams.to_string()));
    add("Congestion control", result.congestion_control.as_ref().map(|name| shown(name.as_str())));
    add("Retransmitted segments", result.retransmits.map(|count| count.to_string()));
    add("Segment size", result.mss.map(|bytes| format!("{bytes} B")));
    add("Path MTU", result.path_mtu_bytes.map(|bytes| format!("{bytes} B")));
    add("Data path of the sender", result.data_path.sender.map(|path| path.to_string()));
    add("Data path of the receiver", result.data_path.receiver.map(|path| path.to_string()));
    if let Some(udp) = result.udp {
        add("Datagrams lost", Some(format!("{} of {} ({})", udp.lost, udp.datagrams, text_of::share(udp.loss))));
        add("Datagrams out of order", udp.out_of_order.map(|count| count.to_string()));
        add("Duplicate datagrams", udp.duplicates.map(|count| count.to_string()));
        add("Jitter (RFC 3550)", udp.jitter_us.map(text_of::micros));
        add("Payload of a datagram", udp.payload_bytes.map(|bytes| format!("{bytes} B")));
        add(
            "Search for the rate",
            udp.search.map(|search| format!("{} of {} datagrams lost", search.lost, search.datagrams)),
        );
        add("Sending paused", udp.paused_ms.map(text_of::millis));
        add("Too large for the path", udp.vanished.map(|count| count.to_string()));
    }
    facts
}

/// The processor use at both ends of a direction.
pub(super) fn processors(result: &ThroughputResult, direction: Direction) -> FactTable {
    let costs = [result.cpu.sender, result.cpu.receiver];
    let row = |name, of: fn(&CpuCost) -> Option<String>| {
        (name, costs.iter().map(|cost| cost.as_ref().and_then(of)).collect())
    };
    let rows = vec![
        row("User time", |cost| Some(format!("{:.2} s", cost.used.user_s))),
        row("System time", |cost| Some(format!("{:.2} s", cost.used.system_s))),
        row("For each gigabyte", |cost| cost.s_per_gb.map(|seconds| format!("{seconds:.2} s"))),
        row("Busiest thread, of one core", |cost| Some(text_of::share(cost.used.busiest_thread))),
        row("All programs, of all cores", |cost| cost.used.host_busy.map(text_of::share)),
        row("Throttled by a quota", |cost| cost.used.held_back.map(text_of::share)),
        row("Ran or waited for a processor", |cost| cost.used.runnable.map(text_of::share)),
        row("Waited for a processor", |cost| cost.used.run_queue_wait.map(text_of::share)),
        row("Soft interrupts of a core", |cost| cost.used.core_softirq.map(text_of::share)),
    ];
    let ends = match direction {
        Direction::Download => ["Sender: the other end", "Receiver: this device"],
        Direction::Upload => ["Sender: this device", "Receiver: the other end"],
    };
    FactTable::of(ends.map(str::to_owned).to_vec(), rows)
}

/// The latency of each phase as a table, with a column for each phase.
pub(super) fn latency(document: &ResultDocument) -> FactTable {
    let loads = document.latency.iter().collect::<Vec<_>>();
    let row = |name, of: &dyn Fn(Load, &LatencyResult) -> Option<String>| {
        (name, loads.iter().map(|(load, latency)| of(*load, latency)).collect::<Vec<_>>())
    };
    let delay = |variation: DelayVariation| {
        let p95 = variation.p95_us.map(|us| format!(", p95 {}", text_of::micros(us))).unwrap_or_default();
        format!("{}{p95}, at most {}", text_of::micros(variation.p50_us), text_of::micros(variation.max_us))
    };
    let spread = |of: fn(&paramedic_report::document::RttSpread) -> Option<u64>| {
        move |_: Load, latency: &LatencyResult| latency.rtt_us.as_ref().and_then(of).map(text_of::micros)
    };
    let bloat = |load| document.bufferbloat.of(load).copied();
    let rows = vec![
        row("Shortest", &spread(|rtt| Some(rtt.min))),
        row("Mean", &spread(|rtt| Some(rtt.mean))),
        row("Median", &spread(|rtt| rtt.p50)),
        row("90th percentile", &spread(|rtt| rtt.p90)),
        row("95th percentile", &spread(|rtt| rtt.p95)),
        row("99th percentile", &spread(|rtt| rtt.p99)),
        row("99.9th percentile", &spread(|rtt| rtt.p999)),
        row("Longest", &spread(|rtt| Some(rtt.max))),
        row("Jitter", &|_, latency| latency.jitter_us.map(text_of::micros)),
        row("Grade", &|load, _| bloat(load).map(|bloat| bloat.grade.to_string())),
        row("Rise over idle", &|load, _| bloat(load).map(|bloat| millis(bloat.increase_ms))),
        row("Queue stands in", &|_, latency| {
            let queue = latency.queue?;
            let own = if queue.is_own() { ", in this device itself" } else { "" };
            Some(format!("{}{own}", queue.stands.as_words()))
        }),
        row("Rise of the upload delay", &|_, latency| latency.queue?.upload_ms.map(millis)),
        row("Of it in this device", &|_, latency| latency.queue?.own_ms.map(millis)),
        row("Rise of the download delay", &|_, latency| latency.queue?.download_ms.map(millis)),
        row("Error of both", &|_, latency| latency.queue?.uncertainty_ms.map(millis)),
        row("Upload delay above its shortest", &|_, latency| latency.one_way.map(|ways| delay(ways.upload))),
        row("Download delay above its shortest", &|_, latency| latency.one_way.map(|ways| delay(ways.download))),
        row("Wait in this device", &|_, latency| latency.own_wait.map(delay)),
        row("Responsiveness", &|_, latency| {
            latency.responsiveness_rpm.map(|rpm| format!("{rpm} round trips a minute"))
        }),
        row("Probes sent", &|_, latency| Some(latency.sent.to_string())),
        row("Answered", &|_, latency| Some(latency.received.to_string())),
        row("Lost", &|_, latency| latency.loss.map(text_of::share)),
        row("Lost on the way up", &|_, latency| latency.loss_upload.map(text_of::share)),
        row("Lost on the way down", &|_, latency| latency.loss_download.map(text_of::share)),
        row("Losses in a row", &|_, latency| {
            let pattern = latency.loss_pattern?;
            let longest = text_of::millis(pattern.longest_ms);
            Some(format!("{} periods, the longest {} probes, {longest}", pattern.periods, pattern.longest_probes))
        }),
        row("Skipped", &|_, latency| (latency.skipped > 0).then(|| latency.skipped.to_string())),
        row("Duplicates", &|_, latency| (latency.duplicates > 0).then(|| latency.duplicates.to_string())),
        row("Late", &|_, latency| (latency.late > 0).then(|| latency.late.to_string())),
        row("Transport", &|_, latency| Some(word(latency.transport))),
        row("Time between probes", &|_, latency| latency.interval_us.map(text_of::micros)),
        row("Probe late (99th percentile)", &|_, latency| latency.probe_late_us.map(text_of::micros)),
        row("Probes of the rate", &|_, latency| latency.rate_share.map(text_of::share)),
    ];
    let name = |load: &Load| match load {
        Load::Bidir => "both ways".to_owned(),
        load => load.to_string(),
    };
    FactTable::of(loads.iter().map(|(load, _)| name(load)).collect(), rows)
}

/// The thresholds of the test request, and whether the result met them.
pub(super) fn thresholds(document: &ResultDocument) -> FactTable {
    let rows = document.thresholds.iter().map(|threshold| {
        let measured = threshold.measured.map_or_else(|| "not measured".to_owned(), quantity);
        let passed = if threshold.passed { "met" } else { "not met" };
        let tunnel = if threshold.through_tunnel { ", through the tunnel" } else { "" };
        (shown(&threshold.name), vec![quantity(threshold.limit), measured, format!("{passed}{tunnel}")])
    });
    let columns = ["Limit", "Measured", "Met"].map(str::to_owned).to_vec();
    FactTable { columns, rows: rows.collect() }
}

/// The facts about both hosts, before and after the run.
pub(super) fn hosts(document: &ResultDocument) -> FactTable {
    let own = [&document.appliance.facts_before, &document.appliance.facts_after];
    let other = document.reflector.as_ref().map(|end| [&end.facts_before, &end.facts_after]);
    let ends = [(ObservedEnd::Appliance, Some(own)), (ObservedEnd::Reflector, other)];
    let mut columns = Vec::new();
    let mut facts = Vec::<&HostFacts>::new();
    for (end, both) in ends {
        let name = match end {
            ObservedEnd::Appliance => "This device",
            ObservedEnd::Reflector => "The reflector",
        };
        for (found, when) in both.into_iter().flatten().zip(["before", "after"]) {
            if let Some(found) = found {
                columns.push(format!("{name}, {when}"));
                facts.push(found);
            }
        }
    }
    let row = |name, of: fn(&HostFacts) -> Option<String>| (name, facts.iter().map(|facts| of(facts)).collect());
    let rows = vec![
        row("Program", |facts| Some(shown(facts.version.as_str()))),
        row("System", |facts| facts.system.as_ref().map(|text| shown(text.as_str()))),
        row("Processors", |facts| facts.cpus.map(|count| count.to_string())),
        row("Model", |facts| facts.cpu_model.as_ref().map(|text| shown(text.as_str()))),
        row("Load", |facts| facts.load_1m.map(|load| format!("{load:.2}"))),
        row("Memory", |facts| facts.memory_total_bytes.map(text_of::bytes)),
        row("Memory available", |facts| facts.memory_available_bytes.map(text_of::bytes)),
        row("Interface", |facts| facts.interface.as_ref().map(|text| shown(text.as_str()))),
        row("MTU", |facts| facts.mtu_bytes.map(|bytes| format!("{bytes} B"))),
        row("Interface speed", |facts| facts.interface_speed_bps.map(text_of::rate)),
        row("Its highest speed", |facts| facts.interface_max_speed_bps.map(text_of::rate)),
        row("Duplex", |facts| facts.interface_duplex.map(word)),
        row("Clock synchronised", |facts| {
            facts.clock_synchronised.map(|is_so| if is_so { "yes".to_owned() } else { "no".to_owned() })
        }),
        row("Clock error", |facts| facts.clock_error_us.map(text_of::micros)),
    ];
    FactTable::of(columns, rows)
}
