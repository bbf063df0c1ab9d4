//! A topic that moves to another bus: what its service and its readers do meanwhile and afterwards.

use std::sync::Arc;

use tombolo::{Service, Settings, sqlite::Sqlite};
use tombolo_bus::archiving::Archiver;
use tombolo_bus::embedded::{Log, Options};
use tombolo_bus::{Bus, moving};
use tombolo_event::ServiceName;

use crate::support::{Ground, eventually, place, until_copied};

async fn start_on(bus: &Arc<Log>, service: Service<Sqlite>) -> tombolo::Running<Sqlite> {
    service.bus(Arc::clone(bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap()
}

#[tokio::test]
async fn a_service_whose_topic_was_moved_says_so_and_goes_on_with_the_other_bus() {
    let ground = Ground::new();
    let [old, new] = [(); 2].map(|()| Log::in_memory(Options::default()).unwrap());
    let orders = start_on(&old, ground.orders_service()).await;
    let history = start_on(&old, ground.history_service()).await;
    for n in 0..100 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    until_copied(&history.app, 100).await;
    let name = ServiceName::new("orders").unwrap();
    moving::topic(&*old, &*new, &name, |_, _| {}).await.unwrap();
    place(&orders.app, "late", 100).await;
    eventually("the relay says that its topic was moved", || async {
        let relay = orders.app.status().relay.unwrap();
        relay.state.contains("moved to another bus") && !relay.is_halted && relay.outbox_rows >= 1
    })
    .await;
    orders.shutdown().await;
    history.shutdown().await;

    let orders = start_on(&new, ground.orders_service()).await;
    let history = start_on(&new, ground.history_service()).await;
    place(&orders.app, "later", 101).await;
    let copied = until_copied(&history.app, 102).await;
    let mut cents: Vec<i64> = copied.into_iter().map(|(_, cents)| cents).collect();
    cents.sort_unstable();
    assert_eq!(cents, (0..102).collect::<Vec<_>>(), "each once");
    orders.shutdown().await;
    history.shutdown().await;
}

#[tokio::test]
async fn a_service_that_is_started_on_an_archive_by_mistake_publishes_nothing_there() {
    let ground = Ground::new();
    let [bus, kept] = [(); 2].map(|()| Log::in_memory(Options::default()).unwrap());
    let orders = start_on(&bus, ground.orders_service()).await;
    for n in 0..20 {
        place(&orders.app, &format!("o{n}"), n).await;
    }
    let name = ServiceName::new("orders").unwrap();
    let events = async || bus.tails(&name).await.unwrap().iter().map(|tail| tail.sequence).sum::<u64>();
    eventually("all of it is on the bus", || async { events().await == 20 }).await;
    orders.shutdown().await;
    let archiver =
        Archiver::new(Arc::clone(&bus) as Arc<dyn Bus>, Arc::clone(&kept) as Arc<dyn Bus>, name.clone());
    archiver.to_present(&mut |_, _| {}).await.unwrap();
    let before = kept.tails(&name).await.unwrap();

    let orders = start_on(&kept, ground.orders_service()).await;
    place(&orders.app, "late", 20).await;
    eventually("it is halted", || async { orders.app.status().relay.is_some_and(|relay| relay.is_halted) })
        .await;
    assert_eq!(kept.tails(&name).await.unwrap(), before);
    orders.shutdown().await;
}
