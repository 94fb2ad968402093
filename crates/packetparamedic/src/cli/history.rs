//! `history`: the saved results: list, show, plot, export.

use std::path::PathBuf;

use paramedic_appliance::store::{ExportFormat, StorageError};
use paramedic_report::document::ResultDocument;
use paramedic_report::text;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::plot_file::{self, PlotFile};
use crate::web::client::ServiceClient;

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
    /// List runs, newest first (the default)
    List {
        /// At most this many
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: u32,
    },
    /// Show a run as it was printed
    Show {
        /// Its id, or the beginning or end of it
        id: String,
    },
    /// Plot a run that was saved with its intervals, as SVG
    Plot {
        /// Its id, or the beginning or end of it
        id: String,
        /// The file [default: standard output]
        file: Option<PathBuf>,
    },
    /// Print all runs, oldest first
    Export {
        /// JSON documents, one a line, or a table
        #[arg(long, value_enum, default_value_t = Kind::Jsonl)]
        format: Kind,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Jsonl,
    Csv,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    match args.command.unwrap_or(Command::List { limit: 20 }) {
        Command::List { limit } => {
            let runs = match context.service().await? {
                // The service answers with at most 1000.
                Some(service) if (1..=1000).contains(&limit) => service.get(&format!("/results?limit={limit}")).await?,
                _ => context.appliance()?.results(limit).await?,
            };
            if args.json {
                context.output.line(&json!(runs).to_string())?;
            } else if runs.is_empty() {
                context.output.note("no results yet: run `packetparamedic speed-test`");
            } else {
                for line in text::list(&runs) {
                    context.output.line(&line)?;
                }
            }
        }
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
        Command::Export { format } => {
            let format = match format {
                Kind::Jsonl => ExportFormat::JsonLines,
                Kind::Csv => ExportFormat::Csv,
            };
            context.appliance()?.export::<CommandFailure>(format, |line| context.output.line(line)).await?;
        }
    }
    Ok(ExitStatus::Done)
}

/// The saved document of a run, as it was printed: the service's, or that of this user.
async fn result_text(id: &str, context: &Context) -> Result<String, CommandFailure> {
    Ok(match context.service().await? {
        Some(service) => service.get_text(&ServiceClient::result_route(id)).await?,
        None => context.appliance()?.result(id).await?.text,
    })
}

fn document(text: &str) -> Result<ResultDocument, CommandFailure> {
    Ok(serde_json::from_str(text).map_err(|source| StorageError::Document { source })?)
}
