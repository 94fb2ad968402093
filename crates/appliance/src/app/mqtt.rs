//! Reports the state of the line to an MQTT broker: keeps the connection, and sends what has changed. Does I/O:
//! sockets, timers.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::{self, QoS};
use rumqttc::{
    AsyncClient, Broker, ClientError, ConnectionError, Event, EventLoop, Incoming, LastWill, MqttOptions, Outgoing,
    PublishNotice, PublishNoticeError, PublishOptions, StateError, TlsConfiguration, Transport,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{self, ClientConfig};
use zeroize::Zeroizing;

use super::clocks::random;
use super::connection_words::{connection_words, io_words};
use super::run_updates::{RunLife, RunReport, RunUpdateListener};
use super::service::Service;
use super::web_client::system_roots;
use crate::export::broker::BrokerSettings;
use crate::export::home_assistant::{self, OFFLINE, ONLINE, Topics};
use crate::monitor::backoff::Backoff;

/// How long it may take to connect, including the TLS handshake and the broker's answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the broker may take to acknowledge a message.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// The keep-alive interval. If the broker receives no message for 1.5 times as long, it treats the connection as broken
/// and sends the last will.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The maximum number of messages without an acknowledgement. The default of the MQTT client is 65,535, for which the
/// client reserves 14 MB.
const MOST_IN_FLIGHT: u16 = 16;
/// The maximum number of messages that wait in the client's queue to be sent.
const MOST_WAITING: usize = 16;
/// How often the state is checked for changes if no event causes a check.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The minimum time between two checks of the state. It limits the load, because an unsteady line causes many events.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// How long each step of closing the connection may take.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the state of the line cannot be reported to the MQTT broker.
#[derive(Debug, thiserror::Error)]
enum BrokerFault {
    #[error("the password file {path} cannot be read: {source}")]
    Password { path: String, source: io::Error },
    #[error("cannot set up TLS: {0}")]
    Tls(io::Error),
    #[error("the broker did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent,
    #[error("the broker did not acknowledge a message within {} s", ACKNOWLEDGEMENT_TIMEOUT.as_secs())]
    NotAcknowledged,
    #[error("the broker did not accept a message: {0}")]
    NotTaken(PublishNoticeError),
    #[error("the broker sent an unexpected packet")]
    Unasked,
    #[error("{}", without_text(.0))]
    Connection(Box<ConnectionError>),
    #[error("the MQTT client has ended: {0}")]
    Client(Box<ClientError>),
}

/// Describes an error. Leaves out the broker's own text, because that text can repeat the password. Also leaves out the
/// names in the broker's certificate.
fn without_text(error: &ConnectionError) -> String {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            format!("the broker ended the connection: {reason_code:?}")
        }
        ConnectionError::MqttState(StateError::AuthError(_)) => "the broker refused the login".to_owned(),
        ConnectionError::NotConnAck(packet) => {
            format!("the broker began with {:?} instead of ConnAck", packet.packet_type())
        }
        ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::Io(error))) => io_words(error),
        ConnectionError::Tls(error) => connection_words(error).unwrap_or_else(|| "TLS failed".to_owned()),
        other => connection_words(other).unwrap_or_else(|| other.to_string()),
    }
}

/// The last change of the connection to the broker that was logged. It is kept so that each change is logged once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SaidOfBroker {
    Nothing,
    Connected,
    Lost,
}

/// The task that reports the state of the line to a broker.
struct BrokerReporter<'a> {
    service: &'a Service,
    settings: &'a BrokerSettings,
    topics: Topics,
    said: SaidOfBroker,
    backoff: Backoff,
}

/// The latest messages that the broker has acknowledged. They are kept so that only changed messages are sent.
#[derive(Default)]
struct SentMessages {
    state: Option<String>,
    discovery: Option<String>,
}

impl Service {
    /// Reports the state of the line to a broker, until [`Service::stop`]. Connects again whenever the connection
    /// fails.
    pub async fn report_to_broker(&self, settings: &BrokerSettings) {
        let id = self.status("").endpoint_id;
        let topics = Topics::new(&settings.topic_prefix, settings.discovery_prefix.as_ref(), &id);
        let (said, backoff) = (SaidOfBroker::Nothing, Backoff::default());
        let mut reporter = BrokerReporter { service: self, settings, topics, said, backoff };
        let mut stopping = self.stopping();
        while !*stopping.borrow_and_update() {
            if let Err(fault) = reporter.stay_connected(stopping.clone()).await {
                reporter.note_fault(&fault);
                let wait = reporter.backoff.failed(random());
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = stopping.wait_for(|wanted| *wanted) => {}
                }
            }
        }
    }
}

impl BrokerReporter<'_> {
    /// Keeps one connection, and sends changes over it. Returns without an error when the service is to stop.
    async fn stay_connected(&mut self, mut stopping: watch::Receiver<bool>) -> Result<(), BrokerFault> {
        let (client, mut events) = AsyncClient::builder(self.options()?).capacity(MOST_WAITING).build();
        tokio::select! {
            connected = timeout(CONNECT_TIMEOUT, connected(&mut events)) => {
                connected.map_err(|_| BrokerFault::Silent)??;
            }
            _ = stopping.wait_for(|wanted| *wanted) => return Ok(()),
        }
        let service = self.service;
        let told = async {
            let told = tokio::select! {
                told = self.tell(&client) => told,
                _ = stopping.wait_for(|wanted| *wanted) => Ok(()),
            };
            told?;
            // A broker that acknowledges nothing must not delay the stop of the service.
            timeout(END_TIMEOUT, self.take_leave(&client)).await.ok();
            // The last message is queued. `until_ended` sends it while this future waits.
            sleep(END_TIMEOUT).await;
            Ok(())
        };
        let ended = tokio::select! {
            ended = until_ended(&mut events) => ended,
            told = told => told,
        };
        // The broker closes the connection after the last message.
        if *service.stopping().borrow() { Ok(()) } else { ended }
    }

    fn options(&self) -> Result<MqttOptions, BrokerFault> {
        let BrokerSettings { url, password_file, .. } = self.settings;
        let mut options =
            MqttOptions::new(&self.topics.client, Broker::tcp(url.server.host.to_string(), url.server.port));
        options.set_keep_alive(u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX));
        options.set_outgoing_inflight_upper_limit(MOST_IN_FLIGHT);
        options.set_last_will(LastWill::new(&self.topics.availability, OFFLINE, QoS::AtLeastOnce, true, None));
        if let Some(user) = &url.user {
            let password = password_file.as_deref().map(password).transpose()?.unwrap_or_default();
            options.set_credentials(user, password.as_bytes().to_vec());
        }
        if url.is_tls {
            let config = tls_client().map_err(BrokerFault::Tls)?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))));
        }
        Ok(options)
    }

    /// Sends the state whenever it has changed. Returns only on an error.
    async fn tell(&mut self, client: &AsyncClient) -> Result<(), BrokerFault> {
        let mut changes = self.service.monitor_changes();
        let mut updates = self.service.updates().subscribe();
        let mut sent = SentMessages::default();
        // When the message about the availability is to be repeated; `None` before the first such message.
        let mut again = None;
        loop {
            changes.borrow_and_update();
            self.send_changed(client, &mut sent).await?;
            if again.is_none_or(|again| again <= Instant::now()) {
                // Sent last, so that the device is not shown as available before its values exist.
                self.send(client, &self.topics.availability.clone(), ONLINE).await?;
                // Counts as a success only if the connection lasts: a broker may acknowledge one message and then fail.
                if again.is_some() {
                    self.backoff.succeeded();
                }
                again = Some(Instant::now() + LOOK_INTERVAL);
            }
            let now = Instant::now();
            let next = now + SHORTEST_INTERVAL;
            tokio::select! {
                // Repeats the availability, because a broker can turn pings off. The acknowledgement shows that the
                // broker still answers.
                () = sleep_until(again.unwrap_or(now)) => {}
                _ = changes.changed() => {}
                () = until_run_ended(&mut updates) => updates = self.service.updates().subscribe(),
            }
            sleep_until(next).await;
        }
    }

    /// Publishes that the device is offline, and disconnects.
    async fn take_leave(&self, client: &AsyncClient) -> Result<(), BrokerFault> {
        publish(client, &self.topics.availability, OFFLINE).await?;
        client.disconnect_with_timeout(END_TIMEOUT).await.map_err(client_fault)
    }

    /// Sends a retained message, and waits until the broker has acknowledged it.
    async fn send(&mut self, client: &AsyncClient, topic: &str, message: &str) -> Result<(), BrokerFault> {
        let acknowledged = async {
            let notice = publish(client, topic, message).await?;
            notice.wait_completion_async().await.map_err(BrokerFault::NotTaken)
        };
        timeout(ACKNOWLEDGEMENT_TIMEOUT, acknowledged).await.map_err(|_| BrokerFault::NotAcknowledged)??;
        if self.said != SaidOfBroker::Connected {
            self.said = SaidOfBroker::Connected;
            tracing::info!(broker = %self.settings.url, "the MQTT broker is connected");
        }
        Ok(())
    }

    async fn send_changed(&mut self, client: &AsyncClient, sent: &mut SentMessages) -> Result<(), BrokerFault> {
        let line = self.service.line_snapshot().await;
        let state = home_assistant::state(&line).to_string();
        if sent.state.as_ref() != Some(&state) {
            self.send(client, &self.topics.state.clone(), &state).await?;
            sent.state = Some(state);
        }
        // If the store could not be read, the list of monitors is not known, so they are not described.
        if let (Some(topic), Some(_)) = (self.topics.discovery.clone(), &line.stored) {
            let described = home_assistant::discovery(&line, &self.topics, &self.settings.device_name).to_string();
            if sent.discovery.as_ref() != Some(&described) {
                self.send(client, &topic, &described).await?;
                sent.discovery = Some(described);
            }
        }
        Ok(())
    }

    fn note_fault(&mut self, fault: &BrokerFault) {
        let broker = &self.settings.url;
        match self.said {
            SaidOfBroker::Nothing => tracing::warn!(%broker, %fault, "cannot connect to the MQTT broker; trying again"),
            SaidOfBroker::Connected => {
                tracing::warn!(%broker, %fault, "the connection to the MQTT broker is lost; trying again");
            }
            SaidOfBroker::Lost => tracing::debug!(%broker, %fault, "the connection to the MQTT broker is still lost"),
        }
        self.said = SaidOfBroker::Lost;
    }
}

/// A client configuration for TLS 1.3 that trusts the certificate authorities of this host.
fn tls_client() -> io::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(system_roots()?).with_no_client_auth())
}

/// Reads the password from a file, without the line end after it.
fn password(path: &Path) -> Result<Zeroizing<String>, BrokerFault> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|source| BrokerFault::Password { path: path.display().to_string(), source })?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Waits until the broker has accepted the connection.
async fn connected(events: &mut EventLoop) -> Result<(), BrokerFault> {
    loop {
        if let Event::Incoming(Incoming::ConnAck(_)) = poll(events).await? {
            return Ok(());
        }
    }
}

/// Exchanges messages until the connection ends. Fails if the broker sends an unrequested message, because a broker
/// could send such messages without end.
async fn until_ended(events: &mut EventLoop) -> Result<(), BrokerFault> {
    let mut is_asked = false;
    loop {
        match poll(events).await? {
            Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
            Event::Outgoing(Outgoing::PingReq) => is_asked = true,
            Event::Incoming(Incoming::PingResp) if is_asked => is_asked = false,
            // The client itself rejects the acknowledgement of a message that was not sent.
            Event::Outgoing(_) | Event::Incoming(Incoming::PubAck(_)) => {}
            Event::Incoming(_) | Event::Auth(_) => return Err(BrokerFault::Unasked),
        }
    }
}

async fn poll(events: &mut EventLoop) -> Result<Event, BrokerFault> {
    events.poll().await.map_err(|error| BrokerFault::Connection(Box::new(error)))
}

/// Waits until a test has ended, or until `updates` has missed updates, which may include the end of a test.
async fn until_run_ended(updates: &mut RunUpdateListener) {
    while let Some(update) = updates.next().await {
        if matches!(update.report, RunReport::Life(RunLife::Ended { .. })) {
            return;
        }
    }
}

fn client_fault(error: ClientError) -> BrokerFault {
    BrokerFault::Client(Box::new(error))
}

/// Queues a retained message for sending.
async fn publish(client: &AsyncClient, topic: &str, message: &str) -> Result<PublishNotice, BrokerFault> {
    let options = PublishOptions::at_least_once().retained();
    client.publish_tracked(topic, message, options).await.map_err(client_fault)
}

#[cfg(test)]
mod tests {
    use rumqttc::TlsError;
    use tokio_rustls::rustls::CertificateError;
    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn the_words_of_an_error_repeat_no_text_of_the_broker() {
        let named = || {
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                expected: ServerName::try_from("broker.example").unwrap(),
                presented: vec!["DnsName(\"geheim.example\")".to_owned()],
            })
        };
        let inside = || io::Error::new(io::ErrorKind::InvalidData, named());
        let general = rustls::Error::General("geheim".to_owned());
        let words = "the server's certificate is not valid for this name";
        for (error, said) in [
            (ConnectionError::Tls(TlsError::Io(inside())), words),
            (ConnectionError::Tls(TlsError::TLS(named())), words),
            (ConnectionError::Io(inside()), words),
            (ConnectionError::MqttState(StateError::Io(inside())), words),
            (ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::Io(inside()))), words),
            (ConnectionError::Tls(TlsError::TLS(general)), "TLS failed"),
            (ConnectionError::Tls(TlsError::NoValidCertInChain), "TLS failed"),
            (ConnectionError::Io(io::ErrorKind::ConnectionRefused.into()), "connection refused"),
            (ConnectionError::MqttState(StateError::AuthError("geheim".to_owned())), "the broker refused the login"),
        ] {
            assert_eq!(BrokerFault::Connection(Box::new(error)).to_string(), said);
        }
    }
}
