//! Parses and prints rates, sizes, durations and shares. Rates, sizes and durations have a common parser, which gets
//! the table of the valid units. [`exact_bytes`] and [`exact_duration`] print exact values, for configuration files.
//! All other printing functions round the value, for reports. A setting or a flag may accept a smaller range than the
//! parser.

use std::time::Duration;

/// How the quantities of one kind, such as durations, are written: which units exist, and how large each unit is.
struct Scale {
    /// The name of the quantity, for error messages.
    quantity: &'static str,
    /// Each unit with its size in base units. [`exact`] prints a value in the first of these units that needs no
    /// fraction.
    units: &'static [(&'static str, u64)],
    /// Suffixes that may follow a unit, such as `B` in `GB`. [`exact`] prints the first suffix.
    endings: &'static [&'static str],
    has_case: bool,
    /// Whether a text may be a sum of several parts, as in `1h30m`.
    is_compound: bool,
}

/// The scale of durations. The base unit is the nanosecond.
const DURATION: Scale = Scale {
    quantity: "time",
    units: &[
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("min", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("µs", 1_000),
        ("ns", 1),
    ],
    endings: &[""],
    has_case: true,
    is_compound: true,
};

/// The scale of sizes. The base unit is the byte. Units are decimal (`GB`, SI) or binary (`GiB`, IEC).
const BYTES: Scale = Scale {
    quantity: "size",
    units: &[
        ("P", 1_000_000_000_000_000),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("k", 1_000),
        ("Pi", 1 << 50),
        ("Ti", 1 << 40),
        ("Gi", 1 << 30),
        ("Mi", 1 << 20),
        ("Ki", 1 << 10),
        ("", 1),
    ],
    endings: &["B", ""],
    has_case: false,
    is_compound: false,
};

/// The scale of sizes as iperf3's options `-l` and `-w` read them: K is 1024. The base unit is the byte.
const IPERF3_BYTES: Scale = Scale {
    quantity: "size",
    units: &[("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)],
    endings: &[""],
    has_case: false,
    is_compound: false,
};

/// The scale of rates. The base unit is the bit per second. Units are decimal (SI), as in iperf3's option `-b`.
const RATE: Scale = Scale {
    quantity: "rate",
    units: &[("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000), ("", 1)],
    endings: &["bit/s", "bps", "bit", ""],
    has_case: false,
    is_compound: false,
};

/// The limit of rates, in bits per second: [`parse_rate`] accepts only rates below this limit. The limit is below 2^53,
/// so every JSON reader reads every such rate exactly.
pub const MAX_RATE: u64 = 9_000_000_000_000_000;

/// Why a text cannot be parsed as a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages print")]
pub enum QuantityError {
    #[error("{text:?} does not start with a number")]
    NoNumber { text: String },
    #[error("{text:?} needs a unit of {quantity}")]
    NoUnit { text: String, quantity: &'static str },
    #[error("{unit:?} is not a unit of {quantity}")]
    UnknownUnit { unit: String, quantity: &'static str },
    #[error("{text:?} is out of range")]
    OutOfRange { text: String },
    #[error("{text:?} is ambiguous: write {text}% or {share}")]
    PercentageOrShare { text: String, share: String },
}

/// Parses a rate in bits per second: `900M`, `1.5 Gbit/s`, `250000`.
pub fn parse_rate(text: &str) -> Result<u64, QuantityError> {
    let rate = parse_u64(text, &RATE)?;
    if rate < MAX_RATE { Ok(rate) } else { Err(QuantityError::OutOfRange { text: text.to_owned() }) }
}

/// Parses a size in bytes: `500GB` (1 GB is 1,000,000,000 bytes), `20TiB`, `1.5 TB`, `20g`, `500000000000`.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    parse_u64(text, &BYTES)
}

/// Parses a size in bytes as iperf3's options `-l` and `-w` do: `256K` is 262,144 bytes.
pub fn parse_iperf3_bytes(text: &str) -> Result<u64, QuantityError> {
    parse_u64(text, &IPERF3_BYTES)
}

/// Parses a duration that has a unit: `60s`, `10m`, `1h30m`, `1.5h`.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    duration(text, None)
}

/// Parses a duration. A number without a unit is in seconds: `10`, `10s`, `250ms`.
pub fn parse_seconds(text: &str) -> Result<Duration, QuantityError> {
    duration(text, Some(1_000_000_000))
}

/// Parses a duration. A number without a unit is in milliseconds: `30`, `30ms`, `0.5s`.
pub fn parse_milliseconds(text: &str) -> Result<Duration, QuantityError> {
    duration(text, Some(1_000_000))
}

/// Parses a share from 0 to 1: `0.01`, `1%`, `0.12 %`. Rejects a number of 1 or more without `%`, which probably means
/// a percentage.
pub fn parse_share(text: &str) -> Result<f64, QuantityError> {
    let no_number = || QuantityError::NoNumber { text: text.to_owned() };
    let (number, unit) = split_number(text.trim()).ok_or_else(no_number)?;
    let divisor = match unit.trim_start() {
        "" => 1.0,
        "%" => 100.0,
        unit => return Err(QuantityError::UnknownUnit { unit: unit.to_owned(), quantity: "share (valid: %)" }),
    };
    let share = number.parse::<f64>().map_err(|_| no_number())? / divisor;
    if divisor == 1.0 && (1.0..100.0).contains(&share) {
        let text = text.trim().to_owned();
        return Err(QuantityError::PercentageOrShare { text, share: (share / 100.0).to_string() });
    }
    if share <= 1.0 { Ok(share) } else { Err(QuantityError::OutOfRange { text: text.to_owned() }) }
}

/// Prints a size in bytes without a fraction. Uses the largest decimal unit (kB or larger) that divides the size
/// without remainder, else the largest such binary unit, else the byte. [`parse_bytes`] reads the text back exactly.
pub fn exact_bytes(bytes: u64) -> String {
    exact(bytes.into(), &BYTES).unwrap_or_else(|| "0B".to_owned())
}

/// Prints a duration in the largest unit that needs no fraction. [`parse_duration`] reads the text back exactly.
pub fn exact_duration(duration: Duration) -> String {
    exact(duration.as_nanos(), &DURATION).unwrap_or_else(|| "0s".to_owned())
}

/// Prints a rate in bits per second with a decimal prefix: `941 Mbit/s`.
pub fn rate(bps: u64) -> String {
    scaled(bps, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// Prints a size in bytes with a decimal prefix: `2.41 GB`.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, ["B", "kB", "MB", "GB", "TB"])
}

/// Prints a duration given in microseconds: `850 µs`, `12.3 ms`, `1.20 s`.
pub fn micros(us: u64) -> String {
    scaled(us, ["µs", "ms", "s", "ks", "Ms"])
}

/// Prints a duration given in milliseconds: `850 ms`, `34.3 s`, `3 min 20 s`.
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

/// Prints a share from 0 to 1 as a percentage: `0 %`, `0.12 %`, `34 %`. A share above zero never prints as zero.
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

/// Prints `number` with three significant digits in the unit that fits. Each unit in `units` is a thousand times the
/// unit before it.
fn scaled(number: u64, units: [&str; 5]) -> String {
    if number < 1000 {
        return format!("{number} {}", units[0]);
    }
    let mut value = number as f64;
    let mut unit = 0;
    // 999.5 rounds to 1000, which is 1 of the next unit.
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

fn duration(text: &str, bare: Option<u64>) -> Result<Duration, QuantityError> {
    const NANOS: u128 = 1_000_000_000;
    let nanos = parse(text, &DURATION, bare)?;
    let out_of_range = |_| QuantityError::OutOfRange { text: text.to_owned() };
    let seconds = u64::try_from(nanos / NANOS).map_err(out_of_range)?;
    Ok(Duration::new(seconds, (nanos % NANOS) as u32))
}

fn parse_u64(text: &str, scale: &Scale) -> Result<u64, QuantityError> {
    u64::try_from(parse(text, scale, None)?).map_err(|_| QuantityError::OutOfRange { text: text.to_owned() })
}

/// Parses `text` and returns the value in base units of `scale`, rounded to the nearest whole number. Some scales have
/// a unit with an empty name. In the other scales, a single number without a unit counts in units of size `bare`. If
/// `bare` is `None`, such a number is an error.
fn parse(text: &str, scale: &Scale, bare: Option<u64>) -> Result<u128, QuantityError> {
    let out_of_range = || QuantityError::OutOfRange { text: text.to_owned() };
    let mut rest = text.trim();
    let mut total: Option<u128> = None;
    loop {
        let (number, after) = split_number(rest).ok_or_else(|| QuantityError::NoNumber { text: text.to_owned() })?;
        let after = after.trim_start();
        let ends_unit = |c: char| scale.is_compound && (c.is_ascii_digit() || c == '.' || c.is_whitespace());
        let (unit, after) = after.split_at(after.find(ends_unit).unwrap_or(after.len()));
        rest = after.trim_start();
        let is_only_part = total.is_none() && rest.is_empty();
        let unit_size = match scale.size_of(unit).or(bare.filter(|_| unit.is_empty() && is_only_part)) {
            Some(size) => size,
            None if unit.is_empty() => {
                return Err(QuantityError::NoUnit { text: text.to_owned(), quantity: scale.quantity });
            }
            None => return Err(QuantityError::UnknownUnit { unit: unit.to_owned(), quantity: scale.quantity }),
        };
        let part = times(number, unit_size).ok_or_else(out_of_range)?;
        let sum = total.unwrap_or(0).checked_add(part).ok_or_else(out_of_range)?;
        if rest.is_empty() {
            return Ok(sum);
        }
        total = Some(sum);
    }
}

impl Scale {
    /// The size of the unit `name`, in base units; `None` if the scale has no such unit.
    fn size_of(&self, name: &str) -> Option<u64> {
        let is_same = |a: &str, b: &str| if self.has_case { a == b } else { a.eq_ignore_ascii_case(b) };
        let bare_names = self.endings.iter().filter_map(|ending| {
            let start = name.len().checked_sub(ending.len())?;
            is_same(name.get(start..)?, ending).then(|| &name[..start])
        });
        bare_names
            .flat_map(|bare_name| self.units.iter().filter(move |(unit, _)| is_same(unit, bare_name)))
            .map(|(_, size)| *size)
            .next()
    }
}

/// Splits `text` after the unsigned decimal number at its start, such as `1`, `1.5`, `.5` or `1e9`. `None` if `text`
/// does not start with such a number.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let whole = digits(text);
    let mut end = whole;
    if text[end..].starts_with('.') {
        let fraction = digits(&text[end + 1..]);
        if whole + fraction == 0 || text[end + 1 + fraction..].starts_with('.') {
            return None;
        }
        end += 1 + fraction;
    }
    if end == 0 {
        return None;
    }
    if let Some(exponent) = text[end..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let exponent_digits = digits(&exponent[sign..]);
        if exponent_digits > 0 {
            end += 1 + sign + exponent_digits;
        }
    }
    Some(text.split_at(end))
}

/// Multiplies `number` by `unit`, the size of a unit, and rounds to the nearest whole number. `None` on overflow.
/// `number` is the first part of what [`split_number`] returns.
fn times(number: &str, unit: u64) -> Option<u128> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}").parse::<u128>().ok()?;
    let shift = exponent.parse::<i32>().ok()?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let power = 10u128.checked_pow(shift.unsigned_abs())?;
    let value = digits.checked_mul(unit.into())?;
    if shift >= 0 { value.checked_mul(power) } else { Some(value.checked_add(power / 2)? / power) }
}

/// Prints `value`, which is in base units of `scale`, in the first unit that needs no fraction. `None` if `value` is 0.
fn exact(value: u128, scale: &Scale) -> Option<String> {
    let (unit, size) = scale.units.iter().find(|(_, size)| value != 0 && value.is_multiple_of((*size).into()))?;
    Some(format!("{}{unit}{}", value / u128::from(*size), scale.endings[0]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_exact_quantity_reads_back(value: u64) {
            prop_assert_eq!(parse_bytes(&exact_bytes(value)), Ok(value));
            for duration in [Duration::from_nanos(value), Duration::from_millis(value), Duration::from_secs(value)] {
                prop_assert_eq!(parse_duration(&exact_duration(duration)), Ok(duration));
            }
        }

        #[test]
        fn a_quantity_for_a_reader_reads_back_as_three_digits_of_it(value in 1..MAX_RATE, shift in 0..50u32) {
            let value = value >> shift;
            let is_near = |read: f64, value: f64| (read - value).abs() <= value * 0.005;
            prop_assert!(is_near(parse_rate(&rate(value)).unwrap() as f64, value as f64), "{}", rate(value));
            prop_assert!(is_near(parse_bytes(&bytes(value)).unwrap() as f64, value as f64), "{}", bytes(value));
            let us = value % 999_000_000;
            let read = parse_duration(&micros(us)).unwrap();
            prop_assert!(is_near(read.as_secs_f64() * 1e6, us as f64), "{}", micros(us));
            let ms = value % 1_000_000_000;
            // From an hour on, `millis` prints hours and minutes and drops the seconds.
            let step = if ms < 3_600_000 { 550.0 } else { 60_550.0 };
            let read = parse_duration(&millis(ms)).unwrap();
            prop_assert!((read.as_secs_f64() * 1e3 - ms as f64).abs() <= step, "{ms}: {}", millis(ms));
        }

        #[test]
        fn a_share_for_a_reader_reads_back(value in 0.0001..1.0f64) {
            let read = parse_share(&share(value)).unwrap();
            // `share` prints two decimals of a percentage below 1 %, one decimal below 10 %, and none from 10 % on.
            let step = if value < 0.00995 { 5.1e-5 } else if value < 0.0995 { 5.1e-4 } else { 5.1e-3 };
            prop_assert!((read - value).abs() <= step, "{}", share(value));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", number in "[0-9.eE+-]{0,40} ?[a-zA-Zµ%/]{0,5}") {
            for text in [text, number] {
                let _ = (parse_duration(&text), parse_seconds(&text), parse_milliseconds(&text));
                let _ = (parse_rate(&text), parse_bytes(&text), parse_iperf3_bytes(&text), parse_share(&text));
            }
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_a_default_one() {
        let ms = |text: &str| parse_duration(text).unwrap().as_millis();
        assert_eq!(
            ["60s", "10m", "1h30m", "1.5h", "500 ms", "1 min", "3 min 20 s"].map(ms),
            [60_000, 600_000, 5_400_000, 5_400_000, 500, 60_000, 200_000]
        );
        assert_eq!(parse_duration("1.5ms"), Ok(Duration::from_micros(1500)));
        assert_eq!(
            ["2", ".5", "250ms", "2m"].map(|text| parse_seconds(text).unwrap().as_millis()),
            [2000, 500, 250, 120_000]
        );
        assert_eq!(["30", "0.5s"].map(|text| parse_milliseconds(text).unwrap().as_millis()), [30, 500]);
        let no_unit = |text: &str| QuantityError::NoUnit { text: text.to_owned(), quantity: "time" };
        assert_eq!(parse_duration("60"), Err(no_unit("60")));
        assert_eq!(parse_seconds("1h 30"), Err(no_unit("1h 30")));
        assert_eq!(no_unit("60").to_string(), "\"60\" needs a unit of time");
        assert_eq!(parse_duration("10 fortnights").unwrap_err().to_string(), "\"fortnights\" is not a unit of time");
        assert!(parse_duration("1M").is_err() && parse_duration("999999999999999999999d").is_err());
        assert_eq!([600_000, 1500, 0].map(|ms| exact_duration(Duration::from_millis(ms))), ["10m", "1500ms", "0s"]);
    }

    #[test]
    fn a_size_is_decimal_unless_its_unit_is_binary_or_iperf3_reads_it() {
        let sizes = ["500GB", "1.5 TB", "1GiB", "20g", "123", "1e3"].map(|text| parse_bytes(text).unwrap());
        assert_eq!(sizes, [500_000_000_000, 1_500_000_000_000, 1 << 30, 20_000_000_000, 123, 1000]);
        assert_eq!(exact_bytes(20_000_000_000_000), "20TB");
        let sizes = ["262144", "256K", "4m", "1.5K"].map(|text| parse_iperf3_bytes(text).unwrap());
        assert_eq!(sizes, [262_144, 262_144, 4 << 20, 1536]);
        assert!(parse_bytes("5 parsecs").is_err() && parse_bytes("99999PB").is_err() && parse_bytes("GB").is_err());
        assert!(parse_iperf3_bytes("1KB").is_err());
    }

    #[test]
    fn a_rate_is_decimal_bits_per_second() {
        let rates = ["900M", "1.5 Gbit/s", "941Mbps", "250000", "1e9"].map(|text| parse_rate(text).unwrap());
        assert_eq!(rates, [900_000_000, 1_500_000_000, 941_000_000, 250_000, 1_000_000_000]);
        assert!(parse_rate("9000000000000000").is_err());
    }

    #[test]
    fn a_share_is_a_fraction_or_a_percentage() {
        assert_eq!(["0.01", "1%", "7 %", "100%"].map(|text| parse_share(text).unwrap()), [0.01, 0.01, 0.07, 1.0]);
        for (text, choice) in [("1", "1% or 0.01"), (" 2.5", "2.5% or 0.025"), ("99", "99% or 0.99")] {
            let refused = parse_share(text).unwrap_err().to_string();
            assert!(refused.ends_with(choice), "{refused}");
        }
        assert!(
            parse_share("1.01").is_err()
                && parse_share("100").is_err()
                && parse_share("101%").is_err()
                && parse_share("5%%").is_err()
        );
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for bad in ["", " ", "-1", "+1", "nan", "inf", "1e400", "ten", ".", "1..5", "1.2.3", "e5", "5 5"] {
            assert!(parse_rate(bad).is_err() && parse_bytes(bad).is_err(), "{bad}");
            assert!(parse_iperf3_bytes(bad).is_err() && parse_seconds(bad).is_err(), "{bad}");
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }

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
