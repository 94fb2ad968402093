//! Helpers for processes of iperf3, which the client and the supervisor share: private files, signals, and waiting for
//! the exit.

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

/// Creates a folder with mode 0700 in `scratch` for one child process. Dropping the value deletes the folder.
pub(super) fn folder_in(scratch: &Path) -> io::Result<tempfile::TempDir> {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("iperf3-").permissions(private).tempdir_in(scratch)
}

/// Signals the process group that `pid` leads. The process must not be reaped yet, because its id could then belong to
/// another process.
pub(super) fn signal_group(pid: Pid, signal: Signal) {
    match rustix::process::kill_process_group(pid, signal) {
        // SRCH: the process group has exited.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => tracing::warn!(%errno, ?signal, "cannot signal iperf3"),
    }
}

/// Waits until `pid` exits, without reaping it. Returns its user time and system time in seconds.
pub(super) fn await_exit(pid: Pid) -> Option<(f64, f64)> {
    let exited = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    exited.ok().and_then(|_| host_facts::cpu_of(pid))
}
