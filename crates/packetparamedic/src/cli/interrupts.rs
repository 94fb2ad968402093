//! Ctrl-C and SIGTERM: the first asks a command to end and to keep what it has, the second ends it at once.

use super::failure::{CommandFailure, ExitStatus};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

/// The interrupts of this process. Until a command watches them, they end the program as usual.
#[derive(Clone, Default)]
pub(super) struct Interrupts {
    second: Arc<Notify>,
}

impl Interrupts {
    /// Becomes true with the first interrupt.
    pub(super) fn watch(&self) -> Result<watch::Receiver<bool>, CommandFailure> {
        let failed = |error: std::io::Error| {
            CommandFailure::new(
                ExitStatus::Failed,
                "internal",
                "cannot listen for Ctrl-C",
                error.to_string(),
                "please report it",
            )
        };
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (wanted, receiver) = watch::channel(false);
        let second = Arc::clone(&self.second);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if wanted.send_replace(true) {
                    second.notify_one();
                }
            }
        });
        Ok(receiver)
    }

    /// Ends with the second interrupt: the command is to be dropped where it stands.
    pub(super) async fn second(&self) {
        self.second.notified().await;
    }
}
