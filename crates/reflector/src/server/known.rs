//! From where paired devices authenticated: noted at once, written to the database in bulk. What is known is decided in
//! `known_prefixes`.

use std::sync::Arc;
use std::time::Duration;

use paramedic_link::EndpointId;

use super::{Server, lock};
use crate::connection_limiter::Prefix;

/// The least time between two writes. A device can come from a new prefix with each link, and every write keeps the
/// others waiting for the disk.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// How often expired prefixes are forgotten at least.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

impl Server {
    /// `peer` authenticated from this prefix: connections from there have places of their own for the next weeks.
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

    /// Forgets from where `peer` authenticated. The store forgets it with the peer.
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

    /// Writes what is not written yet.
    pub(super) async fn write_known(&self) {
        let unwritten = lock(&self.known_prefixes).take_unwritten();
        if unwritten.is_empty() {
            return;
        }
        if let Err(error) = self.store.keep_prefixes(&unwritten, self.peers.authorized()).await {
            // A prefix that is not in the database is unknown after the next start, until the next link from there.
            tracing::warn!(%error, "known prefixes can't be written");
            lock(&self.known_prefixes).not_written(&unwritten);
            // The next write is tried after the interval, not only when another prefix is noted.
            self.prefix_noted.notify_one();
        }
    }
}

/// Writes prefixes and forgets old ones. Runs until it is dropped.
pub(super) async fn keep(server: Arc<Server>) {
    loop {
        // A timeout is no failure: expired prefixes are forgotten also while no device connects.
        let _ = tokio::time::timeout(EXPIRY_INTERVAL, server.prefix_noted.notified()).await;
        server.expire_prefixes();
        server.write_known().await;
        tokio::time::sleep(WRITE_INTERVAL).await;
    }
}
