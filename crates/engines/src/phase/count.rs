//! The counts of a stream's thread: its payload bytes and its processor time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use paramedic_link::measurement::CpuUse;

/// A counter of the payload bytes of one stream. It occupies two cache lines, because processors fetch cache lines in
/// pairs, and the counters of two streams must never share a pair.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Sets the total of the stream's payload bytes. Called only by the stream's thread.
    pub(crate) fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The latest total of the stream's payload bytes.
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The processor use of a stream's thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ThreadUse {
    user_s: f64,
    system_s: f64,
    /// User and system time together, as a share of one core, 0 to 1.
    busy: f64,
    queued: Option<QueueShares>,
}

/// How much of its time a thread was runnable, as shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct QueueShares {
    /// The share of the time in which the thread ran or waited for a processor.
    runnable: f64,
    /// The share of the time in which the thread waited for a processor.
    waiting: f64,
}

impl QueueShares {
    /// The shares of the calling thread, which has lived for `lived` seconds. `None` if the kernel does not record
    /// them.
    fn of_this_thread(lived: f64) -> Option<Self> {
        Self::parse(&crate::host_facts::text("/proc/thread-self/schedstat")?, lived)
    }

    /// Parses the first two numbers of schedstat (Documentation/scheduler/sched-stats.rst): the nanoseconds on a
    /// processor, and those in the run queue. A kernel without these statistics reports zeros.
    fn parse(schedstat: &str, lived: f64) -> Option<Self> {
        let mut seconds = schedstat.split_whitespace().map(|field| field.parse::<u64>().map(|ns| ns as f64 / 1e9));
        let (running, waiting) = (seconds.next()?.ok()?, seconds.next()?.ok()?);
        let share = |seconds: f64| (seconds / lived).min(1.0);
        let is_kept = running > 0.0 && lived > 0.0;
        is_kept.then(|| Self { runnable: share(running + waiting), waiting: share(waiting) })
    }
}

impl ThreadUse {
    /// The processor use of the calling thread, which has run since `began`.
    pub(crate) fn since(began: Instant) -> Self {
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let (user_s, system_s) = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or((0.0, 0.0), |usage| (seconds(usage.user_time()), seconds(usage.system_time())));
        let lived = began.elapsed().as_secs_f64();
        let busy = if lived > 0.0 { ((user_s + system_s) / lived).min(1.0) } else { 0.0 };
        Self { user_s, system_s, busy, queued: QueueShares::of_this_thread(lived) }
    }

    /// Combines the processor use of all `threads` of one direction with `host`, the processor use of the whole host.
    /// The fields `runnable` and `run_queue_wait` are those of the thread with the highest `runnable`.
    pub(crate) fn of_all(threads: impl Iterator<Item = Self>, host: CpuUse) -> CpuUse {
        threads.fold(host, |sum, one| {
            let queued = one.queued.filter(|queued| sum.runnable.is_none_or(|runnable| queued.runnable > runnable));
            CpuUse {
                user_s: sum.user_s + one.user_s,
                system_s: sum.system_s + one.system_s,
                busiest_thread: sum.busiest_thread.max(one.busy),
                runnable: queued.map_or(sum.runnable, |queued| Some(queued.runnable)),
                run_queue_wait: queued.map_or(sum.run_queue_wait, |queued| Some(queued.waiting)),
                ..sum
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_has_the_time_on_a_processor_and_in_the_run_queue() {
        let shares = QueueShares::parse("300000000 1200000000 41\n", 2.0).unwrap();
        assert_eq!((shares.runnable, shares.waiting), (0.75, 0.6));
        assert_eq!(QueueShares::parse("0 0 0\n", 2.0), None, "the kernel keeps no record");
        for bad in ["", "1", "a b c", "1 -1 0"] {
            assert_eq!(QueueShares::parse(bad, 2.0), None, "{bad}");
        }
    }

    #[test]
    fn the_least_idle_thread_is_reported() {
        let thread =
            |runnable, waiting| ThreadUse { queued: Some(QueueShares { runnable, waiting }), ..ThreadUse::default() };
        let unknown = ThreadUse::default();
        let cpu = ThreadUse::of_all([thread(0.5, 0.4), unknown, thread(0.9, 0.1)].into_iter(), CpuUse::default());
        assert_eq!((cpu.runnable, cpu.run_queue_wait), (Some(0.9), Some(0.1)));
        let cpu = ThreadUse::of_all([unknown].into_iter(), CpuUse::default());
        assert_eq!((cpu.runnable, cpu.run_queue_wait), (None, None));
    }
}
