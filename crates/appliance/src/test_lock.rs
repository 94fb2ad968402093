//! The test lock of this device: only one heavy test runs at a time, across all processes.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::ApplianceError;

/// The name of the file in the state folder that is locked while a test runs.
pub const LOCK_FILE: &str = "test.lock";
/// The name of the working folder in the state folder, for programs that a test starts.
pub const SCRATCH: &str = "scratch";

/// What may be changed in the state folder to take the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAccess {
    /// Files and folders may be created in the state folder.
    Write,
    /// Nothing may be changed. If there is no lock file, no test holds the lock, and this test runs without the lock.
    Read,
}

/// The test lock of a state folder. It is held while a test runs, because two tests at once would disturb each other.
/// The kernel releases it when the process ends.
#[derive(Debug)]
pub struct TestLock {
    state_dir: PathBuf,
    access: LockAccess,
    held: Option<File>,
}

impl TestLock {
    /// Takes the lock. `None` if another test holds it.
    pub fn take(state_dir: &Path, access: LockAccess) -> Result<Option<Self>, ApplianceError> {
        let Some(file) = Self::open(state_dir, access)? else { return Self::of(state_dir, access, None).map(Some) };
        match file.try_lock() {
            Ok(()) => Self::of(state_dir, access, Some(file)).map(Some),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(unusable(state_dir, error)),
        }
    }

    /// Waits until the lock is free, and takes it.
    pub async fn wait(state_dir: &Path, access: LockAccess) -> Result<Self, ApplianceError> {
        let Some(file) = Self::open(state_dir, access)? else { return Self::of(state_dir, access, None) };
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file = locked.map_err(io::Error::other).and_then(|locked| locked).map_err(|e| unusable(state_dir, e))?;
        Self::of(state_dir, access, Some(file))
    }

    /// Releases the lock, so that other tests of this device can run.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// If the lock was released, waits until it is free and takes it again.
    pub async fn retake(&mut self) -> Result<(), ApplianceError> {
        if self.held.is_none() {
            *self = Self::wait(&self.state_dir, self.access).await?;
        }
        Ok(())
    }

    /// The working folder of a test that holds the lock. It is empty when the test begins, and no other test uses it.
    pub fn scratch(state_dir: &Path) -> PathBuf {
        state_dir.join(SCRATCH)
    }

    fn of(state_dir: &Path, access: LockAccess, held: Option<File>) -> Result<Self, ApplianceError> {
        if access == LockAccess::Write {
            let scratch = Self::scratch(state_dir);
            // Removes what a killed run left in the folder.
            std::fs::remove_dir_all(&scratch).ok();
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&scratch);
            made.map_err(|error| unusable(state_dir, error))?;
        }
        Ok(Self { state_dir: state_dir.to_owned(), access, held })
    }

    fn open(state_dir: &Path, access: LockAccess) -> Result<Option<File>, ApplianceError> {
        let path = state_dir.join(LOCK_FILE);
        match access {
            LockAccess::Read => Ok(File::open(path).ok()),
            LockAccess::Write => {
                let opened = File::options().create(true).truncate(false).write(true).open(path);
                opened.map(Some).map_err(|error| unusable(state_dir, error))
            }
        }
    }
}

fn unusable(state_dir: &Path, source: io::Error) -> ApplianceError {
    ApplianceError::TestFolder { folder: state_dir.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = TestLock::take(folder.path(), LockAccess::Write).unwrap().unwrap();
        assert!(TestLock::take(folder.path(), LockAccess::Write).unwrap().is_none());
        drop(lock);
        assert!(TestLock::take(folder.path(), LockAccess::Write).unwrap().is_some());
    }

    #[test]
    fn without_writing_the_lock_of_another_test_is_respected_and_nothing_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let read = || TestLock::take(folder.path(), LockAccess::Read).unwrap();
        assert!(read().is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let writing = TestLock::take(folder.path(), LockAccess::Write).unwrap().unwrap();
        assert!(read().is_none());
        drop(writing);
        let reading = read().unwrap();
        assert!(TestLock::take(folder.path(), LockAccess::Write).unwrap().is_none());
        drop(reading);
        assert!(TestLock::take(&folder.path().join("nowhere"), LockAccess::Read).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lock_that_was_released_is_free_until_it_is_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = TestLock::take(folder.path(), LockAccess::Write).unwrap().unwrap();
        first.release();
        let second = TestLock::take(folder.path(), LockAccess::Write).unwrap().unwrap();
        let work = TestLock::scratch(folder.path()).join("work");
        std::fs::write(&work, "").unwrap();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), first.retake()).await.is_err());
        drop(second);
        first.retake().await.unwrap();
        assert!(!work.exists(), "what the other left is none of ours");
        assert!(TestLock::take(folder.path(), LockAccess::Write).unwrap().is_none());
        first.retake().await.unwrap();
    }
}
