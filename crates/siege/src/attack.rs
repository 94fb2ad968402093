//! What attackers are made of: sockets with a source address of their own, and threads that end with their row.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How long an attacker waits for an answer, unless its row says otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The `n`th source address of an attacker: in 127.0.0.0/16, where `lab::loopback::address` gives none away, and not
/// 127.0.0.1.
pub(crate) fn source(n: u32) -> IpAddr {
    let n = n % (250 * 250);
    let part = |n: u32| u8::try_from(1 + n % 250).expect("below 251");
    Ipv4Addr::new(127, 0, part(n / 250), part(n).saturating_add(1)).into()
}

/// Connects from an address of our choice, which need not be set up on an interface (`IP_FREEBIND`).
pub(crate) fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    match from {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// When attackers stop: told to, or at the latest after a time.
#[derive(Debug)]
pub(crate) struct Until {
    over: AtomicBool,
    latest: Instant,
}

impl Until {
    /// Not over yet, and over after `at_most`.
    pub(crate) fn at_most(at_most: Duration) -> Self {
        Self { over: AtomicBool::new(false), latest: Instant::now() + at_most }
    }

    /// Whether attackers are to stop.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || Instant::now() >= self.latest
    }

    /// From now on it is over, also where the value that this returns is dropped by a panic.
    pub(crate) fn when_dropped(&self) -> Over<'_> {
        Over(self)
    }
}

/// Ends the attack when dropped.
pub(crate) struct Over<'a>(&'a Until);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Gives this thread the lowest priority, so that an attack on the same machine takes no processor from its target.
pub(crate) fn be_nice() {
    // Best effort: with the usual priority the target only has it harder.
    let _ = rustix::process::nice(19);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_addresses_are_distinct_and_nobody_elses() {
        let mut all = (0..5000).map(source).collect::<Vec<_>>();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5000);
        assert!(all.iter().all(|at| *at != IpAddr::from(Ipv4Addr::LOCALHOST)));
    }
}
