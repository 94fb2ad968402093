//! Quantities as people write them: `10m`, `500GB`, `5201-5299`. Pure: text in, values out, and back. What a value may
//! be for a setting is decided by the setting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use paramedic_link::DEFAULT_PORT;

/// The units of time, longest first, in milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The units of size: SI ones first, largest first.
const SIZE_UNITS: [(&str, u64); 11] = [
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A duration of whole milliseconds: `60s`, `10m`, `1h30m`, `1.5h`. An error names the problem.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total = 0u64;
    loop {
        let (number, after) = split_number(rest)?;
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = &after[..letters];
        if unit.is_empty() {
            return Err(format!("{text:?} has no unit of time"));
        }
        let unit_ms = TIME_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
        let unit_ms = unit_ms.ok_or_else(|| format!("{unit:?} is not a unit of time"))?;
        let part = scaled(number, unit_ms).ok_or_else(|| format!("{text:?} is too long"))?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long"))?;
        rest = after[letters..].trim_start();
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// The duration in the largest unit that leaves no fraction.
pub fn print_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    print_in(ms, &TIME_UNITS)
}

/// Bytes: `500GB` (SI: 1 GB is 1,000,000,000 bytes), `20TiB`, `1.5 TB`, `500000000000`. An error names the problem.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text.trim())?;
    let unit = unit.trim();
    let same = |name: &str| name.eq_ignore_ascii_case(unit) || name[..name.len() - 1].eq_ignore_ascii_case(unit);
    let unit_bytes = SIZE_UNITS.iter().find(|(name, _)| same(name)).map(|(_, bytes)| *bytes);
    let unit_bytes = unit_bytes.ok_or_else(|| format!("{unit:?} is not a unit of size"))?;
    scaled(number, unit_bytes).ok_or_else(|| format!("{text:?} is too large"))
}

/// The size in the largest unit that leaves no fraction.
pub fn print_bytes(bytes: u64) -> String {
    print_in(bytes, &SIZE_UNITS)
}

/// A range of ports, both ends included: `5201-5299`, or one port. An error names the problem.
pub fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.trim().parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("{:?} is not a port", text.trim())),
        Ok(port) => Ok(port),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("{first}-{last} ends before it begins"));
    }
    Ok(first..=last)
}

/// The addresses to listen on that `text` means: `ADDR:PORT`, `ADDR` with port 4000, `PORT` or `:PORT` on both IP
/// families. An error names the problem.
pub fn parse_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(both_families(port).to_vec());
    }
    Err(format!("{text:?} is not an IP address"))
}

/// A port on every address of both IP families.
pub(super) fn both_families(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]
}

/// A decimal number without sign or exponent, as digits and how many of them are behind the point.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u64,
    fraction_digits: u32,
}

/// The number that `text` begins with, and what follows it.
fn split_number(text: &str) -> Result<(Decimal, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = !whole.is_empty() && !fraction.contains('.') && number.ends_with(|c: char| c.is_ascii_digit());
    let digits = is_number.then(|| format!("{whole}{fraction}").parse().ok()).flatten();
    let fraction_digits = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    let number = digits.map(|digits| Decimal { digits, fraction_digits });
    number.map(|number| (number, rest.trim_start())).ok_or_else(|| format!("{text:?} does not begin with a number"))
}

/// `number` times `unit`, rounded down; `None` where that is more than can be counted.
fn scaled(number: Decimal, unit: u64) -> Option<u64> {
    let divisor = 10u128.checked_pow(number.fraction_digits)?;
    u64::try_from(u128::from(number.digits) * u128::from(unit) / divisor).ok()
}

fn print_in(value: u64, units: &[(&str, u64)]) -> String {
    let divides = |(_, size): &&(&str, u64)| value != 0 && value.is_multiple_of(*size);
    match units.iter().find(divides) {
        Some((name, size)) => format!("{}{name}", value / size),
        None => format!("0{}", if units.len() == TIME_UNITS.len() { "s" } else { "B" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_printed_reads_back(value: u64) {
            prop_assert_eq!(parse_bytes(&print_bytes(value)), Ok(value));
            let duration = Duration::from_millis(value);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", number in "[0-9.]{0,40}[a-zA-Z]{0,4}") {
            for text in [text, number] {
                let _ = (parse_duration(&text), parse_bytes(&text), parse_ports(&text), parse_listen(&text));
            }
        }
    }

    #[test]
    fn durations_read_as_people_write_them() {
        let seconds = |text: &str| parse_duration(text).unwrap().as_secs_f64();
        assert_eq!(
            [seconds("60s"), seconds("10m"), seconds("1h30m"), seconds("1.5h"), seconds("500 ms")],
            [60.0, 600.0, 5400.0, 5400.0, 0.5]
        );
        assert_eq!(print_duration(Duration::from_secs(600)), "10m");
        assert_eq!(print_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(print_duration(Duration::ZERO), "0s");
    }

    #[test]
    fn a_duration_without_a_unit_is_refused() {
        assert_eq!(parse_duration("60"), Err("\"60\" has no unit of time".to_owned()));
        assert_eq!(parse_duration("1h 30"), Err("\"1h 30\" has no unit of time".to_owned()));
        assert!(parse_duration("10 fortnights").unwrap_err().contains("fortnights"));
        assert!(parse_duration("999999999999999999999d").is_err());
        assert!(parse_duration("").is_err() && parse_duration("-5s").is_err() && parse_duration("1..5s").is_err());
    }

    #[test]
    fn sizes_are_decimal_unless_they_say_otherwise() {
        assert_eq!(parse_bytes("500GB"), Ok(500_000_000_000));
        assert_eq!(parse_bytes("1.5 TB"), Ok(1_500_000_000_000));
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(parse_bytes("20g"), Ok(20_000_000_000));
        assert_eq!(parse_bytes("123"), Ok(123));
        assert!(parse_bytes("5 parsecs").is_err() && parse_bytes("99999PB").is_err() && parse_bytes("GB").is_err());
        assert_eq!(print_bytes(20_000_000_000_000), "20TB");
    }

    #[test]
    fn a_range_of_one_port_is_a_range() {
        assert_eq!(parse_ports("5201-5299"), Ok(5201..=5299));
        assert_eq!(parse_ports(" 5201 "), Ok(5201..=5201));
        assert!(parse_ports("5299-5201").unwrap_err().contains("ends before it begins"));
        assert!(parse_ports("0-5").is_err() && parse_ports("5201-").is_err() && parse_ports("65536").is_err());
    }

    #[test]
    fn a_port_alone_means_both_families() {
        assert_eq!(parse_listen("5000"), Ok(both_families(5000).to_vec()));
        assert_eq!(parse_listen(":0"), Ok(both_families(0).to_vec()));
        assert_eq!(parse_listen("127.0.0.1"), Ok(vec!["127.0.0.1:4000".parse().unwrap()]));
        assert_eq!(parse_listen("[::1]"), Ok(vec!["[::1]:4000".parse().unwrap()]));
        assert_eq!(parse_listen("::1"), Ok(vec!["[::1]:4000".parse().unwrap()]));
        assert_eq!(parse_listen("[::1]:1"), Ok(vec!["[::1]:1".parse().unwrap()]));
        assert!(parse_listen("example.org:4000").is_err() && parse_listen("1.2.3.4:99999").is_err());
    }
}
