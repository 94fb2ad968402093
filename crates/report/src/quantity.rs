//! Quantities as people read them: three digits and a unit. Scripts get whole numbers elsewhere.

/// A rate in SI decimal bits: `941 Mbit/s`.
pub fn rate(bps: u64) -> String {
    scaled(bps, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// A size in SI decimal bytes: `2.41 GB`.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, ["B", "kB", "MB", "GB", "TB"])
}

/// A time that was given in microseconds: `850 µs`, `12.3 ms`, `1.20 s`.
pub fn micros(us: u64) -> String {
    scaled(us, ["µs", "ms", "s", "ks", "Ms"])
}

/// A length that was given in milliseconds: `850 ms`, `34.3 s`, `3 min 20 s`.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => {
            let tenths = (ms + 50) / 100;
            if tenths.is_multiple_of(10) {
                format!("{} s", tenths / 10)
            } else {
                format!("{}.{} s", tenths / 10, tenths % 10)
            }
        }
        _ => {
            let seconds = (ms + 500) / 1000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            if hours == 0 { format!("{minutes} min {} s", seconds % 60) } else { format!("{hours} h {minutes} min") }
        }
    }
}

/// A share from 0 to 1: `0 %`, `0.12 %`, `34 %`. A share that is not zero never reads as zero.
pub fn share(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        p if p <= 0.0 => "0 %".to_owned(),
        p if p < 0.01 => "<0.01 %".to_owned(),
        p if p < 0.995 => format!("{p:.2} %"),
        p if p < 9.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

/// Three significant digits in the unit that fits, each a thousand times the one before.
fn scaled(number: u64, units: [&str; 5]) -> String {
    if number < 1000 {
        return format!("{number} {}", units[0]);
    }
    let mut value = number as f64;
    let mut unit = 0;
    // 999.5 rounds to a thousand: that is one of the next unit.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_the_unit_that_fits() {
        assert_eq!(rate(941_000_000), "941 Mbit/s");
        assert_eq!(rate(94_250_000), "94.2 Mbit/s");
        assert_eq!(rate(9_425_000_000), "9.43 Gbit/s");
        assert_eq!(rate(999_499_999), "999 Mbit/s");
        assert_eq!(rate(999_500_000), "1.00 Gbit/s");
        assert_eq!(rate(9_999_000), "10.0 Mbit/s");
        assert_eq!(rate(0), "0 bit/s");
        assert_eq!(rate(u64::MAX), "18446744 Tbit/s");
        assert_eq!(bytes(2_410_000_000), "2.41 GB");
        assert_eq!(micros(850), "850 µs");
        assert_eq!(micros(12_300), "12.3 ms");
        assert_eq!(micros(1_200_000), "1.20 s");
    }

    #[test]
    fn a_length_reads_as_a_clock_does() {
        let lengths = [850, 1_000, 34_250, 59_990, 60_000, 200_400, 7_260_000].map(millis);
        assert_eq!(lengths, ["850 ms", "1 s", "34.3 s", "60 s", "1 min 0 s", "3 min 20 s", "2 h 1 min"]);
    }

    #[test]
    fn a_small_share_is_not_nothing() {
        let shares = [0.0, 0.000_01, 0.001, 0.0215, 0.34, 1.0].map(share);
        assert_eq!(shares, ["0 %", "<0.01 %", "0.10 %", "2.1 %", "34 %", "100 %"]);
    }
}
