//! An attack of unpaired clients on the port of the iperf3 lane (the reflector's engine that runs a real iperf3) while
//! real sessions run there: garbage, silence, real iperf3 clients over TCP and UDP, single datagrams. Returns counts;
//! the caller checks them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::appliance::Appliance;
use crate::programs::is_gone;
use crate::reflector::Reflector;

/// The source address of the attackers, a loopback address that the appliance does not use.
const UNPAIRED: [u8; 4] = [127, 0, 0, 2];
/// How long the reflector's iperf3 process may still run after a session: 2 s, and 2 s more for a loaded machine.
const GONE: Duration = Duration::from_secs(2 + 2);

/// Counts of what happened while unpaired clients attacked the port of the reflector's iperf3 engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSiege {
    /// Sessions of the appliance that completed.
    pub complete: u32,
    /// Connections of attackers that sent garbage or nothing.
    pub connections: u64,
    /// Runs of a real iperf3 client over TCP.
    pub clients: u64,
    /// Runs of a real iperf3 client over UDP.
    pub udp_clients: u64,
    /// Single datagrams that attackers sent.
    pub datagrams: u64,
    /// Connections, client runs and datagrams of attackers that got an answer.
    pub answered: u64,
    /// Child processes of the reflector that still run after the last session.
    pub children_left: usize,
}

/// Runs `sessions` tests of `appliance` with the engine iperf3, one after the other, while unpaired clients attack
/// `port`, on which the reflector's iperf3 listens.
pub fn besiege_lane(reflector: &mut Reflector, appliance: &Appliance, port: u16, sessions: u32) -> LaneSiege {
    let host = reflector.address().parse::<SocketAddr>().expect("an address").ip();
    let at = SocketAddr::from((host, port));
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    let complete = std::thread::scope(|scope| {
        // Ends the attack even if a session panics.
        let _over = Over(&over);
        scope.spawn(|| counts.connect(at, &over));
        scope.spawn(|| counts.run_clients(at, &over));
        scope.spawn(|| counts.send_datagrams(at, &over));
        let run = |number: &u32| {
            let direction = if number.is_multiple_of(2) { "--download" } else { "--upload" };
            let outcome = appliance.speed_test(&["--engine", "iperf3", "-t", "1", "--idle", "0", direction]);
            if outcome.code != 0 {
                eprintln!("session {number}: {outcome:?}");
            }
            outcome.code == 0
        };
        (0..sessions).filter(run).count()
    });
    let left = reflector.process().children().into_iter().filter(|(pid, _)| !is_gone(*pid, GONE)).count();
    let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
    LaneSiege {
        complete: u32::try_from(complete).unwrap_or(u32::MAX),
        connections: read(&counts.connections),
        clients: read(&counts.clients),
        udp_clients: read(&counts.udp_clients),
        datagrams: read(&counts.datagrams),
        answered: read(&counts.answered),
        children_left: left,
    }
}

/// Ends the attack when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    clients: AtomicU64,
    udp_clients: AtomicU64,
    datagrams: AtomicU64,
    answered: AtomicU64,
}

fn connect(at: SocketAddr) -> Option<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
    bind(&socket, &SocketAddr::from((UNPAIRED, 0))).ok()?;
    // Connecting fails between two sessions, when the port is closed.
    connect(&socket, &at).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    Some(stream)
}

impl Counts {
    /// Connects repeatedly and sends garbage, bytes that look like an iperf3 cookie, or nothing.
    fn connect(&self, at: SocketAddr, over: &AtomicBool) {
        let mut silent = Vec::new();
        while !over.load(Ordering::SeqCst) {
            for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"abcdefghijklmnopqrstuvwxyz2345678901\0", &[0xff; 3]] {
                let Some(mut stream) = connect(at) else {
                    std::thread::yield_now();
                    continue;
                };
                self.connections.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(words);
                if matches!(stream.read(&mut [0; 16]), Ok(1..)) {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
            }
            silent.extend(connect(at));
            if silent.len() > 200 {
                silent.clear();
            }
        }
    }

    /// Runs real iperf3 clients, alternately over TCP and UDP.
    fn run_clients(&self, at: SocketAddr, over: &AtomicBool) {
        let from = Ipv4Addr::from(UNPAIRED).to_string();
        let (ip, port) = (at.ip().to_string(), at.port().to_string());
        let args = ["-c", &ip, "-p", &port, "-B", &from, "-t", "1", "--json", "--connect-timeout", "1000"];
        for number in 0_u64.. {
            if over.load(Ordering::SeqCst) {
                return;
            }
            let (more, count) = if number % 2 == 0 { (None, &self.clients) } else { (Some("-u"), &self.udp_clients) };
            let output = Command::new("iperf3").args(args).args(more).stdin(Stdio::null()).output();
            let printed = output.map(|output| output.stdout).unwrap_or_default();
            let printed = serde_json::from_slice::<Value>(&printed).unwrap_or_default();
            count.fetch_add(1, Ordering::Relaxed);
            let has_sent = printed["end"]["sum_sent"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0);
            let was_refused = printed["error"].is_string();
            if !was_refused || has_sent {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends datagrams, among them one to which an iperf3 server replies.
    fn send_datagrams(&self, at: SocketAddr, over: &AtomicBool) {
        let socket = UdpSocket::bind(SocketAddr::from((UNPAIRED, 0))).expect("an address of loopback");
        socket.set_nonblocking(true).expect("a socket");
        while !over.load(Ordering::SeqCst) {
            for datagram in [&[0x36, 0x37, 0x38, 0x39][..], &[0; 96], &[1; 1400]] {
                if socket.send_to(datagram, at).is_ok() {
                    self.datagrams.fetch_add(1, Ordering::Relaxed);
                }
                if socket.recv_from(&mut [0; 2048]).is_ok() {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::yield_now();
        }
    }
}
