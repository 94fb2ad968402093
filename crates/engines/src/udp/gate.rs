//! Who may have a stream: an address that gets what is sent to it, and answers with the session's key. Decides on each
//! signal that comes to the reflector's port; opens and moves nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hmac;
use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::{Direction, TestSpec};
use rustix::rand::GetRandomFlags;
use subtle::ConstantTimeEq;

use super::packet::{Place, SIGNAL, Signal, TOKEN, Word};
use super::streams_of;
use crate::echo::{Arrived, Port, Refusal, Signals};
use crate::tether::Tether;

/// Where a stream's other end stands.
#[derive(Clone)]
pub(super) struct Proven {
    pub(super) peer: SocketAddr,
    pub(super) to: Option<IpAddr>,
    pub(super) port: Port,
}

/// The gate of one session.
pub(super) struct Gate {
    keys: Arc<SessionKeys>,
    tether: Arc<Tether>,
    /// Streams of each phase.
    places: Vec<u8>,
    /// What tokens are made with.
    secret: hmac::Key,
    streams: Mutex<HashMap<Place, Stream>>,
}

#[derive(Default)]
struct Stream {
    /// The highest numbers of its hellos and answers: none is taken twice.
    hello: Option<u64>,
    answer: Option<u64>,
    proven: Option<Proven>,
    /// Whether its phase has it: then nothing changes any more.
    is_taken: bool,
}

impl Gate {
    pub(super) fn new(spec: &TestSpec, keys: Arc<SessionKeys>, tether: Arc<Tether>) -> io::Result<Self> {
        let mut secret = [0; 32];
        rustix::rand::getrandom(&mut secret, GetRandomFlags::empty())?;
        let places = spec.phases.iter().map(|phase| streams_of(spec, phase)).collect();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(Self { keys, tether, places, secret, streams: Mutex::default() })
    }

    /// How many streams of `phase` have proven themselves.
    pub(super) fn standing(&self, phase: u8) -> usize {
        self.streams().iter().filter(|(place, stream)| place.phase == phase && stream.proven.is_some()).count()
    }

    /// Whether all streams of `phase` have.
    pub(super) fn is_complete(&self, phase: u8) -> bool {
        self.places.get(usize::from(phase)).is_some_and(|places| self.standing(phase) == usize::from(*places))
    }

    /// Hands over where the streams of `phase` stand.
    pub(super) fn take(&self, phase: u8) -> Vec<(Place, Proven)> {
        let places = self.places.get(usize::from(phase)).copied().unwrap_or(0);
        let mut streams = self.streams();
        let mut take = |stream| {
            let place = Place { phase, stream };
            let stream = streams.entry(place).or_default();
            stream.is_taken = true;
            Some((place, stream.proven.take()?))
        };
        (0..places).filter_map(&mut take).collect()
    }

    fn judge(&self, signal: &Signal, arrived: &Arrived<'_>) -> Result<Word, Refusal> {
        let place = signal.place;
        let exists = self.places.get(usize::from(place.phase)).is_some_and(|places| place.stream < *places);
        if !exists {
            return Err(Refusal::Malformed);
        }
        let mut streams = self.streams();
        let stream = streams.entry(place).or_default();
        let newest = match signal.word {
            Word::Hello => &mut stream.hello,
            Word::Answer(_) => &mut stream.answer,
            // What else there is belongs to a stream that runs, and comes to its own socket.
            _ => return Err(Refusal::Malformed),
        };
        if stream.is_taken || newest.is_some_and(|newest| signal.number <= newest) {
            return Err(Refusal::Replayed);
        }
        let token = self.token(place, arrived.from);
        match signal.word {
            Word::Answer(answer) if !bool::from(answer.ct_eq(&token)) => Err(Refusal::Forged),
            Word::Answer(_) => {
                *newest = Some(signal.number);
                let (peer, to) = (arrived.from, arrived.to);
                stream.proven = Some(Proven { peer, to, port: arrived.port.clone() });
                Ok(Word::Ready)
            }
            _ => {
                *newest = Some(signal.number);
                Ok(Word::Challenge(token))
            }
        }
    }

    /// What only who gets datagrams at `address` can know.
    fn token(&self, place: Place, address: SocketAddr) -> [u8; TOKEN] {
        let text = format!("{} {} {address}", place.phase, place.stream);
        let tag = hmac::sign(&self.secret, text.as_bytes());
        let mut token = [0; TOKEN];
        token.copy_from_slice(&tag.as_ref()[..TOKEN]);
        token
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<Place, Stream>> {
        // Nothing guarded here can be left half done.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signals for Gate {
    fn take(&self, arrived: &Arrived<'_>) -> Result<[u8; SIGNAL], Refusal> {
        let signal = Signal::open(arrived.bytes, Direction::Upload, &self.keys).ok_or(Refusal::Forged)?;
        let word = self.judge(&signal, arrived)?;
        // After the numbers: a stranger who replays what he overheard must not keep a dead session alive.
        self.tether.heard();
        if word == Word::Ready {
            self.tether.wake();
        }
        Ok(Signal { word, ..signal }.seal(Direction::Download, &self.keys))
    }
}
