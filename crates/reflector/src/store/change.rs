//! One change of the database. It begins with the write lock, and succeeds only if a second connection sees it. An
//! acknowledged change is on disk (docs/decisions/0019).

use std::time::Duration;

use paramedic_host::database::pool_options;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Sqlite, Transaction};
use tokio::sync::watch;

use super::{Store, StoreError};

/// How long a change waits for earlier changes. Together with [`BUSY_TIMEOUT`](super::BUSY_TIMEOUT), it limits how long
/// a caller waits.
const WRITER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the store tests, after a failed change, whether the disk can be written again.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);

/// A transaction that is rolled back when it is dropped, unless `Store::conclude` has committed it.
pub(super) struct PendingChange {
    pub(super) work: Transaction<'static, Sqlite>,
    /// How many rows the connection had changed before this transaction.
    before: i64,
    doing: &'static str,
}

impl Store {
    /// Why the last change failed; `None` if it is on disk. The receiver is notified of each change of this value.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// After a failed change, makes a small change every `PROBE_INTERVAL` until a change succeeds. So the store finds
    /// out that the disk can be written again. Runs until the future is dropped.
    pub async fn watch_over(&self) {
        let mut fault = self.fault();
        // The sender exists as long as this store.
        while fault.wait_for(Option::is_some).await.map(drop).is_ok() {
            tokio::time::sleep(PROBE_INTERVAL).await;
            if fault.borrow().is_some() {
                // An error becomes the new reason of the fault.
                self.probe().await.ok();
            }
        }
    }

    /// Waits until the writing connection answers a query. An error also counts as an answer. While the connection is
    /// busy with an earlier change, this waits.
    pub async fn await_answer(&self) {
        while let Err(sqlx::Error::PoolTimedOut) = sqlx::query("SELECT 1").execute(&self.pool).await {}
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let mut change = self.begin("testing whether the disk can be written").await?;
        let tried = sqlx::query(
            "INSERT INTO probe (one, tries) VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET tries = probe.tries + 1",
        )
        .execute(&mut *change.work)
        .await;
        self.conclude(change, tried.map(drop)).await
    }

    /// Begins a change by taking the write lock, so that a write of another process cannot make the change fail later.
    pub(super) async fn begin(&self, doing: &'static str) -> Result<PendingChange, StoreError> {
        let begun = async {
            let mut work = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let before = total_changes(&mut work).await?;
            Ok(PendingChange { work, before, doing })
        };
        begun.await.map_err(|why| self.note_fault(self.failure(doing, why)))
    }

    /// If `done` is `Ok`, commits the change, and checks that the second connection sees it. If `done` is an error,
    /// rolls the change back.
    pub(super) async fn conclude<T>(
        &self,
        change: PendingChange,
        done: Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let PendingChange { mut work, before, doing } = change;
        let failed = |why| self.failure(doing, why);
        let kept = async {
            let done = done.map_err(failed)?;
            if total_changes(&mut work).await.map_err(failed)? == before {
                // Nothing was changed.
                work.commit().await.map_err(failed)?;
                return Ok((done, false));
            }
            let version = self.data_version().await.map_err(failed)?;
            work.commit().await.map_err(failed)?;
            if self.data_version().await.map_err(failed)? == version {
                return Err(StoreError::NotKept { path: self.path.to_path_buf(), doing });
            }
            Ok((done, true))
        };
        match kept.await {
            Ok((done, has_written)) => {
                if has_written && self.fault.send_replace(None).is_some() {
                    tracing::info!("the database can be written again");
                }
                Ok(done)
            }
            Err(why) => Err(self.note_fault(why)),
        }
    }

    /// A number that changes when another connection commits (SQLite's `data_version`).
    async fn data_version(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.witness).await
    }

    /// Records the error as the present fault if the disk or the file caused it. Returns the error.
    fn note_fault(&self, why: StoreError) -> StoreError {
        if why.is_fault() && self.fault.send_replace(Some(why.to_string())).is_none() {
            tracing::error!(because = %why, "the database can't be written: nothing is granted until it can");
        }
        why
    }
}

async fn total_changes(work: &mut Transaction<'static, Sqlite>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT total_changes()").fetch_one(&mut **work).await
}

/// The options of a pool with a single connection: the one that makes all changes, or the second one, which only reads.
pub(super) fn one_connection() -> SqlitePoolOptions {
    pool_options(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(WRITER_TIMEOUT)
        // A timeout is already an error; a slow disk must not fill the log with further lines.
        .acquire_slow_threshold(2 * WRITER_TIMEOUT)
        // Unlike a server, a local file cannot disconnect.
        .test_before_acquire(false)
}
