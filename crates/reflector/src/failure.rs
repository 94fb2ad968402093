//! Why a command of the reflector failed: what failed, the cause, what to try, and the exit code.

use std::fmt;
use std::ops::Deref;

use paramedic_host::config::{ConfigError, Configuration};
use paramedic_link::key_file::KeyFileError;

use crate::audit::AuditError;
use crate::config::Config;
use crate::store::StoreError;

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// The arguments or the configuration are not valid.
    Usage = 2,
    /// The audit log is intact, but does not begin with line 1, because its oldest lines were trimmed or moved away.
    WholeSince = 3,
    /// Ctrl-C or a signal interrupted the command.
    Interrupted = 130,
}

/// A failed command. Prints as three lines: what failed, the cause, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(paramedic_host::failure::Failure<Exit>);

impl Failure {
    /// A failure with its exit code, its machine-readable error code, and the texts of its three lines.
    pub fn new(
        exit: Exit,
        code: &'static str,
        what: impl Into<String>,
        because: impl fmt::Display,
        try_: impl Into<String>,
    ) -> Self {
        Self(paramedic_host::failure::Failure::new(exit, code, what, because, try_))
    }
}

impl Deref for Failure {
    type Target = paramedic_host::failure::Failure<Exit>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let try_ = error.remedy(Config::PROGRAM);
        Self::new(Exit::Usage, "bad_config", "the configuration is not valid", error, try_)
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let exit = match error {
            KeyFileError::Io { .. }
            | KeyFileError::Exposed { .. }
            | KeyFileError::NotOurs { .. }
            | KeyFileError::NotProvided { .. }
            | KeyFileError::ProvidedExposed { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(
            exit,
            "key_file",
            "the identity can't be used",
            error,
            "repair the key file, or restore it from a backup",
        )
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        use StoreError as E;
        let (exit, code, try_) = match error {
            E::Unusable { .. } => {
                (Exit::Usage, "state_dir", "check the permissions and the free space of that folder".to_owned())
            }
            E::InUse { .. } => {
                (Exit::Failed, "already_running", "run `reflector status` to see the running reflector".to_owned())
            }
            E::Damaged { ref path, .. } => {
                let path = path.display();
                let try_ = format!(
                    "restore a backup, or move {path}, its -wal and -shm files and the audit folder away to begin with \
                     an empty database: appliances must then be paired again; the file was not changed"
                );
                (Exit::Failed, "database_damaged", try_)
            }
            E::Newer { .. } => {
                let try_ = "run the newer version, or restore a backup of the older database; the file was not changed";
                (Exit::Failed, "database_newer", try_.to_owned())
            }
            _ => (Exit::Failed, "database", "check the free space and the health of the disk".to_owned()),
        };
        Self::new(exit, code, "the reflector's state can't be used", error, try_)
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        let (exit, code, try_) = match error {
            AuditError::Store(error) => return error.into(),
            AuditError::Unusable { .. } => {
                (Exit::Usage, "audit_unusable", "check the permissions and the free space of that folder".to_owned())
            }
            AuditError::Broken { ref folder, .. } => {
                let folder = folder.display();
                let try_ = format!(
                    "run `reflector audit verify` to find the first bad line; to go on without the log, move it away: \
                     mv {folder} {folder}.damaged (the first line of the new log records this)"
                );
                (Exit::Failed, "audit_broken", try_)
            }
            AuditError::Foreign { ref folder } => {
                let folder = folder.display();
                let try_ = format!("restore the database of this log, or move the log away: mv {folder} {folder}.old");
                (Exit::Failed, "audit_broken", try_)
            }
        };
        Self::new(exit, code, "the reflector's audit log can't be used", error, try_)
    }
}
