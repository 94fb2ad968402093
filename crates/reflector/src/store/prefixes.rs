//! From where each peer authenticated.

use paramedic_link::EndpointId;

use super::{Store, StoreError, signed, unsigned};
use crate::connection_limiter::Prefix;
use crate::known_prefixes::Seen;

impl Store {
    /// From where each peer authenticated, and when it last did, in milliseconds since 1970.
    pub async fn known_prefixes(&self) -> Result<Vec<(EndpointId, Prefix, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT peer, prefix, seen_unix_ms FROM known_prefixes ORDER BY peer, prefix")
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the known prefixes", why))?;
        rows.into_iter()
            .map(|(peer, prefix, seen)| {
                let address = prefix.parse().map_err(|_| self.damaged("a known prefix is no address"))?;
                Ok((self.endpoint_id(&peer)?, Prefix::of(address), unsigned(seen)))
            })
            .collect()
    }

    /// Keeps from where a peer authenticated, and forgets what is to be forgotten of it.
    pub async fn note_prefix(&self, seen: &Seen) -> Result<(), StoreError> {
        let peer = &seen.peer.as_bytes()[..];
        let mut change = self.begin("keeping a known prefix").await?;
        let kept = async {
            for forgotten in &seen.forgotten {
                sqlx::query("DELETE FROM known_prefixes WHERE peer = $1 AND prefix = $2")
                    .bind(peer)
                    .bind(forgotten.address().to_string())
                    .execute(&mut *change.work)
                    .await?;
            }
            sqlx::query(
                "INSERT INTO known_prefixes (peer, prefix, seen_unix_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (peer, prefix) DO UPDATE SET seen_unix_ms = excluded.seen_unix_ms",
            )
            .bind(peer)
            .bind(seen.prefix.address().to_string())
            .bind(signed(seen.unix_ms))
            .execute(&mut *change.work)
            .await
        };
        let kept = kept.await;
        self.conclude(change, kept.map(drop)).await
    }

    /// Forgets from where `peer` authenticated.
    pub async fn forget_prefixes(&self, peer: EndpointId) -> Result<(), StoreError> {
        let mut change = self.begin("forgetting known prefixes").await?;
        let forgotten = forget_prefixes(&mut change.work, peer).await;
        self.conclude(change, forgotten).await
    }
}

pub(super) async fn forget_prefixes(work: &mut sqlx::SqliteConnection, peer: EndpointId) -> Result<(), sqlx::Error> {
    let forgotten = sqlx::query("DELETE FROM known_prefixes WHERE peer = $1").bind(&peer.as_bytes()[..]);
    forgotten.execute(work).await.map(drop)
}
