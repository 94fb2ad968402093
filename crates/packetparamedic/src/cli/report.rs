//! `report`: makes a report on the internet line, for the provider of the line. The report is a page to read and print,
//! or a table.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::moment::{Moment, moment};
use super::values::rate;
use crate::report_file::{ReportFormat, report_text};
use crate::web::client::ChunkReader;
use crate::web::report::{PlanRates, ReportQuery, ReportTime, report_route};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The start of the period, such as 7d (ago), 2026-01-31 or "2026-01-31 12:00" [default: 30 days before the end]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// The end of the period [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// The time zone of the report, such as Europe/Berlin [default: that of this host]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Output format: a page with the whole report (html), or a table with one row for each run (csv)
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    format: ReportFormat,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave names, addresses and Endpoint IDs out of the report
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    plan: PlanFlags,
}

/// The rates that the internet contract promises. In this report, they replace the rates of the stored plan.
#[derive(clap::Args)]
#[command(next_help_heading = "The contract [default: the plan that is set]")]
struct PlanFlags {
    /// The promised download rate in bits per second, such as 250M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    plan_down: Option<u64>,
    /// The promised upload rate in bits per second, such as 50M
    #[arg(long, value_name = "RATE", value_parser = rate)]
    plan_up: Option<u64>,
    /// The download rate that the contract calls normally available, in bits per second, such as 200M
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "plan_down")]
    normal_down: Option<u64>,
    /// The upload rate that the contract calls normally available, in bits per second, such as 40M
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "plan_up")]
    normal_up: Option<u64>,
    /// The download rate that the contract guarantees at all times, in bits per second, such as 150M
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "plan_down")]
    minimum_down: Option<u64>,
    /// The upload rate that the contract guarantees at all times, in bits per second, such as 30M
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "plan_up")]
    minimum_up: Option<u64>,
}

impl PlanFlags {
    fn rates(&self) -> PlanRates {
        PlanRates {
            promised: [self.plan_down, self.plan_up],
            normal: [self.normal_down, self.normal_up],
            minimum: [self.minimum_down, self.minimum_up],
        }
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let (now, here) = (now(), TimeZone::system());
    let resolve = |moment: Option<Moment>| moment.map(|moment| ReportTime::At(moment.resolve(now, &here)));
    let query = ReportQuery {
        since: resolve(args.since),
        until: resolve(args.until),
        // The service may run in another time zone than this command.
        zone: args.zone.or_else(|| here.iana_name().map(str::to_owned)),
        format: args.format,
        is_redacted: args.redact,
        plan: args.plan.rates(),
    };
    let text = match context.service().await? {
        Some(service) => whole(&mut service.chunks(&report_route(&query)).await?).await?,
        None => {
            let request = query.request().map_err(invalid)?;
            let report = context.appliance()?.line_report(request).await?;
            report_text(&report, args.format).map_err(invalid)?.into_bytes()
        }
    };
    match args.output {
        None => context.output.script(&text)?,
        Some(file) => {
            fs::write(&file, text).map_err(|error| {
                let what = format!("cannot write the report {}", file.display());
                let try_ = "name a file in a folder that you can write to";
                CommandFailure::new(ExitStatus::Usage, "cannot_write_report", what, error, try_)
            })?;
            context.output.note(&format!("written: {}", file.display()));
        }
    }
    Ok(ExitStatus::Done)
}

/// Reads a whole answer of the service. Has no timeout, because a report on a long period takes time.
async fn whole(chunks: &mut ChunkReader) -> Result<Vec<u8>, CommandFailure> {
    let mut whole = Vec::new();
    while let Some(chunk) = chunks.next().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

fn invalid(because: impl std::fmt::Display) -> CommandFailure {
    let try_ = "run `packetparamedic report --help` to see the valid values";
    CommandFailure::new(ExitStatus::Usage, "bad_request", "cannot make the report", because, try_)
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the command")]
fn now() -> Timestamp {
    Timestamp::now()
}
