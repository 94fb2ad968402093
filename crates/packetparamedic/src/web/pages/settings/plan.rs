//! The settings of the plan: the rates that the internet contract promises.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::plan::{Plan, PromisedRate};
use paramedic_appliance::store::StoredPlan;
use paramedic_link::PeerText;
use paramedic_report::quantity;

use super::super::super::ApiState;
use super::super::super::extract::FormBody;
use super::super::super::problem::Problem;
use super::super::layout::{Layout, done, page_with};
use super::super::notice::Notice;
use super::super::outside_text::shown;
use super::super::page_time::PageTime;
use super::super::visitor::Visitor;
use super::SettingsFrame;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The path of the settings of the plan.
pub(in super::super) const PATH: &str = "/settings/plan";

/// The template of the settings of the plan.
#[derive(Template)]
#[template(path = "settings/plan.html")]
struct PlanPage {
    layout: Layout,
    frame: SettingsFrame,
    set_at: Option<PageTime>,
    from_file: bool,
    error: Option<Problem>,
    entered: FormBody,
}

/// Shows the settings of the plan.
pub(in super::super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let stored = state.service.appliance().plan().await?;
    let entered = stored.as_ref().map(|stored| fields(&stored.plan)).unwrap_or_default();
    Ok(page(stored.as_ref(), &visitor, StatusCode::OK, None, entered))
}

/// Sets the plan of the form.
pub(in super::super) async fn set(
    State(state): State<ApiState>,
    visitor: Visitor,
    form: FormBody,
) -> Result<Response, Problem> {
    match set_from(&state, &form).await {
        Ok(()) => Ok(done(PATH, Notice::PlanSaved)),
        Err(problem) => {
            let stored = state.service.appliance().plan().await?;
            Ok(page(stored.as_ref(), &visitor, problem.status_code(), Some(problem), form))
        }
    }
}

/// Sets the plan of a form: `download` and `upload`, and optionally `name` and the normal and minimum rates.
pub(in super::super) async fn set_from(state: &ApiState, form: &FormBody) -> Result<(), Problem> {
    let plan = Plan {
        name: form.text("name").map(|name| PeerText::harmless(name, 100)).filter(|name| !name.is_empty()),
        download: rates(form, "download")?,
        upload: rates(form, "upload")?,
    };
    state.service.appliance().set_plan(&plan).await?;
    Ok(())
}

/// Removes the plan.
pub(in super::super) async fn clear(State(state): State<ApiState>) -> Result<Response, Problem> {
    state.service.appliance().clear_plan().await?;
    Ok(done(PATH, Notice::PlanCleared))
}

fn page(
    stored: Option<&StoredPlan>,
    visitor: &Visitor,
    status: StatusCode,
    error: Option<Problem>,
    entered: FormBody,
) -> Response {
    let (frame, layout) = SettingsFrame::of(PATH, visitor);
    let set_at = stored.map(|stored| PageTime::day(stored.set_at));
    let from_file = stored.is_some_and(|stored| stored.from_file);
    page_with(status, &PlanPage { layout, frame, set_at, from_file, error, entered })
}

/// Reads the rates of a direction from a form. A number without a unit is in megabits per second.
fn rates(form: &FormBody, word: &str) -> Result<PromisedRate, CommandFailure> {
    let rate = |field: &str| {
        let parsed = form.text(field).map(|text| megabits(text).ok_or_else(|| wrong(field, text)));
        parsed.transpose()
    };
    let promised = rate(word)?.ok_or_else(|| wrong(word, ""))?;
    let (normal_bps, minimum_bps) = (rate(&format!("{word}_normal"))?, rate(&format!("{word}_minimum"))?);
    Ok(PromisedRate { promised_bps: promised, normal_bps, minimum_bps })
}

fn wrong(field: &str, text: &str) -> CommandFailure {
    let because = format!("{}: {text:?} is not a rate", field.replace('_', " "));
    let try_ = "enter megabits per second, such as 250, or a rate with its unit, such as 1G";
    CommandFailure::new(ExitStatus::Usage, "bad_plan", "the plan is not accepted", because, try_)
}

fn megabits(text: &str) -> Option<u64> {
    let is_bare = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let text = if is_bare { format!("{text}M") } else { text.to_owned() };
    quantity::parse_rate(&text).ok()
}

/// The fields of the form, filled in with the values of `plan`.
fn fields(plan: &Plan) -> FormBody {
    let rate = |bps: Option<u64>| match bps {
        None => String::new(),
        Some(bps) if bps % 1_000_000 == 0 => (bps / 1_000_000).to_string(),
        Some(bps) => (bps as f64 / 1e6).to_string(),
    };
    let name = plan.name.as_deref().map(shown).unwrap_or_default();
    let mut fields = vec![("name".to_owned(), name)];
    for (word, rates) in [("download", plan.download), ("upload", plan.upload)] {
        fields.push((word.to_owned(), rate(Some(rates.promised_bps))));
        fields.push((format!("{word}_normal"), rate(rates.normal_bps)));
        fields.push((format!("{word}_minimum"), rate(rates.minimum_bps)));
    }
    FormBody(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_from_its_own_fields() {
        for (promised_bps, normal_bps) in
            [(250_000_000, Some(1_500_000)), (1, None), (10_000_000_000, Some(999_999_999))]
        {
            let rates_of = PromisedRate { promised_bps, normal_bps, minimum_bps: None };
            let form = fields(&Plan { name: None, download: rates_of, upload: rates_of });
            assert_eq!(rates(&form, "download").unwrap(), rates_of);
        }
        assert_eq!(
            ["250", "0.5", "1G", "40 Mbit/s"].map(megabits),
            [Some(250_000_000), Some(500_000), Some(1_000_000_000), Some(40_000_000)]
        );
        assert_eq!(["", "fast", "-1", "1.2.3"].map(megabits), [None; 4]);
    }
}
