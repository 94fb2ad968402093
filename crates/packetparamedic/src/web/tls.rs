//! TLS for the TCP listener, with the certificate and the key from two files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why the TCP listener cannot use TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFilesError {
    /// A file cannot be read, or contains no certificate or no key.
    #[error("{}: {source}", path.display())]
    File {
        /// The path of the file that cannot be used.
        path: PathBuf,
        /// Why the file cannot be used.
        source: io::Error,
    },
    /// The key does not belong to the certificate, or one of them cannot be used.
    #[error("the certificate and the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Creates the acceptor of TLS 1.3 connections. The PEM file `certificates` contains the certificate chain, the
/// server's own certificate first. The PEM file `key` contains the private key.
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
