//! What people and other programs get wrong, played against the real programs: somebody else at the other end, a
//! request beyond a limit, a port that is not free. Each gets three lines, an exit code, and its line in the audit log.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use lab::hostile::FalseReflector;
use lab::{Appliance, Reflector, TwoHosts, loopback};
use paramedic_link::SecretKey;
use paramedic_link::pairing_code::PairingCode;
use serde_json::json;

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1"];

fn speed_test<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["speed-test"], SHORT, more].concat()
}

/// An appliance that knows a reflector, and therefore goes and looks who answers at other addresses.
fn half_paired() -> Appliance {
    let stranger = FalseReflector::listen(|link, _| link.say(&json!({ "type": "not_paired" })));
    let appliance = Appliance::new();
    let (address, id) = (stranger.address.to_string(), stranger.id.to_string());
    let outcome = appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    appliance
}

/// A code that is good for nobody who stands there.
fn some_code() -> String {
    PairingCode::generate(&SecretKey::generate().unwrap().id()).unwrap().to_string()
}

/// Both commands that reach out, against the same address, must fail in the same way.
fn nobody_to_talk_to(address: &str, code: &str) {
    half_paired().fails(&speed_test(&["--peer", address]), 1, code);
    Appliance::new().fails(&["pair-reflector", "--peer", address, "--code", &some_code()], 1, code);
}

#[test]
fn an_http_server_is_no_reflector() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for socket in server.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 16_384]).unwrap();
            // Who has hung up already needs no answer.
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    nobody_to_talk_to(&address, "no_reflector");
}

#[test]
fn a_port_that_accepts_and_says_nothing_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    // Each of the four takes the time-out's ten seconds; together they take them once.
    let (tester, code) = (half_paired(), some_code());
    let test = speed_test(&["--peer", &address]);
    let pair = ["pair-reflector", "--peer", &address, "--code", &code];
    let timed = |appliance: &Appliance, args: &[&str]| {
        let began = Instant::now();
        let outcome = appliance.run(args);
        // Ten seconds, and what a loaded machine takes to start a program.
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}: {outcome:?}", began.elapsed());
        assert_eq!(outcome.code, 1, "{outcome:?}");
        outcome
    };
    std::thread::scope(|scope| {
        scope.spawn(|| timed(&tester, &test).three_lines().map(str::to_owned));
        scope.spawn(|| timed(&Appliance::new(), &pair).three_lines().map(str::to_owned));
        scope.spawn(|| assert_eq!(timed(&half_paired(), &[&test[..], &["--json"]].concat()).json()["code"], "silent"));
        scope.spawn(|| {
            assert_eq!(timed(&Appliance::new(), &[&pair[..], &["--json"]].concat()).json()["code"], "silent");
        });
    });
}

#[test]
fn a_closed_port_is_said_to_be_closed() {
    let port = loopback::closed_port();
    nobody_to_talk_to(&port.to_string(), "unreachable");
}

#[test]
fn a_name_that_does_not_resolve_is_named() {
    // A host without any way out: no name server anywhere is asked.
    let Some(hosts) = TwoHosts::new() else { return };
    let appliance = Appliance::in_netns(&hosts.far.netns);
    let code = some_code();
    // RFC 6761: nothing under `invalid` ever exists.
    let wanted = ["pair-reflector", "--peer", "nobody.invalid", "--code", &code];
    let document = appliance.fails(&wanted, 1, "name_not_resolved");
    assert!(document.error.what.contains("nobody.invalid"), "{document:?}");
}

#[test]
fn a_stranger_is_told_that_it_is_not_paired_and_the_audit_log_says_who_it_was() {
    let reflector = Reflector::serve(&[]);
    let stranger = Appliance::new();
    let half = stranger.run(&["pair-reflector", "--peer", reflector.address(), "--endpoint-id", &reflector.id()]);
    assert_eq!(half.code, 0, "{half:?}");
    let document = stranger.fails(&speed_test(&[]), 4, "not_paired");
    assert!(document.error.what.contains(reflector.address()));
    let refused = reflector.await_audited("refused", |line| line["reason"] == "not_paired");
    assert_eq!((&refused["peer"], &refused["from"]), (&stranger.id().into(), &"127.0.0.1".into()));
    assert!(reflector.audited("link_opened").is_empty());
    // And one that never went there has nobody to measure against.
    Appliance::new().fails(&speed_test(&["--peer", reflector.address()]), 4, "not_paired");
}

#[test]
fn what_is_asked_beyond_a_limit_is_denied_for_good() {
    let reflector = Reflector::serve(&[("MAX_TEST_DURATION", "2s"), ("MAX_STREAMS", "2")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    for (more, code) in [
        (["-t", "5", "-P", "1"], "too_long"),
        (["-t", "0.3", "-P", "3"], "too_many_streams"),
        (["--data-mode", "direct", "-P", "1"], "mode_not_offered"),
    ] {
        let args = [&["speed-test", "--idle", "0.1"][..], if more[0] == "-t" { &[] } else { &["-t", "0.3"] }, &more];
        let document = appliance.fails(&args.concat(), 4, code);
        assert!(document.error.retry_after_ms.is_none(), "never is never: {document:?}");
        let denied = reflector.await_audited("session_denied", |line| line["reason"] == code);
        assert_eq!(denied["peer"], appliance.id());
    }
    assert!(reflector.audited("session_granted").is_empty());
    // Within the limits, the same appliance is as welcome as before.
    let within = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "-P", "2"]);
    assert_eq!(within.code, 0, "{within:?}");
}

#[test]
fn what_no_reflector_would_grant_is_wrong_usage() {
    let appliance = Appliance::new();
    for args in [["-P", "65"], ["-P", "0"], ["-t", "25h"], ["-t", "soon"], ["--data-mode", "sideways"]] {
        appliance.fails(&[&["speed-test"], &args[..]].concat(), 2, "bad_config");
    }
    appliance.fails(&["speed-test", "--idle", "90001"], 2, "bad_request");
    appliance.fails(&["pair-reflector", "--peer", "https://example.net/", "--code", "x"], 2, "bad_address");
    appliance.fails(&["pair-reflector", "--peer", "127.0.0.1", "--code", "ABCD-EFGH"], 2, "bad_code");
}

#[test]
fn in_json_mode_even_a_command_line_that_makes_no_sense_is_answered_in_json() {
    let appliance = Appliance::new();
    let told = appliance.run(&["speed-test", "--json", "--no-such-flag"]);
    assert_eq!((told.code, told.stderr.as_str()), (2, ""), "{told:?}");
    assert_eq!(told.json()["code"], "bad_usage");
    let told = appliance.run(&["speed-test", "--json-stream", "--idle", "soon"]);
    assert_eq!((told.code, told.json()["event"].as_str()), (2, Some("error")), "{told:?}");
    let said = appliance.run(&["speed-test", "--idle", "soon"]);
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    assert!(said.stderr.contains("--idle"), "{said:?}");

    let idle = Reflector::idle(&[]);
    for (args, code, exit) in [
        (&["status", "--json"][..], "not_running", 1),
        (&["peers", "--json"], "not_running", 1),
        (&["pair", "--json"], "not_running", 1),
        (&["status", "--json", "--no-such-flag"], "bad_usage", 2),
    ] {
        let told = idle.run(args);
        assert_eq!((told.code, told.stderr.as_str()), (exit, ""), "{args:?}: {told:?}");
        assert_eq!(told.json()["schema"], "packetparamedic.error/1");
        assert_eq!(told.json()["code"], code);
    }
    for args in [&["status"][..], &["peers"], &["pair"], &["health"], &["drain"]] {
        idle.fails(args, 1);
    }
}

#[test]
fn an_hours_tests_once_used_come_back_within_the_hour() {
    let reflector = Reflector::serve(&[("MAX_TESTS_PER_HOUR", "1")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let first = appliance.speed_test(SHORT);
    assert_eq!(first.code, 0, "{first:?}");
    let document = appliance.fails(&speed_test(&[]), 5, "tests_per_hour");
    let retry_after = document.error.retry_after_ms.unwrap();
    assert!((1..=3_600_000).contains(&retry_after), "{document:?}");
    reflector.await_audited("session_denied", |line| line["reason"] == "tests_per_hour");
}

#[test]
fn a_days_bytes_end_the_test_that_uses_them_up_and_deny_the_next() {
    const DAY: u64 = 100_000_000;
    let reflector = Reflector::serve(&[("MAX_BYTES_PER_DAY", "100MB")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let during = appliance.speed_test(&["-t", "60", "--download"]);
    assert_eq!((during.code, during.json()["code"].as_str()), (5, Some("bytes_per_day")), "{during:?}");
    let measured = &during.json()["measured_so_far"];
    assert_eq!(measured["complete"], false, "what was measured is kept: {measured:#}");
    assert!(measured["latency"]["idle"]["rtt_us"]["p50"].is_number(), "{measured:#}");
    let ended = reflector.await_audited("session_ended", |line| line["reason"] == "bytes_per_day");
    let used = ended["bytes"].as_u64().unwrap();
    // The limit holds while bytes flow; what a sender or receiver had in hand, 4 streams of it, may come on top.
    assert!((DAY..DAY + 4 * 1_000_000).contains(&used), "{used}");

    let document = appliance.fails(&speed_test(&[]), 5, "bytes_per_day");
    let retry_after = document.error.retry_after_ms.unwrap();
    assert!((1..=24 * 3_600_000).contains(&retry_after), "{document:?}");
    reflector.await_audited("session_denied", |line| line["reason"] == "bytes_per_day");
    // Another device's day is its own: its test begins.
    let other = Appliance::new().pair(&reflector, reflector.address());
    let running = other.start(&["speed-test", "--json-stream", "-t", "60", "--download"]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"event\":\"start\"") {}
}

#[test]
fn a_full_queue_and_a_taken_slot_send_away_with_a_time_to_come_back() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1"), ("MAX_QUEUE", "0")]);
    let first = Appliance::new().pair(&reflector, reflector.address());
    let second = Appliance::new().pair(&reflector, reflector.address());
    let _running = first.start(&["speed-test", "--json-stream", "-t", "60", "--download"]);
    reflector.await_audited("session_granted", |_| true);
    for (more, code) in [(&[][..], "queue_full"), (&["--no-wait"], "busy")] {
        let document = second.fails(&speed_test(more), 5, code);
        assert!(document.error.retry_after_ms.unwrap() > 0, "{document:?}");
        reflector.await_audited("session_denied", |line| line["reason"] == code);
    }
}

#[test]
fn ports_that_other_programs_hold_are_skipped_and_said_and_never_granted() {
    // An address of loopback that is this test's alone: whoever else uses a port there, uses it for this test.
    let host = loopback::address();
    let listen = format!("{host}:0");
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", "5201-5203")];
    let reflector = Reflector::serve_on(&[&listen], None, &settings);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let _tcp = TcpListener::bind((host, 5201)).unwrap();
    let _udp = UdpSocket::bind((host, 5202)).unwrap();
    let direct = speed_test(&["--data-mode", "direct"]);
    for _ in 0..3 {
        let outcome = appliance.run(&direct);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    }
    let granted = reflector.audited("session_granted");
    assert!(granted.iter().all(|line| line["port"] == 5203), "{granted:#?}");
    for port in [5201, 5202] {
        reflector.await_audited("port_held", |line| line["port"] == port);
    }
    assert_eq!(reflector.status()["sessions"]["held_ports"], json!([5201, 5202]));
    assert!(reflector.must(&["status"]).contains("5201, 5202"));

    let last = TcpListener::bind((host, 5203)).unwrap();
    let document = appliance.fails(&direct, 5, "no_port");
    assert!(document.error.retry_after_ms.unwrap() > 0, "{document:?}");
    reflector.await_audited("session_denied", |line| line["reason"] == "no_port");
    // The tunnel needs none of them, and a port that comes free is used again.
    let tunneled = appliance.run(&speed_test(&["--data-mode", "tunneled"]));
    assert_eq!(tunneled.code, 0, "{tunneled:?}");
    drop(last);
    let again = appliance.run(&direct);
    assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    assert!(reflector.audited("session_granted").iter().all(|line| line["port"].is_null() || line["port"] == 5203));
}
