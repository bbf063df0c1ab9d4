//! Filling the shop: many requests under way at once. Invariant: every step is accounted for once, as accepted, refused,
//! or without an answer.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep_until};

use crate::made::Step;
use crate::progress::{self, count};
use crate::shop::{Refusal, Shop};

/// How many different reasons for refusals are shown.
const REASONS_SHOWN_MAX: usize = 5;

/// The longest latency that is told from longer ones; no request may take so long.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Makes one of each; returns the ids in the same order. The first refusal ends it.
pub(crate) async fn create<'a, T, F>(
    all: &'a [T],
    what: &'static str,
    at_once: usize,
    make: impl Fn(&'a T) -> F,
) -> Result<Vec<String>, Refusal>
where
    F: Future<Output = Result<String, Refusal>>,
{
    let line = progress::line(what, all.len());
    let made = stream::iter(all).map(make).buffered(at_once).inspect_ok(|_| line.inc(1)).try_collect().await;
    line.finish_and_clear();
    made
}

/// What to do, where, and how fast.
pub(crate) struct Load<'a> {
    pub(crate) shop: &'a Shop,
    pub(crate) users: &'a [String],
    pub(crate) products: &'a [String],
    pub(crate) at_once: usize,
    /// Orders in a second, at most.
    pub(crate) rate: Option<u32>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The ids of the accepted orders, by user.
    pub(crate) accepted: HashMap<String, Vec<String>>,
    changes: usize,
    refused: usize,
    unanswered: usize,
    reasons: BTreeMap<String, usize>,
    /// In microseconds, of accepted orders.
    latencies: Histogram<u64>,
    took: Duration,
}

/// What came of one step.
enum Done {
    Accepted { user: usize, order_id: String, took: Duration },
    Changed,
    Not(Refusal),
}

impl Load<'_> {
    /// Does all steps, in their order as far as they begin.
    pub(crate) async fn run(&self, steps: &[Step]) -> Outcome {
        let orders = steps.iter().filter(|step| matches!(step, Step::Order { .. })).count();
        let line = progress::line("orders", orders);
        let began = Instant::now();
        let mut outcome = Outcome::new();
        let mut done = stream::iter(steps.iter().enumerate())
            .map(|(number, step)| self.step(began, number, step))
            .buffer_unordered(self.at_once);
        while let Some(done) = done.next().await {
            outcome.take(done, self.users);
            line.set_position(outcome.orders() as u64);
        }
        outcome.took = began.elapsed();
        line.finish_and_clear();
        outcome
    }

    async fn step(&self, began: Instant, number: usize, step: &Step) -> Done {
        if let Some(rate) = self.rate {
            sleep_until(began + Duration::from_secs_f64(number as f64 / f64::from(rate))).await;
        }
        let sent = Instant::now();
        match step {
            Step::Order { user, product, quantity } => {
                let order = self.shop.order(&self.users[*user], &self.products[*product], *quantity);
                match order.await {
                    Ok(order_id) => Done::Accepted { user: *user, order_id, took: sent.elapsed() },
                    Err(refusal) => Done::Not(refusal),
                }
            }
            Step::Change { product, change } => {
                match self.shop.change(&self.products[*product], change).await {
                    Ok(()) => Done::Changed,
                    Err(refusal) => Done::Not(refusal),
                }
            }
        }
    }
}

impl Outcome {
    fn new() -> Self {
        Self {
            accepted: HashMap::new(),
            changes: 0,
            refused: 0,
            unanswered: 0,
            reasons: BTreeMap::new(),
            latencies: Histogram::new_with_max(LATENCY_US_MAX, 3)
                .expect("3 digits are within 0 to 5, and the maximum is above 2"),
            took: Duration::ZERO,
        }
    }

    fn take(&mut self, done: Done, users: &[String]) {
        match done {
            Done::Accepted { user, order_id, took } => {
                self.accepted.entry(users[user].clone()).or_default().push(order_id);
                self.latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX));
            }
            Done::Changed => self.changes += 1,
            Done::Not(refusal) => {
                match refusal {
                    Refusal::Refused { .. } => self.refused += 1,
                    Refusal::Unanswered { .. } => self.unanswered += 1,
                }
                *self.reasons.entry(refusal.to_string()).or_default() += 1;
            }
        }
    }

    /// How many orders have been accepted.
    fn orders(&self) -> usize {
        self.latencies.len() as usize
    }

    /// Whether everything was granted. The data are good, so a refusal means that something is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.refused + self.unanswered == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        let orders = self.orders();
        let ms = |quantile: f64| self.latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        writeln!(
            f,
            "accepted    {} orders in {seconds:.2} s: {:.0} orders/s",
            count(orders),
            orders as f64 / seconds
        )?;
        writeln!(f, "refused     {}", count(self.refused))?;
        if self.unanswered > 0 {
            writeln!(f, "unanswered  {}: each may have been done or not", count(self.unanswered))?;
        }
        writeln!(f, "latency     p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(0.5), ms(0.99), ms(1.0))?;
        write!(f, "changes     {} titles and prices changed in between", count(self.changes))?;
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        for (reason, times) in reasons.iter().take(REASONS_SHOWN_MAX) {
            write!(f, "\n  {}× {reason}", count(**times))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_and_its_reason_is_shown() {
        let mut outcome = Outcome::new();
        let users = ["u1".to_owned()];
        outcome
            .take(Done::Accepted { user: 0, order_id: "o1".into(), took: Duration::from_millis(3) }, &users);
        assert!(outcome.is_clean());
        for _ in 0..2 {
            let refusal =
                Refusal::Unanswered { service: "orders", url: "http://x".into(), cause: "gone".into() };
            outcome.take(Done::Not(refusal), &users);
        }
        outcome.took = Duration::from_secs(1);
        let text = outcome.to_string();
        assert!(text.contains("p50 3.0 ms"), "{text}");
        assert!(!outcome.is_clean() && outcome.accepted["u1"] == ["o1"]);
        assert!(
            text.contains("1 orders/s")
                && text.contains("unanswered  2")
                && text.contains("2× orders did not answer"),
            "{text}"
        );
    }
}
