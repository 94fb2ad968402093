//! `config`: explains, checks and shows the configuration.

use clap::Subcommand;
use paramedic_appliance::failure::{Exit, Failure};
use paramedic_host::config::{load, template};

use super::Context;
use crate::config::{self as settings, Settings};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a configuration file that explains every setting, with its default
    Template,
    /// Check the configuration, and list the files that were read
    Check,
    /// Print the configuration that a command would use
    Show {
        /// Show the source of each value
        #[arg(long)]
        origin: bool,
    },
}

pub(super) fn run(command: &Command, context: &Context) -> Result<Exit, Failure> {
    let loaded = || load::<Settings>(&context.flags, &|name| std::env::var_os(name));
    let text = match command {
        Command::Template => template::<Settings>(),
        Command::Check => loaded().map_err(settings::failure)?.summary(),
        Command::Show { origin } => loaded().map_err(settings::failure)?.show(*origin),
    };
    context.output.line(text.trim_end())?;
    Ok(Exit::Done)
}
