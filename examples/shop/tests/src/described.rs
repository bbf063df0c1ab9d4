//! What each service says of itself without being started.

use std::process::Command;

use serde_json::Value;

use crate::built::binary;

/// The services, with the kind of database that each has.
const KINDS: [(&str, &str); 4] =
    [("users", "sqlite"), ("products", "documents"), ("orders", "sqlite"), ("order-history", "sqlite")];

/// Runs a service with `--describe` in an empty folder, where it must leave nothing.
fn describe(service: &str) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let kind = KINDS.iter().find(|(name, _)| *name == service).unwrap().1;
    let output = Command::new(binary(&format!("shop-{service}")))
        .arg("--describe")
        .current_dir(scratch.path())
        .env("TOMBOLO_DATABASE", format!("{kind}:{}/{service}.db", scratch.path().display()))
        .env("TOMBOLO_BUS", "tombolo://127.0.0.1:1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap()).collect()
}

#[test]
fn every_service_describes_itself_without_touching_its_database() {
    for (service, kind) in KINDS {
        let descriptor = describe(service);
        assert_eq!((&descriptor["service"], &descriptor["database"]), (&service.into(), &kind.into()));
    }
}

#[test]
fn what_one_publishes_and_answers_is_what_the_others_handle_and_ask() {
    let all = KINDS.map(|(service, _)| describe(service));
    let published: Vec<&str> = all.iter().flat_map(|one| names(&one["publishes"], "type")).collect();
    let answered: Vec<&str> = all.iter().flat_map(|one| names(&one["answers"], "question")).collect();
    assert_eq!(
        published,
        [
            "users.registered.v1",
            "users.renamed.v1",
            "users.blocked.v1",
            "users.unblocked.v1",
            "users.signed_out.v1",
            "users.roles_changed.v1",
            "products.added.v1",
            "products.changed.v1",
            "orders.placed.v1",
            "orders.payment-due.v1",
            "orders.paid.v1",
            "orders.cancelled.v1"
        ]
    );
    let mut handled = 0;
    for one in &all {
        for subscription in one["subscriptions"].as_array().unwrap() {
            for event in subscription["handles"].as_array().unwrap() {
                for name in event["types"].as_array().unwrap() {
                    assert!(published.contains(&name.as_str().unwrap()), "nobody publishes {name}");
                    handled += 1;
                }
            }
        }
        for question in one["asks"].as_array().unwrap() {
            assert!(answered.contains(&question.as_str().unwrap()), "nobody answers {question}");
        }
    }
    assert_eq!(handled, 10, "orders handles four types, one of them its own, and order-history six");
}

#[test]
fn an_argument_that_is_not_known_is_refused_with_what_is() {
    let output = Command::new(binary("shop-users")).arg("--port=80").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("--port=80") && said.contains("--describe"), "{said}");
}
