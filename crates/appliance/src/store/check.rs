//! Checks the whole database: its structure, its version, and that every result can be read. Changes nothing.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;

use super::pool::{StorePool, on};
use super::{ApplianceStore, RunQuery, StorageError, natural};

/// The maximum number of problems of one kind that are listed.
const LISTED: usize = 20;
const CHECKING: &str = "checking the database";
/// The number of documents that are read at once.
const PAGE: u32 = 64;

/// What a check of the database found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreCheck {
    /// The path of the database file, or the URL of the database without its password.
    pub path: String,
    /// The size of the database in bytes; for a file, without its write-ahead log.
    pub bytes: u64,
    /// The number of the last migration in the database.
    pub migration: i64,
    /// Whether an earlier version of this program wrote the database. The next command that may write migrates it.
    pub is_earlier: bool,
    /// The number of saved results.
    pub results: u64,
    /// The number of paired reflectors.
    pub reflectors: u64,
    /// The number of schedules.
    pub schedules: u64,
    /// What is wrong with the database; empty if nothing is.
    pub problems: Vec<String>,
    /// The ids of saved results that cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl ApplianceStore {
    /// Checks the database. Fails if a later version of this program wrote the database.
    pub async fn check(&self) -> Result<StoreCheck, StorageError> {
        let (migration, is_earlier) = self.check_migrations().await?;
        let mut problems = self.check_structure(migration).await?;
        if migration == 0 {
            problems.push("it has no tables: it is empty, or belongs to another program".to_owned());
        }
        let mut check = StoreCheck {
            path: self.place().to_string(),
            bytes: self.size().await?,
            migration,
            is_earlier,
            ..StoreCheck::default()
        };
        let count = |found: Result<usize, StorageError>, problems: &mut Vec<String>| match found {
            Ok(count) => count as u64,
            Err(error) => {
                problems.push(error.to_string());
                0
            }
        };
        if migration == 0 {
            return Ok(StoreCheck { problems, ..check });
        }
        check.reflectors = count(self.reflectors().await.map(|all| all.len()), &mut problems);
        if self.has_table("schedules").await? {
            check.schedules = count(self.schedules().await.map(|all| all.len()), &mut problems);
        }
        (check.results, check.unreadable) = self.check_documents(&mut problems).await;
        check.problems = problems;
        Ok(check)
    }

    /// Whether the database has no tables yet.
    pub async fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(!self.has_table("reflectors").await?)
    }

    /// The number of the last migration in the database, and whether this program has a later one.
    async fn check_migrations(&self) -> Result<(i64, bool), StorageError> {
        if !self.has_table("_sqlx_migrations").await? {
            return Ok((0, true));
        }
        let sql = "SELECT version FROM _sqlx_migrations ORDER BY version";
        let applied: Vec<i64> =
            on!(self.pool, |db| sqlx::query_scalar(sql).fetch_all(db).await).map_err(self.fault(CHECKING))?;
        let known = self.migrations().iter().map(|migration| migration.version).collect::<BTreeSet<_>>();
        if let Some(migration) = applied.iter().copied().find(|migration| !known.contains(migration)) {
            return Err(StorageError::Newer { place: self.place(), migration });
        }
        Ok((applied.last().copied().unwrap_or_default(), applied.len() < known.len()))
    }

    async fn has_table(&self, name: &str) -> Result<bool, StorageError> {
        let sql = match &self.pool {
            StorePool::Sqlite(..) => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
            StorePool::Postgres(_) => {
                "SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = $1"
            }
        };
        let count: i64 = on!(self.pool, |db| sqlx::query_scalar(sql).bind(name).fetch_one(db).await)
            .map_err(self.fault(CHECKING))?;
        Ok(count > 0)
    }

    /// The size of the database in bytes. For a file, without its write-ahead log.
    async fn size(&self) -> Result<u64, StorageError> {
        match &self.pool {
            StorePool::Sqlite(_, path) => Ok(std::fs::metadata(path).map_or(0, |file| file.len())),
            StorePool::Postgres(_) => {
                let sql = "SELECT CAST(COALESCE(SUM(pg_total_relation_size(oid)), 0) AS BIGINT) FROM pg_class \
                           WHERE relkind = 'r' AND relnamespace = CAST(current_schema() AS regnamespace)";
                let bytes: i64 =
                    on!(self.pool, |db| sqlx::query_scalar(sql).fetch_one(db).await).map_err(self.fault(CHECKING))?;
                Ok(natural(bytes))
            }
        }
    }

    /// Checks the structure of the database. In a file, checks every page, every index and every reference to another
    /// table. A server checks its pages itself, so there this only checks that each table exists and can be read.
    async fn check_structure(&self, migration: i64) -> Result<Vec<String>, StorageError> {
        match &self.pool {
            StorePool::Sqlite(pool, _) => {
                let mut problems = self.check_pages(pool).await?;
                problems.extend(self.check_references(pool).await?);
                Ok(problems)
            }
            StorePool::Postgres(_) => self.check_tables(migration).await,
        }
    }

    /// Checks that each table exists and can be read. The tables are those that the migrations up to `migration`
    /// create.
    async fn check_tables(&self, migration: i64) -> Result<Vec<String>, StorageError> {
        let mut problems = Vec::new();
        let applied = self.migrations().iter().filter(|known| known.version <= migration);
        let lines = applied.flat_map(|known| known.sql.as_str().lines());
        for table in lines.filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split(' ').next()) {
            // The table name in the SQL text comes from a migration.
            let sql = format!("SELECT COUNT(*) FROM {table}");
            let read = on!(self.pool, |db| sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(db).await);
            match read.map_err(self.fault(CHECKING)) {
                Ok(_) => {}
                Err(
                    error @ (StorageError::Altered { .. } | StorageError::Corrupt { .. } | StorageError::Sql { .. }),
                ) => {
                    problems.push(format!("the table {table} cannot be read: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(problems)
    }

    /// Checks the structure of the file: every page, every index.
    async fn check_pages(&self, pool: &SqlitePool) -> Result<Vec<String>, StorageError> {
        let lines: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("PRAGMA integrity_check({LISTED})")))
            .fetch_all(pool)
            .await
            .map_err(self.fault(CHECKING))?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    async fn check_references(&self, pool: &SqlitePool) -> Result<Vec<String>, StorageError> {
        let rows: Vec<(String, Option<i64>, String, i64)> =
            sqlx::query_as("PRAGMA foreign_key_check").fetch_all(pool).await.map_err(self.fault(CHECKING))?;
        let problem = |(table, row, parent, _): (String, Option<i64>, String, i64)| {
            let row = row.map_or_else(String::new, |row| format!(" {row}"));
            format!("row{row} of {table} refers to a missing row of {parent}")
        };
        Ok(rows.into_iter().take(LISTED).map(problem).collect())
    }

    /// Reads every result. Returns the number of results, and the ids of the results that are not valid documents. If a
    /// page of results cannot be read, adds the error to `problems` and stops.
    async fn check_documents(&self, problems: &mut Vec<String>) -> (u64, Vec<String>) {
        let (mut count, mut unreadable, mut last) = (0, Vec::new(), None);
        loop {
            let page = match self.documents(&RunQuery::default(), last.as_ref(), PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    problems.push(error.to_string());
                    break;
                }
            };
            let Some((position, _)) = page.last() else { break };
            last = Some(position.clone());
            count += page.len() as u64;
            unreadable
                .extend(page.iter().filter(|(_, run)| run.document().is_err()).map(|(_, run)| run.id.to_string()));
        }
        (count, unreadable)
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;

    use super::*;
    use crate::store::each_engine::{file_pool, new_database, on_each_engine};
    use crate::store::pool::rows;

    #[tokio::test]
    async fn a_whole_database_has_no_problems_and_a_broken_document_is_named() {
        on_each_engine(async |store| {
            for document in [example::full(), example::bare()] {
                store.save_run(&document).await.unwrap();
            }
            let check = store.check().await.unwrap();
            assert_eq!((check.results, check.is_earlier, &check.problems[..]), (2, false, &[][..]));
            assert_eq!(check.migration, store.migrations().iter().last().unwrap().version);
            assert!(check.bytes > 0, "{check:?}");
            let change = "UPDATE runs SET document = '{}' WHERE complete AND download_bps = 941000000";
            on!(store.pool, |db| sqlx::query(change).execute(db).await.map(rows)).unwrap();
            let check = store.check().await.unwrap();
            assert_eq!((check.problems, check.unreadable), (Vec::new(), vec![example::full().id.to_string()]));
        })
        .await;
    }

    #[tokio::test]
    async fn a_broken_index_of_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        store.save_run(&example::full()).await.unwrap();
        // Changes the definition of an index without SQLite's knowledge, so that the index no longer matches its table.
        let change = "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE INDEX runs_by_start ON runs \
                      (provider)' WHERE name = 'runs_by_start'; PRAGMA writable_schema = RESET";
        sqlx::raw_sql(change).execute(file_pool(&store)).await.unwrap();
        store.close().await;
        let store = ApplianceStore::open_for_reading(folder.path()).await.unwrap();
        let problems = store.check().await.unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("runs_by_start")), "{problems:?}");
    }

    #[tokio::test]
    async fn a_table_that_is_missing_on_a_server_is_named() {
        let Some(address) = new_database() else { return };
        let store = ApplianceStore::open_on_server(&address).await.unwrap();
        let drop = "DROP TABLE outages";
        on!(store.pool, |db| sqlx::query(drop).execute(db).await.map(rows)).unwrap();
        let problems = store.check().await.unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains("outages"), "{problems:?}");
        let error = store.outages(None, 1).await.unwrap_err();
        assert!(matches!(error, StorageError::Altered { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn an_empty_file_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(super::super::FILE), "").unwrap();
        let store = ApplianceStore::open_for_reading(folder.path()).await.unwrap();
        let check = store.check().await.unwrap();
        assert!(check.problems.len() == 1 && check.problems[0].contains("it is empty"), "{check:?}");
    }

    #[tokio::test]
    async fn a_later_version_is_an_error_and_an_earlier_one_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(super::super::FILE);
        let before = include_bytes!("../../tests/before_schedules.db");
        std::fs::write(&file, before).unwrap();
        let store = ApplianceStore::open_for_reading(folder.path()).await.unwrap();
        let check = store.check().await.unwrap();
        assert_eq!((check.is_earlier, check.results, check.reflectors), (true, 2, 1), "{check:?}");
        store.close().await;
        assert!(std::fs::read(&file).unwrap() == before);
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, TRUE, x'00', 0)")
            .execute(file_pool(&store))
            .await
            .unwrap();
        let refused = store.check().await;
        assert!(matches!(refused, Err(StorageError::Newer { migration: 9999, .. })), "{refused:?}");
    }
}
