//! A real `reflector`, with a state folder of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::appliance::Outcome;
use crate::changes;
use crate::programs::{Around, NOBODY, Programs, Running, clean_command, may_change_user, may_filter, may_mount};

/// How long a program may take to say something on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reflector that serves, or served.
#[derive(Debug)]
pub struct Reflector {
    home: TempDir,
    around: Around,
    environment: Vec<(String, String)>,
    listen: Vec<String>,
    running: Option<Running>,
    /// Another copy of the program than the one that was built.
    program: Option<PathBuf>,
    /// Another `PATH` than that of the test.
    path: Option<String>,
    /// Where it listens, as it said.
    pub addresses: Vec<String>,
}

/// A code that waits for somebody to use it.
#[derive(Debug)]
pub struct Pairing {
    /// The code.
    pub code: String,
    /// The `reflector pair` that waits.
    pub command: Running,
}

impl Reflector {
    /// Serves on a free port of loopback; `environment` without the `REFLECTOR_` prefix.
    pub fn serve(environment: &[(&str, &str)]) -> Self {
        Self::serve_on(&["127.0.0.1:0"], None, environment)
    }

    /// Serves on `listen`, in the namespace `netns` where one is given.
    pub fn serve_on(listen: &[&str], netns: Option<&str>, environment: &[(&str, &str)]) -> Self {
        let around = netns.map_or(Around::Nothing, |netns| Around::Netns(netns.to_owned()));
        let mut reflector = Self::new(listen, around, environment);
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// Serves on a free port of loopback with its state on a disk that is soon full. `None`, said loudly, where there
    /// are no rights for it.
    pub fn serve_on_a_tiny_disk(environment: &[(&str, &str)]) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let mut reflector = Self::idle(environment);
        reflector.around = Around::TinyDisk(reflector.state());
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Serves on `listen` as an unprivileged user without capabilities. `None`, said loudly, where there are no rights
    /// for it.
    pub fn serve_as_nobody(listen: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        if !may_change_user() {
            return None;
        }
        let mut reflector = Self::new(listen, Around::Nobody, environment);
        let bin = reflector.home.path().join("bin");
        std::fs::create_dir(&bin).expect("a folder");
        // Where the tree stands others may not look.
        // By another process: one of ours that is forked while we write would hold the file open, and the kernel starts
        // no program that somebody may still write.
        let copied = Command::new("cp").arg(Programs::built().path("reflector")).arg(&bin).status();
        assert!(copied.is_ok_and(|status| status.success()), "a copy of the program");
        for path in [reflector.home.path(), &bin] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give away");
        }
        reflector.program = Some(bin.join("reflector"));
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Serves on `listen` where the kernel refuses the system call with this number. `None`, said loudly, where that
    /// can't be played.
    pub fn serve_without(call: i64, listen: &[&str], environment: &[(&str, &str)]) -> Option<Self> {
        if !may_filter() {
            return None;
        }
        let mut reflector = Self::new(listen, Around::Without(call), environment);
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        Some(reflector)
    }

    /// Serves on loopback where this many open files are allowed.
    pub fn serve_with_few_files(allowed: u32) -> Self {
        let mut reflector = Self::new(&["127.0.0.1:0"], Around::FewFiles(allowed), &[]);
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// Serves on `listen` where the programs of this host are those of `path`.
    pub fn serve_with_path(path: &str, listen: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut reflector = Self::new(listen, Around::Nothing, environment);
        reflector.path = Some(path.to_owned());
        reflector.start().unwrap_or_else(|error| panic!("the reflector serves: {error:#}\n{}", reflector.log()));
        reflector
    }

    /// One that does not serve yet; it will on a free port of loopback.
    pub fn idle(environment: &[(&str, &str)]) -> Self {
        Self::new(&["127.0.0.1:0"], Around::Nothing, environment)
    }

    /// The same with a variable in the environment of its programs, by its whole name.
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

    /// Starts it, or starts it again: same state folder, same port.
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
            let address = line.strip_prefix("listening on ").with_context(|| format!("not a greeting: {line}"))?;
            self.addresses.push(address.to_owned());
        }
        self.running = Some(running);
        Ok(())
    }

    /// A command of the program with this reflector's state folder and settings, where the reflector runs.
    pub fn command(&self, args: &[&str]) -> Command {
        match (&self.around, &self.running) {
            (Around::TinyDisk(_), Some(running)) => self.command_in(&Around::Disks(running.pid()), args),
            (Around::FewFiles(_), _) => self.command_in(&Around::Nothing, args),
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

    /// Runs such a command to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs").into()
    }

    /// Runs such a command, which must succeed, and gives its stdout.
    pub fn must(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", self.log());
        outcome.stdout.trim().to_owned()
    }

    /// Runs such a command, which must fail with this exit code and three lines; gives them.
    pub fn fails(&self, args: &[&str], exit: i32) -> [String; 3] {
        let outcome = self.run(args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (exit, ""), "{args:?}: {outcome:?}");
        outcome.three_lines().map(str::to_owned)
    }

    /// The address that it listens on first.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// Its Endpoint ID.
    pub fn id(&self) -> String {
        self.must(&["show-id"])
    }

    /// Opens a pairing code and waits for nothing.
    pub fn open_code(&self, more: &[&str]) -> Pairing {
        let args = [&["pair", "--json"], more].concat();
        let command = Running::start(self.command(&args), Stdio::inherit()).expect("reflector pair");
        let line = command.line(PATIENCE).expect("a code");
        let event = serde_json::from_str::<serde_json::Value>(&line).expect("JSON");
        let code = event["code"].as_str().unwrap_or_else(|| panic!("no code in {line}")).to_owned();
        Pairing { code, command }
    }

    /// Its `status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.must(&["status", "--json"])).expect("JSON")
    }

    /// Every line of its audit log, both chains in the order of time.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let folder = self.audit_folder();
        let mut files = std::fs::read_dir(folder)
            .map(|dir| dir.filter_map(Result::ok).map(|entry| entry.path()).collect::<Vec<_>>())
            .unwrap_or_default();
        files.sort();
        let is_refusals = |file: &PathBuf| file.to_string_lossy().contains("refusals-");
        let (refusals, main) = files.into_iter().partition::<Vec<_>, _>(is_refusals);
        // Of one moment the refusals first: they lead to what is decided, and `stopped` is the last line.
        let files = refusals.into_iter().chain(main);
        let text = files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect::<String>();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>();
        lines.sort_by_key(|line: &serde_json::Value| line["ts"].as_str().map(str::to_owned));
        lines
    }

    /// The events of its audit log with this name.
    pub fn audited(&self, event: &str) -> Vec<serde_json::Value> {
        self.audit().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// The first event of its audit log with this name that `is_it`; waits for it.
    pub fn await_audited(&self, event: &str, is_it: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let look = || self.audited(event).into_iter().find(&is_it);
        changes::until(&self.audit_folder(), PATIENCE, look)
            .unwrap_or_else(|| panic!("no such {event} in the audit log: {:#?}\n{}", self.audit(), self.log()))
    }

    /// Waits until its log says `text`.
    pub fn await_log(&self, text: &str) {
        let look = || self.log().contains(text).then_some(());
        changes::until(self.home.path(), PATIENCE, look)
            .unwrap_or_else(|| panic!("nothing of {text:?} in the log:\n{}", self.log()));
    }

    /// Ends it by a signal and keeps what stands on its disk, also where it has one of its own: the next start finds it.
    pub fn end(&mut self, signal: rustix::process::Signal) {
        // A mount lives as long as a process that sees it.
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
            // With the folder that it is mounted on, a disk goes.
            std::fs::remove_dir_all(&state).expect("what stood there before");
            std::fs::rename(&copy, &state).expect("the copy in its place");
        }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        self.running.as_mut().expect("it was started")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Its state folder as it sees it, where it has a disk of its own.
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

    /// What it wrote to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The folder that goes with it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}
