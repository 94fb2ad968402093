//! `reflector config`: explains, checks, shows and reloads the configuration.

use clap::Subcommand;
use paramedic_host::config::template;

use super::asking::{asking, one_answer, unexpected};
use super::load_with_origins;
use super::output::{print_line, print_text};
use crate::config::{AllFlags, Config, PlaceFlags};
use crate::failure::{Exit, Failure};
use crate::server::{AdminReply, AdminRequest};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a configuration file that explains every setting and its default
    Template,
    /// Check the configuration that `serve` would use
    Check(Box<AllFlags>),
    /// Print the configuration that `serve` would use
    Show {
        #[command(flatten)]
        flags: Box<AllFlags>,
        /// Show where each value comes from: default, file, environment or flag
        #[arg(long)]
        origin: bool,
    },
    /// Make the running reflector read its configuration again; print which changed settings apply now and which need a
    /// restart
    Reload {
        #[command(flatten)]
        place: PlaceFlags,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Template => print_text(&template::<Config>()),
        Command::Check(flags) => print_line(&load_with_origins(&flags.values)?.summary()),
        Command::Show { flags, origin } => print_text(&load_with_origins(&flags.values)?.show(origin)),
        Command::Reload { place } => {
            return asking(&place, async |client| one_answer(client, &AdminRequest::Reload, reloaded).await);
        }
    }
    Ok(())
}

fn reloaded(answer: AdminReply) -> Result<(), Failure> {
    match answer {
        AdminReply::Reloaded { applied, needs_restart } => {
            let list = |settings: &[String]| match settings {
                [] => "nothing".to_owned(),
                settings => settings.join(", "),
            };
            print_line(&format!("applied: {}", list(&applied)));
            print_line(&format!("needs a restart: {}", list(&needs_restart)));
            Ok(())
        }
        AdminReply::BadConfig { because, try_ } => {
            let what = "the configuration is not valid; the reflector keeps the current one";
            Err(Failure::new(Exit::Usage, "bad_config", what, because, try_))
        }
        other => Err(unexpected(&Some(other))),
    }
}
