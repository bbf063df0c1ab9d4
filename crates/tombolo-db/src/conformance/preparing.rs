//! Cases about whose database it is, its tables and its settings.

use super::stage::{LONG, owner, service};
use super::{Case, Fixture, Stage};
use crate::{Kind, Outbox, Owner, Schema};
use tombolo_event::ServiceName;
use uuid::Uuid;

pub(super) fn cases<F: Fixture>() -> Vec<Case<F>> {
    vec![
        Case::new(missing_tables_are_named_with_the_command_that_makes_them),
        Case::new(preparing_again_changes_nothing),
        Case::new(replicas_prepare_at_once),
        Case::new(a_database_of_another_service_is_refused),
        Case::new(another_number_of_partitions_is_refused),
        Case::new(unsafe_settings_are_refused_by_name).needing(|abilities| abilities.unsafe_settings),
        Case::new(a_database_that_is_not_there_is_named).needing(|abilities| abilities.absence),
    ]
}

async fn missing_tables_are_named_with_the_command_that_makes_them<F: Fixture>(stage: Stage<F>) {
    let database = stage.fixture.fresh().await;
    let error = database.prepare(&owner(4), Schema::Check).await.expect_err("there are no tables");
    assert_eq!(error.kind(), Kind::Schema);
    assert!(error.to_string().contains("tombolo schema apply"), "{error}");
    database.prepare(&owner(4), Schema::Apply).await.expect("they are made");
    database.prepare(&owner(4), Schema::Check).await.expect("they are there");
}

async fn preparing_again_changes_nothing<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let first = ready.lead(Uuid::now_v7()).await;
    ready.database.prepare(&owner(4), Schema::Apply).await.expect("it is prepared again");
    assert!(ready.database.lead(Uuid::now_v7(), LONG).await.expect("leading works").is_none());
    assert_eq!((first.epoch(), first.marks().len()), (1, 4));
}

async fn replicas_prepare_at_once<F: Fixture>(stage: Stage<F>) {
    let database = stage.fixture.fresh().await;
    let mut replicas = Vec::new();
    for _ in 0..4 {
        let replica = stage.fixture.reopen(&database).await;
        replicas.push(tokio::spawn(async move {
            let mut prepared = replica.prepare(&owner(4), Schema::Apply).await;
            while prepared.as_ref().is_err_and(crate::Error::is_transient) {
                prepared = replica.prepare(&owner(4), Schema::Apply).await;
            }
            prepared
        }));
    }
    for replica in replicas {
        replica.await.expect("no panic").expect("each replica prepares");
    }
}

async fn a_database_of_another_service_is_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let other = Owner { service: ServiceName::new("orders").expect("a valid name"), partitions: 4 };
    let error = ready.database.prepare(&other, Schema::Apply).await.expect_err("it is another's");
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(
        error.to_string().contains(service().as_str()) && error.to_string().contains("orders"),
        "{error}"
    );
}

async fn another_number_of_partitions_is_refused<F: Fixture>(stage: Stage<F>) {
    let ready = stage.prepared(4).await;
    let error = ready.database.prepare(&owner(8), Schema::Apply).await.expect_err("it has 4");
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(error.to_string().contains("4 partitions"), "{error}");
}

async fn unsafe_settings_are_refused_by_name<F: Fixture>(stage: Stage<F>) {
    let database = stage.fixture.unsafe_setting().await;
    let error = database.prepare(&owner(4), Schema::Apply).await.expect_err("a setting is unsafe");
    assert_eq!(error.kind(), Kind::Unsafe, "{error}");
}

async fn a_database_that_is_not_there_is_named<F: Fixture>(stage: Stage<F>) {
    let database = stage.fixture.absent().await;
    let error = database.prepare(&owner(4), Schema::Apply).await.expect_err("it is not there");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("check that it runs") || error.to_string().contains("create it"),
        "{error}"
    );
}
