//! The pages of the monitors: the list, and the page of one monitor with its latency and loss over time.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the period")]

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use paramedic_appliance::app::{MonitorActivity, MonitorOverview, MonitorSeries, SeriesRange};
use paramedic_appliance::monitor::series::SeriesPoint;
use paramedic_report::quantity;

use super::super::super::ApiState;
use super::super::super::access::API;
use super::super::super::extract::ApiPath;
use super::super::super::monitors::{monitor_route, series_route};
use super::super::super::problem::Problem;
use super::super::layout::{Layout, Section, page};
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::chart::{Chart, ChartColumn, ChartPosition, ChartUnit, ColumnForm};
use super::outages::{OutageList, outages_between};
use super::period::ChartPeriod;

/// The template of the page with the list of monitors.
#[derive(Template)]
#[template(path = "monitors.html")]
struct MonitorListPage {
    layout: Layout,
    monitors: Vec<MonitorOverview>,
    outages: OutageList,
}

/// The template of the page of one monitor.
#[derive(Template)]
#[template(path = "monitor.html")]
struct MonitorPage {
    layout: Layout,
    monitor: MonitorOverview,
    period: ChartPeriod,
    charts: Vec<Chart>,
    outages: OutageList,
}

/// The texts about a monitor that both pages show.
trait MonitorTexts {
    /// The path of the page of the monitor.
    fn path(&self, monitor: &MonitorOverview) -> String {
        monitor_route(&monitor.stored.monitor.name, "")
    }

    /// What the monitor does at present: the style class, and the text on the page.
    fn activity(&self, monitor: &MonitorOverview) -> (&'static str, &'static str) {
        match monitor.condition.as_ref().map(|condition| condition.activity) {
            Some(MonitorActivity::Running) => ("good", "running"),
            Some(MonitorActivity::Unreachable) => ("bad", "not reachable"),
            Some(MonitorActivity::Paused) => ("fair", "paused"),
            None => ("none", "not known"),
        }
    }

    /// Why the monitor is paused; `None` if no reason is known.
    fn reason(&self, monitor: &MonitorOverview) -> Option<&'static str> {
        Some(monitor.condition.as_ref()?.reason?.as_str())
    }

    fn since(&self, monitor: &MonitorOverview) -> Option<PageTime> {
        monitor.condition.as_ref().map(|condition| PageTime::full(condition.since))
    }

    fn micros(&self, us: &Option<u64>) -> String {
        us.map_or_else(|| "–".to_owned(), quantity::micros)
    }

    fn lost(&self, point: &SeriesPoint) -> String {
        match point.count {
            0 => "no probes".to_owned(),
            count => quantity::share(point.lost as f64 / count as f64),
        }
    }

    fn bytes(&self, bytes: &u64) -> String {
        quantity::bytes(*bytes)
    }

    fn interval(&self, monitor: &MonitorOverview) -> String {
        quantity::exact_duration(monitor.stored.monitor.interval())
    }
}

impl MonitorTexts for MonitorListPage {}
impl MonitorTexts for MonitorPage {}

impl MonitorPage {
    fn periods(&self) -> &'static [(ChartPeriod, &'static str, &'static str)] {
        ChartPeriod::all()
    }
}

/// Shows the list of the monitors, and the outages of the last week.
pub(super) async fn list(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let since = ChartPeriod::Week.since(now).unwrap_or(now);
    let outages = outages_between(state.service.appliance(), since, now).await?;
    let monitors = state.service.monitors().await?;
    Ok(page(&MonitorListPage { layout: visitor.layout("Monitors", Section::Monitors), monitors, outages }))
}

/// Shows the page of one monitor.
pub(super) async fn show(
    State(state): State<ApiState>,
    visitor: Visitor,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let monitor = state.service.monitor(&name).await?;
    let period = ChartPeriod::of_word(visitor.parameter("period"));
    let since = period.since(now).unwrap_or(monitor.stored.added_at);
    let step_s = i64::try_from(period.step(since, now).as_secs()).ok();
    let range = SeriesRange { from: Some(since), to: Some(now), step_s };
    let appliance = state.service.appliance();
    let series = appliance.monitor_series(&monitor.stored.monitor.name, range).await?;
    let route = format!("{API}{}", series_route(&monitor.stored.monitor.name, range));
    let charts = vec![latency(&series, &route), loss(&series, &route)];
    let outages = outages_between(appliance, since, now).await?;
    let layout = visitor.layout(&monitor.stored.monitor.name, Section::Monitors);
    Ok(page(&MonitorPage { layout, monitor, period, charts, outages }))
}

fn chart(series: &MonitorSeries, id: &str, title: &str, unit: ChartUnit, route: &str) -> Chart {
    Chart {
        id: id.to_owned(),
        title: title.to_owned(),
        summary: String::new(),
        unit,
        range: [ChartPosition::At(series.from), ChartPosition::At(series.to)],
        row_head: "From",
        columns: Vec::new(),
        rows: Vec::new(),
        download: Some(("The values as JSON", route.to_owned())),
    }
}

fn at(point: &SeriesPoint) -> ChartPosition {
    ChartPosition::At(Timestamp::from_second(point.at_s).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Makes the chart of the shortest, median, 95th percentile and longest round trips, with bands between them.
fn latency(series: &MonitorSeries, route: &str) -> Chart {
    let extremes = |of: fn(&SeriesPoint) -> Option<u64>| {
        let values = || series.points.iter().filter_map(of);
        values().min().zip(values().max())
    };
    let summary = match (extremes(|point| point.p50_us), extremes(|point| point.max_us)) {
        (Some((least, most)), Some((_, longest))) => format!(
            "The median round trip is between {} and {}; the longest one {}. Probes during a test are not in it.",
            quantity::micros(least),
            quantity::micros(most),
            quantity::micros(longest)
        ),
        _ => "No round trip was measured in this time.".to_owned(),
    };
    let columns = vec![
        ChartColumn::new("Shortest", "--latency", ColumnForm::Edge),
        ChartColumn::new("Median", "--latency", ColumnForm::Line),
        ChartColumn::new("95th percentile", "--latency", ColumnForm::Edge).with_band(1, 35),
        ChartColumn::new("Longest", "--latency", ColumnForm::Edge).with_band(0, 14),
    ];
    let cells = |point: &SeriesPoint| {
        [point.min_us, point.p50_us, point.p95_us, point.max_us].map(|us| us.map(|us| us as f64)).to_vec()
    };
    let rows = series.points.iter().map(|point| (at(point), cells(point))).collect();
    Chart { summary, columns, rows, ..chart(series, "latency", "Round trips", ChartUnit::Micros, route) }
}

fn loss(series: &MonitorSeries, route: &str) -> Chart {
    let (count, lost) = series.points.iter().fold((0, 0), |sum, point| (sum.0 + point.count, sum.1 + point.lost));
    let summary = match count {
        0 => "No probe was sent in this time.".to_owned(),
        count => format!("{lost} of {count} probes lost: {}.", quantity::share(lost as f64 / count as f64)),
    };
    let columns = vec![
        ChartColumn::new("Lost", "--bad", ColumnForm::Bars),
        ChartColumn::count("Probes"),
        ChartColumn::count("Lost probes"),
        ChartColumn::count("Beside a test"),
    ];
    let cells = |point: &SeriesPoint| {
        let share = (point.count > 0).then(|| point.lost as f64 / point.count as f64);
        vec![share, Some(point.count as f64), Some(point.lost as f64), Some(point.under_load as f64)]
    };
    let rows = series.points.iter().map(|point| (at(point), cells(point))).collect();
    Chart { summary, columns, rows, ..chart(series, "loss", "Lost probes", ChartUnit::Share, route) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_becomes_bands_and_bars() {
        let point = |at_s, lost, p50_us: Option<u64>| SeriesPoint {
            at_s,
            count: 60,
            lost,
            under_load: 0,
            min_us: p50_us.map(|us| us - 1_000),
            p50_us,
            p95_us: p50_us.map(|us| us + 2_000),
            max_us: p50_us.map(|us| us + 9_000),
        };
        let series = MonitorSeries {
            monitor: "attic".to_owned(),
            from: Timestamp::from_second(0).unwrap(),
            to: Timestamp::from_second(180).unwrap(),
            step_s: 60,
            points: vec![point(0, 0, Some(12_000)), point(60, 60, None), point(120, 15, Some(20_000))],
        };
        let latency = latency(&series, "/x");
        assert_eq!(latency.rows[0].1, [Some(11_000.0), Some(12_000.0), Some(14_000.0), Some(21_000.0)]);
        assert_eq!(latency.rows[1].1, [None; 4]);
        assert!(
            latency.summary.contains("between 12.0 ms and 20.0 ms; the longest one 29.0 ms"),
            "{}",
            latency.summary
        );
        let loss = loss(&series, "/x");
        assert_eq!(loss.rows[1].1[0], Some(1.0));
        assert!(loss.summary.contains("75 of 180 probes lost: 42 %"), "{}", loss.summary);
        assert!(loss.to_string().contains("data-form=\"bars\""));
    }
}
