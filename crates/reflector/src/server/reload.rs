//! Reads the configuration again while the server runs: on SIGHUP if the process has no terminal, and for `reflector
//! config reload`.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use paramedic_host::config::ConfigError;
use paramedic_host::log::LogFilter;
use tokio::signal::unix::Signal;

use super::offer::limits;
use super::{Server, lock};
use crate::config::{Config, ConfigChange, change};
use crate::sessions::Limits;

/// How long a reload waits, before it is answered, until the prefixes of removed peers are deleted from the database.
/// After that, a later write deletes them.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How a running server reads its configuration again and changes its log filter.
pub struct ConfigReloader {
    /// Reads the same flags, environment and files as at the start.
    pub read: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// The filter of the program's log.
    pub log_filter: LogFilter,
}

impl Server {
    /// Reads the configuration, and applies the settings that need no restart. An invalid configuration changes
    /// nothing. Logs the outcome.
    pub(super) async fn reload(&self) -> Result<ConfigChange, ConfigError> {
        let _one_at_a_time = self.reloading.lock().await;
        let read = tokio::task::block_in_place(|| (self.reloader.read)()).inspect_err(|error| {
            tracing::error!(%error, "the configuration is not valid; nothing was changed");
        })?;
        let running = self.config();
        let changed = change(&running, &read);
        let config = Arc::new(changed.config.clone());
        *lock(&self.config) = Arc::clone(&config);
        if config.log != running.log {
            self.reloader.log_filter.set(&config.log);
        }
        {
            let mut sessions = self.sessions();
            let descriptors = sessions.limits().descriptors;
            sessions.set_limits(Limits { descriptors, ..limits(&config, &self.engines) });
        }
        let removed = self.peers.set_authorized(&config.authorized_peers);
        for peer in &removed {
            self.disconnect_peer(*peer);
            self.forget_prefixes(*peer);
        }
        if !removed.is_empty() {
            tokio::time::timeout(REMOVAL_TIMEOUT, self.write_known()).await.ok();
        }
        self.due.notify_one();
        tracing::info!(applied = ?changed.applied, "the configuration was read again");
        if !changed.needs_restart.is_empty() {
            tracing::warn!(settings = ?changed.needs_restart, "changed settings need a restart");
        }
        Ok(changed)
    }
}

/// Reads the configuration again each time the signal arrives, until the future is dropped.
pub(super) async fn on_signal(server: Arc<Server>, mut signal: Signal) {
    while signal.recv().await.is_some() {
        // The outcome is logged.
        server.reload().await.ok();
    }
}

/// What SIGHUP does to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hangup {
    /// SIGHUP ends the reflector like SIGTERM, because the signal then means that the terminal was closed.
    Ends,
    /// SIGHUP makes the reflector read its configuration again, because a service manager or an operator sent it.
    Reloads,
    /// SIGHUP is ignored, because the parent process (such as nohup) chose so.
    IsIgnored,
}

impl Hangup {
    /// Determines what SIGHUP does to this process. Call it before the process handles any signal.
    pub(super) fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let has_terminal =
            std::io::stdin().is_terminal() || std::io::stdout().is_terminal() || std::io::stderr().is_terminal();
        Self::of(ignores_hangup(&status), has_terminal)
    }

    fn of(is_ignored: bool, has_terminal: bool) -> Self {
        match (is_ignored, has_terminal) {
            (true, _) => Self::IsIgnored,
            (false, true) => Self::Ends,
            (false, false) => Self::Reloads,
        }
    }
}

/// Whether a process ignores SIGHUP (signal 1). `status` is the text of /proc/PID/status (proc_pid_status(5)).
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_ends_only_a_reflector_on_a_terminal() {
        assert_eq!(Hangup::of(false, true), Hangup::Ends);
        assert_eq!(Hangup::of(false, false), Hangup::Reloads);
        assert_eq!(Hangup::of(true, true), Hangup::IsIgnored);
        assert_eq!(Hangup::of(true, false), Hangup::IsIgnored);
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = |mask: &str| format!("Name:\treflector\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(&status("garbage")) && !ignores_hangup(""));
    }
}
