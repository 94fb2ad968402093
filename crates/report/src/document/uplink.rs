//! The part of the result document that names the appliance's connection to the Internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The appliance's connection to the Internet (the uplink) during a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkLabel {
    /// The network interface of the IPv4 default route when the run began; absent if there was no such route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The prefix of the appliance's IP address as the reflector sees it, after every NAT: the /24 of an IPv4 address,
    /// or the /48 of an IPv6 address. Absent if the reflector does not report the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_prefix: Option<String>,
}

impl UplinkLabel {
    /// Whether nothing about the uplink is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Sets the public prefix from `address`, the appliance's address as the reflector sees it.
    pub fn set_observed(&mut self, address: IpAddr) {
        self.public_prefix = Some(match address.to_canonical() {
            IpAddr::V4(address) => format!("{}/24", Ipv4Addr::from_bits(address.to_bits() & !0xff)),
            IpAddr::V6(address) => format!("{}/48", Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> 48))),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_an_address_has_no_host_in_it() {
        for (address, expected) in [
            ("203.0.113.77", "203.0.113.0/24"),
            ("::ffff:203.0.113.77", "203.0.113.0/24"),
            ("2001:db8:7:8::9", "2001:db8:7::/48"),
            ("::1", "::/48"),
        ] {
            let mut uplink = UplinkLabel::default();
            uplink.set_observed(address.parse().unwrap());
            assert_eq!(uplink.public_prefix.as_deref(), Some(expected), "{address}");
        }
        assert!(UplinkLabel::default().is_empty());
    }
}
