//! Writes the one-sentence conclusion of a test: reads observations from a result document and turns them into text.
//! The sentence claims no more than the observations show. `cases.rs` lists all situations. Pure: no I/O, no clock.

#[cfg(test)]
mod cases;
mod loss;
mod observe;
mod rates;

use std::time::Duration;

use paramedic_link::test_spec::{Direction, Load};

use crate::document::{LimitCause, QueueSide};
use crate::lines::Tone;
use crate::quantity;
use crate::stats::{self, Grade, Statement};
use rates::RateClaim;

pub use loss::{LossKind, LossSeen};

/// Everything from a result document on which the sentence about the result depends.
#[derive(Clone, Debug, PartialEq)]
pub struct Observations {
    /// The name or address of the reflector or server; `None` if the test reached neither and the request names none.
    pub other_end: Option<String>,
    /// Whether the test ran through the tunnel because direct mode was blocked.
    pub is_through_tunnel: bool,
    /// Whether the test completed, and if not, why.
    pub completion: Completion,
    /// The measured throughput: at most one download and one upload.
    pub speeds: Vec<Speed>,
    /// The measured throughput of the bidirectional phase, if `speeds` comes from other phases. The sentence does not
    /// state these rates, but what limited them limits the claims about the latency of that phase.
    pub bidir_speeds: Vec<Speed>,
    /// The latency probes of each phase, in the order of the phases.
    pub probes: Vec<PhaseProbes>,
    /// Whether this device sent some of the probes late or not at all, so that slow replies may be missing.
    pub has_probe_gaps: bool,
    /// Whether the delay of the path changed during the test for another reason than the test's load.
    pub has_path_changed: bool,
    /// Whether a search for the highest datagram rate did not finish.
    pub is_search_unfinished: bool,
    /// Whether a sender of datagrams paused, because no feedback arrived from its receiver.
    pub has_paused: bool,
}

/// Whether a test completed, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The test completed every phase.
    Complete,
    /// A signal at the appliance ended the test.
    Interrupted,
    /// The test failed after it had measured something.
    Failed,
    /// The test failed before it measured anything. The value is the error as text.
    NothingMeasured(String),
    /// In some directions almost no payload arrived, or the payload stopped before the end. The text names these
    /// directions.
    NothingArrived(String),
}

/// The measured rate of one direction, with everything that may have limited it besides the line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The direction of the payload.
    pub direction: Direction,
    /// The mean goodput, in bits per second.
    pub bps: u64,
    /// The rate that the user requested for the direction, in bits per second.
    pub requested_bps: Option<u64>,
    /// The socket buffer size that the user requested for each stream, in bytes; `None` if it cannot have been the
    /// limit.
    pub window_bytes: Option<u32>,
    /// The cause that limited the rate; `None` if the document names no cause, as in earlier versions.
    pub limit: Option<LimitCause>,
    /// Whether the test showed that the line was full in this direction.
    pub fullness: Fullness,
    /// Whether the phase was too short to show whether the rate is steady.
    pub is_brief: bool,
    /// How the rate varied; `None` if no variation was seen.
    pub unsteady: Option<Unsteady>,
}

/// Whether a test showed that the line was full in a direction. Lost segments alone do not show this: after a loss, TCP
/// may send less than the line carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fullness {
    /// A queue in this direction showed it, or datagrams that were lost only at higher rates.
    Shown,
    /// The delays showed no queue in this direction.
    NotShown,
    /// The delays are unknown, or too uncertain to show the direction of the queue.
    Unknown,
}

/// How the rate of a direction varied over time. Rates are in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsteady {
    /// The mean rates in the first and in the last third of the time, which differ.
    Thirds([u64; 2]),
    /// The 10th and the 90th percentile of the rates in the single intervals. The first and the last third of the time
    /// have about the same rate.
    Spread([u64; 2]),
    /// The rate was not steady, but the document contains neither the thirds nor the percentiles.
    Unknown,
}

/// The latency probes of one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseProbes {
    /// The load on the path during the phase.
    pub load: Load,
    /// The number of probes that the appliance sent.
    pub sent: u64,
    /// The number of probes that were answered in time.
    pub received: u64,
    /// The median round trip in microseconds; `None` if too few probes were answered for an assessment.
    pub median_us: Option<u64>,
    /// The 95th percentile of the round trips in microseconds; `None` if too few probes were answered for it.
    pub p95_us: Option<u64>,
    /// How much the median round trip exceeds that of the idle phase, in milliseconds, and the grade of this increase.
    pub increase: Option<(f64, Grade)>,
    /// The lost probes; `None` if no probe was lost, or if loss is unknown (probes over TCP).
    pub loss: Option<LossSeen>,
    /// The direction in which the load built up a queue; `None` if the queue was not measured.
    pub queue: Option<QueueSide>,
    /// Whether the queue that the load built up is in the appliance itself, before its network interface.
    pub is_own_queue: bool,
}

/// Writes the sentence for the observations `seen`, and chooses the tone in which the sentence is printed.
pub fn conclude(seen: &Observations) -> (Tone, String) {
    let mut path = match &seen.other_end {
        Some(name) => format!("your connection to {name}"),
        None => "your connection".to_owned(),
    };
    if seen.is_through_tunnel && !seen.speeds.is_empty() {
        path += " through the tunnel";
    }
    let speeds = rates::clause(&seen.speeds, seen.may_claim());
    match (&seen.completion, speeds) {
        (Completion::Complete, speeds) => complete(seen, &upper_first(&path), speeds),
        (Completion::NothingArrived(what), Some(speeds)) => {
            (Tone::Bad, format!("{}. {} {speeds}.", upper_first(what), upper_first(&path)))
        }
        (Completion::NothingMeasured(why), _) => (Tone::Bad, format!("Nothing was measured: {why}.")),
        (Completion::NothingArrived(what), None) => (Tone::Bad, format!("{}.", upper_first(what))),
        (completion, speeds) => {
            let why = match completion {
                Completion::Interrupted => "The test was interrupted",
                _ => "The test did not finish",
            };
            let text = match speeds {
                Some(speeds) => format!("{why}. So far, {path} {speeds}."),
                None if seen.probes.is_empty() => format!("Nothing was measured: {}.", lower_first(why)),
                None => format!("{why}; the measurements up to then are below."),
            };
            (Tone::Fair, text)
        }
    }
}

impl Observations {
    /// The measured throughput of all phases.
    fn all_speeds(&self) -> impl Iterator<Item = &Speed> {
        self.speeds.iter().chain(&self.bidir_speeds)
    }

    /// Whether the sentence may claim that the line carries a rate: nothing in the run as a whole prevents it.
    fn may_claim(&self) -> bool {
        self.completion.is_measured() && !self.is_search_unfinished && !self.has_paused && !self.has_path_changed
    }
}

impl Completion {
    /// Whether every phase that was measured lasted its full time.
    fn is_measured(&self) -> bool {
        matches!(self, Self::Complete | Self::NothingArrived(_))
    }
}

/// The sentence for a test that completed every phase.
fn complete(seen: &Observations, path: &str, speeds: Option<String>) -> (Tone, String) {
    let idle = seen.probes.iter().find(|probes| probes.load == Load::Idle);
    let clause = match (speeds, idle) {
        (Some(speeds), _) => format!("{path} {speeds}"),
        (None, Some(PhaseProbes { median_us: Some(median), .. })) => {
            let median = quantity::micros(*median);
            match seen.has_path_changed {
                true => format!("{path} took {median} there and back (median), and its delay changed during the test"),
                false => format!("{path} takes {median} there and back"),
            }
        }
        (None, Some(idle)) if idle.is_unanswered() => {
            return (Tone::Bad, format!("{} on {}.", upper_first(&idle.answered()), lower_first(path)));
        }
        (None, Some(idle)) => {
            return (Tone::Fair, format!("Latency is not known: {}.", few(idle)));
        }
        (None, None) => return (Tone::Fair, "Nothing was measured.".to_owned()),
    };
    let troubles = troubles(seen);
    let limits = limits(seen);
    let full = without_full_line(seen);
    if let Some(worst) = troubles.iter().map(|trouble| trouble.severity).max() {
        let all = joined(&troubles);
        let (tone, effect) = match worst {
            Severity::Noticed => (Tone::Fair, ""),
            // The text says "may", because delay and loss were measured, not a call.
            Severity::Disturbing => (Tone::Fair, ": calls and games may lag"),
            Severity::Broken => (Tone::Bad, ""),
            Severity::Lagging => (Tone::Bad, ": calls and games may lag"),
            Severity::Stuttering => (Tone::Bad, ": calls and games may stutter"),
        };
        let changed = match seen.has_path_changed && !seen.speeds.is_empty() {
            true => " The delay of the path changed during the test for another reason.",
            false => "",
        };
        return (tone, format!("{clause}, but {all}{effect}.{limits}{full}{changed}"));
    }
    let (tone, latency) = response(seen);
    let has_doubt = !limits.is_empty() || seen.speeds.iter().any(|speed| speed.unsteady.is_some());
    let tone = if has_doubt { Tone::Fair } else { tone };
    (tone, format!("{clause}{latency}.{limits}{full}"))
}

/// The sentence about the directions whose rate is only a lower limit, because nothing showed that the line was full.
fn without_full_line(seen: &Observations) -> String {
    let is_lacking = |speed: &&Speed| speed.lacks_full_line() && speed.claim(seen.may_claim()) == RateClaim::AtLeast;
    let lacking = seen.speeds.iter().filter(is_lacking).collect::<Vec<_>>();
    let of = match lacking.as_slice() {
        [] => return String::new(),
        [one] if seen.speeds.len() > 1 => format!(" in the {} direction", one.direction),
        _ => String::new(),
    };
    match lacking.iter().any(|speed| speed.fullness == Fullness::Unknown) {
        true => format!(" Whether a queue showed that the line was full{of} is not known."),
        false => format!(" No queue showed that the line was full{of}."),
    }
}

/// The clause about latency under load, for a test whose load caused no trouble. A clause that is not empty starts with
/// a comma or a semicolon.
fn response(seen: &Observations) -> (Tone, String) {
    let loads = || seen.probes.iter().filter(|probes| probes.load != Load::Idle);
    let idle = seen.probes.iter().find(|probes| probes.load == Load::Idle);
    // Without an idle phase, the latency under load has no baseline.
    let Some(idle) = idle.filter(|_| loads().next().is_some() && !seen.speeds.is_empty()) else {
        return (Tone::Strong, String::new());
    };
    if let Some(unknown) = std::iter::once(idle).chain(loads()).find(|probes| probes.median_us.is_none()) {
        let text = format!("; how it responds under load is not known: {} {}", during(unknown.load), few(unknown));
        return (Tone::Strong, text);
    }
    if seen.has_path_changed {
        let text = "; how it responds under load is not known: its delay changed during the test for another reason";
        return (Tone::Strong, text.to_owned());
    }
    // Traffic that began before the test may have built a queue already, so that the load added none.
    let has_other_traffic = seen.all_speeds().any(|speed| speed.limit == Some(LimitCause::OtherTraffic));
    if has_other_traffic || seen.has_paused {
        return (Tone::Strong, "; how it responds under load is not known".to_owned());
    }
    let is_lasting = is_lasting(seen);
    let Some(grade) = loads().filter_map(|probes| probes.increase).map(|(_, grade)| grade).max() else {
        return (Tone::Strong, String::new());
    };
    if let Some((probes, slowest_us)) = slowest_replies(idle, loads()) {
        let when = when(seen, &[probes.load]);
        let take = if is_lasting { "take" } else { "took" };
        return (
            Tone::Fair,
            format!(", but {when} 5 % of the replies {take} {} or longer", quantity::micros(slowest_us)),
        );
    }
    let is_little = !matches!(grade, Grade::APlus | Grade::A);
    // If the latency rose in one phase only, the text names this phase.
    let of_grade = loads().filter(|probes| !is_little || probes.increase.is_some_and(|(_, own)| own == grade));
    let when = when(seen, &of_grade.map(|probes| probes.load).collect::<Vec<_>>());
    let is_responsive =
        !seen.has_probe_gaps && loads().all(|probes| probes.p95_us.is_some_and(|p95| p95 <= LONGEST_RESPONSIVE_US));
    let text = match (is_responsive, is_little, is_lasting) {
        (true, false, true) => format!(", and stays responsive {when}"),
        (true, false, false) => format!(", and stayed responsive {when}"),
        (true, true, true) => format!(", and is a little slower to respond {when}"),
        (true, true, false) => format!(", and was a little slower to respond {when}"),
        (false, ..) => {
            let rises = match (is_little, is_lasting) {
                (false, true) => "hardly rises",
                (false, false) => "hardly rose",
                (true, true) => "rises a little",
                (true, false) => "rose a little",
            };
            let idle = idle.median_us.map(|us| format!(" ({} while idle)", quantity::micros(us)));
            format!(", and its median latency {rises} {when}{}", idle.unwrap_or_default())
        }
    };
    (Tone::Good, text)
}

/// The words for the time of these phases under load.
fn when(seen: &Observations, phases: &[Load]) -> String {
    let is_one_of_several = phases.len() < seen.probes.iter().filter(|probes| probes.load != Load::Idle).count();
    let one = match phases {
        [one] if is_one_of_several || *one != Load::Bidir => Some(during(*one)),
        _ => None,
    };
    match (one, is_filled(seen)) {
        (Some(one), true) => one.to_owned(),
        (Some(one), false) if is_one_of_several => format!("{one} at that load"),
        (None, true) => "while busy".to_owned(),
        (_, false) => "at that load".to_owned(),
    }
}

/// Above this round trip, a conversation is noticeably delayed even if the load adds nothing: twice the one-way delay
/// that ITU-T G.114 recommends not to exceed. A path is responsive only if 95 % of its replies arrive within this time.
const LONGEST_RESPONSIVE_US: u64 = 300_000;

/// The phase under load with the slowest replies, with the 95th percentile of its round trips, if this percentile
/// exceeds that of the idle phase so much that the same rise of the median would be a grade of C or worse.
fn slowest_replies<'a>(
    idle: &PhaseProbes,
    loads: impl Iterator<Item = &'a PhaseProbes>,
) -> Option<(&'a PhaseProbes, u64)> {
    let idle_us = idle.p95_us.or(idle.median_us)?;
    let (probes, slowest_us) = loads.filter_map(|probes| Some((probes, probes.p95_us?))).max_by_key(|(_, us)| *us)?;
    let rise = Duration::from_micros(slowest_us.saturating_sub(idle_us));
    (stats::grade(rise) >= Grade::C).then_some((probes, slowest_us))
}

/// A problem that the user of the path may notice, such as loss or a slow response under load.
struct Trouble {
    severity: Severity,
    /// The phase in which the trouble was observed, in words (`during a download`).
    when: &'static str,
    text: String,
}

/// Joins all troubles into one clause. Consecutive troubles of the same phase share the name of the phase.
fn joined(troubles: &[Trouble]) -> String {
    let mut clause = String::new();
    let mut before = "";
    for trouble in troubles {
        clause += match clause.is_empty() {
            true => "",
            false if trouble.when == before => " and ",
            false => ", and ",
        };
        if trouble.when != before {
            clause += trouble.when;
            clause.push(' ');
        }
        clause += &trouble.text;
        before = trouble.when;
    }
    clause
}

/// How much a trouble disturbs the user; a higher value is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// A single burst of loss, without a lasting effect.
    Noticed,
    /// The latency under load may make calls and games lag (grade C).
    Disturbing,
    /// The path answered no probes for a time, or only a few probes in a whole phase.
    Broken,
    /// The latency under load makes calls and games lag (grade D or F).
    Lagging,
    /// Lasting loss makes calls and games stutter.
    Stuttering,
}

/// Finds the troubles of the idle path and of the path under load.
fn troubles(seen: &Observations) -> Vec<Trouble> {
    let is_lasting = is_lasting(seen);
    let idle = seen.probes.iter().find(|probes| probes.load == Load::Idle);
    let loads = || seen.probes.iter().filter(|probes| probes.load != Load::Idle);
    let of_idle = idle.and_then(|idle| {
        if idle.is_unanswered() {
            return Some(Trouble { severity: Severity::Broken, when: during(idle.load), text: idle.answered() });
        }
        lossy(idle)
    });
    let unanswered = loads().find(|probes| probes.is_unanswered()).map(|probes| Trouble {
        severity: Severity::Broken,
        when: during(probes.load),
        text: probes.answered(),
    });
    let slow = loads().filter_map(|probes| Some((probes, probes.increase?)));
    let slow = slow.max_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b)).and_then(|(probes, (increase_ms, grade))| {
        let severity = match grade {
            Grade::APlus | Grade::A | Grade::B => return None,
            Grade::C => Severity::Disturbing,
            Grade::D | Grade::F => Severity::Lagging,
        };
        let increase = quantity::micros((increase_ms * 1000.0) as u64);
        let take = if is_lasting { "take" } else { "took" };
        let queued = match probes.queue {
            Some(_) if probes.is_own_queue => " (queued mostly in this device)",
            Some(queue) => queued(probes.load, queue).unwrap_or_default(),
            None => "",
        };
        Some(Trouble { severity, when: during(probes.load), text: format!("replies {take} {increase} longer{queued}") })
    });
    // A short phase may have lost a larger share without proof of a trouble.
    let by_loss = |(a, trouble): &(f64, Trouble), (b, other): &(f64, Trouble)| {
        trouble.severity.cmp(&other.severity).then(a.total_cmp(b))
    };
    let proven = loads().filter(|probes| !probes.is_unanswered());
    let proven = proven.filter_map(|probes| Some((probes.loss?.share(), lossy(probes)?)));
    let lossy = proven.max_by(by_loss).map(|(_, trouble)| trouble);
    let of_loads = unanswered.into_iter().chain(slow).chain(lossy);
    of_idle.into_iter().chain(of_loads).collect()
}

/// The words for the direction of the queue; `None` if the queue is in the direction of the load itself, if there is no
/// queue, or if its direction is unknown.
fn queued(load: Load, queue: QueueSide) -> Option<&'static str> {
    match (load, queue) {
        (Load::Upload, QueueSide::Upload) | (Load::Download, QueueSide::Download) | (Load::Bidir, QueueSide::Both) => {
            None
        }
        (_, QueueSide::Upload) => Some(" (queued mostly in the upload direction)"),
        (_, QueueSide::Download) => Some(" (queued mostly in the download direction)"),
        (_, QueueSide::Both) => Some(" (queued in both directions)"),
        (_, QueueSide::None | QueueSide::Unknown) => None,
    }
}

/// With fewer probes, the text states the lost probes instead of a share: the share of a few lost probes is too uncertain.
const FEWEST_FOR_SHARE: u64 = 200;

/// Turns the loss of a phase into a trouble; `None` if the loss is too small to matter. The
/// loss is that of the probes: packets of the load may be lost more often or less often.
fn lossy(probes: &PhaseProbes) -> Option<Trouble> {
    let loss = probes.loss?;
    let when = during(probes.load);
    let side = loss.direction.map(|direction| format!(" in the {direction} direction")).unwrap_or_default();
    Some(match loss.kind()? {
        LossKind::Outage { ms } => {
            let text = format!("no probe was answered for {} (an outage)", quantity::millis(ms));
            Trouble { severity: Severity::Broken, when, text }
        }
        LossKind::Burst { probes, ms } => {
            let text = format!("{probes} latency probes in a row were lost ({})", quantity::millis(ms));
            Trouble { severity: Severity::Noticed, when, text }
        }
        LossKind::Rate(_) if loss.of < FEWEST_FOR_SHARE => {
            let text = format!("{} of {} latency probes were lost{side}", loss.lost, loss.of);
            Trouble { severity: Severity::Stuttering, when, text }
        }
        LossKind::Rate(share) => {
            let text = format!("{} of the latency probes were lost{side}", quantity::share(share));
            Trouble { severity: Severity::Stuttering, when, text }
        }
    })
}

impl PhaseProbes {
    /// Whether fewer than half of the probes were answered. In this case the answered probes are not representative.
    fn is_unanswered(&self) -> bool {
        !crate::stats::is_mostly_answered(self.received, self.sent)
    }

    fn answered(&self) -> String {
        match (self.received, self.sent) {
            (0, _) => "no latency probe was answered".to_owned(),
            (1, sent) => format!("only 1 of {sent} latency probes was answered"),
            (received, sent) => format!("only {received} of {sent} latency probes were answered"),
        }
    }
}

/// The clause that states how many probes were answered and how many an assessment needs.
fn few(probes: &PhaseProbes) -> String {
    let least = Statement::Assessment.least_samples();
    format!("{} of {} latency probes were answered, and {least} answers are needed", probes.received, probes.sent)
}

/// Whether the test may have filled the line: true if nothing else is known to have limited the rates.
fn is_filled(seen: &Observations) -> bool {
    let has_limit =
        |speed: &Speed| speed.requested_bps.is_some() || speed.window_bytes.is_some() || !speed.may_fill_line();
    !seen.is_search_unfinished && !seen.has_paused && !seen.all_speeds().any(has_limit)
}

/// Whether the text uses the present tense, because the test filled the line at a steady rate. Otherwise it shows only
/// what the line did during the test.
fn is_lasting(seen: &Observations) -> bool {
    // A queue of other traffic may end with that traffic.
    let lasts =
        |speed: &Speed| speed.unsteady.is_none() && !speed.is_brief && speed.limit != Some(LimitCause::OtherTraffic);
    seen.may_claim() && is_filled(seen) && seen.all_speeds().all(lasts)
}

/// Further sentences that name each limit of the rates other than the path: processor, socket buffer, interface, other
/// traffic, unknown; and whatever else casts doubt on the test.
fn limits(seen: &Observations) -> String {
    let of_rates = causes(|cause| has_limit(&seen.speeds, cause));
    let of_bidir = causes(|cause| has_limit(&seen.bidir_speeds, cause) && !has_limit(&seen.speeds, cause));
    // The stated rates are not those of the bidirectional phase.
    let of_bidir = of_bidir.map(|sentence| format!(" While both directions were loaded, {}", lower_first(sentence)));
    let doubts = [
        (seen.is_search_unfinished, "The search for the highest rate did not finish."),
        (seen.has_paused, "The sender paused, because no feedback arrived from the receiver."),
        (seen.has_probe_gaps, "This device sent some latency probes late or not at all."),
    ];
    let doubts = doubts.into_iter().filter_map(|(is_so, sentence)| is_so.then_some(sentence));
    let after_a_space = |sentence: &str| format!(" {sentence}");
    of_rates.map(after_a_space).chain(of_bidir).chain(doubts.map(after_a_space)).collect()
}

/// Whether `cause` limited one of these rates. If the user requested a rate or a buffer size that may have been the
/// limit, the clause about the rates already names it.
fn has_limit(speeds: &[Speed], cause: LimitCause) -> bool {
    speeds.iter().filter(|speed| speed.limit == Some(cause)).any(|speed| match cause {
        LimitCause::ReceiveWindow | LimitCause::SendBuffer => speed.window_bytes.is_none(),
        _ => !speed.is_as_requested(),
    })
}

/// The sentences for the causes that are present.
fn causes(has: impl Fn(LimitCause) -> bool) -> impl Iterator<Item = &'static str> {
    let processor = match (has(LimitCause::ApplianceCpu), has(LimitCause::ReflectorCpu)) {
        (true, true) => Some("The processors of both ends were busy, and may have limited the rate."),
        (true, false) => Some("The processor of this device was busy, and may have limited the rate."),
        (false, true) => Some("The processor of the reflector was busy, and may have limited the rate."),
        (false, false) => None,
    };
    let others = [
        (LimitCause::ReceiveWindow, "The receiver's window held the sender back."),
        (LimitCause::SendBuffer, "The sender's socket buffer held it back."),
        (LimitCause::LinkRate, "A network interface was close to its own speed."),
        (LimitCause::OtherTraffic, "Other traffic passed an interface of the test, and may have used the line."),
        (LimitCause::Unknown, "What limited the rate is not known."),
    ];
    processor.into_iter().chain(others.into_iter().filter_map(move |(cause, sentence)| has(cause).then_some(sentence)))
}

fn during(load: Load) -> &'static str {
    match load {
        Load::Idle => "while idle",
        Load::Download => "during a download",
        Load::Upload => "during an upload",
        Load::Bidir | Load::Unknown => "while it is busy both ways",
    }
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}
