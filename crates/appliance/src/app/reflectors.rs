//! Pairs, lists, checks, renames and removes the reflectors of this appliance.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use paramedic_link::feature::Feature;
use paramedic_link::message::{CloseReason, PathFacts};
use paramedic_link::pairing_code::PairingCode;
use paramedic_link::tls::Expect;
use paramedic_link::{EndpointId, PeerText};

use super::Appliance;
use crate::error::{ApplianceError, LinkFailure};
use crate::reflector_client::{ReflectorClient, Route};
use crate::store::Reflector;
use crate::targets::HostPort;

/// How this device makes sure that it pairs with the right reflector.
pub enum PairingProof {
    /// Both ends prove that they know the code that the reflector printed.
    Code(PairingCode),
    /// The user has compared the reflector's Endpoint ID, and adds this device on the reflector by hand.
    EndpointId(EndpointId),
}

/// A completed pairing with a reflector.
pub struct NewPairing {
    /// The reflector, as it was saved.
    pub reflector: Reflector,
    /// Whether the reflector has also paired this device.
    pub is_mutual: bool,
    /// The segment size limit of the link; see [`ReflectorClient::segment_limit`].
    pub segment_limit: Option<u16>,
}

/// What a check of a reflector found about it and the path.
pub struct Reached {
    /// The address of the reflector that accepted the connection.
    pub address: SocketAddr,
    /// The version of the reflector's program.
    pub version: PeerText,
    /// How long it took to connect, up to the reflector's welcome.
    pub took: Duration,
    /// The address of this device on the link.
    pub local: IpAddr,
    /// What the reflector reports about the path; absent if the reflector does not support `path_facts`.
    pub path: Option<PathFacts>,
    /// The segment size limit of the link; see [`ReflectorClient::segment_limit`].
    pub segment_limit: Option<u16>,
}

impl Appliance {
    /// Pairs with the reflector at `target` and saves it as `name`. If `name` is `None`, saves it under the name that
    /// the reflector reports, or under its host if it reports none. `own_name` is the name of this device that the
    /// reflector gets when both pair by a code.
    pub async fn pair(
        &self,
        target: HostPort,
        proof: PairingProof,
        name: Option<PeerText>,
        own_name: &PeerText,
    ) -> Result<NewPairing, ApplianceError> {
        let (key, store) = (self.key()?, self.store().await?);
        let route = Route::default();
        let (endpoint_id, its_name, is_mutual, segment_limit) = match proof {
            PairingProof::EndpointId(id) => {
                let mut client = ReflectorClient::connect(&key, &target, Expect::ExactKey(id), &route).await?;
                let segment_limit = client.segment_limit();
                match client.hello().await {
                    Ok(welcome) => {
                        client.close("paired").await;
                        (id, welcome.name, true, segment_limit)
                    }
                    Err(error) if is_unknown_there(&error) => (id, PeerText::default(), false, segment_limit),
                    Err(error) => return Err(error),
                }
            }
            PairingProof::Code(code) => {
                let client = ReflectorClient::connect(&key, &target, Expect::Pin(code.pin()), &route).await?;
                let paired = client.pair(key.id(), &code, own_name.as_str()).await?;
                (paired.reflector, paired.name, true, paired.segment_limit)
            }
        };
        let is_named = name.is_some();
        let name = name.unwrap_or(its_name);
        let name = if name.is_empty() { PeerText::new(&target.host.to_string()) } else { name };
        let new = Reflector { endpoint_id, name: name.clone(), address: target, paired_at: now() };
        let mut reflector = store.add_reflector(&new).await?;
        if is_named && reflector.name != name {
            reflector = store.rename_reflector(&endpoint_id.to_string(), &name).await?;
        }
        Ok(NewPairing { reflector, is_mutual, segment_limit })
    }

    /// All paired reflectors, sorted by name.
    pub async fn reflectors(&self) -> Result<Vec<Reflector>, ApplianceError> {
        Ok(self.reading_store().await?.reflectors().await?)
    }

    /// The reflector with the name, address or Endpoint ID `wanted`.
    pub async fn reflector(&self, wanted: &str) -> Result<Reflector, ApplianceError> {
        Ok(self.reading_store().await?.reflector(wanted).await?)
    }

    /// The reflectors to check: the one with the name, address or Endpoint ID `wanted`, or all. Loads the key first, so
    /// that an unusable key is one error instead of one per reflector.
    pub async fn reflectors_to_check(&self, wanted: Option<&str>) -> Result<Vec<Reflector>, ApplianceError> {
        let store = self.reading_store().await?;
        let chosen = match wanted {
            Some(wanted) => vec![store.reflector(wanted).await?],
            None => store.reflectors().await?,
        };
        self.key()?;
        Ok(chosen)
    }

    /// Opens a link to a reflector without running a test. Returns what the reflector reports and what the connection
    /// shows.
    pub async fn check(&self, reflector: &Reflector) -> Result<Reached, ApplianceError> {
        #[expect(clippy::disallowed_methods, reason = "the shell that measures how long the answer takes")]
        let began = Instant::now();
        let expect = Expect::ExactKey(reflector.endpoint_id);
        let mut client = ReflectorClient::connect(&*self.key()?, &reflector.address, expect, &Route::default()).await?;
        let welcome = client.hello().await?;
        let took = began.elapsed();
        let path = match Feature::is_in(Feature::PATH_FACTS, &welcome.features) {
            true => Some(client.path_facts().await?),
            false => None,
        };
        let (address, local, segment_limit) = (client.address(), client.local(), client.segment_limit());
        client.close("checked").await;
        Ok(Reached { address, version: welcome.software, took, local, path, segment_limit })
    }

    /// Renames the reflector with the name, address or Endpoint ID `wanted`.
    pub async fn rename_reflector(&self, wanted: &str, name: &PeerText) -> Result<Reflector, ApplianceError> {
        Ok(self.store().await?.rename_reflector(wanted, name).await?)
    }

    /// Removes the reflector with the name, address or Endpoint ID `wanted`. Its results are kept.
    pub async fn remove_reflector(&self, wanted: &str) -> Result<Reflector, ApplianceError> {
        Ok(self.store().await?.remove_reflector(wanted).await?)
    }
}

/// Whether the error means that the reflector has not paired this device.
fn is_unknown_there(error: &ApplianceError) -> bool {
    let ApplianceError::Link { cause, .. } = error else { return false };
    matches!(cause, LinkFailure::NotPaired | LinkFailure::Closed { reason: CloseReason::PeerRemoved, .. })
}

#[expect(clippy::disallowed_methods, reason = "the shell that dates a pairing")]
fn now() -> Timestamp {
    Timestamp::now()
}
