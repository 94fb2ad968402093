//! Recorded messages in `vectors/`, at least one for every variant. Each must decode and encode to the same JSON, in every
//! later version too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use paramedic_link::frame::{Bounded, Decoder, encode};
use paramedic_link::message::{ToAppliance, ToReflector};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The wire names of an enum's variants, as a list and by variant. A new variant does not compile until it is named here;
/// the test then fails until a vector is recorded.
macro_rules! wire_names {
    ($names:ident, $name_of:ident, $message:ident: $($variant:ident => $name:literal),+ $(,)?) => {
        const $names: &[&str] = &[$($name),+];

        fn $name_of(message: &$message) -> &'static str {
            match message {
                $($message::$variant { .. } => $name),+
            }
        }
    };
}

wire_names! { TO_REFLECTOR, name_to_reflector, ToReflector:
    Hello => "hello",
    Pair => "pair",
    Request => "request",
    Monitor => "monitor",
    Withdraw => "withdraw",
    Start => "start",
    StopPhase => "stop_phase",
    Finish => "finish",
    Facts => "facts",
    PathFacts => "path_facts",
    Ping => "ping",
    Pong => "pong",
    Close => "close",
    Unknown => "unknown",
}

wire_names! { TO_APPLIANCE, name_to_appliance, ToAppliance:
    Welcome => "welcome",
    NotPaired => "not_paired",
    Paired => "paired",
    Queued => "queued",
    Granted => "granted",
    MonitorGranted => "monitor_granted",
    Denied => "denied",
    Started => "started",
    Samples => "samples",
    PhaseDetail => "phase_detail",
    PhaseDone => "phase_done",
    Ended => "ended",
    Facts => "facts",
    PathFacts => "path_facts",
    Ping => "ping",
    Pong => "pong",
    Close => "close",
    Unknown => "unknown",
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

fn check<T>(direction: &str, names: &[&str], name_of: fn(&T) -> &'static str)
where
    T: DeserializeOwned + Serialize + Bounded + PartialEq + std::fmt::Debug,
{
    let files = fs::read_dir(folder(direction)).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    // `hello.json` is the first recorded `hello`; `hello.features.json` is another one with a field that was added later.
    let name_of_file = |file: &Path| file.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
    let recorded = files.iter().map(|file| name_of_file(file)).collect::<BTreeSet<_>>();
    assert_eq!(recorded, names.iter().map(|name| (*name).to_owned()).collect(), "a recorded vector for each message");
    assert!(names.iter().all(|name| folder(direction).join(format!("{name}.json")).exists()));

    for file in files {
        let name = &*name_of_file(&file);
        let text = fs::read_to_string(&file).unwrap();
        let message = serde_json::from_str::<T>(&text).unwrap_or_else(|e| panic!("{direction}/{name}: {e}"));
        assert_eq!(name_of(&message), name);
        message.check().unwrap();
        let as_recorded = serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), as_recorded, "{direction}/{name} is written differently");

        let mut decoder = Decoder::new();
        decoder.push(&encode(&message).unwrap()).unwrap();
        assert_eq!(decoder.next::<T>().unwrap(), Some(message));

        // An unknown field of a newer version is not an error.
        let Value::Object(mut newer) = as_recorded else { panic!("{direction}/{name} is no object") };
        newer.insert("of_a_newer_version".to_owned(), serde_json::json!({ "with": ["more"] }));
        assert_eq!(name_of(&serde_json::from_value::<T>(newer.into()).unwrap()), name);
    }
}

#[test]
fn every_message_to_a_reflector_is_recorded_and_decodes() {
    check("to_reflector", TO_REFLECTOR, name_to_reflector);
}

#[test]
fn every_message_to_an_appliance_is_recorded_and_decodes() {
    check("to_appliance", TO_APPLIANCE, name_to_appliance);
}

#[test]
fn a_message_of_a_newer_version_decodes_as_unknown() {
    let newer = r#"{"type":"teleport","to":{"x":[1,2,3]},"phase":"sideways"}"#;
    assert_eq!(serde_json::from_str::<ToReflector>(newer).unwrap(), ToReflector::Unknown);
    assert_eq!(serde_json::from_str::<ToAppliance>(newer).unwrap(), ToAppliance::Unknown);
}

#[test]
fn a_reason_of_a_newer_version_decodes_as_unknown() {
    for (message, reason) in [
        (r#"{"type":"denied","reason":"bad_weather","detail":""}"#, "denied"),
        (r#"{"type":"ended","reason":"bad_weather","detail":""}"#, "ended"),
        (r#"{"type":"close","reason":"bad_weather","detail":""}"#, "close"),
    ] {
        let message = serde_json::from_str::<ToAppliance>(message).unwrap();
        assert_eq!(name_to_appliance(&message), reason);
        assert_eq!(serde_json::to_value(&message).unwrap()["reason"], "unknown");
    }
}

#[test]
fn the_list_of_features_is_bounded_and_its_names_are_checked() {
    let hello = |features: &str| format!(r#"{{"type":"hello","versions":[1],"software":"","features":[{features}]}}"#);
    let words = |count| vec![r#""of_a_newer_version""#; count].join(",");
    let read = |text: String| serde_json::from_str::<ToReflector>(&text);
    assert!(read(hello(&words(32))).unwrap().check().is_ok());
    assert!(read(hello(&words(33))).unwrap().check().is_err());
    for bad in [r#""""#, r#""UPPER""#, r#""with space""#, r#""a_word_of_twenty_five_char""#, "1", "null"] {
        assert!(read(hello(bad)).is_err(), "{bad}");
    }
}

#[test]
fn optional_fields_may_be_absent() {
    for text in [
        r#"{"type":"granted","session":"01943d3c-5e00-7a10-8000-0123456789ab","expires_in_ms":1,"udp":false}"#,
        r#"{"type":"denied","reason":"busy","detail":""}"#,
        r#"{"type":"facts","version":"0.1.0"}"#,
        r#"{"type":"phase_done","phase":0,"tally":{}}"#,
    ] {
        let message = serde_json::from_str::<ToAppliance>(text).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }
}
