//! The slot that a connection holds until it is authenticated, and the signal to close it for a newer connection.
//! `connection_limiter` decides which connection gets a slot.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use paramedic_link::tls;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use super::bounded_socket::BoundedSocket;
use super::{Server, lock};
use crate::connection_limiter::{Admission, ConnectionLimiter, ConnectionSlotId, Prefix};
use crate::event::RefusalReason;

/// A connection whose client has proved, in the TLS handshake, that it holds the private key of `peer`. Whether this
/// key is paired is not checked yet.
pub(super) struct HandshakenConnection {
    pub(super) stream: TlsStream<BoundedSocket>,
    pub(super) from: IpAddr,
    pub(super) local: SocketAddr,
    pub(super) peer: tls::UnverifiedPeer,
    pub(super) slot: ConnectionSlot,
    /// When the client's first message must have arrived.
    pub(super) deadline: tokio::time::Instant,
}

/// The slots of all connections that are not authenticated.
pub(super) struct ConnectionSlots {
    limiter: Mutex<ConnectionLimiter>,
    /// For each slot, the signal that its connection must close.
    makes_way: Mutex<HashMap<ConnectionSlotId, Arc<Notify>>>,
}

impl ConnectionSlots {
    pub(super) fn new(limiter: ConnectionLimiter) -> Self {
        Self { limiter: Mutex::new(limiter), makes_way: Mutex::default() }
    }

    /// Locks the limiter, which decides about the slots and has the known prefixes.
    pub(super) fn limiter(&self) -> std::sync::MutexGuard<'_, ConnectionLimiter> {
        lock(&self.limiter)
    }
}

/// The slots for the streams of a running session, in addition to those of other connections from the same prefix.
/// Released when dropped.
pub(super) struct SessionSlots {
    slots: Arc<ConnectionSlots>,
    prefix: Prefix,
    streams: usize,
}

impl SessionSlots {
    /// Reserves slots for a session of an appliance at `from` that opens up to `streams` connections at once.
    pub(super) fn reserve(slots: &Arc<ConnectionSlots>, from: IpAddr, streams: usize) -> Self {
        let prefix = Prefix::of(from);
        slots.limiter().session_opened(prefix, streams);
        Self { slots: Arc::clone(slots), prefix, streams }
    }
}

impl Drop for SessionSlots {
    fn drop(&mut self) {
        let mut all = lock(&self.slots.makes_way);
        for gone in self.slots.limiter().session_closed(self.prefix, self.streams) {
            if let Some(gone) = all.remove(&gone) {
                gone.notify_one();
            }
        }
    }
}

/// The slot of one connection. Released when dropped.
pub(super) struct ConnectionSlot {
    server: Arc<Server>,
    id: ConnectionSlotId,
    makes_way: Arc<Notify>,
}

impl ConnectionSlot {
    /// Takes a slot for a new connection from `from`, or returns the reason why it is refused.
    pub(super) fn take(server: &Arc<Server>, from: IpAddr) -> Result<Self, RefusalReason> {
        let mut all = lock(&server.connection_slots.makes_way);
        match server.connection_slots.limiter().admit(Prefix::of(from), server.now().mono) {
            Admission::Refuse(reason) => Err(reason),
            Admission::Enter { place: id, makes_way: gone } => {
                if let Some(gone) = gone.and_then(|gone| all.remove(&gone)) {
                    gone.notify_one();
                }
                let makes_way = Arc::new(Notify::new());
                all.insert(id, Arc::clone(&makes_way));
                Ok(Self { server: Arc::clone(server), id, makes_way })
            }
        }
    }

    /// Records that the connection made progress, so that it does not count as silent.
    pub(super) fn progressed(&self) {
        self.server.connection_slots.limiter().progressed(self.id, self.server.now().mono);
    }

    /// Records that the connection is authenticated or closed. After this, it is no longer closed to make room for
    /// another connection.
    pub(super) fn settle(&self) {
        let mut all = lock(&self.server.connection_slots.makes_way);
        all.remove(&self.id);
        self.server.connection_slots.limiter().left(self.id);
    }

    /// Runs `work` to its end. `None` if the connection must be closed before that, to make room for another one.
    pub(super) async fn while_held<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.makes_way.notified() => None,
            done = work => Some(done),
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.settle();
        self.server.capacity.notify_waiters();
    }
}
