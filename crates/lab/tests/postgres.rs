//! Tests the real appliance with its database on a PostgreSQL server: the service, a server that crashes, and bad
//! input.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::{Appliance, Device};
use rustix::process::Signal;
use test_postgres::{GUARDED, OWNER, PASSWORD, TestServer};

/// How long a test waits for the service. Each task of the service retries at least once a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// Ends the loop of another thread when dropped, also if the thread that owns this value panics.
struct EndOfLoop<'a>(&'a AtomicBool);

impl Drop for EndOfLoop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Creates a device that uses a new, empty database on the server.
fn device(server: &TestServer) -> Device {
    Device::new(Appliance::new().on_database(server.new_url()))
}

/// Starts the service with a watchdog timeout of 0.3 s, so that it checks its database several times a second.
fn serve_watched(device: &Device) -> lab::Running {
    let mut command = device.command(&["serve"]);
    command.env("WATCHDOG_USEC", "300000");
    device.serve_with(command)
}

/// Returns the names of the API tokens in the database.
fn tokens(device: &Device) -> Vec<String> {
    let listed = device.json(&["token", "list"]);
    listed.as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_service_keeps_everything_on_the_server_and_nothing_in_its_folder() {
    let Some(server) = TestServer::shared() else { return };
    let device = device(server);
    let mut service = device.serve();
    assert_eq!(device.run(&["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1:9"]).code, 1);
    device.schedule("nightly", &["-t", "5", "--provider", "iperf3", "--peer", "127.0.0.1:9"]);
    device.must(&["monitor", "add", "host:127.0.0.1"]);
    device.must(&["token", "add", "--name", "Grafana"]);
    let taken = device.run(&["token", "add", "--name", "grafana"]);
    assert_eq!((taken.code, taken.three_lines()[0]), (2, "invalid name"), "{taken:?}");
    let check = device.json(&["store", "check"]);
    assert_eq!((&check["results"], &check["schedules"]), (&1.into(), &1.into()));
    assert_eq!(check["problems"], serde_json::json!([]));
    let refused = device.run(&["store", "backup", "/tmp/packetparamedic-backup-that-is-not-made"]);
    assert_eq!((refused.code, refused.three_lines()[0]), (2, "the backup was not made"), "{refused:?}");
    assert!(refused.three_lines()[2].contains("pg_dump"), "{refused:?}");
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    assert!(!device.database().exists());
    // Without the service, the commands use the same database.
    assert_eq!((device.json(&["history"]).as_array().unwrap().len(), tokens(&device)), (1, vec!["Grafana".to_owned()]));
    assert_eq!(device.json(&["schedule", "list"])[0]["name"], "nightly");
}

#[test]
fn a_server_that_crashes_during_writes_loses_no_acknowledged_row_and_the_service_recovers() {
    let Some(server) = TestServer::start() else { return };
    let url = server.new_url();
    let device = Device::new(Appliance::new().on_database(url.clone()));
    let mut service = serve_watched(&device);
    let (is_over, mut acknowledged) = (AtomicBool::new(false), Vec::new());
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let name = format!("t{number}");
                let added = device.run(&["token", "add", "--name", &name]);
                if added.code == 0 {
                    acknowledged.push(name);
                } else {
                    assert_eq!(added.three_lines()[0], "cannot use the saved pairings and results", "{added:?}");
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            acknowledged
        });
        let end = EndOfLoop(&is_over);
        for _ in 0..3 {
            let before = tokens(&device).len();
            let more = || Some(()).filter(|()| tokens(&device).len() > before);
            // Each request of the writer is a line of the log.
            lab::changes::until(device.runtime.path(), PATIENCE, more).expect("tokens are added");
            server.crash();
            let unhealthy = || Some(device.run(&["health"])).filter(|health| health.code == 1);
            let faulted = lab::changes::until(device.runtime.path(), PATIENCE, unhealthy);
            let faulted = faulted.unwrap_or_else(|| panic!("{}", device.log()));
            let [what, because, _] = faulted.three_lines();
            assert!(what.contains("faulted") && because.contains("does not answer"), "{faulted:?}");
            assert_eq!(device.must(&["health", "--live"]), "faulted\n");
            server.resume();
            let healthy = || Some(()).filter(|()| device.run(&["health"]).code == 0);
            lab::changes::until(device.runtime.path(), PATIENCE, healthy).unwrap_or_else(|| panic!("{}", device.log()));
        }
        drop(end);
        acknowledged = writer.join().unwrap();
    });
    // The crash ended the connection that held the lock of the service.
    let second = Device::new(Appliance::new().on_database(url)).run(&["serve"]);
    assert!(second.code != 0 && second.three_lines().concat().contains("another service"), "{second:?}");
    let stored = tokens(&device);
    assert!(acknowledged.len() >= 3, "{acknowledged:?}");
    assert!(acknowledged.iter().all(|name| stored.contains(name)), "{acknowledged:?} {stored:?}");
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
}

#[test]
fn a_database_that_cannot_be_used_is_named_with_the_cause_and_no_password() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.create_database();
    let guarded = server.url(GUARDED, &database);
    let fails = |url: String, exit, code: &str, said: &str| {
        let device = Device::new(Appliance::new().on_database(url));
        for args in [&["history"][..], &["token", "add", "--name", "a"]] {
            let error = device.appliance.fails(args, exit, code).error;
            let text = format!("{error:?}");
            assert!(text.contains(said) && !text.contains("geheim") && !text.contains(PASSWORD), "{text}");
        }
        let served = device.run(&["serve"]);
        assert_eq!(served.code, exit, "{served:?}");
        assert!(served.three_lines().concat().contains(said) && !served.stderr.contains("geheim"), "{served:?}");
    };
    fails(format!("{guarded}&password=geheim"), 2, "database_refused", "password authentication failed");
    fails(format!("{guarded}&password={PASSWORD}"), 2, "database_refused", "permission denied");
    fails(server.url(OWNER, "nowhere"), 2, "database_refused", "does not exist");
    fails("postgres:///pp?host=/nowhere&password=geheim".to_owned(), 1, "database_unreachable", "does not answer");
    fails("postgres://ann:geheim@127.0.0.1:1/pp".to_owned(), 1, "database_unreachable", "refused");
    fails("postgres://ann:geheim@127.0.0.1:port/pp".to_owned(), 2, "bad_config", "port");
    fails("mysql://ann:geheim@127.0.0.1/pp".to_owned(), 2, "bad_config", "postgres://");
    fails("postgres:///pp?passwd=geheim".to_owned(), 2, "bad_config", "parameter 1");

    let owned = |database: &str| Device::new(Appliance::new().on_database(server.url(OWNER, database)));
    let newer = server.create_database();
    owned(&newer).must(&["history"]);
    server.psql(
        &newer,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'later', TRUE, '', 0)",
    );
    fails(server.url(OWNER, &newer), 2, "history_newer", "newer version");
    let altered = server.create_database();
    owned(&altered).must(&["history"]);
    server.psql(&altered, "UPDATE _sqlx_migrations SET checksum = ''");
    fails(server.url(OWNER, &altered), 1, "history_altered", "has been modified");
    let read_only = server.create_database();
    owned(&read_only).must(&["token", "add", "--name", "a"]);
    server.psql("postgres", &format!("ALTER DATABASE {read_only} SET default_transaction_read_only = on"));
    assert_eq!(tokens(&owned(&read_only)), ["a"], "it can be read");
    owned(&read_only).appliance.fails(&["token", "add", "--name", "b"], 2, "database_read_only");
}

#[test]
fn the_password_comes_from_a_file_and_is_never_printed() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.create_database();
    server.psql(&database, &format!("GRANT CREATE ON SCHEMA public TO {GUARDED}"));
    let guarded = server.url(GUARDED, &database);
    let device = Device::new(Appliance::new().on_database(guarded.clone()));
    let file = device.runtime.path().join("password");
    let with_file = |args: &[&str]| {
        let mut command = device.command(args);
        command.env("PACKETPARAMEDIC_DATABASE_PASSWORD_FILE", &file);
        command
    };
    let missing = lab::Outcome::from(with_file(&["history"]).output().unwrap());
    assert_eq!(
        (missing.code, missing.three_lines()[0]),
        (2, "cannot read the password of the database"),
        "{missing:?}"
    );
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut service = device.serve_with(with_file(&["-vv", "serve"]));
    device.must(&["token", "add", "--name", "a"]);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    assert!(device.log().contains("postgres:///") && !device.log().contains(PASSWORD), "{}", device.log());

    let whole = Device::new(Appliance::new().on_database(format!("{guarded}&password={PASSWORD}")));
    assert_eq!(tokens(&whole), ["a"]);
    let shown = whole.run(&["-vv", "config", "show", "--origin"]);
    assert!(shown.stdout.contains(&format!("database = \"{guarded}\"")), "{shown:?}");
    assert!(!format!("{shown:?}").contains(PASSWORD), "{shown:?}");
}
