//! Requests to a web server, as the probes of a monitor. Does I/O: sockets.

use std::io;
use std::sync::Arc;

use hyper::StatusCode;
use paramedic_engines::echo::ProbeAnswer;

use super::carriers::{ProbeCarrier, Tries};
use crate::app::web_client::{WebClient, WebFault, WebRequest};
use crate::monitor::http_url::HttpUrl;
use crate::monitor::open_probes::LOST_AFTER;

/// Probes a web server by requesting a page. The round trip is the time from the start of the name resolution to the
/// header of the answer.
pub(super) struct HttpCarrier {
    client: Arc<WebClient>,
    tries: Tries,
}

/// Why a request for a page failed.
#[derive(Debug, thiserror::Error)]
enum HttpFault {
    #[error(transparent)]
    NoAnswer(#[from] WebFault),
    #[error("the server answered {0}")]
    Server(StatusCode),
}

impl HttpCarrier {
    /// Creates a carrier that probes `url`. Fails if the URL is `https` and this host trusts no certificate authority.
    pub(super) fn open(url: &HttpUrl) -> io::Result<Self> {
        Ok(Self { client: Arc::new(WebClient::open(url)?), tries: Tries::default() })
    }
}

impl ProbeCarrier for HttpCarrier {
    fn send(&mut self, seq: u32) {
        let client = Arc::clone(&self.client);
        self.tries.begin(seq, async move {
            let answered = tokio::time::timeout(LOST_AFTER, request_page(&client)).await;
            match answered {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => {
                    tracing::debug!(url = %client.url(), %error, "a request failed");
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

/// Requests the page. Follows no redirect, and reads nothing after the header of the answer. A server error (5xx) is a
/// failure.
async fn request_page(client: &WebClient) -> Result<StatusCode, HttpFault> {
    let status = client.send(WebRequest::default()).await?.status;
    if status.is_server_error() { Err(HttpFault::Server(status)) } else { Ok(status) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

    use super::*;

    /// A server that sends `answer` to each request and then closes the connection. Returns its address, and the
    /// requests that it reads.
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
                    // A TLS handshake does not end with an empty line, so only its first bytes are read.
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
        let client = WebClient::trusting(&url, RootCertStore::empty()).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(20), request_page(&client)).await.unwrap()
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
            assert!(matches!(fault, HttpFault::NoAnswer(WebFault::Answer(_))), "{fault}");
        }
        // A server without TLS, and a port without a listener.
        let (address, _requests) = server(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
        assert!(matches!(request("https", address).await, Err(HttpFault::NoAnswer(WebFault::Connection(_)))));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(request("http", closed).await, Err(HttpFault::NoAnswer(WebFault::Connection(_)))));
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
        let client = |roots| WebClient::trusting(&url, roots).unwrap();
        let mut trusting = RootCertStore::empty();
        trusting.add(certificate()).unwrap();
        let fault = request_page(&client(RootCertStore::empty())).await.unwrap_err();
        assert!(fault.to_string().contains("certificate"), "{fault}");
        assert_eq!(request_page(&client(trusting)).await.unwrap(), StatusCode::NO_CONTENT);
        served.join().unwrap();
    }
}
