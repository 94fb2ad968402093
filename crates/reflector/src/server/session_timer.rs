//! The timer of `sessions`: polls it when an action is due, and passes the actions to the links.

use std::sync::Arc;
use std::time::Instant;

use paramedic_link::SessionId;

use super::running_session::RunningSession;
use super::{LinkCommand, Server, lock, running_session};
use crate::sessions::SessionAction;

/// Runs the session timer until the future is dropped.
pub(super) async fn run(server: Arc<Server>) {
    loop {
        let due = server.due.notified();
        let (actions, recorded) = {
            let mut sessions = server.sessions();
            let last_heard = |running: &Arc<RunningSession>| running.last_heard(server.began);
            let mut new_id = || SessionId::new(uuid::Uuid::now_v7());
            let (actions, events) = sessions.poll(server.now(), &last_heard, &mut new_id);
            (actions, server.record(events))
        };
        // A session ends even while the disk fails; a denial is recorded before it is sent.
        let (denials, others) =
            actions.into_iter().partition::<Vec<_>, _>(|action| matches!(action, SessionAction::Deny { .. }));
        for action in others {
            carry(&server, action);
        }
        let shared = Arc::clone(&server);
        // In a task of its own, so that a slow disk does not delay the timer.
        tokio::spawn(async move {
            recorded.await;
            for action in denials {
                carry(&shared, action);
            }
        });
        let suppressed = lock(&server.throttle).poll(server.now());
        server.note_suppressed(suppressed);
        let of_sessions = server.sessions().next_deadline();
        let of_counts = lock(&server.throttle).next_deadline();
        let next = of_sessions.into_iter().chain(of_counts).min();
        server.polled.notify_waiters();
        let deadline = next.map(|mono| server.began + mono);
        match deadline {
            Some(at) => {
                tokio::select! {
                    () = due => {}
                    () = tokio::time::sleep_until(Instant::into(at)) => {}
                }
            }
            None => due.await,
        }
    }
}

/// Carries out one action: passes it to its link, or ends a session.
fn carry(server: &Arc<Server>, action: SessionAction) {
    match action {
        SessionAction::Reserve(reservation) => {
            let (link, session) = (reservation.link, reservation.session);
            if !server.send_command(link, LinkCommand::Reserved(reservation)) {
                // The link is closed.
                server.record_soon(server.undo(session));
            }
        }
        SessionAction::Place { link, place, expected_wait } => {
            server.send_command(link, LinkCommand::Place { place, expected_wait });
        }
        SessionAction::Deny { link, denial } => {
            server.send_command(link, LinkCommand::Denied(denial));
        }
        SessionAction::End { session, reason } => {
            let server = Arc::clone(server);
            tokio::spawn(async move { running_session::end_and_notify(&server, session, reason).await });
        }
    }
}
