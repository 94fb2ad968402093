//! The files of one chain of the audit log. This module opens them, appends lines, abandons a file after a failed
//! write, and deletes the oldest files. All calls block. The caller decides when the head of the chain (number and hash
//! of its last line) is stored in the database.
//!
//! Two rules preserve every line that may be acknowledged. Once its head was passed to the database, a line is final:
//! it is never cut, whatever the database answered. A tail (the bytes of a file after its last final line) is cut only
//! after a line that records the cut is on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use paramedic_host::database::create_private_folder;

use super::AuditError;
use super::chain::{ChainState, Head, write_line};
use super::verify::{Extent, Segment, first_claim, open_segment, segments, survey};
use crate::event::{AuditEvent, Chain};

/// The size limits of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The size in bytes at which the chain starts a new file.
    pub(super) segment: u64,
    /// The size limit of all files of the chain together, in bytes.
    pub(super) total: u64,
}

/// One chain, open for appending.
pub(super) struct ChainWriter {
    folder: PathBuf,
    chain: Chain,
    bounds: Bounds,
    disk: Disk,
    /// The state to store in the database: the line before the first one on disk, and the last line that is final
    /// (never cut).
    state: ChainState,
    /// The files with final lines (lines that are never cut), oldest first.
    parts: Vec<ChainFile>,
    /// The last of `parts`, open for appending. `None` before the first line, and after a failure.
    file: Option<File>,
    /// A file whose tail never became final. Nothing more is written to this file. Its tail is cut once the next line
    /// of the chain records the cut.
    torn: Option<Torn>,
    /// Events about the log itself, such as a cut, that must be written to this chain before the next event.
    owed: Vec<AuditEvent>,
    /// Lines that are written and synced, but not final yet.
    pending: Option<Pending>,
    /// Trimmed files. They are deleted once the database has stored the new start of the chain.
    trimmed: Vec<Segment>,
}

#[derive(Clone, Debug)]
struct ChainFile {
    segment: Segment,
    /// The size of the file up to the end of its last final line, in bytes.
    bytes: u64,
    id: FileId,
}

/// Identifies a file independently of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

#[derive(Clone, Debug)]
struct Torn {
    segment: Segment,
    good_bytes: u64,
}

struct Pending {
    part: ChainFile,
    file: File,
    is_new: bool,
    head: Head,
}

/// A trim: how many of the oldest files to delete, and where the chain begins after that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trim {
    files: usize,
    /// The line before the first line that remains after the trim.
    base: Head,
}

impl ChainWriter {
    /// Opens the chain in `folder`. `state` is the database's record of the chain. Complete lines that a crash left
    /// after the acknowledged head become part of the chain. All other bytes after the head are cut with the next
    /// write.
    ///
    /// # Errors
    ///
    /// Fails if acknowledged lines are missing or were changed. A missing folder is not an error: it means that the log
    /// was moved away, and the first line of the new log records this.
    pub(super) fn open(
        folder: &Path,
        chain: Chain,
        state: Option<ChainState>,
        bounds: Bounds,
        disk: Disk,
    ) -> Result<Self, AuditError> {
        let unusable = |source| AuditError::Unusable { path: folder.to_owned(), source };
        let mut log = Self {
            folder: folder.to_owned(),
            chain,
            bounds,
            disk,
            state: state.unwrap_or(ChainState::GENESIS),
            parts: Vec::new(),
            file: None,
            torn: None,
            owed: Vec::new(),
            pending: None,
            trimmed: Vec::new(),
        };
        if !folder.try_exists().map_err(unusable)? {
            let head = log.state.head;
            if head.seq > 0 {
                tracing::warn!(lines = head.seq, ?chain, "the audit log was moved away: a new one begins");
                log.owed.push(AuditEvent::LogBegunAnew { after: head.seq });
            }
            log.state.base = head;
            return Ok(log);
        }
        if state.is_none() && has_lines(folder, chain).map_err(unusable)? {
            return Err(AuditError::Foreign { folder: folder.to_owned() });
        }
        log.take_up().map_err(unusable)??;
        Ok(log)
    }

    /// Reads the files as they are on disk, and opens the last one. The inner error means that acknowledged lines are
    /// missing, were changed or cannot be read. The outer error means that a later operation failed, such as a cut or a
    /// sync.
    fn take_up(&mut self) -> io::Result<Result<(), AuditError>> {
        let survey = match survey(&self.folder, self.chain, Some(self.state), Extent::End) {
            Ok(survey) => survey,
            Err(bad) => {
                return Ok(Err(AuditError::Broken { folder: self.folder.clone(), why: bad.to_string() }));
            }
        };
        for (segment, good_bytes) in &survey.recorded_cuts {
            self.repair(&Torn { segment: segment.clone(), good_bytes: *good_bytes })?;
        }
        self.trimmed = survey.leftovers;
        let base = self.state.base;
        if survey.head == base && base.seq > 0 {
            // The log was moved away, and a crash came before the first line of the new log. A trim cannot be the
            // reason, because it always keeps lines.
            self.owed.push(AuditEvent::LogBegunAnew { after: base.seq });
        }
        let adopted = survey.head != self.state.head;
        self.state.head = survey.head;
        let last = survey.files.len().saturating_sub(1);
        for (index, (segment, bytes)) in survey.files.into_iter().enumerate() {
            if bytes == 0 && (index < last || survey.torn.is_some()) {
                continue;
            }
            let id = FileId::of(&fs::symlink_metadata(&segment.path)?);
            self.parts.push(ChainFile { segment, bytes, id });
        }
        if let Some((segment, good_bytes)) = survey.torn {
            tracing::warn!(segment = segment.name(), bytes = survey.tail, "the audit log's unacknowledged tail is cut");
            self.owed.push(AuditEvent::TailRepaired { segment: segment.name(), bytes: survey.tail });
            self.torn = Some(Torn { segment, good_bytes });
        } else if let Some(last) = self.parts.last() {
            self.file = Some(open_segment(&last.segment.path, OpenOptions::new().append(true))?);
        }
        if adopted {
            // The process that wrote these lines was killed before they were acknowledged, and maybe before they were
            // synced.
            for part in &self.parts {
                self.disk.sync(&open_segment(&part.segment.path, OpenOptions::new().read(true))?)?;
            }
            self.disk.sync_folder(&self.folder)?;
        }
        Ok(Ok(()))
    }

    /// The state of this chain, to store in the database.
    pub(super) fn state(&self) -> ChainState {
        self.state
    }

    /// Fails if another program removed, replaced, truncated or extended the last file.
    pub(super) fn check_last(&self) -> io::Result<()> {
        self.parts.last().map_or(Ok(()), |part| self.check_in_place(part))
    }

    /// Checks every file like [`ChainWriter::check_last`].
    pub(super) fn check_all(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| self.check_in_place(part))
    }

    fn check_in_place(&self, part: &ChainFile) -> io::Result<()> {
        let found = match fs::symlink_metadata(&part.segment.path) {
            Ok(found) => Some(found).filter(|found| FileId::of(found) == part.id).map(|found| found.len()),
            Err(gone) if matches!(gone.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => return Err(error),
        };
        let has_tail = self.torn.as_ref().is_some_and(|torn| torn.segment == part.segment);
        let (what, fix) = match found {
            None => ("removed or replaced", "put the same file back"),
            Some(size) if size < part.bytes => ("truncated", "restore its contents"),
            Some(size) if size > part.bytes && !has_tail => ("extended", "restore its contents"),
            Some(_) => return Ok(()),
        };
        let path = part.segment.path.display();
        let folder = self.folder.display();
        Err(io::Error::other(format!(
            "{path} was {what} while the reflector was running; {fix}, or move {folder} away and restart the \
             reflector, which then begins a new log and records this in its first line"
        )))
    }

    /// The oldest files that must be deleted so that the next file fits into the size limit. Never includes the last
    /// file. `None` if the next file already fits, or if the first file to keep cannot be read.
    pub(super) fn due_trim(&self) -> Option<Trim> {
        let most = self.bounds.total.saturating_sub(self.bounds.segment);
        let mut bytes = self.parts.iter().map(|part| part.bytes).sum::<u64>();
        let mut files = 0;
        for part in self.parts.iter().take(self.parts.len().saturating_sub(1)) {
            if bytes <= most {
                break;
            }
            bytes -= part.bytes;
            files += 1;
        }
        let first_kept = self.parts.get(files).filter(|_| files > 0)?;
        // If the first file to keep cannot be read, nothing is trimmed: `audit verify` will report the fault of that
        // file.
        let base = first_claim(&first_kept.segment.path).ok().flatten().and_then(|claim| claim.before())?;
        Some(Trim { files, base })
    }

    /// The event for the main chain that records a trim of this chain.
    pub(super) fn trim_event(&self, trim: Trim) -> AuditEvent {
        let first_line = trim.base.seq.saturating_add(1);
        AuditEvent::LogTrimmed { chain: self.chain, first_line, hash_before: trim.base.hash_hex() }
    }

    /// Writes and syncs the lines of `events`, after those of the owed events, which get the time `now`. The lines
    /// become final only with [`settle`](ChainWriter::settle) and [`keep`](ChainWriter::keep). After an error, no line
    /// is pending.
    pub(super) fn append(&mut self, events: &[(Timestamp, AuditEvent)], now: Timestamp) -> io::Result<()> {
        // Writes nothing if the last file was moved, removed or changed in size.
        self.check_last()?;
        let mut text = Vec::new();
        let mut head = self.state.head;
        for (at, event) in self.owed.iter().map(|event| (&now, event)).chain(events.iter().map(|(at, e)| (at, e))) {
            head = write_line(head, *at, event, &mut text)?;
        }
        if text.is_empty() {
            return Ok(());
        }
        let added = text.len() as u64;
        let is_full = |part: &ChainFile| part.bytes > 0 && part.bytes + added > self.bounds.segment;
        if self.parts.last().is_some_and(is_full) {
            self.file = None;
        }
        let (part, file, is_new) = match (self.file.take(), self.parts.last()) {
            (Some(file), Some(last)) => (last.clone(), file, false),
            _ => {
                let (part, file) = self.begin_file()?;
                (part, file, true)
            }
        };
        let mut pending = Pending { part, file, is_new, head };
        let written = self.disk.write(&mut pending.file, &text).and_then(|()| self.disk.sync(&pending.file));
        pending.part.bytes += if written.is_ok() { added } else { 0 };
        self.pending = Some(pending);
        written.inspect_err(|_| self.abandon())
    }

    /// Cuts the torn tail, if there is one: the pending lines, which record the cut, are on disk now. Fails if the file
    /// of the pending lines was replaced or has changed in size.
    pub(super) fn settle(&self) -> io::Result<()> {
        let Some(pending) = &self.pending else { return Ok(()) };
        if let Some(torn) = &self.torn {
            self.repair(torn)?;
        }
        self.check_in_place(&pending.part)
    }

    /// Cuts a torn tail. A line of the log must already record the cut.
    fn repair(&self, torn: &Torn) -> io::Result<()> {
        if torn.good_bytes > 0 {
            return self.disk.cut(&torn.segment.path, torn.good_bytes);
        }
        self.disk.remove(&torn.segment.path)?;
        self.disk.sync_folder(&self.folder)
    }

    /// Makes the pending lines final: they are never cut after this. Removes the files of `trim` from the chain. Called
    /// just before the head of the chain is stored in the database.
    pub(super) fn keep(&mut self, trim: Option<Trim>) {
        if let Some(Pending { part, file, is_new, head }) = self.pending.take() {
            if !is_new {
                self.parts.pop();
            }
            self.parts.push(part);
            self.file = Some(file);
            self.state.head = head;
            self.torn = None;
            self.owed.clear();
        }
        if let Some(Trim { files, base }) = trim {
            self.trimmed.extend(self.parts.drain(..files).map(|part| part.segment));
            self.state.base = base;
        }
    }

    /// Abandons the pending lines, and writes nothing more to their file: after a failed sync, the kernel may have
    /// dropped data that was not on disk yet.
    pub(super) fn abandon(&mut self) {
        let Some(Pending { part, is_new, .. }) = self.pending.take() else { return };
        self.file = None;
        if self.torn.is_none() {
            let good_bytes = if is_new { 0 } else { self.parts.last().map_or(0, |part| part.bytes) };
            let bytes = fs::metadata(&part.segment.path).map_or(0, |now| now.len().saturating_sub(good_bytes));
            self.owed.push(AuditEvent::TailRepaired { segment: part.segment.name(), bytes });
            if good_bytes == 0 && !is_new {
                self.parts.pop();
            }
            self.torn = Some(Torn { segment: part.segment, good_bytes });
        } else if let Err(why) = self.disk.remove(&part.segment.path) {
            // The next append retries this before it creates a file.
            tracing::warn!(%why, "a failed file of the audit log can't be removed yet");
        }
    }

    pub(super) fn has_trimmed(&self) -> bool {
        !self.trimmed.is_empty()
    }

    /// Deletes the trimmed files. Called once the database has stored the new start of the chain.
    pub(super) fn delete_trimmed(&mut self) {
        let disk = &self.disk;
        self.trimmed.retain(|segment| match disk.remove(&segment.path) {
            Ok(()) => false,
            Err(why) => {
                tracing::warn!(%why, segment = segment.name(), "a trimmed file of the audit log can't be deleted yet");
                true
            }
        });
    }

    /// Creates the next file. Syncs its folder before anything is written to the file.
    fn begin_file(&self) -> io::Result<(ChainFile, File)> {
        create_private_folder(&self.folder).map_err(io::Error::other)?;
        let of_parts = self.parts.last().map(|part| part.segment.number);
        let of_torn = self.torn.as_ref().map(|torn| torn.segment.number);
        let last = of_parts.max(of_torn).or_else(|| self.trimmed.last().map(|segment| segment.number)).unwrap_or(0);
        // Files after the last one may be removed: no head of theirs was ever passed to the database.
        for stale in segments(&self.folder, self.chain)?.iter().rev().take_while(|segment| segment.number > last) {
            self.disk.remove(&stale.path)?;
        }
        let segment = Segment::numbered(&self.folder, self.chain, last + 1);
        let file = self.disk.create(&segment.path)?;
        self.disk.sync_folder(&self.folder)?;
        let id = FileId::of(&file.metadata()?);
        Ok((ChainFile { segment, bytes: 0, id }, file))
    }
}

/// Whether the folder contains files of the chain that are not empty.
fn has_lines(folder: &Path, chain: Chain) -> io::Result<bool> {
    for segment in segments(folder, chain)? {
        if fs::symlink_metadata(&segment.path)?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The disk operations that may fail. Tests inject failures here.
#[derive(Clone)]
pub(super) enum Disk {
    Real,
    #[cfg(test)]
    Failing(std::sync::Arc<std::sync::Mutex<Faults>>),
}

impl Disk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.touch(Touch::Create)?;
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let touched = self.touch(Touch::Write);
        #[cfg(test)]
        if touched.is_err() {
            file.write_all(&bytes[..self.partial(bytes.len())])?;
        }
        touched?;
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.touch(Touch::Sync)?;
        file.sync_data()?;
        #[cfg(test)]
        self.note_synced(file)?;
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.touch(Touch::SyncFolder)?;
        File::open(path)?.sync_all()
    }

    fn cut(&self, path: &Path, length: u64) -> io::Result<()> {
        self.touch(Touch::Cut)?;
        let file = open_segment(path, OpenOptions::new().write(true))?;
        if file.metadata()?.len() > length {
            file.set_len(length)?;
        }
        file.sync_all()
    }

    /// Deletes a file. A missing file is not an error.
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.touch(Touch::Remove)?;
        match fs::remove_file(path) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests make it fail")]
    fn touch(&self, _: Touch) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn touch(&self, touch: Touch) -> io::Result<()> {
        match self {
            Disk::Real => Ok(()),
            Disk::Failing(faults) => faults.lock().unwrap().touch(touch),
        }
    }

    #[cfg(test)]
    fn partial(&self, length: usize) -> usize {
        match self {
            Disk::Real => length,
            Disk::Failing(faults) => faults.lock().unwrap().partial.min(length),
        }
    }

    #[cfg(test)]
    fn note_synced(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        if let Disk::Failing(faults) = self {
            faults.lock().unwrap().synced.insert(metadata.ino(), metadata.len());
        }
        Ok(())
    }
}

/// The kinds of disk operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Create,
    Write,
    Sync,
    SyncFolder,
    Cut,
    Remove,
}

/// The failures that a test injects next.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// For each entry, the next disk operation of this kind fails with this error.
    pub(super) failing: Vec<(Touch, io::ErrorKind)>,
    /// The number of disk operations that still succeed before one fails.
    pub(super) failing_after: Option<u64>,
    /// The number of disk operations that still succeed before all further ones fail, as if the process were killed.
    pub(super) killed_after: Option<u64>,
    /// The number of bytes that a failing write still writes.
    pub(super) partial: usize,
    /// The length up to which each file is synced to disk, by the file's inode number.
    pub(super) synced: std::collections::HashMap<u64, u64>,
}

#[cfg(test)]
impl Faults {
    fn touch(&mut self, touch: Touch) -> io::Result<()> {
        if let Some(left) = &mut self.killed_after {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        }
        if let Some(left) = self.failing_after {
            self.failing_after = left.checked_sub(1);
            if left == 0 {
                return Err(io::ErrorKind::Other.into());
            }
        }
        match self.failing.iter().position(|(failing, _)| *failing == touch) {
            Some(at) => Err(self.failing.remove(at).1.into()),
            None => Ok(()),
        }
    }
}
