//! The reflector's configuration: the checked [`Config`], and the default of each setting with its reason.
//! `paramedic_host::config` reads the configuration from flags, environment and files. This module opens no socket and
//! creates no file.

mod addresses;
mod reload;
mod settings;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_host::config::{ConfigError, Configuration, FlagGroup, Machine, Origins, Setting, ValueOrigin};
use paramedic_host::log::LogFormat;
use paramedic_link::state_folder::PRIVATE;
use paramedic_link::{DEFAULT_PORT, EndpointId, PeerText};

pub use addresses::MetricsListen;
pub use reload::{ConfigChange, change};

/// The configuration of a reflector. All values are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses to listen on, TCP and UDP. Never empty. No address occurs twice unless its port is 0.
    pub listen: Vec<SocketAddr>,
    /// Whether to listen also on addresses that no interface of this host has yet.
    pub listen_freebind: bool,
    /// The name that the reflector shows to appliances; never empty.
    pub name: PeerText,
    /// The Endpoint IDs of appliances that are paired without a code.
    pub authorized_peers: Vec<EndpointId>,
    /// Which data modes the reflector offers.
    pub mode: Mode,
    /// The ports for direct sessions. Never empty, and never port 0.
    pub data_port_range: RangeInclusive<u16>,
    /// Whether the reflector offers the engine iperf3.
    pub iperf3_enabled: bool,
    /// The number of tests that may run at once; at least 1.
    pub max_concurrent_tests: u32,
    /// The number of requests that may wait in the queue.
    pub max_queue: usize,
    /// The maximum number of monitor sessions at once.
    pub max_monitors: usize,
    /// The longest duration of a session: the sum of its phases.
    pub max_test_duration: Duration,
    /// The number of streams that a session may have in each direction; at least 1.
    pub max_streams: u16,
    /// The number of tests that one peer may start within any hour; at least 1.
    pub max_tests_per_hour: u32,
    /// The number of payload bytes that one peer may transfer on one UTC day.
    pub max_bytes_per_day: u64,
    /// The number of payload bytes that all peers together may transfer on one UTC day.
    pub max_bytes_per_day_total: u64,
    /// The absolute path of the folder with the key, the database and the audit log.
    pub state_dir: PathBuf,
    /// The absolute path of a secret key that a service manager provides. `None`: the key is in the state folder.
    pub provided_key: Option<PathBuf>,
    /// The absolute path of the folder with the admin socket.
    pub runtime_dir: PathBuf,
    /// The size in bytes at which the audit log starts a new file.
    pub audit_segment_size: u64,
    /// The size limit of all files of the audit log together, in bytes.
    pub audit_max_size: u64,
    /// Where the reflector serves its metrics.
    pub metrics_listen: MetricsListen,
    /// Whether `metrics_listen` may be an address that other hosts can reach.
    pub metrics_allow_remote: bool,
    /// Which events the program logs, in the filter syntax of the crate `tracing-subscriber`.
    pub log: String,
    /// The format of the program's log.
    pub log_format: LogFormat,
}

/// Which data modes the reflector offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only tunneled: test data travels inside TLS, through the listening port.
    Tunneled,
    /// Tunneled and direct: test data may also travel in clear text, through temporary ports of `data_port_range`.
    DirectEphemeral,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Tunneled => "tunneled",
            Mode::DirectEphemeral => "direct_ephemeral",
        })
    }
}

impl Config {
    /// Whether the reflector offers direct sessions in addition to tunneled ones.
    pub fn offers_direct(&self) -> bool {
        self.mode == Mode::DirectEphemeral
    }

    /// Whether the configuration enables the engine with this id.
    pub fn wants(&self, engine: &str) -> bool {
        engine != "iperf3" || self.iperf3_enabled
    }

    /// The path of the reflector's secret key, if no key file is provided.
    pub fn key_file(&self) -> PathBuf {
        self.state_dir.join(KEY_FILE)
    }

    /// The path of the database.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join(DATABASE)
    }

    /// The path of the folder of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// Whether the runtime folder is `/run/reflector`. Only root can create this folder. So a command that root runs
    /// trusts the reflector there, whichever user runs that reflector. The default folder of earlier versions,
    /// `/run/packetparamedic`, is not trusted in this way, because it now belongs to the user of the appliance's
    /// service.
    pub fn has_root_runtime_dir(&self) -> bool {
        self.runtime_dir == Path::new(ROOT_RUNTIME_DIR)
    }

    /// The working folder of engines during a session. The reflector empties this folder when it starts. The folder is
    /// in the state folder, where no other user can rename it.
    pub fn scratch_dir(&self) -> PathBuf {
        self.state_dir.join("scratch")
    }

    /// The path of the Unix socket to which the other subcommands connect.
    pub fn admin_socket(&self) -> PathBuf {
        self.runtime_dir.join(ADMIN_SOCKET)
    }
}

const KEY_FILE: &str = "identity.key";
const DATABASE: &str = "reflector.db";
const ADMIN_SOCKET: &str = "admin.sock";

/// The default state folder for root, and for the systemd unit.
const ROOT_STATE_DIR: &str = "/var/lib/reflector";
/// The default runtime folder for root, and for the systemd unit.
const ROOT_RUNTIME_DIR: &str = "/run/reflector";
/// The default state folder of earlier versions. This folder is used if it contains state and [`ROOT_STATE_DIR`]
/// contains none, because an update must not change the identity of a reflector.
const EARLIER_STATE_DIR: &str = "/var/lib/packetparamedic/reflector";
/// The default runtime folder of earlier versions. Commands that root runs also look there for a running reflector.
const EARLIER_RUNTIME_DIR: &str = "/run/packetparamedic";

/// Whether the folder at `path`, or the private folder inside it, contains the key or the database of a reflector.
fn has_state(machine: &Machine<'_>, path: &Path) -> bool {
    let mut files = [path.to_owned(), path.join(PRIVATE)]
        .into_iter()
        .flat_map(|folder| [folder.join(KEY_FILE), folder.join(DATABASE)]);
    files.any(|file| (machine.exists)(&file))
}

impl Configuration for Config {
    const PROGRAM: &'static str = "reflector";

    fn settings() -> &'static [Setting<Self>] {
        settings::SETTINGS
    }

    fn defaults() -> Self {
        Self {
            // One socket per family, not one dual-stack socket: `config show` then lists all listening addresses, and a
            // host without IPv6 in its kernel still serves IPv4.
            listen: addresses::both_families(DEFAULT_PORT).to_vec(),
            // With this option, a mistyped address would not be an error.
            listen_freebind: false,
            name: PeerText::default(),
            // Devices pair by code unless configured otherwise.
            authorized_peers: Vec::new(),
            // A firewall needs only one open port; direct data is unencrypted and needs a port range.
            mode: Mode::Tunneled,
            // The usual ports of iperf3.
            data_port_range: 5201..=5299,
            // A third-party program with network access: off unless the operator enables it.
            iperf3_enabled: false,
            // Two tests at once would disturb each other; the second one is queued.
            max_concurrent_tests: 1,
            // With tests of half a minute, the last of 32 requests waits for a quarter of an hour. A longer queue is of
            // no use.
            max_queue: 32,
            // All of them together, at 5 probes a second each, take half a megabit per second in each direction.
            max_monitors: 64,
            // Long enough for a soak test, short enough that a forgotten test does not block the slot for hours.
            max_test_duration: Duration::from_secs(600),
            // The most streams that a request can have.
            max_streams: 64,
            // One test every 15 seconds: more than any schedule needs, few enough to stop a runaway loop.
            max_tests_per_hour: 240,
            // A line of 2 Gbit/s, full all day in one direction. Operators with metered traffic set a lower limit.
            max_bytes_per_day: 20_000_000_000_000,
            // Enough for five peers that reach the limit of one peer.
            max_bytes_per_day_total: 100_000_000_000_000,
            state_dir: PathBuf::new(),
            provided_key: None,
            runtime_dir: PathBuf::new(),
            // About 40,000 lines: months of tests at home, in a file that an editor can still open.
            audit_segment_size: 16_000_000,
            // Years of tests at home, and small compared with any disk.
            audit_max_size: 1_000_000_000,
            // Nothing listens that the operator did not ask for.
            metrics_listen: MetricsListen::Off,
            // The metrics have no access control of their own.
            metrics_allow_remote: false,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    fn example() -> Self {
        Self {
            name: PeerText::new("name-of-this-machine"),
            state_dir: ROOT_STATE_DIR.into(),
            provided_key: Some("/run/secrets/reflector.key".into()),
            runtime_dir: ROOT_RUNTIME_DIR.into(),
            ..Self::defaults()
        }
    }

    fn complete(&mut self, origins: &mut Origins, machine: &Machine<'_>) -> Result<Vec<String>, ConfigError> {
        let mut warnings = Vec::new();
        if origins.is_default("name") {
            let name = PeerText::new(&machine.hostname);
            self.name = if name.is_empty() { PeerText::new("reflector") } else { name };
        }
        // A configured state folder also holds the admin socket, so that two reflectors on one machine never share a
        // socket.
        let has_own_state_dir = !origins.is_default("state_dir");
        if !has_own_state_dir {
            let (path, origin) = machine.state_dir(ROOT_STATE_DIR, "packetparamedic/reflector")?;
            let earlier = Path::new(EARLIER_STATE_DIR);
            let is_earlier =
                path == Path::new(ROOT_STATE_DIR) && !has_state(machine, &path) && has_state(machine, earlier);
            if is_earlier {
                warnings.push(format!(
                    "the state is still in {EARLIER_STATE_DIR}; stop the reflector and move it to {ROOT_STATE_DIR}"
                ));
                self.state_dir = earlier.to_owned();
            } else {
                self.state_dir = path;
                origins.set("state_dir", origin);
            }
        }
        if origins.is_default("runtime_dir") {
            let (path, origin) = if has_own_state_dir {
                (self.state_dir.clone(), ValueOrigin::Default)
            } else if let Some(path) = machine.systemd_folder("RUNTIME_DIRECTORY") {
                (path, ValueOrigin::Place("RUNTIME_DIRECTORY"))
            } else if machine.is_root {
                let has_socket = |folder: &str| (machine.exists)(&Path::new(folder).join(ADMIN_SOCKET));
                let is_earlier = !has_socket(ROOT_RUNTIME_DIR) && has_socket(EARLIER_RUNTIME_DIR);
                if is_earlier {
                    warnings.push(format!(
                        "the running reflector uses {EARLIER_RUNTIME_DIR}; set RuntimeDirectory=reflector in its unit"
                    ));
                }
                let folder = if is_earlier { EARLIER_RUNTIME_DIR } else { ROOT_RUNTIME_DIR };
                (folder.into(), ValueOrigin::Default)
            } else if let Some(path) = machine.absolute("XDG_RUNTIME_DIR") {
                (path.join("packetparamedic"), ValueOrigin::Place("XDG_RUNTIME_DIR"))
            } else {
                (self.state_dir.clone(), ValueOrigin::Default)
            };
            self.runtime_dir = path;
            origins.set("runtime_dir", origin);
        }
        Ok(warnings)
    }

    fn check(&self, origins: &Origins) -> Result<(), ConfigError> {
        if self.metrics_listen.is_remote() && !self.metrics_allow_remote {
            return Err(ConfigError::Conflict {
                origin: origins.of("metrics_listen"),
                problem: format!(
                    "metrics_listen {} is not a loopback address; to serve the metrics to other hosts, set \
                     metrics_allow_remote = true",
                    self.metrics_listen
                ),
            });
        }
        if let Some(address) = self.listen.iter().find(|address| self.metrics_listen.collides_with(**address)) {
            return Err(ConfigError::Conflict {
                origin: origins.of("metrics_listen"),
                problem: format!(
                    "metrics_listen {} uses the port of listen {address}; choose another port, such as 9100",
                    self.metrics_listen
                ),
            });
        }
        let range = &self.data_port_range;
        let own = self.listen.iter().map(|address| ("listen", address.port()));
        let taken = own
            .chain(self.metrics_listen.port().map(|port| ("metrics_listen", port)))
            .find(|(_, port)| range.contains(port));
        match taken {
            Some((setting, port)) if self.offers_direct() => {
                let to_change = if origins.is_default("data_port_range") { setting } else { "data_port_range" };
                Err(ConfigError::Conflict {
                    origin: origins.of(to_change),
                    problem: format!(
                        "data_port_range {}-{} contains port {port}, which the reflector listens on; choose a range \
                         without it",
                        range.start(),
                        range.end(),
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

/// All settings, for commands that accept the whole configuration.
pub struct EverySetting;

impl FlagGroup for EverySetting {
    type Config = Config;
    const IS_GLOBAL: bool = false;

    fn has(_setting: &str) -> bool {
        true
    }
}

/// Only the settings of the folders, for commands that need no other setting.
pub struct Folders;

impl FlagGroup for Folders {
    type Config = Config;
    const IS_GLOBAL: bool = true;

    fn has(setting: &str) -> bool {
        matches!(setting, "state_dir" | "runtime_dir")
    }
}

/// The flag `--config`, and a flag for each setting.
pub type AllFlags = paramedic_host::config::Flags<EverySetting>;

/// The flag `--config`, and the flags `--state-dir` and `--runtime-dir`.
pub type PlaceFlags = paramedic_host::config::Flags<Folders>;

#[cfg(test)]
mod tests;
