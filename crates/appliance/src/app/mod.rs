//! The application: one appliance with its identity, its reflectors, its results, and the tests that it runs. Every client
//! of it, such as the command line, asks here. It decides nothing about output, and never prints.

mod identity;
mod reflectors;
mod results;
mod test_run;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use paramedic_link::SecretKey;
use paramedic_link::state_folder::{self, Change, OwnFile, StateFolder};
use tokio::sync::OnceCell;

pub use reflectors::{NewPairing, PairingProof, Reached};
pub use test_run::{RunningTest, TestEnd, TestEvent};

use crate::error::ApplianceError;
use crate::providers::Describe;
use crate::store::{ApplianceStore, FILE as DATABASE_FILE};
use crate::test_lock;
use identity::KEY_FILE;

/// One appliance. Clones share its state.
#[derive(Clone)]
pub struct Appliance {
    state: Arc<State>,
}

/// What an appliance has open. Key and database are opened at first use: a command that needs one of them runs where the
/// other cannot be used.
struct State {
    folder: PathBuf,
    describe: Describe,
    key: Mutex<Option<Arc<SecretKey>>>,
    store: OnceCell<ApplianceStore>,
}

impl Appliance {
    /// The appliance of a configured state folder, and what was changed to make that folder private. `describe` words the
    /// error that the result of a failed test carries.
    pub fn open(configured: &Path, describe: Describe) -> Result<(Self, Option<Change>), ApplianceError> {
        let StateFolder { path, change } = state_folder::open(configured, own_file)
            .map_err(|source| ApplianceError::StateFolder { configured: configured.to_owned(), source })?;
        let state = State { folder: path, describe, key: Mutex::new(None), store: OnceCell::new() };
        Ok((Self { state: Arc::new(state) }, change))
    }

    /// The private state folder: the configured one, or a folder inside it.
    pub fn state_dir(&self) -> &Path {
        &self.state.folder
    }

    /// Loads the key and opens the database, so that a failure of either comes before anything else is begun.
    pub async fn load(&self) -> Result<(), ApplianceError> {
        self.key()?;
        self.store().await?;
        Ok(())
    }

    /// Closes the database.
    pub async fn close(self) {
        if let Some(store) = self.state.store.get() {
            store.clone().close().await;
        }
    }

    async fn store(&self) -> Result<&ApplianceStore, ApplianceError> {
        Ok(self.state.store.get_or_try_init(|| ApplianceStore::open(&self.state.folder)).await?)
    }
}

/// What the appliance uses a file of its state folder for, by its name.
fn own_file(name: &str) -> Option<OwnFile> {
    let is_own = [KEY_FILE, DATABASE_FILE].iter().any(|own| name.starts_with(own));
    match name {
        test_lock::SCRATCH => Some(OwnFile::Transient),
        // A running test holds the lock by its inode, so the file can be moved.
        test_lock::LOCK_FILE => Some(OwnFile::Store),
        _ => is_own.then_some(OwnFile::Store),
    }
}
