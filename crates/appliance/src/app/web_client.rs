//! Sends a single request to a web server. Follows no redirect, and reads the answer only up to a limit. Does I/O:
//! sockets.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use paramedic_engines::origin::Origin;
use paramedic_host::version::VERSION;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::connection_words::io_words;
use crate::error::ApplianceError;
use crate::monitor::http_url::HttpUrl;
use crate::reflector_client::{Route, race, resolve};
use crate::targets::Host;

/// The maximum length of an answer's header, in bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The maximum number of bytes that are read from a connection. This also limits the overhead of TLS, and the interim
/// answers that can precede the answer (RFC 9110, section 15.2).
const MAX_READ_BYTES: u64 = 256 * 1024;

/// A client for one URL. It opens a new connection for each request.
pub(super) struct WebClient {
    url: HttpUrl,
    /// The TLS connector, and the name that the certificate of the server must contain; `None` if the URL is not
    /// `https`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A request to the URL of a [`WebClient`].
#[derive(Default)]
pub(super) struct WebRequest {
    pub(super) method: Method,
    /// The headers that are sent in addition to those that every request has.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The answer of a web server: its status and its headers. The body is not read.
pub(super) struct WebAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// Why a request got no answer. No error text contains the path of the URL, because the path may be secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebFault {
    #[error(transparent)]
    Resolution(#[from] ApplianceError),
    #[error("{}", io_words(.0))]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Answer(#[from] hyper::Error),
}

impl WebClient {
    /// A client that trusts the certificate authorities of this host. Fails if the URL is `https` and this host trusts
    /// no certificate authority.
    pub(super) fn open(url: &HttpUrl) -> io::Result<Self> {
        if url.is_https() { Self::trusting(url, system_roots()?) } else { Ok(Self { url: url.clone(), tls: None }) }
    }

    /// A client for `url` that trusts only the certificate authorities in `roots`.
    pub(super) fn trusting(url: &HttpUrl, roots: RootCertStore) -> io::Result<Self> {
        let tls = if url.is_https() { Some((connector(roots)?, server_name(url)?)) } else { None };
        Ok(Self { url: url.clone(), tls })
    }

    /// The URL to which this client sends requests.
    pub(super) fn url(&self) -> &HttpUrl {
        &self.url
    }

    /// Sends a request, and reads the header of its answer.
    pub(super) async fn send(&self, request: WebRequest) -> Result<WebAnswer, WebFault> {
        let addresses = resolve(self.url.server(), &Route::default()).await?;
        let (stream, _) = race(addresses, &Origin::default()).await?;
        stream.set_nodelay(true)?;
        let (reading, writing) = stream.into_split();
        let stream = tokio::io::join(reading.take(MAX_READ_BYTES), writing);
        match &self.tls {
            Some((connector, name)) => self.exchange(connector.connect(name.clone(), stream).await?, request).await,
            None => self.exchange(stream, request).await,
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        request: WebRequest,
    ) -> Result<WebAnswer, WebFault> {
        let mut connecting = http1::Builder::new();
        connecting.max_buf_size(MAX_HEADER_BYTES);
        let (mut sender, connection) = connecting.handshake(TokioIo::new(stream)).await?;
        let WebRequest { method, headers, body } = request;
        let mut request = Request::builder()
            .method(method)
            .uri(self.url.path())
            .header(HOST, self.url.authority())
            .header(USER_AGENT, format!("packetparamedic/{VERSION}"))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        request.headers_mut().extend(headers);
        let mut answer = pin!(async {
            let (head, _) = sender.send_request(request).await?.into_parts();
            Ok::<_, WebFault>(WebAnswer { status: head.status, headers: head.headers })
        });
        let mut connection = pin!(connection);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end right after the answer was read.
            _ = &mut connection => answer.await,
        }
    }
}

/// A connector for TLS 1.3 that trusts the certificate authorities in `roots`.
fn connector(roots: RootCertStore) -> io::Result<TlsConnector> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// The certificate authorities that this host trusts.
pub(super) fn system_roots() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let cause = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        let text = format!("this host trusts no certificate authority{cause}; install the package ca-certificates");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(roots)
}

fn server_name(url: &HttpUrl) -> io::Result<ServerName<'static>> {
    match &url.server().host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(io::Error::other),
        Host::V4(address) => Ok(ServerName::IpAddress(std::net::IpAddr::from(*address).into())),
        Host::V6 { address, .. } => Ok(ServerName::IpAddress(std::net::IpAddr::from(*address).into())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
    use tokio::net::TcpListener;

    use super::*;

    /// Starts a server that sends `interim` interim answers of about 8 KiB each before the final answer. Returns the
    /// status that the client gets.
    async fn status_after(interim: usize) -> Result<StatusCode, WebFault> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = HttpUrl::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufStream::new(stream);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(8000));
            let answer = hint.repeat(interim) + "HTTP/1.1 204 No Content\r\n\r\n";
            // The client may close before it has read everything.
            stream.write_all(answer.as_bytes()).await.ok();
            stream.flush().await.ok();
            stream.read_to_end(&mut Vec::new()).await.ok();
        });
        let answer = WebClient::open(&url).unwrap().send(WebRequest::default()).await;
        server.await.unwrap();
        answer.map(|answer| answer.status)
    }

    #[tokio::test]
    async fn interim_answers_are_read_up_to_a_limit() {
        assert_eq!(status_after(2).await.unwrap(), StatusCode::NO_CONTENT);
        let refused = status_after(1000).await.unwrap_err();
        assert!(matches!(refused, WebFault::Answer(_)), "{refused}");
    }
}
