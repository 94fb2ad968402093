//! Stores of both database engines, for tests.

use sqlx::SqlitePool;
use tempfile::TempDir;
use test_postgres::TestServer;

use super::pool::StorePool;
use super::{ApplianceStore, PostgresAddress, StorageError};

/// Where the store of a test is.
pub(crate) enum TestPlace {
    /// A SQLite file in this folder.
    Folder(TempDir),
    /// A database of a PostgreSQL server.
    Server(PostgresAddress),
}

impl TestPlace {
    /// Creates a new place for a store for each database engine. Without a PostgreSQL server, this is only a place for
    /// SQLite.
    pub(crate) fn each() -> Vec<Self> {
        let folder = Self::Folder(tempfile::tempdir().unwrap());
        [folder].into_iter().chain(new_database().map(Self::Server)).collect()
    }

    /// Opens the store at this place.
    pub(crate) async fn open(&self) -> Result<ApplianceStore, StorageError> {
        match self {
            Self::Folder(folder) => ApplianceStore::open(folder.path()).await,
            Self::Server(address) => ApplianceStore::open_on_server(address).await,
        }
    }

    /// Opens the store at this place for reading.
    pub(crate) async fn open_for_reading(&self) -> Result<ApplianceStore, StorageError> {
        match self {
            Self::Folder(folder) => ApplianceStore::open_for_reading(folder.path()).await,
            Self::Server(address) => ApplianceStore::open_on_server_for_reading(address).await,
        }
    }

    /// The name of the database engine.
    pub(crate) fn engine(&self) -> &'static str {
        match self {
            Self::Folder(_) => "SQLite",
            Self::Server(_) => "PostgreSQL",
        }
    }
}

/// Creates a database on the PostgreSQL server that the tests share, and returns its address; `None` if there is no
/// such server.
pub(crate) fn new_database() -> Option<PostgresAddress> {
    TestServer::shared().map(|server| address(&server.new_url()))
}

/// The address of the database with this URL, without a password file.
pub(crate) fn address(url: &str) -> PostgresAddress {
    PostgresAddress { url: url.parse().unwrap(), password_file: None }
}

/// The connections of a store to its SQLite file.
pub(crate) fn file_pool(store: &ApplianceStore) -> &SqlitePool {
    match &store.pool {
        StorePool::Sqlite(pool, _) => pool,
        StorePool::Postgres(_) => panic!("{} is no file", store.place()),
    }
}

/// Runs a test once for each database engine, on a new place for a store.
pub(crate) async fn on_each_place(test: impl AsyncFn(&TestPlace)) {
    for place in TestPlace::each() {
        let _name = EngineName(place.engine());
        Box::pin(test(&place)).await;
    }
}

/// Runs a test once for each database engine, on a new store.
pub(crate) async fn on_each_engine(test: impl AsyncFn(ApplianceStore)) {
    for place in TestPlace::each() {
        let _name = EngineName(place.engine());
        let store = place.open().await.unwrap();
        Box::pin(test(store.clone())).await;
        store.close().await;
    }
}

/// Prints the name of the database engine if the test panics.
struct EngineName(&'static str);

impl Drop for EngineName {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("on {}", self.0);
        }
    }
}
