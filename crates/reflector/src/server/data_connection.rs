//! Serves a data connection (protocol `pp-data/1`) at the listening port: reads its preamble, finds its session, and
//! passes the connection to the session's threads.

use std::sync::Arc;

use paramedic_engines::data_stream::DataStream;
use paramedic_link::admission::Preamble;
use tokio::io::AsyncReadExt;

use super::Server;
use super::connection_slot::HandshakenConnection;
use super::running_session::RunningSession;
use crate::event::RefusalReason;

/// Serves a data connection until it is passed to its session or refused.
pub(super) async fn run(server: Arc<Server>, connection: HandshakenConnection) {
    // The slot is bound before the stream, so the stream is dropped first: the slot is taken until the socket is
    // closed.
    let HandshakenConnection { slot, from, peer, deadline, mut stream, .. } = connection;
    let mut bytes = [0; Preamble::LEN];
    let read = slot.while_held(tokio::time::timeout_at(deadline, stream.read_exact(&mut bytes))).await;
    let refuse = |reason| server.refuse(from, reason, Some(peer.id()));
    match read {
        Some(Ok(Ok(_))) => {}
        Some(_) => return refuse(RefusalReason::Slow),
        None => return refuse(RefusalReason::MadeWay),
    }
    let Some((running, preamble)) = admit(&server, &bytes, peer.id()) else {
        return refuse(RefusalReason::BadPreamble);
    };
    slot.settle();
    running.control.heard();
    let (socket, session) = stream.into_inner();
    let blocking = socket.into_socket().into_std().and_then(|socket| {
        socket.set_nonblocking(false)?;
        DataStream::tls(session.into(), socket)
    });
    let stream = match blocking {
        Ok(stream) => stream,
        Err(error) => {
            if server.may_log(running.peer) {
                tracing::warn!(%error, "a data connection can't be passed on");
            }
            return;
        }
    };
    if preamble.phase != Preamble::ECHO {
        return running.admit(preamble, stream);
    }
    if let Err(error) = running.answer_probes(stream, Arc::clone(&server.counts.dwell))
        && server.may_log(running.peer)
    {
        tracing::warn!(%error, "no thread for latency probes over TCP");
    }
}

/// Finds the session that the preamble in `bytes` names, and verifies the preamble. `None` if the preamble is not
/// valid, if no such session runs, if it belongs to another peer than `peer`, or if it accepts no further connection
/// for latency probes.
fn admit(
    server: &Server,
    bytes: &[u8; Preamble::LEN],
    peer: paramedic_link::EndpointId,
) -> Option<(Arc<RunningSession>, Preamble)> {
    let claimed = Preamble::claimed_session(bytes)?;
    let running = server.sessions().handle(claimed).filter(|running| running.peer == peer).cloned()?;
    let preamble = Preamble::open(bytes, &running.keys)?;
    let has_place = preamble.phase != Preamble::ECHO || running.admits_probe_stream();
    has_place.then_some((running, preamble))
}
