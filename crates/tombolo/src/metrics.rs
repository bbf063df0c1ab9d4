//! The figures of each hop, in the Prometheus exposition format at `GET /metrics`.
//!
//! Each service has a registry of its own, so that several in one process do not mix. Labels are bounded by what
//! the service was built with: subscriptions, topics, questions.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The label of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfSubscription {
    /// Its name.
    pub subscription: String,
}

/// The labels of a question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfQuestion {
    /// Its name.
    pub question: String,
    /// `call` or `gather`.
    pub via: String,
    /// `answered`, or why not.
    pub outcome: String,
}

/// The figures of one service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Rows that wait in the outbox.
    pub outbox_rows: Gauge,
    /// Their bytes.
    pub outbox_bytes: Gauge,
    /// The age of the oldest, in seconds.
    pub outbox_age: Gauge<f64, AtomicU64>,
    /// Rows that other programs wrote and that no bus will take.
    pub parked_rows: Gauge,
    /// Events that are kept for later.
    pub later_rows: Gauge,
    /// Their bytes.
    pub later_bytes: Gauge,
    /// When the next of them is due, in seconds since 1970; 0 if there is none.
    pub later_due: Gauge,
    /// Events that the bus acknowledged.
    pub relayed: Counter,
    /// Rows in each round.
    pub round_rows: Histogram,
    /// From sending an append to its acknowledgement, in seconds.
    pub append_seconds: Histogram,
    /// Times that the relay began anew after a refusal or a lost connection.
    pub relay_retries: Counter,
    /// Events handled.
    pub handled: Family<OfSubscription, Counter>,
    /// Events in each transaction of a subscription.
    pub batch_events: Family<OfSubscription, Histogram>,
    /// From beginning a batch's transaction to its commit, in seconds.
    pub batch_seconds: Family<OfSubscription, Histogram>,
    /// From publishing an event to having it handled, in seconds, by the two services' clocks.
    pub visible_seconds: Family<OfSubscription, Histogram>,
    /// Failed tries.
    pub retries: Family<OfSubscription, Counter>,
    /// Times that an event was parked because it failed.
    pub parked: Family<OfSubscription, Counter>,
    /// Parked events that were handled later.
    pub redriven: Family<OfSubscription, Counter>,
    /// Keys of which something is parked.
    pub parked_keys: Family<OfSubscription, Gauge>,
    /// Events that are parked, those behind a failed one included.
    pub parked_events: Family<OfSubscription, Gauge>,
    /// Events on the bus that are not handled yet.
    pub lag_events: Family<OfSubscription, Gauge>,
    /// The age of what is being handled, in seconds, while behind.
    pub lag_seconds: Family<OfSubscription, Gauge<f64, AtomicU64>>,
    /// Questions asked, by outcome.
    pub asked: Family<OfQuestion, Counter>,
    /// Answers that came after their question had ended, and were dropped.
    pub late_answers: Counter,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.5, 14))
}

fn counts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 12))
}

impl Metrics {
    /// A registry with every figure at zero.
    #[must_use]
    pub fn new(service: &str) -> Self {
        let labels = [("service".into(), service.to_owned().into())];
        let mut metrics = Self {
            registry: Registry::with_prefix_and_labels("tombolo", labels.into_iter()),
            outbox_rows: Gauge::default(),
            outbox_bytes: Gauge::default(),
            outbox_age: Gauge::default(),
            parked_rows: Gauge::default(),
            later_rows: Gauge::default(),
            later_bytes: Gauge::default(),
            later_due: Gauge::default(),
            relayed: Counter::default(),
            round_rows: counts(),
            append_seconds: seconds(),
            relay_retries: Counter::default(),
            handled: Family::default(),
            batch_events: Family::new_with_constructor(counts),
            batch_seconds: Family::new_with_constructor(seconds),
            visible_seconds: Family::new_with_constructor(seconds),
            retries: Family::default(),
            parked: Family::default(),
            redriven: Family::default(),
            parked_keys: Family::default(),
            parked_events: Family::default(),
            lag_events: Family::default(),
            lag_seconds: Family::default(),
            asked: Family::default(),
            late_answers: Counter::default(),
        };
        metrics.register_relay();
        metrics.register_subscriptions();
        metrics
    }

    fn register_relay(&mut self) {
        let r = &mut self.registry;
        r.register("outbox_rows", "Rows that wait in the outbox", self.outbox_rows.clone());
        r.register("outbox_depth", "Bytes that wait in the outbox", self.outbox_bytes.clone());
        r.register_with_unit(
            "outbox_age",
            "Age of the oldest waiting row",
            Unit::Seconds,
            self.outbox_age.clone(),
        );
        let what = "Rows that other programs wrote and that no bus will take";
        r.register("outbox_parked_rows", what, self.parked_rows.clone());
        r.register("later_rows", "Events that are kept for later", self.later_rows.clone());
        r.register("later_depth", "Bytes that are kept for later", self.later_bytes.clone());
        r.register_with_unit(
            "later_next_due_timestamp",
            "When the next of them is due, since 1970",
            Unit::Seconds,
            self.later_due.clone(),
        );
        r.register("relayed_events", "Events that the bus acknowledged", self.relayed.clone());
        r.register("relay_round_rows", "Rows in each round of the outbox", self.round_rows.clone());
        r.register_with_unit(
            "relay_append",
            "From append to acknowledgement",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        r.register("relay_retries", "Times that the relay began anew", self.relay_retries.clone());
    }

    fn register_subscriptions(&mut self) {
        let r = &mut self.registry;
        r.register("handled_events", "Events handled", self.handled.clone());
        r.register("batch_events", "Events in each transaction", self.batch_events.clone());
        r.register_with_unit(
            "batch_duration",
            "Duration of each transaction",
            Unit::Seconds,
            self.batch_seconds.clone(),
        );
        r.register_with_unit(
            "visible",
            "From publishing to handled",
            Unit::Seconds,
            self.visible_seconds.clone(),
        );
        r.register("retries", "Failed tries", self.retries.clone());
        r.register("parkings", "Events parked because they failed", self.parked.clone());
        r.register("redriven", "Parked events handled later", self.redriven.clone());
        r.register("parked_keys", "Keys of which something is parked", self.parked_keys.clone());
        r.register("parked_events", "Events that are parked", self.parked_events.clone());
        r.register("lag_events", "Events that are not handled yet", self.lag_events.clone());
        r.register_with_unit(
            "lag",
            "Age of what is being handled, while behind",
            Unit::Seconds,
            self.lag_seconds.clone(),
        );
        r.register("questions", "Questions asked", self.asked.clone());
        r.register("late_answers", "Answers that came too late", self.late_answers.clone());
    }

    /// The exposition.
    #[must_use]
    pub fn expose(&self) -> String {
        let mut body = String::new();
        // Writing to a string cannot fail.
        text::encode(&mut body, &self.registry).ok();
        body
    }
}
