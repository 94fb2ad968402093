//! A connection on its way in: its place behind the door, and what it proved so far. Nothing is read or judged here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use paramedic_link::tls;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Server, lock};
use crate::door::{Answer, Prefix, Ticket};

/// A connection that proved a key; whose key that is to us is still to be judged.
pub(super) struct Newcomer {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) from: IpAddr,
    pub(super) local: SocketAddr,
    pub(super) peer: tls::UnverifiedPeer,
    pub(super) place: Place,
    /// When it must have said who it is.
    pub(super) deadline: tokio::time::Instant,
}

/// A place behind the door; given back when dropped.
pub(super) struct Place {
    server: Arc<Server>,
    ticket: Ticket,
}

impl Place {
    /// The connection is a peer's now, and no longer counts among strangers.
    pub(super) fn authenticated(&self) {
        lock(&self.server.door).authenticated(&self.ticket, self.server.now().mono);
        self.server.room.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.server.door).left(&self.ticket, self.server.now().mono);
        self.server.room.notify_waiters();
    }
}

/// Waits, for as long as the door says, for a place behind it; `None`: there is none.
pub(super) async fn wait_for_place(server: &Arc<Server>, from: IpAddr) -> Option<Place> {
    let prefix = Prefix::of(from);
    let mut waiting = None;
    loop {
        let room = server.room.notified();
        let answer = lock(&server.door).knock(prefix, waiting.take(), server.now().mono);
        match answer {
            Answer::Enter(ticket) => return Some(Place { server: Arc::clone(server), ticket }),
            Answer::Refuse(_) => return None,
            Answer::Wait { ticket, until } => {
                waiting = Some(ticket);
                let until = server.began + until;
                let _ = tokio::time::timeout_at(until.into(), room).await;
            }
        }
    }
}
