//! Turns a reservation into a grant, in three steps. Claim: opens the session's port, sockets and threads. Record:
//! writes the session's test and audit line to disk, and leases its first bytes. Promise: sends the grant. A
//! reservation that does not reach the last step is taken back (docs/decisions/0005).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_link::admission::SessionKeys;
use paramedic_link::message::{Denial, DenialReason, EndReason, Grant};
use paramedic_link::test_spec::{DataMode, TestSpec};
use paramedic_link::{PeerText, SessionId};
use tokio::sync::oneshot;

use super::running_session::{self, RunningSession};
use super::{Server, lock};
use crate::event::AuditEvent;
use crate::sessions::{Answer, Reservation};

/// The link whose appliance requested the session.
pub(super) struct RequestingLink<'a> {
    /// The reflector's own address on the link.
    pub(super) local: SocketAddr,
    /// The appliance's address.
    pub(super) from: IpAddr,
    /// Derives the keys of a session from the TLS connection of the link.
    pub(super) keys: &'a dyn Fn(SessionId) -> io::Result<SessionKeys>,
}

/// A session that has all its resources, but is not recorded yet.
pub(super) struct ClaimedSession {
    pending: PendingReservation,
    running: RunningSession,
    counts_as_test: bool,
    promise: Grant,
}

/// Why the resources for a reservation could not be claimed. The reservation is taken back.
pub(super) enum ClaimError {
    /// Every port of the data port range is in use.
    Denied(Denial),
    /// The host or the engine could not open a resource.
    Failed(Denial),
    /// The appliance withdrew its request, or closed the link.
    Withdrawn,
}

/// Step 1: opens the port, the responder and the engine of the session. If another program uses the port, tries the
/// next port of the range. Blocks while an engine starts a program. Also returns the audit events of the decisions that
/// were made.
pub(super) fn claim(
    server: &Arc<Server>,
    mut reservation: Reservation,
    link: &RequestingLink<'_>,
) -> (Result<ClaimedSession, ClaimError>, Vec<AuditEvent>) {
    let mut events = Vec::new();
    let peer = reservation.peer;
    loop {
        let session = reservation.session;
        let pending = PendingReservation { server: Arc::clone(server), session, is_over: false };
        let opened = (link.keys)(session)
            .and_then(|keys| RunningSession::open(server, &reservation, keys, link.local, link.from));
        match opened {
            Ok(running) => {
                let (is_wanted, granted) = server.sessions().opened(session, server.now());
                events.extend(granted);
                if !is_wanted {
                    drop(running);
                    events.extend(pending.undo());
                    return (Err(ClaimError::Withdrawn), events);
                }
                let promise = promise(&reservation, &running);
                let counts_as_test = reservation.counts_as_test;
                return (Ok(ClaimedSession { pending, running, counts_as_test, promise }), events);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && reservation.port.is_some() => {
                if server.may_log(peer) {
                    tracing::warn!(port = reservation.port, "another program holds this port");
                }
                let (answer, held) = server.sessions().port_is_held(session, server.now());
                events.extend(held);
                // The reservation either has another port or was already taken back, so this guard must not take it
                // back. Its slot may be free for another request.
                pending.leave();
                server.capacity_freed();
                match answer {
                    Answer::Reserved(next) => reservation = next,
                    Answer::Denied(denial) => return (Err(ClaimError::Denied(denial)), events),
                    // A reservation is never queued again.
                    Answer::Queued { .. } => return (Err(ClaimError::Withdrawn), events),
                }
            }
            Err(error) => {
                if server.may_log(peer) {
                    let hint = ThreadLimitReached::of(&error).map(ThreadLimitReached::hint);
                    tracing::error!(%error, hint, "the session can't be opened");
                }
                events.extend(pending.undo());
                return (Err(ClaimError::Failed(not_opened(&reservation.spec, &error))), events);
            }
        }
    }
}

/// Step 2: records the grant, in a task that is never cancelled. `events` include the grant and stay together in the
/// audit log. From then on, other tasks can find the session. The receiver gets the session and the grant to send (step
/// 3). If recording fails or the receiver was dropped, the session is taken back and the receiver gets nothing.
pub(super) fn record(
    claim: ClaimedSession,
    events: Vec<AuditEvent>,
) -> oneshot::Receiver<(Arc<RunningSession>, Grant)> {
    let (recorded, promised) = oneshot::channel();
    tokio::spawn(write_down(claim, events, recorded));
    promised
}

async fn write_down(
    claim: ClaimedSession,
    events: Vec<AuditEvent>,
    recorded: oneshot::Sender<(Arc<RunningSession>, Grant)>,
) {
    let ClaimedSession { pending, running, counts_as_test, promise } = claim;
    let server = Arc::clone(&pending.server);
    let (session, peer) = (running.session, running.peer);
    // The other events stay true even if the grant is taken back.
    let is_grant = |event: &AuditEvent| {
        matches!(
            event,
            AuditEvent::SessionGranted { session: of, .. } | AuditEvent::MonitorGranted { session: of, .. }
                if *of == session
        )
    };
    let mut facts = events.iter().filter(|event| !is_grant(event)).cloned().collect::<Vec<_>>();
    let durable = async {
        if counts_as_test {
            server.store.record_test(session, peer, server.now().unix_ms).await?;
        }
        // Grants of monitors are limited like links: no quota bounds them.
        let events = lock(&server.throttle).pass(events, server.now());
        server.audit.record(events).await?;
        anyhow::ensure!(!recorded.is_closed(), "the link of the appliance closed before the grant was sent");
        Ok(())
    };
    if let Err(error) = durable.await {
        if server.may_log(peer) {
            tracing::error!(%error, "a grant could not be recorded or sent, and is taken back");
        }
        drop(running);
        facts.extend(pending.undo());
        server.record(facts).await;
        drop(recorded);
        // Best effort: if this fails, the test counts again after a restart, until it is an hour old.
        server.store.forget_test(session).await.ok();
        return;
    }
    let running = Arc::new(running);
    server.sessions().granted(session, Arc::clone(&running));
    pending.leave();
    let (leased, first_lease) = oneshot::channel();
    tokio::spawn(Arc::clone(&running).keep_leased(Arc::clone(&server), leased));
    // The first bytes must not wait for the disk. If no bytes could be leased, the end of the session follows its
    // grant.
    first_lease.await.ok();
    if recorded.send((running, promise)).is_err() {
        running_session::end(&server, session, EndReason::Failed).await;
    }
}

/// Step 3: the grant to send. It is sent only once the session is recorded.
fn promise(reservation: &Reservation, running: &RunningSession) -> Grant {
    Grant {
        session: reservation.session,
        expires_in_ms: u64::try_from(reservation.expires_in.as_millis()).unwrap_or(u64::MAX),
        data_port: reservation.port.filter(|_| reservation.spec.data_mode == DataMode::DirectEphemeral),
        udp: true,
        engine_terms: running.engine_terms(),
    }
}

/// A reservation that is becoming a grant. If this value is dropped before the grant, the reservation is taken back.
struct PendingReservation {
    server: Arc<Server>,
    session: SessionId,
    is_over: bool,
}

impl PendingReservation {
    /// Takes the reservation back. Returns the audit events that record this.
    fn undo(mut self) -> Vec<AuditEvent> {
        self.is_over = true;
        self.server.undo(self.session)
    }

    /// Ends the guard without effect, because the reservation became a grant or was taken back elsewhere.
    fn leave(mut self) {
        self.is_over = true;
    }
}

impl Drop for PendingReservation {
    fn drop(&mut self) {
        if !self.is_over {
            self.server.record_soon(self.server.undo(self.session));
        }
    }
}

/// The denial for a request that this host can never run; `None` if the host may be able to run it.
pub(super) fn not_supported(spec: &TestSpec) -> Option<Denial> {
    let refused = paramedic_engines::check_congestion_control(spec.congestion_control.as_deref()?).err()?;
    Some(not_opened(spec, &refused))
}

/// The denial for a session whose resources could not be opened. The denial is permanent if the kernel refuses the
/// congestion control or the engine does not support an option. Any other failure may be temporary.
fn not_opened(spec: &TestSpec, error: &io::Error) -> Denial {
    let is_refused = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    // `InvalidInput`: the engine does not support an option, which is permanent.
    let is_refused = spec.congestion_control.is_some() && is_refused || error.kind() == io::ErrorKind::InvalidInput;
    if is_refused {
        let detail = PeerText::new(&error.to_string());
        return Denial { reason: DenialReason::BadRequest, detail, retry_after_ms: None };
    }
    match ThreadLimitReached::of(error) {
        Some(refused) => faulted(&format!("the session cannot be opened: {}", refused.at(AT_REFLECTOR))),
        None => faulted(&format!("the session cannot be opened: {error}")),
    }
}

/// The name of this program's host in texts for the appliance.
pub(super) const AT_REFLECTOR: &str = "the reflector's host";

/// The denial of a request while the audit log or the database cannot be written.
pub(super) fn not_recorded() -> Denial {
    faulted("the audit log or the database cannot be written")
}

fn faulted(detail: &str) -> Denial {
    Denial { reason: DenialReason::Faulted, detail: PeerText::new(detail), retry_after_ms: Some(5_000) }
}
