//! False reflectors in place of the paired one: the real appliance must refuse each of them.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Appliance, Reflector};
use paramedic_link::SecretKey;
use paramedic_link::tls::reflector_config;
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::handshakes;
use crate::measured::Measured;
use crate::scale::Scale;
use crate::target::Target;

/// What a false reflector does when the appliance connects.
enum False {
    /// The false reflector accepts TLS with this configuration.
    Tls(Arc<ServerConfig>),
    /// The false reflector sends these bytes, regardless of what it receives.
    Bytes(Vec<u8>),
}

pub(super) fn play(scale: Scale, reflector: &Reflector, measured: &mut Measured) -> anyhow::Result<()> {
    let tries = scale.of(100, 4);
    let appliance = Appliance::new().pair(reflector, reflector.address());
    let base = reflector_config(&SecretKey::generate()?)?;
    let shows = |key: CertifiedKey| {
        let mut config = ServerConfig::clone(&base);
        config.cert_resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(key)));
        False::Tls(Arc::new(config))
    };
    let mut no_alpn = ServerConfig::clone(&base);
    no_alpn.alpn_protocols = vec![];
    let id = Target::of(reflector)?.id;
    let kinds = [
        ("another key", False::Tls(base.clone())),
        ("the right key, another signature", shows(handshakes::borrowed(&id)?)),
        ("the right key, a signature of zeros", shows(handshakes::unsigned(&id))),
        ("a P-256 key", shows(handshakes::of_another_type()?)),
        ("another key and no ALPN", False::Tls(Arc::new(no_alpn))),
        ("HTTP", False::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ("an alert", False::Bytes(vec![21, 3, 3, 0, 2, 1, 0])),
    ];
    let (mut believed, mut told) = (0, 0);
    let count = kinds.len();
    for (_, kind) in kinds {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let heard = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The loop ends with the empty connection that is opened below.
                while let Ok((socket, _)) = listener.accept() {
                    match stand_in(socket, &kind) {
                        Ok(None) => return,
                        Ok(Some(bytes)) => drop(heard.fetch_add(bytes, Ordering::SeqCst)),
                        Err(_) => {}
                    }
                }
            });
            let peer = address.to_string();
            let test = ["-t", "0.2", "--idle", "0.1", "--peer", &peer];
            believed += (0..tries).filter(|_| appliance.speed_test(&test).code == 0).count();
            let _ = TcpStream::connect(address);
        });
        told += heard.into_inner();
    }
    let attempts = count * tries as usize;
    measured.outcome(
        believed == 0 && told == 0,
        format!(
            "{count} kinds of false reflectors, {attempts} attempts: {believed} believed, {told} bytes sent to them"
        ),
    );
    Ok(())
}

/// Plays the false reflector on one connection. Returns how many bytes arrived inside TLS, or `None` if no byte arrived
/// at all.
fn stand_in(mut socket: TcpStream, kind: &False) -> io::Result<Option<usize>> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    if socket.peek(&mut [0])? == 0 {
        return Ok(None);
    }
    match kind {
        False::Bytes(bytes) => {
            socket.write_all(bytes)?;
            let _ = socket.read(&mut [0; 4096])?;
            Ok(Some(0))
        }
        False::Tls(config) => {
            let mut session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            session.complete_io(&mut socket)?;
            let mut clear = Vec::new();
            StreamOwned::new(session, socket).read_to_end(&mut clear)?;
            Ok(Some(clear.len()))
        }
    }
}
