//! Orders that the consumer cannot handle: one that kills the process each time, and sour ones that fail now and then, are
//! parked and brought back by operators while everything goes on.

use std::time::Duration;

use rand::Rng;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::campaign::{Stage, Tally};
use crate::load::Load;
use crate::process::{Outcome, Placed, Which, World};
use crate::roles::DEADLY;
use crate::verify::{self, Broken, Except};

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::SecondProducer, Which::Consumer];
/// How often a consumer may die of the same order before it must be parked.
const DEATHS_MAX: u32 = 12;
/// How often operators want everything back.
const REDRIVE_EVERY: Duration = Duration::from_millis(150);
/// Between two kills, at most.
const BETWEEN_MAX: Duration = Duration::from_millis(1_200);

/// An order that kills the process each time is parked after its tries, the others flow on; then it is dropped.
pub(crate) async fn deadly(stage: Stage<'_>) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let load = Load::start(&world, "key");
    let deadly = Placed::new(DEADLY, 1);
    let placed = reqwest::Client::new().post(format!("{}/orders", world.url(Which::Producer)));
    placed.json(&deadly).send().await?.error_for_status()?;
    let mut deaths = 0;
    while verify::parked(&world).await? == 0 {
        if world.is_dead(Which::Consumer) {
            deaths += 1;
            world.spawn(Which::Consumer, None).await?;
        }
        if deaths > DEATHS_MAX {
            return Err(Broken(format!("it killed the process {deaths} times and is not parked")).into());
        }
        sleep(verify::LOOK_EVERY).await;
    }
    let in_flight = u32::from(verify::is_work_in_flight(&world, &load).await?);
    world.ready(Which::Consumer).await?;
    world.ask(Which::Consumer, "copies-v1", &json!({ "action": "discard", "key": DEADLY })).await?;
    let mut orders = load.stop().await;
    orders.push(deadly.id.clone());
    let except = Except { dropped: vec![deadly.id], ..Except::default() };
    let events = verify::settled_but(&world, &orders, &except).await?.events;
    let note = format!("parked after {deaths} deaths");
    Ok(Tally { landed: 1, in_flight, acknowledged: orders.len(), events, note })
}

/// Sour orders are parked and brought back under load, while the consumer is killed so often.
pub(crate) async fn redrive(stage: Stage<'_>, kills: u32) -> Outcome<Tally> {
    let mut world = stage.world(CAST, None).await?;
    let load = Load::start_with_sour(&world, "key");
    let _operators = operators(&world);
    let (mut tally, mut most) = (Tally::default(), 0);
    while tally.landed < kills {
        sleep(BETWEEN_MAX.mul_f64(stage.random.random())).await;
        most = most.max(verify::parked(&world).await?);
        world.kill(Which::Consumer).await?;
        tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
        tally.landed += 1;
        world.spawn(Which::Consumer, None).await?;
        world.ready(Which::Consumer).await?;
    }
    let acknowledged = load.stop().await;
    let events = verify::settled(&world, &acknowledged).await?.events;
    let note = format!("up to {most} events parked");
    Ok(Tally { acknowledged: acknowledged.len(), events, note, ..tally })
}

/// Operators who want everything back all the time, until they are dropped.
pub(crate) fn operators(world: &World<'_>) -> JoinSet<()> {
    let door = format!("{}/tombolo/requests", world.url(Which::Consumer));
    let redrive = json!({ "subscription": "copies-v1", "asked_by": "faults", "action": "redrive" });
    let mut operators = JoinSet::new();
    operators.spawn(async move {
        let http = reqwest::Client::new();
        let mut again = interval(REDRIVE_EVERY);
        loop {
            again.tick().await;
            // While the consumer is dead nobody hears.
            http.post(&door).json(&redrive).send().await.ok();
        }
    });
    operators
}
