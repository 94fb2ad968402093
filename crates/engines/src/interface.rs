//! The network interface of a link: its speed, its duplex mode, and its traffic. A value that cannot be read is absent.

#![expect(clippy::disallowed_methods, reason = "measures an interface in wall time")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::SockaddrStorage;
use paramedic_link::measurement::{Duplex, InterfaceTraffic};

use crate::sys;

/// The name of this host's interface that has the address `local`.
pub fn of(local: IpAddr) -> Option<String> {
    // On a dual-stack socket an IPv4 address appears as an IPv4-mapped address.
    let local = local.to_canonical();
    let matches_local = |address: &SockaddrStorage| match local {
        IpAddr::V4(local) => address.as_sockaddr_in().is_some_and(|v4| v4.ip() == local),
        IpAddr::V6(local) => address.as_sockaddr_in6().is_some_and(|v6| v6.ip() == local),
    };
    let mut addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses.find(|entry| entry.address.as_ref().is_some_and(matches_local)).map(|entry| entry.interface_name)
}

/// The MTU of `interface`, in bytes.
pub fn mtu_bytes(interface: &str) -> Option<u32> {
    attribute(interface, "mtu")?.parse().ok()
}

/// The link speed that the driver of `interface` reports, in bits per second.
pub fn speed(interface: &str) -> Option<u64> {
    let speed = speed_bps(&attribute(interface, "speed")?)?;
    let is_unset = speed == UNSET_TUNNEL_BPS
        && attribute(interface, "tun_flags").is_some()
        && duplex(interface) == Some(Duplex::Full);
    (!is_unset).then_some(speed)
}

/// The speed in bits per second that a TUN or TAP device reports, together with full duplex, until a user sets a speed
/// (`tun_default_link_ksettings`, drivers/net/tun.c). This value is a default, not a property of the device.
const UNSET_TUNNEL_BPS: u64 = 10_000_000;

/// The duplex mode that the driver of `interface` reports.
pub fn duplex(interface: &str) -> Option<Duplex> {
    duplex_of(&attribute(interface, "duplex")?)
}

/// The highest speed that the driver of `interface` supports, in bits per second. Link modes beyond the first 32 in the
/// kernel's list, for example 2.5 Gbit/s on twisted pair, are not considered.
pub fn max_speed_bps(interface: &str) -> Option<u64> {
    fastest(sys::supported_link_modes(interface).ok()?)
}

/// The value of the attribute `name` of `interface`, read from /sys/class/net.
fn attribute(interface: &str, name: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new("/sys/class/net").join(interface).join(name)).ok()?;
    Some(value.trim().to_owned())
}

/// Converts the text of an interface's attribute `speed` to bits per second. The text is in megabits per second, or -1
/// if the speed is unknown. For wireless interfaces, reading the attribute fails.
pub fn speed_bps(speed: &str) -> Option<u64> {
    speed.parse::<u64>().ok().filter(|mbps| *mbps > 0 && *mbps < u64::from(u32::MAX))?.checked_mul(1_000_000)
}

/// Parses the text of an interface's attribute `duplex`. `None` if the duplex mode is unknown.
pub fn duplex_of(duplex: &str) -> Option<Duplex> {
    match duplex {
        "full" => Some(Duplex::Full),
        "half" => Some(Duplex::Half),
        _ => None,
    }
}

/// The speed in bits per second of the fastest link mode in the bit set `modes` (`ETHTOOL_LINK_MODE_…_BIT`,
/// linux/ethtool.h).
fn fastest(modes: u32) -> Option<u64> {
    const MBPS: [(u32, u64); 8] = [
        (0b11, 10),
        (0b11 << 2, 100),
        (0b11 << 4 | 1 << 17, 1_000),
        (1 << 15, 2_500),
        (1 << 12 | 0b111 << 18, 10_000),
        (0b11 << 21, 20_000),
        (0b1111 << 23, 40_000),
        (0b1111 << 27, 56_000),
    ];
    let supported = MBPS.iter().filter(|(bits, _)| modes & bits != 0);
    supported.map(|(_, mbps)| mbps * 1_000_000).max()
}

/// Measures the traffic of an interface from [`InterfaceClock::start`] on.
#[derive(Clone, Debug)]
pub struct InterfaceClock {
    interface: String,
    /// The bytes that the interface had received and sent when the measurement started.
    counters: [u64; 2],
    read: Instant,
}

impl InterfaceClock {
    /// Starts the measurement at the interface that holds `local`. Returns `None` for loopback, which is not a physical
    /// line, and for an interface without counters.
    pub fn start(local: IpAddr) -> Option<Self> {
        if local.to_canonical().is_loopback() {
            return None;
        }
        let interface = of(local)?;
        Some(Self { counters: counters(&interface)?, interface, read: Instant::now() })
    }

    /// The bytes that the interface has received and sent since [`InterfaceClock::start`], and the elapsed time.
    pub fn traffic(&self) -> Option<InterfaceTraffic> {
        let [received, sent] = counters(&self.interface)?;
        Some(InterfaceTraffic {
            received_bytes: received.checked_sub(self.counters[0])?,
            sent_bytes: sent.checked_sub(self.counters[1])?,
            elapsed_us: u64::try_from(self.read.elapsed().as_micros()).ok()?,
        })
    }
}

/// The bytes that `interface` has received and sent, read from /proc. The counters in /sys may be those of another
/// network namespace.
fn counters(interface: &str) -> Option<[u64; 2]> {
    parse_counters(&fs::read_to_string("/proc/thread-self/net/dev").ok()?, interface)
}

/// Parses the first and the ninth number of the interface's line in the file `dev` of proc_pid_net(5): the bytes
/// received and sent.
fn parse_counters(dev: &str, interface: &str) -> Option<[u64; 2]> {
    let line = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.nth(7)??])
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn an_ipv4_mapped_address_finds_its_interface() {
        assert_eq!(of(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()).as_deref(), Some("lo"));
        assert_eq!(of(Ipv6Addr::from(0x2001_0db8_u128 << 96).into()), None);
    }

    #[test]
    fn an_unknown_speed_or_mode_is_absent() {
        assert_eq!(speed_bps("2500"), Some(2_500_000_000));
        assert_eq!([speed_bps("-1"), speed_bps("4294967295"), speed_bps("0"), speed_bps("")], [None; 4]);
        assert_eq!(
            ["full", "half", "unknown", ""].map(duplex_of),
            [Some(Duplex::Full), Some(Duplex::Half), None, None]
        );
    }

    #[test]
    fn the_fastest_supported_mode_counts() {
        // The modes of an interface for 10, 100 and 1000 Mbit/s, with the bits of its ports and of autonegotiation.
        assert_eq!(fastest(0b0010_1110_1111), Some(1_000_000_000));
        assert_eq!(
            (fastest(0b1111), fastest(0b11), fastest(1 << 12 | 0xff)),
            (Some(100_000_000), Some(10_000_000), Some(10_000_000_000))
        );
        // The bits of a port and of autonegotiation stand for no speed.
        assert_eq!((fastest(0), fastest(0b1100_0000)), (None, None));
    }

    #[test]
    fn the_counters_are_those_of_the_interface_itself() {
        let dev = "Inter-|   Receive | Transmit\n face |bytes packets\n eth01: 9 9 9 9 9 9 9 9 9 9\n  eth0: 100 2 0 0 0 0 0 \
                   0 50 1 0 0 0 0 0 0\n eth2:7 1 0 0 0 0 0 0 8 0\n eth3: 1 2\n";
        assert_eq!(parse_counters(dev, "eth0"), Some([100, 50]));
        assert_eq!(parse_counters(dev, "eth2"), Some([7, 8]), "a long number leaves no space");
        assert_eq!((parse_counters(dev, "eth3"), parse_counters(dev, "eth")), (None, None));
    }

    #[test]
    fn loopback_is_no_line() {
        assert!(InterfaceClock::start(Ipv4Addr::LOCALHOST.into()).is_none());
        assert!(InterfaceClock::start(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()).is_none());
        assert!(counters("lo").is_some() && counters("nonesuch").is_none());
    }
}
