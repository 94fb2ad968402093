//! The report on the internet line as a file: a self-contained HTML page, or a table of the runs in CSV.

mod tables;

use std::sync::LazyLock;

use askama::Template;
use aws_lc_rs::digest;
use data_encoding::BASE64;
use paramedic_link::test_spec::Direction;
use paramedic_report::line_report::{Finding, LineReport};
use paramedic_report::lines::Tone;
use paramedic_report::{plot, quantity};

use tables::ReportTable;

/// The style sheet that the report's HTML page contains.
const STYLE: &str = include_str!("../../templates/report.css");

/// The Content-Security-Policy in the report's HTML page. It allows the page's own styles and nothing else, even if the
/// page is opened from a file.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()).as_ref());
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'")
});

/// The format of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    /// One page with the whole report, to read and to print.
    #[default]
    Html,
    /// A table with one row for each run.
    Csv,
}

impl ReportFormat {
    const ALL: [(Self, &'static str); 2] = [(Self::Html, "html"), (Self::Csv, "csv")];

    /// The name of this report format in a request.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }

    /// Returns the report format with the name `word`; `None` if there is none.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == word).map(|(format, _)| *format)
    }

    /// The media type of a report in this format.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }
}

/// The template of the report's HTML page.
#[derive(Template)]
#[template(path = "report.html")]
struct ReportPage<'a> {
    report: &'a LineReport,
    policy: &'static str,
    style: &'static str,
    summary: Vec<(&'static str, String)>,
    figures: Vec<ReportFigures>,
    sections: Vec<ReportSection>,
}

/// The plots of one direction, download or upload, each as SVG.
struct ReportFigures {
    name: &'static str,
    over_time: Option<String>,
    by_hour: Option<String>,
}

/// A section of the report's page, with its tables.
struct ReportSection {
    title: &'static str,
    note: String,
    tables: Vec<ReportTable>,
}

impl ReportPage<'_> {
    /// Returns the CSS class of a finding, and the word that the page shows for it.
    fn mark(&self, finding: &Finding) -> (&'static str, &'static str) {
        match finding.tone {
            Tone::Good => ("good", "Good"),
            Tone::Fair => ("fair", "Note"),
            Tone::Bad => ("bad", "Problem"),
            Tone::Plain | Tone::Strong | Tone::Dim => ("plain", "Fact"),
        }
    }
}

/// Returns the report as text in `format`.
pub(crate) fn report_text(report: &LineReport, format: ReportFormat) -> Result<String, askama::Error> {
    if format == ReportFormat::Csv {
        return Ok(report.to_csv());
    }
    let figures = report.directions.iter().map(|direction| ReportFigures {
        name: direction_name(direction.direction),
        over_time: plot::rates_over_time(report, direction),
        by_hour: plot::rates_by_hour(direction),
    });
    let page = ReportPage {
        report,
        policy: &POLICY,
        style: STYLE,
        summary: summary(report),
        figures: figures.filter(|figure| figure.over_time.is_some()).collect(),
        sections: sections(report),
    };
    page.render()
}

/// The Content-Security-Policy header of an HTTP answer with the report's page: [`POLICY`], and a rule that no frame
/// may contain the page.
pub(crate) fn report_policy() -> String {
    format!("{}; frame-ancestors 'none'", *POLICY)
}

/// Returns the facts at the head of the report's page, each as a name and a value.
fn summary(report: &LineReport) -> Vec<(&'static str, String)> {
    let zone = report.zone.iana_name().unwrap_or("the device's zone");
    let contract = |direction| {
        let promise = report.plan.and_then(|plan| plan.of(direction))?;
        let others = [("normally available", promise.normal_bps), ("minimum", promise.minimum_bps)];
        let others = others.into_iter().filter_map(|(name, bps)| Some(format!(", {name} {}", quantity::rate(bps?))));
        let promised = quantity::rate(promise.promised_bps);
        Some(format!("{} {promised}{}", direction_name(direction), others.collect::<String>()))
    };
    let contract = Direction::BOTH.into_iter().filter_map(contract).collect::<Vec<_>>().join("; ");
    let method = &report.method;
    vec![
        ("Period", format!("{} to {} ({zone})", report.local_time(report.since), report.local_time(report.until))),
        ("Contract", if contract.is_empty() { "not given".to_owned() } else { contract }),
        ("Measured", format!("{} runs on {} days, {} monitors", method.runs, method.days, report.monitors.len())),
        ("Connection of the device", tables::connection(method)),
        (
            "Made",
            format!("{} by packetparamedic {}", report.local_time(report.made_at), paramedic_host::version::VERSION),
        ),
    ]
}

fn sections(report: &LineReport) -> Vec<ReportSection> {
    let section = |title, note: &str, tables| ReportSection { title, note: note.to_owned(), tables };
    vec![
        section(
            "Rates and the contract",
            "Only runs that the network limited, or whose limit is not known, count. Headers included means the estimated \
             rate on an Ethernet link, in the provider's favour: a contract usually names that rate, a test counts payload.",
            vec![tables::contract(report), tables::evening(report), tables::hours(report)],
        ),
        section(
            "Outages",
            "An outage begins with the first of three lost probes in a row. For a reflector a TCP connection must fail too.",
            vec![tables::outage_sums(report), tables::outages(report)],
        ),
        section("Latency under load", "Medians over the runs, of the round trip.", vec![tables::latencies(report)]),
        section(
            "Monitors",
            "Small probes, all the time. Round trips are medians over the hours; probes during a test are not in them.",
            vec![tables::monitors(report)],
        ),
        section(
            "How it was measured",
            "",
            vec![
                tables::facts(report),
                tables::other_ends(report),
                tables::causes(report),
                tables::left_out(report),
                tables::codes(report),
            ],
        ),
        section("All runs", &tables::runs_note(report), vec![tables::runs(report)]),
    ]
}

pub(super) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "Download",
        Direction::Upload => "Upload",
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use paramedic_report::document::{LimitCause, example};
    use paramedic_report::line_report::{Contract, ContractRate, ReportInput, ReportRun};

    use super::*;

    /// Creates a report of 40 runs. `name` is the name of the other end of each run.
    fn report(name: &str) -> LineReport {
        let mut runs = Vec::new();
        for number in 0..40 {
            let mut run = ReportRun::of(&example::full());
            run.started_at += jiff::SignedDuration::from_hours(7 * number);
            run.suspect = Some(vec![]);
            run.other_end = Some(name.to_owned());
            for rate in [&mut run.download, &mut run.upload].into_iter().flatten() {
                (rate.is_datagrams, rate.cause) = (false, Some(LimitCause::Network));
            }
            runs.push(run);
        }
        let rate = ContractRate { promised_bps: 1_000_000_000, normal_bps: None, minimum_bps: Some(100_000_000) };
        LineReport::of(ReportInput {
            since: "2026-01-30T00:00:00Z".parse().unwrap(),
            until: "2026-03-01T00:00:00Z".parse().unwrap(),
            made_at: "2026-03-01T00:00:00Z".parse().unwrap(),
            zone: TimeZone::UTC,
            plan: Some(Contract { download: Some(rate), upload: Some(rate) }),
            runs,
            unreadable: 0,
            hours: vec![],
            outages: vec![],
            is_redacted: false,
        })
    }

    #[test]
    fn the_page_has_everything_and_needs_nothing_else() {
        let html = report_text(&report("attic"), ReportFormat::Html).unwrap();
        for part in [
            "2026-01-30 00:00 to 2026-03-01 00:00 (UTC)",
            "Download 1.00 Gbit/s, minimum 100 Mbit/s",
            "40 runs on",
            "<svg class=\"figure download\"",
            "What this report does not prove",
            "How it was measured",
            "Evening against night",
            "the network",
        ] {
            assert!(html.contains(part), "{part}");
        }
        for foreign in ["<script", "http://", "src=", "<link", "style=\"", "url("] {
            let found = html.match_indices(foreign).map(|(at, _)| &html[at..html.len().min(at + 60)]);
            let found = found.filter(|text| !text.starts_with("http://www.w3.org/2000/svg")).collect::<Vec<_>>();
            assert!(found.is_empty(), "{found:?}");
        }
        // Browsers compute the hash of the text between the tags.
        assert!(html.contains(&format!("<style>{STYLE}</style>")));
        assert!(html.contains(&POLICY.replace('\'', "&#39;")) && report_policy().contains("frame-ancestors 'none'"));
    }

    #[test]
    fn hostile_names_are_harmless_in_every_format() {
        for name in [
            "</title><script>alert(1)</script>",
            "\"><img src=x onerror=alert(1)>",
            "\u{202e}evil",
            &"x".repeat(10_000),
        ] {
            let html = report_text(&report(name), ReportFormat::Html).unwrap();
            assert!(!html.contains("<script") && !html.contains("<img") && !html.contains('\u{202e}'), "{name}");
            assert!(!html.contains(&"x".repeat(100)), "the name is shortened");
        }
        let csv = report_text(&report("=cmd|' /C calc'!A0,\"x"), ReportFormat::Csv).unwrap();
        assert!(csv.contains("\"'=cmd|' /C calc'!A0,\"\"x\""), "{csv}");
    }

    #[test]
    fn an_empty_period_makes_an_honest_page() {
        let empty = LineReport::of(ReportInput {
            since: "2026-01-30T00:00:00Z".parse().unwrap(),
            until: "2026-03-01T00:00:00Z".parse().unwrap(),
            made_at: "2026-03-01T00:00:00Z".parse().unwrap(),
            zone: TimeZone::UTC,
            plan: None,
            runs: vec![],
            unreadable: 0,
            hours: vec![],
            outages: vec![],
            is_redacted: true,
        });
        let html = report_text(&empty, ReportFormat::Html).unwrap();
        assert!(html.contains("0 runs count") && html.contains("not given") && !html.contains("<svg"), "{html}");
    }
}
