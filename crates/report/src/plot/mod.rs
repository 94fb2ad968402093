//! Plots a result over time as an SVG image: throughput, latency of each direction, loss. Each curve has its own dash
//! pattern or width, so that readers can tell the curves apart without colours. Pure: no I/O, no clock.

mod axis;
mod line;
mod sparkline;

use paramedic_link::PeerText;
use paramedic_link::test_spec::{Direction, Load};

use crate::document::{LatencyInterval, ResultDocument};
use crate::quantity;
use axis::{Axis, escaped, usual_top};

pub use line::{rates_by_hour, rates_over_time};
pub use sparkline::{PhaseCurves, sparkline};

const WIDTH: f64 = 800.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 784.0;
/// The space above the first panel, for the title and the names of the phases.
const TOP: f64 = 84.0;
const PANEL: f64 = 150.0;
const LOSS_PANEL: f64 = 76.0;
/// The space between two panels, for the legend of the lower panel.
const GAP: f64 = 44.0;
/// The space below the last panel, for the labels of the time axis.
const BOTTOM: f64 = 48.0;
/// A curve has at most this many points in each phase, because more points would not be visible.
const MAX_POINTS: usize = 400;
/// The title shows at most this many characters of the other end's name.
const MAX_NAME_CHARS: usize = 60;

const STYLE: &str = "
  .page { fill: #ffffff; }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2933; }
  .title { font-size: 16px; font-weight: 600; }
  .faint { fill: #52606d; }
  .grid { stroke: #e4e7eb; }
  .frame { stroke: #7b8794; fill: none; }
  .phase { stroke: #7b8794; stroke-dasharray: 1 3; }
  .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
  .download { stroke: #0b5394; }
  .upload { stroke: #d9730d; stroke-dasharray: 6 3; }
  .round-trip { stroke: #b8c2cc; stroke-width: 4.5; }
  .upload-delay { stroke: #d9730d; stroke-dasharray: 6 3; }
  .download-delay { stroke: #0b5394; stroke-dasharray: 2 2; }
  .loss { fill: #52606d; }
  .peak { fill: #ffffff; stroke-dasharray: none; }
";

/// The error for a result that cannot be plotted, because it has no intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved run has no measurements of single intervals")]
pub struct NothingToPlot;

/// One phase on the time axis that all panels share.
struct PlotPhase<'a> {
    load: Load,
    /// When the phase begins, in seconds since the first phase began. The pauses between phases are left out.
    from_s: f64,
    length_s: f64,
    /// The points of the two rate curves (download, upload). A point is the end of an interval, in seconds since the
    /// phase began, and its rate in bits per second.
    rates: [Vec<(f64, f64)>; 2],
    latency: &'a [LatencyInterval],
}

/// Draws `document` as an SVG image.
pub fn svg(document: &ResultDocument) -> Result<String, NothingToPlot> {
    draw(document, true)
}

/// Draws `document` as SVG for use inside a web page. The drawing scales to the width of the page element that contains
/// it. It uses the same classes as the image of [`svg`], but contains no styles, because the page has them.
pub fn svg_part(document: &ResultDocument) -> Result<String, NothingToPlot> {
    draw(document, false)
}

fn draw(document: &ResultDocument, is_file: bool) -> Result<String, NothingToPlot> {
    let phases = phases(document);
    let length_s = phases.last().map(|last| last.from_s + last.length_s).ok_or(NothingToPlot)?;
    let height = TOP + 2.0 * PANEL + LOSS_PANEL + 2.0 * GAP + BOTTOM;
    let mut canvas = Canvas { svg: String::new(), phases: &phases, time: Axis::of_time(length_s) };
    let title = title(document);
    let size = if is_file { format!(r#" width="{WIDTH:.0}" height="{height:.0}""#) } else { String::new() };
    canvas.put(format!(
        r#"<svg class="plot-of-run" xmlns="http://www.w3.org/2000/svg"{size} viewBox="0 0 {WIDTH:.0} {height:.0}" role="img" aria-label="{}">"#,
        escaped(&title)
    ));
    if is_file {
        canvas.put(format!("<style>{STYLE}</style>"));
        canvas.put(format!(r#"<rect class="page" width="{WIDTH:.0}" height="{height:.0}"/>"#));
        canvas.put(format!(r#"<text class="title" x="16" y="26">{}</text>"#, escaped(&title)));
    }
    canvas.rates(TOP);
    canvas.latency(TOP + PANEL + GAP);
    canvas.loss(TOP + 2.0 * (PANEL + GAP));
    canvas.phase_names(height - BOTTOM);
    canvas.time_labels(height - BOTTOM);
    canvas.put("</svg>".to_owned());
    Ok(canvas.svg)
}

fn title(document: &ResultDocument) -> String {
    let other_end = document.other_end().map(|name| format!(" to {}", PeerText::harmless(name, MAX_NAME_CHARS)));
    let other_end = other_end.unwrap_or_default();
    let started = document.started_at.to_string().chars().take(16).collect::<String>().replace('T', " ");
    format!("Connection{other_end}, {started} UTC")
}

fn phases(document: &ResultDocument) -> Vec<PlotPhase<'_>> {
    let mut from_s = 0.0;
    let mut phases = Vec::new();
    for load in [Load::Idle, Load::Download, Load::Upload, Load::Bidir] {
        let rates = Direction::BOTH.map(|direction| {
            let intervals = document.measured(load, direction).and_then(|measured| measured.intervals.as_deref());
            let points = intervals.unwrap_or_default().iter();
            points.map(|interval| (interval.at_ms as f64 / 1000.0, interval.bps as f64)).collect::<Vec<_>>()
        });
        let latency = document.latency.of(load).and_then(|latency| latency.intervals.as_deref()).unwrap_or_default();
        let ends = rates.iter().flatten().map(|(end_s, _)| *end_s);
        let ends = ends.chain(latency.iter().map(|interval| interval.at_ms as f64 / 1000.0));
        let length_s = ends.fold(0.0, f64::max);
        if length_s > 0.0 {
            phases.push(PlotPhase { load, from_s, length_s, rates, latency });
            from_s += length_s;
        }
    }
    phases
}

struct Canvas<'a> {
    svg: String,
    phases: &'a [PlotPhase<'a>],
    time: Axis,
}

impl Canvas<'_> {
    fn put(&mut self, line: String) {
        self.svg.push_str(&line);
        self.svg.push('\n');
    }

    fn x(&self, second: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * second / self.time.end
    }

    /// Draws the panel with the throughput of both directions.
    fn rates(&mut self, top: f64) {
        let phases = self.phases;
        let classes = [(Direction::Download, "download"), (Direction::Upload, "upload")];
        let curves = phases.iter().flat_map(|phase| {
            classes.map(|(direction, class)| (class, phase.from_s, mean_of_groups(&phase.rates[direction as usize])))
        });
        let curves = curves.filter(|(.., points)| !points.is_empty()).collect::<Vec<_>>();
        let values = || curves.iter().flat_map(|(.., points)| points).map(|(_, bps)| *bps);
        let axis = Axis::of_rate(usual_top(values()));
        let legend = [("download", "download"), ("upload", "upload")];
        self.frame(top, PANEL, &axis, &format!("throughput ({})", axis.unit), &legend);
        for (class, from_s, points) in &curves {
            self.curve(class, *from_s, points, |bps| axis.y(top, PANEL, bps));
            self.peaks(class, *from_s, points, &axis, top);
        }
        let highest = values().fold(0.0, f64::max);
        if highest > axis.end {
            let y = top - 5.5;
            let text = format!("▲ above the axis: up to {}", quantity::rate(highest as u64));
            self.put(format!(r#"<text class="faint" x="{RIGHT:.1}" y="{y:.1}" text-anchor="end">{text}</text>"#));
        }
        if curves.is_empty() {
            self.missing(top, PANEL, "no throughput intervals were saved");
        }
    }

    /// Draws a mark at the top of a panel for each point of a curve that lies above the axis.
    fn peaks(&mut self, class: &str, from_s: f64, points: &[(f64, f64)], axis: &Axis, top: f64) {
        for (end_s, _) in points.iter().filter(|(_, value)| *value > axis.end) {
            let x = self.x(from_s + end_s);
            self.put(format!(r#"<path class="peak {class}" d="M{x:.1} {:.1}l-4 7h8z"/>"#, top + 1.0));
        }
    }

    /// Draws the panel with the round trip, and with how far the delay of each direction exceeds its shortest delay.
    fn latency(&mut self, top: f64) {
        let of = |interval: &LatencyInterval| {
            [interval.rtt_us, interval.upload_us, interval.download_us].map(|us| us.map(|us| us as f64 / 1000.0))
        };
        let all = || self.phases.iter().flat_map(|phase| phase.latency).map(of);
        let axis = Axis::of_delay(all().flatten().flatten().fold(0.0, f64::max));
        let legend = [
            ("round-trip", "round trip"),
            ("upload-delay", "upload delay above its shortest"),
            ("download-delay", "download delay above its shortest"),
        ];
        let has_any = |at: usize| all().any(|values: [Option<f64>; 3]| values[at].is_some());
        let is_measured = [0, 1, 2].map(has_any);
        let shown = legend.iter().zip(is_measured).filter(|(_, is_measured)| *is_measured).map(|(entry, _)| *entry);
        let shown = shown.collect::<Vec<_>>();
        self.frame(top, PANEL, &axis, "latency (ms)", &shown);
        for phase in self.phases {
            for (at, (class, _)) in legend.iter().enumerate() {
                let points = phase
                    .latency
                    .iter()
                    .filter_map(|interval| Some((interval.at_ms as f64 / 1000.0, of(interval)[at]?)));
                let points = highest_of_groups(&points.collect::<Vec<_>>());
                self.curve(class, phase.from_s, &points, |ms| axis.y(top, PANEL, ms));
            }
        }
        if shown.is_empty() {
            self.missing(top, PANEL, "no latency intervals were saved");
        }
    }

    /// Draws the panel with the share of lost probes in each interval, as bars.
    fn loss(&mut self, top: f64) {
        let share = |interval: &LatencyInterval| match interval.sent {
            0 => 0.0,
            sent => interval.lost as f64 / sent as f64 * 100.0,
        };
        let highest = self.phases.iter().flat_map(|phase| phase.latency).map(share).fold(0.0, f64::max);
        let axis = Axis::of_share(highest);
        self.frame(top, LOSS_PANEL, &axis, "lost probes (%)", &[]);
        let base = top + LOSS_PANEL;
        for phase in self.phases {
            let points = phase.latency.iter().map(|interval| (interval.at_ms as f64 / 1000.0, share(interval)));
            for (end_s, share) in highest_of_groups(&points.collect::<Vec<_>>()) {
                if share > 0.0 {
                    let (x, y) = (self.x(phase.from_s + end_s), axis.y(top, LOSS_PANEL, share));
                    self.put(format!(
                        r#"<rect class="loss" x="{:.1}" y="{y:.1}" width="3" height="{:.1}"/>"#,
                        x - 3.0,
                        base - y
                    ));
                }
            }
        }
        if self.phases.iter().all(|phase| phase.latency.is_empty()) {
            self.missing(top, LOSS_PANEL, "no latency intervals were saved");
        } else if highest <= 0.0 {
            self.missing(top, LOSS_PANEL, "none lost");
        }
    }

    /// Draws the frame, the grid and the legend of a panel.
    fn frame(&mut self, top: f64, height: f64, axis: &Axis, label: &str, legend: &[(&str, &str)]) {
        for tick in axis.ticks() {
            let y = axis.y(top, height, tick);
            self.put(format!(r#"<line class="grid" x1="{LEFT:.1}" y1="{y:.1}" x2="{RIGHT:.1}" y2="{y:.1}"/>"#));
            let text = axis.label(tick);
            self.put(format!(
                r#"<text class="faint" x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
                LEFT - 8.0,
                y + 4.5
            ));
        }
        self.put(format!(
            r#"<rect class="frame" x="{LEFT:.1}" y="{top:.1}" width="{:.1}" height="{height:.1}"/>"#,
            RIGHT - LEFT
        ));
        let middle = top + height / 2.0;
        self.put(format!(
            r#"<text x="18" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 18 {middle:.1})">{}</text>"#,
            escaped(label)
        ));
        let mut x = LEFT;
        for (class, name) in legend {
            let y = top - 10.0;
            self.put(format!(
                r#"<line class="curve {class}" x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/>"#,
                x + 30.0
            ));
            self.put(format!(r#"<text x="{:.1}" y="{:.1}">{}</text>"#, x + 36.0, y + 4.5, escaped(name)));
            x += 60.0 + 7.2 * name.len() as f64;
        }
    }

    fn curve(&mut self, class: &str, from_s: f64, points: &[(f64, f64)], y: impl Fn(f64) -> f64) {
        let mut path = String::new();
        for (at, (end_s, value)) in points.iter().enumerate() {
            let step = if at == 0 { 'M' } else { 'L' };
            path.push_str(&format!("{step}{:.1} {:.1}", self.x(from_s + end_s), y(*value)));
        }
        // A single point has no line, so a short line makes the point visible.
        if points.len() == 1 {
            path.push_str("h3");
        }
        if !path.is_empty() {
            self.put(format!(r#"<path class="curve {class}" d="{path}"/>"#));
        }
    }

    /// Writes `why` into the middle of a panel that has no curve.
    fn missing(&mut self, top: f64, height: f64, why: &str) {
        let (x, y) = (f64::midpoint(LEFT, RIGHT), top + height / 2.0 + 4.5);
        self.put(format!(r#"<text class="faint" x="{x:.1}" y="{y:.1}" text-anchor="middle">{}</text>"#, escaped(why)));
    }

    /// Writes the names of the phases and draws the lines between the phases.
    fn phase_names(&mut self, bottom: f64) {
        for (at, phase) in self.phases.iter().enumerate() {
            let (from, to) = (self.x(phase.from_s), self.x(phase.from_s + phase.length_s));
            let name = match phase.load {
                Load::Bidir => "both ways".to_owned(),
                load => load.to_string(),
            };
            self.put(format!(
                r#"<text class="faint" x="{:.1}" y="50" text-anchor="middle">{}</text>"#,
                f64::midpoint(from, to),
                escaped(&name)
            ));
            if at > 0 {
                self.put(format!(r#"<line class="phase" x1="{from:.1}" y1="40" x2="{from:.1}" y2="{bottom:.1}"/>"#));
            }
        }
    }

    fn time_labels(&mut self, bottom: f64) {
        for tick in self.time.ticks() {
            let (x, text) = (self.x(tick), self.time.label(tick));
            self.put(format!(
                r#"<text class="faint" x="{x:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                bottom + 18.0
            ));
        }
        self.put(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">measured time ({}), without the pauses between phases</text>"#,
            f64::midpoint(LEFT, RIGHT),
            bottom + 38.0,
            self.time.unit
        ));
    }
}

/// Reduces a curve to at most [`MAX_POINTS`] points. Each point is the mean of a group of neighbours, at the end of the
/// group.
fn mean_of_groups(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |group: &[(f64, f64)]| group.iter().map(|(_, value)| value).sum::<f64>() / group.len() as f64;
    in_groups(points, mean)
}

/// Reduces a curve to at most [`MAX_POINTS`] points. Each point has the highest value of a group of neighbours, so no
/// peak is lost.
fn highest_of_groups(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    in_groups(points, |group| group.iter().map(|(_, value)| *value).fold(0.0, f64::max))
}

fn in_groups(points: &[(f64, f64)], value: impl Fn(&[(f64, f64)]) -> f64) -> Vec<(f64, f64)> {
    let groups = points.chunks(points.len().div_ceil(MAX_POINTS).max(1));
    groups.filter_map(|group| Some((group.last()?.0, value(group)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Interval, example};

    /// A result with a download and an upload of 10 s each, after 3 s of idle time.
    fn document() -> ResultDocument {
        let mut document = example::full();
        document.bidir = None;
        let rates = |bps: u64| {
            let of = |at: u64| Interval { at_ms: at * 100, bps: bps * at.min(12) / 12 };
            Some((1..=100).map(of).collect::<Vec<_>>())
        };
        document.download.as_mut().unwrap().intervals = rates(941_000_000);
        document.upload.as_mut().unwrap().intervals = rates(94_200_000);
        let probes = |count: u64, up_us: u64, down_us: u64| {
            let of = |at: u64| LatencyInterval {
                at_ms: at * 100,
                rtt_us: Some(12_300 + up_us + down_us),
                upload_us: Some(up_us),
                download_us: Some(down_us),
                sent: 10,
                lost: u64::from(at % 40 == 7),
            };
            Some((1..=count).map(of).collect::<Vec<_>>())
        };
        document.latency.bidir = None;
        document.latency.idle.as_mut().unwrap().intervals = probes(30, 100, 90);
        document.latency.download.as_mut().unwrap().intervals = probes(100, 200, 24_000);
        document.latency.upload.as_mut().unwrap().intervals = probes(100, 180_000, 300);
        document
    }

    fn count(svg: &str, part: &str) -> usize {
        svg.matches(part).count()
    }

    #[test]
    fn a_plot_has_each_curve_of_each_phase_with_units_and_names() {
        let svg = svg(&document()).unwrap();
        assert_eq!((count(&svg, r#""curve download" d="#), count(&svg, r#""curve upload" d="#)), (1, 1));
        assert_eq!(count(&svg, r#""curve round-trip" d="#), 3);
        assert_eq!(count(&svg, r#""curve upload-delay" d="#), 3);
        assert_eq!(count(&svg, r#""curve download-delay" d="#), 3);
        for text in
            ["throughput (Mbit/s)", "latency (ms)", "lost probes (%)", "measured time (s)", ">idle<", ">upload<"]
        {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.contains("<rect class=\"loss\"") && !svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(count(&svg, "<svg"), count(&svg, "</svg>"));
    }

    #[test]
    fn a_rare_peak_is_marked_and_does_not_set_the_axis() {
        let mut document = document();
        let intervals = document.download.as_mut().unwrap().intervals.as_mut().unwrap();
        intervals[60].bps = 6_100_000_000;
        let svg = svg(&document).unwrap();
        assert!(svg.contains("▲ above the axis: up to 6.10 Gbit/s") && svg.contains("throughput (Mbit/s)"), "{svg}");
        assert_eq!(count(&svg, r#"<path class="peak download""#), 1);
        assert_eq!(count(&super::svg(&self::document()).unwrap(), "above the axis"), 0);
    }

    #[test]
    fn a_part_of_a_page_has_no_style_of_its_own() {
        let part = svg_part(&document()).unwrap();
        assert!(!part.contains("<style") && !part.contains("style=") && !part.contains(" width=\"800\""));
        assert_eq!(count(&part, r#""curve round-trip" d="#), 3);
    }

    #[test]
    fn what_was_not_saved_is_named_in_its_panel() {
        assert_eq!(svg(&example::bare()), Err(NothingToPlot));
        let mut without_latency = document();
        without_latency.latency = Default::default();
        let plot = svg(&without_latency).unwrap();
        assert_eq!(count(&plot, "no latency intervals were saved"), 2);
        let mut without_rates = document();
        (without_rates.download, without_rates.upload) = (None, None);
        assert!(svg(&without_rates).unwrap().contains("no throughput intervals were saved"));
    }

    #[test]
    fn names_of_the_other_end_cannot_break_the_image() {
        let mut document = document();
        document.reflector.as_mut().unwrap().name = "<b>&\"attic\"".into();
        let plot = svg(&document).unwrap();
        assert!(plot.contains("&lt;b&gt;&amp;&quot;attic&quot;") && !plot.contains("<b>"));
    }

    #[test]
    fn a_day_has_as_many_points_as_are_visible() {
        let points = (0..864_000).map(|at| (f64::from(at) / 10.0, f64::from(at % 7))).collect::<Vec<_>>();
        let (means, peaks) = (mean_of_groups(&points), highest_of_groups(&points));
        assert!(means.len() <= MAX_POINTS && (means[0].1 - 3.0).abs() < 0.1, "{}", means.len());
        assert!(peaks.iter().all(|(_, value)| *value == 6.0));
    }
}
