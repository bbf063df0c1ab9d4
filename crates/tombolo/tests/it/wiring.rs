//! Mistakes in putting a service together: each is said by name before anything starts.

use tombolo::sqlite::{Sqlite, Tx};
use tombolo::{Handled, Kind, Service, Settings, State, View};

use crate::support::{Ground, Placed, copy};

async fn needs_a_state(_: Placed, _: State<u64>, _: &mut Tx) -> Handled {
    Ok(())
}

fn wrong(service: &Service<Sqlite>) -> String {
    let error = service.describe().unwrap_err();
    assert_eq!(error.kind(), Kind::Wiring);
    error.to_string()
}

#[tokio::test]
async fn mistakes_are_named() {
    let ground = Ground::new();
    let service = |name: &str| Service::new(name, ground.database("any"));
    assert!(wrong(&service("Odd Name")).contains("\"Odd Name\" contains 'O'"));
    assert!(wrong(&service("a").partitions(0)).contains("0 partitions"));
    assert!(wrong(&service("a").view(View::new("v", 1))).contains("handles nothing"));
    assert!(
        wrong(&service("a").view(View::new("v", 1).on(copy).on(copy))).contains("orders.placed.v1 twice")
    );
    assert!(
        wrong(&service("a").view(View::new("v", 1).on(copy)).view(View::new("v", 1).on(copy)))
            .contains("\"v-v1\" twice")
    );
    assert!(wrong(&service("a").view(View::new("v", 1).on(needs_a_state))).contains("State<u64>"));
    assert!(
        wrong(&service("a").publishes::<Placed>().publishes::<Placed>())
            .contains("\"orders.placed.v1\" twice")
    );
}

#[tokio::test]
async fn a_descriptor_says_everything_that_crosses_the_border_and_starts_nothing() {
    let ground = Ground::new();
    let descriptor = ground.orders_service().view(View::new("copies", 2).on(copy)).describe().unwrap();
    let json = serde_json::to_value(&descriptor).unwrap();
    assert_eq!(json["service"], "orders");
    assert_eq!(json["database"], "sqlite");
    assert_eq!(json["publishes"][0]["type"], "orders.placed.v1");
    assert_eq!(json["publishes"][0]["schema"]["properties"]["cents"]["type"], "integer");
    assert_eq!(json["subscriptions"][0]["name"], "copies-v2");
    assert_eq!(json["subscriptions"][0]["handles"][0]["topic"], "orders");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let ground = Ground::new();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let settings = Settings { listen: listen.clone(), ..Settings::default() };
    let bus = std::sync::Arc::clone(&ground.bus) as std::sync::Arc<dyn tombolo_bus::Bus>;
    let error = ground.orders_service().bus(bus).start(settings).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Listen);
    assert!(error.to_string().contains(&listen), "{error}");
}

#[tokio::test]
async fn a_view_that_folds_a_new_type_must_become_a_new_version() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let history = ground.history().await;
    crate::support::place(&orders.app, "o1", 1).await;
    crate::support::until_copied(&history.app, 1).await;
    history.shutdown().await;
    let changed = ground.history_service_with_more();
    let changed = ground.start(changed).await;
    crate::support::eventually("a refusal", || async {
        crate::support::subscription(&changed.app)
            .and_then(|status| status.detail)
            .is_some_and(|detail| detail.contains("next version"))
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let ground = Ground::new();
    let database = Sqlite::open("sqlite:/no/such/folder/orders.db").unwrap();
    let bus = std::sync::Arc::clone(&ground.bus) as std::sync::Arc<dyn tombolo_bus::Bus>;
    let error = Service::new("orders", database).bus(bus).start(Settings::default()).await.err().unwrap();
    assert!(error.to_string().contains("/no/such/folder/orders.db"), "{error}");
    let error = Sqlite::open("postgres://localhost/orders").unwrap_err();
    assert!(error.to_string().contains("built for SQLite"), "{error}");
}
