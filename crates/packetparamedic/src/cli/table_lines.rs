//! Prints an exported table line by line, from the service or from the store of this user.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::store::{ExportLines, TableFormat, TimeRange};

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::moment::Moment;
use crate::web::table_exports::{RequestedTable, TableRequest};

/// The format of an exported table, as a value of `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TableKind {
    Jsonl,
    Csv,
}

pub(super) async fn print(
    table: RequestedTable,
    since: Option<Moment>,
    until: Option<Moment>,
    kind: TableKind,
    context: &Context,
) -> Result<ExitStatus, CommandFailure> {
    let (now, zone) = (now(), TimeZone::system());
    let resolve = |moment: Option<Moment>| moment.map(|moment| moment.resolve(now, &zone));
    let range = TimeRange { since: resolve(since), until: resolve(until) };
    let format = match kind {
        TableKind::Jsonl => TableFormat::JsonLines,
        TableKind::Csv => TableFormat::Csv,
    };
    let request = TableRequest { table, range, format };
    match context.service().await? {
        Some(service) => {
            let mut lines = service.lines(&request.route()).await?;
            while let Some(lines) = lines.next_lines().await? {
                context.output.line(&lines.join("\n"))?;
            }
        }
        None => {
            let mut export = request.open(context.appliance()?).await?;
            while let Some(lines) = export.next_lines().await? {
                context.output.line(&lines.join("\n"))?;
            }
        }
    }
    Ok(ExitStatus::Done)
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the command")]
fn now() -> Timestamp {
    Timestamp::now()
}
