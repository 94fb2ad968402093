//! Options and state of TCP sockets: congestion control, timeouts, and how they close.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU32;
use std::time::Duration;

use paramedic_link::message::END_AFTER_SILENCE;
use paramedic_link::phase_detail::TcpSample;
use paramedic_link::test_spec::TestSpec;
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{Domain, SockRef, TcpKeepalive};

use crate::sys;

/// The options of one data socket. `SocketOptions::apply` also sets options that all data sockets have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// The congestion control algorithm; absent: the kernel's default.
    pub congestion_control: Option<String>,
    /// The size of the send and the receive buffer in bytes; absent: the kernel's own sizing.
    pub window_bytes: Option<u32>,
    /// The maximum segment size in bytes, for both directions; absent: derived from the path MTU.
    pub mss_bytes: Option<u16>,
    /// The DSCP of the packets that the socket sends; absent: the kernel's default.
    pub dscp: Option<u8>,
    /// The rate limit of the payload in bits per second; absent: no limit. The kernel's pacing rate is set a quarter
    /// higher, because the kernel also counts headers.
    pub pace_bps: Option<u64>,
    /// Whether small writes are sent at once (`TCP_NODELAY`), for probes.
    pub send_at_once: bool,
}

impl SocketOptions {
    /// The options that the test `spec` requests for its streams.
    pub fn of(spec: &TestSpec) -> Self {
        Self {
            congestion_control: spec.congestion_control.clone(),
            window_bytes: spec.window_bytes,
            mss_bytes: spec.mss_bytes,
            dscp: spec.dscp,
            pace_bps: spec.bitrate_bps.filter(|bps| *bps > 0),
            send_at_once: false,
        }
    }

    /// The size of the socket buffers that this host's kernel grants, if that is less than requested
    /// (net.core.wmem_max, net.core.rmem_max). Read from a new socket, because the limits are the same for every
    /// socket.
    pub(crate) fn reduced_window(&self) -> Option<NonZeroU32> {
        let requested = self.window_bytes?;
        let socket = socket2::Socket::new(Domain::IPV4, socket2::Type::STREAM, None)
            .or_else(|_| socket2::Socket::new(Domain::IPV6, socket2::Type::STREAM, None))
            .ok()?;
        set_buffers(&SockRef::from(&socket), requested).ok()?;
        // The kernel doubles the size for its own bookkeeping, and reports it doubled (socket(7)).
        let granted = socket.send_buffer_size().ok()?.min(socket.recv_buffer_size().ok()?) / 2;
        u32::try_from(granted).ok().filter(|granted| *granted < requested).and_then(NonZeroU32::new)
    }

    /// Sets these options, and the options that all data sockets have. Call it before `socket` connects, if possible.
    pub(crate) fn apply<'a>(&self, socket: impl Into<SockRef<'a>>) -> io::Result<()> {
        let socket = socket.into();
        if let Some(name) = &self.congestion_control {
            choose_congestion_control(&socket, name)?;
        }
        if let Some(bytes) = self.window_bytes {
            set_buffers(&socket, bytes)?;
        }
        if let Some(bytes) = self.mss_bytes {
            limit_segments(&*socket, bytes)?;
        }
        if let Some(code_point) = self.dscp {
            mark(&socket, code_point)?;
        }
        if let Some(bps) = self.pace_bps {
            // The kernel paces headers, too, so a pacing rate equal to the rate limit would keep the payload below the
            // limit. The sender enforces the limit. The kernel only spreads the bytes of each write, and some sandboxes
            // do not even offer that.
            if_offered(sys::pace(&*socket, bps / 8 + bps / 32))?;
        }
        socket.set_tcp_nodelay(self.send_at_once)?;
        // Keeps urgent data (RFC 6093) in the stream, so that it is read and counted. The kernel's reads and counts
        // would skip urgent data out of band.
        socket.set_out_of_band_inline(true)?;
        // A data connection times out together with its session.
        socket.set_tcp_user_timeout(Some(END_AFTER_SILENCE))?;
        // A receiver sends nothing that could time out, so keepalives detect a peer that has vanished.
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(4)).with_interval(Duration::from_secs(2));
        socket.set_tcp_keepalive(&keepalive.with_retries(3))
    }
}

/// Ignores the errors that mean that the kernel does not offer an option (`ENOPROTOOPT`, `EOPNOTSUPP`). Returns other
/// errors.
fn if_offered(set: io::Result<()>) -> io::Result<()> {
    match set {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOPROTOOPT | Errno::OPNOTSUPP)) => Ok(()),
        set => set,
    }
}

/// Limits the segments that `socket` sends to `bytes` bytes. If set before the connect, the limit also applies to the
/// received segments, because the socket announces it to the other end (tcp(7), `TCP_MAXSEG`).
pub fn limit_segments<'a>(socket: impl Into<SockRef<'a>>, bytes: u16) -> io::Result<()> {
    socket.into().set_tcp_mss(bytes.into())
}

fn set_buffers(socket: &SockRef<'_>, bytes: u32) -> io::Result<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)
}

/// The payload bytes of the connection `socket` as the kernel counts them: those that the other end has acknowledged,
/// and those received. `None` before Linux 4.1.
pub fn counts(socket: &TcpStream) -> Option<(u64, u64)> {
    let info = sys::tcp_info(socket).ok()?;
    Some((info.bytes_acked?, info.bytes_received?))
}

/// Whether the other end has closed or reset the connection.
pub fn is_hung_up(socket: &TcpStream) -> bool {
    const STATES: [Option<u8>; 2] = [Some(sys::TcpInfo::CLOSE_WAIT), Some(sys::TcpInfo::CLOSE)];
    sys::tcp_info(socket).is_ok_and(|info| STATES.contains(&info.state))
}

/// Sets the DSCP (RFC 2474) of the packets that `socket` sends. The kernel manages the two ECN bits of the same byte.
pub(crate) fn mark(socket: &SockRef<'_>, code_point: u8) -> io::Result<()> {
    let octet = u32::from(code_point) << 2;
    if socket.domain()? == Domain::IPV6 {
        socket.set_tclass_v6(octet)?;
        // Sets the DSCP for IPv4 on a dual-stack socket; fails on an IPv6-only socket.
        socket.set_tos_v4(octet).ok();
        return Ok(());
    }
    socket.set_tos_v4(octet)
}

/// Checks that this program may use the congestion control `name`. The error names the setting that forbids it.
pub fn check_congestion_control(name: &str) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .or_else(|_| socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None))?;
    choose_congestion_control(&SockRef::from(&socket), name)
}

fn choose_congestion_control(socket: &SockRef<'_>, name: &str) -> io::Result<()> {
    sockopt::set_tcp_congestion(&**socket, name).map_err(|errno| {
        let because = match errno {
            Errno::PERM => "it is not listed in net.ipv4.tcp_allowed_congestion_control",
            // This text is short, because the link truncates long texts.
            Errno::NOENT => "not available here (see net.ipv4.tcp_available_congestion_control)",
            _ => return errno.into(),
        };
        let refused = RefusedCongestionControl { name: name.to_owned(), because };
        io::Error::new(io::Error::from(errno).kind(), refused)
    })
}

/// Why the kernel refused a congestion control.
#[derive(Debug, thiserror::Error)]
#[error("congestion control {name} was refused: {because}")]
struct RefusedCongestionControl {
    name: String,
    because: &'static str,
}

/// The name of the congestion control that `socket` uses.
pub fn congestion_control(socket: &TcpStream) -> Option<String> {
    sockopt::tcp_congestion(socket).ok()
}

/// Limits the unsent bytes that the kernel buffers to about `bytes` (tcp(7), `TCP_NOTSENT_LOWAT`).
pub(crate) fn limit_unsent(socket: &TcpStream, bytes: u32) {
    // Best effort: without this limit, the kernel buffers more.
    SockRef::from(socket).set_tcp_notsent_lowat(bytes).ok();
}

/// Makes closing `socket` send a reset and discard its buffers.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // Fails only on an invalid socket.
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).ok();
}

/// Ends the connection of `socket` at once, for all handles of the socket: blocked calls return, and closing the socket
/// sends a reset.
pub(crate) fn abort(socket: &TcpStream) {
    reset_on_close(socket);
    // Fails only if the connection has ended already.
    socket.shutdown(Shutdown::Both).ok();
}

/// The kernel's information about the segments that a connection sends (`TCP_INFO`). A value that the kernel does not
/// report is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The number of retransmitted segments.
    pub retransmits: Option<u32>,
    /// The maximum segment size, in bytes.
    pub mss: Option<u32>,
    /// The path MTU that the kernel found or assumes, in bytes.
    pub path_mtu: Option<u32>,
}

/// Reads the [`SegmentFacts`] of the connection `socket` from the kernel.
pub fn segment_facts(socket: &TcpStream) -> SegmentFacts {
    let info = sys::tcp_info(socket).unwrap_or_default();
    SegmentFacts { retransmits: info.total_retrans, mss: info.snd_mss, path_mtu: info.path_mtu }
}

/// How long a connection had data to send, and for how much of that time the receiver's window or the send buffer
/// limited the connection (`TCP_INFO`), in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitedTimes {
    pub(crate) busy_us: u64,
    pub(crate) receive_window_us: u64,
    pub(crate) send_buffer_us: u64,
}

impl LimitedTimes {
    /// The increase of each time since the earlier reading `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            busy_us: self.busy_us.saturating_sub(before.busy_us),
            receive_window_us: self.receive_window_us.saturating_sub(before.receive_window_us),
            send_buffer_us: self.send_buffer_us.saturating_sub(before.send_buffer_us),
        }
    }
}

/// The [`LimitedTimes`] of the connection `socket` since it was opened; `None` before Linux 4.10.
pub(crate) fn limited_times(socket: &TcpStream) -> Option<LimitedTimes> {
    let info = sys::tcp_info(socket).ok()?;
    Some(LimitedTimes {
        busy_us: info.busy_us?,
        receive_window_us: info.receive_window_us?,
        send_buffer_us: info.send_buffer_us?,
    })
}

/// A sample of the kernel's state of the connection `socket` (`TCP_INFO`). The caller must set the sample's time and
/// stream number.
pub(crate) fn tcp_sample(socket: &TcpStream) -> Option<TcpSample> {
    let info = sys::tcp_info(socket).ok()?;
    let bits = |bytes: u64| bytes.checked_mul(8);
    Some(TcpSample {
        rtt_us: info.rtt_us,
        rttvar_us: info.rttvar_us,
        // Without a measurement, the value is the largest number (net/ipv4/tcp_minisocks.c).
        min_rtt_us: info.min_rtt_us.filter(|us| *us != u32::MAX),
        cwnd: info.cwnd,
        ssthresh: info.ssthresh.filter(|segments| *segments < sys::TcpInfo::NO_THRESHOLD),
        delivery_bps: info.delivery_rate.and_then(bits),
        // Without pacing, the rate is the largest number, for which `bits` returns `None`.
        pacing_bps: info.pacing_rate.and_then(bits),
        retransmits: info.total_retrans,
        reordering_seen: info.reordering_seen,
        busy_us: info.busy_us,
        receive_window_us: info.receive_window_us,
        send_buffer_us: info.send_buffer_us,
        ..TcpSample::default()
    })
}

/// Whether bytes that `socket` has sent are not acknowledged yet.
pub(crate) fn is_unacknowledged(socket: &TcpStream) -> bool {
    sys::tcp_info(socket).is_ok_and(|info| info.unacked.is_some_and(|segments| segments > 0))
}

/// How long ago the last acknowledgement arrived on `socket`.
pub(crate) fn since_last_ack(socket: &TcpStream) -> Option<Duration> {
    let info = sys::tcp_info(socket).ok()?;
    info.last_ack_recv_ms.map(|ms| Duration::from_millis(ms.into()))
}

/// How long ago anything last arrived on `socket`: payload, or an acknowledgement.
pub fn since_last_arrival(socket: &TcpStream) -> Option<Duration> {
    let info = sys::tcp_info(socket).ok()?;
    // A segment with payload that acknowledges nothing new counts as payload only (net/ipv4/tcp_input.c).
    let ms = info.last_data_recv_ms?.min(info.last_ack_recv_ms?);
    Some(Duration::from_millis(ms.into()))
}

/// Makes the kernel ask the other end of `socket` for an acknowledgement each second while the connection is idle (TCP
/// keepalive). Missing answers end the connection only after about two minutes.
pub fn keep_alive_each_second(socket: &TcpStream) -> io::Result<()> {
    let second = Duration::from_secs(1);
    // 127 is the highest number of unanswered probes that Linux accepts.
    let keepalive = TcpKeepalive::new().with_time(second).with_interval(second).with_retries(127);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Both ends of a new TCP connection over loopback.
    pub(crate) fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn an_option_that_the_kernel_does_not_offer_is_left_out() {
        assert!(if_offered(Err(Errno::NOPROTOOPT.into())).is_ok());
        assert!(if_offered(Err(Errno::PERM.into())).is_err());
        assert!(if_offered(Ok(())).is_ok());
    }

    #[test]
    fn the_requested_congestion_control_is_used() {
        let (ours, _theirs) = pair();
        // reno is built into every kernel and always allowed.
        let options = SocketOptions { congestion_control: Some("reno".into()), ..SocketOptions::default() };
        options.apply(&ours).unwrap();
        assert_eq!(congestion_control(&ours).as_deref(), Some("reno"));
        assert_eq!(SockRef::from(&ours).tcp_user_timeout().unwrap(), Some(END_AFTER_SILENCE));
    }

    #[test]
    fn a_buffer_that_the_kernel_reduces_is_detected() {
        let of = |window_bytes| SocketOptions { window_bytes, ..SocketOptions::default() };
        assert_eq!(of(None).reduced_window(), None);
        assert_eq!(of(Some(64 << 10)).reduced_window(), None);
        // No kernel grants 4 GiB: the doubled size is a signed 32-bit number.
        let granted = of(Some(u32::MAX)).reduced_window().unwrap();
        assert_eq!(of(Some(granted.get())).reduced_window(), None);
        assert_eq!(of(Some(granted.get() + 1)).reduced_window(), Some(granted));
    }

    #[test]
    fn a_socket_has_the_requested_options() {
        let options =
            SocketOptions { dscp: Some(46), mss_bytes: Some(1000), pace_bps: Some(8_000_000), ..Default::default() };
        for (any, domain) in [("127.0.0.1:0", Domain::IPV4), ("[::1]:0", Domain::IPV6)] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            options.apply(&socket).unwrap();
            socket.connect(&listener.local_addr().unwrap().into()).unwrap();
            let marked = if domain == Domain::IPV4 { socket.tos_v4() } else { socket.tclass_v6() };
            assert_eq!(marked.unwrap(), 46 << 2);
            assert!(socket.tcp_mss().unwrap() <= 1000);
        }
        let (ours, _theirs) = pair();
        assert!(SocketOptions { mss_bytes: Some(u16::MAX), ..Default::default() }.apply(&ours).is_err());
    }

    #[test]
    fn a_refused_congestion_control_names_the_setting() {
        let refusal = check_congestion_control("nonesuch").unwrap_err().to_string();
        assert!(refusal.contains("nonesuch") && refusal.contains("net.ipv4.tcp_available_congestion_control"));
    }

    #[test]
    fn an_aborted_socket_resets_the_other_end() {
        let (ours, theirs) = pair();
        abort(&ours);
        drop(ours);
        let mut sink = [0; 1];
        // The FIN of the shutdown may be read before the reset that follows it.
        while std::io::Read::read(&mut &theirs, &mut sink).is_ok() {
            if let Err(e) = std::io::Write::write(&mut &theirs, &sink) {
                assert!(matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
                return;
            }
        }
    }
}
