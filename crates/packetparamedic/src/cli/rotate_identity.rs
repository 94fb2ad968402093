//! `packetparamedic rotate-identity`: creates a new key, keeps the old one in another file, and lists the pairings that
//! are lost.

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::web::identity::{ROTATION_ROUTE, RotatedIdentity, rotate};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Confirm that this device must be paired again with every reflector
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: &Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    if !args.yes {
        return Err(CommandFailure::new(
            ExitStatus::Usage,
            "not_confirmed",
            "the identity was not changed",
            "with a new identity, this device must be paired again with every reflector",
            "run `packetparamedic rotate-identity --yes`",
        ));
    }
    let rotated: RotatedIdentity = match context.service().await? {
        Some(service) => service.post(ROTATION_ROUTE, &()).await?,
        None => rotate(context.appliance()?).await?,
    };
    let RotatedIdentity { endpoint_id, old, kept, reflectors } = rotated;
    context.output.line(&endpoint_id.to_string())?;
    context.output.note(&format!("the old identity was {old}; its key is kept in {kept}"));
    for name in reflectors {
        context.output.note(&format!("{name} knows only the old identity: pair this device with {name} again"));
    }
    Ok(ExitStatus::Done)
}
