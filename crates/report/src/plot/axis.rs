//! The axes of a plot: their range, ticks and unit. Pure: no I/O, no clock.

/// A linear axis of a plot that starts at 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// The value at which the axis ends, in the unit of the data.
    pub(super) end: f64,
    step: f64,
    /// The size of one unit of the labels in units of the data, such as 1e6 for labels in Mbit/s and data in bit/s.
    scale: f64,
    /// The unit that the labels use.
    pub(super) unit: &'static str,
}

impl Axis {
    /// An axis for rates from 0 to `highest` bits per second.
    pub(super) fn of_rate(highest: f64) -> Self {
        let units = [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")];
        let (scale, unit) = units.into_iter().find(|(scale, _)| highest >= *scale).unwrap_or((1.0, "bit/s"));
        Self::up_to(highest, scale, unit)
    }

    /// An axis for delays from 0 to `highest` milliseconds.
    pub(super) fn of_delay(highest: f64) -> Self {
        Self::up_to(highest, 1.0, "ms")
    }

    /// An axis for shares from 0 to `highest` percent.
    pub(super) fn of_share(highest: f64) -> Self {
        Self {
            step: if highest > 20.0 { 50.0 } else { 10.0 },
            end: if highest > 20.0 { 100.0 } else { 20.0 },
            scale: 1.0,
            unit: "%",
        }
    }

    /// A time axis from 0 to `length_s` seconds.
    pub(super) fn of_time(length_s: f64) -> Self {
        let units = [(7_200.0, 3_600.0, "h"), (600.0, 60.0, "min")];
        let (_, scale, unit) = units.into_iter().find(|(from, ..)| length_s >= *from).unwrap_or((0.0, 1.0, "s"));
        Self { end: length_s, step: step(length_s / scale / 8.0) * scale, scale, unit }
    }

    fn up_to(highest: f64, scale: f64, unit: &'static str) -> Self {
        // A curve that is always 0 needs an axis, too.
        let highest = if highest > 0.0 { highest } else { scale };
        let step = step(highest / scale / 4.0) * scale;
        Self { end: (highest / step).ceil() * step, step, scale, unit }
    }

    /// The values at which the axis has a tick with a label.
    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (step, count) = (self.step, (self.end / self.step + 1e-9).floor());
        // An axis has at most a few dozen ticks.
        (0..=(count as u32).min(64)).map(move |at| f64::from(at) * step)
    }

    /// The label of the tick at `value`, without the unit.
    pub(super) fn label(&self, value: f64) -> String {
        // Six decimals hide the rounding error of the multiplication.
        let text = format!("{:.6}", value / self.scale);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }

    /// The vertical position of `value` in a panel whose top edge is at `top`. All lengths are in SVG units.
    pub(super) fn y(&self, top: f64, height: f64, value: f64) -> f64 {
        top + height - height * (value / self.end).clamp(0.0, 1.0)
    }
}

/// The smallest number of the series 1, 2, 5, 10, 20, … that is at least `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= least * 0.999).unwrap_or(least)
}

/// Escapes text for use in SVG.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_in_a_fitting_unit() {
        let rate = Axis::of_rate(941_000_000.0);
        assert_eq!((labels(&rate).join(" "), rate.unit), ("0 500 1000".to_owned(), "Mbit/s"));
        let slow = Axis::of_rate(64_000.0);
        assert_eq!((labels(&slow).join(" "), slow.unit), ("0 20 40 60 80".to_owned(), "kbit/s"));
        assert_eq!(labels(&Axis::of_delay(0.31)).join(" "), "0 0.1 0.2 0.3 0.4");
        assert_eq!(labels(&Axis::of_share(3.0)).join(" "), "0 10 20");
        assert_eq!(labels(&Axis::of_share(100.0)).join(" "), "0 50 100");
        let time = Axis::of_time(23.0);
        assert_eq!((labels(&time).join(" "), time.unit), ("0 5 10 15 20".to_owned(), "s"));
        let hours = Axis::of_time(86_400.0);
        assert_eq!((labels(&hours).join(" "), hours.unit), ("0 5 10 15 20".to_owned(), "h"));
    }

    #[test]
    fn every_value_is_inside_its_panel() {
        for highest in [0.0, 1e-9, 0.7, 1.0, 99.0, 1e12, 1e20] {
            for axis in [Axis::of_rate(highest), Axis::of_delay(highest), Axis::of_share(highest)] {
                assert!(axis.ticks().count() <= 65, "{highest}");
                for value in [0.0, highest / 3.0, highest, highest * 2.0] {
                    let y = axis.y(10.0, 100.0, value);
                    assert!((10.0..=110.0).contains(&y), "{highest} {value}: {y}");
                }
            }
        }
    }
}
