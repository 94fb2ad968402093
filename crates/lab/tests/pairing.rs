//! Tests pairing: which devices the reflector accepts, and what survives when a program is killed.

use std::time::Duration;

use lab::{Appliance, Reflector, loopback};

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1", "--json"];

fn test(appliance: &Appliance, reflector: &Reflector) -> lab::Outcome {
    appliance.run(&[&["speed-test", "--peer", reflector.address()], SHORT].concat())
}

#[test]
fn a_code_pairs_only_one_device() {
    let reflector = Reflector::serve(&[]);
    let pairing = reflector.open_code(&["--name", "attic Pi"]);
    let first = Appliance::new();
    let second = Appliance::new();
    let paired = first.run(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code, "--json"]);
    assert_eq!(paired.code, 0, "{paired:?}");
    assert_eq!(paired.json()["endpoint_id"], reflector.id());
    let told = pairing.command.line(Duration::from_secs(30)).unwrap();
    let told = serde_json::from_str::<serde_json::Value>(&told).unwrap();
    assert_eq!(told["event"], "paired");
    assert_eq!(told["name"], "attic Pi");
    assert_eq!(told["endpoint_id"], first.run(&["show-id"]).stdout.trim());

    second.fails(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code], 4, "wrong_code");
    let refused = reflector.await_audited("refused", |line| line["reason"] == "wrong_proof");
    assert_eq!(refused["peer"], second.id());
    assert_eq!(test(&first, &reflector).code, 0);
    let added = reflector.audited("peer_added");
    assert_eq!(added.len(), 1, "{added:#?}");
    assert_eq!((&added[0]["peer"], &added[0]["by"]), (&first.id().into(), &"code".into()));
}

#[test]
fn the_code_is_read_from_a_pipe_a_file_or_the_environment() {
    let reflector = Reflector::serve(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("code");
    for way in ["pipe", "file", "environment"] {
        let appliance = Appliance::new();
        let mut pairing = reflector.open_code(&[]);
        let mut command = match way {
            "pipe" => appliance.command(&["pair", "--peer", reflector.address(), "--code", "-"]),
            "file" => {
                appliance.command(&["pair", "--peer", reflector.address(), "--code-file", file.to_str().unwrap()])
            }
            _ => appliance.command(&["pair", "--peer", reflector.address()]),
        };
        std::fs::write(&file, &pairing.code).unwrap();
        if way == "environment" {
            command.env("PACKETPARAMEDIC_CODE", &pairing.code);
        }
        let output = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        assert!(output.status.success(), "{way}: {output:?}");
        assert!(pairing.command.wait(Duration::from_secs(30)).unwrap().success());
    }
}

#[test]
fn a_revoked_code_is_refused() {
    let reflector = Reflector::serve(&[]);
    let mut pairing = reflector.open_code(&[]);
    pairing.command.kill();
    // The server notices the closed connection.
    reflector.await_audited("code_closed", |line| line["why"] == "revoked");
    let appliance = Appliance::new();
    appliance.fails(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code], 4, "wrong_code");
    reflector.await_audited("refused", |line| line["reason"] == "wrong_proof" && line["peer"] == appliance.id());
    assert!(reflector.audited("peer_added").is_empty());
}

#[test]
fn an_expired_code_is_refused() {
    let reflector = Reflector::serve(&[]);
    let mut pairing = reflector.open_code(&["--ttl", "10s"]);
    let status = pairing.command.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(1), "expired is exit code 1");
    let told =
        serde_json::from_str::<serde_json::Value>(&pairing.command.line(Duration::from_secs(30)).unwrap()).unwrap();
    assert_eq!((&told["event"], &told["code"]), (&"error".into(), &"code_closed".into()), "{told:#}");
    let late = Appliance::new();
    late.fails(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code], 4, "wrong_code");
    reflector.await_audited("refused", |line| line["reason"] == "wrong_proof" && line["peer"] == late.id());
    assert_eq!(reflector.audited("code_closed")[0]["why"], "expired");
}

#[test]
fn the_code_of_another_reflector_is_refused_inside_the_handshake() {
    let (right, other) = (Reflector::serve(&[]), Reflector::serve(&[]));
    let pairing = right.open_code(&[]);
    let args = ["pair-reflector", "--peer", other.address(), "--code", &pairing.code];
    let document = Appliance::new().fails(&args, 4, "wrong_code");
    assert!(document.error.because.contains(&other.id()), "{document:?}");
    // It saw a handshake that was not finished, and no key.
    let refused = other.await_audited("refused", |line| line["reason"] == "handshake");
    assert!(refused.get("peer").is_none(), "{refused:#}");
}

#[test]
fn wrong_secrets_are_counted_and_block_their_prefix() {
    let reflector = Reflector::serve(&[]);
    let pairing = reflector.open_code(&[]);
    let id = reflector.id().parse().unwrap();
    for _ in 0..6 {
        // The right pin with a wrong secret, as any client can make it from the Endpoint ID.
        let guess = paramedic_link::pairing_code::PairingCode::generate(&id).unwrap().to_string();
        let refused = Appliance::new().run(&["pair-reflector", "--peer", reflector.address(), "--code", &guess]);
        assert_eq!(refused.code, 4, "{refused:?}");
        refused.three_lines();
    }
    // A blocked prefix is refused even with the right code.
    let blocked = ["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code];
    Appliance::new().fails(&blocked, 4, "wrong_code");
    reflector.await_audited("refused", |line| line["reason"] == "wrong_proof");
    assert!(reflector.audited("peer_added").is_empty());
}

#[test]
fn devices_can_be_paired_by_endpoint_id() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new();
    let own = appliance.run(&["show-id"]).stdout.trim().to_owned();
    let half = appliance.run(&["pair-reflector", "--peer", reflector.address(), "--endpoint-id", &reflector.id()]);
    assert_eq!(half.code, 0, "{half:?}");
    assert!(half.stderr.contains(&format!("reflector peers add {own}")), "{half:?}");
    assert_eq!(test(&appliance, &reflector).code, 4);
    reflector.must(&["peers", "add", &own, "--name", "bench"]);
    assert_eq!(test(&appliance, &reflector).code, 0);
    assert!(reflector.must(&["peers"]).contains("bench"));
}

#[test]
fn a_peer_in_the_configuration_needs_no_pairing() {
    let appliance = Appliance::new();
    let own = appliance.run(&["show-id"]).stdout.trim().to_owned();
    let reflector = Reflector::serve(&[("AUTHORIZED_PEERS", &own)]);
    let half = appliance.run(&["pair-reflector", "--peer", reflector.address(), "--endpoint-id", &reflector.id()]);
    assert_eq!(half.code, 0, "{half:?}");
    assert_eq!(test(&appliance, &reflector).code, 0);
}

#[test]
fn removing_a_peer_ends_its_running_test_at_once() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let own = appliance.run(&["show-id"]).stdout.trim().to_owned();
    let mut running = appliance.start(&["speed-test", "--json-stream", "-t", "60", "--download"]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"interval\"") {}
    reflector.must(&["peers", "remove", &own]);
    let status = running.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(4));
    let rest = running.rest(Duration::from_secs(30)).unwrap();
    let last = serde_json::from_str::<serde_json::Value>(rest.last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["code"]), (&"error".into(), &"not_paired".into()), "{last:#}");
    appliance.fails(&["speed-test", "--peer", reflector.address()], 4, "not_paired");
    assert_eq!(reflector.await_audited("session_ended", |_| true)["reason"], "peer_removed");
    assert_eq!(reflector.await_audited("peer_removed", |_| true)["peer"], own);
    reflector.await_audited("refused", |line| line["reason"] == "not_paired" && line["peer"] == own);
}

#[test]
fn a_confirmed_pairing_survives_sigkill() {
    let mut reflector = Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &[]);
    for _ in 0..5 {
        let pairing = reflector.open_code(&[]);
        let appliance = Appliance::new();
        let paired = appliance.run(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code]);
        reflector.process().kill();
        assert_eq!(paired.code, 0, "{paired:?}");
        reflector.start().unwrap();
        let outcome = test(&appliance, &reflector);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        reflector.must(&["audit", "verify"]);
    }
}

#[test]
fn a_new_identity_of_the_reflector_is_detected() {
    let mut reflector = Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let running = reflector.run(&["rotate-identity", "--yes"]);
    assert_eq!(running.code, 1, "not while it serves");
    let other_folder = tempfile::tempdir().unwrap();
    let runtime_dir = other_folder.path().to_str().unwrap();
    let running = reflector.run(&["rotate-identity", "--yes", "--runtime-dir", runtime_dir]);
    assert_eq!(running.code, 1, "not where its admin socket is not found either: {running:?}");
    assert!(running.stderr.contains("is running with this identity"), "{running:?}");
    reflector.process().kill();
    let old = reflector.id();
    let new = reflector.must(&["rotate-identity", "--yes"]);
    assert_ne!(old, new);
    reflector.start().unwrap();
    let document = appliance.fails(&["speed-test", "--peer", reflector.address()], 4, "key_changed");
    assert!(document.error.because.contains(&new), "{document:?}");
    reflector.await_audited("refused", |line| line["reason"] == "handshake");
}
