//! The facts of a host in a self-test: processor, interfaces, limits, buffers, timers. A fact that could not be read or
//! measured is absent. `paramedic-host` reads them.

use paramedic_link::PeerText;
use paramedic_link::measurement::{Duplex, HostFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The facts of the host. A fact that could not be read or measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// System, processor, memory, load and clock.
    pub host: HostFacts,
    /// The properties of the processor that matter to a test.
    pub processor: Processor,
    /// The interfaces that are up, without loopback, by name.
    pub interfaces: Vec<Interface>,
    /// The limit of open file descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Descriptors>,
    /// The limits of socket buffers.
    pub buffers: Buffers,
    /// The congestion controls of TCP.
    pub congestion: CongestionControls,
    /// How late timers expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Which timestamps the kernel gives to packets.
    pub timestamps: Timestamps,
    /// The mode of transparent huge pages: `always`, `madvise`, `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

/// The properties of the processor that matter to a test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Processor {
    /// Whether it has instructions for AES-GCM; absent on an architecture that this program does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aes_gcm_in_hardware: Option<bool>,
    /// Those of its instructions that speed up AES-GCM, with the architecture's names.
    pub instructions: Vec<String>,
    /// The cores that this program may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// The CPU quota of this program's control group, in cores; absent without a quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_cores: Option<f64>,
    /// The share of all cores, 0 to 1, that other programs used before the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_work: Option<f64>,
    /// The frequency governors of its cores, each once; empty if the system does not report them.
    pub governors: Vec<Governor>,
}

/// A frequency governor (the kernel's cpufreq).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Governor {
    /// The governor: `performance`, `powersave`, `schedutil`, …
    pub name: PeerText,
    /// The driver. With some drivers `powersave` adapts the frequency to the load.
    pub driver: PeerText,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// Its name.
    pub name: PeerText,
    /// Its kind.
    pub kind: InterfaceKind,
    /// Its MTU, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The speed that its driver reports, in bits per second; absent if it reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_bps: Option<u64>,
    /// Its duplex mode; absent if the driver does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplex: Option<Duplex>,
}

/// The kind of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceKind {
    /// A wired device, or one that a hypervisor presents as such.
    Wired,
    /// A wireless device.
    Wireless,
    /// An interface without a device: a bridge, a tunnel, a veth. The speed that it reports has no meaning.
    Virtual,
}

/// The limit of open file descriptors (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Descriptors {
    /// The limit in force.
    pub soft: u64,
    /// The highest limit that the program may set.
    pub hard: u64,
}

/// The limits of socket buffers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Buffers {
    /// The largest receive buffer that a program may request (`net.core.rmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_max_bytes: Option<u64>,
    /// The largest send buffer that a program may request (`net.core.wmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_max_bytes: Option<u64>,
    /// The largest receive buffer that TCP sizes itself (the last value of `net.ipv4.tcp_rmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_receive_max_bytes: Option<u64>,
    /// The largest send buffer that TCP sizes itself (the last value of `net.ipv4.tcp_wmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_send_max_bytes: Option<u64>,
}

/// The congestion controls of TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CongestionControls {
    /// The default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Those that any program may request (`-C`).
    pub allowed: Vec<String>,
    /// Those that the kernel has loaded; a program of root may request them.
    pub available: Vec<String>,
}

/// How late a timer expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timers {
    /// The number of expirations, 1 ms apart.
    pub rings: u32,
    /// The median lateness.
    pub late_p50_us: u64,
    /// The 99th percentile of the lateness.
    pub late_p99_us: u64,
    /// The highest lateness.
    pub late_max_us: u64,
}

/// Which timestamps the kernel gives to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timestamps {
    /// On arrival; absent if it could not be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_receive: Option<bool>,
    /// On departure; absent if it could not be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_send: Option<bool>,
}
