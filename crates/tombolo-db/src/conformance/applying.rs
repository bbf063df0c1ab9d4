//! Cases about the procedure with which other programs apply an event: its effect and the cursor in one transaction of theirs.

use std::time::Duration;

use tombolo_event::{Cursor, EventId};
use uuid::Uuid;

use super::stage::{LONG, Ready, service};
use super::{Abilities, Case, Fixture, Foreign, Own, Stage};
use crate::{Cursors, ForeignParts, Outbox, Schema};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(another_program_moves_the_cursor_with_its_effect).needing(|abilities| abilities.foreign),
        Case::new(an_event_is_applied_once_by_another_program).needing(|abilities| abilities.foreign),
        Case::new(what_is_not_the_next_event_is_not_applied).needing(|abilities| abilities.foreign),
        Case::new(of_two_programs_that_apply_at_once_one_does).needing(Abilities::foreign_at_once),
    ]
}

const INBOX: ForeignParts = ForeignParts { outbox: false, notify: false, inbox: true };
const MAIL: &str = "mail";

async fn prepared<F: Fixture>(stage: &Stage<F>) -> Ready<F> {
    let ready = stage.prepared(1).await;
    ready.database.prepare_foreign(INBOX, Schema::Apply).await.expect("it is made");
    ready.open(MAIL).await;
    ready.fixture().foreign_key(&ready.database, "a").await;
    ready
}

async fn begin<F: Fixture>(ready: &Ready<F>) -> Box<dyn Foreign> {
    ready.fixture().foreign(&ready.database).await
}

async fn cursor<F: Fixture>(ready: &Ready<F>) -> Cursor {
    ready.database.cursor(MAIL, &service(), 0).await.expect("a look works").expect("there is one")
}

/// Applies an event, with an effect, in one transaction; whether it was applied.
async fn apply<F: Fixture>(ready: &Ready<F>, sequence: i64, id: Uuid) -> bool {
    let mut tx = begin(ready).await;
    tx.count("a").await;
    let applied = tx.apply(MAIL, sequence, id).await.is_ok();
    tx.end(if applied { Own::Committed } else { Own::RolledBack }).await;
    applied
}

async fn another_program_moves_the_cursor_with_its_effect<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage).await;
    let id = Uuid::now_v7();
    let mut undone = begin(&ready).await;
    undone.count("a").await;
    undone.apply(MAIL, 1, id).await.expect("it is the next one");
    undone.end(Own::RolledBack).await;
    assert_eq!((cursor(&ready).await.sequence, ready.read("a").await), (0, Some(0)));
    assert!(apply(&ready, 1, id).await);
    let found = cursor(&ready).await;
    assert_eq!((found.sequence, found.id, ready.read("a").await), (1, Some(EventId(id)), Some(1)));
    // Whoever delivers next goes on from there.
    let claims = ready.claim(MAIL, Uuid::now_v7(), LONG).await;
    assert_eq!(claims[0].cursor, found);
}

async fn an_event_is_applied_once_by_another_program<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage).await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    assert!(apply(&ready, 1, first).await);
    assert!(!apply(&ready, 1, first).await, "it was applied twice");
    assert!(apply(&ready, 2, second).await);
    assert!(!apply(&ready, 1, first).await, "it was applied once more, later");
    assert_eq!((cursor(&ready).await.sequence, ready.read("a").await), (2, Some(2)));
}

async fn what_is_not_the_next_event_is_not_applied<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage).await;
    assert!(!apply(&ready, 2, Uuid::now_v7()).await, "an event was stepped over");
    let mut tx = begin(&ready).await;
    assert!(tx.apply("nobody", 1, Uuid::now_v7()).await.is_err(), "there is no such subscription");
    tx.end(Own::RolledBack).await;
    assert_eq!((cursor(&ready).await.sequence, ready.read("a").await), (0, Some(0)));
}

async fn of_two_programs_that_apply_at_once_one_does<F: Fixture>(stage: Stage<F>) {
    let ready = prepared(&stage).await;
    let id = Uuid::now_v7();
    let mut first = begin(&ready).await;
    first.apply(MAIL, 1, id).await.expect("it is the next one");
    let other = ready.clone();
    let mut second = tokio::spawn(async move {
        let mut tx = begin(&other).await;
        let applied = tx.apply(MAIL, 1, id).await.is_ok();
        tx.end(Own::RolledBack).await;
        applied
    });
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut second).await.is_err();
    assert!(waited, "the second did not wait for the first");
    first.end(Own::Committed).await;
    assert!(!second.await.expect("it does not panic"), "both applied it");
}
