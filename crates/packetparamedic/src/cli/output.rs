//! Prints the results, notes and failures of commands, as text or as JSON. Results go to stdout; in the JSON formats
//! the failure of a command too, and in the JSON stream also events. Everything else goes to stderr. Shows progress
//! only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anstream::{AutoStream, ColorChoice};
use paramedic_link::peer_text::is_harmless;
use paramedic_report::document::{Event, ResultDocument};
use paramedic_report::lines::{Line, Tone};
use paramedic_report::text::{self, Detail};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use super::failure::{CommandFailure, ExitStatus};
use super::progress::ProgressLine;
use crate::config::Color;

/// The format in which a command prints on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// Text for a human reader.
    #[default]
    Human,
    /// One JSON document (`--json`).
    Json,
    /// One JSON event in each line (`--json-stream`).
    JsonStream,
}

/// How much a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// The result and errors (`-q`).
    Quiet,
    /// The result, errors, notes and progress.
    #[default]
    Normal,
    /// Errors, notes, progress, and the result with every detail (`-v`).
    Verbose,
}

/// The kind and amount of output that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The format of results on stdout.
    pub format: OutputFormat,
    /// When to use colours.
    pub color: Color,
    /// How much to print.
    pub verbosity: Verbosity,
}

/// Prints the output of a command. What one method call prints is never mixed with the output of another call.
pub struct Output {
    format: OutputFormat,
    verbosity: Verbosity,
    /// Whether stdout is a terminal.
    is_terminal: bool,
    streams: Arc<Mutex<OutputStreams>>,
}

/// Prints the events of a running test.
#[derive(Clone)]
pub struct LiveOutput {
    format: OutputFormat,
    streams: Arc<Mutex<OutputStreams>>,
}

/// An error: the program that reads stdout has closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderGone;

/// Prints log lines: each goes to stderr in one write, above the progress line.
#[derive(Clone)]
pub struct LogOutput {
    streams: Arc<Mutex<OutputStreams>>,
}

struct OutputStreams {
    stdout: OutputStream,
    stderr: OutputStream,
    progress: ProgressLine,
}

/// Stdout or stderr, to which lines are written.
struct OutputStream {
    writer: Box<dyn Write + Send>,
    color: bool,
}

impl Output {
    /// Creates an output that prints on stdout and stderr of this process.
    pub fn new(wanted: Wanted) -> Self {
        let color = |auto: ColorChoice| match wanted.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => auto != ColorChoice::Never,
        };
        let stdout = OutputStream { color: color(AutoStream::choice(&io::stdout())), writer: Box::new(io::stdout()) };
        let stderr = OutputStream { color: color(AutoStream::choice(&io::stderr())), writer: Box::new(io::stderr()) };
        let is_shown = wanted.format == OutputFormat::Human && wanted.verbosity > Verbosity::Quiet;
        let progress =
            if is_shown && io::stderr().is_terminal() { ProgressLine::on_stderr() } else { ProgressLine::hidden() };
        Self {
            is_terminal: io::stdout().is_terminal(),
            ..Self::with(wanted, OutputStreams { stdout, stderr, progress })
        }
    }

    fn with(wanted: Wanted, streams: OutputStreams) -> Self {
        let streams = Arc::new(Mutex::new(streams));
        Self { format: wanted.format, verbosity: wanted.verbosity, is_terminal: false, streams }
    }

    /// Returns the format of results on stdout.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Whether graphs follow a report. They are drawn for a reader at a terminal, not for a program.
    pub fn draws_graphs(&self) -> bool {
        self.format == OutputFormat::Human && self.is_terminal
    }

    /// Whether reports contain every detail (`-v`).
    pub fn detail(&self) -> Detail {
        if self.verbosity == Verbosity::Verbose { Detail::Full } else { Detail::Plain }
    }

    /// Returns the printer of the events of a running test: progress on stderr, or JSON events on stdout.
    pub fn live(&self) -> LiveOutput {
        LiveOutput { format: self.format, streams: Arc::clone(&self.streams) }
    }

    /// Returns the printer of log lines. It shares stderr with the progress line.
    pub fn log(&self) -> LogOutput {
        LogOutput { streams: Arc::clone(&self.streams) }
    }

    /// Prints the result of a test in the requested format.
    pub fn result(&self, document: &ResultDocument) -> Result<(), CommandFailure> {
        match self.format {
            OutputFormat::Human => self.report(document),
            OutputFormat::Json => self.line(&document.to_text().map_err(unprintable)?),
            // The document is large, but it is cloned and printed only once.
            OutputFormat::JsonStream => self.json_line(&Event::Result(Box::new(document.clone()))),
        }
    }

    /// Prints the result of a test as text, whatever the requested format.
    pub fn report(&self, document: &ResultDocument) -> Result<(), CommandFailure> {
        self.lines(&text::report(document, self.detail()))
    }

    /// Prints lines of a result as text, with colours if stdout shows them.
    pub fn lines(&self, lines: &[Line]) -> Result<(), CommandFailure> {
        let mut streams = self.streams();
        let text = rendered(lines, streams.stdout.color);
        streams.write_stdout(text.as_bytes())
    }

    /// Prints text of a result, one line or more, without colours and control characters.
    pub fn line(&self, text: &str) -> Result<(), CommandFailure> {
        self.streams().write_stdout(printable(text).as_bytes())
    }

    /// Prints bytes without any change, for example a file that another program reads.
    pub fn script(&self, bytes: &[u8]) -> Result<(), CommandFailure> {
        self.streams().write_stdout(bytes)
    }

    /// Prints a value as JSON in one line.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), CommandFailure> {
        self.line(&serde_json::to_string(value).map_err(unprintable)?)
    }

    /// Prints a value as an indented JSON document.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CommandFailure> {
        self.line(&serde_json::to_string_pretty(value).map_err(unprintable)?)
    }

    /// Prints a note on stderr, unless `-q` is set.
    pub fn note(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.streams().write_stderr(&printable(text));
        }
    }

    /// Reports a failed command in the requested format, and returns its exit code. In text format, what was measured
    /// before the failure is printed first.
    pub fn fail(&self, failure: &CommandFailure) -> ExitStatus {
        if failure.is_quiet {
            self.streams().progress.clear();
            return failure.exit;
        }
        // A closed output or a full disk must not hide the original failure.
        let reported = match self.format {
            OutputFormat::Json => self.json(&failure.document()),
            OutputFormat::JsonStream => self.json_line(&Event::Error(Box::new(failure.document()))),
            OutputFormat::Human => failure.measured_so_far.as_ref().map_or(Ok(()), |measured| self.report(measured)),
        };
        reported.ok();
        if self.format == OutputFormat::Human {
            self.beside(failure);
        }
        failure.exit
    }

    /// Prints a failure as text on stderr, whatever the requested format, and even with `-q`.
    pub fn beside(&self, failure: &CommandFailure) {
        let mut streams = self.streams();
        let text = rendered(
            &[
                Line::of(Tone::Bad, &failure.what),
                Line::of(Tone::Strong, "because: ").with(Tone::Plain, &failure.because),
                Line::of(Tone::Strong, "try: ").with(Tone::Plain, &failure.try_),
            ],
            streams.stderr.color,
        );
        streams.write_stderr(&text);
    }

    fn streams(&self) -> MutexGuard<'_, OutputStreams> {
        unpoisoned(&self.streams)
    }
}

impl LiveOutput {
    /// Prints an event of a running test: as a line of JSON, or as progress on a terminal. Fails if the reader of
    /// stdout has closed it. Ignores other write errors, which will recur when the result is printed.
    pub fn event(&self, event: &Event) -> Result<(), ReaderGone> {
        match self.format {
            OutputFormat::JsonStream => {
                let Ok(line) = serde_json::to_string(event) else { return Ok(()) };
                match unpoisoned(&self.streams).write_stdout(printable(&line).as_bytes()) {
                    Err(failure) if failure.is_quiet => return Err(ReaderGone),
                    _ => {}
                }
            }
            OutputFormat::Human => unpoisoned(&self.streams).progress.show(event),
            OutputFormat::Json => {}
        }
        Ok(())
    }

    /// Clears the progress line of a test that ended without a result.
    pub fn over(&self) {
        unpoisoned(&self.streams).progress.clear();
    }

    /// Shows on the progress line that step `number` of `of` steps begins. The first step is 0. `what` names the step.
    pub fn step(&self, number: u32, of: u32, what: &str) {
        unpoisoned(&self.streams).progress.step(number, of, what);
    }
}

/// Locks the streams even if a thread panicked while it printed. Such a panic leaves half a line at worst.
fn unpoisoned(streams: &Mutex<OutputStreams>) -> MutexGuard<'_, OutputStreams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogOutput {
    /// Whether stderr shows colours.
    pub fn has_color(&self) -> bool {
        unpoisoned(&self.streams).stderr.color
    }
}

impl Write for LogOutput {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        unpoisoned(&self.streams).write_stderr_bytes(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogOutput {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl OutputStreams {
    /// Clears the progress line and writes a result to stdout.
    fn write_stdout(&mut self, bytes: &[u8]) -> Result<(), CommandFailure> {
        self.progress.clear();
        let writer = &mut self.stdout.writer;
        writer.write_all(bytes).and_then(|()| writer.flush()).map_err(|error| unwritten(&error))
    }

    /// Writes `text` to stderr, and draws the progress line again below it. Ignores an error, because it could only be
    /// reported on stderr.
    fn write_stderr(&mut self, text: &str) {
        self.write_stderr_bytes(text.as_bytes());
    }

    fn write_stderr_bytes(&mut self, bytes: &[u8]) {
        let writer = &mut self.stderr.writer;
        self.progress.aside(|| {
            writer.write_all(bytes).and_then(|()| writer.flush()).ok();
        });
    }
}

/// Removes all control and invisible characters except newlines, and appends a newline. Text from a peer is already
/// sanitised when it is received. This function protects the terminal from text that was not sanitised.
fn printable(text: &str) -> String {
    let mut clean = text.chars().filter(|c| *c == '\n' || is_harmless(*c)).collect::<String>();
    clean.push('\n');
    clean
}

fn rendered(lines: &[Line], color: bool) -> String {
    lines.iter().map(|line| line.rendered(color) + "\n").collect()
}

fn unwritten(error: &io::Error) -> CommandFailure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // As with `| head`: the reader needs no more.
        return CommandFailure::reader_gone();
    }
    CommandFailure::new(
        ExitStatus::Failed,
        "cannot_print",
        "cannot write the result",
        error.to_string(),
        "check the free space and the permissions of the file or pipe that stdout is redirected to",
    )
}

fn unprintable(error: serde_json::Error) -> CommandFailure {
    CommandFailure::new(
        ExitStatus::Failed,
        "cannot_print",
        "cannot write the result as JSON",
        error.to_string(),
        "run the command without --json; please report this fault of the program",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use paramedic_report::document::example;

    use super::*;

    /// A writer that keeps the written bytes for the test to read.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A writer that always fails.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn printer(wanted: Wanted) -> (Output, Written, Written) {
        let (stdout, stderr) = (Written::default(), Written::default());
        let stream =
            |writer: &Written| OutputStream { writer: Box::new(writer.clone()), color: wanted.color == Color::Always };
        let streams =
            OutputStreams { stdout: stream(&stdout), stderr: stream(&stderr), progress: ProgressLine::hidden() };
        (Output::with(wanted, streams), stdout, stderr)
    }

    fn wanted(format: OutputFormat) -> Wanted {
        Wanted { format, ..Wanted::default() }
    }

    fn unreachable() -> CommandFailure {
        CommandFailure::new(
            ExitStatus::Failed,
            "unreachable",
            "cannot reach\u{1b}[2J reflector",
            "refused",
            "is it running?",
        )
    }

    #[test]
    fn json_is_one_document_to_the_byte_as_it_is_saved() {
        let (output, stdout, stderr) = printer(wanted(OutputFormat::Json));
        for event in example::events() {
            output.live().event(&event).unwrap();
        }
        output.result(&example::full()).unwrap();
        assert_eq!(stdout.text(), example::full().to_text().unwrap() + "\n");
        assert_eq!(stderr.text(), "");
    }

    #[test]
    fn the_stream_has_one_event_a_line() {
        let (output, stdout, _) = printer(wanted(OutputFormat::JsonStream));
        for event in example::events().iter().take(3) {
            output.live().event(event).unwrap();
        }
        output.result(&example::full()).unwrap();
        output.fail(&unreachable());
        let words = stdout
            .text()
            .lines()
            .map(|line| {
                let event = serde_json::from_str::<serde_json::Value>(line).unwrap();
                event["event"].as_str().unwrap().to_owned()
            })
            .collect::<Vec<_>>();
        assert_eq!(words, ["queued", "start", "phase", "result", "error"]);
    }

    #[test]
    fn a_failure_as_text_is_three_lines_on_stderr() {
        let (output, stdout, stderr) = printer(wanted(OutputFormat::Human));
        assert_eq!(output.fail(&unreachable()), ExitStatus::Failed);
        assert_eq!(stderr.text(), "cannot reach[2J reflector\nbecause: refused\ntry: is it running?\n");
        assert_eq!(stdout.text(), "");
    }

    #[test]
    fn a_failure_as_json_is_printed_on_stdout() {
        let (output, stdout, stderr) = printer(wanted(OutputFormat::Json));
        output.fail(&unreachable().measured(example::bare()));
        let document = serde_json::from_str::<serde_json::Value>(&stdout.text()).unwrap();
        assert_eq!(
            (&document["schema"], &document["code"]),
            (&"packetparamedic.error/1".into(), &"unreachable".into())
        );
        assert_eq!(document["measured_so_far"]["id"], example::bare().id.to_string());
        assert_eq!(stderr.text(), "");
    }

    #[test]
    fn measurements_before_a_failure_are_reported_as_a_result() {
        let (output, stdout, stderr) = printer(wanted(OutputFormat::Human));
        output.fail(&unreachable().measured(example::bare()));
        assert!(stdout.text().contains("50.0 Mbit/s"), "{}", stdout.text());
        assert!(stderr.text().starts_with("cannot reach"));
    }

    #[test]
    fn colours_are_printed_on_request_and_never_in_json() {
        let colored = |format| Wanted { format, color: Color::Always, ..Wanted::default() };
        let (output, stdout, _) = printer(colored(OutputFormat::Human));
        output.result(&example::full()).unwrap();
        assert!(stdout.text().contains("\u{1b}[32m"));
        let (output, stdout, _) = printer(colored(OutputFormat::Json));
        output.result(&example::full()).unwrap();
        assert!(!stdout.text().contains('\u{1b}'));
    }

    #[test]
    fn quiet_prints_only_errors_and_verbose_also_prints_notes() {
        for (verbosity, expected) in [
            (Verbosity::Quiet, "cannot reach"),
            (Verbosity::Normal, "a note\ncannot reach"),
            (Verbosity::Verbose, "a note\ncannot reach"),
        ] {
            let (output, _, stderr) = printer(Wanted { verbosity, ..Wanted::default() });
            output.note("a note");
            output.fail(&unreachable());
            assert!(stderr.text().starts_with(expected), "{}", stderr.text());
        }
    }

    #[test]
    fn a_closed_output_is_silent_and_a_full_disk_is_reported() {
        let with = |kind| {
            let (_, _, stderr) = printer(Wanted::default());
            let stream = |writer: Box<dyn Write + Send>| OutputStream { writer, color: false };
            let streams = OutputStreams {
                stdout: stream(Box::new(Broken(kind))),
                stderr: stream(Box::new(stderr.clone())),
                progress: ProgressLine::hidden(),
            };
            (Output::with(Wanted::default(), streams), stderr)
        };
        let (output, stderr) = with(io::ErrorKind::BrokenPipe);
        let gone = output.result(&example::bare()).unwrap_err();
        assert_eq!((output.fail(&gone), stderr.text().as_str()), (ExitStatus::Done, ""));
        let (output, stderr) = with(io::ErrorKind::StorageFull);
        let full = output.result(&example::bare()).unwrap_err();
        assert_eq!(output.fail(&full), ExitStatus::Failed);
        assert!(stderr.text().contains("try: check the free space"), "{}", stderr.text());
    }
}
