//! The proof: the replica has every accepted order, and the three ways answer the same. Invariant: waiting is bounded,
//! and what is still wrong at the bound is said.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::progress::{self, count};
use crate::shop::{Refusal, Shop, Via};

/// How long between two looks at what is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until the replica of `order-history` has every accepted order; returns how long that took.
///
/// # Errors
/// For people: what is missing at the bound.
pub(crate) async fn replica_has(
    shop: &Shop,
    accepted: &HashMap<String, Vec<String>>,
    bound: Duration,
) -> Result<Duration, String> {
    let began = Instant::now();
    let line = progress::line("replica", accepted.values().map(Vec::len).sum());
    for (user_id, order_ids) in accepted {
        loop {
            let missing = missing(shop, user_id, order_ids).await;
            match missing {
                Ok(missing) if missing.is_empty() => break,
                behind if began.elapsed() >= bound => {
                    line.finish_and_clear();
                    return Err(said(user_id, behind, bound));
                }
                _ => sleep(LOOK_EVERY).await,
            }
        }
        line.inc(order_ids.len() as u64);
    }
    line.finish_and_clear();
    Ok(began.elapsed())
}

async fn missing(shop: &Shop, user_id: &str, order_ids: &[String]) -> Result<Vec<String>, Refusal> {
    let history = shop.history(user_id, Via::Replica).await?;
    let there: BTreeSet<&str> = history.orders.iter().map(|line| line.order_id.as_str()).collect();
    Ok(order_ids.iter().filter(|id| !there.contains(id.as_str())).cloned().collect())
}

fn said(user_id: &str, behind: Result<Vec<String>, Refusal>, bound: Duration) -> String {
    let found = match behind {
        Ok(missing) => {
            format!("lacks {} orders of user {user_id}, such as {}", count(missing.len()), missing[0])
        }
        Err(refusal) => refusal.to_string(),
    };
    format!("after {} s: {found}; see where it stands with `tombolo subscriptions`", bound.as_secs())
}

/// Waits until each of these users has the same history in all three ways. A title that changed a moment ago may
/// still be on its way to the replica.
///
/// # Errors
/// For people: the difference at the bound.
pub(crate) async fn three_ways_agree(shop: &Shop, users: &[String], bound: Duration) -> Result<(), String> {
    let began = Instant::now();
    for user_id in users {
        while let Err(difference) = agree(shop, user_id).await {
            if began.elapsed() >= bound {
                return Err(format!("after {} s, user {user_id}: {difference}", bound.as_secs()));
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

async fn agree(shop: &Shop, user_id: &str) -> Result<(), String> {
    let called = shop.history(user_id, Via::Call).await.map_err(|refusal| refusal.to_string())?;
    for via in [Via::Gather, Via::Replica] {
        let history = shop.history(user_id, via).await.map_err(|refusal| refusal.to_string())?;
        if !history.missing.is_empty() {
            return Err(format!("{via:?} misses {:?}", history.missing));
        }
        if history.via != via || history.user != called.user || history.orders != called.orders {
            return Err(format!("{via:?} answers {history:?}, but Call answers {called:?}"));
        }
    }
    Ok(())
}
