//! The system that runs: where its relays and subscriptions stand.
//!
//! Invariant: a replica that does not answer is named, and hides no other.

use serde_json::Value;

use super::checks::Checks;
use crate::arguments::{Found, Reached};
use crate::commands::subscriptions::statuses;
use crate::folder::Run;

const ANSWERS: &str = "it answers";
const RELAY: &str = "its events reach the bus";
const HANDLES: &str = "its subscriptions handle what comes";

/// Looks at each replica.
pub(crate) async fn look(run: Run, checks: &mut Checks) {
    let reached = Reached { bus: None, archive: None, found: Found { data: Some(run.data) } };
    let statuses = match statuses(&reached).await {
        Ok(statuses) => statuses,
        Err(error) => {
            return checks.fail("system", ANSWERS, &error.message, "look at it with `tombolo status`");
        }
    };
    for (service, number, answer) in statuses {
        let name = format!("{service}.{number}");
        match answer {
            Ok(status) => standing(&name, &status, checks),
            Err(why) => {
                let fix =
                    format!("nothing, if it is not a service of Tombolo; else `tombolo logs {service}`");
                checks.warn(&name, ANSWERS, &why, &fix);
            }
        }
    }
}

fn standing(name: &str, status: &Value, checks: &mut Checks) {
    let relay = &status["relay"];
    let state = relay["state"].as_str().unwrap_or("none");
    let service = name.split('.').next().unwrap_or(name);
    if relay["is_halted"].as_bool() == Some(true) {
        checks.fail(
            name,
            RELAY,
            state,
            &format!("`tombolo recover {service}` says why, and what can be decided"),
        );
    } else if state.starts_with("stopped") || state.starts_with("waiting") {
        checks.fail(name, RELAY, state, "look at the bus");
    } else {
        let rows = relay["outbox_rows"].as_u64().unwrap_or_default();
        checks.pass(name, RELAY, &format!("{state}, {rows} wait"));
    }
    for subscription in status["subscriptions"].as_array().into_iter().flatten() {
        handles(name, subscription, checks);
    }
}

fn handles(name: &str, subscription: &Value, checks: &mut Checks) {
    let word = |field: &str| subscription[field].as_str().unwrap_or_default().to_owned();
    let count = |field: &str| subscription[field].as_u64().unwrap_or_default();
    let found = format!("{}: {}, {} behind", word("name"), word("state"), count("lag_events"));
    match (word("state").as_str(), count("parked_events")) {
        ("stopped" | "stuck", _) => {
            let fix = "docs/subscriptions.md says what each state means; `tombolo subscriptions list` shows the reason";
            checks.fail(name, HANDLES, &format!("{found}: {}", word("detail")), fix);
        }
        ("paused", _) => checks.warn(name, HANDLES, &found, "`tombolo subscriptions resume` goes on"),
        (_, 1..) => {
            let found = format!("{found}, {} events parked", count("parked_events"));
            checks.warn(name, HANDLES, &found, "`tombolo parked list` shows them with the reasons");
        }
        _ => checks.pass(name, HANDLES, &found),
    }
}
