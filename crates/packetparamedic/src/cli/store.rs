//! `store`: the database of pairings, results and schedules: backup, check, prune.

use std::path::PathBuf;

use paramedic_appliance::app::BackupFile;
use paramedic_appliance::store::{Pruned, Retention, StoreCheck};
use paramedic_report::quantity;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web::store::StorePruneRequest;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a consistent copy of the database into a new file, also while the service runs
    Backup {
        /// The file to create
        file: PathBuf,
    },
    /// Check every page and every row of the database; exit code 1 if something is wrong
    Check,
    /// Delete the results and the interval measurements that are older than the settings keep_results and
    /// keep_intervals allow; the service does this once a day
    Prune {
        /// Only count what is too old, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    match args.command {
        Command::Backup { file } => backup(file, args.json, context).await,
        Command::Check => check(args.json, context).await,
        Command::Prune { dry_run } => prune(dry_run, args.json, context).await,
    }
}

async fn backup(file: PathBuf, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let mut backup = BackupFile::create(&file)?;
    match context.service().await? {
        Some(service) => {
            let mut copy = service.chunks("/store/backup").await?;
            while let Some(chunk) = copy.next().await? {
                backup.write(&chunk)?;
            }
        }
        None => context.appliance()?.back_up(&backup).await?,
    }
    let written = backup.finish().await?;
    if json {
        context.output.json_line(&written)?;
    } else {
        context.output.line(&format!(
            "{}: {}, {}",
            written.path,
            quantity::bytes(written.bytes),
            contents(&written)
        ))?;
        context.output.note("the key of this device is not in the backup: keep a copy of identity.key, too");
    }
    Ok(ExitStatus::Done)
}

async fn check(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let check: StoreCheck = match context.service().await? {
        Some(service) => service.get_slow("/store/check").await?,
        None => context.appliance()?.check_store().await?,
    };
    let is_whole = check.problems.is_empty() && check.unreadable.is_empty();
    if json {
        context.output.json_line(&check)?;
        return Ok(if is_whole { ExitStatus::Done } else { ExitStatus::Failed });
    }
    if !check.problems.is_empty() {
        let rescue = "`packetparamedic history export` prints what can still be read";
        let try_ = match context.settings.database {
            Some(_) => format!("stop the service, and restore the database with pg_restore; {rescue}"),
            None => format!("stop the service, move {} away, and put a backup in its place; {rescue}", check.path),
        };
        let what = "the database is damaged";
        return Err(CommandFailure::new(ExitStatus::Failed, "history_corrupt", what, check.problems.join("; "), try_));
    }
    if let Some(first) = check.unreadable.first() {
        let because = format!("these results are not valid documents: {}", check.unreadable.join(", "));
        let try_ = format!(
            "`packetparamedic history show {first} --json` prints the first one as it is saved; `packetparamedic \
             history delete {first}` deletes it"
        );
        let what = "some saved results cannot be read";
        return Err(CommandFailure::new(ExitStatus::Failed, "history_unreadable", what, because, try_));
    }
    context.output.line(&format!("{}: whole, {}, {}", check.path, quantity::bytes(check.bytes), contents(&check)))?;
    if check.is_earlier {
        context.output.note("the database has an older format; the next command that writes upgrades it");
    }
    Ok(ExitStatus::Done)
}

fn contents(check: &StoreCheck) -> String {
    let StoreCheck { results, reflectors, schedules, .. } = check;
    format!("results {results}, reflectors {reflectors}, schedules {schedules}")
}

async fn prune(dry_run: bool, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let pruned: Pruned = match context.service().await? {
        Some(service) => service.post_slow("/store/prune", &StorePruneRequest { dry_run }).await?,
        None => {
            let retention: Retention = context.settings.retention;
            context.appliance()?.prune(&retention, dry_run).await?
        }
    };
    let Pruned { results, series, schedule_runs } = pruned;
    if json {
        let document = json!({
            "event": "pruned", "dry_run": dry_run, "results": results, "series": series, "schedule_runs": schedule_runs,
        });
        context.output.json_line(&document)?;
    } else {
        let verb = if dry_run { "to delete" } else { "deleted" };
        context.output.line(&format!("results {verb}: {results}; results whose intervals are {verb}: {series}"))?;
    }
    Ok(ExitStatus::Done)
}
