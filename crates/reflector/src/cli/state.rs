//! The state folder and the identity in it, as commands need them.

use paramedic_link::key_file;
use paramedic_link::state_folder::{self, Change};

use super::output::note;
use crate::config::Config;
use crate::failure::{Exit, Failure};

/// Whether a name is one that the reflector gives to what it keeps in its state folder, or in its runtime folder where
/// that is the same.
fn is_own(name: &str) -> bool {
    let files = ["identity.key", "reflector.db"];
    ["audit", "scratch", "admin.sock"].contains(&name) || files.iter().any(|own| name.starts_with(own))
}

/// The configuration with the folder in which the state really is, which is made where there is none.
pub(super) fn with_state(mut config: Config) -> Result<Config, Failure> {
    let named = config.state_dir.clone();
    let folder = state_folder::open(&named, is_own).map_err(|error| {
        Failure::new(
            Exit::Usage,
            "state_dir",
            format!("the state folder {} cannot be used", named.display()),
            error,
            "set another folder with --state-dir or REFLECTOR_STATE_DIR, or run as the user that owns it",
        )
    })?;
    let path = folder.path.display();
    match folder.change {
        Some(Change::Tightened { mode }) => {
            note(&format!("warning: other users could read the state folder {path} (mode {mode:04o}); it is 0700 now"));
        }
        Some(Change::Moved { .. }) => {
            note(&format!(
                "warning: other users can read the state folder {}; the state is kept in {path}",
                named.display()
            ));
        }
        None => {}
    }
    config.state_dir = folder.path;
    Ok(config)
}

/// The same without making or changing anything.
pub(super) fn with_state_as_it_is(mut config: Config) -> Config {
    config.state_dir = state_folder::locate(&config.state_dir);
    config
}

/// The identity, made at first use.
pub(super) fn identity(config: &Config) -> Result<paramedic_link::SecretKey, Failure> {
    Ok(key_file::load_or_create(&config.key_file())?)
}
