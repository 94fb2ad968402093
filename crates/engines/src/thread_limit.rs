//! Starts threads. If the host allows no more threads, the error names the limit. A process counts as a thread.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, getuid};

use crate::quota;

/// The stack size in bytes of a thread that only waits.
const WAITING_STACK: usize = 64 << 10;

/// The error for a thread or a process that this host refused to start. Its text begins with "this host".
/// [`ThreadLimitReached::at`] names another host instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.at("this host"))]
pub struct ThreadLimitReached {
    /// The limit that was reached, if it could be determined.
    pub limit: Option<ThreadLimit>,
}

/// A limit on the number of threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ThreadLimit {
    /// The limit on all threads of the user (setrlimit(2), `RLIMIT_NPROC`).
    User(u64),
    /// The limit on the threads of a control group (cgroups(7), controller pids).
    Group {
        /// The path of the group's file `pids.max`, which contains the limit.
        file: PathBuf,
        /// The maximum number of threads in the group.
        max: u64,
    },
    /// The limit on all threads of the host (proc(5), `threads-max`).
    Host(u64),
}

impl fmt::Display for ThreadLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(max) => write!(f, "RLIMIT_NPROC of the program's user is {max}"),
            Self::Group { max, .. } => write!(f, "pids.max of the program's control group is {max}"),
            Self::Host(max) => write!(f, "kernel.threads-max is {max}"),
        }
    }
}

impl ThreadLimitReached {
    /// The [`ThreadLimitReached`] that `error` contains, if it contains one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The error as text with `host` as its subject, for example `the reflector's host allows no more threads: …`.
    pub fn at(&self, host: &str) -> String {
        let limit = self.limit.as_ref().map(|limit| format!(": {limit}")).unwrap_or_default();
        format!("{host} allows no more threads{limit}")
    }

    /// How the user can raise the limit that was reached, as an imperative clause.
    pub fn hint(&self) -> String {
        match &self.limit {
            Some(ThreadLimit::User(_)) => "raise RLIMIT_NPROC (`ulimit -u`; LimitNPROC= of a systemd unit)".to_owned(),
            Some(ThreadLimit::Group { file, .. }) => {
                format!("raise {} (TasksMax= of a systemd unit, --pids-limit of a container)", file.display())
            }
            Some(ThreadLimit::Host(_)) => "raise the sysctl kernel.threads-max, or end other programs".to_owned(),
            None => "raise RLIMIT_NPROC (`ulimit -u`), pids.max of the control group or TasksMax= of the systemd unit"
                .to_owned(),
        }
    }
}

/// Starts a thread. If the host refuses it, the error is a [`ThreadLimitReached`].
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(body).map_err(explained)
}

/// Starts a thread in `scope`. If the host refuses it, the error is a [`ThreadLimitReached`].
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, body).map_err(explained)
}

/// Checks that the host allows `threads` more threads now, by starting that many threads and ending them. If the host
/// refuses a thread, the error is a [`ThreadLimitReached`].
pub fn check(threads: usize) -> io::Result<()> {
    let gate = Arc::new(RwLock::new(()));
    let is_shut = gate.write().unwrap_or_else(PoisonError::into_inner);
    let mut waiting = Vec::with_capacity(threads);
    let start = || {
        let gate = Arc::clone(&gate);
        let wait = move || drop(gate.read().unwrap_or_else(PoisonError::into_inner));
        Builder::new().name("thread-check".to_owned()).stack_size(WAITING_STACK).spawn(wait)
    };
    // Determines the limit here, while the started threads still count against it.
    let end = (0..threads).try_for_each(|_| start().map(|thread| waiting.push(thread))).map_err(explained);
    drop(is_shut);
    for thread in waiting {
        // The thread only waits, so it does not panic.
        thread.join().ok();
    }
    end
}

/// Turns the error of starting a thread or a process into a [`ThreadLimitReached`] if the host refused it (`EAGAIN`).
/// Other errors stay as they are.
pub fn explained(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(Errno::AGAIN.raw_os_error()) {
        return error;
    }
    io::Error::new(io::ErrorKind::QuotaExceeded, ThreadLimitReached { limit: limit_reached() })
}

/// Copies an error. If it contains a [`ThreadLimitReached`], the copy contains one, too. Of any other error, only the
/// kind and the text are copied.
pub fn copy_of(error: &io::Error) -> io::Error {
    match ThreadLimitReached::of(error) {
        Some(refused) => io::Error::new(error.kind(), refused.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Determines which limit on threads is reached now. `None` if unknown.
fn limit_reached() -> Option<ThreadLimit> {
    if let Some((file, max)) = quota::full_pids_group() {
        return Some(ThreadLimit::Group { file, max });
    }
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let most = read("/proc/sys/kernel/threads-max").and_then(|text| text.trim().parse::<u64>().ok());
    let all = read("/proc/loadavg").and_then(|text| threads_of(&text));
    match (most, all) {
        // The number in /proc/loadavg differs slightly from the one that the kernel limits.
        (Some(most), Some(all)) if all.saturating_add(most / 20) >= most => Some(ThreadLimit::Host(most)),
        // `RLIMIT_NPROC` does not hold for root (clone(2), EAGAIN).
        _ if !getuid().is_root() => getrlimit(Resource::Nproc).current.map(ThreadLimit::User),
        _ => None,
    }
}

/// The number of threads on the host, parsed from the text of /proc/loadavg.
fn threads_of(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(limit: ThreadLimit) -> ThreadLimitReached {
        ThreadLimitReached { limit: Some(limit) }
    }

    #[test]
    fn a_refused_thread_is_explained_and_other_errors_stay() {
        let refused = explained(Errno::AGAIN.into());
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded, "no error that callers take for temporary");
        assert!(refused.to_string().starts_with("this host allows no more threads"), "{refused}");
        assert!(ThreadLimitReached::of(&refused).is_some());
        let other = explained(Errno::NOMEM.into());
        assert_eq!(other.raw_os_error(), Some(Errno::NOMEM.raw_os_error()));
        assert!(ThreadLimitReached::of(&other).is_none());
    }

    #[test]
    fn each_limit_has_its_name_and_a_way_to_raise_it() {
        let user = reached(ThreadLimit::User(25));
        assert_eq!(user.to_string(), "this host allows no more threads: RLIMIT_NPROC of the program's user is 25");
        assert!(user.hint().contains("ulimit -u"));
        let group = reached(ThreadLimit::Group { file: "/sys/fs/cgroup/a/pids.max".into(), max: 20 });
        assert_eq!(
            group.at("the reflector's host"),
            "the reflector's host allows no more threads: pids.max of the program's control group is 20"
        );
        assert!(group.hint().contains("/sys/fs/cgroup/a/pids.max") && group.hint().contains("TasksMax"));
        assert!(reached(ThreadLimit::Host(9)).to_string().contains("kernel.threads-max is 9"));
        let unknown = ThreadLimitReached { limit: None };
        assert!(unknown.hint().contains("RLIMIT_NPROC") && unknown.hint().contains("pids.max"));
    }

    #[test]
    fn a_check_leaves_no_thread() {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let names = || threads().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        check(8).unwrap();
        assert!(!names().any(|name| name.trim() == "thread-check"));
    }

    #[test]
    fn the_threads_of_the_host_are_read() {
        assert_eq!(threads_of("0.00 0.01 0.05 2/345 6789\n"), Some(345));
        assert_eq!(threads_of("0.00 0.01"), None);
    }
}
