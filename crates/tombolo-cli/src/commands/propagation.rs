//! `tombolo auth propagation`: where the last block, unblock or sign-out of a user has taken effect, as each process says itself.
//!
//! Invariant: a process that checks tokens and does not answer is named, and nothing is in effect everywhere before it has.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tombolo_bus::{Bus, Reach, Registration, Signal};
use tombolo_event::propagation::{Asked, InEffect, STANDING, SUBJECT, Standing};
use uuid::Uuid;

use super::asking::Target;
use super::subscriptions::{Replica, replicas};
use crate::arguments::Propagation;
use crate::commands::{reach, show};
use crate::error::{Context, Error, Result};
use crate::runner::client;

/// How long the answers of one round are waited for.
const ROUND_BOUND: Duration = Duration::from_secs(3);
/// How long it takes at least from one round to the next.
const ROUND_EVERY: Duration = Duration::from_millis(50);

type Processes = BTreeMap<(String, u32), Option<InEffect>>;

/// `tombolo auth propagation`.
pub(crate) async fn propagation(arguments: Propagation) -> Result<()> {
    let ends = Instant::now() + arguments.wait;
    let bus = reach(&arguments.reached).await?;
    let running = replicas(&arguments.reached).await?;
    let asking = Asking { bus: &*bus, user: &arguments.user, running: &running };
    let (standing, processes) = loop {
        let begun = Instant::now();
        let (standing, processes) = asking.round().await?;
        if processes.values().all(|process| is_in_effect(&standing, process.as_ref())) || begun >= ends {
            break (standing, processes);
        }
        tokio::time::sleep_until((begun + ROUND_EVERY).min(ends)).await;
    };
    bus.close().await;
    let rows = processes.iter().map(|(who, process)| row(&standing, who, process.as_ref())).collect();
    let list: Vec<_> =
        processes.iter().map(|(who, process)| json(&standing, who, process.as_ref())).collect();
    let header = ["SERVICE", "REPLICA", "CHECKS", "IN EFFECT", "SINCE", "VERSION", "BLOCKED"];
    let json = json!({ "user": arguments.user, "version": standing.version, "blocked": standing.blocked, "processes": list });
    show(arguments.format, header, rows, &json)?;
    verdict(&standing, &processes)
}

/// Who is asked, about whom.
struct Asking<'a> {
    bus: &'a dyn Bus,
    user: &'a str,
    running: &'a [Replica],
}

impl Asking<'_> {
    /// Asks the issuer, and then everybody else.
    async fn round(&self) -> Result<(Standing, Processes)> {
        let registrations = self.bus.registrations().await?;
        let standing = self.standing(&registrations).await?;
        let checks = |registration: &&Registration| {
            let described: Value = serde_json::from_str(&registration.descriptor).unwrap_or_default();
            described["checks"].is_string() && self.runs(registration)
        };
        let expected = registrations.iter().filter(checks);
        let who = |registration: &Registration| (registration.service.to_string(), registration.replica);
        let mut processes: Processes = expected.map(|registration| (who(registration), None)).collect();
        self.collect(&mut processes).await?;
        Ok((standing, processes))
    }

    /// Whether a replica is one of those that run, as far as anybody knows; a gateway is nobody's service.
    fn runs(&self, registration: &Registration) -> bool {
        let of_service =
            || self.running.iter().filter(|replica| replica.service == registration.service.as_str());
        let is_it = |replica: &Replica| replica.number == registration.replica as usize;
        of_service().next().is_none() || of_service().any(is_it)
    }

    async fn standing(&self, registrations: &[Registration]) -> Result<Standing> {
        let answers = |registration: &Registration| {
            let described: Value = serde_json::from_str(&registration.descriptor).unwrap_or_default();
            let answered = described["answers"].as_array().cloned().unwrap_or_default();
            let mut questions = answered.iter().filter_map(|answered| answered["question"].as_str());
            questions.find(|question| question.ends_with(STANDING)).map(str::to_owned)
        };
        let mut issuers = registrations.iter().filter_map(|of| Some((of, answers(of)?)));
        let (issuer, question) = issuers.next().ok_or_else(|| {
            Error::not_found(format!(
                "no service that answers …{STANDING} has registered at this bus; the identity service does"
            ))
        })?;
        let target = Target::of(client()?, &issuer.url, issuer.service.to_string());
        let path = format!("/tombolo/questions/{question}");
        let standing = target.post(&path, &json!({ "user_id": self.user })).await?;
        let standing: Option<Standing> = serde_json::from_value(standing)
            .context(|| format!("{}'s answer cannot be read", issuer.service))?;
        standing.ok_or_else(|| Error::not_found(format!("{} knows no user {:?}", issuer.service, self.user)))
    }

    /// Asks everybody who checks tokens at once, until all have answered or the time is over.
    async fn collect(&self, processes: &mut Processes) -> Result<()> {
        let reply_to = format!("auth.propagation.{}", Uuid::new_v4().simple());
        let mut answers = self.bus.listen(&reply_to, None).await?;
        let payload = serde_json::to_vec(&Asked { user: self.user.to_owned() });
        let payload = payload.context(|| "cannot write the question".into())?;
        let reached =
            self.bus.signal(SUBJECT, Signal { reply_to: Some(reply_to), payload: payload.into() }).await?;
        let ends = Instant::now() + ROUND_BOUND;
        while processes.values().any(Option::is_none) && reached != Reach::Nobody {
            let Ok(Some(answer)) = timeout_at(ends, answers.next()).await else { break };
            if let Ok(answer) = serde_json::from_slice::<InEffect>(&answer.payload) {
                processes.insert((answer.service.clone(), answer.replica), Some(answer));
            }
        }
        Ok(())
    }
}

/// Whether what the issuer says counts at a process.
fn is_in_effect(standing: &Standing, process: Option<&InEffect>) -> bool {
    let Some(process) = process else { return false };
    match &process.known {
        _ if process.way == "central" => true,
        Some(known) => known.version >= standing.version,
        // Nothing is known where nothing was said, or it was said before any token that still lives.
        None => process.has_heard_all && standing.waiting == 0,
    }
}

fn row(standing: &Standing, who: &(String, u32), process: Option<&InEffect>) -> [String; 7] {
    let none = || "-".to_owned();
    let [service, replica] = [who.0.clone(), who.1.to_string()];
    let Some(process) = process else {
        return [service, replica, none(), "does not answer".into(), none(), none(), none()];
    };
    let since = match (&process.known, process.way.as_str()) {
        (_, "central") => "with the next request".into(),
        (Some(known), _) => known.since.to_string(),
        (None, _) => none(),
    };
    let in_effect = if is_in_effect(standing, Some(process)) { "yes" } else { "not yet" };
    let version = process.known.as_ref().map_or_else(none, |known| known.version.to_string());
    let blocked = process.known.as_ref().map_or_else(none, |known| known.blocked.to_string());
    [service, replica, process.way.clone(), in_effect.into(), since, version, blocked]
}

fn json(standing: &Standing, (service, replica): &(String, u32), process: Option<&InEffect>) -> Value {
    let known = process.and_then(|process| process.known.as_ref());
    json!({
        "service": service, "replica": replica, "answers": process.is_some(),
        "checks": process.map(|process| &process.way), "in_effect": is_in_effect(standing, process),
        "since": known.map(|known| known.since), "version": known.map(|known| known.version),
        "blocked": known.map(|known| known.blocked),
    })
}

fn verdict(standing: &Standing, processes: &Processes) -> Result<()> {
    let names = |wanted: fn(&Standing, Option<&InEffect>) -> bool| {
        let found = processes.iter().filter(|(_, process)| wanted(standing, process.as_ref()));
        found.map(|((service, replica), _)| format!("{service} {replica}")).collect::<Vec<_>>().join(", ")
    };
    let silent = names(|_, process| process.is_none());
    let behind = names(|standing, process| process.is_some() && !is_in_effect(standing, process));
    match (silent.as_str(), behind.as_str()) {
        ("", "") => Ok(()),
        ("", behind) => Err(Error::failed(format!(
            "version {} of the user is not in effect yet at: {behind}; wait for it with --wait",
            standing.version
        ))),
        (silent, _) => Err(Error::not_running(format!(
            "no answer from: {silent}; what is not heard there counts when its tokens end"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_event::propagation::Known;

    use super::*;

    fn process(way: &str, has_heard_all: bool, version: Option<u64>) -> InEffect {
        let since = "2026-01-02T03:04:05Z".parse().unwrap();
        let known = version.map(|version| Known { version, blocked: true, since });
        InEffect { service: "orders".into(), replica: 1, way: way.into(), has_heard_all, known }
    }

    #[test]
    fn it_is_in_effect_where_the_version_was_heard_or_nothing_can_be_missing() {
        let (said, waiting) = (Standing { version: 3, blocked: true, waiting: 0 }, 1);
        let unsaid = Standing { waiting, ..said.clone() };
        assert!(is_in_effect(&said, Some(&process("local", true, Some(3)))));
        assert!(is_in_effect(&unsaid, Some(&process("local", false, Some(4)))));
        assert!(!is_in_effect(&said, Some(&process("local", true, Some(2)))));
        assert!(is_in_effect(&said, Some(&process("gateway", true, None))), "forgotten with the last token");
        assert!(!is_in_effect(&said, Some(&process("local", false, None))));
        assert!(!is_in_effect(&unsaid, Some(&process("local", true, None))));
        assert!(is_in_effect(&unsaid, Some(&process("central", true, None))));
        assert!(!is_in_effect(&said, None));
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let standing = Standing { version: 3, blocked: true, waiting: 0 };
        let mut processes = Processes::from([(("orders".into(), 1), Some(process("local", true, Some(3))))]);
        assert!(verdict(&standing, &processes).is_ok());
        processes.insert(("history".into(), 2), None);
        assert!(verdict(&standing, &processes).unwrap_err().message.contains("history 2"));
        processes.insert(("history".into(), 2), Some(process("local", true, Some(1))));
        assert!(verdict(&standing, &processes).unwrap_err().message.contains("history 2"));
    }
}
