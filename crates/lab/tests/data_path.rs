//! Compares results of the `tcp` engine with the link between two hosts. Every data path must have the same result,
//! bytes must agree with the interface counters, and every packet must have the requested mark and source address.

use lab::{Appliance, Reflector, TwoHosts, says_full};
use paramedic_report::document::{ResultDocument, ThroughputResult};
use serde_json::Value;

/// The total length of the headers of Ethernet, IPv4, and TCP with timestamps, in bytes.
const HEADERS: u64 = 14 + 20 + 32;

/// How often a measurement is repeated if other work on this machine disturbs it.
const TRIES: usize = 6;

fn two_ends(hosts: &TwoHosts) -> (Reflector, Appliance) {
    let environment = [("MODE", "direct_ephemeral")];
    let reflector = Reflector::serve_on(&["0.0.0.0:4000", "[::]:4000"], Some(&hosts.near.netns), &environment);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

/// Runs a test without latency probes, so that nothing but the load is on the link.
fn load(appliance: &Appliance, args: &[&str]) -> ResultDocument {
    let quiet = ["--idle", "0", "--probe-interval", "0", "-C", "cubic"];
    let outcome = appliance.speed_test(&[&quiet[..], args].concat());
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
    outcome.result()
}

fn measured<'a>(result: &'a ResultDocument, direction: &str) -> &'a ThroughputResult {
    let of = if direction == "download" { &result.download } else { &result.upload };
    of.as_ref().unwrap_or_else(|| panic!("no {direction}: {result:#?}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

/// Whether `a` is close to `b`: from `b * (1 - below)` to `b * (1 + above)`.
fn is_between(a: u64, b: u64, below: f64, above: f64) -> bool {
    let apart = a as f64 / b as f64 - 1.0;
    (-below..=above).contains(&apart)
}

#[test]
fn every_data_path_measures_the_same_rate_on_a_shaped_link() {
    // At 500 Mbit/s the timers of a virtual machine can make the shaper itself carry a tenth less than its rate for
    // minutes. There this test finds a data path that reports more than the link carries, or far less.
    for (rate, bps, below) in [("100mbit", 100_000_000, 0.005), ("500mbit", 500_000_000, 0.2)] {
        let Some(hosts) = TwoHosts::new() else { return };
        hosts.near.shape(rate, "50ms");
        hosts.far.shape(rate, "50ms");
        let (_reflector, appliance) = two_ends(&hosts);
        // The payload's share of 1500-byte packets; the shaper does not count preamble and gap.
        let most = bps * 1448 / 1514;
        for direction in ["download", "upload"] {
            let goodput = |path: &str| {
                let way = format!("--{direction}");
                let result = load(&appliance, &[&way, "-t", "3", "-P", "2", "--data-path", path]);
                let measured = measured(&result, direction);
                assert_eq!(measured.total_bytes_sent, measured.total_bytes_received, "{path}: {measured:#?}");
                assert_eq!(result.data_path.unwrap().as_str(), path, "{result:#?}");
                (measured.goodput_bps, says_full(&result))
            };
            // On a busy machine the shaper carries less than its rate for a moment, and a late reader counts more in an
            // interval; a wrong data path would deviate each time.
            for path in ["plain", "trunc", "splice"] {
                let mut told = Vec::new();
                let is_right = (0..TRIES).any(|_| {
                    told.push(goodput(path));
                    told.last().is_some_and(|(told, _)| is_between(*told, most, below, 0.005))
                });
                // If the processor was full each time, the rate is lower and the result warns.
                let is_limit = told.iter().all(|(told, is_full)| *is_full && *told <= most + most / 200);
                assert!(is_right || is_limit, "{rate} {direction} {path}: {told:?} of {most}");
            }
        }
    }
}

#[test]
fn the_bytes_of_a_result_match_the_interface_counters() {
    let Some(hosts) = TwoHosts::new() else { return };
    // The shaper splits large segments into packets, each with its headers.
    hosts.near.shape("200mbit", "50ms");
    hosts.far.shape("200mbit", "50ms");
    let (_reflector, appliance) = two_ends(&hosts);
    for (direction, sender, receiver) in [("download", &hosts.near, &hosts.far), ("upload", &hosts.far, &hosts.near)] {
        let before = ["bytes", "packets"].map(|what| receiver.interface_counter(&format!("rx_{what}")));
        let result = load(&appliance, &[&format!("--{direction}"), "-t", "2", "-P", "4"]);
        let after = ["bytes", "packets"].map(|what| receiver.interface_counter(&format!("rx_{what}")));
        let seen = (after[0] - before[0]) - HEADERS * (after[1] - before[1]);
        let measured = measured(&result, direction);
        let counted = measured.total_bytes_received.unwrap();
        assert_eq!(measured.total_bytes_sent, Some(counted), "{measured:#?}");
        // What was sent twice after a loss crossed the link twice.
        let again = measured.retransmits.unwrap() * u64::from(measured.mss.unwrap());
        assert!(seen >= counted, "{direction}: the interface saw {seen}, counted were {counted}");
        // Tolerance: a thousandth, plus the messages of the link.
        let apart = (seen - again.min(seen)).abs_diff(counted);
        assert!(apart <= counted / 1000 + 32_768, "{direction}: {seen} - {again} seen, {counted} counted");
        assert!(sender.interface_counter("tx_bytes") > counted);
    }
}

#[test]
fn every_packet_of_the_payload_has_the_requested_mark_and_source_address() {
    let Some(hosts) = TwoHosts::new() else { return };
    let other = "10.99.0.77";
    hosts.far.must(&["ip", "addr", "add", &format!("{other}/24"), "dev", "eth0"]);
    for host in [&hosts.near, &hosts.far] {
        host.nft(&format!(
            "table inet seen {{ counter marked {{}}\n counter unmarked {{}}\n counter wrong_source {{}}\n chain input {{
             type filter hook input priority 0; ip dscp af41 counter name marked
             meta l4proto udp ip dscp != af41 counter name unmarked
             ip saddr {} counter name wrong_source\n }}\n }}\n",
            hosts.far.v4
        ));
    }
    let seen = |host: &lab::Host, counter: &str| {
        let told = host.must(&["nft", "-j", "list", "counter", "inet", "seen", counter]);
        let told = serde_json::from_str::<Value>(&told).unwrap();
        let counter = &told["nftables"].as_array().unwrap().last().unwrap()["counter"];
        number(&counter["bytes"])
    };
    let (_reflector, appliance) = two_ends(&hosts);
    for mode in ["direct", "tunneled"] {
        let before = [&hosts.near, &hosts.far].map(|host| seen(host, "marked"));
        let wrong_source = seen(&hosts.near, "wrong_source");
        let from = ["-B", other, "--interface", "eth0", "--dscp", "AF41", "--data-mode", mode];
        let result = load(&appliance, &[&from[..], &["-t", "0.5", "-P", "2", "-b", "20M"]].concat());
        for (at, direction) in [(0, "upload"), (1, "download")] {
            let marked = seen([&hosts.near, &hosts.far][at], "marked") - before[at];
            let counted = measured(&result, direction).total_bytes_received.unwrap();
            assert!(marked >= counted && counted > 0, "{mode} {direction}: {marked} bytes marked of {counted}");
        }
        assert_eq!(seen(&hosts.near, "wrong_source"), wrong_source, "{mode}: nothing came from the other address");
    }
    // Probes and replies wait in the queues of the payload.
    let before = [&hosts.near, &hosts.far].map(|host| seen(host, "marked"));
    let probed = appliance.speed_test(&["--engine", "echo", "-t", "0.5", "--dscp", "AF41"]);
    assert_eq!(probed.code, 0, "{probed:?}");
    let received = probed.result().latency.idle.unwrap().received;
    for (host, before) in [&hosts.near, &hosts.far].into_iter().zip(before) {
        let marked = seen(host, "marked") - before;
        assert!(marked >= received * 124 && received > 0, "{marked} bytes marked for {received} probes");
        assert_eq!(seen(host, "unmarked"), 0, "{}", host.netns);
    }
    let refused = appliance.fails(&["speed-test", "-B", "192.0.2.9"], 2, "bad_request");
    assert_eq!(refused.error.because, "cannot send from the address 192.0.2.9: this host has no such address");
    appliance.fails(&["speed-test", "--interface", "eth9"], 2, "bad_request");
}
