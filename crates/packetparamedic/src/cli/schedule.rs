//! `packetparamedic schedule`: manages the tests that the service runs by itself.

use std::io::{BufRead, IsTerminal, Read};
use std::time::Duration;

use jiff::Timestamp;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{ScheduleOverview, ScheduleProposal};
use paramedic_appliance::request::TestRequest;
use paramedic_appliance::schedule::admission::SkipReason;
use paramedic_appliance::schedule::budget::DataBudget;
use paramedic_appliance::schedule::volume::ASSUMED_BPS;
use paramedic_appliance::schedule::{
    MissedRunPolicy, QuietHours, Recurrence, RecurrenceError, Schedule, ScheduleError, Zone,
};
use paramedic_appliance::store::{ScheduleRun, ScheduleRunOutcome, StoredSchedule};
use paramedic_host::config::FlagValues;
use paramedic_report::quantity;
use serde_json::{Value, json};

use super::failure::{CommandFailure, ExitStatus};
use super::moment::{Moment, moment};
use super::object_args::ObjectArgs;
use super::table_lines::TableKind;
use super::values::{share, size_of_data, time};
use super::{Context, speed_test, table_lines};
use crate::web::client::ServiceClient;
use crate::web::table_exports::RequestedTable;

/// The maximum length of an answer that is read from the terminal, in bytes.
const LONGEST_ANSWER: u64 = 100;

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the schedules, each with its next run, last run and data volume; the default subcommand
    List,
    /// Add a schedule; prints the data volume of its tests, and asks for confirmation
    Add(Box<AddArgs>),
    /// Remove a schedule; its results stay saved
    Remove {
        /// Name of the schedule
        name: String,
    },
    /// Let a disabled schedule run again
    Enable {
        /// Name of the schedule
        name: String,
    },
    /// Keep a schedule from running, without removing it
    Disable {
        /// Name of the schedule
        name: String,
    },
    /// Run a schedule now, or as soon as no other test runs; needs the running service
    Run {
        /// Name of the schedule
        name: String,
    },
    /// Print the next times at which schedules are due
    Next {
        /// Name of the schedule [default: all]
        name: Option<String>,
        /// Number of times to print for each schedule
        #[arg(short = 'n', long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
        count: u8,
    },
    /// List the latest runs and their outcomes, newest first
    Runs {
        /// Name of the schedule [default: all]
        name: Option<String>,
        /// Number of runs to list
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: u32,
        /// Print all runs from --since until --until, oldest first: as JSON objects (one per line) or as a table
        #[arg(long, value_enum, conflicts_with_all = ["json", "limit"])]
        format: Option<TableKind>,
        /// Only runs that started or were skipped since TIME, such as 7d (ago), 2026-01-31 or "2026-01-31 12:00"
        #[arg(long, value_name = "TIME", value_parser = moment, requires = "format")]
        since: Option<Moment>,
        /// Only runs that started or were skipped before TIME
        #[arg(long, value_name = "TIME", value_parser = moment, requires = "format")]
        until: Option<Moment>,
    },
}

#[derive(clap::Args)]
pub(super) struct AddArgs {
    /// Name of the schedule: letters, digits, dots, dashes and underscores
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Run the test at this interval, such as 6h or 1d; valid: 5m to 366d
    #[arg(long, value_name = "TIME", required_unless_present = "cron", conflicts_with = "cron")]
    pub(super) every: Option<String>,
    /// Run the test at these times: minute, hour, day of month, month and day of week, such as "30 3 * * *"; or
    /// @hourly, @daily, @weekly, @monthly or @yearly
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// Time zone of --cron, --quiet-hours, --budget-day and --budget-month, such as Europe/Berlin
    /// [default: that of this host]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Start each run after a random delay of at most TIME; with 0, a run starts as soon as it is due
    /// [default: a tenth of the time between two runs, at most 10m]
    #[arg(long, value_name = "TIME", value_parser = time)]
    spread: Option<Duration>,
    /// What to do after runs were missed because this device was off: skip them, or run once
    #[arg(long, value_name = "skip|once", value_parser = missed, default_value = "skip")]
    missed: MissedRunPolicy,
    /// Do not run the test within these hours of the day, such as 22:00-07:00
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = |text: &str| text.parse::<QuietHours>())]
    quiet_hours: Option<QuietHours>,
    /// Skip a run if the schedule would then use more than this much data in the day, such as 5GB
    #[arg(long, value_name = "SIZE", value_parser = size_of_data)]
    budget_day: Option<u64>,
    /// Skip a run if the schedule would then use more than this much data in the calendar month, such as 50GB
    #[arg(long, value_name = "SIZE", value_parser = size_of_data)]
    budget_month: Option<u64>,
    /// Skip a run while other traffic uses more than this share of the line, such as 30%; off skips no run [default:
    /// 20%]
    #[arg(long, value_name = "SHARE|off", value_parser = busy_share)]
    busy_share: Option<LineShareLimit>,
    /// Run only while the default route uses this interface; for several, use commas or repeat the option
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    uplink: Vec<String>,
    /// Add the schedule without asking for confirmation
    #[arg(short, long)]
    yes: bool,
    #[command(flatten, next_help_heading = "The test (options as in speed-test)")]
    pub(super) test: speed_test::Args,
}

/// The value of `--busy-share`: `off`, or a share of the line's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LineShareLimit {
    Off,
    AtMost(f64),
}

impl Args {
    /// The settings that the flags set.
    pub(super) fn settings(&self) -> FlagValues {
        match &self.command {
            Some(Command::Add(args)) => args.test.settings(),
            _ => FlagValues::default(),
        }
    }
}

fn missed(text: &str) -> Result<MissedRunPolicy, String> {
    let policies = [MissedRunPolicy::Skip, MissedRunPolicy::Once].into_iter();
    policies.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| "valid: skip or once".to_owned())
}

fn busy_share(text: &str) -> Result<LineShareLimit, String> {
    match text {
        "off" => Ok(LineShareLimit::Off),
        text => share(text).map(LineShareLimit::AtMost).map_err(|error| format!("{error}; or off")),
    }
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => list(json, context).await,
        Command::Add(args) => add(*args, json, context).await,
        Command::Remove { name } => {
            let removed: StoredSchedule = match context.service().await? {
                Some(service) => service.delete(&ServiceClient::schedule_route(&name, "")).await?,
                None => context.appliance()?.remove_schedule(&name).await?,
            };
            say(json, "removed", &removed.schedule.name, context)
        }
        Command::Enable { name } => enable(&name, true, json, context).await,
        Command::Disable { name } => enable(&name, false, json, context).await,
        Command::Run { name } => {
            let Some(service) = context.service().await? else { return Err(no_service()) };
            let _: Value = service.post(&ServiceClient::schedule_route(&name, "/run"), &()).await?;
            say(json, "requested", &name, context)
        }
        Command::Next { name, count } => next(name.as_deref(), count.into(), json, context).await,
        Command::Runs { name, format: Some(format), since, until, limit: _ } => {
            let table = RequestedTable::ScheduleRuns { schedule: name };
            table_lines::print(table, since, until, format, context).await
        }
        Command::Runs { name, limit, .. } => {
            let runs: Vec<ScheduleRun> = match context.service().await? {
                Some(service) => service.get(&ServiceClient::runs_route(name.as_deref(), limit)).await?,
                None => context.appliance()?.schedule_runs(name.as_deref(), limit).await?,
            };
            if json {
                context.output.json_line(&runs)?;
            } else if runs.is_empty() {
                context.output.note("no schedule has run yet");
            } else {
                for run in &runs {
                    context.output.line(&format!(
                        "{}  {}  {}",
                        shown(run.decided_at, &Zone::of_host()),
                        run.schedule,
                        outcome(run)
                    ))?;
                }
            }
            Ok(ExitStatus::Done)
        }
    }
}

async fn enable(name: &str, enabled: bool, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let (event, action) = if enabled { ("enabled", "/enable") } else { ("disabled", "/disable") };
    let stored: StoredSchedule = match context.service().await? {
        Some(service) => service.post(&ServiceClient::schedule_route(name, action), &()).await?,
        None => context.appliance()?.enable_schedule(name, enabled).await?,
    };
    say(json, event, &stored.schedule.name, context)
}

/// The failure of a command that needs the service while no service runs.
fn no_service() -> CommandFailure {
    let try_ = "start it with `packetparamedic serve`, or run `packetparamedic speed-test`";
    let because = "only the running service runs schedules";
    CommandFailure::new(ExitStatus::Failed, "not_running", "the service is not running", because, try_)
}

/// Prints that `event`, such as `enabled`, happened to the schedule `name`.
fn say(json: bool, event: &str, name: &str, context: &Context) -> Result<ExitStatus, CommandFailure> {
    if json {
        context.output.json_line(&json!({ "event": event, "schedule": name }))?;
    } else {
        context.output.line(&format!("{event}: {name}"))?;
    }
    Ok(ExitStatus::Done)
}

async fn add(args: AddArgs, json: bool, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let is_confirmed = args.yes;
    let request = speed_test::storable_request(&args.test, context)?;
    let schedule = definition(&args, request).map_err(ApplianceError::from)?;
    let service = context.service().await?;
    let proposal: ScheduleProposal = match &service {
        Some(service) => service.post("/schedules/proposals", &schedule).await?,
        None => context.appliance()?.propose_schedule(schedule).await?,
    };
    if !json {
        for line in described(&proposal) {
            context.output.line(&line)?;
        }
    }
    if !is_confirmed && !is_agreed(json)? {
        let month = quantity::bytes(proposal.bytes_a_month);
        return Err(CommandFailure::new(
            ExitStatus::Usage,
            "not_confirmed",
            format!("the schedule {} was not added", proposal.schedule.name),
            format!("it would use about {month} a month"),
            "confirm it with --yes",
        ));
    }
    let added: StoredSchedule = match &service {
        Some(service) => service.post("/schedules", &proposal.schedule).await?,
        None => context.appliance()?.add_schedule(proposal.schedule.clone()).await?,
    };
    if json {
        let ScheduleProposal { is_assumed, runs_a_month, bytes_a_month, .. } = proposal;
        let document = json!({
            "event": "added", "schedule": added, "runs_a_month": runs_a_month, "bytes_a_month": bytes_a_month,
            "is_assumed": is_assumed,
        });
        context.output.json_line(&document)?;
    } else {
        context.output.line(&format!("added: {}", added.schedule.name))?;
    }
    if service.is_none() {
        context.output.note("it runs only while the service runs: start the service with `packetparamedic serve`");
    }
    Ok(ExitStatus::Done)
}

/// Builds the schedule that the flags of `schedule add` describe.
pub(super) fn definition(args: &AddArgs, request: TestRequest) -> Result<Schedule, ScheduleError> {
    let when = match (&args.every, &args.cron) {
        (Some(interval), _) => Recurrence::every(interval)?,
        (None, Some(expression)) if expression.trim_start().starts_with("every ") => {
            let reason = "use --every for an interval".to_owned();
            return Err(RecurrenceError::Cron { text: expression.clone(), reason }.into());
        }
        (None, expression) => Recurrence::parse(expression.as_deref().unwrap_or_default())?,
    };
    let zone = args.zone.as_deref().map_or_else(|| Ok(Zone::of_host()), str::parse)?;
    let mut schedule = Schedule::usual(&args.name, when, zone, request, now());
    schedule.missed = args.missed;
    schedule.quiet_hours = args.quiet_hours;
    schedule.budget = DataBudget { day_bytes: args.budget_day, month_bytes: args.budget_month };
    schedule.uplinks.clone_from(&args.uplink);
    match args.busy_share {
        None => {}
        Some(LineShareLimit::Off) => schedule.max_line_share = None,
        Some(LineShareLimit::AtMost(share)) => schedule.max_line_share = Some(share),
    }
    if let Some(spread) = args.spread {
        schedule.spread = spread;
    }
    Ok(schedule)
}

/// Asks for confirmation at the terminal. Returns false without asking if stdin is not a terminal, or if `json` is set.
fn is_agreed(json: bool) -> Result<bool, CommandFailure> {
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    anstream::eprint!("add it? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().take(LONGEST_ANSWER).read_line(&mut answer);
    let unread =
        |error| CommandFailure::new(ExitStatus::Failed, "unreadable", "cannot read the answer", error, "use --yes");
    read.map_err(unread)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

/// Describes in lines what a new schedule will do and how much data it will use.
fn described(proposal: &ScheduleProposal) -> Vec<String> {
    let schedule = &proposal.schedule;
    let month = quantity::bytes(proposal.bytes_a_month);
    let run = quantity::bytes(schedule.expected_bytes);
    let mut lines = vec![
        headline(schedule),
        format!("data: about {run} a run, {} runs in 30 days: {month} a month", proposal.runs_a_month),
    ];
    if proposal.is_assumed {
        let assumed = quantity::rate(ASSUMED_BPS);
        lines.push(format!("no result shows how fast the line is, so {assumed} is assumed"));
    }
    let too_small = |limit: Option<u64>| limit.is_some_and(|limit| limit < schedule.expected_bytes);
    if too_small(schedule.budget.day_bytes) || too_small(schedule.budget.month_bytes) {
        lines.push("one run is expected to use more than the budget: no run starts while this is expected".to_owned());
    }
    lines
}

fn headline(schedule: &Schedule) -> String {
    let Schedule { name, when, zone, request, .. } = schedule;
    let mut line = format!("{name}: {when} ({zone})");
    if let Some(peer) = &request.peer {
        line += &format!(", against {peer}");
    }
    if let Some(hours) = schedule.quiet_hours {
        line += &format!(", not {hours}");
    }
    if !schedule.uplinks.is_empty() {
        line += &format!(", only over {}", schedule.uplinks.join(" or "));
    }
    line
}

/// Reads all schedules from the service, or from the store of this user.
async fn schedules(context: &Context) -> Result<Vec<ScheduleOverview>, CommandFailure> {
    match context.service().await? {
        Some(service) => service.get("/schedules").await,
        None => Ok(context.appliance()?.schedules().await?),
    }
}

async fn list(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all = schedules(context).await?;
    if json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no schedules yet: packetparamedic schedule add --name daily --every 1d");
    }
    for overview in &all {
        for line in listed(overview) {
            context.output.line(&line)?;
        }
    }
    Ok(ExitStatus::Done)
}

fn listed(overview: &ScheduleOverview) -> Vec<String> {
    let schedule = &overview.stored.schedule;
    let zone = &schedule.zone;
    let next = match overview.next_due {
        _ if !overview.stored.enabled => "disabled".to_owned(),
        Some(due) if schedule.spread.is_zero() => format!("next {}", shown(due, zone)),
        Some(due) => {
            format!("next {}, up to {} later", shown(due, zone), quantity::exact_duration(schedule.spread))
        }
        None => "never due again".to_owned(),
    };
    let last = match &overview.last_run {
        Some(run) => format!("last {}: {}", shown(run.decided_at, zone), outcome(run)),
        None => "has not run yet".to_owned(),
    };
    vec![headline(schedule), format!("  {next}"), format!("  {last}"), format!("  {}", data(overview))]
}

/// Describes how much data a schedule used today and this month, and what is left of its budget.
fn data(overview: &ScheduleOverview) -> String {
    let (used, left) = (overview.used, overview.left);
    let part = |period: &str, used: u64, limit: Option<u64>, left: Option<u64>| {
        let used = quantity::bytes(used);
        match (limit, left) {
            (Some(limit), Some(left)) => {
                format!("{period} {used} of {}, {} left", quantity::bytes(limit), quantity::bytes(left))
            }
            _ => format!("{period} {used}"),
        }
    };
    let budget = overview.stored.schedule.budget;
    let day = part("today", used.day_bytes, budget.day_bytes, left.day_bytes);
    let month = part("this month", used.month_bytes, budget.month_bytes, left.month_bytes);
    format!("data {day}; {month}")
}

/// Describes the outcome of a run of a schedule.
fn outcome(run: &ScheduleRun) -> String {
    let reason = run.reason.as_deref();
    match run.outcome {
        ScheduleRunOutcome::Running => "running".to_owned(),
        ScheduleRunOutcome::Skipped => {
            let reason =
                reason.map(|word| SkipReason::from_word(word).map_or(word.to_owned(), |known| known.to_string()));
            format!("skipped: {}", reason.unwrap_or_default())
        }
        ScheduleRunOutcome::Done => format!("done, {}", quantity::bytes(run.data_used_bytes)),
        ScheduleRunOutcome::Failed => format!("failed: {}", reason.unwrap_or("for an unknown reason")),
        ScheduleRunOutcome::Interrupted => "interrupted".to_owned(),
    }
}

async fn next(name: Option<&str>, count: usize, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all = match (name, context.service().await?) {
        (Some(name), Some(service)) => vec![service.get(&ServiceClient::schedule_route(name, "")).await?],
        (Some(name), None) => vec![context.appliance()?.schedule(name).await?],
        (None, _) => schedules(context).await?,
    };
    let mut times = all
        .iter()
        .filter(|overview| overview.stored.enabled)
        .flat_map(|overview| {
            let frame = overview.stored.schedule.frame(overview.stored.added_at);
            let after = |due: &Timestamp| overview.stored.schedule.when.next_after(*due, &frame);
            let times = std::iter::successors(after(&now()), after).take(count);
            times.map(|due| (due, overview)).collect::<Vec<_>>()
        })
        .collect::<Vec<_>>();
    times.sort_by_key(|(due, _)| *due);
    if json {
        let rows = times.iter().map(|(due, overview)| {
            let schedule = &overview.stored.schedule;
            let is_quiet = schedule.quiet_hours.is_some_and(|hours| hours.contain(*due, schedule.zone.rules()));
            json!({ "schedule": schedule.name, "due": due, "is_quiet": is_quiet })
        });
        context.output.json_line(&rows.collect::<Vec<_>>())?;
        return Ok(ExitStatus::Done);
    }
    for (due, overview) in times {
        let schedule = &overview.stored.schedule;
        let is_quiet = schedule.quiet_hours.is_some_and(|hours| hours.contain(due, schedule.zone.rules()));
        let note = if is_quiet { "  (quiet hours)" } else { "" };
        context.output.line(&format!("{}  {}{note}", shown(due, &schedule.zone), schedule.name))?;
    }
    Ok(ExitStatus::Done)
}

/// Formats a time in the time zone `zone`, to the minute.
fn shown(time: Timestamp, zone: &Zone) -> String {
    time.to_zoned(zone.rules().clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the command")]
fn now() -> Timestamp {
    Timestamp::now()
}
