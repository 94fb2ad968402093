//! Compares the names of reflectors in a configuration with the stored names. A configuration neither pairs nor removes
//! a reflector.

use std::collections::BTreeSet;

use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::compare::{ChangeAction, ConfigurationChange, ValueChange, change, in_configuration};
use crate::error::ApplianceError;
use crate::store::{Reflector, StorageError};

/// The word for a reflector in a [`ConfigurationChange`].
const KIND: &str = "reflector";

/// The name that a configuration gives to a paired reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReflectorName {
    /// The Endpoint ID of the paired reflector.
    pub endpoint_id: EndpointId,
    /// The name of the reflector on this appliance.
    pub name: PeerText,
}

impl From<&Reflector> for ReflectorName {
    fn from(reflector: &Reflector) -> Self {
        Self { endpoint_id: reflector.endpoint_id, name: reflector.name.clone() }
    }
}

/// The reflectors to rename, each with its new name, and the differences to show to the user.
#[derive(Debug, Default)]
pub(super) struct ReflectorRenames {
    pub(super) renamed: Vec<(EndpointId, PeerText)>,
    pub(super) changes: Vec<ConfigurationChange>,
}

/// Gives the names in `wanted` to `reflectors`. Fails if a name is empty, if two reflectors would have the same name,
/// or if a reflector in `wanted` is not paired.
pub(super) fn rename(
    reflectors: &mut [Reflector],
    wanted: &[ReflectorName],
) -> Result<ReflectorRenames, ApplianceError> {
    let ReflectorRenames { mut renamed, mut changes } = ReflectorRenames::default();
    for ReflectorName { endpoint_id, name } in wanted {
        let refused = |error: StorageError| in_configuration(KIND, name.as_str(), error.into());
        if name.is_empty() {
            return Err(refused(StorageError::NoName));
        }
        let known = reflectors.iter_mut().find(|known| known.endpoint_id == *endpoint_id);
        let known = known.ok_or_else(|| refused(StorageError::NoSuchReflector { wanted: endpoint_id.to_string() }))?;
        if known.name == *name {
            continue;
        }
        let value = ValueChange {
            value: "name".to_owned(),
            from: Some(known.name.as_str().into()),
            to: Some(name.as_str().into()),
        };
        changes.push(change(KIND, known.name.as_str(), ChangeAction::Changed, vec![value]));
        renamed.push((*endpoint_id, name.clone()));
        known.name = name.clone();
    }
    let mut names = BTreeSet::new();
    for known in reflectors.iter() {
        if !names.insert(known.name.as_str().to_lowercase()) {
            let taken = StorageError::NameTaken { name: known.name.to_string() };
            return Err(in_configuration(KIND, known.name.as_str(), taken.into()));
        }
    }
    Ok(ReflectorRenames { renamed, changes })
}
