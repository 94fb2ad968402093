//! Mistakes of users and other programs, against the real programs: another server at the address, a request above a
//! limit, a port in use. Each gives a three-line error, an exit code, and a line in the audit log.

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

/// Creates an appliance that has stored one reflector. It therefore also connects to other addresses, to look for the
/// key of that reflector there.
fn half_paired() -> Appliance {
    let other = FalseReflector::listen(|link, _| link.say(&json!({ "type": "not_paired" })));
    let appliance = Appliance::new();
    let (address, id) = (other.address.to_string(), other.id.to_string());
    let outcome = appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    appliance
}

/// Creates a valid pairing code of a reflector that does not run.
fn some_code() -> String {
    PairingCode::generate(&SecretKey::generate().unwrap().id()).unwrap().to_string()
}

/// Asserts that `speed-test` and `pair-reflector` fail with the error code `code` when they connect to `address`.
fn nobody_to_talk_to(address: &str, code: &str) {
    half_paired().fails(&speed_test(&["--peer", address]), 1, code);
    Appliance::new().fails(&["pair-reflector", "--peer", address, "--code", &some_code()], 1, code);
}

#[test]
fn an_http_server_is_not_a_reflector() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for socket in server.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 16_384]).unwrap();
            // The client may have closed the connection already.
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    nobody_to_talk_to(&address, "no_reflector");
}

#[test]
fn connecting_to_a_silent_port_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    // Each of the four takes the timeout of ten seconds; they run concurrently.
    let (tester, code) = (half_paired(), some_code());
    let test = speed_test(&["--peer", &address]);
    let pair = ["pair-reflector", "--peer", &address, "--code", &code];
    let timed = |appliance: &Appliance, args: &[&str]| {
        let began = Instant::now();
        let outcome = appliance.run(args);
        // Ten seconds, plus the time a loaded machine needs to start a program.
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
fn a_closed_port_is_reported() {
    let port = loopback::closed_port();
    nobody_to_talk_to(&port.to_string(), "unreachable");
}

#[test]
fn a_name_that_does_not_resolve_is_reported() {
    // A host without a network, so that no name server is queried.
    let Some(hosts) = TwoHosts::new() else { return };
    let appliance = Appliance::in_netns(&hosts.far.netns);
    let code = some_code();
    // RFC 6761: no name under `invalid` exists.
    let wanted = ["pair-reflector", "--peer", "nobody.invalid", "--code", &code];
    let document = appliance.fails(&wanted, 1, "name_not_resolved");
    assert!(document.error.what.contains("nobody.invalid"), "{document:?}");
}

#[test]
fn an_unpaired_device_is_refused_and_its_key_is_in_the_audit_log() {
    let reflector = Reflector::serve(&[]);
    let unpaired = Appliance::new();
    let half = unpaired.run(&["pair-reflector", "--peer", reflector.address(), "--endpoint-id", &reflector.id()]);
    assert_eq!(half.code, 0, "{half:?}");
    let document = unpaired.fails(&speed_test(&[]), 4, "not_paired");
    assert!(document.error.what.contains(reflector.address()));
    let refused = reflector.await_audited("refused", |line| line["reason"] == "not_paired");
    assert_eq!((&refused["peer"], &refused["from"]), (&unpaired.id().into(), &"127.0.0.1".into()));
    assert!(reflector.audited("link_opened").is_empty());
    // An appliance without any pairing has no reflector to test against.
    Appliance::new().fails(&speed_test(&["--peer", reflector.address()]), 4, "not_paired");
}

#[test]
fn a_request_above_a_limit_is_denied_permanently() {
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
    // The same appliance can still run a test within the limits.
    let within = appliance.speed_test(&["-t", "0.3", "--idle", "0.1", "-P", "2"]);
    assert_eq!(within.code, 0, "{within:?}");
}

#[test]
fn a_request_that_no_reflector_would_grant_is_a_usage_error() {
    let appliance = Appliance::new();
    for args in [["-P", "65"], ["-P", "0"], ["-t", "25h"], ["-t", "soon"], ["--data-mode", "sideways"]] {
        appliance.fails(&[&["speed-test"], &args[..]].concat(), 2, "bad_config");
    }
    appliance.fails(&["speed-test", "--idle", "90001"], 2, "bad_request");
    appliance.fails(&["pair-reflector", "--peer", "https://example.net/", "--code", "x"], 2, "bad_address");
    appliance.fails(&["pair-reflector", "--peer", "127.0.0.1", "--code", "ABCD-EFGH"], 2, "bad_code");
}

#[test]
fn with_json_even_a_usage_error_is_a_json_document() {
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
fn a_used_up_quota_of_tests_per_hour_gives_a_retry_time() {
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
fn a_used_up_quota_of_bytes_ends_the_running_test_and_denies_the_next() {
    const DAY: u64 = 100_000_000;
    let reflector = Reflector::serve(&[("MAX_BYTES_PER_DAY", "100MB")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let during = appliance.speed_test(&["-t", "60", "--download"]);
    assert_eq!((during.code, during.json()["code"].as_str()), (5, Some("bytes_per_day")), "{during:?}");
    let measured = &during.json()["measured_so_far"];
    assert_eq!(measured["complete"], false, "the partial result is kept: {measured:#}");
    assert!(measured["latency"]["idle"]["rtt_us"]["p50"].is_number(), "{measured:#}");
    let ended = reflector.await_audited("session_ended", |line| line["reason"] == "bytes_per_day");
    let used = ended["bytes"].as_u64().unwrap();
    // The limit is enforced while bytes flow; blocks in flight in each of the 4 streams may exceed it.
    assert!((DAY..DAY + 4 * 1_000_000).contains(&used), "{used}");

    let document = appliance.fails(&speed_test(&[]), 5, "bytes_per_day");
    let retry_after = document.error.retry_after_ms.unwrap();
    assert!((1..=24 * 3_600_000).contains(&retry_after), "{document:?}");
    reflector.await_audited("session_denied", |line| line["reason"] == "bytes_per_day");
    // The quota of another device is separate: its test begins.
    let other = Appliance::new().pair(&reflector, reflector.address());
    let running = other.start(&["speed-test", "--json-stream", "-t", "60", "--download"]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"event\":\"start\"") {}
}

#[test]
fn a_full_queue_and_a_busy_slot_give_a_retry_time() {
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
fn ports_held_by_other_programs_are_skipped_reported_and_never_granted() {
    // A loopback address that no other test uses, so that its ports are held only by this test.
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
    // Tunneled mode needs no data port, and a freed port is used again.
    let tunneled = appliance.run(&speed_test(&["--data-mode", "tunneled"]));
    assert_eq!(tunneled.code, 0, "{tunneled:?}");
    drop(last);
    let again = appliance.run(&direct);
    assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    assert!(reflector.audited("session_granted").iter().all(|line| line["port"].is_null() || line["port"] == 5203));
}
