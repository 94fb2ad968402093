//! Tests paths that block data: firewalls that drop data connections, UDP, or UDP replies, and a NAT that rewrites the
//! source of UDP. If direct mode is blocked, a test without a chosen data mode uses the tunnel.

use lab::{Appliance, Host, Reflector, TwoHosts};
use paramedic_report::document::ErrorBody;
use serde_json::Value;

const SHORT: &[&str] = &["-t", "0.4", "--idle", "0.2", "--download"];

fn serve(hosts: &TwoHosts, environment: &[(&str, &str)]) -> Reflector {
    Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), environment)
}

fn pair(hosts: &TwoHosts, reflector: &Reflector) -> Appliance {
    Appliance::in_netns(&hosts.far.netns).pair(reflector, &format!("{}:4000", hosts.near.v4))
}

/// Replaces the firewall rules of a host for arriving packets by `rule`.
fn firewall(host: &Host, rule: &str) {
    host.nft(&format!("flush ruleset\ntable ip f {{ chain i {{ type filter hook input priority 0; {rule}\n}}\n}}\n"));
}

fn rejoin(host: &Host) {
    host.nft("flush ruleset\n");
}

const RANGE: &str = "5201-5299";
const DIRECT: [(&str, &str); 2] = [("MODE", "direct_ephemeral"), ("DATA_PORT_RANGE", RANGE)];

/// Runs a speed test that must succeed, and returns its result.
fn measure(appliance: &Appliance, reflector: &Reflector, args: &[&str]) -> Value {
    let outcome = appliance.speed_test(&[SHORT, args].concat());
    assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", reflector.log());
    outcome.json()
}

/// Runs a speed test that must fail, and returns its error. Runs it only once, because a second run would change the
/// counters of firewall rules.
fn fails(appliance: &Appliance, args: &[&str]) -> ErrorBody {
    let outcome = appliance.speed_test(args);
    assert_eq!(outcome.code, 1, "{args:?}: {outcome:?}");
    let error = outcome.error().error;
    assert_eq!(error.code, "no_data_connection", "{outcome:?}");
    error
}

fn warns(result: &Value, code: &str) -> bool {
    result["warnings"].as_array().unwrap().iter().any(|warning| warning["code"] == code)
}

/// Returns the data modes of the sessions that the reflector granted, without the first `before` sessions.
fn modes(reflector: &Reflector, before: usize) -> Vec<String> {
    let granted = reflector.audited("session_granted").split_off(before);
    granted.iter().map(|line| line["data_mode"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn blocked_data_ports_lead_through_the_tunnel_and_are_remembered_until_direct_mode_works() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = serve(&hosts, &[&DIRECT[..], &[("MAX_TESTS_PER_HOUR", "5")]].concat());
    let appliance = pair(&hosts, &reflector);

    firewall(&hosts.near, &format!("meta l4proto {{ tcp, udp }} th dport {RANGE} drop"));
    let result = measure(&appliance, &reflector, &["--min-download", "1M", "--max-loaded-loss", "50%"]);
    assert_eq!(modes(&reflector, 0), ["direct_ephemeral", "tunneled"]);
    assert_eq!(result["data_mode"], "tunneled", "{result:#}");
    let fallback = &result["data_mode_fallback"];
    assert_eq!((&fallback["tried"], &fallback["reason"]), (&"direct_ephemeral".into(), &"silent".into()));
    assert!(fallback["address"].as_str().unwrap().starts_with("10.99.0.1:52"), "{fallback}");
    assert!(warns(&result, "direct_blocked") && result["latency"]["idle"]["transport"] == "udp", "{result:#}");
    let thresholds = result["thresholds"].as_array().unwrap();
    assert_eq!(thresholds.len(), 2);
    for threshold in thresholds {
        assert_eq!((&threshold["passed"], &threshold["through_tunnel"]), (&true.into(), &true.into()), "{threshold}");
    }
    let report = appliance.run(&["history", "show", result["id"].as_str().unwrap()]).stdout;
    assert!(report.contains("through the tunnel"), "{report}");

    // The next test does not try direct mode, and says so, too.
    let result = measure(&appliance, &reflector, &[]);
    assert_eq!(modes(&reflector, 2), ["tunneled"]);
    let fallback = &result["data_mode_fallback"];
    assert_eq!((&fallback["reason"], fallback.get("address")), (&"remembered".into(), None));
    assert!(fallback["found_at"].is_string() && warns(&result, "direct_blocked"), "{result:#}");

    // A chosen mode is never replaced. Once it works, the memory is cleared.
    let direct = [SHORT, &["--data-mode", "direct"]].concat();
    firewall(&hosts.near, &format!("meta l4proto {{ tcp, udp }} th dport {RANGE} reject"));
    let error = fails(&appliance, &direct);
    assert!(error.because.contains("0 of 4 streams were opened") && error.try_.contains("tunneled"), "{error:?}");
    rejoin(&hosts.near);
    for args in [&["--data-mode", "direct"][..], &[]] {
        let result = measure(&appliance, &reflector, args);
        assert_eq!((&result["data_mode"], result.get("data_mode_fallback")), (&"direct_ephemeral".into(), None));
    }
    // The two sessions of the first test were one test.
    appliance.fails(&[&["speed-test"], SHORT].concat(), 5, "tests_per_hour");
}

#[test]
fn a_test_falls_back_if_every_stream_is_blocked_and_only_then() {
    let scenarios: [(&str, &[&str], &str); 3] = [
        ("tcp dport 5201-5299 reject with tcp reset", &["-P", "9"], "refused"),
        // A handshake succeeds, and what follows it is dropped.
        ("tcp dport 5201-5299 meta length > 80 drop", &[], "silent"),
        // Datagrams to the control port pass.
        ("udp dport 5201-5299 drop", &["-u"], "silent"),
    ];
    std::thread::scope(|scope| {
        for (rule, args, reason) in scenarios {
            scope.spawn(move || {
                let Some(hosts) = TwoHosts::new() else { return };
                let reflector = serve(&hosts, &DIRECT);
                let appliance = pair(&hosts, &reflector);
                firewall(&hosts.near, rule);
                let result = measure(&appliance, &reflector, args);
                assert_eq!((&result["data_mode"], &result["complete"]), (&"tunneled".into(), &true.into()));
                assert_eq!(result["data_mode_fallback"]["reason"], reason, "{rule}: {result:#}");
                assert_eq!(modes(&reflector, 0), ["direct_ephemeral", "tunneled"]);
            });
        }
        scope.spawn(|| {
            let Some(hosts) = TwoHosts::new() else { return };
            let reflector = serve(&hosts, &DIRECT);
            let appliance = pair(&hosts, &reflector);
            let syn = format!("tcp dport {RANGE} tcp flags & (syn|ack) == syn");
            firewall(&hosts.near, &format!("{syn} limit rate over 1/day burst 2 packets reject with tcp reset"));
            let error = fails(&appliance, SHORT);
            assert!(error.because.contains("2 of 4 streams were opened"), "{error:?}");
            assert_eq!(modes(&reflector, 0), ["direct_ephemeral"]);
        });
    });
}

/// The nftables chain of a NAT that gives datagrams to the reflector another source address.
const NAT: &str = "chain p { type nat hook postrouting priority 100; udp dport 4000 snat to 10.99.0.3\n}";

/// Returns a firewall chain that applies `rule` to the datagrams that the appliance's host sends.
fn rewriting(rule: &str) -> String {
    format!("chain p {{ type filter hook postrouting priority 300; udp dport 4000 {rule}\n}}")
}

#[test]
fn dropped_datagrams_and_a_nat_that_rewrites_their_source_are_told_apart() {
    let input = |rule: &str| format!("chain i {{ type filter hook input priority 0; {rule}\n}}");
    // What the hosts of reflector and appliance do, what the error says, and whether the reflector counts it.
    let scenarios = [
        (input("udp dport 4000 drop"), String::new(), "no datagram of this test reached the reflector", false),
        (String::new(), input("udp sport 4000 drop"), "its answers did not arrive here", false),
        (String::new(), NAT.to_owned(), "a NAT on the way rewrites the source", true),
        // Another port from the second signal of a stream on (kind 7), and another one for each datagram.
        (String::new(), rewriting("@th,72,8 7 udp sport set 40000"), "a NAT on the way rewrites the source", true),
        (
            String::new(),
            rewriting("udp sport set numgen inc mod 3 map { 0 : 40001, 1 : 40002, 2 : 40003 }"),
            "a NAT on the way rewrites the source",
            true,
        ),
    ];
    std::thread::scope(|scope| {
        for (near, far, expected, is_counted) in scenarios {
            scope.spawn(move || {
                let Some(hosts) = TwoHosts::new() else { return };
                let reflector = serve(&hosts, &[]);
                let appliance = pair(&hosts, &reflector);
                hosts.far.must(&["ip", "addr", "add", "10.99.0.3/24", "dev", "eth0"]);
                hosts.near.nft(&format!("table ip f {{ {near}\n}}\n"));
                hosts.far.nft(&format!("table ip f {{ {far}\n}}\n"));
                let error =
                    fails(&appliance, &["-u", "-t", "0.4", "--idle", "0", "--probe-interval", "0", "--download"]);
                assert!(error.because.contains(expected), "{near}{far}: {error:?}");
                assert_eq!(error.try_.contains("allow UDP"), !is_counted, "{error:?}");
                assert_eq!(reflector.status()["datagrams_from_elsewhere"].as_u64().unwrap() > 0, is_counted);
            });
        }
        for (drops, expected) in [(true, "no UDP datagram"), (false, "a NAT on the way rewrites the source")] {
            scope.spawn(move || {
                let Some(hosts) = TwoHosts::new() else { return };
                let reflector = serve(&hosts, &[]);
                let appliance = pair(&hosts, &reflector);
                hosts.far.must(&["ip", "addr", "add", "10.99.0.3/24", "dev", "eth0"]);
                match drops {
                    true => firewall(&hosts.near, "udp dport 4000 drop"),
                    false => hosts.far.nft(&format!("table ip f {{ {NAT}\n}}\n")),
                }
                let result = measure(&appliance, &reflector, &[]);
                let warnings = result["warnings"].as_array().unwrap();
                let warning = warnings.iter().find(|warning| warning["code"] == "udp_blocked").unwrap();
                assert!(warning["text"].as_str().unwrap().contains(expected), "{warning}");
                let doctor = appliance.run(&["doctor", "--json"]).json();
                let check = doctor["checks"].as_array().unwrap().iter().find(|check| check["code"] == "udp_blocked");
                let check = check.unwrap_or_else(|| panic!("{doctor:#}"));
                assert!(check["because"].as_str().unwrap().contains(expected), "{check}");
            });
        }
    });
}
