//! Generates the JSON Schema of all documents from their Rust types. Only the composition of the definitions is written
//! by hand.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{ErrorDocument, Event, ResultDocument};
use crate::doctor::Diagnosis;
use crate::self_test::SelfTest;

/// The JSON Schema (draft 2020-12) of every document. Each document is under `$defs` by its type name:
/// `ResultDocument`, `ErrorDocument`, `Event`, `SelfTest`, `Diagnosis`.
pub fn schema() -> Value {
    // The schema of serialisation, not of deserialisation: a field that is always written is required.
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let any_of = [
        reference::<ResultDocument>(&mut generator),
        reference::<ErrorDocument>(&mut generator),
        reference::<Event>(&mut generator),
        reference::<SelfTest>(&mut generator),
        reference::<Diagnosis>(&mut generator),
    ];
    let mut definitions = generator.take_definitions(true);
    for definition in definitions.values_mut() {
        if let Ok(schema) = <&mut Schema>::try_from(definition) {
            RecursiveTransform(NeverNull).transform(schema);
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What packetparamedic prints with --json (result, self-test or error) and --json-stream (events)",
        "anyOf": any_of,
        "$defs": definitions,
    })
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A schema transform that removes `null` from every type. The documents never contain `null`: a value that was not
/// measured is absent.
#[derive(Clone)]
pub struct NeverNull;

impl Transform for NeverNull {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
            choices.retain(|choice| choice != &json!({ "type": "null" }));
            if let [Value::Object(only)] = choices.as_slice() {
                let only = only.clone();
                schema.remove("anyOf");
                for (key, value) in only {
                    schema.insert(key, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataPath, ErrorBody, ErrorSchema, Validity, ValidityVerdict, Warning, example};
    use super::*;

    /// Validates `document` against the definition `name` of the schema, and returns the violations.
    fn faults(name: &str, document: &Value) -> Vec<String> {
        let mut schema = schema();
        schema["anyOf"] = json!([{ "$ref": format!("#/$defs/{name}") }]);
        let validator = jsonschema::validator_for(&schema).unwrap();
        validator.iter_errors(document).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
    }

    fn error() -> ErrorDocument {
        ErrorDocument {
            schema: ErrorSchema::V1,
            error: ErrorBody {
                code: "busy".to_owned(),
                what: "the reflector has no free slot".to_owned(),
                because: "another test is running".to_owned(),
                try_: "again in 20 s".to_owned(),
                retry_after_ms: Some(20_000),
            },
            measured_so_far: None,
        }
    }

    #[test]
    fn the_schema_is_the_published_one() {
        let published = include_str!("../../../../docs/results.schema.json");
        // Not assert_eq, which would print both schemas.
        assert!(format!("{:#}\n", schema()) == published, "docs/results.schema.json is not what this version prints");
    }

    #[test]
    fn a_full_and_a_bare_result_fit_their_schema() {
        for document in [example::full(), example::bare()] {
            let value = serde_json::to_value(&document).unwrap();
            assert_eq!(faults("ResultDocument", &value), Vec::<String>::new());
            assert_eq!(serde_json::from_str::<ResultDocument>(&document.to_text().unwrap()).unwrap(), document);
        }
    }

    #[test]
    fn an_error_fits_its_schema_with_and_without_what_was_measured() {
        let bare = error();
        let full = ErrorDocument { measured_so_far: Some(Box::new(example::bare())), ..error() };
        for document in [bare, full] {
            let value = serde_json::to_value(&document).unwrap();
            assert_eq!(faults("ErrorDocument", &value), Vec::<String>::new());
            assert_eq!(serde_json::from_value::<ErrorDocument>(value).unwrap(), document);
        }
    }

    #[test]
    fn every_event_fits_its_schema_and_comes_back() {
        for event in example::events() {
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!(faults("Event", &value), Vec::<String>::new(), "{value}");
            assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
        }
    }

    #[test]
    fn a_result_event_is_the_document_with_an_event_field() {
        let mut event = serde_json::to_value(Event::Result(Box::new(example::full()))).unwrap();
        assert_eq!(event.as_object_mut().unwrap().remove("event"), Some(json!("result")));
        assert_eq!(event, serde_json::to_value(example::full()).unwrap());
        assert_eq!(serde_json::to_value(Event::Error(Box::new(error()))).unwrap()["event"], "error");
    }

    #[test]
    fn an_unmeasured_value_is_absent_and_never_null() {
        let value = serde_json::to_value(example::bare()).unwrap();
        for name in ["upload", "bidir", "latency", "bufferbloat", "thresholds", "error", "interrupted", "server"] {
            assert!(value.get(name).is_none(), "{name} should be absent");
        }
        for document in [example::full(), example::bare()] {
            assert!(!document.to_text().unwrap().contains("null"));
        }
        let mut forged = value;
        forged["upload"] = Value::Null;
        assert_ne!(faults("ResultDocument", &forged), Vec::<String>::new());
    }

    #[test]
    fn a_field_that_is_always_written_is_required() {
        for name in
            ["schema", "id", "started_at", "finished_at", "appliance", "data_used_bytes", "warnings", "complete"]
        {
            let mut value = serde_json::to_value(example::full()).unwrap();
            value.as_object_mut().unwrap().remove(name);
            assert_ne!(faults("ResultDocument", &value), Vec::<String>::new(), "{name} should be required");
        }
    }

    #[test]
    fn the_published_names_exist() {
        let value = serde_json::to_value(example::full()).unwrap();
        let at = |path: &str| value.pointer(path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(at("/schema"), "packetparamedic.result/1");
        assert_eq!(at("/data_mode"), "direct_ephemeral");
        assert_eq!(at("/data_path"), "plain");
        assert_eq!(at("/started_at"), "2026-01-31T12:00:00Z");
        assert_eq!(at("/bufferbloat/download"), &json!({ "grade": "A", "increase_ms": 12.3 }));
        for path in [
            "/download/goodput_bps",
            "/download/ci95_bps/1",
            "/download/interval_bps/p90",
            "/download/cpu/sender",
            "/upload/cpu/receiver",
            "/bidir/download/goodput_bps",
            "/latency/idle/rtt_us/p999",
            "/latency/bidir/loss_download",
            "/reflector/facts_before",
            "/reflector/facts_after",
            "/thresholds/0/measured",
            "/warnings/0/code",
        ] {
            at(path);
        }
    }

    #[test]
    fn the_warnings_about_accuracy_make_a_result_suspect() {
        let warning = |code| Warning::new(code, "text");
        let valid = Validity::of(&[warning("udp_blocked"), warning("counts_differ")], true);
        assert_eq!(serde_json::to_value(valid).unwrap(), json!({ "verdict": "valid" }));
        let suspect = Validity::of(&[warning("udp_blocked"), warning("not_steady")], false);
        let codes = suspect.reasons.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>();
        assert_eq!((suspect.verdict, codes), (ValidityVerdict::Suspect, vec!["not_steady", "incomplete"]));
    }

    #[test]
    fn a_document_of_an_earlier_version_still_reads() {
        let mut earlier = serde_json::to_value(example::full()).unwrap();
        for name in ["validity", "requested"] {
            earlier.as_object_mut().unwrap().remove(name).unwrap();
        }
        earlier["download"].as_object_mut().unwrap().remove("thirds_bps").unwrap();
        let idle = earlier["latency"]["idle"].as_object_mut().unwrap();
        idle.remove("loss_pattern").unwrap();
        let read = serde_json::from_value::<ResultDocument>(earlier).unwrap();
        assert_eq!((read.validity, read.requested), (None, None));
    }

    #[test]
    fn every_data_path_has_one_name() {
        for path in [DataPath::Plain, DataPath::Trunc, DataPath::Splice, DataPath::Tls] {
            assert_eq!(serde_json::to_value(path).unwrap(), path.as_str());
            assert_eq!(DataPath::from_word(path.as_str()), Some(path));
        }
        assert_eq!(DataPath::from_word("wormhole"), None);
    }
}
