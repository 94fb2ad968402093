//! The audit log: what was decided reaches the disk here before anybody is told. One task writes for everybody, a
//! batch at a time. What is worth a line is decided elsewhere; it is only ever appended to.
//!
//! Order of one batch: lines written and synced, head kept in the store, callers answered. So after a crash only what
//! nobody was told of can be missing, and whatever else is missing shows.

mod chain;
mod log;
mod owed;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

pub use chain::Head;
use log::{Disk, Log};
pub use owed::are_written;
pub use verify::{BadLine, Verified, verify};

use crate::event::{Event, RefusalReason};
use crate::store::{Store, StoreError};

/// Orders that may wait for the writer. Whoever records waits when it is full; whoever notes is counted.
const QUEUE: usize = 1024;
/// Lines after which a batch takes no further order.
const BATCH: usize = 256;
/// Notes that are kept while the disk fails; further ones are counted.
const BACKLOG: usize = 1024;
/// How long a fault lasts before the disk is tried again when nobody asks for it.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// The handle that everybody writes through. Cheap to clone; the writer ends with the last clone.
#[derive(Clone, Debug)]
pub struct Audit {
    orders: mpsc::Sender<Order>,
    faulted: watch::Receiver<bool>,
    not_noted: Arc<AtomicU64>,
}

/// The log can't be written: what was to be recorded is not in it, and has to be undone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log can't be written: {because}")]
pub struct AuditFault {
    /// What failed.
    pub because: String,
}

/// Why the log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Its folder or files can't be read or repaired.
    #[error("cannot use the audit log in {}: {source}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Lines that somebody was told of are missing or were changed.
    #[error(
        "the audit log in {0} is not what it was: {why}; `reflector audit verify` names the first bad line; \
         to go on without it, keep it for a look: mv {0} {0}.damaged (the new log will say that it begins anew)",
        folder.display()
    )]
    Broken {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The log has lines, and the database has never heard of it.
    #[error(
        "the audit log in {0} belongs to another database: the one beside it is new; put the old database back, or \
         keep the log for a look and begin a new one: mv {0} {0}.old",
        folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
    /// The head can't be read or kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the writer is asked to write.
#[derive(Debug)]
struct Order {
    events: Vec<Event>,
    /// Who waits for it to be on disk; nobody for a note.
    told: Option<oneshot::Sender<Result<(), AuditFault>>>,
}

impl Audit {
    /// Opens the log in `folder` and starts its writer; files grow to `segment_size` bytes. With it comes whether the
    /// log is faulted just now.
    ///
    /// # Errors
    /// A log that lacks lines somebody was told of is not opened, and left as it is.
    pub async fn open(
        folder: &Path,
        segment_size: u64,
        store: Store,
    ) -> Result<(Self, watch::Receiver<bool>), AuditError> {
        Self::open_on(Disk::Real, PROBE_EVERY, folder, segment_size, store).await
    }

    async fn open_on(
        disk: Disk,
        probe_every: Duration,
        folder: &Path,
        segment_size: u64,
        store: Store,
    ) -> Result<(Self, watch::Receiver<bool>), AuditError> {
        let known = store.audit_head().await?;
        let head = known.unwrap_or(Head::GENESIS);
        let at = folder.to_owned();
        let log = blocking(move || {
            if known.is_none() && has_lines(&at)? {
                return Err(AuditError::Foreign { folder: at });
            }
            Log::open(&at, head, segment_size, disk)
        })
        .await
        .ok_or_else(|| AuditError::Unusable {
            path: folder.to_owned(),
            source: std::io::Error::other("interrupted"),
        })??;
        if known != Some(log.head()) {
            // From here on, a database without a head beside a log with lines is a foreign one.
            store.set_audit_head(log.head()).await?;
        }
        let (orders, queue) = mpsc::channel(QUEUE);
        let (fault, faulted) = watch::channel(false);
        let not_noted = Arc::new(AtomicU64::new(0));
        let writer = Writer { store, fault, probe_every, not_noted: Arc::clone(&not_noted), backlog: Vec::new() };
        tokio::spawn(writer.run(log, queue));
        Ok((Self { orders, faulted: faulted.clone(), not_noted }, faulted))
    }

    /// Writes these events, in order and next to each other; they are on disk when the future is done. They take their
    /// place in the log when this is called, so that whoever decides under a lock and calls it there is written down in
    /// the order of the decisions. Dropping the future does not take them back.
    ///
    /// # Errors
    /// Then none of them is in the log. Whatever they stood for has to be undone; what can't be undone is worth a
    /// [`note`](Audit::note), which is written when the log can be written again.
    pub fn record(&self, events: Vec<Event>) -> impl Future<Output = Result<(), AuditFault>> + Send + use<> {
        let (told, answer) = oneshot::channel();
        let is_empty = events.is_empty();
        let placed = if is_empty { Ok(()) } else { self.orders.try_send(Order { events, told: Some(told) }) };
        let orders = self.orders.clone();
        async move {
            let stopped = || AuditFault { because: "its writer has ended".to_owned() };
            match placed {
                Ok(()) if is_empty => return Ok(()),
                Ok(()) => {}
                // The writer is far behind: from here on the order is that of the waiting.
                Err(TrySendError::Full(order)) => orders.send(order).await.map_err(|_| stopped())?,
                Err(TrySendError::Closed(_)) => return Err(stopped()),
            }
            answer.await.map_err(|_| stopped())?
        }
    }

    /// Writes this event when there is time for it, and waits for nothing. Where there are more of them than can be
    /// written, how many follows as a [`Event::RefusedMore`] of reason `not_noted`.
    pub fn note(&self, event: Event) {
        // Half of the queue is for those who wait for an answer.
        let is_crowded = self.orders.capacity() < QUEUE / 2;
        if is_crowded || self.orders.try_send(Order { events: vec![event], told: None }).is_err() {
            self.not_noted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the log can't be written just now, and each change of that.
    pub fn faulted(&self) -> watch::Receiver<bool> {
        self.faulted.clone()
    }
}

/// Whether a log stands in the folder: any file of it that is not empty.
fn has_lines(folder: &Path) -> Result<bool, AuditError> {
    let unusable = |source| AuditError::Unusable { path: folder.to_owned(), source };
    for segment in verify::segments(folder).map_err(unusable)? {
        if std::fs::metadata(&segment.path).map_err(unusable)?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs what blocks where it may; `None` when it panicked or the program is ending.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// The one task that writes.
struct Writer {
    store: Store,
    fault: watch::Sender<bool>,
    probe_every: Duration,
    not_noted: Arc<AtomicU64>,
    /// Notes that could not be written, oldest first.
    backlog: Vec<(Timestamp, Event)>,
}

/// What is written and synced at once.
#[derive(Default)]
struct Batch {
    events: Vec<(Timestamp, Event)>,
    /// Those of nobody who waits: kept when the write fails.
    notes: Vec<(Timestamp, Event)>,
    told: Vec<oneshot::Sender<Result<(), AuditFault>>>,
}

impl Batch {
    fn take(&mut self, order: Order, now: Timestamp) {
        let events = order.events.into_iter().map(|event| (now, event));
        match order.told {
            Some(told) => {
                self.events.extend(events);
                self.told.push(told);
            }
            None => {
                self.notes.extend(events.clone());
                self.events.extend(events);
            }
        }
    }
}

impl Writer {
    async fn run(mut self, mut log: Log, mut orders: mpsc::Receiver<Order>) {
        loop {
            let mut batch = Batch::default();
            let is_faulted = *self.fault.borrow();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => batch.take(order, Timestamp::now()),
                    None => return,
                },
                () = tokio::time::sleep(self.probe_every), if is_faulted => {}
            }
            while batch.events.len() < BATCH {
                match orders.try_recv() {
                    Ok(order) => batch.take(order, Timestamp::now()),
                    Err(_) => break,
                }
            }
            match self.write(log, batch).await {
                Some(again) => log = again,
                // The runtime is ending; whoever waits hears that the writer has ended.
                None => return,
            }
        }
    }

    /// Writes one batch and answers those who wait for it.
    async fn write(&mut self, mut log: Log, mut batch: Batch) -> Option<Log> {
        let now = Timestamp::now();
        let not_noted = self.not_noted.swap(0, Ordering::Relaxed);
        let mut events = self.backlog.clone();
        events.append(&mut batch.events);
        if not_noted > 0 {
            events.push((now, Event::RefusedMore { reason: RefusalReason::NotNoted, count: not_noted }));
        }
        let (mut log, appended) = blocking(move || {
            let appended = if events.is_empty() && !log.owes() { Ok(log.head()) } else { log.append(&events, now) };
            (log, appended)
        })
        .await?;
        let written = match appended {
            Ok(head) => self.store.set_audit_head(head).await.map_err(|why| why.to_string()),
            Err(why) => Err(why.to_string()),
        };
        let log = if written.is_ok() {
            log.acknowledge();
            log
        } else {
            blocking(move || {
                log.disown();
                log
            })
            .await?
        };
        let answer = match written {
            Ok(()) => {
                self.backlog.clear();
                if self.fault.send_replace(false) {
                    tracing::info!("the audit log can be written again");
                }
                Ok(())
            }
            Err(because) => {
                if !self.fault.send_replace(true) {
                    tracing::error!(because, "the audit log can't be written: nothing is granted until it can");
                }
                let room = BACKLOG.saturating_sub(self.backlog.len());
                let lost = batch.notes.len().saturating_sub(room);
                self.backlog.extend(batch.notes.into_iter().take(room));
                self.not_noted.fetch_add(not_noted.saturating_add(lost as u64), Ordering::Relaxed);
                Err(AuditFault { because })
            }
        };
        for told in batch.told {
            // Whoever no longer listens has its answer in the log.
            let _ = told.send(answer.clone());
        }
        Some(log)
    }
}

#[cfg(test)]
mod tests;
