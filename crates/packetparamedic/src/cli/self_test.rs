//! `self-test`: has this device tested, and lays out what was found. What it means is decided in `paramedic-report`.

use std::path::PathBuf;
use std::time::Duration;

use paramedic_host::self_test;
use paramedic_report::lines::{Line, Tone, WIDTH, wrapped};
use paramedic_report::self_test::{Role, Row, SelfTest, WeakPoint, fact_rows, rate_note, rate_rows};

use super::Context;
use super::output::Format;
use super::speed_test::interrupts;
use super::values::time;
use crate::failure::{Exit, Failure};

#[derive(clap::Args)]
pub(super) struct Args {
    /// How long each measurement lasts: seconds, or a time such as 500ms
    #[arg(short = 't', long = "time", value_name = "SECS", default_value = "2", value_parser = each)]
    time: Duration,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

fn each(text: &str) -> Result<Duration, String> {
    self_test::check_each(time(text)?)
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let mut interrupt = interrupts()?;
    let scratch = self_test::scratch().ok();
    // Only some engines need one; they say so where there is none.
    let work_in = scratch.as_ref().map_or_else(PathBuf::new, |scratch| scratch.path().to_owned());
    let live = context.output.live();
    let test = tokio::task::spawn_blocking(move || {
        self_test::run(Role::Appliance, args.time, &work_in, &|step| live.step(step.number, step.of, &step.what))
    });
    let test = tokio::select! {
        test = test => test.map_err(|error| {
            let try_ = "please report it, it is a fault of this program";
            Failure::new(Exit::Failed, "internal", "the self-test broke off", error.to_string(), try_)
        })?,
        // The thread that still measures ends with the process.
        _ = interrupt.wait_for(|wanted| *wanted) => {
            context.output.live().over();
            return Err(interrupted());
        }
    };
    drop(scratch);
    match context.output.format() {
        Format::Human => context.output.lines(&report(&test))?,
        Format::Json | Format::JsonStream => context.output.json(&test)?,
    }
    Ok(if test.rates.is_empty() { Exit::Failed } else { Exit::Done })
}

fn interrupted() -> Failure {
    let because = "Ctrl-C or SIGTERM ended it before it was over";
    Failure::new(
        Exit::Interrupted,
        "interrupted",
        "the self-test has no result",
        because,
        "once more: it takes less than a minute",
    )
}

/// The report, in lines of at most [`WIDTH`] columns.
fn report(test: &SelfTest) -> Vec<Line> {
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

/// A row, its text beside the label, however many lines that takes.
fn columns(row: &Row, label: usize) -> Vec<Line> {
    let mut text = wrapped(&row.text, WIDTH - label, 0).into_iter();
    let first = Line::of(Tone::Plain, format!("{:<label$}{}", row.label, text.next().unwrap_or_default()));
    [first].into_iter().chain(text.map(|line| Line::from(format!("{:<label$}{line}", "")))).collect()
}

/// What is weak, because of what, what to try, after an empty line.
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

    #[test]
    fn a_time_is_read_within_its_limits() {
        assert_eq!(each("2"), Ok(Duration::from_secs(2)));
        assert_eq!(each("250ms"), Ok(Duration::from_millis(250)));
        assert!(each("99ms").is_err() && each("11").is_err() && each("").is_err());
    }

    #[test]
    fn every_line_of_a_report_fits_the_width() {
        let folder = tempfile::tempdir().unwrap();
        let mut test = self_test::run(Role::Appliance, self_test::SHORTEST, folder.path(), &|_| ());
        let long = "word ".repeat(40);
        let weak = ["busy", &long, &long, &long].map(str::to_owned);
        let [code, what, because, try_] = weak;
        test.weak_points.push(WeakPoint { code, what, because, try_ });
        let lines = report(&test).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lines[0], wrapped(&test.verdict.text, WIDTH, 0)[0]);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("try: word word")), "{lines:#?}");
    }
}
