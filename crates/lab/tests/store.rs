//! The appliance's store with the real program: lists, deletion, retention; through the service and without it.

use std::time::Duration;

use lab::{Appliance, Device};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const PATIENCE: Duration = Duration::from_secs(60);
const DAY_US: i64 = 86_400_000_000;

/// Executes statements on the database of a device.
fn execute(device: &Device, statements: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(device.database());
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        for statement in statements {
            sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    });
}

/// A device with the results of `ages`, in days before now, which are failed runs against the peer `attic`.
fn with_results(ages: &[i64]) -> Device {
    let device = Device::new(Appliance::new());
    let unreachable = ["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1:9", "-t", "1"];
    for age in ages {
        assert_eq!(device.run(&unreachable).code, 1);
        let dated = format!(
            "UPDATE runs SET started_at_us = started_at_us - {}, peer = 'attic' WHERE peer IS NOT 'attic'",
            age * DAY_US
        );
        execute(&device, &[dated]);
    }
    device
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn results_are_listed_by_time_and_deleted_with_and_without_the_service() {
    let device = with_results(&[500, 40, 3, 0]);
    let all = ids(&device.json(&["history", "list"]));
    let [today, recent, month, old] = &all[..] else { panic!("{all:?}") };
    let lists = [
        (&["--since", "7d"][..], vec![today, recent]),
        (&["--until", "7d"], vec![month, old]),
        (&["--since", "50d", "--until", "1d", "--peer", "ATTIC"], vec![recent, month]),
        (&["-n", "1"], vec![today]),
        (&["--peer", "elsewhere"], vec![]),
    ];
    let look = || {
        for (options, expected) in &lists {
            let args = [&["history", "list"], *options].concat();
            assert_eq!(ids(&device.json(&args)).iter().collect::<Vec<_>>(), *expected, "{args:?}");
            let lines = device.must(&[&args[..], &["--format", "jsonl"]].concat());
            let of_lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
            assert_eq!(ids(&Value::Array(of_lines)).iter().collect::<Vec<_>>(), *expected, "{lines}");
            let table = device.must(&[&args[..], &["--format", "csv"]].concat());
            let of_table = table.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect::<Vec<_>>();
            assert_eq!(of_table, *expected, "{table}");
            let text = device.must(&args);
            assert_eq!(text.lines().count(), if expected.is_empty() { 0 } else { expected.len() + 1 }, "{text}");
        }
        let exported = device.must(&["history", "export", "--until", "7d"]);
        let exported = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        assert_eq!(ids(&Value::Array(exported)), [old.as_str(), month], "oldest first");
    };
    look();
    let mut command = device.command(&["serve"]);
    command.env("PACKETPARAMEDIC_KEEP_RESULTS", "forever");
    let mut service = device.serve_with(command);
    look();
    // The same refusals from both.
    let refusals = || {
        let unknown = device.run(&["history", "delete", today, "ffffffff"]);
        assert_eq!((unknown.code, unknown.three_lines()[0]), (1, "no such run"), "{unknown:?}");
        let usage = device.run(&["history", "prune", "--older-than", "90"]);
        assert_eq!(usage.code, 2, "{usage:?}");
        assert_eq!(device.run(&["history", "list", "--since", "yesterday"]).code, 2);
        assert_eq!(ids(&device.json(&["history", "list"])), all, "nothing was deleted");
    };
    refusals();
    let counted = device.json(&["history", "prune", "--older-than", "30d", "--dry-run"]);
    assert_eq!((&counted["results"], ids(&device.json(&["history"]))), (&2.into(), all.clone()));
    assert_eq!(device.must(&["history", "delete", recent]), format!("deleted: {recent}\n"));
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    assert_eq!(device.json(&["history", "prune", "--older-than", "450d"])["results"], 1);
    assert_eq!(ids(&device.json(&["history"])), [today.as_str(), month]);
    assert_eq!(device.json(&["history", "delete", today, month])["results"].as_array().unwrap().len(), 2);
    assert_eq!(device.json(&["history"]), serde_json::json!([]));
}

#[test]
fn the_service_deletes_old_results_and_a_clock_that_is_ahead_deletes_none_early() {
    // In the second case the clock is two years ahead: to the program, the latest result is two years old.
    for ahead in [0, 730] {
        let device = with_results(&[500, 3]);
        let all = ids(&device.json(&["history"]));
        execute(&device, &[format!("UPDATE runs SET started_at_us = started_at_us - {}", ahead * DAY_US)]);
        let _service = device.serve();
        let left = device.await_json(&["history"], |list| list.as_array().unwrap().len() < 2);
        assert_eq!(ids(&left), all[..1], "{}", device.log());
    }
}
