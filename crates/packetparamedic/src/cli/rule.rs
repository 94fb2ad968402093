//! `rule` and `alerts`: manage the rules by which the service alerts, and list the alerts.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::alerts::{AlertLimit, AlertMetric, AlertRule, RuleError};
use paramedic_appliance::app::RuleOverview;
use paramedic_appliance::schedule::{QuietHours, Zone};
use paramedic_appliance::store::{StoredAlert, StoredRule};
use paramedic_report::quantity;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web::rules::{PreviewAnswer, alerts_route, rule_route};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the rules, each with its open alerts or the reason why it cannot fire; the default subcommand
    List,
    /// Add a rule, or with --suggested the suggested rules; a rule judges only later measurements
    Add(Box<NewRuleArgs>),
    /// Print a rule: what it watches, its open alerts, its channels and its quiet hours
    Show {
        /// The name of the rule
        name: String,
    },
    /// Remove a rule, and close its alerts
    Remove {
        /// The name of the rule
        name: String,
    },
    /// Enable a rule again
    Enable {
        /// The name of the rule
        name: String,
    },
    /// Disable a rule, and close its alerts
    Disable {
        /// The name of the rule
        name: String,
    },
    /// Print when an existing rule, or a rule with the given options, would have fired in the last 30 days (14 days for
    /// a metric of a monitor)
    Preview(Box<PreviewArgs>),
}

#[derive(clap::Args)]
struct NewRuleArgs {
    /// Add the suggested rules that do not exist yet
    #[arg(long, conflicts_with_all = ["metric", "name"])]
    suggested: bool,
    #[command(flatten)]
    rule: RuleOptions,
    /// Only print what would be added
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct PreviewArgs {
    /// The name of an existing rule
    #[arg(value_name = "RULE", conflicts_with_all = ["metric", "name"])]
    existing: Option<String>,
    #[command(flatten)]
    rule: RuleOptions,
}

/// The options that describe a rule.
#[derive(clap::Args)]
pub(super) struct RuleOptions {
    /// The name of the rule: letters, digits, dots, dashes and underscores [default: the metric]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What the rule watches: download, upload, idle_latency, loaded_latency, loss, monitor_loss, monitor_latency_p50,
    /// monitor_latency_p95, outage, test_failed or silence
    #[arg(long, value_name = "METRIC")]
    metric: Option<AlertMetric>,
    /// Judge only tests against this reflector or server, or only this monitor [default: judge all of them, each one
    /// separately]
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// A value is bad below this rate in bits per second, such as 50M
    #[arg(long, value_name = "RATE", group = "limit")]
    below: Option<String>,
    /// A value is bad above this: a latency such as 80ms, a loss such as 2%, or the length of an outage or of silence
    /// such as 10m
    #[arg(long, value_name = "VALUE", group = "limit")]
    above: Option<String>,
    /// A value is bad below this share of the rate that the plan promises, such as 70%
    #[arg(long, value_name = "SHARE", group = "limit", value_parser = percent)]
    below_plan: Option<f64>,
    /// A value is bad below this share of the usual value at the same hour of the week, such as 60%
    #[arg(long, value_name = "SHARE", group = "limit", value_parser = percent)]
    below_usual: Option<f64>,
    /// A value is bad above this share of the usual value at the same hour of the week, such as 250%
    #[arg(long, value_name = "SHARE", group = "limit", value_parser = percent)]
    above_usual: Option<f64>,
    /// Open an alert when N of the last M values are bad: 3/4 means 3 of the last 4
    #[arg(long, value_name = "N/M", value_parser = count, default_value = "1/1")]
    times: (u32, u32),
    /// How many minutes of a monitor's probes make up one value
    #[arg(long, value_name = "MINUTES", default_value_t = 5)]
    window: u32,
    /// Repeat a bad test at once; the alert opens only if the repeated test is bad, too
    #[arg(long)]
    retest: bool,
    /// The name of a channel to which the rule sends its messages; can be given several times
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Hold back the messages of the rule during these hours of the day, such as 22:00-07:00
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = |text: &str| text.parse::<QuietHours>())]
    quiet_hours: Option<QuietHours>,
    /// Time zone of the quiet hours and of the hours of the week, such as Europe/Berlin [default: that of this host]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct AlertsArgs {
    /// List only open alerts
    #[arg(long)]
    open: bool,
    /// List at most this many alerts
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl RuleOptions {
    /// Builds the rule that the options describe; `None` if no metric is given.
    pub(super) fn rule(&self) -> Result<Option<AlertRule>, CommandFailure> {
        let Some(metric) = self.metric else { return Ok(None) };
        let value = |text: &str| {
            let wrong = RuleError::LimitText { metric, text: text.to_owned() };
            metric.unit().parse(text).ok_or(ApplianceError::from(wrong))
        };
        let limit = match (&self.below, &self.above) {
            (Some(text), _) => Some(AlertLimit::Below(value(text)?)),
            (_, Some(text)) => Some(AlertLimit::Above(value(text)?)),
            _ => self
                .below_plan
                .map(AlertLimit::BelowPlan)
                .or(self.below_usual.map(AlertLimit::BelowUsual))
                .or(self.above_usual.map(AlertLimit::AboveUsual)),
        };
        let zone =
            self.zone.as_deref().map_or_else(|| Ok(Zone::of_host()), str::parse).map_err(ApplianceError::from)?;
        let name = self.name.clone().unwrap_or_else(|| metric.as_str().replace('_', "-"));
        let rule = AlertRule {
            subject: self.target.clone(),
            window_minutes: self.window,
            retest: self.retest,
            channels: self.channels.clone(),
            quiet_hours: self.quiet_hours,
            ..AlertRule::new(&name, metric, limit, zone).with_times(self.times.0, self.times.1)
        };
        rule.check().map_err(ApplianceError::from)?;
        Ok(Some(rule))
    }
}

/// Parses a share in percent, such as `70%`. The share may be above 100 %.
fn percent(text: &str) -> Result<f64, String> {
    let valid = "valid: a share in percent, such as 70%";
    let number = text.trim().strip_suffix('%').ok_or(valid)?.trim().parse::<f64>().map_err(|_| valid)?;
    if number.is_finite() && number >= 0.0 { Ok(number / 100.0) } else { Err(valid.to_owned()) }
}

fn count(text: &str) -> Result<(u32, u32), String> {
    let valid = "valid: two numbers such as 3/4, for 3 of the last 4";
    let (times, of) = text.split_once('/').ok_or(valid)?;
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| valid.to_owned());
    Ok((number(times)?, number(of)?))
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => list(json, context).await,
        Command::Add(args) => add(*args, json, context).await,
        Command::Show { name } => {
            let overview: RuleOverview = match context.service().await? {
                Some(service) => service.get(&rule_route(&name, "")).await?,
                None => context.appliance()?.rule(&name).await?,
            };
            if json {
                context.output.json_line(&overview)?;
                return Ok(ExitStatus::Done);
            }
            let AlertRule { channels, quiet_hours, zone, .. } = &overview.stored.rule;
            for line in lines(&overview) {
                context.output.line(&line)?;
            }
            let names = if channels.is_empty() { "none".to_owned() } else { channels.join(", ") };
            context.output.line(&format!("  channels: {names}"))?;
            if let Some(hours) = quiet_hours {
                context.output.line(&format!("  quiet hours: {hours} ({zone})"))?;
            }
            Ok(ExitStatus::Done)
        }
        Command::Remove { name } => {
            let removed: StoredRule = match context.service().await? {
                Some(service) => service.delete(&rule_route(&name, "")).await?,
                None => context.appliance()?.remove_rule(&name).await?,
            };
            say(json, "removed", &removed, context)
        }
        Command::Enable { name } => enable(&name, true, json, context).await,
        Command::Disable { name } => enable(&name, false, json, context).await,
        Command::Preview(args) => preview(*args, json, context).await,
    }
}

async fn list(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<RuleOverview> = match context.service().await? {
        Some(service) => service.get("/rules").await?,
        None => context.appliance()?.rules().await?,
    };
    if json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no rules; see those that are suggested: packetparamedic rule add --suggested --dry-run");
    }
    for overview in &all {
        for line in lines(overview) {
            context.output.line(&line)?;
        }
    }
    Ok(ExitStatus::Done)
}

/// Describes a rule in lines: what it watches, its state, its open alerts and its missing channels.
fn lines(overview: &RuleOverview) -> Vec<String> {
    let StoredRule { enabled, rule, .. } = &overview.stored;
    let mut lines = vec![format!("{}: {}", rule.name, overview.words)];
    match (enabled, &overview.unmeasured, &overview.open[..]) {
        (false, ..) => lines.push("  disabled".to_owned()),
        (true, Some(why), []) => lines.push(format!("  cannot fire: {why}")),
        (true, _, []) => lines.push("  no alert is open".to_owned()),
        (true, _, open) => lines.push(format!("  an alert is open: {}", open.join(", "))),
    }
    if !overview.missing_channels.is_empty() {
        lines.push(format!("  no such channel: {}", overview.missing_channels.join(", ")));
    }
    lines
}

async fn add(args: NewRuleArgs, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let service = context.service().await?;
    let rules = match (args.rule.rule()?, args.suggested) {
        (Some(rule), false) => vec![rule],
        (_, true) => match &service {
            Some(service) => service.get("/rule-suggestions").await?,
            None => context.appliance()?.suggested_rules().await?,
        },
        (None, false) => return Err(no_rule()),
    };
    if rules.is_empty() {
        context.output.note("the suggested rules are there already");
    }
    for mut rule in rules {
        if args.suggested {
            rule.channels.clone_from(&args.rule.channels);
            rule.quiet_hours = args.rule.quiet_hours;
        }
        if args.dry_run {
            match json {
                true => context.output.json_line(&json!({ "event": "proposed", "rule": rule }))?,
                false => context.output.line(&format!("{}: {}", rule.name, rule.words()))?,
            }
            continue;
        }
        let added: StoredRule = match &service {
            Some(service) => service.post("/rules", &rule).await?,
            None => context.appliance()?.add_rule(&rule).await?,
        };
        say(json, "added", &added, context)?;
        if !json {
            context.output.line(&format!("  {}", added.rule.words()))?;
        }
    }
    if service.is_none() && !args.dry_run {
        context.output.note("rules judge only while the service runs: start the service with `packetparamedic serve`");
    }
    Ok(ExitStatus::Done)
}

async fn enable(name: &str, enabled: bool, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let (event, action) = if enabled { ("enabled", "/enable") } else { ("disabled", "/disable") };
    let stored: StoredRule = match context.service().await? {
        Some(service) => service.post(&rule_route(name, action), &()).await?,
        None => context.appliance()?.enable_rule(name, enabled).await?,
    };
    say(json, event, &stored, context)
}

/// Prints that `event`, such as `enabled`, happened to the rule `stored`.
fn say(json: bool, event: &str, stored: &StoredRule, context: &Context) -> Result<ExitStatus, CommandFailure> {
    match json {
        true => context.output.json_line(&json!({ "event": event, "rule": stored }))?,
        false => context.output.line(&format!("{event}: {}", stored.rule.name))?,
    }
    Ok(ExitStatus::Done)
}

async fn preview(args: PreviewArgs, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let service = context.service().await?;
    let rule = match (&args.existing, args.rule.rule()?) {
        (Some(name), _) => {
            let overview: RuleOverview = match &service {
                Some(service) => service.get(&rule_route(name, "")).await?,
                None => context.appliance()?.rule(name).await?,
            };
            overview.stored.rule
        }
        (None, Some(rule)) => rule,
        (None, None) => return Err(no_rule()),
    };
    let answer: PreviewAnswer = match &service {
        Some(service) => service.post("/rules/preview", &rule).await?,
        None => {
            let appliance = context.appliance()?;
            let preview = appliance.preview_rule(&rule).await?;
            PreviewAnswer { preview, words: rule.words(), unmeasured: appliance.unmeasured(&rule).await? }
        }
    };
    if json {
        context.output.json_line(&answer)?;
        return Ok(ExitStatus::Done);
    }
    for line in preview_lines(&answer) {
        context.output.line(&line)?;
    }
    Ok(ExitStatus::Done)
}

fn preview_lines(answer: &PreviewAnswer) -> Vec<String> {
    let preview = &answer.preview;
    let days = preview.until.duration_since(preview.since).as_hours() / 24;
    let times = match preview.alerts.len() {
        0 => "would not have fired".to_owned(),
        1 => "would have fired once".to_owned(),
        times => format!("would have fired {times} times"),
    };
    let mut lines = vec![answer.words.clone(), format!("{times} in the last {days} days; {} judged", preview.judged)];
    lines.extend(preview.alerts.iter().map(|alert| {
        let until = alert.closed_at.map_or_else(|| "open now".to_owned(), |closed| format!("until {}", shown(closed)));
        format!("  {}  {until}  {}", shown(alert.opened_at), alert.title)
    }));
    lines.extend(preview.not_judged.iter().map(|(reason, count)| format!("  not judged: {count} ({reason})")));
    if preview.assumes_retest && !preview.alerts.is_empty() {
        lines.push("  assumed: each repeated test would have agreed".to_owned());
    }
    lines.extend(answer.unmeasured.iter().map(|why| format!("  cannot fire: {why}")));
    lines
}

fn no_rule() -> CommandFailure {
    CommandFailure::new(
        ExitStatus::Usage,
        "bad_usage",
        "no rule is given",
        "there is neither --metric nor the name of a rule",
        "run `packetparamedic rule add --metric download --below-plan 70% --times 3/4 --retest`",
    )
}

pub(super) async fn alerts(args: AlertsArgs, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<StoredAlert> = match context.service().await? {
        Some(service) => service.get(&alerts_route(args.open, args.limit)).await?,
        None => context.appliance()?.alerts(args.open, None, args.limit.clamp(1, 1000)).await?,
    };
    if args.json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note(if args.open { "no alert is open" } else { "no alerts" });
    }
    for alert in &all {
        let length = match alert.closed_at {
            None => "open".to_owned(),
            Some(closed) => {
                let seconds = closed.as_second().saturating_sub(alert.opened_at.as_second());
                let millis = u64::try_from(seconds).unwrap_or_default().saturating_mul(1000);
                format!("closed after {}", quantity::millis(millis))
            }
        };
        let (opened, title) = (shown(alert.opened_at), &alert.opening.title);
        context.output.line(&format!("{opened}  {title}  ({}, {length})", alert.rule))?;
    }
    Ok(ExitStatus::Done)
}

/// Formats a time in the time zone of this host.
fn shown(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

#[cfg(test)]
mod tests {
    use paramedic_appliance::alerts::{PreviewedAlert, RulePreview};

    use super::*;

    #[test]
    fn shares_and_counts_are_read_strictly() {
        assert_eq!((percent("70%"), percent("250 %")), (Ok(0.7), Ok(2.5)));
        for wrong in ["70", "0.7", "-1%", "%", "NaN%", "inf%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        assert_eq!(count("3/4"), Ok((3, 4)));
        for wrong in ["3", "3/", "/4", "-1/2", "a/b"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_preview_says_how_often_it_would_have_fired_and_what_it_rests_on() {
        let at = |hour: i64| Timestamp::from_second(1_769_860_800 + hour * 3_600).unwrap();
        let alert = |hour, closed: Option<i64>| PreviewedAlert {
            subject: "attic".to_owned(),
            opened_at: at(hour),
            closed_at: closed.map(at),
            title: "Slow download: 9 Mbit/s from attic".to_owned(),
        };
        let preview = RulePreview {
            since: at(0),
            until: at(720),
            alerts: vec![alert(5, Some(9)), alert(700, None)],
            judged: 120,
            not_judged: std::collections::BTreeMap::from([("other traffic used the line".to_owned(), 3)]),
            assumes_retest: true,
        };
        let answer = PreviewAnswer { preview, words: "download below 50.0 Mbit/s".to_owned(), unmeasured: None };
        let text = preview_lines(&answer).join("\n");
        for part in [
            "would have fired 2 times in the last 30 days; 120 judged",
            "open now",
            "not judged: 3 (other traffic used the line)",
            "assumed: each repeated test would have agreed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
