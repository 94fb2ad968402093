//! Percent-encoded text (RFC 3986, section 2.1), for URLs and their queries.

/// Percent-encodes all bytes of `text` except ASCII letters, digits and `-._~`.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Decodes a text that [`encoded`] wrote; `None` if the text is not percent-encoded UTF-8.
pub fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "\\PC*") {
            let hidden = encoded(&text);
            prop_assert!(hidden.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#&=".contains(&byte)), "{hidden}");
            prop_assert_eq!(decoded(&hidden), Some(text));
        }
    }
}
