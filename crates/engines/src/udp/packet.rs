//! The datagrams of `udp`: bulk datagrams load the path, and signals control a stream. Uses no socket and no clock.
//! docs/protocol.md, "Bulk datagrams", specifies them.

use paramedic_link::admission::{SessionKeys, TAG_LEN};
use paramedic_link::test_spec::Direction;
use subtle::ConstantTimeEq;

use crate::udp_port::{DATAGRAM_LEN, VERSION};

/// The length of a bulk datagram's header in bytes, and therefore the smallest payload of such a datagram.
pub(super) const HEADER: usize = 52;
/// The largest payload of a UDP datagram over IPv4, in bytes.
pub(super) const LARGEST: usize = 65_507;
/// The length of every signal in bytes. All signals have the same length, so that no answer is longer than its request.
pub(super) const SIGNAL: usize = DATAGRAM_LEN;
/// The length of the token that validates an address, in bytes.
pub(super) const TOKEN: usize = 16;

/// The kinds of the engine's datagrams. Latency probes and their replies have the kinds 1, 2, 11 and 12.
const BULK: u8 = 3;
const SETTLED_BULK: u8 = 4;
const HELLO: u8 = 5;
const CHALLENGE: u8 = 6;
const ANSWER: u8 = 7;
const READY: u8 = 8;
const FEEDBACK: u8 = 9;
const LAST: u8 = 10;
/// The offset of a signal's authentication tag, which covers the bytes before the tag.
const TAG_AT: usize = SIGNAL - TAG_LEN;

/// Identifies a stream of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StreamId {
    /// The index of the phase, from 0.
    pub(super) phase: u8,
    /// The index of the stream in the phase, from 0. In a phase of both directions, the download's streams have the
    /// lower indexes.
    pub(super) stream: u8,
}

/// A control datagram of a stream, in contrast to a bulk datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signal {
    pub(super) stream_id: StreamId,
    /// The number of the signal, which increases from each signal to the next of the same kind, so that replays can be
    /// detected. A reply has the number of its request.
    pub(super) number: u64,
    pub(super) word: Word,
}

/// The content of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The appliance announces a stream.
    Hello,
    /// The reflector sends a token, which the appliance must return.
    Challenge([u8; TOKEN]),
    /// The appliance returns the reflector's token, and so proves that it receives at its address.
    Answer([u8; TOKEN]),
    /// The reflector has validated the appliance's address.
    Ready,
    /// The receiver of a stream reports its counts.
    Feedback(Feedback),
    /// The sender of a stream has sent its last datagram. The value is the number of all datagrams that it sent.
    Last(u64),
}

/// The feedback of a stream's receiver to its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Feedback {
    /// The number of datagrams that arrived, without duplicates.
    pub(super) received: u64,
    /// One more than the highest sequence number that arrived; 0 before the first datagram.
    pub(super) through: u64,
    /// When the feedback was sent, in nanoseconds of the receiver's monotonic clock, with an arbitrary zero.
    pub(super) at_ns: u64,
    /// The queueing delay in microseconds: the fastest transit since the previous feedback minus the fastest recent
    /// transit.
    pub(super) queue_us: u32,
    /// Whether the receiver has finished. If set, the feedback confirms the sender's [`Word::Last`].
    pub(super) is_over: bool,
}

impl Word {
    fn kind(&self) -> u8 {
        match self {
            Word::Hello => HELLO,
            Word::Challenge(_) => CHALLENGE,
            Word::Answer(_) => ANSWER,
            Word::Ready => READY,
            Word::Feedback(_) => FEEDBACK,
            Word::Last(_) => LAST,
        }
    }
}

impl Signal {
    /// Encodes and seals the signal, which travels in the direction `flow`.
    pub(super) fn seal(&self, flow: Direction, keys: &SessionKeys) -> [u8; SIGNAL] {
        let mut bytes = [0; SIGNAL];
        bytes[..4].copy_from_slice(&[VERSION, self.word.kind(), self.stream_id.phase, self.stream_id.stream]);
        bytes[4..20].copy_from_slice(keys.session().as_bytes());
        bytes[20..28].copy_from_slice(&self.number.to_be_bytes());
        match &self.word {
            Word::Hello | Word::Ready => {}
            Word::Challenge(token) | Word::Answer(token) => bytes[28..44].copy_from_slice(token),
            Word::Feedback(feedback) => {
                bytes[28..36].copy_from_slice(&feedback.received.to_be_bytes());
                bytes[36..44].copy_from_slice(&feedback.through.to_be_bytes());
                bytes[44..52].copy_from_slice(&feedback.at_ns.to_be_bytes());
                bytes[52..56].copy_from_slice(&feedback.queue_us.to_be_bytes());
                bytes[56] = feedback.is_over.into();
            }
            Word::Last(sent) => bytes[28..36].copy_from_slice(&sent.to_be_bytes()),
        }
        let tag = keys.seal_datagram(flow, &bytes[..TAG_AT]);
        bytes[TAG_AT..].copy_from_slice(&tag);
        bytes
    }

    /// Opens a signal. Returns `None` if the signal was not sealed with `keys` for the direction `flow`.
    pub(super) fn open(bytes: &[u8], flow: Direction, keys: &SessionKeys) -> Option<Self> {
        let bytes: &[u8; SIGNAL] = bytes.try_into().ok()?;
        let ours = bytes[0] == VERSION && bytes[4..20] == keys.session().as_bytes()[..];
        if !ours || !keys.is_datagram(flow, &bytes[..TAG_AT], &field(bytes, TAG_AT)) {
            return None;
        }
        let number = |at| u64::from_be_bytes(field(bytes, at));
        let word = match bytes[1] {
            HELLO => Word::Hello,
            CHALLENGE => Word::Challenge(field(bytes, 28)),
            ANSWER => Word::Answer(field(bytes, 28)),
            READY => Word::Ready,
            FEEDBACK => Word::Feedback(Feedback {
                received: number(28),
                through: number(36),
                at_ns: number(44),
                queue_us: u32::from_be_bytes(field(bytes, 52)),
                is_over: bytes[56] == 1,
            }),
            LAST => Word::Last(number(28)),
            _ => return None,
        };
        Some(Self { stream_id: StreamId { phase: bytes[2], stream: bytes[3] }, number: number(20), word })
    }
}

/// Whether a datagram of the kind `kind` is a signal.
pub(super) fn is_signal(kind: u8) -> bool {
    (HELLO..=LAST).contains(&kind)
}

/// Seals and opens the bulk datagrams of one stream. Holds the parts of their header that are constant in the stream.
#[derive(Clone)]
pub(super) struct Seal {
    /// The first 20 bytes of the header, with the kind [`BULK`].
    head: [u8; 20],
    tag: [u8; TAG_LEN],
}

/// The part of a bulk datagram's header that differs from datagram to datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bulk {
    /// The sequence number in the stream, from 0.
    pub(super) seq: u64,
    /// When the datagram was sent, in nanoseconds of the sender's monotonic clock, with an arbitrary zero.
    pub(super) sent_ns: u64,
    /// Whether the sender's search for a rate has settled. Also true if the sender does not search.
    pub(super) is_settled: bool,
}

impl Seal {
    /// The seal of a stream whose bulk datagrams travel in the direction `flow`.
    pub(super) fn of(stream_id: StreamId, flow: Direction, keys: &SessionKeys) -> Self {
        let mut head = [0; 20];
        head[..4].copy_from_slice(&[VERSION, BULK, stream_id.phase, stream_id.stream]);
        head[4..].copy_from_slice(keys.session().as_bytes());
        Self { head, tag: *keys.bulk_tag(flow) }
    }

    /// Writes the constant parts of the header into a datagram of at least [`HEADER`] bytes.
    pub(super) fn prepare(&self, datagram: &mut [u8]) {
        datagram[..20].copy_from_slice(&self.head);
        datagram[36..HEADER].copy_from_slice(&self.tag);
    }

    /// Writes the variable part of the header into a datagram that [`Seal::prepare`] has prepared.
    pub(super) fn stamp(bulk: Bulk, datagram: &mut [u8]) {
        datagram[1] = if bulk.is_settled { SETTLED_BULK } else { BULK };
        datagram[20..28].copy_from_slice(&bulk.seq.to_be_bytes());
        datagram[28..36].copy_from_slice(&bulk.sent_ns.to_be_bytes());
    }

    /// Opens a bulk datagram. Returns `None` if the datagram does not belong to this stream or does not have the
    /// stream's tag.
    pub(super) fn open(&self, datagram: &[u8]) -> Option<Bulk> {
        let header = datagram.first_chunk::<HEADER>()?;
        let is_settled = match header[1] {
            BULK => false,
            SETTLED_BULK => true,
            _ => return None,
        };
        let same = header[0] == self.head[0] && header[2..20] == self.head[2..];
        if !same || !bool::from(header[36..].ct_eq(&self.tag)) {
            return None;
        }
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        Some(Bulk { seq: number(20), sent_ns: number(28), is_settled })
    }
}

/// `N` bytes of the signal `bytes` from offset `at` on. `N` and `at` are constants of the layout, so the bytes exist.
fn field<const N: usize>(bytes: &[u8; SIGNAL], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use paramedic_link::SessionId;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    fn keys(seed: u8) -> SessionKeys {
        SessionKeys::derive(SessionId::from_bytes([seed; 16]), Zeroizing::new([seed; 32]))
    }

    fn stream_id() -> StreamId {
        StreamId { phase: 2, stream: 63 }
    }

    fn words() -> [Word; 6] {
        let feedback = Feedback { received: 1, through: 2, at_ns: 3, queue_us: 4, is_over: true };
        [
            Word::Hello,
            Word::Challenge([7; TOKEN]),
            Word::Answer([8; TOKEN]),
            Word::Ready,
            Word::Feedback(feedback),
            Word::Last(9),
        ]
    }

    #[test]
    fn a_signal_survives_the_wire_in_its_own_direction_with_its_own_keys() {
        for word in words() {
            let signal = Signal { stream_id: stream_id(), number: 5, word };
            let bytes = signal.seal(Direction::Upload, &keys(1));
            assert_eq!(Signal::open(&bytes, Direction::Upload, &keys(1)), Some(signal));
            assert!(is_signal(bytes[1]));
            assert_eq!(Signal::open(&bytes, Direction::Download, &keys(1)), None);
            assert_eq!(Signal::open(&bytes, Direction::Upload, &keys(2)), None);
        }
    }

    #[test]
    fn the_documented_examples_are_what_is_sent() {
        let session = [0x01, 0x94, 0x3d, 0x3c, 0x5e, 0, 0x7a, 0x10, 0x80, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab];
        let secret = Zeroizing::new(std::array::from_fn(|at| at as u8));
        let keys = SessionKeys::derive(SessionId::from_bytes(session), secret);
        let stream_id = StreamId { phase: 2, stream: 1 };
        let hello = Signal { stream_id, number: 7, word: Word::Hello }.seal(Direction::Upload, &keys);
        let mut bulk = [0; HEADER];
        Seal::of(stream_id, Direction::Upload, &keys).prepare(&mut bulk);
        Seal::stamp(Bulk { seq: 5, sent_ns: 1_000_000, is_settled: true }, &mut bulk);
        let document = include_str!("../../../../docs/protocol.md");
        for bytes in [hello.as_slice(), &bulk] {
            let digits = data_encoding::HEXLOWER.encode(bytes);
            assert!(document.contains(&format!("\n    {digits}\n")), "{digits}");
        }
        for number in [HEADER.to_string(), "65,507".to_owned(), format!("{SIGNAL} bytes")] {
            assert!(document.contains(&number), "{number}");
        }
    }

    #[test]
    fn a_bulk_datagram_is_of_its_own_stream_direction_and_session_alone() {
        let seal = Seal::of(stream_id(), Direction::Download, &keys(1));
        let mut datagram = [0; HEADER];
        seal.prepare(&mut datagram);
        let bulk = Bulk { seq: 1 << 40, sent_ns: 77, is_settled: true };
        Seal::stamp(bulk, &mut datagram);
        assert_eq!(seal.open(&datagram), Some(bulk));
        assert_eq!(seal.open(&datagram[..HEADER - 1]), None);
        let others = [
            Seal::of(StreamId { phase: 3, ..stream_id() }, Direction::Download, &keys(1)),
            Seal::of(StreamId { stream: 3, ..stream_id() }, Direction::Download, &keys(1)),
            Seal::of(stream_id(), Direction::Upload, &keys(1)),
            Seal::of(stream_id(), Direction::Download, &keys(2)),
        ];
        assert!(others.iter().all(|other| other.open(&datagram).is_none()));
        assert!(!is_signal(datagram[1]));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_no_signal(at in 0usize..SIGNAL * 8, which in 0usize..6) {
            let signal = Signal { stream_id: stream_id(), number: 5, word: words()[which] };
            let mut bytes = signal.seal(Direction::Upload, &keys(1));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Signal::open(&bytes, Direction::Upload, &keys(1)), None);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Signal::open(&bytes, Direction::Upload, &keys(1)), None);
            prop_assert_eq!(Seal::of(stream_id(), Direction::Upload, &keys(1)).open(&bytes), None);
        }

        #[test]
        fn signed_nonsense_does_not_panic(kind: u8, body in prop::array::uniform32(any::<u8>())) {
            let hello = Signal { stream_id: stream_id(), number: 5, word: Word::Hello };
            let mut bytes = hello.seal(Direction::Upload, &keys(1));
            bytes[1] = kind;
            bytes[20..52].copy_from_slice(&body);
            let tag = keys(1).seal_datagram(Direction::Upload, &bytes[..TAG_AT]);
            bytes[TAG_AT..].copy_from_slice(&tag);
            let opened = Signal::open(&bytes, Direction::Upload, &keys(1));
            prop_assert_eq!(opened.is_some(), (HELLO..=LAST).contains(&kind));
        }
    }
}
