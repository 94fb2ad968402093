//! Tests of the database. Each test has its own database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use paramedic_link::{PeerText, SessionId};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use super::*;
use crate::audit::{ChainState, Head};
use crate::connection_limiter::Prefix;
use crate::event::{AuditEvent, Chain};
use crate::failure::Failure;
use crate::sessions::{Lease, RecordedUse};

fn id(byte: u8) -> EndpointId {
    EndpointId::from_bytes([byte; 32])
}

fn session(byte: u8) -> SessionId {
    SessionId::from_bytes([byte; 16])
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("state/reflector.db")
}

async fn open(folder: &TempDir) -> Store {
    Store::open(&file(folder)).await.unwrap()
}

fn chains(seq: u64) -> BTreeMap<Chain, ChainState> {
    let head = Head { seq, hash: [8; 32] };
    let trimmed = ChainState { base: Head { seq: 1, hash: [1; 32] }, head: Head { seq: 2, hash: [2; 32] } };
    BTreeMap::from([(Chain::Main, ChainState { base: Head::GENESIS, head }), (Chain::Refusals, trimmed)])
}

async fn lease(store: &Store, of: u8, peer: u8, day: u32, bytes: u64) -> Result<(), StoreError> {
    store.lease(session(of), id(peer), Lease { bytes, day }, RecordedUse::NOTHING).await
}

async fn names(store: &Store) -> Vec<String> {
    store.peers().await.unwrap().into_iter().map(|peer| peer.name.to_string()).collect()
}

#[tokio::test]
async fn written_data_survives_a_restart() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    assert!(store.add_peer(id(1), &"attic".into(), "code").await.unwrap());
    store.record_test(session(1), id(1), 1_000).await.unwrap();
    store.set_audit_chains(&chains(7)).await.unwrap();
    drop(store);
    let store = open(&folder).await;
    let peers = store.peers().await.unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].id, peers[0].name.as_str(), peers[0].added_by.as_str()), (id(1), "attic", "code"));
    assert!(peers[0].added_unix_ms > 1_700_000_000_000);
    assert_eq!(store.tests_since(0).await.unwrap(), [(id(1), 1_000)]);
    assert_eq!(store.audit_chains().await.unwrap(), chains(7));
}

#[tokio::test]
async fn other_users_cannot_read_it() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.path().join("state")), 0o700);
    for name in ["reflector.db", "reflector.db-wal", "reflector.db-shm"] {
        assert_eq!(mode(folder.path().join("state").join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn names_stay_unique() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    for peer in 1..=3 {
        assert!(store.add_peer(id(peer), &"attic".into(), "code").await.unwrap());
    }
    assert!(!store.add_peer(id(3), &"other".into(), "code").await.unwrap());
    assert_eq!(names(&store).await, ["attic", "attic 2", "attic 3"]);
    assert!(matches!(store.rename_peer(id(3), &"attic".into()).await, Err(StoreError::NameTaken(_))));
    assert!(store.rename_peer(id(3), &"cellar".into()).await.unwrap());
    assert!(!store.rename_peer(id(9), &"nobody".into()).await.unwrap());
    assert_eq!(names(&store).await, ["attic", "attic 2", "cellar"]);
    assert!(store.remove_peer(id(3)).await.unwrap() && !store.remove_peer(id(3)).await.unwrap());
}

#[tokio::test]
async fn a_name_cannot_be_an_endpoint_id() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let disguise = PeerText::new(&id(1).to_string());
    store.add_peer(id(2), &disguise, "code").await.unwrap();
    store.add_peer(id(3), &PeerText::default(), "code").await.unwrap();
    store.add_peer(id(4), &PeerText::new(&"x".repeat(120)), "code").await.unwrap();
    store.add_peer(id(5), &PeerText::new(&"x".repeat(120)), "code").await.unwrap();
    assert_eq!(names(&store).await[..2], ["appliance", "appliance 2"]);
    assert!(names(&store).await.contains(&format!("{} 2", "x".repeat(108))));
    assert!(matches!(store.rename_peer(id(2), &disguise).await, Err(StoreError::NoName)));
}

#[tokio::test]
async fn known_prefixes_are_kept_and_forgotten() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let prefix = |text: &str| Prefix::of(text.parse().unwrap());
    let before = [(id(1), vec![(prefix("192.0.2.1"), 1_000), (prefix("2001:db8::7"), 2_000)])];
    let authorized = BTreeSet::from([id(1), id(2)]);
    store.keep_prefixes(&before, &authorized).await.unwrap();
    let other = (id(2), vec![(prefix("192.0.2.2"), 4_000)]);
    store.keep_prefixes(&[(id(1), vec![(prefix("2001:db8::8"), 3_000)]), other], &authorized).await.unwrap();
    let both = [(id(1), prefix("2001:db8::"), 3_000), (id(2), prefix("192.0.2.2"), 4_000)];
    assert_eq!(store.known_prefixes().await.unwrap(), both);
    store.forget_prefixes(id(1)).await.unwrap();
    store.forget_prefixes(id(2)).await.unwrap();
    assert_eq!(store.known_prefixes().await.unwrap(), []);
    store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
    store.keep_prefixes(&before, &BTreeSet::new()).await.unwrap();
    store.remove_peer(id(1)).await.unwrap();
    assert_eq!(store.known_prefixes().await.unwrap(), [], "they are removed with their peer");
}

#[tokio::test]
async fn prefixes_that_are_written_after_the_removal_of_their_peer_are_not_kept() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let of = |peer: u8| (id(peer), vec![(Prefix::of("192.0.2.1".parse().unwrap()), 1_000)]);
    store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
    store.add_peer(id(2), &"cellar".into(), "hand").await.unwrap();
    let taken = [of(1), of(2)];
    store.remove_peer(id(1)).await.unwrap();
    store.keep_prefixes(&taken, &BTreeSet::new()).await.unwrap();
    let kept = store.known_prefixes().await.unwrap().into_iter().map(|(peer, ..)| peer).collect::<Vec<_>>();
    assert_eq!(kept, [id(2)]);
}

#[tokio::test]
async fn tests_are_counted_once_and_old_ones_forgotten() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.record_test(session(1), id(1), 1_000).await.unwrap();
    store.record_test(session(1), id(1), 1_000).await.unwrap();
    store.record_test(session(2), id(2), 2_000).await.unwrap();
    store.forget_test(session(1)).await.unwrap();
    assert_eq!(store.tests_since(0).await.unwrap(), [(id(2), 2_000)]);
    let later = 2_000 + 3 * 3_600_000;
    store.record_test(session(3), id(1), later).await.unwrap();
    assert_eq!(store.tests_since(0).await.unwrap(), [(id(1), later)]);
    assert_eq!(store.tests_since(later + 1).await.unwrap(), []);
}

#[tokio::test]
async fn a_settled_session_is_charged_what_it_used() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    lease(&store, 1, 1, 5, 100).await.unwrap();
    lease(&store, 1, 1, 5, 100).await.unwrap();
    lease(&store, 1, 1, 6, 100).await.unwrap();
    store.settle(session(1), id(1), &[(5, 150), (6, 30)]).await.unwrap();
    lease(&store, 2, 1, 6, 100).await.unwrap();
    store.settle(session(2), id(1), &[(6, 1)]).await.unwrap();
    assert_eq!(store.usage_from(5).await.unwrap(), [(id(1), 5, 150), (id(1), 6, 31)]);
    assert_eq!(store.usage_from(6).await.unwrap(), [(id(1), 6, 31)]);
    assert_eq!(store.open_leases().await.unwrap(), []);
    store.record_use(session(2), RecordedUse { used: 1, surge: 1 }).await.unwrap();
    assert_eq!(on_disk(&file(&folder), "SELECT COUNT(*) FROM recorded_use").await, 0, "settled with its session");
    lease(&store, 3, 2, 50, 1).await.unwrap();
    store.settle(session(3), id(2), &[(50, 1)]).await.unwrap();
    assert_eq!(store.usage_from(6).await.unwrap(), [(id(2), 50, 1)]);
}

#[tokio::test]
async fn a_session_without_a_lease_and_without_a_test_is_charged_what_it_used() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    // A repetition or a monitor session, for which no bytes were left.
    store.settle(session(1), id(1), &[(5, 1)]).await.unwrap();
    store.settle(session(1), id(1), &[(5, 0)]).await.unwrap();
    assert_eq!(store.usage_from(5).await.unwrap(), [(id(1), 5, 1)]);
}

#[tokio::test]
async fn open_leases_and_their_recorded_use_survive_a_crash() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    lease(&store, 1, 1, 5, 100).await.unwrap();
    lease(&store, 1, 1, 6, 10).await.unwrap();
    lease(&store, 2, 2, 6, 1).await.unwrap();
    lease(&store, 3, 2, 6, 7).await.unwrap();
    let recorded = RecordedUse { used: 60, surge: 20 };
    store.record_use(session(1), recorded).await.unwrap();
    store.record_use(session(1), recorded).await.unwrap();
    // An earlier version recorded no use.
    let earlier = sqlx::query("DELETE FROM recorded_use WHERE session = $1").bind(&session(3).as_bytes()[..]);
    earlier.execute(&store.pool).await.unwrap();
    drop(store);
    let store = open(&folder).await;
    let open = |nth, peer, leased: &[(u32, u64)], recorded| OpenLease {
        session: session(nth),
        peer: id(peer),
        leased: leased.iter().copied().collect(),
        recorded,
    };
    let expected = [
        open(1, 1, &[(5, 100), (6, 10)], Some(recorded)),
        open(2, 2, &[(6, 1)], Some(RecordedUse::NOTHING)),
        open(3, 2, &[(6, 7)], None),
    ];
    assert_eq!(store.open_leases().await.unwrap(), expected);
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_unchanged() {
    let folder = TempDir::new().unwrap();
    open(&folder).await.close().await;
    let good = fs::read(file(&folder)).unwrap();
    let mut broken_page = good.clone();
    broken_page[5_000..].fill(0xa5);
    for bad in [b"this is no database, it is a letter to you".repeat(100), broken_page] {
        fs::write(file(&folder), &bad).unwrap();
        let why = Store::open(&file(&folder)).await.unwrap_err();
        assert!(matches!(why, StoreError::Damaged { .. }), "{why}");
        let failure = Failure::from(why);
        assert!(failure.because.contains(file(&folder).to_str().unwrap()), "{failure}");
        assert!(failure.try_.contains("restore a backup"), "{failure}");
        assert_eq!(fs::read(file(&folder)).unwrap(), bad);
    }
}

#[tokio::test]
async fn a_newer_versions_file_is_refused() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9000, 'from the future', true, x'00', 0)",
    )
    .execute(&store.pool)
    .await
    .unwrap();
    store.close().await;
    drop(store);
    let why = Store::open(&file(&folder)).await.unwrap_err();
    assert!(matches!(why, StoreError::Newer { step: 9000, .. }), "{why}");
}

#[tokio::test]
async fn a_second_reflector_finds_the_folder_in_use() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    assert!(matches!(Store::open(&file(&folder)).await, Err(StoreError::InUse { .. })));
    store.set_audit_chains(&chains(1)).await.unwrap();
    assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), chains(1));
    drop(store);
    open(&folder).await;
}

#[tokio::test]
async fn a_database_without_chains_is_read_and_then_migrated() {
    let folder = TempDir::new().unwrap();
    create_private_folder(file(&folder).parent().unwrap()).unwrap();
    let options = SqliteConnectOptions::new().filename(file(&folder)).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let first = Migrator { migrations: MIGRATIONS.migrations[..1].to_vec().into(), ..Migrator::DEFAULT };
    first.run(&pool).await.unwrap();
    let head = sqlx::query("INSERT INTO audit_head (one, seq, hash) VALUES (1, 9, $1)").bind(vec![8; 32]);
    head.execute(&pool).await.unwrap();
    pool.close().await;
    let state = ChainState { base: Head::GENESIS, head: Head { seq: 9, hash: [8; 32] } };
    let expected = BTreeMap::from([(Chain::Main, state)]);
    assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), expected);
    assert_eq!(open(&folder).await.audit_chains().await.unwrap(), expected);
    assert_eq!(Store::read_audit_chains(&file(&folder)).await.unwrap(), expected);
}

#[tokio::test]
async fn a_folder_that_cannot_be_created_is_named() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let why = Store::open(&file(&folder)).await.unwrap_err();
    assert!(why.to_string().contains("state"), "{why}");
}

/// The result of a query on a connection that is opened only for it.
async fn on_disk(path: &Path, sql: &'static str) -> i64 {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    let seen = sqlx::query_scalar(sql).fetch_one(&mut other).await.unwrap();
    other.close().await.unwrap();
    seen
}

/// Limits the growth of the database to `more` pages. SQLite then reports the same error as on a full disk, and rolls
/// back in the same way.
async fn limit_pages(connection: &mut SqliteConnection, more: i64) {
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *connection).await.unwrap();
    let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + more));
    sqlx::query(limit).execute(connection).await.unwrap();
}

const FILL: &str = "INSERT INTO leases (session, day, peer, bytes) VALUES (zeroblob(200000), 1, x'00', 1)";

/// Checks what sqlx does after SQLite rolled back on its own. This behaviour is the reason for
/// [`pool_options`](paramedic_host::database::pool_options). If this test fails, an update of sqlx has changed the
/// behaviour: read docs/decisions/0019 again.
#[tokio::test]
async fn sqlx_still_counts_a_transaction_that_sqlite_rolled_back() {
    let folder = TempDir::new().unwrap();
    open(&folder).await.close().await;
    let options = SqliteConnectOptions::new().filename(file(&folder));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    limit_pages(&mut connection, 0).await;
    let mut work = connection.begin().await.unwrap();
    assert!(sqlx::query(FILL).execute(&mut *work).await.is_err());
    drop(work);
    connection.ping().await.unwrap();
    assert!(connection.is_in_transaction(), "the depth stays");
    limit_pages(&mut connection, 1000).await;
    let refused = connection.begin_with("BEGIN IMMEDIATE").await.map(drop);
    assert!(matches!(refused, Err(sqlx::Error::InvalidSavePointStatement)), "{refused:?}");
    // The next begin is a savepoint: dropped once, it leaves a transaction open that is never committed.
    drop(connection.begin().await.unwrap());
    let mut work = connection.begin().await.unwrap();
    sqlx::query("INSERT INTO usage (day, peer, bytes) VALUES (1, x'00', 1)").execute(&mut *work).await.unwrap();
    work.commit().await.unwrap();
    assert_eq!(on_disk(&file(&folder), "SELECT COUNT(*) FROM usage").await, 0, "acknowledged, and never written");
}

#[tokio::test]
async fn a_connection_whose_change_failed_is_closed() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    for round in 1..=3 {
        let mut change = store.begin("filling it").await.unwrap();
        limit_pages(&mut change.work, 0).await;
        let filled = sqlx::query(FILL).execute(&mut *change.work).await;
        assert!(matches!(store.conclude(change, filled).await, Err(StoreError::Failed { .. })));
        assert!(store.fault().borrow().as_ref().is_some_and(|why| why.contains("full")));
        // A transaction that is dropped, as by a cancelled caller.
        drop(store.begin("nothing").await.unwrap());
        // The limit applied to the old connection.
        assert!(store.add_peer(id(round), &"kept".into(), "hand").await.unwrap());
        assert_eq!(*store.fault().borrow(), None);
        assert_eq!(on_disk(&file(&folder), "SELECT COUNT(*) FROM peers").await, i64::from(round));
    }
}

#[tokio::test]
async fn a_commit_without_effect_is_a_failure() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let mut change = store.begin("charging").await.unwrap();
    for sql in ["INSERT INTO usage (day, peer, bytes) VALUES (1, x'00', 1)", "ROLLBACK", "BEGIN"] {
        sqlx::query(sql).execute(&mut *change.work).await.unwrap();
    }
    let concluded = store.conclude(change, Ok(())).await;
    assert!(matches!(concluded, Err(StoreError::NotKept { .. })), "{concluded:?}");
    assert!(store.fault().borrow().is_some());
    // A change without effect loses nothing.
    store.forget_test(session(1)).await.unwrap();
}

#[tokio::test]
async fn a_repeated_write_of_equal_data_is_detected_as_written() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    for _ in 0..3 {
        store.set_audit_chains(&chains(7)).await.unwrap();
    }
    assert_eq!(store.audit_chains().await.unwrap(), chains(7));
}

#[tokio::test]
async fn each_change_of_the_peers_owes_a_line_until_it_is_written() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.set_audit_chains(&chains(7)).await.unwrap();
    store.add_peer(id(1), &"attic".into(), "code").await.unwrap();
    store.rename_peer(id(1), &"cellar".into()).await.unwrap();
    store.remove_peer(id(1)).await.unwrap();
    // A change without effect owes no line.
    store.remove_peer(id(1)).await.unwrap();
    store.rename_peer(id(1), &"cellar".into()).await.unwrap();
    drop(store);
    let store = open(&folder).await;
    let owed = store.owed_lines().await.unwrap();
    let events = owed.iter().map(|line| line.event.clone()).collect::<Vec<_>>();
    let added = AuditEvent::PeerAdded { peer: id(1), name: "attic".into(), by: "code".to_owned() };
    let renamed = AuditEvent::PeerRenamed { peer: id(1), name: "cellar".into() };
    assert_eq!(events, [added, renamed, AuditEvent::PeerRemoved { peer: id(1) }]);
    assert!(owed.iter().all(|line| line.after_seq == 7));
    store.lines_written(&owed[..2]).await.unwrap();
    assert_eq!(store.owed_lines().await.unwrap(), owed[2..]);
    assert!(store.peers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_fault_is_reported_and_ends_when_the_disk_works() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let options = SqliteConnectOptions::new().filename(file(&folder));
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let refused = store.record_test(session(1), id(1), 1_000).await.unwrap_err();
    assert!(refused.is_fault() && store.fault().borrow().as_ref().is_some_and(|why| why.contains("locked")));
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    let mut fault = store.fault();
    tokio::select! {
        () = store.watch_over() => unreachable!("it runs as long as the store"),
        ended = fault.wait_for(Option::is_none) => drop(ended.unwrap()),
    }
    assert_eq!(on_disk(&file(&folder), "SELECT tries FROM probe").await, 1);
}

#[tokio::test]
async fn an_invalid_request_is_not_a_fault_of_the_disk() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.add_peer(id(1), &"attic".into(), "hand").await.unwrap();
    store.add_peer(id(2), &"cellar".into(), "hand").await.unwrap();
    assert!(matches!(store.rename_peer(id(2), &"attic".into()).await, Err(StoreError::NameTaken(_))));
    assert_eq!(*store.fault().borrow(), None);
}
