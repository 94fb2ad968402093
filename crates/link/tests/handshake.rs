//! In-memory handshakes: both ends' configurations with each other and with impostors.

use std::io;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use paramedic_link::pairing_code::Ends;
use paramedic_link::pairing_code::{PAIRING_EXPORTER_LABEL, PairingCode, Pin};
use paramedic_link::tls::{
    Alpn, Expect, WrongKey, appliance_config, peer_of, reflector_config, server_name, wrong_key, wrong_key_in_io,
};
use paramedic_link::{EndpointId, SecretKey};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::aws_lc_rs::sign::{any_ecdsa_type, any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, NamedGroup,
    PeerIncompatible, ProtocolVersion, ServerConfig, ServerConnection,
};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn client_of(key: &SecretKey, expected: EndpointId) -> ClientConfig {
    ClientConfig::clone(&appliance_config(key, Expect::ExactKey(expected), Alpn::Link).unwrap())
}

fn server_of(key: &SecretKey) -> ServerConfig {
    ServerConfig::clone(&reflector_config(key).unwrap())
}

/// Both ends after a successful handshake.
#[derive(Debug)]
struct Link {
    client: ClientConnection,
    server: ServerConnection,
}

/// The error at each end of a failed handshake.
#[derive(Debug)]
struct Refused {
    client: Option<Error>,
    server: Option<Error>,
}

fn connect(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Result<Link, Box<Refused>> {
    let mut client = ClientConnection::new(client.into(), server_name()).unwrap();
    let mut server = ServerConnection::new(server.into()).unwrap();
    let mut refused = Refused { client: None, server: None };
    // Exchange bytes until neither end has more to send, alerts and post-handshake messages included.
    loop {
        let mut moved = false;
        for from_client in [true, false] {
            let mut wire = Vec::new();
            if from_client {
                while client.wants_write() {
                    client.write_tls(&mut wire).unwrap();
                }
            } else {
                while server.wants_write() {
                    server.write_tls(&mut wire).unwrap();
                }
            }
            moved |= !wire.is_empty();
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                let verdict = if from_client {
                    server.read_tls(&mut wire).unwrap();
                    server.process_new_packets().err().map(|error| refused.server.get_or_insert(error).clone())
                } else {
                    client.read_tls(&mut wire).unwrap();
                    client.process_new_packets().err().map(|error| refused.client.get_or_insert(error).clone())
                };
                if verdict.is_some() {
                    break;
                }
            }
        }
        if !moved {
            break;
        }
    }
    if refused.client.is_some() || refused.server.is_some() {
        return Err(Box::new(refused));
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Link { client, server })
}

fn exported(link: &Link, label: &[u8], context: &[u8]) -> [[u8; 32]; 2] {
    [
        link.client.export_keying_material([0; 32], label, Some(context)).unwrap(),
        link.server.export_keying_material([0; 32], label, Some(context)).unwrap(),
    ]
}

#[test]
fn each_end_learns_the_key_of_the_other() {
    let (appliance, reflector) = (key(), key());
    let link = connect(client_of(&appliance, reflector.id()), server_of(&reflector)).unwrap();
    assert_eq!(peer_of(link.server.peer_certificates()).unwrap().id(), appliance.id());
    assert_eq!(peer_of(link.client.peer_certificates()).unwrap().id(), reflector.id());
    assert_eq!(link.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn the_exporter_value_is_equal_at_both_ends_and_different_on_another_link() {
    let (appliance, reflector) = (key(), key());
    let link = || connect(client_of(&appliance, reflector.id()), server_of(&reflector)).unwrap();
    let [ours, theirs] = exported(&link(), b"EXPORTER-pp-link-session", &[1; 16]);
    assert_eq!(ours, theirs);
    assert_ne!(ours, exported(&link(), b"EXPORTER-pp-link-session", &[1; 16])[0]);
}

#[test]
fn key_exchange_is_hybrid_and_falls_back_to_x25519() {
    let (appliance, reflector) = (key(), key());
    let link = connect(client_of(&appliance, reflector.id()), server_of(&reflector)).unwrap();
    assert_eq!(link.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);

    let ours = client_of(&appliance, reflector.id());
    let mut provider = rustls::crypto::CryptoProvider::clone(ours.crypto_provider());
    let groups = provider.kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>();
    assert_eq!(groups, [NamedGroup::X25519MLKEM768, NamedGroup::X25519]);
    provider.kx_groups.remove(0);
    let classic = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(impostor::Trusting))
        .with_client_cert_resolver(ours.client_auth_cert_resolver);
    let link = connect(classic, server_of(&reflector)).unwrap();
    assert_eq!(link.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
}

#[test]
fn a_wrong_key_is_refused_inside_the_handshake_and_named() {
    let (appliance, reflector, other) = (key(), key(), key());
    let refused = connect(client_of(&appliance, other.id()), server_of(&reflector)).unwrap_err();
    let error = refused.client.unwrap();
    let verdict = Some(WrongKey { presented: reflector.id() });
    assert_eq!(wrong_key(&error), verdict);
    // As tokio-rustls wraps it, and wrapped once more.
    let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
    assert_eq!(wrong_key_in_io(&wrapped), verdict);
    assert_eq!(wrong_key_in_io(&io::Error::other(wrapped)), verdict);
    // The reflector learns that it was refused, but not the appliance's key.
    assert_eq!(refused.server, Some(Error::AlertReceived(AlertDescription::CertificateUnknown)));
}

#[test]
fn other_failures_are_not_a_wrong_key() {
    assert_eq!(wrong_key(&Error::HandshakeNotComplete), None);
    assert_eq!(wrong_key_in_io(&io::ErrorKind::ConnectionReset.into()), None);
    assert_eq!(wrong_key_in_io(&io::Error::other(Error::DecryptError)), None);
}

#[test]
fn a_pin_accepts_only_its_own_key() {
    let (appliance, reflector) = (key(), key());
    let by_pin = |pin| appliance_config(&appliance, Expect::Pin(pin), Alpn::Link).unwrap();
    assert!(connect(by_pin(Pin::of(&reflector.id())), server_of(&reflector)).is_ok());
    let refused = connect(by_pin(Pin::of(&appliance.id())), server_of(&reflector)).unwrap_err();
    assert_eq!(wrong_key(&refused.client.unwrap()), Some(WrongKey { presented: reflector.id() }));
}

#[test]
fn a_pairing_proof_is_valid_only_on_its_own_link() {
    let (appliance, reflector) = (key(), key());
    let ends = Ends { reflector: reflector.id(), appliance: appliance.id() };
    let code = PairingCode::generate(&reflector.id()).unwrap();
    let link = || {
        let link = connect(client_of(&appliance, reflector.id()), server_of(&reflector)).unwrap();
        exported(&link, PAIRING_EXPORTER_LABEL, &[])
    };
    let [ours, theirs] = link();
    assert_eq!(code.appliance_proof(&ours, &ends), code.appliance_proof(&theirs, &ends));
    assert_ne!(code.appliance_proof(&ours, &ends), code.appliance_proof(&link()[1], &ends));
}

#[test]
fn the_alpn_is_negotiated_for_both_purposes() {
    let (appliance, reflector) = (key(), key());
    for alpn in [Alpn::Link, Alpn::Data] {
        let client = appliance_config(&appliance, Expect::ExactKey(reflector.id()), alpn).unwrap();
        let link = connect(client, server_of(&reflector)).unwrap();
        assert_eq!(Alpn::of(link.client.alpn_protocol()), Some(alpn));
        assert_eq!(Alpn::of(link.server.alpn_protocol()), Some(alpn));
    }
}

#[test]
fn a_peer_without_alpn_is_detected_and_one_with_another_alpn_is_refused() {
    let (appliance, reflector) = (key(), key());
    let mut client = client_of(&appliance, reflector.id());
    client.alpn_protocols = vec![];
    let link = connect(client, server_of(&reflector)).unwrap();
    assert_eq!(Alpn::of(link.server.alpn_protocol()), None);

    let mut server = server_of(&reflector);
    server.alpn_protocols = vec![];
    let link = connect(client_of(&appliance, reflector.id()), server).unwrap();
    assert_eq!(Alpn::of(link.client.alpn_protocol()), None);

    let mut client = client_of(&appliance, reflector.id());
    client.alpn_protocols = vec![b"h2".to_vec()];
    let refused = connect(client, server_of(&reflector)).unwrap_err();
    assert_eq!(refused.server, Some(Error::NoApplicationProtocol));
    assert_eq!(Alpn::of(Some(b"h2")), None);
}

#[test]
fn a_client_without_a_raw_key_is_refused() {
    let reflector = key();
    let mut client = client_of(&key(), reflector.id());
    client.client_auth_cert_resolver = Arc::new(impostor::NoKey);
    let refused = connect(client, server_of(&reflector)).unwrap_err();
    assert_eq!(refused.server, Some(PeerIncompatible::IncorrectCertificateTypeExtension.into()));
}

#[test]
fn another_kind_of_key_is_refused() {
    let (appliance, reflector) = (key(), key());
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &aws_lc_rs::rand::SystemRandom::new());
    let pkcs8 = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.unwrap().as_ref().to_vec()));
    let signer = any_ecdsa_type(&pkcs8).unwrap();
    let spki = signer.public_key().unwrap().to_vec();

    // The client finds no common signature scheme and presents nothing.
    let mut client = client_of(&appliance, reflector.id());
    client.client_auth_cert_resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(shown(&spki, signer.clone())));
    assert_eq!(connect(client, server_of(&reflector)).unwrap_err().server, Some(Error::NoCertificatesPresented));
    // The client presents the ECDSA key and signs with Ed25519.
    let mut client = client_of(&appliance, reflector.id());
    let resolver = AlwaysResolvesClientRawPublicKeys::new(shown(&spki, ed25519_signer()));
    client.client_auth_cert_resolver = Arc::new(resolver);
    assert_eq!(connect(client, server_of(&reflector)).unwrap_err().server, Some(CertificateError::BadEncoding.into()));
    // The reflector has an ECDSA key.
    let mut server = server_of(&reflector);
    server.cert_resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown(&spki, signer)));
    assert!(connect(client_of(&appliance, reflector.id()), server).is_err());
}

#[test]
fn presenting_the_key_of_another_device_fails() {
    let (appliance, reflector, victim) = (key(), key(), key());
    let mut client = client_of(&appliance, reflector.id());
    let resolver = AlwaysResolvesClientRawPublicKeys::new(shown(&spki(&victim), ed25519_signer()));
    client.client_auth_cert_resolver = Arc::new(resolver);
    let refused = connect(client, server_of(&reflector)).unwrap_err();
    assert_eq!(refused.server, Some(CertificateError::BadSignature.into()));

    let mut server = server_of(&reflector);
    let resolver = AlwaysResolvesServerRawPublicKeys::new(shown(&spki(&victim), ed25519_signer()));
    server.cert_resolver = Arc::new(resolver);
    let refused = connect(client_of(&appliance, victim.id()), server).unwrap_err();
    assert_eq!(refused.client, Some(CertificateError::BadSignature.into()));
}

#[test]
fn a_second_key_behind_the_first_is_refused() {
    let (appliance, reflector) = (key(), key());
    let two = [spki(&appliance), spki(&reflector)].map(CertificateDer::from);
    let mut client = client_of(&appliance, reflector.id());
    let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::new(CertifiedKey::new(two.to_vec(), ed25519_signer())));
    client.client_auth_cert_resolver = Arc::new(resolver);
    assert!(connect(client, server_of(&reflector)).unwrap_err().server.is_some());
    assert_eq!(peer_of(Some(&two)), None);
    assert_eq!(peer_of(Some(&[])), None);
    assert_eq!(peer_of(None), None);
    assert!(peer_of(Some(&two[..1])).is_some());
}

#[test]
fn no_ticket_is_sent_and_every_handshake_is_full() {
    let (appliance, reflector) = (key(), key());
    let (client, server) = (Arc::new(client_of(&appliance, reflector.id())), Arc::new(server_of(&reflector)));
    for _ in 0..2 {
        let link = connect(client.clone(), server.clone()).unwrap();
        assert_eq!(link.client.tls13_tickets_received(), 0);
        assert_eq!(link.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(link.server.server_name(), None, "SNI was sent");
    }
    assert!(!client.enable_early_data);
    assert_eq!(server.max_early_data_size, 0);
}

#[test]
fn tls_1_2_is_refused() {
    // A ClientHello of TLS 1.2 (RFC 5246, section 7.4.1.2): no supported_versions extension.
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.extend([1, 0]);
    let extensions = [[0, 10, 0, 4, 0, 2, 0, 29], [0, 13, 0, 4, 0, 2, 8, 7]].concat(); // x25519; ed25519
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(hello.len()).unwrap().to_be_bytes());
    message.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);

    let mut server = ServerConnection::new(Arc::new(server_of(&key()))).unwrap();
    server.read_tls(&mut record.as_slice()).unwrap();
    let error = server.process_new_packets().unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
}

fn spki(key: &SecretKey) -> Vec<u8> {
    [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], key.id().as_bytes()].concat()
}

fn shown(spki: &[u8], signer: Arc<dyn SigningKey>) -> Arc<CertifiedKey> {
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], signer))
}

fn ed25519_signer() -> Arc<dyn SigningKey> {
    let pkcs8 = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec())).unwrap()
}

/// Connection ends that violate the protocol.
mod impostor {
    use rustls::client::ResolvesClientCert;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::sign::CertifiedKey;
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use std::sync::Arc;

    /// A client without a key.
    #[derive(Debug)]
    pub(crate) struct NoKey;

    impl ResolvesClientCert for NoKey {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn has_certs(&self) -> bool {
            false
        }
    }

    /// A client that accepts any server.
    #[derive(Debug)]
    pub(crate) struct Trusting;

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    }
}
