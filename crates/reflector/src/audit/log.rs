//! The audit log's files: opening and repairing them, appending to them, leaving one that failed. Blocking; what is
//! acknowledged to whom is `audit`'s business.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::AuditError;
use super::chain::{After, Head, write_line};
use super::verify::{Segment, first_claim, segments, walk};
use crate::event::Event;
use crate::store::create_private_folder;

/// No more than this can be written and not acknowledged when a crash comes: one batch. What lies behind the
/// acknowledged head and is longer was not left by a crash.
pub(super) const MAX_TAIL: u64 = 4 * 1024 * 1024;

/// The log, ready to be appended to. Whatever fails, the files hold every acknowledged line, and behind them at most
/// one batch that nobody was told of.
pub(super) struct Log {
    folder: PathBuf,
    segment_size: u64,
    disk: Disk,
    /// The number of the last file.
    number: u64,
    /// The file that is appended to; none before the first line, and after a failure.
    file: Option<File>,
    /// Its bytes up to the last acknowledged line.
    length: u64,
    /// The last acknowledged line.
    head: Head,
    /// Written and synced, not yet acknowledged.
    pending: Option<Pending>,
    /// A write failed: the file is not written to again, and has to be cut behind its last acknowledged line.
    is_failed: bool,
    /// What the next line has to say before anything else.
    owed: Option<Event>,
}

#[derive(Clone, Copy)]
struct Pending {
    head: Head,
    length: u64,
}

impl Log {
    /// Opens the log in `folder`, whose last acknowledged line is `head`. Whole lines behind it, that a crash kept
    /// from being acknowledged, are taken as they are; anything else behind it is cut off.
    ///
    /// # Errors
    /// Acknowledged lines that are missing or were changed. No folder at all is none: then the log was moved away,
    /// and the new one says so in its first line.
    pub(super) fn open(folder: &Path, head: Head, segment_size: u64, disk: Disk) -> Result<Self, AuditError> {
        let unusable = |source| AuditError::Unusable { path: folder.to_owned(), source };
        let mut log = Self {
            folder: folder.to_owned(),
            segment_size,
            disk,
            number: 0,
            file: None,
            length: 0,
            head,
            pending: None,
            is_failed: false,
            owed: None,
        };
        if !folder.try_exists().map_err(unusable)? {
            if head.seq > 0 {
                tracing::warn!(lines = head.seq, "the audit log was moved away: a new one begins");
                log.owed = Some(Event::LogBegunAnew { after: head.seq });
            }
            return Ok(log);
        }
        log.find_end()?;
        Ok(log)
    }

    /// The last acknowledged line.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Walks from the file that holds the acknowledged head to the end of what is good, and cuts off the rest.
    fn find_end(&mut self) -> Result<(), AuditError> {
        let folder = self.folder.clone();
        let unusable = |source| AuditError::Unusable { path: folder.clone(), source };
        let broken = |why: String| AuditError::Broken { folder: folder.clone(), why };
        let all = segments(&folder).map_err(unusable)?;
        let head = self.head;
        // The last file that begins at or before the acknowledged line: it has to be in there.
        let mut at = None;
        for (index, segment) in all.iter().enumerate().rev() {
            if first_claim(&segment.path).map_err(unusable)?.is_some_and(|claim| claim.seq <= head.seq) {
                at = Some(index);
                break;
            }
        }
        // No such file is right for a log without lines, and for one that was begun anew just before a crash.
        let (at, mut after, mut is_found) = match at {
            Some(0) => (0, After::Nothing, false),
            Some(index) => (index, After::Unseen, false),
            None => (0, After::Line(head), head == Head::GENESIS || self.is_begun_anew(&all).map_err(unusable)?),
        };
        let mut tail = 0;
        let mut kept = None;
        for (index, segment) in all.iter().enumerate().skip(at) {
            if index > at && kept.is_none_or(|(_, good, size)| good < size) {
                tail += fs::metadata(&segment.path).map_err(unusable)?.len();
                continue;
            }
            let mut is_replaced = false;
            let walk = walk(&segment.path, after, |_, here| {
                is_found |= here == head;
                is_replaced |= here.seq == head.seq && here != head;
            });
            let walk = walk.map_err(unusable)?;
            if is_replaced {
                return Err(broken(format!("line {} in {} was replaced", head.seq, segment.name())));
            }
            if !is_found {
                let why = walk.flaw.map_or_else(|| "the log ends here".to_owned(), |flaw| flaw.to_string());
                let line = walk.lines + 1;
                return Err(broken(format!(
                    "{}, line {line}: {why}; line {} was acknowledged",
                    segment.name(),
                    head.seq
                )));
            }
            after = walk.head.map_or(after, After::Line);
            tail += walk.size - walk.good_bytes;
            kept = Some((index, walk.good_bytes, walk.size));
        }
        if !is_found {
            return Err(broken(format!("there is no file of it, but line {} was acknowledged", head.seq)));
        }
        if tail > MAX_TAIL {
            return Err(broken(format!(
                "{tail} bytes behind its last good line are no lines: no crash leaves so many"
            )));
        }
        let Some((index, good_bytes, _)) = kept else { return Ok(()) };
        if let After::Line(last) = after {
            self.head = last;
        }
        self.number = all[index].number;
        self.cut_tail(&all[index], good_bytes, &all[index + 1..], tail).map_err(unusable)
    }

    /// Whether the first file begins behind the acknowledged head and says that it does.
    fn is_begun_anew(&self, all: &[Segment]) -> io::Result<bool> {
        let Some(first) = all.first() else { return Ok(false) };
        let claim = first_claim(&first.path)?;
        Ok(claim.is_some_and(|claim| claim.begins_anew && claim.seq == self.head.seq.saturating_add(1)))
    }

    /// Leaves nothing behind the first `good_bytes` of the last file.
    fn cut_tail(&mut self, last: &Segment, good_bytes: u64, later: &[Segment], tail: u64) -> io::Result<()> {
        for segment in later.iter().rev() {
            fs::remove_file(&segment.path)?;
        }
        let mut file = OpenOptions::new().append(true).open(&last.path)?;
        if tail > 0 {
            tracing::warn!(segment = last.name(), bytes = tail, "the audit log's unacknowledged tail is cut off");
            self.disk.cut(&mut file, good_bytes)?;
            File::open(&self.folder)?.sync_all()?;
            self.owed = Some(Event::TailRepaired { segment: last.name(), bytes: tail });
        }
        self.length = good_bytes;
        self.file = Some(file);
        Ok(())
    }

    /// Whether the next line has something to say that nobody asked for.
    pub(super) fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// Writes the lines and syncs them; the new head, which holds once it is [`acknowledged`](Log::acknowledge). What
    /// could not be written, or its head not kept, has to be [`disowned`](Log::disown).
    pub(super) fn append(&mut self, events: &[(Timestamp, Event)], now: Timestamp) -> io::Result<Head> {
        if self.is_failed {
            self.leave_failed_file()?;
        }
        if self.length >= self.segment_size {
            self.file = None;
        }
        let mut text = Vec::new();
        let mut head = self.head;
        let owed = self.owed.iter().map(|event| (&now, event));
        for (at, event) in owed.chain(events.iter().map(|(at, event)| (at, event))) {
            head = write_line(head, *at, event, &mut text)?;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.begin_file()?,
        };
        let written = self.disk.write(&mut file, &text).and_then(|()| self.disk.sync(&file));
        self.file = Some(file);
        written?;
        self.pending = Some(Pending { head, length: self.length + text.len() as u64 });
        Ok(head)
    }

    /// The lines of the last [`Log::append`] are in the log.
    pub(super) fn acknowledge(&mut self) {
        if let Some(Pending { head, length }) = self.pending.take() {
            self.head = head;
            self.length = length;
            self.owed = None;
        }
    }

    /// The lines of the last [`Log::append`] are not in the log, and the file they were written to is left for a new
    /// one.
    pub(super) fn disown(&mut self) {
        self.pending = None;
        self.is_failed = true;
        let segment = Segment::numbered(&self.folder, self.number).name();
        // An older debt says more: it names the file where it began.
        self.owed.get_or_insert(Event::TailRepaired { segment, bytes: 0 });
        // At once, so that nobody reads there what was undone; where it fails, the next append tries again first.
        if let Err(why) = self.leave_failed_file() {
            tracing::warn!(%why, "the audit log's failed tail can't be cut off yet");
        }
    }

    /// Cuts the failed file behind its last acknowledged line. After a failed sync the kernel may have dropped what it
    /// could not write, so nothing is written there again; the acknowledged lines were synced before.
    fn leave_failed_file(&mut self) -> io::Result<()> {
        let segment = Segment::numbered(&self.folder, self.number);
        if let Some(file) = &mut self.file {
            let bytes = file.metadata()?.len().saturating_sub(self.length);
            if let Some(Event::TailRepaired { segment: named, bytes: told }) = &mut self.owed
                && *named == segment.name()
            {
                *told = (*told).max(bytes);
            }
            if bytes > 0 {
                self.disk.cut(file, self.length)?;
            }
        }
        if self.length == 0 && self.number > 0 && self.file.is_some() {
            // Nobody was told of anything in it.
            fs::remove_file(&segment.path)?;
            self.number -= 1;
        }
        self.file = None;
        self.is_failed = false;
        Ok(())
    }

    /// The next file, which is on disk under its name before anything is written to it.
    fn begin_file(&mut self) -> io::Result<File> {
        create_private_folder(&self.folder).map_err(io::Error::other)?;
        let segment = Segment::numbered(&self.folder, self.number + 1);
        match fs::remove_file(&segment.path) {
            // A file that failed before a line in it was acknowledged, and could not be removed then.
            Ok(()) => {}
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(why),
        }
        let file = self.disk.create(&segment.path)?;
        self.number += 1;
        self.length = 0;
        let named = File::open(&self.folder).and_then(|folder| folder.sync_all());
        match named {
            Ok(()) => Ok(file),
            Err(why) => {
                self.file = Some(file);
                Err(why)
            }
        }
    }
}

/// The touches of the disk that may fail; tests make them fail.
pub(super) enum Disk {
    Real,
    #[cfg(test)]
    Failing(std::sync::Arc<std::sync::Mutex<Faults>>),
}

impl Disk {
    fn create(&self, path: &Path) -> io::Result<File> {
        #[cfg(test)]
        self.fault(|faults| faults.create.take())?;
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Disk::Failing(faults) = self {
            let mut faults = faults.lock().unwrap();
            if let Some((room, why)) = faults.write.take() {
                file.write_all(&bytes[..room.min(bytes.len())])?;
                return Err(why.into());
            }
        }
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        self.fault(|faults| faults.sync.take())?;
        file.sync_data()
    }

    fn cut(&self, file: &mut File, length: u64) -> io::Result<()> {
        #[cfg(test)]
        self.fault(|faults| faults.cut.take())?;
        file.set_len(length)?;
        file.sync_all()
    }

    #[cfg(test)]
    fn fault(&self, which: impl Fn(&mut Faults) -> Option<io::ErrorKind>) -> io::Result<()> {
        match self {
            Disk::Real => Ok(()),
            Disk::Failing(faults) => which(&mut faults.lock().unwrap()).map_or(Ok(()), |why| Err(why.into())),
        }
    }
}

/// What fails next, once each.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    pub(super) create: Option<io::ErrorKind>,
    /// How many bytes still get through.
    pub(super) write: Option<(usize, io::ErrorKind)>,
    pub(super) sync: Option<io::ErrorKind>,
    pub(super) cut: Option<io::ErrorKind>,
}
