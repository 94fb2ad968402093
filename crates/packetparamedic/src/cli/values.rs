//! What people write on the command line, read: rates, times, shares.

use std::time::Duration;

use paramedic_link::test_spec::DataPathWish;

/// A rate in bits per second: `900M`, `1.5G`, `941Mbit/s`, `250000`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let right = "a rate is written like 900M, 1.5G or 250k: bits per second";
    let text = text.trim();
    let bare = ["bit/s", "bps", "bit"].iter().find_map(|unit| text.strip_suffix(unit)).unwrap_or(text).trim();
    let (number, factor) = match bare.char_indices().last() {
        Some((at, 'k' | 'K')) => (&bare[..at], 1e3),
        Some((at, 'm' | 'M')) => (&bare[..at], 1e6),
        Some((at, 'g' | 'G')) => (&bare[..at], 1e9),
        Some((at, 't' | 'T')) => (&bare[..at], 1e12),
        _ => (bare, 1.0),
    };
    let bits = number.trim().parse::<f64>().map_err(|_| right.to_owned())? * factor;
    // Exact up to 2^53, far beyond any link.
    if bits.is_finite() && (0.0..9e15).contains(&bits) { Ok(bits.round() as u64) } else { Err(right.to_owned()) }
}

/// A size in bytes as iperf3 reads it, a kilo being 1024: `262144`, `256K`, `4M`.
pub(super) fn size(text: &str) -> Result<u32, String> {
    let right = "a size is written like 262144, 256K or 4M: bytes, a K being 1024";
    let text = text.trim();
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1024),
        Some((at, 'm' | 'M')) => (&text[..at], 1024 * 1024),
        Some((at, 'g' | 'G')) => (&text[..at], 1024 * 1024 * 1024),
        _ => (text, 1),
    };
    let number = number.parse::<u32>().map_err(|_| right.to_owned())?;
    number.checked_mul(factor).ok_or_else(|| right.to_owned())
}

/// A time: `10`, `10s`, `250ms`, `2m`; a bare number is seconds, as iperf3 reads it.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let right = "a time is written like 10, 10s, 250ms or 2m";
    let text = text.trim();
    let (number, unit_s) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("us") {
        (number, 1e-6)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60.0)
    } else {
        (text, 1.0)
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| right.to_owned())? * unit_s;
    if seconds.is_finite() && seconds >= 0.0 {
        Duration::try_from_secs_f64(seconds).map_err(|_| right.to_owned())
    } else {
        Err(right.to_owned())
    }
}

/// A time in milliseconds, where a bare number is milliseconds: `30`, `30ms`, `0.5s`.
pub(super) fn milliseconds(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(ms) if ms.is_finite() && ms >= 0.0 => Ok(ms),
        _ => Ok(time(text)?.as_secs_f64() * 1000.0),
    }
}

/// A share from 0 to 1: `0.01`, `1%`.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let right = "a share is written like 0.01 or 1%";
    let (number, factor) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent, 0.01),
        None => (text.trim(), 1.0),
    };
    let share = number.trim().parse::<f64>().map_err(|_| right.to_owned())? * factor;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(right.to_owned()) }
}

/// An octet, as iperf3 reads a type of service: `184`, `0xb8`.
pub(super) fn octet(text: &str) -> Result<u8, String> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let octet = hexadecimal.map_or_else(|| text.parse(), |digits| u8::from_str_radix(digits, 16));
    octet.map_err(|_| "a type of service is written like 184 or 0xb8: 0 to 255".to_owned())
}

/// A DSCP: its number, or the name that the IANA registry gives it: `46`, `EF`, `CS1`, `AF41`, `LE`.
pub(super) fn code_point(text: &str) -> Result<u8, String> {
    let digit = |digits: &str, most: u8| digits.parse::<u8>().ok().filter(|digit| (1..=most).contains(digit));
    let name = text.to_ascii_uppercase();
    let named = match name.as_str() {
        "BE" | "CS0" => Some(0),
        "LE" => Some(1),
        "VA" => Some(44),
        "EF" => Some(46),
        _ => None,
    };
    let class = || Some(digit(name.strip_prefix("CS")?, 7)? * 8);
    let assured = || {
        let (class, drop) = name.strip_prefix("AF")?.split_at_checked(1)?;
        Some(digit(class, 4)? * 8 + digit(drop, 3)? * 2)
    };
    let number = || octet(text).ok().filter(|code_point| *code_point < 64);
    let right = || "a DSCP is a number from 0 to 63, or a name such as EF, CS1 or AF41".to_owned();
    named.or_else(class).or_else(assured).or_else(number).ok_or_else(right)
}

/// A way to move bytes.
pub(super) fn data_path(text: &str) -> Result<DataPathWish, String> {
    match text {
        "auto" => Ok(DataPathWish::Auto),
        "plain" => Ok(DataPathWish::Plain),
        "trunc" => Ok(DataPathWish::Trunc),
        "splice" => Ok(DataPathWish::Splice),
        _ => Err("a data path is auto, plain, trunc or splice".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(rate("900M"), Ok(900_000_000));
        assert_eq!(rate("1.5 Gbit/s"), Ok(1_500_000_000));
        assert_eq!(rate("250000"), Ok(250_000));
        assert_eq!((size("262144"), size("256K"), size("4m")), (Ok(262_144), Ok(262_144), Ok(4 << 20)));
        assert!(size("-1").is_err() && size("1.5K").is_err() && size("4G").is_err() && size("").is_err());
        assert_eq!((octet("184"), octet("0xb8")), (Ok(184), Ok(184)));
        assert_eq!(["EF", "cs1", "AF41", "0", "63", "le"].map(code_point), [46, 8, 34, 0, 63, 1].map(Ok));
        for bad in ["AF51", "AF14", "CS8", "AF", "64", "-1", "af4", "é"] {
            assert!(code_point(bad).is_err(), "{bad}");
        }
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("10"), Ok(Duration::from_secs(10)));
        assert_eq!(milliseconds("30"), Ok(30.0));
        assert_eq!(milliseconds("0.5s"), Ok(500.0));
        assert_eq!(share("1%"), Ok(0.01));
        for bad in ["", "-1", "nan", "inf", "1e400", "ten", "5%%"] {
            assert!(rate(bad).is_err() && time(bad).is_err() && share(bad).is_err(), "{bad}");
        }
    }
}
