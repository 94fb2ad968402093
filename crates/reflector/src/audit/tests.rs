//! What the audit log must survive, and what it must never swallow.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::sync::Mutex;

use tempfile::TempDir;

use super::log::{Faults, MAX_TAIL};
use super::*;

const LARGE: u64 = 1 << 30;

/// A reflector's state folder.
struct Home {
    folder: TempDir,
    faults: Arc<Mutex<Faults>>,
}

impl Home {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), faults: Arc::default() }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("audit")
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.dir().join(format!("{number:06}.jsonl"))
    }

    async fn store(&self) -> Store {
        Store::open(&self.folder.path().join("reflector.db")).await.unwrap()
    }

    async fn try_open(&self, segment_size: u64) -> Result<Audit, AuditError> {
        // Tests that don't wait for a probe meet none.
        self.open_probing(Duration::from_secs(3600), segment_size).await
    }

    async fn open_probing(&self, every: Duration, segment_size: u64) -> Result<Audit, AuditError> {
        let disk = Disk::Failing(Arc::clone(&self.faults));
        Ok(Audit::open_on(disk, every, &self.dir(), segment_size, self.store().await).await?.0)
    }

    async fn open(&self, segment_size: u64) -> Audit {
        self.try_open(segment_size).await.unwrap()
    }

    /// Opens, records one event a batch, and is gone: the writer has let go of everything.
    async fn recorded(&self, segment_size: u64, ports: impl Iterator<Item = u16>) {
        let audit = self.open(segment_size).await;
        for port in ports {
            audit.record(vec![held(port)]).await.unwrap();
        }
        end(audit).await;
    }

    async fn head(&self) -> Option<Head> {
        Store::read_audit_head(&self.folder.path().join("reflector.db")).await.unwrap()
    }

    async fn verify(&self) -> Result<Verified, BadLine> {
        verify(&self.dir(), self.head().await)
    }

    /// Every line of every file, as JSON.
    fn lines(&self) -> Vec<serde_json::Value> {
        let segments = verify::segments(&self.dir()).unwrap();
        let text = segments.into_iter().map(|segment| fs::read_to_string(segment.path).unwrap()).collect::<String>();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn fail(&self, which: impl FnOnce(&mut Faults)) {
        which(&mut self.faults.lock().unwrap());
    }
}

fn held(port: u16) -> Event {
    Event::PortHeld { port }
}

/// Drops the handle and waits until the writer, and with it the lock on the folder, is gone.
async fn end(audit: Audit) {
    let mut faulted = audit.faulted();
    drop(audit);
    while faulted.changed().await.is_ok() {}
}

#[tokio::test]
async fn what_is_recorded_is_on_disk_and_chained() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![held(1), Event::Stopped]).await.unwrap();
    audit.record(vec![]).await.unwrap();
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.segments, verified.head.seq, verified.first_seq), (2, 1, 2, 1));
    assert_eq!(home.head().await, Some(verified.head));
    end(audit).await;
    home.recorded(LARGE, 2..=2).await;
    let lines = home.lines();
    assert_eq!(lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(lines[2]["prev"], lines[1]["hash"]);
    assert!(lines[0]["ts"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn many_at_once_share_batches_and_lose_nothing() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    let tasks = (0..200).map(|port| {
        let audit = audit.clone();
        tokio::spawn(async move { audit.record(vec![held(port)]).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(home.verify().await.unwrap().lines, 200);
}

#[tokio::test]
async fn lines_stand_in_the_order_of_the_calls_whoever_waits_first() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    let (first, second) = (audit.record(vec![held(1)]), audit.record(vec![held(2)]));
    second.await.unwrap();
    first.await.unwrap();
    assert_eq!(home.lines().iter().map(|line| line["port"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn files_rotate_and_the_chain_goes_on() {
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
    audit.note(held(1));
    audit.record(vec![held(2)]).await.unwrap();
    assert_eq!(home.lines().len(), 2);
}

#[tokio::test]
async fn notes_beyond_the_queue_are_counted() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    // The test's runtime has one thread: the writer comes to nothing before the next await.
    for _ in 0..QUEUE {
        audit.note(held(1));
    }
    audit.record(vec![held(2)]).await.unwrap();
    audit.record(vec![held(3)]).await.unwrap();
    let lines = home.lines();
    let more = lines.iter().find(|line| line["event"] == "refused_more").unwrap();
    assert_eq!(more["reason"], "not_noted");
    let noted = lines.iter().filter(|line| line["port"] == 1).count() as u64;
    assert_eq!(noted + more["count"].as_u64().unwrap(), QUEUE as u64);
}

#[tokio::test]
async fn every_truncation_of_acknowledged_lines_shows() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let whole = fs::read(home.segment(1)).unwrap();
    let head = home.head().await;
    for length in 0..whole.len() {
        fs::write(home.segment(1), &whole[..length]).unwrap();
        let bad = verify(&home.dir(), head).unwrap_err();
        assert_eq!(bad.segment, "000001.jsonl", "{length}");
        assert_eq!(bad.line, 1 + whole[..length].iter().filter(|byte| **byte == b'\n').count() as u64, "{length}");
    }
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(home.segment(1), &whole[..length]).unwrap();
        let told = home.try_open(LARGE).await.unwrap_err().to_string();
        assert!(told.contains("`reflector audit verify`") && told.contains("mv "), "{told}");
        assert_eq!(fs::read(home.segment(1)).unwrap(), whole[..length], "it is left as it is");
    }
    fs::write(home.segment(1), &whole).unwrap();
    home.recorded(LARGE, 4..=4).await;
    assert_eq!(home.verify().await.unwrap().lines, 4);
}

#[tokio::test]
async fn every_flipped_bit_shows() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let whole = fs::read(home.segment(1)).unwrap();
    let head = home.head().await;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(home.segment(1), &flipped).unwrap();
        assert!(verify(&home.dir(), head).is_err(), "bit {bit}");
        assert!(verify(&home.dir(), None).is_err(), "bit {bit}");
    }
}

#[tokio::test]
async fn a_missing_file_shows_wherever_it_was() {
    let home = Home::new();
    home.recorded(1_000, 1..=20).await;
    let last = verify::segments(&home.dir()).unwrap().last().unwrap().number;
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
async fn a_rewritten_log_shows_by_its_acknowledged_line() {
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
async fn a_crash_in_the_middle_of_a_batch_costs_only_what_nobody_was_told_of() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    let told = fs::read(home.segment(1)).unwrap();
    let mut unsaid = Vec::new();
    let next = chain::write_line(home.head().await.unwrap(), Timestamp::now(), &held(3), &mut unsaid).unwrap();
    for length in 0..=unsaid.len() {
        fs::write(home.segment(1), [&told[..], &unsaid[..length]].concat()).unwrap();
        let verified = home.verify().await.unwrap();
        let is_whole = length == unsaid.len();
        assert_eq!(verified.lines, if is_whole { 3 } else { 2 });
        assert_eq!(verified.unacknowledged_bytes, if is_whole { 0 } else { length as u64 });
        if [0, 1, 80, unsaid.len() - 1].contains(&length) {
            let log = Log::open(&home.dir(), home.head().await.unwrap(), LARGE, Disk::Real).unwrap();
            assert_eq!(log.owes(), length > 0);
            assert_eq!(fs::read(home.segment(1)).unwrap(), told);
        }
    }
    // The whole line was written and synced, and is kept though nobody was told.
    home.recorded(LARGE, 4..=4).await;
    let ports = home.lines().iter().map(|line| line["port"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ports, [1, 2, 3, 4]);
    assert_eq!(home.verify().await.unwrap().head.seq, next.seq + 1);
}

#[tokio::test]
async fn a_repaired_tail_is_told_in_the_next_line() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    OpenOptions::new().append(true).open(home.segment(1)).unwrap().write_all(b"{\"seq\":3,\"ts\"").unwrap();
    fs::write(home.segment(2), "junk of a file nobody was told of\n").unwrap();
    home.recorded(LARGE, 3..=3).await;
    let lines = home.lines();
    assert_eq!(
        (lines[2]["event"].as_str(), lines[2]["segment"].as_str()),
        (Some("tail_repaired"), Some("000001.jsonl"))
    );
    assert_eq!(lines[2]["bytes"], 13 + 34);
    assert_eq!(lines[3]["port"], 3);
    assert!(!home.segment(2).exists());
    assert_eq!(home.verify().await.unwrap().lines, 4);
}

#[tokio::test]
async fn a_tail_that_no_crash_leaves_is_not_cut_off() {
    let home = Home::new();
    home.recorded(LARGE, 1..=2).await;
    let long = vec![b'x'; usize::try_from(MAX_TAIL).unwrap() + 1];
    OpenOptions::new().append(true).open(home.segment(1)).unwrap().write_all(&long).unwrap();
    assert!(matches!(home.try_open(LARGE).await, Err(AuditError::Broken { .. })));
    assert!(fs::metadata(home.segment(1)).unwrap().len() > MAX_TAIL);
}

#[tokio::test]
async fn a_first_line_that_nobody_was_told_of_is_no_riddle() {
    let home = Home::new();
    end(home.open(LARGE).await).await;
    fs::create_dir(home.dir()).unwrap();
    fs::write(home.segment(1), "{\"seq\":1").unwrap();
    home.recorded(LARGE, 1..=1).await;
    assert_eq!(home.lines().len(), 2);
    assert_eq!(home.verify().await.unwrap().lines, 2);
}

#[tokio::test]
async fn a_log_that_was_moved_away_begins_anew_and_says_so() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    fs::rename(home.dir(), home.folder.path().join("audit.damaged")).unwrap();
    home.recorded(LARGE, 4..=4).await;
    let lines = home.lines();
    assert_eq!((lines[0]["event"].as_str(), lines[0]["seq"].as_u64()), (Some("log_begun_anew"), Some(4)));
    let verified = home.verify().await.unwrap();
    assert_eq!((verified.lines, verified.first_seq, verified.head.seq), (2, 4, 5));
    assert_eq!(verify(&home.folder.path().join("audit.damaged"), None).unwrap().head.hash_hex(), lines[0]["prev"]);
    home.recorded(LARGE, 5..=5).await;
    assert_eq!(home.verify().await.unwrap().lines, 3);
}

#[tokio::test]
async fn a_crash_just_after_beginning_anew_is_no_riddle_either() {
    let home = Home::new();
    home.recorded(LARGE, 1..=3).await;
    let (store, before) = (home.folder.path().join("reflector.db"), home.head().await.unwrap());
    fs::rename(home.dir(), home.folder.path().join("audit.damaged")).unwrap();
    home.recorded(LARGE, 4..=4).await;
    let back = Store::open(&store).await.unwrap();
    back.set_audit_head(before).await.unwrap();
    drop(back);
    home.recorded(LARGE, 5..=5).await;
    assert_eq!(home.verify().await.unwrap().head.seq, 6);
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
}

/// A fault, then a probe of the disk by the next record.
async fn recovers_from(fail: impl FnOnce(&mut Faults)) -> (Home, Vec<u64>) {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![held(1)]).await.unwrap();
    home.fail(fail);
    let faulted = audit.faulted();
    audit.note(held(2));
    let fault = audit.record(vec![held(3)]).await.unwrap_err();
    assert!(fault.to_string().contains("can't be written"), "{fault}");
    assert!(*faulted.borrow());
    assert_eq!(home.verify().await.unwrap().head.seq, 1, "nobody may rely on what failed");
    audit.record(vec![held(4)]).await.unwrap();
    assert!(!*faulted.borrow());
    end(audit).await;
    let ports = home.lines().iter().filter_map(|line| line["port"].as_u64()).collect();
    assert_eq!(home.lines()[1]["event"], "tail_repaired");
    home.verify().await.unwrap();
    (home, ports)
}

#[tokio::test]
async fn a_full_disk_costs_what_was_recorded_and_keeps_what_was_noted() {
    for room in [0, 1, 100, 250, 100_000] {
        let (home, ports) = recovers_from(|faults| faults.write = Some((room, ErrorKind::StorageFull))).await;
        assert_eq!(ports, [1, 2, 4], "{room}");
        assert!(home.segment(2).exists(), "nothing is retried in the file that failed");
        assert_eq!(fs::read_to_string(home.segment(1)).unwrap().lines().count(), 1);
    }
}

#[tokio::test]
async fn a_failed_sync_is_not_trusted_to_have_written_anything() {
    let (home, ports) = recovers_from(|faults| faults.sync = Some(ErrorKind::Other)).await;
    assert_eq!(ports, [1, 2, 4]);
    assert_eq!(home.lines()[1]["segment"], "000001.jsonl");
    assert!(home.lines()[1]["bytes"].as_u64().unwrap() > 200);
}

#[tokio::test]
async fn a_fault_lasts_until_a_write_succeeds() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![held(1)]).await.unwrap();
    home.fail(|faults| (faults.sync, faults.cut) = (Some(ErrorKind::Other), Some(ErrorKind::Other)));
    audit.record(vec![held(2)]).await.unwrap_err();
    assert_eq!(home.lines().len(), 2, "it could not even be cut off");
    home.fail(|faults| faults.cut = Some(ErrorKind::Other));
    audit.record(vec![held(3)]).await.unwrap_err();
    home.fail(|faults| faults.create = Some(ErrorKind::StorageFull));
    audit.record(vec![held(4)]).await.unwrap_err();
    home.fail(|faults| faults.write = Some((10, ErrorKind::StorageFull)));
    audit.record(vec![held(5)]).await.unwrap_err();
    assert!(*audit.faulted().borrow());
    audit.record(vec![held(6)]).await.unwrap();
    assert!(!*audit.faulted().borrow());
    let ports = home.lines().iter().filter_map(|line| line["port"].as_u64()).collect::<Vec<_>>();
    assert_eq!(ports, [1, 6]);
    assert_eq!(home.verify().await.unwrap().lines, 3);
}

#[tokio::test]
async fn the_disk_is_tried_again_though_nobody_asks() {
    let home = Home::new();
    let audit = home.open_probing(Duration::from_millis(10), LARGE).await.unwrap();
    home.fail(|faults| faults.sync = Some(ErrorKind::Other));
    audit.note(held(1));
    audit.record(vec![held(2)]).await.unwrap_err();
    let mut faulted = audit.faulted();
    assert!(!*faulted.wait_for(|faulted| !faulted).await.unwrap());
    let lines = home.lines();
    assert_eq!((lines[0]["event"].as_str(), lines[1]["port"].as_u64()), (Some("tail_repaired"), Some(1)));
    assert_eq!(home.verify().await.unwrap().lines, 2);
}

#[tokio::test]
async fn a_crash_during_a_fault_leaves_a_log_that_opens() {
    let home = Home::new();
    let audit = home.open(LARGE).await;
    audit.record(vec![held(1)]).await.unwrap();
    home.fail(|faults| {
        faults.write = Some((30, ErrorKind::StorageFull));
        faults.cut = Some(ErrorKind::Other);
    });
    audit.record(vec![held(2)]).await.unwrap_err();
    end(audit).await;
    home.recorded(LARGE, 3..=3).await;
    assert_eq!(home.verify().await.unwrap().lines, 3);
}
