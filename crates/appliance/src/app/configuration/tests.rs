//! Tests of applying a configuration, on each database engine.

use paramedic_link::EndpointId;

use super::*;
use crate::app::each_engine::devices;
use crate::monitor::Monitor;
use crate::plan::PromisedRate;
use crate::schedule::example_schedule;
use crate::store::Reflector;

const REAL: ApplyMode = ApplyMode { is_rehearsal: false, may_change_commands: true };
const REHEARSAL: ApplyMode = ApplyMode { is_rehearsal: true, may_change_commands: true };

fn reflector(key: u8, name: &str) -> Reflector {
    Reflector {
        endpoint_id: EndpointId::from_bytes([key; 32]),
        name: name.into(),
        address: format!("203.0.113.{key}").parse().unwrap(),
        paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
    }
}

fn named(key: u8, name: &str) -> ReflectorName {
    ReflectorName { endpoint_id: EndpointId::from_bytes([key; 32]), name: name.into() }
}

fn scheduled(name: &str, peer: &str) -> ConfiguredSchedule {
    let mut schedule = example_schedule(name);
    schedule.request.peer = Some(peer.to_owned());
    ConfiguredSchedule { enabled: true, schedule }
}

/// For each database engine, an appliance that is paired with two reflectors, and its state folder.
async fn paired_devices() -> Vec<(tempfile::TempDir, Appliance)> {
    let devices = devices();
    for (_, device) in &devices {
        let store = device.store().await.unwrap();
        for reflector in [reflector(1, "attic"), reflector(2, "cellar")] {
            store.add_reflector(&reflector).await.unwrap();
        }
    }
    devices
}

#[tokio::test]
async fn the_store_becomes_as_the_file_says_and_only_its_own_rows_are_removed() {
    for (_folder, device) in paired_devices().await {
        let by_hand = scheduled("by_hand", "attic");
        device.add_schedule(by_hand.schedule.clone()).await.unwrap();
        let file = DeviceConfiguration {
            // The two reflectors exchange their names.
            reflectors: vec![named(1, "cellar"), named(2, "attic")],
            schedules: vec![scheduled("nightly", "cellar"), scheduled("Weekly", "attic")],
            ..DeviceConfiguration::default()
        };
        let rehearsed = device.apply_configuration(file.clone(), REHEARSAL).await.unwrap();
        let seen = rehearsed.iter().map(|change| (&*change.object, &*change.name, change.action)).collect::<Vec<_>>();
        let expected = [
            ("reflector", "attic", ChangeAction::Changed),
            ("reflector", "cellar", ChangeAction::Changed),
            ("schedule", "nightly", ChangeAction::Added),
            ("schedule", "Weekly", ChangeAction::Added),
        ];
        assert_eq!(seen, expected);
        assert_eq!(device.schedules().await.unwrap().len(), 1, "nothing has changed");
        assert_eq!(device.apply_configuration(file.clone(), REAL).await.unwrap(), rehearsed);
        assert_eq!(device.apply_configuration(file.clone(), REAL).await.unwrap(), []);
        let exported = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(exported, REHEARSAL).await.unwrap(), []);

        let added = device.schedule("nightly").await.unwrap().stored;
        let mut later = DeviceConfiguration { reflectors: Vec::new(), ..file };
        later.schedules.truncate(1);
        later.schedules[0].schedule.when = crate::schedule::Recurrence::parse("0 5 * * *").unwrap();
        let changes = device.apply_configuration(later.clone(), REAL).await.unwrap();
        let [changed, removed] = &changes[..] else { panic!("{changes:?}") };
        let value =
            ValueChange { value: "when".to_owned(), from: Some("30 3 * * *".into()), to: Some("0 5 * * *".into()) };
        assert_eq!((&*changed.name, &changed.values), ("nightly", &vec![value]));
        assert_eq!((&*removed.name, removed.action), ("Weekly", ChangeAction::Removed));
        let changed = device.schedule("nightly").await.unwrap().stored;
        assert_eq!((changed.id, changed.added_at), (added.id, added.added_at), "its runs are its own");
        assert!(changed.decided_until >= added.decided_until);
        // A schedule that a user added stays, but once a file has contained it, a later file without it removes it.
        let names = async || device.schedules().await.unwrap().into_iter().map(|all| all.stored.schedule.name);
        assert_eq!(names().await.collect::<Vec<_>>(), ["by_hand", "nightly"]);
        let all = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(all, REAL).await.unwrap(), []);
        let changes = device.apply_configuration(DeviceConfiguration::default(), REAL).await.unwrap();
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert_eq!(device.schedules().await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn a_file_sets_its_plan_and_removes_no_other() {
    for (_folder, device) in paired_devices().await {
        let plan = |promised_bps| {
            let rate = PromisedRate { promised_bps, normal_bps: None, minimum_bps: None };
            Plan { name: Some("Fibre".to_owned()), download: rate, upload: rate }
        };
        let file = |plan| DeviceConfiguration { plan, ..DeviceConfiguration::default() };
        let apply = async |plan| device.apply_configuration(file(plan), REAL).await;
        let from_file = async || device.plan().await.unwrap().map(|stored| stored.from_file);
        device.set_plan(&plan(10)).await.unwrap();
        assert_eq!(apply(None).await.unwrap(), []);
        assert_eq!(from_file().await, Some(false));
        assert_eq!(apply(Some(plan(10))).await.unwrap(), []);
        assert_eq!(from_file().await, Some(true));
        let changed = apply(Some(plan(20))).await.unwrap();
        let values = changed[0].values.iter().map(|value| value.value.as_str()).collect::<Vec<_>>();
        assert_eq!(values, ["download.promised_bps", "upload.promised_bps"]);
        assert_eq!(device.configuration().await.unwrap().plan, Some(plan(20)));
        let refused = apply(Some(plan(0))).await.unwrap_err();
        assert!(refused.to_string().starts_with("plan Fibre: "), "{refused}");
        assert_eq!(apply(None).await.unwrap()[0].action, ChangeAction::Removed);
        assert_eq!(from_file().await, None);
    }
}

#[tokio::test]
async fn a_configuration_that_is_not_possible_changes_nothing() {
    for (_folder, device) in paired_devices().await {
        let with = |reflectors: &[ReflectorName], schedules: &[ConfiguredSchedule]| DeviceConfiguration {
            reflectors: reflectors.to_vec(),
            schedules: schedules.to_vec(),
            ..DeviceConfiguration::default()
        };
        let mut never = scheduled("never", "attic");
        never.schedule.when = crate::schedule::Recurrence::parse("0 0 30 2 *").unwrap();
        let good = scheduled("good", "attic");
        let alone = std::slice::from_ref(&good);
        for (wanted, said) in [
            (with(&[named(9, "garden")], alone), "reflector garden"),
            (with(&[named(1, "Cellar")], alone), "reflector"),
            (with(&[named(1, "garden")], alone), "schedule good"),
            (with(&[], &[good.clone(), never]), "schedule never"),
            (with(&[], &[good.clone(), scheduled("GOOD", "attic")]), "schedule GOOD"),
            (with(&[], &[good.clone(), scheduled("other", "nowhere")]), "schedule other"),
        ] {
            let refused = device.apply_configuration(wanted, REAL).await.unwrap_err();
            assert!(refused.to_string().starts_with(said), "{refused}");
            assert_eq!(device.schedules().await.unwrap().len(), 0);
            assert_eq!(device.reflectors().await.unwrap()[0].name.as_str(), "attic");
        }
    }
}

fn monitor(name: &str, target: &str, interval_s: u64) -> ConfiguredMonitor {
    let interval = Some(std::time::Duration::from_secs(interval_s));
    ConfiguredMonitor { enabled: true, monitor: Monitor::new(name, target.parse().unwrap(), interval) }
}

fn monitors(monitors: &[ConfiguredMonitor]) -> DeviceConfiguration {
    DeviceConfiguration { monitors: monitors.to_vec(), ..DeviceConfiguration::default() }
}

/// The name, the number and the target of each stored monitor, and whether a file made it.
async fn stored(device: &Appliance) -> Vec<(String, i64, String, bool)> {
    let all = device.stored_monitors().await.unwrap().into_iter();
    all.map(|one| (one.monitor.name, one.number, one.monitor.target.to_string(), one.from_file)).collect()
}

fn row(name: &str, number: i64, target: &str, from_file: bool) -> (String, i64, String, bool) {
    (name.to_owned(), number, target.to_owned(), from_file)
}

/// The object, the name and the action of each change.
fn seen(changes: &[ConfigurationChange]) -> Vec<(&str, &str, ChangeAction)> {
    changes.iter().map(|change| (&*change.object, &*change.name, change.action)).collect()
}

#[tokio::test]
async fn a_file_makes_monitors_and_removes_only_its_own() {
    for (_folder, device) in paired_devices().await {
        device.ensure_monitors().await.unwrap();
        device.add_monitor(Monitor::new("by_hand", "host:192.0.2.1".parse().unwrap(), None)).await.unwrap();
        let file = monitors(&[
            // The service has added a monitor with this name.
            monitor("Attic", "reflector:attic", 5),
            monitor("office", "host:192.0.2.2", 1),
            ConfiguredMonitor { enabled: false, ..monitor("off", "dns:192.0.2.53/example.org", 30) },
        ]);
        let changes = device.apply_configuration(file.clone(), REHEARSAL).await.unwrap();
        let (added, changed) = (ChangeAction::Added, ChangeAction::Changed);
        let expected = [("monitor", "attic", changed), ("monitor", "office", added), ("monitor", "off", added)];
        assert_eq!(seen(&changes), expected);
        let values = changes[0].values.iter().map(|value| &*value.value).collect::<Vec<_>>();
        assert_eq!(values, ["interval_ms", "name"]);
        assert_eq!(stored(&device).await.len(), 4, "nothing has changed");
        assert_eq!(device.apply_configuration(file.clone(), REAL).await.unwrap(), changes);
        assert_eq!(device.apply_configuration(file, REAL).await.unwrap(), []);
        let (gateway, cellar) = (row("gateway", 1, "gateway", false), row("cellar", 3, "reflector:cellar", false));
        let by_hand = row("by_hand", 4, "host:192.0.2.1", false);
        let expected = [
            row("Attic", 2, "reflector:attic", true),
            by_hand.clone(),
            cellar.clone(),
            gateway.clone(),
            row("off", 6, "dns:192.0.2.53/example.org", true),
            row("office", 5, "host:192.0.2.2", true),
        ];
        assert_eq!(stored(&device).await, expected);
        assert!(!device.stored_monitor("off").await.unwrap().enabled);
        let exported = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(exported, REHEARSAL).await.unwrap(), []);

        let changes = device.apply_configuration(monitors(&[]), REAL).await.unwrap();
        assert!(changes.iter().all(|change| change.action == ChangeAction::Removed), "{changes:?}");
        assert_eq!(stored(&device).await, [by_hand, cellar, gateway]);
        assert_eq!(device.ensure_monitors().await.unwrap(), [], "the service adds no removed one again");
    }
}

#[tokio::test]
async fn a_monitor_of_a_file_takes_the_place_of_the_one_that_the_service_would_add() {
    for (_folder, device) in paired_devices().await {
        let file = monitors(&[monitor("gateway", "gateway", 10), monitor("attic", "reflector:attic", 5)]);
        device.apply_configuration(file, REAL).await.unwrap();
        let added = device.ensure_monitors().await.unwrap();
        let names = added.iter().map(|added| added.monitor.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["cellar"]);
    }
}

#[tokio::test]
async fn a_renamed_monitor_keeps_what_it_measured_and_one_with_another_target_begins_anew() {
    for (_folder, device) in paired_devices().await {
        let apply = async |file: &[ConfiguredMonitor]| device.apply_configuration(monitors(file), REAL).await.unwrap();
        apply(&[
            monitor("fast", "reflector:attic", 1),
            monitor("slow", "reflector:attic", 10),
            monitor("office", "host:192.0.2.1", 1),
        ])
        .await;
        let id = format!("reflector:{}", EndpointId::from_bytes([1; 32]));
        let changes = apply(&[
            monitor("office", "host:192.0.2.2", 1),
            monitor("rarely", "reflector:Attic", 10),
            monitor("often", &id, 1),
        ])
        .await;
        let changed = ChangeAction::Changed;
        assert_eq!(
            seen(&changes),
            [("monitor", "office", changed), ("monitor", "slow", changed), ("monitor", "fast", changed)]
        );
        let expected = [
            row("office", 4, "host:192.0.2.2", true),
            row("often", 1, &id, true),
            row("rarely", 2, "reflector:Attic", true),
        ];
        assert_eq!(stored(&device).await, expected);
        // A renamed monitor can also have another interval, if it is the only candidate.
        apply(&[monitor("office", "host:192.0.2.2", 1), monitor("one", "reflector:attic", 2)]).await;
        let names = stored(&device).await.into_iter().map(|(name, number, ..)| (name, number)).collect::<Vec<_>>();
        assert_eq!(names, [("office".to_owned(), 4), ("one".to_owned(), 5)], "which of the two is not known");
        apply(&[monitor("office", "host:192.0.2.2", 1), monitor("two", "reflector:attic", 3)]).await;
        assert_eq!(stored(&device).await[1], row("two", 5, "reflector:attic", true));
    }
}

#[tokio::test]
async fn a_renamed_reflector_is_what_its_monitors_probe() {
    for (_folder, device) in paired_devices().await {
        device.ensure_monitors().await.unwrap();
        let file = |reflectors: &[ReflectorName], target: &str| DeviceConfiguration {
            reflectors: reflectors.to_vec(),
            ..monitors(&[monitor("slow", target, 10)])
        };
        device.apply_configuration(file(&[], "reflector:attic"), REAL).await.unwrap();
        // The two reflectors exchange their names.
        let exchanged = file(&[named(1, "cellar"), named(2, "attic")], "reflector:cellar");
        let changes = device.apply_configuration(exchanged.clone(), REAL).await.unwrap();
        assert_eq!(changes.iter().filter(|change| change.object == "monitor").count(), 0, "{changes:?}");
        assert_eq!(device.apply_configuration(exchanged, REAL).await.unwrap(), []);
        let expected = [
            row("attic", 2, "reflector:cellar", false),
            row("cellar", 3, "reflector:attic", false),
            row("gateway", 1, "gateway", false),
            row("slow", 4, "reflector:cellar", true),
        ];
        assert_eq!(stored(&device).await, expected);
    }
}

#[tokio::test]
async fn monitors_that_are_not_possible_change_nothing() {
    for (_folder, device) in paired_devices().await {
        let good = monitor("good", "gateway", 1);
        for (wrong, said) in [
            (monitor("GOOD", "host:192.0.2.1", 1), "monitor GOOD: another monitor is called GOOD"),
            (monitor("a b", "gateway", 1), "monitor a b: \"a b\" is not a valid name"),
            (monitor("often", "dns:192.0.2.53/example.org", 1), "monitor often: an interval of 1s is not valid"),
            (monitor("nowhere", "reflector:garden", 1), "monitor nowhere: "),
        ] {
            let refused = device.apply_configuration(monitors(&[good.clone(), wrong]), REAL).await.unwrap_err();
            assert!(refused.to_string().starts_with(said), "{refused}");
            assert_eq!(stored(&device).await, []);
        }
        // A file is applied even if one of its monitors has a reflector that was removed.
        let file = monitors(&[good, monitor("slow", "reflector:attic", 10)]);
        device.apply_configuration(file.clone(), REAL).await.unwrap();
        device.remove_reflector("attic").await.unwrap();
        assert_eq!(device.apply_configuration(file, REAL).await.unwrap(), []);
    }
}

/// A channel of a configuration, parsed from JSON.
fn channel(json: &str) -> ConfiguredChannel {
    serde_json::from_str(json).unwrap()
}

fn channels(wanted: &[&str]) -> DeviceConfiguration {
    let channels = wanted.iter().map(|json| channel(json)).collect();
    DeviceConfiguration { channels, ..DeviceConfiguration::default() }
}

/// For each change: the object with its name, the action, and the paths of the changed values.
fn seen_values(changes: &[ConfigurationChange]) -> Vec<(String, ChangeAction, Vec<&str>)> {
    let one = |change: &ConfigurationChange| format!("{} {}", change.object, change.name);
    changes.iter().map(|change| (one(change), change.action, value_names(change).collect())).collect()
}

fn value_names(change: &ConfigurationChange) -> impl Iterator<Item = &str> {
    change.values.iter().map(|value| value.value.as_str())
}

#[tokio::test]
async fn a_secret_stays_only_while_its_channel_keeps_its_server() {
    let hook = r#"{"name": "hook", "kind": "webhook", "enabled": true, "server": "https://hooks.example.org",
        "secrets": {"url": "https://hooks.example.org/geheim", "token": "tk_geheim"}}"#;
    let without = r#"{"name": "Hook", "kind": "webhook", "enabled": false, "server": "https://hooks.example.org"}"#;
    let elsewhere = r#"{"name": "hook", "kind": "webhook", "enabled": true, "server": "https://evil.example.org"}"#;
    let mail = r#"{"name": "mail", "kind": "smtp", "enabled": true, "server": "mail.example.org", "port": 587,
        "security": "starttls", "user": "ann", "from": "pp@example.org", "to": ["ann@example.org"]}"#;
    for (_folder, device) in paired_devices().await {
        let apply = async |wanted: &[&str]| device.apply_configuration(channels(wanted), REAL).await;
        let secrets = async || device.store().await.unwrap().channel("hook").await.unwrap().1;
        assert_eq!(
            seen_values(&apply(&[hook]).await.unwrap()),
            [("channel hook".to_owned(), ChangeAction::Added, vec![])]
        );
        assert_eq!(apply(&[hook]).await.unwrap(), []);
        // An exported configuration has no secrets, and changes nothing when it is applied.
        let exported = device.configuration().await.unwrap();
        let text = serde_json::to_string(&exported).unwrap();
        assert!(!text.contains("geheim") && text.contains("hooks.example.org"), "{text}");
        assert_eq!(device.apply_configuration(exported, REHEARSAL).await.unwrap(), []);

        let changes = apply(&[without]).await.unwrap();
        assert_eq!(
            seen_values(&changes),
            [("channel hook".to_owned(), ChangeAction::Changed, vec!["enabled", "name"])]
        );
        assert_eq!(secrets().await.names(), ["url", "token"]);
        let other = hook.replace("tk_geheim", "tk_anders");
        let changes = apply(&[&other]).await.unwrap();
        let [changed] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(Vec::from_iter(value_names(changed)), ["enabled", "name", "secrets.token"]);
        let shown = serde_json::to_string(&changes).unwrap();
        assert!(!shown.contains("geheim") && !shown.contains("anders"), "{shown}");
        assert_eq!(secrets().await.token.unwrap().expose(), "tk_anders");

        // For another server, the file must contain the secrets that are sent there.
        for (wanted, said) in [
            (elsewhere, "channel hook: a webhook needs a URL"),
            // The stored token would go to the server of the new URL.
            (
                &hook.replace("example.org/geheim\", \"token\": \"tk_geheim\"", "example.net/geheim\""),
                "channel hook: the URL of the webhook is not on the server",
            ),
            (mail, "channel mail: a user needs a password"),
            (&hook.replace("\"url\"", "\"password\""), "channel hook: a channel of kind webhook can have no password"),
            (&hook.replace("hooks.example.org/geheim", "ann:geheim@b.c/"), "channel hook: the URL must be an http"),
        ] {
            let refused = apply(&[wanted]).await.unwrap_err().to_string();
            assert!(refused.starts_with(said) && !refused.contains("geheim"), "{wanted}: {refused}");
        }
        let ntfy = |server: &str, more: &str| {
            format!(r#"{{"name": "p", "kind": "ntfy", "enabled": true, "server": "{server}", "topic": "pp"{more}}}"#)
        };
        let (first, second) =
            (ntfy("https://a.example/", r#", "secrets": {"token": "t"}"#), ntfy("https://b.example/", ""));
        apply(&[&first]).await.unwrap();
        let changes = apply(&[&second]).await.unwrap();
        let expected = ("channel p".to_owned(), ChangeAction::Changed, vec!["server", "secrets.token"]);
        assert_eq!(seen_values(&changes), [expected]);
        assert_eq!(device.store().await.unwrap().channel("p").await.unwrap().1.names(), Vec::<String>::new());
        assert_eq!(apply(&[]).await.unwrap().len(), 1);
        assert_eq!(device.channels().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_command_is_changed_only_where_that_is_allowed() {
    let command = |args: &str, enabled| {
        format!(
            r#"{{"name": "run", "kind": "command", "enabled": {enabled}, "program": "/bin/true", "args": ["{args}"]}}"#
        )
    };
    let remote = ApplyMode { may_change_commands: false, ..REAL };
    for (_folder, device) in paired_devices().await {
        let apply = async |wanted: &[&str], mode| device.apply_configuration(channels(wanted), mode).await;
        let refused = apply(&[&command("a", true)], remote).await.unwrap_err().to_string();
        assert!(refused.starts_with("channel run: a command channel can be added"), "{refused}");
        assert_eq!(device.channels().await.unwrap(), []);
        apply(&[&command("a", true)], REAL).await.unwrap();
        // The command is stored already, so a file may describe it without a change.
        assert_eq!(apply(&[&command("a", true)], remote).await.unwrap(), []);
        // A command that no file made does not count as made by a file after that, because then a later file would
        // remove it.
        let own = r#"{"name": "own", "kind": "command", "program": "/bin/true"}"#;
        let own = serde_json::from_str::<crate::alerts::channel::NewChannel>(own).unwrap();
        device.add_channel(own).await.unwrap();
        let by_hand = command("", true).replace("\"run\"", "\"own\"").replace(r#"[""]"#, "[]");
        for (mode, is_of_file) in [(remote, false), (REAL, true)] {
            assert_eq!(apply(&[&command("a", true), &by_hand], mode).await.unwrap(), []);
            assert_eq!(device.channel("own").await.unwrap().from_file, is_of_file);
        }
        assert_eq!(apply(&[&command("a", true)], REAL).await.unwrap().len(), 1);
        let ntfy = r#"{"name": "run", "kind": "ntfy", "enabled": true, "server": "https://a.example/", "topic": "pp"}"#;
        for wanted in [&[&*command("b", true)][..], &[&command("a", false)], &[ntfy], &[]] {
            let refused = apply(wanted, remote).await.unwrap_err().to_string();
            assert!(refused.starts_with("channel run: a command channel can be added"), "{wanted:?}: {refused}");
            let dry = apply(wanted, ApplyMode { is_rehearsal: true, ..remote }).await;
            assert!(dry.is_err(), "{dry:?}");
        }
        let missing = command("a", true).replace("/bin/true", "/bin/no-such-program");
        let refused = apply(&[&missing], REAL).await.unwrap_err().to_string();
        assert!(refused.starts_with("channel run: /bin/no-such-program"), "{refused}");
        // A change between a command and another kind of channel makes a new channel, so that each id keeps the kind
        // that was checked.
        let id = async || device.channel("run").await.unwrap().id;
        let mut ids = std::collections::BTreeSet::from([id().await]);
        for wanted in [ntfy, &command("a", true)] {
            assert_eq!(apply(&[wanted], REAL).await.unwrap()[0].action, ChangeAction::Changed);
            assert!(ids.insert(id().await), "{ids:?}");
            assert_eq!(device.channels().await.unwrap().len(), 1);
        }
        apply(&[&command("b", true)], REAL).await.unwrap();
        assert!(ids.contains(&id().await));
        assert_eq!(apply(&[], REAL).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_rule_that_judges_otherwise_closes_its_alerts_and_another_keeps_them() {
    let rule = |more: &str| -> ConfiguredRule {
        let json = format!(
            r#"{{"name": "slow", "enabled": true, "metric": "download", "limit": {{"below": 5e7}}, "zone": "UTC"{more}}}"#
        );
        serde_json::from_str(&json).unwrap()
    };
    let phone = r#"{"name": "phone", "kind": "ntfy", "enabled": true, "server": "https://a.example/", "topic": "pp"}"#;
    let file = |rules: &[ConfiguredRule]| DeviceConfiguration { rules: rules.to_vec(), ..channels(&[phone]) };
    for (_folder, device) in paired_devices().await {
        let apply = async |rules: &[ConfiguredRule]| device.apply_configuration(file(rules), REAL).await;
        let store = device.store().await.unwrap();
        let own = device.endpoint_id().unwrap().to_string();
        let stored = async || store.rule("slow").await.unwrap();
        let open = async || store.alerts(true, None, 10).await.unwrap().len();
        // Opens an alert of the stored rule.
        let fire = async || {
            let now = Timestamp::now();
            let write = crate::app::alerts::example_opening(&stored().await, now);
            let judged = crate::store::RuleWrite::JudgedUntil(now);
            assert!(store.change_rule(&own, &stored().await, judged, &[write], now).await.unwrap());
            assert_eq!(open().await, 1);
        };
        let refused = apply(&[rule(r#", "channels": ["nowhere"]"#)]).await.unwrap_err().to_string();
        assert!(refused.starts_with("rule slow: "), "{refused}");
        assert_eq!(apply(&[rule("")]).await.unwrap().len(), 2);
        assert_eq!(apply(&[rule("")]).await.unwrap(), []);
        let exported = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(exported, REHEARSAL).await.unwrap(), []);
        let before = stored().await;
        assert!(before.from_file);
        fire().await;

        apply(&[rule(r#", "channels": ["Phone"], "quiet_hours": "22:00-07:00""#)]).await.unwrap();
        assert_eq!((stored().await.id, open().await), (before.id, 1), "its alert stays");

        let tighter = |enabled| ConfiguredRule { enabled, ..rule(r#", "channels": ["phone"], "times": 2, "of": 3"#) };
        apply(&[tighter(true)]).await.unwrap();
        assert_eq!(open().await, 0);
        assert_ne!(stored().await.id, before.id);
        let said = async || store.messages(None, 1).await.unwrap().remove(0).message.title;
        assert_eq!(said().await, "Closed: the rule slow was changed");

        fire().await;
        apply(&[tighter(false)]).await.unwrap();
        assert_eq!((open().await, stored().await.enabled), (0, false));
        assert_eq!(said().await, "Closed: the rule slow was disabled");
        let disabled = stored().await;
        apply(&[tighter(true)]).await.unwrap();
        let enabled = stored().await;
        assert!(enabled.id == disabled.id && enabled.enabled && enabled.judged_until > disabled.judged_until);

        fire().await;
        let gone = device.apply_configuration(DeviceConfiguration::default(), REAL).await.unwrap();
        assert_eq!(gone.len(), 2, "{gone:?}");
        assert_eq!((open().await, device.rules().await.unwrap().len()), (0, 0));
        assert_eq!(said().await, "Closed: the rule slow was removed");
    }
}
