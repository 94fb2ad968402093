//! A non-blocking data connection that carries latency probes and replies as whole packets if UDP does not work.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::event::PollFlags;

use super::packet;
use crate::clock::{Timer, Wake, wait};
use crate::data_stream::DataStream;

/// The maximum number of unsent bytes in the buffer of a [`ProbeConnection`]. A connection that exceeds this limit has
/// stalled and counts as ended.
const MAX_UNSENT: usize = 1024 * 1024;

/// A data connection in non-blocking mode, with a buffer for one incoming packet and a buffer for unsent packets.
pub(super) struct ProbeConnection {
    stream: DataStream,
    incoming: [u8; packet::LEN],
    /// The number of bytes of the packet in `incoming` that were received so far.
    filled: usize,
    outgoing: Vec<u8>,
    /// Whether the socket's send buffer is full.
    is_full: bool,
}

impl ProbeConnection {
    pub(super) fn new(stream: DataStream) -> io::Result<Self> {
        // Small packets must be sent at once.
        stream.socket().set_nodelay(true)?;
        stream.socket().set_nonblocking(true)?;
        Ok(Self { stream, incoming: [0; packet::LEN], filled: 0, outgoing: Vec::new(), is_full: false })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Waits until `timer` ticks, another thread wakes this thread through `wake`, or the socket is ready.
    pub(super) fn wait(&self, timer: &Timer, wake: &Wake) -> io::Result<()> {
        let interest = if self.is_full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        wait([(timer.as_fd(), PollFlags::IN), (wake.as_fd(), PollFlags::IN), (self.socket().as_fd(), interest)])
            .map(drop)
    }

    /// Sends a packet after all earlier packets. Buffers the bytes that the socket does not accept yet. Fails with
    /// `TimedOut` if more than [`MAX_UNSENT`] bytes are unsent.
    pub(super) fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        if self.outgoing.len() > MAX_UNSENT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.outgoing.extend_from_slice(packet);
        self.push()
    }

    fn push(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let end = loop {
            if sent == self.outgoing.len() {
                break self.stream.flush();
            }
            match self.stream.write(&self.outgoing[sent..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => sent += taken,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.outgoing.drain(..sent);
        self.is_full = matches!(&end, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        if self.is_full { Ok(()) } else { end }
    }

    /// Sends buffered bytes, if any, and then passes each received packet to `take`. The end of the connection is an
    /// error.
    pub(super) fn receive(&mut self, take: impl Fn(&[u8])) -> io::Result<()> {
        if self.is_full {
            self.push()?;
        }
        loop {
            match self.stream.read(&mut self.incoming[self.filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(came) => self.filled += came,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if self.filled == packet::LEN {
                self.filled = 0;
                take(&self.incoming);
            }
        }
    }
}
