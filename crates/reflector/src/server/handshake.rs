//! Turns a connection into a link after its TLS handshake. Reads the first message, and accepts clients whose key is
//! paired or that pair now. All other clients get the same answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use paramedic_link::framed::{Framed, LinkError};
use paramedic_link::message::{CloseReason, ToAppliance, ToReflector};
use paramedic_link::pairing_code::PAIRING_EXPORTER_LABEL;
use paramedic_link::{EndpointId, PeerText};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument;

use super::connection::{CLOSE_TIMEOUT, Connection, LinkStream};
use super::connection_slot::HandshakenConnection;
use super::{Link, LinkCommand, Server, lock, pair};
use crate::event::RefusalReason;
use crate::sessions::LinkId;

/// The number of links that one peer may have open. An appliance needs one for each test. Each link takes a descriptor
/// and some memory.
const MAX_LINKS_PER_PEER: usize = 64;
/// How long after its first message an unpaired client gets its answer. The constant delay does not reveal how the
/// message was judged, and it slows down guessing of codes.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);

static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// Serves the connection of a link, from its first message to the end of the link.
pub(super) async fn run(server: Arc<Server>, connection: HandshakenConnection) {
    let HandshakenConnection { stream, from, local, peer, slot, deadline } = connection;
    let peer = peer.id();
    let mut framed = Framed::new(stream);
    let first = tokio::time::timeout_at(deadline, framed.receive::<ToReflector>());
    let refuse = |reason| server.refuse(from, reason, Some(peer));
    let first = match slot.while_held(first).await {
        Some(Ok(Ok(Some(first)))) => first,
        Some(Ok(Ok(None))) => return refuse(RefusalReason::Silent),
        Some(Ok(Err(error))) => {
            tracing::debug!(%from, %error, "no first message");
            return refuse(RefusalReason::Protocol);
        }
        Some(Err(_)) => return refuse(RefusalReason::Slow),
        None => return refuse(RefusalReason::MadeWay),
    };
    slot.progressed();
    let answer_at = Instant::now() + REFUSAL_DELAY;
    let judged = match first {
        ToReflector::Hello { versions, features, .. } if server.peers.is_paired(peer) => Ok((versions, features, None)),
        ToReflector::Pair { versions, proof, name } => {
            let exporter = framed.stream().get_ref().1.export_keying_material([0; 32], PAIRING_EXPORTER_LABEL, None);
            let answer = match exporter {
                // Not cancelled to make room: the pairing of a right proof may be half written.
                Ok(exporter) => pair::verify_proof(&server, &exporter, from, peer, &proof, &name).await,
                Err(_) => Err(RefusalReason::Handshake),
            };
            answer.map(|answer| (versions, vec![], Some(answer)))
        }
        _ => Err(RefusalReason::NotPaired),
    };
    let (versions, features, paired) = match judged {
        Ok(judged) => judged,
        Err(reason) => {
            refuse(reason);
            let answered = slot.while_held(reject_unpaired(framed, answer_at)).await;
            if answered.is_none() {
                refuse(RefusalReason::MadeWay);
            }
            return;
        }
    };
    let (sender, commands) = mpsc::unbounded_channel();
    let Some(id) = register(&server, peer, sender) else {
        refuse(RefusalReason::TooManyLinks);
        // The connection keeps its slot, and counts for the limits, until it is closed.
        let detail = PeerText::new("too many links are open");
        let close = ToAppliance::Close { reason: CloseReason::Protocol, detail };
        let _ = slot.while_held(tokio::time::timeout(CLOSE_TIMEOUT, framed.send(&close))).await;
        return;
    };
    slot.settle();
    let span = tracing::info_span!("link", %peer, %from);
    let connection = Connection::open(server, framed, id, peer, from, local, commands);
    connection.serve(&versions, &features, paired).instrument(span).await;
}

/// Registers a link. `None` if this device, or all devices together, have too many links open.
fn register(server: &Server, peer: EndpointId, commands: mpsc::UnboundedSender<LinkCommand>) -> Option<LinkId> {
    let mut links = lock(&server.links);
    let of_peer = links.values().filter(|link| link.peer == peer).count();
    // No device gets more than half of all links.
    if of_peer >= MAX_LINKS_PER_PEER.min(server.max_links / 2) || links.len() >= server.max_links {
        return None;
    }
    let id = LinkId(NEXT_LINK.fetch_add(1, Ordering::Relaxed));
    links.insert(id, Link { peer, commands });
    Some(id)
}

/// Answers an unpaired client: always with the same answer, and always [`REFUSAL_DELAY`] after the client's message.
async fn reject_unpaired(mut framed: Framed<LinkStream>, answer_at: Instant) {
    tokio::time::sleep_until(answer_at).await;
    // Best effort, with a timeout.
    let answered = tokio::time::timeout(CLOSE_TIMEOUT, async {
        framed.send(&ToAppliance::NotPaired).await?;
        framed.finish().await?;
        // Unread bytes would turn the close into a reset, and the answer could be lost.
        while let Ok(Some(_)) = framed.receive::<ToReflector>().await {}
        Ok::<_, LinkError>(())
    });
    answered.await.ok();
}
