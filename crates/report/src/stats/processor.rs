//! Whether a processor was the limit of an end. Pure.

use std::fmt;

use paramedic_link::measurement::CpuUse;

/// From this share of all cores, or of one core for a single thread, the processor may have been the limit instead of
/// the path.
const BUSY: f64 = 0.95;
/// From this share of the time on, throttling by a control group noticeably lowers a rate.
const HELD_BACK: f64 = 0.05;

/// How the processor was the limit of an end, with the share that shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProcessorLimit {
    /// A control group throttled the program.
    HeldBack(f64),
    /// All cores were in use.
    AllCores(f64),
    /// One thread that moved data used its core.
    OneThread(f64),
}

impl fmt::Display for ProcessorLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 100.0).round();
        match *self {
            Self::HeldBack(share) => write!(f, "a control group throttled it for {} % of the time", percent(share)),
            Self::AllCores(share) => write!(f, "{} % of all cores", percent(share)),
            Self::OneThread(share) => write!(f, "one thread used {} % of a core", percent(share)),
        }
    }
}

/// How the processor was the limit of an end; `None` if it was not.
pub fn processor_limit(cpu: &CpuUse) -> Option<ProcessorLimit> {
    if let Some(held_back) = cpu.held_back.filter(|held_back| *held_back >= HELD_BACK) {
        return Some(ProcessorLimit::HeldBack(held_back));
    }
    match cpu.host_busy {
        Some(busy) if busy >= BUSY => Some(ProcessorLimit::AllCores(busy)),
        _ if cpu.busiest_thread >= BUSY => Some(ProcessorLimit::OneThread(cpu.busiest_thread)),
        _ => None,
    }
}
