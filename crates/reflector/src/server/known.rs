//! Records the address prefixes from which paired devices authenticate: at once in memory, and in batches in the
//! database. `known_prefixes` decides which prefixes are known.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paramedic_link::EndpointId;

use super::{Server, lock};
use crate::connection_limiter::Prefix;
use crate::known_prefixes::{KnownPrefixes, PeerPrefixes};
use crate::store::{Store, StoreError};

/// The shortest time between two writes of prefixes to the database. A device can use a new prefix for each link, and
/// each write delays other writes to disk.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// While no prefix changes, expired prefixes are removed about this often.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

impl Server {
    /// Records that `peer` authenticated from `prefix`. The prefix is known from now on.
    pub(super) fn note_prefix(&self, peer: EndpointId, prefix: Prefix) {
        let now = self.now().unix_ms;
        let mut known = lock(&self.known_prefixes);
        let is_noted = known.note(peer, prefix, now);
        if !self.peers.is_paired(peer) {
            // The peer was removed after its link was accepted.
            known.remove_peer(peer);
            return;
        }
        if is_noted {
            self.connection_slots.limiter().set_known(known.all(now));
            self.prefix_noted.notify_one();
        } else {
            // While the clock was wrong, the prefix may have counted as expired.
            self.connection_slots.limiter().add_known(prefix);
        }
    }

    /// Removes the prefixes of `peer`. If the peer was in the database, the store has already deleted its prefixes
    /// there; if it was in the configuration, the next write deletes them.
    pub(super) fn forget_prefixes(&self, peer: EndpointId) {
        let mut known = lock(&self.known_prefixes);
        known.remove_peer(peer);
        self.connection_slots.limiter().set_known(known.all(self.now().unix_ms));
        self.prefix_noted.notify_one();
    }

    /// Removes expired prefixes. The next write removes them from the database.
    fn expire_prefixes(&self) {
        let now = self.now().unix_ms;
        let mut known = lock(&self.known_prefixes);
        known.expire(now);
        self.connection_slots.limiter().set_known(known.all(now));
    }

    /// Writes the prefixes that changed to the database.
    pub(super) async fn write_known(&self) {
        // A write with an older list of authorized peers must not follow the removal of one of them.
        let _one_at_a_time = self.writing_known.lock().await;
        if let Err(error) = write(&self.known_prefixes, &self.store, &self.peers.authorized()).await {
            // A prefix that is not in the database is unknown after the next start, until the next link from it.
            tracing::warn!(%error, "known prefixes can't be written");
            // The next write is retried after the interval, not only after another prefix is recorded.
            self.prefix_noted.notify_one();
        }
    }
}

/// Writes the prefixes that changed. If the write fails or is cancelled, for example by a shutdown, the next write
/// includes them.
async fn write(
    known: &Mutex<KnownPrefixes>,
    store: &Store,
    authorized: &BTreeSet<EndpointId>,
) -> Result<(), StoreError> {
    let mut unwritten = Unwritten { prefixes: lock(known).take_unwritten(), known };
    if unwritten.prefixes.is_empty() {
        return Ok(());
    }
    store.keep_prefixes(&unwritten.prefixes, authorized).await?;
    unwritten.prefixes.clear();
    Ok(())
}

/// Prefixes that are being written. If this is dropped before they are written, the next write includes them.
struct Unwritten<'a> {
    prefixes: Vec<PeerPrefixes>,
    known: &'a Mutex<KnownPrefixes>,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        lock(self.known).not_written(&self.prefixes);
    }
}

/// Writes changed prefixes and removes expired ones, until the future is dropped.
pub(super) async fn keep(server: Arc<Server>) {
    loop {
        // A timeout is not a failure: expired prefixes are removed even while no device connects.
        tokio::time::timeout(EXPIRY_INTERVAL, server.prefix_noted.notified()).await.ok();
        server.expire_prefixes();
        server.write_known().await;
        tokio::time::sleep(WRITE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_write_is_repeated_by_the_next_one() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("reflector.db")).await.unwrap();
        let peer = EndpointId::from_bytes([1; 32]);
        let prefix = Prefix::of(std::net::Ipv4Addr::LOCALHOST.into());
        let (known, authorized) = (Mutex::new(KnownPrefixes::default()), BTreeSet::from([peer]));
        lock(&known).note(peer, prefix, 1_000);
        tokio::select! {
            biased;
            // The write starts in the thread of the database, so the other branch cancels it after its first step.
            _ = write(&known, &store, &authorized) => {}
            () = std::future::ready(()) => {}
        }
        write(&known, &store, &authorized).await.unwrap();
        assert_eq!(store.known_prefixes().await.unwrap(), [(peer, prefix, 1_000)]);
        assert_eq!(lock(&known).take_unwritten(), []);
    }
}
