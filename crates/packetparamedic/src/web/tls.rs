//! TLS of the listener, with the certificate and the key of two files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why the listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFilesError {
    /// A file cannot be read, or lacks its certificate or key.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The key is not that of the certificate, or neither can be used.
    #[error("the certificate and the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Answers TLS 1.3 handshakes with the certificates (the server's own first) and the key of these PEM files.
pub(crate) fn acceptor(certificates: &Path, key: &Path) -> Result<TlsAcceptor, TlsFilesError> {
    let failed = |path: &Path, error: pem::Error| {
        let source = match error {
            pem::Error::Io(source) => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        };
        TlsFilesError::File { path: path.to_owned(), source }
    };
    let chain = CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| failed(certificates, error))?;
    if chain.is_empty() {
        return Err(failed(certificates, pem::Error::NoItemsFound));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, secret)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}
