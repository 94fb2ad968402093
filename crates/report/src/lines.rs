//! Lines of text for a terminal, with a tone for each piece and a style for each tone. The caller decides whether to
//! use colours.

use std::borrow::Cow;
use std::fmt;

use anstyle::{AnsiColor, Style};

/// The width of a printed report, in terminal columns.
pub const WIDTH: usize = 80;

/// What kind of message a piece of text is. The tone decides its colour and weight on the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Ordinary text.
    #[default]
    Plain,
    /// Text that stands out, such as the main rate.
    Strong,
    /// Text of lesser importance.
    Dim,
    /// Text that reports good news, such as a threshold that is met.
    Good,
    /// Text that reports something between good and bad, such as a medium grade.
    Fair,
    /// Text that reports bad news, such as a threshold that is missed.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Good => AnsiColor::Green.on_default().bold(),
            Self::Fair => AnsiColor::Yellow.on_default().bold(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// One line of text as a list of pieces, each with its tone. Contains no newline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(Tone, String)>);

impl Line {
    /// An empty line.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A line that consists of one piece of text.
    pub fn of(tone: Tone, text: impl Into<String>) -> Self {
        Self::empty().with(tone, text)
    }

    /// Appends a piece of text to the line.
    pub fn with(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.0.push((tone, text.into()));
        self
    }

    /// The line as it is printed on a terminal, with or without colours. Removes control characters from the text.
    pub fn rendered(&self, color: bool) -> String {
        let mut line = String::new();
        for (tone, text) in &self.0 {
            let style = if color { tone.style() } else { Style::new() };
            line.push_str(&style.render().to_string());
            line.extend(text.chars().filter(|c| !c.is_control()));
            line.push_str(&style.render_reset().to_string());
        }
        line
    }
}

/// Prints the text of the line without colours.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered(false))
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::of(Tone::Plain, text)
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Self::of(Tone::Plain, text)
    }
}

/// Breaks `text` between words into lines of at most `width` columns. Indents every line except the first by `indent`
/// columns.
pub fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let indent = " ".repeat(indent);
    let options = textwrap::Options::new(width)
        .subsequent_indent(&indent)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit)
        // An address or a path that is longer than a line is not broken.
        .break_words(false);
    textwrap::wrap(text, options).into_iter().map(Cow::into_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_come_from_the_tone_alone() {
        let line = Line::of(Tone::Bad, "a\u{1b}[2Jb").with(Tone::Plain, " c\u{7}");
        assert_eq!(line.to_string(), "a[2Jb c");
        assert_eq!(line.rendered(true), "\u{1b}[1m\u{1b}[31ma[2Jb\u{1b}[0m c");
    }

    #[test]
    fn long_text_breaks_between_words() {
        assert_eq!(wrapped("one two three four", 9, 2), ["one two", "  three", "  four"]);
        assert_eq!(wrapped("unbreakable", 4, 2), ["unbreakable"]);
        assert_eq!(wrapped("", 4, 2), [""]);
    }
}
