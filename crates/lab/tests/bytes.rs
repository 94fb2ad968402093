//! Tests speed tests in which each direction ends after a number of bytes (`-n`), with every engine and provider.

use std::process::{Command, Stdio};
use std::time::Duration;

use lab::bad_reflectors::Honest;
use lab::hostile::FalseReflector;
use lab::{Appliance, Reflector, Running, loopback};
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{EndedBy, ResultDocument};

const SIZE: u64 = 3 << 20;
const BOTH: [(Load, Direction); 2] = [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)];

fn codes(result: &ResultDocument) -> Vec<&str> {
    result.warnings.iter().map(|warning| warning.code.as_str()).collect()
}

#[test]
fn each_direction_ends_after_its_bytes_and_the_document_has_their_number() {
    let settings = [("MODE", "direct_ephemeral"), ("IPERF3_ENABLED", "true"), ("DATA_PORT_RANGE", "47140-47143")];
    let host = loopback::address().to_string();
    let reflector = Reflector::serve_on(&[&format!("{host}:0")], None, &settings);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let mut server = Command::new("iperf3");
    server.args(["-s", "-B", &host, "-p", "47144", "--forceflush"]);
    let server = Running::start(server, Stdio::null()).unwrap();
    while !server.line(Duration::from_secs(30)).unwrap().contains("Server listening") {}
    let plain = format!("{host}:47144");
    // The bytes beyond the requested: none, a datagram, or what iperf3 sends until the other end has stopped it.
    let ways: [(&[&str], u64); 6] = [
        (&["--data-mode", "tunneled", "--idle", "0"], 0),
        (&["--data-mode", "direct", "--idle", "0", "--bidir"], 0),
        (&["--data-mode", "direct", "--idle", "0", "-b", "20M"], 0),
        (&["-u", "-b", "50M", "--idle", "0"], 1400),
        (&["--engine", "iperf3", "--idle", "0"], 16 << 20),
        (&["--provider", "iperf3", "--peer", &plain], 16 << 20),
    ];
    for (way, beyond) in ways {
        let outcome = appliance.speed_test(&[way, &["-n", "3M", "-t", "60", "-P", "2"]].concat());
        assert_eq!(outcome.code, 0, "{way:?}: {outcome:?}\n{}", reflector.log());
        let result = outcome.result();
        assert_eq!(result.requested.unwrap().direction_bytes, Some(SIZE), "{way:?}");
        let elapsed = result.finished_at.duration_since(result.started_at);
        assert!(elapsed.as_secs() < 60, "{way:?}: it ended before its time: {elapsed:?}");
        for (load, direction) in BOTH {
            let measured =
                result.measured(load, direction).unwrap_or_else(|| panic!("{way:?} {direction}: {result:#?}"));
            let sent = measured.total_bytes_sent.or(measured.total_bytes_received).unwrap();
            assert!((SIZE..=SIZE + beyond).contains(&sent), "{way:?} {direction}: {sent} bytes: {measured:#?}");
            assert!(measured.goodput_bps > 0, "{way:?} {direction}: {measured:#?}");
            assert_eq!(measured.ended, Some(EndedBy::Asked), "{way:?} {direction}: {measured:#?}");
        }
        assert!(!codes(&result).contains(&"bytes_left"), "{way:?}: {result:#?}");
    }
    let one = appliance.speed_test(&["-n", "1", "--idle", "0", "--upload", "-P", "64"]);
    assert_eq!((one.code, one.result().upload.unwrap().total_bytes_received), (0, Some(1)), "{one:?}");
    let cut = ["-n", "1G", "-b", "5M", "-P", "1", "-t", "1", "--upload"];
    let outcome = appliance.speed_test(&[&cut[..], &["--idle", "0"]].concat());
    assert_eq!((outcome.code, codes(&outcome.result()).contains(&"bytes_left")), (0, true), "{outcome:?}");
    assert_eq!(outcome.result().upload.unwrap().ended, Some(EndedBy::Time));
    let args = [&["speed-test", "--provider", "iperf3", "--peer", &plain, "--wait", "60s"], &cut[..]].concat();
    let error = appliance.fails(&args, 1, "data_lost").error;
    assert!(error.because.contains("-t") && error.try_.contains("-n"), "{error:#?}");
    let args = ["speed-test", "--provider", "iperf3", "--peer", &plain, "-n", "1M", "--bidir"];
    assert!(appliance.fails(&args, 2, "bad_request").error.because.contains("both directions"));
}

#[test]
fn a_run_ends_within_its_budget() {
    const BUDGET: u64 = 6_000_001;
    let reflector = Reflector::serve(&[("MODE", "direct_ephemeral")]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    // The share of each direction, and the bytes beyond it: a part of a datagram.
    let ways: [(&[&str], u64, u64); 4] = [
        (&["--data-mode", "tunneled"], BUDGET / 2, 0),
        (&["--data-mode", "direct", "--bidir", "-P", "3"], BUDGET / 4, 0),
        (&["--upload"], BUDGET, 0),
        (&["-u", "-b", "100M"], BUDGET / 2, 1400),
    ];
    for (way, share, beyond) in ways {
        let outcome = appliance.speed_test(&[way, &["--budget", "6000001", "--idle", "0"]].concat());
        assert_eq!(outcome.code, 0, "{way:?}: {outcome:?}\n{}", reflector.log());
        let result = outcome.result();
        assert_eq!(result.requested.unwrap().budget_bytes, Some(BUDGET), "{way:?}");
        let mut all = 0;
        for (_, direction, measured) in result.all_measured() {
            let sent = measured.total_bytes_sent.unwrap();
            assert!((share..=share + beyond).contains(&sent), "{way:?} {direction}: {sent} of {share}: {measured:#?}");
            assert_eq!(measured.ended, Some(EndedBy::Budget), "{way:?} {direction}: {measured:#?}");
            all += sent;
        }
        assert!(all > BUDGET - 4 && all <= BUDGET + 2 * beyond, "{way:?}: {all}");
    }
    let in_time = ["--budget", "1GB", "-b", "5M", "-P", "1", "-t", "1", "--upload", "--idle", "0"];
    let outcome = appliance.speed_test(&in_time);
    let result = outcome.result();
    assert_eq!((outcome.code, result.upload.as_ref().unwrap().ended), (0, Some(EndedBy::Time)), "{outcome:?}");
    assert!(!codes(&result).contains(&"bytes_left"), "a budget is a limit: {result:#?}");
    let refused: [&[&str]; 3] =
        [&["--engine", "iperf3", "--budget", "1MB"], &["--budget", "1"], &["--engine", "echo", "--budget", "1MB"]];
    for args in refused {
        appliance.fails(&[&["speed-test"], args].concat(), 2, "bad_request");
    }
}

#[test]
fn a_reflector_without_the_feature_is_not_asked_for_bytes() {
    let reflector = FalseReflector::listen(|link, first| {
        let mut honest = Honest::default();
        let mut next = Some(first.clone());
        while let Some(message) = next {
            assert_ne!(message["type"], "request", "{message:#}");
            honest.answer(link, &message)?;
            next = link.hear()?;
        }
        Ok(())
    });
    let appliance = Appliance::new();
    let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
    assert_eq!(appliance.run(&["pair-reflector", "--peer", &address, "--endpoint-id", &id]).code, 0);
    let error = appliance.fails(&["speed-test", "-n", "1M"], 2, "bad_request").error;
    assert!(error.because.contains("too old"), "{error:#?}");
}
