//! The suite that every engine of [`Bus`] passes: one entry point, one list of cases.
//!
//! Each case is an `async fn` whose name is a fact about the port. [`run`] prints every one of them as `ok`,
//! `FAILED` or `skipped` with the reason, and panics at the end with what failed. Cases use topics and subjects of
//! their own, so all of them can share one server, with each other and with other runs.
//!
//! Invariant: a sentence of [`crate::port`] that no case here would notice being broken is a fault of this suite;
//! its own tests run it against engines that are broken on purpose.
//!
//! `TOMBOLO_CASES=read` runs only the cases with `read` in their name; `TOMBOLO_SEED=7` repeats a random schedule.

mod appending;
mod closing;
mod dividing;
mod fencing;
mod keeping;
mod listing;
mod racing;
mod reading;
mod schedule;
mod signalling;
mod stage;
mod topics;
mod trimming;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::Bus;
pub use stage::Stage;

/// How long one case may take, in seconds, before it counts as failed.
pub const CASE_SECONDS_MAX: u64 = 120;

/// Makes handles to the bus under test.
#[async_trait]
pub trait Factory: Send + Sync + 'static {
    /// A handle to the bus: the same bus each time, another connection where the engine has connections.
    async fn handle(&self) -> Arc<dyn Bus>;

    /// Stops the bus, as hard as the engine can be stopped, starts it again on what it kept, and returns a handle
    /// to it. Handles from before need not work any more. An engine that keeps nothing starts empty.
    async fn reopen(&self) -> Arc<dyn Bus>;
}

/// Whether an engine can do something that not every engine must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// It can, and the suite holds it to that.
    Can,
    /// It cannot, for this reason, which is printed.
    Cannot(&'static str),
}

/// What an engine can do beside what every engine must.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Reading some types only, without sending the others.
    pub filters: Ability,
    /// Keeping everything when it is stopped and started again.
    pub reopens: Ability,
    /// Telling whether anybody listens on a subject.
    pub reach: Ability,
    /// Removing what lies before a place.
    pub trims: Ability,
    /// Keeping more than a few megabytes of a topic.
    pub history: Ability,
    /// The largest `Record::bytes` that it takes, in bytes; [`tombolo_event::envelope::EVENT_BYTES_MAX`] unless its
    /// settings say less.
    pub record_bytes_max: usize,
}

impl Abilities {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self {
            filters: Ability::Can,
            reopens: Ability::Can,
            reach: Ability::Can,
            trims: Ability::Can,
            history: Ability::Can,
            record_bytes_max: tombolo_event::envelope::EVENT_BYTES_MAX,
        }
    }
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The engine does what the case's name says.
    Ok,
    /// It does not.
    Failed(String),
    /// It cannot, and says why.
    Skipped(&'static str),
}

/// Runs every case against an engine called `name`.
///
/// # Panics
/// At the end, listing what failed.
pub async fn run(name: &str, abilities: Abilities, factory: Arc<dyn Factory>) {
    let report = report(name, abilities, factory, &|_| true).await;
    let failed: Vec<String> = report
        .iter()
        .filter_map(|(case, outcome)| match outcome {
            Outcome::Failed(why) => Some(format!("{case}: {why}")),
            Outcome::Ok | Outcome::Skipped(_) => None,
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{name}: {} of {} cases failed:\n{}",
        failed.len(),
        report.len(),
        failed.join("\n")
    );
}

/// Runs the cases that `wanted` picks by name, and tells what became of each.
pub async fn report(
    name: &str,
    abilities: Abilities,
    factory: Arc<dyn Factory>,
    wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Vec<(&'static str, Outcome)> {
    let only = std::env::var("TOMBOLO_CASES").unwrap_or_default();
    let mut report = Vec::new();
    for case in cases().into_iter().filter(|case| wanted(case.name) && case.name.contains(&only)) {
        let outcome = match (case.needs)(&abilities) {
            Ability::Cannot(reason) => Outcome::Skipped(reason),
            Ability::Can => play(&case, Stage::new(Arc::clone(&factory), abilities)).await,
        };
        match &outcome {
            Outcome::Ok => eprintln!("{name}: {} ... ok", case.name),
            Outcome::Failed(why) => eprintln!("{name}: {} ... FAILED: {why}", case.name),
            Outcome::Skipped(reason) => eprintln!("{name}: {} ... skipped: {reason}", case.name),
        }
        report.push((case.name, outcome));
    }
    report
}

fn cases() -> Vec<Case> {
    [
        topics::cases(),
        appending::cases(),
        fencing::cases(),
        dividing::cases(),
        racing::cases(),
        reading::cases(),
        trimming::cases(),
        listing::cases(),
        signalling::cases(),
        keeping::cases(),
        schedule::cases(),
        closing::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Play = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Case {
    name: &'static str,
    needs: fn(&Abilities) -> Ability,
    play: Box<dyn Fn(Stage) -> Play + Send + Sync>,
}

impl Case {
    /// A case that every engine must pass, named like its function.
    fn new<F, P>(function: F) -> Self
    where
        F: Fn(Stage) -> P + Send + Sync + 'static,
        P: Future<Output = ()> + Send + 'static,
    {
        let path = std::any::type_name::<F>();
        let name = path.rsplit("::").next().unwrap_or(path);
        Self { name, needs: |_| Ability::Can, play: Box::new(move |stage| Box::pin(function(stage))) }
    }

    /// The same for the engines that can do what the case is about.
    fn needing(mut self, needs: fn(&Abilities) -> Ability) -> Self {
        self.needs = needs;
        self
    }

    /// The same where things are removed too.
    fn trimming(self) -> Self {
        self.needing(|abilities| abilities.trims)
    }
}

async fn play(case: &Case, stage: Stage) -> Outcome {
    let mut task = tokio::spawn((case.play)(stage));
    match tokio::time::timeout(Duration::from_secs(CASE_SECONDS_MAX), &mut task).await {
        Ok(Ok(())) => Outcome::Ok,
        Ok(Err(ended)) => Outcome::Failed(match ended.try_into_panic() {
            Ok(panic) => said(&*panic),
            Err(ended) => ended.to_string(),
        }),
        Err(_) => {
            task.abort();
            // Nothing of a case may go on beside the next one; how it ended no longer matters.
            drop(task.await);
            Outcome::Failed(format!("did not end within {CASE_SECONDS_MAX} s"))
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into())
}
