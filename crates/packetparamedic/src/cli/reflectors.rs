//! `reflectors`: the pairings of this device: list, check, rename, import, remove.

use std::path::{Path, PathBuf};
use std::time::Duration;

use paramedic_appliance::app::{ImportedPairings, OldStore, Reached};
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
    /// Connect to each reflector, or to one, and check address, key and answer; sends no load
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
    /// Take over the identity and the pairings of an older store of this machine, if this device is not paired yet
    Import {
        /// The state folder of the older store
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// Remove a reflector from this device; to also remove this device there, run `reflector peers remove` on the
    /// reflector
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
        Command::Import { from } => import(&from, args.json, context).await,
        Command::Remove { reflector } => {
            let removed = context.appliance()?.remove_reflector(&reflector).await?;
            context.output.line(&format!("forgot {}", removed.name))?;
            context.output.note("it still knows this device until `reflector peers remove` is run there");
            Ok(ExitStatus::Done)
        }
    }
}

async fn import(from: &Path, json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let old = OldStore::open(from).await?.pairings().await?;
    let imported: ImportedPairings = match context.service().await? {
        Some(service) => service.post("/reflectors/imports", &old).await?,
        None => context.appliance()?.import_pairings(old).await?,
    };
    if json {
        context.output.json_line(&imported)?;
        return Ok(ExitStatus::Done);
    }
    let ImportedPairings { endpoint_id, is_new_identity, reflectors, known } = imported;
    let identity = if is_new_identity { "is now" } else { "is" };
    context.output.line(&format!("this device {identity} {endpoint_id}"))?;
    for name in &reflectors {
        context.output.line(&format!("imported: {name}"))?;
    }
    if known > 0 {
        context.output.note(&format!("{known} reflectors were paired already"));
    }
    Ok(ExitStatus::Done)
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

/// Prints a note that the path to a reflector drops large packets, if the link had to limit its segments.
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
