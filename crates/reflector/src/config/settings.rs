//! The one list of settings. File, environment, flags, `--help`, template and `config show` all read it; a new setting
//! is a field of [`Config`], its default there, and one entry here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_link::PeerText;
use paramedic_link::test_spec::TestSpec;
use toml::Value;

use super::{Config, LogFormat, Mode, quantity};

/// One setting: what it is called everywhere, how it is read, how it is shown.
pub struct Setting {
    /// The key in TOML.
    pub name: &'static str,
    /// The environment variable: `REFLECTOR_` and the name in upper case.
    pub env: &'static str,
    /// The flag without its dashes: the name with dashes.
    pub flag: &'static str,
    /// The placeholder of the value in `--help`.
    pub placeholder: &'static str,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// The valid values, as text.
    pub valid: &'static str,
    /// Whether it takes several values: a TOML array, a repeated flag, or text with commas.
    pub is_list: bool,
    pub(super) read: fn(&mut Config, &Given<'_>) -> Result<(), String>,
    pub(super) show: fn(&Config) -> Value,
}

/// A value as it was given: text, not yet judged.
pub(super) struct Given<'a> {
    pub(super) values: Vec<String>,
    /// The folder that relative paths are meant from.
    pub(super) base: &'a Path,
}

impl Given<'_> {
    /// The only value. A setting that is no list never holds another number of them.
    fn one(&self) -> &str {
        self.values.first().map_or("", |value| value.trim())
    }

    /// Every value of a list; text with commas or spaces counts as several.
    fn each(&self) -> impl Iterator<Item = &str> {
        self.values.iter().flat_map(|value| value.split([',', ' ', '\n', '\t'])).filter(|part| !part.is_empty())
    }

    fn path(&self) -> Result<PathBuf, String> {
        match self.one() {
            "" => Err("it is empty".to_owned()),
            path => Ok(self.base.join(path)),
        }
    }

    fn number<T: TryFrom<u64>>(&self, least: u64, most: u64) -> Result<T, String> {
        let number =
            self.one().replace('_', "").parse::<u64>().map_err(|_| format!("{:?} is not a number", self.one()))?;
        within(number, least, most, ToString::to_string)?;
        T::try_from(number).map_err(|_| format!("{number} is too large"))
    }

    fn yes_or_no(&self) -> Result<bool, String> {
        match self.one() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            other => Err(format!("{other:?} is neither")),
        }
    }

    fn bytes(&self, least: u64, most: u64) -> Result<u64, String> {
        let bytes = quantity::parse_bytes(self.one())?;
        within(bytes, least, most, |bytes| quantity::print_bytes(*bytes)).map(|()| bytes)
    }

    fn duration(&self, least: Duration, most: Duration) -> Result<Duration, String> {
        let duration = quantity::parse_duration(self.one())?;
        within(duration, least, most, |duration| quantity::print_duration(*duration)).map(|()| duration)
    }
}

fn within<T: PartialOrd>(value: T, least: T, most: T, print: impl Fn(&T) -> String) -> Result<(), String> {
    if value < least {
        return Err(format!("{} is below {}", print(&value), print(&least)));
    }
    if value > most {
        return Err(format!("{} is above {}", print(&value), print(&most)));
    }
    Ok(())
}

/// About what a 100 Gbit/s line moves in a day, both directions; far below what the store's numbers hold.
const MOST_BYTES: u64 = 2_000_000_000_000_000;

/// Every setting there is, in the order in which they are shown.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "listen",
        env: "REFLECTOR_LISTEN",
        flag: "listen",
        placeholder: "ADDR",
        help: "Addresses to listen on, TCP and UDP. One or more of ADDR:PORT, ADDR (port 4000) or PORT (IPv4 and IPv6); \
               port 0 takes a free port.",
        valid: "an address such as 0.0.0.0:4000, [::]:4000 or 192.0.2.7, or a port",
        is_list: true,
        read: |config, given| {
            let mut listen: Vec<SocketAddr> = Vec::new();
            for part in given.each() {
                for address in quantity::parse_listen(part)? {
                    if address.port() == 0 || !listen.contains(&address) {
                        listen.push(address);
                    }
                }
            }
            if listen.is_empty() {
                return Err("it contains no address".to_owned());
            }
            config.listen = listen;
            Ok(())
        },
        show: |config| list(&config.listen),
    },
    Setting {
        name: "name",
        env: "REFLECTOR_NAME",
        flag: "name",
        placeholder: "NAME",
        help: "The name that an appliance shows for this reflector when it pairs.",
        valid: "1 to 120 characters without control characters",
        is_list: false,
        read: |config, given| {
            let name = PeerText::new(given.one());
            if name.is_empty() || name.as_str() != given.one() {
                return Err("it is empty, too long, or has control characters".to_owned());
            }
            config.name = name;
            Ok(())
        },
        show: |config| Value::String(config.name.to_string()),
    },
    Setting {
        name: "authorized_peers",
        env: "REFLECTOR_AUTHORIZED_PEERS",
        flag: "authorized-peers",
        placeholder: "ID",
        help: "Endpoint IDs of appliances that are accepted without a pairing code. To remove one, remove it from \
               this setting.",
        valid: "Endpoint IDs as `packetparamedic show-id` prints them, PP-…",
        is_list: true,
        read: |config, given| {
            let mut peers = Vec::new();
            for part in given.each() {
                let id = part.parse().map_err(|why| format!("{part:?}: {why}"))?;
                if !peers.contains(&id) {
                    peers.push(id);
                }
            }
            config.authorized_peers = peers;
            Ok(())
        },
        show: |config| list(&config.authorized_peers),
    },
    Setting {
        name: "mode",
        env: "REFLECTOR_MODE",
        flag: "mode",
        placeholder: "MODE",
        help: "How test data may travel. `tunneled`: inside TLS through the listening port. `direct_ephemeral`: also \
               in clear text through temporary ports of data_port_range.",
        valid: "tunneled or direct_ephemeral",
        is_list: false,
        read: |config, given| {
            config.mode = match given.one() {
                "tunneled" => Mode::Tunneled,
                "direct_ephemeral" => Mode::DirectEphemeral,
                other => return Err(format!("{other:?} is not a mode")),
            };
            Ok(())
        },
        show: |config| Value::String(config.mode.to_string()),
    },
    Setting {
        name: "data_port_range",
        env: "REFLECTOR_DATA_PORT_RANGE",
        flag: "data-port-range",
        placeholder: "FIRST-LAST",
        help: "Ports for direct sessions, TCP and UDP, one for each session; open them in the firewall. Only used \
               with mode direct_ephemeral.",
        valid: "two ports such as 5201-5299, or one",
        is_list: false,
        read: |config, given| {
            config.data_port_range = quantity::parse_ports(given.one())?;
            Ok(())
        },
        show: |config| {
            let (first, last) = (config.data_port_range.start(), config.data_port_range.end());
            Value::String(if first == last { first.to_string() } else { format!("{first}-{last}") })
        },
    },
    Setting {
        name: "iperf3_enabled",
        env: "REFLECTOR_IPERF3_ENABLED",
        flag: "iperf3-enabled",
        placeholder: "BOOL",
        help: "Offer the engine iperf3, which moves the data of a session with the iperf3 of this host. Needs mode \
               direct_ephemeral.",
        valid: "true or false",
        is_list: false,
        read: |config, given| given.yes_or_no().map(|enabled| config.iperf3_enabled = enabled),
        show: |config| Value::Boolean(config.iperf3_enabled),
    },
    Setting {
        name: "max_concurrent_tests",
        env: "REFLECTOR_MAX_CONCURRENT_TESTS",
        flag: "max-concurrent-tests",
        placeholder: "N",
        help: "Sessions that run at once. With more than one, sessions share the link and disturb each other.",
        valid: "a number from 1 to 1000",
        is_list: false,
        read: |config, given| given.number(1, 1000).map(|number| config.max_concurrent_tests = number),
        show: |config| Value::Integer(config.max_concurrent_tests.into()),
    },
    Setting {
        name: "max_queue",
        env: "REFLECTOR_MAX_QUEUE",
        flag: "max-queue",
        placeholder: "N",
        help: "Requests that may wait in the queue. 0 denies every request while a session runs.",
        valid: "a number from 0 to 10000",
        is_list: false,
        read: |config, given| given.number(0, 10_000).map(|number| config.max_queue = number),
        show: |config| Value::Integer(i64::try_from(config.max_queue).unwrap_or(i64::MAX)),
    },
    Setting {
        name: "max_test_duration",
        env: "REFLECTOR_MAX_TEST_DURATION",
        flag: "max-test-duration",
        placeholder: "TIME",
        help: "Longest session: the sum of its phases.",
        valid: "a duration from 1s to 24h, such as 60s, 10m or 1h30m",
        is_list: false,
        read: |config, given| {
            let duration = given.duration(Duration::from_secs(1), Duration::from_secs(24 * 3600))?;
            config.max_test_duration = duration;
            Ok(())
        },
        show: |config| Value::String(quantity::print_duration(config.max_test_duration)),
    },
    Setting {
        name: "max_streams",
        env: "REFLECTOR_MAX_STREAMS",
        flag: "max-streams",
        placeholder: "N",
        help: "Streams that a session may have in each direction.",
        valid: "a number from 1 to 64",
        is_list: false,
        read: |config, given| given.number(1, TestSpec::MAX_STREAMS.into()).map(|number| config.max_streams = number),
        show: |config| Value::Integer(config.max_streams.into()),
    },
    Setting {
        name: "max_tests_per_hour",
        env: "REFLECTOR_MAX_TESTS_PER_HOUR",
        flag: "max-tests-per-hour",
        placeholder: "N",
        help: "Sessions that one peer may have in any 60 minutes.",
        valid: "a number from 1 to 1000000",
        is_list: false,
        read: |config, given| given.number(1, 1_000_000).map(|number| config.max_tests_per_hour = number),
        show: |config| Value::Integer(config.max_tests_per_hour.into()),
    },
    Setting {
        name: "max_bytes_per_day",
        env: "REFLECTOR_MAX_BYTES_PER_DAY",
        flag: "max-bytes-per-day",
        placeholder: "SIZE",
        help: "Payload that one peer may transfer on one UTC day, both directions together. Lower it where traffic \
               costs money.",
        valid: "a size from 1MB to 2PB, such as 500GB or 20TB",
        is_list: false,
        read: |config, given| given.bytes(1_000_000, MOST_BYTES).map(|bytes| config.max_bytes_per_day = bytes),
        show: |config| Value::String(quantity::print_bytes(config.max_bytes_per_day)),
    },
    Setting {
        name: "max_bytes_per_day_total",
        env: "REFLECTOR_MAX_BYTES_PER_DAY_TOTAL",
        flag: "max-bytes-per-day-total",
        placeholder: "SIZE",
        help: "Payload that all peers together may transfer on one UTC day. Lower it where traffic costs money.",
        valid: "a size from 1MB to 2PB, such as 500GB or 100TB",
        is_list: false,
        read: |config, given| given.bytes(1_000_000, MOST_BYTES).map(|bytes| config.max_bytes_per_day_total = bytes),
        show: |config| Value::String(quantity::print_bytes(config.max_bytes_per_day_total)),
    },
    Setting {
        name: "state_dir",
        env: "REFLECTOR_STATE_DIR",
        flag: "state-dir",
        placeholder: "FOLDER",
        help: "Folder of the key, the peers and the audit log. Default: systemd's STATE_DIRECTORY; for root \
               /var/lib/packetparamedic/reflector; else packetparamedic/reflector in the XDG state folder.",
        valid: "a folder",
        is_list: false,
        read: |config, given| given.path().map(|path| config.state_dir = path),
        show: |config| Value::String(config.state_dir.display().to_string()),
    },
    Setting {
        name: "runtime_dir",
        env: "REFLECTOR_RUNTIME_DIR",
        flag: "runtime-dir",
        placeholder: "FOLDER",
        help: "Folder of the admin socket. Default: the state folder, if that is set; systemd's RUNTIME_DIRECTORY; \
               for root /run/packetparamedic; else packetparamedic in XDG_RUNTIME_DIR.",
        valid: "a folder",
        is_list: false,
        read: |config, given| given.path().map(|path| config.runtime_dir = path),
        show: |config| Value::String(config.runtime_dir.display().to_string()),
    },
    Setting {
        name: "audit_segment_size",
        env: "REFLECTOR_AUDIT_SEGMENT_SIZE",
        flag: "audit-segment-size",
        placeholder: "SIZE",
        help: "Size at which the audit log begins a new file.",
        valid: "a size from 64kB to 1GB, such as 16MB",
        is_list: false,
        read: |config, given| given.bytes(64_000, 1_000_000_000).map(|bytes| config.audit_segment_size = bytes),
        show: |config| Value::String(quantity::print_bytes(config.audit_segment_size)),
    },
    Setting {
        name: "audit_max_size",
        env: "REFLECTOR_AUDIT_MAX_SIZE",
        flag: "audit-max-size",
        placeholder: "SIZE",
        help: "Largest size of the audit log; above it, the oldest files are deleted. One quarter is for refusals and \
               other lines that clients can cause at will, three quarters for grants, pairings and the like.",
        valid: "a size from 4MB to 1TB, such as 1GB",
        is_list: false,
        read: |config, given| given.bytes(4_000_000, 1_000_000_000_000).map(|bytes| config.audit_max_size = bytes),
        show: |config| Value::String(quantity::print_bytes(config.audit_max_size)),
    },
    Setting {
        name: "log",
        env: "REFLECTOR_LOG",
        flag: "log",
        placeholder: "FILTER",
        help: "Log level: error, warn, info, debug or trace, or a filter by module such as \
               warn,reflector::server=debug.",
        valid: "a level such as info, or a filter such as warn,reflector=debug",
        is_list: false,
        read: |config, given| {
            let filter = given.one();
            tracing_subscriber::EnvFilter::try_new(filter).map_err(|why| format!("{filter:?}: {why}"))?;
            config.log = filter.to_owned();
            Ok(())
        },
        show: |config| Value::String(config.log.clone()),
    },
    Setting {
        name: "log_format",
        env: "REFLECTOR_LOG_FORMAT",
        flag: "log-format",
        placeholder: "FORMAT",
        help: "Log format: `text`, or `json` with one object per line.",
        valid: "text or json",
        is_list: false,
        read: |config, given| {
            config.log_format = match given.one() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                other => return Err(format!("{other:?} is not a format")),
            };
            Ok(())
        },
        show: |config| Value::String(config.log_format.to_string()),
    },
];

impl Setting {
    /// The setting with this name.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// The value in `config` without TOML's quotes, for people.
    pub fn plain(&self, config: &Config) -> String {
        match (self.show)(config) {
            Value::String(text) => text,
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        }
    }
}

fn list<T: ToString>(values: &[T]) -> Value {
    Value::Array(values.iter().map(|value| Value::String(value.to_string())).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn one_name_gives_key_variable_and_flag() {
        for setting in SETTINGS {
            assert_eq!(setting.env, format!("REFLECTOR_{}", setting.name.to_uppercase()));
            assert_eq!(setting.flag, setting.name.replace('_', "-"));
        }
        assert_eq!(SETTINGS.iter().map(|setting| setting.name).collect::<BTreeSet<_>>().len(), SETTINGS.len());
    }

    #[test]
    fn the_bounds_that_are_told_are_the_bounds() {
        assert_eq!(quantity::print_bytes(MOST_BYTES), "2PB");
        assert_eq!(TestSpec::MAX_STREAMS, 64);
    }
}
