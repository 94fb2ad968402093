//! Runs a PostgreSQL server for tests: its data and its unix socket are in a temporary folder. When the test process
//! ends, even by SIGKILL, the server stops and its folder is deleted. No release contains this crate.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// The database role that owns every test database. It connects without a password.
pub const OWNER: &str = "test";
/// The database role that can connect only with the password [`PASSWORD`].
pub const GUARDED: &str = "guarded";
/// The password of [`GUARDED`].
pub const PASSWORD: &str = "correct-horse";

/// The folder in which Debian installs the versions of PostgreSQL.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The maximum time that a killed server may take to exit. After that the test fails.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A running PostgreSQL server for tests. When this value is dropped, the server stops and its folder is deleted.
#[derive(Debug)]
pub struct TestServer {
    /// The folder of the PostgreSQL programs, such as `initdb` and `psql`.
    programs: PathBuf,
    folder: PathBuf,
    /// A shell process that stops the server and deletes its folder when its stdin is closed. The kernel closes this
    /// stdin even if the test process is killed.
    guard: Child,
    databases: AtomicU32,
}

impl TestServer {
    /// Returns the server that all tests of this process share. If PostgreSQL is not installed, prints SKIPPED once and
    /// returns `None`.
    pub fn shared() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<TestServer>> = OnceLock::new();
        SERVER.get_or_init(Self::start).as_ref()
    }

    /// Starts a server for a single test, which may stop it. If PostgreSQL is not installed, prints SKIPPED and returns
    /// `None`.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            // This does not use `eprintln!`, whose output is hidden for a test that passes.
            let skipped = format!("SKIPPED: {VERSIONS} has no PostgreSQL for these tests: install postgresql-15\n");
            std::io::stderr().write_all(skipped.as_bytes()).ok();
            return None;
        };
        let folder = tempfile::Builder::new().prefix("pp-pg-").tempdir().expect("a temporary folder").keep();
        let guard = guard(&folder);
        let server = Self { programs, folder, guard, databases: AtomicU32::new(0) };
        server.create();
        server.resume();
        server.psql("postgres", &format!("CREATE ROLE {GUARDED} LOGIN PASSWORD '{PASSWORD}'"));
        Some(server)
    }

    /// Creates an empty database and returns its name.
    pub fn create_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Creates an empty database and returns its URL.
    pub fn new_url(&self) -> String {
        self.url(OWNER, &self.create_database())
    }

    /// Returns the URL with which `role` connects to `database`. The URL contains no password.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("postgres:///{database}?host={}&user={role}", self.folder.display())
    }

    /// Executes SQL as the role [`OWNER`], and returns what psql prints. Panics if psql fails.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
        command.arg(format!("--host={}", self.folder.display())).args(["--username", OWNER, "--dbname", database]);
        run(command.args(["--command", sql]))
    }

    /// Kills every process of the server with SIGKILL, to simulate a crash. Returns when all processes have ended.
    pub fn crash(&self) {
        let Some(server) = self.pid() else { return };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.as_raw_pid()));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        let processes = std::iter::once(server).chain(children).collect::<Vec<_>>();
        for process in &processes {
            // The process may have ended meanwhile.
            kill_process(*process, Signal::KILL).ok();
        }
        let began = Instant::now();
        while processes.iter().any(|process| is_alive(*process)) {
            assert!(began.elapsed() < END_TIMEOUT, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
        // Delete these files. The killed process is not reaped yet, so the next server would take it for a running
        // server.
        for file in ["data/postmaster.pid", ".s.PGSQL.5432.lock"] {
            fs::remove_file(self.folder.join(file)).ok();
        }
    }

    /// Starts the server again after it stopped. After a crash, PostgreSQL first recovers its data.
    pub fn resume(&self) {
        self.start_with("-c listen_addresses=''");
    }

    /// Restarts the server so that it also accepts TLS connections on 127.0.0.1. Its certificate is valid only for
    /// `localhost`. Returns the TCP port, and the path of the CA certificate.
    pub fn serve_tls(&self) -> (u16, PathBuf) {
        let openssl = |arguments: &str| {
            run(Command::new("openssl").args(arguments.split(' ')).current_dir(&self.folder));
        };
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout authority.key -out authority.pem",
        );
        openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
        fs::write(self.folder.join("names"), "subjectAltName=DNS:localhost").expect("a file");
        openssl(
            "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile names \
             -out server.pem",
        );
        let key = self.folder.join("server.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        if geteuid().is_root() {
            run(Command::new("chown").arg("postgres:").arg(&key));
        }
        run(self.command("pg_ctl").args(["stop", "--wait", "--silent", "--mode=fast", "--pgdata=data"]));
        // The start fails if another program takes this port before the server listens on it.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let folder = self.folder.display();
        self.start_with(&format!(
            "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file={folder}/server.pem \
             -c ssl_key_file={folder}/server.key"
        ));
        (port, self.folder.join("authority.pem"))
    }

    fn start_with(&self, more: &str) {
        let options = format!(
            "-c unix_socket_directories='{}' -c fsync=off -c shared_buffers=16MB {more}",
            self.folder.display()
        );
        let mut command = self.command("pg_ctl");
        command.args([
            "start",
            "--wait",
            "--silent",
            "--timeout=60",
            "--log=log",
            "--pgdata=data",
            "--options",
            &options,
        ]);
        // The server would keep the pipes of the test open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().expect("pg_ctl starts");
        assert!(status.success(), "{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
    }

    /// Suspends every process of the server (SIGSTOP) if `is_frozen` is true; otherwise resumes them (SIGCONT).
    pub fn freeze(&self, is_frozen: bool) {
        let Some(server) = self.pid() else { return };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.as_raw_pid()));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for process in std::iter::once(server).chain(children) {
            kill_process(process, if is_frozen { Signal::STOP } else { Signal::CONT }).ok();
        }
    }

    fn create(&self) {
        let mut command = self.command("initdb");
        command.args(["--pgdata=data", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
        command.args(["--no-instructions", "--username", OWNER]);
        run(&mut command);
        let rules =
            format!("local all {GUARDED} scram-sha-256\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n");
        fs::write(self.folder.join("data/pg_hba.conf"), rules).expect("the rules can be written");
    }

    /// Builds a command that runs a PostgreSQL program in the server's folder. A test that runs as root runs it as the
    /// user `postgres`, because PostgreSQL refuses root.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.folder.join("data/postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.guard.stdin = None;
        self.guard.wait().ok();
    }
}

/// Returns the program folder of the latest installed PostgreSQL version; `None` if none is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let version = |folder: &Path| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found =
        versions.filter_map(|entry| Some((version(&entry.path())?, entry.path().join("bin")))).collect::<Vec<_>>();
    found.retain(|(_, programs)| programs.join("initdb").exists());
    found.into_iter().max().map(|(_, programs)| programs)
}

/// Makes the server's user the owner of the folder, and starts the guard process, which stops the server and deletes
/// the folder. The guard waits until its stdin is closed, which happens when this process ends. A parent-death signal
/// cannot replace the pipe: the kernel sends that signal when the thread that started the guard ends, and this is the
/// thread of the first test.
fn guard(folder: &Path) -> Child {
    // Other users need access, because the programs under test may run as another user.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    if geteuid().is_root() {
        run(Command::new("chown").arg("postgres:").arg(folder));
    }
    let script = r#"
        trap '' INT TERM HUP QUIT
        read -r _
        pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
        for _ in $(seq 100); do
            [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        rm -rf "$1"
    "#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "guard"]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("sh starts")
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Returns whether the process still runs. A zombie counts as ended.
fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid())).unwrap_or_default();
    // The state follows the name in parentheses.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
