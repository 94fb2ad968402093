//! `history`: the saved results: list, show, plot, export, import, delete, prune.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_appliance::app::OldStore;
use paramedic_appliance::store::{Export, ExportFormat, Pruned, Retention, RunOrder, RunQuery, SavedRun, StorageError};
use paramedic_report::document::ResultDocument;
use paramedic_report::summary::RunSummary;
use paramedic_report::{quantity, text};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::moment::{Moment, moment};
use super::object_args::ObjectArgs;
use super::plot_file::{self, PlotFile};
use super::values::days;
use crate::web::client::{LineReader, ServiceClient};
use crate::web::results::{DeletionRequest, ImportAnswer, PruneRequest, export_route};

/// The maximum number of results that `history list` prints if the user gives no period and no limit.
const SHORT_LIST: u32 = 20;

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List runs, newest first; the default subcommand
    List(ListArgs),
    /// Print the report of a saved run, as speed-test prints it
    Show {
        /// The id of the run, or the beginning or end of the id
        id: String,
    },
    /// Plot a run as SVG; the run must have been measured with --intervals or --plot
    Plot {
        /// The id of the run, or the beginning or end of the id
        id: String,
        /// The SVG file to write [default: standard output]
        file: Option<PathBuf>,
    },
    /// Print runs with all of their measurements, oldest first
    Export {
        #[command(flatten)]
        selection: Selection,
        /// Output format: JSON documents, one per line (jsonl), or a table (csv)
        #[arg(long, value_enum, default_value_t = Kind::Jsonl)]
        format: Kind,
    },
    /// Import the runs of an older store of this machine; the older store is not changed
    Import {
        /// The state folder of the older store
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// Delete runs; if one of them is not found, none is deleted
    Delete {
        /// The ids of the runs, or the beginnings or ends of the ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Delete old runs
    Prune {
        /// Delete runs that began more than TIME ago, such as 90d; TIME is at least 1d
        #[arg(long, value_name = "TIME", value_parser = days)]
        older_than: Duration,
        /// Only count the runs that would be deleted, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(clap::Args, Default)]
pub(super) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// List at most this many runs [default: 20; with --since or --until: all]
    #[arg(short = 'n', long)]
    limit: Option<u32>,
    /// Output format: text, json (one document), csv (a table), jsonl (one document per line) [default: text]
    #[arg(long, value_enum)]
    format: Option<ListFormat>,
}

/// Selects stored runs by time, peer and engine. An absent flag excludes nothing.
#[derive(clap::Args, Default)]
pub(super) struct Selection {
    /// Only runs that began since TIME, such as 7d (ago), 2026-01-31 or "2026-01-31 12:00"
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Only runs that began before TIME
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Only runs against this reflector or server: its name, address or Endpoint ID
    #[arg(long, value_name = "HOST[:PORT]|NAME")]
    peer: Option<String>,
    /// Only runs of this engine: tcp, udp, iperf3 or echo
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Kind {
    Jsonl,
    Csv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ListFormat {
    Text,
    Json,
    Csv,
    Jsonl,
}

/// Exported results, line by line: from the store of this user, or from the service.
enum ResultLines {
    Here(Box<Export>),
    AtService(Box<LineReader>),
}

impl Selection {
    fn query(self, order: RunOrder, limit: Option<u32>) -> RunQuery {
        let (now, zone) = (now(), TimeZone::system());
        let resolve = |moment: Option<Moment>| moment.map(|moment| moment.resolve(now, &zone));
        RunQuery {
            since: resolve(self.since),
            until: resolve(self.until),
            peer: self.peer,
            engine: self.engine,
            order,
            limit,
        }
    }
}

impl ResultLines {
    async fn of(query: RunQuery, format: ExportFormat, context: &Context) -> Result<Self, CommandFailure> {
        Ok(match context.service().await? {
            Some(service) => Self::AtService(Box::new(service.lines(&export_route(&query, format)).await?)),
            None => Self::Here(Box::new(context.appliance()?.export(query, format).await?)),
        })
    }

    /// Returns the next lines of the export; `None` at its end.
    async fn next(&mut self) -> Result<Option<Vec<String>>, CommandFailure> {
        match self {
            Self::Here(export) => Ok(export.next_lines().await?),
            Self::AtService(lines) => lines.next_lines().await,
        }
    }
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    match args.command.unwrap_or_else(|| Command::List(ListArgs::default())) {
        Command::List(list_args) => list(list_args, args.json, context).await?,
        Command::Show { id } => {
            let text = result_text(&id, context).await?;
            if args.json {
                context.output.line(&text)?;
            } else {
                context.output.report(&document(&text)?)?;
            }
        }
        Command::Plot { id, file } => {
            let document = document(&result_text(&id, context).await?)?;
            match file {
                Some(file) => PlotFile::create(file)?.write(&document)?,
                None => context.output.script(plot_file::svg(&document)?.as_bytes())?,
            }
        }
        Command::Export { selection, format } => {
            let format = match format {
                Kind::Jsonl => ExportFormat::JsonLines,
                Kind::Csv => ExportFormat::Csv,
            };
            let query = selection.query(RunOrder::OldestFirst, None);
            let mut lines = ResultLines::of(query, format, context).await?;
            while let Some(lines) = lines.next().await? {
                context.output.line(&lines.join("\n"))?;
            }
        }
        Command::Import { from } => import(&from, args.json, context).await?,
        Command::Delete { ids } => delete(ids, args.json, context).await?,
        Command::Prune { older_than, dry_run } => prune(older_than, dry_run, args.json, context).await?,
    }
    Ok(ExitStatus::Done)
}

async fn list(args: ListArgs, json: bool, context: &Context) -> Result<(), CommandFailure> {
    let ListArgs { selection, limit, format } = args;
    let has_period = selection.since.is_some() || selection.until.is_some();
    let limit = limit.or((!has_period).then_some(SHORT_LIST));
    let format = format.unwrap_or(if json { ListFormat::Json } else { ListFormat::Text });
    let is_everything = !has_period && selection.peer.is_none() && selection.engine.is_none();
    let query = selection.query(RunOrder::NewestFirst, limit);
    let stored = if format == ListFormat::Csv { ExportFormat::Csv } else { ExportFormat::Summaries };
    let mut lines = ResultLines::of(query, stored, context).await?;
    let mut is_first = true;
    while let Some(lines) = lines.next().await? {
        match format {
            ListFormat::Csv | ListFormat::Jsonl => context.output.line(&lines.join("\n"))?,
            ListFormat::Json => {
                let begin = if is_first { "[" } else { "," };
                context.output.script(format!("{begin}{}", lines.join(",")).as_bytes())?;
            }
            ListFormat::Text => {
                let header = is_first.then(text::list_header).into_iter().map(Ok);
                let rows = lines.iter().map(|line| Ok(text::list_line(&summary(line)?)));
                let rows = header.chain(rows).collect::<Result<Vec<_>, CommandFailure>>()?;
                context.output.line(&rows.join("\n"))?;
            }
        }
        is_first = false;
    }
    match (format, is_first) {
        (ListFormat::Json, true) => context.output.line("[]"),
        (ListFormat::Json, false) => context.output.line("]"),
        (ListFormat::Text, true) if is_everything => {
            context.output.note("no results yet: run `packetparamedic speed-test`");
            Ok(())
        }
        (ListFormat::Text, true) => {
            context.output.note("no results match these options");
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn import(from: &Path, json: bool, context: &Context) -> Result<(), CommandFailure> {
    let old = OldStore::open(from).await?;
    let service = context.service().await?;
    let (mut new, mut known, mut unreadable) = (0_u64, 0_u64, Vec::new());
    let mut last: Option<SavedRun> = None;
    loop {
        let page = old.results_after(last.as_ref()).await?;
        for run in &page {
            // One unreadable result must not prevent the import of the others.
            if run.document().is_err() {
                unreadable.push(run.id);
                continue;
            }
            let is_new = match &service {
                Some(service) => {
                    let route = ServiceClient::result_route(&run.id.to_string());
                    service.put::<ImportAnswer>(&route, run.text.clone()).await?.is_new
                }
                None => context.appliance()?.import_result(&run.text).await?,
            };
            *(if is_new { &mut new } else { &mut known }) += 1;
        }
        last = match page.into_iter().last() {
            Some(run) => Some(run),
            None => break,
        };
    }
    if json {
        let document = json!({ "event": "imported", "results": new, "known": known, "unreadable": unreadable });
        return context.output.json_line(&document);
    }
    if !unreadable.is_empty() {
        let ids = unreadable.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ");
        context.output.note(&format!("these results cannot be read, and are not imported: {ids}"));
    }
    context.output.line(&format!("results imported: {new}; already here: {known}"))
}

async fn delete(ids: Vec<String>, json: bool, context: &Context) -> Result<(), CommandFailure> {
    let deleted: Vec<Uuid> = match context.service().await? {
        Some(service) => {
            let answer: Value = service.post("/results/deletions", &DeletionRequest { ids }).await?;
            serde_json::from_value(answer["deleted"].clone()).unwrap_or_default()
        }
        None => context.appliance()?.delete_results(&ids).await?,
    };
    if json {
        return context.output.json_line(&json!({ "event": "deleted", "results": deleted }));
    }
    deleted.iter().try_for_each(|id| context.output.line(&format!("deleted: {id}")))
}

async fn prune(older_than: Duration, dry_run: bool, json: bool, context: &Context) -> Result<(), CommandFailure> {
    let pruned: Pruned = match context.service().await? {
        Some(service) => {
            let request = PruneRequest { older_than_s: older_than.as_secs(), dry_run };
            service.post("/results/prune", &request).await?
        }
        None => {
            let retention = Retention { results: Some(older_than), ..Retention::FOREVER };
            context.appliance()?.prune(&retention, dry_run).await?
        }
    };
    if json {
        return context.output.json_line(&json!({ "event": "pruned", "results": pruned.results, "dry_run": dry_run }));
    }
    let verb = if dry_run { "to delete" } else { "deleted" };
    let age = quantity::exact_duration(older_than);
    context.output.line(&format!("results older than {age} {verb}: {}", pruned.results))
}

/// Reads the saved document of a run, unchanged, from the service or from the store of this user.
async fn result_text(id: &str, context: &Context) -> Result<String, CommandFailure> {
    Ok(match context.service().await? {
        Some(service) => service.get_text(&ServiceClient::result_route(id)).await?,
        None => context.appliance()?.result(id).await?.text,
    })
}

fn document(text: &str) -> Result<ResultDocument, CommandFailure> {
    Ok(serde_json::from_str(text).map_err(|source| StorageError::Document { source })?)
}

fn summary(line: &str) -> Result<RunSummary, CommandFailure> {
    Ok(serde_json::from_str(line).map_err(|source| StorageError::Document { source })?)
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the command")]
fn now() -> Timestamp {
    Timestamp::now()
}
