//! Which replica takes a request.
//!
//! tower's own balancer knows no weights, no keys, and no "another than the one that failed", so only its measure of load is used.
//! Invariant: among those that are well and were not tried, whichever the way of choosing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::Rng;
use xxhash_rust::xxh64::xxh64;

use super::{Replica, Upstream};
use crate::config::Balance;

/// What a request is tied to a replica by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(xxh64(bytes, 0))
    }
}

impl Upstream {
    /// The replica for a request, or none if there is none that was not tried.
    pub(crate) fn choose(&self, key: Option<Key>, tried: &[Arc<Replica>]) -> Option<Arc<Replica>> {
        let replicas = self.replicas();
        if let ([only], []) = (&*replicas, tried) {
            return Some(only.clone());
        }
        let untried = |replica: &&Arc<Replica>| !tried.iter().any(|it| Arc::ptr_eq(it, replica));
        let mut able: Vec<_> = replicas.iter().filter(|it| it.is_well()).filter(untried).collect();
        if able.is_empty() {
            able = replicas.iter().filter(untried).collect();
        }
        match able.len() {
            0 => None,
            1 => Some(able[0].clone()),
            _ => Some(self.among(&able, key).clone()),
        }
    }

    fn among<'r>(&self, able: &[&'r Arc<Replica>], key: Option<Key>) -> &'r Arc<Replica> {
        match (&self.group.balance, key) {
            (Balance::Hash(_), Some(key)) => by_key(able, key),
            (Balance::RoundRobin, _) | (Balance::Hash(_), None) => {
                by_share(able, self.turn.fetch_add(1, Ordering::Relaxed) as u64)
            }
            (Balance::LeastLoaded, _) => less_loaded(able),
        }
    }
}

/// The one on whose share `turn` falls.
fn by_share<'r>(able: &[&'r Arc<Replica>], turn: u64) -> &'r Arc<Replica> {
    let total: u64 = able.iter().map(|replica| u64::from(replica.target.weight)).sum();
    let mut left = turn % total.max(1);
    for replica in able {
        let weight = u64::from(replica.target.weight);
        if left < weight {
            return replica;
        }
        left -= weight;
    }
    able[0]
}

/// The less loaded of two different ones, drawn by weight.
fn less_loaded<'r>(able: &[&'r Arc<Replica>]) -> &'r Arc<Replica> {
    let mut dice = rand::rng();
    let first = by_share(able, dice.random());
    let others: Vec<_> = able.iter().filter(|it| !Arc::ptr_eq(it, first)).copied().collect();
    let second = by_share(&others, dice.random());
    if second.load() < first.load() { second } else { first }
}

/// Rendezvous hashing: when a replica goes, only its keys move; a weight is a share of the keys.
fn by_key<'r>(able: &[&'r Arc<Replica>], key: Key) -> &'r Arc<Replica> {
    let score = |replica: &Arc<Replica>| {
        let hash = xxh64(&replica.identity.to_le_bytes(), key.0);
        // Uniform in (0, 1): the weighted highest of `-weight / ln(uniform)` is chosen in proportion to the weight.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -f64::from(replica.target.weight) / uniform.ln()
    };
    let highest = able.iter().max_by(|one, other| score(one).total_cmp(&score(other)));
    highest.unwrap_or(&able[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HashBy, Source, Target};
    use crate::upstream::{Ground, Group, Outcome};
    use std::collections::BTreeMap;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn upstream(balance: Balance, weights: &[u32]) -> Arc<Upstream> {
        let ground = Ground {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            retry_percent: 20,
            resolvers: Vec::new(),
            trust: crate::upstream::trust().unwrap(),
        };
        let target = |(number, weight): (usize, &u32)| Target {
            url: format!("http://127.0.0.1:{}", number + 1).parse().unwrap(),
            weight: *weight,
            name: None,
        };
        let targets = weights.iter().enumerate().map(target).collect();
        Upstream::start(
            Group { source: Source::Fixed(targets), balance, http2: false, health: None },
            &ground,
        )
    }

    fn count(upstream: &Upstream, times: u64, key: impl Fn(u64) -> Option<Key>) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for turn in 0..times {
            let chosen = upstream.choose(key(turn), &[]).unwrap();
            *counts.entry(chosen.target.url.port_u16().unwrap()).or_default() += 1;
        }
        counts
    }

    #[tokio::test]
    async fn round_robin_gives_each_its_share() {
        let counts = count(&upstream(Balance::RoundRobin, &[1, 2, 1]), 400, |_| None);
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [100, 200, 100]);
    }

    #[tokio::test]
    async fn a_key_stays_where_it_is_when_another_replica_goes() {
        let upstream = upstream(Balance::Hash(HashBy::User), &[1, 1, 1, 1]);
        let key = |turn: u64| Key::of(&turn.to_le_bytes());
        let before: Vec<_> = (0..1000).map(|turn| upstream.choose(Some(key(turn)), &[]).unwrap()).collect();
        let gone = upstream.replicas()[0].clone();
        gone.finished(Outcome::Refused);
        assert!(!gone.is_well());
        let mut moved = 0;
        for (turn, before) in before.iter().enumerate() {
            let now = upstream.choose(Some(key(turn as u64)), &[]).unwrap();
            if Arc::ptr_eq(before, &gone) {
                moved += 1;
                assert!(!Arc::ptr_eq(&now, &gone));
            } else {
                assert!(Arc::ptr_eq(before, &now));
            }
        }
        assert!((150..350).contains(&moved), "{moved} of 1000 keys were on one of four");
    }

    #[tokio::test]
    async fn keys_are_shared_by_weight() {
        let upstream = upstream(Balance::Hash(HashBy::User), &[1, 3]);
        let counts = count(&upstream, 4000, |turn| Some(Key::of(&turn.to_le_bytes())));
        assert!((800..1200).contains(&counts[&1]), "{counts:?}");
    }

    #[tokio::test]
    async fn what_was_tried_is_not_chosen_again_and_all_away_are_tried() {
        let upstream = upstream(Balance::LeastLoaded, &[1, 1]);
        let all = upstream.replicas();
        for _ in 0..20 {
            let chosen = upstream.choose(None, &all[..1]).unwrap();
            assert!(Arc::ptr_eq(&chosen, &all[1]));
        }
        assert!(upstream.choose(None, &all).is_none());
        all.iter().for_each(|replica| replica.finished(Outcome::Refused));
        assert!(upstream.choose(None, &[]).is_some());
    }

    #[tokio::test]
    async fn replicas_that_stay_are_the_same_and_those_that_go_are_told() {
        let upstream = upstream(Balance::RoundRobin, &[1, 1]);
        let before = upstream.replicas();
        upstream.set(vec![
            before[1].target.clone(),
            crate::upstream::target("http://127.0.0.1:9".parse().unwrap()),
        ]);
        let now = upstream.replicas();
        assert!(Arc::ptr_eq(&now[0], &before[1]) && now.len() == 2);
        assert!(before[0].is_removed() && !now[0].is_removed());
    }
}
