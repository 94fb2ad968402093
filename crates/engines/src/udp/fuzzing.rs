//! Gives the fuzz target access to the private datagram types: parses bytes, and seals the same datagram again. For
//! fuzzing only.

use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::Direction;

use super::packet::{SIGNAL, Seal, Signal, StreamId};

/// The length of a bulk datagram's header in bytes.
pub const HEADER: usize = super::packet::HEADER;

/// Opens `bytes` as a signal and seals it again. Returns `None` if `bytes` are not a valid signal.
pub fn reseal_signal(bytes: &[u8], flow: Direction, keys: &SessionKeys) -> Option<[u8; SIGNAL]> {
    Signal::open(bytes, flow, keys).map(|signal| signal.seal(flow, keys))
}

/// Opens `bytes` as a bulk datagram of this phase and stream, and writes its header again. Returns `None` if `bytes`
/// are not such a datagram.
pub fn reseal_bulk(bytes: &[u8], [phase, stream]: [u8; 2], flow: Direction, keys: &SessionKeys) -> Option<Vec<u8>> {
    let seal = Seal::of(StreamId { phase, stream }, flow, keys);
    let bulk = seal.open(bytes)?;
    let mut datagram = bytes.to_vec();
    seal.prepare(&mut datagram);
    Seal::stamp(bulk, &mut datagram);
    Some(datagram)
}
