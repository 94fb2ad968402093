//! Tests the uplink of a device: each result names it, and a schedule for another uplink does not run.

use lab::{Appliance, Device, Reflector};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// Returns the interface of this host's default route, as the kernel lists it; `None` without a default route.
fn default_interface() -> Option<String> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap();
    let default = |line: &str| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        (fields[1] == "00000000" && fields[7] == "00000000").then(|| (fields[6].to_owned(), fields[0].to_owned()))
    };
    routes.lines().skip(1).filter_map(default).min().map(|(_, interface)| interface)
}

#[test]
fn a_result_has_its_uplink_and_a_schedule_runs_only_over_its_own() {
    let reflector = Reflector::serve(&[]);
    let device = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    let short = ["-t", "0.3", "--idle", "0.1", "-b", "5M", "-P", "1"];
    let measured = device.json(&[&["speed-test"], &short[..]].concat());
    assert_eq!(measured["uplink"]["public_prefix"], "127.0.0.0/24");
    assert_eq!(measured["uplink"]["interface"].as_str().map(str::to_owned), default_interface());

    let when = ["--every", "5h", "--missed", "once", "--spread", "0", "--busy-share", "off", "--yes"];
    let add = |name: &str, uplinks: &[&str]| {
        device.must(&[&["schedule", "add", "--name", name], &when[..], &short, uplinks].concat());
    };
    add("any", &[]);
    add("other", &["--uplink", "elsewhere0,elsewhere1"]);
    // Both were due a day ago, and make up for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(device.database());
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let earlier = "UPDATE schedules SET added_at_us = added_at_us - 86400000000, \
                       decided_until_us = decided_until_us - 86400000000";
        sqlx::query(earlier).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
    let _service = device.serve();
    let ended = |name: &str| {
        let runs = device.await_json(&["schedule", "runs", name], |runs| {
            runs.as_array().is_some_and(|runs| !runs.is_empty()) && runs[0]["outcome"] != "running"
        });
        runs[0].clone()
    };
    let (any, other) = (ended("any"), ended("other"));
    assert_eq!(any["outcome"], "done", "{any:#}\n{}", device.log());
    assert_eq!((&other["outcome"], &other["reason"]), (&"skipped".into(), &"uplink".into()), "{other:#}");
    assert!(device.must(&["schedule", "list"]).contains("only over elsewhere0 or elsewhere1"));
}
