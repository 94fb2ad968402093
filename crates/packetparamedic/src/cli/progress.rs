//! Shows the progress of a running test as one line on a terminal.

use std::io::{self, Write};
use std::time::Duration;

use paramedic_link::test_spec::{Direction, Load};

use paramedic_report::document::Event;
use paramedic_report::quantity;

/// The width of the progress bar, in columns.
const BAR: usize = 20;
/// The assumed width of a terminal that does not report its width, in columns.
const COLUMNS: usize = 80;
/// The control sequence that moves to the start of the line and clears it (ECMA-48, EL).
const CLEAR: &str = "\r\u{1b}[K";

/// The progress line. It is invisible if stderr is not a terminal.
pub(super) struct ProgressLine {
    terminal: Option<Box<dyn Write + Send>>,
    prefix: &'static str,
    message: String,
    position: u64,
    length: u64,
    live: PhaseReadings,
    /// Whether the line is on the screen. It is drawn only while a test has progress to show.
    is_drawn: bool,
}

/// The latest measurements of the running phase of a test.
#[derive(Clone, Debug, Default, PartialEq)]
struct PhaseReadings {
    download_bps: Option<u64>,
    upload_bps: Option<u64>,
    rtt_us: Option<u64>,
}

impl ProgressLine {
    /// Creates a progress line on stderr, which must be a terminal.
    pub(super) fn on_stderr() -> Self {
        // A dumb terminal has no way to clear a line.
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if is_dumb { Self::hidden() } else { Self { terminal: Some(Box::new(io::stderr())), ..Self::hidden() } }
    }

    /// Creates a progress line that draws nothing.
    pub(super) fn hidden() -> Self {
        Self {
            terminal: None,
            prefix: "",
            message: String::new(),
            position: 0,
            length: 1,
            live: PhaseReadings::default(),
            is_drawn: false,
        }
    }

    /// Updates the progress line for an event of the running test.
    pub(super) fn show(&mut self, event: &Event) {
        match event {
            Event::Queued(queued) => {
                let wait = quantity::millis(queued.expected_wait_ms);
                self.prefix = "waiting";
                self.message = format!("place {} in the queue, about {wait}", queued.place);
                self.draw();
            }
            Event::Start(_) => {}
            Event::Phase(begun) => {
                self.live = PhaseReadings::default();
                (self.position, self.length) = (0, begun.duration_ms.max(1));
                self.prefix = name(begun.phase);
                self.message.clear();
                self.draw();
            }
            Event::Interval(reading) => {
                match reading.direction {
                    Direction::Download => self.live.download_bps = Some(reading.bps),
                    Direction::Upload => self.live.upload_bps = Some(reading.bps),
                }
                self.advance(reading.at_ms);
            }
            Event::Latency(reading) => {
                self.live.rtt_us = reading.rtt_us;
                self.advance(reading.at_ms);
            }
            Event::Result(_) | Event::Error(_) => self.clear(),
        }
    }

    /// Shows that step `number` of `of` steps begins. The first step is 0. `what` names the step.
    pub(super) fn step(&mut self, number: u32, of: u32, what: &str) {
        self.prefix = "self-test";
        what.clone_into(&mut self.message);
        (self.position, self.length) = (number.into(), u64::from(of).max(1));
        self.draw();
    }

    /// Clears the progress line.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            self.write(CLEAR);
        }
    }

    /// Clears the progress line, calls `write`, and draws the progress line again.
    pub(super) fn aside(&mut self, write: impl FnOnce()) {
        let was_drawn = self.is_drawn;
        self.clear();
        write();
        if was_drawn {
            self.draw();
        }
    }

    fn advance(&mut self, at_ms: u64) {
        // The measurements of both directions and of the probes arrive in any order.
        self.position = at_ms.max(self.position).min(self.length);
        self.message = self.live.text(Duration::from_millis(self.position));
        if self.is_drawn {
            self.draw();
        }
    }

    fn draw(&mut self) {
        self.is_drawn = true;
        if self.terminal.is_some() {
            let line = self.line(columns());
            self.write(&format!("\r{line}\u{1b}[K"));
        }
    }

    /// The text of the line for a terminal with `columns` columns. It never uses the last column, because a line that
    /// wraps cannot be cleared.
    fn line(&self, columns: usize) -> String {
        let room = columns.saturating_sub(1);
        let done = usize::try_from(self.position.saturating_mul(BAR as u64) / self.length).unwrap_or(BAR).min(BAR);
        let bar = "━".repeat(done) + &"─".repeat(BAR - done);
        let whole = format!("{:9} {bar} {}", self.prefix, self.message);
        if whole.chars().count() <= room {
            return whole;
        }
        format!("{} {}", self.prefix, self.message.trim_start()).chars().take(room).collect()
    }

    fn write(&mut self, text: &str) {
        if let Some(terminal) = &mut self.terminal {
            // A closed terminal is not an error.
            terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush()).ok();
        }
    }
}

/// The width of the terminal in columns. It may change at any time.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

impl PhaseReadings {
    fn text(&self, at: Duration) -> String {
        let down = self.download_bps.map(|bps| format!("  {:>11} down", quantity::rate(bps)));
        let up = self.upload_bps.map(|bps| format!("  {:>11} up", quantity::rate(bps)));
        let rtt = self.rtt_us.map(|us| format!("  {:>7}", quantity::micros(us)));
        let readings = [down, up, rtt].into_iter().flatten().collect::<String>();
        format!("{:>3} s{readings}", at.as_secs())
    }
}

fn name(load: Load) -> &'static str {
    match load {
        Load::Idle => "idle",
        Load::Download => "download",
        Load::Upload => "upload",
        Load::Bidir => "both",
        Load::Unknown => "",
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{IntervalReading, PhaseBegun, example};

    use super::*;

    #[test]
    fn the_line_shows_time_rates_and_latency() {
        let live = PhaseReadings { download_bps: Some(941_000_000), upload_bps: None, rtt_us: Some(24_600) };
        assert_eq!(live.text(Duration::from_millis(3_900)), "  3 s   941 Mbit/s down  24.6 ms");
        assert_eq!(PhaseReadings::default().text(Duration::ZERO), "  0 s");
    }

    #[test]
    fn a_new_phase_clears_the_rates_of_the_last_one() {
        let mut progress = ProgressLine::hidden();
        for event in example::events().iter().take(5) {
            progress.show(event);
        }
        assert_eq!((progress.live.download_bps, progress.position), (Some(941_000_000), 100));
        progress.show(&Event::Phase(PhaseBegun { phase: Load::Upload, duration_ms: 1_000 }));
        assert_eq!((progress.live.clone(), progress.position), (PhaseReadings::default(), 0));
        let late = IntervalReading {
            phase: Load::Upload,
            direction: Direction::Upload,
            at_ms: 1_200,
            bps: 1,
            by_sender: false,
        };
        progress.show(&Event::Interval(late));
        assert_eq!(progress.position, 1_000);
    }

    #[test]
    fn the_line_fits_any_terminal_and_drops_the_readings_last() {
        let mut progress = ProgressLine::hidden();
        progress.show(&Event::Phase(PhaseBegun { phase: Load::Download, duration_ms: 1_000 }));
        progress.live.download_bps = Some(941_000_000);
        progress.advance(500);
        assert_eq!(
            progress.line(80),
            format!("download  {}{}   0 s   941 Mbit/s down", "━".repeat(10), "─".repeat(10))
        );
        assert_eq!(progress.line(40), "download 0 s   941 Mbit/s down");
        assert_eq!(progress.line(20), "download 0 s   941 ");
        for columns in 0..100 {
            assert!(progress.line(columns).chars().count() < columns.max(1), "{columns}");
        }
    }
}
