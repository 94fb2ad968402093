//! The default routes of the host, from the text of /proc/net/route and /proc/net/ipv6_route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A default route of this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// The metric of the route. A route with a lower metric is preferred.
    pub metric: u32,
    /// The name of the network interface.
    pub interface: String,
    /// The gateway; `None` for a point-to-point line, such as PPP.
    pub gateway: Option<IpAddr>,
}

/// The default routes: those of IPv4 before those of IPv6, and the preferred route first within each family. `ipv4` is
/// the text of /proc/net/route, and `ipv6` that of /proc/net/ipv6_route.
pub fn default_routes(ipv4: &str, ipv6: &str) -> Vec<DefaultRoute> {
    let mut routes = ipv4.lines().skip(1).filter_map(ipv4_route).collect::<Vec<_>>();
    routes.sort();
    let mut of_ipv6 = ipv6.lines().filter_map(ipv6_route).collect::<Vec<_>>();
    of_ipv6.sort();
    routes.extend(of_ipv6);
    routes
}

/// Parses a line of /proc/net/route: interface, destination, gateway, flags, reference count, use, metric, mask. The
/// addresses are hexadecimal, in the byte order of the host.
fn ipv4_route(line: &str) -> Option<DefaultRoute> {
    let fields = line.split_whitespace().collect::<Vec<_>>();
    let [interface, "00000000", gateway, _, _, _, metric, "00000000", ..] = fields[..] else { return None };
    let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
    let gateway = (!gateway.is_unspecified()).then_some(gateway.into());
    Some(DefaultRoute { metric: metric.parse().ok()?, interface: interface.to_owned(), gateway })
}

/// Parses a line of /proc/net/ipv6_route: destination, its prefix length, source, its prefix length, gateway, metric,
/// reference count, use, flags, interface. All numbers are hexadecimal.
fn ipv6_route(line: &str) -> Option<DefaultRoute> {
    let fields = line.split_whitespace().collect::<Vec<_>>();
    let [destination, "00", _, _, gateway, metric, _, _, flags, interface] = fields[..] else { return None };
    // RTF_REJECT: an entry of the kernel that rejects packets without another route.
    let is_reject = u32::from_str_radix(flags, 16).ok()? & 0x0200 != 0;
    if is_reject || interface == "lo" || destination.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
    let gateway = (!gateway.is_unspecified()).then_some(gateway.into());
    Some(DefaultRoute { metric: u32::from_str_radix(metric, 16).ok()?, interface: interface.to_owned(), gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_default_route_comes_first() {
        let gateway = |last: u8| u32::from_ne_bytes([192, 0, 2, last]);
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |name: &str, to: &str, gateway: u32, metric: u32, mask: &str| {
            format!("{name}\t{to}\t{gateway:08X}\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let ipv4 = [
            head.to_owned(),
            route("wlan0", "00000000", gateway(2), 600, "00000000"),
            route("eth0", "00000000", gateway(1), 100, "00000000"),
            route("ppp0", "00000000", 0, 700, "00000000"),
            route("tun0", "0002A8C0", 0, 0, "00FFFFFF"),
            "truncated\t00000000".to_owned(),
        ];
        let zeros = "0".repeat(32);
        let link_local = "fe800000000000000000000000000001";
        let ipv6 = format!(
            "{zeros} 00 {zeros} 00 {link_local} 00000400 00000001 00000000 00000003     eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n\
             fd000000000000000000000000000000 08 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth0\n"
        );
        let routes = default_routes(&ipv4.concat(), &ipv6);
        let found = routes.iter().map(|route| (route.interface.as_str(), route.gateway)).collect::<Vec<_>>();
        let expected = [
            ("eth0", Some("192.0.2.1".parse().unwrap())),
            ("wlan0", Some("192.0.2.2".parse().unwrap())),
            ("ppp0", None),
            ("eth0", Some("fe80::1".parse().unwrap())),
        ];
        assert_eq!(found, expected);
        assert_eq!(default_routes("", ""), []);
        assert_eq!(default_routes(head, "x y"), []);
    }
}
