//! Accepts the connections of the API and serves HTTP on them. A client can hold only a few connections, and must
//! complete each request within seconds. The service aborts an answer that the client does not read.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use paramedic_host::unix_socket::UnixSocket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use crate::network::{IpNetwork, user_part};

/// The maximum number of connections of a listener at once.
const MAX_CONNECTIONS: usize = 64;
/// The maximum number of connections from one address at once. An IPv6 /64 network counts as one address. The limit
/// does not apply to loopback addresses and trusted proxies.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 16;
/// The timeout for the TLS handshake, for the request line and headers, and for a connection without a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of a request's line and headers together, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a write of an answer may wait for the client to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The wait before the listener accepts again, after it could not accept a connection.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The answer to a connection that would exceed the maximum number of connections.
const NO_PLACE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Where a request comes from, as reported by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestSource {
    /// A user of this host, through the unix socket. The kernel lets only root, the service's user and the socket's
    /// group connect.
    User { uid: u32 },
    /// A client at an IP address, through a TCP listener.
    Address { peer: SocketAddr, local: SocketAddr, is_tls: bool },
}

impl RequestSource {
    /// Whether the request came through the unix socket. Only such a request may change which programs this host runs,
    /// or import a key for this device.
    pub(super) fn is_on_this_host(self) -> bool {
        matches!(self, Self::User { .. })
    }
}

/// A bound listener of the API.
pub(crate) enum ApiListener {
    /// A listener on a unix socket.
    Unix(UnixSocket),
    /// A TCP listener, with TLS or without.
    Tcp(TcpListener, Option<TlsAcceptor>),
}

impl ApiListener {
    /// Accepts connections until `stopping` becomes true; then ends when the last answer has ended.
    pub(super) async fn serve(self, app: Router, proxies: Vec<IpNetwork>, mut stopping: watch::Receiver<bool>) {
        let places = Arc::new(Mutex::new(ConnectionPlaces::default()));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                // The sender lives as long as the process, so this wait does not fail.
                _ = stopping.wait_for(|wanted| *wanted) => break,
            };
            let (stream, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "the API cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                    continue;
                }
            };
            let tls = match &self {
                Self::Tcp(_, tls) => tls.clone(),
                Self::Unix(_) => None,
            };
            let Some(place) = HeldPlace::take(&places, limited_address(&source, &proxies)) else {
                // No TLS client reads an answer before its handshake.
                if tls.is_none() {
                    stream.refuse();
                }
                continue;
            };
            let (app, stopping) = (app.clone(), stopping.clone());
            connections.spawn(async move {
                match tls {
                    None => serve_one(stream, WRITE_TIMEOUT, source, app, stopping).await,
                    Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve_one(stream, WRITE_TIMEOUT, source, app, stopping).await,
                        Ok(Err(error)) => tracing::debug!(%error, ?source, "a TLS handshake of the API failed"),
                        Err(_) => tracing::debug!(?source, "a TLS handshake of the API took too long"),
                    },
                }
                drop(place);
            });
        }
        drop(self);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self) -> io::Result<(ApiStream, RequestSource)> {
        match self {
            Self::Unix(socket) => {
                let stream = socket.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok((ApiStream::Unix(stream), RequestSource::User { uid }))
            }
            Self::Tcp(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                let local = stream.local_addr()?;
                // Events are small, and each must be sent at once.
                stream.set_nodelay(true)?;
                Ok((ApiStream::Tcp(stream), RequestSource::Address { peer, local, is_tls: tls.is_some() }))
            }
        }
    }
}

/// Returns the client's address, if the number of its connections is limited; `None` if only the listener's limit
/// applies.
fn limited_address(source: &RequestSource, proxies: &[IpNetwork]) -> Option<IpAddr> {
    let RequestSource::Address { peer, .. } = source else { return None };
    let address = peer.ip().to_canonical();
    let is_free = address.is_loopback() || proxies.iter().any(|network| network.contains(address));
    (!is_free).then(|| user_part(address))
}

/// The numbers of open connections of a listener: in all, and of each address.
#[derive(Default)]
struct ConnectionPlaces {
    taken: usize,
    of_address: HashMap<IpAddr, usize>,
}

impl ConnectionPlaces {
    fn take(&mut self, address: Option<IpAddr>) -> bool {
        if self.taken >= MAX_CONNECTIONS {
            return false;
        }
        if let Some(address) = address {
            let taken = self.of_address.entry(address).or_default();
            if *taken >= MAX_CONNECTIONS_PER_ADDRESS {
                return false;
            }
            *taken += 1;
        }
        self.taken += 1;
        true
    }

    fn release(&mut self, address: Option<IpAddr>) {
        self.taken = self.taken.saturating_sub(1);
        let Some(address) = address else { return };
        if let Some(taken) = self.of_address.get_mut(&address) {
            *taken -= 1;
            if *taken == 0 {
                self.of_address.remove(&address);
            }
        }
    }
}

/// An open connection that [`ConnectionPlaces`] counts. Dropping this value removes the connection from the counts.
struct HeldPlace {
    places: Arc<Mutex<ConnectionPlaces>>,
    address: Option<IpAddr>,
}

impl HeldPlace {
    fn take(places: &Arc<Mutex<ConnectionPlaces>>, address: Option<IpAddr>) -> Option<Self> {
        let is_taken = places.lock().unwrap_or_else(PoisonError::into_inner).take(address);
        is_taken.then(|| Self { places: Arc::clone(places), address })
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).release(self.address);
    }
}

/// Serves the requests of one connection, one after another. `write_timeout` is how long an answer may wait until its
/// client takes the next bytes.
async fn serve_one<S>(
    stream: S,
    write_timeout: Duration,
    source: RequestSource,
    app: Router,
    mut stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = TowerToHyperService::new(app);
    let answer = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(source);
        app.call(request)
    });
    let stream = WriteLimited { stream, limit: write_timeout, timeout: None };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(stopping.wait_for(|wanted| *wanted).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?source, "a connection of the API broke off");
    }
}

/// An accepted connection, through the unix socket or through TCP.
enum ApiStream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl ApiStream {
    /// Answers with status 503, because the maximum number of connections is reached. Does not wait: if the kernel does
    /// not accept the answer at once, the client gets no answer.
    fn refuse(self) {
        let mut unread = [0; 4096];
        // Unread bytes would make the kernel reset the connection, and the answer could be lost.
        match self {
            Self::Unix(stream) => drop((stream.try_read(&mut unread), stream.try_write(NO_PLACE))),
            Self::Tcp(stream) => drop((stream.try_read(&mut unread), stream.try_write(NO_PLACE))),
        }
    }
}

/// Evaluates the same expression for both kinds of [`ApiStream`].
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            ApiStream::Unix($inner) => $call,
            ApiStream::Tcp($inner) => $call,
        }
    };
}

impl AsyncRead for ApiStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(context))
    }
}

/// A stream whose writes fail after a time without progress, so that a client that does not read loses its connection.
struct WriteLimited<S> {
    stream: S,
    /// How long a write may wait without progress.
    limit: Duration,
    /// The timer that runs while a write waits; `None` if no write waits.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteLimited<S> {
    /// Returns `written`, the outcome of a write, or an error if the write has waited for the time `limit`.
    fn limited<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timeout = None;
            return written;
        }
        let limit = self.limit;
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timeout.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteLimited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteLimited<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(context, written)
    }

    // TLS accepts a write before the socket does, so unsent bytes can wait in a flush too.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limited(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limited(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::routing::get;
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{TlsConnector, client, server};

    use super::super::tls::acceptor;
    use super::*;

    /// Both ends of a TLS connection that buffers few bytes between them.
    async fn tls_connection() -> (server::TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/tests/tls"));
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.join(name));
        let acceptor = acceptor(&certificate, &key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        let (near, far) = tokio::io::duplex(4 * 1024);
        let name = "localhost".try_into().unwrap();
        let (server, client) = tokio::join!(acceptor.accept(near), connector.connect(name, far));
        (server.unwrap(), client.unwrap())
    }

    #[tokio::test]
    async fn an_answer_over_tls_that_nothing_reads_ends() {
        let source = RequestSource::Address {
            peer: "192.0.2.7:5000".parse().unwrap(),
            local: "192.0.2.1:8068".parse().unwrap(),
            is_tls: true,
        };
        let limit = Duration::from_millis(100);
        // TLS takes all of a small answer before the socket does, but only the start of a large one.
        for length in [16 * 1024, 1024 * 1024] {
            let app = Router::new().route("/", get(move || async move { vec![b'x'; length] }));
            let (server, mut client) = tls_connection().await;
            client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            client.flush().await.unwrap();
            let (_stop, stopping) = watch::channel(false);
            let served = serve_one(server, limit, source, app, stopping);
            // The timeout is far below the one of a connection without a request.
            assert!(tokio::time::timeout(HEAD_TIMEOUT / 2, served).await.is_ok(), "{length} bytes wait for ever");
            let mut taken = Vec::new();
            assert!(client.read_to_end(&mut taken).await.is_err(), "the answer breaks off");
            assert!(taken.len() < length, "{} of {length} bytes", taken.len());
        }
    }

    #[tokio::test]
    async fn an_answer_over_tls_that_is_read_is_complete() {
        let source = RequestSource::User { uid: 0 };
        let app = Router::new().route("/", get(|| async { vec![b'x'; 1024 * 1024] }));
        let (server, mut client) = tls_connection().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let (_stop, stopping) = watch::channel(false);
        let mut taken = Vec::new();
        let served = serve_one(server, WRITE_TIMEOUT, source, app, stopping);
        let ((), read) = tokio::join!(served, client.read_to_end(&mut taken));
        read.unwrap();
        assert!(taken.ends_with(&vec![b'x'; 1024 * 1024]), "{} bytes", taken.len());
    }

    #[test]
    fn an_address_has_some_of_the_places_and_a_proxy_all() {
        let source = |peer: &str| RequestSource::Address {
            peer: SocketAddr::new(peer.parse().unwrap(), 1),
            local: "192.0.2.1:8068".parse().unwrap(),
            is_tls: false,
        };
        let proxies = ["192.0.2.9".parse().unwrap()];
        let address = |peer| limited_address(&source(peer), &proxies);
        assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!([address("::ffff:127.0.0.1"), address("::1"), address("192.0.2.9")], [None; 3]);
        assert_eq!(limited_address(&RequestSource::User { uid: 0 }, &[]), None);
        let mut places = ConnectionPlaces::default();
        let of_one = (0..MAX_CONNECTIONS).filter(|_| places.take(address("198.51.100.1"))).count();
        assert_eq!(of_one, MAX_CONNECTIONS_PER_ADDRESS);
        let others = (0..MAX_CONNECTIONS).filter(|_| places.take(None)).count();
        assert_eq!(others, MAX_CONNECTIONS - MAX_CONNECTIONS_PER_ADDRESS);
        assert!(!places.take(address("203.0.113.1")));
        places.release(address("198.51.100.1"));
        assert!(places.take(address("203.0.113.1")) && !places.take(None));
    }

    proptest! {
        #[test]
        fn every_place_that_is_released_can_be_taken_again(steps in proptest::collection::vec((any::<bool>(), 0..3_u8), 0..400)) {
            let mut places = ConnectionPlaces::default();
            let mut held = Vec::new();
            for (takes, peer) in steps {
                let address = (peer > 0).then(|| IpAddr::from([192, 0, 2, peer]));
                if takes && places.take(address) {
                    held.push(address);
                } else if let Some(address) = held.pop() {
                    places.release(address);
                }
                prop_assert!(places.taken == held.len() && held.len() <= MAX_CONNECTIONS);
            }
            held.into_iter().for_each(|address| places.release(address));
            prop_assert!(places.taken == 0 && places.of_address.is_empty());
        }
    }
}
