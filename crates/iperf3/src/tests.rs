//! Tests both ends of the engine `iperf3` over loopback with a real iperf3, also while other clients connect to the
//! session's port.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paramedic_engines::dialer::Dialer;
use paramedic_engines::engine::{ClientSetup, Engine, EngineClient, EngineServer, PhaseProgress, ServerSetup};
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::socket;
use paramedic_link::SessionId;
use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::{PhaseTally, Sample};
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::client_end::Iperf3Client;
use super::login::{LoginTerms, SessionLogin};
use super::path_watch::PathWatch;
use super::program::Program;
use super::server_end::Iperf3Server;

/// Whether iperf3 is installed; prints a message if not.
fn has_iperf3() -> bool {
    let found = Program::find();
    if let Err(lacking) = &found {
        eprintln!("SKIPPED: {lacking}; {}", lacking.hint);
    }
    found.is_ok()
}

struct Session {
    server: Iperf3Server,
    client: Iperf3Client,
    reflector: Arc<SessionControl>,
    appliance: Arc<SessionControl>,
    scratch: TempDir,
}

fn spec(streams: u16, loads: &[Load]) -> TestSpec {
    let phases = loads.iter().map(|load| PhaseSpec { load: *load, duration_ms: 1000 }).collect();
    let spec = TestSpec::new(EngineId::try_from("iperf3").unwrap(), DataMode::DirectEphemeral, phases, streams);
    let engine_support = super::Iperf3.check_client().unwrap_or_default();
    TestSpec { congestion_control: Some("reno".into()), engine_support, ..spec }
}

fn keys() -> Arc<SessionKeys> {
    Arc::new(SessionKeys::derive(SessionId::from_bytes([5; 16]), Zeroizing::new([5; 32])))
}

impl Session {
    fn open(spec: &TestSpec) -> Self {
        Self::open_with(spec, SessionControl::unmetered(), keys())
    }

    fn open_with(spec: &TestSpec, reflector: Arc<SessionControl>, of_appliance: Arc<SessionKeys>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let server = Iperf3Server::open(ServerSetup {
            spec: spec.clone(),
            keys: keys(),
            claim: Some((Ipv4Addr::LOCALHOST, 0).into()),
            peer: Ipv4Addr::LOCALHOST.into(),
            control: Arc::clone(&reflector),
            scratch: scratch.path().to_owned(),
        });
        let server = server.unwrap();
        let appliance = SessionControl::unmetered();
        let dialer = Dialer {
            target: server.local_addr(),
            tls: None,
            origin: Origin::default(),
            connect_timeout: Duration::from_secs(10),
        };
        let client = Iperf3Client::new(ClientSetup {
            spec: spec.clone(),
            keys: of_appliance,
            dialer: Arc::new(dialer),
            control: Arc::clone(&appliance),
            terms: server.terms(),
            scratch: scratch.path().to_owned(),
        });
        Self { server, client: client.unwrap(), reflector, appliance, scratch }
    }

    /// Runs one phase at both ends. Returns the reflector's tally, the appliance's tally, and the samples of the
    /// payload that each end received.
    fn run(&self, phase: u8) -> (PhaseTally, PhaseTally, Vec<(Direction, Sample)>) {
        let samples = Mutex::new(Vec::new());
        let (start, started) = channel();
        let report = |progress| match progress {
            PhaseProgress::Started => start.send(()).unwrap_or(()),
            PhaseProgress::Received(direction, sample) => samples.lock().unwrap().push((direction, sample)),
            PhaseProgress::Sent(..) | PhaseProgress::Detail(..) => {}
        };
        let (served, driven) = std::thread::scope(|scope| {
            self.client.connect(phase).unwrap();
            let served = scope.spawn(|| {
                let tally = self.server.run(phase, &report);
                // Wakes the other end if the phase did not start.
                start.send(()).unwrap_or(());
                tally
            });
            started.recv().unwrap();
            let driven = self.client.run(phase, &report);
            (served.join().unwrap(), driven)
        });
        (served, driven, samples.into_inner().unwrap())
    }
}

fn sum(samples: &[(Direction, Sample)], of: Direction) -> u64 {
    samples.iter().filter(|(direction, _)| *direction == of).map(|(_, sample)| sample.bytes).sum()
}

#[test]
fn all_loads_run_in_order_and_both_ends_count_them() {
    if !has_iperf3() {
        return;
    }
    let session = Session::open(&spec(2, &[Load::Download, Load::Upload, Load::Idle, Load::Bidir]));
    let mut used_s = 0.0;
    for (phase, directions, streams) in
        [(0, &[Direction::Download][..], 2), (1, &[Direction::Upload], 2), (3, &Direction::BOTH, 2)]
    {
        let (served, driven, samples) = session.run(phase);
        assert_eq!((&served.cut_short, &driven.cut_short), (&None, &None), "phase {phase}: {served:?} {driven:?}");
        for direction in Direction::BOTH {
            let (ours, theirs) = (served.direction(direction), driven.direction(direction));
            assert_eq!(ours.is_some(), directions.contains(&direction));
            let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
            assert_eq!((ours.streams, theirs.streams), (streams, streams), "{direction}: {ours:?} {theirs:?}");
            // Bytes that one end counts may still be in the other end's kernel.
            let apart = ours.count.bytes.abs_diff(theirs.count.bytes);
            let most = (theirs.count.bytes / 5).max(MAX_BUFFERED);
            assert!(apart < most, "{direction}: {ours:?} {theirs:?}");
            let sampled = sum(&samples, direction);
            assert!(sampled > 0 && sampled <= ours.count.bytes.max(theirs.count.bytes), "{direction}: {samples:?}");
            used_s += ours.cpu.user_s + ours.cpu.system_s;
        }
        let sender = if directions[0] == Direction::Download { &served } else { &driven };
        let sender = sender.direction(directions[0]).unwrap();
        assert_eq!(sender.congestion_control.as_ref().unwrap().as_str(), "reno");
        assert!(session.client.raw(phase).unwrap().contains("\"end\""));
    }
    // The kernel counts in clock ticks, so a child may have used none in one phase.
    assert!(used_s > 0.0);
    let idle = session.server.run(9, &|_| {});
    assert!(idle.cut_short.is_some());
    let left = session.scratch.path().to_owned();
    drop(session);
    assert!(!left.exists());
}

#[test]
fn a_client_without_the_session_keys_is_not_served() {
    if !has_iperf3() {
        return;
    }
    let other = SessionKeys::derive(SessionId::from_bytes([5; 16]), Zeroizing::new([6; 32]));
    let session = Session::open_with(&spec(1, &[Load::Download]), SessionControl::unmetered(), Arc::new(other));
    let (served, driven, samples) = session.run(0);
    assert!(samples.is_empty());
    let why = served.cut_short.unwrap();
    assert!(why.as_str().contains("authorization"), "{why}");
    assert!(driven.cut_short.is_some());
    let complaint = session.client.explain_failure(0).unwrap();
    assert!(complaint.contains("authorization"), "{complaint}");
}

/// A connection to the session's port from an address that is not the appliance's; `None` if the connection was reset
/// before `connect` returned.
fn connect_from_elsewhere(to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    match socket.connect(&to.into()) {
        Ok(()) => Some(socket.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

/// Sets a flag when this value is dropped, also if a panic drops it.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn clients_at_other_addresses_cannot_end_block_or_use_a_test() {
    if !has_iperf3() {
        return;
    }
    let session = Session::open(&spec(4, &[Load::Upload]));
    let at = session.server.local_addr();
    let over = AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut refused = 0;
            let mut silent = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let garbage = connect_from_elsewhere(at);
                silent.extend(connect_from_elsewhere(at));
                // Keeps the number of descriptors bounded.
                silent.drain(..silent.len().saturating_sub(64));
                if let Some(mut garbage) = garbage {
                    // The connection may be reset before this write.
                    garbage.write_all(b"abcdefghijklmnopqrstuvwxyz2345678901\0").unwrap_or(());
                    let answer = garbage.read(&mut [0; 1]);
                    assert!(!matches!(answer, Ok(1..)), "a client at another address was answered");
                }
                refused += 1;
            }
            refused
        });
        let over = OnDrop(&over);
        let (served, driven, _) = session.run(0);
        drop(over);
        assert_eq!((served.cut_short, driven.cut_short), (None, None));
        others.join().unwrap()
    });
    assert!(refused > 0, "no other client connected");
}

/// Starts an iperf3 client with the session's login and the options `more`, without the appliance's end of the engine.
fn own_client(session: &Session, more: &[&str]) -> std::process::Child {
    let at = session.server.local_addr();
    let key = session.scratch.path().join("public.pem");
    let terms = LoginTerms::from_engine(&session.server.terms().unwrap()).unwrap();
    std::fs::write(&key, terms.key.pem()).unwrap();
    let login = SessionLogin::of(&keys());
    let mut command = std::process::Command::new("iperf3");
    command.args(["-c", "127.0.0.1", "-p", &at.port().to_string(), "--username", &login.user]);
    command.arg("--rsa-public-key-path").arg(&key).args(more).env("IPERF3_PASSWORD", &*login.password);
    command.args(Program::find().unwrap().padding_option(terms.padding));
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

#[test]
fn all_moved_bytes_are_charged_also_outside_of_phases() {
    if !has_iperf3() {
        return;
    }
    // The client uses fewer streams than granted, and runs outside of a phase.
    let control = SessionControl::metered(|| ());
    control.allow(1 << 50);
    let session = Session::open_with(&spec(2, &[Load::Upload, Load::Download]), Arc::clone(&control), keys());
    let mut client = own_client(&session, &["-P", "1", "-n", "200M"]);
    assert!(client.wait().unwrap().success());
    // The child may exit before the last bytes have arrived.
    assert!(control.spent() >= 100 << 20, "{} bytes charged", control.spent());
}

/// A client that is killed and reaped when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_client_that_stops_reading_gets_no_bytes_after_the_session_beyond_those_charged() {
    if !has_iperf3() {
        return;
    }
    let (ask, asked) = channel();
    let control = SessionControl::metered(move || ask.send(()).unwrap_or(()));
    control.allow(32 << 20);
    let session = Session::open_with(&spec(8, &[Load::Download]), Arc::clone(&control), keys());
    let client = Killed(own_client(&session, &["-R", "-P", "8", "-w", "256K", "-t", "60"]));
    // Half of the lease is used, so all streams are open.
    asked.recv_timeout(Duration::from_secs(60)).unwrap();
    let pid = Pid::from_child(&client.0);
    kill_process(pid, Signal::STOP).unwrap();
    control.allow(1 << 50);
    let connections = PathWatch::open(pid, session.server.local_addr()).unwrap().connections();
    let streams = connections.get(1..).unwrap();
    assert_eq!(streams.len(), 8);
    let received = || streams.iter().map(|stream| socket::counts(stream).unwrap().1).sum::<u64>();
    // No event says that the buffers are full. If they are not full yet, less is queued, and the test still holds.
    let mut before = 0;
    while received() != before {
        before = received();
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(session);
    for stream in streams {
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "the kernel still has bytes to send after the session");
    }
    let most = control.spent() + (1 << 20);
    assert!(received() <= most, "{} bytes received, {} charged", received(), control.spent());
}

#[test]
fn too_many_bytes_on_the_control_connection_end_the_child() {
    if !has_iperf3() {
        return;
    }
    let control = SessionControl::metered(|| ());
    control.allow(1 << 50);
    let session = Session::open_with(&spec(1, &[Load::Upload]), Arc::clone(&control), keys());
    let mut control_connection = TcpStream::connect(session.server.local_addr()).unwrap();
    control_connection.write_all(b"abcdefghijklmnopqrstuvwxyz2345678901\0").unwrap();
    // The claimed length of the parameters, which iperf3 does not bound.
    control_connection.read_exact(&mut [0; 1]).unwrap();
    control_connection.write_all(&(64u32 << 20).to_be_bytes()).unwrap();
    let block = vec![b'x'; 1 << 20];
    let taken = (0..4096u32).take_while(|_| control_connection.write_all(&block).is_ok()).count();
    assert!(taken < 1024, "{taken} MiB were taken");
    let tally = session.server.run(0, &|_| {});
    assert!(tally.cut_short.unwrap().as_str().contains("control connection"));
    // The last count is made after the child has ended.
    assert!(control.spent() > 1 << 20, "{} bytes charged", control.spent());
}

#[test]
fn half_a_cookie_from_the_appliances_address_blocks_nothing() {
    if !has_iperf3() {
        return;
    }
    let session = Session::open(&spec(1, &[Load::Download]));
    let mut half = TcpStream::connect(session.server.local_addr()).unwrap();
    half.write_all(b"half a cook").unwrap();
    let mut closed = TcpStream::connect(session.server.local_addr()).unwrap();
    closed.write_all(b"half a cook").unwrap();
    closed.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(!matches!(closed.read(&mut [0; 1]), Ok(1..)), "it was answered");
    let (served, driven, _) = session.run(0);
    assert_eq!((served.cut_short, driven.cut_short), (None, None));
}

/// A number of bytes above what the kernel buffers for two streams: if more bytes were acknowledged, the client has
/// read some of them.
const MAX_BUFFERED: u64 = 256 << 20;

#[test]
fn cancelling_at_either_end_ends_a_test_at_once() {
    if !has_iperf3() {
        return;
    }
    for cut_appliance in [false, true] {
        let long = TestSpec {
            phases: vec![PhaseSpec { load: Load::Download, duration_ms: 60_000 }],
            ..spec(2, &[Load::Download])
        };
        let session = Session::open(&long);
        let began = Instant::now();
        let (acknowledged, later) = (AtomicU64::new(0), AtomicU64::new(0));
        let (start, started) = channel();
        std::thread::scope(|scope| {
            session.client.connect(0).unwrap();
            let control = if cut_appliance { &session.appliance } else { &session.reflector };
            let served = scope.spawn(|| {
                session.server.run(0, &|progress| match progress {
                    PhaseProgress::Started => start.send(()).unwrap_or(()),
                    PhaseProgress::Sent(_, sample) => {
                        let before = acknowledged.fetch_add(sample.bytes, Ordering::Relaxed);
                        // The client prints only whole intervals, which are as long as these samples.
                        let is_read = sample.bytes > 0 && before > MAX_BUFFERED;
                        if is_read && later.fetch_add(1, Ordering::Relaxed) == 5 {
                            control.cancel();
                        }
                    }
                    PhaseProgress::Received(..) | PhaseProgress::Detail(..) => {}
                })
            });
            started.recv().unwrap();
            let driven = session.client.run(0, &|_| {});
            let served = served.join().unwrap();
            assert!(driven.cut_short.is_some() && served.cut_short.is_some());
            // The counts until then are kept.
            assert!(served.download.unwrap().count.bytes > 0);
            if cut_appliance {
                assert!(driven.download.unwrap().count.bytes > 0, "an interrupted client prints its counts");
            }
        });
        drop(session);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[test]
fn a_child_without_leased_bytes_is_stopped_soon() {
    if !has_iperf3() {
        return;
    }
    let (ask, requests) = channel();
    let control = SessionControl::metered(move || ask.send(()).unwrap_or(()));
    let session = Session::open_with(&spec(1, &[Load::Upload]), Arc::clone(&control), keys());
    control.allow(16 << 20);
    let lessor = std::thread::spawn({
        // A strong reference would keep the channel open.
        let control = Arc::downgrade(&control);
        move || {
            let mut slice = 16 << 20;
            while requests.recv().is_ok() {
                let Some(control) = control.upgrade() else { return };
                slice *= 2;
                control.allow(slice);
            }
        }
    });
    let (served, driven, _) = session.run(0);
    assert_eq!((&served.cut_short, driven.cut_short), (&None, None));
    // The bytes of the control connection are charged too.
    let beside = control.spent() - served.bytes();
    assert!((1..64 << 10).contains(&beside), "{beside} bytes were charged beside the payload");
    drop((session, control));
    lessor.join().unwrap();
}

#[test]
fn the_sandbox_is_tried_before_the_lane_is_offered() {
    if !has_iperf3() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    super::Iperf3.check_server(scratch.path()).unwrap();
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left behind");
    let missing = super::Iperf3.check_server(&scratch.path().join("nowhere")).unwrap_err();
    assert!(missing.because.contains("sandbox"), "{missing:?}");
}

#[test]
fn half_seconds_are_not_measured() {
    let half = TestSpec { phases: vec![PhaseSpec { load: Load::Download, duration_ms: 1500 }], ..spec(1, &[]) };
    assert!(super::Iperf3.unsupported(&half).is_some());
    assert!(super::Iperf3.unsupported(&spec(1, &[Load::Download])).is_none());
}
