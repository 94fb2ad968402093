//! Tests of the configuration with the settings of a toy program on simulated machines.

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use paramedic_report::quantity;
use proptest::prelude::*;
use tempfile::TempDir;
use toml::Value;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Toy {
    streams: u16,
    duration: Duration,
    limit: u64,
    hosts: Vec<String>,
    peer: Option<String>,
    name: String,
    state_dir: PathBuf,
}

static SETTINGS: &[Setting<Toy>] = &[
    Setting {
        name: "max_streams",
        env: "TOY_MAX_STREAMS",
        flag: Some("max-streams"),
        placeholder: "N",
        help: "The number of streams.",
        valid: "1 to 64",
        is_list: false,
        read: |toy, given| given.number(1, 64).map(|streams| toy.streams = streams),
        show: |toy| Some(Value::Integer(toy.streams.into())),
    },
    Setting {
        name: "duration",
        env: "TOY_DURATION",
        flag: Some("time"),
        placeholder: "TIME",
        help: "The duration of a test.",
        valid: "1s to 1h",
        is_list: false,
        read: |toy, given| {
            let duration = given.duration(Duration::from_secs(1), Duration::from_secs(3600))?;
            toy.duration = duration;
            Ok(())
        },
        show: |toy| Some(Value::String(quantity::exact_duration(toy.duration))),
    },
    Setting {
        name: "limit",
        env: "TOY_LIMIT",
        flag: None,
        placeholder: "SIZE",
        help: "A size.",
        valid: "1MB to 2PB",
        is_list: false,
        read: |toy, given| given.bytes(1_000_000, 2_000_000_000_000_000).map(|limit| toy.limit = limit),
        show: |toy| Some(Value::String(quantity::exact_bytes(toy.limit))),
    },
    Setting {
        name: "hosts",
        env: "TOY_HOSTS",
        flag: Some("host"),
        placeholder: "HOST",
        help: "One or more hosts.",
        valid: "names",
        is_list: true,
        read: |toy, given| {
            toy.hosts = given.each().map(str::to_owned).collect();
            Ok(())
        },
        show: |toy| Some(list(&toy.hosts)),
    },
    Setting {
        name: "peer",
        env: "TOY_PEER",
        flag: Some("peer"),
        placeholder: "PEER",
        help: "The peer, if there is one.",
        valid: "text",
        is_list: false,
        read: |toy, given| given.text().map(|peer| toy.peer = Some(peer.to_owned())),
        show: |toy| toy.peer.clone().map(Value::String),
    },
    Setting {
        name: "name",
        env: "TOY_NAME",
        flag: Some("name"),
        placeholder: "NAME",
        help: "The name.",
        valid: "1 to 120 characters",
        is_list: false,
        read: |toy, given| given.name().map(|name| toy.name = name.to_string()),
        show: |toy| Some(Value::String(toy.name.clone())),
    },
    Setting {
        name: "state_dir",
        env: "TOY_STATE_DIR",
        flag: Some("state-dir"),
        placeholder: "FOLDER",
        help: "The state folder.",
        valid: "a folder",
        is_list: false,
        read: |toy, given| given.path().map(|path| toy.state_dir = path),
        show: |toy| Some(Value::String(toy.state_dir.display().to_string())),
    },
];

impl Configuration for Toy {
    const PROGRAM: &'static str = "toy";

    fn settings() -> &'static [Setting<Self>] {
        SETTINGS
    }

    fn defaults() -> Self {
        Self {
            streams: 4,
            duration: Duration::from_secs(600),
            limit: 20_000_000_000_000,
            hosts: Vec::new(),
            peer: None,
            name: String::new(),
            state_dir: PathBuf::new(),
        }
    }

    fn example() -> Self {
        Self { name: "name".to_owned(), state_dir: "/s".into(), peer: Some("attic".to_owned()), ..Self::defaults() }
    }

    fn complete(&mut self, origins: &mut Origins, machine: &Machine<'_>) -> Result<Vec<String>, ConfigError> {
        if origins.is_default("name") {
            self.name = machine.hostname.clone();
        }
        if origins.is_default("state_dir") {
            let (path, origin) = machine.state_dir("/var/lib/toy", "toys/toy")?;
            self.state_dir = path;
            origins.set("state_dir", origin);
        }
        Ok(Vec::new())
    }

    fn check(&self, origins: &Origins) -> Result<(), ConfigError> {
        if self.hosts.len() > usize::from(self.streams) {
            let problem = "there are more hosts than streams".to_owned();
            return Err(ConfigError::Conflict { origin: origins.of("hosts"), problem });
        }
        Ok(())
    }
}

/// A flag group with every setting.
struct All;

impl FlagGroup for All {
    type Config = Toy;
    const IS_GLOBAL: bool = false;

    fn has(_: &str) -> bool {
        true
    }
}

/// A flag group with only the state folder.
struct Place;

impl FlagGroup for Place {
    type Config = Toy;
    const IS_GLOBAL: bool = true;

    fn has(setting: &str) -> bool {
        setting == "state_dir"
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags<All>,
}

#[derive(Parser)]
struct Elsewhere {
    #[command(flatten)]
    place: Flags<Place>,
    #[arg(long)]
    name: Option<String>,
}

/// A simulated machine: the tests read nothing of the real one.
struct Bench {
    folder: TempDir,
    env: BTreeMap<&'static str, String>,
    is_root: bool,
    has_home: bool,
}

const USER_FILE: &str = "home/.config/packetparamedic/toy.toml";

impl Bench {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), env: BTreeMap::new(), is_root: false, has_home: true }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    fn load(&self, arguments: &[&str]) -> Result<Loaded<Toy>, ConfigError> {
        let flags = Cli::try_parse_from([&["toy"], arguments].concat()).unwrap().flags;
        let machine = Machine {
            env: &|name| self.env.get(name).map(OsString::from),
            variables: &self.env.keys().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            etc_file: self.path("etc.toml"),
            home: self.has_home.then(|| self.path("home")),
            is_root: self.is_root,
            hostname: "attic".to_owned(),
            exists: &|_| false,
            current_dir: self.path("cwd"),
        };
        load_on(&flags.values, &machine)
    }

    fn error(&self, arguments: &[&str]) -> String {
        self.load(arguments).unwrap_err().to_string()
    }
}

#[test]
fn without_any_layer_the_defaults_hold() {
    let loaded = Bench::new().load(&[]).unwrap();
    assert_eq!((loaded.config.streams, loaded.config.name.as_str(), loaded.config.peer), (4, "attic", None));
    assert!(loaded.files.is_empty());
    assert!(loaded.origins.iter().all(|(_, origin)| *origin == ValueOrigin::Default));
}

#[test]
fn each_layer_overrides_the_one_below() {
    let mut bench = Bench::new().file("etc.toml", "max_streams = 1");
    let streams = |bench: &Bench, arguments: &[&str]| {
        let loaded = bench.load(arguments).unwrap();
        (loaded.config.streams, loaded.origins.of("max_streams").to_string())
    };
    assert_eq!(streams(&bench, &[]), (1, format!("{}:1", bench.path("etc.toml").display())));
    bench = bench.file(USER_FILE, "\n\nmax_streams = 2");
    assert_eq!(streams(&bench, &[]), (2, format!("{}:3", bench.path(USER_FILE).display())));
    bench = bench.file("cwd/own.toml", "max_streams = 3");
    assert_eq!(streams(&bench, &["--config", "own.toml"]), (3, format!("{}:1", bench.path("cwd/own.toml").display())));
    bench = bench.env("TOY_MAX_STREAMS", "4");
    assert_eq!(streams(&bench, &["--config", "own.toml"]), (4, "TOY_MAX_STREAMS".to_owned()));
    assert_eq!(streams(&bench, &["--config", "own.toml", "--max-streams", "5"]), (5, "--max-streams".to_owned()));
    let files = bench.load(&["--config", "own.toml"]).unwrap().files;
    assert_eq!(files, [bench.path("cwd/own.toml"), bench.path(USER_FILE), bench.path("etc.toml")]);
}

#[test]
fn layers_mix_setting_by_setting_and_an_empty_variable_sets_nothing() {
    let bench = Bench::new().file("etc.toml", "name = \"etc\"\nmax_streams = 7").env("TOY_NAME", "");
    let config = bench.load(&["--time", "2s"]).unwrap().config;
    assert_eq!((config.name.as_str(), config.streams, config.duration), ("etc", 7, Duration::from_secs(2)));
}

#[test]
fn a_list_has_commas_in_the_environment_and_a_flag_repeated() {
    let bench = Bench::new().env("TOY_HOSTS", "a, b,c");
    assert_eq!(bench.load(&[]).unwrap().config.hosts, ["a", "b", "c"]);
    assert_eq!(bench.load(&["--host", "d", "--host", "e,f"]).unwrap().config.hosts, ["d", "e", "f"]);
    let bench = Bench::new().file("etc.toml", "hosts = ['a', 'b']");
    assert_eq!(bench.load(&[]).unwrap().config.hosts, ["a", "b"]);
    assert!(Cli::try_parse_from(["toy", "--peer", "a", "--peer", "b"]).is_err());
}

#[test]
fn an_unknown_key_is_reported_with_its_line_and_the_most_similar_setting() {
    let error = |key: &str| {
        let bench = Bench::new().file("etc.toml", &format!("name = 'x'\n{key} = 1\n"));
        let text = bench.error(&[]);
        text.strip_prefix(&bench.path("etc.toml").display().to_string()).unwrap().to_owned()
    };
    assert_eq!(error("max_stream"), ":2: unknown setting \"max_stream\"; did you mean \"max_streams\"?");
    assert!(error("max-streams").ends_with("did you mean \"max_streams\"?"));
    assert!(error("TOY_PEER").ends_with("did you mean \"peer\"?"));
    assert_eq!(error("zzz"), ":2: unknown setting \"zzz\"");
    let table = Bench::new().file("etc.toml", "\n[limits]\nmax_streams = 3\n").error(&[]);
    assert!(table.contains("etc.toml:2: unknown setting \"limits\""), "{table}");
}

#[test]
fn a_bad_value_is_reported_with_its_place_its_fault_and_the_valid_values() {
    let bench = Bench::new().file("etc.toml", "\nduration = 60\n");
    assert_eq!(
        bench.error(&[]),
        format!(
            "{}:2: duration is not valid: \"60\" needs a unit of time; valid: 1s to 1h",
            bench.path("etc.toml").display()
        )
    );
    let error = Bench::new().env("TOY_LIMIT", "5 parsecs").error(&[]);
    assert_eq!(error, "TOY_LIMIT: limit is not valid: \"parsecs\" is not a unit of size; valid: 1MB to 2PB");
    let error = Bench::new().error(&["--max-streams", "65"]);
    assert_eq!(error, "--max-streams: max_streams is not valid: 65 is above 64; valid: 1 to 64");
    for value in ["true", "1.5", "{}", "[1]", "2026-01-31", "''", "0"] {
        let bench = Bench::new().file("etc.toml", &format!("max_streams = {value}"));
        assert!(matches!(bench.load(&[]), Err(ConfigError::BadValue { .. })), "{value}");
    }
}

#[test]
fn each_error_has_a_remedy_for_its_place() {
    let remedy = |bench: Bench, arguments: &[&str]| bench.load(arguments).unwrap_err().remedy("toy");
    let in_file = |text| remedy(Bench::new().file("etc.toml", text), &[]);
    assert_eq!(in_file("max_streams = 65"), "fix that line, then run `toy config check`");
    assert_eq!(in_file("max_stream = 6"), "fix that line, then run `toy config check`");
    assert_eq!(in_file("zzz = 6"), "remove that line; `toy config template` lists every setting");
    assert!(remedy(Bench::new(), &["--max-streams", "65"]).starts_with("correct that value;"));
    assert!(remedy(Bench::new(), &["--config", "gone"]).starts_with("check the path"));
    let homeless = Bench { has_home: false, ..Bench::new() };
    assert_eq!(remedy(homeless, &[]), "set --state-dir FOLDER or TOY_STATE_DIR");
}

#[test]
fn a_fault_is_reported_even_if_another_layer_overrides_it() {
    let bench = Bench::new().file("etc.toml", "max_streams = 0");
    assert!(bench.load(&["--max-streams", "4"]).is_err());
}

#[test]
fn values_that_exclude_each_other_are_reported() {
    let error = Bench::new().error(&["--host", "a,b", "--max-streams", "1"]);
    assert_eq!(error, "--host: there are more hosts than streams");
}

#[test]
fn the_file_of_the_config_flag_must_exist() {
    assert!(matches!(Bench::new().load(&["--config", "gone.toml"]), Err(ConfigError::Unreadable { .. })));
    let error = Bench::new().file("etc.toml", "name = 'x'\nname = 'y'\n").error(&[]);
    assert!(error.contains("etc.toml:2: not valid TOML: duplicate key"), "{error}");
    assert!(Bench::new().file("etc.toml", "name = \n").error(&[]).contains("etc.toml:1: "));
}

#[test]
fn the_state_folder_follows_systemd_then_root_then_xdg() {
    let folder = |bench: &Bench| bench.load(&[]).unwrap().config.state_dir;
    let user = Bench::new();
    assert_eq!(folder(&user), user.path("home/.local/state/toys/toy"));
    assert_eq!(folder(&Bench::new().env("XDG_STATE_HOME", "/s")), Path::new("/s/toys/toy"));
    let root = Bench { is_root: true, ..Bench::new() };
    assert_eq!(folder(&root), Path::new("/var/lib/toy"));
    let unit = root.env("STATE_DIRECTORY", "/var/lib/a:/var/lib/b");
    assert_eq!(folder(&unit), Path::new("/var/lib/a"));
    assert_eq!(unit.load(&[]).unwrap().origins.of("state_dir").to_string(), "STATE_DIRECTORY");
    let homeless = Bench { has_home: false, ..Bench::new() };
    assert!(matches!(homeless.load(&[]), Err(ConfigError::NoStateDir)));
    assert!(homeless.load(&["--state-dir", "/s"]).is_ok());
}

#[test]
fn a_relative_path_is_relative_to_its_file_or_the_current_folder() {
    let bench = Bench::new().file(USER_FILE, "state_dir = 'here'");
    assert_eq!(bench.load(&[]).unwrap().config.state_dir, bench.path(USER_FILE).with_file_name("here"));
    assert_eq!(bench.load(&["--state-dir", "there"]).unwrap().config.state_dir, bench.path("cwd/there"));
}

#[test]
fn the_template_is_valid_with_and_without_its_comment_marks() {
    let text = template::<Toy>();
    assert_eq!(Bench::new().file("etc.toml", &text).load(&[]).unwrap().files.len(), 1);
    let bare = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let loaded = Bench::new().file("etc.toml", &bare.collect::<Vec<_>>().join("\n")).load(&[]).unwrap();
    assert!(loaded.origins.iter().all(|(_, origin)| matches!(origin, ValueOrigin::File { .. })), "{text}");
    assert_eq!(loaded.config, Toy::example());
    assert!(
        text.contains("# Valid: 1s to 1h.\n# Environment: TOY_DURATION. Flag: --time.\n#duration = \"10m\"\n"),
        "{text}"
    );
}

#[test]
fn a_shown_configuration_reads_back_as_the_same() {
    for with_origin in [false, true] {
        let loaded = Bench::new().load(&["--name", "quo\"te # \\ x", "--host", "a,b"]).unwrap();
        let shown = loaded.show(with_origin);
        let again = Bench::new().file("etc.toml", &shown).load(&[]).unwrap();
        assert_eq!(again.config, loaded.config, "{shown}");
        assert_eq!(shown.contains("# --host"), with_origin);
        assert!(shown.contains("# peer is not set\n"), "{shown}");
        assert_eq!(shown.lines().count(), SETTINGS.len());
    }
}

#[test]
fn every_setting_with_a_flag_is_in_the_help_with_its_variable() {
    let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
    for setting in SETTINGS {
        let Some(flag) = setting.flag else { continue };
        assert!(help.contains(&format!("--{flag} <{}>", setting.placeholder)), "{help}");
        assert!(help.contains(&format!("[env: {}]", setting.env)), "{help}");
    }
    assert!(help.contains("[default: 10m]") && !help.contains("TOY_LIMIT"), "{help}");
}

#[test]
fn a_group_accepts_only_its_own_flags() {
    let cli = Elsewhere::try_parse_from(["x", "--state-dir", "/s", "--name", "attic Pi"]).unwrap();
    assert_eq!(cli.name.as_deref(), Some("attic Pi"));
    assert_eq!(cli.place.values.values.keys().collect::<Vec<_>>(), [&"state_dir"]);
    assert!(Elsewhere::try_parse_from(["x", "--host", "1"]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_file_and_no_value_panics(text in "\\PC*", key in 0..SETTINGS.len()) {
        let machine = Bench::new();
        let _ = machine.file("etc.toml", &text).env(SETTINGS[key].env, &text).load(&[]);
        let _ = Bench::new().file("etc.toml", &format!("{} = {text:?}", SETTINGS[key].name)).load(&[]);
    }
}
