//! Recorded messages that must be readable for ever: every variant has one in `vectors/`, decodes, and is written
//! again as it was.

use std::fs;
use std::path::{Path, PathBuf};

use paramedic_link::frame::{Bounded, Decoder, encode};
use paramedic_link::message::{ToAppliance, ToReflector};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The wire names of an enum's variants, as a list and by variant. A new variant does not compile until it is named
/// here, and then has no recorded vector until somebody records one.
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
    Withdraw => "withdraw",
    Start => "start",
    Finish => "finish",
    Facts => "facts",
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
    Denied => "denied",
    Started => "started",
    Samples => "samples",
    PhaseDone => "phase_done",
    Ended => "ended",
    Facts => "facts",
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
    let mut recorded = fs::read_dir(folder(direction))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    recorded.sort();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(recorded, expected, "one recorded vector per message, no more and no less");

    for name in names {
        let text = fs::read_to_string(folder(direction).join(format!("{name}.json"))).unwrap();
        let message = serde_json::from_str::<T>(&text).unwrap_or_else(|e| panic!("{direction}/{name}: {e}"));
        assert_eq!(name_of(&message), *name);
        message.check().unwrap();
        let as_recorded = serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), as_recorded, "{direction}/{name} is written differently");

        let mut decoder = Decoder::new();
        decoder.push(&encode(&message).unwrap()).unwrap();
        assert_eq!(decoder.next::<T>().unwrap(), Some(message));

        // What a newer version adds beside the known fields is no error.
        let Value::Object(mut newer) = as_recorded else { panic!("{direction}/{name} is no object") };
        newer.insert("of_a_newer_version".to_owned(), serde_json::json!({ "with": ["more"] }));
        assert_eq!(name_of(&serde_json::from_value::<T>(newer.into()).unwrap()), *name);
    }
}

#[test]
fn every_message_to_a_reflector_is_recorded_and_reads_as_it_was() {
    check("to_reflector", TO_REFLECTOR, name_to_reflector);
}

#[test]
fn every_message_to_an_appliance_is_recorded_and_reads_as_it_was() {
    check("to_appliance", TO_APPLIANCE, name_to_appliance);
}

#[test]
fn a_message_of_a_newer_version_is_read_as_unknown() {
    let newer = r#"{"type":"teleport","to":{"x":[1,2,3]},"phase":"sideways"}"#;
    assert_eq!(serde_json::from_str::<ToReflector>(newer).unwrap(), ToReflector::Unknown);
    assert_eq!(serde_json::from_str::<ToAppliance>(newer).unwrap(), ToAppliance::Unknown);
}

#[test]
fn a_reason_of_a_newer_version_is_read_as_unknown() {
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
fn what_may_be_absent_may_be_absent() {
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
