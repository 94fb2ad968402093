//! The page of the history: rates, latency, loss and outages over time, the heat map of the week, and the list of runs.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the period")]

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::app::Appliance;
use paramedic_appliance::store::{ExportFormat, PageCursor, RunOrder, RunQuery, RunSums, ValueSum};
use paramedic_report::quantity;
use paramedic_report::summary::RunSummary;

use super::super::super::ApiState;
use super::super::super::extract::encoded;
use super::super::super::problem::Problem;
use super::super::super::results;
use super::super::layout::{Layout, Section, page};
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::alerts::{AlertList, alerts_between};
use super::chart::{Chart, ChartColumn, ChartPosition, ChartUnit, ColumnForm};
use super::heat::{HeatMap, TimedRates};
use super::outages::{OutageList, outages_between};
use super::period::ChartPeriod;

/// The number of runs in a page of the list.
const LIST_PAGE: u32 = 25;

/// The heat map of the week uses only runs that began at most this long ago.
const WEEKS: Duration = Duration::from_secs(90 * 86_400);

/// The template of the page of the history.
#[derive(Template)]
#[template(path = "history.html")]
struct HistoryPage {
    layout: Layout,
    period: ChartPeriod,
    targets: Vec<String>,
    engines: Vec<String>,
    target: String,
    engine: String,
    count: u64,
    charts: Vec<Chart>,
    heat: Option<HeatMap>,
    outages: OutageList,
    alerts: AlertList,
    runs: Vec<RunSummary>,
    older: Option<String>,
}

impl HistoryPage {
    /// The address of this page with another period.
    fn path_of(&self, period: &ChartPeriod) -> String {
        path(*period, &self.target, &self.engine, None)
    }

    fn periods(&self) -> &'static [(ChartPeriod, &'static str, &'static str)] {
        ChartPeriod::all()
    }

    fn began(&self, run: &RunSummary) -> PageTime {
        PageTime::full(run.started_at)
    }

    fn rate(&self, bps: &Option<u64>) -> String {
        bps.map_or_else(|| "–".to_owned(), quantity::rate)
    }

    fn micros(&self, us: &Option<u64>) -> String {
        us.map_or_else(|| "–".to_owned(), quantity::micros)
    }

    fn loaded(&self, run: &RunSummary) -> String {
        self.micros(&run.rtt_download_us.max(run.rtt_upload_us))
    }

    /// The outcome of a run in a few words.
    fn outcome(&self, run: &RunSummary) -> String {
        match (run.complete, &run.error) {
            (true, _) => run
                .bufferbloat_download
                .max(run.bufferbloat_upload)
                .map_or_else(|| "complete".to_owned(), |grade| format!("grade {grade}")),
            (false, Some(error)) => shown(&error.code),
            (false, None) => "incomplete".to_owned(),
        }
    }

    fn name(&self, text: &str) -> String {
        shown(text)
    }

    fn peer(&self, run: &RunSummary) -> String {
        run.peer.as_deref().or(run.address.as_deref()).map_or_else(|| "–".to_owned(), shown)
    }
}

fn path(period: ChartPeriod, target: &str, engine: &str, after: Option<PageCursor>) -> String {
    let mut path = format!("/history?period={}", period.word());
    let after = after.map(|cursor| cursor.to_string()).unwrap_or_default();
    for (name, value) in [("target", target), ("engine", engine), ("after", &after)] {
        if !value.is_empty() {
            path += &format!("&{name}={}", encoded(value));
        }
    }
    path
}

/// Shows the page of the history.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let appliance = state.service.appliance();
    let period = ChartPeriod::of_word(visitor.parameter("period"));
    let text = |name| visitor.parameter(name).unwrap_or_default().to_owned();
    let (target, engine) = (text("target"), text("engine"));
    let wrong = |because: &str| Problem::invalid(StatusCode::BAD_REQUEST, because);
    let after = visitor.parameter("after").map(str::parse::<PageCursor>).transpose().map_err(wrong)?;
    let query = query(period, &target, &engine, now);
    let charts = charts(appliance, period, &query, now).await?;
    let mut runs = appliance.results(&query, after, LIST_PAGE + 1).await?;
    let has_older = runs.len() > LIST_PAGE as usize;
    runs.truncate(LIST_PAGE as usize);
    let last = runs.last().filter(|_| has_older).map(|run| PageCursor { at: run.started_at, id: run.id });
    let (mut targets, mut engines) = appliance.result_kinds().await?;
    // A name that `shown` changes cannot be chosen from a list.
    targets.retain(|name| shown(name) == *name);
    engines.retain(|name| shown(name) == *name);
    let outages = outages_between(appliance, charts.since, now).await?;
    let alerts = alerts_between(appliance, charts.since, now).await?;
    let heat = HeatMap::of(&charts.rates, &TimeZone::system());
    Ok(page(&HistoryPage {
        layout: visitor.layout("History", Section::History),
        period,
        targets,
        engines,
        count: charts.count,
        charts: charts.charts,
        heat,
        outages,
        alerts,
        runs,
        older: last.map(|cursor| path(period, &target, &engine, Some(cursor))),
        target,
        engine,
    }))
}

fn query(period: ChartPeriod, target: &str, engine: &str, now: Timestamp) -> RunQuery {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    RunQuery {
        since: period.since(now),
        until: Some(now),
        peer: given(target),
        engine: given(engine),
        ..RunQuery::default()
    }
}

/// The charts of the history in a period.
struct HistoryCharts {
    since: Timestamp,
    count: u64,
    charts: Vec<Chart>,
    /// The download rates of each quarter of an hour, for the heat map of the week.
    rates: Vec<TimedRates>,
}

async fn charts(
    appliance: &Appliance,
    period: ChartPeriod,
    query: &RunQuery,
    now: Timestamp,
) -> Result<HistoryCharts, Problem> {
    let since = match query.since {
        Some(since) => since,
        None => {
            let first = RunQuery { order: RunOrder::OldestFirst, ..query.clone() };
            appliance.results(&first, None, 1).await?.first().map_or(now, |run| run.started_at)
        }
    };
    let sums = appliance.result_sums(query, period.step(since, now)).await?;
    let recent = now.checked_sub(WEEKS).ok();
    let of_week = RunQuery { since: query.since.max(recent), ..query.clone() };
    let rates = appliance.download_quarters(&of_week).await?;
    let rates = rates.into_iter().map(|(at, count, sum_bps)| TimedRates { at, count, sum_bps });
    let csv = RunQuery { order: RunOrder::OldestFirst, ..query.clone() };
    let csv = format!("{}{}", super::super::super::access::API, results::export_route(&csv, ExportFormat::Csv));
    let make = ChartMaker { sums: &sums, range: [ChartPosition::At(since), ChartPosition::At(now)], csv };
    Ok(HistoryCharts {
        since,
        count: sums.iter().map(|sums| sums.count).sum(),
        charts: vec![
            make.rates("download", "Download", "--download", |sums| sums.download),
            make.rates("upload", "Upload", "--upload", |sums| sums.upload),
            make.latency(),
            make.loss(),
        ],
        rates: rates.collect(),
    })
}

/// Makes the charts of the history, all from the same runs.
struct ChartMaker<'a> {
    sums: &'a [RunSums],
    range: [ChartPosition; 2],
    csv: String,
}

impl ChartMaker<'_> {
    /// Adds up one kind of value over all runs of the period.
    fn total(&self, of: impl Fn(&RunSums) -> Option<ValueSum>) -> Option<ValueSum> {
        self.sums.iter().filter_map(of).reduce(ValueSum::with)
    }

    fn chart(
        &self,
        id: &str,
        title: &str,
        unit: ChartUnit,
        columns: Vec<ChartColumn>,
        summary: String,
        cells: impl Fn(&RunSums) -> Vec<Option<f64>>,
    ) -> Chart {
        let rows = self.sums.iter().map(|sums| (ChartPosition::At(sums.begins_at), cells(sums)));
        Chart {
            id: id.to_owned(),
            title: title.to_owned(),
            summary,
            unit,
            range: self.range,
            row_head: "From",
            columns,
            rows: rows.filter(|(_, cells)| cells.iter().flatten().next().is_some()).collect(),
            download: Some(("The runs as CSV", self.csv.clone())),
        }
    }

    fn rates(
        &self,
        id: &'static str,
        title: &'static str,
        colour: &'static str,
        of: impl Fn(&RunSums) -> Option<ValueSum>,
    ) -> Chart {
        let summary = match self.total(&of) {
            None => "No run measured it in this time.".to_owned(),
            Some(total) => format!(
                "{}: mean {}, from {} to {}.",
                runs(total.count),
                quantity::rate(total.mean() as u64),
                quantity::rate(total.min as u64),
                quantity::rate(total.max as u64)
            ),
        };
        let columns = vec![
            ChartColumn::new("Mean", colour, ColumnForm::Line),
            ChartColumn::new("Lowest", colour, ColumnForm::Edge),
            ChartColumn::new("Highest", colour, ColumnForm::Edge).with_band(1, 18),
            ChartColumn::count("Runs"),
        ];
        self.chart(id, title, ChartUnit::Rate, columns, summary, |sums| {
            let value = of(sums);
            let part = |of: fn(&ValueSum) -> f64| value.as_ref().map(of);
            vec![part(ValueSum::mean), part(|sum| sum.min), part(|sum| sum.max), part(|sum| sum.count as f64)]
        })
    }

    fn latency(&self) -> Chart {
        let text = |total: Option<ValueSum>| {
            total.map_or_else(|| "not measured".to_owned(), |total| quantity::micros(total.mean() as u64))
        };
        let idle = self.total(|sums| sums.idle);
        let summary = match idle.or(self.total(|sums| sums.loaded_p50)) {
            None => "No run measured it in this time.".to_owned(),
            Some(any) => format!(
                "{}: mean of the median round trips without load {}, under load {}; of the 95th percentiles under load {}.",
                runs(any.count),
                text(idle),
                text(self.total(|sums| sums.loaded_p50)),
                text(self.total(|sums| sums.loaded_p95))
            ),
        };
        let columns = vec![
            ChartColumn::new("Idle, median", "--good", ColumnForm::Line),
            ChartColumn::new("Under load, median", "--latency", ColumnForm::Line),
            ChartColumn::new("Under load, 95th percentile", "--latency", ColumnForm::Dashes),
            ChartColumn::count("Runs"),
        ];
        self.chart("latency", "Latency", ChartUnit::Micros, columns, summary, |sums| {
            let mean = |value: Option<ValueSum>| value.map(|sum| sum.mean());
            let cells = vec![mean(sums.idle), mean(sums.loaded_p50), mean(sums.loaded_p95)];
            let count = cells.iter().flatten().next().map(|_| sums.count as f64);
            cells.into_iter().chain([count]).collect()
        })
    }

    fn loss(&self) -> Chart {
        let text = |total: Option<ValueSum>| match total {
            None => "not measured".to_owned(),
            Some(total) => {
                format!("{} in the mean, {} at most", quantity::share(total.mean()), quantity::share(total.max))
            }
        };
        let (idle, loaded) = (self.total(|sums| sums.loss_idle), self.total(|sums| sums.loss_loaded));
        let summary = match idle.or(loaded) {
            None => "No run measured it in this time.".to_owned(),
            Some(_) => format!("Lost probes of the runs without load: {}; under load: {}.", text(idle), text(loaded)),
        };
        let columns = vec![
            ChartColumn::new("Without load", "--bad", ColumnForm::Line),
            ChartColumn::new("Under load", "--fair", ColumnForm::Dashes),
        ];
        self.chart("loss", "Lost probes", ChartUnit::Share, columns, summary, |sums| {
            [sums.loss_idle, sums.loss_loaded].map(|value| value.map(|sum| sum.mean())).to_vec()
        })
    }
}

fn runs(count: u64) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}
