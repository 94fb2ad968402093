//! Replaces one or two digits of an Endpoint ID by other digits: the parser must refuse each such text. Pure.

use paramedic_link::{EndpointId, SecretKey};

use crate::measured::Measured;
use crate::scale::Scale;

/// The digits of an Endpoint ID, each at the index that is its value.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// The length in bytes of the text before the digits of an Endpoint ID.
const PREFIX: usize = "PP-".len();

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    let (ids, stride) = scale.of((20, 1), (1, 7));
    let mut found = Found::default();
    for _ in 0..ids {
        let id = SecretKey::generate()?.id().to_string();
        anyhow::ensure!(id.parse::<EndpointId>().is_ok(), "the Endpoint ID {id} is not accepted");
        replace(&id, stride, &mut found);
    }
    let mut measured = Measured::default();
    measured.note(format!("{ids} IDs, {} replacements of one digit, {} of two", found.single, found.double));
    measured.outcome(found.accepted == 0, format!("{} accepted", found.accepted));
    Ok(measured)
}

#[derive(Debug, Default)]
struct Found {
    single: u64,
    double: u64,
    accepted: u64,
}

/// Tries every replacement of one digit, and each `stride`th replacement of two digits.
fn replace(id: &str, stride: usize, found: &mut Found) {
    let mut text = id.as_bytes().to_vec();
    let places = (PREFIX..text.len()).filter(|at| text[*at] != b'-').collect::<Vec<_>>();
    let others = |digit: u8| DIGITS.iter().copied().filter(move |other| *other != digit);
    let is_accepted = |text: &[u8]| std::str::from_utf8(text).is_ok_and(|text| text.parse::<EndpointId>().is_ok());
    for (nth, &first) in places.iter().enumerate() {
        let right = text[first];
        for digit in others(right) {
            text[first] = digit;
            found.single += 1;
            found.accepted += u64::from(is_accepted(&text));
            for &second in &places[nth + 1..] {
                let right = text[second];
                for digit in others(right).step_by(stride) {
                    text[second] = digit;
                    found.double += 1;
                    found.accepted += u64::from(is_accepted(&text));
                }
                text[second] = right;
            }
        }
        text[first] = right;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_replacement_is_tried_once() {
        let id = SecretKey::generate().unwrap().id().to_string();
        let mut found = Found::default();
        replace(&id, 31, &mut found);
        assert_eq!((found.single, found.double), (56 * 31, 56 * 55 / 2 * 31));
    }
}
