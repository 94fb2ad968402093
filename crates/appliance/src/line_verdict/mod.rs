//! Turns observations of the line into one sentence about the state of the line. The sentence claims no more than was
//! measured. The tests in `cases.rs` list all situations with their sentences. Pure: no I/O, no clock.

#[cfg(test)]
mod cases;
mod speed;

use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::test_spec::Load;
use paramedic_report::lines::Tone;
use paramedic_report::quantity;
use paramedic_report::stats::Grade;

use crate::monitor::outage::OutageScope;

pub use speed::MeasuredSpeed;

/// The maximum age of a result that still counts as recent.
const RECENT_RESULT: Duration = Duration::from_secs(26 * 3600);
/// How long the sentence mentions an outage after the outage has ended.
const RECENT_OUTAGE: Duration = Duration::from_secs(3600);
/// The minimum number of probes that a monitor must have sent before its loss is judged.
const ENOUGH_PROBES: u64 = 50;
/// The minimum number of lost probes that counts as loss. Fewer may be chance.
const ENOUGH_LOST: u64 = 3;
/// The lowest share of lost probes (0 to 1) that counts as loss. Calls suffer from this share on.
const FAIR_LOSS: f64 = 0.01;
/// The lowest share of lost probes (0 to 1) that counts as bad loss. All traffic suffers from this share on.
const BAD_LOSS: f64 = 0.05;

/// Everything on which the sentence about the line depends.
#[derive(Clone, Debug, PartialEq)]
pub struct LineObservations {
    /// The present time.
    pub now: Timestamp,
    /// The enabled monitors, with their loss.
    pub monitors: Vec<MonitorLoss>,
    /// The latest outage.
    pub outage: Option<OutageSeen>,
    /// The latest result with measurements.
    pub result: Option<ResultSeen>,
    /// The latest test that measured nothing, if it was later than `result`.
    pub failure: Option<FailedTest>,
    /// The open alerts, the latest first. Alerts about outages are left out, because `outage` covers them.
    pub alerts: Vec<OpenAlert>,
}

/// An open alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAlert {
    /// The title of the alert, in one line.
    pub title: String,
    /// When the measured values began to violate the rule of the alert.
    pub since: Timestamp,
}

/// What a monitor has seen in the last quarter of an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorLoss {
    /// The name of the monitor.
    pub name: String,
    /// Whether the monitor probes the gateway. The targets of all other monitors are beyond the gateway.
    pub is_gateway: bool,
    /// Whether the monitor probes at present.
    pub is_measuring: bool,
    /// The number of the monitor's probes in the last quarter of an hour.
    pub count: u64,
    /// The number of probes, among `count`, that were lost.
    pub lost: u64,
}

/// An outage, as far as the sentence about the line needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageSeen {
    /// When the outage began.
    pub began: Timestamp,
    /// When the outage ended; `None` while it lasts.
    pub ended: Option<Timestamp>,
    /// What failed in the outage.
    pub scope: OutageScope,
    /// The names of the monitors whose target was not reachable.
    pub failed: Vec<String>,
}

/// The result of a test, as far as the sentence about the line needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultSeen {
    /// When the test began.
    pub at: Timestamp,
    /// The measured rates: at most one download and one upload.
    pub speeds: Vec<MeasuredSpeed>,
    /// The load under which the latency rose most, with the grade and the increase in milliseconds.
    pub worst_load: Option<(Load, Grade, f64)>,
}

/// A test that measured nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTest {
    /// When the test began.
    pub at: Timestamp,
    /// What failed, as a part of the sentence about the line.
    pub what: String,
}

/// The sentence about the state of the line.
#[derive(Clone, Debug, PartialEq)]
pub struct LineVerdict {
    /// Whether the sentence is good, fair or bad news; plain if too little was measured for a judgement.
    pub tone: Tone,
    /// The parts of the sentence, in order.
    pub parts: Vec<SentencePart>,
}

/// A part of the sentence.
#[derive(Clone, Debug, PartialEq)]
pub enum SentencePart {
    /// A piece of plain text.
    Text(String),
    /// A time, which each reader sees in their own time zone.
    Time(Timestamp),
}

/// A sentence that is being written.
#[derive(Debug, Default)]
struct Sentence(Vec<SentencePart>);

impl Sentence {
    fn text(mut self, text: impl AsRef<str>) -> Self {
        match self.0.last_mut() {
            Some(SentencePart::Text(before)) => before.push_str(text.as_ref()),
            _ => self.0.push(SentencePart::Text(text.as_ref().to_owned())),
        }
        self
    }

    fn time(mut self, time: Timestamp) -> Self {
        self.0.push(SentencePart::Time(time));
        self
    }

    fn with(self, tone: Tone) -> LineVerdict {
        LineVerdict { tone, parts: self.0 }
    }
}

/// Writes the sentence about the line: the worst known problem, or that everything is well as far as it was measured.
pub fn judge(seen: &LineObservations) -> LineVerdict {
    let outage = seen.outage.as_ref();
    if let Some(outage) = outage.filter(|outage| outage.ended.is_none()) {
        return lasting(outage);
    }
    if let Some(verdict) = loss(&seen.monitors) {
        return verdict;
    }
    if let Some((latest, others)) = seen.alerts.split_first() {
        return alert(latest, others.len());
    }
    let recovered = outage.and_then(|outage| recovered(outage, seen.now));
    if let Some(failure) = &seen.failure {
        return failed_test(failure, &seen.monitors);
    }
    let recent = seen.result.as_ref().filter(|result| is_within(result.at, seen.now, RECENT_RESULT));
    let fault = recent.and_then(|result| speed::fault(result).or_else(|| delay(result)));
    match (fault, recovered) {
        (Some(fault), Some(recovered)) if fault.tone != Tone::Bad => recovered,
        (Some(fault), _) => fault,
        (None, Some(recovered)) => recovered,
        (None, None) => no_fault(seen, recent),
    }
}

fn lasting(outage: &OutageSeen) -> LineVerdict {
    let (names, have) = (listed(&outage.failed), if outage.failed.len() == 1 { "has" } else { "have" });
    let (tone, before, after) = match outage.scope {
        OutageScope::Everything => (Tone::Bad, "Nothing answers, not even the gateway, since ".to_owned(), ""),
        OutageScope::BeyondGateway => {
            (Tone::Bad, "The gateway answers, but nothing beyond it has answered since ".to_owned(), "")
        }
        OutageScope::Target => {
            (Tone::Fair, format!("{names} {have} not answered since "), "; other targets beyond the gateway do")
        }
        OutageScope::Gateway => {
            (Tone::Fair, "The gateway has not answered since ".to_owned(), ", but targets beyond it do")
        }
        OutageScope::Unknown => {
            (Tone::Bad, format!("{names} {have} not answered since "), "; nothing else is probed that could tell why")
        }
    };
    Sentence::default().text(before).time(outage.began).text(after).text(".").with(tone)
}

/// The sentence about the monitor with the highest loss: a monitor beyond the gateway if one of these has loss,
/// otherwise the monitor of the gateway. `None` if no monitor has loss.
fn loss(monitors: &[MonitorLoss]) -> Option<LineVerdict> {
    let worst = |is_gateway| {
        let judged = monitors.iter().filter(move |monitor| monitor.is_gateway == is_gateway && monitor.is_lossy());
        judged.max_by(|a, b| a.share().total_cmp(&b.share()))
    };
    let (gateway, beyond) = (worst(true), worst(false));
    let most = beyond.or(gateway)?;
    let tone = if most.share() >= BAD_LOSS { Tone::Bad } else { Tone::Fair };
    let mut sentence = Sentence::default().text(format!(
        "{} of the probes to {} were lost in the last 15 minutes",
        quantity::share(most.share()),
        most.name
    ));
    match (beyond, gateway) {
        (Some(beyond), Some(gateway)) if gateway.share() >= beyond.share() / 2.0 => {
            let share = quantity::share(gateway.share());
            sentence = sentence.text(format!(
                ", and {share} of those to the gateway: the loss begins between this device and the gateway"
            ));
        }
        (Some(_), None) if monitors.iter().any(|monitor| monitor.is_gateway && monitor.is_clean()) => {
            sentence = sentence.text(", but none of those to the gateway: the loss is beyond it");
        }
        _ => {}
    }
    Some(sentence.text(".").with(tone))
}

/// The sentence about the latest alert. `others` is the number of further open alerts.
fn alert(latest: &OpenAlert, others: usize) -> LineVerdict {
    let more = match others {
        0 => String::new(),
        1 => ". Another alert is open".to_owned(),
        others => format!(". {others} more alerts are open"),
    };
    let sentence = Sentence::default().text(latest.title.trim_end_matches('.')).text(", since ").time(latest.since);
    sentence.text(more).text(".").with(Tone::Fair)
}

fn recovered(outage: &OutageSeen, now: Timestamp) -> Option<LineVerdict> {
    let ended = outage.ended.filter(|ended| is_within(*ended, now, RECENT_OUTAGE))?;
    let lasted = Duration::try_from(ended.duration_since(outage.began)).unwrap_or_default();
    let lasted = quantity::millis(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
    let what = match outage.scope {
        OutageScope::Everything | OutageScope::BeyondGateway => "The line answers".to_owned(),
        OutageScope::Gateway => "The gateway answers".to_owned(),
        _ if outage.failed.len() == 1 => format!("{} answers", listed(&outage.failed)),
        _ => format!("{} answer", listed(&outage.failed)),
    };
    let sentence = Sentence::default().text(format!("{what} again since ")).time(ended);
    Some(sentence.text(format!(", after an outage of {lasted}.")).with(Tone::Fair))
}

fn failed_test(failure: &FailedTest, monitors: &[MonitorLoss]) -> LineVerdict {
    let what = failure.what.trim_end_matches('.');
    let mut sentence =
        Sentence::default().text("The last test, at ").time(failure.at).text(format!(", failed: {what}"));
    if monitors.iter().any(|monitor| !monitor.is_gateway && monitor.is_clean()) {
        sentence = sentence.text("; the monitors lost no probe in the last 15 minutes");
    }
    sentence.text(".").with(Tone::Fair)
}

/// The sentence about a load that delays all other traffic; `None` if no load delays it much.
fn delay(result: &ResultSeen) -> Option<LineVerdict> {
    let (load, grade, increase_ms) = result.worst_load.filter(|(_, grade, _)| matches!(grade, Grade::D | Grade::F))?;
    let load = match load {
        Load::Download => "A download",
        Load::Upload => "An upload",
        _ => "Load",
    };
    let sentence = Sentence::default().text(format!(
        "{load} delays everything else by {} (grade {grade}), as measured at ",
        quantity::millis(increase_ms.max(0.0).round() as u64)
    ));
    Some(sentence.time(result.at).text(".").with(Tone::Fair))
}

/// The sentence if nothing is known to be wrong.
fn no_fault(seen: &LineObservations, recent: Option<&ResultSeen>) -> LineVerdict {
    let beyond = seen.monitors.iter().filter(|monitor| !monitor.is_gateway && monitor.is_judged());
    let (count, lost) = beyond.fold((0, 0), |(count, lost), seen| (count + seen.count, lost + seen.lost));
    let gateway = seen.monitors.iter().any(|monitor| monitor.is_gateway && monitor.is_judged());
    let speed = recent.and_then(|result| Some((result.at, speed::praise(result)?)));
    let probes = match lost {
        0 => "no probe was lost".to_owned(),
        lost => format!("only {} of the probes were lost", quantity::share(lost as f64 / count.max(1) as f64)),
    };
    match (count, speed) {
        (1.., Some((at, praise))) => {
            let good = Sentence::default().text(format!("Good: {probes} in the last 15 minutes, and the test at "));
            good.time(at).text(format!(" {praise}.")).with(Tone::Good)
        }
        (1.., None) => {
            let text = format!("Good as far as it is measured: {probes} in the last 15 minutes. ");
            let unknown = match &seen.result {
                Some(old) => Sentence::default().text(text).text("The last speed test was at ").time(old.at).text("."),
                None => Sentence::default().text(text).text("The speed has not been measured yet."),
            };
            unknown.with(Tone::Good)
        }
        (_, Some((at, praise))) => {
            let sentence = Sentence::default().text("The test at ").time(at);
            sentence.text(format!(" {praise}. Nothing beyond the gateway is watched at present.")).with(Tone::Plain)
        }
        _ => nothing_recent(seen, gateway),
    }
}

/// The sentence if neither a monitor beyond the gateway nor a recent test measured anything.
fn nothing_recent(seen: &LineObservations, gateway: bool) -> LineVerdict {
    let sentence = match (&seen.result, gateway) {
        (Some(old), _) => {
            Sentence::default().text("How the line is now is not known: the last test was at ").time(old.at).text(".")
        }
        (None, true) => {
            Sentence::default().text("The gateway answers. Nothing beyond it has been measured yet: pair a reflector.")
        }
        (None, false) => Sentence::default().text("Nothing has been measured yet."),
    };
    sentence.with(Tone::Plain)
}

impl MonitorLoss {
    fn share(&self) -> f64 {
        self.lost as f64 / self.count.max(1) as f64
    }

    /// Whether the monitor is measuring and has sent enough probes for a judgement.
    fn is_judged(&self) -> bool {
        self.is_measuring && self.count >= ENOUGH_PROBES
    }

    fn is_lossy(&self) -> bool {
        self.is_judged() && self.lost >= ENOUGH_LOST && self.share() >= FAIR_LOSS
    }

    fn is_clean(&self) -> bool {
        self.is_judged() && self.lost == 0
    }
}

/// Whether `time` is at most `span` before `now`. A time after `now`, which exists if the clock was set back, does not
/// count.
fn is_within(time: Timestamp, now: Timestamp, span: Duration) -> bool {
    Duration::try_from(now.duration_since(time)).is_ok_and(|age| age <= span)
}

/// Lists names in a sentence: at most two, then the number of the others.
fn listed(names: &[String]) -> String {
    match names {
        [] => "A target".to_owned(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, two, others @ ..] => format!("{one}, {two} and {} more", others.len()),
    }
}
