//! The API routes of the paired reflectors: list, pair, check, rename, remove, import.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use paramedic_appliance::app::{Appliance, ImportedPairings, NewPairing, OldPairings, PairingProof, Reached, UdpCheck};
use paramedic_appliance::error::ApplianceError;
use paramedic_appliance::store::Reflector;
use paramedic_appliance::targets::HostPort;
use paramedic_link::pairing_code::PairingCode;
use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::connections::RequestSource;
use super::extract::{ApiBody, ApiPath};
use super::problem::Problem;
use crate::cli::failure::{CommandFailure, ExitStatus};

/// A request to pair with a reflector, by a one-time code or by its Endpoint ID.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PairRequest {
    /// The host name or IP address of the reflector, with or without a port.
    pub(crate) target: String,
    /// The one-time code that `reflector pair` printed. Required if `endpoint_id` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    /// The Endpoint ID of the reflector. If present, `code` is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint_id: Option<EndpointId>,
    /// The name under which this device saves the reflector. If absent, the name that the reflector reports, or its
    /// host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<PeerText>,
}

/// The reflector with which this device has just paired.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PairedReflector {
    /// The Endpoint ID of the reflector.
    pub(crate) endpoint_id: EndpointId,
    /// The name under which the reflector is saved.
    pub(crate) name: PeerText,
    /// The address of the reflector.
    pub(crate) address: String,
    /// Whether the reflector has also paired this device.
    pub(crate) is_mutual: bool,
    /// The largest TCP segment that reaches the reflector, in bytes. Present only if the path drops larger segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment_limit: Option<u16>,
    /// This device's Endpoint ID.
    pub(crate) own_id: EndpointId,
}

/// Pairs this device with a reflector as requested. `own_name` is the name that this device sends to the reflector.
pub(crate) async fn pair_as(
    appliance: &Appliance,
    request: PairRequest,
    own_name: &PeerText,
) -> Result<PairedReflector, CommandFailure> {
    let target = request.target.parse::<HostPort>()?;
    let proof = match (request.endpoint_id, &request.code) {
        (Some(id), _) => PairingProof::EndpointId(id),
        (None, code) => {
            let code = code.as_deref().unwrap_or_default().parse::<PairingCode>();
            PairingProof::Code(code.map_err(|error| bad_code(&error))?)
        }
    };
    let NewPairing { reflector, is_mutual, segment_limit } =
        appliance.pair(target, proof, request.name, own_name).await?;
    Ok(PairedReflector {
        endpoint_id: reflector.endpoint_id,
        name: reflector.name,
        address: reflector.address.to_string(),
        is_mutual,
        segment_limit,
        own_id: appliance.endpoint_id()?,
    })
}

/// The failure of a command because a text is not a valid pairing code.
pub(crate) fn bad_code(error: &dyn fmt::Display) -> CommandFailure {
    let try_ = "enter the code as `reflector pair` printed it; case and dashes don't matter";
    CommandFailure::new(ExitStatus::Usage, "bad_code", "the pairing code is not valid", error, try_)
}

/// A paired reflector in a list.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ListedReflector {
    /// The name under which the reflector is saved.
    pub(crate) name: PeerText,
    /// The address of the reflector.
    pub(crate) address: String,
    /// The Endpoint ID of the reflector.
    pub(crate) endpoint_id: EndpointId,
    /// When the reflector was paired.
    pub(crate) paired_at: Timestamp,
}

/// A request to rename a reflector.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct RenameRequest {
    /// The new name of the reflector: 1 to 120 characters.
    pub(crate) name: PeerText,
}

/// What a check of a reflector found. A check connects to the reflector, but runs no test.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct CheckedReflector {
    /// The address of the reflector that accepted the connection.
    pub(crate) reached_at: SocketAddr,
    /// The version of the reflector's program.
    pub(crate) version: PeerText,
    /// The time from the connection attempt until the reflector's welcome message arrived, in milliseconds.
    pub(crate) link_ms: f64,
    /// The IP address of this device on the connection to the reflector.
    pub(crate) local_address: IpAddr,
    /// The source address and port of this device's packets, as the reflector sees them. Absent if the reflector does
    /// not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) observed_address: Option<SocketAddr>,
    /// The largest TCP payload per packet that the reflector sends, in bytes. Absent if the reflector does not report
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_segment_bytes: Option<u32>,
    /// The largest TCP segment that reaches the reflector, in bytes. Present only if the path drops larger segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment_limit_bytes: Option<u16>,
}

impl From<Reached> for CheckedReflector {
    fn from(reached: Reached) -> Self {
        Self {
            reached_at: reached.address,
            version: reached.version,
            link_ms: reached.took.as_secs_f64() * 1000.0,
            local_address: reached.local,
            observed_address: reached.path.map(|path| path.observed_address),
            max_segment_bytes: reached.path.and_then(|path| path.max_segment_bytes),
            segment_limit_bytes: reached.segment_limit,
        }
    }
}

impl ListedReflector {
    /// Converts this row to a [`Reflector`], the type that the store returns.
    pub(crate) fn reflector(self) -> Result<Reflector, CommandFailure> {
        let Self { name, address, endpoint_id, paired_at } = self;
        Ok(Reflector { endpoint_id, name, address: address.parse::<HostPort>()?, paired_at })
    }
}

impl From<&Reflector> for ListedReflector {
    fn from(reflector: &Reflector) -> Self {
        Self {
            name: reflector.name.clone(),
            address: reflector.address.to_string(),
            endpoint_id: reflector.endpoint_id,
            paired_at: reflector.paired_at,
        }
    }
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<ListedReflector>>, Problem> {
    let all = state.service.appliance().reflectors().await?;
    Ok(Json(all.iter().map(ListedReflector::from).collect()))
}

pub(super) async fn pair(
    State(state): State<ApiState>,
    ApiBody(request): ApiBody<PairRequest>,
) -> Result<(StatusCode, Json<PairedReflector>), Problem> {
    let paired = pair_as(state.service.appliance(), request, &state.own_name).await?;
    state.service.monitors_changed();
    Ok((StatusCode::CREATED, Json(paired)))
}

/// Checks a reflector: connects to it, but sends no load.
pub(super) async fn check(
    State(state): State<ApiState>,
    ApiPath(wanted): ApiPath<String>,
) -> Result<Json<CheckedReflector>, Problem> {
    let appliance = state.service.appliance();
    let reflector = appliance.reflector(&wanted).await?;
    Ok(Json(appliance.check(&reflector).await?.into()))
}

/// Checks whether datagrams reach a reflector, and whether its answers come back.
pub(super) async fn check_udp(
    State(state): State<ApiState>,
    ApiPath(wanted): ApiPath<String>,
) -> Result<Json<UdpCheck>, Problem> {
    let appliance = state.service.appliance();
    let reflector = appliance.reflector(&wanted).await?;
    Ok(Json(appliance.check_udp(&reflector).await?))
}

pub(super) async fn rename(
    State(state): State<ApiState>,
    ApiPath(wanted): ApiPath<String>,
    ApiBody(RenameRequest { name }): ApiBody<RenameRequest>,
) -> Result<Json<ListedReflector>, Problem> {
    let renamed = state.service.appliance().rename_reflector(&wanted, &name).await?;
    state.service.monitors_changed();
    Ok(Json(ListedReflector::from(&renamed)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(wanted): ApiPath<String>,
) -> Result<Json<ListedReflector>, Problem> {
    let removed = state.service.appliance().remove_reflector(&wanted).await?;
    state.service.monitors_changed();
    Ok(Json(ListedReflector::from(&removed)))
}

/// The API route of a reflector. `action` is empty, or a suffix such as `/check`. The route contains the Endpoint ID,
/// because a reflector's name could equal a part of another route, such as `imports`.
pub(crate) fn reflector_route(id: EndpointId, action: &str) -> String {
    format!("/reflectors/{id}{action}")
}

/// Imports an older identity with its pairings. Refused through a TCP listener, because the key of the identity
/// authenticates this device, and also its stored command channels.
pub(super) async fn import(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiBody(old): ApiBody<OldPairings>,
) -> Result<Json<ImportedPairings>, Problem> {
    if !source.is_on_this_host() {
        return Err(ApplianceError::IdentityOverTcp.into());
    }
    let imported = state.service.appliance().import_pairings(old).await?;
    state.service.monitors_changed();
    Ok(Json(imported))
}
