//! A device that was paired and went bad: it takes what it can get, never reads, never stops asking. What others need
//! stays free, and the audit log stays readable.

use std::time::{Duration, Instant};

use lab::hostile::{AsAppliance, RogueDevice};
use lab::{Appliance, Reflector};
use paramedic_link::admission::{Preamble, SESSION_EXPORTER_LABEL, SessionId, SessionKeys};
use paramedic_link::tls::Alpn;
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long a program may take to say something on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a loaded machine may add to a time that is promised.
const SLACK: Duration = Duration::from_secs(4);

/// Asks for a minute of silence.
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
fn who_never_reads_holds_up_nobody_when_its_session_ends() {
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
    assert!(took < Duration::from_secs(2) + SLACK, "the slot came free after {took:?}");
    let outcome = other.speed_test(&["-t", "0.3", "--idle", "0.1", "--no-wait"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn who_never_reads_keeps_no_reflector_from_ending_with_its_books_in_order() {
    let mut reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    granted(&mut link);
    link.flood(&json!({ "type": "ping" }), Duration::from_secs(1)).unwrap();
    // The first lets the session finish, which it would in more than a minute.
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
    // Which of two is the first is for the reflector to say; the others are hung up on.
    let refused = |count: u64| reflector.status()["refused"]["bad_preamble"].as_u64().unwrap_or(0) >= count;
    let (a, b) = (probes(), probes());
    let hung_up = [a, b].map(|mut stream| std::thread::spawn(move || stream.hear_out().unwrap()));
    let begun = Instant::now();
    while !refused(2) {
        assert!(begun.elapsed() < PATIENCE);
        // Who says nothing for ten seconds is gone.
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
fn who_asks_without_end_gets_every_answer_and_fills_no_log() {
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
fn a_device_has_a_bounded_number_of_links() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut links = Vec::new();
    for _ in 0..64 {
        links.push(rogue.link());
        // Who says nothing for ten seconds makes room again.
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
fn a_wanted_name_that_is_taken_gets_a_number_and_pairs_all_the_same() {
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
fn who_is_told_that_it_serves_may_end_it_at_once() {
    for _ in 0..5 {
        let mut reflector = Reflector::serve(&[]);
        reflector.process().signal(Signal::TERM);
        assert!(reflector.process().wait(PATIENCE).unwrap().success());
        assert_eq!(reflector.audited("stopped").len(), 1);
    }
}
