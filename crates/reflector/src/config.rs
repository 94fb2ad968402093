//! How the reflector is set up: raw text in, a checked [`Config`] out, and where each value came from. Each default
//! stands here once, with its reason. Nothing is opened, created or served here.

mod flags;
pub mod quantity;
mod settings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_link::{DEFAULT_PORT, EndpointId, PeerText};
use toml::de::{DeTable, DeValue};

pub use flags::{Flags, PlaceFlags};
use settings::Given;
pub use settings::{SETTINGS, Setting};

/// A reflector's configuration; everything in it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses to listen on, TCP and UDP; never empty, no address twice unless its port is 0.
    pub listen: Vec<SocketAddr>,
    /// What the reflector calls itself; never empty.
    pub name: PeerText,
    /// Peers that need no pairing.
    pub authorized_peers: Vec<EndpointId>,
    /// The ways that test data may take.
    pub mode: Mode,
    /// The ports of direct sessions; without port 0, not empty.
    pub data_port_range: RangeInclusive<u16>,
    /// Whether direct sessions may have iperf3 for their data plane.
    pub iperf3_enabled: bool,
    /// Sessions at once, at least 1.
    pub max_concurrent_tests: u32,
    /// Requests that may wait.
    pub max_queue: usize,
    /// All phases of a session together.
    pub max_test_duration: Duration,
    /// Streams per direction, at least 1.
    pub max_streams: u16,
    /// Sessions of a peer in any hour, at least 1.
    pub max_tests_per_hour: u32,
    /// Payload bytes of a peer in a UTC day.
    pub max_bytes_per_day: u64,
    /// Payload bytes of all peers in a UTC day.
    pub max_bytes_per_day_total: u64,
    /// Key, database and audit log; absolute.
    pub state_dir: PathBuf,
    /// The admin socket; absolute.
    pub runtime_dir: PathBuf,
    /// Bytes after which a new file of the audit log is begun.
    pub audit_segment_size: u64,
    /// Bytes of all files of the audit log together.
    pub audit_max_size: u64,
    /// What is logged: a filter that tracing understands.
    pub log: String,
    /// How the log looks.
    pub log_format: LogFormat,
}

/// The ways that test data may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Through the port listened on alone.
    Tunneled,
    /// That, and short-lived ports of the range.
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

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

impl Config {
    /// Every default, once. The folders and the name are empty here: they depend on the machine.
    fn defaults() -> Self {
        Self {
            // One socket a family, not one dual-stack socket: it is told plainly what is listened on, and a machine
            // whose kernel has no IPv6 still serves IPv4.
            listen: quantity::both_families(DEFAULT_PORT).to_vec(),
            name: PeerText::default(),
            // Pairing by code is the way in.
            authorized_peers: Vec::new(),
            // One open port is all that a firewall has to know; direct data is in clear and needs a range.
            mode: Mode::Tunneled,
            // Where iperf3 users expect test data.
            data_port_range: 5201..=5299,
            // A program of others that speaks to the network: who wants it says so.
            iperf3_enabled: false,
            // Two tests at once disturb each other; the second one waits its turn.
            max_concurrent_tests: 1,
            // With tests of half a minute, the last of 32 waits a quarter of an hour: longer is no service.
            max_queue: 32,
            // Room for a soak test, short enough that a forgotten one does not hold the slot for the evening.
            max_test_duration: Duration::from_secs(600),
            // What a session can ask for at all.
            max_streams: 64,
            // One every 15 seconds: more than any schedule needs, few enough that a loop gone wild is stopped.
            max_tests_per_hour: 240,
            // A 2 Gbit/s line, full all day, one way. Whose traffic costs sets it lower.
            max_bytes_per_day: 20_000_000_000_000,
            // Five such peers.
            max_bytes_per_day_total: 100_000_000_000_000,
            state_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            // Some 40,000 lines: months of a home's tests in a file that an editor still opens.
            audit_segment_size: 16_000_000,
            // Years of a home's tests, little beside any disk.
            audit_max_size: 1_000_000_000,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    /// Whether direct sessions are offered beside tunneled ones.
    pub fn offers_direct(&self) -> bool {
        self.mode == Mode::DirectEphemeral
    }

    /// Whether the operator wants the engine with this id to be offered.
    pub fn wants(&self, engine: &str) -> bool {
        engine != "iperf3" || self.iperf3_enabled
    }

    /// The file of the reflector's secret key.
    pub fn key_file(&self) -> PathBuf {
        self.state_dir.join("identity.key")
    }

    /// The database of peers and quotas.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("reflector.db")
    }

    /// The folder of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// Whether the runtime folder is the one that only root, or what root set up, can have made.
    pub fn has_root_runtime_dir(&self) -> bool {
        self.runtime_dir == Path::new(ROOT_RUNTIME_DIR)
    }

    /// The working folder of engines during a session; emptied at the start. It is in the state folder, because no other
    /// user can rename it there.
    pub fn scratch_dir(&self) -> PathBuf {
        self.state_dir.join("scratch")
    }

    /// The unix socket that the other subcommands talk to.
    pub fn admin_socket(&self) -> PathBuf {
        self.runtime_dir.join("admin.sock")
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The default: no source sets it.
    Default,
    /// A variable of systemd or of the login session.
    Place(&'static str),
    /// A line of a file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// This environment variable.
    Environment(&'static str),
    /// This flag, without its dashes.
    Flag(&'static str),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::Place(variable) | ValueOrigin::Environment(variable) => f.write_str(variable),
            ValueOrigin::File { path, line } => write!(f, "{}:{line}", path.display()),
            ValueOrigin::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// Why there is no configuration. Each message says where, what is wrong, and what is valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{}:{line}: not valid TOML: {problem}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In the parser's words.
        problem: String,
    },
    /// A key that is no setting.
    #[error("{}:{line}: unknown setting {key:?}; {}", path.display(), advice(*.nearest))]
    UnknownKey {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As written there.
        key: String,
        /// The setting whose name is nearest.
        nearest: Option<&'static str>,
    },
    /// A value that is not valid.
    #[error("{origin}: {setting} is not valid: {problem}; valid: {valid}")]
    BadValue {
        /// Where it was given.
        origin: ValueOrigin,
        /// Which setting.
        setting: &'static str,
        /// What is wrong.
        problem: String,
        /// What is valid.
        valid: &'static str,
    },
    /// Two values that do not go together.
    #[error("{origin}: {problem}")]
    Conflict {
        /// Where the one that has to give way was given.
        origin: ValueOrigin,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// No source names the state folder.
    #[error("no state folder is known because HOME is not set; set --state-dir FOLDER or REFLECTOR_STATE_DIR")]
    NoStateDir,
}

fn advice(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name:?}?"),
        None => "`reflector config template` lists all settings".to_owned(),
    }
}

/// A configuration and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each setting's value came from, by its name.
    pub origins: BTreeMap<&'static str, ValueOrigin>,
    /// The files that were read, the strongest first.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// The whole configuration as TOML, with each value's origin behind it where that is asked.
    pub fn show(&self, with_origin: bool) -> String {
        let mut text = String::new();
        for setting in SETTINGS {
            let value = (setting.show)(&self.config);
            // Writing into a String can't fail.
            let _ = match self.origins.get(setting.name).filter(|_| with_origin) {
                Some(origin) => writeln!(text, "{} = {value}  # {origin}", setting.name),
                None => writeln!(text, "{} = {value}", setting.name),
            };
        }
        text
    }
}

/// A configuration file with every setting at its default, commented out and explained.
pub fn template() -> String {
    let mut text =
        "# The reflector's configuration. Flags override environment variables, and these override files.\n".to_owned();
    let defaults = Config {
        name: PeerText::new("name-of-this-machine"),
        state_dir: ROOT_STATE_DIR.into(),
        runtime_dir: ROOT_RUNTIME_DIR.into(),
        ..Config::defaults()
    };
    for setting in SETTINGS {
        text.push('\n');
        for line in wrapped(setting.help).into_iter().chain(wrapped(&format!("Valid: {}.", setting.valid))) {
            // Writing into a String can't fail.
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# Environment: {}. Flag: --{}.", setting.env, setting.flag);
        let _ = writeln!(text, "#{} = {}", setting.name, (setting.show)(&defaults));
    }
    text
}

/// Lines of at most 100 characters.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The file of the whole machine.
const ETC_FILE: &str = "/etc/packetparamedic/reflector.toml";
/// Root's state folder.
const ROOT_STATE_DIR: &str = "/var/lib/packetparamedic/reflector";
/// Root's runtime folder.
const ROOT_RUNTIME_DIR: &str = "/run/packetparamedic";

/// What is asked of the machine, so that a test can be another one.
struct Machine<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    etc_file: PathBuf,
    home: Option<PathBuf>,
    is_root: bool,
    hostname: String,
    current_dir: PathBuf,
}

/// Reads every layer: flags, environment, the `--config` file, the user's file, the one in /etc, defaults. An empty
/// environment variable counts as not set.
///
/// # Errors
/// A file named by `--config` that can't be read, any file that is no TOML or has an unknown key, any value that is
/// not valid, also one that a stronger layer hides.
pub fn load(flags: &Flags, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Loaded, ConfigError> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    load_on(
        flags,
        &Machine {
            home: set("HOME").map(PathBuf::from).or_else(|| etcetera::home_dir().ok()),
            env: &set,
            etc_file: ETC_FILE.into(),
            is_root: rustix::process::geteuid().is_root(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            // Where it is gone, a relative path stays one, and using it fails with an error of the system.
            current_dir: std::env::current_dir().unwrap_or_default(),
        },
    )
}

fn load_on(flags: &Flags, machine: &Machine<'_>) -> Result<Loaded, ConfigError> {
    let mut layers = Layers {
        config: Config { name: default_name(&machine.hostname), ..Config::defaults() },
        origins: SETTINGS.iter().map(|setting| (setting.name, ValueOrigin::Default)).collect(),
        files: Vec::new(),
    };
    layers.read_file(&machine.etc_file, MayBeAbsent::Yes)?;
    if let Some(folder) = xdg(machine, "XDG_CONFIG_HOME", ".config") {
        layers.read_file(&folder.join("packetparamedic/reflector.toml"), MayBeAbsent::Yes)?;
    }
    if let Some(path) = &flags.config {
        layers.read_file(&machine.current_dir.join(path), MayBeAbsent::No)?;
    }
    for setting in SETTINGS {
        if let Some(value) = (machine.env)(setting.env) {
            let origin = ValueOrigin::Environment(setting.env);
            let value = value.into_string().map_err(|_| ConfigError::BadValue {
                origin: origin.clone(),
                setting: setting.name,
                problem: "it is not UTF-8".to_owned(),
                valid: setting.valid,
            })?;
            layers.take(setting, vec![value], &machine.current_dir, origin)?;
        }
    }
    for setting in SETTINGS {
        if let Some(values) = flags.values.get(setting.name) {
            layers.take(setting, values.clone(), &machine.current_dir, ValueOrigin::Flag(setting.flag))?;
        }
    }
    layers.find_folders(machine)?;
    layers.check_together()?;
    layers.files.reverse();
    Ok(Loaded { config: layers.config, origins: layers.origins, files: layers.files })
}

/// The name of the machine, or `reflector` where it has none.
fn default_name(hostname: &str) -> PeerText {
    let name = PeerText::new(hostname);
    if name.is_empty() { PeerText::new("reflector") } else { name }
}

/// A folder of the XDG base directory specification; relative values of its variables are to be ignored.
fn xdg(machine: &Machine<'_>, variable: &str, under_home: &str) -> Option<PathBuf> {
    let said = (machine.env)(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    said.or_else(|| machine.home.as_ref().map(|home| home.join(under_home)))
}

/// systemd may name several folders, separated by colons; the first is ours.
fn first_folder(value: &OsString) -> Option<PathBuf> {
    std::env::split_paths(value).find(|path| path.is_absolute())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MayBeAbsent {
    Yes,
    No,
}

/// What is known so far, weaker layers first.
struct Layers {
    config: Config,
    origins: BTreeMap<&'static str, ValueOrigin>,
    files: Vec<PathBuf>,
}

impl Layers {
    fn take(
        &mut self,
        setting: &'static Setting,
        values: Vec<String>,
        base: &Path,
        origin: ValueOrigin,
    ) -> Result<(), ConfigError> {
        (setting.read)(&mut self.config, &Given { values, base }).map_err(|problem| ConfigError::BadValue {
            origin: origin.clone(),
            setting: setting.name,
            problem,
            valid: setting.valid,
        })?;
        self.origins.insert(setting.name, origin);
        Ok(())
    }

    fn read_file(&mut self, path: &Path, may_be_absent: MayBeAbsent) -> Result<(), ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound && may_be_absent == MayBeAbsent::Yes => return Ok(()),
            Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        };
        let line_at = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(&text).map_err(|wrong| ConfigError::Syntax {
            path: path.to_owned(),
            line: wrong.span().map_or(1, |span| line_at(span.start)),
            problem: wrong.message().to_owned(),
        })?;
        let base = path.parent().unwrap_or(Path::new("/"));
        // In the order of the file, so that its first mistake is the one that is told.
        let mut entries = table.get_ref().iter().collect::<Vec<_>>();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let line = line_at(key.span().start);
            let setting = Setting::named(key.get_ref()).ok_or_else(|| ConfigError::UnknownKey {
                path: path.to_owned(),
                line,
                key: key.get_ref().to_string(),
                nearest: nearest(key.get_ref()),
            })?;
            let origin = ValueOrigin::File { path: path.to_owned(), line };
            let values = texts(value.get_ref(), setting.is_list).map_err(|problem| ConfigError::BadValue {
                origin: origin.clone(),
                setting: setting.name,
                problem,
                valid: setting.valid,
            })?;
            self.take(setting, values, base, origin)?;
        }
        self.files.push(path.to_owned());
        Ok(())
    }

    fn is_default(&self, setting: &str) -> bool {
        self.origins.get(setting) == Some(&ValueOrigin::Default)
    }

    /// The folders that no source names. Who names a state folder gets the admin socket in it: so two reflectors on one
    /// machine never meet.
    fn find_folders(&mut self, machine: &Machine<'_>) -> Result<(), ConfigError> {
        let folder = |variable| (machine.env)(variable).as_ref().and_then(first_folder);
        let state_is_ours = self.is_default("state_dir");
        if state_is_ours {
            let (path, origin) = if let Some(path) = folder("STATE_DIRECTORY") {
                (path, ValueOrigin::Place("STATE_DIRECTORY"))
            } else if machine.is_root {
                (ROOT_STATE_DIR.into(), ValueOrigin::Default)
            } else {
                let state = xdg(machine, "XDG_STATE_HOME", ".local/state").ok_or(ConfigError::NoStateDir)?;
                (state.join("packetparamedic/reflector"), ValueOrigin::Default)
            };
            self.config.state_dir = path;
            self.origins.insert("state_dir", origin);
        }
        if self.is_default("runtime_dir") {
            let session = (machine.env)("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
            let (path, origin) = if !state_is_ours {
                (self.config.state_dir.clone(), ValueOrigin::Default)
            } else if let Some(path) = folder("RUNTIME_DIRECTORY") {
                (path, ValueOrigin::Place("RUNTIME_DIRECTORY"))
            } else if machine.is_root {
                (ROOT_RUNTIME_DIR.into(), ValueOrigin::Default)
            } else if let Some(path) = session {
                (path.join("packetparamedic"), ValueOrigin::Place("XDG_RUNTIME_DIR"))
            } else {
                (self.config.state_dir.clone(), ValueOrigin::Default)
            };
            self.config.runtime_dir = path;
            self.origins.insert("runtime_dir", origin);
        }
        Ok(())
    }

    /// What no single value can tell.
    fn check_together(&self) -> Result<(), ConfigError> {
        let range = &self.config.data_port_range;
        let taken = self.config.listen.iter().find(|address| range.contains(&address.port()));
        match taken {
            Some(address) if self.config.offers_direct() => {
                let strongest = if self.is_default("data_port_range") { "listen" } else { "data_port_range" };
                Err(ConfigError::Conflict {
                    origin: self.origins.get(strongest).cloned().unwrap_or(ValueOrigin::Default),
                    problem: format!(
                        "data_port_range {}-{} contains port {}, which the reflector listens on; choose a range without it",
                        range.start(),
                        range.end(),
                        address.port()
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

/// A TOML value as the texts that settings read. Numbers are texts too: `max_streams = 8` and `"8"` mean the same.
fn texts(value: &DeValue<'_>, is_list: bool) -> Result<Vec<String>, String> {
    match value {
        DeValue::String(text) => Ok(vec![text.to_string()]),
        DeValue::Integer(number) if number.radix() == 10 => Ok(vec![number.as_str().to_owned()]),
        DeValue::Boolean(value) => Ok(vec![value.to_string()]),
        DeValue::Array(values) if is_list => {
            let each = values.iter().map(|value| match value.get_ref() {
                DeValue::Array(_) => Err("it is a nested array".to_owned()),
                value => texts(value, false),
            });
            each.collect::<Result<Vec<_>, _>>().map(|values| values.concat())
        }
        other => Err(format!("it is of type {}", other.type_str())),
    }
}

/// The setting that a mistyped key most likely means.
fn nearest(key: &str) -> Option<&'static str> {
    // The environment's name and the flag's are the mistakes that are no mistyping.
    let key = key.to_lowercase().replace('-', "_");
    let key = key.strip_prefix("reflector_").unwrap_or(&key);
    let scored = SETTINGS.iter().map(|setting| (strsim::jaro_winkler(key, setting.name), setting.name));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
