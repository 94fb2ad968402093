//! A control group with a limited share of the processor, as a container or a systemd service may have.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Pid;

/// The period of the quota: the kernel's default of 0.1 s.
const PERIOD_US: u32 = 100_000;

/// A control group whose processes together get at most a share of one processor. The group is removed on drop; its
/// processes must have ended before.
#[derive(Debug)]
pub struct Share(PathBuf);

impl Share {
    /// Creates a group that gets `percent` of one processor. Prints SKIPPED and returns `None` if it cannot be created.
    pub fn of_a_core(percent: u32) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pp{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let quota = PERIOD_US / 100 * percent;
        let made = Self::version_2(&name, quota).or_else(|_| Self::version_1(&name, quota));
        made.inspect_err(|error| eprintln!("SKIPPED: cannot create a control group with a CPU quota: {error}")).ok()
    }

    fn version_2(name: &str, quota: u32) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        put(&root.join("cgroup.subtree_control"), "+cpu")?;
        let group = Self::make(root.join(name))?;
        put(&group.0.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?;
        Ok(group)
    }

    fn version_1(name: &str, quota: u32) -> io::Result<Self> {
        let group = Self::make(Path::new("/sys/fs/cgroup/cpu").join(name))?;
        put(&group.0.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
        put(&group.0.join("cpu.cfs_quota_us"), &quota.to_string())?;
        Ok(group)
    }

    fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Moves a process with all its threads into the group.
    pub fn take(&self, process: Pid) {
        let procs = self.0.join("cgroup.procs");
        put(&procs, &process.as_raw_nonzero().to_string()).expect("the group takes the process");
    }
}

/// Writes to an existing file; never creates one.
fn put(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

impl Drop for Share {
    fn drop(&mut self) {
        // A group with a running process cannot be removed; the owner of that process reports it.
        let _ = fs::remove_dir(&self.0);
    }
}
