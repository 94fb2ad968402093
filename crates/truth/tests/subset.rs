//! Compares results with what an emulated link did: exact counts and signs only. `script/lab` checks the tolerances.

use std::sync::{Mutex, PoisonError};

use emulator::{KeepAwake, Scenario, Transport, Way};
use lab::Programs;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::ResultDocument;
use truth::cells;
use truth::run::{Bed, Finished};

/// Held by the running test, because concurrent tests would make the links late.
static ALONE: Mutex<()> = Mutex::new(());

/// How many runs a test makes before it is skipped, if the emulated link is late in each.
const TRIES: u64 = 3;

/// Runs a speed test in the cell `name` until the link was not late, and passes the run to `judge`. Prints SKIPPED if
/// the link was late in all [`TRIES`] runs.
fn judge(name: &str, args: &[&str], judge: impl Fn(&Finished)) {
    judge_on(name, &cells::named(name).unwrap().scenario, args, judge);
}

/// Runs a speed test over `scenario` until the link was not late, and passes the run to `judge`. Prints SKIPPED if the
/// link was late in all [`TRIES`] runs.
fn judge_on(name: &str, scenario: &Scenario, args: &[&str], judge: impl Fn(&Finished)) {
    if !may_run() {
        return;
    }
    Programs::built();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _awake = KeepAwake::start();
    for seed in 1..=TRIES {
        let finished = Bed::new(scenario, seed).unwrap().speed_test(args).unwrap();
        match &finished.fault {
            None => return judge(&finished),
            Some(fault) => eprintln!("{name}: discarded: {fault}"),
        }
    }
    eprintln!("SKIPPED: {name}: the link was late in {TRIES} runs");
}

/// Whether the test runs as root. Prints SKIPPED if not.
fn may_run() -> bool {
    let may = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !may {
        eprintln!("SKIPPED: network namespaces need root");
    }
    may
}

fn p50_us(result: &ResultDocument, load: Load) -> u64 {
    result.latency.of(load).and_then(|latency| latency.rtt_us?.p50).unwrap_or_else(|| panic!("{load:?}: {result:#?}"))
}

/// Asserts that the result counts the same lost, duplicated and reordered datagrams as the link.
fn counts_are_exact(finished: &Finished) {
    let document = &finished.run.document;
    for direction in [Direction::Download, Direction::Upload] {
        let load = if direction == Direction::Download { Load::Download } else { Load::Upload };
        let said = document.measured(load, direction).and_then(|measured| measured.udp);
        let said = said.unwrap_or_else(|| panic!("{direction}: {document:#?}"));
        let link =
            finished.run.observed.directions.iter().find(|one| one.direction == direction).unwrap().datagrams.unwrap();
        let counts = (said.lost, said.duplicates, said.out_of_order);
        let true_counts = (link.dropped, Some(link.copies), Some(link.reordered));
        assert_eq!(counts, true_counts, "{direction}: lost, duplicated, out of order");
        assert_eq!(said.datagrams, link.entered, "{direction}: {said:?}, {link:?}");
        assert!(link.dropped + link.copies + link.reordered > 0, "{direction}: the link did something: {link:?}");
    }
}

#[test]
fn a_clean_line_loses_nothing_is_not_exceeded_and_its_queue_is_seen() {
    judge("03-cable", &["-t", "3", "--idle", "1"], |finished| {
        let result = &finished.run.document;
        let idle = result.latency.idle.as_ref().unwrap();
        assert_eq!((idle.received, idle.duplicates), (idle.sent, 0), "{idle:#?}");
        // The link is set to 20 ms. What the host adds may be long, but cannot be negative.
        assert!(p50_us(result, Load::Idle) >= 20_000, "{idle:#?}");
        for (load, direction, mbit) in
            [(Load::Download, Direction::Download, 100), (Load::Upload, Direction::Upload, 10)]
        {
            let goodput = result.measured(load, direction).unwrap().goodput_bps;
            assert!((1..mbit * 1_000_000).contains(&goodput), "{direction}: {goodput} bit/s of {mbit} Mbit/s");
        }
        // A busy host fills 10 Mbit/s, but may not fill 100.
        assert!(p50_us(result, Load::Upload) > p50_us(result, Load::Idle), "{result:#?}");
        let observed = finished.run.observed.latency_of(Load::Upload).unwrap();
        assert!(observed.queue_ms.unwrap() > 0.0, "{observed:?}");
    });
}

#[test]
fn lost_datagrams_are_counted_exactly() {
    judge("15-loss-3", &["-u", "-b", "5M", "-O", "0", "-t", "2", "--idle", "1"], |finished| {
        counts_are_exact(finished);
        let observed = finished.run.observed.latency_of(Load::Idle).unwrap();
        let idle = finished.run.document.latency.idle.as_ref().unwrap();
        // The window may be off by a probe at each end.
        let lost = (idle.sent - idle.received).abs_diff(observed.lost_up + observed.lost_down);
        assert!(lost <= 2, "{idle:#?}\n{observed:?}");
    });
}

#[test]
fn reordered_and_duplicated_datagrams_are_counted_exactly() {
    judge("20-reordering-duplicates", &["-u", "-b", "5M", "-O", "0", "-t", "2", "--idle", "0.5"], |finished| {
        counts_are_exact(finished);
        for way in Way::BOTH {
            let record = &finished.links[0][way as usize];
            // A TCP connection may still close when the record ends.
            let datagrams = record.flows.iter().filter(|(key, _)| key.transport == Transport::Udp);
            for (key, flow) in datagrams {
                let fates = flow.left + flow.all_dropped() - flow.copies;
                assert_eq!(fates, flow.entered, "{key:?}: every packet left or was dropped: {flow:?}");
            }
        }
    });
}

/// A link of 20 Mbit/s in each direction and a round trip of 20 ms, which changes two seconds after the download began.
/// `up` and `down` are the new settings in TOML.
fn changing(up: &str, down: &str) -> Scenario {
    let text = format!(
        "title = \"a line that changes\"\n[[hop]]\n\
         up = {{ rate_mbit = 20.0, queue_ms = 60.0, delay_ms = 10.0 }}\n\
         down = {{ rate_mbit = 20.0, queue_ms = 60.0, delay_ms = 10.0 }}\n\
         [[change]]\nhop = 1\nphase = \"download\"\nafter_s = 2.0\nup = {up}\ndown = {down}\n"
    );
    Scenario::parse(&text).unwrap()
}

#[test]
fn a_rate_that_changes_in_mid_download_is_reported_and_the_upload_is_not_spoilt() {
    let down = "{ rate_mbit = 5.0, queue_ms = 60.0, delay_ms = 10.0 }";
    let line = changing("{ rate_mbit = 20.0, queue_ms = 60.0, delay_ms = 10.0 }", down);
    judge_on("a rate that changes", &line, &["-t", "5", "--idle", "1"], |finished| {
        let result = &finished.run.document;
        let thirds = result.download.as_ref().unwrap().thirds_bps.unwrap();
        assert!(thirds.first > 2 * thirds.last, "{thirds:?}");
        let warning = result.warnings.iter().find(|warning| warning.code == "not_steady").unwrap();
        assert!(warning.text.contains("the download was not steady"), "{warning:?}");
        // The way up stays as it was: 20 Mbit/s, less than which the headers leave for payload.
        let upload = result.upload.as_ref().unwrap();
        assert!(upload.goodput_bps < 20_000_000, "{upload:?}");
        assert!(result.warnings.iter().all(|warning| warning.code != "path_changed"), "{result:#?}");
    });
}

#[test]
fn a_route_that_changes_in_mid_download_is_no_clock_jump() {
    let longer = "{ rate_mbit = 20.0, queue_ms = 60.0, delay_ms = 50.0 }";
    judge_on("a route that changes", &changing(longer, longer), &["-t", "5", "--idle", "1"], |finished| {
        let result = &finished.run.document;
        let warning = result.warnings.iter().find(|warning| warning.code == "path_changed");
        let warning = warning.unwrap_or_else(|| panic!("{result:#?}"));
        assert!(warning.text.starts_with("in the download phase the delay to the reflector rose by "), "{warning:?}");
        assert!(result.clocks.unwrap().jump.is_none(), "{result:#?}");
        assert!(result.bufferbloat.is_empty(), "the longer way is no queue of the load: {result:#?}");
        assert!(result.validity.as_ref().is_some_and(|validity| !validity.reasons.is_empty()), "{result:#?}");
    });
}
