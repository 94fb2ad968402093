//! A responder's port, as an engine uses it that has datagrams of its own: who takes what is no probe, and how a socket
//! for one peer comes to stand at the same port. What is said there stands with the engine.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use socket2::{Domain, SockRef, Socket, Type};

use super::datagram::Mailbox;
use super::packet;
use super::serve::{Refusal, Shared};

/// Datagrams of others that a new socket may hold before it is connected.
const ASTRAY: usize = 4096;

/// Takes the datagrams of one session that are no probes.
pub trait Signals: Send + Sync {
    /// Takes one that claims to be of the session and came from its peer's address, which proves nothing yet. Called by
    /// the thread that answers everybody's probes: must not block. Gives the answer; nothing unverified gets any.
    fn take(&self, arrived: &Arrived<'_>) -> Result<[u8; packet::LEN], Refusal>;
}

/// A datagram that came to a port.
pub struct Arrived<'a> {
    /// What it holds.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub from: SocketAddr,
    /// The address of this host that it came to.
    pub to: Option<IpAddr>,
    /// Where it came to.
    pub port: &'a Port,
}

/// A responder's port.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Shared>,
    /// Gone with the responder.
    socket: Weak<UdpSocket>,
}

impl Port {
    pub(super) fn of(shared: &Arc<Shared>, socket: &Arc<UdpSocket>) -> Self {
        Self { shared: Arc::clone(shared), socket: Arc::downgrade(socket) }
    }

    /// A socket at this port, of the address `to`, that hears `peer` alone: from now on the kernel gives it all that
    /// `peer` sends there, and the responder the rest.
    pub fn connect(&self, to: Option<IpAddr>, peer: SocketAddr) -> io::Result<UdpSocket> {
        let responder = self.socket.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let mut local = responder.local_addr()?;
        if let Some(to) = to {
            // A link-local address means nothing without its scope.
            let scope = |peer: SocketAddr| if let SocketAddr::V6(v6) = peer { v6.scope_id() } else { 0 };
            local.set_ip(to);
            if let (SocketAddr::V6(local), IpAddr::V6(to)) = (&mut local, to)
                && to.is_unicast_link_local()
            {
                local.set_scope_id(scope(peer));
            }
        }
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        if let SocketAddr::V6(v6) = peer {
            socket.set_only_v6(v6.ip().to_ipv4_mapped().is_none())?;
        }
        let socket = UdpSocket::from(socket);
        let mut mailbox = Mailbox::unbound(&socket, peer.is_ipv6())?;
        SockRef::from(&socket).bind(&local.into())?;
        socket.connect(peer)?;
        // Until it was connected it may have been given what was for the responder.
        for _ in 0..ASTRAY {
            match mailbox.receive(&socket) {
                Ok(Some(arrival)) if arrival.from != peer => {
                    let bytes = mailbox.bytes.get(..arrival.len).unwrap_or_default();
                    self.shared.take(&responder, bytes, &arrival);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // Of the peer itself, who says it again; or an error of the past, gone once read.
                Ok(_) | Err(_) => {}
            }
        }
        Mailbox::close(&socket);
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::super::packet::{ProbePacket, ReplyPacket};
    use super::super::serve::Responder;
    use super::super::tests::keys;
    use super::*;
    use crate::tether::Tether;

    /// Gives away the port of all that it takes, and answers none.
    struct Taken(Mutex<Sender<(Port, Option<IpAddr>, SocketAddr)>>);

    impl Signals for Taken {
        fn take(&self, arrived: &Arrived<'_>) -> Result<[u8; packet::LEN], Refusal> {
            self.0.lock().unwrap().send((arrived.port.clone(), arrived.to, arrived.from)).unwrap();
            Err(Refusal::Forged)
        }
    }

    fn signal() -> [u8; packet::LEN] {
        let mut bytes = [0; packet::LEN];
        bytes[..2].copy_from_slice(&[1, 5]);
        bytes[4..20].copy_from_slice(keys(1).session().as_bytes());
        bytes
    }

    fn a_peer_gets_a_socket_of_its_own(bind: &str, at: &str) {
        let responder = Responder::spawn(UdpSocket::bind(bind).unwrap()).unwrap();
        let at = SocketAddr::new(at.parse().unwrap(), responder.local_addr().port());
        let (taken, take) = channel();
        let signals: Arc<dyn Signals> = Arc::new(Taken(Mutex::new(taken)));
        let _enrolment = responder.enroll_with(Arc::new(keys(1)), Tether::free(), at.ip(), Some(signals));
        let asker = |to: SocketAddr| {
            let socket = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (peer, other) = (asker(at), asker(at));
        peer.send(&signal()).unwrap();
        let (port, to, from) = take.recv().unwrap();
        assert_eq!(from, peer.local_addr().unwrap());
        let ours = port.connect(to, from).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // What the peer sends goes to it, what others send does not.
        peer.send(b"bulk").unwrap();
        assert_eq!(ours.recv(&mut [0; 8]).unwrap(), 4);
        ours.send(b"back").unwrap();
        assert_eq!(peer.recv(&mut [0; 8]).unwrap(), 4);
        for seq in 0..20 {
            other.send(&ProbePacket { seq, about: 0, sent_ns: 0 }.seal(&keys(1))).unwrap();
            let mut bytes = [0; packet::LEN];
            assert_eq!(other.recv(&mut bytes).unwrap(), packet::LEN);
            assert_eq!(ReplyPacket::open(&bytes, &keys(1)).unwrap().seq, seq);
        }
        // Another port of the same peer is another one.
        other.send(&signal()).unwrap();
        assert_eq!(take.recv().unwrap().2, other.local_addr().unwrap());
        drop(ours);
        peer.send(&signal()).unwrap();
        assert_eq!(take.recv().unwrap().2, from, "with the socket gone the responder hears the peer again");
    }

    #[test]
    fn a_socket_hears_its_peer_alone_and_the_responder_everybody_else() {
        a_peer_gets_a_socket_of_its_own("127.0.0.1:0", "127.0.0.1");
        a_peer_gets_a_socket_of_its_own("0.0.0.0:0", "127.0.0.3");
        if UdpSocket::bind("[::1]:0").is_ok() {
            a_peer_gets_a_socket_of_its_own("[::1]:0", "::1");
        }
    }

    #[test]
    fn what_went_astray_is_handed_to_the_responder() {
        // While sockets come and go at the port, probes are answered all the same. One may reach a socket that is
        // closed in the very moment; that costs it, as the network may.
        let responder = Responder::spawn(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let at = responder.local_addr();
        let (taken, take) = channel();
        let signals: Arc<dyn Signals> = Arc::new(Taken(Mutex::new(taken)));
        let _enrolment = responder.enroll_with(Arc::new(keys(1)), Tether::free(), at.ip(), Some(signals));
        let prober = UdpSocket::bind("127.0.0.1:0").unwrap();
        prober.connect(at).unwrap();
        prober.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(&signal(), at).unwrap();
        let (port, to, from) = take.recv().unwrap();
        std::thread::scope(|scope| {
            let (stop, stopped) = channel::<()>();
            scope.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    drop(port.connect(to, from).unwrap());
                }
            });
            let probe = |seq| {
                prober.send(&ProbePacket { seq, about: 0, sent_ns: 0 }.seal(&keys(1))).unwrap();
                prober.recv(&mut [0; 200]).is_ok()
            };
            let lost = (0..2_000).filter(|seq| !probe(*seq)).take(5).count();
            stop.send(()).unwrap();
            assert!(lost < 5, "a probe in a thousand is lost");
        });
    }
}
