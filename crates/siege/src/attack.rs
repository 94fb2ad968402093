//! Building blocks of attackers: sockets with a chosen source address, and threads that end together with their row
//! (one check of the siege).

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// The time limit for an attacker's connect, and for each of its reads and writes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The `n`th source address of an attacker. It lies in 127.0.0.0/16, is never 127.0.0.1, and is never an address that
/// `lab::loopback::address` returns.
pub(crate) fn source(n: u32) -> IpAddr {
    let n = n % (250 * 250);
    let part = |n: u32| u8::try_from(1 + n % 250).expect("below 251");
    Ipv4Addr::new(127, 0, part(n / 250), part(n).saturating_add(1)).into()
}

/// Connects from any address, which need not be configured on an interface (`IP_FREEBIND`).
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

/// Stops the threads of an attack: on request, or when the attack has lasted a set time.
#[derive(Debug)]
pub(crate) struct Until {
    over: AtomicBool,
    latest: Instant,
}

impl Until {
    /// Makes attackers stop after `at_most` at the latest.
    pub(crate) fn at_most(at_most: Duration) -> Self {
        Self { over: AtomicBool::new(false), latest: Instant::now() + at_most }
    }

    /// Whether attackers must stop.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || Instant::now() >= self.latest
    }

    /// Returns a guard that ends the attack when it is dropped, also by a panic.
    pub(crate) fn when_dropped(&self) -> Over<'_> {
        Over(self)
    }
}

/// A guard that ends the attack when it is dropped.
pub(crate) struct Over<'a>(&'a Until);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Runs `job` for each number below `count` on `threads` threads, and returns the results in no particular order.
pub(crate) fn in_parallel<T: Send>(threads: usize, count: u32, job: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let next = AtomicU32::new(0);
    let work = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::SeqCst)).filter(|number| *number < count));
        numbers.map(&job).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let workers = (0..threads).map(|_| scope.spawn(work)).collect::<Vec<_>>();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker of the siege")).collect()
    })
}

/// Moves this thread into a network namespace, where its sockets are created from now on.
pub(crate) fn enter_netns(name: &str) -> anyhow::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let namespace = File::open(Path::new("/run/netns").join(name))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// A crowd of connections that an attacker keeps open: if the target closes a connection, the attacker opens it again,
/// at most once a second. The connections send nothing, or a byte of a TLS record per second.
pub(crate) struct Crowd<'a> {
    /// The address to which the attacker connects.
    pub(crate) to: SocketAddr,
    /// The number of connections that are open at the same time.
    pub(crate) size: usize,
    /// Returns the source address of each connection by its number.
    pub(crate) source: &'a (dyn Fn(usize) -> IpAddr + Sync),
    /// Whether each connection sends a byte per second.
    pub(crate) trickles: bool,
}

impl Crowd<'_> {
    /// Keeps the connections open until the attack ends. Returns how many connections were opened in total.
    pub(crate) fn press(&self, until: &Until) -> u64 {
        const THREADS: usize = 4;
        let opened = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for first in 0..THREADS {
                let opened = &opened;
                scope.spawn(move || {
                    be_nice();
                    let mut places = (first..self.size).step_by(THREADS).map(|at| (at, None)).collect::<Vec<_>>();
                    while !until.is_over() {
                        let began = Instant::now();
                        for (at, place) in &mut places {
                            if until.is_over() {
                                return;
                            }
                            if !place.as_mut().is_some_and(|stream| self.stands(stream)) {
                                *place = self.open(*at);
                                opened.fetch_add(u64::from(place.is_some()), Ordering::Relaxed);
                            }
                        }
                        // This sleep sets the pace of the attack; it does not wait for an event.
                        std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
                    }
                });
            }
        });
        opened.into_inner()
    }

    fn open(&self, at: usize) -> Option<TcpStream> {
        let stream = connect_from((self.source)(at), self.to).ok()?;
        stream.set_nonblocking(true).ok()?;
        if self.trickles {
            // The header of a TLS record with a long handshake message.
            (&stream).write_all(&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb]).ok()?;
        }
        Some(stream)
    }

    fn stands(&self, stream: &mut TcpStream) -> bool {
        let is_open = matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        is_open && (!self.trickles || stream.write_all(&[3]).is_ok())
    }
}

/// Gives this thread the lowest priority, so that an attack on the same machine takes no processor time from its target.
pub(crate) fn be_nice() {
    // Best effort: with the normal priority the attack is only harder on the target.
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
