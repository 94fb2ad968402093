//! The appliance's end of `udp`: validates the streams' addresses with the reflector and runs the phases. Uses sockets
//! and the clock.

#![expect(clippy::disallowed_methods, reason = "waits for answers in wall time")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::packet::{SIGNAL, Signal, StreamId, Word};
use super::ready::ReadyStream;
use super::socket;
use crate::dialer::Dialer;
use crate::engine::{ClientSetup, EngineClient, PhaseObserver, StreamsMissing};
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, StreamRegistry, direction_of, nothing_moved, streams_of};
use crate::session_control::{Cancelled, SessionControl};

/// How long the appliance waits for an answer before it repeats a signal.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct UdpClient {
    spec: TestSpec,
    keys: Arc<SessionKeys>,
    dialer: Arc<Dialer>,
    control: Arc<SessionControl>,
    /// The number of the next signal (control datagram) of this end, unique in the session.
    next: AtomicU64,
    streams: StreamRegistry<ReadyStream>,
    /// The number of streams to which the reflector has answered, in the phase that is being connected.
    answered: AtomicU16,
}

/// A stream whose address the reflector is validating.
struct Candidate {
    stream: ReadyStream,
    /// The content of the next signal to send; `None` once the address is validated.
    next: Option<Word>,
}

impl UdpClient {
    pub(super) fn new(setup: ClientSetup) -> Self {
        let ClientSetup { spec, keys, dialer, control, .. } = setup;
        let streams = StreamRegistry::new(&spec, Arc::clone(&control));
        Self { spec, keys, dialer, control, next: AtomicU64::new(0), streams, answered: AtomicU16::new(0) }
    }

    fn candidate(&self, stream_id: StreamId, spec: &PhaseSpec) -> io::Result<Candidate> {
        let target = self.dialer.target;
        let socket = self.dialer.origin.datagrams(target)?;
        let stream = ReadyStream::new(stream_id, socket, &self.keys, &self.spec, &self.control)?;
        if direction_of(&self.spec, spec, stream_id.stream.into()) == Some(Direction::Upload) {
            // Checks the payload before the phase, which an error would cut short.
            socket::payload(&stream.socket, &self.spec)?;
        }
        Ok(Candidate { stream, next: Some(Word::Hello) })
    }

    /// Sends the candidate's next signal, if it has one.
    fn send(&self, candidate: &Candidate) {
        let Some(word) = candidate.next else { return };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let signal = Signal { stream_id: candidate.stream.stream_id, number, word };
        // A failed send is like a lost datagram.
        candidate.stream.socket.send(&signal.seal(Direction::Upload, &self.keys)).ok();
    }

    /// Reads the signals that have arrived at the candidate's socket, and answers them.
    fn receive(&self, candidate: &mut Candidate) {
        let mut bytes = [0; SIGNAL + 1];
        let mut next = candidate.next;
        while let Some(len) = socket::take_waiting(&candidate.stream.socket, &mut bytes) {
            let signal = bytes.get(..len).and_then(|bytes| Signal::open(bytes, Direction::Download, &self.keys));
            let Some(signal) = signal.filter(|signal| signal.stream_id == candidate.stream.stream_id) else {
                // A socket that was shut down returns 0 bytes at every read.
                if self.control.is_cancelled() {
                    return;
                }
                continue;
            };
            next = match (signal.word, next) {
                (Word::Challenge(token), Some(Word::Hello)) => Some(Word::Answer(token)),
                (Word::Ready, Some(Word::Answer(_))) => None,
                (_, next) => next,
            };
        }
        if next != candidate.next {
            if candidate.next == Some(Word::Hello) {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            candidate.next = next;
            self.send(candidate);
        }
    }

    /// Makes the reflector validate the addresses of all `candidates`, and waits until all are validated.
    fn validate(&self, candidates: &mut [Candidate]) -> io::Result<()> {
        let end = Instant::now() + CONNECT_TIMEOUT;
        let mut retry_at = Instant::now();
        loop {
            if self.control.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled));
            }
            let missing = candidates.iter().filter(|candidate| candidate.next.is_some()).count();
            if missing == 0 {
                return Ok(());
            }
            let now = Instant::now();
            if now >= end {
                let seconds = CONNECT_TIMEOUT.as_secs();
                let what = format!("{} sent no answer over UDP within {seconds} s", self.dialer.target);
                let cause = io::Error::new(io::ErrorKind::TimedOut, what);
                let [streams, missing] = [candidates.len(), missing].map(|n| u16::try_from(n).unwrap_or(u16::MAX));
                return Err(StreamsMissing { opened: streams - missing, streams, cause }.into());
            }
            if now >= retry_at {
                candidates.iter().for_each(|candidate| self.send(candidate));
                retry_at = now + RETRY_INTERVAL;
            }
            let mut polled = candidates
                .iter()
                .filter(|candidate| candidate.next.is_some())
                .map(|candidate| PollFd::new(&candidate.stream.socket, PollFlags::IN))
                .collect::<Vec<_>>();
            let left = retry_at.saturating_duration_since(now);
            let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut polled, Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            drop(polled);
            candidates.iter_mut().filter(|candidate| candidate.next.is_some()).for_each(|one| self.receive(one));
        }
    }
}

impl EngineClient for UdpClient {
    fn connect(&self, phase: u8) -> io::Result<()> {
        let spec = self.spec.phases.get(usize::from(phase));
        let spec = spec.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NO_SUCH_PHASE))?;
        let streams = u8::try_from(streams_of(&self.spec, spec)).unwrap_or(u8::MAX);
        let ids = (0..streams).map(|stream| StreamId { phase, stream });
        self.answered.store(0, Ordering::Relaxed);
        let mut candidates = ids.map(|stream_id| self.candidate(stream_id, spec)).collect::<io::Result<Vec<_>>>()?;
        self.validate(&mut candidates)?;
        for Candidate { stream, .. } in candidates {
            let index = stream.stream_id.stream.into();
            let placed = self.streams.admit(phase, index, stream);
            placed.map_err(|_| {
                io::Error::new(io::ErrorKind::AlreadyExists, "the streams of the phase are already open")
            })?;
        }
        Ok(())
    }

    fn opened(&self, _phase: u8) -> u16 {
        self.answered.load(Ordering::Relaxed)
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        match self.streams.take(phase) {
            Ok(streams) => phase::run(&self.spec, spec, Direction::Upload, &self.control, streams, report),
            Err(_) => nothing_moved(Some(spec), &self.control, "not all streams of the phase are open"),
        }
    }
}
