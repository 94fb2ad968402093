//! Crockford's base 32 with check digits: the text format of Endpoint IDs and pairing codes.

/// The digits of the alphabet. When digits are read, I and L count as 1, O counts as 0, and U is invalid.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The modulus of the check digits: payload and check digits, read as one number, are a multiple of this modulus. The
/// check detects every replacement of one or two digits and every swap of two digits in a number of up to 56 digits, as
/// tests verify. This is the largest prime below 2^20 with which the check detects all of them.
pub(crate) const MODULUS: u32 = 1_048_517;

/// Number of check digits.
pub(crate) const CHECK_DIGITS: usize = 4;

/// The digit for `value`, which must be below 32.
pub(crate) fn digit(value: u8) -> char {
    char::from(DIGITS[usize::from(value & 31)])
}

/// Whether `c` is a separator, which is ignored between digits.
pub(crate) fn is_separator(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

/// The value of a digit; `None` if it is invalid. Accepts lower case, O for 0, and I and L for 1.
pub(crate) fn value(c: char) -> Option<u8> {
    let upper = c.to_ascii_uppercase();
    let canonical = match upper {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    DIGITS.iter().position(|d| char::from(*d) == canonical).and_then(|at| u8::try_from(at).ok())
}

/// Splits the first `bits` bits of `bytes`, most significant first, into 5-bit values. If `bits` is not a multiple of
/// 5, the first value holds the remaining top bits.
pub(crate) fn values_of(bytes: &[u8], bits: usize) -> Vec<u8> {
    let digits = bits.div_ceil(5);
    let total = bytes.len() * 8;
    (0..digits)
        .map(|at| {
            // Count bits from the least significant end, so that the short digit is the first one.
            let low = (digits - 1 - at) * 5;
            (0..5).filter(|i| low + i < bits).fold(0u8, |acc, i| {
                let from_top = total - 1 - ((total - bits) + low + i);
                let bit = bytes[from_top / 8] >> (7 - from_top % 8) & 1;
                acc | bit << i
            })
        })
        .collect()
}

/// The check digits for `payload`. `payload` and its check digits, read as one number, are a multiple of [`MODULUS`].
/// The value of the check digits alone is always below the modulus.
pub(crate) fn check_of(payload: &[u8]) -> [u8; CHECK_DIGITS] {
    let rest = payload.iter().fold(0u64, |acc, v| (acc * 32 + u64::from(*v)) % u64::from(MODULUS));
    let shifted = rest * (1 << 20) % u64::from(MODULUS);
    let check = (u64::from(MODULUS) - shifted) % u64::from(MODULUS);
    [15, 10, 5, 0].map(|shift| (check >> shift & 31) as u8)
}

/// Whether `check` holds the check digits of `payload`.
pub(crate) fn is_checked(payload: &[u8], check: &[u8]) -> bool {
    check_of(payload) == check
}
