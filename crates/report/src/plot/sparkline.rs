//! Draws the curves of a running test as text: one line for each phase and direction. Pure: no I/O, no clock.

use paramedic_link::test_spec::{Direction, Load};

use crate::document::Event;
use crate::lines::{Line, Tone};
use crate::quantity;

use super::axis::usual_top;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// A sparkline has at most this many characters.
const MOST: usize = 38;

/// One curve: its phase, the direction of its rate (`None` for a latency), and its values in the order of the events.
type Curve = ((Load, Option<Direction>), Vec<u64>);

/// The curves of a running test: rates and idle latency.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PhaseCurves {
    /// One curve for each phase and direction, in the order of their first events.
    curves: Vec<Curve>,
}

impl PhaseCurves {
    /// Adds the value of a progress event to the curve of its phase and direction.
    pub fn note(&mut self, event: &Event) {
        let (of, value) = match event {
            Event::Interval(reading) => ((reading.phase, Some(reading.direction)), reading.bps),
            Event::Latency(reading) if reading.phase == Load::Idle => match reading.rtt_us {
                Some(rtt_us) => ((reading.phase, None), rtt_us),
                None => return,
            },
            // The test begins, or begins again: earlier values do not count.
            Event::Start(_) => return self.curves.clear(),
            _ => return,
        };
        match self.curves.iter_mut().find(|(known, _)| *known == of) {
            Some((_, values)) => values.push(value),
            None => self.curves.push((of, vec![value])),
        }
    }

    /// A heading, then one line of text for each curve, with its lowest and highest value. Leaves out curves with only
    /// one value. No lines if no curve is left.
    pub fn lines(&self) -> Vec<Line> {
        let line = |((load, direction), values): &Curve| {
            let name = match (load, direction) {
                (Load::Bidir, Some(Direction::Download)) => "both, down".to_owned(),
                (Load::Bidir, Some(Direction::Upload)) => "both, up".to_owned(),
                (load, _) => load.to_string(),
            };
            let shown = if direction.is_some() { quantity::rate } else { quantity::micros };
            let (low, high) = (values.iter().min()?, values.iter().max()?);
            let range = format!("   {} to {}", shown(*low), shown(*high));
            let curve = sparkline(values);
            Some(Line::of(Tone::Plain, format!("  {name:<10}{curve}")).with(Tone::Dim, range))
        };
        let lines = self.curves.iter().filter(|(_, values)| values.len() > 1).filter_map(line).collect::<Vec<_>>();
        if lines.is_empty() {
            return lines;
        }
        [Line::empty(), Line::of(Tone::Dim, "Over time")].into_iter().chain(lines).collect()
    }
}

/// Draws `values` as a text of bar characters. The highest value has the tallest bar. If a few values are far above all
/// others, they all have the tallest bar. If there are more values than characters, each bar is the mean of neighbouring
/// values.
pub fn sparkline(values: &[u64]) -> String {
    let group = values.len().div_ceil(MOST).max(1);
    let mean = |group: &[u64]| group.iter().map(|value| *value as f64).sum::<f64>() / group.len() as f64;
    let means = values.chunks(group).map(mean).collect::<Vec<_>>();
    let top = usual_top(means.iter().copied());
    let bar = |mean: &f64| {
        let share = if top > 0.0 { mean / top } else { 0.0 };
        BARS.get((share * BARS.len() as f64) as usize).copied().unwrap_or('█')
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{IntervalReading, LatencyReading};
    use crate::lines::WIDTH;

    fn rate(phase: Load, direction: Direction, bps: u64) -> Event {
        Event::Interval(IntervalReading { phase, direction, at_ms: 100, bps, by_sender: false })
    }

    #[test]
    fn a_sparkline_goes_from_zero_to_the_highest_value() {
        assert_eq!(sparkline(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), "▁▂▃▄▅▆▇██");
        assert_eq!(
            (sparkline(&[]), sparkline(&[0, 0]), sparkline(&[u64::MAX])),
            (String::new(), "▁▁".into(), "█".into())
        );
        assert_eq!(sparkline(&[5; 1000]).chars().count(), 38);
        let with_a_peak = [&[10; 20][..], &[118], &[20; 15]].concat();
        assert_eq!(sparkline(&with_a_peak), format!("{}{}", "▅".repeat(20), "█".repeat(16)));
    }

    #[test]
    fn each_phase_has_a_line_with_its_range() {
        let mut curves = PhaseCurves::default();
        let latency =
            |rtt_us| Event::Latency(LatencyReading { phase: Load::Idle, at_ms: 0, rtt_us, sent: 20, received: 20 });
        for event in [latency(Some(12_000)), latency(None), latency(Some(13_000))] {
            curves.note(&event);
        }
        for bps in [0, 500_000_000, 941_000_000] {
            curves.note(&rate(Load::Download, Direction::Download, bps));
            curves.note(&rate(Load::Bidir, Direction::Upload, bps / 10));
        }
        // A single value is not drawn as a curve.
        curves.note(&rate(Load::Upload, Direction::Upload, 5));
        let lines = curves.lines().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                "",
                "Over time",
                "  idle      ██   12.0 ms to 13.0 ms",
                "  download  ▁▅█   0 bit/s to 941 Mbit/s",
                "  both, up  ▁▅█   0 bit/s to 94.1 Mbit/s",
            ]
        );
        assert!(PhaseCurves::default().lines().is_empty());
        for bps in 0..2_000 {
            curves.note(&rate(Load::Bidir, Direction::Upload, 1_234_000_000 + bps));
        }
        assert!(curves.lines().iter().all(|line| line.to_string().chars().count() <= WIDTH));
    }
}
