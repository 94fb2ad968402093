//! The errors of the database, by cause.

use std::io;
use std::path::{Path, PathBuf};

use paramedic_host::database::{DatabaseError, SqliteRefusal, is_unique_violation};
use paramedic_link::PeerText;

/// Why an operation of the database failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum StoreError {
    /// The folder or the file cannot be created or used.
    #[error("cannot use {}: {source}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    /// Another reflector serves from the same folder.
    #[error(
        "another reflector is running with the state folder {}; stop it, or set another folder with --state-dir",
        folder.display()
    )]
    InUse {
        /// The state folder.
        folder: PathBuf,
    },
    /// The file is damaged. It is left unchanged.
    #[error("the database {} is damaged ({detail})", path.display())]
    Damaged {
        path: PathBuf,
        /// What is damaged, in words of SQLite or of the reflector.
        detail: String,
    },
    /// A newer version of the program wrote the file.
    #[error(
        "the database {} was written by a newer version of reflector (migration {step} is unknown here)",
        path.display()
    )]
    Newer {
        path: PathBuf,
        /// The first migration in the database that this version of the program does not know.
        step: i64,
    },
    /// A statement failed.
    #[error("the database {} failed while {doing}: {source}", path.display())]
    Failed {
        path: PathBuf,
        /// What the statement was for, such as `adding a peer`.
        doing: &'static str,
        source: sqlx::Error,
    },
    /// The database confirmed a commit, but the file does not contain the change.
    #[error("the database {} confirmed a commit while {doing}, but the file does not have the data", path.display())]
    NotKept {
        path: PathBuf,
        /// What the change was for, such as `adding a peer`.
        doing: &'static str,
    },
    /// Another peer has this name.
    #[error("another peer already has the name {0:?}")]
    NameTaken(PeerText),
    /// The name is empty, or is the text of an Endpoint ID.
    #[error("a peer's name must not be empty or an Endpoint ID")]
    NoName,
}

impl StoreError {
    /// Whether the disk or the file caused the error, and not the request.
    pub fn is_fault(&self) -> bool {
        match self {
            StoreError::Failed { source: sqlx::Error::RowNotFound, .. } => false,
            StoreError::Failed { source, .. } => !is_unique_violation(source),
            StoreError::NameTaken(_) | StoreError::NoName => false,
            _ => true,
        }
    }
}

impl StoreError {
    /// Converts an error of opening the database.
    pub(super) fn opening(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Unusable { path, source } => StoreError::Unusable { path, source },
            DatabaseError::Damaged { path, detail } => StoreError::Damaged { path, detail },
            DatabaseError::Newer { path, migration } => StoreError::Newer { path, step: migration },
            DatabaseError::Altered { path, source } => StoreError::Damaged { path, detail: source.to_string() },
            DatabaseError::Refused {
                path, cause: SqliteRefusal::ReadOnly | SqliteRefusal::CannotOpen, source, ..
            } => StoreError::Unusable { path, source: io::Error::other(source) },
            DatabaseError::Refused { path, doing, source, .. } => StoreError::Failed { path, doing, source },
        }
    }
}

/// Converts an error of an operation on the open database.
pub(super) fn failure(path: &Path, doing: &'static str, source: sqlx::Error) -> StoreError {
    match DatabaseError::of(path, doing, source) {
        DatabaseError::Refused { path, doing, source, .. } => StoreError::Failed { path, doing, source },
        error => StoreError::opening(error),
    }
}
