//! Handles Ctrl-C, SIGTERM and SIGHUP. The first signal ends the command, which keeps its measurements. A second Ctrl-C
//! or SIGTERM ends the command at once.

use super::failure::{CommandFailure, ExitStatus};
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// The signals that interrupt this process. Until a command calls [`Interrupts::watch`], they end the program as usual.
#[derive(Clone, Default)]
pub(super) struct Interrupts {
    second: Arc<Notify>,
}

impl Interrupts {
    /// Starts to handle the signals. The value of the returned receiver becomes true at the first signal.
    pub(super) fn watch(&self) -> Result<watch::Receiver<bool>, CommandFailure> {
        let failed = |error: io::Error| {
            CommandFailure::new(
                ExitStatus::Failed,
                "internal",
                "cannot listen for Ctrl-C",
                error.to_string(),
                "please report this error",
            )
        };
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        // nohup(1) makes the process ignore SIGHUP; a handler would undo that.
        let mut hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup()).map_err(failed)?) };
        let (wanted, receiver) = watch::channel(false);
        let second = Arc::clone(&self.second);
        tokio::spawn(async move {
            let mut is_asked = false;
            loop {
                let is_hangup = tokio::select! {
                    _ = interrupt.recv() => false,
                    _ = terminate.recv() => false,
                    () = received(hangup.as_mut()) => true,
                };
                // A closing terminal sends SIGHUP twice, and systemd may send it with SIGTERM (`SendSIGHUP=`), in any
                // order. So SIGHUP never counts as the second signal.
                wanted.send_replace(true);
                if is_hangup {
                    continue;
                }
                if std::mem::replace(&mut is_asked, true) {
                    second.notify_one();
                }
            }
        });
        Ok(receiver)
    }

    /// Completes at the second Ctrl-C or SIGTERM. The caller must then drop the command.
    pub(super) async fn second(&self) {
        self.second.notified().await;
    }
}

/// Completes when `signal` arrives; never if `signal` is `None`.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process ignores SIGHUP, because its parent process chose so.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Whether a process ignores SIGHUP. `status` is the text of /proc/PID/status (proc_pid_status(5)).
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Bit 0 is signal 1, SIGHUP.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup("") && !ignores_hangup(&status("x")));
    }
}
