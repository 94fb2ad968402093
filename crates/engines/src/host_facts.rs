//! Reads the state of the host: processor, memory, load, system clock, and the interface of a link. Never fails: a
//! value that cannot be read is absent.

#![expect(clippy::disallowed_methods, reason = "measures the host in wall time")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use paramedic_link::PeerText;
use paramedic_link::measurement::{CpuUse, HostFacts};

use crate::{interface, quota, sys};

/// Reads the current state of the host. `local` is this end's address of the link, which selects the interface to
/// report. Reads only small kernel files, so it may be called between two phases.
pub fn read(local: Option<IpAddr>) -> HostFacts {
    let meminfo = text("/proc/meminfo");
    let memory = |key| meminfo.as_deref().and_then(|text| meminfo_bytes(text, key));
    let interface = local.and_then(interface::of);
    let clock = sys::clock_state().ok();
    HostFacts {
        version: PeerText::new(env!("CARGO_PKG_VERSION")),
        system: Some(PeerText::new(&system())),
        cpus: std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()),
        cpu_model: cpu_model().map(|model| PeerText::new(&model)),
        load_1m: text("/proc/loadavg").and_then(|text| text.split_whitespace().next()?.parse().ok()),
        memory_total_bytes: memory("MemTotal"),
        memory_available_bytes: memory("MemAvailable"),
        mtu_bytes: interface.as_deref().and_then(interface::mtu_bytes),
        interface_speed_bps: interface.as_deref().and_then(interface::speed),
        interface_max_speed_bps: interface.as_deref().and_then(interface::max_speed_bps),
        interface_duplex: interface.as_deref().and_then(interface::duplex),
        interface: interface.map(|name| PeerText::new(&name)),
        clock_synchronised: clock.map(|clock| clock.is_synchronised),
        clock_error_us: clock.filter(|clock| clock.is_synchronised).map(|clock| clock.max_error_us),
    }
}

/// Whether the kernel considers the system clock synchronised, for example by NTP.
pub fn is_clock_synchronised() -> bool {
    sys::clock_state().is_ok_and(|clock| clock.is_synchronised)
}

/// Measures the host's processor time from [`CpuClock::start`] on.
#[derive(Clone, Debug)]
pub struct CpuClock {
    cpu: Option<CpuTime>,
    cores: Vec<SoftirqTime>,
    held_back: Option<Duration>,
    read: Instant,
}

impl CpuClock {
    /// Starts a measurement of the host's processor time.
    pub fn start() -> Self {
        let stat = text("/proc/stat").unwrap_or_default();
        let (cpu, cores) = (parse_cpu_time(&stat), parse_softirq_times(&stat));
        Self { cpu, cores, held_back: quota::held_back(), read: Instant::now() }
    }

    /// The processor use of the whole host since [`CpuClock::start`]. Sets only the fields of [`CpuUse`] that concern
    /// the host.
    pub fn host(&self) -> CpuUse {
        let stat = text("/proc/stat").unwrap_or_default();
        CpuUse {
            host_busy: self.busy(&stat),
            held_back: self.held_back(),
            core_softirq: softirq_between(&self.cores, &parse_softirq_times(&stat)),
            ..CpuUse::default()
        }
    }

    /// The share of the time since [`CpuClock::start`], 0 to 1, in which the host's processors were busy or stolen by a
    /// hypervisor. `None` if /proc/stat cannot be read or no clock tick has passed.
    fn busy(&self, stat: &str) -> Option<f64> {
        busy_between(self.cpu?, parse_cpu_time(stat)?)
    }

    /// The share of the time since [`CpuClock::start`], 0 to 1, for which a control group's CPU quota throttled the
    /// program. `None` if no quota throttled it.
    fn held_back(&self) -> Option<f64> {
        let held_back = quota::held_back()?.saturating_sub(self.held_back?);
        let share = held_back.as_secs_f64() / self.read.elapsed().as_secs_f64();
        (share > 0.0).then_some(share.min(1.0))
    }
}

/// The processor time of `process` with all its threads, in seconds: user time and system time. The resolution is a
/// clock tick, usually 10 ms. Also works for a process that has ended but was not reaped yet.
pub fn cpu_of(process: rustix::process::Pid) -> Option<(f64, f64)> {
    let ticks = parse_process_ticks(&text(format!("/proc/{}/stat", process.as_raw_nonzero()))?)?;
    let a_second = rustix::param::clock_ticks_per_second() as f64;
    Some((ticks.0 as f64 / a_second, ticks.1 as f64 / a_second))
}

/// Parses fields 14 and 15 of proc_pid_stat(5), `utime` and `stime`, in clock ticks. Field 2 is a name that may contain
/// spaces and parentheses, so the fields are counted after its closing parenthesis.
fn parse_process_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The clock ticks of all cores together since boot: idle, and in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTime {
    idle: u64,
    total: u64,
}

/// Parses the `cpu` line of proc_stat(5), which has these columns: user, nice, system, idle, iowait, irq, softirq,
/// steal. The guest columns after these are already part of user and nice.
fn parse_cpu_time(stat: &str) -> Option<CpuTime> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks = line.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
    Some(CpuTime { idle, total: ticks.iter().fold(0, |sum, part| sum.saturating_add(*part)) })
}

/// The clock ticks of one core since boot: in soft interrupts, and in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SoftirqTime {
    core: u32,
    softirq: u64,
    total: u64,
}

/// Parses the `cpuN` lines of proc_stat(5), one for each core N.
fn parse_softirq_times(stat: &str) -> Vec<SoftirqTime> {
    let core = |line: &str| {
        let (core, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
        let ticks = ticks.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let total = ticks.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
        Some(SoftirqTime { core: core.parse().ok()?, softirq: *ticks.get(6)?, total })
    };
    stat.lines().filter_map(core).collect()
}

/// The largest share of the time between two readings, 0 to 1, that one core spent on soft interrupts. `None` if no
/// clock tick has passed.
fn softirq_between(before: &[SoftirqTime], after: &[SoftirqTime]) -> Option<f64> {
    let share = |after: &SoftirqTime| {
        let before = before.iter().find(|before| before.core == after.core)?;
        let total = after.total.checked_sub(before.total).filter(|total| *total > 0)?;
        Some(after.softirq.saturating_sub(before.softirq).min(total) as f64 / total as f64)
    };
    after.iter().filter_map(share).reduce(f64::max)
}

/// The share of the time between two readings, 0 to 1, in which the processors were busy. The kernel sometimes
/// decreases iowait, so the idle time is clamped.
fn busy_between(before: CpuTime, after: CpuTime) -> Option<f64> {
    let total = after.total.checked_sub(before.total).filter(|total| *total > 0)?;
    let idle = after.idle.saturating_sub(before.idle).min(total);
    Some((total - idle) as f64 / total as f64)
}

/// The name of the Linux distribution, if known, and the name and release of the kernel.
fn system() -> String {
    let uname = rustix::system::uname();
    let kernel = format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
    match text("/etc/os-release").and_then(|release| pretty_name(&release)) {
        Some(name) => format!("{name}, {kernel}"),
        None => kernel,
    }
}

/// The value of `PRETTY_NAME` in a file as in os-release(5); `None` if it is missing or empty.
fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name = value.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

/// The processor's model. On x86, the model is in /proc/cpuinfo, but on most ARM boards it is only in the device tree.
fn cpu_model() -> Option<String> {
    text("/proc/cpuinfo").and_then(|cpuinfo| cpuinfo_model(&cpuinfo)).or_else(|| {
        let model = text("/proc/device-tree/model")?;
        Some(model.trim_end_matches('\0').to_owned()).filter(|model| !model.is_empty())
    })
}

fn cpuinfo_model(cpuinfo: &str) -> Option<String> {
    let value = |key: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .map(|(_, v)| v.trim())
    };
    // Raspberry Pi kernels put the board's name in "Model".
    value("model name").or_else(|| value("Model")).filter(|model| !model.is_empty()).map(str::to_owned)
}

/// The value of the line `key` in the text of /proc/meminfo, in bytes. The unit in the file is 1,024 bytes, although
/// the file prints kB.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The text of the small file at `path`, with invalid UTF-8 replaced. `None` if the file cannot be read.
pub fn text(path: impl AsRef<Path>) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn this_host_has_processors_memory_and_a_kernel() {
        let facts = read(None);
        assert!(facts.cpus.unwrap() >= 1);
        assert!(facts.memory_available_bytes.unwrap() <= facts.memory_total_bytes.unwrap());
        assert!(facts.load_1m.unwrap() >= 0.0);
        assert!(facts.system.unwrap().as_str().contains("Linux"));
        assert_eq!(facts.interface, None);
    }

    #[test]
    fn loopback_has_an_mtu_and_no_speed() {
        let facts = read(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(facts.interface.unwrap().as_str(), "lo");
        assert!(facts.mtu_bytes.unwrap() >= 1280);
        assert_eq!(facts.interface_speed_bps, None);
    }

    #[test]
    fn busy_time_is_all_time_that_was_not_idle() {
        let before = parse_cpu_time("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\n").unwrap();
        let after = parse_cpu_time("cpu  150 0 125 750 150 0 0 25 0 0\n").unwrap();
        assert_eq!(busy_between(before, after), Some(0.5));
        assert_eq!(busy_between(after, after), None);
        assert_eq!(busy_between(after, before), None);
    }

    #[test]
    fn the_core_with_the_most_soft_interrupts_counts() {
        let before = parse_softirq_times("cpu  9 9 9 9 9 9 9 9\ncpu0 0 0 0 100 0 0 0 0\ncpu1 0 0 0 100 0 0 50 0\n");
        let after =
            parse_softirq_times("cpu0 0 0 0 190 0 0 10 0\ncpu1 0 0 0 120 0 0 110 0 0 0\ncpu7 1 1 1 1 1 1 9 1\n");
        assert_eq!(softirq_between(&before, &after), Some(0.75));
        assert_eq!(softirq_between(&after, &after), None);
        assert_eq!(softirq_between(&[], &after), None);
        assert_eq!(parse_softirq_times("cpu0 1 2\ncpux 1 2 3 4 5 6 7 8\n"), vec![]);
    }

    #[test]
    fn a_decreasing_iowait_is_clamped() {
        let before = CpuTime { idle: 500, total: 1000 };
        assert_eq!(busy_between(before, CpuTime { idle: 490, total: 1010 }), Some(1.0));
        assert_eq!(busy_between(before, CpuTime { idle: 900, total: 1010 }), Some(0.0));
    }

    #[test]
    fn the_kernel_reports_the_processor_time_of_a_process() {
        assert!(cpu_of(rustix::process::getpid()).is_some());
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(parse_process_ticks(stat), Some((250, 50)));
        assert_eq!(parse_process_ticks("7 (a) R 1 2"), None);
    }

    #[test]
    fn malformed_kernel_files_are_absent_values() {
        assert_eq!(parse_cpu_time(""), None);
        assert_eq!(parse_cpu_time("cpu  1 2\n"), None);
        assert_eq!(meminfo_bytes("MemTotalX: 4 kB\nMemTotal:  4 kB\n", "MemTotal"), Some(4096));
        assert_eq!(meminfo_bytes("MemTotal:  99999999999999999999 kB\n", "MemTotal"), None);
        assert_eq!(cpuinfo_model("processor\t: 0\nmodel name\t: Fast One\n").as_deref(), Some("Fast One"));
        assert_eq!(cpuinfo_model("Model\t\t: Raspberry Pi 5\n").as_deref(), Some("Raspberry Pi 5"));
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Some Linux 12\"\n").as_deref(), Some("Some Linux 12"));
    }
}
