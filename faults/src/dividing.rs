//! The producer's topic is divided anew again and again, under load and with keys that are parked now and then, while somebody
//! is killed: the producer between the database and the bus, the bus, the consumer between two generations.

use std::time::Duration;

use rand::Rng;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::campaign::{Stage, Tally};
use crate::load::Load;
use crate::poison;
use crate::process::{Outcome, Which, World};
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::SecondProducer, Which::Consumer];
/// How often the topic is divided, and into how many partitions in turn: never into as many as it has.
const DIVIDE_EVERY: Duration = Duration::from_secs(1);
const INTO: [u32; 4] = [3, 12, 1, 5];
/// A topic has so many generations at most, so nobody asks for more.
const DIVISIONS_MAX: usize = tombolo_event::generation::GENERATIONS_MAX - 1;
/// Between two kills, at most.
const BETWEEN_MAX: Duration = Duration::from_millis(1_500);

/// Kills so often, then lets everything settle and checks it.
pub(crate) async fn run(stage: Stage<'_>, kills: u32) -> Outcome<Tally> {
    let mut world = stage.world_with_letters(CAST, None).await?;
    let load = Load::start_with_sour(&world, "key");
    let (dividing, _redriving) = (operators(&world), poison::operators(&world));
    let mut tally = Tally::default();
    while tally.landed < kills {
        // The pause is the experiment: it decides where on the path the kill lands.
        sleep(BETWEEN_MAX.mul_f64(stage.random.random())).await;
        let which = CAST[stage.random.random_range(0..CAST.len())];
        world.kill(which).await?;
        tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
        tally.landed += 1;
        world.spawn(which, None).await?;
        if which == Which::Bus {
            world.ready(which).await?;
        }
    }
    drop(dividing);
    world.all_ready().await?;
    let acknowledged = load.stop().await;
    let events = verify::settled(&world, &acknowledged).await?.events;
    let generations = verify::generations(&world).await?;
    if generations < 2 {
        return Err("the topic was never divided".into());
    }
    let note = format!("{generations} generations");
    Ok(Tally { acknowledged: acknowledged.len(), events, note, ..tally })
}

/// Operators who divide the topic all the time, until they are dropped.
pub(crate) fn operators(world: &World<'_>) -> JoinSet<()> {
    let door = format!("{}/tombolo/requests", world.url(Which::Producer));
    let mut operators = JoinSet::new();
    operators.spawn(async move {
        let http = reqwest::Client::new();
        let mut again = interval(DIVIDE_EVERY);
        for partitions in INTO.iter().cycle().take(DIVISIONS_MAX) {
            again.tick().await;
            let divide = json!({ "subscription": "topic/orders", "asked_by": "faults", "action": "divide", "partitions": partitions });
            // While the producer is dead nobody hears.
            http.post(&door).json(&divide).send().await.ok();
        }
    });
    operators
}
