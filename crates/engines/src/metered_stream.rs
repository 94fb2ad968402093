//! A data connection of a session, whose bytes are charged to the session.

use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::data_stream::DataStream;
use crate::session_control::{Cancelled, SessionControl};

/// A data connection that charges its bytes to the session. When the connection is dropped, it also charges the other
/// bytes that have arrived over the path: those that were read but not charged because of an error, and those that were
/// never read.
pub struct MeteredStream {
    stream: DataStream,
    control: Arc<SessionControl>,
    /// The number of bytes that were read from the connection so far.
    read: u64,
    /// The total number of payload bytes at the last charge.
    payload: u64,
    charged: u64,
}

impl MeteredStream {
    /// Wraps `stream`, whose bytes are charged to `control` from this call on.
    pub fn new(stream: DataStream, control: Arc<SessionControl>) -> Self {
        Self { stream, control, read: 0, payload: 0, charged: 0 }
    }

    /// The data connection, for reading its state.
    pub(crate) fn inner(&self) -> &DataStream {
        &self.stream
    }

    /// The data connection, for writing and closing. For reading, use [`Read`] and [`MeteredStream::discard`] of this
    /// type instead, because they count the bytes.
    pub(crate) fn inner_mut(&mut self) -> &mut DataStream {
        &mut self.stream
    }

    /// Charges what is due but not charged yet, now that the connection has moved `payload` bytes in total. Waits until
    /// the session's budget covers the charge.
    pub(crate) fn charge_and_wait(&mut self, payload: u64) -> Result<(), Cancelled> {
        let due = self.due(payload);
        self.control.charge_and_wait(due)
    }

    /// Like [`MeteredStream::charge_and_wait`], but does not wait for the session's budget.
    pub(crate) fn charge(&mut self, payload: u64) -> Result<(), Cancelled> {
        let due = self.due(payload);
        self.control.charge(due)
    }

    fn due(&mut self, payload: u64) -> u64 {
        self.payload = payload;
        let chargeable = self.stream.chargeable(payload);
        let due = chargeable.saturating_sub(self.charged);
        self.charged += due;
        due
    }

    /// Like [`DataStream::discard`], and counts the bytes as read.
    pub(crate) fn discard(&mut self, scratch: &mut [u8], in_kernel: bool) -> io::Result<usize> {
        let came = self.stream.discard(scratch, in_kernel)?;
        self.read += came as u64;
        Ok(came)
    }
}

impl Read for MeteredStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let came = self.stream.read(buffer)?;
        self.read += came as u64;
        Ok(came)
    }
}

impl Write for MeteredStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Drop for MeteredStream {
    fn drop(&mut self) {
        let read = self.due(self.payload.max(self.read));
        // The session is over or ends soon, so an error has no consequence.
        self.control.charge(read.saturating_add(self.stream.unread())).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::socket::tests::pair;

    fn control() -> Arc<SessionControl> {
        let control = SessionControl::metered(|| {});
        control.allow(1 << 20);
        control
    }

    /// Writes `bytes`, and waits until the other end has received them.
    fn deliver(ours: &mut TcpStream, theirs: &TcpStream, bytes: &[u8]) {
        let before = rustix::io::ioctl_fionread(theirs).unwrap();
        ours.write_all(bytes).unwrap();
        while rustix::io::ioctl_fionread(theirs).unwrap() < before + bytes.len() as u64 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_that_are_never_read_are_charged() {
        let ((mut ours, theirs), control) = (pair(), control());
        deliver(&mut ours, &theirs, &[7; 30_000]);
        let mut stream = MeteredStream::new(DataStream::Plain(theirs), Arc::clone(&control));
        stream.read_exact(&mut [0; 10_000]).unwrap();
        stream.charge(10_000).unwrap();
        assert_eq!(control.spent(), 10_000);
        control.cancel();
        drop(stream);
        assert_eq!(control.spent(), 30_000);
    }

    #[test]
    fn unread_bytes_are_charged_after_a_reset_and_behind_urgent_data() {
        for end in ["reset", "urgent"] {
            let ((mut ours, theirs), control) = (pair(), control());
            crate::socket::SocketOptions::default().apply(&theirs).unwrap();
            if end == "urgent" {
                assert_eq!(socket2::SockRef::from(&ours).send_out_of_band(&[7]).unwrap(), 1);
                deliver(&mut ours, &theirs, &[7; 29_999]);
            } else {
                deliver(&mut ours, &theirs, &[7; 30_000]);
                crate::socket::abort(&ours);
                drop(ours);
                while !crate::socket::is_hung_up(&theirs) {
                    std::thread::yield_now();
                }
            }
            drop(MeteredStream::new(DataStream::Plain(theirs), Arc::clone(&control)));
            assert!((29_999..=30_000).contains(&control.spent()), "{end}: {}", control.spent());
        }
    }

    #[test]
    fn bytes_whose_reading_failed_are_charged() {
        let ((mut ours, theirs), control) = (pair(), control());
        deliver(&mut ours, &theirs, &[7; 30_000]);
        let mut stream = MeteredStream::new(DataStream::Plain(theirs), Arc::clone(&control));
        // Like a receiver that finds a wrong byte: it read the bytes, but counts none of them.
        stream.discard(&mut [0; 20_000], false).unwrap();
        drop(stream);
        assert_eq!(control.spent(), 30_000);
    }

    #[test]
    fn a_stream_that_was_read_to_its_end_is_not_charged_again() {
        let ((mut ours, theirs), control) = (pair(), control());
        ours.write_all(&[7; 30_000]).unwrap();
        drop(ours);
        let mut stream = MeteredStream::new(DataStream::Plain(theirs), Arc::clone(&control));
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.charge(all.len() as u64).unwrap();
        drop(stream);
        assert_eq!(control.spent(), 30_000);
    }
}
