//! Decides whether the processor of one end of a test limited the rate. Pure: no I/O, no clock.

use std::fmt;

use paramedic_link::measurement::CpuUse;

/// If a thread runs or waits for a processor for at least this share of the time, the processor may be the limit
/// instead of the path.
const NO_REST: f64 = 0.95;
/// The wait of a thread for a processor counts as a limit only if it takes at least this share of the time.
const WAITED: f64 = 0.05;
/// If a core spends at least this share of the time on soft interrupts, the kernel has too little time to move packets.
const SOFTIRQ: f64 = 0.9;
/// If a control group throttles the program for at least this share of the time, the rate is noticeably lower.
const HELD_BACK: f64 = 0.05;

/// Why the processor of one end limited the rate. Each variant contains the share of the time that shows the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProcessorLimit {
    /// A control group throttled the program for this share of the time.
    HeldBack(f64),
    /// A thread that moved payload never slept, and waited for a processor for this share of the time.
    Waited(f64),
    /// A thread that moved payload never slept and used its core for this share of the time.
    OneThread(f64),
    /// One core spent this share of the time on soft interrupts, the kernel's own work on packets.
    SoftInterrupts(f64),
}

impl ProcessorLimit {
    /// The share of the time that shows the limit.
    pub fn share(self) -> f64 {
        match self {
            Self::HeldBack(share) | Self::Waited(share) | Self::OneThread(share) | Self::SoftInterrupts(share) => share,
        }
    }
}

impl fmt::Display for ProcessorLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 100.0).round();
        match *self {
            Self::HeldBack(share) => {
                write!(f, "a control group throttled the program for {} % of the time", percent(share))
            }
            Self::Waited(share) => write!(f, "one thread waited for a processor for {} % of the time", percent(share)),
            Self::SoftInterrupts(share) => {
                write!(f, "one core handled soft interrupts for {} % of the time", percent(share))
            }
            Self::OneThread(share) => write!(f, "one thread used {} % of a core", percent(share)),
        }
    }
}

/// Returns why the processor of one end limited the rate, as the processor use `cpu` of this end shows. `None` if the
/// processor did not limit the rate.
///
/// A thread that the path limits sleeps until it can send or receive again. A thread that never sleeps runs or waits
/// for a processor all the time, so the processor limits it. Other load on the host alone proves nothing, because the
/// kernel prefers threads that seldom run.
pub fn processor_limit(cpu: &CpuUse) -> Option<ProcessorLimit> {
    let waited = cpu.run_queue_wait.filter(|waited| *waited >= WAITED);
    if let Some(held_back) = cpu.held_back.filter(|held_back| *held_back >= HELD_BACK) {
        Some(ProcessorLimit::HeldBack(held_back))
    } else if cpu.busiest_thread >= NO_REST {
        Some(ProcessorLimit::OneThread(cpu.busiest_thread))
    } else if let (Some(waited), true) = (waited, cpu.runnable >= Some(NO_REST)) {
        Some(ProcessorLimit::Waited(waited))
    } else {
        cpu.core_softirq.filter(|share| *share >= SOFTIRQ).map(ProcessorLimit::SoftInterrupts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_is_not_limited_by_its_processor() {
        let busy_host = CpuUse { busiest_thread: 0.03, host_busy: Some(1.0), ..CpuUse::default() };
        assert_eq!(processor_limit(&busy_host), None);
        let seldom = CpuUse { runnable: Some(0.3), run_queue_wait: Some(0.27), ..busy_host };
        assert_eq!(processor_limit(&seldom), None);
        let starved = CpuUse { runnable: Some(0.97), run_queue_wait: Some(0.6), ..busy_host };
        assert_eq!(processor_limit(&starved), Some(ProcessorLimit::Waited(0.6)));
    }

    #[test]
    fn a_full_core_is_a_limit_of_a_thread_or_of_the_kernel() {
        let of = |cpu| processor_limit(&cpu);
        let cpu = CpuUse { busiest_thread: 0.96, ..CpuUse::default() };
        assert_eq!(of(cpu), Some(ProcessorLimit::OneThread(0.96)));
        let softirq = |share| CpuUse { core_softirq: Some(share), ..CpuUse::default() };
        assert_eq!((of(softirq(0.92)), of(softirq(0.8))), (Some(ProcessorLimit::SoftInterrupts(0.92)), None));
        let held = CpuUse { held_back: Some(0.05), ..cpu };
        assert_eq!(of(held), Some(ProcessorLimit::HeldBack(0.05)));
    }
}
