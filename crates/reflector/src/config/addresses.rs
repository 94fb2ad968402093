//! Parses ports and addresses: `5201-5299`, `192.0.2.7:4000`. Pure: no I/O, no clock.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use paramedic_link::DEFAULT_PORT;

/// Where the reflector serves its metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsListen {
    /// The metrics are not served.
    Off,
    /// The metrics are served at this TCP address.
    Address(SocketAddr),
    /// The metrics are served at the Unix socket with this absolute path.
    Socket(PathBuf),
}

impl MetricsListen {
    /// Whether other hosts may be able to connect to the metrics.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Address(address) if !address.ip().to_canonical().is_loopback())
    }

    /// Whether the metrics and a listener at `other` would need the same address and port, so that only one of the two
    /// could be served.
    pub(super) fn collides_with(&self, other: SocketAddr) -> bool {
        let Self::Address(own) = self else { return false };
        let is_same = own.ip() == other.ip() || own.ip().is_unspecified() || other.ip().is_unspecified();
        // The kernel chooses a free port for 0.
        own.port() == other.port() && own.port() != 0 && is_same
    }

    /// The TCP port of the metrics; `None` if they are not served over TCP.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => Some(address.port()),
            Self::Off | Self::Socket(_) => None,
        }
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Address(address) => address.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Parses where to serve the metrics: `off`, `ADDR:PORT`, `PORT` (of 127.0.0.1), or the absolute path of a Unix socket.
/// An error says what is wrong with the text.
pub(super) fn parse_metrics_listen(text: &str) -> Result<MetricsListen, String> {
    let text = text.trim();
    if text == "off" {
        return Ok(MetricsListen::Off);
    }
    if text.starts_with('/') {
        return Ok(MetricsListen::Socket(text.into()));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(MetricsListen::Address(address));
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(MetricsListen::Address(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
    }
    Err(match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(_) => format!("{text:?} has no port"),
        Err(_) => format!("{text:?} is neither an address with a port nor an absolute path"),
    })
}

/// Parses a range of ports, both ends included: `5201-5299`, or a single port. An error says what is wrong with the
/// text.
pub(super) fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.trim().parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("{:?} is not a port", text.trim())),
        Ok(port) => Ok(port),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("{first}-{last} ends before it begins"));
    }
    Ok(first..=last)
}

/// Parses an address to listen on: `ADDR:PORT`, `ADDR` (with port 4000), `PORT` or `:PORT` (both IP families, so two
/// addresses). An error says what is wrong with the text.
pub(super) fn parse_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(both_families(port).to_vec());
    }
    Err(format!("{text:?} is not an IP address"))
}

/// The given port on all addresses of both IP families.
pub(super) fn both_families(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", number in "[0-9.:-]{0,40}") {
            for text in [text, number] {
                let _ = (parse_ports(&text), parse_listen(&text), parse_metrics_listen(&text));
            }
        }
    }

    #[test]
    fn a_range_of_one_port_is_a_range() {
        assert_eq!(parse_ports("5201-5299"), Ok(5201..=5299));
        assert_eq!(parse_ports(" 5201 "), Ok(5201..=5201));
        assert!(parse_ports("5299-5201").unwrap_err().contains("ends before it begins"));
        assert!(parse_ports("0-5").is_err() && parse_ports("5201-").is_err() && parse_ports("65536").is_err());
    }

    #[test]
    fn metrics_are_served_on_an_address_a_port_of_loopback_or_a_socket() {
        let is = |text: &str, address: &str, is_remote: bool| {
            let parsed = parse_metrics_listen(text).unwrap();
            assert_eq!(parsed, MetricsListen::Address(address.parse().unwrap()), "{text}");
            assert_eq!(parsed.is_remote(), is_remote, "{text}");
            assert_eq!(parse_metrics_listen(&parsed.to_string()), Ok(parsed));
        };
        is("4001", "127.0.0.1:4001", false);
        is(" :0 ", "127.0.0.1:0", false);
        is("127.9.9.9:1", "127.9.9.9:1", false);
        is("[::1]:1", "[::1]:1", false);
        is("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", false);
        is("0.0.0.0:1", "0.0.0.0:1", true);
        is("[::]:1", "[::]:1", true);
        is("192.0.2.7:1", "192.0.2.7:1", true);
        is("[::ffff:192.0.2.7]:1", "[::ffff:192.0.2.7]:1", true);
        assert_eq!(parse_metrics_listen("off"), Ok(MetricsListen::Off));
        assert_eq!(parse_metrics_listen("/run/m.sock"), Ok(MetricsListen::Socket("/run/m.sock".into())));
        for bad in [
            "",
            "on",
            "localhost:4001",
            "m.sock",
            "./m.sock",
            "127.0.0.1",
            "[::1]",
            "::1",
            "65536",
            "http://127.0.0.1:1",
        ] {
            assert!(parse_metrics_listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_means_both_families() {
        assert_eq!(parse_listen("5000"), Ok(both_families(5000).to_vec()));
        assert_eq!(parse_listen(":0"), Ok(both_families(0).to_vec()));
        assert_eq!(parse_listen("127.0.0.1"), Ok(vec!["127.0.0.1:4000".parse().unwrap()]));
        assert_eq!(parse_listen("[::1]"), Ok(vec!["[::1]:4000".parse().unwrap()]));
        assert_eq!(parse_listen("::1"), Ok(vec!["[::1]:4000".parse().unwrap()]));
        assert_eq!(parse_listen("[::1]:1"), Ok(vec!["[::1]:1".parse().unwrap()]));
        assert!(parse_listen("example.org:4000").is_err() && parse_listen("1.2.3.4:99999").is_err());
    }
}
