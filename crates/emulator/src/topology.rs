//! The hosts of a path in a row, each a network namespace with routes to all others: the appliance first, the reflector
//! last. A hop is either an emulated link or a plain veth pair. With side effects: runs programs.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::forwarder::{Devices, Link};
use crate::namespace::{Namespace, ip};
use crate::record::WatchRule;
use crate::scenario::{Family, Hop};

/// The names of the hosts of a path with one, two or three hops, in order from the appliance.
const ROLES: [&[&str]; 3] =
    [&["appliance", "reflector"], &["appliance", "router", "reflector"], &["appliance", "router", "isp", "reflector"]];

/// The maximum number of packets that wait in a device until the link's thread reads them.
const DEVICE_QUEUE: &str = "20000";

/// The hosts of a path and the links between them. Dropping this value removes them.
#[derive(Debug)]
pub struct Topology {
    /// The emulated links of the path, in order from the appliance.
    pub links: Vec<Link>,
    /// The devices of the emulated links, each with the index of its host in `hosts`.
    devices: Vec<(usize, String)>,
    hosts: Vec<Namespace>,
    /// The MTU of each hop's devices.
    mtus: Vec<usize>,
}

impl Topology {
    /// Creates the hosts of a path with these hops, and starts the emulated links. `seed` determines their random
    /// decisions; their records follow each packet that matches one of the `rules`.
    pub fn new(hops: &[Hop], seed: u64, rules: &[WatchRule]) -> anyhow::Result<Self> {
        let roles = hops.len().checked_sub(1).and_then(|at| ROLES.get(at)).context("a path must have 1 to 3 hops")?;
        let hosts = roles.iter().map(|role| Namespace::new(role)).collect::<anyhow::Result<Vec<_>>>()?;
        for (at, host) in hosts.iter().enumerate() {
            host.run(&["sysctl", "-qw", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.all.accept_ra=0"])?;
            // Duplicate address detection makes an address unusable for a second or two.
            host.run(&["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0"])?;
            host.run(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"])?;
            if at > 0 && at + 1 < hosts.len() {
                host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])?;
            }
        }
        let mut topology = Self {
            links: Vec::new(),
            devices: Vec::new(),
            hosts,
            mtus: hops.iter().map(|hop| hop.mtu.unwrap_or(1500)).collect(),
        };
        let mut devices = Vec::new();
        for (at, hop) in hops.iter().enumerate() {
            devices.push(topology.connect(at, hop)?);
        }
        topology.await_up()?;
        topology.route()?;
        for ((at, hop), devices) in hops.iter().enumerate().zip(devices) {
            let Some(devices) = devices else { continue };
            let seed = seed.wrapping_mul(31).wrapping_add(at as u64);
            let (up, down) = (hop.up.clone().unwrap_or_default(), hop.down.clone().unwrap_or_default());
            topology.links.push(Link::start(&devices, &up, &down, seed, rules)?);
        }
        Ok(topology)
    }

    /// The host on which the appliance runs.
    pub fn appliance(&self) -> &Namespace {
        &self.hosts[0]
    }

    /// The host on which the reflector runs.
    pub fn reflector(&self) -> &Namespace {
        &self.hosts[self.hosts.len() - 1]
    }

    /// Every host, from the appliance to the reflector.
    pub fn hosts(&self) -> &[Namespace] {
        &self.hosts
    }

    /// The address of the appliance's host.
    pub fn appliance_address(&self, family: Family) -> IpAddr {
        address(family, 0, 1)
    }

    /// The address of the reflector's host.
    pub fn reflector_address(&self, family: Family) -> IpAddr {
        address(family, self.hosts.len() - 2, 2)
    }

    /// The number of packets that the kernel dropped before an emulated link could read them.
    pub fn overrun(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for (at, device) in &self.devices {
            let read = self.hosts[*at].run(&["cat", &format!("/sys/class/net/{device}/statistics/tx_dropped")])?;
            sum += read.trim().parse::<u64>().with_context(|| format!("cannot parse tx_dropped of {device}"))?;
        }
        Ok(sum)
    }

    /// Connects the hosts `at` and `at + 1`. Returns the TUN devices of an emulated link; `None` for a plain cable.
    fn connect(&mut self, at: usize, hop: &Hop) -> anyhow::Result<Option<Devices>> {
        let [near, far] = [(at, "right", 1), (at + 1, "left", 2)];
        let devices = if hop.is_emulated() {
            let open = |host: &Namespace, name: &str| host.inside(|| tun(name)).map(Arc::new);
            let devices = Devices { near: open(&self.hosts[at], near.1)?, far: open(&self.hosts[at + 1], far.1)? };
            self.devices.extend([(near.0, near.1.to_owned()), (far.0, far.1.to_owned())]);
            Some(devices)
        } else {
            let [near_host, far_host] = [self.hosts[at].name(), self.hosts[at + 1].name()];
            ip(&["-n", near_host, "link", "add", near.1, "type", "veth", "peer", "name", far.1, "netns", far_host])?;
            None
        };
        let mtu = self.mtus[at].to_string();
        for (host, device, own) in [near, far] {
            let host = &self.hosts[host];
            if devices.is_some() {
                // Without this setting the kernel's own IPv6 messages cross the link. On a cable a router needs the
                // link-local address to ask for the neighbours to which it forwards.
                host.run(&["ip", "link", "set", device, "addrgenmode", "none"])?;
            }
            host.run(&["ip", "link", "set", device, "mtu", &mtu, "txqueuelen", DEVICE_QUEUE, "up"])?;
            let [v4, v6] = [Family::Ipv4, Family::Ipv6].map(|family| address(family, at, own));
            host.run(&["ip", "addr", "add", &format!("{v4}/24"), "dev", device])?;
            host.run(&["ip", "addr", "add", &format!("{v6}/64"), "dev", device, "nodad"])?;
        }
        Ok(devices)
    }

    /// Waits until the kernel has noticed that both ends of every cable are connected. The kernel drops packets that
    /// are sent earlier.
    fn await_up(&self) -> anyhow::Result<()> {
        for (at, host) in self.hosts.iter().enumerate() {
            for device in ["left", "right"] {
                let is_plain = |devices: &[(usize, String)]| !devices.contains(&(at, device.to_owned()));
                let is_there = if device == "left" { at > 0 } else { at + 1 < self.hosts.len() };
                if is_there && is_plain(&self.devices) {
                    let look =
                        format!("until [ \"$(cat /sys/class/net/{device}/operstate)\" = up ]; do sleep 0.01; done");
                    host.run(&["timeout", "10", "sh", "-c", &look]).context("a cable is not up after 10 s")?;
                }
            }
        }
        Ok(())
    }

    /// Gives every host a route to the networks that it is not part of.
    fn route(&self) -> anyhow::Result<()> {
        let hops = self.hosts.len() - 1;
        for (at, host) in self.hosts.iter().enumerate() {
            for family in [Family::Ipv4, Family::Ipv6] {
                for network in (0..hops).filter(|network| *network + 1 != at && *network != at) {
                    // Towards the appliance over the hop before this host, towards the reflector over the hop behind
                    // it.
                    let via = if network < at { address(family, at - 1, 1) } else { address(family, at, 2) };
                    let prefix = if family == Family::Ipv4 { 24 } else { 64 };
                    let target = format!("{}/{prefix}", address(family, network, 0));
                    host.run(&["ip", "route", "add", &target, "via", &via.to_string()])?;
                }
            }
        }
        Ok(())
    }
}

fn tun(name: &str) -> anyhow::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name(name)
        .layer(Layer::L3)
        .enable(false)
        .build_sync()
        .context("cannot create a TUN device")?;
    device.set_nonblocking(true).context("cannot make a TUN device non-blocking")?;
    Ok(device)
}

/// The address of host number `own` in the network of hop `hop`.
fn address(family: Family, hop: usize, own: u16) -> IpAddr {
    let hop = hop as u16;
    match family {
        Family::Ipv4 => IpAddr::from([10, 98, hop as u8, own as u8]),
        Family::Ipv6 => IpAddr::from([0xfd98, hop, 0, 0, 0, 0, 0, own]),
    }
}
