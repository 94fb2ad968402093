//! Two hosts made of network namespaces, connected by a veth pair, each with an IPv4 and an IPv6 address.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Two hosts and the link between them. Removed on drop.
#[derive(Debug)]
pub struct TwoHosts {
    /// The reflector's host.
    pub near: Host,
    /// The appliance's host.
    pub far: Host,
}

/// Two hosts with a router between them. No packet that a host sends is longer than an MTU (no segmentation offload),
/// so that the router sees the packets of a real line. Removed on drop.
#[derive(Debug)]
pub struct RoutedHosts {
    /// The reflector's host.
    pub near: Host,
    /// The router between the hosts. Its `eth0` leads to the reflector's host, its `eth1` to the appliance's host. The
    /// fields `v4` and `v6` are the addresses of `eth0`.
    pub router: Host,
    /// The appliance's host.
    pub far: Host,
}

/// A host: a network namespace with its addresses.
#[derive(Debug)]
pub struct Host {
    /// The name of the namespace.
    pub netns: String,
    /// The IPv4 address of the host.
    pub v4: String,
    /// The IPv6 address of the host.
    pub v6: String,
}

/// Returns a tag for the names of new namespaces. Prints SKIPPED and returns `None` without root.
fn new_tag() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return None;
    }
    Some(format!("pp{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

impl RoutedHosts {
    /// Creates two hosts and a router. Prints SKIPPED and returns `None` without root.
    pub fn new() -> Option<Self> {
        let tag = new_tag()?;
        let host = |side: &str, net: u8, n: u8| Host {
            netns: format!("{tag}{side}"),
            v4: format!("10.99.{net}.{n}"),
            v6: format!("fd99:{net}::{n}"),
        };
        let hosts = Self { near: host("a", 0, 1), router: host("r", 0, 9), far: host("b", 1, 1) };
        for host in [&hosts.near, &hosts.router, &hosts.far] {
            host.create();
        }
        let router = &hosts.router;
        router.must(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        for (net, host) in [&hosts.near, &hosts.far].into_iter().enumerate() {
            let port = format!("eth{net}");
            ip(&[
                "-n",
                &router.netns,
                "link",
                "add",
                &port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                &host.netns,
            ]);
            let gateway = [format!("10.99.{net}.9"), format!("fd99:{net}::9")];
            router.join(&port, &gateway[0], &gateway[1]);
            host.join("eth0", &host.v4, &host.v6);
            ip(&["-n", &host.netns, "link", "set", "eth0", "gso_max_segs", "1"]);
            for gateway in &gateway {
                ip(&["-n", &host.netns, "route", "add", "default", "via", gateway]);
            }
        }
        Some(hosts)
    }
}

impl TwoHosts {
    /// Creates two hosts. Prints SKIPPED and returns `None` without root.
    pub fn new() -> Option<Self> {
        let tag = new_tag()?;
        let host = |side: &str, n: u8| Host {
            netns: format!("{tag}{side}"),
            v4: format!("10.99.0.{n}"),
            v6: format!("fd99::{n}"),
        };
        let hosts = Self { near: host("a", 1), far: host("b", 2) };
        for host in [&hosts.near, &hosts.far] {
            host.create();
        }
        let (near, far) = (&hosts.near, &hosts.far);
        ip(&["-n", &near.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &far.netns]);
        for host in [near, far] {
            host.join("eth0", &host.v4, &host.v6);
        }
        Some(hosts)
    }

    /// Takes the link between the hosts down for the rest of the test.
    pub fn cut(&self) {
        ip(&["-n", &self.near.netns, "link", "set", "eth0", "down"]);
    }
}

impl Host {
    fn create(&self) {
        ip(&["netns", "add", &self.netns]);
        ip(&["-n", &self.netns, "link", "set", "lo", "up"]);
    }

    /// Gives the interface `port` its addresses.
    fn join(&self, port: &str, v4: &str, v6: &str) {
        ip(&["-n", &self.netns, "addr", "add", &format!("{v4}/24"), "dev", port]);
        // Without nodad, duplicate address detection makes the address unusable for a second or two.
        ip(&["-n", &self.netns, "addr", "add", &format!("{v6}/64"), "dev", port, "nodad"]);
        ip(&["-n", &self.netns, "link", "set", port, "up"]);
    }

    /// Deletes the namespace, and with it its ends of veth pairs.
    fn delete(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).stderr(Stdio::null()).status();
    }

    /// Loads an nftables ruleset on this host.
    pub fn nft(&self, ruleset: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.netns, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), ruleset.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("nft ends").success(), "nft takes {ruleset}");
    }

    /// Limits what this host sends over the link to `rate`, Ethernet headers included, with a queue of the length
    /// `queue`; both are in the notation of tc(8).
    pub fn shape(&self, rate: &str, queue: &str) {
        let tbf = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb"];
        self.must(&[&tbf[..], &["latency", queue]].concat());
    }

    /// Reads a counter of the link's interface, such as `tx_bytes`.
    pub fn interface_counter(&self, name: &str) -> u64 {
        let read = self.must(&["cat", &format!("/sys/class/net/eth0/statistics/{name}")]);
        read.trim().parse().expect("a number")
    }

    /// Runs a command on this host and returns its exit code; `None` if a signal ended it.
    pub fn exit_of(&self, command: &[&str]) -> Option<i32> {
        let mut on_host = Command::new("ip");
        on_host.args(["netns", "exec", &self.netns]).args(command).stdout(Stdio::null()).stderr(Stdio::null());
        on_host.status().expect("the command runs").code()
    }

    /// Runs a command on this host, which must succeed, and returns its stdout.
    pub fn must(&self, command: &[&str]) -> String {
        let output =
            Command::new("ip").args(["netns", "exec", &self.netns]).args(command).output().expect("the command runs");
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for host in [&self.near, &self.far] {
            host.delete();
        }
    }
}

impl Drop for RoutedHosts {
    fn drop(&mut self) {
        for host in [&self.near, &self.router, &self.far] {
            host.delete();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}
