//! The description of the API (OpenAPI 3.1), with schemas from the types of the bodies and answers. `OPERATIONS` has a
//! row for each route; a test compares the rows with the router.

use std::sync::LazyLock;

use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use paramedic_appliance::alerts::AlertRule;
use paramedic_appliance::alerts::channel::NewChannel;
use paramedic_appliance::app::{
    ChannelTest, ConfigurationChange, DeviceConfiguration, ImportedPairings, MonitorOverview, MonitorSeries, NewToken,
    OldPairings, RuleOverview, RunUpdate, ScheduleOverview, ScheduleProposal, ServiceStatus, UdpCheck,
};
use paramedic_appliance::plan::Plan;
use paramedic_appliance::request::TestRequest;
use paramedic_appliance::schedule::Schedule;
use paramedic_appliance::store::{
    MonitorSpan, Pruned, ScheduleRun, StoreCheck, StoredAlert, StoredChannel, StoredMessage, StoredMonitor,
    StoredOutage, StoredPlan, StoredRule, StoredSchedule, StoredToken,
};
use paramedic_report::document::{NeverNull, ResultDocument};
use paramedic_report::series::ResultSeries;
use paramedic_report::summary::RunSummary;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::access::{API, needed_scope};
use super::configuration::ApplyRequest;
use super::guard::LOGIN_COOKIE;
use super::identity::RotatedIdentity;
use super::login::{LoginRequest, SetupLinkAnswer};
use super::monitors::NewMonitor;
use super::plan::PlanAnswer;
use super::problem::Problem;
use super::reflectors::{CheckedReflector, ListedReflector, PairRequest, PairedReflector, RenameRequest};
use super::results::{DeletionRequest, ImportAnswer, PruneRequest};
use super::rules::PreviewAnswer;
use super::schedules::RunRequested;
use super::store::StorePruneRequest;
use super::test_runs::{CancelAnswer, TestLine};
use super::tokens::TokenRequest;

/// An operation of the API: its method, its path and its description.
struct Operation {
    method: &'static str,
    /// The path of the operation, relative to /api/v1.
    path: &'static str,
    summary: &'static str,
    /// The parameters in the query of the request.
    query: &'static [QueryParameter],
    /// The schema of the body of the request; `None` if the request has no body.
    body: Option<SchemaOf>,
    status: u16,
    /// The media type and the schema of the body of the answer; `None` if the answer has no body.
    answer: Option<(&'static str, SchemaOf)>,
}

/// A parameter in the query of a request.
struct QueryParameter {
    name: &'static str,
    about: &'static str,
    schema: fn() -> Value,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn text(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "string" })
}

/// The schema of a body that consists of the bytes of a file.
fn binary(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "string", "format": "binary" })
}

const fn text_parameter(name: &'static str, about: &'static str) -> QueryParameter {
    QueryParameter { name, about, schema: || json!({ "type": "string" }) }
}

const fn time_parameter(name: &'static str, about: &'static str) -> QueryParameter {
    QueryParameter { name, about, schema: || json!({ "type": "string", "format": "date-time" }) }
}

const FROM: QueryParameter = time_parameter("from", "The start of the series; by default a day before its end.");
const TO: QueryParameter = time_parameter("to", "The end of the series; by default now.");
const STEP: QueryParameter = text_parameter("step", "The length of a step, at least a minute, such as 5m or 1h.");
const BEFORE: QueryParameter = time_parameter("before", "Only entries that began before this time.");
const SINCE: QueryParameter = time_parameter("since", "Only entries that began at this time or later.");
const UNTIL: QueryParameter = time_parameter("until", "Only entries that began before this time.");
const PEER: QueryParameter = text_parameter("peer", "Only results of tests against this name, address or Endpoint ID.");
const ENGINE: QueryParameter = text_parameter("engine", "Only results of tests with this engine, such as tcp or udp.");
const ORDER: QueryParameter = QueryParameter {
    name: "order",
    about: "The order of the results by their start.",
    schema: || json!({ "enum": ["newest", "oldest"] }),
};
const FORMAT: QueryParameter = QueryParameter {
    name: "format",
    about: "The format of the answer: whole documents or summaries, one JSON document per line, or a CSV table.",
    schema: || json!({ "enum": ["jsonl", "csv", "summaries"] }),
};

const TABLE_FORMAT: QueryParameter = QueryParameter {
    name: "format",
    about: "The format of the answer: one JSON document per line, or CSV.",
    schema: || json!({ "enum": ["jsonl", "csv"], "default": "jsonl" }),
};
const RESOLUTION: QueryParameter = QueryParameter {
    name: "resolution",
    about: "The time that each row covers. Minutes are kept for 14 days, hours for 400 days, days for ever.",
    schema: || json!({ "enum": ["minutes", "hours", "days"], "default": "minutes" }),
};

const REPORT_FORMAT: QueryParameter = QueryParameter {
    name: "format",
    about: "The format of the report: an HTML page, or CSV.",
    schema: || json!({ "enum": ["html", "csv"], "default": "html" }),
};
const REPORT_SINCE: QueryParameter =
    text_parameter("since", "The start of the period, a time or a day; by default 30 days before its end.");
const REPORT_UNTIL: QueryParameter =
    text_parameter("until", "The end of the period, a time or its last day; by default now.");
const ZONE: QueryParameter = text_parameter(
    "zone",
    "The time zone for local times, such as Europe/Berlin; by default the zone of the service's host.",
);
const REDACT: QueryParameter = QueryParameter {
    name: "redact",
    about: "Whether the report leaves out names, addresses and Endpoint IDs.",
    schema: || json!({ "type": "boolean", "default": false }),
};
const PLAN_DOWN: QueryParameter =
    text_parameter("plan_down", "The promised download rate, such as 250M; used instead of the stored plan.");
const PLAN_UP: QueryParameter =
    text_parameter("plan_up", "The promised upload rate, such as 40M; used instead of the stored plan.");
const NORMAL_DOWN: QueryParameter =
    text_parameter("normal_down", "The download rate that is normally available, by the contract; needs plan_down.");
const NORMAL_UP: QueryParameter =
    text_parameter("normal_up", "The upload rate that is normally available, by the contract; needs plan_up.");
const MINIMUM_DOWN: QueryParameter =
    text_parameter("minimum_down", "The download rate that the contract guarantees at all times; needs plan_down.");
const MINIMUM_UP: QueryParameter =
    text_parameter("minimum_up", "The upload rate that the contract guarantees at all times; needs plan_up.");

const JSON: &str = "application/json";

const LIMIT: QueryParameter = QueryParameter {
    name: "limit",
    about: "The maximum number of entries in the answer.",
    schema: || json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 20 }),
};
const AFTER: QueryParameter = QueryParameter {
    name: "after",
    about: "Returns the page after this cursor. The header `Link` of a full page has the address of the next page.",
    schema: || json!({ "type": "string" }),
};
const POINTS: QueryParameter = QueryParameter {
    name: "points",
    about: "The maximum number of points in a series. A point has the mean and the extremes of neighbouring intervals.",
    schema: || json!({ "type": "integer", "minimum": 1, "maximum": 10000, "default": 500 }),
};
const ONLY_OPEN: QueryParameter = QueryParameter {
    name: "open",
    about: "Whether only open alerts are listed.",
    schema: || json!({ "type": "boolean", "default": false }),
};
const OF_SCHEDULE: QueryParameter = QueryParameter {
    name: "schedule",
    about: "Only runs of the schedule with this name.",
    schema: || json!({ "type": "string" }),
};

const fn read(path: &'static str, summary: &'static str, answer: SchemaOf) -> Operation {
    Operation { method: "get", path, summary, query: &[], body: None, status: 200, answer: Some((JSON, answer)) }
}

const fn change(method: &'static str, path: &'static str, summary: &'static str, answer: SchemaOf) -> Operation {
    Operation { method, ..read(path, summary, answer) }
}

/// All operations of the API, in the order of the description.
const OPERATIONS: &[Operation] = &[
    read("/openapi.json", "The description of this API", of::<Value>),
    read("/status", "The state of the service", of::<ServiceStatus>),
    Operation {
        answer: Some(("text/event-stream", of::<RunUpdate>)),
        ..read("/events", "What the running tests report, as server-sent events", of::<Value>)
    },
    read("/schedules", "Every schedule", of::<Vec<ScheduleOverview>>),
    Operation {
        body: Some(of::<Schedule>),
        status: 201,
        ..change("post", "/schedules", "Adds a schedule", of::<StoredSchedule>)
    },
    Operation {
        body: Some(of::<Schedule>),
        ..change(
            "post",
            "/schedules/proposals",
            "Checks a schedule and estimates how much data it will use; saves nothing",
            of::<ScheduleProposal>,
        )
    },
    read("/schedules/{name}", "A schedule", of::<ScheduleOverview>),
    change("delete", "/schedules/{name}", "Removes a schedule; its results stay", of::<StoredSchedule>),
    change("post", "/schedules/{name}/enable", "Enables a schedule, so that it runs again", of::<StoredSchedule>),
    change("post", "/schedules/{name}/disable", "Disables a schedule, so that it does not run", of::<StoredSchedule>),
    Operation {
        status: 202,
        ..change("post", "/schedules/{name}/run", "Runs a schedule as soon as no other test runs", of::<RunRequested>)
    },
    Operation {
        query: &[LIMIT, AFTER, OF_SCHEDULE],
        ..read("/schedule-runs", "The outcomes of the latest runs of schedules, newest first", of::<Vec<ScheduleRun>>)
    },
    change("post", "/schedule-runs/cancel", "Cancels the running test of a schedule", of::<CancelAnswer>),
    read("/monitors", "Every monitor with its state and its last 15 minutes", of::<Vec<MonitorOverview>>),
    Operation {
        body: Some(of::<NewMonitor>),
        status: 201,
        ..change("post", "/monitors", "Adds a monitor", of::<StoredMonitor>)
    },
    read("/monitors/{name}", "A monitor", of::<MonitorOverview>),
    change(
        "delete",
        "/monitors/{name}",
        "Removes a monitor; what it measured is not shown any more",
        of::<StoredMonitor>,
    ),
    change("post", "/monitors/{name}/enable", "Enables a monitor, so that it probes again", of::<StoredMonitor>),
    change("post", "/monitors/{name}/disable", "Disables a monitor, so that it does not probe", of::<StoredMonitor>),
    Operation {
        query: &[FROM, TO, STEP],
        ..read("/monitors/{name}/series", "Round trips and loss of a monitor over time", of::<MonitorSeries>)
    },
    Operation {
        query: &[LIMIT, BEFORE],
        ..read("/outages", "The latest outages, newest first", of::<Vec<StoredOutage>>)
    },
    Operation {
        query: &[SINCE, UNTIL, TABLE_FORMAT],
        answer: Some(("application/x-ndjson", of::<StoredOutage>)),
        ..read("/outages/export", "The outages, oldest first, one per line", of::<Value>)
    },
    Operation {
        query: &[SINCE, UNTIL, TABLE_FORMAT, OF_SCHEDULE],
        answer: Some(("application/x-ndjson", of::<ScheduleRun>)),
        ..read(
            "/schedule-runs/export",
            "The outcomes of the runs of schedules, oldest first, one per line",
            of::<Value>,
        )
    },
    Operation {
        query: &[SINCE, UNTIL, TABLE_FORMAT, RESOLUTION],
        answer: Some(("application/x-ndjson", of::<MonitorSpan>)),
        ..read("/monitors/{name}/export", "What a monitor measured, oldest first, one row per line", of::<Value>)
    },
    read("/channels", "Every channel of alert messages, without its secrets", of::<Vec<StoredChannel>>),
    Operation {
        body: Some(of::<NewChannel>),
        status: 201,
        ..change(
            "post",
            "/channels",
            "Adds a channel of alert messages; a command channel only through the unix socket",
            of::<StoredChannel>,
        )
    },
    read("/channels/{name}", "A channel of alert messages, without its secrets", of::<StoredChannel>),
    change(
        "delete",
        "/channels/{name}",
        "Removes a channel and discards its undelivered messages",
        of::<StoredChannel>,
    ),
    change("post", "/channels/{name}/enable", "Enables a channel, so that it gets messages again", of::<StoredChannel>),
    change("post", "/channels/{name}/disable", "Disables a channel, so that it gets no messages", of::<StoredChannel>),
    change("post", "/channels/{name}/test", "Sends a test message through a channel now", of::<ChannelTest>),
    Operation {
        query: &[LIMIT, BEFORE],
        ..read("/messages", "The latest alert messages with their deliveries, newest first", of::<Vec<StoredMessage>>)
    },
    read("/rules", "Every alert rule with its open alerts", of::<Vec<RuleOverview>>),
    Operation {
        body: Some(of::<AlertRule>),
        status: 201,
        ..change("post", "/rules", "Adds an alert rule; the rule judges only later measurements", of::<StoredRule>)
    },
    read("/rule-suggestions", "The suggested alert rules that have not been added", of::<Vec<AlertRule>>),
    Operation {
        body: Some(of::<AlertRule>),
        ..change(
            "post",
            "/rules/preview",
            "When an alert rule would have fired in the last 30 days (14 days for a metric of a monitor); saves nothing",
            of::<PreviewAnswer>,
        )
    },
    read("/rules/{name}", "An alert rule with its open alerts", of::<RuleOverview>),
    change("delete", "/rules/{name}", "Removes a rule and closes its alerts", of::<StoredRule>),
    change("post", "/rules/{name}/enable", "Enables a rule, so that it opens alerts again", of::<StoredRule>),
    change("post", "/rules/{name}/disable", "Disables a rule and closes its alerts", of::<StoredRule>),
    Operation {
        query: &[ONLY_OPEN, LIMIT, AFTER],
        ..read("/alerts", "The latest alerts, newest first", of::<Vec<StoredAlert>>)
    },
    read("/plan", "The plan: the rates that the internet contract promises", of::<PlanAnswer>),
    Operation {
        body: Some(of::<Plan>),
        ..change("put", "/plan", "Sets the plan; results are compared with it", of::<StoredPlan>)
    },
    change("delete", "/plan", "Removes the plan and returns it", of::<PlanAnswer>),
    read("/reflectors", "The paired reflectors", of::<Vec<ListedReflector>>),
    Operation {
        body: Some(of::<OldPairings>),
        ..change(
            "post",
            "/reflectors/imports",
            "Imports an older identity with its pairings, if this device is not paired; only through the unix socket",
            of::<ImportedPairings>,
        )
    },
    Operation {
        body: Some(of::<PairRequest>),
        status: 201,
        ..change(
            "post",
            "/reflectors",
            "Pairs with a reflector, by a one-time code or its Endpoint ID",
            of::<PairedReflector>,
        )
    },
    change(
        "delete",
        "/reflectors/{reflector}",
        "Removes a reflector (name, address or Endpoint ID) from this device; its results stay",
        of::<ListedReflector>,
    ),
    change(
        "post",
        "/reflectors/{reflector}/check",
        "Connects to a reflector and checks address, key and answer; sends no load",
        of::<CheckedReflector>,
    ),
    change(
        "post",
        "/reflectors/{reflector}/udp-check",
        "Checks whether datagrams reach a reflector, and whether its answers come back",
        of::<UdpCheck>,
    ),
    Operation {
        body: Some(of::<RenameRequest>),
        ..change("post", "/reflectors/{reflector}/rename", "Renames a reflector on this device", of::<ListedReflector>)
    },
    change(
        "post",
        "/identity/rotations",
        "Gives this device a new identity; every reflector must then be paired again",
        of::<RotatedIdentity>,
    ),
    Operation {
        query: &[LIMIT, AFTER, SINCE, UNTIL, PEER, ENGINE, ORDER],
        ..read("/results", "Summaries of the latest results, by default newest first", of::<Vec<RunSummary>>)
    },
    Operation {
        query: &[
            REPORT_SINCE,
            REPORT_UNTIL,
            ZONE,
            REPORT_FORMAT,
            REDACT,
            PLAN_DOWN,
            PLAN_UP,
            NORMAL_DOWN,
            NORMAL_UP,
            MINIMUM_DOWN,
            MINIMUM_UP,
        ],
        answer: Some(("text/html", text)),
        ..read("/report", "The report on the line, as a page or as CSV", of::<Value>)
    },
    Operation {
        query: &[LIMIT, SINCE, UNTIL, PEER, ENGINE, ORDER, FORMAT],
        answer: Some(("application/x-ndjson", of::<ResultDocument>)),
        ..read("/results/export", "Exports the selected results, one per line", of::<Value>)
    },
    Operation {
        body: Some(of::<DeletionRequest>),
        ..change(
            "post",
            "/results/deletions",
            "Deletes all listed results, or none if one of them is not found",
            of::<Value>,
        )
    },
    Operation {
        body: Some(of::<PruneRequest>),
        ..change("post", "/results/prune", "Deletes results by their age", of::<Pruned>)
    },
    change("delete", "/results/{id}", "Deletes a result", of::<Value>),
    Operation {
        body: Some(of::<ResultDocument>),
        ..change("put", "/results/{id}", "Saves a result document of another store, byte for byte", of::<ImportAnswer>)
    },
    read(
        "/configuration",
        "The names of the reflectors, the plan, the schedules, the monitors, the channels without their secrets, and the rules",
        of::<DeviceConfiguration>,
    ),
    Operation {
        body: Some(of::<ApplyRequest>),
        ..change(
            "post",
            "/configuration",
            "Applies the configuration in the body; command channels only through the unix socket",
            of::<Vec<ConfigurationChange>>,
        )
    },
    Operation {
        answer: Some(("application/vnd.sqlite3", binary)),
        ..read("/store/backup", "A consistent copy of the database", of::<Value>)
    },
    read("/store/check", "Checks the database", of::<StoreCheck>),
    Operation {
        body: Some(of::<StorePruneRequest>),
        ..change(
            "post",
            "/store/prune",
            "Deletes stored data that is older than the retention settings of the service allow",
            of::<Pruned>,
        )
    },
    read("/results/{id}", "A result document, byte for byte as it was saved", of::<ResultDocument>),
    Operation {
        query: &[POINTS],
        ..read(
            "/results/{id}/series",
            "The rates and round trips of a result over time, reduced to a number of points",
            of::<ResultSeries>,
        )
    },
    Operation {
        body: Some(of::<TestRequest>),
        answer: Some(("application/x-ndjson", of::<TestLine>)),
        ..change(
            "post",
            "/tests",
            "Runs a test; answers with one JSON document per line until the test ends",
            of::<Value>,
        )
    },
    change(
        "post",
        "/tests/{id}/cancel",
        "Cancels a test; the answer to the request that started it continues to the end of the test",
        of::<CancelAnswer>,
    ),
    read("/tokens", "The access tokens, without their secrets", of::<Vec<StoredToken>>),
    Operation {
        body: Some(of::<TokenRequest>),
        status: 201,
        ..change("post", "/tokens", "Adds an access token; only this answer contains its secret", of::<NewToken>)
    },
    change("delete", "/tokens/{name}", "Removes an access token", of::<StoredToken>),
    Operation {
        status: 201,
        ..change(
            "post",
            "/setup-links",
            "Creates a setup link: a page on which the administrator sets the password",
            of::<SetupLinkAnswer>,
        )
    },
    Operation {
        body: Some(of::<LoginRequest>),
        status: 204,
        answer: None,
        ..change("post", "/login", "Logs in as the administrator; the answer sets the login cookie", of::<Value>)
    },
    Operation {
        status: 204,
        answer: None,
        ..change("post", "/logout", "Logs out: ends the login of the cookie", of::<Value>)
    },
];

/// The path and the method of each row of `OPERATIONS`, as the router writes them.
#[cfg(test)]
pub(super) fn rows() -> std::collections::BTreeSet<(String, String)> {
    OPERATIONS.iter().map(|row| (row.path.to_owned(), row.method.to_uppercase())).collect()
}

/// The description of the API as JSON text.
static TEXT: LazyLock<String> = LazyLock::new(|| {
    // A JSON value can always be written as text.
    serde_json::to_string_pretty(&document()).map(|text| text + "\n").unwrap_or_default()
});

pub(super) async fn show() -> impl IntoResponse {
    ([(CONTENT_TYPE, JSON)], TEXT.as_str())
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut generator = settings.into_generator();
    let problem = json!({
        "description": "The request failed (RFC 9457)",
        "content": { "application/problem+json": { "schema": of::<Problem>(&mut generator) } },
    });
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let described = operation.describe(&mut generator);
        let methods = paths.entry(format!("{API}{}", operation.path)).or_insert_with(|| json!({}));
        methods[operation.method] = described;
    }
    let mut schemas = generator.take_definitions(true);
    for schema in schemas.values_mut().filter_map(|schema| <&mut Schema>::try_from(schema).ok()) {
        RecursiveTransform(NeverNull).transform(schema);
    }
    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "PacketParamedic: the service of the appliance",
            "version": "1",
            "description": "docs/service.md describes which clients need a token.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "http://localhost:8068" }],
        "security": [{}, { "token": [] }, { "login": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer" },
                "login": { "type": "apiKey", "in": "cookie", "name": LOGIN_COOKIE },
            },
            "responses": { "Problem": problem },
            "schemas": schemas,
        },
    })
}

impl Operation {
    fn describe(&self, generator: &mut SchemaGenerator) -> Value {
        let method = Method::from_bytes(self.method.to_uppercase().as_bytes()).unwrap_or_default();
        let scope = needed_scope(&method, &format!("{API}{}", self.path));
        let in_path = self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let in_path =
            in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
        let in_query = self.query.iter().map(|QueryParameter { name, about, schema }| {
            json!({ "name": name, "in": "query", "description": about, "schema": schema() })
        });
        let mut answer = json!({ "description": self.summary });
        if let Some((media_type, schema)) = self.answer {
            answer["content"] = json!({ media_type: { "schema": schema(generator) } });
            if self.query.iter().any(|parameter| parameter.name == FORMAT.name) {
                answer["content"]["text/csv"] = json!({ "schema": { "type": "string" } });
            }
        }
        let needs = scope.map(|scope| format!("Needs the scope `{scope}`."));
        let mut described = json!({
            "operationId": self.id(),
            "summary": self.summary,
            "description": needs.unwrap_or_else(|| "Needs no token.".to_owned()),
            "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
            "responses": {
                self.status.to_string(): answer,
                "default": { "$ref": "#/components/responses/Problem" },
            },
        });
        if let Some(schema) = self.body {
            described["requestBody"] =
                json!({ "required": true, "content": { JSON: { "schema": schema(generator) } } });
        }
        described
    }

    /// The id of the operation: the method and the words of the path. Generated clients use the id as the name of a
    /// function.
    fn id(&self) -> String {
        let words = self.path.split(['/', '-', '.']).filter(|word| !word.is_empty());
        let words = words.map(|word| word.trim_matches(['{', '}']));
        [self.method].into_iter().chain(words).collect::<Vec<_>>().join("_")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_stored_description_is_that_of_this_program() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        if std::env::var_os("PACKETPARAMEDIC_WRITE_OPENAPI").is_some() {
            std::fs::write(&file, TEXT.as_bytes()).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap();
        let advice = "run `PACKETPARAMEDIC_WRITE_OPENAPI=1 cargo test -p packetparamedic openapi` to write it again";
        assert!(stored == *TEXT, "docs/openapi.json is of another version: {advice}");
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_name_stands_once() {
        let document = document();
        let text = document.to_string();
        let references = text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap());
        let references = references.collect::<BTreeSet<_>>();
        assert!(references.len() > 30, "{references:?}");
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        let ids = OPERATIONS.iter().map(Operation::id).collect::<BTreeSet<_>>();
        assert_eq!(ids.len(), OPERATIONS.len());
        // A schema with a number was generated twice, for two types with the same name.
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.keys().all(|name| !name.ends_with(|last: char| last.is_ascii_digit())), "{:?}", schemas.keys());
    }
}
