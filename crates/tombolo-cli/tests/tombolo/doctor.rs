//! The doctor: what it finds in a manifest and behind it, and that it changes nothing.

use serde_json::Value;

use crate::stage::Stage;

/// The checks of a run, as (verdict, of, found).
fn checks(said: &str) -> Vec<(String, String, String)> {
    let checks: Vec<Value> = serde_json::from_str(said).unwrap();
    let word = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let checks = checks.iter();
    checks.map(|check| (word(check, "verdict"), word(check, "subject"), word(check, "found"))).collect()
}

#[test]
fn a_sound_manifest_passes_and_nothing_is_made_by_looking() {
    let stage = Stage::with_users();
    let said = stage.must(&["doctor", ".", "--format", "json"]);
    assert!(checks(&said).iter().all(|(verdict, ..)| verdict != "fail"), "{said}");
    assert!(!stage.data().exists(), "the data folder was made");
}

#[test]
fn each_thing_that_is_wrong_is_named_with_what_mends_it_and_hides_no_other() {
    let stage = Stage::with(
        "[services.users]\ncommand = [\"./no-such-program\"]\n\
         [services.orders]\ncommand = [\"{service}\"]\ndatabase = \"postgres://127.0.0.1:1/orders\"\n",
    );
    let output = stage.run(&["doctor", ".", "--bus", "tombolo://127.0.0.1:1", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let failed: Vec<_> = checks(&said).into_iter().filter(|(verdict, ..)| verdict == "fail").collect();
    let of: Vec<&str> = failed.iter().map(|(_, of, _)| of.as_str()).collect();
    assert_eq!(of, ["users", "bus", "orders"], "{said}");
    assert!(failed[0].2.contains("no-such-program"), "{said}");
    let every: Vec<Value> = serde_json::from_str(&said).unwrap();
    let open = every.iter().filter(|check| check["verdict"] != "pass" && check["fix"].is_null());
    assert_eq!(open.count(), 0, "{said}");
}

#[test]
fn a_running_system_is_looked_at_too() {
    let stage = Stage::with_users();
    stage.must(&["dev", ".", "--detach"]);
    let said = stage.must(&["doctor", ".", "--format", "json"]);
    let found = checks(&said);
    assert!(found.iter().any(|(_, of, _)| of == "users.1"), "{said}");
    assert!(found.iter().any(|(verdict, of, _)| of == "bus" && verdict == "pass"), "{said}");
    stage.must(&["down"]);
}

#[test]
fn a_manifest_that_cannot_be_read_is_the_one_failure() {
    let stage = Stage::with("[services.users]\ncomand = []\n");
    let output = stage.run(&["doctor", "."]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAIL") && said.contains("1 failed"), "{said}");
}

#[test]
fn a_database_that_dev_would_make_is_no_failure_unless_the_manifest_only_has_it_checked() {
    for variable in ["TOMBOLO_TEST_POSTGRES", "TOMBOLO_TEST_MARIADB"] {
        let Ok(server) = std::env::var(variable) else {
            eprintln!("skipped: a database on a server: {variable} is not set");
            continue;
        };
        let (server, _) = server.rsplit_once('/').unwrap();
        for (env, verdict) in [("", "pass"), ("env = { TOMBOLO_SCHEMA = \"check\" }\n", "fail")] {
            let stage = Stage::with(&format!(
                "[services.users]\ncommand = [\"{{service}}\"]\ndatabase = \"{server}/that_nobody_made\"\n{env}"
            ));
            let output = stage.run(&["doctor", ".", "--format", "json"]);
            let said = String::from_utf8(output.stdout).unwrap();
            let found = checks(&said);
            let is_its = |(found, of, what): &&(String, String, String)| {
                of == "users"
                    && found == verdict
                    && (what.contains("not made yet") || what.contains("create it"))
            };
            assert_eq!(found.iter().filter(is_its).count(), 1, "{variable} {env}: {said}");
        }
    }
}
