//! What only PostgreSQL can get wrong: transactions that end without being told to, sessions that the server cuts
//! off, constraints that speak up at the commit, and commits that are not synced.

#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tombolo_db::postgres::Postgres;
use tombolo_db::{Depth, Kind, Outbox, Owner, Publisher, RoundLimit, Schema};
use tombolo_event::{Event, ServiceName};
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
    database: Postgres,
    publisher: Publisher,
    server: PgConnectOptions,
    name: String,
}

async fn prepared() -> Option<Prepared> {
    let Ok(url) = std::env::var("TOMBOLO_TEST_POSTGRES") else {
        eprintln!("skipped: postgres: TOMBOLO_TEST_POSTGRES is not set; run cargo xtask test --install");
        return None;
    };
    let server = PgConnectOptions::from_str(&url).unwrap();
    let name = format!("tombolo_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect_with(&server).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
    let pool =
        PgPool::connect_lazy_with(server.clone().database(&name).options([("synchronous_commit", "off")]));
    let (database, service) = (Postgres::new(pool), ServiceName::new("notes").unwrap());
    database.prepare(&Owner { service: service.clone(), partitions: 2 }, Schema::Apply).await.unwrap();
    sqlx::query("CREATE TABLE effect (k text PRIMARY KEY)").execute(database.pool()).await.unwrap();
    let publisher = Publisher {
        service,
        declared: Arc::new([Noted::TYPE.to_owned()].into()),
        full: Arc::default(),
        wake: Arc::new(|| {}),
    };
    Some(Prepared { database, publisher, server, name })
}

impl Prepared {
    async fn remove(self) {
        self.database.pool().close().await;
        let mut connection = PgConnection::connect_with(&self.server).await.unwrap();
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
    }

    async fn effects(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM effect").fetch_one(self.database.pool()).await.unwrap()
    }

    async fn assert_nothing(&self) {
        assert_eq!(self.effects().await, 0, "state was kept");
        assert_eq!(self.database.depth().await.unwrap(), Depth::default(), "an event was kept");
    }

    async fn writing(&self) -> tombolo_db::postgres::Tx {
        let mut tx = self.database.begin(&self.publisher).await.unwrap();
        sqlx::query("INSERT INTO effect VALUES ('a')").execute(&mut *tx).await.unwrap();
        tx.publish(&Noted {}).unwrap();
        tx
    }
}

#[tokio::test]
async fn an_event_is_not_kept_without_its_transaction() {
    let Some(prepared) = prepared().await else { return };
    for ends in ["ROLLBACK", "ROLLBACK; BEGIN", "ROLLBACK AND CHAIN"] {
        let mut tx = prepared.writing().await;
        sqlx::raw_sql(ends).execute(&mut *tx).await.unwrap();
        assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned, "{ends}");
        prepared.assert_nothing().await;
    }
    // The users' COMMIT keeps the state; that its event is not there is said, not hidden.
    let mut tx = prepared.writing().await;
    sqlx::raw_sql("COMMIT").execute(&mut *tx).await.unwrap();
    assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Poisoned);
    assert_eq!(prepared.database.depth().await.unwrap(), Depth::default());
    prepared.remove().await;
}

#[tokio::test]
async fn a_deferred_constraint_that_fails_the_commit_leaves_nothing() {
    let Some(prepared) = prepared().await else { return };
    let make = "CREATE TABLE child (k text REFERENCES effect (k) DEFERRABLE INITIALLY DEFERRED)";
    sqlx::query(make).execute(prepared.database.pool()).await.unwrap();
    let mut tx = prepared.writing().await;
    sqlx::query("INSERT INTO child VALUES ('nobody')").execute(&mut *tx).await.unwrap();
    assert_eq!(tx.commit().await.unwrap_err().kind(), Kind::Database);
    prepared.assert_nothing().await;
    prepared.writing().await.commit().await.unwrap();
    assert_eq!(prepared.effects().await, 1);
    prepared.remove().await;
}

#[tokio::test]
async fn a_commit_with_events_is_synced_whatever_the_default_is() {
    let Some(prepared) = prepared().await else { return };
    let make = "CREATE TABLE seen (setting text);
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER look AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION look()";
    sqlx::raw_sql(make).execute(prepared.database.pool()).await.unwrap();
    prepared.writing().await.commit().await.unwrap();
    let seen = sqlx::query_scalar("SELECT setting FROM seen");
    let seen: Vec<String> = seen.fetch_all(prepared.database.pool()).await.unwrap();
    assert_eq!(seen, ["on"]);
    let after: String =
        sqlx::query_scalar("SHOW synchronous_commit").fetch_one(prepared.database.pool()).await.unwrap();
    assert_eq!(after, "off", "the users' own default is theirs again");
    prepared.remove().await;
}

#[tokio::test]
async fn a_transaction_that_stands_still_is_cut_off_and_is_nobodys_fault() {
    let Some(mut prepared) = prepared().await else { return };
    prepared.database = prepared.database.with_idle_in_transaction(Duration::from_millis(50));
    let mut tx = prepared.writing().await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    let began = Instant::now();
    loop {
        let alive = sqlx::query("SELECT 1 FROM pg_stat_activity WHERE pid = $1").bind(pid);
        if alive.fetch_optional(prepared.database.pool()).await.unwrap().is_none() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the server does not cut the session off");
    }
    let error = tx.commit().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    prepared.assert_nothing().await;
    prepared.remove().await;
}

#[tokio::test]
async fn a_relay_that_stands_still_in_a_round_does_not_block_its_successor() {
    let Some(prepared) = prepared().await else { return };
    prepared.writing().await.commit().await.unwrap();
    let holder = Uuid::now_v7();
    let lease = Duration::from_millis(400);
    let mut old = prepared.database.lead(holder, lease).await.unwrap().unwrap();
    // As a round that was stopped halfway: the leader's row is locked in a session with the same limit.
    let mut stopped = prepared.database.pool().begin().await.unwrap();
    let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {}", (lease / 2).as_millis());
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *stopped).await.unwrap();
    sqlx::query("SELECT 1 FROM tombolo.leader FOR UPDATE").execute(&mut *stopped).await.unwrap();
    let mut new = prepared.database.lead(holder, lease).await.unwrap().unwrap();
    assert_eq!(new.round(&[], RoundLimit::default()).await.unwrap().len(), 1);
    assert_eq!(old.renew().await.unwrap_err().kind(), Kind::Fenced);
    drop(stopped);
    prepared.remove().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let nowhere = Postgres::open("postgres://nobody@127.0.0.1:1/notes").unwrap();
    let owner = Owner { service: ServiceName::new("notes").unwrap(), partitions: 2 };
    let error = nowhere.prepare(&owner, Schema::Check).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[test]
fn an_odd_name_of_a_schema_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    for odd in ["", "Inbox", "a\"b", "7up", "a.b"] {
        let database = Postgres::open("postgres://nobody@127.0.0.1:1/notes").unwrap();
        assert_eq!(database.with_schema(odd).unwrap_err().kind(), Kind::Schema, "{odd}");
    }
}

/// The order in which the relay gives out two foreign rows of one key: the first is inserted early and waits, before the trigger
/// runs, until the second is committed. So it commits after that one.
#[cfg(feature = "mutants")]
async fn order_of_two(database: &Postgres) -> Vec<String> {
    use tombolo_db::ForeignParts;
    let outbox = ForeignParts { outbox: true, ..ForeignParts::default() };
    database.prepare_foreign(outbox, Schema::Apply).await.unwrap();
    let pool = database.pool().clone();
    let mut gate = pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut *gate).await.unwrap();
    let early = tokio::spawn(async move {
        // The value of the data is only there once the gate is open.
        let insert = "INSERT INTO tombolo.events (event_type, event_key, data)
            VALUES ('notes.noted.v1', 'a', (SELECT '\"early\"' FROM pg_advisory_xact_lock_shared(7)))";
        sqlx::query(insert).execute(&pool).await.unwrap();
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(database.pool()).await.unwrap() == 0 {
        look.tick().await;
    }
    let late =
        "INSERT INTO tombolo.events (event_type, event_key, data) VALUES ('notes.noted.v1', 'a', '\"late\"')";
    sqlx::query(late).execute(database.pool()).await.unwrap();
    sqlx::query("SELECT pg_advisory_unlock(7)").execute(&mut *gate).await.unwrap();
    early.await.unwrap();
    let mut leader = database.lead(Uuid::now_v7(), Duration::from_secs(60)).await.unwrap().unwrap();
    let rows = leader.round(&[], RoundLimit::default()).await.unwrap();
    let text = |row: &tombolo_db::OutboxRow| {
        let envelope = tombolo_event::Envelope::decode(row.bytes.clone()).unwrap();
        String::from_utf8_lossy(&envelope.data).into_owned()
    };
    rows.iter().map(text).collect()
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn a_position_is_given_after_the_lock_and_a_default_of_the_column_is_caught() {
    use tombolo_db::mutant::Mutant;
    let Some(sound) = prepared().await else { return };
    assert_eq!(order_of_two(&sound.database).await, ["\"late\"", "\"early\""], "the order of the commits");
    sound.remove().await;
    let Some(mut broken) = prepared().await else { return };
    broken.database = broken.database.with_mutant(Mutant::ForeignPositionByDefault);
    assert_eq!(
        order_of_two(&broken.database).await,
        ["\"early\"", "\"late\""],
        "the fault is not one any more"
    );
    broken.remove().await;
}

#[tokio::test]
async fn an_insert_is_heard_of_where_the_trigger_was_made_so() {
    use futures_util::StreamExt;
    use tombolo_db::ForeignParts;
    let Some(prepared) = prepared().await else { return };
    let database = &prepared.database;
    let quiet = ForeignParts { outbox: true, ..ForeignParts::default() };
    let notifying = ForeignParts { notify: true, ..quiet };
    database.prepare_foreign(quiet, Schema::Apply).await.unwrap();
    let error = database.prepare_foreign(notifying, Schema::Check).await.unwrap_err();
    assert!(error.to_string().contains("--notify"), "{error}");
    database.prepare_foreign(notifying, Schema::Apply).await.unwrap();
    database.prepare_foreign(notifying, Schema::Check).await.unwrap();
    let mut hints = database.foreign_hints().await.unwrap().unwrap();
    let insert =
        "INSERT INTO tombolo.events (event_type, event_key, data) VALUES ('notes.noted.v1', 'a', '1')";
    sqlx::query(insert).execute(database.pool()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), hints.next()).await.unwrap().unwrap();
    // Made again without it, nobody is notified any more.
    database.prepare_foreign(quiet, Schema::Apply).await.unwrap();
    assert!(database.prepare_foreign(notifying, Schema::Check).await.is_err());
    drop(hints);
    prepared.remove().await;
}

/// A program that may insert, and nothing else of Tombolo's, can publish.
#[tokio::test]
async fn a_program_needs_no_right_but_to_insert() {
    use tombolo_db::ForeignParts;
    let Some(prepared) = prepared().await else { return };
    let outbox = ForeignParts { outbox: true, ..ForeignParts::default() };
    prepared.database.prepare_foreign(outbox, Schema::Apply).await.unwrap();
    let role = format!("writer_{}", Uuid::now_v7().simple());
    let try_it = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA tombolo TO {role}; GRANT INSERT ON tombolo.events TO {role};
         SET ROLE {role};
         INSERT INTO tombolo.events (event_type, event_key, data) VALUES ('notes.noted.v1', 'a', '1');
         RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"
    );
    let mut connection = prepared.database.pool().acquire().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(try_it)).execute(&mut *connection).await.unwrap();
    drop(connection);
    assert!(prepared.database.foreign_waiting().await.unwrap().is_some());
    prepared.remove().await;
}
