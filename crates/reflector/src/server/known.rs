//! The prefixes from which paired devices authenticated: noted at once, written to the database in bulk. `known_prefixes`
//! decides which are known.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paramedic_link::EndpointId;

use super::{Server, lock};
use crate::connection_limiter::Prefix;
use crate::known_prefixes::{KnownPrefixes, PeerPrefixes};
use crate::store::{Store, StoreError};

/// The least time between two writes. A device can come from a new prefix with each link, and every write keeps the
/// others waiting for the disk.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// How often expired prefixes are forgotten at least.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

impl Server {
    /// Notes that `peer` authenticated from this prefix, which is known from now on.
    pub(super) fn note_prefix(&self, peer: EndpointId, prefix: Prefix) {
        let now = self.now().unix_ms;
        let mut known = lock(&self.known_prefixes);
        if !known.note(peer, prefix, now) {
            return;
        }
        if !self.peers.is_paired(peer) {
            // It was removed since the link was judged.
            known.remove_peer(peer);
            return;
        }
        self.connection_slots.limiter().set_known(known.all(now));
        self.prefix_noted.notify_one();
    }

    /// Forgets the prefixes of `peer`. The store removes them with the peer.
    pub(super) fn forget_prefixes(&self, peer: EndpointId) {
        let mut known = lock(&self.known_prefixes);
        known.remove_peer(peer);
        self.connection_slots.limiter().set_known(known.all(self.now().unix_ms));
    }

    /// Forgets the prefixes that expired. The next write removes them from the database.
    fn expire_prefixes(&self) {
        let now = self.now().unix_ms;
        let mut known = lock(&self.known_prefixes);
        known.expire(now);
        self.connection_slots.limiter().set_known(known.all(now));
    }

    /// Writes the prefixes that are not written yet.
    pub(super) async fn write_known(&self) {
        if let Err(error) = write(&self.known_prefixes, &self.store, &self.peers.authorized()).await {
            // A prefix that is not in the database is unknown after the next start, until the next link from there.
            tracing::warn!(%error, "known prefixes can't be written");
            // The next write is tried after the interval, not only when another prefix is noted.
            self.prefix_noted.notify_one();
        }
    }
}

/// Writes the prefixes that are not written yet. If the write fails or is cancelled, for example by a stop, they stay
/// unwritten.
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

/// Prefixes that are being written. Dropping this marks the remaining ones as unwritten again.
struct Unwritten<'a> {
    prefixes: Vec<PeerPrefixes>,
    known: &'a Mutex<KnownPrefixes>,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        lock(self.known).not_written(&self.prefixes);
    }
}

/// Writes prefixes and forgets old ones, until the future is dropped.
pub(super) async fn keep(server: Arc<Server>) {
    loop {
        // A timeout is no failure: expired prefixes are forgotten also while no device connects.
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
    async fn a_write_that_is_cancelled_is_made_up_for_by_the_next_one() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("reflector.db")).await.unwrap();
        let peer = EndpointId::from_bytes([1; 32]);
        let prefix = Prefix::of(std::net::Ipv4Addr::LOCALHOST.into());
        let (known, authorized) = (Mutex::new(KnownPrefixes::default()), BTreeSet::from([peer]));
        lock(&known).note(peer, prefix, 1_000);
        tokio::select! {
            biased;
            // Its first step is the database's, in another thread.
            _ = write(&known, &store, &authorized) => {}
            () = std::future::ready(()) => {}
        }
        write(&known, &store, &authorized).await.unwrap();
        assert_eq!(store.known_prefixes().await.unwrap(), [(peer, prefix, 1_000)]);
        assert_eq!(lock(&known).take_unwritten(), []);
    }
}
