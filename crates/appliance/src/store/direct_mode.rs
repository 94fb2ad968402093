//! Stores for which reflectors a test found direct mode blocked. In direct mode, payload goes through the data ports of
//! the reflector and not inside TLS.

use std::collections::BTreeMap;

use jiff::Timestamp;
use paramedic_link::EndpointId;
use paramedic_link::test_spec::EngineId;

use super::pool::{on, rows};
use super::{ApplianceStore, StorageError, strange};

/// What a test found out: whether this device can reach the data ports of a reflector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectModeFinding {
    /// The Endpoint ID of the reflector.
    pub reflector: EndpointId,
    /// The engine of the test. A firewall may treat TCP and UDP differently.
    pub engine: EngineId,
    /// Whether the reflector's data ports are blocked.
    pub is_blocked: bool,
}

impl ApplianceStore {
    /// The reflectors for which a test with `engine` found direct mode blocked, each with the time of the latest such
    /// test.
    pub async fn blocked_direct(&self, engine: &EngineId) -> Result<BTreeMap<EndpointId, Timestamp>, StorageError> {
        let fault = || self.fault("reading the data modes");
        on!(self.pool, |db| sqlx::query_as::<_, (String, i64)>(
            "SELECT endpoint_id, found_at_us FROM blocked_direct WHERE engine = $1"
        )
        .bind(engine.as_str())
        .fetch_all(db)
        .await)
        .map_err(fault())?
        .into_iter()
        .map(|row| blocked(row).map_err(fault()))
        .collect()
    }

    /// Stores what a test found at the time `at`. If direct mode works, removes the stored finding that it was blocked.
    pub async fn note_direct_mode(&self, finding: &DirectModeFinding, at: Timestamp) -> Result<(), StorageError> {
        let reflector = finding.reflector.to_string();
        let engine = finding.engine.as_str();
        let noted = if finding.is_blocked {
            on!(self.pool, |db| sqlx::query(
                "INSERT INTO blocked_direct (endpoint_id, engine, found_at_us) VALUES ($1, $2, $3) \
                 ON CONFLICT (endpoint_id, engine) DO UPDATE SET found_at_us = $3",
            )
            .bind(reflector)
            .bind(engine)
            .bind(at.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        } else {
            on!(self.pool, |db| sqlx::query("DELETE FROM blocked_direct WHERE endpoint_id = $1 AND engine = $2")
                .bind(reflector)
                .bind(engine)
                .execute(db)
                .await
                .map(rows))
        };
        noted.map(drop).map_err(self.fault("saving the data mode"))
    }
}

fn blocked((endpoint_id, found_at_us): (String, i64)) -> Result<(EndpointId, Timestamp), sqlx::Error> {
    let found_at = Timestamp::from_microsecond(found_at_us).map_err(strange)?;
    Ok((endpoint_id.parse().map_err(strange)?, found_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::each_engine::on_each_engine;

    #[tokio::test]
    async fn a_blocked_direct_mode_is_kept_per_reflector_and_engine_until_it_works() {
        on_each_engine(async |store| {
            let [one, other] = [1, 2].map(|key| EndpointId::from_bytes([key; 32]));
            let [tcp, udp] = ["tcp", "udp"].map(|id| EngineId::try_from(id).unwrap());
            let finding = |reflector, engine: &EngineId, is_blocked| DirectModeFinding {
                reflector,
                engine: engine.clone(),
                is_blocked,
            };
            let [early, late] = ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00Z"].map(|text| text.parse().unwrap());
            for (finding, at) in [
                (finding(one, &tcp, true), early),
                (finding(one, &tcp, true), late),
                (finding(one, &udp, true), early),
                (finding(other, &tcp, true), early),
                (finding(other, &tcp, false), late),
            ] {
                store.note_direct_mode(&finding, at).await.unwrap();
            }
            assert_eq!(store.blocked_direct(&tcp).await.unwrap(), BTreeMap::from([(one, late)]));
            assert_eq!(store.blocked_direct(&udp).await.unwrap(), BTreeMap::from([(one, early)]));
            let pairing = crate::store::Reflector {
                endpoint_id: one,
                name: "attic".into(),
                address: "203.0.113.7".parse().unwrap(),
                paired_at: early,
            };
            store.add_reflector(&pairing).await.unwrap();
            store.remove_reflector("attic").await.unwrap();
            assert!(store.blocked_direct(&tcp).await.unwrap().is_empty());
        })
        .await;
    }
}
