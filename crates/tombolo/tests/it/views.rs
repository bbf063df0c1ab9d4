//! Views built beside the one that is read: on SQLite, and on PostgreSQL and MariaDB if there are servers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use reqwest::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::interval;
use tombolo::sqlite::{self, Sqlite};
use tombolo::view::{BuildStatus, Comparison, Stage, ViewStatus, ViewsStatus};
use tombolo::{App, Database, Event, Handled, Reactor, Running, Service, Settings, State, View, reject};
use tombolo_bus::Bus;

use crate::support::{Ground, eventually};

/// Events that are there before a rebuild begins.
const BEFORE: i64 = 2_000;
const KEYS: i64 = 20;
/// How often somebody writes, and how often somebody reads.
const TURN: Duration = Duration::from_millis(2);

const TABLES: &str = "
CREATE TABLE {entries} (account TEXT NOT NULL, amount BIGINT NOT NULL);
CREATE INDEX {entries_by_account} ON {entries} (account);
CREATE TABLE {balances} (account TEXT PRIMARY KEY, balance BIGINT NOT NULL);
";
const TABLES_2: &str = "
CREATE TABLE {entries} (account TEXT NOT NULL, amount BIGINT NOT NULL, doubled BIGINT NOT NULL);
CREATE TABLE {balances} (account TEXT PRIMARY KEY, balance BIGINT NOT NULL);
";

/// Money that came to an account: the n-th event overall has amount n, and what the fold makes of it depends on the order.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Paid {
    account: String,
    amount: i64,
}

impl Event for Paid {
    const TYPE: &'static str = "bank.paid.v1";
    fn key(&self) -> String {
        self.account.clone()
    }
}

/// A database in which the view can be kept.
trait Kept: Database {
    fn ledger(version: u32) -> View<Self>;
    fn balances(app: &App<Self>) -> impl Future<Output = Vec<(String, i64)>> + Send;
    fn entries(app: &App<Self>) -> impl Future<Output = i64> + Send;
}

async fn fold(event: Paid, tx: &mut sqlite::Tx) -> Handled {
    let entry = tx.sql("INSERT INTO {entries} (account, amount) VALUES (?, ?)")?;
    sqlx::query(entry).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
    let balance = tx.sql(
        "INSERT INTO {balances} (account, balance) VALUES (?, ?)
         ON CONFLICT (account) DO UPDATE SET balance = ({balances}.balance * 31 + excluded.balance) % 1000003",
    )?;
    sqlx::query(balance).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
    Ok(())
}

async fn fold_2(event: Paid, tx: &mut sqlite::Tx) -> Handled {
    let entry = tx.sql("INSERT INTO {entries} (account, amount, doubled) VALUES (?1, ?2, 2 * ?2)")?;
    sqlx::query(entry).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
    let balance = tx.sql(
        "INSERT INTO {balances} (account, balance) VALUES (?, ?)
         ON CONFLICT (account) DO UPDATE SET balance = ({balances}.balance * 31 + excluded.balance) % 1000003",
    )?;
    sqlx::query(balance).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
    Ok(())
}

impl Kept for Sqlite {
    fn ledger(version: u32) -> View<Self> {
        match version {
            1 => View::new("ledger", 1).tables(TABLES).on(fold),
            _ => View::new("ledger", 2).tables(TABLES_2).on(fold_2),
        }
    }

    async fn balances(app: &App<Self>) -> Vec<(String, i64)> {
        let view = app.view("ledger").await.unwrap();
        let read = view.sql("SELECT account, balance FROM {balances} ORDER BY account").unwrap();
        sqlx::query_as(read).fetch_all(app.database().pool()).await.unwrap()
    }

    async fn entries(app: &App<Self>) -> i64 {
        let view = app.view("ledger").await.unwrap();
        let read = view.sql("SELECT count(*) FROM {entries}").unwrap();
        sqlx::query_scalar(read).fetch_one(app.database().pool()).await.unwrap()
    }
}

#[cfg(all(feature = "postgres", feature = "nats"))]
mod on_postgres {
    use tombolo::postgres::{Postgres, Tx};

    use super::{App, Handled, Kept, Paid, TABLES, TABLES_2, View};

    async fn fold(event: Paid, tx: &mut Tx) -> Handled {
        let entry = tx.sql("INSERT INTO {entries} (account, amount) VALUES ($1, $2)")?;
        sqlx::query(entry).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        let balance = tx.sql(
            "INSERT INTO {balances} AS b (account, balance) VALUES ($1, $2)
             ON CONFLICT (account) DO UPDATE SET balance = (b.balance * 31 + excluded.balance) % 1000003",
        )?;
        sqlx::query(balance).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        Ok(())
    }

    async fn fold_2(event: Paid, tx: &mut Tx) -> Handled {
        let entry = tx.sql("INSERT INTO {entries} (account, amount, doubled) VALUES ($1, $2, 2 * $2)")?;
        sqlx::query(entry).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        let balance = tx.sql(
            "INSERT INTO {balances} AS b (account, balance) VALUES ($1, $2)
             ON CONFLICT (account) DO UPDATE SET balance = (b.balance * 31 + excluded.balance) % 1000003",
        )?;
        sqlx::query(balance).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        Ok(())
    }

    impl Kept for Postgres {
        fn ledger(version: u32) -> View<Self> {
            match version {
                1 => View::new("ledger", 1).tables(TABLES).on(fold),
                _ => View::new("ledger", 2).tables(TABLES_2).on(fold_2),
            }
        }

        async fn balances(app: &App<Self>) -> Vec<(String, i64)> {
            let view = app.view("ledger").await.unwrap();
            let read =
                view.sql("SELECT account, balance FROM {balances} ORDER BY account COLLATE \"C\"").unwrap();
            sqlx::query_as(read).fetch_all(app.database().pool()).await.unwrap()
        }

        async fn entries(app: &App<Self>) -> i64 {
            let view = app.view("ledger").await.unwrap();
            let read = view.sql("SELECT count(*) FROM {entries}").unwrap();
            sqlx::query_scalar(read).fetch_one(app.database().pool()).await.unwrap()
        }
    }
}

#[cfg(feature = "mysql")]
mod on_mariadb {
    use tombolo::mysql::{Mysql, Tx};

    use super::{App, Handled, Kept, Paid, View};

    const TABLES: &str = "
CREATE TABLE {entries} (account varchar(100) NOT NULL, amount bigint NOT NULL);
CREATE INDEX {entries_by_account} ON {entries} (account);
CREATE TABLE {balances} (account varchar(100) PRIMARY KEY, balance bigint NOT NULL);
";
    const TABLES_2: &str = "
CREATE TABLE {entries} (account varchar(100) NOT NULL, amount bigint NOT NULL, doubled bigint NOT NULL);
CREATE TABLE {balances} (account varchar(100) PRIMARY KEY, balance bigint NOT NULL);
";

    async fn balance(event: &Paid, tx: &mut Tx) -> Handled {
        let balance = tx.sql(
            "INSERT INTO {balances} (account, balance) VALUES (?, ?)
             ON DUPLICATE KEY UPDATE balance = (balance * 31 + VALUES(balance)) % 1000003",
        )?;
        sqlx::query(balance).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        Ok(())
    }

    async fn fold(event: Paid, tx: &mut Tx) -> Handled {
        let entry = tx.sql("INSERT INTO {entries} (account, amount) VALUES (?, ?)")?;
        sqlx::query(entry).bind(&event.account).bind(event.amount).execute(&mut **tx).await?;
        balance(&event, tx).await
    }

    async fn fold_2(event: Paid, tx: &mut Tx) -> Handled {
        let entry = tx.sql("INSERT INTO {entries} (account, amount, doubled) VALUES (?, ?, ?)")?;
        let entry = sqlx::query(entry).bind(&event.account).bind(event.amount).bind(2 * event.amount);
        entry.execute(&mut **tx).await?;
        balance(&event, tx).await
    }

    impl Kept for Mysql {
        fn ledger(version: u32) -> View<Self> {
            match version {
                1 => View::new("ledger", 1).tables(TABLES).on(fold),
                _ => View::new("ledger", 2).tables(TABLES_2).on(fold_2),
            }
        }

        async fn balances(app: &App<Self>) -> Vec<(String, i64)> {
            let view = app.view("ledger").await.unwrap();
            let read = view.sql("SELECT account, balance FROM {balances} ORDER BY BINARY account").unwrap();
            sqlx::query_as(read).fetch_all(app.database().pool()).await.unwrap()
        }

        async fn entries(app: &App<Self>) -> i64 {
            let view = app.view("ledger").await.unwrap();
            let read = view.sql("SELECT COUNT(*) FROM {entries}").unwrap();
            sqlx::query_scalar(read).fetch_one(app.database().pool()).await.unwrap()
        }
    }
}

/// A bank that publishes, and a database for the service that keeps the view.
struct Bank<D> {
    ground: Ground,
    bank: Running<Sqlite>,
    database: D,
    client: Client,
    paid: AtomicI64,
}

/// The banks of the engines that are there.
async fn on_sqlite() -> Bank<Sqlite> {
    let ground = Ground::new();
    let database = ground.database("ledger");
    Bank::new(ground, database).await
}

#[cfg(all(feature = "postgres", feature = "nats"))]
async fn on_postgres() -> Option<Bank<tombolo::postgres::Postgres>> {
    let database = crate::engines::postgres().await?;
    Some(Bank::new(Ground::new(), database).await)
}

#[cfg(not(all(feature = "postgres", feature = "nats")))]
async fn on_postgres() -> Option<Bank<Sqlite>> {
    None
}

#[cfg(feature = "mysql")]
async fn on_mariadb() -> Option<Bank<tombolo::mysql::Mysql>> {
    let database = crate::mariadb::mariadb().await?;
    Some(Bank::new(Ground::new(), database).await)
}

#[cfg(not(feature = "mysql"))]
async fn on_mariadb() -> Option<Bank<Sqlite>> {
    None
}

impl<D: Kept> Bank<D> {
    async fn new(ground: Ground, database: D) -> Self {
        let service = Service::new("bank", ground.database("bank")).publishes::<Paid>();
        let bank = ground.start(service).await;
        Self { ground, bank, database, client: Client::new(), paid: AtomicI64::new(0) }
    }

    /// The service that keeps the view, with its versions.
    fn service(&self, view: View<D>) -> Service<D> {
        Service::new("books", self.database.clone()).view(view)
    }

    async fn start(&self, service: Service<D>) -> Running<D> {
        let bus = Arc::clone(&self.ground.bus) as Arc<dyn Bus>;
        // Numbered, so that it takes over at once what a crashed life of it held.
        let settings = Settings { replica: Some(1), ..Settings::default() };
        service.bus(bus).start(settings).await.unwrap()
    }

    /// Pays `count` times, in one transaction.
    async fn pay(&self, count: i64) {
        let mut tx = self.bank.app.begin().await.unwrap();
        for _ in 0..count {
            let amount = self.paid.fetch_add(1, Ordering::SeqCst) + 1;
            tx.publish(&Paid { account: format!("a{}", amount % KEYS), amount }).unwrap();
        }
        tx.commit().await.unwrap();
    }

    fn paid(&self) -> i64 {
        self.paid.load(Ordering::SeqCst)
    }

    /// What the view must be: the fold of everything that was paid.
    fn expected(&self) -> Vec<(String, i64)> {
        let mut balances = BTreeMap::new();
        for amount in 1..=self.paid() {
            let account = balances.entry(format!("a{}", amount % KEYS));
            account.and_modify(|balance| *balance = (*balance * 31 + amount) % 1_000_003).or_insert(amount);
        }
        balances.into_iter().collect()
    }

    async fn until_current(&self, app: &App<D>) {
        eventually("every payment in the view", || async { D::entries(app).await == self.paid() }).await;
        assert_eq!(D::balances(app).await, self.expected(), "the view is not the fold: I5");
    }

    /// Asks as an operator does, and waits for the outcome: whether it was done, and what is said.
    async fn ask(&self, books: &Running<D>, mut action: Value) -> (bool, String) {
        action["subscription"] = "view/ledger".into();
        action["asked_by"] = "test".into();
        let url = format!("{}/tombolo/requests", books.url);
        let asked: Value = self.client.post(&url).json(&action).send().await.unwrap().json().await.unwrap();
        let id = asked["requests"][0].as_str().unwrap_or_else(|| panic!("refused: {asked}")).to_owned();
        let find = async || -> Value {
            self.client.get(format!("{url}/{id}")).send().await.unwrap().json().await.unwrap()
        };
        eventually("an outcome", || async { !find().await["outcome"].is_null() }).await;
        let outcome = find().await["outcome"].clone();
        (outcome["done"] == true, outcome["text"].as_str().unwrap().to_owned())
    }

    async fn done(&self, books: &Running<D>, action: Value) {
        let (done, text) = self.ask(books, action).await;
        assert!(done, "{text}");
    }

    async fn status(&self, books: &Running<D>) -> ViewStatus {
        let url = format!("{}/tombolo/views", books.url);
        let status: ViewsStatus = self.client.get(&url).send().await.unwrap().json().await.unwrap();
        status.views.into_iter().next().unwrap()
    }

    async fn build(&self, books: &Running<D>, id: &str) -> Option<BuildStatus> {
        self.status(books).await.builds.into_iter().find(|build| build.build == id)
    }

    async fn until_live(&self, books: &Running<D>, build: &str) {
        let is_live = || async { books.app.view("ledger").await.unwrap().build().to_string() == build };
        eventually("a switch", is_live).await;
    }
}

async fn a_rebuild_under_writes<D: Kept>(bank: Bank<D>) {
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.pay(BEFORE).await;
    bank.until_current(&books.app).await;
    let (bank, books, over) = (Arc::new(bank), Arc::new(books), Arc::new(AtomicBool::new(false)));
    let writing = tokio::spawn({
        let (bank, over) = (Arc::clone(&bank), Arc::clone(&over));
        async move {
            let mut turns = interval(TURN);
            while !over.load(Ordering::SeqCst) {
                turns.tick().await;
                bank.pay(3).await;
            }
        }
    });
    let reading = tokio::spawn({
        let (books, over) = (Arc::clone(&books), Arc::clone(&over));
        async move {
            let (mut reads, mut turns) = (0, interval(TURN));
            while !over.load(Ordering::SeqCst) {
                turns.tick().await;
                let seen = D::entries(&books.app).await;
                assert!(seen >= BEFORE, "a reader saw {seen} of at least {BEFORE}: half of a view");
                reads += 1;
            }
            reads
        }
    });
    bank.done(&books, json!({ "action": "rebuild", "switch": true })).await;
    bank.until_live(&books, "v1-b2").await;
    let at_switch = bank.paid();
    eventually("writes after the switch", || async { bank.paid() > at_switch + 30 }).await;
    over.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    assert!(reading.await.unwrap() > 0);
    bank.until_current(&books.app).await;
    let status = bank.status(&books).await;
    assert_eq!((status.epoch, status.builds.len()), (2, 2));
    assert_eq!((status.builds[0].stage, status.builds[1].stage), (Stage::Retired, Stage::Live));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_writes_ends_in_a_switch_and_no_reader_sees_half_of_it() {
    a_rebuild_under_writes(on_sqlite().await).await;
    if let Some(bank) = on_postgres().await {
        a_rebuild_under_writes(bank).await;
    }
    if let Some(bank) = on_mariadb().await {
        a_rebuild_under_writes(bank).await;
    }
}

async fn a_crash_in_the_middle<D: Kept>(bank: Bank<D>) {
    bank.pay(BEFORE).await;
    bank.pay(BEFORE).await;
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.until_current(&books.app).await;
    bank.done(&books, json!({ "action": "rebuild" })).await;
    let at = async |books: &Running<D>| {
        let cursors = books.app.database().cursors().await.unwrap();
        let own = cursors.iter().filter(|cursor| cursor.subscription == "ledger-v1-b2");
        own.map(|cursor| cursor.cursor.sequence as i64).sum::<i64>()
    };
    eventually("a build that has begun", || async { at(&books).await > 0 }).await;
    // Dropped, its tasks end where they are, as in a crash.
    drop(books);
    let books = bank.start(bank.service(D::ledger(1))).await;
    let (done, text) = bank.ask(&books, json!({ "action": "switch", "to": "v1-b9" })).await;
    assert!(!done && text.contains("it has: v1-b1, v1-b2"), "{text}");
    eventually("a build that is ready", || async {
        bank.build(&books, "v1-b2").await.is_some_and(|build| build.behind_live == Some(0))
    })
    .await;
    bank.done(&books, json!({ "action": "switch", "to": "v1-b2" })).await;
    bank.until_current(&books.app).await;
    assert_eq!(at(&books).await, bank.paid(), "the build is a subscription of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_after_a_crash_in_its_middle() {
    a_crash_in_the_middle(on_sqlite().await).await;
    if let Some(bank) = on_postgres().await {
        a_crash_in_the_middle(bank).await;
    }
    if let Some(bank) = on_mariadb().await {
        a_crash_in_the_middle(bank).await;
    }
}

async fn a_new_version<D: Kept>(bank: Bank<D>) {
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.pay(300).await;
    bank.until_current(&books.app).await;
    books.shutdown().await;
    let books = bank.start(bank.service(D::ledger(2).replaces(D::ledger(1)))).await;
    bank.until_live(&books, "v2-b1").await;
    assert_eq!(books.app.view("ledger").await.unwrap().version(), 2);
    bank.pay(20).await;
    bank.until_current(&books.app).await;

    // Back, to the older version, which was kept current; it stays there although version 2 is ready.
    bank.done(&books, json!({ "action": "switch", "to": "v1-b1" })).await;
    assert_eq!(books.app.view("ledger").await.unwrap().version(), 1);
    bank.pay(20).await;
    bank.until_current(&books.app).await;
    let (done, text) = bank.ask(&books, json!({ "action": "drop", "build": "v1-b1" })).await;
    assert!(!done && text.contains("is the live one"), "{text}");
    assert_eq!(bank.status(&books).await.epoch, 3);

    // A program that is rolled back reads what it knows, whatever is live.
    bank.done(&books, json!({ "action": "switch", "to": "v2-b1" })).await;
    books.shutdown().await;
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.pay(20).await;
    assert_eq!(books.app.view("ledger").await.unwrap().version(), 1);
    bank.until_current(&books.app).await;
    assert_eq!(bank.status(&books).await.live, "v2-b1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_replaces_another_is_switched_to_by_itself_and_back_by_request() {
    a_new_version(on_sqlite().await).await;
    if let Some(bank) = on_postgres().await {
        a_new_version(bank).await;
    }
    if let Some(bank) = on_mariadb().await {
        a_new_version(bank).await;
    }
}

async fn a_drop<D: Kept>(bank: Bank<D>) {
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.pay(50).await;
    bank.until_current(&books.app).await;
    bank.done(&books, json!({ "action": "rebuild", "switch": true })).await;
    bank.until_live(&books, "v1-b2").await;
    let dropped = || async { bank.ask(&books, json!({ "action": "drop", "build": "v1-b1" })).await.0 };
    eventually("a drop, once nobody may read it any more", dropped).await;
    let status = bank.status(&books).await;
    assert_eq!((status.builds.len(), status.builds[0].build.as_str()), (1, "v1-b2"));
    let cursors = books.app.database().cursors().await.unwrap();
    assert!(cursors.iter().all(|cursor| cursor.subscription == "ledger-v1-b2"), "{cursors:?}");
    bank.pay(50).await;
    bank.until_current(&books.app).await;
    books.shutdown().await;
    let books = bank.start(bank.service(D::ledger(1))).await;
    bank.until_current(&books.app).await;
    assert_eq!(bank.status(&books).await.builds.len(), 1, "a dropped build was made again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_build_is_gone_for_good() {
    a_drop(on_sqlite().await).await;
    if let Some(bank) = on_postgres().await {
        a_drop(bank).await;
    }
    if let Some(bank) = on_mariadb().await {
        a_drop(bank).await;
    }
}

/// Cannot fold the amount 7, except in the first build.
async fn fold_unless_odd(event: Paid, tx: &mut sqlite::Tx) -> Handled {
    let is_first = tx.sql("SELECT 1 FROM {entries}")?.as_str().contains("v1_b1");
    if event.amount == 7 && !is_first {
        return Err(reject("seven is odd"));
    }
    fold(event, tx).await
}

#[tokio::test]
async fn a_build_with_parked_keys_is_switched_to_only_if_that_is_accepted() {
    let bank = on_sqlite().await;
    let view = View::new("ledger", 1).tables(TABLES).on(fold_unless_odd);
    let books = bank.start(bank.service(view)).await;
    bank.pay(30).await;
    bank.until_current(&books.app).await;
    bank.done(&books, json!({ "action": "rebuild", "switch": true })).await;
    eventually("a build with a parked key", || async {
        let build = bank.build(&books, "v1-b2").await;
        build.is_some_and(|build| build.behind_live == Some(0) && build.parked_keys == 1)
    })
    .await;
    let (done, text) = bank.ask(&books, json!({ "action": "switch", "to": "v1-b2" })).await;
    assert!(!done && text.contains("keys of build v1-b2 that are parked: 1"), "{text}");
    assert_eq!(bank.status(&books).await.live, "v1-b1", "it was switched to by itself");
    let url = format!("{}/tombolo/views/ledger/compare", books.url);
    let compared: Comparison = bank.client.get(&url).send().await.unwrap().json().await.unwrap();
    let entries = compared.tables.iter().find(|table| table.table == "entries").unwrap();
    assert_eq!((entries.old_rows, entries.new_rows), (Some(30), Some(28)), "the key's events wait together");
    assert_eq!(entries.differences.len(), 2);
    assert_eq!(entries.differences[0].new, None);
    bank.done(&books, json!({ "action": "switch", "to": "v1-b2", "accept_parked": true })).await;
    assert_eq!(Sqlite::entries(&books.app).await, 28);
}

#[derive(Clone, Default)]
struct Sent(Arc<AtomicI64>);

async fn send(_event: Paid, State(sent): State<Sent>, _tx: &mut sqlite::Tx) -> Handled {
    sent.0.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

#[tokio::test]
async fn reactors_do_not_run_in_a_rebuild() {
    let bank = on_sqlite().await;
    let sent = Sent::default();
    let service = bank.service(Sqlite::ledger(1)).state(sent.clone());
    let books = bank.start(service.react(Reactor::from_start("send").on(send))).await;
    bank.pay(100).await;
    bank.until_current(&books.app).await;
    eventually("a message for each payment", || async { sent.0.load(Ordering::SeqCst) == 100 }).await;
    for build in ["v1-b2", "v1-b3", "v1-b4"] {
        bank.done(&books, json!({ "action": "rebuild", "switch": true })).await;
        bank.until_live(&books, build).await;
    }
    bank.until_current(&books.app).await;
    assert_eq!(sent.0.load(Ordering::SeqCst), 100, "a message was sent again");
}

async fn fold_elsewhere(_event: Paid, tx: &mut sqlite::Tx) -> Handled {
    sqlx::query(tx.sql("INSERT INTO {entries} (account) VALUES ('a')")?).execute(&mut **tx).await?;
    Ok(())
}

#[tokio::test]
async fn a_view_without_tables_of_its_own_says_why_it_cannot_be_rebuilt() {
    let bank = on_sqlite().await;
    let books = bank.start(bank.service(View::new("ledger", 1).on(fold_elsewhere))).await;
    let (done, text) = bank.ask(&books, json!({ "action": "rebuild" })).await;
    assert!(!done && text.contains("`.tables(…)`"), "{text}");
    assert!(!bank.status(&books).await.rebuildable);
    let (pool, view) = (books.app.database().pool(), books.app.view("ledger").await.unwrap());
    let error = view.sql("SELECT 1 FROM {entries}").unwrap_err();
    assert!(error.to_string().contains("no table {entries}"), "{error}");
    drop((pool, view));
}

#[tokio::test]
async fn other_tables_under_the_same_version_are_refused_at_the_start() {
    let bank = on_sqlite().await;
    bank.start(bank.service(Sqlite::ledger(1))).await.shutdown().await;
    let other = bank.service(View::new("ledger", 1).tables(TABLES_2).on(fold_2));
    let bus = Arc::clone(&bank.ground.bus) as Arc<dyn Bus>;
    let Err(refused) = other.bus(bus).start(Settings::default()).await else { panic!("it was accepted") };
    assert!(refused.to_string().contains("give the view version 2"), "{refused}");
}

/// A second replica hears of a build that the first one made, and serves it when the first one is gone.
#[tokio::test]
async fn every_replica_keeps_and_reads_the_same_build() {
    let bank = on_sqlite().await;
    let one = bank.start(bank.service(Sqlite::ledger(1))).await;
    let other = bank.start(bank.service(Sqlite::ledger(1))).await;
    bank.pay(100).await;
    bank.until_current(&other.app).await;
    bank.done(&one, json!({ "action": "rebuild", "switch": true })).await;
    bank.until_live(&one, "v1-b2").await;
    eventually("the other replica to hear of it", || async {
        other.app.view("ledger").await.unwrap().build().to_string() == "v1-b2"
    })
    .await;
    one.shutdown().await;
    bank.pay(100).await;
    bank.until_current(&other.app).await;
    assert!(tokio::time::timeout(Duration::from_secs(5), other.shutdown()).await.is_ok());
}
