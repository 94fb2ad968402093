//! A real `packetparamedic`, with a state folder of its own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{Programs, Running, clean_command};
use crate::reflector::Reflector;

/// An appliance that nobody knows yet.
#[derive(Debug)]
pub struct Appliance {
    home: TempDir,
    netns: Option<String>,
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
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("one document: {error}\n{self:?}"))
    }
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
        Self { home: TempDir::new().expect("a temporary folder"), netns: None }
    }

    /// One in the namespace `netns`.
    pub fn in_netns(netns: &str) -> Self {
        Self { netns: Some(netns.to_owned()), ..Self::new() }
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
        let mut command = clean_command(&program, self.home.path(), self.netns.as_deref());
        command.args(args).env("PACKETPARAMEDIC_STATE_DIR", self.state());
        command
    }

    /// Runs such a command to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs").into()
    }

    /// A speed test as one JSON document.
    pub fn speed_test(&self, args: &[&str]) -> Outcome {
        self.run(&[&["speed-test", "--json"], args].concat())
    }

    /// Starts a command whose stdout is read as it comes.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), Stdio::inherit()).expect("the program runs")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }
}
