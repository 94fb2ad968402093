//! `apply` and `export-config`: read and write a configuration file. The file contains the names of the reflectors, and
//! the schedules, monitors, plan, channels and rules. Its keys have the names of command-line options.

mod file;
mod options;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use paramedic_appliance::app::{ApplyMode, ChangeAction, ConfigurationChange, DeviceConfiguration, ValueChange};
use serde_json::{Value, json};

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web::configuration::ApplyRequest;

/// The maximum length of a configuration file that `apply` reads, in bytes.
const LONGEST_FILE: u64 = 256 * 1024;

#[derive(clap::Args)]
pub(super) struct ApplyArgs {
    /// The file to apply; - reads standard input
    file: PathBuf,
    /// Print the differences, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) async fn apply(args: ApplyArgs, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let text = read(&args.file).map_err(|error| {
        let what = format!("cannot read {}", args.file.display());
        CommandFailure::new(ExitStatus::Usage, "unreadable", what, error, "name a file that this user can read")
    })?;
    let configuration = file::parse(&text, &file::read_secret).map_err(|fault| {
        let because = format!("{}:{}: {}", args.file.display(), fault.line, fault.problem);
        let try_ = "fix that line; `packetparamedic export-config` prints a valid file";
        CommandFailure::new(ExitStatus::Usage, "bad_file", "the file is not applied", because, try_)
    })?;
    let changes: Vec<ConfigurationChange> = match context.service().await? {
        Some(service) => {
            let request = ApplyRequest { dry_run: args.dry_run, configuration };
            service.post("/configuration", &request).await?
        }
        None => {
            // The store belongs to this user, so the file may also change command channels.
            let mode = ApplyMode { is_rehearsal: args.dry_run, may_change_commands: true };
            context.appliance()?.apply_configuration(configuration, mode).await?
        }
    };
    if args.json {
        context.output.json_line(&json!({ "event": "applied", "dry_run": args.dry_run, "changes": changes }))?;
        return Ok(ExitStatus::Done);
    }
    for line in changes.iter().flat_map(described) {
        context.output.line(&line)?;
    }
    if changes.is_empty() {
        context.output.note("no difference");
    }
    Ok(ExitStatus::Done)
}

pub(super) async fn export(context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let configuration: DeviceConfiguration = match context.service().await? {
        Some(service) => service.get("/configuration").await?,
        None => context.appliance()?.configuration().await?,
    };
    context.output.script(file::print(&configuration).as_bytes())?;
    Ok(ExitStatus::Done)
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => io::stdin().lock().take(LONGEST_FILE + 1).read_to_string(&mut text)?,
        _ => File::open(file)?.take(LONGEST_FILE + 1).read_to_string(&mut text)?,
    };
    if read as u64 > LONGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file has more than 256 KiB"));
    }
    Ok(text)
}

/// Describes a change of the configuration in lines: the object, then each changed value.
fn described(change: &ConfigurationChange) -> Vec<String> {
    let ConfigurationChange { object, name, action, values } = change;
    let sign = match action {
        ChangeAction::Added => '+',
        ChangeAction::Changed => '~',
        ChangeAction::Removed => '-',
    };
    let value = |ValueChange { value, from, to }: &ValueChange| {
        format!("    {value}: {} -> {}", shown(from.as_ref()), shown(to.as_ref()))
    };
    let head = format!("{sign} {object} {name}: {}", action.as_str());
    [head].into_iter().chain(values.iter().map(value)).collect()
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
