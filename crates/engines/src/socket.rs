//! What is asked of the kernel about a TCP socket: congestion control, time-outs, how it ends. Moves no bytes.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use paramedic_link::measurement::StreamInfo;
use paramedic_link::message::END_AFTER_SILENCE;
use paramedic_link::test_spec::TestSpec;
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{Domain, SockRef, TcpKeepalive};

use crate::sys;

/// What is asked for one data socket beyond what every data socket gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// The congestion control; absent: the kernel's default.
    pub congestion_control: Option<String>,
    /// The socket's buffers, both ways, in bytes; absent: the kernel's own sizing.
    pub window_bytes: Option<u32>,
    /// The largest segment, in bytes; what connects has the say for both ends. Absent: what the path's MTU gives.
    pub mss_bytes: Option<u16>,
    /// The code point that its packets are marked with; absent: the kernel's default.
    pub dscp: Option<u8>,
    /// The rate that it sends at, at most, in bits per second; absent: no bound.
    pub pace_bps: Option<u64>,
    /// Send small writes at once: right for probes, wrong for load.
    pub send_at_once: bool,
}

impl SocketOptions {
    /// What a test asks for its streams.
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

    /// Applies the options, and what every data socket gets, to `socket`. Best before it connects; takes effect after,
    /// too.
    pub(crate) fn apply<'a>(&self, socket: impl Into<SockRef<'a>>) -> io::Result<()> {
        let socket = socket.into();
        if let Some(name) = &self.congestion_control {
            choose_congestion_control(&socket, name)?;
        }
        if let Some(bytes) = self.window_bytes {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            socket.set_send_buffer_size(bytes)?;
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.mss_bytes {
            socket.set_tcp_mss(bytes.into())?;
        }
        if let Some(code_point) = self.dscp {
            mark(&socket, code_point)?;
        }
        if let Some(bps) = self.pace_bps {
            sys::pace(&*socket, bps / 8)?;
        }
        socket.set_tcp_nodelay(self.send_at_once)?;
        // A data connection outlives silence exactly as long as its session does.
        socket.set_tcp_user_timeout(Some(END_AFTER_SILENCE))?;
        // A receiver sends nothing that could time out: its probes notice a peer that vanished without a word.
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(4)).with_interval(Duration::from_secs(2));
        socket.set_tcp_keepalive(&keepalive.with_retries(3))
    }
}

/// Payload bytes of a connection so far, as the kernel counts them: what the other end has acknowledged, and what
/// arrived. A kernel before 4.1 does not tell.
pub fn counts(socket: &TcpStream) -> Option<(u64, u64)> {
    let info = sys::tcp_info(socket).ok()?;
    Some((info.bytes_acked?, info.bytes_received?))
}

/// Whether the other end has hung up, in order or not.
pub fn is_hung_up(socket: &TcpStream) -> bool {
    const STATES: [Option<u8>; 2] = [Some(sys::TcpInfo::CLOSE_WAIT), Some(sys::TcpInfo::CLOSE)];
    sys::tcp_info(socket).is_ok_and(|info| STATES.contains(&info.state))
}

/// Marks what `socket` sends with a code point (RFC 2474); the two bits beside it are the kernel's.
pub(crate) fn mark(socket: &SockRef<'_>, code_point: u8) -> io::Result<()> {
    let octet = u32::from(code_point) << 2;
    if socket.domain()? == Domain::IPV6 {
        socket.set_tclass_v6(octet)?;
        // Speaks for IPv4 that such a socket may carry; one that carries none need not know it.
        let _ = socket.set_tos_v4(octet);
        return Ok(());
    }
    socket.set_tos_v4(octet)
}

/// Whether this kernel lets this program use the congestion control `name`; the error says which setting forbids it.
pub fn check_congestion_control(name: &str) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .or_else(|_| socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None))?;
    choose_congestion_control(&SockRef::from(&socket), name)
}

fn choose_congestion_control(socket: &SockRef<'_>, name: &str) -> io::Result<()> {
    sockopt::set_tcp_congestion(&**socket, name).map_err(|errno| {
        let because = match errno {
            Errno::PERM => "it is not listed in net.ipv4.tcp_allowed_congestion_control",
            // Short enough to cross the link whole.
            Errno::NOENT => "no such one here (see net.ipv4.tcp_available_congestion_control)",
            _ => return errno.into(),
        };
        let refused = RefusedCongestionControl { name: name.to_owned(), because };
        io::Error::new(io::Error::from(errno).kind(), refused)
    })
}

/// Why the kernel doesn't use the congestion control that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("congestion control {name} was refused: {because}")]
struct RefusedCongestionControl {
    name: String,
    because: &'static str,
}

/// The congestion control that `socket` really uses.
pub fn congestion_control(socket: &TcpStream) -> Option<String> {
    sockopt::tcp_congestion(socket).ok()
}

/// Lets the kernel hold at most about `bytes` that it has not sent once, however large its buffer is (tcp(7),
/// `TCP_NOTSENT_LOWAT`).
pub(crate) fn limit_unsent(socket: &TcpStream, bytes: u32) {
    // A kernel that refuses it holds more: worse, but not wrong.
    let _ = SockRef::from(socket).set_tcp_notsent_lowat(bytes);
}

/// Makes closing `socket` a reset: what it still holds is thrown away, nobody lingers.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // Refused only for what is no socket any more.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Ends `socket` at once, whoever else holds it: threads inside its calls return, and closing it is a reset.
pub(crate) fn abort(socket: &TcpStream) {
    reset_on_close(socket);
    // An error means that it had ended already.
    let _ = socket.shutdown(Shutdown::Both);
}

/// What the kernel tells of a stream that carried `bytes` of payload, and the size of the segments it sends.
pub fn stream_info(socket: &TcpStream, bytes: u64) -> (StreamInfo, Option<u32>) {
    let info = sys::tcp_info(socket).unwrap_or_default();
    let stream =
        StreamInfo { bytes, rtt_us: info.rtt_us, min_rtt_us: info.min_rtt_us, retransmits: info.total_retrans };
    (stream, info.snd_mss)
}

/// Whether the other end has yet to acknowledge something that was sent.
pub(crate) fn is_unacknowledged(socket: &TcpStream) -> bool {
    sys::tcp_info(socket).is_ok_and(|info| info.unacked.is_some_and(|segments| segments > 0))
}

/// How long ago the other end's kernel was last heard on `socket`, by its acknowledgements.
pub(crate) fn since_last_ack(socket: &TcpStream) -> Option<Duration> {
    let info = sys::tcp_info(socket).ok()?;
    info.last_ack_recv_ms.map(|ms| Duration::from_millis(ms.into()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn an_asked_congestion_control_is_the_one_in_use() {
        let (ours, _theirs) = pair();
        // reno is built into every kernel and always allowed.
        let options = SocketOptions { congestion_control: Some("reno".into()), ..SocketOptions::default() };
        options.apply(&ours).unwrap();
        assert_eq!(congestion_control(&ours).as_deref(), Some("reno"));
        assert_eq!(SockRef::from(&ours).tcp_user_timeout().unwrap(), Some(END_AFTER_SILENCE));
    }

    #[test]
    fn what_is_asked_for_a_stream_is_what_it_has() {
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
