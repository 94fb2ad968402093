//! The address of a PostgreSQL database: its URL, and an optional file with the password. The URL may contain the
//! password, too.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use zeroize::Zeroizing;

use super::error::StorageError;

/// The parameters that a URL may have
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>). A URL with another parameter is
/// refused, because sqlx would log the value of that parameter, and the value may be secret.
const PARAMETERS: [&str; 9] =
    ["host", "port", "user", "dbname", "password", "sslmode", "sslrootcert", "sslcert", "sslkey"];

/// The valid schemes of the URL of a PostgreSQL database.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The URL of a PostgreSQL database. Its `Display` and `Debug` forms hide the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    whole: Zeroizing<String>,
    shown: String,
}

/// The address of a PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresAddress {
    /// The URL of the database.
    pub url: PostgresUrl,
    /// A file with the password, which takes precedence over a password in the URL.
    pub password_file: Option<PathBuf>,
}

impl FromStr for PostgresUrl {
    type Err = String;

    /// Checks the URL. The error contains no part of the URL that may be secret.
    fn from_str(text: &str) -> Result<Self, String> {
        let scheme = SCHEMES.into_iter().find(|scheme| text.starts_with(scheme));
        let scheme = scheme.ok_or("it does not begin with postgres:// or postgresql://")?;
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
            return Err("it has a space, a control character or a #: percent-encode each, such as # as %23".to_owned());
        }
        let rest = text.get(scheme.len()..).unwrap_or_default();
        let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = base.split_at(base.find('/').unwrap_or(base.len()));
        if path.contains('@') || query.contains('?') {
            return Err("it has an @ in the path or a second ?: in a password, write / as %2F and ? as %3F".to_owned());
        }
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let user = user.split(':').next().unwrap_or_default();
        let at = if user.is_empty() { "" } else { "@" };
        let mut shown = format!("{scheme}{user}{at}{host}{path}");
        let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
        for (number, parameter) in parameters.clone().enumerate() {
            let name = parameter.split('=').next().unwrap_or_default();
            if !PARAMETERS.contains(&name) {
                let number = number + 1;
                return Err(format!("its parameter {number} is unknown; valid: {}", PARAMETERS.join(", ")));
            }
        }
        let public = parameters.filter(|parameter| parameter.split('=').next() != Some("password"));
        for (number, parameter) in public.enumerate() {
            shown.push(if number == 0 { '?' } else { '&' });
            shown.push_str(parameter);
        }
        match text.parse::<PgConnectOptions>() {
            Ok(_) => Ok(Self { whole: Zeroizing::new(text.to_owned()), shown }),
            Err(sqlx::Error::Configuration(error)) => Err(format!("it is not a URL of PostgreSQL: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown, f)
    }
}

impl PostgresAddress {
    /// The options of a connection. Settings that the URL leaves out come from the environment variables of libpq, such
    /// as PGUSER. If there is a password file, the password comes from it.
    pub(super) fn options(&self) -> Result<PgConnectOptions, StorageError> {
        let refused =
            |error: sqlx::Error| StorageError::Refused { server: self.url.to_string(), because: error.to_string() };
        let options = self.url.whole.parse::<PgConnectOptions>().map_err(refused)?.application_name("packetparamedic");
        let Some(path) = &self.password_file else { return Ok(options) };
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|source| StorageError::PasswordFile { path: path.clone(), source })?;
        Ok(options.password(text.trim_end_matches(['\r', '\n'])))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (text, shown) in [
            ("postgres://ann:geheim@db.example/pp", "postgres://ann@db.example/pp"),
            ("postgresql://ann:ge@heim@db.example:5433/pp", "postgresql://ann@db.example:5433/pp"),
            ("postgres://:geheim@db.example/pp", "postgres://db.example/pp"),
            ("postgres:///pp?host=/run/postgresql&user=ann", "postgres:///pp?host=/run/postgresql&user=ann"),
            ("postgres:///pp?password=geheim&host=/run", "postgres:///pp?host=/run"),
            ("postgres://ann@h/pp?sslmode=verify-full&password=geheim", "postgres://ann@h/pp?sslmode=verify-full"),
        ] {
            let url = text.parse::<PostgresUrl>().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), format!("{shown:?}")));
            assert_eq!(&*url.whole, text);
        }
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_password() {
        for text in [
            "mysql://ann:geheim@db.example/pp",
            "postgres://ann:geheim@db.example:port/pp",
            "postgres://ann:ge heim@db.example/pp",
            "postgres://ann:geheim#@db.example/pp",
            "postgres://ann:geheim/@db.example/pp",
            "postgres:///pp?passwd=geheim",
            "postgres:///pp?options=geheim",
            "postgres:///pp?sslmode=always&password=geheim",
            "postgres://ann:12/geheim@db.example/pp",
            "postgres:///pp?host=/run?password=geheim",
            "postgres:///pp?port=5432x&password=geheim",
        ] {
            let error = text.parse::<PostgresUrl>().unwrap_err();
            assert!(!error.contains("geheim"), "{text}: {error}");
        }
    }

    #[test]
    fn the_password_comes_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let address = |password_file| PostgresAddress { url: "postgres://ann@h/pp".parse().unwrap(), password_file };
        let missing = address(Some(file.clone())).options().unwrap_err();
        assert!(matches!(missing, StorageError::PasswordFile { .. }), "{missing}");
        std::fs::write(&file, "geheim\n").unwrap();
        // sqlx's own text shows the values that it would send.
        let options = format!("{:?}", address(Some(file)).options().unwrap());
        assert!(options.contains("\"geheim\""), "{options}");
    }

    proptest! {
        #[test]
        fn no_url_panics_or_shows_its_password(user in "[a-z]{0,5}", secret in "[A-Z]{8}[%@:=&/?A-Z]{0,6}", rest in "\\PC{0,20}") {
            for text in [format!("postgres://{user}:{secret}@host/{rest}"), format!("postgres://h/{rest}?password={secret}")] {
                match text.parse::<PostgresUrl>() {
                    Ok(url) => prop_assert!(!url.to_string().contains(&secret[..8]), "{url}"),
                    Err(error) => prop_assert!(!error.contains(&secret[..8]), "{error}"),
                }
            }
        }
    }
}
