//! The last day on the first page: loss and outages in words, and each monitor as a strip.

use std::time::Duration;

use jiff::Timestamp;
use paramedic_appliance::app::{DAY_STEP, LineOverview, MonitorActivity, MonitorDay};
use paramedic_appliance::monitor::MonitorTarget;
use paramedic_appliance::monitor::outage::OutageScope;
use paramedic_appliance::store::StoredOutage;
use paramedic_report::quantity;

use super::super::outside_text::shown;
use super::super::page_time::PageTime;

/// The number of time steps in the strip of a monitor, which shows a day.
const STEPS: usize = 96;
/// If at least this share of the probes in a step is lost, the step is shown as down.
const DOWN_SHARE: f64 = 0.5;
/// The maximum number of outages in the list of the first page.
const LISTED_OUTAGES: usize = 5;

/// What the first page shows of the last day.
pub(in super::super) struct DayView {
    /// The lost probes of all monitors except those of the gateway, as a share and as numbers; `None` if no probes were
    /// sent.
    pub(in super::super) loss: Option<(String, String)>,
    pub(in super::super) outages: Vec<OutageView>,
    /// The number of outages that are not in the list.
    pub(in super::super) more_outages: usize,
    /// The total time of the outages in the last day, in words.
    pub(in super::super) outage_time: String,
    pub(in super::super) has_outages: bool,
    pub(in super::super) strips: Vec<StripView>,
    /// The time at which the strips of the monitors begin. The strips end at `to`.
    pub(in super::super) from: PageTime,
    pub(in super::super) to: PageTime,
}

/// An outage as the first page shows it.
pub(in super::super) struct OutageView {
    pub(in super::super) began: PageTime,
    pub(in super::super) lasted: String,
    pub(in super::super) what: String,
}

/// The last day of a monitor as a strip of coloured cells.
pub(in super::super) struct StripView {
    pub(in super::super) name: String,
    /// What the monitor does at present: the text on the page, and its style class.
    pub(in super::super) state: (String, &'static str),
    /// The median round-trip time in the last quarter of an hour; `None` if none was measured.
    pub(in super::super) latency: Option<String>,
    /// A description of the strip in words, for a reader who cannot see it.
    pub(in super::super) words: String,
    pub(in super::super) cells: Vec<CellView>,
}

/// A cell of a strip: neighbouring time steps with the same colour.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct CellView {
    pub(in super::super) class: &'static str,
    pub(in super::super) x: usize,
    pub(in super::super) width: usize,
}

impl DayView {
    /// Builds the view of the last day.
    pub(super) fn of(overview: &LineOverview) -> Self {
        let beyond =
            overview.monitors.iter().filter(|day| day.overview.stored.monitor.target != MonitorTarget::Gateway);
        let steps = beyond.flat_map(|day| &day.steps);
        let (count, lost) = steps.fold((0, 0), |(count, lost), step| (count + step.count, lost + step.lost));
        let loss = (count > 0).then(|| {
            let share = quantity::share(lost as f64 / count as f64);
            (share, format!("{} of {} probes", grouped(lost), grouped(count)))
        });
        let day_ago = overview.at.checked_sub(jiff::SignedDuration::from_hours(24)).unwrap_or(overview.at);
        let from = overview.monitors.first().map_or(day_ago, |day| minute(day.from));
        Self {
            loss,
            outage_time: lasted(total(&overview.outages, day_ago, overview.at)),
            has_outages: !overview.outages.is_empty(),
            more_outages: overview.outages.len().saturating_sub(LISTED_OUTAGES),
            outages: overview
                .outages
                .iter()
                .take(LISTED_OUTAGES)
                .map(|outage| OutageView::of(outage, overview.at))
                .collect(),
            strips: overview.monitors.iter().map(StripView::of).collect(),
            from: PageTime::full(from),
            to: PageTime::clock(overview.at),
        }
    }
}

impl OutageView {
    fn of(outage: &StoredOutage, now: Timestamp) -> Self {
        let length = between(outage.began_at, outage.ended_at.unwrap_or(now));
        let known = match (outage.ended_at, outage.end_known) {
            (None, _) => "so far ",
            (Some(_), false) => "at least ",
            _ => "",
        };
        let names = shown(&outage.failed.iter().cloned().collect::<Vec<_>>().join(", "));
        let what = match outage.scope {
            OutageScope::Everything => "nothing was reachable".to_owned(),
            OutageScope::BeyondGateway => "the gateway answered, nothing beyond it".to_owned(),
            OutageScope::Target => format!("{names} alone"),
            OutageScope::Gateway => "the gateway alone did not answer".to_owned(),
            OutageScope::Unknown => format!("{names}; nothing else was probed"),
        };
        Self { began: PageTime::full(outage.began_at), lasted: format!("{known}{}", lasted(length)), what }
    }
}

impl StripView {
    fn of(day: &MonitorDay) -> Self {
        let stored = &day.overview.stored;
        let (count, lost) = day.steps.iter().fold((0, 0), |(count, lost), step| (count + step.count, lost + step.lost));
        let words = match (count, lost) {
            (0, _) => "no probes in the last 24 hours".to_owned(),
            (count, 0) => format!("no loss in {} probes in the last 24 hours", grouped(count)),
            (count, lost) => format!("{} of {} probes lost in the last 24 hours", grouped(lost), grouped(count)),
        };
        let condition = day.overview.condition.as_ref();
        let state = match condition.map(|condition| (condition.activity, condition.reason)) {
            Some((MonitorActivity::Running, _)) => ("measures".to_owned(), "good"),
            Some((MonitorActivity::Unreachable, _)) => ("not reachable".to_owned(), "bad"),
            Some((MonitorActivity::Paused, reason)) => {
                let reason = reason.map(|reason| format!(": {}", reason.as_str().replace('_', " ")));
                (format!("paused{}", reason.unwrap_or_default()), "plain")
            }
            None => ("does not run".to_owned(), "plain"),
        };
        Self {
            name: shown(&stored.monitor.name),
            state,
            latency: day.overview.recent.p50_us.map(quantity::micros),
            words,
            cells: cells(day),
        }
    }
}

/// Converts the time steps of a day to cells. Neighbouring steps with the same colour share a cell.
fn cells(day: &MonitorDay) -> Vec<CellView> {
    let mut classes = ["unknown"; STEPS];
    for step in &day.steps {
        let place = usize::try_from((step.minute - day.from) / DAY_STEP).ok().and_then(|place| classes.get_mut(place));
        let share = step.lost as f64 / step.count.max(1) as f64;
        if let Some(class) = place {
            *class = match step.lost {
                0 => "up",
                _ if share >= DOWN_SHARE => "down",
                _ => "some",
            };
        }
    }
    let mut cells = Vec::<CellView>::new();
    for (x, class) in classes.into_iter().enumerate() {
        match cells.last_mut() {
            Some(cell) if cell.class == class => cell.width += 1,
            _ => cells.push(CellView { class, x, width: 1 }),
        }
    }
    cells
}

/// How long the outages lasted in total from `from` to `now`. Outages do not overlap, because the device has one outage
/// at a time.
fn total(outages: &[StoredOutage], from: Timestamp, now: Timestamp) -> Duration {
    outages.iter().map(|outage| between(outage.began_at.max(from), outage.ended_at.unwrap_or(now).min(now))).sum()
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn lasted(length: Duration) -> String {
    quantity::millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

fn minute(minute: i64) -> Timestamp {
    Timestamp::from_second(minute.saturating_mul(60)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Formats a number with thin spaces between groups of three digits.
pub(in super::super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::app::MonitorOverview;
    use paramedic_appliance::monitor::Monitor;
    use paramedic_appliance::monitor::ProbeTally;
    use paramedic_appliance::monitor::series::SeriesPoint;
    use paramedic_appliance::store::{LossSum, StoredMonitor};

    use super::*;

    fn day(steps: &[(i64, u64, u64)]) -> MonitorDay {
        let stored = StoredMonitor {
            id: uuid::Uuid::nil(),
            number: 1,
            enabled: true,
            from_file: false,
            added_at: Timestamp::UNIX_EPOCH,
            peer: None,
            monitor: Monitor::new("attic", MonitorTarget::Gateway, None),
        };
        let recent = SeriesPoint::of(0, &ProbeTally::default());
        let overview = MonitorOverview { stored, condition: None, recent, bytes_a_month: 0 };
        let step = |&(step, count, lost)| LossSum { number: 1, minute: 900 + step * DAY_STEP, count, lost };
        MonitorDay { overview, from: 900, steps: steps.iter().map(step).collect() }
    }

    #[test]
    fn neighbouring_steps_of_one_kind_are_one_cell() {
        let cell = |class, x, width| CellView { class, x, width };
        assert_eq!(cells(&day(&[])), [cell("unknown", 0, 96)]);
        let seen =
            cells(&day(&[(0, 60, 0), (1, 60, 0), (2, 60, 1), (3, 60, 30), (95, 60, 0), (96, 60, 60), (-1, 9, 9)]));
        let expected =
            [cell("up", 0, 2), cell("some", 2, 1), cell("down", 3, 1), cell("unknown", 4, 91), cell("up", 95, 1)];
        assert_eq!(seen, expected);
        assert_eq!(StripView::of(&day(&[(0, 1000, 3)])).words, "3 of 1\u{202f}000 probes lost in the last 24 hours");
    }

    #[test]
    fn an_outage_counts_within_the_day_alone() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let outage = |began, ended: Option<i64>| StoredOutage {
            id: uuid::Uuid::nil(),
            began_at: at(began),
            ended_at: ended.map(at),
            end_known: true,
            scope: OutageScope::Everything,
            failed: Default::default(),
            reachable: Default::default(),
        };
        let outages = [outage(95, None), outage(20, Some(22)), outage(0, Some(11))];
        assert_eq!(total(&outages, at(10), at(100)), Duration::from_secs(8 * 60));
        assert_eq!(OutageView::of(&outages[0], at(100)).lasted, "so far 5 min 0 s");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }
}
