//! The bus is away: orders are taken all the same, and gather in the outbox; when it comes back they drain.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::campaign::{Stage, Tally};
use crate::load::{self, Load};
use crate::process::{Outcome, Which};
use crate::reader::Count;
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::Consumer];
/// How long the load goes on before and without the bus, for its latencies.
const NORMAL: Duration = Duration::from_secs(3);

/// So many rows of the outbox are the load's own.
const MOVING: i64 = 100;

/// Lets so many orders gather, then drains them.
pub(crate) async fn run(stage: Stage<'_>) -> Outcome<Tally> {
    let orders = stage.gathered;
    let mut world = stage.world(CAST, None).await?;
    let load = Load::start(&world, "key");
    sleep(NORMAL).await;
    let normal = load.p99();
    world.kill(Which::Bus).await?;
    let gathering = Instant::now();
    let mut acknowledged = load::heap(world.url(Which::Producer), orders, 0).await?;
    let gathering = gathering.elapsed();
    load.p99();
    sleep(NORMAL).await;
    let without = load.p99();
    world.spawn(Which::Bus, None).await?;
    let draining = Instant::now();
    let mut database = world.scene.databases.read(Which::Producer).await?;
    while database.count(Count::Waiting).await? > MOVING {
        sleep(verify::LOOK_EVERY).await;
    }
    database.close().await?;
    let draining = draining.elapsed().as_secs_f64();
    let meanwhile = load.p99();
    acknowledged.extend(load.stop().await);
    let events = verify::settled(&world, &acknowledged).await?.events;
    let note = format!(
        "{orders} rows gathered in {:.0} s, drained in {draining:.1} s ({:.0}/s); producers' p99 {} ms before, {} without the bus, {} while draining",
        gathering.as_secs_f64(),
        orders as f64 / draining,
        normal.as_millis(),
        without.as_millis(),
        meanwhile.as_millis(),
    );
    Ok(Tally { landed: 1, in_flight: 1, acknowledged: acknowledged.len(), events, note })
}
