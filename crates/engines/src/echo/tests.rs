//! Tests both ends of `echo` against each other, over real sockets and a path that loses and duplicates chosen
//! datagrams.

#![expect(clippy::disallowed_methods, reason = "tests run in wall time")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::{PhaseTally, Probe};
use paramedic_link::test_spec::{DataMode, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{SecretKey, SessionId};
use rustls::{ClientConnection, Connection, ServerConnection};
use zeroize::Zeroizing;

use super::packet;
use super::probes::FIRST_SEQ;
use super::*;
use crate::data_stream::DataStream;
use crate::metered_stream::MeteredStream;
use crate::origin::Origin;
use crate::udp_port::{Enrolment, UdpPort};

/// The keys of the test session with this number. Each call returns the same keys for a number.
pub(super) fn keys(session: u8) -> SessionKeys {
    SessionKeys::derive(SessionId::from_bytes([session; 16]), Zeroizing::new([session; 32]))
}

const HERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const MILLISECOND: Duration = Duration::from_millis(1);

fn setup(target: SocketAddr, control: &Arc<SessionControl>) -> ProberSetup {
    ProberSetup {
        target: Some(target),
        keys: Arc::new(keys(1)),
        interval: MILLISECOND,
        control: Arc::clone(control),
        fall_back: Box::new(|| Err(io::Error::other("nothing to fall back to"))),
        origin: Origin::default(),
        dscp: None,
    }
}

/// Enrolls a session at `port`, so that `port` answers the session's probes.
pub(super) fn enroll_probes(
    port: &UdpPort,
    keys: SessionKeys,
    control: &Arc<SessionControl>,
    peer: IpAddr,
) -> Enrolment {
    let session = keys.session();
    let responder = ProbeResponder::new(Arc::new(keys), Arc::clone(control), Arc::default(), None);
    port.enroll(session, Arc::clone(control), peer, vec![Arc::new(responder)])
}

fn reflector() -> (Arc<UdpPort>, Enrolment) {
    let port = UdpPort::spawn(UdpSocket::bind(HERE).unwrap()).unwrap();
    let enrolment = enroll_probes(&port, keys(1), &SessionControl::unmetered(), Ipv4Addr::LOCALHOST.into());
    (port, enrolment)
}

/// Returns how many copies of a packet a path delivers. The argument is the packet's slot, or `None` for a packet
/// outside the schedule.
type Copies = dyn Fn(Option<usize>) -> usize + Send;

/// A path to `target` that loses and duplicates chosen datagrams, and reports which slots came from the prober. An
/// empty datagram from the prober ends the path.
fn lossy_path(target: SocketAddr, up: Box<Copies>, down: Box<Copies>) -> (SocketAddr, mpsc::Receiver<usize>) {
    let (near, far) = (UdpSocket::bind(HERE).unwrap(), UdpSocket::bind(HERE).unwrap());
    far.connect(target).unwrap();
    for socket in [&near, &far] {
        socket2::SockRef::from(socket).set_recv_buffer_size(1 << 20).unwrap();
    }
    let address = near.local_addr().unwrap();
    let (report, reported) = mpsc::channel();
    let slot_of = |bytes: &[u8]| {
        let seq = u32::from_be_bytes(bytes[20..24].try_into().unwrap());
        seq.checked_sub(FIRST_SEQ).map(|slot| slot as usize)
    };
    let prober = Arc::new(Mutex::new(None::<SocketAddr>));
    let upward = {
        let (near, far, prober) = (near.try_clone().unwrap(), far.try_clone().unwrap(), Arc::clone(&prober));
        move || {
            let mut bytes = [0; packet::LEN];
            let (len, from) = near.recv_from(&mut bytes).unwrap();
            if len == 0 {
                // Ends the other direction of the path, too.
                socket2::SockRef::from(&far).shutdown(std::net::Shutdown::Read).unwrap();
                return ControlFlow::Break(());
            }
            *prober.lock().unwrap() = Some(from);
            for _ in 0..up(slot_of(&bytes)) {
                far.send(&bytes).unwrap();
            }
            if let Some(slot) = slot_of(&bytes) {
                // The report fails once the test has ended.
                let _ = report.send(slot);
            }
            ControlFlow::Continue(())
        }
    };
    let downward = move || {
        let mut bytes = [0; packet::LEN];
        if far.recv(&mut bytes).unwrap() == 0 {
            return ControlFlow::Break(());
        }
        for _ in 0..down(slot_of(&bytes)) {
            near.send_to(&bytes, prober.lock().unwrap().unwrap()).unwrap();
        }
        ControlFlow::Continue(())
    };
    std::thread::spawn(move || while upward().is_continue() {});
    std::thread::spawn(move || while downward().is_continue() {});
    (address, reported)
}

fn end_path(path: SocketAddr) {
    UdpSocket::bind(HERE).unwrap().send_to(&[], path).unwrap();
}

fn await_slot(reported: &mpsc::Receiver<usize>, slot: usize) {
    while reported.recv_timeout(Duration::from_secs(20)).unwrap() < slot {}
}

#[test]
fn every_probe_is_answered_over_udp() {
    let (responder, _enrolment) = reflector();
    let (path, reported) = lossy_path(responder.local_addr(), Box::new(|_| 1), Box::new(|_| 1));
    let control = SessionControl::unmetered();
    let prober = Prober::start(setup(path, &control)).unwrap();
    assert_eq!(prober.ready().unwrap(), EchoTransport::Udp);
    await_slot(&reported, 50);
    let until = prober.now();
    while prober.recent().is_none() {
        std::thread::yield_now();
    }
    let probes = prober.finish();
    end_path(path);
    assert_eq!((probes.transport, probes.duplicates), (Some(EchoTransport::Udp), 0));
    let mut before = Duration::ZERO;
    for probe in probes.iter() {
        assert!(probe.rtt_us.is_some(), "{probe:?}");
        assert_eq!((probe.arrived, probe.late), (Some(true), false));
        assert!(probe.sent_at >= before);
        before = probe.sent_at;
    }
    // Each slot up to the reported one was sent or skipped by then.
    assert!(probes.within(Duration::ZERO, until).count() as u64 + probes.skipped > 50);
    assert_eq!(responder.refused(), Default::default());
}

#[test]
fn loss_is_reported_by_direction_to_the_last_probe() {
    // Every seventh probe is lost on the way up, every eleventh reply on the way down. During an outage, which is
    // longer than the history of one reply, no reply arrives, but every other probe still does.
    let outage = 200..700;
    let goes_up = {
        let outage = outage.clone();
        move |slot: usize| if outage.contains(&slot) { slot.is_multiple_of(2) } else { slot % 7 != 3 }
    };
    let comes_down = move |slot: usize| !outage.contains(&slot) && slot % 11 != 5;
    let (responder, _enrolment) = reflector();
    let (up, down) = (goes_up.clone(), comes_down.clone());
    let (path, reported) = lossy_path(
        responder.local_addr(),
        Box::new(move |slot| slot.is_none_or(&up).into()),
        Box::new(move |slot| slot.is_none_or(&down).into()),
    );
    let control = SessionControl::unmetered();
    let prober = Prober::start(setup(path, &control)).unwrap();
    assert_eq!(prober.ready().unwrap(), EchoTransport::Udp);
    await_slot(&reported, 1000);
    let probes = prober.finish();
    end_path(path);
    let mut last = 0;
    for (slot, Probe { rtt_us, arrived, late, .. }) in probes.log.numbered() {
        let fate = (arrived, rtt_us.is_some(), late);
        assert_eq!(fate, (Some(goes_up(slot)), goes_up(slot) && comes_down(slot), false), "slot {slot}");
        last = slot;
    }
    assert!(last >= 1000);
}

#[test]
fn a_later_failure_of_udp_appears_as_loss() {
    let (responder, _enrolment) = reflector();
    let (path, reported) = lossy_path(
        responder.local_addr(),
        Box::new(|slot| slot.is_none_or(|slot| slot < 40).into()),
        Box::new(|slot| slot.is_none_or(|slot| slot < 40).into()),
    );
    let prober = Prober::start(setup(path, &SessionControl::unmetered())).unwrap();
    await_slot(&reported, 80);
    let probes = prober.finish();
    end_path(path);
    assert_eq!(probes.transport, Some(EchoTransport::Udp));
    for (slot, probe) in probes.log.numbered() {
        assert_eq!(probe.rtt_us.is_some(), slot < 40);
        // The last reply that arrived reports only the probes sent before it.
        assert_eq!(probe.arrived, (slot < 40).then_some(true), "slot {slot}");
    }
}

#[test]
fn duplicates_are_counted_in_either_direction() {
    let (responder, _enrolment) = reflector();
    let copies = |rest| move |slot: Option<usize>| 1 + usize::from(slot.is_some_and(|s| s < 50 && s % 10 == rest));
    let (path, reported) = lossy_path(responder.local_addr(), Box::new(copies(2)), Box::new(copies(7)));
    let prober = Prober::start(setup(path, &SessionControl::unmetered())).unwrap();
    await_slot(&reported, 100);
    let probes = prober.finish();
    end_path(path);
    let doubled = probes.log.numbered().filter(|(slot, _)| *slot < 50 && slot % 5 == 2).count();
    assert_eq!(probes.duplicates, doubled as u64);
    assert_eq!(
        responder.refused().replayed,
        probes.log.numbered().filter(|(s, _)| *s < 50 && s % 10 == 2).count() as u64
    );
}

/// A fallback for a prober: opens a connection whose far end answers probes and charges them to `control`.
fn answered_line(
    control: &Arc<SessionControl>,
    pair: fn() -> (DataStream, DataStream),
) -> impl FnOnce() -> io::Result<DataStream> + Send + use<> {
    let control = Arc::clone(control);
    move || {
        let (ours, theirs) = pair();
        std::thread::spawn(move || {
            let stream = MeteredStream::new(theirs, Arc::clone(&control));
            answer_stream(stream, &keys(1), &control, &DwellTimes::default(), None);
        });
        Ok(ours)
    }
}

fn plain_pair() -> (DataStream, DataStream) {
    let (ours, theirs) = socket_pair();
    (DataStream::Plain(ours), DataStream::Plain(theirs))
}

fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(HERE).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn tls_pair() -> (DataStream, DataStream) {
    let (reflector, appliance) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let server = ServerConnection::new(tls::reflector_config(&reflector).unwrap()).unwrap();
    let config = tls::appliance_config(&appliance, Expect::ExactKey(reflector.id()), Alpn::Data).unwrap();
    let client = ClientConnection::new(config, tls::server_name()).unwrap();
    let (ours, theirs) = socket_pair();
    let shake = |mut connection: Connection, mut socket: TcpStream| {
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).unwrap();
        }
        DataStream::tls(connection, socket).unwrap()
    };
    let serving = std::thread::spawn(move || shake(server.into(), theirs));
    (shake(client.into(), ours), serving.join().unwrap())
}

/// The reflector's control of a session, and a channel that reports when ten probes were answered, because the session
/// then requests a lease.
fn leased() -> (Arc<SessionControl>, mpsc::Receiver<()>) {
    let (ask, asked) = mpsc::channel();
    let control = SessionControl::metered(move || _ = ask.send(()));
    control.allow(2 * 10 * 2 * packet::LEN as u64);
    (control, asked)
}

/// Sends probes over a data connection until ten probes are answered. Returns the results.
fn ten_over(connection: fn() -> (DataStream, DataStream), target: Option<SocketAddr>) -> Probes {
    let (reflector, ten_answered) = leased();
    let fall_back = Box::new(answered_line(&reflector, connection));
    let order = ProberSetup { target, fall_back, ..setup(HERE.into(), &SessionControl::unmetered()) };
    let prober = Prober::start(order).unwrap();
    assert_eq!(prober.ready().unwrap(), EchoTransport::Tcp);
    ten_answered.recv_timeout(Duration::from_secs(20)).unwrap();
    reflector.allow(1 << 30);
    prober.finish()
}

fn assert_all_answered(probes: &Probes) {
    assert_eq!((probes.transport, probes.duplicates), (Some(EchoTransport::Tcp), 0));
    assert!(probes.iter().count() >= 10);
    assert!(probes.iter().all(|probe| probe.rtt_us.is_some() && probe.arrived == Some(true)));
}

#[test]
fn without_answers_over_udp_a_data_connection_carries_the_probes() {
    // This socket is bound, so that no error reports the port as closed, but the socket is never read.
    let silent = UdpSocket::bind(HERE).unwrap();
    let probes = ten_over(plain_pair, silent.local_addr().ok());
    assert_all_answered(&probes);
    assert!(probes.iter().all(|probe| probe.sent_at >= Duration::from_secs(1)), "UDP was tried for a second");
}

#[test]
fn a_reflector_without_udp_is_probed_inside_tls_at_once() {
    let probes = ten_over(tls_pair, None);
    assert_all_answered(&probes);
}

#[test]
fn the_end_of_a_data_connection_skips_the_rest() {
    let (reflector, ten_answered) = leased();
    let fall_back = Box::new(answered_line(&reflector, plain_pair));
    let prober =
        Prober::start(ProberSetup { target: None, fall_back, ..setup(HERE.into(), &SessionControl::unmetered()) })
            .unwrap();
    ten_answered.recv_timeout(Duration::from_secs(20)).unwrap();
    reflector.cancel();
    let probes = prober.finish();
    assert_eq!(probes.transport, Some(EchoTransport::Tcp));
    assert!(probes.iter().filter(|probe| probe.rtt_us.is_some()).count() >= 9);
}

#[test]
fn without_a_transport_the_reason_is_reported() {
    let closed = UdpSocket::bind(HERE).unwrap().local_addr().unwrap();
    let prober = Prober::start(setup(closed, &SessionControl::unmetered())).unwrap();
    assert_eq!(prober.ready().unwrap_err().to_string(), "nothing to fall back to");
    let probes = prober.finish();
    assert_eq!((probes.transport, probes.iter().count()), (None, 0));
}

#[test]
fn a_cancelled_session_ends_the_search_for_a_transport() {
    let silent = UdpSocket::bind(HERE).unwrap();
    let control = SessionControl::unmetered();
    let (fell_back, falls_back) = mpsc::channel();
    let fall_back = Box::new(move || {
        fell_back.send(()).unwrap_or(());
        Err(io::ErrorKind::Unsupported.into())
    });
    let began = Instant::now();
    let prober = Prober::start(ProberSetup { fall_back, ..setup(silent.local_addr().unwrap(), &control) }).unwrap();
    control.cancel();
    // On a slow machine, the test for UDP may end before the cancellation, so that the prober calls the fallback.
    let in_time = began.elapsed() < Duration::from_secs(1);
    assert!(prober.ready().is_err());
    assert_eq!(prober.finish().transport, None);
    assert!(!in_time || falls_back.try_recv().is_err(), "a session that is over does not fall back");
}

#[test]
fn a_prober_ends_at_once_however_far_apart_its_probes_are() {
    let (responder, _enrolment) = reflector();
    let slow = || {
        let order = setup(responder.local_addr(), &SessionControl::unmetered());
        let prober = Prober::start(ProberSetup { interval: Duration::from_secs(3600), ..order }).unwrap();
        assert_eq!(prober.ready().unwrap(), EchoTransport::Udp);
        prober
    };
    drop(slow());
    let probes = slow().finish();
    assert!(probes.iter().count() <= 1);
}

fn quiet(duration_ms: u32) -> IdleEnd {
    let phases = vec![PhaseSpec { load: Load::Idle, duration_ms }];
    let spec = TestSpec::new(EngineId::try_from("echo").unwrap(), DataMode::Tunneled, phases, 1);
    IdleEnd { spec, control: SessionControl::unmetered() }
}

#[test]
fn a_phase_begins_lasts_and_moves_nothing() {
    let seen = Mutex::new(Vec::new());
    let began = Instant::now();
    let tally = EngineServer::run(&quiet(20), 0, &|progress| seen.lock().unwrap().push(progress));
    assert!(began.elapsed() >= Duration::from_millis(20));
    assert_eq!(*seen.lock().unwrap(), [crate::engine::PhaseProgress::Started]);
    assert_eq!(tally, PhaseTally::default());
}

#[test]
fn a_cancelled_session_ends_the_phase_with_the_reason() {
    let quiet = quiet(3_600_000);
    let tally = EngineClient::run(&quiet, 0, &|_| quiet.control.cancel());
    assert!(tally.cut_short.is_some());
}

#[test]
fn an_unknown_phase_returns_at_once_with_the_reason() {
    let tally = EngineServer::run(&quiet(3_600_000), 9, &|_| panic!("nothing happens in it"));
    assert_eq!(tally, PhaseTally { cut_short: Some(crate::phase::NO_SUCH_PHASE.into()), ..PhaseTally::default() });
}
