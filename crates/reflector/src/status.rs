//! The state of a running reflector as plain values. `reflector status` and the metrics both read it from here.

use std::collections::BTreeMap;

use paramedic_link::EndpointId;
use paramedic_link::test_spec::{DataMode, EngineId};
use serde::{Deserialize, Serialize};

use crate::duration_counts::DurationCounts;
use crate::event::RefusalReason;
use crate::sessions::Snapshot;

/// The state of the server. Counts begin at the start of the server. Fields that an older reflector does not send are
/// empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The first digits of the commit from which the program was built; absent if the build did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    pub endpoint_id: EndpointId,
    /// The name of the reflector.
    pub name: String,
    /// How long the reflector has been serving, in seconds.
    pub uptime_s: u64,
    /// The state in one word: `serving`, `draining` or `faulted`.
    pub state: String,
    /// The present problems, as text.
    pub problems: Vec<String>,
    /// Whether the audit log and the database can be written.
    #[serde(default)]
    pub can_write: WritableStores,
    /// The data modes that the reflector offers.
    pub data_modes: Vec<DataMode>,
    /// The engines that the reflector offers.
    pub engines: Vec<EngineId>,
    /// The engines that are configured but cannot run on this host, with the reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines_lacking: Vec<UnavailableEngine>,
    /// The number of open links.
    pub links: usize,
    /// The number of paired devices.
    pub peers: usize,
    /// The number of completed TLS handshakes.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// Sessions, queue, ports and the use of quotas.
    pub sessions: Snapshot,
    /// The number of payload bytes that all peers together may transfer on one UTC day.
    #[serde(default)]
    pub max_bytes_per_day_total: u64,
    /// The payload bytes that the reflector moved in the phases of tests, in each direction. Latency probes are not
    /// included.
    #[serde(default)]
    pub payload_bytes: PayloadBytes,
    /// How long latency probes dwelt at the reflector, from their arrival to their reply.
    #[serde(default)]
    pub probe_dwell: DurationCounts,
    /// The number of datagrams since the start that came from another address than that of the session's device, or
    /// whose source port changed during the session. The cause is address translation, or a client that guesses session
    /// tags.
    #[serde(default)]
    pub datagrams_from_elsewhere: u64,
    /// The number of refused connections since the start, by reason.
    pub refused: BTreeMap<RefusalReason, u64>,
    /// The resources that the process of the reflector uses.
    #[serde(default)]
    pub process: ProcessUse,
    /// Where the metrics are served; absent if they are not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// An engine that is configured but cannot run on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableEngine {
    /// The id of the engine.
    pub engine: EngineId,
    /// Why the engine cannot run.
    pub because: String,
    /// What the operator can do to make the engine run.
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

/// The number of completed TLS handshakes, by the protocol that they negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// Handshakes of links (`pp-link/1`), from paired and unpaired clients.
    pub link: u64,
    /// Handshakes of data connections (`pp-data/1`).
    pub data: u64,
}

/// The number of payload bytes in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadBytes {
    /// The payload bytes that were sent to appliances.
    pub download: u64,
    /// The payload bytes that were received from appliances.
    pub upload: u64,
}

/// The resources that the process of the reflector uses, without its child processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// The processor time that the process has used, in microseconds.
    pub cpu_us: u64,
    /// The memory of the process that is in RAM (resident set), in bytes.
    pub resident_bytes: u64,
    /// The number of open file descriptors.
    pub descriptors: u64,
    /// The number of threads.
    pub threads: u64,
}
