//! Imports an older store of the same machine: its results, and its identity with its pairings. The older store is not
//! changed.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use paramedic_link::key_file;
use paramedic_link::state_folder;
use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use zeroize::Zeroize;

use super::Appliance;
use super::identity::KEY_FILE;
use crate::error::ApplianceError;
use crate::store::{ApplianceStore, FILE as DATABASE_FILE, Reflector, RunOrder, RunQuery, SavedRun};

/// The number of results that are read from the older store at once.
const PAGE: u32 = 64;

/// An older store. It is read through a temporary copy, which is migrated if its format is that of an earlier version.
pub struct OldStore {
    folder: PathBuf,
    store: ApplianceStore,
    _copy: TempDir,
}

/// The identity and the pairings of an older store.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct OldPairings {
    /// The text of the identity key file. Secret.
    key: String,
    reflectors: Vec<OldPairing>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct OldPairing {
    endpoint_id: EndpointId,
    name: PeerText,
    address: String,
    paired_at: Timestamp,
}

/// What an import of an identity and its pairings changed on this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedPairings {
    /// This device's Endpoint ID after the import.
    pub endpoint_id: EndpointId,
    /// Whether the import changed this device's identity.
    pub is_new_identity: bool,
    /// The names of the imported reflectors, which were not paired with this device before.
    pub reflectors: Vec<PeerText>,
    /// The number of reflectors in the older store that were paired with this device before the import.
    pub known: usize,
}

impl OldStore {
    /// Copies the store in the state folder `folder` to a temporary folder, and opens the copy.
    pub async fn open(folder: &Path) -> Result<Self, ApplianceError> {
        Self::open_copy(folder).await.map_err(of_old(folder))
    }

    async fn open_copy(folder: &Path) -> Result<Self, ApplianceError> {
        let place = |source| ApplianceError::StateFolder { configured: folder.to_owned(), source };
        let folder = state_folder::locate_own(folder).map_err(place)?;
        let failed = |source| ApplianceError::TestFolder { folder: std::env::temp_dir(), source };
        let copy = tempfile::Builder::new().prefix("packetparamedic-").tempdir().map_err(failed)?;
        let old = ApplianceStore::open_for_reading(&folder).await?;
        let copied = old.copy_to(&copy.path().join(DATABASE_FILE)).await;
        old.close().await;
        copied?;
        let store = ApplianceStore::open(copy.path()).await?;
        Ok(Self { folder, store, _copy: copy })
    }

    /// The next page of results after the result `after`, oldest first. Without `after`, the first page.
    pub async fn results_after(&self, after: Option<&SavedRun>) -> Result<Vec<SavedRun>, ApplianceError> {
        let position = match after {
            Some(run) => Some(self.store.run_position(&run.id.to_string()).await?),
            None => None,
        };
        let query = RunQuery { order: RunOrder::OldestFirst, ..RunQuery::default() };
        let page = self.store.documents(&query, position.as_ref(), PAGE).await?;
        Ok(page.into_iter().map(|(_, run)| run).collect())
    }

    /// The identity and the pairings of the older store.
    pub async fn pairings(&self) -> Result<OldPairings, ApplianceError> {
        let key = key_file::load(&self.folder.join(KEY_FILE)).map_err(ApplianceError::from);
        let key = key.map_err(of_old(&self.folder))?;
        let pairing = |reflector: Reflector| OldPairing {
            endpoint_id: reflector.endpoint_id,
            name: reflector.name,
            address: reflector.address.to_string(),
            paired_at: reflector.paired_at,
        };
        let reflectors = self.store.reflectors().await?.into_iter().map(pairing).collect();
        Ok(OldPairings { key: key_file::key_line(&key).to_string(), reflectors })
    }
}

impl Drop for OldPairings {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Appliance {
    /// Saves a result of another store, byte for byte. Returns `false` if this store already had the result.
    pub async fn import_result(&self, text: &str) -> Result<bool, ApplianceError> {
        Ok(self.store().await?.import_run(text).await?)
    }

    /// Imports the identity of an older store and its pairings. Fails and changes nothing if this device already has
    /// pairings under another identity.
    pub async fn import_pairings(&self, old: OldPairings) -> Result<ImportedPairings, ApplianceError> {
        let key = key_file::parse_key(old.key.as_bytes()).ok_or(ApplianceError::ImportedKey)?;
        let mut new = Vec::new();
        for pairing in &old.reflectors {
            new.push(Reflector {
                endpoint_id: pairing.endpoint_id,
                name: pairing.name.clone(),
                address: pairing.address.parse()?,
                paired_at: pairing.paired_at,
            });
        }
        let store = self.store().await?;
        let known = store.reflectors().await?;
        let own = self.existing_endpoint_id()?;
        let is_new_identity = own != Some(key.id());
        if let (Some(own), true, false) = (own, is_new_identity, known.is_empty()) {
            return Err(ApplianceError::IdentityInUse { own, pairings: known.len() });
        }
        if is_new_identity {
            self.adopt_identity(&key)?;
        }
        new.retain(|reflector| known.iter().all(|known| known.endpoint_id != reflector.endpoint_id));
        let mut names = Vec::new();
        for reflector in &new {
            names.push(store.add_reflector(reflector).await?.name);
        }
        let known = old.reflectors.len() - names.len();
        Ok(ImportedPairings { endpoint_id: key.id(), is_new_identity, reflectors: names, known })
    }
}

fn of_old(folder: &Path) -> impl FnOnce(ApplianceError) -> ApplianceError {
    let folder = folder.to_owned();
    move |error| ApplianceError::OldStore { folder, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ErrorBody, example};

    use super::*;
    use crate::app::each_engine::devices;

    fn describe(error: &ApplianceError) -> ErrorBody {
        let text = error.to_string();
        ErrorBody { code: String::new(), what: text, because: String::new(), try_: String::new(), retry_after_ms: None }
    }

    fn appliance(folder: &Path) -> Appliance {
        Appliance::open(folder, describe).unwrap().0
    }

    fn reflector(key: u8, name: &str) -> Reflector {
        Reflector {
            endpoint_id: EndpointId::from_bytes([key; 32]),
            name: name.into(),
            address: "203.0.113.7".parse().unwrap(),
            paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn an_older_store_is_taken_over_once_and_is_not_changed() {
        let old = tempfile::tempdir().unwrap();
        std::fs::write(old.path().join(DATABASE_FILE), include_bytes!("../../tests/before_schedules.db")).unwrap();
        let old_id = appliance(old.path()).endpoint_id().unwrap();
        let before = std::fs::read(old.path().join(DATABASE_FILE)).unwrap();
        for (_folder, device) in devices() {
            // Like a running service, the device has created an identity, but is not paired yet.
            assert_ne!(device.endpoint_id().unwrap(), old_id);
            for is_first in [true, false] {
                let opened = OldStore::open(old.path()).await.unwrap();
                let mut results = Vec::new();
                while let Some(run) = opened.results_after(results.last()).await.unwrap().into_iter().next() {
                    assert_eq!(device.import_result(&run.text).await.unwrap(), is_first);
                    assert_eq!(device.result(&run.id.to_string()).await.unwrap(), run);
                    results.push(run);
                }
                assert_eq!(results.len(), 2);
                let imported = device.import_pairings(opened.pairings().await.unwrap()).await.unwrap();
                assert_eq!((imported.endpoint_id, imported.is_new_identity), (old_id, is_first));
                assert_eq!((imported.reflectors.len(), imported.known), if is_first { (1, 0) } else { (0, 1) });
                assert_eq!(device.endpoint_id().unwrap(), old_id);
            }
        }
        assert!(std::fs::read(old.path().join(DATABASE_FILE)).unwrap() == before);
    }

    #[tokio::test]
    async fn an_identity_with_pairings_is_not_replaced() {
        for (_folder, device) in devices() {
            let old = tempfile::tempdir().unwrap();
            let former = appliance(old.path());
            former.endpoint_id().unwrap();
            former.store().await.unwrap().add_reflector(&reflector(1, "attic")).await.unwrap();
            let own = device.endpoint_id().unwrap();
            device.store().await.unwrap().add_reflector(&reflector(2, "cellar")).await.unwrap();
            let opened = OldStore::open(old.path()).await.unwrap();
            let refused = device.import_pairings(opened.pairings().await.unwrap()).await;
            assert!(matches!(refused, Err(ApplianceError::IdentityInUse { pairings: 1, .. })), "{refused:?}");
            assert_eq!((device.endpoint_id().unwrap(), device.reflectors().await.unwrap().len()), (own, 1));
            // Its results can be imported nevertheless.
            assert!(device.import_result(&example::full().to_text().unwrap()).await.unwrap());
            let absent = OldStore::open(&old.path().join("nothing")).await.err().unwrap();
            assert!(matches!(absent, ApplianceError::OldStore { .. }), "{absent}");
        }
    }
}
