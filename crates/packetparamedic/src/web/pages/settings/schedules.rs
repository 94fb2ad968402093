//! The settings of the schedules: list with the monthly data, add after a confirmation, enable, disable, run, remove.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the definition of a schedule")]

use askama::Template;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{ScheduleOverview, ScheduleProposal};
use paramedic_appliance::schedule::budget::DataBudget;
use paramedic_appliance::schedule::{QuietHours, Recurrence, Schedule, Zone};
use paramedic_appliance::store::ScheduleRunOutcome;
use paramedic_report::quantity;

use super::super::super::connections::RequestSource;
use super::super::super::extract::{ApiPath, FormBody, encoded};
use super::super::super::problem::Problem;
use super::super::super::{ApiState, schedules};
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::SettingsFrame;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The path of the settings of the schedules.
pub(in super::super) const PATH: &str = "/settings/schedules";

/// The recurrences that the form offers, each as a stored schedule contains it, and in words.
const CHOICES: [(&str, &str); 5] = [
    ("every 6h", "every 6 hours"),
    ("every 1h", "every hour"),
    ("every 12h", "every 12 hours"),
    ("30 3 * * *", "every night at 3:30"),
    ("0 20 * * *", "every evening at 20:00"),
];

/// The template of the settings of the schedules.
#[derive(Template)]
#[template(path = "settings/schedules.html")]
struct SchedulesPage {
    layout: Layout,
    frame: SettingsFrame,
    schedules: Vec<ScheduleView>,
    /// The names of the reflectors against which a schedule can measure, each with whether the viewer chose the
    /// reflector.
    targets: Vec<(String, bool)>,
    /// The recurrences that the form offers, each as stored, in words, and with whether the viewer chose it.
    choices: Vec<(&'static str, &'static str, bool)>,
    /// The schedule that waits for the viewer's confirmation; `None` if no schedule waits.
    proposal: Option<ProposalView>,
    error: Option<Problem>,
    entered: FormBody,
}

/// A schedule as the page shows it.
struct ScheduleView {
    name: String,
    /// The path to which the forms of the schedule are sent.
    path: String,
    when: String,
    target: String,
    next: Option<PageTime>,
    last: Option<(PageTime, String)>,
    month: String,
    used: String,
    budget: Option<String>,
    is_enabled: bool,
    from_file: bool,
}

/// A schedule that is not saved yet, and how much data it would use.
pub(in super::super) struct ProposalView {
    pub(in super::super) name: String,
    pub(in super::super) month: String,
    pub(in super::super) runs: u64,
    pub(in super::super) run: String,
    /// Whether the estimate of the data assumes a rate of the line, because no rate is known.
    pub(in super::super) is_assumed: bool,
}

impl ScheduleView {
    fn of(overview: &ScheduleOverview) -> Self {
        let schedule = &overview.stored.schedule;
        let last = overview.last_run.as_ref().map(|run| {
            let word = match run.outcome {
                ScheduleRunOutcome::Done => "done".to_owned(),
                ScheduleRunOutcome::Running => "runs".to_owned(),
                outcome => {
                    let reason = run.reason.as_deref().map(|reason| format!(": {}", reason.replace('_', " ")));
                    format!("{}{}", outcome.as_str(), reason.unwrap_or_default())
                }
            };
            (PageTime::full(run.decided_at), shown(&word))
        });
        Self {
            name: shown(&schedule.name),
            path: format!("{PATH}/{}", encoded(&schedule.name)),
            when: shown(&words(schedule.when.as_str())),
            target: shown(schedule.request.peer.as_deref().unwrap_or("the only reflector")),
            next: overview.next_due.map(PageTime::full),
            last,
            month: quantity::bytes(overview.bytes_a_month),
            used: quantity::bytes(overview.used.month_bytes),
            budget: schedule.budget.month_bytes.map(quantity::bytes),
            is_enabled: overview.stored.enabled,
            from_file: overview.stored.from_file,
        }
    }
}

impl ProposalView {
    /// Builds the view of a proposed schedule.
    pub(in super::super) fn of(proposal: &ScheduleProposal) -> Self {
        Self {
            name: shown(&proposal.schedule.name),
            month: quantity::bytes(proposal.bytes_a_month),
            runs: proposal.runs_a_month,
            run: quantity::bytes(proposal.schedule.expected_bytes),
            is_assumed: proposal.is_assumed,
        }
    }
}

/// The outcome of a submitted form, which the page shows beside the schedules.
#[derive(Default)]
struct ScheduleOutcomeView {
    proposal: Option<ProposalView>,
    error: Option<Problem>,
    entered: FormBody,
}

/// Shows the settings of the schedules.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    page(&state, &visitor, StatusCode::OK, ScheduleOutcomeView::default()).await
}

/// Shows how much data the schedule of the form would use. Adds the schedule if the form confirms it.
pub(in super::super) async fn add(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    let outcome = match form.is_ticked("confirmed") {
        true => add_from(&state, &form).await.map(|()| None),
        false => propose_from(&state, &form).await.map(Some),
    };
    let (status, view) = match outcome {
        Ok(None) => return Ok(done(PATH, Notice::ScheduleAdded)),
        Ok(proposal) => (StatusCode::OK, ScheduleOutcomeView { proposal, error: None, entered: form }),
        Err(problem) => {
            (problem.status_code(), ScheduleOutcomeView { proposal: None, error: Some(problem), entered: form })
        }
    };
    page(&state, &visitor, status, view).await
}

/// Estimates how much data the schedule of a form would use.
pub(in super::super) async fn propose_from(state: &ApiState, form: &FormBody) -> Result<ProposalView, Problem> {
    let schedule = definition(state, form)?;
    Ok(ProposalView::of(&state.service.appliance().propose_schedule(schedule).await?))
}

/// Adds the schedule that a form describes. The form has `when` or `other`, and optionally `name`, `peer`,
/// `quiet_hours` and `budget`.
pub(in super::super) async fn add_from(state: &ApiState, form: &FormBody) -> Result<(), Problem> {
    let schedule = definition(state, form)?;
    state.service.appliance().add_schedule(schedule).await?;
    state.service.schedules_changed();
    Ok(())
}

fn definition(state: &ApiState, form: &FormBody) -> Result<Schedule, CommandFailure> {
    let mut request = state.default_test.clone()?;
    if let Some(peer) = form.text("peer") {
        request.peer = Some(peer.to_owned());
    }
    // The page of a run draws the intervals, so the results must contain them.
    request.intervals = true;
    let when = form.text("other").or(form.text("when")).unwrap_or_default();
    let when = Recurrence::parse(when).map_err(|error| ApplianceError::Schedule(error.into()))?;
    let name = form.text("name").map_or_else(|| default_name(when.as_str()), str::to_owned);
    let mut schedule = Schedule::usual(&name, when, Zone::of_host(), request, Timestamp::now());
    let invalid = |field: &str, error: String| {
        let (because, try_) = (format!("{field}: {error}"), "correct that field");
        CommandFailure::new(ExitStatus::Usage, "bad_schedule", "the schedule is not accepted", because, try_)
    };
    if let Some(hours) = form.text("quiet_hours") {
        let hours = hours.parse::<QuietHours>().map_err(|error| invalid("quiet hours", error.to_string()))?;
        schedule.quiet_hours = Some(hours);
    }
    if let Some(budget) = form.text("budget") {
        let bytes = quantity::parse_bytes(budget).map_err(|error| invalid("data in a month", error.to_string()))?;
        schedule.budget = DataBudget { day_bytes: None, month_bytes: Some(bytes) };
    }
    Ok(schedule)
}

/// Makes the default name of a schedule from its recurrence: letters, digits and dashes.
fn default_name(when: &str) -> String {
    let words = words(when);
    let name = words.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
    name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// Describes the recurrence `when` in words if the form offers it; otherwise returns `when` unchanged.
fn words(when: &str) -> String {
    CHOICES.iter().find(|(choice, _)| *choice == when).map_or(when, |(_, words)| words).to_owned()
}

/// Enables a schedule if the form has the field `enabled`; otherwise disables the schedule.
pub(in super::super) async fn switch(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
    form: FormBody,
) -> Result<Response, Problem> {
    state.service.appliance().enable_schedule(&name, form.is_ticked("enabled")).await?;
    state.service.schedules_changed();
    Ok(done(PATH, Notice::ScheduleChanged))
}

/// Runs a schedule as soon as no other test runs.
pub(in super::super) async fn run(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    schedules::request_run(&state, source, &name).await?;
    Ok(done("/", Notice::ScheduleRequested))
}

/// Removes a schedule.
pub(in super::super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Response, Problem> {
    state.service.appliance().remove_schedule(&name).await?;
    state.service.schedules_changed();
    Ok(done(PATH, Notice::ScheduleRemoved))
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    status: StatusCode,
    outcome: ScheduleOutcomeView,
) -> Result<Response, Problem> {
    let appliance = state.service.appliance();
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let schedules = appliance.schedules().await?.iter().map(ScheduleView::of).collect();
    let ScheduleOutcomeView { proposal, error, entered } = outcome;
    let (when, peer) = (entered.value("when"), entered.value("peer"));
    let target = |name: String| {
        let is_chosen = name == peer;
        (name, is_chosen)
    };
    let reflectors = appliance.reflectors().await?;
    let targets = reflectors.iter().map(|reflector| target(reflector.name.to_string())).collect();
    let choices = CHOICES.iter().map(|(value, words)| (*value, *words, *value == when)).collect();
    Ok(page_with(status, &SchedulesPage { layout, frame, schedules, targets, choices, proposal, error, entered }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_a_recurrence_and_makes_a_name() {
        for (choice, words) in CHOICES {
            assert_eq!(Recurrence::parse(choice).unwrap().as_str(), choice);
            let name = default_name(choice);
            let is_valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            assert!(is_valid, "{words}: {name}");
        }
        assert_eq!(default_name("30 3 * * *"), "every-night-at-3-30");
        assert_eq!(default_name("5 4 * * 1-5"), "5-4-1-5");
    }
}
