//! Reading the audit log back and finding its first bad line. Reads only; what is to be done about it is decided
//! elsewhere.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::chain::{After, Claim, Flaw, Head, MAX_LINE, check_line, claim};

/// A log that was read to its end and found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Lines checked.
    pub lines: u64,
    /// Files read.
    pub segments: u64,
    /// The last line; [`Head::GENESIS`] where there is none.
    pub head: Head,
    /// The number of the first line at hand: 1, unless an older part was moved away and the log says so.
    pub first_seq: u64,
    /// Bytes behind the last whole line that nobody was told of: a write that goes on, or that a crash cut short. Only
    /// where the acknowledged head was given; without it they are a bad line.
    pub unacknowledged_bytes: u64,
}

/// The first place where the log is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{segment}, line {line}: {why}")]
pub struct BadLine {
    /// The file's name.
    pub segment: String,
    /// The line in that file, from 1; 0 where it is about the whole file.
    pub line: u64,
    /// What is wrong.
    pub why: String,
}

/// Checks every line of the log in `folder`. `head` is the last line that was acknowledged (see
/// [`Store::read_audit_head`](crate::store::Store::read_audit_head)): with it, a log that ends too early shows.
///
/// # Errors
/// The first line that is missing, was changed or can't be read.
pub fn verify(folder: &Path, head: Option<Head>) -> Result<Verified, BadLine> {
    let segments = segments(folder).map_err(|why| BadLine {
        segment: folder.display().to_string(),
        line: 0,
        why: format!("cannot be read: {why}"),
    })?;
    let mut found = Verified { lines: 0, segments: 0, head: Head::GENESIS, first_seq: 1, unacknowledged_bytes: 0 };
    let mut before: Option<Head> = None;
    let mut last_line = 0;
    for (at, segment) in segments.iter().enumerate() {
        let bad = |line, why| BadLine { segment: segment.name(), line, why };
        let mut changed = None;
        let after = before.map_or(After::Nothing, After::Line);
        let walk = walk(&segment.path, after, |line, here| {
            if line == 1 && before.is_none() {
                found.first_seq = here.seq;
            }
            if head.is_some_and(|head| head.seq == here.seq && head.hash != here.hash) {
                changed = changed.or(Some(line));
            }
        });
        let walk = walk.map_err(|why| bad(0, format!("cannot be read: {why}")))?;
        if let Some(line) = changed {
            return Err(bad(line, "this is not the line that was acknowledged: it was replaced".to_owned()));
        }
        before = walk.head.or(before);
        last_line = walk.lines;
        found.lines += walk.lines;
        found.segments += 1;
        if let Some(flaw) = walk.flaw {
            let is_tail = at + 1 == segments.len() && head.is_some_and(|head| reaches(before, head));
            if !is_tail {
                return Err(bad(walk.lines + 1, flaw.to_string()));
            }
            found.unacknowledged_bytes = walk.size - walk.good_bytes;
        }
    }
    found.head = before.unwrap_or(Head::GENESIS);
    match head {
        Some(head) if found.head.seq < head.seq => Err(BadLine {
            segment: segments.last().map_or_else(|| folder.display().to_string(), Segment::name),
            line: last_line + 1,
            why: format!("the log ends with line {}, but line {} was acknowledged", found.head.seq, head.seq),
        }),
        _ => Ok(found),
    }
}

fn reaches(found: Option<Head>, head: Head) -> bool {
    found.unwrap_or(Head::GENESIS).seq >= head.seq
}

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn numbered(folder: &Path, number: u64) -> Self {
        Self { number, path: folder.join(format!("{number:06}.jsonl")) }
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The files of the log in their order; none where there is no such folder. What is not named like one is not looked
/// at.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|digits| digits.parse().ok());
        segments.extend(number.map(|number| Segment::numbered(folder, number)).filter(|s| s.path.ends_with(&name)));
    }
    segments.sort();
    Ok(segments)
}

/// How far the lines of a file are good.
pub(super) struct Walk {
    /// Good lines.
    pub(super) lines: u64,
    /// Their bytes.
    pub(super) good_bytes: u64,
    /// The file's bytes.
    pub(super) size: u64,
    /// The last good line.
    pub(super) head: Option<Head>,
    /// What is wrong with the one after it.
    pub(super) flaw: Option<Flaw>,
}

/// Reads a file up to its first flaw; `on_line` hears of each good line and its number in the file.
pub(super) fn walk(path: &Path, after: After, mut on_line: impl FnMut(u64, Head)) -> io::Result<Walk> {
    let file = File::open(path)?;
    let mut walk = Walk { lines: 0, good_bytes: 0, size: file.metadata()?.len(), head: None, flaw: None };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        let read = next_line(&mut reader, &mut line)?;
        if read == 0 {
            return Ok(walk);
        }
        let checked = match line.pop_if(|byte| *byte == b'\n') {
            Some(_) => check_line(walk.head.map_or(after, After::Line), &line),
            None => Err(Flaw::Torn),
        };
        match checked {
            Ok(head) => {
                walk.lines += 1;
                walk.good_bytes += read;
                walk.head = Some(head);
                on_line(walk.lines, head);
            }
            Err(flaw) => {
                walk.flaw = Some(flaw);
                return Ok(walk);
            }
        }
    }
}

/// What a file's first line claims; `None` where it has none that reads as a line.
pub(super) fn first_claim(path: &Path) -> io::Result<Option<Claim>> {
    let mut line = Vec::new();
    next_line(&mut BufReader::new(File::open(path)?), &mut line)?;
    Ok(line.pop_if(|byte| *byte == b'\n').and_then(|_| claim(&line)))
}

/// One line with its newline; without one at the file's end, or where it is longer than any line.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let read = reader.take(MAX_LINE as u64).read_until(b'\n', line)?;
    Ok(read as u64)
}
