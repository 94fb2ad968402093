//! The appliance's database and all of its SQL: paired reflectors, runs, schedules, monitors, rules and alerts. The
//! database is a SQLite file in the state folder, or is on a PostgreSQL server. SQLite and PostgreSQL have separate
//! migrations with the same numbers.

mod alerts;
mod backup;
mod channels;
mod check;
mod configuration;
mod direct_mode;
#[cfg(test)]
pub(crate) mod each_engine;
mod error;
mod export;
mod history;
mod latest;
mod logins;
mod messages;
mod monitors;
mod page;
mod place;
mod plan;
mod pool;
mod postgres_url;
mod reflector_names;
mod reflectors;
mod retention;
mod rules;
mod runs;
mod schedules;
mod server;
mod sums;
mod table_export;
mod tokens;
mod undated;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paramedic_host::database::{
    Database, DatabaseError, companion_files, create_private_file, create_private_folder, durable_options,
    pool_options, reading_options,
};
use rustix::fs::{Access, AtFlags, CWD};
use sqlx::migrate::Migrator;

use pool::{StorePool, in_change, rows};
use server::PostgresServer;

pub use alerts::{AlertRecord, AlertWrite, NewMessage, RuleWrite, StoredAlert};
pub use channels::StoredChannel;
pub use check::StoreCheck;
pub use configuration::{
    ChannelWrite, ConfigurationWrite, FileChanges, MonitorWrite, PlanWrite, RuleFileWrite, ScheduleWrite,
};
pub use direct_mode::DirectModeFinding;
pub use error::StorageError;
pub use export::{Export, ExportFormat};
pub use history::{RunSums, ValueSum};
pub use latest::LatestRun;
pub use logins::StoredPassword;
pub use messages::{AttemptRecord, DeliveryOutcome, DueDelivery, MessageDelivery, StoredMessage};
pub use monitors::{MonitorMinute, StoredMonitor, StoredOutage, target_after};
pub use page::{PageCursor, TimeRange};
pub use place::StorePlace;
pub use plan::StoredPlan;
pub use postgres_url::{PostgresAddress, PostgresUrl};
pub use reflectors::{Reflector, find_reflector};
pub use retention::{Pruned, Retention};
pub use rules::StoredRule;
pub use runs::{RunOrder, RunPosition, RunQuery, SavedRun};
pub use schedules::{RunEnding, ScheduleRun, ScheduleRunOutcome, StoredSchedule};
pub use server::DatabaseLock;
pub use sums::{LossSum, OutageSum};
pub use table_export::{ExportLines, ExportedTable, MonitorSpan, TableExport, TableFormat};
pub use tokens::{AccessScope, StoredToken};
pub use undated::{Undated, UndatedMinute};

/// The name of the database file in the state folder.
pub const FILE: &str = "packetparamedic.db";

/// How long a change waits for a lock that another writer holds. A writer holds this lock only for milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The mode bits for write permission of the group and of other users.
const OTHERS_WRITE: u32 = 0o022;
/// The maximum number of symbolic links that are followed, the same as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The migrations that create the tables of a SQLite file.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The migrations in the dialect of PostgreSQL. They create the same tables and have the same numbers as the ones for
/// SQLite.
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The appliance's database: pairings, results, monitors, rules and so on. Clones share one pool of connections.
#[derive(Clone, Debug)]
pub struct ApplianceStore {
    pool: StorePool,
    sums: Arc<Mutex<history::SumsCache>>,
    latest: Arc<Mutex<latest::LatestRuns>>,
}

impl ApplianceStore {
    /// Opens the database in this state folder. Creates the folder (0700) and the file (0600) if they do not exist, and
    /// migrates an older file. Fails and leaves the file unchanged if SQLite finds it damaged or if a newer version of
    /// this program wrote it.
    pub async fn open(state_dir: &Path) -> Result<Self, StorageError> {
        let path = state_dir.join(FILE);
        let folder = state_dir.to_owned();
        let prepared = tokio::task::spawn_blocking(move || prepare(&folder)).await;
        // The lock is held until the tables exist: two programs that start at once would both create the tables.
        let panicked = |panic| StorageError::Folder { path: state_dir.to_owned(), source: io::Error::other(panic) };
        let _turn = prepared.map_err(panicked)??;
        let options = durable_options(&path, BUSY_TIMEOUT);
        let migrations = &MIGRATIONS;
        // The check reads the whole file, which is too slow for a short command.
        let database = Database { path: &path, options, pool: pool_options(4), is_checked: false, migrations };
        let pool = database.open().await?;
        Ok(Self::of(StorePool::Sqlite(pool, path)))
    }

    fn of(pool: StorePool) -> Self {
        Self { pool, sums: Arc::default(), latest: Arc::default() }
    }

    /// Opens a database on a PostgreSQL server. Migrates a database of an older version. Fails and leaves the database
    /// unchanged if a newer version of this program migrated it.
    pub async fn open_on_server(address: &PostgresAddress) -> Result<Self, StorageError> {
        let server = PostgresServer::open(address, &POSTGRES_MIGRATIONS).await?;
        Ok(Self::of(StorePool::Postgres(server)))
    }

    /// Opens a database on a PostgreSQL server for reading. A later write through the returned store fails with
    /// [`StorageError::ReadOnly`].
    pub async fn open_on_server_for_reading(address: &PostgresAddress) -> Result<Self, StorageError> {
        let server = PostgresServer::open_for_reading(address).await?;
        Ok(Self::of(StorePool::Postgres(server)))
    }

    /// Opens an existing database for reading and changes nothing in the folder. A later write through the returned
    /// store fails with [`StorageError::ReadOnly`].
    pub async fn open_for_reading(state_dir: &Path) -> Result<Self, StorageError> {
        Self::open_file_for_reading(&state_dir.join(FILE)).await
    }

    /// Opens the database file at `path` for reading, as [`ApplianceStore::open_for_reading`] opens the database file
    /// of a state folder.
    pub async fn open_file_for_reading(path: &Path) -> Result<Self, StorageError> {
        let path = path.to_owned();
        // A user who can write a folder can replace the file or the link to it there, or add a log to the file that
        // SQLite reads as its newest pages.
        let mut link = path.clone();
        for _ in 0..MOST_LINKS {
            check_unwritten_by_others(folder_of(&link))?;
            let Ok(next) = std::fs::read_link(&link) else { break };
            link = folder_of(&link).join(next);
        }
        let target = std::fs::canonicalize(&path);
        let target = target.map_err(|source| StorageError::Folder { path: path.clone(), source })?;
        check_unwritten_by_others(folder_of(&target))?;
        check_unwritten_by_others(&target)?;
        for companion in companion_files(&target) {
            if companion.try_exists().map_err(|source| StorageError::Folder { path: companion.clone(), source })? {
                check_unwritten_by_others(&companion)?;
            }
        }
        // Opens the resolved path that was checked, because a link can be changed meanwhile.
        let pool = pool_options(1).connect_with(reading_options(&target)).await;
        let pool = pool.map_err(|error| DatabaseError::of(&path, "opening the database", error))?;
        Ok(Self::of(StorePool::Sqlite(pool, path)))
    }

    /// Checks that the database can be changed.
    pub async fn check_writable(&self) -> Result<(), StorageError> {
        let fault = || self.fault("preparing to save");
        let mut work = self.pool.begin().await.map_err(fault())?;
        // For a read-only file, SQLite begins a transaction without an error, and only a write fails.
        in_change!(&mut work, |db| sqlx::query("DELETE FROM runs WHERE id = ''").execute(db).await.map(rows))
            .map_err(fault())?;
        work.rollback().await.map_err(fault())
    }

    /// Takes a lock on the database of a server, so that only one service at a time uses this database. Returns `None`
    /// for a SQLite file: there, a lock in the state folder has the same effect.
    pub async fn lock_service(&self) -> Result<Option<DatabaseLock>, StorageError> {
        match &self.pool {
            StorePool::Sqlite(..) => Ok(None),
            StorePool::Postgres(server) => server.lock_service().await.map(Some),
        }
    }

    /// Closes every connection. Not needed for durability: acknowledged changes are already on disk.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// Where the database is.
    pub fn place(&self) -> StorePlace {
        self.pool.place()
    }

    /// Returns a function that converts an error of the database to the [`StorageError`] for its cause. `doing` names
    /// the operation that failed.
    fn fault(&self, doing: &'static str) -> impl FnOnce(sqlx::Error) -> StorageError {
        move |error| self.pool.fault(doing, error)
    }

    /// The migrations for the database engine of this store.
    fn migrations(&self) -> &'static Migrator {
        match &self.pool {
            StorePool::Sqlite(..) => &MIGRATIONS,
            StorePool::Postgres(_) => &POSTGRES_MIGRATIONS,
        }
    }
}

/// The folder that contains this path.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Fails if a user other than root and the user of this program could have written this folder or file.
fn check_unwritten_by_others(path: &Path) -> Result<(), StorageError> {
    let fault = |source| StorageError::Folder { path: path.to_owned(), source };
    // The file is not opened: closing a descriptor of an open database would release SQLite's own locks.
    let about = std::fs::metadata(path).map_err(fault)?;
    let is_foreign = ![0, rustix::process::geteuid().as_raw()].contains(&about.uid());
    if is_foreign || about.mode() & OTHERS_WRITE != 0 {
        let because = "another user could have written it";
        return Err(fault(io::Error::new(io::ErrorKind::PermissionDenied, because)));
    }
    Ok(())
}

/// Creates the folder and the file. Takes a lock, so that only one program at a time creates the tables. Dropping the
/// returned file releases the lock.
fn prepare(folder: &Path) -> Result<File, StorageError> {
    create_private_folder(folder)?;
    // If SQLite's log already exists, SQLite could write the database even in a folder that this user cannot write, and
    // the log may belong to another user. Opening for reading checks that.
    rustix::fs::accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS)
        .map_err(|errno| StorageError::Folder { path: folder.to_owned(), source: errno.into() })?;
    // Locks the folder, not the database: closing any descriptor of the database would release SQLite's own locks.
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

/// Converts an error that a stored value caused, such as an invalid id, to an [`sqlx::Error`].
fn strange(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// Converts a number for SQL, which has no unsigned integers. All stored numbers are far below the limit of `i64`.
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
    use std::sync::Arc;

    use paramedic_report::document::example;
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::each_engine::{TestPlace, file_pool, on_each_engine, on_each_place};
    use super::pool::on;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn folder_and_file_are_private_to_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let history = ApplianceStore::open(&state).await.unwrap();
        assert_eq!((mode(&state), mode(history.place().file().unwrap())), (0o700, 0o600));
        history.save_run(&example::full()).await.unwrap();
        assert_eq!(mode(&state.join("packetparamedic.db-wal")), 0o600);
        history.close().await;
        fs::set_permissions(state.join(FILE), fs::Permissions::from_mode(0o644)).unwrap();
        let history = ApplianceStore::open(&state).await.unwrap();
        assert_eq!(mode(history.place().file().unwrap()), 0o600);
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
        // Refused if other users can write the folder, because they could add a log to the file.
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
    async fn a_log_that_others_can_write_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        history.save_run(&example::full()).await.unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for suffix in ["-wal", "-shm"] {
            let companion = folder.path().join(format!("{FILE}{suffix}"));
            for (mode, is_refused) in [(0o602, true), (0o660, true), (0o644, false)] {
                fs::set_permissions(&companion, fs::Permissions::from_mode(mode)).unwrap();
                let opened = ApplianceStore::open_for_reading(folder.path()).await;
                let text = opened.as_ref().map_or_else(ToString::to_string, |_| String::new());
                assert_eq!(text.contains("another user"), is_refused, "{suffix} {mode:o}: {text}");
            }
        }
        history.close().await;
    }

    #[tokio::test]
    async fn a_link_to_a_database_in_a_folder_that_others_can_write_is_refused() {
        let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let history = ApplianceStore::open(other.path()).await.unwrap();
        history.save_run(&example::full()).await.unwrap();
        history.close().await;
        let link = folder.path().join(FILE);
        std::os::unix::fs::symlink(other.path().join(FILE), &link).unwrap();
        // The modes of the folder of the link, and of that of the file.
        for (of_link, of_file, is_refused) in
            [(0o700, 0o1777, true), (0o700, 0o770, true), (0o777, 0o700, true), (0o700, 0o755, false)]
        {
            for (folder, mode) in [(&folder, of_link), (&other, of_file)] {
                fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            }
            let opened = ApplianceStore::open_for_reading(folder.path()).await;
            let text = opened.as_ref().map_or_else(ToString::to_string, |_| String::new());
            assert_eq!(text.contains("another user"), is_refused, "{of_link:o} {of_file:o}: {text}");
            if !is_refused {
                let opened = opened.unwrap();
                assert_eq!(opened.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 1);
                assert_eq!(opened.place().file(), Some(link.as_path()));
                opened.close().await;
            }
        }
        // A link to a link in a folder that others can write.
        let between = tempfile::tempdir().unwrap();
        fs::set_permissions(between.path(), fs::Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink(other.path().join(FILE), between.path().join(FILE)).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(between.path().join(FILE), &link).unwrap();
        let refused = ApplianceStore::open_for_reading(folder.path()).await.unwrap_err().to_string();
        assert!(refused.contains("another user"), "{refused}");
        fs::set_permissions(between.path(), fs::Permissions::from_mode(0o755)).unwrap();
        ApplianceStore::open_for_reading(folder.path()).await.unwrap().close().await;
        fs::remove_file(other.path().join(FILE)).unwrap();
        let absent = ApplianceStore::open_for_reading(folder.path()).await.unwrap_err();
        assert!(absent.is_absent(), "{absent:?}");
    }

    #[tokio::test]
    async fn commits_reach_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(file_pool(&history)).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(file_pool(&history)).await.unwrap();
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
    async fn a_newer_database_is_refused() {
        on_each_place(async |place| {
            let history = place.open().await.unwrap();
            let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                         SELECT 9999, 'later', TRUE, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
            on!(history.pool, |db| sqlx::query(later).execute(db).await.map(rows)).unwrap();
            history.close().await;
            let error = place.open().await.unwrap_err();
            assert!(matches!(error, StorageError::Newer { migration: 9999, .. }), "{error:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_database_with_other_migrations_is_refused() {
        on_each_place(async |place| {
            let history = place.open().await.unwrap();
            let other = "UPDATE _sqlx_migrations SET checksum = (SELECT checksum FROM _sqlx_migrations WHERE version = 1) \
                         WHERE version = 2";
            on!(history.pool, |db| sqlx::query(other).execute(db).await.map(rows)).unwrap();
            history.close().await;
            let error = place.open().await.unwrap_err();
            assert!(matches!(error, StorageError::Altered { .. }), "{error:?}");
        })
        .await;
    }

    #[test]
    fn both_engines_have_the_same_migrations() {
        let names = |migrations: &'static Migrator| {
            migrations.iter().map(|migration| (migration.version, &*migration.description)).collect::<Vec<_>>()
        };
        assert_eq!(names(&MIGRATIONS), names(&POSTGRES_MIGRATIONS));
        // The queries of the other tests, which run on both engines, compare the tables and the columns.
        assert!(!names(&MIGRATIONS).is_empty());
    }

    #[tokio::test]
    async fn what_is_opened_for_reading_refuses_changes() {
        on_each_place(async |place| {
            let history = place.open().await.unwrap();
            history.save_run(&example::full()).await.unwrap();
            let reading = place.open_for_reading().await.unwrap();
            assert_eq!(reading.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 1);
            for refused in [reading.check_writable().await, reading.save_run(&example::bare()).await] {
                assert!(matches!(refused, Err(StorageError::ReadOnly { .. })), "{refused:?}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn changes_wait_for_each_other_and_a_dropped_one_is_undone() {
        on_each_engine(async |store| {
            let delete = "DELETE FROM runs";
            store.save_run(&example::full()).await.unwrap();
            let mut dropped = store.pool.begin().await.unwrap();
            assert_eq!(in_change!(&mut dropped, |db| sqlx::query(delete).execute(db).await.map(rows)).unwrap(), 1);
            let other = tokio::spawn({
                let store = store.clone();
                async move {
                    let work = store.pool.begin().await.unwrap();
                    let seen = store.runs(&RunQuery::default(), None, 10).await.unwrap().len();
                    work.commit().await.unwrap();
                    seen
                }
            });
            drop(dropped);
            assert_eq!(other.await.unwrap(), 1);
        })
        .await;
    }

    #[tokio::test]
    async fn changes_of_many_writers_at_once_are_all_made() {
        on_each_engine(async |store| {
            let writers = (1..=8_u8).map(|key| {
                let store = store.clone();
                tokio::spawn(async move {
                    let reflector = Reflector {
                        endpoint_id: paramedic_link::EndpointId::from_bytes([key; 32]),
                        name: "attic".into(),
                        address: "203.0.113.7".parse().unwrap(),
                        paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
                    };
                    store.add_reflector(&reflector).await.unwrap().name.to_string()
                })
            });
            let mut names = Vec::new();
            for writer in writers.collect::<Vec<_>>() {
                names.push(writer.await.unwrap());
            }
            names.sort();
            assert_eq!(names[..2], ["attic", "attic-2"]);
            assert_eq!((names.len(), &*names[7]), (8, "attic-8"), "each has a name of its own: {names:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_file_of_the_first_version_is_upgraded_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = include_str!("../../migrations/sqlite/0001_reflectors_and_runs.sql");
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
        let mut connection = file_pool(&history).acquire().await.unwrap();
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
        // When the disk is full, the existing data can still be read.
        history.runs(&RunQuery::default(), None, 10).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_whose_commit_failed_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        // Use up the other connections: the failed commit and the next commit must use the same connection.
        let _others = [file_pool(&history).acquire().await.unwrap(), file_pool(&history).acquire().await.unwrap()];
        let _third = file_pool(&history).acquire().await.unwrap();
        let mut work = file_pool(&history).begin_with("BEGIN IMMEDIATE").await.unwrap();
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
        let other =
            other.connect_with(SqliteConnectOptions::new().filename(history.place().file().unwrap())).await.unwrap();
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
    async fn many_programs_can_open_a_new_place_at_once() {
        for place in TestPlace::each() {
            let place = Arc::new(place);
            let opening = (0..8).map(|_| {
                let place = Arc::clone(&place);
                tokio::spawn(async move { place.open().await.map(drop) })
            });
            for opened in opening.collect::<Vec<_>>() {
                opened.await.unwrap().unwrap();
            }
        }
    }
}
