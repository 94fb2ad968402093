//! Packets over a data connection that never blocks its thread: whole ones in, whole ones out. What they say stands
//! elsewhere.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::event::PollFlags;

use super::packet;
use crate::clock::{Timer, Wake, wait};
use crate::data_stream::DataStream;

/// More than this does not wait to be sent: a connection that stands still for so long has ended in all but name.
const MOST_WAITING: usize = 1024 * 1024;

/// A data connection that carries probes.
pub(super) struct Line {
    stream: DataStream,
    incoming: [u8; packet::LEN],
    /// Bytes of the packet in `incoming` that arrived.
    filled: usize,
    outgoing: Vec<u8>,
    /// Whether the connection takes no more for now.
    is_full: bool,
}

impl Line {
    pub(super) fn new(stream: DataStream) -> io::Result<Self> {
        // Each packet is small and must leave at once.
        stream.socket().set_nodelay(true)?;
        stream.socket().set_nonblocking(true)?;
        Ok(Self { stream, incoming: [0; packet::LEN], filled: 0, outgoing: Vec::new(), is_full: false })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Waits until the timer ticked, the wake-up came, or the connection has something to do.
    pub(super) fn wait(&self, timer: &Timer, wake: &Wake) -> io::Result<()> {
        let interest = if self.is_full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        wait([(timer.as_fd(), PollFlags::IN), (wake.as_fd(), PollFlags::IN), (self.socket().as_fd(), interest)])
            .map(drop)
    }

    /// Sends a packet after those that wait.
    pub(super) fn send(&mut self, packet: &[u8; packet::LEN]) -> io::Result<()> {
        if self.outgoing.len() > MOST_WAITING {
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

    /// Hands each whole packet that arrived to `take`, and sends what waited. The connection's end is an error.
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
