//! A monitor as its owner defines it, and the checks before it is accepted.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use paramedic_report::quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dns_query;
use super::http_url::HttpUrl;
use crate::object_name::is_name_char;
use crate::targets::{Host, HostPort};

/// The longest name of a monitor, in characters.
const MAX_NAME_CHARS: usize = 60;
/// The default interval of monitors of a gateway, a reflector or a host.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// The default interval between queries of a DNS server.
const DNS_INTERVAL: Duration = Duration::from_secs(30);
/// The shortest valid interval between queries of a DNS server.
const MIN_DNS_INTERVAL: Duration = Duration::from_secs(10);
/// The default interval between requests to a web server.
const HTTP_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest valid interval between requests to a web server.
const MIN_HTTP_INTERVAL: Duration = Duration::from_secs(10);
/// The port of DNS servers.
const DNS_PORT: u16 = 53;
/// The shortest interval of probes to a reflector, which answers five probes a second.
const MIN_REFLECTOR_INTERVAL: Duration = Duration::from_millis(200);
/// The shortest interval of probes to hosts that are not reflectors, because their operators did not agree to be
/// probed.
const MIN_HOST_INTERVAL: Duration = Duration::from_secs(1);
/// The longest interval of a monitor. An outage that is shorter than the interval may pass unnoticed.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The size in bytes, on the network, of a probe to a reflector or of its reply: content, UDP header and IPv4 header.
const PROBE_WIRE_BYTES: u64 = 96 + 28;
/// The size in bytes, on the network, of a usual DNS query or of its answer.
const DNS_WIRE_BYTES: u64 = 100;
/// The size in bytes, on the network, of a usual HTTP request together with its answer: connection, TLS handshake, and
/// the part of a page that a server sends in its first round trip (RFC 6928: 10 segments).
const HTTP_WIRE_BYTES: u64 = 20_000;
/// The size in bytes, on the network, of an ICMP echo request or reply: ICMP header, content, IPv4 header.
const ICMP_WIRE_BYTES: u64 = 8 + 8 + 20;
/// The length of a month in estimates of the data volume.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// A monitor as its owner defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Monitor {
    /// The name of the monitor.
    pub name: String,
    /// What the monitor probes.
    pub target: MonitorTarget,
    /// The time between two probes, in milliseconds.
    pub interval_ms: u64,
}

/// What a monitor probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub enum MonitorTarget {
    /// The default gateway of this host.
    Gateway,
    /// The paired reflector with this name or Endpoint ID.
    Reflector(String),
    /// A host, given by name or address.
    Host(Host),
    /// A DNS server, which the monitor asks for the addresses of a name.
    Dns {
        /// The host and the port of the DNS server.
        resolver: HostPort,
        /// The name whose addresses the monitor asks for.
        name: String,
    },
    /// A web server, from which the monitor requests the page at this URL.
    Http(HttpUrl),
}

/// Why a monitor is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// The name of the monitor is not valid.
    #[error("{0:?} is not a valid name; valid: 1 to 60 letters, digits, dots, dashes and underscores")]
    Name(String),
    /// The target of the monitor is not valid.
    #[error("{0:?} is not a valid target")]
    Target(String),
    /// The interval is too short or too long.
    #[error("an interval of {} is not valid; valid for this target: {} to {}", quantity::exact_duration(*.interval),
        quantity::exact_duration(*.shortest), quantity::exact_duration(MAX_INTERVAL))]
    Interval {
        /// The interval that was requested.
        interval: Duration,
        /// The shortest valid interval for the target.
        shortest: Duration,
    },
}

impl Monitor {
    /// Creates a monitor that probes `target` at `interval`; `None` selects the default interval for this kind of
    /// target.
    pub fn new(name: &str, target: MonitorTarget, interval: Option<Duration>) -> Self {
        let usual = match target {
            MonitorTarget::Dns { .. } => DNS_INTERVAL,
            MonitorTarget::Http(_) => HTTP_INTERVAL,
            MonitorTarget::Gateway | MonitorTarget::Reflector(_) | MonitorTarget::Host(_) => DEFAULT_INTERVAL,
        };
        let interval = interval.unwrap_or(usual);
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Self { name: name.to_owned(), target, interval_ms }
    }

    /// The time between two probes.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// Checks that the name and the interval of the monitor are valid.
    pub fn check(&self) -> Result<(), MonitorError> {
        if !is_name(&self.name) {
            return Err(MonitorError::Name(self.name.chars().take(MAX_NAME_CHARS).collect()));
        }
        let (interval, shortest) = (self.interval(), self.target.shortest_interval());
        if interval < shortest || interval > MAX_INTERVAL {
            return Err(MonitorError::Interval { interval, shortest });
        }
        Ok(())
    }

    /// The bytes in 30 days that the monitor sends and receives beyond the gateway, headers included.
    pub fn bytes_a_month(&self) -> u64 {
        let each = match self.target {
            MonitorTarget::Gateway => return 0,
            MonitorTarget::Reflector(_) => 2 * PROBE_WIRE_BYTES,
            MonitorTarget::Host(_) => 2 * ICMP_WIRE_BYTES,
            MonitorTarget::Dns { .. } => 2 * DNS_WIRE_BYTES,
            MonitorTarget::Http(_) => HTTP_WIRE_BYTES,
        };
        let probes = MONTH.as_millis() / u128::from(self.interval_ms.max(1));
        u64::try_from(probes).unwrap_or(u64::MAX).saturating_mul(each)
    }
}

impl MonitorTarget {
    fn shortest_interval(&self) -> Duration {
        match self {
            Self::Reflector(_) => MIN_REFLECTOR_INTERVAL,
            Self::Gateway | Self::Host(_) => MIN_HOST_INTERVAL,
            Self::Dns { .. } => MIN_DNS_INTERVAL,
            Self::Http(_) => MIN_HTTP_INTERVAL,
        }
    }

    /// The default name of a monitor of this target, such as `gateway` or the name of the reflector or host. Each
    /// character that is not valid in a name becomes a dash.
    pub fn default_name(&self) -> String {
        let text = match self {
            Self::Gateway => return "gateway".to_owned(),
            Self::Reflector(name) => name.clone(),
            Self::Host(host) => host.to_string(),
            Self::Dns { resolver, .. } => format!("dns-{}", resolver.host),
            Self::Http(url) => url.server().host.to_string(),
        };
        let valid = |c: char| if is_name_char(c) { c } else { '-' };
        let name = text.chars().take(MAX_NAME_CHARS).map(valid).collect::<String>();
        if name.is_empty() { "monitor".to_owned() } else { name }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= MAX_NAME_CHARS && name.chars().all(is_name_char)
}

impl fmt::Display for MonitorTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Reflector(name) => write!(f, "reflector:{name}"),
            Self::Host(host) => write!(f, "host:{host}"),
            Self::Dns { resolver, name } => {
                let port = resolver.port;
                let host = match &resolver.host {
                    Host::V6 { .. } if port != DNS_PORT => format!("[{}]", resolver.host),
                    host => host.to_string(),
                };
                let port = if port == DNS_PORT { String::new() } else { format!(":{port}") };
                write!(f, "dns:{host}{port}/{name}")
            }
            Self::Http(url) => url.fmt(f),
        }
    }
}

impl FromStr for MonitorTarget {
    type Err = MonitorError;

    fn from_str(text: &str) -> Result<Self, MonitorError> {
        let wrong = || MonitorError::Target(text.chars().take(200).collect());
        match text.trim().split_once(':') {
            None if text.trim() == "gateway" => Ok(Self::Gateway),
            Some(("reflector", name)) if !name.trim().is_empty() => Ok(Self::Reflector(name.trim().to_owned())),
            Some(("host", host)) => {
                // Brackets distinguish an IPv6 address from a host with a port.
                let host = host.trim();
                let bracketed =
                    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
                let target = HostPort::parse(&bracketed, 1).map_err(|_| wrong())?;
                let has_port = target.port != 1;
                if has_port || target.host.lacks_zone() { Err(wrong()) } else { Ok(Self::Host(target.host)) }
            }
            Some(("dns", query)) => {
                let (resolver, name) = query.split_once('/').ok_or_else(wrong)?;
                let resolver = resolver.trim();
                let is_bare_v6 = resolver.parse::<std::net::Ipv6Addr>().is_ok();
                let resolver = if is_bare_v6 { format!("[{resolver}]") } else { resolver.to_owned() };
                let resolver = HostPort::parse(&resolver, DNS_PORT).map_err(|_| wrong())?;
                let name = name.trim();
                if resolver.host.lacks_zone() || dns_query::query(0, name).is_none() {
                    return Err(wrong());
                }
                Ok(Self::Dns { resolver, name: name.to_owned() })
            }
            _ => HttpUrl::parse(text.trim()).map(Self::Http).ok_or_else(wrong),
        }
    }
}

impl From<MonitorTarget> for String {
    fn from(target: MonitorTarget) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for MonitorTarget {
    type Error = MonitorError;

    fn try_from(text: String) -> Result<Self, MonitorError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_strictly_and_printed_as_read() {
        for text in [
            "gateway",
            "reflector:attic",
            "reflector:my attic",
            "host:192.0.2.1",
            "host:2001:db8::1",
            "dns:192.0.2.53/example.org",
            "dns:[2001:db8::53]:5353/example.org",
            "dns:2001:db8::53/example.org",
            "host:example.org",
            "https://example.org/health?full=1",
        ] {
            assert_eq!(text.parse::<MonitorTarget>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "router",
            "reflector:",
            "reflector",
            "host:",
            "host:a b",
            "host:192.0.2.1:80",
            "ftp:x",
            "dns:192.0.2.53",
            "dns:192.0.2.53/",
            "dns:/example.org",
            "dns:192.0.2.53/a b",
            "host:fe80::1",
            "https://user@example.org/",
        ] {
            assert!(wrong.parse::<MonitorTarget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_and_intervals_have_limits() {
        let monitor = |name: &str, target: &str, ms| {
            Monitor::new(name, target.parse().unwrap(), Some(Duration::from_millis(ms))).check()
        };
        assert_eq!(monitor("home", "reflector:attic", 200), Ok(()));
        assert_eq!(monitor("home", "gateway", 60_000), Ok(()));
        for (name, target, ms) in [
            ("", "gateway", 1_000),
            ("a b", "gateway", 1_000),
            ("\u{3164}", "gateway", 1_000),
            ("home", "reflector:attic", 199),
            ("home", "gateway", 999),
            ("home", "host:192.0.2.1", 60_001),
            ("home", "gateway", 0),
            ("home", "dns:192.0.2.53/example.org", 9_999),
            ("home", "https://example.org/", 9_999),
        ] {
            assert!(monitor(name, target, ms).is_err(), "{name:?} {target} {ms}");
        }
        assert_eq!("reflector:my attic/2".parse::<MonitorTarget>().unwrap().default_name(), "my-attic-2");
    }

    #[test]
    fn a_probe_a_second_to_a_reflector_is_two_thirds_of_a_gigabyte_a_month() {
        let month = |target: &str| Monitor::new("m", target.parse().unwrap(), None).bytes_a_month();
        assert_eq!(month("reflector:a"), 642_816_000);
        assert_eq!(month("host:192.0.2.1"), 186_624_000);
        assert_eq!(month("dns:192.0.2.53/example.org"), 17_280_000);
        assert_eq!(month("https://example.org/"), 864_000_000);
        assert_eq!(month("gateway"), 0, "it does not use the line");
    }
}
