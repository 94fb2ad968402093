//! The characters that are valid in the names of monitors, schedules, rules and channels.

use paramedic_link::peer_text::is_harmless;

/// Whether `c` is valid in a name: a visible letter or digit, a dot, a dash or an underscore.
pub(crate) fn is_name_char(c: char) -> bool {
    // Some Korean filler characters count as letters but are invisible.
    (c.is_alphanumeric() && is_harmless(c)) || matches!(c, '.' | '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_that_nothing_shows_is_in_no_name() {
        assert!("Größe-7_a.b電話".chars().all(is_name_char));
        assert!(!"\u{115f}\u{1160}\u{3164}\u{ffa0}\u{200b}\u{202e} /'\"<".chars().any(is_name_char));
    }
}
