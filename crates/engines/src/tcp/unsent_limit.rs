//! Limits the unsent bytes that the kernel holds for one stream. The limit follows the stream's rate. While the other
//! end is silent, the limit is 0.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::socket;

/// The maximum number of unsent bytes that the kernel may hold for one stream: about the bytes that the kernel sends in
/// one sample interval. On a slow link, more bytes would only wait in this host's memory. They would be counted as
/// sent, and would still be in flight when the phase ends.
pub(super) struct UnsentLimit {
    /// The value of `limit`, or 0 while the stream pauses.
    bytes: AtomicU32,
    limit: AtomicU32,
    /// The total number of bytes that the stream had sent at the last call of [`UnsentLimit::adapt`].
    sent: AtomicU64,
}

impl UnsentLimit {
    /// The lowest limit in bytes: the size of one TLS record, so that a stalled stream can start again.
    const MIN: u32 = 16 * 1024;
    /// The limit in bytes until the first sample interval has been measured. On a line of 1 Mbit/s, four streams need
    /// one second to send this number of bytes each.
    const INITIAL: u32 = 32 * 1024;
    /// The desired number of writes per sample interval inside TLS, where the receiver counts whole records.
    /// [`Self::MIN_WRITE`] is the smallest write in bytes.
    const WRITES: u32 = 8;
    const MIN_WRITE: u32 = 1400;
    /// The highest limit in bytes. For a stream that reaches it, the limit in the kernel is removed, because the
    /// kernel's own limits are lower.
    const MAX: u32 = 4 * 1024 * 1024;

    pub(super) fn new(socket: &TcpStream) -> Self {
        socket::limit_unsent(socket, Self::INITIAL);
        let initial = || AtomicU32::new(Self::INITIAL);
        Self { bytes: initial(), limit: initial(), sent: AtomicU64::new(0) }
    }

    /// Adapts the limit to the bytes sent since the last call, one sample interval ago. `total` is the number of bytes
    /// that the stream has sent so far.
    pub(super) fn adapt(&self, socket: &TcpStream, total: u64) {
        let sent = total - self.sent.swap(total, Ordering::Relaxed);
        let before = self.limit.load(Ordering::Relaxed);
        let bytes = Self::next(before, sent);
        if bytes != before {
            self.limit.store(bytes, Ordering::Relaxed);
            socket::limit_unsent(socket, if bytes == Self::MAX { u32::MAX } else { bytes });
        }
    }

    /// The limit that follows the limit `before` if the stream sent `sent` bytes in the last interval. The limit grows
    /// at once and shrinks by at most half per interval, so that it does not slow a fast stream that has recovered from
    /// a loss.
    fn next(before: u32, sent: u64) -> u32 {
        u32::try_from(sent).unwrap_or(u32::MAX).max(before / 2).clamp(Self::MIN, Self::MAX)
    }

    /// Pauses or resumes the stream. Called after each [`UnsentLimit::adapt`].
    pub(super) fn pause(&self, pauses: bool) {
        let bytes = if pauses { 0 } else { self.limit.load(Ordering::Relaxed) };
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The write size in bytes of a stream inside TLS. On a slow line the writes are small, so that the records are
    /// small, too.
    pub(super) fn record_bytes(&self) -> usize {
        Self::record(self.bytes.load(Ordering::Relaxed)) as usize
    }

    fn record(bytes: u32) -> u32 {
        (bytes / Self::WRITES).max(Self::MIN_WRITE).min(bytes)
    }

    /// The number of bytes that the sender may pass to the kernel at once; 0 while the stream pauses.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_grows_with_what_is_sent_and_shrinks_slowly() {
        assert_eq!(UnsentLimit::next(UnsentLimit::INITIAL, 1_000_000), 1_000_000);
        assert_eq!(UnsentLimit::next(UnsentLimit::INITIAL, u64::MAX), UnsentLimit::MAX);
        assert_eq!(UnsentLimit::next(1_000_000, 0), 500_000);
        assert_eq!(UnsentLimit::next(UnsentLimit::MIN, 0), UnsentLimit::MIN);
    }

    #[test]
    fn records_are_small_only_if_an_interval_has_few_of_them() {
        assert_eq!([0, UnsentLimit::MIN, 1 << 20].map(UnsentLimit::record), [0, 2048, 128 * 1024]);
        assert_eq!(UnsentLimit::record(8000), 1400);
    }
}
