//! The pages of the first start, in three steps: pair a reflector, enter what the contract promises, schedule tests.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::ApiState;
use super::super::extract::FormBody;
use super::super::problem::Problem;
use super::layout::{Layout, NavigationLink, Section, page_with, see_other};
use super::now;
use super::settings::schedules::ProposalView;
use super::settings::{plan, reflectors, schedules};
use super::visitor::Visitor;

/// The path of the pages of the first start.
pub(super) const PATH: &str = "/start";
/// The recurrences that the last step proposes, each in its stored form and in words. The first one is the usual
/// choice.
const PROPOSED: [(&str, &str); 3] =
    [("every 6h", "Every 6 hours"), ("30 3 * * *", "Every night at 3:30"), ("every 1h", "Every hour")];

/// A step of the first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartStep {
    Pair,
    Plan,
    Schedule,
}

impl StartStep {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Pair, "Pair a reflector"), (Self::Plan, "Your contract"), (Self::Schedule, "Regular tests")];

    /// The path of the page with this step.
    fn path(self) -> &'static str {
        match self {
            Self::Pair => "/start?step=pair",
            Self::Plan => "/start?step=plan",
            Self::Schedule => "/start?step=schedule",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().map(|(step, _)| step).find(|step| step.path().rsplit('=').next() == Some(word))
    }
}

/// The template of the page of a step.
#[derive(Template)]
#[template(path = "start.html")]
struct StartPage {
    layout: Layout,
    step: StartStep,
    steps: Vec<NavigationLink>,
    /// The names of the paired reflectors.
    paired: Vec<String>,
    /// The recurrences that the viewer can choose, each as stored, in words, and with the data that it would use.
    choices: Vec<(&'static str, &'static str, ProposalView)>,
    error: Option<Problem>,
    entered: FormBody,
}

/// Shows the step that the address names. If the address names none, shows the first step that is not done, or the last
/// step if all are done.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let step = match visitor.parameter("step").and_then(StartStep::of_word) {
        Some(step) => step,
        None => next(&state).await?.unwrap_or(StartStep::Schedule),
    };
    page(&state, &visitor, step, None, FormBody::default()).await
}

/// Pairs with the reflector of the form.
pub(super) async fn pair(State(state): State<ApiState>, visitor: Visitor, form: FormBody) -> Result<Response, Problem> {
    match reflectors::pair_from(&state, &form).await {
        Ok(()) => Ok(see_other(StartStep::Plan.path())),
        Err(problem) => page(&state, &visitor, StartStep::Pair, Some(problem), form).await,
    }
}

/// Sets the plan of the form.
pub(super) async fn set_plan(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    match plan::set_from(&state, &form).await {
        Ok(()) => Ok(see_other(StartStep::Schedule.path())),
        Err(problem) => page(&state, &visitor, StartStep::Plan, Some(problem), form).await,
    }
}

/// Adds the schedule that the viewer chose. Adds nothing if the viewer chose none.
pub(super) async fn add_schedule(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    if form.text("when").is_none() {
        return Ok(see_other(now::PATH));
    }
    match schedules::add_from(&state, &form).await {
        Ok(()) => Ok(see_other(now::PATH)),
        Err(problem) => page(&state, &visitor, StartStep::Schedule, Some(problem), form).await,
    }
}

/// Returns the first step that is not done; `None` if all are done.
async fn next(state: &ApiState) -> Result<Option<StartStep>, Problem> {
    let appliance = state.service.appliance();
    Ok(if appliance.reflectors().await?.is_empty() {
        Some(StartStep::Pair)
    } else if appliance.plan().await?.is_none() {
        Some(StartStep::Plan)
    } else if appliance.schedules().await?.is_empty() {
        Some(StartStep::Schedule)
    } else {
        None
    })
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    step: StartStep,
    error: Option<Problem>,
    entered: FormBody,
) -> Result<Response, Problem> {
    let layout = visitor.layout("First steps", Section::Elsewhere).at(step.path());
    let reflectors = state.service.appliance().reflectors().await?;
    let paired = reflectors.iter().map(|reflector| reflector.name.to_string()).collect::<Vec<_>>();
    let mut choices = Vec::new();
    if step == StartStep::Schedule
        && let Some(peer) = paired.first()
    {
        for (when, words) in PROPOSED {
            let fields = [("when", when), ("peer", peer.as_str())];
            let form = FormBody(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
            // A schedule that cannot be added, such as one that exists already, is not offered.
            if let Ok(proposal) = schedules::propose_from(state, &form).await {
                choices.push((when, words, proposal));
            }
        }
    }
    let status = error.as_ref().map_or(StatusCode::OK, Problem::status_code);
    let link = |(other, name): (StartStep, _)| NavigationLink { name, path: other.path(), is_current: other == step };
    let steps = StartStep::ALL.map(link).to_vec();
    Ok(page_with(status, &StartPage { layout, step, steps, paired, choices, error, entered }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_path_that_leads_to_it() {
        for (step, _) in StartStep::ALL {
            assert_eq!(StartStep::of_word(step.path().rsplit('=').next().unwrap()), Some(step));
        }
        assert_eq!(StartStep::of_word("payment"), None);
    }
}
