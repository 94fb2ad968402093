//! Lets a test play either end of a link, with any key, real TLS and any bytes. A test can therefore send what the real
//! programs never send.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use paramedic_link::admission::{Preamble, SESSION_EXPORTER_LABEL, SessionKeys, TAG_LEN};
use paramedic_link::test_spec::Direction;
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{EndpointId, SecretKey, SessionId, frame};
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::Reflector;

/// How long the other end may take to send a message or to close the connection. Longer than any timeout of the two
/// programs.
const PATIENCE: Duration = Duration::from_secs(40);

/// The length of a latency probe and of its reply, in bytes.
pub const PROBE_LEN: usize = 96;

/// An open link, one end of which the test plays. The test can send any bytes over it.
pub struct RawLink<S> {
    stream: S,
}

/// The appliance's end of a link, played by a test; the other end is a real reflector.
pub type AsAppliance = RawLink<StreamOwned<ClientConnection, TcpStream>>;
/// The reflector's end of a link, played by a test; the other end is a real appliance.
pub type AsReflector = RawLink<StreamOwned<ServerConnection, TcpStream>>;

impl AsAppliance {
    /// Opens a link to the reflector at `address`, authenticated with `key`, with the ALPN protocol `alpn`.
    pub fn open(address: &str, reflector: EndpointId, key: &SecretKey, alpn: Alpn) -> io::Result<Self> {
        Self::over(TcpStream::connect(address)?, reflector, key, alpn)
    }

    /// Like [`AsAppliance::open`], over an existing TCP connection.
    pub fn over(socket: TcpStream, reflector: EndpointId, key: &SecretKey, alpn: Alpn) -> io::Result<Self> {
        let config = tls::appliance_config(key, Expect::ExactKey(reflector), alpn).map_err(io::Error::other)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Self::over_with(socket, config)
    }

    /// Opens a link over `socket` with the TLS configuration `config`. Reads have the timeout that `socket` has.
    pub fn over_with(mut socket: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let mut session = ClientConnection::new(config, tls::server_name()).map_err(io::Error::other)?;
        session.complete_io(&mut socket)?;
        Ok(Self { stream: StreamOwned::new(session, socket) })
    }

    /// Sends `message` repeatedly and reads nothing, until the other end has read nothing for `patience` because it is
    /// blocked in a write. The link cannot be used afterwards.
    pub fn flood(&mut self, message: &Value, patience: Duration) -> io::Result<()> {
        // A small receive buffer, so that the other end soon blocks.
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.stream.sock, 4096)?;
        self.stream.sock.set_write_timeout(Some(patience))?;
        let many = frame::encode(message).map_err(io::Error::other)?.repeat(100);
        loop {
            match self.say_bytes(&many) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Derives the keys of a session of this link.
    pub fn session_keys(&self, session: SessionId) -> SessionKeys {
        let secret = self.exporter(SESSION_EXPORTER_LABEL, Some(session.as_bytes()));
        SessionKeys::derive(session, secret.into())
    }

    /// A TLS exporter value of the link.
    pub fn exporter(&self, label: &[u8], context: Option<&[u8]>) -> [u8; 32] {
        self.stream.conn.export_keying_material([0; 32], label, context).expect("the handshake is done")
    }
}

impl AsReflector {
    /// Closes the TCP connection in both directions, without a TLS alert.
    pub fn hang_up(&mut self) -> io::Result<()> {
        self.stream.sock.shutdown(Shutdown::Both)
    }
}

impl<S: Read + Write> RawLink<S> {
    /// Sends these bytes without framing them as a message.
    pub fn say_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a message, whether it is valid or not.
    pub fn say(&mut self, message: &Value) -> io::Result<()> {
        self.say_bytes(&frame::encode(message).map_err(io::Error::other)?)
    }

    /// Reads the next `count` bytes.
    pub fn hear_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).map(|()| bytes)
    }

    /// Reads the next message; `None` if the other end closed the connection.
    pub fn hear(&mut self) -> io::Result<Option<Value>> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body)?;
        serde_json::from_slice(&body).map(Some).map_err(io::Error::other)
    }

    /// Reads messages until one of type `kind` arrives, and returns it; the others are discarded.
    pub fn hear_a(&mut self, kind: &str) -> io::Result<Value> {
        while let Some(message) = self.hear()? {
            if message["type"] == kind {
                return Ok(message);
            }
        }
        Err(io::Error::other(format!("the connection was closed before a {kind}")))
    }

    /// Reads and discards bytes until the other end closes the connection.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_end(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads and returns every byte until the other end closes the connection.
    pub fn hear_out(&mut self) -> io::Result<Vec<u8>> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(heard),
                Ok(read) => heard.extend_from_slice(&buffer[..read]),
                Err(error) if is_end(&error) => return Ok(heard),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Opens a TCP connection from `source`, any loopback address, to `target`.
pub fn connect_from(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    Ok(socket.into())
}

/// A device with its own key, played by a test.
pub struct RogueDevice {
    /// The secret key of the device.
    pub key: SecretKey,
    address: String,
    /// The Endpoint ID of the reflector that the device connects to.
    pub reflector: EndpointId,
}

impl RogueDevice {
    /// Creates a device with a new key, and pairs it by Endpoint ID under the name `rogue`.
    pub fn pair(reflector: &Reflector) -> Self {
        let rogue = Self::unpaired(reflector);
        reflector.must(&["peers", "add", &rogue.key.id().to_string(), "--name", "rogue"]);
        rogue
    }

    /// Creates a device with a new key, without pairing it.
    pub fn unpaired(reflector: &Reflector) -> Self {
        let key = SecretKey::generate().expect("a key");
        let reflector_id = reflector.id().parse().expect("an Endpoint ID");
        Self { key, address: reflector.address().to_owned(), reflector: reflector_id }
    }

    /// Opens a connection to the reflector with the ALPN protocol `alpn`.
    pub fn open(&self, alpn: Alpn) -> AsAppliance {
        AsAppliance::open(&self.address, self.reflector, &self.key, alpn).expect("a connection")
    }

    /// Opens a connection to the reflector for a link, from the address `source`.
    pub fn open_from(&self, source: Ipv4Addr) -> io::Result<AsAppliance> {
        let target = self.address.parse().map_err(io::Error::other)?;
        AsAppliance::over(connect_from(source, target)?, self.reflector, &self.key, Alpn::Link)
    }

    /// Opens a link, sends `hello`, and reads messages until the reflector's `welcome`.
    pub fn link(&self) -> AsAppliance {
        let mut link = self.open(Alpn::Link);
        link.say(&serde_json::json!({ "type": "hello", "versions": [1], "software": "0.0.0" })).expect("it reads");
        link.hear_a("welcome").expect("a welcome");
        link
    }
}

/// Builds latency probes with these sequence numbers and valid tags, one after the other.
pub fn probes(keys: &SessionKeys, numbers: std::ops::Range<u32>) -> Vec<u8> {
    let sealed = |number: u32| {
        let mut probe = [0; PROBE_LEN];
        (probe[0], probe[1]) = (1, 1);
        probe[4..20].copy_from_slice(keys.session().as_bytes());
        probe[20..24].copy_from_slice(&number.to_be_bytes());
        probe[24..28].copy_from_slice(&number.to_be_bytes());
        let tag = keys.seal_datagram(Direction::Upload, &probe[..PROBE_LEN - TAG_LEN]);
        probe[PROBE_LEN - TAG_LEN..].copy_from_slice(&tag);
        probe
    };
    numbers.flat_map(sealed).collect()
}

/// Builds the preamble of the connection that carries a session's latency probes. The preamble authenticates the
/// connection.
pub fn probe_preamble(keys: &SessionKeys) -> [u8; Preamble::LEN] {
    let nonce = [7; Preamble::NONCE_LEN];
    Preamble { session: keys.session(), phase: Preamble::ECHO, stream: 0, nonce }.seal(keys)
}

/// Whether the error means that the other end closed the connection, with or without a TLS alert.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// A reflector with a real key, played by a test.
pub struct FalseReflector {
    /// The address that the reflector listens on.
    pub address: SocketAddr,
    /// The Endpoint ID of the reflector.
    pub id: EndpointId,
    _thread: JoinHandle<()>,
}

impl FalseReflector {
    /// Listens on loopback. For each link, calls `answer` with the link and its first message, on a separate thread.
    /// Reads and discards data connections.
    pub fn listen(answer: impl Fn(&mut AsReflector, &Value) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let key = SecretKey::generate().expect("a key");
        let config = tls::reflector_config(&key).expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(answer);
        // The thread ends with the process of the test.
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (config, answer) = (Arc::clone(&config), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let link = || -> io::Result<()> {
                        let mut socket = socket?;
                        socket.set_read_timeout(Some(PATIENCE))?;
                        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
                        session.complete_io(&mut socket)?;
                        let is_link = session.alpn_protocol() == Some(Alpn::Link.as_bytes());
                        let mut link = AsReflector { stream: StreamOwned::new(session, socket) };
                        if is_link && let Some(first) = link.hear()? {
                            answer(&mut link, &first)?;
                        }
                        link.drain()
                    };
                    // Ignore the error: if the appliance closed the connection early, the appliance's own error states
                    // why.
                    let _ = link();
                });
            }
        });
        Self { address, id: key.id(), _thread: thread }
    }
}
