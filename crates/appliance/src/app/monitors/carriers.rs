//! Ways to probe the target of a monitor: a session with a reflector, ICMP echo, TCP connections, or DNS queries. Does
//! I/O: sockets.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paramedic_engines::echo::{MonitorSocket, ProbeAnswer};
use paramedic_engines::origin::Origin;
use paramedic_engines::ping::PingSocket;
use paramedic_link::admission::SessionKeys;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::monitor::dns_query;
use crate::monitor::open_probes::LOST_AFTER;

/// Sends the probes of a monitor, and receives their answers.
pub(super) trait ProbeCarrier: Send {
    /// Sends the probe with the number `seq`.
    fn send(&mut self, seq: u32);

    /// Waits for the next answers, and returns at least one. Cancel safe.
    fn answers(&mut self) -> impl Future<Output = Vec<ProbeAnswer>> + Send;
}

/// Sends probes in a monitor session with a reflector.
pub(super) struct SessionCarrier {
    socket: MonitorSocket,
    readiness: UdpSocket,
}

impl SessionCarrier {
    pub(super) fn open(target: SocketAddr, keys: SessionKeys) -> io::Result<Self> {
        let socket = MonitorSocket::connect(target, Arc::new(keys), &Origin::default())?;
        let readiness = UdpSocket::from_std(socket.readiness()?)?;
        Ok(Self { socket, readiness })
    }
}

impl ProbeCarrier for SessionCarrier {
    fn send(&mut self, seq: u32) {
        self.socket.send(seq);
    }

    async fn answers(&mut self) -> Vec<ProbeAnswer> {
        read(&self.readiness, || self.socket.answers()).await
    }
}

/// Probes a host by ICMP echo, or by TCP connections if this device allows no ICMP sockets.
pub(super) enum HostCarrier {
    Ping {
        socket: PingSocket,
        readiness: UdpSocket,
        /// The number of the last probe. An ICMP echo request contains only the lower 16 bits of this number.
        last: u32,
    },
    Connections(ConnectionCarrier),
}

impl HostCarrier {
    /// Creates a carrier that probes `target`. If ICMP sockets are not allowed, it opens TCP connections to `port`
    /// instead.
    pub(super) fn open(target: SocketAddr, port: u16) -> io::Result<Self> {
        match PingSocket::connect(target) {
            Ok(socket) => {
                let readiness = UdpSocket::from_std(socket.readiness()?)?;
                Ok(Self::Ping { socket, readiness, last: 0 })
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let mut target = target;
                target.set_port(port);
                Ok(Self::Connections(ConnectionCarrier { target, tries: Tries::default() }))
            }
            Err(error) => Err(error),
        }
    }

    /// The kind of probe, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ping { .. } => "ICMP echo",
            Self::Connections(_) => "TCP connect",
        }
    }
}

impl ProbeCarrier for HostCarrier {
    fn send(&mut self, seq: u32) {
        match self {
            Self::Ping { socket, last, .. } => {
                *last = seq;
                socket.send(seq as u16);
            }
            Self::Connections(connections) => connections.send(seq),
        }
    }

    async fn answers(&mut self) -> Vec<ProbeAnswer> {
        match self {
            Self::Ping { socket, readiness, last } => {
                let last = *last;
                let answers = read(readiness, || socket.answers()).await;
                let answer = |(seq, round_trip): (u16, Duration)| ProbeAnswer {
                    // The full number of the probe: the latest one with these lower 16 bits.
                    seq: last.wrapping_sub((last as u16).wrapping_sub(seq).into()),
                    round_trip,
                    is_under_load: false,
                };
                answers.into_iter().map(answer).collect()
            }
            Self::Connections(connections) => connections.answers().await,
        }
    }
}

/// Probes a host by TCP connections. A refused connection counts as an answer too.
pub(super) struct ConnectionCarrier {
    target: SocketAddr,
    tries: Tries,
}

impl ProbeCarrier for ConnectionCarrier {
    fn send(&mut self, seq: u32) {
        let target = self.target;
        self.tries.begin(seq, async move { is_reachable(target, LOST_AFTER).await });
    }

    async fn answers(&mut self) -> Vec<ProbeAnswer> {
        self.tries.answers().await
    }
}

/// Runs probes at the same time. Each probe is a future that returns whether it was answered.
#[derive(Default)]
pub(super) struct Tries {
    running: JoinSet<Option<ProbeAnswer>>,
}

impl Tries {
    /// Begins the probe with the number `seq`.
    pub(super) fn begin(&mut self, seq: u32, probe: impl Future<Output = bool> + Send + 'static) {
        let began = Instant::now();
        self.running.spawn(async move {
            let is_answered = probe.await;
            is_answered.then(|| ProbeAnswer { seq, round_trip: began.elapsed(), is_under_load: false })
        });
    }

    /// Waits for the next answer, and returns it alone. Cancel safe.
    pub(super) async fn answers(&mut self) -> Vec<ProbeAnswer> {
        loop {
            match self.running.join_next().await {
                Some(Ok(Some(answer))) => return vec![answer],
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Probes a DNS server by queries for a name.
pub(super) struct DnsCarrier {
    socket: UdpSocket,
    name: String,
    /// The queries that are not answered yet: the number of the probe, the bytes of the query, and when it was sent.
    open: VecDeque<(u32, Vec<u8>, Instant)>,
}

impl DnsCarrier {
    pub(super) async fn open(resolver: SocketAddr, name: &str) -> io::Result<Self> {
        let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(resolver).await?;
        Ok(Self { socket, name: name.to_owned(), open: VecDeque::new() })
    }
}

impl ProbeCarrier for DnsCarrier {
    fn send(&mut self, seq: u32) {
        self.open.retain(|(.., sent)| sent.elapsed() < LOST_AFTER);
        // The low bits of a UUIDv7 are random.
        let id = Uuid::now_v7().as_u128() as u16;
        let Some(query) = dns_query::query(id, &self.name) else { return };
        // The first attempt may fail with the ICMP error of an earlier query. Then the second attempt sends the query.
        if self.socket.try_send(&query).is_err() {
            self.socket.try_send(&query).ok();
        }
        self.open.push_back((seq, query, Instant::now()));
    }

    async fn answers(&mut self) -> Vec<ProbeAnswer> {
        let mut bytes = [0; dns_query::MAX_ANSWER];
        loop {
            // An error here comes from an earlier query. Reading it clears it.
            let Ok(length) = self.socket.recv(&mut bytes).await else { continue };
            let answer = bytes.get(..length).unwrap_or_default();
            let answered = self.open.iter().position(|(_, query, _)| dns_query::is_answer(query, answer));
            if let Some((seq, _, sent)) = answered.and_then(|at| self.open.remove(at)) {
                return vec![ProbeAnswer { seq, round_trip: sent.elapsed(), is_under_load: false }];
            }
        }
    }
}

/// Whether the host answers an attempt to open a TCP connection within `timeout`, by accepting or by refusing it.
pub(super) async fn is_reachable(target: SocketAddr, timeout: Duration) -> bool {
    let refusals = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
    match tokio::time::timeout(timeout, TcpStream::connect(target)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => refusals.contains(&error.kind()),
        Err(_) => false,
    }
}

/// Whether the host accepts a TCP connection within `timeout`.
pub(super) async fn is_accepting(target: SocketAddr, timeout: Duration) -> bool {
    matches!(tokio::time::timeout(timeout, TcpStream::connect(target)).await, Ok(Ok(_)))
}

/// Waits until the socket has at least one answer, and returns all answers that have arrived. `answers` reads them from
/// the socket. The returned list is never empty.
async fn read<A>(readiness: &UdpSocket, mut answers: impl FnMut() -> Vec<A>) -> Vec<A> {
    loop {
        if readiness.readable().await.is_err() {
            // This fails only when the runtime is shutting down.
            return std::future::pending().await;
        }
        let read = readiness.try_io(Interest::READABLE, || {
            let answers = answers();
            if answers.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(answers) }
        });
        if let Ok(read) = read {
            return read;
        }
    }
}
