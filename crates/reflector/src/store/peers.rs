//! Stores the paired appliances, and the audit lines of changes to them that must still be written to the audit log
//! (owed lines).

use paramedic_host::database::is_unique_violation;
use paramedic_link::{EndpointId, PeerText};
use sqlx::{Sqlite, Transaction};

use super::prefixes::forget_prefixes;
use super::{Store, StoreError, signed, unix_now, unsigned};
use crate::event::AuditEvent;

/// A paired appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct Peer {
    pub id: EndpointId,
    /// The name under which this reflector saved the appliance. No two peers have the same name.
    pub name: PeerText,
    /// How the appliance was paired: with a `code`, or by `hand` (`reflector peers add`).
    pub added_by: String,
    /// When the appliance was paired, in milliseconds since 1970.
    pub added_unix_ms: u64,
}

/// An owed line: the audit line of a committed change of the peers, which is possibly not in the audit log yet.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct OwedLine {
    pub id: i64,
    /// The number of the last acknowledged line of the main chain when the change was made. The owed line can only come
    /// after that line.
    pub after_seq: u64,
    pub event: AuditEvent,
}

impl Store {
    /// All peers, sorted by name.
    pub async fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        let rows: Vec<(Vec<u8>, String, String, i64)> =
            sqlx::query_as("SELECT id, name, added_by, added_unix_ms FROM peers ORDER BY name")
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the peers", why))?;
        rows.into_iter()
            .map(|(id, name, added_by, added)| {
                let name = PeerText::new(&name);
                Ok(Peer { id: self.endpoint_id(&id)?, name, added_by, added_unix_ms: unsigned(added) })
            })
            .collect()
    }

    /// Adds a peer. Returns `false` if the peer is already paired; it then keeps its earlier name. If another peer
    /// already has `name`, a number is added to it. If `name` is empty or is the text of an Endpoint ID, the peer is
    /// named `appliance`. `by` is `code` or `hand`.
    pub async fn add_peer(&self, id: EndpointId, name: &PeerText, by: &str) -> Result<bool, StoreError> {
        let mut change = self.begin("adding a peer").await?;
        let added = async {
            let known: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM peers WHERE id = $1")
                .bind(&id.as_bytes()[..])
                .fetch_optional(&mut *change.work)
                .await?;
            if known.is_some() {
                return Ok(false);
            }
            let taken: Vec<(String,)> = sqlx::query_as("SELECT name FROM peers").fetch_all(&mut *change.work).await?;
            let name = free_name(name, |name| taken.iter().any(|(other,)| other == name));
            sqlx::query("INSERT INTO peers (id, name, added_by, added_unix_ms) VALUES ($1, $2, $3, $4)")
                .bind(&id.as_bytes()[..])
                .bind(name.as_str())
                .bind(by)
                .bind(signed(unix_now()))
                .execute(&mut *change.work)
                .await?;
            owe(&mut change.work, &AuditEvent::PeerAdded { peer: id, name, by: by.to_owned() }).await?;
            Ok(true)
        };
        let added = added.await;
        self.conclude(change, added).await
    }

    /// Removes a peer. Returns `false` if there is no such peer. The tests and bytes that the peer used stay charged,
    /// in case it pairs again.
    pub async fn remove_peer(&self, id: EndpointId) -> Result<bool, StoreError> {
        let mut change = self.begin("removing a peer").await?;
        let removed = async {
            let removed = sqlx::query("DELETE FROM peers WHERE id = $1").bind(&id.as_bytes()[..]);
            let is_removed = removed.execute(&mut *change.work).await?.rows_affected() > 0;
            if is_removed {
                forget_prefixes(&mut change.work, id).await?;
                owe(&mut change.work, &AuditEvent::PeerRemoved { peer: id }).await?;
            }
            Ok(is_removed)
        };
        let removed = removed.await;
        self.conclude(change, removed).await
    }

    /// Renames a peer. Returns `false` if there is no such peer.
    pub async fn rename_peer(&self, id: EndpointId, name: &PeerText) -> Result<bool, StoreError> {
        if !is_name(name.as_str()) {
            return Err(StoreError::NoName);
        }
        let mut change = self.begin("renaming a peer").await?;
        let renamed = async {
            let renamed = sqlx::query("UPDATE peers SET name = $2 WHERE id = $1")
                .bind(&id.as_bytes()[..])
                .bind(name.as_str())
                .execute(&mut *change.work)
                .await?;
            let is_renamed = renamed.rows_affected() > 0;
            if is_renamed {
                owe(&mut change.work, &AuditEvent::PeerRenamed { peer: id, name: name.clone() }).await?;
            }
            Ok(is_renamed)
        };
        let renamed = renamed.await;
        match self.conclude(change, renamed).await {
            Err(StoreError::Failed { source, .. }) if is_unique_violation(&source) => {
                Err(StoreError::NameTaken(name.clone()))
            }
            other => other,
        }
    }

    /// The audit lines of committed changes that are possibly not in the audit log yet, oldest first.
    pub async fn owed_lines(&self) -> Result<Vec<OwedLine>, StoreError> {
        let rows: Vec<(i64, i64, String)> = sqlx::query_as("SELECT id, after_seq, event FROM outbox ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the audit lines that must still be written", why))?;
        rows.into_iter()
            .map(|(id, after_seq, event)| {
                let event = serde_json::from_str(&event).map_err(|why| self.damaged(&why.to_string()))?;
                Ok(OwedLine { id, after_seq: unsigned(after_seq), event })
            })
            .collect()
    }

    /// Records that these lines are in the audit log, so that they are no longer owed.
    pub async fn lines_written(&self, lines: &[OwedLine]) -> Result<(), StoreError> {
        let mut change = self.begin("recording that audit lines are written").await?;
        let noted = async {
            for line in lines {
                sqlx::query("DELETE FROM outbox WHERE id = $1").bind(line.id).execute(&mut *change.work).await?;
            }
            Ok(())
        };
        let noted = noted.await;
        self.conclude(change, noted).await
    }
}

/// Stores the audit line of a change in the transaction of the change. The line is written to the audit log later.
async fn owe(work: &mut Transaction<'static, Sqlite>, event: &AuditEvent) -> Result<(), sqlx::Error> {
    let event = serde_json::to_string(event).map_err(|why| sqlx::Error::Encode(Box::new(why)))?;
    sqlx::query(
        "INSERT INTO outbox (after_seq, event) \
         VALUES (COALESCE((SELECT seq FROM audit_chains WHERE chain = 'main'), 0), $1)",
    )
    .bind(event)
    .execute(&mut **work)
    .await?;
    Ok(())
}

/// Whether a peer may have this name. The text of an Endpoint ID is not a valid name, because it could be mistaken for
/// the id of another peer.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.parse::<EndpointId>().is_err()
}

/// The wanted name if it is free, otherwise the wanted name with a number that makes it free. If `wanted` is not a
/// valid name, `appliance` takes its place.
fn free_name(wanted: &PeerText, is_taken: impl Fn(&str) -> bool) -> PeerText {
    let wanted = if is_name(wanted.as_str()) { wanted.as_str() } else { "appliance" };
    // Leaves room for the number: a name that is too long is truncated.
    let stem = wanted.chars().take(PeerText::MAX_CHARS - 12).collect::<String>();
    let numbered = (2u32..).map(|number| format!("{stem} {number}"));
    let free = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !is_taken(name));
    free.map_or_else(|| PeerText::new(wanted), PeerText::from)
}
