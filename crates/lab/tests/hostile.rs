//! Tests a malicious other end: invalid bytes, partial messages, unpaired clients, text with control characters. The
//! programs refuse and record these, and the tests of other devices are not affected.

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

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Text with escape sequences, a bell, control characters and a bidirectional override.
const NASTY: &str = "\u{1b}[31mred\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}drawkcab\r\nlast";

fn hello() -> Value {
    json!({ "type": "hello", "versions": [1], "software": "0.0.0" })
}

/// Creates a key that is paired with the reflector, so that the test can play its device.
fn rogue_peer(reflector: &Reflector) -> SecretKey {
    let key = SecretKey::generate().unwrap();
    reflector.must(&["peers", "add", &key.id().to_string(), "--name", "rogue"]);
    key
}

/// A reflector's address and key, which is all that a client needs to connect.
struct Target {
    address: String,
    id: EndpointId,
}

impl Target {
    fn of(reflector: &Reflector) -> Self {
        Self { address: reflector.address().to_owned(), id: reflector.id().parse().unwrap() }
    }

    fn open(&self, key: &SecretKey, alpn: Alpn) -> AsAppliance {
        AsAppliance::open(&self.address, self.id, key, alpn).unwrap()
    }

    /// Opens a link, and reads messages until the reflector's `welcome`.
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

/// Returns byte strings, none of which is a valid message.
fn garbage() -> Vec<Vec<u8>> {
    vec![
        b"GET / HTTP/1.1\r\nHost: reflector\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        frame(b""),
        frame(b"hello"),
        frame(b"{\"type\":\"hello\",\"versions\":\"\x1b[31m\"}"),
        frame(&b"[".repeat(16 * 1024)),
        // A length one byte above the limit, without a body.
        (16 * 1024 + 1u32).to_be_bytes().to_vec(),
        frame(json!({ "type": "hello", "versions": vec![1; 17], "software": "" }).to_string().as_bytes()),
    ]
}

#[test]
fn a_feature_that_the_appliance_does_not_list_does_not_exist_on_its_link() {
    let reflector = &Reflector::serve(&[]);
    let target = Target::of(reflector);
    let rogue = rogue_peer(reflector);
    let answers = |hello: Value| {
        let mut link = target.open(&rogue, Alpn::Link);
        link.say(&hello).unwrap();
        link.hear_a("welcome").unwrap();
        for question in ["path_facts", "facts"] {
            link.say(&json!({ "type": question })).unwrap();
        }
        // The answers come in the order of the questions.
        let mut heard = vec![];
        while heard.last().is_none_or(|last| last != "facts") {
            let message = link.hear().unwrap().unwrap();
            heard.extend(message["type"].as_str().filter(|kind| *kind != "ping").map(str::to_owned));
        }
        heard
    };
    assert_eq!(answers(hello()), ["facts"]);
    let mut with_feature = hello();
    with_feature["features"] = json!(["path_facts"]);
    assert_eq!(answers(with_feature), ["path_facts", "facts"]);
}

#[test]
fn garbage_closes_only_its_own_link() {
    let reflector = &Reflector::serve(&[]);
    let target = Target::of(reflector);
    let victim = Appliance::new().pair(reflector, reflector.address());
    let (unpaired, rogue) = (SecretKey::generate().unwrap(), rogue_peer(reflector));
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "6", "--idle", "0.3", "--download"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}

    // No unauthenticated datagram is answered.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.connect(reflector.address()).unwrap();
    for length in 0..200 {
        datagrams.send(&vec![length as u8; length * 7]).unwrap();
    }
    let mut expected = 0;
    for bytes in garbage() {
        // Garbage as the first message gets no answer, from a paired or an unpaired key.
        for key in [&unpaired, &rogue] {
            let mut link = target.open(key, Alpn::Link);
            link.say_bytes(&bytes).unwrap();
            assert_eq!(link.hear_out().unwrap(), b"", "{bytes:?}");
        }
        // After `welcome` the peer gets a `close` with the reason.
        let mut link = target.welcomed(&rogue);
        link.say_bytes(&bytes).unwrap();
        assert_eq!(link.hear_a("close").unwrap()["reason"], "protocol", "{bytes:?}");
        link.hear_out().unwrap();
        expected += 3;
    }
    assert_eq!(refused(reflector, "protocol"), expected);
    for key in [&unpaired, &rogue] {
        reflector.await_audited("refused", |line| line["reason"] == "protocol" && line["peer"] == key.id().to_string());
    }
    // Data without a session, and bytes that are not TLS.
    let mut data = target.open(&rogue, Alpn::Data);
    data.say_bytes(&[1; 48]).unwrap();
    assert_eq!(data.hear_out().unwrap(), b"");
    let preamble = reflector.await_audited("refused", |line| line["reason"] == "bad_preamble");
    assert_eq!(preamble["peer"], rogue.id().to_string());
    let mut plain = TcpStream::connect(reflector.address()).unwrap();
    plain.write_all(b"SSH-2.0-nobody\r\n").unwrap();
    // Closed or reset.
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
fn unpaired_clients_at_a_data_port_are_reset_and_the_test_continues() {
    let host = loopback::address();
    let settings = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", "5201-5201")];
    let reflector = Reflector::serve_on(&[&format!("{host}:0")], None, &settings);
    let victim = Appliance::new().pair(&reflector, reflector.address());
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "4", "--idle", "0.3"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}
    // Some stay silent as long as they can, while the next phase opens its streams at the same port.
    let mut silent = (0..4).map(|_| TcpStream::connect((host, 5201)).unwrap()).collect::<Vec<_>>();
    for bytes in [&[1; 48][..], b"GET / HTTP/1.1\r\n\r\n, and something to make it long enough", &[0xff; 5000]] {
        let mut unpaired = TcpStream::connect((host, 5201)).unwrap();
        unpaired.set_read_timeout(Some(PATIENCE)).unwrap();
        // The connection may be reset before everything is written.
        let _ = unpaired.write_all(bytes);
        assert_eq!(unpaired.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset, "reset, not answered");
    }
    let status = running.wait(PATIENCE).unwrap();
    let rest = running.rest(PATIENCE).unwrap();
    let result = serde_json::from_str::<Value>(rest.last().unwrap()).unwrap();
    assert_eq!((status.code(), &result["complete"]), (Some(0), &true.into()), "{result:#}\n{}", reflector.log());
    // The port was closed with the session, and so were their connections.
    for unpaired in &mut silent {
        unpaired.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(unpaired.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert_eq!(TcpStream::connect((host, 5201)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_partial_message_followed_by_silence_times_out_after_ten_seconds() {
    let reflector = &Reflector::serve(&[]);
    let target = Target::of(reflector);
    let victim = Appliance::new().pair(reflector, reflector.address());
    let (unpaired, rogue) = (SecretKey::generate().unwrap(), rogue_peer(reflector));
    let mut running = victim.start(&["speed-test", "--json-stream", "-t", "12", "--idle", "0.3", "--download"]);
    while !running.line(PATIENCE).unwrap().contains("\"interval\"") {}

    // 20 bytes of a frame of 100.
    let half = &frame(&[b' '; 100])[..24];
    let timed = |name: &str, within: u64, wait: &mut dyn FnMut()| {
        let began = Instant::now();
        wait();
        // The promised time, plus slack for a loaded machine.
        assert!(began.elapsed() < Duration::from_secs(within + 12), "{name}: {:?}", began.elapsed());
    };
    std::thread::scope(|scope| {
        for (name, key) in [("unpaired", &unpaired), ("peer", &rogue)] {
            let (target, timed) = (&target, &timed);
            scope.spawn(move || {
                let mut link = target.open(key, Alpn::Link);
                link.say_bytes(half).unwrap();
                timed(name, 10, &mut || assert_eq!(link.hear_out().unwrap(), b""));
            });
        }
        scope.spawn(|| {
            let mut link = target.welcomed(&rogue);
            link.say_bytes(half).unwrap();
            timed("welcomed peer", 10, &mut || drop(link.hear_out().unwrap()));
        });
        scope.spawn(|| {
            let mut data = target.open(&rogue, Alpn::Data);
            data.say_bytes(&[1; 20]).unwrap();
            timed("data", 10, &mut || assert_eq!(data.hear_out().unwrap(), b""));
        });
        scope.spawn(|| {
            // The record header of a TLS handshake without its body.
            let mut plain = TcpStream::connect(&target.address).unwrap();
            plain.set_read_timeout(Some(PATIENCE)).unwrap();
            plain.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
            timed("handshake", 5, &mut || assert_eq!(plain.read(&mut [0; 1]).unwrap(), 0));
        });
    });
    for key in [&unpaired, &rogue] {
        reflector.await_audited("refused", |line| line["reason"] == "slow" && line["peer"] == key.id().to_string());
    }
    reflector.await_audited("refused", |line| line["reason"] == "slow" && line.get("peer").is_none());
    reflector.await_audited("refused", |line| line["reason"] == "silent" && line["peer"] == rogue.id().to_string());
    assert_eq!(refused(reflector, "slow"), 4);

    let status = running.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", reflector.log());
}

#[test]
fn an_unpaired_client_gets_the_same_answer_with_and_without_an_open_code() {
    let reflector = &Reflector::serve(&[]);
    let target = Target::of(reflector);
    let unpaired = SecretKey::generate().unwrap();
    let no_proof = json!({ "type": "pair", "versions": [1], "proof": "00".repeat(32), "name": "nobody" });
    let asks = [hello(), no_proof, json!({ "type": "facts" }), json!({ "type": "ping" }), json!({ "type": "new" })];
    let answers = || {
        asks.each_ref().map(|ask| {
            let mut link = target.open(&unpaired, Alpn::Link);
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
    reflector.await_audited("refused", |line| line["peer"] == unpaired.id().to_string());
    // The code is still valid.
    let paired = Appliance::new().run(&["pair", "--peer", reflector.address(), "--code", &pairing.code]);
    assert_eq!(paired.code, 0, "{paired:?}");
}

/// Asserts that the bytes contain no control or bidirectional characters, neither raw nor as JSON escapes.
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
fn text_from_an_appliance_is_sanitised_on_terminals_and_in_logs() {
    let reflector = &Reflector::serve(&[("LOG", "reflector=debug")]);
    let target = Target::of(reflector);
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
    let mut link = target.open(&key, Alpn::Link);
    let exporter = link.exporter(PAIRING_EXPORTER_LABEL, None);
    let proof = code.appliance_proof(&exporter, &Ends { reflector: target.id, appliance: key.id() });
    link.say(&json!({ "type": "pair", "versions": [1], "proof": proof, "name": NASTY })).unwrap();
    link.hear_a("paired").unwrap();
    stdout.read_to_end(&mut told).unwrap();
    pairing.stdout = None;
    let ended = Outcome::from(pairing.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(String::from_utf8_lossy(&told).contains("last"), "the name is shown: {told:?}");
    assert_harmless("pair", &told);
    all_harmless("pair", &ended);

    // Other text from a peer that is logged.
    let mut link = target.open(&key, Alpn::Link);
    link.say(&json!({ "type": "hello", "versions": [1], "software": NASTY })).unwrap();
    link.hear_a("welcome").unwrap();
    link.say(&json!({ "type": "close", "reason": NASTY })).unwrap();
    link.hear_out().unwrap();
    for broken in [
        json!({ "type": "hello", "versions": NASTY, "software": "" }),
        json!({ "type": "request", "wait": false, "spec": { "engine": NASTY } }),
    ] {
        let mut link = target.welcomed(&key);
        link.say(&broken).unwrap();
        link.hear_out().unwrap();
    }
    reflector.await_audited("refused", |line| line["reason"] == "protocol");
    assert!(reflector.log().contains("not a valid message"), "the log quotes the message:\n{}", reflector.log());

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
    // Text from the operator's command line is sanitised too.
    let outcome = Reflector::idle(&[("NAME", NASTY)]).run(&["serve"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.three_lines();
    all_harmless("config", &outcome);
}

/// Plays a reflector whose texts contain control characters. It answers the request for a session with `last_words`.
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
fn text_from_a_reflector_is_sanitised_on_terminals() {
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
        assert!(paired.stdout.contains("last"), "the name is shown: {paired:?}");
        all_harmless("pair-reflector", &paired);
        if is_ignored {
            // A message of a newer version; the appliance waits for the next one.
            continue;
        }
        for args in [&["speed-test"][..], &["speed-test", "--json"], &["speed-test", "--json-stream"]] {
            let outcome = appliance.run(args);
            assert_eq!(outcome.code, exit, "{last_words}: {outcome:?}");
            all_harmless(&args.concat(), &outcome);
        }
        // With colours: only the program's own escape sequences may appear.
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
