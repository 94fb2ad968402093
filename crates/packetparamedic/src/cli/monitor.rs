//! `monitor` and `outages`: manage what the service probes continuously, and list when targets were not reachable.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{MonitorActivity, MonitorCondition, MonitorOverview, MonitorSeries, SeriesRange};
use paramedic_appliance::monitor::outage::OutageScope;
use paramedic_appliance::monitor::series::{Resolution, SeriesPoint};
use paramedic_appliance::store::{StoredMonitor, StoredOutage};
use paramedic_report::quantity;
use serde_json::json;

use super::failure::{CommandFailure, ExitStatus};
use super::moment::{Moment, moment};
use super::object_args::ObjectArgs;
use super::table_lines::TableKind;
use super::values::time;
use super::{Context, table_lines};
use crate::web::monitors::{NewMonitor, monitor_route, outages_route, series_route};
use crate::web::table_exports::RequestedTable;

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the monitors, each with its state, and with its latency and loss in the last 15 minutes; the default
    /// subcommand
    List,
    /// Add a monitor; the service begins to probe at once
    Add {
        /// What to probe: gateway, reflector:NAME, host:ADDRESS, dns:RESOLVER/NAME or an http or https URL
        target: String,
        /// The name of the monitor: letters, digits, dots, dashes and underscores [default: made from the target]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The time between two probes: 200ms to 1m for a reflector, 10s to 1m for dns and URLs, 1s to 1m for others
        /// [default: 1s; for dns 30s, for URLs 1m]
        #[arg(long, value_name = "TIME", value_parser = time)]
        interval: Option<Duration>,
    },
    /// Remove a monitor; the service does not add it again
    Remove {
        /// The name of the monitor
        name: String,
    },
    /// Enable a monitor again, so that it probes
    Enable {
        /// The name of the monitor
        name: String,
    },
    /// Disable a monitor: it does not probe, but its measurements stay saved
    Disable {
        /// The name of the monitor
        name: String,
    },
    /// Print latency and loss of a monitor over time
    Show {
        /// The name of the monitor
        name: String,
        /// How far to look back, such as 2h or 7d
        #[arg(long, value_name = "TIME", value_parser = time, default_value = "24h")]
        last: Duration,
        /// The time that each printed line covers, at least 1m [default: 1/24 of --last]
        #[arg(long, value_name = "TIME", value_parser = time)]
        step: Option<Duration>,
    },
    /// Print what a monitor measured, oldest first
    Export {
        /// The name of the monitor
        name: String,
        /// What each row covers: a minute (kept for 14 days), an hour (kept for 400 days) or a day (kept for ever)
        #[arg(long, value_enum, default_value_t = RowLength::Minutes)]
        resolution: RowLength,
        /// Output format: JSON objects, one per line (jsonl), or a table (csv)
        #[arg(long, value_enum, default_value_t = TableKind::Jsonl)]
        format: TableKind,
        /// Only rows that begin at or after TIME, such as 7d (ago), 2026-01-31 or "2026-01-31 12:00"
        #[arg(long, value_name = "TIME", value_parser = moment)]
        since: Option<Moment>,
        /// Only rows that begin before TIME
        #[arg(long, value_name = "TIME", value_parser = moment)]
        until: Option<Moment>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum RowLength {
    Minutes,
    Hours,
    Days,
}

impl From<RowLength> for Resolution {
    fn from(length: RowLength) -> Self {
        match length {
            RowLength::Minutes => Self::Minutes,
            RowLength::Hours => Self::Hours,
            RowLength::Days => Self::Days,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct OutagesArgs {
    /// List at most this many outages
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print all outages from --since until --until, oldest first: as JSON objects (one per line) or as a table
    #[arg(long, value_enum, conflicts_with_all = ["json", "limit"])]
    format: Option<TableKind>,
    /// Only outages that began since TIME, such as 7d (ago), 2026-01-31 or "2026-01-31 12:00"
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "format")]
    since: Option<Moment>,
    /// Only outages that began before TIME
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "format")]
    until: Option<Moment>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => list(json, context).await,
        Command::Add { target, name, interval } => {
            let interval_ms = interval.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            add(&NewMonitor { name, target, interval_ms }, json, context).await
        }
        Command::Remove { name } => {
            let removed: StoredMonitor = match context.service().await? {
                Some(service) => service.delete(&monitor_route(&name, "")).await?,
                None => context.appliance()?.remove_monitor(&name).await?,
            };
            say(json, "removed", &removed, context)
        }
        Command::Enable { name } => enable(&name, true, json, context).await,
        Command::Disable { name } => enable(&name, false, json, context).await,
        Command::Show { name, last, step } => show(&name, last, step, json, context).await,
        Command::Export { name, resolution, format, since, until } => {
            let table = RequestedTable::Monitor { name, resolution: resolution.into() };
            table_lines::print(table, since, until, format, context).await
        }
    }
}

async fn add(new: &NewMonitor, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let monitor = new.monitor().and_then(|monitor| monitor.check().map(|()| monitor)).map_err(ApplianceError::from)?;
    let service = context.service().await?;
    let added: StoredMonitor = match &service {
        Some(service) => service.post("/monitors", new).await?,
        None => context.appliance()?.add_monitor(monitor).await?,
    };
    say(json, "added", &added, context)?;
    if !json {
        let month = quantity::bytes(added.monitor.bytes_a_month());
        context.output.line(&format!("data: about {month} a month"))?;
    }
    if service.is_none() {
        context.output.note("it runs only while the service runs: start the service with `packetparamedic serve`");
    }
    Ok(ExitStatus::Done)
}

async fn enable(name: &str, enabled: bool, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let (event, action) = if enabled { ("enabled", "/enable") } else { ("disabled", "/disable") };
    let stored: StoredMonitor = match context.service().await? {
        Some(service) => service.post(&monitor_route(name, action), &()).await?,
        None => context.appliance()?.enable_monitor(name, enabled).await?,
    };
    say(json, event, &stored, context)
}

/// Prints that `event`, such as `enabled`, happened to the monitor `stored`.
fn say(json: bool, event: &str, stored: &StoredMonitor, context: &Context) -> Result<ExitStatus, CommandFailure> {
    if json {
        context.output.json_line(&json!({ "event": event, "monitor": stored }))?;
    } else {
        context.output.line(&format!("{event}: {}", stored.monitor.name))?;
    }
    Ok(ExitStatus::Done)
}

async fn list(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<MonitorOverview> = match context.service().await? {
        Some(service) => service.get("/monitors").await?,
        None => context.appliance()?.monitors().await?,
    };
    if json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no monitors yet: the service adds them at its first start (packetparamedic serve)");
    }
    for overview in &all {
        for line in listed(overview) {
            context.output.line(&line)?;
        }
    }
    Ok(ExitStatus::Done)
}

fn listed(overview: &MonitorOverview) -> Vec<String> {
    let monitor = &overview.stored.monitor;
    let every = quantity::exact_duration(monitor.interval());
    let month = quantity::bytes(overview.bytes_a_month);
    let state = match &overview.condition {
        Some(condition) => described(condition),
        None if !overview.stored.enabled => "disabled".to_owned(),
        None => "no service runs".to_owned(),
    };
    vec![
        format!("{}: {} every {every}, about {month} a month", monitor.name, monitor.target),
        format!("  {state}"),
        format!("  last 15 minutes: {}", summary(&overview.recent)),
    ]
}

/// Describes what a monitor does at present, and since when.
pub(super) fn described(condition: &MonitorCondition) -> String {
    let since = shown(condition.since);
    match condition.activity {
        MonitorActivity::Running => format!("running since {since}"),
        MonitorActivity::Unreachable => format!("not reachable since {since}"),
        MonitorActivity::Paused => {
            let reason = condition.reason.map_or("", |reason| reason.as_str());
            format!("paused since {since}: {reason}")
        }
    }
}

fn summary(point: &SeriesPoint) -> String {
    if point.count == 0 {
        return "no probes".to_owned();
    }
    let lost = format!("{} of {} probes lost", point.lost, point.count);
    let loaded = match point.under_load {
        0 => String::new(),
        count => format!(", {count} beside a test"),
    };
    match (point.p50_us, point.p95_us, point.max_us) {
        (Some(p50), Some(p95), Some(max)) => {
            format!("{} p50, {} p95, {} max, {lost}{loaded}", ms(p50), ms(p95), ms(max))
        }
        _ => format!("{lost}{loaded}"),
    }
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

async fn show(
    name: &str,
    last: Duration,
    step: Option<Duration>,
    json: bool,
    context: &Context,
) -> Result<ExitStatus, CommandFailure> {
    let step = step.unwrap_or(last / 24).max(Duration::from_secs(60));
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let to = now();
    let from = Timestamp::from_second(to.as_second().saturating_sub(seconds(last))).unwrap_or(Timestamp::UNIX_EPOCH);
    let range = SeriesRange { from: Some(from), to: None, step_s: Some(seconds(step).min(366 * 86_400)) };
    let series: MonitorSeries = match context.service().await? {
        Some(service) => service.get(&series_route(name, range)).await?,
        None => context.appliance()?.monitor_series(name, range).await?,
    };
    if json {
        context.output.json_line(&series)?;
        return Ok(ExitStatus::Done);
    }
    if series.points.is_empty() {
        context.output.note("nothing was measured in this time; the current minute is not shown");
    }
    for point in &series.points {
        let at = Timestamp::from_second(point.at_s).unwrap_or(Timestamp::UNIX_EPOCH);
        context.output.line(&format!("{}  {}", shown(at), summary(point)))?;
    }
    Ok(ExitStatus::Done)
}

pub(super) async fn outages(args: OutagesArgs, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    if let Some(format) = args.format {
        return table_lines::print(RequestedTable::Outages, args.since, args.until, format, context).await;
    }
    let all: Vec<StoredOutage> = match context.service().await? {
        Some(service) => service.get(&outages_route(args.limit)).await?,
        None => context.appliance()?.outages(None, args.limit.clamp(1, 1000)).await?,
    };
    if args.json {
        context.output.json_line(&all)?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("no outages");
    }
    for outage in &all {
        context.output.line(&outage_line(outage))?;
    }
    Ok(ExitStatus::Done)
}

fn outage_line(outage: &StoredOutage) -> String {
    let length = match (outage.ended_at, outage.end_known) {
        (None, _) => "still lasts".to_owned(),
        (Some(ended), is_known) => {
            let seconds = ended.as_second().saturating_sub(outage.began_at.as_second());
            let length = quantity::exact_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
            if is_known { length } else { format!("at least {length}; the service ended meanwhile") }
        }
    };
    let names = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let scope = match outage.scope {
        OutageScope::Everything => "nothing was reachable".to_owned(),
        OutageScope::BeyondGateway => "only the gateway was reachable".to_owned(),
        OutageScope::Target | OutageScope::Gateway => format!("still reachable: {}", names(&outage.reachable)),
        OutageScope::Unknown => "nothing else was probed".to_owned(),
    };
    format!("{}  {length}  not reachable: {}; {scope}", shown(outage.began_at), names(&outage.failed))
}

/// Formats a time in the time zone of this host.
fn shown(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the command")]
fn now() -> Timestamp {
    Timestamp::now()
}
