//! The two programs as built from this tree, and processes that never outlive the test that started them.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Where the two programs are.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds both, once per process, so that a test never runs an older one.
    pub fn built() -> &'static Programs {
        static BUILT: OnceLock<Programs> = OnceLock::new();
        BUILT.get_or_init(|| Programs::build().expect("both programs build"))
    }

    fn build() -> anyhow::Result<Programs> {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--locked", "-p", "reflector", "-p", "packetparamedic"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .context("cargo")?;
        anyhow::ensure!(status.success(), "cargo build failed");
        // This test stands in target/debug/deps; the programs in target/debug.
        let test = std::env::current_exe()?;
        let folder = test.ancestors().nth(2).context("the test stands in no target folder")?.to_owned();
        Ok(Programs { folder })
    }

    /// The path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What stands around a program.
#[derive(Clone, Debug, Default)]
pub(crate) enum Around {
    /// Nothing.
    #[default]
    Nothing,
    /// A network namespace.
    Netns(String),
    /// A disk of [`TINY_DISK`] at its state folder, which only it and its children see.
    TinyDisk(PathBuf),
    /// The disks of a process that runs.
    Disks(rustix::process::Pid),
}

/// How large such a disk is: little more than two small databases and a log need.
const TINY_DISK: &str = "2m";

/// Mounts a disk at the folder `$1` with what stands there, and becomes the program.
const ON_TINY_DISK: &str = r#"
    set -e
    mkdir -p "$1" "$1.disk"
    mount -t tmpfs -o mode=700,size="$2" tmpfs "$1.disk"
    cp -a "$1/." "$1.disk/"
    mount --move "$1.disk" "$1"
    shift 2
    exec "$@""#;

/// Whether a program may be given a disk of its own; said loudly where it may not, never silently.
pub(crate) fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let may = probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !may {
        eprintln!("SKIPPED: a disk of one's own needs root and mount namespaces");
    }
    may
}

/// A command in a clean environment: what the machine has set must not change a test.
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
        Around::Disks(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["--mount", "--target", &pid.to_string()]).arg(program);
            command
        }
    };
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("RUST_BACKTRACE", "1");
    command
}

/// A process whose output is read as it comes, and that ends with this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts `command`; its stdout is read line by line, its stderr goes to `stderr`.
    pub fn start(mut command: Command, stderr: Stdio) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self { child, lines: read_lines(stdout) })
    }

    /// The next line of stdout.
    pub fn line(&self, within: Duration) -> anyhow::Result<String> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("no line within {within:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the program ended without a further line"),
        }
    }

    /// All further lines, until stdout closes.
    pub fn rest(&self, within: Duration) -> anyhow::Result<Vec<String>> {
        let until = Instant::now() + within;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(lines),
                Err(RecvTimeoutError::Timeout) => bail!("stdout still open after {within:?}; so far {lines:?}"),
            }
        }
    }

    /// A folder as the process sees it, which may have mounted something there.
    pub fn sees(&self, folder: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(folder.strip_prefix("/").unwrap_or(folder))
    }

    /// Its process id.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the process is ours and runs");
    }

    /// Ends it with SIGKILL and waits.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end; killed when that takes longer than `within`.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let (sender, ended) = channel::<()>();
        let pid = self.pid();
        // waitid with NOWAIT leaves the status for us to collect.
        std::thread::spawn(move || {
            let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            let _ = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
            let _ = sender.send(());
        });
        if ended.recv_timeout(within).is_err() {
            self.kill();
            bail!("still running after {within:?}");
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
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
