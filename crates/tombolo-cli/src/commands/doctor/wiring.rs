//! What services say of themselves, held against each other: who handles what nobody publishes, who asks what nobody answers.
//! Pure.
//!
//! Invariant: each thing that does not fit is named with the service, the subscription and the type.

use std::collections::BTreeSet;

use tombolo_event::descriptor::{Descriptor, Handled};

use super::checks::Checks;

const HANDLED: &str = "what it handles is published";
const USED: &str = "what it publishes is handled by somebody";
const ASKED: &str = "what it asks is answered";

/// Looks at all of them.
pub(crate) fn check(all: &[&Descriptor], checks: &mut Checks) {
    for descriptor in all {
        handled(descriptor, all, checks);
        used(descriptor, all, checks);
        asked(descriptor, all, checks);
    }
}

fn handled(descriptor: &Descriptor, all: &[&Descriptor], checks: &mut Checks) {
    let name = descriptor.service.as_str();
    let mut count = 0;
    for subscription in &descriptor.subscriptions {
        for handled in &subscription.handles {
            count += 1;
            let of = format!("{} handles {}", subscription.name, handled.types.join(", "));
            match all.iter().find(|other| other.service == handled.topic) {
                Some(owner) if publishes(owner, handled) => {}
                Some(owner) => {
                    let found = format!("{of}, which {} does not publish", owner.service);
                    checks.fail(name, HANDLED, &found, "correct the type's name or version, on either side");
                }
                None => {
                    let found = format!("{of} of {}, which is not in the manifest", handled.topic);
                    checks.warn(name, HANDLED, &found, "nothing, if it runs elsewhere on the same bus");
                }
            }
        }
    }
    if count > 0 && !checks.0.iter().any(|check| check.subject == name && check.what == HANDLED) {
        checks.pass(name, HANDLED, &format!("{count} types"));
    }
}

fn publishes(owner: &Descriptor, handled: &Handled) -> bool {
    owner.publishes.iter().any(|published| handled.types.contains(&published.event_type))
}

fn used(descriptor: &Descriptor, all: &[&Descriptor], checks: &mut Checks) {
    let handles = all.iter().flat_map(|other| &other.subscriptions).flat_map(|other| &other.handles);
    let handled: BTreeSet<&String> = handles.flat_map(|handled| &handled.types).collect();
    let published = descriptor.publishes.iter().map(|published| &published.event_type);
    let unused: Vec<&str> = published.filter(|of| !handled.contains(of)).map(String::as_str).collect();
    if !unused.is_empty() {
        let fix = "nothing, if it is for somebody who is not in the manifest";
        checks.warn(descriptor.service.as_str(), USED, &format!("nobody handles {}", unused.join(", ")), fix);
    }
}

fn asked(descriptor: &Descriptor, all: &[&Descriptor], checks: &mut Checks) {
    let answers = |question: &String| {
        all.iter().any(|other| other.answers.iter().any(|answered| answered.question == *question))
    };
    let name = descriptor.service.as_str();
    let open: Vec<&str> =
        descriptor.asks.iter().filter(|asked| !answers(asked)).map(String::as_str).collect();
    if open.is_empty() {
        if !descriptor.asks.is_empty() {
            checks.pass(name, ASKED, &format!("{} questions", descriptor.asks.len()));
        }
        return;
    }
    let fix = "add `.answer(…)` to the service that knows, or put that service into the manifest";
    checks.fail(name, ASKED, &format!("nobody answers {}", open.join(", ")), fix);
}

#[cfg(test)]
mod tests {
    use super::super::checks::Verdict;
    use super::*;
    use serde_json::json;

    fn service(name: &str, publishes: &[&str], handles: &[(&str, &str)], asks: &[&str]) -> Descriptor {
        let published: Vec<_> = publishes.iter().map(|of| json!({ "type": of, "schema": true })).collect();
        let handled: Vec<_> = handles
            .iter()
            .map(|(topic, of)| json!({ "topic": topic, "types": [of], "schema": true }))
            .collect();
        serde_json::from_value(json!({
            "service": name, "partitions": 8, "database": "sqlite", "publishes": published, "asks": asks, "answers": [],
            "subscriptions": [{ "name": "all", "kind": "view", "handles": handled }],
        }))
        .unwrap()
    }

    fn verdicts(all: &[Descriptor]) -> Vec<(Verdict, String)> {
        let mut checks = Checks::default();
        check(&all.iter().collect::<Vec<_>>(), &mut checks);
        checks.0.into_iter().map(|check| (check.verdict, check.found)).collect()
    }

    #[test]
    fn what_fits_passes() {
        let users = service("users", &["users.added.v1"], &[], &[]);
        let orders = service("orders", &[], &[("users", "users.added.v1")], &[]);
        assert_eq!(verdicts(&[users, orders]), [(Verdict::Pass, "1 types".into())]);
    }

    #[test]
    fn a_type_that_its_owner_does_not_publish_fails_and_one_of_a_stranger_is_said() {
        let users = service("users", &["users.added.v2"], &[], &[]);
        let handles = [("users", "users.added.v1"), ("prices", "prices.set.v1")];
        let found = verdicts(&[users, service("orders", &[], &handles, &[])]);
        assert_eq!(
            found.iter().map(|(verdict, _)| *verdict).collect::<Vec<_>>(),
            [Verdict::Warn, Verdict::Fail, Verdict::Warn]
        );
        assert!(found[0].1.contains("nobody handles users.added.v2"), "{found:?}");
        assert!(found[1].1.contains("all handles users.added.v1"), "{found:?}");
        assert!(found[2].1.contains("prices, which is not in the manifest"), "{found:?}");
    }

    #[test]
    fn a_question_that_nobody_answers_fails() {
        let found = verdicts(&[service("orders", &[], &[], &["users.known.v1"])]);
        assert_eq!(found, [(Verdict::Fail, "nobody answers users.known.v1".into())]);
    }
}
