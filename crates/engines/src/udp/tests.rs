//! Tests both ends of `udp` against each other over real loopback sockets, and against other senders. No test waits for
//! a clock: a phase ends by itself or by an event.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paramedic_link::SessionId;
use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::{DatagramTally, DatagramsSeen, PhaseTally};
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};
use zeroize::Zeroizing;

use super::client::UdpClient;
use super::packet::{Bulk, Feedback, HEADER, SIGNAL, Seal, Signal, StreamId, TOKEN, Word};
use super::server::UdpServer;
use crate::dialer::Dialer;
use crate::engine::{ClientSetup, EngineClient, EngineServer, PhaseProgress, ServerSetup};
use crate::origin::Origin;
use crate::session_control::SessionControl;
use crate::udp_port::{Enrolment, Refused, UdpPort};

fn keys(seed: u8) -> SessionKeys {
    SessionKeys::derive(SessionId::from_bytes([seed; 16]), Zeroizing::new([seed; 32]))
}

/// The duration of a phase that a test ends by an event.
const HOUR_MS: u32 = 3_600_000;

fn spec(streams: u16, loads: &[Load], duration_ms: u32) -> TestSpec {
    let phases = loads.iter().map(|load| PhaseSpec { load: *load, duration_ms }).collect();
    let engine = EngineId::try_from("udp").unwrap();
    TestSpec { bitrate_bps: Some(4_000_000), ..TestSpec::new(engine, DataMode::Tunneled, phases, streams) }
}

/// The reflector's end of one session, with its UDP port.
struct Reflector {
    port: Arc<UdpPort>,
    server: UdpServer,
    control: Arc<SessionControl>,
    enrolment: Enrolment,
}

impl Reflector {
    fn open(spec: &TestSpec, control: Arc<SessionControl>) -> Self {
        let port = UdpPort::spawn(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let peer = port.local_addr().ip();
        let server = UdpServer::open(ServerSetup {
            spec: spec.clone(),
            keys: Arc::new(keys(1)),
            claim: None,
            peer,
            control: Arc::clone(&control),
            scratch: std::env::temp_dir(),
        });
        let server = server.unwrap();
        let handlers = server.datagram_handler().into_iter().collect();
        let enrolment = port.enroll(keys(1).session(), Arc::clone(&control), peer, handlers);
        Self { port, server, control, enrolment }
    }

    fn at(&self) -> SocketAddr {
        self.port.local_addr()
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.control.cancel();
    }
}

fn client(spec: &TestSpec, target: SocketAddr, control: &Arc<SessionControl>) -> UdpClient {
    UdpClient::new(ClientSetup {
        spec: spec.clone(),
        keys: Arc::new(keys(1)),
        dialer: Arc::new(Dialer {
            target,
            tls: None,
            origin: Origin::default(),
            connect_timeout: Duration::from_secs(10),
        }),
        control: Arc::clone(control),
        terms: None,
        scratch: std::env::temp_dir(),
    })
}

/// Runs one phase at both ends. Returns the reflector's tally and the appliance's tally.
fn run(
    reflector: &Reflector,
    client: &UdpClient,
    phase: u8,
    watch: &(dyn Fn(PhaseProgress) + Sync),
) -> (PhaseTally, PhaseTally) {
    let (start, started) = channel();
    let start = Mutex::new(start);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            let tally = reflector.server.run(phase, &|progress| {
                if progress == PhaseProgress::Started {
                    start.lock().unwrap().send(()).unwrap_or(());
                }
                watch(progress);
            });
            // Ends the wait for the start if the phase did not start.
            start.lock().unwrap().send(()).unwrap_or(());
            tally
        });
        client.connect(phase).unwrap();
        started.recv().unwrap();
        let driven = client.run(phase, &watch);
        (served.join().unwrap(), driven)
    })
}

/// The datagram counts of the sender and of the receiver of `direction`.
fn counted((served, driven): &(PhaseTally, PhaseTally), direction: Direction) -> (DatagramTally, DatagramTally) {
    let of = |tally: &PhaseTally| **tally.direction(direction).unwrap().datagrams.as_ref().unwrap();
    match direction {
        Direction::Download => (of(served), of(driven)),
        Direction::Upload => (of(driven), of(served)),
    }
}

/// A socket that sends arbitrary signals to the reflector, in place of an appliance.
struct Teller {
    socket: UdpSocket,
    keys: SessionKeys,
}

impl Teller {
    fn from(host: &str, target: SocketAddr, seed: u8) -> Self {
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { socket, keys: keys(seed) }
    }

    fn sealed(&self, stream_id: StreamId, number: u64, word: Word) -> [u8; SIGNAL] {
        Signal { stream_id, number, word }.seal(Direction::Upload, &self.keys)
    }

    fn say(&self, stream_id: StreamId, number: u64, word: Word) {
        self.socket.send(&self.sealed(stream_id, number, word)).unwrap();
    }

    /// Waits for the reflector's next signal other than feedback.
    fn hear(&self) -> Signal {
        loop {
            let mut bytes = [0; 2000];
            let len = self.socket.recv(&mut bytes).unwrap();
            let signal =
                Signal::open(&bytes[..len], Direction::Download, &self.keys).expect("a signal of the reflector");
            if !matches!(signal.word, Word::Feedback(_)) {
                return signal;
            }
        }
    }

    fn token(&self, stream_id: StreamId, number: u64) -> [u8; TOKEN] {
        self.say(stream_id, number, Word::Hello);
        match self.hear() {
            Signal { word: Word::Challenge(token), number: of, .. } if of == number => token,
            other => panic!("{other:?}"),
        }
    }

    /// Validates the socket's address for a stream: requests a token, and returns it to the reflector.
    fn stand(&self, stream_id: StreamId) {
        let token = self.token(stream_id, 0);
        self.say(stream_id, 0, Word::Answer(token));
        assert_eq!(self.hear().word, Word::Ready);
    }

    /// Asserts that no datagram has arrived at the socket.
    fn assert_silence(&self) {
        self.socket.set_nonblocking(true).unwrap();
        assert_eq!(self.socket.recv(&mut [0; 2000]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

const FIRST: StreamId = StreamId { phase: 0, stream: 0 };

#[test]
fn what_is_sent_arrives_in_both_directions() {
    let spec = spec(2, &[Load::Bidir, Load::Download], 400);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let client = client(&spec, reflector.at(), &SessionControl::unmetered());
    for (phase, directions) in [(0, &Direction::BOTH[..]), (1, &[Direction::Download][..])] {
        let tallies = run(&reflector, &client, phase, &|_| ());
        assert_eq!((&tallies.0.cut_short, &tallies.1.cut_short), (&None, &None));
        for direction in directions {
            let (sender, receiver) = counted(&tallies, *direction);
            assert!(sender.sent.unwrap() > 0, "{sender:?}");
            // Loopback may lose datagrams that do not fit in a buffer, but the receiver must never count more than were
            // sent.
            assert!(receiver.received.unwrap() <= sender.sent.unwrap(), "{sender:?} {receiver:?}");
            assert_eq!((receiver.duplicates, receiver.out_of_order), (Some(0), Some(0)));
            assert_eq!(sender.payload_bytes, Some(1400));
            let count = tallies.0.direction(*direction).unwrap().count;
            assert_eq!(count.bytes % 1400, 0);
        }
    }
}

#[test]
fn bytes_are_charged_as_they_flow_and_wait_for_their_lease() {
    let spec = spec(1, &[Load::Download], HOUR_MS);
    let (asks, asked) = channel();
    let control = SessionControl::metered(move || asks.send(()).unwrap_or(()));
    control.allow(10_000);
    let reflector = Reflector::open(&spec, Arc::clone(&control));
    let appliance = SessionControl::unmetered();
    let client = client(&spec, reflector.at(), &appliance);
    let lend = Arc::clone(&control);
    let lending = std::thread::spawn(move || {
        asked.recv().unwrap();
        lend.allow(1 << 30);
    });
    let sent = AtomicU64::new(0);
    let tallies = run(&reflector, &client, 0, &|progress| {
        let PhaseProgress::Sent(_, sample) = progress else { return };
        if sent.fetch_add(sample.bytes, Ordering::SeqCst) + sample.bytes > 300_000 {
            control.cancel();
            appliance.cancel();
        }
    });
    lending.join().unwrap();
    let sent = tallies.0.download.unwrap().count.bytes;
    assert!(sent > 300_000);
    // The session is also charged for the signals that validate the address.
    assert!(control.spent() >= sent && control.spent() < sent + 1000 * SIGNAL as u64, "{} {sent}", control.spent());
}

#[test]
fn a_cancelled_session_ends_both_ends_of_a_phase() {
    for load in [Load::Download, Load::Upload] {
        let spec = spec(1, &[load], HOUR_MS);
        let reflector = Reflector::open(&spec, SessionControl::unmetered());
        let ours = SessionControl::unmetered();
        let client = client(&spec, reflector.at(), &ours);
        let tallies = run(&reflector, &client, 0, &|progress| {
            if matches!(progress, PhaseProgress::Received(_, sample) if sample.bytes > 0) {
                reflector.control.cancel();
                ours.cancel();
            }
        });
        assert!(tallies.0.cut_short.is_some() && tallies.1.cut_short.is_some());
    }
}

#[test]
fn a_cancelled_session_ends_the_validation() {
    let spec = spec(1, &[Load::Upload], HOUR_MS);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let control = SessionControl::unmetered();
    let client = client(&spec, silent.local_addr().unwrap(), &control);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client.connect(0));
        silent.recv(&mut [0; 200]).unwrap();
        control.cancel();
        assert_eq!(connecting.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    });
}

#[test]
fn no_reply_is_longer_than_its_request() {
    let spec = spec(1, &[Load::Download], HOUR_MS);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let teller = Teller::from("127.0.0.1", reflector.at(), 1);
    for word in [Word::Hello, Word::Answer(teller.token(FIRST, 5))] {
        let said = teller.sealed(FIRST, 6, word);
        teller.socket.send(&said).unwrap();
        let mut bytes = [0; 2000];
        assert!(teller.socket.recv(&mut bytes).unwrap() <= said.len());
    }
}

#[test]
fn a_stream_whose_source_changes_is_counted_and_gets_no_stream() {
    let spec = spec(1, &[Load::Download], HOUR_MS);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let seen = || reflector.enrolment.counts().seen();
    let [first, rewritten] = [(); 2].map(|()| Teller::from("127.0.0.1", reflector.at(), 1));
    let token = first.token(FIRST, 1);
    assert_eq!(seen(), DatagramsSeen { answered: 1, from_elsewhere: 0 });
    // The token is returned from another port, as behind a NAT. The reflector sends no challenge to this port.
    rewritten.say(FIRST, 2, Word::Answer(token));
    // The same stream begins again from the other port.
    rewritten.token(FIRST, 3);
    assert_eq!(seen(), DatagramsSeen { answered: 2, from_elsewhere: 2 });
    Teller::from("127.0.0.2", reflector.at(), 1).say(FIRST, 4, Word::Hello);
    first.token(FIRST, 5);
    assert_eq!(seen(), DatagramsSeen { answered: 3, from_elsewhere: 4 });
}

#[test]
fn a_forged_replayed_or_unknown_signal_gets_no_answer_and_changes_nothing() {
    let spec = spec(1, &[Load::Download], HOUR_MS);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let owner = Teller::from("127.0.0.1", reflector.at(), 1);
    let other_address = Teller::from("127.0.0.2", reflector.at(), 1);
    let other_port = Teller::from("127.0.0.1", reflector.at(), 1);
    let unknown = Teller::from("127.0.0.1", reflector.at(), 2);
    let token = owner.token(FIRST, 7);

    let mut forged = owner.sealed(FIRST, 8, Word::Hello);
    forged[95] ^= 1;
    let mut turned = Signal { stream_id: FIRST, number: 8, word: Word::Hello }.seal(Direction::Download, &owner.keys);
    let mut another_version = owner.sealed(FIRST, 8, Word::Hello);
    another_version[0] = 2;
    let mut bulk = vec![0; 1400];
    Seal::of(FIRST, Direction::Upload, &owner.keys).prepare(&mut bulk);
    Seal::stamp(Bulk { seq: 0, sent_ns: 0, is_settled: true }, &mut bulk);
    let feedback = Feedback { received: 9, through: 9, at_ns: 9, queue_us: 0, is_over: true };
    let refused: [&[u8]; 14] = [
        b"",
        &owner.sealed(FIRST, 8, Word::Hello)[..95],
        &[owner.sealed(FIRST, 8, Word::Hello).as_slice(), &[0]].concat(),
        &forged,
        &turned.clone(),
        &another_version,
        &owner.sealed(FIRST, 7, Word::Hello),
        &owner.sealed(FIRST, 6, Word::Hello),
        &owner.sealed(StreamId { phase: 1, stream: 0 }, 8, Word::Hello),
        &owner.sealed(StreamId { phase: 0, stream: 1 }, 8, Word::Hello),
        &owner.sealed(FIRST, 8, Word::Answer([7; TOKEN])),
        &owner.sealed(FIRST, 8, Word::Feedback(feedback)),
        &bulk,
        &bulk[..SIGNAL],
    ];
    for datagram in refused {
        owner.socket.send(datagram).unwrap();
    }
    turned[1] = 7;
    owner.socket.send(&turned).unwrap();
    other_address.say(FIRST, 8, Word::Hello);
    unknown.say(FIRST, 8, Word::Hello);
    // The token of one address is not valid for another address, even with the session's key.
    other_port.say(FIRST, 8, Word::Answer(token));

    // The reflector reads in order: after the reply to this signal, it answers no earlier signal.
    owner.say(FIRST, 9, Word::Answer(token));
    assert_eq!(owner.hear().word, Word::Ready);
    owner.say(FIRST, 9, Word::Answer(token));
    owner.say(FIRST, 9, Word::Hello);
    let challenge = owner.hear();
    assert!(matches!((challenge.word, challenge.number), (Word::Challenge(_), 9)), "{challenge:?}");
    for teller in [&owner, &other_address, &unknown, &other_port] {
        teller.assert_silence();
    }
    let refused = reflector.port.refused();
    let expected =
        Refused { malformed: 9, unknown_session: 1, wrong_source: 3, forged: 3, replayed: 3, ..Refused::default() };
    assert_eq!(refused, expected);
}

/// Receives datagrams of a download from the reflector, until `enough` were sent. Returns one more than the highest
/// sequence number that arrived.
fn take(teller: &Teller, seal: &Seal, enough: u64) -> u64 {
    let mut bytes = [0; 2000];
    let mut through = 0;
    while through < enough {
        let len = teller.socket.recv(&mut bytes).unwrap();
        if let Some(bulk) = seal.open(&bytes[..len]) {
            through = through.max(bulk.seq + 1);
        }
    }
    through
}

#[test]
fn sending_begins_with_the_first_feedback_and_needs_new_feedback() {
    let spec = spec(1, &[Load::Download], HOUR_MS);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let teller = Teller::from("127.0.0.1", reflector.at(), 1);
    let seal = Seal::of(FIRST, Direction::Download, &teller.keys);
    teller.stand(FIRST);
    let (start, started) = channel();
    std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            reflector.server.run(0, &|progress| {
                if progress == PhaseProgress::Started {
                    start.send(()).unwrap();
                }
            })
        });
        started.recv().unwrap();
        let feedback = |number, keys: &SessionKeys| {
            let word = Word::Feedback(Feedback { at_ns: number, ..Feedback::default() });
            let sealed = Signal { stream_id: FIRST, number, word }.seal(Direction::Upload, keys);
            teller.socket.send(&sealed).unwrap();
        };
        // Feedback for another session or for another stream has no effect.
        feedback(0, &keys(2));
        teller.say(StreamId { phase: 0, stream: 1 }, 1, Word::Feedback(Feedback::default()));
        teller.assert_silence();
        feedback(1, &teller.keys);
        let through = take(&teller, &seal, 1);
        // Replays of that feedback do not keep the sender going: it pauses although the replays continue.
        teller.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut quiet = 0;
        let mut came = through;
        while quiet < 40 {
            feedback(1, &teller.keys);
            let mut bytes = [0; 2000];
            match teller.socket.recv(&mut bytes) {
                Ok(len) => {
                    came = came.max(seal.open(&bytes[..len]).map_or(0, |bulk| bulk.seq + 1));
                    quiet = 0;
                }
                Err(_) => quiet += 1,
            }
        }
        // At 4 Mbit/s, 215 datagrams are sent in 0.6 s.
        assert!(came < 1000, "{came} datagrams");
        // The sender resumes on new feedback.
        teller.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        feedback(2, &teller.keys);
        assert!(take(&teller, &seal, came + 1) > came);
        reflector.control.cancel();
        let tally = served.join().unwrap().download.unwrap();
        assert!(tally.datagrams.unwrap().paused_ms.unwrap() > 0);
    });
}

#[test]
fn foreign_and_duplicate_bulk_is_not_counted() {
    let spec = spec(1, &[Load::Upload], HOUR_MS);
    let reflector = Reflector::open(&spec, SessionControl::unmetered());
    let teller = Teller::from("127.0.0.1", reflector.at(), 1);
    teller.stand(FIRST);
    let (start, started) = channel();
    let tally = std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            reflector.server.run(0, &|progress| {
                if progress == PhaseProgress::Started {
                    start.send(()).unwrap();
                }
            })
        });
        started.recv().unwrap();
        let send = |seal: &Seal, seq| {
            let mut datagram = [0; HEADER];
            seal.prepare(&mut datagram);
            Seal::stamp(Bulk { seq, sent_ns: 0, is_settled: true }, &mut datagram);
            teller.socket.send(&datagram).unwrap();
        };
        let ours = Seal::of(FIRST, Direction::Upload, &teller.keys);
        for seq in [0, 2, 1, 1] {
            send(&ours, seq);
        }
        for other in [
            Seal::of(FIRST, Direction::Download, &teller.keys),
            Seal::of(FIRST, Direction::Upload, &keys(2)),
            Seal::of(StreamId { phase: 1, stream: 0 }, Direction::Upload, &teller.keys),
        ] {
            (3..6).for_each(|seq| send(&other, seq));
        }
        teller.socket.send(&[0; 200]).unwrap();
        // Sends a `Last` signal that is sealed with another session's key, and then the sender's own.
        teller
            .socket
            .send(&Signal { stream_id: FIRST, number: 0, word: Word::Last(1) }.seal(Direction::Upload, &keys(2)))
            .unwrap();
        teller.say(FIRST, 0, Word::Last(3));
        served.join().unwrap().upload.unwrap()
    });
    let datagrams = *tally.datagrams.unwrap();
    assert_eq!((datagrams.received, datagrams.duplicates, datagrams.out_of_order), (Some(3), Some(1), Some(1)));
    assert_eq!(tally.count.bytes, 3 * HEADER as u64);
}
