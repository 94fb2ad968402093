//! A real `reflector` with its own state folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::changes;
use crate::programs::{
    Around, NOBODY, Outcome, Programs, Running, clean_command, give_away, may_change_user, may_filter, may_mount,
};

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A limit of threads that is too high for any command to reach.
const PLENTY_OF_THREADS: u32 = 10_000;

/// A reflector, running or stopped.
#[derive(Debug)]
pub struct Reflector {
    home: TempDir,
    around: Around,
    environment: Vec<(String, String)>,
    listen: Vec<String>,
    running: Option<Running>,
    /// The path of the program to run; `None`: the one that was built.
    program: Option<PathBuf>,
    /// The `PATH` of the reflector; `None`: that of the test.
    path: Option<String>,
    /// The addresses that the reflector printed at its start.
    pub addresses: Vec<String>,
}

/// A pairing code that is open, and the command that waits for a device to use it.
#[derive(Debug)]
pub struct Pairing {
    /// The pairing code as `reflector pair` printed it.
    pub code: String,
    /// The running command `reflector pair`.
    pub command: Running,
}

impl Reflector {
    /// Starts a reflector on a free loopback port. The names in `environment` lack the prefix `REFLECTOR_`.
    pub fn serve(environment: &[(&str, &str)]) -> Self {
        Self::serve_on(&["127.0.0.1:0"], None, environment)
    }

    /// Starts a reflector on `listen`, in the network namespace `netns` if there is one.
    pub fn serve_on(listen: &[&str], netns: Option<&str>, environment: &[(&str, &str)]) -> Self {
        let around = netns.map_or(Around::Nothing, |netns| Around::Netns(netns.to_owned()));
        let mut reflector = Self::new(listen, around, environment);
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// Starts a reflector on a free loopback port, with its state on a small file system. Prints SKIPPED and returns
    /// `None` if the test may not mount file systems.
    pub fn serve_on_a_tiny_disk(environment: &[(&str, &str)]) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let mut reflector = Self::idle(environment);
        reflector.around = Around::TinyDisk(reflector.state());
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Starts a reflector on `listen` as an unprivileged user without capabilities. Prints SKIPPED and returns `None`
    /// without root.
    pub fn serve_as_nobody(listen: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        if !may_change_user() {
            return None;
        }
        let mut reflector = Self::new(listen, Around::Nobody, environment);
        reflector.program = Some(give_away(reflector.home.path(), NOBODY, "reflector"));
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Starts a reflector on loopback as the unprivileged `user`, limited to `allowed` threads. No other test may use
    /// this user. Prints SKIPPED and returns `None` without root.
    pub fn serve_with_few_threads(user: u32, allowed: u32) -> Option<Self> {
        if !may_change_user() {
            return None;
        }
        let mut reflector = Self::new(&["127.0.0.1:0"], Around::FewThreads { user, allowed }, &[]);
        reflector.program = Some(give_away(reflector.home.path(), user, "reflector"));
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Starts a reflector on `listen` for which a filter refuses the system call with the number `call`. Prints SKIPPED
    /// and returns `None` if bwrap is missing or lacks the rights.
    pub fn serve_without(call: i64, listen: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        if !may_filter() {
            return None;
        }
        let mut reflector = Self::new(listen, Around::Without(call), environment);
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Starts a reflector on loopback with at most `allowed` open files.
    pub fn serve_with_few_files(allowed: u32) -> Self {
        let mut reflector = Self::new(&["127.0.0.1:0"], Around::FewFiles(allowed), &[]);
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// Starts a reflector on `listen` whose `PATH` is `path`.
    pub fn serve_with_path(path: &str, listen: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut reflector = Self::new(listen, Around::Nothing, environment);
        reflector.path = Some(path.to_owned());
        reflector.start().unwrap_or_else(|error| panic!("cannot start the reflector: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// Creates a reflector without starting it; it will listen on a free loopback port.
    pub fn idle(environment: &[(&str, &str)]) -> Self {
        Self::new(&["127.0.0.1:0"], Around::Nothing, environment)
    }

    /// Creates a reflector in the network namespace `netns` without starting it.
    pub fn idle_in(netns: &str, environment: &[(&str, &str)]) -> Self {
        Self::new(&["127.0.0.1:0"], Around::Netns(netns.to_owned()), environment)
    }

    /// Adds an environment variable to the reflector; `name` is the full name.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn new(listen: &[&str], around: Around, environment: &[(&str, &str)]) -> Self {
        Self {
            home: TempDir::new().expect("a temporary folder"),
            around,
            environment: environment.iter().map(|(k, v)| (format!("REFLECTOR_{k}"), (*v).to_owned())).collect(),
            listen: listen.iter().map(|at| (*at).to_owned()).collect(),
            running: None,
            program: None,
            path: None,
            addresses: vec![],
        }
    }

    /// Starts the reflector, or restarts it with the same state folder and port.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command_in(&self.around, &["serve"]);
        if !self.addresses.is_empty() {
            self.listen.clone_from(&self.addresses);
        }
        command.env("REFLECTOR_LISTEN", self.listen.join(","));
        let running = Running::start(command, Stdio::from(log))?;
        self.addresses.clear();
        for _ in 0..self.listen.len() {
            let line = running.line(PATIENCE)?;
            let address = line.strip_prefix("listening on ").with_context(|| format!("not an address: {line}"))?;
            self.addresses.push(address.to_owned());
        }
        self.running = Some(running);
        Ok(())
    }

    /// Builds a command of the program with this reflector's state folder, settings and environment.
    pub fn command(&self, args: &[&str]) -> Command {
        match (&self.around, &self.running) {
            (Around::TinyDisk(_), Some(running)) => self.command_in(&Around::Disks(running.pid()), args),
            (Around::FewFiles(_), _) => self.command_in(&Around::Nothing, args),
            // The running program already uses the limit up.
            (Around::FewThreads { user, .. }, _) => {
                self.command_in(&Around::FewThreads { user: *user, allowed: PLENTY_OF_THREADS }, args)
            }
            (around, _) => self.command_in(around, args),
        }
    }

    fn command_in(&self, around: &Around, args: &[&str]) -> Command {
        let program = self.program.clone().unwrap_or_else(|| Programs::built().path("reflector"));
        let mut command = clean_command(&program, self.home.path(), around);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command.args(args).env("REFLECTOR_STATE_DIR", self.state());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs a command of the reflector to completion.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs").into()
    }

    /// Runs a command of the reflector, which must succeed, and returns its stdout.
    pub fn must(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout.trim().to_owned()
    }

    /// Runs a command of the reflector, which must fail with this exit code and three lines on stderr, and returns the
    /// lines.
    pub fn fails(&self, args: &[&str], exit: i32) -> [String; 3] {
        let outcome = self.run(args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (exit, ""), "{args:?}: {outcome:?}");
        outcome.three_lines().map(str::to_owned)
    }

    /// The first address that the reflector listens on.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// The reflector's Endpoint ID.
    pub fn id(&self) -> String {
        self.must(&["show-id"])
    }

    /// Opens a pairing code, without waiting for a pairing.
    pub fn open_code(&self, more: &[&str]) -> Pairing {
        let args = [&["pair", "--json"], more].concat();
        let command = Running::start(self.command(&args), Stdio::inherit()).expect("reflector pair");
        let line = command.line(PATIENCE).expect("a code");
        let event = serde_json::from_str::<serde_json::Value>(&line).expect("JSON");
        let code = event["code"].as_str().unwrap_or_else(|| panic!("no code in {line}")).to_owned();
        Pairing { code, command }
    }

    /// Returns the output of `reflector status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.must(&["status", "--json"])).expect("JSON")
    }

    /// Returns every line of the audit log; the two hash chains are merged in order of time.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let folder = self.audit_folder();
        let mut files = std::fs::read_dir(folder)
            .map(|dir| dir.filter_map(Result::ok).map(|entry| entry.path()).collect::<Vec<_>>())
            .unwrap_or_default();
        files.sort();
        let is_refusals = |file: &PathBuf| file.to_string_lossy().contains("refusals-");
        let (refusals, main) = files.into_iter().partition::<Vec<_>, _>(is_refusals);
        // Among lines with the same time, the refusals come first, because `stopped` is the last line.
        let files = refusals.into_iter().chain(main);
        let text = files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect::<String>();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>();
        lines.sort_by_key(|line: &serde_json::Value| line["ts"].as_str().map(str::to_owned));
        lines
    }

    /// Returns the audit events with this name.
    pub fn audited(&self, event: &str) -> Vec<serde_json::Value> {
        self.audit().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// Waits for the first audit event with this name for which `is_it` holds, and returns it.
    pub fn await_audited(&self, event: &str, is_it: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let look = || self.audited(event).into_iter().find(&is_it);
        changes::until(&self.audit_folder(), PATIENCE, look)
            .unwrap_or_else(|| panic!("no such {event} in the audit log: {:#?}\n{}", self.audit(), self.log()))
    }

    /// Waits until the reflector's log contains `text`.
    pub fn await_log(&self, text: &str) {
        let look = || self.log().contains(text).then_some(());
        changes::until(self.home.path(), PATIENCE, look)
            .unwrap_or_else(|| panic!("nothing of {text:?} in the log:\n{}", self.log()));
    }

    /// Ends the reflector by a signal and keeps its state for the next start, even if the state is on a small file
    /// system.
    pub fn end(&mut self, signal: rustix::process::Signal) {
        // A mount namespace exists only as long as a process in it.
        let keeper = matches!(self.around, Around::TinyDisk(_)).then(|| {
            let mut command = Command::new("nsenter");
            let pid = self.process().pid().to_string();
            command.args(["--mount", "--target", &pid, "sh", "-c", "echo here; exec sleep 600"]);
            let keeper = Running::start(command, Stdio::inherit()).expect("nsenter");
            assert_eq!(keeper.line(PATIENCE).expect("a line"), "here");
            keeper
        });
        self.process().signal(signal);
        self.process().wait(PATIENCE).expect("it ends");
        self.running = None;
        if let Some(keeper) = keeper {
            let (state, copy) = (self.state(), self.home.path().join("copy"));
            let kept = Command::new("cp").arg("-a").arg(keeper.sees(&state)).arg(&copy).status();
            assert!(kept.is_ok_and(|status| status.success()), "a copy of the disk");
            // Removing the mount point unmounts the file system.
            std::fs::remove_dir_all(&state).expect("the mount point");
            std::fs::rename(&copy, &state).expect("the copy in its place");
        }
    }

    /// The reflector's process, which must be running.
    pub fn process(&mut self) -> &mut Running {
        self.running.as_mut().expect("it was started")
    }

    /// The reflector's state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The path by which the test reaches the state folder in the reflector's mount namespace.
    pub fn disk(&self) -> PathBuf {
        match (&self.around, &self.running) {
            (Around::TinyDisk(_), Some(running)) => running.sees(&self.state()),
            _ => self.state(),
        }
    }

    fn audit_folder(&self) -> PathBuf {
        self.disk().join("audit")
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Everything that the reflector has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The temporary folder of this reflector, removed on drop.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}
