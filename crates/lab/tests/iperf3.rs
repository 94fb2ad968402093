//! The iperf3 lane (the reflector's engine that runs a real iperf3) and the provider iperf3 (tests against plain iperf3
//! servers), with the real iperf3: normal tests, unpaired clients at the port, kills, and hosts without a requirement.
//! `script/siege` runs more sessions under attack.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::lane_siege::besiege_lane;
use lab::{Appliance, Reflector, Running, TwoHosts, is_gone, loopback};
use rustix::process::{Pid, Signal};
use serde_json::Value;

const SHORT: &[&str] = &["--engine", "iperf3", "-t", "1", "--idle", "0.3"];
/// How soon after a session the iperf3 child must be gone and its port and slot free: 2 s, plus slack for a loaded
/// machine. This is less than the reflector's timeout for a child that does not end.
const FREE: Duration = Duration::from_secs(2 + 2);

/// Returns the settings of a reflector with the engine iperf3 and one data port.
fn settings(port: &str) -> Vec<(&str, &str)> {
    vec![
        ("MODE", "direct_ephemeral"),
        ("IPERF3_ENABLED", "true"),
        ("DATA_PORT_RANGE", port),
        ("MAX_TESTS_PER_HOUR", "10000"),
    ]
}

fn serve(port: &str) -> Reflector {
    Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &settings(port))
}

fn pair(reflector: &Reflector) -> Appliance {
    Appliance::new().pair(reflector, reflector.address())
}

fn host(reflector: &Reflector) -> Ipv4Addr {
    let address = reflector.address().parse::<SocketAddr>().unwrap();
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    *address.ip()
}

/// Returns the process id of the reflector's iperf3 child, which a test must be using.
fn child(reflector: &mut Reflector) -> Pid {
    let children = reflector.process().children();
    let [(pid, name)] = &children[..] else { panic!("not one child: {children:?}") };
    assert_eq!(name, "iperf3");
    *pid
}

/// Starts a long download with iperf3, and waits until bytes flow.
fn long_test(appliance: &Appliance) -> Running {
    let test = appliance.start(&["speed-test", "--engine", "iperf3", "--json-stream", "-t", "60", "--idle", "0"]);
    while !test.line(Duration::from_secs(30)).unwrap().contains("\"latency\"") {}
    test
}

fn granted_ports(reflector: &Reflector) -> Vec<Value> {
    reflector.audited("session_granted").iter().map(|event| event["port"].clone()).collect()
}

#[test]
fn twenty_tests_in_a_row_pass_with_one_slot_and_one_port() {
    let reflector = serve("47101");
    let appliance = pair(&reflector);
    for run in 0..20 {
        let outcome = appliance.speed_test(&[SHORT, &["--raw", "-P", "2"]].concat());
        assert_eq!(outcome.code, 0, "run {run}: {outcome:?}\n{}", reflector.log());
        let result = outcome.json();
        assert_eq!((&result["engine"], &result["data_mode"]), (&"iperf3".into(), &"direct_ephemeral".into()));
        for direction in ["download", "upload"] {
            assert!(result[direction]["goodput_bps"].as_u64().unwrap() > 0, "{result:#}");
            // On a busy machine too few answers for a median may be in time.
            assert!(result["latency"][direction]["rtt_us"]["min"].as_u64().is_some(), "{result:#}");
            let raw = &result["program"]["raw"][direction];
            assert!(raw["end"].is_object() || raw.is_array(), "{raw}");
        }
    }
    assert!(granted_ports(&reflector).iter().all(|port| *port == 47101));
    let charged = reflector.status()["sessions"]["bytes_today"].as_u64().unwrap();
    let used = reflector.audited("session_ended").iter().map(|event| event["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(charged, used);
    let history = appliance.run(&["history", "--json"]).json();
    assert_eq!(history.as_array().unwrap().len(), 20, "{history:#}");
    reflector.must(&["audit", "verify"]);
}

#[test]
fn the_lane_works_from_an_open_state_folder_also_after_a_command_that_reads_the_state() {
    let mut reflector = Reflector::idle(&settings("47123"));
    fs::create_dir(reflector.state()).unwrap();
    fs::set_permissions(reflector.state(), Permissions::from_mode(0o777)).unwrap();
    fs::write(reflector.state().join("photos"), "").unwrap();
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    let appliance = pair(&reflector);
    reflector.must(&["show-id"]);
    let outcome = appliance.speed_test(&[SHORT, &["--download"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

/// Does not check the rate: on loopback a receiver that was held up for a moment may be slow for the rest of the test.
#[test]
fn a_fast_test_waits_for_leases_only_if_little_is_left_of_the_quota() {
    const STANDS: &str = "is stopped until more bytes are leased";
    let load = |bytes_per_day: &str| {
        let more = [("MAX_BYTES_PER_DAY", bytes_per_day), ("LOG", "debug")];
        let environment = [&settings("47112")[..], &more].concat();
        let reflector = Reflector::serve_on(&[&format!("{}:0", loopback::address())], None, &environment);
        let outcome = pair(&reflector).speed_test(&["--engine", "iperf3", "--upload", "-t", "3", "--idle", "0"]);
        (reflector, outcome)
    };
    let (reflector, outcome) = load("20TB");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!reflector.log().contains(STANDS), "{}", reflector.log());
    let (reflector, _) = load("100MB");
    reflector.await_log(STANDS);
}

#[test]
fn every_option_reaches_iperf3() {
    let reflector = serve("47102-47103");
    let appliance = pair(&reflector);
    let knobs =
        ["-P", "3", "-O", "1", "-C", "reno", "-l", "64K", "-w", "256K", "--bidir", "--raw", "--data-mode", "direct"];
    let outcome = appliance.speed_test(&[&["--engine", "iperf3", "-t", "2", "--idle", "0"], &knobs[..]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.json();
    let down = &result["download"];
    assert_eq!((&down["streams"], &down["congestion_control"]), (&3.into(), &"reno".into()), "{result:#}");
    assert_eq!(result["upload"]["congestion_control"], "reno");
    assert_eq!((&down["omitted"], down["startup_ms"].as_u64().unwrap() >= 1000), (&"asked".into(), true));
    assert!(result["bidir"]["upload"]["goodput_bps"].as_u64().unwrap() > 0);
    assert!(result["latency"]["bidir"]["rtt_us"]["p50"].as_u64().unwrap() > 0);
    let raw = &result["program"]["raw"]["download"];
    let start = if raw.is_array() { &raw[0]["data"] } else { &raw["start"] };
    assert_eq!(
        (&start["test_start"]["blksize"], &start["sock_bufsize"]),
        (&65536.into(), &262_144.into()),
        "{start:#}"
    );
    assert!(result["program"]["version"].as_str().unwrap().starts_with("iperf3 3."));
    // An option that is not supported with iperf3 is refused before any I/O.
    let refused = [
        (&["-t", "1.5"][..], "whole seconds"),
        (&["-u"], "-u means the engine udp"),
        (&["--data-path", "splice"], "cannot choose the data path"),
        (&["--verify-payload"], "does not verify payload"),
    ];
    for (args, word) in refused {
        let args = [&["speed-test", "--engine", "iperf3", "--idle", "0"], args].concat();
        let refused = appliance.fails(&args, 2, "bad_request");
        assert!(refused.error.because.contains(word), "{refused:?}");
    }
    let tunneled = ["speed-test", "--engine", "iperf3", "--data-mode", "tunneled"];
    appliance.fails(&tunneled, 4, "mode_not_offered");
    let held = ["-P", "2", "-b", "20M", "-M", "1000", "--dscp", "EF", "-B", "127.0.0.1"];
    let outcome = appliance.speed_test(&[&["--engine", "iperf3", "-t", "1", "--idle", "0"], &held[..]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    let result = outcome.json();
    assert!(result["download"]["mss"].as_u64().unwrap() <= 1000, "{result:#}");
    for direction in ["download", "upload"] {
        // iperf3 paces only on average: it may send some blocks more than its rate allows at a time.
        let total = result[direction]["total_bytes_received"].as_u64().unwrap();
        assert!(total > 0 && total < 4 * 20_000_000 / 8 * 2, "{direction}: {result:#}");
    }
}

fn besiege(mut reflector: Reflector, port: u16) {
    let appliance = pair(&reflector);
    let found = besiege_lane(&mut reflector, &appliance, port, 5);
    assert_eq!(found.complete, 5, "{found:?}\n{}", reflector.log());
    assert_eq!(found.answered, 0, "{found:?}");
    assert!(found.connections > 0 && found.clients > 0 && found.udp_clients > 0 && found.datagrams > 0, "{found:?}");
    assert_eq!(found.children_left, 0, "{found:?}");
}

#[test]
fn unpaired_clients_at_the_granted_port_cannot_end_block_or_use_a_test() {
    besiege(serve("47104"), 47104);
}

#[test]
fn the_lane_is_as_safe_for_an_unprivileged_user_without_capabilities() {
    let listen = format!("{}:0", loopback::address());
    let Some(reflector) = Reflector::serve_as_nobody(&[&listen], &settings("47105")) else { return };
    besiege(reflector, 47105);
}

#[test]
fn a_killed_reflector_leaves_no_child_and_the_next_one_gets_the_port_at_once() {
    let mut reflector = serve("47106");
    let appliance = pair(&reflector);
    let test = long_test(&appliance);
    let iperf3 = child(&mut reflector);
    let killed = Instant::now();
    reflector.process().kill();
    assert!(is_gone(iperf3, FREE), "an iperf3 survived its reflector");
    reflector.start().unwrap();
    drop(test);
    let outcome = appliance.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    assert_eq!(granted_ports(&reflector), [47106, 47106]);
    assert!(reflector.audited("port_held").is_empty(), "{:?}", killed.elapsed());
}

#[test]
fn a_killed_client_frees_child_port_and_slot() {
    let mut reflector = serve("47107");
    let appliance = pair(&reflector);
    let mut test = long_test(&appliance);
    let iperf3 = child(&mut reflector);
    test.kill();
    assert!(is_gone(iperf3, FREE), "an iperf3 survived its client");
    let ended = reflector.await_audited("session_ended", |_| true);
    assert_eq!(ended["reason"], "link_closed");
    assert!(ended["bytes"].as_u64().unwrap() > 0, "the bytes that flowed are charged: {ended:#}");
    let outcome = appliance.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

#[test]
fn a_reflector_ended_by_two_signals_leaves_no_child() {
    let mut reflector = serve("47108");
    let appliance = pair(&reflector);
    let test = long_test(&appliance);
    let iperf3 = child(&mut reflector);
    reflector.process().signal(Signal::TERM);
    reflector.await_log("draining");
    reflector.process().signal(Signal::TERM);
    assert!(is_gone(iperf3, FREE), "an iperf3 survived its reflector");
    assert!(reflector.process().wait(Duration::from_secs(30)).unwrap().success());
    drop(test);
}

#[test]
fn a_crashed_child_ends_only_its_test() {
    let mut reflector = serve("47109");
    let appliance = pair(&reflector);
    let mut test = long_test(&appliance);
    rustix::process::kill_process(child(&mut reflector), Signal::SEGV).unwrap();
    assert_eq!(test.wait(Duration::from_secs(60)).unwrap().code(), Some(1));
    let last = serde_json::from_str::<Value>(test.rest(FREE).unwrap().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["code"]), (&"error".into(), &"data_lost".into()), "{last:#}");
    reflector.await_audited("session_ended", |_| true);
    let outcome = appliance.speed_test(&[SHORT, &["--no-wait"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

#[test]
fn a_port_held_by_another_program_is_skipped_and_reported() {
    let reflector = serve("47110-47111");
    let appliance = pair(&reflector);
    let held = TcpListener::bind((host(&reflector), 47110)).unwrap();
    let outcome = appliance.speed_test(SHORT);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    assert_eq!(granted_ports(&reflector), [47111]);
    assert_eq!(reflector.audited("port_held")[0]["port"], 47110);
    assert_eq!(reflector.status()["sessions"]["held_ports"], serde_json::json!([47110]));
    drop(held);
}

/// Asserts that the reflector does not offer the engine iperf3, that `status` contains the reason `why`, and that
/// everything else works.
fn is_not_offered(reflector: &Reflector, why: &str) {
    let status = reflector.status();
    let lacking = &status["engines_lacking"][0];
    assert_eq!(lacking["engine"], "iperf3", "{status:#}");
    assert!(lacking["because"].as_str().unwrap().contains(why), "{status:#}");
    assert!(reflector.must(&["status"]).contains("not offered"));
    let appliance = pair(reflector);
    let denied = appliance.fails(&["speed-test", "--engine", "iperf3", "-t", "1"], 4, "engine_not_offered");
    assert!(denied.error.because.contains("iperf3"), "{denied:?}");
    let outcome = appliance.speed_test(&["-t", "1", "--idle", "0"]);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

#[test]
fn without_seccomp_the_lane_is_not_offered() {
    let listen = format!("{}:0", loopback::address());
    let call = if cfg!(target_arch = "x86_64") { 317 } else { 277 };
    let Some(reflector) = Reflector::serve_without(call, &[&listen], &settings("47112")) else { return };
    is_not_offered(&reflector, "the child's system calls cannot be supervised");
}

#[test]
fn without_landlock_the_lane_is_not_offered() {
    let listen = format!("{}:0", loopback::address());
    // landlock_create_ruleset has the same number on every architecture.
    let Some(reflector) = Reflector::serve_without(444, &[&listen], &settings("47113")) else { return };
    is_not_offered(&reflector, "the child's files cannot be limited");
}

#[test]
fn without_iperf3_the_error_says_how_to_install_it_and_other_engines_work() {
    let listen = format!("{}:0", loopback::address());
    let nowhere = tempfile::tempdir().unwrap();
    let path = nowhere.path().to_str().unwrap();
    let reflector = Reflector::serve_with_path(path, &[&listen], &settings("47114"));
    is_not_offered(&reflector, "there is no iperf3");
    let appliance = pair(&reflector);
    for args in
        [&["speed-test", "--engine", "iperf3"][..], &["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1"]]
    {
        let outcome = appliance.command(args).env("PATH", path).stdin(Stdio::null()).output().unwrap();
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
        let said = String::from_utf8(outcome.stderr).unwrap();
        assert!(said.contains("there is no iperf3") && said.contains("apt install iperf3"), "{said}");
    }
}

#[test]
fn the_lane_needs_direct_mode() {
    let reflector = Reflector::serve(&[("IPERF3_ENABLED", "true")]);
    is_not_offered(&reflector, "needs direct mode");
}

/// Starts a plain iperf3 server, and waits until it listens.
fn iperf3_server(around: &[&str], at: &str, port: &str, more: &[&str]) -> Running {
    let words = [around, &["iperf3", "-s", "-B", at, "-p", port, "--forceflush"], more].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let server = Running::start(command, Stdio::null()).unwrap();
    while !server.line(Duration::from_secs(30)).unwrap().contains("Server listening") {}
    server
}

#[test]
fn a_plain_server_is_measured_both_ways_at_once_and_with_datagrams() {
    let host = loopback::address().to_string();
    let _server = iperf3_server(&[], &host, "47120", &[]);
    let appliance = Appliance::new();
    let test = |args: &[&str]| {
        let peer = format!("{host}:47120");
        let args = [&["--provider", "iperf3", "--peer", &peer, "-t", "1"], args].concat();
        let outcome = appliance.speed_test(&args);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.json()
    };
    let result = test(&["--bidir", "-P", "2", "-C", "reno"]);
    assert_eq!((&result["provider"], &result["engine"]), (&"iperf3".into(), &"iperf3".into()));
    assert_eq!(result["server"]["address"], format!("{host}:47120"));
    assert!(result["reflector"].is_null() && result["latency"].is_null() && result["data_mode"].is_null());
    for (rates, streams) in [(&result["download"], 2), (&result["upload"], 2), (&result["bidir"]["download"], 2)] {
        assert!(rates["goodput_bps"].as_u64().unwrap() > 0, "{result:#}");
        assert_eq!(rates["streams"], streams);
    }
    assert_eq!(result["upload"]["omitted"], "nothing");
    assert_eq!(result["warnings"][0]["code"], "startup_included", "{result:#}");
    // The server may still be busy with the previous test.
    let wait = ["--wait", "60s"];
    let result = test(&[&wait[..], &["-u", "-b", "8M", "-l", "1000", "-P", "1"]].concat());
    for direction in ["download", "upload"] {
        let udp = &result[direction]["udp"];
        assert!(result[direction]["goodput_bps"].as_u64() < Some(9_000_000), "{direction}: {result:#}");
        assert_eq!(udp["payload_bytes"], 1000);
        // iperf3 keeps the sending rate; on a busy machine fewer datagrams may arrive.
        assert!((500..=1500).contains(&udp["datagrams"].as_u64().unwrap()), "{udp:#}");
    }
    let result = test(&[&wait[..], &["-O", "1", "--raw"]].concat());
    assert_eq!((&result["upload"]["omitted"], &result["upload"]["startup_ms"]), (&"asked".into(), &1000.into()));
    assert!(!result["program"]["raw"]["upload"].is_null());
    assert_eq!(appliance.run(&["history", "--json"]).json().as_array().unwrap().len(), 3);
}

#[test]
fn the_appliance_waits_for_a_busy_server_as_long_as_requested() {
    let host = loopback::address().to_string();
    let _server = iperf3_server(&[], &host, "47121", &[]);
    // A client keeps the server busy once it has printed its first interval. The server may refuse it as long as it has
    // not noticed that the previous client is gone.
    let client = |seconds: &str| loop {
        let mut command = Command::new("iperf3");
        command.args(["-c", &host, "-p", "47121", "-t", seconds, "-i", "0.1", "--forceflush"]);
        let client = Running::start(command, Stdio::null()).unwrap();
        while let Ok(line) = client.line(Duration::from_secs(30)) {
            if line.contains("bits/sec") {
                return client;
            }
        }
    };
    let appliance = Appliance::new();
    let peer = format!("{host}:47121");
    let test = ["speed-test", "--provider", "iperf3", "--peer", &peer, "-t", "1", "--upload"];
    let other = client("600");
    appliance.fails(&test, 5, "busy");
    let began = Instant::now();
    appliance.fails(&[&test[..], &["--wait", "2s"]].concat(), 5, "busy");
    // Once with --json and once without.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    drop(other);
    let other = client("2");
    let outcome = appliance.run(&[&test[..], &["--wait", "60s", "--json"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    drop(other);
}

#[test]
fn busy_and_missing_servers_of_a_range_of_ports_are_passed_over() {
    let host = loopback::address().to_string();
    let _busy = iperf3_server(&[], &host, "47131", &[]);
    let _free = iperf3_server(&[], &host, "47132", &[]);
    let mut command = Command::new("iperf3");
    command.args(["-c", &host, "-p", "47131", "-t", "600", "-i", "0.1", "-b", "1M", "--forceflush"]);
    let client = Running::start(command, Stdio::null()).unwrap();
    while !client.line(Duration::from_secs(30)).unwrap().contains("bits/sec") {}
    let appliance = Appliance::new();
    let test = |ports: &str| {
        ["speed-test", "--provider", "iperf3", "-t", "1", "--peer", &format!("{host}:{ports}")].map(str::to_owned)
    };
    // Nothing listens at 47130.
    let free = test("47130-47132");
    let outcome = appliance.run(&[&free.each_ref().map(String::as_str)[..], &["--json"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(outcome.json()["server"]["address"], format!("{host}:47132"));
    let busy = test("47130-47131");
    let error = appliance.fails(&busy.each_ref().map(String::as_str), 5, "busy").error;
    assert!(error.because.contains("47130-47131"), "{error:#?}");
    let missing = test("47128-47130");
    appliance.fails(&missing.each_ref().map(String::as_str), 1, "unreachable");
    let bad = test("47132-47130");
    appliance.fails(&bad.each_ref().map(String::as_str), 2, "bad_address");
}

#[test]
fn a_server_with_logins_gets_the_login() {
    let host = loopback::address().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let openssl = |args: &[&str]| {
        let status = Command::new("openssl").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("openssl").success(), "{args:?}");
    };
    openssl(&["genrsa", "-out", &path("private"), "2048"]);
    openssl(&["rsa", "-in", &path("private"), "-pubout", "-out", &path("public")]);
    // sha256("{mario}rossi")
    let users = "mario,bf7a49a846d44b454a5d11e7acfaf13d138bbe0b7483aa3e050879700572709b\n";
    std::fs::write(path("users"), users).unwrap();
    std::fs::write(path("right"), "rossi\n").unwrap();
    std::fs::write(path("wrong"), "verdi\n").unwrap();
    let login = ["--rsa-private-key-path", &path("private"), "--authorized-users-path", &path("users")];
    let _server = iperf3_server(&[], &host, "47122", &login);
    let appliance = Appliance::new();
    let (peer, public) = (format!("{host}:47122"), path("public"));
    let test = ["speed-test", "--provider", "iperf3", "--peer", &peer, "-t", "1", "--upload", "--wait", "60s"];
    let known = [&test[..], &["--username", "mario", "--rsa-public-key", &public]].concat();
    let outcome = appliance.run(&[&known[..], &["--password-file", &path("right"), "--json"]].concat());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let wrong = appliance.fails(&[&known[..], &["--password-file", &path("wrong")]].concat(), 4, "not_authorized");
    assert!(!format!("{wrong:?}").contains("verdi"));
    appliance.fails(&known, 2, "bad_usage");
    appliance.fails(&test, 4, "not_authorized");
    let in_environment = appliance.command(&known).env("PACKETPARAMEDIC_IPERF3_PASSWORD", "rossi").output().unwrap();
    assert!(in_environment.status.success(), "{in_environment:?}");
}

#[test]
fn another_server_at_the_address_is_an_error() {
    let appliance = Appliance::new();
    let test = |peer: &str| ["speed-test", "--provider", "iperf3", "-t", "1", "--peer", peer].map(str::to_owned);
    let closed_port = loopback::closed_port();
    let closed = closed_port.to_string();
    let args = test(&closed);
    appliance.fails(&args.each_ref().map(String::as_str), 1, "unreachable");
    appliance.fails(&["speed-test", "--provider", "iperf3"], 2, "no_server");
    appliance.fails(&["speed-test", "--provider", "iperf3", "--peer", "a b"], 2, "bad_address");
    let nobody = test("nobody.invalid");
    appliance.fails(&nobody.each_ref().map(String::as_str), 1, "name_not_resolved");
    appliance.fails(&["speed-test", "--provider", "iperf3", "--engine", "tcp", "--peer", &closed], 2, "bad_request");
    // A server that sends other bytes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J");
        }
    });
    let args = test(&at);
    let outcome = appliance.run(&args.each_ref().map(String::as_str));
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(!outcome.stderr.contains('\x1b'));
    outcome.three_lines();
}

#[test]
fn both_providers_over_both_families_between_two_hosts() {
    let Some(hosts) = TwoHosts::new() else { return };
    let near = ["ip", "netns", "exec", &hosts.near.netns];
    let listen = ["0.0.0.0:4000", "[::]:4000"];
    let reflector = Reflector::serve_on(&listen, Some(&hosts.near.netns), &settings("5202-5210"));
    let v4 = format!("{}:4000", hosts.near.v4);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &v4);
    let mut expected = 0;
    for (address, bare) in
        [(v4.clone(), hosts.near.v4.clone()), (format!("[{}]:4000", hosts.near.v6), hosts.near.v6.clone())]
    {
        let outcome = appliance.speed_test(&[SHORT, &["--peer", &address]].concat());
        assert_eq!(outcome.code, 0, "{address}: {outcome:?}\n{}", reflector.log());
        let result = outcome.json();
        assert_eq!(result["reflector"]["address"], *address);
        assert!(result["download"]["line_rate_estimate"]["rate_bps"].as_u64().is_some(), "{result:#}");
        let _server = iperf3_server(&near, &bare, "5201", &[]);
        // Without a port, iperf3's default port is used.
        let outcome = appliance.speed_test(&["--provider", "iperf3", "--peer", &bare, "-t", "1"]);
        assert_eq!(outcome.code, 0, "{bare}: {outcome:?}");
        assert_eq!(outcome.json()["appliance"]["facts_before"]["mtu_bytes"], 1500);
        expected += 2;
    }
    let history = appliance.run(&["history", "--json"]).json();
    let engines = history.as_array().unwrap().iter().map(|run| &run["engine"]).collect::<Vec<_>>();
    assert_eq!(engines, vec!["iperf3"; expected], "{history:#}");
}
