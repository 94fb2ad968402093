//! The appliance's identity: its key file and its Endpoint ID.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use paramedic_link::key_file::{self, KeyFileError, Rotated};
use paramedic_link::{EndpointId, SecretKey};

use super::Appliance;
use crate::error::ApplianceError;

/// The name of the key file in the state folder.
pub(super) const KEY_FILE: &str = "identity.key";

impl Appliance {
    /// The Endpoint ID of this appliance. Creates the identity key at first use.
    pub fn endpoint_id(&self) -> Result<EndpointId, ApplianceError> {
        Ok(self.key()?.id())
    }

    /// Replaces the identity key, and keeps the old key in another file. The reflectors know only the old identity, so
    /// each must be paired again.
    pub fn rotate_identity(&self) -> Result<Rotated, ApplianceError> {
        let mut key = self.loaded_key();
        let rotated = key_file::rotate(&self.key_path())?;
        *key = None;
        Ok(rotated)
    }

    /// Makes `key` the identity of this device, and keeps the former key in another file.
    pub(super) fn adopt_identity(&self, key: &SecretKey) -> Result<(), ApplianceError> {
        let mut loaded = self.loaded_key();
        key_file::replace(&self.key_path(), key)?;
        *loaded = None;
        Ok(())
    }

    /// The Endpoint ID of this appliance; `None` if no identity key exists. Does not create a key.
    pub(super) fn existing_endpoint_id(&self) -> Result<Option<EndpointId>, ApplianceError> {
        if let Some(key) = &*self.loaded_key() {
            return Ok(Some(key.id()));
        }
        match key_file::load(&self.key_path()) {
            Err(KeyFileError::Absent { .. }) => Ok(None),
            key => Ok(Some(key?.id())),
        }
    }

    /// The identity key. Creates it at first use, unless the state folder must not be changed.
    pub(super) fn key(&self) -> Result<Arc<SecretKey>, ApplianceError> {
        let mut loaded = self.loaded_key();
        if let Some(key) = &*loaded {
            return Ok(Arc::clone(key));
        }
        let path = self.key_path();
        let key = if self.state.is_read_only { key_file::load(&path) } else { key_file::load_or_create(&path) };
        let key = Arc::new(key?);
        *loaded = Some(Arc::clone(&key));
        Ok(key)
    }

    fn loaded_key(&self) -> MutexGuard<'_, Option<Arc<SecretKey>>> {
        self.state.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key_path(&self) -> PathBuf {
        self.state.folder.join(KEY_FILE)
    }
}
