//! Who is paired: the copy in memory that every handshake asks, kept in step with the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::RwLock;

use paramedic_link::{EndpointId, PeerText};

use crate::store::{Peer, Store, StoreError};

/// All paired appliances.
pub(super) struct Peers {
    store: Store,
    /// From the configuration: can't be removed here.
    authorized: BTreeSet<EndpointId>,
    known: RwLock<BTreeMap<EndpointId, Peer>>,
    /// Held while the store is changed and read again: an older reading must not bring a removed peer back.
    changing: tokio::sync::Mutex<()>,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Removed,
    NotThere,
    /// It stands in `authorized_peers`: only the configuration can remove it.
    InConfig,
}

impl Peers {
    /// The peers of the store, and those that the configuration names.
    pub(super) async fn load(store: &Store, authorized: &[EndpointId]) -> Result<Self, StoreError> {
        let known = store.peers().await?.into_iter().map(|peer| (peer.id, peer)).collect();
        let authorized = authorized.iter().copied().collect();
        Ok(Self {
            store: store.clone(),
            authorized,
            known: RwLock::new(known),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Whether `id` may come in.
    pub(super) fn is_paired(&self, id: EndpointId) -> bool {
        self.authorized.contains(&id) || self.read().contains_key(&id)
    }

    /// All of them, those of the configuration first.
    pub(super) fn list(&self) -> Vec<(EndpointId, PeerText, &'static str)> {
        let known = self.read();
        let from_config = self.authorized.iter().map(|id| (*id, PeerText::new("(from the configuration)"), "config"));
        let from_store = known.values().map(|peer| (peer.id, peer.name.clone(), "store"));
        from_config.chain(from_store.filter(|(id, ..)| !self.authorized.contains(id))).collect()
    }

    /// Adds a peer, durably; the name it got, and whether it is new.
    pub(super) async fn add(&self, id: EndpointId, name: &PeerText, by: &str) -> Result<(PeerText, bool), StoreError> {
        let _changing = self.changing.lock().await;
        let added = self.store.add_peer(id, name, by).await?;
        let peers = self.store.peers().await?;
        self.replace(peers);
        let name = self.read().get(&id).map_or_else(|| name.clone(), |peer| peer.name.clone());
        Ok((name, added))
    }

    /// Removes a peer, durably.
    pub(super) async fn remove(&self, id: EndpointId) -> Result<Removal, StoreError> {
        if self.authorized.contains(&id) {
            return Ok(Removal::InConfig);
        }
        let _changing = self.changing.lock().await;
        let removed = self.store.remove_peer(id).await?;
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
        Ok(if removed { Removal::Removed } else { Removal::NotThere })
    }

    /// Gives a peer another name, durably; `false` where there is no such peer.
    pub(super) async fn rename(&self, id: EndpointId, name: &PeerText) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().await;
        let renamed = self.store.rename_peer(id, name).await?;
        let peers = self.store.peers().await?;
        self.replace(peers);
        Ok(renamed)
    }

    /// The peer that `text` means: an Endpoint ID or a name.
    pub(super) fn find(&self, text: &str) -> Option<EndpointId> {
        if let Ok(id) = text.parse() {
            return Some(id);
        }
        self.read().values().find(|peer| peer.name.as_str() == text).map(|peer| peer.id)
    }

    fn replace(&self, peers: Vec<Peer>) {
        let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *known = peers.into_iter().map(|peer| (peer.id, peer)).collect();
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<EndpointId, Peer>> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
