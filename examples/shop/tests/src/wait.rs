//! Waiting for a state. Invariant: it is bounded, and says at the bound what was there instead.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

/// How long anything may take that needs no lease to end.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
/// How long between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something, and returns it. `look` says what it found instead.
pub(crate) async fn until<T, E: Debug>(what: &str, look: impl AsyncFn() -> Result<T, E>) -> T {
    let began = Instant::now();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match look().await {
            Ok(found) => return found,
            Err(instead) if began.elapsed() > BOUND => {
                panic!("waited {} s for {what}; there was: {instead:?}", BOUND.as_secs())
            }
            Err(_) => {}
        }
    }
}
