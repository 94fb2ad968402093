//! The one-time login of a session: the user, the password, the key that encrypts the login, and its padding. Also
//! writes these in the forms that iperf3 reads. Accesses no file.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use data_encoding::{BASE64, HEXLOWER};
use paramedic_link::PeerText;
use paramedic_link::admission::SessionKeys;
use paramedic_link::engine_terms::EngineTerms;
use zeroize::Zeroizing;

/// A user name and a password that are valid for one session. Both ends derive them from the session's keys. Only
/// iperf3 sends them, and it encrypts them.
#[derive(Clone)]
pub(super) struct SessionLogin {
    /// The user name: lower-case letters and digits.
    pub(super) user: String,
    /// The password: 128 bits in hexadecimal digits.
    pub(super) password: Zeroizing<String>,
}

impl SessionLogin {
    /// The login of the session with these keys (docs/protocol.md, "Keys of a session").
    pub(super) fn of(keys: &SessionKeys) -> Self {
        Self {
            user: format!("s{}", HEXLOWER.encode(&keys.session().as_bytes()[8..])),
            password: Zeroizing::new(HEXLOWER.encode(keys.engine_secret())),
        }
    }
}

impl fmt::Debug for SessionLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionLogin(of {})", self.user)
    }
}

/// The padding of a login before encryption. Each version of iperf3 supports one padding or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginPadding {
    /// PKCS #1 v1.5 (RFC 8017, section 7.2).
    Pkcs1,
    /// OAEP (RFC 8017, section 7.1).
    Oaep,
}

impl LoginPadding {
    /// The name of the padding on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pkcs1 => "pkcs1",
            Self::Oaep => "oaep",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Pkcs1, Self::Oaep].into_iter().find(|padding| padding.name() == name)
    }

    /// The paddings that a request's `engine_support` lists, without names that only newer versions define. An empty
    /// list means PKCS #1.
    pub(super) fn supported(engine_support: &[PeerText]) -> impl Iterator<Item = Self> {
        let default = engine_support.is_empty().then_some(Self::Pkcs1);
        engine_support.iter().filter_map(|name| Self::from_name(name.as_str())).chain(default)
    }
}

/// The parameters with which the appliance's iperf3 encrypts a session's login. The reflector sends them as the
/// engine's terms in the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoginTerms {
    pub(super) key: LoginKey,
    pub(super) padding: LoginPadding,
}

/// The names of the engine terms that hold the key and the padding.
const KEY: &str = "key";
const PADDING: &str = "padding";

impl LoginTerms {
    pub(super) fn to_engine(&self) -> EngineTerms {
        let entries = [(KEY, BASE64.encode(&self.key.0)), (PADDING, self.padding.name().to_owned())];
        EngineTerms::new(entries.map(|(name, text)| (name.to_owned(), text)))
    }

    /// Reads the parameters from the terms. `None` if one is missing or invalid.
    pub(super) fn from_engine(terms: &EngineTerms) -> Option<Self> {
        let der = BASE64.decode(terms.text(KEY)?.as_bytes()).ok()?;
        Some(Self { key: LoginKey::from_der(&der)?, padding: LoginPadding::from_name(terms.text(PADDING)?)? })
    }
}

/// The public key that encrypts a login: an X.509 `SubjectPublicKeyInfo` in DER. Only its length is checked, because
/// iperf3 validates the rest.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct LoginKey(Vec<u8>);

impl LoginKey {
    /// The maximum length of a key in DER, in bytes: enough for RSA with 4,096 bits.
    const MAX_LEN: usize = 768;

    fn from_der(der: &[u8]) -> Option<Self> {
        (!der.is_empty() && der.len() <= Self::MAX_LEN).then(|| Self(der.to_owned()))
    }

    /// The key in the form that iperf3 reads (`--rsa-public-key-path`).
    pub(super) fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.0)
    }
}

impl fmt::Debug for LoginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoginKey({} bytes)", self.0.len())
    }
}

/// The RSA key pair with which logins are encrypted (public key) and decrypted (private key).
#[derive(Clone)]
pub(super) struct LoginPair {
    /// The private key as PKCS #8 in PEM.
    pub(super) private_pem: Zeroizing<String>,
    pub(super) public: LoginKey,
}

/// The key pair of this process. One pair is enough, because each login is valid for one session only. The pair is
/// generated only once, because on a small machine generating it takes as long as a TLS handshake.
static PAIR: Mutex<Option<LoginPair>> = Mutex::new(None);

impl LoginPair {
    /// The key pair of this process, generated at first use.
    pub(super) fn of_process() -> Result<Self, NoKey> {
        let mut pair = PAIR.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &*pair {
            return Ok(pair.clone());
        }
        // Every iperf3 with logins supports this size.
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| NoKey)?;
        let private: Pkcs8V1Der<'_> = key.as_der().map_err(|_| NoKey)?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| NoKey)?;
        let made = Self {
            private_pem: Zeroizing::new(pem("PRIVATE KEY", private.as_ref())),
            public: LoginKey::from_der(public.as_ref()).ok_or(NoKey)?,
        };
        Ok(pair.insert(made).clone())
    }
}

/// The RSA key could not be generated.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate an RSA key")]
pub(super) struct NoKey;

/// The content of the file for `--authorized-users-path`: the user and the hash of the password.
pub(super) fn users(login: &SessionLogin) -> String {
    let salted = Zeroizing::new(format!("{{{}}}{}", login.user, *login.password));
    let hash = digest::digest(&digest::SHA256, salted.as_bytes());
    format!("{},{}\n", login.user, HEXLOWER.encode(hash.as_ref()))
}

/// Encodes `der` as PEM (RFC 7468).
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

    use super::*;

    #[test]
    fn a_key_is_written_as_openssl_writes_it() {
        let pair = LoginPair::of_process().unwrap();
        let public = pair.public.pem();
        let lines = public.lines().collect::<Vec<_>>();
        assert_eq!((lines[0], lines[lines.len() - 1]), ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"));
        assert!(lines.iter().all(|line| line.len() <= 64) && public.ends_with('\n'));
        assert_eq!(BASE64.decode(lines[1..lines.len() - 1].concat().as_bytes()).unwrap(), pair.public.0);
        assert!(pair.private_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(LoginPair::of_process().unwrap().public, pair.public, "one per process");
    }

    #[test]
    fn the_list_of_users_contains_the_hash_that_iperf3_computes() {
        let login = SessionLogin { user: "mario".into(), password: Zeroizing::new("rossi".into()) };
        // printf '{mario}rossi' | sha256sum
        let known = "bf7a49a846d44b454a5d11e7acfaf13d138bbe0b7483aa3e050879700572709b";
        assert_eq!(users(&login), format!("mario,{known}\n"));
    }

    #[test]
    fn the_derivation_of_the_login_is_stable_and_hides_the_password() {
        let session = [0x01, 0x94, 0x3d, 0x3c, 0x5e, 0, 0x7a, 0x10, 0x80, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab];
        let secret = Zeroizing::new(std::array::from_fn(|at| at as u8));
        let login = SessionLogin::of(&SessionKeys::derive(SessionId::from_bytes(session), secret));
        assert_eq!(login.user, "s80000123456789ab");
        assert_eq!(*login.password, "43dec4446ccc27c4e93e56d5354f6b11");
        assert!(!format!("{login:?}").contains(&*login.password));
        assert!(!users(&login).contains(&*login.password));
    }

    /// The engine's terms in a recorded grant message.
    fn recorded() -> EngineTerms {
        let grant = include_str!("../../link/vectors/to_appliance/granted.json");
        let grant = serde_json::from_str::<serde_json::Value>(grant).unwrap();
        serde_json::from_value(grant["login"].clone()).unwrap()
    }

    #[test]
    fn the_recorded_terms_are_understood() {
        let terms = LoginTerms::from_engine(&recorded()).unwrap();
        let key = BASE64.decode(b"MAIBAw==").unwrap();
        assert_eq!(terms, LoginTerms { key: LoginKey(key), padding: LoginPadding::Oaep });
        assert_eq!(terms.to_engine(), recorded());
    }

    #[test]
    fn invalid_terms_are_refused() {
        let terms = |key: &str, padding: &str| {
            let entries = [("key", key), ("padding", padding)].map(|(name, text)| (name.to_owned(), text.to_owned()));
            LoginTerms::from_engine(&EngineTerms::new(entries))
        };
        assert!(terms(&BASE64.encode(&[0; LoginKey::MAX_LEN]), "oaep").is_some());
        let long = BASE64.encode(&[0; LoginKey::MAX_LEN + 1]);
        for wrong in ["", "AQID!", "AQI", &long] {
            assert_eq!(terms(wrong, "oaep"), None, "{wrong}");
        }
        assert_eq!(terms("AQID", "newer"), None);
        assert_eq!(LoginTerms::from_engine(&EngineTerms::default()), None);
    }

    #[test]
    fn paddings_of_newer_versions_are_ignored_and_an_empty_list_means_pkcs1() {
        let supported = |names: &[&str]| {
            LoginPadding::supported(&names.iter().map(|name| PeerText::from(*name)).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(supported(&["newer", "oaep", "pkcs1"]), [LoginPadding::Oaep, LoginPadding::Pkcs1]);
        assert_eq!(supported(&[]), [LoginPadding::Pkcs1]);
        assert_eq!(supported(&["newer"]), []);
    }
}
