//! Reads datagrams together with the kernel's metadata: the arrival time and the local address. Uses sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, TimestampingFlag, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use nix::sys::time::TimeSpec;

use super::DATAGRAM_LEN;
use super::stamps::{ClockPair, StampConverter};

/// The buffer size for the kernel's report of a sent datagram, which includes the link-layer, IPv6 and UDP headers.
const SENT_LEN: usize = 256;

/// The metadata of one datagram that arrived.
pub(crate) struct Arrival {
    /// The length of the datagram in bytes; [`Mailbox::LONGER`] if the datagram is longer than [`DATAGRAM_LEN`].
    pub(crate) len: usize,
    /// The source address and port of the datagram.
    pub(crate) from: SocketAddr,
    /// The local address that the datagram was sent to.
    pub(crate) to: Option<IpAddr>,
    /// When the datagram arrived, in nanoseconds of `CLOCK_MONOTONIC`, by the kernel's receive timestamp. Without a
    /// usable timestamp, the time of the read replaces it, which makes round trips look longer.
    pub(crate) arrived_ns: u64,
}

/// The buffers into which the datagrams of one socket and their metadata are read.
pub(crate) struct Mailbox {
    control: Vec<u8>,
    stamps: StampConverter,
    pub(crate) bytes: [u8; Mailbox::LONGER],
}

impl Mailbox {
    /// The length of the buffer in bytes: one more than [`DATAGRAM_LEN`], to detect longer datagrams.
    pub(crate) const LONGER: usize = DATAGRAM_LEN + 1;

    /// A mailbox for `socket`. Makes the kernel report the arrival time and the local address of each datagram.
    pub(crate) fn of(socket: &UdpSocket) -> io::Result<Self> {
        Self::unbound(socket, socket.local_addr()?.is_ipv6())
    }

    /// Like [`Mailbox::of`], for a socket that is not bound yet.
    pub(crate) fn unbound(socket: &UdpSocket, is_v6: bool) -> io::Result<Self> {
        // Best effort: without timestamps, the arrival time is the time of the read.
        setsockopt(socket, sockopt::ReceiveTimestampns, &true).ok();
        if is_v6 {
            // This option also applies to IPv4 on a dual-stack socket.
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        let control = nix::cmsg_space!(
            TimeSpec,
            [TimeSpec; 3],
            libc::in_pktinfo,
            libc::in6_pktinfo,
            libc::sock_extended_err,
            libc::sockaddr_in6
        );
        Ok(Self { control, stamps: StampConverter::new(ClockPair::read()), bytes: [0; Self::LONGER] })
    }

    /// Makes the kernel report when it passed each datagram of `socket` to the network interface, after the host's own
    /// queues (`SOF_TIMESTAMPING_TX_SOFTWARE`). Best effort: without this option, [`Mailbox::departure`] reports
    /// nothing.
    pub(crate) fn stamp_departures(socket: &UdpSocket) {
        let flags = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
        setsockopt(socket, sockopt::Timestamping, &flags).ok();
    }

    /// Reads the kernel's next report of a datagram that left this host: its bytes, and when it left, in nanoseconds of
    /// `CLOCK_MONOTONIC`. Returns `None` for a report without a usable time, and `WouldBlock` if there are no more
    /// reports. The bytes are not verified: a firewall of the host may have changed them.
    pub(crate) fn departure(&mut self, socket: &UdpSocket) -> io::Result<Option<([u8; DATAGRAM_LEN], u64)>> {
        let mut bytes = [0; SENT_LEN];
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut self.control), flags)?;
        let stamp = message.cmsgs().into_iter().flatten().find_map(|metadata| match metadata {
            ControlMessageOwned::ScmTimestampsns(stamps) => Some(stamps.system),
            _ => None,
        });
        let len = message.bytes;
        let left_ns = stamp.and_then(|stamp| self.stamps.convert(nanoseconds(stamp), ClockPair::read()));
        // The report contains the packet with its headers; the datagram is at the end of the packet.
        let sent = bytes.get(..len).and_then(<[u8]>::last_chunk::<DATAGRAM_LEN>);
        Ok(sent.copied().zip(left_ns))
    }

    /// Stops the kernel from reporting arrival times and local addresses for `socket`, because only a mailbox needs
    /// them.
    pub(crate) fn close(socket: &UdpSocket) {
        // Best effort: the metadata only costs time.
        setsockopt(socket, sockopt::ReceiveTimestampns, &false).ok();
        match socket.local_addr() {
            Ok(SocketAddr::V6(_)) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &false).ok(),
            _ => setsockopt(socket, sockopt::Ipv4PacketInfo, &false).ok(),
        };
    }

    /// Reads the next datagram into `bytes`. Returns `WouldBlock` if there is none, and `None` for a datagram without a
    /// source address or at the end of a socket that was shut down.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<Option<Arrival>> {
        let mut into = [IoSliceMut::new(&mut self.bytes)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let Some(from) = message.address.as_ref().and_then(socket_addr) else { return Ok(None) };
        let now = ClockPair::read();
        let mut arrival = Arrival { len: message.bytes, from, to: None, arrived_ns: now.monotonic_ns.cast_unsigned() };
        // If control data is missing or truncated, the datagram has less metadata.
        for metadata in message.cmsgs().into_iter().flatten() {
            match metadata {
                ControlMessageOwned::ScmTimestampns(at) => {
                    arrival.arrived_ns = self.stamps.convert(nanoseconds(at), now).unwrap_or(arrival.arrived_ns);
                }
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    // This is the local address of the route. It differs from the destination address in the header
                    // only for broadcasts.
                    arrival.to = Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => arrival.to = Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                _ => {}
            }
        }
        Ok(Some(arrival))
    }
}

/// Sends `bytes` to `to` without blocking. The source address is `from`, if it is known. The DSCP is `dscp` (RFC 2474),
/// if it is set.
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

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Checks, for a packet to each of `targets`, the reported local address of the packet and the source address of
    /// its answer.
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
            let now = ClockPair::read().monotonic_ns.cast_unsigned();
            assert!(arrival.arrived_ns > 0 && arrival.arrived_ns <= now);
            for dscp in [None, Some(46)] {
                answer(&socket, b"here", arrival.from, arrival.to, dscp).unwrap();
                assert_eq!(received_mark(&asker), (4, target, dscp.unwrap_or_default() << 2));
            }
        }
    }

    /// The length, the sender and the traffic class of the next datagram that arrives at `socket`.
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
    fn a_datagram_that_left_is_reported_with_its_bytes_and_its_time() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = UdpSocket::bind(bind) else { continue };
            socket.connect(socket.local_addr().unwrap()).unwrap();
            let mut mailbox = Mailbox::of(&socket).unwrap();
            Mailbox::stamp_departures(&socket);
            let mut last = None;
            // The kernel begins to make timestamps a moment after the first request for them.
            for number in 0..u8::MAX {
                let before = ClockPair::read().monotonic_ns.cast_unsigned();
                socket.send(&[number; DATAGRAM_LEN]).unwrap();
                socket.peek(&mut [0]).unwrap();
                let arrival = mailbox.receive(&socket).unwrap().unwrap();
                assert_eq!(arrival.len, DATAGRAM_LEN, "the report does not disturb the arrival");
                assert!(arrival.to.is_some());
                while let Ok(departure) = mailbox.departure(&socket) {
                    if let Some((bytes, left_ns)) = departure {
                        assert_eq!(bytes, [number; DATAGRAM_LEN]);
                        last = Some((before, left_ns, arrival.arrived_ns));
                    }
                }
                if last.is_some() {
                    break;
                }
                std::thread::yield_now();
            }
            let (before, left_ns, arrived_ns) = last.unwrap();
            // The wall clock may be slewed, but moves by less than `slack` in this time.
            let slack = 1_000_000;
            assert!(before <= left_ns + slack && left_ns <= arrived_ns + slack, "{before} {left_ns} {arrived_ns}");
        }
    }
}
