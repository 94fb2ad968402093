//! Cells of the CSV tables that other programs, such as spreadsheets, read.

/// If a cell begins with one of these characters, a spreadsheet may read the cell as a formula. The last four are
/// full-width forms, which some spreadsheets read as the normal characters.
const TRIGGERS: [char; 10] = ['=', '+', '-', '@', '\t', '\r', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];
/// Characters other than the comma at which a spreadsheet may separate cells, depending on its settings: a new cell may
/// begin after each of them.
const OTHER_SEPARATORS: [char; 4] = [';', '\t', '\n', '\r'];

/// A CSV cell with untrusted text. The cell is quoted if RFC 4180 requires quotes or if a spreadsheet could split the
/// cell. The text is escaped so that no spreadsheet reads the cell or a part of it as a formula
/// (<https://owasp.org/www-community/attacks/CSV_Injection>).
pub fn text_cell(text: &str) -> String {
    let mut guarded = String::with_capacity(text.len() + 1);
    let mut begins = true;
    for c in text.chars() {
        if begins && TRIGGERS.contains(&c) {
            guarded.push('\'');
        }
        guarded.push(c);
        begins = OTHER_SEPARATORS.contains(&c) || (begins && is_skipped(c));
    }
    if text.contains(['"', ',']) || text.contains(OTHER_SEPARATORS) {
        format!("\"{}\"", guarded.replace('"', "\"\""))
    } else {
        guarded
    }
}

/// Whether a spreadsheet may skip the character `c` at the start of a cell and read a formula after it. Spreadsheets
/// remove white space and characters without width. A spreadsheet that separates cells at another character than the
/// comma skips a quotation mark, which it reads as the start of a quoted cell.
fn is_skipped(c: char) -> bool {
    let has_no_width = matches!(
        c,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    c == '"' || c.is_whitespace() || c.is_control() || has_no_width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_csv_needs_it_and_is_never_a_formula() {
        for (text, cell) in [
            ("attic", "attic"),
            ("a,b", "\"a,b\""),
            ("a\"b", "\"a\"\"b\""),
            ("=1+1", "'=1+1"),
            ("@a,b", "\"'@a,b\""),
            ("two\nlines", "\"two\nlines\""),
            ("a;b", "\"a;b\""),
            ("a\tb", "\"a\tb\""),
            ("x;=1+1", "\"x;'=1+1\""),
            ("x\t@a;-1", "\"x\t'@a;'-1\""),
            ("x\n=1", "\"x\n'=1\""),
            ("x\r\n+1", "\"x\r\n'+1\""),
            ("\t=1", "\"'\t'=1\""),
            ("a; =1", "\"a; '=1\""),
            // A program that separates at `;` takes two quotation marks for an empty quoted part of a cell.
            ("x;\"=1+1;y", "\"x;\"\"'=1+1;y\""),
            ("x\t\"@a", "\"x\t\"\"'@a\""),
            ("x\n\" \"+1", "\"x\n\"\" \"\"'+1\""),
            ("\"=1", "\"\"\"'=1\""),
            ("x\";\"-1", "\"x\"\";\"\"'-1\""),
            ("a\"=b", "\"a\"\"=b\""),
            (" =1", " '=1"),
            ("\u{a0}=1", "\u{a0}'=1"),
            ("\0\u{b}=1", "\0\u{b}'=1"),
            ("\u{feff}\u{200b}=1", "\u{feff}\u{200b}'=1"),
            ("\u{ff1d}1+1", "'\u{ff1d}1+1"),
            ("a-b =c", "a-b =c"),
            ("", ""),
        ] {
            assert_eq!(text_cell(text), cell, "{text:?}");
        }
    }
}
