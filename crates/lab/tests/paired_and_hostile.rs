//! Tests a paired device that is malicious or broken: its cost to the reflector's host and to other devices is bounded.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::hostile::{AsAppliance, PROBE_LEN, RogueDevice, connect_from, probe_preamble, probes};
use lab::{Appliance, Reflector, SlowDisk};
use paramedic_link::admission::{Preamble, SessionId};
use paramedic_link::tls::Alpn;
use serde_json::{Value, json};

fn request(load: &str, phases: usize, streams: u16) -> Value {
    let phases = vec![json!({ "load": load, "duration_ms": 5_000 }); phases];
    let spec = json!({
        "engine": "tcp", "data_mode": "tunneled", "phases": phases, "streams": streams, "probe_interval_us": 0,
    });
    json!({ "type": "request", "spec": spec, "wait": false })
}

fn granted(link: &mut AsAppliance, request: &Value) -> SessionId {
    link.say(request).unwrap();
    let grant = link.hear_a("granted").unwrap();
    serde_json::from_value(grant["session"].clone()).unwrap()
}

/// Opens a data connection of a session for this phase and stream.
fn data(rogue: &RogueDevice, link: &AsAppliance, session: SessionId, phase: u8, stream: u16) -> AsAppliance {
    let keys = link.session_keys(session);
    let nonce = [u8::try_from(stream).unwrap(); Preamble::NONCE_LEN];
    let mut connection = rogue.open(Alpn::Data);
    connection.say_bytes(&Preamble { session, phase, stream, nonce }.seal(&keys)).unwrap();
    connection
}

#[test]
fn an_unavailable_congestion_control_is_refused_before_anything_is_reserved_and_does_not_fill_the_log() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let mut bad = request("download", 1, 1);
    bad["spec"]["congestion_control"] = json!("nonesuch");
    let begun = Instant::now();
    let asked = 100;
    for _ in 0..asked {
        link.say(&bad).unwrap();
        let denied = link.hear_a("denied").unwrap();
        assert_eq!(denied["reason"], "bad_request");
        assert!(denied["detail"].as_str().unwrap().contains("nonesuch"), "{denied}");
    }
    // A burst of twenty, then ten per second.
    assert!(begun.elapsed() >= Duration::from_secs(7), "{:?}", begun.elapsed());
    assert!(reflector.audited("session_undone").is_empty());
    let log = reflector.log();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(log.lines().count() < 20, "{log}");
}

#[test]
fn a_device_that_repeatedly_sends_invalid_messages_does_not_fill_the_log() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    for _ in 0..100 {
        let mut link = rogue.link();
        link.say_bytes(b"\x00\x00\x00\x04nope").unwrap();
        assert_eq!(link.hear_a("close").unwrap()["reason"], "protocol");
    }
    assert_eq!(reflector.status()["refused"]["protocol"], 100);
    let lines = reflector.log().lines().filter(|line| line.contains("not a message")).count();
    assert!(lines <= 60, "{lines} lines");
    // Ten lines of this reason, and the first ones of other reasons.
    let refused = reflector.log().lines().filter(|line| line.contains("Protocol")).count();
    assert!(refused <= 10, "{refused} lines");
}

#[test]
fn only_streams_of_the_next_phase_are_accepted() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let session = granted(&mut link, &request("upload", 3, 2));
    for phase in [1, 2] {
        let mut early = data(&rogue, &link, session, phase, 0);
        assert!(early.hear_out().unwrap().is_empty(), "phase {phase} has not begun");
        link.say(&json!({ "type": "ping" })).unwrap();
    }
    let _streams = [0, 1].map(|stream| data(&rogue, &link, session, 0, stream));
    link.say(&json!({ "type": "start", "phase": 0 })).unwrap();
    assert_eq!(link.hear_a("started").unwrap()["phase"], 0);
}

#[test]
fn a_phase_out_of_order_ends_the_session() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    granted(&mut link, &request("upload", 3, 2));
    link.say(&json!({ "type": "start", "phase": 1 })).unwrap();
    assert_eq!(link.hear_a("ended").unwrap()["reason"], "failed");
}

#[test]
fn a_session_that_is_not_started_ends_and_frees_its_slot() {
    let reflector = Reflector::serve(&[("MAX_CONCURRENT_TESTS", "1")]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let begun = Instant::now();
    granted(&mut link, &request("download", 16, 1));
    let ended = loop {
        link.say(&json!({ "type": "ping" })).unwrap();
        match link.hear().unwrap().unwrap() {
            message if message["type"] == "ended" => break message,
            _ => assert!(begun.elapsed() < Duration::from_secs(60), "it was never ended"),
        }
    };
    assert_eq!(ended["reason"], "not_started");
    assert_eq!(reflector.status()["sessions"]["sessions"], json!([]));
}

#[test]
fn with_few_descriptors_sessions_are_limited_and_administration_works() {
    let reflector = Reflector::serve_with_few_files(256);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    link.say(&request("bidir", 16, 64)).unwrap();
    let denied = link.hear_a("denied").unwrap();
    assert_eq!((&denied["reason"], denied.get("retry_after_ms")), (&json!("too_many_streams"), None));
    assert!(denied["detail"].as_str().unwrap().contains("open files"), "{denied}");
    // Use every descriptor that a device can obtain.
    let links = (0..64).map(|_| rogue.open_from(Ipv4Addr::new(127, 43, 0, 1))).collect::<Vec<_>>();
    let address = reflector.address().parse().unwrap();
    let silent = (0..300).map(|n| connect_from(Ipv4Addr::new(127, 42, 0, n as u8), address)).collect::<Vec<_>>();
    assert_eq!(reflector.status()["state"], "serving");
    reflector.must(&["peers", "remove", "rogue"]);
    drop((links, silent, link));
    let outcome = Appliance::new().pair(&reflector, reflector.address()).speed_test(&["-t", "0.3", "--idle", "0.1"]);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

#[test]
fn links_above_a_devices_share_are_refused_and_other_devices_can_connect() {
    let reflector = &Reflector::serve_with_few_files(512);
    let other = Appliance::new().pair(reflector, reflector.address());
    let rogue = &RogueDevice::pair(reflector);
    let is_over = &AtomicBool::new(false);
    let attempts = std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                // Known prefixes, which may have more connections than unknown ones.
                let source = Ipv4Addr::new(127, 44, 0, n);
                let mut standing = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut link) = rogue.open_from(source) else { continue };
                    let _ = link.say(&json!({ "type": "hello", "versions": [1], "software": "0.0.0" }));
                    standing.push(link);
                }
            });
        }
        let attempts = (0..4).map(|_| other.run(&["reflectors", "check", "--json"])).collect::<Vec<_>>();
        let status = reflector.status();
        is_over.store(true, Ordering::Relaxed);
        // Of 512 descriptors 112 are for links, and half of those for one device.
        assert!(status["links"].as_u64().unwrap() <= 56 + 2, "{status:#}");
        attempts
    });
    assert!(attempts.iter().all(|attempt| attempt.code == 0), "{attempts:#?}");
    assert!(reflector.status()["refused"]["too_many_links"].as_u64().unwrap_or(0) > 0, "{:#}", reflector.status());
}

#[test]
fn repeated_requests_for_a_port_held_by_another_program_do_not_fill_the_log() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let range = held.local_addr().unwrap().port().to_string();
    let mut reflector = Reflector::serve(&[("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", &range)]);
    let rogue = RogueDevice::pair(&reflector);
    let mut link = rogue.link();
    let mut ask = request("download", 1, 1);
    ask["spec"]["data_mode"] = json!("direct_ephemeral");
    for _ in 0..400 {
        link.say(&ask).unwrap();
        assert_eq!(link.hear_a("denied").unwrap()["reason"], "no_port");
    }
    reflector.process().signal(rustix::process::Signal::TERM);
    reflector.process().wait(Duration::from_secs(30)).unwrap();
    let lines = reflector.audit().len();
    assert!(lines < 300, "{lines} lines");
    let more = reflector.audited("more_of_peer").iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>();
    assert!(more > 400, "{more}");
}

/// Counts the threads of a process.
fn threads(pid: rustix::process::Pid) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap().count()
}

#[test]
fn links_of_one_device_share_a_budget_of_messages() {
    let mut reflector = Reflector::serve(&[]);
    let pid = reflector.process().pid();
    let rogue = &RogueDevice::pair(&reflector);
    let links = (0..32).map(|_| rogue.link()).collect::<Vec<_>>();
    let is_over = &AtomicBool::new(false);
    let begun = Instant::now();
    let (answered, most_threads) = std::thread::scope(|scope| {
        let askers = links.into_iter().enumerate().map(|(n, mut link)| {
            scope.spawn(move || {
                let (ask, answer) = if n % 2 == 0 { ("facts", "facts") } else { ("ping", "pong") };
                let mut answered = 0;
                while !is_over.load(Ordering::Relaxed) {
                    // Ten at a time, without waiting for answers.
                    for _ in 0..10 {
                        link.say(&json!({ "type": ask })).unwrap();
                    }
                    for _ in 0..10 {
                        link.hear_a(answer).unwrap();
                        answered += 1;
                    }
                }
                answered
            })
        });
        let askers = askers.collect::<Vec<_>>();
        let mut most_threads = 0;
        while begun.elapsed() < Duration::from_secs(4) {
            most_threads = most_threads.max(threads(pid));
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        (askers.into_iter().map(|asker| asker.join().unwrap()).sum::<u64>(), most_threads)
    });
    // A burst of 400, then 200 per second.
    let allowed = 400 + 200 * (begun.elapsed().as_secs() + 1);
    assert!(answered <= allowed, "{answered} messages answered, {allowed} allowed");
    assert!(most_threads < 64, "{most_threads} threads");
}

#[test]
fn links_of_one_device_are_welcomed_twenty_a_second() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let begun = Instant::now();
    // Each is closed before the next one. 64 are welcomed at once, the link that paired among them.
    (0..63 + 60).for_each(|_| drop(rogue.link()));
    assert!(begun.elapsed() > Duration::from_millis(2_900), "{:?}", begun.elapsed());
    let other = Appliance::new().pair(&reflector, reflector.address());
    assert_eq!(other.run(&["reflectors", "check", "--json"]).code, 0, "another device does not wait");
}

#[test]
fn links_from_ever_other_addresses_keep_no_other_device_waiting_for_the_disk() {
    let mut reflector = Reflector::serve(&[]);
    let other = Appliance::new().pair(&reflector, reflector.address());
    let rogue = RogueDevice::pair(&reflector);
    let Some(disk) = SlowDisk::under(reflector.process(), Duration::from_millis(5)) else { return };
    const LINKS: usize = 400;
    // A device has 240 lines of the audit log in a minute, and a line costs two syncs: the log and its head.
    const AUDITED: usize = 240;
    for n in 0..LINKS {
        let mut link = rogue.open_from(Ipv4Addr::from(0x7f3c_0001 + n as u32)).unwrap();
        link.say(&json!({ "type": "hello", "versions": [1], "software": "0.0.0" })).unwrap();
        link.hear_a("welcome").unwrap();
    }
    let syncs = disk.syncs();
    let outcome = other.speed_test(&["-t", "0.3", "--idle", "0.1"]);
    drop(disk);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    assert!(syncs < 2 * AUDITED + 60, "{syncs} syncs for {LINKS} links");
}

/// Returns the queue lengths of a loopback TCP connection at its end `local`, in bytes: sent bytes that are not
/// acknowledged, and received bytes that are not read (/proc/net/tcp, proc(5)).
fn queues(local: u16, remote: u16) -> (usize, usize) {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut ours = lines.filter(|line| line[1].ends_with(&local) && line[2].ends_with(&remote));
    let line = ours.next().unwrap_or_else(|| panic!("no connection{local}{remote}"));
    let (sent, received) = line[4].split_once(':').unwrap();
    let bytes = |hex| usize::from_str_radix(hex, 16).unwrap();
    (bytes(sent), bytes(received))
}

#[test]
fn bytes_that_wait_on_the_stream_of_probes_when_a_session_ends_are_charged() {
    let reflector = Reflector::serve(&[]);
    let rogue = RogueDevice::pair(&reflector);
    let target: SocketAddr = reflector.address().parse().unwrap();
    let mut link = rogue.link();
    const AT_ONCE: u32 = 160;
    // TLS and the reflector's buffer hold at most two records.
    const BUFFERED: usize = 2 * 16 * 1024;
    // What the reflector has read and not answered yet; much less than what waits unread.
    const UNANSWERED: usize = 256 * 1024;
    for round in 0..12 {
        let session = granted(&mut link, &request("upload", 1, 1));
        let keys = link.session_keys(session);
        let socket = TcpStream::connect(target).unwrap();
        // The replies are not read: soon the reflector waits in a write, and what it receives stays unread.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let ours = socket.local_addr().unwrap().port();
        let mut stream = AsAppliance::over(socket, rogue.reflector, &rogue.key, Alpn::Data).unwrap();
        stream.say_bytes(&probe_preamble(&keys)).unwrap();
        let mut number = 1;
        while stream.say_bytes(&probes(&keys, number..number + AT_ONCE)).is_ok() {
            number += AT_ONCE;
        }
        let sent = (number - 1) as usize * PROBE_LEN;
        let arrived = sent - queues(ours, target.port()).0.min(sent);
        let unread = queues(target.port(), ours).1;
        // The reflector may have dropped the connection already; then nothing waits.
        if unread <= UNANSWERED + BUFFERED {
            link.say(&json!({ "type": "finish" })).unwrap();
            link.hear_a("ended").unwrap();
            continue;
        }
        link.say(&json!({ "type": "finish" })).unwrap();
        link.hear_a("ended").unwrap();
        let id = json!(session);
        let line = reflector.await_audited("session_ended", |line| line["session"] == id);
        let charged = usize::try_from(line["bytes"].as_u64().unwrap()).unwrap();
        // What was read was answered with as many bytes, but for what the reflector has not answered yet.
        let least = arrived + (arrived - unread) - UNANSWERED;
        assert!(charged >= least, "round {round}: {charged} charged, {arrived} arrived, {unread} of them unread");
    }
}
