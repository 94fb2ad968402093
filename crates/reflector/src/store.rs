//! The reflector's database. It holds what the reflector needs after a crash, such as the paired devices, the tests of
//! the last hour, the bytes that each device used today, and the last line of each chain of the audit log. All SQL of
//! the crate is here and in `store/`.
//!
//! An acknowledged change is on disk. Every change is one transaction, and takes the write lock when it begins. After
//! its commit, a second connection must see that the database changed; otherwise the change counts as failed. A
//! connection that returns to its pool inside a transaction is closed (docs/decisions/0019).

mod audit_heads;
mod change;
mod error;
mod peers;
mod prefixes;
#[cfg(test)]
mod tests;
mod usage;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use paramedic_host::database::{Database, create_private_file, create_private_folder, durable_options};
use paramedic_link::EndpointId;
use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::sync::watch;

use change::one_connection;
pub use error::StoreError;
use error::failure;
pub use peers::{OwedLine, Peer};
pub use usage::OpenLease;

/// The page cache of a connection, in KiB. It is large enough for one change. With SQLite's default of 2,000 KiB, the
/// cache grows for weeks, and looks like a memory leak.
const CACHE_KIB: u32 = 256;
/// How long a change waits for another process that writes to the file. A reader, such as a backup, blocks no writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The migrations of the database. A migration never changes once it is released.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// The reflector's database. Cheap to clone. When a call that changes it returns `Ok`, the change is on disk.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    /// A second connection, which only reads. It sees what is in the file, but not what is only in the memory of the
    /// writing connection.
    witness: SqlitePool,
    path: Arc<Path>,
    /// Why the last change failed; `None` if it succeeded.
    fault: watch::Sender<Option<String>>,
    /// The lock on the folder. It is held as long as a clone of the [`Store`] exists, so no second reflector serves
    /// from this folder.
    _lock: Arc<File>,
}

impl Store {
    /// Opens the database and migrates it. Creates the file (mode 0600) and its folder (mode 0700) if they do not
    /// exist.
    ///
    /// # Errors
    ///
    /// Fails if the file is not a database, or was written by a newer version; the file is never overwritten. Also
    /// fails if another reflector serves from the folder.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_private_folder(folder).map_err(StoreError::opening)?;
        let lock = lock_folder(folder)?;
        create_private_file(path).map_err(StoreError::opening)?;
        let options = durable_options(path, BUSY_TIMEOUT)
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            // On a slow disk, a line for each slow statement would fill the log.
            .disable_statement_logging();
        let witness = options.clone().read_only(true);
        // A single writing connection: SQLite allows one writer anyway, and no task ever gets a busy error from
        // another.
        let database = Database { path, options, pool: one_connection(), is_checked: true, migrations: &MIGRATIONS };
        let pool = database.open().await.map_err(StoreError::opening)?;
        Ok(Self::of(path, pool, witness, lock))
    }

    /// Builds the store from an open pool. The second connection is opened with the options `witness` when it is first
    /// needed.
    fn of(path: &Path, pool: SqlitePool, witness: SqliteConnectOptions, lock: File) -> Self {
        let witness = one_connection().connect_lazy_with(witness);
        Self { pool, witness, path: path.into(), fault: watch::channel(None).0, _lock: Arc::new(lock) }
    }

    /// Waits for writes in progress, then closes the file for every clone.
    pub async fn close(&self) {
        // The writing connection closes last: it merges everything into the one file.
        self.witness.close().await;
        self.pool.close().await;
    }

    fn failure(&self, doing: &'static str, why: sqlx::Error) -> StoreError {
        failure(&self.path, doing, why)
    }

    fn damaged(&self, detail: &str) -> StoreError {
        StoreError::Damaged { path: self.path.to_path_buf(), detail: detail.to_owned() }
    }

    fn endpoint_id(&self, bytes: &[u8]) -> Result<EndpointId, StoreError> {
        let bytes = bytes.try_into().map_err(|_| self.damaged("an Endpoint ID is not 32 bytes long"))?;
        Ok(EndpointId::from_bytes(bytes))
    }
}

/// Locks the folder. The lock leaves no file behind, and ends with the process.
fn lock_folder(folder: &Path) -> Result<File, StoreError> {
    let unusable = |source| StoreError::Unusable { path: folder.to_owned(), source };
    let lock = File::open(folder).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Converts a number for SQLite, whose integers are signed. No stored number comes near the limit of these integers.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "rows are dated by the host's clock")]
fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
