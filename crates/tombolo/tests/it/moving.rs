//! A topic that moves to another bus: what its service and its readers do meanwhile and afterwards.

use std::sync::Arc;

use tombolo::{Service, Settings, sqlite::Sqlite};
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
