//! The list of the reflector's settings. The keys of the configuration file, the environment variables, the flags,
//! `--help`, the template and `config show` are derived from this list. To add a setting, add a field and its default
//! to [`Config`], and one entry here.

use std::net::SocketAddr;
use std::time::Duration;

use paramedic_host::config::{Setting, list};
use paramedic_link::test_spec::TestSpec;
use paramedic_report::quantity;
use toml::Value;

use super::{Config, Mode, addresses};

/// The highest value of a byte quota per day. A 100 Gbit/s line moves about this many bytes in a day, both directions
/// together. The database can store far larger integers.
const MOST_BYTES: u64 = 2_000_000_000_000_000;

/// All settings, in the order in which they are shown.
pub(super) static SETTINGS: &[Setting<Config>] = &[
    Setting {
        name: "listen",
        env: "REFLECTOR_LISTEN",
        flag: Some("listen"),
        placeholder: "ADDR",
        help: "Addresses to listen on, TCP and UDP, separated by commas. Each is ADDR:PORT, ADDR (port 4000) or PORT \
               (on all IPv4 and IPv6 addresses). Port 0 takes a free port.",
        valid: "an address such as 0.0.0.0:4000, [::]:4000 or 192.0.2.7, or a port",
        is_list: true,
        read: |config, given| {
            let mut listen: Vec<SocketAddr> = Vec::new();
            for part in given.each() {
                for address in addresses::parse_listen(part)? {
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
        show: |config| Some(list(&config.listen)),
    },
    Setting {
        name: "listen_freebind",
        env: "REFLECTOR_LISTEN_FREEBIND",
        flag: Some("listen-freebind"),
        placeholder: "BOOL",
        help: "Start even if this host does not have an address in `listen` yet. Clients can reach the reflector there \
               as soon as an interface has the address (IP_FREEBIND).",
        valid: "true or false",
        is_list: false,
        read: |config, given| given.yes_or_no().map(|enabled| config.listen_freebind = enabled),
        show: |config| Some(Value::Boolean(config.listen_freebind)),
    },
    Setting {
        name: "name",
        env: "REFLECTOR_NAME",
        flag: Some("name"),
        placeholder: "NAME",
        help: "The name of this reflector. An appliance that pairs saves the reflector under this name. Default: the \
               host name.",
        valid: "1 to 120 characters without control characters",
        is_list: false,
        read: |config, given| given.name().map(|name| config.name = name),
        show: |config| Some(Value::String(config.name.to_string())),
    },
    Setting {
        name: "authorized_peers",
        env: "REFLECTOR_AUTHORIZED_PEERS",
        flag: Some("authorized-peers"),
        placeholder: "ID",
        help: "Endpoint IDs of appliances that are accepted without a pairing code. To unpair an appliance, remove its \
               ID from this setting.",
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
        show: |config| Some(list(&config.authorized_peers)),
    },
    Setting {
        name: "mode",
        env: "REFLECTOR_MODE",
        flag: Some("mode"),
        placeholder: "MODE",
        help: "How test data may travel. `tunneled`: inside TLS through the listening port. `direct_ephemeral`: also \
               in clear text through temporary ports of data_port_range.",
        valid: "tunneled or direct_ephemeral",
        is_list: false,
        read: |config, given| {
            let modes = [("tunneled", Mode::Tunneled), ("direct_ephemeral", Mode::DirectEphemeral)];
            given.choice(&modes).map(|mode| config.mode = mode)
        },
        show: |config| Some(Value::String(config.mode.to_string())),
    },
    Setting {
        name: "data_port_range",
        env: "REFLECTOR_DATA_PORT_RANGE",
        flag: Some("data-port-range"),
        placeholder: "FIRST-LAST",
        help: "Ports for direct sessions, TCP and UDP, one for each session; open them in the firewall. Only used \
               with mode direct_ephemeral.",
        valid: "two ports such as 5201-5299, or one",
        is_list: false,
        read: |config, given| {
            config.data_port_range = addresses::parse_ports(given.one())?;
            Ok(())
        },
        show: |config| {
            let (first, last) = (config.data_port_range.start(), config.data_port_range.end());
            Some(Value::String(if first == last { first.to_string() } else { format!("{first}-{last}") }))
        },
    },
    Setting {
        name: "iperf3_enabled",
        env: "REFLECTOR_IPERF3_ENABLED",
        flag: Some("iperf3-enabled"),
        placeholder: "BOOL",
        help: "Offer the engine iperf3, which moves the data of a session with the iperf3 of this host. Needs mode \
               direct_ephemeral.",
        valid: "true or false",
        is_list: false,
        read: |config, given| given.yes_or_no().map(|enabled| config.iperf3_enabled = enabled),
        show: |config| Some(Value::Boolean(config.iperf3_enabled)),
    },
    Setting {
        name: "max_concurrent_tests",
        env: "REFLECTOR_MAX_CONCURRENT_TESTS",
        flag: Some("max-concurrent-tests"),
        placeholder: "N",
        help: "The limit on sessions that run at the same time, not counting monitor sessions. With more than one, \
               sessions share the network and disturb each other.",
        valid: "a number from 1 to 1000",
        is_list: false,
        read: |config, given| given.number(1, 1000).map(|number| config.max_concurrent_tests = number),
        show: |config| Some(Value::Integer(config.max_concurrent_tests.into())),
    },
    Setting {
        name: "max_queue",
        env: "REFLECTOR_MAX_QUEUE",
        flag: Some("max-queue"),
        placeholder: "N",
        help: "The limit on requests that wait in the queue. 0 denies every request that cannot begin at once.",
        valid: "a number from 0 to 10000",
        is_list: false,
        read: |config, given| given.number(0, 10_000).map(|number| config.max_queue = number),
        show: |config| Some(Value::Integer(i64::try_from(config.max_queue).unwrap_or(i64::MAX))),
    },
    Setting {
        name: "max_monitors",
        env: "REFLECTOR_MAX_MONITORS",
        flag: Some("max-monitors"),
        placeholder: "N",
        help: "The limit on monitor sessions that run at the same time. A monitor session measures latency all the \
               time. Each device may have up to 4. 0 denies all monitor sessions.",
        valid: "a number from 0 to 1000",
        is_list: false,
        read: |config, given| given.number(0, 1_000).map(|number| config.max_monitors = number),
        show: |config| Some(Value::Integer(i64::try_from(config.max_monitors).unwrap_or(i64::MAX))),
    },
    Setting {
        name: "max_test_duration",
        env: "REFLECTOR_MAX_TEST_DURATION",
        flag: Some("max-test-duration"),
        placeholder: "TIME",
        help: "The limit on the duration of a session, which is the sum of the durations of its phases.",
        valid: "a duration from 1s to 24h, such as 60s, 10m or 1h30m",
        is_list: false,
        read: |config, given| {
            let duration = given.duration(Duration::from_secs(1), Duration::from_secs(24 * 3600))?;
            config.max_test_duration = duration;
            Ok(())
        },
        show: |config| Some(Value::String(quantity::exact_duration(config.max_test_duration))),
    },
    Setting {
        name: "max_streams",
        env: "REFLECTOR_MAX_STREAMS",
        flag: Some("max-streams"),
        placeholder: "N",
        help: "The limit on the streams of a session in each direction.",
        valid: "a number from 1 to 64",
        is_list: false,
        read: |config, given| given.number(1, TestSpec::MAX_STREAMS.into()).map(|number| config.max_streams = number),
        show: |config| Some(Value::Integer(config.max_streams.into())),
    },
    Setting {
        name: "max_tests_per_hour",
        env: "REFLECTOR_MAX_TESTS_PER_HOUR",
        flag: Some("max-tests-per-hour"),
        placeholder: "N",
        help: "Sessions that one peer may start within any 60 minutes, not counting monitor sessions.",
        valid: "a number from 1 to 1000000",
        is_list: false,
        read: |config, given| given.number(1, 1_000_000).map(|number| config.max_tests_per_hour = number),
        show: |config| Some(Value::Integer(config.max_tests_per_hour.into())),
    },
    Setting {
        name: "max_bytes_per_day",
        env: "REFLECTOR_MAX_BYTES_PER_DAY",
        flag: Some("max-bytes-per-day"),
        placeholder: "SIZE",
        help: "Payload that one peer may transfer on one UTC day, both directions together. Lower it where traffic \
               costs money.",
        valid: "a size from 1MB to 2PB, such as 500GB or 20TB",
        is_list: false,
        read: |config, given| given.bytes(1_000_000, MOST_BYTES).map(|bytes| config.max_bytes_per_day = bytes),
        show: |config| Some(Value::String(quantity::exact_bytes(config.max_bytes_per_day))),
    },
    Setting {
        name: "max_bytes_per_day_total",
        env: "REFLECTOR_MAX_BYTES_PER_DAY_TOTAL",
        flag: Some("max-bytes-per-day-total"),
        placeholder: "SIZE",
        help: "Payload that all peers together may transfer on one UTC day. Lower it where traffic costs money.",
        valid: "a size from 1MB to 2PB, such as 500GB or 100TB",
        is_list: false,
        read: |config, given| given.bytes(1_000_000, MOST_BYTES).map(|bytes| config.max_bytes_per_day_total = bytes),
        show: |config| Some(Value::String(quantity::exact_bytes(config.max_bytes_per_day_total))),
    },
    Setting {
        name: "state_dir",
        env: "REFLECTOR_STATE_DIR",
        flag: Some("state-dir"),
        placeholder: "FOLDER",
        help: "Folder of the key, the peers and the audit log. Default: systemd's STATE_DIRECTORY, if it is \
               set; otherwise /var/lib/reflector for root, and packetparamedic/reflector in the XDG state folder for \
               other users.",
        valid: "a folder",
        is_list: false,
        read: |config, given| given.path().map(|path| config.state_dir = path),
        show: |config| Some(Value::String(config.state_dir.display().to_string())),
    },
    Setting {
        name: "key_file",
        env: "REFLECTOR_KEY_FILE",
        flag: Some("key-file"),
        placeholder: "FILE",
        help: "Read the secret key from this file, which a service manager provides, such as a credential of systemd or \
               a secret of a container. The file must exist, and root may own it; the reflector never changes it. \
               Default: identity.key in the state folder.",
        valid: "a file",
        is_list: false,
        read: |config, given| given.path().map(|path| config.provided_key = Some(path)),
        show: |config| config.provided_key.as_ref().map(|path| Value::String(path.display().to_string())),
    },
    Setting {
        name: "runtime_dir",
        env: "REFLECTOR_RUNTIME_DIR",
        flag: Some("runtime-dir"),
        placeholder: "FOLDER",
        help: "Folder of the admin socket. Default: state_dir itself, if you set state_dir. Otherwise the first \
               of these that applies: systemd's RUNTIME_DIRECTORY; /run/reflector, for root; packetparamedic in \
               XDG_RUNTIME_DIR; the default folder of state_dir.",
        valid: "a folder",
        is_list: false,
        read: |config, given| given.path().map(|path| config.runtime_dir = path),
        show: |config| Some(Value::String(config.runtime_dir.display().to_string())),
    },
    Setting {
        name: "audit_segment_size",
        env: "REFLECTOR_AUDIT_SEGMENT_SIZE",
        flag: Some("audit-segment-size"),
        placeholder: "SIZE",
        help: "File size at which the audit log begins a new file.",
        valid: "a size from 64kB to 1GB, such as 16MB",
        is_list: false,
        read: |config, given| given.bytes(64_000, 1_000_000_000).map(|bytes| config.audit_segment_size = bytes),
        show: |config| Some(Value::String(quantity::exact_bytes(config.audit_segment_size))),
    },
    Setting {
        name: "audit_max_size",
        env: "REFLECTOR_AUDIT_MAX_SIZE",
        flag: Some("audit-max-size"),
        placeholder: "SIZE",
        help: "Largest size of the audit log; above it, the oldest files are deleted. One quarter is for refusals and \
               other lines that clients can cause at will, three quarters for grants, pairings and the like.",
        valid: "a size from 4MB to 1TB, such as 1GB",
        is_list: false,
        read: |config, given| given.bytes(4_000_000, 1_000_000_000_000).map(|bytes| config.audit_max_size = bytes),
        show: |config| Some(Value::String(quantity::exact_bytes(config.audit_max_size))),
    },
    Setting {
        name: "metrics_listen",
        env: "REFLECTOR_METRICS_LISTEN",
        flag: Some("metrics-listen"),
        placeholder: "PLACE",
        help: "Where to serve metrics for Prometheus, by HTTP under /metrics: `off`, ADDR:PORT, a PORT of 127.0.0.1, or \
               the absolute path of a unix socket.",
        valid: "off, a loopback address such as 127.0.0.1:4001, a port, or a path such as /run/reflector/metrics.sock",
        is_list: false,
        read: |config, given| {
            config.metrics_listen = addresses::parse_metrics_listen(given.one())?;
            Ok(())
        },
        show: |config| Some(Value::String(config.metrics_listen.to_string())),
    },
    Setting {
        name: "metrics_allow_remote",
        env: "REFLECTOR_METRICS_ALLOW_REMOTE",
        flag: Some("metrics-allow-remote"),
        placeholder: "BOOL",
        help: "Allow addresses in metrics_listen that other hosts can reach. The metrics are in clear text, and every \
               client that connects can read them.",
        valid: "true or false",
        is_list: false,
        read: |config, given| given.yes_or_no().map(|enabled| config.metrics_allow_remote = enabled),
        show: |config| Some(Value::Boolean(config.metrics_allow_remote)),
    },
    Setting {
        name: "log",
        env: "REFLECTOR_LOG",
        flag: Some("log"),
        placeholder: "FILTER",
        help: "Log level: error, warn, info, debug or trace, or a filter by module such as \
               warn,reflector::server=debug.",
        valid: "a level such as info, or a filter such as warn,reflector=debug",
        is_list: false,
        read: |config, given| given.log_filter().map(|filter| config.log = filter),
        show: |config| Some(Value::String(config.log.clone())),
    },
    Setting {
        name: "log_format",
        env: "REFLECTOR_LOG_FORMAT",
        flag: Some("log-format"),
        placeholder: "FORMAT",
        help: "Log format: `text`, or `json` with one object per line.",
        valid: "text or json",
        is_list: false,
        read: |config, given| given.log_format().map(|format| config.log_format = format),
        show: |config| Some(Value::String(config.log_format.to_string())),
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn one_name_gives_key_variable_and_flag() {
        for setting in SETTINGS {
            assert_eq!(setting.env, format!("REFLECTOR_{}", setting.name.to_uppercase()));
            assert_eq!(setting.flag.unwrap(), setting.name.replace('_', "-"));
        }
        assert_eq!(SETTINGS.iter().map(|setting| setting.name).collect::<BTreeSet<_>>().len(), SETTINGS.len());
    }

    #[test]
    fn the_bounds_that_are_told_are_the_bounds() {
        assert_eq!(quantity::exact_bytes(MOST_BYTES), "2PB");
        assert_eq!(TestSpec::MAX_STREAMS, 64);
    }
}
