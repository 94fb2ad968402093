//! Delivers messages to web servers: to a webhook, or to a topic of ntfy. Does I/O: sockets.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for dates of servers")]

use std::time::Duration;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Uri};
use jiff::Timestamp;
use serde_json::json;

use super::fault::DeliveryFault;
use crate::alerts::backoff::http_failure;
use crate::alerts::channel::ChannelSecrets;
use crate::alerts::message::{AlertMessage, MessageKind, Urgency};
use crate::alerts::secret_text::SecretText;
use crate::app::web_client::{WebAnswer, WebClient, WebRequest};
use crate::monitor::http_url::HttpUrl;

/// The maximum length of the text in a message of ntfy, in bytes. An ntfy server turns a text above 4,096 bytes into a
/// file.
const MAX_NTFY_TEXT: usize = 3_900;

/// Posts the message as JSON to the URL of a webhook. A repeated delivery has the same `Idempotency-Key`.
pub(super) async fn post_webhook(
    secrets: &ChannelSecrets,
    message: &AlertMessage,
    limit: Duration,
) -> Result<(), DeliveryFault> {
    let url = secrets.url.as_ref().and_then(|url| HttpUrl::parse(url.expose()));
    let url = url.ok_or(DeliveryFault::SecretMissing)?;
    let key = HeaderValue::from_str(&message.id.to_string()).map_err(|_| DeliveryFault::SecretMissing)?;
    let headers = [(HeaderName::from_static("idempotency-key"), key)];
    let body = serde_json::to_vec(message).map_err(|error| DeliveryFault::Unreadable(error.to_string()))?;
    post(&url, secrets, headers.into_iter().collect(), body, limit).await
}

/// Publishes the message to a topic of ntfy (<https://docs.ntfy.sh/publish/#publish-as-json>). A repeated delivery has
/// the same sequence id, so that a phone replaces the first copy of the message.
pub(super) async fn publish_ntfy(
    (server, topic): (&HttpUrl, &str),
    secrets: &ChannelSecrets,
    message: &AlertMessage,
    limit: Duration,
) -> Result<(), DeliveryFault> {
    let body = ntfy_body(topic, message).to_string().into_bytes();
    post(server, secrets, HeaderMap::new(), body, limit).await
}

fn ntfy_body(topic: &str, message: &AlertMessage) -> serde_json::Value {
    let (priority, tag) = match (message.kind, message.urgency) {
        (MessageKind::Opened, Urgency::High) => (5, "rotating_light"),
        (MessageKind::Opened, Urgency::Normal) => (4, "warning"),
        (MessageKind::Opened, Urgency::Low) => (2, "information_source"),
        (MessageKind::Closed, _) => (3, "white_check_mark"),
        (MessageKind::Test, _) => (3, "test_tube"),
    };
    let end = message.text.floor_char_boundary(MAX_NTFY_TEXT);
    json!({
        "topic": topic,
        "title": message.title,
        "message": message.text.get(..end).unwrap_or_default(),
        "priority": priority,
        "tags": [tag],
        "sequence_id": message.id,
    })
}

async fn post(
    url: &HttpUrl,
    secrets: &ChannelSecrets,
    mut headers: HeaderMap,
    body: Vec<u8>,
    limit: Duration,
) -> Result<(), DeliveryFault> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(token) = &secrets.token {
        headers.insert(AUTHORIZATION, bearer(token)?);
    }
    let client = WebClient::open(url).map_err(DeliveryFault::Tls)?;
    let request = WebRequest { method: Method::POST, headers, body: body.into() };
    let answered = tokio::time::timeout(limit, client.send(request)).await;
    let answer = answered.map_err(|_| DeliveryFault::TimedOut(limit))??;
    judge(url, &answer)
}

fn bearer(token: &SecretText) -> Result<HeaderValue, DeliveryFault> {
    let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
    let mut value = value.map_err(|_| DeliveryFault::SecretMissing)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Fails unless the answer means that the server accepted the message.
fn judge(url: &HttpUrl, answer: &WebAnswer) -> Result<(), DeliveryFault> {
    let header = |name: HeaderName| answer.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let (true, Some(location)) = (answer.status.is_redirection(), header(LOCATION)) {
        return Err(DeliveryFault::Redirect { to: redirected_to(url, location) });
    }
    let Some(advice) = http_failure(answer.status.as_u16(), header(RETRY_AFTER), Timestamp::now()) else {
        return Ok(());
    };
    // The server's own text is left out, because it can repeat what was sent, such as a secret, in any form.
    Err(DeliveryFault::Status { status: answer.status.as_u16(), name: answer.status.canonical_reason(), advice })
}

/// Describes where a redirect of `url` leads. The text contains no part of `location`, because the server chose that.
fn redirected_to(url: &HttpUrl, location: &str) -> &'static str {
    let target = location.parse::<Uri>().ok();
    match target.as_ref().and_then(Uri::authority) {
        Some(other) if other.as_str() != url.authority() => "another host",
        Some(_) => "another URL of the same host",
        None => "another path of the same host",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageKind, urgency: Urgency) -> AlertMessage {
        AlertMessage {
            id: uuid::Uuid::from_u128(7),
            kind,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            title: "Größer".to_owned(),
            text: "ä".repeat(3_000),
            urgency,
            alert: None,
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_the_id_is_that_of_the_message() {
        let body = ntfy_body("pp", &message(MessageKind::Opened, Urgency::High));
        assert_eq!((&body["priority"], &body["tags"][0]), (&5.into(), &"rotating_light".into()));
        assert_eq!(body["sequence_id"], "00000000-0000-0000-0000-000000000007");
        assert_eq!(body["message"].as_str().unwrap().len(), MAX_NTFY_TEXT);
    }

    #[test]
    fn a_redirect_is_named_without_text_of_the_server() {
        let url = HttpUrl::parse("https://a.example/hook").unwrap();
        for (location, to) in [
            ("https://evil.example/steal?token=geheim", "another host"),
            ("https://ann:geheim@a.example/", "another host"),
            ("https://a.example/geheim", "another URL of the same host"),
            ("/login", "another path of the same host"),
            ("%%%", "another path of the same host"),
        ] {
            assert_eq!(redirected_to(&url, location), to, "{location}");
        }
    }
}
