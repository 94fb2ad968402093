//! The other end as an enemy would play it: bytes that are no message, half messages, strangers who ask around, text
//! that would move a cursor. It is turned away and noted; nobody else's test feels it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::hostile::{AsAppliance, AsReflector, FalseReflector};
use lab::{Appliance, Outcome, Reflector, loopback};
use paramedic_link::pairing_code::Ends;
use paramedic_link::pairing_code::{PAIRING_EXPORTER_LABEL, PairingCode};
use paramedic_link::tls::Alpn;
use paramedic_link::{EndpointId, SecretKey};
use serde_json::{Value, json};

/// How long a program may take to say something on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Escapes that colour, retitle, ring and turn; and what must be left of them.
const NASTY: &str = "\u{1b}[31mred\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}drawkcab\r\nlast";

fn hello() -> Value {
    json!({ "type": "hello", "versions": [1], "software": "0.0.0" })
}

/// A key that the reflector knows, in no program of ours.
fn rogue_peer(reflector: &Reflector) -> SecretKey {
    let key = SecretKey::generate().unwrap();
    reflector.must(&["peers", "add", &key.id().to_string(), "--name", "rogue"]);
    key
}

/// Where a reflector listens, and the key that it holds: all that keys of our choice need to knock.
struct Door {
    address: String,
    id: EndpointId,
}

impl Door {
    fn of(reflector: &Reflector) -> Self {
        Self { address: reflector.address().to_owned(), id: reflector.id().parse().unwrap() }
    }

    fn open(&self, key: &SecretKey, alpn: Alpn) -> AsAppliance {
        AsAppliance::open(&self.address, self.id, key, alpn).unwrap()
    }

    /// A link of a peer that was welcomed.
    fn welcomed(&self, key: &SecretKey) -> AsAppliance {
        let mut link = self.open(key, Alpn::Link);
        link.say(&hello()).unwrap();
        link.hear_a("welcome").unwrap();
        link
    }
}

fn refused(reflector: &Reflector, reason: &str) -> u64 {
    reflector.status()["refused"][reason].as_u64().unwrap_or(0)
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// Bytes that are no message, each wrong in its own way.
fn garbage() -> Vec<Vec<u8>> {
    vec![
        b"GET / HTTP/1.1\r\nHost: reflector\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        frame(b""),
        frame(b"hello"),
        frame(b"{\"type\":\"hello\",\"versions\":\"\x1b[31m\"}"),
        frame(&b"[".repeat(16 * 1024)),
        // One byte longer than a frame may be, and it is not even sent.
        (16 * 1024 + 1u32).to_be_bytes().to_vec(),
        frame(json!({ "type": "hello", "versions": vec![1; 17], "software": "" }).to_string().as_bytes()),
    ]
}

#[test]
fn garbage_closes_its_own_link_and_no_other() {
    let reflector = &Reflector::serve(&[]);
    let door = Door::of(reflector);
    let victim = Appliance::new().pair(reflector, reflector.address());
    let (stranger, rogue) = (SecretKey::generate().unwrap(), rogue_peer(reflector));
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "6", "--idle", "0.3", "--download"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}

    // Nobody who is not verified is answered, whatever the datagram looks like.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.connect(reflector.address()).unwrap();
    for length in 0..200 {
        datagrams.send(&vec![length as u8; length * 7]).unwrap();
    }
    let mut expected = 0;
    for bytes in garbage() {
        // As the first message nobody is answered, known or not.
        for key in [&stranger, &rogue] {
            let mut link = door.open(key, Alpn::Link);
            link.say_bytes(&bytes).unwrap();
            assert_eq!(link.hear_out().unwrap(), b"", "{bytes:?}");
        }
        // A peer that was welcomed is told, as one program tells another of a newer version.
        let mut link = door.welcomed(&rogue);
        link.say_bytes(&bytes).unwrap();
        assert_eq!(link.hear_a("close").unwrap()["reason"], "protocol", "{bytes:?}");
        link.hear_out().unwrap();
        expected += 3;
    }
    assert_eq!(refused(reflector, "protocol"), expected);
    for key in [&stranger, &rogue] {
        reflector.await_audited("refused", |line| line["reason"] == "protocol" && line["peer"] == key.id().to_string());
    }
    // Data that belongs to no session, and what is not even TLS.
    let mut data = door.open(&rogue, Alpn::Data);
    data.say_bytes(&[1; 48]).unwrap();
    assert_eq!(data.hear_out().unwrap(), b"");
    let preamble = reflector.await_audited("refused", |line| line["reason"] == "bad_preamble");
    assert_eq!(preamble["peer"], rogue.id().to_string());
    let mut plain = TcpStream::connect(reflector.address()).unwrap();
    plain.write_all(b"SSH-2.0-nobody\r\n").unwrap();
    // It may be closed or reset; it is over.
    let _ = plain.read_to_end(&mut Vec::new());
    reflector.await_audited("refused", |line| line["reason"] == "handshake");

    let status = running.wait(PATIENCE).unwrap();
    let rest = running.rest(PATIENCE).unwrap();
    let result = serde_json::from_str::<Value>(rest.last().unwrap()).unwrap();
    assert_eq!((status.code(), &result["complete"]), (Some(0), &true.into()), "{result:#}\n{}", reflector.log());
    datagrams.set_nonblocking(true).unwrap();
    assert_eq!(datagrams.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    reflector.must(&["audit", "verify"]);
}

#[test]
fn strangers_at_a_data_port_are_reset_and_the_test_goes_on() {
    let host = loopback::address();
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", "5201-5201")];
    let reflector = Reflector::serve_on(&[&format!("{host}:0")], None, &settings);
    let victim = Appliance::new().pair(&reflector, reflector.address());
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "4", "--idle", "0.3"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}
    // Some say nothing for as long as they are let, while the next phase opens its own streams at the same port.
    let mut silent = (0..4).map(|_| TcpStream::connect((host, 5201)).unwrap()).collect::<Vec<_>>();
    for bytes in [&[1; 48][..], b"GET / HTTP/1.1\r\n\r\n, and something to make it long enough", &[0xff; 5000]] {
        let mut stranger = TcpStream::connect((host, 5201)).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be reset before all of it is written.
        let _ = stranger.write_all(bytes);
        assert_eq!(stranger.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset, "reset, not answered");
    }
    let status = running.wait(PATIENCE).unwrap();
    let rest = running.rest(PATIENCE).unwrap();
    let result = serde_json::from_str::<Value>(rest.last().unwrap()).unwrap();
    assert_eq!((status.code(), &result["complete"]), (Some(0), &true.into()), "{result:#}\n{}", reflector.log());
    // The port went with the session, and they with it.
    for stranger in &mut silent {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(stranger.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert_eq!(TcpStream::connect((host, 5201)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn half_a_message_and_then_silence_is_given_up_after_ten_seconds() {
    let reflector = &Reflector::serve(&[]);
    let door = Door::of(reflector);
    let victim = Appliance::new().pair(reflector, reflector.address());
    let (stranger, rogue) = (SecretKey::generate().unwrap(), rogue_peer(reflector));
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "12", "--idle", "0.3", "--download"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}

    // A frame of 100 bytes, and 20 of them.
    let half = &frame(&[b' '; 100])[..24];
    let timed = |name: &str, within: u64, wait: &mut dyn FnMut()| {
        let began = Instant::now();
        wait();
        // What is promised, and what a loaded machine adds.
        assert!(began.elapsed() < Duration::from_secs(within + 12), "{name}: {:?}", began.elapsed());
    };
    std::thread::scope(|scope| {
        for (name, key) in [("stranger", &stranger), ("peer", &rogue)] {
            let (door, timed) = (&door, &timed);
            scope.spawn(move || {
                let mut link = door.open(key, Alpn::Link);
                link.say_bytes(half).unwrap();
                timed(name, 10, &mut || assert_eq!(link.hear_out().unwrap(), b""));
            });
        }
        scope.spawn(|| {
            let mut link = door.welcomed(&rogue);
            link.say_bytes(half).unwrap();
            timed("welcomed peer", 10, &mut || drop(link.hear_out().unwrap()));
        });
        scope.spawn(|| {
            let mut data = door.open(&rogue, Alpn::Data);
            data.say_bytes(&[1; 20]).unwrap();
            timed("data", 10, &mut || assert_eq!(data.hear_out().unwrap(), b""));
        });
        scope.spawn(|| {
            // The record header of a TLS handshake, and none of it.
            let mut plain = TcpStream::connect(&door.address).unwrap();
            plain.set_read_timeout(Some(PATIENCE)).unwrap();
            plain.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
            timed("handshake", 5, &mut || assert_eq!(plain.read(&mut [0; 1]).unwrap(), 0));
        });
    });
    for key in [&stranger, &rogue] {
        reflector.await_audited("refused", |line| line["reason"] == "slow" && line["peer"] == key.id().to_string());
    }
    reflector.await_audited("refused", |line| line["reason"] == "slow" && line.get("peer").is_none());
    reflector.await_audited("refused", |line| line["reason"] == "silent" && line["peer"] == rogue.id().to_string());
    assert_eq!(refused(reflector, "slow"), 4);

    let status = running.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", reflector.log());
}

#[test]
fn a_stranger_gets_the_same_answer_whether_a_code_is_open_or_not() {
    let reflector = &Reflector::serve(&[]);
    let door = Door::of(reflector);
    let stranger = SecretKey::generate().unwrap();
    let no_proof = json!({ "type": "pair", "versions": [1], "proof": "00".repeat(32), "name": "nobody" });
    let asks = [hello(), no_proof, json!({ "type": "facts" }), json!({ "type": "ping" }), json!({ "type": "new" })];
    let answers = || {
        asks.each_ref().map(|ask| {
            let mut link = door.open(&stranger, Alpn::Link);
            link.say(ask).unwrap();
            link.hear_out().unwrap()
        })
    };
    let closed = answers();
    let pairing = reflector.open_code(&[]);
    let open = answers();
    let not_paired = frame(br#"{"type":"not_paired"}"#);
    assert!(closed.iter().chain(&open).all(|answer| *answer == not_paired), "{closed:?} {open:?}");
    assert_eq!(refused(reflector, "not_paired") + refused(reflector, "wrong_proof"), 10);
    reflector.await_audited("refused", |line| line["peer"] == stranger.id().to_string());
    // And the code is still good for whoever has it.
    let paired = Appliance::new().run(&["pair", "--peer", reflector.address(), "--code", &pairing.code]);
    assert_eq!(paired.code, 0, "{paired:?}");
}

/// That these bytes move no cursor, ring no bell, and turn no text, neither raw nor as JSON would carry it further.
fn assert_harmless(whence: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    for nasty in ["\u{1b}", "\u{7}", "\u{9b}", "\u{202e}", "\r", "\\u001b", "\\u0007", "\\u009b", "\\u202e"] {
        assert!(!text.contains(nasty), "{nasty:?} in {whence}: {text:?}");
    }
}

fn all_harmless(whence: &str, outcome: &Outcome) {
    assert_harmless(whence, outcome.stdout.as_bytes());
    assert_harmless(whence, outcome.stderr.as_bytes());
}

#[test]
fn what_an_appliance_calls_itself_reaches_no_terminal_and_no_log_unescaped() {
    let reflector = &Reflector::serve(&[("LOG", "reflector=debug")]);
    let door = Door::of(reflector);
    let mut command = reflector.command(&["pair", "--name", NASTY]);
    let mut pairing = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = pairing.stdout.take().unwrap();
    let mut told = Vec::new();
    while !told.contains(&b'\n') {
        let mut byte = [0; 1];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1);
        told.extend(byte);
    }
    let code = String::from_utf8_lossy(&told).trim().parse::<PairingCode>().unwrap();
    let key = SecretKey::generate().unwrap();
    let mut link = door.open(&key, Alpn::Link);
    let exporter = link.exporter(PAIRING_EXPORTER_LABEL, None);
    let proof = code.appliance_proof(&exporter, &Ends { reflector: door.id, appliance: key.id() });
    link.say(&json!({ "type": "pair", "versions": [1], "proof": proof, "name": NASTY })).unwrap();
    link.hear_a("paired").unwrap();
    stdout.read_to_end(&mut told).unwrap();
    pairing.stdout = None;
    let ended = Outcome::from(pairing.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(String::from_utf8_lossy(&told).contains("last"), "the name is told: {told:?}");
    assert_harmless("pair", &told);
    all_harmless("pair", &ended);

    // What else a peer may say that ends in a log.
    let mut link = door.open(&key, Alpn::Link);
    link.say(&json!({ "type": "hello", "versions": [1], "software": NASTY })).unwrap();
    link.hear_a("welcome").unwrap();
    link.say(&json!({ "type": "close", "reason": NASTY })).unwrap();
    link.hear_out().unwrap();
    for broken in [
        json!({ "type": "hello", "versions": NASTY, "software": "" }),
        json!({ "type": "request", "wait": false, "spec": { "engine": NASTY } }),
    ] {
        let mut link = door.welcomed(&key);
        link.say(&broken).unwrap();
        link.hear_out().unwrap();
    }
    reflector.await_audited("refused", |line| line["reason"] == "protocol");
    assert!(reflector.log().contains("no message"), "the log quotes what came:\n{}", reflector.log());

    for args in [&["peers"][..], &["peers", "--json"], &["status"], &["status", "--json"]] {
        all_harmless(&args.concat(), &reflector.run(args));
    }
    let taken = reflector.run(&["peers", "rename", NASTY, "other"]);
    all_harmless("rename", &taken);
    all_harmless("rename", &reflector.run(&["peers", "rename", &key.id().to_string(), NASTY]));
    assert_harmless("log", reflector.log().as_bytes());
    let audit = std::fs::read_dir(reflector.state().join("audit")).unwrap();
    for segment in audit {
        assert_harmless("audit log", &std::fs::read(segment.unwrap().path()).unwrap());
    }
    // The operator's own mistake is told as harmlessly.
    let outcome = Reflector::idle(&[("NAME", NASTY)]).run(&["serve"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.three_lines();
    all_harmless("config", &outcome);
}

/// What a false reflector says after it was greeted.
fn talk(link: &mut AsReflector, first: &Value, last_words: &Value) -> std::io::Result<()> {
    assert_eq!(first["type"], "hello");
    link.say(&json!({
        "type": "welcome", "version": 1, "software": NASTY, "name": NASTY, "data_modes": ["tunneled"],
        "engines": ["tcp"], "max_streams": 64, "max_duration_ms": 600_000,
    }))?;
    while let Some(message) = link.hear()? {
        match message["type"].as_str() {
            Some("facts") => link.say(&json!({ "type": "facts", "version": NASTY }))?,
            Some("request") => link.say(last_words)?,
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn what_a_reflector_says_reaches_no_terminal_unescaped() {
    for (last_words, exit) in [
        (json!({ "type": "denied", "reason": "too_long", "detail": NASTY }), 4),
        (json!({ "type": "denied", "reason": NASTY, "detail": NASTY, "retry_after_ms": 5 }), 4),
        (json!({ "type": "close", "reason": "shutdown", "detail": NASTY }), 5),
        (json!({ "type": "ended", "reason": "failed", "detail": NASTY }), 1),
        (json!({ "type": "granted", "session": NASTY }), 1),
        (json!({ "type": NASTY, "detail": NASTY }), 1),
    ] {
        let is_ignored = last_words["type"] == NASTY;
        let words = last_words.clone();
        let reflector = FalseReflector::listen(move |link, first| {
            talk(link, first, &words)?;
            Ok(())
        });
        let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
        let appliance = Appliance::new();
        let paired = appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]);
        assert_eq!(paired.code, 0, "{paired:?}");
        assert!(paired.stdout.contains("last"), "the name is told: {paired:?}");
        all_harmless("pair-reflector", &paired);
        if is_ignored {
            // A message of a newer version; what follows it would be waited for.
            continue;
        }
        for args in [&["speed-test"][..], &["speed-test", "--json"], &["speed-test", "--json-stream"]] {
            let outcome = appliance.run(args);
            assert_eq!(outcome.code, exit, "{last_words}: {outcome:?}");
            all_harmless(&args.concat(), &outcome);
        }
        // In colour as well: our own escapes come, theirs do not.
        let coloured = appliance.run(&["speed-test", "--color=always"]);
        assert!(coloured.stderr.contains('\u{1b}'), "{coloured:?}");
        for theirs in ["\u{1b}]", "\u{1b}[31mred", "\u{7}", "\u{9b}", "\u{202e}"] {
            assert!(!coloured.stderr.contains(theirs) && !coloured.stdout.contains(theirs), "{coloured:?}");
        }
        for args in [&["reflectors"][..], &["reflectors", "--json"], &["reflectors", "check"], &["history"]] {
            let outcome = appliance.run(args);
            assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
            all_harmless(&args.concat(), &outcome);
        }
    }
}
