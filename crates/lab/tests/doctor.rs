//! Tests the command `doctor` of both programs: on sound installations, with injected faults, and that a redacted
//! bundle contains no names, addresses or Endpoint IDs.

use std::net::TcpListener;
use std::time::Duration;

use lab::{Appliance, Outcome, Reflector};
use paramedic_report::doctor::{Check, CheckOutcome, Diagnosis};
use rustix::process::Signal;

fn diagnosis(outcome: &Outcome) -> Diagnosis {
    serde_json::from_value(outcome.json()).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Returns the check with this code, which the diagnosis must contain.
fn check<'a>(diagnosis: &'a Diagnosis, code: &str) -> &'a Check {
    let found = diagnosis.checks.iter().find(|check| check.code == code);
    found.unwrap_or_else(|| panic!("no check {code}: {diagnosis:#?}"))
}

#[test]
fn a_reflector_is_diagnosed_running_and_stopped() {
    let mut reflector = Reflector::serve(&[]);
    let doctor = |reflector: &Reflector| diagnosis(&reflector.run(&["doctor", "--json"]));
    let running = doctor(&reflector);
    assert_eq!(check(&running, "state").outcome, CheckOutcome::Passed);
    assert_eq!(check(&running, "version").outcome, CheckOutcome::Passed);
    // A new reflector serves no device, and the diagnosis names that.
    assert_eq!(check(&running, "no_peers").outcome, CheckOutcome::Problem);
    Appliance::new().pair(&reflector, reflector.address());
    assert_eq!(check(&doctor(&reflector), "no_peers").outcome, CheckOutcome::Passed);
    let port = reflector.address().to_owned();
    reflector.end(Signal::TERM);
    let stopped = doctor(&reflector);
    assert_eq!(check(&stopped, "not_running").outcome, CheckOutcome::Problem);
    assert_eq!(check(&stopped, "listen").outcome, CheckOutcome::Passed);
    // Another program takes its port.
    let _other = TcpListener::bind(&port).unwrap();
    let outcome = reflector.run(&["doctor", "--listen", &port, "--json"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let taken = diagnosis(&outcome);
    let because = check(&taken, "listen").because.clone().unwrap();
    assert!(because.contains(&format!("(process {})", std::process::id())), "{because}");
    let text = reflector.run(&["doctor", "--listen", &port]);
    assert!(text.stdout.contains("\nproblem: the reflector is not running\nbecause: "), "{text:?}");
}

#[test]
fn an_appliance_is_diagnosed_with_its_reflectors() {
    let mut reflector = Reflector::serve(&[("NAME", "attic")]);
    let appliance = Appliance::new();
    let doctor = |more: &[&str]| appliance.run(&[&["doctor", "--json"], more].concat());
    let alone = doctor(&[]);
    assert_eq!(alone.code, 1, "{alone:?}");
    assert_eq!(check(&diagnosis(&alone), "no_reflector").outcome, CheckOutcome::Problem);
    let appliance = appliance.pair(&reflector, reflector.address());
    let doctor = |more: &[&str]| diagnosis(&appliance.run(&[&["doctor", "--json"], more].concat()));
    let paired = doctor(&[]);
    assert_eq!(check(&paired, "reflector").outcome, CheckOutcome::Passed, "{paired:#?}");
    assert_eq!(check(&paired, "peer_version").outcome, CheckOutcome::Passed);
    assert_eq!(check(&paired, "udp").outcome, CheckOutcome::Passed, "{paired:#?}");
    let history = appliance.run(&["history", "--json"]).json();
    assert_eq!(history, serde_json::json!([]), "the test of the diagnosis is not saved");
    // While another test runs, nothing can be said about UDP.
    let mut test = appliance.start(&["speed-test", "--json-stream", "-t", "60", "--idle", "0", "-b", "5M"]);
    while !test.line(Duration::from_secs(30)).unwrap().contains("\"latency\"") {}
    assert_eq!(check(&doctor(&[]), "udp").outcome, CheckOutcome::NotChecked);
    test.kill();
    let (id, address) = (reflector.id(), reflector.address().to_owned());
    reflector.end(Signal::TERM);
    assert_eq!(check(&doctor(&[]), "unreachable").outcome, CheckOutcome::Problem);
    assert_eq!(check(&doctor(&["--offline"]), "reflector").outcome, CheckOutcome::NotChecked);
    let bundle = appliance.state().join("bundle.json");
    let path = bundle.to_str().unwrap();
    let mut command = appliance.command(&["doctor", "--bundle", path, "--redact"]);
    command.env("PACKETPARAMEDIC_NAME", "anns-laptop").env("PACKETPARAMEDIC_PEER", "cellar");
    command.output().unwrap();
    let text = std::fs::read_to_string(&bundle).unwrap();
    for secret in ["attic", "anns-laptop", "cellar", id.as_str(), address.as_str()] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(text.contains("packetparamedic.doctor/1"), "{text}");
    let again = appliance.run(&["doctor", "--bundle", path]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("cannot write"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&bundle).unwrap(), text);
}
