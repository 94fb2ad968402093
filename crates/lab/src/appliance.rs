//! A real `packetparamedic`, with a state folder of its own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use paramedic_report::document::{ErrorDocument, ErrorSchema, Event, ResultDocument};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{Around, Programs, Running, clean_command, may_mount};
use crate::reflector::Reflector;

/// An appliance that nobody knows yet.
#[derive(Debug)]
pub struct Appliance {
    home: TempDir,
    around: Around,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl Outcome {
    /// stdout as one JSON document.
    pub fn json(&self) -> Value {
        self.read()
    }

    /// stdout as the result of a speed test.
    pub fn result(&self) -> ResultDocument {
        self.read()
    }

    /// stdout as an error.
    pub fn error(&self) -> ErrorDocument {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("one document: {error}\n{self:?}"))
    }

    /// What failed, because of what, what to try: stderr is those three lines and nothing else.
    pub fn three_lines(&self) -> [&str; 3] {
        let lines = self.stderr.lines().collect::<Vec<_>>();
        let [what, because, advice] = lines[..] else { panic!("not three lines: {self:?}") };
        let because = because.strip_prefix("because: ").unwrap_or_else(|| panic!("no because: {self:?}"));
        let advice = advice.strip_prefix("try: ").unwrap_or_else(|| panic!("no try: {self:?}"));
        assert!([what, because, advice].iter().all(|part| !part.trim().is_empty()), "{self:?}");
        [what, because, advice]
    }
}

/// Whether a result says that an end's processor was full: then the machine was measured, and not the link.
pub fn says_full(result: &ResultDocument) -> bool {
    result.warnings.iter().any(|warning| warning.code.ends_with("_cpu"))
}

/// The event on a line of `--json-stream`.
pub fn event(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("an event: {error}\n{line}"))
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Default for Appliance {
    fn default() -> Self {
        Self::new()
    }
}

impl Appliance {
    /// One on this host.
    pub fn new() -> Self {
        Self { home: TempDir::new().expect("a temporary folder"), around: Around::Nothing }
    }

    /// One in the namespace `netns`.
    pub fn in_netns(netns: &str) -> Self {
        Self { around: Around::Netns(netns.to_owned()), ..Self::new() }
    }

    /// The same, with its state on a disk that is soon full. Each command gets a disk of its own with what stood in
    /// the state folder before; what it writes there is gone with it. `None`, said loudly, where there are no rights.
    pub fn on_a_tiny_disk(self) -> Option<Self> {
        may_mount().then(|| Self { around: Around::TinyDisk(self.state()), ..self })
    }

    /// One that is paired with `reflector` by code, which it reaches at `address`.
    pub fn pair(self, reflector: &Reflector, address: &str) -> Self {
        let mut pairing = reflector.open_code(&[]);
        let outcome = self.run(&["pair-reflector", "--peer", address, "--code", &pairing.code]);
        assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
        let status = pairing.command.wait(Duration::from_secs(30)).expect("reflector pair ends");
        assert!(status.success());
        self
    }

    /// A command of the program with this appliance's state folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let program = Programs::built().path("packetparamedic");
        let mut command = clean_command(&program, self.home.path(), &self.around);
        command.args(args).env("PACKETPARAMEDIC_STATE_DIR", self.state());
        command
    }

    /// The same, with at most so many bytes of memory to write to (`RLIMIT_DATA`).
    pub fn command_within(&self, memory: u64, args: &[&str]) -> Command {
        let plain = self.command(args);
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={memory}")).arg("--").arg(plain.get_program()).args(plain.get_args()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs such a command to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs").into()
    }

    /// Runs a command that must fail with this exit code and error code, once for a machine and once for a person: one
    /// JSON document on stdout and nothing beside, then three lines on stderr and nothing else. Gives the document.
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

    /// A speed test as one JSON document.
    pub fn speed_test(&self, args: &[&str]) -> Outcome {
        self.run(&[&["speed-test", "--json"], args].concat())
    }

    /// Starts a command whose stdout is read as it comes.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), Stdio::inherit()).expect("the program runs")
    }

    /// Its Endpoint ID.
    pub fn id(&self) -> String {
        self.run(&["show-id"]).stdout.trim().to_owned()
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }
}
