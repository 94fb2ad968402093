//! Text from outside (names, addresses, errors) as a page shows it. The templates escape it; this module bounds its
//! length, and removes characters that could change the text around it.

use paramedic_link::PeerText;

use super::super::extract::encoded;

/// The maximum length of a text from outside in a page, in characters.
const LONGEST: usize = 200;
/// The maximum length of a sentence with text from outside in a page, in characters.
const LONGEST_SENTENCE: usize = 1000;

/// Removes control and formatting characters, such as a right-to-left override, from a text. Cuts the text if it is
/// long.
pub(super) fn shown(text: &str) -> String {
    let clean = PeerText::harmless(text, LONGEST + 1);
    match clean.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", clean.get(..end).unwrap_or_default().trim_end()),
        None => clean,
    }
}

/// Formats a name for a list of choices: as [`shown`] does, followed by its encoded form if [`shown`] changes the name.
pub(super) fn distinct(name: &str) -> String {
    let text = shown(name);
    if text == name { text } else { format!("{text} ({})", encoded(name)).trim_start().to_owned() }
}

/// Formats a sentence that contains text from outside, such as a name: as [`shown`] does, but the sentence may be
/// longer.
pub(super) fn sentence(text: &str) -> String {
    PeerText::harmless(text, LONGEST_SENTENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_bounded_and_has_no_formatting() {
        assert_eq!(shown("attic \u{1F680} café"), "attic \u{1F680} café");
        assert_eq!(shown("a\u{202E}b\nc\0d\u{2066}"), "abcd");
        let long = shown(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), LONGEST + 1);
        assert!(long.ends_with('…'));
        assert_eq!(distinct("café"), "café");
        assert_eq!([distinct("a\u{3164}"), distinct("\u{3164}")], ["a (a%E3%85%A4)", "(%E3%85%A4)"]);
        assert_eq!(shown(&"x".repeat(LONGEST)).chars().count(), LONGEST);
    }
}
