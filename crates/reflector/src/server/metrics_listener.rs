//! Serves `GET /metrics` for Prometheus. Off unless `metrics_listen` is set. Limits the connections of its clients in
//! number, duration and rate, so that they do not disturb tests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use paramedic_host::unix_socket::{UnixSocket, UnixSocketError};
use socket2::{Protocol, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::accept::{self, ListenError};
use super::{Server, lock, status};
use crate::config::MetricsListen;
use crate::metrics;

/// The number of connections that are served at once. The kernel queues further ones.
const MAX_CONNECTIONS: usize = 8;
/// The longest time from the acceptance of a connection to its end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time for which a connection occupies its slot. This limits clients to 32 connections per second on
/// average, so that a client that polls in a loop takes little processor time from tests.
const MIN_SLOT_TIME: Duration = Duration::from_millis(250);
/// The number of connections that the kernel queues until they are accepted.
const LISTEN_BACKLOG: i32 = 16;
/// The size limit of the request line and headers, in bytes: hyper's smallest buffer.
const MAX_REQUEST_BYTES: usize = 8192;
/// How long the text of the metrics is reused. The reuse limits the processor time that requests take.
const TEXT_LIFETIME: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when no file descriptor is free. The wait ends earlier if a connection of
/// the reflector frees one.
const DESCRIPTOR_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsListenError {
    /// The TCP address cannot be bound.
    #[error(transparent)]
    Address(#[from] ListenError),
    /// The Unix socket cannot be created.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
}

/// A bound listener for the metrics.
#[derive(Debug)]
pub(super) enum MetricsListener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixSocket, String),
}

impl MetricsListener {
    /// Binds the address or the Unix socket that the configuration names; `None` if metrics are off.
    pub(super) fn bind(listen: &MetricsListen) -> Result<Option<Self>, MetricsListenError> {
        match listen {
            MetricsListen::Off => Ok(None),
            MetricsListen::Address(address) => {
                let bound = bind_tcp(*address).map_err(|error| ListenError::new(*address, error))?;
                Ok(Some(Self::Tcp(bound.0, bound.1)))
            }
            MetricsListen::Socket(path) => Ok(Some(Self::Unix(UnixSocket::bind(path)?, path.display().to_string()))),
        }
    }

    /// The address or path at which clients find the metrics.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Tcp(_, address) => format!("http://{address}/metrics"),
            Self::Unix(_, path) => format!("unix:{path}"),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = accept::socket(address, Type::STREAM, Protocol::TCP, false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket.into())?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Answers requests for the metrics until the future is dropped.
pub(super) async fn run(server: Arc<Server>, listener: MetricsListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let text = Arc::new(CachedText::default());
    loop {
        // A connection is accepted only when a slot is free, so that it takes no descriptor while it waits.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let capacity = server.capacity.notified();
        let (server_of_connection, text) = (Arc::clone(&server), Arc::clone(&text));
        let accepted = match &listener {
            MetricsListener::Tcp(listener, _) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(serve(server_of_connection, text, stream, slot));
            }),
            MetricsListener::Unix(socket, _) => socket.accept().await.map(|stream| {
                tokio::spawn(serve(server_of_connection, text, stream, slot));
            }),
        };
        if let Err(error) = accepted {
            tracing::debug!(%error, "the metrics listener can't accept");
            tokio::time::timeout(DESCRIPTOR_RETRY_INTERVAL, capacity).await.ok();
        }
    }
}

/// Serves one connection: answers one request, then closes it.
async fn serve<S>(server: Arc<Server>, text: Arc<CachedText>, stream: S, slot: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(|request: Request<Incoming>| {
        let response = respond(&request, || text.current(&server));
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).half_close(true).max_buf_size(MAX_REQUEST_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), answer);
    let served = async {
        match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a client of the metrics sent no request, or went away"),
            Err(_) => tracing::debug!("a client of the metrics was too slow"),
        }
    };
    tokio::join!(served, tokio::time::sleep(MIN_SLOT_TIME));
    drop(slot);
}

/// The response to a request. `text` returns the metrics.
fn respond<B>(request: &Request<B>, text: impl FnOnce() -> String) -> Response<String> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics::content_type(), text()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "text/plain", "the metrics are at /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The text of the metrics, reused for [`TEXT_LIFETIME`].
#[derive(Default)]
struct CachedText(Mutex<Option<(Instant, String)>>);

impl CachedText {
    fn current(&self, server: &Server) -> String {
        let mut cached = lock(&self.0);
        if let Some((at, text)) = &*cached
            && at.elapsed() < TEXT_LIFETIME
        {
            return text.clone();
        }
        let text = metrics::text(&status::read(server));
        *cached = Some((Instant::now(), text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_of_the_one_path_is_answered_with_metrics() {
        let response = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            respond(&request, || "metrics".to_owned())
        };
        for path in ["/metrics", "/metrics?name=value"] {
            let answer = response(Method::GET, path);
            assert_eq!((answer.status(), answer.body().as_str()), (StatusCode::OK, "metrics"));
        }
        for path in ["/", "/metrics/", "/Metrics", "//metrics", "http://example.org/other"] {
            assert_eq!(response(Method::GET, path).status(), StatusCode::NOT_FOUND, "{path}");
        }
        for method in [Method::POST, Method::HEAD, Method::OPTIONS, Method::CONNECT, Method::DELETE] {
            let answer = response(method, "/metrics");
            assert_eq!(
                (answer.status(), answer.headers()[ALLOW].as_bytes()),
                (StatusCode::METHOD_NOT_ALLOWED, &b"GET"[..])
            );
        }
    }
}
