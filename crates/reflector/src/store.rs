//! Everything the reflector must still know after a crash: peers, tests of the hour, bytes of the day, the audit log's
//! head. All SQL of the crate stands here; what the numbers mean is decided elsewhere.
//!
//! Acknowledged means on disk. Every change is one transaction that takes the write lock when it begins. After its
//! commit, a second connection must see that the database changed; otherwise the change counts as failed. A connection
//! that is still inside a transaction when it comes back is thrown away (docs/decisions/0019).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use paramedic_link::{EndpointId, PeerText, SessionId};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, Transaction};
use tokio::sync::watch;

use crate::audit::{ChainState, Head};
use crate::connection_limiter::Prefix;
use crate::event::{Chain, Event};
use crate::known_prefixes::Seen;

/// How long tests are remembered: the hour that limits look at, and another for a clock that is set back.
const TESTS_KEPT: Duration = Duration::from_secs(2 * 3600);
/// How many days of usage are remembered; limits look at one.
const USAGE_DAYS_KEPT: u32 = 31;
/// Pages that a connection keeps in memory, in KiB. SQLite's own 2,000 fill over weeks and look like a leak; what a
/// change touches fits in this.
const CACHE_KIB: u32 = 256;
/// How long to wait for another process that writes the file just now. Reading it, as a backup does, blocks no one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a change waits for those before it. With [`BUSY_TIMEOUT`] it bounds how long a caller waits at all.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the disk is tried again while the last change failed.
const PROBE_EVERY: Duration = Duration::from_secs(3);

/// Numbered, never changed once released.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// The reflector's database. Cheap to clone. Every change is on disk when its call returns.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    /// Sees what is in the database, and never what is only in the memory of the connection that writes.
    witness: SqlitePool,
    path: Arc<Path>,
    /// Why the last change failed; none when it did not.
    fault: watch::Sender<Option<String>>,
    /// Held as long as any clone lives: no second reflector serves from this folder.
    _lock: Arc<File>,
}

/// A paired appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub id: EndpointId,
    /// Its name here; no two peers share one.
    pub name: PeerText,
    /// `code` or `hand`.
    pub added_by: String,
    /// When it was added, in milliseconds since 1970.
    pub added_unix_ms: u64,
}

/// A line of the audit log that a change of the peers owes.
#[derive(Clone, Debug, PartialEq)]
pub struct OwedLine {
    /// Which.
    pub id: i64,
    /// The last line that was acknowledged before the change: this one can only stand behind it.
    pub after_seq: u64,
    /// What it says.
    pub event: Event,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or the file can't be made or used.
    #[error("cannot use {}: {source}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another reflector serves from the same folder.
    #[error(
        "another reflector is running with the state folder {}; stop it, or give this one its own by --state-dir",
        folder.display()
    )]
    InUse {
        /// The state folder.
        folder: PathBuf,
    },
    /// The file is no database any more. It is left as it is.
    #[error(
        "the database {} is damaged ({detail}); put a backup in its place, or move it and the files beside it that end in -wal and -shm \
         away, the audit folder too, to begin with an empty one: appliances then have to be paired again",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// A newer version of the program wrote it.
    #[error(
        "the database {} was written by a newer version of reflector (its step {step} is unknown here); \
         run that version, or put a backup of the older database in place",
        path.display()
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// The first migration that is unknown.
        step: i64,
    },
    /// The database refused.
    #[error("the database {} failed while {doing}: {source}", path.display())]
    Failed {
        /// Which.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// The database answered that it committed, and nothing was committed.
    #[error("the database {} did not keep what it acknowledged while {doing}", path.display())]
    NotKept {
        /// Which.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
    },
    /// Another peer has that name.
    #[error("another peer is called {0:?} already")]
    NameTaken(PeerText),
    /// No name at all, or one that reads as somebody's identity.
    #[error("a peer's name is neither empty nor an Endpoint ID")]
    NoName,
}

/// Makes `folder` and those above it, for its owner alone where they are new; folders that exist stay as they are.
pub fn create_private_folder(folder: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| StoreError::Unusable { path: folder.to_owned(), source })
}

impl Store {
    /// Opens the database, making it (0600) and its folder (0700) where they are not there, and brings it up to date.
    ///
    /// # Errors
    /// A file that is no database, or a newer one, is an error and never overwritten; so is a folder that another
    /// reflector serves from.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_private_folder(folder)?;
        let unusable = |source| StoreError::Unusable { path: path.to_owned(), source };
        let lock = lock_folder(folder)?;
        create_private_file(path).map_err(unusable)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode, anything less than FULL may forget the last commits when the power fails.
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            .busy_timeout(BUSY_TIMEOUT);
        let store = Self::connect(path, options, lock).await?;
        match store.prepare().await {
            Ok(()) => Ok(store),
            Err(why) => {
                // Otherwise SQLite's companions would be left beside a file that was not to be touched.
                store.close().await;
                Err(why)
            }
        }
    }

    /// Checks the file, and brings it up to date.
    async fn prepare(&self) -> Result<(), StoreError> {
        let path = &*self.path;
        let check: Vec<(String,)> = sqlx::query_as("PRAGMA quick_check(1)")
            .fetch_all(&self.pool)
            .await
            .map_err(|why| failure(path, "checking it", why))?;
        if let Some((detail,)) = check.into_iter().find(|(line,)| line != "ok") {
            return Err(StoreError::Damaged { path: path.to_owned(), detail });
        }
        MIGRATIONS.run(&self.pool).await.map_err(|why| migration_failure(path, why))
    }

    /// What the database at `path` knows of the audit log's chains, read without making, changing or locking anything,
    /// beside a running reflector or without one.
    pub async fn read_audit_chains(path: &Path) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        let lock = File::open(path).map_err(|source| StoreError::Unusable { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let store = Self::connect(path, options, lock).await?;
        let chains = async {
            // A program that was updated and has not served since finds the database of the one before.
            let of_before: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM sqlite_master WHERE name = 'audit_head'")
                .fetch_optional(&store.pool)
                .await
                .map_err(|why| store.failure("reading the audit log's heads", why))?;
            let sql = of_before.map_or(AUDIT_CHAINS, |_| AUDIT_HEAD);
            store.audit_chains_by(sql).await
        };
        let chains = chains.await;
        store.close().await;
        chains
    }

    /// One connection that writes: SQLite has one writer anyway, and so no task here ever meets a busy database.
    async fn connect(path: &Path, options: SqliteConnectOptions, lock: File) -> Result<Self, StoreError> {
        let witness = pool_options().connect_lazy_with(options.clone().read_only(true));
        let pool = pool_options().connect_with(options).await.map_err(|why| failure(path, "opening it", why))?;
        let fault = watch::channel(None).0;
        Ok(Self { pool, witness, path: path.into(), fault, _lock: Arc::new(lock) })
    }

    /// Why the last change failed, and each change of that; `None` when it is on disk.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// Tries the disk again and again while the last change failed. Runs until it is dropped.
    pub async fn watch_over(&self) {
        let mut fault = self.fault();
        // The sender lives as long as we do.
        while fault.wait_for(Option::is_some).await.map(drop).is_ok() {
            tokio::time::sleep(PROBE_EVERY).await;
            if fault.borrow().is_some() {
                // What it meets is the fault's new reason.
                let _ = self.probe().await;
            }
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let mut change = self.begin("trying the disk again").await?;
        let tried = sqlx::query(
            "INSERT INTO probe (one, tries) VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET tries = probe.tries + 1",
        )
        .execute(&mut *change.work)
        .await;
        self.conclude(change, tried.map(drop)).await
    }

    /// Begins a change, with the write lock held: it can't fail later because another process writes.
    async fn begin(&self, doing: &'static str) -> Result<Change, StoreError> {
        let begun = async {
            let mut work = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let before = total_changes(&mut work).await?;
            Ok(Change { work, before, doing })
        };
        begun.await.map_err(|why| self.note_fault(self.failure(doing, why)))
    }

    /// Commits a change that was `done`, and has the second connection see it. What could not be done is rolled back.
    async fn conclude<T>(&self, change: Change, done: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        let Change { mut work, before, doing } = change;
        let failed = |why| self.failure(doing, why);
        let kept = async {
            let done = done.map_err(failed)?;
            if total_changes(&mut work).await.map_err(failed)? == before {
                // Nothing to keep.
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

    /// A number that differs from the last one where another connection has committed in between.
    async fn data_version(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.witness).await
    }

    /// Takes note of an error that says something about the disk; gives it back.
    fn note_fault(&self, why: StoreError) -> StoreError {
        if why.is_fault() && self.fault.send_replace(Some(why.to_string())).is_none() {
            tracing::error!(because = %why, "the database can't be written: nothing is granted until it can");
        }
        why
    }

    /// Waits for what is being written, then closes the file. Every clone is closed with it.
    pub async fn close(&self) {
        // The connection that writes is the last to go: it brings everything into the one file.
        self.witness.close().await;
        self.pool.close().await;
    }

    /// All peers, by name.
    pub async fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        let rows: Vec<(Vec<u8>, String, String, i64)> =
            sqlx::query_as("SELECT id, name, added_by, added_unix_ms FROM peers ORDER BY name")
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the peers", why))?;
        rows.into_iter()
            .map(|(id, name, added_by, added)| {
                let name = PeerText::new(&name);
                Ok(Peer { id: self.endpoint_id(&id)?, name, added_by, added_unix_ms: unsigned(added) })
            })
            .collect()
    }

    /// Whether `id` is a peer.
    pub async fn is_peer(&self, id: EndpointId) -> Result<bool, StoreError> {
        let found: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM peers WHERE id = $1")
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.pool)
            .await
            .map_err(|why| self.failure("looking for a peer", why))?;
        Ok(found.is_some())
    }

    /// Adds a peer; `false` where it is one already, whose name then stays. A name that is taken gets a number; one
    /// that is empty, or that reads as somebody's Endpoint ID, is not used. `by` is `code` or `hand`.
    pub async fn add_peer(&self, id: EndpointId, name: &PeerText, by: &str) -> Result<bool, StoreError> {
        let mut change = self.begin("adding a peer").await?;
        let added = async {
            let known: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM peers WHERE id = $1")
                .bind(&id.as_bytes()[..])
                .fetch_optional(&mut *change.work)
                .await?;
            if known.is_some() {
                return Ok(false);
            }
            let taken: Vec<(String,)> = sqlx::query_as("SELECT name FROM peers").fetch_all(&mut *change.work).await?;
            let name = free_name(name, |name| taken.iter().any(|(other,)| other == name));
            sqlx::query("INSERT INTO peers (id, name, added_by, added_unix_ms) VALUES ($1, $2, $3, $4)")
                .bind(&id.as_bytes()[..])
                .bind(name.as_str())
                .bind(by)
                .bind(signed(unix_now()))
                .execute(&mut *change.work)
                .await?;
            owe(&mut change.work, &Event::PeerAdded { peer: id, name, by: by.to_owned() }).await?;
            Ok(true)
        };
        let added = added.await;
        self.conclude(change, added).await
    }

    /// Removes a peer; `false` where it is none. What it used today stays charged, in case it comes back.
    pub async fn remove_peer(&self, id: EndpointId) -> Result<bool, StoreError> {
        let mut change = self.begin("removing a peer").await?;
        let removed = async {
            let removed = sqlx::query("DELETE FROM peers WHERE id = $1").bind(&id.as_bytes()[..]);
            let is_removed = removed.execute(&mut *change.work).await?.rows_affected() > 0;
            if is_removed {
                forget_prefixes(&mut change.work, id).await?;
                owe(&mut change.work, &Event::PeerRemoved { peer: id }).await?;
            }
            Ok(is_removed)
        };
        let removed = removed.await;
        self.conclude(change, removed).await
    }

    /// Gives a peer another name; `false` where there is no such peer.
    pub async fn rename_peer(&self, id: EndpointId, name: &PeerText) -> Result<bool, StoreError> {
        if !is_name(name.as_str()) {
            return Err(StoreError::NoName);
        }
        let mut change = self.begin("renaming a peer").await?;
        let renamed = async {
            let renamed = sqlx::query("UPDATE peers SET name = $2 WHERE id = $1")
                .bind(&id.as_bytes()[..])
                .bind(name.as_str())
                .execute(&mut *change.work)
                .await?;
            let is_renamed = renamed.rows_affected() > 0;
            if is_renamed {
                owe(&mut change.work, &Event::PeerRenamed { peer: id, name: name.clone() }).await?;
            }
            Ok(is_renamed)
        };
        let renamed = renamed.await;
        match self.conclude(change, renamed).await {
            Err(StoreError::Failed { source, .. }) if is_unique_violation(&source) => {
                Err(StoreError::NameTaken(name.clone()))
            }
            other => other,
        }
    }

    /// The lines of the audit log that changes of the peers owe, oldest first.
    pub async fn owed_lines(&self) -> Result<Vec<OwedLine>, StoreError> {
        let rows: Vec<(i64, i64, String)> = sqlx::query_as("SELECT id, after_seq, event FROM outbox ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the lines that are owed", why))?;
        rows.into_iter()
            .map(|(id, after_seq, event)| {
                let event = serde_json::from_str(&event).map_err(|why| self.damaged(&why.to_string()))?;
                Ok(OwedLine { id, after_seq: unsigned(after_seq), event })
            })
            .collect()
    }

    /// These lines are in the audit log.
    pub async fn lines_written(&self, lines: &[OwedLine]) -> Result<(), StoreError> {
        let mut change = self.begin("noting that lines are written").await?;
        let noted = async {
            for line in lines {
                sqlx::query("DELETE FROM outbox WHERE id = $1").bind(line.id).execute(&mut *change.work).await?;
            }
            Ok(())
        };
        let noted = noted.await;
        self.conclude(change, noted).await
    }

    /// Counts a granted session against its peer's tests an hour. `unix_ms` is when it was granted; tests that are
    /// long past then are forgotten.
    pub async fn record_test(&self, session: SessionId, peer: EndpointId, unix_ms: u64) -> Result<(), StoreError> {
        let kept_ms = u64::try_from(TESTS_KEPT.as_millis()).unwrap_or(u64::MAX);
        let mut change = self.begin("counting a test").await?;
        let recorded = async {
            sqlx::query("DELETE FROM tests WHERE granted_unix_ms < $1")
                .bind(signed(unix_ms.saturating_sub(kept_ms)))
                .execute(&mut *change.work)
                .await?;
            sqlx::query("INSERT INTO tests (session, peer, granted_unix_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(&session.as_bytes()[..])
                .bind(&peer.as_bytes()[..])
                .bind(signed(unix_ms))
                .execute(&mut *change.work)
                .await
        };
        let recorded = recorded.await;
        self.conclude(change, recorded.map(drop)).await
    }

    /// Takes back [`Store::record_test`]: the grant was never told.
    pub async fn forget_test(&self, session: SessionId) -> Result<(), StoreError> {
        let mut change = self.begin("taking back a test").await?;
        let forgotten = sqlx::query("DELETE FROM tests WHERE session = $1").bind(&session.as_bytes()[..]);
        let forgotten = forgotten.execute(&mut *change.work).await;
        self.conclude(change, forgotten.map(drop)).await
    }

    /// Who was granted a session at or after `unix_ms`, and when, oldest first.
    pub async fn tests_since(&self, unix_ms: u64) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT peer, granted_unix_ms FROM tests WHERE granted_unix_ms >= $1 ORDER BY granted_unix_ms, session",
        )
        .bind(signed(unix_ms))
        .fetch_all(&self.pool)
        .await
        .map_err(|why| self.failure("reading the tests", why))?;
        rows.into_iter().map(|(peer, at)| Ok((self.endpoint_id(&peer)?, unsigned(at)))).collect()
    }

    /// Adds `bytes` to what the session may move on `day` (UTC days since 1970). They may flow once this returns.
    pub async fn lease(&self, session: SessionId, peer: EndpointId, day: u32, bytes: u64) -> Result<(), StoreError> {
        let mut change = self.begin("leasing bytes").await?;
        let leased = sqlx::query(
            "INSERT INTO leases (session, day, peer, bytes) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (session, day) DO UPDATE SET bytes = leases.bytes + excluded.bytes",
        )
        .bind(&session.as_bytes()[..])
        .bind(i64::from(day))
        .bind(&peer.as_bytes()[..])
        .bind(signed(bytes))
        .execute(&mut *change.work)
        .await;
        self.conclude(change, leased.map(drop)).await
    }

    /// Ends the session's leases and charges what it did use, by day, in one step.
    ///
    /// # Errors
    /// A session that used bytes and has neither a lease nor a test on record can't be charged to anybody.
    pub async fn settle(&self, session: SessionId, used_by_day: &[(u32, u64)]) -> Result<(), StoreError> {
        let session = &session.as_bytes()[..];
        let used = used_by_day.iter().filter(|(_, bytes)| *bytes > 0).collect::<Vec<_>>();
        let mut change = self.begin("charging bytes").await?;
        let settled = async {
            if !used.is_empty() {
                let peer: (Vec<u8>,) = sqlx::query_as(
                    "SELECT peer FROM leases WHERE session = $1 UNION SELECT peer FROM tests WHERE session = $1",
                )
                .bind(session)
                .fetch_one(&mut *change.work)
                .await?;
                for (day, bytes) in used {
                    sqlx::query(
                        "INSERT INTO usage (day, peer, bytes) VALUES ($1, $2, $3) \
                         ON CONFLICT (day, peer) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
                    )
                    .bind(i64::from(*day))
                    .bind(&peer.0[..])
                    .bind(signed(*bytes))
                    .execute(&mut *change.work)
                    .await?;
                    sqlx::query("DELETE FROM usage WHERE day < $1")
                        .bind(i64::from(day.saturating_sub(USAGE_DAYS_KEPT)))
                        .execute(&mut *change.work)
                        .await?;
                }
            }
            sqlx::query("DELETE FROM leases WHERE session = $1").bind(session).execute(&mut *change.work).await
        };
        let settled = settled.await;
        self.conclude(change, settled.map(drop)).await
    }

    /// Charges every lease that a crash left open, in full; how many sessions, how many bytes. For the start only,
    /// when no session runs.
    pub async fn charge_open_leases(&self) -> Result<(u64, u64), StoreError> {
        let mut change = self.begin("charging the leases of a crash").await?;
        let charged = async {
            let open: (i64, i64) =
                sqlx::query_as("SELECT COUNT(DISTINCT session), COALESCE(SUM(bytes), 0) FROM leases")
                    .fetch_one(&mut *change.work)
                    .await?;
            // "WHERE true" keeps SQLite from reading ON CONFLICT as a join's condition (its documentation of UPSERT).
            sqlx::query(
                "INSERT INTO usage (day, peer, bytes) \
                 SELECT day, peer, SUM(bytes) FROM leases WHERE true GROUP BY day, peer \
                 ON CONFLICT (day, peer) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
            )
            .execute(&mut *change.work)
            .await?;
            sqlx::query("DELETE FROM leases").execute(&mut *change.work).await?;
            Ok(open)
        };
        let charged = charged.await;
        let (sessions, bytes) = self.conclude(change, charged).await?;
        Ok((unsigned(sessions), unsigned(bytes)))
    }

    /// What each peer used on `day` (UTC days since 1970), open leases not included.
    pub async fn usage(&self, day: u32) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as("SELECT peer, bytes FROM usage WHERE day = $1 ORDER BY peer")
            .bind(i64::from(day))
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the day's bytes", why))?;
        rows.into_iter().map(|(peer, bytes)| Ok((self.endpoint_id(&peer)?, unsigned(bytes)))).collect()
    }

    /// From where each peer authenticated, and when it last did, in milliseconds since 1970.
    pub async fn known_prefixes(&self) -> Result<Vec<(EndpointId, Prefix, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT peer, prefix, seen_unix_ms FROM known_prefixes ORDER BY peer, prefix")
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the known prefixes", why))?;
        rows.into_iter()
            .map(|(peer, prefix, seen)| {
                let address = prefix.parse().map_err(|_| self.damaged("a known prefix is no address"))?;
                Ok((self.endpoint_id(&peer)?, Prefix::of(address), unsigned(seen)))
            })
            .collect()
    }

    /// Keeps from where a peer authenticated, and forgets what is to be forgotten of it.
    pub async fn note_prefix(&self, seen: &Seen) -> Result<(), StoreError> {
        let peer = &seen.peer.as_bytes()[..];
        let mut change = self.begin("keeping a known prefix").await?;
        let kept = async {
            for forgotten in &seen.forgotten {
                sqlx::query("DELETE FROM known_prefixes WHERE peer = $1 AND prefix = $2")
                    .bind(peer)
                    .bind(forgotten.address().to_string())
                    .execute(&mut *change.work)
                    .await?;
            }
            sqlx::query(
                "INSERT INTO known_prefixes (peer, prefix, seen_unix_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (peer, prefix) DO UPDATE SET seen_unix_ms = excluded.seen_unix_ms",
            )
            .bind(peer)
            .bind(seen.prefix.address().to_string())
            .bind(signed(seen.unix_ms))
            .execute(&mut *change.work)
            .await
        };
        let kept = kept.await;
        self.conclude(change, kept.map(drop)).await
    }

    /// Forgets from where `peer` authenticated.
    pub async fn forget_prefixes(&self, peer: EndpointId) -> Result<(), StoreError> {
        let mut change = self.begin("forgetting known prefixes").await?;
        let forgotten = forget_prefixes(&mut change.work, peer).await;
        self.conclude(change, forgotten).await
    }

    /// Keeps what is known of the audit log's chains, of all that are given or of none. While the log is faulted the same
    /// is kept again and again to try the disk; SQLite writes no page for a row that stays the same, so one column never
    /// does.
    pub async fn set_audit_chains(&self, states: &BTreeMap<Chain, ChainState>) -> Result<(), StoreError> {
        let mut change = self.begin("keeping the audit log's heads").await?;
        let kept = async {
            for (chain, state) in states {
                sqlx::query(
                    "INSERT INTO audit_chains (chain, seq, hash, base_seq, base_hash) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, \
                     base_seq = excluded.base_seq, base_hash = excluded.base_hash, writes = audit_chains.writes + 1",
                )
                .bind(chain_name(*chain))
                .bind(signed(state.head.seq))
                .bind(&state.head.hash[..])
                .bind(signed(state.base.seq))
                .bind(&state.base.hash[..])
                .execute(&mut *change.work)
                .await?;
            }
            Ok(())
        };
        let kept = kept.await;
        self.conclude(change, kept).await
    }

    /// What is known of the audit log's chains; a chain without a line in the database never had one on disk.
    pub async fn audit_chains(&self) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        self.audit_chains_by(AUDIT_CHAINS).await
    }

    async fn audit_chains_by(&self, sql: &'static str) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        let rows: Vec<ChainRow> = sqlx::query_as(sql)
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the audit log's heads", why))?;
        let line = |seq, hash: Vec<u8>| {
            let hash = hash.try_into().map_err(|_| self.damaged("the hash of a line of the audit log is none"))?;
            Ok(Head { seq: unsigned(seq), hash })
        };
        rows.into_iter()
            .map(|(name, seq, hash, base_seq, base_hash)| {
                let chain = [Chain::Main, Chain::Refusals].into_iter().find(|chain| chain_name(*chain) == name);
                let chain = chain.ok_or_else(|| self.damaged("the audit log has no such chain"))?;
                Ok((chain, ChainState { base: line(base_seq, base_hash)?, head: line(seq, hash)? }))
            })
            .collect()
    }

    fn failure(&self, doing: &'static str, why: sqlx::Error) -> StoreError {
        failure(&self.path, doing, why)
    }

    fn damaged(&self, detail: &str) -> StoreError {
        StoreError::Damaged { path: self.path.to_path_buf(), detail: detail.to_owned() }
    }

    fn endpoint_id(&self, bytes: &[u8]) -> Result<EndpointId, StoreError> {
        let bytes = bytes.try_into().map_err(|_| self.damaged("an Endpoint ID has not 32 bytes"))?;
        Ok(EndpointId::from_bytes(bytes))
    }
}

/// One transaction, rolled back unless it is concluded.
struct Change {
    work: Transaction<'static, Sqlite>,
    /// How many rows its connection had changed before.
    before: i64,
    doing: &'static str,
}

impl StoreError {
    /// Whether it says that the disk, or what stands on it, is at fault; not what was asked of it.
    pub fn is_fault(&self) -> bool {
        match self {
            StoreError::Failed { source: sqlx::Error::RowNotFound, .. } => false,
            StoreError::Failed { source, .. } => !is_unique_violation(source),
            StoreError::NameTaken(_) | StoreError::NoName => false,
            _ => true,
        }
    }
}

fn is_unique_violation(why: &sqlx::Error) -> bool {
    why.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// Has the change owe a line of the audit log.
async fn owe(work: &mut Transaction<'static, Sqlite>, event: &Event) -> Result<(), sqlx::Error> {
    let event = serde_json::to_string(event).map_err(|why| sqlx::Error::Encode(Box::new(why)))?;
    sqlx::query(
        "INSERT INTO outbox (after_seq, event) \
         VALUES (COALESCE((SELECT seq FROM audit_chains WHERE chain = 'main'), 0), $1)",
    )
    .bind(event)
    .execute(&mut **work)
    .await?;
    Ok(())
}

async fn total_changes(work: &mut Transaction<'static, Sqlite>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT total_changes()").fetch_one(&mut **work).await
}

/// A pool of one connection, which is thrown away when it comes back inside a transaction. After a commit that fails,
/// SQLite has rolled back and sqlx still counts a transaction as open; what is done on such a connection later is
/// acknowledged and never written.
fn pool_options() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(TURN_TIMEOUT)
        // A file on this machine does not go away like a server does.
        .test_before_acquire(false)
        .after_release(|connection, _| {
            Box::pin(async move {
                // The ping waits for the rollback that a dropped transaction has queued.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
}

async fn forget_prefixes(work: &mut sqlx::SqliteConnection, peer: EndpointId) -> Result<(), sqlx::Error> {
    let forgotten = sqlx::query("DELETE FROM known_prefixes WHERE peer = $1").bind(&peer.as_bytes()[..]);
    forgotten.execute(work).await.map(drop)
}

/// A lock on the folder itself: it leaves no file behind, and a killed reflector lets go of it.
fn lock_folder(folder: &Path) -> Result<File, StoreError> {
    let unusable = |source| StoreError::Unusable { path: folder.to_owned(), source };
    let lock = File::open(folder).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Makes the file before SQLite does, which would ask the umask; its companions take over the mode.
fn create_private_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn failure(path: &Path, doing: &'static str, source: sqlx::Error) -> StoreError {
    /// Result codes of SQLite: SQLITE_CORRUPT and SQLITE_NOTADB; the upper bits of a code only refine it.
    const DAMAGE: [i32; 2] = [11, 26];
    let code = source.as_database_error().and_then(|why| why.code()?.parse::<i32>().ok());
    if code.is_some_and(|code| DAMAGE.contains(&(code & 0xff))) {
        return StoreError::Damaged { path: path.to_owned(), detail: source.to_string() };
    }
    StoreError::Failed { path: path.to_owned(), doing, source }
}

fn migration_failure(path: &Path, why: MigrateError) -> StoreError {
    let path = path.to_owned();
    match why {
        MigrateError::VersionMissing(step) => StoreError::Newer { path, step },
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
            failure(&path, "bringing it up to date", source)
        }
        other => StoreError::Damaged { path, detail: other.to_string() },
    }
}

/// Each chain of the audit log as a [`ChainRow`].
const AUDIT_CHAINS: &str = "SELECT chain, seq, hash, base_seq, base_hash FROM audit_chains";
/// The same in a database of before the chains, which knew one head.
const AUDIT_HEAD: &str = "SELECT 'main', seq, hash, 0, zeroblob(32) FROM audit_head";

/// A chain of the audit log: its name, and number and hash of its head and its base.
type ChainRow = (String, i64, Vec<u8>, i64, Vec<u8>);

/// A chain of the audit log in the database.
fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Main => "main",
        Chain::Refusals => "refusals",
    }
}

/// Whether a peer may be called so: a name that reads as an Endpoint ID would pass for another peer.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.parse::<EndpointId>().is_err()
}

/// The wanted name, or the first free one with a number behind it.
fn free_name(wanted: &PeerText, is_taken: impl Fn(&str) -> bool) -> PeerText {
    let wanted = if is_name(wanted.as_str()) { wanted.as_str() } else { "appliance" };
    // Room for the number: a name is cut at its end when it is too long.
    let stem = wanted.chars().take(PeerText::MAX_CHARS - 12).collect::<String>();
    let numbered = (2u32..).map(|number| format!("{stem} {number}"));
    let free = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !is_taken(name));
    free.map_or_else(|| PeerText::new(wanted), PeerText::from)
}

/// SQLite's integers are signed; nothing counted here comes near the end of them.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use sqlx::SqliteConnection;
    use tempfile::TempDir;

    use super::*;

    fn id(byte: u8) -> EndpointId {
        EndpointId::from_bytes([byte; 32])
    }

    fn session(byte: u8) -> SessionId {
        SessionId::from_bytes([byte; 16])
    }

    fn file(folder: &TempDir) -> PathBuf {
        folder.path().join("state/reflector.db")
    }

    async fn open(folder: &TempDir) -> Store {
        Store::open(&file(folder)).await.unwrap()
    }

    fn chains(seq: u64) -> BTreeMap<Chain, ChainState> {
        let head = Head { seq, hash: [8; 32] };
        let trimmed = ChainState { base: Head { seq: 1, hash: [1; 32] }, head: Head { seq: 2, hash: [2; 32] } };
        BTreeMap::from([(Chain::Main, ChainState { base: Head::GENESIS, head }), (Chain::Refusals, trimmed)])
    }

    async fn names(store: &Store) -> Vec<String> {
        store.peers().await.unwrap().into_iter().map(|peer| peer.name.to_string()).collect()
    }

    #[tokio::test]
    async fn what_was_said_survives_a_restart() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        assert!(store.add_peer(id(1), &"attic".into(), "code").await.unwrap());
        store.record_test(session(1), id(1), 1_000).await.unwrap();
        store.set_audit_chains(&chains(7)).await.unwrap();
        drop(store);
        let store = open(&folder).await;
        let peers = store.peers().await.unwrap();
        assert_eq!((peers[0].id, peers[0].name.as_str(), peers[0].added_by.as_str()), (id(1), "attic", "code"));
        assert!(peers[0].added_unix_ms > 1_700_000_000_000);
        assert!(store.is_peer(id(1)).await.unwrap() && !store.is_peer(id(2)).await.unwrap());
        assert_eq!(store.tests_since(0).await.unwrap(), [(id(1), 1_000)]);
        assert_eq!(store.audit_chains().await.unwrap(), chains(7));
    }

    #[tokio::test]
    async fn nobody_else_can_read_it() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path().join("state")), 0o700);
        for name in ["reflector.db", "reflector.db-wal", "reflector.db-shm"] {
            assert_eq!(mode(folder.path().join("state").join(name)), 0o600, "{name}");
        }
    }

    #[tokio::test]
    async fn names_stay_unique() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        for peer in 1..=3 {
            assert!(store.add_peer(id(peer), &"attic".into(), "code").await.unwrap());
        }
        assert!(!store.add_peer(id(3), &"other".into(), "code").await.unwrap());
        assert_eq!(names(&store).await, ["attic", "attic 2", "attic 3"]);
        assert!(matches!(store.rename_peer(id(3), &"attic".into()).await, Err(StoreError::NameTaken(_))));
        assert!(store.rename_peer(id(3), &"cellar".into()).await.unwrap());
        assert!(!store.rename_peer(id(9), &"nobody".into()).await.unwrap());
        assert_eq!(names(&store).await, ["attic", "attic 2", "cellar"]);
        assert!(store.remove_peer(id(3)).await.unwrap() && !store.remove_peer(id(3)).await.unwrap());
    }

    #[tokio::test]
    async fn nobody_can_be_named_like_somebodys_identity() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        let disguise = PeerText::new(&id(1).to_string());
        store.add_peer(id(2), &disguise, "code").await.unwrap();
        store.add_peer(id(3), &PeerText::default(), "code").await.unwrap();
        store.add_peer(id(4), &PeerText::new(&"x".repeat(120)), "code").await.unwrap();
        store.add_peer(id(5), &PeerText::new(&"x".repeat(120)), "code").await.unwrap();
        assert_eq!(names(&store).await[..2], ["appliance", "appliance 2"]);
        assert!(names(&store).await.contains(&format!("{} 2", "x".repeat(108))));
        assert!(matches!(store.rename_peer(id(2), &disguise).await, Err(StoreError::NoName)));
    }

    #[tokio::test]
    async fn known_prefixes_are_kept_and_forgotten() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        let prefix = |text: &str| Prefix::of(text.parse().unwrap());
        let seen = |prefix, unix_ms, forgotten| Seen { peer: id(1), prefix, unix_ms, forgotten };
        store.note_prefix(&seen(prefix("192.0.2.1"), 1_000, vec![])).await.unwrap();
        store.note_prefix(&seen(prefix("2001:db8::7"), 2_000, vec![])).await.unwrap();
        store.note_prefix(&seen(prefix("2001:db8::8"), 3_000, vec![prefix("192.0.2.1")])).await.unwrap();
        assert_eq!(store.known_prefixes().await.unwrap(), [(id(1), prefix("2001:db8::"), 3_000)]);
        store.forget_prefixes(id(1)).await.unwrap();
        assert_eq!(store.known_prefixes().await.unwrap(), []);
        store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
        store.note_prefix(&seen(prefix("192.0.2.1"), 4_000, vec![])).await.unwrap();
        store.remove_peer(id(1)).await.unwrap();
        assert_eq!(store.known_prefixes().await.unwrap(), [], "they go with their peer");
    }

    #[tokio::test]
    async fn tests_are_counted_once_and_old_ones_forgotten() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.record_test(session(1), id(1), 1_000).await.unwrap();
        store.record_test(session(1), id(1), 1_000).await.unwrap();
        store.record_test(session(2), id(2), 2_000).await.unwrap();
        store.forget_test(session(1)).await.unwrap();
        assert_eq!(store.tests_since(0).await.unwrap(), [(id(2), 2_000)]);
        let later = 2_000 + 3 * 3_600_000;
        store.record_test(session(3), id(1), later).await.unwrap();
        assert_eq!(store.tests_since(0).await.unwrap(), [(id(1), later)]);
        assert_eq!(store.tests_since(later + 1).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_settled_session_is_charged_what_it_used() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.lease(session(1), id(1), 5, 100).await.unwrap();
        store.lease(session(1), id(1), 5, 100).await.unwrap();
        store.lease(session(1), id(1), 6, 100).await.unwrap();
        store.settle(session(1), &[(5, 150), (6, 30)]).await.unwrap();
        store.lease(session(2), id(1), 6, 100).await.unwrap();
        store.settle(session(2), &[(6, 1)]).await.unwrap();
        assert_eq!(store.usage(5).await.unwrap(), [(id(1), 150)]);
        assert_eq!(store.usage(6).await.unwrap(), [(id(1), 31)]);
        assert_eq!(store.charge_open_leases().await.unwrap(), (0, 0));
        store.lease(session(3), id(2), 50, 1).await.unwrap();
        store.settle(session(3), &[(50, 1)]).await.unwrap();
        assert_eq!(store.usage(6).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_session_nobody_knows_is_charged_to_nobody_silently_never() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        assert!(store.settle(session(1), &[(5, 1)]).await.is_err());
        assert!(store.settle(session(1), &[(5, 0)]).await.is_ok());
        store.record_test(session(1), id(1), 1_000).await.unwrap();
        store.settle(session(1), &[(5, 1)]).await.unwrap();
        assert_eq!(store.usage(5).await.unwrap(), [(id(1), 1)]);
    }

    #[tokio::test]
    async fn a_crash_charges_what_was_leased() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.lease(session(1), id(1), 5, 100).await.unwrap();
        store.lease(session(1), id(1), 6, 10).await.unwrap();
        store.lease(session(2), id(2), 6, 1).await.unwrap();
        drop(store);
        let store = open(&folder).await;
        assert_eq!(store.charge_open_leases().await.unwrap(), (2, 111));
        assert_eq!(store.charge_open_leases().await.unwrap(), (0, 0));
        assert_eq!(store.usage(5).await.unwrap(), [(id(1), 100)]);
        assert_eq!(store.usage(6).await.unwrap(), [(id(1), 10), (id(2), 1)]);
    }

    #[tokio::test]
    async fn a_damaged_file_is_named_and_left_alone() {
        let folder = TempDir::new().unwrap();
        open(&folder).await.close().await;
        let good = fs::read(file(&folder)).unwrap();
        let mut broken_page = good.clone();
        broken_page[5_000..].fill(0xa5);
        for bad in [b"this is no database, it is a letter to you".repeat(100), broken_page] {
            fs::write(file(&folder), &bad).unwrap();
            let why = Store::open(&file(&folder)).await.unwrap_err();
            assert!(matches!(why, StoreError::Damaged { .. }), "{why}");
            let told = why.to_string();
            assert!(told.contains(file(&folder).to_str().unwrap()) && told.contains("backup"), "{told}");
            assert_eq!(fs::read(file(&folder)).unwrap(), bad);
        }
    }

    #[tokio::test]
    async fn a_newer_versions_file_is_refused() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9000, 'from the future', true, x'00', 0)",
        )
        .execute(&store.pool)
        .await
        .unwrap();
        store.close().await;
        drop(store);
        let why = Store::open(&file(&folder)).await.unwrap_err();
        assert!(matches!(why, StoreError::Newer { step: 9000, .. }), "{why}");
    }

    #[tokio::test]
    async fn a_second_reflector_finds_the_folder_in_use() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        assert!(matches!(Store::open(&file(&folder)).await, Err(StoreError::InUse { .. })));
        store.set_audit_chains(&chains(1)).await.unwrap();
        assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), chains(1));
        drop(store);
        open(&folder).await;
    }

    #[tokio::test]
    async fn a_database_of_before_the_chains_is_read_and_then_brought_up_to_date() {
        let folder = TempDir::new().unwrap();
        create_private_folder(file(&folder).parent().unwrap()).unwrap();
        let options = SqliteConnectOptions::new().filename(file(&folder)).create_if_missing(true);
        let pool = SqlitePool::connect_with(options).await.unwrap();
        let first = Migrator { migrations: MIGRATIONS.migrations[..1].to_vec().into(), ..Migrator::DEFAULT };
        first.run(&pool).await.unwrap();
        let head = sqlx::query("INSERT INTO audit_head (one, seq, hash) VALUES (1, 9, $1)").bind(vec![8; 32]);
        head.execute(&pool).await.unwrap();
        pool.close().await;
        let state = ChainState { base: Head::GENESIS, head: Head { seq: 9, hash: [8; 32] } };
        let expected = BTreeMap::from([(Chain::Main, state)]);
        assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), expected);
        assert_eq!(open(&folder).await.audit_chains().await.unwrap(), expected);
        assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_named() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("state"), "a file").unwrap();
        let why = Store::open(&file(&folder)).await.unwrap_err();
        assert!(why.to_string().contains("state"), "{why}");
    }

    /// What a connection sees that is opened for this alone.
    async fn on_disk(path: &Path, sql: &'static str) -> i64 {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        let seen = sqlx::query_scalar(sql).fetch_one(&mut other).await.unwrap();
        other.close().await.unwrap();
        seen
    }

    /// Lets the database grow no further than `more` pages from here: what SQLite says then is what it says on a full
    /// disk, and it rolls back by itself in the same way.
    async fn limit_pages(connection: &mut SqliteConnection, more: i64) {
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *connection).await.unwrap();
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + more));
        sqlx::query(limit).execute(connection).await.unwrap();
    }

    const FILL: &str = "INSERT INTO leases (session, day, peer, bytes) VALUES (zeroblob(200000), 1, x'00', 1)";

    /// What sqlx does after SQLite rolled back by itself; the reason for [`pool_options`]. When this fails, an update
    /// of sqlx has changed it: read docs/decisions/0019 again.
    #[tokio::test]
    async fn sqlx_still_counts_a_transaction_that_sqlite_rolled_back() {
        let folder = TempDir::new().unwrap();
        open(&folder).await.close().await;
        let options = SqliteConnectOptions::new().filename(file(&folder));
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        limit_pages(&mut connection, 0).await;
        let mut work = connection.begin().await.unwrap();
        assert!(sqlx::query(FILL).execute(&mut *work).await.is_err());
        drop(work);
        connection.ping().await.unwrap();
        assert!(connection.is_in_transaction(), "the depth stays");
        limit_pages(&mut connection, 1000).await;
        let refused = connection.begin_with("BEGIN IMMEDIATE").await.map(drop);
        assert!(matches!(refused, Err(sqlx::Error::InvalidSavePointStatement)), "{refused:?}");
        // The next begin is a savepoint: dropped once, it leaves a transaction open that is never committed.
        drop(connection.begin().await.unwrap());
        let mut work = connection.begin().await.unwrap();
        sqlx::query("INSERT INTO usage (day, peer, bytes) VALUES (1, x'00', 1)").execute(&mut *work).await.unwrap();
        work.commit().await.unwrap();
        assert_eq!(on_disk(&file(&folder), "SELECT COUNT(*) FROM usage").await, 0, "acknowledged, and never written");
    }

    #[tokio::test]
    async fn a_connection_whose_change_failed_is_thrown_away() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        for round in 1..=3 {
            let mut change = store.begin("filling it").await.unwrap();
            limit_pages(&mut change.work, 0).await;
            let filled = sqlx::query(FILL).execute(&mut *change.work).await;
            assert!(matches!(store.conclude(change, filled).await, Err(StoreError::Failed { .. })));
            assert!(store.fault().borrow().as_ref().is_some_and(|why| why.contains("full")));
            // A transaction that is only dropped: what a cancelled caller leaves.
            drop(store.begin("nothing").await.unwrap());
            // The limit was the old connection's.
            assert!(store.add_peer(id(round), &"kept".into(), "hand").await.unwrap());
            assert_eq!(*store.fault().borrow(), None);
            assert_eq!(on_disk(&file(&folder), "SELECT COUNT(*) FROM peers").await, i64::from(round));
        }
    }

    #[tokio::test]
    async fn a_commit_that_kept_nothing_is_a_failure() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        let mut change = store.begin("charging").await.unwrap();
        for sql in ["INSERT INTO usage (day, peer, bytes) VALUES (1, x'00', 1)", "ROLLBACK", "BEGIN"] {
            sqlx::query(sql).execute(&mut *change.work).await.unwrap();
        }
        let told = store.conclude(change, Ok(())).await;
        assert!(matches!(told, Err(StoreError::NotKept { .. })), "{told:?}");
        assert!(store.fault().borrow().is_some());
        // Nothing to keep is nothing lost.
        store.forget_test(session(1)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_kept_again_unchanged_is_seen_to_be_kept() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        for _ in 0..3 {
            store.set_audit_chains(&chains(7)).await.unwrap();
        }
        assert_eq!(store.audit_chains().await.unwrap(), chains(7));
    }

    #[tokio::test]
    async fn each_change_of_the_peers_owes_a_line_until_it_is_written() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.set_audit_chains(&chains(7)).await.unwrap();
        store.add_peer(id(1), &"attic".into(), "code").await.unwrap();
        store.rename_peer(id(1), &"cellar".into()).await.unwrap();
        store.remove_peer(id(1)).await.unwrap();
        // What changes nothing owes nothing.
        store.remove_peer(id(1)).await.unwrap();
        store.rename_peer(id(1), &"cellar".into()).await.unwrap();
        drop(store);
        let store = open(&folder).await;
        let owed = store.owed_lines().await.unwrap();
        let events = owed.iter().map(|line| line.event.clone()).collect::<Vec<_>>();
        let added = Event::PeerAdded { peer: id(1), name: "attic".into(), by: "code".to_owned() };
        let renamed = Event::PeerRenamed { peer: id(1), name: "cellar".into() };
        assert_eq!(events, [added, renamed, Event::PeerRemoved { peer: id(1) }]);
        assert!(owed.iter().all(|line| line.after_seq == 7));
        store.lines_written(&owed[..2]).await.unwrap();
        assert_eq!(store.owed_lines().await.unwrap(), owed[2..]);
        assert!(store.peers().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_fault_is_told_and_ends_by_itself() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        let options = SqliteConnectOptions::new().filename(file(&folder));
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let refused = store.record_test(session(1), id(1), 1_000).await.unwrap_err();
        assert!(refused.is_fault() && store.fault().borrow().as_ref().is_some_and(|why| why.contains("locked")));
        sqlx::query("COMMIT").execute(&mut other).await.unwrap();
        let mut fault = store.fault();
        tokio::select! {
            () = store.watch_over() => unreachable!("it runs as long as the store"),
            ended = fault.wait_for(Option::is_none) => drop(ended.unwrap()),
        }
        assert_eq!(on_disk(&file(&folder), "SELECT tries FROM probe").await, 1);
    }

    #[tokio::test]
    async fn what_was_asked_amiss_is_no_fault_of_the_disk() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder).await;
        store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
        store.add_peer(id(2), &"cellar".into(), "hand").await.unwrap();
        assert!(matches!(store.rename_peer(id(2), &"attic".into()).await, Err(StoreError::NameTaken(_))));
        assert!(store.settle(session(1), &[(5, 1)]).await.is_err());
        assert_eq!(*store.fault().borrow(), None);
    }
}
