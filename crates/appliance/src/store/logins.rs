//! The administrator's password, the logins with this password, and the link for setting it. Secrets are stored as
//! hashes.

use jiff::Timestamp;

use super::pool::{in_change, on, rows};
use super::{ApplianceStore, StorageError};

/// The administrator's password as stored (argon2id).
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct StoredPassword {
    /// The salt of the hash, in hexadecimal digits.
    pub salt: String,
    /// The hash of the password, in hexadecimal digits.
    pub hash: String,
    /// The memory that the computation of the hash uses, in KiB.
    pub memory_kib: i64,
    /// The number of passes over this memory.
    pub passes: i64,
}

impl ApplianceStore {
    /// The password of the administrator, if it is set.
    pub async fn admin_password(&self) -> Result<Option<StoredPassword>, StorageError> {
        on!(self.pool, |db| sqlx::query_as::<_, StoredPassword>(
            "SELECT salt, hash, memory_kib, passes FROM admin_password"
        )
        .fetch_optional(db)
        .await)
        .map_err(self.fault("reading the password"))
    }

    /// Sets the password, ends all logins, and makes every setup link invalid. If `link` (the hash of the secret of a
    /// setup link) is given, but no valid link has this hash, changes nothing and returns `false`.
    pub async fn set_admin_password(
        &self,
        password: &StoredPassword,
        link: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, StorageError> {
        let fault = || self.fault("saving the password");
        let mut work = self.pool.begin().await.map_err(fault())?;
        if let Some(link) = link {
            let used = in_change!(&mut work, |db| sqlx::query(
                "DELETE FROM setup_links WHERE hash = $1 AND expires_at_us > $2"
            )
            .bind(link)
            .bind(now.as_microsecond())
            .execute(db)
            .await
            .map(rows))
            .map_err(fault())?;
            if used == 0 {
                return Ok(false);
            }
        }
        for clear in ["DELETE FROM admin_password", "DELETE FROM logins", "DELETE FROM setup_links"] {
            in_change!(&mut work, |db| sqlx::query(clear).execute(db).await.map(rows)).map_err(fault())?;
        }
        in_change!(&mut work, |db| sqlx::query(
            "INSERT INTO admin_password (salt, hash, memory_kib, passes, set_at_us) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&password.salt)
        .bind(&password.hash)
        .bind(password.memory_kib)
        .bind(password.passes)
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(true)
    }

    /// Saves the hash of the secret of a new setup link. Earlier links become invalid.
    pub async fn set_setup_link(&self, hash: &str, expires_at: Timestamp) -> Result<(), StorageError> {
        let fault = || self.fault("saving the setup link");
        let mut work = self.pool.begin().await.map_err(fault())?;
        in_change!(&mut work, |db| sqlx::query("DELETE FROM setup_links").execute(db).await.map(rows))
            .map_err(fault())?;
        in_change!(&mut work, |db| sqlx::query("INSERT INTO setup_links (hash, expires_at_us) VALUES ($1, $2)")
            .bind(hash)
            .bind(expires_at.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        .map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    /// Whether a setup link with this hash is valid.
    pub async fn is_setup_link(&self, hash: &str, now: Timestamp) -> Result<bool, StorageError> {
        self.is_there("SELECT COUNT(*) FROM setup_links WHERE hash = $1 AND expires_at_us > $2", hash, now).await
    }

    /// Removes the logins that have expired, and saves a login with this hash. `checked` is the stored password with
    /// which the user's input was compared. If another password was stored since then, saves no login and returns
    /// `false`.
    pub async fn add_login(
        &self,
        hash: &str,
        checked: &StoredPassword,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StorageError> {
        let fault = || self.fault("saving the login");
        let mut work = self.pool.begin().await.map_err(fault())?;
        in_change!(&mut work, |db| sqlx::query("DELETE FROM logins WHERE expires_at_us <= $1")
            .bind(now.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        .map_err(fault())?;
        let added = in_change!(&mut work, |db| {
            sqlx::query(
            "INSERT INTO logins (hash, expires_at_us) SELECT $1, $2 FROM admin_password WHERE salt = $3 AND hash = $4"
        )
        .bind(hash)
        .bind(expires_at.as_microsecond())
        .bind(&checked.salt)
        .bind(&checked.hash)
        .execute(db)
        .await
        .map(rows)
        })
        .map_err(fault())?;
        work.commit().await.map_err(fault())?;
        Ok(added > 0)
    }

    /// Whether a login with this hash is valid.
    pub async fn is_login(&self, hash: &str, now: Timestamp) -> Result<bool, StorageError> {
        self.is_there("SELECT COUNT(*) FROM logins WHERE hash = $1 AND expires_at_us > $2", hash, now).await
    }

    /// Ends the login with this hash.
    pub async fn remove_login(&self, hash: &str) -> Result<(), StorageError> {
        let removed = on!(self.pool, |db| sqlx::query("DELETE FROM logins WHERE hash = $1")
            .bind(hash)
            .execute(db)
            .await
            .map(rows));
        removed.map(drop).map_err(self.fault("ending the login"))
    }

    async fn is_there(&self, query: &'static str, hash: &str, now: Timestamp) -> Result<bool, StorageError> {
        let now = now.as_microsecond();
        let count = on!(self.pool, |db| sqlx::query_scalar::<_, i64>(query).bind(hash).bind(now).fetch_one(db).await);
        count.map(|count| count > 0).map_err(self.fault("reading the logins"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::each_engine::on_each_engine;

    #[tokio::test]
    async fn a_setup_link_sets_one_password_in_its_time_and_ends_all_logins() {
        on_each_engine(async |store| {
            let at = |text: &str| text.parse::<Timestamp>().unwrap();
            let (now, later) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00Z"));
            let password =
                |hash: &str| StoredPassword { salt: "00".into(), hash: hash.into(), memory_kib: 8, passes: 1 };
            assert_eq!(store.admin_password().await.unwrap(), None);
            assert!(store.set_admin_password(&password("00"), None, now).await.unwrap());
            store.set_setup_link("old", later).await.unwrap();
            store.set_setup_link("link", later).await.unwrap();
            assert!(store.add_login("login", &password("00"), now, later).await.unwrap());
            assert!(!store.add_login("other", &password("01"), now, later).await.unwrap());
            for (link, time) in [("old", now), ("other", now), ("link", later)] {
                assert!(!store.is_setup_link(link, time).await.unwrap());
                assert!(!store.set_admin_password(&password("01"), Some(link), time).await.unwrap(), "{link}");
            }
            assert!(store.is_setup_link("link", now).await.unwrap() && store.is_login("login", now).await.unwrap());
            assert!(store.set_admin_password(&password("02"), Some("link"), now).await.unwrap());
            assert_eq!(store.admin_password().await.unwrap(), Some(password("02")));
            assert!(!store.is_login("login", now).await.unwrap());
            assert!(!store.set_admin_password(&password("03"), Some("link"), now).await.unwrap());
            assert!(store.set_admin_password(&password("04"), None, now).await.unwrap());
            assert_eq!(store.admin_password().await.unwrap(), Some(password("04")));
        })
        .await;
    }

    #[tokio::test]
    async fn a_login_ends_in_time_or_when_it_is_removed() {
        on_each_engine(async |store| {
            let at = |text: &str| text.parse::<Timestamp>().unwrap();
            let (now, later) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
            let password = StoredPassword { salt: "00".into(), hash: "01".into(), memory_kib: 8, passes: 1 };
            assert!(store.set_admin_password(&password, None, now).await.unwrap());
            assert!(store.add_login("a", &password, now, later).await.unwrap());
            assert!(store.add_login("b", &password, now, later).await.unwrap());
            store.remove_login("a").await.unwrap();
            assert!(!store.is_login("a", now).await.unwrap() && store.is_login("b", now).await.unwrap());
            assert!(!store.is_login("b", later).await.unwrap());
        })
        .await;
    }
}
