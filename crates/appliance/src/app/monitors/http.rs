//! Requests to a web server, as probes of a monitor. Shell: sockets.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use paramedic_engines::echo::ProbeAnswer;
use paramedic_engines::origin::Origin;
use paramedic_host::version::VERSION;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::carriers::{ProbeCarrier, Tries};
use crate::error::ApplianceError;
use crate::monitor::http_url::HttpUrl;
use crate::monitor::open_probes::LOST_AFTER;
use crate::reflector_client::{Route, race, resolve};
use crate::targets::Host;

/// The maximum length of an answer's header, in bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Requests of one page. The time of a probe is that from the begin of the name's resolution to the header of the answer.
pub(super) struct HttpCarrier {
    page: Arc<Page>,
    tries: Tries,
}

struct Page {
    url: HttpUrl,
    /// For `https`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
enum HttpFault {
    #[error(transparent)]
    Resolution(#[from] ApplianceError),
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Answer(#[from] hyper::Error),
    #[error("the server answered {0}")]
    Server(StatusCode),
}

impl HttpCarrier {
    /// Fails if the URL is `https` and this host trusts no certificate authority.
    pub(super) fn open(url: &HttpUrl) -> io::Result<Self> {
        let tls = if url.is_https() { Some((connector(system_roots()?)?, server_name(url)?)) } else { None };
        Ok(Self { page: Arc::new(Page { url: url.clone(), tls }), tries: Tries::default() })
    }
}

impl ProbeCarrier for HttpCarrier {
    fn send(&mut self, seq: u32) {
        let page = Arc::clone(&self.page);
        self.tries.begin(seq, async move {
            let answered = tokio::time::timeout(LOST_AFTER, page.request()).await;
            match answered {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => {
                    tracing::debug!(url = %page.url, %error, "a request failed");
                    false
                }
                Err(_) => false,
            }
        });
    }

    async fn answers(&mut self) -> Vec<ProbeAnswer> {
        self.tries.answers().await
    }
}

impl Page {
    /// Requests the page. Follows no redirect, and reads nothing after the header of the answer.
    async fn request(&self) -> Result<StatusCode, HttpFault> {
        let addresses = resolve(self.url.server(), &Route::default()).await?;
        let (stream, _) = race(addresses, &Origin::default()).await?;
        stream.set_nodelay(true)?;
        let status = match &self.tls {
            Some((connector, name)) => self.ask(connector.connect(name.clone(), stream).await?).await?,
            None => self.ask(stream).await?,
        };
        if status.is_server_error() { Err(HttpFault::Server(status)) } else { Ok(status) }
    }

    async fn ask(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) -> Result<StatusCode, HttpFault> {
        let mut connecting = http1::Builder::new();
        connecting.max_buf_size(MAX_HEADER_BYTES);
        let (mut sender, connection) = connecting.handshake(TokioIo::new(stream)).await?;
        let request = Request::get(self.url.path())
            .header(HOST, self.url.authority())
            .header(USER_AGENT, format!("packetparamedic/{VERSION}"))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let mut answer = pin!(sender.send_request(request));
        let mut connection = pin!(connection);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            // The connection may end right after the answer.
            _ = &mut connection => answer.await,
        };
        Ok(answer?.status())
    }
}

/// TLS 1.3 with the certificate authorities that this host trusts.
fn connector(roots: RootCertStore) -> io::Result<TlsConnector> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

fn system_roots() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let cause = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        let text = format!("this host trusts no certificate authority (package ca-certificates){cause}");
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
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    /// A server that sends `answer` to each request, then closes the connection. Returns what it read, too.
    fn server(answer: Vec<u8>) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, (sender, requests)) = (listener.local_addr().unwrap(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut bytes = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut bytes) {
                        Ok(0) | Err(_) => break,
                        Ok(length) => request.extend(&bytes[..length]),
                    }
                    // A handshake has no such end.
                    if !request.starts_with(b"GET") {
                        break;
                    }
                }
                // The client may have closed the connection.
                stream.write_all(&answer).ok();
                if sender.send(String::from_utf8_lossy(&request).into_owned()).is_err() {
                    return;
                }
            }
        });
        (address, requests)
    }

    async fn request(scheme: &str, address: SocketAddr) -> Result<StatusCode, HttpFault> {
        let url = HttpUrl::parse(&format!("{scheme}://{address}/health?full=1")).unwrap();
        let tls = url.is_https().then(|| (connector(RootCertStore::empty()).unwrap(), server_name(&url).unwrap()));
        let page = Page { url, tls };
        tokio::time::timeout(std::time::Duration::from_secs(20), page.request()).await.unwrap()
    }

    #[tokio::test]
    async fn any_answer_but_a_failure_of_the_server_is_one() {
        for status in [200, 204, 301, 404, 429, 500, 503, 599] {
            let text = format!("HTTP/1.1 {status} x\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n");
            let (address, requests) = server(text.into_bytes());
            match request("http", address).await {
                Ok(answered) => assert_eq!((answered.as_u16(), status < 500), (status, true)),
                Err(HttpFault::Server(answered)) => assert_eq!((answered.as_u16(), status < 500), (status, false)),
                Err(other) => panic!("{status}: {other}"),
            }
            let asked = requests.recv().unwrap();
            assert!(asked.starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_a_fault() {
        let header_of_a_megabyte = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat();
        for answer in [b"".to_vec(), b"HTTP/1.1".to_vec(), b"SSH-2.0-x\r\n\r\n".to_vec(), header_of_a_megabyte] {
            let (address, _requests) = server(answer.clone());
            let fault = request("http", address).await.unwrap_err();
            assert!(matches!(fault, HttpFault::Answer(_)), "{fault}");
        }
        // A server without TLS, and a port without a listener.
        let (address, _requests) = server(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
        assert!(matches!(request("https", address).await, Err(HttpFault::Connection(_))));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(request("http", closed).await, Err(HttpFault::Connection(_))));
    }

    #[tokio::test]
    async fn a_body_without_an_end_is_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            // Ends because the client closes the connection.
            while stream.write_all(&[b'a'; 65536]).is_ok() {}
        });
        assert_eq!(request("http", address).await.unwrap(), StatusCode::OK);
        sent.join().unwrap();
    }

    #[tokio::test]
    async fn a_certificate_must_be_of_an_authority_that_this_host_trusts() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/tests/tls");
        let certificate = || CertificateDer::from_pem_file(format!("{folder}/certificate.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(format!("{folder}/key.pem")).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate()], key)
            .unwrap();
        let (server, listener) = (Arc::new(server), TcpListener::bind("127.0.0.1:0").unwrap());
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let url = HttpUrl::parse(&url).unwrap();
        let served = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let connection = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                // The first client refuses the certificate.
                if stream.read(&mut [0; 1024]).is_ok() {
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                }
            }
        });
        let page =
            |roots| Page { url: url.clone(), tls: Some((connector(roots).unwrap(), server_name(&url).unwrap())) };
        let mut trusting = RootCertStore::empty();
        trusting.add(certificate()).unwrap();
        let fault = page(RootCertStore::empty()).request().await.unwrap_err();
        assert!(fault.to_string().contains("certificate"), "{fault}");
        assert_eq!(page(trusting).request().await.unwrap(), StatusCode::NO_CONTENT);
        served.join().unwrap();
    }
}
