//! The two programs built from this source tree, and processes that are killed when the test that started them ends.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use paramedic_report::document::{ErrorDocument, ResultDocument};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The folder that contains the two programs.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
}

/// The folder with the two programs that this process uses.
static CHOSEN: OnceLock<Programs> = OnceLock::new();

impl Programs {
    /// Builds both programs, once per process, so that a test never runs an older build.
    pub fn built() -> &'static Programs {
        CHOSEN.get_or_init(|| Programs::build().expect("both programs build"))
    }

    /// Uses the programs in `folder` from now on, without building. Fails if this process already uses the programs of
    /// a folder.
    pub fn use_folder(folder: PathBuf) -> anyhow::Result<()> {
        CHOSEN.set(Programs { folder }).map_err(|_| anyhow::anyhow!("this process already uses other programs"))
    }

    /// Uses the programs in the folder of the calling program, without building.
    pub fn use_own_folder() -> anyhow::Result<()> {
        let own = std::env::current_exe()?;
        let folder = own.parent().context("this program's path has no folder")?;
        for name in ["reflector", "packetparamedic"] {
            let is_there = folder.join(name).is_file();
            anyhow::ensure!(
                is_there,
                "{} is not in the folder of {}: start that program by its script in script/, which builds both",
                name,
                own.display()
            );
        }
        Self::use_folder(folder.to_owned())
    }

    fn build() -> anyhow::Result<Programs> {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            // The whole workspace: cargo would build the dependencies of a part of it again, with fewer features.
            .args(["build", "--quiet", "--locked", "--workspace"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .context("cannot run cargo")?;
        anyhow::ensure!(status.success(), "cargo build failed, as printed above");
        // The test is in target/debug/deps, the programs are in target/debug.
        let test = std::env::current_exe()?;
        let folder = test.ancestors().nth(2).context("the test is not in a target folder")?.to_owned();
        Ok(Programs { folder })
    }

    /// The path of the program with this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The environment that a program runs in.
#[derive(Clone, Debug, Default)]
pub(crate) enum Around {
    /// The environment of the test itself.
    #[default]
    Nothing,
    /// The network namespace with this name.
    Netns(String),
    /// A file system of [`TINY_DISK`] at the program's state folder, visible only to the program and its children.
    TinyDisk(PathBuf),
    /// This folder is read-only for the program and its children.
    ReadOnly(PathBuf),
    /// The mount namespace of the process with this id.
    Disks(rustix::process::Pid),
    /// An unprivileged user without capabilities.
    Nobody,
    /// A kernel that refuses the system call with this number.
    Without(i64),
    /// A limit of this many open files.
    FewFiles(u32),
    /// An unprivileged user whose processes together may have only so many threads.
    FewThreads {
        /// The user and group of the program, which no other test uses.
        user: u32,
        /// The limit of threads (`RLIMIT_NPROC`).
        allowed: u32,
    },
}

/// The user and group that own nothing.
pub(crate) const NOBODY: u32 = 65534;

/// Whether a program can be run as another user. Prints SKIPPED if not.
pub(crate) fn may_change_user() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("SKIPPED: running as another user needs root");
    }
    may
}

/// Gives the folder `home` and all in it to `user`, puts a copy of the program `name` there, and returns the path of
/// the copy: the user may be unable to read cargo's target folder.
pub(crate) fn give_away(home: &Path, user: u32, name: &str) -> PathBuf {
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    // Another process makes the copy: a child forked by this process meanwhile would inherit the file open for writing,
    // and the kernel refuses to execute such a file (ETXTBSY).
    let copied = Command::new("cp").arg(Programs::built().path(name)).arg(&bin).status();
    assert!(copied.is_ok_and(|status| status.success()), "a copy of the program");
    let given = Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(home).status();
    assert!(given.is_ok_and(|status| status.success()), "root may give away");
    bin.join(name)
}

/// Executes the program with the system call filter in the file `$1`.
const WITH_FILTER: &str =
    r#"filter=$1; shift; exec bwrap --die-with-parent --dev-bind / / --seccomp 9 -- "$@" 9<"$filter""#;

/// Whether a program can be run with a filter of system calls. Prints SKIPPED if not.
pub(crate) fn may_filter() -> bool {
    let mut probe = Command::new("bwrap");
    probe.args(["--dev-bind", "/", "/", "true"]);
    let may = probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !may {
        eprintln!(
            "SKIPPED: a kernel without a system call is emulated with bwrap, which is missing or lacks the rights"
        );
    }
    may
}

/// A filter for the kernel (`struct sock_filter`, linux/filter.h) that refuses one system call with EPERM.
fn filter_without(call: i64) -> Vec<u8> {
    let number = u32::try_from(call).expect("a system call's number");
    // Load the number of the system call, compare it, and refuse or allow the call.
    let program: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
    let bytes = |(code, then, otherwise, k): (u16, u8, u8, u32)| {
        [code.to_ne_bytes().as_slice(), &[then, otherwise], &k.to_ne_bytes()].concat()
    };
    program.into_iter().flat_map(bytes).collect()
}

/// The size of the file system of [`Around::TinyDisk`]: little more than two small databases and a log need.
const TINY_DISK: &str = "2m";

/// Mounts a file system at the folder `$1` with a copy of its content, and executes the program.
const ON_TINY_DISK: &str = r#"
    set -e
    mkdir -p "$1" "$1.disk"
    chmod 700 "$1"
    mount -t tmpfs -o mode=700,size="$2" tmpfs "$1.disk"
    cp -a "$1/." "$1.disk/"
    mount --move "$1.disk" "$1"
    shift 2
    exec "$@""#;

/// Makes the folder `$1` read-only, and executes the program.
const READ_ONLY: &str = r#"set -e; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@""#;

/// Whether a program can be given its own file system. Prints SKIPPED if not.
pub(crate) fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let may = probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !may {
        eprintln!("SKIPPED: a separate file system needs root and mount namespaces");
    }
    may
}

/// A command with a clean environment, so that the machine's variables do not influence a test.
pub(crate) fn clean_command(program: &Path, home: &Path, around: &Around) -> Command {
    let mut command = match around {
        Around::Nothing => Command::new(program),
        Around::Netns(netns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns]).arg(program);
            command
        }
        Around::TinyDisk(state) => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", ON_TINY_DISK, "sh"]).arg(state).arg(TINY_DISK).arg(program);
            command
        }
        Around::ReadOnly(folder) => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", READ_ONLY, "sh"]).arg(folder).arg(program);
            command
        }
        Around::Disks(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["--mount", "--target", &pid.to_string()]).arg(program);
            command
        }
        Around::Nobody => {
            let user = NOBODY.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all"]);
            command.args(["--bounding-set=-all", "--no-new-privs"]).arg(program);
            command
        }
        Around::FewThreads { user, allowed } => {
            let user = user.to_string();
            let mut command = Command::new("prlimit");
            command.args([&format!("--nproc={allowed}"), "--", "setpriv", "--reuid", &user, "--regid", &user]);
            command.args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]).arg(program);
            command
        }
        Around::FewFiles(allowed) => {
            let mut command = Command::new("sh");
            command.args(["-c", r#"ulimit -n "$1" && shift && exec "$@""#, "sh", &allowed.to_string()]).arg(program);
            command
        }
        Around::Without(call) => {
            let filter = home.join("filter");
            std::fs::write(&filter, filter_without(*call)).expect("a file for the filter");
            let mut command = Command::new("sh");
            command.args(["-c", WITH_FILTER, "sh"]).arg(filter).arg(program);
            command
        }
    };
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("RUST_BACKTRACE", "1");
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; -1 if a signal ended the process.
    pub code: i32,
    /// The text on stdout.
    pub stdout: String,
    /// The text on stderr.
    pub stderr: String,
}

impl Outcome {
    /// Parses stdout as one JSON document.
    pub fn json(&self) -> Value {
        self.read()
    }

    /// Parses stdout as the result of a speed test.
    pub fn result(&self) -> ResultDocument {
        self.read()
    }

    /// Parses stdout as an error document.
    pub fn error(&self) -> ErrorDocument {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("one document: {error}\n{self:?}"))
    }

    /// The three lines of a failure (what, because, try); stderr must hold nothing else.
    pub fn three_lines(&self) -> [&str; 3] {
        let lines = self.stderr.lines().collect::<Vec<_>>();
        let [what, because, advice] = lines[..] else { panic!("not three lines: {self:?}") };
        let because = because.strip_prefix("because: ").unwrap_or_else(|| panic!("no because: {self:?}"));
        let advice = advice.strip_prefix("try: ").unwrap_or_else(|| panic!("no try: {self:?}"));
        assert!([what, because, advice].iter().all(|part| !part.trim().is_empty()), "{self:?}");
        [what, because, advice]
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

/// A running process whose stdout is read line by line. It is killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The lines of stdout, in a mutex, so that threads can share the process.
    lines: Mutex<Receiver<String>>,
}

impl Running {
    /// Starts `command`. Its stdout is read line by line, its stderr goes to `stderr`.
    pub fn start(mut command: Command, stderr: Stdio) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let stdout = child.stdout.take().context("the program has no stdout")?;
        Ok(Self { child, lines: Mutex::new(read_lines(stdout)) })
    }

    /// Returns the next line of stdout; an error if none arrives `within` this time.
    pub fn line(&self, within: Duration) -> anyhow::Result<String> {
        match self.next_line(within) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("the program printed no line within {within:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the program ended without a further line"),
        }
    }

    fn next_line(&self, within: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(within)
    }

    /// Returns all further lines, until stdout closes; an error if that takes longer than `within`.
    pub fn rest(&self, within: Duration) -> anyhow::Result<Vec<String>> {
        let until = Instant::now() + within;
        let mut lines = Vec::new();
        loop {
            match self.next_line(until.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(lines),
                Err(RecvTimeoutError::Timeout) => bail!("stdout is still open after {within:?}; so far {lines:?}"),
            }
        }
    }

    /// The path by which the test reaches a folder in the mount namespace of the running process.
    pub fn sees(&self, folder: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(folder.strip_prefix("/").unwrap_or(folder))
    }

    /// The running child processes of the process, with their names.
    pub fn children(&self) -> Vec<(rustix::process::Pid, String)> {
        let own = self.child.id().to_string();
        let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let child = |pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // Field 2 is the name in brackets, 3 the state, 4 the parent.
            let (head, rest) = stat.rsplit_once(')')?;
            let is_own = rest.split_whitespace().nth(1)? == own;
            let name = head.split_once('(')?.1.to_owned();
            is_own.then_some((rustix::process::Pid::from_raw(pid)?, name))
        };
        pids.filter_map(child).collect()
    }

    /// The process id.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the process is ours and runs");
    }

    /// Kills the process with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the process to end, and kills it if that takes longer than `within`.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let (sender, ended) = channel::<()>();
        let pid = self.pid();
        // With NOWAIT, waitid leaves the child to be reaped by `wait` below.
        std::thread::spawn(move || {
            let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            let _ = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
            let _ = sender.send(());
        });
        if ended.recv_timeout(within).is_err() {
            self.kill();
            bail!("the program still runs after {within:?}");
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `process` has ended. Returns `false` if it still runs after `within`.
pub fn is_gone(process: rustix::process::Pid, within: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};
    // A process that cannot be opened has ended already.
    let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { return true };
    let limit = Timespec::try_from(within).expect("a time-out of a test");
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready > 0)
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.by_ref().take(4 << 20).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}
