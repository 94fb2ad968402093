//! The facts of the host, read at most once a second for all links.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use paramedic_host::version;
use paramedic_link::PeerText;
use paramedic_link::measurement::HostFacts;
use tokio::time::Instant;

/// How long the facts of the host are reused.
const FACTS_LIFETIME: Duration = Duration::from_secs(1);

/// Caches the facts of the host for a second. Reading them takes processor time, and every link may ask for them.
#[derive(Default)]
pub(super) struct FactsCache {
    read: tokio::sync::Mutex<HashMap<IpAddr, (Instant, HostFacts)>>,
}

impl FactsCache {
    /// The facts of the host, including those of the interface with the address `local`. `None` if the program is
    /// ending.
    pub(super) async fn facts(&self, local: IpAddr) -> Option<HostFacts> {
        // Concurrent requests wait for the same reading.
        let mut read = self.read.lock().await;
        read.retain(|_, (at, _)| at.elapsed() < FACTS_LIFETIME);
        if let Some((_, facts)) = read.get(&local) {
            return Some(facts.clone());
        }
        let facts = tokio::task::spawn_blocking(move || paramedic_engines::host_facts::read(Some(local))).await;
        let facts = HostFacts { version: PeerText::new(version::VERSION), ..facts.ok()? };
        read.insert(local, (Instant::now(), facts.clone()));
        Some(facts)
    }
}
