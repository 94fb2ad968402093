//! Tests the engine `udp` between two hosts with a real link: the requested rate arrives, the rate search finds the
//! rate of the link, and sending stops when no feedback arrives.

use std::time::Duration;

use lab::{Appliance, Host, Reflector, TwoHosts, event, says_full};
use paramedic_link::test_spec::Load;
use paramedic_report::document::{Event, Omitted, ResultDocument};

/// Arguments of a test with one UDP stream and without probes, so that only the datagrams of the load are on the link.
const ALONE: &[&str] = &["-u", "-P", "1", "--idle", "0", "--probe-interval", "0"];

fn pair(hosts: &TwoHosts) -> (Reflector, Appliance) {
    let listen = ["0.0.0.0:4000", "[::]:4000"];
    let reflector = Reflector::serve_on(&listen, Some(&hosts.near.netns), &[("MODE", "direct_ephemeral")]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

fn measure(appliance: &Appliance, reflector: &Reflector, args: &[&str]) -> ResultDocument {
    let outcome = appliance.speed_test(&[ALONE, args].concat());
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", reflector.log());
    let result = outcome.result();
    assert!(result.engine.as_str() == "udp" && result.complete, "{result:#?}");
    result
}

/// Returns the bytes that the host has sent on its link so far.
fn sent(host: &Host) -> u64 {
    host.must(&["cat", "/sys/class/net/eth0/statistics/tx_bytes"]).trim().parse().unwrap()
}

#[test]
fn datagrams_arrive_in_both_modes_over_both_families_in_all_sizes() {
    let Some(hosts) = TwoHosts::new() else { return };
    let (reflector, appliance) = pair(&hosts);
    let (v4, v6) = (format!("{}:4000", hosts.near.v4), format!("[{}]:4000", hosts.near.v6));
    let sizes: [(&[&str], u64); 3] =
        [(&["-l", "52"], 52), (&[], 1400), (&["-l", "65507", "--fragments", "-b", "8M"], 65_507)];
    for (mode, name) in [("tunneled", "tunneled"), ("direct", "direct_ephemeral")] {
        for address in [&v4, &v6] {
            for (size, bytes) in sizes {
                let args = [&["--peer", address, "--data-mode", mode, "-t", "1", "--bidir"], size].concat();
                let result = measure(&appliance, &reflector, &args);
                assert_eq!(result.data_mode.unwrap().to_string(), name);
                let wanted =
                    [Load::Download, Load::Upload, Load::Bidir].map(|load| (load, load.directions().last().unwrap()));
                for (load, direction) in wanted {
                    let measured = result.measured(load, *direction).unwrap();
                    let udp = measured.udp.unwrap();
                    assert_eq!((udp.payload_bytes.map(u64::from), udp.lost), (Some(bytes), 0), "{result:#?}");
                    assert_eq!((udp.duplicates, udp.out_of_order), (Some(0), Some(0)), "{result:#?}");
                    assert_eq!(Some(udp.datagrams * bytes), measured.total_bytes_received, "{result:#?}");
                }
            }
        }
    }
}

#[test]
fn datagrams_above_the_path_mtu_are_sent_only_with_fragments() {
    let Some(hosts) = TwoHosts::new() else { return };
    let (_reflector, appliance) = pair(&hosts);
    for direction in ["--upload", "--download"] {
        let args = [&["speed-test", "-t", "1", "-l", "1473", direction], ALONE].concat();
        let code = if direction == "--upload" { "no_data_connection" } else { "phase_not_started" };
        let said = appliance.fails(&args, 1, code);
        let because = &said.error.because;
        assert!(because.contains("MTU of 1500") && because.contains("--fragments"), "{said:?}");
    }
    for (args, why) in [
        (["-u", "--engine", "tcp"], "--engine names tcp"),
        (["-u", "-l", "51"], "52 to 65507"),
        (["-u", "-l", "65508"], "52 to 65507"),
        (["-u", "--loss-bound", "2%"], "-b 0"),
        (["-u", "-C", "cubic"], "congestion control"),
        (["-4", "--loss-bound", "2%"], "need the engine udp"),
    ] {
        let said = appliance.fails(&[&["speed-test"], args.as_slice()].concat(), 2, "bad_request");
        assert!(said.error.because.contains(why), "{said:?}");
    }
}

/// The maximum number of attempts at a rate search. Other work on this machine can disturb it, because the link then
/// carries less than its rate.
const TRIES: usize = 6;

/// Asserts that the rate search on a link of `mbit` Mbit/s finds the link's payload rate within 5 %, with packet loss
/// under the bound.
fn search(mbit: u64, burst: &str, queue: &str) {
    let Some(hosts) = TwoHosts::new() else { return };
    let (reflector, appliance) = pair(&hosts);
    let rate = format!("{mbit}mbit");
    for host in [&hosts.near, &hosts.far] {
        let shaper =
            ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", burst, "limit", queue];
        host.must(&shaper);
    }
    // The shaper counts 42 bytes more than the 1400 of payload: UDP, IPv4 and Ethernet.
    let carries = mbit as f64 * 1e6 * 1400.0 / 1442.0;
    for (flag, direction) in [("--download", "download"), ("--upload", "upload")] {
        let mut found = Vec::new();
        let is_right = (0..TRIES).any(|_| {
            let result = measure(&appliance, &reflector, &["-b", "0", "-t", "6", flag]);
            let measured = if flag == "--download" { &result.download } else { &result.upload };
            let measured = measured.as_ref().unwrap();
            let udp = measured.udp.unwrap();
            let (share, loss) = (measured.goodput_bps as f64 / carries, udp.loss);
            let is_settled = udp.search.is_some() && measured.omitted == Omitted::Found;
            found.push((share, loss, is_settled, says_full(&result)));
            (0.95..1.05).contains(&share) && loss < 0.01 && is_settled
        });
        // If the processor was full each time, the rate is lower and the result warns.
        let is_limit = found.iter().all(|(share, .., is_full)| *is_full && *share < 1.05);
        assert!(is_right || is_limit, "{direction}, share of the link, loss, settled, processor full: {found:?}");
    }
}

#[test]
fn the_search_finds_a_link_of_20_mbit() {
    search(20, "32kb", "64kb");
}

#[test]
fn the_search_finds_a_link_of_100_mbit() {
    search(100, "128kb", "256kb");
}

const CUT: &str = "table inet cut { chain out { type filter hook output priority 0; meta l4proto udp drop;\n }\n }\n";

/// Asserts that sending at 20 Mbit/s stops within a second once no feedback arrives, and continues when feedback
/// arrives again.
fn cut(direction: &str, of: impl Fn(&TwoHosts) -> (&Host, &Host)) {
    let Some(hosts) = TwoHosts::new() else { return };
    let (reflector, appliance) = pair(&hosts);
    let (sender, receiver) = of(&hosts);
    let args = [&["speed-test", "--json-stream", direction, "-b", "20M", "-t", "20"], ALONE].concat();
    let mut running = appliance.start(&args);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"interval\"") {}
    let flows = |for_ms: u64| {
        let before = sent(sender);
        std::thread::sleep(Duration::from_millis(for_ms));
        sent(sender) - before
    };
    let mut still = Vec::new();
    // On a busy machine the sender may process feedback late that was sent before the cut.
    let is_heeded = (0..3).any(|_| {
        assert!((0..25).any(|_| flows(200) > 200_000), "{direction}: it flows\n{}", reflector.log());
        receiver.nft(CUT);
        std::thread::sleep(Duration::from_secs(1));
        // One second of data is 2.5 MB; the rest are the link's own messages.
        still.push(flows(1000));
        receiver.nft("delete table inet cut\n");
        still.last() < Some(&50_000)
    });
    assert!(is_heeded, "{direction}: {still:?} bytes in the second after the first one");
    assert!((0..25).any(|_| flows(200) > 200_000), "{direction}: it goes on\n{}", reflector.log());
    let lines = running.rest(Duration::from_secs(60)).unwrap();
    assert!(running.wait(Duration::from_secs(30)).unwrap().success(), "{lines:?}");
    let Event::Result(result) = event(lines.last().unwrap()) else { panic!("no result: {lines:?}") };
    assert!(result.warnings.iter().any(|warning| warning.code == "sending_paused"), "{result:#?}");
    let paused = result.all_measured().any(|(_, _, measured)| measured.udp.is_some_and(|udp| udp.paused_ms > Some(0)));
    assert!(paused, "{result:#?}");
}

#[test]
fn an_upload_without_feedback_stops_within_a_second() {
    cut("--upload", |hosts| (&hosts.far, &hosts.near));
}

#[test]
fn a_download_without_feedback_stops_within_a_second() {
    cut("--download", |hosts| (&hosts.near, &hosts.far));
}
