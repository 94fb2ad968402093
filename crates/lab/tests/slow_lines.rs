//! Tests slow lines and low rates: the programs keep the requested rate, both ends count the same bytes, and the probes
//! do not fill the line.

use lab::{Appliance, Reflector, TwoHosts};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::ResultDocument;

fn measure(appliance: &Appliance, reflector: &Reflector, args: &[&str]) -> ResultDocument {
    let outcome = appliance.speed_test(args);
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", reflector.log());
    outcome.result()
}

#[test]
fn a_low_rate_limit_is_kept_and_the_number_of_streams_is_stated() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[("MODE", "direct_ephemeral")]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    for mode in ["tunneled", "direct"] {
        let args = ["--data-mode", mode, "-P", "1", "-b", "64k", "-t", "3", "--idle", "0", "-O", "0"];
        let result = measure(&appliance, &reflector, &args);
        for (load, direction) in [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)] {
            let total = result.measured(load, direction).unwrap().total_bytes_received.unwrap();
            // 24,000 bytes in 3 s, and those of the last tenth of a second, which the kernel sends after it.
            assert!((23_000..=26_500).contains(&total), "{mode} {direction}: {total} bytes\n{result:#?}");
        }
    }
    let note = |args: &[&str]| appliance.run(&[&["speed-test", "-t", "0.5", "--idle", "0", "--upload"], args].concat());
    let streams = |args: &[&str]| {
        let outcome = note(args);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stderr
    };
    assert!(streams(&["-b", "10M"]).contains("4 streams × 10.0 Mbit/s"), "{}", streams(&["-b", "10M"]));
    assert!(!streams(&["-b", "10M", "-P", "1"]).contains('×'));
    let udp = measure(&appliance, &reflector, &["-u", "-b", "5M", "-t", "1", "--idle", "0", "--upload"]);
    let upload = udp.upload.unwrap();
    assert_eq!(upload.streams, 1);
    // A second at 5 Mbit/s; four streams would send four times as much.
    assert!(upload.total_bytes_sent.unwrap() < 1_000_000, "{upload:#?}");
}

/// Returns how much the byte counts of both ends differ in the steady part, as a share (0 to 1): the largest difference
/// of any direction.
fn difference(result: &ResultDocument) -> f64 {
    let shares = result.all_measured().map(|(_, _, measured)| {
        let (sent, received) = (measured.bytes_sent.unwrap() as f64, measured.bytes_received as f64);
        (sent / received - 1.0).abs()
    });
    shares.fold(0.0, f64::max)
}

#[test]
fn both_ends_count_the_same_on_a_slow_line_and_the_probes_leave_it_free() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[("MODE", "direct_ephemeral")]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    for host in [&hosts.near, &hosts.far] {
        host.shape("2mbit", "200ms");
    }
    for (mode, flag, load) in [("tunneled", "--upload", Load::Upload), ("direct", "--download", Load::Download)] {
        let args = ["--data-mode", mode, flag, "-t", "4", "--idle", "1"];
        let result = measure(&appliance, &reflector, &args);
        // Each end's window may be off by an interval: 100 ms of at least 2 s.
        assert!(difference(&result) < 0.1, "{mode}: {result:#?}");
        assert_eq!(result.latency.idle.as_ref().unwrap().interval_us, Some(10_000), "{result:#?}");
        let latency = result.latency.of(load).unwrap();
        // 992 bits each on 2 Mbit/s, and a bucket of 32 KiB when the interval is chosen.
        assert!(latency.interval_us.unwrap() >= 35_000, "{latency:#?}");
        assert!(latency.rate_share.unwrap() < 0.02, "{latency:#?}");
    }
    let fixed = measure(
        &appliance,
        &reflector,
        &["--probe-interval", "10ms", "-t", "2", "--idle", "0", "-P", "1", "--download"],
    );
    assert_eq!(fixed.latency.download.as_ref().unwrap().interval_us, Some(10_000));
    assert!(fixed.warnings.iter().any(|warning| warning.code == "probe_load"), "{fixed:#?}");
    for host in [&hosts.near, &hosts.far] {
        // Without a bucket that lets the first packets pass.
        let tbf = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "64kbit", "burst", "1600"];
        host.must(&[&tbf[..], &["latency", "1s"]].concat());
    }
    let args = ["--engine", "echo", "-t", "2"];
    let result = measure(&appliance, &reflector, &args);
    let idle = result.latency.idle.as_ref().unwrap();
    // 100 probes a second would be 99 kbit/s.
    assert_eq!((idle.interval_us, idle.sent < 10), (Some(200_000), true), "{idle:#?}");
}
