//! Tokens whose signature was verified before, so that it need not be again.
//!
//! Invariant: only the signature is remembered, and only under the key that it was verified by: times, blocks and whether the key is
//! still there are looked at for each request.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use quick_cache::sync::Cache;

use super::token::Key;

/// The most tokens that are remembered; those that were not shown for longest go first.
pub(crate) const TOKENS_MAX: usize = 10_000;

/// The hash of a token.
pub(crate) type Hash = [u8; 32];

/// Verified tokens, by their hash, with what they say.
pub(crate) struct Remembered<C>(Cache<Hash, (Arc<Key>, Arc<C>)>);

impl<C> Default for Remembered<C> {
    fn default() -> Self {
        Self(Cache::new(TOKENS_MAX))
    }
}

impl<C> Remembered<C> {
    /// What `token` says, if it was verified by this very key.
    pub(crate) fn find(&self, token: &str, key: &Arc<Key>) -> Option<Arc<C>> {
        let (verified_by, says) = self.0.get(&hash(token)?)?;
        Arc::ptr_eq(&verified_by, key).then_some(says)
    }

    pub(crate) fn keep(&self, token: &str, key: &Arc<Key>, says: &Arc<C>) {
        if let Some(hash) = hash(token) {
            self.0.insert(hash, (Arc::clone(key), Arc::clone(says)));
        }
    }
}

pub(crate) fn hash(token: &str) -> Option<Hash> {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::internal::Signer;
    use super::*;

    #[test]
    fn a_token_is_known_by_the_key_that_verified_it_alone() {
        let key = |name| Arc::new(Signer::new(name).unwrap().key().unwrap());
        let (first, second) = (key("a"), key("a"));
        let remembered = Remembered::default();
        remembered.keep("a.b.c", &first, &Arc::new(7));
        assert_eq!(remembered.find("a.b.c", &first).as_deref(), Some(&7));
        assert!(remembered.find("a.b.d", &first).is_none());
        assert!(remembered.find("a.b.c", &second).is_none());
    }
}
