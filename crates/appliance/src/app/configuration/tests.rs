//! Tests of `apply`, on a database of each engine.

use paramedic_link::EndpointId;

use super::*;
use crate::app::each_engine::devices;
use crate::plan::PromisedRate;
use crate::schedule::example_schedule;
use crate::store::Reflector;

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

/// A device with two reflectors for each engine.
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
            // The two exchange their names.
            reflectors: vec![named(1, "cellar"), named(2, "attic")],
            schedules: vec![scheduled("nightly", "cellar"), scheduled("Weekly", "attic")],
            plan: None,
        };
        let rehearsed = device.apply_configuration(file.clone(), true).await.unwrap();
        let seen =
            rehearsed.iter().map(|change| (&*change.object, &*change.name, change.action)).collect::<Vec<_>>();
        let expected = [
            ("reflector", "attic", ChangeAction::Changed),
            ("reflector", "cellar", ChangeAction::Changed),
            ("schedule", "nightly", ChangeAction::Added),
            ("schedule", "Weekly", ChangeAction::Added),
        ];
        assert_eq!(seen, expected);
        assert_eq!(device.schedules().await.unwrap().len(), 1, "nothing has changed");
        assert_eq!(device.apply_configuration(file.clone(), false).await.unwrap(), rehearsed);
        assert_eq!(device.apply_configuration(file.clone(), false).await.unwrap(), []);
        let exported = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(exported, true).await.unwrap(), []);

        let added = device.schedule("nightly").await.unwrap().stored;
        let mut later = DeviceConfiguration { reflectors: Vec::new(), ..file };
        later.schedules.truncate(1);
        later.schedules[0].schedule.when = crate::schedule::Recurrence::parse("0 5 * * *").unwrap();
        let changes = device.apply_configuration(later.clone(), false).await.unwrap();
        let [changed, removed] = &changes[..] else { panic!("{changes:?}") };
        let value =
            ValueChange { value: "when".to_owned(), from: Some("30 3 * * *".into()), to: Some("0 5 * * *".into()) };
        assert_eq!((&*changed.name, &changed.values), ("nightly", &vec![value]));
        assert_eq!((&*removed.name, removed.action), ("Weekly", ChangeAction::Removed));
        let changed = device.schedule("nightly").await.unwrap().stored;
        assert_eq!((changed.id, changed.added_at), (added.id, added.added_at), "its runs are its own");
        assert!(changed.decided_until >= added.decided_until);
        // A schedule that a user added stays, until a file has it.
        let names = async || device.schedules().await.unwrap().into_iter().map(|all| all.stored.schedule.name);
        assert_eq!(names().await.collect::<Vec<_>>(), ["by_hand", "nightly"]);
        let all = device.configuration().await.unwrap();
        assert_eq!(device.apply_configuration(all, false).await.unwrap(), []);
        let changes = device.apply_configuration(DeviceConfiguration::default(), false).await.unwrap();
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
        let apply = async |plan| device.apply_configuration(file(plan), false).await;
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
            plan: None,
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
            let refused = device.apply_configuration(wanted, false).await.unwrap_err();
            assert!(refused.to_string().starts_with(said), "{refused}");
            assert_eq!(device.schedules().await.unwrap().len(), 0);
            assert_eq!(device.reflectors().await.unwrap()[0].name.as_str(), "attic");
        }
    }
}
