//! `packetparamedic rotate-identity`: creates a new key, keeps the old one in another file, and lists the pairings that
//! are lost.

use super::Context;
use super::failure::{CommandFailure, ExitStatus};

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
            "with a new one, every reflector must be paired again",
            "run `packetparamedic rotate-identity --yes`",
        ));
    }
    let rotated = context.appliance()?.rotate_identity()?;
    let lost = context.appliance()?.reflectors().await?;
    context.output.line(&rotated.new.id().to_string())?;
    context.output.note(&format!(
        "the old identity was {}; its key is kept in {}",
        rotated.old,
        rotated.kept.display()
    ));
    for reflector in lost {
        context.output.note(&format!("{} knows only the old identity: pair with it again", reflector.name));
    }
    Ok(ExitStatus::Done)
}
