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
use crate::mount::Mount;
use crate::mutant::{self, Mutant};
use crate::office::Office;
use crate::process::{Outcome, Scene, Which, World};
use crate::roles::LEASE_MS;
use crate::verify::Broken;
use crate::{away, copies, cut_off, dividing, full, kills, outages, pauses, poison, power, rebuild};

/// What to do.
pub(crate) struct Plan {
    pub(crate) ground: Ground,
    /// How often each fault must land, instead of its own number.
    pub(crate) each: Option<u32>,
    pub(crate) seed: u64,
    /// Only the faults whose name contains this.
    pub(crate) only: Option<String>,
    /// How many orders gather while the bus is away.
    pub(crate) gathered: usize,
    /// Between two orders of a writer, instead of the load's own.
    pub(crate) pace: Option<Duration>,
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
    /// The disk of the bus is full.
    BusFull,
    /// The disk of the producer's database is full.
    DatabaseFull,
    /// The bus is away while a heap of orders gathers.
    BusAway,
    /// The consumer's database is away.
    DatabaseAway,
    /// A server of a database is killed at a random moment.
    ServerKill,
    /// A server of a database is stopped, for longer than a lease.
    ServerPause,
    /// The producer's database is an older copy.
    OldDatabase,
    /// The bus's folder is an older copy.
    OldBus,
    /// A second producer runs on a copy of the database.
    SecondCopy,
    /// An order kills the consumer each time.
    DeadlyOrder,
    /// Sour orders are parked and brought back, under load and kills.
    Redrive,
    /// The view is built anew, under load and kills.
    Rebuild,
    /// The topic is divided anew, under load and kills.
    Divide,
}

impl Fault {
    const REST: [Self; 14] = [
        Self::PowerCut,
        Self::BusFull,
        Self::DatabaseFull,
        Self::BusAway,
        Self::DatabaseAway,
        Self::ServerKill,
        Self::ServerPause,
        Self::OldDatabase,
        Self::OldBus,
        Self::SecondCopy,
        Self::DeadlyOrder,
        Self::Redrive,
        Self::Rebuild,
        Self::Divide,
    ];

    fn all() -> Vec<Self> {
        let kills = barrier::ALL.iter().map(|barrier| Self::KillAt(barrier));
        let pauses = barrier::ALL.iter().map(|barrier| Self::PauseAt(barrier));
        kills.chain([Self::Kill]).chain(pauses).chain([Self::Pause]).chain(Self::REST).collect()
    }

    /// How often it lands unless the command line says otherwise.
    fn count(self) -> u32 {
        match self {
            // Each takes a division, of which a topic can have so many.
            Self::KillAt(barrier) if barrier.starts_with("divide.") => 10,
            Self::KillAt(_) => 20,
            Self::Kill => 60,
            Self::PauseAt(_) => 2,
            Self::Pause | Self::ServerKill => 10,
            Self::ServerPause => 5,
            Self::PowerCut => 20,
            Self::BusFull | Self::DatabaseFull | Self::DatabaseAway => 3,
            Self::OldDatabase | Self::OldBus | Self::SecondCopy | Self::DeadlyOrder | Self::Rebuild => 3,
            Self::Redrive | Self::Divide => 20,
            Self::BusAway => 1,
        }
    }

    /// Whether each time needs ground of its own.
    fn is_final(self) -> bool {
        matches!(
            self,
            Self::BusFull
                | Self::BusAway
                | Self::OldDatabase
                | Self::OldBus
                | Self::SecondCopy
                | Self::DeadlyOrder
        )
    }

    /// Why it cannot happen here, if so.
    fn hindrance(self, ground: &Ground) -> Option<String> {
        match self {
            Self::KillAt(barrier) | Self::PauseAt(barrier) if Which::of(barrier) == Which::Bus => {
                own_bus(ground)
            }
            Self::PowerCut | Self::DatabaseFull => own_files(ground).or_else(Mount::hindrance),
            Self::BusFull => own_bus(ground).or_else(Mount::hindrance),
            Self::OldBus => own_bus(ground),
            Self::OldDatabase | Self::SecondCopy => {
                (!ground.can_be_copied()).then(|| "the producer's server cannot copy a database".to_owned())
            }
            Self::ServerKill | Self::ServerPause => {
                ground.database_servers().is_empty().then(|| "no database has a server of its own".to_owned())
            }
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
            Self::BusFull => write!(f, "full disk of the bus"),
            Self::DatabaseFull => write!(f, "full disk of a database"),
            Self::BusAway => write!(f, "bus away"),
            Self::DatabaseAway => write!(f, "database away"),
            Self::ServerKill => write!(f, "kill of a database server"),
            Self::ServerPause => write!(f, "pause of a database server"),
            Self::OldDatabase => write!(f, "old copy of a database"),
            Self::OldBus => write!(f, "old copy of the bus"),
            Self::SecondCopy => write!(f, "second copy of a service"),
            Self::DeadlyOrder => write!(f, "an event that kills the process"),
            Self::Redrive => write!(f, "redrive under load and kills"),
            Self::Rebuild => write!(f, "rebuild under load and kills"),
            Self::Divide => write!(f, "divide under load and kills"),
        }
    }
}

/// Why a file system of our own cannot be under the databases, if so.
fn own_files(ground: &Ground) -> Option<String> {
    (!ground.is_files()).then(|| "not everything is in files of the run's own".to_owned())
}

/// Why nothing can be done to the inside of the bus, if so.
fn own_bus(ground: &Ground) -> Option<String> {
    ground.bus().is_some().then(|| "the bus is a server of another engine".to_owned())
}

/// Where a fault happens.
pub(crate) struct Stage<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) databases: &'a Databases<'a>,
    pub(crate) random: &'a mut StdRng,
    /// How many orders gather while the bus is away.
    pub(crate) gathered: usize,
    pace: Option<Duration>,
    mutant: Option<Mutant>,
}

impl<'a> Stage<'a> {
    /// Starts the processes, with leases of this length if one is given.
    pub(crate) async fn world(&self, cast: &'static [Which], lease: Option<Duration>) -> Outcome<World<'a>> {
        self.start(cast, lease, None).await
    }

    /// The same, and the consumer sends a letter for each order.
    pub(crate) async fn world_with_letters(
        &self,
        cast: &'static [Which],
        lease: Option<Duration>,
    ) -> Outcome<World<'a>> {
        self.start(cast, lease, Some(Office::open().await?)).await
    }

    async fn start(
        &self,
        cast: &'static [Which],
        lease: Option<Duration>,
        office: Option<Office>,
    ) -> Outcome<World<'a>> {
        let lease = lease.map(|lease| (LEASE_MS, lease.as_millis().to_string()));
        let mutant = self.mutant.map(|mutant| (mutant::VARIABLE, mutant.name()));
        World::start(Scene {
            folder: self.folder.to_owned(),
            databases: self.databases,
            cast,
            variables: lease.into_iter().chain(mutant).collect(),
            office,
            pace: self.pace,
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

impl Tally {
    /// The same fault again, on other ground; the last note is kept.
    fn add(&mut self, other: Self) {
        self.landed += other.landed;
        self.in_flight += other.in_flight;
        self.acknowledged += other.acknowledged;
        self.events += other.events;
        self.note = other.note;
    }
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
        let count = plan.each.unwrap_or(fault.count());
        let grounds = if fault.is_final() { vec![1; count as usize] } else { vec![count] };
        let mut tally = Tally::default();
        for count in grounds {
            tally.add(on_own_ground(fault, count, plan, &mut random).await?);
        }
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
async fn on_own_ground(fault: Fault, count: u32, plan: &Plan, random: &mut StdRng) -> Outcome<Tally> {
    let folder = tempfile::Builder::new().prefix("tombolo-faults-").tempdir()?;
    let databases = plan.ground.make(folder.path()).await?;
    let stage = Stage {
        folder: folder.path(),
        databases: &databases,
        random,
        gathered: plan.gathered,
        pace: plan.pace,
        mutant: plan.mutant,
    };
    match happen(fault, stage, count).await {
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
        Fault::BusFull => full::of_bus(stage).await,
        Fault::DatabaseFull => full::of_database(stage, count).await,
        Fault::BusAway => away::run(stage).await,
        Fault::DatabaseAway => cut_off::run(stage, count).await,
        Fault::ServerKill => outages::kills(stage, count).await,
        Fault::ServerPause => outages::pauses(stage, count).await,
        Fault::OldDatabase => copies::old_database(stage).await,
        Fault::OldBus => copies::old_bus(stage).await,
        Fault::SecondCopy => copies::second_copy(stage).await,
        Fault::DeadlyOrder => poison::deadly(stage).await,
        Fault::Redrive => poison::redrive(stage, count).await,
        Fault::Rebuild => rebuild::run(stage, count).await,
        Fault::Divide => dividing::run(stage, count).await,
    }
}
