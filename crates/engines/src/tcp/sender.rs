//! The sending end of one stream: bytes, as fast as they are taken, until the time is over. The same at both ends of a
//! session.

use std::io::{self, Read, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::phase::{Counter, Course};
use crate::data_stream::{CHUNK, DataStream};

/// The longest that a write may stand past the end of its phase.
const LONGEST_WRITE: Duration = Duration::from_millis(100);

/// What is sent, over and over: it looks random, and repeats only after more than what any link's compression
/// remembers.
static PAYLOAD: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; CHUNK].into_boxed_slice();
    for word in bytes.chunks_exact_mut(8) {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_ne_bytes());
    }
    bytes
});

/// Sends until the course's time is over, then waits until the other end has taken everything and said so.
pub(super) fn send(stream: &mut DataStream, course: &Course<'_>, counter: &Counter) -> io::Result<()> {
    let payload = &**PAYLOAD;
    let mut total = 0;
    let mut limit = LONGEST_WRITE;
    stream.socket().set_write_timeout(Some(limit))?;
    loop {
        let left = course.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if left < limit {
            limit = left.max(Duration::from_millis(1));
            stream.socket().set_write_timeout(Some(limit))?;
        }
        match stream.write(payload) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => {
                total += sent as u64;
                counter.set(total);
                course.tether.spend(sent as u64).map_err(io::Error::other)?;
            }
            Err(e) if is_worth_another_try(&e) => {}
            Err(e) => return Err(e),
        }
    }
    stream.socket().set_write_timeout(Some(LONGEST_WRITE))?;
    loop {
        match stream.finish() {
            Ok(()) => break,
            Err(e) if is_worth_another_try(&e) => {}
            Err(e) => return Err(e),
        }
    }
    // The receiver ends its side when it has read the end of ours. Whoever runs the phase ends this wait at last.
    let mut goodbye = [0; 512];
    loop {
        match stream.socket().read(&mut goodbye) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if is_worth_another_try(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

fn is_worth_another_try(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_does_not_compress_away() {
        let mut seen = std::collections::HashSet::new();
        assert!(PAYLOAD.chunks_exact(8).all(|word| seen.insert(word)));
    }
}
