//! The page of alerts: the open alerts, the rules with their form and preview, and the past alerts.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::alerts::{AlertLimit, AlertMetric, AlertRule, RuleError, RulePreview};
use paramedic_appliance::app::{Appliance, RuleOverview};
use paramedic_appliance::schedule::{QuietHours, Zone};
use paramedic_appliance::store::{PageCursor, StoredAlert};

use super::super::ApiState;
use super::super::extract::{ApiPath, FormBody, encoded};
use super::super::problem::Problem;
use super::layout::{Layout, Section, done, page_with};
use super::notice::Notice;
use super::outside_text::{distinct, sentence, shown};
use super::page_time::PageTime;
use super::visitor::Visitor;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// The path of the page of alerts.
pub(super) const PATH: &str = "/alerts";
/// The number of alerts in a page of the list of past alerts.
const LIST_PAGE: u32 = 25;
/// The maximum number of open alerts that the page shows.
const MOST_OPEN: u32 = 50;

/// The kinds of limits that the form of a rule offers, each with its value in the form and its text on the page.
const LIMITS: [(&str, &str); 5] = [
    ("below", "below this value"),
    ("above", "above this value"),
    ("below_plan", "below this share of the plan"),
    ("below_usual", "below this share of the usual value"),
    ("above_usual", "above this share of the usual value"),
];

/// The template of the page of alerts.
#[derive(Template)]
#[template(path = "alerts.html")]
struct AlertsPage {
    layout: Layout,
    open: Vec<AlertView>,
    rules: Vec<RuleView>,
    suggested: Vec<AlertRule>,
    preview: Option<PreviewView>,
    past: Vec<AlertView>,
    older: Option<String>,
    /// The channels: the name of each, and the name as the page shows it.
    channels: Vec<(String, String)>,
    targets: Vec<String>,
    error: Option<Problem>,
    entered: FormBody,
}

/// An alert as the page shows it.
struct AlertView {
    title: String,
    rule: String,
    lines: Vec<String>,
    opened: PageTime,
    closed: Option<PageTime>,
}

/// A rule as the page shows it.
struct RuleView {
    name: String,
    words: String,
    /// The path to which the forms of the rule are sent.
    path: String,
    /// The path of this page with the preview of the rule.
    preview: String,
    is_enabled: bool,
    from_file: bool,
    open: Vec<String>,
    unmeasured: Option<String>,
    channels: String,
    missing_channels: String,
    quiet_hours: Option<String>,
}

/// What a rule would have done in the past, as the page shows it.
struct PreviewView {
    words: String,
    summary: String,
    alerts: Vec<AlertView>,
    notes: Vec<String>,
}

impl AlertView {
    fn of(alert: &StoredAlert) -> Self {
        let record = alert.closing.as_ref().unwrap_or(&alert.opening);
        Self {
            title: sentence(&alert.opening.title),
            rule: shown(&alert.rule),
            lines: record.text.lines().map(sentence).collect(),
            opened: PageTime::full(alert.opened_at),
            closed: alert.closed_at.map(PageTime::full),
        }
    }
}

impl RuleView {
    fn of(overview: &RuleOverview) -> Self {
        let rule = &overview.stored.rule;
        let name = encoded(&rule.name);
        Self {
            name: shown(&rule.name),
            words: sentence(&overview.words),
            path: format!("{PATH}/rules/{name}"),
            preview: format!("{PATH}?preview={name}#preview"),
            is_enabled: overview.stored.enabled,
            from_file: overview.stored.from_file,
            open: overview.open.iter().map(|subject| shown(subject)).collect(),
            unmeasured: overview.unmeasured.as_deref().map(sentence),
            channels: listed(&rule.channels),
            missing_channels: listed(&overview.missing_channels),
            quiet_hours: rule.quiet_hours.map(|hours| format!("{hours} ({})", rule.zone)),
        }
    }
}

fn listed(names: &[String]) -> String {
    names.iter().map(|name| distinct(name)).collect::<Vec<_>>().join(", ")
}

impl PreviewView {
    fn of(rule: &AlertRule, preview: &RulePreview, unmeasured: Option<String>) -> Self {
        let days = preview.until.duration_since(preview.since).as_hours() / 24;
        let times = match preview.alerts.len() {
            0 => "It would not have fired".to_owned(),
            1 => "It would have fired once".to_owned(),
            times => format!("It would have fired {times} times"),
        };
        let alert = |alert: &paramedic_appliance::alerts::PreviewedAlert| AlertView {
            title: sentence(&alert.title),
            rule: String::new(),
            lines: Vec::new(),
            opened: PageTime::full(alert.opened_at),
            closed: alert.closed_at.map(PageTime::full),
        };
        let not_judged = preview.not_judged.iter().map(|(reason, count)| format!("Not judged: {count} ({reason})."));
        let assumed = (preview.assumes_retest && !preview.alerts.is_empty())
            .then(|| "It is assumed that each repeated test would have agreed.".to_owned());
        let why = unmeasured.map(|why| format!("It cannot fire: {}.", sentence(&why)));
        Self {
            words: sentence(&rule.words()),
            summary: format!("{times} in the last {days} days; {} values were judged.", preview.judged),
            alerts: preview.alerts.iter().map(alert).collect(),
            notes: not_judged.chain(assumed).chain(why).collect(),
        }
    }
}

impl AlertsPage {
    fn metrics(&self) -> Vec<(&'static str, &'static str, bool)> {
        let chosen = self.entered.value("metric");
        AlertMetric::ALL.into_iter().map(|(_, word, words)| (word, words, word == chosen)).collect()
    }

    fn limits(&self) -> Vec<(&'static str, &'static str, bool)> {
        let chosen = self.entered.value("limit");
        LIMITS.into_iter().map(|(word, words)| (word, words, word == chosen)).collect()
    }

    fn words(&self, rule: &AlertRule) -> String {
        rule.words()
    }

    fn is_chosen(&self, channel: &str) -> bool {
        self.entered.0.iter().any(|(name, value)| name == "channel" && value == channel)
    }

    fn default_of(&self, field: &str, usual: &str) -> String {
        self.entered.text(field).unwrap_or(usual).to_owned()
    }
}

/// Shows the page of alerts. If the query parameter `preview` names a rule, also shows what this rule would have done.
pub(super) async fn show(State(state): State<ApiState>, visitor: Visitor) -> Result<Response, Problem> {
    let preview = match visitor.parameter("preview") {
        None => None,
        Some(name) => {
            let rule = state.service.appliance().rule(name).await?.stored.rule;
            Some(previewed(state.service.appliance(), &rule).await?)
        }
    };
    page(&state, &visitor, (StatusCode::OK, None), FormBody::default(), preview).await
}

/// Adds the rule of the form, or shows what the rule would have done.
pub(super) async fn add(State(state): State<ApiState>, visitor: Visitor, form: FormBody) -> Result<Response, Problem> {
    match add_or_preview(&state, &form).await {
        Ok(None) => Ok(done(PATH, Notice::RuleAdded)),
        Ok(preview) => page(&state, &visitor, (StatusCode::OK, None), form, preview).await,
        Err(problem) => page(&state, &visitor, (problem.status_code(), Some(problem)), form, None).await,
    }
}

/// Adds the rule of the form. If the form asks for a preview, returns the preview and adds nothing.
async fn add_or_preview(state: &ApiState, form: &FormBody) -> Result<Option<PreviewView>, Problem> {
    let appliance = state.service.appliance();
    let rule = rule_of(form)?;
    if form.is_ticked("preview") {
        return previewed(appliance, &rule).await.map(Some);
    }
    appliance.add_rule(&rule).await?;
    state.service.rules_changed();
    Ok(None)
}

/// Adds the suggested rule that the form names.
pub(super) async fn add_suggested(State(state): State<ApiState>, form: FormBody) -> Result<Response, Problem> {
    let appliance = state.service.appliance();
    let wanted = form.value("name").to_owned();
    let suggested = appliance.suggested_rules().await?.into_iter().find(|rule| rule.name == wanted);
    // After a second click, the rule is already added and no longer suggested.
    if let Some(mut rule) = suggested {
        rule.channels = channels(&form);
        appliance.add_rule(&rule).await?;
        state.service.rules_changed();
    }
    Ok(done(PATH, Notice::RuleAdded))
}

/// Enables a rule if the form has the field `enabled`; otherwise disables the rule.
pub(super) async fn switch(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
    form: FormBody,
) -> Result<Response, Problem> {
    state.service.appliance().enable_rule(&name, form.is_ticked("enabled")).await?;
    state.service.rules_changed();
    state.service.messages_changed();
    Ok(done(PATH, Notice::RuleChanged))
}

/// Removes a rule.
pub(super) async fn remove(State(state): State<ApiState>, ApiPath(name): ApiPath<String>) -> Result<Response, Problem> {
    state.service.appliance().remove_rule(&name).await?;
    state.service.rules_changed();
    state.service.messages_changed();
    Ok(done(PATH, Notice::RuleRemoved))
}

async fn previewed(appliance: &Appliance, rule: &AlertRule) -> Result<PreviewView, Problem> {
    let preview = appliance.preview_rule(rule).await?;
    Ok(PreviewView::of(rule, &preview, appliance.unmeasured(rule).await?))
}

/// The names of the channels that are ticked in the form.
fn channels(form: &FormBody) -> Vec<String> {
    form.0.iter().filter(|(name, _)| name == "channel").map(|(_, value)| value.clone()).collect()
}

/// Builds the rule that the form describes. The caller must still check the rule.
fn rule_of(form: &FormBody) -> Result<AlertRule, CommandFailure> {
    let metric = form.value("metric").parse::<AlertMetric>().map_err(|error| wrong(&error.to_string()))?;
    let limit = form.text("value").map(|text| limit_of(metric, form.value("limit"), text)).transpose()?;
    let number = |field: &str, usual: u32| {
        let not_whole = |_| wrong(&format!("{} must be a whole number", field.replace('_', " ")));
        form.text(field).map_or(Ok(usual), |text| text.trim().parse().map_err(not_whole))
    };
    let quiet_hours = form.text("quiet_hours").map(str::parse::<QuietHours>).transpose();
    let quiet_hours = quiet_hours.map_err(|error| wrong(&error.to_string()))?;
    let name = form.text("name").map_or_else(|| metric.as_str().replace('_', "-"), str::to_owned);
    Ok(AlertRule {
        subject: form.text("target").map(str::to_owned),
        times: number("times", 1)?,
        of: number("of", 1)?,
        window_minutes: number("window", 5)?,
        retest: form.is_ticked("retest"),
        channels: channels(form),
        quiet_hours,
        ..AlertRule::new(&name, metric, limit, Zone::of_host())
    })
}

fn limit_of(metric: AlertMetric, kind: &str, text: &str) -> Result<AlertLimit, CommandFailure> {
    let not_a_value = || {
        let text = text.chars().take(40).collect();
        CommandFailure::from(ApplianceError::from(RuleError::LimitText { metric, text }))
    };
    let value = || metric.unit().parse(text).ok_or_else(not_a_value);
    let share = || {
        let number = text.trim().trim_end_matches('%').trim().parse::<f64>();
        number.ok().filter(|number| number.is_finite()).map(|percent| percent / 100.0).ok_or_else(not_a_value)
    };
    Ok(match kind {
        "below_plan" => AlertLimit::BelowPlan(share()?),
        "below_usual" => AlertLimit::BelowUsual(share()?),
        "above_usual" => AlertLimit::AboveUsual(share()?),
        "above" => AlertLimit::Above(value()?),
        _ => AlertLimit::Below(value()?),
    })
}

fn wrong(because: &str) -> CommandFailure {
    let try_ = "change that field of the form";
    CommandFailure::new(ExitStatus::Usage, "bad_rule", "the rule is not accepted", because, try_)
}

async fn page(
    state: &ApiState,
    visitor: &Visitor,
    (status, error): (StatusCode, Option<Problem>),
    entered: FormBody,
    preview: Option<PreviewView>,
) -> Result<Response, Problem> {
    let appliance = state.service.appliance();
    let invalid = |because: &str| Problem::invalid(StatusCode::BAD_REQUEST, because);
    let after = visitor.parameter("after").map(str::parse::<PageCursor>).transpose().map_err(invalid)?;
    let open = appliance.alerts(true, None, MOST_OPEN).await?;
    let mut past = appliance.alerts(false, after, LIST_PAGE + 1).await?;
    let has_older = past.len() > LIST_PAGE as usize;
    past.truncate(LIST_PAGE as usize);
    let last = past.last().filter(|_| has_older).map(|alert| PageCursor { at: alert.opened_at, id: alert.id });
    let reflectors = appliance.reflectors().await?.into_iter().map(|reflector| reflector.name.to_string());
    let monitors = state.service.monitors().await?.into_iter().map(|overview| overview.stored.monitor.name);
    let mut targets = reflectors.chain(monitors).filter(|name| shown(name) == *name).collect::<Vec<_>>();
    targets.sort();
    targets.dedup();
    let view = AlertsPage {
        layout: visitor.layout("Alerts", Section::Alerts).at(PATH),
        open: open.iter().map(AlertView::of).collect(),
        rules: appliance.rules().await?.iter().map(RuleView::of).collect(),
        suggested: appliance.suggested_rules().await?,
        preview,
        past: past.iter().filter(|alert| alert.closed_at.is_some()).map(AlertView::of).collect(),
        older: last.map(|cursor| format!("{PATH}?after={}#past", encoded(&cursor.to_string()))),
        channels: appliance.channel_names().await?.into_iter().map(|name| (name.clone(), distinct(&name))).collect(),
        targets,
        error,
        entered,
    };
    Ok(page_with(status, &view))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(fields: &[(&str, &str)]) -> FormBody {
        FormBody(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_rule_is_read_from_its_form() {
        let rule = rule_of(&form(&[
            ("metric", "download"),
            ("limit", "below_plan"),
            ("value", "70"),
            ("times", "3"),
            ("of", "4"),
            ("retest", "1"),
            ("channel", "phone"),
            ("channel", "mail"),
            ("target", ""),
        ]))
        .unwrap();
        assert_eq!((rule.name.as_str(), rule.limit), ("download", Some(AlertLimit::BelowPlan(0.7))));
        assert_eq!((rule.times, rule.of, rule.retest, rule.subject), (3, 4, true, None));
        assert_eq!(rule.channels, ["phone", "mail"]);
        let loss = form(&[("metric", "monitor_loss"), ("limit", "above"), ("value", "2%")]);
        assert_eq!(rule_of(&loss).unwrap().limit, Some(AlertLimit::Above(2.0)));
        for wrong in [
            form(&[("metric", "speed")]),
            form(&[("metric", "download"), ("limit", "below"), ("value", "fast")]),
            form(&[("metric", "download"), ("limit", "below_plan"), ("value", "inf")]),
            form(&[("metric", "outage"), ("limit", "above"), ("value", "2m"), ("times", "x")]),
            form(&[("metric", "outage"), ("limit", "above"), ("value", "2m"), ("quiet_hours", "night")]),
        ] {
            assert!(rule_of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
