//! Compares docs/protocol.md with the code: every message has a section that describes every field and every value, and
//! the numbers and examples are the compiled ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_link::admission::{Preamble, SESSION_EXPORTER_LABEL, SessionId, SessionKeys};
use paramedic_link::feature::Feature;
use paramedic_link::frame::MAX_FRAME;
use paramedic_link::message::{
    CloseReason, DenialReason, END_AFTER_SILENCE, END_MONITOR_AFTER_SILENCE, EndReason, HEARTBEAT, MAX_DATA_MODES,
    MAX_ENGINES, MAX_FEATURES, MAX_MONITOR_PROBES_PER_S, MAX_SAMPLES, MAX_VERSIONS, MONITOR_PING, PAUSE_AFTER_SILENCE,
    PROTOCOL_VERSION,
};
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode, Pin};
use paramedic_link::phase_detail::MAX_DETAIL_SAMPLES;
use paramedic_link::test_spec::{DataMode, Direction, Load, TestSpec};
use paramedic_link::tls::Alpn;
use paramedic_link::{DEFAULT_PORT, EndpointId, PeerText};
use serde::Serialize;
use serde_json::Value;

fn doc() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md")).unwrap()
}

/// The text between a heading and the next one of the same or a higher level.
fn under(doc: &str, heading: &str) -> String {
    let level = heading.chars().take_while(|c| *c == '#').count();
    let is_next = |line: &str| {
        let hashes = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&hashes)
    };
    let mut lines = doc.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "docs/protocol.md has no {heading:?}");
    lines.take_while(|line| !is_next(line)).collect::<Vec<_>>().join("\n")
}

/// The sections of one direction, by message name.
fn sections(direction: &str) -> BTreeMap<String, String> {
    let chapter = under(
        &doc(),
        match direction {
            "to_reflector" => "## Messages from an appliance",
            _ => "## Messages from a reflector",
        },
    );
    let names = chapter.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned);
    names.map(|name| (name.clone(), under(&chapter, &format!("### {name}")))).collect()
}

/// Every recorded message with its name; `hello.features.json` is a `hello`.
fn recorded(direction: &str) -> Vec<(String, Value)> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(direction);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
            (name, serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap())
        })
        .collect()
}

fn fields_of(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                into.push(name.clone());
                fields_of(value, into);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| fields_of(entry, into)),
        _ => {}
    }
}

#[test]
fn every_message_has_a_section_that_names_every_field() {
    for direction in ["to_reflector", "to_appliance"] {
        let (sections, recorded) = (sections(direction), recorded(direction));
        // tests/vectors.rs checks that every message is recorded.
        let named = recorded.iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
        assert_eq!(sections.keys().collect::<BTreeSet<_>>(), named, "{direction}");
        for (name, message) in recorded {
            let mut fields = Vec::new();
            fields_of(&message, &mut fields);
            for field in fields.iter().filter(|field| *field != "type") {
                assert!(sections[&name].contains(&format!("`{field}`")), "{direction}: {name} does not name `{field}`");
            }
        }
    }
}

/// All variants of an enum. The test does not compile while a variant is missing in the list.
macro_rules! all {
    ($word:ident: $($variant:ident),+ $(,)?) => {{
        let _exhaustive = |word: $word| match word { $($word::$variant => ()),+ };
        [$($word::$variant),+]
    }};
}

fn names<T: Serialize + Debug>(words: impl IntoIterator<Item = T>, section: &str) {
    for word in words {
        let Value::String(name) = serde_json::to_value(&word).unwrap() else { panic!("{word:?} is no word") };
        assert!(section.contains(&format!("`{name}`")), "`{name}` is not described");
    }
}

#[test]
fn every_reason_mode_and_load_is_described() {
    let (asked, said) = (sections("to_reflector"), sections("to_appliance"));
    names(
        all!(DenialReason: BadRequest, EngineNotOffered, ModeNotOffered, TooLong, TooManyStreams, AlreadyAsked, Busy,
            QueueFull, TestsPerHour, BytesPerDay, NoPort, TooManyMonitors, Draining, Faulted, Unknown),
        &said["denied"],
    );
    names(
        all!(EndReason: Finished, Deadline, Silence, NotStarted, LinkClosed, BytesPerDay, PeerRemoved, Shutdown, Failed, Unknown),
        &said["ended"],
    );
    names(all!(CloseReason: Version, Protocol, PeerRemoved, Shutdown, Unknown), &said["close"]);
    let known_modes =
        all!(DataMode: Tunneled, DirectEphemeral, Unknown).into_iter().filter(|m| *m != DataMode::Unknown);
    names(known_modes.clone(), &asked["request"]);
    names(known_modes, &said["welcome"]);
    let known_loads = all!(Load: Idle, Download, Upload, Bidir, Unknown).into_iter().filter(|l| *l != Load::Unknown);
    names(known_loads, &asked["request"]);
    names(all!(Direction: Download, Upload), &format!("{}{}", said["samples"], said["phase_done"]));
}

#[test]
fn the_numbers_are_the_compiled_ones() {
    let seconds = |duration: Duration| format!("{} s", duration.as_secs());
    let text = |bytes: &[u8]| format!("`{}`", std::str::from_utf8(bytes).unwrap());
    let rows = [
        ("default port, TCP and UDP", DEFAULT_PORT.to_string()),
        ("ALPN of the link", text(Alpn::Link.as_bytes())),
        ("ALPN of tunneled data", text(Alpn::Data.as_bytes())),
        ("version of the messages", PROTOCOL_VERSION.to_string()),
        ("longest body of a frame", format!("{MAX_FRAME} bytes")),
        ("versions in `hello` or `pair`, at most", MAX_VERSIONS.to_string()),
        ("data modes in `welcome`, at most", MAX_DATA_MODES.to_string()),
        ("engines in `welcome`, at most", MAX_ENGINES.to_string()),
        ("features in `hello` or `welcome`, at most", MAX_FEATURES.to_string()),
        ("characters of a feature's name, at most", Feature::MAX_CHARS.to_string()),
        ("phases of a session, at most", TestSpec::MAX_PHASES.to_string()),
        ("streams per direction, at most", TestSpec::MAX_STREAMS.to_string()),
        ("samples in a message, at most", MAX_SAMPLES.to_string()),
        ("readings of streams in a message, at most", MAX_DETAIL_SAMPLES.to_string()),
        ("characters of a text, at most", PeerText::MAX_CHARS.to_string()),
        ("interval between latency probes, at least", format!("{} µs", TestSpec::MIN_PROBE_INTERVAL_US)),
        ("heartbeat", format!("every {}", seconds(HEARTBEAT))),
        ("sending pauses after silence of", seconds(PAUSE_AFTER_SILENCE)),
        ("a session ends after silence of", seconds(END_AFTER_SILENCE)),
        ("probes of a monitor session in a second, at most", MAX_MONITOR_PROBES_PER_S.to_string()),
        ("heartbeat of a link with a monitor session", format!("every {}", seconds(MONITOR_PING))),
        ("a monitor session ends after silence of", seconds(END_MONITOR_AFTER_SILENCE)),
        ("preamble of a data connection", format!("{} bytes", Preamble::LEN)),
        ("exporter label of session keys", text(SESSION_EXPORTER_LABEL)),
        ("exporter label of pairing proofs", text(PAIRING_EXPORTER_LABEL)),
    ];
    let doc = doc();
    let table = under(&doc, "## Numbers");
    for (what, value) in &rows {
        assert!(table.contains(&format!("| {what} | {value} |")), "{what} is {value}");
    }
    assert_eq!(table.lines().filter(|line| line.starts_with('|')).count(), rows.len() + 2, "an unchecked row");
    // The same numbers in running text.
    assert!(under(&doc, "## Frames").contains(&format!("above {MAX_FRAME}")));
    assert!(under(&doc, "## Session keys").contains(&text(SESSION_EXPORTER_LABEL)));
    assert!(under(&doc, "## Pairing").contains(&text(PAIRING_EXPORTER_LABEL)));
    assert!(under(&doc, "## Data connections").contains(&format!("| {}–{} |", Preamble::LEN - 16, Preamble::LEN - 1)));
}

#[test]
fn the_examples_are_valid() {
    let doc = doc();
    let counting = |from: u8| std::array::from_fn::<u8, 32, _>(|at| from + at as u8);
    assert!(under(&doc, "## Identity").contains(&EndpointId::from_bytes(counting(0)).to_string()));

    let pairing = under(&doc, "## Pairing");
    let code = pairing.split('`').find_map(|text| text.parse::<PairingCode>().ok()).expect("an example of a code");
    let ends = Ends { reflector: EndpointId::from_bytes([7; 32]), appliance: EndpointId::from_bytes([8; 32]) };
    assert_eq!(code.pin(), Pin::of(&ends.reflector));
    for proof in [code.appliance_proof(&[1; 32], &ends), code.reflector_proof(&[1; 32], &ends)] {
        let Value::String(digits) = serde_json::to_value(proof).unwrap() else { panic!("a proof is text") };
        assert!(pairing.contains(&digits), "{digits}");
    }

    let session = SessionId::new("01943d3c-5e00-7a10-8000-0123456789ab".parse().unwrap());
    let keys = SessionKeys::derive(session, counting(0).into());
    let preamble = Preamble { session, phase: 2, stream: 63, nonce: std::array::from_fn(|at| 100 + at as u8) };
    let digits = data_encoding::HEXLOWER.encode(&preamble.seal(&keys));
    assert!(under(&doc, "## Data connections").contains(&digits), "{digits}");
}
