//! Copies the database to a file. The copy is consistent even if other connections write during the copying.

use std::fs::File;
use std::io;
use std::path::Path;

use paramedic_host::database::DatabaseError;

use super::place::StorePlace;
use super::pool::StorePool;
use super::{ApplianceStore, StorageError};

impl ApplianceStore {
    /// Writes a copy of the database into `target`, an empty file, and syncs that file. The copy does not contain
    /// changes that are made during the copying. Fails for a database on a server, which only the server's own tools
    /// can copy.
    pub async fn copy_to(&self, target: &Path) -> Result<(), StorageError> {
        let (pool, path) = match &self.pool {
            StorePool::Sqlite(pool, path) => (pool, path),
            StorePool::Postgres(server) => return Err(StorageError::NoCopy { server: server.shown().to_owned() }),
        };
        let folder = |source| StorageError::Folder { path: target.to_owned(), source };
        let not_utf8 = || folder(io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8"));
        let name = target.to_str().ok_or_else(not_utf8)?;
        let copied = sqlx::query("VACUUM INTO $1").bind(name).execute(pool).await;
        copied.map_err(|error| match DatabaseError::of(target, "copying the database", error).into() {
            StorageError::Corrupt { .. } => StorageError::Corrupt { place: StorePlace::File(path.clone()) },
            other => other,
        })?;
        // SQLite does not sync the copy.
        File::open(target).and_then(|file| file.sync_all()).map_err(folder)
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};

    use super::*;
    use crate::store::each_engine::new_database;
    use crate::store::{FILE, RunQuery};

    #[tokio::test]
    async fn a_copy_is_whole_while_rows_are_saved() {
        let folder = tempfile::tempdir().unwrap();
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        store.save_run(&example::full()).await.unwrap();
        // The last rows are in the write-ahead log.
        let writer = store.clone();
        let saving = tokio::spawn(async move {
            for _ in 0..50 {
                let id = uuid::Uuid::now_v7();
                writer.save_run(&ResultDocument { id, ..example::bare() }).await.unwrap();
            }
        });
        let copies = tempfile::tempdir().unwrap();
        for n in 0..3 {
            let place = copies.path().join(n.to_string());
            std::fs::create_dir(&place).unwrap();
            store.copy_to(&place.join(FILE)).await.unwrap();
            let copy = ApplianceStore::open(&place).await.unwrap();
            assert_eq!(copy.check().await.unwrap().problems, [""; 0]);
            assert!(!copy.runs(&RunQuery::default(), None, 100).await.unwrap().is_empty());
        }
        saving.await.unwrap();
        let taken = store.copy_to(&copies.path().join("0").join(FILE)).await;
        assert!(taken.is_err(), "an existing file is not overwritten");
    }

    #[tokio::test]
    async fn a_database_of_a_server_is_not_copied() {
        let Some(address) = new_database() else { return };
        let store = ApplianceStore::open_on_server(&address).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let refused = store.copy_to(&folder.path().join("copy")).await;
        assert!(matches!(refused, Err(StorageError::NoCopy { .. })), "{refused:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
