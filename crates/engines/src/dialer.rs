//! Opens the appliance's data connections: connects, does the TLS handshake in tunneled mode, and sends the preamble.

#![expect(clippy::disallowed_methods, reason = "a connect has a deadline in wall time")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paramedic_link::admission::Preamble;
use paramedic_link::tls;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use crate::data_stream::DataStream;
use crate::origin::Origin;
use crate::session_control::{Cancelled, SessionControl};
pub use crate::socket::SocketOptions;

/// Opens the appliance's data connections of one session.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The reflector's address and port for data: the control port in tunneled mode, the granted port in direct mode.
    pub target: SocketAddr,
    /// The TLS configuration for [`tls::Alpn::Data`] in tunneled mode; `None` in direct mode.
    pub tls: Option<Arc<ClientConfig>>,
    /// The local address or interface to send from, if the user chose one.
    pub origin: Origin,
    /// The timeout for connect, TLS handshake and preamble together.
    pub connect_timeout: Duration,
}

impl Dialer {
    /// Opens a data connection and sends the sealed `preamble`, which names the connection's stream. Blocks for
    /// `connect_timeout` at most. Fails with `ConnectionAborted` as soon as the session is cancelled.
    pub fn dial(
        &self,
        control: &Arc<SessionControl>,
        preamble: &[u8; Preamble::LEN],
        options: &SocketOptions,
    ) -> io::Result<DataStream> {
        let deadline = Instant::now() + self.connect_timeout;
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        options.apply(&socket)?;
        self.origin.bind(&socket, self.target)?;
        let _registration = control.register(&socket)?;
        self.reach(control, &socket, deadline).and_then(|()| self.introduce(socket.into(), preamble, deadline)).map_err(
            |failure| {
                if control.is_cancelled() {
                    io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled)
                } else {
                    failure
                }
            },
        )
    }

    fn reach(&self, control: &SessionControl, socket: &Socket, deadline: Instant) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        match socket.connect(&self.target.into()) {
            Err(e) if e.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            other => other?,
        }
        // A cancellation before the connect found no connection to shut down. A later one ends the poll below.
        if control.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled));
        }
        loop {
            let left = time_left(deadline)?;
            let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&limit)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        if let Some(failure) = socket.take_error()? {
            return Err(failure);
        }
        // A cancellation also makes the socket writable, without an error, but then the socket has no peer.
        socket.peer_addr()?;
        socket.set_nonblocking(false)
    }

    fn introduce(&self, socket: TcpStream, preamble: &[u8], deadline: Instant) -> io::Result<DataStream> {
        let mut timed = Timed { socket: &socket, deadline };
        let Some(config) = &self.tls else {
            timed.write_all(preamble)?;
            unlimited(&socket)?;
            return Ok(DataStream::Plain(socket));
        };
        let mut connection = ClientConnection::new(Arc::clone(config), tls::server_name()).map_err(invalid)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut timed)?;
        }
        if tls::Alpn::of(connection.alpn_protocol()) != Some(tls::Alpn::Data) {
            return Err(invalid("the reflector did not accept the protocol pp-data/1 for a data connection"));
        }
        connection.writer().write_all(preamble)?;
        while connection.wants_write() {
            connection.write_tls(&mut timed)?;
        }
        unlimited(&socket)?;
        DataStream::tls(connection.into(), socket)
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn unlimited(socket: &TcpStream) -> io::Result<()> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A blocking socket with one deadline for all its calls, so that a peer that sends slowly cannot extend the deadline.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

/// Turns the error `WouldBlock`, with which the kernel reports an expired socket timeout, into `TimedOut`.
fn as_timeout(failure: io::Error) -> io::Error {
    if failure.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { failure }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(time_left(self.deadline)?))?;
        self.socket.read(buffer).map_err(as_timeout)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(time_left(self.deadline)?))?;
        self.socket.write(bytes).map_err(as_timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::data_stream::tests::{accept_tls, configs};

    const PREAMBLE: [u8; Preamble::LEN] = [7; Preamble::LEN];

    fn dialer(target: SocketAddr) -> Dialer {
        Dialer { target, tls: None, origin: Origin::default(), connect_timeout: Duration::from_secs(60) }
    }

    fn dial(dialer: &Dialer, control: &Arc<SessionControl>) -> io::Result<DataStream> {
        dialer.dial(control, &PREAMBLE, &SocketOptions::default())
    }

    #[test]
    fn the_preamble_comes_first_with_and_without_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, client) = configs(tls::Alpn::Data);
        let clear = dialer(listener.local_addr().unwrap());
        let inside = Dialer { tls: Some(client), ..clear.clone() };
        let mut said = [0; Preamble::LEN];

        let _stream = dial(&clear, &SessionControl::unmetered()).unwrap();
        listener.accept().unwrap().0.read_exact(&mut said).unwrap();
        assert_eq!(said, PREAMBLE);

        std::thread::scope(|scope| {
            let dialled = scope.spawn(|| dial(&inside, &SessionControl::unmetered()).unwrap());
            let socket = listener.accept().unwrap().0;
            let connection = accept_tls(&server, &socket).unwrap();
            let _ours = dialled.join().unwrap();
            said.fill(0);
            DataStream::tls(connection.into(), socket).unwrap().read_exact(&mut said).unwrap();
            assert_eq!(said, PREAMBLE);
        });
    }

    #[test]
    fn a_connection_that_is_not_for_data_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, client) = configs(tls::Alpn::Link);
        let dialer = Dialer { tls: Some(client), ..dialer(listener.local_addr().unwrap()) };
        std::thread::scope(|scope| {
            scope.spawn(|| accept_tls(&server, &listener.accept().unwrap().0));
            assert_eq!(
                dial(&dialer, &SessionControl::unmetered()).err().map(|e| e.kind()),
                Some(io::ErrorKind::InvalidData)
            );
        });
    }

    #[test]
    fn a_cancelled_session_ends_a_connect_without_an_answer() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let target = listener.local_addr().unwrap().as_socket().unwrap();
        // One connection fills the accept queue; the kernel then drops the next ones.
        let _queued = TcpStream::connect(target).unwrap();
        for _ in 0..20 {
            let control = SessionControl::unmetered();
            std::thread::scope(|scope| {
                let dialled = scope.spawn(|| dial(&dialer(target), &control));
                control.cancel();
                assert_eq!(dialled.join().unwrap().err().map(|e| e.kind()), Some(io::ErrorKind::ConnectionAborted));
            });
        }
    }

    #[test]
    fn a_cancelled_session_ends_a_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialer = Dialer { tls: Some(configs(tls::Alpn::Data).1), ..dialer(listener.local_addr().unwrap()) };
        let control = SessionControl::unmetered();
        std::thread::scope(|scope| {
            let dialled = scope.spawn(|| dial(&dialer, &control));
            let mut silent = listener.accept().unwrap().0;
            // The handshake has begun and gets no answer.
            silent.read_exact(&mut [0; 1]).unwrap();
            control.cancel();
            assert_eq!(dialled.join().unwrap().err().map(|e| e.kind()), Some(io::ErrorKind::ConnectionAborted));
        });
    }

    #[test]
    fn a_handshake_without_an_answer_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tls = Some(configs(tls::Alpn::Data).1);
        let target = listener.local_addr().unwrap();
        let dialer = Dialer { target, tls, origin: Origin::default(), connect_timeout: Duration::from_millis(20) };
        assert_eq!(dial(&dialer, &SessionControl::unmetered()).err().map(|e| e.kind()), Some(io::ErrorKind::TimedOut));
    }
}
