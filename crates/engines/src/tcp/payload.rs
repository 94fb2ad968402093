//! The payload of the `tcp` engine: a repeated pattern, so that the receiver can verify the payload.

use std::sync::LazyLock;

use crate::data_stream::CHUNK;
use crate::sys::splice::{HUGE, prefer_huge_pages};

const _: () = assert!(2 * CHUNK <= HUGE);

/// Pseudo-random bytes. They repeat only after [`CHUNK`] bytes, so that common compressors do not find the repetition.
/// They are stored twice in a row, so that a whole chunk is contiguous from any offset in the first copy on.
///
/// The bytes lie in one huge page if possible, because they are sent by reference. They never change and are never
/// freed, because the kernel may still refer to them.
static PATTERN: LazyLock<&'static [u8]> = LazyLock::new(|| {
    // Untouched pages use no memory.
    let bytes = Box::leak(vec![0; 2 * HUGE].into_boxed_slice());
    let start = bytes.as_ptr().align_offset(HUGE);
    prefer_huge_pages(&mut bytes[start..start + HUGE]);
    let pattern = &mut bytes[start..start + 2 * CHUNK];
    let (first, second) = pattern.split_at_mut(CHUNK);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for word in first.chunks_exact_mut(8) {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    second.copy_from_slice(first);
    pattern
});

/// The payload of a stream from byte `position` on: `most` bytes, but at most [`CHUNK`].
pub(super) fn from(position: u64, most: usize) -> &'static [u8] {
    let start = (position % CHUNK as u64) as usize;
    &PATTERN[start..start + most.min(CHUNK)]
}

/// Compares received bytes with the payload of a stream from byte `position` on. Returns the position in the stream of
/// the first wrong byte; `None` if all bytes are correct.
pub(super) fn first_wrong(position: u64, arrived: &[u8]) -> Option<u64> {
    let mut at = position;
    for part in arrived.chunks(CHUNK) {
        let expected = from(at, part.len());
        if part != expected {
            let same = part.iter().zip(expected).take_while(|(came, right)| came == right).count();
            return Some(at + same as u64);
        }
        at += part.len() as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_not_compressible() {
        let mut seen = std::collections::HashSet::new();
        assert!(from(0, CHUNK).chunks_exact(8).all(|word| seen.insert(word)));
    }

    #[test]
    fn the_payload_is_the_documented_one() {
        assert_eq!(from(0, 8), 0xDC1B_77AE_0BF3_4DAD_u64.to_le_bytes());
        assert_eq!(from(CHUNK as u64 * 3 + 5, 16), &from(0, 32)[5..21]);
        assert_eq!(from(7, usize::MAX).len(), CHUNK);
        assert_eq!(from(0, 1).as_ptr().align_offset(HUGE), 0);
    }

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut arrived = [from(10, CHUNK), from(10, CHUNK), from(10, 3)].concat();
        assert_eq!(first_wrong(10, &arrived), None);
        for at in [0, 7, CHUNK, 2 * CHUNK + 2] {
            arrived[at] ^= 1;
            assert_eq!(first_wrong(10, &arrived), Some(10 + at as u64));
            arrived[at] ^= 1;
        }
        assert_eq!(first_wrong(11, &arrived), Some(11), "a missing byte shifts all others");
    }
}
