//! The appliance's database and all of its SQL: paired reflectors, runs, schedules and monitors. One SQLite file in the state folder, with
//! numbered migrations.

mod backup;
mod check;
mod configuration;
mod direct_mode;
mod export;
mod history;
mod logins;
mod monitors;
mod page;
mod plan;
mod reflectors;
mod retention;
mod runs;
mod schedules;
mod sums;
mod tokens;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paramedic_engines::thread_limit::{self, ThreadLimitReached};
use paramedic_host::database::{
    Database, DatabaseError, SqliteRefusal, create_private_file, create_private_folder, durable_options, pool_options,
    reading_options,
};
use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};

pub use check::StoreCheck;
pub use configuration::{ConfigurationWrite, PlanWrite, ScheduleWrite};
pub use direct_mode::DirectModeFinding;
pub use export::{Export, ExportFormat};
pub use history::{RunSums, ValueSum};
pub use logins::StoredPassword;
pub use monitors::{MonitorMinute, StoredMonitor, StoredOutage};
pub use page::PageCursor;
pub use plan::StoredPlan;
pub use reflectors::{Reflector, find_reflector};
pub use retention::{Pruned, Retention};
pub use runs::{RunOrder, RunPosition, RunQuery, SavedRun};
pub use schedules::{RunEnding, ScheduleRun, ScheduleRunOutcome, StoredSchedule};
pub use sums::LossSum;
pub use tokens::{AccessScope, StoredToken};

/// The file's name in the state folder.
pub const FILE: &str = "packetparamedic.db";

/// The timeout for the lock of another writer, which holds it for milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Write permission of the group and of other users.
const OTHERS_WRITE: u32 = 0o022;

static MIGRATIONS: Migrator = sqlx::migrate!();

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
    /// The file is damaged, or is not a database.
    #[error("{} is damaged", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later version of this program.
    #[error("{} was written by a newer version (its migration {migration} is unknown here)", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The first unknown migration.
        migration: i64,
    },
    /// The file's tables are not those of its migrations.
    #[error("{} does not have the tables of this version: {source}", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// The difference.
        source: Box<MigrateError>,
    },
    /// The disk is full.
    #[error("{doing}: the disk is full")]
    Full {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file, or the disk below it, can't be written.
    #[error("{doing}: {} is read-only", path.display())]
    ReadOnly {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Another process held the lock of the file for too long.
    #[error("{doing}: another program has locked it")]
    Locked {
        /// The operation.
        doing: &'static str,
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
        /// The error of the database.
        source: sqlx::Error,
    },
}

/// The appliance's database of pairings and results. Clones share one pool of connections.
#[derive(Clone, Debug)]
pub struct ApplianceStore {
    pool: SqlitePool,
    path: PathBuf,
    sums: Arc<Mutex<history::SumsCache>>,
}

impl ApplianceStore {
    /// Opens the database in this state folder. Creates folder (0700) and file (0600) if they do not exist, and
    /// migrates an older file. A damaged file, and one of a newer version, is refused and left unchanged.
    pub async fn open(state_dir: &Path) -> Result<Self, StorageError> {
        let path = state_dir.join(FILE);
        let folder = state_dir.to_owned();
        let prepared = tokio::task::spawn_blocking(move || prepare(&folder)).await;
        // Held until the tables exist: two programs that start at once would both create them.
        let panicked = |panic| StorageError::Folder { path: state_dir.to_owned(), source: io::Error::other(panic) };
        let _turn = prepared.map_err(panicked)??;
        let options = durable_options(&path, BUSY_TIMEOUT);
        let migrations = &MIGRATIONS;
        // The check reads the whole file, which is too slow for a short command.
        let database = Database { path: &path, options, pool: pool_options(4), is_checked: false, migrations };
        let pool = database.open().await?;
        Ok(Self { pool, path, sums: Arc::default() })
    }

    /// Opens an existing database for reading and changes nothing in the folder. A change of the returned store fails with
    /// [`StorageError::ReadOnly`].
    pub async fn open_for_reading(state_dir: &Path) -> Result<Self, StorageError> {
        Self::open_file_for_reading(&state_dir.join(FILE)).await
    }

    /// The same for a database in any file.
    pub async fn open_file_for_reading(path: &Path) -> Result<Self, StorageError> {
        let path = path.to_owned();
        // Not opened here: closing a descriptor of an open database would drop SQLite's own locks.
        let user = rustix::process::geteuid();
        // A user who can write the folder can replace the file, or add a log to it that SQLite reads as its newest pages.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for part in [folder, &path] {
            let fault = |source| StorageError::Folder { path: part.to_owned(), source };
            let about = std::fs::metadata(part).map_err(fault)?;
            let is_foreign = ![0, user.as_raw()].contains(&about.uid());
            if is_foreign || about.mode() & OTHERS_WRITE != 0 {
                let because = "another user could have written it";
                return Err(fault(io::Error::new(io::ErrorKind::PermissionDenied, because)));
            }
        }
        let pool = pool_options(1).connect_with(reading_options(&path)).await;
        let pool = pool.map_err(|error| DatabaseError::of(&path, "opening it", error))?;
        Ok(Self { pool, path, sums: Arc::default() })
    }

    /// Checks that changes can be made.
    pub async fn check_writable(&self) -> Result<(), StorageError> {
        let fault = || self.fault("preparing to save");
        let mut work = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault())?;
        // Of a file that is read-only, SQLite begins a transaction that reads.
        sqlx::query("DELETE FROM runs WHERE id = ''").execute(&mut *work).await.map_err(fault())?;
        work.rollback().await.map_err(fault())
    }

    /// Closes every connection. Not needed for durability: acknowledged changes are already on disk.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Maps an error of the database during `doing` to the kinds of [`StorageError`].
    fn fault(&self, doing: &'static str) -> impl FnOnce(sqlx::Error) -> StorageError {
        move |error| DatabaseError::of(&self.path, doing, error).into()
    }
}

/// Creates the folder and the file, and takes the lock for the creation of the tables. Dropping the returned file
/// releases the lock.
fn prepare(folder: &Path) -> Result<File, StorageError> {
    create_private_folder(folder)?;
    // Locks the folder, not the database: closing any descriptor of the database would drop SQLite's own locks.
    let turn = File::open(folder).and_then(|turn| {
        rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(turn)
    });
    let turn = turn.map_err(|source| StorageError::Folder { path: folder.to_owned(), source })?;
    match create_private_file(&folder.join(FILE)) {
        Err(DatabaseError::Unusable { source, .. }) => Err(StorageError::Folder { path: folder.to_owned(), source }),
        created => Ok(created.map(|()| turn)?),
    }
}

impl StorageError {
    fn other(doing: &'static str, source: sqlx::Error) -> Self {
        // Each connection has a thread.
        let sqlx::Error::Io(error) = source else { return Self::Sql { doing, source } };
        let error = thread_limit::explained(error);
        match ThreadLimitReached::of(&error) {
            Some(refused) => Self::ThreadLimit(refused.clone()),
            None => Self::Sql { doing, source: sqlx::Error::Io(error) },
        }
    }
}

impl From<DatabaseError> for StorageError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Unusable { path, source } => Self::Folder { path, source },
            DatabaseError::Damaged { path, .. } => Self::Corrupt { path },
            DatabaseError::Newer { path, migration } => Self::Newer { path, migration },
            DatabaseError::Altered { path, source } => Self::Altered { path, source },
            DatabaseError::Refused { path, doing, cause, source } => match cause {
                SqliteRefusal::Busy => Self::Locked { doing },
                SqliteRefusal::ReadOnly => Self::ReadOnly { doing, path },
                SqliteRefusal::Full => Self::Full { doing, path },
                SqliteRefusal::CannotOpen => Self::Folder { path, source: io::Error::other(source) },
                SqliteRefusal::Other => Self::other(doing, source),
            },
        }
    }
}

impl StorageError {
    /// Whether the cause is that the folder or the file cannot be written.
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Folder { .. } | Self::ReadOnly { .. })
    }

    /// Whether there is no such folder or file.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The error for a stored value that this program cannot have written.
fn strange(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// Converts a number for SQL, which has no unsigned integers. All stored numbers are far below the limit.
fn unsigned(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use paramedic_report::document::example;
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn folder_and_file_are_private_to_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let history = ApplianceStore::open(&state).await.unwrap();
        assert_eq!((mode(&state), mode(history.path())), (0o700, 0o600));
        history.save_run(&example::full()).await.unwrap();
        assert_eq!(mode(&state.join("packetparamedic.db-wal")), 0o600);
        history.close().await;
        fs::set_permissions(state.join(FILE), fs::Permissions::from_mode(0o644)).unwrap();
        let history = ApplianceStore::open(&state).await.unwrap();
        assert_eq!(mode(history.path()), 0o600);
    }

    #[tokio::test]
    async fn what_is_opened_for_reading_shows_the_last_commit_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let absent = ApplianceStore::open_for_reading(folder.path()).await.unwrap_err();
        assert!(absent.is_absent() && absent.is_unwritable(), "{absent:?}");
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            entries.collect::<std::collections::BTreeSet<_>>()
        };
        assert!(names().is_empty());
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        history.save_run(&example::full()).await.unwrap();
        history.check_writable().await.unwrap();
        let read = async || {
            let reading = ApplianceStore::open_for_reading(folder.path()).await.unwrap();
            assert_eq!(reading.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 1);
            for refused in [reading.check_writable().await, reading.save_run(&example::bare()).await] {
                assert!(matches!(refused, Err(StorageError::ReadOnly { .. })), "{refused:?}");
            }
            reading.close().await;
        };
        // The run is still in the write-ahead log; then the file is alone.
        read().await;
        history.close().await;
        assert_eq!(names().len(), 1);
        read().await;
        assert_eq!(names().len(), 1);
        // Others can add a log to it.
        for (mode, is_refused) in [(0o1777, true), (0o770, true), (0o755, false)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            let opened = ApplianceStore::open_for_reading(folder.path()).await;
            let text = opened.as_ref().map_or_else(ToString::to_string, |_| String::new());
            assert_eq!(text.contains("another user"), is_refused, "{mode:o}: {text}");
        }
        fs::set_permissions(folder.path().join(FILE), fs::Permissions::from_mode(0o620)).unwrap();
        let refused = ApplianceStore::open_for_reading(folder.path()).await.unwrap_err();
        assert!(refused.to_string().contains("another user"), "{refused}");
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(folder.path().join(FILE), fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(folder.path().join(FILE), Some(65_534), None).unwrap();
            let refused = ApplianceStore::open_for_reading(folder.path()).await.unwrap_err();
            assert!(refused.to_string().contains("another user"), "{refused}");
        }
    }

    #[tokio::test]
    async fn commits_reach_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&history.pool).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&history.pool).await.unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", 2));
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused_and_left_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let garbage = b"this was a database once ".repeat(400);
        fs::write(&path, &garbage).unwrap();
        let error = ApplianceStore::open(folder.path()).await.unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }

    #[tokio::test]
    async fn a_file_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        history.save_run(&example::full()).await.unwrap();
        history.close().await;
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..5000]).unwrap();
        let error = match ApplianceStore::open(folder.path()).await {
            Ok(history) => history.runs(&RunQuery::default(), None, 10).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_newer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, TRUE, x'00', 0)")
            .execute(&history.pool)
            .await
            .unwrap();
        history.close().await;
        let error = ApplianceStore::open(folder.path()).await.unwrap_err();
        assert!(matches!(error, StorageError::Newer { migration: 9999, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_file_of_the_first_version_is_upgraded_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = include_str!("../../migrations/0001_reflectors_and_runs.sql");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let old = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        sqlx::raw_sql(first).execute(&old).await.unwrap();
        sqlx::raw_sql(
            "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on \
             TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum BLOB NOT NULL, \
             execution_time BIGINT NOT NULL)",
        )
        .execute(&old)
        .await
        .unwrap();
        let migration = MIGRATIONS.iter().next().unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (1, 'reflectors and runs', 0, TRUE, $1, 0)")
            .bind(migration.checksum.to_vec())
            .execute(&old)
            .await
            .unwrap();
        let run = example::bare();
        sqlx::query(
            "INSERT INTO runs (id, started_at_us, provider, engine, data_used_bytes, complete, document) \
             VALUES ($1, 1, 'reflector', 'tcp', 5, TRUE, $2)",
        )
        .bind(run.id.to_string())
        .bind(run.to_text().unwrap())
        .execute(&old)
        .await
        .unwrap();
        old.close().await;
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        let runs = history.runs(&RunQuery::default(), None, 10).await.unwrap();
        assert_eq!((runs.len(), runs[0].id, &runs[0].error), (1, run.id, &None));
        assert_eq!(history.run(&run.id.to_string()).await.unwrap().document().unwrap(), run);
        let later = paramedic_report::document::ResultDocument { id: uuid::Uuid::now_v7(), ..example::full() };
        history.save_run(&later).await.unwrap();
        assert_eq!(history.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        // Allow no further page: SQLite then reports the same error as on a full disk.
        let mut connection = history.pool.acquire().await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *connection).await.unwrap();
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit).execute(&mut *connection).await.unwrap();
        drop(connection);
        let error = loop {
            let document = paramedic_report::document::ResultDocument { id: uuid::Uuid::now_v7(), ..example::full() };
            if let Err(error) = history.save_run(&document).await {
                break error;
            }
        };
        assert!(matches!(error, StorageError::Full { .. }), "{error:?}");
        // The existing data can still be read.
        history.runs(&RunQuery::default(), None, 10).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_whose_commit_failed_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        // Use the other connections up: the failed commit and the next one must use the same connection.
        let _others = [history.pool.acquire().await.unwrap(), history.pool.acquire().await.unwrap()];
        let _third = history.pool.acquire().await.unwrap();
        let mut work = history.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *work).await.unwrap();
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit).execute(&mut *work).await.unwrap();
        let filled = sqlx::query("CREATE TABLE filling AS SELECT zeroblob(200000)").execute(&mut *work).await;
        assert!(filled.is_err());
        drop(work);
        let reflector = Reflector {
            endpoint_id: paramedic_link::EndpointId::from_bytes([1; 32]),
            name: "attic".into(),
            address: "203.0.113.7".parse().unwrap(),
            paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        };
        history.add_reflector(&reflector).await.unwrap();
        let other = SqlitePoolOptions::new().max_connections(1);
        let other = other.connect_with(SqliteConnectOptions::new().filename(history.path())).await.unwrap();
        let seen: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM reflectors").fetch_one(&other).await.unwrap();
        assert_eq!(seen, 1);
    }

    #[tokio::test]
    async fn an_unusable_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = ApplianceStore::open(&blocked.join("state")).await.unwrap_err();
        assert!(matches!(error, StorageError::Folder { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn many_programs_can_open_a_new_folder_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let opening = (0..8).map(|_| {
            let state = folder.path().join("state");
            tokio::spawn(async move { ApplianceStore::open(&state).await.map(drop) })
        });
        for opened in opening.collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
    }
}
