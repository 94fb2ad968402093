//! The failures of the state folder, its key and its database.

use std::path::Path;

use paramedic_appliance::store::{StorageError, StorePlace};
use paramedic_link::key_file::KeyFileError;
use paramedic_link::state_folder::StateFolderError;

use super::{CommandFailure, ExitStatus, thread_limit};

/// Converts a failure of the store to the failure of a test that was not begun because its result could not be saved.
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
                format!("check that this user may write to {}, or set another folder with --state-dir", path.display()),
            ),
            E::Corrupt { place } => fail(
                Exit::Failed,
                "history_corrupt",
                "cannot read the saved pairings and results",
                match place {
                    StorePlace::File(_) => {
                        format!("restore {place} from a backup, or move it away to start anew; it was not changed")
                    }
                    StorePlace::Server(_) => "restore the database from a backup with pg_restore".to_owned(),
                },
            ),
            E::Newer { .. } => fail(
                Exit::Usage,
                "history_newer",
                "cannot read the saved pairings and results",
                "use the newer version of packetparamedic that wrote the database".to_owned(),
            ),
            E::Altered { place, .. } => fail(
                Exit::Failed,
                "history_altered",
                "cannot read the saved pairings and results",
                match place {
                    StorePlace::File(_) => format!("use the version of packetparamedic that wrote {place}"),
                    StorePlace::Server(_) => {
                        "use the version of packetparamedic that wrote the database, or set `database` to a database \
                         that only this device uses"
                            .to_owned()
                    }
                },
            ),
            E::Full { place, .. } => fail(
                Exit::Failed,
                "disk_full",
                "cannot write to the database",
                format!("make space on the disk of {place}"),
            ),
            E::Locked { .. } => fail(
                Exit::Busy,
                "history_busy",
                "cannot use the saved pairings and results",
                "try again in a moment: another packetparamedic process may be using the database".to_owned(),
            ),
            E::ReadOnly { place: place @ StorePlace::File(_), .. } => fail(
                Exit::Usage,
                "state_dir_unusable",
                "cannot write to the database",
                format!("check that this user may write to {place}"),
            ),
            E::ReadOnly { place: StorePlace::Server(_), .. } => fail(
                Exit::Usage,
                "database_read_only",
                "cannot write to the database",
                "set `database` to the primary server, not to a standby".to_owned(),
            ),
            E::Unreachable { .. } => fail(
                Exit::Failed,
                "database_unreachable",
                "cannot use the saved pairings and results",
                "check that the database server runs, and that `database` has its host and port".to_owned(),
            ),
            E::Refused { .. } => fail(
                Exit::Usage,
                "database_refused",
                "cannot use the saved pairings and results",
                "check the user, the password and the database name in `database`, and the server's pg_hba.conf"
                    .to_owned(),
            ),
            E::Encoding { .. } => fail(
                Exit::Usage,
                "database_encoding",
                "cannot use the saved pairings and results",
                "create the database with ENCODING 'UTF8' TEMPLATE template0".to_owned(),
            ),
            E::InUse { .. } => fail(
                Exit::Failed,
                "already_running",
                "the service cannot start",
                "stop the other service, or set `database` to a database that only this device uses".to_owned(),
            ),
            E::PasswordFile { path, .. } => fail(
                Exit::Usage,
                "unreadable",
                "cannot read the password of the database",
                format!("check the path and the permissions of {}", path.display()),
            ),
            E::NoCopy { .. } => fail(
                Exit::Usage,
                "no_backup",
                "the backup was not made",
                "run `pg_dump --format=custom --file=FILE URL` with the URL in the setting `database`".to_owned(),
            ),
            E::NameTaken { .. } | E::NoName => {
                fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned())
            }
            E::NoSuchReflector { .. } => fail(
                Exit::Denied,
                "not_paired",
                "no such reflector",
                "run `packetparamedic reflectors` to see the reflectors, `packetparamedic pair-reflector` to add one"
                    .to_owned(),
            ),
            E::AmbiguousReflector { .. } => fail(
                Exit::Usage,
                "ambiguous",
                "more than one reflector matches",
                "use the Endpoint ID of the reflector, which is unique".to_owned(),
            ),
            E::NoSuchRun { .. } => fail(
                Exit::Failed,
                "no_such_run",
                "no such run",
                "run `packetparamedic history` to see the runs".to_owned(),
            ),
            E::AmbiguousRun { .. } => {
                fail(Exit::Usage, "ambiguous", "more than one run matches", "use more digits of the id".to_owned())
            }
            E::ScheduleExists { .. } => fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned()),
            E::NoSuchSchedule { .. } => fail(
                Exit::Failed,
                "no_such_schedule",
                "no such schedule",
                "run `packetparamedic schedule list` to see the schedules".to_owned(),
            ),
            E::TokenExists { .. } => fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned()),
            E::NoSuchToken { .. } => fail(
                Exit::Failed,
                "no_such_token",
                "no such token",
                "run `packetparamedic token list` to see the tokens".to_owned(),
            ),
            E::MonitorExists { .. } => fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned()),
            E::NoSuchMonitor { .. } => fail(
                Exit::Failed,
                "no_such_monitor",
                "no such monitor",
                "run `packetparamedic monitor list` to see the monitors".to_owned(),
            ),
            E::ChannelExists { .. } => fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned()),
            E::NoSuchChannel { .. } => fail(
                Exit::Failed,
                "no_such_channel",
                "no such channel",
                "run `packetparamedic channel list` to see the channels".to_owned(),
            ),
            E::RuleExists { .. } => fail(Exit::Usage, "bad_name", "invalid name", "use another name".to_owned()),
            E::NoSuchRule { .. } => fail(
                Exit::Failed,
                "no_such_rule",
                "no such rule",
                "run `packetparamedic rule list` to see the rules".to_owned(),
            ),
            E::Document { .. } => fail(
                Exit::Failed,
                "history_unreadable",
                "cannot read a saved result",
                "run `packetparamedic history show ID --json` to print the result as it is saved".to_owned(),
            ),
            E::ThreadLimit(refused) => thread_limit("cannot use the saved pairings and results", refused),
            E::Sql { place, .. } => fail(
                Exit::Failed,
                "history_failed",
                "cannot use the saved pairings and results",
                match place {
                    StorePlace::File(_) => "check the disk of the state folder".to_owned(),
                    StorePlace::Server(_) => "check the database server and its log".to_owned(),
                },
            ),
        }
    }
}

/// The failure if the configured state folder, `named`, cannot be opened.
pub(super) fn unusable_folder(named: &Path, error: &StateFolderError) -> CommandFailure {
    let what = format!("cannot use the state folder {}", named.display());
    let (code, try_) = match error {
        StateFolderError::Foreign { .. } => {
            ("state_dir_foreign", "set a folder of this user with --state-dir, or change the owner with chown")
        }
        StateFolderError::NotAFolder { .. } | StateFolderError::Io { .. } => {
            ("state_dir_unusable", "check that this user may write to it, or set another folder with --state-dir")
        }
    };
    CommandFailure::new(ExitStatus::Usage, code, what, error, try_)
}

impl From<&KeyFileError> for CommandFailure {
    fn from(error: &KeyFileError) -> Self {
        use ExitStatus::{Failed, Usage};
        use KeyFileError as E;
        let (exit, code, try_) = match error {
            E::Io { .. } => (Usage, "key_unusable", "check the permissions and the free space of the state folder"),
            E::Corrupt { .. } => (Failed, "key_corrupt", "restore the key file, or move it away and pair again"),
            E::Exposed { .. } => (Usage, "key_exposed", "remove the permissions of other users with chmod 600"),
            _ => (Usage, "key_unusable", "repair the key file, or set another folder with --state-dir"),
        };
        Self::new(exit, code, "cannot use this device's identity", error, try_)
    }
}
