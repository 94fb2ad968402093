//! Tests of whole reports on a line: what they state, what they leave out, and that they contain text from other
//! programs only in a harmless form.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::document::{LimitCause, example};
use crate::lines::Tone;

const MBIT: u64 = 1_000_000;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A run that counts, with the given rates in Mbit/s and without an estimate of the rate with headers.
fn run(started_at: Timestamp, download: u64, upload: u64) -> ReportRun {
    let mut run = ReportRun { started_at, suspect: Some(vec![]), ..ReportRun::of(&example::full()) };
    for (rate, mbit) in [(&mut run.download, download), (&mut run.upload, upload)] {
        let rate = rate.as_mut().unwrap();
        (rate.bps, rate.wire_bps, rate.is_datagrams) = (mbit * MBIT, None, false);
    }
    run
}

fn input(runs: Vec<ReportRun>) -> ReportInput {
    let promise =
        |mbit| ContractRate { promised_bps: mbit * MBIT, normal_bps: None, minimum_bps: Some(mbit * MBIT / 2) };
    ReportInput {
        since: at("2026-06-01T00:00:00Z"),
        until: at("2026-06-15T00:00:00Z"),
        made_at: at("2026-06-15T08:00:00Z"),
        zone: TimeZone::UTC,
        plan: Some(Contract { download: Some(promise(100)), upload: Some(promise(40)) }),
        runs,
        unreadable: 0,
        hours: vec![],
        outages: vec![],
        is_redacted: false,
    }
}

/// Two runs a day on ten days: one at 03:00 (`night`) and one at 20:00 (`evening`).
fn two_a_day(night: u64, evening: u64) -> Vec<ReportRun> {
    let day = |day: i64| {
        let at = |hour: i64| at("2026-06-02T00:00:00Z") + SignedDuration::from_hours(24 * day + hour);
        [run(at(3), night, 40), run(at(20), evening, 40)]
    };
    (0..10).flat_map(day).collect()
}

fn texts(report: &LineReport) -> String {
    report.findings.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_report_compares_with_the_contract_and_the_evening_with_the_night() {
    let report = LineReport::of(input(two_a_day(95, 45)));
    let download = &report.directions[0];
    assert_eq!((download.counted.len(), download.days, download.left_out_count()), (20, 10, 0));
    assert_eq!(download.comparison, Comparison::SlowerEvening(1.0 - 45.0 / 95.0));
    let reached =
        download.levels.iter().map(|level| (level.level, level.reached, level.days_below)).collect::<Vec<_>>();
    assert_eq!(reached, [(PlanLevel::Promised, 0, 10), (PlanLevel::Minimum, 10, 10)]);
    let text = texts(&report);
    for part in [
        "Download: 20 runs on 10 days count; the median, headers included, is 70.0 Mbit/s",
        "0 of 20 (0 %) reached the promised 100 Mbit/s",
        "10 of 20 runs, on 10 days, were below the contract's minimum of 50.0 Mbit/s",
        "Download: slower in the evening by 53 % (median 45.0 Mbit/s in the evening, 95.0 Mbit/s at night)",
        "Upload: 20 runs on 10 days count; the median, headers included, is 40.0 Mbit/s (95 % interval 40.0 Mbit/s to \
         40.0 Mbit/s), 100 % of the promised 40.0 Mbit/s. 20 of 20 (100 %) reached",
        "Upload: no difference between evening and night is shown",
        "Outages: not known",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let tone = |start: &str| report.findings.iter().find(|finding| finding.text.starts_with(start)).unwrap().tone;
    // The interval of the download's median reaches from 45 to 95 Mbit/s.
    assert_eq!((tone("Download: 20"), tone("Upload: 20")), (Tone::Fair, Tone::Good));
    let slow = LineReport::of(input(two_a_day(60, 45)));
    assert_eq!(slow.findings[0].tone, Tone::Bad);
    let hour = download.hours.iter().find(|hour| hour.hour == 20).unwrap();
    assert_eq!((hour.count, hour.line.unwrap().value), (10, 45e6));
    assert_eq!(download.hours.iter().map(|hour| hour.count).sum::<usize>(), 20);
}

#[test]
fn headers_count_in_favour_of_the_provider() {
    let mut runs = two_a_day(95, 95);
    for run in &mut runs {
        run.download.as_mut().unwrap().wire_bps = Some(101 * MBIT);
    }
    let report = LineReport::of(input(runs));
    let download = &report.directions[0];
    assert_eq!((download.levels[0].reached, download.payload.unwrap().value), (20, 95e6));
    assert_eq!(report.findings[0].tone, Tone::Good);
}

#[test]
fn too_few_runs_are_said_and_nothing_is_claimed() {
    let report = LineReport::of(input(two_a_day(95, 45).into_iter().take(4).collect()));
    let text = texts(&report);
    assert!(text.contains("Download: 4 runs count in this period, too few for a statement (at least 5)."), "{text}");
    assert!(text.contains("evening against night: too few runs"), "{text}");
    assert!(!text.contains("median"), "{text}");
    assert!(text.contains("minimum"), "what each run shows is still said: {text}");
    let empty = LineReport::of(input(vec![]));
    assert!(empty.is_empty() && texts(&empty).contains("0 runs count"));
    assert!(empty.to_csv().lines().count() == 1);
}

#[test]
fn without_a_contract_nothing_is_compared_with_one() {
    let report = LineReport::of(ReportInput { plan: None, ..input(two_a_day(95, 45)) });
    let text = texts(&report);
    assert!(text.contains("No contract was given") && !text.contains("promised"), "{text}");
}

#[test]
fn runs_that_do_not_count_are_counted_by_their_reason() {
    let mut runs = two_a_day(120, 45);
    runs[0].download.as_mut().unwrap().cause = Some(LimitCause::OtherTraffic);
    runs[1].address = Some("192.168.1.2:4000".to_owned());
    runs[2].is_complete = false;
    let report = LineReport::of(input(runs));
    let download = &report.directions[0];
    let left_out = download.left_out.iter().map(|row| (row.why, row.count, row.reached)).collect::<Vec<_>>();
    let expected =
        [(LeftOut::Incomplete, 1, Some(1)), (LeftOut::Local, 1, Some(0)), (LeftOut::OtherTraffic, 1, Some(1))];
    assert_eq!((left_out.as_slice(), download.counted.len()), (expected.as_slice(), 17));
    let csv = report.to_csv();
    let cell = |line: usize| csv.lines().nth(line).unwrap().split(',').nth(8).unwrap().to_owned();
    assert_eq!([cell(1), cell(2), cell(3), cell(4)], ["other_traffic", "local_target", "incomplete", "yes"]);
    assert_eq!(csv.lines().count(), 21);
    let columns = csv.lines().map(|line| line.split(',').count()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(columns.len(), 1, "{csv}");
}

#[test]
fn outages_are_said_by_what_was_still_reachable() {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    let outage = |began: &str, ended: Option<&str>, extent| ReportOutage {
        began_at: at(began),
        ended_at: ended.map(at),
        is_end_known: true,
        extent,
        failed: names(&["attic"]),
        reachable: names(&["gateway"]),
    };
    let hour = |number: i64, name: &str, is_gateway| MonitorHour {
        monitor: name.to_owned(),
        target: "reflector:attic".to_owned(),
        is_gateway,
        begins_at: at("2026-06-01T00:00:00Z") + SignedDuration::from_hours(number),
        count: 3_600,
        lost: 36,
        p50_us: Some(12_000),
        p95_us: Some(20_000),
    };
    let outages = vec![
        // Half of this outage is before the period.
        outage("2026-05-31T23:50:00Z", Some("2026-06-01T00:10:00Z"), OutageExtent::BeyondGateway),
        outage("2026-06-02T10:00:00Z", Some("2026-06-02T10:30:00Z"), OutageExtent::BeyondGateway),
        outage("2026-06-03T10:00:00Z", Some("2026-06-03T10:01:00Z"), OutageExtent::Everything),
        outage("2026-06-14T23:59:00Z", None, OutageExtent::Target),
    ];
    let hours = (0..100).flat_map(|number| [hour(number, "attic", false), hour(number, "gateway", true)]).collect();
    let report = LineReport::of(ReportInput { outages, hours, ..input(vec![]) });
    let line = report.outages.sum(OutageExtent::BeyondGateway).unwrap();
    assert_eq!((line.count, line.seconds, line.longest_s), (2, 2_400, 1_800));
    assert_eq!((report.outages.observed_hours, report.outages.period_hours), (100, 336));
    assert_eq!(report.outages.sum(OutageExtent::Target).unwrap().seconds, 60);
    let text = texts(&report);
    for part in [
        "Outages: 2 times (40 min 0 s together, the longest 30 min 0 s) the router was reachable and nothing beyond it",
        "Outages: once (1 min 0 s) not even the router was reachable",
        "no outage of the line",
        "in 100 of the period's 336 hours",
        "Loss: the monitor attic lost 1.0 % of 360000 probes",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (attic, gateway) = (&report.monitors[0], &report.monitors[1]);
    assert_eq!((attic.all.hours, attic.is_gateway, gateway.is_gateway), (100, false, true));
    assert_eq!(attic.all.p50_us.unwrap().value, 12_000.0);
    assert!(attic.evening.hours > 0 && attic.night.hours > 0);
}

#[test]
fn a_line_without_outages_is_praised_only_if_it_was_watched() {
    let hour = |number: i64, is_gateway: bool| MonitorHour {
        monitor: format!("monitor-{is_gateway}"),
        target: "x".to_owned(),
        is_gateway,
        begins_at: at("2026-06-01T00:00:00Z") + SignedDuration::from_hours(number),
        count: 60,
        lost: 0,
        p50_us: None,
        p95_us: None,
    };
    let tone = |hours: Vec<MonitorHour>| {
        let report = LineReport::of(ReportInput { hours, ..input(vec![]) });
        report.findings.iter().find(|finding| finding.text.starts_with("Outages")).unwrap().tone
    };
    assert_eq!(tone((0..336).flat_map(|n| [hour(n, true), hour(n, false)]).collect()), Tone::Good);
    assert_eq!(tone((0..336).map(|n| hour(n, false)).collect()), Tone::Plain);
    assert_eq!(tone((0..100).flat_map(|n| [hour(n, true), hour(n, false)]).collect()), Tone::Plain);
    assert_eq!(tone((0..336).map(|n| hour(n, true)).collect()), Tone::Fair);
}

#[test]
fn a_redacted_report_has_no_name_address_or_key() {
    let mut runs = two_a_day(95, 45);
    for run in &mut runs {
        run.interface =
            Some(InterfaceSeen { name: "enx0123secret".into(), speed_bps: Some(1), is_half_duplex: Some(false) });
        run.other_end = Some("secret attic".to_owned());
        run.address = Some("203.0.113.7:4000".to_owned());
        run.public_prefix = Some("198.51.100.0/24".to_owned());
        run.uplink = Some("secret0".to_owned());
        run.error = Some("secret text".to_owned());
        run.warnings = vec!["secret warning".to_owned()];
    }
    let hours = vec![MonitorHour {
        monitor: "secret monitor".to_owned(),
        target: "host:203.0.113.9".to_owned(),
        is_gateway: false,
        begins_at: at("2026-06-03T00:00:00Z"),
        count: 1,
        lost: 1,
        p50_us: None,
        p95_us: None,
    }];
    let whole = ReportInput { hours, ..input(runs) };
    let report = LineReport::of(ReportInput { is_redacted: true, ..whole.clone() });
    let text = format!("{report:?}{}", report.to_csv());
    for secret in ["secret", "203.0.113", "198.51.100", "PP-"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(text.contains("server 1") && text.contains("monitor 1") && text.contains("interface 1"));
    let open = format!("{:?}", LineReport::of(whole));
    assert!(open.contains("secret attic") && open.contains("PP-"));
}

#[test]
fn the_limits_of_the_proof_are_those_of_the_runs() {
    let mut runs = two_a_day(95, 45);
    runs[0].is_clock_synchronised = Some(false);
    runs[1].download.as_mut().unwrap().cause = Some(LimitCause::Unknown);
    for run in &mut runs[1..] {
        run.is_clock_synchronised = Some(true);
    }
    let limits = LineReport::of(input(runs)).limits.join("\n");
    for part in
        ["one other end (attic)", "2 of the 24 hours", "In 1 run the clock", "what limited 1 rate among", "not signed"]
    {
        assert!(limits.contains(part), "{part}\n{limits}");
    }
    let empty = LineReport::of(input(vec![])).limits.join("\n");
    assert!(!empty.contains("one other end") && !empty.contains("clock"), "{empty}");
}

proptest! {
    #[test]
    fn no_run_panics(rates in proptest::collection::vec((0_u64..400_000, any::<u64>(), any::<Option<u64>>()), 0..60), promise in any::<u64>()) {
        let runs = rates.into_iter().map(|(minute, bps, wire_bps)| {
            let mut run = run(at("2026-06-01T00:00:00Z") + SignedDuration::from_mins(minute as i64), 1, 1);
            run.download.as_mut().unwrap().bps = bps;
            run.upload.as_mut().unwrap().wire_bps = wire_bps;
            run
        });
        let rate = ContractRate { promised_bps: promise, normal_bps: Some(promise), minimum_bps: Some(0) };
        let plan = Some(Contract { download: Some(rate), upload: None });
        let report = LineReport::of(ReportInput { plan, ..input(runs.collect()) });
        prop_assert_eq!(report.to_csv().lines().count(), report.runs.len() + 1);
        prop_assert!(!texts(&report).contains("NaN"));
    }
}
