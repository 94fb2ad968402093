//! Describes why a connection failed, without text that the other end chose, such as the names in its certificate.
//! Pure: no I/O.

use std::error::Error;
use std::io;

use tokio_rustls::rustls::{self, CertificateError};

/// Finds the first error of TLS or of I/O among an error and its causes, and describes it; `None` if there is none.
pub(super) fn connection_words(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls_words(tls).to_owned());
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io_words(io));
        }
        next = error.source();
    }
    None
}

/// Describes an error of a socket, or the TLS error that it contains.
pub(super) fn io_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => tls_words(tls).to_owned(),
        None => error.to_string(),
    }
}

fn tls_words(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet, or the clock of this device is wrong"
            }
            CertificateError::UnknownIssuer => "this device does not trust the issuer of the server's certificate",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate is not valid for this name"
            }
            CertificateError::Revoked => "the server's certificate is revoked",
            _ => "the server's certificate is not valid",
        },
        rustls::Error::AlertReceived(_) => "the server refused the TLS connection",
        rustls::Error::PeerIncompatible(_) => "the server and this device have no TLS settings in common",
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS at this port",
        _ => "TLS failed",
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn no_text_of_a_certificate_is_repeated() {
        let certificate = |fault| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(fault));
        let named = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"geheim.example\")".to_owned()],
        };
        for (error, words) in [
            (certificate(named), "the server's certificate is not valid for this name"),
            (
                certificate(CertificateError::UnknownIssuer),
                "this device does not trust the issuer of the server's certificate",
            ),
            (io::Error::from(io::ErrorKind::ConnectionRefused), "connection refused"),
            (io::Error::other("own words"), "own words"),
        ] {
            assert_eq!(io_words(&error), words);
            assert_eq!(connection_words(&error).as_deref(), Some(words));
        }
        assert_eq!(connection_words(&std::fmt::Error), None);
    }
}
