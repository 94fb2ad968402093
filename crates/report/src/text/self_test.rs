//! The text report on a self-test: the verdict, the rates, the facts about the host, and its weak points.

use crate::lines::{Line, Tone, WIDTH, wrapped};
use crate::self_test::{FactRow, SelfTest, WeakPoint, fact_rows, rate_note, rate_rows};

/// The text report on a self-test, in lines of at most [`WIDTH`] columns.
pub fn self_test(test: &SelfTest) -> Vec<Line> {
    let tone = match (test.rates.is_empty(), test.weak_points.is_empty()) {
        (true, _) => Tone::Bad,
        (_, true) => Tone::Good,
        _ => Tone::Strong,
    };
    let mut lines =
        wrapped(&test.verdict.text, WIDTH, 0).into_iter().map(|line| Line::of(tone, line)).collect::<Vec<_>>();
    lines.push(Line::empty());
    let (rates, facts) = (rate_rows(test), fact_rows(test));
    let label = rates.iter().chain(&facts).map(|row| row.label.chars().count()).max().unwrap_or(0) + 2;
    lines.extend(rates.iter().flat_map(|row| columns(row, label)));
    if let Some(note) = rate_note(test) {
        lines.extend(wrapped(&note, WIDTH, 0).into_iter().map(|line| Line::of(Tone::Dim, line)));
    }
    lines.push(Line::empty());
    lines.extend(facts.iter().flat_map(|row| columns(row, label)));
    lines.extend(test.weak_points.iter().flat_map(weak_point));
    lines
}

/// The lines of one row: the label, then the text of the row, wrapped as needed. `label` is the width of the label
/// column.
fn columns(row: &FactRow, label: usize) -> Vec<Line> {
    let mut text = wrapped(&row.text, WIDTH - label, 0).into_iter();
    let first = Line::of(Tone::Plain, format!("{:<label$}{}", row.label, text.next().unwrap_or_default()));
    [first].into_iter().chain(text.map(|line| Line::from(format!("{:<label$}{line}", "")))).collect()
}

/// The lines about a weak point: an empty line, then the weak point, its cause and its remedy.
fn weak_point(weak: &WeakPoint) -> Vec<Line> {
    let parts = [
        ("weak: ", Tone::Fair, &weak.what),
        ("because: ", Tone::Strong, &weak.because),
        ("try: ", Tone::Strong, &weak.try_),
    ];
    let part = |(word, tone, text): (&str, Tone, &String)| {
        let mut text = wrapped(text, WIDTH - word.len(), 0).into_iter();
        let first = Line::of(tone, word).with(Tone::Plain, text.next().unwrap_or_default());
        let indent = " ".repeat(word.len());
        [first].into_iter().chain(text.map(move |line| Line::from(format!("{indent}{line}")))).collect::<Vec<_>>()
    };
    [Line::empty()].into_iter().chain(parts.into_iter().flat_map(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::self_test::example;

    #[test]
    fn every_line_of_a_report_fits_the_width() {
        let mut test = example::measured();
        test.verdict.text = "good ".repeat(40);
        let long = "word ".repeat(40);
        let weak = ["busy", &long, &long, &long].map(str::to_owned);
        let [code, what, because, try_] = weak;
        test.weak_points.push(WeakPoint { code, what, because, try_ });
        let lines = self_test(&test).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lines[0], wrapped(&test.verdict.text, WIDTH, 0)[0]);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("try: word word")), "{lines:#?}");
    }
}
