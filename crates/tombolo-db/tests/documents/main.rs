//! What only the store of documents can get wrong: its file, its sync, its one writer, and the documents themselves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod disk;

use std::sync::Arc;
use std::time::Duration;

use disk::Disk;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tombolo_db::documents::redb::Database as Redb;
use tombolo_db::documents::{Collection, DOCUMENT_BYTES_MAX, Documents, KEY_BYTES_MAX, Keys, Tx};
use tombolo_db::{Database, Kind, Leases, Outbox, Outgoing, Owner, Publisher, RoundLimit, Schema, Share};
use tombolo_event::{Event, ServiceName};
use uuid::Uuid;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Noted {
    key: String,
}

impl Event for Noted {
    const TYPE: &'static str = "notes.noted.v1";
    fn key(&self) -> String {
        self.key.clone()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    by: String,
    text: String,
}

const NOTES: Collection<Note> = Collection::new("notes");
const BY_AUTHOR: Collection<()> = Collection::new("notes-by-author");
const NUMBERS: Collection<u64> = Collection::new("numbers");

fn note(by: &str, text: &str) -> Note {
    Note { by: by.into(), text: text.into() }
}

fn owner() -> Owner {
    Owner { service: ServiceName::new("notes").unwrap(), partitions: 4 }
}

fn publisher() -> Publisher {
    Publisher {
        service: ServiceName::new("notes").unwrap(),
        declared: Arc::new([Noted::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| {}),
    }
}

async fn begin(database: &Documents) -> Tx {
    database.begin(&publisher()).await.unwrap()
}

async fn prepared(folder: &tempfile::TempDir) -> Documents {
    let database = Documents::open(path(folder)).unwrap();
    database.prepare(&owner(), Schema::Apply).await.unwrap();
    database
}

fn path(folder: &tempfile::TempDir) -> String {
    folder.path().join("notes.redb").to_str().unwrap().to_owned()
}

#[tokio::test]
async fn nothing_touches_the_disk_before_prepare() {
    let folder = tempfile::tempdir().unwrap();
    let database = Documents::open(path(&folder)).unwrap();
    let error = database.prepare(&owner(), Schema::Check).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Schema);
    assert!(!folder.path().join("notes.redb").exists(), "a file was made by looking");
}

#[tokio::test]
async fn an_address_of_another_kind_of_database_is_refused() {
    for wrong in ["postgres://host/notes", "sqlite:notes.db"] {
        let error = Documents::open(wrong).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsafe);
        assert!(error.to_string().contains("documents:PATH"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_another_process_has_open_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // The lock is one for each opening, so another one here is as good as one in another process.
    let other = Redb::create(path(&folder)).unwrap();
    let error = Documents::open(path(&folder)).unwrap().prepare(&owner(), Schema::Apply).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("open in another process"), "{error}");
    drop(other);
    prepared(&folder).await;
}

#[tokio::test]
async fn documents_are_put_found_and_removed_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    assert_eq!(tx.get(&NOTES, "1").await.unwrap(), None);
    tx.put(&NOTES, "1", &note("ann", "first")).await.unwrap();
    tx.put(&NOTES, "1", &note("ann", "second")).await.unwrap();
    assert_eq!(tx.get(&NOTES, "1").await.unwrap(), Some(note("ann", "second")));
    let before = database.read().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(before.get(&NOTES, "1").await.unwrap(), None, "a reading is of one moment");
    let after = database.read().await.unwrap();
    assert_eq!(after.get(&NOTES, "1").await.unwrap(), Some(note("ann", "second")));
    let mut tx = begin(&database).await;
    assert!(tx.remove(&NOTES, "1").await.unwrap() && !tx.remove(&NOTES, "1").await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(database.read().await.unwrap().get(&NOTES, "1").await.unwrap(), None);
}

#[tokio::test]
async fn keys_are_scanned_in_their_order_by_range_and_by_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    for (id, by) in [("3", "bob"), ("1", "ann"), ("10", "ann"), ("2", "bo")] {
        tx.put(&NOTES, id, &note(by, id)).await.unwrap();
        tx.put(&BY_AUTHOR, &format!("{by}/{id}"), &()).await.unwrap();
    }
    let ids = tx.scan(&NOTES, Keys::range("10"..), 2).await.unwrap();
    assert_eq!(ids.iter().map(|(id, _)| &**id).collect::<Vec<_>>(), ["10", "2"]);
    tx.commit().await.unwrap();
    let reading = database.read().await.unwrap();
    let by = async |author: &str, keys: fn(Keys) -> Keys| {
        let keys = keys(Keys::prefix(&format!("{author}/")));
        let found = reading.scan(&BY_AUTHOR, keys, 10).await.unwrap();
        found.into_iter().map(|(key, ())| key).collect::<Vec<_>>()
    };
    assert_eq!(by("ann", |keys| keys).await, ["ann/1", "ann/10"]);
    assert_eq!(by("bo", Keys::backwards).await, ["bo/2"]);
    assert_eq!(by("ann", |keys| keys.after("ann/1")).await, ["ann/10"]);
    assert_eq!(by("nobody", |keys| keys).await, [""; 0]);
}

#[tokio::test]
async fn what_may_not_be_put_changes_nothing_and_the_transaction_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    let (long, large) = ("k".repeat(KEY_BYTES_MAX + 1), "x".repeat(DOCUMENT_BYTES_MAX));
    for (key, text) in [("", "x"), (&*long, "x"), ("1", &*large)] {
        let error = tx.put(&NOTES, key, &note("ann", text)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Database, "{error}");
        assert!(error.to_string().contains("notes"), "{error}");
    }
    tx.put(&NUMBERS, "1", &7).await.unwrap();
    tx.commit().await.unwrap();
    let reading = database.read().await.unwrap();
    assert!(reading.scan(&NOTES, Keys::all(), 10).await.unwrap().is_empty());
    let wrong: Collection<Note> = Collection::new("numbers");
    let error = reading.get(&wrong, "1").await.unwrap_err();
    assert!(error.to_string().contains("document \"1\" of collection \"numbers\""), "{error}");
}

#[tokio::test]
async fn a_collection_of_a_view_is_none_of_the_service() {
    const TITLES: Collection<u64> = Collection::of_view("titles");
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    let error = tx.put(&TITLES, "1", &1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::View, "{error}");
    let error = database.read().await.unwrap().get(&TITLES, "1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::View, "{error}");
}

#[tokio::test]
async fn a_transaction_that_was_given_up_in_the_middle_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    tx.put(&NUMBERS, "1", &1).await.unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        // Once asked, it is under way on another thread; dropped before it has ended, nobody knows how it ended.
        let mut put = std::pin::pin!(tx.put(&NUMBERS, "2", &2));
        if put.as_mut().poll(&mut context).is_pending() {
            break;
        }
    }
    assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned);
    let mut tx = begin(&database).await;
    assert_eq!(tx.scan(&NUMBERS, Keys::all(), 10).await.unwrap(), []);
}

#[tokio::test]
async fn writers_of_a_process_wait_for_each_other_whichever_handle_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let other = Documents::open(format!("documents:{}", path(&folder))).unwrap();
    let tasks = [database.clone(), other].map(|database| {
        tokio::spawn(async move {
            for _ in 0..50 {
                let mut tx = begin(&database).await;
                let count = tx.get(&NUMBERS, "count").await.unwrap().unwrap_or(0);
                tx.put(&NUMBERS, "count", &(count + 1)).await.unwrap();
                tx.commit().await.unwrap();
            }
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(database.read().await.unwrap().get(&NUMBERS, "count").await.unwrap(), Some(100));
}

/// The user's own transaction is not in our queue: whoever comes then waits for the store itself.
#[tokio::test]
async fn a_transaction_of_the_users_own_is_waited_for() {
    let disk = Disk::default();
    let own = disk.open();
    let database = Documents::new(Arc::clone(&own));
    database.prepare(&owner(), Schema::Apply).await.unwrap();
    let mut writing = own.begin_write().unwrap();
    let mut outgoing = Outgoing::new(publisher());
    outgoing.publish(&Noted { key: "a".into() }).unwrap();
    database.write_outgoing(&mut writing, outgoing).await.unwrap();
    let mut waiting = tokio::spawn(async move {
        let mut tx = begin(&database).await;
        tx.put(&NUMBERS, "1", &1).await.unwrap();
        tx.commit().await.unwrap();
        database.depth().await.unwrap().rows
    });
    let still = tokio::time::timeout(Duration::from_millis(150), &mut waiting).await;
    assert!(still.is_err(), "it wrote beside the transaction of the user's own");
    writing.commit().unwrap();
    assert_eq!(waiting.await.unwrap(), 1);
}

/// Commits until the power is cut; returns how many of the acknowledged ones are not there after it.
async fn lost_in_a_power_cut(seed: u64, faulty: impl Fn(Documents) -> Documents) -> usize {
    const COMMITS: u64 = 40;
    let disk = Disk::default();
    let database = faulty(Documents::new(disk.open()));
    database.prepare(&owner(), Schema::Apply).await.unwrap();
    let mut leader = database.lead(Uuid::now_v7(), Duration::from_secs(300)).await.unwrap().unwrap();
    let mut acknowledged = Vec::new();
    for n in 0..COMMITS {
        let mut tx = begin(&database).await;
        tx.put(&NUMBERS, &format!("{n:03}"), &n).await.unwrap();
        tx.publish(&Noted { key: format!("k{}", n % 5) }).unwrap();
        acknowledged.extend(tx.commit().await.unwrap().positions);
        if n % 7 == seed % 7 {
            leader.renew().await.unwrap();
        }
    }
    let after = Documents::new(disk.cut(seed).open());
    if after.prepare(&owner(), Schema::Check).await.is_err() {
        return acknowledged.len();
    }
    let numbers = after.read().await.unwrap().scan(&NUMBERS, Keys::all(), 1_000).await.unwrap();
    let waiting = tombolo_db::Recovery::waiting(&after).await.unwrap();
    assert_eq!(waiting.len(), numbers.len(), "seed {seed}: documents and events parted");
    acknowledged.iter().filter(|position| !waiting.iter().any(|(_, id)| *id == position.id)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_outlives_a_power_cut() {
    for seed in 0..24 {
        assert_eq!(lost_in_a_power_cut(seed, |database| database).await, 0, "seed {seed}");
    }
}

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_synced_is_lost_in_a_power_cut() {
    use tombolo_db::mutant::Mutant;
    let lost = lost_in_a_power_cut(1, |database| database.with_mutant(Mutant::NoSync)).await;
    assert!(lost > 0, "the power cut takes nothing, so it proves nothing");
}

#[tokio::test]
async fn a_disk_that_fails_is_nobodys_fault_and_nothing_is_acknowledged() {
    let disk = Disk::default();
    let database = Documents::new(disk.open());
    database.prepare(&owner(), Schema::Apply).await.unwrap();
    let mut tx = begin(&database).await;
    tx.put(&NUMBERS, "1", &1).await.unwrap();
    disk.fail();
    let error = tx.commit().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = database.begin(&publisher()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let after = Documents::new(disk.cut(3).open());
    after.prepare(&owner(), Schema::Check).await.unwrap();
    assert_eq!(after.read().await.unwrap().get(&NUMBERS, "1").await.unwrap(), None);
}

/// Each renewal writes new pages, and frees those of the one before.
#[tokio::test]
async fn upkeep_alone_does_not_grow_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let holder = tombolo_db::Holder::new(Uuid::now_v7());
    database.claim("titles", holder, Share::Split, Duration::from_secs(60)).await.unwrap();
    let size = || folder.path().join("notes.redb").metadata().unwrap().len();
    let mut sizes = Vec::new();
    for _ in 0..4 {
        for _ in 0..300 {
            database.renew(holder, Duration::from_secs(60)).await.unwrap();
        }
        sizes.push(size());
    }
    assert!(sizes[3] <= sizes[0] + sizes[0] / 4, "the file grows: {sizes:?}");
}

#[tokio::test]
async fn a_published_event_is_numbered_handed_out_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let database = prepared(&folder).await;
    let mut tx = begin(&database).await;
    let id = tx.publish(&Noted { key: "a".into() }).unwrap();
    assert_eq!(tx.commit().await.unwrap().positions[0].sequence, Some(1));
    let mut leader = database.lead(Uuid::now_v7(), Duration::from_secs(9)).await.unwrap().unwrap();
    let rows = leader.round(&[], RoundLimit::default()).await.unwrap();
    assert_eq!((rows.len(), rows[0].id, rows[0].sequence), (1, id, 1));
    let done = tombolo_db::Mark { partition: rows[0].partition, sequence: 1, id: Some(id) };
    assert!(leader.round(&[done], RoundLimit::default()).await.unwrap().is_empty());
    assert_eq!(database.depth().await.unwrap(), tombolo_db::Depth::default());
    leader.resign(&[]).await.unwrap();
}
