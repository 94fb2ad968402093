//! The only unsafe code of the workspace: safe wrappers of system calls that no crate in use offers.

#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper in any crate that we use; each block has its SAFETY line"
)]

pub mod child;
pub mod seccomp;
pub(crate) mod splice;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// The kernel's information about a TCP connection (`TCP_INFO`, linux/tcp.h). A field that an older kernel does not
/// report is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// The connection's state as the kernel's number, for example [`TcpInfo::CLOSE_WAIT`].
    pub(crate) state: Option<u8>,
    /// The maximum size of a sent segment, in bytes.
    pub(crate) snd_mss: Option<u32>,
    pub(crate) path_mtu: Option<u32>,
    /// The number of segments that were sent and not acknowledged yet.
    pub(crate) unacked: Option<u32>,
    /// Milliseconds since the last payload arrived.
    pub(crate) last_data_recv_ms: Option<u32>,
    /// Milliseconds since the last acknowledgement arrived.
    pub(crate) last_ack_recv_ms: Option<u32>,
    /// The smoothed round-trip time; `rttvar_us` is its mean deviation. Both in microseconds.
    pub(crate) rtt_us: Option<u32>,
    pub(crate) rttvar_us: Option<u32>,
    /// The slow start threshold, in segments; [`TcpInfo::NO_THRESHOLD`] until the first loss.
    pub(crate) ssthresh: Option<u32>,
    /// The congestion window, in segments.
    pub(crate) cwnd: Option<u32>,
    /// Retransmitted segments since the connection was opened.
    pub(crate) total_retrans: Option<u32>,
    /// The rate at which the kernel paces the connection, in bytes per second.
    pub(crate) pacing_rate: Option<u64>,
    /// Payload bytes that the other end has acknowledged.
    pub(crate) bytes_acked: Option<u64>,
    /// Payload bytes received, without duplicates.
    pub(crate) bytes_received: Option<u64>,
    /// Bytes in the send buffer that were not sent yet.
    pub(crate) unsent: Option<u32>,
    /// Payload bytes sent, retransmissions included; `bytes_retrans` counts the retransmissions alone.
    pub(crate) bytes_sent: Option<u64>,
    pub(crate) bytes_retrans: Option<u64>,
    /// The smallest round-trip time of the last five minutes (default of `net.ipv4.tcp_min_rtt_wlen`), in microseconds.
    pub(crate) min_rtt_us: Option<u32>,
    /// The latest rate at which data was delivered, in bytes per second.
    pub(crate) delivery_rate: Option<u64>,
    /// How long the connection had unacknowledged or unsent data, in microseconds.
    pub(crate) busy_us: Option<u64>,
    /// The part of `busy_us` for which the receiver's window stopped the sender.
    pub(crate) receive_window_us: Option<u64>,
    /// The part of `busy_us` for which the size of the send buffer stopped the sender.
    pub(crate) send_buffer_us: Option<u64>,
    /// How often the kernel detected that segments arrived reordered.
    pub(crate) reordering_seen: Option<u32>,
}

impl TcpInfo {
    /// The value of `ssthresh` while the connection has no slow start threshold (`TCP_INFINITE_SSTHRESH`, net/tcp.h).
    pub(crate) const NO_THRESHOLD: u32 = 0x7fff_ffff;
    /// The value of `state` for a closed connection (net/tcp_states.h).
    pub(crate) const CLOSE: u8 = 7;
    /// The value of `state` after the other end has closed its sending side.
    pub(crate) const CLOSE_WAIT: u8 = 8;
}

/// Reads the kernel's information about the TCP connection `socket`.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut raw = [0u8; 256];
    // The kernel writes at most `len` bytes of `struct tcp_info`, and sets `len` to their number.
    let mut len = raw.len() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and so open for the call; `raw` is valid for writes of `len` bytes, and the
    // kernel writes at most that; any bytes are valid in a byte array.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo::parse(raw.get(..len as usize).unwrap_or(&raw)))
}

/// How much of the data that a program wrote to a connection the kernel has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendProgress {
    /// Payload bytes that the kernel has sent, without retransmissions.
    pub sent: u64,
    /// Bytes in the send buffer that the kernel has not sent yet.
    pub unsent: u64,
}

/// How much of the data that was written to `socket` the kernel has sent. `None` before Linux 4.19.
pub fn send_progress(socket: impl AsFd) -> Option<SendProgress> {
    let info = tcp_info(socket).ok()?;
    Some(SendProgress { sent: info.bytes_sent?.saturating_sub(info.bytes_retrans?), unsent: info.unsent?.into() })
}

/// The link modes that the driver of `interface` supports: the first 32 bits of the kernel's list
/// (`ETHTOOL_LINK_MODE_…`, linux/ethtool.h).
pub(crate) fn supported_link_modes(interface: &str) -> io::Result<u32> {
    /// The ethtool command that reads the settings of an interface. It needs no privileges.
    const ETHTOOL_GSET: u32 = 1;
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // `struct ethtool_cmd` has 11 words; the first is the command, the second has the supported modes.
    let mut settings = [0u32; 11];
    settings[0] = ETHTOOL_GSET;
    // SAFETY: `ifreq` is integers, arrays of them and a pointer, for which all zeroes are a valid value.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = settings.as_mut_ptr().cast();
    // SAFETY: the descriptor is open for the call; `request` is valid for reads and writes, its name ends with a zero,
    // and it points to `settings`, which lives for the call and has the size that this command reads and writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result == 0 { Ok(settings[1]) } else { Err(io::Error::last_os_error()) }
}

/// Makes poll report `socket` as readable only once `bytes` bytes have arrived, or at the end of the stream (socket(7),
/// `SO_RCVLOWAT`).
pub fn readable_from(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    set(socket, libc::SO_RCVLOWAT, libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX))
}

/// Limits the sending rate of `socket` in bytes per second (socket(7), `SO_MAX_PACING_RATE`).
pub(crate) fn pace(socket: impl AsFd, bytes_per_s: u64) -> io::Result<()> {
    set(socket, libc::SO_MAX_PACING_RATE, bytes_per_s)
}

/// Limits the number of the allocator's arenas (mallopt(3), `M_ARENA_MAX`). Returns `false` if the allocator has no
/// such limit.
pub(crate) fn limit_arenas(most: u16) -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and touches no memory of ours.
    return unsafe { libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(most)) } == 1;
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = most;
        false
    }
}

/// Makes the allocator give each freed block of at least `bytes` bytes back to the system at once, regardless of the
/// blocks freed before (mallopt(3), `M_MMAP_THRESHOLD`). Returns `false` if the allocator has no such threshold.
pub(crate) fn fix_mmap_threshold(bytes: u32) -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and touches no memory of ours.
    return unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX)) }
        == 1;
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = bytes;
        false
    }
}

/// Sets a socket option of level `SOL_SOCKET` whose value is a plain integer.
fn set<T: Integer>(socket: impl AsFd, option: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open for the call, which reads `size_of::<T>()` bytes of an initialised
    // integer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An integer type that can be the value of a socket option.
trait Integer: Copy {}
impl Integer for libc::c_int {}
impl Integer for u64 {}

/// The kernel's state of the system clock (`adjtimex(2)`, `ntp_adjtime` without a change).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockState {
    /// Whether the clock is synchronised, for example by NTP.
    pub(crate) is_synchronised: bool,
    /// The kernel's upper bound for the clock's error, in microseconds.
    pub(crate) max_error_us: u64,
}

/// Reads the kernel's state of the system clock. Does not change the clock.
pub(crate) fn clock_state() -> io::Result<ClockState> {
    // SAFETY: `timex` is plain integers, for which all zeroes are a valid value.
    let mut timex = unsafe { std::mem::zeroed::<libc::timex>() };
    // SAFETY: `timex` is valid for reads and writes for the call; with `modes` 0 the kernel only fills it in.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let unsynchronised = state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0;
    Ok(ClockState { is_synchronised: !unsynchronised, max_error_us: u64::try_from(timex.maxerror).unwrap_or(0) })
}

impl TcpInfo {
    /// Reads the fields from the bytes `raw` at their offsets in `struct tcp_info`. Newer kernels extend this structure
    /// only at its end.
    fn parse(raw: &[u8]) -> Self {
        let u32_at = |at: usize| raw.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let u64_at = |at: usize| raw.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        Self {
            state: raw.first().copied(),
            snd_mss: u32_at(16),
            unacked: u32_at(24),
            last_data_recv_ms: u32_at(52),
            last_ack_recv_ms: u32_at(56),
            path_mtu: u32_at(60),
            rtt_us: u32_at(68),
            rttvar_us: u32_at(72),
            ssthresh: u32_at(76),
            cwnd: u32_at(80),
            total_retrans: u32_at(100),
            pacing_rate: u64_at(104),
            bytes_acked: u64_at(120),
            bytes_received: u64_at(128),
            unsent: u32_at(144),
            min_rtt_us: u32_at(148),
            delivery_rate: u64_at(160),
            busy_us: u64_at(168),
            receive_window_us: u64_at(176),
            send_buffer_us: u64_at(184),
            bytes_sent: u64_at(200),
            bytes_retrans: u64_at(208),
            reordering_seen: u32_at(220),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_reports_the_state_of_its_clock() {
        let state = clock_state().unwrap();
        assert!(state.max_error_us > 0, "no clock is without error: {state:?}");
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn the_allocator_accepts_a_limit_of_arenas_and_a_threshold() {
        assert!(limit_arenas(2) && fix_mmap_threshold(128 * 1024));
    }

    #[test]
    fn the_kernel_reports_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(b"hello").unwrap();
        theirs.read_exact(&mut [0; 5]).unwrap();
        // The answer carries the acknowledgement.
        theirs.write_all(b"!").unwrap();
        ours.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(tcp_info(&theirs).unwrap().bytes_received, Some(5));
        assert_eq!(send_progress(&ours), Some(SendProgress { sent: 5, unsent: 0 }));
        let info = tcp_info(&ours).unwrap();
        // The kernel counts the SYN as one acknowledged byte, once it is acknowledged.
        assert!(matches!(info.bytes_acked, Some(5 | 6)), "{info:?}");
        assert!(info.snd_mss.unwrap() >= 536);
        assert!(info.path_mtu > info.snd_mss);
        assert!(info.total_retrans.is_some());
        assert!(info.last_ack_recv_ms.is_some() && info.unacked.is_some());
        assert!(info.rtt_us > Some(0) && info.min_rtt_us <= info.rtt_us && info.cwnd > Some(0), "{info:?}");
        assert_eq!((info.receive_window_us, info.send_buffer_us, info.reordering_seen), (Some(0), Some(0), Some(0)));
        assert!(info.busy_us.is_some() && info.delivery_rate.is_some() && info.pacing_rate.is_some());
    }

    #[test]
    fn an_interface_without_link_modes_is_an_error() {
        assert!(supported_link_modes("lo").is_err(), "loopback has no link");
        for name in ["", "nonesuch", "a_name_that_is_too_long_for_an_interface"] {
            assert!(supported_link_modes(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_socket_is_readable_only_from_the_requested_number_of_bytes() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        readable_from(&theirs, 3).unwrap();
        let is_readable =
            |limit: Option<&Timespec>| poll(&mut [PollFd::new(&theirs, PollFlags::IN)], limit).unwrap() > 0;
        ours.write_all(b"ab").unwrap();
        assert!(!is_readable(Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })));
        ours.write_all(b"c").unwrap();
        assert!(is_readable(None));
    }

    #[test]
    fn another_file_than_a_tcp_socket_is_an_error() {
        assert!(tcp_info(std::io::stdin()).is_err());
    }

    #[test]
    fn fields_of_newer_kernels_are_absent() {
        let info = TcpInfo::parse(&[1; 104]);
        assert!(info.total_retrans.is_some() && info.bytes_acked.is_none());
    }
}
