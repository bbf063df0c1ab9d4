//! The same on PostgreSQL, where a copy is a database made from another as its template.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgPool};
use tombolo::postgres::Postgres;
use tombolo::recovery::What;
use tombolo::{App, Running, Service, Settings};
use tombolo_bus::Bus;
use tombolo_bus::embedded::Log;

use super::site::{Site, events, look, take_bus, topic, until_halted, until_published};
use crate::engines;
use crate::support::{Ground, Placed, copies, eventually, until_copied};

/// Databases of one server, which can be copied while nobody is connected to them.
struct Server {
    admin: PgPool,
    database: Postgres,
}

impl Server {
    async fn start() -> Option<Self> {
        let database = engines::postgres().await?;
        let options = (*database.pool().connect_options()).clone().database("postgres");
        Some(Self { admin: PgPool::connect_with(options).await.unwrap(), database })
    }

    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.database.pool().connect_options().get_database().unwrap())
    }

    fn open(&self, part: &str) -> Postgres {
        let options = (*self.database.pool().connect_options()).clone().database(&self.name(part));
        Postgres::new(PgPool::connect_lazy_with(options))
    }

    /// Copies a database over whatever `to` was.
    async fn copy(&self, from: &str, to: &str) {
        self.drop(to).await;
        let (from, to) = (self.name(from), self.name(to));
        let copy = format!("CREATE DATABASE {to} TEMPLATE {from}");
        // A connection that was closed may be there for a moment longer.
        eventually("the copy is made", async || {
            sqlx::raw_sql(AssertSqlSafe(copy.clone())).execute(&self.admin).await.is_ok()
        })
        .await;
    }

    async fn drop(&self, part: &str) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name(part));
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&self.admin).await.unwrap();
    }

    async fn orders(&self, bus: &Arc<Log>, part: &str) -> Running<Postgres> {
        let service = Service::new("orders", self.open(part)).publishes::<Placed>().setup(engines::table);
        service.bus(Arc::clone(bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap()
    }
}

async fn stop(running: Running<Postgres>) {
    let database = running.app.database().clone();
    running.shutdown().await;
    database.pool().close().await;
}

async fn place_many(app: &App<Postgres>, numbers: std::ops::Range<i64>) {
    for n in numbers {
        engines::place(app, &format!("o{n}"), n).await;
    }
}

#[tokio::test]
async fn a_database_from_before_other_events_is_halted_and_goes_on_behind_the_bus() {
    let Some(server) = Server::start().await else { return };
    let site = Site::new();
    let bus = site.log("bus");
    let orders = server.orders(&bus, "").await;
    place_many(&orders.app, 0..20).await;
    until_published(&orders).await;
    stop(orders).await;
    server.copy("", "_backup").await;
    let orders = server.orders(&bus, "").await;
    place_many(&orders.app, 20..120).await;
    until_published(&orders).await;
    let epoch = topic(&bus).await.epoch;

    // The copy beside the original, which goes on.
    for n in 0..3 {
        let copy = server.orders(&bus, "_backup").await;
        let state = until_halted(&copy).await;
        assert!(state.contains("the database of orders is older than its topic on the bus"), "{state}");
        place_many(&copy.app, 900 + n..901 + n).await;
        stop(copy).await;
    }
    assert_eq!((topic(&bus).await.epoch, events(&bus).await), (epoch, 120));
    assert!(orders.app.status().relay.unwrap().leading, "the original was never disturbed");
    stop(orders).await;

    let restored = server.orders(&bus, "_backup").await;
    until_halted(&restored).await;
    let shown = look(&restored).await;
    assert_eq!(shown.now.unwrap().what, What::DatabaseBehind);
    assert_eq!(shown.partitions.iter().map(|seen| seen.unknown.unwrap()).sum::<u64>(), 100);
    take_bus(&restored).await;
    until_published(&restored).await;
    place_many(&restored.app, 950..953).await;
    let history = site.history(&bus).await;
    let mut seen: Vec<i64> =
        until_copied(&history.app, 126).await.into_iter().map(|(_, cents)| cents).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..120).chain(900..903).chain(950..953).collect::<Vec<_>>());
    stop(restored).await;
    for part in ["_backup", ""] {
        server.drop(part).await;
    }
}

/// The repeat of an append whose acknowledgement was lost has one row more in it: one that committed late.
#[tokio::test]
async fn a_late_commit_that_joins_a_repeated_batch_changes_no_number() {
    let Some(server) = Server::start().await else { return };
    let ground = Ground::new();
    let service = Service::new("orders", server.open("")).publishes::<Placed>().setup(engines::table);
    let orders =
        service.bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(Settings::default()).await.unwrap();
    let history = ground.history().await;
    for n in 0..3 {
        let mut late = orders.app.begin().await.unwrap();
        sqlx::query("INSERT INTO rows (id, cents) VALUES ('late', $1)")
            .bind(n)
            .execute(&mut *late)
            .await
            .unwrap();
        late.publish(&Placed { order: "same".into(), cents: 1_000 + n }).unwrap();
        ground.bus.lose_acknowledgements(2);
        engines::place(&orders.app, "same", n).await;
        eventually("the first acknowledgement is lost", async || ground.bus.acknowledgements_to_lose() < 2)
            .await;
        late.commit().await.unwrap();
        eventually("the other, too", async || ground.bus.acknowledgements_to_lose() == 0).await;
        until_published(&orders).await;
    }
    until_copied(&history.app, 6).await;
    let seen: Vec<i64> = copies(&history.app).await.into_iter().map(|(_, cents)| cents).collect();
    assert_eq!(seen, (0..3).flat_map(|n| [n, 1_000 + n]).collect::<Vec<_>>(), "each once, in commit order");
    stop(orders).await;
    server.drop("").await;
}
