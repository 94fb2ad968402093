//! Parses the address of the other end as a user writes it: `HOST[:PORT]`. Resolves no name, and makes no connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use paramedic_link::DEFAULT_PORT;

/// A host and a port, as the user wrote them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host, as a name or an address.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

/// A host, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to resolve, in lower case and without a dot at the end.
    Name(String),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6 {
        /// The address, without the network interface.
        address: Ipv6Addr,
        /// The network interface of a link-local address, as in `fe80::1%eth0`.
        zone: Option<String>,
    },
}

impl Host {
    /// The IP address; `None` if the host is a name.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(address) => Some((*address).into()),
            Self::V6 { address, .. } => Some((*address).into()),
        }
    }
}

impl Host {
    /// Whether the address is link-local and names no interface. Such an address is ambiguous, because the network
    /// `fe80::/64` exists on every interface.
    pub fn lacks_zone(&self) -> bool {
        matches!(self, Self::V6 { address, zone: None } if address.is_unicast_link_local())
    }
}

/// Prints the host for the system's resolver: an IPv6 address has no brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::V4(address) => write!(f, "{address}"),
            Self::V6 { address, zone: None } => write!(f, "{address}"),
            Self::V6 { address, zone: Some(zone) } => write!(f, "{address}%{zone}"),
        }
    }
}

/// Why a text is not a host with an optional port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not an address: {fault}")]
pub struct NotAHostPort {
    /// The wrong text, quoted and with its control characters escaped.
    pub text: String,
    /// What is wrong with the text.
    pub fault: Fault,
}

/// What is wrong with the text of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text of the address is empty.
    #[error("the text is empty")]
    Empty,
    /// The text is a URL and not a host.
    #[error("the text is a URL")]
    Url,
    /// The port is not a number from 1 to 65535.
    #[error("a port must be a number from 1 to 65535")]
    Port,
    /// A bracket is not opened or not closed, or something other than a port follows the closing bracket.
    #[error("a bracket is missing, or something other than :PORT follows the brackets")]
    Brackets,
    /// The host has several colons or is in brackets, but is not a valid IPv6 address.
    #[error("a host with several colons or in brackets must be an IPv6 address")]
    V6,
    /// The text has only digits and dots, but is not an IPv4 address.
    #[error("the text has only digits and dots, but is not an IPv4 address")]
    V4,
    /// The text has a character that is not valid in a host name.
    #[error("the character {0:?} is not valid in a host name")]
    Character(char),
    /// A part of the name between dots is empty or too long, or starts or ends with a dash; or the name as a whole is
    /// too long.
    #[error("the text is not a valid host name")]
    Name,
}

impl HostPort {
    /// Parses `HOST[:PORT]`. Without a port, uses `default_port`. An IPv6 address needs brackets if a port follows.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, NotAHostPort> {
        let text = text.trim();
        read(text, default_port).map_err(|fault| NotAHostPort { text: quoted(text), fault })
    }
}

/// A host and one or more ports, as the user wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    first: HostPort,
    last: u16,
}

impl HostPorts {
    /// The maximum number of ports in a range.
    pub const MOST: usize = 100;

    /// Parses `HOST[:PORT]` or `HOST:FIRST-LAST`. Without a port, uses `default_port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, NotAHostPort> {
        let text = text.trim();
        let Some((first, last)) = range(text) else {
            let first = HostPort::parse(text, default_port)?;
            return Ok(Self { last: first.port, first });
        };
        let first = HostPort::parse(first, default_port)?;
        let bad = || NotAHostPort { text: quoted(text), fault: Fault::Port };
        let last = port(last).map_err(|_| bad())?;
        let ports = Self { first, last };
        if ports.first.port > last || ports.count() > Self::MOST { Err(bad()) } else { Ok(ports) }
    }

    /// The number of ports; at least 1.
    pub fn count(&self) -> usize {
        usize::from(self.last - self.first.port) + 1
    }

    /// The host with the port at position `index` of the range, counted from 0.
    pub fn nth(&self, index: usize) -> HostPort {
        let offset = u16::try_from(index).unwrap_or(u16::MAX);
        HostPort { host: self.first.host.clone(), port: self.first.port.saturating_add(offset).min(self.last) }
    }
}

impl fmt::Display for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 1 { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Splits `HOST:FIRST-LAST` into `HOST:FIRST` and `LAST`. `None` if `text` has no range of ports.
fn range(text: &str) -> Option<(&str, &str)> {
    let (host, ports) = text.rsplit_once(':')?;
    // The last group of a bare IPv6 address is no port.
    let is_port = !host.contains(':') || host.ends_with(']');
    let (first, _) = ports.split_once('-').filter(|_| is_port)?;
    let (first, last) = text.split_at(host.len() + 1 + first.len());
    Some((first, &last[1..]))
}

impl FromStr for HostPort {
    type Err = NotAHostPort;

    fn from_str(text: &str) -> Result<Self, NotAHostPort> {
        Self::parse(text, DEFAULT_PORT)
    }
}

/// Prints the host and the port, even the default port, so that a saved address does not depend on the default.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::V6 { .. } => write!(f, "[{}]:{}", self.host, self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

fn read(text: &str, default_port: u16) -> Result<HostPort, Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if text.contains("://") {
        return Err(Fault::Url);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, behind) = rest.split_once(']').ok_or(Fault::Brackets)?;
        let port = match behind.strip_prefix(':') {
            Some(port) => self::port(port)?,
            None if behind.is_empty() => default_port,
            None => return Err(Fault::Brackets),
        };
        return Ok(HostPort { host: v6(inside)?, port });
    }
    if text.contains(']') {
        return Err(Fault::Brackets);
    }
    match text.split_once(':') {
        None => Ok(HostPort { host: name_or_v4(text)?, port: default_port }),
        // Only an IPv6 address has a second colon, so no port follows it.
        Some((_, rest)) if rest.contains(':') => Ok(HostPort { host: v6(text)?, port: default_port }),
        Some((host, port)) => Ok(HostPort { host: name_or_v4(host)?, port: self::port(port)? }),
    }
}

fn port(text: &str) -> Result<u16, Fault> {
    // `str::parse` alone would accept "+80".
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::Port);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(Fault::Port)
}

fn v6(text: &str) -> Result<Host, Fault> {
    let (address, zone) = match text.split_once('%') {
        None => (text, None),
        Some((address, zone)) => (address, Some(zone)),
    };
    // An interface name has at most 15 bytes (IFNAMSIZ), without slashes and spaces.
    let is_zone =
        |zone: &&str| (1..=15).contains(&zone.len()) && zone.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if zone.iter().any(|zone| !is_zone(zone)) {
        return Err(Fault::V6);
    }
    let address = address.parse().map_err(|_| Fault::V6)?;
    Ok(Host::V6 { address, zone: zone.map(str::to_owned) })
}

fn name_or_v4(text: &str) -> Result<Host, Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if let Ok(address) = text.parse() {
        return Ok(Host::V4(address));
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(Fault::V4);
    }
    // RFC 1123 does not allow underscores in host names, but local networks use them.
    let strange = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if let Some(c) = text.chars().find(strange) {
        return Err(if c == '/' { Fault::Url } else { Fault::Character(c) });
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(Fault::Name);
    }
    Ok(Host::Name(name.to_ascii_lowercase()))
}

/// Prepares a text for an error message: shortens it, quotes it, and escapes its control characters.
fn quoted(text: &str) -> String {
    let short = text.chars().take(80).collect::<String>();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> String {
        text.parse::<HostPort>().unwrap().to_string()
    }

    fn fault(text: &str) -> Fault {
        text.parse::<HostPort>().unwrap_err().fault
    }

    #[test]
    fn a_host_is_valid_with_or_without_a_port() {
        assert_eq!(target("reflector.example.net"), "reflector.example.net:4000");
        assert_eq!(target("Reflector.Example.net.:4001"), "reflector.example.net:4001");
        assert_eq!(target("203.0.113.7"), "203.0.113.7:4000");
        assert_eq!(target("203.0.113.7:1"), "203.0.113.7:1");
        assert_eq!(target(" attic_pi "), "attic_pi:4000");
        assert_eq!(target("2001:db8::7"), "[2001:db8::7]:4000");
        assert_eq!(target("[2001:db8::7]"), "[2001:db8::7]:4000");
        assert_eq!(target("[2001:db8:0::7]:65535"), "[2001:db8::7]:65535");
        assert_eq!(target("fe80::1%eth0"), "[fe80::1%eth0]:4000");
        assert_eq!(target("[fe80::1%eth0]:5000"), "[fe80::1%eth0]:5000");
        // Without brackets the last group is part of the address.
        assert_eq!(target("::1:4000"), "[::1:4000]:4000");
        assert_eq!(HostPort::parse("a", 5201).unwrap().port, 5201);
    }

    #[test]
    fn a_range_of_ports_has_each_of_them() {
        let ports = |text: &str| HostPorts::parse(text, 5201);
        let all = |text: &str| {
            let ports = ports(text).unwrap();
            (0..ports.count()).map(|index| ports.nth(index).to_string()).collect::<Vec<_>>()
        };
        assert_eq!(all("a-b.example"), ["a-b.example:5201"]);
        assert_eq!(all("a:5202"), ["a:5202"]);
        assert_eq!(all("a-b:5201-5203"), ["a-b:5201", "a-b:5202", "a-b:5203"]);
        assert_eq!(all("[2001:db8::7]:65534-65535"), ["[2001:db8::7]:65534", "[2001:db8::7]:65535"]);
        assert_eq!(all("a:9-9"), ["a:9"]);
        assert_eq!(ports("a:5201-5210").unwrap().to_string(), "a:5201-5210");
        assert_eq!(all("2001:db8::7"), ["[2001:db8::7]:5201"]);
        for bad in ["a:5203-5201", "a:0-5", "a:1-", "a:-5", "a:1-101", "a:1-2-3", "a:1-65536"] {
            assert_eq!(ports(bad).unwrap_err().fault, Fault::Port, "{bad}");
        }
        assert_eq!(ports("2001:db8::7-9").unwrap_err().fault, Fault::V6);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(fault(""), Fault::Empty);
        assert_eq!(fault(":4000"), Fault::Empty);
        assert_eq!(fault("https://example.net"), Fault::Url);
        assert_eq!(fault("example.net/path"), Fault::Url);
        assert_eq!(fault("example.net:"), Fault::Port);
        assert_eq!(fault("example.net:0"), Fault::Port);
        assert_eq!(fault("example.net:+80"), Fault::Port);
        assert_eq!(fault("example.net:65536"), Fault::Port);
        assert_eq!(fault("[::1"), Fault::Brackets);
        assert_eq!(fault("[::1]4000"), Fault::Brackets);
        assert_eq!(fault("::1]:4000"), Fault::Brackets);
        assert_eq!(fault("[example.net]"), Fault::V6);
        assert_eq!(fault("fe80::1%"), Fault::V6);
        assert_eq!(fault("a:b:c"), Fault::V6);
        assert_eq!(fault("203.0.113"), Fault::V4);
        assert_eq!(fault("203.0.113.256"), Fault::V4);
        assert_eq!(fault("dachboden.münchen"), Fault::Character('ü'));
        assert_eq!(fault("user@host"), Fault::Character('@'));
        assert_eq!(fault("a..b"), Fault::Name);
        assert_eq!(fault("-a"), Fault::Name);
        assert_eq!(fault(&"a".repeat(64)), Fault::Name);
    }

    #[test]
    fn a_link_local_address_lacks_its_interface() {
        let lacks = |text: &str| text.parse::<HostPort>().unwrap().host.lacks_zone();
        assert!(lacks("[fe80::2]") && lacks("fe80::1:2:3:4") && lacks("[febf::1]:4000"));
        assert!(!lacks("[fe80::2%eth0]") && !lacks("2001:db8::2") && !lacks("169.254.0.1") && !lacks("::1"));
    }

    #[test]
    fn an_error_shows_no_control_character() {
        let error = "a\u{1b}[2Jb".parse::<HostPort>().unwrap_err();
        assert!(!error.to_string().chars().any(char::is_control));
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC*") {
            let _ = text.parse::<HostPort>();
        }

        #[test]
        fn every_ipv4_target_survives_its_text_form(bits: u32, port in 1u16..) {
            let target = HostPort { host: Host::V4(Ipv4Addr::from_bits(bits)), port };
            prop_assert_eq!(target.to_string().parse::<HostPort>(), Ok(target));
        }

        #[test]
        fn every_ipv6_target_survives_its_text_form_and_is_valid_without_brackets(bits: u128, port in 1u16.., zone in "([a-z][a-z0-9.@-]{0,14})?") {
            let zone = (!zone.is_empty()).then_some(zone);
            let target = HostPort { host: Host::V6 { address: Ipv6Addr::from_bits(bits), zone }, port };
            prop_assert_eq!(target.to_string().parse::<HostPort>(), Ok(target.clone()));
            prop_assert_eq!(HostPort::parse(&target.host.to_string(), port), Ok(target));
        }

        #[test]
        fn every_name_survives_its_text_form(name in "[a-z][a-z0-9_]{0,20}(\\.[a-z0-9]{1,10}){0,3}", port in 1u16..) {
            let target = HostPort { host: Host::Name(name), port };
            prop_assert_eq!(target.to_string().parse::<HostPort>(), Ok(target));
        }

        #[test]
        fn every_parsed_target_survives_its_text_form(text in "[\\[\\]a-f0-9:.%-]{0,24}") {
            if let Ok(target) = text.parse::<HostPort>() {
                prop_assert_eq!(target.to_string().parse::<HostPort>(), Ok(target));
            }
        }
    }
}
