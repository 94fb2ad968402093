//! Tests read-only folders, full disks and damaged files: both programs print an error, and overwrite nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lab::{Appliance, Reflector, fill};
use serde_json::Value;
use tempfile::TempDir;

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1"];

/// Paths of state folders that not even root can create: one below a regular file, one in /proc.
fn unwritable() -> (TempDir, [PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    (folder, [file.join("state"), PathBuf::from("/proc/packetparamedic")])
}

#[test]
fn the_appliance_names_an_unwritable_state_folder() {
    let (_kept, folders) = unwritable();
    for folder in folders {
        let path = folder.to_str().unwrap();
        for command in [&["speed-test"][..], &["history"], &["reflectors"]] {
            let args = [&["--state-dir", path], command].concat();
            let document = Appliance::new().fails(&args, 2, "state_dir_unusable");
            assert!(format!("{document:?}").contains(path), "{document:?}");
        }
        let show_id = Appliance::new().run(&["--state-dir", path, "show-id"]);
        assert_eq!(show_id.code, 2, "{show_id:?}");
        show_id.three_lines();
    }
}

#[test]
fn the_reflector_names_an_unwritable_state_folder() {
    let (_kept, folders) = unwritable();
    for folder in folders {
        let path = folder.to_str().unwrap();
        for command in ["serve", "show-id"] {
            let lines = Reflector::idle(&[]).fails(&[command, "--state-dir", path], 2);
            assert!(lines.concat().contains(path), "{lines:?}");
        }
    }
}

#[test]
fn an_invalid_configuration_is_reported_with_file_line_and_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.toml");
    let path = file.to_str().unwrap();
    for (theirs, ours, suggestion) in [
        ("max_streams = 4\nmax_concurent_tests = 2\n", "streams = 4\ndurration = \"5s\"\n", true),
        ("max_streams = 4\nmax_concurrent_tests = \"many\"\n", "streams = 4\nduration = \"soon\"\n", false),
        ("max_streams = 4\nmode tunneled\n", "streams = 4\nduration 5\n", false),
    ] {
        fs::write(&file, theirs).unwrap();
        for command in [&["serve"][..], &["config", "check"], &["config", "show"]] {
            let lines = Reflector::idle(&[]).fails(&[command, &["--config", path]].concat(), 2).join("\n");
            assert!(lines.contains(&format!("{path}:2: ")), "{lines}");
            assert!(!suggestion || lines.contains("did you mean \"max_concurrent_tests\""), "{lines}");
        }
        fs::write(&file, ours).unwrap();
        let error = Appliance::new().fails(&["--config", path, "speed-test"], 2, "bad_config").error;
        assert!(error.because.contains(&format!("{path}:2: ")), "{error:?}");
        assert!(!suggestion || error.because.contains("did you mean \"duration\""), "{error:?}");
    }
    // A missing file that was given with --config is an error.
    fs::remove_file(&file).unwrap();
    let lines = Reflector::idle(&[]).fails(&["serve", "--config", path], 2);
    assert!(lines.concat().contains(path), "{lines:?}");
    Appliance::new().fails(&["--config", path, "speed-test"], 2, "bad_config");
}

#[test]
fn an_invalid_environment_variable_is_named() {
    let lines = Reflector::idle(&[("MAX_STREAMS", "65")]).fails(&["serve"], 2);
    assert!(lines.concat().contains("REFLECTOR_MAX_STREAMS"), "{lines:?}");
    let appliance = Appliance::new();
    let mut command = appliance.command(&["speed-test", "--json"]);
    let outcome = lab::Outcome::from(command.env("PACKETPARAMEDIC_STREAMS", "65").output().unwrap());
    let error = outcome.error().error;
    assert_eq!((outcome.code, error.code.as_str()), (2, "bad_config"), "{outcome:?}");
    assert!(error.because.contains("PACKETPARAMEDIC_STREAMS"), "{outcome:?}");
}

#[test]
fn a_second_reflector_with_the_same_state_folder_does_not_start() {
    let first = Reflector::serve(&[]);
    let state = first.state();
    let lines = Reflector::idle(&[]).fails(&["serve", "--state-dir", state.to_str().unwrap()], 1).concat();
    assert!(lines.contains("another reflector is running") && lines.contains(state.to_str().unwrap()), "{lines}");
    let lines = Reflector::idle(&[]).fails(&["serve", "--listen", first.address()], 1).concat();
    let (_, port) = first.address().rsplit_once(':').unwrap();
    assert!(lines.contains(&format!("another program uses port {port} on 127.0.0.1")), "{lines}");
    assert_eq!(first.must(&["health"]), "serving");
}

/// Returns the path and the content of every file in a folder.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

fn the_database_of(state: &Path) -> PathBuf {
    let is_database = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "db");
    let found = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path()).find(is_database);
    found.unwrap_or_else(|| panic!("no database in {}", state.display()))
}

/// Overwrites a file with invalid bytes. Unless `all_of_it` is set, keeps the first pages of a database, which hold its
/// schema and its migrations.
fn spoil(path: &Path, all_of_it: bool) {
    let mut bytes = fs::read(path).unwrap();
    let from = if all_of_it { 0 } else { 4 * 4096 };
    bytes[from..].fill(b'?');
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_database_is_reported_and_not_changed() {
    for all_of_it in [true, false] {
        let mut reflector = Reflector::serve(&[]);
        let appliance = Appliance::new().pair(&reflector, reflector.address());
        let served = appliance.speed_test(SHORT);
        assert_eq!(served.code, 0, "{served:?}");
        // After a clean exit there is no write-ahead log.
        reflector.process().signal(rustix::process::Signal::TERM);
        reflector.process().wait(std::time::Duration::from_secs(30)).unwrap();

        let database = the_database_of(&reflector.state());
        spoil(&database, all_of_it);
        let before = contents(&reflector.state());
        let lines = reflector.fails(&["serve"], 1);
        assert!(lines.concat().contains(database.to_str().unwrap()), "{lines:?}");
        let after = contents(&reflector.state());
        let names = |all: &[(PathBuf, Vec<u8>)]| all.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before), "nothing was left behind");
        assert!(after == before, "nothing was overwritten");

        let database = the_database_of(&appliance.state());
        spoil(&database, all_of_it);
        let before = fs::read(&database).unwrap();
        for command in [&["speed-test"][..], &["history"], &["reflectors"]] {
            let document = appliance.fails(command, 1, "history_corrupt");
            assert!(format!("{document:?}").contains(database.to_str().unwrap()), "{document:?}");
        }
        assert!(fs::read(&database).unwrap() == before, "nothing was overwritten");
    }
}

#[test]
fn a_corrupt_or_readable_key_file_is_refused_and_not_changed() {
    let reflector = Reflector::idle(&[]);
    let appliance = Appliance::new();
    let (_, _) = (reflector.id(), appliance.id());
    let (theirs, ours) = (reflector.state().join("identity.key"), appliance.state().join("identity.key"));
    for file in [&theirs, &ours] {
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let both_refuse = |exit: i32, code: &str| {
        let before = [fs::read(&theirs).unwrap(), fs::read(&ours).unwrap()];
        for command in ["serve", "show-id"] {
            let lines = reflector.fails(&[command], exit);
            assert!(lines.concat().contains(theirs.to_str().unwrap()), "{lines:?}");
        }
        let document = appliance.fails(&["speed-test"], exit, code);
        assert!(format!("{document:?}").contains(ours.to_str().unwrap()), "{document:?}");
        let show_id = appliance.run(&["show-id"]);
        assert_eq!((show_id.code, show_id.stdout.as_str()), (exit, ""), "{show_id:?}");
        show_id.three_lines();
        assert_eq!([fs::read(&theirs).unwrap(), fs::read(&ours).unwrap()], before, "nothing was overwritten");
    };
    both_refuse(2, "key_exposed");
    for file in [&theirs, &ours] {
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        fs::write(file, "this was a key once\n").unwrap();
    }
    both_refuse(1, "key_corrupt");
    for file in [&theirs, &ours] {
        fs::write(file, "").unwrap();
    }
    both_refuse(1, "key_corrupt");
}

#[test]
fn a_reflector_with_a_full_disk_grants_nothing_until_there_is_space() {
    let Some(reflector) = Reflector::serve_on_a_tiny_disk(&[]) else { return };
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let before = appliance.speed_test(SHORT);
    assert_eq!(before.code, 0, "{before:?}\n{}", reflector.log());

    let filling = fill(&reflector.disk());
    // A few grants may still fit into the last pages of the files.
    let outcomes = (0..20).map(|_| appliance.speed_test(SHORT).code).take_while(|code| {
        assert!([0, 5].contains(code), "{code}\n{}", reflector.log());
        reflector.status()["state"] != "faulted"
    });
    assert!(outcomes.count() < 20, "{}", reflector.log());
    let granted = reflector.audited("session_granted").len();
    let document = appliance.fails(&[&["speed-test"], SHORT].concat(), 5, "reflector_faulted");
    assert!(document.error.retry_after_ms.unwrap() > 0, "{document:?}");
    let status = reflector.status();
    assert_eq!(status["state"], "faulted", "{status:#}");
    assert!(!status["problems"].as_array().unwrap().is_empty(), "{status:#}");
    let health = reflector.fails(&["health"], 1);
    assert!(health[0].contains("faulted"), "{health:?}");
    assert_eq!(reflector.audited("session_granted").len(), granted);

    fs::remove_file(filling).unwrap();
    reflector.await_log("can be written again");
    let after = appliance.speed_test(SHORT);
    assert_eq!(after.code, 0, "{after:?}\n{}", reflector.log());
    assert_eq!(reflector.status()["state"], "serving");
    assert_eq!(reflector.must(&["health"]), "serving");
    reflector.must(&["audit", "verify"]);
}

#[test]
fn a_disk_that_fills_up_during_a_test_ends_the_test_and_loses_nothing() {
    // A quota of which the test uses a sixteenth within seconds, but not all.
    let day = [("MAX_BYTES_PER_DAY", "1GB")];
    let Some(reflector) = Reflector::serve_on_a_tiny_disk(&day) else { return };
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test = ["speed-test", "--json-stream", "-t", "60", "--idle", "0.3", "--download", "-b", "100M"];
    let mut running = appliance.start(&test);
    let patience = std::time::Duration::from_secs(60);
    while !running.line(patience).unwrap().contains("\"interval\"") {}
    let filling = fill(&reflector.disk());
    // No byte flows without a lease on disk.
    assert_eq!(running.wait(patience).unwrap().code(), Some(1));
    let rest = running.rest(patience).unwrap();
    let error = serde_json::from_str::<Value>(rest.last().unwrap()).unwrap();
    assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"session_ended".into()), "{error:#}");
    assert!(error["measured_so_far"]["download"].is_object(), "{error:#}");
    fs::remove_file(filling).unwrap();
    reflector.await_audited("session_ended", |line| line["reason"] == "failed");
    let again = appliance.speed_test(&[SHORT, &["-b", "1M"]].concat());
    assert_eq!(again.code, 0, "{again:?}\n{}", reflector.log());
    reflector.must(&["audit", "verify"]);
}

#[test]
fn an_appliance_whose_disk_fills_up_during_a_test_prints_the_result_and_reports_that_it_is_not_saved() {
    let reflector = Reflector::serve(&[]);
    let paired = Appliance::new().pair(&reflector, reflector.address());
    let state = paired.state();
    let Some(appliance) = paired.on_a_tiny_disk() else { return };
    for (format, told) in [("--json", true), ("--quiet", false)] {
        let seen = reflector.audited("session_granted").len();
        let mut command = appliance.command(&["speed-test", format, "-t", "6", "--idle", "0.3", "--download"]);
        let running =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        reflector.await_audited("session_granted", |_| reflector.audited("session_granted").len() > seen);
        fill(&PathBuf::from(format!("/proc/{}/root", running.id())).join(state.strip_prefix("/").unwrap()));
        let outcome = lab::Outcome::from(running.wait_with_output().unwrap());
        assert_eq!(outcome.code, 1, "{outcome:?}");
        if told {
            assert!(outcome.result().complete, "{outcome:?}");
        } else {
            assert!(outcome.stdout.contains("bit/s"), "{outcome:?}");
        }
        let [what, because, _] = outcome.three_lines();
        assert_eq!(what, "the result is not saved");
        assert!(because.contains("the disk is full"), "{because}");
    }
}

#[test]
fn an_appliance_with_a_full_disk_reports_it() {
    let Some(appliance) = Appliance::new().on_a_tiny_disk() else { return };
    // The content of the folder is copied to the small file system, and this file nearly fills it.
    fs::create_dir_all(appliance.state()).unwrap();
    fs::write(appliance.state().join("what-else-is-on-the-disk"), vec![b'x'; 2 * 1024 * 1024 - 4096]).unwrap();
    let document = appliance.fails(&["speed-test"], 1, "disk_full");
    assert!(document.error.try_.contains(appliance.state().to_str().unwrap()), "{document:?}");
}
