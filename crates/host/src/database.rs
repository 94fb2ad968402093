//! Opens a SQLite database. The file is private, commits survive a power failure, migrations are numbered, and errors
//! are classified by their cause. Each program defines its own tables and error texts.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

/// Why a database could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum DatabaseError {
    /// The folder or the file cannot be created or read.
    #[error("cannot create or open {}: {source}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    /// The file is damaged, or is not a database.
    #[error("the database {} is damaged: {detail}", path.display())]
    Damaged {
        path: PathBuf,
        /// SQLite's message.
        detail: String,
    },
    /// A later version of the program wrote the file.
    #[error("a newer version of this program wrote the database {}: it has the unknown migration {migration}", path.display())]
    Newer {
        path: PathBuf,
        /// The number of the first unknown migration.
        migration: i64,
    },
    /// The migrations in the file differ from those of this program.
    #[error("the migrations in the database {} differ from those of this program: {source}", path.display())]
    Altered {
        path: PathBuf,
        /// The difference, as sqlx reports it.
        source: Box<MigrateError>,
    },
    /// SQLite refused an operation.
    #[error("the database {} failed while {doing}: {source}", path.display())]
    Refused {
        path: PathBuf,
        /// The operation, as a participle: `opening it`.
        doing: &'static str,
        /// The kind of refusal.
        cause: SqliteRefusal,
        /// SQLite's message.
        source: sqlx::Error,
    },
}

/// Why SQLite refused an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqliteRefusal {
    /// Another connection held the lock for too long.
    Busy,
    /// The file or its file system is read-only.
    ReadOnly,
    /// The disk is full.
    Full,
    /// The file cannot be opened.
    CannotOpen,
    /// Any other cause.
    Other,
}

impl DatabaseError {
    /// Makes an error from `source`, which an operation on the database at `path` returned. SQLite's primary result
    /// code (<https://www.sqlite.org/rescode.html>) selects the variant.
    pub fn of(path: &Path, doing: &'static str, source: sqlx::Error) -> Self {
        let path = path.to_owned();
        let code = source.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
        // The upper bits of a code only refine it.
        let cause = match code.map(|extended| extended & 0xff) {
            // SQLITE_CORRUPT, SQLITE_NOTADB
            Some(11 | 26) => return Self::Damaged { path, detail: source.to_string() },
            // SQLITE_BUSY, SQLITE_LOCKED
            Some(5 | 6) => SqliteRefusal::Busy,
            Some(8) => SqliteRefusal::ReadOnly,
            Some(13) => SqliteRefusal::Full,
            Some(14) => SqliteRefusal::CannotOpen,
            _ => SqliteRefusal::Other,
        };
        Self::Refused { path, doing, cause, source }
    }

    fn of_migration(path: &Path, error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                Self::of(path, "bringing it up to date", error)
            }
            MigrateError::VersionMissing(migration) => Self::Newer { path: path.to_owned(), migration },
            other => Self::Altered { path: path.to_owned(), source: Box::new(other) },
        }
    }
}

/// The parameters of [`Database::open`].
pub struct Database<'a> {
    /// The path of the database file.
    pub path: &'a Path,
    /// The options of each connection.
    pub options: SqliteConnectOptions,
    /// The limits of the connection pool.
    pub pool: SqlitePoolOptions,
    /// Whether to check the file for damage first, which reads all of it.
    pub is_checked: bool,
    /// The migrations that create the tables. Once released, a migration must never change.
    pub migrations: &'a Migrator,
}

impl Database<'_> {
    /// Opens the database and runs the pending migrations. The file must exist: see [`create_private_file`]. If a newer
    /// version of the program wrote the file, or if the check for damage finds damage, this fails and leaves the file
    /// unchanged.
    pub async fn open(self) -> Result<SqlitePool, DatabaseError> {
        let Self { path, options, pool, is_checked, migrations } = self;
        let pool = pool.connect_with(options).await.map_err(|error| DatabaseError::of(path, "opening it", error))?;
        match prepare(&pool, path, is_checked, migrations).await {
            Ok(()) => Ok(pool),
            Err(error) => {
                // Otherwise SQLite's companion files would remain next to a file that must stay unchanged.
                pool.close().await;
                Err(error)
            }
        }
    }
}

async fn prepare(pool: &SqlitePool, path: &Path, is_checked: bool, migrations: &Migrator) -> Result<(), DatabaseError> {
    if is_checked {
        let lines: Vec<(String,)> = sqlx::query_as("PRAGMA quick_check(1)")
            .fetch_all(pool)
            .await
            .map_err(|error| DatabaseError::of(path, "checking it", error))?;
        if let Some((detail,)) = lines.into_iter().find(|(line,)| line != "ok") {
            return Err(DatabaseError::Damaged { path: path.to_owned(), detail });
        }
    }
    migrations.run(pool).await.map_err(|error| DatabaseError::of_migration(path, error))
}

/// Options of a connection whose commits survive a power failure. The connection waits for other writers for at most
/// `busy_timeout`.
pub fn durable_options(path: &Path, busy_timeout: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // In WAL mode, any lower level may lose the last commits in a power failure.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(busy_timeout)
}

/// Options of a connection that only reads the database. If the write-ahead log is missing or empty, SQLite treats the
/// database file as immutable and creates no file beside it. So this works in a read-only folder. If the log has
/// content, SQLite also reads the log.
pub fn reading_options(path: &Path) -> SqliteConnectOptions {
    let log = fs::metadata(with_suffix(path, "-wal"));
    let is_in_use = log.is_ok_and(|log| log.len() > 0);
    SqliteConnectOptions::new().filename(path).read_only(true).immutable(!is_in_use)
}

/// The paths of the files that SQLite may keep beside the database file. SQLite reads these files as parts of the
/// database.
pub fn companion_files(path: &Path) -> [PathBuf; 3] {
    ["-wal", "-shm", "-journal"].map(|suffix| with_suffix(path, suffix))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Options of a connection pool. If a transaction is still open on a connection that is no longer used, the pool closes
/// the connection and does not reuse it. This happens after a failed commit: SQLite has rolled the transaction back,
/// but sqlx still counts it as open. If such a connection were reused, it would acknowledge changes that it never
/// writes.
pub fn pool_options(max_connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new().max_connections(max_connections).after_release(|connection, _| {
        Box::pin(async move {
            // The ping waits for the queued rollback of a dropped transaction.
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    })
}

/// Creates the folder and its parents with mode 0700. Existing folders are not changed.
pub fn create_private_folder(folder: &Path) -> Result<(), DatabaseError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.map_err(|source| DatabaseError::Unusable { path: folder.to_owned(), source })
}

/// Creates the database file with mode 0600. SQLite itself would take the mode from the umask. SQLite gives its
/// companion files the mode of the database file. If the file exists, removes the permissions of the group and of other
/// users.
pub fn create_private_file(path: &Path) -> Result<(), DatabaseError> {
    let created = || {
        // Created only if absent: closing a descriptor of an open database would drop SQLite's locks on it.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mode = fs::metadata(path)?.permissions().mode();
                if mode & 0o077 == 0 {
                    return Ok(());
                }
                fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))
            }
            Err(error) => Err(error),
        }
    };
    created().map_err(|source| DatabaseError::Unusable { path: path.to_owned(), source })
}

/// Whether the error reports a duplicate value in a unique column.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}
