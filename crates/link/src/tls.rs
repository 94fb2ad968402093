//! TLS 1.3 with raw Ed25519 keys (RFC 7250): the configurations of both ends, and functions that read the peer's key,
//! the ALPN or a wrong-key error from a handshake. An appliance accepts only the expected key. A reflector accepts any
//! key in the handshake, and then checks whether the key is paired. This file opens no connections.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::aws_lc_rs as backend;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use crate::identity::KeyGenerationError;
use crate::pairing_code::Pin;
use crate::{EndpointId, SecretKey};

/// The purpose of a TLS connection to the control port, as its ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// The control link: `pp-link/1`.
    Link,
    /// A session's data in tunneled mode: `pp-data/1`.
    Data,
}

impl Alpn {
    /// The name of this ALPN in the handshake.
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Alpn::Link => b"pp-link/1",
            Alpn::Data => b"pp-data/1",
        }
    }

    /// The purpose of a connection with this negotiated ALPN; `None` if no ALPN or an unknown one was negotiated.
    /// rustls completes a handshake with a peer that offers no ALPN, so both ends must check the ALPN after the
    /// handshake.
    pub fn of(negotiated: Option<&[u8]>) -> Option<Alpn> {
        [Alpn::Link, Alpn::Data].into_iter().find(|alpn| negotiated == Some(alpn.as_bytes()))
    }
}

/// The reflector key that an appliance accepts. An appliance has no other way to trust a reflector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key of the reflector that the appliance paired with.
    ExactKey(EndpointId),
    /// Any key with this pin, which is part of the pairing code that the appliance was given.
    Pin(Pin),
}

impl Expect {
    /// Whether `presented` is the expected key.
    fn accepts(&self, presented: &EndpointId) -> bool {
        match self {
            Expect::ExactKey(expected) => expected == presented,
            Expect::Pin(pin) => pin.matches(presented),
        }
    }
}

/// Why a TLS configuration could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The secret key could not be converted for TLS.
    #[error("the device's key cannot be used for TLS")]
    Key(#[from] KeyGenerationError),
    /// rustls refused the configuration.
    #[error("TLS cannot be set up")]
    Setup(#[from] Error),
}

/// The configuration of a reflector: TLS 1.3, both ALPNs, any Ed25519 raw key that signs the handshake. The reflector
/// checks after the handshake, with [`peer_of`], whether the key is paired. If it refused unpaired keys inside the
/// handshake, an unauthenticated client could find out which keys are paired.
pub fn reflector_config(key: &SecretKey) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyEd25519KeyVerifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(key)?)));
    config.alpn_protocols = [Alpn::Link, Alpn::Data].map(|alpn| alpn.as_bytes().to_vec()).into();
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The slower end chooses the cipher. By default the appliance's order of preference decides. A reflector without
    // AES instructions overrides that order with its own.
    config.ignore_client_order = !has_aes();
    Ok(Arc::new(config))
}

/// The configuration of an appliance for one kind of connection to one expected reflector: TLS 1.3 and one ALPN. The
/// reflector's key is checked inside the handshake, before the appliance sends its own key.
pub fn appliance_config(key: &SecretKey, expect: Expect, alpn: Alpn) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // rustls's name for replacing its certificate verification
        .with_custom_certificate_verifier(Arc::new(ExpectedKeyVerifier(expect)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(key)?)));
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A placeholder for the server name that rustls requires. It is never sent (SNI is off, and addresses are never sent)
/// and never compared: a reflector is identified by its key.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// A peer that has proved in the handshake that it holds the secret key of [`UnverifiedPeer::id`]. Whether this key is
/// paired is not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnverifiedPeer(EndpointId);

impl UnverifiedPeer {
    /// The key that signed the handshake.
    pub fn id(&self) -> EndpointId {
        self.0
    }
}

/// The peer of a completed handshake, from the certificates that rustls reports. `None` if they are not exactly one raw
/// Ed25519 key, or before the handshake is complete.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<UnverifiedPeer> {
    match certificates? {
        [only] => id_in(only).map(UnverifiedPeer),
        _ => None,
    }
}

/// The handshake failed because the reflector presented another key than the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongKey {
    /// The key that the reflector presented. The reflector did not prove that it holds the secret key: the handshake
    /// ended before it had to sign, and any server can present a public key.
    pub presented: EndpointId,
}

impl fmt::Display for WrongKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the reflector presented another key than the expected one: {}", self.presented)
    }
}

impl StdError for WrongKey {}

/// The [`WrongKey`] in a TLS error; `None` if the error has another cause.
pub fn wrong_key(error: &Error) -> Option<WrongKey> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(verdict))) => verdict.downcast_ref().copied(),
        _ => None,
    }
}

/// Like [`wrong_key`], for a TLS error inside nested I/O errors.
pub fn wrong_key_in_io(error: &io::Error) -> Option<WrongKey> {
    let mut inner: &(dyn StdError + 'static) = error;
    // Errors nest a few levels deep. The bound protects against a cyclic source chain.
    for _ in 0..16 {
        if let Some(found) = inner.downcast_ref::<Error>().and_then(wrong_key) {
            return Some(found);
        }
        // `io::Error::source` skips the wrapped error and returns the source of that error.
        let wrapped = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner = match wrapped {
            Some(wrapped) => wrapped,
            None => inner.source()?,
        };
    }
    None
}

/// The bytes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Encodes the key as SubjectPublicKeyInfo.
fn spki_of(id: &EndpointId) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), id.as_bytes()].concat()
}

/// Decodes the key in a SubjectPublicKeyInfo. `None` unless it is exactly one Ed25519 key.
fn id_in(spki: &[u8]) -> Option<EndpointId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(EndpointId::from_bytes(key.try_into().ok()?))
}

/// The key that a peer presented, or the error that ends the handshake.
fn presented_key(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<EndpointId, Error> {
    match id_in(end_entity) {
        Some(id) if intermediates.is_empty() => Ok(id),
        _ => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

fn certified(key: &SecretKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let pkcs8 = key.to_pkcs8()?;
    let signer = backend::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki_of(&key.id()))], signer)))
}

/// Verifies the handshake's Ed25519 signature with the presented raw key.
fn verify_signature(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let algorithms = backend::default_provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(spki.as_ref()), signature, &algorithms)
}

/// Refuses every TLS 1.2 signature. TLS 1.2 is never negotiated.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not supported".to_owned()))
}

/// The appliance's check of a reflector: accepts only the expected key.
#[derive(Debug)]
struct ExpectedKeyVerifier(Expect);

impl ServerCertVerifier for ExpectedKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = presented_key(end_entity, intermediates)?;
        if self.0.accepts(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(WrongKey { presented })))))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The reflector's check inside the handshake: accepts any Ed25519 key that signs the handshake.
#[derive(Debug)]
struct AnyEd25519KeyVerifier;

impl ClientCertVerifier for AnyEd25519KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        presented_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The cipher suites and key exchanges that both ends offer, preferred first.
fn provider() -> Arc<CryptoProvider> {
    use backend::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let suites: [SupportedCipherSuite; 3] = if has_aes() {
        [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
    } else {
        [TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
    };
    Arc::new(CryptoProvider {
        cipher_suites: suites.into(),
        kx_groups: vec![backend::kx_group::X25519MLKEM768, backend::kx_group::X25519],
        ..backend::default_provider()
    })
}

/// Whether this processor has AES instructions. Without them, ChaCha20 is several times faster than AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
