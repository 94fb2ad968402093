//! The appliance's settings: their list, and the default of each with its reason. `paramedic_host::config` reads them
//! from flags, environment and files. Secrets are never settings.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use paramedic_appliance::export::broker::{BrokerSettings, BrokerUrl, NotABroker, NotATopicPrefix, TopicPrefix};
use paramedic_appliance::monitor::http_url::HttpUrl;
use paramedic_appliance::providers::PROVIDERS;
use paramedic_appliance::providers::options::OptionSource;
use paramedic_appliance::store::{PostgresAddress, PostgresUrl, Retention};
use paramedic_host::config::{
    ConfigError, Configuration, FlagGroup, Given, Machine, Origins, Setting, ValueOrigin, list,
};
use paramedic_host::log::LogFormat;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use paramedic_report::quantity;
use toml::Value;

use crate::network::IpNetwork;

/// The environment variable with the pairing code. The code is a secret, so no setting contains it.
pub(crate) const CODE_VARIABLE: &str = "PACKETPARAMEDIC_CODE";

/// The environment variable with the path of the file that contains the administrator's password.
pub(crate) const PASSWORD_VARIABLE: &str = "PACKETPARAMEDIC_ADMIN_PASSWORD_FILE";

/// The default state folder for root.
const ROOT_STATE_DIR: &str = "/var/lib/packetparamedic";
/// The default runtime folder for root, and for the systemd unit.
const ROOT_RUNTIME_DIR: &str = "/run/packetparamedic";
/// The file name of the service's unix socket in the runtime folder.
const SERVICE_SOCKET: &str = "service.sock";

/// When to colour the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// Colour the output if it goes to a terminal, unless `NO_COLOR` or a similar variable forbids it.
    #[default]
    Auto,
    /// Colour the output always.
    Always,
    /// Never colour the output.
    Never,
}

const COLORS: [(&str, Color); 3] = [("auto", Color::Auto), ("always", Color::Always), ("never", Color::Never)];

/// Where the service listens for TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiListen {
    /// The service does not listen for TCP connections.
    Off,
    /// The service listens on this address.
    Address(SocketAddr),
}

/// The default address of the listener: loopback, which only this host can reach.
const DEFAULT_LISTEN: ApiListen = ApiListen::Address(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8068));

impl FromStr for ApiListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
            return Ok(Self::Address(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
        }
        text.parse().map(Self::Address).map_err(|_| {
            match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
                Ok(_) => format!("{text:?} has no port"),
                Err(_) => format!("{text:?} is not an address with a port"),
            }
        })
    }
}

impl fmt::Display for ApiListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The settings of the appliance. All values are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The absolute path of the folder with the key, the pairings and the results.
    pub state_dir: PathBuf,
    /// The PostgreSQL database of the pairings and the results; `None`: a SQLite file in the state folder.
    pub database: Option<PostgresUrl>,
    /// The absolute path of the file with the password of the PostgreSQL database; `None`: no such file.
    pub database_password_file: Option<PathBuf>,
    /// The absolute path of the folder with the service's socket.
    pub runtime_dir: PathBuf,
    /// Where the service listens for TCP connections.
    pub listen: ApiListen,
    /// The PEM file of the TCP listener's certificates; `None`: no TLS.
    pub tls_certificate: Option<PathBuf>,
    /// The PEM file of the private key that belongs to `tls_certificate`; `None`: no TLS.
    pub tls_key: Option<PathBuf>,
    /// The reverse proxies in front of the service. The service trusts the client addresses that they forward.
    pub trusted_proxies: Vec<IpNetwork>,
    /// The name of this appliance. The appliance sends it to a reflector when they pair, and to the MQTT broker.
    pub name: PeerText,
    /// The reflector to use by default: a saved name, an Endpoint ID or an address.
    pub peer: Option<String>,
    /// The provider of speed tests, such as `iperf3`; `None`: `reflector`.
    pub provider: Option<String>,
    /// The engine that moves the payload; `None`: the default engine of the provider.
    pub engine: Option<EngineId>,
    /// The data mode; `None`: direct if the reflector offers it.
    pub data_mode: Option<DataMode>,
    /// The duration of each direction, ramp-up included, in whole milliseconds.
    pub duration: Duration,
    /// The number of streams in each direction; `None`: 4, or 1 with datagrams.
    pub streams: Option<u16>,
    /// How long the service keeps results.
    pub retention: Retention,
    /// Whether the service adds monitors of the gateway and of each paired reflector by itself.
    pub default_monitors: bool,
    /// The URL that the service requests at intervals while it works; `None`: no heartbeat.
    pub heartbeat_url: Option<HttpUrl>,
    /// The time between two requests to `heartbeat_url`.
    pub heartbeat_interval: Duration,
    /// The MQTT broker to which the service sends the state of the line; `None`: no broker.
    pub mqtt_url: Option<BrokerUrl>,
    /// The absolute path of the file with the password of the user in `mqtt_url`; `None`: no such file.
    pub mqtt_password_file: Option<PathBuf>,
    /// The first levels of the MQTT topics to which the service publishes.
    pub mqtt_topic_prefix: TopicPrefix,
    /// The first levels of the MQTT topics for Home Assistant's discovery; `None`: no discovery.
    pub mqtt_discovery_prefix: Option<TopicPrefix>,
    /// When to colour the output.
    pub color: Color,
    /// The filter of the log on stderr, in the form that [`paramedic_host::log::is_filter`] accepts.
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
        secrets.chain([CODE_VARIABLE, PASSWORD_VARIABLE]).collect()
    }

    fn defaults() -> Self {
        Self {
            state_dir: PathBuf::new(),
            // A SQLite file needs no server, and is as durable.
            database: None,
            database_password_file: None,
            runtime_dir: PathBuf::new(),
            listen: DEFAULT_LISTEN,
            tls_certificate: None,
            tls_key: None,
            trusted_proxies: Vec::new(),
            name: PeerText::default(),
            peer: None,
            provider: None,
            engine: None,
            data_mode: None,
            // Long enough for the ramp-up of a slow line, short enough to wait for, and the default of iperf3.
            duration: Duration::from_secs(10),
            streams: None,
            retention: Retention::default(),
            // An outage that no monitor recorded cannot be found afterwards.
            default_monitors: true,
            heartbeat_url: None,
            // A service that receives heartbeats usually expects one every few minutes.
            heartbeat_interval: Duration::from_secs(60),
            mqtt_url: None,
            mqtt_password_file: None,
            mqtt_topic_prefix: TopicPrefix::own(),
            // Home Assistant's own default. Without a broker, this setting has no effect.
            mqtt_discovery_prefix: Some(TopicPrefix::home_assistant()),
            color: Color::Auto,
            // A command reports its own failure on stderr; the log adds only errors.
            log: "error".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    fn example() -> Self {
        Self {
            state_dir: ROOT_STATE_DIR.into(),
            database: "postgres://packetparamedic@db.example/packetparamedic?sslmode=verify-full".parse().ok(),
            database_password_file: Some("/etc/packetparamedic/database-password".into()),
            runtime_dir: ROOT_RUNTIME_DIR.into(),
            tls_certificate: Some("/etc/packetparamedic/certificate.pem".into()),
            tls_key: Some("/etc/packetparamedic/key.pem".into()),
            trusted_proxies: "127.0.0.1".parse().into_iter().collect(),
            name: PeerText::new("name-of-this-machine"),
            peer: Some("attic".to_owned()),
            provider: Some("reflector".to_owned()),
            engine: EngineId::try_from("tcp").ok(),
            data_mode: Some(DataMode::DirectEphemeral),
            streams: Some(4),
            heartbeat_url: HttpUrl::parse("https://heartbeat.example/KEY"),
            mqtt_url: "mqtts://packetparamedic@broker.example".parse().ok(),
            mqtt_password_file: Some("/etc/packetparamedic/mqtt-password".into()),
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
    /// The path of the service's unix socket.
    pub fn service_socket(&self) -> PathBuf {
        self.runtime_dir.join(SERVICE_SOCKET)
    }

    /// The address of the PostgreSQL database; `None`: a SQLite file in the state folder.
    pub fn database(&self) -> Option<PostgresAddress> {
        let url = self.database.clone()?;
        Some(PostgresAddress { url, password_file: self.database_password_file.clone() })
    }

    /// Returns the MQTT broker to which the service sends the state of the line; `None`: no broker.
    pub fn broker(&self) -> Option<BrokerSettings> {
        Some(BrokerSettings {
            url: self.mqtt_url.clone()?,
            password_file: self.mqtt_password_file.clone(),
            topic_prefix: self.mqtt_topic_prefix.clone(),
            discovery_prefix: self.mqtt_discovery_prefix.clone(),
            device_name: self.name.to_string(),
        })
    }

    /// The sockets at which a command looks for a running service, in this order. The socket in /run/packetparamedic is
    /// among them, unless the user set the state folder or the runtime folder.
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

/// The value of the setting `database` that selects the SQLite file in the state folder.
const SQLITE: &str = "sqlite";

/// The value of `mqtt_url` and of `mqtt_discovery_prefix` that turns the feature off.
const OFF: &str = "off";

/// The value of a retention setting that keeps data without a time limit.
const FOREVER: &str = "forever";

/// Parses how long the service keeps one kind of data. `None` means without a time limit.
fn kept(given: &Given<'_>) -> Result<Option<Duration>, String> {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    if given.one() == FOREVER { Ok(None) } else { given.duration(days(1), days(36_500)).map(Some) }
}

fn kept_text(kept: Option<Duration>) -> String {
    kept.map_or_else(|| FOREVER.to_owned(), quantity::exact_duration)
}

/// Every setting, in the order in which they are shown.
static SETTINGS: &[Setting<Settings>] = &[
    Setting {
        name: "state_dir",
        env: "PACKETPARAMEDIC_STATE_DIR",
        flag: Some("state-dir"),
        placeholder: "FOLDER",
        help: "The folder of the key, the pairings and the results. Default: the first of these that applies: \
               STATE_DIRECTORY, which systemd sets; /var/lib/packetparamedic for root; packetparamedic in the XDG \
               state folder.",
        valid: "a folder",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.state_dir = path),
        show: |settings| Some(Value::String(settings.state_dir.display().to_string())),
    },
    Setting {
        name: "database",
        env: "PACKETPARAMEDIC_DATABASE",
        flag: None,
        placeholder: "URL",
        help: "The database of the pairings, schedules and results: `sqlite` (a file in the state folder), or the URL \
               of a PostgreSQL database that only this appliance uses (docs/postgresql.md).",
        valid: "sqlite, or a URL such as postgres://USER@HOST/DATABASE?sslmode=verify-full",
        is_list: false,
        read: |settings, given| {
            let text = given.one();
            settings.database = if text == SQLITE { None } else { Some(text.parse()?) };
            Ok(())
        },
        // The URL is shown without its password.
        show: |settings| {
            let url = settings.database.as_ref().map(ToString::to_string);
            Some(Value::String(url.unwrap_or_else(|| SQLITE.to_owned())))
        },
    },
    Setting {
        name: "database_password_file",
        env: "PACKETPARAMEDIC_DATABASE_PASSWORD_FILE",
        flag: None,
        placeholder: "FILE",
        help: "The file with the password of the PostgreSQL database. Without this file, \
               the password comes from the URL, from PGPASSWORD or from ~/.pgpass. No password is needed if the server \
               trusts the user of a unix socket.",
        valid: "a file",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.database_password_file = Some(path)),
        show: |settings| settings.database_password_file.as_ref().map(|path| Value::String(path.display().to_string())),
    },
    Setting {
        name: "runtime_dir",
        env: "PACKETPARAMEDIC_RUNTIME_DIR",
        flag: Some("runtime-dir"),
        placeholder: "FOLDER",
        help: "The folder of the service's socket. Default: state_dir itself, if you set state_dir. Otherwise the \
               first of these that applies: RUNTIME_DIRECTORY, which systemd sets; /run/packetparamedic for root; \
               packetparamedic in XDG_RUNTIME_DIR; the default folder of state_dir. If you set neither state_dir nor \
               runtime_dir, commands also look for the socket in /run/packetparamedic.",
        valid: "a folder",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.runtime_dir = path),
        show: |settings| Some(Value::String(settings.runtime_dir.display().to_string())),
    },
    Setting {
        name: "listen",
        env: "PACKETPARAMEDIC_LISTEN",
        flag: None,
        placeholder: "ADDR:PORT",
        help: "Where the service listens for TCP connections: ADDR:PORT, a PORT of 127.0.0.1, or `off`. Requests that \
               do not come over loopback need a token or the login.",
        valid: "off, an address with a port such as 127.0.0.1:8068 or [::]:8068, or a port",
        is_list: false,
        read: |settings, given| given.one().parse().map(|listen| settings.listen = listen),
        show: |settings| Some(Value::String(settings.listen.to_string())),
    },
    Setting {
        name: "tls_certificate",
        env: "PACKETPARAMEDIC_TLS_CERTIFICATE",
        flag: None,
        placeholder: "FILE",
        help: "The PEM file of the TLS 1.3 certificate chain, the service's own certificate first. Without this \
               file, the service does not use TLS. The service reads the file when it starts.",
        valid: "a file",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.tls_certificate = Some(path)),
        show: |settings| settings.tls_certificate.as_ref().map(|path| Value::String(path.display().to_string())),
    },
    Setting {
        name: "tls_key",
        env: "PACKETPARAMEDIC_TLS_KEY",
        flag: None,
        placeholder: "FILE",
        help: "The PEM file of the private key that belongs to tls_certificate.",
        valid: "a file",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.tls_key = Some(path)),
        show: |settings| settings.tls_key.as_ref().map(|path| Value::String(path.display().to_string())),
    },
    Setting {
        name: "trusted_proxies",
        env: "PACKETPARAMEDIC_TRUSTED_PROXIES",
        flag: None,
        placeholder: "ADDR",
        help: "The reverse proxies in front of the service. The service takes a client's address from \
               the header X-Forwarded-For of these proxies. If any proxy is set, every request over TCP needs a token \
               or the login, even from this host.",
        valid: "addresses and networks such as 127.0.0.1 or 192.0.2.0/24",
        is_list: true,
        read: |settings, given| {
            settings.trusted_proxies = given.each().map(str::parse).collect::<Result<_, _>>()?;
            Ok(())
        },
        show: |settings| Some(list(&settings.trusted_proxies)),
    },
    Setting {
        name: "name",
        env: "PACKETPARAMEDIC_NAME",
        flag: None,
        placeholder: "NAME",
        help: "The name of this appliance, which it sends to a reflector when they pair, and to the MQTT broker. \
               Default: the host's name.",
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
        help: "The reflector or iperf3 server to measure against. Default: the only paired reflector.",
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
        help: "The provider of speed tests, which is the kind of server at the other end. Default: reflector.",
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
        help: "The engine that generates the load. Default: tcp with reflectors, iperf3 with iperf3 servers.",
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
        help: "How the test data travels: `tunneled` (inside TLS, through the control port) or `direct` (unencrypted, \
               through temporary ports of the reflector's port range). Default: direct if the reflector offers it.",
        valid: "tunneled or direct",
        is_list: false,
        read: |settings, given| {
            // In the reflector's settings and in results, this mode is called direct_ephemeral.
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
        help: "The number of streams in each direction. Default: 4, or 1 with datagrams.",
        valid: "a number from 1 to 64",
        is_list: false,
        read: |settings, given| {
            given.number(1, TestSpec::MAX_STREAMS.into()).map(|streams| settings.streams = Some(streams))
        },
        show: |settings| settings.streams.map(|streams| Value::Integer(streams.into())),
    },
    Setting {
        name: "keep_results",
        env: "PACKETPARAMEDIC_KEEP_RESULTS",
        flag: None,
        placeholder: "TIME",
        help: "How long the service keeps results.",
        valid: "a duration from 1d to 36500d, or forever",
        is_list: false,
        read: |settings, given| kept(given).map(|kept| settings.retention.results = kept),
        show: |settings| Some(Value::String(kept_text(settings.retention.results))),
    },
    Setting {
        name: "keep_intervals",
        env: "PACKETPARAMEDIC_KEEP_INTERVALS",
        flag: None,
        placeholder: "TIME",
        help: "How long the service keeps the measurements of each 100 ms interval of a test, which make up most of a \
               result's size.",
        valid: "a duration from 1d to 36500d, or forever",
        is_list: false,
        read: |settings, given| kept(given).map(|kept| settings.retention.series = kept),
        show: |settings| Some(Value::String(kept_text(settings.retention.series))),
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
        name: "heartbeat_url",
        env: "PACKETPARAMEDIC_HEARTBEAT_URL",
        flag: None,
        placeholder: "URL",
        help: "A URL that the service requests every heartbeat_interval while it works without a fault. A monitoring \
               service at this URL can raise an alarm when the requests stop.",
        valid: "an http or https URL without user, password and fragment",
        is_list: false,
        read: |settings, given| {
            let url = HttpUrl::parse(given.one()).ok_or("it is not a valid URL")?;
            settings.heartbeat_url = Some(url);
            Ok(())
        },
        show: |settings| settings.heartbeat_url.as_ref().map(|url| Value::String(url.to_string())),
    },
    Setting {
        name: "heartbeat_interval",
        env: "PACKETPARAMEDIC_HEARTBEAT_INTERVAL",
        flag: None,
        placeholder: "TIME",
        help: "The time between two requests of the service to heartbeat_url.",
        valid: "a duration from 10s to 1h",
        is_list: false,
        read: |settings, given| {
            let interval = given.duration(Duration::from_secs(10), Duration::from_secs(60 * 60))?;
            settings.heartbeat_interval = interval;
            Ok(())
        },
        show: |settings| Some(Value::String(quantity::exact_duration(settings.heartbeat_interval))),
    },
    Setting {
        name: "mqtt_url",
        env: "PACKETPARAMEDIC_MQTT_URL",
        flag: None,
        placeholder: "URL",
        help: "The MQTT 5 broker to which the service sends the state of the line, for Home Assistant and others: \
               `off`, or a URL with the user's name, but without the password (docs/home-assistant.md).",
        valid: "off, or a URL such as mqtt://USER@HOST:1883 or mqtts://USER@HOST:8883",
        is_list: false,
        read: |settings, given| {
            let text = given.one();
            let read = |text: &str| text.parse().map_err(|error: NotABroker| error.to_string());
            settings.mqtt_url = if text == OFF { None } else { Some(read(text)?) };
            Ok(())
        },
        show: |settings| {
            let url = settings.mqtt_url.as_ref().map(ToString::to_string);
            Some(Value::String(url.unwrap_or_else(|| OFF.to_owned())))
        },
    },
    Setting {
        name: "mqtt_password_file",
        env: "PACKETPARAMEDIC_MQTT_PASSWORD_FILE",
        flag: None,
        placeholder: "FILE",
        help: "The file with the password of the user in mqtt_url. The service reads the file at each connection to \
               the broker.",
        valid: "a file",
        is_list: false,
        read: |settings, given| given.path().map(|path| settings.mqtt_password_file = Some(path)),
        show: |settings| settings.mqtt_password_file.as_ref().map(|path| Value::String(path.display().to_string())),
    },
    Setting {
        name: "mqtt_topic_prefix",
        env: "PACKETPARAMEDIC_MQTT_TOPIC_PREFIX",
        flag: None,
        placeholder: "TOPIC",
        help: "The first levels of the MQTT topics of the service. The next level is the Endpoint ID of this \
               appliance.",
        valid: "topic levels separated by slashes, without + # $ and control characters",
        is_list: false,
        read: |settings, given| {
            let prefix = given.one().parse().map_err(|error: NotATopicPrefix| error.to_string());
            prefix.map(|prefix| settings.mqtt_topic_prefix = prefix)
        },
        show: |settings| Some(Value::String(settings.mqtt_topic_prefix.to_string())),
    },
    Setting {
        name: "mqtt_discovery_prefix",
        env: "PACKETPARAMEDIC_MQTT_DISCOVERY_PREFIX",
        flag: None,
        placeholder: "TOPIC",
        help: "The first levels of the MQTT topic under which Home Assistant looks for devices; `off`, or an empty \
               value in a configuration file, turns discovery off.",
        valid: "off, or topic levels separated by slashes, without + # $ and control characters",
        is_list: false,
        read: |settings, given| {
            let text = given.one();
            let read = |text: &str| text.parse().map_err(|error: NotATopicPrefix| error.to_string());
            settings.mqtt_discovery_prefix = if [OFF, ""].contains(&text) { None } else { Some(read(text)?) };
            Ok(())
        },
        show: |settings| {
            let prefix = settings.mqtt_discovery_prefix.as_ref().map(ToString::to_string);
            Some(Value::String(prefix.unwrap_or_else(|| OFF.to_owned())))
        },
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
        help: "Which events are logged on stderr. The flags -q, -v and -vv override this setting.",
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
        help: "The format of the log: `text`, or `json` (one object per line).",
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

    /// The settings of a machine with these environment `variables` and this text of the configuration file in /etc.
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

    /// Loads the settings of a machine on which only `setting` is set, to `value`.
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
            ("listen", "192.0.2.7"),
            ("listen", "localhost:8068"),
            ("listen", "65536"),
            ("database", "mysql://db.example/pp"),
            ("database", "postgres://db.example/pp?passwd=geheim"),
            ("trusted_proxies", "proxy.example"),
            ("trusted_proxies", "192.0.2.0/33"),
            ("default_monitors", "some"),
            ("heartbeat_url", "example.org"),
            ("heartbeat_url", "https://ann:geheim@example.org/"),
            ("heartbeat_interval", "1s"),
            ("mqtt_url", "http://broker"),
            ("mqtt_url", "mqtt://broker:0"),
            ("mqtt_topic_prefix", "a/#"),
            ("mqtt_discovery_prefix", "/a"),
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
    fn the_service_listens_on_an_address_a_port_of_loopback_or_nowhere() {
        let listen = |text| with("listen", text).map(|settings| settings.listen.to_string()).ok();
        assert_eq!(load(&[], "").unwrap().config.listen.to_string(), "127.0.0.1:8068");
        for (given, read) in [
            ("off", "off"),
            ("80", "127.0.0.1:80"),
            (":0", "127.0.0.1:0"),
            ("[::]:8068", "[::]:8068"),
            ("192.0.2.7:1", "192.0.2.7:1"),
        ] {
            assert_eq!(listen(given).as_deref(), Some(read));
        }
        let proxies = |text| with("trusted_proxies", text).map(|settings| settings.trusted_proxies.len()).ok();
        assert_eq!([proxies("::1,10.0.0.0/8"), proxies(" ")], [Some(2), Some(0)]);
    }

    #[test]
    fn the_password_of_the_database_is_never_shown() {
        let url = "postgres://ann:geheim@db.example/pp";
        let loaded = load(&[("PACKETPARAMEDIC_DATABASE", url)], "").unwrap();
        let shown = loaded.show(true);
        assert!(shown.contains("database = \"postgres://ann@db.example/pp\"  # PACKETPARAMEDIC_DATABASE"), "{shown}");
        for text in [shown, format!("{:?}", loaded.config), format!("{:?}", loaded.config.database())] {
            assert!(!text.contains("geheim"), "{text}");
        }
        let wrong = with("database", "postgres://ann:geheim@db.example:port/pp").unwrap_err();
        let failure = CommandFailure::from(wrong);
        assert!(!failure.to_string().contains("geheim"), "{failure}");
        let back = load(&[("PACKETPARAMEDIC_DATABASE", "sqlite")], &format!("database = \"{url}\"")).unwrap();
        assert_eq!(back.config.database(), None);
    }

    #[test]
    fn a_broker_is_named_without_its_password() {
        let failure = CommandFailure::from(with("mqtt_url", "mqtt://ann:geheim@broker").unwrap_err());
        assert!(failure.to_string().contains("mqtt_password_file"), "{failure}");
        assert!(!failure.to_string().contains("geheim"), "{failure}");
        assert_eq!(with("mqtt_url", "off").unwrap().broker(), None);
        let broker = load(&[], "mqtt_url = 'mqtt://ann@broker'\nmqtt_discovery_prefix = ''").unwrap().config.broker();
        let broker = broker.unwrap();
        assert_eq!((broker.url.to_string().as_str(), broker.discovery_prefix), ("mqtt://ann@broker:1883", None));
        assert_eq!((broker.topic_prefix, broker.device_name.as_str()), (TopicPrefix::own(), "attic"));
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
