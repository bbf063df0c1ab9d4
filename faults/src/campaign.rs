//! The campaign: each fault so often, on ground of its own; after each everything settles and is checked.
//!
//! Invariant: a fault counts when it has landed, and whatever fails keeps its files and databases for a look.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_event::barrier;

use crate::databases::{Databases, Ground};
use crate::mutant::{self, Mutant};
use crate::process::{Outcome, Scene, Which, World};
use crate::roles::LEASE_MS;
use crate::verify::Broken;
use crate::{kills, pauses, power};

/// What to do.
pub(crate) struct Plan {
    pub(crate) ground: Ground,
    /// How often each fault must land, instead of its own number.
    pub(crate) each: Option<u32>,
    pub(crate) seed: u64,
    /// Only the faults whose name contains this.
    pub(crate) only: Option<String>,
    /// A deliberate fault, which must be caught.
    pub(crate) mutant: Option<Mutant>,
}

/// What happens to the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process kills itself at this barrier.
    KillAt(&'static str),
    /// A process is killed at a random moment.
    Kill,
    /// A process stops at this barrier, for longer than a lease.
    PauseAt(&'static str),
    /// A process is stopped at a random moment, for longer than a lease.
    Pause,
    /// The power of one or more machines is cut.
    PowerCut,
}

impl Fault {
    fn all() -> Vec<Self> {
        let kills = barrier::ALL.iter().map(|barrier| Self::KillAt(barrier));
        let pauses = barrier::ALL.iter().map(|barrier| Self::PauseAt(barrier));
        kills.chain([Self::Kill]).chain(pauses).chain([Self::Pause, Self::PowerCut]).collect()
    }

    /// How often it lands unless the command line says otherwise.
    fn count(self) -> u32 {
        match self {
            Self::KillAt(_) => 20,
            Self::Kill => 60,
            Self::PauseAt(_) => 2,
            Self::Pause => 10,
            Self::PowerCut => 20,
        }
    }

    /// Why it cannot happen here, if so.
    fn hindrance(self, ground: &Ground) -> Option<String> {
        match self {
            Self::PowerCut => power::hindrance(ground),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAt(barrier) => write!(f, "kill at `{barrier}`"),
            Self::Kill => write!(f, "kill at random moments"),
            Self::PauseAt(barrier) => write!(f, "pause at `{barrier}`"),
            Self::Pause => write!(f, "pause at random moments"),
            Self::PowerCut => write!(f, "power cut"),
        }
    }
}

/// Where a fault happens.
pub(crate) struct Stage<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) databases: &'a Databases<'a>,
    pub(crate) random: &'a mut StdRng,
    mutant: Option<Mutant>,
}

impl<'a> Stage<'a> {
    /// Starts the processes, with leases of this length if one is given.
    pub(crate) async fn world(&self, cast: &'static [Which], lease: Option<Duration>) -> Outcome<World<'a>> {
        let lease = lease.map(|lease| (LEASE_MS, lease.as_millis().to_string()));
        let mutant = self.mutant.map(|mutant| (mutant::VARIABLE, mutant.name()));
        World::start(Scene {
            folder: self.folder.to_owned(),
            databases: self.databases,
            cast,
            variables: lease.into_iter().chain(mutant).collect(),
        })
        .await
    }
}

/// How it went.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) landed: u32,
    pub(crate) in_flight: u32,
    pub(crate) acknowledged: usize,
    pub(crate) events: usize,
    /// What else is to be said.
    pub(crate) note: String,
}

pub(crate) async fn run(plan: &Plan) -> Outcome<()> {
    println!("seed {}", plan.seed);
    let run = everything(plan).await;
    match (plan.mutant, run) {
        (None, Ok(landed)) => {
            println!("{landed} passed, 0 failed");
            Ok(())
        }
        (Some(mutant), Err(error)) if error.is::<Broken>() => {
            println!("the mutant {} was caught: {error}", mutant.name());
            Ok(())
        }
        (_, Err(error)) => Err(error),
        // Whatever could have caught it was skipped, and said so.
        (Some(_), Ok(0)) => Ok(()),
        (Some(mutant), Ok(_)) => Err(format!("the mutant {} was not caught", mutant.name()).into()),
    }
}

/// Every fault of the plan; returns how many landed.
async fn everything(plan: &Plan) -> Outcome<u32> {
    println!("| what | landed | with work in flight | orders acknowledged | events checked | time | |");
    println!("|---|---|---|---|---|---|---|");
    let mut random = StdRng::seed_from_u64(plan.seed);
    let only = plan.only.as_deref().unwrap_or_default();
    let (mut landed, mut in_flight) = (0, 0);
    for fault in Fault::all().into_iter().filter(|fault| fault.to_string().contains(only)) {
        if let Some(hindrance) = fault.hindrance(&plan.ground) {
            println!("skipped: {fault}: {hindrance}");
            continue;
        }
        let began = Instant::now();
        let tally = on_own_ground(fault, plan, &mut random).await?;
        let (seconds, note) = (began.elapsed().as_secs_f64(), &tally.note);
        println!(
            "| {fault} | {} | {} | {} | {} | {seconds:.1} s | {note} |",
            tally.landed, tally.in_flight, tally.acknowledged, tally.events
        );
        landed += tally.landed;
        in_flight += tally.in_flight;
    }
    println!(
        "{landed} faults landed, {in_flight} of them with work in flight; nothing lost, doubled, reordered or skipped"
    );
    Ok(landed)
}

/// A fault on ground of its own, which is kept if it failed.
async fn on_own_ground(fault: Fault, plan: &Plan, random: &mut StdRng) -> Outcome<Tally> {
    let folder = tempfile::Builder::new().prefix("tombolo-faults-").tempdir()?;
    let databases = plan.ground.make(folder.path()).await?;
    let stage = Stage { folder: folder.path(), databases: &databases, random, mutant: plan.mutant };
    match happen(fault, stage, plan.each.unwrap_or(fault.count())).await {
        Ok(tally) => databases.drop().await.map(|()| tally),
        Err(error) if plan.mutant.is_some() && error.is::<Broken>() => {
            databases.drop().await?;
            Err(Broken(format!("{fault}: {error}")).into())
        }
        Err(error) => Err(format!(
            "{fault}: {error}; its files are kept in {}, its databases are {}",
            folder.keep().display(),
            databases.names()
        )
        .into()),
    }
}

async fn happen(fault: Fault, stage: Stage<'_>, count: u32) -> Outcome<Tally> {
    match fault {
        Fault::KillAt(barrier) => kills::run(stage, Some(barrier), count).await,
        Fault::Kill => kills::run(stage, None, count).await,
        Fault::PauseAt(barrier) => pauses::run(stage, Some(barrier), count).await,
        Fault::Pause => pauses::run(stage, None, count).await,
        Fault::PowerCut => power::run(stage, count).await,
    }
}
