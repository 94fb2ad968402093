//! Stores what each peer used: its tests of the last hour, the bytes charged to it on each day, and for each running
//! session its leases (the bytes that it may move) and the bytes that it used so far.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::{EndpointId, SessionId};

use super::{Store, StoreError, signed, unsigned};
use crate::sessions::{Lease, RecordedUse};

/// How long tests are stored: an hour for the limit, and another hour in case the clock is set back.
const TESTS_KEPT: Duration = Duration::from_secs(2 * 3600);
/// For how many days charged bytes are stored. The limits need only those of the present day.
const USAGE_DAYS_KEPT: u32 = 31;

/// The leases of a session whose used bytes are not charged to its peer yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenLease {
    /// The id of the session.
    pub session: SessionId,
    /// The peer of the session.
    pub peer: EndpointId,
    /// The leased bytes by day (the number of days since 1970).
    pub leased: BTreeMap<u32, u64>,
    /// The recorded use of the session. `None` if the leases are from an earlier version of the reflector, which
    /// recorded no use.
    pub recorded: Option<RecordedUse>,
}

impl Store {
    /// Counts a granted session as a test of the peer. `unix_ms` is the time of the grant. Also removes tests that are
    /// too old at that time.
    pub async fn record_test(&self, session: SessionId, peer: EndpointId, unix_ms: u64) -> Result<(), StoreError> {
        let kept_ms = u64::try_from(TESTS_KEPT.as_millis()).unwrap_or(u64::MAX);
        let mut change = self.begin("counting a test").await?;
        let recorded = async {
            sqlx::query("DELETE FROM tests WHERE granted_unix_ms < $1")
                .bind(signed(unix_ms.saturating_sub(kept_ms)))
                .execute(&mut *change.work)
                .await?;
            sqlx::query("INSERT INTO tests (session, peer, granted_unix_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(&session.as_bytes()[..])
                .bind(&peer.as_bytes()[..])
                .bind(signed(unix_ms))
                .execute(&mut *change.work)
                .await
        };
        let recorded = recorded.await;
        self.conclude(change, recorded.map(drop)).await
    }

    /// Undoes [`Store::record_test`], because the grant was not sent.
    pub async fn forget_test(&self, session: SessionId) -> Result<(), StoreError> {
        let mut change = self.begin("taking back a test").await?;
        let forgotten = sqlx::query("DELETE FROM tests WHERE session = $1").bind(&session.as_bytes()[..]);
        let forgotten = forgotten.execute(&mut *change.work).await;
        self.conclude(change, forgotten.map(drop)).await
    }

    /// The tests that were granted at or after `unix_ms`: peer and time in milliseconds since 1970, oldest first.
    pub async fn tests_since(&self, unix_ms: u64) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT peer, granted_unix_ms FROM tests WHERE granted_unix_ms >= $1 ORDER BY granted_unix_ms, session",
        )
        .bind(signed(unix_ms))
        .fetch_all(&self.pool)
        .await
        .map_err(|why| self.failure("reading the tests", why))?;
        rows.into_iter().map(|(peer, at)| Ok((self.endpoint_id(&peer)?, unsigned(at)))).collect()
    }

    /// Adds a lease to the session, and writes how many bytes the session has used so far. The session may move the
    /// leased bytes only after this succeeds.
    pub async fn lease(
        &self,
        session: SessionId,
        peer: EndpointId,
        lease: Lease,
        recorded: RecordedUse,
    ) -> Result<(), StoreError> {
        let session = &session.as_bytes()[..];
        let mut change = self.begin("leasing bytes").await?;
        let leased = async {
            sqlx::query(
                "INSERT INTO leases (session, day, peer, bytes) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (session, day) DO UPDATE SET bytes = leases.bytes + excluded.bytes",
            )
            .bind(session)
            .bind(i64::from(lease.day))
            .bind(&peer.as_bytes()[..])
            .bind(signed(lease.bytes))
            .execute(&mut *change.work)
            .await?;
            sqlx::query(
                "INSERT INTO recorded_use (session, used, surge) VALUES ($1, $2, $3) \
                 ON CONFLICT (session) DO UPDATE SET used = excluded.used, surge = excluded.surge",
            )
            .bind(session)
            .bind(signed(recorded.used))
            .bind(signed(recorded.surge))
            .execute(&mut *change.work)
            .await
        };
        let leased = leased.await;
        self.conclude(change, leased.map(drop)).await
    }

    /// Charges a peer for the bytes that its session used, and deletes the leases of the session, in one transaction.
    /// `used_by_day` has pairs of a day (the number of days since 1970) and the bytes of that day.
    pub async fn settle(
        &self,
        session: SessionId,
        peer: EndpointId,
        used_by_day: &[(u32, u64)],
    ) -> Result<(), StoreError> {
        let session = &session.as_bytes()[..];
        let used = used_by_day.iter().filter(|(_, bytes)| *bytes > 0);
        let mut change = self.begin("charging bytes").await?;
        let settled = async {
            for (day, bytes) in used {
                sqlx::query(
                    "INSERT INTO usage (day, peer, bytes) VALUES ($1, $2, $3) \
                     ON CONFLICT (day, peer) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
                )
                .bind(i64::from(*day))
                .bind(&peer.as_bytes()[..])
                .bind(signed(*bytes))
                .execute(&mut *change.work)
                .await?;
                sqlx::query("DELETE FROM usage WHERE day < $1")
                    .bind(i64::from(day.saturating_sub(USAGE_DAYS_KEPT)))
                    .execute(&mut *change.work)
                    .await?;
            }
            sqlx::query("DELETE FROM recorded_use WHERE session = $1").bind(session).execute(&mut *change.work).await?;
            sqlx::query("DELETE FROM leases WHERE session = $1").bind(session).execute(&mut *change.work).await
        };
        let settled = settled.await;
        self.conclude(change, settled.map(drop)).await
    }

    /// Writes how many bytes the session has used. Does nothing for a session without a lease.
    pub async fn record_use(&self, session: SessionId, recorded: RecordedUse) -> Result<(), StoreError> {
        let mut change = self.begin("recording what a session used").await?;
        let written = sqlx::query(
            "UPDATE recorded_use SET used = $2, surge = $3 WHERE session = $1 AND (used <> $2 OR surge <> $3)",
        )
        .bind(&session.as_bytes()[..])
        .bind(signed(recorded.used))
        .bind(signed(recorded.surge))
        .execute(&mut *change.work)
        .await;
        self.conclude(change, written.map(drop)).await
    }

    /// The sessions whose leases are open. When the reflector starts, no session runs, so these are sessions that a
    /// crash ended.
    pub async fn open_leases(&self) -> Result<Vec<OpenLease>, StoreError> {
        type Row = (Vec<u8>, Vec<u8>, i64, i64, Option<i64>, Option<i64>);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT leases.session, peer, day, bytes, used, surge FROM leases \
             LEFT JOIN recorded_use ON recorded_use.session = leases.session ORDER BY leases.session, day",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|why| self.failure("reading the open leases", why))?;
        let mut open: Vec<OpenLease> = Vec::new();
        for (session, peer, day, bytes, used, surge) in rows {
            let session = session.try_into().map_err(|_| self.damaged("a session id is not 16 bytes long"))?;
            let session = SessionId::from_bytes(session);
            let day = u32::try_from(day).map_err(|_| self.damaged("a day is out of range"))?;
            if open.last().is_none_or(|last| last.session != session) {
                let recorded = used.zip(surge);
                let recorded =
                    recorded.map(|(used, surge)| RecordedUse { used: unsigned(used), surge: unsigned(surge) });
                open.push(OpenLease { session, peer: self.endpoint_id(&peer)?, leased: BTreeMap::new(), recorded });
            }
            if let Some(last) = open.last_mut() {
                last.leased.insert(day, unsigned(bytes));
            }
        }
        Ok(open)
    }

    /// The bytes that are charged to each peer on each day from `first` on (the number of days since 1970). Open leases
    /// are not included. Days after today are included: the clock may have been set back since.
    pub async fn usage_from(&self, first: u32) -> Result<Vec<(EndpointId, u32, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, u32, i64)> =
            sqlx::query_as("SELECT peer, day, bytes FROM usage WHERE day >= $1 ORDER BY day, peer")
                .bind(i64::from(first))
                .fetch_all(&self.pool)
                .await
                .map_err(|why| self.failure("reading the bytes of each day", why))?;
        rows.into_iter().map(|(peer, day, bytes)| Ok((self.endpoint_id(&peer)?, day, unsigned(bytes)))).collect()
    }
}
