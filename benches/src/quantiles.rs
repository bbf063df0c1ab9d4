//! Latencies and their quantiles. Invariant: every latency that was measured counts, also the odd ones.

use hdrhistogram::Histogram;

/// What takes longer counts as so long: ten minutes.
const LONGEST_NS: u64 = 600_000_000_000;

/// Latencies in nanoseconds.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds and three digits are allowed"))
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// A quantile in microseconds.
    pub(crate) fn us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub(crate) fn p50_us(&self) -> f64 {
        self.us(0.5)
    }
}

impl FromIterator<u64> for Latencies {
    fn from_iter<I: IntoIterator<Item = u64>>(all: I) -> Self {
        let mut latencies = Self::new();
        all.into_iter().for_each(|ns| latencies.record(ns));
        latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_all_that_was_recorded() {
        let latencies: Latencies = (1..=1_000).map(|us| us * 1_000).collect();
        assert_eq!(latencies.len(), 1_000);
        assert!((latencies.p50_us() - 500.0).abs() < 1.0);
        assert!((latencies.us(0.99) - 990.0).abs() < 1.0);
    }
}
