//! The test table of all situations, each with the sentence that `judge` must write about the line. A time in a
//! sentence consists of the hours and minutes in UTC.

use super::*;
use crate::plan::PromisedRate;
use paramedic_link::test_spec::Direction;
use paramedic_report::document::LimitCause;

/// The time `minutes` after 2026-01-31, 12:00 UTC.
fn at(minutes: i64) -> Timestamp {
    Timestamp::from_second(1_769_860_800 + minutes * 60).unwrap()
}

fn nothing() -> LineObservations {
    LineObservations { now: at(0), monitors: vec![], outage: None, result: None, failure: None, alerts: vec![] }
}

fn monitor(name: &str, count: u64, lost: u64) -> MonitorLoss {
    MonitorLoss { name: name.to_owned(), is_gateway: name == "gateway", is_measuring: true, count, lost }
}

fn outage(scope: OutageScope, failed: &[&str], ended: Option<i64>) -> Option<OutageSeen> {
    let failed = failed.iter().map(|name| (*name).to_owned()).collect();
    Some(OutageSeen { began: at(-30), ended: ended.map(at), scope, failed })
}

fn speed(direction: Direction, mbps: u64, promised: Option<PromisedRate>, limit: LimitCause) -> MeasuredSpeed {
    MeasuredSpeed { direction, bps: mbps * 1_000_000, promised, limit: Some(limit) }
}

fn promise(promised: u64, normal: Option<u64>, minimum: Option<u64>) -> Option<PromisedRate> {
    let bps = |mbps: u64| mbps * 1_000_000;
    Some(PromisedRate { promised_bps: bps(promised), normal_bps: normal.map(bps), minimum_bps: minimum.map(bps) })
}

fn result(minutes: i64, speeds: &[MeasuredSpeed]) -> Option<ResultSeen> {
    Some(ResultSeen { at: at(minutes), speeds: speeds.to_vec(), worst_load: None })
}

fn down(mbps: u64, promised: Option<PromisedRate>) -> MeasuredSpeed {
    speed(Direction::Download, mbps, promised, LimitCause::Network)
}

fn up(mbps: u64, promised: Option<PromisedRate>) -> MeasuredSpeed {
    speed(Direction::Upload, mbps, promised, LimitCause::Network)
}

fn slow() -> OpenAlert {
    OpenAlert { title: "Slow download: 61.0 Mbit/s from attic".to_owned(), since: at(-30) }
}

fn shown(verdict: &LineVerdict) -> String {
    let part = |part: &SentencePart| match part {
        SentencePart::Text(text) => text.clone(),
        SentencePart::Time(time) => time.strftime("%H:%M").to_string(),
    };
    verdict.parts.iter().map(part).collect()
}

fn cases() -> Vec<(&'static str, LineObservations, Tone, &'static str)> {
    let clean = || vec![monitor("gateway", 900, 0), monitor("attic", 900, 0)];
    let plan = promise(100, Some(80), Some(50));
    let bare = promise(100, None, None);
    let failure = Some(FailedTest { at: at(-5), what: "cannot reach reflector at 203.0.113.7:4000".to_owned() });
    let kept = || result(-60, &[down(95, plan), up(96, plan)]);
    let bloated =
        |load, grade, ms| result(-60, &[]).map(|seen| ResultSeen { worst_load: Some((load, grade, ms)), ..seen });
    let excused = |limit| result(-60, &[speed(Direction::Download, 40, plan, limit)]);
    vec![
        ("nothing", nothing(), Tone::Plain, "Nothing has been measured yet."),
        (
            "the gateway alone",
            LineObservations { monitors: vec![monitor("gateway", 900, 0)], ..nothing() },
            Tone::Plain,
            "The gateway answers. Nothing beyond it has been measured yet: pair a reflector.",
        ),
        (
            "a monitor that has just begun",
            LineObservations { monitors: vec![monitor("attic", 49, 49)], ..nothing() },
            Tone::Plain,
            "Nothing has been measured yet.",
        ),
        (
            "a monitor that is paused",
            LineObservations {
                monitors: vec![MonitorLoss { is_measuring: false, ..monitor("attic", 900, 900) }],
                ..nothing()
            },
            Tone::Plain,
            "Nothing has been measured yet.",
        ),
        (
            "monitors alone",
            LineObservations { monitors: clean(), ..nothing() },
            Tone::Good,
            "Good as far as it is measured: no probe was lost in the last 15 minutes. The speed has not been measured yet.",
        ),
        (
            "monitors and an old test",
            LineObservations { monitors: clean(), result: result(-1600, &[down(10, plan)]), ..nothing() },
            Tone::Good,
            "Good as far as it is measured: no probe was lost in the last 15 minutes. The last speed test was at 09:20.",
        ),
        (
            "all is well",
            LineObservations { monitors: clean(), result: kept(), ..nothing() },
            Tone::Good,
            "Good: no probe was lost in the last 15 minutes, and the test at 11:00 kept the plan with 95.0 Mbit/s download and 96.0 Mbit/s upload.",
        ),
        (
            "a little loss",
            LineObservations {
                monitors: vec![monitor("attic", 900, 2)],
                result: result(-60, &[down(95, None)]),
                ..nothing()
            },
            Tone::Good,
            "Good: only 0.22 % of the probes were lost in the last 15 minutes, and the test at 11:00 measured 95.0 Mbit/s download.",
        ),
        (
            "a test alone",
            LineObservations { result: result(-60, &[down(95, None)]), ..nothing() },
            Tone::Plain,
            "The test at 11:00 measured 95.0 Mbit/s download. Nothing beyond the gateway is watched at present.",
        ),
        (
            "an old test alone",
            LineObservations { result: result(-1600, &[down(95, None)]), ..nothing() },
            Tone::Plain,
            "How the line is now is not known: the last test was at 09:20.",
        ),
        (
            "a test of the future",
            LineObservations { result: result(90, &[down(1, plan)]), ..nothing() },
            Tone::Plain,
            "How the line is now is not known: the last test was at 13:30.",
        ),
        (
            "nothing answers",
            LineObservations {
                outage: outage(OutageScope::Everything, &["gateway", "attic"], None),
                result: kept(),
                ..nothing()
            },
            Tone::Bad,
            "Nothing answers, not even the gateway, since 11:30.",
        ),
        (
            "nothing beyond the gateway answers",
            LineObservations { outage: outage(OutageScope::BeyondGateway, &["attic"], None), ..nothing() },
            Tone::Bad,
            "The gateway answers, but nothing beyond it has answered since 11:30.",
        ),
        (
            "one target does not answer",
            LineObservations { outage: outage(OutageScope::Target, &["attic"], None), ..nothing() },
            Tone::Fair,
            "attic has not answered since 11:30; other targets beyond the gateway do.",
        ),
        (
            "four targets do not answer",
            LineObservations { outage: outage(OutageScope::Target, &["a", "b", "c", "d"], None), ..nothing() },
            Tone::Fair,
            "a, b and 2 more have not answered since 11:30; other targets beyond the gateway do.",
        ),
        (
            "a gateway that does not answer",
            LineObservations { outage: outage(OutageScope::Gateway, &["gateway"], None), ..nothing() },
            Tone::Fair,
            "The gateway has not answered since 11:30, but targets beyond it do.",
        ),
        (
            "the only target does not answer",
            LineObservations { outage: outage(OutageScope::Unknown, &["attic"], None), ..nothing() },
            Tone::Bad,
            "attic has not answered since 11:30; nothing else is probed that could tell why.",
        ),
        (
            "an outage has just ended",
            LineObservations {
                outage: outage(OutageScope::BeyondGateway, &["attic"], Some(-26)),
                monitors: clean(),
                result: kept(),
                ..nothing()
            },
            Tone::Fair,
            "The line answers again since 11:34, after an outage of 4 min 0 s.",
        ),
        (
            "an outage of a target has just ended",
            LineObservations { outage: outage(OutageScope::Target, &["attic"], Some(-26)), ..nothing() },
            Tone::Fair,
            "attic answers again since 11:34, after an outage of 4 min 0 s.",
        ),
        (
            "an outage ended long ago",
            LineObservations {
                outage: outage(OutageScope::BeyondGateway, &["attic"], Some(-26)).map(|old| OutageSeen {
                    began: at(-200),
                    ended: Some(at(-100)),
                    ..old
                }),
                monitors: clean(),
                result: kept(),
                ..nothing()
            },
            Tone::Good,
            "Good: no probe was lost in the last 15 minutes, and the test at 11:00 kept the plan with 95.0 Mbit/s download and 96.0 Mbit/s upload.",
        ),
        (
            "loss beyond the gateway",
            LineObservations {
                monitors: vec![monitor("gateway", 900, 0), monitor("attic", 900, 60)],
                result: kept(),
                ..nothing()
            },
            Tone::Bad,
            "6.7 % of the probes to attic were lost in the last 15 minutes, but none of those to the gateway: the loss is beyond it.",
        ),
        (
            "loss before the gateway",
            LineObservations { monitors: vec![monitor("gateway", 900, 12), monitor("attic", 900, 14)], ..nothing() },
            Tone::Fair,
            "1.6 % of the probes to attic were lost in the last 15 minutes, and 1.3 % of those to the gateway: the loss begins between this device and the gateway.",
        ),
        (
            "loss without a monitor of the gateway",
            LineObservations { monitors: vec![monitor("attic", 900, 14)], ..nothing() },
            Tone::Fair,
            "1.6 % of the probes to attic were lost in the last 15 minutes.",
        ),
        (
            "two lost probes of few are chance",
            LineObservations { monitors: vec![monitor("attic", 60, 2)], ..nothing() },
            Tone::Good,
            "Good as far as it is measured: only 3.3 % of the probes were lost in the last 15 minutes. The speed has not been measured yet.",
        ),
        (
            "the last test failed",
            LineObservations { failure: failure.clone(), result: kept(), ..nothing() },
            Tone::Fair,
            "The last test, at 11:55, failed: cannot reach reflector at 203.0.113.7:4000.",
        ),
        (
            "the last test failed, and the monitors are well",
            LineObservations { failure, monitors: clean(), ..nothing() },
            Tone::Fair,
            "The last test, at 11:55, failed: cannot reach reflector at 203.0.113.7:4000; the monitors lost no probe in the last 15 minutes.",
        ),
        (
            "below the minimum",
            LineObservations { result: result(-60, &[down(79, plan), up(49, plan)]), monitors: clean(), ..nothing() },
            Tone::Bad,
            "The upload was 49.0 Mbit/s at 11:00, below the minimum of the plan, 50.0 Mbit/s.",
        ),
        (
            "below the normal rate",
            LineObservations { result: result(-60, &[down(79, plan), up(96, plan)]), ..nothing() },
            Tone::Fair,
            "The download was 79.0 Mbit/s at 11:00, below what is normal for the plan, 80.0 Mbit/s.",
        ),
        (
            "below the promise",
            LineObservations { result: result(-60, &[down(61, bare)]), ..nothing() },
            Tone::Fair,
            "The download was 61.0 Mbit/s at 11:00, 61 % of the 100 Mbit/s of the plan.",
        ),
        (
            "this device was the limit",
            LineObservations { result: excused(LimitCause::ApplianceCpu), ..nothing() },
            Tone::Fair,
            "The download was 40.0 Mbit/s at 11:00, below the minimum of the plan, 50.0 Mbit/s; but the processor of this device was the limit, not the line.",
        ),
        (
            "other traffic used the line",
            LineObservations { result: excused(LimitCause::OtherTraffic), ..nothing() },
            Tone::Fair,
            "The download was 40.0 Mbit/s at 11:00, below the minimum of the plan, 50.0 Mbit/s; but other traffic used the line at the same time.",
        ),
        (
            "a limit that is not known is no excuse",
            LineObservations { result: excused(LimitCause::Unknown), ..nothing() },
            Tone::Bad,
            "The download was 40.0 Mbit/s at 11:00, below the minimum of the plan, 50.0 Mbit/s.",
        ),
        (
            "an upload delays everything",
            LineObservations { result: bloated(Load::Upload, Grade::F, 431.4), monitors: clean(), ..nothing() },
            Tone::Fair,
            "An upload delays everything else by 431 ms (grade F), as measured at 11:00.",
        ),
        (
            "an alert",
            LineObservations { monitors: clean(), result: kept(), alerts: vec![slow()], ..nothing() },
            Tone::Fair,
            "Slow download: 61.0 Mbit/s from attic, since 11:30.",
        ),
        (
            "several alerts",
            LineObservations { monitors: clean(), alerts: vec![slow(), slow(), slow()], ..nothing() },
            Tone::Fair,
            "Slow download: 61.0 Mbit/s from attic, since 11:30. 2 more alerts are open.",
        ),
        (
            "a load that hardly matters",
            LineObservations { result: bloated(Load::Download, Grade::C, 80.0), monitors: clean(), ..nothing() },
            Tone::Good,
            "Good as far as it is measured: no probe was lost in the last 15 minutes. The last speed test was at 11:00.",
        ),
    ]
}

#[test]
fn every_situation_has_its_sentence() {
    for (case, seen, tone, sentence) in cases() {
        let verdict = judge(&seen);
        assert_eq!((shown(&verdict).as_str(), verdict.tone), (sentence, tone), "{case}");
    }
}

#[test]
fn good_news_needs_a_monitor_that_measures_beyond_the_gateway() {
    for (case, seen, ..) in cases() {
        let is_watched = seen.monitors.iter().any(|seen| !seen.is_gateway && seen.is_judged());
        assert!(judge(&seen).tone != Tone::Good || is_watched, "{case}");
    }
}
