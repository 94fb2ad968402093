//! Answers `GET /metrics` with the state of the server, for Prometheus. Off unless `metrics_listen` is set. Whatever the
//! clients do, few connections are open, each for a short time, and few are accepted in a second: tests must not notice.

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

/// The most connections at once. The kernel queues further ones.
const MAX_CONNECTIONS: usize = 8;
/// The longest time of a connection, from its acceptance to its end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection counts at least, so that a client that asks in a loop takes no processor time from tests: 32 are
/// accepted in a second, on average.
const MIN_SLOT_TIME: Duration = Duration::from_millis(250);
/// Connections that the kernel queues until they are accepted.
const LISTEN_BACKLOG: i32 = 16;
/// The most bytes of a request's line and headers together; hyper's smallest buffer.
const MAX_REQUEST_BYTES: usize = 8192;
/// How long a text is served again, for the same reason.
const TEXT_LIFETIME: Duration = Duration::from_secs(1);
/// How long to wait without a free descriptor, if none of the reflector's connections frees one.
const DESCRIPTOR_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsListenError {
    /// On an address.
    #[error(transparent)]
    Address(#[from] ListenError),
    /// On a unix socket.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
}

/// A bound listener.
#[derive(Debug)]
pub(super) enum MetricsListener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixSocket, String),
}

impl MetricsListener {
    /// Binds what the configuration names; `None` if that is nothing.
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

    /// Where a client finds the metrics.
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

/// Answers until the future is dropped.
pub(super) async fn run(server: Arc<Server>, listener: MetricsListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let text = Arc::new(CachedText::default());
    loop {
        // Before the connection is accepted, so that it takes no descriptor while it waits.
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

/// Serves one connection: one request, whatever the client wants.
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
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics::CONTENT_TYPE, text()),
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

/// The metrics as they were at most [`TEXT_LIFETIME`] ago.
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
        let text = metrics::text(status::read(server));
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
