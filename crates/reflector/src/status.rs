//! The state of a running reflector as plain values. The one source of `reflector status` and of the metrics.

use std::collections::BTreeMap;

use paramedic_link::EndpointId;
use paramedic_link::test_spec::{DataMode, EngineId};
use serde::{Deserialize, Serialize};

use crate::duration_counts::DurationCounts;
use crate::event::RefusalReason;
use crate::sessions::Snapshot;

/// The state of the server. Counts are since its start. A field of a newer version is empty if an older reflector
/// answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The first digits of the commit that it was built from, if the build knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    pub endpoint_id: EndpointId,
    /// The name of the reflector.
    pub name: String,
    /// How long the reflector has been serving, in seconds.
    pub uptime_s: u64,
    /// `serving`, `draining` or `faulted`.
    pub state: String,
    /// Current problems, as text.
    pub problems: Vec<String>,
    /// Whether the audit log and the database can be written.
    #[serde(default)]
    pub can_write: WritableStores,
    /// The data modes on offer.
    pub data_modes: Vec<DataMode>,
    /// The engines on offer.
    pub engines: Vec<EngineId>,
    /// Engines that are configured but not available, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines_lacking: Vec<UnavailableEngine>,
    /// Open links.
    pub links: usize,
    /// Paired devices.
    pub peers: usize,
    /// TLS handshakes that were completed, by protocol.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// Sessions, queue, ports and quota usage.
    pub sessions: Snapshot,
    /// The most payload bytes that all peers together may transfer on one UTC day.
    #[serde(default)]
    pub max_bytes_per_day_total: u64,
    /// Payload bytes that phases moved at this end, by direction. Latency probes are not included.
    #[serde(default)]
    pub payload_bytes: PayloadBytes,
    /// How long probes dwelt here, from their arrival to their reply.
    #[serde(default)]
    pub probe_dwell: DurationCounts,
    /// Datagrams since the start that arrived for a session from another address than its device's: address translation
    /// changes their source, or a client guesses.
    #[serde(default)]
    pub datagrams_from_elsewhere: u64,
    /// Refusals since the start, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
    /// What the process uses.
    #[serde(default)]
    pub process: ProcessUse,
    /// Where the metrics are served, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// An engine that is configured but cannot run on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableEngine {
    /// The engine.
    pub engine: EngineId,
    /// The reason.
    pub because: String,
    /// What the operator can do about it.
    #[serde(rename = "try")]
    pub try_: String,
}

/// Whether the audit log and the database can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names need no comment")]
pub struct WritableStores {
    pub audit: bool,
    pub database: bool,
}

/// TLS handshakes that were completed, by the protocol that they negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// `pp-link/1`: links, paired or not.
    pub link: u64,
    /// `pp-data/1`: data connections.
    pub data: u64,
}

/// Payload bytes by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadBytes {
    /// Sent to appliances.
    pub download: u64,
    /// Received from appliances.
    pub upload: u64,
}

/// What the process of the reflector uses. Child processes are not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// Processor time, in microseconds.
    pub cpu_us: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}
