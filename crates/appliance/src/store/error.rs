//! Why an operation of the store failed: one variant for each cause.

use std::io;
use std::path::PathBuf;

use paramedic_engines::thread_limit::{self, ThreadLimitReached};
use paramedic_host::database::{DatabaseError, SqliteRefusal};
use sqlx::migrate::MigrateError;

use super::place::StorePlace;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The state folder or its file can't be created or opened.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The database is damaged, or the file is no database.
    #[error("{place} is damaged")]
    Corrupt {
        /// The database.
        place: StorePlace,
    },
    /// The database was written by a later version of this program.
    #[error("{place} was written by a newer version (its migration {migration} is unknown here)")]
    Newer {
        /// The database.
        place: StorePlace,
        /// The first unknown migration.
        migration: i64,
    },
    /// The tables of the database are not those of its migrations.
    #[error("{place} does not have the tables of this version: {}", difference(source))]
    Altered {
        /// The database.
        place: StorePlace,
        /// The difference.
        source: Box<MigrateError>,
    },
    /// The disk is full.
    #[error("{doing}: the disk is full")]
    Full {
        /// The operation.
        doing: &'static str,
        /// The database.
        place: StorePlace,
    },
    /// The database, or the disk below it, can't be written.
    #[error("{doing}: {place} is read-only")]
    ReadOnly {
        /// The operation.
        doing: &'static str,
        /// The database.
        place: StorePlace,
    },
    /// Another process held the lock of the database for too long.
    #[error("{doing}: another program has locked the database")]
    Locked {
        /// The operation.
        doing: &'static str,
    },
    /// The database server does not answer, or its answer was lost.
    #[error("{doing}: {server} does not answer: {because}")]
    Unreachable {
        /// The operation.
        doing: &'static str,
        /// The URL of the database, without its password.
        server: String,
        /// The cause.
        because: String,
    },
    /// The database server refuses the user, the password or the database.
    #[error("{server}: {because}")]
    Refused {
        /// The URL of the database, without its password.
        server: String,
        /// The server's message.
        because: String,
    },
    /// The encoding of the database on a server cannot represent every text.
    #[error("{server} has the encoding {encoding}, not UTF8")]
    Encoding {
        /// The URL of the database, without its password.
        server: String,
        /// Its encoding.
        encoding: String,
    },
    /// Another service uses the database of a server.
    #[error("another service uses {server}")]
    InUse {
        /// The URL of the database, without its password.
        server: String,
    },
    /// The file with the password of the database server can't be read.
    #[error("{}: {source}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The database of a server can't be copied into a file by this program.
    #[error("{server} is a database server: back it up with PostgreSQL's own tools")]
    NoCopy {
        /// The URL of the database, without its password.
        server: String,
    },
    /// Another reflector has this name.
    #[error("another reflector is called {name}")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name has no printable character.
    #[error("a name needs at least one printable character")]
    NoName,
    /// No paired reflector has this name, address or Endpoint ID.
    #[error("no paired reflector has the name, address or Endpoint ID {wanted:?}")]
    NoSuchReflector {
        /// The text that was searched for.
        wanted: String,
    },
    /// More than one paired reflector has this name, address or Endpoint ID.
    #[error("{wanted:?} matches {}", names.join(" and "))]
    AmbiguousReflector {
        /// The text that was searched for.
        wanted: String,
        /// The reflectors that were found.
        names: Vec<String>,
    },
    /// No run has this id.
    #[error("no run's id begins or ends with {wanted:?}")]
    NoSuchRun {
        /// The text that was searched for.
        wanted: String,
    },
    /// The ids of several runs begin or end with this text.
    #[error("more than one run's id begins or ends with {wanted:?}")]
    AmbiguousRun {
        /// The text that was searched for.
        wanted: String,
    },
    /// Another schedule has this name.
    #[error("another schedule is called {name}")]
    ScheduleExists {
        /// The name.
        name: String,
    },
    /// No schedule has this name.
    #[error("no schedule is called {wanted:?}")]
    NoSuchSchedule {
        /// The text that was searched for.
        wanted: String,
    },
    /// Another token has this name.
    #[error("another token is called {name}")]
    TokenExists {
        /// The name.
        name: String,
    },
    /// No token has this name.
    #[error("no token is called {wanted:?}")]
    NoSuchToken {
        /// The text that was searched for.
        wanted: String,
    },
    /// Another monitor has this name.
    #[error("another monitor is called {name}")]
    MonitorExists {
        /// The name.
        name: String,
    },
    /// No monitor has this name.
    #[error("no monitor is called {wanted:?}")]
    NoSuchMonitor {
        /// The text that was searched for.
        wanted: String,
    },
    /// Another channel has this name.
    #[error("another channel is called {name}")]
    ChannelExists {
        /// The name.
        name: String,
    },
    /// No channel has this name.
    #[error("no channel is called {wanted:?}")]
    NoSuchChannel {
        /// The text that was searched for.
        wanted: String,
    },
    /// Another rule has this name.
    #[error("another rule is called {name}")]
    RuleExists {
        /// The name.
        name: String,
    },
    /// No rule has this name.
    #[error("no rule is called {wanted:?}")]
    NoSuchRule {
        /// The text that was searched for.
        wanted: String,
    },
    /// A result can't be written as JSON, or a saved one can't be read.
    #[error("{source}")]
    Document {
        /// The cause.
        source: serde_json::Error,
    },
    /// The host refused a thread for a connection to the database.
    #[error("{0}")]
    ThreadLimit(ThreadLimitReached),
    /// Any other error of the database.
    #[error("{doing}: {source}")]
    Sql {
        /// The operation.
        doing: &'static str,
        /// The database.
        place: StorePlace,
        /// The error of the database.
        source: sqlx::Error,
    },
}

/// What differs from the migrations of this version. The words of sqlx about an unfinished migration contain an advice
/// that is not ours.
fn difference(error: &MigrateError) -> String {
    match error {
        MigrateError::Dirty(migration) => format!("its migration {migration} is marked as unfinished"),
        other => other.to_string(),
    }
}

impl StorageError {
    fn other(doing: &'static str, place: StorePlace, source: sqlx::Error) -> Self {
        // A SQLite connection needs a thread.
        let sqlx::Error::Io(error) = source else { return Self::Sql { doing, place, source } };
        let error = thread_limit::explained(error);
        match ThreadLimitReached::of(&error) {
            Some(refused) => Self::ThreadLimit(refused.clone()),
            None => Self::Sql { doing, place, source: sqlx::Error::Io(error) },
        }
    }
}

impl From<DatabaseError> for StorageError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Unusable { path, source } => Self::Folder { path, source },
            DatabaseError::Damaged { path, .. } => Self::Corrupt { place: StorePlace::File(path) },
            DatabaseError::Newer { path, migration } => Self::Newer { place: StorePlace::File(path), migration },
            DatabaseError::Altered { path, source } => Self::Altered { place: StorePlace::File(path), source },
            DatabaseError::Refused { path, doing, cause, source } => match cause {
                SqliteRefusal::Busy => Self::Locked { doing },
                SqliteRefusal::ReadOnly => Self::ReadOnly { doing, place: StorePlace::File(path) },
                SqliteRefusal::Full => Self::Full { doing, place: StorePlace::File(path) },
                SqliteRefusal::CannotOpen => Self::Folder { path, source: io::Error::other(source) },
                SqliteRefusal::Other => Self::other(doing, StorePlace::File(path), source),
            },
        }
    }
}

impl StorageError {
    /// Whether the operation failed because the folder or the file cannot be opened or written.
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Folder { .. } | Self::ReadOnly { .. })
    }

    /// Whether the operation failed because the folder or the file does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
