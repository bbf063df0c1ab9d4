//! What the gateway counts, in the format of Prometheus.
//!
//! Invariant: every label has few values: routes, classes of status, kinds of refusals; never what a client sends.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What the format is called.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    route: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReplica {
    route: String,
    replica: String,
}

type Seconds = Family<OfRoute, Histogram, fn() -> Histogram>;

/// Everything that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<OfStatus, Counter>,
    seconds: Seconds,
    retries: Family<OfRoute, Counter>,
    refusals: Family<OfKind, Counter>,
    /// Requests under way.
    pub(crate) under_way: Gauge,
    /// Connections that are open.
    pub(crate) connections: Gauge,
    /// Lines of the access log that were dropped because nobody took them.
    pub(crate) lines_dropped: Counter,
    /// Changes of the configuration that were taken.
    pub(crate) reloads: Counter,
}

/// Counts something as long as it is there.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is counted for one route, at hand.
#[derive(Clone)]
pub(crate) struct Counts {
    statuses: [Counter; 5],
    seconds: Histogram,
    /// Requests that were tried again.
    pub(crate) retries: Counter,
}

impl Counts {
    pub(crate) fn count(&self, status: u16, time: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.statuses[class].inc();
        self.seconds.observe(time.as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds: Seconds = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut metrics = Self {
            registry: Registry::with_prefix("tombolo_gateway"),
            requests: Family::default(),
            seconds,
            retries: Family::default(),
            refusals: Family::default(),
            under_way: Gauge::default(),
            connections: Gauge::default(),
            lines_dropped: Counter::default(),
            reloads: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests that were answered", self.requests.clone());
        registry.register("request_seconds", "Time until an answer began", self.seconds.clone());
        registry.register("retries", "Requests that were tried again", self.retries.clone());
        registry.register("refusals", "Requests that no service saw, by why", self.refusals.clone());
        registry.register("requests_under_way", "Requests under way", self.under_way.clone());
        registry.register("connections", "Connections of clients", self.connections.clone());
        registry.register(
            "log_lines_dropped",
            "Lines of the access log that nobody took",
            self.lines_dropped.clone(),
        );
        registry.register("reloads", "Configurations that were taken while it ran", self.reloads.clone());
    }

    /// What is counted for a route.
    pub(crate) fn of_route(&self, route: &str) -> Counts {
        let labels = OfRoute { route: route.to_owned() };
        let of = |status| self.requests.get_or_create_owned(&OfStatus { route: route.to_owned(), status });
        Counts {
            statuses: [of("1xx"), of("2xx"), of("3xx"), of("4xx"), of("5xx")],
            seconds: self.seconds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
        }
    }

    /// Counts a refusal.
    pub(crate) fn refused(&self, kind: &'static str) {
        self.refusals.get_or_create(&OfKind { kind }).inc();
    }

    /// All of it as text; of replicas: route, address, whether it is well, requests.
    pub(crate) fn text(&self, replicas: &[(String, String, bool, u64)]) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let (well, requests) =
            (Family::<OfReplica, Gauge>::default(), Family::<OfReplica, Counter<u64, AtomicU64>>::default());
        for (route, replica, is_well, count) in replicas {
            let labels = OfReplica { route: route.clone(), replica: replica.clone() };
            well.get_or_create(&labels).set(i64::from(*is_well));
            requests.get_or_create(&labels).inc_by(*count);
        }
        let mut moment = Registry::with_prefix("tombolo_gateway");
        moment.register("replica_well", "Whether a replica is given requests", well);
        moment.register("replica_requests", "Requests that a replica was given", requests);
        encode(&mut text, &moment)?;
        // Each registry ends with a line that says so; the whole has one end.
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.truncate(end);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
