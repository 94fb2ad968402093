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

/// A network namespace with its addresses.
#[derive(Debug)]
pub struct Host {
    /// The name of the namespace.
    pub netns: String,
    /// The IPv4 address.
    pub v4: String,
    /// The IPv6 address.
    pub v6: String,
}

impl TwoHosts {
    /// Creates two hosts. Prints SKIPPED and returns `None` without root.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return None;
        }
        let tag = format!("pp{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let host = |side: &str, n: u8| Host {
            netns: format!("{tag}{side}"),
            v4: format!("10.99.0.{n}"),
            v6: format!("fd99::{n}"),
        };
        let hosts = Self { near: host("a", 1), far: host("b", 2) };
        for host in [&hosts.near, &hosts.far] {
            ip(&["netns", "add", &host.netns]);
            ip(&["-n", &host.netns, "link", "set", "lo", "up"]);
        }
        let (near, far) = (&hosts.near, &hosts.far);
        ip(&["-n", &near.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &far.netns]);
        for host in [near, far] {
            ip(&["-n", &host.netns, "addr", "add", &format!("{}/24", host.v4), "dev", "eth0"]);
            // Without nodad, duplicate address detection makes the address unusable for a second or two.
            ip(&["-n", &host.netns, "addr", "add", &format!("{}/64", host.v6), "dev", "eth0", "nodad"]);
            ip(&["-n", &host.netns, "link", "set", "eth0", "up"]);
        }
        Some(hosts)
    }

    /// Takes the link down for good.
    pub fn cut(&self) {
        ip(&["-n", &self.near.netns, "link", "set", "eth0", "down"]);
    }
}

impl Host {
    /// Loads an nftables ruleset.
    pub fn nft(&self, ruleset: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.netns, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), ruleset.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("nft ends").success(), "nft takes {ruleset}");
    }

    /// Limits what this host sends over the link to `rate`, Ethernet headers included, with a queue of `queue`, both in the
    /// notation of tc(8).
    pub fn shape(&self, rate: &str, queue: &str) {
        let tbf = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb"];
        self.must(&[&tbf[..], &["latency", queue]].concat());
    }

    /// A counter of the link's interface, such as `tx_bytes`.
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
            // Deleting a namespace deletes its end of the veth pair.
            let _ = Command::new("ip").args(["netns", "del", &host.netns]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}
