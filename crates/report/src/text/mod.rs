//! The text report on a result document: a sentence, then the numbers. Functions return lines and print nothing. Pure:
//! no I/O, no clock.

mod limit;
mod self_test;

use paramedic_link::measurement::CpuUse;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_link::{EndpointId, PeerText};

use crate::conclusion::{Observations, conclude};
use crate::document::{
    EndedBy, ProbeTransport, Quantity, QueueByDirection, ResultDocument, ThresholdResult, ThroughputResult, UdpResult,
    ValidityVerdict,
};
use crate::lines::{Line, Tone, WIDTH, wrapped};
use crate::quantity;
use crate::stats::{Grade, Statement};
use crate::summary::RunSummary;

pub use self_test::self_test;

/// How many details a text report contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Only the most important facts.
    #[default]
    Plain,
    /// The most important facts and all details (`-v`).
    Full,
}

/// The width of the label column, in characters.
const LABEL: usize = 12;

/// The text report on a test result, in lines of at most [`WIDTH`] columns.
pub fn report(document: &ResultDocument, detail: Detail) -> Vec<Line> {
    let (tone, sentence) = conclude(&Observations::of(document));
    let mut lines = wrapped(&sentence, WIDTH, 0).into_iter().map(|line| Line::of(tone, line)).collect::<Vec<_>>();
    lines.push(Line::empty());
    throughput(document, detail, &mut lines);
    latency(document, &mut lines);
    ends(document, detail, &mut lines);
    if !document.thresholds.is_empty() {
        lines.push(Line::empty());
        lines.extend(document.thresholds.iter().map(threshold));
    }
    if !document.warnings.is_empty() {
        lines.push(Line::empty());
    }
    for warning in &document.warnings {
        let mut text = wrapped(&format!("warning: {}", warning.text), WIDTH, 9).into_iter();
        let first = text.next().unwrap_or_default();
        let rest = first.strip_prefix("warning:").unwrap_or_default().to_owned();
        lines.push(Line::of(Tone::Fair, "warning:").with(Tone::Plain, rest));
        lines.extend(text.map(Line::from));
    }
    lines
}

/// The header above a list of runs. [`list_line`] prints each run of the list.
pub fn list_header() -> String {
    list_row(["run", "started (UTC)", "against", "down", "up", "idle", "worst"])
}

/// The line about one run in a list of runs. The line shows only the end of the run's id, which suffices to find the
/// run.
pub fn list_line(run: &RunSummary) -> String {
    let none = || "-".to_owned();
    let id = run.id.to_string();
    let started = run.started_at.to_string().chars().take(16).collect::<String>().replace('T', " ");
    // The document may come from another program, so the name is untrusted.
    let peer = PeerText::harmless(run.peer.as_deref().unwrap_or("-"), 12);
    // The header of the column has the unit, so the cells omit "bit/s".
    let rate = |bps: Option<u64>| bps.map_or_else(none, |bps| quantity::rate(bps).replace("bit/s", ""));
    let rtt = run.rtt_idle_us.map_or_else(none, quantity::micros);
    let grade = run.bufferbloat_download.max(run.bufferbloat_upload);
    let grade = match (run.complete, grade) {
        (false, _) => format!("({})", run.error.as_ref().map_or("incomplete", |error| error.code.as_str())),
        (true, grade) => grade.map_or_else(none, |grade| grade.to_string()),
    };
    list_row([
        id.get(24..).unwrap_or(&id),
        &started,
        &peer,
        &rate(run.download_bps),
        &rate(run.upload_bps),
        &rtt,
        &grade,
    ])
}

fn list_row([id, started, peer, down, up, rtt, grade]: [&str; 7]) -> String {
    format!("{id:<12}  {started:<16}  {peer:<12}  {down:>8}  {up:>8}  {rtt:>7}  {grade:<3}").trim_end().to_owned()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

/// Adds the rows with the throughput of each direction.
fn throughput(document: &ResultDocument, detail: Detail, lines: &mut Vec<Line>) {
    for (label, result) in directions(document) {
        let rate = quantity::rate(result.goodput_bps);
        let mut line = label_of(label).with(Tone::Strong, format!("{rate:>11}"));
        if let Some([low, high]) = result.ci95_bps {
            let between = format!("   {} to {} (95 % interval)", quantity::rate(low), quantity::rate(high));
            line = line.with(Tone::Dim, between);
        }
        if result.ended == Some(EndedBy::Stable) {
            let length = quantity::millis(result.startup_ms + result.duration_ms);
            line = line.with(Tone::Dim, format!(", stable after {length}"));
        }
        lines.push(line);
        if let Some(udp) = &result.udp {
            lines.extend(indented(&datagrams(udp)).into_iter().map(Line::from));
        }
        if detail == Detail::Full {
            lines.extend(facts(result).into_iter().map(|text| Line::of(Tone::Dim, text)));
        }
    }
}

/// The result of each measured direction in each phase, with its label in the report.
fn directions(document: &ResultDocument) -> impl Iterator<Item = (&'static str, &ThroughputResult)> {
    document.all_measured().map(|(load, direction, result)| {
        let label = match (load, direction) {
            (Load::Bidir, Direction::Download) => "Both, down",
            (Load::Bidir, Direction::Upload) => "Both, up",
            (_, Direction::Download) => "Download",
            (_, Direction::Upload) => "Upload",
        };
        (label, result)
    })
}

/// The details that follow the rate of a direction.
fn facts(result: &ThroughputResult) -> Vec<String> {
    let mut facts = vec![match result.streams {
        1 => "1 stream".to_owned(),
        streams => format!("{streams} streams"),
    }];
    facts.extend(result.congestion_control.as_ref().map(ToString::to_string));
    facts.extend(result.retransmits.map(|segments| format!("{segments} segments retransmitted")));
    facts.extend(result.mss.map(|mss| format!("segments of {mss} bytes")));
    facts.extend(result.path_mtu_bytes.map(|mtu| format!("path MTU {mtu} bytes")));
    facts.push(format!(
        "{} counted after {} of start-up",
        quantity::millis(result.duration_ms),
        quantity::millis(result.startup_ms)
    ));
    facts.extend(
        result.interval_bps.map(|spread| {
            format!("most intervals from {} to {}", quantity::rate(spread.p10), quantity::rate(spread.p90))
        }),
    );
    facts.extend(result.tcp.medians().map(|[rtt, least, cwnd]| {
        let (rtt, least) = (quantity::micros(rtt.into()), quantity::micros(least.into()));
        format!("TCP round trip {rtt} (least {least}), congestion window {cwnd} segments")
    }));
    facts.extend(result.line_rate_estimate.map(|line| format!("about {} on the wire", quantity::rate(line.rate_bps))));
    indented(&facts.join(", "))
}

/// The datagram counts of a direction as text.
fn datagrams(udp: &UdpResult) -> String {
    let each = udp.payload_bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default();
    let lost = format!("{} of {} datagrams{each} lost ({})", udp.lost, udp.datagrams, quantity::share(udp.loss));
    let mut said = vec![lost];
    said.extend(udp.jitter_us.map(|jitter| format!("jitter {}", quantity::micros(jitter))));
    said.extend(udp.out_of_order.map(|late| format!("{late} out of order")));
    said.extend(udp.duplicates.filter(|twice| *twice > 0).map(|twice| format!("{twice} came twice")));
    said.join(", ")
}

/// Adds the table with the latency under each load.
fn latency(document: &ResultDocument, lines: &mut Vec<Line>) {
    if document.latency.is_empty() {
        return;
    }
    lines.push(Line::empty());
    let header = row(["median", "p99", "jitter", "lost up", "lost down"].map(str::to_owned));
    // The header of the last column, with the space between it and the last number.
    let behind = if document.bufferbloat.is_empty() { "" } else { "   bufferbloat" };
    lines.push(label_of("Latency").with(Tone::Dim, header + behind));
    for (load, latency) in document.latency.iter() {
        let none = || "-".to_owned();
        let time = |us: Option<u64>| us.map_or_else(none, quantity::micros);
        let loss = |share: Option<f64>| share.map_or_else(none, quantity::share);
        let numbers = row([
            time(latency.round_trip_us(Statement::P50)),
            time(latency.round_trip_us(Statement::P99)),
            time(latency.jitter_us),
            loss(latency.loss_upload),
            loss(latency.loss_download),
        ]);
        let mut line = label_of(&format!("  {load}")).with(Tone::Plain, numbers);
        if let Some(bloat) = document.bufferbloat.of(load) {
            let increase = quantity::micros((bloat.increase_ms * 1000.0) as u64);
            line = line
                .with(grade_tone(bloat.grade), format!("   {:<3}", bloat.grade))
                .with(Tone::Plain, format!("+{increase}"));
        }
        lines.push(line);
    }
    if document.latency.iter().any(|(_, latency)| latency.transport == ProbeTransport::Tcp) {
        lines.push(Line::of(Tone::Dim, format!("{:LABEL$}over TCP: a lost packet appears as a late one", "")));
    }
    queues(document, lines);
}

/// Adds the table of the effects of each load: the queue in each direction, and the responsiveness.
fn queues(document: &ResultDocument, lines: &mut Vec<Line>) {
    let loaded = document.latency.iter().filter(|(_, one)| one.queue.is_some() || one.responsiveness_rpm.is_some());
    let rows = loaded.map(|(load, latency)| {
        let queue = latency.queue.unwrap_or(QueueByDirection::UNKNOWN);
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| quantity::micros((ms * 1000.0) as u64));
        let rpm = latency.responsiveness_rpm.map_or_else(|| "-".to_owned(), |rpm| format!("{rpm} RPM"));
        let numbers = format!("{:>9}{:>10}{:>17}", time(queue.upload_ms), time(queue.download_ms), rpm);
        let side = latency
            .queue
            .map_or("", |queue| if queue.is_own() { "upload, this device" } else { queue.stands.as_words() });
        label_of(&format!("  {load}")).with(Tone::Plain, format!("{numbers}   {side}"))
    });
    let rows = rows.collect::<Vec<_>>();
    if !rows.is_empty() {
        let header = format!("{:>9}{:>10}{:>17}   stands in", "up", "down", "responsiveness");
        lines.push(label_of("Queue").with(Tone::Dim, header));
        lines.extend(rows);
    }
}

fn row(cells: [String; 5]) -> String {
    let [median, p99, jitter, up, down] = cells;
    format!("{median:>9}{p99:>10}{jitter:>10}{up:>10}{down:>11}")
}

fn grade_tone(grade: Grade) -> Tone {
    match grade {
        Grade::APlus | Grade::A | Grade::B => Tone::Good,
        Grade::C => Tone::Fair,
        Grade::D | Grade::F => Tone::Bad,
    }
}

/// Adds the rows about the appliance and the other end, and the row with the amount of data.
fn ends(document: &ResultDocument, detail: Detail, lines: &mut Vec<Line>) {
    lines.push(Line::empty());
    let mut labelled = |label: &str, text: String| {
        let mut label = label;
        for text in wrapped(&text, WIDTH - LABEL, 2) {
            lines.push(label_of(label).with(Tone::Plain, text));
            label = "";
        }
    };
    let length = document.finished_at.as_millisecond() - document.started_at.as_millisecond();
    let length = quantity::millis(u64::try_from(length).unwrap_or_default());
    labelled("Data used", format!("{} in {length}", quantity::bytes(document.data_used_bytes)));
    for (at, (label, result)) in directions(document).enumerate() {
        let ends = [("sending", result.cpu.sender), ("receiving", result.cpu.receiver)];
        let ends =
            ends.into_iter().filter_map(|(end, cpu)| cpu.map(|cpu| format!("{end} {}", busy(&cpu.used, detail))));
        let ends = ends.collect::<Vec<_>>().join(", ");
        if !ends.is_empty() {
            labelled(if at == 0 { "Processor" } else { "" }, format!("{}: {ends} of a core", lower_first(label)));
        }
    }
    let limits = directions(document).filter_map(|(label, result)| Some((label, result.limited_by.as_ref()?)));
    for (at, (label, limited_by)) in limits.enumerate() {
        let text = format!("{}: {}", lower_first(label), limit::limit(limited_by, detail));
        labelled(if at == 0 { "Limited by" } else { "" }, text);
    }
    if let Some(reflector) = &document.reflector {
        labelled("Against", format!("{} at {}, {}", reflector.name, reflector.address, short(reflector.endpoint_id)));
    }
    if let Some(server) = &document.server {
        labelled("Against", format!("{} (identity not verified)", server.address));
    }
    if let Some(validity) = document.validity.as_ref().filter(|validity| validity.verdict == ValidityVerdict::Suspect) {
        let reasons = validity.reasons.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>().join(", ");
        labelled("Validity", format!("suspect: {reasons}"));
    }
    labelled("Run", document.id.to_string());
    if detail == Detail::Full {
        labelled("Time", format!("{} to {}", document.started_at, document.finished_at));
        let mode = document.data_mode.map(|mode| format!(", {mode}")).unwrap_or_default();
        let path = document.data_path.map(|path| format!(", {path}")).unwrap_or_default();
        labelled("Engine", format!("{} of {}{mode}{path}", document.engine, document.provider));
        labelled("Appliance", format!("version {}", document.appliance.version));
        // An Endpoint ID is too long for the column behind a label.
        let identity = match &document.appliance {
            end if end.anonymous => "without its identity".to_owned(),
            end => end.endpoint_id.to_string(),
        };
        lines.push(Line::from(format!("  {identity}")));
        if let Some(reflector) = &document.reflector {
            lines.push(label_of("Reflector").with(Tone::Plain, format!("version {}", reflector.version)));
            lines.push(Line::from(format!("  {}", reflector.endpoint_id)));
        }
    }
}

/// The processor use of an end as text: the share of a core that the busiest thread used. With [`Detail::Full`] also
/// the processor use of the whole host.
fn busy(cpu: &CpuUse, detail: Detail) -> String {
    let thread = quantity::share(cpu.busiest_thread);
    match cpu.host_busy.filter(|_| detail == Detail::Full) {
        Some(host) => format!("{thread} (host {})", quantity::share(host)),
        None => thread,
    }
}

/// The first characters of an Endpoint ID: enough to recognise a device, too few to verify it.
pub fn short(id: EndpointId) -> String {
    let text = id.to_string();
    // "PP-" and two groups of four; a printed id is longer and plain ASCII.
    format!("{}-…", text.get(..12).unwrap_or(&text))
}

/// The line about a threshold: whether the result meets it.
fn threshold(threshold: &ThresholdResult) -> Line {
    let show = |quantity: Quantity| shown(&threshold.name, quantity);
    let measured = threshold.measured.map_or_else(|| "not measured".to_owned(), show);
    let (tone, word) = if threshold.passed { (Tone::Good, "met") } else { (Tone::Bad, "missed") };
    let tunnel = if threshold.through_tunnel { ", through the tunnel" } else { "" };
    let text = format!("{} {}: {measured}{tunnel}", threshold.name, show(threshold.limit));
    Line::of(tone, format!("{word:<LABEL$}")).with(Tone::Plain, text)
}

/// The number `quantity` of a threshold as text. The suffix of the threshold's `name` determines the unit.
fn shown(name: &str, quantity: Quantity) -> String {
    let (whole, fraction) = match quantity {
        Quantity::Whole(number) => (number, number as f64),
        Quantity::Fraction(number) => (number as u64, number),
    };
    match name.rsplit('_').next() {
        Some("bps") => quantity::rate(whole),
        Some("us") => quantity::micros(whole),
        Some("ms") => format!("{fraction} ms"),
        Some("loss") => quantity::share(fraction),
        _ => fraction.to_string(),
    }
}

fn label_of(label: &str) -> Line {
    Line::of(Tone::Plain, format!("{label:<LABEL$}"))
}

fn indented(text: &str) -> Vec<String> {
    let indent = " ".repeat(LABEL + 2);
    wrapped(text, WIDTH - indent.len(), 0).into_iter().map(|line| format!("{indent}{line}")).collect()
}

#[cfg(test)]
mod tests {
    use crate::document::{Bufferbloat, ByLoad, ErrorBody, LatencyResult, ServerEnd, example};

    use super::*;

    fn text(document: &ResultDocument, detail: Detail) -> String {
        report(document, detail).iter().map(|line| line.to_string().trim_end().to_owned() + "\n").collect()
    }

    fn bloated(increase_ms: f64) -> ResultDocument {
        let upload = Some(Bufferbloat::of_increase_ms(increase_ms));
        ResultDocument { bufferbloat: ByLoad { upload, ..ByLoad::default() }, ..example::full() }
    }

    /// The sentence about `document` as if direct mode had not been blocked.
    fn sentence(document: &ResultDocument) -> String {
        let document = ResultDocument { data_mode_fallback: None, ..document.clone() };
        conclude(&Observations::of(&document)).1
    }

    #[test]
    fn a_full_report_matches_the_stored_text() {
        assert_eq!(text(&example::full(), Detail::Plain), include_str!("full.txt"));
    }

    #[test]
    fn a_detailed_report_matches_the_stored_text() {
        assert_eq!(text(&example::full(), Detail::Full), include_str!("detailed.txt"));
    }

    #[test]
    fn what_was_not_measured_has_no_line() {
        assert_eq!(text(&example::bare(), Detail::Plain), include_str!("bare.txt"));
    }

    #[test]
    fn every_line_fits_eighty_columns() {
        let mut wordy = example::full();
        wordy.warnings.push(crate::document::Warning::new("long", "many words ".repeat(40)));
        for document in [wordy, example::bare(), bloated(2_345.6)] {
            for line in [Detail::Plain, Detail::Full].into_iter().flat_map(|detail| report(&document, detail)) {
                assert!(line.to_string().trim_end().chars().count() <= WIDTH, "{line}");
            }
        }
    }

    #[test]
    fn the_verdict_names_what_hurts_most() {
        assert_eq!(
            sentence(&bloated(3.0)),
            "Your connection to attic carries 941 Mbit/s down and 94.2 Mbit/s up, and stays responsive while busy."
        );
        assert_eq!(
            sentence(&bloated(240.0)),
            "Your connection to attic carries 941 Mbit/s down and 94.2 Mbit/s up, but during an upload replies take \
             240 ms longer: calls and games may lag."
        );
        let mut lossy = bloated(3.0);
        let idle = example::latency(12_300);
        lossy.latency.idle = Some(LatencyResult {
            loss: Some(0.0215),
            loss_upload: Some(0.0215),
            loss_download: Some(0.0),
            loss_pattern: None,
            ..idle
        });
        assert_eq!(
            sentence(&lossy),
            "Your connection to attic carries 941 Mbit/s down and 94.2 Mbit/s up, but while idle 2.1 % of the latency \
             probes were lost in the upload direction: calls and games may stutter."
        );
    }

    #[test]
    fn without_answered_probes_the_latency_is_not_assessed() {
        let mut document = bloated(3.0);
        let silent = LatencyResult { rtt_us: None, received: 0, loss: Some(1.0), ..example::latency(12_300) };
        document.latency.download = Some(silent);
        assert_eq!(
            sentence(&document),
            "Your connection to attic carries 941 Mbit/s down and 94.2 Mbit/s up, but during a download no latency \
             probe was answered."
        );
    }

    #[test]
    fn a_direction_in_which_nothing_arrived_is_named_first() {
        let error = ErrorBody {
            code: ErrorBody::NOTHING_ARRIVED.to_owned(),
            what: "almost no payload arrived in the upload".to_owned(),
            because: String::new(),
            try_: String::new(),
            retry_after_ms: None,
        };
        let half = ResultDocument { complete: false, error: Some(error.clone()), ..example::bare() };
        assert_eq!(
            sentence(&half),
            "Almost no payload arrived in the upload. Your connection to attic carried 50.0 Mbit/s down."
        );
        assert_eq!(sentence(&ResultDocument { download: None, ..half }), "Almost no payload arrived in the upload.");
    }

    #[test]
    fn an_unfinished_test_is_named_as_such_first() {
        let interrupted = ResultDocument { complete: false, interrupted: true, ..example::bare() };
        assert_eq!(
            sentence(&interrupted),
            "The test was interrupted. So far, your connection to attic carried 50.0 Mbit/s down."
        );
        let failed = ResultDocument { complete: false, download: None, ..example::bare() };
        assert_eq!(sentence(&failed), "Nothing was measured: the test did not finish.");
    }

    #[test]
    fn latency_alone_and_an_empty_result_have_a_sentence() {
        let latency = ByLoad { idle: Some(example::latency(12_300)), ..ByLoad::default() };
        let idle = ResultDocument { download: None, latency, ..example::bare() };
        assert_eq!(sentence(&idle), "Your connection to attic takes 12.3 ms there and back.");
        let nothing = ResultDocument { download: None, ..example::bare() };
        assert_eq!(sentence(&nothing), "Nothing was measured.");
    }

    #[test]
    fn the_identity_of_a_server_is_not_verified() {
        let server = Some(ServerEnd { address: "iperf.example.net:5201".to_owned() });
        let document = ResultDocument { reflector: None, server, ..example::bare() };
        let text = text(&document, Detail::Plain);
        assert!(text.contains("iperf.example.net:5201 (identity not verified)"), "{text}");
    }

    #[test]
    fn a_list_has_a_line_for_each_run() {
        let interrupted = ResultDocument { complete: false, ..example::bare() };
        let runs = [example::full(), interrupted].map(|document| RunSummary::of(&document));
        assert_eq!(
            [list_header()].into_iter().chain(runs.iter().map(list_line)).collect::<Vec<_>>(),
            [
                "run           started (UTC)     against           down        up     idle  worst",
                "000000000001  2026-01-31 12:00  attic            941 M    94.2 M  12.3 ms  A",
                "000000000002  2026-01-31 13:00  attic           50.0 M         -        -  (incomplete)",
            ]
        );
    }

    #[test]
    fn a_threshold_that_was_not_measured_is_missed() {
        let missed = ThresholdResult {
            name: "max_rtt_ms".to_owned(),
            limit: Quantity::Fraction(12.5),
            measured: None,
            passed: false,
            through_tunnel: false,
        };
        assert_eq!(threshold(&missed).to_string(), "missed      max_rtt_ms 12.5 ms: not measured");
    }
}
