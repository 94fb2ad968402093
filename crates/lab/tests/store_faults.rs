//! Tests the appliance's store while another program has locked it, on a read-only file system, and on a full disk.
//! Every command names the cause, and nothing is lost.

use std::fs;

use lab::{Appliance, Device, fill};
use serde_json::Value;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const UNREACHABLE: [&str; 7] = ["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1:9", "-t", "1"];
/// The content of a configuration file for `apply`, with a schedule that needs no reflector.
const FILE: &str = "[[schedule]]\nname = \"nightly\"\nevery = \"1d\"\nprovider = \"iperf3\"\npeer = \"127.0.0.1:9\"\n";

/// Creates a device with one saved result, and returns it with the id of the result.
fn with_a_result() -> (Device, String) {
    let device = Device::new(Appliance::new());
    assert_eq!(device.run(&UNREACHABLE).code, 1);
    let id = device.json(&["history"])[0]["id"].as_str().unwrap().to_owned();
    (device, id)
}

/// Asserts that each of these commands fails with this exit code, and that the cause in its error contains `said`.
fn fail(device: &Device, commands: &[&[&str]], exit: i32, said: &str) {
    for command in commands {
        let refused = device.run(command);
        assert_eq!(refused.code, exit, "{command:?}: {refused:?}\n{}", device.log());
        assert!(refused.three_lines()[1].contains(said), "{command:?}: {refused:?}");
    }
}

#[test]
fn a_database_that_another_program_has_locked_for_long_is_named_and_used_again_afterwards() {
    let (device, id) = with_a_result();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device.toml");
    fs::write(&file, FILE).unwrap();
    let apply = ["apply", file.to_str().unwrap()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = SqliteConnectOptions::new().filename(device.database());
    let mut connection = runtime.block_on(SqliteConnection::connect_with(&options)).unwrap();
    let mut execute = |sql: &'static str| {
        runtime.block_on(async { sqlx::query(sql).execute(&mut connection).await.unwrap() });
    };
    execute("BEGIN IMMEDIATE");
    fail(&device, &[&["serve"]], 5, "another program has locked the database");
    // Readers do not wait for a writer.
    assert_eq!(device.json(&["history"])[0]["id"], id.as_str());
    device.must(&["store", "check"]);
    execute("ROLLBACK");
    let _service = device.serve();
    execute("BEGIN IMMEDIATE");
    fail(&device, &[&["history", "delete", &id], &apply], 5, "another program has locked the database");
    execute("ROLLBACK");
    assert_eq!(device.json(&["history"])[0]["id"], id.as_str(), "nothing was lost");
    assert_eq!(device.json(&["schedule", "list"]), serde_json::json!([]));
    device.must(&apply);
    device.await_json(&["status"], |status| status["state"] == "running");
    assert_eq!(device.must(&["history", "delete", &id]), format!("deleted: {id}\n"));
}

#[test]
fn a_database_that_cannot_be_written_is_read_and_every_change_is_refused() {
    let (device, id) = with_a_result();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device.toml");
    fs::write(&file, FILE).unwrap();
    let Some(appliance) = device.appliance.with_read_only_state() else { return };
    let device = Device { appliance, runtime: device.runtime };
    let changes: [&[&str]; 4] = [
        &["history", "delete", &id],
        &["history", "prune", "--older-than", "1d"],
        &["store", "prune"],
        &["apply", file.to_str().unwrap()],
    ];
    for change in changes {
        device.appliance.fails(change, 2, "state_dir_unusable");
    }
    let served = device.run(&["serve"]);
    assert_eq!((served.code, served.three_lines()[0]), (2, "cannot use the state folder"), "{served:?}");
    assert_eq!(device.json(&["history", "list", "--since", "1d"])[0]["id"], id.as_str());
    device.must(&["store", "check"]);
    device.must(&["export-config"]);
    let backup = folder.path().join("backup.db");
    assert_eq!(device.json(&["store", "backup", backup.to_str().unwrap()])["results"], 1);
}

#[test]
fn a_service_whose_disk_is_full_refuses_each_change_and_accepts_it_once_there_is_space() {
    let (older, id) = with_a_result();
    let (device, own) = with_a_result();
    let state = device.appliance.state();
    let Some(appliance) = device.appliance.on_a_tiny_disk() else { return };
    let device = Device { appliance, runtime: device.runtime };
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup.db");
    let backup = ["store", "backup", backup.to_str().unwrap()];
    let older_state = older.appliance.state();
    let import = ["history", "import", "--from", older_state.to_str().unwrap()];
    let service = device.serve();
    let filling = fill(&service.sees(&state));
    // A small change may still fit into the last pages of the files.
    let imported = device.run(&import);
    assert!(imported.code == 0 || imported.three_lines()[1].contains("the disk is full"), "{imported:?}");
    fail(&device, &[&backup], 1, "the disk is full");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no part of a backup is left");
    fs::remove_file(filling).unwrap();
    let copies = fs::read_dir(service.sees(&state)).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(copies.into_iter().all(|name| !name.to_string_lossy().contains("copy")));
    device.must(&import);
    assert_eq!(device.json(&backup)["results"], 2);
    let listed = device.json(&["history"]);
    let ids = listed.as_array().unwrap().iter().map(|run| run["id"].clone()).collect::<Vec<Value>>();
    assert!(ids.contains(&id.into()) && ids.contains(&own.into()), "{listed:#}");
}
