//! Crockford's base 32 with a check: how Endpoint IDs and pairing codes are written and read.

/// The digits. No I, L, O and U: they are read as 1, 1, 0, and not at all.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The modulus that every whole number (payload and check part) is divisible by: the largest prime below 2^20 such
/// that no exchange of one or two digits, and no transposition, is a multiple of it within 56 digits (a test shows it).
pub(crate) const MODULUS: u32 = 1_048_517;

/// How many digits the check part has.
pub(crate) const CHECK_DIGITS: usize = 4;

/// The digit for `value`, below 32.
pub(crate) fn digit(value: u8) -> char {
    char::from(DIGITS[usize::from(value & 31)])
}

/// What stands between digits and means nothing.
pub(crate) fn is_filler(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

/// The value of a digit, forgiving: lower case, O for 0, I and L for 1.
pub(crate) fn value(c: char) -> Option<u8> {
    let upper = c.to_ascii_uppercase();
    let canonical = match upper {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    DIGITS.iter().position(|d| char::from(*d) == canonical).and_then(|at| u8::try_from(at).ok())
}

/// Splits `bits` bits of `bytes`, most significant first, into 5-bit values; a first value that is not full is the
/// number's small top digit.
pub(crate) fn values_of(bytes: &[u8], bits: usize) -> Vec<u8> {
    let digits = bits.div_ceil(5);
    let total = bytes.len() * 8;
    (0..digits)
        .map(|at| {
            // Count bits from the least significant end, so that a short digit stands at the top.
            let low = (digits - 1 - at) * 5;
            (0..5).filter(|i| low + i < bits).fold(0u8, |acc, i| {
                let from_top = total - 1 - ((total - bits) + low + i);
                let bit = bytes[from_top / 8] >> (7 - from_top % 8) & 1;
                acc | bit << i
            })
        })
        .collect()
}

/// The check part that makes payload and check divisible by [`MODULUS`]; always below it.
pub(crate) fn check_of(payload: &[u8]) -> [u8; CHECK_DIGITS] {
    let rest = payload.iter().fold(0u64, |acc, v| (acc * 32 + u64::from(*v)) % u64::from(MODULUS));
    let shifted = rest * (1 << 20) % u64::from(MODULUS);
    let check = (u64::from(MODULUS) - shifted) % u64::from(MODULUS);
    [15, 10, 5, 0].map(|shift| (check >> shift & 31) as u8)
}

/// Whether the check part is the one for this payload.
pub(crate) fn is_checked(payload: &[u8], check: &[u8]) -> bool {
    check_of(payload) == check
}
