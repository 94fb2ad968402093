//! Runs both ends of an engine in one process over loopback, to measure the capacity of this host. Uses no link, which
//! is the control connection between an appliance and a reflector.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, Direction, TestSpec};
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{SecretKey, SessionId};
use rustix::rand::GetRandomFlags;
use rustls::{ClientConfig, ServerConfig, ServerConnection};
use zeroize::Zeroizing;

use crate::data_stream::DataStream;
use crate::dialer::Dialer;
use crate::engine::{ClientSetup, Engine, EngineServer, PhaseProgress, ServerSetup};
use crate::metered_stream::MeteredStream;
use crate::origin::Origin;
use crate::session_control::SessionControl;
use crate::thread_limit;
use crate::udp_port::UdpPort;

/// The timeout for the authentication of a data connection. It limits how long another local process can delay the test
/// by connecting without sending.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of ports that are tried, because another process may take a chosen port first.
const MAX_PORTS_TRIED: usize = 8;

/// The tallies of both ends for one phase.
#[derive(Clone, Debug)]
pub struct BothEnds {
    /// The tally of the reflector's end.
    pub served: PhaseTally,
    /// The tally of the appliance's end.
    pub driven: PhaseTally,
}

impl BothEnds {
    /// The tallies of the sender and of the receiver of `direction`.
    pub fn sender_and_receiver(&self, direction: Direction) -> (&PhaseTally, &PhaseTally) {
        match direction {
            Direction::Download => (&self.served, &self.driven),
            Direction::Upload => (&self.driven, &self.served),
        }
    }
}

/// Runs the single phase of `spec` at both ends of `engine`. `scratch` is a private folder for temporary files. Blocks
/// for the duration of the phase and at most a few seconds more. An error means that the phase did not begin.
pub fn run(engine: &dyn Engine, spec: &TestSpec, scratch: PathBuf) -> io::Result<BothEnds> {
    let (reflector, appliance) = (SessionControl::unmetered(), SessionControl::unmetered());
    let played = play(engine, spec, scratch, &reflector, &appliance);
    reflector.cancel();
    appliance.cancel();
    played
}

fn play(
    engine: &dyn Engine,
    spec: &TestSpec,
    scratch: PathBuf,
    reflector: &Arc<SessionControl>,
    appliance: &Arc<SessionControl>,
) -> io::Result<BothEnds> {
    let keys = fresh_keys()?;
    let order = |claim: Option<SocketAddr>, at: SocketAddr| ServerSetup {
        spec: spec.clone(),
        keys: Arc::clone(&keys),
        claim,
        peer: at.ip(),
        control: Arc::clone(reflector),
        scratch: scratch.clone(),
    };
    let (server, target, tls): (Arc<dyn EngineServer>, _, _) = if spec.data_mode == DataMode::Tunneled {
        let control_port = any_port()?;
        let target = control_port.local_addr()?;
        let server: Arc<dyn EngineServer> = Arc::from(engine.server(order(None, target))?);
        let (server_tls, client_tls) = tls_of_both_ends()?;
        let (keys, control, to) = (Arc::clone(&keys), Arc::clone(reflector), Arc::clone(&server));
        let admitting = move || admit_all(&control_port, &server_tls, &keys, &*to, &control);
        thread_limit::spawn("loopback-port", admitting)?;
        (server, target, Some(client_tls))
    } else {
        let (server, target) = claim(engine, order)?;
        (server, target, None)
    };
    // The datagrams of an engine use the UDP port with the same number.
    let _datagrams = match server.datagram_handler() {
        None => None,
        Some(handler) => {
            let port = UdpPort::spawn(UdpSocket::bind(target)?)?;
            let enrolment = port.enroll(keys.session(), Arc::clone(reflector), target.ip(), vec![handler]);
            Some((enrolment, port))
        }
    };
    let client = engine.client(ClientSetup {
        spec: spec.clone(),
        keys,
        dialer: Arc::new(Dialer { target, tls, origin: Origin::default(), connect_timeout: AUTHENTICATION_TIMEOUT }),
        control: Arc::clone(appliance),
        terms: server.terms(),
        scratch,
    })?;
    client.connect(0)?;
    let (start, started) = channel();
    std::thread::scope(|scope| {
        // The thread drops `start` when it ends, which ends the wait below even if the phase never began.
        let serving = thread_limit::spawn_scoped(scope, "loopback-serve", move || {
            server.run(0, &|progress| {
                if progress == PhaseProgress::Started {
                    // Fails only if the start was already received.
                    start.send(()).ok();
                }
            })
        })?;
        let begun = started.recv().is_ok();
        let driven = if begun {
            client.run(0, &|_| ())
        } else {
            appliance.cancel();
            PhaseTally::default()
        };
        let served =
            serving.join().map_err(|_| io::Error::other("the thread that serves the reflector's end panicked"))?;
        if begun {
            return Ok(BothEnds { served, driven });
        }
        let why = served.cut_short.as_ref().map_or("the phase did not begin", |why| why.as_str());
        Err(io::Error::other(client.explain_failure(0).unwrap_or_else(|| why.to_owned())))
    })
}

/// Starts the reflector's end of `engine` on a free loopback port. Tries several ports, because another process may
/// take the chosen port before the engine binds it.
fn claim(
    engine: &dyn Engine,
    order: impl Fn(Option<SocketAddr>, SocketAddr) -> ServerSetup,
) -> io::Result<(Arc<dyn EngineServer>, SocketAddr)> {
    let mut taken = None;
    for _ in 0..MAX_PORTS_TRIED {
        let at = any_port()?.local_addr()?;
        match engine.server(order(Some(at), at)) {
            Ok(server) => return Ok((Arc::from(server), at)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(taken.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// A listener on a loopback port whose number is free for TCP and for UDP. Uses IPv4 if possible.
fn any_port() -> io::Result<TcpListener> {
    let anywhere = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
    let mut taken = None;
    for _ in 0..MAX_PORTS_TRIED {
        let listener = TcpListener::bind(anywhere.as_slice())?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(_) => return Ok(listener),
            Err(error) => taken = Some(error),
        }
    }
    Err(taken.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Session keys of random bytes, for one run.
fn fresh_keys() -> io::Result<Arc<SessionKeys>> {
    let (mut session, mut secret) = ([0; 16], Zeroizing::new([0; 32]));
    rustix::rand::getrandom(&mut session, GetRandomFlags::empty())?;
    rustix::rand::getrandom(&mut *secret, GetRandomFlags::empty())?;
    Ok(Arc::new(SessionKeys::derive(SessionId::from_bytes(session), secret)))
}

fn tls_of_both_ends() -> io::Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let (ours, theirs) = (SecretKey::generate(), SecretKey::generate());
    let (ours, theirs) = (ours.map_err(io::Error::other)?, theirs.map_err(io::Error::other)?);
    let client = tls::appliance_config(&ours, Expect::ExactKey(theirs.id()), Alpn::Data).map_err(io::Error::other)?;
    Ok((tls::reflector_config(&theirs).map_err(io::Error::other)?, client))
}

/// Accepts data connections and passes them to `server`, as a reflector's control port does, until the session is
/// cancelled.
fn admit_all(
    control_port: &TcpListener,
    config: &Arc<ServerConfig>,
    keys: &SessionKeys,
    server: &dyn EngineServer,
    control: &Arc<SessionControl>,
) {
    let Ok(_registration) = control.register(control_port) else { return };
    while let Ok((socket, _)) = control_port.accept() {
        // A connection that fails is dropped; the phase then reports the missing stream.
        if let Err(error) = admit(socket, config, keys, server, control) {
            tracing::debug!(%error, "refused a connection of the loopback test");
        }
    }
}

fn admit(
    mut socket: TcpStream,
    config: &Arc<ServerConfig>,
    keys: &SessionKeys,
    server: &dyn EngineServer,
    control: &Arc<SessionControl>,
) -> io::Result<()> {
    socket.set_read_timeout(Some(AUTHENTICATION_TIMEOUT))?;
    let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut preamble = [0; Preamble::LEN];
    rustls::Stream::new(&mut connection, &mut socket).read_exact(&mut preamble)?;
    let preamble = Preamble::open(&preamble, keys).ok_or(io::ErrorKind::InvalidData)?;
    socket.set_read_timeout(None)?;
    let stream = DataStream::tls(connection.into(), socket)?;
    server.admit(preamble, MeteredStream::new(stream, Arc::clone(control)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{EngineId, Load, PhaseSpec};

    use super::*;

    fn spec(engine: &str, data_mode: DataMode, load: Load) -> TestSpec {
        TestSpec::new(EngineId::try_from(engine).unwrap(), data_mode, vec![PhaseSpec { load, duration_ms: 100 }], 2)
    }

    #[test]
    fn both_ends_count_the_same_in_every_mode_and_direction() {
        let scratch = tempfile::tempdir().unwrap();
        for data_mode in [DataMode::Tunneled, DataMode::DirectEphemeral] {
            for (load, direction) in [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)] {
                let spec = spec("tcp", data_mode, load);
                let both = run(&crate::tcp::Tcp, &spec, scratch.path().to_owned()).unwrap();
                let count = |tally: &PhaseTally| tally.direction(direction).unwrap().count.bytes;
                assert_eq!((&both.served.cut_short, &both.driven.cut_short), (&None, &None), "{data_mode} {load}");
                assert!(count(&both.served) > 0, "{data_mode} {load}");
                assert_eq!(count(&both.served), count(&both.driven), "{data_mode} {load}");
            }
        }
    }

    #[test]
    fn the_datagram_engine_runs_too() {
        let datagrams = TestSpec { bitrate_bps: Some(1_000_000), ..spec("udp", DataMode::Tunneled, Load::Upload) };
        let both = run(&crate::udp::Udp, &datagrams, std::env::temp_dir()).unwrap();
        assert_eq!((&both.served.cut_short, &both.driven.cut_short), (&None, &None));
        assert!(both.served.upload.unwrap().count.bytes > 0);
    }

    #[test]
    fn a_refused_option_is_an_error() {
        let refused = TestSpec {
            congestion_control: Some("nonesuch".into()),
            ..spec("tcp", DataMode::DirectEphemeral, Load::Download)
        };
        let error = run(&crate::tcp::Tcp, &refused, std::env::temp_dir()).unwrap_err();
        assert!(error.to_string().contains("nonesuch"), "{error}");
    }

    #[test]
    fn a_connection_of_another_process_is_refused() {
        let (server_tls, _) = tls_of_both_ends().unwrap();
        let listener = any_port().unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        io::Write::write_all(&mut other, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let server = crate::tcp::Tcp
            .server(ServerSetup {
                spec: spec("tcp", DataMode::Tunneled, Load::Download),
                keys: fresh_keys().unwrap(),
                claim: None,
                peer: listener.local_addr().unwrap().ip(),
                control: SessionControl::unmetered(),
                scratch: std::env::temp_dir(),
            })
            .unwrap();
        let socket = listener.accept().unwrap().0;
        assert!(admit(socket, &server_tls, &fresh_keys().unwrap(), &*server, &SessionControl::unmetered()).is_err());
    }
}
