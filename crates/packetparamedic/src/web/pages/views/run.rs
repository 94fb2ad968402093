//! The page of a run: everything that the result document of the run contains.

mod rows;
mod tcp;

use askama::Template;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use paramedic_appliance::ApplianceError;
use paramedic_appliance::store::StorageError;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::conclusion::{Observations, conclude};
use paramedic_report::document::{LimitedBy, ResultDocument, ThroughputResult, ValidityVerdict};
use paramedic_report::lines::Tone;
use paramedic_report::{plot, quantity};

use super::super::super::ApiState;
use super::super::super::access::API;
use super::super::super::extract::ApiPath;
use super::super::super::problem::Problem;
use super::super::layout::{Layout, Section, done, page, see_other};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::chart::Chart;
use rows::{FactTable, NamedFact};

/// The page of a run shows its result document, without the intervals, only up to this length in bytes. The page always
/// links to the whole document.
const LONGEST_DOCUMENT: usize = 128 * 1024;

/// The maximum length of a sentence in the page, in characters.
const LONGEST_TEXT: usize = 1_000;

/// The template of the page of a run.
#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    layout: Layout,
    id: String,
    began: PageTime,
    finished: PageTime,
    tone: &'static str,
    sentence: String,
    facts: Vec<NamedFact>,
    directions: Vec<RunDirection>,
    latency: FactTable,
    /// The plot of the rates and the latency over time; `None` if the result has no intervals to plot.
    plot: Option<String>,
    charts: Vec<Chart>,
    thresholds: FactTable,
    hosts: FactTable,
    warnings: Vec<(String, String)>,
    /// Why the run is suspect; empty if the run is valid.
    suspect: Vec<(String, String)>,
    validity: &'static str,
    error: Option<[String; 4]>,
    document: Option<String>,
}

/// A direction of a phase as the page of a run shows it.
struct RunDirection {
    id: String,
    title: &'static str,
    class: &'static str,
    rate: String,
    facts: Vec<NamedFact>,
    cpu: FactTable,
    limit: Option<RunLimit>,
}

/// What limited a direction, as the page of a run shows it.
struct RunLimit {
    cause: &'static str,
    /// The observations that show the limit: name, value and text of each.
    evidence: Vec<[String; 3]>,
    because: Vec<String>,
}

impl RunPage {
    fn api_path(&self) -> String {
        format!("{API}/results/{}", self.id)
    }
}

/// Shows the page of a run.
pub(super) async fn show(
    State(state): State<ApiState>,
    visitor: Visitor,
    ApiPath(wanted): ApiPath<String>,
) -> Result<Response, Problem> {
    let saved = state.service.appliance().result(&wanted).await?;
    let id = saved.id.to_string();
    if wanted != id {
        // The whole id stays unique even if a further run has the same beginning or end of its id.
        return Ok(see_other(&format!("/runs/{id}")));
    }
    let document = saved.document().map_err(ApplianceError::from)?;
    let layout = visitor.layout("A run", Section::History);
    let unwritable = |source| ApplianceError::from(StorageError::Document { source });
    Ok(page(&run_page(layout, &document).map_err(unwritable)?))
}

/// Deletes the result of the run that the path names.
pub(super) async fn delete(
    State(state): State<ApiState>,
    ApiPath(wanted): ApiPath<String>,
) -> Result<Response, Problem> {
    state.service.appliance().delete_results(&[wanted]).await?;
    Ok(done("/history", Notice::ResultDeleted).into_response())
}

fn run_page(layout: Layout, document: &ResultDocument) -> Result<RunPage, serde_json::Error> {
    let (tone, sentence) = conclude(&Observations::of(document));
    let texts = |warnings: &[paramedic_report::document::Warning]| {
        warnings.iter().map(|warning| (shown(&warning.code), long_text(&warning.text))).collect::<Vec<_>>()
    };
    let validity = document.validity.as_ref();
    let error = document.error.as_ref();
    Ok(RunPage {
        layout,
        id: document.id.to_string(),
        began: PageTime::full(document.started_at),
        finished: PageTime::full(document.finished_at),
        tone: tone_class(tone),
        sentence: long_text(&sentence),
        facts: rows::facts(document),
        directions: document
            .all_measured()
            .map(|(load, direction, result)| run_direction(load, direction, result))
            .collect(),
        latency: rows::latency(document),
        plot: plot::svg_part(document).ok(),
        charts: tcp::charts(document),
        thresholds: rows::thresholds(document),
        hosts: rows::hosts(document),
        warnings: texts(&document.warnings),
        suspect: validity.map(|validity| texts(&validity.reasons)).unwrap_or_default(),
        validity: match validity.map(|validity| validity.verdict) {
            Some(ValidityVerdict::Valid) => "valid",
            Some(ValidityVerdict::Suspect) => "suspect",
            None => "not judged: an earlier version measured it",
        },
        error: error.map(|error| [&error.what, &error.because, &error.try_, &error.code].map(|text| long_text(text))),
        document: short_document(document)?,
    })
}

/// The document as text, without the measurements of its intervals; `None` if the text is longer than
/// [`LONGEST_DOCUMENT`].
fn short_document(document: &ResultDocument) -> Result<Option<String>, serde_json::Error> {
    let mut short = document.clone();
    short.remove_series();
    let text = short.to_text()?;
    Ok((text.len() <= LONGEST_DOCUMENT).then(|| visible(&text)))
}

/// Returns `json` with its invisible and formatting characters as escapes, so that they do not change the text around
/// them.
fn visible(json: &str) -> String {
    let is_hidden = |c: char| !c.is_ascii() && PeerText::harmless(c.encode_utf8(&mut [0; 4]), 1).is_empty();
    let mut visible = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hidden(c) {
            visible.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            visible.push(c);
        }
    }
    visible
}

/// Formats a sentence that contains text from outside: removes control characters, and bounds its length.
fn long_text(text: &str) -> String {
    PeerText::harmless(text, LONGEST_TEXT)
}

fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Fair => "fair",
        Tone::Bad => "bad",
        Tone::Plain | Tone::Strong | Tone::Dim => "",
    }
}

/// The name of a direction of a phase, and its style class.
fn direction_name(load: Load, direction: Direction) -> (&'static str, &'static str) {
    match (load, direction) {
        (Load::Bidir, Direction::Download) => ("Download, both ways at once", "download"),
        (Load::Bidir, Direction::Upload) => ("Upload, both ways at once", "upload"),
        (_, Direction::Download) => ("Download", "download"),
        (_, Direction::Upload) => ("Upload", "upload"),
    }
}

fn run_direction(load: Load, direction: Direction, result: &ThroughputResult) -> RunDirection {
    let (title, class) = direction_name(load, direction);
    RunDirection {
        id: format!("{load}-{class}"),
        title,
        class,
        rate: quantity::rate(result.goodput_bps),
        facts: rows::direction(result),
        cpu: rows::processors(result, direction),
        limit: result.limited_by.as_ref().map(limit),
    }
}

fn limit(limited: &LimitedBy) -> RunLimit {
    let evidence = limited
        .evidence
        .iter()
        .map(|evidence| [shown(&evidence.name), rows::quantity(evidence.value), long_text(&evidence.text)]);
    RunLimit {
        cause: limited.cause.as_words(),
        evidence: evidence.collect(),
        because: limited.because.iter().map(|text| long_text(text)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ErrorBody, Warning, example};

    use super::*;

    fn html(document: &ResultDocument) -> String {
        run_page(Layout::new("A run", Section::History), document).unwrap().render().unwrap()
    }

    #[test]
    fn a_run_shows_everything_of_its_document() {
        let html = html(&example::full());
        for part in [
            "941 Mbit/s",
            "94.2 Mbit/s",
            "both ways at once",
            "the network",
            "path_share",
            "the streams waited for the path for 97 % of the time",
            "power_saving",
            "suspect",
            "min_download_bps",
            "plot-of-run",
            "attic",
            "203.0.113.7:4000",
            "198.51.100.0/24",
            "cubic",
            "/api/v1/results/019c1350-2001-7000-8000-000000000001",
            "packetparamedic.result/1",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert!(!html.contains("style=\"") && !html.contains("<style"));
    }

    #[test]
    fn a_run_with_little_shows_no_empty_parts() {
        let html = html(&example::bare());
        assert!(html.contains("50.0 Mbit/s") && !html.contains("plot-of-run"));
        assert!(html.contains("without the intervals"));
    }

    #[test]
    fn hostile_documents_are_harmless() {
        let mut document = example::full();
        let evil = "<script>alert(1)</script>\u{202e}";
        let long = "x".repeat(10_000);
        document.peer = Some(evil.to_owned());
        document.provider = evil.to_owned();
        document.appliance.version = long.clone();
        document.uplink.interface = Some(evil.to_owned());
        document.uplink.public_prefix = Some("\"onload=alert(1)".to_owned());
        document.reflector.as_mut().unwrap().address = evil.to_owned();
        document.warnings = vec![Warning { code: evil.to_owned(), text: long.clone() }];
        document.program.as_mut().unwrap().version = evil.to_owned();
        document.thresholds[0].name = evil.to_owned();
        let limited = document.download.as_mut().unwrap().limited_by.as_mut().unwrap();
        limited.evidence[0].text = evil.to_owned();
        document.error = Some(ErrorBody {
            code: evil.to_owned(),
            what: evil.to_owned(),
            because: long,
            try_: evil.to_owned(),
            retry_after_ms: None,
        });
        let html = html(&document);
        let before_raw = html.split("id=\"document\"").next().unwrap();
        assert!(!html.contains("<script>alert") && !html.contains('\u{202e}') && html.contains("\\u202e"));
        assert!(!before_raw.contains(&"x".repeat(LONGEST_TEXT + 1)));
    }
}
