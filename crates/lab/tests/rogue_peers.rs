//! Tests a paired device that misbehaves: it uses all resources that it can get, never reads, or never stops sending
//! requests. Other devices keep their share, and the audit log stays readable.

use std::time::{Duration, Instant};

use lab::hostile::{AsAppliance, RogueDevice};
use lab::{Appliance, Reflector};
use paramedic_link::admission::{Preamble, SESSION_EXPORTER_LABEL, SessionId, SessionKeys};
use paramedic_link::tls::Alpn;
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Slack for a loaded machine on top of a promised time.
const SLACK: Duration = Duration::from_secs(4);

/// Builds a `request` for a session with an idle phase of one minute.
fn request() -> Value {
    let spec = json!({
        "engine": "echo", "data_mode": "tunneled", "phases": [{ "load": "idle", "duration_ms": 60_000 }],
        "streams": 1, "probe_interval_us": 10_000,
    });
    json!({ "type": "request", "spec": spec, "wait": false })
}

fn granted(link: &mut AsAppliance) -> SessionId {
    link.say(&request()).unwrap();
    let grant = link.hear_a("granted").unwrap();
    serde_json::from_value(grant["session"].clone()).unwrap()
}

#[test]
fn a_peer_that_never_reads_does_not_delay_the_end_of_its_session() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let rogue = RogueDevice::pair(&reflector);
    let other = Appliance::new().pair(&reflector, reflector.address());
    let mut link = rogue.link();
    granted(&mut link);
    link.flood(&json!({ "type": "ping" }), Duration::from_secs(1)).unwrap();
    let begun = Instant::now();
    reflector.must(&["peers", "remove", "rogue"]);
    let ended = reflector.await_audited("session_ended", |_| true);
    let took = begun.elapsed();
    assert_eq!(ended["reason"], "peer_removed");
    assert!(took < Duration::from_secs(2) + SLACK, "the slot was free after {took:?}");
    let outcome = other.speed_test(&["-t", "0.3", "--idle", "0.1", "--no-wait"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn a_peer_that_never_reads_does_not_prevent_a_clean_exit() {
    let mut reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    granted(&mut link);
    link.flood(&json!({ "type": "ping" }), Duration::from_secs(1)).unwrap();
    // The first signal lets the session finish, which takes more than a minute.
    reflector.process().signal(Signal::TERM);
    reflector.await_log("draining");
    reflector.process().signal(Signal::TERM);
    assert!(reflector.process().wait(PATIENCE).unwrap().success());
    assert_eq!(reflector.audited("session_ended")[0]["reason"], "shutdown");
    assert_eq!(reflector.audited("stopped").len(), 1);
}

#[test]
fn a_session_has_one_connection_for_probes() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let session = granted(&mut link);
    let secret = link.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
    let keys = SessionKeys::derive(session, secret.into());
    let probes = || {
        let mut stream = rogue.open(Alpn::Data);
        let nonce = [1; Preamble::NONCE_LEN];
        stream.say_bytes(&Preamble { session, phase: Preamble::ECHO, stream: 0, nonce }.seal(&keys)).unwrap();
        stream
    };
    let _first = probes();
    // The reflector accepts one of the connections and closes the others.
    let refused = |count: u64| reflector.status()["refused"]["bad_preamble"].as_u64().unwrap_or(0) >= count;
    let (a, b) = (probes(), probes());
    let hung_up = [a, b].map(|mut stream| std::thread::spawn(move || stream.hear_out().unwrap()));
    let begun = Instant::now();
    while !refused(2) {
        assert!(begun.elapsed() < PATIENCE);
        // A connection that is silent for ten seconds is closed.
        link.say(&json!({ "type": "ping" })).unwrap();
    }
    assert!(!refused(3));
    drop(link);
    reflector.await_audited("session_ended", |line| line["reason"] == "link_closed");
    for thread in hung_up {
        assert!(thread.join().unwrap().is_empty());
    }
}

#[test]
fn endless_requests_are_all_answered_and_do_not_fill_the_log() {
    let mut reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let rogue = RogueDevice::pair(&reflector);
    let mut holder = rogue.link();
    granted(&mut holder);
    let mut link = rogue.link();
    for _ in 0..500 {
        link.say(&request()).unwrap();
        assert_eq!(link.hear_a("denied").unwrap()["reason"], "busy");
    }
    let written = reflector.audited("session_denied").len();
    assert!((100..500).contains(&written), "{written} lines");
    drop(holder);
    reflector.await_audited("session_ended", |_| true);
    reflector.process().signal(Signal::TERM);
    assert!(reflector.process().wait(PATIENCE).unwrap().success());
    let more = reflector.audited("more_of_peer");
    let count = more.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(count, 500 - written as u64, "{more:?}");
}

#[test]
fn the_number_of_links_of_a_device_is_bounded() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut links = Vec::new();
    for _ in 0..64 {
        links.push(rogue.link());
        // A link that is silent for ten seconds is closed and makes room.
        links.iter_mut().for_each(|link| link.say(&json!({ "type": "ping" })).unwrap());
    }
    let mut one_more = rogue.open(Alpn::Link);
    one_more.say(&json!({ "type": "hello", "versions": [1], "software": "0.0.0" })).unwrap();
    let close = one_more.hear_a("close").unwrap();
    assert!(close["detail"].as_str().unwrap().contains("too many links"), "{close}");
    drop(links);
    let other = Appliance::new().pair(&reflector, reflector.address());
    assert_eq!(other.speed_test(&["-t", "0.3", "--idle", "0.1"]).code, 0);
}

#[test]
fn a_requested_name_that_is_taken_gets_a_number() {
    let reflector = Reflector::serve(&[]);
    for expected in ["attic", "attic 2"] {
        let mut pairing = reflector.open_code(&["--name", "attic"]);
        let outcome = Appliance::new().run(&["pair", "--peer", reflector.address(), "--code", &pairing.code]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let told = serde_json::from_str::<Value>(&pairing.command.line(PATIENCE).unwrap()).unwrap();
        assert_eq!((&told["event"], &told["name"]), (&json!("paired"), &json!(expected)));
        assert!(pairing.command.wait(PATIENCE).unwrap().success());
    }
    let names = reflector.audited("peer_added").into_iter().map(|line| line["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names, ["attic", "attic 2"]);
}

#[test]
fn a_reflector_can_be_terminated_right_after_it_reports_ready() {
    for _ in 0..5 {
        let mut reflector = Reflector::serve(&[]);
        reflector.process().signal(Signal::TERM);
        assert!(reflector.process().wait(PATIENCE).unwrap().success());
        assert_eq!(reflector.audited("stopped").len(), 1);
    }
}
