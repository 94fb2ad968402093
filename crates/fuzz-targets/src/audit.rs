//! Fuzz targets for `reflector audit verify`, which checks the reflector's audit log. This file writes and checks log
//! lines with its own code, which follows docs/operate.md. So an error in the reflector's code is not repeated here.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use reflector::audit::{BadLine, Beginning, ChainState, Head, Verified, verify};
use reflector::event::Chain;
use serde_json::Value;

use crate::scratch;

/// The `prev` field of the first line of a hash chain: 64 zeros, because no line comes before it.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const PREV: &str = ",\"prev\":\"";
const HASH: &str = ",\"hash\":\"";

/// The number and the hash of the last line of a hash chain.
#[derive(Clone, Debug)]
struct End {
    seq: u64,
    hash: String,
}

impl End {
    fn genesis() -> Self {
        Self { seq: 0, hash: ZEROS.to_owned() }
    }

    fn head(&self) -> Head {
        let hash = HEXLOWER.decode(self.hash.as_bytes()).expect("hexadecimal digits");
        Head { seq: self.seq, hash: hash.try_into().expect("32 bytes") }
    }
}

/// Builds one audit line: `fields`, then `prev` (the hash of the line before), then the hash of both. Returns the line
/// and its hash.
fn sealed(fields: &str, prev: &str) -> (String, String) {
    let body = format!("{fields}{PREV}{prev}\"");
    let hash = HEXLOWER.encode(digest(&SHA256, body.as_bytes()).as_ref());
    (format!("{body}{HASH}{hash}\"}}\n"), hash)
}

/// Builds the audit line for `event` that follows the line `end`, and sets `end` to the new line.
fn appended(event: &str, end: &mut End) -> String {
    end.seq = end.seq.saturating_add(1);
    let fields = format!("{{\"seq\":{},\"ts\":\"2026-01-31T12:00:00.000Z\",{event}", end.seq);
    let (line, hash) = sealed(&fields, &end.hash);
    end.hash = hash;
    line
}

/// Builds example lines of the main chain of an audit log, from the start of a reflector to its stop.
pub(crate) fn main_chain() -> Vec<String> {
    let peer = paramedic_link::EndpointId::from_bytes([7; 32]);
    let session = "01943d3c-5e00-7a10-8000-0123456789ab";
    let mut end = End::genesis();
    [
        format!(r#""event":"started","version":"0.1.0","endpoint_id":"{peer}""#),
        r#""event":"code_opened","ttl_s":600"#.to_owned(),
        format!(r#""event":"peer_added","peer":"{peer}","name":"attic","by":"code""#),
        format!(
            r#""event":"session_granted","session":"{session}","peer":"{peer}","engine":"tcp","data_mode":"tunneled","expires_in_ms":47000"#
        ),
        format!(
            r#""event":"session_ended","session":"{session}","peer":"{peer}","reason":"finished","bytes":9,"elapsed_ms":4000"#
        ),
        format!(r#""event":"peer_renamed","peer":"{peer}","name":"cellar""#),
        format!(r#""event":"peer_removed","peer":"{peer}""#),
        r#""event":"stopped""#.to_owned(),
    ]
    .iter()
    .map(|event| appended(event, &mut end))
    .collect()
}

/// Builds example lines of the second chain of an audit log, which records refused connections.
fn refusals_chain() -> Vec<String> {
    let mut end = End::genesis();
    let refused = |reason| format!(r#""event":"refused","from":"192.0.2.1","reason":"{reason}""#);
    ["not_paired", "slow", "too_fast"].iter().map(|reason| appended(&refused(reason), &mut end)).collect()
}

/// Reads the number and the hash of an audit line; `None` if the text is not a complete line.
fn end_at(line: &str) -> Option<End> {
    let value = serde_json::from_str::<Value>(line).ok()?;
    let hash = line.trim_end().strip_suffix("\"}").and_then(|line| line.get(line.len().checked_sub(64)?..))?;
    let is_hash = HEXLOWER.decode(hash.as_bytes()).is_ok();
    is_hash.then_some(End { seq: value["seq"].as_u64()?, hash: hash.to_owned() })
}

/// Asserts that the text of an audit chain is intact: every line contains its own hash and the hash of the line before.
/// `verified` must agree with the text.
fn assert_whole(text: &[u8], verified: &Verified) {
    let mut before: Option<End> = None;
    let mut lines = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        lines += 1;
        let line = std::str::from_utf8(line).expect("a good line is UTF-8");
        let body = line.rfind(HASH).map(|at| &line[..at]).expect("a good line has a hash");
        let value = serde_json::from_str::<Value>(line).expect("a good line is JSON");
        let end = end_at(line).expect("a good line has a number and a hash");
        assert!(line.ends_with("\"}\n") && line.len() == body.len() + HASH.len() + 64 + "\"}\n".len());
        assert_eq!(HEXLOWER.encode(digest(&SHA256, body.as_bytes()).as_ref()), end.hash, "line {lines}");
        match &before {
            Some(before) => assert_eq!((value["prev"].as_str(), end.seq), (Some(&*before.hash), before.seq + 1)),
            None if value["event"] == "log_begun_anew" => {}
            None => assert_eq!((value["prev"].as_str(), end.seq), (Some(ZEROS), 1)),
        }
        before = Some(end);
    }
    assert_eq!(verified.lines, lines);
    assert_eq!(verified.head, before.unwrap_or_else(End::genesis).head());
}

/// Fuzz target: verifies the input as the only file of the main chain of an audit log.
pub fn audit_line(input: &[u8]) {
    judge_one_file(input);
    // Verify the text again with the correct `prev` and `hash` in each line. Otherwise verification would stop at the
    // hash and never check the fields before it.
    let mut resealed = Vec::new();
    let mut prev = ZEROS.to_owned();
    for line in String::from_utf8_lossy(input).lines() {
        let fields = line.rfind(PREV).map_or(line, |at| &line[..at]);
        let (line, hash) = sealed(fields, &prev);
        resealed.extend_from_slice(line.as_bytes());
        prev = hash;
    }
    judge_one_file(&resealed);
}

fn judge_one_file(text: &[u8]) {
    let verified = scratch::in_folder(|folder| {
        scratch::fill(folder, &[("000001.jsonl".to_owned(), text.to_vec())]);
        verify(folder, None)
    });
    match verified {
        Ok([main, refusals]) => {
            assert_whole(text, &main);
            assert_eq!((refusals.lines, refusals.head), (0, Head::GENESIS));
        }
        Err(bad) => assert_explains(&bad),
    }
}

fn assert_explains(bad: &BadLine) {
    assert!(!bad.why.is_empty() && bad.to_string().len() < 1000, "{bad}");
}

/// Fuzz target: makes the changes that the input encodes to an intact audit log, then verifies the log twice: with and
/// without the chain states of the reflector's database.
pub fn audit_verify(input: &[u8]) {
    let (chains, mut files) = good_log();
    let (head, changes) = input.split_at(input.len().min(2));
    let [main, refusals] = crate::framing::padded::<2>(head);
    // The database knows at least the first line of the main chain as acknowledged. An unfinished write may have left
    // the lines behind the acknowledged ones.
    let acknowledged = [1 + usize::from(main) % chains[0].len(), usize::from(refusals) % (chains[1].len() + 1)];
    let known = [0, 1].map(|at| &chains[at][..acknowledged[at]]);
    let state = |lines: &[String]| {
        let end = lines.last().map_or_else(End::genesis, |line| end_at(line).expect("a line of our own"));
        ChainState { base: Head::GENESIS, head: end.head() }
    };
    let states = BTreeMap::from([(Chain::Main, state(known[0])), (Chain::Refusals, state(known[1]))]);
    changes.chunks_exact(5).take(12).for_each(|change| make(&mut files, change));

    let (with_states, without) = scratch::in_folder(|folder| {
        scratch::fill(folder, &files);
        (verify(folder, Some(&states)), verify(folder, None))
    });
    let size = files.iter().map(|(_, text)| text.len() as u64).sum::<u64>();
    match with_states {
        Ok(verified) => {
            for ((verified, known), prefix) in verified.iter().zip(known).zip(PREFIXES) {
                assert_acknowledged(verified, known, &text_of(&files, prefix));
                assert!(verified.unacknowledged.bytes <= size);
            }
        }
        Err(bad) => {
            assert!(changes.len() >= 5, "nothing was changed: {bad}");
            assert_explains(&bad);
        }
    }
    match without {
        Ok(verified) => {
            for (verified, prefix) in verified.iter().zip(PREFIXES) {
                assert_whole(&text_of(&files, prefix), verified);
                assert_eq!(verified.unacknowledged.bytes, 0);
            }
        }
        Err(bad) => assert_explains(&bad),
    }
}

/// The prefix of the file names of each audit chain: first the main chain, then the chain of refusals.
const PREFIXES: [&str; 2] = ["", "refusals-"];

/// A file's name and contents.
type File = (String, Vec<u8>);

/// Builds an intact audit log: the lines of its two chains, and the files that contain them.
fn good_log() -> ([Vec<String>; 2], Vec<File>) {
    let chains = [main_chain(), refusals_chain()];
    let files = vec![
        ("000001.jsonl".to_owned(), chains[0][..5].concat().into_bytes()),
        ("000002.jsonl".to_owned(), chains[0][5..].concat().into_bytes()),
        ("refusals-000001.jsonl".to_owned(), chains[1].concat().into_bytes()),
    ];
    (chains, files)
}

/// Asserts that an audit chain that passed verification contains every acknowledged line (`known`) unchanged.
fn assert_acknowledged(verified: &Verified, known: &[String], text: &[u8]) {
    let head = known.last().map_or_else(End::genesis, |line| end_at(line).expect("a line of our own"));
    assert!(verified.head.seq >= head.seq, "{verified:?} ends before line {}", head.seq);
    if known.is_empty() {
        return;
    }
    assert_eq!(verified.begins, Beginning::First);
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    for line in known {
        assert!(lines.any(|found| found == line.as_bytes()), "whole without this line: {line}");
    }
}

/// Joins the contents of all files of one audit chain, in the order of their names. `prefix` selects the chain.
fn text_of(files: &[File], prefix: &str) -> Vec<u8> {
    let mut of_it = files.iter().filter(|(name, _)| is_of(name, prefix)).collect::<Vec<_>>();
    of_it.sort();
    of_it.into_iter().flat_map(|(_, text)| text.clone()).collect()
}

fn is_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|name| name.starts_with('0'))
}

/// Changes the files of an audit log once. Five bytes encode the change: its kind, the file, the position (two bytes),
/// and a value.
fn make(files: &mut Vec<File>, change: &[u8]) {
    let [what, file, high, low, value] = crate::framing::padded::<5>(change);
    if files.is_empty() {
        return;
    }
    let file = usize::from(file) % files.len();
    let place = usize::from(u16::from_be_bytes([high, low]));
    let text = &mut files[file].1;
    let at = place % (text.len() + 1);
    match what % 11 {
        0 if at < text.len() => text[at] ^= value.max(1),
        1 => text.truncate(at),
        2 => drop(text.drain(at..(at + usize::from(value)).min(text.len()))),
        3 => text.insert(at, value),
        4 => text.resize(text.len() + place % 200, value),
        5 => with_lines(text, |lines| {
            if let Some(line) = lines.get(usize::from(low) % lines.len().max(1)).cloned() {
                lines.insert(usize::from(value) % (lines.len() + 1), line);
            }
        }),
        6 => with_lines(text, |lines| {
            if !lines.is_empty() {
                let count = lines.len();
                lines.swap(usize::from(low) % count, usize::from(value) % count);
            }
        }),
        7 => drop(files.remove(file)),
        8 => {
            let (old, prefix) = (files[file].0.clone(), prefix_of(&files[file].0));
            let new = numbered(prefix, low);
            // Swap the names of two files, if both exist.
            if let Some(other) = files.iter_mut().find(|(name, _)| *name == new) {
                other.0 = old;
            }
            files[file].0 = new;
        }
        9 => {
            let line = forged(files, file, low, value);
            files[file].1.extend_from_slice(line.as_bytes());
        }
        10 => {
            let line = forged(files, file, low, value);
            let new = numbered(prefix_of(&files[file].0), high);
            if files.iter().all(|(name, _)| *name != new) {
                files.push((new, line.into_bytes()));
            }
        }
        _ => {}
    }
}

/// Builds a new audit line with a correct hash, as an attacker who edits the log could. The line follows the last line
/// of `file`, or is a first line.
fn forged(files: &[File], file: usize, which: u8, value: u8) -> String {
    let last = String::from_utf8_lossy(&files[file].1);
    let mut end = last.lines().rev().find_map(end_at).unwrap_or_else(End::genesis);
    let after = end.seq.saturating_sub(u64::from(value % 3));
    let event = match which % 4 {
        0 => r#""event":"stopped""#.to_owned(),
        1 => format!(r#""event":"log_begun_anew","after":{after}"#),
        2 => format!(r#""event":"tail_repaired","segment":"{}","bytes":{value}"#, files[file].0),
        _ => {
            end = End::genesis();
            r#""event":"stopped""#.to_owned()
        }
    };
    appended(&event, &mut end)
}

fn prefix_of(name: &str) -> &'static str {
    PREFIXES.into_iter().find(|prefix| is_of(name, prefix)).unwrap_or_default()
}

fn numbered(prefix: &str, number: u8) -> String {
    format!("{prefix}{:06}.jsonl", number % 5)
}

fn with_lines(text: &mut Vec<u8>, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    change(&mut lines);
    *text = lines.concat();
}
