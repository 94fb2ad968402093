//! The measured values of a row of the siege, and whether its promise was met. Pure.

use crate::scale::Scale;

/// The measured values of one row (one check of the siege), as parts of one sentence. Each part is either checked or
/// only printed.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    parts: Vec<String>,
    missed: Vec<String>,
    judged: usize,
    skipped: Option<String>,
}

/// Whether the safety promise of one row (one check of the siege) was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every checked part met the promise.
    Met,
    /// At least one checked part did not meet the promise.
    Missed,
    /// This host lacks a requirement of the row.
    Skipped,
}

impl Measured {
    /// Creates the result of a check that this host cannot run. `because` names what the host lacks.
    pub(crate) fn skipped(because: impl Into<String>) -> Self {
        Self { skipped: Some(because.into()), ..Self::default() }
    }

    /// Creates the result of a check that did not complete, for the reason `because`. Its promise counts as missed.
    pub(crate) fn failed(because: impl Into<String>) -> Self {
        let mut measured = Self::default();
        measured.outcome(false, because);
        measured
    }

    /// Adds a part that is printed and not checked.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.parts.push(text.into());
    }

    /// Adds a part of the result that is checked in both forms of the siege, long and short.
    pub(crate) fn outcome(&mut self, is_met: bool, text: impl Into<String>) {
        let text = text.into();
        self.judged += 1;
        if !is_met {
            self.missed.push(text.clone());
        }
        self.parts.push(text);
    }

    /// Adds a measured time or rate. The long form of the siege checks it; the short form only prints it.
    pub(crate) fn time(&mut self, scale: Scale, is_met: bool, text: impl Into<String>) {
        if scale.judges_times() {
            self.outcome(is_met, text);
        } else {
            self.note(text);
        }
    }

    /// Joins all parts into one line.
    pub(crate) fn text(&self) -> String {
        match &self.skipped {
            Some(because) => because.clone(),
            None => self.parts.join("; "),
        }
    }

    /// The parts that did not meet the promise.
    pub(crate) fn missed(&self) -> &[String] {
        &self.missed
    }

    /// Whether the promise was met. A row without a checked part counts as missed.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.skipped.is_some() {
            Verdict::Skipped
        } else if self.missed.is_empty() && self.judged > 0 {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }
}

impl Verdict {
    /// The word for the verdict in the table.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Skipped => "skipped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_met_if_all_its_checked_parts_are() {
        let mut measured = Measured::default();
        assert_eq!(measured.verdict(), Verdict::Missed, "nothing was judged");
        measured.note("12 tries");
        assert_eq!(measured.verdict(), Verdict::Missed, "nothing was judged");
        measured.outcome(true, "0 accepted");
        measured.time(Scale::Short, false, "3 s");
        assert_eq!((measured.verdict(), measured.text().as_str()), (Verdict::Met, "12 tries; 0 accepted; 3 s"));
        measured.time(Scale::Long, false, "4 s");
        assert_eq!((measured.verdict(), measured.missed()), (Verdict::Missed, &["4 s".to_owned()][..]));
        assert_eq!(Measured::skipped("not root").verdict(), Verdict::Skipped);
        assert_eq!(Measured::failed("no reflector").verdict(), Verdict::Missed);
    }
}
