//! Feature names: what one end of a link supports beyond the first version of the protocol. The code that uses a
//! feature defines its meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A feature's name on the wire: 1 to 24 characters of `a-z`, `0-9`, `_`. Not an enum, so that an older version ignores
/// the features of a newer one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Feature(String);

/// The error for a text that is not a valid feature name.
#[derive(Debug, thiserror::Error)]
#[error("a feature's name must have 1 to 24 characters of a-z, 0-9 and _")]
pub struct InvalidFeature;

/// The features that both programs (reflector and appliance) of this version support.
const OWN: &[&str] =
    &[Feature::DIRECTION_BYTES, Feature::MONITOR, Feature::PATH_FACTS, Feature::PHASE_DETAIL, Feature::STOP_PHASE];

impl Feature {
    /// The reflector can end a direction after a number of bytes (`TestSpec::direction_bytes`).
    pub const DIRECTION_BYTES: &str = "direction_bytes";

    /// The maximum length of a feature's name, in characters.
    pub const MAX_CHARS: usize = 24;
    /// Monitor sessions: the message `monitor`, and its answer `monitor_granted`.
    pub const MONITOR: &str = "monitor";
    /// The reflector's view of the path: the message `path_facts`, and the answer with the same name.
    pub const PATH_FACTS: &str = "path_facts";
    /// The reflector can send messages of the type `phase_detail`. It sends them only in a session whose request asks
    /// for them (`TestSpec::phase_detail`).
    pub const PHASE_DETAIL: &str = "phase_detail";
    /// The reflector ends a running phase early when the appliance sends the message `stop_phase`, in sessions with
    /// `TestSpec::may_stop`.
    pub const STOP_PHASE: &str = "stop_phase";

    /// Whether `theirs`, a list of features, contains the feature `name`.
    pub fn is_in(name: &str, theirs: &[Self]) -> bool {
        theirs.iter().any(|feature| feature.as_str() == name)
    }

    /// The features that this end sends in `hello` or `welcome`.
    pub fn own() -> Vec<Self> {
        OWN.iter().map(|name| Self((*name).to_owned())).collect()
    }

    /// The features that both ends sent. Only these are used on a link. Repeated and unknown names have no effect.
    pub fn common(theirs: &[Self]) -> Vec<Self> {
        Self::own().into_iter().filter(|own| theirs.contains(own)).collect()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Feature {
    type Error = InvalidFeature;

    fn try_from(text: String) -> Result<Self, InvalidFeature> {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if text.is_empty() || text.len() > Self::MAX_CHARS || !text.bytes().all(is_allowed) {
            return Err(InvalidFeature);
        }
        Ok(Self(text))
    }
}

impl From<Feature> for String {
    fn from(feature: Feature) -> Self {
        feature.0
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(name: &str) -> Result<Feature, InvalidFeature> {
        Feature::try_from(name.to_owned())
    }

    #[test]
    fn names_are_short_words() {
        for name in ["stop_phase", "a", "tcp_info2", &"x".repeat(24)] {
            assert_eq!(feature(name).unwrap().as_str(), name);
        }
        for name in ["", "Stop", "stop-phase", "stop phase", "störung", &"x".repeat(25)] {
            assert!(feature(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn own_names_are_well_formed_and_few_enough() {
        assert!(OWN.iter().all(|name| feature(name).is_ok()));
        assert!(OWN.len() <= crate::message::MAX_FEATURES);
    }

    #[test]
    fn unknown_features_are_ignored() {
        let mut theirs = Feature::own();
        theirs.push(feature("of_a_newer_version").unwrap());
        assert_eq!(Feature::common(&theirs), Feature::own());
        assert_eq!(Feature::common(&[]), []);
        assert!(Feature::is_in(Feature::PATH_FACTS, &Feature::own()) && !Feature::is_in("path", &Feature::own()));
    }
}
