//! The paired devices. Every handshake checks a copy in memory, which is consistent with the store and the audit log.
//!
//! A change of the peers in the store also stores, in the same transaction, the audit line of the change. This line is
//! owed until it is in the audit log. An added device is a peer only once its line is in the log. Lines that are still
//! owed after a crash or a fault are written at the next start, or when the log can be written again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use anyhow::Context;
use paramedic_link::{EndpointId, PeerText};
use tokio::sync::{Mutex, MutexGuard};

use crate::audit::{self, Audit};
use crate::event::AuditEvent;
use crate::store::{Peer, Store};

/// All paired devices.
pub(super) struct Peers {
    store: Store,
    audit: Audit,
    /// The peers in the configuration. Only a change of the configuration removes them.
    authorized: RwLock<BTreeSet<EndpointId>>,
    known: RwLock<BTreeMap<EndpointId, Peer>>,
    /// Locked while the database is changed and then read, so that an older state does not restore a removed peer.
    changing: Mutex<Unsettled>,
}

/// The work that earlier changes of the peers have not finished, because of a fault.
#[derive(Default)]
struct Unsettled {
    /// The ids of audit lines that are already in the audit log, but that the database still lists as owed (not written
    /// yet).
    written: BTreeSet<i64>,
    /// Peers that must be removed again. Adding them failed, but the database may have stored them, and the first
    /// attempt to remove them failed, too.
    take_back: BTreeSet<EndpointId>,
}

/// The result of removing a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Removed,
    NotThere,
    /// `authorized_peers` names the peer, so only a change of the configuration removes it.
    InConfig,
}

impl Peers {
    /// Loads the peers of the database and of the configuration. First writes the audit lines of changes that a crash
    /// left unwritten, except those that the log in `audit_folder` already contains.
    pub(super) async fn load(
        store: &Store,
        audit: &Audit,
        audit_folder: &Path,
        authorized: &[EndpointId],
    ) -> anyhow::Result<Self> {
        let peers = Self {
            store: store.clone(),
            audit: audit.clone(),
            authorized: RwLock::new(authorized.iter().copied().collect()),
            known: RwLock::default(),
            changing: Mutex::default(),
        };
        let owed = store.owed_lines().await?;
        if !owed.is_empty() {
            let (folder, lines) = (audit_folder.to_owned(), owed.clone());
            let written = tokio::task::spawn_blocking(move || audit::are_written(&folder, &lines)).await?;
            let written = written.context("the audit log can't be read")?;
            tracing::warn!(
                lines = owed.len(),
                "a crash came between a change of the peers and its line in the audit log"
            );
            let written = owed.iter().zip(written).filter(|(_, is_written)| *is_written).map(|(line, _)| line.id);
            peers.changing.lock().await.written.extend(written);
            // A disk that can't be written does not prevent the start: the lines stay owed.
            peers.settle().await;
        }
        peers.replace(store.peers().await?);
        Ok(peers)
    }

    /// Whether the device `id` is paired.
    pub(super) fn is_paired(&self, id: EndpointId) -> bool {
        self.is_authorized(id) || self.read().contains_key(&id)
    }

    /// The peers in the configuration.
    pub(super) fn authorized(&self) -> BTreeSet<EndpointId> {
        self.authorized.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_authorized(&self, id: EndpointId) -> bool {
        self.authorized.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Replaces the peers in the configuration. Returns the devices that are not paired any more.
    pub(super) fn set_authorized(&self, ids: &[EndpointId]) -> Vec<EndpointId> {
        let next = ids.iter().copied().collect();
        let mut authorized = self.authorized.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *authorized, next);
        drop(authorized);
        before.into_iter().filter(|id| !self.is_paired(*id)).collect()
    }

    /// All peers, those in the configuration first: Endpoint ID, name, and where the pairing is stored (`config` or
    /// `store`).
    pub(super) fn list(&self) -> Vec<(EndpointId, PeerText, &'static str)> {
        let (authorized, known) = (self.authorized(), self.read());
        let from_config = authorized.iter().map(|id| (*id, PeerText::new("(from the configuration)"), "config"));
        let from_store = known.values().map(|peer| (peer.id, peer.name.clone(), "store"));
        from_config.chain(from_store.filter(|(id, ..)| !authorized.contains(id))).collect()
    }

    /// Adds a peer, on disk and in the audit log. Returns its name, and whether it is new. After an error the device is
    /// not paired, unless it was paired before.
    pub(super) async fn add(&self, id: EndpointId, name: &PeerText, by: &str) -> anyhow::Result<(PeerText, bool)> {
        let mut unsettled = self.lock_changes().await?;
        let was_paired = self.read().contains_key(&id);
        let added = self.write_new(&mut unsettled, id, name, by).await;
        if added.is_err() && !was_paired {
            // The device was not answered yet, and the database may have it.
            unsettled.take_back.insert(id);
            self.take_back(&mut unsettled).await.ok();
        }
        let is_new = added?;
        let name = self.read().get(&id).map_or_else(|| name.clone(), |peer| peer.name.clone());
        // A device that pairs again by code gets a line, too, although the database does not change.
        if !is_new && by == "code" {
            let event = AuditEvent::PeerAdded { peer: id, name: name.clone(), by: by.to_owned() };
            self.audit.record(vec![event]).await?;
        }
        Ok((name, is_new))
    }

    /// Writes a peer to the database and to the audit log, and reads the peers again. Returns whether the peer is new.
    async fn write_new(
        &self,
        unsettled: &mut Unsettled,
        id: EndpointId,
        name: &PeerText,
        by: &str,
    ) -> anyhow::Result<bool> {
        let is_new = self.store.add_peer(id, name, by).await?;
        if is_new {
            self.pay(unsettled).await?;
        }
        self.replace(self.store.peers().await?);
        Ok(is_new)
    }

    /// Removes a peer on disk. [`Peers::settle`] writes its audit line.
    pub(super) async fn remove(&self, id: EndpointId) -> anyhow::Result<Removal> {
        if self.is_authorized(id) {
            return Ok(Removal::InConfig);
        }
        let _changes = self.lock_changes().await?;
        let removed = self.store.remove_peer(id).await?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok(if removed { Removal::Removed } else { Removal::NotThere })
    }

    /// Renames a peer on disk. Returns `false` if there is no such peer. [`Peers::settle`] writes its audit line.
    pub(super) async fn rename(&self, id: EndpointId, name: &PeerText) -> anyhow::Result<bool> {
        let _changes = self.lock_changes().await?;
        let renamed = self.store.rename_peer(id, name).await?;
        self.replace(self.store.peers().await?);
        Ok(renamed)
    }

    /// Finishes the work that earlier changes of the peers left unfinished. Work that fails because of the disk is left
    /// for the next call.
    pub(super) async fn settle(&self) {
        let mut unsettled = self.changing.lock().await;
        let settled = async {
            self.take_back(&mut unsettled).await?;
            self.pay(&mut unsettled).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(%error, "audit lines of changed peers can't be written yet");
        }
    }

    /// If `text` is an Endpoint ID, returns this ID, even if no such device is paired. Otherwise, returns the Endpoint
    /// ID of the peer with this name.
    pub(super) fn find(&self, text: &str) -> Option<EndpointId> {
        if let Ok(id) = text.parse() {
            return Some(id);
        }
        self.read().values().find(|peer| peer.name.as_str() == text).map(|peer| peer.id)
    }

    /// Locks the peers for a change. First removes the peers whose removal failed earlier.
    async fn lock_changes(&self) -> anyhow::Result<MutexGuard<'_, Unsettled>> {
        let mut unsettled = self.changing.lock().await;
        self.take_back(&mut unsettled).await?;
        Ok(unsettled)
    }

    async fn take_back(&self, unsettled: &mut Unsettled) -> anyhow::Result<()> {
        while let Some(peer) = unsettled.take_back.first().copied() {
            // The line that could not be recorded may be in the log nevertheless, if only its sync or its head failed.
            // So it stays owed, and the line of the removal is owed after it.
            self.store.remove_peer(peer).await?;
            unsettled.take_back.remove(&peer);
        }
        Ok(())
    }

    /// Writes the owed lines (audit lines of earlier changes that are not written yet) to the audit log. After an
    /// error, the lines are not acknowledged.
    async fn pay(&self, unsettled: &mut Unsettled) -> anyhow::Result<()> {
        let owed = self.store.owed_lines().await?;
        let unwritten = owed.iter().filter(|line| !unsettled.written.contains(&line.id));
        let recorded = self.audit.record(unwritten.map(|line| line.event.clone()).collect()).await;
        if recorded.as_ref().map_or_else(|fault| fault.is_in_log, |()| true) {
            unsettled.written.extend(owed.iter().map(|line| line.id));
        }
        recorded?;
        match self.store.lines_written(&owed).await {
            Ok(()) => unsettled.written.clear(),
            // If a crash comes now, the next start finds these lines in the log.
            Err(error) => tracing::warn!(%error, "lines of the audit log can't be marked as written yet"),
        }
        Ok(())
    }

    fn replace(&self, peers: Vec<Peer>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = peers.into_iter().map(|peer| (peer.id, peer)).collect();
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<EndpointId, Peer>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::PeerText;
    use sqlx::{Connection, SqliteConnection};
    use tempfile::TempDir;

    use super::*;
    use crate::audit::Sizes;

    /// A store in a folder, and its peers.
    async fn open(folder: &TempDir) -> (Store, Peers) {
        let (database, audit_folder) = (folder.path().join("reflector.db"), folder.path().join("audit"));
        let store = Store::open(&database).await.unwrap();
        let sizes = Sizes { segment: 1 << 20, total: 1 << 30 };
        let audit = Audit::open(&audit_folder, sizes, store.clone()).await.unwrap();
        let peers = Peers::load(&store, &audit, &audit_folder, &[]).await.unwrap();
        (store, peers)
    }

    /// Another connection to the database.
    async fn connect(folder: &TempDir) -> SqliteConnection {
        let database = format!("sqlite://{}", folder.path().join("reflector.db").display());
        SqliteConnection::connect(&database).await.unwrap()
    }

    #[tokio::test]
    async fn a_device_is_not_paired_if_the_peers_cannot_be_read_after_it_was_added() {
        let folder = TempDir::new().unwrap();
        let (store, peers) = open(&folder).await;
        let mut other = connect(&folder).await;
        // The trigger adds with the device a row that is not a valid peer.
        let trigger = "CREATE TRIGGER spoil AFTER INSERT ON peers WHEN length(NEW.id) = 32 BEGIN \
                       INSERT INTO peers VALUES (x'00', 'spoilt', 'hand', 0); END";
        sqlx::query(trigger).execute(&mut other).await.unwrap();
        let (first, second) = (EndpointId::from_bytes([1; 32]), EndpointId::from_bytes([2; 32]));
        peers.add(first, &PeerText::new("attic"), "code").await.unwrap_err();
        assert!(!peers.is_paired(first));
        sqlx::query("DROP TRIGGER spoil").execute(&mut other).await.unwrap();
        sqlx::query("DELETE FROM peers WHERE id = x'00'").execute(&mut other).await.unwrap();
        peers.add(second, &PeerText::new("cellar"), "code").await.unwrap();
        let paired = store.peers().await.unwrap().into_iter().map(|peer| peer.id).collect::<Vec<_>>();
        assert_eq!((paired, peers.is_paired(first)), (vec![second], false));
    }

    #[tokio::test]
    async fn a_line_whose_head_could_not_be_stored_is_written_once() {
        let folder = TempDir::new().unwrap();
        let (store, peers) = open(&folder).await;
        let peer = EndpointId::from_bytes([1; 32]);
        peers.add(peer, &PeerText::new("attic"), "hand").await.unwrap();
        assert_eq!(peers.remove(peer).await.unwrap(), Removal::Removed);
        // Another process holds the write lock: the line is written, but its head can't be stored.
        let mut other = connect(&folder).await;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        peers.settle().await;
        assert!(peers.audit.fault().borrow().is_some());
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        peers.settle().await;
        let text = std::fs::read_to_string(folder.path().join("audit/000001.jsonl")).unwrap();
        assert_eq!(text.matches("\"peer_removed\"").count(), 1, "{text}");
        assert!(store.owed_lines().await.unwrap().is_empty());
    }
}
