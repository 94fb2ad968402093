//! How a command of this program fails: what failed, because of what, what to try, and the exit code.

use std::fmt;

use paramedic_link::key_file::KeyFileError;
use serde::Serialize;

use crate::audit::AuditError;
use crate::config::ConfigError;
use crate::store::StoreError;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The audit log is whole, but only since a later line than the first.
    WholeSince = 3,
    /// Interrupted by Ctrl-C or a signal.
    Interrupted = 130,
}

/// A command failed. Prints as three lines; serialises as the body of an error document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// For scripts: lower case, stays the same when the text changes.
    pub code: &'static str,
    /// What failed.
    pub what: String,
    /// Because of what.
    pub because: String,
    /// What to try.
    #[serde(rename = "try")]
    pub try_: String,
    /// How the program ends.
    #[serde(skip)]
    pub exit: Exit,
}

/// What a failed command prints on stdout in JSON mode; the same document as the appliance's.
#[derive(Debug, Serialize)]
pub struct ErrorDocument<'a> {
    /// `error` in a stream of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    schema: &'static str,
    #[serde(flatten)]
    failure: &'a Failure,
}

impl Failure {
    /// A failure.
    pub fn new(
        exit: Exit,
        code: &'static str,
        what: impl Into<String>,
        because: impl fmt::Display,
        try_: impl Into<String>,
    ) -> Self {
        // A failure prints as three lines, also where a library reports several.
        let because = format!("{because:#}").lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Self { code, what: what.into(), because, try_: try_.into(), exit }
    }

    /// The error document, which stands alone or is the last one of a stream of events.
    pub fn document(&self, is_event: bool) -> ErrorDocument<'_> {
        ErrorDocument { event: is_event.then_some("error"), schema: "packetparamedic.error/1", failure: self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nbecause: {}\ntry: {}", self.what, self.because, self.try_)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(
            Exit::Usage,
            "bad_config",
            "the configuration is not valid",
            error,
            "fix that line, then run `reflector config check`; `reflector config template` explains every setting",
        )
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let exit = match error {
            KeyFileError::Io { .. } | KeyFileError::Exposed { .. } | KeyFileError::NotOurs { .. } => Exit::Usage,
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
            E::Unusable { .. } => (Exit::Usage, "state_dir", "check the permissions and the free space of that folder"),
            E::InUse { .. } => {
                (Exit::Failed, "already_running", "run `reflector status` to see the one that is running")
            }
            E::Damaged { .. } => (Exit::Failed, "database_damaged", "follow the line above; nothing was changed"),
            E::Newer { .. } => (Exit::Failed, "database_newer", "follow the line above; nothing was changed"),
            _ => (Exit::Failed, "database", "check the free space and the health of the disk"),
        };
        Self::new(exit, code, "the reflector's state can't be used", error, try_)
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        let (exit, code, try_) = match error {
            AuditError::Store(error) => return error.into(),
            AuditError::Unusable { .. } => {
                (Exit::Usage, "audit_unusable", "check the permissions and the free space of that folder")
            }
            AuditError::Broken { .. } | AuditError::Foreign { .. } => {
                (Exit::Failed, "audit_broken", "follow the line above; nothing was changed")
            }
        };
        Self::new(exit, code, "the reflector's audit log can't be used", error, try_)
    }
}
