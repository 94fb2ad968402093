//! Tests of the reflector's configuration on simulated machines. Precedence, files and messages are tested in
//! `paramedic-host`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use clap::Parser;
use paramedic_host::config::{Loaded, load_on, template};
use tempfile::TempDir;

use super::settings::SETTINGS;
use super::*;

/// A simulated machine, so that a test reads nothing of the real one.
struct Bench {
    folder: TempDir,
    env: BTreeMap<&'static str, String>,
    is_root: bool,
    /// The files that exist on the machine.
    files: Vec<&'static str>,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: AllFlags,
}

impl Bench {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), env: BTreeMap::new(), is_root: false, files: Vec::new() }
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

    fn root(mut self) -> Self {
        self.is_root = true;
        self
    }

    /// The same machine with a file at `path`.
    fn with_file(mut self, path: &'static str) -> Self {
        self.files.push(path);
        self
    }

    fn load(&self, arguments: &[&str]) -> Result<Loaded<Config>, ConfigError> {
        let flags = Cli::try_parse_from([&["reflector"], arguments].concat()).unwrap().flags;
        load_on(
            &flags.values,
            &Machine {
                env: &|name| self.env.get(name).filter(|value| !value.is_empty()).map(OsString::from),
                variables: &self.env.keys().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
                etc_file: self.path("etc.toml"),
                home: Some(self.path("home")),
                is_root: self.is_root,
                hostname: "attic".to_owned(),
                exists: &|path| self.files.iter().any(|file| path == Path::new(file)),
                current_dir: self.path("cwd"),
            },
        )
    }

    fn mistake(&self, arguments: &[&str]) -> String {
        self.load(arguments).unwrap_err().to_string()
    }
}

#[test]
fn with_nothing_said_the_defaults_hold() {
    let loaded = Bench::new().load(&[]).unwrap();
    assert_eq!(loaded.config.listen, addresses::both_families(4000));
    assert_eq!(loaded.config.name.as_str(), "attic");
    assert!(!loaded.config.offers_direct());
    assert_eq!((loaded.config.max_concurrent_tests, loaded.config.max_tests_per_hour), (1, 240));
    assert!(loaded.files.is_empty());
    assert!(loaded.origins.iter().all(|(_, origin)| *origin == ValueOrigin::Default));
}

#[test]
fn values_read_like_people_write_them() {
    let text = "max_test_duration = '90s'\nmax_bytes_per_day = \"500GB\"\nmax_bytes_per_day_total = 1_000_000_000_000\n\
                mode = 'direct_ephemeral'\ndata_port_range = 6000\nlisten = ['127.0.0.1:0', '::1']\nlog_format = 'json'\n";
    let config = Bench::new().file("etc.toml", text).load(&[]).unwrap().config;
    assert_eq!(config.max_test_duration, Duration::from_secs(90));
    assert_eq!((config.max_bytes_per_day, config.max_bytes_per_day_total), (500_000_000_000, 1_000_000_000_000));
    assert_eq!((config.offers_direct(), config.data_port_range), (true, 6000..=6000));
    assert_eq!(config.listen, ["127.0.0.1:0".parse().unwrap(), "[::1]:4000".parse().unwrap()]);
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn a_list_comes_as_commas_in_the_environment_and_as_repeated_flags() {
    let bench = Bench::new().env("REFLECTOR_LISTEN", "127.0.0.1:1, 127.0.0.1:2,127.0.0.1:1");
    assert_eq!(bench.load(&[]).unwrap().config.listen.len(), 2);
    let config = bench.load(&["--listen", "0", "--listen", "127.0.0.1:0,127.0.0.1:0"]).unwrap().config;
    assert_eq!(config.listen.len(), 4);
}

#[test]
fn every_bad_value_is_refused() {
    for (name, value) in [
        ("listen", "example.org"),
        ("listen", "[]"),
        ("name", "a\u{7}b"),
        ("authorized_peers", "PP-AAAA"),
        ("mode", "Tunneled"),
        ("data_port_range", "9-3"),
        ("max_concurrent_tests", "0"),
        ("max_queue", "-1"),
        ("max_monitors", "1001"),
        ("max_test_duration", "25h"),
        ("max_streams", "many"),
        ("max_tests_per_hour", "0"),
        ("max_bytes_per_day", "1kB"),
        ("max_bytes_per_day_total", "3PB"),
        ("audit_segment_size", "1kB"),
        ("audit_max_size", "3MB"),
        ("metrics_listen", "localhost:4001"),
        ("metrics_allow_remote", "perhaps"),
        ("log", "a=b=c"),
        ("log_format", "xml"),
    ] {
        let setting = SETTINGS.iter().find(|setting| setting.name == name).unwrap();
        let bench = Bench::new().env(setting.env, value);
        assert!(matches!(bench.load(&[]), Err(ConfigError::BadValue { .. })), "{name} = {value}");
    }
    for value in ["true", "1.5", "{}", "[1]", "2026-01-31", "''"] {
        let bench = Bench::new().file("etc.toml", &format!("max_streams = {value}"));
        assert!(matches!(bench.load(&[]), Err(ConfigError::BadValue { .. })), "{value}");
    }
}

#[test]
fn a_mistyped_variable_is_an_error_with_the_right_one() {
    let bench = Bench::new().env("REFLECTOR_MAX_QEUE", "3");
    let expected = "unknown environment variable REFLECTOR_MAX_QEUE; did you mean \"REFLECTOR_MAX_QUEUE\"?";
    assert_eq!(bench.mistake(&[]), expected);
    assert!(Bench::new().env("REFLECTOR_PORT", "tcp://10.0.0.11:4000").load(&[]).is_ok());
}

#[test]
fn data_ports_and_the_listening_port_stay_apart() {
    let direct = ["--mode", "direct_ephemeral", "--listen", "127.0.0.1:5250"];
    assert!(Bench::new().mistake(&direct).starts_with("--listen: data_port_range 5201-5299 contains port 5250"));
    assert!(Bench::new().load(&direct[2..]).is_ok());
    let metrics = ["--mode", "direct_ephemeral", "--metrics-listen", "5250"];
    assert!(
        Bench::new().mistake(&metrics).starts_with("--metrics-listen: data_port_range 5201-5299 contains port 5250")
    );
    assert!(Bench::new().load(&metrics[2..]).is_ok());
}

#[test]
fn metrics_have_a_port_of_their_own() {
    for (listen, metrics, collides) in [
        ("0.0.0.0:4000", "4000", true),
        ("127.0.0.1:4000", "127.0.0.1:4000", true),
        ("[::]:4000", "[::1]:4000", true),
        ("192.0.2.7:4000", "127.0.0.1:4000", false),
        ("127.0.0.1:0", "127.0.0.1:0", false),
    ] {
        let args = ["--listen", listen, "--metrics-listen", metrics];
        let expected = format!("uses the port of listen {listen}");
        match collides {
            true => assert!(Bench::new().mistake(&args).contains(&expected), "{listen} {metrics}"),
            false => assert!(Bench::new().load(&args).is_ok(), "{listen} {metrics}"),
        }
    }
}

#[test]
fn metrics_are_for_other_hosts_only_with_a_permission() {
    for remote in ["0.0.0.0:4001", "[::]:4001", "192.0.2.7:4001"] {
        let bench = Bench::new().env("REFLECTOR_METRICS_LISTEN", remote);
        let expected = format!("REFLECTOR_METRICS_LISTEN: metrics_listen {remote} is not a loopback address");
        assert!(bench.mistake(&[]).starts_with(&expected), "{}", bench.mistake(&[]));
        assert!(bench.load(&["--metrics-allow-remote", "true"]).is_ok());
        let off = bench.load(&["--metrics-listen", "off"]).unwrap().config;
        assert_eq!(off.metrics_listen, MetricsListen::Off);
    }
    for local in ["127.0.0.1:4001", "[::1]:4001", "4001", "/run/metrics.sock"] {
        assert!(Bench::new().env("REFLECTOR_METRICS_LISTEN", local).load(&[]).is_ok(), "{local}");
    }
}

#[test]
fn folders_follow_systemd_then_root_then_xdg() {
    let folders = |bench: &Bench, arguments: &[&str]| {
        let config = bench.load(arguments).unwrap().config;
        (config.state_dir.clone(), config.admin_socket())
    };
    let home = Bench::new();
    let state = home.path("home/.local/state/packetparamedic/reflector");
    assert_eq!(folders(&home, &[]), (state.clone(), state.join("admin.sock")));
    let session = Bench::new().env("XDG_RUNTIME_DIR", "/run/user/7").env("XDG_STATE_HOME", "/s");
    let socket = PathBuf::from("/run/user/7/packetparamedic/admin.sock");
    assert_eq!(folders(&session, &[]), ("/s/packetparamedic/reflector".into(), socket));
    let root = (PathBuf::from(ROOT_STATE_DIR), PathBuf::from("/run/reflector/admin.sock"));
    assert_eq!(folders(&Bench::new().root(), &[]), root);
    let unit = Bench::new().env("STATE_DIRECTORY", "/var/lib/a:/var/lib/b").env("RUNTIME_DIRECTORY", "/run/a");
    assert_eq!(folders(&unit, &[]), ("/var/lib/a".into(), "/run/a/admin.sock".into()));
    assert_eq!(unit.load(&[]).unwrap().origins.of("state_dir").to_string(), "STATE_DIRECTORY");
}

#[test]
fn state_in_the_earlier_folder_is_used_with_a_warning() {
    let place = |bench: Bench| {
        let loaded = bench.load(&[]).unwrap();
        (loaded.config.state_dir.to_str().unwrap().to_owned(), loaded.warnings.concat())
    };
    let unit = || Bench::new().env("STATE_DIRECTORY", "/var/lib/reflector").env("RUNTIME_DIRECTORY", "/run/reflector");
    for earlier in ["identity.key", "private/identity.key"] {
        let key: &'static str = format!("/var/lib/packetparamedic/reflector/{earlier}").leak();
        for bench in [Bench::new().root(), unit()] {
            let (folder, warning) = place(bench.with_file(key));
            assert_eq!(folder, "/var/lib/packetparamedic/reflector");
            assert!(warning.contains("move it to /var/lib/reflector"), "{warning}");
        }
        for new in ["/var/lib/reflector/identity.key", "/var/lib/reflector/private/identity.key"] {
            assert_eq!(place(unit().with_file(key).with_file(new)), ("/var/lib/reflector".to_owned(), String::new()));
        }
        // A folder that was chosen is the folder.
        let chosen = [("REFLECTOR_STATE_DIR", "/mine"), ("STATE_DIRECTORY", "/var/lib/other")];
        for (variable, folder) in chosen {
            let bench = Bench::new().root().env(variable, folder).with_file(key);
            assert_eq!(place(bench), (folder.to_owned(), String::new()));
        }
    }
    assert_eq!(place(unit()), ("/var/lib/reflector".to_owned(), String::new()));
}

#[test]
fn root_finds_a_reflector_that_runs_in_the_earlier_runtime_folder() {
    let place = |bench: Bench| {
        let loaded = bench.load(&[]).unwrap();
        let folder = loaded.config.runtime_dir.to_str().unwrap().to_owned();
        assert_eq!(loaded.config.has_root_runtime_dir(), folder == "/run/reflector");
        (folder, loaded.warnings.len())
    };
    let earlier = || Bench::new().root().with_file("/run/packetparamedic/admin.sock");
    assert_eq!(place(earlier()), ("/run/packetparamedic".to_owned(), 1));
    assert_eq!(place(earlier().with_file("/run/reflector/admin.sock")), ("/run/reflector".to_owned(), 0));
    assert_eq!(place(Bench::new().root()), ("/run/reflector".to_owned(), 0));
}

#[test]
fn a_named_state_folder_holds_its_own_socket() {
    let bench = || Bench::new().root().env("XDG_RUNTIME_DIR", "/run/user/7").env("RUNTIME_DIRECTORY", "/run/a");
    let socket = |bench: Bench, arguments: &[&str]| bench.load(arguments).unwrap().config.admin_socket();
    assert_eq!(socket(bench(), &["--state-dir", "/one"]), Path::new("/one/admin.sock"));
    assert_eq!(socket(bench().env("REFLECTOR_STATE_DIR", "/two"), &[]), Path::new("/two/admin.sock"));
    let said = socket(bench(), &["--state-dir", "/one", "--runtime-dir", "/three"]);
    assert_eq!(said, Path::new("/three/admin.sock"));
    let config = bench().load(&["--state-dir", "/one", "--runtime-dir", "/three"]).unwrap().config;
    assert_eq!(config.scratch_dir(), Path::new("/one/scratch"));
}

#[test]
fn the_template_is_valid_and_uncommented_it_is_the_default() {
    let text = template::<Config>();
    assert_eq!(Bench::new().file("etc.toml", &text).load(&[]).unwrap().files.len(), 1);
    let bare = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let bench = Bench::new().file("etc.toml", &bare.collect::<Vec<_>>().join("\n"));
    let loaded = bench.load(&[]).unwrap();
    assert!(
        loaded.origins.iter().all(|(_, origin)| matches!(origin, ValueOrigin::File { .. })),
        "{:?}",
        loaded.origins
    );
    let plain = Bench::new().root().load(&[]).unwrap().config;
    assert_eq!(
        loaded.config,
        Config {
            name: PeerText::new("name-of-this-machine"),
            provided_key: loaded.config.provided_key.clone(),
            ..plain
        }
    );
    assert!(text.lines().all(|line| line.chars().count() <= 102), "{text}");
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let arguments = ["--name", "quo\"te # \\ x", "--mode", "direct_ephemeral", "--listen", "1.2.3.4:5,[::]:6"];
    for with_origin in [false, true] {
        let loaded = Bench::new().root().load(&arguments).unwrap();
        let shown = loaded.show(with_origin);
        let again = Bench::new().root().file("etc.toml", &shown).load(&[]).unwrap();
        assert_eq!(again.config, loaded.config, "{shown}");
        assert_eq!(shown.contains("# --mode"), with_origin);
        assert_eq!(shown.lines().count(), SETTINGS.len());
    }
}
