//! Who of this process waits for the ends of which partitions.
//!
//! Invariant: what is told here is a hint. Whoever waits looks for itself when it is woken.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The ends of the partitions that somebody follows; a topic goes by whatever the engine calls it.
#[derive(Debug)]
pub(crate) struct Following<T> {
    ends: Mutex<HashMap<(T, u32), watch::Sender<u64>>>,
}

impl<T> Default for Following<T> {
    fn default() -> Self {
        Self { ends: Mutex::default() }
    }
}

impl<T: Clone + Ord + Hash> Following<T> {
    fn ends(&self) -> MutexGuard<'_, HashMap<(T, u32), watch::Sender<u64>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the end of a partition, which is `end` as far as the caller knows.
    pub(crate) fn follow(&self, topic: T, partition: u32, end: u64) -> watch::Receiver<u64> {
        self.ends().entry((topic, partition)).or_insert_with(|| watch::channel(end).0).subscribe()
    }

    /// The topics of which somebody follows a partition.
    pub(crate) fn topics(&self) -> BTreeSet<T> {
        let mut ends = self.ends();
        ends.retain(|_, end| end.receiver_count() > 0);
        ends.keys().map(|(topic, _)| topic.clone()).collect()
    }

    /// Wakes whoever follows a partition whose end is another one now.
    pub(crate) fn moved(&self, topic: T, partition: u32, end: u64) {
        if let Some(followed) = self.ends().get(&(topic, partition)) {
            followed.send_if_modified(|known| std::mem::replace(known, end) != end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_is_woken_when_the_end_moves_and_forgotten_when_it_goes() {
        let following = Following::default();
        let mut end = following.follow(7, 3, 5);
        following.moved(7, 2, 6);
        following.moved(8, 3, 6);
        following.moved(7, 3, 5);
        assert!(!end.has_changed().unwrap(), "what is known wakes nobody");
        following.moved(7, 3, 6);
        assert!(end.has_changed().unwrap() && *end.borrow_and_update() == 6);
        drop(end);
        assert!(following.topics().is_empty());
    }
}
