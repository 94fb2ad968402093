//! The settings of the export to MQTT: the URL of a broker, and the prefixes of topics. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::percent;
use crate::targets::{Host, HostPort};

/// The default port of MQTT (IANA registry of ports).
const MQTT_PORT: u16 = 1883;
/// The default port of MQTT over TLS (IANA registry of ports).
const MQTTS_PORT: u16 = 8883;
/// The longest user name for a broker, in bytes (MQTT 5.0, section 1.5.4).
const MAX_USER_BYTES: usize = 65_535;
/// The longest prefix of MQTT topics, in bytes.
const MAX_PREFIX_BYTES: usize = 200;

/// The URL of an MQTT broker, without a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Whether TLS protects the connection to the broker.
    pub is_tls: bool,
    /// The user name for the login at the broker.
    pub user: Option<String>,
    /// The host and the port of the broker.
    pub server: HostPort,
}

/// Why a text is not the URL of a broker. No variant contains a part of the text, because the text may contain a
/// password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotABroker {
    /// The scheme is neither `mqtt` nor `mqtts`.
    #[error("the URL begins with neither mqtt:// nor mqtts://")]
    Scheme,
    /// The URL contains a password.
    #[error("the URL contains a password: put the password into the file that mqtt_password_file names")]
    Password,
    /// The URL continues after the host and the port.
    #[error("the URL has text after the host and the port; set the topics with mqtt_topic_prefix")]
    Path,
    /// The user name in the URL is not valid.
    #[error("the user in the URL is empty or not percent-encoded UTF-8")]
    User,
    /// The host or the port in the URL is not valid.
    #[error("the URL must name a host, with or without a port")]
    Server,
}

impl FromStr for BrokerUrl {
    type Err = NotABroker;

    fn from_str(text: &str) -> Result<Self, NotABroker> {
        let (is_tls, rest) = match (text.strip_prefix("mqtt://"), text.strip_prefix("mqtts://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(NotABroker::Scheme),
        };
        // The user ends at the last `@`, because a password may contain `@`, `:` and `/`.
        let (user, server) = match rest.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => return Err(NotABroker::Password),
            Some((user, server)) => (Some(user_name(user).ok_or(NotABroker::User)?), server),
            None => (None, rest),
        };
        let server = server.strip_suffix('/').unwrap_or(server);
        if server.contains(['/', '?', '#']) {
            return Err(NotABroker::Path);
        }
        let default_port = if is_tls { MQTTS_PORT } else { MQTT_PORT };
        let server = HostPort::parse(server, default_port).map_err(|_| NotABroker::Server)?;
        if server.host.lacks_zone() {
            return Err(NotABroker::Server);
        }
        Ok(Self { is_tls, user, server })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "mqtts" } else { "mqtt" };
        let user = self.user.as_deref().map(|user| percent::encoded(user) + "@").unwrap_or_default();
        let HostPort { host, port } = &self.server;
        match host {
            Host::V6 { .. } => write!(f, "{scheme}://{user}[{host}]:{port}"),
            host => write!(f, "{scheme}://{user}{host}:{port}"),
        }
    }
}

/// Decodes the user name of a URL; `None` if the name is empty or too long, is not percent-encoded UTF-8, or contains a
/// control character.
fn user_name(text: &str) -> Option<String> {
    let is_valid =
        |name: &String| !name.is_empty() && name.len() <= MAX_USER_BYTES && !name.chars().any(char::is_control);
    percent::decoded(text).filter(is_valid)
}

/// The settings of the export to an MQTT broker: the broker, and the names that this appliance uses there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSettings {
    /// The URL of the broker.
    pub url: BrokerUrl,
    /// The file that contains the password of the broker's user.
    pub password_file: Option<PathBuf>,
    /// The first levels of this appliance's topics.
    pub topic_prefix: TopicPrefix,
    /// The first levels of the topics of Home Assistant's discovery; `None`: no discovery.
    pub discovery_prefix: Option<TopicPrefix>,
    /// The name under which this appliance appears in Home Assistant.
    pub device_name: String,
}

/// The first levels of an MQTT topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPrefix(String);

/// The error for a text that is not a valid [`TopicPrefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a topic prefix must have 1 to {MAX_PREFIX_BYTES} bytes, no empty level, no control character, and none of + # $"
)]
pub struct NotATopicPrefix;

impl TopicPrefix {
    /// The default prefix of this program's topics.
    pub fn own() -> Self {
        Self("packetparamedic".to_owned())
    }

    /// The default prefix of the topics of Home Assistant's discovery.
    pub fn home_assistant() -> Self {
        Self("homeassistant".to_owned())
    }
}

impl FromStr for TopicPrefix {
    type Err = NotATopicPrefix;

    fn from_str(text: &str) -> Result<Self, NotATopicPrefix> {
        // Wildcards of topic filters, and the mark of the broker's own topics (MQTT 5.0, section 4.7).
        let is_bad = |c: char| "+#$".contains(c) || c.is_control();
        let is_valid = text.len() <= MAX_PREFIX_BYTES && !text.chars().any(is_bad);
        if is_valid && text.split('/').all(|level| !level.is_empty()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotATopicPrefix)
        }
    }
}

impl fmt::Display for TopicPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_printed_with_its_port_and_read_back() {
        for (text, printed) in [
            ("mqtt://broker.lan", "mqtt://broker.lan:1883"),
            ("mqtts://Broker.lan/", "mqtts://broker.lan:8883"),
            ("mqtt://ann@192.0.2.1:1884", "mqtt://ann@192.0.2.1:1884"),
            ("mqtt://a%3Ab%40c@[2001:db8::1]", "mqtt://a%3Ab%40c@[2001:db8::1]:1883"),
        ] {
            let url = text.parse::<BrokerUrl>().unwrap();
            assert_eq!(url.to_string(), printed);
            assert_eq!(printed.parse(), Ok(url));
        }
        assert_eq!("mqtt://a%3Ab@h".parse::<BrokerUrl>().unwrap().user.as_deref(), Some("a:b"));
    }

    #[test]
    fn other_texts_are_refused_with_the_reason_and_no_part_of_them() {
        for (text, refused) in [
            ("", NotABroker::Scheme),
            ("http://broker", NotABroker::Scheme),
            ("broker:1883", NotABroker::Scheme),
            ("mqtt://", NotABroker::Server),
            ("mqtt://broker:0", NotABroker::Server),
            ("mqtt://fe80::1", NotABroker::Server),
            ("mqtt://@broker", NotABroker::User),
            ("mqtt://%zz@broker", NotABroker::User),
            ("mqtt://a%00@broker", NotABroker::User),
            ("mqtt://ann:geheim@broker", NotABroker::Password),
            ("mqtt://ann:geh@im/#?@broker", NotABroker::Password),
            ("mqtt://broker/topic", NotABroker::Path),
            ("mqtt://broker?a=b", NotABroker::Path),
        ] {
            assert_eq!(text.parse::<BrokerUrl>(), Err(refused), "{text}");
            assert!(!refused.to_string().contains("geh"));
        }
    }

    #[test]
    fn a_prefix_has_no_marks_of_filters() {
        for own in [TopicPrefix::own(), TopicPrefix::home_assistant()] {
            assert_eq!(own.to_string().parse(), Ok(own));
        }
        for good in ["packetparamedic", "home/attic/line", "a b"] {
            assert_eq!(good.parse::<TopicPrefix>().map(|prefix| prefix.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "/", "a/", "/a", "a//b", "a/+", "#", "$SYS", "a\nb", &"x".repeat(201)] {
            assert_eq!(bad.parse::<TopicPrefix>(), Err(NotATopicPrefix), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_is_read_back(text in "(mqtts?://)?\\PC{0,30}") {
            if let Ok(url) = text.parse::<BrokerUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
            drop(text.parse::<TopicPrefix>());
        }
    }
}
