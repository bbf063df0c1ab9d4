//! Several replicas of one service: how they share, take over, and give up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tombolo::settings::Lease;
use tombolo::sqlite::Sqlite;
use tombolo::status::State as Status;
use tombolo::{Reactor, Running, Service, Settings, View};
use tombolo_bus::Bus;

use crate::support::{Ground, copies, copy, eventually, place, subscription, until_copied, with_copies};

/// A lease that no test waits for the end of.
const LONG: Duration = Duration::from_secs(60);
/// A lease that a test waits for the end of.
const SHORT: Duration = Duration::from_millis(900);
/// Partitions of the topic that is read.
const PARTITIONS: usize = 8;

fn reacting(ground: &Ground) -> Service<Sqlite> {
    with_copies(Service::new("history", ground.database("history")))
        .react(Reactor::from_start("copier").on(copy))
}

fn viewing(ground: &Ground) -> Service<Sqlite> {
    with_copies(Service::new("history", ground.database("history"))).view(View::new("copies", 1).on(copy))
}

async fn replica(ground: &Ground, service: Service<Sqlite>, number: u32, lease: Duration) -> Running<Sqlite> {
    let settings = Settings { replica: Some(number), lease: Lease(lease), ..Settings::default() };
    service.bus(Arc::clone(&ground.bus) as Arc<dyn Bus>).start(settings).await.unwrap()
}

/// The partitions that a replica holds.
fn held(replica: &Running<Sqlite>) -> Vec<u32> {
    let partitions = subscription(&replica.app).map(|found| found.partitions).unwrap_or_default();
    partitions.into_iter().map(|partition| partition.partition).collect()
}

/// Waits until the replicas hold so many partitions each, and no partition twice.
async fn until_shared(replicas: &[&Running<Sqlite>], shares: &[usize]) {
    let what = format!("shares of {shares:?}");
    eventually(&what, || async {
        let all: Vec<Vec<u32>> = replicas.iter().map(|replica| held(replica)).collect();
        let mut sizes: Vec<usize> = all.iter().map(Vec::len).collect();
        sizes.sort_unstable();
        let each: BTreeSet<u32> = all.iter().flatten().copied().collect();
        sizes == shares && each.len() == shares.iter().sum::<usize>()
    })
    .await;
}

/// Orders of six keys, 25 of each, written one after the other.
async fn place_many(orders: &Running<Sqlite>, round: i64) {
    for n in 0..150 {
        place(&orders.app, &format!("k{}", n % 6), round * 1_000 + n).await;
    }
}

/// Each order of these rounds is there once, and those of a key in order.
async fn assert_whole(history: &Running<Sqlite>, rounds: usize) {
    let all = until_copied(&history.app, rounds * 150).await;
    assert_eq!(all.len(), rounds * 150, "an order is there twice");
    for key in 0..6 {
        let of_key: Vec<i64> =
            all.iter().filter(|(id, _)| *id == format!("k{key}")).map(|(_, cents)| *cents).collect();
        assert_eq!(of_key.len(), rounds * 25);
        assert!(of_key.is_sorted(), "k{key}: {of_key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_move_without_loss_or_double_while_events_flow() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let first = replica(&ground, reacting(&ground), 1, LONG).await;
    place_many(&orders, 1).await;
    until_shared(&[&first], &[PARTITIONS]).await;
    let join = async {
        let second = replica(&ground, reacting(&ground), 2, LONG).await;
        until_shared(&[&first, &second], &[4, 4]).await;
        let third = replica(&ground, reacting(&ground), 3, LONG).await;
        until_shared(&[&first, &second, &third], &[2, 3, 3]).await;
        (second, third)
    };
    let ((), (second, third)) = tokio::join!(place_many(&orders, 2), join);
    let leave = async {
        first.shutdown().await;
        until_shared(&[&second, &third], &[4, 4]).await;
        third.shutdown().await;
        until_shared(&[&second], &[PARTITIONS]).await;
    };
    tokio::join!(place_many(&orders, 3), leave);
    assert_whole(&second, 3).await;
}

/// Nothing is said and nothing released: its lease has to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replicas_share_is_taken_over_when_its_lease_ends() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let first = replica(&ground, reacting(&ground), 1, SHORT).await;
    let second = replica(&ground, reacting(&ground), 2, SHORT).await;
    place_many(&orders, 1).await;
    until_shared(&[&first, &second], &[4, 4]).await;
    drop(first);
    place_many(&orders, 2).await;
    until_shared(&[&second], &[PARTITIONS]).await;
    assert_whole(&second, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_kept_by_one_replica_and_moves_when_that_leaves() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let first = replica(&ground, viewing(&ground), 1, LONG).await;
    place_many(&orders, 1).await;
    until_shared(&[&first], &[PARTITIONS]).await;
    let second = replica(&ground, viewing(&ground), 2, LONG).await;
    place_many(&orders, 2).await;
    assert_whole(&first, 2).await;
    assert_eq!((held(&first).len(), held(&second).len()), (PARTITIONS, 0));
    assert_eq!(subscription(&second.app).unwrap().state, Status::Waiting);
    let leave = async {
        first.shutdown().await;
        until_shared(&[&second], &[PARTITIONS]).await;
    };
    tokio::join!(place_many(&orders, 3), leave);
    assert_whole(&second, 3).await;
}

/// As a process that was believed dead and goes on, or two that were given the same number by mistake.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_life_of_a_replica_gives_way_and_says_so() {
    let ground = Ground::new();
    let orders = ground.orders().await;
    let earlier = replica(&ground, reacting(&ground), 1, LONG).await;
    place_many(&orders, 1).await;
    until_shared(&[&earlier], &[PARTITIONS]).await;
    let later = replica(&ground, reacting(&ground), 1, LONG).await;
    until_shared(&[&later], &[PARTITIONS]).await;
    eventually("the earlier life says why it waits", || async {
        let detail = subscription(&earlier.app).unwrap().detail.unwrap_or_default();
        detail.contains("another process runs as the same replica")
    })
    .await;
    place_many(&orders, 2).await;
    assert_whole(&later, 2).await;
    assert_eq!(held(&later).len(), PARTITIONS, "it is not disturbed");
    later.shutdown().await;
    until_shared(&[&earlier], &[PARTITIONS]).await;
    assert_eq!(copies(&earlier.app).await.len(), 300);
}

#[cfg(all(feature = "postgres", feature = "nats"))]
mod on_postgres {
    use std::sync::Arc;

    use tokio::sync::Semaphore;
    use tombolo::postgres::{Postgres, Tx};
    use tombolo::settings::Lease;
    use tombolo::{Handled, Reactor, Running, Service, Settings, State};
    use tombolo_bus::Bus;

    use super::{LONG, eventually};
    use crate::engines;
    use crate::support::{Ground, Placed, place};

    /// Lets each handler's end pass once, and tells how many have begun.
    #[derive(Clone)]
    struct Gate {
        begun: Arc<Semaphore>,
        open: Arc<Semaphore>,
    }

    impl Gate {
        fn new(open: usize) -> Self {
            Self { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(open)) }
        }
    }

    async fn copy_through(event: Placed, State(gate): State<Gate>, tx: &mut Tx) -> Handled {
        engines::copy(event, tx).await?;
        gate.begun.add_permits(1);
        gate.open.acquire().await?.forget();
        Ok(())
    }

    /// A life of replica 1 of the service that keeps rows.
    async fn life(ground: &Ground, database: &Postgres, gate: &Gate) -> Running<Postgres> {
        let service = Service::new("history", database.clone())
            .state(gate.clone())
            .react(Reactor::from_start("rows").on(copy_through));
        let settings = Settings { replica: Some(1), lease: Lease(LONG), ..Settings::default() };
        let bus = Arc::clone(&ground.bus) as Arc<dyn Bus>;
        service.setup(engines::table).bus(bus).start(settings).await.unwrap()
    }

    /// As a process that stood still in the middle of a batch until another one had done it.
    #[tokio::test]
    async fn a_worker_that_was_replaced_in_the_middle_of_a_batch_commits_nothing() {
        let Some(database) = engines::postgres().await else { return };
        let ground = Ground::new();
        let orders = ground.orders().await;
        let (shut, open) = (Gate::new(0), Gate::new(1_000));
        let earlier = life(&ground, &database, &shut).await;
        place(&orders.app, "o1", 1).await;
        shut.begun.acquire().await.unwrap().forget();
        let later = life(&ground, &database, &open).await;
        let rows = async || engines::rows(&later.app).await;
        eventually("the later life's row", || async { rows().await.len() == 1 }).await;
        // It goes on, and wants to commit what is done already.
        shut.open.add_permits(1);
        eventually("the earlier life says why it waits", || async {
            let status = earlier.app.status().subscriptions.remove(0);
            status.detail.is_some_and(|detail| detail.contains("another process runs as the same replica"))
        })
        .await;
        place(&orders.app, "o1", 2).await;
        eventually("a second row", || async { rows().await.len() >= 2 }).await;
        assert_eq!(rows().await, [("o1".to_owned(), 1), ("o1".to_owned(), 2)]);
    }
}
