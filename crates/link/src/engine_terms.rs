//! Engine terms: named texts that an engine at the reflector sends to the same engine at the appliance as part of a
//! grant, for example a one-time login. Only the engine interprets them. This module limits their number and size.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The terms of one grant, by name. Both [`Self::new`] and the decoder drop entries that exceed a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct EngineTerms(BTreeMap<String, String>);

impl EngineTerms {
    /// The maximum number of entries in the terms of one grant.
    pub const MAX_ENTRIES: usize = 8;
    /// The maximum length of a name and of a text, in bytes. Both must be printable ASCII.
    pub const MAX_TEXT: usize = 1024;

    /// Makes terms of those `entries` that are within the limits. Drops all other entries.
    pub fn new(entries: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_short_ascii =
            |text: &str| text.len() <= Self::MAX_TEXT && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let entries = entries.into_iter().filter(|(name, text)| is_short_ascii(name) && is_short_ascii(text));
        Self(entries.take(Self::MAX_ENTRIES).collect())
    }

    /// The text of the entry `name`; `None` if there is no such entry.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for EngineTerms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = BTreeMap::<String, Value>::deserialize(deserializer)?;
        Ok(Self::new(entries.into_iter().filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, text)),
            _ => None,
        })))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> EngineTerms {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn terms_are_read_and_written_as_named_texts() {
        let terms =
            EngineTerms::new([("padding".to_owned(), "oaep".to_owned()), ("key".to_owned(), "AQID".to_owned())]);
        assert_eq!(serde_json::to_string(&terms).unwrap(), r#"{"key":"AQID","padding":"oaep"}"#);
        assert_eq!(read(json!({ "key": "AQID", "padding": "oaep" })), terms);
        assert_eq!((terms.text("padding"), terms.text("nonesuch")), (Some("oaep"), None));
    }

    #[test]
    fn entries_beyond_the_bounds_are_ignored() {
        let longest = "x".repeat(EngineTerms::MAX_TEXT);
        let terms = read(json!({
            "longest": longest, "long": format!("{longest}x"), "escape": "\u{1b}[2J", "umlaut": "ä", "number": 7, "list": ["a"],
        }));
        assert_eq!(terms, EngineTerms::new([("longest".to_owned(), longest)]));
        let many = (0..100).map(|number| (number.to_string(), String::new())).collect::<BTreeMap<_, _>>();
        assert_eq!(read(json!(many)).0.len(), EngineTerms::MAX_ENTRIES);
        assert!(serde_json::from_value::<EngineTerms>(json!("text")).is_err());
    }
}
