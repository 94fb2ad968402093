//! Notifies systemd's watchdog as long as the session timer and the database answer. An error of the database is an
//! answer, too: with a full disk the reflector grants no sessions, but its running sessions continue.

use std::sync::Arc;
use std::time::Duration;

use super::Server;

/// Notifies the watchdog of systemd, which ends the process if no notification comes for `timeout`. Runs until the
/// future is dropped.
pub(super) async fn run(server: Arc<Server>, timeout: Duration) {
    let feed = || {
        // A service manager that is gone needs no message.
        sd_notify::notify(&[sd_notify::NotifyState::Watchdog]).ok();
    };
    // A third of the timeout: one late answer must not make systemd end the process.
    feed_after(|| answers(Arc::clone(&server)), feed, || tokio::time::sleep(timeout / 3)).await;
}

/// In a loop, awaits `answers`, calls `feed`, then awaits `pause`.
async fn feed_after<A, P>(answers: impl Fn() -> A, feed: impl Fn(), pause: impl Fn() -> P)
where
    A: Future<Output = ()>,
    P: Future<Output = ()>,
{
    loop {
        answers().await;
        feed();
        pause().await;
    }
}

/// Waits until the session timer has polled the sessions and the database has answered.
async fn answers(server: Arc<Server>) {
    let polled = server.polled.notified();
    server.due.notify_one();
    polled.await;
    server.store.await_answer().await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn it_is_fed_once_for_each_answer_and_not_without_one() {
        let (answer, count) = (Notify::new(), AtomicU32::new(0));
        let feed = || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let script = async {
            for fed in 0..5 {
                for _ in 0..100 {
                    yield_now().await;
                    assert_eq!(count.load(Ordering::Relaxed), fed);
                }
                answer.notify_one();
                while count.load(Ordering::Relaxed) == fed {
                    yield_now().await;
                }
            }
        };
        tokio::select! {
            () = feed_after(|| answer.notified(), feed, yield_now) => unreachable!("it goes on"),
            () = script => {}
        }
    }
}
