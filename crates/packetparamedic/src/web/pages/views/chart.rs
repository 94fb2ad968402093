//! A chart in a page: its table, its summary in words, and what the script needs to draw it. Without JavaScript the
//! table and the summary remain.

use askama::Template;
use askama::filters::HtmlSafe;
use jiff::Timestamp;
use paramedic_report::quantity;

use super::super::page_time::PageTime;

/// The unit of the values of a chart. The attribute `data-unit` passes this unit to the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChartUnit {
    /// Bits per second.
    Rate,
    /// Microseconds.
    Micros,
    /// Shares from 0 to 1.
    Share,
    /// Plain numbers.
    Count,
}

impl ChartUnit {
    fn word(self) -> &'static str {
        match self {
            Self::Rate => "bps",
            Self::Micros => "us",
            Self::Share => "share",
            Self::Count => "count",
        }
    }

    /// Formats a value for a human reader.
    pub(super) fn text(self, value: f64) -> String {
        match self {
            Self::Rate => quantity::rate(value as u64),
            Self::Micros => quantity::micros(value as u64),
            Self::Share => quantity::share(value),
            Self::Count => format!("{}", value.round()),
        }
    }
}

/// How the script draws a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnForm {
    /// The script draws a line.
    Line,
    /// The script draws a dashed line.
    Dashes,
    /// The script draws bars.
    Bars,
    /// The script draws nothing: the column is an edge of a band.
    Edge,
    /// The script draws nothing: the column is only in the table.
    TableOnly,
}

/// A column of the table of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChartColumn {
    /// The name of the column.
    pub(super) name: &'static str,
    /// The colour of the column: the name of a variable of the style sheet.
    pub(super) colour: &'static str,
    /// How the script draws the column.
    pub(super) form: ColumnForm,
    /// The band that the script draws from this column to another: the index of the other column, and the opacity of
    /// the band in percent. `None` for no band.
    pub(super) band: Option<(usize, u8)>,
    /// The unit of the column; `None` for the unit of the chart.
    pub(super) unit: Option<ChartUnit>,
}

impl ChartColumn {
    pub(super) fn new(name: &'static str, colour: &'static str, form: ColumnForm) -> Self {
        Self { name, colour, form, band: None, unit: None }
    }

    /// Adds a band from this column to the column with the index `other`. The opacity of the band is `percent`.
    pub(super) fn with_band(self, other: usize, percent: u8) -> Self {
        Self { band: Some((other, percent)), ..self }
    }

    /// Creates a column of numbers that is only in the table.
    pub(super) fn count(name: &'static str) -> Self {
        Self { unit: Some(ChartUnit::Count), ..Self::new(name, "", ColumnForm::TableOnly) }
    }

    fn form_word(&self) -> &'static str {
        match self.form {
            ColumnForm::Line => "line",
            ColumnForm::Dashes => "dashes",
            ColumnForm::Bars => "bars",
            ColumnForm::Edge => "edge",
            ColumnForm::TableOnly => "none",
        }
    }

    fn band_text(&self) -> Option<String> {
        self.band.map(|(other, percent)| format!("{other} {percent}"))
    }
}

/// The position of a row on the horizontal axis of a chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ChartPosition {
    /// A point in time.
    At(Timestamp),
    /// The time since the start of the chart, in seconds.
    Second(f64),
}

impl ChartPosition {
    fn value(&self) -> f64 {
        match self {
            Self::At(at) => at.as_second() as f64,
            Self::Second(second) => *second,
        }
    }

    fn time(&self) -> Option<PageTime> {
        match self {
            Self::At(at) => Some(PageTime::full(*at)),
            Self::Second(_) => None,
        }
    }
}

/// A chart in a page, with its template.
#[derive(Template)]
#[template(path = "chart.html")]
pub(super) struct Chart {
    /// The id of the chart in the page.
    pub(super) id: String,
    pub(super) title: String,
    /// A description in words of what the chart shows.
    pub(super) summary: String,
    pub(super) unit: ChartUnit,
    /// The start and the end of the horizontal axis.
    pub(super) range: [ChartPosition; 2],
    /// The head of the first column of the table.
    pub(super) row_head: &'static str,
    pub(super) columns: Vec<ChartColumn>,
    pub(super) rows: Vec<(ChartPosition, Vec<Option<f64>>)>,
    /// The text and the address of a link with which the viewer downloads the values; `None` for no link.
    pub(super) download: Option<(&'static str, String)>,
}

impl HtmlSafe for Chart {}

impl Chart {
    /// Whether the first column of the table contains points in time.
    fn is_of_times(&self) -> bool {
        matches!(self.range[0], ChartPosition::At(_))
    }

    fn cell(&self, at: &usize, value: &f64) -> String {
        let unit = self.columns.get(*at).and_then(|column| column.unit).unwrap_or(self.unit);
        unit.text(*value)
    }

    fn has_values(&self) -> bool {
        self.rows.iter().any(|(_, cells)| cells.iter().flatten().next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_readable_without_a_script() {
        let at = |second| ChartPosition::At(Timestamp::from_second(second).unwrap());
        let chart = Chart {
            id: "download".to_owned(),
            title: "Download <b>".to_owned(),
            summary: "one run".to_owned(),
            unit: ChartUnit::Rate,
            range: [at(0), at(7_200)],
            row_head: "Time",
            columns: vec![
                ChartColumn::new("Mean", "--download", ColumnForm::Line),
                ChartColumn::new("Highest", "--download", ColumnForm::Edge).with_band(0, 20),
                ChartColumn::count("Runs"),
            ],
            rows: vec![(at(3_600), vec![Some(941e6), None, Some(3.0)])],
            download: Some(("CSV", "/api/v1/x?a=1&b=2".to_owned())),
        };
        let html = chart.to_string();
        for part in [
            "Download &#60;b&#62;",
            "data-unit=\"bps\"",
            "data-from=\"0\"",
            "941 Mbit/s",
            "data-v=\"941000000\"",
            "data-band=\"0 20\"",
            ">3</td>",
            "datetime=\"1970-01-01T01:00:00Z\"",
            "/api/v1/x?a=1&#38;b=2",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(!html.contains("style="));
    }
}
