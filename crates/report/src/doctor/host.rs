//! The checks of the `doctor` command that both programs, the reflector and the appliance, have in common: descriptor
//! limit, CPU quota, socket buffers, congestion control, clock, container, state folder.

use super::Check;
use crate::quantity;
use crate::self_test::{Facts, Role, judge};

/// A UDP receive buffer of this size, in bytes, is enough for the latency probes and one stream of datagrams.
const ENOUGH_UDP_BUFFER: u64 = 1 << 20;

/// The congestion control algorithms that tests request most often.
const COMMON_CONGESTION_CONTROLS: [&str; 2] = ["bbr", "cubic"];

/// What the checks need to know about the installed program in addition to the facts of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// The container that the program runs in; `None` outside a container.
    pub container: Option<Container>,
    /// The facts about the program's state folder.
    pub state_folder: StateFolderFacts,
    /// Whether the program runs as root. The kernel's limits on socket buffers and congestion control do not apply to
    /// root.
    pub is_root: bool,
}

/// The container that the program runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The container runtime, such as `podman`.
    pub engine: String,
    /// How the container is connected to the network.
    pub network: ContainerNetwork,
}

/// How a container is connected to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerNetwork {
    /// The container uses the host's network interfaces.
    Host,
    /// The container has a network of its own. A bridge or address translation connects it to the host's network.
    Bridged,
}

/// The facts about the state folder, in which the program stores its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFolderFacts {
    /// The path of the state folder.
    pub path: String,
    /// The type of the network file system that holds the folder, such as `nfs`; `None` for a local file system.
    pub network_file_system: Option<&'static str>,
    /// Why the program cannot use the folder; `None` if the folder is usable.
    pub fault: Option<String>,
    /// Whether the folder exists.
    pub exists: bool,
}

/// Runs all checks of a host and of the program that is installed on it. `role` says whether that program is the
/// reflector or the appliance.
pub fn host_checks(role: Role, facts: &Facts, installation: &Installation) -> Vec<Check> {
    let (_, weak_points) = judge(role, facts, &[]);
    let is_weak = |code: &str| weak_points.iter().any(|weak| weak.code == code);
    let mut passed = Vec::new();
    if let Some(limit) = facts.descriptors.filter(|_| !is_weak("few_descriptors")) {
        let text = format!("file descriptors: {} allowed (hard limit {})", limit.soft, limit.hard);
        passed.push(Check::passed("few_descriptors", text));
    }
    if facts.host.clock_synchronised == Some(true) {
        passed.push(Check::passed("clock_unsynchronised", "clock: synchronised"));
    }
    if facts.processor.quota_cores.is_none() {
        passed.push(Check::passed("cpu_quota", "processor: no control group limits it"));
    }
    let mut checks = weak_points.into_iter().map(Check::from).collect::<Vec<_>>();
    if facts.host.clock_synchronised.is_none() {
        checks.push(Check::not_checked("clock_unsynchronised", "clock", "the kernel reports no clock state"));
    }
    checks.extend(passed);
    checks.extend(udp_buffers(facts, installation.is_root));
    checks.extend(congestion_controls(role, facts));
    checks.extend(installation.container.as_ref().map(container));
    checks.push(state_folder(&installation.state_folder));
    checks
}

fn udp_buffers(facts: &Facts, is_root: bool) -> Option<Check> {
    const CODE: &str = "small_udp_buffers";
    let limit = facts.buffers.receive_max_bytes?;
    if is_root || limit >= ENOUGH_UDP_BUFFER {
        let limit = if is_root { "no limit for root".to_owned() } else { quantity::exact_bytes(limit) };
        return Some(Check::passed(CODE, format!("UDP receive buffers: {limit}")));
    }
    Some(Check::problem(
        CODE,
        format!("UDP receive buffers hold at most {}", quantity::exact_bytes(limit)),
        "net.core.rmem_max limits them; a burst of datagrams that exceeds the buffer looks like packet loss",
        format!(
            "run `sysctl -w net.core.rmem_max={ENOUGH_UDP_BUFFER}`; to keep the setting after a restart, write \
             `net.core.rmem_max = {ENOUGH_UDP_BUFFER}` to a file in /etc/sysctl.d"
        ),
    ))
}

fn congestion_controls(role: Role, facts: &Facts) -> Option<Check> {
    const CODE: &str = "missing_congestion_control";
    let available = &facts.congestion.available;
    if available.is_empty() {
        return None;
    }
    let missing = COMMON_CONGESTION_CONTROLS.into_iter().filter(|name| !available.iter().any(|has| has == name));
    let missing = missing.collect::<Vec<_>>();
    if missing.is_empty() {
        return Some(Check::passed(CODE, format!("congestion controls: {}", available.join(", "))));
    }
    let end = match role {
        Role::Reflector => "tests against this reflector cannot use it",
        Role::Appliance => "`speed-test -C` cannot use it on this device",
    };
    let modules = missing.iter().map(|name| format!("modprobe tcp_{name}")).collect::<Vec<_>>().join("; ");
    Some(Check::problem(
        CODE,
        format!("the kernel has not loaded {}: {end}", missing.join(" or ")),
        format!("net.ipv4.tcp_available_congestion_control lists {}", available.join(", ")),
        format!("run `{modules}`, and list the modules in a file in /etc/modules-load.d"),
    ))
}

fn container(container: &Container) -> Check {
    const CODE: &str = "container_network";
    let engine = &container.engine;
    match container.network {
        ContainerNetwork::Host => Check::passed(CODE, format!("container: {engine}, with the host's network")),
        ContainerNetwork::Bridged => Check::problem(
            CODE,
            format!("this {engine} container has a network of its own"),
            "a bridge and address translation carry every packet, which lowers rates and hides client addresses",
            "run the container with the host's network (`--network host`, `hostNetwork: true`)",
        ),
    }
}

fn state_folder(folder: &StateFolderFacts) -> Check {
    const CODE: &str = "state_folder";
    let path = &folder.path;
    if let Some(fault) = &folder.fault {
        return Check::problem(
            CODE,
            format!("the state folder {path} cannot be used"),
            fault,
            "run this command as the user that owns the folder, or set another folder with --state-dir",
        );
    }
    match folder.network_file_system {
        Some(kind) => Check::problem(
            "network_file_system",
            format!("the state folder {path} is on a network file system ({kind})"),
            "SQLite needs file locks and durable writes that such file systems do not guarantee (sqlite.org/howtocorrupt.html)",
            "move the folder to a local disk, and set its new path with --state-dir",
        ),
        None if folder.exists => Check::passed(CODE, format!("state folder: {path}")),
        None => Check::passed(CODE, format!("state folder: {path}, created at first use")),
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::HostFacts;

    use super::super::CheckOutcome;
    use super::*;
    use crate::self_test::{Buffers, CongestionControls, Descriptors, Processor};

    fn sound() -> Facts {
        let words = |all: [&str; 2]| all.map(str::to_owned).to_vec();
        Facts {
            host: HostFacts { clock_synchronised: Some(true), ..HostFacts::default() },
            descriptors: Some(Descriptors { soft: 1 << 20, hard: 1 << 20 }),
            buffers: Buffers { receive_max_bytes: Some(4 << 20), ..Buffers::default() },
            congestion: CongestionControls { available: words(["cubic", "bbr"]), ..CongestionControls::default() },
            ..Facts::default()
        }
    }

    fn installed() -> Installation {
        let state_folder = StateFolderFacts { path: "/state".to_owned(), exists: true, ..StateFolderFacts::default() };
        Installation { state_folder, ..Installation::default() }
    }

    /// The codes of the checks that found a problem.
    fn problems(facts: &Facts, installation: &Installation) -> Vec<String> {
        let checks = host_checks(Role::Reflector, facts, installation);
        let problems = checks.iter().filter(|check| check.outcome == CheckOutcome::Problem);
        // A problem names its cause and what to do.
        assert!(problems.clone().all(|check| check.because.is_some() && check.try_.is_some()), "{checks:#?}");
        problems.map(|check| check.code.clone()).collect()
    }

    #[test]
    fn a_sound_installation_has_no_problem_and_says_what_was_checked() {
        assert_eq!(problems(&sound(), &installed()), [""; 0]);
        let checks = host_checks(Role::Appliance, &sound(), &installed());
        let codes = checks.iter().map(|check| check.code.as_str()).collect::<Vec<_>>();
        let expected = [
            "few_descriptors",
            "clock_unsynchronised",
            "cpu_quota",
            "small_udp_buffers",
            "missing_congestion_control",
            "state_folder",
        ];
        assert_eq!(codes, expected);
    }

    #[test]
    fn each_fault_is_found() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = sound();
            change(&mut facts);
            problems(&facts, &installed())
        };
        assert_eq!(with(|facts| facts.host.clock_synchronised = Some(false)), ["clock_unsynchronised"]);
        assert_eq!(with(|facts| facts.descriptors = Some(Descriptors { soft: 64, hard: 64 })), ["few_descriptors"]);
        assert_eq!(with(|facts| facts.buffers.receive_max_bytes = Some(212_992)), ["small_udp_buffers"]);
        assert_eq!(with(|facts| facts.congestion.available.truncate(1)), ["missing_congestion_control"]);
        let quota = |facts: &mut Facts| {
            facts.processor = Processor { quota_cores: Some(0.5), cores: Some(4), ..Processor::default() };
        };
        assert_eq!(with(quota), ["cpu_quota"]);
        let mut bridged = installed();
        bridged.container = Some(Container { engine: "podman".to_owned(), network: ContainerNetwork::Bridged });
        assert_eq!(problems(&sound(), &bridged), ["container_network"]);
        let mut on_nfs = installed();
        on_nfs.state_folder.network_file_system = Some("NFS");
        assert_eq!(problems(&sound(), &on_nfs), ["network_file_system"]);
        on_nfs.state_folder.fault = Some("permission denied".to_owned());
        assert_eq!(problems(&sound(), &on_nfs), ["state_folder"]);
    }

    #[test]
    fn root_is_not_bound_by_the_limit_of_buffers_and_the_host_network_is_no_problem() {
        let mut facts = sound();
        facts.buffers.receive_max_bytes = Some(212_992);
        let mut installation = Installation { is_root: true, ..installed() };
        installation.container = Some(Container { engine: "docker".to_owned(), network: ContainerNetwork::Host });
        assert_eq!(problems(&facts, &installation), [""; 0]);
        // A fact that could not be read is reported neither as passed nor as a problem.
        let checks = host_checks(Role::Reflector, &Facts::default(), &installed());
        assert!(checks.iter().all(|check| check.outcome != CheckOutcome::Problem), "{checks:#?}");
        assert!(checks.iter().any(|check| check.outcome == CheckOutcome::NotChecked), "{checks:#?}");
    }
}
