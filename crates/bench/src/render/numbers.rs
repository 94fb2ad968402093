//! Formats numbers for pages and plots.

use crate::promises::Unit;

/// Formats a rate in Gbit/s without its unit, with three significant digits and at most three decimals.
pub(super) fn gigabits(bps: f64) -> String {
    three_digits(bps / 1e9)
}

/// Formats a value with three significant digits and at most three decimals.
pub(super) fn three_digits(value: f64) -> String {
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else if value >= 0.9995 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

/// Formats a value with its unit.
pub(super) fn with_unit(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Times => format!("{}×", three_digits(value)),
        Unit::Seconds => format!("{} ms", three_digits(value * 1e3)),
        Unit::Bytes => format!("{} MiB", three_digits(value / f64::from(1 << 20))),
        Unit::Share => format!("{} %", three_digits(value * 100.0)),
        Unit::PerSecond => format!("{}/s", three_digits(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        let written = [0.12345, 0.9999, 1.0, 9.994, 9.996, 12.34, 99.96, 321.4].map(three_digits);
        assert_eq!(written, ["0.123", "1.00", "1.00", "9.99", "10.0", "12.3", "100", "321"]);
        assert_eq!(gigabits(94.65e9), "94.7");
    }

    #[test]
    fn units_are_those_of_people() {
        assert_eq!(with_unit(1.6, Unit::Times), "1.60×");
        assert_eq!(with_unit(0.05, Unit::Seconds), "50.0 ms");
        assert_eq!(with_unit(12.0 * 1048576.0, Unit::Bytes), "12.0 MiB");
        assert_eq!(with_unit(0.001, Unit::Share), "0.100 %");
        assert_eq!(with_unit(400.0, Unit::PerSecond), "400/s");
    }
}
