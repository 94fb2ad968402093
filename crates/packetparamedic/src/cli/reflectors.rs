//! `reflectors`: the pairings of this device: list, check, rename, remove.

use std::time::Duration;

use paramedic_appliance::app::Reached;
use paramedic_appliance::store::Reflector;
use paramedic_link::PeerText;
use serde_json::{Value, json};

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web::reflectors::ListedReflector;

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
    /// List the paired reflectors (the default)
    List,
    /// Connect to each reflector, or to one, and check address, key and answer; without load
    Check {
        /// Name, address or Endpoint ID of the reflector
        reflector: Option<String>,
    },
    /// Rename a reflector on this device
    Rename {
        /// Name, address or Endpoint ID of the reflector
        reflector: String,
        /// The new name
        name: String,
    },
    /// Remove a reflector from this device; `reflector peers remove` removes this device there
    Remove {
        /// Name, address or Endpoint ID of the reflector
        reflector: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    match args.command.unwrap_or(Command::List) {
        Command::List => {
            let all: Vec<Value> = match context.service().await? {
                Some(service) => service.get("/reflectors").await?,
                None => context
                    .appliance()?
                    .reflectors()
                    .await?
                    .iter()
                    .map(|one| json!(ListedReflector::from(one)))
                    .collect(),
            };
            if args.json {
                context.output.line(&json!(all).to_string())?;
                return Ok(ExitStatus::Done);
            }
            if all.is_empty() {
                context
                    .output
                    .note("none yet: run `reflector pair` on a reflector, then `packetparamedic pair-reflector`");
            }
            for reflector in &all {
                let field = |name: &str| reflector[name].as_str().unwrap_or_default();
                context.output.line(&format!("{}  {}  {}", field("name"), field("address"), field("endpoint_id")))?;
            }
            Ok(ExitStatus::Done)
        }
        Command::Check { reflector } => {
            let chosen = context.appliance()?.reflectors_to_check(reflector.as_deref()).await?;
            check(&chosen, args.json, context).await
        }
        Command::Rename { reflector, name } => {
            let renamed = context.appliance()?.rename_reflector(&reflector, &PeerText::new(&name)).await?;
            context.output.line(&format!("its name is {} now", renamed.name))?;
            Ok(ExitStatus::Done)
        }
        Command::Remove { reflector } => {
            let removed = context.appliance()?.remove_reflector(&reflector).await?;
            context.output.line(&format!("forgot {}", removed.name))?;
            context.output.note("it still knows this device until `reflector peers remove` is run there");
            Ok(ExitStatus::Done)
        }
    }
}

/// Checks each reflector in turn. The first failure decides the exit code.
async fn check(chosen: &[Reflector], json: bool, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let mut first_failure = None;
    let mut rows = Vec::new();
    for reflector in chosen {
        let mut row = json!(ListedReflector::from(reflector));
        match context.appliance()?.check(reflector).await {
            Ok(Reached { address, version, took, segment_limit, .. }) => {
                if json {
                    row["reachable"] = true.into();
                    row["reached_at"] = address.to_string().into();
                    row["version"] = version.to_string().into();
                    row["link_ms"] = (took.as_secs_f64() * 1000.0).into();
                    if let Some(bytes) = segment_limit {
                        row["segment_limit_bytes"] = bytes.into();
                    }
                } else {
                    context.output.line(&format!(
                        "{}: reachable; {address} answered with the right key in {} ms, version {version}",
                        reflector.name,
                        rounded_ms(took),
                    ))?;
                    note_small_segments(segment_limit, context);
                }
            }
            Err(error) => {
                let failure = CommandFailure::from(error);
                first_failure.get_or_insert(failure.exit);
                if json {
                    row["reachable"] = false.into();
                    row["error"] = json!(failure.body());
                } else {
                    context.output.line(&format!("{}: {failure}", reflector.name))?;
                }
            }
        }
        rows.push(row);
    }
    if json {
        context.output.line(&json!(rows).to_string())?;
    }
    Ok(first_failure.unwrap_or(ExitStatus::Done))
}

/// Notes that the path to a reflector drops large packets, if the link had to limit its segments.
pub(super) fn note_small_segments(segment_limit: Option<u16>, context: &Context) {
    if let Some(bytes) = segment_limit {
        context.output.note(&format!(
            "only segments of up to {bytes} bytes get through to it: the path drops larger packets without ICMP; correct \
             the MTU or the firewall on the path"
        ));
    }
}

fn rounded_ms(duration: Duration) -> u128 {
    (duration.as_micros() + 500) / 1000
}
