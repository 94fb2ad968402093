//! Delivers messages as mail to a submission server. Does I/O: sockets.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use paramedic_engines::origin::Origin;
use paramedic_link::PeerText;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;

use super::fault::{DeliveryFault, MAX_REASON_CHARS};
use crate::alerts::channel::{ChannelSecrets, MailDestination, MailSecurity};
use crate::alerts::message::{AlertMessage, Urgency};
use crate::app::connection_words::connection_words;
use crate::app::web_client::{WebFault, system_roots};
use crate::reflector_client::{Route, race, resolve};
use crate::targets::HostPort;

/// The maximum number of bytes that a server may send in a session. With STARTTLS, all bytes of the TCP connection
/// count, including those of the TLS handshake. With TLS from the first byte, only the decrypted bytes count.
const MAX_SERVER_BYTES: usize = 256 * 1024;
/// In a line of an SMTP reply, the index of the byte after the three-digit code. A dash there means that more lines
/// follow.
const DASH_AT: usize = 3;
/// How long to wait for the answer to QUIT. At that point the server has already accepted the mail.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends the message as a mail. A repeated attempt uses the same `Message-ID`.
pub(super) async fn send(
    mail: &MailDestination,
    secrets: &ChannelSecrets,
    message: &AlertMessage,
    limit: Duration,
) -> Result<(), DeliveryFault> {
    let (envelope, bytes) = composed(mail, message)?;
    let submitted = tokio::time::timeout(limit, submit(mail, secrets, &envelope, &bytes)).await;
    match submitted.map_err(|_| DeliveryFault::TimedOut(limit))? {
        Ok(()) => Ok(()),
        Err(MailFault::Web(fault)) => Err(fault.into()),
        Err(MailFault::Tls(error)) => Err(DeliveryFault::Tls(error)),
        Err(MailFault::NoStarttls) => Err(DeliveryFault::NoStarttls),
        Err(MailFault::Smtp(error)) => {
            let reason = reason_of(&error);
            Err(if error.is_permanent() { DeliveryFault::MailRefused(reason) } else { DeliveryFault::Mail(reason) })
        }
    }
}

/// Why the server did not accept the mail. Leaves out the server's own text, because that text can repeat what was
/// sent, such as the password, even in an encoded form.
fn reason_of(error: &smtp::Error) -> String {
    match error.status().map(u16::from) {
        Some(code) => format!("the server answered {code} ({})", meaning_of(code)),
        None if error.is_timeout() => "the server did not answer in time".to_owned(),
        None if error.is_response() => "the server sent an answer that is not valid SMTP".to_owned(),
        None if error.is_client() => "the server does not offer what this channel needs, such as a login".to_owned(),
        None => connection_words(error).unwrap_or_else(|| "the connection failed".to_owned()),
    }
}

/// The meaning of an SMTP reply code (RFC 5321, section 4.2.3; RFC 4954, section 6).
fn meaning_of(code: u16) -> &'static str {
    match code {
        421 => "it closes the connection",
        432 | 534 => "it does not accept this way to log in",
        450 | 550 => "it refuses the mail, its sender or a recipient",
        452 | 552 => "its storage is full",
        454 => "it cannot check the login at present",
        500..=504 => "it does not know a command",
        530 => "it needs a login",
        535 => "it refuses the user or the password",
        551 | 553 => "it refuses an address",
        400..=499 => "it refuses the mail for now",
        _ => "it refuses the mail",
    }
}

/// Why a mail was not submitted to the server.
enum MailFault {
    Web(WebFault),
    Tls(io::Error),
    NoStarttls,
    Smtp(smtp::Error),
}

impl From<smtp::Error> for MailFault {
    fn from(error: smtp::Error) -> Self {
        Self::Smtp(error)
    }
}

/// Composes the mail for a message. Returns the mail with its envelope.
fn composed(mail: &MailDestination, message: &AlertMessage) -> Result<(Envelope, Vec<u8>), DeliveryFault> {
    let wrong = |error: &dyn std::fmt::Display| DeliveryFault::Mail(format!("cannot compose the mail: {error}"));
    let mailbox = |name: Option<&str>, address: &str| {
        let address = address.parse().map_err(|error: lettre::address::AddressError| wrong(&error))?;
        Ok::<_, DeliveryFault>(Mailbox::new(name.map(str::to_owned), address))
    };
    let domain = mail.from.rsplit('@').next().unwrap_or_default();
    let mut builder = Message::builder()
        .from(mailbox(Some("PacketParamedic"), &mail.from)?)
        .message_id(Some(format!("<{}@{domain}>", message.id)))
        .date(SystemTime::from(message.at))
        .subject(PeerText::harmless(&message.title, MAX_REASON_CHARS))
        .header(ContentType::TEXT_PLAIN);
    for address in &mail.to {
        builder = builder.to(mailbox(None, address)?);
    }
    let mut composed = builder.body(message.text.clone()).map_err(|error| wrong(&error))?;
    // RFC 3834: this header asks other programs not to answer automatically.
    let name = HeaderName::new_from_ascii_str("Auto-Submitted");
    composed.headers_mut().insert_raw(HeaderValue::new(name, "auto-generated".to_owned()));
    if message.urgency == Urgency::High {
        let name = HeaderName::new_from_ascii_str("X-Priority");
        composed.headers_mut().insert_raw(HeaderValue::new(name, "1".to_owned()));
    }
    Ok((composed.envelope().clone(), composed.formatted()))
}

async fn submit(
    mail: &MailDestination,
    secrets: &ChannelSecrets,
    envelope: &Envelope,
    bytes: &[u8],
) -> Result<(), MailFault> {
    let mut connection = open(mail).await?;
    if let (Some(user), Some(password)) = (&mail.user, &secrets.password) {
        let credentials = Credentials::new(user.clone(), password.expose().to_owned());
        connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
    }
    connection.send(envelope, bytes).await?;
    tokio::time::timeout(QUIT_TIMEOUT, connection.quit()).await.ok();
    Ok(())
}

/// Opens a connection to the mail server, protected in the way that the channel requires.
async fn open(mail: &MailDestination) -> Result<AsyncSmtpConnection, MailFault> {
    let connection = |error| MailFault::Web(WebFault::Connection(error));
    let target = HostPort::parse(&mail.server, mail.port).map_err(|error| connection(io::Error::other(error)))?;
    let addresses = resolve(&target, &Route::default()).await;
    let addresses = addresses.map_err(|error| MailFault::Web(WebFault::Resolution(error)))?;
    let (stream, peer) = race(addresses, &Origin::default()).await.map_err(connection)?;
    // Introduces itself by an address literal (RFC 5321, section 4.1.3), so that the mail server does not learn the
    // host name.
    let hello = ClientId::default();
    match mail.security {
        MailSecurity::None => {
            Ok(AsyncSmtpConnection::connect_with_transport(limited(stream, peer, None), &hello).await?)
        }
        MailSecurity::Starttls => {
            let mut opened =
                AsyncSmtpConnection::connect_with_transport(limited(stream, peer, Some(ClearDialogue::BEGIN)), &hello)
                    .await?;
            if !opened.can_starttls() {
                return Err(MailFault::NoStarttls);
            }
            opened.starttls(TlsParameters::new(mail.server.clone())?, &hello).await?;
            Ok(opened)
        }
        MailSecurity::Tls => {
            let name =
                ServerName::try_from(mail.server.clone()).map_err(|error| MailFault::Tls(io::Error::other(error)))?;
            let connector = connector().map_err(MailFault::Tls)?;
            let stream = connector.connect(name, stream).await.map_err(connection)?;
            Ok(AsyncSmtpConnection::connect_with_transport(limited(stream, peer, None), &hello).await?)
        }
    }
}

/// A connector for TLS 1.2 and 1.3, because not every mail server offers 1.3. Trusts the certificate authorities of
/// this host.
fn connector() -> io::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(system_roots()?)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

fn limited<S>(stream: S, peer: SocketAddr, clear: Option<ClearDialogue>) -> Box<LimitedStream<S>> {
    Box::new(LimitedStream { stream, peer, left: MAX_SERVER_BYTES, clear, is_broken: false })
}

/// Counts the server's answers before TLS: the greeting, and one answer to each command. An answer ends with the first
/// line whose code is not followed by a dash (RFC 5321, section 4.2.1). Text beyond these answers is an error, because
/// the SMTP client would treat it as received inside TLS (<https://nostarttls.secvuln.info>).
#[derive(Clone, Copy, Debug)]
struct ClearDialogue {
    /// The number of answers that the server may still send.
    due: usize,
    /// The number of bytes of the current line that have arrived so far.
    line: usize,
    has_dash: bool,
    is_last: bool,
}

impl ClearDialogue {
    /// The state before the server has sent its greeting.
    const BEGIN: Self = Self { due: 1, line: 0, has_dash: false, is_last: false };

    /// Takes the bytes that the server sent next. Returns whether any of them come after the last expected answer.
    fn goes_on_after_end(&mut self, new: &[u8]) -> bool {
        for byte in new {
            if self.due == 0 {
                return true;
            }
            self.has_dash |= self.line == DASH_AT && *byte == b'-';
            self.line += 1;
            if *byte == b'\n' {
                self.due -= usize::from(!self.has_dash);
                (self.line, self.has_dash) = (0, false);
            }
        }
        false
    }

    /// The state after the client has sent `bytes`; `None` if `bytes` begin TLS.
    fn after_sending(self, bytes: &[u8]) -> Option<Self> {
        let commands = bytes.iter().filter(|byte| **byte == b'\n').count();
        let next = Self { due: self.due.saturating_add(commands), is_last: bytes.starts_with(b"STARTTLS"), ..self };
        (!self.is_last).then_some(next)
    }
}

/// A connection to a mail server. It fails once the server has sent more than [`MAX_SERVER_BYTES`], because the SMTP
/// client keeps a whole answer in memory.
#[derive(Debug)]
struct LimitedStream<S> {
    stream: S,
    peer: SocketAddr,
    left: usize,
    /// The count of answers before TLS; `None` if STARTTLS is not used, or once TLS has begun.
    clear: Option<ClearDialogue>,
    /// Whether a check of the server's bytes has failed. Then reads and writes fail too, because otherwise the SMTP
    /// client would wait for an answer to its QUIT.
    is_broken: bool,
}

impl<S> LimitedStream<S> {
    /// Counts bytes that the server sent. Fails if there are too many, or if text before TLS answers no command.
    fn check(&mut self, new: &[u8]) -> io::Result<()> {
        let left =
            self.left.checked_sub(new.len()).ok_or_else(|| io::Error::other("the server sent too many bytes"))?;
        self.left = left;
        if self.clear.as_mut().is_some_and(|dialogue| dialogue.goes_on_after_end(new)) {
            return Err(io::Error::other("the server sent text before TLS that answers no command"));
        }
        Ok(())
    }

    fn check_whole(&self) -> io::Result<()> {
        if self.is_broken { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug> AsyncTokioStream for LimitedStream<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_whole()?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buf))?;
        let checked = self.check(buf.filled().get(before..).unwrap_or_default());
        self.is_broken = checked.is_err();
        Poll::Ready(checked)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_whole()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        let sent = bytes.get(..written).unwrap_or_default();
        self.clear = self.clear.and_then(|dialogue| dialogue.after_sending(sent));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::alerts::channel::{Destination, NewChannel};
    use crate::alerts::message::MessageKind;

    const LIMIT: Duration = Duration::from_secs(30);

    fn message() -> AlertMessage {
        AlertMessage {
            id: uuid::Uuid::from_u128(7),
            kind: MessageKind::Opened,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            title: "Größer\r\nBcc: x@y.z".to_owned(),
            text: "Grüße.\n.\nQUIT\n".to_owned(),
            urgency: Urgency::High,
            alert: None,
        }
    }

    /// A server that answers by `script`: each entry has the start of a line of the client, and the answer to such a
    /// line. Returns the port of the server, and the lines that it receives.
    fn server(script: &'static [(&'static str, &'static str)]) -> (u16, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, (sender, lines)) = (listener.local_addr().unwrap().port(), channel());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let answer = |line: &str| script.iter().find(|(begin, _)| line.starts_with(begin)).map(|(_, text)| *text);
            let mut is_data = false;
            let mut line = "CONNECT".to_owned();
            loop {
                // Writing fails if the client has closed the connection.
                let text = match is_data && line != "." {
                    true => None,
                    false => answer(&line),
                };
                if text.is_some_and(|text| stream.write_all(text.as_bytes()).is_err()) {
                    return;
                }
                is_data = (is_data && line != ".") || line == "DATA";
                line.clear();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                line.truncate(line.trim_end().len());
                sender.send(line.clone()).ok();
            }
        });
        (port, lines)
    }

    fn mail(port: u16, more: &str) -> (MailDestination, ChannelSecrets) {
        let json = format!(
            r#"{{"name": "a", "kind": "smtp", "server": "127.0.0.1", "port": {port}, "from": "pp@example.org",
                "to": ["ann@example.org", "bob@example.org"]{more}}}"#
        );
        let (channel, secrets) = serde_json::from_str::<NewChannel>(&json).unwrap().checked().unwrap();
        let Destination::Smtp(mail) = channel.destination.clone() else { panic!("{channel:?}") };
        (mail, secrets)
    }

    async fn sent(port: u16, more: &str, limit: Duration) -> Result<(), DeliveryFault> {
        let (mail, secrets) = mail(port, more);
        send(&mail, &secrets, &message(), limit).await
    }

    const PLAIN: &str = r#", "security": "none""#;
    const LOGIN: &str = r#", "user": "ann", "password": "geheim""#;

    #[tokio::test]
    async fn a_mail_is_submitted_with_a_stable_id_and_cannot_be_broken_out_of() {
        let (port, lines) = server(&[
            ("CONNECT", "220 mail\r\n"),
            ("EHLO", "250 mail\r\n"),
            (".", "250 queued\r\n"),
            ("DATA", "354 go\r\n"),
            ("QUIT", "221 bye\r\n"),
            ("", "250 ok\r\n"),
        ]);
        sent(port, PLAIN, LIMIT).await.unwrap();
        let lines = lines.iter().collect::<Vec<_>>();
        let has = |line: &str| lines.iter().filter(|own| own.as_str() == line).count();
        assert_eq!(has("EHLO [127.0.0.1]"), 1, "{lines:#?}");
        assert_eq!([has("RCPT TO:<ann@example.org>"), has("RCPT TO:<bob@example.org>")], [1, 1], "{lines:#?}");
        assert_eq!(has("Message-ID: <00000000-0000-0000-0000-000000000007@example.org>"), 1, "{lines:#?}");
        assert_eq!([has("Auto-Submitted: auto-generated"), has("X-Priority: 1")], [1, 1]);
        assert!(lines.iter().any(|line| line.starts_with("Subject: ")) && !lines.iter().any(|l| l.starts_with("Bcc")));
        assert_eq!((has("."), has("QUIT")), (1, 1), "the text is not the end of the mail: {lines:#?}");
    }

    #[tokio::test]
    async fn without_starttls_a_server_gets_neither_the_mail_nor_the_password() {
        let (port, lines) = server(&[("CONNECT", "220 mail\r\n"), ("EHLO", "250-mail\r\n250 AUTH PLAIN\r\n")]);
        let fault = sent(port, LOGIN, LIMIT).await.unwrap_err();
        assert!(matches!(fault, DeliveryFault::NoStarttls), "{fault}");
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["EHLO [127.0.0.1]"]);
    }

    #[tokio::test]
    async fn what_follows_the_answer_to_starttls_in_clear_ends_the_session() {
        for (port, lines) in [
            server(&[
                ("CONNECT", "220 mail\r\n"),
                ("EHLO", "250-mail\r\n250 STARTTLS\r\n"),
                ("STARTTLS", "220 go\r\n250-mail\r\n250 AUTH PLAIN\r\n"),
            ]),
            server(&[
                ("CONNECT", "220 mail\r\n"),
                ("EHLO", "250-mail\r\n250 STARTTLS\r\n"),
                ("STARTTLS", "220-go\r\n220 on\r\n250-mail\r\n250 AUTH PLAIN\r\n"),
            ]),
            // This server sends the answers to later commands before the client has sent these commands.
            server(&[
                ("CONNECT", "220 mail\r\n"),
                ("EHLO", "250-mail\r\n250 STARTTLS\r\n220 go\r\n250 AUTH PLAIN\r\n235 ok\r\n250 ok\r\n"),
            ]),
            server(&[("CONNECT", "220 mail\r\n250-mail\r\n250 STARTTLS\r\n220 go\r\n")]),
        ] {
            let fault = sent(port, LOGIN, LIMIT).await.unwrap_err().to_string();
            assert!(fault.contains("before TLS that answers no command"), "{fault}");
            assert!(!lines.iter().any(|line| line.contains("AUTH")));
        }
    }

    #[tokio::test]
    async fn the_answer_to_starttls_ends_with_its_last_line_however_it_arrives() {
        for (pieces, passes) in [
            (&["220 go\r\n"][..], true),
            (&["220-go\r\n220-on\r\n220 on\r\n"], true),
            (&["220-go\r\n", "220 on\r\n"], true),
            (&["22", "0-", "go\r", "\n220", " on", "\r\n"], true),
            (&["220\r\n"], true),
            (&["220 go\r\n2"], false),
            (&["220 go\r\n", "250 AUTH PLAIN\r\n"], false),
            (&["220-go\r\n2", "20 on\r\n250 AUTH PLAIN\r\n"], false),
            (&["220 -go\r\n", "220 on\r\n"], false),
        ] {
            let (client, mut peer) = tokio::io::duplex(1024);
            let peer_address = SocketAddr::from(([127, 0, 0, 1], 25));
            let mut client = limited(client, peer_address, Some(ClearDialogue { due: 0, ..ClearDialogue::BEGIN }));
            client.write_all(b"STARTTLS\r\n").await.unwrap();
            let mut is_read = Ok(0);
            for piece in pieces {
                peer.write_all(piece.as_bytes()).await.unwrap();
                is_read = client.read(&mut [0; 1024]).await;
            }
            assert_eq!(is_read.is_ok(), passes, "{pieces:?}: {is_read:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_refuses_or_floods_is_left() {
        // This server accepts the connection, but sends nothing.
        let (port, _lines) = server(&[]);
        let fault = sent(port, PLAIN, Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(fault, DeliveryFault::TimedOut(_)), "{fault}");
        let (port, _lines) = server(&[
            ("CONNECT", "220 mail\r\n"),
            ("EHLO", "250 mail\r\n"),
            ("MAIL", "250 ok\r\n"),
            ("RCPT", "550 5.1.1 no such user\r\n"),
            ("QUIT", "221 bye\r\n"),
        ]);
        let fault = sent(port, PLAIN, LIMIT).await.unwrap_err();
        assert!(
            matches!(&fault, DeliveryFault::MailRefused(text) if text == "the server answered 550 (it refuses the mail, its sender or a recipient)"),
            "{fault}"
        );
        let (port, _lines) = server(&[("CONNECT", "421 busy\r\n"), ("QUIT", "221 bye\r\n")]);
        let fault = sent(port, PLAIN, LIMIT).await.unwrap_err();
        assert!(matches!(&fault, DeliveryFault::Mail(text) if text.contains("421")), "{fault}");
        // This server sends a line that does not end.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let flood = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(&[b'a'; 65_536]).is_ok() {}
        });
        let fault = sent(port, PLAIN, LIMIT).await.unwrap_err().to_string();
        assert!(fault.contains("sent too many bytes"), "{fault}");
        flood.join().unwrap();
    }
}
