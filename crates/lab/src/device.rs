//! An appliance with its service.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::appliance::Appliance;
use crate::changes;
use crate::programs::{Outcome, Running};

const PATIENCE: Duration = Duration::from_secs(60);

/// An appliance with the folder of its service's socket, outside of the state folder: that may be a file system of its
/// own, which only the service sees.
#[derive(Debug)]
pub struct Device {
    /// The appliance.
    pub appliance: Appliance,
    /// The runtime folder.
    pub runtime: tempfile::TempDir,
}

impl Device {
    /// A device without a running service.
    pub fn new(appliance: Appliance) -> Self {
        Self { appliance, runtime: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A command that finds the service.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.appliance.command(args);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).output().expect("the program runs").into()
    }

    /// Runs a command that must succeed, and returns its stdout.
    pub fn must(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout
    }

    /// The document that a command prints with `--json`.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.must(&[args, &["--json"]].concat())).expect("one document")
    }

    /// Adds a schedule that is not due during the test.
    pub fn schedule(&self, name: &str, options: &[&str]) {
        let when = ["schedule", "add", "--name", name, "--every", "366d", "--yes", "--busy-share", "off"];
        self.must(&[&when, options].concat());
    }

    /// Starts the service and waits until it is ready.
    pub fn serve(&self) -> Running {
        self.serve_with(self.command(&["serve"]))
    }

    /// The same with a command of the test.
    pub fn serve_with(&self, command: Command) -> Running {
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("a file");
        let service = Running::start(command, log.into()).expect("the program runs");
        let line = service.line(PATIENCE).unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
        assert!(line.starts_with("serving on "), "{line}");
        service
    }

    fn log_file(&self) -> PathBuf {
        self.runtime.path().join("log")
    }

    /// The log of the service.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Repeats a question until the answer is as wanted: now, and after each line of the service's log.
    pub fn await_json(&self, args: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || Some(self.json(args)).filter(&wanted);
        let found = changes::until(self.runtime.path(), PATIENCE, look);
        found.unwrap_or_else(|| panic!("{args:?}: {:#}\n{}", self.json(args), self.log()))
    }

    /// The latest run of a schedule, once it has ended.
    pub fn await_run(&self, name: &str) -> Value {
        // Its row is stored a moment after it was requested.
        let is_over = |runs: &Value| runs[0]["outcome"].as_str().is_some_and(|outcome| outcome != "running");
        let runs = self.await_json(&["schedule", "runs", name], is_over);
        runs[0].clone()
    }

    /// The socket of the service.
    pub fn socket(&self) -> PathBuf {
        self.runtime.path().join("service.sock")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.appliance.state().join("packetparamedic.db")
    }
}
