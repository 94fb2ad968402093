//! Tests that a running reflector reads its configuration again on SIGHUP and for `config reload`. On a terminal,
//! SIGHUP ends the reflector.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Appliance, Reflector, Running};
use rustix::process::Signal;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// How long a program may take to print a line on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const READ_AGAIN: &str = "the configuration was read again";

/// Creates a reflector whose user configuration file contains `settings`, without starting it. Returns the reflector
/// and the path of the file.
fn reflector_with(settings: &str) -> (Reflector, PathBuf) {
    let reflector = Reflector::idle(&[]);
    let folder = reflector.home().join("config/packetparamedic");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("reflector.toml");
    std::fs::write(&file, settings).unwrap();
    let config = reflector.home().join("config");
    (reflector.with_variable("XDG_CONFIG_HOME", config.to_str().unwrap()), file)
}

fn count(reflector: &Reflector, text: &str) -> usize {
    reflector.log().matches(text).count()
}

#[test]
fn a_configuration_that_is_read_again_applies_to_new_requests_and_running_tests_go_on() {
    let (mut reflector, file) = reflector_with("name = 'first'\nmax_concurrent_tests = 2\n");
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    let [running, other] = [(); 2].map(|()| Appliance::new().pair(&reflector, reflector.address()));
    let third = Appliance::new();
    let test = ["speed-test", "--json-stream", "-t", "5", "--idle", "0.1", "--download", "-P", "1", "-b", "5M"];
    let mut test = running.start(&test);
    while !test.line(PATIENCE).unwrap().contains("\"interval\"") {}

    let changed = format!(
        "name = 'second'\nmax_concurrent_tests = 2\nmax_test_duration = '2s'\nlisten_freebind = true\n\
         authorized_peers = ['{}']\n",
        third.id()
    );
    std::fs::write(&file, &changed).unwrap();
    reflector.process().signal(Signal::HUP);
    reflector.await_log("changed settings need a restart");
    let log = reflector.log();
    assert!(log.contains(r#"applied=["name", "authorized_peers", "max_test_duration"]"#), "{log}");
    assert!(log.contains(r#"settings=["listen_freebind"]"#), "{log}");
    assert_eq!(reflector.status()["name"], "second");
    let long = other.fails(&["speed-test", "-t", "5"], 4, "too_long");
    assert!(long.error.because.ends_with("limit 2 s"), "{long:?}");
    assert_eq!(reflector.status()["peers"], 3);

    // A file that is not valid changes nothing, and is named.
    std::fs::write(&file, "max_queue = 'many'\n").unwrap();
    reflector.process().signal(Signal::HUP);
    reflector.await_log("nothing was changed");
    assert!(reflector.log().contains("reflector.toml:1"), "{}", reflector.log());
    assert!(reflector.fails(&["config", "reload"], 2)[1].contains("reflector.toml:1"));
    // A command that reads other files gets the server's own answer.
    let with_other_files = |args: &[&str]| {
        let output = reflector.command(args).env("XDG_CONFIG_HOME", "/nonexistent").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, said) = with_other_files(&["config", "reload"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("keeps the current one") && said.contains("reflector.toml:1"), "{said}");
    let (_, status) = with_other_files(&["status", "--json"]);
    let status = serde_json::from_str::<serde_json::Value>(&status).unwrap();
    assert_eq!((&status["name"], &status["peers"]), (&"second".into(), &3.into()));

    // The admin socket does the same as the signal, and prints the outcome.
    let fewer = changed.replace("second", "third").replace(&format!("'{}'", third.id()), "") + "log = 'warn'\n";
    std::fs::write(&file, fewer).unwrap();
    let before = count(&reflector, READ_AGAIN);
    let outcome = reflector.must(&["config", "reload"]);
    assert_eq!(outcome, "applied: name, authorized_peers, log\nneeds a restart: listen_freebind");
    assert_eq!(reflector.status()["peers"], 2, "it is no longer authorized");
    assert_eq!(count(&reflector, READ_AGAIN), before, "such lines are below the level that the log has now");
    assert_eq!(reflector.must(&["config", "reload"]), "applied: nothing\nneeds a restart: listen_freebind");
    assert_eq!(test.wait(PATIENCE).unwrap().code(), Some(0), "the running test went on: {}", reflector.log());
}

/// Counts the known address prefixes in the database of a reflector.
fn known_prefixes(reflector: &Reflector) -> i64 {
    let options = SqliteConnectOptions::new().filename(reflector.state().join("reflector.db")).read_only(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM known_prefixes").fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count
    })
}

#[test]
fn the_known_prefixes_of_a_device_go_with_its_authorization() {
    let device = Appliance::new();
    let (mut reflector, file) = reflector_with(&format!("authorized_peers = ['{}']\n", device.id()));
    reflector.start().unwrap_or_else(|error| panic!("it serves: {error:#}\n{}", reflector.log()));
    let (address, id) = (reflector.address().to_owned(), reflector.id());
    assert_eq!(device.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]).code, 0);
    let begun = Instant::now();
    while known_prefixes(&reflector) == 0 {
        assert!(begun.elapsed() < PATIENCE, "its prefix is not written: {}", reflector.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(&file, "authorized_peers = []\n").unwrap();
    assert!(reflector.must(&["config", "reload"]).starts_with("applied: authorized_peers"));
    assert_eq!(known_prefixes(&reflector), 0);
}

#[test]
fn when_its_terminal_closes_the_reflector_stops_in_order() {
    let reflector = Reflector::idle(&[("LISTEN", "127.0.0.1:0")]);
    let plain = reflector.command(&["serve"]);
    let mut command = Command::new("script");
    let serve = format!("exec {} serve", plain.get_program().display());
    command.args(["--quiet", "--flush", "--command", &serve, "/dev/null"]).env_clear().env("SHELL", "/bin/sh");
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut terminal = Running::start(command, Stdio::inherit()).unwrap();
    while !terminal.line(PATIENCE).unwrap().contains("listening on") {}
    assert_eq!(reflector.must(&["health"]), "serving");
    // The kernel hangs up the session of a terminal that is gone.
    terminal.kill();
    reflector.await_audited("stopped", |_| true);
}
