//! The installed iperf3: its path, its version and the options that it supports.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use paramedic_engines::engine::Unavailable;
use paramedic_engines::sys::child;
use paramedic_engines::thread_limit::{self, ThreadLimitReached};

use super::login::LoginPadding;
use super::output::{Version, version_of};

/// The maximum number of bytes that are read from the output of `--version` and `--help`.
const MAX_OUTPUT_BYTES: u64 = 256 << 10;
/// The timeout of `--version` and `--help`. With these options iperf3 reads no file and opens no connection.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// An iperf3 program that is installed on this host.
#[derive(Clone, Debug)]
pub struct Program {
    /// The path of the program, with symbolic links resolved.
    pub(super) path: PathBuf,
    /// The version that `--version` prints.
    pub version: Version,
    help: String,
}

/// How to install iperf3.
const INSTALL: &str = "install iperf3 3.9 or newer: `apt install iperf3`, `dnf install iperf3`, `apk add iperf3`";

impl Program {
    /// Finds the first `iperf3` in `PATH` and checks that it is supported.
    pub fn find() -> Result<Self, Unavailable> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders).map(|folder| folder.join("iperf3")).find(|path| is_program(path));
        let Some(path) = found else {
            return Err(Unavailable { because: "there is no iperf3 on this host".into(), hint: INSTALL.into() });
        };
        Self::at(&path)
    }

    fn at(path: &Path) -> Result<Self, Unavailable> {
        let lacking = |error: io::Error| Unavailable {
            because: format!("{} does not run: {error}", path.display()),
            hint: ThreadLimitReached::of(&error).map_or_else(|| INSTALL.into(), ThreadLimitReached::hint),
        };
        let path = path.canonicalize().map_err(lacking)?;
        let printed = query(&path, "--version").map_err(lacking)?;
        let Some(version) = version_of(&printed).filter(|version| *version >= OLDEST) else {
            let first = printed.lines().next().unwrap_or_default();
            let because = format!("{} is not a supported iperf3: --version prints {first:?}", path.display());
            return Err(Unavailable { because, hint: INSTALL.into() });
        };
        let help = query(&path, "--help").map_err(lacking)?;
        let program = Self { path, version, help };
        if !program.knows("--rsa-public-key-path") {
            let because = format!("{} was built without logins (OpenSSL)", program.path.display());
            return Err(Unavailable { because, hint: INSTALL.into() });
        }
        Ok(program)
    }

    /// Whether the program's `--help` lists `option`.
    pub fn knows(&self, option: &str) -> bool {
        self.help.split(|c: char| c.is_whitespace() || c == ',' || c == '[').any(|word| word == option)
    }

    /// The share of a core, 0 to 1, that each busy thread of the program used. Before 3.16 one thread serves all
    /// streams. Since 3.16 each stream has a thread, and the value is their average.
    pub(super) fn share_of_a_thread(&self, cpu_s: f64, lived_s: f64, streams: u16) -> f64 {
        let threads = if self.version < THREADED { 1 } else { streams.max(1) };
        (cpu_s / lived_s / f64::from(threads)).min(1.0)
    }

    /// The login paddings that a client of this version supports, with the default padding first. Since 3.17 the
    /// default is OAEP. In 3.19 clients lost the option for PKCS #1; servers keep it.
    pub fn client_paddings(&self) -> &'static [LoginPadding] {
        match self.version {
            version if version < OAEP_DEFAULT => &[LoginPadding::Pkcs1],
            version if version < OAEP_ONLY_CLIENT => &[LoginPadding::Oaep, LoginPadding::Pkcs1],
            _ => &[LoginPadding::Oaep],
        }
    }

    /// The login paddings that a server of this version supports.
    pub(super) fn server_paddings(&self) -> &'static [LoginPadding] {
        if self.version < OAEP_DEFAULT { &[LoginPadding::Pkcs1] } else { &[LoginPadding::Oaep, LoginPadding::Pkcs1] }
    }

    /// The command-line option for this padding; `None` if this version uses the padding by default.
    pub(super) fn padding_option(&self, padding: LoginPadding) -> Option<&'static str> {
        (padding == LoginPadding::Pkcs1 && self.version >= OAEP_DEFAULT).then_some("--use-pkcs1-padding")
    }

    /// Checks that this iperf3 can be the server of a session.
    pub(super) fn check_server(&self) -> Result<(), Unavailable> {
        let missing = ["--time-skew-threshold", "--forceflush"].into_iter().find(|option| !self.knows(option));
        match missing {
            Some(option) => Err(Unavailable {
                because: format!("iperf3 {} has no {option}, which the reflector needs", self.version),
                hint: "install iperf3 3.10 or newer on the reflector's host".into(),
            }),
            None => Ok(()),
        }
    }
}

/// The first version of iperf3 with a thread for each stream.
const THREADED: Version = Version { major: 3, minor: 16 };
/// The first version of iperf3 whose default login padding is OAEP.
const OAEP_DEFAULT: Version = Version { major: 3, minor: 17 };
/// The first version of iperf3 whose client supports only the login padding OAEP. The client of 3.18 still supports
/// both.
const OAEP_ONLY_CLIENT: Version = Version { major: 3, minor: 19 };

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iperf3 {}", self.version)
    }
}

/// The oldest version of iperf3 whose JSON and logins are supported.
const OLDEST: Version = Version { major: 3, minor: 9 };

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The output of the program at `path` for one option, from stdout and stderr together, because versions differ in
/// which of the two they use.
fn query(path: &Path, option: &str) -> io::Result<String> {
    let (output, theirs) = io::pipe()?;
    let mut command = Command::new(path);
    command.arg(option).stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let (sender, receiver) = std::sync::mpsc::channel();
    // Started before the child, whose output must not stay unread. If the child does not start, the pipe ends at once.
    thread_limit::spawn("iperf3-output", move || {
        let mut text = Vec::new();
        let read = output.take(MAX_OUTPUT_BYTES).read_to_end(&mut text);
        // Fails if the caller has timed out.
        sender.send(read.map(|_| text)).unwrap_or(());
    })?;
    let mut child = child::spawn(command)?;
    let text = receiver.recv_timeout(QUERY_TIMEOUT).map_err(|_| io::Error::from(io::ErrorKind::TimedOut));
    // Both succeed also for a child that has exited by itself.
    child.kill()?;
    child.wait()?;
    Ok(String::from_utf8_lossy(&text??).into_owned())
}
