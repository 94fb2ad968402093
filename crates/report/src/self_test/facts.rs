//! The facts about a host in a self-test: processor, interfaces, limits, buffers, timers. The crate `paramedic-host`
//! reads them. A fact that could not be read or measured is absent.

use paramedic_link::PeerText;
use paramedic_link::measurement::{Duplex, HostFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The facts that a self-test reads or measures about the host. An unknown fact is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// The operating system, the processor, the memory, the load and the clock.
    pub host: HostFacts,
    /// The properties of the processor that affect a test.
    pub processor: Processor,
    /// The network interfaces that are up, except loopback, sorted by name.
    pub interfaces: Vec<Interface>,
    /// The limit of open file descriptors for the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Descriptors>,
    /// The kernel's limits for socket buffers.
    pub buffers: Buffers,
    /// The TCP congestion control algorithms of the kernel.
    pub congestion: CongestionControls,
    /// How late timers expire on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Which packet timestamps the kernel provides.
    pub timestamps: Timestamps,
    /// The kernel's mode of transparent huge pages: `always`, `madvise` or `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

/// The properties of the processor that affect a test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Processor {
    /// Whether the processor has instructions for AES-GCM, which speed up TLS. Absent on an architecture whose
    /// instructions the program cannot determine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aes_gcm_in_hardware: Option<bool>,
    /// The instructions of the processor that speed up AES-GCM, by their names on its architecture.
    pub instructions: Vec<String>,
    /// The number of cores that the program may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// The CPU quota of the program's control group, in cores; absent without a quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_cores: Option<f64>,
    /// The share of all cores (0 to 1) that other programs used just before the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_work: Option<f64>,
    /// The frequency governors of the cores, without repetitions. Empty if the system reports no governor.
    pub governors: Vec<Governor>,
}

/// The CPU frequency governor of a core (the kernel's cpufreq).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Governor {
    /// The name of the governor, such as `performance`, `powersave` or `schedutil`.
    pub name: PeerText,
    /// The frequency driver of the core. With some drivers, the governor `powersave` adapts the frequency to the load.
    pub driver: PeerText,
}

/// One network interface of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// The name of the interface, such as `eth0`.
    pub name: PeerText,
    /// Whether the interface is wired, wireless or virtual.
    pub kind: InterfaceKind,
    /// The MTU of the interface, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The speed that the driver reports, in bits per second; absent if the driver reports no speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_bps: Option<u64>,
    /// The duplex mode that the driver reports; absent if the driver reports no duplex mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplex: Option<Duplex>,
}

/// The kind of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceKind {
    /// A wired device, or a device that a hypervisor presents as wired.
    Wired,
    /// A wireless device.
    Wireless,
    /// An interface without a device of its own, such as a bridge, a tunnel or a veth. Its reported speed has no
    /// meaning.
    Virtual,
}

/// The limit of open file descriptors of the program (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Descriptors {
    /// The number of file descriptors that the program may open (soft limit).
    pub soft: u64,
    /// The highest limit of file descriptors that the program may set for itself (hard limit).
    pub hard: u64,
}

/// The kernel's limits for socket buffers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Buffers {
    /// The largest receive buffer that a program may request, in bytes (`net.core.rmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_max_bytes: Option<u64>,
    /// The largest send buffer that a program may request, in bytes (`net.core.wmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_max_bytes: Option<u64>,
    /// The largest receive buffer that the kernel chooses for TCP, in bytes (the last value of `net.ipv4.tcp_rmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_receive_max_bytes: Option<u64>,
    /// The largest send buffer that the kernel chooses for TCP, in bytes (the last value of `net.ipv4.tcp_wmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_send_max_bytes: Option<u64>,
}

/// The TCP congestion control algorithms of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CongestionControls {
    /// The congestion control algorithm that the kernel uses by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The congestion control algorithms that every program may request (`-C`).
    pub allowed: Vec<String>,
    /// The congestion control algorithms that the kernel has loaded. A program that runs as root may request any of
    /// these algorithms.
    pub available: Vec<String>,
}

/// How late timers of the host expire, measured over many expirations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timers {
    /// The number of timer expirations that were measured, 1 ms apart.
    pub rings: u32,
    /// The median lateness of the timers, in microseconds.
    pub late_p50_us: u64,
    /// The 99th percentile of the timers' lateness, in microseconds.
    pub late_p99_us: u64,
    /// The highest lateness of the timers, in microseconds.
    pub late_max_us: u64,
}

/// Which packet timestamps the kernel provides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timestamps {
    /// Whether the kernel timestamps packets when they arrive; absent if the program could not test this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_receive: Option<bool>,
    /// Whether the kernel timestamps packets when they leave; absent if the program could not test this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_send: Option<bool>,
}
