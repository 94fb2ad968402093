//! Stores the paired reflectors of this appliance: their Endpoint IDs, names and addresses.

use std::str::FromStr;

use jiff::Timestamp;
use paramedic_link::{EndpointId, PeerText};

use super::pool::{StoreChange, in_change, on, rows};
use super::{ApplianceStore, StorageError, strange};
use crate::targets::{Host, HostPort};

/// A paired reflector of this appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reflector {
    /// The Endpoint ID of the reflector.
    pub endpoint_id: EndpointId,
    /// The name under which the reflector is saved. No two names are the same, ignoring case.
    pub name: PeerText,
    /// The address at which the reflector was paired.
    pub address: HostPort,
    /// When the reflector was paired, by this appliance's clock.
    pub paired_at: Timestamp,
}

impl Reflector {
    fn goes_by(&self, wanted: &str) -> bool {
        self.name.as_str().to_lowercase() == wanted.to_lowercase()
            || EndpointId::from_str(wanted).is_ok_and(|id| id == self.endpoint_id)
            || HostPort::from_str(wanted).is_ok_and(|target| target == self.address)
    }
}

/// A row of the table of reflectors.
type ReflectorRow = (String, String, String, i64);

impl ApplianceStore {
    /// Saves a reflector, and returns it as saved. A known reflector gets the new address and keeps its saved name. If
    /// the name of a new reflector is taken, a number is added to it. So a pairing that the reflector has already saved
    /// cannot fail because of a name.
    pub async fn add_reflector(&self, new: &Reflector) -> Result<Reflector, StorageError> {
        let fault = || self.fault("saving the pairing");
        // The transaction is immediate: a name that is found free must still be free when it is written.
        let mut work = self.pool.begin().await.map_err(fault())?;
        let known = all_reflectors(&mut work).await.map_err(fault())?;
        let name = match known.iter().find(|reflector| reflector.endpoint_id == new.endpoint_id) {
            Some(same) => same.name.clone(),
            None => free_name(new, &known),
        };
        let saved = Reflector { name, paired_at: in_microseconds(new.paired_at), ..new.clone() };
        in_change!(&mut work, |db| sqlx::query(
            "INSERT INTO reflectors (endpoint_id, name, address, paired_at_us) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (endpoint_id) DO UPDATE SET address = $3, paired_at_us = $4",
        )
        .bind(saved.endpoint_id.to_string())
        .bind(saved.name.as_str())
        .bind(saved.address.to_string())
        .bind(saved.paired_at.as_microsecond())
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(saved)
    }

    /// Every paired reflector, sorted by name.
    pub async fn reflectors(&self) -> Result<Vec<Reflector>, StorageError> {
        let fault = || self.fault("reading the paired reflectors");
        on!(self.pool, |db| sqlx::query_as::<_, ReflectorRow>(
            "SELECT endpoint_id, name, address, paired_at_us FROM reflectors ORDER BY lower(name), endpoint_id",
        )
        .fetch_all(db)
        .await)
        .map_err(fault())?
        .into_iter()
        .map(|row| reflector(row).map_err(fault()))
        .collect()
    }

    /// The only reflector with this name, Endpoint ID or address.
    pub async fn reflector(&self, wanted: &str) -> Result<Reflector, StorageError> {
        find_reflector(self.reflectors().await?, wanted)
    }

    /// Removes the reflector that `wanted` identifies, and returns it. Keeps the runs that were measured against the
    /// reflector.
    pub async fn remove_reflector(&self, wanted: &str) -> Result<Reflector, StorageError> {
        let reflector = self.reflector(wanted).await?;
        let fault = || self.fault("removing the pairing");
        let mut work = self.pool.begin().await.map_err(fault())?;
        for remove in
            ["DELETE FROM reflectors WHERE endpoint_id = $1", "DELETE FROM blocked_direct WHERE endpoint_id = $1"]
        {
            in_change!(&mut work, |db| sqlx::query(remove)
                .bind(reflector.endpoint_id.to_string())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        work.commit().await.map_err(fault())?;
        Ok(reflector)
    }
}

/// Every paired reflector, read within the transaction `work`.
pub(super) async fn all_reflectors(work: &mut StoreChange) -> Result<Vec<Reflector>, sqlx::Error> {
    let rows = in_change!(work, |db| sqlx::query_as::<_, ReflectorRow>(
        "SELECT endpoint_id, name, address, paired_at_us FROM reflectors"
    )
    .fetch_all(db)
    .await)?;
    rows.into_iter().map(reflector).collect()
}

/// Finds in `known` the only reflector with this name, Endpoint ID or address. No kind of match has priority, and two
/// matches are an error, because a reflector chooses its first name itself and could choose the address of another
/// reflector.
pub fn find_reflector(mut known: Vec<Reflector>, wanted: &str) -> Result<Reflector, StorageError> {
    let wanted = wanted.trim();
    known.retain(|reflector| reflector.goes_by(wanted));
    match known.len() {
        0 => Err(StorageError::NoSuchReflector { wanted: wanted.to_owned() }),
        1 => Ok(known.remove(0)),
        _ => {
            let names = known.iter().map(|reflector| reflector.name.to_string()).collect();
            Err(StorageError::AmbiguousReflector { wanted: wanted.to_owned(), names })
        }
    }
}

fn reflector((endpoint_id, name, address, paired_at_us): ReflectorRow) -> Result<Reflector, sqlx::Error> {
    Ok(Reflector {
        endpoint_id: endpoint_id.parse().map_err(strange)?,
        name: PeerText::new(&name),
        address: address.parse().map_err(strange)?,
        paired_at: Timestamp::from_microsecond(paired_at_us).map_err(strange)?,
    })
}

/// Cuts the time to the precision of the database, one microsecond.
fn in_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// The name for a new reflector: the name that it gives itself, or else its host, with a number if the name is taken.
fn free_name(new: &Reflector, known: &[Reflector]) -> PeerText {
    let wanted = match (&new.name, &new.address.host) {
        (name, _) if !name.is_empty() => name.to_string(),
        (_, Host::Name(host)) => host.clone(),
        (_, host) => host.to_string(),
    };
    let is_free = |name: &str| known.iter().all(|other| !other.name.as_str().eq_ignore_ascii_case(name));
    // Leaves room for the number within the limit of a `PeerText`.
    let short = wanted.chars().take(PeerText::MAX_CHARS - 12).collect::<String>();
    let numbered = (2..=known.len() + 2).map(|number| format!("{short}-{number}"));
    // There is one more candidate than there are names, so one of them is free.
    let name = [wanted].into_iter().chain(numbered).find(|name| is_free(name)).unwrap_or(short);
    PeerText::new(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::each_engine::{on_each_engine, on_each_place};

    fn new(key: u8, name: &str, address: &str) -> Reflector {
        Reflector {
            endpoint_id: EndpointId::from_bytes([key; 32]),
            name: name.into(),
            address: address.parse().unwrap(),
            paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn a_pairing_survives_a_restart() {
        on_each_place(async |place| {
            let history = place.open().await.unwrap();
            let saved = history.add_reflector(&new(1, "attic", "203.0.113.7")).await.unwrap();
            assert_eq!(saved, new(1, "attic", "203.0.113.7"));
            // The store is not closed, so this opens the database as after a kill right after the answer.
            let again = place.open().await.unwrap();
            assert_eq!(again.reflectors().await.unwrap(), [saved]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_reflector_is_found_by_name_address_and_endpoint_id() {
        on_each_engine(async |history| {
            let attic = history.add_reflector(&new(1, "Attic", "[2001:db8::7]")).await.unwrap();
            history.add_reflector(&new(2, "cellar", "cellar.lan:4001")).await.unwrap();
            for wanted in ["attic", " ATTIC ", "2001:db8:0::7", "[2001:db8::7]:4000", &attic.endpoint_id.to_string()] {
                assert_eq!(history.reflector(wanted).await.unwrap(), attic, "{wanted}");
            }
            assert_eq!(history.reflector("Cellar.lan:4001").await.unwrap().name.as_str(), "cellar");
            for wanted in ["cellar.lan", "att", "", "[2001:db8::7]:4001"] {
                assert!(
                    matches!(history.reflector(wanted).await, Err(StorageError::NoSuchReflector { .. })),
                    "{wanted}"
                );
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_name_equal_to_the_address_of_another_reflector_is_ambiguous() {
        on_each_engine(async |history| {
            history.add_reflector(&new(1, "attic", "203.0.113.7")).await.unwrap();
            history.add_reflector(&new(2, "203.0.113.7", "198.51.100.1")).await.unwrap();
            let error = history.reflector("203.0.113.7").await.unwrap_err();
            assert!(matches!(error, StorageError::AmbiguousReflector { .. }), "{error:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_repeated_pairing_keeps_the_name_and_updates_the_address() {
        on_each_engine(async |history| {
            history.add_reflector(&new(1, "attic", "203.0.113.7")).await.unwrap();
            history.rename_reflector("attic", &"roof".into()).await.unwrap();
            let again = history.add_reflector(&new(1, "attic", "203.0.113.8")).await.unwrap();
            assert_eq!((again.name.as_str(), again.address.to_string().as_str()), ("roof", "203.0.113.8:4000"));
            assert_eq!(history.reflectors().await.unwrap(), [again]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_pairing_with_a_taken_name_is_saved() {
        on_each_engine(async |history| {
            let long = "x".repeat(PeerText::MAX_CHARS);
            for (key, name) in [(1, "pi"), (2, "PI"), (3, "pi"), (4, ""), (5, ""), (6, &long), (7, &long)] {
                history.add_reflector(&new(key, name, "203.0.113.7")).await.unwrap();
            }
            let names = history.reflectors().await.unwrap().into_iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
            assert_eq!(names[..5], ["203.0.113.7", "203.0.113.7-2", "pi", "PI-2", "pi-3"]);
            assert_eq!(names.len(), 7);
        })
        .await;
    }

    #[tokio::test]
    async fn a_removed_reflector_is_not_found() {
        on_each_engine(async |history| {
            history.add_reflector(&new(1, "attic", "203.0.113.7")).await.unwrap();
            assert_eq!(history.remove_reflector("attic").await.unwrap().name.as_str(), "attic");
            assert!(matches!(history.remove_reflector("attic").await, Err(StorageError::NoSuchReflector { .. })));
        })
        .await;
    }
}
