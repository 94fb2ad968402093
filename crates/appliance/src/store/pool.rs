//! Types that work on both database engines (SQLite and PostgreSQL): the connections of a store, and a transaction for
//! changes. Also macros that run the same query text on either engine.

use std::path::PathBuf;

use paramedic_host::database::DatabaseError;
use sqlx::postgres::PgQueryResult;
use sqlx::sqlite::SqliteQueryResult;
use sqlx::{Postgres, Sqlite, SqlitePool, Transaction};

use super::error::StorageError;
use super::place::StorePlace;
use super::server::{PostgresServer, within_limit};

/// The connections to the database.
#[derive(Clone, Debug)]
pub(super) enum StorePool {
    /// A SQLite file, and its path.
    Sqlite(SqlitePool, PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresServer),
}

/// A transaction that changes the database. Only one such transaction exists at a time. If it is dropped without a
/// commit, nothing changes.
pub(super) enum StoreChange {
    /// A transaction on a SQLite file.
    Sqlite(Transaction<'static, Sqlite>),
    /// A transaction on a PostgreSQL server.
    Postgres(Transaction<'static, Postgres>),
}

/// Runs a query on a connection of a store: `on!(self.pool, |db| QUERY)`. QUERY is an expression that executes a query
/// on the connection `db`, awaits its end, and returns a `Result` with an [`sqlx::Error`]. The code is compiled once
/// for each database engine.
macro_rules! on {
    ($pool:expr, |$db:ident| $query:expr) => {
        match &$pool {
            $crate::store::pool::StorePool::Sqlite($db, _) => $query,
            $crate::store::pool::StorePool::Postgres(server) => match server.acquire().await {
                Ok(mut connection) => {
                    let query = async {
                        let $db = &mut *connection;
                        $query
                    };
                    $crate::store::server::within_limit(query).await
                }
                Err(error) => Err(error),
            },
        }
    };
}

/// Runs a query as `on!` does, but within the transaction `work`: `in_change!(work, |db| QUERY)`.
macro_rules! in_change {
    ($work:expr, |$db:ident| $query:expr) => {
        match $work {
            $crate::store::pool::StoreChange::Sqlite(work) => {
                let $db = &mut **work;
                $query
            }
            $crate::store::pool::StoreChange::Postgres(work) => {
                let query = async {
                    let $db = &mut **work;
                    $query
                };
                $crate::store::server::within_limit(query).await
            }
        }
    };
}

pub(super) use {in_change, on};

impl StorePool {
    /// Where the database is.
    pub(super) fn place(&self) -> StorePlace {
        match self {
            Self::Sqlite(_, path) => StorePlace::File(path.clone()),
            Self::Postgres(server) => StorePlace::Server(server.shown().to_owned()),
        }
    }

    /// Converts an error of the database to the [`StorageError`] for its cause. `doing` names the operation that
    /// failed.
    pub(super) fn fault(&self, doing: &'static str, error: sqlx::Error) -> StorageError {
        match self {
            Self::Sqlite(_, path) => DatabaseError::of(path, doing, error).into(),
            Self::Postgres(server) => server.fault(doing, error),
        }
    }

    /// Begins a transaction for a change.
    pub(super) async fn begin(&self) -> Result<StoreChange, sqlx::Error> {
        match self {
            // BEGIN IMMEDIATE, so that what the transaction reads does not change before it writes.
            Self::Sqlite(pool, _) => pool.begin_with("BEGIN IMMEDIATE").await.map(StoreChange::Sqlite),
            Self::Postgres(server) => server.begin().await.map(StoreChange::Postgres),
        }
    }

    /// Closes every connection to the database.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool, _) => pool.close().await,
            Self::Postgres(server) => server.close().await,
        }
    }
}

impl StoreChange {
    /// Commits the transaction, which makes the change durable.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(work) => work.commit().await,
            Self::Postgres(work) => within_limit(work.commit()).await,
        }
    }

    /// Rolls the transaction back, which undoes the change.
    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(work) => work.rollback().await,
            Self::Postgres(work) => within_limit(work.rollback()).await,
        }
    }
}

/// The result of a statement, on either engine.
pub(super) trait StatementResult {
    /// The number of rows that the statement changed.
    fn row_count(&self) -> u64;
}

impl StatementResult for SqliteQueryResult {
    fn row_count(&self) -> u64 {
        self.rows_affected()
    }
}

impl StatementResult for PgQueryResult {
    fn row_count(&self) -> u64 {
        self.rows_affected()
    }
}

/// The number of rows that a statement changed.
pub(super) fn rows(result: impl StatementResult) -> u64 {
    result.row_count()
}

/// Replaces each NUL in a text by U+FFFD. PostgreSQL accepts no NUL, neither in a text to store nor in a text to search
/// for.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
