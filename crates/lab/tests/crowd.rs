//! Tests crowds of unauthenticated clients. The reflector still serves paired devices, and an unpaired client learns
//! nothing from how the reflector treats it.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::hostile::{RogueDevice, connect_from};
use lab::{Appliance, Reflector};
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode};
use serde_json::{Value, json};

fn address(reflector: &Reflector) -> SocketAddr {
    reflector.address().parse().unwrap()
}

/// Returns the `n`th address of a loopback network from which only these tests connect.
fn source(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x7f28_0001 + u32::try_from(n).unwrap())
}

/// Opens a connection from `source`; `None` if the reflector has reset it already. The reset of a connection that the
/// reflector does not admit can arrive before `connect` returns.
fn connect_unless_refused(reflector: &Reflector, source: Ipv4Addr) -> Option<TcpStream> {
    match connect_from(source, address(reflector)) {
        Ok(stream) => Some(stream),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("connect from {source}: {error}"),
    }
}

/// Opens four connections from each of `addresses` source addresses. They send nothing, and the reflector may refuse
/// some of them.
fn silent_crowd(reflector: &Reflector, addresses: usize) -> Vec<TcpStream> {
    let connect = |n| (0..4).filter_map(move |_| connect_unless_refused(reflector, source(n)));
    (0..addresses).flat_map(connect).collect()
}

/// Waits until the reflector has refused a connection, for 20 s at most.
fn await_refusals(reflector: &Reflector) {
    let begun = Instant::now();
    loop {
        let refused = reflector.status()["refused"].as_object().map_or(0, serde_json::Map::len);
        if refused > 0 || begun.elapsed() > Duration::from_secs(20) {
            return;
        }
    }
}

#[test]
fn a_device_that_was_served_before_the_last_start_gets_in_past_any_crowd() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    reflector.process().kill();
    reflector.start().unwrap();
    let _crowd = silent_crowd(&reflector, 80);
    await_refusals(&reflector);
    for _ in 0..3 {
        let outcome = appliance.speed_test(&["--engine", "echo", "-t", "0.3"]);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    }
}

#[test]
fn a_device_from_a_new_address_gets_in_past_a_silent_crowd() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let _crowd = silent_crowd(&reflector, 80);
    await_refusals(&reflector);
    let outcome = appliance.speed_test(&["--engine", "echo", "-t", "0.3", "-B", "127.41.0.1"]);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

/// Whether the reflector soon ends one of five silent connections from the same address. It admits only four.
fn one_of_five_is_ended(reflector: &Reflector, source: Ipv4Addr) -> bool {
    let five = (0..5).map(|_| connect_unless_refused(reflector, source)).collect::<Vec<_>>();
    let is_ended = |socket: &mut TcpStream| match socket.read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    // A connection that waits for a place, or has one, is ended after five seconds.
    let begun = Instant::now();
    let mut ended = five.into_iter().rev().map(|socket| {
        let Some(mut socket) = socket else { return true };
        let left = Duration::from_secs(3).saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).unwrap();
        is_ended(&mut socket)
    });
    ended.any(|ended| ended)
}

#[test]
fn an_open_code_gives_no_client_a_place_that_it_has_not_otherwise() {
    let reflector = Reflector::serve(&[]);
    assert!(one_of_five_is_ended(&reflector, source(1000)));
    let _pairing = reflector.open_code(&[]);
    assert!(one_of_five_is_ended(&reflector, source(1001)));
}

/// Sends a first message that the reflector must refuse. Returns how long the answer took.
fn refused_after(rogue: &RogueDevice, source: Ipv4Addr, first: impl FnOnce([u8; 32]) -> Value) -> Duration {
    let mut link = rogue.open_from(source).unwrap();
    let first = first(link.exporter(PAIRING_EXPORTER_LABEL, None));
    let begun = Instant::now();
    link.say(&first).unwrap();
    assert_eq!(link.hear().unwrap().unwrap(), json!({ "type": "not_paired" }));
    begun.elapsed()
}

/// Builds a `pair` message for a pairing code that has the right pin of the reflector, but a wrong secret.
fn wrong_guess(rogue: &RogueDevice, exporter: [u8; 32]) -> Value {
    let ends = Ends { reflector: rogue.reflector, appliance: rogue.key.id() };
    let proof = PairingCode::generate(&rogue.reflector).unwrap().appliance_proof(&exporter, &ends);
    json!({ "type": "pair", "versions": [1], "proof": proof, "name": "guesser" })
}

#[test]
fn every_refused_first_message_is_answered_after_a_second() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::unpaired(&reflector);
    let hello = json!({ "type": "hello", "versions": [1], "software": "0.0.0" });
    let second = Duration::from_secs(1);
    let refused = |first: &dyn Fn([u8; 32]) -> Value, source| refused_after(&rogue, source, first);
    assert!(refused(&|_| hello.clone(), source(2000)) >= second);
    assert!(refused(&|_| json!({ "type": "ping" }), source(2000)) >= second);
    assert!(refused(&|exporter| wrong_guess(&rogue, exporter), source(2001)) >= second, "no code is open");
    let _pairing = reflector.open_code(&[]);
    assert!(refused(&|_| hello.clone(), source(2002)) >= second);
    assert!(refused(&|exporter| wrong_guess(&rogue, exporter), source(2003)) >= second, "a code is open");
}

#[test]
fn no_number_of_wrong_guesses_closes_the_code_or_delays_the_right_one() {
    let reflector = Reflector::serve(&[]);
    let pairing = reflector.open_code(&[]);
    std::thread::scope(|scope| {
        // A thousand and some wrong proofs, five from each address; then an address is blocked.
        for n in 0..210 {
            let rogue = RogueDevice::unpaired(&reflector);
            scope.spawn(move || {
                for _ in 0..5 {
                    refused_after(&rogue, source(3000 + n), |exporter| wrong_guess(&rogue, exporter));
                }
            });
        }
    });
    assert_eq!(reflector.status()["refused"]["wrong_proof"], 1050);
    let paired = Appliance::new().run(&["pair", "--peer", reflector.address(), "--code", &pairing.code]);
    assert_eq!(paired.code, 0, "{paired:?}");
}

#[test]
fn handshakes_of_an_unknown_address_are_bounded() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::unpaired(&reflector);
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        done += u64::from(rogue.open_from(source(4000)).is_ok());
    }
    // A second may begin and end anywhere in this time.
    let allowed = 20 * (begun.elapsed().as_secs() + 2);
    assert!(done <= allowed, "{done} handshakes, {allowed} allowed");
    assert!(done >= 20, "{done}");
    assert!(reflector.status()["refused"]["too_fast"].as_u64().unwrap() > 0);
}

/// Sends a `hello` of this device from each of these source addresses. Each uses a separate link, which is closed at
/// once.
fn authenticate_from(rogue: &RogueDevice, sources: std::ops::Range<usize>) {
    for n in sources {
        let mut link = rogue.open_from(source(n)).unwrap();
        link.say(&json!({ "type": "hello", "versions": [1], "software": "0.0.0" })).unwrap();
        link.hear_a("welcome").unwrap();
    }
}

#[test]
fn the_streams_of_a_session_get_in_past_silent_clients_at_known_addresses() {
    let reflector = &Reflector::serve(&[]);
    let appliance = Appliance::new().pair(reflector, reflector.address());
    let rogue = RogueDevice::pair(reflector);
    authenticate_from(&rogue, 5000..5064);
    let is_over = &std::sync::atomic::AtomicBool::new(false);
    let outcomes = std::thread::scope(|scope| {
        // 64 known addresses take four places each, all that there are, and go on coming.
        scope.spawn(move || {
            let mut crowd = std::collections::VecDeque::new();
            for n in (5000..5064).cycle() {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                crowd.extend(connect_unless_refused(reflector, source(n)));
                if crowd.len() > 512 {
                    crowd.pop_front();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let tests = [&["-P", "16"][..], &["-P", "8", "--bidir"]];
        let outcomes = tests.map(|test| appliance.speed_test(&[test, &["-t", "0.3", "--idle", "0.1"]].concat()));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        outcomes
    });
    for outcome in outcomes {
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    }
}
