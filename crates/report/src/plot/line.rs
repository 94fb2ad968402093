//! Draws the figures of a report on an Internet line as SVG: rates over time and by the hour of the day. The SVG has
//! classes but no styles; the page that shows the figures contains the styles.

use jiff::Timestamp;
use paramedic_link::test_spec::Direction;

use super::axis::{Axis, escaped};
use crate::line_report::{DirectionReport, LineReport};
use crate::quantity;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 712.0;
const TOP: f64 = 24.0;
/// The height of the panel that contains the dots or bars of a figure, in SVG units.
const PANEL: f64 = 150.0;
/// A figure has at most this many dots, because more dots would cover each other.
const MAX_DOTS: usize = 3_000;
/// The number of labels on the time axis of a figure.
const TIMES: i64 = 6;

/// Draws the rates of a direction over the period of the report as SVG. `None` if no run counts.
pub fn rates_over_time(report: &LineReport, direction: &DirectionReport) -> Option<String> {
    let highest = direction.counted.iter().map(|rate| rate.line_bps).max()?;
    let mut figure = Figure::new(direction, highest, &summary(direction, "over time"));
    let (since, until) = (report.since.as_second(), report.until.as_second());
    let span = (until - since).max(1) as f64;
    let x = |at: Timestamp| LEFT + (RIGHT - LEFT) * ((at.as_second() - since) as f64 / span).clamp(0.0, 1.0);
    for number in 0..TIMES {
        let second = since + (until - since) / TIMES * number;
        let Ok(at) = Timestamp::from_second(second) else { continue };
        let date = report.zone.to_datetime(at).date();
        figure.put(format!(r#"<text class="tick" x="{:.1}" y="{:.1}">{date}</text>"#, x(at), TOP + PANEL + 18.0));
        figure.put(format!(r#"<path class="grid" d="M{0:.1} {TOP}v{PANEL}"/>"#, x(at)));
    }
    let every = direction.counted.len().div_ceil(MAX_DOTS).max(1);
    for rate in direction.counted.iter().step_by(every) {
        let y = figure.axis.y(TOP, PANEL, rate.line_bps as f64);
        figure.put(format!(r#"<circle class="dot" cx="{:.1}" cy="{y:.1}" r="2.4"/>"#, x(rate.at)));
    }
    Some(figure.end())
}

/// Draws the median rates of a direction by the hour of the day as SVG. `None` if no hour has enough runs.
pub fn rates_by_hour(direction: &DirectionReport) -> Option<String> {
    let highest = direction.hours.iter().filter_map(|hour| hour.line.map(|line| line.range[1])).fold(0.0, f64::max);
    if highest <= 0.0 {
        return None;
    }
    let mut figure = Figure::new(direction, highest as u64, &summary(direction, "by the hour of the day"));
    let width = (RIGHT - LEFT) / 24.0;
    for hour in &direction.hours {
        let left = LEFT + width * f64::from(hour.hour);
        let middle = left + width / 2.0;
        let y = TOP + PANEL + 18.0;
        figure.put(format!(r#"<text class="tick middle" x="{middle:.1}" y="{y:.1}">{}</text>"#, hour.hour));
        let Some(line) = hour.line else { continue };
        let top = figure.axis.y(TOP, PANEL, line.value);
        figure.put(format!(
            r#"<rect class="bar" x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}"/>"#,
            left + 3.0,
            width - 6.0,
            TOP + PANEL - top
        ));
        let [low, high] = line.range.map(|bps| figure.axis.y(TOP, PANEL, bps));
        figure.put(format!(r#"<path class="range" d="M{middle:.1} {low:.1}V{high:.1}"/>"#));
    }
    Some(figure.end())
}

/// The content of a figure in words, for screen readers.
fn summary(direction: &DirectionReport, what: &str) -> String {
    let name = name(direction.direction);
    let count = direction.counted.len();
    let extremes = direction.line.map(|line| {
        let [low, high] = line.range.map(|bps| quantity::rate(bps as u64));
        format!(", from {low} to {high}, median {}", quantity::rate(line.value as u64))
    });
    format!("{name} {what}: {count} runs{}", extremes.unwrap_or_default())
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "Download",
        Direction::Upload => "Upload",
    }
}

/// The SVG text of a figure: a panel with an axis of rates and lines at the rates of the contract.
struct Figure {
    svg: String,
    axis: Axis,
}

impl Figure {
    fn new(direction: &DirectionReport, highest: u64, label: &str) -> Self {
        let promised = direction.promise.map(|promise| promise.promised_bps).unwrap_or_default();
        let axis = Axis::of_rate(highest.max(promised) as f64);
        let mut figure = Self { svg: String::new(), axis };
        let class = match direction.direction {
            Direction::Download => "download",
            Direction::Upload => "upload",
        };
        figure.put(format!(
            r#"<svg class="figure {class}" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {HEIGHT:.0}" role="img" aria-label="{}">"#,
            escaped(label)
        ));
        figure.put(format!(r#"<text class="unit" x="{LEFT:.1}" y="14">{}</text>"#, figure.axis.unit));
        for tick in figure.axis.ticks() {
            let y = figure.axis.y(TOP, PANEL, tick);
            figure.put(format!(r#"<path class="grid" d="M{LEFT:.1} {y:.1}H{RIGHT:.1}"/>"#));
            let text = figure.axis.label(tick);
            let (x, y) = (LEFT - 8.0, y + 4.0);
            figure.put(format!(r#"<text class="tick end" x="{x:.1}" y="{y:.1}">{text}</text>"#));
        }
        if let Some(promise) = direction.promise {
            let levels = [
                ("promised", Some(promise.promised_bps)),
                ("normal", promise.normal_bps),
                ("minimum", promise.minimum_bps),
            ];
            for (class, bps) in levels {
                let Some(bps) = bps else { continue };
                let y = figure.axis.y(TOP, PANEL, bps as f64);
                figure.put(format!(r#"<path class="level {class}" d="M{LEFT:.1} {y:.1}H{RIGHT:.1}"/>"#));
                let (x, y) = (RIGHT - 2.0, y - 3.0);
                figure.put(format!(r#"<text class="tick end" x="{x:.1}" y="{y:.1}">{class}</text>"#));
            }
        }
        figure
    }

    fn put(&mut self, line: String) {
        self.svg.push_str(&line);
        self.svg.push('\n');
    }

    fn end(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}
