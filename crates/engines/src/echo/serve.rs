//! The reflector's end of `echo`: answers probes of enrolled sessions, hands what else they send to who takes it, and
//! answers nothing else, ever. Shell: a socket and the thread that reads it. Who is enrolled is decided elsewhere.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use paramedic_link::SessionId;
use paramedic_link::admission::SessionKeys;
use rustix::event::PollFlags;

use super::clock::{Clock, Wake, wait};
use super::datagram::{Arrival, Mailbox, answer};
use super::ledger::{Entry, Ledger};
use super::packet::{self, ProbePacket, ReplyPacket};
use super::port::{Arrived, Port, Signals};
use crate::data_stream::DataStream;
use crate::tether::Tether;

/// Bytes of probes that may wait in the socket, of all sessions together, while the thread can't run.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// So many datagrams are read before anything else is looked at.
const ROUND: usize = 64;

/// Answers the probes that arrive at one UDP socket, on a thread of its own. Dropping it ends the thread and closes
/// the socket.
pub struct Responder {
    shared: Arc<Shared>,
    local: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Shared {
    sessions: Mutex<HashMap<SessionId, Arc<Enrolled>>>,
    refused: [AtomicU64; 6],
    unsent: AtomicU64,
    over: AtomicBool,
    wake: Wake,
    clock: Clock,
}

/// One session whose probes are answered.
struct Enrolled {
    keys: Arc<SessionKeys>,
    tether: Arc<Tether>,
    peer: IpAddr,
    ledger: Mutex<Ledger>,
    /// Who takes its datagrams that are no probes.
    signals: Option<Arc<dyn Signals>>,
}

/// Why a datagram got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing that is answered here.
    Malformed,
    /// Of a session that is not enrolled.
    Stranger,
    /// Of an enrolled session, but not from its peer's address.
    WrongSource,
    /// Of a session that is over.
    Over,
    /// Not sealed with the session's key.
    Forged,
    /// Arrived before, or is so old that it may have.
    Replayed,
}

/// Datagrams that got no answer, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Not a probe of this version.
    pub malformed: u64,
    /// Of a session that is not enrolled.
    pub stranger: u64,
    /// Of an enrolled session, but not from its peer's address.
    pub wrong_source: u64,
    /// Of a session whose tether is cut, or whose allowance does not cover an answer.
    pub over: u64,
    /// Not sealed with the session's key for probes.
    pub forged: u64,
    /// Arrived before, or is so old that it may have.
    pub replayed: u64,
}

impl Responder {
    /// Answers on `socket` from now on; nothing, until a session is enrolled.
    pub fn spawn(socket: UdpSocket) -> io::Result<Arc<Self>> {
        // As large as the system allows: a burst that does not fit shows as the network's loss.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
        // Now that the port is ours alone: sockets of our own may share it (see `Port`).
        socket2::SockRef::from(&socket).set_reuse_port(true)?;
        let local = socket.local_addr()?;
        let mut mailbox = Mailbox::of(&socket)?;
        let shared = Arc::new(Shared {
            sessions: Mutex::default(),
            refused: Default::default(),
            unsent: AtomicU64::new(0),
            over: AtomicBool::new(false),
            wake: Wake::new()?,
            clock: Clock::start(),
        });
        let thread = {
            let (shared, socket) = (Arc::clone(&shared), Arc::new(socket));
            let serve = move || shared.serve(&socket, &mut mailbox);
            std::thread::Builder::new().name("echo".into()).spawn(serve)?
        };
        Ok(Arc::new(Self { shared, local, thread: Some(thread) }))
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Answers the probes of a session, for as long as the answer lives and its tether is not cut, if they come from
    /// `peer`. Each verified probe is heard on the tether.
    pub fn enroll(&self, keys: Arc<SessionKeys>, tether: Arc<Tether>, peer: IpAddr) -> Enrolment {
        self.enroll_with(keys, tether, peer, None)
    }

    /// The same; datagrams of the session that are no probes go to `signals`.
    pub fn enroll_with(
        &self,
        keys: Arc<SessionKeys>,
        tether: Arc<Tether>,
        peer: IpAddr,
        signals: Option<Arc<dyn Signals>>,
    ) -> Enrolment {
        let (peer, ledger) = (peer.to_canonical(), Mutex::new(Ledger::new()));
        let enrolled = Arc::new(Enrolled { keys, tether, peer, ledger, signals });
        lock(&self.shared.sessions).insert(enrolled.keys.session(), Arc::clone(&enrolled));
        Enrolment { shared: Arc::clone(&self.shared), enrolled }
    }

    /// What got no answer so far.
    pub fn refused(&self) -> Refused {
        let of = |reason: Refusal| self.shared.refused[reason as usize].load(Ordering::Relaxed);
        Refused {
            malformed: of(Refusal::Malformed),
            stranger: of(Refusal::Stranger),
            wrong_source: of(Refusal::WrongSource),
            over: of(Refusal::Over),
            forged: of(Refusal::Forged),
            replayed: of(Refusal::Replayed),
        }
    }

    /// Replies that this host could not send; they look like lost in the download.
    pub fn unsent(&self) -> u64 {
        self.shared.unsent.load(Ordering::Relaxed)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by itself; there is nothing left to free.
            let _ = thread.join();
        }
    }
}

/// While this lives, the probes of one session are answered; both ways are charged to its tether as they flow.
#[must_use = "dropping it ends the session's answers"]
pub struct Enrolment {
    shared: Arc<Shared>,
    enrolled: Arc<Enrolled>,
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        let mut sessions = lock(&self.shared.sessions);
        let session = self.enrolled.keys.session();
        // A session that was enrolled once more since is not ours to end.
        if sessions.get(&session).is_some_and(|enrolled| Arc::ptr_eq(enrolled, &self.enrolled)) {
            sessions.remove(&session);
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, socket: &Arc<UdpSocket>, mailbox: &mut Mailbox) {
        while !self.over.load(Ordering::SeqCst) {
            if let Err(failure) = wait([(socket.as_fd(), PollFlags::IN), (self.wake.as_fd(), PollFlags::IN)]) {
                tracing::error!(%failure, "probes are no longer answered: poll failed");
                return;
            }
            for _ in 0..ROUND {
                match mailbox.receive(socket) {
                    Ok(Some(arrival)) => {
                        self.take(socket, mailbox.bytes.get(..arrival.len).unwrap_or_default(), &arrival);
                    }
                    // Nothing more for now, or an error that an earlier answer met, which is gone once read.
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    /// Answers a datagram that arrived at `socket`, or counts why not.
    pub(super) fn take(self: &Arc<Self>, socket: &Arc<UdpSocket>, bytes: &[u8], arrival: &Arrival) {
        if let Err(reason) = self.answer(socket, bytes, arrival) {
            self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answer(self: &Arc<Self>, socket: &Arc<UdpSocket>, bytes: &[u8], arrival: &Arrival) -> Result<(), Refusal> {
        let probed = packet::claimed_session(bytes);
        let session = probed.or_else(|| crate::udp::claimed_session(bytes)).ok_or(Refusal::Malformed)?;
        let enrolled = lock(&self.sessions).get(&session).cloned().ok_or(Refusal::Stranger)?;
        if arrival.from.ip().to_canonical() != enrolled.peer {
            return Err(Refusal::WrongSource);
        }
        if enrolled.tether.is_cut() {
            return Err(Refusal::Over);
        }
        if probed.is_none() {
            let signals = enrolled.signals.as_ref().ok_or(Refusal::Malformed)?;
            let port = Port::of(self, socket);
            let reply = signals.take(&Arrived { bytes, from: arrival.from, to: arrival.to, port: &port })?;
            // Our own words are as long as what they answer; nothing longer ever leaves.
            return self.reply(socket, reply.get(..bytes.len()).unwrap_or(&reply), arrival, &enrolled.tether);
        }
        let ago_ns = u64::try_from(arrival.ago.as_nanos()).unwrap_or(u64::MAX);
        let received_ns = self.clock.now_ns().saturating_sub(ago_ns);
        let probe = ProbePacket::open(bytes, &enrolled.keys).ok_or(Refusal::Forged)?;
        let mut ledger = lock(&enrolled.ledger);
        if ledger.enter(probe.seq) == Entry::Replayed {
            return Err(Refusal::Replayed);
        }
        // After the ledger: a stranger who replays what he overheard must not keep a dead session alive.
        enrolled.tether.heard();
        let reply = reply_to(&probe, &ledger, received_ns, &self.clock);
        drop(ledger);
        self.reply(socket, &reply.seal(&enrolled.keys), arrival, &enrolled.tether)
    }

    fn reply(&self, socket: &UdpSocket, bytes: &[u8], arrival: &Arrival, tether: &Tether) -> Result<(), Refusal> {
        // A probe that waited for a lease, or went without an answer, would tell of a path that delays or loses.
        tether.owe((arrival.len + bytes.len()) as u64).map_err(|_| Refusal::Over)?;
        if answer(socket, bytes, arrival.from, arrival.to).is_err() {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The reply to a probe that is in the ledger; its dwell ends now.
fn reply_to(probe: &ProbePacket, ledger: &Ledger, received_ns: u64, clock: &Clock) -> ReplyPacket {
    ReplyPacket {
        seq: probe.seq,
        sent_ns: probe.sent_ns,
        received_ns,
        history: ledger.history(probe.about),
        duplicates: ledger.duplicates(),
        dwell_ns: u32::try_from(clock.now_ns().saturating_sub(received_ns)).unwrap_or(u32::MAX),
    }
}

/// Answers the probes of one session on a data connection whose preamble said [`Preamble::ECHO`], on the calling
/// thread, until the connection ends, the tether is cut, or something else than a fresh probe arrives. The bytes are
/// charged to the tether.
///
/// [`Preamble::ECHO`]: paramedic_link::admission::Preamble::ECHO
pub fn answer_stream(mut stream: DataStream, keys: &SessionKeys, tether: &Arc<Tether>) {
    let clock = Clock::start();
    let mut ledger = Ledger::new();
    let Ok(_hold) = tether.hold(stream.socket()) else { return };
    // Each reply is small and must leave at once.
    let _ = stream.socket().set_nodelay(true);
    let mut bytes = [0; packet::LEN];
    while stream.read_exact(&mut bytes).is_ok() {
        let received_ns = clock.now_ns();
        let Some(probe) = ProbePacket::open(&bytes, keys) else { return };
        if ledger.enter(probe.seq) == Entry::Replayed {
            return;
        }
        tether.heard();
        let reply = reply_to(&probe, &ledger, received_ns, &clock).seal(keys);
        let sent = stream.write_all(&reply).and_then(|()| stream.flush());
        if sent.is_err() || tether.owe(2 * packet::LEN as u64).is_err() {
            return;
        }
    }
}

/// A lock that survives a panicking holder: nothing guarded here can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::super::tests::keys;
    use super::*;
    use crate::claim;

    const HERE: &str = "127.0.0.1";

    fn responder(bind: &str) -> Arc<Responder> {
        Responder::spawn(UdpSocket::bind((bind, 0)).unwrap()).unwrap()
    }

    fn enroll(responder: &Responder, session: u8, tether: &Arc<Tether>) -> Enrolment {
        responder.enroll(Arc::new(keys(session)), Arc::clone(tether), HERE.parse().unwrap())
    }

    /// A socket at `from` that talks to nobody but the responder, and gives up rather than hang.
    fn asker(from: &str, responder: &Responder) -> UdpSocket {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        let port = responder.local_addr().port();
        socket.connect((HERE, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn probe(seq: u32) -> ProbePacket {
        ProbePacket { seq, about: seq, sent_ns: 1_000_000 + u64::from(seq) }
    }

    /// The next datagram that `socket` gets, which must be a reply of this session.
    fn reply(socket: &UdpSocket, session: u8) -> ReplyPacket {
        let mut bytes = [0; 2048];
        let len = socket.recv(&mut bytes).unwrap();
        ReplyPacket::open(&bytes[..len], &keys(session)).unwrap()
    }

    /// Nothing lies in `socket`. The responder reads in order, so once a later probe's reply is here, nothing that came
    /// before it will be answered any more.
    fn assert_empty(socket: &UdpSocket) {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 2048]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socket.set_nonblocking(false).unwrap();
    }

    #[test]
    fn an_enrolled_probe_is_answered_in_kind() {
        let responder = responder(HERE);
        let tether = Tether::leased(|| ());
        tether.allow(1_000);
        let _enrolment = enroll(&responder, 1, &tether);
        let asker = asker(HERE, &responder);
        for seq in [0, 1, 3] {
            asker.send(&probe(seq).seal(&keys(1))).unwrap();
            let reply = reply(&asker, 1);
            assert_eq!((reply.seq, reply.sent_ns, reply.duplicates), (seq, 1_000_000 + u64::from(seq), 0));
            assert!(reply.dwell_ns < u32::MAX);
            assert_eq!(reply.history.arrived(seq), Some(true));
            assert_eq!(reply.history.arrived(2), (seq == 3).then_some(false));
        }
        assert_eq!(tether.spent(), 3 * 2 * 96, "probes and replies are charged as they flow");
        assert_eq!((responder.refused(), responder.unsent()), (Refused::default(), 0));
    }

    #[test]
    fn a_probe_never_waits_for_the_lease_that_pays_for_it() {
        let responder = responder(HERE);
        let (asks, asked) = std::sync::mpsc::channel();
        let tether = Tether::leased(move || asks.send(()).unwrap());
        let _enrolment = enroll(&responder, 1, &tether);
        let asker = asker(HERE, &responder);
        asker.send(&probe(0).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 0);
        asked.recv().unwrap();
        assert_eq!(tether.spent(), 2 * 96);
    }

    #[test]
    fn what_is_not_a_fresh_probe_of_an_enrolled_peer_gets_no_byte_back() {
        let responder = responder(HERE);
        let tether = Tether::free();
        let _enrolment = enroll(&responder, 1, &tether);
        let owner = asker(HERE, &responder);
        let elsewhere = asker("127.0.0.2", &responder);
        owner.send(&probe(7).seal(&keys(1))).unwrap();
        let answered = reply(&owner, 1);

        let good = probe(8).seal(&keys(1));
        let mut forged = good;
        forged[30] ^= 1;
        let mut another_version = good;
        another_version[0] = 2;
        let mut turned_reply = answered.seal(&keys(1));
        turned_reply[1] = 1;
        let long = [good.as_slice(), &[0]].concat();
        let refused: [&[u8]; 11] = [
            b"",
            b"\0",
            &good[..95],
            &long,
            &[0xff; 2000],
            &another_version,
            &answered.seal(&keys(1)),
            &turned_reply,
            &forged,
            &probe(8).seal(&keys(2)),
            &probe(7).seal(&keys(1)),
        ];
        for datagram in refused {
            owner.send(datagram).unwrap();
        }
        elsewhere.send(&good).unwrap();

        owner.send(&good).unwrap();
        assert_eq!(reply(&owner, 1).seq, 8);
        assert_empty(&owner);
        assert_empty(&elsewhere);
        let counted = Refused { malformed: 7, stranger: 1, wrong_source: 1, over: 0, forged: 2, replayed: 1 };
        assert_eq!(responder.refused(), counted);
    }

    #[test]
    fn replies_tell_how_often_a_probe_came_twice() {
        let responder = responder(HERE);
        let tether = Tether::free();
        let _enrolment = enroll(&responder, 1, &tether);
        let asker = asker(HERE, &responder);
        for seq in [1, 1, 1, 2] {
            asker.send(&probe(seq).seal(&keys(1))).unwrap();
        }
        assert_eq!((reply(&asker, 1).seq, reply(&asker, 1).duplicates), (1, 2));
    }

    #[test]
    fn a_session_is_answered_while_it_is_enrolled_and_its_tether_holds() {
        let responder = responder(HERE);
        let (left, cut, stays) = (Tether::free(), Tether::free(), Tether::free());
        let leaving = enroll(&responder, 1, &left);
        let _cut = enroll(&responder, 2, &cut);
        let _stays = enroll(&responder, 3, &stays);
        let asker = asker(HERE, &responder);
        for session in [1, 2, 3] {
            asker.send(&probe(1).seal(&keys(session))).unwrap();
            reply(&asker, session);
        }
        drop(leaving);
        cut.cut();
        for session in [1, 2, 3] {
            asker.send(&probe(2).seal(&keys(session))).unwrap();
        }
        assert_eq!(reply(&asker, 3).seq, 2);
        assert_empty(&asker);
        assert_eq!((responder.refused().stranger, responder.refused().over), (1, 1));
    }

    #[test]
    fn an_old_enrolment_does_not_end_the_new_one() {
        let responder = responder(HERE);
        let tether = Tether::free();
        let old = enroll(&responder, 1, &tether);
        let _new = enroll(&responder, 1, &tether);
        drop(old);
        let asker = asker(HERE, &responder);
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 1);
    }

    #[test]
    fn only_a_fresh_probe_keeps_a_session_alive() {
        let responder = responder(HERE);
        let tether = Tether::free();
        let _enrolment = enroll(&responder, 1, &tether);
        let asker = asker(HERE, &responder);
        let before = tether.last_heard();
        // The tether counts in milliseconds.
        let next_ms = std::time::Instant::now() + Duration::from_millis(2);
        tether.wait_until(next_ms, || false);
        let mut forged = probe(1).seal(&keys(1));
        forged[95] ^= 1;
        asker.send(&forged).unwrap();
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        reply(&asker, 1);
        let heard = tether.last_heard();
        assert!(heard > before);
        tether.wait_until(heard + Duration::from_millis(2), || false);
        let _other = enroll(&responder, 2, &Tether::free());
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        asker.send(&probe(1).seal(&keys(2))).unwrap();
        reply(&asker, 2);
        assert_eq!(tether.last_heard(), heard);
    }

    #[test]
    fn a_responder_on_every_address_answers_from_the_one_that_was_asked() {
        let responder = responder("0.0.0.0");
        let tether = Tether::free();
        let _enrolment = enroll(&responder, 1, &tether);
        let asker = UdpSocket::bind((HERE, 0)).unwrap();
        // A connected socket hears its target alone.
        asker.connect(("127.0.0.5", responder.local_addr().port())).unwrap();
        asker.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        asker.send(&probe(1).seal(&keys(1))).unwrap();
        assert_eq!(reply(&asker, 1).seq, 1);
    }

    #[test]
    fn a_dropped_responder_frees_its_port_at_once() {
        let responder = responder(HERE);
        let _enrolment = enroll(&responder, 1, &Tether::free());
        let address = responder.local_addr();
        drop(responder);
        claim::patiently(|| UdpSocket::bind(address)).unwrap();
    }

    /// A data connection whose far end is being answered, and what ends when that is over.
    fn answered_stream(tether: Arc<Tether>) -> (TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = DataStream::Plain(listener.accept().unwrap().0);
        (ours, std::thread::spawn(move || answer_stream(theirs, &keys(1), &tether)))
    }

    #[test]
    fn a_data_connection_is_answered_until_the_tether_is_cut() {
        let tether = Tether::leased(|| {});
        tether.allow(1 << 20);
        let (mut ours, answering) = answered_stream(Arc::clone(&tether));
        for seq in 0..3 {
            ours.write_all(&probe(seq).seal(&keys(1))).unwrap();
            let mut bytes = [0; packet::LEN];
            ours.read_exact(&mut bytes).unwrap();
            assert_eq!(ReplyPacket::open(&bytes, &keys(1)).unwrap().seq, seq);
        }
        tether.cut();
        answering.join().unwrap();
        assert_eq!(tether.spent(), 3 * 2 * 96);
    }

    #[test]
    fn a_data_connection_ends_with_the_first_thing_that_is_no_fresh_probe() {
        for wrong in [probe(1).seal(&keys(1)), probe(2).seal(&keys(2)), [0; packet::LEN]] {
            let (mut ours, answering) = answered_stream(Tether::free());
            ours.write_all(&probe(1).seal(&keys(1))).unwrap();
            ours.write_all(&wrong).unwrap();
            let mut all = Vec::new();
            // The reply to the first, then the end; a reset where bytes were left unread.
            let _ = ours.read_to_end(&mut all);
            assert_eq!(all.len(), packet::LEN);
            answering.join().unwrap();
        }
    }
}
