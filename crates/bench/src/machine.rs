//! Reads facts about the host of a run and about the programs. Changes nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use paramedic_engines::host_facts;

use crate::record::Machine;

/// Reads the facts of this host, and the versions that both iperf3 programs print.
pub(crate) fn read(iperf3: &Path, other: Option<&Path>) -> Machine {
    Machine {
        facts: host_facts::read(None),
        governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        hypervisor: hypervisor(),
        congestion_default: line("/proc/sys/net/ipv4/tcp_congestion_control"),
        congestion_available: line("/proc/sys/net/ipv4/tcp_available_congestion_control"),
        iperf3: first_line(Command::new(iperf3).arg("--version")),
        other_iperf3: other.and_then(|path| first_line(Command::new(path).arg("--version"))),
    }
}

/// The checked-out commit, followed by `with changes` if any file except the results was changed since. `None` if git
/// fails.
pub(crate) fn commit() -> Option<String> {
    let id = first_line(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))?;
    let changed = first_line(Command::new("git").args(["status", "--porcelain", "--", ".", ":!docs/benchmarks"]));
    Some(if changed.is_some() { format!("{id}, with changes") } else { id })
}

/// The options with which iperf3 is fastest, as far as `program` supports them.
pub(crate) fn best_options(program: &Path) -> Vec<String> {
    let mut options = vec!["--length".to_owned(), "256K".to_owned()];
    let help = Command::new(program).arg("--help").output();
    let help = help.map(|help| [help.stdout, help.stderr].concat()).unwrap_or_default();
    if String::from_utf8_lossy(&help).contains(SKIP) {
        options.push(SKIP.to_owned());
    }
    options
}

const SKIP: &str = "--skip-rx-copy";

/// The vendor of the virtual machine on which this program runs; `None` on a physical host.
fn hypervisor() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let is_virtual = flags.split_whitespace().any(|flag| flag == "hypervisor");
    let maker = || line("/sys/class/dmi/id/sys_vendor").unwrap_or_else(|| "an unnamed hypervisor".to_owned());
    is_virtual.then(maker)
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
