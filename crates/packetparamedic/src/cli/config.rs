//! `packetparamedic config`: explains, checks and shows the configuration.

use clap::Subcommand;
use paramedic_host::config::{load, template};

use super::Context;
use super::failure::{CommandFailure, ExitStatus};
use crate::config::Settings;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a configuration file that explains every setting and its default
    Template,
    /// Check the configuration, and list the files that were read
    Check,
    /// Print the configuration that a command would use
    Show {
        /// Show where each value comes from: default, file, environment or flag
        #[arg(long)]
        origin: bool,
    },
}

pub(super) fn run(command: &Command, context: &Context) -> Result<ExitStatus, CommandFailure> {
    let loaded = || load::<Settings>(&context.flags);
    let text = match command {
        Command::Template => template::<Settings>(),
        Command::Check => loaded()?.summary(),
        Command::Show { origin } => loaded()?.show(*origin),
    };
    context.output.line(text.trim_end())?;
    Ok(ExitStatus::Done)
}
