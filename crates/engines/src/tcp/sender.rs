//! The sending end of one stream: bytes, as fast as they are taken, until the time is over. The same at both ends of a
//! session.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::phase::{Counter, Course};
use crate::data_stream::{CHUNK, DataStream};
use crate::socket;

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

/// How far one stream may run ahead of the network: about what it sends in an interval. On a slow link more would only
/// wait in this host's memory, be counted as sent, and still be on its way when the phase is over.
pub(super) struct Lead {
    bytes: AtomicU32,
    /// What the stream had sent at the last look.
    sent: AtomicU64,
}

impl Lead {
    /// The least: one TLS record, so that a stream that stood still can start again.
    const LEAST: u32 = 16 * 1024;
    /// Before anything is known of the network.
    const FIRST: u32 = 128 * 1024;
    /// From here on the kernel's own limits are the narrower ones.
    const FREE: u32 = 4 * 1024 * 1024;

    pub(super) fn new(socket: &TcpStream) -> Self {
        socket::limit_unsent(socket, Self::FIRST);
        Self { bytes: AtomicU32::new(Self::FIRST), sent: AtomicU64::new(0) }
    }

    /// Fits the lead to what was sent since the last call, one interval ago; `total` is the stream's count so far.
    pub(super) fn adapt(&self, socket: &TcpStream, total: u64) {
        let sent = total - self.sent.swap(total, Ordering::Relaxed);
        let before = self.bytes.load(Ordering::Relaxed);
        let bytes = Self::next(before, sent);
        if bytes != before {
            self.bytes.store(bytes, Ordering::Relaxed);
            socket::limit_unsent(socket, if bytes == Self::FREE { u32::MAX } else { bytes });
        }
    }

    /// Grows at once, shrinks by halves: a fast stream that lost a packet is not held back when it goes on.
    fn next(before: u32, sent: u64) -> u32 {
        u32::try_from(sent).unwrap_or(u32::MAX).max(before / 2).clamp(Self::LEAST, Self::FREE)
    }

    fn chunk<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        let bytes = self.bytes.load(Ordering::Relaxed) as usize;
        payload.get(..bytes).unwrap_or(payload)
    }
}

/// Sends until the course's time is over, then waits until the other end has taken everything and said so.
pub(super) fn send(stream: &mut DataStream, course: &Course<'_>, lead: &Lead, counter: &Counter) -> io::Result<()> {
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
        match stream.write(lead.chunk(payload)) {
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

    #[test]
    fn a_lead_grows_with_what_is_sent_and_shrinks_slowly() {
        assert_eq!(Lead::next(Lead::FIRST, 1_000_000), 1_000_000);
        assert_eq!(Lead::next(Lead::FIRST, u64::MAX), Lead::FREE);
        assert_eq!(Lead::next(1_000_000, 0), 500_000);
        assert_eq!(Lead::next(Lead::LEAST, 0), Lead::LEAST);
    }
}
