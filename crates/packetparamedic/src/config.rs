//! The appliance's settings: raw text from flags, environment and files, checked once, each default with its reason.
//! What a command does with them is not decided here, and secrets never stand among them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use paramedic_host::log::{self, LogFormat};
use paramedic_link::PeerText;
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use toml::de::{DeTable, DeValue};

/// The file that speaks for the whole host.
const SYSTEM_FILE: &str = "/etc/packetparamedic/packetparamedic.toml";

/// Long enough for start-up to pass on a slow line, short enough to wait for; what iperf3 takes as well.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// One stream alone often measures its congestion control; four fill most lines and are what people compare with.
const DEFAULT_STREAMS: u16 = 4;

/// A command reports its own failure on stderr; by default the log adds only what is an error beside it.
const DEFAULT_LOG: &str = "error";

/// When to colour what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` or the like says no.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The settings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where key, pairings and results are kept.
    pub state_dir: PathBuf,
    /// What the appliance calls itself.
    pub name: PeerText,
    /// The reflector to measure against when none is named: a saved name, an Endpoint ID or an address.
    pub peer: Option<String>,
    /// Where a speed test comes from; absent: the program's choice.
    pub provider: Option<String>,
    /// The engine that makes the load; absent: the provider's choice.
    pub engine: Option<EngineId>,
    /// The way the data takes; absent: direct where it is offered.
    pub data_mode: Option<DataMode>,
    /// How long each direction is measured, start-up included.
    pub duration: Duration,
    /// Streams per direction.
    pub streams: u16,
    /// When to colour what is printed.
    pub color: Color,
    /// Which events are logged on stderr, as [`log::is_filter`] takes it.
    pub log: String,
    /// How events are logged.
    pub log_format: LogFormat,
}

/// One setting. Its name is the key in a file; the environment's is the same in upper case, after a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// [`Settings::state_dir`]
    StateDir,
    /// [`Settings::name`]
    Name,
    /// [`Settings::peer`]
    Peer,
    /// [`Settings::provider`]
    Provider,
    /// [`Settings::engine`]
    Engine,
    /// [`Settings::data_mode`]
    DataMode,
    /// [`Settings::duration`]
    Duration,
    /// [`Settings::streams`]
    Streams,
    /// [`Settings::color`]
    Color,
    /// [`Settings::log`]
    Log,
    /// [`Settings::log_format`]
    LogFormat,
}

impl Key {
    /// All of them, in the order in which they are explained.
    pub const ALL: [Key; 11] = [
        Key::StateDir,
        Key::Name,
        Key::Peer,
        Key::Provider,
        Key::Engine,
        Key::DataMode,
        Key::Duration,
        Key::Streams,
        Key::Color,
        Key::Log,
        Key::LogFormat,
    ];

    /// The key in a file.
    pub fn name(self) -> &'static str {
        match self {
            Key::StateDir => "state_dir",
            Key::Name => "name",
            Key::Peer => "peer",
            Key::Provider => "provider",
            Key::Engine => "engine",
            Key::DataMode => "data_mode",
            Key::Duration => "duration",
            Key::Streams => "streams",
            Key::Color => "color",
            Key::Log => "log",
            Key::LogFormat => "log_format",
        }
    }

    /// The flag on the command line.
    pub fn flag(self) -> &'static str {
        match self {
            Key::StateDir => "--state-dir",
            Key::Name => "--name",
            Key::Peer => "--peer",
            Key::Provider => "--provider",
            Key::Engine => "--engine",
            Key::DataMode => "--data-mode",
            Key::Duration => "-t",
            Key::Streams => "-P",
            Key::Color => "--color",
            Key::Log => "-v",
            Key::LogFormat => "--log-format",
        }
    }

    /// The environment's variable.
    pub fn variable(self) -> String {
        format!("PACKETPARAMEDIC_{}", self.name().to_ascii_uppercase())
    }

    /// All names, for an error message.
    pub fn names() -> String {
        Self::ALL.map(Key::name).join(", ")
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(&'static str),
    /// The environment.
    Variable(String),
    /// A file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line, key } => write!(f, "`{key}` in {}, line {line},", path.display()),
        }
    }
}

/// What a value should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A folder's path.
    Folder,
    /// Text that is not empty.
    Text,
    /// The id of an engine.
    Engine,
    /// A data mode.
    DataMode,
    /// A time.
    Duration,
    /// A number of streams.
    Streams,
    /// When to colour.
    Color,
    /// Which events are logged.
    Log,
    /// How events are logged.
    LogFormat,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder => f.write_str("the path of a folder"),
            Self::Text => f.write_str("text that is not empty"),
            Self::Engine => f.write_str("an engine's name, as in tcp"),
            Self::DataMode => f.write_str("tunneled or direct"),
            Self::Duration => f.write_str("a time up to 24h, as in 10, 10s, 500ms or 2m"),
            Self::Streams => write!(f, "a number from 1 to {}", TestSpec::MAX_STREAMS),
            Self::Color => f.write_str("auto, always or never"),
            Self::Log => {
                f.write_str("a level (error, warn, info, debug, trace) or a filter such as paramedic_engines=debug")
            }
            Self::LogFormat => f.write_str("text or json"),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("{source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("line {line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// A key that is no setting.
    #[error("line {line}: there is no setting `{key}`")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The setting that looks most like it.
        suggestion: Option<&'static str>,
    },
    /// A list or a section where a value should be.
    #[error("line {line}: `{key}` is neither text nor a number")]
    NotPlain {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// A value that is not what it should be.
    #[error("{text:?} is not {expected}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The value.
        text: String,
        /// What it should have been.
        expected: Expected,
    },
    /// A variable that is not UTF-8.
    #[error("it is not UTF-8 text")]
    NotText {
        /// The variable.
        variable: String,
    },
    /// Nobody says where the state folder is.
    #[error("this user has no home folder")]
    NoHome,
}

/// The values of one source.
pub type Layer = BTreeMap<Key, (String, Origin)>;

/// What the settings depend on besides their sources.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The name of this host.
    pub host_name: String,
    /// Whether the program runs as root.
    pub is_root: bool,
    /// systemd's `STATE_DIRECTORY`.
    pub unit_state_dir: Option<OsString>,
    /// The user's folder for state (XDG); absent without a home folder.
    pub user_state_dir: Option<PathBuf>,
}

impl Settings {
    /// Reads the environment and the files and decides; `flags` are the values of the command line, `config` the file
    /// that `--config` names.
    pub fn load(flags: &[(Key, String)], config: Option<&Path>) -> Result<Self, Error> {
        let folders = etcetera::base_strategy::Xdg::new().ok();
        let mut layers = vec![flag_layer(flags), variable_layer(|name| std::env::var_os(name))?];
        if let Some(path) = config {
            layers.push(file_layer(path, &read(path)?)?);
        }
        let user_file = folders.as_ref().map(|xdg| xdg.config_dir().join("packetparamedic/packetparamedic.toml"));
        for path in user_file.into_iter().chain([PathBuf::from(SYSTEM_FILE)]) {
            match read(&path) {
                Ok(text) => layers.push(file_layer(&path, &text)?),
                // These two are read where they are; nobody asked for them.
                Err(Error::Read { source, .. }) if is_absent(&source) => {}
                Err(error) => return Err(error),
            }
        }
        let surroundings = Surroundings {
            host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            is_root: rustix::process::geteuid().is_root(),
            unit_state_dir: std::env::var_os("STATE_DIRECTORY"),
            user_state_dir: folders.and_then(|xdg| xdg.state_dir()),
        };
        Self::decide(&layers, &surroundings)
    }

    /// Takes each setting from the first layer that has it, else its default.
    pub fn decide(layers: &[Layer], surroundings: &Surroundings) -> Result<Self, Error> {
        let chosen = |key: Key| layers.iter().find_map(|layer| layer.get(&key));
        let state_dir = match parsed(chosen(Key::StateDir), Expected::Folder, |text| text_of(text).map(PathBuf::from))?
        {
            Some(folder) => folder,
            None => default_state_dir(surroundings)?,
        };
        let name = parsed(chosen(Key::Name), Expected::Text, |text| {
            Some(PeerText::new(text)).filter(|name| !name.is_empty())
        })?;
        Ok(Self {
            state_dir,
            name: name.unwrap_or_else(|| default_name(surroundings)),
            peer: parsed(chosen(Key::Peer), Expected::Text, text_of)?,
            provider: parsed(chosen(Key::Provider), Expected::Text, text_of)?,
            engine: parsed(chosen(Key::Engine), Expected::Engine, |text| EngineId::try_from(text).ok())?,
            data_mode: parsed(chosen(Key::DataMode), Expected::DataMode, data_mode)?,
            duration: parsed(chosen(Key::Duration), Expected::Duration, duration)?.unwrap_or(DEFAULT_DURATION),
            streams: parsed(chosen(Key::Streams), Expected::Streams, streams)?.unwrap_or(DEFAULT_STREAMS),
            color: parsed(chosen(Key::Color), Expected::Color, color)?.unwrap_or_default(),
            log: parsed(chosen(Key::Log), Expected::Log, log_filter)?.unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            log_format: parsed(chosen(Key::LogFormat), Expected::LogFormat, LogFormat::from_name)?.unwrap_or_default(),
        })
    }
}

/// The layer of the command line.
pub fn flag_layer(flags: &[(Key, String)]) -> Layer {
    flags.iter().map(|(key, text)| (*key, (text.clone(), Origin::Flag(key.flag())))).collect()
}

/// The layer of the environment; an empty variable says nothing.
pub fn variable_layer(variable: impl Fn(&str) -> Option<OsString>) -> Result<Layer, Error> {
    let mut layer = Layer::new();
    for key in Key::ALL {
        let name = key.variable();
        match variable(&name).map(OsString::into_string) {
            None => {}
            Some(Ok(text)) if text.is_empty() => {}
            Some(Ok(text)) => {
                layer.insert(key, (text, Origin::Variable(name)));
            }
            Some(Err(_)) => return Err(Error::NotText { variable: name }),
        }
    }
    Ok(layer)
}

/// The layer of a file with this text.
pub fn file_layer(path: &Path, text: &str) -> Result<Layer, Error> {
    let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        line: line_at(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut layer = Layer::new();
    for (name, value) in table.get_ref() {
        let line = line_at(name.span().start);
        let name = name.get_ref();
        let Some(key) = Key::ALL.into_iter().find(|key| key.name() == name.as_ref()) else {
            let (path, key) = (path.to_owned(), name.to_string());
            return Err(Error::UnknownKey { path, line, suggestion: suggestion(&key), key });
        };
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            _ => return Err(Error::NotPlain { path: path.to_owned(), line, key: key.name() }),
        };
        layer.insert(key, (text, Origin::File { path: path.to_owned(), line, key: key.name() }));
    }
    Ok(layer)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The setting that looks most like `key`, if one does.
fn suggestion(key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    let likeness = |name: &str| strsim::jaro_winkler(&key, name);
    let best = Key::ALL.map(Key::name).into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.75).then_some(best)
}

fn parsed<T>(
    chosen: Option<&(String, Origin)>,
    expected: Expected,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    chosen
        .map(|(text, origin)| {
            parse(text.trim()).ok_or_else(|| Error::Value { origin: origin.clone(), text: text.clone(), expected })
        })
        .transpose()
}

fn text_of(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn data_mode(text: &str) -> Option<DataMode> {
    match text {
        "tunneled" => Some(DataMode::Tunneled),
        // The long word is what the reflector's settings and the result call it.
        "direct" | "direct_ephemeral" => Some(DataMode::DirectEphemeral),
        _ => None,
    }
}

/// A time with its unit; without one, seconds, as iperf3's `-t` has it.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim_start() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    } * number.parse::<f64>().ok()?;
    // Whole milliseconds: what a test is asked in.
    let ms = (seconds * 1000.0).round();
    let longest = TestSpec::MAX_PHASE.as_millis() as f64;
    (1.0..=longest).contains(&ms).then(|| Duration::from_millis(ms as u64))
}

fn streams(text: &str) -> Option<u16> {
    text.parse().ok().filter(|streams| (1..=TestSpec::MAX_STREAMS).contains(streams))
}

fn color(text: &str) -> Option<Color> {
    match text {
        "auto" => Some(Color::Auto),
        "always" => Some(Color::Always),
        "never" => Some(Color::Never),
        _ => None,
    }
}

fn log_filter(text: &str) -> Option<String> {
    log::is_filter(text).then(|| text.to_owned())
}

fn default_name(surroundings: &Surroundings) -> PeerText {
    let name = PeerText::new(&surroundings.host_name);
    if name.is_empty() { PeerText::new("appliance") } else { name }
}

fn default_state_dir(surroundings: &Surroundings) -> Result<PathBuf, Error> {
    if let Some(folders) = &surroundings.unit_state_dir
        // systemd lists several, separated by colons; the first is ours.
        && let Some(first) = std::env::split_paths(folders).next().filter(|path| path.is_absolute())
    {
        return Ok(first);
    }
    if surroundings.is_root {
        return Ok(PathBuf::from("/var/lib/packetparamedic"));
    }
    surroundings.user_state_dir.as_ref().map(|folder| folder.join("packetparamedic")).ok_or(Error::NoHome)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn surroundings() -> Surroundings {
        Surroundings {
            host_name: "attic".to_owned(),
            user_state_dir: Some("/home/ann/.local/state".into()),
            ..Surroundings::default()
        }
    }

    fn file(text: &str) -> Result<Layer, Error> {
        file_layer(Path::new("pp.toml"), text)
    }

    fn flag(key: Key, text: &str) -> Result<Settings, Error> {
        Settings::decide(&[flag_layer(&[(key, text.to_owned())])], &surroundings())
    }

    #[test]
    fn with_nothing_said_the_defaults_hold() {
        let settings = Settings::decide(&[], &surroundings()).unwrap();
        assert_eq!(settings.state_dir, Path::new("/home/ann/.local/state/packetparamedic"));
        assert_eq!((settings.name.as_str(), settings.streams), ("attic", 4));
        assert_eq!((settings.duration, settings.peer), (Duration::from_secs(10), None));
    }

    #[test]
    fn the_nearer_source_wins() {
        let variables = |name: &str| (name == "PACKETPARAMEDIC_STREAMS").then(|| OsString::from("8"));
        let layers = [
            flag_layer(&[(Key::Duration, "5".to_owned())]),
            variable_layer(variables).unwrap(),
            file("duration = \"20s\"\nstreams = 16\npeer = \"attic\"").unwrap(),
            file("peer = \"cellar\"\ncolor = \"never\"").unwrap(),
        ];
        let settings = Settings::decide(&layers, &surroundings()).unwrap();
        assert_eq!((settings.duration, settings.streams), (Duration::from_secs(5), 8));
        assert_eq!((settings.peer.as_deref(), settings.color), (Some("attic"), Color::Never));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_likely_one() {
        let error = file("# ours\n\nstream = 4\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3: there is no setting `stream`");
        assert!(matches!(error, Error::UnknownKey { suggestion: Some("streams"), .. }));
        let strange = file("quux = 1").unwrap_err();
        assert!(matches!(strange, Error::UnknownKey { suggestion: None, .. }));
    }

    #[test]
    fn what_is_no_toml_is_named_with_its_line() {
        let error = file("streams = 4\nname = \n").unwrap_err();
        assert!(matches!(error, Error::Syntax { line: 2, .. }), "{error:?}");
        assert!(matches!(file("[name]\na = 1"), Err(Error::NotPlain { line: 1, key: "name", .. })));
    }

    #[test]
    fn a_wrong_value_says_where_it_stands_and_what_it_should_be() {
        let layer = file("color = \"never\"\nstreams = 65").unwrap();
        let error = Settings::decide(&[layer], &surroundings()).unwrap_err();
        assert_eq!(error.to_string(), "\"65\" is not a number from 1 to 64");
        let Error::Value { origin, .. } = error else { panic!("another error") };
        assert_eq!(origin.to_string(), "`streams` in pp.toml, line 2,");
        for (key, text) in [
            (Key::Color, "blue"),
            (Key::Log, "loud"),
            (Key::LogFormat, "xml"),
            (Key::DataMode, "both"),
            (Key::Engine, "T C P"),
            (Key::Name, " "),
            (Key::Peer, ""),
        ] {
            assert!(flag(key, text).is_err(), "{key:?} takes {text:?}");
        }
    }

    #[test]
    fn a_time_reads_as_people_write_it() {
        let ms = |text| flag(Key::Duration, text).map(|settings| settings.duration.as_millis()).ok();
        assert_eq!([ms("10"), ms("10s"), ms("0.5"), ms("500ms")], [Some(10_000), Some(10_000), Some(500), Some(500)]);
        assert_eq!([ms("2m"), ms("24h"), ms("1 min")], [Some(120_000), Some(86_400_000), Some(60_000)]);
        assert_eq!([ms("0"), ms("25h"), ms("-1"), ms("1d"), ms("."), ms("1e3")], [None; 6]);
    }

    #[test]
    fn the_state_folder_follows_systemd_then_root_then_home() {
        let folder =
            |surroundings: &Surroundings| Settings::decide(&[], surroundings).map(|settings| settings.state_dir);
        let root = Surroundings { is_root: true, user_state_dir: None, ..surroundings() };
        assert_eq!(folder(&root).unwrap(), Path::new("/var/lib/packetparamedic"));
        let unit = Surroundings { unit_state_dir: Some("/var/lib/pp:/var/lib/other".into()), ..root };
        assert_eq!(folder(&unit).unwrap(), Path::new("/var/lib/pp"));
        let homeless = Surroundings { user_state_dir: None, ..surroundings() };
        assert!(matches!(folder(&homeless), Err(Error::NoHome)));
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        assert_eq!(variable_layer(|_| Some(OsString::new())).unwrap(), Layer::new());
    }

    proptest! {
        #[test]
        fn no_value_panics(text in "\\PC*") {
            for key in Key::ALL {
                let _ = flag(key, &text);
            }
            let _ = file(&text);
        }
    }
}
