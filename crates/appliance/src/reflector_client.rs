//! The appliance's end of a link: resolve, connect, prove, pair, ask. What it can't do it says as a [`Failure`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use paramedic_engines::origin::Origin;
use paramedic_link::admission::{SESSION_EXPORTER_LABEL, SessionKeys};
use paramedic_link::feature::Feature;
use paramedic_link::framed::{Framed, LinkError};
use paramedic_link::measurement::HostFacts;
use paramedic_link::message::{
    CloseReason, Denial, DenialReason, END_AFTER_SILENCE, EndReason, Grant, PROTOCOL_VERSION, ToAppliance, ToReflector,
    Welcome,
};
use paramedic_link::pairing_code::{Ends, PAIRING_EXPORTER_LABEL, PairingCode};
use paramedic_link::test_spec::TestSpec;
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{EndpointId, PeerText, SecretKey, SessionId};
use paramedic_report::quantity;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Exit, Failure};
use crate::targets::Target;
use crate::waiting::{ANSWER_TIMEOUT, GiveUp, QueueWait};

/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// RFC 8305, section 5: how long the first family is alone.
const HEAD_START: Duration = Duration::from_millis(250);

/// Which IP families may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Both, as browsers do (RFC 8305).
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
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

/// Which way a link may take; with nothing said, any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The IP families.
    pub family: Family,
    /// Where it leaves from.
    #[serde(with = "StoredOrigin")]
    pub origin: Origin,
}

/// How an [`Origin`] is stored.
#[derive(Serialize, Deserialize)]
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

/// A link to a reflector whose key was proven.
pub struct ReflectorClient {
    framed: Framed<TlsStream<TcpStream>>,
    target: String,
    address: SocketAddr,
    local: IpAddr,
    reflector: EndpointId,
}

/// Why there is no link.
#[derive(Debug)]
pub struct NoLink {
    /// The key that was shown, where it was another one than the expected.
    pub presented: Option<EndpointId>,
    /// What to say about it.
    pub failure: Failure,
}

impl From<Failure> for NoLink {
    fn from(failure: Failure) -> Self {
        Self { presented: None, failure }
    }
}

impl From<NoLink> for Failure {
    fn from(no_link: NoLink) -> Self {
        no_link.failure
    }
}

/// What pairing yields.
pub struct Paired {
    /// The reflector's identity.
    pub reflector: EndpointId,
    /// What it calls itself.
    pub name: PeerText,
}

impl ReflectorClient {
    /// Connects to `target` and has it prove that it holds the expected key.
    pub async fn connect(key: &SecretKey, target: &Target, expect: Expect, route: &Route) -> Result<Self, NoLink> {
        let config = tls::appliance_config(key, expect, Alpn::Link).map_err(|error| {
            Failure::new(
                Exit::Failed,
                "tls",
                "cannot set up TLS",
                error.to_string(),
                "this is a fault of the program; please report it",
            )
        })?;
        let addresses = resolve(target, route).await?;
        tracing::debug!(%target, ?addresses, "connecting to a reflector");
        let (socket, address) = race(target, addresses, &route.origin).await?;
        // Control messages are small and must not wait for one another.
        let _ = socket.set_nodelay(true);
        let local = socket.local_addr().map_err(|error| unreachable(target, &error))?.ip();
        let handshake = TlsConnector::from(config).connect(tls::server_name(), socket);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let presented = tls::wrong_key_in_io(&error).map(|wrong| wrong.presented);
                return Err(NoLink { presented, failure: no_handshake(target, expect, &error) });
            }
            Err(_) => return Err(silent(target).into()),
        };
        let session = stream.get_ref().1;
        let proven = tls::peer_of(session.peer_certificates()).map(|peer| peer.id());
        let (Some(reflector), Some(Alpn::Link)) = (proven, Alpn::of(session.alpn_protocol())) else {
            return Err(no_reflector(target, "it does not speak pp-link/1").into());
        };
        tracing::debug!(%address, %reflector, "link open");
        Ok(Self { framed: Framed::new(stream), target: target.to_string(), address, local, reflector })
    }

    /// The address that answered.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Our own address on the way there.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The proven identity.
    pub fn reflector(&self) -> EndpointId {
        self.reflector
    }

    /// Proves to know the code's secret, and has the reflector prove it back.
    pub async fn pair(mut self, own: EndpointId, code: &PairingCode, name: &str) -> Result<Paired, Failure> {
        let exporter = self.exporter(PAIRING_EXPORTER_LABEL, None)?;
        let ends = Ends { reflector: self.reflector, appliance: own };
        let proof = code.appliance_proof(&exporter, &ends);
        self.send(&ToReflector::Pair { versions: vec![PROTOCOL_VERSION], proof, name: PeerText::new(name) }).await?;
        match self.answer().await? {
            ToAppliance::Paired { proof, name } if proof == code.reflector_proof(&exporter, &ends) => {
                self.close("paired").await;
                Ok(Paired { reflector: ends.reflector, name })
            }
            ToAppliance::Paired { .. } => Err(Failure::new(
                Exit::Denied,
                "wrong_code",
                format!("the reflector at {} could not prove that it knows the code", self.target),
                "its answer does not fit this code",
                "run `reflector pair` on the reflector you mean, and enter the new code",
            )),
            ToAppliance::NotPaired => Err(Failure::new(
                Exit::Denied,
                "wrong_code",
                format!("the reflector at {} did not accept the code", self.target),
                "the code is wrong, used, expired or revoked, or five wrong ones came from this network",
                "run `reflector pair` there again and enter the new code; after five wrong ones, wait ten minutes",
            )),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Says hello as a paired device.
    pub async fn hello(&mut self) -> Result<Welcome, Failure> {
        let software = PeerText::new(env!("CARGO_PKG_VERSION"));
        let features = Feature::own();
        self.send(&ToReflector::Hello { versions: vec![PROTOCOL_VERSION], software, features }).await?;
        match self.answer().await? {
            ToAppliance::Welcome(welcome) => Ok(welcome),
            ToAppliance::NotPaired => Err(Failure::new(
                Exit::Denied,
                "not_paired",
                format!("the reflector at {} does not know this device", self.target),
                "this device was never paired with it, or was removed",
                "run `reflector pair` there, then `packetparamedic pair-reflector` here",
            )),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How the reflector's host is.
    pub async fn facts(&mut self) -> Result<HostFacts, Failure> {
        self.send(&ToReflector::Facts).await?;
        match self.answer().await? {
            ToAppliance::Facts(facts) => Ok(facts),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks for a session and waits its turn where `wait` says so, as long as `limits` allow; `queued` hears of each place
    /// and expected wait. `None`: `cancelled` was done first, and the request is withdrawn.
    pub async fn request(
        &mut self,
        spec: &TestSpec,
        wait: bool,
        mut limits: QueueWait,
        mut queued: impl FnMut(u32, Duration) + Send,
        cancelled: impl Future<Output = ()> + Send,
    ) -> Result<Option<Grant>, Failure> {
        let mut cancelled = std::pin::pin!(cancelled);
        self.send(&ToReflector::Request { spec: spec.clone(), wait }).await?;
        loop {
            let (until, why) = limits.deadline();
            let message = tokio::select! {
                message = tokio::time::timeout_at(until.into(), self.listen()) => match message {
                    Ok(message) => message?,
                    Err(_) => return Err(given_up(&self.target, why)),
                },
                () = &mut cancelled => {
                    let withdraw = self.framed.send(&ToReflector::Withdraw);
                    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, withdraw).await;
                    self.close("cancelled").await;
                    return Ok(None);
                }
            };
            let now = Instant::now();
            limits.heard(now);
            match message {
                ToAppliance::Granted(grant) => return Ok(Some(grant)),
                ToAppliance::Queued { place, expected_wait_ms } => {
                    limits.queued_at(place, now);
                    queued(place, Duration::from_millis(expected_wait_ms));
                }
                ToAppliance::Denied(denial) => return Err(denied(&self.target, &denial)),
                ToAppliance::Ping => self.send(&ToReflector::Pong).await?,
                ToAppliance::Pong | ToAppliance::Unknown => {}
                other => return Err(self.unexpected(&other)),
            }
            // Messages without end earn no more time.
            if let Some(why) = limits.given_up(Instant::now()) {
                return Err(given_up(&self.target, why));
            }
        }
    }

    /// The keys of a granted session.
    pub fn session_keys(&self, session: SessionId) -> Result<SessionKeys, Failure> {
        let secret = self.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()))?;
        Ok(SessionKeys::derive(session, secret.into()))
    }

    fn exporter(&self, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], Failure> {
        self.framed.stream().get_ref().1.export_keying_material([0; 32], label, context).map_err(|error| {
            Failure::new(
                Exit::Failed,
                "tls",
                "cannot derive keys",
                error.to_string(),
                "this is a fault of the program; please report it",
            )
        })
    }

    /// The next message that is not a heartbeat, within the time that an answer may take.
    async fn answer(&mut self) -> Result<ToAppliance, Failure> {
        let next = async {
            loop {
                match self.listen().await? {
                    ToAppliance::Ping => self.send(&ToReflector::Pong).await?,
                    ToAppliance::Pong | ToAppliance::Unknown => {}
                    message => return Ok(message),
                }
            }
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, next).await {
            Ok(answer) => answer,
            Err(_) => Err(given_up(&self.target, GiveUp::NoAnswer)),
        }
    }

    /// The next message as it comes. Safe to drop at any time and call again.
    pub async fn listen(&mut self) -> Result<ToAppliance, Failure> {
        match self.framed.receive::<ToAppliance>().await {
            Ok(Some(ToAppliance::Close { reason, detail })) => Err(closed(&self.target, reason, &detail)),
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(gone(&self.target, "it closed the link")),
            Err(LinkError::Io(error)) => Err(gone(&self.target, in_words(&error))),
            Err(error @ (LinkError::Torn | LinkError::Frame(_))) => Err(gone(&self.target, error.to_string())),
        }
    }

    /// Sends one message; a reflector that takes nothing for too long is gone.
    pub async fn send(&mut self, message: &ToReflector) -> Result<(), Failure> {
        match tokio::time::timeout(END_AFTER_SILENCE, self.framed.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(LinkError::Io(error))) => Err(gone(&self.target, in_words(&error))),
            Ok(Err(error)) => Err(gone(&self.target, error.to_string())),
            Err(_) => Err(silent_link(&self.target, END_AFTER_SILENCE)),
        }
    }

    /// Says goodbye; best effort, and quick.
    pub async fn close(&mut self, reason: &str) {
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, async {
            let _ = self.framed.send(&ToReflector::Close { reason: PeerText::new(reason) }).await;
            let _ = self.framed.finish().await;
        })
        .await;
    }

    /// Gives a granted session back without a test; best effort, and quick.
    pub async fn finish(&mut self) {
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.framed.send(&ToReflector::Finish)).await;
        self.close("done").await;
    }

    /// The failure of a session of which nothing was heard for too long.
    pub fn lost_in_silence(&self) -> Failure {
        silent_link(&self.target, END_AFTER_SILENCE)
    }

    /// The failure of a session that the reflector ended.
    pub fn ended(&self, reason: EndReason, detail: &PeerText) -> Failure {
        let (code, exit, advice) = match reason {
            EndReason::BytesPerDay => {
                ("bytes_per_day", Exit::Busy, "try again tomorrow, or raise max_bytes_per_day there")
            }
            EndReason::PeerRemoved => ("not_paired", Exit::Denied, "pair again: `reflector pair` there"),
            EndReason::Shutdown => ("draining", Exit::Busy, "try again when it serves again"),
            _ => ("session_ended", Exit::Failed, "try again; the reflector's log says more"),
        };
        let what = format!("the reflector at {} ended the test", self.target);
        Failure::new(exit, code, what, detail.to_string(), advice)
    }

    fn unexpected(&self, message: &ToAppliance) -> Failure {
        let because = match message {
            ToAppliance::Ended { detail, .. } => format!("it ended the session: {detail}"),
            _ => "it answered with a message that does not belong here".to_owned(),
        };
        Failure::new(
            Exit::Failed,
            "protocol",
            format!("cannot understand the reflector at {}", self.target),
            because,
            "are both programs of the same version?",
        )
    }
}

/// All addresses of a target, families interleaved, IPv6 first (RFC 8305, section 4).
pub(crate) async fn resolve(target: &Target, route: &Route) -> Result<Vec<SocketAddr>, Failure> {
    let found = tokio::net::lookup_host((target.host.to_string(), target.port)).await.map_err(|error| {
        Failure::new(
            Exit::Failed,
            "name_not_resolved",
            format!("cannot find the host {}", target.host),
            error.to_string(),
            "is the name spelled right, and does DNS work here?",
        )
    })?;
    let (six, four): (Vec<_>, Vec<_>) = found.filter(|at| route.allows(at.ip())).partition(SocketAddr::is_ipv6);
    let longest = six.len().max(four.len());
    let turns = (0..longest).flat_map(|at| [six.get(at), four.get(at)]).flatten();
    let mut addresses = Vec::new();
    for address in turns.take(16) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    if addresses.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "name_not_resolved",
            format!("cannot find the host {}", target.host),
            "it has no address of the IP family that was asked for",
            "leave -4, -6 or -B out",
        ));
    }
    Ok(addresses)
}

/// The first address that accepts, each given a head start before the next one (RFC 8305, section 5).
async fn race(
    target: &Target,
    addresses: Vec<SocketAddr>,
    origin: &Origin,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut rest = addresses.into_iter();
    let mut tries = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let mut more = false;
        if let Some(address) = rest.next() {
            more = true;
            let origin = origin.clone();
            tries.spawn(async move {
                let connected = tokio::time::timeout(CONNECT, connect_from(&origin, address)).await;
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
            None => return Err(unreachable(target, &last)),
        }
    }
}

async fn connect_from(origin: &Origin, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    origin.bind(&socket, address)?;
    socket.connect(address).await
}

fn unreachable(target: &Target, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        "unreachable",
        format!("cannot reach reflector at {target}"),
        in_words(error),
        format!("is `reflector serve` running there, is TCP {} open?", target.port),
    )
}

fn no_handshake(target: &Target, expect: Expect, error: &io::Error) -> Failure {
    if let Some(wrong) = tls::wrong_key_in_io(error) {
        let presented = wrong.presented;
        return match expect {
            Expect::ExactKey(_) => Failure::new(
                Exit::Denied,
                "key_changed",
                format!("the reflector at {target} has another key than the one that was paired"),
                format!("it shows {presented}"),
                "if its identity was rotated on purpose, pair again; if not, somebody may be in between",
            ),
            Expect::Pin(_) => Failure::new(
                Exit::Denied,
                "wrong_code",
                format!("the code is not one of the reflector at {target}"),
                format!("that one is {presented}"),
                "check the address, and run `reflector pair` on the reflector you mean",
            ),
        };
    }
    match error.kind() {
        io::ErrorKind::InvalidData => no_reflector(target, error.to_string()),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            Failure::new(
                Exit::Failed,
                "no_reflector",
                format!("cannot open a link with {target}"),
                "it hung up during the TLS handshake",
                "is that a reflector, and does it have room (`reflector status` there)?",
            )
        }
        _ => unreachable(target, error),
    }
}

fn no_reflector(target: &Target, because: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "no_reflector",
        format!("what answers at {target} is no reflector"),
        because,
        "check the address and the port; a reflector listens on 4000 unless told otherwise",
    )
}

fn silent(target: &Target) -> Failure {
    Failure::new(
        Exit::Failed,
        "silent",
        format!("cannot open a link with {target}"),
        "it accepted the connection and then said nothing for 10 s",
        "is that a reflector, or is a firewall in between?",
    )
}

fn silent_link(target: &str, after: Duration) -> Failure {
    Failure::new(
        Exit::Failed,
        "silent",
        format!("lost the reflector at {target}"),
        format!("nothing was heard of it for {} s", after.as_secs()),
        "is the way there still open? The reflector frees the session by itself; try again",
    )
}

/// The failure of a wait that was given up.
fn given_up(target: &str, why: GiveUp) -> Failure {
    let too_long = |because: String, try_: &str| {
        Failure::new(Exit::Busy, "busy", format!("the test did not get its turn at {target}"), because, try_)
    };
    let length = |duration: Duration| quantity::millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    match why {
        GiveUp::Silence => silent_link(target, END_AFTER_SILENCE),
        GiveUp::NoAnswer => Failure::new(
            Exit::Failed,
            "silent",
            format!("lost the reflector at {target}"),
            format!("an answer was due, and none came within {} s", ANSWER_TIMEOUT.as_secs()),
            "try again; `reflector status` and the log there say more",
        ),
        GiveUp::Stalled(stall) => too_long(
            format!("the queue there did not move for {}", length(stall)),
            "try again later, or wait regardless with a longer --wait",
        ),
        GiveUp::TooLong(longest) => too_long(
            format!("the reflector was busy for {}", length(longest)),
            "use a longer --wait, or try again later",
        ),
    }
}

fn gone(target: &str, because: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "reflector_gone",
        format!("lost the reflector at {target}"),
        because,
        "is it still running there? `reflector status` and its log say more",
    )
}

fn closed(target: &str, reason: CloseReason, detail: &PeerText) -> Failure {
    let (code, exit, advice) = match reason {
        CloseReason::Version => ("version", Exit::Failed, "bring both programs to the same version"),
        CloseReason::PeerRemoved => ("not_paired", Exit::Denied, "pair again: `reflector pair` there"),
        CloseReason::Shutdown => ("draining", Exit::Busy, "try again when it serves again"),
        CloseReason::Protocol | CloseReason::Unknown => {
            ("protocol", Exit::Failed, "are both programs of the same version?")
        }
    };
    Failure::new(exit, code, format!("the reflector at {target} closed the link"), detail.to_string(), advice)
}

fn denied(target: &str, denial: &Denial) -> Failure {
    let (code, advice) = match denial.reason {
        DenialReason::BadRequest => ("bad_request", "ask for something else; are both programs of the same version?"),
        DenialReason::EngineNotOffered => ("engine_not_offered", "choose another --engine, or update the reflector"),
        DenialReason::ModeNotOffered => {
            ("mode_not_offered", "use --data-mode tunneled, or set REFLECTOR_MODE=direct_ephemeral there")
        }
        DenialReason::TooLong => ("too_long", "ask for less with -t, or raise max_test_duration there"),
        DenialReason::TooManyStreams => ("too_many_streams", "ask for less with -P, or raise max_streams there"),
        DenialReason::AlreadyAsked => ("already_asked", "let the running test finish first"),
        DenialReason::Busy => ("busy", "leave --no-wait out to wait your turn, or try again later"),
        DenialReason::QueueFull => ("queue_full", "try again later"),
        DenialReason::TestsPerHour => ("tests_per_hour", "try again later, or raise max_tests_per_hour there"),
        DenialReason::BytesPerDay => ("bytes_per_day", "try again tomorrow, or raise max_bytes_per_day there"),
        DenialReason::NoPort => {
            ("no_port", "try again later, use --data-mode tunneled, or widen data_port_range there")
        }
        DenialReason::Draining => ("draining", "try again when it serves again"),
        DenialReason::Faulted => ("reflector_faulted", "look at `reflector status` there"),
        DenialReason::Unknown => ("denied", "the reflector is newer than this program; update it"),
    };
    let exit = if denial.reason.is_worth_a_retry() { Exit::Busy } else { Exit::Denied };
    let what = format!("the reflector at {target} did not grant the test");
    let failure = Failure::new(exit, code, what, denial.detail.to_string(), advice);
    failure.retry_after(denial.retry_after_ms)
}

/// An I/O error as a person says it.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to it".to_owned(),
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        io::ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

/// One failure of each cause, for the table in `failure`.
#[cfg(test)]
pub(crate) fn failures() -> Vec<(&'static str, Failure)> {
    use DenialReason as D;
    let target = "attic.lan".parse::<Target>().unwrap();
    let at = "attic.lan:4000";
    let key = EndpointId::from_bytes([7; 32]);
    let io = |kind: io::ErrorKind| io::Error::from(kind);
    let detail = "detail of the reflector".into();
    let mut rows = vec![
        ("unreachable", unreachable(&target, &io(io::ErrorKind::ConnectionRefused))),
        ("unreachable in the handshake", no_handshake(&target, Expect::ExactKey(key), &io(io::ErrorKind::TimedOut))),
        (
            "no TLS",
            no_handshake(&target, Expect::ExactKey(key), &io::Error::new(io::ErrorKind::InvalidData, "not TLS")),
        ),
        ("hung up", no_handshake(&target, Expect::ExactKey(key), &io(io::ErrorKind::UnexpectedEof))),
        ("no reflector", no_reflector(&target, "it does not speak pp-link/1")),
        ("silent handshake", silent(&target)),
        ("silent link", silent_link(at, Duration::from_secs(10))),
        ("no answer", given_up(at, GiveUp::NoAnswer)),
        ("silence in the queue", given_up(at, GiveUp::Silence)),
        ("stalled", given_up(at, GiveUp::Stalled(Duration::from_secs(180)))),
        ("too long", given_up(at, GiveUp::TooLong(Duration::from_secs(60)))),
        ("gone", gone(at, "it closed the link")),
    ];
    for (name, reason) in [
        ("closed: version", CloseReason::Version),
        ("closed: protocol", CloseReason::Protocol),
        ("closed: removed", CloseReason::PeerRemoved),
        ("closed: shutdown", CloseReason::Shutdown),
        ("closed: unknown", CloseReason::Unknown),
    ] {
        rows.push((name, closed(at, reason, &detail)));
    }
    for (name, reason) in [
        ("denied: bad request", D::BadRequest),
        ("denied: engine", D::EngineNotOffered),
        ("denied: mode", D::ModeNotOffered),
        ("denied: too long", D::TooLong),
        ("denied: streams", D::TooManyStreams),
        ("denied: asked", D::AlreadyAsked),
        ("denied: busy", D::Busy),
        ("denied: queue full", D::QueueFull),
        ("denied: tests per hour", D::TestsPerHour),
        ("denied: bytes per day", D::BytesPerDay),
        ("denied: no port", D::NoPort),
        ("denied: draining", D::Draining),
        ("denied: faulted", D::Faulted),
        ("denied: unknown", D::Unknown),
    ] {
        rows.push((name, denied(at, &Denial { reason, detail: detail.clone(), retry_after_ms: Some(1500) })));
    }
    rows
}
