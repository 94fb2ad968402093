//! Tests the parser on recordings of real programs (`script/record-iperf3`), on prefixes of them, and on arbitrary
//! input.

use std::fs;
use std::path::Path;
use std::thread;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A recording, for example `riperf3-0.8.0/busy.json`, with the output of the client.
struct Fixture {
    /// Name and version of the client, and of the server if it is another program.
    folder: String,
    /// The file's name without its extension.
    case: String,
    text: String,
}

impl Fixture {
    fn is_stream(&self) -> bool {
        self.case.starts_with("stream-")
    }

    fn name(&self) -> String {
        format!("{}/{}", self.folder, self.case)
    }
}

fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let files = |path: &Path| {
        let mut files: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let name = |part: Option<&std::ffi::OsStr>| part.unwrap().to_str().unwrap().to_owned();
    let mut found = Vec::new();
    for folder in files(&root).into_iter().filter(|path| path.is_dir()) {
        for file in files(&folder) {
            if file.extension().is_some_and(|end| end == "json" || end == "jsonl") {
                let text = fs::read_to_string(&file).unwrap();
                found.push(Fixture { folder: name(folder.file_name()), case: name(file.file_stem()), text });
            }
        }
    }
    assert!(found.len() > 100, "{} fixtures", found.len());
    found
}

fn fixture(folder: &str, case: &str) -> String {
    let end = if case.starts_with("stream-") { "jsonl" } else { "json" };
    let file = format!("fixtures/{folder}/{case}.{end}");
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

fn by_lines(text: &str) -> (Vec<ClientReading>, Result<ClientReport, Unreadable>) {
    let mut live = StreamParser::new();
    let readings = text.lines().flat_map(|line| live.line(line)).collect();
    (readings, live.finish())
}

/// The directions of a completed test; `None` for a failed test.
fn directions_of(fixture: &Fixture) -> Option<&'static [Direction]> {
    let case = fixture.case.as_str();
    // The two programs pad passwords differently.
    if case == "password-right" && fixture.folder == "riperf3-0.8.0-with-iperf3-3.12" {
        return None;
    }
    if ["tcp-upload", "udp-upload", "stream-upload"].iter().any(|begin| case.starts_with(begin)) {
        return Some(&[Direction::Upload]);
    }
    if ["tcp-download", "udp-download", "stream-download"].iter().any(|begin| case.starts_with(begin)) {
        return Some(&[Direction::Download]);
    }
    match case {
        "tcp-bytes" | "udp-one-packet" | "password-right" | "server-output" | "stream-then-document" => {
            Some(&[Direction::Upload])
        }
        "udp-sparse" | "stream-udp-download" => Some(&[Direction::Download]),
        _ if case.contains("-bidir") => Some(&Direction::BOTH),
        _ => None,
    }
}

#[test]
fn every_completed_test_has_its_options_and_counts() {
    for fixture in &fixtures() {
        let Some(directions) = directions_of(fixture) else { continue };
        let name = fixture.name();
        let report = parse(&fixture.text).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!((report.error.as_deref(), report.is_complete), (None, true), "{name}");
        let client = fixture.folder.split("-with-").next().unwrap();
        let version = report.version.clone().unwrap();
        assert_eq!(format!("iperf3-{version}").replace("iperf3-riperf3 ", "riperf3-"), client, "{name}");
        let is_udp = fixture.case.contains("udp");
        assert_eq!(report.protocol, Some(if is_udp { PayloadProtocol::Udp } else { PayloadProtocol::Tcp }), "{name}");
        assert!(report.block_bytes.unwrap() > 0 && report.mss.is_some() != is_udp, "{name}");
        let cpu = report.cpu.unwrap();
        assert!(cpu.local_system.unwrap() < 64.0 && cpu.remote_user.unwrap() < 64.0, "{name}: {cpu:?}");
        for direction in Direction::BOTH {
            let totals = report.totals(direction);
            let readings = report.readings.iter().filter(|reading| reading.direction == direction);
            assert_eq!(totals.is_some(), directions.contains(&direction), "{name}: {direction}");
            let Some(totals) = totals else {
                assert_eq!(readings.count(), 0, "{name}: {direction}");
                continue;
            };
            check_totals(&format!("{name}: {direction}"), fixture, direction, totals, readings.copied().collect());
        }
    }
}

fn check_totals(name: &str, fixture: &Fixture, direction: Direction, totals: &Totals, readings: Vec<ClientReading>) {
    assert_eq!(totals.streams, if fixture.case.contains("4-streams") { 4 } else { 1 }, "{name}");
    let is_udp = fixture.case.contains("udp");
    let sent = totals.sent.unwrap();
    assert!(sent.bytes > 0 && sent.duration_us > 0, "{name}: {sent:?}");
    assert_eq!(totals.received.is_none(), is_udp && fixture.folder.starts_with("iperf3-3.9"), "{name}");
    assert_eq!(totals.udp.is_some(), is_udp, "{name}");
    assert_eq!(totals.retransmits.is_some(), !is_udp, "{name}");
    if let Some(udp) = totals.udp.filter(|_| fixture.case != "udp-one-packet") {
        assert!(udp.packets > 0 && udp.lost.is_some() && udp.out_of_order.is_some(), "{name}: {udp:?}");
    }
    let mut counted_us = 0;
    for reading in readings.iter().filter(|reading| !reading.omitted) {
        // Consecutive readings adjoin on one clock.
        assert!(reading.begin_us.abs_diff(counted_us) < 50_000, "{name}: {reading:?} after {counted_us}");
        assert_eq!(reading.udp.is_some(), is_udp, "{name}");
        counted_us = reading.end_us;
    }
    assert_eq!(readings.iter().any(|reading| reading.omitted), fixture.case.ends_with("-omit"), "{name}");
    // The client's own count: the readings add up to the total, except for the last moment, and for the last tenth of a
    // second, which riperf3 may omit.
    let own = if direction == Direction::Upload { Some(sent) } else { totals.received };
    if let Some(own) = own.filter(|_| !readings.is_empty()) {
        let counted: u64 = readings.iter().filter(|reading| !reading.omitted).map(|reading| reading.bytes).sum();
        assert!(counted.abs_diff(own.bytes) <= own.bytes / 8, "{name}: {counted} of {own:?}");
        assert!(own.duration_us.abs_diff(counted_us) < 150_000, "{name}: {counted_us} of {own:?}");
    }
}

/// The kind of error that the report of a failed test must have (`None` for a report without an error), and whether the
/// report has totals.
fn failure_of(fixture: &Fixture) -> (Option<FailureKind>, bool) {
    let case = fixture.case.trim_start_matches("stream-");
    let folder = fixture.folder.as_str();
    let of_riperf3 = folder.ends_with("riperf3-0.8.0");
    match case {
        "client-interrupted" | "client-terminated" => (Some(FailureKind::Other), true),
        // The client fails before it prints JSON, so the error is only on stderr.
        "server-interrupted" if folder == "iperf3-3.9" => (None, true),
        _ if folder == "iperf3-3.9" => (None, false),
        "server-interrupted" => (Some(FailureKind::ControlLost), true),
        "server-killed" => (Some(FailureKind::ControlLost), false),
        // riperf3's server lets a client wait, and its client ignores an unknown congestion control.
        "busy" if of_riperf3 => (None, true),
        "congestion-unknown" if of_riperf3 => (None, true),
        "busy" => (Some(FailureKind::Busy), false),
        "congestion-unknown" => (Some(FailureKind::Other), false),
        "refused" | "no-such-host" => (Some(FailureKind::Unreachable), false),
        "server-limit" if of_riperf3 => (Some(FailureKind::Other), true),
        "server-limit" if folder == "iperf3-3.22" => (Some(FailureKind::Other), false),
        "server-limit" => (Some(FailureKind::ControlLost), false),
        "password-missing" | "password-wrong" | "password-right" => match folder {
            "iperf3-3.12" | "iperf3-3.18" => (Some(FailureKind::NotAuthorized), false),
            "iperf3-3.22" => (Some(FailureKind::ControlLost), false),
            "riperf3-0.8.0-with-iperf3-3.12" => (Some(FailureKind::Other), false),
            _ => (Some(FailureKind::Busy), false),
        },
        case => panic!("{case} is not known"),
    }
}

#[test]
fn every_failed_test_has_an_error() {
    for fixture in fixtures().iter().filter(|fixture| directions_of(fixture).is_none()) {
        let report = parse(&fixture.text).unwrap_or_else(|why| panic!("{}: {why}", fixture.name()));
        let found = (report.failure(), report.is_complete);
        if fixture.folder.ends_with("riperf3-0.8.0") && fixture.case.starts_with("password-") {
            // The client reads the answer of riperf3's server or the end of the connection, whichever it sees first.
            assert!([Some(FailureKind::Busy), Some(FailureKind::ControlLost)].contains(&report.failure()));
            continue;
        }
        assert_eq!(found, failure_of(fixture), "{}: {:?}", fixture.name(), report.error);
    }
}

#[test]
fn every_prefix_of_a_document_is_an_error_and_of_a_stream_is_not_complete() {
    let fixtures = fixtures();
    let (some, others) = fixtures.split_at(fixtures.len() / 2);
    thread::scope(|scope| {
        scope.spawn(|| some.iter().for_each(check_cuts));
        others.iter().for_each(check_cuts);
    });
}

fn check_cuts(fixture: &Fixture) {
    let text = fixture.text.trim_end();
    let whole = parse(text).unwrap();
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        let name = || format!("{} cut at {end}", fixture.name());
        match parse(&text[..end]) {
            Err(why) if end == 0 => assert_eq!(why, Unreadable::Empty, "{}", name()),
            Err(why) => assert_eq!(why, Unreadable::Truncated, "{}", name()),
            Ok(cut) => {
                assert!(fixture.is_stream(), "{}", name());
                // After the end of a stream there is a document with the same content, or the second end of an error.
                assert!(!cut.is_complete || text[..end].contains(r#"{"event":"end""#), "{}", name());
                assert!(whole.readings.starts_with(&cut.readings), "{}", name());
            }
        }
    }
}

#[test]
fn a_stream_parsed_line_by_line_gives_the_same_report() {
    for fixture in fixtures().iter().filter(|fixture| fixture.is_stream()) {
        let whole = parse(&fixture.text).unwrap();
        let (readings, live) = by_lines(&fixture.text);
        assert_eq!(live.as_ref(), Ok(&whole), "{}", fixture.name());
        assert_eq!(readings, whole.readings, "{}", fixture.name());
    }
}

#[test]
fn a_document_parsed_line_by_line_is_an_error() {
    assert_eq!(StreamParser::new().finish(), Err(Unreadable::Empty));
    let (readings, report) = by_lines("iperf3: unrecognized option '--json-stream'\nUsage: iperf3 [-s|-c host]\n");
    assert!(readings.is_empty());
    assert!(report.unwrap_err().to_string().contains("unrecognized option '--json-stream'"));
}

#[test]
fn two_documents_are_one_report() {
    let once = fixture("iperf3-3.12", "tcp-bidir");
    let report = parse(&once).unwrap();
    assert_eq!(parse(&format!("{once}{once}")), Ok(report.clone()));
    // The error of either document is kept, and the document with more content is used.
    let failed = fixture("iperf3-3.12", "busy");
    for both in [format!("{once}\n{failed}"), format!("{failed}{once}")] {
        let both = parse(&both).unwrap();
        assert_eq!(both.failure(), Some(FailureKind::Busy));
        assert_eq!(both.readings, report.readings);
    }
    // An incomplete second document changes nothing.
    assert_eq!(parse(&format!("{once}{}", &once[..once.len() / 2])), Ok(report));
}

#[test]
fn text_around_a_document_is_ignored() {
    let document = fixture("iperf3-3.12", "tcp-upload");
    let around = format!("warning: this is no document\n{document}\niperf3: done");
    assert_eq!(parse(&around), parse(&document));
}

#[test]
fn nan_is_absent_and_the_rest_is_parsed() {
    // No recording contains such a word, so each word replaces a number of a recorded document.
    let document = fixture("iperf3-3.12", "udp-download");
    let before = parse(&document).unwrap();
    for word in ["nan", "-nan", "NaN", "inf", "-inf", "-nan(ind)", "1.#QNAN", "1e999"] {
        let from = document.rfind("\"jitter_ms\":\t0.").unwrap() + "\"jitter_ms\":\t".len();
        let to = from + document[from..].find(',').unwrap();
        let report = parse(&format!("{}{word}{}", &document[..from], &document[to..])).unwrap();
        let (udp, udp_before) = (report.download.unwrap().udp.unwrap(), before.download.as_ref().unwrap().udp.unwrap());
        assert!(udp_before.jitter_us.is_some());
        assert_eq!(udp, UdpTotals { jitter_us: None, ..udp_before }, "{word}");
        assert_eq!(report.readings, before.readings);
    }
}

#[test]
fn a_nan_inside_text_stays_text() {
    let document = r#"{"start":{"version":"iperf nan, \"-inf\":nan"},"end":{"sum_sent":{"bytes":nan}}}"#;
    assert_eq!(parse(document).unwrap().version.unwrap(), r#"nan, "-inf":nan"#);
}

#[test]
fn an_error_text_is_sanitised() {
    let error = format!(r#"{{"error":"error - \u001b]0;owned\u0007{}"}}"#, "ä".repeat(5000));
    let error = parse(&error).unwrap().error.unwrap();
    assert!(error.starts_with("]0;ownedä"), "{error}");
    assert_eq!(error.chars().count(), 200);
}

#[test]
fn invalid_and_negative_numbers_are_absent_and_large_ones_saturate() {
    let interval = |bytes: &str, end: &str| {
        let text = format!(r#"{{"intervals":[{{"sum":{{"start":0,"end":{end},"bytes":{bytes},"sender":true}}}}]}}"#);
        parse(&text).unwrap().readings.first().map(|reading| (reading.bytes, reading.end_us))
    };
    assert_eq!(interval("5", "1"), Some((5, 1_000_000)));
    assert_eq!(interval("1e300", "1e300"), Some((u64::MAX, u64::MAX)));
    assert_eq!(interval("-5", "1"), None);
    assert_eq!(interval("5", "-1"), None);
    assert_eq!(interval("\"5\"", "1"), None);
    assert_eq!(interval("[5]", "{}"), None);
}

#[test]
fn output_of_other_programs_is_an_error_with_a_reason() {
    assert_eq!(parse(" \n"), Err(Unreadable::Empty));
    let not = |text: &str| match parse(text) {
        Err(Unreadable::NotIperf3 { detail }) => detail,
        other => panic!("{text}: {other:?}"),
    };
    assert!(not("iperf3: parameter error").contains("iperf3: parameter error"));
    assert!(not("{}").contains("none of the parts"));
    assert!(not(r#"{"event":"boot","data":{}}"#).contains("it begins with"));
    assert!(not(r#"{"start": ]}"#).contains("line 1"));
    assert!(not(&format!("{}{}", r#"{"end":"#.repeat(200), "}".repeat(200))).contains("recursion"));
}

#[test]
fn the_number_of_readings_is_bounded() {
    let line = r#"{"event":"interval","data":{"sum":{"start":0,"end":1,"bytes":1,"sender":true}}}"#;
    let mut live = StreamParser::new();
    live.line(line);
    live.stream.report.readings = vec![live.stream.report.readings[0]; MAX_READINGS];
    assert!(live.line(line).is_empty());
    assert_eq!(live.finish().unwrap().readings.len(), MAX_READINGS);
}

#[test]
fn the_clock_restarts_after_the_omitted_part() {
    let report = parse(&fixture("iperf3-3.18", "stream-download-omit")).unwrap();
    let first = report.readings.iter().find(|reading| !reading.omitted).unwrap();
    // The output claims that this interval began half a second later.
    assert_eq!(first.begin_us, 0);
    assert!(first.end_us.abs_diff(500_000) < 50_000, "{first:?}");
}

#[test]
fn an_interrupted_test_keeps_the_counts_of_this_end() {
    let report = parse(&fixture("iperf3-3.12", "client-interrupted")).unwrap();
    assert!(report.is_complete && report.error.is_some());
    let upload = report.upload.unwrap();
    assert!(upload.sent.unwrap().bytes > 0);
    assert_eq!(upload.received, None);
}

#[test]
fn two_sums_with_one_name_are_computed_from_their_streams() {
    // iperf3 3.9, bidirectional: "sum", "sum_sent" and "sum_received" appear twice.
    let text = fixture("iperf3-3.9", "tcp-bidir");
    assert_eq!(text.matches("\"sum_received\":").count(), 2);
    let report = parse(&text).unwrap();
    let (upload, download) = (report.upload.unwrap(), report.download.unwrap());
    assert_ne!(upload.sent.unwrap().bytes, download.sent.unwrap().bytes);
    assert_eq!(report.readings[0].bytes.abs_diff(upload.sent.unwrap().bytes), 0);
    assert_eq!(report.readings[1].bytes, download.received.unwrap().bytes);
}

#[test]
fn a_version_is_parsed_and_compared() {
    let version = |major, minor| Some(Version { major, minor });
    assert_eq!(version_of("iperf 3.12 (cJSON 1.7.15)\nLinux vm 6.18.44\n"), version(3, 12));
    assert_eq!(version_of("iperf 3.18+"), version(3, 18));
    assert_eq!(version_of("iperf 3.1.3"), version(3, 1));
    assert!(version_of("iperf 3.9 (cJSON 1.7.13)") < version_of("iperf 3.12 (cJSON 1.7.15)"));
    for other in ["", "iperf 3", "riperf3 0.8.0", "iperf version 2.1.8 (12 August 2022) pthreads", "iperf 99999999.1"] {
        assert_eq!(version_of(other), None, "{other}");
    }
}

#[test]
fn an_error_on_stderr_has_a_kind_too() {
    let on_stderr = "iperf3: error - unable to connect to server: Connection refused";
    assert_eq!(FailureKind::of(on_stderr), FailureKind::Unreachable);
    assert_eq!(
        FailureKind::of("iperf3: error - unable to send control message: Bad file descriptor"),
        FailureKind::Unreachable
    );
    assert_eq!(FailureKind::of("parameter error"), FailureKind::Other);
}

/// Collects the paths of all values in a document, in the form of JSON pointers.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| places(inner, &format!("{here}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, inner)| places(inner, &format!("{here}/{at}"), found));
        }
        _ => {}
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop_oneof![Just("TCP"), Just("UDP"), Just("start"), Just("end")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(
                prop_oneof![Just("sum"), Just("bytes"), Just("sender"), Just("x")],
                inner,
                0..4
            )
            .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse(&text);
        let _ = parse(&format!("{{{text}}}"));
        let _ = by_lines(&text);
        let _ = version_of(&text);
    }

    #[test]
    fn no_text_of_json_letters_panics(text in "[{}\\[\\]\",:\\\\ aineftr0-9.\n-]{0,200}") {
        let _ = parse(&text);
        let _ = by_lines(&text);
    }

    #[test]
    fn no_value_in_any_place_panics(
        case in prop_oneof![Just("tcp-bidir"), Just("udp-bidir"), Just("udp-download-4-streams"), Just("tcp-upload-omit")],
        swaps in prop::collection::vec((any::<Index>(), any_json()), 1..4),
    ) {
        let mut document: Value = serde_json::from_str(&fixture("iperf3-3.12", case)).unwrap();
        for (place, new) in swaps {
            let mut found = Vec::new();
            places(&document, "", &mut found);
            if let Some(old) = document.pointer_mut(place.get::<String>(&found)) {
                *old = new;
            }
        }
        let report = parse(&document.to_string());
        if let Ok(report) = report {
            prop_assert!(report.readings.iter().all(|reading| reading.begin_us <= reading.end_us));
        }
        let line = serde_json::json!({"event": "end", "data": document["end"]}).to_string();
        let _ = by_lines(&line);
    }
}
