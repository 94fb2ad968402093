//! Tests the speed test over loopback: pair, run the test, read the result.

use std::time::Duration;

use lab::{Appliance, Reflector, event, loopback};
use paramedic_link::test_spec::{DataMode, Direction, Load};
use paramedic_report::document::{DataPath, Event, LatencyResult, ProbeTransport, ResultDocument, ResultSchema};
use serde_json::Value;

/// Arguments for short phases: these tests check the behaviour, not the numbers. Half of the idle phase is measured,
/// with 25 probes; a median needs 20.
const SHORT: &[&str] = &["-t", "1", "--idle", "0.5"];

/// Starts a reflector that offers both data modes, on an address that no other test uses. `ports` is its range of data
/// ports.
fn offering_direct(ports: &str) -> Reflector {
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", ports)];
    Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &settings)
}

fn assert_whole(result: &ResultDocument) {
    assert!(result.schema == ResultSchema::V1 && result.complete, "{result:#?}");
    for (load, direction) in [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)] {
        let measured = result.measured(load, direction).unwrap_or_else(|| panic!("no {direction}: {result:#?}"));
        assert!(measured.goodput_bps > 1_000_000 && measured.bytes_received > 0, "{measured:#?}");
        assert!(measured.total_bytes_received.is_some(), "{measured:#?}");
        assert_eq!(measured.total_bytes_received, measured.total_bytes_sent, "{measured:#?}");
        assert!(measured.cpu.sender.is_some() && measured.cpu.receiver.is_some(), "{measured:#?}");
        assert!(result.bufferbloat.of(load).is_some(), "{result:#?}");
    }
    for load in [Load::Idle, Load::Download, Load::Upload] {
        assert!(median(result, load) > Some(0), "{load}: {result:#?}");
    }
    let reflector = result.reflector.as_ref().unwrap();
    for facts in [&reflector.facts_before, &reflector.facts_after] {
        let facts = facts.as_ref().unwrap_or_else(|| panic!("{reflector:#?}"));
        assert!(facts.memory_total_bytes.is_some() && !facts.version.is_empty(), "{facts:#?}");
    }
}

fn median(result: &ResultDocument, load: Load) -> Option<u64> {
    result.latency.of(load).and_then(LatencyResult::median_us)
}

fn probed_over(result: &ResultDocument) -> Option<ProbeTransport> {
    result.latency.idle.as_ref().map(|latency| latency.transport)
}

#[test]
fn a_paired_appliance_measures_through_the_tunnel() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let outcome = appliance.speed_test(&[SHORT, &["--peer", reflector.address()]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.result();
    assert_whole(&result);
    assert_eq!((result.data_mode, result.data_path), (Some(DataMode::Tunneled), Some(DataPath::Tls)));
    assert_eq!(probed_over(&result), Some(ProbeTransport::Udp));
    assert_eq!(result.reflector.as_ref().unwrap().endpoint_id.to_string(), reflector.id());
    assert_eq!(result.appliance.endpoint_id.to_string(), appliance.id());

    let saved = appliance.run(&["history", "list", "--json"]).json();
    assert_eq!(saved.as_array().unwrap().len(), 1);
    let id = result.id.to_string();
    assert_eq!(saved[0]["id"], id);
    let shown = appliance.run(&["history", "show", &id, "--json"]);
    assert_eq!(shown.stdout, outcome.stdout, "what was saved is what was printed");
    let exported = appliance.run(&["history", "export"]);
    assert_eq!(serde_json::from_str::<ResultDocument>(exported.stdout.trim()).unwrap(), result);

    let ended = reflector.audited("session_ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0]["reason"], "finished");
    assert!(ended[0]["bytes"].as_u64() >= result.download.unwrap().total_bytes_sent);
    reflector.must(&["audit", "verify"]);
}

#[test]
fn a_paired_appliance_measures_in_direct_mode() {
    let reflector = offering_direct("5201-5250");
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let outcome = appliance.speed_test(&[SHORT, &["--bidir"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.result();
    assert_whole(&result);
    assert_eq!(result.data_mode, Some(DataMode::DirectEphemeral));
    assert_eq!(probed_over(&result), Some(ProbeTransport::Udp), "the session's own port answers probes");
    assert!(result.has_load(Load::Bidir) && median(&result, Load::Bidir).is_some(), "{result:#?}");
    let tunneled = appliance.speed_test(&[SHORT, &["--data-mode", "tunneled"]].concat());
    assert_eq!(tunneled.result().data_mode, Some(DataMode::Tunneled));
}

#[test]
fn the_result_and_every_event_match_the_printed_schema() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let schema = appliance.run(&["schema"]).json();
    let checks = |definition: &str, document: &Value| {
        let mut schema = schema.clone();
        schema["anyOf"] = serde_json::json!([{ "$ref": format!("#/$defs/{definition}") }]);
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults = validator.iter_errors(document).map(|fault| fault.to_string()).collect::<Vec<_>>();
        assert!(faults.is_empty(), "{faults:?}\n{document:#}");
    };
    let outcome = appliance.run(&[&["speed-test", "--json-stream"], SHORT].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let events = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    for event in &events {
        checks("Event", event);
    }
    let names = events.iter().map(|event| event["event"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(names[0], "start");
    assert_eq!(*names.last().unwrap(), "result");
    for wanted in ["phase", "interval", "latency"] {
        assert!(names.contains(&wanted), "no {wanted} among {names:?}");
    }
    checks("ResultDocument", &appliance.speed_test(SHORT).json());
    let refused = appliance.speed_test(&["--peer", "127.0.0.1:1"]);
    checks("ErrorDocument", &refused.json());
}

#[test]
fn only_a_missed_threshold_gives_exit_code_3() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let missed = appliance.speed_test(&[SHORT, &["--download", "--min-download", "900T"]].concat());
    assert_eq!(missed.code, 3, "{missed:?}");
    let judged = &missed.result().thresholds[0];
    assert_eq!((judged.name.as_str(), judged.passed), ("min_download_bps", false));
    let met = appliance.speed_test(&[SHORT, &["--download", "--min-download", "1k"]].concat());
    assert_eq!(met.code, 0, "{met:?}");
    assert!(met.result().thresholds[0].passed);
    assert!(met.json().get("upload").is_none(), "what was not measured is absent");
}

#[test]
fn twenty_tests_in_a_row_pass_with_one_slot() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for turn in 0..20 {
        let outcome = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "--no-wait"]);
        assert_eq!(outcome.code, 0, "turn {turn}: {outcome:?}\n{}", reflector.log());
        assert!(outcome.result().complete);
    }
    assert_eq!(reflector.audited("session_granted").len(), 20);
    assert_eq!(reflector.audited("session_ended").len(), 20);
}

#[test]
fn eight_concurrent_appliances_all_complete_through_the_queue() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let appliances = (0..8).map(|_| Appliance::new().pair(&reflector, reflector.address())).collect::<Vec<_>>();
    let outcomes = std::thread::scope(|scope| {
        let running = appliances
            .iter()
            .map(|appliance| scope.spawn(|| appliance.speed_test(&["-t", "0.5", "--idle", "0.2", "-P", "2"])))
            .collect::<Vec<_>>();
        running.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    for outcome in outcomes {
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        assert!(outcome.result().complete);
    }
    let lines = reflector.audit();
    let mut running = 0i32;
    for line in &lines {
        match line["event"].as_str().unwrap() {
            "session_granted" => running += 1,
            "session_ended" => running -= 1,
            _ => {}
        }
        assert!((0..=1).contains(&running), "never more than one at a time");
    }
}

#[test]
fn a_busy_reflector_with_no_wait_gives_exit_code_5_and_a_retry_time() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let first = Appliance::new().pair(&reflector, reflector.address());
    let second = Appliance::new().pair(&reflector, reflector.address());
    let running = first.start(&["speed-test", "--json-stream", "-t", "20", "--download"]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"interval\"") {}
    let refused = second.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(refused.code, 5, "{refused:?}");
    let error = refused.error().error;
    assert!(error.code == "busy" && error.retry_after_ms > Some(0), "{error:?}");
}

#[test]
fn ctrl_c_ends_the_session_and_prints_the_partial_result() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let mut running = appliance.start(&["speed-test", "--json-stream", "-t", "60", "--download"]);
    for _ in 0..15 {
        while !running.line(Duration::from_secs(30)).unwrap().contains("\"event\":\"interval\"") {}
    }
    running.signal(rustix::process::Signal::INT);
    let status = running.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(130));
    let rest = running.rest(Duration::from_secs(30)).unwrap();
    let Event::Result(last) = event(rest.last().unwrap()) else { panic!("no result: {rest:?}") };
    assert!(last.interrupted && last.download.as_ref().is_some_and(|download| download.goodput_bps > 0), "{last:#?}");
    // The slot is free at once.
    reflector.await_audited("session_ended", |_| true);
    let next = appliance.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(next.code, 0, "{next:?}\n{}", reflector.log());
}

#[test]
fn one_port_is_enough_for_direct_sessions_one_at_a_time() {
    let reflector = offering_direct("5201-5201");
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for _ in 0..3 {
        let outcome = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "--data-mode", "direct"]);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    }
}

#[test]
fn the_text_report_is_readable() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let outcome = appliance.run(&[&["speed-test"], SHORT].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for word in ["bit/s", "median", "Download", "Upload", "bufferbloat", "127.0.0.1"] {
        assert!(outcome.stdout.to_lowercase().contains(&word.to_lowercase()), "no {word} in\n{}", outcome.stdout);
    }
    assert!(!outcome.stdout.contains('\u{1b}'), "no escapes into a pipe");
    assert!(outcome.stdout.lines().all(|line| line.chars().count() <= 100), "{}", outcome.stdout);
}

#[test]
fn the_log_is_on_stderr_as_text_or_json_and_leaves_the_result_alone() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test = ["speed-test", "--json", "-t", "0.3", "--idle", "0.1"];
    let quiet = appliance.run(&test);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""), "{quiet:?}");

    let verbose = appliance.run(&[&test[..], &["-v"]].concat());
    assert_eq!(verbose.json()["complete"], true, "{verbose:?}");
    for event in ["link open", "session granted", "phase begun", "streams started", "streams ended"] {
        assert!(verbose.stderr.contains(event), "{event} in {}", verbose.stderr);
    }
    assert!(!verbose.stderr.contains(" TRACE "), "{}", verbose.stderr);

    let mut command = appliance.command(&test);
    command.env("PACKETPARAMEDIC_LOG", "paramedic_appliance=debug").env("PACKETPARAMEDIC_LOG_FORMAT", "json");
    let json = lab::Outcome::from(command.output().unwrap());
    assert_eq!(json.json()["complete"], true, "{json:?}");
    let events = json.stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    assert!(events.iter().any(|event| event["fields"]["message"] == "link open"), "{events:#?}");

    let mut command = appliance.command(&test);
    let refused = lab::Outcome::from(command.env("PACKETPARAMEDIC_LOG", "loud").output().unwrap());
    assert_eq!(refused.code, 2, "{refused:?}");
}
