//! The summary of a result in one line, for lists and tables of runs.

use jiff::Timestamp;
use paramedic_link::EndpointId;
use paramedic_link::test_spec::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::document::{ErrorBody, LatencyResult, ResultDocument};
use crate::stats::Grade;

/// The summary of one run, as a list of runs shows it. A value that was not measured is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummary {
    /// The id of the run, a UUIDv7.
    pub id: Uuid,
    /// When the run began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// The provider (kind of test server) that ran the test, such as `reflector` or `iperf3`.
    pub provider: String,
    /// The engine that moved the payload, such as `tcp` or `iperf3`.
    pub engine: String,
    /// The name of the reflector or server at the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The address and port to which the appliance connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The Endpoint ID of the reflector; absent for another kind of server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<EndpointId>,
    /// The mean download rate in bits per second, from a phase without upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bps: Option<u64>,
    /// The mean upload rate in bits per second, from a phase without download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bps: Option<u64>,
    /// The median round trip of the idle path, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_idle_us: Option<u64>,
    /// The median round trip during the download, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_download_us: Option<u64>,
    /// The median round trip during the upload, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_upload_us: Option<u64>,
    /// The grade of the latency increase during the download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bufferbloat_download: Option<Grade>,
    /// The grade of the latency increase during the upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bufferbloat_upload: Option<Grade>,
    /// The payload bytes of the whole run, in both directions.
    pub data_used_bytes: u64,
    /// Whether every requested phase ran to its end.
    pub complete: bool,
    /// The error that ended the run; absent if no error ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

impl RunSummary {
    /// Summarises a result document.
    pub fn of(document: &ResultDocument) -> Self {
        let reflector = document.reflector.as_ref();
        let server = document.server.as_ref();
        let median = |load| document.latency.of(load).and_then(LatencyResult::median_us);
        let grade = |load| document.bufferbloat.of(load).map(|bloat| bloat.grade);
        Self {
            id: document.id,
            started_at: document.started_at,
            provider: document.provider.clone(),
            engine: document.engine.to_string(),
            peer: document.other_end().map(str::to_owned),
            address: reflector.map(|end| end.address.clone()).or_else(|| server.map(|end| end.address.clone())),
            endpoint_id: reflector.map(|end| end.endpoint_id),
            download_bps: document.download.as_ref().map(|result| result.goodput_bps),
            upload_bps: document.upload.as_ref().map(|result| result.goodput_bps),
            rtt_idle_us: median(Load::Idle),
            rtt_download_us: median(Load::Download),
            rtt_upload_us: median(Load::Upload),
            bufferbloat_download: grade(Load::Download),
            bufferbloat_upload: grade(Load::Upload),
            data_used_bytes: document.data_used_bytes,
            complete: document.complete,
            error: document.error.clone(),
        }
    }
}
