//! The axes of a plot: their range, ticks and unit. Pure: no I/O, no clock.

/// A linear axis of a plot that starts at 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// The value at which the axis ends, in the unit of the data.
    pub(super) end: f64,
    step: f64,
    /// How many units of the data make one unit of the labels: 1e6 if the data is in bit/s and the labels are in
    /// Mbit/s.
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

    /// The vertical position of `value` in a panel of this `height` whose top edge is at `top`. Lengths are in SVG
    /// units.
    pub(super) fn y(&self, top: f64, height: f64, value: f64) -> f64 {
        top + height - height * (value / self.end).clamp(0.0, 1.0)
    }
}

/// One in this many values may lie above the top of a curve's axis.
const RARE: usize = 50;
/// Rare values lie above the axis only if the highest of them is more than this many times the highest of the other
/// values.
const FAR: f64 = 2.0;

/// The lowest value at which the axis of a curve may end: the highest value, or the highest of the usual values if a
/// few values are far above all others. After a loss, TCP delivers the data that waited for the lost segment all at
/// once, so one interval can have many times the rate of the line. An axis up to that rate would make the rest of the
/// curve look flat.
pub(super) fn usual_top(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.collect::<Vec<_>>();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    let highest = values.first().copied().unwrap_or(0.0);
    // A short curve may have one rare value.
    let rare = if values.len() < 10 { 0 } else { values.len().div_ceil(RARE) };
    values.get(rare).copied().filter(|usual| *usual > 0.0 && highest > *usual * FAR).unwrap_or(highest)
}

/// The smallest number of the series …, 0.5, 1, 2, 5, 10, 20, … that is at least `least`.
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
    fn rare_values_far_above_all_others_do_not_set_the_axis() {
        let top = |values: &[f64]| usual_top(values.iter().copied());
        let with = |peaks: &[f64], count: usize| [peaks, &vec![20.0; count]].concat();
        assert_eq!((top(&[]), top(&[0.0, 0.0]), top(&[3.0, 1.0])), (0.0, 0.0, 3.0));
        assert_eq!(top(&with(&[118.0], 79)), 20.0, "one peak in 80 values");
        assert_eq!(top(&with(&[39.0], 79)), 39.0, "not far enough");
        assert_eq!(top(&with(&[118.0, 110.0, 100.0], 79)), 118.0, "not rare: two rates take turns");
        assert_eq!(top(&with(&[118.0], 5)), 118.0, "too few values");
        assert_eq!(top(&with(&[5.0], 0)), 5.0);
        assert_eq!(top(&[&[5.0][..], &[0.0; 79]].concat()), 5.0, "all others are zero");
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
