//! Cases about views: builds beside each other, and the pointer that only goes up and only to what has caught up.

use serde_json::{Map, Value};
use tombolo_event::{Cursor, EventId, Incarnation};
use uuid::Uuid;

use super::parking::parked;
use super::stage::{LONG, Noted, Ready, Wait, once, service};
use super::{Case, Fixture, Stage};
use crate::{
    Build, BuildId, Claim, Cursors, Goal, Kind, Leases, Origin, ParkedFilter, Parking, Sample, StartAt,
    Switch, Switched, Transaction, ViewState, Views, Wanted,
};

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(the_first_build_is_live_at_once_and_is_found_again),
        Case::new(builds_have_tables_of_their_own),
        Case::new(tables_declared_otherwise_are_refused),
        Case::new(a_declaration_that_fails_leaves_nothing),
        Case::new(cursors_from_before_the_tables_are_not_taken_over),
        Case::new(a_switch_waits_for_the_cursors_of_the_live_build),
        Case::new(a_switch_waits_for_its_own_goals),
        Case::new(a_build_with_parked_keys_is_switched_to_only_if_that_is_accepted),
        Case::new(the_pointer_only_goes_up),
        Case::new(held_cursors_stand_still),
        Case::new(a_dropped_build_is_gone_and_its_name_is_not_used_again),
        Case::new(the_live_build_is_not_dropped),
        Case::new(comparing_shows_what_differs),
        Case::new(columns_that_only_one_build_has_are_told).needing(|abilities| abilities.columns),
    ]
}

const VIEW: &str = "note-titles";
fn wanted<F: Fixture>(ready: &Ready<F>, version: u32, further: bool) -> Wanted {
    let request = further.then(Uuid::now_v7);
    let tables = Some(ready.fixture().tables().to_owned());
    Wanted { view: VIEW.into(), version, tables, request, switches: false }
}

async fn make<F: Fixture>(ready: &Ready<F>, wanted: &Wanted) -> Build {
    ready.database.make_build(wanted).await.expect("a build can be made").expect("it was not dropped")
}

async fn view<F: Fixture>(ready: &Ready<F>) -> ViewState {
    let views = ready.database.views().await.expect("views can be read");
    views.into_iter().find(|view| view.view == VIEW).expect("the view is there")
}

async fn fold<F: Fixture>(ready: &Ready<F>, build: &Build, value: i64) {
    fold_as(ready, build, "k", value).await;
}

/// Writes a row into the build's own table, as a handler would.
async fn fold_as<F: Fixture>(ready: &Ready<F>, build: &Build, key: &str, value: i64) {
    let mut tx = ready.begin().await;
    let tables = ready.database.tables(build);
    tx.outgoing().enter(Origin::View { view: VIEW.into(), tables: Some(tables) });
    ready.fixture().fold(&mut tx, key, value).await.expect("the table is there");
    tx.commit().await.expect("it commits");
}

async fn sum<F: Fixture>(ready: &Ready<F>, build: &Build) -> Option<i64> {
    ready.fixture().total(&ready.database, build).await
}

/// Gives a build cursors in the same log as the others, and moves the first to `sequence`.
async fn follow<F: Fixture>(ready: &Ready<F>, build: &Build, incarnation: Incarnation, sequence: u64) {
    let start = |partition| StartAt { topic: service(), partition, cursor: Cursor::start(incarnation) };
    let types = [<Noted as tombolo_event::Event>::TYPE.to_owned()];
    let starts = [start(0), start(1)];
    ready.database.open(&build.subscription, &types, &starts, false).await.expect("it opens");
    advance(ready, build, sequence).await;
}

async fn advance<F: Fixture>(ready: &Ready<F>, build: &Build, sequence: u64) {
    let claim = ready.claim(&build.subscription, HOLDER, LONG).await.remove(0);
    let mut tx = ready.begin().await;
    tx.advance(&claim, &after(&claim, sequence)).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
}

const HOLDER: Uuid = Uuid::from_u128(7);

fn after(claim: &Claim, sequence: u64) -> Cursor {
    Cursor::at(claim.cursor.incarnation, sequence, EventId::new())
}

fn switch(epoch: u64, to: &Build) -> Switch {
    Switch {
        view: VIEW.into(),
        epoch,
        to: to.id,
        reads: vec![service()],
        goals: Vec::new(),
        accept_parked: false,
    }
}

async fn the_first_build_is_live_at_once_and_is_found_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    assert!(ready.database.views().await.expect("views can be read").is_empty());
    let first = make(&ready, &wanted(&ready, 1, false)).await;
    assert_eq!((first.id.to_string(), &*first.subscription), ("v1-b1".into(), "note-titles-v1"));
    let found = view(&ready).await;
    assert_eq!((found.live, found.epoch, found.builds.len()), (first.id, 1, 1));
    assert_eq!(found.builds[0].live_epoch, Some(1));
    let again = make(&ready.reopened().await, &wanted(&ready, 1, false)).await;
    assert_eq!((again.id, &again.namespace), (first.id, &first.namespace), "a second build was made");
    let second = make(&ready, &wanted(&ready, 2, false)).await;
    assert_eq!((second.id.version, second.live_epoch), (2, None));
    assert_eq!(view(&ready).await.live, first.id, "another version became live by itself");
}

async fn builds_have_tables_of_their_own<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let first = make(&ready, &wanted(&ready, 1, false)).await;
    let asked = wanted(&ready, 1, true);
    let further = make(&ready, &asked).await;
    assert_eq!(make(&ready.reopened().await, &asked).await.id, further.id, "one request made two builds");
    assert_eq!((further.id.to_string(), &*further.subscription), ("v1-b2".into(), "note-titles-v1-b2"));
    fold(&ready, &first, 3).await;
    fold(&ready, &further, 40).await;
    assert_eq!((sum(&ready, &first).await, sum(&ready, &further).await), (Some(3), Some(40)));
    let error = ready.database.tables(&first).sql("SELECT 1 FROM {title}").expect_err("there is none");
    assert_eq!(error.kind(), Kind::View, "{error}");
}

async fn tables_declared_otherwise_are_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    make(&ready, &wanted(&ready, 1, false)).await;
    let commented = Wanted {
        tables: Some(format!("-- said differently\n{}", ready.fixture().tables())),
        ..wanted(&ready, 1, false)
    };
    make(&ready, &commented).await;
    let other =
        Wanted { tables: Some("CREATE TABLE {titles} (k text, v bigint, w bigint)".into()), ..commented };
    let error = ready.database.make_build(&other).await.expect_err("it is another declaration");
    assert_eq!(error.kind(), Kind::View, "{error}");
    assert!(error.to_string().contains("version 2"), "{error}");
}

async fn a_declaration_that_fails_leaves_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let broken = Wanted {
        tables: Some(format!("{}; CREATE TABLE {{more}} (", ready.fixture().tables())),
        ..wanted(&ready, 1, false)
    };
    let error = ready.database.make_build(&broken).await.expect_err("it is no SQL");
    assert_eq!(error.kind(), Kind::View, "{error}");
    assert!(ready.database.views().await.expect("views can be read").is_empty());
    make(&ready, &wanted(&ready, 1, false)).await;
}

async fn cursors_from_before_the_tables_are_not_taken_over<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let before = Build::new(&wanted(&ready, 1, false), 1);
    follow(&ready, &before, Incarnation::new(), 5).await;
    let build = make(&ready, &wanted(&ready, 1, false)).await;
    assert_ne!(build.subscription, before.subscription, "its tables would lack the first five events");
}

async fn a_switch_waits_for_the_cursors_of_the_live_build<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let (first, second) =
        (make(&ready, &wanted(&ready, 1, false)).await, make(&ready, &wanted(&ready, 1, true)).await);
    let incarnation = Incarnation::new();
    follow(&ready, &first, incarnation, 5).await;
    let refused = ready.database.switch(&switch(1, &second)).await.expect("it is answered");
    assert!(matches!(refused, Switched::Behind { events: 5, .. }), "a build without cursors: {refused:?}");
    follow(&ready, &second, incarnation, 4).await;
    let refused = ready.database.switch(&switch(1, &second)).await.expect("it is answered");
    let goal = Goal { topic: service(), partition: 0, incarnation, sequence: 5 };
    assert_eq!(refused, Switched::Behind { goals: vec![goal], events: 1 });
    assert_eq!(view(&ready).await.live, first.id);
    let elsewhere = Switch { reads: Vec::new(), ..switch(1, &second) };
    let unread = ready.database.switch(&elsewhere).await.expect("it is answered");
    assert_eq!(unread, Switched::Done(2), "a topic that the build does not read is not compared");
    advance(&ready, &second, 6).await;
    let back = ready.database.switch(&switch(2, &first)).await.expect("it is answered");
    assert!(matches!(back, Switched::Behind { events: 1, .. }), "{back:?}");
    advance(&ready, &first, 6).await;
    assert_eq!(ready.database.switch(&switch(2, &first)).await.expect("it is answered"), Switched::Done(3));
    let found = view(&ready).await;
    assert_eq!((found.live, found.epoch), (first.id, 3));
}

async fn a_switch_waits_for_its_own_goals<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    make(&ready, &wanted(&ready, 1, false)).await;
    let second = make(&ready, &wanted(&ready, 2, false)).await;
    let incarnation = Incarnation::new();
    follow(&ready, &second, incarnation, 4).await;
    let goal = |incarnation, sequence| {
        let goal = Goal { topic: service(), partition: 0, incarnation, sequence };
        Switch { goals: vec![goal], ..switch(1, &second) }
    };
    let refused = ready.database.switch(&goal(incarnation, 7)).await.expect("it is answered");
    assert!(matches!(refused, Switched::Behind { events: 3, .. }), "{refused:?}");
    let other = ready.database.switch(&goal(Incarnation::new(), 4)).await.expect("it is answered");
    assert!(matches!(other, Switched::Behind { .. }), "a place in another log was reached: {other:?}");
    let done = ready.database.switch(&goal(incarnation, 4)).await.expect("it is answered");
    assert_eq!(done, Switched::Done(2));
}

async fn a_build_with_parked_keys_is_switched_to_only_if_that_is_accepted<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    make(&ready, &wanted(&ready, 1, false)).await;
    let second = make(&ready, &wanted(&ready, 1, true)).await;
    follow(&ready, &second, Incarnation::new(), 4).await;
    let claim = ready.claim(&second.subscription, HOLDER, LONG).await.remove(0);
    let mut tx = ready.begin().await;
    let events = ["a", "a", "b"].into_iter().zip(5..).map(|(key, sequence)| parked(&claim, sequence, key));
    tx.park(&events.collect::<Vec<_>>()).await.expect("they are parked");
    tx.advance(&claim, &after(&claim, 7)).await.expect("the cursor is where the claim says");
    tx.commit().await.expect("it commits");
    let refused = ready.database.switch(&switch(1, &second)).await.expect("it is answered");
    assert_eq!(refused, Switched::Parked(2));
    let accepted = Switch { accept_parked: true, ..switch(1, &second) };
    assert_eq!(ready.database.switch(&accepted).await.expect("it is answered"), Switched::Done(2));
    let third = make(&ready, &wanted(&ready, 1, true)).await;
    follow(&ready, &third, claim.cursor.incarnation, 7).await;
    assert_eq!(ready.database.switch(&switch(2, &third)).await.expect("it is answered"), Switched::Done(3));
    let mut wait = Wait::until("a build that nobody reads any more is dropped");
    while ready.database.drop_build(VIEW, second.id).await.is_err() {
        wait.again().await;
    }
    let left = ready.database.parked(&ParkedFilter::default(), 10).await.expect("they can be read");
    assert!(left.is_empty(), "what was parked of a dropped build is there still");
}

async fn the_pointer_only_goes_up<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let (first, second) =
        (make(&ready, &wanted(&ready, 1, false)).await, make(&ready, &wanted(&ready, 1, true)).await);
    assert_eq!(ready.database.switch(&switch(1, &second)).await.expect("it is answered"), Switched::Done(2));
    let late = ready.reopened().await.database.switch(&switch(1, &first)).await.expect("it is answered");
    assert_eq!(late, Switched::Elsewhere(2), "a switch that saw an older epoch");
    assert_eq!(ready.database.switch(&switch(2, &first)).await.expect("it is answered"), Switched::Done(3));
    let at_once = [&first, &second].map(|build| {
        let (database, switch) = (ready.database.clone(), switch(3, build));
        tokio::spawn(async move { database.switch(&switch).await.expect("it is answered") })
    });
    let [one, other] = at_once;
    let mut outcomes = [one.await.expect("it ends"), other.await.expect("it ends")];
    outcomes.sort_by_key(|outcome| *outcome != Switched::Done(4));
    assert_eq!(outcomes, [Switched::Done(4), Switched::Elsewhere(4)], "both moved it");
    let missing = Build { id: BuildId { version: 9, number: 9 }, ..first };
    let error = ready.database.switch(&switch(4, &missing)).await.expect_err("there is no such build");
    assert_eq!(error.kind(), Kind::View, "{error}");
}

async fn held_cursors_stand_still<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let build = make(&ready, &wanted(&ready, 1, false)).await;
    follow(&ready, &build, Incarnation::new(), 1).await;
    let claim = ready.claim(&build.subscription, HOLDER, LONG).await.remove(0);
    let holder = Uuid::now_v7();
    ready.database.hold(&build.subscription, holder, LONG).await.expect("it is held");
    let mut tx = ready.begin().await;
    let error = tx.advance(&claim, &after(&claim, 2)).await.expect_err("it is held");
    assert_eq!(error.kind(), Kind::Fenced, "{error}");
    drop(tx);
    assert!(
        ready.claim(&build.subscription, HOLDER, LONG).await.is_empty(),
        "it was claimed although it is held"
    );
    ready.database.release(&build.subscription, once(holder)).await.expect("it is released");
    assert_eq!(ready.claim(&build.subscription, HOLDER, LONG).await.len(), 2);
}

async fn a_dropped_build_is_gone_and_its_name_is_not_used_again<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(2).await;
    let first = make(&ready, &wanted(&ready, 1, false)).await;
    let second = make(&ready, &wanted(&ready, 1, true)).await;
    follow(&ready, &second, Incarnation::new(), 5).await;
    fold(&ready, &second, 1).await;
    ready.database.drop_build(VIEW, second.id).await.expect("it is dropped");
    assert_eq!(view(&ready).await.builds.len(), 1);
    assert_eq!((sum(&ready, &second).await, sum(&ready, &first).await), (None, Some(0)));
    let left = ready.database.cursors().await.expect("cursors can be read");
    assert!(left.iter().all(|state| state.subscription != second.subscription), "a cursor was left");
    let types = [<Noted as tombolo_event::Event>::TYPE.to_owned()];
    let error = ready.database.open(&second.subscription, &types, &[], false).await;
    assert_eq!(error.expect_err("a worker that has not heard of it opens it again").kind(), Kind::View);
    assert_eq!(make(&ready, &wanted(&ready, 1, true)).await.id.to_string(), "v1-b3");
    ready.database.drop_build(VIEW, second.id).await.expect("a repeat changes nothing");
    let never = BuildId { version: 1, number: 9 };
    let error = ready.database.drop_build(VIEW, never).await.expect_err("it never was");
    assert_eq!(error.kind(), Kind::View, "{error}");
}

async fn the_live_build_is_not_dropped<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let (first, second) =
        (make(&ready, &wanted(&ready, 1, false)).await, make(&ready, &wanted(&ready, 1, true)).await);
    let error = ready.database.drop_build(VIEW, first.id).await.expect_err("it is live");
    assert_eq!(error.kind(), Kind::View, "{error}");
    ready.database.switch(&switch(1, &second)).await.expect("it is switched");
    let error = ready.database.drop_build(VIEW, first.id).await.expect_err("somebody may still read it");
    assert!(error.to_string().contains("until just now"), "{error}");
    let mut wait = Wait::until("a build that nobody reads any more is dropped");
    while ready.database.drop_build(VIEW, first.id).await.is_err() {
        wait.again().await;
    }
    assert!(
        ready
            .database
            .make_build(&wanted(&ready, 1, false))
            .await
            .expect("it is answered")
            .is_some_and(|build| build.id == second.id)
    );
}

async fn comparing_shows_what_differs<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let (old, new) =
        (make(&ready, &wanted(&ready, 1, false)).await, make(&ready, &wanted(&ready, 1, true)).await);
    for (build, rows) in [(&old, [("a", 1), ("b", 2), ("c", 3)]), (&new, [("a", 1), ("b", 5), ("d", 4)])] {
        for (key, value) in rows {
            fold_as(&ready, build, key, value).await;
        }
    }
    let sample = Sample { rows: 10, seed: 1 };
    let compared = ready.database.compare(&old, &new, sample).await.expect("they can be compared");
    let [titles] = &compared[..] else { panic!("an index was taken for a table: {compared:?}") };
    assert_eq!((&*titles.table, titles.old_rows, titles.new_rows), ("titles", Some(3), Some(3)));
    assert!(!titles.same);
    let value = |row: &Option<Map<String, Value>>| row.as_ref().map(|row| row["v"].clone());
    let mut values: Vec<_> =
        titles.differences.iter().map(|row| format!("{:?} {:?}", value(&row.old), value(&row.new))).collect();
    values.sort();
    assert_eq!(values, ["None Some(Number(4))", "Some(Number(2)) Some(Number(5))", "Some(Number(3)) None"]);
    let one = ready.database.compare(&old, &new, Sample { rows: 1, ..sample }).await;
    assert_eq!(one.expect("they can be compared")[0].differences.len(), 1);
    let same = ready.database.compare(&old, &old, sample).await.expect("it can be compared");
    assert!(same[0].same && same[0].differences.is_empty());
    let users = Wanted { view: "others".into(), tables: None, ..wanted(&ready, 1, false) };
    let users = make(&ready, &users).await;
    let error = ready.database.compare(&old, &users, sample).await.expect_err("it has no tables");
    assert_eq!(error.kind(), Kind::View, "{error}");
}

async fn columns_that_only_one_build_has_are_told<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(1).await;
    let old = make(&ready, &wanted(&ready, 1, false)).await;
    let sample = Sample { rows: 10, seed: 1 };
    let other = Wanted {
        tables: Some("CREATE TABLE {titles} (k varchar(40) PRIMARY KEY, w bigint)".into()),
        ..wanted(&ready, 2, false)
    };
    let other = make(&ready, &other).await;
    let compared = ready.database.compare(&old, &other, sample).await.expect("they can be compared");
    assert_eq!(
        (&compared[0].only_old_columns, &compared[0].only_new_columns),
        (&vec!["v".into()], &vec!["w".into()])
    );
}
