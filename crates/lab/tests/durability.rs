//! Acknowledged changes survive a crash, whatever disk faults came before; `health` reports disk faults.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::hostile::{PROBE_LEN, RogueDevice, probe_preamble, probes};
use lab::{Appliance, Reflector, fill};
use paramedic_link::tls::Alpn;
use rustix::process::Signal;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1", "-b", "10M"];

/// Returns a valid Endpoint ID that no device has.
fn endpoint_id(byte: u8) -> String {
    paramedic_link::EndpointId::from_bytes([byte; 32]).to_string()
}

/// Returns the names of the paired devices.
fn peers(reflector: &Reflector) -> Vec<String> {
    let told = serde_json::from_str::<serde_json::Value>(&reflector.must(&["peers", "--json"])).unwrap();
    told.as_array().unwrap().iter().map(|peer| peer["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn changes_acknowledged_after_a_full_disk_survive_a_crash() {
    for signal in [Signal::KILL, Signal::TERM] {
        let Some(mut reflector) = Reflector::serve_on_a_tiny_disk(&[]) else { return };
        let filling = fill(&reflector.disk());
        for peer in [1, 2] {
            reflector.fails(&["peers", "add", &endpoint_id(peer), "--name", "refused"], 1);
        }
        let health = reflector.fails(&["health"], 1);
        assert!(health[0].contains("faulted") && health[1].contains("full"), "{health:?}");
        fs::remove_file(filling).unwrap();
        reflector.await_log("can be written again");
        for peer in 3..6 {
            reflector.must(&["peers", "add", &endpoint_id(peer), "--name", &format!("kept {peer}")]);
        }
        let appliance = Appliance::new().pair(&reflector, reflector.address());
        let tested = appliance.speed_test(SHORT);
        assert_eq!(tested.code, 0, "{tested:?}\n{}", reflector.log());
        reflector.await_audited("session_ended", |_| true);
        let (before, paired) = (reflector.status(), peers(&reflector));
        assert_eq!(before["state"], "serving", "{before:#}");
        assert_eq!(paired.len(), 4, "{paired:?}");
        let (peer, bytes) = (&before["sessions"]["peers"][0], before["sessions"]["bytes_today"].as_u64().unwrap());
        assert!(peer["tests_this_hour"] == 1 && bytes > 0, "{before:#}");

        reflector.end(signal);
        reflector.start().unwrap_or_else(|error| panic!("it serves again: {error:#}\n{}", reflector.log()));
        assert_eq!(peers(&reflector), paired);
        let after = reflector.status();
        assert_eq!(after["sessions"]["peers"], before["sessions"]["peers"], "{after:#}");
        assert_eq!(after["sessions"]["bytes_today"], bytes, "{after:#}");
        let verified = reflector.must(&["audit", "verify"]);
        assert!(verified.contains("whole"), "{verified}");
        let again = appliance.speed_test(SHORT);
        assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    }
}

/// A connection of the test that holds the lock of the reflector's database until it is dropped.
struct Holder {
    runtime: tokio::runtime::Runtime,
    connection: Option<SqliteConnection>,
}

impl Holder {
    fn of(database: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(database).busy_timeout(Duration::from_secs(30));
            let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection).await.unwrap();
            connection
        });
        Self { runtime, connection: Some(connection) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let connection = self.connection.take().unwrap();
        self.runtime.block_on(connection.close()).unwrap();
    }
}

#[test]
fn with_a_locked_database_links_stay_alive_and_the_fault_is_reported() {
    let mut reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "2")]);
    let [first, second] = [(); 2].map(|()| Appliance::new().pair(&reflector, reflector.address()));
    let test = ["speed-test", "--json-stream", "-t", "6", "--idle", "0.3", "--download", "-b", "5M"];
    let mut running = first.start(&test);
    let patience = Duration::from_secs(60);
    while !running.line(patience).unwrap().contains("\"interval\"") {}
    let holder = Holder::of(&reflector.state().join("reflector.db"));
    // The first request detects the lock, the next one is answered at once; neither link times out.
    for _ in 0..2 {
        let refused = second.speed_test(SHORT);
        assert_eq!((refused.code, &refused.json()["code"]), (5, &"reflector_faulted".into()), "{refused:?}");
        assert!(refused.json()["retry_after_ms"].as_u64().unwrap() > 0, "{refused:?}");
    }
    let health = reflector.fails(&["health"], 1);
    assert!(health[0].contains("faulted") && health[1].contains("locked"), "{health:?}");
    // The running test completes.
    assert_eq!(running.wait(patience).unwrap().code(), Some(0), "{}", reflector.log());
    drop(holder);
    reflector.await_log("the database can be written again");
    reflector.await_audited("session_ended", |line| line["reason"] == "finished");
    let again = second.speed_test(SHORT);
    assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    assert_eq!(reflector.must(&["health"]), "serving");
    // The bytes of the meantime are charged by now, so a crash does not charge a surge.
    let before = reflector.status();
    reflector.end(Signal::KILL);
    reflector.start().unwrap();
    assert_eq!(reflector.status()["sessions"]["bytes_today"], before["sessions"]["bytes_today"]);
    reflector.must(&["audit", "verify"]);
}

#[test]
fn a_crash_in_mid_test_charges_what_flowed_and_a_bounded_surge() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let patience = Duration::from_secs(60);
    let mut charged_before = 0;
    // At the beginning of a phase, and later.
    for intervals in [1, 12] {
        let test = ["speed-test", "--json-stream", "-t", "60", "--idle", "0.1", "--download", "-P", "1", "-b", "5M"];
        let mut running = appliance.start(&test);
        for _ in 0..intervals {
            while !running.line(patience).unwrap().contains("\"interval\"") {}
        }
        reflector.end(Signal::KILL);
        assert_eq!(running.wait(patience).unwrap().code(), Some(1), "{}", reflector.log());
        let last = running.rest(patience).unwrap().pop().unwrap();
        let kept = serde_json::from_str::<serde_json::Value>(&last).unwrap();
        let flowed = &kept["measured_so_far"]["download"]["total_bytes_received"];
        let flowed = flowed.as_u64().unwrap_or_else(|| panic!("{last}"));
        reflector.start().unwrap();
        let charged = reflector.status()["sessions"]["bytes_today"].as_u64().unwrap() - charged_before;
        charged_before += charged;
        // What the appliance had not read or not counted when the connection broke, and the probes.
        let uncounted = 2_000_000;
        let bound = flowed + (16 << 20) + uncounted;
        assert!((flowed..=bound).contains(&charged), "{intervals} intervals: {charged} charged, {flowed} flowed");
        let line = reflector.audited("leases_charged").pop().unwrap();
        assert_eq!((&line["sessions"], &line["bytes"]), (&1.into(), &charged.into()));
    }
}

/// Waits until the database records that a session used at least this number of bytes.
fn await_recorded_use(database: &Path, bytes: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let begun = Instant::now();
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        loop {
            let used = sqlx::query_scalar("SELECT COALESCE(MAX(used), 0) FROM recorded_use");
            let used: i64 = used.fetch_one(&mut connection).await.unwrap();
            if used.unsigned_abs() >= bytes {
                return connection.close().await.unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{used} of {bytes} bytes are recorded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_crash_outside_of_every_phase_charges_what_the_probes_used() {
    let mut reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let phases = [serde_json::json!({ "load": "upload", "duration_ms": 1_000 })];
    let spec = serde_json::json!({
        "engine": "tcp", "data_mode": "tunneled", "phases": phases, "streams": 1, "probe_interval_us": 0,
    });
    link.say(&serde_json::json!({ "type": "request", "spec": spec, "wait": false })).unwrap();
    let session = serde_json::from_value(link.hear_a("granted").unwrap()["session"].clone()).unwrap();
    let keys = link.session_keys(session);
    let mut stream = rogue.open(Alpn::Data);
    stream.say_bytes(&probe_preamble(&keys)).unwrap();
    let (at_once, last) = (100, 4_000);
    for number in (0..last).step_by(at_once as usize) {
        stream.say_bytes(&probes(&keys, number..number + at_once)).unwrap();
        stream.hear_bytes(at_once as usize * PROBE_LEN).unwrap();
    }
    let used = u64::from(last) * 2 * PROBE_LEN as u64;
    await_recorded_use(&reflector.state().join("reflector.db"), used);
    reflector.end(Signal::KILL);
    reflector.start().unwrap();
    let charged = reflector.status()["sessions"]["bytes_today"].as_u64().unwrap();
    assert!((used + (16 << 20)..2 * used + (16 << 20)).contains(&charged), "{charged} charged, {used} used");
}

/// Asks the running reflector over its admin socket to add this peer. Returns whether the reflector confirmed it.
fn add_peer(socket: &Path, peer: &str) -> bool {
    let asked = || {
        let mut stream = UnixStream::connect(socket)?;
        let ask = serde_json::json!({ "v": 1, "do": "add_peer", "peer": peer, "name": "one of many" });
        stream.write_all(format!("{ask}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    asked().is_ok_and(|answer| answer.contains("\"done\""))
}

#[test]
fn after_a_crash_the_peers_and_the_audit_log_agree() {
    let mut reflector = Reflector::serve(&[]);
    let (mut acknowledged, mut number) = (Vec::new(), 0_u32);
    for round in 0..12_u32 {
        let socket = reflector.state().join("admin.sock");
        let (done, added) = std::sync::mpsc::channel();
        let adding = (0..4_u32).map(|_| {
            number += 1;
            let (socket, done, first) = (socket.clone(), done.clone(), number);
            std::thread::spawn(move || {
                for count in 0_u32.. {
                    let mut id = [7; 32];
                    id[..4].copy_from_slice(&first.to_be_bytes());
                    id[4..8].copy_from_slice(&count.to_be_bytes());
                    let id = paramedic_link::EndpointId::from_bytes(id).to_string();
                    if !add_peer(&socket, &id) || done.send(id).is_err() {
                        return;
                    }
                }
            })
        });
        let adding = adding.collect::<Vec<_>>();
        drop(done);
        // Each round crashes at another point.
        acknowledged.extend(added.iter().take(usize::try_from(5 + round).unwrap()));
        reflector.process().kill();
        adding.into_iter().for_each(|thread| thread.join().unwrap());
        acknowledged.extend(added.try_iter());

        reflector.start().unwrap_or_else(|error| panic!("it serves again: {error:#}\n{}", reflector.log()));
        let told = serde_json::from_str::<serde_json::Value>(&reflector.must(&["peers", "--json"])).unwrap();
        let ids = |list: &[serde_json::Value], key: &str| {
            let mut ids = list.iter().map(|peer| peer[key].as_str().unwrap().to_owned()).collect::<Vec<_>>();
            ids.sort();
            ids
        };
        let stored = ids(told.as_array().unwrap(), "endpoint_id");
        assert_eq!(stored, ids(&reflector.audited("peer_added"), "peer"), "round {round}");
        let lost = acknowledged.iter().filter(|id| stored.binary_search(id).is_err()).collect::<Vec<_>>();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
    }
    assert!(acknowledged.len() >= 12 * 5);
    reflector.must(&["audit", "verify"]);
}
