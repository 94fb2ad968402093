//! Simulates full and slow disks.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::programs::Running;

/// Fills the file system of `folder` to the last byte. Remove the returned file to free the space.
pub fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("what-else-is-on-the-disk");
    let mut file = File::create(&path).unwrap();
    // Write large pieces first, then single bytes.
    for piece in [vec![b'x'; 4096], vec![b'x'; 1]] {
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    path
}

/// Makes the disk slow for one process with strace, until this value is dropped.
#[derive(Debug)]
pub struct SlowDisk {
    strace: Child,
    folder: TempDir,
}

impl SlowDisk {
    /// Delays each fsync and fdatasync of the process by `delay`. Returns `None` if strace is missing or cannot attach;
    /// prints SKIPPED in the second case.
    pub fn under(process: &Running, delay: Duration) -> Option<Self> {
        let folder = TempDir::new().expect("a temporary folder");
        let pid = process.pid().as_raw_nonzero().to_string();
        let inject = format!("inject=fsync,fdatasync:delay_exit={}", delay.as_micros());
        let mut strace = Command::new("strace")
            .args(["-f", "-p", &pid, "-e", "trace=fsync,fdatasync", "-e", &inject, "-o"])
            .arg(folder.path().join("syncs"))
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut first = String::new();
        BufReader::new(strace.stderr.as_mut()?).read_line(&mut first).ok()?;
        if !first.contains("attached") {
            eprintln!("SKIPPED: a slow disk is simulated with strace, which cannot attach: {first}");
            strace.wait().ok()?;
            return None;
        }
        Some(Self { strace, folder })
    }

    /// The number of syncs of the process that were traced.
    pub fn syncs(&self) -> usize {
        let trace = std::fs::read_to_string(self.folder.path().join("syncs"));
        trace.expect("the trace").matches("sync(").count()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // An interrupted strace detaches from the process; a killed strace does not.
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.strace), rustix::process::Signal::INT);
        let _ = self.strace.wait();
    }
}
