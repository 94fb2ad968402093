//! The table of the messages: each situation with the words of its message.

use super::*;
use crate::alerts::finding::RetestFinding;

/// The time `minutes` after 2026-01-31, 12:00 UTC.
fn at(minutes: i64) -> Timestamp {
    Timestamp::from_second(1_769_860_800 + minutes * 60).unwrap()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn found(metric: AlertMetric, limit: AlertLimit, measured: f64, expected: f64) -> AlertFinding {
    AlertFinding {
        metric,
        limit: Some(limit),
        at: at(0),
        since: at(-150),
        until: None,
        measured: Some(measured),
        expected: Some(expected),
        reference: None,
        count: 3,
        of: 4,
        window_minutes: (metric.source() == MetricSource::Monitors).then_some(5),
        retest: None,
        outage: None,
        failure: None,
        ended_by: None,
    }
}

fn slow() -> AlertFinding {
    let share = found(AlertMetric::Download, AlertLimit::BelowPlan(0.7), 61e6, 70e6);
    AlertFinding { reference: Some(100e6), retest: Some(RetestFinding::default()), ..share }
}

fn outage(scope: OutageScope, failed: &[&str]) -> AlertFinding {
    let outage = Some(OutageFinding { scope, failed: names(failed) });
    AlertFinding { outage, count: 1, of: 1, ..found(AlertMetric::Outage, AlertLimit::Above(120.0), 120.0, 120.0) }
}

fn failed() -> AlertFinding {
    let failure = Some("cannot reach reflector at 203.0.113.7:4000".to_owned());
    let event = found(AlertMetric::TestFailed, AlertLimit::Above(0.0), 1.0, 0.0);
    AlertFinding { limit: None, measured: None, expected: None, failure, of: 3, ..event }
}

fn openings() -> Vec<(AlertFinding, &'static str, &'static str)> {
    let with = |also_bad: &[&str], good: &[&str]| AlertFinding {
        retest: Some(RetestFinding { also_bad: names(also_bad), good: names(good) }),
        ..slow()
    };
    let usual = AlertFinding {
        reference: Some(20.0),
        count: 4,
        of: 6,
        ..found(AlertMetric::MonitorLatencyP50, AlertLimit::AboveUsual(2.5), 82.0, 50.0)
    };
    let once = |finding| AlertFinding { count: 1, of: 1, ..finding };
    vec![
        (
            slow(),
            "Slow download: 61.0 Mbit/s from attic",
            "The download from attic was 61.0 Mbit/s.\nExpected: at least 70.0 Mbit/s, 70 % of the 100 Mbit/s of the plan.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 tests were below that; the test that was repeated at once agrees.",
        ),
        (
            with(&["cellar"], &["office"]),
            "Slow download: 61.0 Mbit/s from attic",
            "The download from attic was 61.0 Mbit/s.\nExpected: at least 70.0 Mbit/s, 70 % of the 100 Mbit/s of the plan.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 tests were below that; the test that was repeated at once agrees.\ncellar, tested at the same time, was not as expected either: it is the line, not one end.",
        ),
        (
            with(&[], &["cellar"]),
            "Slow download: 61.0 Mbit/s from attic",
            "The download from attic was 61.0 Mbit/s.\nExpected: at least 70.0 Mbit/s, 70 % of the 100 Mbit/s of the plan.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 tests were below that; the test that was repeated at once agrees.\ncellar, tested at the same time, was as expected: it is attic or the way to it, not the line.",
        ),
        (
            once(found(AlertMetric::Upload, AlertLimit::Below(10e6), 9e6, 10e6)),
            "Slow upload: 9.00 Mbit/s to attic",
            "The upload to attic was 9.00 Mbit/s.\nExpected: at least 10.0 Mbit/s.\nSince 2026-01-31 10:30 CET.\nHow sure: one test.",
        ),
        (
            AlertFinding {
                reference: Some(90e6),
                ..found(AlertMetric::Download, AlertLimit::BelowUsual(0.6), 40e6, 54e6)
            },
            "Slow download: 40.0 Mbit/s from attic",
            "The download from attic was 40.0 Mbit/s.\nExpected: at least 54.0 Mbit/s: 60 % of the 90.0 Mbit/s that are usual at this hour of the week.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 tests were below that.",
        ),
        (
            usual,
            "Slow answers: 82.0 ms to attic and back",
            "The median round trip to attic was 82.0 ms in 5 min.\nExpected: at most 50.0 ms; 20.0 ms are usual at this hour of the week.\nSince 2026-01-31 10:30 CET.\nHow sure: 4 of the last 6 windows of 5 min were above that.",
        ),
        (
            found(AlertMetric::MonitorLoss, AlertLimit::Above(2.0), 6.1, 2.0),
            "Loss: 6.1 % of the probes to attic",
            "6.1 % of the probes to attic were lost in 5 min.\nExpected: at most 2.0 %.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 windows of 5 min were above that.",
        ),
        (
            found(AlertMetric::LoadedLatency, AlertLimit::Above(200.0), 431.0, 200.0),
            "Slow answers under load: 431 ms to attic and back",
            "The 95th percentile of the round trips to attic was 431 ms under load.\nExpected: at most 200 ms.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 4 tests were above that.",
        ),
        (
            outage(OutageScope::BeyondGateway, &["attic", "office", "dns"]),
            "Outage: the gateway answers, nothing beyond it does",
            "For 2 min: the gateway answers, nothing beyond it does. Not reachable: attic, dns and 1 more.\nExpected: no outage longer than 2 min.\nSince 2026-01-31 10:30 CET.\nHow sure: three probes in a row were lost, and to a reflector a TCP connection failed too.",
        ),
        (
            outage(OutageScope::Target, &["attic"]),
            "Outage: attic does not answer, other targets do",
            "For 2 min: attic does not answer, other targets do. Not reachable: attic.\nExpected: no outage longer than 2 min.\nSince 2026-01-31 10:30 CET.\nHow sure: three probes in a row were lost, and to a reflector a TCP connection failed too.",
        ),
        (
            failed(),
            "Tests against attic fail",
            "The last test against attic failed: cannot reach reflector at 203.0.113.7:4000.\nSince 2026-01-31 10:30 CET.\nHow sure: 3 of the last 3 tests failed.",
        ),
        (
            once(found(AlertMetric::Silence, AlertLimit::Above(7_200.0), 9_000.0, 7_200.0)),
            "No result for 2 h 30 min",
            "The last result is of 2026-01-31 10:30 CET: 2 h 30 min ago.\nExpected: a result within 2 h.",
        ),
    ]
}

fn closings() -> Vec<(AlertFinding, &'static str, &'static str)> {
    let over = |finding| AlertFinding { until: Some(at(-10)), ..finding };
    let again = AlertFinding { measured: Some(95e6), retest: None, ..slow() };
    vec![
        (
            over(again),
            "Download as expected again: 95.0 Mbit/s from attic",
            "The download from attic is 95.0 Mbit/s.\nExpected: at least 70.0 Mbit/s, 70 % of the 100 Mbit/s of the plan.\nIt lasted from 2026-01-31 10:30 CET to 2026-01-31 12:50 CET: 2 h 20 min.\nHow sure: the last 3 tests were as expected.",
        ),
        (
            over(found(AlertMetric::MonitorLoss, AlertLimit::Above(2.0), 0.0, 2.0)),
            "Loss is over: 0 % of the probes to attic",
            "0 % of the probes to attic were lost.\nExpected: at most 2.0 %.\nIt lasted from 2026-01-31 10:30 CET to 2026-01-31 12:50 CET: 2 h 20 min.\nHow sure: as expected in the last 15 min that were judged.",
        ),
        (
            over(AlertFinding { measured: Some(8_400.0), ..outage(OutageScope::BeyondGateway, &["attic"]) }),
            "Outage is over after 2 h 20 min",
            "Reachable again: attic.\nIt lasted from 2026-01-31 10:30 CET to 2026-01-31 12:50 CET: 2 h 20 min.",
        ),
        (
            over(AlertFinding { count: 1, failure: None, ..failed() }),
            "Tests against attic work again",
            "A test against attic ran to its end.\nIt lasted from 2026-01-31 10:30 CET to 2026-01-31 12:50 CET: 2 h 20 min.\nHow sure: the last test was as expected.",
        ),
        (
            over(found(AlertMetric::Silence, AlertLimit::Above(7_200.0), 8_400.0, 7_200.0)),
            "Results are measured again",
            "There is a new result.\nExpected: a result within 2 h.\nIt lasted from 2026-01-31 10:30 CET to 2026-01-31 12:50 CET: 2 h 20 min.",
        ),
        (
            AlertFinding { ended_by: Some(RuleEnd::Disabled), ..slow() },
            "Closed: the rule slow was disabled",
            "The rule slow was disabled, so its alert about download (attic) is closed.\nIt was open since 2026-01-31 10:30 CET. Whether it still holds is not judged any more.",
        ),
        (
            AlertFinding { ended_by: Some(RuleEnd::Changed), ..slow() },
            "Closed: the rule slow was changed",
            "The rule slow was changed, so its alert about download (attic) is closed.\nIt was open since 2026-01-31 10:30 CET. What is measured from now on is judged by the changed rule.",
        ),
    ]
}

#[test]
fn every_situation_has_its_words() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    for (finding, title, text) in openings() {
        let words = opened("attic", &finding, &zone);
        // The first line that differs is shown alone.
        for (own, expected) in words.text.lines().zip(text.lines()) {
            assert_eq!(own, expected);
        }
        assert_eq!(words, AlertWords { title: title.to_owned(), text: text.to_owned() });
    }
    for (finding, title, text) in closings() {
        let words = closed("slow", "attic", &finding, &zone);
        for (own, expected) in words.text.lines().zip(text.lines()) {
            assert_eq!(own, expected);
        }
        assert_eq!(words, AlertWords { title: title.to_owned(), text: text.to_owned() });
    }
}

#[test]
fn a_message_says_what_was_measured_what_was_expected_since_when_and_how_sure() {
    for (finding, ..) in openings() {
        let words = opened("attic", &finding, &TimeZone::UTC);
        let is_event = finding.metric == AlertMetric::TestFailed;
        assert!(is_event || words.text.contains("Expected: "), "{words:?}");
        assert!(words.text.contains("2026-01-31 09:30 UTC"), "since when: {words:?}");
        let is_counted = finding.metric.source() != MetricSource::Clock;
        assert!(!is_counted || words.text.contains("How sure: "), "{words:?}");
        assert!(words.title.chars().count() <= 80, "{}", words.title);
    }
}

#[test]
fn only_an_outage_of_the_whole_line_is_urgent() {
    assert_eq!(urgency(&outage(OutageScope::BeyondGateway, &["attic"])), Urgency::High);
    assert_eq!(urgency(&outage(OutageScope::Target, &["attic"])), Urgency::Normal);
    assert_eq!(urgency(&slow()), Urgency::Normal);
}
