//! Tests alert rules with the real service and a real reflector. Rules are previewed, added and removed, through the
//! service and directly in the database. The service applies them to repeated speed tests, and keeps them when it is
//! killed.

use lab::{Appliance, Device, Reflector};
use rustix::process::Signal;
use serde_json::Value;

/// The arguments of a short speed test with little load.
const SHORT: [&str; 8] = ["-t", "0.3", "--idle", "0.1", "-b", "5M", "-P", "1"];

#[test]
fn failed_tests_open_an_alert_after_a_repetition_and_a_killed_service_keeps_it() {
    let mut reflector = Reflector::serve(&[]);
    let device = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    device.schedule("nightly", &SHORT);
    let rule = ["--metric", "test_failed", "--times", "1/1", "--retest", "--name", "failing"];
    let unknown = device.run(&[&["rule", "add"], &rule[..], &["--channel", "phone"]].concat());
    assert_eq!((unknown.code, unknown.three_lines()[1]), (2, "no channel is called \"phone\""), "{unknown:?}");
    let suggested = device.must(&["rule", "add", "--suggested", "--dry-run"]);
    assert!(suggested.contains("outage: outage longer than 2 min"), "{suggested}");
    assert_eq!(device.json(&["rule", "list"]), Value::Array(vec![]), "nothing is active by itself");

    let mut service = device.serve();
    device.must(&[&["rule", "add"], &rule[..]].concat());
    let listed = device.must(&["rule", "list"]);
    assert!(listed.contains("failed test, repeated at once") && listed.contains("cannot fire: no test"), "{listed}");
    // The outcomes of all runs, the latest first, once there are so many and all have ended.
    let outcomes = |count: usize| {
        let is_over = |runs: &Value| {
            let all = runs.as_array().unwrap();
            all.len() == count && all.iter().all(|run| run["outcome"] != "running")
        };
        let runs = device.await_json(&["schedule", "runs", "nightly"], is_over);
        let outcomes = runs.as_array().unwrap().iter().map(|run| run["outcome"].as_str().unwrap().to_owned());
        outcomes.collect::<Vec<_>>()
    };
    device.must(&["schedule", "run", "nightly"]);
    assert_eq!(outcomes(1), ["done"], "{}", device.log());
    assert!(device.must(&["rule", "list"]).contains("no alert is open"));

    reflector.end(Signal::TERM);
    device.must(&["schedule", "run", "nightly"]);
    let is_open = |alerts: &Value| alerts.as_array().is_some_and(|all| all.len() == 1);
    let open = device.await_json(&["alerts", "--open"], is_open);
    assert_eq!(
        (&open[0]["rule"], outcomes(3)),
        (&"failing".into(), ["failed", "failed", "done"].map(str::to_owned).into())
    );
    let text = open[0]["opening"]["text"].as_str().unwrap();
    assert!(text.contains("How sure: one test; the test that was repeated at once agrees."), "{text}");

    service.kill();
    let mut service = device.serve();
    assert_eq!(device.json(&["alerts"]), open, "neither lost nor repeated");
    let preview = device.must(&["rule", "preview", "failing"]);
    assert!(preview.contains("would have fired once in the last 30 days; 3 judged"), "{preview}");
    reflector.start().unwrap();
    device.must(&["schedule", "run", "nightly"]);
    let is_closed = |alerts: &Value| alerts[0]["closed_at"].is_string();
    let closed = device.await_json(&["alerts"], is_closed);
    assert!(closed[0]["closing"]["title"].as_str().unwrap().ends_with(" work again"), "{closed:#}");
    device.must(&["rule", "disable", "failing"]);
    assert!(device.must(&["rule", "list"]).contains("disabled"));
    device.must(&["rule", "enable", "failing"]);
    service.signal(Signal::TERM);
    assert!(service.wait(std::time::Duration::from_secs(60)).unwrap().success());

    // Without the service, on the store.
    assert_eq!(device.json(&["--local", "rule", "show", "failing"])["enabled"], true);
    assert_eq!(device.json(&["--local", "rule", "remove", "failing"])["event"], "removed");
    assert_eq!(device.run(&["--local", "rule", "show", "failing"]).code, 1);
    assert_eq!(device.json(&["--local", "alerts"]), closed);
}

#[test]
fn a_bad_test_is_repeated_against_a_second_reflector_too() {
    let mut attic = Reflector::serve(&[("NAME", "attic")]);
    let cellar = Reflector::serve(&[("NAME", "cellar")]);
    let device = Device::new(Appliance::new().pair(&attic, attic.address()).pair(&cellar, cellar.address()));
    // A rate or a latency of a busy machine would not be judged; a failure is.
    device.schedule("nightly", &[&SHORT[..], &["--peer", "attic"]].concat());
    let _service = device.serve();
    device.must(&["rule", "add", "--name", "failing", "--metric", "test_failed", "--retest"]);
    attic.end(Signal::TERM);
    device.must(&["schedule", "run", "nightly"]);
    let open = device.await_json(&["alerts", "--open"], |alerts| alerts.as_array().is_some_and(|all| !all.is_empty()));
    let text = open[0]["opening"]["text"].as_str().unwrap();
    assert!(text.contains("the test that was repeated at once agrees."), "{text}");
    let place = "cellar, tested at the same time, was as expected: it is attic or the way to it, not the line.";
    assert!(text.ends_with(place), "{text}");
    let peers = device.json(&["history"]);
    let peers = peers.as_array().unwrap().iter().map(|run| run["peer"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(peers, ["attic", "cellar", "attic"], "newest first");
}
