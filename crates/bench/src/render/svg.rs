//! Renders plots: for each cell two bars, iperf3's and ours, with the range as whiskers and the ratio beside them. Each
//! plot is a standalone SVG, readable on a light and on a dark page.

use std::fmt::Write;

use super::numbers::{gigabits, three_digits};
use crate::statistics::{Ratio, Spread};

/// One cell of a plot: two bars and their ratio.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bars {
    /// The text that names the cell.
    pub(super) label: String,
    /// The rates of iperf3, in bits per second.
    pub(super) theirs: Spread,
    /// Our rates, in bits per second.
    pub(super) ours: Spread,
    /// The ratios of our rate to iperf3's.
    pub(super) ratio: Ratio,
}

const WIDTH: f64 = 920.0;
/// The horizontal positions at which the bars begin and end, in pixels.
const LEFT: f64 = 238.0;
const RIGHT: f64 = 700.0;
/// The space above the first cell and below the last one, in pixels.
const TOP: f64 = 84.0;
const BOTTOM: f64 = 50.0;
const ROW: f64 = 48.0;
const BAR: f64 = 15.0;

const STYLE: &str = "
  .page { fill: #ffffff; stroke: #d6dbe1; }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2933; }
  .title { font-size: 16px; font-weight: 600; }
  .faint { fill: #616e7c; font-size: 12px; }
  .grid { stroke: #e4e7eb; }
  .axis { stroke: #9aa5b1; }
  .theirs { fill: #a8b4c2; }
  .ours { fill: #0b7fab; }
  .lost { font-weight: 600; fill: #b4301f; }
  .won { font-weight: 600; fill: #0a6e8f; }
  .whisker { stroke: #1f2933; stroke-width: 1.4; fill: none; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161b22; stroke: #30363d; }
    text { fill: #e6edf3; }
    .faint { fill: #9aa5b1; }
    .grid { stroke: #2a313a; }
    .axis { stroke: #6b7683; }
    .theirs { fill: #66727f; }
    .ours { fill: #2fa3d1; }
    .lost { fill: #ff8a75; }
    .won { fill: #63c7ee; }
    .whisker { stroke: #e6edf3; }
  }
";

/// Renders the plot of these cells; `None` if there are none.
pub(super) fn plot(title: &str, cells: &[Bars]) -> Option<String> {
    let highest = cells.iter().flat_map(|cell| [cell.theirs.highest, cell.ours.highest]).reduce(f64::max)?;
    let step = tick(highest);
    let end = (highest / step).ceil().max(1.0) * step;
    let x = |bps: f64| LEFT + (RIGHT - LEFT) * bps / end;
    let base = TOP + ROW * cells.len() as f64;
    let height = base + BOTTOM;
    let mut svg = String::new();
    let mut put = |line: String| {
        svg.push_str(&line);
        svg.push('\n');
    };
    put(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:.0}" height="{height:.0}" viewBox="0 0 {WIDTH:.0} {height:.0}" role="img" aria-label="{}">"#,
        escaped(&described(title, cells))
    ));
    put(format!("<style>{STYLE}</style>"));
    put(format!(
        r#"<rect class="page" x="0.5" y="0.5" width="{:.0}" height="{:.0}" rx="8"/>"#,
        WIDTH - 1.0,
        height - 1.0
    ));
    put(format!(r#"<text class="title" x="24" y="32">{}</text>"#, escaped(title)));
    put(legend());
    for n in 0..=(end / step).round() as u32 {
        let at = x(f64::from(n) * step);
        let class = if n == 0 { "axis" } else { "grid" };
        put(format!(r#"<line class="{class}" x1="{at:.1}" y1="{:.1}" x2="{at:.1}" y2="{base:.1}"/>"#, TOP - 8.0));
        let value = plain(f64::from(n) * step / 1e9);
        put(format!(r#"<text class="faint" x="{at:.1}" y="{:.1}" text-anchor="middle">{value}</text>"#, base + 18.0));
    }
    put(format!(
        r#"<text class="faint" x="{:.1}" y="{:.1}" text-anchor="middle">Gbit/s received; whiskers: lowest to highest run; ours over iperf3: median, 95 % interval of the mean</text>"#,
        WIDTH / 2.0,
        base + 38.0
    ));
    for (row, cell) in cells.iter().enumerate() {
        let y = TOP + ROW * row as f64 + 4.0;
        put(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 12.0,
            y + BAR + 5.0,
            escaped(&cell.label)
        ));
        put(bar("theirs", &cell.theirs, y, &x));
        put(bar("ours", &cell.ours, y + BAR + 3.0, &x));
        let median = cell.ratio.spread.median;
        let class = if median < 1.0 { "lost" } else { "won" };
        put(format!(
            r#"<text class="{class}" x="{:.1}" y="{:.1}">{}×</text>"#,
            RIGHT + 74.0,
            y + BAR + 5.0,
            three_digits(median)
        ));
        if let Some((low, high)) = cell.ratio.ci95 {
            put(format!(
                r#"<text class="faint" x="{:.1}" y="{:.1}">{} to {}</text>"#,
                RIGHT + 124.0,
                y + BAR + 5.0,
                three_digits(low),
                three_digits(high)
            ));
        }
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn legend() -> String {
    format!(
        r#"<rect class="theirs" x="{LEFT:.0}" y="48" width="12" height="12" rx="2"/><text class="faint" x="{:.0}" y="58">iperf3</text><rect class="ours" x="{:.0}" y="48" width="12" height="12" rx="2"/><text class="faint" x="{:.0}" y="58">ours</text>"#,
        LEFT + 18.0,
        LEFT + 72.0,
        LEFT + 90.0
    )
}

/// Renders a bar up to the median, whiskers from the lowest to the highest value, and the median as text to the right
/// of both.
fn bar(class: &str, spread: &Spread, y: f64, x: &impl Fn(f64) -> f64) -> String {
    let (start, end) = (x(0.0), x(spread.median));
    let (low, high) = (x(spread.lowest), x(spread.highest));
    let middle = y + BAR / 2.0;
    let mut drawn = format!(
        r#"<rect class="{class}" x="{start:.1}" y="{y:.1}" width="{:.1}" height="{BAR:.0}" rx="2"/>"#,
        (end - start).max(0.5)
    );
    let _ = write!(
        drawn,
        r#"<path class="whisker" d="M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v7M{high:.1} {:.1}v7"/>"#,
        middle - 3.5,
        middle - 3.5
    );
    let _ = write!(
        drawn,
        r#"<text class="faint" x="{:.1}" y="{:.1}">{}</text>"#,
        high.max(end) + 7.0,
        y + 12.0,
        gigabits(spread.median)
    );
    drawn
}

/// Describes the plot in words, for readers who cannot see it.
fn described(title: &str, cells: &[Bars]) -> String {
    let cell = |cell: &Bars| {
        let [theirs, ours] = [cell.theirs, cell.ours].map(|spread| gigabits(spread.median));
        format!("{}: iperf3 {theirs}, ours {ours} Gbit/s", cell.label)
    };
    format!("{title}. {}", cells.iter().map(cell).collect::<Vec<_>>().join("; "))
}

/// The distance between two ticks of the axis: 1, 2 or 5 times a power of ten, so that there are five to nine ticks.
fn tick(highest: f64) -> f64 {
    let power = 10_f64.powf(highest.max(1.0).log10().floor());
    [0.1, 0.2, 0.5, 1.0].map(|part| part * power).into_iter().find(|step| highest / step <= 8.0).unwrap_or(2.0 * power)
}

fn plain(value: f64) -> String {
    // Rounding removes the small error of a binary fraction.
    ((value * 1e6).round() / 1e6).to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{ratio, spread};

    fn bars(label: &str, theirs: &[f64], ours: &[f64]) -> Bars {
        let pairs = theirs.iter().copied().zip(ours.iter().copied()).collect::<Vec<_>>();
        Bars {
            label: label.to_owned(),
            theirs: spread(theirs).unwrap(),
            ours: spread(ours).unwrap(),
            ratio: ratio(&pairs).unwrap(),
        }
    }

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let svg = plot("t", &[bars("a", &[25e9, 50e9, 60e9], &[100e9, 100e9, 100e9])]).unwrap();
        let width = |class: &str| {
            let bar = svg.split(&format!(r#"class="{class}" x="{LEFT:.1}""#)).nth(1).unwrap();
            bar.split(r#"width=""#).nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert!((width("theirs") * 2.0 - width("ours")).abs() < 0.2, "{} {}", width("theirs"), width("ours"));
        assert!((width("ours") - (RIGHT - LEFT)).abs() < 0.2);
    }

    #[test]
    fn wins_and_losses_look_different() {
        let svg = plot("t", &[bars("a", &[1e9; 2], &[2e9; 2]), bars("b", &[2e9; 2], &[1e9; 2])]).unwrap();
        assert!(svg.contains(r#"class="won""#) && svg.contains(">2.00×<"));
        assert!(svg.contains(r#"class="lost""#) && svg.contains(">0.500×<"));
    }

    #[test]
    fn text_can_not_become_markup() {
        let svg = plot("a < b & c", &[bars("\"x\" > y", &[1e9], &[1e9])]).unwrap();
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&quot;x&quot; &gt; y") && !svg.contains("a < b"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        for highest in [0.9, 1.0, 3.0e6, 7.9e9, 8.1e9, 56e9, 101e9, 321e9, 999e9] {
            let step = tick(highest);
            let first = format!("{step:e}");
            assert!(["1", "2", "5"].iter().any(|digit| first.starts_with(digit)), "{step}");
            assert!((0.9..=8.0).contains(&(highest / step)), "{highest} by {step}");
        }
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert_eq!(plot("t", &[]), None);
    }
}
