//! Which of the events that are due may be moved while some of them are held by others.
//!
//! Invariant: nothing of a key is moved before what is due earlier under the same key.

use std::collections::BTreeSet;

use tombolo_event::KeyHash;

/// An event that is due, before its row is locked.
pub(crate) struct Found {
    pub(crate) nth: i64,
    pub(crate) key_hash: KeyHash,
}

/// Of what is due, in its order, what is free and has nothing of its key before it that is not.
pub(crate) fn movable(found: &[Found], free: &BTreeSet<i64>) -> BTreeSet<i64> {
    let mut held = BTreeSet::new();
    let mut movable = BTreeSet::new();
    for Found { nth, key_hash } in found {
        if held.contains(key_hash) || !free.contains(nth) {
            held.insert(*key_hash);
        } else {
            movable.insert(*nth);
        }
    }
    movable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_behind_a_held_one_of_its_key_waits_too() {
        let found: Vec<Found> = [(1, 7), (2, 8), (3, 7), (4, 8), (5, 9)]
            .map(|(nth, key)| Found { nth, key_hash: KeyHash(key) })
            .into();
        assert_eq!(movable(&found, &BTreeSet::from([1, 3, 4, 5])), BTreeSet::from([1, 3, 5]));
        assert_eq!(movable(&found, &BTreeSet::new()), BTreeSet::new());
    }
}
