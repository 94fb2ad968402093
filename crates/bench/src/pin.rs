//! Pins processes to processors. On a host with two processors, the processor on which the scheduler places each end
//! affects a rate more than the compared programs do, and it changes with each run. With the same placement for both
//! sides, a comparison does not depend on the scheduler.

use std::fs;

use anyhow::Context;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors to which the two ends are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// The processor of the clients.
    pub(crate) client: usize,
    /// The processor of the servers.
    pub(crate) server: usize,
}

impl Places {
    /// Returns the first two processors that this process may use.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let places = allowed.next().zip(allowed.next());
        let (client, server) = places.context("pinning both ends needs two processors")?;
        Ok(Self { client, server })
    }
}

/// A process, or the calling thread, that is pinned to a processor. Dropping this value lifts the pinning from all
/// threads that the process then has, or from the calling thread.
#[derive(Debug)]
pub(crate) struct Held {
    /// The pinned process; absent: the calling thread.
    process: Option<Pid>,
    before: CpuSet,
}

impl Held {
    /// Pins the calling thread, and so every thread and process that it starts from now on.
    pub(crate) fn this_thread(cpu: usize) -> anyhow::Result<Self> {
        Self::hold(None, cpu)
    }

    /// Pins all threads that a process has now, and so the threads that they start from now on.
    pub(crate) fn process(process: Pid, cpu: usize) -> anyhow::Result<Self> {
        Self::hold(Some(process), cpu)
    }

    fn hold(process: Option<Pid>, cpu: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(process)?;
        let mut only = CpuSet::new();
        only.set(cpu);
        move_all(process, &only).with_context(|| format!("cannot pin to processor {cpu}"))?;
        Ok(Self { process, before })
    }
}

/// Sets the processors on which all threads that `process` has now may run. `None` is the calling thread.
fn move_all(process: Option<Pid>, to: &CpuSet) -> anyhow::Result<()> {
    let Some(process) = process else { return Ok(sched_setaffinity(None, to)?) };
    for task in fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()))? {
        let Some(thread) = task?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        match sched_setaffinity(Some(thread), to) {
            // The thread has ended meanwhile.
            Err(Errno::SRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

impl Drop for Held {
    fn drop(&mut self) {
        // A process that has ended needs no release.
        let _ = move_all(self.process, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_held_is_free_again_afterwards() {
        let Ok(places) = Places::find() else { return };
        let free = sched_getaffinity(None).unwrap();
        let held = Held::this_thread(places.server).unwrap();
        let narrow = sched_getaffinity(None).unwrap();
        assert_eq!((narrow.count(), narrow.is_set(places.server)), (1, true));
        drop(held);
        assert_eq!(sched_getaffinity(None).unwrap(), free);
        // Threads started meanwhile must be released, too. This is part of the same test, because it pins all threads
        // of this program.
        let held = Held::process(rustix::process::getpid(), places.server).unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let started = std::thread::spawn(move || {
            let _ = ended.recv();
            sched_getaffinity(None).unwrap()
        });
        drop(held);
        end.send(()).unwrap();
        assert_eq!(started.join().unwrap(), free);
    }

    #[test]
    fn a_processs_threads_are_all_held() {
        let Ok(places) = Places::find() else { return };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let free = sched_getaffinity(Some(pid)).unwrap();
        let held = Held::process(pid, places.client).unwrap();
        assert_eq!(sched_getaffinity(Some(pid)).unwrap().count(), 1);
        drop(held);
        assert_eq!(sched_getaffinity(Some(pid)).unwrap(), free);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
