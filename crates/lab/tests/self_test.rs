//! Tests the command `self-test` of both programs. It needs no pairing, state or network, prints a JSON document or a
//! report, and names the weak points of a host.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Outcome, Programs, Running, changes};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAMS: [&str; 2] = ["reflector", "packetparamedic"];
const SHORT: [&str; 3] = ["self-test", "-t", "200ms"];

/// Builds a command of a program in an empty environment. The command `before` starts it, unless that is empty.
fn command(program: &str, home: &Path, before: &[&str], args: &[&str]) -> Command {
    let program = Programs::built().path(program);
    let mut command = match before {
        [] => Command::new(program),
        [first, more @ ..] => {
            let mut command = Command::new(first);
            command.args(more).arg(program);
            command
        }
    };
    command.args(args).env_clear().env("HOME", home).env("TMPDIR", home);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
    command
}

fn run(program: &str, home: &Path, before: &[&str], args: &[&str]) -> Outcome {
    command(program, home, before, args).output().unwrap().into()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Returns the codes of the weak points in a self-test document.
fn weak_points(document: &Value) -> Vec<&str> {
    document["weak_points"].as_array().unwrap().iter().map(|weak| weak["code"].as_str().unwrap()).collect()
}

/// Returns the JSON schema of a self-test document, from the schema that the appliance prints.
fn schema() -> Value {
    let home = TempDir::new().unwrap();
    let mut schema = run("packetparamedic", home.path(), &[], &["schema"]).json();
    schema["anyOf"] = serde_json::json!([{ "$ref": "#/$defs/SelfTest" }]);
    schema
}

#[test]
fn both_programs_print_one_document_that_matches_the_schema() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        let outcome = run(program, home.path(), &[], &[&SHORT[..], &["--json"]].concat());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
        let document = outcome.json();
        let faults = validator.iter_errors(&document).map(|fault| fault.to_string()).collect::<Vec<_>>();
        assert!(faults.is_empty(), "{faults:?}\n{document:#}");
        assert_eq!(document["schema"], "packetparamedic.self_test/1");
        assert_eq!(document["program"], program);
        let text = document["verdict"]["text"].as_str().unwrap();
        assert!(text.starts_with("This host can carry ") && text.contains("tunneled and "), "{text}");
        for mode in ["tunneled", "direct_ephemeral"] {
            let mut rates = document["rates"].as_array().unwrap().iter();
            let rate = rates.find(|rate| rate["engine"] == "tcp" && rate["data_mode"] == mode);
            let rate = rate.unwrap_or_else(|| panic!("no rate of tcp, {mode}: {document:#}"));
            for direction in ["download", "upload"] {
                assert!(rate[direction]["goodput_bps"].as_u64().unwrap() > 0, "{document:#}");
            }
        }
        assert!(is_empty(home.path()), "{program} left something behind");
    }
}

#[test]
fn without_json_only_the_report_is_printed() {
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        let outcome = run(program, home.path(), &[], &SHORT);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
        assert!(outcome.stdout.starts_with("This host can carry "), "{outcome:?}");
        for row in ["tcp tunneled", "tcp direct", "processor", "descriptors", "congestion"] {
            let mut lines = outcome.stdout.lines();
            assert!(lines.any(|line| line.to_lowercase().starts_with(row)), "{row}: {outcome:?}");
        }
    }
}

#[test]
fn few_descriptors_are_reported_with_advice() {
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        let before = ["sh", "-c", r#"ulimit -n 256 && exec "$@""#, "sh"];
        let outcome = run(program, home.path(), &before, &[&SHORT[..], &["--json"]].concat());
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let document = outcome.json();
        assert_eq!(document["facts"]["descriptors"], serde_json::json!({ "soft": 256, "hard": 256 }));
        assert!(weak_points(&document).contains(&"few_descriptors"), "{document:#}");
        let weak = document["weak_points"].as_array().unwrap();
        let weak = weak.iter().find(|weak| weak["code"] == "few_descriptors").unwrap();
        assert!(weak["what"].as_str().unwrap().contains("256 descriptors"), "{weak:#}");
        assert!(weak["try"].as_str().unwrap().contains("LimitNOFILE"), "{weak:#}");
    }
}

#[test]
fn if_nothing_can_be_measured_the_self_test_fails_and_says_why() {
    // A new network namespace has no working loopback interface.
    let before = ["unshare", "--net"];
    let may = Command::new(before[0]).args(&before[1..]).arg("true").stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a network of one's own needs root and network namespaces");
        return;
    }
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        let outcome = run(program, home.path(), &before, &[&SHORT[..], &["--json"]].concat());
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let document = outcome.json();
        assert_eq!(document["rates"], serde_json::json!([]));
        assert_eq!(document["verdict"]["text"], "The rate that this host can carry could not be measured.");
        let missed = document["not_measured"].as_array().unwrap();
        assert!(missed.iter().any(|missed| missed["engine"] == "tcp"), "{document:#}");
        assert!(missed.iter().all(|missed| !missed["because"].as_str().unwrap().is_empty()), "{document:#}");
        let outcome = run(program, home.path(), &before, &SHORT);
        assert!(outcome.code == 1 && outcome.stdout.contains("no rate: "), "{outcome:?}");
    }
}

#[test]
fn an_interrupted_self_test_reports_it_and_leaves_no_files() {
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        let command = command(program, home.path(), &[], &["self-test", "--json", "-t", "10"]);
        let mut running = Running::start(command, Stdio::null()).unwrap();
        // Once its folder exists, the program handles signals.
        let begun = changes::until(home.path(), Duration::from_secs(60), || (!is_empty(home.path())).then_some(()));
        assert!(begun.is_some(), "{program} makes no folder to work in");
        running.signal(rustix::process::Signal::INT);
        let document = running.rest(Duration::from_secs(60)).unwrap().join("\n");
        assert_eq!(running.wait(Duration::from_secs(60)).unwrap().code(), Some(130), "{program}");
        assert_eq!(serde_json::from_str::<Value>(&document).unwrap()["code"], "interrupted", "{document}");
        assert!(is_empty(home.path()), "{program} left something behind");
    }
}

#[test]
fn a_duration_outside_its_limits_is_a_usage_error() {
    for program in PROGRAMS {
        let home = TempDir::new().unwrap();
        for time in ["0", "50ms", "11s", "soon"] {
            let outcome = run(program, home.path(), &[], &["self-test", "--json", "-t", time]);
            assert_eq!((outcome.code, &outcome.json()["code"]), (2, &"bad_usage".into()), "{outcome:?}");
        }
    }
}
