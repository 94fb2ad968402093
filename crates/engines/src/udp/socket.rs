//! Datagram sockets: their options, the payload that fits the path MTU, and segmentation offload (udp(7), `UDP_SEGMENT`
//! and `UDP_GRO`). Without segmentation offload, datagrams are sent one by one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use paramedic_link::test_spec::TestSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt as options;
use socket2::SockRef;

use super::DEFAULT_PAYLOAD;
use super::packet::{self, LARGEST};
use crate::socket::mark;

/// The default size of all streams' receive buffers together, in bytes. [`MIN_RECEIVE_BUFFER`] is the smallest buffer
/// of one stream. The part of a burst that does not fit in the buffer is lost.
const RECEIVE_BUFFERS: usize = 32 << 20;
const MIN_RECEIVE_BUFFER: usize = 1 << 20;
/// The maximum number of datagrams in one send call (linux/udp.h, `UDP_MAX_SEGMENTS` of older kernels).
const MAX_SEGMENTS: usize = 64;
/// How long a send call may wait for space in the socket's send buffer.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Sets the options of the connected socket `socket` as requested in the test `ask`.
pub(super) fn prepare(socket: &UdpSocket, ask: &TestSpec) -> io::Result<()> {
    let reference = SockRef::from(socket);
    let room = (RECEIVE_BUFFERS / usize::from(ask.streams.max(1))).max(MIN_RECEIVE_BUFFER);
    match ask.window_bytes {
        Some(bytes) => {
            reference.set_send_buffer_size(bytes as usize)?;
            reference.set_recv_buffer_size(bytes as usize)?;
        }
        None if setsockopt(socket, sockopt::RcvBufForce, &room).is_err() => {
            // Best effort: sets a buffer as large as the system allows without privileges.
            reference.set_recv_buffer_size(room).ok();
        }
        None => {}
    }
    if let Some(code_point) = ask.dscp {
        mark(&reference, code_point)?;
    }
    if is_v6(socket)? {
        let discovery =
            if ask.fragments { options::Ipv6PathMtuDiscovery::DONT } else { options::Ipv6PathMtuDiscovery::DO };
        options::set_ipv6_mtu_discover(socket, discovery)?;
    } else {
        let discovery =
            if ask.fragments { options::Ipv4PathMtuDiscovery::DONT } else { options::Ipv4PathMtuDiscovery::DO };
        options::set_ip_mtu_discover(socket, discovery)?;
    }
    socket.set_write_timeout(Some(SEND_TIMEOUT))
}

fn is_v6(socket: &UdpSocket) -> io::Result<bool> {
    Ok(match socket.local_addr()? {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().is_none(),
    })
}

/// The largest payload that a connected `socket` sends without fragmentation, and the path MTU. Both are in bytes, as
/// far as the kernel knows them.
pub(super) fn room(socket: &UdpSocket) -> io::Result<(usize, u32)> {
    let (mtu, headers) =
        if is_v6(socket)? { (options::ipv6_mtu(socket)?, 40 + 8) } else { (options::ip_mtu(socket)?, 20 + 8) };
    Ok(((mtu as usize).saturating_sub(headers), mtu))
}

/// The payload of each datagram of the test `ask` in bytes. Fails if the requested payload exceeds the path MTU; the
/// text of the error names the options that help.
pub(super) fn payload(socket: &UdpSocket, ask: &TestSpec) -> io::Result<usize> {
    let Some(bytes) = ask.block_bytes else {
        let whole = if ask.fragments { DEFAULT_PAYLOAD } else { room(socket)?.0 };
        return Ok(DEFAULT_PAYLOAD.min(whole).max(packet::HEADER));
    };
    let bytes = (bytes as usize).clamp(packet::HEADER, LARGEST);
    if ask.fragments {
        return Ok(bytes);
    }
    let (room, mtu) = room(socket)?;
    if bytes > room { Err(too_large(bytes, room, mtu)) } else { Ok(bytes) }
}

/// The error for a datagram of `payload` bytes that no longer fits because the path MTU has decreased.
pub(super) fn mtu_decreased(socket: &UdpSocket, payload: usize) -> io::Error {
    let (room, mtu) = room(socket).unwrap_or_default();
    too_large(payload, room, mtu)
}

fn too_large(payload: usize, room: usize, mtu: u32) -> io::Error {
    let what = format!("datagrams of {payload} bytes do not fit the path MTU of {mtu}: use -l {room} or --fragments");
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Sends datagrams of equal size from a contiguous buffer.
pub(super) struct BatchSender {
    /// The payload bytes of each datagram.
    payload: usize,
    /// The maximum number of datagrams in one send call.
    most: usize,
}

impl BatchSender {
    pub(super) fn new(socket: &UdpSocket, payload: usize) -> Self {
        // The kernel does not segment datagrams that need fragmentation.
        let is_whole = room(socket).is_ok_and(|(room, _)| payload <= room);
        Self { payload, most: if is_whole { (LARGEST / payload).clamp(1, MAX_SEGMENTS) } else { 1 } }
    }

    /// The maximum number of datagrams per call of [`BatchSender::send`].
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Sends `datagrams`, which must be one or more whole datagrams. If the kernel cannot send several at once, sends
    /// only the first. Returns the number of sent datagrams, including those that the kernel drops.
    pub(super) fn send(&mut self, socket: &UdpSocket, datagrams: &[u8]) -> io::Result<usize> {
        let count = datagrams.len() / self.payload;
        if count > 1 && self.most > 1 {
            let segment = u16::try_from(self.payload).unwrap_or(u16::MAX);
            let segments = [ControlMessage::UdpGsoSegments(&segment)];
            let whole = [IoSlice::new(datagrams)];
            match sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &whole, &segments, MsgFlags::empty(), None) {
                Ok(_) => return Ok(count),
                // Sends one datagram below, without a loop: the caller checks before each call whether it may still
                // send, and a call may take as long as the socket's timeout.
                Err(errno) if is_unsupported(errno) => self.most = 1,
                Err(errno) => return Err(errno.into()),
            }
        }
        socket.send(datagrams.get(..self.payload).unwrap_or(datagrams)).map(|_| 1)
    }
}

/// Whether `errno` means that the kernel or a sandbox does not support segmentation offload.
fn is_unsupported(errno: nix::Error) -> bool {
    use nix::errno::Errno;
    matches!(errno, Errno::EINVAL | Errno::EIO | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP)
}

/// Receives datagrams, many per call if the kernel supports it.
pub(super) struct BatchReceiver {
    room: Vec<u8>,
    control: Vec<u8>,
}

impl BatchReceiver {
    pub(super) fn of(socket: &UdpSocket) -> Self {
        // Best effort: without this option, each call returns one datagram.
        setsockopt(socket, sockopt::UdpGroSegment, &true).ok();
        Self { room: vec![0; 1 << 16], control: nix::cmsg_space!(i32) }
    }

    /// Waits for datagrams, at most for the socket's timeout. Returns the bytes of all received datagrams in sequence,
    /// and the length of each datagram; the last datagram may be shorter.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<(&[u8], usize)> {
        let mut into = [IoSliceMut::new(&mut self.room)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut self.control), MsgFlags::empty())?;
        let came = message.bytes;
        let mut each = came;
        for metadata in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::UdpGroSegments(length) = metadata {
                each = usize::try_from(length).unwrap_or(0);
            }
        }
        Ok((self.room.get(..came).unwrap_or_default(), each.max(1)))
    }
}

/// Waits until `socket` is readable, or until `until`. Returns whether the socket is readable. A socket with an error
/// or at its end counts as readable.
#[expect(clippy::disallowed_methods, reason = "waits in wall time")]
pub(super) fn await_readable(socket: &UdpSocket, until: Instant) -> io::Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads the next datagram into `bytes` without waiting. Returns the full length of the datagram, even if it was
/// truncated, or `None` if the read fails.
pub(super) fn take_waiting(socket: &UdpSocket, bytes: &mut [u8]) -> Option<usize> {
    use rustix::net::{RecvFlags, recv};
    // A read that fails with the error of an earlier send clears this error; the next call returns the datagram.
    recv(socket, bytes, RecvFlags::DONTWAIT).ok().map(|(_, len)| len)
}

#[cfg(test)]
mod tests {
    use paramedic_link::test_spec::{DataMode, EngineId};

    use super::*;

    fn pair(at: &str) -> Option<(UdpSocket, UdpSocket)> {
        let ours = UdpSocket::bind((at, 0)).ok()?;
        let theirs = UdpSocket::bind((at, 0)).unwrap();
        ours.connect(theirs.local_addr().unwrap()).unwrap();
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        Some((ours, theirs))
    }

    fn spec() -> TestSpec {
        TestSpec::new(EngineId::try_from("udp").unwrap(), DataMode::Tunneled, vec![], 1)
    }

    /// Sends three datagrams of 100 bytes with `sends`, and one of 60 bytes. Returns the datagrams that arrive at
    /// `theirs`.
    fn arrive(sends: &mut BatchSender, ours: &UdpSocket, theirs: &UdpSocket) -> Vec<Vec<u8>> {
        let bytes = (0..30).flat_map(|ten| [ten; 10]).collect::<Vec<u8>>();
        let mut sent = 0;
        while sent < 3 {
            sent += sends.send(ours, &bytes[sent * 100..]).unwrap();
        }
        ours.send(&[99; 60]).unwrap();
        let mut receives = BatchReceiver::of(theirs);
        let mut datagrams = Vec::new();
        while datagrams.len() < 4 {
            let (came, each) = receives.receive(theirs).unwrap();
            datagrams.extend(came.chunks(each).map(<[u8]>::to_vec));
        }
        assert_eq!(datagrams.iter().take(3).flatten().copied().collect::<Vec<_>>(), bytes);
        datagrams
    }

    #[test]
    fn batches_arrive_like_single_datagrams() {
        for at in ["127.0.0.1", "::1"] {
            let Some((ours, theirs)) = pair(at) else { continue };
            let lengths = |datagrams: Vec<Vec<u8>>| datagrams.iter().map(Vec::len).collect::<Vec<_>>();
            let mut at_once = BatchSender::new(&ours, 100);
            assert_eq!(at_once.most(), MAX_SEGMENTS);
            assert_eq!(lengths(arrive(&mut at_once, &ours, &theirs)), [100, 100, 100, 60]);
            let mut one_by_one = BatchSender { payload: 100, most: 1 };
            assert_eq!(lengths(arrive(&mut one_by_one, &ours, &theirs)), [100, 100, 100, 60]);
        }
    }

    #[test]
    fn a_call_sends_one_datagram_if_the_kernel_does_not_send_many_at_once() {
        let Some((ours, _theirs)) = pair("127.0.0.1") else { return };
        // The kernel refuses more than 128 datagrams per call with the error that a host without segmentation offload
        // returns.
        let mut sends = BatchSender { payload: 10, most: 200 };
        assert_eq!(sends.send(&ours, &[0; 2000]).unwrap(), 1);
        assert_eq!((sends.most(), sends.send(&ours, &[0; 20]).unwrap()), (1, 1));
    }

    #[test]
    fn a_payload_above_the_path_mtu_needs_fragments() {
        let asks = |bytes, fragments| TestSpec { block_bytes: Some(bytes), fragments, ..spec() };
        let Some((ours, _)) = pair("::1") else { return };
        prepare(&ours, &asks(65_507, false)).unwrap();
        let refusal = payload(&ours, &asks(65_507, false)).unwrap_err().to_string();
        assert!(refusal.contains("MTU of 65536") && refusal.contains("-l 65488"), "{refusal}");
        assert_eq!(payload(&ours, &asks(65_488, false)).unwrap(), 65_488);
        assert_eq!(payload(&ours, &asks(65_507, true)).unwrap(), 65_507);
        assert_eq!(payload(&ours, &spec()).unwrap(), DEFAULT_PAYLOAD);
        // The kernel also refuses the larger payload.
        assert_eq!(ours.send(&[0; 65_507]).unwrap_err().raw_os_error(), Some(nix::libc::EMSGSIZE));
        prepare(&ours, &asks(65_507, true)).unwrap();
        assert_eq!(ours.send(&[0; 65_507]).unwrap(), 65_507);
    }
}
