//! Tests the appliance's service with real speed tests: schedules, clients, crashes, signals, full disks and bad input.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use lab::{Appliance, Device, Outcome, Reflector, Running, event, fill};
use paramedic_report::document::Event;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const PATIENCE: Duration = Duration::from_secs(60);
/// The arguments of a short speed test with little load.
const SHORT: [&str; 8] = ["-t", "0.3", "--idle", "0.1", "-b", "5M", "-P", "1"];

/// Executes an SQL statement on the database, which no service may be using.
fn execute(device: &Device, sql: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(device.database());
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

fn paired(reflector: &Reflector) -> Device {
    Device::new(Appliance::new().pair(reflector, reflector.address()))
}

#[test]
fn a_schedule_runs_in_the_service_and_the_commands_are_its_clients() {
    let reflector = Reflector::serve(&[]);
    let device = paired(&reflector);
    // Nothing starts by itself: a schedule must be confirmed.
    let asked = device.run(&[&["schedule", "add", "--name", "nightly", "--every", "1d"], &SHORT[..]].concat());
    assert_eq!(asked.code, 2, "{asked:?}");
    assert!(asked.stdout.contains("a month") && asked.three_lines()[1].contains("a month"), "{asked:?}");
    device.schedule("nightly", &[&SHORT[..], &["--budget-month", "1GB"]].concat());
    assert_eq!(device.run(&["status"]).code, 1, "no service runs");
    assert_eq!(device.run(&["schedule", "run", "nightly"]).code, 1);

    let mut service = device.serve();
    let status = device.json(&["status"]);
    assert_eq!((&status["state"], &status["planned"][0]["schedule"]), (&"running".into(), &"nightly".into()));
    assert_eq!([device.must(&["health"]), device.must(&["health", "--live"])], ["running\n", "running\n"]);
    let second = device.run(&["serve"]);
    assert_eq!((second.code, second.three_lines()[0]), (1, "the service cannot start"), "{second:?}");

    device.must(&["schedule", "run", "nightly"]);
    let run = device.await_run("nightly");
    assert_eq!((&run["outcome"], &run["requested"]), (&"done".into(), &true.into()), "{run:#}\n{}", device.log());
    let shown = device.json(&["history", "show", run["result_id"].as_str().unwrap()]);
    assert_eq!(shown["data_used_bytes"], run["data_used_bytes"]);
    let listed = device.json(&["schedule", "list"]);
    let left = listed[0]["left"]["month_bytes"].as_u64().unwrap();
    assert_eq!(left, 1_000_000_000 - run["data_used_bytes"].as_u64().unwrap(), "{listed:#}");
    assert!(device.must(&["schedule", "list"]).contains(" left"));

    // The service pairs, too.
    let mut pairing = reflector.open_code(&[]);
    let again = device.json(&["pair-reflector", "--peer", reflector.address(), "--code", &pairing.code]);
    assert_eq!(again["event"], "paired");
    assert!(pairing.command.wait(PATIENCE).unwrap().success());
    assert_eq!(device.json(&["reflectors"])[0]["endpoint_id"], again["endpoint_id"]);
    // A test of a client is a test of this device: it is in the same history.
    let tested = device.run(&[&["speed-test", "--json"], &SHORT[..]].concat());
    assert_eq!((tested.code, tested.stderr.as_str()), (0, ""), "{tested:?}");
    assert_eq!(device.json(&["history"])[0]["id"], tested.json()["id"]);
    // The other end is gone: the client gets the failure, and the service goes on.
    let asked = device.run(&["speed-test", "--json", "--peer", "127.0.0.1:9", "--no-wait"]);
    assert_eq!((asked.code, asked.json()["code"].as_str()), (1, Some("unreachable")), "{asked:?}");
    // Ctrl-C at the client ends its test, with what was measured.
    let mut client = Running::start(
        device.command(&["speed-test", "--json-stream", "-t", "60", "--idle", "0.1", "--download", "-b", "5M"]),
        Stdio::inherit(),
    )
    .unwrap();
    while !matches!(event(&client.line(PATIENCE).unwrap()), Event::Interval(_)) {}
    client.signal(Signal::INT);
    assert_eq!(client.wait(PATIENCE).unwrap().code(), Some(130), "{}", device.log());
    let last = client.rest(PATIENCE).unwrap().pop().unwrap();
    let Event::Result(result) = event(&last) else { panic!("{last}") };
    assert!(result.interrupted && device.json(&["history"])[0]["id"] == result.id.to_string());

    // SIGTERM in mid test: the run ends, and what it measured is kept.
    device.schedule("long", &["-t", "60", "--idle", "0.1", "--download", "-b", "5M", "-P", "1"]);
    let granted = reflector.audited("session_granted").len();
    device.must(&["schedule", "run", "long"]);
    reflector.await_audited("session_granted", |_| reflector.audited("session_granted").len() > granted);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    assert!(!device.socket().exists());
    let run = device.await_run("long");
    assert_eq!((&run["outcome"], &run["reason"]), (&"interrupted".into(), &"interrupted".into()), "{run:#}");
    device.json(&["history", "show", run["result_id"].as_str().unwrap()]);
}

#[test]
fn a_killed_service_loses_no_run_and_makes_up_for_a_missed_one() {
    let reflector = Reflector::serve(&[]);
    let device = paired(&reflector);
    let long = ["-t", "60", "--idle", "0.1", "--download", "-b", "5M", "-P", "1"];
    device.schedule("long", &long);
    device.schedule("short", &SHORT);
    let mut service = device.serve();
    device.must(&["schedule", "run", "short"]);
    let done = device.await_run("short");
    device.must(&["schedule", "run", "long"]);
    device.await_json(&["schedule", "runs", "long"], |runs| runs[0]["outcome"] == "running");
    service.kill();
    // Without the service the commands read the store, and say so.
    let stale = device.run(&["schedule", "runs", "long"]);
    assert!(stale.code == 0 && stale.stderr.contains("using the store in"), "{stale:?}");

    let mut service = device.serve();
    let run = device.await_run("long");
    assert_eq!((&run["outcome"], &run["reason"]), (&"interrupted".into(), &"service_ended".into()), "{run:#}");
    assert!(run["data_used_bytes"].as_u64().unwrap() > 0, "its data counts: {run:#}");
    assert_eq!(device.json(&["schedule", "runs", "short"])[0], done);
    assert_eq!(device.json(&["history"])[0]["id"], done["result_id"]);

    // Days pass without the service: one schedule makes up for its runs, the other one does not.
    for (name, missed) in [("once", "once"), ("skipped", "skip")] {
        let options = ["schedule", "add", "--name", name, "--every", "5h", "--missed", missed, "--yes"];
        device.must(&[&options[..], &SHORT, &["--busy-share", "off", "--spread", "0"]].concat());
    }
    device.must(&["schedule", "disable", "long"]);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    execute(
        &device,
        "UPDATE schedules SET added_at_us = added_at_us - 2 * 86400000000, \
         decided_until_us = decided_until_us - 2 * 86400000000 WHERE name IN ('once', 'skipped')",
    );
    let _service = device.serve();
    let waits = |name: &str| {
        device.await_json(&["schedule", "runs", name], |runs| {
            runs.as_array().is_some_and(|runs| !runs.is_empty()) && runs[0]["outcome"] != "running"
        })
    };
    let (made_up, skipped) = (waits("once"), waits("skipped"));
    assert_eq!((made_up.as_array().unwrap().len(), &made_up[0]["outcome"]), (1, &"done".into()), "{made_up:#}");
    assert_eq!((skipped.as_array().unwrap().len(), &skipped[0]["reason"]), (1, &"missed".into()), "{skipped:#}");
    // And not again.
    assert_eq!(device.json(&["status"])["waiting"], Value::Null);
}

/// Returns the arguments of the command that adds a schedule with these options.
fn add<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["schedule", "add", "--yes"], options].concat()
}

#[test]
fn a_schedule_that_could_not_run_is_refused() {
    let reflector = Reflector::serve(&[]);
    let device = paired(&reflector);
    for (options, code) in [
        (&["--name", "a", "--cron", "0 0 30 2 *"][..], "bad_schedule"),
        (&["--name", "a", "--cron", "* * * * * *"], "bad_schedule"),
        (&["--name", "a", "--cron", "* * * * *"], "bad_schedule"),
        (&["--name", "a", "--every", "2s"], "bad_schedule"),
        (&["--name", "a b", "--every", "6h"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--zone", "Mars/Olympus"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--budget-day", "0"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--budget-month", "0GB"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--spread", "4h"], "bad_schedule"),
        (&["--name", "a", "--cron", "0 3 * * *", "--quiet-hours", "22:00-07:00"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--no-save"], "bad_schedule"),
        (&["--name", "a", "--every", "6h", "--provider", "iperf3"], "bad_request"),
    ] {
        device.appliance.fails(&add(options), 2, code);
    }
    device.appliance.fails(&add(&["--name", "a", "--every", "6h", "--peer", "gone"]), 4, "not_paired");
    device.schedule("a", &[]);
    device.appliance.fails(&add(&["--name", "A", "--every", "6h"]), 2, "bad_name");
    for command in ["remove", "enable", "disable", "next"] {
        device.appliance.fails(&["schedule", command, "b"], 1, "no_such_schedule");
    }
    // The same from the service, in the same words.
    let _service = device.serve();
    let refused = device.run(&add(&["--name", "b", "--cron", "0 0 30 2 *"]));
    assert_eq!((refused.code, refused.three_lines()[0]), (2, "the schedule is not accepted"), "{refused:?}");
    assert_eq!(device.run(&["schedule", "run", "b"]).three_lines()[0], "no such schedule");
    device.must(&["schedule", "disable", "a"]);
    assert_eq!(device.run(&["schedule", "run", "a"]).three_lines()[0], "cannot run the schedule");
    device.must(&["schedule", "remove", "a"]);
    assert_eq!(device.json(&["schedule", "list"]), serde_json::json!([]));
}

#[test]
fn requests_that_are_not_valid_are_answered_with_problem_details() {
    let device = Device::new(Appliance::new());
    let _service = device.serve();
    let ask = |request: &str, body: usize| {
        let mut stream = UnixStream::connect(device.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let chunk = vec![b' '; 1 << 16];
        for _ in 0..body / chunk.len() {
            // The service answers before it has read everything, and closes.
            if stream.write_all(&chunk).is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        // After a body that was not read, the kernel may reset the connection once the answer has arrived.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    let head = |method: &str, path: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for (method, path, length, status) in [
        ("GET", "/api/v1/nothing", 0, 404),
        ("GET", "/api/v1/../../etc/passwd", 0, 404),
        ("GET", "/api/v1/schedules/..%2f..%2fetc", 0, 404),
        ("GET", "/api/v1/results/%ff", 0, 400),
        ("GET", "/api/v1/results?limit=many", 0, 400),
        ("GET", "/api/v1/results?since=yesterday", 0, 400),
        ("GET", "/api/v1/results/export?format=xml", 0, 400),
        ("DELETE", "/api/v1/results/ffffffff", 0, 404),
        ("PUT", "/api/v1/results/01a22833-d664-734a-9457-341dde177d0d", 0, 400),
        ("PUT", "/api/v1/results/01a22833-d664-734a-9457-341dde177d0d", 100 << 20, 413),
        ("POST", "/api/v1/results/prune", 0, 400),
        ("POST", "/api/v1/configuration", 100 << 20, 413),
        ("PUT", "/api/v1/status", 0, 405),
        ("POST", "/api/v1/schedules", 0, 400),
        ("POST", "/api/v1/schedules", 100 << 20, 413),
        ("POST", "/api/v1/tests", 0, 400),
    ] {
        let answer = ask(&head(method, path, length), length);
        let context = format!("{method} {path}: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{context}");
        assert!(answer.contains("content-type: application/problem+json"), "{context}");
        let problem = serde_json::from_str::<Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        for member in ["type", "title", "detail", "code", "because", "try"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{context}");
        }
        assert_eq!(problem["status"], status);
    }
    assert_eq!(device.must(&["health"]), "running\n");
}

#[test]
fn a_service_whose_target_is_gone_or_whose_disk_is_full_goes_on() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let state = appliance.state();
    let plain = Device::new(appliance);
    plain.schedule("short", &SHORT);
    let Some(appliance) = plain.appliance.on_a_tiny_disk() else { return };
    let device = Device { appliance, runtime: plain.runtime };
    let service = device.serve();
    let filling = fill(&service.sees(&state));
    device.must(&["schedule", "run", "short"]);
    let unhealthy = || Some(device.run(&["health"])).filter(|health| health.code == 1);
    let faulted = lab::changes::until(device.runtime.path(), PATIENCE, unhealthy);
    let faulted = faulted.unwrap_or_else(|| panic!("{}", device.log()));
    let [what, because, _] = faulted.three_lines();
    assert!(what.contains("faulted") && because.contains("full"), "{faulted:?}");
    assert_eq!(device.must(&["health", "--live"]), "faulted\n");
    fs::remove_file(filling).unwrap();
    // The run that could not be stored takes place.
    let wait = |runs: &Value| runs[0]["outcome"] == "done";
    device.await_json(&["schedule", "runs", "short"], wait);
    assert_eq!(device.must(&["health"]), "running\n");
    drop(reflector);
    device.must(&["schedule", "run", "short"]);
    let run = device.await_json(&["schedule", "runs", "short"], |runs| runs[0]["outcome"] == "failed");
    assert_eq!(run[0]["reason"], "unreachable");
    assert_eq!(device.must(&["health"]), "running\n");
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_not_changed() {
    let device = Device::new(Appliance::new());
    device.must(&["schedule", "list"]);
    execute(
        &device,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'later', TRUE, x'00', 0)",
    );
    let file = device.appliance.state().join("packetparamedic.db");
    let before = fs::read(&file).unwrap();
    let refused = device.run(&["serve"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.three_lines()[1].contains("newer version"), "{refused:?}");
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
fn the_service_manager_hears_of_readiness_life_and_the_stop() {
    let device = Device::new(Appliance::new());
    let path = device.runtime.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = device.command(&["serve"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut service = device.serve_with(command);
    let message = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", device.log()));
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    };
    assert_eq!(message(), "READY=1");
    assert_eq!([message(), message()], ["WATCHDOG=1", "WATCHDOG=1"]);
    service.signal(Signal::TERM);
    let last = std::iter::repeat_with(message).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
}

#[test]
fn commands_about_reflectors_and_the_identity_ask_the_service() {
    let reflector = Reflector::serve(&[]);
    let device = paired(&reflector);
    let id = device.appliance.id();
    let _service = device.serve();
    // Another user, with a state folder of their own in which nothing is paired.
    let other = Appliance::new();
    let run = |args: &[&str]| {
        let mut command = other.command(args);
        command.env("PACKETPARAMEDIC_RUNTIME_DIR", device.runtime.path()).stdin(Stdio::null());
        let outcome = Outcome::from(command.output().unwrap());
        assert!(!outcome.stderr.contains("using the store in"), "{args:?}: {outcome:?}");
        outcome
    };
    let must = |args: &[&str]| {
        let outcome = run(args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}\n{}", device.log());
        outcome.stdout
    };
    let json = |args: &[&str]| serde_json::from_str::<Value>(&must(&[args, &["--json"]].concat())).unwrap();
    assert_eq!(must(&["show-id"]).trim(), id);
    let of_reflector = json(&["reflectors"])[0]["endpoint_id"].as_str().unwrap().to_owned();
    // A name that is also a word of the API.
    assert_eq!(must(&["reflectors", "rename", &of_reflector, "imports"]), "its name is imports now\n");
    assert_eq!(json(&["reflectors", "rename", "imports", "my attic"])["reflector"]["name"], "my attic");
    let refused = run(&["reflectors", "rename", "my attic", ""]);
    assert_eq!((refused.code, refused.three_lines()[0]), (2, "invalid name"), "{refused:?}");
    assert!(must(&["reflectors", "check", "MY ATTIC"]).starts_with("my attic: reachable; 127.0.0.1:"));
    let checked = json(&["reflectors", "check"]);
    assert_eq!((&checked[0]["reachable"], &checked[0]["name"]), (&true.into(), &"my attic".into()), "{checked:#}");
    let unknown = run(&["reflectors", "check", "cellar"]);
    assert_eq!((unknown.code, unknown.three_lines()[0]), (4, "no such reflector"), "{unknown:?}");
    // The rest of the diagnosis is of the host.
    let diagnosis = run(&["doctor", "--json"]).json();
    for code in ["reflector", "udp"] {
        let check = diagnosis["checks"].as_array().unwrap().iter().find(|check| check["code"] == code).unwrap();
        assert!(check["what"].as_str().unwrap().contains("reflector my attic"), "{check:#}");
        assert_eq!(check["outcome"], "passed", "{check:#}");
    }
    // The reflector knows the old identity alone.
    let new = must(&["rotate-identity", "--yes"]).trim().to_owned();
    assert_ne!(new, id);
    assert_eq!(must(&["show-id"]).trim(), new);
    let unknown = run(&["reflectors", "check", "--json"]);
    assert_eq!((unknown.code, &unknown.json()[0]["error"]["code"]), (4, &"not_paired".into()), "{unknown:?}");
    assert_eq!(must(&["reflectors", "remove", "my attic"]), "forgot my attic\n");
    assert_eq!(json(&["reflectors"]), serde_json::json!([]));
    // Nothing happened in the store of the other user.
    assert_ne!(other.id(), new);
}
