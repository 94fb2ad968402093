//! Stores the address prefixes from which each peer authenticated.

use std::collections::BTreeSet;

use paramedic_link::EndpointId;

use super::{Store, StoreError, signed, unsigned};
use crate::connection_limiter::Prefix;
use crate::known_prefixes::PeerPrefixes;

impl Store {
    /// Each prefix of each peer, and when the peer last authenticated from it, in milliseconds since 1970.
    pub async fn known_prefixes(&self) -> Result<Vec<(EndpointId, Prefix, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT peer, prefix, seen_unix_ms FROM known_prefixes ORDER BY peer, prefix")
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the known address prefixes", why))?;
        rows.into_iter()
            .map(|(peer, prefix, seen)| {
                let address = prefix.parse().map_err(|_| self.damaged("a known address prefix is not valid"))?;
                Ok((self.endpoint_id(&peer)?, Prefix::of(address), unsigned(seen)))
            })
            .collect()
    }

    /// Replaces the stored prefixes of these peers in one transaction. Stores none for a peer that is neither in the
    /// database nor in `authorized` (the peers in the configuration): such a peer was removed after the caller
    /// collected `peers`.
    pub async fn keep_prefixes(
        &self,
        peers: &[PeerPrefixes],
        authorized: &BTreeSet<EndpointId>,
    ) -> Result<(), StoreError> {
        let mut change = self.begin("storing known address prefixes").await?;
        let kept = async {
            for (peer, prefixes) in peers {
                forget_prefixes(&mut change.work, *peer).await?;
                if !authorized.contains(peer) && !is_paired(&mut change.work, *peer).await? {
                    continue;
                }
                for (prefix, seen) in prefixes {
                    sqlx::query("INSERT INTO known_prefixes (peer, prefix, seen_unix_ms) VALUES ($1, $2, $3)")
                        .bind(&peer.as_bytes()[..])
                        .bind(prefix.address().to_string())
                        .bind(signed(*seen))
                        .execute(&mut *change.work)
                        .await?;
                }
            }
            Ok(())
        };
        let kept = kept.await;
        self.conclude(change, kept).await
    }

    /// Removes the prefixes of `peer`.
    pub async fn forget_prefixes(&self, peer: EndpointId) -> Result<(), StoreError> {
        let mut change = self.begin("deleting known address prefixes").await?;
        let forgotten = forget_prefixes(&mut change.work, peer).await;
        self.conclude(change, forgotten).await
    }
}

pub(super) async fn forget_prefixes(work: &mut sqlx::SqliteConnection, peer: EndpointId) -> Result<(), sqlx::Error> {
    let forgotten = sqlx::query("DELETE FROM known_prefixes WHERE peer = $1").bind(&peer.as_bytes()[..]);
    forgotten.execute(work).await.map(drop)
}

async fn is_paired(work: &mut sqlx::SqliteConnection, peer: EndpointId) -> Result<bool, sqlx::Error> {
    let paired = sqlx::query("SELECT 1 FROM peers WHERE id = $1").bind(&peer.as_bytes()[..]);
    Ok(paired.fetch_optional(work).await?.is_some())
}
