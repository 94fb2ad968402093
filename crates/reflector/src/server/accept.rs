//! From a connection to an authenticated peer or a refusal: the door, the handshake, its time limits.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use paramedic_link::tls::{self, Alpn};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::newcomer::{Newcomer, wait_for_place};
use super::{Server, Stage, connection, data_connection};

/// The longest a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The longest a connection may take from its first byte to being somebody's: handshake and first message.
pub(super) const AUTHENTICATION: Duration = Duration::from_secs(10);
/// Connections that the kernel holds for us while we look at others.
const BACKLOG: i32 = 1024;
/// How long to wait, out of descriptors, for one that none of our own connections gives back.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_secs(1);

/// Binds TCP and UDP on each address; with port 0 both get the same free port.
pub(super) fn listen(addresses: &[SocketAddr]) -> anyhow::Result<Vec<(std::net::TcpListener, UdpSocket)>> {
    let mut listeners: Vec<(std::net::TcpListener, UdpSocket)> = Vec::new();
    for address in addresses {
        let mut wanted = *address;
        // Both families on one port, also where the kernel chose it.
        if let (0, Some((first, _))) = (wanted.port(), listeners.first()) {
            wanted.set_port(first.local_addr()?.port());
        }
        match listen_on(wanted) {
            Ok(pair) => listeners.push(pair),
            // A kernel without IPv6 still serves IPv4; an address that was named and is not there is an error.
            Err(error) if wanted.is_ipv6() && wanted.ip().is_unspecified() && is_no_family(&error) => {
                tracing::warn!(address = %wanted, %error, "this address family is not available");
            }
            Err(error) => return Err(error).with_context(|| format!("can't listen on {wanted}")),
        }
    }
    anyhow::ensure!(!listeners.is_empty(), "none of the addresses to listen on is available");
    Ok(listeners)
}

fn is_no_family(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn listen_on(address: SocketAddr) -> io::Result<(std::net::TcpListener, UdpSocket)> {
    // A free TCP port need not be free for UDP: with port 0, ask again.
    let tries = if address.port() == 0 { 16 } else { 1 };
    let mut last = None;
    for _ in 0..tries {
        let tcp = socket(address, Type::STREAM, Protocol::TCP)?;
        tcp.set_reuse_address(true)?;
        tcp.bind(&address.into())?;
        tcp.listen(BACKLOG)?;
        let bound = tcp.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let udp = socket(bound, Type::DGRAM, Protocol::UDP)?;
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

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // Each family has its own socket, so an address of the log is always the peer's real one.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Takes connections until it is dropped.
pub(super) async fn run(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let Ok(local) = listener.local_addr() else { return };
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let room = server.room.notified();
        match listener.accept().await {
            Ok((socket, from)) => {
                let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
                tokio::spawn(async move { enter(server, acceptor, socket, from, local).await });
            }
            Err(error) => {
                // Out of descriptors (or a connection that died in the queue): wait for one to come back.
                server.refuse(local.ip(), "descriptors", None);
                tracing::debug!(%error, "accept failed");
                let _ = tokio::time::timeout(OUT_OF_DESCRIPTORS, room).await;
            }
        }
    }
}

/// One connection, from the door to its end.
async fn enter(server: Arc<Server>, acceptor: TlsAcceptor, socket: TcpStream, from: SocketAddr, local: SocketAddr) {
    let from = from.ip().to_canonical();
    let Some(place) = wait_for_place(&server, from).await else {
        server.refuse(from, "too_many", None);
        reset(socket);
        return;
    };
    let begun = tokio::time::Instant::now();
    // Small messages of the control link must not wait for one another.
    let _ = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "handshake failed");
            server.refuse(from, "handshake", None);
            return;
        }
        Err(_) => {
            server.refuse(from, "slow", None);
            return;
        }
    };
    let Some((alpn, peer)) = who(&stream) else {
        server.refuse(from, "handshake", None);
        return;
    };
    let newcomer = Newcomer { stream, from, local, peer, place, deadline: begun + AUTHENTICATION };
    if *server.stage.borrow() == Stage::Stopping {
        return;
    }
    match alpn {
        Alpn::Link => connection::run(server, newcomer).await,
        Alpn::Data => data_connection::run(server, newcomer).await,
    }
}

/// The protocol that was agreed, and the key that was shown.
fn who(stream: &TlsStream<TcpStream>) -> Option<(Alpn, tls::UnverifiedPeer)> {
    let session = stream.get_ref().1;
    Some((Alpn::of(session.alpn_protocol())?, tls::peer_of(session.peer_certificates())?))
}

/// Ends a connection without an answer and without a trace in TIME_WAIT.
fn reset(socket: TcpStream) {
    let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}
