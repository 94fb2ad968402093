//! Builds a DNS query for the addresses of a name, and checks whether a datagram answers the query (RFC 1035).

/// The largest DNS answer over UDP without EDNS, in bytes.
pub const MAX_ANSWER: usize = 512;
/// The length of the header of a DNS message, in bytes.
const HEADER: usize = 12;
/// The end of a DNS question: type A, class IN.
const QUESTION_END: [u8; 4] = [0, 1, 0, 1];
/// The response codes that count as an answer: no error, and no such name.
const ANSWERS: [u8; 2] = [0, 3];

/// A DNS query with this id for the addresses of `name`; `None` if `name` is not a valid domain name.
pub fn query(id: u16, name: &str) -> Option<Vec<u8>> {
    let name = name.trim_end_matches('.');
    // The header of the query: recursion desired, one question.
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&QUESTION_END);
    (bytes.len() - HEADER - QUESTION_END.len() <= 255).then_some(bytes)
}

/// Whether `answer` answers `query`: it has the id and the question of the query, and states whether the name exists.
pub fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(said)) = (query.get(..HEADER), answer.get(..HEADER)) else { return false };
    let is_response = said[2] & 0x80 != 0 && said[2] & 0x78 == 0;
    let question = query.get(HEADER..).unwrap_or_default();
    let repeated = answer.get(HEADER..query.len()).unwrap_or_default();
    asked[..2] == said[..2]
        && is_response
        && ANSWERS.contains(&(said[3] & 0x0f))
        && said[4..6] == [0, 1]
        && question.eq_ignore_ascii_case(repeated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_has_the_documented_form() {
        let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";
        assert_eq!(query(0x1234, "example.org.").unwrap(), expected);
        for wrong in ["", ".", "a..b", "a b", &"a".repeat(64), &["abcdefg"; 40].join(".")] {
            assert_eq!(query(1, wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let asked = query(7, "example.org").unwrap();
        let answer = |change: fn(&mut Vec<u8>)| {
            let mut answer = asked.clone();
            answer[2] |= 0x80;
            change(&mut answer);
            is_answer(&asked, &answer)
        };
        assert!(answer(|_| {}));
        assert!(answer(|bytes| bytes[3] = 0x83), "no such name, recursion available");
        assert!(answer(|bytes| bytes.extend_from_slice(&[0; 16])), "with a record");
        assert!(answer(|bytes| bytes[13..15].make_ascii_uppercase()));
        assert!(!answer(|bytes| bytes[3] = 2), "the server failed");
        assert!(!answer(|bytes| bytes[3] = 5), "refused");
        assert!(!answer(|bytes| bytes[1] ^= 1), "another number");
        assert!(!answer(|bytes| bytes[2] &= 0x7f), "a query");
        assert!(!answer(|bytes| bytes[14] = b'y'), "another name");
        assert!(!answer(|bytes| bytes.truncate(20)));
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            is_answer(&query(1, "example.org").unwrap(), &bytes);
        }
    }
}
