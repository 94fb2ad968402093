//! Parses the values of flags that are not settings, and checks their ranges. `paramedic_report::quantity` parses
//! quantities.

use std::fmt;
use std::time::Duration;

use paramedic_link::test_spec::DataPathWish;
use paramedic_report::quantity;

/// Parses a rate in bits per second: `900M`, `1.5G`, `941Mbit/s`, `250000`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    quantity::parse_rate(text).map_err(|error| with_valid(error, "bits per second, such as 900M, 1.5G or 250k"))
}

/// Parses a size in bytes, in iperf3's units: `262144`, `256K`, `4M`.
pub(super) fn size(text: &str) -> Result<u32, String> {
    let valid = "bytes below 4G, such as 262144, 256K or 4M (K is 1024)";
    let bytes = quantity::parse_iperf3_bytes(text).map_err(|error| with_valid(error, valid))?;
    u32::try_from(bytes).map_err(|_| with_valid(format!("{text:?} is out of range"), valid))
}

/// Parses a number of bytes, in iperf3's units: `10M`, `1G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let valid = "bytes from 1 on, such as 1048576, 10M or 1G (K is 1024)";
    let bytes = quantity::parse_iperf3_bytes(text).map_err(|error| with_valid(error, valid))?;
    if bytes == 0 { Err(with_valid("0 bytes measure nothing", valid)) } else { Ok(bytes) }
}

/// Parses a number of bytes, in the units of the configuration: `200MB`, `1GiB`, `5000000`.
pub(super) fn budget(text: &str) -> Result<u64, String> {
    let valid = "bytes from 1 on, such as 200MB, 1GiB or 5000000 (1 MB is 1,000,000 bytes)";
    let bytes = quantity::parse_bytes(text).map_err(|error| with_valid(error, valid))?;
    if bytes == 0 { Err(with_valid("0 bytes measure nothing", valid)) } else { Ok(bytes) }
}

/// Parses a number of bytes, in the units of the configuration: `500MB`, `50GB`, `1GiB`. Unlike [`budget`], accepts 0.
pub(super) fn size_of_data(text: &str) -> Result<u64, String> {
    quantity::parse_bytes(text).map_err(|error| with_valid(error, "bytes, such as 500MB or 50GB"))
}

/// Parses a duration. A number without a unit is in seconds, as in iperf3: `10`, `10s`, `250ms`, `2m`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    quantity::parse_seconds(text).map_err(|error| with_valid(error, "seconds, or a duration such as 10s, 250ms or 2m"))
}

/// Parses a duration of a day or more: `90d`, `36h`. Rejects a number without a unit, because its meaning is unclear.
pub(super) fn days(text: &str) -> Result<Duration, String> {
    let valid = "a duration of at least a day, such as 90d";
    let duration = quantity::parse_duration(text).map_err(|error| with_valid(error, valid))?;
    let is_short = duration < Duration::from_secs(86_400);
    if is_short { Err(with_valid(format!("{text:?} is below a day"), valid)) } else { Ok(duration) }
}

/// Parses a duration into milliseconds. A number without a unit is in milliseconds: `30`, `30ms`, `0.5s`.
pub(super) fn milliseconds(text: &str) -> Result<f64, String> {
    let valid = "milliseconds, or a duration such as 30ms or 0.5s";
    let duration = quantity::parse_milliseconds(text).map_err(|error| with_valid(error, valid))?;
    Ok(duration.as_nanos() as f64 / 1e6)
}

/// Parses a share from 0 to 1: `0.01`, `1%`. Rejects `1`, which could mean 1 % or the whole.
pub(super) fn share(text: &str) -> Result<f64, String> {
    quantity::parse_share(text).map_err(|error| with_valid(error, "0 to 0.99, or 0% to 100%"))
}

fn with_valid(problem: impl fmt::Display, valid: &str) -> String {
    format!("{problem}; valid: {valid}")
}

/// Parses an IP type of service as iperf3 does: `184`, `0xb8`.
pub(super) fn octet(text: &str) -> Result<u8, String> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let octet = hexadecimal.map_or_else(|| text.parse(), |digits| u8::from_str_radix(digits, 16));
    octet.map_err(|_| "a type of service is a number from 0 to 255, such as 184 or 0xb8".to_owned())
}

/// Parses a DSCP: its number, or its name in the IANA registry (`46`, `EF`, `CS1`, `AF41`, `LE`).
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

/// Parses the method by which payload moves.
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
    fn values_are_parsed_in_their_usual_notation() {
        assert_eq!((size("262144"), size("256K"), size("4m")), (Ok(262_144), Ok(262_144), Ok(4 << 20)));
        assert!(size("-1").is_err() && size("").is_err());
        assert_eq!((bytes("10M"), bytes("8G")), (Ok(10 << 20), Ok(8 << 30)));
        assert!(bytes("0").is_err() && bytes("-1").is_err());
        assert_eq!(
            size("4G").unwrap_err(),
            "\"4G\" is out of range; valid: bytes below 4G, such as 262144, 256K or 4M (K is 1024)"
        );
        assert_eq!((octet("184"), octet("0xb8")), (Ok(184), Ok(184)));
        assert_eq!(["EF", "cs1", "AF41", "0", "63", "le"].map(code_point), [46, 8, 34, 0, 63, 1].map(Ok));
        for bad in ["AF51", "AF14", "CS8", "AF", "64", "-1", "af4", "é"] {
            assert!(code_point(bad).is_err(), "{bad}");
        }
        assert_eq!((rate("1.5 Gbit/s"), time("2m")), (Ok(1_500_000_000), Ok(Duration::from_secs(120))));
        assert_eq!((milliseconds("30"), milliseconds("0.5s"), milliseconds("0.1")), (Ok(30.0), Ok(500.0), Ok(0.1)));
        assert_eq!((share("1%"), share("7%")), (Ok(0.01), Ok(0.07)));
        assert_eq!(share("1").unwrap_err(), "\"1\" is ambiguous: write 1% or 0.01; valid: 0 to 0.99, or 0% to 100%");
        assert_eq!((days("36h"), days("90d")), (Ok(Duration::from_secs(129_600)), Ok(Duration::from_secs(7_776_000))));
        for bad in ["90", "90m", "0d", "d", ""] {
            assert!(days(bad).is_err_and(|error| error.contains("; valid: ")), "{bad}");
        }
        for bad in ["", "-1", "nan", "inf", "1e400", "ten", "5%%"] {
            for error in [rate(bad).err(), time(bad).err(), milliseconds(bad).err(), share(bad).err()] {
                assert!(error.is_some_and(|error| error.contains("; valid: ")), "{bad}");
            }
        }
    }
}
