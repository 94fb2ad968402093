//! One line on a terminal that tells how a running test is doing. Draws; decides nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paramedic_link::test_spec::{Direction, Load};

use paramedic_report::document::Event;
use paramedic_report::quantity;

/// The line, or nothing where there is no terminal.
pub(super) struct ProgressLine {
    bar: ProgressBar,
    live: PhaseReadings,
    /// Whether there is a line: not before a test has something to tell, nor after.
    is_drawn: bool,
}

/// What is known of the running phase.
#[derive(Clone, Debug, Default, PartialEq)]
struct PhaseReadings {
    download_bps: Option<u64>,
    upload_bps: Option<u64>,
    rtt_us: Option<u64>,
}

impl ProgressLine {
    /// Draws on stderr, which is a terminal.
    pub(super) fn on_stderr() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    /// Draws nothing.
    pub(super) fn hidden() -> Self {
        Self::on(ProgressDrawTarget::hidden())
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(1), target);
        // A template that can't be read leaves the default one, which shows less.
        if let Ok(style) = ProgressStyle::with_template("{prefix:9} {bar:20} {msg}") {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self { bar, live: PhaseReadings::default(), is_drawn: false }
    }

    /// Draws what an event tells.
    pub(super) fn show(&mut self, event: &Event) {
        self.is_drawn |= matches!(event, Event::Queued(_) | Event::Phase(_));
        match event {
            Event::Queued(queued) => {
                let wait = quantity::millis(queued.expected_wait_ms);
                self.bar.set_prefix("waiting");
                self.bar.set_message(format!("place {} in the queue, about {wait}", queued.place));
            }
            Event::Start(_) => {}
            Event::Phase(begun) => {
                self.live = PhaseReadings::default();
                self.bar.set_length(begun.duration_ms.max(1));
                self.bar.set_position(0);
                self.bar.set_prefix(name(begun.phase));
                self.bar.set_message("");
            }
            Event::Interval(reading) => {
                match reading.direction {
                    Direction::Download => self.live.download_bps = Some(reading.bps),
                    Direction::Upload => self.live.upload_bps = Some(reading.bps),
                }
                self.draw(reading.at_ms);
            }
            Event::Latency(reading) => {
                self.live.rtt_us = reading.rtt_us;
                self.draw(reading.at_ms);
            }
            Event::Result(_) | Event::Error(_) => self.clear(),
        }
    }

    /// Draws that step `number` of so many begins, from 0.
    pub(super) fn step(&mut self, number: u32, of: u32, what: &str) {
        self.is_drawn = true;
        self.bar.set_prefix("self-test");
        self.bar.set_message(what.to_owned());
        self.bar.set_length(of.into());
        self.bar.set_position(number.into());
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            self.bar.finish_and_clear();
            self.bar.reset();
        }
    }

    /// Lets `write` write, the line out of its way.
    pub(super) fn aside(&self, write: impl FnOnce()) {
        // Suspending would draw a line that was not there.
        if self.is_drawn { self.bar.suspend(write) } else { write() }
    }

    fn draw(&self, at_ms: u64) {
        // The readings of two directions and of the probes come in any order.
        let at_ms = at_ms.max(self.bar.position()).min(self.bar.length().unwrap_or(at_ms));
        self.bar.set_position(at_ms);
        self.bar.set_message(self.live.text(Duration::from_millis(at_ms)));
    }
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
    fn the_line_tells_time_rates_and_latency() {
        let live = PhaseReadings { download_bps: Some(941_000_000), upload_bps: None, rtt_us: Some(24_600) };
        assert_eq!(live.text(Duration::from_millis(3_900)), "  3 s   941 Mbit/s down  24.6 ms");
        assert_eq!(PhaseReadings::default().text(Duration::ZERO), "  0 s");
    }

    #[test]
    fn a_new_phase_forgets_the_last_one_s_rates() {
        let mut progress = ProgressLine::hidden();
        for event in example::events().iter().take(5) {
            progress.show(event);
        }
        assert_eq!((progress.live.download_bps, progress.bar.position()), (Some(941_000_000), 100));
        progress.show(&Event::Phase(PhaseBegun { phase: Load::Upload, duration_ms: 1_000 }));
        assert_eq!((progress.live.clone(), progress.bar.position()), (PhaseReadings::default(), 0));
        let late = IntervalReading {
            phase: Load::Upload,
            direction: Direction::Upload,
            at_ms: 1_200,
            bps: 1,
            by_sender: false,
        };
        progress.show(&Event::Interval(late));
        assert_eq!(progress.bar.position(), 1_000);
    }
}
