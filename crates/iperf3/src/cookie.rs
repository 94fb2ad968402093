//! How an iperf3 connection shows that it belongs to the session: it comes from the appliance's address, and begins with
//! the cookie that its test began with. Nothing is taken from the connection: iperf3 reads the cookie itself.

use std::net::TcpStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::stage::{Place, Stage};
use paramedic_engines::data_listener::{Authentication, Authenticator};
use paramedic_engines::{socket, sys};

/// Bytes of a cookie: 36 characters and a zero.
pub(super) const COOKIE: usize = 37;

/// Lets in the connections of one test after the other, as `stage` has places for them.
///
/// Who shares the appliance's address, behind the same NAT perhaps, could take the first place of a test, not knowing
/// the password: that test then fails, and nothing else happens.
pub(super) struct CookieAuthenticator {
    pub(super) stage: Arc<Stage>,
}

impl Authenticator for CookieAuthenticator {
    /// Whether it was told when to wake us.
    type Partial = bool;
    type Proof = Place;

    fn authenticate(&mut self, socket: &TcpStream, from_peer: bool, waits: &mut bool) -> Authentication<Place> {
        if !from_peer {
            return Authentication::Refused;
        }
        // What is left unread would wake us again and again.
        if !*waits && sys::readable_from(socket, COOKIE).is_err() {
            return Authentication::Refused;
        }
        *waits = true;
        let mut cookie = [0; COOKIE];
        match rustix::net::recv(socket, &mut cookie, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((COOKIE, _)) => {}
            Ok((0, _)) => return Authentication::Refused,
            Ok(_) if socket::is_hung_up(socket) => return Authentication::Refused,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Authentication::Incomplete,
            Err(_) => return Authentication::Refused,
        }
        if !is_cookie(&cookie) || sys::readable_from(socket, 1).is_err() {
            return Authentication::Refused;
        }
        self.stage.place_for(cookie).map_or(Authentication::Refused, Authentication::Accepted)
    }
}

fn is_cookie(bytes: &[u8; COOKIE]) -> bool {
    let (text, end) = bytes.split_at(COOKIE - 1);
    text.iter().all(u8::is_ascii_graphic) && end == [0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_36_printed_characters_and_a_zero() {
        let mut cookie = [b'a'; COOKIE];
        assert!(!is_cookie(&cookie));
        cookie[COOKIE - 1] = 0;
        assert!(is_cookie(&cookie));
        cookie[5] = b'\n';
        assert!(!is_cookie(&cookie));
    }
}
