//! Validates addresses. Before the reflector connects a stream to an address, the host at that address must receive a
//! token and return it, sealed with the session's key. Otherwise a forged source address could direct the load at a
//! third party. This file answers the signals that arrive at the reflector's port.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::{Direction, TestSpec};
use rustix::rand::GetRandomFlags;
use subtle::ConstantTimeEq;

use super::packet::{self, SIGNAL, Signal, StreamId, TOKEN, Word};
use crate::phase::{StreamRegistry, Unplaced};
use crate::session_control::SessionControl;
use crate::udp_port::{Datagram, DatagramHandler, PortHandle, Refusal};

/// The validated address of a stream's other end (`peer`), and the local address and port at which its answer arrived.
#[derive(Clone)]
pub(super) struct Proven {
    pub(super) peer: SocketAddr,
    pub(super) to: Option<IpAddr>,
    pub(super) port: PortHandle,
}

/// Validates the addresses of one session's streams.
pub(super) struct Gate {
    keys: Arc<SessionKeys>,
    control: Arc<SessionControl>,
    /// The validated streams.
    pub(super) proven: StreamRegistry<(StreamId, Proven)>,
    /// The key with which tokens are computed. It never leaves the reflector.
    secret: hmac::Key,
    heard: Mutex<HashMap<StreamId, HeardSignals>>,
}

/// What is known about the `hello` and `answer` signals that a stream has sent so far.
#[derive(Default)]
struct HeardSignals {
    /// The highest number of the stream's `hello` signals, to detect replays. `answer` is the highest number of its
    /// `answer` signals.
    hello: Option<u64>,
    answer: Option<u64>,
    /// The source address of the stream's last `hello` signal.
    from: Option<SocketAddr>,
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
        let stream_id = signal.stream_id;
        let index = stream_id.stream.into();
        self.proven.check(stream_id.phase, index)?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = heard.entry(stream_id).or_default();
        let newest = match signal.word {
            Word::Hello => &mut stream.hello,
            Word::Answer(_) => &mut stream.answer,
            // Other signals belong to a running stream and arrive at its own socket.
            _ => return Err(Refusal::Malformed),
        };
        if newest.is_some_and(|newest| signal.number <= newest) {
            return Err(Refusal::Replayed);
        }
        let token = self.token(stream_id, arrived.from);
        match signal.word {
            // The signal has the session's seal, but the token was sent to another address: the source was rewritten on
            // the way.
            Word::Answer(answer) if !bool::from(answer.ct_eq(&token)) => {
                arrived.counts.came_from_elsewhere();
                Err(Refusal::WrongSource)
            }
            Word::Answer(_) => {
                *newest = Some(signal.number);
                let (peer, to) = (arrived.from, arrived.to);
                self.proven.replace(
                    stream_id.phase,
                    index,
                    (stream_id, Proven { peer, to, port: arrived.port.clone() }),
                )?;
                Ok(Word::Ready)
            }
            _ => {
                *newest = Some(signal.number);
                // A NAT may forget the stream and give it another port. In this case the new port gets the challenge.
                if stream.from.replace(arrived.from).is_some_and(|before| before != arrived.from) {
                    arrived.counts.came_from_elsewhere();
                }
                Ok(Word::Challenge(token))
            }
        }
    }

    /// The token with which a stream proves that it receives at `address`. Only the host at `address` gets this token.
    fn token(&self, stream_id: StreamId, address: SocketAddr) -> [u8; TOKEN] {
        let text = format!("{} {} {address}", stream_id.phase, stream_id.stream);
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
        // Called after the replay check, because a replayed signal must not keep a session alive.
        self.control.heard();
        Ok(Signal { word, ..signal }.seal(Direction::Download, &self.keys))
    }
}
