//! Loopback addresses and ports that no other test uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

/// Returns an address of 127.0.0.0/8 that no other test uses, so that all its ports are free.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let [.., own] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // The address is never in 127.0.0.0/16, which other programs use.
    Ipv4Addr::new(127, high | 1, low, own)
}

/// A reserved port: no process listens on it or can do so while this value lives.
#[derive(Debug)]
pub struct ClosedPort {
    address: SocketAddr,
    _held: OwnedFd,
}

impl std::fmt::Display for ClosedPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// Reserves a port by binding it without listening on it.
pub fn closed_port() -> ClosedPort {
    let held = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&held, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    let address = getsockname(&held).expect("an address").try_into().expect("an IPv4 address");
    ClosedPort { address, _held: held }
}
