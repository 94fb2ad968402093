//! Tests of the audit log: failures that it must survive, and damage that it must report.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::sync::Mutex;

use paramedic_link::EndpointId;
use tempfile::TempDir;

use super::log::{Faults, Touch};
use super::verify::MAX_TAIL;
use super::*;
use crate::failure::Failure;

const LARGE: u64 = 1 << 30;

/// A state folder for one test.
struct Home {
    folder: TempDir,
    faults: Arc<Mutex<Faults>>,
    head_store: HeadStoreFaults,
}

/// How the next requests to store heads fail: each entry states whether the heads are stored nevertheless.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadStoreFaults(Arc<Mutex<VecDeque<bool>>>);

impl HeadStoreFaults {
    pub(super) async fn next(
        &self,
        store: &Store,
        states: &BTreeMap<Chain, ChainState>,
    ) -> Option<Result<(), StoreError>> {
        let holds = self.0.lock().unwrap().pop_front()?;
        if holds {
            store.set_audit_chains(states).await.unwrap();
        }
        Some(Err(StoreError::Unusable { path: "database".into(), source: ErrorKind::Other.into() }))
    }

    fn fail(&self, holds: bool) {
        self.0.lock().unwrap().push_back(holds);
    }
}

impl Home {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), faults: Arc::default(), head_store: HeadStoreFaults::default() }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("audit")
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.dir().join(format!("{number:06}.jsonl"))
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("reflector.db")
    }

    async fn try_open(&self, segment_size: u64) -> Result<Audit, AuditError> {
        // Tests that don't wait for a probe must not be disturbed by one.
        self.open_with(Duration::from_secs(3600), Sizes { segment: segment_size, total: LARGE }).await
    }

    async fn open_with(&self, probe_interval: Duration, sizes: Sizes) -> Result<Audit, AuditError> {
        let disk = Disk::Failing(Arc::clone(&self.faults));
        let store = Store::open(&self.database()).await.unwrap();
        Audit::open_on(disk, probe_interval, &self.dir(), sizes, HeadStore(store, self.head_store.clone())).await
    }

    async fn open(&self, segment_size: u64) -> Audit {
        self.try_open(segment_size).await.unwrap()
    }

    /// Opens the log, records each value in a batch of its own, and closes the log. Afterwards, the writer has no file
    /// open.
    async fn recorded(&self, segment_size: u64, values: impl Iterator<Item = u64>) {
        let audit = self.open(segment_size).await;
        for value in values {
            audit.record(vec![opened(value)]).await.unwrap();
        }
        end(audit).await;
    }

    async fn states(&self) -> BTreeMap<Chain, ChainState> {
        Store::read_audit_chains(&self.database()).await.unwrap()
    }

    async fn head(&self) -> Head {
        self.states().await[&Chain::Main].head
    }

    /// Verifies both chains.
    async fn verify_both(&self) -> Result<[Verified; 2], BadLine> {
        verify(&self.dir(), Some(&self.states().await))
    }

    /// Verifies both chains, and returns the result of the main chain.
    async fn verify(&self) -> Result<Verified, BadLine> {
        Ok(self.verify_both().await?[0])
    }

    /// Every line of the main chain, as JSON.
    fn lines(&self) -> Vec<serde_json::Value> {
        self.lines_of(Chain::Main)
    }

    fn lines_of(&self, chain: Chain) -> Vec<serde_json::Value> {
        let segments = verify::segments(&self.dir(), chain).unwrap();
        let text = segments.into_iter().map(|segment| fs::read_to_string(segment.path).unwrap()).collect::<String>();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The values of the test events in the main chain, in order.
    fn values(&self) -> Vec<u64> {
        self.lines().iter().filter_map(|line| line["ttl_s"].as_u64()).collect()
    }

    fn fail(&self, touch: Touch, why: ErrorKind) {
        self.faults.lock().unwrap().failing.push((touch, why));
    }

    /// Makes the next write to the disk fail with `why` after `room` bytes.
    fn fail_write(&self, room: usize, why: ErrorKind) {
        self.faults.lock().unwrap().partial = room;
        self.fail(Touch::Write, why);
    }
}

/// A test event with `value` for the main chain.
pub(super) fn opened(value: u64) -> AuditEvent {
    AuditEvent::CodeOpened { ttl_s: value }
}

/// A test event with `value` for the chain of refusals.
pub(super) fn linked(value: u8) -> AuditEvent {
    AuditEvent::LinkOpened { peer: EndpointId::from_bytes([value; 32]), from: Ipv4Addr::LOCALHOST.into() }
}

/// Drops the handle, and waits until the writer has ended. It then no longer holds the lock on the state folder.
async fn end(audit: Audit) {
    let mut fault = audit.fault();
    drop(audit);
    while fault.changed().await.is_ok() {}
}

#[tokio::test]
async fn recorded_events_are_on_disk_and_chained() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![opened(1), AuditEvent::Stopped]).await.unwrap();
    audit.record(vec![]).await.unwrap();
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.segments, verified.head.seq), (2, 1, 2));
    assert_eq!(verified.begins, Beginning::First);
    assert_eq!(home.head().await, verified.head);
    end(audit).await;
    home.recorded(LARGE, 2..=2).await;
    let lines = home.lines();
    assert_eq!(lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(lines[2]["prev"], lines[1]["hash"]);
    assert!(lines[0]["ts"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn concurrent_records_share_batches_and_lose_nothing() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    let tasks = (0..200).map(|port| {
        let audit = audit.clone();
        tokio::spawn(async move { audit.record(vec![opened(port)]).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(home.verify().await.unwrap().lines, 200);
}

#[tokio::test]
async fn lines_are_in_the_order_of_the_calls_whichever_future_is_awaited_first() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    let (first, second) = (audit.record(vec![opened(1)]), audit.record(vec![opened(2)]));
    second.await.unwrap();
    first.await.unwrap();
    assert_eq!(home.values(), [1, 2]);
}

#[tokio::test]
async fn files_rotate_and_the_chain_continues() {
    let home = Home::new();
    home.recorded(1_000, 1..=20).await;
    home.recorded(1_000, 21..=40).await;
    let verified = home.verify().await.unwrap();
    assert_eq!(verified.lines, 40);
    assert!(verified.segments >= 8, "{verified:?}");
}

#[tokio::test]
async fn a_note_is_written_with_the_next_batch() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.note(opened(1));
    audit.record(vec![opened(2)]).await.unwrap();
    assert_eq!(home.lines().len(), 2);
}

#[tokio::test]
async fn notes_beyond_the_queue_are_counted() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    // The test's runtime has one thread: the writer does not run before the next await.
    for _ in 0..QUEUE_CAPACITY {
        audit.note(opened(1));
    }
    audit.record(vec![opened(2)]).await.unwrap();
    audit.record(vec![opened(3)]).await.unwrap();
    let more = home.lines_of(Chain::Refusals).into_iter().find(|line| line["event"] == "refused_more").unwrap();
    assert_eq!(more["reason"], "not_noted");
    let noted = home.values().into_iter().filter(|value| *value == 1).count() as u64;
    assert_eq!(noted + more["count"].as_u64().unwrap(), QUEUE_CAPACITY as u64);
}

/// A log with lines in several files of both chains.
async fn both_chains() -> Home {
    let home = Home::new();
    let audit = home.open(700).await;
    for value in 1..=5 {
        audit.record(vec![opened(value.into()), linked(value), linked(value)]).await.unwrap();
    }
    end(audit).await;
    home
}

/// Every file of the log.
fn files(home: &Home) -> Vec<PathBuf> {
    let mut files = fs::read_dir(home.dir()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    files.sort();
    files
}

#[tokio::test]
async fn every_truncation_of_acknowledged_lines_is_detected() {
    let home = both_chains().await;
    let states = home.states().await;
    let files = files(&home);
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            let bad = verify(&home.dir(), Some(&states)).unwrap_err();
            // The report names the first missing line, or the line in the next file that does not follow.
            let lines = whole[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
            let is_named = file.ends_with(&bad.segment) && bad.line == lines + 1;
            let is_between_lines = length == 0 || whole[length - 1] == b'\n';
            assert!(is_named || is_between_lines, "{file:?} {length}: {bad}");
        }
        fs::write(&file, &whole).unwrap();
    }
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn a_truncated_log_is_not_opened_and_left_unchanged() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let whole = fs::read(home.segment(1)).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(home.segment(1), &whole[..length]).unwrap();
        let refused = Failure::from(home.try_open(LARGE).await.unwrap_err());
        assert!(refused.try_.contains("`reflector audit verify`") && refused.try_.contains("mv "), "{refused:?}");
        assert_eq!(fs::read(home.segment(1)).unwrap(), whole[..length], "it is left unchanged");
    }
    fs::write(home.segment(1), &whole).unwrap();
    home.recorded(LARGE, 4..=4).await;
    assert_eq!(home.verify().await.unwrap().lines, 4);
}

#[tokio::test]
async fn flipped_bits_are_detected_in_both_chains() {
    let home = both_chains().await;
    let states = home.states().await;
    for file in files(&home) {
        let whole = fs::read(&file).unwrap();
        // Covers every bit position of a byte, because 3 and 8 have no common divisor.
        for bit in (0..whole.len() * 8).step_by(3) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &flipped).unwrap();
            assert!(verify(&home.dir(), Some(&states)).is_err(), "{file:?}, bit {bit}");
        }
        fs::write(&file, &whole).unwrap();
    }
}

#[tokio::test]
async fn deleted_and_swapped_files_are_detected() {
    let home = both_chains().await;
    let states = home.states().await;
    let files = files(&home);
    for file in &files {
        let whole = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        assert!(verify(&home.dir(), Some(&states)).is_err(), "{file:?}");
        fs::write(file, &whole).unwrap();
        for other in files.iter().filter(|other| *other != file) {
            let theirs = fs::read(other).unwrap();
            fs::write(file, &theirs).unwrap();
            assert!(verify(&home.dir(), Some(&states)).is_err(), "{other:?} as {file:?}");
        }
        fs::write(file, &whole).unwrap();
    }
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn without_a_database_each_flipped_bit_of_a_line_is_detected() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let whole = fs::read(home.segment(1)).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(home.segment(1), &flipped).unwrap();
        assert!(verify(&home.dir(), None).is_err(), "bit {bit}");
    }
}

#[tokio::test]
async fn any_missing_file_is_detected() {
    let home = Home::new();
    home.recorded(1_000, 1..=20).await;
    let last = verify::segments(&home.dir(), Chain::Main).unwrap().last().unwrap().number;
    for number in [1, 2, last] {
        let text = fs::read(home.segment(number)).unwrap();
        fs::remove_file(home.segment(number)).unwrap();
        let bad = home.verify().await.unwrap_err();
        assert!(bad.why.contains("missing") || bad.why.contains("was acknowledged"), "{number}: {bad}");
        fs::write(home.segment(number), text).unwrap();
    }
    for number in 1..=last {
        fs::remove_file(home.segment(number)).unwrap();
    }
    assert!(home.verify().await.is_err());
    assert!(matches!(home.try_open(1_000).await, Err(AuditError::Broken { .. })));
}

#[tokio::test]
async fn a_segment_that_is_not_a_regular_file_is_an_error() {
    let home = Home::new();
    home.recorded(500, 1..=5).await;
    let last = verify::segments(&home.dir(), Chain::Main).unwrap().last().unwrap().number;
    let refused = async |what: &str| {
        let bad = home.verify().await.unwrap_err();
        assert!(bad.why.contains("not a regular file"), "{what}: {bad}");
        let refused = home.try_open(500).await.unwrap_err();
        assert!(matches!(refused, AuditError::Broken { .. }), "{what}: {refused}");
    };
    let away = home.folder.path().join("away");
    for number in [1, last] {
        fs::rename(home.segment(number), &away).unwrap();
        std::os::unix::fs::symlink(&away, home.segment(number)).unwrap();
        refused("a symbolic link").await;
        fs::rename(&away, home.segment(number)).unwrap();
    }
    let fifo = home.segment(last + 1);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    refused("a FIFO").await;
    fs::remove_file(&fifo).unwrap();
    fs::create_dir(&fifo).unwrap();
    refused("a folder").await;
    fs::remove_dir(&fifo).unwrap();
    home.recorded(500, 6..=6).await;
    home.verify().await.unwrap();
}

#[tokio::test]
async fn a_rewritten_log_is_detected_by_its_acknowledged_line() {
    let home = Home::new();
    let forger = Home::new();
    home.recorded(LARGE, 1..=3).await;
    forger.recorded(LARGE, 2..=4).await;
    fs::copy(forger.segment(1), home.segment(1)).unwrap();
    let bad = home.verify().await.unwrap_err();
    assert_eq!((bad.line, bad.why.contains("replaced")), (3, true), "{bad}");
    assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Broken { .. })));
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_batch_costs_only_unacknowledged_lines() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    let acknowledged = fs::read(home.segment(1)).unwrap();
    let mut unacknowledged_line = Vec::new();
    let next =
        chain::write_line(home.head().await, Timestamp::UNIX_EPOCH, &opened(3), &mut unacknowledged_line).unwrap();
    for length in 0..=unacknowledged_line.len() {
        fs::write(home.segment(1), [&acknowledged[..], &unacknowledged_line[..length]].concat()).unwrap();
        let verified = home.verify().await.unwrap();
        let is_whole = length == unacknowledged_line.len();
        assert_eq!(verified.lines, if is_whole { 3 } else { 2 });
        let torn_bytes = if is_whole { 0 } else { length as u64 };
        let unacknowledged = Unacknowledged { bytes: length as u64, lines: u64::from(is_whole), torn_bytes };
        assert_eq!(verified.unacknowledged, unacknowledged);
    }
    // The whole line was written and synced, so it is kept although it was not acknowledged.
    home.recorded(LARGE, 4..=4).await;
    assert_eq!(home.values(), [1, 2, 3, 4]);
    assert_eq!(home.verify().await.unwrap().head.seq, next.seq + 1);
}

#[tokio::test]
async fn everything_after_the_acknowledged_head_is_counted() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    let mut forged = Vec::new();
    chain::write_line(home.head().await, Timestamp::UNIX_EPOCH, &opened(3), &mut forged).unwrap();
    let mut file = OpenOptions::new().append(true).open(home.segment(1)).unwrap();
    file.write_all(&[&forged[..], b"garbage\n"].concat()).unwrap();
    fs::write(home.segment(2), "more of it").unwrap();
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.segments), (3, 1));
    let expected = Unacknowledged { bytes: forged.len() as u64 + 8 + 10, lines: 1, torn_bytes: 8 + 10 };
    assert_eq!(verified.unacknowledged, expected);
    fs::remove_file(home.segment(2)).unwrap();
    fs::write(home.segment(1), fs::read(home.segment(1)).unwrap().strip_suffix(b"garbage\n").unwrap()).unwrap();
    let mut next = Vec::new();
    chain::write_line(home.verify().await.unwrap().head, Timestamp::UNIX_EPOCH, &opened(4), &mut next).unwrap();
    fs::write(home.segment(2), &next).unwrap();
    let expected = Unacknowledged { bytes: (forged.len() + next.len()) as u64, lines: 2, torn_bytes: 0 };
    assert_eq!(home.verify().await.unwrap().unacknowledged, expected);
}

#[tokio::test]
async fn the_next_line_records_a_repaired_tail() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    OpenOptions::new().append(true).open(home.segment(1)).unwrap().write_all(b"{\"seq\":3,\"ts\"").unwrap();
    fs::write(home.segment(2), "junk of an unacknowledged file\n").unwrap();
    home.recorded(LARGE, 3..=3).await;
    let lines = home.lines();
    assert_eq!(
        (lines[2]["event"].as_str(), lines[2]["segment"].as_str()),
        (Some("tail_repaired"), Some("000001.jsonl"))
    );
    assert_eq!(lines[2]["bytes"], 13 + 31);
    assert_eq!(lines[3]["ttl_s"], 3);
    assert_eq!(fs::read_to_string(home.segment(1)).unwrap().lines().count(), 2, "the tail is cut");
    assert_eq!(home.verify().await.unwrap().lines, 4);
}

#[tokio::test]
async fn a_tail_is_only_cut_once_a_line_records_it() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    OpenOptions::new().append(true).open(home.segment(1)).unwrap().write_all(b"{\"seq\":3").unwrap();
    for touch in [Touch::Create, Touch::SyncFolder, Touch::Write, Touch::Sync, Touch::Cut] {
        let audit = home.open(LARGE).await;
        home.fail(touch, ErrorKind::StorageFull);
        audit.record(vec![opened(3)]).await.unwrap_err();
        end(audit).await;
        assert!(fs::read_to_string(home.segment(1)).unwrap().ends_with("{\"seq\":3"), "{touch:?}");
        assert_eq!(home.verify().await.unwrap().lines, 2);
    }
    home.recorded(LARGE, 3..=3).await;
    assert_eq!(home.lines()[2]["event"], "tail_repaired");
    assert_eq!(home.values(), [1, 2, 3]);
}

#[tokio::test]
async fn a_tail_that_no_crash_can_leave_is_not_cut() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    let long = vec![b'x'; usize::try_from(MAX_TAIL).unwrap() + 1];
    OpenOptions::new().append(true).open(home.segment(1)).unwrap().write_all(&long).unwrap();
    assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Broken { .. })));
    assert!(fs::metadata(home.segment(1)).unwrap().len() > MAX_TAIL);
}

#[tokio::test]
async fn a_first_line_that_was_not_acknowledged_is_repaired() {
    let home = Home::new();
    end(home.open(LARGE).await).await;
    fs::create_dir(home.dir()).unwrap();
    fs::write(home.segment(1), "{\"seq\":1").unwrap();
    home.recorded(LARGE, 1..=1).await;
    assert_eq!((home.lines()[0]["event"].as_str(), home.values()), (Some("tail_repaired"), vec![1]));
    assert_eq!(home.verify().await.unwrap().lines, 2);
}

#[tokio::test]
async fn a_log_that_was_moved_away_begins_anew_and_records_it() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    fs::rename(home.dir(), home.folder.path().join("audit.damaged")).unwrap();
    home.recorded(LARGE, 4..=4).await;
    let lines = home.lines();
    assert_eq!((lines[0]["event"].as_str(), lines[0]["seq"].as_u64()), (Some("log_begun_anew"), Some(4)));
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.begins, verified.head.seq), (2, Beginning::BegunAnew(4), 5));
    assert_eq!(verify(&home.folder.path().join("audit.damaged"), None).unwrap()[0].head.hash_hex(), lines[0]["prev"]);
    home.recorded(LARGE, 5..=5).await;
    assert_eq!(home.verify().await.unwrap().lines, 3);
}

#[tokio::test]
async fn a_chain_is_not_replaced_by_a_line_that_begins_it_anew() {
    for chain in [Chain::Main, Chain::Refusals] {
        let home = both_chains().await;
        let head = home.states().await[&chain].head;
        let mut forged = Vec::new();
        let anew = AuditEvent::LogBegunAnew { after: head.seq };
        chain::write_line(head, Timestamp::UNIX_EPOCH, &anew, &mut forged).unwrap();
        let segments = verify::segments(&home.dir(), chain).unwrap();
        segments.iter().for_each(|segment| fs::remove_file(&segment.path).unwrap());
        fs::write(&segments[0].path, &forged).unwrap();
        let bad = home.verify_both().await.unwrap_err();
        assert!(bad.why.contains("was acknowledged"), "{chain:?}: {bad}");
        let why = home.try_open(LARGE).await.unwrap_err();
        assert!(matches!(why, AuditError::Broken { .. }), "{chain:?}: {why}");
        assert_eq!(fs::read(&segments[0].path).unwrap(), forged, "left unchanged");
    }
}

#[tokio::test]
async fn after_a_crash_before_its_first_line_a_new_log_still_records_its_begin() {
    // No folder, an empty folder, an empty file, a torn line.
    for left in [None, Some(""), Some("{\"seq\":4")] {
        let home = both_chains().await;
        let heads = home.states().await;
        fs::rename(home.dir(), home.folder.path().join("audit.away")).unwrap();
        // The reflector is killed after the database stored the head.
        end(home.open(LARGE).await).await;
        fs::create_dir(home.dir()).unwrap();
        if let Some(text) = left {
            fs::write(home.segment(1), text).unwrap();
        }
        let begun_anew = |chain: Chain| Beginning::BegunAnew(heads[&chain].head.seq + 1);
        let begins = [begun_anew(Chain::Main), begun_anew(Chain::Refusals)];
        assert_eq!(home.verify_both().await.unwrap().map(|chain| chain.begins), begins, "{left:?}");
        home.recorded(LARGE, 9..=9).await;
        home.recorded(LARGE, 10..=10).await;
        assert_eq!(home.verify_both().await.unwrap().map(|chain| chain.begins), begins, "{left:?}");
        for chain in [Chain::Main, Chain::Refusals] {
            let lines = home.lines_of(chain);
            let events = lines.iter().map(|line| line["event"].as_str().unwrap());
            let begun = events.filter(|event| *event == "log_begun_anew").count();
            assert_eq!((begun, &lines[0]["event"]), (1, &"log_begun_anew".into()), "{left:?}, {chain:?}");
        }
        let repaired = home.lines().iter().filter(|line| line["event"] == "tail_repaired").count();
        assert_eq!(repaired, usize::from(left.is_some_and(|text| !text.is_empty())), "{left:?}");
    }
}

#[tokio::test]
async fn a_first_line_of_a_new_log_that_fails_is_recorded_as_cut() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    fs::rename(home.dir(), home.folder.path().join("audit.away")).unwrap();
    let audit = home.open(LARGE).await;
    home.fail_write(30, ErrorKind::StorageFull);
    audit.record(vec![opened(4)]).await.unwrap_err();
    audit.record(vec![opened(5)]).await.unwrap();
    end(audit).await;
    let events = home.lines().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(events, ["log_begun_anew", "tail_repaired", "code_opened"]);
    assert_eq!(home.verify().await.unwrap().begins, Beginning::BegunAnew(4));
}

#[tokio::test]
async fn a_new_log_that_begins_again_drops_its_first_try() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let head = home.head().await;
    fs::rename(home.dir(), home.folder.path().join("audit.away")).unwrap();
    end(home.open(LARGE).await).await;
    fs::create_dir(home.dir()).unwrap();
    // The line is complete, but its sync failed, and the next file repeats it. The reflector was killed before it
    // removed the first file.
    for (number, second) in [(1, 1), (2, 2)] {
        let (at, mut line) = (Timestamp::from_second(second).unwrap(), Vec::new());
        chain::write_line(head, at, &AuditEvent::LogBegunAnew { after: head.seq }, &mut line).unwrap();
        fs::write(home.segment(number), line).unwrap();
    }
    let second = fs::read(home.segment(2)).unwrap();
    assert_eq!(home.verify().await.unwrap().begins, Beginning::BegunAnew(4));
    home.recorded(LARGE, 5..=5).await;
    assert!(!home.segment(1).exists() && fs::read(home.segment(2)).unwrap().starts_with(&second));
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.begins), (2, Beginning::BegunAnew(4)));
}

#[tokio::test]
async fn lines_whose_head_could_not_be_kept_are_not_noted_again() {
    for holds in [false, true] {
        let home = Home::new();
        let audit = home.open(LARGE).await;
        home.head_store.fail(holds);
        audit.record_or_note(vec![opened(1), opened(2)]).await;
        home.fail(Touch::Sync, ErrorKind::Other);
        audit.record_or_note(vec![opened(3)]).await;
        audit.record(vec![opened(4)]).await.unwrap();
        end(audit).await;
        let mut values = home.values();
        values.sort_unstable();
        assert_eq!(values, [1, 2, 3, 4], "each once");
        home.verify().await.unwrap();
    }
}

#[tokio::test]
async fn a_line_that_begins_the_log_anew_is_valid_only_with_its_own_hash() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    // The forged first line claims to follow the acknowledged one. The acknowledged lines after it must not count as
    // the tail of a crash.
    let mut forged = Vec::new();
    chain::write_line(home.head().await, Timestamp::UNIX_EPOCH, &AuditEvent::LogBegunAnew { after: 3 }, &mut forged)
        .unwrap();
    let digit = forged.len() - "\"}\n".len() - 1;
    forged[digit] = if forged[digit] == b'0' { b'1' } else { b'0' };
    let changed = [forged, fs::read(home.segment(1)).unwrap()].concat();
    fs::write(home.segment(1), &changed).unwrap();
    let bad = home.verify().await.unwrap_err();
    assert_eq!((bad.segment.as_str(), bad.line), ("000001.jsonl", 1), "{bad}");
    let why = home.try_open(LARGE).await.unwrap_err();
    assert!(matches!(why, AuditError::Broken { .. }), "{why}");
    assert_eq!(fs::read(home.segment(1)).unwrap(), changed, "left unchanged");
}

#[tokio::test]
async fn a_new_database_beside_an_old_log_is_refused() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    for name in ["reflector.db", "reflector.db-wal", "reflector.db-shm"] {
        let _ = fs::remove_file(home.folder.path().join(name));
    }
    let why = home.try_open(LARGE).await.unwrap_err();
    assert!(matches!(why, AuditError::Foreign { .. }), "{why}");
    let (folder, failure) = (home.dir(), Failure::from(why));
    assert!(failure.try_.contains(&format!("mv {0} {0}.old", folder.display())), "{failure}");
}

/// Injects a fault with `fail`, and checks that the next event cannot be recorded and that the one after it can.
async fn recovers_from(fail: impl FnOnce(&Home)) -> Home {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![opened(1)]).await.unwrap();
    fail(&home);
    audit.note(opened(2));
    let fault = audit.record(vec![opened(3)]).await.unwrap_err();
    assert!(fault.to_string().contains("can't be written"), "{fault}");
    assert_eq!(*audit.fault().borrow(), Some(fault));
    assert_eq!(home.head().await.seq, 1, "no caller may rely on a failed record");
    home.verify().await.unwrap();
    audit.record(vec![opened(4)]).await.unwrap();
    assert!(audit.fault().borrow().is_none());
    end(audit).await;
    assert_eq!(home.values(), [1, 2, 4]);
    assert_eq!(home.lines()[1]["event"], "tail_repaired");
    home.verify().await.unwrap();
    home
}

#[tokio::test]
async fn a_full_disk_fails_records_and_keeps_notes() {
    for room in [0, 1, 100, 250, 100_000] {
        let home = recovers_from(|home| home.fail_write(room, ErrorKind::StorageFull)).await;
        assert!(home.segment(2).exists(), "the failed file is not written to again");
        assert_eq!(fs::read_to_string(home.segment(1)).unwrap().lines().count(), 1);
    }
}

#[tokio::test]
async fn after_a_failed_sync_the_lines_count_as_unwritten() {
    let home = recovers_from(|home| home.fail(Touch::Sync, ErrorKind::Other)).await;
    assert_eq!(home.lines()[1]["segment"], "000001.jsonl");
    assert!(home.lines()[1]["bytes"].as_u64().unwrap() > 200);
}

#[tokio::test]
async fn a_fault_in_one_chain_keeps_the_batch_out_of_the_other() {
    for failing in [Touch::Create, Touch::Write, Touch::Sync] {
        let home = Home::new();
        let audit = home.open(LARGE).await;
        // The main chain already has its file; creating that of the other chain fails.
        audit.record(vec![opened(1)]).await.unwrap();
        if failing != Touch::Create {
            audit.record(vec![linked(1)]).await.unwrap();
            home.faults.lock().unwrap().partial = usize::MAX;
        }
        home.fail(failing, ErrorKind::StorageFull);
        audit.record(vec![linked(2), opened(2)]).await.unwrap_err();
        audit.record(vec![linked(3), opened(3)]).await.unwrap();
        assert_eq!(home.values(), [1, 3]);
        let [main, refusals] = home.verify_both().await.unwrap();
        let nothing = Unacknowledged::default();
        assert_eq!((main.unacknowledged, refusals.unacknowledged), (nothing, nothing));
        let linked = home.lines_of(Chain::Refusals);
        assert!(!linked.iter().any(|line| line["peer"] == EndpointId::from_bytes([2; 32]).to_string()));
    }
}

#[tokio::test]
async fn lines_whose_head_could_not_be_stored_are_not_cut() {
    for holds in [false, true] {
        let home = Home::new();
        let audit = home.open(LARGE).await;
        audit.record(vec![opened(1)]).await.unwrap();
        home.head_store.fail(holds);
        audit.note(opened(2));
        audit.record(vec![opened(3)]).await.unwrap_err();
        assert!(audit.fault().borrow().is_some());
        assert_eq!(home.values(), [1, 2, 3], "the store may hold their head");
        home.verify().await.unwrap();
        // A failed write right after that cuts no line whose head was passed to the store.
        home.fail_write(50, ErrorKind::StorageFull);
        audit.record(vec![opened(4)]).await.unwrap_err();
        home.verify().await.unwrap();
        audit.record(vec![opened(5)]).await.unwrap();
        assert!(audit.fault().borrow().is_none());
        end(audit).await;
        home.recorded(LARGE, 6..=6).await;
        assert_eq!(home.values(), [1, 2, 3, 5, 6], "each once");
    }
}

#[tokio::test]
async fn after_a_head_that_could_not_be_stored_and_a_crash_the_log_opens() {
    for holds in [false, true] {
        let home = Home::new();
        let audit = home.open(LARGE).await;
        audit.record(vec![opened(1)]).await.unwrap();
        home.head_store.fail(holds);
        audit.record(vec![opened(2), linked(2)]).await.unwrap_err();
        end(audit).await;
        // The start that finds these lines can't store their head either.
        home.head_store.fail(holds);
        if !holds {
            assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Store(_))));
        }
        home.head_store.0.lock().unwrap().clear();
        home.recorded(LARGE, 3..=3).await;
        assert_eq!(home.values(), [1, 2, 3]);
        home.verify().await.unwrap();
    }
}

#[tokio::test]
async fn the_first_start_may_fail_to_store_its_heads() {
    for holds in [false, true] {
        let home = Home::new();
        home.head_store.fail(holds);
        assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Store(_))));
        home.recorded(LARGE, 1..=1).await;
        fs::rename(home.dir(), home.folder.path().join("away")).unwrap();
        home.head_store.fail(holds);
        assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Store(_))));
        home.recorded(LARGE, 2..=2).await;
        assert_eq!(home.verify().await.unwrap().begins, Beginning::BegunAnew(2));
    }
}

#[tokio::test]
async fn a_fault_lasts_until_a_write_succeeds() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![opened(1)]).await.unwrap();
    home.fail(Touch::Sync, ErrorKind::Other);
    audit.record(vec![opened(2)]).await.unwrap_err();
    home.fail(Touch::Create, ErrorKind::StorageFull);
    audit.record(vec![opened(3)]).await.unwrap_err();
    home.fail(Touch::Cut, ErrorKind::Other);
    audit.record(vec![opened(4)]).await.unwrap_err();
    home.fail(Touch::Cut, ErrorKind::Other);
    home.fail(Touch::Remove, ErrorKind::Other);
    audit.record(vec![opened(5)]).await.unwrap_err();
    home.fail_write(10, ErrorKind::StorageFull);
    audit.record(vec![opened(6)]).await.unwrap_err();
    assert!(audit.fault().borrow().is_some());
    audit.record(vec![opened(7)]).await.unwrap();
    assert!(audit.fault().borrow().is_none());
    assert_eq!(home.values(), [1, 7]);
    assert_eq!(home.verify().await.unwrap().lines, 3);
}

#[tokio::test]
async fn the_disk_is_retried_without_a_request() {
    let home = Home::new();
    let probing = Duration::from_millis(10);
    let audit = home.open_with(probing, Sizes { segment: LARGE, total: LARGE }).await.unwrap();
    home.fail(Touch::Sync, ErrorKind::Other);
    audit.note(opened(1));
    audit.record(vec![opened(2)]).await.unwrap_err();
    assert!(audit.fault().wait_for(Option::is_none).await.unwrap().is_none());
    assert_eq!((home.lines()[0]["event"].as_str(), home.values()), (Some("tail_repaired"), vec![1]));
    assert_eq!(home.verify().await.unwrap().lines, 2);
}

#[tokio::test]
async fn a_crash_during_a_fault_leaves_a_log_that_opens() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![opened(1)]).await.unwrap();
    home.fail_write(30, ErrorKind::StorageFull);
    audit.record(vec![opened(2)]).await.unwrap_err();
    end(audit).await;
    home.recorded(LARGE, 3..=3).await;
    assert_eq!(home.verify().await.unwrap().lines, 3);
}

#[tokio::test]
async fn an_unlinked_or_replaced_file_is_a_fault_until_it_is_restored() {
    let home = Home::new();
    let audit = home.open_with(Duration::from_millis(10), Sizes { segment: 500, total: LARGE }).await.unwrap();
    for value in 1..=4 {
        audit.record(vec![opened(value), linked(1)]).await.unwrap();
    }
    let away = home.folder.path().join("away");
    for file in [home.dir(), home.segment(1), home.segment(2), home.dir().join("refusals-000001.jsonl")] {
        for is_copied in [false, true] {
            fs::rename(&file, &away).unwrap();
            if is_copied && away.is_file() {
                fs::copy(&away, &file).unwrap();
            }
            // Without a request: the periodic check finds it.
            let because = audit.fault().wait_for(Option::is_some).await.unwrap().clone().unwrap().because;
            assert!(because.contains("removed or replaced") && because.contains("restart"), "{because}");
            let fault = audit.record(vec![opened(9)]).await.unwrap_err();
            assert_eq!(fault.because, because);
            assert_eq!(file.exists(), is_copied && file.is_file(), "no file is created again");
            fs::rename(&away, &file).unwrap();
            audit.fault().wait_for(Option::is_none).await.unwrap();
        }
    }
    audit.record(vec![opened(5)]).await.unwrap();
    assert_eq!(home.values(), [1, 2, 3, 4, 5]);
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn a_truncated_or_extended_file_is_a_fault_until_it_is_restored() {
    let home = Home::new();
    let audit = home.open_with(Duration::from_millis(10), Sizes { segment: 500, total: LARGE }).await.unwrap();
    for value in 1..=4 {
        audit.record(vec![opened(value), linked(1)]).await.unwrap();
    }
    let last = verify::segments(&home.dir(), Chain::Main).unwrap().last().unwrap().path.clone();
    for file in [last, home.segment(1), home.dir().join("refusals-000001.jsonl")] {
        let whole = fs::read(&file).unwrap();
        for what in ["truncated", "extended"] {
            let mut changed = OpenOptions::new().append(true).open(&file).unwrap();
            if what == "truncated" {
                changed.set_len(whole.len() as u64 - 1).unwrap();
            } else {
                changed.write_all(b"x").unwrap();
            }
            // Without a request: the periodic check finds it.
            let mut fault = audit.fault();
            let faulted = tokio::time::timeout(Duration::from_secs(60), fault.wait_for(Option::is_some)).await;
            let because = faulted.expect("a fault").unwrap().clone().unwrap().because;
            assert!(because.contains(what) && because.contains("restart"), "{because}");
            audit.record(vec![opened(9)]).await.unwrap_err();
            if what == "truncated" {
                changed.write_all(&whole[whole.len() - 1..]).unwrap();
            } else {
                changed.set_len(whole.len() as u64).unwrap();
            }
            audit.fault().wait_for(Option::is_none).await.unwrap();
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
    }
    audit.record(vec![opened(5)]).await.unwrap();
    assert_eq!(home.values(), [1, 2, 3, 4, 5]);
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn lines_in_a_file_that_vanishes_while_they_are_written_are_not_acknowledged() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![opened(1)]).await.unwrap();
    fs::rename(home.segment(1), home.folder.path().join("away")).unwrap();
    audit.record(vec![opened(2)]).await.unwrap_err();
    assert_eq!(home.head().await.seq, 1);
    assert!(!home.segment(2).exists());
}

fn bytes_of(home: &Home, chain: Chain) -> u64 {
    let segments = verify::segments(&home.dir(), chain).unwrap();
    // Trimmed files may be deleted during this call.
    segments.iter().map(|segment| fs::metadata(&segment.path).map_or(0, |metadata| metadata.len())).sum()
}

#[tokio::test]
async fn a_flood_of_refusals_is_bounded_and_displaces_no_other_line() {
    let home = Home::new();
    let sizes = Sizes { segment: LARGE, total: 40_000 };
    let audit = home.open_with(Duration::from_secs(3600), sizes).await.unwrap();
    audit.record(vec![opened(1)]).await.unwrap();
    for _ in 0..200 {
        audit.record(vec![linked(1), linked(2)]).await.unwrap();
        assert!(bytes_of(&home, Chain::Refusals) <= 10_000);
        assert!(bytes_of(&home, Chain::Main) <= 30_000);
    }
    let trimmed = home.lines().into_iter().find(|line| line["event"] == "log_trimmed").unwrap();
    assert_eq!(trimmed["chain"], "refusals");
    assert_eq!(home.values(), [1], "refusals may take a quarter");
    let [main, refusals] = home.verify_both().await.unwrap();
    assert_eq!(main.begins, Beginning::First);
    let Beginning::Trimmed(first) = refusals.begins else { panic!("{refusals:?}") };
    assert_eq!(home.lines_of(Chain::Refusals)[0]["seq"], first);
    let last = home.lines().into_iter().rfind(|line| line["event"] == "log_trimmed").unwrap();
    assert_eq!(
        (&last["first_line"], &last["hash_before"]),
        (&first.into(), &home.lines_of(Chain::Refusals)[0]["prev"])
    );
    // The main chain is bounded, too.
    for value in 2..=200 {
        audit.record(vec![opened(value)]).await.unwrap();
        assert!(bytes_of(&home, Chain::Main) <= 30_000);
    }
    let [main, _] = home.verify_both().await.unwrap();
    assert!(matches!(main.begins, Beginning::Trimmed(_)), "{main:?}");
    end(audit).await;
    // A restart continues the log, and a smaller limit trims at once.
    let sizes = Sizes { segment: LARGE, total: 20_000 };
    let audit = home.open_with(Duration::from_secs(3600), sizes).await.unwrap();
    audit.record(vec![opened(201)]).await.unwrap();
    end(audit).await;
    assert!(bytes_of(&home, Chain::Main) <= 15_000 && bytes_of(&home, Chain::Refusals) <= 5_000);
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn a_trim_beyond_the_recorded_one_is_detected() {
    let home = Home::new();
    let sizes = Sizes { segment: LARGE, total: 20_000 };
    let audit = home.open_with(Duration::from_secs(3600), sizes).await.unwrap();
    for value in 1..=150 {
        audit.record(vec![opened(value), linked(1)]).await.unwrap();
    }
    end(audit).await;
    for chain in [Chain::Main, Chain::Refusals] {
        let first = verify::segments(&home.dir(), chain).unwrap().remove(0).path;
        let whole = fs::read(&first).unwrap();
        fs::remove_file(&first).unwrap();
        home.verify_both().await.unwrap_err();
        assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Broken { .. })), "{chain:?}");
        fs::write(&first, whole).unwrap();
    }
    home.verify_both().await.unwrap();
}

#[tokio::test]
async fn a_trim_that_a_crash_interrupts_is_finished_by_the_next_start() {
    for holds in [None, Some(false), Some(true)] {
        let home = Home::new();
        let sizes = Sizes { segment: LARGE, total: 20_000 };
        let audit = home.open_with(Duration::from_secs(3600), sizes).await.unwrap();
        let mut value = 0;
        // Until its first file can't be deleted, or its base can't be stored.
        while !home.lines().iter().any(|line| line["event"] == "log_trimmed") {
            value += 1;
            home.faults.lock().unwrap().failing = vec![(Touch::Remove, ErrorKind::Other); 10];
            home.head_store.0.lock().unwrap().clear();
            if let Some(holds) = holds {
                home.head_store.fail(holds);
            }
            let _ = audit.record(vec![opened(value)]).await;
        }
        // Files are deleted after the answer, so wait for the end of the writer.
        end(audit).await;
        home.faults.lock().unwrap().failing.clear();
        home.head_store.0.lock().unwrap().clear();
        assert!(home.segment(1).exists());
        home.verify_both().await.unwrap();
        let audit = home.open_with(Duration::from_secs(3600), sizes).await.unwrap();
        audit.record(vec![opened(value + 1)]).await.unwrap();
        end(audit).await;
        assert!(!home.segment(1).exists(), "{holds:?}");
        assert!(matches!(home.verify().await.unwrap().begins, Beginning::Trimmed(_)));
        assert_eq!(*home.values().last().unwrap(), value + 1);
    }
}
