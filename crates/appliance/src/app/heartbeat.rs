//! Requests a URL at intervals while the service works, so that a monitoring service at that URL notices when the
//! requests stop. Does I/O: sockets, timers.

use std::time::Duration;

use super::service::Service;
use super::web_client::{WebClient, WebRequest};
use crate::monitor::http_url::HttpUrl;

/// How long one heartbeat request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

impl Service {
    /// Requests `url` every `interval`, but only while the scheduler responds and the service is neither faulted nor
    /// stopping. Never returns.
    pub async fn send_heartbeats(&self, url: &HttpUrl, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The path is not logged, because it may be a secret of the heartbeat's owner.
        let server = url.origin();
        let mut client = None;
        let mut is_failing = false;
        loop {
            ticks.tick().await;
            self.answers().await;
            if !self.is_working() {
                continue;
            }
            match beat(&mut client, url).await {
                Ok(()) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(server, "the heartbeat arrives again");
                    }
                }
                // Warns only about the first of several failures in a row.
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(server, error, "the heartbeat does not arrive");
                }
                Err(error) => tracing::debug!(server, error, "the heartbeat does not arrive"),
            }
        }
    }
}

/// Sends one heartbeat request. A redirect is not followed, and counts as a failure.
async fn beat(client: &mut Option<WebClient>, url: &HttpUrl) -> Result<(), String> {
    let client = match client {
        Some(client) => client,
        None => client.insert(WebClient::open(url).map_err(|error| error.to_string())?),
    };
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, client.send(WebRequest::default())).await;
    match answered {
        Ok(Ok(answer)) if answer.status.is_success() => Ok(()),
        Ok(Ok(answer)) => Err(format!("the server answered {}", answer.status)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
    }
}
