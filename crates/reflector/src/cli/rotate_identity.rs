//! `reflector rotate-identity`: creates a new identity. Refuses while a reflector runs with the old one.

use paramedic_link::key_file::{self, KeyFileError};

use super::load;
use super::output::{note, print_line};
use super::state::with_own_state_as_it_is;
use crate::config::{Config, PlaceFlags};
use crate::failure::{Exit, Failure};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceFlags,
    /// Confirm that every device must be paired again
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    rotate(&with_own_state_as_it_is(load(&args.place.values)?)?, args.yes)
}

fn rotate(config: &Config, yes: bool) -> Result<(), Failure> {
    if !yes {
        return Err(Failure::new(
            Exit::Usage,
            "not_confirmed",
            "the identity was not changed",
            "with a new identity, every paired device must be paired again",
            "stop `reflector serve`, then run `reflector rotate-identity --yes`",
        ));
    }
    if let Some(path) = &config.provided_key {
        return Err(Failure::new(
            Exit::Usage,
            "key_provided",
            "the identity was not changed",
            format!("the setting key_file provides the identity: {}", path.display()),
            "replace that file, or remove the setting key_file",
        ));
    }
    if std::os::unix::net::UnixStream::connect(config.admin_socket()).is_ok() {
        return Err(running());
    }
    let rotated = match key_file::rotate(&config.key_file()) {
        // A reflector uses the key; its admin socket may be in another runtime folder.
        Err(KeyFileError::InUse { .. }) => return Err(running()),
        rotated => rotated?,
    };
    print_line(&rotated.new.id().to_string());
    note(&format!("the old identity was {}; its key is kept in {}", rotated.old, rotated.kept.display()));
    note("paired devices know only the old identity: pair each again with `reflector pair`");
    Ok(())
}

fn running() -> Failure {
    Failure::new(
        Exit::Failed,
        "running",
        "the identity was not changed",
        "the reflector is running with this identity",
        "stop it first: run `reflector drain` or `systemctl stop reflector`",
    )
}
