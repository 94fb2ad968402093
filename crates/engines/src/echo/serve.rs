//! The reflector's end of `echo`: answers probes of enrolled sessions, and nothing else, ever. Shell: a socket and the
//! thread that reads it. Who is enrolled is decided elsewhere.

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

struct Shared {
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
    bytes: AtomicU64,
}

/// Why a datagram got no answer.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Malformed,
    Stranger,
    WrongSource,
    Over,
    Forged,
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
    /// Of a session whose tether is cut.
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
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("echo".into()).spawn(move || shared.serve(&socket, &mut mailbox))?
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
        let enrolled = Arc::new(Enrolled {
            keys,
            tether,
            peer: peer.to_canonical(),
            ledger: Mutex::new(Ledger::new()),
            bytes: AtomicU64::new(0),
        });
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

/// While this lives, the probes of one session are answered.
#[must_use = "dropping it ends the session's answers"]
pub struct Enrolment {
    shared: Arc<Shared>,
    enrolled: Arc<Enrolled>,
}

impl Enrolment {
    /// Payload bytes of the session's probes and replies so far. Not charged to the tether here: charging may wait,
    /// and the thread that answers serves all sessions.
    pub fn bytes(&self) -> u64 {
        self.enrolled.bytes.load(Ordering::Relaxed)
    }
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
    fn serve(&self, socket: &UdpSocket, mailbox: &mut Mailbox) {
        while !self.over.load(Ordering::SeqCst) {
            if let Err(failure) = wait([(socket.as_fd(), PollFlags::IN), (self.wake.as_fd(), PollFlags::IN)]) {
                tracing::error!(%failure, "probes are no longer answered: poll failed");
                return;
            }
            for _ in 0..ROUND {
                match mailbox.receive(socket) {
                    Ok(Some(arrival)) => {
                        let bytes = mailbox.bytes.get(..arrival.len).unwrap_or_default();
                        if let Err(reason) = self.answer(socket, bytes, &arrival) {
                            self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    // Nothing more for now, or an error that an earlier answer met, which is gone once read.
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    fn answer(&self, socket: &UdpSocket, bytes: &[u8], arrival: &Arrival) -> Result<(), Refusal> {
        let session = packet::claimed_session(bytes).ok_or(Refusal::Malformed)?;
        let enrolled = lock(&self.sessions).get(&session).cloned().ok_or(Refusal::Stranger)?;
        if arrival.from.ip().to_canonical() != enrolled.peer {
            return Err(Refusal::WrongSource);
        }
        if enrolled.tether.is_cut() {
            return Err(Refusal::Over);
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
        enrolled.bytes.fetch_add(2 * packet::LEN as u64, Ordering::Relaxed);
        if answer(socket, &reply.seal(&enrolled.keys), arrival.from, arrival.to).is_err() {
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
        if sent.is_err() || tether.spend(2 * packet::LEN as u64).is_err() {
            return;
        }
    }
}

/// A lock that survives a panicking holder: nothing guarded here can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
