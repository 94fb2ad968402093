//! Tests with the real programs that a result names what limited the rate. Each cause is injected.

use std::process::{Child, Command, Stdio};

use lab::{Appliance, Cable, CableSpec, Host, Reflector, TwoHosts, limit_repetitions, record_limit};
use paramedic_link::measurement::Duplex;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{LimitCause, LimitedBy, ResultDocument};

fn serve(hosts: &TwoHosts) -> Reflector {
    Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[("MODE", "direct_ephemeral")])
}

/// Runs a speed test. Returns its result, and what limited each direction according to it.
fn limits(
    appliance: &Appliance,
    reflector: &Reflector,
    args: &[&str],
) -> (ResultDocument, Vec<(Direction, LimitedBy)>) {
    let outcome = appliance.speed_test(args);
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", reflector.log());
    let result = outcome.result();
    let limits =
        result.all_measured().map(|(_, direction, measured)| (direction, measured.limited_by.clone().unwrap()));
    let limits = limits.collect::<Vec<_>>();
    assert!(!limits.is_empty(), "{args:?}: {result:#?}");
    (result, limits)
}

/// Runs a speed test, and asserts that the result names this cause for each direction, with the first evidence
/// `shown_by`. `injected` describes what limits the rate.
fn limited_by(
    appliance: &Appliance,
    reflector: &Reflector,
    args: &[&str],
    injected: &str,
    (cause, shown_by): (LimitCause, &str),
) -> ResultDocument {
    let (result, limits) = limits(appliance, reflector, args);
    for (direction, limit) in limits {
        let named = serde_json::to_value(limit.cause).unwrap();
        record_limit(injected, &direction.to_string(), named.as_str().unwrap());
        assert_eq!(limit.cause, cause, "{injected}, {args:?}, {direction}: {limit:#?}\n{result:#?}");
        assert_eq!(limit.evidence[0].name, shown_by, "{injected}, {args:?}, {direction}: {limit:#?}");
    }
    result
}

fn warns(result: &ResultDocument, code: &str) -> bool {
    result.warnings.iter().any(|warning| warning.code == code)
}

/// A second program that sends over the same link in one direction; ended on drop.
struct OtherTraffic([Child; 2]);

impl OtherTraffic {
    fn between(hosts: &TwoHosts, direction: Direction) -> Self {
        let iperf3 = |host: &Host, args: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &host.netns, "iperf3"]).args(args);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("iperf3 runs")
        };
        let mut server = iperf3(&hosts.near, &["-s", "-p", "5999"]);
        let is_listening = || !hosts.near.must(&["ss", "-Hltn", "sport = :5999"]).is_empty();
        while !is_listening() {
            assert!(server.try_wait().is_ok_and(|ended| ended.is_none()), "iperf3 serves");
        }
        let (counter, flags): (&str, &[&str]) = match direction {
            Direction::Download => ("rx_bytes", &["-R"]),
            Direction::Upload => ("tx_bytes", &[]),
        };
        let before = hosts.far.interface_counter(counter);
        let args = [&["-c", &hosts.near.v4, "-p", "5999", "-P", "4", "-t", "600"], flags].concat();
        let mut client = iperf3(&hosts.far, &args);
        while hosts.far.interface_counter(counter) < before + 500_000 {
            assert!(client.try_wait().is_ok_and(|ended| ended.is_none()), "iperf3 sends");
        }
        Self([client, server])
    }
}

impl Drop for OtherTraffic {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_line_the_request_and_other_traffic_are_told_apart() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.shape("20mbit", "50ms");
    }
    let reflector = serve(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    for _ in 0..limit_repetitions() {
        let of = |args: &[&str], injected: &str, expected| limited_by(&appliance, &reflector, args, injected, expected);
        let result = of(&["-t", "2", "--idle", "0.6"], "a slow line", (LimitCause::Network, "path_share"));
        assert!(!result.warnings.iter().any(|warning| warning.code.ends_with("_cpu")), "{result:#?}");
        let args = ["-t", "1", "--idle", "0.6", "-R", "--intervals"];
        has_detail(&of(&args, "a slow line", (LimitCause::Network, "path_share")));
        let args = ["-b", "2M", "-P", "1", "-t", "2", "--idle", "0"];
        of(&args, "a requested rate", (LimitCause::Policy, "requested_bps"));
        let args = ["-n", "1M", "-t", "5", "--idle", "0"];
        of(&args, "a requested number of bytes", (LimitCause::Policy, "requested_bytes"));
        for (direction, flag) in [(Direction::Download, "--download"), (Direction::Upload, "--upload")] {
            let _other = OtherTraffic::between(&hosts, direction);
            let args = ["-t", "3", "--idle", "0.6", flag];
            let shared = of(&args, "other traffic on the line", (LimitCause::OtherTraffic, "other_bps"));
            assert!(warns(&shared, "other_traffic"), "{shared:#?}");
        }
    }
}

/// Asserts that the result contains the kernels' records of each stream of the download, and no impossible value.
fn has_detail(result: &ResultDocument) {
    let download = result.measured(Load::Download, Direction::Download).unwrap();
    for (end, samples) in [("sender", &download.tcp.sender), ("receiver", &download.tcp.receiver)] {
        for stream in 0..4 {
            let of_stream = samples.iter().filter(|sample| sample.stream == stream).collect::<Vec<_>>();
            assert!(of_stream.len() >= 3, "{end}: {samples:#?}");
            assert!(of_stream.windows(2).all(|two| two[0].at_ms < two[1].at_ms), "{end}: {samples:#?}");
        }
    }
    // 20 Mbit/s in four streams: the kernel's own rates are of that order.
    let last = download.tcp.sender.last().unwrap();
    assert!(last.rtt_us > Some(0) && last.cwnd > Some(0) && last.busy_us > Some(0), "{last:#?}");
    assert!(download.tcp.sender.iter().any(|sample| sample.delivery_bps > Some(500_000)), "{download:#?}");
}

#[test]
#[ignore = "a script moves the packets of its cables, and a loaded machine slows it down"]
fn socket_buffers_and_interfaces_are_named() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = serve(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    // Modes for 10, 100 and 1000 Mbit/s.
    let cable = |mbps, is_half_duplex, delay_ms| {
        Cable::between(&hosts, CableSpec { mbps, is_half_duplex, delay_ms, modes: 0b10_1111 })
    };
    let run = |cable: &Cable, args: &[&str], injected: &str, expected| {
        let peer = format!("{}:4000", cable.near);
        limited_by(&appliance, &reflector, &[&["--peer", &peer], args].concat(), injected, expected)
    };
    for _ in 0..limit_repetitions() {
        {
            let Some(long) = cable(1000, false, 20) else { return };
            let args = ["-w", "32K", "-P", "1", "-t", "2", "--idle", "0.6"];
            let window = (LimitCause::ReceiveWindow, "receive_window_share");
            let small = run(&long, &args, "a small receive window", window);
            assert!(!warns(&small, "receive_window") && !warns(&small, "appliance_interface"), "requested: {small:#?}");
            let ends = [
                (&hosts.near, "--download", "a small send buffer of the reflector"),
                (&hosts.far, "--upload", "a small send buffer of the appliance"),
            ];
            for (sender, flag, injected) in ends {
                let default = sender.must(&["sysctl", "-n", "net.ipv4.tcp_wmem"]);
                sender.must(&["sysctl", "-qw", "net.ipv4.tcp_wmem=4096 16384 32768"]);
                let args = ["-P", "1", "-t", "2", "--idle", "0.6", flag];
                let small = run(&long, &args, injected, (LimitCause::SendBuffer, "send_buffer_share"));
                assert!(warns(&small, "send_buffer"), "{small:#?}");
                sender.must(&["sysctl", "-qw", &format!("net.ipv4.tcp_wmem={}", default.trim())]);
            }
        }
        let mbps = if limit_repetitions() > 1 { 100 } else { 10 };
        let Some(slow) = cable(mbps, true, 0) else { return };
        let card = format!("a card at {mbps} Mbit/s half duplex");
        let link_rate = (LimitCause::LinkRate, "interface_speed_bps");
        let bad = run(&slow, &["-t", "2", "--idle", "0.6"], &card, link_rate);
        let facts = bad.appliance.facts_before.as_ref().unwrap();
        assert_eq!(facts.interface_duplex, Some(Duplex::Half), "{facts:#?}");
        assert_eq!(facts.interface_speed_bps, Some(u64::from(mbps) * 1_000_000), "{facts:#?}");
        assert_eq!(facts.interface_max_speed_bps, Some(1_000_000_000), "{facts:#?}");
        assert!(warns(&bad, "appliance_interface") && warns(&bad, "reflector_interface"), "{bad:#?}");
    }
}
