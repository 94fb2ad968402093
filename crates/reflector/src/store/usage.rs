//! What each peer used up: tests of the hour, leases of running sessions, bytes of the day.

use std::time::Duration;

use paramedic_link::{EndpointId, SessionId};

use super::{Store, StoreError, signed, unsigned};

/// How long tests are kept: the hour that the limits cover, and another for a clock that is set back.
const TESTS_KEPT: Duration = Duration::from_secs(2 * 3600);
/// How many days of usage are kept; the limits cover one.
const USAGE_DAYS_KEPT: u32 = 31;

impl Store {
    /// Counts a granted session against its peer's tests an hour. `unix_ms` is when it was granted; tests that are
    /// long past then are forgotten.
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

    /// Takes back [`Store::record_test`]: the grant was never sent.
    pub async fn forget_test(&self, session: SessionId) -> Result<(), StoreError> {
        let mut change = self.begin("taking back a test").await?;
        let forgotten = sqlx::query("DELETE FROM tests WHERE session = $1").bind(&session.as_bytes()[..]);
        let forgotten = forgotten.execute(&mut *change.work).await;
        self.conclude(change, forgotten.map(drop)).await
    }

    /// The peers that were granted a session at or after `unix_ms`, and when, oldest first.
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

    /// Adds `bytes` to what the session may move on `day` (UTC days since 1970). The session may move them once this
    /// returns.
    pub async fn lease(&self, session: SessionId, peer: EndpointId, day: u32, bytes: u64) -> Result<(), StoreError> {
        let mut change = self.begin("leasing bytes").await?;
        let leased = sqlx::query(
            "INSERT INTO leases (session, day, peer, bytes) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (session, day) DO UPDATE SET bytes = leases.bytes + excluded.bytes",
        )
        .bind(&session.as_bytes()[..])
        .bind(i64::from(day))
        .bind(&peer.as_bytes()[..])
        .bind(signed(bytes))
        .execute(&mut *change.work)
        .await;
        self.conclude(change, leased.map(drop)).await
    }

    /// Ends the session's leases and charges the bytes that it used, by day, in one transaction.
    ///
    /// # Errors
    /// A session that used bytes and has neither a lease nor a test on record can't be charged to any peer.
    pub async fn settle(&self, session: SessionId, used_by_day: &[(u32, u64)]) -> Result<(), StoreError> {
        let session = &session.as_bytes()[..];
        let used = used_by_day.iter().filter(|(_, bytes)| *bytes > 0).collect::<Vec<_>>();
        let mut change = self.begin("charging bytes").await?;
        let settled = async {
            if !used.is_empty() {
                let peer: (Vec<u8>,) = sqlx::query_as(
                    "SELECT peer FROM leases WHERE session = $1 UNION SELECT peer FROM tests WHERE session = $1",
                )
                .bind(session)
                .fetch_one(&mut *change.work)
                .await?;
                for (day, bytes) in used {
                    sqlx::query(
                        "INSERT INTO usage (day, peer, bytes) VALUES ($1, $2, $3) \
                         ON CONFLICT (day, peer) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
                    )
                    .bind(i64::from(*day))
                    .bind(&peer.0[..])
                    .bind(signed(*bytes))
                    .execute(&mut *change.work)
                    .await?;
                    sqlx::query("DELETE FROM usage WHERE day < $1")
                        .bind(i64::from(day.saturating_sub(USAGE_DAYS_KEPT)))
                        .execute(&mut *change.work)
                        .await?;
                }
            }
            sqlx::query("DELETE FROM leases WHERE session = $1").bind(session).execute(&mut *change.work).await
        };
        let settled = settled.await;
        self.conclude(change, settled.map(drop)).await
    }

    /// Charges in full every lease that a crash left open. Returns the number of sessions and of bytes. Only for the
    /// start of the reflector, when no session runs.
    pub async fn charge_open_leases(&self) -> Result<(u64, u64), StoreError> {
        let mut change = self.begin("charging the leases of a crash").await?;
        let charged = async {
            let open: (i64, i64) =
                sqlx::query_as("SELECT COUNT(DISTINCT session), COALESCE(SUM(bytes), 0) FROM leases")
                    .fetch_one(&mut *change.work)
                    .await?;
            // "WHERE true" keeps SQLite from reading ON CONFLICT as a join's condition (its documentation of UPSERT).
            sqlx::query(
                "INSERT INTO usage (day, peer, bytes) \
                 SELECT day, peer, SUM(bytes) FROM leases WHERE true GROUP BY day, peer \
                 ON CONFLICT (day, peer) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
            )
            .execute(&mut *change.work)
            .await?;
            sqlx::query("DELETE FROM leases").execute(&mut *change.work).await?;
            Ok(open)
        };
        let charged = charged.await;
        let (sessions, bytes) = self.conclude(change, charged).await?;
        Ok((unsigned(sessions), unsigned(bytes)))
    }

    /// What each peer used on `day` (UTC days since 1970), open leases not included.
    pub async fn usage(&self, day: u32) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as("SELECT peer, bytes FROM usage WHERE day = $1 ORDER BY peer")
            .bind(i64::from(day))
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the day's bytes", why))?;
        rows.into_iter().map(|(peer, bytes)| Ok((self.endpoint_id(&peer)?, unsigned(bytes)))).collect()
    }
}
