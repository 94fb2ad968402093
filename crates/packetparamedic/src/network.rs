//! An IP network: an address, or a prefix in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Returns the part of an address that identifies one user: a whole IPv4 address, or the /64 prefix of
/// an IPv6 address.
pub fn user_part(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// An IP network: a single address, or all addresses with the same prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    length: u8,
}

impl IpNetwork {
    /// Whether `address` is in this network. An IPv4-mapped IPv6 address counts as its IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => leading(self.length, 32, (own.to_bits() ^ other.to_bits()).into()),
            (IpAddr::V6(own), IpAddr::V6(other)) => leading(self.length, 128, own.to_bits() ^ other.to_bits()),
            _ => false,
        }
    }
}

/// Whether the first `length` bits of `difference`, a number of `width` bits, are zero.
fn leading(length: u8, width: u8, difference: u128) -> bool {
    difference.checked_shr(u32::from(width - length)).unwrap_or_default() == 0
}

impl FromStr for IpNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let wrong = || format!("{text:?} is neither an address nor a network such as 192.0.2.0/24");
        let address = address.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => longest,
            Some(length) => length.parse().ok().filter(|length| *length <= longest).ok_or_else(wrong)?,
        };
        Ok(Self { address, length })
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = if self.address.is_ipv4() { 32 } else { 128 };
        match self.length == longest {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_network_contains_the_addresses_of_its_prefix() {
        for (network, inside, outside) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.0/24", "::ffff:192.0.2.255", "192.0.3.0"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "127.0.0.1"),
            ("::/0", "fe80::1", "10.0.0.1"),
        ] {
            let read = network.parse::<IpNetwork>().unwrap();
            assert!(read.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!read.contains(outside.parse().unwrap()), "{network} {outside}");
            assert_eq!(read.to_string(), network);
        }
        for wrong in ["", "proxy", "192.0.2.0/33", "192.0.2.0/", "::/129", "192.0.2.0/-1", "1.2.3", "[::1]"] {
            assert!(wrong.parse::<IpNetwork>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9a-f:./]{0,24}", address: [u8; 16]) {
            if let Ok(network) = text.parse::<IpNetwork>() {
                network.contains(address.into());
            }
        }
    }
}
