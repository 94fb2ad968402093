//! Measures the resource use of a program under attack, from /proc and from its folder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lab::Reflector;
use rustix::process::Pid;

/// The processor time that all threads of a process have used so far, user and system.
pub(crate) fn cpu(pid: Pid) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Field 2 is the program's name in parentheses; fields 14 and 15 are the times in ticks.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next().context("/proc/PID/stat has no user time")??
        + fields.next().context("/proc/PID/stat has no system time")??;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The resident memory of a process, in bytes.
pub(crate) fn rss(pid: Pid) -> anyhow::Result<u64> {
    Ok(status(pid, "VmRSS")? * 1024)
}

/// The number of threads of a process.
pub(crate) fn threads(pid: Pid) -> anyhow::Result<u64> {
    status(pid, "Threads")
}

/// The number of open file descriptors of a process.
pub(crate) fn descriptors(pid: Pid) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn status(pid: Pid, key: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let missing = || format!("/proc/{pid}/status has no number for {key}");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).with_context(missing)?;
    line.split_whitespace().next().and_then(|number| number.parse().ok()).with_context(missing)
}

/// The total size of a reflector's log and audit log, in bytes.
pub(crate) fn logged(reflector: &Reflector) -> u64 {
    size_of(&reflector.home().join("log")) + size_of(&reflector.state().join("audit"))
}

/// The size of a file, or of all files in a folder and its subfolders, in bytes.
fn size_of(path: &Path) -> u64 {
    let Ok(folder) = fs::read_dir(path) else {
        return fs::metadata(path).map(|found| found.len()).unwrap_or(0);
    };
    folder.filter_map(Result::ok).map(|entry| size_of(&entry.path())).sum()
}

/// Formats a number of bytes as MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
