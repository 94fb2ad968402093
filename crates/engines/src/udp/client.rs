//! The appliance's end of `udp`: introduces the streams, proves that they are here, runs their phases.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::packet::{Place, SIGNAL, Signal, Word};
use super::ready::ReadyStream;
use super::socket;
use crate::dialer::Dialer;
use crate::engine::{ClientEnd, ClientSetup, PhaseObserver};
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, StreamRegistry, direction_of, nothing_moved, streams_of};
use crate::session_control::{Cancelled, SessionControl};

/// What has no answer by then is said again.
const AGAIN: Duration = Duration::from_millis(100);

pub(super) struct UdpClient {
    spec: TestSpec,
    keys: Arc<SessionKeys>,
    dialer: Arc<Dialer>,
    control: Arc<SessionControl>,
    /// No number is used twice in the session.
    next: AtomicU64,
    streams: StreamRegistry<ReadyStream>,
}

/// A stream that introduces itself.
struct Candidate {
    standing: ReadyStream,
    /// What is to be said next; nothing once it stands.
    says: Option<Word>,
}

impl UdpClient {
    pub(super) fn new(setup: ClientSetup) -> Self {
        let ClientSetup { spec, keys, dialer, control, .. } = setup;
        let streams = StreamRegistry::new(&spec, Arc::clone(&control));
        Self { spec, keys, dialer, control, next: AtomicU64::new(0), streams }
    }

    fn candidate(&self, place: Place, spec: &PhaseSpec) -> io::Result<Candidate> {
        let target = self.dialer.target;
        let socket = self.dialer.origin.datagrams(target)?;
        let standing = ReadyStream::new(place, socket, &self.keys, &self.spec, &self.control)?;
        if direction_of(&self.spec, spec, place.stream.into()) == Some(Direction::Upload) {
            // Checked now: once the phase runs, an error would only cut it short.
            socket::payload(&standing.socket, &self.spec)?;
        }
        Ok(Candidate { standing, says: Some(Word::Hello) })
    }

    /// Says what is to be said.
    fn say(&self, candidate: &Candidate) {
        let Some(word) = candidate.says else { return };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let signal = Signal { place: candidate.standing.place, number, word };
        // One that can't be sent is like one that is lost.
        let _ = candidate.standing.socket.send(&signal.seal(Direction::Upload, &self.keys));
    }

    /// Hears what lies in the socket.
    fn hear(&self, candidate: &mut Candidate) {
        let mut bytes = [0; SIGNAL + 1];
        let mut said = candidate.says;
        while let Some(len) = socket::take_waiting(&candidate.standing.socket, &mut bytes) {
            let heard = bytes.get(..len).and_then(|bytes| Signal::open(bytes, Direction::Download, &self.keys));
            let Some(signal) = heard.filter(|signal| signal.place == candidate.standing.place) else {
                // The end of a socket that was shut down comes without end.
                if self.control.is_cancelled() {
                    return;
                }
                continue;
            };
            said = match (signal.word, said) {
                (Word::Challenge(token), Some(Word::Hello)) => Some(Word::Answer(token)),
                (Word::Ready, Some(Word::Answer(_))) => None,
                (_, said) => said,
            };
        }
        if said != candidate.says {
            candidate.says = said;
            self.say(candidate);
        }
    }

    fn gather(&self, candidates: &mut [Candidate]) -> io::Result<()> {
        let end = Instant::now() + CONNECT_TIMEOUT;
        let mut again = Instant::now();
        loop {
            if self.control.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled));
            }
            let missing = candidates.iter().filter(|candidate| candidate.says.is_some()).count();
            if missing == 0 {
                return Ok(());
            }
            let now = Instant::now();
            if now >= end {
                let what = format!(
                    "{missing} of {} streams got no answer over UDP from {} within {} s",
                    candidates.len(),
                    self.dialer.target,
                    CONNECT_TIMEOUT.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            if now >= again {
                candidates.iter().for_each(|candidate| self.say(candidate));
                again = now + AGAIN;
            }
            let mut polled = candidates
                .iter()
                .filter(|candidate| candidate.says.is_some())
                .map(|candidate| PollFd::new(&candidate.standing.socket, PollFlags::IN))
                .collect::<Vec<_>>();
            let left = again.saturating_duration_since(now);
            let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut polled, Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            drop(polled);
            candidates.iter_mut().filter(|candidate| candidate.says.is_some()).for_each(|one| self.hear(one));
        }
    }
}

impl ClientEnd for UdpClient {
    fn connect(&self, phase: u8) -> io::Result<()> {
        let spec = self.spec.phases.get(usize::from(phase));
        let spec = spec.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NO_SUCH_PHASE))?;
        let streams = u8::try_from(streams_of(&self.spec, spec)).unwrap_or(u8::MAX);
        let places = (0..streams).map(|stream| Place { phase, stream });
        let mut candidates = places.map(|place| self.candidate(place, spec)).collect::<io::Result<Vec<_>>>()?;
        self.gather(&mut candidates)?;
        for Candidate { standing, .. } in candidates {
            let index = standing.place.stream.into();
            let placed = self.streams.admit(phase, index, standing);
            placed.map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "the phase has its streams already"))?;
        }
        Ok(())
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        match self.streams.take(phase) {
            Ok(streams) => phase::run(&self.spec, spec, Direction::Upload, &self.control, streams, report),
            Err(_) => nothing_moved(Some(spec), &self.control, "its streams do not stand"),
        }
    }
}
