//! Lets time pass for the session rules: asks them when something is due, and carries their orders to the links.

use std::sync::Arc;
use std::time::Instant;

use paramedic_link::SessionId;

use super::{Order, Server};
use crate::sessions::Step;

/// Runs until it is dropped.
pub(super) async fn run(server: Arc<Server>) {
    loop {
        let due = server.due.notified();
        let (steps, events) = {
            let now = server.now();
            let mut sessions = server.sessions();
            let steps = sessions.poll(now, &mut || SessionId::new(uuid::Uuid::now_v7()));
            // The events of a reservation are recorded by the link that opens it, before the grant goes out.
            (steps, sessions.take_events())
        };
        if !events.is_empty()
            && let Err(fault) = server.audit.record(events).await
        {
            tracing::error!(%fault, "the audit log can't be written");
        }
        for step in steps {
            carry(&server, step);
        }
        for event in super::lock(&server.refusals).poll(server.now()) {
            server.audit.note(event);
        }
        let of_sessions = server.sessions().next_deadline();
        let of_refusals = super::lock(&server.refusals).next_deadline();
        let deadline = of_sessions.into_iter().chain(of_refusals).min().map(|mono| server.began + mono);
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

/// One step to the link that it is for.
fn carry(server: &Server, step: Step) {
    match step {
        Step::Reserve(reservation) => {
            let (link, session) = (reservation.link, reservation.session);
            if !server.order(link, Order::Reserved(reservation)) {
                server.sessions().undo(session, server.now());
                server.due.notify_one();
            }
        }
        Step::Place { link, place, expected_wait } => {
            server.order(link, Order::Place { place, expected_wait });
        }
        Step::Deny { link, denial } => {
            server.order(link, Order::Denied(denial));
        }
        Step::End { session, reason } => {
            let running = super::lock(&server.running).get(&session).cloned();
            if let Some(running) = running {
                // Cut at once: the link's task may stand in a write to a peer that no longer reads.
                running.tether.cut();
                server.order(running.link, Order::End { session, reason });
            }
        }
    }
}
