//! Text from the other end of a link, sanitised on receipt: limited in length, without control characters.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Sanitised text from the other end of a link: at most [`PeerText::MAX_CHARS`] characters, without control characters,
/// bidirectional overrides and invisible characters.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct PeerText(String);

impl PeerText {
    /// The maximum length of a sanitised text, in characters.
    pub const MAX_CHARS: usize = 120;

    /// Sanitises `text` and cuts it to [`Self::MAX_CHARS`] characters.
    pub fn new(text: &str) -> Self {
        Self(Self::harmless(text, Self::MAX_CHARS))
    }

    /// Sanitises `text` like [`Self::new`], but cuts it to `max_chars` characters and returns a plain `String`.
    pub fn harmless(text: &str, max_chars: usize) -> String {
        let clean = text.chars().filter(|c| is_harmless(*c)).take(max_chars).collect::<String>();
        clean.trim().to_owned()
    }

    /// The sanitised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the sanitised text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a character may be shown to a user. Control characters control the terminal, bidirectional overrides and
/// joiners change what a reader sees, and blank characters hide text. False for control characters and for these
/// characters of Unicode 16: the property `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt), all format
/// characters (`General_Category` Cf), the line separators, and the invisible characters that are not spaces: the
/// blanks of Braille and of the hieroglyphs, the null notehead, the filler of the Khitan script, the number joiner of
/// Brahmi and the object replacement character.
pub fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{1107f}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{13442}' | '\u{16fe4}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for PeerText {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl<'de> Deserialize<'de> for PeerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The frame limit bounds the length of this string.
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_removed() {
        assert_eq!(PeerText::new("\u{1b}]0;owned\u{7}a\nb\u{202e}c").as_str(), "]0;ownedabc");
    }

    #[test]
    fn invisible_and_bidirectional_characters_are_removed() {
        assert_eq!(PeerText::new("pa\u{ad}y\u{61c}p\u{3164}al\u{200d}\u{e0041}\u{2066}").as_str(), "paypal");
        let invisible = "\u{ffa0}\u{2800}\u{fe0f}\u{e0101}\u{34f}\u{17b4}\u{180b}\u{2065}\u{1d173}\u{1bca0}";
        assert_eq!(PeerText::new(&format!("off{invisible}ice")).as_str(), "office");
        let format_controls = "\u{13430}\u{1343f}\u{600}\u{605}\u{6dd}\u{70f}\u{890}\u{8e2}\u{110bd}\u{110cd}";
        assert_eq!(PeerText::new(&format!("off{format_controls}ice")).as_str(), "office");
        let blank = "\u{13441}\u{13442}\u{1d159}\u{16fe4}\u{1107f}\u{fffc}\u{fff9}\u{2028}";
        assert_eq!(PeerText::new(&format!("off{blank}ice")).as_str(), "office");
        assert!(PeerText::new("\u{13441}\u{1d159} \u{13430}").is_empty(), "a name without ink is no name");
    }

    #[test]
    fn visible_characters_beside_the_invisible_ones_are_kept() {
        let visible = "\u{ac}\u{606}\u{61b}\u{6de}\u{710}\u{2801}\u{fffd}\u{1342f}\u{13460}\u{1d158}\u{1d15a}";
        assert_eq!(PeerText::new(visible).as_str(), visible);
    }

    #[test]
    fn length_is_capped_in_characters() {
        assert_eq!(PeerText::new(&"ä".repeat(5000)).as_str().chars().count(), PeerText::MAX_CHARS);
    }
}
