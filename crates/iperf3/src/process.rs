//! What the client and the supervisor do with a process of iperf3: its private files, its signals, its exit.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use paramedic_engines::host_facts;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// Creates a file with mode 0600. Fails if it exists.
pub(super) fn write_new(path: &Path, text: &str) -> io::Result<()> {
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// A folder with mode 0700 for one child, in `scratch`. Deleted when dropped.
pub(super) fn folder_in(scratch: &Path) -> io::Result<tempfile::TempDir> {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("iperf3-").permissions(private).tempdir_in(scratch)
}

/// Signals the process group that `pid` leads. `pid` must not be reaped yet, so that it is not reused.
pub(super) fn signal_group(pid: Pid, signal: Signal) {
    match rustix::process::kill_process_group(pid, signal) {
        // SRCH: it has exited.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => tracing::warn!(%errno, ?signal, "cannot signal iperf3"),
    }
}

/// Waits until `pid` exits, without reaping it; returns its processor time in seconds, user and system.
pub(super) fn await_exit(pid: Pid) -> Option<(f64, f64)> {
    let exited = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    exited.ok().and_then(|_| host_facts::cpu_of(pid))
}
