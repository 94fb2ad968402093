//! `packetparamedic completions`: prints completions of this command line for a shell.

use clap_complete::Shell;

use super::failure::{CommandFailure, ExitStatus};
use super::{Context, command};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Shell to print completions for
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "packetparamedic", &mut script);
    context.output.script(&script)?;
    Ok(ExitStatus::Done)
}
