//! Tests both ends of `tcp` against each other over real loopback sockets. No test waits for a clock: a phase ends by
//! itself or by an event.

#![expect(clippy::disallowed_methods, reason = "tests run in wall time")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paramedic_link::SessionId;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::{PhaseTally, Sample};
use paramedic_link::test_spec::{DataMode, DataPathWish, Direction, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::tls::Alpn;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use zeroize::Zeroizing;

use super::client::TcpClient;
use super::server::TcpServer;
use super::{Tcp, payload};
use crate::data_stream::DataStream;
use crate::data_stream::tests::{accept_tls, configs};
use crate::dialer::Dialer;
use crate::engine::{
    ClientSetup, Engine, EngineClient, EngineServer, PhaseProgress, ServerSetup, StreamsMissing, is_refusal,
};
use crate::metered_stream::MeteredStream;
use crate::origin::Origin;
use crate::session_control::SessionControl;

const HOUR_MS: u32 = 3_600_000;

/// Both ends of a test session in one process.
struct Session {
    server: Arc<TcpServer>,
    client: TcpClient,
    reflector: Arc<SessionControl>,
    appliance: Arc<SessionControl>,
}

fn spec(mode: DataMode, streams: u16, loads: &[Load], duration_ms: u32) -> TestSpec {
    let phases = loads.iter().map(|load| PhaseSpec { load: *load, duration_ms }).collect();
    let spec = TestSpec::new(EngineId::try_from("tcp").unwrap(), mode, phases, streams);
    TestSpec { congestion_control: Some("reno".into()), ..spec }
}

fn client(spec: &TestSpec, dialer: Dialer, keys: SessionKeys, control: &Arc<SessionControl>) -> TcpClient {
    TcpClient::new(ClientSetup {
        spec: spec.clone(),
        keys: Arc::new(keys),
        dialer: Arc::new(dialer),
        control: Arc::clone(control),
        terms: None,
        scratch: std::env::temp_dir(),
    })
    .unwrap()
}

impl Session {
    fn open(spec: &TestSpec) -> Self {
        Self::open_with(spec, SessionControl::unmetered())
    }

    fn open_with(spec: &TestSpec, reflector: Arc<SessionControl>) -> Self {
        let keys = || SessionKeys::derive(SessionId::from_bytes([5; 16]), Zeroizing::new([5; 32]));
        let appliance = SessionControl::unmetered();
        let direct = spec.data_mode == DataMode::DirectEphemeral;
        let claim = direct.then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let server = TcpServer::open(ServerSetup {
            spec: spec.clone(),
            keys: Arc::new(keys()),
            claim,
            peer: [127, 0, 0, 1].into(),
            control: Arc::clone(&reflector),
            scratch: std::env::temp_dir(),
        });
        let server = Arc::new(server.unwrap());
        let (target, tls) = match server.local_addr() {
            Some(at) => (at, None),
            None => {
                let (at, tls) = control_port(Arc::clone(&server), keys(), Arc::clone(&reflector));
                (at, Some(tls))
            }
        };
        let dialer = Dialer { target, tls, origin: Origin::default(), connect_timeout: Duration::from_secs(10) };
        let client = client(spec, dialer, keys(), &appliance);
        Self { server, client, reflector, appliance }
    }

    /// Runs one phase at both ends. Returns the reflector's tally, the appliance's tally, and the samples of the
    /// payload that each end received.
    fn run(
        &self,
        phase: u8,
        watch: impl Fn(PhaseProgress) + Sync,
    ) -> (PhaseTally, PhaseTally, Vec<(Direction, Sample)>) {
        let samples = Mutex::new(Vec::new());
        let (start, started) = channel();
        let report = |progress| {
            match progress {
                PhaseProgress::Started => start.send(()).unwrap_or(()),
                PhaseProgress::Received(direction, sample) => samples.lock().unwrap().push((direction, sample)),
                PhaseProgress::Sent(..) | PhaseProgress::Detail(..) => {}
            }
            watch(progress);
        };
        let (served, driven) = std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let tally = self.server.run(phase, &report);
                // Ends the wait for the start if the phase did not start.
                start.send(()).unwrap_or(());
                tally
            });
            self.client.connect(phase).unwrap();
            started.recv().unwrap();
            let driven = self.client.run(phase, &report);
            (served.join().unwrap(), driven)
        });
        (served, driven, samples.into_inner().unwrap())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reflector.cancel();
        self.appliance.cancel();
    }
}

/// Accepts tunneled data connections like a reflector's control port, until the session is cancelled.
fn control_port(
    server: Arc<TcpServer>,
    keys: SessionKeys,
    control: Arc<SessionControl>,
) -> (SocketAddr, Arc<rustls::ClientConfig>) {
    let (server_tls, client_tls) = configs(Alpn::Data);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let _registration = control.register(&listener);
        while let Ok((socket, _)) = listener.accept() {
            let admitted = || -> io::Result<()> {
                let mut connection = accept_tls(&server_tls, &socket)?;
                let mut preamble = [0; Preamble::LEN];
                rustls::Stream::new(&mut connection, &mut &socket).read_exact(&mut preamble)?;
                let preamble = Preamble::open(&preamble, &keys).ok_or(io::ErrorKind::InvalidData)?;
                let stream = DataStream::tls(connection.into(), socket.try_clone()?)?;
                server.admit(preamble, MeteredStream::new(stream, Arc::clone(&control)));
                Ok(())
            };
            if admitted().is_err() {
                return;
            }
        }
    });
    (at, client_tls)
}

#[test]
fn each_stream_is_recorded_at_both_ends_only_if_the_test_asks_for_it() {
    let recorded = |phase_detail| {
        let asked = TestSpec { phase_detail, ..spec(DataMode::DirectEphemeral, 2, &[Load::Bidir], 700) };
        let kept = Mutex::new(Vec::new());
        let (served, driven, _) = Session::open(&asked).run(0, |progress| {
            if let PhaseProgress::Detail(direction, sample) = progress {
                kept.lock().unwrap().push((direction, sample));
            }
        });
        assert_eq!((served.cut_short, driven.cut_short), (None, None));
        for (sender, direction) in [(&served.download, Direction::Download), (&driven.upload, Direction::Upload)] {
            let times = sender.as_ref().unwrap().tcp_times.unwrap();
            assert!(times.total_us >= 2 * 400_000 && times.busy_us <= times.total_us, "{direction}: {times:?}");
            assert!(times.receive_window_us + times.send_buffer_us <= times.busy_us, "{direction}: {times:?}");
        }
        kept.into_inner().unwrap()
    };
    assert_eq!(recorded(false), []);
    let kept = recorded(true);
    for direction in Direction::BOTH {
        for stream in 0..2 {
            let of_stream = kept.iter().filter(|(of, sample)| (*of, sample.stream) == (direction, stream));
            let of_stream = of_stream.map(|(_, sample)| sample).collect::<Vec<_>>();
            // Each end has recorded at least one sample of the stream, even if samples were late.
            assert!(of_stream.len() >= 2, "{direction} {stream}: {kept:?}");
            assert!(of_stream.iter().all(|sample| sample.at_ms >= 100 && sample.rtt_us.is_some()), "{kept:?}");
            assert!(of_stream.iter().any(|sample| sample.busy_us > Some(0)), "the sender's: {kept:?}");
        }
    }
}

#[test]
fn both_ends_count_the_same_bytes_in_every_mode_and_direction() {
    let loads = [Load::Download, Load::Upload, Load::Bidir, Load::Idle];
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        for streams in [1, 3, 8] {
            let session = Session::open(&spec(mode, streams, &loads, 250));
            for (phase, load) in (0..).zip(loads) {
                let what = format!("{mode} {streams} {load}");
                let (served, driven, samples) = session.run(phase, |_| ());
                assert_eq!((&served.cut_short, &driven.cut_short), (&None, &None), "{what}");
                for direction in Direction::BOTH {
                    let (ours, theirs) = (driven.direction(direction), served.direction(direction));
                    assert_eq!(ours.is_some(), load.moves(direction), "{what}");
                    let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                    assert_eq!(ours.count.bytes, theirs.count.bytes, "{what} {direction}");
                    assert!(ours.count.bytes > 0, "{what} {direction}");
                    let sampled = samples.iter().filter(|(of, _)| *of == direction).map(|(_, s)| s.bytes).sum::<u64>();
                    assert!(sampled <= ours.count.bytes, "{what} {direction}");
                    let (sender, receiver) =
                        if direction == Direction::Download { (theirs, ours) } else { (ours, theirs) };
                    assert_eq!(sender.congestion_control.as_ref().unwrap().as_str(), "reno");
                    assert!(sender.mss.unwrap() >= 536 && sender.retransmits.is_some());
                    let tunneled = mode == DataMode::Tunneled;
                    let path = receiver.data_path.as_ref().unwrap();
                    assert_eq!(path.as_str(), if tunneled { "tls" } else { "trunc" });
                    assert!(receiver.count.elapsed_us > 0 && sender.count.elapsed_us > 0);
                }
            }
        }
    }
}

#[test]
fn the_requested_data_path_is_used_and_reported() {
    let paths = [
        (DataPathWish::Auto, "splice", "trunc"),
        (DataPathWish::Plain, "plain", "plain"),
        (DataPathWish::Trunc, "plain", "trunc"),
        (DataPathWish::Splice, "splice", "trunc"),
    ];
    for (data_path, sends, receives) in paths {
        let spec = TestSpec { data_path, ..spec(DataMode::DirectEphemeral, 2, &[Load::Bidir], 200) };
        let (served, driven, _) = Session::open(&spec).run(0, |_| ());
        assert_eq!((&served.cut_short, &driven.cut_short), (&None, &None), "{data_path:?}");
        for (sender, receiver) in [(&served.download, &driven.download), (&driven.upload, &served.upload)] {
            let (sender, receiver) = (sender.as_ref().unwrap(), receiver.as_ref().unwrap());
            assert!(sender.count.bytes > 0 && sender.count.bytes == receiver.count.bytes, "{data_path:?}");
            let named = [sender, receiver].map(|tally| tally.data_path.as_ref().unwrap().as_str());
            assert_eq!(named, [sends, receives], "{data_path:?}");
        }
    }
}

#[test]
fn an_unchanged_payload_is_verified_in_every_mode() {
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        // With small blocks, a block ends at every offset of the pattern.
        for block_bytes in [None, Some(1000)] {
            let spec = TestSpec { verify_payload: true, block_bytes, ..spec(mode, 2, &[Load::Bidir], 200) };
            let (served, driven, _) = Session::open(&spec).run(0, |_| ());
            assert_eq!((&served.cut_short, &driven.cut_short), (&None, &None), "{mode} {block_bytes:?}");
            assert!(served.upload.unwrap().count.bytes > 0 && driven.download.unwrap().count.bytes > 0);
        }
    }
}

#[test]
fn a_changed_payload_ends_the_phase() {
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        let spec = TestSpec { verify_payload: true, ..spec(mode, 1, &[Load::Upload], HOUR_MS) };
        let session = Session::open(&spec);
        let served = std::thread::scope(|scope| {
            let served = scope.spawn(|| session.server.run(0, &|_| ()));
            let mut stream = session.client.dial(0, 0).unwrap();
            let mut bytes = payload::from(0, 5000).to_vec();
            bytes[4321] ^= 0x10;
            stream.write_all(&bytes).and_then(|()| stream.flush()).unwrap();
            served.join().unwrap()
        });
        let why = served.cut_short.unwrap();
        assert!(why.as_str().ends_with("byte 4321 of the stream does not match the expected payload"), "{why}");
    }
}

#[test]
fn a_rate_limited_stream_sends_no_faster() {
    const BYTES_PER_S: u64 = 1_000_000;
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        let spec = TestSpec { bitrate_bps: Some(8 * BYTES_PER_S), ..spec(mode, 2, &[Load::Bidir], 500) };
        let (served, driven, _) = Session::open(&spec).run(0, |_| ());
        for received in [driven.download, served.upload] {
            let count = received.unwrap().count;
            // The kernel may send a few loopback segments of 64 KiB before it delays a stream. A receiver that begins
            // late reads all of these at once.
            let elapsed_us = count.elapsed_us.max(500_000);
            let most = 2 * (BYTES_PER_S * elapsed_us / 1_000_000 + (1 << 19));
            assert!(count.bytes > 0 && count.bytes <= most, "{mode}: {count:?}");
        }
    }
}

#[test]
fn segments_respect_the_maximum_size() {
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        let spec = TestSpec { mss_bytes: Some(1000), ..spec(mode, 1, &[Load::Bidir], 200) };
        let (served, driven, _) = Session::open(&spec).run(0, |_| ());
        for sent in [served.download, driven.upload] {
            assert!(sent.unwrap().mss.unwrap() <= 1000, "{mode}");
        }
    }
}

#[test]
fn unsupported_options_are_refused() {
    let direct = spec(DataMode::DirectEphemeral, 1, &[Load::Upload], 100);
    let tunneled = TestSpec { data_mode: DataMode::Tunneled, ..direct.clone() };
    let refuses = |spec: TestSpec| Tcp.unsupported(&spec).is_some();
    assert!(!refuses(direct.clone()) && !refuses(tunneled.clone()));
    assert!(refuses(TestSpec { data_path: DataPathWish::Splice, ..tunneled.clone() }));
    assert!(refuses(TestSpec { data_path: DataPathWish::Trunc, verify_payload: true, ..direct.clone() }));
    assert!(!refuses(TestSpec { data_path: DataPathWish::Plain, verify_payload: true, ..direct.clone() }));
    assert!(refuses(TestSpec { fragments: true, ..direct }));
}

#[test]
fn samples_have_their_time_and_end_with_the_phase() {
    let session = Session::open(&spec(DataMode::DirectEphemeral, 2, &[Load::Download], 550));
    let (_, driven, samples) = session.run(0, |_| ());
    assert!(samples.windows(2).all(|pair| pair[0].1.at_us < pair[1].1.at_us));
    // No sample is taken after the end of the phase, even if earlier samples were late.
    assert!(samples.len() <= 5, "{samples:?}");
    assert!(driven.download.unwrap().count.elapsed_us > 0);
}

#[test]
fn cancelling_either_end_ends_both_during_a_phase() {
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            for reflector_cuts in [true, false] {
                let session = Session::open(&spec(mode, 4, &[load], HOUR_MS));
                let cut_at = Mutex::new(None);
                let (served, driven, _) = session.run(0, |progress| {
                    let PhaseProgress::Received(_, Sample { bytes: 1.., .. }) = progress else { return };
                    let mut cut_at = cut_at.lock().unwrap();
                    if cut_at.is_none() {
                        *cut_at = Some(Instant::now());
                        if reflector_cuts { session.reflector.cancel() } else { session.appliance.cancel() }
                    }
                });
                let what = format!("{mode} {load}, the reflector cuts: {reflector_cuts}");
                let took = cut_at.into_inner().unwrap().unwrap().elapsed();
                // The phase lasts an hour.
                assert!(took < Duration::from_secs(60), "{what}: {took:?}");
                let (cutter, other) = if reflector_cuts { (served, driven) } else { (driven, served) };
                assert_eq!(cutter.cut_short.unwrap().as_str(), crate::phase::SESSION_OVER, "{what}");
                let why = other.cut_short.clone().unwrap_or_default();
                assert!(why.as_str().starts_with("a data connection failed"), "{what}: {why}");
                assert!(other.bytes() > 0, "{what}: the counts are kept");
            }
        }
    }
}

#[test]
fn a_phase_that_the_appliance_stops_ends_whole_at_both_ends() {
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            let session = Session::open(&TestSpec { may_stop: true, ..spec(mode, 4, &[load], HOUR_MS) });
            let is_stopped = AtomicBool::new(false);
            let (served, driven, _) = session.run(0, |progress| {
                let PhaseProgress::Received(_, Sample { bytes: 1.., .. }) = progress else { return };
                if !is_stopped.swap(true, Ordering::SeqCst) {
                    session.appliance.stop_phase();
                    // In an upload the streams may end before the reflector reads the message.
                    if load != Load::Upload {
                        session.reflector.stop_phase();
                    }
                }
            });
            let what = format!("{mode} {load}");
            assert_eq!((&served.cut_short, &driven.cut_short), (&None, &None), "{what}");
            for direction in load.directions() {
                let [served, driven] = [&served, &driven].map(|tally| tally.direction(*direction).unwrap().count.bytes);
                assert!(served > 0 && served == driven, "{what} {direction}: {served} {driven}");
            }
        }
    }
}

#[test]
fn an_exhausted_budget_pauses_the_stream() {
    for load in [Load::Download, Load::Upload] {
        const SLICE: u64 = 1 << 20;
        let session =
            Session::open_with(&spec(DataMode::DirectEphemeral, 1, &[load], HOUR_MS), SessionControl::metered(|| ()));
        session.reflector.allow(SLICE);
        let is_extended = AtomicBool::new(false);
        let (served, _, _) = session.run(0, |progress| {
            let PhaseProgress::Received(_, sample) = progress else { return };
            // While no byte flows, extends the budget the first time, and cancels the session the second time.
            if sample.bytes == 0 && session.reflector.is_exhausted() && !is_extended.swap(true, Ordering::SeqCst) {
                let spent = session.reflector.spent();
                assert!(spent >= SLICE && spent <= SLICE + 4 * crate::data_stream::CHUNK as u64, "{load}: {spent}");
                session.reflector.allow(16 * SLICE);
            }
            if session.reflector.spent() >= 16 * SLICE {
                session.reflector.cancel();
            }
        });
        assert!(is_extended.into_inner(), "{load}: more flowed than the budget allows");
        assert!(served.bytes() <= session.reflector.spent(), "{load}: all counted bytes are charged");
    }
}

#[test]
fn tiny_blocks_inside_tls_are_charged_by_their_records() {
    for load in [Load::Download, Load::Upload] {
        let spec = TestSpec { block_bytes: Some(1), ..spec(DataMode::Tunneled, 1, &[load], HOUR_MS) };
        let session = Session::open_with(&spec, SessionControl::metered(|| ()));
        session.reflector.allow(1 << 40);
        let (served, _, _) = session.run(0, |_| {
            if session.reflector.spent() >= 1 << 20 {
                session.reflector.cancel();
            }
        });
        // A record with a payload of one byte has 23 bytes (RFC 8446, section 5.2). Three quarters of them are charged,
        // except for the first 17 KB.
        let (payload, spent) = (served.bytes(), session.reflector.spent());
        assert!(spent >= 16 * payload && payload > 0, "{load}: {payload} bytes of payload, {spent} charged");
    }
}

#[test]
fn bytes_of_streams_that_no_phase_reads_are_charged() {
    const BYTES: usize = 100_000;
    for mode in [DataMode::DirectEphemeral, DataMode::Tunneled] {
        let session = Session::open_with(&spec(mode, 1, &[Load::Upload], 100), SessionControl::metered(|| ()));
        session.reflector.allow(1 << 40);
        let mut stream = session.client.dial(0, 0).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(session.reflector.wait_until(deadline, || session.server.is_complete(0)));
        stream.write_all(&[7; BYTES]).unwrap();
        stream.flush().unwrap();
        while crate::socket::is_unacknowledged(stream.socket()) {
            std::thread::yield_now();
        }
        session.reflector.cancel();
        session.server.close_streams(0);
        assert!(session.reflector.spent() >= BYTES as u64, "{mode}: {}", session.reflector.spent());
    }
}

#[test]
fn a_receiver_that_sends_data_ends_its_stream() {
    let session = Session::open(&spec(DataMode::DirectEphemeral, 1, &[Load::Download], 300));
    std::thread::scope(|scope| {
        let served = scope.spawn(|| session.server.run(0, &|_| ()));
        let stream = session.client.dial(0, 0).unwrap();
        let (mut reader, mut writer) = (stream.socket().try_clone().unwrap(), stream.socket().try_clone().unwrap());
        // The writes end with an error once the other end has closed.
        let writing = scope.spawn(move || (0..).take_while(|_| writer.write_all(&[7; 4096]).is_ok()).count());
        // Reads all sent bytes, up to the end or the reset.
        while matches!(reader.read(&mut [0; 1 << 16]), Ok(1..)) {}
        assert!(served.join().unwrap().bytes() > 0);
        // Only the kernels of both ends buffer bytes; a sender that continued to read would accept hundreds of MB.
        let taken = writing.join().unwrap() * 4096;
        assert!(taken < 64 << 20, "{taken} bytes were taken");
    });
}

/// Makes the kernel drop all packets that arrive for `socket`, with the classic BPF program `ret 0`
/// (linux/bpf_common.h).
fn drop_all_packets(socket: &TcpStream) {
    SockRef::from(socket).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
}

#[test]
fn a_sender_pauses_while_the_other_end_is_silent() {
    const BYTES_PER_S: u64 = 250_000;
    let asked = spec(DataMode::DirectEphemeral, 1, &[Load::Download], HOUR_MS);
    let asked = TestSpec { bitrate_bps: Some(8 * BYTES_PER_S), ..asked };
    let session = Session::open_with(&asked, SessionControl::metered(|| ()));
    session.reflector.allow(1 << 40);
    let (sample, samples) = channel();
    std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            session.server.run(0, &|progress| {
                // Uses the charge, which covers all sent bytes; a sample covers only the acknowledged bytes.
                if let PhaseProgress::Sent(..) = progress {
                    sample.send(session.reflector.spent()).unwrap();
                }
            })
        });
        let stream = session.client.dial(0, 0).unwrap();
        let mut socket = stream.socket().try_clone().unwrap();
        let reading =
            scope.spawn(move || (0..).take_while(|_| matches!(socket.read(&mut [0; 1 << 16]), Ok(1..))).count());
        let mut before = 0;
        let mut next = || {
            let total: u64 = samples.recv_timeout(Duration::from_secs(60)).unwrap();
            total - std::mem::replace(&mut before, total)
        };
        while next() == 0 {}
        // This end's kernel receives no more packets, and so acknowledges none: the whole end is silent.
        drop_all_packets(stream.socket());
        let mut sent = 0;
        let mut quiet = 0;
        while quiet < 10 {
            let bytes = next();
            sent += bytes;
            quiet = if bytes == 0 { quiet + 1 } else { 0 };
        }
        // TCP itself would send ten segments of 64 KiB before it waits for the first acknowledgement.
        assert!(sent > 0 && sent < 2 * BYTES_PER_S, "{sent} bytes for an end that is silent");
        SockRef::from(stream.socket()).detach_filter().unwrap();
        while next() == 0 {}
        session.reflector.cancel();
        assert_eq!(served.join().unwrap().cut_short.unwrap().as_str(), crate::phase::SESSION_OVER);
        drop(stream);
        assert!(reading.join().unwrap() > 0);
    });
}

#[test]
fn a_paused_sender_ends_with_its_session() {
    let asked = spec(DataMode::DirectEphemeral, 1, &[Load::Download], HOUR_MS);
    let session = Session::open(&TestSpec { bitrate_bps: Some(2_000_000), ..asked });
    let quiet = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let stream = session.client.dial(0, 0).unwrap();
            drop_all_packets(stream.socket());
            stream
        });
        let served = session.server.run(0, &|progress| {
            // After more than a second of silence.
            let PhaseProgress::Sent(_, taken) = progress else { return };
            if taken.bytes > 0 {
                quiet.store(0, Ordering::SeqCst);
            } else if quiet.fetch_add(1, Ordering::SeqCst) == 20 {
                session.reflector.cancel();
            }
        });
        assert_eq!(served.cut_short.unwrap().as_str(), crate::phase::SESSION_OVER);
        drop(stream.join().unwrap());
    });
}

#[test]
fn a_phase_without_its_streams_moves_nothing_and_reports_why() {
    let session = Session::open(&spec(DataMode::DirectEphemeral, 2, &[Load::Upload], 100));
    let tally = session.client.run(0, &|_| ());
    assert_eq!(tally.upload.unwrap().count.bytes, 0);
    assert!(tally.cut_short.is_some());
    assert!(session.server.run(9, &|_| ()).cut_short.is_some());
    session.reflector.cancel();
    assert_eq!(session.server.run(0, &|_| ()).cut_short.unwrap().as_str(), crate::phase::SESSION_OVER);
}

#[test]
fn a_second_stream_of_the_same_index_is_dropped() {
    let session = Session::open(&spec(DataMode::Tunneled, 2, &[Load::Upload], 100));
    session.client.connect(0).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = MeteredStream::new(DataStream::Plain(listener.accept().unwrap().0), SessionControl::unmetered());
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(session.reflector.wait_until(deadline, || session.server.is_complete(0)));
    session
        .server
        .admit(Preamble { session: SessionId::from_bytes([5; 16]), phase: 0, stream: 1, nonce: [0; 12] }, theirs);
    assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn an_error_says_how_many_streams_were_opened() {
    let spec = spec(DataMode::DirectEphemeral, 6, &[Load::Upload], 100);
    // A port without a listener refuses every stream.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let opened_at = |target| {
        let connect_timeout = Duration::from_millis(500);
        let dialer = Dialer { target, tls: None, origin: Origin::default(), connect_timeout };
        let keys = SessionKeys::derive(SessionId::from_bytes([5; 16]), Zeroizing::new([5; 32]));
        let error = client(&spec, dialer, keys, &SessionControl::unmetered()).connect(0).unwrap_err();
        let missing = StreamsMissing::of(&error).unwrap();
        assert_eq!(missing.streams, 6);
        (missing.opened, is_refusal(&missing.cause), error.kind())
    };
    assert_eq!(opened_at(closed), (0, true, ErrorKind::ConnectionRefused));
    // A full accept queue leaves the other connections without an answer.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let (opened, is_refused, kind) = opened_at(listener.local_addr().unwrap().as_socket().unwrap());
    assert!((1..6).contains(&opened) && !is_refused && kind == ErrorKind::TimedOut, "{opened} {kind}");
}

#[test]
fn a_stream_is_acknowledged_once_its_preamble_arrived() {
    let session = Session::open(&spec(DataMode::DirectEphemeral, 3, &[Load::Upload], 100));
    assert_eq!((session.client.opened(0), session.client.acknowledged(0)), (0, 0));
    session.client.connect(0).unwrap();
    assert_eq!(session.client.opened(0), 3);
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(session.reflector.wait_until(deadline, || session.server.is_complete(0)));
    while session.client.acknowledged(0) < 3 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}
