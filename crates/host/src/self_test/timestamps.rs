//! Tests whether the kernel timestamps packets on arrival and departure (`SO_TIMESTAMPING`), with datagrams that a
//! socket sends to itself. Tests only the timestamps of the kernel, not those of an interface's hardware.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, TimestampingFlag, Timestamps as Stamps, recvmsg, setsockopt,
    sockopt,
};
use paramedic_report::self_test::Timestamps;

/// How long the test waits for timestamps. The kernel begins to timestamp with a delay after the first request, so the
/// first datagrams may have no timestamp. On a busy host the delay is long.
const STAMP_TIMEOUT: Duration = Duration::from_secs(1);

/// The test sends at least this many datagrams before it gives up.
const TRIES: usize = 100;

/// Tests whether the kernel timestamps sent and received datagrams.
#[expect(clippy::disallowed_methods, reason = "it waits for the kernel, for a bounded time")]
pub(super) fn probe() -> Timestamps {
    let Ok(socket) = to_itself() else { return Timestamps::default() };
    let flags = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
    if setsockopt(&socket, sockopt::Timestamping, &flags).is_err() {
        return Timestamps { software_receive: Some(false), software_send: Some(false) };
    }
    let until = Instant::now() + STAMP_TIMEOUT;
    let (mut came, mut went) = (false, false);
    let mut tries = 0;
    while !(came && went) && (tries < TRIES || Instant::now() < until) {
        tries += 1;
        // Loopback delivers during the send call: both queues are complete.
        if socket.send(b"when?").is_err() {
            return Timestamps::default();
        }
        came |= stamped(&socket, MsgFlags::MSG_DONTWAIT);
        went |= stamped(&socket, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE);
        std::thread::yield_now();
    }
    Timestamps { software_receive: Some(came), software_send: Some(went) }
}

/// A socket that is connected to itself.
fn to_itself() -> io::Result<UdpSocket> {
    let loopback = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
    let socket = UdpSocket::bind(loopback.as_slice())?;
    socket.connect(socket.local_addr()?)?;
    Ok(socket)
}

/// Whether a message in a queue of `socket` has a timestamp of the kernel. `flags` select the queue. Reads all messages
/// of that queue.
fn stamped(socket: &UdpSocket, flags: MsgFlags) -> bool {
    let mut is_stamped = false;
    loop {
        let mut payload = [0; 64];
        let mut into = [IoSliceMut::new(&mut payload)];
        // The error queue adds the address of the sender and the reason of the entry.
        let mut control = cmsg_space!(Stamps, [u8; 128]);
        match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut control), flags) {
            Ok(message) => {
                let mut parts = message.cmsgs().into_iter().flatten();
                is_stamped |= parts.any(|part| match part {
                    ControlMessageOwned::ScmTimestampsns(stamps) => stamps.system.tv_sec() != 0,
                    _ => false,
                });
            }
            Err(Errno::EINTR) => {}
            // The queue is empty.
            Err(_) => return is_stamped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_timestamps_datagrams_both_ways() {
        assert_eq!(probe(), Timestamps { software_receive: Some(true), software_send: Some(true) });
    }
}
