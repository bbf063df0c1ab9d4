//! `tombolo dev` on a bus and databases that somebody else runs: what it makes, and how a mistake in an address is said.
//!
//! Invariant of what is tested: what cannot be used is said once, by name and without a password, and nothing is started.

use crate::stage::Stage;

/// The server that the environment names; says so if there is none.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        eprintln!("skipped: addresses of servers: {variable} is not set; run cargo xtask test --install");
    }
    url
}

/// A name that nothing has on any server.
fn unique() -> String {
    format!("tombolo_cli_{}", uuid::Uuid::new_v4().simple())
}

/// The same address with another password, or with one at all.
fn with_wrong_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.rsplit_once('@').unwrap_or(("shop", rest));
    format!("{scheme}://{}:secret@{place}", user.split(':').next().unwrap())
}

/// What `dev` says when it refuses to start with these options.
fn refusal(stage: &Stage, code: i32, options: &[&str]) -> String {
    let said = stage.refused(&[&["dev", ".", "--detach"], options].concat(), code);
    stage.refused(&["status"], 4);
    assert!(!said.contains("secret"), "a password is shown: {said}");
    said
}

#[test]
fn a_bus_that_is_away_is_said_once_and_nothing_starts() {
    let stage = Stage::with_users();
    for url in [
        "tombolo://127.0.0.1:1",
        "nats://shop:secret@127.0.0.1:1?accept=unsynced",
        "redis://shop:secret@127.0.0.1:1",
        "postgres://shop:secret@127.0.0.1:1/bus",
        "amqp://shop:secret@127.0.0.1:1?accept=unsynced",
    ] {
        let said = refusal(&stage, 4, &["--bus", url]);
        assert!(said.starts_with("tombolo: the bus ") && said.contains("127.0.0.1:1"), "{said}");
        let advice =
            if url.starts_with("tombolo") { "running there?" } else { "start it, or correct its address" };
        assert!(said.trim_end().ends_with(advice), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_mistaken_or_weak_bus_is_refused_with_what_to_write() {
    let stage = Stage::with_users();
    for (url, code, says) in [
        ("nats://127.0.0.1:1", 1, "accept=unsynced"),
        ("nats://127.0.0.1:1?accept=unsinced", 2, "it could accept: unsynced"),
        ("postgre://shop:secret@127.0.0.1:1", 2, "unknown scheme \"postgre\""),
        ("redis://shop:secret@127.0.0.1:1?namspace=x", 2, "namspace"),
        ("memory:", 2, "one process"),
        ("file:///tmp/log", 2, "one process"),
    ] {
        let said = refusal(&stage, code, &["--bus", url]);
        assert!(said.contains("the bus ") && said.contains(says), "{said}");
    }
}

#[test]
fn what_each_service_lacks_of_its_database_is_said_at_once() {
    let stage =
        Stage::with("[services.a]\ncommand = [\"{service}\"]\n[services.b]\ncommand = [\"{service}\"]\n");
    let away = [
        "--database",
        "a=postgres://shop:secret@127.0.0.1:1",
        "--database",
        "b=mysql://shop:secret@127.0.0.1:1/x",
    ];
    let said = refusal(&stage, 4, &away);
    assert!(said.contains("the database of a, postgres://…@127.0.0.1:1/a, cannot be used"), "{said}");
    assert!(said.contains("the database of b, mysql://…@127.0.0.1:1/x, cannot be used"), "{said}");
    let said = refusal(&stage, 2, &["--database", "c=sqlite"]);
    assert!(said.contains("there is no service \"c\"; there are: a, b"), "{said}");
    let said = stage.refused(&["dev", ".", "--database", "sqlite"], 2);
    assert!(said.contains("expected NAME=URL"), "{said}");
}

#[test]
fn a_wrong_password_is_said_once_by_every_server_that_asks_for_one() {
    let stage = Stage::with_users();
    for (variable, query) in [("TOMBOLO_TEST_POSTGRES", ""), ("TOMBOLO_TEST_RABBITMQ", "?accept=unsynced")] {
        let Some(url) = server(variable) else { continue };
        let said = refusal(&stage, 2, &["--bus", &(with_wrong_password(&url) + query)]);
        assert!(said.starts_with("tombolo: the bus ") && said.contains("password"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for variable in ["TOMBOLO_TEST_POSTGRES", "TOMBOLO_TEST_MARIADB"] {
        let Some(url) = server(variable) else { continue };
        let said = refusal(&stage, 1, &["--database", &format!("users={}", with_wrong_password(&url))]);
        assert!(said.contains("the database of users") && said.contains("password"), "{said}");
    }
}

#[test]
fn a_database_that_is_not_there_is_made_and_one_that_is_there_stays() {
    for (variable, list) in [
        ("TOMBOLO_TEST_POSTGRES", "SELECT count(*) FROM pg_database WHERE datname = "),
        ("TOMBOLO_TEST_MARIADB", "SELECT count(*) FROM information_schema.schemata WHERE schema_name = "),
    ] {
        let Some(url) = server(variable) else { continue };
        let (name, stage) = (unique(), Stage::with_users());
        let (place, _) = url.rsplit_once('/').unwrap();
        let option = format!("--database=users={place}/{name}");
        for _ in 0..2 {
            stage.must(&["dev", ".", "--detach", &option]);
            let shown = stage.status()["services"][0]["database"].as_str().unwrap().to_owned();
            assert!(shown.ends_with(&name) && !url.contains(&shown[..shown.len() - name.len()]), "{shown}");
            stage.must(&["down"]);
        }
        assert_eq!(removed(&url, &name, &format!("{list}'{name}'")), 1, "{variable}");
    }
}

/// How many such databases there are; drops it.
fn removed(url: &str, name: &str, count: &str) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (count, drop) =
        (sqlx::AssertSqlSafe(count.to_owned()), sqlx::AssertSqlSafe(format!("DROP DATABASE {name}")));
    runtime.block_on(async {
        if url.starts_with("postgres") {
            let server = sqlx::PgPool::connect(url).await.unwrap();
            let found = sqlx::query_scalar(count).fetch_one(&server).await.unwrap();
            sqlx::raw_sql(drop).execute(&server).await.unwrap();
            return found;
        }
        let server = sqlx::MySqlPool::connect(url).await.unwrap();
        let found = sqlx::query_scalar(count).fetch_one(&server).await.unwrap();
        sqlx::raw_sql(drop).execute(&server).await.unwrap();
        found
    })
}
