//! `reflector config`: explains, checks and shows the configuration.

use clap::Subcommand;
use paramedic_host::config::{load, template};

use super::output::{print_line, print_text};
use crate::config::{AllFlags, Config};
use crate::failure::Failure;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a configuration file that explains every setting, with its default
    Template,
    /// Check the configuration that `serve` would use
    Check(Box<AllFlags>),
    /// Print the configuration that `serve` would use
    Show {
        #[command(flatten)]
        flags: Box<AllFlags>,
        /// Show the source of each value
        #[arg(long)]
        origin: bool,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    let load = |flags: &AllFlags| load::<Config>(&flags.values, &|name| std::env::var_os(name));
    match command {
        Command::Template => print_text(&template::<Config>()),
        Command::Check(flags) => print_line(&load(&flags)?.summary()),
        Command::Show { flags, origin } => print_text(&load(&flags)?.show(origin)),
    }
    Ok(())
}
