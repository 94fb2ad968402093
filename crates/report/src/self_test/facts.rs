//! What a self-test knows of its host: processor, interfaces, limits, buffers, timers. What could not be read or tried is
//! absent. Reading it is done elsewhere.

use paramedic_link::PeerText;
use paramedic_link::measurement::HostFacts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of the host. Absent is what could not be read or tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// System, processor, memory, load and clock.
    pub host: HostFacts,
    /// What of the processor matters to a test.
    pub processor: Processor,
    /// The interfaces that are up, without loopback, by name.
    pub interfaces: Vec<Interface>,
    /// How many descriptors the program may have open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Descriptors>,
    /// How large the kernel lets socket buffers grow.
    pub buffers: Buffers,
    /// What TCP sends by.
    pub congestion: CongestionControls,
    /// How late timers ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Whether the kernel says when a packet came and went.
    pub timestamps: Timestamps,
    /// When programs get huge pages: `always`, `madvise`, `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

/// What of the processor matters to a test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Processor {
    /// Whether it encrypts with AES-GCM in hardware; absent where this program doesn't know the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aes_gcm_in_hardware: Option<bool>,
    /// The instructions that it has for that, by the names of the architecture.
    pub instructions: Vec<String>,
    /// The cores that this program may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// The cores' worth of time that a control group leaves to this program; absent: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_cores: Option<f64>,
    /// The share of all cores, 0 to 1, that was busy before anything was measured, with whatever ran on the host then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_work: Option<f64>,
    /// How its cores choose their frequency, each way once; empty where the system doesn't tell.
    pub governors: Vec<Governor>,
}

/// How cores choose their frequency (the kernel's cpufreq).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Governor {
    /// Who decides: `performance`, `powersave`, `schedutil`, …
    pub name: PeerText,
    /// Who carries it out. Some drivers mean by `powersave` nothing worse than "as it is needed".
    pub driver: PeerText,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// Its name.
    pub name: PeerText,
    /// What stands behind it.
    pub kind: InterfaceKind,
    /// Its MTU, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// Its speed as the driver says it, in bits per second; absent where it says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_bps: Option<u64>,
    /// Whether it sends and receives at once; absent where the driver doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplex: Option<Duplex>,
}

/// What stands behind an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceKind {
    /// A device with a cable, or one that a hypervisor makes look so.
    Wired,
    /// A radio.
    Wireless,
    /// The kernel alone: a bridge, a tunnel, a container's end. Its speed, where it claims one, is made up.
    Virtual,
}

/// Whether an interface sends and receives at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplex {
    /// It does.
    Full,
    /// It does one at a time.
    Half,
}

/// How many descriptors the program may have open (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Descriptors {
    /// Now.
    pub soft: u64,
    /// When it asks for more.
    pub hard: u64,
}

/// How large the kernel lets socket buffers grow, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Buffers {
    /// The most that a program may ask for to receive in (`net.core.rmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_max_bytes: Option<u64>,
    /// The most that a program may ask for to send from (`net.core.wmem_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_max_bytes: Option<u64>,
    /// The most that TCP takes by itself to receive in (the last of `net.ipv4.tcp_rmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_receive_max_bytes: Option<u64>,
    /// The most that TCP takes by itself to send from (the last of `net.ipv4.tcp_wmem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_send_max_bytes: Option<u64>,
}

/// What TCP sends by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CongestionControls {
    /// What it takes where nothing is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What any program may ask for (`-C`).
    pub allowed: Vec<String>,
    /// What is loaded, for root.
    pub available: Vec<String>,
}

/// How late a timer rang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timers {
    /// How often it was to ring, a millisecond apart.
    pub rings: u32,
    /// How late it was half of the time.
    pub late_p50_us: u64,
    /// How late it was in all but one of a hundred.
    pub late_p99_us: u64,
    /// How late it was at worst.
    pub late_max_us: u64,
}

/// Whether the kernel says when a packet came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timestamps {
    /// When it came; absent where it could not be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_receive: Option<bool>,
    /// When it went; absent where it could not be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_send: Option<bool>,
}
