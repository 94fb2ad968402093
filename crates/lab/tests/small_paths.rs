//! Tests paths with a smaller MTU than the hosts' interfaces, with and without ICMP.

use lab::{Appliance, Host, Reflector, RoutedHosts};
use paramedic_report::document::{ResultDocument, ThroughputResult};

/// Makes the router drop packets that are larger than `bytes` bytes and match `condition`. The router sends no ICMP
/// message about them.
fn black_hole(router: &Host, condition: &str, bytes: u32) {
    router.nft(&format!(
        "table inet hole {{ chain forward {{ type filter hook forward priority 0; {condition} meta length > {bytes} drop\n
         }}\n }}\n"
    ));
}

/// Makes the router reduce the maximum segment size of TCP connections, so that their packets fit the smaller MTU
/// behind the router.
fn clamp(router: &Host) {
    router.nft(
        "table inet clamp { chain forward { type filter hook forward priority -1;
         tcp flags syn tcp option maxseg size set 1200\n }\n }\n",
    );
}

/// Makes the router forward only packets of at most 1420 bytes, and report larger ones by ICMP.
fn small_mtu(router: &Host) {
    small_mtu_each_way(router, ["1420"; 2]);
}

/// Makes the router forward only packets of at most `mtu[0]` bytes towards the reflector and `mtu[1]` bytes towards the
/// appliance, and report larger ones by ICMP.
fn small_mtu_each_way(router: &Host, mtu: [&str; 2]) {
    let ports = [("eth0", "10.99.0.0/24", "fd99::/64"), ("eth1", "10.99.1.0/24", "fd99:1::/64")];
    for ((port, v4, v6), mtu) in ports.into_iter().zip(mtu) {
        router.must(&["ip", "route", "replace", v4, "dev", port, "mtu", "lock", mtu]);
        router.must(&["ip", "-6", "route", "replace", v6, "dev", port, "metric", "1", "mtu", "lock", mtu]);
    }
}

fn serve(hosts: &RoutedHosts) -> Reflector {
    let environment = [("MODE", "direct_ephemeral"), ("IPERF3_ENABLED", "true")];
    Reflector::serve_on(&["0.0.0.0:4000", "[::]:4000"], Some(&hosts.near.netns), &environment)
}

fn at(hosts: &RoutedHosts) -> [String; 2] {
    [format!("{}:4000", hosts.near.v4), format!("[{}]:4000", hosts.near.v6)]
}

fn measure(appliance: &Appliance, reflector: &Reflector, args: &[&str]) -> ResultDocument {
    let outcome = appliance.speed_test(&[&["--idle", "0"], args].concat());
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", reflector.log());
    outcome.result()
}

fn both_ways(result: &ResultDocument) -> [&ThroughputResult; 2] {
    [&result.download, &result.upload].map(|measured| measured.as_ref().unwrap_or_else(|| panic!("{result:#?}")))
}

fn warns(result: &ResultDocument, code: &str) -> bool {
    result.warnings.iter().any(|warning| warning.code == code)
}

/// Runs a speed test through the black hole, and checks that the test used small packets and warned of it.
fn crosses_the_hole(appliance: &Appliance, reflector: &Reflector, args: &[&str]) {
    let result = measure(appliance, reflector, &[&["-t", "1"], args].concat());
    assert!(warns(&result, "small_segments"), "{args:?}: {result:#?}");
    for measured in both_ways(&result) {
        match measured.udp {
            Some(udp) => assert_eq!((udp.payload_bytes, udp.lost), (Some(1232), 0), "{args:?}: {measured:#?}"),
            None => assert!(measured.mss.is_some_and(|mss| mss <= 1220), "{args:?}: {measured:#?}"),
        }
    }
}

#[test]
fn a_black_hole_is_crossed_with_small_segments_by_link_and_data() {
    let Some(hosts) = RoutedHosts::new() else { return };
    let reflector = serve(&hosts);
    let [v4, v6] = at(&hosts);
    let appliance = || Appliance::in_netns(&hosts.far.netns);
    let paired = [(); 2].map(|()| appliance().pair(&reflector, &v4));
    black_hole(&hosts.router, "", 1400);
    let tests: [[&[&str]; 2]; 2] = [
        [&["--data-mode", "tunneled", "-P", "2", "--peer", &v4], &["--engine", "iperf3", "--peer", &v6]],
        [&["--data-mode", "direct", "--peer", &v6], &["-u", "-b", "5M", "--peer", &v4]],
    ];
    std::thread::scope(|scope| {
        let reflector = &reflector;
        for (appliance, tests) in paired.iter().zip(tests) {
            scope.spawn(move || tests.map(|args| crosses_the_hole(appliance, reflector, args)));
        }
        scope.spawn(|| {
            let appliance = appliance().pair(reflector, &v4);
            let check = appliance.run(&["reflectors", "check", "--json"]);
            assert_eq!((check.code, &check.json()[0]["segment_limit_bytes"]), (0, &1220.into()), "{check:?}");
        });
    });
}

#[test]
fn if_small_segments_get_lost_too_the_error_names_the_mtu() {
    let Some(hosts) = RoutedHosts::new() else { return };
    black_hole(&hosts.router, "meta l4proto tcp", 400);
    let _reflector = serve(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns);
    let id = Appliance::new().id();
    let outcome = appliance.run(&["pair-reflector", "--peer", &at(&hosts)[0], "--endpoint-id", &id]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let [what, because, advice] = outcome.three_lines();
    assert!(what.contains("cannot open a link") && because.contains("small segments"), "{outcome:?}");
    assert!(advice.contains("MTU") && advice.contains("ICMP"), "{outcome:?}");
}

#[test]
fn the_path_mtu_of_each_direction_is_reported() {
    let Some(hosts) = RoutedHosts::new() else { return };
    small_mtu_each_way(&hosts.router, ["1420", "1380"]);
    let reflector = serve(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &at(&hosts)[0]);
    for address in at(&hosts) {
        for mode in ["direct", "tunneled"] {
            let result = measure(&appliance, &reflector, &["-t", "1", "--data-mode", mode, "--peer", &address]);
            let report = appliance.run(&["-v", "history", "show", &result.id.to_string()]).stdout;
            assert!(report.contains("path MTU 1380 bytes") && report.contains("path MTU 1420 bytes"), "{report}");
            let found = both_ways(&result).map(|measured| measured.path_mtu_bytes);
            assert_eq!(found, [Some(1380), Some(1420)], "{address} {mode}: {result:#?}");
        }
    }
}

#[test]
fn datagrams_shrink_to_the_path_mtu_and_the_run_goes_on() {
    let Some(hosts) = RoutedHosts::new() else { return };
    clamp(&hosts.router);
    small_mtu(&hosts.router);
    let reflector = serve(&hosts);
    let [v4, v6] = at(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &v4);
    let datagrams = |address: &str, more: &[&str]| {
        measure(&appliance, &reflector, &[&["-u", "-t", "1", "--peer", address], more].concat())
    };
    // A size that does not fit is refused with one that does, also while the path MTU is not known yet.
    for direction in ["--upload", "--download"] {
        let outcome = appliance.speed_test(&["-u", "-l", "1400", "-t", "1", "--idle", "0", "--peer", &v4, direction]);
        assert_eq!(outcome.code, 1, "{direction}: {outcome:?}");
        assert!(outcome.error().error.because.contains("MTU of 1420: use -l 1392"), "{direction}: {outcome:?}");
    }
    for host in [&hosts.near, &hosts.far] {
        host.must(&["ip", "route", "flush", "cache"]);
    }
    for (address, payload) in [(&v4, 1392), (&v6, 1372)] {
        let result = datagrams(address, &["-b", "5M"]);
        for measured in both_ways(&result) {
            let udp = measured.udp.unwrap();
            assert_eq!((udp.payload_bytes, udp.lost), (Some(payload), 0), "{result:#?}");
            assert!(udp.datagrams > 0 && udp.vanished > Some(0), "{result:#?}");
        }
        assert!(!warns(&result, "small_datagrams"), "{result:#?}");
    }
}

#[test]
fn datagrams_become_small_in_a_black_hole_that_tcp_does_not_meet() {
    let Some(hosts) = RoutedHosts::new() else { return };
    clamp(&hosts.router);
    black_hole(&hosts.router, "meta l4proto udp", 1400);
    let reflector = serve(&hosts);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &at(&hosts)[0]);
    let result = measure(&appliance, &reflector, &["-u", "-b", "5M", "-t", "3"]);
    assert!(warns(&result, "small_datagrams") && !warns(&result, "small_segments"), "{result:#?}");
    for measured in both_ways(&result) {
        let udp = measured.udp.unwrap();
        assert_eq!((udp.payload_bytes, udp.lost), (Some(1232), 0), "{result:#?}");
        assert!(udp.datagrams > 0 && udp.vanished > Some(0), "{result:#?}");
    }
}
