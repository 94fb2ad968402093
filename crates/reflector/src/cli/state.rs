//! Finds the state folder and loads the identity, for the commands.

use std::path::Path;

use paramedic_link::state_folder::{self, Change, OwnFile, StateFolderError};
use paramedic_link::{SecretKey, key_file};

use super::output::note;
use crate::config::Config;
use crate::failure::{Exit, Failure};

/// The purpose of the file `name` in the state folder; `None` if the file does not belong to the reflector. Also covers
/// the files of the runtime folder, because both folders may be the same.
fn own_file(name: &str) -> Option<OwnFile> {
    let files = ["identity.key", "reflector.db"];
    match name {
        "audit" => Some(OwnFile::Store),
        "scratch" | "admin.sock" => Some(OwnFile::Transient),
        _ => files.iter().any(|own| name.starts_with(own)).then_some(OwnFile::Store),
    }
}

fn unusable(named: &Path, error: StateFolderError) -> Failure {
    Failure::new(
        Exit::Usage,
        "state_dir",
        format!("the state folder {} cannot be used", named.display()),
        error,
        "set another folder with --state-dir or REFLECTOR_STATE_DIR, or run as the owner of this one",
    )
}

/// Sets the state folder of the configuration to the folder that holds the state: the configured folder, or a private
/// folder inside it. Creates this folder if it does not exist.
pub(super) fn with_state(mut config: Config) -> Result<Config, Failure> {
    let named = config.state_dir.clone();
    let folder = state_folder::open(&named, own_file).map_err(|error| unusable(&named, error))?;
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

/// Sets the state folder like [`with_state`], for commands that only inspect the installation: creates and changes
/// nothing, and never fails.
pub(super) fn with_state_as_it_is(mut config: Config) -> Config {
    config.state_dir = state_folder::locate(&config.state_dir);
    config
}

/// Sets the state folder like [`with_state`], but creates and changes nothing. Fails if the folder cannot be used.
pub(super) fn with_own_state_as_it_is(mut config: Config) -> Result<Config, Failure> {
    config.state_dir =
        state_folder::locate_own(&config.state_dir).map_err(|error| unusable(&config.state_dir, error))?;
    Ok(config)
}

/// Loads the identity of the reflector. Creates it at first use, unless the configuration names a key file.
pub(super) fn identity(config: &Config) -> Result<SecretKey, Failure> {
    Ok(match &config.provided_key {
        Some(path) => key_file::load_provided(path)?,
        None => key_file::load_or_create(&config.key_file())?,
    })
}

/// Loads the identity for a command that only reads it. Does not move or change existing files: a reflector may be
/// using them.
pub(super) fn identity_as_it_is(config: Config) -> Result<SecretKey, Failure> {
    if config.provided_key.is_some() {
        return identity(&config);
    }
    match key_file::load(&with_own_state_as_it_is(config.clone())?.key_file()) {
        Ok(key) => Ok(key),
        Err(_) => identity(&with_state(config)?),
    }
}
