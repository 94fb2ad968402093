//! The first page: the state of the line, the last result, the last day, and the button that starts a test.

mod day;
mod last;
mod live;

use askama::Template;
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use paramedic_appliance::app::{LineOverview, ServiceStatus};
use paramedic_appliance::line_verdict::{LineVerdict, SentencePart};
use paramedic_host::version;
use paramedic_report::lines::Tone;
use paramedic_report::quantity;

use super::super::ApiState;
use super::super::connections::RequestSource;
use super::super::extract::{ApiPath, FormBody};
use super::super::guard::NothingChanged;
use super::super::problem::Problem;
use super::super::{schedules, test_runs};
use super::layout::{Layout, Section, done, page, see_other};
use super::notice::Notice;
use super::outside_text::{sentence, shown};
use super::page_time::PageTime;
use super::visitor::Visitor;
use day::DayView;
use last::LastView;
use live::LiveView;

/// The path of the first page.
pub(super) const PATH: &str = "/";
/// How often a browser without JavaScript loads the page again while a test runs, in seconds.
const REFRESH_S: u32 = 3;

/// The template of the first page.
#[derive(Template)]
#[template(path = "now.html")]
struct NowPage {
    layout: Layout,
    at: PageTime,
    verdict: VerdictView,
    /// The running tests.
    live: Vec<LiveView>,
    /// The names of the paired reflectors, against which a test can measure.
    targets: Vec<String>,
    may_run: bool,
    is_paired: bool,
    last: Option<LastView>,
    failure: Option<FailureView>,
    day: DayView,
    /// The time of the next run of a schedule, and the name of the schedule; `None` if no run is planned.
    next: Option<(PageTime, String)>,
    month: PageTime,
    month_data: String,
    monitor_data: String,
    /// Why the service is faulted; empty if the service is not faulted.
    problems: Vec<String>,
}

/// The sentence about the state of the line, with its style class.
struct VerdictView {
    class: &'static str,
    parts: Vec<PartView>,
}

/// A part of the sentence about the state of the line.
enum PartView {
    Text(String),
    Time(PageTime),
}

/// The latest test, which failed, as the first page shows it.
struct FailureView {
    at: PageTime,
    what: String,
    because: String,
}

/// Shows the first page.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let overview = state.service.line_overview().await?;
    let reflectors = state.service.appliance().reflectors().await?;
    let status = state.service.status(version::VERSION);
    let live = state.live.all().iter().map(|run| LiveView::of(run, overview.at)).collect::<Vec<_>>();
    let mut layout = visitor.layout("Now", Section::Now);
    layout.refresh_s = (!live.is_empty()).then_some(REFRESH_S);
    let LineOverview { at, verdict, plan, last, failure, month, month_bytes, .. } = &overview;
    Ok(page(&NowPage {
        layout,
        at: PageTime::clock(*at),
        verdict: VerdictView::of(verdict),
        live,
        targets: reflectors.iter().map(|reflector| reflector.name.to_string()).collect(),
        may_run: visitor.may_run(),
        is_paired: !reflectors.is_empty(),
        last: last.as_ref().map(|document| LastView::of(document, plan.as_ref().map(|stored| &stored.plan))),
        failure: failure.as_ref().and_then(|run| {
            let error = run.error.as_ref()?;
            let (what, because) = (shown(&error.what), shown(&error.because));
            Some(FailureView { at: PageTime::full(run.started_at), what, because })
        }),
        day: DayView::of(&overview),
        next: next(&status),
        month: PageTime::day(*month),
        month_data: quantity::bytes(*month_bytes),
        monitor_data: quantity::bytes(overview.monitors.iter().map(|day| day.overview.bytes_a_month).sum()),
        problems: status.problems.iter().map(|problem| shown(problem)).collect(),
    }))
}

/// Starts a test against the reflector that the form names, or against the default peer if the form names none.
pub(super) async fn measure(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    form: FormBody,
) -> Result<Response, Problem> {
    // After a second click, or for a second viewer, the test that already runs is the wanted one.
    if state.live.all().iter().any(|run| run.schedule.is_none()) {
        return Ok(see_other(PATH));
    }
    let mut request = state.default_test.clone()?;
    if let Some(peer) = form.text("peer") {
        request.peer = Some(peer.to_owned());
    }
    // The page of the run draws the intervals, so the result must contain them.
    request.intervals = true;
    test_runs::start(&state, source, request).await?;
    Ok(done(PATH, Notice::TestStarted))
}

/// Cancels a running test, whether a client or a schedule began it.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<uuid::Uuid>,
) -> Result<Response, Problem> {
    let is_of_schedule = state.live.all().iter().any(|run| run.id == id && run.schedule.is_some());
    let is_cancelled = if is_of_schedule { schedules::cancel_run(&state) } else { test_runs::cancel_test(&state, id) };
    let unchanged = (!is_cancelled).then_some(Extension(NothingChanged));
    let notice = if is_cancelled { Notice::TestCancelled } else { Notice::NothingToCancel };
    Ok((unchanged, done(PATH, notice)).into_response())
}

fn next(status: &ServiceStatus) -> Option<(PageTime, String)> {
    let planned = status.planned.first()?;
    Some((PageTime::full(planned.start), shown(&planned.schedule)))
}

impl VerdictView {
    fn of(verdict: &LineVerdict) -> Self {
        let part = |part: &SentencePart| match part {
            // The spaces around a time are part of the text.
            SentencePart::Text(text) => PartView::Text(bounded(text)),
            SentencePart::Time(time) => PartView::Time(PageTime::full(*time)),
        };
        Self { class: tone_class(verdict.tone), parts: verdict.parts.iter().map(part).collect() }
    }
}

/// Removes formatting characters from `text` and bounds its length, because it may contain names of monitors.
fn bounded(text: &str) -> String {
    let (head, tail) = (text.starts_with(' '), text.ends_with(' '));
    format!("{}{}{}", if head { " " } else { "" }, sentence(text), if tail { " " } else { "" })
}

/// The class in the style sheet for a tone.
pub(super) fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Fair => "fair",
        Tone::Bad => "bad",
        Tone::Plain | Tone::Strong | Tone::Dim => "plain",
    }
}
