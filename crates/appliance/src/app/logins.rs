//! The administrator's login: the password, the logins, and the setup link with which the password is set. Hashes
//! passwords, and reads the clock.

#![expect(clippy::disallowed_methods, reason = "the shell that dates logins")]

use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::Appliance;
use super::secret::{self, SecretHash, SecretKind};
use crate::error::ApplianceError;
use crate::store::StoredPassword;

/// How long a login of the administrator lasts.
pub const LOGIN_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// How long a new setup link is valid.
const LINK_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The minimum and maximum length of the administrator's password, in characters.
const PASSWORD_CHARS: std::ops::RangeInclusive<usize> = 10..=200;
/// The memory for one password hash, in KiB. OWASP's password storage cheat sheet recommends at least this memory and
/// this number of [`PASSES`] for argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// The maximum memory in KiB and number of passes of a stored password. A stored password with higher values is not
/// used, because checking a login against it would cost too much.
const MAX_COST: (i64, i64) = (256 * 1024, 16);

/// Limits hashing to one password at a time, because each hash needs 19 MiB.
static HASHING: Semaphore = Semaphore::const_new(1);

/// A new link with which the administrator sets the password.
pub struct SetupLink {
    /// The secret that is part of the link.
    pub secret: String,
    /// The time until which the link is valid.
    pub expires_at: Timestamp,
}

impl Appliance {
    /// Whether the administrator's password is set.
    pub async fn has_password(&self) -> Result<bool, ApplianceError> {
        Ok(self.reading_store().await?.admin_password().await?.is_some())
    }

    /// Creates a setup link. Earlier setup links become invalid.
    pub async fn new_setup_link(&self) -> Result<SetupLink, ApplianceError> {
        let (secret, hash) = secret::new_secret(SecretKind::SetupLink)?;
        let expires_at = in_future(LINK_LIFETIME);
        self.store().await?.set_setup_link(hash.as_str(), expires_at).await?;
        Ok(SetupLink { secret, expires_at })
    }

    /// Whether `secret` is the secret of a valid setup link.
    pub async fn is_setup_link(&self, secret: &str) -> Result<bool, ApplianceError> {
        let Some(hash) = SecretHash::of(SecretKind::SetupLink, secret) else { return Ok(false) };
        Ok(self.reading_store().await?.is_setup_link(hash.as_str(), Timestamp::now()).await?)
    }

    /// Sets the administrator's password and ends all logins. `secret` must be that of a valid setup link, which then
    /// becomes invalid.
    pub async fn set_up(&self, secret: &str, password: Zeroizing<String>) -> Result<(), ApplianceError> {
        // Checks the link first, because hashing the password is costly.
        if !self.is_setup_link(secret).await? {
            return Err(ApplianceError::NoSuchSetupLink);
        }
        let hash = SecretHash::of(SecretKind::SetupLink, secret).ok_or(ApplianceError::NoSuchSetupLink)?;
        let stored = new_password(password).await?;
        match self.store().await?.set_admin_password(&stored, Some(hash.as_str()), Timestamp::now()).await? {
            true => Ok(()),
            false => Err(ApplianceError::NoSuchSetupLink),
        }
    }

    /// Sets the administrator's password and ends all logins. Does nothing if the password is the same as before.
    pub async fn set_password(&self, password: Zeroizing<String>) -> Result<(), ApplianceError> {
        if self.checked_password(password.clone()).await?.is_some() {
            return Ok(());
        }
        let stored = new_password(password).await?;
        self.store().await?.set_admin_password(&stored, None, Timestamp::now()).await?;
        Ok(())
    }

    /// Begins a login if the password is right. Returns the secret of the login; `None` if the password is wrong.
    pub async fn log_in(&self, password: Zeroizing<String>) -> Result<Option<String>, ApplianceError> {
        let Some(checked) = self.checked_password(password).await? else { return Ok(None) };
        self.begin_login(&checked).await
    }

    /// Begins a login with the checked password. Returns `None` and begins no login if the password was changed after
    /// the check.
    async fn begin_login(&self, checked: &StoredPassword) -> Result<Option<String>, ApplianceError> {
        let (secret, hash) = secret::new_secret(SecretKind::Login)?;
        let (now, expires_at) = (Timestamp::now(), in_future(LOGIN_LIFETIME));
        let is_added = self.store().await?.add_login(hash.as_str(), checked, now, expires_at).await?;
        Ok(is_added.then_some(secret))
    }

    /// Whether the login with this hash exists and is still valid.
    pub async fn is_login(&self, login: &SecretHash) -> Result<bool, ApplianceError> {
        Ok(self.reading_store().await?.is_login(login.as_str(), Timestamp::now()).await?)
    }

    /// Ends the login with this hash.
    pub async fn log_out(&self, login: &SecretHash) -> Result<(), ApplianceError> {
        Ok(self.store().await?.remove_login(login.as_str()).await?)
    }

    /// The stored password if it matches `password`; `None` if it does not, or if none is set.
    async fn checked_password(&self, password: Zeroizing<String>) -> Result<Option<StoredPassword>, ApplianceError> {
        let Some(stored) = self.reading_store().await?.admin_password().await? else { return Ok(None) };
        let unusable = || ApplianceError::Internal("the stored password is damaged".to_owned());
        let salt = HEXLOWER.decode(stored.salt.as_bytes()).map_err(|_| unusable())?;
        let expected = HEXLOWER.decode(stored.hash.as_bytes()).map_err(|_| unusable())?;
        if stored.memory_kib > MAX_COST.0 || stored.passes > MAX_COST.1 {
            return Err(unusable());
        }
        let cost = |number: i64| u32::try_from(number).map_err(|_| unusable());
        let found = hash(password, salt, cost(stored.memory_kib)?, cost(stored.passes)?).await?;
        Ok(aws_lc_rs::constant_time::verify_slices_are_equal(&found, &expected).is_ok().then_some(stored))
    }
}

async fn new_password(password: Zeroizing<String>) -> Result<StoredPassword, ApplianceError> {
    if !PASSWORD_CHARS.contains(&password.chars().count()) {
        return Err(ApplianceError::PasswordLength {
            shortest: *PASSWORD_CHARS.start(),
            longest: *PASSWORD_CHARS.end(),
        });
    }
    let salt = secret::random_bytes::<16>()?;
    let hash = hash(password, salt.to_vec(), MEMORY_KIB, PASSES).await?;
    Ok(StoredPassword {
        salt: HEXLOWER.encode(&salt),
        hash: HEXLOWER.encode(&hash),
        memory_kib: MEMORY_KIB.into(),
        passes: PASSES.into(),
    })
}

/// Computes the argon2id hash of a password.
async fn hash(
    password: Zeroizing<String>,
    salt: Vec<u8>,
    memory_kib: u32,
    passes: u32,
) -> Result<[u8; 32], ApplianceError> {
    let failed = |error: &dyn std::fmt::Display| ApplianceError::Internal(format!("cannot hash the password: {error}"));
    let turn = HASHING.acquire().await.map_err(|error| failed(&error))?;
    let hashed = tokio::task::spawn_blocking(move || {
        // If the client disconnects, the hash is still computed. The permit is held until then.
        let _turn = turn;
        let mut hash = [0; 32];
        let params = Params::new(memory_kib, passes, 1, Some(hash.len()))?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
            password.as_bytes(),
            &salt,
            &mut hash,
        )?;
        Ok::<_, argon2::Error>(hash)
    });
    let hashed = hashed.await.map_err(|error| failed(&error))?;
    hashed.map_err(|error| failed(&error))
}

fn in_future(time: Duration) -> Timestamp {
    Timestamp::now().checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::each_engine::devices;

    fn secret(text: &str) -> Zeroizing<String> {
        text.to_owned().into()
    }

    #[tokio::test]
    async fn the_password_that_a_link_set_begins_logins_until_it_is_changed() {
        for (_folder, appliance) in devices() {
            assert_eq!(appliance.log_in(secret("")).await.unwrap(), None);
            let link = appliance.new_setup_link().await.unwrap().secret;
            let short = appliance.set_up(&link, secret("123456789")).await;
            assert!(matches!(short, Err(ApplianceError::PasswordLength { .. })), "{short:?}");
            appliance.set_up(&link, secret("correct horse")).await.unwrap();
            let again = appliance.set_up(&link, secret("another horse")).await;
            assert!(matches!(again, Err(ApplianceError::NoSuchSetupLink)), "{again:?}");
            for wrong in ["", "correct hors", "Correct horse", "correct horse "] {
                assert_eq!(appliance.log_in(secret(wrong)).await.unwrap(), None, "{wrong}");
            }
            let login = appliance.log_in(secret("correct horse")).await.unwrap().unwrap();
            let login = SecretHash::of(SecretKind::Login, &login).unwrap();
            assert!(appliance.is_login(&login).await.unwrap());
            // Setting the same password again changes nothing. A different password ends the logins.
            appliance.set_password(secret("correct horse")).await.unwrap();
            assert!(appliance.is_login(&login).await.unwrap());
            appliance.set_password(secret("battery staple")).await.unwrap();
            assert!(!appliance.is_login(&login).await.unwrap());
            assert_eq!(appliance.log_in(secret("correct horse")).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_password_that_is_changed_while_it_is_checked_begins_no_login() {
        for (_folder, appliance) in devices() {
            appliance.set_password(secret("correct horse")).await.unwrap();
            let checked = appliance.checked_password(secret("correct horse")).await.unwrap().unwrap();
            appliance.set_password(secret("battery staple")).await.unwrap();
            assert_eq!(appliance.begin_login(&checked).await.unwrap(), None);
        }
    }
}
