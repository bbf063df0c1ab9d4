//! `tombolo schema`: what is printed makes what is checked, and looking changes nothing.

use std::process::Command;

use crate::stage::Stage;

#[test]
fn tables_are_made_once_and_checked_without_a_change() {
    let stage = Stage::with_users();
    let database = "sqlite:orders.db";
    let said = stage.refused(&["schema", "check", database], 3);
    assert!(said.contains("there is no file orders.db"), "{said}");
    assert!(!stage.path("orders.db").exists(), "a check made the file");
    let said = stage.must(&["schema", "apply", database, "--service", "orders"]);
    assert!(said.contains("service orders"), "{said}");
    stage.must(&["schema", "apply", database, "--service", "orders"]);
    assert!(stage.must(&["schema", "check", database]).contains("version"));
    let said = stage.refused(&["schema", "apply", database, "--service", "users"], 1);
    assert!(said.contains("orders") && said.contains("users"), "{said}");
    let said = stage.refused(&["schema", "apply", "oracle://x", "--service", "orders"], 2);
    assert!(
        said.contains("expected sqlite:PATH, documents:PATH, postgres://…, mysql://… or mongodb://"),
        "{said}"
    );
}

#[test]
fn a_file_of_documents_is_made_once_and_checked_without_a_change() {
    let stage = Stage::with_users();
    assert!(stage.must(&["schema", "print", "documents"]).contains("tombolo/outbox"));
    let database = "documents:orders.redb";
    let said = stage.refused(&["schema", "check", database], 3);
    assert!(said.contains("there is no file orders.redb"), "{said}");
    assert!(!stage.path("orders.redb").exists(), "a check made the file");
    stage.must(&["schema", "apply", database, "--service", "orders"]);
    stage.must(&["schema", "apply", database, "--service", "orders"]);
    assert!(stage.must(&["schema", "check", database]).contains("version 1"));
    let said = stage.refused(&["schema", "apply", database, "--service", "users"], 1);
    assert!(said.contains("orders") && said.contains("users"), "{said}");
}

#[test]
fn the_printed_sql_makes_what_is_checked() {
    let stage = Stage::with_users();
    std::fs::write(stage.path("empty.db"), "").unwrap();
    let said = stage.refused(&["schema", "check", "sqlite:empty.db"], 1);
    assert!(said.contains("tombolo schema apply"), "{said}");
    let sql = stage.must(&["schema", "print", "sqlite"]);
    let python = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.stdin.read()); c.commit()";
    let mut child = Command::new("python3");
    let child = child.args(["-c", python]).arg(stage.path("empty.db")).stdin(std::process::Stdio::piped());
    let Ok(mut child) = child.spawn() else {
        eprintln!("skipped: the printed SQL is run by Python's sqlite3, and there is no python3");
        return;
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), sql.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(stage.must(&["schema", "check", "sqlite:empty.db"]).contains("version"));
}

#[test]
fn postgres_gets_its_tables_in_the_schema_that_was_named() {
    let stage = Stage::with_users();
    let sql = stage.must(&["schema", "print", "postgres", "--schema", "inbox"]);
    assert!(sql.contains("CREATE TABLE \"inbox\".outbox"), "{sql}");
    assert!(!sql.contains("tombolo."), "{sql}");
}

#[test]
fn mysql_gets_its_tables_with_the_prefix_that_was_named() {
    let stage = Stage::with_users();
    for kind in ["mysql", "mariadb"] {
        let sql = stage.must(&["schema", "print", kind, "--prefix", "inbox_"]);
        assert!(sql.contains("CREATE TABLE IF NOT EXISTS inbox_outbox"), "{sql}");
        assert!(!sql.contains("tombolo_"), "{sql}");
    }
}

/// What is printed, run by anybody, is what is checked; what is applied, too.
#[test]
fn mariadb_has_its_tables_either_way() {
    let Some(url) = std::env::var("TOMBOLO_TEST_MARIADB").ok().filter(|url| !url.is_empty()) else {
        eprintln!("skipped: mariadb: TOMBOLO_TEST_MARIADB is not set; run cargo xtask test --install");
        return;
    };
    let stage = Stage::with_users();
    let name = format!("cli_{}", std::process::id());
    let (server, _) = url.rsplit_once('/').unwrap();
    let run = |sql: &str| run_sql(&url, sql.to_owned());
    let database = format!("{server}/{name}");
    let said = stage.refused(&["schema", "check", &database], 4);
    assert!(said.contains("create it"), "{said}");
    run(&format!("CREATE DATABASE {name}"));
    let said = stage.refused(&["schema", "check", &database], 1);
    assert!(said.contains("tombolo schema apply"), "{said}");
    run(&format!("USE {name}; {}", stage.must(&["schema", "print", "mysql"]).trim().trim_end_matches(';')));
    assert!(stage.must(&["schema", "check", &database]).contains("version"));
    let said = stage.must(&["schema", "apply", &database, "--service", "orders", "--prefix", "other_"]);
    assert!(said.contains("service orders"), "{said}");
    stage.must(&["schema", "apply", &database, "--service", "orders"]);
    let said = stage.refused(&["schema", "apply", &database, "--service", "users"], 1);
    assert!(said.contains("orders") && said.contains("users"), "{said}");
    run(&format!("DROP DATABASE {name}"));
}

#[tokio::main(flavor = "current_thread")]
async fn run_sql(url: &str, sql: String) {
    use sqlx::Connection;
    let mut connection = sqlx::MySqlConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
}
