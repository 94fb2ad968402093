//! Tests a state folder that is not writable, or that does not exist. The appliance still shows saved results and
//! measures with `--no-save`, but starts no test whose result it cannot save.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use lab::{Appliance, Reflector, loopback};
use paramedic_link::EndpointId;
use serde_json::Value;

const SHORT: &[&str] = &["-t", "0.3", "--idle", "0.1", "--download"];

/// Lists the files in a folder, each with its size and the time of its last change. Leaves out the index of the
/// database's write-ahead log, which holds no data and which readers also update (sqlite.org/walformat.html).
fn listing(folder: &Path) -> Vec<(PathBuf, u64, (i64, i64))> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let about = |path: PathBuf| {
        let about = fs::symlink_metadata(&path).unwrap();
        (path, about.len(), (about.mtime(), about.mtime_nsec()))
    };
    let is_data = |path: &PathBuf| !path.to_string_lossy().ends_with("-shm");
    let mut listing = entries.filter(is_data).map(about).collect::<Vec<_>>();
    listing.sort();
    listing
}

/// Checks what a paired appliance with one saved result can do once its state folder cannot be written.
fn reads_and_measures(make_unwritable: fn(Appliance) -> Option<Appliance>) {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let saved = appliance.speed_test(SHORT);
    assert_eq!(saved.code, 0, "{saved:?}");
    let (saved, own_id) = (saved.json(), appliance.id());
    let Some(appliance) = make_unwritable(appliance) else { return };
    let before = listing(&appliance.state());

    let must = |args: &[&str]| {
        let outcome = appliance.run(args);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}: {outcome:?}");
        outcome.stdout
    };
    let id = saved["id"].as_str().unwrap();
    assert!(must(&["history"]).contains(&id[24..]));
    assert_eq!(serde_json::from_str::<Value>(&must(&["history", "show", id, "--json"])).unwrap(), saved);
    assert!(must(&["history", "export", "--format", "csv"]).contains(id));
    assert!(must(&["reflectors", "list"]).contains(&reflector.id()));
    assert!(must(&["reflectors", "check"]).contains("reachable"));
    assert_eq!(must(&["show-id"]).trim(), own_id);

    let measured = appliance.speed_test(&[SHORT, &["--no-save"]].concat());
    assert_eq!((measured.code, measured.stderr.as_str()), (0, ""), "{measured:?}");
    let measured = measured.json();
    assert_eq!((&measured["complete"], &measured["appliance"]["endpoint_id"]), (&true.into(), &own_id.into()));

    // Nothing is loaded for a result that would be lost.
    let granted = reflector.audited("session_granted").len();
    let refused = appliance.fails(&[&["speed-test"], SHORT].concat(), 2, "state_dir_unusable").error;
    assert!(refused.try_.contains("--no-save") && refused.what.contains("not begun"), "{refused:?}");
    appliance.fails(&["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1"], 2, "state_dir_unusable");
    appliance.fails(&["reflectors", "remove", &reflector.id()], 2, "state_dir_unusable");
    assert_eq!(reflector.audited("session_granted").len(), granted);
    assert_eq!(listing(&appliance.state()), before, "nothing was changed");
}

#[test]
fn in_a_read_only_mount_results_are_read_and_no_save_measures() {
    reads_and_measures(Appliance::with_read_only_state);
}

#[test]
fn without_write_access_results_are_read_and_no_save_measures() {
    reads_and_measures(Appliance::run_by_nobody_without_write_access);
}

#[test]
fn a_log_beside_the_database_does_not_make_an_unwritable_folder_writable() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let Some(appliance) = appliance.run_by_nobody_without_write_access() else { return };
    // Such as a killed process leaves them, and such as another user could have written.
    for (mode, is_read) in [(0o644, true), (0o666, false)] {
        for end in ["-wal", "-shm"] {
            let file = appliance.state().join(format!("packetparamedic.db{end}"));
            // The appliance may have left a log that has data.
            fs::OpenOptions::new().create(true).append(true).open(&file).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        appliance.fails(&["reflectors", "remove", &reflector.id()], 2, "state_dir_unusable");
        let listed = appliance.run(&["reflectors", "list"]);
        let names_it = listed.code == 0 && listed.stdout.contains(&reflector.id());
        assert_eq!((names_it, listed.code), (is_read, if is_read { 0 } else { 2 }), "{mode:o}: {listed:?}");
    }
}

#[test]
fn no_save_changes_nothing_in_a_folder_that_can_be_written() {
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let before = listing(&appliance.state());
    for _ in 0..2 {
        let outcome = appliance.speed_test(&[SHORT, &["--no-save"]].concat());
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    assert_eq!(listing(&appliance.state()), before);
    assert_eq!(appliance.run(&["history", "--json"]).json(), Value::Array(vec![]));
}

#[test]
fn no_save_uses_no_folder_and_no_database_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a folder away");
        return;
    }
    const NOBODY: u32 = 65_534;
    let reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let state = appliance.state();
    // The key stays root's: another user who owns the folder could not read it, but could replace it.
    chown(&state, Some(NOBODY), None).unwrap();
    let with_saving = appliance.fails(&[&["speed-test"], SHORT].concat(), 2, "state_dir_foreign").error;
    let without = appliance.fails(&[&["speed-test", "--no-save"], SHORT].concat(), 2, "state_dir_foreign").error;
    assert!(without.because.contains("65534") && without.because == with_saving.because, "{without:?}");
    chown(&state, Some(0), None).unwrap();
    chown(state.join("packetparamedic.db"), Some(NOBODY), None).unwrap();
    let refused = appliance.fails(&[&["speed-test", "--no-save"], SHORT].concat(), 2, "state_dir_unusable").error;
    assert!(refused.because.contains("another user"), "{refused:?}");
    // A user who can write the folder cannot write the database, but can add SQLite's log to it.
    chown(state.join("packetparamedic.db"), Some(0), None).unwrap();
    for open_to in [0o1777, 0o775] {
        fs::set_permissions(&state, fs::Permissions::from_mode(open_to)).unwrap();
        let refused = appliance.fails(&[&["speed-test", "--no-save"], SHORT].concat(), 2, "state_dir_unusable").error;
        assert!(refused.because.contains("another user"), "{open_to:o}: {refused:?}");
    }
    assert!(reflector.audited("session_granted").is_empty());
}

#[test]
fn an_iperf3_server_is_measured_without_a_state_folder() {
    let at = loopback::address().to_string();
    let mut command = std::process::Command::new("iperf3");
    command.args(["-s", "-B", &at, "-p", "5201", "--forceflush"]);
    let server = lab::Running::start(command, std::process::Stdio::inherit()).unwrap();
    while !server.line(std::time::Duration::from_secs(30)).unwrap().contains("listening") {}
    let folder = tempfile::tempdir().unwrap();
    let nowhere = [PathBuf::from("/proc/packetparamedic"), folder.path().join("absent")];
    for state in &nowhere {
        let request = ["--state-dir", state.to_str().unwrap(), "speed-test", "--json", "--no-save"];
        let request = [&request[..], &["--provider", "iperf3", "--peer", &at, "-t", "1", "--download"]].concat();
        let outcome = Appliance::new().run(&request);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
        let result = outcome.result();
        assert!(result.complete && result.appliance.anonymous, "{result:#?}");
        assert_eq!(result.appliance.endpoint_id, EndpointId::NONE);
        assert!(!state.exists());
    }
    // A reflector knows this device by its key alone.
    let state = nowhere[1].to_str().unwrap();
    Appliance::new().fails(&["--state-dir", state, "speed-test", "--no-save"], 4, "not_paired");
}
