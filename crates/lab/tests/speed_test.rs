//! The main job over loopback: pair once, run the speed test, read the result.

use std::time::Duration;

use lab::{Appliance, Reflector, loopback};
use serde_json::Value;

/// Short phases: what is tested here is the way, not the numbers.
const SHORT: &[&str] = &["-t", "1", "--idle", "0.3"];

/// A reflector that offers both modes, on an address whose ports nobody else takes.
fn offering_direct(ports: &str) -> Reflector {
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", ports)];
    Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &settings)
}

fn assert_whole(result: &Value) {
    assert_eq!(result["schema"], "packetparamedic.result/1", "{result:#}");
    assert_eq!(result["complete"], true, "{result:#}");
    for direction in ["download", "upload"] {
        let measured = &result[direction];
        assert!(measured["goodput_bps"].as_u64().unwrap() > 1_000_000, "{direction}: {result:#}");
        assert!(measured["bytes_received"].as_u64().unwrap() > 0);
        assert_eq!(measured["total_bytes_received"], measured["total_bytes_sent"], "{direction}: {result:#}");
        assert!(measured["cpu"]["sender"]["system_s"].is_number());
        assert!(measured["cpu"]["receiver"]["system_s"].is_number());
    }
    for load in ["idle", "download", "upload"] {
        assert!(result["latency"][load]["rtt_us"]["p50"].as_u64().unwrap() > 0, "{load}: {result:#}");
    }
    for direction in ["download", "upload"] {
        assert!(result["bufferbloat"][direction]["grade"].is_string());
    }
    for facts in ["facts_before", "facts_after"] {
        assert!(result["reflector"][facts]["memory_total_bytes"].is_number(), "{result:#}");
        assert!(result["reflector"][facts]["version"].is_string());
    }
}

#[test]
fn a_paired_appliance_measures_through_the_tunnel() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let outcome = appliance.speed_test(&[SHORT, &["--peer", reflector.address()]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.json();
    assert_whole(&result);
    assert_eq!(result["data_mode"], "tunneled");
    assert_eq!(result["data_path"], "tls");
    assert_eq!(result["latency"]["idle"]["transport"], "udp");
    assert_eq!(result["reflector"]["endpoint_id"], reflector.id());
    assert_eq!(result["appliance"]["endpoint_id"], appliance.run(&["show-id"]).stdout.trim());

    let saved = appliance.run(&["history", "list", "--json"]).json();
    assert_eq!(saved.as_array().unwrap().len(), 1);
    assert_eq!(saved[0]["id"], result["id"]);
    let shown = appliance.run(&["history", "show", result["id"].as_str().unwrap(), "--json"]);
    assert_eq!(shown.stdout, outcome.stdout, "what was saved is what was printed");
    let exported = appliance.run(&["history", "export"]);
    assert_eq!(serde_json::from_str::<Value>(exported.stdout.trim()).unwrap(), result);

    let ended = reflector.audited("session_ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0]["reason"], "finished");
    assert!(ended[0]["bytes"].as_u64().unwrap() >= result["download"]["total_bytes_sent"].as_u64().unwrap());
    reflector.must(&["audit", "verify"]);
}

#[test]
fn a_paired_appliance_measures_on_a_port_of_its_own() {
    let reflector = offering_direct("5201-5250");
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let outcome = appliance.speed_test(&[SHORT, &["--bidir"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.json();
    assert_whole(&result);
    assert_eq!(result["data_mode"], "direct_ephemeral");
    assert_eq!(result["latency"]["idle"]["transport"], "udp", "the session's own port answers probes");
    for direction in ["download", "upload"] {
        assert!(result["bidir"][direction]["goodput_bps"].as_u64().unwrap() > 0, "{result:#}");
    }
    assert!(result["latency"]["bidir"]["rtt_us"]["p50"].is_number());
    let tunneled = appliance.speed_test(&[SHORT, &["--data-mode", "tunneled"]].concat());
    assert_eq!(tunneled.json()["data_mode"], "tunneled");
}

#[test]
fn the_result_fits_the_printed_schema_and_so_does_every_event() {
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
fn a_threshold_that_is_missed_is_exit_code_3_and_one_that_is_met_is_not() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let missed = appliance.speed_test(&[SHORT, &["--download", "--min-download", "900T"]].concat());
    assert_eq!(missed.code, 3, "{missed:?}");
    let judged = &missed.json()["thresholds"][0];
    assert_eq!((&judged["name"], &judged["passed"]), (&"min_download_bps".into(), &false.into()));
    let met = appliance.speed_test(&[SHORT, &["--download", "--min-download", "1k"]].concat());
    assert_eq!(met.code, 0, "{met:?}");
    assert_eq!(met.json()["thresholds"][0]["passed"], true);
    assert!(met.json().get("upload").is_none(), "what was not measured is absent");
}

#[test]
fn twenty_tests_in_a_row_pass_with_one_slot() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for turn in 0..20 {
        let outcome = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "--no-wait"]);
        assert_eq!(outcome.code, 0, "turn {turn}: {outcome:?}\n{}", reflector.log());
        assert_eq!(outcome.json()["complete"], true);
    }
    assert_eq!(reflector.audited("session_granted").len(), 20);
    assert_eq!(reflector.audited("session_ended").len(), 20);
}

#[test]
fn eight_appliances_at_once_all_finish_through_the_queue() {
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
        assert_eq!(outcome.json()["complete"], true);
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
fn full_with_no_wait_is_exit_code_5_with_a_time_to_come_back() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let first = Appliance::new().pair(&reflector, reflector.address());
    let second = Appliance::new().pair(&reflector, reflector.address());
    let running = first.start(&["speed-test", "--json-stream", "-t", "20", "--download"]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"interval\"") {}
    let refused = second.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(refused.code, 5, "{refused:?}");
    let document = refused.json();
    assert_eq!(document["code"], "busy");
    assert!(document["retry_after_ms"].as_u64().unwrap() > 0);
}

#[test]
fn ctrl_c_ends_the_session_and_prints_what_was_measured() {
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
    let last = serde_json::from_str::<Value>(rest.last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["interrupted"]), (&"result".into(), &true.into()), "{last:#}");
    assert!(last["download"]["goodput_bps"].as_u64().unwrap() > 0);
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
fn the_human_report_says_it_in_plain_words() {
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
    for event in ["link open", "session granted", "phase begun"] {
        assert!(verbose.stderr.contains(event), "{event} in {}", verbose.stderr);
    }
    assert!(!verbose.stderr.contains(" TRACE "), "{}", verbose.stderr);

    let mut command = appliance.command(&test);
    command.env("PACKETPARAMEDIC_LOG", "packetparamedic=debug").env("PACKETPARAMEDIC_LOG_FORMAT", "json");
    let json = lab::Outcome::from(command.output().unwrap());
    assert_eq!(json.json()["complete"], true, "{json:?}");
    let events = json.stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    assert!(events.iter().any(|event| event["fields"]["message"] == "link open"), "{events:#?}");

    let mut command = appliance.command(&test);
    let refused = lab::Outcome::from(command.env("PACKETPARAMEDIC_LOG", "loud").output().unwrap());
    assert_eq!(refused.code, 2, "{refused:?}");
}
