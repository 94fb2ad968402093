//! A time in a page. The page shows the time in the viewer's time zone, or in UTC without JavaScript. On hover, the
//! page shows the time in UTC.

use std::fmt;

use askama::filters::HtmlSafe;
use jiff::Timestamp;

/// A time as HTML: `<time datetime="…" title="… UTC">…</time>`. It contains no text from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageTime {
    at: Timestamp,
    form: TimeForm,
}

/// Which parts of a time a page shows. The attribute `data-form` passes this form to the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeForm {
    /// The day and the time of day.
    Full,
    /// The time of day alone.
    Clock,
    /// The day alone.
    Day,
}

impl PageTime {
    /// Creates a time that is shown as day and time of day.
    pub(super) fn full(at: Timestamp) -> Self {
        Self { at, form: TimeForm::Full }
    }

    /// Creates a time that is shown as the time of day alone, for a text that names the day.
    pub(super) fn clock(at: Timestamp) -> Self {
        Self { at, form: TimeForm::Clock }
    }

    /// Creates a time that is shown as the day alone.
    pub(super) fn day(at: Timestamp) -> Self {
        Self { at, form: TimeForm::Day }
    }
}

impl fmt::Display for PageTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, text) = match self.form {
            TimeForm::Full => ("full", "%Y-%m-%d %H:%M UTC"),
            TimeForm::Clock => ("clock", "%H:%M UTC"),
            TimeForm::Day => ("day", "%Y-%m-%d"),
        };
        let (machine, title) = (self.at.strftime("%Y-%m-%dT%H:%M:%SZ"), self.at.strftime("%Y-%m-%d %H:%M:%S UTC"));
        let text = self.at.strftime(text);
        write!(f, "<time datetime=\"{machine}\" title=\"{title}\" data-form=\"{form}\">{text}</time>")
    }
}

impl HtmlSafe for PageTime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_for_machines_and_for_people() {
        let at = "2026-01-31T12:34:56.789Z".parse().unwrap();
        let html = "<time datetime=\"2026-01-31T12:34:56Z\" title=\"2026-01-31 12:34:56 UTC\" data-form=\"full\">\
                    2026-01-31 12:34 UTC</time>";
        assert_eq!(PageTime::full(at).to_string(), html);
        assert!(PageTime::clock(at).to_string().ends_with(">12:34 UTC</time>"));
        assert!(PageTime::day(at).to_string().ends_with(">2026-01-31</time>"));
    }
}
