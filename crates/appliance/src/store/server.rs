//! The connections to a PostgreSQL server: how they are opened, the time limits of operations, and the causes of
//! errors.

use std::io;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Postgres, Transaction};
use tokio::time::timeout;

use super::error::StorageError;
use super::place::StorePlace;
use super::postgres_url::PostgresAddress;

/// The maximum number of connections of one program.
const MOST_CONNECTIONS: u32 = 4;
/// How long it may take to open a new connection to the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an operation waits for a connection of the pool. During this time the pool tries again to open a connection
/// that was refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a short exchange with the server may take, such as the search for the cause of a timeout.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Limits in the server: how long it may work on a statement, wait for a lock of another program, and keep an idle
/// transaction open.
const SERVER_LIMITS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "60s")];
/// How long an answer may take. This is longer than the limits in the server, because an error from the server names
/// the cause more exactly.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the migrations may take, including the wait for migrations that another program runs.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// The settings for migrations. The second one suppresses the notices of the server, such as that a table of sqlx
/// already exists, because sqlx would log each of them.
const MIGRATION_LIMITS: [(&str, &str); 2] = [("lock_timeout", "30s"), ("client_min_messages", "warning")];
/// The key of the advisory lock that writers take.
const WRITERS: i64 = 0x7061_636b_6574;
/// The key of the advisory lock that the service holds.
const SERVICE: i64 = WRITERS + 1;
/// The settings of the connection that holds the lock of the service. A service waits up to 3 seconds for the lock,
/// because another service may just have been killed. If the client does not answer for about a minute, the server
/// closes the connection, which releases the lock.
const SERVICE_LIMITS: [(&str, &str); 4] = [
    ("lock_timeout", "3s"),
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// A lock on a database. Its holder knows that no second service uses the database. The lock is held as long as its
/// connection is open.
#[derive(Debug)]
pub struct DatabaseLock {
    connection: PgConnection,
}

impl DatabaseLock {
    /// Whether the server still answers on the connection that holds the lock.
    pub async fn is_held(&mut self) -> bool {
        within_limit(self.connection.ping()).await.is_ok()
    }
}

/// A database of a PostgreSQL server. Clones share its connections.
#[derive(Clone, Debug)]
pub(super) struct PostgresServer {
    pool: PgPool,
    shown: String,
}

impl PostgresServer {
    /// Connects to the database and runs the pending migrations. Fails and leaves the database unchanged if a newer
    /// version of this program migrated it.
    pub(super) async fn open(address: &PostgresAddress, migrations: &Migrator) -> Result<Self, StorageError> {
        let (options, shown) = (address.options()?, address.url.to_string());
        let migrating = options.clone().options(MIGRATION_LIMITS);
        // Waits only a short time for the connection to close, because nothing depends on it.
        timeout(PROBE_TIMEOUT, connect(&migrating, &shown).await?.close()).await.ok();
        let one = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT).connect_lazy_with(migrating);
        let migrated = timeout(MIGRATION_TIMEOUT, migrations.run(&one)).await;
        // Closing the connection also releases the lock of a migration that failed.
        timeout(PROBE_TIMEOUT, one.close()).await.ok();
        let migrated = migrated.unwrap_or_else(|_| Err(MigrateError::Execute(no_answer(MIGRATION_TIMEOUT))));
        migrated.map_err(|error| migration_fault(&shown, error))?;
        Ok(Self { pool: pool(options.options(SERVER_LIMITS)), shown })
    }

    /// Connects to the database for reading: runs no migrations, and the server refuses changes.
    pub(super) async fn open_for_reading(address: &PostgresAddress) -> Result<Self, StorageError> {
        let read_only = [("default_transaction_read_only", "on")];
        let (options, shown) = (address.options()?.options(SERVER_LIMITS).options(read_only), address.url.to_string());
        let connection = connect(&options, &shown).await?;
        timeout(PROBE_TIMEOUT, connection.close()).await.ok();
        Ok(Self { pool: pool(options), shown })
    }

    /// The URL of the database, without its password.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Takes a connection from the pool.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        match Box::pin(self.pool.acquire()).await {
            Err(sqlx::Error::PoolTimedOut) => Err(Box::pin(self.why_timed_out()).await),
            acquired => acquired,
        }
    }

    /// Begins a transaction that changes the database. As with a SQLite file, only one such transaction exists at a
    /// time: what it reads does not change until it commits.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let begun = within_limit(self.pool.begin()).await;
        let mut work = match begun {
            Err(sqlx::Error::PoolTimedOut) => return Err(Box::pin(self.why_timed_out()).await),
            begun => begun?,
        };
        let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended(CAST(current_schema() AS TEXT), $1))");
        within_limit(lock.bind(WRITERS).execute(&mut *work)).await?;
        Ok(work)
    }

    /// Takes the lock of the service in this database. Without the lock, a second service would end the open runs and
    /// outages of the first.
    pub(super) async fn lock_service(&self) -> Result<DatabaseLock, StorageError> {
        // sqlx would warn of the wait for another service's lock.
        let options = (*self.pool.connect_options()).clone().options(SERVICE_LIMITS).disable_statement_logging();
        let mut connection = connect(&options, &self.shown).await?;
        let lock = sqlx::query("SELECT pg_advisory_lock(hashtextextended(CAST(current_schema() AS TEXT), $1))");
        match within_limit(lock.bind(SERVICE).execute(&mut connection)).await {
            Ok(_) => Ok(DatabaseLock { connection }),
            Err(error) => Err(match self.fault("starting the service", error) {
                StorageError::Locked { .. } => StorageError::InUse { server: self.shown.clone() },
                other => other,
            }),
        }
    }

    /// Why the pool could not open a connection in time.
    async fn why_timed_out(&self) -> sqlx::Error {
        match timeout(PROBE_TIMEOUT, PgConnection::connect_with(&self.pool.connect_options())).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
        }
    }

    /// Closes every connection to the server.
    pub(super) async fn close(&self) {
        // The connections of a server that does not answer end with the process.
        timeout(ACQUIRE_TIMEOUT, self.pool.close()).await.ok();
    }

    /// Converts an error of the database to the [`StorageError`] for its cause. `doing` names the operation that
    /// failed.
    pub(super) fn fault(&self, doing: &'static str, error: sqlx::Error) -> StorageError {
        fault(&self.shown, doing, error)
    }
}

/// Limits the wait for an answer, because sqlx waits for ever for a server that is frozen or behind a broken path. The
/// query is on the heap, so that each caller's future stays small.
pub(super) fn within_limit<T>(
    query: impl Future<Output = Result<T, sqlx::Error>>,
) -> impl Future<Output = Result<T, sqlx::Error>> {
    let query = Box::pin(query);
    async move { timeout(ANSWER_TIMEOUT, query).await.unwrap_or_else(|_| Err(no_answer(ANSWER_TIMEOUT))) }
}

fn no_answer(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs())))
}

/// Opens a connection to the database. Fails if the encoding of the database is not UTF-8.
async fn connect(options: &PgConnectOptions, shown: &str) -> Result<PgConnection, StorageError> {
    let doing = "opening the database";
    let connected = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await;
    let connected = connected.unwrap_or_else(|_| Err(no_answer(CONNECT_TIMEOUT)));
    let mut connection = connected.map_err(|error| fault(shown, doing, error))?;
    let encoding = within_limit(sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut connection)).await;
    let encoding: String = encoding.map_err(|error| fault(shown, doing, error))?;
    if encoding != "UTF8" {
        return Err(StorageError::Encoding { server: shown.to_owned(), encoding });
    }
    Ok(connection)
}

/// Creates the connection pool of a program. The pool opens connections when they are needed.
fn pool(options: PgConnectOptions) -> PgPool {
    let limits = PgPoolOptions::new().max_connections(MOST_CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT);
    let pool = limits.after_release(|connection, _| {
        Box::pin(async move {
            // Without a limit, a connection whose last answer never comes would stay in use for ever.
            match timeout(PROBE_TIMEOUT, connection.ping()).await {
                Ok(answered) => answered.map(|()| true),
                Err(_) => Err(no_answer(PROBE_TIMEOUT)),
            }
        })
    });
    pool.connect_lazy_with(options)
}

fn migration_fault(server: &str, error: MigrateError) -> StorageError {
    let place = || StorePlace::Server(server.to_owned());
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            fault(server, "bringing the database up to date", error)
        }
        MigrateError::VersionMissing(migration) => StorageError::Newer { place: place(), migration },
        other => StorageError::Altered { place: place(), source: Box::new(other) },
    }
}

/// Classifies an error by its SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
fn fault(server: &str, doing: &'static str, error: sqlx::Error) -> StorageError {
    let server = || server.to_owned();
    let place = || StorePlace::Server(server());
    let unreachable = |because: String| StorageError::Unreachable { doing, server: server(), because };
    let of_database = error.as_database_error();
    let of_database =
        of_database.map(|error| (error.code().unwrap_or_default().into_owned(), error.message().to_owned()));
    let Some((code, message)) = of_database else {
        return match error {
            sqlx::Error::Io(error) => unreachable(error.to_string()),
            sqlx::Error::PoolTimedOut => {
                unreachable(format!("no connection became free within {} s", ACQUIRE_TIMEOUT.as_secs()))
            }
            error @ (sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => unreachable(error.to_string()),
            error @ sqlx::Error::Configuration(_) => {
                StorageError::Refused { server: server(), because: error.to_string() }
            }
            source => StorageError::Sql { doing, place: place(), source },
        };
    };
    match code.as_str() {
        // invalid_authorization_specification, invalid_password, invalid_catalog_name, invalid_schema_name,
        // insufficient_privilege
        "28000" | "28P01" | "3D000" | "3F000" | "42501" => StorageError::Refused { server: server(), because: message },
        // disk_full
        "53100" => StorageError::Full { doing, place: place() },
        // read_only_sql_transaction
        "25006" => StorageError::ReadOnly { doing, place: place() },
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => StorageError::Locked { doing },
        // data_corrupted, index_corrupted
        "XX001" | "XX002" => StorageError::Corrupt { place: place() },
        // undefined_table, undefined_column, duplicate_table, duplicate_column
        "42P01" | "42703" | "42P07" | "42701" => {
            StorageError::Altered { place: place(), source: Box::new(MigrateError::Execute(error)) }
        }
        // connection_exception, insufficient_resources, operator_intervention (57P01 is a shutdown), system_error
        code if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => unreachable(message),
        _ => StorageError::Sql { doing, place: place(), source: error },
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};
    use test_postgres::{GUARDED, OWNER, PASSWORD, TestServer};
    use uuid::Uuid;

    use super::*;
    use crate::store::each_engine::{address, new_database};
    use crate::store::pool::{on, rows};
    use crate::store::{ApplianceStore, RunQuery};

    async fn refused(url: &str) -> StorageError {
        let error = ApplianceStore::open_on_server(&address(url)).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(PASSWORD) && !text.contains("geheim"), "{text}");
        error
    }

    #[tokio::test]
    async fn a_refusal_of_the_server_is_named() {
        let Some(server) = TestServer::shared() else { return };
        let database = server.create_database();
        let guarded = server.url(GUARDED, &database);
        for (url, expected) in [
            (format!("{guarded}&password=geheim"), "password authentication failed"),
            (guarded.clone(), "password"),
            (format!("{guarded}&password={PASSWORD}"), "permission denied"),
            (server.url(OWNER, "nowhere"), "does not exist"),
            (server.url("nobody", &database), "does not exist"),
        ] {
            let error = refused(&url).await;
            let text = error.to_string();
            assert!(matches!(error, StorageError::Refused { .. }) && text.contains(expected), "{url}: {error:?}");
        }
        server.psql(&database, &format!("GRANT CREATE ON SCHEMA public TO {GUARDED}"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
        let with_file = PostgresAddress { password_file: Some(file), ..address(&guarded) };
        ApplianceStore::open_on_server(&with_file).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_at_once() {
        // At these addresses there is neither a socket nor a listener.
        for url in ["postgres:///pp?host=/nowhere", "postgres://127.0.0.1:1/pp"] {
            let error = refused(url).await;
            assert!(matches!(error, StorageError::Unreachable { .. }), "{url}: {error:?}");
        }
    }

    #[tokio::test]
    async fn the_certificate_of_a_server_is_checked_as_the_url_says() {
        let Some(server) = TestServer::start() else { return };
        let database = server.create_database();
        let plain = format!("{}&sslmode=require", server.url(OWNER, &database));
        let error = refused(&plain).await;
        assert!(error.to_string().contains("does not support TLS"), "{error}");
        let (port, authority) = server.serve_tls();
        let url = |host: &str, rest: &str| format!("postgres://{OWNER}@{host}:{port}/{database}?{rest}");
        let root = format!("&sslrootcert={}", authority.display());
        for (host, rest) in [
            ("localhost", format!("sslmode=verify-full{root}")),
            ("127.0.0.1", format!("sslmode=verify-ca{root}")),
            ("127.0.0.1", "sslmode=require".to_owned()),
            ("127.0.0.1", String::new()),
        ] {
            let store = ApplianceStore::open_on_server(&address(&url(host, &rest))).await.unwrap();
            let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let is_encrypted = on!(store.pool, |db| sqlx::query_scalar::<_, bool>(sql).fetch_one(db).await);
            assert!(is_encrypted.unwrap(), "{host} {rest}");
        }
        for (host, rest) in [
            ("127.0.0.1", format!("sslmode=verify-full{root}")),
            ("localhost", "sslmode=verify-full".to_owned()),
            ("localhost", "sslmode=verify-full&sslrootcert=/nonexistent".to_owned()),
        ] {
            let error = refused(&url(host, &rest)).await;
            assert!(matches!(error, StorageError::Unreachable { .. }), "{host} {rest}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_database_with_another_encoding_is_refused() {
        let Some(server) = TestServer::shared() else { return };
        server.psql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
        let error = refused(&server.url(OWNER, "latin")).await;
        assert!(matches!(&error, StorageError::Encoding { encoding, .. } if encoding == "LATIN1"), "{error:?}");
    }

    #[tokio::test]
    async fn a_database_that_is_read_only_can_be_read() {
        let Some(server) = TestServer::shared() else { return };
        let database = server.create_database();
        let url = server.url(OWNER, &database);
        let store = ApplianceStore::open_on_server(&address(&url)).await.unwrap();
        store.save_run(&example::full()).await.unwrap();
        store.close().await;
        server.psql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = on"));
        let error = refused(&url).await;
        assert!(matches!(error, StorageError::ReadOnly { .. }) && error.is_unwritable(), "{error:?}");
        let store = ApplianceStore::open_on_server_for_reading(&address(&url)).await.unwrap();
        assert_eq!(store.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn tables_of_another_program_are_left_unchanged() {
        let Some(server) = TestServer::shared() else { return };
        let database = server.create_database();
        server.psql(&database, "CREATE TABLE runs (id TEXT)");
        let error = refused(&server.url(OWNER, &database)).await;
        assert!(matches!(error, StorageError::Altered { .. }), "{error:?}");
        assert_eq!(server.psql(&database, "SELECT count(*) FROM pg_tables WHERE tablename = 'reflectors'"), "0");
    }

    #[tokio::test]
    async fn a_text_with_nul_is_saved_and_found_without_it() {
        let Some(address) = new_database() else { return };
        let store = ApplianceStore::open_on_server(&address).await.unwrap();
        let run = ResultDocument { provider: "a\0b".to_owned(), ..example::full() };
        store.save_run(&run).await.unwrap();
        assert_eq!(store.run(&run.id.to_string()).await.unwrap().document().unwrap(), run);
        assert_eq!(store.runs(&RunQuery::default(), None, 1).await.unwrap()[0].provider, "a\u{fffd}b");
        let of_peer = RunQuery { peer: Some("attic\0".to_owned()), ..RunQuery::default() };
        assert!(store.runs(&of_peer, None, 1).await.unwrap().is_empty());
        let unknown = store.remove_token("a\0b").await;
        assert!(matches!(unknown, Err(StorageError::NoSuchToken { .. })), "{unknown:?}");
    }

    #[tokio::test]
    async fn a_server_that_crashes_in_a_transaction_loses_no_acknowledged_row_and_is_used_again() {
        let Some(server) = TestServer::start() else { return };
        let store = ApplianceStore::open_on_server(&address(&server.new_url())).await.unwrap();
        let mut acknowledged = Vec::new();
        for round in 0..3 {
            let run = ResultDocument { id: Uuid::now_v7(), ..example::bare() };
            store.save_run(&run).await.unwrap();
            acknowledged.push(run.id);
            let work = store.pool.begin().await.unwrap();
            server.crash();
            let lost = work.commit().await;
            assert!(lost.is_err(), "{lost:?}");
            let error = store.save_run(&run).await.unwrap_err();
            assert!(matches!(error, StorageError::Unreachable { .. }), "round {round}: {error:?}");
            server.resume();
            let mut saved = store.runs(&RunQuery::default(), None, 10).await.unwrap();
            saved.sort_by_key(|run| run.id);
            assert_eq!(saved.iter().map(|run| run.id).collect::<Vec<_>>(), acknowledged);
        }
    }

    #[tokio::test]
    async fn a_frozen_server_ends_the_wait_of_a_query_and_is_used_again() {
        let Some(server) = TestServer::start() else { return };
        let store = ApplianceStore::open_on_server(&address(&server.new_url())).await.unwrap();
        store.save_run(&example::full()).await.unwrap();
        let mut work = store.pool.begin().await.unwrap();
        server.freeze(true);
        let frozen =
            crate::store::pool::in_change!(&mut work, |db| sqlx::query("DELETE FROM runs").execute(db).await.map(rows));
        let error = store.pool.fault("deleting", frozen.unwrap_err());
        assert!(matches!(&error, StorageError::Unreachable { because, .. } if because.contains("15 s")), "{error:?}");
        drop(work);
        server.freeze(false);
        let count = on!(store.pool, |db| sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM runs").fetch_one(db).await);
        assert_eq!(count.unwrap(), 1, "what was not committed is undone");
    }

    #[tokio::test]
    async fn one_service_uses_a_database() {
        let Some(address) = new_database() else { return };
        let store = ApplianceStore::open_on_server(&address).await.unwrap();
        let held = store.lock_service().await.unwrap();
        let second = store.lock_service().await.unwrap_err();
        assert!(matches!(second, StorageError::InUse { .. }), "{second:?}");
        drop(held);
        store.lock_service().await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_of_another_program_ends_the_wait_of_a_writer() {
        let Some(address) = new_database() else { return };
        let store = ApplianceStore::open_on_server(&address).await.unwrap();
        let other = ApplianceStore::open_on_server(&address).await.unwrap();
        let held = other.pool.begin().await.unwrap();
        let refused = store.check_writable().await;
        assert!(matches!(refused, Err(StorageError::Locked { .. })), "{refused:?}");
        held.rollback().await.unwrap();
        store.check_writable().await.unwrap();
    }
}
