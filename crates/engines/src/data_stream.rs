//! A blocking data connection, plain or inside TLS.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::net::RecvFlags;
use rustls::Connection;

/// The maximum number of bytes per read or write call that copies them. A chunk is large enough to make the cost of the
/// call negligible, and small enough for a processor's cache.
pub(crate) const CHUNK: usize = 256 * 1024;

/// The maximum number of bytes per read or write call inside TLS. TLS accesses each byte several times, so a chunk
/// should stay in a faster cache level.
const TLS_CHUNK: usize = 128 * 1024;

/// The length of the longest TLS record in bytes, including its header and its tag (RFC 8446, section 5.2).
const RECORD: usize = 5 + 16 * 1024 + 256;

/// The length of the longest payload of a TLS record in bytes. [`RECORD_FRAMING`] is the number of bytes that a record
/// adds to its payload: header, content type and tag.
const RECORD_PAYLOAD: usize = 16 * 1024;
const RECORD_FRAMING: u64 = 5 + 1 + 16;

/// The maximum number of record bytes that one read accepts without plaintext. Empty records, padding and key updates
/// carry no payload, so no payload counter limits them.
const MAX_WITHOUT_PLAINTEXT: u64 = 64 * 1024;

/// A blocking byte stream between the two ends of a session.
pub enum DataStream {
    /// A TCP connection without TLS.
    Plain(TcpStream),
    /// A TLS connection.
    Tls(Box<TlsSocket>),
}

impl DataStream {
    /// A stream inside a TLS connection that has finished its handshake over `socket`. If `connection` already holds
    /// plaintext, the stream returns it first. Makes the socket blocking.
    pub fn tls(connection: Connection, socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        Ok(Self::Tls(Box::new(TlsSocket::new(connection, socket))))
    }

    /// The TCP socket under the stream.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }

    /// Sends all written bytes, and then closes the sending side: close_notify inside TLS, then FIN. On a socket with a
    /// timeout, `WouldBlock` means that bytes are still unsent; call again.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            tls.send_close_notify()?;
        }
        self.socket().shutdown(Shutdown::Write)
    }

    /// The maximum number of bytes that the receiver of a stream may send back: none without TLS; inside TLS, enough
    /// for a few alerts and key updates.
    pub(crate) fn max_answer(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(_) => 4096,
        }
    }

    /// The number of bytes that have arrived but were not read yet: those in the kernel, and those in the read buffer
    /// of TLS.
    pub(crate) fn unread(&self) -> u64 {
        let buffered = match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.incoming.buffer().len() as u64,
        };
        buffered + rustix::io::ioctl_fionread(self.socket()).unwrap_or(0)
    }

    /// The number of bytes to charge for a stream that has moved `payload` bytes. Without TLS, the number is `payload`.
    /// Inside TLS, records with few bytes and padded records (RFC 8446, section 5.4) are much longer than their
    /// payload. So at least three quarters of all record bytes beyond the first [`RECORD`] bytes are charged. The
    /// overhead of usual records is less than the part that is not charged, so only their payload is charged.
    pub(crate) fn chargeable(&self, payload: u64) -> u64 {
        match self {
            Self::Plain(_) => payload,
            Self::Tls(tls) => {
                let records = tls.record_bytes.saturating_sub(RECORD as u64);
                payload.max(records - records / 4)
            }
        }
    }

    /// The number of bytes that TLS adds to a write of `payload` bytes; 0 without TLS.
    pub(crate) fn framing(&self, payload: usize) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(_) => payload.div_ceil(RECORD_PAYLOAD) as u64 * RECORD_FRAMING,
        }
    }

    /// Reads and discards bytes. Returns their number, or 0 at the end of the stream. Inside TLS the bytes are
    /// authenticated first. Without TLS they are copied to `scratch`, or discarded by the kernel if `in_kernel` is set
    /// (tcp(7), `MSG_TRUNC`).
    pub(crate) fn discard(&mut self, scratch: &mut [u8], in_kernel: bool) -> io::Result<usize> {
        match self {
            Self::Plain(socket) if in_kernel => {
                let (_, came) = rustix::net::recv(&*socket, scratch, RecvFlags::TRUNC)?;
                Ok(came)
            }
            Self::Plain(socket) => socket.read(scratch),
            Self::Tls(tls) => tls.discard(),
        }
    }
}

impl Read for DataStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for DataStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// A TLS connection over a blocking socket, for bulk data. Reads and writes many bytes per call, and does not copy the
/// bytes that it discards.
pub struct TlsSocket {
    connection: Connection,
    /// rustls reads 4 KiB at a time; the buffer turns many of those reads into one system call.
    incoming: BufReader<TcpStream>,
    /// The total number of bytes of all TLS records sent and received so far.
    record_bytes: u64,
    said_goodbye: bool,
}

impl TlsSocket {
    fn new(mut connection: Connection, socket: TcpStream) -> Self {
        // rustls needs no limit: `write` limits the size of each write, and sends its records before it accepts the
        // next write.
        connection.set_buffer_limit(None);
        Self { connection, incoming: BufReader::with_capacity(TLS_CHUNK, socket), record_bytes: 0, said_goodbye: false }
    }

    fn socket(&self) -> &TcpStream {
        self.incoming.get_ref()
    }

    /// Reads until the connection has plaintext or has ended.
    fn fill(&mut self) -> io::Result<()> {
        let before = self.record_bytes;
        loop {
            match self.connection.reader().fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // This is plaintext, a clean end, or an end without close_notify, which rustls reports as an error.
                other => return other.map(drop),
            }
            if self.record_bytes - before > MAX_WITHOUT_PLAINTEXT {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the other end sent TLS records without payload",
                ));
            }
            match self.connection.read_tls(&mut self.incoming) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => self.record_bytes += other? as u64,
            }
            if let Err(broken) = self.connection.process_new_packets() {
                // Best effort: sends an alert with the reason to the other end.
                self.send_pending().ok();
                return Err(io::Error::new(io::ErrorKind::InvalidData, broken));
            }
            // Sends, for example, the answer to a key update.
            if self.connection.wants_write() {
                self.send_pending()?;
            }
        }
    }

    /// Waits for at least one byte of payload, and then discards the payload of all complete records in the buffer.
    /// Returns the number of discarded bytes, or 0 at the end of the stream.
    fn discard(&mut self) -> io::Result<usize> {
        let mut discarded = 0;
        loop {
            self.fill()?;
            let mut reader = self.connection.reader();
            // If the stream ended without close_notify, the next call reports that, so that the bytes before the end
            // are counted.
            while let Ok(chunk @ [_, ..]) = reader.fill_buf() {
                let len = chunk.len();
                reader.consume(len);
                discarded += len;
            }
            // Reading complete records from the buffer needs no system call; reading the rest of a partial record might
            // block.
            if discarded == 0 || self.incoming.buffer().len() < RECORD {
                return Ok(discarded);
            }
        }
    }

    fn send_pending(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(self.incoming.get_mut()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.record_bytes += written as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn send_close_notify(&mut self) -> io::Result<()> {
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.connection.send_close_notify();
        }
        self.send_pending()
    }
}

impl Read for TlsSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.fill()?;
        self.connection.reader().read(buffer)
    }
}

impl Write for TlsSocket {
    /// Accepts at most 128 KiB of `bytes`. If accepted bytes cannot be sent at once, they remain buffered, and the next
    /// call reports the reason. Some of them may have reached the other end, so all accepted bytes count as sent. An
    /// error means that this call accepted no byte.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_pending()?;
        let taken = self.connection.writer().write(&bytes[..bytes.len().min(TLS_CHUNK)])?;
        // The next call reports the same failure.
        self.send_pending().ok();
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_pending()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use aws_lc_rs::aead;
    use paramedic_link::SecretKey;
    use paramedic_link::tls::{self, Alpn, Expect};
    use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, ServerConfig, ServerConnection};

    use super::*;

    /// The TLS configurations of both ends of a data connection, with two fresh keys.
    pub(crate) fn configs(alpn: Alpn) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let (ours, theirs) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let client = tls::appliance_config(&ours, Expect::ExactKey(theirs.id()), alpn).unwrap();
        (tls::reflector_config(&theirs).unwrap(), client)
    }

    /// The reflector's side of a TLS handshake.
    pub(crate) fn accept_tls(config: &Arc<ServerConfig>, mut socket: &TcpStream) -> io::Result<ServerConnection> {
        let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(connection)
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    /// Both ends of a TLS connection after its handshake, each with its socket.
    fn handshaken(
        server: &Arc<ServerConfig>,
        client: Arc<ClientConfig>,
    ) -> ((ClientConnection, TcpStream), (ServerConnection, TcpStream)) {
        let (ours, theirs) = sockets();
        let mut client = ClientConnection::new(client, tls::server_name()).unwrap();
        let server = std::thread::scope(|scope| {
            let accepted = scope.spawn(|| accept_tls(server, &theirs).unwrap());
            while client.is_handshaking() {
                client.complete_io(&mut &ours).unwrap();
            }
            accepted.join().unwrap()
        });
        ((client, ours), (server, theirs))
    }

    /// Both ends of a TLS connection after its handshake. The client's end is a stream. The server's end is a
    /// connection and its socket, from which a test makes a stream.
    fn tls_pair() -> (DataStream, ServerConnection, TcpStream) {
        let (server, client) = configs(Alpn::Data);
        let ((client, ours), (server, theirs)) = handshaken(&server, client);
        (DataStream::tls(client.into(), ours).unwrap(), server, theirs)
    }

    /// An application data record without payload, padded to 16 KiB (RFC 8446, sections 5.2 to 5.4). rustls never sends
    /// such a record.
    fn empty_record(secrets: &ConnectionTrafficSecrets, seq: u64) -> Vec<u8> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => panic!("a cipher of TLS 1.3"),
        };
        let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
        nonce[4..].iter_mut().zip(seq.to_be_bytes()).for_each(|(byte, of_seq)| *byte ^= of_seq);
        const APPLICATION_DATA: u8 = 23;
        let mut body = vec![0; 16 * 1024];
        body[0] = APPLICATION_DATA;
        let [high, low] = u16::try_from(body.len() + algorithm.tag_len()).unwrap().to_be_bytes();
        let mut record = vec![APPLICATION_DATA, 3, 3, high, low];
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key.as_ref()).unwrap());
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, aead::Aad::from(&record[..]), &mut body).unwrap();
        record.extend(body);
        record
    }

    #[test]
    fn records_without_payload_end_the_stream() {
        let (server, client) = configs(Alpn::Data);
        let mut client = (*client).clone();
        client.enable_secret_extraction = true;
        let ((client, mut ours), (server, theirs)) = handshaken(&server, Arc::new(client));
        let mut theirs = DataStream::tls(server.into(), theirs).unwrap();
        let (first, secrets) = client.dangerous_extract_secrets().unwrap().tx;
        // 8 records, because rustls itself refuses the 33rd empty record in a row.
        let records = (first..first + 8).flat_map(|seq| empty_record(&secrets, seq)).collect::<Vec<_>>();
        let sending = std::thread::spawn(move || ours.write_all(&records));
        let failure = theirs.discard(&mut [], false).unwrap_err();
        assert_eq!(failure.to_string(), "the other end sent TLS records without payload");
        drop(theirs);
        // Fails if the other end closed before it read all records.
        let _ = sending.join().unwrap();
    }

    #[test]
    fn bytes_written_in_tls_are_read_and_end_cleanly() {
        let (mut ours, connection, theirs) = tls_pair();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        let sent = (0..3_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>();
        let mut read = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ours.write_all(&sent).unwrap();
                ours.finish().unwrap();
            });
            theirs.read_to_end(&mut read).unwrap();
        });
        assert!(read == sent);
    }

    #[test]
    fn bytes_discarded_in_tls_are_counted_exactly() {
        let (mut ours, connection, theirs) = tls_pair();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        let mut discarded = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ours.write_all(&vec![7; 5_000_001]).unwrap();
                ours.finish().unwrap();
            });
            loop {
                match theirs.discard(&mut [], false).unwrap() {
                    0 => break,
                    came => discarded += came,
                }
            }
        });
        assert_eq!(discarded, 5_000_001);
    }

    #[test]
    fn records_much_larger_than_their_payload_are_charged_at_both_ends() {
        let (mut ours, connection, theirs) = tls_pair();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        ours.write_all(&vec![7; 1 << 20]).unwrap();
        let mut came = 0;
        while came < 1 << 20 {
            came += theirs.discard(&mut [], false).unwrap();
        }
        assert_eq!((ours.chargeable(1 << 20), theirs.chargeable(1 << 20)), (1 << 20, 1 << 20), "usual records");
        // A record of one byte adds 22 bytes (RFC 8446, section 5.2); three quarters of them are charged.
        let tiny = 100_000;
        for _ in 0..tiny {
            ours.write_all(&[7]).unwrap();
            came += theirs.discard(&mut [], false).unwrap();
        }
        let payload = came as u64;
        assert_eq!(payload, (1 << 20) + tiny);
        for charged in [ours.chargeable(payload), theirs.chargeable(payload)] {
            assert!(charged > tiny * 23 * 3 / 4 + (1 << 19), "{charged}");
        }
    }

    #[test]
    fn plaintext_that_came_with_the_handshake_is_not_lost() {
        let (mut ours, mut connection, theirs) = tls_pair();
        ours.write_all(b"preamblepayload").unwrap();
        let mut preamble = [0; 8];
        rustls::Stream::new(&mut connection, &mut &theirs).read_exact(&mut preamble).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        let mut payload = [0; 7];
        theirs.read_exact(&mut payload).unwrap();
        assert_eq!((&preamble, &payload), (b"preamble", b"payload"));
    }

    #[test]
    fn a_fin_without_close_notify_is_an_error() {
        let (mut ours, connection, theirs) = tls_pair();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        ours.write_all(b"cut off").unwrap();
        ours.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(theirs.discard(&mut [], false).unwrap(), 7);
        assert_eq!(theirs.discard(&mut [], false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_write_with_a_timeout_loses_nothing() {
        let (mut ours, connection, theirs) = tls_pair();
        let mut theirs = DataStream::tls(connection.into(), theirs).unwrap();
        ours.socket().set_write_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        let chunk = vec![7; CHUNK];
        let mut sent = 0;
        // Without a reader the buffers fill up.
        let full = loop {
            match ours.write(&chunk) {
                Ok(taken) => sent += taken,
                Err(e) => break e,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let reader = std::thread::spawn(move || io::copy(&mut theirs, &mut io::sink()).unwrap());
        while let Err(e) = ours.finish() {
            assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        }
        assert_eq!(reader.join().unwrap(), sent as u64);
    }

    #[test]
    fn bytes_discarded_by_the_kernel_are_counted() {
        let (mut ours, theirs) = sockets();
        let mut theirs = DataStream::Plain(theirs);
        ours.write_all(b"hello").unwrap();
        drop(ours);
        let mut scratch = [0; 64];
        let mut came = 0;
        loop {
            match theirs.discard(&mut scratch, true).unwrap() {
                0 => break,
                n => came += n,
            }
        }
        assert_eq!((came, scratch), (5, [0; 64]));
    }
}
