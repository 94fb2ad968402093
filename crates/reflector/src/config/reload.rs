//! Compares a new configuration with the running one: which settings apply at once, and which need a restart. Pure: no
//! I/O, no clock.

use paramedic_host::config::Configuration;

use super::Config;

/// What changes in a running reflector that reads its configuration again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The configuration to use from now on.
    pub config: Config,
    /// The changed settings that apply from now on, in the order of the list of settings.
    pub applied: Vec<&'static str>,
    /// The changed settings that apply only after a restart.
    pub needs_restart: Vec<&'static str>,
}

/// Compares the running configuration with the one that was just read.
pub fn change(running: &Config, read: &Config) -> ConfigChange {
    let config = Config {
        name: read.name.clone(),
        authorized_peers: read.authorized_peers.clone(),
        max_concurrent_tests: read.max_concurrent_tests,
        max_queue: read.max_queue,
        max_monitors: read.max_monitors,
        max_test_duration: read.max_test_duration,
        max_streams: read.max_streams,
        max_tests_per_hour: read.max_tests_per_hour,
        max_bytes_per_day: read.max_bytes_per_day,
        max_bytes_per_day_total: read.max_bytes_per_day_total,
        log: read.log.clone(),
        ..running.clone()
    };
    let (applied, needs_restart) = (differences(running, &config), differences(&config, read));
    ConfigChange { config, applied, needs_restart }
}

fn differences(one: &Config, other: &Config) -> Vec<&'static str> {
    let settings = Config::settings().iter();
    settings.filter(|setting| setting.plain(one) != setting.plain(other)).map(|setting| setting.name).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paramedic_host::log::LogFormat;
    use paramedic_link::{EndpointId, PeerText};

    use super::*;
    use crate::config::{MetricsListen, Mode};

    #[test]
    fn nothing_changes_where_nothing_was_changed() {
        let running = Config::example();
        let same = ConfigChange { config: running.clone(), applied: vec![], needs_restart: vec![] };
        assert_eq!(change(&running, &running), same);
    }

    #[test]
    fn every_setting_is_applied_or_needs_a_restart() {
        let running = Config::example();
        let read = Config {
            listen: vec!["192.0.2.1:5000".parse().unwrap()],
            listen_freebind: true,
            name: PeerText::new("other"),
            authorized_peers: vec![EndpointId::from_bytes([1; 32])],
            mode: Mode::DirectEphemeral,
            data_port_range: 6000..=6001,
            iperf3_enabled: true,
            max_concurrent_tests: 2,
            max_queue: 3,
            max_monitors: 12,
            max_test_duration: Duration::from_secs(4),
            max_streams: 5,
            max_tests_per_hour: 6,
            max_bytes_per_day: 7_000_000,
            max_bytes_per_day_total: 8_000_000,
            state_dir: "/other/state".into(),
            provided_key: Some("/other/key".into()),
            runtime_dir: "/other/runtime".into(),
            audit_segment_size: 9_000_000,
            audit_max_size: 10_000_000,
            metrics_listen: MetricsListen::Address("127.0.0.1:1".parse().unwrap()),
            metrics_allow_remote: true,
            log: "debug".to_owned(),
            log_format: LogFormat::Json,
        };
        let changed = change(&running, &read);
        let applied = [
            "name",
            "authorized_peers",
            "max_concurrent_tests",
            "max_queue",
            "max_monitors",
            "max_test_duration",
            "max_streams",
            "max_tests_per_hour",
            "max_bytes_per_day",
            "max_bytes_per_day_total",
            "log",
        ];
        assert_eq!(changed.applied, applied);
        let all = Config::settings().iter().map(|setting| setting.name);
        assert_eq!(changed.needs_restart, all.filter(|name| !applied.contains(name)).collect::<Vec<_>>());
        // What needs a restart is named each time, what was applied is not.
        let again = change(&changed.config, &read);
        assert_eq!((again.applied, again.needs_restart), (vec![], changed.needs_restart));
    }
}
