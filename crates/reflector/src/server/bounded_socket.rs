//! The socket of a connection, with a limit on the bytes that may arrive between two messages. Without the limit,
//! padded TLS records (RFC 8446, section 5.4) and incomplete messages could carry any number of bytes that are charged
//! to no budget.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The number of bytes that may arrive between two messages. A TLS handshake of this protocol takes about 4 KiB, and a
/// message at most 16 KiB. The link also reads up to 4 KiB of plaintext ahead, which takes many more bytes on the line
/// only if the client pads its TLS records.
const MAX_BYTES_PER_MESSAGE: u64 = 64 * 1024;

/// A TCP socket whose reads fail if too many bytes arrive without a message.
pub(super) struct BoundedSocket {
    socket: TcpStream,
    /// The number of bytes that arrived since the last message.
    arrived: u64,
}

impl BoundedSocket {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, arrived: 0 }
    }

    /// Records that a message was read. Returns the number of bytes that arrived since the message before.
    pub(super) fn message_taken(&mut self) -> u64 {
        std::mem::take(&mut self.arrived)
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }
}

impl AsyncRead for BoundedSocket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.arrived > MAX_BYTES_PER_MESSAGE {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many bytes without a message")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        this.arrived += (buffer.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BoundedSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_fails_once_too_much_arrived_without_a_message() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = BoundedSocket::new(listener.accept().await.unwrap().0);
        let sending = tokio::spawn(async move {
            // Ends with an error when the other end closes.
            while client.write_all(&[0; 4096]).await.is_ok() {}
        });
        let mut chunk = [0; 4096];
        for _ in 0..100 {
            server.read_exact(&mut chunk).await.unwrap();
            assert!((4096..8192).contains(&server.message_taken()));
        }
        let mut arrived = 0;
        let failure = loop {
            match server.read(&mut chunk).await {
                Ok(read) => arrived += read as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(failure.kind(), io::ErrorKind::InvalidData);
        assert!((MAX_BYTES_PER_MESSAGE..MAX_BYTES_PER_MESSAGE + 8192).contains(&arrived), "{arrived}");
        drop(server);
        sending.await.unwrap();
    }
}
