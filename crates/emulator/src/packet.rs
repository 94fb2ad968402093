//! Parses the headers of an IP packet, as far as the record of a link needs them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The transport protocols that the record of a link distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// The protocol TCP.
    Tcp,
    /// The protocol UDP.
    Udp,
    /// ICMP and ICMPv6; the ports of the [`FlowKey`] are zero.
    Icmp,
    /// Any other protocol; the ports of the [`FlowKey`] are zero.
    Other,
}

/// Identifies a flow: the packets of one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// The transport protocol of the packets.
    pub transport: Transport,
    /// The IP address of the sender.
    pub source: IpAddr,
    /// The IP address of the receiver.
    pub destination: IpAddr,
    /// The port of the sender.
    pub source_port: u16,
    /// The port of the receiver.
    pub destination_port: u16,
}

/// The flag SYN in the byte of TCP flags.
const SYN: u8 = 2;

/// The headers of an IP packet, and its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    /// The flow to which the packet belongs.
    pub flow: FlowKey,
    /// The TCP sequence number of the payload's first byte; zero for other protocols.
    pub sequence: u32,
    /// Whether the packet opens its direction of a TCP connection: it has the flag SYN (RFC 9293, section 3.1).
    pub opens: bool,
    /// The bytes that follow the transport header.
    pub payload: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Reads the headers of `packet`; `None` if they are incomplete. Every fragment except the first, and IPv6 with
    /// extension headers, counts as [`Transport::Other`]: the programs under test send neither.
    pub fn read(packet: &'a [u8]) -> Option<Self> {
        let (protocol, source, destination, rest) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 15) * 4;
                let length = usize::from(word(packet, 2)?).min(packet.len());
                let is_later_fragment = word(packet, 6)? & 0x1fff != 0;
                let protocol = if is_later_fragment { u8::MAX } else { *packet.get(9)? };
                let address = |at| Some(IpAddr::V4(Ipv4Addr::from(bytes::<4>(packet, at)?)));
                (protocol, address(12)?, address(16)?, packet.get(header..length)?)
            }
            6 => {
                let length = (40 + usize::from(word(packet, 4)?)).min(packet.len());
                let address = |at| Some(IpAddr::V6(Ipv6Addr::from(bytes::<16>(packet, at)?)));
                (*packet.get(6)?, address(8)?, address(24)?, packet.get(40..length)?)
            }
            _ => return None,
        };
        let (transport, header) = match protocol {
            6 => (Transport::Tcp, usize::from(rest.get(12)? >> 4) * 4),
            17 => (Transport::Udp, 8),
            1 | 58 => (Transport::Icmp, 4),
            _ => (Transport::Other, 0),
        };
        let has_ports = matches!(transport, Transport::Tcp | Transport::Udp);
        let port = |at| if has_ports { word(rest, at) } else { Some(0) };
        let flow = FlowKey { transport, source, destination, source_port: port(0)?, destination_port: port(2)? };
        let is_tcp = transport == Transport::Tcp;
        let opens = is_tcp && *rest.get(13)? & SYN != 0;
        // SYN takes a sequence number of its own.
        let sequence = if is_tcp { u32::from_be_bytes(bytes(rest, 4)?).wrapping_add(opens.into()) } else { 0 };
        Some(Self { flow, sequence, opens, payload: rest.get(header..)? })
    }
}

fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    bytes(packet, at).map(u16::from_be_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 packet with a UDP datagram.
    pub(crate) fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let udp = u16::try_from(payload.len() + 8).unwrap();
        let mut packet = vec![0x45, 0];
        packet.extend((udp + 20).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(source_port.to_be_bytes());
        packet.extend(destination_port.to_be_bytes());
        packet.extend(udp.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet with a TCP segment.
    pub(crate) fn tcp6(sequence: u32, payload: usize) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(32 + payload).unwrap().to_be_bytes());
        packet.extend([6, 64]);
        packet.extend([1; 16]);
        packet.extend([2; 16]);
        packet.extend([0, 80, 1, 0]);
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 0, 0x80, 0x10, 0, 0, 0, 0, 0, 0]);
        packet.extend(vec![0; 12 + payload]);
        packet
    }

    #[test]
    fn udp_over_ipv4_is_read() {
        let packet = udp(4000, 5000, b"payload");
        let headers = Headers::read(&packet).unwrap();
        assert_eq!((headers.flow.transport, headers.payload), (Transport::Udp, &b"payload"[..]));
        assert_eq!((headers.flow.source_port, headers.flow.destination_port), (4000, 5000));
        assert_eq!(headers.flow.source.to_string(), "10.0.0.1");
    }

    #[test]
    fn a_syn_comes_before_the_first_byte() {
        let mut packet = tcp6(u32::MAX, 0);
        packet[40 + 13] = SYN;
        let headers = Headers::read(&packet).unwrap();
        assert_eq!((headers.opens, headers.sequence), (true, 0));
        let data = tcp6(0, 5);
        assert!(!Headers::read(&data).unwrap().opens);
    }

    #[test]
    fn tcp_over_ipv6_is_read_with_options() {
        let packet = tcp6(7, 1000);
        let headers = Headers::read(&packet).unwrap();
        assert_eq!((headers.flow.transport, headers.payload.len(), headers.sequence), (Transport::Tcp, 1000, 7));
        assert_eq!((headers.flow.source_port, headers.flow.destination_port), (80, 256));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(packet in prop::collection::vec(any::<u8>(), 0..120), version in 4_u8..7) {
            let mut packet = packet;
            if let Some(first) = packet.first_mut() {
                *first = *first & 15 | version << 4;
            }
            Headers::read(&packet);
        }
    }
}
