//! The appliance's end of a link to a reflector: resolves the address, connects, authenticates, pairs, and sends
//! requests.

#![expect(clippy::disallowed_methods, reason = "the shell that waits for a reflector in wall time")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use paramedic_engines::origin::Origin;
use paramedic_link::admission::{SESSION_EXPORTER_LABEL, SessionKeys};
use paramedic_link::feature::Feature;
use paramedic_link::framed::Framed;
use paramedic_link::measurement::{DatagramsSeen, HostFacts};
use paramedic_link::message::{
    END_AFTER_SILENCE, EndReason, Grant, MonitorGrant, PROTOCOL_VERSION, PathFacts, ToAppliance, ToReflector, Welcome,
};
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode};
use paramedic_link::test_spec::TestSpec;
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{EndpointId, PeerText, SecretKey, SessionId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::error::{ApplianceError, LinkFailure};
use crate::handshake::{HandshakeFailure, Handshaken, connect_from, handshake};
use crate::targets::HostPort;
use crate::waiting::{ANSWER_TIMEOUT, GiveUp, QueueWait};

/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to send the last messages on a link and to close the link.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the appliance waits for one address to accept a connection before it also tries the next address (RFC 8305,
/// section 5).
pub(crate) const HEAD_START: Duration = Duration::from_millis(250);

/// Which IP families a link may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4 and IPv6, in the order of the system's resolver (RFC 8305).
    #[default]
    Any,
    /// The link may use only IPv4.
    V4,
    /// The link may use only IPv6.
    V6,
}

impl Family {
    fn allows(self, address: IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        }
    }
}

/// The IP families, the local address and the network interface that a link to a reflector may use. The default allows
/// all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The IP families that the link may use.
    pub family: Family,
    /// The local address and network interface from which the link is opened.
    #[serde(with = "StoredOrigin")]
    #[schemars(with = "StoredOrigin")]
    pub origin: Origin,
}

/// The form in which an [`Origin`] is stored.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Origin")]
struct StoredOrigin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
}

impl Route {
    fn allows(&self, address: IpAddr) -> bool {
        self.family.allows(address) && self.origin.suits(address)
    }
}

/// A link to a reflector whose key was verified.
pub struct ReflectorClient {
    framed: Framed<TlsStream<TcpStream>>,
    target: HostPort,
    address: SocketAddr,
    local: IpAddr,
    reflector: EndpointId,
    segment_limit: Option<u16>,
}

/// The result of a pairing.
pub struct Paired {
    /// The Endpoint ID of the reflector.
    pub reflector: EndpointId,
    /// The name that the reflector gives itself.
    pub name: PeerText,
    /// The segment size limit of the link; see [`ReflectorClient::segment_limit`].
    pub segment_limit: Option<u16>,
}

impl ReflectorClient {
    /// Connects to the reflector at `target` and verifies the reflector's key.
    pub async fn connect(
        key: &SecretKey,
        target: &HostPort,
        expect: Expect,
        route: &Route,
    ) -> Result<Self, ApplianceError> {
        let config = tls::appliance_config(key, expect, Alpn::Link)
            .map_err(|error| ApplianceError::TlsSetup(error.to_string()))?;
        let addresses = resolve(target, route).await?;
        tracing::debug!(%target, ?addresses, "connecting to a reflector");
        let reached = race(addresses, &route.origin).await;
        let (socket, address) = reached.map_err(|error| LinkFailure::Unreachable(error).at(target))?;
        let local = socket.local_addr().map_err(|error| LinkFailure::Unreachable(error).at(target))?.ip();
        let Handshaken { stream, segment_limit } = match handshake(&config, socket, address, &route.origin).await {
            Ok(handshaken) => handshaken,
            Err(HandshakeFailure::Refused(error)) => return Err(no_handshake(expect, error).at(target)),
            Err(HandshakeFailure::NoAnswer(time)) => return Err(LinkFailure::HandshakeTimeout(time).at(target)),
        };
        let session = stream.get_ref().1;
        let proven = tls::peer_of(session.peer_certificates()).map(|peer| peer.id());
        let (Some(reflector), Some(Alpn::Link)) = (proven, Alpn::of(session.alpn_protocol())) else {
            return Err(LinkFailure::NotAReflector("it does not speak the protocol pp-link/1".to_owned()).at(target));
        };
        tracing::debug!(%address, %reflector, "link open");
        Ok(Self { framed: Framed::new(stream), target: target.clone(), address, local, reflector, segment_limit })
    }

    /// The address of the reflector that accepted the connection.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of this device on the link.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The segment size in bytes to which the link had to be limited, because the path drops larger packets. `None` if
    /// the link is not limited.
    pub fn segment_limit(&self) -> Option<u16> {
        self.segment_limit
    }

    /// The verified Endpoint ID of the reflector.
    pub fn reflector(&self) -> EndpointId {
        self.reflector
    }

    /// Pairs with the reflector: proves that this device knows the secret in the pairing code, and verifies the
    /// reflector's proof that it knows the secret, too.
    pub async fn pair(mut self, own: EndpointId, code: &PairingCode, name: &str) -> Result<Paired, ApplianceError> {
        let exporter = self.exporter(PAIRING_EXPORTER_LABEL, None)?;
        let ends = Ends { reflector: self.reflector, appliance: own };
        let proof = code.appliance_proof(&exporter, &ends);
        self.send(&ToReflector::Pair { versions: vec![PROTOCOL_VERSION], proof, name: PeerText::new(name) }).await?;
        match self.answer().await? {
            ToAppliance::Paired { proof, name } if proof == code.reflector_proof(&exporter, &ends) => {
                self.close("paired").await;
                Ok(Paired { reflector: ends.reflector, name, segment_limit: self.segment_limit })
            }
            ToAppliance::Paired { .. } => Err(LinkFailure::CodeNotProven.at(&self.target)),
            ToAppliance::NotPaired => Err(LinkFailure::CodeRefused.at(&self.target)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Identifies this device, which is paired already, to the reflector. Returns the reflector's welcome message.
    pub async fn hello(&mut self) -> Result<Welcome, ApplianceError> {
        let software = PeerText::new(env!("CARGO_PKG_VERSION"));
        let features = Feature::own();
        self.send(&ToReflector::Hello { versions: vec![PROTOCOL_VERSION], software, features }).await?;
        match self.answer().await? {
            ToAppliance::Welcome(welcome) => Ok(welcome),
            ToAppliance::NotPaired => Err(LinkFailure::NotPaired.at(&self.target)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Requests the facts about the reflector's host from the reflector.
    pub async fn facts(&mut self) -> Result<HostFacts, ApplianceError> {
        self.send(&ToReflector::Facts).await?;
        match self.answer().await? {
            ToAppliance::Facts(facts) => Ok(facts),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Requests from the reflector what it knows about the network path.
    pub async fn path_facts(&mut self) -> Result<PathFacts, ApplianceError> {
        self.send(&ToReflector::PathFacts).await?;
        match self.answer().await? {
            ToAppliance::PathFacts(facts) => Ok(facts),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Requests a monitor session.
    pub async fn monitor(&mut self) -> Result<MonitorGrant, ApplianceError> {
        self.send(&ToReflector::Monitor).await?;
        match self.answer().await? {
            ToAppliance::MonitorGranted(grant) => Ok(grant),
            ToAppliance::Denied(denial) => Err(LinkFailure::Denied(denial).at(&self.target)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Requests a session for a test. If `wait` is set, waits in the reflector's queue as long as `limits` allows, and
    /// passes each position and expected wait to `queued`. Returns `None` if `cancelled` completes first; the request
    /// is then withdrawn.
    pub async fn request(
        &mut self,
        spec: &TestSpec,
        wait: bool,
        mut limits: QueueWait,
        mut queued: impl FnMut(u32, Duration) + Send,
        cancelled: impl Future<Output = ()> + Send,
    ) -> Result<Option<Grant>, ApplianceError> {
        let mut cancelled = std::pin::pin!(cancelled);
        self.send(&ToReflector::Request { spec: spec.clone(), wait }).await?;
        loop {
            let (until, why) = limits.deadline();
            let message = tokio::select! {
                message = tokio::time::timeout_at(until.into(), self.listen()) => match message {
                    Ok(message) => message?,
                    Err(_) => return Err(given_up(why).at(&self.target)),
                },
                () = &mut cancelled => {
                    let withdraw = self.framed.send(&ToReflector::Withdraw);
                    tokio::time::timeout(GOODBYE_TIMEOUT, withdraw).await.ok();
                    self.close("cancelled").await;
                    return Ok(None);
                }
            };
            let now = Instant::now();
            limits.note_received(now);
            match message {
                ToAppliance::Granted(grant) => return Ok(Some(grant)),
                ToAppliance::Queued { place, expected_wait_ms } => {
                    limits.queued_at(place, now);
                    queued(place, Duration::from_millis(expected_wait_ms));
                }
                ToAppliance::Denied(denial) => return Err(LinkFailure::Denied(denial).at(&self.target)),
                ToAppliance::Ping => self.send(&ToReflector::Pong).await?,
                ToAppliance::Pong | ToAppliance::Unknown => {}
                other => return Err(self.unexpected(&other)),
            }
            // A flood of messages does not extend the deadline.
            if let Some(why) = limits.given_up(Instant::now()) {
                return Err(given_up(why).at(&self.target));
            }
        }
    }

    /// Derives the keys of a granted session.
    pub fn session_keys(&self, session: SessionId) -> Result<SessionKeys, ApplianceError> {
        let secret = self.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()))?;
        Ok(SessionKeys::derive(session, secret.into()))
    }

    fn exporter(&self, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], ApplianceError> {
        let exported = self.framed.stream().get_ref().1.export_keying_material([0; 32], label, context);
        exported.map_err(|error| ApplianceError::KeyDerivation(error.to_string()))
    }

    /// Waits for the next message that is not a heartbeat. Fails if no such message comes within [`ANSWER_TIMEOUT`].
    async fn answer(&mut self) -> Result<ToAppliance, ApplianceError> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.no_heartbeat()).await;
        answer.unwrap_or_else(|_| Err(given_up(GiveUp::NoAnswer).at(&self.target)))
    }

    /// Waits for the next message that is not a heartbeat, without a timeout. The caller sets one timeout for its whole
    /// wait, because a reflector could send heartbeats for ever.
    async fn no_heartbeat(&mut self) -> Result<ToAppliance, ApplianceError> {
        loop {
            match self.listen().await? {
                ToAppliance::Ping => self.send(&ToReflector::Pong).await?,
                ToAppliance::Pong | ToAppliance::Unknown => {}
                message => return Ok(message),
            }
        }
    }

    /// Waits for the next message from the reflector. Cancel safe.
    pub async fn listen(&mut self) -> Result<ToAppliance, ApplianceError> {
        match self.framed.receive::<ToAppliance>().await {
            Ok(Some(ToAppliance::Close { reason, detail })) => {
                Err(LinkFailure::Closed { reason, detail }.at(&self.target))
            }
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(LinkFailure::EndOfStream.at(&self.target)),
            Err(error) => Err(LinkFailure::Lost(error).at(&self.target)),
        }
    }

    /// Sends one message. Fails if the reflector reads no data for too long.
    pub async fn send(&mut self, message: &ToReflector) -> Result<(), ApplianceError> {
        match tokio::time::timeout(END_AFTER_SILENCE, self.framed.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LinkFailure::Lost(error).at(&self.target)),
            Err(_) => Err(self.lost_in_silence()),
        }
    }

    /// Sends `close` and closes the link. Ignores errors, and gives up after a short time.
    pub async fn close(&mut self, reason: &str) {
        let goodbye = async {
            self.framed.send(&ToReflector::Close { reason: PeerText::new(reason) }).await.ok();
            self.framed.finish().await.ok();
        };
        tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await.ok();
    }

    /// Ends the session of this link, and waits until the session has ended. Then the link can be used for another
    /// request. Returns how many datagrams of the session the reflector counted, if the reflector reports that number.
    /// Fails if the end takes longer than [`ANSWER_TIMEOUT`].
    pub async fn end_session(&mut self) -> Result<Option<DatagramsSeen>, ApplianceError> {
        let ended = async {
            self.send(&ToReflector::Finish).await?;
            loop {
                match self.no_heartbeat().await? {
                    ToAppliance::Ended { datagrams, .. } => return Ok(datagrams),
                    // Messages of the session that the reflector had already sent.
                    ToAppliance::Started { .. }
                    | ToAppliance::Samples { .. }
                    | ToAppliance::PhaseDetail { .. }
                    | ToAppliance::PhaseDone { .. } => {}
                    other => return Err(self.unexpected(&other)),
                }
            }
        };
        let ended = tokio::time::timeout(ANSWER_TIMEOUT, ended).await;
        ended.unwrap_or_else(|_| Err(given_up(GiveUp::NoAnswer).at(&self.target)))
    }

    /// Ends a granted session in which no test runs, and closes the link. Ignores errors, and gives up after a short
    /// time.
    pub async fn finish(&mut self) {
        tokio::time::timeout(GOODBYE_TIMEOUT, self.framed.send(&ToReflector::Finish)).await.ok();
        self.close("done").await;
    }

    /// The error of a session in which nothing was received from the reflector for too long.
    pub fn lost_in_silence(&self) -> ApplianceError {
        self.silent(END_AFTER_SILENCE)
    }

    /// The error of a session in which nothing was received from the reflector for `time`.
    pub fn silent(&self, time: Duration) -> ApplianceError {
        LinkFailure::Silent(time).at(&self.target)
    }

    /// The error of a session that the reflector ended.
    pub fn ended(&self, reason: EndReason, detail: &PeerText) -> ApplianceError {
        LinkFailure::SessionEnded { reason, detail: detail.clone() }.at(&self.target)
    }

    fn unexpected(&self, message: &ToAppliance) -> ApplianceError {
        let cause = match message {
            ToAppliance::Ended { detail, .. } => LinkFailure::EndedOutOfTurn(detail.clone()),
            _ => LinkFailure::UnexpectedMessage,
        };
        cause.at(&self.target)
    }
}

/// Resolves `target` to the addresses that `route` allows, in the order in which the appliance will try them.
pub(crate) async fn resolve(target: &HostPort, route: &Route) -> Result<Vec<SocketAddr>, ApplianceError> {
    // Without this check the kernel would report "Invalid argument".
    if target.host.lacks_zone() && route.origin.interface.is_none() {
        return Err(ApplianceError::NoZone(target.host.clone()));
    }
    let found = tokio::net::lookup_host((target.host.to_string(), target.port)).await;
    let found = found.map_err(|source| ApplianceError::NotResolved { host: target.host.clone(), source })?;
    let addresses = interleaved(found.filter(|at| route.allows(at.ip())).collect());
    if addresses.is_empty() {
        return Err(ApplianceError::NoAddressOfFamily(target.host.clone()));
    }
    Ok(addresses)
}

/// Returns at most 16 of the addresses, IPv4 and IPv6 in turn. The family that the system's resolver put first comes
/// first (RFC 8305, section 4; RFC 6724, which gai.conf(5) configures).
fn interleaved(sorted: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = sorted.first().copied() else { return sorted };
    let (preferred, others): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|at| at.is_ipv6() == first.is_ipv6());
    let longest = preferred.len().max(others.len());
    let turns = (0..longest).flat_map(|at| [preferred.get(at), others.get(at)]).flatten();
    let mut addresses = Vec::new();
    for address in turns.take(16) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses
}

/// Connects to the first address that accepts a connection. Also tries the next address when an attempt fails or has
/// lasted for [`HEAD_START`] (RFC 8305, section 5).
pub(crate) async fn race(addresses: Vec<SocketAddr>, origin: &Origin) -> io::Result<(TcpStream, SocketAddr)> {
    let mut rest = addresses.into_iter();
    let mut tries = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let mut more = false;
        if let Some(address) = rest.next() {
            more = true;
            let origin = origin.clone();
            tries.spawn(async move {
                let connected = tokio::time::timeout(CONNECT, connect_from(&origin, address, None)).await;
                (address, connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            });
        }
        let next = if more {
            match tokio::time::timeout(HEAD_START, tries.join_next()).await {
                Ok(done) => done,
                Err(_) => continue,
            }
        } else {
            tries.join_next().await
        };
        match next {
            Some(Ok((address, Ok(socket)))) => return Ok((socket, address)),
            Some(Ok((address, Err(error)))) => {
                tracing::debug!(%address, %error, "no connection");
                last = error;
            }
            Some(Err(_)) => {}
            None => return Err(last),
        }
    }
}

fn no_handshake(expect: Expect, error: io::Error) -> LinkFailure {
    if let Some(wrong) = tls::wrong_key_in_io(&error) {
        return match expect {
            Expect::ExactKey(_) => LinkFailure::KeyChanged(wrong.presented),
            Expect::Pin(_) => LinkFailure::CodeOfAnother(wrong.presented),
        };
    }
    match error.kind() {
        io::ErrorKind::InvalidData => LinkFailure::NotAReflector(error.to_string()),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            LinkFailure::HungUp
        }
        _ => LinkFailure::Unreachable(error),
    }
}

/// Converts the reason why the appliance gave up a request into the error of the link.
fn given_up(why: GiveUp) -> LinkFailure {
    match why {
        GiveUp::Silence => LinkFailure::Silent(END_AFTER_SILENCE),
        GiveUp::NoAnswer => LinkFailure::NoAnswer(ANSWER_TIMEOUT),
        GiveUp::Stalled(stall) => LinkFailure::QueueStalled(stall),
        GiveUp::TooLong(longest) => LinkFailure::WaitedTooLong(longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_alternate_beginning_with_the_resolvers_first() {
        let order = |addresses: &[&str]| {
            let parsed = addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect();
            interleaved(parsed).iter().map(|address| address.ip().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order(&["1.1.1.1", "1.1.1.2", "2::1"]), ["1.1.1.1", "2::1", "1.1.1.2"]);
        assert_eq!(order(&["2::1", "2::2", "1.1.1.1"]), ["2::1", "1.1.1.1", "2::2"]);
        assert_eq!(order(&["1.1.1.1", "2::1", "1.1.1.1"]), ["1.1.1.1", "2::1"]);
        assert_eq!(order(&["2::1"]), ["2::1"]);
        assert!(order(&[]).is_empty());
    }
}
