//! Sets the scheduling of the emulator's threads: real-time priority, and processors that do not sleep. Runs chrt(1).

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

/// Gives the calling thread real-time priority. Without the right to do so the thread keeps its priority: it may then
/// be late, which the record of its link shows.
pub(crate) fn make_real_time() {
    let _ = set_policy("--fifo", "20");
}

fn set_policy(policy: &str, priority: &str) -> anyhow::Result<()> {
    let thread = gettid().as_raw_nonzero().to_string();
    let mut chrt = Command::new("chrt");
    chrt.args([policy, "--pid", priority, &thread]).stdout(Stdio::null()).stderr(Stdio::null());
    anyhow::ensure!(chrt.status().context("cannot run chrt")?.success(), "chrt {policy} failed");
    Ok(())
}

/// Keeps every processor awake until dropped, because a halted processor of a virtual machine wakes up late. The
/// threads run only when a processor has nothing else to do (SCHED_IDLE).
#[derive(Debug)]
pub struct KeepAwake {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl KeepAwake {
    /// Starts a thread on each processor that keeps it awake.
    pub fn start() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |cpu: usize| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu);
                // A thread with normal priority would compete with the programs under test.
                if sched_setaffinity(None, &only).is_err() || set_policy("--idle", "0").is_err() {
                    return;
                }
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(spin).collect();
        Self { is_over, threads }
    }
}

impl Drop for KeepAwake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in the thread has been printed already.
            let _ = thread.join();
        }
    }
}
