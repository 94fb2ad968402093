//! Datagrams with the kernel's metadata: the arrival time and the local address. Shell: sockets.

#![expect(clippy::disallowed_methods, reason = "compares with the kernel's receive timestamps")]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;

use super::DATAGRAM_LEN;

/// No datagram waits longer than this in a socket. A longer time means that the wall clock was set.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// One datagram that arrived.
pub(crate) struct Arrival {
    /// Its length; [`Mailbox::LONGER`] for every datagram that is longer than a packet.
    pub(crate) len: usize,
    /// The sender.
    pub(crate) from: SocketAddr,
    /// The local address that it was sent to.
    pub(crate) to: Option<IpAddr>,
    /// How long ago it arrived, by the kernel's receive timestamp.
    pub(crate) ago: Duration,
}

/// The buffers that datagrams are read into.
pub(crate) struct Mailbox {
    control: Vec<u8>,
    pub(crate) bytes: [u8; Mailbox::LONGER],
}

impl Mailbox {
    /// One byte more than a packet has, to detect a longer datagram.
    pub(crate) const LONGER: usize = DATAGRAM_LEN + 1;

    /// A mailbox for `socket`; enables the metadata of arrival times and addresses.
    pub(crate) fn of(socket: &UdpSocket) -> io::Result<Self> {
        Self::unbound(socket, socket.local_addr()?.is_ipv6())
    }

    /// The same for a socket that is not bound yet.
    pub(crate) fn unbound(socket: &UdpSocket, is_v6: bool) -> io::Result<Self> {
        // Best effort: without it the time is that of the read, which makes round trips look longer.
        setsockopt(socket, sockopt::ReceiveTimestampns, &true).ok();
        if is_v6 {
            // Also applies to IPv4 on a dual-stack socket.
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        let control = nix::cmsg_space!(TimeSpec, libc::in_pktinfo, libc::in6_pktinfo);
        Ok(Self { control, bytes: [0; Self::LONGER] })
    }

    /// Disables the metadata that only a mailbox needs.
    pub(crate) fn close(socket: &UdpSocket) {
        // Best effort: the metadata only costs time.
        setsockopt(socket, sockopt::ReceiveTimestampns, &false).ok();
        match socket.local_addr() {
            Ok(SocketAddr::V6(_)) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &false).ok(),
            _ => setsockopt(socket, sockopt::Ipv4PacketInfo, &false).ok(),
        };
    }

    /// The next datagram; `WouldBlock` if there is none. `None`: a datagram without a sender's address, or the end of a
    /// socket that was shut down.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<Option<Arrival>> {
        let mut into = [IoSliceMut::new(&mut self.bytes)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let Some(from) = message.address.as_ref().and_then(socket_addr) else { return Ok(None) };
        let mut arrival = Arrival { len: message.bytes, from, to: None, ago: Duration::ZERO };
        // If control data is missing or truncated, the datagram has less metadata.
        for metadata in message.cmsgs().into_iter().flatten() {
            match metadata {
                ControlMessageOwned::ScmTimestampns(at) => arrival.ago = ago(at),
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    // The local address of the route, which differs from the header's only for broadcasts.
                    arrival.to = Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => arrival.to = Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                _ => {}
            }
        }
        Ok(Some(arrival))
    }
}

/// Sends `bytes` to `to`, from the local address `from` if it is known, with the DSCP `dscp` (RFC 2474) if there is one.
/// Never blocks.
pub(crate) fn answer(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
    dscp: Option<u8>,
) -> io::Result<()> {
    let octet = dscp.unwrap_or_default() << 2;
    let class = i32::from(octet);
    // An IPv4-mapped destination on a dual-stack socket gets an IPv4 header.
    let is_v4 = to.ip().to_canonical().is_ipv4();
    let mark = dscp.map(|_| if is_v4 { ControlMessage::Ipv4Tos(&octet) } else { ControlMessage::Ipv6TClass(&class) });
    let send = |address: Option<ControlMessage<'_>>| {
        let control = address.into_iter().chain(mark).collect::<Vec<_>>();
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &control,
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrStorage::from(to)),
        )
    };
    // The routing table chooses the interface; only the address must be the one that the request was sent to.
    match from {
        Some(IpAddr::V4(from)) => send(Some(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })))?,
        Some(IpAddr::V6(from)) => send(Some(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_ifindex: 0,
            ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
        })))?,
        None => send(None)?,
    };
    Ok(())
}

/// The time since a wall-clock time; zero if the clock was set in between.
fn ago(at: TimeSpec) -> Duration {
    let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ago = since_epoch(SystemTime::now()).saturating_sub(Duration::from(at));
    if ago > LONGEST_WAIT { Duration::ZERO } else { ago }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Asserts the local address of a packet sent to each of `targets`, and the source address of its answer.
    fn answers_of(bind: &str, targets: &[&str]) {
        let socket = UdpSocket::bind(bind).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut mailbox = Mailbox::of(&socket).unwrap();
        for target in targets {
            let target = SocketAddr::new(target.parse().unwrap(), port);
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let asker = UdpSocket::bind(any).unwrap();
            asker.send_to(&[7; DATAGRAM_LEN], target).unwrap();
            // Loopback delivers within the call; a blocking peek makes sure of it.
            socket.peek(&mut [0]).unwrap();
            let arrival = mailbox.receive(&socket).unwrap().unwrap();
            assert_eq!(arrival.len, DATAGRAM_LEN);
            assert_eq!(arrival.to.map(|to| to.to_canonical()), Some(target.ip()));
            assert!(arrival.ago < LONGEST_WAIT);
            for dscp in [None, Some(46)] {
                answer(&socket, b"here", arrival.from, arrival.to, dscp).unwrap();
                assert_eq!(received_mark(&asker), (4, target, dscp.unwrap_or_default() << 2));
            }
        }
    }

    /// The length, the sender and the traffic class of the next datagram.
    fn received_mark(socket: &UdpSocket) -> (usize, SocketAddr, u8) {
        if socket.local_addr().unwrap().is_ipv4() {
            setsockopt(socket, sockopt::IpRecvTos, &true).unwrap();
        } else {
            setsockopt(socket, sockopt::Ipv6RecvTClass, &true).unwrap();
        }
        let mut bytes = [0; 8];
        let mut into = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!(i32);
        let flags = MsgFlags::empty();
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut control), flags).unwrap();
        let mark = message.cmsgs().unwrap().find_map(|metadata| match metadata {
            ControlMessageOwned::Ipv4Tos(octet) => Some(octet),
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
            _ => None,
        });
        (message.bytes, message.address.as_ref().and_then(socket_addr).unwrap(), mark.unwrap())
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_the_request_was_sent_to() {
        answers_of("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.9.9.9"]);
        if UdpSocket::bind("[::1]:0").is_ok() {
            answers_of("[::]:0", &["::1", "127.0.0.3"]);
        }
    }

    #[test]
    fn a_too_long_datagram_is_detected() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut mailbox = Mailbox::of(&socket).unwrap();
        socket.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        socket.peek(&mut [0]).unwrap();
        assert_eq!(mailbox.receive(&socket).unwrap().unwrap().len, Mailbox::LONGER);
        assert_eq!(mailbox.receive(&socket).err().map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_changed_clock_gives_no_time() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(ago(TimeSpec::from(now - Duration::from_secs(3600))), Duration::ZERO);
        assert_eq!(ago(TimeSpec::from(now + Duration::from_secs(3600))), Duration::ZERO);
        assert!(ago(TimeSpec::from(now - Duration::from_secs(1))) >= Duration::from_secs(1));
    }
}
