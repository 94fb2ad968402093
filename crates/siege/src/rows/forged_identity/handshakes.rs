//! Forgeries in the handshake, before the first message: keys, certificates, signatures, protocols, and replayed or
//! broken bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
};
use lab::Reflector;
use paramedic_link::admission::{Preamble, SESSION_EXPORTER_LABEL, SessionKeys};
use paramedic_link::tls::{Alpn, Expect, appliance_config};
use paramedic_link::{EndpointId, SecretKey};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::{any_ecdsa_type, any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, Error, SignatureAlgorithm, SignatureScheme};

use super::{Expected, Got, Kind, genuine, says_hello};
use crate::attack::connect_from;
use crate::target::{HOME, Target, granted, peer_of, request};

/// The bytes that precede an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn spki(id: &EndpointId) -> Vec<u8> {
    [&SPKI_HEAD[..], id.as_bytes()].concat()
}

/// A client certificate resolver that presents `key`, as a raw public key or as an X.509 certificate.
#[derive(Debug)]
struct Shows {
    key: Option<Arc<CertifiedKey>>,
    raw: bool,
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }

    fn only_raw_public_keys(&self) -> bool {
        self.raw
    }
}

/// A signing key that always returns the same signature.
#[derive(Clone, Debug)]
struct SignsAlways(Vec<u8>);

impl SigningKey for SignsAlways {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for SignsAlways {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.clone())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

fn ed25519() -> anyhow::Result<Arc<dyn SigningKey>> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())?;
    Ok(any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()))?)
}

fn ecdsa(algorithm: &'static aws_lc_rs::signature::EcdsaSigningAlgorithm) -> anyhow::Result<Arc<dyn SigningKey>> {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new())?;
    Ok(any_ecdsa_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec())))?)
}

fn certified(spki: Vec<u8>, signer: Arc<dyn SigningKey>) -> CertifiedKey {
    CertifiedKey::new(vec![CertificateDer::from(spki)], signer)
}

/// The public key of this identity, with a signing key of another identity.
pub(super) fn borrowed(id: &EndpointId) -> anyhow::Result<CertifiedKey> {
    Ok(certified(spki(id), ed25519()?))
}

/// The public key of this identity, with a signature that consists of zeros.
pub(super) fn unsigned(id: &EndpointId) -> CertifiedKey {
    certified(spki(id), Arc::new(SignsAlways(vec![0; 64])))
}

/// A key that is not an Ed25519 key, with valid signatures.
pub(super) fn of_another_type() -> anyhow::Result<CertifiedKey> {
    let key = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
    let public = key.public_key().context("the key has no public part")?.to_vec();
    Ok(certified(public, key))
}

pub(super) fn kinds(reflector: &Reflector, target: Target, peer: SecretKey) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = keys(target, &peer)?;
    kinds.extend(protocols(target, &peer)?);
    kinds.extend(data(reflector, target, &peer)?);
    kinds.extend(bytes(target, &record(target, &peer)?));
    Ok(kinds)
}

fn refused(name: impl Into<String>, attempt: impl Fn(IpAddr) -> io::Result<Got> + Sync + 'static) -> Kind {
    Kind { name: name.into(), attempt: Box::new(attempt), expected: Expected::Refused }
}

/// What a client presents: the name of the forgery, the keys or certificates, the signing key, and whether the client
/// presents raw public keys.
type Shown = (&'static str, Vec<Vec<u8>>, Arc<dyn SigningKey>, bool);

/// Attempts that misuse the public key of a peer, or that present no valid key.
fn keys(target: Target, peer: &SecretKey) -> anyhow::Result<Vec<Kind>> {
    let own = SecretKey::generate()?;
    let base = appliance_config(&own, Expect::ExactKey(target.id), Alpn::Link)?;
    let (mine, theirs) = (spki(&own.id()), spki(&peer.id()));
    let (p256, p384) = (ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING)?, ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING)?);
    let public =
        |key: &Arc<dyn SigningKey>| key.public_key().map(|key| key.to_vec()).context("the key has no public part");
    let always = |bytes: &[u8]| -> Arc<dyn SigningKey> { Arc::new(SignsAlways(bytes.to_vec())) };
    let with_oid = |last: u8| {
        let mut spki = theirs.clone();
        spki[8] = last;
        spki
    };
    // The neutral element of the curve: unless small-order keys are refused, (neutral, 0) is a valid signature of every
    // message.
    let neutral = [&[1][..], &[0; 31]].concat();
    let neutral_spki = [&SPKI_HEAD[..], &neutral].concat();
    // The beginning of an X.509 certificate around the peer's key.
    let x509 = [&[0x30, 0x82, 0x01, 0x00, 0x30, 0x81, 0xb3, 0xa0, 0x03, 0x02, 0x01, 0x02][..], &theirs].concat();
    let shown: Vec<Shown> = vec![
        ("a peer's key, another key's signature", vec![theirs.clone()], ed25519()?, true),
        ("a peer's key, a signature of zeros", vec![theirs.clone()], always(&[0; 64]), true),
        ("a peer's key, no signature", vec![theirs.clone()], always(&[]), true),
        (
            "a peer's key, the neutral element's signature",
            vec![theirs.clone()],
            always(&[&neutral[..], &[0; 32]].concat()),
            true,
        ),
        ("a peer's key signed for with P-256", vec![theirs.clone()], p256.clone(), true),
        ("its own key, then a peer's", vec![mine.clone(), theirs.clone()], ed25519()?, true),
        ("a peer's key, then its own", vec![theirs.clone(), mine.clone()], ed25519()?, true),
        ("a P-256 key", vec![public(&p256)?], p256.clone(), true),
        ("a P-256 key signed for with Ed25519", vec![public(&p256)?], ed25519()?, true),
        ("a P-384 key", vec![public(&p384)?], p384, true),
        ("a peer's key cut short", vec![theirs[..43].to_vec()], ed25519()?, true),
        ("a peer's key and a byte", vec![[&theirs[..], &[0]].concat()], ed25519()?, true),
        ("a peer's key as X25519", vec![with_oid(0x6e)], ed25519()?, true),
        ("a peer's key as Ed448", vec![with_oid(0x71)], ed25519()?, true),
        ("a key of zeros", vec![[&SPKI_HEAD[..], &[0; 32]].concat()], always(&[0; 64]), true),
        ("the neutral element as key", vec![neutral_spki], always(&[&neutral[..], &[0; 32]].concat()), true),
        ("an empty key", vec![vec![]], ed25519()?, true),
        ("a peer's key as X.509", vec![theirs.clone()], ed25519()?, false),
        ("an X.509 certificate of a peer's key", vec![x509], ed25519()?, false),
    ];
    let mut kinds = Vec::new();
    for (name, certificates, signer, raw) in shown {
        let certificates = certificates.into_iter().map(CertificateDer::from).collect();
        let key = Some(Arc::new(CertifiedKey::new(certificates, signer)));
        kinds.push(with(name, target, &base, Shows { key, raw }));
    }
    kinds.push(with("no key", target, &base, Shows { key: None, raw: true }));
    kinds.push(with("no certificate", target, &base, Shows { key: None, raw: false }));
    Ok(kinds)
}

fn with(name: &str, target: Target, base: &ClientConfig, shows: Shows) -> Kind {
    let mut config = base.clone();
    config.client_auth_cert_resolver = Arc::new(shows);
    let config = Arc::new(config);
    refused(name, move |from| says_hello(target, from, &config))
}

/// Attempts with a paired key that negotiate another protocol than that of a link.
fn protocols(target: Target, peer: &SecretKey) -> anyhow::Result<Vec<Kind>> {
    let base = appliance_config(peer, Expect::ExactKey(target.id), Alpn::Link)?;
    let named: [(&str, &[&[u8]]); 5] = [
        ("no ALPN", &[]),
        ("ALPN h2", &[b"h2"]),
        ("ALPN pp-link/2", &[b"pp-link/2"]),
        ("ALPN pp-link", &[b"pp-link", b"http/1.1"]),
        ("ALPN pp-data/1 for a link", &[b"pp-data/1"]),
    ];
    let kinds = named.into_iter().map(|(name, protocols)| {
        let mut config = ClientConfig::clone(&base);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let config = Arc::new(config);
        refused(format!("a peer's key, {name}"), move |from| says_hello(target, from, &config))
    });
    Ok(kinds.collect())
}

/// Attempts to open a data connection with a preamble that is not valid for the client's key.
fn data(reflector: &Reflector, target: Target, peer: &SecretKey) -> anyhow::Result<Vec<Kind>> {
    let mut link = target.welcomed(HOME, peer)?;
    let (session, _) = granted(&mut link, &request("tunneled", 1000))?;
    let secret = link.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
    let keys = SessionKeys::derive(session, secret.into());
    let sealed = Preamble { session, phase: Preamble::ECHO, stream: 0, nonce: [1; Preamble::NONCE_LEN] }.seal(&keys);
    drop(link);
    let other = peer_of(reflector)?;
    let mut kinds = Vec::new();
    for (whose, key) in [("an unknown key", SecretKey::generate()?), ("another peer's key", other)] {
        let key = Arc::new(key);
        for (name, preamble) in [("zeros", [0; Preamble::LEN]), ("a peer's preamble", sealed)] {
            let key = key.clone();
            kinds.push(refused(format!("data of {whose} with {name}"), move |from| {
                let mut data = target.open(from, &key, Alpn::Data)?;
                data.say_bytes(&preamble)?;
                Ok(Got { bytes: data.hear_out()?, took: Duration::ZERO })
            }));
        }
    }
    Ok(kinds)
}

/// Records all bytes that a real peer sends up to its `hello`.
fn record(target: Target, peer: &SecretKey) -> anyhow::Result<Vec<u8>> {
    let relay = TcpListener::bind("127.0.0.1:0")?;
    let through = Target { address: relay.local_addr()?, ..target };
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || -> io::Result<Vec<u8>> {
            let (mut near, _) = relay.accept()?;
            let mut far = TcpStream::connect(target.address)?;
            let (mut back_from, mut back_to) = (far.try_clone()?, near.try_clone()?);
            let back = std::thread::spawn(move || {
                let _ = io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Shutdown::Both);
            });
            let mut sent = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = near.read(&mut buffer) {
                sent.extend_from_slice(&buffer[..read]);
                far.write_all(&buffer[..read])?;
            }
            let _ = far.shutdown(Shutdown::Both);
            let _ = back.join();
            Ok(sent)
        });
        genuine(through, peer)?;
        sent.join().ok().context("the relay panicked")?.context("the relay failed")
    })
}

/// Attempts with raw bytes: replayed, truncated, changed, or of other protocols.
fn bytes(target: Target, genuine: &[u8]) -> Vec<Kind> {
    let flipped = |at: usize| {
        let mut bytes = genuine.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let record = |kind: u8, body: &[u8]| [&[kind, 3, 3, 0, u8::try_from(body.len()).unwrap_or(0)], body].concat();
    // Bytes 3 and 4 of a record are its length.
    let first = 5 + usize::from(u16::from_be_bytes([genuine[3], genuine[4]]));
    let mut tls_1_2 = vec![22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3];
    tls_1_2.extend([7; 32]);
    tls_1_2.extend([0, 0, 4, 0xc0, 0x2b, 0, 0xff, 1, 0]);
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("a peer's connection replayed", genuine.to_vec()),
        ("its first flight alone", genuine[..first].to_vec()),
        ("all but its first flight", genuine[first..].to_vec()),
        ("its first flight twice", [&genuine[..first], &genuine[..first]].concat()),
        ("its first flight cut", genuine[..first / 2].to_vec()),
        ("a changed random", flipped(20)),
        ("a changed key share", flipped(first - 40)),
        ("a changed finish", flipped(genuine.len() - 30)),
        ("TLS 1.2", tls_1_2),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 7, 0, 0xc0]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: reflector\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-siege\r\n".to_vec()),
        ("an alert", record(21, &[1, 0])),
        ("application data", record(23, &[0; 100])),
        ("ones", vec![0xff; 5000]),
    ];
    let kinds = all.into_iter().map(|(name, bytes)| {
        refused(name, move |from| {
            let mut stream = connect_from(from, target.address)?;
            let began = Instant::now();
            // Ignore the error: the reflector may reset the connection before everything is written.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            // The reply is part of a handshake or an alert, so ignore it. A link would appear in the audit log.
            let _ = stream.read_to_end(&mut Vec::new());
            Ok(Got { bytes: vec![], took: began.elapsed() })
        })
    });
    kinds.collect()
}
