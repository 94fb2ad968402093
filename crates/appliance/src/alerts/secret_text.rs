//! A secret of a channel: a token, a password, or a URL that contains a secret. Its `Debug` form does not show the
//! secret, and it has no `Display` form.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The text of a secret. It is serialised only into the store, and into the request that sends it to the service.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(transparent, extend("writeOnly" = true))]
pub struct SecretText(#[schemars(with = "String")] Zeroizing<String>);

impl SecretText {
    /// Wraps `text` as a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text of the secret, for the connection that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The error of serde would quote the value, so it is replaced.
        let text = String::deserialize(deserializer).map_err(|_| serde::de::Error::custom("a secret must be text"))?;
        Ok(Self::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_an_error_shows_it() {
        let secret = serde_json::from_str::<SecretText>("\"geheim\"").unwrap();
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("geheim", "SecretText(…)"));
        let error = serde_json::from_str::<SecretText>("471147114711").unwrap_err().to_string();
        assert!(error.contains("a secret must be text") && !error.contains("4711"), "{error}");
    }
}
