//! Tests the appliance's store with the real program: lists, deletion and retention, through the service and without
//! it.

use std::time::Duration;

use lab::{Appliance, Device, Reflector};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use test_postgres::{OWNER, TestServer};

const PATIENCE: Duration = Duration::from_secs(60);
const DAY_US: i64 = 86_400_000_000;

/// A device, and the name of its PostgreSQL database; `None` if it uses a SQLite file.
struct Place {
    device: Device,
    database: Option<String>,
}

impl std::ops::Deref for Place {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

impl Place {
    /// Creates a device whose database is a SQLite file.
    fn with_file() -> Self {
        Self { device: Device::new(Appliance::new()), database: None }
    }

    /// Creates a device with an empty database for each database engine; without PostgreSQL, only for SQLite.
    fn each() -> Vec<Self> {
        let on_server = TestServer::shared().map(|server| {
            let database = server.create_database();
            let appliance = Appliance::new().on_database(server.url(OWNER, &database));
            Self { device: Device::new(appliance), database: Some(database) }
        });
        [Self::with_file()].into_iter().chain(on_server).collect()
    }

    /// Executes an SQL statement on the device's database.
    fn execute(&self, statement: &str) {
        if let Some(database) = &self.database {
            TestServer::shared().unwrap().psql(database, statement);
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(self.device.database());
            let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }

    /// Adds one result for each of `ages`, which are in days before now. The results are failed runs against the peer
    /// `attic`.
    fn with_results(self, ages: &[i64]) -> Self {
        let unreachable = ["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1:9", "-t", "1"];
        for age in ages {
            let failed = self.run(&unreachable);
            assert_eq!(failed.code, 1, "{failed:?}");
            self.execute(&format!(
                "UPDATE runs SET started_at_us = started_at_us - {}, peer = 'attic' \
                 WHERE peer IS DISTINCT FROM 'attic'",
                age * DAY_US
            ));
        }
        self
    }
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn results_are_listed_by_time_and_deleted_with_and_without_the_service() {
    for place in Place::each() {
        lists_and_deletes(&place.with_results(&[500, 40, 3, 0]));
    }
}

fn lists_and_deletes(device: &Place) {
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
        for place in Place::each() {
            let device = place.with_results(&[500, 3]);
            let all = ids(&device.json(&["history"]));
            device.execute(&format!("UPDATE runs SET started_at_us = started_at_us - {}", ahead * DAY_US));
            let _service = device.serve();
            let left = device.await_json(&["history"], |list| list.as_array().unwrap().len() < 2);
            assert_eq!(ids(&left), all[..1], "{}", device.log());
        }
    }
}

#[test]
fn a_backup_is_whole_and_restores_what_was_saved_with_and_without_the_service() {
    let device = Place::with_file().with_results(&[3, 0]);
    let list = device.json(&["history"]);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.db"), folder.path().join("second.db"));
    let [first_name, second_name] = [&first, &second].map(|file| file.to_str().unwrap());
    let alone = device.json(&["store", "backup", first_name]);
    assert_eq!((&alone["results"], &alone["problems"]), (&2.into(), &serde_json::json!([])));
    let _service = device.serve();
    assert_eq!(device.run(&["speed-test", "--provider", "iperf3", "--peer", "127.0.0.1:9"]).code, 1);
    let served = device.json(&["store", "backup", second_name]);
    assert_eq!(served["results"], 3, "the last row is in it");
    assert!(device.must(&["store", "check"]).contains(": whole, "));
    for name in [first_name, "/proc/backup.db"] {
        let refused = device.run(&["store", "backup", name]);
        assert_eq!((refused.code, refused.three_lines()[0]), (2, "the backup was not made"), "{refused:?}");
    }
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 2, "nothing else is left");
    let copies = std::fs::read_dir(device.appliance.state()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(copies.into_iter().all(|name| !name.to_string_lossy().contains("copy")));

    let restored = Device::new(Appliance::new());
    restored.must(&["show-id"]);
    std::fs::copy(&first, restored.database()).unwrap();
    assert_eq!(restored.json(&["history"]), list);
}

#[test]
fn what_is_older_than_the_settings_allow_is_pruned_on_request() {
    for place in Place::each() {
        let device = place.with_results(&[500, 3]);
        let counted = device.json(&["store", "prune", "--dry-run"]);
        assert_eq!((&counted["results"], device.json(&["history"]).as_array().unwrap().len()), (&1.into(), 2));
        let mut command = device.command(&["store", "prune", "--json"]);
        command.env("PACKETPARAMEDIC_KEEP_RESULTS", "600d");
        let kept = lab::Outcome::from(command.output().unwrap()).json();
        assert_eq!(kept["results"], 0);
        let mut command = device.command(&["serve"]);
        command.env("PACKETPARAMEDIC_KEEP_RESULTS", "forever");
        let _service = device.serve_with(command);
        // The settings of the service count, not those of its client.
        assert_eq!(device.json(&["store", "prune"])["results"], 0);
        assert!(device.must(&["store", "check"]).contains(": whole, "));
    }
}

#[test]
fn a_damaged_and_a_newer_database_are_named_and_not_changed() {
    let device = Place::with_file().with_results(&[0]);
    let whole = std::fs::read(device.database()).unwrap();
    let unchanged = |args: &[&str], exit: i32, said: &str| {
        let before = std::fs::read(device.database()).unwrap();
        let refused = device.run(args);
        assert_eq!(refused.code, exit, "{refused:?}");
        assert!(refused.three_lines().concat().contains(said), "{refused:?}");
        assert!(std::fs::read(device.database()).unwrap() == before);
    };
    let mut damaged = whole.clone();
    damaged[4 * 4096..].fill(b'?');
    std::fs::write(device.database(), &damaged).unwrap();
    let backup = tempfile::tempdir().unwrap();
    let file = backup.path().join("backup.db");
    for args in [&["store", "check"][..], &["store", "backup", file.to_str().unwrap()], &["history"], &["serve"]] {
        unchanged(args, 1, "damaged");
    }
    assert_eq!(std::fs::read_dir(backup.path()).unwrap().count(), 0);
    std::fs::write(device.database(), &whole).unwrap();
    device.must(&["store", "check"]);
    device.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'later', TRUE, x'00', 0)",
    );
    for args in [&["store", "check"][..], &["store", "prune"], &["history", "delete", "0"], &["serve"]] {
        unchanged(args, 2, "newer version");
    }
}

#[test]
fn an_older_store_of_this_machine_is_given_to_the_service() {
    let reflector = Reflector::serve(&[]);
    let mut older = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    older.must(&["speed-test", "-t", "0.3", "--idle", "0.1", "-b", "5M", "-P", "1"]);
    let (id, results) = (older.appliance.id(), ids(&older.json(&["history"])));
    let folder = older.appliance.state();
    let folder = folder.to_str().unwrap();
    // The folder is not to be changed: a copy of all its files is compared.
    let contents = || {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect::<std::collections::BTreeMap<_, _>>()
    };

    let mut places = Place::each();
    for device in &places {
        let mut service = device.serve();
        // Not once for all: the commands of the older device may change its files.
        let before = contents();
        for is_first in [true, false] {
            let pairings = device.json(&["reflectors", "import", "--from", folder]);
            assert_eq!(pairings["endpoint_id"], id.as_str(), "{pairings:#}");
            assert_eq!(
                (&pairings["is_new_identity"], &pairings["known"]),
                (&is_first.into(), &u64::from(!is_first).into())
            );
            let imported = device.json(&["history", "import", "--from", folder]);
            let counts = [&imported["results"], &imported["known"]].map(|count| count.as_u64().unwrap());
            assert_eq!(counts, if is_first { [1, 0] } else { [0, 1] }, "{imported:#}");
        }
        assert!(contents() == before);
        assert_eq!(ids(&device.json(&["history"])), results);
        let [theirs, ours] =
            [&older, &device.device].map(|device| device.must(&["history", "show", &results[0], "--json"]));
        assert_eq!(theirs, ours, "to the byte");
        assert_eq!(device.json(&["status"])["endpoint_id"], id.as_str());
        // The service has the identity that the reflector knows.
        device.must(&["speed-test", "-t", "0.3", "--idle", "0.1", "-b", "5M", "-P", "1"]);
        assert_eq!(device.json(&["history"])[0]["endpoint_id"], device.json(&["reflectors"])[0]["endpoint_id"]);
        service.signal(Signal::TERM);
        assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    }
    let device = places.remove(0);

    // A device that is paired keeps its identity.
    older = Device::new(Appliance::new());
    older.must(&["show-id"]);
    older.must(&["history"]);
    let folder = older.appliance.state();
    let refused = device.run(&["reflectors", "import", "--from", folder.to_str().unwrap()]);
    assert_eq!((refused.code, refused.three_lines()[0]), (2, "the older identity is not imported"), "{refused:?}");
    assert_eq!(device.appliance.id(), id);
    let nothing = device.run(&["history", "import", "--from", "/nonexistent"]);
    assert_eq!((nothing.code, nothing.three_lines()[0]), (2, "cannot read the older store"), "{nothing:?}");
}

#[test]
fn a_file_makes_every_kind_of_object_with_and_without_the_service() {
    let reflector = Reflector::serve(&[]);
    let device = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    let id = device.json(&["reflectors"])[0]["endpoint_id"].as_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device.toml");
    let path = file.to_str().unwrap();
    let apply = |text: &str, options: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let applied = device.run(&[&["apply", path, "--json"], options].concat());
        assert_eq!(applied.code, 0, "{applied:?}\n{}", device.log());
        applied.json()["changes"].as_array().unwrap().len()
    };
    let names = || {
        let listed = device.json(&["schedule", "list"]);
        listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    device.schedule("by_hand", &["-t", "5"]);
    let text = format!(
        "[[reflector]]\nendpoint_id = \"{id}\"\nname = \"attic\"\n\n[[schedule]]\nname = \"nightly\"\n\
         cron = \"30 3 * * *\"\nzone = \"Europe/Berlin\"\nbudget_month = \"20GB\"\npeer = \"attic\"\ntime = 5\n\n\
         [[schedule]]\nname = \"off\"\nevery = \"6h\"\nudp = true\nbitrate = \"5M\"\nenabled = false\n"
    );
    let mut service = None;
    for is_served in [false, true] {
        if is_served {
            service = Some(device.serve());
        }
        assert_eq!(apply(&text, &["--dry-run"]), if is_served { 0 } else { 3 });
        assert_eq!(names().len(), if is_served { 3 } else { 1 });
        assert_eq!(apply(&text, &[]), if is_served { 0 } else { 3 });
        assert_eq!((names(), apply(&text, &[])), (vec!["by_hand".into(), "nightly".into(), "off".into()], 0));
        assert_eq!(device.json(&["reflectors"])[0]["name"], "attic");
    }
    // The service plans what the file changed.
    let later = text.replace("30 3 * * *", "45 4 * * *").replace("enabled = false\n", "");
    let shown = {
        std::fs::write(&file, &later).unwrap();
        device.must(&["apply", path, "--dry-run"])
    };
    let expected = "~ schedule nightly: changed\n    when: 30 3 * * * -> 45 4 * * *\n~ schedule off: changed\n    \
                    enabled: false -> true\n";
    assert_eq!(shown, expected);
    assert_eq!(apply(&later, &[]), 2);
    let planned =
        device.await_json(&["status"], |status| status["planned"].as_array().is_some_and(|all| all.len() == 3));
    assert!(planned["planned"].as_array().unwrap().iter().any(|plan| plan["schedule"] == "off"), "{planned:#}");
    // What is exported makes no difference, and a shorter file removes only what a file made.
    let exported = device.must(&["export-config"]);
    assert_eq!(apply(&exported, &["--dry-run"]), 0, "{exported}");
    let monitored = format!("{later}\n[[monitor]]\nname = \"office\"\ntarget = \"host:127.0.0.1\"\n");
    assert_eq!(apply(&monitored, &[]), 1);
    device.await_json(&["monitor", "list"], |all| {
        let office = all.as_array().unwrap().iter().find(|one| one["name"] == "office");
        office.is_some_and(|one| one["from_file"] == true && one["condition"]["activity"] == "running")
    });
    assert_eq!(apply(&later, &[]), 1);
    // A channel with its secret, a command and a rule for both.
    let token = folder.path().join("token");
    std::fs::write(&token, "tk_geheim\n").unwrap();
    let alerting = format!(
        "{later}\n[[channel]]\nname = \"phone\"\nkind = \"ntfy\"\nserver = \"http://127.0.0.1:9\"\ntopic = \"line\"\n\
         token_file = \"{}\"\n\n[[channel]]\nname = \"run\"\nkind = \"command\"\nprogram = \"/bin/true\"\n\n[[rule]]\n\
         metric = \"outage\"\nabove = \"2m\"\nchannel = [\"phone\", \"run\"]\n",
        token.display()
    );
    assert_eq!((apply(&alerting, &[]), apply(&alerting, &[])), (3, 0));
    let exported = device.must(&["export-config"]);
    assert!(exported.contains("[[rule]]\nname = \"outage\"") && !exported.contains("geheim"), "{exported}");
    assert_eq!(apply(&exported, &["--dry-run"]), 0, "{exported}");
    let channels = device.json(&["channel", "list"]);
    assert_eq!(
        (&channels[0]["secrets"][0], &channels[1]["from_file"]),
        (&"token".into(), &true.into()),
        "{channels:#}"
    );
    std::fs::remove_file(&token).unwrap();
    std::fs::write(&file, &alerting).unwrap();
    let error = device.appliance.fails(&["apply", path], 2, "bad_file").error;
    assert!(error.because.contains("token_file: No such file"), "{error:?}");
    assert_eq!(apply(&later, &[]), 3);
    let (reflectors, _) = text.split_once("[[schedule]]").unwrap();
    assert_eq!(apply(reflectors, &[]), 2);
    assert_eq!(names(), ["by_hand"]);
    drop(service);

    // A faulty file changes nothing, and is named with its line.
    let store = device.must(&["export-config"]);
    for (text, said) in [
        ("[[schedule]]\nname = \"a\"\nevry = \"6h\"\n", ":3: unknown key \"evry\"; did you mean \"every\"?"),
        ("[[schedule]]\nname = \"a\"\nevery = \"2s\"\n", ":3: every: \"2s\" is not an interval"),
        ("[[schedul]]\n", ":1: unknown key \"schedul\"; did you mean \"schedule\"?"),
        ("[[schedule]\n", ":1: not valid TOML"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = device.appliance.fails(&["apply", path], 2, "bad_file").error;
        assert!(error.because.starts_with(&format!("{path}{said}")), "{error:?}");
    }
    std::fs::write(&file, text.replace(&id, &device.appliance.id())).unwrap();
    let error = device.appliance.fails(&["apply", path], 4, "not_paired").error;
    assert!(error.because.starts_with("reflector attic: "), "{error:?}");
    std::fs::write(&file, text.replace("peer = \"attic\"", "peer = \"cellar\"")).unwrap();
    let error = device.appliance.fails(&["apply", path], 4, "not_paired").error;
    assert!(error.because.starts_with("schedule nightly: "), "{error:?}");
    device.appliance.fails(&["apply", "/nonexistent"], 2, "unreadable");
    assert_eq!(device.must(&["export-config"]), store);
}
