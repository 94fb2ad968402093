//! Which address may have a stream: one that gets what is sent to it, and answers with the session's key. Decides on each
//! signal that comes to the reflector's port; opens and moves nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::{Direction, TestSpec};
use rustix::rand::GetRandomFlags;
use subtle::ConstantTimeEq;

use super::packet::{self, Place, SIGNAL, Signal, TOKEN, Word};
use crate::phase::{StreamRegistry, Unplaced};
use crate::session_control::SessionControl;
use crate::udp_port::{Datagram, DatagramHandler, PortHandle, Refusal};

/// Where a stream's other end stands.
#[derive(Clone)]
pub(super) struct Proven {
    pub(super) peer: SocketAddr,
    pub(super) to: Option<IpAddr>,
    pub(super) port: PortHandle,
}

/// The gate of one session.
pub(super) struct Gate {
    keys: Arc<SessionKeys>,
    control: Arc<SessionControl>,
    /// What has proven itself.
    pub(super) proven: StreamRegistry<(Place, Proven)>,
    /// What tokens are made with.
    secret: hmac::Key,
    heard: Mutex<HashMap<Place, Heard>>,
}

/// The highest numbers of a stream's hellos and answers: none is taken twice.
#[derive(Default)]
struct Heard {
    hello: Option<u64>,
    answer: Option<u64>,
}

impl Gate {
    pub(super) fn new(spec: &TestSpec, keys: Arc<SessionKeys>, control: Arc<SessionControl>) -> io::Result<Self> {
        let mut secret = [0; 32];
        rustix::rand::getrandom(&mut secret, GetRandomFlags::empty())?;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let proven = StreamRegistry::new(spec, Arc::clone(&control));
        Ok(Self { keys, control, proven, secret, heard: Mutex::default() })
    }

    fn judge(&self, signal: &Signal, arrived: &Datagram<'_>) -> Result<Word, Refusal> {
        let place = signal.place;
        let index = place.stream.into();
        self.proven.check(place.phase, index)?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = heard.entry(place).or_default();
        let newest = match signal.word {
            Word::Hello => &mut stream.hello,
            Word::Answer(_) => &mut stream.answer,
            // What else there is belongs to a stream that runs, and comes to its own socket.
            _ => return Err(Refusal::Malformed),
        };
        if newest.is_some_and(|newest| signal.number <= newest) {
            return Err(Refusal::Replayed);
        }
        let token = self.token(place, arrived.from);
        match signal.word {
            Word::Answer(answer) if !bool::from(answer.ct_eq(&token)) => Err(Refusal::Forged),
            Word::Answer(_) => {
                *newest = Some(signal.number);
                let (peer, to) = (arrived.from, arrived.to);
                self.proven.replace(place.phase, index, (place, Proven { peer, to, port: arrived.port.clone() }))?;
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
}

impl From<Unplaced> for Refusal {
    fn from(why: Unplaced) -> Self {
        match why {
            Unplaced::NoSuchPlace => Refusal::Malformed,
            Unplaced::Taken => Refusal::Replayed,
        }
    }
}

impl DatagramHandler for Gate {
    fn takes(&self, kind: u8) -> bool {
        packet::is_signal(kind)
    }

    fn take(&self, arrived: &Datagram<'_>) -> Result<[u8; SIGNAL], Refusal> {
        let signal = Signal::open(arrived.bytes, Direction::Upload, &self.keys).ok_or(Refusal::Forged)?;
        let word = self.judge(&signal, arrived)?;
        // After the numbers: a replayed signal must not keep a dead session alive.
        self.control.heard();
        Ok(Signal { word, ..signal }.seal(Direction::Download, &self.keys))
    }
}
