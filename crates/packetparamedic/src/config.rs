//! The appliance's settings: their list, and each default with its reason. `paramedic_host::config` reads them from
//! flags, environment and files. Secrets are never settings.

use std::path::PathBuf;
use std::time::Duration;

use paramedic_appliance::providers::PROVIDERS;
use paramedic_appliance::providers::options::OptionSource;
use paramedic_host::config::{ConfigError, Configuration, FlagGroup, Machine, Origins, Setting, ValueOrigin};
use paramedic_host::log::LogFormat;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use paramedic_report::quantity;
use toml::Value;

/// The variable of the pairing code, which is a secret and no setting.
pub(crate) const CODE_VARIABLE: &str = "PACKETPARAMEDIC_CODE";

/// The state folder of root.
const ROOT_STATE_DIR: &str = "/var/lib/packetparamedic";
/// The runtime folder of root and of the unit.
const ROOT_RUNTIME_DIR: &str = "/run/packetparamedic";
/// The name of the service's socket in the runtime folder.
const SERVICE_SOCKET: &str = "service.sock";

/// When to colour the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` or a similar variable forbids it.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

const COLORS: [(&str, Color); 3] = [("auto", Color::Auto), ("always", Color::Always), ("never", Color::Never)];

/// The settings. All values are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder of the key, the pairings and the results; absolute.
    pub state_dir: PathBuf,
    /// The folder of the service's socket; absolute.
    pub runtime_dir: PathBuf,
    /// This appliance's own name.
    pub name: PeerText,
    /// The default reflector: a saved name, an Endpoint ID or an address.
    pub peer: Option<String>,
    /// The provider of speed tests; absent: `reflector`.
    pub provider: Option<String>,
    /// The engine that generates the load; absent: the provider's choice.
    pub engine: Option<EngineId>,
    /// How the data travels; absent: direct if the reflector offers it.
    pub data_mode: Option<DataMode>,
    /// The duration of each direction, the ramp-up included; whole milliseconds.
    pub duration: Duration,
    /// Streams per direction; absent: the default of the engine.
    pub streams: Option<u16>,
    /// Whether the service adds monitors by itself.
    pub default_monitors: bool,
    /// When to colour the output.
    pub color: Color,
    /// The filter of the log on stderr, as [`paramedic_host::log::is_filter`] accepts it.
    pub log: String,
    /// The format of the log.
    pub log_format: LogFormat,
}

impl Configuration for Settings {
    const PROGRAM: &'static str = "packetparamedic";

    fn settings() -> &'static [Setting<Self>] {
        SETTINGS
    }

    fn other_variables() -> Vec<&'static str> {
        let options = PROVIDERS.iter().flat_map(|provider| provider.options());
        let secrets = options.filter_map(|option| match option.source {
            OptionSource::Secret { variable, .. } => Some(variable),
            OptionSource::Text | OptionSource::File { .. } => None,
        });
        secrets.chain([CODE_VARIABLE]).collect()
    }

    fn defaults() -> Self {
        Self {
            state_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            name: PeerText::default(),
            peer: None,
            provider: None,
            engine: None,
            data_mode: None,
            // Long enough for the ramp-up of a slow line, short enough to wait for, and the default of iperf3.
            duration: Duration::from_secs(10),
            streams: None,
            // An outage that nothing watched for cannot be looked up afterwards.
            default_monitors: true,
            color: Color::Auto,
            // A command reports its own failure on stderr; the log adds only errors.
            log: "error".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    fn example() -> Self {
        Self {
            state_dir: ROOT_STATE_DIR.into(),
            runtime_dir: ROOT_RUNTIME_DIR.into(),
            name: PeerText::new("name-of-this-machine"),
            peer: Some("attic".to_owned()),
            provider: Some("reflector".to_owned()),
            engine: EngineId::try_from("tcp").ok(),
            data_mode: Some(DataMode::DirectEphemeral),
            streams: Some(4),
            ..Self::defaults()
        }
    }

    fn complete(&mut self, origins: &mut Origins, machine: &Machine<'_>) -> Result<Vec<String>, ConfigError> {
        if origins.is_default("name") {
            let name = PeerText::new(&machine.hostname);
            self.name = if name.is_empty() { PeerText::new("appliance") } else { name };
        }
        let has_state_dir = !origins.is_default("state_dir");
        if !has_state_dir {
            let (path, origin) = machine.state_dir(ROOT_STATE_DIR, "packetparamedic")?;
            self.state_dir = path;
            origins.set("state_dir", origin);
        }
        let has_runtime_dir = !origins.is_default("runtime_dir");
        if !has_runtime_dir {
            let (path, origin) = if has_state_dir {
                (self.state_dir.clone(), origins.of("state_dir"))
            } else if let Some(path) = machine.systemd_folder("RUNTIME_DIRECTORY") {
                (path, ValueOrigin::Place("RUNTIME_DIRECTORY"))
            } else if machine.is_root {
                (ROOT_RUNTIME_DIR.into(), ValueOrigin::Default)
            } else if let Some(path) = machine.absolute("XDG_RUNTIME_DIR") {
                (path.join("packetparamedic"), ValueOrigin::Place("XDG_RUNTIME_DIR"))
            } else {
                (self.state_dir.clone(), origins.of("state_dir"))
            };
            self.runtime_dir = path;
            origins.set("runtime_dir", origin);
        }
        Ok(Vec::new())
    }
}

impl Settings {
    /// The socket of the service.
    pub fn service_socket(&self) -> PathBuf {
        self.runtime_dir.join(SERVICE_SOCKET)
    }

    /// The sockets at which a command looks for a running service, in this order. The service of the host is one of them
    /// if neither folder is set.
    pub fn service_sockets(&self, origins: &Origins) -> Vec<PathBuf> {
        let host = PathBuf::from(ROOT_RUNTIME_DIR).join(SERVICE_SOCKET);
        let mut sockets = vec![self.service_socket()];
        let is_set = ["state_dir", "runtime_dir"].iter().any(|folder| origins.is_chosen(folder));
        if !is_set && !sockets.contains(&host) {
            sockets.push(host);
        }
        sockets
    }
}

/// The settings that every command accepts as flags.
pub struct CommonFlags;

impl FlagGroup for CommonFlags {
    type Config = Settings;
    const IS_GLOBAL: bool = true;

    fn has(setting: &str) -> bool {
        matches!(setting, "state_dir" | "runtime_dir" | "color")
    }
}

/// Every setting, in the order of the output.
static SETTINGS: &[Setting<Settings>] = &[
    Setting {
        name: "state_dir",
        env: "PACKETPARAMEDIC_STATE_DIR",
        flag: Some("state-dir"),
        placeholder: "FOLDER",
        help: "The folder of the key, the pairings and the results. Without it: systemd's STATE_DIRECTORY, \
               /var/lib/packetparamedic for root, packetparamedic in the XDG state folder otherwise.",
        valid: "a folder",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.state_dir = path),
        show: |settings| Some(Value::String(settings.state_dir.display().to_string())),
    },
    Setting {
        name: "runtime_dir",
        env: "PACKETPARAMEDIC_RUNTIME_DIR",
        flag: Some("runtime-dir"),
        placeholder: "FOLDER",
        help: "The folder of the service's socket. Without it: the state folder, if that is set; systemd's \
               RUNTIME_DIRECTORY; /run/packetparamedic for root; else packetparamedic in XDG_RUNTIME_DIR. A command \
               for which neither folder is set also looks in /run/packetparamedic.",
        valid: "a folder",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.runtime_dir = path),
        show: |settings| Some(Value::String(settings.runtime_dir.display().to_string())),
    },
    Setting {
        name: "name",
        env: "PACKETPARAMEDIC_NAME",
        flag: None,
        placeholder: "NAME",
        help: "The name that this appliance gives when it pairs. Without it: the host's name.",
        valid: "1 to 120 characters without control characters",
        is_list: false,
        read: |settings, given| {
            let name = PeerText::new(given.text()?);
            if name.is_empty() {
                return Err("it has only control characters".to_owned());
            }
            settings.name = name;
            Ok(())
        },
        show: |settings| Some(Value::String(settings.name.to_string())),
    },
    Setting {
        name: "peer",
        env: "PACKETPARAMEDIC_PEER",
        flag: Some("peer"),
        placeholder: "HOST[:PORT]|NAME",
        help: "The reflector or iperf3 server to measure against. Without it: the only paired reflector.",
        valid: "a saved name, an Endpoint ID or an address",
        is_list: false,
        read: |settings, given| given.text().map(|peer| settings.peer = Some(peer.to_owned())),
        show: |settings| settings.peer.clone().map(Value::String),
    },
    Setting {
        name: "provider",
        env: "PACKETPARAMEDIC_PROVIDER",
        flag: Some("provider"),
        placeholder: "PROVIDER",
        help: "The provider of speed tests. Without it: reflector.",
        valid: "a provider that `packetparamedic speed-test --help` lists",
        is_list: false,
        read: |settings, given| given.text().map(|provider| settings.provider = Some(provider.to_owned())),
        show: |settings| settings.provider.clone().map(Value::String),
    },
    Setting {
        name: "engine",
        env: "PACKETPARAMEDIC_ENGINE",
        flag: Some("engine"),
        placeholder: "ENGINE",
        help: "The engine that generates the load. Without it: tcp with reflectors, iperf3 with iperf3 servers.",
        valid: "an engine that `packetparamedic speed-test --help` lists, such as tcp",
        is_list: false,
        read: |settings, given| {
            let engine = EngineId::try_from(given.one()).map_err(|error| error.to_string())?;
            settings.engine = Some(engine);
            Ok(())
        },
        show: |settings| settings.engine.as_ref().map(|engine| Value::String(engine.to_string())),
    },
    Setting {
        name: "data_mode",
        env: "PACKETPARAMEDIC_DATA_MODE",
        flag: Some("data-mode"),
        placeholder: "MODE",
        help: "How the test data travels: `tunneled`, inside TLS through the control port, or `direct`, unencrypted \
               through temporary ports of the reflector's range. Without it: direct if the reflector offers it.",
        valid: "tunneled or direct",
        is_list: false,
        read: |settings, given| {
            // The reflector's settings and the result name it direct_ephemeral.
            let direct = ["direct", "direct_ephemeral"].map(|name| (name, DataMode::DirectEphemeral));
            let mode = given.choice(&[("tunneled", DataMode::Tunneled), direct[0], direct[1]])?;
            settings.data_mode = Some(mode);
            Ok(())
        },
        show: |settings| {
            let name = match settings.data_mode? {
                DataMode::Tunneled => "tunneled",
                DataMode::DirectEphemeral => "direct",
                // A mode of a later version; no value of this setting corresponds to it.
                DataMode::Unknown => return None,
            };
            Some(Value::String(name.to_owned()))
        },
    },
    Setting {
        name: "duration",
        env: "PACKETPARAMEDIC_DURATION",
        flag: Some("time"),
        placeholder: "TIME",
        help: "How long each direction is measured, the ramp-up included. A number without a unit is seconds.",
        valid: "a duration from 1ms to 24h, such as 10, 10s, 500ms or 2m",
        is_list: false,
        read: |settings, given| {
            let duration = given.seconds(Duration::from_millis(1), TestSpec::MAX_PHASE)?;
            settings.duration = Duration::from_millis((duration.as_secs_f64() * 1000.0).round() as u64);
            Ok(())
        },
        show: |settings| Some(Value::String(quantity::exact_duration(settings.duration))),
    },
    Setting {
        name: "streams",
        env: "PACKETPARAMEDIC_STREAMS",
        flag: Some("parallel"),
        placeholder: "STREAMS",
        help: "The number of streams in each direction. Without it: 4, or 1 with datagrams.",
        valid: "a number from 1 to 64",
        is_list: false,
        read: |settings, given| {
            given.number(1, TestSpec::MAX_STREAMS.into()).map(|streams| settings.streams = Some(streams))
        },
        show: |settings| settings.streams.map(|streams| Value::Integer(streams.into())),
    },
    Setting {
        name: "default_monitors",
        env: "PACKETPARAMEDIC_DEFAULT_MONITORS",
        flag: None,
        placeholder: "BOOL",
        help: "Whether the service adds monitors of the gateway and of each paired reflector by itself.",
        valid: "true or false",
        is_list: false,
        read: |settings, given| given.yes_or_no().map(|adds| settings.default_monitors = adds),
        show: |settings| Some(Value::Boolean(settings.default_monitors)),
    },
    Setting {
        name: "color",
        env: "PACKETPARAMEDIC_COLOR",
        flag: Some("color"),
        placeholder: "WHEN",
        help: "When to color the output: auto (on a terminal, unless NO_COLOR is set), always or never.",
        valid: "auto, always or never",
        is_list: false,
        read: |settings, given| given.choice(&COLORS).map(|color| settings.color = color),
        show: |settings| {
            let name = COLORS.iter().find(|(_, color)| *color == settings.color).map_or("auto", |(name, _)| name);
            Some(Value::String(name.to_owned()))
        },
    },
    Setting {
        name: "log",
        env: "PACKETPARAMEDIC_LOG",
        flag: None,
        placeholder: "FILTER",
        help: "Which events are logged on stderr. -v and -vv override it.",
        valid: "a level (error, warn, info, debug, trace, off) or a filter such as warn,paramedic_engines=debug",
        is_list: false,
        read: |settings, given| given.log_filter().map(|filter| settings.log = filter),
        show: |settings| Some(Value::String(settings.log.clone())),
    },
    Setting {
        name: "log_format",
        env: "PACKETPARAMEDIC_LOG_FORMAT",
        flag: None,
        placeholder: "FORMAT",
        help: "The format of the log: `text`, or `json`, one object per line.",
        valid: "text or json",
        is_list: false,
        read: |settings, given| given.log_format().map(|format| settings.log_format = format),
        show: |settings| Some(Value::String(settings.log_format.to_string())),
    },
];

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use paramedic_host::config::{FlagValues, Loaded, load_on, template};
    use proptest::prelude::*;

    use super::*;
    use crate::cli::failure::{CommandFailure, ExitStatus};

    /// The settings on a machine with the environment `variables` and this text of the file in /etc.
    fn load(variables: &[(&str, &str)], file: &str) -> Result<Loaded<Settings>, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let etc_file = folder.path().join("etc.toml");
        std::fs::write(&etc_file, file).unwrap();
        let variable =
            |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| OsString::from(value));
        let machine = Machine {
            env: &|name| variable(name).filter(|value| !value.is_empty()),
            variables: &variables.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(),
            etc_file,
            home: Some("/home/ann".into()),
            is_root: false,
            hostname: "attic".to_owned(),
            exists: &|_| false,
            current_dir: "/cwd".into(),
        };
        load_on(&FlagValues::default(), &machine)
    }

    /// The settings with one of them set.
    fn with(setting: &str, value: &str) -> Result<Settings, ConfigError> {
        let variable = format!("PACKETPARAMEDIC_{}", setting.to_uppercase());
        load(&[(&variable, value)], "").map(|loaded| loaded.config)
    }

    #[test]
    fn without_any_layer_the_defaults_hold() {
        let settings = load(&[], "").unwrap().config;
        assert_eq!(settings.state_dir, Path::new("/home/ann/.local/state/packetparamedic"));
        assert_eq!((settings.name.as_str(), settings.streams), ("attic", None));
        assert_eq!((settings.duration, settings.peer), (Duration::from_secs(10), None));
    }

    #[test]
    fn the_name_of_a_setting_is_its_variable_and_stands_once() {
        for (number, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(setting.env, format!("PACKETPARAMEDIC_{}", setting.name.to_uppercase()));
            assert!(SETTINGS[..number].iter().all(|other| other.name != setting.name), "{}", setting.name);
        }
        assert_eq!(TestSpec::MAX_STREAMS, 64);
    }

    #[test]
    fn an_invalid_value_is_refused() {
        for (setting, value) in [
            ("default_monitors", "some"),
            ("color", "blue"),
            ("log", "loud"),
            ("log_format", "xml"),
            ("data_mode", "both"),
            ("engine", "T C P"),
            ("name", " "),
            ("peer", " "),
            ("streams", "65"),
            ("duration", "soon"),
        ] {
            assert!(matches!(with(setting, value), Err(ConfigError::BadValue { .. })), "{setting} accepts {value:?}");
        }
        assert_eq!(with("data_mode", "direct_ephemeral").unwrap().data_mode, Some(DataMode::DirectEphemeral));
    }

    #[test]
    fn a_duration_without_a_unit_is_seconds() {
        let ms = |text| with("duration", text).map(|settings| settings.duration.as_millis()).ok();
        assert_eq!([ms("10"), ms("10s"), ms("0.5"), ms("500ms")], [Some(10_000), Some(10_000), Some(500), Some(500)]);
        assert_eq!([ms("2m"), ms("24h"), ms("1 min")], [Some(120_000), Some(86_400_000), Some(60_000)]);
        assert_eq!([ms("0"), ms("25h"), ms("-1"), ms("1w"), ms(".")], [None; 5]);
        assert_eq!(load(&[], "duration = 1.5").unwrap().config.duration, Duration::from_millis(1500));
    }

    #[test]
    fn the_template_is_valid_without_its_comment_marks() {
        let text = template::<Settings>();
        let bare = text.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let loaded = load(&[], &bare.collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!(loaded.config, Settings::example());
    }

    #[test]
    fn a_mistyped_setting_is_usage_and_names_the_likely_one() {
        let (path, key) = ("/etc/pp.toml".into(), "stream".to_owned());
        let failure = CommandFailure::from(ConfigError::UnknownKey { path, line: 3, key, nearest: Some("streams") });
        assert_eq!((failure.exit, failure.code), (ExitStatus::Usage, "bad_config"));
        assert_eq!(
            failure.to_string(),
            "the configuration is not valid\n\
             because: /etc/pp.toml:3: unknown setting \"stream\"; did you mean \"streams\"?\n\
             try: fix that line, then run `packetparamedic config check`"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_value_panics(text in "\\PC*") {
            for setting in SETTINGS {
                let _ = with(setting.name, &text);
            }
        }
    }
}
