//! The format of one line of the audit log, and how it is chained to the preceding line. Works on bytes only, without
//! files.
//!
//! A line is one JSON object: `seq`, `ts`, the event's fields, `prev`, `hash`, in this order. `hash` is the SHA-256 of
//! the line's bytes before the comma that precedes `"hash"`. These bytes contain `prev`, the hash of the preceding line
//! (zeros in the first line). So every line authenticates all lines before it, and no canonical form of JSON is needed
//! to check it.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::AuditEvent;

/// The position of a line in its chain: its number and its hash. The head of a chain is its last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the line, from 1; 0 for a chain without lines.
    pub seq: u64,
    /// The SHA-256 of the line; zeros for a chain without lines.
    pub hash: [u8; 32],
}

impl Head {
    /// The head of a chain without lines.
    pub const GENESIS: Head = Head { seq: 0, hash: [0; 32] };

    /// The hash in hexadecimal, as in the log.
    pub fn hash_hex(&self) -> String {
        HEXLOWER.encode(&self.hash)
    }
}

/// What the database stores about a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// The line before the first line that is on disk. [`Head::GENESIS`] as long as no line was trimmed or moved away.
    pub base: Head,
    /// The last acknowledged line.
    pub head: Head,
}

impl ChainState {
    /// The state of a chain without lines.
    pub const GENESIS: ChainState = ChainState { base: Head::GENESIS, head: Head::GENESIS };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} ({})", self.seq, self.hash_hex())
    }
}

/// What is wrong with a line of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("the line is incomplete")]
    Torn,
    #[error("this is not a line of an audit log")]
    NoLine,
    #[error("the hash of the line does not match its content: the line was changed")]
    Hash,
    #[error("line {found} is in the place of line {expected}: lines are missing or out of order")]
    Seq { expected: u64, found: u64 },
    #[error("the line does not contain the hash of the line before it: one of the two was replaced")]
    Prev,
    #[error("the log begins with line {0}: the lines before it are missing")]
    Beginning(u64),
}

/// The maximum length of a valid line, in bytes. The lines of real events are far shorter.
pub(super) const MAX_LINE: usize = 64 * 1024;

const HASH_KEY: &[u8] = b",\"hash\":\"";
const HASH_DIGITS: usize = 64;
const LINE_END: &[u8] = b"\"}";

#[derive(Serialize)]
struct LineFields<'a> {
    seq: u64,
    ts: String,
    #[serde(flatten)]
    event: &'a AuditEvent,
    prev: String,
}

/// The fields of a line that are needed to check its position in the chain. Other fields are ignored.
#[derive(Deserialize)]
struct Links {
    seq: u64,
    event: String,
    prev: String,
    #[serde(default)]
    segment: Option<String>,
}

/// Appends the line of `event`, with a newline, to `text`. `head` is the line before it, and `at` is the time of the
/// event. Returns the number and hash of the new line, which is the new head of the chain.
pub(super) fn write_line(
    head: Head,
    at: Timestamp,
    event: &AuditEvent,
    text: &mut Vec<u8>,
) -> Result<Head, serde_json::Error> {
    let seq = head.seq.saturating_add(1);
    let begin = text.len();
    serde_json::to_writer(&mut *text, &LineFields { seq, ts: format!("{at:.3}"), event, prev: head.hash_hex() })?;
    // The closing brace comes after the hash.
    text.pop();
    let hash = sha256(&text[begin..]);
    let head = Head { seq, hash };
    text.extend_from_slice(HASH_KEY);
    text.extend_from_slice(head.hash_hex().as_bytes());
    text.extend_from_slice(LINE_END);
    text.push(b'\n');
    Ok(head)
}

/// What is known about the line before the one to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The number and the hash of the preceding line.
    Line(Head),
    /// The preceding line was not read, so only the hash of the line itself is checked.
    Unseen,
    /// There is no preceding line. The line to check must then be line 1, or a `log_begun_anew` event, which records
    /// why the log begins later.
    Nothing,
}

/// Checks that `line` (without its newline) is intact and follows `after`. Returns the number and the hash of the line.
pub(super) fn check_line(after: After, line: &[u8]) -> Result<Head, Flaw> {
    let (body, links) = open_line(line)?;
    let hash = sha256(body);
    if line[body.len()..line.len() - LINE_END.len()] != [HASH_KEY, HEXLOWER.encode(&hash).as_bytes()].concat() {
        return Err(Flaw::Hash);
    }
    let head = Head { seq: links.seq, hash };
    let before = match after {
        After::Line(before) => before,
        After::Unseen => return Ok(head),
        After::Nothing if links.event == BEGUN_ANEW => return Ok(head),
        After::Nothing if links.seq != 1 => return Err(Flaw::Beginning(links.seq)),
        After::Nothing => Head::GENESIS,
    };
    let expected = before.seq.saturating_add(1);
    if links.seq != expected {
        return Err(Flaw::Seq { expected, found: links.seq });
    }
    if links.prev != before.hash_hex() {
        return Err(Flaw::Prev);
    }
    Ok(head)
}

/// The name of [`AuditEvent::LogBegunAnew`] in the log.
const BEGUN_ANEW: &str = "log_begun_anew";
/// The name of [`AuditEvent::TailRepaired`] in the log.
const TAIL_REPAIRED: &str = "tail_repaired";

/// What the first line of a file states about its position in the chain. The statement is not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) seq: u64,
    pub(super) begins_anew: bool,
    /// The hash that the line states for the preceding line; `None` if it is not a valid hash.
    prev: Option<[u8; 32]>,
    /// The name of the file whose tail was cut, if the line records such a repair.
    repairs: Option<String>,
}

impl Claim {
    /// The number and the hash of the line that this line claims to follow. `None` if it claims no valid ones.
    pub(super) fn before(&self) -> Option<Head> {
        Some(Head { seq: self.seq.checked_sub(1)?, hash: self.prev? })
    }

    /// Whether this line claims to follow the line `before`, and records that the tail of the file `segment` was cut.
    pub(super) fn repairs(&self, segment: &str, before: Head) -> bool {
        self.before() == Some(before) && self.repairs.as_deref() == Some(segment)
    }
}

pub(super) fn claim(line: &[u8]) -> Option<Claim> {
    let (_, links) = open_line(line).ok()?;
    let prev = HEXLOWER.decode(links.prev.as_bytes()).ok().and_then(|prev| prev.try_into().ok());
    let repairs = links.segment.filter(|_| links.event == TAIL_REPAIRED);
    Some(Claim { seq: links.seq, begins_anew: links.event == BEGUN_ANEW, prev, repairs })
}

/// Returns the part of a line that its hash covers, and the parsed [`Links`]. Does not check the hash.
fn open_line(line: &[u8]) -> Result<(&[u8], Links), Flaw> {
    let body = line.len().checked_sub(HASH_KEY.len() + HASH_DIGITS + LINE_END.len()).ok_or(Flaw::NoLine)?;
    if !line[body..].starts_with(HASH_KEY) || !line.ends_with(LINE_END) {
        return Err(Flaw::NoLine);
    }
    let links = serde_json::from_slice(line).map_err(|_| Flaw::NoLine)?;
    Ok((&line[..body], links))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use paramedic_link::EndpointId;

    use super::*;

    const PEER: EndpointId = EndpointId::from_bytes([7; 32]);

    fn line(head: Head, event: &AuditEvent) -> (Vec<u8>, Head) {
        let mut text = Vec::new();
        let at = "2026-01-31T12:00:00.1234Z".parse().unwrap();
        let head = write_line(head, at, event, &mut text).unwrap();
        assert_eq!(text.pop(), Some(b'\n'));
        (text, head)
    }

    fn port_held(port: u16) -> AuditEvent {
        AuditEvent::PortHeld { port, peer: PEER }
    }

    #[test]
    fn a_line_is_json_in_a_fixed_order() {
        let (text, head) = line(Head::GENESIS, &port_held(5201));
        let text = String::from_utf8(text).unwrap();
        let zeros = "0".repeat(64);
        let expected = format!(
            r#"{{"seq":1,"ts":"2026-01-31T12:00:00.123Z","event":"port_held","port":5201,"peer":"{PEER}","prev":"{zeros}","hash":"{}"}}"#,
            head.hash_hex()
        );
        assert_eq!(text, expected);
        assert_eq!(head.hash, sha256(&text.as_bytes()[..text.find(",\"hash\"").unwrap()]));
        let stopped: serde_json::Value = serde_json::from_slice(&line(head, &AuditEvent::Stopped).0).unwrap();
        assert_eq!(stopped["event"], "stopped");
    }

    #[test]
    fn a_line_follows_only_its_preceding_line() {
        let (first, head) = line(Head::GENESIS, &port_held(1));
        let (second, next) = line(head, &port_held(2));
        assert_eq!(check_line(After::Nothing, &first), Ok(head));
        assert_eq!(check_line(After::Line(Head::GENESIS), &first), Ok(head));
        assert_eq!(check_line(After::Line(head), &second), Ok(next));
        assert_eq!(check_line(After::Line(next), &second), Err(Flaw::Seq { expected: 3, found: 2 }));
        assert_eq!(check_line(After::Line(Head { seq: 1, hash: [9; 32] }), &second), Err(Flaw::Prev));
        assert_eq!(check_line(After::Nothing, &second), Err(Flaw::Beginning(2)));
        assert_eq!(check_line(After::Unseen, &second), Ok(next));
    }

    #[test]
    fn a_log_may_begin_later_only_with_a_line_that_records_it() {
        let (anew, head) = line(Head { seq: 41, hash: [3; 32] }, &AuditEvent::LogBegunAnew { after: 41 });
        assert_eq!(check_line(After::Nothing, &anew), Ok(head));
        assert_eq!(head.seq, 42);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let (text, _) = line(Head::GENESIS, &port_held(5201));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check_line(After::Line(Head::GENESIS), &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn no_bytes_panic() {
        for junk in [&b""[..], b"{}", &[0; 100], &[b'"'; 80], br#"{"seq":1,"hash":"#] {
            assert_eq!(check_line(After::Nothing, junk), Err(Flaw::NoLine));
        }
    }
}
