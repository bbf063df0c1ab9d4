//! The conformance suite, run against every engine, and against engines that are broken on purpose: a suite that
//! claims to catch a fault is shown to catch it. Invariant: each fault of [`model::FAULTS`] fails a case.

#![expect(clippy::unwrap_used, reason = "a broken test ends by panicking")]

#[cfg(feature = "embedded")]
mod archive;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod load;
mod model;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;

use std::sync::Arc;

use model::{Fault, Model};
use tombolo_bus::conformance::{self, Abilities, Outcome};

#[tokio::test]
async fn the_model_passes_the_suite() {
    conformance::run("model", Abilities::all(), Arc::new(Model::new(None))).await;
}

#[tokio::test]
async fn the_suite_catches_every_fault() {
    for &(fault, caught_by) in model::FAULTS {
        assert!(catches(fault, caught_by).await, "{fault:?} is not caught by {caught_by}");
    }
}

async fn catches(fault: Fault, case: &'static str) -> bool {
    let name = format!("broken: {fault:?}");
    let broken = Arc::new(Model::new(Some(fault)));
    let report = conformance::report(&name, Abilities::all(), broken, &|name| name == case).await;
    assert_eq!(report.len(), 1, "there is one case called {case}");
    matches!(report[0].1, Outcome::Failed(_))
}
