//! Cases about positions: what a commit says of its events, and what a reader can find out about them.

use std::sync::{Arc, Mutex};

use tombolo_event::{Cursor, EventId, Positions};
use uuid::Uuid;

use super::stage::{LONG, marks_of, noted, service};
use super::{Case, Fixture, Stage};
use crate::{Cursors, Outbox, RoundLimit, Transaction};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(a_commit_notes_where_its_events_went),
        Case::new(a_position_is_complete_once_the_event_is_numbered),
        Case::new(a_removed_row_leaves_a_position_as_it_is),
        Case::new(a_reader_sees_where_a_subscription_stands),
    ]
}

async fn a_commit_notes_where_its_events_went<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let written: Arc<Mutex<Positions>> = Arc::default();
    let noted_ids = || -> Vec<EventId> {
        written.lock().expect("nobody panics").each().iter().map(|position| position.id).collect()
    };
    let mut dropped = ready.publishing(&[noted("a", 1)]).await;
    dropped.outgoing().written = Some(Arc::clone(&written));
    dropped.rollback().await.expect("it is rolled back");
    assert_eq!(noted_ids(), [], "a rollback writes nothing");
    let mut tx = ready.publishing(&[noted("a", 1), noted("b", 1), noted("a", 2)]).await;
    tx.outgoing().written = Some(Arc::clone(&written));
    let committed = tx.commit().await.expect("it commits");
    assert_eq!(committed.positions.len(), 3);
    assert_eq!(noted_ids(), [committed.positions[1].id, committed.positions[2].id], "the last of each key");
}

async fn a_position_is_complete_once_the_event_is_numbered<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    ready.commit(&[noted("a", 1), noted("b", 1)]).await;
    let mut positions = ready.commit(&[noted("b", 2), noted("a", 2), noted("c", 1)]).await.positions;
    let rows = ready.lead(Uuid::now_v7()).await.round(&[], RoundLimit::default()).await.expect("a round");
    ready.database.complete(&mut positions).await.expect("positions are completed");
    for position in positions {
        let row = rows.iter().find(|row| row.id == position.id).expect("the event is in the outbox");
        assert_eq!(position.sequence, Some(row.sequence));
    }
}

async fn a_removed_row_leaves_a_position_as_it_is<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let mut positions = ready.commit(&[noted("a", 1)]).await.positions;
    let before = positions.clone();
    let rows = ready.drain(&mut *ready.lead(Uuid::now_v7()).await).await;
    assert_eq!(marks_of(&rows).len(), 1);
    ready.database.complete(&mut positions).await.expect("nothing to complete is no error");
    assert_eq!(positions, before);
}

async fn a_reader_sees_where_a_subscription_stands<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let incarnation = ready.open("titles").await;
    let stands = async |partition| {
        ready.database.cursor("titles", &service(), partition).await.expect("a cursor can be read")
    };
    assert_eq!(stands(1).await, Some(Cursor::start(incarnation)));
    assert_eq!(stands(2).await, None, "there are only two partitions");
    let claims = ready.claim("titles", Uuid::now_v7(), LONG).await;
    let to = Cursor::at(incarnation, 3, EventId::new());
    let mut tx = ready.begin().await;
    tx.advance(&claims[1], &to).await.expect("the claim is held");
    assert_eq!(stands(1).await, Some(Cursor::start(incarnation)), "seen before the commit");
    tx.commit().await.expect("it commits");
    assert_eq!((stands(0).await, stands(1).await), (Some(Cursor::start(incarnation)), Some(to)));
}
