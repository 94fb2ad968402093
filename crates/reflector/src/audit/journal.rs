//! Both chains of the audit log together. A batch can have lines for both chains: either all of them are written, or
//! none.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::AuditError;
use super::chain::ChainState;
use super::log::{Bounds, ChainWriter, Disk, Trim};
use crate::event::{AuditEvent, Chain};

/// The size limits of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The size in bytes at which the log starts a new file.
    pub segment: u64,
    /// The size limit of all files together, in bytes.
    pub total: u64,
}

impl Sizes {
    /// The limits of one chain. The chain of refusals gets a quarter of the space: any client can cause refusals, and
    /// these must not displace the main chain.
    fn of(self, chain: Chain) -> Bounds {
        let quarter = self.total / 4;
        let total = match chain {
            Chain::Main => self.total - quarter,
            Chain::Refusals => quarter,
        };
        // Only whole files are trimmed, and never the last one.
        Bounds { segment: self.segment.min(total / 4), total }
    }
}

/// The audit log, open for appending.
pub(super) struct Journal {
    main: ChainWriter,
    refusals: ChainWriter,
    /// What to delete from the main chain (first) and from the chain of refusals (second). `None`: nothing. Set when
    /// lines are appended, and applied when these lines become final.
    trims: [Option<Trim>; 2],
}

impl Journal {
    /// Opens both chains; see [`ChainWriter::open`].
    pub(super) fn open(
        folder: &Path,
        states: &BTreeMap<Chain, ChainState>,
        sizes: Sizes,
        disk: &Disk,
    ) -> Result<Self, AuditError> {
        let open = |chain| ChainWriter::open(folder, chain, states.get(&chain).copied(), sizes.of(chain), disk.clone());
        Ok(Self { main: open(Chain::Main)?, refusals: open(Chain::Refusals)?, trims: [None; 2] })
    }

    /// The state of both chains, to store in the database.
    pub(super) fn states(&self) -> BTreeMap<Chain, ChainState> {
        BTreeMap::from([(Chain::Main, self.main.state()), (Chain::Refusals, self.refusals.state())])
    }

    /// Fails if another program removed, replaced, truncated or extended a file of the log.
    pub(super) fn check(&self) -> io::Result<()> {
        self.main.check_all()?;
        self.refusals.check_all()
    }

    /// Writes and syncs each event in its chain. The new lines become final only with [`keep`](Journal::keep). After an
    /// error, neither chain contains any of these lines.
    pub(super) fn append(&mut self, events: &[(Timestamp, AuditEvent)], now: Timestamp) -> io::Result<()> {
        self.main.check_last()?;
        self.refusals.check_last()?;
        let mut of_main = Vec::new();
        let mut of_refusals = Vec::new();
        if !events.is_empty() {
            self.trims = [self.main.due_trim(), self.refusals.due_trim()];
            let trims = [&self.main, &self.refusals].into_iter().zip(self.trims);
            of_main.extend(trims.filter_map(|(log, trim)| Some((now, log.trim_event(trim?)))));
        }
        for event in events {
            match event.1.chain() {
                Chain::Main => of_main.push(event.clone()),
                Chain::Refusals => of_refusals.push(event.clone()),
            }
        }
        let appended = self.main.append(&of_main, now).and_then(|()| self.refusals.append(&of_refusals, now));
        let settled = appended.and_then(|()| self.main.settle()).and_then(|()| self.refusals.settle());
        settled.inspect_err(|_| {
            self.main.abandon();
            self.refusals.abandon();
            self.trims = [None; 2];
        })
    }

    /// Makes the pending lines final: they are never cut after this. Called just before the heads of the chains are
    /// stored in the database.
    pub(super) fn keep(&mut self) {
        let [of_main, of_refusals] = std::mem::take(&mut self.trims);
        self.main.keep(of_main);
        self.refusals.keep(of_refusals);
    }

    /// Whether trimmed files, which are no longer part of their chain, must still be deleted.
    pub(super) fn has_trimmed(&self) -> bool {
        self.main.has_trimmed() || self.refusals.has_trimmed()
    }

    /// Deletes the trimmed files. Called once the database has stored [`Journal::states`].
    pub(super) fn delete_trimmed(&mut self) {
        self.main.delete_trimmed();
        self.refusals.delete_trimmed();
    }
}
