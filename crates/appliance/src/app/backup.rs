//! The maintenance of the store: backup and check.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::Appliance;
use crate::error::ApplianceError;
use crate::store::{ApplianceStore, StoreCheck};

/// The start of the file name of a database copy that is sent to a client. It begins with the name of the database
/// file, so that this program recognises the copy as its own file in the state folder.
const COPY_PREFIX: &str = "packetparamedic.db.copy-";

/// A backup file that is being written. It gets its final name once it is complete.
pub struct BackupFile {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl BackupFile {
    /// Begins a backup that becomes the file `target` once it is complete. Fails if that file exists already.
    pub fn create(target: &Path) -> Result<Self, ApplianceError> {
        let failed = |source| ApplianceError::BackupFile { file: target.to_owned(), source };
        if target.symlink_metadata().is_ok() {
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "it exists already")));
        }
        let folder = folder_of(target);
        let temporary = tempfile::Builder::new().prefix(".packetparamedic-backup-").tempfile_in(folder);
        Ok(Self { temporary: temporary.map_err(failed)?, target: target.to_owned() })
    }

    /// Appends `bytes` to the backup.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ApplianceError> {
        self.temporary.write_all(bytes).map_err(|source| self.failed(source))
    }

    /// Checks that the backup is a sound database, and gives the file its final name. Fails if the check finds a
    /// problem. Returns what the check found.
    pub async fn finish(self) -> Result<StoreCheck, ApplianceError> {
        let synced = self.temporary.as_file().sync_all();
        synced.map_err(|source| self.failed(source))?;
        let copy = ApplianceStore::open_file_for_reading(self.temporary.path()).await?;
        let check = copy.check().await;
        copy.close().await;
        let check = check?;
        if let Some(problem) = check.problems.first() {
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidData, problem.clone())));
        }
        let Self { temporary, target } = self;
        let failed = |source| ApplianceError::BackupFile { file: target.clone(), source };
        temporary.persist_noclobber(&target).map_err(|error| failed(error.error))?;
        File::open(folder_of(&target)).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(StoreCheck { path: target.display().to_string(), ..check })
    }

    fn failed(&self, source: io::Error) -> ApplianceError {
        ApplianceError::BackupFile { file: self.target.clone(), source }
    }
}

impl Appliance {
    /// Writes a consistent copy of the database into `file`.
    pub async fn back_up(&self, file: &BackupFile) -> Result<(), ApplianceError> {
        Ok(self.reading_store().await?.copy_to(file.temporary.path()).await?)
    }

    /// A temporary file with a consistent copy of the database. Dropping the returned value removes the file.
    pub async fn copy_of_store(&self) -> Result<NamedTempFile, ApplianceError> {
        let folder = self.state_dir();
        let failed = |source| ApplianceError::BackupFile { file: folder.to_owned(), source };
        let copy = tempfile::Builder::new().prefix(COPY_PREFIX).tempfile_in(folder).map_err(failed)?;
        self.store().await?.copy_to(copy.path()).await?;
        Ok(copy)
    }

    /// Removes the database copies that a killed service left in the state folder. The caller must make sure that no
    /// other service uses the folder, because the copies of that service would be removed too.
    pub(super) fn remove_old_copies(&self) {
        let Ok(entries) = fs::read_dir(self.state_dir()) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(COPY_PREFIX)) {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, file = %entry.path().display(), "an old copy of the database is not removed");
            }
        }
    }

    /// Checks the database without changing it.
    pub async fn check_store(&self) -> Result<StoreCheck, ApplianceError> {
        let store = self.open_store_for_reading().await?;
        let check = store.check().await;
        store.close().await;
        Ok(check?)
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_backup_never_replaces_a_file_and_leaves_nothing_if_it_fails() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("backup.db");
        fs::write(&target, "mine").unwrap();
        let refused = BackupFile::create(&target).err().unwrap();
        assert!(matches!(refused, ApplianceError::BackupFile { .. }), "{refused}");
        let other = folder.path().join("other.db");
        let mut file = BackupFile::create(&other).unwrap();
        let mode = file.temporary.as_file().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        file.write(b"no database").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(file.finish()).is_err());
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names, ["backup.db"]);
        assert_eq!(fs::read(&target).unwrap(), b"mine");
    }
}
