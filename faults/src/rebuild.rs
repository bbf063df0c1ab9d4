//! The consumer's view is built anew beside the one that is read, under load, while the consumer is killed; then it is switched
//! to, and is the fold of its topics.

use std::time::Duration;

use rand::Rng;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::campaign::{Stage, Tally};
use crate::load::{self, Load};
use crate::process::{Outcome, Which, World};
use crate::roles::VIEW;
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::SecondProducer, Which::Consumer];
/// What there is to fold.
const ORDERS: usize = 20_000;
/// How long the load goes on beside a build that is ready.
const UNDER_LOAD: Duration = Duration::from_secs(15);
/// Kills during each build, at most, and what lies between them, at most.
const KILLS_MAX: u32 = 3;
const BETWEEN_MAX: Duration = Duration::from_millis(400);

/// Builds so often; after each build and switch everything settles and is checked.
pub(crate) async fn run(stage: Stage<'_>, builds: u32) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let mut acknowledged = load::heap(world.url(Which::Producer), ORDERS, 0).await?;
    let of_view = format!("view/{VIEW}");
    let mut tally = Tally::default();
    let (mut built, mut under_load) = (0, 0);
    while built < builds {
        let load = Load::start(&world, &format!("key-{built}-"));
        let before = verify::live(&world).await?;
        world.ask(Which::Consumer, &of_view, &json!({ "action": "rebuild", "switch": true })).await?;
        for _ in 0..stage.random.random_range(1..=KILLS_MAX) {
            sleep(BETWEEN_MAX.mul_f64(stage.random.random())).await;
            world.kill(Which::Consumer).await?;
            tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
            tally.landed += 1;
            world.spawn(Which::Consumer, None).await?;
        }
        world.ready(Which::Consumer).await?;
        // Under load it is switched to by holding the live one still for a moment; at the latest when the load ends.
        under_load += u32::from(timeout(UNDER_LOAD, until_switched(&world, &before)).await.is_ok());
        acknowledged.extend(load.stop().await);
        until_switched(&world, &before).await?;
        tally.events = verify::settled(&world, &acknowledged).await?.events;
        built += 1;
        world
            .ask(Which::Consumer, &of_view, &json!({ "action": "drop", "build": format!("v1-b{built}") }))
            .await?;
    }
    let note = format!("{built} builds switched to, {under_load} of them under load");
    Ok(Tally { acknowledged: acknowledged.len(), note, ..tally })
}

async fn until_switched(world: &World<'_>, before: &str) -> Outcome<()> {
    let switched = async |world: &World<'_>| {
        let now = verify::live(world).await.ok()?;
        (now != before).then_some(())
    };
    world.until("readers to be switched to the new build", switched).await
}
