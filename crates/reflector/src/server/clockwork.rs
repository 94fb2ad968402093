//! Lets time pass for the session rules: asks them when something is due, and carries their orders to the links.

use std::sync::Arc;
use std::time::Instant;

use paramedic_link::SessionId;

use super::test_run::Running;
use super::{Order, Server, lock, test_run};
use crate::sessions::Step;

/// Runs until it is dropped.
pub(super) async fn run(server: Arc<Server>) {
    loop {
        let due = server.due.notified();
        let (steps, recorded) = {
            let mut sessions = server.sessions();
            let last_heard = |running: &Arc<Running>| running.last_heard(server.began);
            let mut new_id = || SessionId::new(uuid::Uuid::now_v7());
            let (steps, events) = sessions.poll(server.now(), &last_heard, &mut new_id);
            (steps, server.record(events))
        };
        // Sessions end whatever the disk does; a denial is recorded before it is sent.
        let (denials, others) = steps.into_iter().partition::<Vec<_>, _>(|step| matches!(step, Step::Deny { .. }));
        for step in others {
            carry(&server, step);
        }
        let told = Arc::clone(&server);
        // Time goes on while the disk is slow.
        tokio::spawn(async move {
            recorded.await;
            for step in denials {
                carry(&told, step);
            }
        });
        let left_out = lock(&server.throttle).poll(server.now());
        server.note_left_out(left_out);
        let of_sessions = server.sessions().next_deadline();
        let of_counts = lock(&server.throttle).next_deadline();
        let next = of_sessions.into_iter().chain(of_counts).min();
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

/// One step to the link that it is for.
fn carry(server: &Arc<Server>, step: Step) {
    match step {
        Step::Reserve(reservation) => {
            let (link, session) = (reservation.link, reservation.session);
            if !server.order(link, Order::Reserved(reservation)) {
                // Nobody is left who wants it.
                server.record_soon(server.undo(session));
            }
        }
        Step::Place { link, place, expected_wait } => {
            server.order(link, Order::Place { place, expected_wait });
        }
        Step::Deny { link, denial } => {
            server.order(link, Order::Denied(denial));
        }
        Step::End { session, reason } => {
            let server = Arc::clone(server);
            tokio::spawn(async move { test_run::end_and_tell(&server, session, reason).await });
        }
    }
}
