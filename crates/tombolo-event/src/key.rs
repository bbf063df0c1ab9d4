//! Keys and the partitions that they fall into.
//!
//! Invariant: [`KeyHash`] never changes. It is XXH64 with seed 0 over the key's UTF-8 bytes, pinned by golden
//! vectors, so that a producer in any language puts a key where every other producer would.

use std::fmt;

use xxhash_rust::xxh64::xxh64;

use crate::{Error, Kind, Result};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// The number of partitions of a topic that does not say otherwise.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// The most partitions that a topic can have.
pub const PARTITIONS_MAX: u32 = 1024;

/// The pinned hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes `key`.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(xxh64(key.as_bytes(), 0))
    }

    /// The partition, from 0, of `partitions` (at least 1).
    #[must_use]
    pub fn partition(self, partitions: u32) -> u32 {
        (self.0 % u64::from(partitions.max(1))) as u32
    }

    /// The lock stripe, from 0, of `stripes` (at least 1). Taken from the upper half, so that keys which share
    /// a partition do not all share a stripe.
    #[must_use]
    pub fn stripe(self, stripes: u32) -> u32 {
        ((self.0 >> 32) % u64::from(stripes.max(1))) as u32
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The partition, from 0, that `key` falls into.
#[must_use]
pub fn partition_of(key: &str, partitions: u32) -> u32 {
    KeyHash::of(key).partition(partitions)
}

/// Checks a key's length.
///
/// # Errors
/// [`Kind::InvalidKey`] if it is empty or longer than [`KEY_BYTES_MAX`].
pub fn check(key: &str) -> Result<()> {
    match key.len() {
        0 => Err(Error::new(
            Kind::InvalidKey,
            "the event's key is empty; a key names the entity that the event is about",
        )),
        length if length > KEY_BYTES_MAX => Err(Error::new(
            Kind::InvalidKey,
            format!("the event's key is {length} bytes long; expected at most {KEY_BYTES_MAX}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_pinned() {
        let golden = include_str!("../golden/key-hash.txt");
        let mut checked = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let (key, rest) = line.split_once('\t').unwrap();
            let (hash, partition) = rest.split_once('\t').unwrap();
            assert_eq!(KeyHash::of(key).to_string(), hash, "{key}");
            assert_eq!(partition_of(key, 8).to_string(), partition, "{key}");
            checked += 1;
        }
        assert!(checked >= 5);
    }

    #[test]
    fn keys_spread_over_partitions_and_stripes() {
        let mut counts = [[0_u32; 8]; 8];
        for n in 0..64_000 {
            let hash = KeyHash::of(&format!("order-{n}"));
            counts[hash.partition(8) as usize][hash.stripe(8) as usize] += 1;
        }
        assert!(counts.iter().flatten().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn an_empty_or_overlong_key_is_refused() {
        assert_eq!(check("").unwrap_err().kind(), Kind::InvalidKey);
        assert!(check(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        assert!(check(&"k".repeat(KEY_BYTES_MAX + 1)).is_err());
    }
}
