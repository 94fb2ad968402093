//! The messages for Home Assistant over MQTT: the description of this device (device discovery), and the values. Pure.
//! <https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery>

use paramedic_link::test_spec::Load;
use serde_json::{Map, Value, json};

use super::broker::TopicPrefix;
use super::snapshot::{LatestResult, LineSnapshot, MonitorSnapshot};

/// The message in [`Topics::availability`] while the service runs.
pub const ONLINE: &str = "online";
/// The message in [`Topics::availability`] when the service has ended. If the connection breaks, the broker publishes
/// this message itself.
pub const OFFLINE: &str = "offline";

/// The client name and the topics of a device at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// The name of the client. A broker accepts only one client with this name.
    pub client: String,
    /// The topic that contains [`ONLINE`] or [`OFFLINE`].
    pub availability: String,
    /// The topic with the values of the line and of the monitors.
    pub state: String,
    /// The topic with the description of the device; `None` without discovery.
    pub discovery: Option<String>,
}

impl Topics {
    /// The topics of the device with this Endpoint ID.
    pub fn new(prefix: &TopicPrefix, discovery: Option<&TopicPrefix>, endpoint_id: &str) -> Self {
        Self {
            client: device_id(endpoint_id),
            availability: format!("{prefix}/{endpoint_id}/availability"),
            state: format!("{prefix}/{endpoint_id}/state"),
            discovery: discovery.map(|discovery| format!("{discovery}/device/{}/config", device_id(endpoint_id))),
        }
    }
}

/// What an entity of Home Assistant shows.
enum EntityKind {
    /// The entity shows a number in the unit `unit`. `class` is the device class of the number, if Home Assistant has
    /// one. `decimals` is how many decimals are shown.
    Number { class: Option<&'static str>, unit: &'static str, decimals: u8 },
    /// The entity shows a time (ISO 8601).
    Time,
    /// The entity shows a text.
    Text,
    /// The entity shows whether there is a problem.
    Problem,
}

/// An entity of Home Assistant: one value of the line, or of a monitor.
struct Entity<S: 'static> {
    /// The key of the value in the message, and the end of the entity's unique id. A key must never change, because
    /// Home Assistant identifies the entity by it.
    key: &'static str,
    /// The name of the entity, without the name of the device.
    name: &'static str,
    kind: EntityKind,
    /// Whether the entity is about this device and not about the line.
    is_diagnostic: bool,
    read: fn(&S) -> Value,
}

const MBIT_PER_S: EntityKind = EntityKind::Number { class: Some("data_rate"), unit: "Mbit/s", decimals: 1 };
const MS: EntityKind = EntityKind::Number { class: Some("duration"), unit: "ms", decimals: 1 };
const PERCENT: EntityKind = EntityKind::Number { class: None, unit: "%", decimals: 2 };
const GB: EntityKind = EntityKind::Number { class: Some("data_size"), unit: "GB", decimals: 2 };

const LINE: &[Entity<LineSnapshot>] = &[
    Entity {
        key: "download",
        name: "Download",
        kind: MBIT_PER_S,
        is_diagnostic: false,
        read: |line| of_latest(line, |result| Some(json!(result.run.download_bps? as f64 / 1e6))),
    },
    Entity {
        key: "upload",
        name: "Upload",
        kind: MBIT_PER_S,
        is_diagnostic: false,
        read: |line| of_latest(line, |result| Some(json!(result.run.upload_bps? as f64 / 1e6))),
    },
    Entity {
        key: "latency_idle",
        name: "Latency idle",
        kind: MS,
        is_diagnostic: false,
        read: |line| of_latest(line, |result| Some(ms(result.run.rtt_idle_us?))),
    },
    Entity {
        key: "latency_loaded",
        name: "Latency under load",
        kind: MS,
        is_diagnostic: false,
        read: |line| {
            let loaded = |result: &LatestResult| {
                let loads = [Load::Download, Load::Upload];
                loads.into_iter().filter_map(|load| result.round_trip_us(load)).max()
            };
            of_latest(line, |result| Some(ms(loaded(result)?)))
        },
    },
    Entity {
        key: "loss",
        name: "Loss",
        kind: PERCENT,
        is_diagnostic: false,
        read: |line| {
            let highest = |result: &LatestResult| {
                let loads = [Load::Idle, Load::Download, Load::Upload];
                loads.into_iter().filter_map(|load| result.loss(load)).reduce(f64::max)
            };
            of_latest(line, |result| Some(json!(highest(result)? * 100.0)))
        },
    },
    Entity {
        key: "last_test",
        name: "Last test",
        kind: EntityKind::Time,
        is_diagnostic: false,
        read: |line| of_latest(line, |result| Some(json!(result.run.started_at.to_string()))),
    },
    Entity {
        key: "last_test_target",
        name: "Last test against",
        kind: EntityKind::Text,
        is_diagnostic: true,
        read: |line| of_latest(line, |result| Some(json!(result.target))),
    },
    Entity {
        key: "outage",
        name: "Outage",
        kind: EntityKind::Problem,
        is_diagnostic: false,
        read: |line| on_if(line.has_outage),
    },
    Entity {
        key: "data_used_month",
        name: "Data used this month",
        kind: GB,
        is_diagnostic: true,
        read: |line| {
            let bytes = line.stored.as_ref().map(|stored| stored.month_bytes);
            bytes.map_or(Value::Null, |bytes| json!(bytes as f64 / 1e9))
        },
    },
    Entity {
        key: "fault",
        name: "Service fault",
        kind: EntityKind::Problem,
        is_diagnostic: true,
        read: |line| on_if(line.state == "faulted"),
    },
];

const MONITOR: &[Entity<MonitorSnapshot>] = &[
    Entity {
        key: "latency",
        name: "latency",
        kind: MS,
        is_diagnostic: false,
        read: |monitor| monitor.recent.p50_us.map_or(Value::Null, ms),
    },
    Entity {
        key: "loss",
        name: "loss",
        kind: PERCENT,
        is_diagnostic: false,
        read: |monitor| match monitor.recent.count {
            0 => Value::Null,
            count => json!(monitor.recent.lost as f64 / count as f64 * 100.0),
        },
    },
    Entity {
        key: "unreachable",
        name: "unreachable",
        kind: EntityKind::Problem,
        is_diagnostic: false,
        read: |monitor| on_if(monitor.state == "unreachable"),
    },
];

/// The discovery message: describes this device and its entities. `name` is the name of this appliance.
pub fn discovery(line: &LineSnapshot, topics: &Topics, name: &str) -> Value {
    let device = device_id(&line.endpoint_id);
    let mut components = Map::new();
    for entity in LINE {
        components.insert(entity.key.to_owned(), entity.described(entity.key, entity.name, &device));
    }
    for monitor in &line.monitors {
        for entity in MONITOR {
            let key = monitor_key(monitor.number, entity.key);
            let described = entity.described(&key, &format!("{} {}", monitor.name, entity.name), &device);
            components.insert(key, described);
        }
    }
    // Home Assistant removes a component that is described only by its platform.
    for number in line.stored.iter().flat_map(|stored| &stored.removed_monitors) {
        for entity in MONITOR {
            components.insert(monitor_key(*number, entity.key), json!({ "platform": entity.kind.platform() }));
        }
    }
    json!({
        "device": {
            "identifiers": [device],
            "name": name,
            "manufacturer": "PacketParamedic",
            "model": "Appliance",
            "sw_version": line.version,
        },
        "origin": { "name": "PacketParamedic", "sw_version": line.version },
        "availability_topic": topics.availability,
        "state_topic": topics.state,
        "qos": 1,
        "components": components,
    })
}

/// The message with the values. An unknown value is null, which Home Assistant shows as unknown.
pub fn state(line: &LineSnapshot) -> Value {
    let mut values = Map::new();
    for entity in LINE {
        values.insert(entity.key.to_owned(), (entity.read)(line));
    }
    for monitor in &line.monitors {
        for entity in MONITOR {
            values.insert(monitor_key(monitor.number, entity.key), (entity.read)(monitor));
        }
    }
    Value::Object(values)
}

impl<S> Entity<S> {
    fn described(&self, key: &str, name: &str, device: &str) -> Value {
        let mut about = json!({
            "platform": self.kind.platform(),
            "unique_id": format!("{device}_{key}"),
            "name": name,
            "value_template": format!("{{{{ value_json.{key} }}}}"),
        });
        let mut set = |key: &str, value: Value| {
            if let Value::Object(about) = &mut about {
                about.insert(key.to_owned(), value);
            }
        };
        match self.kind {
            EntityKind::Number { class, unit, decimals } => {
                set("unit_of_measurement", json!(unit));
                set("state_class", json!("measurement"));
                set("suggested_display_precision", json!(decimals));
                if let Some(class) = class {
                    set("device_class", json!(class));
                }
            }
            EntityKind::Time => set("device_class", json!("timestamp")),
            EntityKind::Text => {}
            EntityKind::Problem => set("device_class", json!("problem")),
        }
        if self.is_diagnostic {
            set("entity_category", json!("diagnostic"));
        }
        about
    }
}

impl EntityKind {
    fn platform(&self) -> &'static str {
        match self {
            Self::Problem => "binary_sensor",
            Self::Number { .. } | Self::Time | Self::Text => "sensor",
        }
    }
}

/// The id of the device at Home Assistant.
fn device_id(endpoint_id: &str) -> String {
    format!("packetparamedic_{endpoint_id}")
}

/// The key of a monitor's entity. It contains the number of the monitor, which is never reused, and not the name, which
/// may have any character.
fn monitor_key(number: i64, key: &str) -> String {
    format!("monitor_{number}_{key}")
}

fn of_latest(line: &LineSnapshot, value: impl Fn(&LatestResult) -> Option<Value>) -> Value {
    let latest = line.stored.as_ref().and_then(|stored| stored.results.first());
    latest.and_then(value).unwrap_or(Value::Null)
}

fn ms(us: u64) -> Value {
    json!(us as f64 / 1e3)
}

fn on_if(is_on: bool) -> Value {
    json!(if is_on { "ON" } else { "OFF" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::snapshot::example;
    use super::*;

    const SCHEMA: &str = include_str!("home_assistant.schema.json");

    fn topics() -> Topics {
        Topics::new(&"pp/line".parse().unwrap(), Some(&"homeassistant".parse().unwrap()), "PP-self")
    }

    fn described() -> Value {
        discovery(&example::full(), &topics(), "attic")
    }

    /// The errors that Home Assistant would find in a message.
    fn faults(message: &Value) -> Vec<String> {
        let schema = serde_json::from_str(SCHEMA).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        schema.iter_errors(message).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    #[test]
    fn the_device_is_described_by_the_rules_of_home_assistant() {
        assert_eq!(faults(&described()), Vec::<String>::new());
        assert_eq!(
            topics().discovery.as_deref(),
            Some("homeassistant/device/packetparamedic_PP-self/config"),
            "a name of letters, digits, _ and -"
        );
    }

    #[test]
    fn the_schema_refuses_what_home_assistant_refuses() {
        let wrong = |pointer: &str, value: Value| {
            let mut message = described();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            message.pointer_mut(parent).unwrap()[key] = value;
            assert!(!faults(&message).is_empty(), "{pointer}: {message}");
        };
        wrong("/origin", json!({}));
        wrong("/device", json!({ "name": "without an identifier" }));
        wrong("/components/download/platform", json!("thermometer"));
        wrong("/components/download/device_class", json!("speediness"));
        wrong("/components/download/unit_of_measurement", json!("Mbps"));
        wrong("/components/latency_idle/unit_of_measurement", json!("%"));
        wrong("/components/download/state_class", json!("total"));
        wrong(
            "/components/last_test",
            json!({ "platform": "sensor", "device_class": "timestamp", "unique_id": "a",
            "unit_of_measurement": "s" }),
        );
        wrong("/components/outage/device_class", json!("data_rate"));
        wrong("/availability_topic", json!("a/#"));
        wrong("/components/download/colour", json!("red"));
    }

    #[test]
    fn every_entity_has_a_value_and_an_id_of_its_own() {
        let (message, values) = (described(), state(&example::full()));
        let mut ids = BTreeSet::new();
        let components = message["components"].as_object().unwrap();
        for (key, component) in components.iter().filter(|(_, component)| component.get("unique_id").is_some()) {
            assert!(ids.insert(component["unique_id"].as_str().unwrap()), "{key}");
            assert_eq!(component["value_template"], format!("{{{{ value_json.{key} }}}}"));
            assert!(values.get(key).is_some_and(|value| !value.is_null()), "no value of {key}: {values}");
        }
        assert_eq!(ids.len(), LINE.len() + 2 * MONITOR.len());
        assert_eq!(components["monitor_7_loss"], json!({ "platform": "sensor" }), "a removed monitor");
        assert_eq!(values.get("monitor_7_loss"), None);
    }

    #[test]
    fn the_values_are_those_of_the_latest_result_and_of_the_monitors() {
        let values = state(&example::full());
        for (key, value) in [
            ("download", json!(941.0)),
            ("latency_idle", json!(12.3)),
            ("latency_loaded", json!(30.1)),
            ("loss", json!(25.0)),
            ("last_test", json!("2026-01-31T12:00:00Z")),
            ("last_test_target", json!("attic")),
            ("outage", json!("ON")),
            ("fault", json!("OFF")),
            ("data_used_month", json!(5.0)),
            ("monitor_1_unreachable", json!("OFF")),
            ("monitor_2_unreachable", json!("ON")),
        ] {
            assert_eq!(values[key], value, "{key}");
        }
        let latency = values["monitor_1_latency"].as_f64().unwrap();
        assert!((1.9..4.1).contains(&latency), "{latency}");
        let unknown = state(&LineSnapshot { stored: None, state: "faulted".to_owned(), ..example::full() });
        assert_eq!((&unknown["download"], &unknown["fault"]), (&Value::Null, &json!("ON")));
    }
}
