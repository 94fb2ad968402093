//! Tests speed tests in which no data arrives in a direction: that direction has no result, and the report contains the
//! reason.

use std::process::{Command, Stdio};
use std::time::Duration;

use lab::bad_reflectors::{Act, Asked, Script, Stage};
use lab::hostile::FalseReflector;
use lab::{Appliance, Host, Outcome, Reflector, Running, TwoHosts, event};
use paramedic_link::test_spec::Load;
use paramedic_report::document::{ErrorDocument, Event, Quantity, ResultDocument};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a speed test with the arguments `more`, and calls `then` at the first event `name` of the phase `phase`. An
/// interval counts only if it has a rate. Returns the exit code and the last event's document: a result, or an error
/// with what was measured.
fn changed_at(appliance: &Appliance, more: &[&str], (name, phase): (&str, &str), then: impl FnOnce()) -> (i32, Event) {
    let mut running = appliance.start(&[&["speed-test", "--json-stream"], more].concat());
    let parts = [format!("\"event\":\"{name}\""), format!("\"phase\":\"{phase}\"")];
    let is_it = |line: &str| parts.iter().all(|part| line.contains(part)) && !line.contains("\"bps\":0");
    while !is_it(&running.line(PATIENCE).unwrap()) {}
    then();
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    let status = running.wait(PATIENCE).unwrap();
    (status.code().unwrap(), event(&last))
}

fn two_ends(hosts: &TwoHosts) -> (Reflector, Appliance) {
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

/// Makes the firewall of a host drop incoming packets that match `rule`.
fn drop_incoming(host: &Host, rule: &str) {
    host.nft(&format!(
        "table inet lossy {{ chain input {{ type filter hook input priority 0; {rule} drop;\n }}\n }}\n"
    ));
}

/// Returns the partial result that an error document contains.
fn measured(error: &ErrorDocument) -> &ResultDocument {
    error.measured_so_far.as_deref().unwrap_or_else(|| panic!("nothing measured: {error:#?}"))
}

#[test]
fn if_all_probes_are_lost_the_loss_is_100_percent_and_no_threshold_is_met() {
    let Some(hosts) = TwoHosts::new() else { return };
    let (_reflector, appliance) = two_ends(&hosts);
    let args = [
        &["-b", "10M", "-P", "1", "-t", "4", "--idle", "1", "--max-loss", "1%"][..],
        &["--max-loaded-loss", "1%", "--max-loaded-latency", "1000"],
    ]
    .concat();
    let lose = || drop_incoming(&hosts.near, "udp dport 4000");
    let (code, last) = changed_at(&appliance, &args, ("phase", "download"), lose);
    let Event::Result(result) = last else { panic!("no result: {last:#?}") };
    assert_eq!(code, 3, "{result:#?}");
    for (load, measured) in [(Load::Download, &result.download), (Load::Upload, &result.upload)] {
        let latency = result.latency.of(load).unwrap();
        // A few came back before the rule stood.
        assert!(load == Load::Download || latency.received == 0 && latency.loss == Some(1.0), "{latency:#?}");
        assert!(latency.loss > Some(0.5) && latency.sent > 50, "{latency:#?}");
        assert!(latency.loss_upload.is_none() && latency.loss_download.is_none(), "{latency:#?}");
        assert!(result.bufferbloat.of(load).is_none(), "{result:#?}");
        assert!(measured.as_ref().is_some_and(|measured| measured.goodput_bps > 5_000_000), "{result:#?}");
    }
    let judged = result.thresholds.iter().map(|one| (one.name.as_str(), one.measured, one.passed));
    // The path lost nothing while it was idle.
    let fraction = |fraction| Some(Quantity::Fraction(fraction));
    let expected = [
        ("max_loaded_latency_ms", None, false),
        ("max_loss", fraction(0.0), true),
        ("max_loaded_loss", fraction(1.0), false),
    ];
    assert_eq!(judged.collect::<Vec<_>>(), expected);
    assert!(result.warnings.iter().any(|warning| warning.code == "probes_lost"), "{result:#?}");
    let report = appliance.run(&["history", "show", &result.id.to_string()]);
    assert!(!report.stdout.contains("responsive while busy"), "{report:?}");
    assert!(report.stdout.contains("no latency probe was answered"), "{report:?}");
}

#[test]
fn a_direction_that_stops_has_no_result_and_is_named() {
    let Some(hosts) = TwoHosts::new() else { return };
    let (_reflector, appliance) = two_ends(&hosts);
    let args = ["-b", "20M", "-P", "1", "-t", "5", "--idle", "0.5"];
    let large = || drop_incoming(&hosts.near, "meta l4proto tcp meta length > 500");
    let (code, last) = changed_at(&appliance, &args, ("interval", "upload"), large);
    let Event::Error(error) = last else { panic!("no error: {last:#?}") };
    assert_eq!((code, error.error.code.as_str()), (1, "nothing_arrived"), "{error:#?}");
    assert!(error.error.what.contains("upload") && !error.error.what.contains("download"), "{error:#?}");
    let result = measured(&error);
    assert!(result.download.as_ref().is_some_and(|download| download.goodput_bps > 10_000_000), "{result:#?}");
    assert!(result.upload.is_none() && result.bufferbloat.upload.is_none() && !result.complete, "{result:#?}");
    let saved = appliance.run(&["history", "show", &result.id.to_string()]);
    assert!(saved.stdout.starts_with("The upload stopped after"), "{saved:?}");
}

/// Starts a plain iperf3 server, and waits until it listens.
fn iperf3_server(host: &Host) -> Running {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.netns, "iperf3", "-s", "-B", &host.v4, "-p", "5201", "--forceflush"]);
    let server = Running::start(command, Stdio::null()).unwrap();
    while !server.line(PATIENCE).unwrap().contains("Server listening") {}
    server
}

#[test]
fn a_path_that_drops_large_packets_gives_no_iperf3_result() {
    let Some(hosts) = TwoHosts::new() else { return };
    let _server = iperf3_server(&hosts.near);
    // Like a router on the path that sends no ICMP.
    for host in [&hosts.near, &hosts.far] {
        drop_incoming(host, "meta length > 1400");
    }
    let appliance = Appliance::in_netns(&hosts.far.netns);
    let args = ["--provider", "iperf3", "--peer", &hosts.near.v4, "-b", "20M", "-t", "3"];
    let outcome = appliance.speed_test(&args);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let error = outcome.error();
    assert_eq!(error.error.code, "nothing_arrived", "{error:#?}");
    for word in ["download", "upload"] {
        assert!(error.error.what.contains(word), "{error:#?}");
    }
    assert_eq!(measured(&error).all_measured().count(), 0, "{error:#?}");
    assert!(error.error.try_.contains("MTU"), "{error:#?}");
    let runs = appliance.run(&["history", "--json"]).json();
    assert_eq!(runs.as_array().unwrap().len(), 1, "{runs:#}");
    assert_eq!(runs[0]["complete"], false, "{runs:#}");
}

/// Runs a speed test against a reflector that sends the tally `claim` at the end of the phase.
fn told(claim: Value) -> Outcome {
    let script = Script {
        name: "a claim".to_owned(),
        stage: Stage::Phase,
        act: Act::Say(json!({ "type": "phase_done", "phase": 0, "tally": claim })),
        more: &[],
        within: Duration::from_secs(10),
        exit: None,
    };
    script.play(Asked::SpeedTestJson).outcome
}

fn tally(bytes: u64, elapsed_us: u64) -> Value {
    json!({ "upload": {
        "count": { "bytes": bytes, "elapsed_us": elapsed_us },
        "cpu": { "user_s": 0, "system_s": 0, "busiest_thread": 0 },
        "streams": 1,
    } })
}

#[test]
fn an_upload_without_samples_has_no_result() {
    // A total without samples is an unsupported claim.
    for claim in [json!({}), tally(100_000, 1_000_000)] {
        let outcome = told(claim.clone());
        assert_eq!(outcome.code, 1, "{claim}: {outcome:?}");
        let error = outcome.error();
        assert_eq!(error.error.code, "nothing_arrived", "{error:#?}");
        assert!(error.error.what.contains("upload"), "{error:#?}");
        assert!(measured(&error).upload.is_none(), "{error:#?}");
        assert!(!measured(&error).complete, "saved as incomplete: {error:#?}");
    }
}

#[test]
fn counts_that_cannot_be_true_are_refused() {
    for (bytes, elapsed_us) in
        [(u64::MAX, 1_000_000), (1 << 40, 1_000_000), (100_000, u64::MAX), (100_000, 0), (u64::MAX, u64::MAX)]
    {
        let outcome = told(tally(bytes, elapsed_us));
        assert_eq!(outcome.code, 1, "{bytes} bytes in {elapsed_us} µs: {outcome:?}");
        assert_eq!(outcome.error().error.code, "bad_report", "{bytes} bytes in {elapsed_us} µs: {outcome:?}");
    }
}

#[test]
fn a_sample_above_any_interface_rate_is_refused_at_once() {
    let reflector = FalseReflector::listen(|link, first| {
        let mut honest = lab::bad_reflectors::Honest::default();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            if message["type"] == "start" {
                link.say(&json!({ "type": "started", "phase": 0 }))?;
                let sample = json!({ "at_us": 100_000, "bytes": u64::MAX });
                let samples = json!({ "type": "samples", "phase": 0, "direction": "upload", "samples": [sample] });
                link.say(&samples)?;
                return Ok(());
            }
            honest.answer(link, &message)?;
            next = link.hear()?;
        }
        Ok(())
    });
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    assert_eq!(appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]).code, 0);
    let outcome = appliance.run(&[lab::bad_reflectors::SPEED_TEST, &["--json"]].concat());
    assert_eq!((outcome.code, outcome.error().error.code.as_str()), (1, "bad_report"), "{outcome:?}");
}
