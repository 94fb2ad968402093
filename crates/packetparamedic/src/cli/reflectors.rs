//! `reflectors`: the pairings of this device: list, check, rename, import, remove.

use std::path::{Path, PathBuf};

use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{ImportedPairings, OldStore};
use paramedic_appliance::store::{Reflector, find_reflector};
use paramedic_link::PeerText;
use serde_json::json;

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use super::object_args::ObjectArgs;
use crate::web::client::ServiceClient;
use crate::web::reflectors::{CheckedReflector, ListedReflector, RenameRequest, reflector_route};

pub(super) type Args = ObjectArgs<Command>;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List the paired reflectors; the default subcommand
    List,
    /// Connect to one reflector or to all, and check their addresses, keys and answers; sends no test data
    Check {
        /// Name, address or Endpoint ID of the reflector [default: all]
        reflector: Option<String>,
    },
    /// Rename a reflector on this device
    Rename {
        /// Name, address or Endpoint ID of the reflector
        reflector: String,
        /// The new name
        name: String,
    },
    /// Import the identity and the pairings from another state folder of this machine; fails if this device has
    /// pairings under another identity
    Import {
        /// The state folder to import from
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// Remove a reflector from this device; to remove this device from the reflector too, run `reflector peers remove`
    /// there
    Remove {
        /// Name, address or Endpoint ID of the reflector
        reflector: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let json = args.json;
    match args.command.unwrap_or(Command::List) {
        Command::List => list(json, context).await,
        Command::Check { reflector } => {
            let chosen = to_check(reflector.as_deref(), context).await?;
            check_each(&chosen, json, context).await
        }
        Command::Rename { reflector, name } => {
            let name = PeerText::new(&name);
            let renamed: ListedReflector = match context.service().await? {
                Some(service) => {
                    let id = one_of(&service, &reflector).await?.endpoint_id;
                    service.post(&reflector_route(id, "/rename"), &RenameRequest { name }).await?
                }
                None => ListedReflector::from(&context.appliance()?.rename_reflector(&reflector, &name).await?),
            };
            match json {
                true => context.output.json_line(&json!({ "event": "renamed", "reflector": renamed }))?,
                false => context.output.line(&format!("its name is {} now", renamed.name))?,
            }
            Ok(ExitStatus::Done)
        }
        Command::Import { from } => import(&from, json, context).await,
        Command::Remove { reflector } => {
            let removed: ListedReflector = match context.service().await? {
                Some(service) => {
                    let id = one_of(&service, &reflector).await?.endpoint_id;
                    service.delete(&reflector_route(id, "")).await?
                }
                None => ListedReflector::from(&context.appliance()?.remove_reflector(&reflector).await?),
            };
            match json {
                true => context.output.json_line(&json!({ "event": "removed", "reflector": removed }))?,
                false => context.output.line(&format!("forgot {}", removed.name))?,
            }
            context
                .output
                .note("the reflector still knows this device until you run `reflector peers remove` on its host");
            Ok(ExitStatus::Done)
        }
    }
}

async fn list(json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let all: Vec<ListedReflector> = match context.service().await? {
        Some(service) => service.get("/reflectors").await?,
        None => context.appliance()?.reflectors().await?.iter().map(ListedReflector::from).collect(),
    };
    if json {
        context.output.line(&json!(all).to_string())?;
        return Ok(ExitStatus::Done);
    }
    if all.is_empty() {
        context.output.note("none yet: run `reflector pair` on a reflector, then `packetparamedic pair-reflector`");
    }
    for ListedReflector { name, address, endpoint_id, .. } in &all {
        context.output.line(&format!("{name}  {address}  {endpoint_id}"))?;
    }
    Ok(ExitStatus::Done)
}

/// Returns the reflectors with which the service is paired.
async fn all_of(service: &ServiceClient) -> Result<Vec<Reflector>, CommandFailure> {
    let all: Vec<ListedReflector> = service.get("/reflectors").await?;
    all.into_iter().map(ListedReflector::reflector).collect()
}

/// Asks the service for its paired reflectors, and returns the one whose name, address or Endpoint ID is `wanted`.
async fn one_of(service: &ServiceClient, wanted: &str) -> Result<Reflector, CommandFailure> {
    Ok(find_reflector(all_of(service).await?, wanted).map_err(ApplianceError::from)?)
}

/// Returns the reflectors to check: the one whose name, address or Endpoint ID is `wanted`, or all if `wanted` is
/// `None`.
pub(super) async fn to_check(wanted: Option<&str>, context: &Context) -> Result<Vec<Reflector>, CommandFailure> {
    match (context.service().await?, wanted) {
        (Some(service), Some(wanted)) => Ok(vec![one_of(&service, wanted).await?]),
        (Some(service), None) => all_of(&service).await,
        (None, wanted) => Ok(context.appliance()?.reflectors_to_check(wanted).await?),
    }
}

/// Connects to a reflector to check it. Runs no test.
pub(super) async fn check(reflector: &Reflector, context: &Context) -> Result<CheckedReflector, CommandFailure> {
    match context.service().await? {
        Some(service) => service.post_slow(&reflector_route(reflector.endpoint_id, "/check"), &()).await,
        None => Ok(context.appliance()?.check(reflector).await?.into()),
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
async fn check_each(chosen: &[Reflector], json: bool, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let mut first_failure = None;
    let mut rows = Vec::new();
    for reflector in chosen {
        let mut row = json!(ListedReflector::from(reflector));
        match check(reflector, context).await {
            Ok(CheckedReflector { reached_at, version, link_ms, segment_limit_bytes, .. }) => {
                if json {
                    row["reachable"] = true.into();
                    row["reached_at"] = reached_at.to_string().into();
                    row["version"] = version.to_string().into();
                    row["link_ms"] = link_ms.into();
                    if let Some(bytes) = segment_limit_bytes {
                        row["segment_limit_bytes"] = bytes.into();
                    }
                } else {
                    context.output.line(&format!(
                        "{}: reachable; {reached_at} answered with the right key in {link_ms:.0} ms, version {version}",
                        reflector.name,
                    ))?;
                    note_small_segments(segment_limit_bytes, context);
                }
            }
            Err(failure) => {
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

/// Prints a note that the path to a reflector drops large packets, if the link had to limit its TCP segment size.
pub(super) fn note_small_segments(segment_limit: Option<u16>, context: &Context) {
    if let Some(bytes) = segment_limit {
        context.output.note(&format!(
            "only segments of up to {bytes} bytes reach the reflector: the path drops larger packets without ICMP; \
             correct the MTU or the firewall on the path"
        ));
    }
}
