//! The campaign: each barrier so often, then random moments; after each part everything settles and is checked.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;
use tombolo_event::barrier;

use crate::databases::{Databases, Ground};
use crate::load::Load;
use crate::process::{Outcome, Which, World};
use crate::verify;

/// How often a process passes its barrier before it dies there, at most.
const PASSES_MAX: u32 = 12;
/// Between two kills at random moments, at most.
const RANDOM_PAUSE_MAX: Duration = Duration::from_millis(400);

/// What to do.
pub(crate) struct Plan {
    pub(crate) ground: Ground,
    pub(crate) each: u32,
    pub(crate) random: u32,
    pub(crate) seed: u64,
    pub(crate) only: Option<String>,
}

/// How it went, for one barrier.
#[derive(Default)]
struct Tally {
    landed: u32,
    in_flight: u32,
}

pub(crate) async fn run(plan: Plan) -> Outcome<()> {
    println!("seed {}", plan.seed);
    println!("| where | kills landed | with work in flight | orders acknowledged | events checked | time |");
    println!("|---|---|---|---|---|---|");
    let mut random = StdRng::seed_from_u64(plan.seed);
    let barriers = barrier::ALL.iter().filter(|name| plan.only.as_deref().is_none_or(|only| only == **name));
    let mut total = Tally::default();
    for barrier in barriers {
        total.add(&part(barrier, plan.each, &plan.ground, &mut random).await?);
    }
    if plan.only.is_none() && plan.random > 0 {
        total.add(&part("random moments", plan.random, &plan.ground, &mut random).await?);
    }
    println!(
        "{} kills landed, {} of them with work in flight; nothing lost, doubled, reordered or skipped",
        total.landed, total.in_flight
    );
    println!("{} passed, 0 failed", total.landed);
    Ok(())
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.landed += other.landed;
        self.in_flight += other.in_flight;
    }
}

/// One part on ground of its own, which is kept if it failed.
async fn part(name: &str, kills: u32, ground: &Ground, random: &mut StdRng) -> Outcome<Tally> {
    let folder = tempfile::tempdir()?;
    let databases = ground.make(folder.path()).await?;
    match visit(name, kills, folder.path(), &databases, random).await {
        Ok(tally) => databases.drop().await.map(|()| tally),
        Err(error) => Err(format!(
            "{name}: {error}; its files are kept in {}, its databases are {}",
            folder.keep().display(),
            databases.names()
        )
        .into()),
    }
}

/// Kills so often at one place, then lets everything settle and checks it.
async fn visit(
    name: &str,
    kills: u32,
    folder: &Path,
    databases: &Databases<'_>,
    random: &mut StdRng,
) -> Outcome<Tally> {
    let began = Instant::now();
    let mut world = World::start(folder, databases).await?;
    let load = Load::start(&world.producers());
    let at_random = !barrier::ALL.contains(&name);
    let mut tally = Tally::default();
    while tally.landed < kills {
        let which = if at_random {
            kill_somebody(&mut world, random).await?
        } else {
            kill_at(name, &mut world, random).await?
        };
        tally.landed += 1;
        tally.in_flight += u32::from(has_work_in_flight(&world, &load).await?);
        world.spawn(which, None)?;
        if which == Which::Bus || random.random_bool(0.5) {
            world.ready(which).await?;
        }
    }
    for which in Which::ALL {
        world.ready(which).await?;
    }
    let acknowledged = load.stop().await;
    let checked = verify::settled(&world, &acknowledged).await?;
    println!(
        "| `{name}` | {} | {} | {} | {} | {:.1} s |",
        tally.landed,
        tally.in_flight,
        acknowledged.len(),
        checked.events,
        began.elapsed().as_secs_f64()
    );
    Ok(tally)
}

/// Lets the process in which the barrier lies run until it dies there.
async fn kill_at(barrier: &str, world: &mut World<'_>, random: &mut StdRng) -> Outcome<Which> {
    let which = Which::of(barrier);
    world.kill(which).await?;
    let passes = random.random_range(1..=PASSES_MAX);
    world.spawn(which, Some(&format!("{barrier}:{passes}")))?;
    if world.killed_itself(which).await? {
        Ok(which)
    } else {
        Err(format!("{which:?} never came to {barrier} {passes} times").into())
    }
}

/// Kills one of them at a random moment.
async fn kill_somebody(world: &mut World<'_>, random: &mut StdRng) -> Outcome<Which> {
    let which = Which::ALL[random.random_range(0..Which::ALL.len())];
    // The pause is the experiment: it decides where on the path the kill lands.
    sleep(RANDOM_PAUSE_MAX.mul_f64(random.random())).await;
    world.kill(which).await?;
    Ok(which)
}

/// Whether the kill left something half done: a request, a row in the outbox, an event that is not in the view.
async fn has_work_in_flight(world: &World<'_>, load: &Load) -> Outcome<bool> {
    let behind = match world.databases.read(Which::Consumer).await {
        Ok(mut history) => usize::try_from(history.count(verify::COPIES).await?)? < load.count(),
        Err(_) => true,
    };
    Ok(behind || load.outstanding() > 0 || verify::outbox_rows(world).await? > 0)
}
