//! The failures of the state folder: its key and its database.

use std::path::Path;

use paramedic_appliance::store::StorageError;
use paramedic_link::key_file::KeyFileError;
use paramedic_link::state_folder::StateFolderError;

use super::{CommandFailure, ExitStatus, thread_limit};

/// The failure of a test that was not begun, because `failure` would have kept its result from being saved.
pub(super) fn cannot_save(mut failure: CommandFailure) -> CommandFailure {
    failure.what = "the test was not begun: its result could not be saved".to_owned();
    failure.try_ = format!("`speed-test --no-save` measures without saving; otherwise: {}", failure.try_);
    failure
}

impl From<StorageError> for CommandFailure {
    fn from(error: StorageError) -> Self {
        Self::from(&error)
    }
}

impl From<&StorageError> for CommandFailure {
    fn from(error: &StorageError) -> Self {
        use ExitStatus as Exit;
        use StorageError as E;
        let fail = |exit, code, what: &str, try_: String| Self::new(exit, code, what, error, try_);
        match error {
            E::Folder { path, .. } => fail(
                Exit::Usage,
                "state_dir_unusable",
                "cannot use the state folder",
                format!("may this user write to {}? Another folder can be named with --state-dir", path.display()),
            ),
            E::Corrupt { path } => fail(
                Exit::Failed,
                "history_corrupt",
                "cannot read the saved pairings and results",
                format!("nothing was overwritten: move {} away or restore it from a backup", path.display()),
            ),
            E::Newer { .. } => fail(
                Exit::Usage,
                "history_newer",
                "cannot read the saved pairings and results",
                "use the newer packetparamedic that wrote them".to_owned(),
            ),
            E::Altered { path, .. } => fail(
                Exit::Failed,
                "history_altered",
                "cannot read the saved pairings and results",
                format!("use the packetparamedic that wrote {}", path.display()),
            ),
            E::Full { path, .. } => {
                fail(Exit::Failed, "disk_full", "cannot save", format!("make room on the disk of {}", path.display()))
            }
            E::Locked { .. } => fail(
                Exit::Busy,
                "history_busy",
                "cannot use the saved pairings and results",
                "again in a moment; is another packetparamedic busy with them?".to_owned(),
            ),
            E::ReadOnly { path, .. } => fail(
                Exit::Usage,
                "state_dir_unusable",
                "cannot save",
                format!("may this user write to {}?", path.display()),
            ),
            E::NameTaken { .. } | E::NoName => {
                fail(Exit::Usage, "bad_name", "cannot use that name", "another name".to_owned())
            }
            E::NoSuchReflector { .. } => fail(
                Exit::Denied,
                "not_paired",
                "no such reflector",
                "`packetparamedic reflectors` lists them, `packetparamedic pair-reflector` adds one".to_owned(),
            ),
            E::AmbiguousReflector { .. } => fail(
                Exit::Usage,
                "ambiguous",
                "cannot tell which reflector is meant",
                "its Endpoint ID, which is unique".to_owned(),
            ),
            E::NoSuchRun { .. } => {
                fail(Exit::Failed, "no_such_run", "no such run", "`packetparamedic history` lists them".to_owned())
            }
            E::AmbiguousRun { .. } => {
                fail(Exit::Usage, "ambiguous", "cannot tell which run is meant", "more digits of its id".to_owned())
            }
            E::Document { .. } => fail(
                Exit::Failed,
                "history_unreadable",
                "cannot understand a saved result",
                "`packetparamedic history show ID --json` prints it as it was saved".to_owned(),
            ),
            E::ThreadLimit(refused) => thread_limit("cannot use the saved pairings and results", refused),
            E::Sql { .. } => fail(
                Exit::Failed,
                "history_failed",
                "cannot use the saved pairings and results",
                "is the disk of the state folder in order?".to_owned(),
            ),
        }
    }
}

/// The failure of opening the configured state folder.
pub(super) fn unusable_folder(named: &Path, error: &StateFolderError) -> CommandFailure {
    let what = format!("cannot use the state folder {}", named.display());
    let (code, try_) = match error {
        StateFolderError::Foreign { .. } => {
            ("state_dir_foreign", "name a folder of this user with --state-dir, or change the owner with chown")
        }
        StateFolderError::NotAFolder { .. } | StateFolderError::Io { .. } => {
            ("state_dir_unusable", "may this user write there? Another folder can be named with --state-dir")
        }
    };
    CommandFailure::new(ExitStatus::Usage, code, what, error, try_)
}

impl From<&KeyFileError> for CommandFailure {
    fn from(error: &KeyFileError) -> Self {
        use ExitStatus::{Failed, Usage};
        use KeyFileError as E;
        let (exit, code, try_) = match error {
            E::Io { .. } => (Usage, "key_unusable", "may this user write to the state folder, and has it room?"),
            E::Corrupt { .. } => (Failed, "key_corrupt", "restore the key file, or move it away and pair again"),
            E::Exposed { .. } => (Usage, "key_exposed", "take the rights of others away with chmod 600"),
            _ => (Usage, "key_unusable", "mend the key file, or name another folder with --state-dir"),
        };
        Self::new(exit, code, "cannot use this device's identity", error, try_)
    }
}
