//! The last result on the first page: the rates with their shares of the plan, and the latency without load and under
//! load. The latency under load has a grade, and the place where a queue built up.

use paramedic_appliance::plan::Plan;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::conclusion::{self, Observations};
use paramedic_report::document::{LatencyResult, QueueSide, ResultDocument};
use paramedic_report::quantity;
use paramedic_report::stats::Grade;

use super::super::outside_text::{sentence, shown};
use super::super::page_time::PageTime;

/// The last result as the first page shows it.
pub(in super::super) struct LastView {
    pub(in super::super) at: PageTime,
    pub(in super::super) other_end: String,
    /// The path of the page of the run.
    pub(in super::super) path: String,
    pub(in super::super) sentence: String,
    pub(in super::super) rates: Vec<RateView>,
    pub(in super::super) idle: Option<FigureView>,
    pub(in super::super) loaded: Vec<LoadedView>,
}

/// The number and the unit of a quantity, as text.
pub(in super::super) struct FigureView {
    pub(in super::super) number: String,
    pub(in super::super) unit: String,
}

/// A measured rate as the first page shows it.
pub(in super::super) struct RateView {
    pub(in super::super) name: &'static str,
    pub(in super::super) class: &'static str,
    pub(in super::super) figure: FigureView,
    /// The share of the promised rate that was reached: as text, and for the bar in whole percent up to 100. `None`
    /// without a plan.
    pub(in super::super) share: Option<(String, u64)>,
}

/// The latency under a load, as the first page shows it.
pub(in super::super) struct LoadedView {
    pub(in super::super) name: &'static str,
    pub(in super::super) figure: FigureView,
    /// The bufferbloat grade, and its style class; `None` without a grade.
    pub(in super::super) grade: Option<(String, &'static str)>,
    /// Where the load built up a queue; `None` if that is unknown.
    pub(in super::super) queue: Option<&'static str>,
}

impl LastView {
    /// Builds the view of a result. The rates get their share of `plan`.
    pub(super) fn of(document: &ResultDocument, plan: Option<&Plan>) -> Self {
        let rate = |(load, direction, name, class)| {
            let bps = document.measured(load, direction)?.goodput_bps;
            let share = plan.map(|plan| {
                let share = plan.of(direction).share(bps);
                let percent = (share * 100.0).round().clamp(0.0, 100.0) as u64;
                (quantity::share(share), percent)
            });
            Some(RateView { name, class, figure: FigureView::of(&quantity::rate(bps)), share })
        };
        let rates = [
            (Load::Download, Direction::Download, "Download", "download"),
            (Load::Upload, Direction::Upload, "Upload", "upload"),
        ];
        let loaded =
            [(Load::Download, "under a download"), (Load::Upload, "under an upload"), (Load::Bidir, "under both")];
        let median = |load| document.latency.of(load).and_then(LatencyResult::median_us);
        Self {
            at: PageTime::full(document.started_at),
            other_end: shown(document.other_end().unwrap_or("an unknown host")),
            path: format!("/runs/{}", document.id),
            sentence: sentence(&conclusion::conclude(&Observations::of(document)).1),
            rates: rates.into_iter().filter_map(rate).collect(),
            idle: median(Load::Idle).map(|us| FigureView::of(&quantity::micros(us))),
            loaded: loaded
                .into_iter()
                .filter_map(|(load, name)| {
                    let grade = document.bufferbloat.of(load).map(|bloat| bloat.grade);
                    let queue = document.latency.of(load).and_then(|latency| latency.queue.as_ref());
                    Some(LoadedView {
                        name,
                        figure: FigureView::of(&quantity::micros(median(load)?)),
                        grade: grade.map(|grade| (grade.to_string(), grade_class(grade))),
                        queue: queue.and_then(|queue| side(queue.stands, queue.is_own())),
                    })
                })
                .collect(),
        }
    }
}

impl FigureView {
    /// Splits the text of a quantity into its number and its unit.
    pub(in super::super) fn of(text: &str) -> Self {
        let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
        Self { number: number.to_owned(), unit: unit.to_owned() }
    }
}

/// The class in the style sheet for a grade.
fn grade_class(grade: Grade) -> &'static str {
    match grade {
        Grade::APlus | Grade::A => "good",
        Grade::B | Grade::C => "fair",
        Grade::D | Grade::F => "bad",
    }
}

fn side(side: QueueSide, is_own: bool) -> Option<&'static str> {
    match side {
        QueueSide::Upload if is_own => Some("the queue is in this device"),
        QueueSide::Upload => Some("the queue is in the upload"),
        QueueSide::Download => Some("the queue is in the download"),
        QueueSide::Both => Some("queues are in both directions"),
        QueueSide::None => Some("no queue"),
        QueueSide::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::plan::PromisedRate;
    use paramedic_report::document::example;

    use super::*;

    #[test]
    fn a_result_has_its_rates_with_their_shares_and_only_what_was_measured() {
        let full = example::full();
        let bps = full.download.as_ref().unwrap().goodput_bps;
        let rate = PromisedRate { promised_bps: bps * 2, normal_bps: None, minimum_bps: None };
        let plan = Plan { name: None, download: rate, upload: rate };
        let view = LastView::of(&full, Some(&plan));
        assert_eq!(view.rates[0].share, Some(("50 %".to_owned(), 50)));
        assert!(view.idle.is_some() && !view.loaded.is_empty() && !view.sentence.is_empty());
        let bare = LastView::of(&example::bare(), None);
        assert!(bare.rates.iter().all(|rate| rate.share.is_none()));
    }

    #[test]
    fn a_quantity_is_split_before_its_unit() {
        let FigureView { number, unit } = FigureView::of(&quantity::rate(94_100_000));
        assert_eq!((number.as_str(), unit.as_str()), ("94.1", "Mbit/s"));
    }
}
