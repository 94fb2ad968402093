//! Reads the values that rules judge: from the results of tests and from the windows of monitors. If a value cannot be
//! judged, returns why.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::{LatencyResult, LimitCause, ResultDocument, Validity, ValidityVerdict};
use paramedic_report::stats::Statement;

use super::judge::{NotJudged, SeenValue};
use super::metric::{AlertMetric, MetricSource};
use crate::monitor::ProbeTally;

/// A result can have reasons for doubt. The reasons with these codes describe the line itself, so a result is judged
/// even if it has such reasons.
const OF_THE_LINE: [&str; 2] = ["not_steady", "probes_lost"];
/// The code of a reason for doubt: other traffic used the line during the test.
const OTHER_TRAFFIC: &str = "other_traffic";
/// The number of latest tests that decide which uplink is the main one.
const UPLINKS_COUNTED: usize = 50;
/// The name that an alert shows if the other end of a test has no name.
const NAMELESS: &str = "unknown";
/// The maximum length of the name of a test's other end, and of the text of a failure, in characters.
const MAX_TEXT_CHARS: usize = 200;
/// The minimum number of probes in a window that is judged.
const ENOUGH_PROBES: u64 = 10;

/// The uplinks of the latest tests. The uplink that most of these tests used is the main uplink.
#[derive(Clone, Debug, Default)]
pub struct MainUplink {
    last: VecDeque<String>,
}

impl MainUplink {
    /// Adds the uplink of a test to the latest uplinks.
    pub fn note(&mut self, document: &ResultDocument) {
        self.last.extend(document.uplink.interface.clone());
        while self.last.len() > UPLINKS_COUNTED {
            self.last.pop_front();
        }
    }

    /// Whether a test used another uplink than the main one, such as a backup or mobile line.
    fn is_other(&self, document: &ResultDocument) -> bool {
        let mut counts = BTreeMap::<&str, usize>::new();
        for name in &self.last {
            *counts.entry(name).or_default() += 1;
        }
        let main = counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name);
        match (&document.uplink.interface, main) {
            (Some(own), Some(main)) => own != main,
            _ => false,
        }
    }
}

/// The value of a metric that a test measured, or why it cannot be judged. `None` if the metric is not a metric of
/// tests, or if the user ended the test.
pub fn of_test(metric: AlertMetric, document: &ResultDocument, uplinks: &MainUplink) -> Option<SeenValue> {
    if metric.source() != MetricSource::Tests || document.interrupted {
        return None;
    }
    let failure = document.error.as_ref().filter(|error| error.code != "interrupted");
    let value = match metric {
        AlertMetric::TestFailed => Ok(f64::from(u8::from(failure.is_some()))),
        AlertMetric::Download => rate(document, Load::Download, Direction::Download, uplinks),
        AlertMetric::Upload => rate(document, Load::Upload, Direction::Upload, uplinks),
        _ => latency(metric, document, uplinks),
    };
    let failure = failure.filter(|_| metric == AlertMetric::TestFailed);
    Some(SeenValue {
        subject: subject(document),
        began: document.started_at,
        at: document.finished_at,
        value,
        failure: failure.map(|error| PeerText::harmless(&error.what, MAX_TEXT_CHARS)),
    })
}

/// The name of the other end of a test.
pub fn subject(document: &ResultDocument) -> String {
    let name = document.other_end().unwrap_or(NAMELESS);
    PeerText::harmless(name, MAX_TEXT_CHARS)
}

/// The value of a metric for the probes in one window of a monitor, or why it cannot be judged. The window is from
/// `began` to `at`. If `is_during_outage`, the target was not reachable in a part of the window.
pub fn of_window(
    metric: AlertMetric,
    monitor: &str,
    (began, at): (Timestamp, Timestamp),
    tally: &ProbeTally,
    is_during_outage: bool,
) -> SeenValue {
    let percentile = |share| {
        let (least, most) = tally.min_max_us?;
        tally.round_trips.percentile(share).map(|us| us.clamp(least, most) as f64 / 1e3)
    };
    let latency = |share| {
        if tally.round_trips.count() < ENOUGH_PROBES / 2 { None } else { percentile(share) }
            .ok_or(NotJudged::TooFewProbes)
    };
    let value = match metric {
        _ if is_during_outage || (tally.count > 0 && tally.lost == tally.count) => Err(NotJudged::DuringOutage),
        _ if tally.count < ENOUGH_PROBES => Err(NotJudged::TooFewProbes),
        AlertMetric::MonitorLoss => Ok(tally.lost as f64 * 100.0 / tally.count as f64),
        AlertMetric::MonitorLatencyP50 => latency(0.5),
        AlertMetric::MonitorLatencyP95 => latency(0.95),
        _ => Err(NotJudged::NotMeasured),
    };
    SeenValue { subject: monitor.to_owned(), began, at, value, failure: None }
}

fn rate(document: &ResultDocument, load: Load, direction: Direction, uplinks: &MainUplink) -> Result<f64, NotJudged> {
    let measured = document.measured(load, direction).ok_or(NotJudged::NotMeasured)?;
    if !document.complete {
        return Err(NotJudged::Incomplete);
    }
    if uplinks.is_other(document) {
        return Err(NotJudged::OtherUplink);
    }
    if measured.udp.is_some() {
        return Err(NotJudged::Datagrams);
    }
    match measured.limited_by.as_ref().map(|limit| limit.cause) {
        Some(LimitCause::Network) => {}
        Some(LimitCause::OtherTraffic) => return Err(NotJudged::OtherTraffic),
        // The warnings of a run may be about another direction, so they count only if no limit of this direction is
        // known.
        Some(LimitCause::Unknown) | None => doubt(document)?,
        Some(_) => return Err(NotJudged::OtherLimit),
    }
    Ok(measured.goodput_bps as f64)
}

fn latency(metric: AlertMetric, document: &ResultDocument, uplinks: &MainUplink) -> Result<f64, NotJudged> {
    let ms = |load, statement| Some(document.latency.of(load)?.round_trip_us(statement)? as f64 / 1e3);
    let value = match metric {
        AlertMetric::IdleLatency => ms(Load::Idle, Statement::P50),
        AlertMetric::LoadedLatency => {
            let loads = [Load::Download, Load::Upload, Load::Bidir];
            loads.into_iter().filter_map(|load| ms(load, Statement::P95)).reduce(f64::max)
        }
        AlertMetric::Loss => {
            document.latency.of(Load::Idle).and_then(LatencyResult::worst_loss).map(|loss| loss * 100.0)
        }
        _ => None,
    };
    let value = value.ok_or(NotJudged::NotMeasured)?;
    if !document.complete {
        return Err(NotJudged::Incomplete);
    }
    if uplinks.is_other(document) {
        return Err(NotJudged::OtherUplink);
    }
    doubt(document)?;
    Ok(value)
}

/// Fails if something other than the line may have determined the numbers in the result.
fn doubt(document: &ResultDocument) -> Result<(), NotJudged> {
    let suspect = document.validity.as_ref().filter(|validity| validity.verdict == ValidityVerdict::Suspect);
    let codes = suspect.map(|Validity { reasons, .. }| reasons.iter().map(|reason| reason.code.as_str()));
    let codes = codes.into_iter().flatten().filter(|code| !OF_THE_LINE.contains(code)).collect::<Vec<_>>();
    match &codes[..] {
        [] => Ok(()),
        codes if codes.contains(&OTHER_TRAFFIC) => Err(NotJudged::OtherTraffic),
        _ => Err(NotJudged::Suspect),
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{UplinkLabel, Warning, example};

    use super::*;

    fn value(metric: AlertMetric, change: impl FnOnce(&mut ResultDocument)) -> Result<f64, NotJudged> {
        let mut document = good();
        change(&mut document);
        let mut uplinks = MainUplink::default();
        for _ in 0..3 {
            uplinks.note(&good());
        }
        of_test(metric, &document, &uplinks).unwrap().value
    }

    fn good() -> ResultDocument {
        let mut document = example::full();
        document.validity = None;
        document.uplink = UplinkLabel { interface: Some("eth0".to_owned()), public_prefix: None };
        for rate in [&mut document.download, &mut document.upload].into_iter().flatten() {
            rate.udp = None;
            rate.limited_by.as_mut().unwrap().cause = LimitCause::Network;
        }
        document
    }

    fn doubtful(codes: &[&str]) -> Option<Validity> {
        let warning = |code: &&str| Warning { code: (*code).to_owned(), text: String::new() };
        Some(Validity { verdict: ValidityVerdict::Suspect, reasons: codes.iter().map(warning).collect() })
    }

    #[test]
    fn a_rate_is_judged_unless_something_else_than_the_line_limited_it() {
        let download = |change: &dyn Fn(&mut ResultDocument)| value(AlertMetric::Download, change);
        let cause =
            |cause| download(&move |run| run.download.as_mut().unwrap().limited_by.as_mut().unwrap().cause = cause);
        let bps = good().download.unwrap().goodput_bps as f64;
        for (own, expected) in [
            (LimitCause::Network, Ok(bps)),
            (LimitCause::Unknown, Ok(bps)),
            (LimitCause::OtherTraffic, Err(NotJudged::OtherTraffic)),
            (LimitCause::ApplianceCpu, Err(NotJudged::OtherLimit)),
            (LimitCause::ReflectorCpu, Err(NotJudged::OtherLimit)),
            (LimitCause::Policy, Err(NotJudged::OtherLimit)),
            (LimitCause::LinkRate, Err(NotJudged::OtherLimit)),
        ] {
            assert_eq!(cause(own), expected, "{own:?}");
        }
        assert_eq!(download(&|run| run.complete = false), Err(NotJudged::Incomplete));
        assert_eq!(download(&|run| run.download = None), Err(NotJudged::NotMeasured));
        assert_eq!(download(&|run| run.uplink.interface = Some("wwan0".to_owned())), Err(NotJudged::OtherUplink));
        assert_eq!(download(&|run| run.uplink.interface = None), Ok(bps));
    }

    #[test]
    fn a_suspect_result_is_not_judged_but_an_unsteady_line_is() {
        let latency = |codes: &[&str]| value(AlertMetric::IdleLatency, |run| run.validity = doubtful(codes));
        assert!(latency(&[]).is_ok() && latency(&["not_steady", "probes_lost"]).is_ok());
        assert_eq!(latency(&["probe_late"]), Err(NotJudged::Suspect));
        assert_eq!(latency(&["not_steady", "other_traffic"]), Err(NotJudged::OtherTraffic));
    }

    #[test]
    fn a_failed_test_has_the_value_one_and_a_cancelled_one_none() {
        let uplinks = MainUplink::default();
        let failed = |change: fn(&mut ResultDocument)| {
            let mut document = good();
            change(&mut document);
            of_test(AlertMetric::TestFailed, &document, &uplinks)
        };
        assert_eq!(failed(|_| {}).unwrap().value, Ok(0.0));
        let error = |run: &mut ResultDocument| {
            let [what, because, try_] = ["cannot reach\nattic", "because", "try"].map(str::to_owned);
            let code = "unreachable".to_owned();
            run.error = Some(paramedic_report::document::ErrorBody { code, what, because, try_, retry_after_ms: None });
        };
        let seen = failed(error).unwrap();
        assert_eq!((seen.value, seen.failure.as_deref()), (Ok(1.0), Some("cannot reachattic")));
        assert_eq!(failed(|run| run.interrupted = true), None);
    }

    #[test]
    fn a_window_with_few_probes_or_an_outage_is_not_judged() {
        let time = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        let mut tally = ProbeTally { count: 100, lost: 4, ..ProbeTally::default() };
        for us in (0..96).map(|number| 20_000 + number) {
            tally.round_trips.note(us);
        }
        tally.min_max_us = Some((20_000, 20_095));
        let value = |metric, tally: &ProbeTally, outage| of_window(metric, "attic", time, tally, outage).value;
        assert_eq!(value(AlertMetric::MonitorLoss, &tally, false), Ok(4.0));
        assert!((value(AlertMetric::MonitorLatencyP50, &tally, false).unwrap() - 20.0).abs() < 0.2);
        assert_eq!(value(AlertMetric::MonitorLoss, &tally, true), Err(NotJudged::DuringOutage));
        let nothing = ProbeTally { count: 100, lost: 100, ..ProbeTally::default() };
        assert_eq!(value(AlertMetric::MonitorLoss, &nothing, false), Err(NotJudged::DuringOutage));
        let few = ProbeTally { count: 9, lost: 4, ..ProbeTally::default() };
        assert_eq!(value(AlertMetric::MonitorLoss, &few, false), Err(NotJudged::TooFewProbes));
    }
}
