//! A real `packetparamedic` with its own state folder.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use paramedic_report::document::{ErrorDocument, ErrorSchema, Event, ResultDocument};
use tempfile::TempDir;

use crate::programs::{
    Around, NOBODY, Outcome, Programs, Running, clean_command, give_away, may_change_user, may_mount,
};
use crate::reflector::Reflector;

/// An appliance, at first not paired with any reflector.
#[derive(Debug)]
pub struct Appliance {
    home: TempDir,
    around: Around,
    /// The path of the program to run; `None`: the one that was built.
    program: Option<PathBuf>,
    /// The URL of the appliance's database; `None`: a file in the state folder.
    database: Option<String>,
}

/// Whether a result warns that a processor was fully used at one of the ends. In that case the test measured the
/// machine, not the link.
pub fn says_full(result: &ResultDocument) -> bool {
    result.warnings.iter().any(|warning| warning.code.ends_with("_cpu"))
}

/// Parses a line that `speed-test --json-stream` prints.
pub fn event(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("an event: {error}\n{line}"))
}

impl Default for Appliance {
    fn default() -> Self {
        Self::new()
    }
}

impl Appliance {
    /// Creates an appliance on this host.
    pub fn new() -> Self {
        Self {
            home: TempDir::new().expect("a temporary folder"),
            around: Around::Nothing,
            program: None,
            database: None,
        }
    }

    /// Creates an appliance in the network namespace `netns`.
    pub fn in_netns(netns: &str) -> Self {
        Self { around: Around::Netns(netns.to_owned()), ..Self::new() }
    }

    /// Puts the database of the appliance on a PostgreSQL server.
    pub fn on_database(self, url: String) -> Self {
        Self { database: Some(url), ..self }
    }

    /// Puts the state of the appliance on a small file system. Each command gets its own file system with a copy of the
    /// state folder; what the command writes is lost when it ends. Prints SKIPPED and returns `None` if the test may
    /// not mount file systems.
    pub fn on_a_tiny_disk(self) -> Option<Self> {
        may_mount().then(|| Self { around: Around::TinyDisk(self.state()), ..self })
    }

    /// Makes the state folder of the appliance read-only, even for root. Prints SKIPPED and returns `None` if the test
    /// may not mount file systems.
    pub fn with_read_only_state(self) -> Option<Self> {
        may_mount().then(|| Self { around: Around::ReadOnly(self.state()), ..self })
    }

    /// Runs the appliance as an unprivileged user who owns the state folder but has no permission to write to it.
    /// Prints SKIPPED and returns `None` without root.
    pub fn run_by_nobody_without_write_access(self) -> Option<Self> {
        let program = may_change_user().then(|| give_away(self.home.path(), NOBODY, "packetparamedic"))?;
        std::fs::set_permissions(self.state(), Permissions::from_mode(0o500)).expect("a mode");
        Some(Self { around: Around::Nobody, program: Some(program), ..self })
    }

    /// Runs the appliance as the unprivileged `user`, limited to `allowed` threads. No other test may use this user.
    /// Prints SKIPPED and returns `None` without root.
    pub fn with_few_threads(self, user: u32, allowed: u32) -> Option<Self> {
        let program = may_change_user().then(|| give_away(self.home.path(), user, "packetparamedic"))?;
        Some(Self { around: Around::FewThreads { user, allowed }, program: Some(program), ..self })
    }

    /// Pairs the appliance by code with `reflector`, which it reaches at `address`.
    pub fn pair(self, reflector: &Reflector, address: &str) -> Self {
        let mut pairing = reflector.open_code(&[]);
        let outcome = self.run(&["pair-reflector", "--peer", address, "--code", &pairing.code]);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        let status = pairing.command.wait(Duration::from_secs(30)).expect("reflector pair ends");
        assert!(status.success());
        self
    }

    /// Builds a command of the program with this appliance's state folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let program = self.program.clone().unwrap_or_else(|| Programs::built().path("packetparamedic"));
        let mut command = clean_command(&program, self.home.path(), &self.around);
        command.args(args).env("PACKETPARAMEDIC_STATE_DIR", self.state());
        // A service would probe the gateway of the machine that runs the tests.
        command.env("PACKETPARAMEDIC_DEFAULT_MONITORS", "false");
        command.envs(self.database.as_ref().map(|url| ("PACKETPARAMEDIC_DATABASE", url)));
        command
    }

    /// Builds a command like [`Appliance::command`], with a limit of writable memory in bytes (`RLIMIT_DATA`).
    pub fn command_within(&self, memory: u64, args: &[&str]) -> Command {
        let plain = self.command(args);
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={memory}")).arg("--").arg(plain.get_program()).args(plain.get_args()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs a command of the appliance to completion.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs").into()
    }

    /// Runs a command twice, which must fail with this exit code and error code. With `--json`, the output must be one
    /// JSON document on stdout and nothing else; without, it must be three lines on stderr and nothing else. Returns
    /// the document.
    pub fn fails(&self, args: &[&str], exit: i32, code: &str) -> ErrorDocument {
        let told = self.run(&[args, &["--json"]].concat());
        assert_eq!((told.code, told.stderr.as_str()), (exit, ""), "{args:?}: {told:?}");
        let document = told.error();
        assert_eq!((document.schema, document.error.code.as_str()), (ErrorSchema::V1, code), "{args:?}: {told:?}");
        for part in [&document.error.what, &document.error.because, &document.error.try_] {
            assert!(!part.trim().is_empty(), "{document:?}");
        }
        let said = self.run(args);
        assert_eq!((said.code, said.stdout.as_str()), (exit, ""), "{args:?}: {said:?}");
        said.three_lines();
        document
    }

    /// Runs a speed test that prints its result as one JSON document.
    pub fn speed_test(&self, args: &[&str]) -> Outcome {
        self.run(&[&["speed-test", "--json"], args].concat())
    }

    /// Starts a command of the appliance; its stdout is read line by line.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), Stdio::inherit()).expect("the program runs")
    }

    /// The appliance's Endpoint ID.
    pub fn id(&self) -> String {
        self.run(&["show-id"]).stdout.trim().to_owned()
    }

    /// The appliance's state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }
}
