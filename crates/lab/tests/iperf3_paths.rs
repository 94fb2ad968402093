//! The provider and the engine iperf3 over paths that fail or are slow, and at low rates. The real iperf3 at both ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Appliance, Host, Reflector, Running, TwoHosts};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::ResultDocument;

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a plain iperf3 server on all addresses of `host`, and waits until it listens.
fn iperf3_server(host: &Host) -> Running {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.netns, "iperf3", "-s", "-p", "5201", "--forceflush"]);
    let server = Running::start(command, Stdio::null()).unwrap();
    while !server.line(PATIENCE).unwrap().contains("Server listening") {}
    server
}

/// Starts a reflector with the engine iperf3 on the near host, and pairs an appliance on the far host with it.
fn lane(hosts: &TwoHosts) -> (Reflector, Appliance) {
    let settings = [("MODE", "direct_ephemeral"), ("IPERF3_ENABLED", "true")];
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &settings);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

/// nftables rules that drop every arriving packet once 4 MiB have arrived. At 20 Mbit/s, that is in the middle of a
/// test.
const DEAF_AFTER_4_MIB: &str = "table inet deaf {
    quota spent { over 4 mbytes }
    chain input { type filter hook input priority 0; quota name \"spent\" drop
    }
}
";

/// Runs a speed test whose path fails in mid test, and checks the error and the saved run. Returns what was measured
/// until then; `None` if nothing was.
fn dies(hosts: &TwoHosts, appliance: &Appliance, args: &[&str]) -> Option<ResultDocument> {
    for host in [&hosts.near, &hosts.far] {
        host.nft(DEAF_AFTER_4_MIB);
    }
    let began = Instant::now();
    let outcome = appliance.speed_test(&[&["-t", "60", "-P", "1", "-b", "20M"], args].concat());
    let took = began.elapsed();
    assert_eq!(outcome.code, 1, "{args:?}: {outcome:?}");
    let error = outcome.error();
    assert_eq!(error.error.code, "silent", "{args:?}: {error:#?}");
    let told = format!("{} {}", error.error.what, error.error.try_);
    assert!(told.contains("path") || told.contains("way there"), "the path is named: {error:#?}");
    assert!(!told.contains("this device"), "not this device's iperf3: {error:#?}");
    // Two seconds until it dies, at most 10 s after that, and slack for a loaded machine; the phase would last 60 s.
    assert!(took < Duration::from_secs(2 + 10 + 10), "{args:?}: {took:?}");
    let saved = appliance.run(&["history", "--json"]).json();
    assert_eq!((&saved[0]["complete"], &saved[0]["error"]["code"]), (&false.into(), &"silent".into()), "{saved:#}");
    let measured = error.measured_so_far.map(|measured| *measured);
    assert!(measured.iter().all(|measured| saved[0]["id"] == measured.id.to_string()), "{saved:#}");
    measured
}

#[test]
fn a_path_that_dies_ends_an_iperf3_test_and_what_was_measured_is_kept() {
    let rate = |measured: Option<ResultDocument>, direction| {
        let load = if direction == Direction::Upload { Load::Upload } else { Load::Download };
        let measured = measured.unwrap_or_else(|| panic!("nothing of the {direction} is kept"));
        let bps =
            measured.measured(load, direction).unwrap_or_else(|| panic!("no {direction}: {measured:#?}")).goodput_bps;
        assert!((14_000_000..=22_000_000).contains(&bps), "{direction}: {bps} bit/s of 20 Mbit/s: {measured:#?}");
    };
    // Each with hosts of its own, at the same time.
    std::thread::scope(|scope| {
        for (flag, direction) in [("--download", Direction::Download), ("--upload", Direction::Upload)] {
            scope.spawn(move || {
                let Some(hosts) = TwoHosts::new() else { return };
                let _server = iperf3_server(&hosts.near);
                let appliance = Appliance::in_netns(&hosts.far.netns);
                let provider = ["--provider", "iperf3", "--peer", &hosts.near.v4, flag];
                rate(dies(&hosts, &appliance, &provider), direction);
            });
            scope.spawn(move || {
                let Some(hosts) = TwoHosts::new() else { return };
                let (_reflector, appliance) = lane(&hosts);
                rate(dies(&hosts, &appliance, &["--engine", "iperf3", "--idle", "0", flag]), direction);
            });
        }
        scope.spawn(|| {
            let Some(hosts) = TwoHosts::new() else { return };
            let _server = iperf3_server(&hosts.near);
            let appliance = Appliance::in_netns(&hosts.far.netns);
            // No acknowledgement says what arrived of datagrams.
            let datagrams = ["--provider", "iperf3", "--peer", &hosts.near.v4, "--upload", "-u"];
            assert!(dies(&hosts, &appliance, &datagrams).is_none());
        });
    });
}

#[test]
fn a_low_rate_is_kept_in_both_directions_and_ends_in_time() {
    let Some(hosts) = TwoHosts::new() else { return };
    let (_reflector, appliance) = lane(&hosts);
    let _server = iperf3_server(&hosts.near);
    let low = ["-P", "1", "-b", "64k", "-t", "3"];
    let ways: [&[&str]; 2] =
        [&["--engine", "iperf3", "--idle", "0"], &["--provider", "iperf3", "--peer", &hosts.near.v4]];
    for way in ways {
        let began = Instant::now();
        let outcome = appliance.speed_test(&[way, &low].concat());
        assert_eq!(outcome.code, 0, "{outcome:?}");
        // A block of iperf3's own size takes 16 s at this rate.
        assert!(began.elapsed() < Duration::from_secs(15), "{way:?}: {:?}", began.elapsed());
        let result = outcome.result();
        for (load, direction) in [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)] {
            let total = result.measured(load, direction).unwrap().total_bytes_received.unwrap();
            assert!((22_000..=27_000).contains(&total), "{way:?} {direction}: {total} bytes of 24,000: {result:#?}");
        }
    }
}

/// Changes a command so that it sees the files `hosts` and `gai` as /etc/hosts and /etc/gai.conf. The command must
/// begin with `ip netns exec`, which also gives it a mount namespace.
fn with_resolver(command: &Command, hosts: &Path, gai: &Path) -> Command {
    const MOUNTS: &str = r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/gai.conf && shift 2 && exec "$@""#;
    let words = command.get_args().collect::<Vec<_>>();
    let (netns, program) = words.split_at(3);
    let mut around = Command::new(command.get_program());
    around.args(netns).args(["sh", "-c", MOUNTS, "sh"]).arg(hosts).arg(gai).args(program);
    around.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    around
}

#[test]
fn a_name_s_addresses_are_tried_in_the_resolver_s_order_and_a_dead_one_costs_a_moment() {
    let Some(hosts) = TwoHosts::new() else { return };
    let server = iperf3_server(&hosts.near);
    let settings = [("MODE", "direct_ephemeral")];
    let reflector = Reflector::serve_on(&["0.0.0.0:4000", "[::]:4000"], Some(&hosts.near.netns), &settings);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let names = file("hosts", &format!("{} dual.example\n{} dual.example\n", hosts.near.v6, hosts.near.v4));
    let test = |gai: &Path, args: &[&str]| {
        let command =
            appliance.command(&[&["speed-test", "--json", "--peer", "dual.example", "-t", "1"], args].concat());
        let outcome = lab::Outcome::from(with_resolver(&command, &names, gai).stdin(Stdio::null()).output().unwrap());
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        outcome
    };
    let accepted = || loop {
        let line = server.line(PATIENCE).unwrap();
        if let Some((_, from)) = line.split_once("Accepted connection from ") {
            return from.to_owned();
        }
    };
    let v4_first = file("v4", "precedence ::ffff:0:0/96 100\n");
    let v6_first = file("v6", "precedence ::/0 100\nprecedence ::ffff:0:0/96 10\n");
    for (gai, near, far) in [(&v4_first, &hosts.near.v4, &hosts.far.v4), (&v6_first, &hosts.near.v6, &hosts.far.v6)] {
        let result = test(gai, &["--engine", "echo"]).json();
        let address = result["reflector"]["address"].as_str().unwrap();
        assert!(address.contains(near.as_str()), "the reflector at {address}, not at {near}");
        test(gai, &["--provider", "iperf3", "--upload"]);
        let from = accepted();
        assert!(from.contains(far.as_str()), "a client from {from}, not from {far}");
    }
    hosts.near.nft("table ip6 dead { chain input { type filter hook input priority 0; meta l4proto tcp drop\n }\n }\n");
    let began = Instant::now();
    test(&v6_first, &["--provider", "iperf3", "--upload", "-b", "10M"]);
    let took = began.elapsed();
    // iperf3 alone waits 10 s for the dead address.
    assert!(took < Duration::from_secs(10), "{took:?}");
    while !accepted().contains(hosts.far.v4.as_str()) {}
}
