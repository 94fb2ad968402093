//! The TLS handshake of a link. If nothing comes back, it is repeated with small segments, because a path may drop large
//! packets without ICMP (a black hole; RFC 2923, section 2.1). Shell: sockets and the clock.

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

/// How long the handshake may take, repetitions included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time without an answer the handshake is repeated beside the running one. The kernel sends a lost segment
/// about four times within it, so that random loss rarely looks like a black hole.
const REPEAT_AFTER: Duration = Duration::from_secs(2);
/// The segment sizes of the repetitions: the first fits IPv6's smallest MTU of 1280 bytes (RFC 8200, section 5), the second
/// is TCP's default (RFC 9293, section 3.7.1).
const SMALL_SEGMENTS: [u16; 2] = [1220, 536];

/// A connection whose handshake is complete.
pub(crate) struct Handshaken {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The segment size in bytes to which it had to be limited.
    pub(crate) segment_limit: Option<u16>,
}

/// Why a handshake was not completed.
pub(crate) enum HandshakeFailure {
    /// The other end or this one refused.
    Refused(io::Error),
    /// Nothing came back for this time, with small segments neither.
    NoAnswer(Duration),
}

/// Connects from `origin`, with segments of at most `segment_limit` bytes in both directions.
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

/// Does the handshake over `socket`, which is connected to `address`, and repeats it over further connections as long as
/// nothing comes back. The first one that is answered decides.
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
            // A reflector hangs up on a client that it does not hear. The other tries go on.
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

/// Whether the failure is due to what the other end sent. Every error of TLS is `InvalidData`.
fn is_answer(failure: &io::Error) -> bool {
    failure.kind() == io::ErrorKind::InvalidData
}
