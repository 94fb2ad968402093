//! The application: one appliance with its identity, its reflectors, its results and its tests. Every client, such as
//! the command line, uses this module. The application never prints: all output is left to the client.

mod access;
mod alerts;
mod backup;
mod channels;
mod clocks;
mod command_seal;
mod configuration;
mod connection_words;
mod delivery;
#[cfg(test)]
mod each_engine;
mod heartbeat;
mod identity;
mod import;
mod line_overview;
mod line_report;
mod line_snapshot;
mod logins;
mod monitors;
mod mqtt;
mod plan;
mod reflectors;
mod results;
mod run_updates;
mod schedules;
mod secret;
mod service;
mod table_export;
mod test_run;
mod udp_check;
mod web_client;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use paramedic_link::SecretKey;
use paramedic_link::state_folder::{self, Change, OwnFile, StateFolder, StateFolderError};
use tokio::sync::OnceCell;

pub use access::NewToken;
pub use alerts::RuleOverview;
pub use backup::BackupFile;
pub use channels::ChannelTest;
pub use configuration::{
    ApplyMode, ChangeAction, ConfigurationChange, ConfiguredChannel, ConfiguredMonitor, ConfiguredRule,
    ConfiguredSchedule, DeviceConfiguration, ReflectorName, ValueChange,
};
pub use import::{ImportedPairings, OldPairings, OldStore};
pub use line_overview::{DAY_STEP, LineOverview, MonitorDay};
pub use line_report::ReportRequest;
pub use logins::{LOGIN_LIFETIME, SetupLink};
pub use monitors::{MonitorActivity, MonitorCondition, MonitorOverview, MonitorSeries, MonitorState, SeriesRange};
pub use reflectors::{NewPairing, PairingProof, Reached};
pub use run_updates::{RunLife, RunReport, RunUpdate, RunUpdateListener, RunUpdates};
pub use schedules::{ScheduleOverview, ScheduleProposal};
pub use secret::{SecretHash, SecretKind};
pub use service::{PlannedSchedule, RunningSchedule, SERVICE_LOCK, Service, ServiceStatus};
pub use test_run::{RunningTest, TestEnd, TestEvent};
pub use udp_check::UdpCheck;

use crate::error::ApplianceError;
use crate::providers::Describe;
use crate::store::{ApplianceStore, FILE as DATABASE_FILE, PostgresAddress, StorageError};
use crate::test_lock;
use identity::KEY_FILE;

/// One appliance. Clones share its state.
#[derive(Clone)]
pub struct Appliance {
    state: Arc<State>,
}

/// The open resources of an appliance. The key and the database are opened at first use, so that a command that needs
/// only one of them works even if the other is unusable.
struct State {
    folder: PathBuf,
    /// The server of the database; `None` if the database is a file in the state folder.
    server: Option<PostgresAddress>,
    /// Whether this appliance must not create or change anything in the state folder.
    is_read_only: bool,
    describe: Describe,
    key: Mutex<Option<Arc<SecretKey>>>,
    store: OnceCell<ApplianceStore>,
    /// The database opened for reading only, for the case that it cannot or must not be written.
    reading: OnceCell<ApplianceStore>,
}

impl Appliance {
    /// Opens the appliance whose configured state folder is `configured`. Also returns the change that made the folder
    /// private; `None` if it was private already. `describe` makes the error text in the result of a failed test. If
    /// the folder cannot be written, its content can still be read.
    pub fn open(configured: &Path, describe: Describe) -> Result<(Self, Option<Change>), ApplianceError> {
        let opened = match state_folder::open(configured, own_file) {
            Err(StateFolderError::Io { source, .. }) if is_write_refused(&source) && configured.is_dir() => {
                state_folder::locate_own(configured).map(|path| StateFolder { path, change: None })
            }
            opened => opened,
        };
        let StateFolder { path, change } = opened.map_err(unusable(configured))?;
        Ok((Self::in_folder(path, None, false, describe), change))
    }

    /// The appliance with this configured state folder, opened so that it creates and changes nothing there. The folder
    /// need not exist.
    pub fn open_for_reading(configured: &Path, describe: Describe) -> Result<Self, ApplianceError> {
        let path = state_folder::locate_own(configured).map_err(unusable(configured))?;
        Ok(Self::in_folder(path, None, true, describe))
    }

    fn in_folder(folder: PathBuf, server: Option<PostgresAddress>, is_read_only: bool, describe: Describe) -> Self {
        let (key, store, reading) = (Mutex::new(None), OnceCell::new(), OnceCell::new());
        Self { state: Arc::new(State { folder, server, is_read_only, describe, key, store, reading }) }
    }

    /// The same appliance with its database on `server`; `None` stands for a file in the state folder. The identity and
    /// the locks stay in the state folder.
    pub fn with_database(self, server: Option<PostgresAddress>) -> Self {
        let State { folder, is_read_only, describe, .. } = &*self.state;
        Self::in_folder(folder.clone(), server, *is_read_only, *describe)
    }

    /// The private state folder: the configured folder, or a folder inside it.
    pub fn state_dir(&self) -> &Path {
        &self.state.folder
    }

    /// Loads the key and opens the database, so that an error of one of them is found before other work begins.
    pub async fn load(&self) -> Result<(), ApplianceError> {
        self.key()?;
        self.store().await?;
        Ok(())
    }

    /// Closes the database.
    pub async fn close(self) {
        for store in [self.state.store.get(), self.state.reading.get()].into_iter().flatten() {
            store.clone().close().await;
        }
    }

    /// The database, opened for changes at first use.
    async fn store(&self) -> Result<&ApplianceStore, ApplianceError> {
        let open = || async {
            match &self.state.server {
                Some(server) => ApplianceStore::open_on_server(server).await,
                None => ApplianceStore::open(&self.state.folder).await,
            }
        };
        Ok(self.state.store.get_or_try_init(open).await?)
    }

    /// Opens the database for reading, in a connection of its own.
    async fn open_store_for_reading(&self) -> Result<ApplianceStore, StorageError> {
        match &self.state.server {
            Some(server) => ApplianceStore::open_on_server_for_reading(server).await,
            None => ApplianceStore::open_for_reading(&self.state.folder).await,
        }
    }

    /// The database for reading. It need not be writable.
    async fn reading_store(&self) -> Result<&ApplianceStore, ApplianceError> {
        let reading = || self.open_store_for_reading();
        if self.state.is_read_only {
            return Ok(self.state.reading.get_or_try_init(reading).await?);
        }
        match self.store().await {
            // If reading fails too, returns the first error, because it names what cannot be written.
            Err(ApplianceError::Storage(error)) if error.is_unwritable() => {
                self.state.reading.get_or_try_init(reading).await.map_err(|_| error.into())
            }
            store => store,
        }
    }
}

fn unusable(configured: &Path) -> impl FnOnce(StateFolderError) -> ApplianceError {
    let configured = configured.to_owned();
    move |source| ApplianceError::StateFolder { configured, source }
}

/// Whether the error means that this user cannot write to the state folder.
fn is_write_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// How this program uses the file `name` in the state folder; `None` for a file of another program.
fn own_file(name: &str) -> Option<OwnFile> {
    let is_own = [KEY_FILE, DATABASE_FILE].iter().any(|own| name.starts_with(own));
    match name {
        test_lock::SCRATCH => Some(OwnFile::Transient),
        // A running test holds the lock by its inode, so the file can be moved.
        test_lock::LOCK_FILE | SERVICE_LOCK => Some(OwnFile::Store),
        _ => is_own.then_some(OwnFile::Store),
    }
}
