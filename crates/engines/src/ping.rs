//! Sends ICMP echo requests through an unprivileged socket (icmp(7), `ping_group_range`).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::clock::Clock;
use crate::udp_port::datagram::Mailbox;

/// The ICMP types of an echo request and its reply: `V4` for IPv4 (RFC 792), `V6` for IPv6 (RFC 4443).
const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);
/// The length in bytes of an echo request and of its reply: 8 for the ICMP header, and 8 for the sending time.
const LEN: usize = 16;
/// The maximum number of datagrams that one call of [`PingSocket::answers`] reads.
const MAX_READS_IN_A_ROW: usize = 64;

/// A socket that sends ICMP echo requests to one host. Its calls never block. It is readable when a reply has arrived.
pub struct PingSocket {
    socket: UdpSocket,
    mailbox: Mailbox,
    clock: Clock,
    types: (u8, u8),
}

impl PingSocket {
    /// Opens a socket for echo requests to the host at `target`, whose port is ignored. The error `PermissionDenied`
    /// means that this host does not allow this user to open such sockets.
    pub fn connect(target: SocketAddr) -> io::Result<Self> {
        let (protocol, types) = if target.is_ipv4() { (Protocol::ICMPV4, V4) } else { (Protocol::ICMPV6, V6) };
        let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(protocol))?;
        socket.connect(&target.into())?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from(socket);
        let mailbox = Mailbox::of(&socket)?;
        Ok(Self { socket, mailbox, clock: Clock::start(), types })
    }

    /// A second descriptor of the socket, with which the caller can wait until the socket is readable.
    pub fn readiness(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Sends an echo request with the sequence number `seq`. A request that this host fails to send counts as lost.
    pub fn send(&self, seq: u16) {
        let send = || {
            // The kernel fills in the checksum and the identifier, which is the port of the socket.
            let mut bytes = [0; LEN];
            bytes[0] = self.types.0;
            bytes[6..8].copy_from_slice(&seq.to_be_bytes());
            bytes[8..].copy_from_slice(&self.clock.now_ns().to_be_bytes());
            self.socket.send(&bytes)
        };
        // A send may report an ICMP error of an earlier request instead of sending.
        if send().is_err() {
            send().ok();
        }
    }

    /// Reads the replies that have arrived, and returns the sequence number and the round trip of each.
    pub fn answers(&mut self) -> Vec<(u16, Duration)> {
        let mut answers = Vec::new();
        for _ in 0..MAX_READS_IN_A_ROW {
            let arrival = match self.mailbox.receive(&self.socket) {
                Ok(Some(arrival)) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The read returned an ICMP error, and thereby cleared it.
                Ok(None) | Err(_) => continue,
            };
            let bytes = self.mailbox.bytes.get(..arrival.len).unwrap_or_default();
            let Ok(bytes) = <[u8; LEN]>::try_from(bytes) else { continue };
            let received_ns = self.clock.at(arrival.arrived_ns);
            let [kind, code, _, _, _, _, high, low, sent @ ..] = bytes;
            if (kind, code) == (self.types.1, 0) {
                let round_trip = Duration::from_nanos(received_ns.saturating_sub(u64::from_be_bytes(sent)));
                answers.push((u16::from_be_bytes([high, low]), round_trip));
            }
        }
        answers
    }
}

impl AsFd for PingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::PollFlags;

    use super::*;
    use crate::clock::wait;

    #[test]
    fn this_host_answers_where_it_allows_to_ask() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let mut socket = match PingSocket::connect(host.parse().unwrap()) {
                Ok(socket) => socket,
                Err(error) => {
                    let is_closed = [io::ErrorKind::PermissionDenied, io::ErrorKind::AddrNotAvailable];
                    assert!(is_closed.contains(&error.kind()), "{host}: {error:?}");
                    println!("SKIPPED {host}: {error}");
                    continue;
                }
            };
            socket.send(7);
            let answer = loop {
                wait([(socket.as_fd(), PollFlags::IN)]).unwrap();
                if let Some(answer) = socket.answers().pop() {
                    break answer;
                }
            };
            assert!(answer.0 == 7 && answer.1 < Duration::from_secs(10), "{answer:?}");
        }
    }
}
