//! What a stream's thread counts: its payload bytes and its processor time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use paramedic_link::measurement::CpuUse;

/// One stream's payload bytes so far. Fills two cache lines, because processors fetch them in pairs, so that streams do
/// not share one.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Sets the stream's total. Called by its one thread.
    pub(crate) fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The total that was set last.
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The processor use of a thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ThreadUse {
    user_s: f64,
    system_s: f64,
    /// As a share of one core.
    busy: f64,
}

impl ThreadUse {
    /// The use of the calling thread, which has run since `began`.
    pub(crate) fn since(began: Instant) -> Self {
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let (user_s, system_s) = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or((0.0, 0.0), |usage| (seconds(usage.user_time()), seconds(usage.system_time())));
        let lived = began.elapsed().as_secs_f64();
        let busy = if lived > 0.0 { ((user_s + system_s) / lived).min(1.0) } else { 0.0 };
        Self { user_s, system_s, busy }
    }

    /// The use of all threads of a direction, together with that of the `host`.
    pub(crate) fn of_all(threads: impl Iterator<Item = Self>, host: CpuUse) -> CpuUse {
        threads.fold(host, |sum, one| CpuUse {
            user_s: sum.user_s + one.user_s,
            system_s: sum.system_s + one.system_s,
            busiest_thread: sum.busiest_thread.max(one.busy),
            ..sum
        })
    }
}
