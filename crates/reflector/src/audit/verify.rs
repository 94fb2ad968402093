//! Verifies the audit log: finds how far each chain is intact, what a crash left after the intact lines, and the first
//! damaged line. This module only reads. Callers decide what follows from the result.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::chain::{After, ChainState, Claim, Flaw, Head, MAX_LINE, check_line, claim};
use crate::event::Chain;

/// The largest tail, in bytes, that a crash can leave after the acknowledged head: one batch. If the tail is larger, it
/// was not left by a crash.
pub(super) const MAX_TAIL: u64 = 4 * 1024 * 1024;

/// A chain that was read to its end and is intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The number of lines that were checked.
    pub lines: u64,
    /// The number of files that were read.
    pub segments: u64,
    /// The last line of the chain; [`Head::GENESIS`] if there is none.
    pub head: Head,
    /// Where the lines on disk begin, and why there.
    pub begins: Beginning,
    /// What follows the acknowledged head. All zero if [`verify`] was called without the records of the database. In
    /// that case, an incomplete line at the end is an error.
    pub unacknowledged: Unacknowledged,
}

/// What follows the acknowledged head of a chain: a write in progress, the remains of a crash, or lines that another
/// program appended. These cannot be distinguished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unacknowledged {
    /// The number of bytes after the acknowledged head.
    pub bytes: u64,
    /// The number of lines after the acknowledged head that continue the chain. At its next start, the reflector makes
    /// them a part of the log. [`Verified::lines`] includes them.
    pub lines: u64,
    /// The number of bytes after the last line that continues the chain. At its next start, the reflector cuts them.
    pub torn_bytes: u64,
}

/// Where a chain begins, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The chain begins with line 1.
    First,
    /// The chain begins with the line of this number, because the earlier log was moved away or deleted. Possibly, the
    /// line is not written yet.
    BegunAnew(u64),
    /// The chain begins with the line of this number, because earlier lines were trimmed. The database has the hash of
    /// the last trimmed line.
    Trimmed(u64),
}

/// The first line that is missing, damaged or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{segment}, line {line}: {why}")]
pub struct BadLine {
    /// The name of the file with the bad line.
    pub segment: String,
    /// The number of the bad line within the file, from 1; 0 if the file as a whole is bad.
    pub line: u64,
    /// What is wrong with the line.
    pub why: String,
}

/// Checks every line of both chains of the log in `folder`. Returns the results of the main chain and of the chain of
/// refusals. `states` are the database's records of the chains (see
/// [`Store::read_audit_chains`](crate::store::Store::read_audit_chains)). Without these records, the check does not
/// notice if the last lines are missing, and rejects a log whose first lines were trimmed.
///
/// # Errors
///
/// Returns the first line that is missing, was changed or cannot be read.
pub fn verify(folder: &Path, states: Option<&BTreeMap<Chain, ChainState>>) -> Result<[Verified; 2], BadLine> {
    // A chain without a record in the database has no lines.
    let state = |chain| states.map(|states| states.get(&chain).copied().unwrap_or(ChainState::GENESIS));
    let verified = |chain| Ok(survey(folder, chain, state(chain), Extent::Whole)?.verified());
    Ok([verified(Chain::Main)?, verified(Chain::Refusals)?])
}

/// How much of a chain to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The whole chain.
    Whole,
    /// Only the file with the acknowledged head, and all files after it.
    End,
}

/// What a chain contains on disk: lines that are intact up to the acknowledged head, and after it at most the remains
/// of a crash.
#[derive(Debug)]
pub(super) struct Survey {
    /// Files whose lines were all trimmed, but which were not deleted because of a crash.
    pub(super) leftovers: Vec<Segment>,
    /// The files of the chain, each with the size of its complete lines in bytes.
    pub(super) files: Vec<(Segment, u64)>,
    /// Files whose tail must be cut, because a later line records the cut. Each has the size to keep, in bytes.
    pub(super) recorded_cuts: Vec<(Segment, u64)>,
    /// The file whose tail must be cut, with the size to keep in bytes. Files after it are not part of the chain.
    /// `None` if no tail must be cut apart from `recorded_cuts`.
    pub(super) torn: Option<(Segment, u64)>,
    /// The size in bytes of the tail to cut, including all later files.
    pub(super) tail: u64,
    /// The last complete line of the chain.
    pub(super) head: Head,
    unacknowledged_bytes: u64,
    unacknowledged_lines: u64,
    lines: u64,
    begins: Beginning,
}

impl Survey {
    fn verified(&self) -> Verified {
        Verified {
            lines: self.lines,
            segments: self.files.len() as u64,
            head: self.head,
            begins: self.begins,
            unacknowledged: Unacknowledged {
                bytes: self.unacknowledged_bytes,
                lines: self.unacknowledged_lines,
                torn_bytes: self.tail,
            },
        }
    }
}

/// Reads the chain up to its last valid line. [`Extent::Whole`] reads every file; [`Extent::End`] begins with the file
/// that has the acknowledged head.
///
/// # Errors
///
/// Returns the first invalid line up to the acknowledged head. Also fails if more invalid data follows the head than a
/// crash can leave.
pub(super) fn survey(
    folder: &Path,
    chain: Chain,
    state: Option<ChainState>,
    extent: Extent,
) -> Result<Survey, BadLine> {
    let unreadable =
        |name: String| move |why| BadLine { segment: name, line: 0, why: format!("cannot be read: {why}") };
    let all = segments(folder, chain).map_err(unreadable(folder.display().to_string()))?;
    let claims = all.iter().map(|segment| first_claim(&segment.path).map_err(unreadable(segment.name())));
    let claims = claims.collect::<Result<Vec<_>, _>>()?;
    let ChainState { base, head } = state.unwrap_or(ChainState::GENESIS);
    let begins_behind_base = |claim: &Claim| claim.before() == Some(base) || base == Head::GENESIS && claim.begins_anew;
    let begins = claims.iter().position(|claim| claim.as_ref().is_some_and(begins_behind_base));
    // Only files before a known base can be leftovers of a trim.
    let kept_from = begins.filter(|_| base != Head::GENESIS).unwrap_or(0);
    if let (Extent::End, None, Some(first)) = (extent, begins, all.first())
        && head != base
    {
        let why = format!("line {} is missing", base.seq.saturating_add(1));
        return Err(BadLine { segment: first.name(), line: 1, why });
    }
    // The last file that begins at or before the acknowledged line must contain it.
    let holds_head = |claim: &Option<Claim>| claim.as_ref().is_some_and(|claim| claim.seq <= head.seq);
    let walked_from = match extent {
        Extent::Whole => kept_from,
        Extent::End => claims.iter().rposition(holds_head).unwrap_or(0).max(kept_from),
    };
    let mut after = match base {
        _ if walked_from > kept_from => After::Unseen,
        Head::GENESIS => After::Nothing,
        base => After::Line(base),
    };
    let first = claims.get(kept_from).and_then(Option::as_ref).filter(|claim| claim.seq > 1);
    let mut survey = Survey {
        leftovers: all[..kept_from].to_vec(),
        files: Vec::new(),
        recorded_cuts: Vec::new(),
        torn: None,
        tail: 0,
        head: base,
        unacknowledged_bytes: 0,
        unacknowledged_lines: 0,
        lines: 0,
        begins: match first {
            Some(claim) if claim.begins_anew => Beginning::BegunAnew(claim.seq),
            Some(claim) => Beginning::Trimmed(claim.seq),
            // A trim keeps lines. So if there are no lines, the log was moved away, and the first line of the new log
            // was not written.
            None if base.seq > 0 => Beginning::BegunAnew(base.seq.saturating_add(1)),
            None => Beginning::First,
        },
    };
    for segment in &all[kept_from..walked_from] {
        let size = fs::symlink_metadata(&segment.path).map_err(unreadable(segment.name()))?.len();
        survey.files.push((segment.clone(), size));
    }
    // If the acknowledged head is the base, it is reached before any line is read.
    let mut is_reached = state.is_some() && head == base;
    let mut last_line = 0;
    for (index, segment) in all.iter().enumerate().skip(walked_from) {
        let bad = |line, why| BadLine { segment: segment.name(), line, why };
        let mut replaced = None;
        // The lines and bytes of this file up to the acknowledged head; `None` until the head is reached.
        let mut acknowledged = is_reached.then_some((0, 0));
        // The next file, whose first line may record a cut of this file's tail.
        let next = claims.get(index + 1).and_then(Option::as_ref);
        let name = segment.name();
        // If the first line of a new log could not be written, the log begins again in the next file.
        let begins_again = |claim: &Claim| base.seq > 0 && claim.begins_anew && claim.before() == Some(base);
        let is_cut_behind =
            |line| next.is_some_and(|claim| claim.repairs(&name, line) || line == base && begins_again(claim));
        let mut cut = match after {
            After::Line(before) if is_reached && is_cut_behind(before) => Some((before, 0, 0)),
            After::Nothing if is_reached && is_cut_behind(Head::GENESIS) => Some((Head::GENESIS, 0, 0)),
            _ => None,
        };
        let mut walk = walk(&segment.path, after, |here, line, bytes| {
            if state.is_some() && here == head {
                is_reached = true;
                acknowledged = Some((line, bytes));
            }
            if state.is_some() && here.seq == head.seq && here != head {
                replaced = replaced.or(Some(line));
            }
            if here.seq == head.seq {
                cut = None;
            }
            if is_reached && is_cut_behind(here) {
                cut = Some((here, line, bytes));
            }
        })
        .map_err(unreadable(segment.name()))?;
        if let Some(line) = replaced {
            return Err(bad(line, "this is not the line that was acknowledged: it was replaced".to_owned()));
        }
        let is_cut = cut.is_some_and(|(.., bytes)| bytes < walk.size);
        if let Some((line, lines, good_bytes)) = cut.filter(|_| is_cut) {
            walk = Walk { lines, good_bytes, head: Some(line), flaw: None, ..walk };
            survey.recorded_cuts.push((segment.clone(), good_bytes));
        }
        if let Some((lines, bytes)) = acknowledged {
            survey.unacknowledged_lines += walk.lines.saturating_sub(lines);
            survey.unacknowledged_bytes += walk.size.max(walk.good_bytes).saturating_sub(bytes);
        }
        if let Some(last) = walk.head {
            survey.head = last;
            after = After::Line(last);
        }
        survey.lines += walk.lines;
        last_line = walk.lines;
        survey.files.push((segment.clone(), walk.good_bytes));
        let Some(flaw) = walk.flaw else { continue };
        if !is_reached {
            return Err(bad(walk.lines + 1, flaw.to_string()));
        }
        let mut later_bytes = 0;
        for later in &all[index + 1..] {
            later_bytes += fs::symlink_metadata(&later.path).map_err(unreadable(later.name()))?.len();
        }
        survey.tail = walk.size - walk.good_bytes + later_bytes;
        survey.unacknowledged_bytes += later_bytes;
        if survey.tail > MAX_TAIL {
            let why =
                format!("{} invalid bytes come after the last valid line: more than a crash can leave", survey.tail);
            return Err(bad(walk.lines + 1, why));
        }
        survey.torn = Some((segment.clone(), walk.good_bytes));
        break;
    }
    if state.is_some() && !is_reached {
        return Err(BadLine {
            segment: all.last().map_or_else(|| folder.display().to_string(), Segment::name),
            line: last_line + 1,
            why: format!("the log ends with line {}, but line {} was acknowledged", survey.head.seq, head.seq),
        });
    }
    Ok(survey)
}

/// One file of a chain of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn numbered(folder: &Path, chain: Chain, number: u64) -> Self {
        Self { number, path: folder.join(format!("{}{number:06}.jsonl", prefix(chain))) }
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The prefix of the file names of a chain.
fn prefix(chain: Chain) -> &'static str {
    match chain {
        Chain::Main => "",
        Chain::Refusals => "refusals-",
    }
}

/// The files of the chain in their order. Empty if the folder does not exist. Ignores files with other names.
pub(super) fn segments(folder: &Path, chain: Chain) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(prefix(chain))?.strip_suffix(".jsonl"));
        let segment = digits.and_then(|digits| digits.parse().ok()).map(|n| Segment::numbered(folder, chain, n));
        segments.extend(segment.filter(|segment| segment.path.ends_with(&name)));
    }
    segments.sort();
    Ok(segments)
}

/// Opens a file of the log. Fails if it is not a regular file, because another program may have put a symbolic link or
/// a FIFO in its place. Does not follow the link, and does not wait at the FIFO.
pub(super) fn open_segment(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let not_regular = || io::Error::other("it is not a regular file");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = options.custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR) => not_regular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// The valid lines at the beginning of a file.
struct Walk {
    /// The number of valid lines.
    lines: u64,
    /// The size of the valid lines, in bytes.
    good_bytes: u64,
    /// The size of the file, in bytes.
    size: u64,
    /// The last valid line; `None` if no line is valid.
    head: Option<Head>,
    /// What is wrong with the line after the valid ones; `None` if all lines are valid.
    flaw: Option<Flaw>,
}

/// Reads a file up to its first flaw. `after` describes the line before the first line of the file. Calls `on_line` for
/// each valid line with its [`Head`], the number of valid lines so far, and their total size in bytes.
fn walk(path: &Path, after: After, mut on_line: impl FnMut(Head, u64, u64)) -> io::Result<Walk> {
    let file = open_segment(path, OpenOptions::new().read(true))?;
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
                on_line(head, walk.lines, walk.good_bytes);
            }
            Err(flaw) => {
                // A file that is being written may have grown since.
                walk.size = walk.size.max(walk.good_bytes + read);
                walk.flaw = Some(flaw);
                return Ok(walk);
            }
        }
    }
}

/// Reads what the first line of a file states about its position; `None` if the line cannot be parsed.
pub(super) fn first_claim(path: &Path) -> io::Result<Option<Claim>> {
    let mut line = Vec::new();
    next_line(&mut BufReader::new(open_segment(path, OpenOptions::new().read(true))?), &mut line)?;
    Ok(line.pop_if(|byte| *byte == b'\n').and_then(|_| claim(&line)))
}

/// Reads one line, with its newline, into `line`. Returns the number of bytes read; 0 at the end of the file. `line`
/// has no newline if the file ends first, or if the line is longer than [`MAX_LINE`].
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let read = reader.take(MAX_LINE as u64).read_until(b'\n', line)?;
    Ok(read as u64)
}
