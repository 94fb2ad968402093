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
    /// A folder or a file, such as the state folder or the database file, can't be created, opened or written.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The path of the folder or file.
        path: PathBuf,
        /// Why the folder or the file can't be used.
        source: io::Error,
    },
    /// The database is damaged, or the file is not a database.
    #[error("{place} is damaged")]
    Corrupt {
        /// Where the database is.
        place: StorePlace,
    },
    /// The database was written by a later version of this program.
    #[error("{place} is from a newer version of this program (this version does not know migration {migration})")]
    Newer {
        /// Where the database is.
        place: StorePlace,
        /// The number of the first migration that this program does not know.
        migration: i64,
    },
    /// The tables of the database differ from the tables that the migrations of this version create.
    #[error("{place} does not have the tables of this version: {}", difference(source))]
    Altered {
        /// Where the database is.
        place: StorePlace,
        /// How the tables differ.
        source: Box<MigrateError>,
    },
    /// The disk of the database is full.
    #[error("{doing}: the disk is full")]
    Full {
        /// The operation that failed.
        doing: &'static str,
        /// Where the database is.
        place: StorePlace,
    },
    /// The database or its disk is read-only, or the store was opened for reading.
    #[error("{doing}: {place} is read-only")]
    ReadOnly {
        /// The operation that failed.
        doing: &'static str,
        /// Where the database is.
        place: StorePlace,
    },
    /// Another process held the lock of the database for too long.
    #[error("{doing}: another program has locked the database")]
    Locked {
        /// The operation that failed.
        doing: &'static str,
    },
    /// The database server does not answer, or its answer was lost.
    #[error("{doing}: {server} does not answer: {because}")]
    Unreachable {
        /// The operation that failed.
        doing: &'static str,
        /// The URL of the database, without its password.
        server: String,
        /// Why the server could not be reached, in words.
        because: String,
    },
    /// The database server refuses the user, the password or the database, or the settings of the connection are not
    /// valid.
    #[error("{server}: {because}")]
    Refused {
        /// The URL of the database, without its password.
        server: String,
        /// The message of the database server, or what is wrong with the settings.
        because: String,
    },
    /// The encoding of the database on a server cannot represent every text.
    #[error("{server} has the encoding {encoding}, not UTF8")]
    Encoding {
        /// The URL of the database, without its password.
        server: String,
        /// The encoding of the database.
        encoding: String,
    },
    /// Another service already uses this database on a server.
    #[error("another service uses {server}")]
    InUse {
        /// The URL of the database, without its password.
        server: String,
    },
    /// The file with the password of the database server can't be read.
    #[error("{}: {source}", path.display())]
    PasswordFile {
        /// The path of the password file.
        path: PathBuf,
        /// Why the password file can't be read.
        source: io::Error,
    },
    /// This program can't copy the database of a server into a file.
    #[error("{server} is a database server: back it up with PostgreSQL's own tools")]
    NoCopy {
        /// The URL of the database, without its password.
        server: String,
    },
    /// Another reflector has this name.
    #[error("another reflector is called {name}")]
    NameTaken {
        /// The name that is taken.
        name: String,
    },
    /// The new name of a reflector has no printable character.
    #[error("a name needs at least one printable character")]
    NoName,
    /// No paired reflector has this name, address or Endpoint ID.
    #[error("no paired reflector has the name, address or Endpoint ID {wanted:?}")]
    NoSuchReflector {
        /// The name, address or Endpoint ID that was searched for.
        wanted: String,
    },
    /// More than one paired reflector has this name, address or Endpoint ID.
    #[error("{wanted:?} matches the reflectors {}", names.join(" and "))]
    AmbiguousReflector {
        /// The name, address or Endpoint ID that was searched for.
        wanted: String,
        /// The names of the reflectors that were found.
        names: Vec<String>,
    },
    /// No run has an id that begins or ends with this text.
    #[error("no run's id begins or ends with {wanted:?}")]
    NoSuchRun {
        /// The id, or the begin or the end of an id, that was searched for.
        wanted: String,
    },
    /// The ids of several runs begin or end with this text.
    #[error("the ids of more than one run begin or end with {wanted:?}")]
    AmbiguousRun {
        /// The begin or the end of an id that was searched for.
        wanted: String,
    },
    /// Another schedule has this name.
    #[error("another schedule is called {name}")]
    ScheduleExists {
        /// The name that is taken.
        name: String,
    },
    /// No schedule has this name.
    #[error("no schedule is called {wanted:?}")]
    NoSuchSchedule {
        /// The name of the schedule that was searched for.
        wanted: String,
    },
    /// Another token has this name.
    #[error("another token is called {name}")]
    TokenExists {
        /// The name that is taken.
        name: String,
    },
    /// No token has this name.
    #[error("no token is called {wanted:?}")]
    NoSuchToken {
        /// The name of the token that was searched for.
        wanted: String,
    },
    /// Another monitor has this name.
    #[error("another monitor is called {name}")]
    MonitorExists {
        /// The name that is taken.
        name: String,
    },
    /// No monitor has this name.
    #[error("no monitor is called {wanted:?}")]
    NoSuchMonitor {
        /// The name of the monitor that was searched for.
        wanted: String,
    },
    /// Another channel has this name.
    #[error("another channel is called {name}")]
    ChannelExists {
        /// The name that is taken.
        name: String,
    },
    /// No channel has this name.
    #[error("no channel is called {wanted:?}")]
    NoSuchChannel {
        /// The name of the channel that was searched for.
        wanted: String,
    },
    /// Another rule has this name.
    #[error("another rule is called {name}")]
    RuleExists {
        /// The name that is taken.
        name: String,
    },
    /// No rule has this name.
    #[error("no rule is called {wanted:?}")]
    NoSuchRule {
        /// The name of the rule that was searched for.
        wanted: String,
    },
    /// A result or another object can't be written as JSON, or stored JSON can't be read.
    #[error("{source}")]
    Document {
        /// Why the JSON can't be written or read.
        source: serde_json::Error,
    },
    /// The host refused a thread for a connection to the database.
    #[error("{0}")]
    ThreadLimit(ThreadLimitReached),
    /// Any other error of the database.
    #[error("{doing}: {source}")]
    Sql {
        /// The operation that failed.
        doing: &'static str,
        /// Where the database is.
        place: StorePlace,
        /// The error of the database.
        source: sqlx::Error,
    },
}

/// How the tables differ from the migrations of this version. The text of sqlx about an unfinished migration gives
/// advice that does not apply to this program, so this replaces it.
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
