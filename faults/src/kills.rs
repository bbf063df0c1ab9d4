//! Kills: of a process by itself at a barrier of the path, or from outside at random moments.

use std::time::Duration;

use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::campaign::{Stage, Tally};
use crate::dividing;
use crate::load::Load;
use crate::poison::operators;
use crate::process::{At, Outcome, Which, World};
use crate::verify;

/// Who is there.
const CAST: &[Which] = &[Which::Bus, Which::Producer, Which::SecondProducer, Which::Consumer];
/// How often a process passes a barrier that is passed all the time.
const PASSES_MAX: u32 = 12;
/// Between two kills at random moments, at most.
const RANDOM_PAUSE_MAX: Duration = Duration::from_millis(400);

/// Kills so often at one place, then lets everything settle and checks it.
pub(crate) async fn run(stage: Stage<'_>, barrier: Option<&str>, kills: u32) -> Outcome<Tally> {
    let mut world = match barrier {
        // The letters would take longer than what is to be seen there.
        Some(barrier) if Which::of(barrier) == Which::Bus => stage.world(CAST, None).await?,
        _ => stage.world_with_letters(CAST, None).await?,
    };
    let (load, _operators) = load_for(barrier, &world);
    let mut tally = Tally::default();
    while tally.landed < kills {
        let which = match barrier {
            Some(barrier) => kill_at(barrier, &mut world, stage.random).await?,
            None => kill_somebody(&mut world, stage.random).await?,
        };
        tally.landed += 1;
        tally.in_flight += u32::from(verify::is_work_in_flight(&world, &load).await?);
        world.spawn(which, None).await?;
        if which == Which::Bus || stage.random.random_bool(0.5) {
            world.ready(which).await?;
        }
    }
    world.all_ready().await?;
    let acknowledged = load.stop().await;
    let checked = verify::settled(&world, &acknowledged).await?;
    Ok(Tally { acknowledged: acknowledged.len(), events: checked.events, ..tally })
}

/// What has to go on so that somebody comes to a barrier: load, and operators where it is about what is parked.
pub(crate) fn load_for(barrier: Option<&str>, world: &World<'_>) -> (Load, Option<JoinSet<()>>) {
    if barrier.is_some_and(is_about_parked) {
        (Load::start_with_sour(world, "key"), Some(operators(world)))
    } else if barrier.is_some_and(is_about_division) {
        (Load::start(world, "key"), Some(dividing::operators(world)))
    } else {
        (Load::start(world, "key"), None)
    }
}

/// Whether only orders that could not be handled come there.
fn is_about_parked(barrier: &str) -> bool {
    barrier.starts_with("parking.") || barrier.starts_with("redrive.")
}

/// Whether only a division comes there.
fn is_about_division(barrier: &str) -> bool {
    barrier.starts_with("divide.")
}

/// How often a process passes its barrier before something happens to it there, at most.
pub(crate) fn passes_max(barrier: &str) -> u32 {
    match barrier {
        _ if is_about_division(barrier) => 1,
        _ if is_about_parked(barrier) => 2,
        _ => PASSES_MAX,
    }
}

/// Lets the process in which the barrier lies run until it dies there.
async fn kill_at(barrier: &str, world: &mut World<'_>, random: &mut impl Rng) -> Outcome<Which> {
    let which = Which::of(barrier);
    world.kill(which).await?;
    let passes = random.random_range(1..=passes_max(barrier));
    world.spawn(which, Some(At::Kill(&format!("{barrier}:{passes}")))).await?;
    world.killed_itself(which).await?;
    Ok(which)
}

/// Kills one of them at a random moment.
async fn kill_somebody(world: &mut World<'_>, random: &mut impl Rng) -> Outcome<Which> {
    let which = CAST[random.random_range(0..CAST.len())];
    // The pause is the experiment: it decides where on the path the kill lands.
    sleep(RANDOM_PAUSE_MAX.mul_f64(random.random())).await;
    world.kill(which).await?;
    Ok(which)
}
