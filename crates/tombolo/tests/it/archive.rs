//! A subscription that begins on a bus of which the first events are only in the archive: Redis, trimmed, and PostgreSQL.

use std::sync::Arc;

use tombolo::status::State;
use tombolo::{Service, Settings, View, sqlite::Sqlite};
use tombolo_bus::archiving::{Archiver, Keep};
use tombolo_bus::{Bus, Identity};
use tombolo_event::ServiceName;
use uuid::Uuid;

use crate::support::{Ground, copy, eventually, place, until_copied, with_copies};

fn servers() -> Option<(String, String)> {
    let url = |variable: &str| {
        let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
        if url.is_none() {
            eprintln!(
                "skipped: an archive of Redis in PostgreSQL: {variable} is not set; run cargo xtask test --install"
            );
        }
        url
    };
    let namespace = format!("it-{}", Uuid::new_v4().simple());
    let at = |url: String| format!("{url}{}namespace={namespace}", if url.contains('?') { '&' } else { '?' });
    Some((at(url("TOMBOLO_TEST_REDIS")?), at(url("TOMBOLO_TEST_POSTGRES")?)))
}

async fn archive_and_trim(bus: &str, archive: &str, keep_events: u64) -> u64 {
    let [bus, archive] = [bus, archive].map(|url| {
        let url = url.to_owned();
        async move { tombolo_bus::connect(&url, &Identity::Operator).await.unwrap() }
    });
    let (bus, archive): (Arc<dyn Bus>, Arc<dyn Bus>) = (bus.await, archive.await);
    let archiver = Archiver::new(bus, archive, ServiceName::new("orders").unwrap());
    archiver.to_present(&mut |_, _| {}).await.unwrap();
    archiver.trim(&Keep { events: keep_events, is_old: &|_| true }).await.unwrap()
}

#[tokio::test]
async fn a_subscription_that_begins_after_trimming_sees_every_event_once_and_in_order() {
    let Some((bus, archive)) = servers() else { return };
    let ground = Ground::new();
    let settings = Settings { bus: bus.clone(), archive: Some(archive.clone()), ..Settings::default() };
    let orders = ground.orders_service().start(settings.clone()).await.unwrap();
    for n in 0..400 {
        place(&orders.app, &format!("key-{}", n % 5), n).await;
    }
    let client = tombolo_bus::connect(&bus, &Identity::Operator).await.unwrap();
    eventually("all of it is on the bus", || async {
        let tails = client.tails(&ServiceName::new("orders").unwrap()).await.unwrap();
        tails.iter().map(|tail| tail.sequence).sum::<u64>() == 400
    })
    .await;
    assert!(archive_and_trim(&bus, &archive, 3).await > 300, "most is gone from the bus");
    let history = ground.history_service().start(settings.clone()).await.unwrap();
    for n in 400..450 {
        place(&orders.app, &format!("key-{}", n % 5), n).await;
    }
    let copies = until_copied(&history.app, 450).await;
    for key in 0..5 {
        let applied: Vec<i64> = copies
            .iter()
            .filter(|(order, _)| *order == format!("key-{key}"))
            .map(|(_, cents)| *cents)
            .collect();
        assert_eq!(applied, (0..450).filter(|n| n % 5 == key).collect::<Vec<_>>(), "key {key}");
    }
    archive_and_trim(&bus, &archive, 1).await;
    place(&orders.app, "key-0", 450).await;
    assert_eq!(until_copied(&history.app, 451).await.len(), 451, "who is at the end needs no archive");

    let alone: Service<Sqlite> =
        with_copies(Service::new("late", ground.database("late"))).view(View::new("copies", 1).on(copy));
    let alone = alone.start(Settings { bus, ..Settings::default() }).await.unwrap();
    eventually("without the archive it stops by name", || async {
        let stopped = |status: &tombolo::status::SubscriptionStatus| {
            let mut whys = status.partitions.iter().filter_map(|partition| partition.error.as_deref());
            status.state == State::Stopped && whys.any(|why| why.contains("TOMBOLO_ARCHIVE"))
        };
        alone.app.status().subscriptions.iter().any(stopped)
    })
    .await;
    for running in [orders, history, alone] {
        running.shutdown().await;
    }
}
