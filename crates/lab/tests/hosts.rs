//! Tests two hosts with a real link: both data modes, both IP families, firewalls, a link that goes down.

use std::time::{Duration, Instant};

use lab::{Appliance, Reflector, TwoHosts};

const SHORT: &[&str] = &["-t", "1", "--idle", "0.3"];

/// Returns firewall rules that allow only the control port: TCP, and also UDP if `udp` is set.
fn only_port_4000(udp: bool) -> String {
    let udp = if udp { "udp dport 4000 accept; udp sport 4000 accept;" } else { "" };
    format!(
        "table inet filter {{ chain input {{ type filter hook input priority 0; policy drop;
         iifname lo accept; meta l4proto ipv6-icmp accept; tcp dport 4000 accept; tcp sport 4000 accept; {udp}
         }}\n }}\n"
    )
}

fn serve(hosts: &TwoHosts, environment: &[(&str, &str)]) -> Reflector {
    Reflector::serve_on(&["0.0.0.0:4000", "[::]:4000"], Some(&hosts.near.netns), environment)
}

fn both_ways(hosts: &TwoHosts, reflector: &Reflector, more: &[&str], mode: &str, transport: &str) {
    let v6 = format!("[{}]:4000", hosts.near.v6);
    let v4 = format!("{}:4000", hosts.near.v4);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(reflector, &v4);
    for address in [&v4, &v6] {
        let outcome = appliance.speed_test(&[SHORT, more, &["--peer", address]].concat());
        assert_eq!(outcome.code, 0, "{address} {more:?}: {outcome:?}\n{}", reflector.log());
        let result = outcome.json();
        assert_eq!(result["reflector"]["address"], **address);
        assert_eq!(result["data_mode"], mode);
        assert_eq!(result["latency"]["idle"]["transport"], transport, "{result:#}");
        assert_eq!(result["reflector"]["facts_before"]["mtu_bytes"], 1500, "{result:#}");
    }
}

#[test]
fn both_modes_over_both_families() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = serve(&hosts, &[("MODE", "direct_ephemeral")]);
    both_ways(&hosts, &reflector, &["--data-mode", "tunneled"], "tunneled", "udp");
    both_ways(&hosts, &reflector, &["--data-mode", "direct"], "direct_ephemeral", "udp");
}

#[test]
fn tunneled_mode_needs_only_the_control_port() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.nft(&only_port_4000(true));
    }
    let reflector = serve(&hosts, &[]);
    both_ways(&hosts, &reflector, &["--bidir"], "tunneled", "udp");
}

#[test]
fn if_udp_is_blocked_latency_falls_back_to_tcp_with_a_warning() {
    let Some(hosts) = TwoHosts::new() else { return };
    for host in [&hosts.near, &hosts.far] {
        host.nft(&only_port_4000(false));
    }
    let reflector = serve(&hosts, &[]);
    both_ways(&hosts, &reflector, &[], "tunneled", "tcp");
}

#[test]
fn a_link_that_goes_down_ends_both_ends_within_ten_seconds() {
    std::thread::scope(|scope| {
        for mode in ["tunneled", "direct"] {
            scope.spawn(move || cut_in_mid_test(mode));
        }
    });
}

fn cut_in_mid_test(mode: &str) {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = serve(&hosts, &[("MODE", "direct_ephemeral")]);
    let address = format!("{}:4000", hosts.near.v4);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &address);
    let mut running = appliance.start(&["speed-test", "--json-stream", "-t", "60", "--bidir", "--data-mode", mode]);
    while !running.line(Duration::from_secs(30)).unwrap().contains("\"interval\"") {}
    hosts.cut();
    let cut = Instant::now();
    let status = running.wait(Duration::from_secs(60)).unwrap();
    let took = cut.elapsed();
    assert_eq!(status.code(), Some(1));
    // 10 s of silence, plus slack for a loaded machine.
    assert!(took < Duration::from_secs(20), "{mode}: the appliance took {took:?}");
    let rest = running.rest(Duration::from_secs(30)).unwrap();
    let last = serde_json::from_str::<serde_json::Value>(rest.last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["code"]), (&"error".into(), &"silent".into()), "{last:#}");
    assert!(last["measured_so_far"].is_object(), "the partial result is kept: {last:#}");
    let ended = reflector.await_audited("session_ended", |_| true);
    assert!(cut.elapsed() < Duration::from_secs(20), "{mode}: the reflector held the session for {:?}", cut.elapsed());
    // Either the session's timeout or the timeout of a blocked write comes first.
    assert!(["silence", "link_closed"].contains(&ended["reason"].as_str().unwrap()), "{ended:#}");
}

#[test]
fn an_address_that_the_host_gets_later_is_named_or_waited_for() {
    let Some(hosts) = TwoHosts::new() else { return };
    let later = "10.99.0.77";
    let at = format!("{later}:4000");
    let another = || Reflector::idle_in(&hosts.near.netns, &[("LISTEN", &at)]);
    let said = another().fails(&["serve"], 1);
    assert!(said[1].contains("no interface of this host has the address 10.99.0.77"), "{said:?}");
    assert!(said[2].contains("listen_freebind"), "{said:?}");

    let reflector = Reflector::serve_on(&[&at], Some(&hosts.near.netns), &[("LISTEN_FREEBIND", "true")]);
    hosts.near.must(&["ip", "addr", "add", &format!("{later}/24"), "dev", "eth0"]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &at);
    let outcome = appliance.speed_test(SHORT);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
    assert_eq!(outcome.json()["latency"]["idle"]["transport"], "udp", "datagrams arrive there too");

    // An address that another program has is another fault.
    let said = another().fails(&["serve"], 1);
    assert!(said[1].contains("another program uses port 4000 on 10.99.0.77"), "{said:?}");
}

#[test]
fn datagrams_whose_source_is_rewritten_are_counted_and_dropped_ones_are_not() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = serve(&hosts, &[]);
    let at = format!("{}:4000", hosts.near.v4);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &at);
    let counted = |rules: &str| {
        hosts.far.nft(&format!("{rules}\n"));
        let outcome = appliance.speed_test(SHORT);
        hosts.far.nft("flush ruleset\n");
        assert_eq!(outcome.json()["latency"]["idle"]["transport"], "tcp", "{outcome:?}");
        reflector.status()["datagrams_from_elsewhere"].as_u64().unwrap()
    };
    let drop = "table ip f { chain o { type filter hook output priority 0; udp dport 4000 drop\n}\n}";
    assert_eq!(counted(drop), 0);
    hosts.far.must(&["ip", "addr", "add", "10.99.0.3/24", "dev", "eth0"]);
    let rewrite =
        "table ip n { chain p { type nat hook postrouting priority 100; udp dport 4000 snat to 10.99.0.3\n}\n}";
    assert!(counted(rewrite) > 0);
}
