//! Authenticates iperf3's connections. They must come from the appliance's address and begin with the cookie of the
//! running test. The cookie stays in the socket, because iperf3 reads it itself.

use std::net::TcpStream;
use std::sync::Arc;

use paramedic_engines::data_listener::{Authentication, Authenticator};
use paramedic_engines::{socket, sys};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::cookie::Cookie;
use super::handoff::{ConnectionKind, LaneHandoff};

/// Accepts connections as long as the current test of `handoff` expects more. The tests of a session run one after the
/// other.
///
/// Another client with the appliance's address, for example behind the same NAT, can send the first cookie of a test
/// without the password. That test then fails, but the attack has no further effect.
pub(super) struct CookieAuthenticator {
    pub(super) handoff: Arc<LaneHandoff>,
}

impl Authenticator for CookieAuthenticator {
    /// Whether the socket is already set to become readable only once a whole cookie has arrived.
    type Partial = bool;
    type Proof = ConnectionKind;

    fn authenticate(
        &mut self,
        socket: &TcpStream,
        from_peer: bool,
        waits: &mut bool,
    ) -> Authentication<ConnectionKind> {
        if !from_peer {
            return Authentication::Refused;
        }
        // Bytes that stay in the socket would wake the poll again and again.
        if !*waits && sys::readable_from(socket, Cookie::LEN).is_err() {
            return Authentication::Refused;
        }
        *waits = true;
        let mut bytes = [0; Cookie::LEN];
        match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((Cookie::LEN, _)) => {}
            Ok((0, _)) => return Authentication::Refused,
            Ok(_) if socket::is_hung_up(socket) => return Authentication::Refused,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Authentication::Incomplete,
            Err(_) => return Authentication::Refused,
        }
        let Some(cookie) = Cookie::parse(&bytes).filter(|_| sys::readable_from(socket, 1).is_ok()) else {
            return Authentication::Refused;
        };
        self.handoff.authenticate(cookie).map_or(Authentication::Refused, Authentication::Accepted)
    }
}
