//! A heat map of the week: the mean download rate of each hour of each weekday, as SVG with a table beside it.

use std::fmt::Write as _;

use askama::Template;
use askama::filters::HtmlSafe;
use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use paramedic_report::quantity;

/// The days of the week, in the order of ISO 8601.
const DAYS: [(Weekday, &str); 7] = [
    (Weekday::Monday, "Mon"),
    (Weekday::Tuesday, "Tue"),
    (Weekday::Wednesday, "Wed"),
    (Weekday::Thursday, "Thu"),
    (Weekday::Friday, "Fri"),
    (Weekday::Saturday, "Sat"),
    (Weekday::Sunday, "Sun"),
];
/// The number of the strongest colour: the style sheet has the classes `h1` to `h7`.
const STRONGEST: f64 = 7.0;
const LEFT: usize = 34;
const CELL: usize = 28;
const TOP: usize = 16;

/// The download rates of the runs that began within the same short time span, added up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimedRates {
    /// The start of the time span, which is at most a quarter of an hour long.
    pub(super) at: Timestamp,
    /// The number of rates in the sum.
    pub(super) count: u64,
    /// The sum of the rates, in bits per second.
    pub(super) sum_bps: f64,
}

/// A row of the table: a weekday, and for each hour the mean rate and the number of rates.
type HeatRow = (&'static str, Vec<Option<(String, u64)>>);

/// The template of the heat map of the week.
#[derive(Template)]
#[template(path = "heat.html")]
pub(super) struct HeatMap {
    zone: String,
    /// By weekday and hour: the number of rates, and their sum in bits per second.
    cells: [[(u64, f64); 24]; 7],
}

impl HtmlSafe for HeatMap {}

impl HeatMap {
    /// Builds the heat map of `rates` by the clock of `zone`; `None` if there are no rates.
    pub(super) fn of(rates: &[TimedRates], zone: &TimeZone) -> Option<Self> {
        let mut cells = [[(0, 0.0); 24]; 7];
        for rate in rates {
            let local = zone.to_datetime(rate.at);
            let day = usize::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
            let hour = usize::try_from(local.hour()).unwrap_or(0);
            if let Some((count, sum)) = cells.get_mut(day).and_then(|hours: &mut [(u64, f64); 24]| hours.get_mut(hour))
            {
                *count += rate.count;
                *sum += rate.sum_bps;
            }
        }
        let is_empty = cells.iter().flatten().all(|(count, _)| *count == 0);
        let zone = zone.iana_name().unwrap_or("the zone of this service").to_owned();
        (!is_empty).then_some(Self { zone, cells })
    }

    fn means(&self) -> impl Iterator<Item = (usize, usize, u64, f64)> + '_ {
        self.cells.iter().enumerate().flat_map(|(day, hours)| {
            let measured = hours.iter().enumerate().filter(|(_, (count, _))| *count > 0);
            measured.map(move |(hour, (count, sum))| (day, hour, *count, sum / *count as f64))
        })
    }

    /// Names the slowest and the fastest hour of the week.
    fn summary(&self) -> String {
        let text = |cell: Option<(usize, usize, u64, f64)>| {
            let (day, hour, count, mean) = cell?;
            let (_, name) = DAYS.get(day)?;
            Some(format!("{name} {hour} h with {} ({count} runs)", quantity::rate(mean as u64)))
        };
        let by_mean = |one: &(usize, usize, u64, f64), other: &(usize, usize, u64, f64)| one.3.total_cmp(&other.3);
        let slowest = text(self.means().min_by(by_mean)).unwrap_or_default();
        let fastest = text(self.means().max_by(by_mean)).unwrap_or_default();
        format!("Mean download of each hour of the week: slowest {slowest}, fastest {fastest}.")
    }

    /// The rows of the table: a weekday, and the mean of each hour with its number of runs.
    fn rows(&self) -> Vec<HeatRow> {
        let cell =
            |(count, sum): &(u64, f64)| (*count > 0).then(|| (quantity::rate((sum / *count as f64) as u64), *count));
        let days = DAYS.iter().zip(&self.cells);
        days.map(|((_, name), hours)| (*name, hours.iter().map(cell).collect())).collect()
    }

    fn svg(&self) -> String {
        let highest = self.means().map(|(.., mean)| mean).fold(0.0, f64::max);
        let (width, height) = (LEFT + 24 * CELL, TOP + 7 * CELL);
        let mut svg =
            format!(r#"<svg class="heat" viewBox="0 0 {width} {height}" role="img" aria-labelledby="week-summary">"#);
        // Writing to a string never fails.
        let mut put = |line: String| write!(svg, "{line}").ok();
        for hour in (0..24).step_by(3) {
            let x = LEFT + hour * CELL + CELL / 2;
            put(format!(r#"<text class="middle" x="{x}" y="11">{hour}</text>"#));
        }
        for (day, (_, name)) in DAYS.iter().enumerate() {
            let y = TOP + day * CELL;
            put(format!(r#"<text class="end" x="{}" y="{}">{name}</text>"#, LEFT - 6, y + CELL / 2 + 4));
            for (hour, (count, sum)) in self.cells.get(day).into_iter().flatten().enumerate() {
                let x = LEFT + hour * CELL;
                let mean = sum / (*count).max(1) as f64;
                let (class, title) = match count {
                    0 => ("none".to_owned(), format!("{name} {hour} h: no run")),
                    count => {
                        let step = (mean / highest.max(1.0) * STRONGEST).ceil().clamp(1.0, STRONGEST);
                        let rate = quantity::rate(mean as u64);
                        (format!("h{step}"), format!("{name} {hour} h: {rate}, {count} runs"))
                    }
                };
                let side = CELL - 2;
                put(format!(
                    r#"<rect class="{class}" x="{x}" y="{y}" width="{side}" height="{side}" rx="3"><title>{title}</title></rect>"#
                ));
            }
        }
        svg + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_that_of_the_zone() {
        // A Sunday in UTC, a Monday in Berlin.
        let rate = |at: &str, count, sum_bps| TimedRates { at: at.parse().unwrap(), count, sum_bps };
        let rates = [rate("2026-06-07T22:30:00Z", 2, 40e6), rate("2026-06-08T18:15:00Z", 1, 5e6)];
        let map = HeatMap::of(&rates, &TimeZone::get("Europe/Berlin").unwrap()).unwrap();
        assert_eq!((map.cells[0][0], map.cells[0][20]), ((2, 40e6), (1, 5e6)));
        let html = map.to_string();
        for part in
            ["Mon 0 h: 20.0 Mbit/s, 2 runs", "class=\"h7\"", "class=\"h2\"", "slowest Mon 20 h", "Europe/Berlin"]
        {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(!html.contains("style="));
        assert_eq!(html.matches("<rect").count(), 7 * 24);
        assert!(HeatMap::of(&[], &TimeZone::UTC).is_none());
    }
}
