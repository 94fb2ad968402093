//! Renames reflectors, and updates the targets of the monitors that name them.

use paramedic_host::database::is_unique_violation;
use paramedic_link::{EndpointId, PeerText};

use super::monitors::{all_monitors, target_after};
use super::pool::{StoreChange, in_change, rows};
use super::reflectors::{Reflector, all_reflectors, find_reflector};
use super::{ApplianceStore, StorageError};

/// Why reflectors are not renamed.
pub(super) enum RenameFault {
    /// Another reflector has this name.
    Taken(PeerText),
    /// The database reported an error.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for RenameFault {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl ApplianceStore {
    /// Renames the reflector that `wanted` identifies, and returns it with the new name. Monitors of the reflector
    /// continue to probe it.
    pub async fn rename_reflector(&self, wanted: &str, name: &PeerText) -> Result<Reflector, StorageError> {
        if name.is_empty() {
            return Err(StorageError::NoName);
        }
        let fault = || self.fault("saving the name");
        // Renames in one transaction, so that a pairing at the same time cannot take the same name.
        let mut work = self.pool.begin().await.map_err(fault())?;
        let reflector = find_reflector(all_reflectors(&mut work).await.map_err(fault())?, wanted)?;
        match rename(&mut work, &[(reflector.endpoint_id, name.clone())]).await {
            Ok(()) => work.commit().await.map_err(fault())?,
            Err(RenameFault::Taken(name)) => {
                work.rollback().await.map_err(fault())?;
                return Err(StorageError::NameTaken { name: name.to_string() });
            }
            Err(RenameFault::Database(error)) => return Err(fault()(error)),
        }
        Ok(Reflector { name: name.clone(), ..reflector })
    }
}

/// Gives the reflectors these names, all at once, so that two reflectors can exchange their names.
pub(super) async fn rename(work: &mut StoreChange, names: &[(EndpointId, PeerText)]) -> Result<(), RenameFault> {
    if names.is_empty() {
        return Ok(());
    }
    let before = all_reflectors(work).await?;
    // Names are unique, so each reflector is first named by its Endpoint ID, which no other reflector has as its name.
    for (id, _) in names {
        in_change!(&mut *work, |db| sqlx::query("UPDATE reflectors SET name = $1 WHERE endpoint_id = $1")
            .bind(id.to_string())
            .execute(db)
            .await
            .map(rows))?;
    }
    for (id, name) in names {
        let renamed =
            in_change!(&mut *work, |db| sqlx::query("UPDATE reflectors SET name = $2 WHERE endpoint_id = $1")
                .bind(id.to_string())
                .bind(name.as_str())
                .execute(db)
                .await
                .map(rows));
        renamed.map_err(|error| match is_unique_violation(&error) {
            true => RenameFault::Taken(name.clone()),
            false => RenameFault::Database(error),
        })?;
    }
    let after = all_reflectors(work).await?;
    for stored in all_monitors(work).await?.into_iter().filter(|row| !row.removed) {
        let stored = stored.stored()?;
        let target = target_after(&stored, &before, &after);
        if target != stored.monitor.target {
            in_change!(&mut *work, |db| sqlx::query("UPDATE monitors SET target = $2 WHERE number = $1")
                .bind(stored.number)
                .bind(target.to_string())
                .execute(db)
                .await
                .map(rows))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::monitor::Monitor;
    use crate::store::each_engine::on_each_engine;

    fn new(key: u8, name: &str) -> Reflector {
        Reflector {
            endpoint_id: EndpointId::from_bytes([key; 32]),
            name: name.into(),
            address: format!("203.0.113.{key}").parse().unwrap(),
            paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn a_rename_to_a_taken_name_changes_nothing() {
        on_each_engine(async |store| {
            store.add_reflector(&new(1, "attic")).await.unwrap();
            store.add_reflector(&new(2, "cellar")).await.unwrap();
            let error = store.rename_reflector("cellar", &"Attic".into()).await.unwrap_err();
            assert!(matches!(error, StorageError::NameTaken { .. }), "{error:?}");
            assert!(matches!(store.rename_reflector("cellar", &"\u{7}".into()).await, Err(StorageError::NoName)));
            assert_eq!(store.rename_reflector("attic", &"Attic".into()).await.unwrap().name.as_str(), "Attic");
            assert!(store.reflector("cellar").await.is_ok());
        })
        .await;
    }

    #[tokio::test]
    async fn the_monitors_of_a_renamed_reflector_probe_it_by_its_new_name() {
        on_each_engine(async |store| {
            let (attic, cellar) = (new(1, "attic"), new(2, "cellar"));
            store.add_reflector(&attic).await.unwrap();
            store.add_reflector(&cellar).await.unwrap();
            let now = Timestamp::UNIX_EPOCH;
            let monitor = |name: &str, target: &str| Monitor::new(name, target.parse().unwrap(), None);
            let of_service = (monitor("attic", "reflector:attic"), Some(attic.endpoint_id.to_string()));
            store.ensure_monitors("PP-0", &[of_service], now).await.unwrap();
            let by_id = format!("reflector:{}", attic.endpoint_id);
            for (name, target) in [("slow", "reflector:Attic"), ("other", "reflector:cellar"), ("by_id", &by_id)] {
                store.add_monitor("PP-0", &monitor(name, target), now).await.unwrap();
            }
            store.rename_reflector("attic", &"roof".into()).await.unwrap();
            let targets = async || {
                let all = store.monitors().await.unwrap().into_iter();
                all.map(|stored| (stored.monitor.name, stored.monitor.target.to_string())).collect::<Vec<_>>()
            };
            let row = |name: &str, target: &str| (name.to_owned(), target.to_owned());
            let (id, other) = (row("by_id", &by_id), row("other", "reflector:cellar"));
            let roof = [row("attic", "reflector:roof"), id.clone(), other, row("slow", "reflector:roof")];
            assert_eq!(targets().await, roof);
            // The two reflectors exchange their names.
            let mut work = store.pool.begin().await.unwrap();
            let names = [(attic.endpoint_id, "cellar".into()), (cellar.endpoint_id, "roof".into())];
            assert!(rename(&mut work, &names).await.is_ok());
            work.commit().await.unwrap();
            let exchanged =
                [row("attic", "reflector:cellar"), id, row("other", "reflector:roof"), row("slow", "reflector:cellar")];
            assert_eq!(targets().await, exchanged);
        })
        .await;
    }
}
