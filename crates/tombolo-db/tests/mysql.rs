//! What only MySQL and MariaDB can get wrong: transactions from which a failed statement is missing, ones that the server ends
//! by itself, statements that commit by themselves, and a schema that is made halfway.

#![cfg(feature = "mysql")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool};
use tombolo_db::mysql::{Mysql, Tx, schema_sql};
use tombolo_db::{
    Database, Depth, Kind, Outbox, Outgoing, Owner, Publisher, RoundLimit, Schema, Views, Wanted,
};
use tombolo_event::{Event, EventId, ServiceName};
use uuid::Uuid;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Noted {}

impl Event for Noted {
    const TYPE: &'static str = "notes.noted.v1";
    fn key(&self) -> String {
        "a".into()
    }
}

struct Prepared {
    database: Mysql,
    publisher: Publisher,
    server: MySqlConnectOptions,
    name: String,
}

/// A database of its own on the server, without Tombolo's tables.
async fn empty() -> Option<Prepared> {
    let Ok(url) = std::env::var("TOMBOLO_TEST_MARIADB") else {
        eprintln!("skipped: mariadb: TOMBOLO_TEST_MARIADB is not set; run cargo xtask test --install");
        return None;
    };
    let server = MySqlConnectOptions::from_str(&url).unwrap();
    let name = format!("tombolo_{}", Uuid::now_v7().simple());
    let mut connection = MySqlConnection::connect_with(&server).await.unwrap();
    let make = format!("CREATE DATABASE {name}; CREATE TABLE {name}.effect (k varchar(40) PRIMARY KEY)");
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut connection).await.unwrap();
    // Every wait for a lock of theirs ends soon, as it would after 50 s by default.
    let pool = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            let soon = sqlx::raw_sql("SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1");
            soon.execute(connection).await.map(|_| ())
        })
    });
    let pool = pool.connect_lazy_with(server.clone().database(&name));
    let publisher = Publisher {
        service: service(),
        declared: Arc::new([Noted::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| {}),
    };
    Some(Prepared { database: Mysql::new(pool), publisher, server, name })
}

async fn prepared() -> Option<Prepared> {
    let prepared = empty().await?;
    prepared.database.prepare(&owner(), Schema::Apply).await.unwrap();
    Some(prepared)
}

fn service() -> ServiceName {
    ServiceName::new("notes").unwrap()
}

fn owner() -> Owner {
    Owner { service: service(), partitions: 2 }
}

impl Prepared {
    async fn remove(self) {
        self.database.pool().close().await;
        let mut connection = MySqlConnection::connect_with(&self.server).await.unwrap();
        let drop = format!("DROP DATABASE {}", self.name);
        sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
    }

    fn pool(&self) -> &MySqlPool {
        self.database.pool()
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.pool()).await.unwrap();
    }

    async fn effects(&self) -> i64 {
        sqlx::query_scalar("SELECT COUNT(*) FROM effect").fetch_one(self.pool()).await.unwrap()
    }

    async fn events(&self) -> u64 {
        self.database.depth().await.unwrap().rows
    }

    async fn assert_nothing(&self, what: &str) {
        assert_eq!(self.effects().await, 0, "{what}: state was kept");
        assert_eq!(self.database.depth().await.unwrap(), Depth::default(), "{what}: an event was kept");
    }

    async fn writing(&self) -> Tx {
        let mut tx = self.database.begin(&self.publisher).await.unwrap();
        sqlx::query("INSERT INTO effect VALUES ('a')").execute(&mut *tx).await.unwrap();
        tx.publish(&Noted {}).unwrap();
        tx
    }

    fn outgoing(&self) -> Outgoing {
        let mut outgoing = Outgoing::new(self.publisher.clone());
        outgoing.publish(&Noted {}).unwrap();
        outgoing
    }

    /// Somebody who holds the locks of every key.
    async fn lock_all_keys(&self) -> sqlx::Transaction<'static, sqlx::MySql> {
        let mut other = self.pool().begin().await.unwrap();
        sqlx::query("SELECT stripe FROM tombolo_stripe FOR UPDATE").fetch_all(&mut *other).await.unwrap();
        other
    }
}

/// The fault itself, without Tombolo: the server commits the state without the row that waited for a lock too long.
#[tokio::test]
async fn mariadb_alone_keeps_the_state_and_loses_the_outbox_row_after_a_lock_timeout() {
    let Some(prepared) = empty().await else { return };
    prepared.run("CREATE TABLE outbox (id int PRIMARY KEY); INSERT INTO outbox VALUES (1)").await;
    let mut other = prepared.pool().begin().await.unwrap();
    sqlx::query("DELETE FROM outbox WHERE id = 1").execute(&mut *other).await.unwrap();
    let mut tx = prepared.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a')").execute(&mut *tx).await.unwrap();
    let lost = sqlx::query("INSERT INTO outbox VALUES (1)").execute(&mut *tx).await.unwrap_err();
    assert!(tombolo_db::transient::is_transient(&lost), "{lost}");
    tx.commit().await.unwrap();
    other.rollback().await.unwrap();
    assert_eq!(prepared.effects().await, 1, "this server is not the one that the tests below are for");
    prepared.remove().await;
}

#[tokio::test]
async fn after_a_lock_timeout_of_the_outbox_state_and_event_are_both_absent() {
    let Some(prepared) = prepared().await else { return };
    let other = prepared.lock_all_keys().await;
    let error = prepared.writing().await.commit().await.unwrap_err();
    assert!(error.is_transient(), "it is nobody's fault: {error}");
    prepared.assert_nothing("the keys were locked").await;
    other.rollback().await.unwrap();
    let mut other = prepared.pool().acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES tombolo_outbox WRITE").execute(&mut *other).await.unwrap();
    let error = prepared.writing().await.commit().await.unwrap_err();
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();
    drop(other);
    assert!(error.is_transient(), "{error}");
    prepared.assert_nothing("the outbox was locked").await;
    prepared.writing().await.commit().await.unwrap();
    assert_eq!(
        (prepared.effects().await, prepared.events().await),
        (1, 1),
        "both are there without the lock"
    );
    prepared.remove().await;
}

#[tokio::test]
async fn after_a_lock_timeout_that_was_not_passed_on_state_and_event_are_both_absent() {
    let Some(prepared) = prepared().await else { return };
    prepared
        .run("CREATE TABLE stock (item varchar(40) PRIMARY KEY, n int); INSERT INTO stock VALUES ('a', 1)")
        .await;
    let mut other = prepared.pool().begin().await.unwrap();
    sqlx::query("UPDATE stock SET n = 5").execute(&mut *other).await.unwrap();
    let mut tx = prepared.writing().await;
    let lost = sqlx::query("UPDATE stock SET n = 0 WHERE item = 'a'").execute(&mut *tx).await;
    assert!(lost.is_err(), "it waited for the other");
    other.rollback().await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Poisoned, "{error}");
    prepared.assert_nothing("a statement is missing").await;
    prepared.remove().await;
}

#[tokio::test]
async fn in_a_transaction_of_the_users_own_a_lost_event_takes_the_state_with_it() {
    let Some(prepared) = prepared().await else { return };
    let other = prepared.lock_all_keys().await;
    let mut own = prepared.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a')").execute(&mut *own).await.unwrap();
    let error = prepared.database.write_outgoing(&mut own, prepared.outgoing()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    // The user takes no notice.
    let later = sqlx::query("INSERT INTO effect VALUES ('b')").execute(&mut *own).await;
    assert!(later.is_err(), "what came after the lost event could be kept");
    own.commit().await.unwrap();
    other.rollback().await.unwrap();
    prepared.assert_nothing("the user committed all the same").await;
    let mut own = prepared.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO effect VALUES ('a')").execute(&mut *own).await.unwrap();
    prepared.database.write_outgoing(&mut own, prepared.outgoing()).await.unwrap();
    own.commit().await.unwrap();
    assert_eq!((prepared.effects().await, prepared.events().await), (1, 1));
    prepared.remove().await;
}

/// A deadlock undoes the whole transaction, and the server goes on as if nothing were: what comes after it would be kept
/// statement by statement.
#[tokio::test]
async fn after_a_deadlock_nothing_is_kept_not_even_what_came_after_it() {
    let Some(prepared) = prepared().await else { return };
    prepared
        .run("CREATE TABLE stock (item int PRIMARY KEY, n int); INSERT INTO stock VALUES (1, 1), (2, 1)")
        .await;
    let mut tx = prepared.writing().await;
    sqlx::query("UPDATE stock SET n = 2 WHERE item = 1").execute(&mut *tx).await.unwrap();
    let mut other = prepared.pool().begin().await.unwrap();
    // The one that has written less is undone. The other waits as long as it takes until both wait.
    let more = "SET innodb_lock_wait_timeout = 60; UPDATE stock SET n = 3 WHERE item = 2; CREATE TEMPORARY TABLE more (n int);
                INSERT INTO more VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9)";
    sqlx::raw_sql(more).execute(&mut *other).await.unwrap();
    let other = tokio::spawn(async move {
        sqlx::query("UPDATE stock SET n = 4 WHERE item = 1").execute(&mut *other).await.unwrap();
        other.rollback().await.unwrap();
    });
    let mut waits = Duration::ZERO;
    while waits < Duration::from_secs(30) {
        let blocked =
            sqlx::query("SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'");
        if blocked.fetch_optional(prepared.pool()).await.unwrap().is_some() {
            break;
        }
        waits += Duration::from_millis(1);
    }
    let deadlock = sqlx::query("UPDATE stock SET n = 5 WHERE item = 2").execute(&mut *tx).await.unwrap_err();
    assert!(deadlock.to_string().contains("1213"), "{deadlock}");
    sqlx::query("INSERT INTO effect VALUES ('after')").execute(&mut *tx).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Poisoned, "{error}");
    other.await.unwrap();
    prepared.assert_nothing("the transaction had ended").await;
    prepared.remove().await;
}

#[tokio::test]
async fn an_event_is_not_kept_without_its_transaction() {
    let Some(prepared) = prepared().await else { return };
    for ends in
        ["ROLLBACK", "ROLLBACK; BEGIN", "ROLLBACK AND CHAIN", "ROLLBACK; INSERT INTO effect VALUES ('b')"]
    {
        let mut tx = prepared.writing().await;
        sqlx::raw_sql(ends).execute(&mut *tx).await.unwrap();
        assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned, "{ends}");
        prepared.assert_nothing(ends).await;
    }
    // What the user's own statement committed is kept; that its event is not there is said, not hidden.
    for (commits, kept) in
        [("COMMIT", 1), ("BEGIN", 1), ("CREATE TABLE made (n int)", 1), ("SET autocommit = 1", 1)]
    {
        let mut tx = prepared.writing().await;
        sqlx::raw_sql(commits).execute(&mut *tx).await.unwrap();
        let error = tx.commit().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Poisoned, "{commits}");
        assert!(error.to_string().contains("commits by itself"), "{error}");
        assert_eq!((prepared.effects().await, prepared.events().await), (kept, 0), "{commits}");
        prepared.run("DELETE FROM effect").await;
    }
    prepared.remove().await;
}

#[tokio::test]
async fn a_statement_may_fail_in_a_nested_transaction_that_is_rolled_back() {
    let Some(prepared) = prepared().await else { return };
    for first in ["", "INSERT INTO effect VALUES ('b')"] {
        let mut tx = prepared.writing().await;
        let mut nested = tx.begin().await.unwrap();
        if !first.is_empty() {
            sqlx::raw_sql(first).execute(&mut *nested).await.unwrap();
        }
        sqlx::raw_sql("INSERT INTO effect VALUES ('a')").execute(&mut *nested).await.unwrap_err();
        nested.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!((prepared.effects().await, prepared.events().await), (1, 1));
        prepared.run("DELETE FROM effect; DELETE FROM tombolo_outbox").await;
    }
    prepared.remove().await;
}

/// However a transaction ends, the user's own statements find the connection as it was.
#[tokio::test]
async fn a_connection_goes_back_to_the_pool_as_it_came() {
    let Some(mut prepared) = prepared().await else { return };
    let one = MySqlPoolOptions::new().max_connections(1);
    prepared.database = Mysql::new(one.connect_lazy_with(prepared.server.clone().database(&prepared.name)));
    let session = "SELECT CONCAT_WS(' ', @@autocommit, @@wait_timeout, @@tx_isolation)";
    let session = async |prepared: &Prepared| {
        sqlx::query_scalar::<_, String>(session).fetch_one(prepared.pool()).await.unwrap()
    };
    let before = session(&prepared).await;
    prepared.writing().await.commit().await.unwrap();
    assert_eq!(session(&prepared).await, before, "committed");
    prepared.run("DELETE FROM effect").await;
    prepared.writing().await.rollback().await.unwrap();
    assert_eq!(session(&prepared).await, before, "rolled back");
    drop(prepared.writing().await);
    assert_eq!(session(&prepared).await, before, "dropped");
    let mut tx = prepared.writing().await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap_err();
    assert_eq!(session(&prepared).await, before, "refused");
    let mut connection = prepared.pool().acquire().await.unwrap();
    prepared.database.write_outgoing(&mut connection, prepared.outgoing()).await.unwrap_err();
    drop(connection);
    prepared.run("INSERT INTO effect VALUES ('own')").await;
    assert_eq!((session(&prepared).await, prepared.effects().await), (before, 1));
    prepared.pool().begin().await.unwrap().commit().await.unwrap();
    prepared.remove().await;
}

#[tokio::test]
async fn a_transaction_reads_what_is_committed() {
    let Some(prepared) = prepared().await else { return };
    let mut tx = prepared.database.begin(&prepared.publisher).await.unwrap();
    let count = "SELECT COUNT(*) FROM effect";
    let seen: i64 = sqlx::query_scalar(count).fetch_one(&mut *tx).await.unwrap();
    prepared.run("INSERT INTO effect VALUES ('other')").await;
    let then: i64 = sqlx::query_scalar(count).fetch_one(&mut *tx).await.unwrap();
    assert_eq!((seen, then), (0, 1), "it is READ COMMITTED, whatever the server's default is");
    tx.rollback().await.unwrap();
    prepared.remove().await;
}

#[tokio::test]
async fn a_transaction_that_stands_still_is_cut_off_and_is_nobodys_fault() {
    let Some(mut prepared) = prepared().await else { return };
    prepared.database = prepared.database.with_idle_in_transaction(Duration::from_millis(50));
    let mut tx = prepared.writing().await;
    let id: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut *tx).await.unwrap();
    let began = Instant::now();
    loop {
        let alive = sqlx::query("SELECT 1 FROM information_schema.processlist WHERE id = ?").bind(id);
        if alive.fetch_optional(prepared.pool()).await.unwrap().is_none() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the server does not cut the session off");
    }
    let error = tx.commit().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    prepared.assert_nothing("it stood still").await;
    prepared.remove().await;
}

#[tokio::test]
async fn a_relay_that_stands_still_in_a_round_does_not_block_its_successor() {
    let Some(prepared) = prepared().await else { return };
    prepared.writing().await.commit().await.unwrap();
    let (holder, lease) = (Uuid::now_v7(), Duration::from_secs(2));
    let mut old = prepared.database.lead(holder, lease).await.unwrap().unwrap();
    // As a round that was stopped halfway: the leader's row is locked in a session with the same limit.
    let mut stopped = prepared.pool().acquire().await.unwrap();
    let lock = "SET wait_timeout = 1; START TRANSACTION; SELECT 1 FROM tombolo_leader FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut *stopped).await.unwrap();
    let mut leads = prepared.database.lead(holder, lease).await;
    while leads.as_ref().is_err_and(tombolo_db::Error::is_transient) {
        leads = prepared.database.lead(holder, lease).await;
    }
    let mut new = leads.unwrap().unwrap();
    assert_eq!(new.round(&[], RoundLimit::default()).await.unwrap().len(), 1);
    assert_eq!(old.renew().await.unwrap_err().kind(), Kind::Fenced);
    stopped.close_on_drop();
    drop(stopped);
    prepared.remove().await;
}

/// Wherever the making of the tables is interrupted, the next one goes on.
#[tokio::test]
async fn an_interrupted_apply_is_continued() {
    let Some(prepared) = empty().await else { return };
    let sql = schema_sql("tombolo_");
    let statements: Vec<&str> = sql.split_inclusive(";\n").collect();
    for done in [1, 2, 4, 7, statements.len() - 1] {
        let again = format!("DROP DATABASE {0}; CREATE DATABASE {0}; USE {0}", prepared.name);
        let mut connection = prepared.pool().acquire().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(again)).execute(&mut *connection).await.unwrap();
        for statement in &statements[..done] {
            sqlx::raw_sql(AssertSqlSafe((*statement).to_owned())).execute(&mut *connection).await.unwrap();
        }
        drop(connection);
        let error = prepared.database.prepare(&owner(), Schema::Check).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Schema, "{error}");
        prepared.database.prepare(&owner(), Schema::Apply).await.unwrap();
        prepared.database.prepare(&owner(), Schema::Check).await.unwrap();
    }
    prepared.remove().await;
}

fn wanted(tables: &str) -> Wanted {
    Wanted { view: "titles".into(), version: 1, tables: Some(tables.into()), request: None, switches: false }
}

/// A build is made in steps that these servers commit one by one; what an interruption left is taken away by the next one.
#[tokio::test]
async fn a_build_that_was_made_halfway_is_never_seen_and_made_again() {
    let Some(prepared) = prepared().await else { return };
    let row = "INSERT INTO tombolo_build (view, version, build, subscription, namespace, tables, switches)
               VALUES ('titles', 1, 1, 'titles-v1', 'titles_v1_b1', 'CREATE TABLE {a} (k int); CREATE TABLE {b} (k int)', 0);
               CREATE TABLE titles_v1_b1_a (k int)";
    prepared.run(row).await;
    assert!(prepared.database.views().await.unwrap().is_empty());
    let wanted = wanted("CREATE TABLE {a} (k int); CREATE TABLE {b} (k int)");
    let build = prepared.database.make_build(&wanted).await.unwrap().unwrap();
    assert_eq!(build.id.to_string(), "v1-b1");
    prepared.run("SELECT 1 FROM titles_v1_b1_a, titles_v1_b1_b").await;
    // One that was dropped halfway, too.
    prepared.run("UPDATE tombolo_build SET dropped = UTC_TIMESTAMP(6)").await;
    assert!(prepared.database.make_build(&wanted).await.unwrap().is_none(), "a dropped build came back");
    let left = sqlx::query("SELECT 1 FROM titles_v1_b1_a").execute(prepared.pool()).await;
    assert!(left.is_err(), "its tables are there still");
    prepared.remove().await;
}

#[tokio::test]
async fn tables_that_no_build_made_are_neither_taken_nor_dropped() {
    let Some(prepared) = prepared().await else { return };
    prepared.run("CREATE TABLE titles_v1_b1_a (k int); INSERT INTO titles_v1_b1_a VALUES (7)").await;
    let error = prepared.database.make_build(&wanted("CREATE TABLE {a} (k int)")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::View);
    assert!(error.to_string().contains("titles_v1_b1_a"), "{error}");
    let kept: i32 =
        sqlx::query_scalar("SELECT k FROM titles_v1_b1_a").fetch_one(prepared.pool()).await.unwrap();
    assert_eq!(kept, 7);
    prepared.remove().await;
}

/// Names that these servers' usual collations take for the same are not.
#[tokio::test]
async fn names_are_compared_exactly() {
    use tombolo_db::{Cursors, StartAt};
    use tombolo_event::{Cursor, Incarnation};
    let Some(prepared) = prepared().await else { return };
    let cursor = Cursor::at(Incarnation::new(), 3, EventId::new());
    let start = [StartAt { topic: service(), partition: 0, cursor }];
    let names = ["titles", "Titles", "titles ", "títles"];
    for name in names {
        prepared.database.open(name, &["notes.noted.v1".into()], &start, true).await.unwrap();
    }
    let found: Vec<String> =
        prepared.database.cursors().await.unwrap().into_iter().map(|state| state.subscription).collect();
    assert_eq!(found.len(), names.len(), "{found:?}");
    let too_long = "x".repeat(300);
    let error = prepared.database.open(&too_long, &["notes.noted.v1".into()], &start, true).await;
    assert!(error.is_err(), "a name was cut off");
    prepared.remove().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let nowhere = Mysql::open("mysql://nobody@127.0.0.1:1/notes").unwrap();
    let error = nowhere.prepare(&owner(), Schema::Check).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[test]
fn an_odd_prefix_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    for odd in ["", "Inbox_", "a`b_", "7up_", "inbox", "_"] {
        let database = Mysql::open("mysql://nobody@127.0.0.1:1/notes").unwrap();
        assert_eq!(database.with_prefix(odd).unwrap_err().kind(), Kind::Schema, "{odd}");
    }
}
