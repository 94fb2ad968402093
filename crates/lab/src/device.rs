//! An appliance that runs as a service.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::appliance::Appliance;
use crate::changes;
use crate::programs::{Outcome, Running};

const PATIENCE: Duration = Duration::from_secs(60);

/// An appliance that runs as a service, and the folder for the socket of the service. This folder is not inside the
/// state folder, because the state folder may be on a file system that only the service sees.
#[derive(Debug)]
pub struct Device {
    /// The appliance that runs as a service.
    pub appliance: Appliance,
    /// The runtime folder, which contains the socket of the service.
    pub runtime: tempfile::TempDir,
}

impl Device {
    /// Creates a device; the service is not running yet.
    pub fn new(appliance: Appliance) -> Self {
        Self { appliance, runtime: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Builds a command of the appliance that uses the socket of this service.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.appliance.command(args);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command of the appliance to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).output().expect("the program runs").into()
    }

    /// Runs a command of the appliance that must succeed, and returns its stdout.
    pub fn must(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout
    }

    /// Runs a command with `--json`, which must succeed, and returns the JSON document that it prints.
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

    /// Starts the service by this command, and waits until it is ready.
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

    /// Everything that the service has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Runs a command now and after each line of the service's log, until `wanted` accepts its JSON document. Returns
    /// the document; panics after 60 s.
    pub fn await_json(&self, args: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || Some(self.json(args)).filter(&wanted);
        let found = changes::until(self.runtime.path(), PATIENCE, look);
        found.unwrap_or_else(|| panic!("{args:?}: {:#}\n{}", self.json(args), self.log()))
    }

    /// Waits until the latest run of a schedule has ended, and returns it.
    pub fn await_run(&self, name: &str) -> Value {
        // The row of the run is stored a moment after the run was requested.
        let is_over = |runs: &Value| runs[0]["outcome"].as_str().is_some_and(|outcome| outcome != "running");
        let runs = self.await_json(&["schedule", "runs", name], is_over);
        runs[0].clone()
    }

    /// The path of the service's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.path().join("service.sock")
    }

    /// The path of the database.
    pub fn database(&self) -> PathBuf {
        self.appliance.state().join("packetparamedic.db")
    }
}
