//! The audit log. Each decision has a line in the log, and this line is on disk before the reflector sends the
//! decision. One task, the writer, writes the lines of all tasks, in batches. Callers choose the events to record; the
//! log only appends.
//!
//! The log consists of two hash chains. The head of a chain is the number and hash of its last line. For each batch,
//! the writer writes and syncs the lines, then stores the heads of both chains in the database, then answers the
//! callers. Two steps can fail. If the lines cannot be written or synced, the writer cuts them from the files, and does
//! not pass the new heads to the database. If the database reports an error, it may nevertheless have stored the heads,
//! so the lines stay in the files. The callers then get the error, and the next batch stores newer heads.

mod chain;
mod journal;
mod log;
mod owed;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use chain::{ChainState, Head};
use journal::Journal;
pub use journal::Sizes;
use log::Disk;
pub use owed::are_written;
pub use verify::{BadLine, Beginning, Unacknowledged, Verified, verify};

use crate::event::{AuditEvent, Chain, RefusalReason};
use crate::store::{Store, StoreError};

/// The number of write requests that may wait for the writer. If the queue is full, [`Audit::record`] waits. Once the
/// queue is more than half full, [`Audit::note`] counts its event instead of queueing it.
const QUEUE_CAPACITY: usize = 1024;
/// Once a batch has this many lines, the writer adds no further request to it.
const BATCH_EVENTS: usize = 256;
/// The maximum number of events of [`Audit::note`] that the writer keeps while the disk fails. The writer only counts
/// further events of this kind.
const BACKLOG_EVENTS: usize = 1024;
/// The interval at which the writer checks the log, even if no task writes. Each check finds out whether the files are
/// still in place. During a fault, it also finds out whether the disk can be written again.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);

/// The handle with which all tasks write to the audit log. Cheap to clone. The writer ends when the last clone is
/// dropped.
#[derive(Clone, Debug)]
pub struct Audit {
    requests: mpsc::Sender<WriteRequest>,
    fault: watch::Receiver<Option<AuditFault>>,
    not_noted: Arc<AtomicU64>,
}

/// A write to the audit log failed. The events of this write are not acknowledged, so the caller must undo the changes
/// that they record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log can't be written: {because}")]
pub struct AuditFault {
    /// Why the write failed.
    pub because: String,
    /// Whether the lines of the failed write are on disk all the same. This is so if only the new heads of the chains
    /// could not be stored in the database. The caller must then not write the lines again.
    pub is_in_log: bool,
}

/// Why the audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AuditError {
    /// The folder or a file of the log cannot be read or repaired.
    #[error("cannot use the audit log in {}: {source}", path.display())]
    Unusable { path: PathBuf, source: std::io::Error },
    /// An acknowledged line of the log is missing or was changed.
    #[error("the audit log in {} was changed: {why}", folder.display())]
    Broken {
        folder: PathBuf,
        /// What is wrong with the first bad line.
        why: String,
    },
    /// The folder contains a log, but the database has no record of it.
    #[error("the audit log in {} does not belong to the database beside it", folder.display())]
    Foreign { folder: PathBuf },
    /// The database cannot read or store the head of a chain.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Events for the writer to write.
#[derive(Debug)]
struct WriteRequest {
    events: Vec<AuditEvent>,
    /// Receives the result of the write; `None` for events of [`Audit::note`], which has no waiting caller.
    reply: Option<oneshot::Sender<Result<(), AuditFault>>>,
}

impl Audit {
    /// Opens the log in `folder` and starts its writer.
    ///
    /// # Errors
    ///
    /// Fails if acknowledged lines are missing. The files are then left unchanged.
    pub async fn open(folder: &Path, sizes: Sizes, store: Store) -> Result<Self, AuditError> {
        Self::open_on(Disk::Real, PROBE_INTERVAL, folder, sizes, store.into()).await
    }

    async fn open_on(
        disk: Disk,
        probe_interval: Duration,
        folder: &Path,
        sizes: Sizes,
        head_store: HeadStore,
    ) -> Result<Self, AuditError> {
        let known = head_store.0.audit_chains().await?;
        let at = folder.to_owned();
        let states = known.clone();
        let journal = blocking(move || Journal::open(&at, &states, sizes, &disk)).await.ok_or_else(|| {
            AuditError::Unusable { path: folder.to_owned(), source: std::io::Error::other("interrupted") }
        })??;
        if known != journal.states() {
            // From here on, the database has a record of each chain. Log files without such a record belong to another
            // database.
            head_store.keep(&journal.states()).await?;
        }
        let (requests, queue) = mpsc::channel(QUEUE_CAPACITY);
        let (faulted, fault) = watch::channel(None);
        let not_noted = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            head_store,
            fault: faulted,
            probe_interval,
            not_noted: Arc::clone(&not_noted),
            backlog: Vec::new(),
        };
        tokio::spawn(writer.run(journal, queue));
        Ok(Self { requests, fault, not_noted })
    }

    /// Writes these events in this order, without other events in between. When the future returns `Ok`, the events are
    /// on disk. Dropping the future does not cancel the write.
    ///
    /// The call itself, not the awaiting, fixes the position of the events in the log. So a caller that decides under a
    /// lock must make this call before it releases the lock: its lines then have the order of its decisions. While the
    /// queue of the writer is full, this does not hold: the events then enter the queue only when the future is
    /// awaited.
    ///
    /// # Errors
    ///
    /// On an error, none of the events is acknowledged, and the caller must undo the changes that they record. The
    /// events are in the log only if [`is_in_log`](AuditFault::is_in_log) is set.
    pub fn record(&self, events: Vec<AuditEvent>) -> impl Future<Output = Result<(), AuditFault>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let is_empty = events.is_empty();
        let placed =
            if is_empty { Ok(()) } else { self.requests.try_send(WriteRequest { events, reply: Some(reply) }) };
        let requests = self.requests.clone();
        async move {
            let stopped = || AuditFault { because: "its writer has ended".to_owned(), is_in_log: false };
            match placed {
                Ok(()) if is_empty => return Ok(()),
                Ok(()) => {}
                // The queue is full. The lines then follow in the order in which their callers wait.
                Err(TrySendError::Full(request)) => requests.send(request).await.map_err(|_| stopped())?,
                Err(TrySendError::Closed(_)) => return Err(stopped()),
            }
            answer.await.map_err(|_| stopped())?
        }
    }

    /// Writes these events for a caller that continues in the same way whether or not the write succeeds. Events that
    /// could not be written are passed to [`Audit::note`], to be written later.
    pub fn record_or_note(&self, events: Vec<AuditEvent>) -> impl Future<Output = ()> + Send + use<> {
        let audit = self.clone();
        let recorded = self.record(events.clone());
        async move {
            if recorded.await.is_err_and(|fault| !fault.is_in_log) {
                events.into_iter().for_each(|event| audit.note(event));
            }
        }
    }

    /// Writes this event later, without waiting. If too many events wait, this one is dropped, and an
    /// [`AuditEvent::RefusedMore`] with the reason `not_noted` records the number of dropped events.
    pub fn note(&self, event: AuditEvent) {
        // Half of the queue is for `record`, whose callers wait for an answer.
        let is_crowded = self.requests.capacity() < QUEUE_CAPACITY / 2;
        if is_crowded || self.requests.try_send(WriteRequest { events: vec![event], reply: None }).is_err() {
            self.not_noted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Why the log cannot be written at present; `None` while the log can be written. The receiver is notified of each
    /// change.
    pub fn fault(&self) -> watch::Receiver<Option<AuditFault>> {
        self.fault.clone()
    }
}

/// Runs `work`, which may block, on a thread for blocking work. `None` if `work` panicked or the program is ending.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

#[expect(clippy::disallowed_methods, reason = "the host's clock dates lines")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// The database in which the heads of both chains are stored.
struct HeadStore(Store, #[cfg(test)] tests::HeadStoreFaults);

impl From<Store> for HeadStore {
    fn from(store: Store) -> Self {
        Self(
            store,
            #[cfg(test)]
            tests::HeadStoreFaults::default(),
        )
    }
}

impl HeadStore {
    /// Stores the heads of both chains. After an error, the database may nevertheless hold them.
    async fn keep(&self, states: &BTreeMap<Chain, ChainState>) -> Result<(), StoreError> {
        #[cfg(test)]
        if let Some(fails) = self.1.next(&self.0, states).await {
            return fails;
        }
        self.0.set_audit_chains(states).await
    }
}

/// The only task that writes to the audit log.
struct Writer {
    head_store: HeadStore,
    fault: watch::Sender<Option<AuditFault>>,
    probe_interval: Duration,
    not_noted: Arc<AtomicU64>,
    /// The events of [`Audit::note`] that could not be written yet, oldest first.
    backlog: Vec<(Timestamp, AuditEvent)>,
}

/// The events that are written and synced together.
#[derive(Default)]
struct Batch {
    events: Vec<(Timestamp, AuditEvent)>,
    /// Those of `events` that came from [`Audit::note`]. They are kept if the write of the batch fails.
    notes: Vec<(Timestamp, AuditEvent)>,
    replies: Vec<oneshot::Sender<Result<(), AuditFault>>>,
}

impl Batch {
    fn take(&mut self, request: WriteRequest, now: Timestamp) {
        let events = request.events.into_iter().map(|event| (now, event));
        match request.reply {
            Some(reply) => {
                self.events.extend(events);
                self.replies.push(reply);
            }
            None => {
                self.notes.extend(events.clone());
                self.events.extend(events);
            }
        }
    }
}

/// The result of writing a batch.
enum BatchEnd {
    /// The lines of the batch are on disk, and the database has stored the new heads of the chains.
    Kept,
    /// The lines of the batch are not in the log.
    Failed(AuditFault),
    /// The lines of the batch are in the log, but the database did not confirm that it stored their heads.
    Unclear(AuditFault),
}

impl Writer {
    async fn run(mut self, mut journal: Journal, mut requests: mpsc::Receiver<WriteRequest>) {
        let mut next_probe = Instant::now() + self.probe_interval;
        loop {
            let mut batch = Batch::default();
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => batch.take(request, now()),
                    None => return,
                },
                () = tokio::time::sleep_until(next_probe) => {}
            }
            while batch.events.len() < BATCH_EVENTS {
                match requests.try_recv() {
                    Ok(request) => batch.take(request, now()),
                    Err(_) => break,
                }
            }
            let is_probe = next_probe <= Instant::now();
            if is_probe {
                next_probe = Instant::now() + self.probe_interval;
            }
            match self.write(journal, batch, is_probe).await {
                Some(again) => journal = again,
                // The runtime is ending; the callers detect that the writer has ended.
                None => return,
            }
        }
    }

    /// Writes one batch and answers its callers. In a periodic check (`is_probe`) or during a fault, first checks every
    /// file of the log. `None` if the work on the files panicked or the runtime is ending.
    async fn write(&mut self, mut journal: Journal, mut batch: Batch, is_probe: bool) -> Option<Journal> {
        let now = now();
        let not_noted = self.not_noted.swap(0, Ordering::Relaxed);
        let mut events = self.backlog.clone();
        events.append(&mut batch.events);
        if not_noted > 0 {
            events.push((now, AuditEvent::RefusedMore { reason: RefusalReason::NotNoted, count: not_noted }));
        }
        let is_faulted = self.fault.borrow().is_some();
        let is_idle = events.is_empty() && !is_faulted;
        let (mut journal, appended) = blocking(move || {
            let checked = if is_probe || is_faulted { journal.check() } else { Ok(()) };
            let appended = checked.and_then(|()| if is_idle { Ok(()) } else { journal.append(&events, now) });
            if appended.is_ok() {
                journal.keep();
            }
            (journal, appended)
        })
        .await?;
        let written = match appended {
            Ok(()) if is_idle => return Some(journal),
            Ok(()) => match self.head_store.keep(&journal.states()).await {
                Ok(()) => BatchEnd::Kept,
                Err(why) => BatchEnd::Unclear(AuditFault { because: why.to_string(), is_in_log: true }),
            },
            Err(why) => BatchEnd::Failed(AuditFault { because: why.to_string(), is_in_log: false }),
        };
        let answer = match written {
            BatchEnd::Kept => {
                self.backlog.clear();
                if self.fault.send_replace(None).is_some() {
                    tracing::info!("the audit log can be written again");
                }
                Ok(())
            }
            BatchEnd::Unclear(fault) => {
                // The notes are in the log.
                self.backlog.clear();
                Err(fault)
            }
            BatchEnd::Failed(fault) => {
                let room = BACKLOG_EVENTS.saturating_sub(self.backlog.len());
                let lost = batch.notes.len().saturating_sub(room);
                self.backlog.extend(batch.notes.into_iter().take(room));
                self.not_noted.fetch_add(not_noted.saturating_add(lost as u64), Ordering::Relaxed);
                Err(fault)
            }
        };
        if let Err(fault) = &answer
            && self.fault.send_replace(Some(fault.clone())).as_ref() != Some(fault)
        {
            tracing::error!(%fault, "the audit log can't be written: nothing is granted until it can");
        }
        for reply in batch.replies {
            // This fails if the caller no longer waits for its answer.
            reply.send(answer.clone()).ok();
        }
        if answer.is_ok() && journal.has_trimmed() {
            return blocking(move || {
                journal.delete_trimmed();
                journal
            })
            .await;
        }
        Some(journal)
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
