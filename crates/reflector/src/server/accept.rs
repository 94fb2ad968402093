//! Accepts connections: gives each a slot, and does its TLS handshake within a timeout.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::tls::{self, Alpn};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::bounded_socket::BoundedSocket;
use super::connection_slot::{ConnectionSlot, HandshakenConnection};
use super::{Lifecycle, Server, data_connection, handshake};
use crate::event::RefusalReason;

/// The longest time that a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time until a connection is authenticated: its handshake and its first message.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of connections that the kernel queues until the reflector accepts them.
const LISTEN_BACKLOG: i32 = 1024;
/// How long to wait before accepting again when no file descriptor is free. The wait ends earlier if a connection of
/// the reflector frees one.
const DESCRIPTOR_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the reflector cannot listen on an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// No interface of the host has the address.
    #[error("no interface of this host has the address {}", .0.ip())]
    NoSuchAddress(SocketAddr),
    /// Another socket is bound to the address and port.
    #[error("another program uses port {} on {} (TCP or UDP)", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// The kernel does not permit this user to bind the port.
    #[error("this user is not allowed to listen on {0}")]
    NotAllowed(SocketAddr),
    /// The kernel refused to bind or listen for another reason.
    #[error("cannot listen on {0}: {1}")]
    Refused(SocketAddr, io::Error),
    /// No address could be bound, because the kernel does not support their address family.
    #[error("none of the addresses to listen on is available")]
    NoneAvailable,
}

impl ListenError {
    pub(super) fn new(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(address),
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::NotAllowed(address),
            _ => Self::Refused(address, error),
        }
    }
}

/// Binds TCP and UDP on each address. With port 0, TCP and UDP get the same free port. With `freebind`, the host need
/// not have the addresses yet.
pub(super) fn listen(
    addresses: &[SocketAddr],
    freebind: bool,
) -> Result<Vec<(std::net::TcpListener, UdpSocket)>, ListenError> {
    let mut listeners: Vec<(std::net::TcpListener, UdpSocket)> = Vec::new();
    for address in addresses {
        let mut wanted = *address;
        // Both families use one port, even if the kernel chose it.
        if let (0, Some((first, _))) = (wanted.port(), listeners.first()) {
            let bound = first.local_addr().map_err(|error| ListenError::new(*address, error))?;
            wanted.set_port(bound.port());
        }
        match listen_on(wanted, freebind) {
            Ok(pair) => listeners.push(pair),
            // Without IPv6 in the kernel, IPv4 is still served; a configured address that is missing is an error.
            Err(error) if wanted.is_ipv6() && wanted.ip().is_unspecified() && is_no_family(&error) => {
                tracing::warn!(address = %wanted, %error, "this address family is not available");
            }
            Err(error) => return Err(ListenError::new(wanted, error)),
        }
    }
    if listeners.is_empty() { Err(ListenError::NoneAvailable) } else { Ok(listeners) }
}

/// Checks whether the reflector could listen on each address: binds them, and releases them at once.
pub fn check_listen(addresses: &[SocketAddr], freebind: bool) -> Result<(), ListenError> {
    listen(addresses, freebind).map(drop)
}

fn is_no_family(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn listen_on(address: SocketAddr, freebind: bool) -> io::Result<(std::net::TcpListener, UdpSocket)> {
    // A free TCP port need not be free for UDP: with port 0, try another one.
    let tries = if address.port() == 0 { 16 } else { 1 };
    let mut last = None;
    for _ in 0..tries {
        let tcp = socket(address, Type::STREAM, Protocol::TCP, freebind)?;
        tcp.set_reuse_address(true)?;
        tcp.bind(&address.into())?;
        tcp.listen(LISTEN_BACKLOG)?;
        let bound = tcp.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let udp = socket(bound, Type::DGRAM, Protocol::UDP, freebind)?;
        match udp.bind(&bound.into()) {
            Ok(()) => {
                tcp.set_nonblocking(true)?;
                return Ok((tcp.into(), udp.into()));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Creates a socket for `address`, not bound yet.
pub(super) fn socket(address: SocketAddr, kind: Type, protocol: Protocol, freebind: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // Each family has its own socket, so a logged address is always the peer's real one.
        socket.set_only_v6(true)?;
    }
    match address {
        _ if !freebind => {}
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    Ok(socket)
}

/// Accepts connections until the future is dropped.
pub(super) async fn run(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let Ok(local) = listener.local_addr() else { return };
    loop {
        let capacity = server.capacity.notified();
        if server.connection_slots.limiter().is_crowded() {
            // A connection that makes room holds its descriptor until its task has closed it. That wakes this task.
            tokio::time::timeout(DESCRIPTOR_RETRY_INTERVAL, capacity).await.ok();
            continue;
        }
        match listener.accept().await {
            Ok((socket, from)) => {
                let from = from.ip().to_canonical();
                // Decided here and not in a task of its own: refusing thousands of connections then costs no more than
                // accepting them.
                match ConnectionSlot::take(&server, from) {
                    Ok(slot) => {
                        let (server, tls) = (Arc::clone(&server), Arc::clone(&tls));
                        tokio::spawn(async move { serve_connection(server, tls, socket, from, local, slot).await });
                    }
                    Err(reason) => {
                        server.refuse(from, reason, None);
                        reset(socket);
                    }
                }
            }
            Err(error) => {
                // Out of descriptors, or the queued connection has already failed: wait for a free descriptor.
                server.refuse(local.ip(), RefusalReason::Descriptors, None);
                tracing::debug!(%error, "accept failed");
                tokio::time::timeout(DESCRIPTOR_RETRY_INTERVAL, capacity).await.ok();
            }
        }
    }
}

/// Serves one connection from its acceptance to its end.
async fn serve_connection(
    server: Arc<Server>,
    tls: Arc<rustls::ServerConfig>,
    socket: TcpStream,
    from: IpAddr,
    local: SocketAddr,
    slot: ConnectionSlot,
) {
    let begun = tokio::time::Instant::now();
    // Small messages of the link are sent without delay.
    socket.set_nodelay(true).ok();
    let shake_hands = async {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), BoundedSocket::new(socket)).await?;
        slot.progressed();
        hello.into_stream(tls).await
    };
    let accept = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands);
    let reason = match slot.while_held(accept).await {
        Some(Ok(Ok(stream))) => match protocol_and_peer(&stream) {
            Some((alpn, peer)) => {
                server.counts.note_handshake(alpn);
                slot.progressed();
                let connection =
                    HandshakenConnection { stream, from, local, peer, slot, deadline: begun + AUTHENTICATION_TIMEOUT };
                if *server.lifecycle.borrow() == Lifecycle::Stopping {
                    return;
                }
                return match alpn {
                    Alpn::Link => handshake::run(server, connection).await,
                    Alpn::Data => data_connection::run(server, connection).await,
                };
            }
            None => RefusalReason::Handshake,
        },
        Some(Ok(Err(error))) => {
            tracing::debug!(%from, %error, "handshake failed");
            RefusalReason::Handshake
        }
        Some(Err(_)) => RefusalReason::Slow,
        None => RefusalReason::MadeWay,
    };
    server.refuse(from, reason, None);
}

/// The protocol that the handshake negotiated, and the key that the client presented.
fn protocol_and_peer(stream: &TlsStream<BoundedSocket>) -> Option<(Alpn, tls::UnverifiedPeer)> {
    let session = stream.get_ref().1;
    Some((Alpn::of(session.alpn_protocol())?, tls::peer_of(session.peer_certificates())?))
}

/// Closes a connection with a reset: the client gets no answer, and no socket stays in TIME_WAIT.
fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).ok();
}
