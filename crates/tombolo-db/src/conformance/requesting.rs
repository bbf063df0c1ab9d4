//! Cases about what operators ask: it is written down, and gets one outcome, with its work or alone.

use tombolo_event::operator::{Action, Outcome, PartitionOf, Request, Which};
use uuid::Uuid;

use super::stage::service;
use super::{Case, Fixture, Stage};
use crate::{Kind, Requests, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(a_request_waits_until_it_has_its_outcome),
        Case::new(an_outcome_commits_with_its_work_and_only_once),
        Case::new(requests_are_written_down_all_or_none),
    ]
}

const NAME: &str = "customers";

fn request(subscription: &str) -> Request {
    let of = PartitionOf { topic: service(), partition: 3 };
    let which = Which { key: Some("key \"1\"".into()), event: None };
    Request::new(subscription, Some(of), &Action::Redrive(which), "ann@host")
}

async fn a_request_waits_until_it_has_its_outcome<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    assert!(!ready.database.has_open_requests().await.expect("it can be asked"));
    let asked = [request(NAME), request("others"), Request::new(NAME, None, &Action::Pause, "bob@host")];
    ready.database.ask(&asked).await.expect("they are written down");
    let other = ready.reopened().await;
    let open = other.database.open_requests(NAME).await.expect("they can be read");
    assert_eq!(open.len(), 2, "a request of another subscription is among them");
    let same = |found: &Request, asked: &Request| {
        found.id == asked.id
            && found.of == asked.of
            && found.detail == asked.detail
            && found.outcome.is_none()
    };
    assert!(same(&open[0], &asked[0]) && same(&open[1], &asked[2]), "{open:#?}");
    assert_eq!((open[1].action.as_str(), open[1].asked_by.as_str()), ("pause", "bob@host"));
    let outcome = Outcome::refused("it is not paused");
    other.database.finish(asked[0].id, &outcome).await.expect("it waits");
    let again =
        other.database.finish(asked[0].id, &Outcome::done("x")).await.expect_err("it has its outcome");
    assert_eq!(again.kind(), Kind::Refused, "{again}");
    let found = ready.database.request(asked[0].id).await.expect("it can be read").expect("it is there");
    let found = found.outcome.expect("it has its outcome");
    assert_eq!((found.done, found.text.as_str()), (false, "it is not paused"));
    assert_eq!(ready.database.open_requests(NAME).await.expect("they can be read").len(), 1);
    let last = ready.database.requests(2).await.expect("they can be read");
    assert_eq!(last.iter().map(|request| request.id).collect::<Vec<_>>(), [asked[2].id, asked[1].id]);
    assert!(ready.database.has_open_requests().await.expect("it can be asked"));
    assert!(ready.database.request(Uuid::now_v7()).await.expect("it can be asked").is_none());
}

async fn an_outcome_commits_with_its_work_and_only_once<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let asked = request(NAME);
    ready.database.ask(std::slice::from_ref(&asked)).await.expect("it is written down");
    let mut dropped = ready.begin().await;
    dropped.finish(asked.id, &Outcome::done("never")).await.expect("it waits");
    drop(dropped);
    for (key, is_first) in [("first", true), ("second", false)] {
        let mut tx = ready.begin().await;
        ready.fixture().write(&mut tx, key, 1).await.expect("the work is written");
        assert_eq!(tx.finish(asked.id, &Outcome::done(key)).await.is_ok(), is_first, "{key}");
        assert_eq!(tx.commit().await.is_ok(), is_first, "{key}");
    }
    assert_eq!((ready.read("first").await, ready.read("second").await), (Some(1), None));
    let found = ready.database.request(asked.id).await.expect("it can be read").expect("it is there");
    assert_eq!(found.outcome.expect("it has its outcome").text, "first");
}

async fn requests_are_written_down_all_or_none<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let twice = request(NAME);
    let refused = ready.database.ask(&[request(NAME), twice.clone(), twice]).await;
    assert!(refused.is_err(), "two requests have one id");
    assert!(!ready.database.has_open_requests().await.expect("it can be asked"));
}
