//! The cookie with which every connection of an iperf3 test begins. This module does no I/O.

/// The first bytes of each connection of an iperf3 test: 36 printable characters and a zero byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie([u8; Cookie::LEN]);

impl Cookie {
    /// Length of a cookie, in bytes.
    pub(super) const LEN: usize = 37;

    /// Parses a cookie. `None` if the bytes cannot be a cookie.
    pub(super) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (text, end) = bytes.split_at(Self::LEN - 1);
        (text.iter().all(u8::is_ascii_graphic) && end == [0]).then_some(Self(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_36_printable_characters_and_a_zero() {
        let mut bytes = [b'a'; Cookie::LEN];
        assert_eq!(Cookie::parse(&bytes), None);
        bytes[Cookie::LEN - 1] = 0;
        assert_eq!(Cookie::parse(&bytes), Some(Cookie(bytes)));
        bytes[5] = b'\n';
        assert_eq!(Cookie::parse(&bytes), None);
    }
}
