//! `tombolo relay` and `tombolo deliver` as programs in another language use them: killed in between, and nothing is lost, doubled or
//! out of order.
//!
//! Invariant of what is tested: the programs know nothing of Tombolo but the SQL and the headers that `docs/outbox.md` shows.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, PgConnection, PgPool, SqliteConnection};
use tokio::net::TcpListener;

use crate::stage::{BOUND, Stage, get, signal, text, until, until_within};
use crate::topics::Served;

/// A process of the test, killed with it.
struct Process(Child);

impl Process {
    /// A command of the binary, its lines in the file `out`.
    fn start(stage: &Stage, out: &str, arguments: &[&str]) -> Self {
        let file = File::options().create(true).append(true).open(stage.path(out)).unwrap();
        let mut command = stage.command(arguments);
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn interrupt(mut self) -> Option<i32> {
        signal(self.0.id(), Signal::SIGINT);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn relay(stage: &Stage, database: &str, bus: &str) -> Process {
    Process::start(stage, "relay", &["relay", "--database", database, "--service", "orders", "--bus", bus])
}

fn deliver(stage: &Stage, database: &str, bus: &str, to: &str) -> Process {
    let of = ["deliver", "--database", database, "--service", "mail", "--subscription", "confirm"];
    let from = ["--topic", "orders", "--to", to, "--bus", bus, "--from", "start"];
    Process::start(stage, "deliver", &[&of[..], &from].concat())
}

/// The topic's events, as customer and order, by customer in order.
fn read(stage: &Stage, bus: &str) -> Vec<(String, String)> {
    let output = stage.run(&["topics", "read", "orders", "--bus", bus]);
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        (text(&event["subject"]), text(&event["data"]["order"]))
    };
    text(&output.stdout).lines().map(event).collect()
}

/// Fails unless these are the orders 0 to `count`, each once, and those of each customer in order.
fn assert_once_and_in_order(found: &[(String, String)], count: usize) {
    let mut by_customer: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (customer, order) in found {
        let number = order.strip_prefix("order-").unwrap().parse().unwrap();
        by_customer.entry(customer).or_default().push(number);
    }
    assert_eq!(found.len(), count, "{by_customer:?}");
    for (customer, orders) in by_customer {
        let first: usize = customer.strip_prefix("customer-").unwrap().parse().unwrap();
        let expected: Vec<usize> = (first..count).step_by(5).collect();
        assert_eq!(orders, expected, "of {customer}");
    }
}

async fn mails(database: &str) -> Vec<(String, String)> {
    let mut connection = SqliteConnection::connect(database).await.unwrap();
    sqlx::query_as("SELECT customer, about FROM mail ORDER BY rowid")
        .fetch_all(&mut connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_publishes_and_applies_each_event_once_whatever_is_killed() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: what Python's sqlite3 does is tested with it, and there is no python3");
        return;
    }
    let stage = Stage::with_users();
    let python = |file: &str| {
        let mut python = Command::new("python3");
        python.arg(format!("{}/tests/tombolo/foreign/{file}", env!("CARGO_MANIFEST_DIR")));
        python.current_dir(stage.path("."));
        python
    };
    let publish = |from: &str, to: &str| {
        assert!(python("publish.py").args(["orders.db", from, to]).status().unwrap().success());
    };
    stage.must(&["schema", "apply", "sqlite:orders.db", "--service", "orders", "--outbox"]);
    stage.must(&["schema", "apply", "sqlite:mail.db", "--service", "mail", "--inbox"]);
    let served = Served::over(&stage, "log");
    let mut mail = SqliteConnection::connect(stage.path("mail.db").to_str().unwrap()).await.unwrap();
    sqlx::query("CREATE TABLE mail (customer TEXT, about TEXT)").execute(&mut mail).await.unwrap();
    publish("0", "30");
    let first = relay(&stage, "sqlite:orders.db", &served.url);
    until("the relay ships", || !read(&stage, &served.url).is_empty());
    first.kill();
    publish("30", "60");
    let second = relay(&stage, "sqlite:orders.db", &served.url);
    until("everything is shipped", || read(&stage, &served.url).len() >= 60);
    assert_once_and_in_order(&read(&stage, &served.url), 60);

    let mut applying = python("apply.py")
        .args(["mail.db", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut port = String::new();
    BufReader::new(applying.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let applying = Process(applying);
    let (database, to) = ("sqlite:mail.db", format!("http://127.0.0.1:{}/events", port.trim()));
    let first = deliver(&stage, database, &served.url, &to);
    let path = stage.path("mail.db").to_str().unwrap().to_owned();
    until_within(BOUND, "some of it is applied", || async { mails(&path).await.len() > 5 }).await;
    first.kill();
    let third = deliver(&stage, database, &served.url, &to);
    publish("60", "70");
    until_within(BOUND, "all of it is applied", || async { mails(&path).await.len() >= 70 }).await;
    assert_once_and_in_order(&mails(&path).await, 70);
    assert_eq!((second.interrupt(), third.interrupt()), (Some(0), Some(0)), "Ctrl-C is no failure");
    drop(applying);
}

#[test]
fn the_page_shows_the_programs_that_are_tested() {
    let root = env!("CARGO_MANIFEST_DIR");
    let page = fs::read_to_string(format!("{root}/../../docs/outbox.md")).unwrap();
    for program in ["publish.py", "apply.py"] {
        let program = fs::read_to_string(format!("{root}/tests/tombolo/foreign/{program}")).unwrap();
        assert!(
            page.contains(program.trim()),
            "docs/outbox.md does not show the program as it is tested:\n{program}"
        );
    }
    let stage = Stage::with_users();
    for kind in ["postgres", "mysql", "sqlite"] {
        for part in ["--outbox", "--inbox"] {
            let printed = stage.must(&["schema", "print", kind, part]);
            assert!(
                page.contains(printed.trim()),
                "docs/outbox.md has other SQL than `schema print {kind} {part}`"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_apply_is_named_and_nothing_is_stepped_over() {
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    for database in ["sqlite:orders.db", "sqlite:mail.db"] {
        let service = if database.contains("orders") { "orders" } else { "mail" };
        stage.must(&["schema", "apply", database, "--service", service, "--outbox", "--inbox"]);
    }
    let mut orders = SqliteConnection::connect(stage.path("orders.db").to_str().unwrap()).await.unwrap();
    let bad = "INSERT INTO tombolo_events (event_type, event_key, data) VALUES ('orders.placed.v1', 'customer-0', ?)";
    sqlx::query(bad).bind(r#"{"order": "order-0"}"#).execute(&mut orders).await.unwrap();
    sqlx::query(bad).bind("{").execute(&mut orders).await.unwrap();
    let shipping = relay(&stage, "sqlite:orders.db", &served.url);
    until("the good row is shipped", || read(&stage, &served.url).len() == 1);
    let said = || fs::read_to_string(stage.path("relay")).unwrap();
    until("the bad row is parked by name", || said().contains("is parked"));
    assert!(said().contains("customer-0") && said().contains("its data is no JSON"), "{}", said());
    let metrics = said().split_once("metrics on ").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let url = metrics.strip_suffix("/metrics").unwrap();
    until("the metrics tell of it", || {
        get(url, "/metrics").contains("outbox_parked_rows{service=\"orders\"} 1")
    });
    // It answers 200 to everything, and applies nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}/events", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        axum::serve(listener, Router::new().route("/events", post(async || "thank you"))).await.unwrap();
    });
    let delivering = deliver(&stage, "sqlite:mail.db", &served.url, &to);
    let said = || fs::read_to_string(stage.path("deliver")).unwrap();
    until("it is named", || said().contains("the cursor of subscription confirm is still before it"));
    assert!(said().contains(&to) && said().contains("event 1 (orders.placed.v1)"), "{}", said());
    drop((delivering, shipping));
    serving.abort();
}

#[test]
fn what_is_missing_is_said_with_the_command_that_makes_it() {
    let stage = Stage::with_users();
    let bus = "tombolo://127.0.0.1:1";
    let relay = ["relay", "--database", "sqlite:orders.db", "--service", "orders", "--bus", bus];
    assert!(stage.refused(&relay, 3).contains("tombolo schema apply"));
    stage.must(&["schema", "apply", "sqlite:orders.db", "--service", "orders"]);
    assert!(stage.refused(&relay, 1).contains("tombolo schema apply --outbox"));
    stage.refused(&["schema", "check", "sqlite:orders.db", "--outbox"], 1);
    let said = stage.refused(&[&relay[..], &["--notify"]].concat(), 1);
    assert!(said.contains("SQLite has no NOTIFY"), "{said}");
    stage.must(&["schema", "apply", "sqlite:orders.db", "--service", "orders", "--outbox"]);
    stage.must(&["schema", "check", "sqlite:orders.db", "--outbox"]);
    let other = ["relay", "--database", "sqlite:orders.db", "--service", "users", "--bus", bus];
    assert!(stage.refused(&other, 1).contains("belongs to service \"orders\""));
    let deliver = ["deliver", "--database", "sqlite:orders.db", "--service", "orders", "--subscription", "s"];
    let from = ["--topic", "t", "--bus", bus, "--from", "now", "--to"];
    let said = stage.refused(&[&deliver[..], &from, &["http://127.0.0.1:1/x"]].concat(), 1);
    assert!(said.contains("tombolo schema apply --inbox"), "{said}");
    stage.must(&["schema", "apply", "sqlite:orders.db", "--service", "orders", "--inbox"]);
    let said = stage.refused(&[&deliver[..], &from, &["ftp://127.0.0.1/x"]].concat(), 2);
    assert!(said.contains("http://host:port/path"), "{said}");
    let documents = ["relay", "--database", "documents:o.redb", "--service", "orders", "--bus", bus];
    assert!(stage.refused(&documents, 2).contains("no SQL"));
}

/// A real server: how it is reached, and a database of a name of its own on it.
async fn server(variable: &str, name: &str) -> Option<(String, String)> {
    let Some(url) = std::env::var(variable).ok().filter(|url| !url.is_empty()) else {
        eprintln!("skipped: {variable} is not set; run cargo xtask test --install");
        return None;
    };
    let name = format!("cli_{name}_{}", std::process::id());
    run(&url, &format!("CREATE DATABASE {name}")).await;
    let (root, _) = url.rsplit_once('/').unwrap();
    Some((format!("{root}/{name}"), name))
}

async fn run(url: &str, sql: &str) {
    if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = MySqlConnection::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers[name].to_str().unwrap().to_owned()
}

fn number(headers: &HeaderMap, name: &str) -> i64 {
    header(headers, name).parse().unwrap()
}

fn answer(applied: Result<(), sqlx::Error>) -> StatusCode {
    if applied.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::CONFLICT }
}

async fn apply_in_postgres(pool: PgPool, headers: HeaderMap, body: String) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let insert = sqlx::query("INSERT INTO mail (customer, about) VALUES ($1, $2::json ->> 'order')");
    insert.bind(header(&headers, "ce-subject")).bind(body).execute(&mut *transaction).await?;
    let apply = sqlx::query("SELECT tombolo.apply($1, $2, $3::integer, $4, $5::uuid)");
    let apply = apply.bind(header(&headers, "tombolo-subscription")).bind(header(&headers, "tombolo-topic"));
    let apply = apply.bind(number(&headers, "tombolo-partition")).bind(number(&headers, "tombolo-sequence"));
    apply.bind(header(&headers, "ce-id")).execute(&mut *transaction).await?;
    transaction.commit().await
}

async fn apply_in_mariadb(pool: MySqlPool, headers: HeaderMap, body: String) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let insert = sqlx::query("INSERT INTO mail (customer, about) VALUES (?, JSON_VALUE(?, '$.order'))");
    insert.bind(header(&headers, "ce-subject")).bind(body).execute(&mut *transaction).await?;
    let apply = sqlx::query("CALL tombolo_apply(?, ?, ?, ?, ?)");
    let apply = apply.bind(header(&headers, "tombolo-subscription")).bind(header(&headers, "tombolo-topic"));
    let apply = apply.bind(number(&headers, "tombolo-partition")).bind(number(&headers, "tombolo-sequence"));
    apply.bind(header(&headers, "ce-id")).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// The same path in one database of a server: what is published there is delivered there, with both processes killed on the way.
async fn there_and_back(
    url: &str,
    table: &str,
    receiver: Router,
    mails: impl AsyncFn() -> Vec<(String, String)>,
) {
    const EVENTS: usize = 60;
    let stage = Stage::with_users();
    let served = Served::over(&stage, "log");
    // The service publishes as `orders`, and handles its own events: one database, as a service has one.
    stage.must(&["schema", "apply", url, "--service", "orders", "--outbox", "--inbox"]);
    run(url, "CREATE TABLE mail (nth serial, customer varchar(40), about varchar(40))").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}/events", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, receiver).await.unwrap() });
    let of = ["deliver", "--database", url, "--service", "orders", "--subscription", "confirm"];
    let of = [&of[..], &["--topic", "orders", "--to", &to, "--bus", &served.url, "--from", "start"]].concat();
    let (mut shipping, mut delivering) =
        (relay(&stage, url, &served.url), Process::start(&stage, "deliver", &of));
    for event in 0..EVENTS {
        let insert = format!(
            "INSERT INTO {table} (event_type, event_key, data)
             VALUES ('orders.placed.v1', 'customer-{}', '{{\"order\": \"order-{event}\"}}')",
            event % 5
        );
        run(url, &insert).await;
        if event % 20 == 15 {
            shipping.kill();
            shipping = relay(&stage, url, &served.url);
            delivering.kill();
            delivering = Process::start(&stage, "deliver", &of);
        }
    }
    until_within(BOUND, "everything is applied", || async { mails().await.len() >= EVENTS }).await;
    assert_once_and_in_order(&read(&stage, &served.url), EVENTS);
    assert_once_and_in_order(&mails().await, EVENTS);
    assert_eq!((shipping.interrupt(), delivering.interrupt()), (Some(0), Some(0)), "Ctrl-C is no failure");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_published_from_and_applied_to_whatever_is_killed() {
    let Some((url, name)) = server("TOMBOLO_TEST_POSTGRES", "foreign").await else { return };
    let pool = PgPool::connect_lazy(&url).unwrap();
    let with = pool.clone();
    let apply = async move |headers: HeaderMap, body: String| {
        answer(apply_in_postgres(with.clone(), headers, body).await)
    };
    let receiver = Router::new().route("/events", post(apply));
    let mails = async || {
        let mails = sqlx::query_as("SELECT customer, about FROM mail ORDER BY nth");
        mails.fetch_all(&pool).await.unwrap()
    };
    there_and_back(&url, "tombolo.events", receiver, mails).await;
    run(&std::env::var("TOMBOLO_TEST_POSTGRES").unwrap(), &format!("DROP DATABASE {name} WITH (FORCE)"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_published_from_and_applied_to_whatever_is_killed() {
    let Some((url, name)) = server("TOMBOLO_TEST_MARIADB", "foreign").await else { return };
    let pool = MySqlPool::connect_lazy(&url).unwrap();
    let with = pool.clone();
    let apply = async move |headers: HeaderMap, body: String| {
        answer(apply_in_mariadb(with.clone(), headers, body).await)
    };
    let receiver = Router::new().route("/events", post(apply));
    let mails = async || {
        let mails = sqlx::query_as("SELECT customer, about FROM mail ORDER BY nth");
        mails.fetch_all(&pool).await.unwrap()
    };
    there_and_back(&url, "tombolo_events", receiver, mails).await;
    run(&url, &format!("DROP DATABASE {name}")).await;
}
