//! The TLS handshake of a link, with its sockets and timeouts. If no answer comes, the appliance repeats the handshake
//! with small segments: the path may drop large packets without an ICMP message (a black hole; RFC 2923, section 2.1).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use paramedic_engines::origin::Origin;
use paramedic_engines::socket::limit_segments;
use paramedic_link::tls;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

/// The longest time that the TLS handshake may take, repetitions included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time without an answer, the appliance starts a further handshake on a new connection and keeps the
/// earlier connections open. Within this time the kernel sends a lost segment about four times, so random loss rarely
/// looks like a black hole.
const REPEAT_AFTER: Duration = Duration::from_secs(2);
/// The TCP segment sizes with which the handshake is repeated, in bytes. With the headers of IPv6 and TCP (60 bytes),
/// the first fills the smallest MTU of IPv6, 1280 bytes (RFC 8200, section 5). The second is the default segment size
/// of TCP (RFC 9293, section 3.7.1).
const SMALL_SEGMENTS: [u16; 2] = [1220, 536];

/// A connection whose TLS handshake is complete.
pub(crate) struct Handshaken {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The segment size in bytes to which the connection had to be limited; `None` if it was not limited.
    pub(crate) segment_limit: Option<u16>,
}

/// Why a TLS handshake did not complete.
pub(crate) enum HandshakeFailure {
    /// The handshake failed with this error: one of the ends refused it, or the connection broke.
    Refused(io::Error),
    /// No answer came within this time, neither to ordinary segments nor to small ones.
    NoAnswer(Duration),
}

/// Connects to `address` from the local address and the network interface that `origin` names. If `segment_limit` is
/// set, segments have at most that many bytes in both directions.
pub(crate) async fn connect_from(
    origin: &Origin,
    address: SocketAddr,
    segment_limit: Option<u16>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(bytes) = segment_limit {
        limit_segments(&socket, bytes)?;
    }
    origin.bind(&socket, address)?;
    socket.connect(address).await
}

/// Does the TLS handshake over `socket`, which is connected to `address`. As long as no answer comes, repeats the
/// handshake over further connections with small segments. The first answer on any of the connections decides the
/// result.
pub(crate) async fn handshake(
    config: &Arc<ClientConfig>,
    socket: TcpStream,
    address: SocketAddr,
    origin: &Origin,
) -> Result<Handshaken, HandshakeFailure> {
    let began = Instant::now();
    let deadline = began + HANDSHAKE_TIMEOUT;
    let mut tries = JoinSet::new();
    let first = over(Arc::clone(config), socket);
    tries.spawn(async move { Ok(Handshaken { stream: first.await?, segment_limit: None }) });
    let mut smaller = SMALL_SEGMENTS.into_iter();
    let mut repeat_at = began + REPEAT_AFTER;
    loop {
        let until = if smaller.len() == 0 { deadline } else { repeat_at };
        match timeout_at(until, tries.join_next()).await {
            Ok(Some(Ok(Ok(handshaken)))) => {
                if let Some(bytes) = handshaken.segment_limit {
                    tracing::warn!(%address, bytes, "the path drops large packets: using small segments");
                }
                return Ok(handshaken);
            }
            Ok(Some(Ok(Err(error)))) if is_answer(&error) || smaller.len() == SMALL_SEGMENTS.len() => {
                return Err(HandshakeFailure::Refused(error));
            }
            // A reflector that receives nothing from a client closes the connection. The other attempts continue.
            Ok(Some(failed)) => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%address, %error, "a try of the handshake failed");
                }
            }
            Ok(None) => return Err(HandshakeFailure::NoAnswer(began.elapsed())),
            Err(_) => {
                let Some(bytes) = smaller.next() else {
                    return Err(HandshakeFailure::NoAnswer(began.elapsed()));
                };
                repeat_at += REPEAT_AFTER;
                tracing::debug!(%address, bytes, "no answer: repeating the handshake with small segments");
                let (config, origin) = (Arc::clone(config), origin.clone());
                tries.spawn(async move {
                    let socket = connect_from(&origin, address, Some(bytes)).await?;
                    Ok(Handshaken { stream: over(config, socket).await?, segment_limit: Some(bytes) })
                });
            }
        }
    }
}

async fn over(config: Arc<ClientConfig>, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // Control messages are small and must not wait for one another.
    socket.set_nodelay(true).ok();
    TlsConnector::from(config).connect(tls::server_name(), socket).await
}

/// Whether the handshake failed because of data that the other end sent. All errors of the TLS protocol have the kind
/// `InvalidData`.
fn is_answer(failure: &io::Error) -> bool {
    failure.kind() == io::ErrorKind::InvalidData
}
