//! The iperf3 of this host: where it is, which one, what it knows. What is done with it stands elsewhere.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use paramedic_engines::engine::Unavailable;
use paramedic_engines::sys::child;

use super::login::LoginPadding;
use super::output::{Version, version_of};

/// What a program may say when it is asked who it is.
const MOST_SAID: u64 = 256 << 10;
/// How long it may take to say so: it reads no file and opens no connection for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// An iperf3 that can be run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it stands, without links.
    pub(super) path: PathBuf,
    /// Which one.
    pub version: Version,
    help: String,
}

/// How to get one.
const GET_IT: &str = "install iperf3 3.9 or newer: `apt install iperf3`, `dnf install iperf3`, `apk add iperf3`";

impl Program {
    /// The first `iperf3` of `PATH`.
    pub fn find() -> Result<Self, Unavailable> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders).map(|folder| folder.join("iperf3")).find(|path| is_program(path));
        let Some(path) = found else {
            return Err(Unavailable { because: "there is no iperf3 on this host".into(), hint: GET_IT.into() });
        };
        Self::at(&path)
    }

    fn at(path: &Path) -> Result<Self, Unavailable> {
        let lacking = |error: io::Error| Unavailable {
            because: format!("{} does not run: {error}", path.display()),
            hint: GET_IT.into(),
        };
        let path = path.canonicalize().map_err(lacking)?;
        let said = ask(&path, "--version").map_err(lacking)?;
        let Some(version) = version_of(&said).filter(|version| *version >= OLDEST) else {
            let first = said.lines().next().unwrap_or_default();
            let because = format!("{} says that it is {first:?}", path.display());
            return Err(Unavailable { because, hint: GET_IT.into() });
        };
        let help = ask(&path, "--help").map_err(lacking)?;
        let program = Self { path, version, help };
        if !program.knows("--rsa-public-key-path") {
            let because = format!("{} was built without logins (OpenSSL)", program.path.display());
            return Err(Unavailable { because, hint: GET_IT.into() });
        }
        Ok(program)
    }

    /// Whether it has the option, as its help says.
    pub fn knows(&self, option: &str) -> bool {
        self.help.split(|c: char| c.is_whitespace() || c == ',' || c == '[').any(|word| word == option)
    }

    /// The share of a core that each of its busy threads had, 0 to 1: it has one for all streams, and from 3.16 on one for
    /// each, of which this is the average.
    pub(super) fn share_of_a_thread(&self, cpu_s: f64, lived_s: f64, streams: u16) -> f64 {
        let threads = if self.version < THREADED { 1 } else { streams.max(1) };
        (cpu_s / lived_s / f64::from(threads)).min(1.0)
    }

    /// How a client can pad its login, the one that it takes by itself first. From 3.17 on that is OAEP; the older way had
    /// an option at first, which became the server's alone.
    pub fn client_paddings(&self) -> &'static [LoginPadding] {
        match self.version {
            version if version < PADS_ANEW => &[LoginPadding::Pkcs1],
            version if version < CLIENT_PADS_ANEW_ALONE => &[LoginPadding::Oaep, LoginPadding::Pkcs1],
            _ => &[LoginPadding::Oaep],
        }
    }

    /// How a server can be made to expect it.
    pub(super) fn server_paddings(&self) -> &'static [LoginPadding] {
        if self.version < PADS_ANEW { &[LoginPadding::Pkcs1] } else { &[LoginPadding::Oaep, LoginPadding::Pkcs1] }
    }

    /// What has to be said for this padding, where it is not what the version takes by itself.
    pub(super) fn padding_option(&self, padding: LoginPadding) -> Option<&'static str> {
        (padding == LoginPadding::Pkcs1 && self.version >= PADS_ANEW).then_some("--use-pkcs1-padding")
    }

    /// Whether it can be a session's server.
    pub(super) fn check_server(&self) -> Result<(), Unavailable> {
        let missing = ["--time-skew-threshold", "--forceflush"].into_iter().find(|option| !self.knows(option));
        match missing {
            Some(option) => Err(Unavailable {
                because: format!("iperf3 {} has no {option}, which a server for others needs", self.version),
                hint: "install iperf3 3.10 or newer on the reflector's host".into(),
            }),
            None => Ok(()),
        }
    }
}

/// The first with a thread for each stream.
const THREADED: Version = Version { major: 3, minor: 16 };
/// The first that pads logins by OAEP.
const PADS_ANEW: Version = Version { major: 3, minor: 17 };
/// The first whose client may not be told to pad otherwise; 3.18's still is.
const CLIENT_PADS_ANEW_ALONE: Version = Version { major: 3, minor: 19 };

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iperf3 {}", self.version)
    }
}

/// The oldest whose JSON and logins are as ours.
const OLDEST: Version = Version { major: 3, minor: 9 };

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What the program answers to one option; both of its outputs, for versions differ in which one they take.
fn ask(path: &Path, option: &str) -> io::Result<String> {
    let (output, theirs) = io::pipe()?;
    let mut command = Command::new(path);
    command.arg(option).stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let mut child = child::spawn(command)?;
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = output.take(MOST_SAID).read_to_end(&mut text);
        // Whoever asked may have lost patience.
        let _ = said.send(read.map(|_| text));
    });
    let text = heard.recv_timeout(PATIENCE).map_err(|_| io::Error::from(io::ErrorKind::TimedOut));
    // One that is done is not hurt by it.
    let _ = child.kill();
    let _ = child.wait();
    Ok(String::from_utf8_lossy(&text??).into_owned())
}
