//! The one-time login in iperf3's own terms: the key it is encrypted with, and the list of users that the server reads.
//! Text in, text out; no file is touched.

use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use data_encoding::{BASE64, HEXLOWER};
use paramedic_link::admission::{Login, LoginKey};
use zeroize::Zeroizing;

/// What a server decrypts logins with, and clients encrypt them with.
#[derive(Clone)]
pub(super) struct LoginPair {
    /// PKCS #8, PEM.
    pub(super) private_pem: Zeroizing<String>,
    pub(super) public: LoginKey,
}

/// The key pair of this process. One is enough: what it protects is good for one session alone, and making one takes as
/// long as a small machine takes for a whole handshake.
static PAIR: Mutex<Option<LoginPair>> = Mutex::new(None);

impl LoginPair {
    /// The key pair of this process, made when it is first wanted.
    pub(super) fn of_process() -> Result<Self, NoKey> {
        let mut pair = PAIR.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &*pair {
            return Ok(pair.clone());
        }
        // The size that every iperf3 with logins takes.
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| NoKey)?;
        let private: Pkcs8V1Der<'_> = key.as_der().map_err(|_| NoKey)?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| NoKey)?;
        let made = Self {
            private_pem: Zeroizing::new(pem("PRIVATE KEY", private.as_ref())),
            public: LoginKey::from_der(public.as_ref()).map_err(|_| NoKey)?,
        };
        Ok(pair.insert(made).clone())
    }
}

/// No key could be made.
#[derive(Debug, thiserror::Error)]
#[error("no RSA key could be made")]
pub(super) struct NoKey;

/// The public key as iperf3 reads it (`--rsa-public-key-path`).
pub(super) fn public_pem(key: &LoginKey) -> String {
    pem("PUBLIC KEY", key.der())
}

/// The file of `--authorized-users-path`: one user and the hash that iperf3 compares with.
pub(super) fn users(login: &Login) -> String {
    let salted = Zeroizing::new(format!("{{{}}}{}", login.user, *login.password));
    let hash = digest::digest(&digest::SHA256, salted.as_bytes());
    format!("{},{}\n", login.user, HEXLOWER.encode(hash.as_ref()))
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(BASE64.encode(der));
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use paramedic_link::SessionId;
    use paramedic_link::admission::SessionKeys;

    use super::*;

    #[test]
    fn a_key_is_written_as_openssl_writes_it() {
        let pair = LoginPair::of_process().unwrap();
        let public = public_pem(&pair.public);
        let lines = public.lines().collect::<Vec<_>>();
        assert_eq!((lines[0], lines[lines.len() - 1]), ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"));
        assert!(lines.iter().all(|line| line.len() <= 64) && public.ends_with('\n'));
        assert_eq!(BASE64.decode(lines[1..lines.len() - 1].concat().as_bytes()).unwrap(), pair.public.der());
        assert!(pair.private_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(LoginPair::of_process().unwrap().public, pair.public, "one a process");
    }

    #[test]
    fn the_list_of_users_holds_the_hash_that_iperf3_makes() {
        let keys = SessionKeys::derive(SessionId::from_bytes([1; 16]), Zeroizing::new([0; 32]));
        let login = Login { user: "mario".into(), password: Zeroizing::new("rossi".into()) };
        // printf '{mario}rossi' | sha256sum
        let known = "bf7a49a846d44b454a5d11e7acfaf13d138bbe0b7483aa3e050879700572709b";
        assert_eq!(users(&login), format!("mario,{known}\n"));
        assert!(!users(keys.login()).contains(&*keys.login().password));
    }
}
