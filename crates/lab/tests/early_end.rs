//! Tests `--until-stable` with the real programs: a direction may end before its time is over.

use std::time::Duration;

use lab::bad_reflectors::Honest;
use lab::hostile::FalseReflector;
use lab::{Appliance, Reflector, Running, TwoHosts, event};
use paramedic_report::document::{EndedBy, Event, ResultDocument};
use paramedic_report::stats::LOOKS;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);

fn two_ends(hosts: &TwoHosts) -> (Reflector, Appliance) {
    for host in [&hosts.near, &hosts.far] {
        host.shape("30mbit", "50ms");
    }
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[]);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    (reflector, appliance)
}

/// Waits until a running test has measured the download up to `ms` milliseconds.
fn await_interval(running: &Running, ms: u64) {
    while !matches!(event(&running.line(PATIENCE).unwrap()), Event::Interval(reading) if reading.at_ms >= ms) {}
}

fn ended(mut running: Running) -> ResultDocument {
    let last = running.rest(PATIENCE).unwrap().pop().unwrap();
    let code = running.wait(PATIENCE).unwrap().code().unwrap();
    let Event::Result(result) = event(&last) else { panic!("no result: {last}") };
    assert_eq!((code, result.complete), (0, true), "{result:#?}");
    *result
}

/// Returns for each direction how long it was measured, in milliseconds, and why it ended.
fn lengths(result: &ResultDocument) -> Vec<(u128, EndedBy)> {
    let length = |measured: &paramedic_report::document::ThroughputResult| {
        (u128::from(measured.startup_ms + measured.duration_ms), measured.ended.unwrap())
    };
    result.all_measured().map(|(_, _, measured)| length(measured)).collect()
}

#[test]
fn a_direction_ends_at_a_look_or_after_its_time_and_never_early_on_a_line_that_changes() {
    let (Some(steady), Some(changing)) = (TwoHosts::new(), TwoHosts::new()) else { return };
    let (_reflector, appliance) = two_ends(&steady);
    let (_other_reflector, other_appliance) = two_ends(&changing);
    let start = |appliance: &Appliance, way: &[&str]| {
        appliance.start(&[&["speed-test", "--json-stream", "--quick", "--idle", "0.5"], way].concat())
    };
    // Far below the line's rate, so there is no queue, and nothing but the host's load makes it unsteady.
    let free = start(&appliance, &["--bidir", "-P", "2", "-b", "4M"]);
    let changes = start(&other_appliance, &["--download"]);
    await_interval(&changes, 2_500);
    changing.near.shape("15mbit", "50ms");

    let changed = ended(changes);
    assert_eq!(changed.download.as_ref().unwrap().ended, Some(EndedBy::Time), "{changed:#?}");
    let free = ended(free);
    assert!(free.requested.unwrap().until_stable);
    assert_eq!(lengths(&free).len(), 4);
    for (length, ended) in lengths(&free) {
        match ended {
            EndedBy::Stable => {
                let at = LOOKS.iter().find(|look| look.as_millis().abs_diff(length) <= 100);
                assert!(at.is_some(), "{length} ms: {free:#?}");
            }
            ended => assert_eq!((ended, length >= 9_500), (EndedBy::Time, true), "{length} ms: {free:#?}"),
        }
    }
    let [both_down, both_up] = [lengths(&free)[2].1, lengths(&free)[3].1];
    assert_eq!(both_down, both_up, "a phase ends as a whole");
    assert!(free.warnings.iter().all(|warning| warning.code != "full_time"), "{free:#?}");
}

#[test]
fn a_reflector_without_the_feature_runs_for_the_full_time() {
    let reflector = FalseReflector::listen(|link, first| {
        let mut honest = Honest::default();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            if message["type"] == "request" {
                assert!(message["spec"].get("may_stop").is_none(), "{message:#}");
                link.say(&json!({ "type": "denied", "reason": "busy", "detail": "asked rightly" }))?;
            } else {
                honest.answer(link, &message)?;
            }
            next = link.hear()?;
        }
        Ok(())
    });
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    assert_eq!(appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]).code, 0);
    let error = appliance.fails(&["speed-test", "--until-stable", "--no-wait"], 5, "busy").error;
    assert!(error.because.contains("asked rightly"), "{error:#?}");
}

#[test]
fn an_option_that_sets_the_length_excludes_an_early_end() {
    let appliance = Appliance::new();
    let excluded: [&[&str]; 5] =
        [&["-t", "10"], &["--budget", "1GB"], &["-u"], &["--engine", "iperf3"], &["--max-loss", "1%"]];
    for option in excluded {
        let error = appliance.fails(&[&["speed-test", "--until-stable"], option].concat(), 2, "bad_request").error;
        assert!(error.because.contains("--until-stable") && !error.try_.is_empty(), "{option:?}: {error:#?}");
    }
}
