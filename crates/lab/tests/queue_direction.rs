//! Tests with the real programs that a result names the direction in which a queue forms. A hop between the two hosts
//! is slow, in each direction in turn.

use lab::{Appliance, Host, Reflector, RoutedHosts};
use paramedic_link::test_spec::Load;
use paramedic_report::document::{LatencyResult, QueueSide, ResultDocument};

/// Limits what `host` sends on its interface `port` to 20 Mbit/s, with a queue of 100 ms.
fn slow(host: &Host, port: &str) {
    let tbf = ["tc", "qdisc", "replace", "dev", port, "root", "tbf", "rate", "20mbit", "burst", "32kb"];
    host.must(&[&tbf[..], &["latency", "100ms"]].concat());
}

/// Returns the latency in the phase with this load, and checks that the queue's directions add up to its increase.
fn loaded(result: &ResultDocument, load: Load) -> &LatencyResult {
    let latency = result.latency.of(load).unwrap_or_else(|| panic!("no latency: {result:#?}"));
    let (median_us, queue) = (latency.median_us().unwrap(), latency.queue.unwrap());
    assert_eq!(latency.responsiveness_rpm, Some((60_000_000 + median_us / 2) / median_us), "{latency:#?}");
    // Both directions together are the increase of the round trip.
    let increase_ms = result.bufferbloat.of(load).unwrap().increase_ms;
    let sum_ms = queue.upload_ms.unwrap() + queue.download_ms.unwrap();
    assert!((sum_ms - increase_ms).abs() <= 5.0 + increase_ms / 10.0, "{result:#?}");
    latency
}

#[test]
fn the_queue_is_reported_in_the_direction_of_the_slow_hop() {
    let Some(hosts) = RoutedHosts::new() else { return };
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    let measure = |flag: &str| {
        let outcome = appliance.speed_test(&[flag, "-t", "3", "--idle", "1.5"]);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        let result = outcome.result();
        assert!(result.clocks.is_some_and(|clocks| clocks.jump.is_none()), "{result:#?}");
        let report = appliance.run(&["history", "show", &result.id.to_string()]).stdout;
        (result, report)
    };

    slow(&hosts.router, "eth0");
    let (result, report) = measure("--upload");
    let queue = loaded(&result, Load::Upload).queue.unwrap();
    assert_eq!(queue.stands, QueueSide::Upload, "{result:#?}");
    assert!(!queue.is_own(), "{queue:?}");
    // How full TCP keeps the queue varies, so the test compares the directions.
    assert!(queue.upload_ms.unwrap() > 4.0 * queue.download_ms.unwrap(), "{queue:?}\n{report}");
    assert!(report.contains("   upload\n"), "{report}");
    hosts.router.must(&["tc", "qdisc", "del", "dev", "eth0", "root"]);

    slow(&hosts.router, "eth1");
    let (result, report) = measure("--download");
    let queue = loaded(&result, Load::Download).queue.unwrap();
    assert_eq!(queue.stands, QueueSide::Download, "{result:#?}");
    assert!(queue.download_ms.unwrap() > 4.0 * queue.upload_ms.unwrap(), "{queue:?}\n{report}");
    assert!(report.contains("   download\n"), "{report}");
    assert!(queue.own_ms < Some(5.0), "{queue:?}");
    hosts.router.must(&["tc", "qdisc", "del", "dev", "eth1", "root"]);

    // The slow hop is the appliance's own interface. The kernel keeps the part of TCP in that queue short (TCP small
    // queues).
    slow(&hosts.far, "eth0");
    let (result, report) = measure("--upload");
    let queue = loaded(&result, Load::Upload).queue.unwrap();
    assert!(queue.stands == QueueSide::Upload && queue.is_own(), "{result:#?}");
    assert!(queue.own_ms > Some(1.0) && report.contains("   upload, this device\n"), "{queue:?}\n{report}");
}
