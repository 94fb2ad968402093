//! Tests with failures and kills at every step of the audit log, compared with a model of the database. They check that
//! the log always opens, that every acknowledged line is kept, and that every cut or move of lines is recorded.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

use super::journal::Journal;
use super::log::{Disk, Faults};
use super::tests::{linked, opened};
use super::{Beginning, ChainState, Head, Sizes, Unacknowledged, Verified, verify};
use crate::event::Chain;

/// How the database answers a request to store heads.
#[derive(Clone, Copy, Debug)]
enum StoreOutcome {
    Kept,
    /// The database reports an error, but has stored the heads.
    Held,
    /// The database reports an error, and has not stored the heads.
    Lost,
}

/// The disk fault that the test injects during a step.
#[derive(Clone, Copy, Debug)]
enum DiskFault {
    None,
    /// One disk operation fails, after this many operations that succeed.
    Fails(u64),
    /// The process is killed after this many disk operations, before the next one.
    Killed(u64),
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// Whether the log is moved away before this step, while the process is stopped.
    moved: bool,
    main: u64,
    refusals: u8,
    trouble: DiskFault,
    partial: usize,
    keeping: StoreOutcome,
    /// What happens after this step. `None`: nothing. `Some(None)`: the process is killed. `Some(Some(n))`: the machine
    /// loses power, and at most `n` unsynced bytes of each file survive.
    killed: Option<Option<usize>>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keeping =
        prop_oneof![4 => Just(StoreOutcome::Kept), 1 => Just(StoreOutcome::Held), 1 => Just(StoreOutcome::Lost)];
    let trouble = prop_oneof![
        2 => Just(DiskFault::None),
        2 => (0..12u64).prop_map(DiskFault::Fails),
        2 => (0..12u64).prop_map(DiskFault::Killed),
    ];
    let killed = prop_oneof![
        3 => Just(None),
        1 => Just(Some(None)),
        1 => (0..3000usize).prop_map(|unsynced| Some(Some(unsynced))),
    ];
    let moved = prop_oneof![7 => Just(false), 1 => Just(true)];
    let step = (moved, 0..4u64, 0..4u8, trouble, 0..2000usize, keeping, killed).prop_map(
        |(moved, main, refusals, trouble, partial, keeping, killed)| Step {
            moved,
            main,
            refusals,
            trouble,
            partial,
            keeping,
            killed,
        },
    );
    prop::collection::vec(step, 1..25)
}

struct Machine {
    folder: TempDir,
    faults: Arc<Mutex<Faults>>,
    sizes: Sizes,
    /// What the simulated database has stored about the chains.
    database: BTreeMap<Chain, ChainState>,
    journal: Option<Journal>,
    next_value: u64,
    /// The values of the test events that the log must keep, because their lines are acknowledged or may be
    /// acknowledged.
    kept_values: Vec<u64>,
    /// The heads in the database when the log was last moved away.
    moved: BTreeMap<Chain, Head>,
}

impl Machine {
    fn new(sizes: Sizes) -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            faults: Arc::default(),
            sizes,
            database: BTreeMap::new(),
            journal: None,
            next_value: 0,
            kept_values: Vec::new(),
            moved: BTreeMap::new(),
        }
    }

    fn audit(&self) -> std::path::PathBuf {
        self.folder.path().join("audit")
    }

    fn move_away(&mut self) {
        self.journal = None;
        let away = self.folder.path().join(format!("audit.{}", self.next_value));
        if self.audit().exists() && !away.exists() {
            fs::rename(self.audit(), away).unwrap();
            self.kept_values.clear();
            self.moved = self.database.iter().map(|(chain, state)| (*chain, state.head)).collect();
        }
    }

    /// Verifies the log. `None` if the log was moved away and no start of the reflector has created a new log yet.
    fn verified(&self) -> Option<[Verified; 2]> {
        let is_missing = !self.audit().exists() && self.database.values().any(|state| state.head != state.base);
        (!is_missing).then(|| verify(&self.audit(), Some(&self.database)).unwrap())
    }

    fn set_trouble(&self, trouble: DiskFault, partial: usize) {
        let mut faults = self.faults.lock().unwrap();
        faults.partial = partial;
        faults.failing_after = if let DiskFault::Fails(after) = trouble { Some(after) } else { None };
        faults.killed_after = if let DiskFault::Killed(after) = trouble { Some(after) } else { None };
    }

    /// Stores the journal's heads in the simulated database, with the outcome `keeping`. Returns whether the database
    /// reports success.
    fn keep(&mut self, states: BTreeMap<Chain, ChainState>, keeping: StoreOutcome) -> bool {
        if !matches!(keeping, StoreOutcome::Lost) {
            self.database = states;
        }
        matches!(keeping, StoreOutcome::Kept)
    }

    /// Simulates a start of the reflector with the disk fault `trouble`. Without a fault, the start must succeed.
    fn start(&mut self, trouble: DiskFault, keeping: StoreOutcome) {
        // The remains of a crash are not tampering, before and after a start.
        self.verified();
        self.set_trouble(trouble, 0);
        let disk = Disk::Failing(Arc::clone(&self.faults));
        let opened = Journal::open(&self.audit(), &self.database, self.sizes, &disk);
        match (opened, trouble) {
            (Ok(journal), _) => {
                let states = journal.states();
                if states == self.database || self.keep(states, keeping) {
                    self.journal = Some(journal);
                }
            }
            (Err(why), DiskFault::None) => panic!("refused: {why}"),
            (Err(why), _) => assert!(matches!(why, super::AuditError::Unusable { .. }), "{why}"),
        }
    }

    fn run(&mut self, step: Step) {
        if step.moved {
            self.move_away();
        }
        if self.journal.is_none() {
            self.start(step.trouble, step.keeping);
        }
        let Some(mut journal) = self.journal.take() else { return };
        self.set_trouble(step.trouble, step.partial);
        let values = (self.next_value..self.next_value + step.main).collect::<Vec<_>>();
        self.next_value += step.main;
        let now = Timestamp::UNIX_EPOCH;
        let mut events = values.iter().map(|value| (now, opened(*value))).collect::<Vec<_>>();
        events.extend((0..step.refusals).map(|value| (now, linked(value))));
        let mut lives = step.killed.is_none() && !matches!(step.trouble, DiskFault::Killed(_));
        match journal.append(&events, now) {
            Ok(()) => {
                journal.keep();
                // The process may be killed between this call and the write of the heads.
                if lives || !matches!(step.keeping, StoreOutcome::Lost) {
                    self.kept_values.extend(&values);
                }
                let is_kept = self.keep(journal.states(), step.keeping);
                if is_kept {
                    journal.delete_trimmed();
                }
            }
            Err(_) => lives &= !matches!(step.trouble, DiskFault::Killed(_)),
        }
        if lives {
            self.journal = Some(journal);
            return;
        }
        drop(journal);
        if let Some(Some(unsynced)) = step.killed {
            self.lose_power(unsynced);
        }
    }

    /// Simulates a loss of power: of the unsynced bytes of each file, at most `unsynced` survive.
    fn lose_power(&self, unsynced: usize) {
        let Ok(files) = fs::read_dir(self.audit()) else { return };
        for file in files {
            let path = file.unwrap().path();
            let metadata = fs::metadata(&path).unwrap();
            let synced = self.faults.lock().unwrap().synced.get(&metadata.ino()).copied().unwrap_or(0);
            let length = metadata.len().min(synced + unsynced as u64);
            OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        }
    }

    /// All lines of a chain, as JSON.
    fn lines(&self, chain: Chain) -> Vec<serde_json::Value> {
        let segments = super::verify::segments(&self.audit(), chain).unwrap();
        let text = segments.into_iter().map(|segment| fs::read_to_string(segment.path).unwrap()).collect::<String>();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts the reflector without a fault and writes a batch to both chains. Checks that the log is intact
    /// afterwards.
    fn check(&mut self) {
        self.journal = None;
        let torn =
            self.verified().map(|both| both.map(|chain| chain.unacknowledged.torn_bytes > 0)).unwrap_or_default();
        self.start(DiskFault::None, StoreOutcome::Kept);
        self.set_trouble(DiskFault::None, 0);
        let mut journal = self.journal.take().unwrap();
        let heads = journal.states();
        let now = Timestamp::UNIX_EPOCH;
        journal.append(&[(now, opened(self.next_value)), (now, linked(9))], now).unwrap();
        journal.keep();
        assert!(self.keep(journal.states(), StoreOutcome::Kept));
        journal.delete_trimmed();
        self.kept_values.push(self.next_value);
        self.next_value += 1;
        let verified = verify(&self.audit(), Some(&self.database)).unwrap();
        assert!(verified.iter().all(|chain| chain.unacknowledged == Unacknowledged::default()), "{verified:?}");
        for ((chain, verified), is_torn) in [Chain::Main, Chain::Refusals].into_iter().zip(verified).zip(torn) {
            let lines = self.lines(chain);
            if let Some(head) =
                self.moved.get(&chain).filter(|head| head.seq > 0 && self.database[&chain].base == **head)
            {
                assert_eq!(verified.begins, Beginning::BegunAnew(head.seq + 1), "{chain:?}");
                assert_eq!(lines.iter().filter(|line| line["event"] == "log_begun_anew").count(), 1, "{chain:?}");
            }
            let first_seq = lines[0]["seq"].as_u64().unwrap();
            let seqs = lines.iter().map(|line| line["seq"].as_u64().unwrap());
            assert!(seqs.eq(first_seq..first_seq + lines.len() as u64), "no line exists twice");
            let new = lines.iter().filter(|line| line["seq"].as_u64().unwrap() > heads[&chain].head.seq);
            assert_eq!(new.filter(|line| line["event"] == "tail_repaired").count(), usize::from(is_torn), "{chain:?}");
        }
        let values = self.lines(Chain::Main).iter().filter_map(|line| line["ttl_s"].as_u64()).collect::<Vec<_>>();
        let oldest = values.first().copied().unwrap_or_default();
        let missing = self.kept_values.iter().filter(|value| **value >= oldest && !values.contains(value));
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&u64>::new());
        if self.database[&Chain::Main].base.seq == 0 {
            assert!(self.kept_values.first() >= Some(&oldest), "a line is missing at the beginning");
        }
        self.journal = Some(journal);
    }
}

proptest! {
    #[test]
    fn no_failure_and_no_kill_costs_an_acknowledged_line_or_a_start(
        steps in steps(),
        segment in prop_oneof![Just(400u64), Just(1_500u64), Just(1 << 30)],
        total in prop_oneof![Just(8_000u64), Just(1 << 40)],
    ) {
        let mut machine = Machine::new(Sizes { segment, total });
        for step in steps {
            machine.run(step);
        }
        machine.check();
        machine.check();
    }
}
