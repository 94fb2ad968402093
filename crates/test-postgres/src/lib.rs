//! A PostgreSQL server for tests, in a temporary folder and on a unix socket in that folder. When the process of the
//! tests ends, even by SIGKILL, the server ends and its folder is removed. Not shipped.

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

/// The database role that owns every database of the tests, and needs no password.
pub const OWNER: &str = "test";
/// The database role that needs the password [`PASSWORD`].
pub const GUARDED: &str = "guarded";
/// The password of [`GUARDED`].
pub const PASSWORD: &str = "correct-horse";

/// The folder in which Debian installs the versions of PostgreSQL.
const VERSIONS: &str = "/usr/lib/postgresql";
/// How long the server may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A running PostgreSQL server.
#[derive(Debug)]
pub struct TestServer {
    /// The folder of PostgreSQL's programs.
    programs: PathBuf,
    folder: PathBuf,
    /// The process that ends the server and removes its folder as soon as its own stdin is closed.
    guard: Child,
    databases: AtomicU32,
}

impl TestServer {
    /// Returns the server that all tests of this process share. Without PostgreSQL it prints SKIPPED once and returns
    /// `None`.
    pub fn shared() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<TestServer>> = OnceLock::new();
        SERVER.get_or_init(Self::start).as_ref()
    }

    /// Starts a server for a single test, which may end it. Without PostgreSQL it prints SKIPPED and returns `None`.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            // This does not use `eprintln!`, whose output is hidden for a test that passes.
            let skipped = format!("SKIPPED: the tests on PostgreSQL: install postgresql-15 (none in {VERSIONS})\n");
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

    /// The URL by which a role connects to a database, without a password.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("postgres:///{database}?host={}&user={role}", self.folder.display())
    }

    /// Executes SQL as the role [`OWNER`], and returns what psql prints.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
        command.arg(format!("--host={}", self.folder.display())).args(["--username", OWNER, "--dbname", database]);
        run(command.args(["--command", sql]))
    }

    /// Kills every process of the server by SIGKILL, to simulate a crash.
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
        // Remove these files, because the process is not reaped yet and the next server would take it for a running
        // one.
        for file in ["data/postmaster.pid", ".s.PGSQL.5432.lock"] {
            fs::remove_file(self.folder.join(file)).ok();
        }
    }

    /// Starts the server again after it ended. After a crash it first recovers its data.
    pub fn resume(&self) {
        self.start_with("-c listen_addresses=''");
    }

    /// Restarts the server so that it also serves TLS on 127.0.0.1, with a certificate that is valid only for
    /// `localhost`. Returns the port, and the path of the certificate of the authority that signed it.
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
        // If another program takes the port before the server listens, the start fails.
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

    /// Stops every process of the server, or lets them continue.
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

    /// Builds a command that runs a program of PostgreSQL in the folder of the server, and never as root.
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

/// The folder of the programs of the latest installed version; `None` without PostgreSQL.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let version = |folder: &Path| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found =
        versions.filter_map(|entry| Some((version(&entry.path())?, entry.path().join("bin")))).collect::<Vec<_>>();
    found.retain(|(_, programs)| programs.join("initdb").exists());
    found.into_iter().max().map(|(_, programs)| programs)
}

/// Gives the folder to the user of the server, and starts the process that ends the server and removes the folder. That
/// process waits for the end of a pipe, which comes with the end of this process. A parent-death signal would not do:
/// it would come with the end of the thread that started the process, which is the thread of the first test.
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

/// Whether the process is running; a zombie is not.
fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid())).unwrap_or_default();
    // The state follows the name in parentheses.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
