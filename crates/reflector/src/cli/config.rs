//! `reflector config`: explains, checks and shows the configuration.

use clap::Subcommand;

use super::output::{print_line, print_text};
use crate::config::{self, Flags};
use crate::failure::Failure;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a configuration file that explains every setting, with its default
    Template,
    /// Check the configuration that `serve` would use
    Check(Box<Flags>),
    /// Print the configuration that `serve` would use
    Show {
        #[command(flatten)]
        flags: Box<Flags>,
        /// Show the source of each value
        #[arg(long)]
        origin: bool,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Template => {
            print_text(&config::template());
            Ok(())
        }
        Command::Check(flags) => {
            let loaded = config::load(&flags, &|name| std::env::var_os(name))?;
            let files = loaded.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
            let read = if files.is_empty() { "no file".to_owned() } else { files.join(", ") };
            print_line(&format!("the configuration is valid (read: {read})"));
            Ok(())
        }
        Command::Show { flags, origin } => {
            let loaded = config::load(&flags, &|name| std::env::var_os(name))?;
            print_text(&loaded.show(origin));
            Ok(())
        }
    }
}
